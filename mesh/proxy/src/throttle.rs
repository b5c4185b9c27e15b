//! A slow connection, made on purpose: bytes come no faster than so many a second.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::pool::{Pipe, Upstream};

/// How much passes at once at most: a tenth of a second's worth, so that it trickles rather than bursts.
const PARTS_PER_S: u64 = 10;

/// What comes by this connection passes no faster from now on; what has come with the head waits its time here.
pub(crate) async fn slow_down(upstream: &mut Upstream, bytes_per_s: u64) {
    let already = upstream.buffer.data().len();
    let pipe = std::mem::replace(&mut upstream.pipe, Pipe::Tunnel(Box::new(tokio::io::empty())));
    let mut throttled = Throttled::new(pipe, bytes_per_s, already);
    throttled.paid().await;
    upstream.pipe = Pipe::Tunnel(Box::new(throttled));
}

/// A connection whose answers are slow.
struct Throttled {
    pipe: Pipe,
    bytes_per_s: u64,
    pause: Pin<Box<Sleep>>,
}

impl Throttled {
    /// So many bytes have come already, and are paid for first.
    fn new(pipe: Pipe, bytes_per_s: u64, already: usize) -> Self {
        let mut throttled =
            Self { pipe, bytes_per_s: bytes_per_s.max(1), pause: Box::pin(tokio::time::sleep_until(Instant::now())) };
        throttled.pay(already);
        throttled
    }

    /// When all that has come is paid for.
    async fn paid(&mut self) {
        self.pause.as_mut().await;
    }

    fn pay(&mut self, bytes: usize) {
        let due = self.pause.deadline().max(Instant::now());
        self.pause.as_mut().reset(due + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64));
    }
}

impl AsyncRead for Throttled {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.pause.as_mut().poll(cx));
        let most = usize::try_from((this.bytes_per_s / PARTS_PER_S).max(1)).unwrap_or(usize::MAX);
        let room = most.min(buffer.remaining());
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
        ready!(Pin::new(&mut this.pipe).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        this.pay(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Throttled {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().pipe).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_shutdown(cx)
    }
}
