//! Bodies about nodes.

use serde::{Deserialize, Serialize};
use starling_core::id::{CellName, Incarnation, NodeId, Region, Zone};
use starling_core::view::{MemberState, Revision};

/// `GET /v1/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberList {
    /// The revision of the list.
    pub revision: Revision,
    /// The node that answers.
    pub node: NodeId,
    /// Nodes seen, by name: those lost too, until they are forgotten.
    pub members: Vec<MemberInfo>,
    /// Where it takes those that vanished not for dead.
    #[serde(default)]
    pub preservation: Vec<PreservationInfo>,
    /// Other cells of which nothing is heard: their nodes are lost from here.
    #[serde(default)]
    pub out_of_reach: Vec<CellName>,
}

/// Self-preservation: too many nodes of a zone, or of the whole mesh, vanished at once to be taken for dead. Their
/// instances are doubtful until the nodes are back, or nothing has changed for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreservationInfo {
    /// The zone; absent: the mesh as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// Since when, by the clock of the node that answers.
    pub since_unix_ms: u64,
    /// When it ends if nothing changes before.
    pub ends_unix_ms: u64,
    /// How many nodes there were.
    pub of: u32,
    /// Which of them are not back.
    pub missing: Vec<NodeId>,
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
    /// Whether it is lost and yet not taken for dead.
    #[serde(default)]
    pub preserved: bool,
    /// How far its clock is ahead of the mesh's (behind: negative), in milliseconds, when that is more than is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// Its zone.
    pub zone: Zone,
    /// Its region.
    pub region: Region,
    /// Its cell.
    pub cell: CellName,
    /// Whether it is one of those that link its cell with the others, where there are others.
    #[serde(default)]
    pub relay: bool,
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
    /// What is wrong with its disk, while it takes no writes: the node serves, and refuses new registrations, overrides
    /// and documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_failing: Option<DiskFailing>,
    /// Set while it lacks most of what its peers hold and reads the store of one of them; it serves what it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catching_up: Option<CatchingUpInfo>,
    /// Of its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateInfo>,
}

/// A node's own certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateInfo {
    /// When it ends: then peers refuse the node's new connections.
    pub expires_unix_ms: u64,
    /// Whether less than a fifth of its life is left.
    pub ends_soon: bool,
    /// Why the certificate in its files cannot be used, while the one before it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// How far a node is that catches up. What it holds so far is in `records`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatchingUpInfo {
    /// The peer it learns from.
    pub from: NodeId,
    /// How many records that peer holds.
    pub of: u64,
    /// How many records it learns in a second, since it began.
    pub records_per_second: u64,
    /// How long it will take at this rate, in seconds; absent while there is no rate yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

/// A disk that takes no writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFailing {
    /// Since when, by the clock of the node whose disk it is.
    pub since_unix_ms: u64,
    /// What its operating system says, and what to do.
    pub reason: String,
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
    /// Where the node that answers takes those that vanished not for dead.
    #[serde(default)]
    pub preservation: Vec<PreservationInfo>,
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
