//! The first request with a key, carried by a task of its own: it ends with its answer, not with its client.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use starling_core::guard::idempotency::Ended;
use starling_core::observe::SpanId;
use starling_core::policy::Timeouts;
use starling_core::registry::{Address, Protocol};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{At, Kept, Lent, Right};
use crate::client::{Client, Outgoing, Silent};
use crate::exchange::{Attempt, Failure, Way};
use crate::h1::framing::{FRAMING_ROOM, Span};
use crate::h1::response::{Asked, Response};
use crate::h1::{BodyReader, Framing, fields};
use crate::pool::Upstream;
use crate::reason::Reason;
use crate::stack::Carrier;

/// How it ended, for the client that still waits.
pub(super) enum Outcome {
    /// With this answer, kept or not.
    Whole(Arc<Kept>),
    /// With an answer that is too large to be kept: it goes on from where it comes.
    Large(Box<Large>),
    Failed(Failure),
}

/// An answer whose body has not been touched.
pub(super) struct Large {
    response: Response,
    upstream: Upstream,
    head: Vec<u8>,
}

impl Large {
    /// Puts its head before its client.
    pub(super) fn put<S>(self, client: &mut Client<S>, asked: &Asked) -> (Response, Upstream) {
        client.out = self.head;
        if !asked.http_10 && matches!(self.response.framing, Framing::Chunked | Framing::UntilClose) {
            fields::write(&mut client.out, b"transfer-encoding", b"chunked");
        }
        (self.response, self.upstream)
    }
}

/// A first request on its way.
pub(super) struct Run {
    carrier: Arc<Carrier>,
    /// A drain waits for it, as for every request in flight.
    _alive: mpsc::Sender<Infallible>,
    right: Right,
    outgoing: Outgoing,
    address: Address,
    pool: Lent,
    protocol: Protocol,
    span: SpanId,
    timeouts: Timeouts,
    number: u32,
}

impl Run {
    /// All it needs to go on alone; none if the node is stopping.
    pub(super) fn new(at: &At<'_>, attempt: &Attempt<'_>, right: Right, outgoing: &Outgoing) -> Option<Self> {
        Some(Self {
            carrier: attempt.carrier.own.upgrade()?,
            _alive: attempt.carrier.alive.upgrade()?,
            right,
            outgoing: outgoing.twin()?,
            address: at.address.clone(),
            pool: at.pool.clone(),
            protocol: attempt.protocol,
            span: attempt.span,
            timeouts: attempt.timeouts,
            number: attempt.number,
        })
    }

    /// Lets it go; what becomes of it.
    pub(super) fn start(self) -> impl Future<Output = Result<Outcome, oneshot::error::RecvError>> {
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            // Whoever waited may have gone; the answer is kept all the same.
            let _ = tell.send(self.run().await);
        });
        told
    }

    async fn run(self) -> Outcome {
        let Self { carrier, _alive, right, mut outgoing, address, pool, protocol, span, timeouts, number } = self;
        // Not as long as its caller waits: what the application has begun, it will end.
        let lost_after = Duration::from_millis(right.settings.lost_after_ms);
        let began = Instant::now();
        let deadline = began + lost_after;
        // The time limits of one try are the caller's, too.
        let timeouts = Timeouts { request_ms: right.settings.lost_after_ms, ..timeouts };
        let attempt = Attempt {
            carrier: &carrier,
            pool: pool.pool(),
            way: Way::Address(&address),
            protocol,
            span,
            began,
            deadline,
            timeouts,
            number,
        };
        let mut client = Client::new(Silent);
        // As for HTTP/1.0: the head says nothing of how the body comes, and the body is kept without chunks.
        let asked = Asked { head_only: false, upgrades: false, http_10: true };
        let (mut response, mut upstream) = match attempt.exchange(&mut client, &mut outgoing, &asked).await {
            Ok(answered) => answered,
            Err(failure) => return Outcome::Failed(failure),
        };
        let most = right.settings.max_answer_bytes;
        let is_final = right.settings.is_final(response.verdict().as_u16());
        let gathered = tokio::time::timeout_at(deadline, gather(&response, &mut upstream, most)).await;
        match gathered {
            Ok(Ok(Some((body, length)))) => {
                upstream.buffer.consume(length);
                if response.keep_alive
                    && response.framing != Framing::UntilClose
                    && outgoing.is_sent()
                    && upstream.buffer.is_empty()
                {
                    pool.pool().put(upstream, Instant::now());
                }
                let mut head = client.out;
                if matches!(response.framing, Framing::Chunked | Framing::UntilClose) {
                    fields::write_number(&mut head, b"content-length", body.len() as u64);
                }
                let kept = Arc::new(Kept { status: response.status, head, body });
                if is_final {
                    let size = kept.size();
                    right.end(Ended::Answered(kept.clone(), size));
                }
                Outcome::Whole(kept)
            }
            Ok(Ok(None)) => {
                if is_final {
                    right.end(Ended::TooLarge);
                }
                // What answers before it has heard all is not asked again by this connection.
                response.keep_alive &= outgoing.is_sent();
                Outcome::Large(Box::new(Large { response, upstream, head: client.out }))
            }
            Ok(Err(failure)) => Outcome::Failed(failure),
            Err(_) => Outcome::Failed(Failure::new(Reason::TimedOut, "the answer did not end in time")),
        }
    }
}

/// The body of an answer and how many bytes it takes up in the buffer, where it stays; `None` when it has more than `most`.
async fn gather(response: &Response, upstream: &mut Upstream, most: u64) -> Result<Option<(Vec<u8>, usize)>, Failure> {
    let broken = |why: String| Failure::new(Reason::Reset, format!("the answer broke off: {why}"));
    if matches!(response.framing, Framing::Length(length) if length > most) {
        return Ok(None);
    }
    let room = most as usize + FRAMING_ROOM;
    let (mut reader, mut read, mut body) = (BodyReader::new(response.framing), 0, Vec::new());
    loop {
        let data = &upstream.buffer.data()[read..];
        match reader.next(data).map_err(|error| broken(error.to_string()))? {
            Span::End => return Ok(Some((body, read))),
            Span::Frame(n) => read += n,
            Span::Data(n) if n > 0 => {
                if body.len() + n > most as usize {
                    return Ok(None);
                }
                body.extend_from_slice(&data[..n]);
                read += n;
            }
            Span::Data(_) | Span::More => {
                if upstream.buffer.data().len() >= room {
                    return Ok(None);
                }
                let (buffer, pipe) = (&mut upstream.buffer, &mut upstream.pipe);
                match poll_fn(|cx| -> Poll<_> { buffer.poll_fill(pipe, cx, room) }).await {
                    Ok(1..) => {}
                    Ok(0) if reader.may_end_here() => return Ok(Some((body, read))),
                    Ok(0) => return Err(broken("it ended early".into())),
                    Err(error) => return Err(broken(error.to_string())),
                }
            }
        }
    }
}
