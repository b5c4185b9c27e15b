//! W3C Trace Context in and out, and spans while they are open.
//!
//! A valid `traceparent` is continued; without one, or with a malformed one, a trace begins here and any `tracestate`
//! is dropped (it belongs to the trace that could not be read). A caller's "not sampled" is respected.
//!
//! A call that needs one attempt has one client span. Only when it is repeated does a span for the whole call appear
//! above the attempts, so a trace reads as what happened:
//!
//! ```text
//! GET                      GET                        (the whole call)
//! └ GET (server)           ├ GET attempt 0: refused
//!                          └ GET attempt 1
//!                            └ GET (server)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};
use starling_core::id::NodeId;
use starling_core::observe::{Span, SpanBuffer, SpanId, SpanKind, TraceId};

use crate::clock;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// `00-` + 32 + `-` + 16 + `-` + 2.
const TRACEPARENT_LEN: usize = 55;
/// The flags this version knows: sampled, and random trace id; others are sent as 0.
const KNOWN_FLAGS: u8 = 0b11;
const SAMPLED: u8 = 0b01;

/// Where a request belongs: its trace, and the span that caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) trace: TraceId,
    pub(crate) parent: Option<SpanId>,
    flags: u8,
}

impl Context {
    /// Continues what the headers say or begins a trace; drops a `tracestate` that belongs to nothing.
    pub(crate) fn receive(headers: &mut HeaderMap) -> Self {
        let mut given = headers.get_all(TRACEPARENT).iter();
        // Several traceparents are as good as none: there is no telling which one is true.
        let parsed = match (given.next(), given.next()) {
            (Some(one), None) => parse(one.as_bytes()),
            _ => None,
        };
        parsed.unwrap_or_else(|| {
            headers.remove(TRACESTATE);
            let trace = TraceId(u128::from(clock::random()) << 64 | u128::from(clock::random().max(1)));
            // The random flag is level 2 and optional; some readers of level 1 compare the flags with "01".
            Self { trace, parent: None, flags: SAMPLED }
        })
    }

    /// Whether spans are kept.
    pub(crate) fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Makes `span` the parent of whatever the receiver of these headers does.
    pub(crate) fn send(&self, span: SpanId, headers: &mut HeaderMap) {
        let mut text = [0; TRACEPARENT_LEN];
        text[..3].copy_from_slice(b"00-");
        write_hex(&self.trace.0.to_be_bytes(), &mut text[3..35]);
        text[35] = b'-';
        write_hex(&span.0.to_be_bytes(), &mut text[36..52]);
        text[52] = b'-';
        write_hex(&[self.flags], &mut text[53..]);
        if let Ok(value) = HeaderValue::from_bytes(&text) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

/// A new span id, never zero.
pub(crate) fn new_span_id() -> SpanId {
    SpanId(clock::random().max(1))
}

fn parse(text: &[u8]) -> Option<Context> {
    let head = text.get(..TRACEPARENT_LEN)?;
    let version = hex(&head[..2])? as u8;
    let length_ok = if version == 0 {
        text.len() == TRACEPARENT_LEN
    } else {
        text.get(TRACEPARENT_LEN).is_none_or(|next| *next == b'-')
    };
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    if version == 0xff || !length_ok || !dashes {
        return None;
    }
    let (trace, parent) = (hex(&head[3..35])?, hex(&head[36..52])? as u64);
    let flags = hex(&head[53..])? as u8 & if version == 0 { KNOWN_FLAGS } else { SAMPLED };
    (trace != 0 && parent != 0).then_some(Context { trace: TraceId(trace), parent: Some(SpanId(parent)), flags })
}

/// Lower-case hex only, as the format demands.
fn hex(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0, |value: u128, c| {
        let digit = match c {
            b'0'..=b'9' => c - b'0',
            b'a'..=b'f' => c - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

fn write_hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// A span that has begun; kept when it ends, as cancelled when it is dropped before.
pub(crate) struct OpenSpan {
    id: SpanId,
    started: Instant,
    /// `None` when the trace is not sampled.
    kept: Option<(Span, Arc<SpanBuffer>)>,
}

impl OpenSpan {
    pub(crate) fn begin(context: &Context, kind: SpanKind, node: &NodeId, buffer: &Arc<SpanBuffer>) -> Self {
        let id = new_span_id();
        let kept = context.sampled().then(|| {
            let span = Span {
                trace: context.trace,
                id,
                parent: context.parent,
                kind,
                node: node.clone(),
                service: String::new(),
                name: String::new(),
                start_us: clock::wall_us(),
                duration_us: 0,
                status: None,
                error: None,
                attributes: BTreeMap::new(),
            };
            (span, buffer.clone())
        });
        Self { id, started: Instant::now(), kept }
    }

    /// Its id, for those it causes.
    pub(crate) fn id(&self) -> SpanId {
        self.id
    }

    /// Fills in what it is about; skipped when nobody will read it.
    pub(crate) fn describe(&mut self, f: impl FnOnce(&mut Span)) {
        if let Some((span, _)) = &mut self.kept {
            f(span);
        }
    }

    /// Hangs it below another span of the same trace.
    pub(crate) fn set_parent(&mut self, parent: SpanId) {
        self.describe(|span| span.parent = Some(parent));
    }

    /// Makes it as old as another one: a call begins with its first attempt.
    pub(crate) fn starts_with(&mut self, first: &OpenSpan) {
        self.started = first.started;
        if let (Some((span, _)), Some((first, _))) = (&mut self.kept, &first.kept) {
            span.start_us = first.start_us;
        }
    }

    /// Makes it begin at an earlier moment.
    pub(crate) fn began(&mut self, at: Instant) {
        let earlier_us = self.started.saturating_duration_since(at).as_micros() as u64;
        self.started = at;
        self.describe(|span| span.start_us = span.start_us.saturating_sub(earlier_us));
    }

    /// Ends it with what is known by now.
    pub(crate) fn end(mut self) {
        self.keep();
    }

    /// Ends it with an error.
    pub(crate) fn fail(mut self, error: &str) {
        self.describe(|span| span.error = Some(error.chars().take(200).collect()));
        self.keep();
    }

    fn keep(&mut self) {
        if let Some((mut span, buffer)) = self.kept.take() {
            span.duration_us = self.started.elapsed().as_micros() as u64;
            buffer.record(span);
        }
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        // A caller that goes away is no error of anybody here, but it should be seen.
        self.describe(|span| {
            span.attributes.insert("cancelled".into(), "true".into());
        });
        self.keep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn received(fields: &[(&'static str, &str)]) -> (Context, HeaderMap) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        (Context::receive(&mut headers), headers)
    }

    #[test]
    fn a_valid_parent_is_continued_and_its_state_kept() {
        let (context, mut headers) = received(&[("traceparent", VALID), ("tracestate", "a=1")]);
        assert_eq!(context.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.parent, Some(SpanId(0xb7ad_6b71_6920_3331)));
        assert_eq!(headers["tracestate"], "a=1");
        context.send(SpanId(0x1234), &mut headers);
        assert_eq!(headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-0000000000001234-01");
    }

    #[test]
    fn a_malformed_parent_begins_a_new_trace_without_state() {
        let upper = VALID.to_uppercase();
        let longer = format!("{VALID}-x");
        let forbidden = VALID.replacen("00", "ff", 1);
        let zero_trace = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        let zero_parent = "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01";
        for bad in ["", "00", upper.as_str(), &longer, &forbidden, zero_trace, zero_parent, &VALID.replace('-', "_")] {
            let (context, headers) = received(&[("traceparent", bad), ("tracestate", "a=1")]);
            assert_eq!(context.parent, None, "{bad}");
            assert!(context.sampled() && !headers.contains_key("tracestate"), "{bad}");
        }
        assert_eq!(received(&[("traceparent", VALID), ("traceparent", VALID)]).0.parent, None);
    }

    #[test]
    fn a_newer_version_is_read_as_far_as_it_is_known() {
        let newer = format!("{}-more", VALID.replacen("00", "cc", 1));
        assert_eq!(received(&[("traceparent", &newer)]).0.parent, Some(SpanId(0xb7ad_6b71_6920_3331)));
    }

    #[test]
    fn flags_are_respected_and_unknown_ones_cleared() {
        let (context, mut headers) = received(&[("traceparent", &VALID.replace("-01", "-fe"))]);
        assert!(!context.sampled());
        context.send(SpanId(1), &mut headers);
        assert!(headers["traceparent"].to_str().unwrap().ends_with("-02"));
    }
}
