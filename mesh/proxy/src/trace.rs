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

use starling_core::id::NodeId;
use starling_core::observe::{Span, SpanBuffer, SpanId, SpanKind, TraceId};

use crate::clock;
use crate::h1::fields;

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
    /// Continues the trace that a request's one `traceparent` names, or begins one, of which one in so many is sampled
    /// (0: none). Tells whether it was continued: a `tracestate` belongs to nothing otherwise.
    pub(crate) fn receive(parent: Option<&[u8]>, one_in: u32) -> (Self, bool) {
        if let Some(continued) = parent.and_then(parse) {
            return (continued, true);
        }
        let trace = TraceId(u128::from(clock::random()) << 64 | u128::from(clock::random().max(1)));
        // The random flag is level 2 and optional; some readers of level 1 compare the flags with "01".
        let flags = if one_in > 0 && (trace.0 as u32).is_multiple_of(one_in) { SAMPLED } else { 0 };
        (Self { trace, parent: None, flags }, false)
    }

    /// The same with its spans kept, for what failed: unless a caller has decided otherwise.
    pub(crate) fn of_failure(mut self) -> Self {
        if self.parent.is_none() {
            self.flags |= SAMPLED;
        }
        self
    }

    /// Whether spans are kept.
    pub(crate) fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Writes the `traceparent` of requests this one causes, and returns where the parent's id is to be written.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> usize {
        let mut text = *b"00-................................-................-..";
        write_hex(self.trace.0, &mut text[3..35]);
        text[53..].copy_from_slice(&eight_digits(self.flags.into())[6..]);
        let parent_at = out.len() + b"traceparent: ".len() + 36;
        fields::write(out, b"traceparent", &text);
        parent_at
    }
}

impl Context {
    /// A trace that begins here.
    pub(crate) fn fresh(one_in: u32) -> Self {
        Self::receive(None, one_in).0
    }

    /// How it is told where there is no header: the trace, the span that causes what follows, the flags.
    pub(crate) fn to_bytes(self, parent: SpanId) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace.0.to_be_bytes());
        bytes[16..24].copy_from_slice(&parent.0.to_be_bytes());
        bytes[24] = self.flags;
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let number = |range: std::ops::Range<usize>| bytes[range].iter().fold(0, |n: u128, b| n << 8 | u128::from(*b));
        let parent = SpanId(number(16..24) as u64);
        Self { trace: TraceId(number(0..16)), parent: Some(parent), flags: bytes[24] & KNOWN_FLAGS }
    }

    /// How many bytes that is.
    pub(crate) const BYTES: usize = 25;
}

/// Writes a trace's id as a field.
pub(crate) fn write_id(name: &[u8], trace: TraceId, out: &mut Vec<u8>) {
    let mut text = [0; 32];
    write_hex(trace.0, &mut text);
    fields::write(out, name, &text);
}

/// Writes a span's id as [`Context::write`] left room for it.
pub(crate) fn write_parent(span: SpanId, room: &mut [u8]) {
    write_hex(span.0.into(), room);
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

/// Writes a number into room for its digits, eight at a time.
fn write_hex(mut number: u128, out: &mut [u8]) {
    for digits in out.rchunks_exact_mut(8) {
        digits.copy_from_slice(&eight_digits(number as u32));
        number >>= 32;
    }
}

/// The hex digits of a number, all made at once: each half byte gets a byte of its own, and those above 9 become letters.
fn eight_digits(number: u32) -> [u8; 8] {
    let bytes = u64::from(number.swap_bytes());
    let bytes = (bytes | bytes << 16) & 0x0000_ffff_0000_ffff;
    let bytes = (bytes | bytes << 8) & 0x00ff_00ff_00ff_00ff;
    let halves = (bytes >> 4 | bytes << 8) & 0x0f0f_0f0f_0f0f_0f0f;
    let above_9 = (halves + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    (halves + 0x3030_3030_3030_3030 + above_9 * u64::from(b'a' - b'0' - 10)).to_le_bytes()
}

/// A span that has begun; kept when it ends, as cancelled when it is dropped before.
pub(crate) struct OpenSpan {
    id: SpanId,
    /// `None` when the trace is not sampled: then the clock is not read either. In a box: spans go through many hands with
    /// what they are about, and most are not kept.
    kept: Option<Box<Kept>>,
}

struct Kept {
    span: Span,
    started: Instant,
    buffer: Arc<SpanBuffer>,
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
            Box::new(Kept { span, started: Instant::now(), buffer: buffer.clone() })
        });
        Self { id, kept }
    }

    /// Its id, for those it causes.
    pub(crate) fn id(&self) -> SpanId {
        self.id
    }

    /// Fills in what it is about; skipped when nobody will read it.
    pub(crate) fn describe(&mut self, f: impl FnOnce(&mut Span)) {
        if let Some(kept) = &mut self.kept {
            f(&mut kept.span);
        }
    }

    /// Hangs it below another span of the same trace.
    pub(crate) fn set_parent(&mut self, parent: SpanId) {
        self.describe(|span| span.parent = Some(parent));
    }

    /// Makes it as old as another one: a call begins with its first attempt.
    pub(crate) fn starts_with(&mut self, first: &OpenSpan) {
        if let (Some(kept), Some(first)) = (&mut self.kept, &first.kept) {
            (kept.started, kept.span.start_us) = (first.started, first.span.start_us);
        }
    }

    /// Makes it begin at an earlier moment.
    pub(crate) fn began(&mut self, at: Instant) {
        let Some(kept) = &mut self.kept else { return };
        let earlier_us = kept.started.saturating_duration_since(at).as_micros() as u64;
        kept.started = at;
        kept.span.start_us = kept.span.start_us.saturating_sub(earlier_us);
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
        if let Some(kept) = self.kept.take() {
            let Kept { mut span, started, buffer } = *kept;
            span.duration_us = started.elapsed().as_micros() as u64;
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

    fn sent(context: &Context, span: SpanId) -> String {
        let mut out = Vec::new();
        let at = context.write(&mut out);
        write_parent(span, &mut out[at..at + 16]);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_valid_parent_is_continued() {
        let (context, continued) = Context::receive(Some(VALID.as_bytes()), 1);
        assert!(continued);
        assert_eq!(context.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.parent, Some(SpanId(0xb7ad_6b71_6920_3331)));
        let expected = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-0000000000001234-01\r\n";
        assert_eq!(sent(&context, SpanId(0x1234)), expected);
    }

    #[test]
    fn every_half_byte_is_one_digit() {
        for number in [0, 1, 9, 10, 15, 0x0123_4567, 0x89ab_cdef, 0xfedc_ba98, 0xa0a0_0909, u32::MAX] {
            assert_eq!(eight_digits(number), *format!("{number:08x}").as_bytes(), "{number}");
        }
    }

    #[test]
    fn a_malformed_parent_begins_a_new_trace_without_state() {
        let upper = VALID.to_uppercase();
        let longer = format!("{VALID}-x");
        let forbidden = VALID.replacen("00", "ff", 1);
        let zero_trace = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        let zero_parent = "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01";
        for bad in ["", "00", upper.as_str(), &longer, &forbidden, zero_trace, zero_parent, &VALID.replace('-', "_")] {
            let (context, continued) = Context::receive(Some(bad.as_bytes()), 1);
            assert_eq!((context.parent, context.sampled(), continued), (None, true, false), "{bad}");
        }
    }

    #[test]
    fn a_newer_version_is_read_as_far_as_it_is_known() {
        let newer = format!("{}-more", VALID.replacen("00", "cc", 1));
        assert_eq!(Context::receive(Some(newer.as_bytes()), 1).0.parent, Some(SpanId(0xb7ad_6b71_6920_3331)));
    }

    #[test]
    fn flags_are_respected_and_unknown_ones_cleared() {
        let (context, _) = Context::receive(Some(VALID.replace("-01", "-fe").as_bytes()), 1);
        assert!(!context.sampled());
        assert!(sent(&context, SpanId(1)).ends_with("-02\r\n"));
    }

    #[test]
    fn of_new_traces_a_share_is_sampled() {
        let sampled = |one_in| (0..10_000).filter(|_| Context::receive(None, one_in).0.sampled()).count();
        assert_eq!((sampled(0), sampled(1)), (0, 10_000));
        assert!((1..=400).contains(&sampled(100)), "about a hundred");
    }
}
