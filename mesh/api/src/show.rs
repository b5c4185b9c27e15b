//! From the heart's types to those of [`crate::model`].

use std::collections::BTreeSet;

use starling_core::config::Version;
use starling_core::id::NodeId;
use starling_core::observe::Span;
use starling_core::registry::{Health, Override};
use starling_core::time::WallTime;
use starling_core::view::{
    CatchingUp, ConfigView, Counts, InstanceView, MemberView, Preservation, ServiceView, Usability, View,
};
use starling_core::wire::{CertificateStatus, DiskFailing, NodeStatus};

use crate::model::{
    self, CatchingUpInfo, CertificateInfo, ConfigDocument, ConfigSummary, InstanceInfo, MemberInfo, NodeInfo,
    OverrideBody, OwnerSays, PreservationInfo, ServiceSummary, SpanInfo, UsabilityCounts, VersionInfo,
};

/// One line of the list of services.
pub(crate) fn service(service: &ServiceView) -> ServiceSummary {
    ServiceSummary {
        namespace: service.key.namespace.clone(),
        service: service.key.service.clone(),
        revision: service.revision,
        instances: service.instances.len() as u32,
        usability: usability(service.counts()),
    }
}

fn usability(counts: &Counts) -> UsabilityCounts {
    UsabilityCounts {
        ready: counts.of(Usability::Ready),
        doubtful: counts.of(Usability::Doubtful),
        owner_lost: counts.of(Usability::OwnerLost),
        owner_left: counts.of(Usability::OwnerLeft),
        status: counts.of(Usability::Status),
        health: counts.of(Usability::Health),
        weight: counts.of(Usability::Weight),
    }
}

/// One instance.
pub(crate) fn instance(view: &InstanceView) -> InstanceInfo {
    let instance = &view.instance;
    let owner_says = || OwnerSays { status: instance.status, weight: instance.weight };
    InstanceInfo {
        id: view.key.instance.clone(),
        address: instance.address.host.as_str().into(),
        port: instance.address.port,
        protocol: instance.protocol,
        zone: instance.zone.clone(),
        version: instance.version.as_str().into(),
        status: view.status(),
        weight: view.weight(),
        health: instance.health,
        usability: view.usability,
        reason: reason(view),
        owner: view.owner().clone(),
        reach: instance.reach,
        declared: instance.declared,
        tags: instance.details.tags().iter().map(Into::into).collect(),
        metadata: instance.details.metadata().iter().map(|(key, value)| (key.into(), value.into())).collect(),
        check: instance.details.check().map(Into::into),
        override_: view.override_.as_deref().map(operator),
        owner_says: view.override_.as_ref().map(|_| owner_says()),
        stamp: view.stamp().clone(),
    }
}

/// Why an instance takes no traffic, as a sentence.
fn reason(view: &InstanceView) -> Option<String> {
    let said = |overridden: bool| match view.override_.as_ref().filter(|_| overridden) {
        Some(word) if word.reason.is_empty() => " by an operator's override".to_owned(),
        Some(word) => format!(" by an operator's override: {}", word.reason),
        None => " by its owner's word".to_owned(),
    };
    let word = view.override_.as_ref();
    match view.usability {
        Usability::Ready => None,
        Usability::Doubtful => Some(format!(
            "its node {} vanished with many others, or has yet to be heard of: tried when nothing is ready",
            view.owner()
        )),
        Usability::OwnerLost => Some(format!("its node {} is lost from here", view.owner())),
        Usability::OwnerLeft => Some(format!("its node {} has left the mesh", view.owner())),
        Usability::Status => {
            Some(format!("its status is {}{}", view.status(), said(word.is_some_and(|w| w.status.is_some()))))
        }
        Usability::Weight => Some(format!("its weight is 0{}", said(word.is_some_and(|w| w.weight.is_some())))),
        Usability::Health if view.instance.health == Health::Unknown => Some("its check has not passed yet".into()),
        Usability::Health => Some("its check fails".into()),
    }
}

pub(crate) fn operator(word: &Override) -> OverrideBody {
    OverrideBody { status: word.status, weight: word.weight, reason: word.reason.clone() }
}

/// How many concurrent versions of a document wait for a decision. Concurrent deletions agree: no conflict.
pub(crate) fn conflict(config: &ConfigView) -> u32 {
    if config.in_conflict() && config.served().is_some() { config.versions.len() as u32 } else { 0 }
}

/// One line of the list of documents.
pub(crate) fn summary(config: &ConfigView) -> Option<ConfigSummary> {
    let served = config.served()?;
    Some(ConfigSummary {
        namespace: config.key.namespace.clone(),
        group: config.key.group.clone(),
        key: config.key.key.clone(),
        revision: config.revision,
        conflict: conflict(config),
        version: version(served, false),
    })
}

/// One document with all its versions.
pub(crate) fn document(config: &ConfigView) -> ConfigDocument {
    ConfigDocument {
        namespace: config.key.namespace.clone(),
        group: config.key.group.clone(),
        key: config.key.key.clone(),
        revision: config.revision,
        conflict: conflict(config),
        versions: config.versions.iter().map(|known| version(known, true)).collect(),
    }
}

fn version(version: &Version, with_text: bool) -> VersionInfo {
    let body = version.body.as_ref();
    VersionInfo {
        stamp: version.stamp.clone(),
        written_unix_ms: version.stamp.time.wall().0,
        deleted: body.is_none(),
        format: version.format.clone(),
        author: version.author.clone(),
        comment: version.comment.clone(),
        bytes: body.map_or(0, |body| body.as_bytes().len() as u64),
        text: body.filter(|_| with_text).and_then(|body| body.as_text()).map(str::to_owned),
    }
}

/// One member.
pub(crate) fn member(member: &MemberView, view: &View, relays: &BTreeSet<NodeId>) -> MemberInfo {
    MemberInfo {
        node: member.node.clone(),
        state: member.state,
        since_unix_ms: member.since.0,
        preserved: view.preserves(&member.node),
        clock_ahead_ms: view.clock_ahead_ms(&member.node),
        zone: member.facts.zone.clone(),
        region: member.facts.region.clone(),
        cell: member.facts.cell.clone(),
        relay: relays.contains(&member.node),
        version: member.facts.version.clone(),
        address: member.facts.address.clone(),
        incarnation: member.facts.incarnation,
    }
}

/// Where a node preserves what it knew.
pub(crate) fn preservation(view: &View) -> Vec<PreservationInfo> {
    let info = |one: &Preservation| PreservationInfo {
        zone: one.zone.clone(),
        since_unix_ms: one.since.0,
        ends_unix_ms: one.ends.0,
        of: one.of as u32,
        missing: one.missing.iter().cloned().collect(),
    };
    view.preservation.iter().map(info).collect()
}

/// What a node said of itself.
pub(crate) fn node(status: NodeStatus) -> NodeInfo {
    NodeInfo {
        node: status.node,
        incarnation: status.incarnation,
        version: status.version,
        uptime_ms: status.uptime_ms,
        wall_unix_ms: status.wall.0,
        revision: status.revision,
        fingerprint: status.fingerprint.to_string(),
        records: status.fingerprint.count,
        members_alive: status.members_alive,
        disk_failing: status
            .disk_failing
            .map(|DiskFailing { since, reason }| model::DiskFailing { since_unix_ms: since.0, reason }),
        catching_up: status.catching_up.map(|reading| catching_up(reading, status.fingerprint.count, status.wall)),
        certificate: status.certificate.map(|CertificateStatus { expires, ends_soon, refused }| CertificateInfo {
            expires_unix_ms: expires.0,
            ends_soon,
            refused,
        }),
    }
}

/// How far a node is that holds so many records by now.
fn catching_up(reading: CatchingUp, held: u64, now: WallTime) -> CatchingUpInfo {
    let CatchingUp { from, of, began_with, since } = reading;
    let (learnt, took_ms) = (held.saturating_sub(began_with), now.0.saturating_sub(since.0).max(1));
    let left = of.saturating_sub(held);
    // At the rate so far, rounded up: "0 seconds" is said of nothing that is still missing.
    let seconds_left = (learnt > 0).then(|| (left.saturating_mul(took_ms) / learnt).div_ceil(1_000));
    CatchingUpInfo { from, of, records_per_second: learnt.saturating_mul(1_000) / took_ms, seconds_left }
}

/// One span.
pub(crate) fn span(span: Span) -> SpanInfo {
    SpanInfo {
        trace: span.trace,
        id: span.id,
        parent: span.parent,
        kind: span.kind,
        node: span.node,
        service: span.service,
        name: span.name,
        start_unix_us: span.start_us,
        duration_us: span.duration_us,
        status: span.status,
        error: span.error,
        attributes: span.attributes,
    }
}

#[cfg(test)]
mod tests {
    use starling_core::id::NodeId;

    use super::*;

    #[test]
    fn a_node_that_catches_up_says_how_fast_and_how_long_it_will_take() {
        let from: NodeId = "a".parse().unwrap();
        let reading = CatchingUp { from: from.clone(), of: 1_000_000, began_with: 1_000, since: WallTime(5_000) };
        let shown = catching_up(reading.clone(), 201_000, WallTime(7_000));
        let expected = CatchingUpInfo { from, of: 1_000_000, records_per_second: 100_000, seconds_left: Some(8) };
        assert_eq!(shown, expected);
        assert_eq!(catching_up(reading, 1_000, WallTime(5_000)).seconds_left, None, "no rate yet");
    }
}
