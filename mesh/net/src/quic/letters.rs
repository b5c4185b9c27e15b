//! Messages of peers on their way to the loop: bounded in number for all of them, and in bytes for each.
//!
//! Places in the queue are few and fair. But a message may have megabytes, and one peer that fills every place with
//! such could take a gigabyte while the loop is busy. So each peer has room for a few megabytes; a reader that finds none
//! waits, and with it that peer's stream, and then the peer.

use std::sync::Arc;

use starling_core::id::NodeId;
use starling_core::wire::{MAX_MESSAGE_BYTES, Message};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Room is counted in units of so many bytes.
const UNIT: usize = 1_024;

/// What one peer's messages may take while they wait.
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    /// Room for so many bytes, and never less than the largest message has.
    pub(super) fn of(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.max(MAX_MESSAGE_BYTES) / UNIT + 1)))
    }

    /// Waits for room for a message.
    pub(super) async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = bytes.min(MAX_MESSAGE_BYTES) / UNIT + 1;
        self.0.clone().acquire_many_owned(units as u32).await.ok()
    }
}

struct Letter {
    from: NodeId,
    message: Message,
    /// Given back when the letter is taken.
    _room: Option<OwnedSemaphorePermit>,
}

/// Where readers put messages.
pub(crate) struct Post(mpsc::Sender<Letter>);

/// Where the loop takes them.
pub struct Messages(mpsc::Receiver<Letter>);

/// A queue of so many messages.
pub(crate) fn post(places: usize) -> (Post, Messages) {
    let (sender, receiver) = mpsc::channel(places);
    (Post(sender), Messages(receiver))
}

impl Post {
    /// Waits for a place; false when nobody takes messages any more.
    pub(super) async fn deliver(&self, from: NodeId, message: Message, room: Option<OwnedSemaphorePermit>) -> bool {
        self.0.send(Letter { from, message, _room: room }).await.is_ok()
    }

    /// Puts a message in if there is a place.
    #[cfg(test)]
    pub(crate) fn put(&self, from: NodeId, message: Message) {
        assert!(self.0.try_send(Letter { from, message, _room: None }).is_ok());
    }
}

impl Messages {
    /// The next message and who sent it; `None` when there will be no more.
    pub async fn recv(&mut self) -> Option<(NodeId, Message)> {
        self.0.recv().await.map(|letter| (letter.from, letter.message))
    }

    /// The next one, if it waits already.
    pub fn try_recv(&mut self) -> Option<(NodeId, Message)> {
        self.0.try_recv().ok().map(|letter| (letter.from, letter.message))
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_peers_large_messages_wait_for_room_and_another_peers_do_not() {
        let (post, mut messages) = post(100);
        let (greedy, other) = (Room::of(0), Room::of(0));
        let large = MAX_MESSAGE_BYTES * 2 / 3;
        let first = greedy.take(large).await;
        post.deliver("greedy".parse().unwrap(), Message::Push(Vec::new()), first).await;
        let second = greedy.take(large);
        tokio::pin!(second);
        tokio::select! {
            biased;
            _ = &mut second => panic!("there is no room for two"),
            room = other.take(large) => assert!(room.is_some()),
        }
        assert_eq!(messages.recv().await.unwrap().0.as_str(), "greedy");
        assert!(second.await.is_some(), "room again");
    }
}
