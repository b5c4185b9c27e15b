//! The connection a request comes by, and the request while it has not wholly gone on.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use starling_core::access::Called;
use starling_core::observe::SpanId;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::h1::buffer::LARGE;
use crate::h1::forwarded::Peer;
use crate::h1::framing::BadBody;
use crate::h1::request::{Request, UNBOUNDED_MS};
use crate::h1::{BodyReader, Buffer, Framing, fields};
use crate::mesh::Stream;
use crate::reason::{Reason, Refused};

/// The word a client waits for that does not want to send its body in vain.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The connection a request comes by.
pub(crate) struct Client<S> {
    pub(crate) io: S,
    /// Where it connects from, if somebody is to be told.
    pub(crate) peer: Option<Peer>,
    /// What has come by it.
    pub(crate) buffer: Buffer,
    /// What is to go by it.
    pub(crate) out: Vec<u8>,
    pub(crate) alarm: Alarm,
}

impl<S: Stream> Client<S> {
    pub(crate) fn new(io: S) -> Self {
        Self { io, peer: None, buffer: Buffer::default(), out: Vec::new(), alarm: Alarm::new() }
    }

    /// Whether the client is gone, which is seen by its bytes ending. What it sends meanwhile is the next request and
    /// waits; beyond a bound, nothing more is looked at.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.buffer.data().len() < LARGE {
            match ready!(self.buffer.poll_fill(&mut self.io, cx, LARGE)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Waits for this, but no longer than the client is there.
    ///
    /// # Errors
    /// When it has gone: nobody is left to be told.
    pub(crate) async fn while_there<F: Future>(&mut self, wait: F) -> Result<F::Output, Refused> {
        let mut wait = pin!(wait);
        poll_fn(|cx| match wait.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Ok(ended)),
            Poll::Pending => self.poll_gone(cx).map(|()| Err(Refused::new(Reason::Gone, "the client is gone"))),
        })
        .await
    }

    /// Sends what is to go.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.io.write_all(&self.out).await?;
        self.out.clear();
        self.io.flush().await
    }
}

/// One timer per connection, moved as seldom as possible: setting it later costs nothing until it rings, and then it is
/// set anew. So a request that is answered in time touches no timer at all.
pub(crate) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    due: Instant,
}

impl Alarm {
    fn new() -> Self {
        let due = Instant::now() + Duration::from_secs(3_600);
        Self { sleep: Box::pin(tokio::time::sleep_until(due)), due }
    }

    /// It shall ring then.
    pub(crate) fn set(&mut self, due: Instant) {
        self.due = due;
        if due < self.sleep.deadline() {
            self.sleep.as_mut().reset(due);
        }
    }

    /// Whether it rings.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if Instant::now() >= self.due {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.due);
        }
    }
}

/// A request that may have to be sent more than once.
pub(crate) struct Outgoing {
    pub(crate) request: Request,
    head: Vec<u8>,
    body: Body,
    /// How far it has been sent over the connection it is being sent by.
    sent: usize,
}

enum Body {
    /// In memory (or there is none): can be sent again.
    Held(Vec<u8>),
    /// Passed on as it comes: can be sent once.
    Streamed {
        reader: BodyReader,
        /// Bytes at the client's buffer's beginning that belong to it and have not gone on.
        ready: usize,
        touched: bool,
        moved: Instant,
    },
}

/// Why a request could not be sent on.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// The client's body is wrong or ended too early.
    Client(String),
    /// The instance does not take it.
    Instance(io::Error),
}

impl Outgoing {
    /// Takes the request over, whose head is written in `head`. A body of known, small length is read now, so that it
    /// can be repeated.
    pub(crate) async fn hold<S: Stream>(
        request: Request,
        head: Vec<u8>,
        client: &mut Client<S>,
        max_held: usize,
        deadline: Instant,
    ) -> Result<Self, Refused> {
        let body = match request.framing {
            Framing::Empty | Framing::UntilClose => Body::Held(Vec::new()),
            Framing::Length(length) if length <= max_held as u64 => {
                Body::Held(read_whole(client, length as usize, request.expects_continue, deadline).await?)
            }
            framing => {
                Body::Streamed { reader: BodyReader::new(framing), ready: 0, touched: false, moved: Instant::now() }
            }
        };
        Ok(Self { request, head, body, sent: 0 })
    }

    /// One that is whole here from the beginning.
    pub(crate) fn whole(request: Request, head: Vec<u8>, body: Vec<u8>) -> Self {
        Self { request, head, body: Body::Held(body), sent: 0 }
    }

    /// Its head, as it is sent on.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    /// The same once more, with another field in its head; none where its body is not held.
    pub(crate) fn copy(&self, name: &[u8], value: &[u8]) -> Option<Self> {
        let Body::Held(body) = &self.body else { return None };
        let mut head = self.head.clone();
        head.truncate(head.len().saturating_sub(2));
        fields::write(&mut head, name, value);
        head.extend_from_slice(b"\r\n");
        Some(Self { request: self.request.clone(), head, body: Body::Held(body.clone()), sent: 0 })
    }

    /// Its head goes back to be used again.
    pub(crate) fn into_head(self) -> Vec<u8> {
        self.head
    }

    /// The path it asks for.
    pub(crate) fn path(&self) -> &str {
        self.request.path(&self.head)
    }

    /// What it asks for, as rules of access see it.
    pub(crate) fn called(&self) -> Called<'_> {
        Called::Http { method: self.request.method.as_str(), path: self.path() }
    }

    /// Whether it is still whole here: its body held in memory, or not touched yet.
    pub(crate) fn is_whole(&self) -> bool {
        !matches!(self.body, Body::Streamed { touched: true, .. })
    }

    /// Whether it may be sent again although the application may have seen it.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.is_whole() && is_idempotent(&self.request.method) && !self.request.upgrades
    }

    /// Another one that says the same, if its body is held.
    pub(crate) fn twin(&self) -> Option<Self> {
        let Body::Held(body) = &self.body else { return None };
        let (request, head) = (self.request.clone(), self.head.clone());
        Some(Self { request, head, body: Body::Held(body.clone()), sent: 0 })
    }

    /// A twin of it was sent whole, and has been answered.
    pub(crate) fn was_sent_as(&mut self, twin: &Self) {
        self.sent = if twin.is_sent() { self.whole_length() } else { 0 };
    }

    /// Nothing more of it is to be sent: another has been answered in its place.
    pub(crate) fn need_not_be_sent(&mut self) {
        self.sent = self.whole_length();
    }

    fn whole_length(&self) -> usize {
        self.head.len() + if let Body::Held(held) = &self.body { held.len() } else { 0 }
    }

    /// Its body, if it is held in memory.
    pub(crate) fn held(&self) -> Option<&[u8]> {
        if let Body::Held(body) = &self.body { Some(body) } else { None }
    }

    /// Whether its body is held in memory.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.body, Body::Held(_))
    }

    /// When a body that is passed on as it comes last moved.
    pub(crate) fn last_moved(&self) -> Option<Instant> {
        match &self.body {
            Body::Streamed { moved, .. } => Some(*moved),
            Body::Held(_) => None,
        }
    }

    /// Whether all of the body has been taken from the client.
    pub(crate) fn is_taken(&self) -> bool {
        match &self.body {
            Body::Held(_) => true,
            Body::Streamed { reader, ready, .. } => reader.is_done() && *ready == 0,
        }
    }

    /// Whether all of it has gone on over the connection it is being sent by.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent == self.whole_length() && self.is_taken()
    }

    /// The client has its answer and waits for no word before its body any more.
    pub(crate) fn expect_no_word(&mut self) {
        self.request.expects_continue = false;
    }

    /// Begins to send it (again), as caused by this span, to somebody who has so long.
    pub(crate) fn begin(&mut self, span: SpanId, left: Duration, attempt: u32) {
        // A body that is passed on may take longer than any time that is known before.
        let is_bounded = self.is_held() || self.request.left.is_some();
        let left = if is_bounded { left } else { Duration::from_millis(UNBOUNDED_MS) };
        self.request.set_parent(&mut self.head, span);
        self.request.set_attempt(&mut self.head, left, attempt);
        self.sent = 0;
    }

    /// Whether nothing of it has been sent since it began.
    pub(crate) fn is_unsent(&self) -> bool {
        self.sent == 0
    }

    /// Sends what can be sent now; ready when all of it has been.
    pub(crate) fn poll_send<S: Stream, W: AsyncWrite + Unpin>(
        &mut self,
        client: &mut Client<S>,
        to: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Unsent>> {
        loop {
            let held: &[u8] = if let Body::Held(held) = &self.body { held } else { &[] };
            if self.sent < self.head.len() + held.len() {
                let head = self.head.get(self.sent..).unwrap_or_default();
                let rest = &held[self.sent.saturating_sub(self.head.len())..];
                let written = if head.is_empty() {
                    ready!(Pin::new(&mut *to).poll_write(cx, rest))
                } else if rest.is_empty() {
                    ready!(Pin::new(&mut *to).poll_write(cx, head))
                } else {
                    ready!(Pin::new(&mut *to).poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(rest)]))
                };
                self.sent += some(written).map_err(Unsent::Instance)?;
                continue;
            }
            let expects = self.request.expects_continue;
            let Body::Streamed { reader, ready, touched, moved } = &mut self.body else { return Poll::Ready(Ok(())) };
            if *ready == 0 {
                if reader.is_done() {
                    return Poll::Ready(Ok(()));
                }
                if client.buffer.is_empty() && !*touched && expects {
                    // Rarely more than a write that fits at once; what does not is as good as a client that is gone.
                    ready!(Pin::new(&mut client.io).poll_write(cx, CONTINUE)).map_err(gone)?;
                }
                *touched = true;
                *ready = reader.take(client.buffer.data()).map_err(broken)?;
                if *ready == 0 && !reader.is_done() {
                    let read = ready!(client.buffer.poll_fill(&mut client.io, cx, LARGE)).map_err(gone)?;
                    *moved = Instant::now();
                    if read == 0 {
                        return Poll::Ready(Err(Unsent::Client("the request's body broke off: it ended early".into())));
                    }
                    continue;
                }
            }
            while *ready > 0 {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &client.buffer.data()[..*ready]));
                let written = some(written).map_err(Unsent::Instance)?;
                client.buffer.consume(written);
                *ready -= written;
                *moved = Instant::now();
            }
        }
    }
}

/// A write of nothing is a connection that takes nothing more.
pub(crate) fn some(written: io::Result<usize>) -> io::Result<usize> {
    written.and_then(|n| if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) })
}

fn gone(error: io::Error) -> Unsent {
    Unsent::Client(format!("the request's body broke off: {error}"))
}

fn broken(error: BadBody) -> Unsent {
    Unsent::Client(format!("the request's body broke off: {error}"))
}

async fn read_whole<S: Stream>(
    client: &mut Client<S>,
    length: usize,
    expects: bool,
    deadline: Instant,
) -> Result<Vec<u8>, Refused> {
    let mut held = Vec::with_capacity(length);
    if expects && client.buffer.is_empty() && length > 0 {
        client.io.write_all(CONTINUE).await.map_err(|_| Refused::new(Reason::Gone, "the client is gone"))?;
    }
    client.alarm.set(deadline);
    loop {
        let n = client.buffer.data().len().min(length - held.len());
        held.extend_from_slice(&client.buffer.data()[..n]);
        client.buffer.consume(n);
        if held.len() == length {
            return Ok(held);
        }
        let filled = poll_fn(|cx| {
            if let Poll::Ready(filled) = client.buffer.poll_fill(&mut client.io, cx, LARGE) {
                return Poll::Ready(Some(filled));
            }
            client.alarm.poll(cx).map(|()| None)
        });
        let why = match filled.await {
            Some(Ok(1..)) => continue,
            Some(Ok(0)) => "it ended early".into(),
            Some(Err(error)) => error.to_string(),
            None => return Err(Refused::new(Reason::SlowRequest, "the request's body did not come in time")),
        };
        return Err(Refused::new(Reason::BadRequest, format!("the request's body broke off: {why}")));
    }
}

/// Whether doing it twice is as good as once (RFC 9110, section 9.2.2).
fn is_idempotent(method: &http::Method) -> bool {
    use http::Method;
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE].contains(method)
}

/// A client that asks nothing more and is never gone; what it is answered goes nowhere. For attempts and copies of a
/// request beside the one its own client waits for.
pub(crate) struct Silent;

impl AsyncRead for Silent {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Silent {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
