//! What an operator can set about the data plane.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use starling_core::guard::{BreakerSettings, BudgetSettings, SystemSettings};
use starling_core::id::{Namespace, ServiceKey};
use starling_core::policy::{Sections, Timeouts};
use starling_core::tolerate::RetrySettings;

use crate::bound::BoundPort;
use crate::h1::forwarded::Forwarded;
use crate::http2::Http2Settings;
use crate::redirect::RedirectUnknown;
use crate::tls::ProxyTlsSettings;

/// The data plane's settings. Durations are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxySettings {
    /// Where local applications reach the sidecar; loopback unless everybody on the network may call as this host.
    /// Default `127.0.0.1:15001`; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where connections are taken that the kernel redirects (nftables' `redirect`), so that programs need not be pointed at
    /// the sidecar: IP:PORT, on Linux; `[::]:PORT` takes IPv4 and IPv6. Empty (default): nowhere.
    #[serde(with = "address_or_none")]
    pub redirect_listen: Option<SocketAddr>,
    /// What becomes of redirected connections that mean nothing of the mesh: "pass" (default) carries their bytes to where
    /// they were meant to go, "refuse" does not.
    pub redirect_unknown: RedirectUnknown,
    /// The last label of host names that mean services: `orders.mesh`. One label; default "mesh".
    pub suffix: String,
    /// The service on whose behalf the applications of this host call, as SERVICE or NAMESPACE/SERVICE: what rules of access
    /// know them by. Only a service this node has an instance of counts. Empty (default): the only service it has instances
    /// of; with several, none. A port of an upstream may say otherwise of those who come by it.
    pub identity: String,
    /// How applications are told whom a request came from first: `off` (default; the client is an application of this
    /// host), `append` (`Forwarded`, RFC 7239), `x-forwarded` (`X-Forwarded-For`, `-Host`, `-Proto`) or `both`.
    pub forwarded: Forwarded,
    /// Whether such fields of the application's own are kept (and added to). True (default) where applications hand on
    /// what their own proxy wrote; false drops them as forged.
    pub forwarded_keep: bool,
    /// How long connecting to an instance may take. 1 to 60,000; default 1,000.
    pub connect_timeout_ms: u64,
    /// How long a request may take, retries included, until its response begins; the response's body may take longer. A
    /// request's body too large to be held may take longer too, as long as some of it passes within every such time.
    /// Calls of gRPC wait as long as their callers say (`grpc-timeout`), or for ever. 1 to 3,600,000; default 30,000.
    pub request_timeout_ms: u64,
    /// How long a client may take to send a request's headers, also how long it may be idle between requests.
    /// 100 to 3,600,000; default 60,000.
    pub header_timeout_ms: u64,
    /// The largest head of a request or response. 8,192 to 1,048,576; default 65,536.
    pub max_head_bytes: usize,
    /// The most header fields of a request or response. 1 to 1,000; default 100.
    pub max_headers: usize,
    /// The most connections from applications at once; more wait to be accepted. At least 1; default 10,000.
    pub max_connections: usize,
    /// The most tunnels from other nodes at once; more are refused. At least 1; default 10,000.
    pub max_tunnels: usize,
    /// The most idle connections kept per instance. Default 64.
    pub max_idle_per_instance: usize,
    /// How long an idle connection to an instance is kept. 100 to 3,600,000; default 4,500: below the 5 s after which
    /// Node.js closes one, because a request sent while it closes is lost.
    pub idle_timeout_ms: u64,
    /// How long an instance may say nothing within a response's body, while nothing of the request moves either; then the
    /// response is broken off, and counts as failed. Calls of gRPC may be silent as long as their callers wait.
    /// 0 (for ever) to 3,600,000; default 300,000 (Envoy).
    pub body_idle_timeout_ms: u64,
    /// How long a connection of bytes (a TCP service, an upgraded one) may carry nothing in either direction.
    /// 0 (for ever) to 604,800,000; default 3,600,000 (Envoy).
    pub tcp_idle_timeout_ms: u64,
    /// The most retries of one request. 0 to 10; default 2.
    pub max_retries: u32,
    /// The wait before the first retry is random up to this, before the second up to three times this, and so on
    /// (doubling plus one). 0 to 10,000; default 25 (Envoy).
    pub retry_backoff_ms: u64,
    /// Bodies of known length up to this are held in memory so that the request can be repeated.
    /// 0 to 16,777,216; default 65,536 (Linkerd).
    pub max_replay_bytes: usize,
    /// Of the traces that begin here, one in so many is kept; a caller's own decision is respected, and failures are kept
    /// always. 1 keeps all, 0 none; default 100, that is 1 %.
    pub trace_one_in: u32,
    /// How many threads carry requests; connections are dealt to whichever has the fewest. 0 (default): one for each
    /// core.
    pub workers: usize,
    /// How many sidecars a request may pass before it is taken for a loop. 1 to 1,000; default 16.
    pub max_hops: u32,
    /// TLS for applications, on the same port.
    pub tls: ProxyTlsSettings,
    /// HTTP/2 connections, from applications and to instances.
    pub http2: Http2Settings,
    /// When retries are allowed.
    pub retry_budget: BudgetSettings,
    /// When an instance is taken out because its answers fail.
    pub breaker: BreakerSettings,
    /// What this host may be burdened with, before it refuses requests. Default: nothing is limited.
    pub system: SystemSettings,
    /// Ports that lead to one service each; of the settings file these are the lists `[[upstream]]`.
    #[serde(skip)]
    pub upstreams: Vec<BoundPort>,
    /// Where requests are kept that are to be sent later: the node's data directory. Without one, none are.
    #[serde(skip)]
    pub data_dir: Option<PathBuf>,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 15_001)),
            redirect_listen: None,
            redirect_unknown: RedirectUnknown::Pass,
            suffix: "mesh".into(),
            identity: String::new(),
            forwarded: Forwarded::Off,
            forwarded_keep: true,
            connect_timeout_ms: 1_000,
            request_timeout_ms: 30_000,
            header_timeout_ms: 60_000,
            max_head_bytes: 65_536,
            max_headers: 100,
            max_connections: 10_000,
            max_tunnels: 10_000,
            max_idle_per_instance: 64,
            idle_timeout_ms: 4_500,
            body_idle_timeout_ms: 300_000,
            tcp_idle_timeout_ms: 3_600_000,
            max_retries: 2,
            retry_backoff_ms: 25,
            max_replay_bytes: 65_536,
            trace_one_in: 100,
            workers: 0,
            max_hops: 16,
            tls: ProxyTlsSettings::default(),
            http2: Http2Settings::default(),
            retry_budget: BudgetSettings::default(),
            breaker: BreakerSettings::default(),
            system: SystemSettings::default(),
            upstreams: Vec::new(),
            data_dir: None,
        }
    }
}

impl ProxySettings {
    /// What is out of its range, if anything.
    ///
    /// # Errors
    /// A sentence for the operator: the field, its value, its range.
    pub fn check(&self) -> Result<(), String> {
        let label = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.suffix.is_empty() || self.suffix.len() > 63 || !self.suffix.chars().all(label) {
            return Err(format!("suffix {:?} is not one label of a host name (a-z, 0-9, '-', '_')", self.suffix));
        }
        if !self.identity.is_empty() && self.identity().is_none() {
            return Err(format!("identity {:?} is not SERVICE or NAMESPACE/SERVICE", self.identity));
        }
        let hour_ms = 3_600_000;
        for (field, value, min, max) in [
            ("connect_timeout_ms", self.connect_timeout_ms, 1, 60_000),
            ("request_timeout_ms", self.request_timeout_ms, 1, hour_ms),
            ("header_timeout_ms", self.header_timeout_ms, 100, hour_ms),
            ("max_head_bytes", self.max_head_bytes as u64, 8_192, 1 << 20),
            ("max_headers", self.max_headers as u64, 1, 1_000),
            ("max_connections", self.max_connections as u64, 1, 1 << 20),
            ("max_tunnels", self.max_tunnels as u64, 1, 1 << 20),
            ("max_idle_per_instance", self.max_idle_per_instance as u64, 0, 100_000),
            ("idle_timeout_ms", self.idle_timeout_ms, 100, hour_ms),
            ("body_idle_timeout_ms", self.body_idle_timeout_ms, 0, hour_ms),
            ("tcp_idle_timeout_ms", self.tcp_idle_timeout_ms, 0, 7 * 24 * hour_ms),
            ("max_retries", u64::from(self.max_retries), 0, 10),
            ("retry_backoff_ms", self.retry_backoff_ms, 0, 10_000),
            ("max_replay_bytes", self.max_replay_bytes as u64, 0, 16 << 20),
            ("workers", self.workers as u64, 0, 1_024),
            ("max_hops", u64::from(self.max_hops), 1, 1_000),
        ]
        .into_iter()
        .chain(self.http2.ranges())
        {
            if !(min..=max).contains(&value) {
                return Err(format!("{field} is {value}, allowed are {min} to {max}"));
            }
        }
        let budget = self.retry_budget.check().map_err(|invalid| invalid.under("retry_budget"));
        budget
            .and_then(|()| self.breaker.check().map_err(|invalid| invalid.under("breaker")))
            .and_then(|()| self.system.check().map_err(|invalid| invalid.under("system")))
            .map_err(|e| e.to_string())
    }

    pub(crate) fn identity(&self) -> Option<ServiceKey> {
        let text = self.identity.as_str();
        let (namespace, service) = text.split_once('/').unzip();
        let namespace = namespace.map_or(Ok(Namespace::default()), str::parse).ok()?;
        Some(ServiceKey { namespace, service: service.unwrap_or(text).parse().ok()? })
    }

    /// What of this a policy can set, as a policy's sections.
    pub(crate) fn as_policy(&self) -> toml::Table {
        let sections = Sections {
            timeouts: self.timeouts(),
            retry: RetrySettings {
                max_retries: self.max_retries,
                backoff_ms: self.retry_backoff_ms,
                budget: self.retry_budget,
                ..RetrySettings::default()
            },
            breaker: self.breaker,
            ..Sections::default()
        };
        sections.beside_defaults()
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        Timeouts { request_ms: self.request_timeout_ms, connect_ms: self.connect_timeout_ms }
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// `None`: for ever.
    pub(crate) fn body_idle_timeout(&self) -> Option<Duration> {
        (self.body_idle_timeout_ms > 0).then(|| Duration::from_millis(self.body_idle_timeout_ms))
    }

    /// `None`: for ever.
    pub(crate) fn tcp_idle_timeout(&self) -> Option<Duration> {
        (self.tcp_idle_timeout_ms > 0).then(|| Duration::from_millis(self.tcp_idle_timeout_ms))
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }
}

/// An address to listen on; none is the empty text.
mod address_or_none {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong =
            || de::Error::custom(format!("{text:?} is no address to listen on: write IP:PORT, or \"\" for none"));
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_ranges() {
        assert_eq!(ProxySettings::default().check(), Ok(()));
    }

    #[test]
    fn a_value_out_of_range_is_named() {
        let settings = ProxySettings { max_head_bytes: 10, ..ProxySettings::default() };
        assert_eq!(settings.check().unwrap_err(), "max_head_bytes is 10, allowed are 8192 to 1048576");
        let settings = ProxySettings { suffix: "a.b".into(), ..ProxySettings::default() };
        assert!(settings.check().unwrap_err().contains("suffix"));
        let system = SystemSettings { max_cpu_percent: 101, ..SystemSettings::default() };
        let settings = ProxySettings { system, ..ProxySettings::default() };
        assert_eq!(settings.check().unwrap_err(), "system.max_cpu_percent is 101, allowed are 0 to 100");
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        assert!(serde_json::from_str::<ProxySettings>(r#"{"listn": "127.0.0.1:1"}"#).is_err());
        let settings: ProxySettings = serde_json::from_str(r#"{"breaker": {"open_ms": 200}}"#).unwrap();
        assert_eq!(settings.breaker.open_ms, 200);
    }

    #[test]
    fn an_address_for_redirected_connections_is_one_or_the_empty_text_for_none() {
        let read = |text: &str| serde_json::from_str::<ProxySettings>(&format!("{{\"redirect_listen\": {text:?}}}"));
        assert_eq!(read("").unwrap().redirect_listen, None);
        let settings = read("127.0.0.1:15006").unwrap();
        assert_eq!(settings.redirect_listen.unwrap().port(), 15_006);
        assert_eq!(serde_json::to_value(&settings).unwrap()["redirect_listen"], "127.0.0.1:15006");
        assert!(read("15006").unwrap_err().to_string().contains("write IP:PORT"));
    }
}
