//! Bodies about services and instances.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use starling_core::id::{InstanceId, Namespace, NodeId, ServiceKey, ServiceName, Zone};
use starling_core::registry::{Check, CheckKind, DEFAULT_WEIGHT, Health, Protocol, Reach, Status};
use starling_core::time::Stamp;
use starling_core::view::{Revision, Usability};

/// `PUT /v1/services/{service}/instances/{id}`: an instance to register at the node that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// IP address or host name, as seen from the node; default 127.0.0.1.
    #[serde(default = "default_address")]
    pub address: String,
    /// TCP port it listens on, never 0.
    pub port: u16,
    /// What it speaks: `http` (default), `http2`, `grpc` or `tcp`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Where it runs; default the node's own zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// The application's version; default empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Its share of traffic relative to its siblings, default 100; 0 takes no new traffic.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Words callers can select by.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// Free key/value pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// `UP` (default), `DOWN`, `STARTING` or `OUT_OF_SERVICE`.
    #[serde(default)]
    pub status: Status,
    /// How the node finds out whether it works; no check when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckBody>,
    /// How other nodes reach it: through its `owner` (default) or `direct`, when its host has no node.
    #[serde(default)]
    pub reach: Reach,
}

impl RegisterRequest {
    /// An instance on the node's own host, with defaults for all but the port.
    pub fn on_port(port: u16) -> Self {
        Self {
            address: default_address(),
            port,
            protocol: Protocol::default(),
            zone: None,
            version: String::new(),
            weight: default_weight(),
            tags: BTreeSet::new(),
            metadata: BTreeMap::new(),
            status: Status::default(),
            check: None,
            reach: Reach::default(),
        }
    }
}

/// A health check. Only `kind` is required, and `path` for HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckBody {
    /// `http`, `tcp` or `ttl`.
    pub kind: CheckWord,
    /// For `http`: the path to GET, beginning with `/`; default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Time between probes, in milliseconds; default 5,000. For `ttl`: how long one renewal lasts; default 15,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// How long one probe may take, in milliseconds; default 2,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Bad probes in a row until the verdict is bad; default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures_to_fail: Option<u32>,
    /// Good probes in a row until the verdict is good again; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successes_to_pass: Option<u32>,
    /// Remove the instance after this long with a bad verdict, in milliseconds; default never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deregister_after_ms: Option<u64>,
}

/// The kinds of check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckWord {
    /// `GET` a path; 200 to 299 is good.
    Http,
    /// A TCP connection can be opened.
    Tcp,
    /// The application renews its lease itself.
    Ttl,
}

/// `PUT …/renew`, `POST …/heartbeat`: optional; without a body the instance is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// Whether it works; default true.
    #[serde(default = "yes")]
    pub passing: bool,
    /// Why not, when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `PUT …/status`: the owner's word on its instance. Only at the owner; operators anywhere use an override.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusRequest {
    /// `UP`, `DOWN`, `STARTING` or `OUT_OF_SERVICE`.
    pub status: Status,
}

/// `PUT …/override`: an operator's word, at any node; wins over the owner until it is deleted. At least one of status
/// and weight must be given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverrideBody {
    /// The status to serve instead of the owner's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// The weight to serve instead of the owner's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Why, for the next person who looks.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// `GET /v1/services`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceList {
    /// The revision of the list.
    pub revision: Revision,
    /// By namespace and name.
    pub services: Vec<ServiceSummary>,
}

/// One service of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub service: ServiceName,
    /// When anything in it last changed at this node.
    pub revision: Revision,
    /// All instances, usable or not.
    pub instances: u32,
    /// The same, by whether they may take traffic.
    pub usability: UsabilityCounts,
}

/// How many instances are in which state of usability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsabilityCounts {
    /// Take traffic.
    pub ready: u32,
    /// Good by their own record, but their node vanished together with many others, or has yet to be heard of; used only
    /// when nothing is ready.
    pub doubtful: u32,
    /// Good by their own record, but their node is lost from here; used only when there is nothing else.
    pub owner_lost: u32,
    /// Their node is gone for good or left cleanly.
    pub owner_left: u32,
    /// Their effective status is not UP.
    pub status: u32,
    /// Their check fails or has not passed yet.
    pub health: u32,
    /// Their effective weight is 0.
    pub weight: u32,
}

/// `GET /v1/services/{service}` and `GET /v1/services/{service}/instances`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceList {
    /// The namespace.
    pub namespace: Namespace,
    /// The service.
    pub service: ServiceName,
    /// When anything in the service last changed at this node.
    pub revision: Revision,
    /// The instances the filters let through, by id.
    pub instances: Vec<InstanceInfo>,
}

/// One instance as the node that answers sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// Its id.
    pub id: InstanceId,
    /// IP address or host name, as its owner sees it.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it runs.
    pub zone: Zone,
    /// The application's version; may be empty.
    pub version: String,
    /// The status in effect: the override's, else the owner's.
    pub status: Status,
    /// The weight in effect: the override's, else the owner's.
    pub weight: u32,
    /// The verdict of its check.
    pub health: Health,
    /// Whether it may take traffic: `ready`, or what stands against it.
    pub usability: Usability,
    /// The same as a sentence; absent when it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The node that owns it.
    pub owner: NodeId,
    /// How other nodes reach it.
    pub reach: Reach,
    /// Whether it stands in its node's settings file.
    pub declared: bool,
    /// Words callers can select by.
    pub tags: BTreeSet<String>,
    /// Free key/value pairs.
    pub metadata: BTreeMap<String, String>,
    /// How it is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckBody>,
    /// The operator's word, when there is one.
    #[serde(rename = "override", default, skip_serializing_if = "Option::is_none")]
    pub override_: Option<OverrideBody>,
    /// What the owner says when there is an override.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_says: Option<OwnerSays>,
    /// The owner's last write.
    #[serde(with = "super::text")]
    pub stamp: Stamp,
}

/// The owner's word beneath an override.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSays {
    /// Its status.
    pub status: Status,
    /// Its weight.
    pub weight: u32,
}

impl CheckBody {
    /// A check of this kind with the defaults of the registry.
    pub fn new(kind: CheckWord) -> Self {
        Self {
            kind,
            path: None,
            interval_ms: None,
            timeout_ms: None,
            failures_to_fail: None,
            successes_to_pass: None,
            deregister_after_ms: None,
        }
    }
}

impl From<CheckBody> for Check {
    fn from(body: CheckBody) -> Check {
        let kind = match body.kind {
            CheckWord::Http => CheckKind::Http { path: body.path.unwrap_or_else(|| "/".into()) },
            CheckWord::Tcp => CheckKind::Tcp,
            CheckWord::Ttl => CheckKind::Ttl,
        };
        let default = Check::new(kind);
        Check {
            interval_ms: body.interval_ms.unwrap_or(default.interval_ms),
            timeout_ms: body.timeout_ms.unwrap_or(default.timeout_ms),
            failures_to_fail: body.failures_to_fail.unwrap_or(default.failures_to_fail),
            successes_to_pass: body.successes_to_pass.unwrap_or(default.successes_to_pass),
            deregister_after_ms: body.deregister_after_ms,
            kind: default.kind,
        }
    }
}

impl From<&Check> for CheckBody {
    fn from(check: &Check) -> CheckBody {
        let (kind, path) = match &check.kind {
            CheckKind::Http { path } => (CheckWord::Http, Some(path.clone())),
            CheckKind::Tcp => (CheckWord::Tcp, None),
            CheckKind::Ttl => (CheckWord::Ttl, None),
        };
        CheckBody {
            kind,
            path,
            interval_ms: Some(check.interval_ms),
            timeout_ms: (kind != CheckWord::Ttl).then_some(check.timeout_ms),
            failures_to_fail: Some(check.failures_to_fail),
            successes_to_pass: Some(check.successes_to_pass),
            deregister_after_ms: check.deregister_after_ms,
        }
    }
}

impl ServiceSummary {
    /// The service's full name.
    pub fn key(&self) -> ServiceKey {
        ServiceKey { namespace: self.namespace.clone(), service: self.service.clone() }
    }
}

fn default_address() -> String {
    "127.0.0.1".into()
}

fn default_weight() -> u32 {
    DEFAULT_WEIGHT
}

fn yes() -> bool {
    true
}
