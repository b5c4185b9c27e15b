//! What the registry says of an instance: the words its users know from Eureka, Consul and Nacos.

mod details;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{CommonText, InstanceKey, NameError, Text, Zone};
pub use details::{Details, MAX_LABEL_BYTES, MAX_METADATA, MAX_TAGS, Metadata, Tags};

/// The weight of an instance that names none.
pub const DEFAULT_WEIGHT: u32 = 100;
/// The largest weight; enough for any ratio and far from overflow in sums.
pub const MAX_WEIGHT: u32 = 1_000_000;
/// The longest reason an override may give, in bytes.
pub const MAX_REASON_BYTES: usize = 512;

/// A host (IP address or name) and a port: where an instance listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// IP address or host name.
    pub host: Text,
    /// TCP port, never 0.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What an instance speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2 without TLS, by prior knowledge.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// Bytes.
    Tcp,
}

/// What the owner of an instance says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// Takes traffic.
    #[default]
    Up,
    /// Does not work.
    Down,
    /// Not ready yet.
    Starting,
    /// Works, but was taken out on purpose.
    OutOfService,
}

/// The verdict of the owner's health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No check is configured; the instance counts as good.
    #[default]
    Unchecked,
    /// A check is configured and has not yet given a verdict; the instance takes no traffic.
    Unknown,
    /// The last verdict was good.
    Passing,
    /// The last verdict was bad.
    Failing,
}

macro_rules! words {
    ($type:ident, $what:literal, $($variant:ident = $word:literal),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                $(if text.eq_ignore_ascii_case($word) { return Ok(Self::$variant); })+
                Err(NameError {
                    what: $what,
                    value: text.chars().take(80).collect(),
                    why: format!("is not one of {}", [$($word),+].join(", ")),
                })
            }
        }
    };
}

words!(Protocol, "protocol", Http = "http", Http2 = "http2", Grpc = "grpc", Tcp = "tcp");
words!(Status, "status", Up = "UP", Down = "DOWN", Starting = "STARTING", OutOfService = "OUT_OF_SERVICE");
words!(Health, "health", Unchecked = "unchecked", Unknown = "unknown", Passing = "passing", Failing = "failing");

/// How a caller's sidecar reaches an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Through the node that owns it: node to node over QUIC with mutual TLS, then to its address from there.
    #[default]
    Owner,
    /// Straight to its address: it lives on a host without a node.
    Direct,
}

/// How the owner finds out whether an instance works. Probes go to the instance's own address unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is done.
    pub kind: CheckKind,
    /// Time between probes; for TTL, how long one renewal lasts. 100 ms to 1 h, in milliseconds.
    pub interval_ms: u64,
    /// How long one probe may take, in milliseconds; ignored for TTL.
    pub timeout_ms: u64,
    /// How many bad probes in a row make the verdict bad (at least 1).
    pub failures_to_fail: u32,
    /// How many good probes in a row make the verdict good again (at least 1).
    pub successes_to_pass: u32,
    /// Remove the instance after this long with a bad verdict, in milliseconds; never when absent.
    pub deregister_after_ms: Option<u64>,
}

/// The kinds of check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// `GET` this path; 200 to 299 is good.
    Http {
        /// The path, beginning with `/`.
        path: String,
    },
    /// A TCP connection can be opened.
    Tcp,
    /// The application renews its lease itself.
    Ttl,
}

impl Check {
    /// A check of this kind with the default timing: every 5 s (TTL: 15 s), 2 s timeout, 3 failures, 1 success.
    /// A renewal is one success at once.
    pub fn new(kind: CheckKind) -> Self {
        let interval_ms = if kind == CheckKind::Ttl { 15_000 } else { 5_000 };
        Self {
            kind,
            interval_ms,
            timeout_ms: 2_000,
            failures_to_fail: 3,
            successes_to_pass: 1,
            deregister_after_ms: None,
        }
    }

    /// The interval as a duration.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    /// The probe's timeout as a duration.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// Everything an owner says of one instance. The owner itself is the node in the record's stamp.
///
/// A node holds a million of these, so it is laid out to be small: texts that most instances share are shared, IP
/// addresses need no memory of their own, and what many instances do without stands apart in [`Details`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Where it listens, as seen from the node that owns it (or from everywhere when reached directly).
    pub address: Address,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it runs.
    pub zone: Zone,
    /// The application's version; may be empty.
    pub version: CommonText,
    /// Its share of traffic relative to its siblings, 0 to [`MAX_WEIGHT`]; 0 takes no new traffic.
    pub weight: u32,
    /// What the owner says.
    pub status: Status,
    /// What the owner's check says.
    pub health: Health,
    /// How others reach it.
    pub reach: Reach,
    /// Whether it stands in its node's settings file (and so comes and goes with it) or was registered by API.
    pub declared: bool,
    /// Tags, metadata, check: what many instances do without.
    pub details: Details,
}

impl Instance {
    /// An instance at an address with defaults for all else.
    pub fn at(address: Address) -> Self {
        Self {
            address,
            protocol: Protocol::default(),
            zone: Zone::default(),
            version: CommonText::default(),
            weight: DEFAULT_WEIGHT,
            status: Status::Up,
            health: Health::Unchecked,
            reach: Reach::Owner,
            declared: false,
            details: Details::default(),
        }
    }

    /// The same with this check.
    pub fn checked(self, check: Check) -> Self {
        let (tags, metadata) = (self.details.tags().clone(), self.details.metadata().clone());
        Self { details: Details::new(tags, metadata, Some(check)), ..self }
    }

    /// Near enough to the size of its texts to bound messages by.
    pub(crate) fn rough_bytes(&self) -> usize {
        self.address.host.len() + self.version.len() + self.details.rough_bytes()
    }

    /// What is wrong with it, if anything: the field and what to do.
    ///
    /// # Errors
    /// A sentence for the person who wrote it.
    pub fn check_limits(&self) -> Result<(), String> {
        let host = &self.address.host;
        let host_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if host.is_empty() || host.len() > 253 || !host.chars().all(host_ok) {
            return Err(format!("address.host {host:?} is neither an IP address nor a host name"));
        }
        if self.address.port == 0 {
            return Err("address.port is 0; give the port the instance listens on".into());
        }
        if self.weight > MAX_WEIGHT {
            return Err(format!("weight {} is over {MAX_WEIGHT}", self.weight));
        }
        if self.version.len() > 128 {
            return Err("version is longer than 128 bytes".into());
        }
        self.details.check_limits()
    }
}

impl Check {
    fn check_limits(&self) -> Result<(), String> {
        let hour_ms = 3_600_000;
        if !(100..=hour_ms).contains(&self.interval_ms) {
            return Err(format!("check interval {} ms is not within 100 ms and 1 h", self.interval_ms));
        }
        if self.kind != CheckKind::Ttl && !(1..=hour_ms).contains(&self.timeout_ms) {
            return Err(format!("check timeout {} ms is not within 1 ms and 1 h", self.timeout_ms));
        }
        if self.failures_to_fail == 0 || self.successes_to_pass == 0 {
            return Err("check thresholds begin at 1".into());
        }
        match &self.kind {
            CheckKind::Http { path }
                if !path.starts_with('/') || path.len() > 1024 || path.contains(char::is_whitespace) =>
            {
                Err(format!("check path {path:?} must begin with '/', without spaces, at most 1024 bytes"))
            }
            _ => Ok(()),
        }
    }
}

/// An operator's word on an instance, from any peer; it wins over the owner's until it is cleared.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Override {
    /// The status to serve instead of the owner's.
    pub status: Option<Status>,
    /// The weight to serve instead of the owner's.
    pub weight: Option<u32>,
    /// Why, for the next person who looks; at most 512 bytes.
    pub reason: String,
}

impl Override {
    /// What is wrong with it, if anything.
    ///
    /// # Errors
    /// A sentence for the person who wrote it.
    pub fn check_limits(&self) -> Result<(), String> {
        if self.status.is_none() && self.weight.is_none() {
            return Err("an override sets a status or a weight; to remove one, clear it".into());
        }
        if self.weight.is_some_and(|weight| weight > MAX_WEIGHT) {
            return Err(format!("weight is over {MAX_WEIGHT}"));
        }
        if self.reason.len() > MAX_REASON_BYTES {
            return Err(format!("reason is longer than {MAX_REASON_BYTES} bytes"));
        }
        Ok(())
    }
}

/// A request to put an instance into the registry, owned by the node that takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its name.
    pub key: InstanceKey,
    /// What it is. Its health is decided by the node, not by the caller.
    pub instance: Instance,
}
