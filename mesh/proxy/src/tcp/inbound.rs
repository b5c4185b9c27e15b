//! Bytes that other nodes bring through tunnels for instances of this node.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use starling_core::observe::SpanKind;
use starling_core::registry::Protocol;
use starling_core::view::InstanceView;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::copy::{self, Copying, Ended};
use super::opening::{self, MAX_LENGTH, Opening, Verdict};
use crate::client::Client;
use crate::directory::Entry;
use crate::exchange::{self, Way};
use crate::inbound::{Tunnel, find_owned, may_connect};
use crate::mesh::Stream;
use crate::metrics::End;
use crate::pool::Gauge;
use crate::reason::Refused;
use crate::stack::Carrier;
use crate::system::{Entered, Host};
use crate::trace::{Context, OpenSpan};

/// Brings a tunnel's bytes to the instance it leads to.
pub(crate) async fn deliver<S: Stream>(mut client: Client<S>, carrier: &Carrier, mut tunnel: Tunnel) {
    let limit = Duration::from_millis(carrier.settings.connect_timeout_ms);
    let Some(opening) = read_opening(limit, &mut client).await else { return };
    let instance = match find_owned(carrier, &tunnel.to) {
        Ok(instance) if instance.instance.protocol == Protocol::Tcp => instance,
        Ok(_) => return refuse(client, Verdict::NotBytes).await,
        Err(_) => return refuse(client, Verdict::NotHere).await,
    };
    let entry = carrier.directory.entry(&tunnel.to.service, &carrier.settings);
    let traffic = &entry.metrics.inbound_tcp;
    let span = begin_span(carrier, &opening.context, &tunnel, &instance);
    if let Err(failure) = may_connect(carrier, &mut tunnel, &opening.service) {
        span.fail(&failure.why);
        tracing::debug!(caller = %tunnel.from, "refused a connection: {}", failure.why);
        return refuse(client, Verdict::Forbidden).await;
    }
    let _entered = match carrier.host.as_ref().map(|host| admit(carrier, host, &tunnel, &entry)).transpose() {
        Ok(entered) => entered,
        Err(refused) => {
            span.fail(&refused.why);
            traffic.ended(End::Failed);
            return refuse(client, Verdict::Burdened).await;
        }
    };
    let mut upstream = match exchange::connect(carrier, Way::Address(&instance.instance.address), limit).await {
        Ok(upstream) => upstream,
        Err(failure) => {
            span.fail(&failure.why);
            traffic.ended(End::Failed);
            return refuse(client, Verdict::Unreachable).await;
        }
    };
    if opening::answer(&mut client.io, Verdict::Go).await.is_err() {
        return; // the caller is gone; the span says so
    }
    let _open = Gauge::count(&traffic.open);
    let (ended, moved) = {
        let sent = std::mem::take(&mut client.buffer);
        let patience = carrier.settings.tcp_idle_timeout();
        let sides = ((&mut client.io, sent), (&mut upstream.pipe, Default::default()));
        let mut copying = Copying::new(sides.0, sides.1, &mut client.alarm, patience, traffic);
        let ended = copying.until_ended().await;
        (ended, copying.moved())
    };
    super::finish(&ended, moved, traffic, span);
    if !matches!(ended, Ended::Whole) {
        copy::cut_off(&mut client.io);
        upstream.pipe.cut_off();
    }
}

/// Lets a connection into this host, or refuses it. It matters as much as its service.
fn admit(carrier: &Carrier, host: &Host, tunnel: &Tunnel, entry: &Entry) -> Result<Entered, Refused> {
    let service = &tunnel.to.service;
    host.admit(service, entry, || {
        let force = entry.policy.force(service, &carrier.mesh.view(), &carrier.ground, carrier.clock);
        force.service.sections.classes.default
    })
}

async fn refuse<S: Stream>(mut client: Client<S>, verdict: Verdict) {
    // Whoever does not hear it is gone already.
    let _ = opening::answer(&mut client.io, verdict).await;
    let _ = client.io.shutdown().await;
}

/// The opening whose first byte is there; `None` when the rest does not come.
async fn read_opening<S: Stream>(limit: Duration, client: &mut Client<S>) -> Option<Opening> {
    client.alarm.set(Instant::now() + limit);
    poll_fn(|cx| {
        loop {
            match opening::read(client.buffer.data()) {
                Ok(None) => {}
                Ok(Some(opening)) => {
                    client.buffer.consume(opening.length);
                    return Poll::Ready(Some(opening));
                }
                Err(()) => return Poll::Ready(None),
            }
            match client.buffer.poll_fill(&mut client.io, cx, MAX_LENGTH) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => return client.alarm.poll(cx).map(|()| None),
            }
        }
    })
    .await
}

fn begin_span(carrier: &Carrier, context: &Context, tunnel: &Tunnel, instance: &InstanceView) -> OpenSpan {
    let mut span = OpenSpan::begin(context, SpanKind::Server, carrier.mesh.me(), carrier.mesh.spans());
    span.describe(|span| {
        span.service = instance.key.service.to_string();
        span.name = "tcp".into();
        span.attributes.insert("instance".into(), instance.key.instance.to_string());
        span.attributes.insert("client.node".into(), tunnel.from.to_string());
    });
    span
}
