//! The nodes: who is there, who holds the same, and what this one is.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use starling_core::digest::Fingerprint;
use starling_core::id::CellName;
use starling_core::view::{MemberState, MemberView};
use starling_core::wire::{NodeStatus, Question, Reply};

use crate::context::{Context, Shared};
use crate::extract::{Params, Wait, duration};
use crate::failure::Failure;
use crate::gather::Asked;
use crate::lists::encode;
use crate::model::{MemberList, MeshStatus, NodeDetail, NodeReport, Verdict};
use crate::reply::json;
use crate::show;

/// The query of the list of members.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MembersQuery {
    newer_than: Option<u64>,
    #[serde(default, deserialize_with = "duration")]
    wait: Option<Duration>,
    cell: Option<CellName>,
}

/// A query without parameters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoQuery {}

/// `GET /v1/members`.
pub(crate) async fn members(
    State(context): State<Shared>,
    Params(query): Params<MembersQuery>,
) -> Result<Response, Failure> {
    let wait = Wait::new(query.newer_than, query.wait);
    let view = context.newest(wait, |view| context.revisions.members(view)).await?;
    let revision = context.revisions.members(&view);
    let relays = view.all_relays();
    let wanted =
        view.members.values().filter(|member| query.cell.as_ref().is_none_or(|cell| member.facts.cell == *cell));
    let list = MemberList {
        revision,
        node: view.me.clone(),
        members: wanted.map(|member| show::member(member, &view, &relays)).collect(),
        preservation: show::preservation(&view),
        out_of_reach: view.out_of_reach.iter().cloned().collect(),
    };
    Ok(json(revision, encode(&list)))
}

/// `GET /v1/node`.
pub(crate) async fn node(
    State(context): State<Shared>,
    Params(NoQuery {}): Params<NoQuery>,
) -> Result<Response, Failure> {
    let status = own_status(&context).await?;
    let view = context.mesh.view();
    let mut detail = NodeDetail {
        node: show::node(status),
        zone: view.zone.clone(),
        ready: context.is_ready(),
        services: view.services.size() as u32,
        instances: view.services.values().map(|service| service.instances.len() as u32).sum(),
        own_instances: view.own_instances as u32,
        documents: 0,
        conflicts: 0,
    };
    for config in view.configs.values() {
        detail.documents += u32::from(config.served().is_some());
        detail.conflicts += u32::from(show::conflict(config) > 0);
    }
    Ok(json(view.revision, encode(&detail)))
}

pub(crate) async fn own_status(context: &Context) -> Result<NodeStatus, Failure> {
    let me = context.mesh.me();
    match context.mesh.ask(me, Question::Status, context.settings.ask_timeout()).await {
        Ok(Reply::Status(status)) => Ok(status),
        Ok(_) => Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "this node answered another question")),
        Err(error) => Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

/// `GET /v1/status`.
pub(crate) async fn status(
    State(context): State<Shared>,
    Params(NoQuery {}): Params<NoQuery>,
) -> Result<Response, Failure> {
    let before = context.mesh.view();
    let asked = context.ask_all(&before, &Question::Status).await?;
    let after = context.mesh.view();
    // Writes go on while the others answer: whoever holds what this node held before or holds now is not behind.
    let ours = [before.fingerprint, after.fingerprint];
    let mut nodes = Vec::new();
    for member in before.members.values() {
        let answer = asked.iter().find(|one| one.node == member.node);
        nodes.push(report(member, answer, &ours));
    }
    let there = |report: &NodeReport| !matches!(report.verdict, Verdict::Lost | Verdict::Left);
    let status = MeshStatus {
        node: after.me.clone(),
        fingerprint: after.fingerprint.to_string(),
        agree: nodes.iter().filter(|report| there(report)).all(|report| report.verdict == Verdict::Same),
        nodes,
        preservation: show::preservation(&after),
    };
    Ok(json(after.revision, encode(&status)))
}

fn report(member: &MemberView, asked: Option<&Asked>, ours: &[Fingerprint]) -> NodeReport {
    let mut report = NodeReport {
        node: member.node.clone(),
        zone: member.facts.zone.clone(),
        verdict: Verdict::Unreachable,
        error: None,
        status: None,
        clock_offset_ms: None,
        round_trip_us: None,
    };
    match (member.state, asked.map(|one| (one, &one.answer))) {
        (MemberState::Lost, _) => report.verdict = Verdict::Lost,
        (MemberState::Left, _) => report.verdict = Verdict::Left,
        (MemberState::Alive, Some((one, Ok(Reply::Status(status))))) => {
            report.verdict = if ours.contains(&status.fingerprint) { Verdict::Same } else { Verdict::Differs };
            let offset = i128::from(status.wall.0) - i128::from(one.half_way_unix_ms);
            report.clock_offset_ms = i64::try_from(offset).ok();
            report.round_trip_us = Some(one.took.as_micros() as u64);
            report.status = Some(show::node(status.clone()));
        }
        (MemberState::Alive, Some((_, Ok(_)))) => report.error = Some("it answered another question".into()),
        (MemberState::Alive, Some((_, Err(error)))) => report.error = Some(error.clone()),
        (MemberState::Alive, None) => report.error = Some("it was not asked".into()),
    }
    report
}
