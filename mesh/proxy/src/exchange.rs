//! One attempt: a connection, a request, the head of its response. Knows nothing of services or retries.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use starling_core::id::{InstanceKey, NodeId};
use starling_core::observe::SpanId;
use starling_core::policy::Timeouts;
use starling_core::registry::{Address, Protocol, Reach};
use starling_core::view::{InstanceView, MemberState};
use starling_net::TunnelRefusal;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::client::{Client, Outgoing, Unsent};
use crate::grpc;
use crate::h1::response::{Asked, Response};
use crate::http2::{self, Call};
use crate::mesh::Stream;
use crate::pool::{Pipe, Pool, Upstream};
use crate::reason::Reason;
use crate::stack::Carrier;

/// How often a waiting request looks whether the node it waits for is still there: far below the time membership needs
/// to notice a loss, and longer than nearly all requests take.
const LOSS_LOOKUP: Duration = Duration::from_millis(250);

/// How many shared connections one attempt may find at their end before the instance is taken to be at its own: a few may be
/// closing at once when it restarts.
const MAX_CLOSING_MET: usize = 4;

/// Why an attempt brought no response of the application.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) why: String,
    /// When asking that node again may help, if it has said so.
    pub(crate) asks_wait: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into(), asks_wait: None }
    }
}

/// How an instance is reached from here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way<'a> {
    /// It listens there: on this host, or on one without a node.
    Address(&'a Address),
    /// Through the node that owns it.
    Tunnel(&'a NodeId, &'a InstanceKey),
}

impl<'a> Way<'a> {
    pub(crate) fn to(instance: &'a InstanceView, me: &NodeId) -> Self {
        match instance.instance.reach {
            Reach::Owner if instance.owner() != me => Self::Tunnel(instance.owner(), &instance.key),
            _ => Self::Address(&instance.instance.address),
        }
    }
}

/// Refuses what this version cannot speak, before anything is sent.
pub(crate) fn check_protocol(instance: &InstanceView) -> Result<(), Failure> {
    match instance.instance.protocol {
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => Ok(()),
        Protocol::Tcp => {
            let why =
                format!("instance {} speaks tcp, not HTTP: give it a port of this host ([[upstream]])", instance.key);
            Err(Failure::new(Reason::Unsupported, why))
        }
    }
}

/// One attempt's circumstances.
pub(crate) struct Attempt<'a> {
    pub(crate) carrier: &'a Carrier,
    pub(crate) pool: &'a Pool,
    pub(crate) way: Way<'a>,
    /// What the instance speaks; through a tunnel it is spoken at the other end.
    pub(crate) protocol: Protocol,
    pub(crate) span: SpanId,
    /// When it begins.
    pub(crate) began: Instant,
    pub(crate) deadline: Instant,
    pub(crate) timeouts: Timeouts,
    /// Which attempt it is.
    pub(crate) number: u32,
}

impl Attempt<'_> {
    /// Sends the request over an idle or new connection and waits for the head of the response, which is then written
    /// at the client, but for what the caller adds.
    pub(crate) async fn exchange<S: Stream>(
        &self,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
    ) -> Result<(Response, Upstream), Failure> {
        // Ends: every turn but the last uses up one idle connection, and after a broken one no other is trusted.
        let mut trust_idle = true;
        let mut closing_met = 0;
        let mut now = self.began;
        loop {
            let idle = if trust_idle { self.pool.take(now, self.carrier.settings.idle_timeout()) } else { None };
            let mut reused = idle.is_some();
            let mut upstream = match idle {
                Some(upstream) => upstream,
                None => {
                    let connected = self.connect(self.left(now)?).await?;
                    now = Instant::now();
                    connected
                }
            };
            // A shared connection may have been closing as we came, too.
            reused |= trust_idle && matches!(upstream.pipe, Pipe::Call(_));
            outgoing.begin(self.span, self.left(now)?, self.number);
            client.out.clear();
            let ended = self.send_and_wait(client, outgoing, asked, &mut upstream, now).await;
            match ended {
                Ended::Answered(response) => return self.accept(response, upstream),
                Ended::Failed(failure) => return Err(failure),
                Ended::Broken { error: Some(error), .. }
                    if let Some(why) = http2::unsayable_in(&error).map(ToString::to_string) =>
                {
                    return Err(Failure::new(Reason::BadRequest, why));
                }
                // An idle connection that dies without a byte was most likely being closed as we sent; whoever may be
                // repeated gets a fresh one. Others may have been seen.
                Ended::Broken { silent: true, .. }
                    if reused && (outgoing.is_repeatable() || (outgoing.is_unsent() && outgoing.is_whole())) => {}
                Ended::Broken { error: Some(error), .. }
                    if closing_met < MAX_CLOSING_MET
                        && outgoing.is_whole()
                        && http2::unprocessed_in(&error).is_some_and(|u| u.connection_ended) =>
                {
                    closing_met += 1;
                }
                Ended::Broken { error: Some(error), .. } if let Some(refusal) = refusal_in(&error) => {
                    return Err(Failure::new(Reason::Connect, refusal));
                }
                // The other sidecar ends a tunnel cleanly only where no request is under way, as when its node stops.
                Ended::Broken { silent: true, error: None } if matches!(upstream.pipe, Pipe::Tunnel(_)) => {
                    if !(reused && outgoing.is_whole()) {
                        let text = "the other sidecar closed the tunnel before it took the request";
                        return Err(Failure::new(Reason::Connect, text));
                    }
                }
                Ended::Broken { error, .. } => {
                    let why = error.map_or("it was closed".into(), |error| error.to_string());
                    let text = format!("the connection broke before a response: {why}");
                    return Err(Failure::new(Reason::Reset, text));
                }
            }
            trust_idle = false;
            now = Instant::now();
        }
    }

    fn accept(&self, mut response: Response, upstream: Upstream) -> Result<(Response, Upstream), Failure> {
        if let (Way::Tunnel(..), Some((reason, why))) = (self.way, response.reason.take()) {
            // The other sidecar answered, not the application.
            return Err(Failure { reason, why, asks_wait: response.asks_wait });
        }
        Ok((response, upstream))
    }

    async fn send_and_wait<S: Stream>(
        &self,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
        upstream: &mut Upstream,
        now: Instant,
    ) -> Ended {
        let watched = match self.way {
            // Whoever can ask elsewhere need not wait for a node that has died without a word.
            Way::Tunnel(node, _) if outgoing.is_held() && outgoing.is_repeatable() && !self.is_lost(node) => Some(node),
            _ => None,
        };
        client.alarm.set(self.next_look(now, self.deadline, watched));
        let mut wait = Waiting { attempt: self, asked, watched, deadline: self.deadline, sent: false, failed: None };
        poll_fn(|cx| wait.poll(client, outgoing, upstream, cx)).await
    }

    fn next_look(&self, now: Instant, deadline: Instant, watched: Option<&NodeId>) -> Instant {
        if watched.is_some() { deadline.min(now + LOSS_LOOKUP) } else { deadline }
    }

    /// A node that has said good-bye is not lost: it finishes what it has taken, and its tunnels end when it does.
    fn is_lost(&self, node: &NodeId) -> bool {
        self.carrier.mesh.view().member(node).is_some_and(|member| member.state == MemberState::Lost)
    }

    /// What is left of its time. Nothing left is nothing sent, and no word against the instance.
    fn left(&self, now: Instant) -> Result<Duration, Failure> {
        let left = self.deadline.saturating_duration_since(now);
        let begins = !left.is_zero();
        begins.then_some(left).ok_or_else(|| Failure::new(Reason::Late, "no time was left to begin with it"))
    }

    async fn connect(&self, left: Duration) -> Result<Upstream, Failure> {
        let limit = left.min(Duration::from_millis(self.timeouts.connect_ms));
        match self.way {
            Way::Address(address) if matches!(self.protocol, Protocol::Http2 | Protocol::Grpc) => {
                let call = Call::open(self.carrier, address, limit).await;
                let call = call.map_err(|why| Failure::new(Reason::Connect, why))?;
                Ok(Upstream::new(Pipe::Call(Box::new(call)), &self.carrier.connections.calls))
            }
            way => connect(self.carrier, way, limit).await,
        }
    }
}

/// Opens a connection to an instance, for whatever is spoken there in bytes.
pub(crate) async fn connect(carrier: &Carrier, way: Way<'_>, limit: Duration) -> Result<Upstream, Failure> {
    let failed = |why: String| Failure::new(Reason::Connect, why);
    let pipe = match way {
        Way::Address(address) => {
            let connecting = TcpStream::connect((&*address.host, address.port));
            let stream = timeout(limit, connecting)
                .await
                .map_err(|_| failed(format!("no connection to {address} within {} ms", limit.as_millis())))?
                .map_err(|error| failed(format!("no connection to {address}: {error}")))?;
            // Fails only on a socket that is broken already, which the next write will say better.
            let _ = stream.set_nodelay(true);
            Pipe::Tcp(stream)
        }
        Way::Tunnel(node, key) => {
            let opening = carrier.mesh.open_tunnel(node, key, limit);
            Pipe::Tunnel(opening.await.map_err(|error| failed(error.to_string()))?)
        }
    };
    Ok(Upstream::new(pipe, &carrier.connections.upstream))
}

/// How sending and waiting ended.
enum Ended {
    Answered(Response),
    Failed(Failure),
    /// The connection broke before a whole head had come; `silent` if not a byte had.
    Broken {
        silent: bool,
        error: Option<std::io::Error>,
    },
}

/// A request on its way, whose answer is awaited.
struct Waiting<'a> {
    attempt: &'a Attempt<'a>,
    asked: &'a Asked,
    watched: Option<&'a NodeId>,
    /// Moves on with a body that moves.
    deadline: Instant,
    /// Nothing more is to be sent.
    sent: bool,
    /// Why the instance took no more; it may have answered all the same.
    failed: Option<std::io::Error>,
}

impl Waiting<'_> {
    fn poll<S: Stream>(
        &mut self,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        upstream: &mut Upstream,
        cx: &mut Context<'_>,
    ) -> Poll<Ended> {
        if !self.sent {
            match outgoing.poll_send(client, &mut upstream.pipe, cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.sent = true,
                Poll::Ready(Err(Unsent::Client(why))) => {
                    return Poll::Ready(Ended::Failed(Failure::new(Reason::BadRequest, why)));
                }
                Poll::Ready(Err(Unsent::Instance(error))) => {
                    self.sent = true;
                    self.failed = Some(error);
                }
            }
        }
        loop {
            match upstream.buffer.poll_fill(&mut upstream.pipe, cx, self.attempt.carrier.settings.max_head_bytes) {
                Poll::Pending => break,
                Poll::Ready(Ok(1..)) => {
                    if let Some(ended) = self.read_head(client, upstream) {
                        return Poll::Ready(ended);
                    }
                }
                Poll::Ready(ended) => {
                    let silent = upstream.buffer.is_empty();
                    let error = ended.err().or(self.failed.take());
                    return Poll::Ready(Ended::Broken { silent, error });
                }
            }
        }
        if self.sent && client.poll_gone(cx).is_ready() {
            return Poll::Ready(Ended::Failed(Failure::new(Reason::Gone, "the client is gone")));
        }
        while client.alarm.poll(cx).is_ready() {
            if let Some(ended) = self.look(client, outgoing) {
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    }

    /// Reads the head if it is whole; interim responses are passed over.
    fn read_head<S>(&self, client: &mut Client<S>, upstream: &mut Upstream) -> Option<Ended> {
        let settings = &self.attempt.carrier.settings;
        loop {
            let read = Response::read(upstream.buffer.data(), settings, self.asked, &mut client.out);
            match read {
                Ok(None) => return None,
                Err(why) => return Some(Ended::Failed(Failure::new(Reason::Reset, why))),
                Ok(Some(response)) => {
                    upstream.buffer.consume(response.length);
                    let interim =
                        response.status.is_informational() && response.status != http::StatusCode::SWITCHING_PROTOCOLS;
                    if !interim {
                        return Some(Ended::Answered(response));
                    }
                    if upstream.buffer.is_empty() {
                        return None;
                    }
                }
            }
        }
    }

    /// The alarm rang: is there still hope?
    fn look<S>(&mut self, client: &mut Client<S>, outgoing: &Outgoing) -> Option<Ended> {
        if let Some(node) = self.watched
            && self.attempt.is_lost(node)
        {
            let why = format!("node {node} was lost while its answer was awaited");
            return Some(Ended::Failed(Failure::new(Reason::Reset, why)));
        }
        let grpc = outgoing.request.grpc;
        let usual = self.attempt.carrier.settings.request_timeout();
        let patience = grpc::patience(grpc, Duration::from_millis(self.attempt.timeouts.request_ms), usual);
        let now = Instant::now();
        if now >= self.deadline {
            // A large upload takes the time it takes; one that stalls ends after the patience with anything that stalls.
            // Not beyond what the caller waits, though, if it says so.
            let may_take_longer = grpc.is_none() && outgoing.request.left.is_none();
            let moved = outgoing.last_moved().filter(|_| may_take_longer).map(|moved| moved + patience);
            let Some(later) = moved.filter(|later| *later > now) else {
                let since = if moved.is_some() { "any of its body passed" } else { "the request's arrival" };
                let why = format!("no response within {} ms after {since}", patience.as_millis());
                return Some(Ended::Failed(Failure::new(Reason::TimedOut, why)));
            };
            self.deadline = later;
        }
        client.alarm.set(self.attempt.next_look(now, self.deadline, self.watched));
        None
    }
}

/// A refusal that promises that no application has seen the request: the other node's of the tunnel, or an instance's
/// that speaks HTTP/2.
fn refusal_in(error: &std::io::Error) -> Option<String> {
    if let Some(unprocessed) = http2::unprocessed_in(error) {
        return Some(format!("the instance refused the request unread: {unprocessed}"));
    }
    Some(error.get_ref()?.downcast_ref::<TunnelRefusal>()?.to_string())
}
