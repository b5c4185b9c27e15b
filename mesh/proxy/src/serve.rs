//! One connection until it, or the proxy, ends. In HTTP/1.1: requests in, answers out, one after the other.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use starling_core::guard::circuit::Came;
use starling_core::id::ServiceKey;
use starling_core::observe::TraceId;
use starling_core::policy::{End, Fields, Scope, Seen};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::access::Identity;
use crate::attempts;
use crate::bound::{self, BoundPort};
use crate::checking;
use crate::client::{Client, Outgoing};
use crate::connect::{self, Through};
use crate::detect::{self, Spoken};
use crate::failback;
use crate::grpc;
use crate::guarded::{self, Guarded};
use crate::guards::{Pass, came_of};
use crate::h1::buffer::LARGE;
use crate::h1::forwarded::{Forward, Peer};
use crate::h1::request::{Request, Rules};
use crate::h1::response::{Asked, Response};
use crate::h1::{Framing, fields};
use crate::http2;
use crate::inbound::{self, Opens, Tunnel};
use crate::keys;
use crate::lesson::{GOES_WELL, Lesson};
use crate::mesh::Stream;
use crate::pool::Upstream;
use crate::reason::{Reason, Refused, TRACE, Told};
use crate::relay::{self, Arrived, Broken, Relay};
use crate::rewound::Rewound;
use crate::stack::{self, Carrier, Known, Wanted};
use crate::system::Entered;
use crate::tls::Encrypted;
use crate::{tcp, throttle, trace};

/// How long a client that is refused may go on sending what it has begun, and how much: closing while it sends would
/// take the answer away from it again.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// How long a client's connection is kept for one more request when the proxy drains: whoever is just sending one gets an
/// answer that says `connection: close`, and not a connection that is gone.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// How far the proxy's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running,
    /// Connections are told to end.
    Leaving,
    /// Nothing new is taken, requests in flight finish.
    Draining,
    /// Everything is dropped.
    Stopped,
}

/// What every task of the proxy holds: it hears of the end, and the end hears of it.
#[derive(Debug, Clone)]
pub(crate) struct Lifetime {
    phase: watch::Receiver<Phase>,
    _alive: mpsc::Sender<Infallible>,
}

impl Lifetime {
    pub(crate) fn new(phase: watch::Receiver<Phase>, alive: mpsc::Sender<Infallible>) -> Self {
        Self { phase, _alive: alive }
    }

    /// Returns when nothing new is to be taken.
    pub(crate) async fn draining(&mut self) {
        reached(&mut self.phase, Phase::Draining).await;
    }

    /// Returns when a connection without a request is to be closed. That of an application a while later than a tunnel: the
    /// other sidecar knows of a closed tunnel that it took no request, a client does not.
    async fn closing_idle(&mut self, from_application: bool) {
        self.leaving().await;
        if from_application {
            tokio::time::sleep(LAST_REQUEST).await;
        }
    }

    /// Returns when connections are to end.
    pub(crate) async fn leaving(&mut self) {
        reached(&mut self.phase, Phase::Leaving).await;
    }

    fn is_leaving(phase: &watch::Receiver<Phase>) -> bool {
        *phase.borrow() >= Phase::Leaving
    }
}

/// Returns when the proxy's end has come so far. It does not hear of who waits here.
pub(crate) async fn reached(phase: &mut watch::Receiver<Phase>, awaited: Phase) {
    // An error means that the proxy was dropped without being drained: that is the end too.
    let _ = phase.wait_for(|now| *now >= awaited).await;
}

/// By which way an application came in.
#[derive(Debug, Clone)]
pub(crate) enum Entrance {
    /// The sidecar's own port: each request says where it wants to go.
    Any,
    /// A port that leads to one service.
    Bound(Arc<BoundPort>),
}

impl Entrance {
    /// The service that calls by it, if that is known.
    fn caller(&self) -> Option<&ServiceKey> {
        match self {
            Self::Any => None,
            Self::Bound(port) => port.caller.as_ref(),
        }
    }
}

/// Where requests come from.
pub(crate) enum Door {
    /// An application of this host.
    Application(Entrance),
    /// Another node, for one instance of this one.
    Tunnel(Tunnel),
}

/// Serves whoever comes by `io`, whatever it speaks.
pub(crate) async fn serve<S: Stream>(
    io: S,
    peer: Option<Peer>,
    carrier: &Arc<Carrier>,
    door: Door,
    lifetime: Lifetime,
) {
    let mut client = Client::new(io);
    client.peer = peer;
    serve_from(client, carrier, door, lifetime).await;
}

/// The same for a client that has been listened to.
pub(crate) async fn serve_from<S: Stream>(
    mut client: Client<S>,
    carrier: &Arc<Carrier>,
    mut door: Door,
    lifetime: Lifetime,
) {
    // Within a connection there may be another, asked for by CONNECT; within that, none.
    while let Some((inner, port)) = serve_client(client, carrier, door, lifetime.clone()).await {
        (client, door) = (inner, Door::Application(Entrance::Bound(port)));
    }
}

/// Serves a client to its end, or until it has asked for a way to a service of HTTP.
async fn serve_client<S: Stream>(
    mut client: Client<S>,
    carrier: &Arc<Carrier>,
    door: Door,
    mut lifetime: Lifetime,
) -> Option<(Client<S>, Arc<BoundPort>)> {
    let peer = client.peer;
    if let Door::Application(Entrance::Bound(port)) = &door
        && bound::leads_to_bytes(carrier, port)
    {
        bound::carry(&mut client, carrier, port).await;
        return None;
    }
    let patience = Duration::from_millis(carrier.settings.header_timeout_ms);
    let spoken =
        detect::first(&mut client, patience, pin!(lifetime.closing_idle(matches!(door, Door::Application(_))))).await;
    match (spoken, door) {
        (Some(Spoken::Http2), Door::Application(entrance)) => {
            http2::serve(Rewound::from(client), peer, entrance, carrier.clone(), lifetime).await;
        }
        (Some(Spoken::Other), Door::Tunnel(tunnel)) => match Opens::of(client.buffer.data()) {
            Some(Opens::Bytes) => tcp::deliver(client, carrier, tunnel).await,
            Some(Opens::Check) => checking::answer(client, carrier, &tunnel).await,
            // Apart: what only some tunnels are for is no part of all others' memory.
            Some(Opens::Key) => Box::pin(keys::answer(client, carrier, &tunnel)).await,
            None => return serve_http1(client, carrier, Door::Tunnel(tunnel), lifetime).await,
        },
        (Some(Spoken::Tls), Door::Application(entrance)) if carrier.tls.is_some() => {
            // Apart: what only some connections need is no part of all others' memory.
            Box::pin(serve_encrypted(Rewound::from(client), peer, entrance, carrier, lifetime)).await;
        }
        // What is not understood is refused by the HTTP reader, with an answer people can read.
        (Some(Spoken::Http1 | Spoken::Http2 | Spoken::Tls | Spoken::Other), door) => {
            return serve_http1(client, carrier, door, lifetime).await;
        }
        (None, _) => _ = client.io.shutdown().await,
    }
    None
}

/// Serves a client that speaks TLS.
async fn serve_encrypted<S: Stream>(
    io: S,
    peer: Option<Peer>,
    entrance: Entrance,
    carrier: &Arc<Carrier>,
    lifetime: Lifetime,
) {
    let peer = peer.map(|peer| Peer { encrypted: true, ..peer });
    let Some(tls) = &carrier.tls else { return };
    let patience = Duration::from_millis(carrier.settings.header_timeout_ms);
    match Encrypted::accept(tls, io, patience).await {
        Ok(io) if io.speaks_http2() => http2::serve(io, peer, entrance, carrier.clone(), lifetime).await,
        Ok(io) => {
            let mut client = Client::new(io);
            client.peer = peer;
            let door = Door::Application(entrance);
            if let Some((client, port)) = serve_http1(client, carrier, door, lifetime.clone()).await {
                serve_inner(client, carrier, port, lifetime).await;
            }
        }
        Err(error) => tracing::debug!(%error, "an application's TLS connection did not begin"),
    }
}

/// Serves what is inside a way that was asked for by an encrypted connection or by HTTP/2: it is taken for HTTP/1.1.
pub(crate) async fn serve_inner<S: Stream>(
    client: Client<S>,
    carrier: &Carrier,
    port: Arc<BoundPort>,
    lifetime: Lifetime,
) {
    // Within it there is no other.
    serve_http1(client, carrier, Door::Application(Entrance::Bound(port)), lifetime).await;
}

/// Answers the requests of a client that speaks HTTP/1.1. If one of them asked for a way to a service of HTTP, the client
/// is given back with that.
pub(crate) async fn serve_http1<S: Stream>(
    client: Client<S>,
    carrier: &Carrier,
    door: Door,
    mut lifetime: Lifetime,
) -> Option<(Client<S>, Arc<BoundPort>)> {
    let phase = lifetime.phase.clone();
    let closes_late = matches!(door, Door::Application(_));
    let mut draining = pin!(lifetime.closing_idle(closes_late));
    let identity = Identity::default();
    let (known, through, entered) = (None, None, None);
    let (head, host, now) = (Vec::new(), Vec::new(), Instant::now());
    let mut connection = Connection { client, carrier, door, now, head, host, known, through, identity, entered };
    loop {
        let request = match connection.next(draining.as_mut()).await {
            Next::Request(request) => request,
            Next::End => {
                // The last answer may still be on its way: a tunnel that is only dropped would cut it off.
                let _ = connection.client.io.shutdown().await;
                return None;
            }
            Next::Bad(refused) => {
                connection.refuse_head(refused).await;
                return None;
            }
        };
        if !connection.answer(request, &phase).await {
            return connection.through.map(|port| (connection.client, port));
        }
    }
}

/// What a connection brings next.
enum Next {
    Request(Request),
    End,
    Bad(Refused),
}

/// What is remembered of a request that has been read.
pub(crate) struct Facts {
    pub(crate) context: trace::Context,
    pub(crate) method: http::Method,
    pub(crate) arrived: Instant,
    /// Whether the caller expects to be told as gRPC does.
    pub(crate) grpc: bool,
}

/// What waits to hear how a call went.
struct Open<'a> {
    lesson: Option<Box<Lesson>>,
    pass: Option<&'a mut Pass>,
    /// How long its answer took to begin.
    took: Duration,
}

struct Connection<'a, S> {
    client: Client<S>,
    carrier: &'a Carrier,
    door: Door,
    /// When the last request came, or its answer had gone: the clock is read at its head, its answer's, and its end.
    now: Instant,
    /// The head to be sent on, written anew for each request.
    head: Vec<u8>,
    host: Vec<u8>,
    /// Where the last request went: the next one nearly always goes there too.
    known: Option<Known>,
    /// The service the client has been given a way to.
    through: Option<Arc<BoundPort>>,
    /// Whom an application of this host calls for.
    identity: Identity,
    /// The request, as this host's guard knows it.
    entered: Option<Entered>,
}

impl<S: Stream> Connection<'_, S> {
    /// Waits for a request's head.
    async fn next(&mut self, mut draining: Pin<&mut impl Future<Output = ()>>) -> Next {
        self.client.alarm.set(self.now + Duration::from_millis(self.carrier.settings.header_timeout_ms));
        let mut tried = 0;
        poll_fn(|cx| self.poll_next(&mut tried, draining.as_mut(), cx)).await
    }

    fn poll_next(
        &mut self,
        tried: &mut usize,
        draining: Pin<&mut impl Future<Output = ()>>,
        cx: &mut Context<'_>,
    ) -> Poll<Next> {
        let most = self.carrier.settings.max_head_bytes;
        loop {
            let data = self.client.buffer.data();
            if data.len() > *tried && may_be_whole(data, *tried) {
                *tried = data.len();
                match self.read() {
                    Ok(None) => {}
                    Ok(Some(request)) => return Poll::Ready(Next::Request(request)),
                    Err(refused) => return Poll::Ready(Next::Bad(refused)),
                }
            }
            match self.client.buffer.poll_fill(&mut self.client.io, cx, most) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Err(error)) if error.kind() == std::io::ErrorKind::QuotaExceeded => {
                    let why = format!("the request's head has more than {most} bytes");
                    return Poll::Ready(Next::Bad(Refused::new(Reason::HeadTooLarge, why)));
                }
                Poll::Ready(_) => return Poll::Ready(Next::End),
                Poll::Pending => break,
            }
        }
        if self.client.buffer.is_empty() {
            self.client.buffer.release();
            if draining.poll(cx).is_ready() {
                return Poll::Ready(Next::End);
            }
        }
        self.client.alarm.poll(cx).map(|()| Next::End)
    }

    fn read(&mut self) -> Result<Option<Request>, Refused> {
        let (settings, data) = (&self.carrier.settings, self.client.buffer.data());
        match &mut self.door {
            Door::Application(entrance) => {
                self.identity.refresh(self.carrier, entrance.caller());
                let (caller, caller_service) = (self.carrier.mesh.me(), self.identity.text());
                let forward = self.client.peer.map(|peer| Forward {
                    how: settings.forwarded,
                    keep: settings.forwarded_keep,
                    peer,
                });
                let rules = Rules { settings, caller, caller_service, forward, counts_hop: true };
                Request::read(data, &rules, &mut self.head, &mut self.host)
            }
            Door::Tunnel(tunnel) => {
                let rules =
                    Rules { settings, caller: &tunnel.from, caller_service: None, forward: None, counts_hop: false };
                let mut read = Request::read(data, &rules, &mut self.head, &mut self.host);
                if let Ok(Some(request)) = &mut read {
                    tunnel.vouch(self.carrier, request, &mut self.head);
                }
                read
            }
        }
    }

    /// Answers one request. Whether the connection goes on after it.
    async fn answer(&mut self, request: Request, phase: &watch::Receiver<Phase>) -> bool {
        let arrived = Instant::now();
        self.now = arrived;
        self.client.buffer.consume(request.length);
        let asked = Asked {
            head_only: request.method == http::Method::HEAD,
            upgrades: request.upgrades,
            http_10: request.http_10,
        };
        let (method, grpc) = (request.method.clone(), request.grpc.is_some());
        let facts = Facts { context: request.context, method, arrived, grpc };
        if facts.method == http::Method::CONNECT {
            // In a box: few connections do this, and none shall be larger for it.
            let keep_alive = request.keep_alive && !Lifetime::is_leaving(phase);
            return Box::pin(self.connect(&facts, keep_alive)).await;
        }
        let wants_more = request.keep_alive;
        let bodiless = matches!(request.framing, Framing::Empty | Framing::Length(0));
        let mut outgoing = None;
        let outcome = self.carry(request, &mut outgoing, &asked, arrived).await;
        let (end, why) = ended(&outcome);
        let keep_alive = wants_more && !Lifetime::is_leaving(phase);
        if outcome.is_err() {
            self.entered = None;
        }
        let go_on = match (outcome, &mut outgoing) {
            (Ok(response), Some(outgoing)) => {
                let took = response.at - arrived;
                if !response.response.is_judged_later() {
                    self.record(response.response.verdict(), took);
                }
                self.deliver(response, outgoing, &asked, facts.context.trace, keep_alive, took).await
            }
            // A response comes only to what was sent.
            (Ok(_), None) => false,
            (Err(refused), _) if refused.reason == Reason::Gone => false,
            (Err(refused), outgoing) => {
                let whole = outgoing.as_ref().map_or(bodiless, |outgoing| outgoing.is_taken());
                self.turn_away(&refused, &facts, keep_alive && whole, asked.head_only).await
            }
        };
        // Whatever has not ended well by now has broken off.
        self.entered = None;
        if let Some(outgoing) = outgoing {
            self.remember(outgoing.head(), arrived, end, &why);
            self.head = outgoing.into_head();
        }
        go_on
    }

    async fn carry(
        &mut self,
        request: Request,
        outgoing: &mut Option<Outgoing>,
        asked: &Asked,
        arrived: Instant,
    ) -> Result<Arrived, Refused> {
        let (carrier, client) = (self.carrier, &mut self.client);
        let usual = carrier.settings.request_timeout();
        let call = request.grpc;
        let max_held = carrier.settings.max_replay_bytes;
        let head = std::mem::take(&mut self.head);
        match &mut self.door {
            Door::Application(entrance) => {
                let wanted = match entrance {
                    Entrance::Any => Wanted::Host(&self.host),
                    Entrance::Bound(port) => Wanted::Service(&port.service),
                };
                let known = stack::find(carrier, wanted, &mut self.known)?;
                let scope = known.scope(carrier, &self.identity, &request, &head);
                if let Some(host) = carrier.host.as_ref().filter(|host| host.asks_applications()) {
                    self.entered = Some(guarded::enter(carrier, host, known, scope, &self.identity, &request, &head)?);
                }
                let limit = Duration::from_millis(scope.sections.timeouts.request_ms);
                let deadline = within(arrived, grpc::patience(call, limit, usual), &request)
                    .map_err(|refused| refused.of(&known.key))?;
                // A body that is to be held is small; what takes longer is not worth waiting for.
                let held_by = deadline.min(arrived + limit);
                let max_held = keys::most_held(scope, &request, &head, max_held).max(failback::most_held(scope));
                let held = Outgoing::hold(request, head, client, max_held, held_by).await;
                let outgoing = outgoing.insert(held.map_err(|refused| refused.of(&known.key))?);
                if scope.is_guarded || scope.sections.fallback.is_some() {
                    let until = outgoing.request.left.map(|left| arrived + left);
                    let guarded = Guarded { carrier, known, scope, identity: &self.identity, deadline, until };
                    // In a box: what few services need shall not make every connection's task larger.
                    return Box::pin(guarded.carry(client, outgoing, asked)).await;
                }
                let caller = self.identity.service();
                let now = after(arrived, outgoing);
                let carried = stack::carry(carrier, known, caller, scope, client, outgoing, asked, now, deadline).await;
                attempts::tolerate(scope, &known.entry, carried)
            }
            Door::Tunnel(tunnel) => {
                let deadline = within(arrived, grpc::patience(call, usual, usual), &request)?;
                let held_by = deadline.min(arrived + usual);
                let instance = inbound::owned_instance(carrier, &tunnel.to)?;
                inbound::may_call(carrier, tunnel, &request, &head)?;
                if let Some(host) = &carrier.host {
                    self.entered = Some(inbound::enter(carrier, host, tunnel, &request, &head)?);
                }
                let keyed = inbound::keyed(carrier, tunnel, &request, &head);
                let most = |scope: &Arc<Scope>| keys::most_held(scope, &request, &head, max_held);
                let max_held = keyed.as_ref().map_or(max_held, most);
                let outgoing = outgoing.insert(Outgoing::hold(request, head, client, max_held, held_by).await?);
                let now = after(arrived, outgoing);
                inbound::deliver(carrier, tunnel, &instance, client, outgoing, asked, now, deadline, keyed).await
            }
        }
    }

    /// Gives the client a way to the service it names. Whether the connection goes on with requests after it.
    async fn connect(&mut self, facts: &Facts, keep_alive: bool) -> bool {
        let opened = match &self.door {
            Door::Application(Entrance::Any) => connect::open(self.carrier, &self.host, &mut self.known).await,
            _ => Err(Refused::new(Reason::Unsupported, "CONNECT is taken at the sidecar's own port only")),
        };
        let through = match opened {
            Ok(through) => through,
            Err(refused) => return self.turn_away(&refused, facts, keep_alive, false).await,
        };
        self.client.out.clear();
        self.client.out.extend_from_slice(connect::ESTABLISHED);
        if self.client.flush().await.is_err() {
            return false;
        }
        match through {
            Through::Bytes(connected) => connected.carry(self.carrier, &mut self.client).await,
            Through::Requests(port) => self.through = Some(port),
        }
        false
    }

    /// Answers in the place of an instance.
    async fn turn_away(&mut self, refused: &Refused, facts: &Facts, go_on: bool, head_only: bool) -> bool {
        self.record(refused.status(), facts.arrived.elapsed());
        let mut trace = None;
        if matches!(self.door, Door::Application(_)) {
            trace = Some(facts.context.trace);
            stack::note_refusal(self.carrier, self.known.as_ref(), refused, facts);
        }
        let grpc = facts.grpc && matches!(self.door, Door::Application(_));
        let sent = self.refuse(refused, &Told { trace, close: !go_on, head_only, grpc }).await;
        self.now = Instant::now();
        sent && go_on
    }

    /// Sends an instance's response on.
    async fn deliver(
        &mut self,
        arrived: Arrived,
        outgoing: &mut Outgoing,
        asked: &Asked,
        trace: TraceId,
        keep_alive: bool,
        took: Duration,
    ) -> bool {
        // Its guards' places are given back when the body has ended.
        let Arrived { mut response, mut upstream, home, lesson, spans, mut pass, .. } = arrived;
        if let Some(bytes_per_s) = pass.as_ref().and_then(|pass| pass.throttle) {
            response.keep_alive = false; // the instance's connection is slow from here on
            let slowed = throttle::slow_down(&mut upstream, bytes_per_s);
            if self.client.while_there(slowed).await.is_err() {
                return false;
            }
        }
        let keep = pass.as_mut().and_then(|pass| pass.keep.take());
        if let Some(keep) = &keep {
            keep.watch(&mut upstream);
        }
        let delivery = response.delivery(asked);
        let client = &mut self.client;
        if matches!(self.door, Door::Application(_)) {
            trace::write_id(TRACE, trace, &mut client.out);
        }
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            client.out.extend_from_slice(b"\r\n");
            let patience = self.carrier.settings.tcp_idle_timeout();
            let error = relay::splice(client, &mut upstream, patience).await.error();
            spans.into_iter().flatten().for_each(|span| match &error {
                None => span.end(),
                Some(error) => span.fail(error),
            });
            return false;
        }
        let go_on = keep_alive && !response.ends_with_connection(asked);
        if !go_on {
            fields::write(&mut client.out, b"connection", b"close");
        }
        client.out.extend_from_slice(b"\r\n");
        outgoing.expect_no_word();
        let patience = self.carrier.settings.body_idle_timeout().filter(|_| outgoing.request.grpc.is_none());
        let mut relay = Relay::new(&response, delivery, outgoing, patience);
        let is_open = response.is_judged_later();
        let received = if is_open {
            let open = Open { lesson, pass: pass.as_deref_mut(), took };
            // Apart: what only calls of gRPC need is no part of all others' memory.
            Box::pin(self.receive_open(open, &mut relay, &mut response, &mut upstream, outgoing)).await
        } else {
            relay.receive(client, &mut upstream, outgoing).await
        };
        let client = &mut self.client;
        match received {
            Ok(()) => {
                home.carried();
                let failure = response.failure().filter(|_| is_open);
                spans.into_iter().flatten().for_each(|span| match failure {
                    None => span.end(),
                    Some(why) => span.fail(why),
                });
                if let Some(keep) = keep {
                    keep.end(&mut upstream);
                }
            }
            Err(Broken::Instance(why)) => {
                // Of an open one, those who wait for its end have learnt already.
                if !is_open {
                    home.broke_off(self.carrier);
                }
                if response.ends_with_connection(asked) {
                    tcp::copy::cut_off(&mut client.io); // an ordinary end would say that this was all
                }
                spans.into_iter().flatten().for_each(|span| span.fail(&format!("response broke off: {why}")));
                return false;
            }
            // The spans are kept as cancelled.
            Err(Broken::Client) => return false,
        }
        if relay.finish(client, &mut upstream, outgoing).await.is_err() {
            return false;
        }
        client.out.clear();
        self.now = Instant::now();
        if let Some(entered) = self.entered.take() {
            entered.end(&response, self.carrier.clock.at(self.now));
        }
        if relay::is_reusable(&response, outgoing, &upstream) {
            home.put(upstream, self.now);
        }
        // Closing with bytes unread would take the answer's end away from the client again.
        if !outgoing.is_taken() || (!go_on && !self.client.buffer.is_empty()) {
            self.linger().await;
            return false;
        }
        if !go_on {
            // What the client still hears is all there; an error here is a client that is gone.
            let _ = self.client.io.shutdown().await;
        }
        go_on
    }

    /// Receives an answer whose end says how the call went, and lets those learn of it who wait for that.
    async fn receive_open(
        &mut self,
        open: Open<'_>,
        relay: &mut Relay,
        response: &mut Response,
        upstream: &mut Upstream,
        outgoing: &mut Outgoing,
    ) -> Result<(), Broken> {
        let received = timeout(GOES_WELL, relay.receive(&mut self.client, upstream, outgoing)).await;
        let trailers = relay.trailers();
        response.judge(&trailers);
        let code = trailers.field("grpc-status").and_then(fields::number).and_then(|code| u8::try_from(code).ok());
        let (status, came) = match &received {
            Ok(Err(Broken::Client)) => (None, Came::Cancelled),
            Ok(Err(Broken::Instance(_))) => (None, Came::Reset),
            Ok(Ok(())) | Err(_) => {
                (Some(response.verdict()), Came::Answer { status: response.status.as_u16(), grpc: code })
            }
        };
        self.record(response.verdict(), open.took);
        if let Some(pass) = open.pass {
            pass.learn(came, None);
        }
        if let Some(lesson) = open.lesson.filter(|_| came != Came::Cancelled) {
            lesson.end(self.carrier, status);
        }
        match received {
            Ok(received) => received,
            Err(_) => {
                let received = relay.receive(&mut self.client, upstream, outgoing).await;
                response.judge(&relay.trailers());
                received
            }
        }
    }

    fn record(&self, status: http::StatusCode, took: Duration) {
        match &self.door {
            Door::Application(_) => match &self.known {
                Some(known) => known.entry.metrics.outbound.record(status, took),
                None => self.carrier.directory.unknown().outbound.record(status, took),
            },
            Door::Tunnel(tunnel) => inbound::record(self.carrier, tunnel, status, took),
        }
    }

    /// Keeps what an application has asked, for documents that are to be tried on it.
    fn remember(&self, head: &[u8], arrived: Instant, end: End, why: &str) {
        let (Door::Application(_), Some(known)) = (&self.door, &self.known) else { return };
        let (came, ended) = (self.carrier.clock.at(arrived), self.carrier.clock.now());
        known.entry.recent.note(&Seen { came, ended, head, service: self.identity.plain(), end, why });
    }

    /// Answers what could not be read as a request, and closes.
    async fn refuse_head(&mut self, refused: Refused) {
        if matches!(self.door, Door::Application(_)) {
            let metrics = self.carrier.directory.unknown();
            metrics.own_answers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            metrics.outbound.record(refused.status(), Duration::ZERO);
        }
        self.refuse(&refused, &Told { trace: None, close: true, head_only: false, grpc: false }).await;
    }

    /// Sends the sidecar's own answer. Whether it went out.
    async fn refuse(&mut self, refused: &Refused, told: &Told) -> bool {
        self.client.out.clear();
        refused.write(told, &mut self.client.out);
        let sent = self.client.flush().await.is_ok();
        if sent && told.close {
            self.linger().await;
        }
        sent
    }

    /// Lets the client finish what it is sending, within bounds, so that the answer is not lost with the connection.
    async fn linger(&mut self) {
        if self.client.io.shutdown().await.is_err() {
            return;
        }
        self.client.alarm.set(Instant::now() + LINGER);
        let mut passed = 0;
        let client = &mut self.client;
        poll_fn(|cx| {
            while passed < LINGER_BYTES {
                passed += client.buffer.data().len();
                client.buffer.clear();
                match client.buffer.poll_fill(&mut client.io, cx, LARGE) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return client.alarm.poll(cx),
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// How a request ended, and if a guard refused it, why.
fn ended(outcome: &Result<Arrived, Refused>) -> (End, String) {
    match outcome {
        Ok(arrived) => {
            let status = arrived.response.verdict().as_u16();
            (End::Came(Came::Answer { status, grpc: None }), String::new())
        }
        Err(refused) => match refused.reason {
            Reason::Guard(guard) => (End::Refused(guard), refused.why.clone()),
            _ => (End::Came(came_of(refused)), String::new()),
        },
    }
}

/// When a request that may take so long must have been answered: its caller may wait less, and never makes it more.
fn within(arrived: Instant, patience: Duration, request: &Request) -> Result<Instant, Refused> {
    match request.left {
        Some(Duration::ZERO) => {
            Err(Refused::new(Reason::TimedOut, "the caller's deadline had passed before the request came here"))
        }
        left => Ok(arrived + patience.min(left.unwrap_or(patience))),
    }
}

/// When a request that arrived then was held: a body that had to be waited for has taken time.
fn after(arrived: Instant, outgoing: &Outgoing) -> Instant {
    if outgoing.held().is_some_and(<[u8]>::is_empty) { arrived } else { Instant::now() }
}

/// Whether a head may have ended in what came since the last try: heads that come byte by byte are not read as often.
pub(crate) fn may_be_whole(data: &[u8], tried: usize) -> bool {
    if tried == 0 {
        return true;
    }
    let news = &data[tried.saturating_sub(3)..];
    news.windows(2).any(|pair| pair == b"\n\n") || news.windows(3).any(|three| three == b"\n\r\n")
}
