//! A response on its way from the instance to the client, while what is left of the request goes the other way.

use std::future::poll_fn;
use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use crate::client::{Client, Outgoing, Unsent, some};
use crate::clock;
use crate::guards::Pass;
use crate::h1::buffer::LARGE;
use crate::h1::fields::Written;
use crate::h1::framing::{BadBody, Span};
use crate::h1::response::{Delivery, Response};
use crate::h1::{BodyReader, Framing};
use crate::lesson::Lesson;
use crate::mesh::Stream;
use crate::metrics::Traffic;
use crate::pool::{Pool, Upstream};
use crate::stack::Carrier;
use crate::tcp;
use crate::tcp::copy::{Copying, Ended};
use crate::trace::OpenSpan;
use starling_core::balance::{FAILURE_PENALTY, InFlight, Outcome};

/// A response whose head has come and whose body is to follow.
pub(crate) struct Arrived {
    pub(crate) response: Response,
    /// When the head had come.
    pub(crate) at: Instant,
    pub(crate) upstream: Upstream,
    pub(crate) home: Home,
    /// What its instance's breaker and balance learn, where that is known at its end.
    pub(crate) lesson: Option<Box<Lesson>>,
    /// The attempt's span, and that of the whole call when there was more than one attempt.
    pub(crate) spans: [Option<OpenSpan>; 2],
    /// What it holds of its policy's guards until its body has ended.
    pub(crate) pass: Option<Box<Pass>>,
}

/// Whose pool a connection belongs to.
pub(crate) enum Home {
    /// An instance's, at the caller's side: the request is in flight there.
    Seat(InFlight<Pool>),
    /// A tunnel's, at the instance's side.
    Tunnel(Arc<Pool>),
}

impl Home {
    /// All of a response has come.
    pub(crate) fn carried(&self) {
        if let Self::Seat(in_flight) = self {
            in_flight.seat().breaker.carried();
        }
    }

    /// A response that began well has broken off: that counts against the instance as if it had been none.
    pub(crate) fn broke_off(&self, carrier: &Carrier) {
        let Self::Seat(in_flight) = self else { return };
        let (seat, now) = (in_flight.seat(), carrier.clock.now());
        seat.load.observe(now, Duration::ZERO, Outcome::Unwelcome(FAILURE_PENALTY));
        if seat.breaker.broke_off(now, clock::random()) {
            carrier.ejected.notify_one();
            tracing::warn!("a breaker opened: the answers of an instance break off");
        }
    }

    /// The connection is idle now.
    pub(crate) fn put(&self, upstream: Upstream, now: Instant) {
        match self {
            Self::Seat(in_flight) => in_flight.seat().extra.put(upstream, now),
            Self::Tunnel(pool) => pool.put(upstream, now),
        }
    }
}

/// The most bytes of a body written into chunks at once.
const CHUNK: usize = LARGE;

/// Up to so many bytes of a body are copied behind the head: one piece costs a connection less than two, a tunnel
/// above all, which takes only one piece at a time.
const SMALL: usize = 1024;

/// Why a response did not come whole.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The instance broke off, or its body made no sense.
    Instance(String),
    /// The client is gone, or broke off its own request.
    Client,
}

/// Carries a response's body, after whatever waits at the client to be sent.
pub(crate) struct Relay {
    reader: BodyReader,
    delivery: Delivery,
    /// How much of what waits at the client has been written.
    written: usize,
    /// How many bytes at the beginning of the instance's buffer go on as they are.
    raw: usize,
    /// The last chunk is still to be written.
    closing: bool,
    /// The request is still being sent.
    sending: bool,
    /// The trailers so far, behind the last chunk's line, where they say how the call went.
    trailers: Option<Vec<u8>>,
    /// How long the instance may say nothing; `None` for ever.
    patience: Option<Duration>,
    /// Whether it is being waited for since the last byte.
    waits: bool,
}

impl Relay {
    pub(crate) fn new(
        response: &Response,
        delivery: Delivery,
        outgoing: &Outgoing,
        patience: Option<Duration>,
    ) -> Self {
        Self {
            reader: BodyReader::new(response.framing),
            delivery,
            written: 0,
            raw: 0,
            closing: delivery == Delivery::InChunks,
            sending: !outgoing.is_sent(),
            trailers: response.is_judged_later().then(|| b"0\r\n".to_vec()),
            patience,
            waits: false,
        }
    }

    /// What has come behind the body, if anybody wanted to know.
    pub(crate) fn trailers(&self) -> Written<'_> {
        Written(self.trailers.as_deref().unwrap_or_default())
    }

    /// Returns when all of the response has come from the instance. An ordinary one has come with its head, and nothing
    /// of it has been sent yet: so whoever sees it finds its trace.
    pub(crate) async fn receive<S: Stream>(
        &mut self,
        client: &mut Client<S>,
        upstream: &mut Upstream,
        outgoing: &mut Outgoing,
    ) -> Result<(), Broken> {
        poll_fn(|cx| self.poll(client, upstream, outgoing, false, cx)).await
    }

    /// Returns when all of it has been sent.
    pub(crate) async fn finish<S: Stream>(
        &mut self,
        client: &mut Client<S>,
        upstream: &mut Upstream,
        outgoing: &mut Outgoing,
    ) -> Result<(), Broken> {
        poll_fn(|cx| self.poll(client, upstream, outgoing, true, cx)).await
    }

    fn poll<S: Stream>(
        &mut self,
        client: &mut Client<S>,
        upstream: &mut Upstream,
        outgoing: &mut Outgoing,
        to_the_end: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        if let Poll::Ready(ended) = self.poll_down(client, upstream, to_the_end, cx) {
            return Poll::Ready(ended);
        }
        if self.sending {
            match outgoing.poll_send(client, &mut upstream.pipe, cx) {
                Poll::Pending => {}
                Poll::Ready(Err(Unsent::Client(_))) => return Poll::Ready(Err(Broken::Client)),
                // It answers without having heard all of it, as it may.
                Poll::Ready(_) => self.sending = false,
            }
        }
        if !self.sending && client.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Broken::Client));
        }
        self.poll_silence(client, outgoing, cx)
    }

    /// Ready when the instance has been waited for too long.
    fn poll_silence<S>(
        &self,
        client: &mut Client<S>,
        outgoing: &Outgoing,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        let Some(patience) = self.patience.filter(|_| self.waits) else { return Poll::Pending };
        loop {
            ready!(client.alarm.poll(cx));
            // An answer that comes as the request does may be silent while that is sent.
            let moved = outgoing.last_moved().map(|moved| moved + patience);
            let Some(later) = moved.filter(|later| *later > Instant::now()) else {
                let why = format!("nothing of it came within {} ms", patience.as_millis());
                return Poll::Ready(Err(Broken::Instance(why)));
            };
            client.alarm.set(later);
        }
    }

    fn poll_down<S: Stream>(
        &mut self,
        client: &mut Client<S>,
        upstream: &mut Upstream,
        to_the_end: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if let Err(why) = self.gather(client, upstream) {
                return Poll::Ready(Err(Broken::Instance(why)));
            }
            if self.reader.is_done() && !to_the_end {
                return Poll::Ready(Ok(()));
            }
            if self.written < client.out.len() || self.raw > 0 {
                if ready!(self.poll_write(client, upstream, cx)).is_err() {
                    return Poll::Ready(Err(Broken::Client));
                }
                continue;
            }
            if self.reader.is_done() {
                return Poll::Ready(Ok(()));
            }
            let filled = upstream.buffer.poll_fill(&mut upstream.pipe, cx, LARGE);
            if filled.is_pending()
                && !std::mem::replace(&mut self.waits, true)
                && let Some(patience) = self.patience
            {
                client.alarm.set(Instant::now() + patience);
            }
            let filled = ready!(filled);
            self.waits = false;
            match filled {
                Ok(1..) => {}
                Ok(0) if self.reader.may_end_here() => self.reader = BodyReader::Done,
                Ok(0) => return Poll::Ready(Err(Broken::Instance("it ended early".into()))),
                Err(error) => return Poll::Ready(Err(Broken::Instance(error.to_string()))),
            }
        }
    }

    /// Makes what is in the buffer ready to be written.
    fn gather<S>(&mut self, client: &mut Client<S>, upstream: &mut Upstream) -> Result<(), String> {
        if self.written == client.out.len() && self.written > 0 {
            client.out.clear();
            self.written = 0;
        }
        match self.delivery {
            Delivery::AsItIs if self.raw == 0 => {
                let n = self.take(upstream.buffer.data()).map_err(|error| error.to_string())?;
                if n <= SMALL && !client.out.is_empty() {
                    client.out.extend_from_slice(&upstream.buffer.data()[..n]);
                    upstream.buffer.consume(n);
                } else {
                    self.raw = n;
                }
            }
            Delivery::AsItIs => {}
            Delivery::InChunks => {
                let n = upstream.buffer.data().len().min(CHUNK);
                if n > 0 && client.out.len() < CHUNK {
                    // Writing into memory does not fail.
                    let _ = write!(client.out, "{n:x}\r\n");
                    client.out.extend_from_slice(&upstream.buffer.data()[..n]);
                    client.out.extend_from_slice(b"\r\n");
                    upstream.buffer.consume(n);
                }
                if self.reader.is_done() && std::mem::take(&mut self.closing) {
                    client.out.extend_from_slice(b"0\r\n\r\n");
                }
            }
            Delivery::Unchunked => {
                while client.out.len() < CHUNK {
                    let data = upstream.buffer.data();
                    match self.reader.next(data).map_err(|error| error.to_string())? {
                        Span::Data(n) => {
                            client.out.extend_from_slice(&data[..n]);
                            upstream.buffer.consume(n);
                        }
                        Span::Frame(n) => upstream.buffer.consume(n),
                        Span::More | Span::End => break,
                    }
                }
            }
        }
        Ok(())
    }

    /// How much of `data` belongs to the body; trailers somebody waits for are kept.
    fn take(&mut self, data: &[u8]) -> Result<usize, BadBody> {
        let Some(trailers) = &mut self.trailers else { return self.reader.take(data) };
        let mut taken = 0;
        loop {
            let in_trailers = self.reader.is_in_trailers();
            match self.reader.next(&data[taken..])? {
                Span::Data(n) => taken += n,
                Span::Frame(n) => {
                    if in_trailers {
                        trailers.extend_from_slice(&data[taken..taken + n]);
                    }
                    taken += n;
                }
                Span::More | Span::End => return Ok(taken),
            }
        }
    }

    fn poll_write<S: Stream>(
        &mut self,
        client: &mut Client<S>,
        upstream: &mut Upstream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let (own, raw) = (&client.out[self.written..], &upstream.buffer.data()[..self.raw]);
        let io = Pin::new(&mut client.io);
        let written = if raw.is_empty() {
            ready!(io.poll_write(cx, own))
        } else if own.is_empty() {
            ready!(io.poll_write(cx, raw))
        } else {
            ready!(io.poll_write_vectored(cx, &[IoSlice::new(own), IoSlice::new(raw)]))
        };
        let written = some(written)?;
        let of_own = written.min(own.len());
        self.written += of_own;
        self.raw -= written - of_own;
        upstream.buffer.consume(written - of_own);
        Poll::Ready(Ok(()))
    }
}

/// After a switch of protocols: bytes both ways until both ends have ended.
pub(crate) async fn splice<S: Stream>(
    client: &mut Client<S>,
    upstream: &mut Upstream,
    patience: Option<Duration>,
) -> Ended {
    if let Err(error) = client.flush().await {
        return Ended::Client(error);
    }
    let (sent, received) = (std::mem::take(&mut client.buffer), std::mem::take(&mut upstream.buffer));
    let traffic = Traffic::default();
    let sides = ((&mut client.io, sent), (&mut upstream.pipe, received));
    let ended = Copying::new(sides.0, sides.1, &mut client.alarm, patience, &traffic).until_ended().await;
    if !matches!(ended, Ended::Whole) {
        tcp::copy::cut_off(&mut client.io);
        upstream.pipe.cut_off();
    }
    ended
}

/// Whether the instance's connection can carry another request after this one.
pub(crate) fn is_reusable(response: &Response, outgoing: &Outgoing, upstream: &Upstream) -> bool {
    response.keep_alive && response.framing != Framing::UntilClose && outgoing.is_sent() && upstream.buffer.is_empty()
}
