//! Who is linked: every peer this node keeps a link to or has one with, by name and by address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use quinn::{Connection, ConnectionError};
use starling_core::id::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Shared;
use super::claim::Holder;
use super::meet::{Close, Met, printable, remote};
use super::peer::{self, Keep, Peer};

/// How many addresses without a known node are dialled at a time: a seed list, not a network scan.
const MAX_DIALLING: usize = 64;

/// All peers. Every method is short and waits for nobody.
pub(super) struct Table {
    rows: RwLock<Rows>,
    /// How many peers' tasks are running; they write out their mailboxes before they end.
    running: watch::Sender<usize>,
}

#[derive(Default)]
struct Rows {
    peers: BTreeMap<NodeId, Arc<Peer>>,
    /// Where a link comes from, or should lead to.
    at: BTreeMap<SocketAddr, NodeId>,
    dialling: BTreeSet<SocketAddr>,
}

impl Default for Table {
    fn default() -> Self {
        Self { rows: RwLock::default(), running: watch::Sender::new(0) }
    }
}

impl Table {
    fn read(&self) -> RwLockReadGuard<'_, Rows> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Rows> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, node: &NodeId) -> Option<Arc<Peer>> {
        self.read().peers.get(node).cloned()
    }

    /// The peer that is, or should be, at an address.
    pub(super) fn at(&self, address: SocketAddr) -> Option<Arc<Peer>> {
        let rows = self.read();
        rows.at.get(&address).and_then(|node| rows.peers.get(node)).cloned()
    }

    pub(super) fn down_since(&self, node: &NodeId) -> Option<Instant> {
        self.get(node).and_then(|peer| peer.state().down_since)
    }

    /// All peers, and those with a link.
    pub(super) fn counts(&self) -> (u64, u64) {
        let rows = self.read();
        let up = rows.peers.values().filter(|peer| peer.is_up()).count();
        (rows.peers.len() as u64, up as u64)
    }

    /// How many peers should have a link and have none.
    pub(super) fn down(&self) -> u32 {
        let missed = |peer: &&Arc<Peer>| peer.state().keep == Keep::Up && !peer.is_up();
        self.read().peers.values().filter(missed).count() as u32
    }

    /// All members of this node's own cell that are linked.
    pub(super) fn linked_members(&self) -> Vec<Arc<Peer>> {
        let linked = |peer: &&Arc<Peer>| peer.near.load(Ordering::Relaxed) && peer.is_up();
        self.read().peers.values().filter(linked).cloned().collect()
    }

    /// Puts a peer into the address book, or corrects what it says. False when there is no room.
    pub(super) fn learn(&self, shared: &Arc<Shared>, node: &NodeId, address: SocketAddr, keep: Keep) -> bool {
        let mut rows = self.write();
        if !rows.peers.contains_key(node) && rows.peers.len() >= shared.limits.peers {
            return false;
        }
        let peer = self.peer(shared, &mut rows, node);
        let changed = {
            let mut state = peer.state();
            match keep {
                Keep::OnDemand => state.down_since = None,
                Keep::Up if state.connections.is_empty() && state.down_since.is_none() => {
                    state.down_since = Some(Instant::now());
                }
                Keep::Up => {}
            }
            let known = std::mem::replace(&mut state.keep, keep);
            state.address.replace(address) != Some(address) || known != keep
        };
        if changed {
            peer.changed.notify_one();
        }
        let taken = rows.at.get(&address).and_then(|other| rows.peers.get(other)).is_some_and(|other| other.is_up());
        if !taken {
            rows.at.insert(address, node.clone());
        }
        true
    }

    pub(super) fn forget(&self, node: &NodeId) {
        if let Some(peer) = self.get(node) {
            let mut state = peer.state();
            state.address = None;
            state.keep = Keep::OnDemand;
            state.down_since = None;
            drop(state);
            peer.changed.notify_one();
        }
    }

    pub(super) fn forget_all(&self) {
        let peers: Vec<Arc<Peer>> = self.read().peers.values().cloned().collect();
        for peer in peers {
            self.forget(&peer.node);
            peer.close_all(Close::Stopping, b"this node does not take part any more");
        }
    }

    /// Forgets that a peer should be at an address: it was not. Membership may find out who is.
    pub(super) fn not_there(&self, node: &NodeId, address: SocketAddr) {
        let mut rows = self.write();
        if rows.at.get(&address) == Some(node) {
            rows.at.remove(&address);
        }
    }

    /// Who has the name of a node that was met, if that may be somebody else.
    pub(super) fn holder(&self, met: &Met) -> Option<Holder> {
        let peer = self.get(&met.node)?;
        if let Some(rival) = peer.rival(met) {
            return Some(Holder::Linked(rival));
        }
        let state = peer.state();
        let listed = state.address.filter(|address| *address != remote(&met.connection));
        let linked = state.connections.iter().any(|held| held.connection.close_reason().is_none());
        listed.filter(|_| !linked).map(Holder::Listed)
    }

    /// Takes a talk connection into use.
    pub(super) fn register(&self, shared: &Arc<Shared>, met: Met) {
        let mut rows = self.write();
        // Twice the address book: peers that dial us may be about to be learned.
        if !rows.peers.contains_key(&met.node) && rows.peers.len() >= shared.limits.peers.saturating_mul(2) {
            met.connection.close(Close::TooMany.code(), b"this node has too many peers");
            if shared.may_say(remote(&met.connection), "full") {
                warn!(node = %met.node, "turned a peer away: the address book is full");
            }
            return;
        }
        let (node, connection) = (met.node.clone(), met.connection.clone());
        let peer = self.peer(shared, &mut rows, &node);
        rows.at.insert(remote(&connection), node.clone());
        let was_up = peer.is_up();
        peer.adopt(&shared.me, met);
        drop(rows);
        if !was_up {
            info!(%node, address = %remote(&connection), "linked with a peer");
        }
        tokio::spawn(peer::read_streams(shared.clone(), node, connection));
    }

    /// A talk connection has ended.
    pub(super) fn lost(&self, shared: &Shared, node: &NodeId, connection: &Connection, error: &ConnectionError) {
        let mut rows = self.write();
        let Some(peer) = rows.peers.get(node).cloned() else { return };
        let (still_up, address) = (peer.drop_connection(&shared.me, connection), remote(connection));
        let moved = peer.state().connections.iter().all(|held| remote(&held.connection) != address);
        if moved && peer.state().address != Some(address) && rows.at.get(&address) == Some(node) {
            rows.at.remove(&address);
        }
        drop(rows);
        if superseded(error) {
            if shared.may_say(address, "superseded") {
                warn!(%node, %address, me = %shared.me, "another process says it is this node, and the peer took its \
                    link: stop one of the two, or give it a name and a certificate of its own");
            }
        } else if !still_up {
            info!(%node, %address, reason = printable(&error.to_string()), "the link to a peer is gone");
        }
    }

    /// Removes a peer that is neither in the address book nor linked.
    pub(super) fn retire(&self, peer: &Arc<Peer>) -> bool {
        let mut rows = self.write();
        let idle = {
            let state = peer.state();
            state.address.is_none() && state.connections.is_empty()
        };
        if idle {
            rows.peers.remove(&peer.node);
            rows.at.retain(|_, node| *node != peer.node);
        }
        idle
    }

    /// Whether an address may be dialled now; if so, it must be followed by [`Self::end_dialling`].
    pub(super) fn begin_dialling(&self, address: SocketAddr) -> bool {
        let mut rows = self.write();
        rows.dialling.len() < MAX_DIALLING && rows.dialling.insert(address)
    }

    pub(super) fn end_dialling(&self, address: SocketAddr) {
        self.write().dialling.remove(&address);
    }

    /// Waits until the tasks of all peers have ended, which they do when the links are closing.
    pub(super) async fn all_written(&self) {
        // The sender is ours, so it cannot have gone.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }

    /// The row of a peer, made with its task if there is none.
    fn peer(&self, shared: &Arc<Shared>, rows: &mut Rows, node: &NodeId) -> Arc<Peer> {
        if let Some(peer) = rows.peers.get(node) {
            return peer.clone();
        }
        let peer = Arc::new(Peer::new(node.clone(), &shared.limits));
        rows.peers.insert(node.clone(), peer.clone());
        self.running.send_modify(|running| *running += 1);
        let (shared, kept) = (shared.clone(), peer.clone());
        tokio::spawn(async move {
            peer::keep(&shared, &kept).await;
            shared.table.running.send_modify(|running| *running -= 1);
        });
        peer
    }
}

/// Whether the peer took a connection of this process for one of an older process of this node: two run at once.
fn superseded(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(theirs) if theirs.error_code == Close::Superseded.code())
}
