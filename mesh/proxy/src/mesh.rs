//! What the data plane needs of the node around it, and nothing more: a picture, a way to other nodes, a place for
//! spans. [`starling_net::Handle`] is the real one; tests join two proxies by pipes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use starling_core::id::{InstanceKey, NodeId};
use starling_core::observe::SpanBuffer;
use starling_core::quotas::{QuotaId, QuotaUse};
use starling_core::view::View;
use starling_net::{Handle, IncomingTunnel, LinkError, OpenLane, TunnelRefusal};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::sync::watch;

/// Bytes both ways: a TCP connection or a tunnel.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A tunnel being opened.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, LinkError>> + Send + 'a>>;

/// The node as the data plane sees it.
pub trait Mesh: Send + Sync + 'static {
    /// This node's name.
    fn me(&self) -> &NodeId;
    /// The last published picture; never waits.
    fn view(&self) -> Arc<View>;
    /// Where spans go.
    fn spans(&self) -> &Arc<SpanBuffer>;
    /// Tells what is asked of the mesh's quotas here; never waits.
    fn use_quotas(&self, uses: Vec<QuotaUse>);
    /// What this node may use of them, in thousandths of a call a second; changes after each telling.
    fn shares(&self) -> watch::Receiver<Vec<(QuotaId, u64)>>;
    /// Opens a byte stream to an instance through the node that owns it.
    fn open_tunnel<'a>(&'a self, node: &'a NodeId, to: &'a InstanceKey, timeout: Duration) -> Opening<'a>;
    /// Makes the calling worker's thread one that tunnels are dialled from and arrive at, so that their bytes stay on
    /// it; at most `queue` of those that arrive wait. `None` where tunnels come and go elsewhere.
    fn open_lane(&self, _queue: usize) -> Option<(OpenLane, mpsc::Receiver<IncomingTunnel>)> {
        None
    }
}

impl Mesh for Handle {
    fn use_quotas(&self, uses: Vec<QuotaUse>) {
        Handle::use_quotas(self, uses);
    }

    fn shares(&self) -> watch::Receiver<Vec<(QuotaId, u64)>> {
        Handle::shares(self)
    }

    fn me(&self) -> &NodeId {
        Handle::me(self)
    }

    fn view(&self) -> Arc<View> {
        Handle::view(self)
    }

    fn spans(&self) -> &Arc<SpanBuffer> {
        Handle::spans(self)
    }

    fn open_tunnel<'a>(&'a self, node: &'a NodeId, to: &'a InstanceKey, timeout: Duration) -> Opening<'a> {
        Box::pin(async move {
            let tunnel = Handle::open_tunnel(self, node, to, timeout).await?;
            Ok(Box::new(tunnel) as Box<dyn Stream>)
        })
    }

    fn open_lane(&self, queue: usize) -> Option<(OpenLane, mpsc::Receiver<IncomingTunnel>)> {
        let lane = Handle::open_lane(self, queue);
        lane.inspect_err(
            |error| tracing::warn!(%error, "a worker has no socket of its own: its tunnels take a longer way"),
        )
        .ok()
    }
}

/// A tunnel another node opened to an instance of this one.
pub struct Arrival {
    /// The node, by its certificate.
    pub from: NodeId,
    /// The instance it asks for.
    pub to: InstanceKey,
    /// The bytes.
    pub stream: Box<dyn Stream>,
}

/// A tunnel that has not been taken yet.
pub trait Knock: Send + 'static {
    /// Takes it.
    fn take(self) -> Arrival;
    /// Turns it away, and tells the other side that nothing was forwarded.
    fn refuse(self, why: TunnelRefusal);
}

impl Knock for IncomingTunnel {
    fn take(self) -> Arrival {
        Arrival { from: self.from, to: self.to, stream: Box::new(self.tunnel) }
    }

    fn refuse(self, why: TunnelRefusal) {
        IncomingTunnel::refuse(self, why);
    }
}
