//! Traces, gathered from all nodes.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use starling_core::id::NodeId;
use starling_core::observe::{Span, SpanId, TraceId};
use starling_core::wire::Question;

use crate::context::Shared;
use crate::extract::{Names, Params};
use crate::failure::Failure;
use crate::gather;
use crate::lists::encode;
use crate::mesh::NoQuery;
use crate::model::{RecentTraces, SpanInfo, TraceDetail};
use crate::reply::json;
use crate::show;

/// The most spans shown of one trace; a trace that goes in circles must not fill the memory of who asks for it.
const MAX_SPANS: usize = 20_000;
/// How many recent traces are shown when the query does not say, and at most.
const DEFAULT_RECENT: u32 = 20;
const MAX_RECENT: u32 = 1_000;

/// `GET /v1/traces/{id}`.
pub(crate) async fn trace(
    State(context): State<Shared>,
    Names(id): Names<String>,
    Params(NoQuery {}): Params<NoQuery>,
) -> Result<Response, Failure> {
    let trace: TraceId = id.parse().map_err(Failure::bad)?;
    let view = context.mesh.view();
    let (spans, unanswered) = gather::spans(context.ask_all(&view, &Question::Trace(trace)).await?);
    if spans.is_empty() && unanswered.is_empty() {
        return Err(Failure::absent(format!("no node keeps a span of trace {trace}"))
            .hint("nodes keep only their newest spans; GET /v1/traces lists the newest traces"));
    }
    let spans = in_order(spans).into_iter().map(show::span).collect();
    Ok(json(view.revision, encode(&TraceDetail { trace, spans, unanswered })))
}

/// The query of the list of traces.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecentQuery {
    limit: Option<u32>,
}

/// `GET /v1/traces`.
pub(crate) async fn recent(
    State(context): State<Shared>,
    Params(query): Params<RecentQuery>,
) -> Result<Response, Failure> {
    let limit = query.limit.unwrap_or(DEFAULT_RECENT).min(MAX_RECENT);
    let view = context.mesh.view();
    let (mut spans, unanswered) = gather::spans(context.ask_all(&view, &Question::RecentTraces(limit)).await?);
    spans.sort_by(|a, b| b.start_us.cmp(&a.start_us).then(a.trace.cmp(&b.trace)).then(a.id.cmp(&b.id)));
    spans.truncate(limit as usize);
    let roots: Vec<SpanInfo> = spans.into_iter().map(show::span).collect();
    Ok(json(view.revision, encode(&RecentTraces { roots, unanswered })))
}

/// Each span once, parents before their children, siblings by start. Clocks of different nodes disagree, so the tree
/// decides before the clock does.
fn in_order(spans: Vec<Span>) -> Vec<Span> {
    if spans.len() > MAX_SPANS {
        tracing::warn!(spans = spans.len(), shown = MAX_SPANS, "a trace has too many spans; the others are left out");
    }
    let mut known: BTreeMap<(u64, SpanId, NodeId), Span> = BTreeMap::new();
    for span in spans.into_iter().take(MAX_SPANS) {
        known.entry((span.start_us, span.id, span.node.clone())).or_insert(span);
    }
    let ids: BTreeSet<SpanId> = known.values().map(|span| span.id).collect();
    let mut children: BTreeMap<Option<SpanId>, Vec<Span>> = BTreeMap::new();
    for span in known.into_values() {
        let parent = span.parent.filter(|parent| ids.contains(parent) && *parent != span.id);
        children.entry(parent).or_default().push(span);
    }
    let mut ordered = Vec::new();
    let mut open: Vec<Span> = children.remove(&None).unwrap_or_default();
    open.reverse();
    while let Some(span) = open.pop() {
        // Taking the children out makes every span appear once, whatever circles the parents describe.
        let below = children.remove(&Some(span.id)).unwrap_or_default();
        open.extend(below.into_iter().rev());
        ordered.push(span);
    }
    // What hangs on no root: circles. They are shown too.
    ordered.extend(children.into_values().flatten());
    ordered
}

#[cfg(test)]
mod tests {
    use starling_core::observe::SpanKind;

    use super::*;

    fn span(id: u64, parent: Option<u64>, start_us: u64) -> Span {
        Span {
            trace: TraceId(1),
            id: SpanId(id),
            parent: parent.map(SpanId),
            kind: SpanKind::Client,
            node: "a".parse().unwrap(),
            service: "default/orders".into(),
            name: "GET".into(),
            start_us,
            duration_us: 1,
            status: None,
            error: None,
            attributes: BTreeMap::new(),
        }
    }

    fn order(spans: Vec<Span>) -> Vec<u64> {
        in_order(spans).iter().map(|span| span.id.0).collect()
    }

    #[test]
    fn a_child_whose_clock_runs_behind_comes_after_its_parent() {
        assert_eq!(order(vec![span(2, Some(1), 5), span(1, None, 10), span(3, Some(1), 7)]), [1, 2, 3]);
    }

    #[test]
    fn a_span_that_came_twice_is_shown_once() {
        assert_eq!(order(vec![span(1, None, 10), span(1, None, 10)]), [1]);
    }

    #[test]
    fn a_span_whose_parent_is_missing_is_a_root() {
        assert_eq!(order(vec![span(2, Some(9), 5), span(1, None, 10)]), [2, 1]);
    }

    #[test]
    fn parents_in_a_circle_lose_nothing() {
        assert_eq!(order(vec![span(1, Some(2), 1), span(2, Some(1), 2), span(3, Some(3), 3)]).len(), 3);
    }
}
