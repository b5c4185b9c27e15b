//! Links between nodes: QUIC with mutual TLS.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use starling_core::id::{InstanceKey, NodeId};
use starling_core::observe::{Exposition, MetricSource};
use starling_core::wire::{Message, Question, Reply};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};

use crate::identity::{Identity, IdentityError};

/// All links of a node. Cheap to clone.
#[derive(Clone)]
pub struct Links {}

/// The bounds of a node's links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// How many peers are kept in the address book. Default 1,000.
    pub peers: usize,
    /// How many messages wait for one peer; more are dropped and counted. Default 1,024.
    pub mailbox_messages: usize,
    /// How many bytes of messages wait for one peer. Default 8 MiB.
    pub mailbox_bytes: usize,
    /// How many messages from all peers together wait for the loop. Default 256.
    pub inbox: usize,
    /// How many tunnels and questions one peer may have open at a time. Default 4,096.
    pub streams_per_peer: u32,
    /// The kernel's buffers of the UDP socket, in bytes, each way. Default 4 MiB.
    pub socket_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            peers: 1_000,
            mailbox_messages: 1_024,
            mailbox_bytes: 8 * 1024 * 1024,
            inbox: 256,
            streams_per_peer: 4_096,
            socket_buffer: 4 * 1024 * 1024,
        }
    }
}

/// What comes in over all links. Each receiver must be drained by its owner; when one is full, the peers that fill it
/// are slowed down, and nobody else.
pub struct Inbox {
    /// What hearts say; the name is the one in the peer's certificate.
    pub messages: mpsc::Receiver<(NodeId, Message)>,
    /// Streams peers opened to instances of this node.
    pub tunnels: mpsc::Receiver<IncomingTunnel>,
    /// Questions, each with the way back for its reply.
    pub questions: mpsc::Receiver<(NodeId, Question, oneshot::Sender<Reply>)>,
    /// What membership lives on: give it to [`crate::Membership::join`].
    pub gossip: GossipInbox,
}

/// Membership's share of the [`Inbox`].
pub struct GossipInbox {}

/// Why the links cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The UDP socket cannot be had.
    #[error("cannot listen on UDP {address}: {error}")]
    Socket {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// The identity cannot be used for TLS.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why a tunnel is refused by the node it was opened to; the other side sees it as an [`std::io::Error`] of kind
/// `ConnectionRefused` with this inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TunnelRefusal {
    /// The node does not own the instance (any more).
    #[error("the instance is not registered at that node")]
    NoSuchInstance,
    /// The node has too much to do; nothing was forwarded.
    #[error("that node is too busy")]
    Busy,
    /// The instance does not accept connections; nothing was forwarded.
    #[error("the instance cannot be reached from its node")]
    Unreachable,
    /// The node is stopping; nothing was forwarded.
    #[error("that node is stopping")]
    Stopping,
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

/// A byte stream to an instance through the node that owns it: one QUIC stream, both ways.
pub struct Tunnel {}

/// A tunnel a peer opened to an instance of this node.
pub struct IncomingTunnel {
    /// The peer, by its certificate.
    pub from: NodeId,
    /// The instance it asks for.
    pub to: InstanceKey,
    /// The bytes.
    pub tunnel: Tunnel,
}

impl IncomingTunnel {
    /// Refuses it: nothing was forwarded, and the other side may try elsewhere.
    pub fn refuse(self, _why: TunnelRefusal) {}
}

impl Links {
    /// Opens the UDP socket, and accepts and dials on it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(_identity: &Identity, listen: SocketAddr, _limits: Limits) -> Result<(Self, Inbox), BindError> {
        Err(BindError::Socket { address: listen, error: std::io::ErrorKind::Unsupported.into() })
    }

    /// Where it listens (with the port the system chose, if it was 0).
    pub fn local_address(&self) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], 0))
    }

    /// Gives a message to a peer, if possible: never waits. What does not fit into its mailbox, or is for a node that
    /// is unknown or away, is dropped and counted.
    pub fn send(&self, _to: &NodeId, _message: Message) {}

    /// Puts a peer into the address book: from now on a link to it is kept up.
    pub fn learn(&self, _node: &NodeId, _address: SocketAddr) {}

    /// Takes a peer out of the address book.
    pub fn forget(&self, _node: &NodeId) {}

    /// Says good-bye to all peers and stops. What has been sent before is delivered, within about a second.
    pub async fn close(&self) {}

    /// Asks a peer a question and waits for its one reply.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn ask(&self, node: &NodeId, _question: Question, _timeout: Duration) -> Result<Reply, LinkError> {
        Err(LinkError::UnknownNode(node.clone()))
    }

    /// Opens a tunnel.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn open_tunnel(&self, node: &NodeId, _to: &InstanceKey, _timeout: Duration) -> Result<Tunnel, LinkError> {
        Err(LinkError::UnknownNode(node.clone()))
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(0))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl MetricSource for Links {
    fn collect(&self, _out: &mut Exposition) {}
}
