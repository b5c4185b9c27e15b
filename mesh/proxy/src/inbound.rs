//! Requests that other nodes bring through tunnels for instances of this node.
//!
//! A tunnel speaks HTTP/1.1 and leads to one instance. What arrives is delivered only to an instance this node owns
//! by its own view; the caller's node is known from its certificate and told to the application. The local connection
//! lives as long as the tunnel.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::{Request, Response};
use hyper::body::Incoming;
use starling_core::id::{InstanceKey, NodeId};
use starling_core::observe::SpanKind;
use starling_core::view::InstanceView;
use starling_net::TunnelRefusal;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::body::{Carried, Home, ReplyBody};
use crate::exchange::{Outgoing, Way, check_protocol, exchange};
use crate::http1;
use crate::mesh::Knock;
use crate::pool::{Gauge, Pool};
use crate::reason::{Reason, Refused};
use crate::serve::{Lifetime, serve};
use crate::stack::{Carrier, describe};
use crate::trace::{Context, OpenSpan};

/// Takes tunnels until there are no more or the proxy stops.
pub(crate) async fn run<T: Knock>(carrier: Arc<Carrier>, mut tunnels: mpsc::Receiver<T>, mut lifetime: Lifetime) {
    let places = Arc::new(Semaphore::new(carrier.settings.max_tunnels));
    loop {
        let knock = tokio::select! {
            knock = tunnels.recv() => match knock {
                Some(knock) => knock,
                None => return,
            },
            () = lifetime.draining() => break,
        };
        // Refused, the caller's sidecar knows that nothing was forwarded, and tries another instance.
        let Ok(place) = places.clone().try_acquire_owned() else {
            carrier.connections.tunnels_refused.fetch_add(1, Relaxed);
            knock.refuse(TunnelRefusal::Busy);
            continue;
        };
        let arrival = knock.take();
        let (carrier, lifetime) = (carrier.clone(), lifetime.clone());
        tokio::spawn(async move {
            let _place = place;
            let _counted = Gauge::count(&carrier.connections.tunnels);
            let tunnel = Arc::new(Tunnel { from: arrival.from, to: arrival.to, pool: Arc::default() });
            let shared = carrier.clone();
            let answer = move |request| {
                let (carrier, tunnel) = (shared.clone(), tunnel.clone());
                async move { deliver(&carrier, &tunnel, request).await }
            };
            serve(arrival.stream, &carrier.settings, lifetime, answer).await;
        });
    }
    tunnels.close();
    while let Ok(knock) = tunnels.try_recv() {
        knock.refuse(TunnelRefusal::Stopping);
    }
}

/// One tunnel.
struct Tunnel {
    from: NodeId,
    to: InstanceKey,
    pool: Arc<Pool>,
}

async fn deliver(carrier: &Carrier, tunnel: &Tunnel, request: Request<Incoming>) -> Response<ReplyBody> {
    let arrived = Instant::now();
    let response = steps(carrier, tunnel, request, arrived).await.unwrap_or_else(|refused| refused.into_response(None));
    if carrier.mesh.view().service(&tunnel.to.service).is_some() {
        let entry = carrier.directory.entry(&tunnel.to.service, &carrier.settings);
        entry.metrics.inbound.record(response.status(), arrived.elapsed());
    } else {
        carrier.directory.unknown().inbound.record(response.status(), arrived.elapsed());
    }
    response
}

async fn steps(
    carrier: &Carrier,
    tunnel: &Tunnel,
    request: Request<Incoming>,
    arrived: Instant,
) -> Result<Response<ReplyBody>, Refused> {
    let settings = &carrier.settings;
    let deadline = arrived + settings.request_timeout();
    let instance = owned_instance(carrier, &tunnel.to)?;
    let (mut head, body) = request.into_parts();
    let context = Context::receive(&mut head.headers);
    http1::check_framing(&mut head.headers).map_err(|why| Refused::new(Reason::Unsupported, why))?;
    http1::clean_request(&mut head.headers, &tunnel.from);
    let mut span = OpenSpan::begin(&context, SpanKind::Server, carrier.mesh.me(), carrier.mesh.spans());
    let mut outgoing = Outgoing::hold(head, body, settings.max_replay_bytes, deadline).await?;
    span.describe(|span| {
        describe(span, &tunnel.to.service, &outgoing);
        span.attributes.insert("instance".into(), tunnel.to.instance.to_string());
        span.attributes.insert("client.node".into(), tunnel.from.to_string());
    });
    let way = Way::Address(&instance.instance.address);
    match exchange(carrier, &tunnel.pool, way, &mut outgoing, &context, span.id(), deadline).await {
        Ok((response, sender)) => {
            let status = response.status();
            span.describe(|span| {
                span.status = Some(status.as_u16());
                span.error = status.is_server_error().then(|| status.as_str().to_owned());
            });
            let carried = Carried { sender, home: Home::Tunnel(tunnel.pool.clone()), spans: [Some(span), None] };
            Ok(response.map(|body| ReplyBody::Carried(body, Some(carried))))
        }
        Err(failure) => {
            span.fail(&failure.why);
            Err(Refused::new(failure.reason, failure.why).of(&tunnel.to.service))
        }
    }
}

/// The instance, if it is this node's to deliver to; asked for every request, since a tunnel may outlive it.
fn owned_instance(carrier: &Carrier, key: &InstanceKey) -> Result<InstanceView, Refused> {
    let me = carrier.mesh.me();
    let view = carrier.mesh.view();
    let owned = view.instance(key).filter(|instance| instance.owner() == me);
    let Some(instance) = owned else {
        let why = format!("node {me} does not own an instance {key}");
        return Err(Refused::new(Reason::NotHere, why).of(&key.service));
    };
    match check_protocol(instance) {
        Ok(()) => Ok(instance.clone()),
        Err(failure) => Err(Refused::new(failure.reason, failure.why).of(&key.service)),
    }
}
