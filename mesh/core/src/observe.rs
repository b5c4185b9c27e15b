//! What can be seen of a running node: spans of traces, and metrics in the Prometheus text format.
//!
//! The data plane writes spans and counters here, the control surface reads them; neither knows the other.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::id::NodeId;

/// A trace: 128 bits, written as 32 hex digits (W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TraceId(pub u128);

/// A span of a trace: 64 bits, written as 16 hex digits (W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpanId(pub u64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for TraceId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let hex = (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(id) if hex && id != 0 => Ok(Self(id)),
            _ => Err(format!("{text:?} is not a trace id: 1 to 32 hex digits, not all zero")),
        }
    }
}

impl FromStr for SpanId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let hex = (1..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u64::from_str_radix(text, 16) {
            Ok(id) if hex && id != 0 => Ok(Self(id)),
            _ => Err(format!("{text:?} is not a span id: 1 to 16 hex digits, not all zero")),
        }
    }
}

/// Which side of a call a span saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SpanKind {
    /// The caller's sidecar.
    Client,
    /// The sidecar of the instance that answered.
    Server,
}

/// One timed piece of a trace. Names follow OpenTelemetry's HTTP conventions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// The trace.
    pub trace: TraceId,
    /// This span.
    pub id: SpanId,
    /// The span that caused it, on this node or another.
    pub parent: Option<SpanId>,
    /// Caller's or answerer's side.
    pub kind: SpanKind,
    /// The node that saw it.
    pub node: NodeId,
    /// The service that was called, as `namespace/service`.
    pub service: String,
    /// `{method}` and what else is known without identifiers.
    pub name: String,
    /// Start, in microseconds since the Unix epoch by that node's clock.
    pub start_us: u64,
    /// Duration in microseconds.
    pub duration_us: u64,
    /// The HTTP status, when there was an answer.
    pub status: Option<u16>,
    /// What went wrong, when something did.
    pub error: Option<String>,
    /// More: instance, attempt, path; at most a handful.
    pub attributes: BTreeMap<String, String>,
}

/// The newest spans of one node: a ring with a fixed number of places, shared between threads.
#[derive(Debug)]
pub struct SpanBuffer {
    capacity: usize,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    spans: VecDeque<Span>,
    recorded: u64,
}

impl SpanBuffer {
    /// A buffer for this many spans (about 300 bytes each).
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), ring: Mutex::default() }
    }

    /// Keeps a span; the oldest makes room.
    pub fn record(&self, span: Span) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.spans.len() == self.capacity {
            ring.spans.pop_front();
        }
        ring.spans.push_back(span);
        ring.recorded += 1;
    }

    /// The spans kept of a trace, oldest first.
    pub fn trace(&self, trace: TraceId) -> Vec<Span> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.spans.iter().filter(|span| span.trace == trace).cloned().collect()
    }

    /// The newest spans that have no parent, newest first.
    pub fn recent_roots(&self, limit: usize) -> Vec<Span> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.spans.iter().rev().filter(|span| span.parent.is_none()).take(limit).cloned().collect()
    }

    /// How many spans were ever recorded, and how many are kept.
    pub fn counts(&self) -> (u64, usize) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        (ring.recorded, ring.spans.len())
    }
}

/// Something that has metrics to show.
pub trait MetricSource: Send + Sync {
    /// Writes its metrics; called per scrape.
    fn collect(&self, out: &mut Exposition);
}

/// Builds the Prometheus text format 0.0.4: each family once, its samples together.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Begins a family. `kind` is `counter`, `gauge` or `histogram`; name counters `..._total` and give units.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample of the family begun last (histograms: with the suffixes `_bucket`, `_sum`, `_count`).
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{}{label}=\"{escaped}\"", if i == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A family with a single sample and no labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The finished text.
    pub fn finish(self) -> String {
        self.text
    }
}
