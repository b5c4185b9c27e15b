//! What an operator can set about the control surface.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of the control surface. Durations are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiSettings {
    /// Where it listens; default 127.0.0.1:15000. There is no authentication: whoever reaches this address can change
    /// the mesh, so leave it on loopback unless the network in front of it decides who may.
    pub listen: SocketAddr,
    /// Host names, besides `localhost` and IP addresses, under which it may be addressed. Others are refused, so that
    /// a web page cannot reach it by pointing its own name at this host. Default none.
    pub allowed_hosts: Vec<String>,
    /// The most connections at once; further ones are answered 503 and closed. Default 1,024; stay below the
    /// process's limit of open files.
    pub max_connections: usize,
    /// The most blocking queries waiting at once; further ones are answered 429. Default 512, below
    /// `max_connections`, so that waiters leave room for writers.
    pub max_waiters: usize,
    /// How long a connection may take to send the headers of its next request, idle time between requests included.
    /// Default 60,000.
    pub idle_timeout_ms: u64,
    /// How long a request's body may take to arrive, and a write to be carried out. Default 10,000.
    pub request_timeout_ms: u64,
    /// How long other nodes may take to answer a question about status or traces. Default 1,000.
    pub ask_timeout_ms: u64,
    /// How long requests in flight may take to end when the node stops. Default 2,000.
    pub drain_timeout_ms: u64,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 15_000)),
            allowed_hosts: Vec::new(),
            max_connections: 1_024,
            max_waiters: 512,
            idle_timeout_ms: 60_000,
            request_timeout_ms: 10_000,
            ask_timeout_ms: 1_000,
            drain_timeout_ms: 2_000,
        }
    }
}

impl ApiSettings {
    /// [`Self::idle_timeout_ms`] as a duration, at least 10 ms.
    pub(crate) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms.max(10))
    }

    /// [`Self::request_timeout_ms`] as a duration, at least 10 ms.
    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms.max(10))
    }

    /// [`Self::ask_timeout_ms`] as a duration, at least 10 ms.
    pub(crate) fn ask_timeout(&self) -> Duration {
        Duration::from_millis(self.ask_timeout_ms.max(10))
    }

    /// [`Self::drain_timeout_ms`] as a duration.
    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}
