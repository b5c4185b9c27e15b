//! What the sidecar knows of gRPC: who speaks it, how long they wait, and what an outcome is called there.
//!
//! gRPC says how a call went in the field `grpc-status`, and nearly always answers 200. The sidecar takes that status for
//! HTTP's by the table below, so that breakers, circuits and counters see a failure as one: where it stands in the head (no
//! message came), and where it comes behind messages, in trailers. Only of the former is it known in time to repeat the call.
//!
//! A caller of gRPC says how long it waits (`grpc-timeout`) or waits for ever; both are its right, since a quiet stream
//! looks like a slow answer. So `request_timeout_ms` does not apply to gRPC, but the caller's own word does, and so does
//! a timeout that a policy names for the service.
//! A dead instance is noticed by its silence (`http2.keepalive_ms`).

use std::time::Duration;

use http::StatusCode;
pub(crate) use starling_core::policy::is_grpc;

/// How long a caller that names no time waits: as good as for ever, and within what a timer takes.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3_600);

/// gRPC's statuses, by number: its name, and the status of HTTP that means the same to a breaker. Envoy's mapping, but for
/// UNIMPLEMENTED: asking for what is not there is the caller's mistake, and takes nobody out.
const STATUSES: [(&str, StatusCode); 17] = [
    ("OK", StatusCode::OK),
    ("CANCELLED", StatusCode::REQUEST_TIMEOUT),
    ("UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR),
    ("INVALID_ARGUMENT", StatusCode::BAD_REQUEST),
    ("DEADLINE_EXCEEDED", StatusCode::GATEWAY_TIMEOUT),
    ("NOT_FOUND", StatusCode::NOT_FOUND),
    ("ALREADY_EXISTS", StatusCode::CONFLICT),
    ("PERMISSION_DENIED", StatusCode::FORBIDDEN),
    ("RESOURCE_EXHAUSTED", StatusCode::TOO_MANY_REQUESTS),
    ("FAILED_PRECONDITION", StatusCode::BAD_REQUEST),
    ("ABORTED", StatusCode::CONFLICT),
    ("OUT_OF_RANGE", StatusCode::BAD_REQUEST),
    ("UNIMPLEMENTED", StatusCode::NOT_FOUND),
    ("INTERNAL", StatusCode::INTERNAL_SERVER_ERROR),
    ("UNAVAILABLE", StatusCode::SERVICE_UNAVAILABLE),
    ("DATA_LOSS", StatusCode::INTERNAL_SERVER_ERROR),
    ("UNAUTHENTICATED", StatusCode::UNAUTHORIZED),
];

/// A call of gRPC, by its request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Grpc {
    /// How long the caller waits, if it says so.
    pub(crate) timeout: Option<Duration>,
}

/// How long a request may take that may be a call of gRPC: `limit`, or as long as its caller waits. A limit that is not the
/// `usual` one was set on purpose for this service, and holds for its calls too.
pub(crate) fn patience(call: Option<Grpc>, limit: Duration, usual: Duration) -> Duration {
    let Some(call) = call else { return limit };
    let own = call.timeout.unwrap_or(FOR_EVER).min(FOR_EVER);
    if limit == usual { own } else { own.min(limit) }
}

/// A `grpc-timeout`: up to eight digits and a unit. What is malformed counts for nothing.
pub(crate) fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits.iter().fold(0, |n, digit| 10 * n + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(n * 3_600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// A `grpc-status` that came with the head of a response: its name, and how it counts. What is no status counts as
/// UNKNOWN, as clients of gRPC have it.
pub(crate) fn read_status(value: &[u8]) -> (&'static str, StatusCode) {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<usize>().ok());
    number.and_then(|number| STATUSES.get(number)).copied().unwrap_or(STATUSES[2])
}

/// The number a caller of gRPC is told when the sidecar answers with this status itself.
pub(crate) fn status_for(status: StatusCode) -> u8 {
    match status.as_u16() {
        401 => 16,                   // UNAUTHENTICATED
        403 => 7,                    // PERMISSION_DENIED
        404 | 421 | 501 => 12,       // UNIMPLEMENTED
        408 | 504 => 4,              // DEADLINE_EXCEEDED
        409 => 10,                   // ABORTED
        413 | 429 | 431 => 8,        // RESOURCE_EXHAUSTED
        502 | 503 => 14,             // UNAVAILABLE
        400 | 500 | 508 | 505 => 13, // INTERNAL
        _ => 2,                      // UNKNOWN
    }
}

/// A message as `grpc-message` has it: percent-encoded but for printable ASCII.
pub(crate) fn write_message(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'%' | 0..b' ' | 0x7f.. => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            _ => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_by_their_media_type() {
        for kind in ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=x", "application/grpc "] {
            assert!(is_grpc(kind.as_bytes()), "{kind}");
        }
        for kind in ["application/grpc-web", "application/grpcx", "application/json", "application/grp", ""] {
            assert!(!is_grpc(kind.as_bytes()), "{kind}");
        }
    }

    #[test]
    fn timeouts_are_digits_and_a_unit() {
        for (text, micros) in [("2H", 7_200_000_000), ("1M", 60_000_000), ("3S", 3_000_000), ("5m", 5_000), ("7u", 7)] {
            assert_eq!(timeout(text.as_bytes()), Some(Duration::from_micros(micros)), "{text}");
        }
        assert_eq!(timeout(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "5", "5s", "-5S", "+5S", "5.5S", "123456789S", "5 S", "5SS"] {
            assert_eq!(timeout(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_call_waits_as_its_caller_says_and_no_longer_than_was_set_on_purpose() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let call = |text: &[u8]| Some(Grpc { timeout: timeout(text) });
        assert_eq!(patience(None, second, second), second);
        assert_eq!(patience(call(b""), second, second), FOR_EVER);
        assert_eq!(patience(call(b"99999999H"), second, second), FOR_EVER);
        assert_eq!(patience(call(b"1M"), second, second), minute);
        assert_eq!(patience(call(b"1M"), second, minute), second);
    }

    #[test]
    fn a_status_counts_as_what_it_means() {
        for (value, name, failure) in [
            ("0", "OK", false),
            ("5", "NOT_FOUND", false),
            ("12", "UNIMPLEMENTED", false),
            ("8", "RESOURCE_EXHAUSTED", false),
            ("14", "UNAVAILABLE", true),
            ("13", "INTERNAL", true),
            ("99", "UNKNOWN", true),
            ("x", "UNKNOWN", true),
        ] {
            let (told, counts) = read_status(value.as_bytes());
            assert_eq!((told, counts.is_server_error()), (name, failure), "{value}");
        }
    }

    #[test]
    fn messages_are_encoded() {
        let mut out = Vec::new();
        write_message("50 % of \u{e9}\n", &mut out);
        assert_eq!(out, b"50 %25 of %C3%A9%0A");
    }
}
