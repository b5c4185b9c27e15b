//! A whole node is killed and comes back.

use starling_api::model::MemberList;
use starling_core::view::MemberState;
use tokio::time::{Instant, sleep};

use super::instance::{Counters, first_over};
use super::{Story, Told, others};
use crate::demo::cast::{ENTRANCE, HOSTS, PLAYERS, players};
use crate::demo::figure::{Figure, time};
use crate::demo::screen::after;
use crate::demo::shop::Role;
use crate::demo::watch;

pub(super) async fn tell(story: &mut Story, dies: usize) -> Told {
    story.screen.chapter("A node is killed");
    let host = HOSTS[dies];
    let apis = story.apis()?;
    let mut seen = watch::everywhere::<MemberList>(&apis, "members").await?;
    let before = Counters::read(story).await?;
    let pid = story.stage.node_pid(dies)?;

    let killed = Instant::now();
    story.stage.kill_node(dies).await?;
    let words = format!("kill -9 {pid}: the node of {} is gone without a word, its programs are cut off", host.zone);
    story.screen.event(host.node, &words);
    let is = |state: MemberState| {
        move |list: &MemberList| list.members.iter().any(|it| it.node.as_str() == host.node && it.state == state)
    };
    let noticed = watch::all(others(&mut seen, dies), is(MemberState::Lost)).await? - killed;
    story.screen.event("mesh", &format!("{}: both other nodes know", after(noticed)));
    sleep(story.plan.watching / 2).await;
    story.account("node_killed", killed, "no GET is lost when a node dies").await?;
    let sidecar = Counters::read(story).await?.since(before);
    story.screen.event(HOSTS[ENTRANCE].node, &sidecar.words("host"));
    story.report.figure("node_killed_seen", Figure::Time(noticed));
    story.report.figure("node_killed_retries", Figure::Count(sidecar.retries));
    story.promise(true, "a node's death is known everywhere", &time(noticed));

    let began = Instant::now();
    story.stage.start_nodes(&[dies]).await?;
    let up = began.elapsed();
    let words = format!("is started again as pid {}, on other ports; nobody is told", story.stage.node_pid(dies)?);
    story.screen.event(host.node, &words);
    let accepted = watch::all(others(&mut seen, dies), is(MemberState::Alive)).await? - began;
    let agreed = watch::agreement(&story.apis()?).await? - began;
    let its: Vec<&str> =
        players(Role::Stock).filter(|at| PLAYERS[*at].host == dies).map(|at| PLAYERS[at].name).collect();
    let serving = first_over(story, &its, began).await? - began;
    story.screen.figure("up, with what it remembers from disk", Figure::Time(up));
    story.screen.figure("seen alive by the others", Figure::Time(accepted));
    story.screen.figure("all three hold the same", Figure::Time(agreed));
    story.screen.figure("its programs serve customers again", Figure::Time(serving));
    if sidecar.opened > 0 {
        story.screen.remark("Callers' breakers, opened by what failed, have to close before it gets work again.");
    }
    for (name, value) in [("up", up), ("seen", accepted), ("agreed", agreed), ("serving", serving)] {
        story.report.figure(&format!("node_back_{name}"), Figure::Time(value));
    }
    story.promise(true, "a node comes back without an operator", &time(serving.max(agreed)));
    Ok(())
}
