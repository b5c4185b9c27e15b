//! What is registered at one node is found at the others.

use starling_api::model::{InstanceList, RegisterRequest};
use tokio::time::Instant;

use super::{Story, Told, others};
use crate::demo::cast::HOSTS;
use crate::demo::figure::Times;
use crate::demo::watch;

/// A service of its own, so that a watcher's answer holds what is measured and nothing else.
const SERVICE: &str = "finch";

pub(super) async fn tell(story: &mut Story) -> Told {
    story.screen.chapter("A service is found");
    let rounds = story.plan.registrations;
    let words = format!("registers {rounds} instances one by one, at each node in turn, and takes each out again");
    story.screen.event("client", &words);
    let apis = story.apis()?;
    let mut observers = watch::everywhere::<InstanceList>(&apis, SERVICE).await?;
    let (mut written, mut seen, mut gone) = (Times::new(), Times::new(), Times::new());
    for round in 0..rounds {
        let at = round % HOSTS.len();
        let id = format!("finch-{round}");
        let there = |list: &InstanceList| list.instances.iter().any(|instance| instance.id.as_str() == id);

        let began = Instant::now();
        apis[at].register(SERVICE, &id, &RegisterRequest::on_port(9)).await?;
        written.record(began.elapsed());
        seen.record(watch::all(others(&mut observers, at), there).await? - began);

        // The writer's own watcher waits at its node again before the next write is timed.
        observers[at].until(there).await?;
        let began = Instant::now();
        apis[at].deregister(SERVICE, &id).await?;
        gone.record(watch::all(others(&mut observers, at), |list| !there(list)).await? - began);
        observers[at].until(|list| !there(list)).await?;
    }
    story.screen.remark(
        "A client's times: from before its request until a blocking query at the last of the other two nodes is \
         answered. HTTP and the writer's disk are in them.",
    );
    story.screen.times_heading("");
    story.screen.times("written and answered", &written);
    story.screen.times("seen at both others", &seen);
    story.screen.times("taken out everywhere", &gone);
    story.report.times("register_written", &written);
    story.report.times("register_seen", &seen);
    story.report.times("deregister_seen", &gone);
    story.promise(true, "a registration is seen at every node", &seen.short());
    Ok(())
}
