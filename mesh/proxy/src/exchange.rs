//! One attempt: a connection, a request, the head of its response. Knows nothing of services or retries.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use starling_core::id::{InstanceKey, NodeId};
use starling_core::observe::SpanId;
use starling_core::registry::{Address, Protocol, Reach};
use starling_core::view::{InstanceView, MemberState};
use starling_net::TunnelRefusal;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::{Progress, RequestBody};
use crate::http1;
use crate::mesh::Stream;
use crate::pool::{Pool, Sender, handshake};
use crate::reason::{REASON, Reason, Refused};
use crate::stack::Carrier;
use crate::trace::Context;

/// How often a waiting request looks whether the node it waits for is still there: far below the time membership needs
/// to notice a loss, and longer than nearly all requests take.
const LOSS_LOOKUP: Duration = Duration::from_millis(250);

/// Why an attempt brought no response of the application.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) why: String,
}

impl Failure {
    pub(crate) fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into() }
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
        Protocol::Http => Ok(()),
        other => {
            let why = format!("instance {} speaks {other}, which this version does not carry", instance.key);
            Err(Failure::new(Reason::Unsupported, why))
        }
    }
}

/// A request that may have to be sent more than once.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) head: Parts,
    body: Option<RequestBody>,
    /// How far a body that is streamed has come.
    progress: Option<Arc<Progress>>,
}

impl Outgoing {
    /// Takes the request over. A body of known, small length is read now, so that it can be repeated.
    pub(crate) async fn hold(head: Parts, body: Incoming, max_held: usize, deadline: Instant) -> Result<Self, Refused> {
        let body = match body.size_hint().exact() {
            Some(0) => RequestBody::Held(Bytes::new()),
            Some(length) if length <= max_held as u64 => match timeout_at(deadline, body.collect()).await {
                Ok(Ok(whole)) => RequestBody::Held(whole.to_bytes()),
                Ok(Err(error)) => {
                    return Err(Refused::new(Reason::BadRequest, broken_body(&error)));
                }
                Err(_) => return Err(Refused::new(Reason::SlowRequest, "the request's body did not come in time")),
            },
            _ => RequestBody::Stream(body, Progress::begin()),
        };
        let progress = match &body {
            RequestBody::Held(_) => None,
            RequestBody::Stream(_, progress) => Some(progress.clone()),
        };
        Ok(Self { head, body: Some(body), progress })
    }

    /// Whether it is still whole here: its body held in memory, or not touched yet.
    pub(crate) fn is_whole(&self) -> bool {
        self.body.is_some()
    }

    /// Whether it may be sent again although the application may have seen it.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.is_whole() && http1::is_idempotent(&self.head.method)
    }

    /// Whether its body is held in memory.
    fn is_held(&self) -> bool {
        matches!(self.body, Some(RequestBody::Held(_)))
    }

    pub(crate) fn method(&self) -> &Method {
        &self.head.method
    }

    fn request(&mut self, context: &Context, span: SpanId) -> Option<Request<RequestBody>> {
        let body = match self.body.take()? {
            RequestBody::Held(bytes) => {
                self.body = Some(RequestBody::Held(bytes.clone()));
                RequestBody::Held(bytes)
            }
            stream => stream,
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.headers_mut() = self.head.headers.clone();
        context.send(span, request.headers_mut());
        Some(request)
    }

    /// Takes back what was not sent.
    fn give_back(&mut self, request: Request<RequestBody>) {
        self.body = Some(request.into_body());
    }
}

/// Sends the request over an idle or new connection and waits for the head of the response.
pub(crate) async fn exchange(
    carrier: &Carrier,
    pool: &Pool,
    way: Way<'_>,
    outgoing: &mut Outgoing,
    context: &Context,
    span: SpanId,
    deadline: Instant,
) -> Result<(Response<Incoming>, Sender), Failure> {
    let may_give_up = outgoing.is_held() && outgoing.is_repeatable();
    let (progress, patience) = (outgoing.progress.clone(), carrier.settings.request_timeout());
    let sending = send_over_some_connection(carrier, pool, way, outgoing, context, span);
    let sending = within(deadline, progress.as_deref(), patience, sending);
    let exchanged = match way {
        Way::Tunnel(node, _) if may_give_up => tokio::select! {
            biased;
            exchanged = sending => exchanged,
            () = loss_of(carrier, node) => {
                return Err(Failure::new(Reason::Reset, format!("node {node} was lost while its answer was awaited")));
            }
        },
        _ => sending.await,
    };
    let Some(exchanged) = exchanged else {
        let since = if progress.is_some() { "any of its body passed" } else { "the request's arrival" };
        let why = format!("no response within {} ms after {since}", patience.as_millis());
        return Err(Failure::new(Reason::TimedOut, why));
    };
    let (mut response, sender) = exchanged?;
    if let (Way::Tunnel(..), Some(value)) = (way, response.headers().get(REASON)) {
        // The other sidecar answered, not the application; its connection stays good for the next request.
        let (reason, why) = Reason::read(value);
        return Err(Failure::new(reason, why));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for it: `Upgrade` is not passed on.
        return Err(Failure::new(Reason::Reset, "the application switched protocols unasked"));
    }
    http1::check_framing(response.headers_mut()).map_err(|why| Failure::new(Reason::Reset, why))?;
    http1::clean_response(&mut response);
    Ok((response, sender))
}

/// Waits until the deadline, and as long beyond it as a streamed body moves: a large upload takes the time it takes, one
/// that stalls ends after the patience with anything that stalls.
async fn within<F: Future>(
    mut deadline: Instant,
    progress: Option<&Progress>,
    patience: Duration,
    waiting: F,
) -> Option<F::Output> {
    let mut waiting = pin!(waiting);
    loop {
        if let Ok(done) = timeout_at(deadline, waiting.as_mut()).await {
            return Some(done);
        }
        deadline = progress.map(|body| body.last_moved() + patience).filter(|later| *later > deadline)?;
    }
}

/// Returns when the view, having shown the node alive, shows it alive no more. A node that dies without a word leaves
/// its tunnels silent for longer than membership needs to notice; whoever can ask elsewhere need not wait for them.
async fn loss_of(carrier: &Carrier, node: &NodeId) {
    let is_alive = || carrier.mesh.view().member(node).is_some_and(|member| member.state == MemberState::Alive);
    if !is_alive() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LOSS_LOOKUP).await;
        if !is_alive() {
            return;
        }
    }
}

async fn send_over_some_connection(
    carrier: &Carrier,
    pool: &Pool,
    way: Way<'_>,
    outgoing: &mut Outgoing,
    context: &Context,
    span: SpanId,
) -> Result<(Response<Incoming>, Sender), Failure> {
    // Ends: every turn but the last uses up one idle connection, and after a broken one no other is trusted.
    let mut trust_idle = true;
    loop {
        let idle = if trust_idle { pool.take(carrier.settings.idle_timeout()).await } else { None };
        let reused = idle.is_some();
        let mut sender = match idle {
            Some(sender) => sender,
            None => connect(carrier, way).await?,
        };
        let Some(request) = outgoing.request(context, span) else {
            return Err(Failure::new(Reason::Reset, "the request's body has been sent already"));
        };
        let mut failed = match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, sender)),
            Err(failed) => failed,
        };
        let unsent = failed.take_message();
        let error = failed.into_error();
        match unsent {
            Some(request) => {
                outgoing.give_back(request);
                if !reused {
                    return Err(Failure::new(Reason::Connect, format!("the connection closed at once: {error}")));
                }
            }
            // An idle connection that dies without a byte was most likely being closed as we sent; whoever may be
            // repeated gets a fresh one. Others may have been seen.
            None if let Some(refusal) = refusal_in(&error) => {
                return Err(Failure::new(Reason::Connect, refusal.to_string()));
            }
            None if error.is_user() => {
                return Err(Failure::new(Reason::BadRequest, broken_body(&error)));
            }
            None if reused && !error.is_parse() && outgoing.is_repeatable() => {}
            None => return Err(Failure::new(Reason::Reset, describe(&error))),
        }
        trust_idle = false;
    }
}

/// The other node's refusal of the tunnel: bytes were sent, but none was forwarded.
fn refusal_in(error: &hyper::Error) -> Option<TunnelRefusal> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.get_ref()?.downcast_ref::<TunnelRefusal>().copied();
        }
        source = error.source();
    }
    None
}

/// Why a request's body did not come whole: the innermost reason, which is the client's.
fn broken_body(error: &hyper::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    format!("the request's body broke off: {innermost}")
}

fn describe(error: &hyper::Error) -> String {
    let mut text = format!("the connection broke before a response: {error}");
    if let Some(source) = std::error::Error::source(error) {
        text.push_str(&format!(" ({source})"));
    }
    text
}

async fn connect(carrier: &Carrier, way: Way<'_>) -> Result<Sender, Failure> {
    let limit = carrier.settings.connect_timeout();
    let failed = |why: String| Failure::new(Reason::Connect, why);
    let stream: Box<dyn Stream> = match way {
        Way::Address(address) => {
            let connecting = TcpStream::connect((address.host.as_str(), address.port));
            let stream = timeout(limit, connecting)
                .await
                .map_err(|_| failed(format!("no connection to {address} within {} ms", limit.as_millis())))?
                .map_err(|error| failed(format!("no connection to {address}: {error}")))?;
            // Fails only on a socket that is broken already, which the next write will say better.
            let _ = stream.set_nodelay(true);
            Box::new(stream)
        }
        Way::Tunnel(node, key) => {
            let opening = carrier.mesh.open_tunnel(node, key, limit);
            opening.await.map_err(|error| failed(error.to_string()))?
        }
    };
    let open: &Arc<_> = &carrier.connections.upstream;
    handshake(stream, &carrier.settings, open).await.map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_moves_is_waited_for_and_one_that_stalls_is_not() {
        let (began, patience) = (Instant::now(), Duration::from_secs(30));
        let progress = Progress::begin();
        let upload = |pause| {
            let progress = progress.clone();
            async move {
                for _ in 0..5 {
                    tokio::time::sleep(Duration::from_secs(pause)).await;
                    progress.moved();
                }
            }
        };
        assert!(within(began + patience, Some(&progress), patience, upload(29)).await.is_some());
        assert_eq!(began.elapsed(), Duration::from_secs(5 * 29));
        assert!(within(Instant::now() + patience, Some(&progress), patience, upload(31)).await.is_none());
        assert!(within(Instant::now() + patience, None, patience, upload(7)).await.is_none(), "no body, no more time");
    }
}
