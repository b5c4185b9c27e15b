//! A byte stream to an instance, through the node that owns it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use starling_core::id::{InstanceKey, NodeId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How long the other side may take to have the last bytes of a tunnel that has ended: whoever reads them slowly keeps
/// nothing but this connection.
const LAST_BYTES: Duration = Duration::from_secs(30);

/// A byte stream to an instance through the node that owns it: one QUIC stream, both ways.
///
/// Shutting it down ends the sending side and leaves the other open; dropping it before that cuts both, and the peer
/// sees an error and not an end.
pub struct Tunnel {
    send: SendStream,
    receive: RecvStream,
    finished: bool,
    /// Shows that its connection is in use, until the other side has all that was sent.
    uses: Option<Arc<()>>,
}

/// A tunnel a peer opened to an instance of this node.
pub struct IncomingTunnel {
    /// The peer, by its certificate.
    pub from: NodeId,
    /// The instance it asks for.
    pub to: InstanceKey,
    /// The bytes.
    pub tunnel: Tunnel,
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
    /// What was asked for could not be understood.
    #[error("that node did not understand what was asked for")]
    Malformed,
}

impl TunnelRefusal {
    const ALL: [Self; 5] = [Self::NoSuchInstance, Self::Busy, Self::Unreachable, Self::Stopping, Self::Malformed];

    /// The code of the reset that carries it; 0 is an ordinary interruption.
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32 + 1)
    }

    pub(super) fn from_code(code: VarInt) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

impl IncomingTunnel {
    /// Refuses it: nothing was forwarded, and the other side may try elsewhere.
    pub fn refuse(self, why: TunnelRefusal) {
        self.tunnel.cut(why.code());
    }
}

impl Tunnel {
    pub(super) fn new(send: SendStream, receive: RecvStream, uses: Option<Arc<()>>) -> Self {
        Self { send, receive, finished: false, uses }
    }

    fn cut(mut self, code: VarInt) {
        cut(&mut self.send, &mut self.receive, code);
        self.finished = true;
    }
}

/// Ends both directions of a stream with a code.
pub(super) fn cut(send: &mut SendStream, receive: &mut RecvStream, code: VarInt) {
    // Both fail only when that direction has ended already.
    let _ = send.reset(code);
    let _ = receive.stop(code);
}

fn interrupted(code: VarInt) -> io::Error {
    match TunnelRefusal::from_code(code) {
        Some(refusal) => io::Error::new(io::ErrorKind::ConnectionRefused, refusal),
        None => io::Error::new(io::ErrorKind::ConnectionReset, "the other side cut the tunnel"),
    }
}

fn read_error(error: ReadError) -> io::Error {
    match error {
        ReadError::Reset(code) => interrupted(code),
        ReadError::ConnectionLost(error) => io::Error::new(io::ErrorKind::ConnectionAborted, error),
        error => error.into(),
    }
}

fn write_error(error: WriteError) -> io::Error {
    match error {
        WriteError::Stopped(code) => interrupted(code),
        WriteError::ConnectionLost(error) => io::Error::new(io::ErrorKind::ConnectionAborted, error),
        error => error.into(),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(ready!(self.receive.poll_read_buf(cx, buffer)).map_err(read_error))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(ready!(Pin::new(&mut self.send).poll_write(cx, bytes)).map_err(write_error))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // QUIC sends what it has at once
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        let _ = self.send.finish(); // fails only when the other side has cut it already, which reading will tell
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.finished {
            // QUIC would end it politely, and half an answer would pass for a whole one.
            let _ = self.send.reset(VarInt::from_u32(0));
            return;
        }
        // Without a runtime there is nobody left who would send it.
        if let (Some(uses), Ok(runtime)) = (self.uses.take(), tokio::runtime::Handle::try_current()) {
            let arrived = self.send.stopped();
            runtime.spawn(async move {
                let _ = tokio::time::timeout(LAST_BYTES, arrived).await;
                drop(uses);
            });
        }
    }
}
