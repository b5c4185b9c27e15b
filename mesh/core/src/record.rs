//! The unit of replication: a key and its cell.
//!
//! A cell is a small CRDT of its own; merging two stores is merging cell by cell. So any set of records is a valid
//! delta, and records may be lost, doubled and reordered on their way without harm. From the `crdts` crate only
//! registers are used, one per key: its `Map` diverges when entries are removed.

use std::cmp::Ordering;
use std::sync::Arc;

use crdts::{CmRDT, CvRDT, LWWReg, MVReg, VClock, mvreg};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::cells::NodeRecord;
use crate::config::Version;
use crate::digest::{ItemHash, KeyHash};
use crate::id::{ConfigKey, Incarnation, InstanceKey, NodeId};
use crate::registry::{Instance, Override};
use crate::time::{HybridTime, Stamp};
use crate::view::MemberState;

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// An instance, written by its owner.
    Instance(InstanceKey),
    /// An operator's override of an instance, written anywhere.
    Override(InstanceKey),
    /// A configuration document, written anywhere.
    Config(ConfigKey),
    /// A node, written by itself and by the relays of its cell, for the other cells. There are none in a mesh of one cell.
    Node(NodeId),
}

/// The value of a key: a register that merges. A register that holds nothing is a tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cell {
    /// The last write under the last claim wins; the owner is the node in the stamp.
    Instance(LWWReg<Option<Arc<Instance>>, Claim>),
    /// The last write wins.
    Override(LWWReg<Option<Arc<Override>>, Stamp>),
    /// Concurrent versions are all kept.
    Config(#[serde(deserialize_with = "sound_register")] MVReg<Arc<Version>, NodeId>),
    /// The last write about the newest start wins.
    Node(LWWReg<Arc<NodeRecord>, Start>),
}

/// What orders the writes of an instance: first by when somebody last said where it belongs (registered it, took it
/// over, removed it), then by the write itself. What an owner only finds out or notes (a verdict, a status) keeps the
/// claim it is made under. So a probe that fails on one side of a partition never undoes a move or a removal that was
/// acknowledged on the other, however much later it fails.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// The time of the registration, takeover or removal.
    pub claimed: HybridTime,
    /// The write.
    pub stamp: Stamp,
}

impl Claim {
    /// A write that says where the instance belongs.
    pub fn new(stamp: Stamp) -> Self {
        Self { claimed: stamp.time, stamp }
    }
}

/// What orders the writes about a node: first by which start of it they are about. So news of an old start never beats a
/// newer one, whoever tells it and however late.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Start {
    /// The start that is spoken of.
    pub incarnation: Incarnation,
    /// The write.
    pub stamp: Stamp,
}

/// An instance with its name and its owner's last write: what a store and the picture for readers hold together, once.
/// There may be a million, so all of it is one piece of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Its name.
    pub key: InstanceKey,
    /// The owner's last write.
    pub claim: Claim,
    /// What the owner says.
    pub instance: Instance,
}

impl From<&Claimed> for Cell {
    fn from(claimed: &Claimed) -> Cell {
        Cell::Instance(LWWReg { val: Some(Arc::new(claimed.instance.clone())), marker: claimed.claim.clone() })
    }
}

/// A key with its cell, as it is sent and kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it is about.
    pub key: Key,
    /// What is known of it.
    pub cell: Cell,
}

/// Two cells that cannot be merged: somebody broke the rules of writing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A key of one kind with a cell of another.
    #[error("the key and the cell are of different kinds")]
    Kind,
    /// Two different values under the same stamp.
    #[error("stamp {0} was used for two different values")]
    StampReused(Stamp),
    /// A register without any value.
    #[error("the register holds no version")]
    Empty,
    /// Another key has the same hash.
    #[error("the key's hash is taken by another key")]
    HashTaken,
    /// A write under a claim that was made after it.
    #[error("stamp {0} is older than the claim it is made under")]
    Unclaimed(Stamp),
    /// A node's record whose facts are of another start than the one it is about.
    #[error("the record is about start {0}, its facts are not")]
    OtherStart(u64),
    /// A stamp no clock can have shown.
    #[error("stamp {0} is in the year 6429 or later")]
    Endless(Stamp),
}

impl Cell {
    /// A config cell that holds one version and replaces the versions in `seen`.
    pub fn config_write(seen: Option<&Cell>, version: Version) -> Cell {
        let mut register = match seen {
            Some(Cell::Config(register)) => register.clone(),
            _ => MVReg::new(),
        };
        let mut context = register.read_ctx().derive_add_ctx(version.stamp.node.clone());
        // The hybrid time stands in for the dot's counter: it grows even after the register was collected and made
        // anew, so an old copy that returns can at worst be concurrent with a new version, never replace it.
        context.dot.counter = version.stamp.time.0;
        context.clock.apply(context.dot.clone());
        let write = register.write(Arc::new(version), context);
        register.apply(write);
        Cell::Config(register)
    }

    /// Cells that merge into this one and hold one value each.
    pub fn parts(&self) -> Vec<Cell> {
        let Cell::Config(register) = self else { return vec![self.clone()] };
        let versions = versions(register);
        if versions.len() < 2 {
            return vec![self.clone()];
        }
        // The register keeps each version's clock to itself, but shows it on the wire.
        let bytes = rmp_serde::to_vec(register).expect("registers encode");
        let Register { vals } = rmp_serde::from_slice(&bytes).expect("a register decodes as what it was encoded from");
        let part = |(clock, version)| {
            let mut part = MVReg::new();
            part.apply(mvreg::Op::Put { clock, val: version });
            Cell::Config(part)
        };
        vals.into_iter().map(part).collect()
    }

    /// The stamps of all values it holds, in order. Two cells of a key with equal stamps are equal.
    pub fn stamps(&self) -> Vec<Stamp> {
        match self {
            Cell::Instance(register) => vec![register.marker.stamp.clone()],
            Cell::Override(register) => vec![register.marker.clone()],
            Cell::Node(register) => vec![register.marker.stamp.clone()],
            Cell::Config(register) => {
                let mut stamps: Vec<Stamp> = versions(register).into_iter().map(|v| v.stamp.clone()).collect();
                stamps.sort_unstable();
                stamps
            }
        }
    }

    /// How many bytes of documents it holds, in all versions.
    pub fn body_bytes(&self) -> usize {
        let Cell::Config(register) = self else { return 0 };
        let bytes = |version: &Arc<Version>| version.body.as_ref().map_or(0, |body| body.as_bytes().len());
        versions(register).iter().map(bytes).sum()
    }

    /// The latest stamp it holds.
    pub fn latest(&self) -> Option<Stamp> {
        self.stamps().pop()
    }

    /// Whether it says only that something is gone, and is forgotten when that is long ago.
    pub fn is_tombstone(&self) -> bool {
        match self {
            Cell::Instance(register) => register.val.is_none(),
            Cell::Override(register) => register.val.is_none(),
            Cell::Node(register) => register.val.state != MemberState::Alive,
            Cell::Config(register) => versions(register).iter().all(|version| version.body.is_none()),
        }
    }

    /// Merges another replica's cell of the same key into this one and tells whether anything changed.
    ///
    /// # Errors
    /// [`MergeError`] when the cells do not fit together; this cell is then unchanged.
    pub fn merge(&mut self, other: Cell) -> Result<bool, MergeError> {
        match (self, other) {
            (Cell::Instance(mine), Cell::Instance(theirs)) => merge_last_write(mine, theirs),
            (Cell::Override(mine), Cell::Override(theirs)) => merge_last_write(mine, theirs),
            (Cell::Config(mine), Cell::Config(theirs)) => merge_versions(mine, theirs),
            (Cell::Node(mine), Cell::Node(theirs)) => merge_last_write(mine, theirs),
            _ => Err(MergeError::Kind),
        }
    }
}

impl Record {
    /// Where it stands, and what it says there.
    pub fn hashes(&self) -> (KeyHash, ItemHash) {
        let hash = KeyHash::of(&self.key);
        let item = match &self.cell {
            Cell::Instance(register) => ItemHash::of(hash, [&register.marker.stamp]),
            Cell::Override(register) => ItemHash::of(hash, [&register.marker]),
            Cell::Node(register) => ItemHash::of(hash, [&register.marker.stamp]),
            Cell::Config(_) => ItemHash::of(hash, &self.cell.stamps()),
        };
        (hash, item)
    }

    /// Checks what a peer sent before it is believed.
    ///
    /// # Errors
    /// [`MergeError`] when key and cell do not belong together, a register is empty, or a stamp is absurd.
    pub fn validate(&self) -> Result<(), MergeError> {
        if let Some(stamp) = self.cell.stamps().into_iter().find(|stamp| !stamp.time.is_sane()) {
            return Err(MergeError::Endless(stamp));
        }
        match (&self.key, &self.cell) {
            (Key::Instance(_), Cell::Instance(LWWReg { marker, .. })) if marker.claimed > marker.stamp.time => {
                Err(MergeError::Unclaimed(marker.stamp.clone()))
            }
            (Key::Instance(_), Cell::Instance(_)) | (Key::Override(_), Cell::Override(_)) => Ok(()),
            (Key::Config(_), Cell::Config(register)) if !versions(register).is_empty() => Ok(()),
            (Key::Config(_), Cell::Config(_)) => Err(MergeError::Empty),
            (Key::Node(_), Cell::Node(LWWReg { val, marker })) if val.facts.incarnation != marker.incarnation => {
                Err(MergeError::OtherStart(marker.incarnation.0))
            }
            (Key::Node(_), Cell::Node(_)) => Ok(()),
            _ => Err(MergeError::Kind),
        }
    }
}

/// All versions of a document that no other version replaced; the one that is served first. A document beats a
/// concurrent deletion (an edit is rarely meant to be lost), then the later stamp wins.
pub fn versions(register: &MVReg<Arc<Version>, NodeId>) -> Vec<Arc<Version>> {
    let mut versions = register.read().val;
    versions.sort_by(|a, b| match b.body.is_some().cmp(&a.body.is_some()) {
        Ordering::Equal => b.stamp.cmp(&a.stamp),
        live_first => live_first,
    });
    versions
}

/// A register as it is on the wire.
#[derive(Deserialize)]
struct Register {
    vals: Vec<(VClock<NodeId>, Arc<Version>)>,
}

/// Reads a register from the wire or a disk. Each version's clock must be one its writer can have had: it counts the
/// version's own stamp and, before it, what the writer had seen. With that, equal clocks mean equal stamps (so no two
/// registers can differ for ever), and no writer's counter can be pushed past what its clock will issue.
fn sound_register<'de, D: Deserializer<'de>>(from: D) -> Result<MVReg<Arc<Version>, NodeId>, D::Error> {
    let mut register = MVReg::new();
    for (clock, version) in Register::deserialize(from)?.vals {
        let Stamp { time: HybridTime(written), node: writer } = &version.stamp;
        let earlier = |(node, counter): (&NodeId, &u64)| node == writer || (1..*written).contains(counter);
        if clock.dots.get(writer) != Some(written) || !clock.dots.iter().all(earlier) {
            return Err(de::Error::custom(format!("version {} has a clock its writer cannot have had", version.stamp)));
        }
        register.apply(mvreg::Op::Put { clock, val: version });
    }
    Ok(register)
}

/// Reads a register as it is on the wire.
pub(crate) fn register_from_bytes(bytes: &[u8]) -> Result<MVReg<Arc<Version>, NodeId>, rmp_serde::decode::Error> {
    sound_register(&mut rmp_serde::Deserializer::from_read_ref(bytes))
}

/// What orders the writes of a register.
pub(crate) trait Marker: Ord {
    fn stamp(&self) -> &Stamp;
}

impl Marker for Stamp {
    fn stamp(&self) -> &Stamp {
        self
    }
}

impl Marker for Start {
    fn stamp(&self) -> &Stamp {
        &self.stamp
    }
}

impl Marker for Claim {
    fn stamp(&self) -> &Stamp {
        &self.stamp
    }
}

/// Whether what somebody else holds is newer than what is held here.
///
/// # Errors
/// [`MergeError::StampReused`] when it has the same stamp and is not the same.
pub(crate) fn is_newer<M: Marker>(mine: &M, theirs: &M, is_same: impl FnOnce() -> bool) -> Result<bool, MergeError> {
    if mine.stamp() != theirs.stamp() {
        return Ok(theirs > mine);
    }
    if mine == theirs && is_same() { Ok(false) } else { Err(MergeError::StampReused(theirs.stamp().clone())) }
}

/// Merges a last-write register into another and tells whether anything changed.
fn merge_last_write<T: PartialEq, M: Marker>(
    mine: &mut LWWReg<T, M>,
    theirs: LWWReg<T, M>,
) -> Result<bool, MergeError> {
    let changes = is_newer(&mine.marker, &theirs.marker, || mine.val == theirs.val)?;
    CvRDT::merge(mine, theirs);
    Ok(changes)
}

/// Merges a register of concurrent versions into another and tells whether anything changed.
fn merge_versions(
    mine: &mut MVReg<Arc<Version>, NodeId>,
    theirs: MVReg<Arc<Version>, NodeId>,
) -> Result<bool, MergeError> {
    let (ours, others) = (versions(mine), versions(&theirs));
    for version in &others {
        if ours.iter().any(|known| known.stamp == version.stamp && known != version) {
            return Err(MergeError::StampReused(version.stamp.clone()));
        }
    }
    CvRDT::merge(mine, theirs);
    Ok(versions(mine) != ours)
}
