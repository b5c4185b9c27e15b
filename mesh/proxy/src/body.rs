//! Bodies on their way: requests that can or cannot be repeated, responses that tell when they have been carried.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use starling_core::balance::InFlight;
use tokio::time::Instant;

use crate::pool::{Pool, Sender};
use crate::trace::OpenSpan;

/// A request's body.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// Held in memory (nothing when empty): can be sent again.
    Held(Bytes),
    /// Comes from the client as it is sent on: can be sent once.
    Stream(Incoming, Arc<Progress>),
}

/// When a body last moved.
#[derive(Debug)]
pub(crate) struct Progress {
    since: Instant,
    moved_ms: AtomicU64,
}

impl Progress {
    pub(crate) fn begin() -> Arc<Self> {
        Arc::new(Self { since: Instant::now(), moved_ms: AtomicU64::new(0) })
    }

    pub(crate) fn moved(&self) {
        self.moved_ms.store(self.since.elapsed().as_millis() as u64, Relaxed);
    }

    pub(crate) fn last_moved(&self) -> Instant {
        self.since + Duration::from_millis(self.moved_ms.load(Relaxed))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Held(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Held(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(body, progress) => {
                let polled = Pin::new(body).poll_frame(cx);
                if polled.is_ready() {
                    progress.moved();
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Held(bytes) => bytes.is_empty(),
            Self::Stream(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Held(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body, _) => body.size_hint(),
        }
    }
}

/// A response's body.
pub(crate) enum ReplyBody {
    /// The sidecar's own.
    Own(Bytes),
    /// An application's, with what has to happen when it has been carried.
    Carried(Incoming, Option<Carried>),
}

/// What is held while a response is on its way.
pub(crate) struct Carried {
    /// The connection it comes by; goes back to its pool when the body has been read to its end.
    pub(crate) sender: Sender,
    /// Where that pool is.
    pub(crate) home: Home,
    /// The attempt's span, and that of the whole call when there was more than one attempt.
    pub(crate) spans: [Option<OpenSpan>; 2],
}

/// Whose pool a connection belongs to.
pub(crate) enum Home {
    /// An instance's, at the caller's side: the request is in flight there.
    Seat(InFlight<Pool>),
    /// A tunnel's, at the instance's side.
    Tunnel(Arc<Pool>),
}

impl Carried {
    /// The body came to its end.
    fn complete(self) {
        match &self.home {
            Home::Seat(in_flight) => in_flight.seat().extra.put(self.sender),
            Home::Tunnel(pool) => pool.put(self.sender),
        }
        for span in self.spans.into_iter().flatten() {
            span.end();
        }
    }

    /// The body broke off: the connection is of no use any more.
    fn break_off(self, error: &hyper::Error) {
        for span in self.spans.into_iter().flatten() {
            span.fail(&format!("response broke off: {error}"));
        }
    }
}

impl ReplyBody {
    pub(crate) fn own(bytes: Bytes) -> Self {
        Self::Own(bytes)
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Own(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Own(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Carried(body, carried) => {
                let polled = Pin::new(&mut *body).poll_frame(cx);
                match &polled {
                    Poll::Ready(Some(Err(error))) => {
                        if let Some(carried) = carried.take() {
                            carried.break_off(error);
                        }
                    }
                    // A body of known length is not asked again after its last byte.
                    Poll::Ready(_) if body.is_end_stream() => {
                        if let Some(carried) = carried.take() {
                            carried.complete();
                        }
                    }
                    Poll::Ready(None) => {
                        if let Some(carried) = carried.take() {
                            carried.complete();
                        }
                    }
                    _ => {}
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_empty(),
            Self::Carried(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Carried(body, _) => body.size_hint(),
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        // A response without a body is never polled. Otherwise the client went away: dropping the sender closes the
        // connection, dropping the spans keeps them as cancelled.
        if let Self::Carried(body, carried) = self
            && body.is_end_stream()
            && let Some(carried) = carried.take()
        {
            carried.complete();
        }
    }
}
