//! Connections to instances: idle ones, and opening new ones.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::h1::Buffer;
use crate::http2::Call;
use crate::last_good::Copying;
use crate::mesh::Stream;
use crate::tapped::Tapped;
use crate::{tcp, workers};

/// The most idle connections when nobody has said otherwise: a tunnel carries one request at a time.
const DEFAULT_MAX_IDLE: usize = 64;

/// The bytes' way to an instance.
pub(crate) enum Pipe {
    /// Straight there.
    Tcp(TcpStream),
    /// Through the node that owns it.
    Tunnel(Box<dyn Stream>),
    /// One request by a connection of HTTP/2 that others share.
    Call(Box<Call>),
    /// One of these whose bytes are copied for the time of an answer.
    Watched(Box<Tapped<Copying>>),
}

impl Pipe {
    /// One that leads nowhere and has nothing to say.
    pub(crate) fn nothing() -> Self {
        Self::Tunnel(Box::new(tokio::io::empty()))
    }

    /// Lets the other end learn, when this is dropped, that it was cut off and has not ended.
    pub(crate) fn cut_off(&mut self) {
        if let Self::Tcp(stream) = self {
            tcp::copy::cut_off(stream);
        }
    }
}

/// A connection to an instance.
pub(crate) struct Upstream {
    pub(crate) pipe: Pipe,
    /// What came from there.
    pub(crate) buffer: Buffer,
    _open: Counted,
}

impl Upstream {
    pub(crate) fn new(pipe: Pipe, open: &Arc<Gauge>) -> Self {
        Self { pipe, buffer: Buffer::default(), _open: Gauge::count(open) }
    }

    /// Its pipe, to be put back in another form.
    pub(crate) fn take_pipe(&mut self) -> Pipe {
        std::mem::replace(&mut self.pipe, Pipe::nothing())
    }

    /// Whether it is still open and silent, as an idle connection must be. One that speaks unasked is not trusted.
    fn is_usable(&mut self) -> bool {
        let silent = match &mut self.pipe {
            Pipe::Tcp(stream) => {
                matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            Pipe::Tunnel(stream) => {
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut [0])).is_pending()
            }
            Pipe::Call(_) | Pipe::Watched(_) => false,
        };
        silent && self.buffer.is_empty()
    }
}

/// The idle connections to one instance, newest last: the newest is the least likely to have been closed.
#[derive(Default)]
pub(crate) struct Pool {
    idle: Mutex<Vec<Idle>>,
    max_idle: MaxIdle,
}

struct MaxIdle(AtomicUsize);

struct Idle {
    upstream: Upstream,
    since: Instant,
    /// The worker that waits for its bytes; a connection stays with its worker.
    worker: usize,
}

impl Default for MaxIdle {
    fn default() -> Self {
        Self(AtomicUsize::new(DEFAULT_MAX_IDLE))
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("idle", &self.lock().len()).finish()
    }
}

impl Pool {
    /// Sets how many are kept.
    pub(crate) fn limit(&self, max_idle: usize) {
        self.max_idle.0.store(max_idle, Relaxed);
    }

    /// This worker's newest idle connection that works; older and closed ones are dropped on the way.
    pub(crate) fn take(&self, now: Instant, idle_timeout: Duration) -> Option<Upstream> {
        let worker = workers::current();
        loop {
            let mut idle = self.lock();
            let at = idle.iter().rposition(|idle| idle.worker == worker)?;
            let Idle { mut upstream, since, .. } = idle.remove(at);
            drop(idle);
            if now.saturating_duration_since(since) < idle_timeout && upstream.is_usable() {
                return Some(upstream);
            }
        }
    }

    /// Keeps a connection whose response has been read to its end.
    pub(crate) fn put(&self, mut upstream: Upstream, now: Instant) {
        if matches!(upstream.pipe, Pipe::Call(_)) {
            return; // it has carried its one request
        }
        upstream.buffer.release();
        let mut idle = self.lock();
        if idle.len() < self.max_idle.0.load(Relaxed) {
            idle.push(Idle { upstream, since: now, worker: workers::current() });
        }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self, idle_timeout: Duration) {
        self.lock().retain(|idle| idle.since.elapsed() < idle_timeout);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tunnel(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Call(call) => Pin::new(&mut **call).poll_read(cx, buffer),
            Self::Watched(watched) => Pin::new(&mut **watched).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tunnel(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Call(call) => Pin::new(&mut **call).poll_write(cx, bytes),
            Self::Watched(watched) => Pin::new(&mut **watched).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tunnel(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Call(call) => Pin::new(&mut **call).poll_write_vectored(cx, parts),
            Self::Watched(watched) => Pin::new(&mut **watched).poll_write_vectored(cx, parts),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
            Self::Call(call) => Pin::new(&mut **call).poll_flush(cx),
            Self::Watched(watched) => Pin::new(&mut **watched).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Call(call) => Pin::new(&mut **call).poll_shutdown(cx),
            Self::Watched(watched) => Pin::new(&mut **watched).poll_shutdown(cx),
        }
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicI64);

/// One counted by a [`Gauge`] until dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Gauge>);

impl Gauge {
    pub(crate) fn count(gauge: &Arc<Gauge>) -> Counted {
        gauge.0.fetch_add(1, Relaxed);
        Counted(gauge.clone())
    }

    pub(crate) fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}
