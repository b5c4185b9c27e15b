//! HTTP/2 and gRPC, at both ends of the road (RFC 9113).
//!
//! Within the sidecar and between sidecars a request is HTTP/1.1: one road for routing, guards, retries, traces and
//! tunnels, whatever the applications speak. A request between sidecars has a QUIC stream of its own, so nothing waits
//! behind another's loss, and trailers travel in chunked bodies.
//!
//! ```text
//! app --HTTP/2--> server -> lane --HTTP/1.1 text--> serve -> stack -> exchange --HTTP/1.1 text--> call --HTTP/2--> app
//! ```
//!
//! A stream that begins with CONNECT becomes a way for bytes; one in the WebSocket protocol (RFC 8441) is an upgrade in text.
//!
//! | Room | What it does |
//! |---|---|
//! | `server` | a connection from an application: deals its streams to lanes |
//! | `lane` | a stream as if it were an HTTP/1.1 connection, and after it the next stream |
//! | `call` | a request to an instance that speaks HTTP/2, as if it were an HTTP/1.1 connection |
//! | `channel` | connections to such instances, each shared by many calls |
//! | `heads`, `bodies` | translation, both ways |
//!
//! What is bounded, and by what: streams at once (`http2.max_streams`, told to the peer), a head's size
//! (`max_head_bytes`) and its fields (`max_headers`), bytes that have come and are not read yet (`stream_window_bytes`,
//! `connection_window_bytes`), bytes not yet sent (`stream_window_bytes` again), resets that outrun the work
//! ([`MAX_PENDING_RESETS`]), streams we had to reset ([`MAX_OWN_RESETS`]). Pings and settings are answered before more
//! is read, so a flood of them fills nothing.

mod bodies;
mod call;
mod channel;
mod heads;
mod lane;
mod server;
mod settings;

use std::io;

pub(crate) use call::Call;
pub(crate) use server::serve;
pub use settings::Http2Settings;

/// How many streams a client may have reset before they were looked at; one more ends the connection. A client that
/// resets as fast as it can asks for much and waits for nothing (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 32;
/// How many streams in all may break the rules before the connection is ended (CVE-2025-8671).
const MAX_OWN_RESETS: usize = 1_024;

/// An instance has not processed the request, and says so or cannot have: anybody may be asked instead.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Unprocessed {
    why: String,
    /// The connection was at its end; by another one the same instance may take it.
    pub(crate) connection_ended: bool,
}

impl Unprocessed {
    fn ended(why: String) -> Self {
        Self { why, connection_ended: true }
    }
}

impl From<Unprocessed> for io::Error {
    fn from(unprocessed: Unprocessed) -> Self {
        Self::other(unprocessed)
    }
}

/// Whether the request is known not to have been processed.
pub(crate) fn unprocessed_in(error: &io::Error) -> Option<&Unprocessed> {
    error.get_ref()?.downcast_ref()
}

/// HTTP/2 has no words for the request, which is nobody's fault but the client's: whoever speaks it would be asked in vain.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the instance speaks HTTP/2, which cannot say the request: {0}")]
pub(crate) struct Unsayable(#[from] heads::Malformed);

impl From<Unsayable> for io::Error {
    fn from(unsayable: Unsayable) -> Self {
        Self::new(io::ErrorKind::InvalidInput, unsayable)
    }
}

/// Whether there is no way to say the request in HTTP/2.
pub(crate) fn unsayable_in(error: &io::Error) -> Option<&Unsayable> {
    error.get_ref()?.downcast_ref()
}

/// An error of a stream or its connection.
fn broken(error: &h2::Error) -> io::Error {
    use h2::Reason;
    let refused = error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
    // The stream came after the last one that a closing connection takes (RFC 9113, section 6.8).
    let too_late = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    if refused || too_late {
        return Unprocessed { why: error.to_string(), connection_ended: too_late }.into();
    }
    let kind = error.get_io().map_or(io::ErrorKind::ConnectionReset, io::Error::kind);
    io::Error::new(kind, error.to_string())
}
