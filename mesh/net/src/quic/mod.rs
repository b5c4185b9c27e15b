//! Links between nodes: QUIC with mutual TLS, on one UDP socket per node that both accepts and dials.
//!
//! Two connections to a peer, told apart by their ALPN name, because what shares a connection shares its congestion
//! window, its loss recovery and one task: a download of a gigabyte through a tunnel must not delay the 200 bytes that
//! tell of a change.
//!
//! - **talk** ([`peer`], [`table`]): one long-lived stream each way for messages between hearts, two for membership.
//!   Either side may dial; whichever connection exists is used. Kept up, for ever, with the peers membership chooses; to
//!   others of the address book it is made when there is something to say, and ends some seconds after.
//! - **carry** ([`carry`], [`tunnel`], [`lane`]): one short-lived stream per tunnel or question. Dialled when first needed,
//!   by each thread that carries for itself.
//!
//! Nothing here waits for a slow peer on behalf of another: every peer has its own bounded mailbox, its own tasks, and
//! its own place in the queue of the inbox. What does not fit is dropped and counted; repair notices.

mod carry;
mod claim;
mod endpoint;
mod faults;
pub(crate) mod frame;
mod lane;
mod letters;
mod mailbox;
mod meet;
mod peer;
mod stats;
mod table;
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use starling_core::id::{InstanceKey, MeshName, NodeId};
use starling_core::observe::{Exposition, MetricSource};
use starling_core::wire::{MAX_MESSAGE_BYTES, Message, Question, Reply};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::ground::Ground;
use crate::identity::{Identity, IdentityError, Shown};
use mailbox::Mailbox;
use meet::{Close, Complaints};
use peer::{Keep, Peer};
use stats::Stats;
use table::Table;

pub use endpoint::socket;
pub use lane::OpenLane;
pub use letters::Messages;
#[cfg(test)]
pub(crate) use letters::{Post, post};
pub use stats::{KindStats, LinkStats};
pub use tunnel::{IncomingTunnel, Tunnel, TunnelRefusal};

/// How long [`Links::close`] waits for what was sent to arrive.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// How long it then waits for peers to hear the good-bye; those that do not find out by themselves.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(300);

/// All links of a node. Cheap to clone; when the last clone is gone, the links are cut.
#[derive(Clone)]
pub struct Links {
    held: Arc<Held>,
}

/// Cuts the links when nobody holds them any more.
struct Held(Arc<Shared>);

/// Finds a node's address.
type Lookup = Box<dyn Fn(&NodeId) -> Option<SocketAddr> + Send + Sync>;

/// What every task of the links needs.
pub(crate) struct Shared {
    me: NodeId,
    mesh: MeshName,
    limits: Limits,
    /// Drawn at the start: tells two processes of one name apart, and a node from itself.
    process: u64,
    endpoint: quinn::Endpoint,
    shown: Arc<Shown>,
    dialling: endpoint::ClientConfigs,
    table: Table,
    carriers: carry::Carriers,
    lane_carriers: carry::Carriers,
    distant: carry::Carries,
    lanes: lane::Lanes,
    directory: OnceLock<Lookup>,
    into: Senders,
    stats: Stats,
    complaints: Complaints,
    closing: watch::Sender<bool>,
    cut: Arc<faults::Cut>,
}

/// The other ends of the [`Inbox`].
struct Senders {
    messages: letters::Post,
    tunnels: mpsc::Sender<IncomingTunnel>,
    questions: mpsc::Sender<(NodeId, Question, oneshot::Sender<Reply>)>,
    gossip: mpsc::Sender<GossipFrame>,
    words: mpsc::Sender<(NodeId, Bytes)>,
}

/// A message of membership: from whom, from where, and what.
pub(crate) struct GossipFrame {
    pub(crate) from: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) bytes: Bytes,
}

/// The bounds of a node's links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// How many peers are kept in the address book. Default 1,000.
    pub peers: usize,
    /// How many messages of each class (the mesh's own, changes, repair) wait for one peer; more are dropped and
    /// counted. Default 1,024.
    pub mailbox_messages: usize,
    /// How many bytes of messages of each class wait for one peer. Default 8 MiB, and never less than the largest
    /// message.
    pub mailbox_bytes: usize,
    /// How many messages from all peers together wait for the loop; few, so that none waits long. Default 256.
    pub inbox: usize,
    /// How many bytes of one peer's messages wait for the loop. Default 8 MiB, and never less than the largest message.
    pub inbox_bytes_per_peer: usize,
    /// How many tunnels and questions one peer may have open at a time. Default 4,096.
    pub streams_per_peer: u32,
    /// The kernel's buffers of the UDP socket, in bytes, each way. Default 4 MiB: with the usual 208 KiB, most of a
    /// burst of 1,000 datagrams was lost.
    pub socket_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            peers: 1_000,
            mailbox_messages: 1_024,
            mailbox_bytes: 8 * 1024 * 1024,
            inbox: 256,
            inbox_bytes_per_peer: 8 * 1024 * 1024,
            streams_per_peer: 4_096,
            socket_buffer: 4 * 1024 * 1024,
        }
    }
}

/// What comes in over all links. Each receiver must be drained by its owner; when one is full, the peers that fill it
/// are slowed down (messages) or refused (tunnels, questions), and nobody else.
pub struct Inbox {
    /// What hearts say; the name is the one in the peer's certificate.
    pub messages: Messages,
    /// Streams peers opened to instances of this node.
    pub tunnels: mpsc::Receiver<IncomingTunnel>,
    /// Questions, each with the way back for its reply.
    pub questions: mpsc::Receiver<(NodeId, Question, oneshot::Sender<Reply>)>,
    /// What membership lives on: give it to [`crate::Membership::join`].
    pub gossip: GossipInbox,
}

/// Membership's share of the [`Inbox`].
pub struct GossipInbox {
    pub(crate) frames: mpsc::Receiver<GossipFrame>,
    /// Words about links, and from whom.
    pub(crate) words: mpsc::Receiver<(NodeId, Bytes)>,
}

/// Why the links cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The UDP socket cannot be had.
    #[error(
        "cannot listen for other nodes on UDP {address}: {error}; is another node running here? Choose another address \
         with node.listen"
    )]
    Socket {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The identity cannot be used for TLS.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why a peer could not be reached or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Membership has not told of this node, or it is forgotten.
    #[error("no address is known for node {0}")]
    UnknownNode(NodeId),
    /// No connection could be made, or it broke.
    #[error("node {node} is unreachable: {reason}")]
    Unreachable {
        /// The node.
        node: NodeId,
        /// What went wrong.
        reason: String,
    },
    /// It did not answer in time.
    #[error("node {node} did not answer within {} ms", .timeout.as_millis())]
    TimedOut {
        /// The node.
        node: NodeId,
        /// How long was waited.
        timeout: Duration,
    },
    /// The other node refused, and says why.
    #[error("node {node} refused: {reason}")]
    Refused {
        /// The node.
        node: NodeId,
        /// Its reason.
        reason: String,
    },
}

impl Links {
    /// Opens the UDP socket, and accepts and dials on it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(identity: &Identity, listen: SocketAddr, limits: Limits) -> Result<(Self, Inbox), BindError> {
        Self::bind_on(identity, listen, limits, Ground::default())
    }

    /// As [`Self::bind`], on other ground than the real one.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind_on(
        identity: &Identity,
        listen: SocketAddr,
        limits: Limits,
        ground: Ground,
    ) -> Result<(Self, Inbox), BindError> {
        let cut = Arc::default();
        let shown = Shown::new(identity)?;
        let (endpoint, dialling) = endpoint::open(&shown, listen, &limits, ground, &cut)?;
        let (messages, messages_out) = letters::post(limits.inbox.max(1));
        let (tunnels, tunnels_out) = mpsc::channel(limits.inbox.max(1));
        let (questions, questions_out) = mpsc::channel(limits.inbox.max(1));
        let (gossip, gossip_out) = mpsc::channel(limits.inbox.max(1));
        let (words, words_out) = mpsc::channel(limits.inbox.max(1));
        let shared = Arc::new(Shared {
            me: identity.node().clone(),
            mesh: identity.mesh().clone(),
            process: fastrand::u64(..),
            endpoint,
            shown,
            dialling,
            table: Table::default(),
            carriers: carry::Carriers::default(),
            lane_carriers: carry::Carriers::default(),
            distant: carry::Carries::default(),
            lanes: lane::Lanes::default(),
            directory: OnceLock::new(),
            into: Senders { messages, tunnels, questions, gossip, words },
            stats: Stats::default(),
            complaints: Complaints::default(),
            closing: watch::Sender::new(false),
            cut,
            limits,
        });
        tokio::spawn(meet::accept(shared.clone()));
        let links = Self { held: Arc::new(Held(shared)) };
        info!(node = %identity.node(), mesh = %identity.mesh(), address = %links.local_address(), "listening for peers");
        let inbox = Inbox {
            messages: messages_out,
            tunnels: tunnels_out,
            questions: questions_out,
            gossip: GossipInbox { frames: gossip_out, words: words_out },
        };
        Ok((links, inbox))
    }

    /// The certificate it shows.
    pub(crate) fn shown(&self) -> &Arc<Shown> {
        &self.shared().shown
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.held.0
    }

    /// This node's name.
    pub fn me(&self) -> &NodeId {
        &self.shared().me
    }

    /// The mesh it belongs to.
    pub fn mesh(&self) -> &MeshName {
        &self.shared().mesh
    }

    /// Where it listens (with the port the system chose, if it was 0).
    pub fn local_address(&self) -> SocketAddr {
        // Asking a bound socket for its address fails on no system we run on; the all-zero address says "unknown".
        self.shared().endpoint.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// Gives a message to a peer, if possible: never waits. What does not fit into its mailbox, or is for a node that
    /// is unknown or away, is dropped and counted.
    pub fn send(&self, to: &NodeId, message: Message) {
        let shared = self.shared();
        let kind = message.kind();
        let frame = frame::framed(&message.encode());
        if frame.len() > MAX_MESSAGE_BYTES {
            error!(kind, bytes = frame.len(), "a message over the size limit was not sent: it should have been split");
            shared.stats.dropped(kind, 1);
            return;
        }
        let bytes = frame.len();
        let taken = shared.table.get(to).is_some_and(|peer| {
            peer.use_link();
            peer.messages.push(kind, frame)
        });
        if taken {
            shared.stats.sent(kind, bytes);
        } else {
            shared.stats.dropped(kind, 1);
        }
    }

    /// Gives membership's bytes to whoever listens at an address; never waits. Dials it if nobody is linked there.
    pub(crate) fn send_gossip(&self, to: SocketAddr, bytes: &[u8]) {
        let shared = self.shared();
        match shared.table.at(to) {
            Some(peer) => self.push(&peer, |peer| &peer.gossip, stats::GOSSIP, frame::framed(bytes)),
            None => meet::dial_address(shared, to, frame::framed(bytes)),
        }
    }

    /// Gives membership's bytes to whoever listens at an address if there is a link, else to some linked member. False
    /// when nobody is linked.
    pub(crate) fn send_gossip_near(&self, to: SocketAddr, bytes: &[u8]) -> bool {
        let shared = self.shared();
        let at = shared.table.at(to).filter(|peer| peer.is_up());
        let near = at.or_else(|| {
            let linked = shared.table.linked_members();
            (!linked.is_empty()).then(|| linked[fastrand::usize(..linked.len())].clone())
        });
        if let Some(peer) = &near {
            self.push(peer, |peer| &peer.gossip, stats::GOSSIP, frame::framed(bytes));
        }
        near.is_some()
    }

    /// Gives membership's words to all linked members but the one they came from; never waits.
    pub(crate) fn send_words(&self, except: Option<&NodeId>, bytes: &[u8]) {
        let frame = frame::framed(bytes);
        for peer in self.shared().table.linked_members() {
            if Some(&peer.node) != except {
                self.push(&peer, |peer| &peer.words, stats::WORDS, frame.clone());
            }
        }
    }

    fn push(&self, peer: &Peer, mailbox: fn(&Peer) -> &Mailbox, kind: &'static str, frame: Bytes) {
        let (stats, size) = (&self.shared().stats, frame.len());
        if mailbox(peer).push(kind, frame) { stats.sent(kind, size) } else { stats.dropped(kind, 1) }
    }

    /// Puts a peer into the address book: from now on a link to it is kept up.
    pub fn learn(&self, node: &NodeId, address: SocketAddr) {
        self.note(node, address, Keep::Up);
    }

    /// Puts a member of this node's own cell into the address book. Without a link of its own, one is made for each message
    /// that finds none, and ends when nothing is said for a while.
    pub(crate) fn learn_member(&self, node: &NodeId, address: SocketAddr, keep: bool) {
        self.note(node, address, if keep { Keep::Up } else { Keep::OnDemand });
        if let Some(peer) = self.shared().table.get(node) {
            peer.near.store(true, Ordering::Relaxed);
        }
    }

    fn note(&self, node: &NodeId, address: SocketAddr, keep: Keep) {
        let shared = self.shared();
        let full = *node != shared.me && !shared.table.learn(shared, node, address, keep);
        if full && shared.may_say(address, "full") {
            warn!(%node, %address, limit = shared.limits.peers, "the address book is full, this peer is left out");
        }
    }

    /// Says where nodes are that are not in the address book: those of other cells are dialled when they are called. The
    /// first word counts.
    pub(crate) fn look_up(&self, directory: impl Fn(&NodeId) -> Option<SocketAddr> + Send + Sync + 'static) {
        // Only whoever starts the node says it, once.
        let _ = self.shared().directory.set(Box::new(directory));
    }

    /// Takes a peer out of the address book. A link that exists is left alone, but not made again.
    pub fn forget(&self, node: &NodeId) {
        self.shared().table.forget(node);
    }

    /// Takes every peer out of the address book and closes all links, but the endpoint stays.
    pub(crate) fn forget_all(&self) {
        self.shared().table.forget_all();
    }

    /// All linked members, and where they are.
    pub(crate) fn linked(&self) -> BTreeMap<NodeId, SocketAddr> {
        let linked = self.shared().table.linked_members();
        linked.iter().filter_map(|peer| Some((peer.node.clone(), peer.remote()?))).collect()
    }

    /// Closes the link to the second of two processes that use the name of one node.
    pub(crate) fn refuse_namesake(&self, node: &NodeId, first: SocketAddr, second: SocketAddr) {
        if let Some(peer) = self.shared().table.get(node) {
            peer.refuse(second, &meet::same_name(node, first));
            self.shared().stats.refused();
        }
    }

    /// A peer said something that cannot be read.
    pub(crate) fn malformed(&self, from: &NodeId, what: &str) {
        let shared = self.shared();
        shared.stats.malformed();
        if let Some(address) = shared.table.get(from).and_then(|peer| peer.remote())
            && shared.may_say(address, "words")
        {
            warn!(node = %from, %address, "a peer said something malformed about links: {what}");
        }
    }

    /// Since when there is no link to a peer that should have one; `None` while there is one, or none was asked for.
    pub fn down_since(&self, node: &NodeId) -> Option<Instant> {
        self.shared().table.down_since(node)
    }

    /// Whether there is a link to a peer now.
    pub fn is_up(&self, node: &NodeId) -> bool {
        self.shared().table.get(node).is_some_and(|peer| peer.is_up())
    }

    /// Asks a peer a question and waits for its one reply.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn ask(&self, node: &NodeId, question: Question, timeout: Duration) -> Result<Reply, LinkError> {
        let asking = carry::ask(self.shared(), node, &question);
        tokio::time::timeout(timeout, asking)
            .await
            .unwrap_or_else(|_| Err(LinkError::TimedOut { node: node.clone(), timeout }))
    }

    /// Opens a tunnel to an instance of a peer. It can be used at once; if the peer refuses it, the first read or write
    /// fails with [`TunnelRefusal`] inside the error.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn open_tunnel(&self, node: &NodeId, to: &InstanceKey, timeout: Duration) -> Result<Tunnel, LinkError> {
        let opening = carry::open_tunnel(self.shared(), node, to);
        tokio::time::timeout(timeout, opening)
            .await
            .unwrap_or_else(|_| Err(LinkError::TimedOut { node: node.clone(), timeout }))
    }

    /// Fault injection, for tests and demonstrations: every datagram to these addresses is lost from now on, and to no
    /// others. One-way: for a partition, both sides cut each other. Nobody is told; an empty set heals.
    pub fn set_cut(&self, to: BTreeSet<SocketAddr>) {
        if to.is_empty() {
            warn!("fault injection: the network is whole again");
        } else {
            warn!(?to, "fault injection: everything to these addresses is lost from now on");
        }
        self.shared().cut.set(to);
    }

    /// Whether to log this about a peer, or whether the same was said a moment ago.
    pub(crate) fn may_say(&self, address: SocketAddr, what: &'static str) -> bool {
        self.shared().may_say(address, what)
    }

    /// What has been counted so far.
    pub fn stats(&self) -> LinkStats {
        self.shared().stats.read(&self.shared().table)
    }

    /// Says good-bye to all peers and stops. What has been sent before is delivered, within about a second.
    pub async fn close(&self) {
        let shared = self.shared();
        shared.closing.send_replace(true);
        // Every peer's task writes out what it has, waits until that has arrived, and ends.
        let written = tokio::time::timeout(CLOSE_PATIENCE, shared.table.all_written()).await;
        if written.is_err() {
            info!("stopping although not everything sent has arrived everywhere");
        }
        shared.endpoint.close(Close::Stopping.code(), b"the node is stopping");
        let _ = tokio::time::timeout(GOODBYE_PATIENCE, shared.endpoint.wait_idle()).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.closing.send_replace(true);
        self.0.endpoint.close(Close::Stopping.code(), b"the node is stopping");
    }
}

impl MetricSource for Links {
    fn collect(&self, out: &mut Exposition) {
        self.stats().collect(out);
    }
}

#[cfg(test)]
mod tests;
