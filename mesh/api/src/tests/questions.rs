//! What is asked of all nodes: status and traces.

use std::collections::BTreeMap;

use starling_core::observe::{Span, SpanId, SpanKind, TraceId};
use starling_core::view::MemberState;

use super::world::World;
use crate::model::{MemberList, MeshStatus, NodeDetail, RecentTraces, TraceDetail, Verdict};

fn verdicts(status: &MeshStatus) -> Vec<(&str, Verdict)> {
    status.nodes.iter().map(|report| (report.node.as_str(), report.verdict)).collect()
}

#[tokio::test]
async fn a_mesh_that_holds_the_same_agrees() {
    let world = World::of(&["a", "b", "c"]);
    let server = world.server("a");
    server.register("orders", "1", 1).await;
    let status: MeshStatus = server.get("/v1/status").await.expect(200).json();
    assert!(status.agree, "{status:?}");
    assert_eq!(verdicts(&status), [("a", Verdict::Same), ("b", Verdict::Same), ("c", Verdict::Same)]);
    assert_eq!(status.nodes[1].status.as_ref().unwrap().fingerprint, status.fingerprint);
    assert_eq!(status.nodes[1].status.as_ref().unwrap().records, 1);
}

#[tokio::test]
async fn who_is_behind_silent_or_lost_is_named() {
    let world = World::of(&["a", "b", "c", "d"]);
    let (a, b) = (world.server("a"), world.server("b"));
    world.lost("a", "d");
    world.silence("c");
    world.cut("b");
    b.register("orders", "1", 1).await;
    // Questions pass again, and what was pushed meanwhile is still missing.
    world.reconnect();
    let status: MeshStatus = a.get("/v1/status").await.expect(200).json();
    assert!(!status.agree);
    assert_eq!(
        verdicts(&status),
        [("a", Verdict::Same), ("b", Verdict::Differs), ("c", Verdict::Unreachable), ("d", Verdict::Lost)]
    );
    assert!(status.nodes[2].error.as_ref().unwrap().contains("did not answer"), "{status:?}");
}

#[tokio::test]
async fn a_clock_that_is_ahead_is_shown() {
    let world = World::of(&["a", "b"]);
    world.clock_ahead("b", 3_600_000);
    let status: MeshStatus = world.server("a").get("/v1/status").await.expect(200).json();
    let offset = status.nodes[1].clock_offset_ms.unwrap();
    assert!((3_500_000..3_700_000).contains(&offset), "{offset}");
}

#[tokio::test]
async fn members_and_this_node_are_described() {
    let world = World::of(&["a", "b"]);
    let server = world.server("a");
    server.register("orders", "1", 1).await;
    world.server("b").register("orders", "2", 2).await;
    server.ask("PUT /v1/config/default/app/x", "1").await.expect(200);
    world.lost("a", "b");
    let members: MemberList = server.get("/v1/members").await.expect(200).json();
    let states: Vec<_> = members.members.iter().map(|m| (m.node.as_str(), m.zone.as_str(), m.state)).collect();
    assert_eq!(states, [("a", "zone-a", MemberState::Alive), ("b", "zone-b", MemberState::Lost)]);
    let node: NodeDetail = server.get("/v1/node").await.expect(200).json();
    assert_eq!((node.services, node.instances, node.own_instances, node.documents), (1, 2, 1, 1));
    assert!(node.ready && node.zone.as_str() == "zone-a" && node.node.members_alive == 1);
}

fn span(node: &str, trace: u128, id: u64, parent: Option<u64>, start_us: u64) -> Span {
    Span {
        trace: TraceId(trace),
        id: SpanId(id),
        parent: parent.map(SpanId),
        kind: if parent.is_some() { SpanKind::Server } else { SpanKind::Client },
        node: node.parse().unwrap(),
        service: "default/orders".into(),
        name: "GET".into(),
        start_us,
        duration_us: 5,
        status: Some(200),
        error: None,
        attributes: BTreeMap::new(),
    }
}

#[tokio::test]
async fn a_trace_is_gathered_from_all_nodes() {
    let world = World::of(&["a", "b", "c"]);
    world.saw("a", span("a", 7, 1, None, 100));
    world.saw("b", span("b", 7, 2, Some(1), 90));
    world.saw("b", span("b", 8, 3, None, 200));
    world.silence("c");
    let path = format!("/v1/traces/{}", TraceId(7));
    let trace: TraceDetail = world.server("c").get(&path).await.expect(200).json();
    assert_eq!(trace.spans.iter().map(|s| (s.node.as_str(), s.id.0)).collect::<Vec<_>>(), [("a", 1), ("b", 2)]);
    assert_eq!(trace.unanswered.iter().map(|u| u.node.as_str()).collect::<Vec<_>>(), ["c"]);
}

#[tokio::test]
async fn a_trace_nobody_knows_is_not_found() {
    let server = World::of(&["a"]).server("a");
    server.get("/v1/traces/7").await.expect(404);
    let error = server.get("/v1/traces/xyz").await.expect(400).error();
    assert!(error.error.contains("hex"), "{error:?}");
}

#[tokio::test]
async fn what_is_no_trace_id_is_refused_as_everything_else_is() {
    let server = World::of(&["a"]).server("a");
    for path in ["/v1/traces/zz", "/v1/traces/%ff"] {
        assert!(!server.get(path).await.expect(400).error().error.is_empty(), "{path}");
    }
}

#[tokio::test]
async fn the_newest_traces_of_all_nodes_come_first() {
    let world = World::of(&["a", "b"]);
    for (node, trace, start) in [("a", 1, 100), ("b", 2, 300), ("a", 3, 200)] {
        world.saw(node, span(node, trace, trace as u64, None, start));
    }
    let server = world.server("a");
    let recent: RecentTraces = server.get("/v1/traces").await.expect(200).json();
    assert_eq!(recent.roots.iter().map(|s| s.trace.0).collect::<Vec<_>>(), [2, 3, 1]);
    let recent: RecentTraces = server.get("/v1/traces?limit=1").await.expect(200).json();
    assert_eq!(recent.roots.len(), 1);
}
