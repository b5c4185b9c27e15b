//! Links between nodes: QUIC with mutual TLS.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use starling_core::id::{InstanceKey, NodeId};
use starling_core::wire::{Question, Reply};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// All links of a node. Cheap to clone.
#[derive(Clone)]
pub struct Links {}

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

impl Links {
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
