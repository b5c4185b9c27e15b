//! What waits to be written to one peer: bounded in number and in bytes, never waited for by the sender.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// A bounded queue of frames.
pub(super) struct Mailbox {
    queue: Mutex<Queue>,
    filled: Notify,
    max_frames: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<(&'static str, Bytes)>,
    bytes: usize,
}

impl Mailbox {
    pub(super) fn new(max_frames: usize, max_bytes: usize) -> Self {
        Self { queue: Mutex::default(), filled: Notify::new(), max_frames, max_bytes }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame, or refuses it when there is no room.
    pub(super) fn push(&self, kind: &'static str, frame: Bytes) -> bool {
        let mut queue = self.queue();
        // One frame always fits into an empty mailbox, however small its settings made it.
        let full = queue.frames.len() >= self.max_frames || queue.bytes + frame.len() > self.max_bytes;
        if full && !queue.frames.is_empty() {
            return false;
        }
        queue.bytes += frame.len();
        queue.frames.push_back((kind, frame));
        drop(queue);
        self.filled.notify_one();
        true
    }

    /// Waits until there is something and takes all of it: what came while the writer was busy leaves together.
    /// Loses nothing when it is cancelled.
    pub(super) async fn take(&self) -> Vec<(&'static str, Bytes)> {
        loop {
            let taken = self.clear();
            if !taken.is_empty() {
                return taken;
            }
            self.filled.notified().await;
        }
    }

    /// Waits until there is something, and leaves it there. Loses nothing when it is cancelled.
    pub(super) async fn filled(&self) {
        while self.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Empties it at once.
    pub(super) fn clear(&self) -> Vec<(&'static str, Bytes)> {
        let mut queue = self.queue();
        queue.bytes = 0;
        queue.frames.drain(..).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue().frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_refuses_by_number_and_by_bytes() {
        let by_number = Mailbox::new(2, 1_000);
        assert!(by_number.push("a", Bytes::from_static(b"x")) && by_number.push("a", Bytes::from_static(b"x")));
        assert!(!by_number.push("a", Bytes::from_static(b"x")));
        let by_bytes = Mailbox::new(100, 10);
        assert!(by_bytes.push("a", Bytes::from_static(b"1234567")));
        assert!(!by_bytes.push("a", Bytes::from_static(b"1234567")));
        assert_eq!(by_bytes.clear().len(), 1);
        assert!(by_bytes.push("a", Bytes::from_static(b"1234567")), "room again");
    }
}
