//! Three nodes become a mesh.

use starling_api::model::MemberList;
use starling_core::view::MemberState;
use tokio::time::Instant;

use super::{Story, Told};
use crate::demo::cast::HOSTS;
use crate::demo::figure::{Figure, time};
use crate::demo::watch::{self, Observer};

pub(super) async fn tell(story: &mut Story) -> Told {
    story.screen.chapter("A mesh forms");
    story.screen.event("ca", "a throw-away authority has issued three certificates, good for this run only");
    let began = Instant::now();
    // The first waits to be joined, the others know only the first.
    story.stage.start_nodes(&[0]).await?;
    introduce(story, 0)?;
    let first = Observer::<MemberList>::new(story.api(0)?, "members").await?;
    story.stage.start_nodes(&[1, 2]).await?;
    let started = Instant::now();
    introduce(story, 1)?;
    introduce(story, 2)?;
    let mut observers = watch::everywhere(&[story.api(1)?, story.api(2)?], "members").await?;
    observers.push(first);
    let complete = watch::all(&mut observers, everybody).await?.max(started);
    story.screen.event("mesh", "every node sees every other; there is no leader, no quorum and no other server");
    story.report.figure("mesh_first_process_to_formed", Figure::Time(complete - began));
    story.report.figure("mesh_last_ready_to_formed", Figure::Time(complete - started));
    let measured = format!("{} after the last is up", time(complete - started));
    story.promise(true, "three processes become one mesh", &measured);
    Ok(())
}

fn introduce(story: &mut Story, host: usize) -> Told {
    let addresses = story.stage.addresses(host)?;
    let ports = [addresses.quic, addresses.api, addresses.sidecar].map(|address| address.port());
    let words = format!("{} · quic {} · api {} · sidecar {}", HOSTS[host].zone, ports[0], ports[1], ports[2]);
    story.screen.event(HOSTS[host].node, &words);
    Ok(())
}

fn everybody(list: &MemberList) -> bool {
    list.members.iter().filter(|member| member.state == MemberState::Alive).count() == HOSTS.len()
}
