//! Fault injection: datagrams that get lost on purpose, for tests and demonstrations of a broken network.
//!
//! It sits below QUIC, where a real network loses things: no connection is told, everything above has to find out by
//! itself. A cut is one-way, as in real networks; for a clean partition both sides cut each other. While nothing is
//! cut, a datagram costs one relaxed load more.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// Which addresses nothing reaches from here.
#[derive(Debug, Default)]
pub(super) struct Cut {
    any: AtomicBool,
    to: RwLock<BTreeSet<SocketAddr>>,
}

impl Cut {
    /// Loses everything to these addresses, and to no others, from now on.
    pub(super) fn set(&self, to: BTreeSet<SocketAddr>) {
        let mut held = self.to.write().unwrap_or_else(PoisonError::into_inner);
        self.any.store(!to.is_empty(), Ordering::Relaxed);
        *held = to;
    }

    fn swallows(&self, to: SocketAddr) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        // A dual-stack socket writes an IPv4 address as an IPv6 one.
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        self.to.read().unwrap_or_else(PoisonError::into_inner).contains(&to)
    }
}

/// A socket whose datagrams pass a [`Cut`].
pub(super) struct Lossy {
    pub(super) socket: Arc<dyn AsyncUdpSocket>,
    pub(super) cut: Arc<Cut>,
}

impl AsyncUdpSocket for Lossy {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.cut.swallows(transmit.destination) { Ok(()) } else { self.socket.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lossy").field("socket", &self.socket).field("cut", &self.cut).finish()
    }
}
