//! The network breaks in two; both sides go on.

use starling_api::model::{ConfigDocument, InstanceList, MemberList, RegisterRequest};
use starling_core::view::MemberState;
use tokio::time::{Instant, sleep};

use super::config::served;
use super::{Story, Told, others};
use crate::demo::cast::{ENTRANCE, HOSTS};
use crate::demo::figure::{Figure, time};
use crate::demo::screen::after;
use crate::demo::watch;

const SERVICE: &str = "swift";
const DOCUMENT: &str = "banner";

pub(super) async fn tell(story: &mut Story, alone: usize) -> Told {
    story.screen.chapter("The network breaks in two");
    let apis = story.apis()?;
    let lonely = HOSTS[alone];
    let third = (0..HOSTS.len()).find(|at| *at != alone && *at != ENTRANCE).unwrap_or_default();
    apis[ENTRANCE].publish(DOCUMENT, "open", "demo").await?;
    let mut documents = watch::everywhere::<ConfigDocument>(&apis, DOCUMENT).await?;
    watch::all(&mut documents, |document| served(document).is_some_and(|text| text == "open")).await?;
    let mut members = watch::everywhere::<MemberList>(&apis, "members").await?;
    let mut swifts = watch::everywhere::<InstanceList>(&apis, SERVICE).await?;

    let cut = Instant::now();
    story.stage.cut_off(alone).await?;
    let words = format!("every packet between {} and the other two is lost from now on", lonely.node);
    story.screen.event("network", &words);
    let written = write_on_both_sides(story, alone).await?;
    story.report.figure("partition_slowest_write", Figure::Time(written));
    story.promise(true, "both sides of a cut accept writes", &format!("slowest {}", time(written)));

    let lost = |list: &MemberList| list.members.iter().filter(|it| it.state == MemberState::Lost).count();
    let here = watch::all(others(&mut members, alone), |list| lost(list) == 1).await?;
    let there = members[alone].until(|list| lost(list) == 2).await?;
    let noticed = here.max(there) - cut;
    story.screen.event("mesh", &format!("{}: both sides know, and go on with what they have", after(noticed)));
    story.report.figure("partition_seen", Figure::Time(noticed));
    sleep(story.plan.watching / 3).await;
    let split = show_sides(story, alone, &swifts, &documents);
    story.promise(split, "each side serves what it knows", "on 3 of 3 nodes");

    let healed = Instant::now();
    story.stage.heal().await?;
    story.screen.event("network", "is whole again");
    let both = |list: &InstanceList| list.instances.len() == 2;
    let found = watch::all(&mut swifts, both).await? - healed;
    let conflict = watch::all(&mut documents, |document| document.conflict == 2).await? - healed;
    let agreed = watch::agreement(&apis).await? - healed;
    story.screen.figure("registrations of both sides everywhere", Figure::Time(found));
    story.screen.figure("the conflict shown everywhere", Figure::Time(conflict));
    story.screen.figure("all three hold the same", Figure::Time(agreed));
    story.report.figure("heal_registrations_everywhere", Figure::Time(found));
    story.report.figure("heal_conflict_everywhere", Figure::Time(conflict));
    story.report.figure("heal_agreed", Figure::Time(agreed));
    story.promise(true, "after healing all hold the same", &time(agreed));
    story.account("partition", cut, "no GET is lost in a partition").await?;
    resolve(story, &mut documents, third).await
}

/// A registration and an edit of the same document on either side; the time of the slowest.
async fn write_on_both_sides(story: &mut Story, alone: usize) -> Result<std::time::Duration, String> {
    let mut slowest = std::time::Duration::ZERO;
    for at in [ENTRANCE, alone] {
        let (api, node) = (story.api(at)?, HOSTS[at].node);
        let (id, text) = (swift(at), edit(at));
        let began = Instant::now();
        api.register(SERVICE, &id, &RegisterRequest::on_port(9)).await?;
        slowest = slowest.max(began.elapsed());
        let began = Instant::now();
        api.publish(DOCUMENT, &text, node).await?;
        slowest = slowest.max(began.elapsed());
        story.screen.event(node, &format!("takes the registration {id} and sets shop/{DOCUMENT} to \"{text}\""));
    }
    Ok(slowest)
}

/// What is registered at a host.
fn swift(at: usize) -> String {
    format!("swift-{}", HOSTS[at].node)
}

/// What somebody writes at a host.
fn edit(at: usize) -> String {
    format!("closed in {}", HOSTS[at].zone)
}

/// Shows what each node serves; says whether it is what was written on its side, no more and no less.
fn show_sides(
    story: &mut Story,
    alone: usize,
    swifts: &[watch::Observer<InstanceList>],
    documents: &[watch::Observer<ConfigDocument>],
) -> bool {
    let mut as_written = true;
    for at in 0..HOSTS.len() {
        let ids = swifts[at].latest(|list| list.instances.iter().map(|it| it.id.to_string()).collect::<Vec<_>>());
        let text = documents[at].latest(|it| served(it).cloned()).flatten();
        let (ids, text) = (ids.unwrap_or_default().join(", "), text.unwrap_or_default());
        story.screen.event(HOSTS[at].node, &format!("serves {ids} and shop/{DOCUMENT} \"{text}\""));
        let writer = if at == alone { alone } else { ENTRANCE };
        as_written &= ids == swift(writer) && text == edit(writer);
    }
    as_written
}

/// Somebody looks at the conflict, at a node that wrote neither version, and decides.
async fn resolve(story: &mut Story, documents: &mut [watch::Observer<ConfigDocument>], at: usize) -> Told {
    let node = HOSTS[at].node;
    let versions = documents[at].latest(|document| document.versions.clone()).unwrap_or_default();
    for (number, version) in versions.iter().enumerate() {
        let text = version.text.as_deref().unwrap_or_default();
        let role = if number == 0 { "served everywhere" } else { "kept beside it" };
        story.screen.event(node, &format!("shop/{DOCUMENT} \"{text}\" by {} is {role}", version.author));
    }
    let shown = versions.len() == 2;
    story.promise(shown, "conflicting edits are kept and shown", &format!("{} versions on 3 nodes", versions.len()));
    let Some(chosen) = versions.last() else { return Err(format!("{node} shows no version of {DOCUMENT}")) };
    let began = Instant::now();
    story.api(at)?.choose(DOCUMENT, &chosen.stamp.to_string(), "operator").await?;
    let wanted = chosen.text.clone();
    let settled = |document: &ConfigDocument| document.conflict == 0 && served(document) == wanted.as_ref();
    let resolved = watch::all(documents, settled).await? - began;
    story.screen.event(node, &format!("an operator chooses \"{}\"", wanted.as_deref().unwrap_or_default()));
    story.report.figure("conflict_resolved", Figure::Time(resolved));
    story.promise(true, "one choice settles it everywhere", &time(resolved));
    Ok(())
}
