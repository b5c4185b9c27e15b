//! chitchat's messages over our links.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use starling_core::id::NodeId;
use tokio::sync::{Mutex, mpsc};
use tracing::{error, warn};

use crate::quic::{GossipFrame, Links};

/// chitchat panics when its list of all nodes does not fit into 65,403 bytes. From here on no more nodes are taken in.
const MAX_DIGEST_BYTES: usize = 56 * 1024;

/// Only seeds are gossiped to before it is known of which cell they are: a handful. More are left to the next round.
pub(super) const MAX_FOREIGNERS: usize = 64;

/// Opens [`LinkSocket`]s; one at a time is in use.
pub(super) struct LinkTransport {
    links: Links,
    receiving: Arc<Mutex<Receiving>>,
    crowd: Crowd,
    foreigners: Foreigners,
    wanted: Wanted,
}

/// Nodes that were gossiped to and are of another cell, with their addresses: those who answered so lately.
#[derive(Clone, Default)]
pub(super) struct Foreigners(Arc<StdMutex<BTreeMap<NodeId, SocketAddr>>>);

impl Foreigners {
    /// Takes them out.
    pub(super) fn take(&self) -> BTreeMap<NodeId, SocketAddr> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, frame: &GossipFrame) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MAX_FOREIGNERS {
            all.insert(frame.from.clone(), frame.address);
        }
    }
}

/// What comes in. Shared, so that it outlives a chitchat that has stopped.
pub(super) struct Receiving {
    frames: mpsc::Receiver<GossipFrame>,
}

impl Receiving {
    pub(super) fn new(frames: mpsc::Receiver<GossipFrame>) -> Self {
        Self { frames }
    }
}

/// Addresses to be gossiped with in any case. All others chitchat names are its own random choice, for which any
/// linked peer will do: a link made for each would cost more than the round.
type Wanted = Arc<StdMutex<BTreeSet<SocketAddr>>>;

/// Whether there are too many members for chitchat to bear.
#[derive(Clone, Default)]
pub(super) struct Crowd {
    digest_bytes: Arc<AtomicUsize>,
    refused: Arc<AtomicBool>,
}

impl Crowd {
    /// This node stays out from now on: nothing is sent or taken in any more.
    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    fn is_full(&self) -> bool {
        self.digest_bytes.load(Ordering::Relaxed) > MAX_DIGEST_BYTES
    }
}

impl LinkTransport {
    pub(super) fn new(links: Links, receiving: Arc<Mutex<Receiving>>) -> Self {
        let (foreigners, wanted) = (Foreigners::default(), Wanted::default());
        Self { links, receiving, crowd: Crowd::default(), foreigners, wanted }
    }

    pub(super) fn foreigners(&self) -> Foreigners {
        self.foreigners.clone()
    }

    /// The next round with this address goes there, even if that takes a link.
    pub(super) fn dial_for(&self, address: SocketAddr) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(address);
    }

    pub(super) fn crowd(&self) -> Crowd {
        self.crowd.clone()
    }
}

#[async_trait]
impl Transport for LinkTransport {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let (links, receiving, wanted) = (self.links.clone(), self.receiving.clone(), self.wanted.clone());
        let (crowd, foreigners) = (self.crowd.clone(), self.foreigners.clone());
        Ok(Box::new(LinkSocket { links, receiving, crowd, foreigners, wanted }))
    }
}

/// What chitchat takes for a UDP socket.
struct LinkSocket {
    links: Links,
    receiving: Arc<Mutex<Receiving>>,
    crowd: Crowd,
    foreigners: Foreigners,
    wanted: Wanted,
}

#[async_trait]
impl Socket for LinkSocket {
    /// Never waits: what cannot be sent is lost, as with UDP.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if self.crowd.is_refused() {
            return Ok(());
        }
        let bytes = message.serialize_to_vec();
        let begins = matches!(message, ChitchatMessage::Syn { .. });
        if begins {
            self.crowd.digest_bytes.store(bytes.len(), Ordering::Relaxed);
        }
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).remove(&to);
        if wanted || !begins || !self.links.send_gossip_near(to, &bytes) {
            self.links.send_gossip(to, &bytes);
        }
        Ok(())
    }

    /// Loses nothing when it is cancelled: between the one waiting and the return nothing is awaited.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        let mut receiving = self.receiving.lock().await;
        while let Some(frame) = receiving.frames.recv().await {
            if self.crowd.is_refused() {
                continue;
            }
            let Some(message) = decode(&self.links, &frame) else { continue };
            if matches!(message, ChitchatMessage::BadCluster) {
                self.foreigners.note(&frame);
            }
            let answers = matches!(message, ChitchatMessage::Syn { .. } | ChitchatMessage::SynAck { .. });
            if self.crowd.is_full() && answers {
                continue; // answering would need a list longer than chitchat can write
            }
            return Ok((frame.address, message));
        }
        // Not an error, which chitchat would log as one of UDP: the links are closed, and so is all of this in a moment.
        std::future::pending().await
    }
}

/// Reads a message. The reader is not ours and may panic on what a broken peer sends.
fn decode(links: &Links, frame: &GossipFrame) -> Option<ChitchatMessage> {
    let read = catch_unwind(AssertUnwindSafe(|| ChitchatMessage::deserialize(&mut &*frame.bytes)));
    match read {
        Ok(Ok(message)) => Some(message),
        Ok(Err(error)) => {
            if links.may_say(frame.address, "membership") {
                warn!(node = %frame.from, address = %frame.address, %error, "a peer sent a malformed membership message");
            }
            None
        }
        Err(_) => {
            if links.may_say(frame.address, "membership") {
                error!(node = %frame.from, address = %frame.address, "a peer sent a membership message that cannot be read");
            }
            None
        }
    }
}
