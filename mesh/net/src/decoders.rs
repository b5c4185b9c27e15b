//! What this crate makes of bytes that others wrote: for tests that feed it anything. Not an interface.

use bytes::BytesMut;

use crate::disk::frame::scan;
use crate::member::facts;
use crate::quic::frame::cut;

/// Reads bytes as a log on disk: how many entries were sound, and how many stretches damaged.
pub fn log(bytes: &[u8]) -> (usize, usize) {
    let mut entries = 0;
    let damages = scan(bytes, |_, _, _| entries += 1);
    (entries, damages.len())
}

/// Reads bytes as what a node tells of itself through membership, a `key=value` a line; the address it is reached at.
pub fn told(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    facts::decode(text.lines().filter_map(|line| line.split_once('='))).map(|told| told.facts.address)
}

/// Reads bytes as what arrives on a link, in pieces of this size: the lengths of the frames.
pub fn frames(bytes: &[u8], piece: usize, limit: usize) -> Vec<usize> {
    let (mut buffer, mut lengths) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            match cut(&mut buffer, limit) {
                Ok(Some(frame)) => lengths.push(frame.len()),
                Ok(None) => break,
                Err(_) => return lengths,
            }
        }
    }
    lengths
}
