//! What two sidecars say to each other before the bytes of a connection: so nothing is lost that another instance could
//! have taken, callers are known, and a trace goes on at the other side.
//!
//! ```text
//! caller's side    1 · trace (16) · span (8) · flags (1) · n (2) · the service it calls for (n)
//! instance's side  a verdict (1): 0 go on, else why not
//! ```
//!
//! No byte of the application follows before the verdict. The 1 is the version, and at the same time what tells a tunnel
//! of bytes from one of HTTP, which never begins with it.

use std::io;
use std::time::Duration;

use starling_core::guard::Guard;
use starling_core::observe::SpanId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::exchange::Failure;
use crate::inbound::Opens;
use crate::mesh::Stream;
use crate::reason::Reason;
use crate::trace::Context;

/// What comes before the service.
const FIXED: usize = 1 + Context::BYTES + 2;
/// The longest service that is read: a namespace and a name have at most 128 bytes each.
const MAX_SERVICE: usize = 257;
/// The most bytes of an opening.
pub(super) const MAX_LENGTH: usize = FIXED + MAX_SERVICE;

/// What the caller's side says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) context: Context,
    /// The service on whose behalf it calls, if it says so.
    pub(super) service: Vec<u8>,
    /// How many bytes that were.
    pub(super) length: usize,
}

/// What the instance's side says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Verdict {
    /// The instance is connected.
    Go = 0,
    /// The instance cannot be reached.
    Unreachable = 1,
    /// This node does not own the instance (any more).
    NotHere = 2,
    /// The instance does not speak bytes.
    NotBytes = 3,
    /// The caller may not call it.
    Forbidden = 4,
    /// The instance's host has too much to do.
    Burdened = 5,
}

impl Verdict {
    fn read(byte: u8) -> Result<(), Failure> {
        let (reason, why) = match byte {
            0 => return Ok(()),
            1 => (Reason::Connect, "its node cannot reach the instance"),
            2 => (Reason::NotHere, "the node does not own the instance"),
            3 => (Reason::Unsupported, "at its node the instance is not one of protocol tcp"),
            4 => {
                (Reason::Forbidden, "the caller may not call the service: the trace says which rule of which document")
            }
            5 => (Reason::Guard(Guard::System), "the instance's host has too much to do"),
            // A version that does not know of bytes answers in HTTP.
            b'H' => (Reason::Unsupported, "the instance's node runs a version that does not carry bytes"),
            _ => (Reason::Connect, "the instance's node refuses for a reason that is not known here"),
        };
        Err(Failure::new(reason, why))
    }
}

/// Says what is wanted and waits for the verdict.
pub(super) async fn knock<S: Stream>(
    stream: &mut S,
    context: Context,
    span: SpanId,
    service: &[u8],
    patience: Duration,
) -> Result<(), Failure> {
    let opening = write(context, span, service);
    let asking = async {
        stream.write_all(&opening).await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    match timeout(patience, asking).await {
        Ok(Ok(verdict)) => Verdict::read(verdict),
        Ok(Err(error)) => Err(Failure::new(Reason::Connect, format!("the instance's node does not take it: {error}"))),
        Err(_) => {
            let ms = patience.as_millis();
            Err(Failure::new(Reason::Connect, format!("the instance's node said nothing within {ms} ms")))
        }
    }
}

fn write(context: Context, span: SpanId, service: &[u8]) -> Vec<u8> {
    let service = if service.len() > MAX_SERVICE { &[] } else { service };
    let mut opening = Vec::with_capacity(FIXED + service.len());
    opening.push(Opens::Bytes as u8);
    opening.extend_from_slice(&context.to_bytes(span));
    opening.extend_from_slice(&(service.len() as u16).to_be_bytes());
    opening.extend_from_slice(service);
    opening
}

/// Reads an opening; `None` until all of it is there.
///
/// # Errors
/// When it is none: nothing that comes can be understood.
pub(super) fn read(bytes: &[u8]) -> Result<Option<Opening>, ()> {
    if bytes.first().is_some_and(|version| *version != Opens::Bytes as u8) {
        return Err(());
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else { return Ok(None) };
    let (context, length) = fixed[1..].split_at(Context::BYTES);
    let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
    if length > MAX_SERVICE {
        return Err(());
    }
    let (Some(context), Some(service)) = (context.first_chunk(), rest.get(..length)) else { return Ok(None) };
    let context = Context::from_bytes(*context);
    Ok(Some(Opening { context, service: service.to_vec(), length: FIXED + length }))
}

/// Gives the verdict.
pub(super) async fn answer<S: Stream>(stream: &mut S, verdict: Verdict) -> io::Result<()> {
    stream.write_all(&[verdict as u8]).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_is_read_as_it_was_written_however_it_comes_and_nothing_else_is_one() {
        let context = Context::fresh(1);
        for service in [&b""[..], b"pay/billing", &[b'x'; MAX_SERVICE]] {
            let bytes = [write(context, SpanId(7), service), b"more".to_vec()].concat();
            let whole = FIXED + service.len();
            assert!((1..whole).all(|n| read(&bytes[..n]) == Ok(None)));
            let read = read(&bytes).unwrap().unwrap();
            assert_eq!((read.service.as_slice(), read.length), (service, whole));
            assert_eq!((read.context.trace, read.context.parent), (context.trace, Some(SpanId(7))));
        }
        let mut long = write(context, SpanId(7), b"");
        long[FIXED - 2] = 0xff;
        assert_eq!(read(&long), Err(()));
        assert_eq!(read(b"GET / HTTP/1.1"), Err(()));
        assert!(write(context, SpanId(7), &[b'x'; 1_000]).len() <= MAX_LENGTH);
    }
}
