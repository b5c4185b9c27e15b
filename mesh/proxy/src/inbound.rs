//! Requests that other nodes bring through tunnels for instances of this node.
//!
//! A tunnel speaks HTTP/1.1 and leads to one instance. What arrives is delivered only to an instance this node owns
//! by its own view, and only if the rules of access let it; the caller's node is known from its certificate, its service is
//! what that node says as far as it may say so, and both are told to the application. The local connection
//! lives as long as the tunnel.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::StatusCode;
use starling_core::access::{Called, Caller};
use starling_core::id::{InstanceKey, NodeId, ServiceKey};
use starling_core::observe::SpanKind;
use starling_core::policy::{self, Force, Scope};
use starling_core::view::{InstanceView, Revision};
use starling_net::TunnelRefusal;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::Job;
use crate::access::{self, Claim};
use crate::client::{Client, Outgoing};
use crate::exchange::{Attempt, Failure, Way, check_protocol};
use crate::h1::fields::Written;
use crate::h1::request::Request;
use crate::h1::response::Asked;
use crate::keys::{self, At, Lent};
use crate::mesh::{Arrival, Knock, Stream};
use crate::pool::{Counted, Gauge, Pool};
use crate::reason::{Reason, Refused};
use crate::relay::{Arrived, Home};
use crate::serve::{Door, Lifetime, serve};
use crate::stack::{Carrier, describe};
use crate::system::{Entered, Host};
use crate::trace::OpenSpan;
use crate::workers::Crew;

/// Takes tunnels and deals them to the workers until there are no more or the proxy stops.
pub(crate) async fn run<T: Knock>(
    carrier: Arc<Carrier>,
    tunnels: mpsc::Receiver<T>,
    crew: Arc<Crew<Job>>,
    lifetime: Lifetime,
) {
    let deal = |knock: T, place| match crew.try_place() {
        Some(dealt) => {
            dealt.queue.send(Job::Tunnel(knock.take(), place, dealt.share));
            None
        }
        None => Some(knock),
    };
    take_in(&carrier, tunnels, lifetime, deal).await;
}

/// Takes the tunnels that arrive at this worker's own lane, until there are no more or the proxy stops.
pub(crate) async fn run_lane<T: Knock>(
    carrier: Arc<Carrier>,
    tunnels: mpsc::Receiver<T>,
    load: Arc<Gauge>,
    lifetime: Lifetime,
) {
    let others = lifetime.clone();
    let deal = |knock: T, place| {
        serve_dealt(carrier.clone(), knock.take(), (place, Gauge::count(&load)), others.clone());
        None
    };
    take_in(&carrier, tunnels, lifetime, deal).await;
}

/// Gives each tunnel with a place to `deal`, which returns those it cannot take.
async fn take_in<T: Knock>(
    carrier: &Carrier,
    mut tunnels: mpsc::Receiver<T>,
    mut lifetime: Lifetime,
    deal: impl Fn(T, OwnedSemaphorePermit) -> Option<T>,
) {
    loop {
        let knock = tokio::select! {
            knock = tunnels.recv() => match knock {
                Some(knock) => knock,
                None => return,
            },
            () = lifetime.draining() => break,
        };
        let refused = match carrier.tunnel_places.clone().try_acquire_owned() {
            Ok(place) => deal(knock, place),
            Err(_) => Some(knock),
        };
        // Refused, the caller's sidecar knows that nothing was forwarded, and tries another instance.
        if let Some(knock) = refused {
            carrier.connections.tunnels_refused.fetch_add(1, Relaxed);
            knock.refuse(TunnelRefusal::Busy);
        }
    }
    turn_away(tunnels);
}

fn turn_away<T: Knock>(mut tunnels: mpsc::Receiver<T>) {
    tunnels.close();
    while let Ok(knock) = tunnels.try_recv() {
        knock.refuse(TunnelRefusal::Stopping);
    }
}

/// Serves what [`run`] has dealt to this worker.
pub(crate) fn serve_dealt(
    carrier: Arc<Carrier>,
    arrival: Arrival,
    held: (OwnedSemaphorePermit, Counted),
    lifetime: Lifetime,
) {
    tokio::spawn(async move {
        let _held = held;
        let _counted = Gauge::count(&carrier.connections.tunnels);
        let tunnel =
            Tunnel { from: arrival.from, to: arrival.to, claim: Claim::default(), pool: Arc::default(), keyed: None };
        serve(arrival.stream, None, &carrier, Door::Tunnel(tunnel), lifetime).await;
    });
}

/// What a tunnel that is not one of HTTP is for, by its first byte: all of them, so that no two are the same. A request of
/// HTTP begins with a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Opens {
    /// A connection of bytes (`tcp`).
    Bytes = 1,
    /// A question about an idempotency key (`keys`).
    Key = 2,
    /// A question how its instance is, which is this byte and nothing more (`checking`).
    Check = 3,
}

impl Opens {
    /// By what has come; none of HTTP, and of what is not understood.
    pub(crate) fn of(data: &[u8]) -> Option<Self> {
        match data {
            [first, ..] if *first == Self::Bytes as u8 => Some(Self::Bytes),
            [first, ..] if *first == Self::Key as u8 => Some(Self::Key),
            [only] if *only == Self::Check as u8 => Some(Self::Check),
            _ => None,
        }
    }
}

/// One tunnel.
pub(crate) struct Tunnel {
    pub(crate) from: NodeId,
    pub(crate) to: InstanceKey,
    claim: Claim,
    pool: Arc<Pool>,
    /// What is in force for the service, as of a view, if it has idempotency keys.
    keyed: Option<(Revision, Option<Arc<Force>>)>,
}

impl Tunnel {
    /// Sees to it that a request names no calling service but one its node may speak for.
    pub(crate) fn vouch(&mut self, carrier: &Carrier, request: &mut Request, head: &mut Vec<u8>) {
        self.claim.refresh(request.claimed(head).unwrap_or_default(), &self.from, &carrier.mesh.view());
        if self.claim.service().is_none() {
            request.forget_claim(head);
        }
    }
}

/// What is in force for a request that idempotency keys are a matter of. For all others, this is a look at a number.
pub(crate) fn keyed(carrier: &Carrier, tunnel: &mut Tunnel, request: &Request, head: &[u8]) -> Option<Arc<Scope>> {
    let view = carrier.mesh.view();
    if tunnel.keyed.as_ref().is_none_or(|(revision, _)| *revision != view.revision) {
        let service = &tunnel.to.service;
        let entry = carrier.directory.entry(service, &carrier.settings);
        let force = entry.policy.force(service, &view, &carrier.ground, carrier.clock);
        let has_keys = force.scopes().any(|scope| scope.sections.idempotency.is_some());
        tunnel.keyed = Some((view.revision, has_keys.then_some(force)));
    }
    let (_, Some(force)) = tunnel.keyed.as_ref()? else { return None };
    let caller = tunnel.claim.service().map(ServiceKey::to_string);
    let fields = Written(head);
    let asked = asked_of(tunnel, request, head, &fields, caller.as_deref());
    let scope = force.scope(|route| route.matches(&asked));
    keys::concerned(scope, request, head).then(|| scope.clone())
}

/// What a policy's rules see of a request that came by a tunnel.
fn asked_of<'a>(
    tunnel: &'a Tunnel,
    request: &'a Request,
    head: &'a [u8],
    fields: &'a Written<'a>,
    caller: Option<&'a str>,
) -> policy::Asked<'a> {
    policy::Asked {
        method: request.method.as_str(),
        path: request.path(head),
        fields,
        node: tunnel.from.as_str(),
        // Services of the default namespace go by their name alone.
        service: caller.map(|caller| caller.strip_prefix("default/").unwrap_or(caller)),
    }
}

/// Refuses a connection of bytes its caller may not open, for the service it says it calls for.
pub(crate) fn may_connect(carrier: &Carrier, tunnel: &mut Tunnel, claimed: &[u8]) -> Result<(), Failure> {
    tunnel.claim.refresh(claimed, &tunnel.from, &carrier.mesh.view());
    let service = &tunnel.to.service;
    let caller = Caller { node: &tunnel.from, service: tunnel.claim.service() };
    let entry = carrier.directory.entry(service, &carrier.settings);
    access::check(carrier, &entry, service, caller, Called::Bytes)
}

/// Refuses a request its caller may not send.
pub(crate) fn may_call(carrier: &Carrier, tunnel: &Tunnel, request: &Request, head: &[u8]) -> Result<(), Refused> {
    let service = &tunnel.to.service;
    let caller = Caller { node: &tunnel.from, service: tunnel.claim.service() };
    let called = Called::Http { method: request.method.as_str(), path: request.path(head) };
    let entry = carrier.directory.entry(service, &carrier.settings);
    access::check(carrier, &entry, service, caller, called)
        .map_err(|failure| Refused::new(failure.reason, failure.why).of(service))
}

/// Lets a request of another node into this host, or refuses it.
pub(crate) fn enter(
    carrier: &Carrier,
    host: &Host,
    tunnel: &Tunnel,
    request: &Request,
    head: &[u8],
) -> Result<Entered, Refused> {
    let service = &tunnel.to.service;
    let entry = carrier.directory.entry(service, &carrier.settings);
    host.admit(service, &entry, || {
        let force = entry.policy.force(service, &carrier.mesh.view(), &carrier.ground, carrier.clock);
        let caller = tunnel.claim.service().map(ServiceKey::to_string);
        let fields = Written(head);
        let asked = asked_of(tunnel, request, head, &fields, caller.as_deref());
        force.scope(|route| route.matches(&asked)).class(&asked)
    })
}

/// Counts a response that goes back through a tunnel.
pub(crate) fn record(carrier: &Carrier, tunnel: &Tunnel, status: StatusCode, took: Duration) {
    if carrier.mesh.view().service(&tunnel.to.service).is_some() {
        carrier.directory.entry(&tunnel.to.service, &carrier.settings).metrics.inbound.record(status, took);
    } else {
        carrier.directory.unknown().inbound.record(status, took);
    }
}

/// Brings a request to an instance of this node.
#[allow(clippy::too_many_arguments)] // one request's all
pub(crate) async fn deliver<S: Stream>(
    carrier: &Carrier,
    tunnel: &Tunnel,
    instance: &InstanceView,
    client: &mut Client<S>,
    outgoing: &mut Outgoing,
    asked: &Asked,
    now: Instant,
    deadline: Instant,
    keyed: Option<Arc<Scope>>,
) -> Result<Arrived, Refused> {
    let context = outgoing.request.context;
    let mut span = OpenSpan::begin(&context, SpanKind::Server, carrier.mesh.me(), carrier.mesh.spans());
    span.describe(|span| {
        describe(span, &tunnel.to.service, outgoing);
        span.attributes.insert("instance".into(), tunnel.to.instance.to_string());
        span.attributes.insert("client.node".into(), tunnel.from.to_string());
    });
    let way = Way::Address(&instance.instance.address);
    let attempt = Attempt {
        carrier,
        pool: &tunnel.pool,
        way,
        protocol: instance.instance.protocol,
        span: span.id(),
        began: now,
        deadline,
        timeouts: carrier.settings.timeouts(),
        // This side never repeats; it tells the application what it was told.
        number: outgoing.request.attempt,
    };
    let exchanged = match keyed.as_ref().and_then(|scope| Some((scope, scope.sections.idempotency.as_ref()?))) {
        // In a box: few services want this, and none shall be larger for it.
        Some((scope, settings)) => {
            let entry = carrier.directory.entry(&tunnel.to.service, &carrier.settings);
            let (address, pool) = (&instance.instance.address, Lent::Tunnel(tunnel.pool.clone()));
            let at = At { settings, entry: &entry, instance: &instance.key, address, owned: true, pool };
            Box::pin(at.exchange(&attempt, tunnel.claim.service(), scope, client, outgoing, asked)).await
        }
        None => attempt.exchange(client, outgoing, asked).await,
    };
    match exchanged {
        Ok((response, upstream)) => {
            span.describe(|span| {
                span.status = Some(response.status.as_u16());
                span.error = response.failure().map(str::to_owned);
            });
            Ok(Arrived {
                response,
                at: Instant::now(),
                upstream,
                home: Home::Tunnel(tunnel.pool.clone()),
                spans: [Some(span), None],
                pass: None,
                lesson: None,
            })
        }
        Err(failure) if failure.reason == Reason::Gone => Err(Refused::new(failure.reason, failure.why)),
        Err(failure) => {
            span.fail(&failure.why);
            Err(Refused::new(failure.reason, failure.why).of(&tunnel.to.service))
        }
    }
}

/// The instance, if it is this node's to deliver HTTP to; asked for every request, since a tunnel may outlive it.
pub(crate) fn owned_instance(carrier: &Carrier, key: &InstanceKey) -> Result<InstanceView, Refused> {
    let instance = find_owned(carrier, key)?;
    match check_protocol(&instance) {
        Ok(()) => Ok(instance),
        Err(failure) => Err(Refused::new(failure.reason, failure.why).of(&key.service)),
    }
}

/// The instance, if it is this node's.
pub(crate) fn find_owned(carrier: &Carrier, key: &InstanceKey) -> Result<InstanceView, Refused> {
    let me = carrier.mesh.me();
    let view = carrier.mesh.view();
    let owned = view.instance(key).filter(|instance| instance.owner() == me);
    owned.cloned().ok_or_else(|| {
        let why = format!("node {me} does not own an instance {key}");
        Refused::new(Reason::NotHere, why).of(&key.service)
    })
}
