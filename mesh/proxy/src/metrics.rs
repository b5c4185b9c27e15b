//! What the data plane counts: fixed sets of atomics per service, written without a lock, shown on demand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::StatusCode;
use starling_core::id::ServiceKey;
use starling_core::observe::{Exposition, MetricSource};

use crate::directory::Entry;
use crate::keys;
use crate::pool::Gauge;
use crate::quotas;
use crate::stack::Carrier;

/// Upper bounds in microseconds: OpenTelemetry's for HTTP, and finer ones below 5 ms where a sidecar lives.
const BUCKETS_US: [u64; 19] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000,
    2_500_000, 5_000_000, 7_500_000, 10_000_000,
];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// One direction of one service.
#[derive(Debug, Default)]
pub(crate) struct Side {
    classes: [AtomicU64; CLASSES.len()],
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Side {
    /// A response's head was sent after `took`.
    pub(crate) fn record(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        let us = took.as_micros() as u64;
        self.classes[class].fetch_add(1, Relaxed);
        self.buckets[BUCKETS_US.partition_point(|bound| *bound < us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    fn is_empty(&self) -> bool {
        self.classes.iter().all(|class| class.load(Relaxed) == 0)
    }
}

/// Connections of bytes, in one direction of one service.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) open: Arc<Gauge>,
    /// Bytes to the instance.
    pub(crate) sent: AtomicU64,
    /// Bytes from the instance.
    pub(crate) received: AtomicU64,
    ended: [AtomicU64; ENDS.len()],
}

/// How a connection of bytes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As its ends wanted.
    Whole,
    /// One end broke off.
    Broken,
    /// It carried nothing for too long.
    Idle,
    /// No instance could be reached; nothing was carried.
    Failed,
}

const ENDS: [&str; 4] = ["whole", "broken", "idle", "failed"];

impl Traffic {
    /// A connection has ended.
    pub(crate) fn ended(&self, end: End) {
        self.ended[end as usize].fetch_add(1, Relaxed);
    }

    fn is_empty(&self) -> bool {
        self.open.value() == 0 && self.ended.iter().all(|count| count.load(Relaxed) == 0)
    }
}

/// One service.
#[derive(Debug, Default)]
pub(crate) struct ServiceMetrics {
    pub(crate) outbound: Side,
    pub(crate) inbound: Side,
    pub(crate) outbound_tcp: Traffic,
    pub(crate) inbound_tcp: Traffic,
    pub(crate) retries: AtomicU64,
    pub(crate) retries_refused: AtomicU64,
    pub(crate) breaker_opens: AtomicU64,
    pub(crate) hedges: AtomicU64,
    /// Failures the caller was not told of.
    pub(crate) tolerated: AtomicU64,
    /// Requests the rules of access refused at the instance's side.
    pub(crate) access_denied: AtomicU64,
    /// Requests a policy's fallback stood in for.
    pub(crate) fallbacks: AtomicU64,
    /// Requests the sidecar answered itself.
    pub(crate) own_answers: AtomicU64,
}

/// What belongs to no service.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// From applications.
    pub(crate) outbound: Arc<Gauge>,
    /// Tunnels from other nodes.
    pub(crate) tunnels: Arc<Gauge>,
    /// To instances, idle ones included.
    pub(crate) upstream: Arc<Gauge>,
    /// Requests to instances by shared connections of HTTP/2.
    pub(crate) calls: Arc<Gauge>,
    /// Tunnels refused because there were too many.
    pub(crate) tunnels_refused: AtomicU64,
    /// Times accepting had to wait because there were too many connections.
    pub(crate) accepts_delayed: AtomicU64,
}

type Counter = fn(&ServiceMetrics) -> &AtomicU64;

impl MetricSource for Carrier {
    fn collect(&self, out: &mut Exposition) {
        let entries = self.directory.entries();
        let mut services: Vec<(String, &ServiceMetrics)> =
            entries.iter().map(|(key, entry)| (key.to_string(), &entry.metrics)).collect();
        services.push(("unknown".into(), self.directory.unknown()));

        out.family("starling_requests_total", "counter", "Requests carried, by class of status.");
        for_each_side(&services, |service, direction, side| {
            for (class, count) in CLASSES.iter().zip(&side.classes) {
                let labels = [("service", service), ("direction", direction), ("class", class)];
                out.sample("starling_requests_total", &labels, count.load(Relaxed) as f64);
            }
        });
        out.family("starling_request_duration_seconds", "histogram", "Time until the response began.");
        for_each_side(&services, |service, direction, side| histogram(out, service, direction, side));

        let counters: [(&str, &str, Counter); 8] = [
            ("starling_retries_total", "Requests sent once more.", |m| &m.retries),
            ("starling_retries_refused_total", "Retries the budget did not allow.", |m| &m.retries_refused),
            ("starling_hedges_total", "Requests sent to a second instance while the first was awaited.", |m| &m.hedges),
            ("starling_failures_tolerated_total", "Failures answered as if they were none.", |m| &m.tolerated),
            ("starling_breaker_opens_total", "Times an instance's breaker opened.", |m| &m.breaker_opens),
            ("starling_access_denied_total", "Requests refused here by rules of access.", |m| &m.access_denied),
            ("starling_fallbacks_total", "Requests a fallback stood in for.", |m| &m.fallbacks),
            ("starling_own_answers_total", "Requests the sidecar answered itself.", |m| &m.own_answers),
        ];
        for (name, help, counter) in counters {
            out.family(name, "counter", help);
            for (service, metrics) in &services {
                out.sample(name, &[("service", service)], counter(metrics).load(Relaxed) as f64);
            }
        }
        traffic(out, &services, self.redirect.as_ref().map(|redirect| &redirect.passing));
        if let Some(redirect) = &self.redirect {
            redirect.collect(out);
        }
        let now: Vec<_> = entries.iter().map(|(key, entry)| (key.to_string(), entry.broken_and_in_flight())).collect();
        out.family("starling_breakers_open", "gauge", "Instances taken out by their breaker, those being probed too.");
        for (service, (broken, _)) in &now {
            out.sample("starling_breakers_open", &[("service", service)], *broken as f64);
        }
        out.family("starling_ejections_spared_total", "counter", "Instances a breaker left in, too many being out.");
        for (key, entry) in entries.iter() {
            let spared = entry.roster().map_or(0, |roster| roster.ejections().spared());
            out.sample("starling_ejections_spared_total", &[("service", &key.to_string())], spared as f64);
        }
        out.family("starling_ejection_checks_total", "counter", "Checks of instances taken out, by what they said.");
        for (key, Entry { checks, .. }) in entries.iter().map(|(key, entry)| (key.to_string(), &**entry)) {
            for (word, count) in [("well", &checks.well), ("ill", &checks.ill), ("unknown", &checks.unknown)] {
                let labels = [("service", key.as_str()), ("word", word)];
                out.sample("starling_ejection_checks_total", &labels, count.load(Relaxed) as f64);
            }
        }
        last_good(out, &entries);
        self.failback.collect(out);
        out.family("starling_requests_in_flight", "gauge", "Requests sent whose response is not yet carried.");
        for (service, (_, in_flight)) in &now {
            out.sample("starling_requests_in_flight", &[("service", service)], *in_flight as f64);
        }
        out.family("starling_guard_refusals_total", "counter", "Requests a guard refused.");
        for (key, entry) in entries.iter() {
            for (why, count) in entry.refusals.all() {
                let service = key.to_string();
                let labels =
                    [("service", service.as_str()), ("guard", why.guard), ("reason", why.reason), ("rule", &why.rule)];
                out.sample("starling_guard_refusals_total", &labels, count as f64);
            }
        }
        out.family(
            "starling_policy_problems",
            "gauge",
            "What is wrong with a service's policies; the last good one holds.",
        );
        for (key, entry) in entries.iter() {
            let problems = entry.policy.problems().len();
            out.sample("starling_policy_problems", &[("service", &key.to_string())], problems as f64);
        }
        self.ground.collect(out);
        keys::collect(&entries, out);
        quotas::collect(self, out);
        if let Some(host) = &self.host {
            host.collect(out);
        }
        self.connections.collect(out);
        if let Some(tls) = &self.tls {
            tls.collect(out);
        }
    }
}

/// Answers that are kept to stand in, of services that have any.
fn last_good(out: &mut Exposition, entries: &BTreeMap<ServiceKey, Arc<Entry>>) {
    let of = |(key, entry): (&ServiceKey, &Arc<Entry>)| {
        let kept = entry.last_good.lock();
        (key.to_string(), [kept.len() as f64, kept.bytes() as f64, kept.dropped() as f64])
    };
    let all: Vec<_> = entries.iter().map(of).filter(|(_, counts)| counts.iter().any(|count| *count > 0.0)).collect();
    let families = [
        ("starling_last_good_kept", "gauge", "Answers kept to stand in when there are none."),
        ("starling_last_good_bytes", "gauge", "Bytes they have."),
        ("starling_last_good_dropped_total", "counter", "Answers not kept any more, or never, for a bound."),
    ];
    for (place, (name, kind, help)) in families.into_iter().enumerate() {
        out.family(name, kind, help);
        for (service, counts) in &all {
            out.sample(name, &[("service", service)], counts[place]);
        }
    }
}

fn for_each_side(services: &[(String, &ServiceMetrics)], mut f: impl FnMut(&str, &str, &Side)) {
    for (service, metrics) in services {
        for (direction, side) in [("outbound", &metrics.outbound), ("inbound", &metrics.inbound)] {
            if !side.is_empty() {
                f(service, direction, side);
            }
        }
    }
}

/// Connections of bytes; redirected ones that pass through are of the service `elsewhere`, which can be none's name.
fn traffic(out: &mut Exposition, services: &[(String, &ServiceMetrics)], elsewhere: Option<&Traffic>) {
    let all: Vec<(&str, &str, &Traffic)> = services
        .iter()
        .flat_map(|(service, m)| [(&**service, "outbound", &m.outbound_tcp), (service, "inbound", &m.inbound_tcp)])
        .chain(elsewhere.map(|traffic| ("elsewhere", "outbound", traffic)))
        .filter(|(_, _, traffic)| !traffic.is_empty())
        .collect();
    out.family("starling_tcp_connections_open", "gauge", "Connections of bytes that are open.");
    for (service, direction, traffic) in &all {
        let labels = [("service", *service), ("direction", *direction)];
        out.sample("starling_tcp_connections_open", &labels, traffic.open.value() as f64);
    }
    out.family("starling_tcp_connections_total", "counter", "Connections of bytes that have ended, and how.");
    for (service, direction, traffic) in &all {
        for (end, count) in ENDS.iter().zip(&traffic.ended) {
            let labels = [("service", *service), ("direction", *direction), ("end", *end)];
            out.sample("starling_tcp_connections_total", &labels, count.load(Relaxed) as f64);
        }
    }
    out.family("starling_tcp_bytes_total", "counter", "Bytes of such connections, to and from instances.");
    for (service, direction, traffic) in &all {
        for (way, bytes) in [("sent", &traffic.sent), ("received", &traffic.received)] {
            let labels = [("service", *service), ("direction", *direction), ("way", way)];
            out.sample("starling_tcp_bytes_total", &labels, bytes.load(Relaxed) as f64);
        }
    }
}

fn histogram(out: &mut Exposition, service: &str, direction: &str, side: &Side) {
    let mut cumulative = 0;
    for (i, count) in side.buckets.iter().enumerate() {
        cumulative += count.load(Relaxed);
        let bound = BUCKETS_US.get(i).map_or("+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
        let labels = [("service", service), ("direction", direction), ("le", bound.as_str())];
        out.sample("starling_request_duration_seconds_bucket", &labels, cumulative as f64);
    }
    let labels = [("service", service), ("direction", direction)];
    out.sample("starling_request_duration_seconds_sum", &labels, side.sum_us.load(Relaxed) as f64 / 1e6);
    out.sample("starling_request_duration_seconds_count", &labels, cumulative as f64);
}

impl Connections {
    fn collect(&self, out: &mut Exposition) {
        out.family("starling_proxy_connections", "gauge", "Open connections of the data plane.");
        for (kind, gauge) in [("application", &self.outbound), ("tunnel", &self.tunnels), ("instance", &self.upstream)]
        {
            out.sample("starling_proxy_connections", &[("kind", kind)], gauge.value() as f64);
        }
        let calls = self.calls.value() as f64;
        out.single("starling_http2_calls", "gauge", "Requests being carried by shared HTTP/2 connections.", calls);
        let refused = self.tunnels_refused.load(Relaxed) as f64;
        out.single("starling_tunnels_refused_total", "counter", "Tunnels refused, too many being open.", refused);
        let delayed = self.accepts_delayed.load(Relaxed) as f64;
        out.single("starling_accepts_delayed_total", "counter", "Accepts delayed, too many being open.", delayed);
    }
}
