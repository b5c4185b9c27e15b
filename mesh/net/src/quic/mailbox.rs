//! What waits to be written to one peer: bounded in number and in bytes, never waited for by the sender.
//!
//! Three queues, each with bounds of its own, so that no kind of message takes the place of another: what keeps the mesh
//! together (good-byes, the tree's upkeep), fresh changes, and repair. The writer takes a little of each in turn, the
//! more urgent first: a page of repair delays a change by no more than itself.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// How urgent a message is. Each class has its own queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Small, and everything else rests on it.
    Mesh,
    /// Fresh changes.
    Change,
    /// What can be had again.
    Repair,
}

impl Class {
    /// The class of a kind of message. A kind nobody has thought of waits with repair.
    pub(super) fn of(kind: &str) -> Self {
        match kind {
            "leaving" | "graft" | "prune" | "beacon" | "pulse" | "out_of_reach" | "clock" | "usage" => Class::Mesh,
            "push" | "have" => Class::Change,
            _ => Class::Repair,
        }
    }
}

/// How many bytes of each class are taken at once, in their order: what one write may keep the others waiting for. A
/// single frame may be larger.
const SHARES: [usize; 3] = [64 * 1024, 256 * 1024, 64 * 1024];

/// A bounded queue of frames per class.
pub(super) struct Mailbox {
    queues: Mutex<[Queue; 3]>,
    filled: Notify,
    max_frames: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<(&'static str, Bytes)>,
    bytes: usize,
}

impl Queue {
    /// Takes frames from the front: at least one, if there is any, and no more than so many bytes.
    fn take(&mut self, bytes: usize, out: &mut Vec<(&'static str, Bytes)>) {
        let mut taken = 0;
        while let Some((_, frame)) = self.frames.front() {
            if taken > 0 && taken + frame.len() > bytes {
                return;
            }
            taken += frame.len();
            self.bytes -= frame.len();
            out.extend(self.frames.pop_front());
        }
    }
}

impl Mailbox {
    /// Each class may hold so many frames and bytes.
    pub(super) fn new(max_frames: usize, max_bytes: usize) -> Self {
        Self { queues: Mutex::default(), filled: Notify::new(), max_frames, max_bytes }
    }

    fn queues(&self) -> MutexGuard<'_, [Queue; 3]> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame, or refuses it when its class has no room.
    pub(super) fn push(&self, kind: &'static str, frame: Bytes) -> bool {
        let mut queues = self.queues();
        let queue = &mut queues[Class::of(kind) as usize];
        // One frame always fits into an empty queue, however small its settings made it.
        let full = queue.frames.len() >= self.max_frames || queue.bytes + frame.len() > self.max_bytes;
        if full && !queue.frames.is_empty() {
            return false;
        }
        queue.bytes += frame.len();
        queue.frames.push_back((kind, frame));
        drop(queues);
        self.filled.notify_one();
        true
    }

    /// Waits until there is something and takes a share of each class: what came while the writer was busy leaves
    /// together. Loses nothing when it is cancelled.
    pub(super) async fn take(&self) -> Vec<(&'static str, Bytes)> {
        loop {
            let taken = self.share();
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

    fn share(&self) -> Vec<(&'static str, Bytes)> {
        let mut taken = Vec::new();
        for (queue, share) in self.queues().iter_mut().zip(SHARES) {
            queue.take(share, &mut taken);
        }
        taken
    }

    /// Empties it at once.
    pub(super) fn clear(&self) -> Vec<(&'static str, Bytes)> {
        let mut taken = Vec::new();
        self.queues().iter_mut().for_each(|queue| queue.take(usize::MAX, &mut taken));
        taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queues().iter().all(|queue| queue.frames.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(frames: &[(&'static str, Bytes)]) -> Vec<&'static str> {
        frames.iter().map(|(kind, _)| *kind).collect()
    }

    #[test]
    fn a_full_mailbox_refuses_by_number_and_by_bytes() {
        let by_number = Mailbox::new(2, 1_000);
        assert!(by_number.push("push", Bytes::from_static(b"x")) && by_number.push("push", Bytes::from_static(b"x")));
        assert!(!by_number.push("push", Bytes::from_static(b"x")));
        let by_bytes = Mailbox::new(100, 10);
        assert!(by_bytes.push("push", Bytes::from_static(b"1234567")));
        assert!(!by_bytes.push("push", Bytes::from_static(b"1234567")));
        assert_eq!(by_bytes.clear().len(), 1);
        assert!(by_bytes.push("push", Bytes::from_static(b"1234567")), "room again");
    }

    #[test]
    fn no_class_takes_the_place_of_another() {
        let mailbox = Mailbox::new(3, 1_000);
        for full in ["page", "push", "beacon"] {
            while mailbox.push(full, Bytes::from_static(b"x")) {}
        }
        assert_eq!(mailbox.clear().len(), 9, "each had its own three places");
        while mailbox.push("page", Bytes::from_static(b"x")) {}
        assert!(mailbox.push("push", Bytes::from_static(b"x")), "repair leaves room for changes");
        while mailbox.push("push", Bytes::from_static(b"x")) {}
        assert!(mailbox.push("leaving", Bytes::from_static(b"x")), "and both for good-byes");
    }

    #[test]
    fn the_urgent_goes_first_and_nobody_starves() {
        let mailbox = Mailbox::new(100, 10_000_000);
        let large = || Bytes::from(vec![0; 60 * 1024]);
        for _ in 0..10 {
            assert!(mailbox.push("page", large()) && mailbox.push("push", large()));
        }
        mailbox.push("leaving", Bytes::from_static(b"x"));
        assert_eq!(kinds(&mailbox.share()), ["leaving", "push", "push", "push", "push", "page"]);
        mailbox.push("beacon", Bytes::from_static(b"x"));
        assert_eq!(kinds(&mailbox.share()), ["beacon", "push", "push", "push", "push", "page"], "both go on");
        let rest = mailbox.clear();
        assert_eq!((rest.len(), mailbox.is_empty()), (10, true));
    }
}
