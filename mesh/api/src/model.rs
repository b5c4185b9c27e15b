//! The JSON of the control surface: every request and response body, as both the server and its clients use it.
//!
//! Requests refuse unknown fields (a misspelt field must not be ignored); responses may grow fields, so clients must
//! ignore those they do not know. Times of day are milliseconds since the Unix epoch and end in `_unix_ms`; stamps,
//! trace ids and fingerprints are text and mean nothing but themselves.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use starling_core::id::{ConfigGroup, ConfigKey, ConfigName, Incarnation, InstanceId, Namespace, NodeId, ServiceName};
use starling_core::id::{ServiceKey, Zone};
use starling_core::observe::{SpanId, SpanKind, TraceId};
use starling_core::registry::{Check, CheckKind, DEFAULT_WEIGHT, Health, Protocol, Reach, Status};
use starling_core::time::Stamp;
use starling_core::view::{MemberState, Revision, Usability};

/// Response header: the revision of what was answered; give it back as `newer_than` to wait for the next one.
pub const REVISION_HEADER: &str = "x-starling-revision";
/// Response header of a raw document: the stamp of the version served; give it back as `expect` to write only over it.
pub const STAMP_HEADER: &str = "x-starling-stamp";
/// Response header of a raw document: how many concurrent versions wait for a decision; 0 when there is no conflict.
pub const CONFLICT_HEADER: &str = "x-starling-conflict";
/// Request header of a document's PUT and DELETE: who writes (also as query parameter `author`).
pub const AUTHOR_HEADER: &str = "x-starling-author";
/// Request header of a document's PUT and DELETE: why (also as query parameter `comment`).
pub const COMMENT_HEADER: &str = "x-starling-comment";

/// Body of every answer that is not a success.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was wrong, and where.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The owner, when the request should have gone to another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<NodeId>,
    /// The stamp of the version served now, when somebody else wrote first; absent when there is no document.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text_option")]
    pub served: Option<Stamp>,
}

/// Answer to a registration and to a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The first revision of this node's view that shows it.
    pub revision: Revision,
    /// The stamp of the write; absent when there was nothing to write.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text_option")]
    pub stamp: Option<Stamp>,
    /// The node that owns the instance from now on: the one that answered.
    pub owner: NodeId,
}

/// Answer to every other write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The first revision of this node's view that shows it.
    pub revision: Revision,
    /// The stamp of the write; absent when there was nothing to write.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text_option")]
    pub stamp: Option<Stamp>,
    /// The node that took the write: the one that answered.
    pub node: NodeId,
}

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
    /// Good by their own record, but their node is lost from here; used only when nothing is ready.
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
    #[serde(with = "text")]
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

/// `GET /v1/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigList {
    /// The revision of the list.
    pub revision: Revision,
    /// By namespace, group and key; deleted documents are not listed unless a conflict keeps a version alive.
    pub documents: Vec<ConfigSummary>,
}

/// One document of a list: the version served now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSummary {
    /// The namespace.
    pub namespace: Namespace,
    /// The group.
    pub group: ConfigGroup,
    /// The key in its group.
    pub key: ConfigName,
    /// When it last changed at this node.
    pub revision: Revision,
    /// How many concurrent versions wait for a decision; 0 when there is no conflict.
    pub conflict: u32,
    /// The version served now.
    pub version: VersionInfo,
}

/// `GET /v1/config/{namespace}/{group}/{key}?meta=true`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDocument {
    /// The namespace.
    pub namespace: Namespace,
    /// The group.
    pub group: ConfigGroup,
    /// The key in its group.
    pub key: ConfigName,
    /// When it last changed at this node.
    pub revision: Revision,
    /// How many concurrent versions wait for a decision; 0 when there is no conflict.
    pub conflict: u32,
    /// All versions nobody has replaced, the served one first.
    pub versions: Vec<VersionInfo>,
}

/// One version of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// Its name; for `expect`, `choose` and `stamp`.
    #[serde(with = "text")]
    pub stamp: Stamp,
    /// When it was written, by its writer's hybrid clock.
    pub written_unix_ms: u64,
    /// Whether this version deletes the document.
    pub deleted: bool,
    /// The format: "json", "yaml", "toml", "text" or another word.
    pub format: String,
    /// Who wrote it, as they said.
    pub author: String,
    /// Why, as they said.
    pub comment: String,
    /// The document's length in bytes.
    pub bytes: u64,
    /// The document, in answers about one document and where it is UTF-8; any version can be had raw with `?stamp=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// `GET /v1/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberList {
    /// The revision of the list.
    pub revision: Revision,
    /// The node that answers.
    pub node: NodeId,
    /// Nodes seen, by name: those lost too, until they are forgotten.
    pub members: Vec<MemberInfo>,
}

/// One node as the node that answers sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its name.
    pub node: NodeId,
    /// Whether it is there: `alive`, `lost` or `left`.
    pub state: MemberState,
    /// Since when, by the clock of the node that answers.
    pub since_unix_ms: u64,
    /// Its zone.
    pub zone: Zone,
    /// Its cell.
    pub cell: String,
    /// The version of its binary.
    pub version: String,
    /// `host:port` of its QUIC socket.
    pub address: String,
    /// Which start of it.
    pub incarnation: Incarnation,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub node: NodeId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// The version of its binary.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Its wall clock when it answered.
    pub wall_unix_ms: u64,
    /// Its view's revision; comparable only with itself.
    pub revision: Revision,
    /// The fingerprint of all it holds: equal on two nodes exactly when they hold the same.
    pub fingerprint: String,
    /// How many records that is.
    pub records: u64,
    /// Members it holds for alive, itself included.
    pub members_alive: u32,
}

/// `GET /v1/node`: the node that answers, without asking any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    /// What it says when peers ask.
    pub node: NodeInfo,
    /// Its zone.
    pub zone: Zone,
    /// Whether it is ready to serve.
    pub ready: bool,
    /// Services it knows.
    pub services: u32,
    /// Instances it knows.
    pub instances: u32,
    /// Instances it owns.
    pub own_instances: u32,
    /// Configuration documents it serves.
    pub documents: u32,
    /// Documents with concurrent versions.
    pub conflicts: u32,
}

/// `GET /v1/status`: does every peer hold the same data, and who is behind?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshStatus {
    /// The node that answers and compares the others with itself.
    pub node: NodeId,
    /// Its fingerprint.
    pub fingerprint: String,
    /// Whether every alive member answered and holds the same.
    pub agree: bool,
    /// One report per known member, by name, this node included.
    pub nodes: Vec<NodeReport>,
}

/// One node in a [`MeshStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// Its zone.
    pub zone: Zone,
    /// How it stands.
    pub verdict: Verdict,
    /// Why it could not be asked or did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeInfo>,
    /// How far its wall clock is ahead (behind: negative) of the answering node's, in milliseconds; exact to half the
    /// round trip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
    /// How long its answer took, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<u64>,
}

/// How a node stands in a [`MeshStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds the same as the node that answers.
    Same,
    /// It answered and holds something else. While writes are on their way this is normal for milliseconds.
    Differs,
    /// Membership holds it for alive, but it did not answer in time.
    Unreachable,
    /// Membership has lost it; it was not asked.
    Lost,
    /// It left cleanly; it was not asked.
    Left,
}

/// `GET /v1/traces/{id}`: one trace, gathered from all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceDetail {
    /// The trace.
    #[serde(with = "text")]
    pub trace: TraceId,
    /// Its spans by start time (each node's own clock), parents before their children.
    pub spans: Vec<SpanInfo>,
    /// Members that did not answer in time: their spans are missing.
    pub unanswered: Vec<Unanswered>,
}

/// `GET /v1/traces`: the newest root spans of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentTraces {
    /// Newest first.
    pub roots: Vec<SpanInfo>,
    /// Members that did not answer in time.
    pub unanswered: Vec<Unanswered>,
}

/// A node that did not answer a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unanswered {
    /// The node.
    pub node: NodeId,
    /// What happened.
    pub error: String,
}

/// One timed piece of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanInfo {
    /// The trace, 32 hex digits.
    #[serde(with = "text")]
    pub trace: TraceId,
    /// The span, 16 hex digits.
    #[serde(with = "text")]
    pub id: SpanId,
    /// The span that caused it; absent for a root.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text_option")]
    pub parent: Option<SpanId>,
    /// `CLIENT` or `SERVER`.
    pub kind: SpanKind,
    /// The node that saw it.
    pub node: NodeId,
    /// The service that was called, as `namespace/service`.
    pub service: String,
    /// What was called.
    pub name: String,
    /// Start, in microseconds since the Unix epoch by that node's clock.
    pub start_unix_us: u64,
    /// Duration in microseconds.
    pub duration_us: u64,
    /// The HTTP status, when there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong, when something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// More: instance, attempt, path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
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

impl ConfigSummary {
    /// The document's full name.
    pub fn key(&self) -> ConfigKey {
        ConfigKey { namespace: self.namespace.clone(), group: self.group.clone(), key: self.key.clone() }
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

/// Values that are text in JSON: as they are shown.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The same for values that may be absent.
mod text_option {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_all_a_registration_needs() {
        let request: RegisterRequest = serde_json::from_str(r#"{"port": 8080}"#).unwrap();
        assert_eq!(request, RegisterRequest::on_port(8080));
        let again = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<RegisterRequest>(&again).unwrap(), request);
    }

    #[test]
    fn a_misspelt_field_is_refused() {
        let error = serde_json::from_str::<RegisterRequest>(r#"{"port": 1, "wieght": 2}"#).unwrap_err().to_string();
        assert!(error.contains("wieght") && error.contains("weight"), "{error}");
    }

    #[test]
    fn a_check_survives_the_way_through_json() {
        for kind in [CheckKind::Http { path: "/up".into() }, CheckKind::Tcp, CheckKind::Ttl] {
            let mut check = Check::new(kind);
            check.deregister_after_ms = Some(60_000);
            let json = serde_json::to_string(&CheckBody::from(&check)).unwrap();
            let back: Check = serde_json::from_str::<CheckBody>(&json).unwrap().into();
            assert_eq!(back, check);
        }
    }

    #[test]
    fn stamps_are_text() {
        let written = Written {
            revision: Revision(7),
            stamp: Some("1700000000000.3@a".parse().unwrap()),
            node: "a".parse().unwrap(),
        };
        let json = serde_json::to_string(&written).unwrap();
        assert_eq!(json, r#"{"revision":7,"stamp":"1700000000000.3@a","node":"a"}"#);
        assert_eq!(serde_json::from_str::<Written>(&json).unwrap(), written);
        let error = serde_json::from_str::<Written>(r#"{"revision":7,"stamp":"soon","node":"a"}"#).unwrap_err();
        assert!(error.to_string().contains("is not a stamp"), "{error}");
    }
}
