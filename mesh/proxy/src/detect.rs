//! What a client speaks, told from its first bytes.
//!
//! | First bytes | Spoken |
//! |---|---|
//! | `PRI * HTTP/2.0`, an empty line, `SM` (RFC 9113, section 3.4) | HTTP/2 with prior knowledge |
//! | 22, 3 (a handshake record, RFC 8446, section 5.1) | TLS |
//! | a line that is a token, a space, more, and ends with `HTTP/1.` and a digit | HTTP/1.1 or HTTP/1.0 |
//! | all else | something else |
//!
//! One read nearly always decides; what is read stays in the client's buffer for whoever serves it. Protocols in which
//! the server speaks first say nothing here: nobody may be asked for first bytes where the service is known to be one
//! of bytes.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::Client;
use crate::mesh::Stream;

/// The connection preface of HTTP/2.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much of the preface is asked for: no method of HTTP/1.1 is called so.
const PREFACE_TOLD: usize = 14;
/// The longest method that is looked for; the longest registered one (RFC 3253) has 16 letters.
const LONGEST_METHOD: usize = 32;
/// The longest request line that is waited for; a longer one is taken for HTTP, which refuses it with an answer.
const LONGEST_LINE: usize = 16 * 1024;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// HTTP/1.1, or 1.0.
    Http1,
    /// HTTP/2 with prior knowledge; the preface is still there.
    Http2,
    /// TLS; its first record is still there.
    Tls,
    /// None of these.
    Other,
}

/// What is spoken by whoever begins like this; `None` while it may be several.
pub(crate) fn tell(data: &[u8]) -> Option<Spoken> {
    let preface = &PREFACE[..PREFACE_TOLD];
    if data.starts_with(preface) {
        return Some(Spoken::Http2);
    }
    match data {
        [0x16, 3, ..] => return Some(Spoken::Tls),
        [] | [0x16] => return None,
        _ if preface.starts_with(data) => return None,
        _ => {}
    }
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = data.iter().take(LONGEST_METHOD).take_while(|byte| is_token(byte)).count();
    if method == data.len() && method < LONGEST_METHOD {
        return None;
    }
    if method == 0 || data.get(method) != Some(&b' ') {
        return Some(Spoken::Other);
    }
    let Some(end) = data.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n') else {
        return (data.len() >= LONGEST_LINE).then_some(Spoken::Http1);
    };
    let line = data[..end].strip_suffix(b"\r").unwrap_or(&data[..end]);
    let is_http = matches!(line, [.., b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9']);
    Some(if is_http { Spoken::Http1 } else { Spoken::Other })
}

/// Waits for the first bytes of a client; `None` when it ends or is silent for too long, or the proxy drains before it
/// has said anything.
pub(crate) async fn first<S: Stream>(
    client: &mut Client<S>,
    patience: Duration,
    mut draining: Pin<&mut impl Future<Output = ()>>,
) -> Option<Spoken> {
    client.alarm.set(Instant::now() + patience);
    poll_fn(|cx| {
        loop {
            if let Some(spoken) = tell(client.buffer.data()) {
                return Poll::Ready(Some(spoken));
            }
            match client.buffer.poll_fill(&mut client.io, cx, LONGEST_LINE) {
                Poll::Ready(Ok(1..)) => {}
                // What it began and did not go on with is left to HTTP, which says what is missing.
                Poll::Ready(_) => return Poll::Ready((!client.buffer.is_empty()).then_some(Spoken::Other)),
                Poll::Pending => break,
            }
        }
        if client.buffer.is_empty() && draining.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        client.alarm.poll(cx).map(|()| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_what_is_spoken() {
        for (bytes, spoken) in [
            (&b"GET / HTTP/1.1\r\nhost: a\r\n"[..], Spoken::Http1),
            (b"GET / HTTP/1.0\n", Spoken::Http1),
            (b"M-SEARCH * HTTP/1.1\r\n", Spoken::Http1),
            (b"CONNECT db.mesh:5432 HTTP/1.1\r\n", Spoken::Http1),
            (PREFACE, Spoken::Http2),
            (b"PRI * HTTP/1.1\r\n", Spoken::Http1),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Spoken::Tls),
            (b"GET key\r\n", Spoken::Other),                      // redis, by hand
            (b"*1\r\n$4\r\nPING\r\n", Spoken::Other),             // redis
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Spoken::Other), // a PostgreSQL client that asks for TLS
            (b"EHLO here.example\r\n", Spoken::Other),
            (b"\x16\x04", Spoken::Other),
            (b" GET / HTTP/1.1\r\n", Spoken::Other),
            (b"\r\nGET / HTTP/1.1\r\n", Spoken::Other),
        ] {
            assert_eq!(tell(bytes), Some(spoken), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn however_the_bytes_come_the_answer_is_never_taken_back() {
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(20_000));
        let wordy = "x".repeat(100);
        for whole in
            [b"GET /a HTTP/1.1\r\n", PREFACE, b"\x16\x03\x01\x02", b"PUT x\r\n", long.as_bytes(), wordy.as_bytes()]
        {
            let answers: Vec<Option<Spoken>> = (0..=whole.len()).map(|n| tell(&whole[..n])).collect();
            let told = answers.iter().position(Option::is_some).expect("it is told in the end");
            assert!(
                answers[told..].iter().all(|answer| *answer == answers[told]),
                "{:?}",
                String::from_utf8_lossy(whole)
            );
        }
    }
}
