//! A slow connection, made on purpose: bytes come no faster than so many a second.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::pool::{Pipe, Upstream};
use crate::tapped::{Tap, Tapped};

/// How much passes at once at most: a tenth of a second's worth, so that it trickles rather than bursts.
const PARTS_PER_S: u64 = 10;

/// What comes by this connection passes no faster from now on; what has come with the head waits its time here.
pub(crate) async fn slow_down(upstream: &mut Upstream, bytes_per_s: u64) {
    let mut throttle = Throttle::new(bytes_per_s, upstream.buffer.data().len());
    throttle.paid().await;
    let pipe = upstream.take_pipe();
    upstream.pipe = Pipe::Tunnel(Box::new(Tapped { pipe, tap: throttle }));
}

/// Makes answers slow.
struct Throttle {
    bytes_per_s: u64,
    pause: Pin<Box<Sleep>>,
}

impl Throttle {
    /// So many bytes have come already, and are paid for first.
    fn new(bytes_per_s: u64, already: usize) -> Self {
        let mut throttle =
            Self { bytes_per_s: bytes_per_s.max(1), pause: Box::pin(tokio::time::sleep_until(Instant::now())) };
        throttle.pay(already);
        throttle
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

impl Tap for Throttle {
    fn poll_read(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.pause.as_mut().poll(cx));
        let most = usize::try_from((self.bytes_per_s / PARTS_PER_S).max(1)).unwrap_or(usize::MAX);
        let room = most.min(buffer.remaining());
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
        ready!(Pin::new(pipe).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        self.pay(read);
        Poll::Ready(Ok(()))
    }
}
