//! Configuration is changed at one node and read at the others.

use starling_api::model::ConfigDocument;
use tokio::time::Instant;

use super::{Story, Told, others};
use crate::demo::cast::HOSTS;
use crate::demo::figure::Times;
use crate::demo::watch;

const DOCUMENT: &str = "prices.json";

pub(super) async fn tell(story: &mut Story) -> Told {
    story.screen.chapter("Configuration changes");
    let rounds = story.plan.releases;
    let words = format!("changes shop/{DOCUMENT} {rounds} times, at each node in turn; programs watch it elsewhere");
    story.screen.event("operator", &words);
    let apis = story.apis()?;
    apis[0].publish(DOCUMENT, "{\"release\": 0}", "demo").await?;
    let mut observers = watch::everywhere::<ConfigDocument>(&apis, DOCUMENT).await?;
    let (mut written, mut woken) = (Times::new(), Times::new());
    for round in 1..=rounds {
        let at = round % HOSTS.len();
        let body = format!("{{\"release\": {round}}}");
        let new = |document: &ConfigDocument| served(document) == Some(&body);
        let began = Instant::now();
        apis[at].publish(DOCUMENT, &body, "demo").await?;
        written.record(began.elapsed());
        woken.record(watch::all(others(&mut observers, at), new).await? - began);
        observers[at].until(new).await?;
    }
    let conflicts = observers.iter().filter_map(|observer| observer.latest(|document| document.conflict)).max();
    story.screen.times_heading("");
    story.screen.times("written and answered", &written);
    story.screen.times("both watchers woken", &woken);
    story.report.times("config_written", &written);
    story.report.times("config_seen", &woken);
    let kept = conflicts == Some(0);
    story.promise(kept, "a config change wakes its watchers", &woken.short());
    Ok(())
}

/// The text of the version that is served.
pub(super) fn served(document: &ConfigDocument) -> Option<&String> {
    document.versions.first().and_then(|version| version.text.as_ref())
}
