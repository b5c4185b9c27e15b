//! An instance is killed; nobody is told.

use std::time::Duration;

use starling_api::model::InstanceList;
use tokio::time::{Instant, sleep, timeout};

use super::shop::is_ready;
use super::{Story, Told};
use crate::demo::cast::{ENTRANCE, HOSTS, PLAYERS, players};
use crate::demo::figure::{Figure, counted, time};
use crate::demo::screen::after;
use crate::demo::shop::Role;
use crate::demo::watch::{Observer, PATIENCE};

/// Between two looks at a counter or at the customers' book.
const LOOK: Duration = Duration::from_millis(10);

pub(super) async fn tell(story: &mut Story) -> Told {
    story.screen.chapter("An instance is killed");
    let stock: Vec<usize> = players(Role::Stock).collect();
    let victim = stock[story.dice.usize(..stock.len())];
    let name = PLAYERS[victim].name;
    let entrance = story.api(ENTRANCE)?;
    let mut seen = Observer::<InstanceList>::new(entrance.clone(), Role::Stock.service()).await?;
    let before = Counters::read(story).await?;
    let pid = story.stage.app(victim)?.0;

    let killed = Instant::now();
    story.stage.kill_app(victim).await?;
    story.screen.event(name, &format!("kill -9 {pid}; it stays in the registry, customers keep coming"));
    let usable = |list: &InstanceList| list.instances.iter().any(|it| it.id.as_str() == name && is_ready(it));
    let out = seen.until(|list| !usable(list)).await? - killed;
    let host = HOSTS[PLAYERS[victim].host].node;
    story.screen.event(host, &format!("{}: its health check fails, and every node knows", after(out)));
    sleep(story.plan.watching / 2).await;
    let sidecar = Counters::read(story).await?.since(before);
    story.account("instance_killed", killed, "no GET is lost when an instance dies").await?;
    story.screen.event(HOSTS[ENTRANCE].node, &sidecar.words("instance"));
    story.report.figure("instance_killed_seen", Figure::Time(out));
    story.report.figure("instance_killed_retries", Figure::Count(sidecar.retries));
    story.report.figure("instance_killed_breakers_opened", Figure::Count(sidecar.opened));
    story.promise(true, "an instance's death is known everywhere", &time(out));

    let began = Instant::now();
    story.stage.start_apps(&[victim]).await?;
    let (pid, listen) = story.stage.app(victim)?;
    story.screen.event(name, &format!("is started again as pid {pid} on another port, {}", listen.port()));
    seen.until(usable).await?;
    let back = first_over(story, &[name], began).await? - began;
    story.report.figure("instance_back_serving", Figure::Time(back));
    story.promise(true, "a restarted instance works again", &time(back));
    Ok(())
}

/// Waits until a request that was due after `since` has come back over one of these instances.
pub(super) async fn first_over(story: &Story, names: &[&str], since: Instant) -> Result<Instant, String> {
    let load = story.load()?;
    let looking = async {
        loop {
            if let Some(first) = names.iter().filter_map(|name| load.first_over(name, since)).min() {
                return first;
            }
            sleep(LOOK).await;
        }
    };
    timeout(PATIENCE, looking)
        .await
        .map_err(|_| format!("{} got no work in {} s", names.join(", "), PATIENCE.as_secs()))
}

/// What the sidecar at the entrance has counted: all customers and most callers come through it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counters {
    pub(super) retries: u64,
    pub(super) opened: u64,
}

impl Counters {
    /// Asks it.
    pub(super) async fn read(story: &Story) -> Result<Self, String> {
        let api = story.api(ENTRANCE)?;
        let (retries, opened) =
            (api.metric("starling_retries_total").await?, api.metric("starling_breaker_opens_total").await?);
        Ok(Self { retries: retries as u64, opened: opened as u64 })
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self { retries: self.retries.saturating_sub(before.retries), opened: self.opened.saturating_sub(before.opened) }
    }

    /// What the sidecar did about something that died: a sentence that says where it asked instead.
    pub(super) fn words(self, elsewhere: &str) -> String {
        let (retries, opened) = (counted(self.retries, "request"), counted(self.opened, "breaker"));
        format!("{retries} sent once more, to another {elsewhere}; {opened} opened")
    }
}
