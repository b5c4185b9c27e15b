//! HTTP/1.1 as a proxy needs it: heads are read where they lie and written anew, bodies are passed on as they come.
//!
//! Nothing here waits or decides: bytes in, facts and bytes out. Written by hand because this is where a sidecar's cost
//! per request is made: no header map, no allocation per field, no task and no channel between the two connections.
//!
//! What is accepted is narrower than what the standard lets a recipient accept, because two readers of one message must
//! never disagree about where it ends: see [`request`] and [`framing`].

pub(crate) mod buffer;
pub(crate) mod fields;
pub(crate) mod forwarded;
pub(crate) mod framing;
pub(crate) mod request;
pub(crate) mod response;
#[cfg(test)]
mod tests;

pub(crate) use buffer::Buffer;
pub(crate) use framing::{BodyReader, Framing};
