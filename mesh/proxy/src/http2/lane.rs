//! A stream as if it were an HTTP/1.1 connection, and after it the next one, as if the connection had been kept alive.
//!
//! So a request that comes by HTTP/2 finds the task, the buffers and the timer of the one before, and the rest of the
//! sidecar knows one kind of connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::bodies::{Reader, Writer, malformed};
use super::heads::{self, Body, Malformed, Pieces, Way};
use crate::h1::Framing;

/// A request and the way to answer it.
pub(super) type Arrival = (Request<RecvStream>, SendResponse<Bytes>);

/// Where one connection's streams are dealt to its lanes.
#[derive(Default)]
pub(super) struct Desk {
    /// Lanes that wait, the one that worked last on top: its memory is warm.
    free: Mutex<Vec<Arc<Seat>>>,
    lanes: AtomicUsize,
    closed: AtomicBool,
}

/// Where a lane waits for its next stream.
#[derive(Default)]
struct Seat(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: Option<Arrival>,
    waker: Option<Waker>,
    /// Whether it is among the free ones.
    listed: bool,
    /// Nobody sits here any more.
    left: bool,
}

impl Desk {
    /// Gives a stream to a free lane; or the lane for it, to be run, when there is none.
    pub(super) fn deal(self: &Arc<Self>, arrival: Arrival, max_headers: usize) -> Option<Lane> {
        loop {
            let Some(seat) = lock(&self.free).pop() else { break };
            let mut waiting = lock(&seat.0);
            waiting.listed = false;
            if waiting.left {
                continue;
            }
            waiting.next = Some(arrival);
            let waker = waiting.waker.take();
            drop(waiting);
            if let Some(waker) = waker {
                waker.wake();
            }
            return None;
        }
        self.lanes.fetch_add(1, Relaxed);
        let seat = Arc::new(Seat(Mutex::new(Waiting { next: Some(arrival), ..Waiting::default() })));
        let (reader, out) = (Reader::default(), Out::Idle);
        Some(Lane { desk: self.clone(), seat, reader, out, max_headers, shut: false, way: None, grpc: false })
    }

    /// How many lanes carry a stream.
    pub(super) fn busy(&self) -> usize {
        self.lanes.load(Relaxed).saturating_sub(lock(&self.free).len())
    }

    /// No more streams will come.
    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
        for seat in lock(&self.free).drain(..) {
            if let Some(waker) = lock(&seat.0).waker.take() {
                waker.wake();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One stream after the other, as an HTTP/1.1 connection.
pub(super) struct Lane {
    desk: Arc<Desk>,
    seat: Arc<Seat>,
    reader: Reader,
    out: Out,
    max_headers: usize,
    /// The sidecar wants nothing more of it.
    shut: bool,
    /// What its stream asks to become, or has become.
    way: Option<Way>,
    grpc: bool,
}

/// How far the answer has come.
enum Out {
    /// No stream is here.
    Idle,
    /// Its head is awaited.
    Head {
        respond: SendResponse<Bytes>,
        head_only: bool,
        pieces: Pieces,
    },
    Body(Writer),
    Done,
}

impl Lane {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arrival>> {
        let mut waiting = lock(&self.seat.0);
        if let Some(next) = waiting.next.take() {
            return Poll::Ready(Some(next));
        }
        if self.desk.closed.load(Relaxed) {
            return Poll::Ready(None);
        }
        waiting.waker = Some(cx.waker().clone());
        let listed = std::mem::replace(&mut waiting.listed, true);
        drop(waiting);
        if !listed {
            lock(&self.desk.free).push(self.seat.clone());
        }
        Poll::Pending
    }

    fn begin(&mut self, (request, respond): Arrival, cx: &mut Context<'_>) -> Result<(), Malformed> {
        let (parts, source) = request.into_parts();
        self.grpc = heads::map_is_grpc(&parts.headers);
        // The connection has turned away those that ask for anything else.
        self.way = Way::asked(&parts.method, parts.extensions.get()).unwrap_or_default();
        self.out = Out::Head { respond, head_only: parts.method == Method::HEAD, pieces: Pieces::default() };
        if let Some(way) = self.way {
            // Bytes follow, as they come.
            let bytes = Some(Body::Length(0));
            return self.reader.begin(source, bytes, cx, |_, out| heads::write_way(way, &parts, out));
        }
        let body = match heads::stated_length(&parts.headers)? {
            _ if source.is_end_stream() => Some(bodiless(&parts.method)),
            stated => stated.map(Body::Length),
        };
        self.reader.begin(source, body, cx, |body, out| heads::write_request(&parts, body, out))
    }

    fn reset(&mut self, reason: Reason) {
        match &mut self.out {
            Out::Head { respond, .. } => respond.send_reset(reason),
            Out::Body(writer) => writer.stream().send_reset(reason),
            Out::Idle | Out::Done => {}
        }
        self.out = Out::Idle;
        self.reader.end();
    }

    fn write(&mut self, parts: [&[u8]; 2], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Out::Head { respond, head_only, pieces } = &mut self.out else {
            let Out::Body(writer) = &mut self.out else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
            let written = ready!(writer.poll_write(parts, cx))?;
            if writer.is_done() {
                self.out = Out::Done;
            }
            return Poll::Ready(Ok(written));
        };
        let (head_only, most) = (*head_only, self.max_headers);
        let taken = pieces.take(parts, |text| heads::read_response(text, head_only, most)).map_err(malformed)?;
        let (taken, Some((mut head, rest))) = taken else { return Poll::Ready(Ok(taken.0)) };
        let granted = self.way.is_some_and(|way| way.granted(&mut head.message));
        if granted {
            head.framing = Framing::UntilClose;
        } else if head.message.status().is_informational() {
            respond.send_informational(head.message).map_err(|error| super::broken(&error))?;
            return Poll::Ready(Ok(taken));
        }
        if !granted && self.way.take().is_some() {
            // What its client has sent already is no request.
            self.reader.end();
        }
        let ends = matches!(head.framing, Framing::Empty | Framing::Length(0));
        let stream = respond.send_response(head.message, ends).map_err(|error| super::broken(&error))?;
        if ends {
            self.out = Out::Done;
            return Poll::Ready(Ok(taken));
        }
        let mut writer = Writer::new(stream, head.framing, most);
        let written = writer.poll_write_behind(taken, rest, cx);
        self.out = if writer.is_done() { Out::Done } else { Out::Body(writer) };
        written
    }
}

/// A request whose head ends its stream: where a body is usual, its absence is said.
fn bodiless(method: &Method) -> Body {
    if matches!(*method, Method::POST | Method::PUT | Method::PATCH) { Body::Length(0) } else { Body::None }
}

impl AsyncRead for Lane {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.shut {
                return Poll::Ready(Ok(()));
            }
            if matches!(this.out, Out::Idle) {
                let Some(arrival) = ready!(this.poll_next(cx)) else { return Poll::Ready(Ok(())) };
                if let Err(why) = this.begin(arrival, cx) {
                    tracing::debug!(%why, "an application's request is malformed");
                    this.reset(Reason::PROTOCOL_ERROR);
                    continue;
                }
            }
            if !this.reader.is_done() {
                let before = into.filled().len();
                ready!(this.reader.poll_read(cx, into))?;
                if into.filled().len() > before {
                    return Poll::Ready(Ok(()));
                }
            }
            if this.way.is_some() {
                return Poll::Ready(Ok(())); // one end is at its end, the other may go on
            }
            // All of the request has been read: whoever asks for more waits for the client to go away, or for the next.
            let reset = match &mut this.out {
                Out::Head { respond, .. } => ready!(respond.poll_reset(cx)),
                Out::Body(writer) => ready!(writer.stream().poll_reset(cx)),
                Out::Idle | Out::Done => {
                    this.out = Out::Idle;
                    this.reader.end();
                    continue;
                }
            };
            return Poll::Ready(match reset {
                Ok(reason) => Err(io::Error::new(io::ErrorKind::ConnectionReset, reason.description())),
                Err(error) => Err(super::broken(&error)),
            });
        }
    }
}

impl AsyncWrite for Lane {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write([bytes, &[]], cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let part = |at: usize| parts.get(at).map_or(&[][..], |part| part);
        self.get_mut().write([part(0), part(1)], cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.out {
            Out::Body(writer) if this.way.is_some() => {
                let ended = writer.end();
                this.out = Out::Done;
                Poll::Ready(ended)
            }
            Out::Done if this.way.is_some() => Poll::Ready(Ok(())),
            _ => {
                this.shut = true;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut waiting = lock(&self.seat.0);
        waiting.left = true;
        if let Some((_, mut respond)) = waiting.next.take() {
            respond.send_reset(Reason::REFUSED_STREAM);
        }
        drop(waiting);
        self.desk.lanes.fetch_sub(1, Relaxed);
        // Where an answer has begun, the instance has broken it off: a cancelled client hears nothing of it.
        match &mut self.out {
            Out::Body(writer) if self.grpc => {
                // Nothing is to be done about a stream that takes it no more.
                let _ = writer.stream().send_trailers(broken_off());
            }
            Out::Body(writer) if self.way.is_some() => writer.stream().send_reset(Reason::CONNECT_ERROR),
            Out::Body(writer) => writer.stream().send_reset(Reason::INTERNAL_ERROR),
            _ => {}
        }
    }
}

/// What gRPC's clients are told of an answer that ended early: another try may go better.
fn broken_off() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from_static("14"));
    let message = HeaderValue::from_static("the instance broke off its answer");
    trailers.insert(HeaderName::from_static("grpc-message"), message);
    trailers
}
