//! What header fields mean to a proxy (RFC 9110, section 7.6).

use std::mem::MaybeUninit;

use httparse::Header;

use super::forwarded;
pub(crate) use starling_core::policy::Written;

/// Room for so many fields is taken from the stack; more, where they are allowed, cost an allocation.
const USUAL_FIELDS: usize = 128;

/// How many milliseconds are left of what the caller waits.
pub(crate) const DEADLINE: &[u8] = b"x-starling-deadline-ms";
/// Which attempt this is, of those that were made for one request; absent at the first.
pub(crate) const ATTEMPT: &[u8] = b"x-starling-attempt";
/// The family of fields that only sidecars may write.
const OWN_PREFIX: &[u8] = b"x-starling-";

/// The calling service, told by the sidecar of the caller and checked by that of the instance.
pub(crate) const CALLER_SERVICE: &[u8] = b"x-starling-caller-service";
/// The calling node, by its certificate.
pub(crate) const CALLER_NODE: &[u8] = b"x-starling-caller-node";

/// A header field, as far as a proxy cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// Passed on as it is.
    Other,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Expect,
    TraceParent,
    TraceState,
    Date,
    ContentType,
    /// How long a caller of gRPC waits.
    GrpcTimeout,
    /// How a call of gRPC went.
    GrpcStatus,
    /// How many milliseconds are left.
    Deadline,
    /// Which attempt it is.
    Attempt,
    /// How long the caller shall wait before it asks again, in seconds or as a date.
    RetryAfter,
    /// The same in gRPC's words, in milliseconds.
    Pushback,
    /// How many sidecars the request has passed.
    Hops,
    /// Whom the request was sent by first.
    Forwarded,
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
    /// The service another sidecar says it calls for.
    CallerService,
    /// Why another sidecar answered itself.
    Reason,
    /// Another field of the sidecars.
    Own,
    /// Concerns one connection only.
    Hop,
}

impl Field {
    /// Whether it says something of the message that concerns the ends alone.
    pub(crate) fn is_of_ends(self) -> bool {
        use Field::{ContentType, Date, GrpcStatus, GrpcTimeout, Other, Pushback, RetryAfter};
        matches!(self, Other | Date | ContentType | GrpcTimeout | GrpcStatus | RetryAfter | Pushback)
            || forwarded::is_one(self)
    }
}

/// Gives `parse` room for so many fields and no more.
pub(crate) fn with_room<'b, R>(most: usize, parse: impl FnOnce(&mut [MaybeUninit<Header<'b>>]) -> R) -> R {
    if most <= USUAL_FIELDS {
        return parse(&mut [const { MaybeUninit::uninit() }; USUAL_FIELDS][..most]);
    }
    let mut many = Vec::new();
    many.resize_with(most, MaybeUninit::uninit);
    parse(&mut many)
}

/// Whether a field may stand behind a body: nothing that says how to read the message, or whose it is
/// (RFC 9110, section 6.5.1).
pub(crate) fn is_trailer(name: &str) -> bool {
    use Field::{Date, GrpcStatus, Other, Pushback, RetryAfter};
    matches!(field(name), Other | Date | GrpcStatus | RetryAfter | Pushback)
}

/// What a field is, by its name. What tells who calls is known by `_` in place of `-`, too: applications behind CGI and
/// WSGI cannot tell the two apart.
pub(crate) fn field(name: &str) -> Field {
    let bytes = name.as_bytes();
    let is = |word: &[u8]| is(bytes, word);
    let resembles = |word: &[u8]| resembles(bytes, word);
    match bytes.len() {
        2 if is(b"te") => Field::Hop,
        4 if is(b"host") => Field::Host,
        4 if is(b"date") => Field::Date,
        6 if is(b"expect") => Field::Expect,
        7 if is(b"upgrade") => Field::Upgrade,
        9 if is(b"forwarded") => Field::Forwarded,
        15 if resembles(b"x-forwarded-for") => Field::ForwardedFor,
        16 if resembles(b"x-forwarded-host") => Field::ForwardedHost,
        17 if resembles(b"x-forwarded-proto") => Field::ForwardedProto,
        10 if is(b"connection") => Field::Connection,
        10 if is(b"keep-alive") => Field::Hop,
        10 if is(b"tracestate") => Field::TraceState,
        11 if is(b"traceparent") => Field::TraceParent,
        11 if is(b"grpc-status") => Field::GrpcStatus,
        11 if is(b"retry-after") => Field::RetryAfter,
        18 if is(ATTEMPT) => Field::Attempt,
        22 if is(DEADLINE) => Field::Deadline,
        22 if is(b"grpc-retry-pushback-ms") => Field::Pushback,
        12 if is(b"content-type") => Field::ContentType,
        12 if is(b"grpc-timeout") => Field::GrpcTimeout,
        14 if is(b"content-length") => Field::ContentLength,
        14 if is(b"http2-settings") => Field::Hop,
        16 if is(b"proxy-connection") => Field::Hop,
        17 if is(b"transfer-encoding") => Field::TransferEncoding,
        19 if is(b"proxy-authorization") => Field::Hop,
        15 if is(b"x-starling-hops") => Field::Hops,
        17 if is(b"x-starling-reason") => Field::Reason,
        25 if is(CALLER_SERVICE) => Field::CallerService,
        12.. if self::resembles(&bytes[..OWN_PREFIX.len()], OWN_PREFIX) => Field::Own,
        _ => Field::Other,
    }
}

/// Whether a name (which has no control characters) is `word` (which is in lower case), in any case. All bytes are looked
/// at together, which for names of a known length takes a few instructions: this is asked of every field, twice.
fn is(name: &[u8], word: &[u8]) -> bool {
    name.len() == word.len() && name.iter().zip(word).fold(0, |differ, (a, b)| differ | ((a | 0x20) ^ b)) == 0
}

/// The same, with `_` for any `-`.
fn resembles(name: &[u8], word: &[u8]) -> bool {
    let dashed = |byte: &u8| if *byte == b'_' { b'-' } else { *byte | 0x20 };
    name.len() == word.len() && name.iter().zip(word).fold(0, |differ, (a, b)| differ | (dashed(a) ^ b)) == 0
}

/// What `Connection` fields say.
#[derive(Debug, Default)]
pub(crate) struct Connection<'a> {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    /// Fields that end at this connection; rarely any.
    named: Vec<&'a [u8]>,
}

impl<'a> Connection<'a> {
    /// Reads one more `Connection` field.
    pub(crate) fn read(&mut self, value: &'a [u8]) {
        for word in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let is = |known: &[u8]| word.eq_ignore_ascii_case(known);
            if is(b"close") {
                self.close = true;
            } else if is(b"keep-alive") {
                self.keep_alive = true;
            } else if is(b"upgrade") {
                self.upgrade = true;
            } else if !word.is_empty() {
                self.named.push(word);
            }
        }
    }

    /// Whether the message loses this field here. The framing and the host are never lost: naming them would let a
    /// client take away what the message cannot be read without.
    pub(crate) fn ends(&self, header: &Header<'_>) -> bool {
        self.named.iter().any(|named| header.name.as_bytes().eq_ignore_ascii_case(named))
    }
}

/// Writes one field.
pub(crate) fn write(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes one field whose value is a number.
pub(crate) fn write_number(out: &mut Vec<u8>, name: &[u8], mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    write(out, name, &digits[at..]);
}

/// Writes a number into room for its decimal digits, with leading zeros; as many nines as fit when it does not.
pub(crate) fn write_digits(mut value: u64, room: &mut [u8]) {
    let most = 10u64.saturating_pow(room.len() as u32) - 1;
    value = value.min(most);
    for digit in room.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// A number of decimal digits and nothing else.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + u64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_known_in_any_case_and_others_pass() {
        for (name, known) in [
            ("Host", Field::Host),
            ("TE", Field::Hop),
            ("Content-Length", Field::ContentLength),
            ("X-Starling-Hops", Field::Hops),
            ("x-starling-caller-node", Field::Own),
            ("X_Starling_Caller_Service", Field::Own),
            ("x-starling_hops", Field::Own),
            ("x_forwarded-For", Field::ForwardedFor),
            ("x_request_id", Field::Other),
            ("x-starling-", Field::Other),
            ("x-starlings", Field::Other),
            ("dates", Field::Other),
        ] {
            assert_eq!(field(name), known, "{name}");
        }
    }

    #[test]
    fn numbers_are_digits_only() {
        assert_eq!(number(b"0012"), Some(12));
        for bad in [&b""[..], b"+1", b"-1", b" 1", b"1_0", b"0x1", b"99999999999999999999"] {
            assert_eq!(number(bad), None);
        }
        for value in [0, 9, 10, 1_234_567_890, u64::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, b"n", value);
            assert_eq!(out, format!("n: {value}\r\n").into_bytes());
        }
    }
}
