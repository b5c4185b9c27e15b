//! What an operator can set about the control surface.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use starling_core::id::ServiceName;

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
    /// How long a client may take no byte of an answer that is ready for it before its connection is closed. A query that
    /// waits for a change is not concerned. Default 30,000.
    pub write_timeout_ms: u64,
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
            write_timeout_ms: 30_000,
            ask_timeout_ms: 1_000,
            drain_timeout_ms: 2_000,
        }
    }
}

impl ApiSettings {
    /// What is wrong with them, if anything: the setting and what to do. [`crate::Api::bind`] looks too.
    ///
    /// # Errors
    /// A sentence for the person who wrote them.
    pub fn check(&self) -> Result<(), String> {
        if self.max_connections == 0 {
            return Err("max_connections is 0: nobody could ask anything".into());
        }
        if self.max_waiters >= self.max_connections {
            return Err(format!(
                "max_waiters {} must be below max_connections {}, or waiting queries can keep everybody else out",
                self.max_waiters, self.max_connections
            ));
        }
        for (name, ms) in [
            ("idle_timeout_ms", self.idle_timeout_ms),
            ("request_timeout_ms", self.request_timeout_ms),
            ("write_timeout_ms", self.write_timeout_ms),
            ("ask_timeout_ms", self.ask_timeout_ms),
        ] {
            if !(10..=MAX_TIMEOUT_MS).contains(&ms) {
                return Err(format!("{name} {ms} is not within 10 ms and 1 h"));
            }
        }
        // Names of services and of hosts are made of the same characters.
        let is_name = |host: &String| host.parse::<ServiceName>().is_ok();
        match self.allowed_hosts.iter().find(|host| !is_name(host)) {
            Some(host) => Err(format!("allowed_hosts: {host:?} is not a host name; give it without scheme and port")),
            None => Ok(()),
        }
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(crate) fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }

    pub(crate) fn ask_timeout(&self) -> Duration {
        Duration::from_millis(self.ask_timeout_ms)
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

/// The longest time any one step may be given: beyond it, somebody mistook the unit.
const MAX_TIMEOUT_MS: u64 = 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(change: impl FnOnce(&mut ApiSettings)) -> String {
        let mut settings = ApiSettings::default();
        change(&mut settings);
        settings.check().err().unwrap_or_default()
    }

    #[test]
    fn the_defaults_are_in_order() {
        assert_eq!(ApiSettings::default().check(), Ok(()));
        assert!(ApiSettings::default().listen.ip().is_loopback());
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        assert!(problem(|s| s.max_connections = 0).contains("max_connections"));
        assert!(problem(|s| s.max_waiters = 2_000).contains("max_waiters 2000"));
        assert!(problem(|s| s.idle_timeout_ms = 1).contains("idle_timeout_ms 1 "));
        assert!(problem(|s| s.write_timeout_ms = 0).contains("write_timeout_ms 0 "));
        assert!(problem(|s| s.allowed_hosts = vec!["http://x".into()]).contains("without scheme"));
    }
}
