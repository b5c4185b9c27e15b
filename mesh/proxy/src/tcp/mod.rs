//! Bytes to a service: connections whose protocol is nobody's business here.
//!
//! | # | Step | Why here |
//! |---|---|---|
//! | 1 | this host's guard (`system`) | what this host cannot do at all shall cost nothing more |
//! | 2 | retry budget: deposit | what is carried is what retries may be a share of |
//! | 3 | choose: of two, drawn by weight, the one with fewer connections; with the breakers in the draw | a latency of connecting says nothing about what follows, so only their number is compared |
//! | 4 | connect, and hear from the other sidecar that it has connected too | until then not a byte is taken from the client, so another instance can be tried without anybody noticing |
//! | 5 | again, elsewhere: at most n, within the budget | |
//! | 6 | may the caller (`access`), and is its own host's guard for it: asked by the instance's sidecar before it connects | no caller's sidecar is trusted with it |
//! | 7 | bytes both ways | half-close, resets, back-pressure: see [`copy`] |
//! | 8 | learn | a breaker hears of every connection: refused, cut off before a word, or answered |

pub(crate) mod copy;
mod inbound;
mod opening;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use starling_core::access::{Called, Caller};
use starling_core::balance::{Ask, InFlight};
use starling_core::guard::{Fault, Permit};
use starling_core::id::{InstanceId, ServiceKey};
use starling_core::observe::SpanKind;
use starling_core::registry::Protocol;
use starling_core::view::InstanceView;
use tokio::time::Instant;

use crate::access::{self, Identity};
use crate::client::Client;
use crate::clock;
use crate::directory::Entry;
use crate::exchange::{self, Failure, Way};
use crate::mesh::Stream;
use crate::metrics::{End, Traffic};
use crate::pool::{Counted, Gauge, Pipe, Pool, Upstream};
use crate::reason::{self, Reason, Refused, Tried};
use crate::stack::{Carrier, Known};
use crate::system::Entered;
use crate::trace::{Context, OpenSpan};

use copy::{Copying, Ended};
pub(crate) use inbound::deliver;

/// An instance that ends a connection this soon, before its first byte, is taken for broken.
const EARLY: Duration = Duration::from_secs(5);

/// A connection to an instance, about to carry bytes.
pub(crate) struct Connected {
    upstream: Upstream,
    in_flight: InFlight<Pool>,
    permit: Permit,
    span: OpenSpan,
    instance: InstanceView,
    entry: Arc<Entry>,
    _open: Counted,
    /// In flight on this host for as long as it is open.
    _entered: Option<Entered>,
}

/// Connects to an instance of the service, for the service that `calls` if that is known.
///
/// # Errors
/// What was tried and why it did not work; no instance has seen anything of the client.
pub(crate) async fn connect(
    carrier: &Carrier,
    known: &Known,
    calls: Option<&ServiceKey>,
) -> Result<Connected, Refused> {
    let Known { key, entry, .. } = known;
    let context = Context::fresh(carrier.settings.trace_one_in);
    let _entered = match carrier.host.as_ref().filter(|host| host.asks_applications()) {
        Some(host) => {
            // Bytes say nothing of themselves: they matter as much as their service.
            let admitted = host.admit(key, entry, || known.whole().sections.classes.default);
            Some(admitted.inspect_err(|refused| note_refusal(carrier, Some((entry, context)), refused))?)
        }
        None => None,
    };
    entry.budget.deposit(carrier.clock.now());
    let mut identity = Identity::default();
    identity.refresh(carrier, calls);
    let mut service = known.service.clone();
    let mut group = entry.group(&service, &known.view, known.whole(), carrier);
    let mut tried: Vec<(InstanceId, Tried)> = Vec::new();
    let mut failure = Failure::new(Reason::NoneUsable, reason::why_unusable(&service));
    loop {
        let left_out: Vec<InstanceId> = tried.iter().map(|(id, _)| id.clone()).collect();
        let chosen =
            clock::with_dice(|dice| group.choose(carrier.clock.now(), dice, &Ask { tried: &left_out, key: None }));
        let chosen = chosen.map(|(slot, permit)| (slot.instance.clone(), InFlight::begin(&slot.seat), permit));
        let Some((instance, in_flight, permit)) = chosen else { break };
        if !tried.is_empty() {
            if !entry.budget.withdraw(carrier.clock.now()) {
                entry.metrics.retries_refused.fetch_add(1, Relaxed);
                break;
            }
            entry.metrics.retries.fetch_add(1, Relaxed);
        }
        let mut span = begin_span(carrier, &context, key, &instance);
        match attempt(carrier, known, &instance, &identity, context, &span).await {
            Ok(upstream) => {
                span.describe(|span| {
                    if !tried.is_empty() {
                        span.attributes.insert("http.request.resend_count".into(), tried.len().to_string());
                    }
                });
                let _open = Gauge::count(&entry.metrics.outbound_tcp.open);
                return Ok(Connected {
                    upstream,
                    in_flight,
                    permit,
                    span,
                    instance,
                    entry: entry.clone(),
                    _open,
                    _entered,
                });
            }
            Err(failed) => {
                // What may not be called is no worse for that, nor is one whose host has too much to do.
                if !matches!(failed.reason, Reason::Unsupported | Reason::Forbidden | Reason::Guard(_)) {
                    learn(carrier, entry, &instance, permit, Some(Fault::Silence));
                }
                span.fail(&failed.why);
                let id = instance.key.instance.clone();
                let note =
                    Tried { instance: id.to_string(), node: instance.owner().to_string(), error: failed.why.clone() };
                tried.push((id, note));
                failure = failed;
            }
        }
        if failure.reason == Reason::Forbidden {
            break;
        }
        if tried.len() > carrier.settings.max_retries as usize {
            break;
        }
        // The attempt may have waited long: whoever was registered meanwhile is a candidate too.
        let view = carrier.mesh.view();
        let Some(now) = view.service(key) else { break };
        service = now.clone();
        group = entry.group(&service, &view, known.whole(), carrier);
    }
    let reason = if failure.reason == Reason::NotHere { Reason::Connect } else { failure.reason };
    let tried = tried.into_iter().map(|(_, tried)| tried).collect();
    let mut refused = Refused::new(reason, failure.why).of(key);
    refused.tried = tried;
    note_refusal(carrier, Some((entry, context)), &refused);
    Err(refused)
}

/// Leaves a trace of a connection that was not carried.
pub(crate) fn note_refusal(carrier: &Carrier, of: Option<(&Entry, Context)>, refused: &Refused) {
    let metrics = of.map_or(carrier.directory.unknown(), |(entry, _)| &entry.metrics);
    metrics.outbound_tcp.ended(End::Failed);
    tracing::debug!(service = ?refused.service, why = %refused.why, "a connection was not carried");
    let context = of.map_or_else(|| Context::fresh(0), |(_, context)| context);
    if context.sampled() && !refused.tried.is_empty() {
        return; // its attempts have left theirs
    }
    let mut span = OpenSpan::begin(&context.of_failure(), SpanKind::Client, carrier.mesh.me(), carrier.mesh.spans());
    span.describe(|span| {
        span.name = "tcp".into();
        span.service = refused.service.as_ref().map_or_else(String::new, ServiceKey::to_string);
    });
    span.fail(&refused.summary());
}

async fn attempt(
    carrier: &Carrier,
    known: &Known,
    instance: &InstanceView,
    identity: &Identity,
    context: Context,
    span: &OpenSpan,
) -> Result<Upstream, Failure> {
    if instance.instance.protocol != Protocol::Tcp {
        let why = format!("instance {} is not one of protocol tcp", instance.key);
        return Err(Failure::new(Reason::Unsupported, why));
    }
    let limit = known.connect_timeout();
    let way = Way::to(instance, carrier.mesh.me());
    if matches!(way, Way::Address(_)) {
        // There is no other sidecar to ask.
        let caller = Caller { node: carrier.mesh.me(), service: identity.service() };
        access::check(carrier, &known.entry, &known.key, caller, Called::Bytes)?;
    }
    let mut upstream = exchange::connect(carrier, way, limit).await?;
    if matches!(way, Way::Tunnel(..)) {
        // The other sidecar has as long for its connection as this one for its own.
        let service = identity.text().unwrap_or_default();
        opening::knock(&mut upstream.pipe, context, span.id(), service, limit * 2).await?;
    }
    Ok(upstream)
}

impl Connected {
    /// Carries bytes until both ends have ended; the client's connection is at its end then.
    pub(crate) async fn carry<S: Stream>(self, carrier: &Carrier, client: &mut Client<S>) {
        let Self { mut upstream, in_flight, permit, span, instance, entry, _open, _entered } = self;
        let _own = match (&carrier.redirect, &upstream.pipe) {
            (Some(redirect), Pipe::Tcp(stream)) => redirect.own_end(stream),
            _ => None,
        };
        let traffic = &entry.metrics.outbound_tcp;
        let began = Instant::now();
        let (ended, moved) = {
            let patience = carrier.settings.tcp_idle_timeout();
            let sent = std::mem::take(&mut client.buffer);
            let sides = ((&mut client.io, sent), (&mut upstream.pipe, Default::default()));
            let mut copying = Copying::new(sides.0, sides.1, &mut client.alarm, patience, traffic);
            let answered = copying.until_answered().await;
            let fault = answered.as_ref().and_then(|ended| fault(ended, copying.moved(), began));
            learn(carrier, &entry, &instance, permit, fault);
            let ended = match answered {
                Some(ended) => ended,
                None => copying.until_ended().await,
            };
            (ended, copying.moved())
        };
        finish(&ended, moved, traffic, span);
        if !matches!(ended, Ended::Whole) {
            copy::cut_off(&mut client.io);
            upstream.pipe.cut_off();
        }
        drop(in_flight);
    }
}

/// What a connection that ended without a word from the instance says of it.
fn fault(ended: &Ended, moved: (u64, u64), began: Instant) -> Option<Fault> {
    let hung_up = match ended {
        Ended::Instance(_) => true,
        Ended::Whole => moved == (0, 0) && began.elapsed() < EARLY,
        Ended::Idle | Ended::Client(_) => false,
    };
    hung_up.then_some(Fault::Answer)
}

/// What is left to say when bytes have ended.
fn finish(ended: &Ended, (sent, received): (u64, u64), traffic: &Traffic, mut span: OpenSpan) {
    span.describe(|span| {
        span.attributes.insert("bytes.sent".into(), sent.to_string());
        span.attributes.insert("bytes.received".into(), received.to_string());
    });
    traffic.ended(ended.kind());
    match ended.error() {
        None => span.end(),
        Some(error) => span.fail(&error),
    }
}

/// What a connection says of the instance.
fn learn(carrier: &Carrier, entry: &Entry, instance: &InstanceView, permit: Permit, fault: Option<Fault>) {
    let now = carrier.clock.now();
    match fault {
        None => {
            if permit.succeed(now) {
                tracing::info!(instance = %instance.key, "the breaker closed: a probe went well");
            }
        }
        Some(fault) => {
            if permit.fail(fault, now, clock::random()) {
                entry.metrics.breaker_opens.fetch_add(1, Relaxed);
                carrier.ejected.notify_one();
                tracing::warn!(instance = %instance.key, "the breaker opened: its connections fail");
            }
        }
    }
}

fn begin_span(carrier: &Carrier, context: &Context, key: &ServiceKey, instance: &InstanceView) -> OpenSpan {
    let mesh = &carrier.mesh;
    let mut span = OpenSpan::begin(context, SpanKind::Client, mesh.me(), mesh.spans());
    span.describe(|span| {
        span.service = key.to_string();
        span.name = "tcp".into();
        span.attributes.insert("instance".into(), instance.key.instance.to_string());
        span.attributes.insert("server.node".into(), instance.owner().to_string());
    });
    span
}
