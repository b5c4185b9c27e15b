//! Settings of a node: one TOML file, environment, flags.
//!
//! Later layers win: built-in defaults, the file, `STARLING_SECTION_KEY` variables, flags. Every value remembers where
//! it came from. What is unknown or malformed is refused here, by name and line, and believed everywhere else.

mod duration;
mod file;
mod known;
mod load;
mod section;
mod seed;
mod service;
mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use starling_api::ApiSettings;
use starling_core::id::{CellName, MeshName, NodeId, Region, Zone};
use starling_core::registry::Registration;
use starling_net::MemberSettings;
use starling_net::quic::Limits;
use starling_proxy::ProxySettings;

pub use duration::HumanDuration;
pub use load::{Flag, Loaded, Origin, SettingsError, Sources, load};
pub use seed::Seed;
pub use service::{CheckSettings, CheckWord, ServiceSettings};
pub use upstream::UpstreamSettings;

/// Where nodes talk QUIC unless told otherwise.
pub const DEFAULT_QUIC_PORT: u16 = 15_100;
/// Where a node's API listens unless told otherwise.
pub const DEFAULT_API_PORT: u16 = 15_000;

/// Everything that can be set about a node.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// Whether a throw-away certificate authority on loopback may stand in for real certificates.
    pub dev: bool,
    /// `[node]`
    pub node: NodeSettings,
    /// `[tls]`
    pub tls: TlsSettings,
    /// `[gossip]`; its zone is the node's.
    pub gossip: starling_core::Settings,
    /// `[api]`
    pub api: ApiSettings,
    /// `[proxy]`
    pub proxy: ProxySettings,
    /// `[members]`; its seeds are the node's.
    pub members: MemberSettings,
    /// `[links]`
    pub links: Limits,
    /// `[log]`
    pub log: LogSettings,
    /// `[[service]]`, in the order of the file.
    #[serde(rename = "service")]
    pub services: Vec<ServiceSettings>,
    /// `[[upstream]]`, in the order of the file.
    #[serde(rename = "upstream")]
    pub upstreams: Vec<UpstreamSettings>,
}

/// `[node]`: who this node is and how its peers reach it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSettings {
    /// Its name, unique in the mesh and equal to the name in its certificate. Default: the host's name.
    pub name: NodeId,
    /// The mesh it belongs to; nodes of other meshes are refused. Default "starling".
    pub mesh: MeshName,
    /// Where it stands: hosts of one zone are near each other and fail together. Default "default".
    pub zone: Zone,
    /// Where its cell stands: cells of one region are near each other. Default "default".
    pub region: Region,
    /// Its cell: the nodes that watch over each other, at most 250 or so; cells know of each other through their
    /// relays. All nodes of one cell belong to one region. Default "default".
    pub cell: CellName,
    /// Where it keeps what it acknowledged. Default /var/lib/starling; with --dev a directory of its own under the
    /// system's temporary directory.
    pub data_dir: PathBuf,
    /// Its QUIC socket (UDP); port 0 lets the system choose. Default 0.0.0.0:15100, with --dev 127.0.0.1:15100.
    pub listen: SocketAddr,
    /// The host:port at which peers reach that socket. Default: where it listens, on the address that leads to the
    /// first seed.
    pub advertise: Option<HostPort>,
    /// Peers to ask for the others: host:port of their QUIC sockets, where a name stands for all its addresses, or @path
    /// of a file with one a line. Looked up again and again. One that answers is enough; none for the first.
    pub seeds: Vec<Seed>,
    /// How long a graceful stop waits for requests in flight. Default 10s.
    pub drain_timeout: HumanDuration,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            name: "localhost".parse().expect("a fixed name that is well-formed"),
            mesh: MeshName::default(),
            zone: Zone::default(),
            region: Region::default(),
            cell: CellName::default(),
            data_dir: "/var/lib/starling".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], DEFAULT_QUIC_PORT)),
            advertise: None,
            seeds: Vec::new(),
            drain_timeout: HumanDuration::from_secs(10),
        }
    }
}

/// `[tls]`: the node's certificate, made with `starling ca`. All three or none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// The mesh's CA certificate (PEM).
    pub ca: Option<PathBuf>,
    /// This node's certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its private key (PEM), readable by the node only.
    pub key: Option<PathBuf>,
}

/// `[log]`: what the node says of itself on standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// error, warn, info, debug, trace, or a filter per module like "info,starling_net=debug". Default "info".
    pub level: String,
    /// text for people, json for programs. Default text.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per line.
    Json,
}

/// A host (name or address) and a port, still to be resolved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort(String);

impl HostPort {
    /// As `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| format!("{text:?} is not host:port: {why}");
        let (host, port) = text.rsplit_once(':').ok_or_else(|| refuse("it has no port"))?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let host_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        match port.parse::<u16>() {
            Err(_) => Err(refuse("the port is not a number up to 65535")),
            Ok(0) => Err(refuse("port 0 cannot be reached")),
            Ok(_) if host.is_empty() => Err(refuse("it has no host")),
            Ok(_) if bracketed && host[1..host.len() - 1].parse::<std::net::Ipv6Addr>().is_ok() => {
                Ok(Self(text.into()))
            }
            Ok(_) if host.contains(':') => Err(refuse("write an IPv6 address in brackets")),
            Ok(_) if !host.chars().all(host_ok) => Err(refuse("the host has characters no host name has")),
            Ok(_) => Ok(Self(text.into())),
        }
    }
}

impl TryFrom<String> for HostPort {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> String {
        address.0
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Settings {
    /// Built-in defaults, nothing read from anywhere. With `dev`: loopback only, data under the temporary directory, and
    /// every trace is kept.
    pub fn defaults(dev: bool) -> Self {
        let mut node = NodeSettings { name: host_name(), ..NodeSettings::default() };
        let mut proxy = ProxySettings::default();
        if dev {
            proxy.trace_one_in = 1;
            node.listen = SocketAddr::from(([127, 0, 0, 1], DEFAULT_QUIC_PORT));
            node.data_dir = dev_data_dir(&node);
        }
        Self {
            dev,
            node,
            tls: TlsSettings::default(),
            gossip: starling_core::Settings::default(),
            api: ApiSettings::default(),
            proxy,
            members: MemberSettings::default(),
            links: Limits::default(),
            log: LogSettings::default(),
            services: Vec::new(),
            upstreams: Vec::new(),
        }
    }

    /// What the declared services register.
    ///
    /// # Errors
    /// One sentence per service that is wrong.
    pub fn registrations(&self) -> Result<Vec<Registration>, Vec<String>> {
        let mut good = Vec::new();
        let mut bad = Vec::new();
        for service in &self.services {
            match service.registration(&self.node.name, &self.node.zone) {
                Ok(registration) if good.iter().any(|other: &Registration| other.key == registration.key) => {
                    bad.push(format!("service {}: declared twice; give each instance its own `id`", registration.key));
                }
                Ok(registration) => good.push(registration),
                Err(error) => bad.push(format!("service {}: {error}", service.name)),
            }
        }
        if bad.is_empty() { Ok(good) } else { Err(bad) }
    }
}

/// Where a `--dev` node keeps its data unless told otherwise: meshes and nodes beside each other.
fn dev_data_dir(node: &NodeSettings) -> PathBuf {
    dev_dir().join(node.mesh.as_str()).join("data").join(node.name.as_str())
}

/// Where `--dev` nodes of this user share their meshes' throw-away CAs and keep their data.
pub fn dev_dir() -> PathBuf {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "user".into());
    let safe: String = user.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    std::env::temp_dir().join(format!("starling-dev-{safe}"))
}

/// The host's name as a node id; "localhost" where there is none or it is no name.
fn host_name() -> NodeId {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let text = kernel.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    text.trim().parse().unwrap_or_else(|_| NodeSettings::default().name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_port_is_refused_with_the_reason() {
        for good in ["a:1", "10.0.0.1:15100", "[::1]:15100", "node-a.example.org:65535"] {
            assert_eq!(good.parse::<HostPort>().unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("a", "no port"),
            ("a:0", "port 0"),
            (":5", "no host"),
            ("a:x", "number"),
            ("::1:5", "brackets"),
            ("a b:1", "characters"),
        ] {
            let error = bad.parse::<HostPort>().unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn two_services_with_one_id_are_refused() {
        let mut settings = Settings::defaults(true);
        let service: ServiceSettings = toml::from_str("name = \"a\"\nport = 1").unwrap();
        settings.services = vec![service.clone(), service];
        assert!(settings.registrations().unwrap_err()[0].contains("declared twice"));
    }
}
