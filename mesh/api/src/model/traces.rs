//! Bodies about traces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use starling_core::id::NodeId;
use starling_core::observe::{SpanId, SpanKind, TraceId};

/// `GET /v1/traces/{id}`: one trace, gathered from all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceDetail {
    /// The trace.
    #[serde(with = "super::text")]
    pub trace: TraceId,
    /// Its spans by start time (each node's own clock), parents before their children.
    pub spans: Vec<SpanInfo>,
    /// Members that did not answer in time: their spans are missing.
    pub unanswered: Vec<Unanswered>,
}

/// `GET /v1/traces`: the newest root spans of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentTraces {
    /// Newest first.
    pub roots: Vec<SpanInfo>,
    /// Members that did not answer in time.
    pub unanswered: Vec<Unanswered>,
}

/// A node that did not answer a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unanswered {
    /// The node.
    pub node: NodeId,
    /// What happened.
    pub error: String,
}

/// One timed piece of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanInfo {
    /// The trace, 32 hex digits.
    #[serde(with = "super::text")]
    pub trace: TraceId,
    /// The span, 16 hex digits.
    #[serde(with = "super::text")]
    pub id: SpanId,
    /// The span that caused it; absent for a root.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "super::text::option")]
    pub parent: Option<SpanId>,
    /// `CLIENT` or `SERVER`.
    pub kind: SpanKind,
    /// The node that saw it.
    pub node: NodeId,
    /// The service that was called, as `namespace/service`.
    pub service: String,
    /// What was called.
    pub name: String,
    /// Start, in microseconds since the Unix epoch by that node's clock.
    pub start_unix_us: u64,
    /// Duration in microseconds.
    pub duration_us: u64,
    /// The HTTP status, when there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong, when something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// More: instance, attempt, path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}
