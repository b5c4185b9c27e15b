//! The picture everybody but the heart reads: immutable, shared, published per change.
//!
//! A view is made of persistent maps. Publishing a change copies the path to the changed service and shares the rest,
//! so its cost does not grow with the registry. Readers hold an `Arc<View>` as long as they like and never wait.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::config::Version;
use crate::digest::Fingerprint;
use crate::id::{CellName, ConfigKey, Incarnation, InstanceId, InstanceKey, NodeId, Region, ServiceKey, Zone};
use crate::record::Claimed;
use crate::registry::{Health, Override, Status};
use crate::sorted::{Keyed, Sorted};
use crate::time::{Stamp, WallTime};

/// Counts the changes of one node's view; comparable only with revisions of the same node. Those of a later start are
/// larger (unless the wall clock was set back in between), so what a watcher holds from before is always out of date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Revision(pub u64);

impl Revision {
    /// The first revision of a start at this time: later than any of an earlier start that changed less than a thousand
    /// times a millisecond, and a number that JSON readers keep whole until the year 2248.
    pub fn first(wall: WallTime) -> Self {
        Self((wall.0 << 10) + 1)
    }
}

/// Everything a node knows, at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// Whose picture it is.
    pub me: NodeId,
    /// The node's zone.
    pub zone: Zone,
    /// Grows with every change of anything below.
    pub revision: Revision,
    /// The revision at which a service or document last vanished altogether: what a watcher of something absent is told.
    pub absent_revision: Revision,
    /// Services that have instances, by name.
    pub services: RedBlackTreeMapSync<ServiceKey, Arc<ServiceView>>,
    /// Configuration documents, deleted ones included until their tombstone is collected.
    pub configs: RedBlackTreeMapSync<ConfigKey, Arc<ConfigView>>,
    /// What operators say of instances, also of those that are not registered now; cleared ones included until their
    /// tombstone is collected.
    pub overrides: RedBlackTreeMapSync<InstanceKey, OverrideView>,
    /// Nodes seen, this one included; those lost too, until they are forgotten.
    pub members: RedBlackTreeMapSync<NodeId, Arc<MemberView>>,
    /// Where too many nodes vanished at once to be taken for dead; most often nowhere.
    pub preservation: Arc<[Preservation]>,
    /// How many relays a cell has; see [`View::relays`].
    pub relays_wanted: usize,
    /// Other cells nothing is heard of: their nodes are lost from here.
    pub out_of_reach: Arc<BTreeSet<CellName>>,
    /// How many instances the node owns.
    pub own_instances: usize,
    /// The services they are of, and how many of each.
    pub own_services: RedBlackTreeMapSync<ServiceKey, u32>,
    /// Whose clocks are off by more than is allowed; most often nobody's.
    pub clocks: Arc<[ClockView]>,
    /// The store's fingerprint: equal on two nodes exactly when they hold the same records.
    pub fingerprint: Fingerprint,
    /// Set while this node reads a peer's whole store, being new or having been away for long; it serves what it has.
    pub catching_up: Option<Arc<CatchingUp>>,
}

/// How a node that lacks most of what its peers hold comes to know it. How much it holds is in the view's fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CatchingUp {
    /// The peer it learns from.
    pub from: NodeId,
    /// How many records that peer holds.
    pub of: u64,
    /// How many records this node held when it began.
    pub began_with: u64,
    /// When it began, by its own wall clock.
    pub since: WallTime,
}

/// One service.
#[derive(Debug)]
pub struct ServiceView {
    /// Its name.
    pub key: ServiceKey,
    /// When anything in it last changed.
    pub revision: Revision,
    /// Its instances, by id, usable or not.
    pub instances: Sorted<InstanceView>,
    counts: Counts,
    candidates: OnceLock<Candidates>,
}

/// How many instances are in which state of usability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts([u32; Usability::ALL.len()]);

impl Counts {
    /// How many are in this state.
    pub fn of(&self, usability: Usability) -> u32 {
        self.0[usability as usize]
    }

    fn of_mut(&mut self, usability: Usability) -> &mut u32 {
        &mut self.0[usability as usize]
    }
}

/// The instances of a service that may take traffic, in tiers; made by the first reader that asks.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Usable beyond doubt.
    pub ready: Vec<InstanceView>,
    /// Tried only when nothing is ready: those in doubt, or, where there is nothing else at all, those of lost nodes. To
    /// refuse a request spares nobody then, and this node may be the one that is wrong.
    pub doubtful: Vec<InstanceView>,
}

/// Self-preservation of a zone, or of the whole mesh: see [`crate::preserve`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preservation {
    /// The zone; none: the mesh as a whole.
    pub zone: Option<Zone>,
    /// When it began, by this node's clock.
    pub since: WallTime,
    /// When it ends if nothing changes before.
    pub ends: WallTime,
    /// How many nodes there were.
    pub of: usize,
    /// Which of them vanished and are not back: their instances are doubtful.
    pub missing: RedBlackTreeSetSync<NodeId>,
}

/// A clock that is off by more than is allowed: see [`crate::clocks`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClockView {
    /// Whose; it may be this node's own.
    pub node: NodeId,
    /// How far it is ahead (behind: negative), in milliseconds, give or take a second.
    pub ahead_ms: i64,
}

/// What a node concludes of the owner of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// It is there.
    Alive,
    /// It is not there, and this node may be the one that is cut off; or it has yet to appear.
    Doubtful,
    /// It is out of reach.
    Lost,
    /// It said good-bye.
    Left,
}

/// One instance as this node sees it: its record, with its name, what its owner says, and when it said so (all fields of
/// [`Claimed`] can be read through it), and what follows here. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// Its record, shared with the store.
    pub record: Arc<Claimed>,
    /// What operators say.
    pub override_: Option<Arc<Override>>,
    /// Whether it may take traffic.
    pub usability: Usability,
}

/// Whether an instance may take traffic, and if not, why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Usability {
    /// It may.
    Ready,
    /// Its own record is good, but its node vanished together with so many others that this one may be cut off itself,
    /// or has not been heard of yet: tried when nothing is ready.
    Doubtful,
    /// Its node is lost from here.
    OwnerLost,
    /// Its node is gone for good or left cleanly.
    OwnerLeft,
    /// The effective status is not UP.
    Status,
    /// Its health check fails or has not passed yet.
    Health,
    /// Its effective weight is 0.
    Weight,
}

impl Usability {
    /// All states, in order.
    pub const ALL: [Usability; 7] =
        [Self::Ready, Self::Doubtful, Self::OwnerLost, Self::OwnerLeft, Self::Status, Self::Health, Self::Weight];
}

/// An operator's word on one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverrideView {
    /// The word; `None` when it was cleared.
    pub value: Option<Arc<Override>>,
    /// When it was set or cleared.
    pub stamp: Stamp,
}

/// One configuration document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigView {
    /// Its name.
    pub key: ConfigKey,
    /// When it last changed here.
    pub revision: Revision,
    /// All versions nobody has replaced, the served one first; more than one is a conflict. Never empty.
    pub versions: Vec<Arc<Version>>,
}

/// One node as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// Its name.
    pub node: NodeId,
    /// Its facts, as it tells them.
    pub facts: NodeFacts,
    /// Whether it is there.
    pub state: MemberState,
    /// Since when, by this node's wall clock.
    pub since: WallTime,
}

/// What a node tells of itself through membership.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeFacts {
    /// Which start of the node this is.
    pub incarnation: Incarnation,
    /// Its zone.
    pub zone: Zone,
    /// Its region.
    pub region: Region,
    /// The cell (chitchat group) it belongs to.
    pub cell: CellName,
    /// The version of its binary.
    pub version: String,
    /// `host:port` of its QUIC socket, as peers reach it.
    pub address: String,
}

/// Whether a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Seen and answering.
    Alive,
    /// Not heard of any more: crashed, or cut off from here.
    Lost,
    /// Stopped cleanly and said so.
    Left,
}

impl ServiceView {
    /// A service with these instances.
    pub fn new(key: ServiceKey, revision: Revision, instances: Sorted<InstanceView>) -> Self {
        let mut counts = Counts::default();
        instances.iter().for_each(|instance| *counts.of_mut(instance.usability) += 1);
        Self { key, revision, instances, counts, candidates: OnceLock::new() }
    }

    /// How many instances are in which state of usability: known without a look at any of them.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The same service again, to be changed.
    pub(crate) fn copy(&self) -> Self {
        Self {
            key: self.key.clone(),
            revision: self.revision,
            instances: self.instances.clone(),
            counts: self.counts,
            candidates: OnceLock::new(),
        }
    }

    /// Shows an instance at this revision, and gives back how it was shown before.
    pub(crate) fn put(&mut self, revision: Revision, shown: InstanceView) -> Option<InstanceView> {
        *self.counts.of_mut(shown.usability) += 1;
        let before = self.instances.insert(shown);
        self.changed(revision, before)
    }

    /// Shows an instance no longer, from this revision on.
    pub(crate) fn remove(&mut self, revision: Revision, id: &InstanceId) -> Option<InstanceView> {
        let before = self.instances.remove(id);
        self.changed(revision, before)
    }

    fn changed(&mut self, revision: Revision, before: Option<InstanceView>) -> Option<InstanceView> {
        self.revision = revision;
        self.candidates = OnceLock::new();
        if let Some(before) = &before {
            *self.counts.of_mut(before.usability) -= 1;
        }
        before
    }

    /// The instances that may take traffic. Computed once per published change, by the first reader.
    pub fn candidates(&self) -> &Candidates {
        self.candidates.get_or_init(|| {
            let mut candidates = Candidates::default();
            for instance in &self.instances {
                match instance.usability {
                    Usability::Ready => candidates.ready.push(instance.clone()),
                    Usability::Doubtful => candidates.doubtful.push(instance.clone()),
                    _ => {}
                }
            }
            if candidates.ready.is_empty() && candidates.doubtful.is_empty() {
                let lost = self.instances.iter().filter(|instance| instance.usability == Usability::OwnerLost);
                candidates.doubtful.extend(lost.cloned());
            }
            candidates
        })
    }
}

impl Keyed for InstanceView {
    type Key = InstanceId;
    fn key(&self) -> &InstanceId {
        &self.record.key.instance
    }
}

impl Deref for InstanceView {
    type Target = Claimed;
    fn deref(&self) -> &Claimed {
        &self.record
    }
}

impl InstanceView {
    /// The owner's last write; its node is the owner.
    pub fn stamp(&self) -> &Stamp {
        &self.claim.stamp
    }

    /// The node that owns it.
    pub fn owner(&self) -> &NodeId {
        &self.stamp().node
    }

    /// The status after any override.
    pub fn status(&self) -> Status {
        self.override_.as_ref().and_then(|o| o.status).unwrap_or(self.instance.status)
    }

    /// The weight after any override.
    pub fn weight(&self) -> u32 {
        self.override_.as_ref().and_then(|o| o.weight).unwrap_or(self.instance.weight)
    }

    /// Decides whether it may take traffic, given what is concluded of its owner.
    pub fn judge(&self, owner: Owner) -> Usability {
        if self.status() != Status::Up {
            Usability::Status
        } else if matches!(self.instance.health, Health::Failing | Health::Unknown) {
            Usability::Health
        } else if self.weight() == 0 {
            Usability::Weight
        } else {
            match owner {
                Owner::Alive => Usability::Ready,
                Owner::Doubtful => Usability::Doubtful,
                Owner::Lost => Usability::OwnerLost,
                Owner::Left => Usability::OwnerLeft,
            }
        }
    }
}

impl ConfigView {
    /// The version every node serves; `None` when the document is deleted.
    pub fn served(&self) -> Option<&Arc<Version>> {
        self.versions.first().filter(|version| version.body.is_some())
    }

    /// Whether concurrent versions wait for somebody to decide.
    pub fn in_conflict(&self) -> bool {
        self.versions.len() > 1
    }
}

impl View {
    /// The picture of a node that knows nothing yet.
    pub fn empty(me: NodeId, zone: Zone) -> Self {
        Self {
            me,
            zone,
            revision: Revision(1),
            absent_revision: Revision(1),
            services: RedBlackTreeMapSync::new_sync(),
            configs: RedBlackTreeMapSync::new_sync(),
            overrides: RedBlackTreeMapSync::new_sync(),
            members: RedBlackTreeMapSync::new_sync(),
            own_instances: 0,
            own_services: Default::default(),
            preservation: Arc::default(),
            relays_wanted: crate::cells::RELAYS,
            out_of_reach: Arc::default(),
            clocks: Arc::default(),
            fingerprint: Fingerprint::default(),
            catching_up: None,
        }
    }

    /// A service, if it has any instance.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<ServiceView>> {
        self.services.get(key)
    }

    /// One instance.
    pub fn instance(&self, key: &InstanceKey) -> Option<&InstanceView> {
        self.services.get(&key.service)?.instances.get(&key.instance)
    }

    /// The revision a watcher of this service compares with; never goes backwards.
    pub fn service_revision(&self, key: &ServiceKey) -> Revision {
        self.services.get(key).map_or(self.absent_revision, |service| service.revision)
    }

    /// A configuration document, deleted or not.
    pub fn config(&self, key: &ConfigKey) -> Option<&Arc<ConfigView>> {
        self.configs.get(key)
    }

    /// The revision a watcher of this document compares with; never goes backwards.
    pub fn config_revision(&self, key: &ConfigKey) -> Revision {
        self.configs.get(key).map_or(self.absent_revision, |config| config.revision)
    }

    /// How far the clock of a node is ahead of the mesh's (behind: negative), in milliseconds, if that is too much.
    pub fn clock_ahead_ms(&self, node: &NodeId) -> Option<i64> {
        self.clocks.iter().find(|clock| clock.node == *node).map(|clock| clock.ahead_ms)
    }

    /// Whether a node is missing and yet not taken for dead.
    pub fn preserves(&self, node: &NodeId) -> bool {
        self.preservation.iter().any(|one| one.missing.contains(node))
    }

    /// What is known of a node.
    pub fn member(&self, node: &NodeId) -> Option<&Arc<MemberView>> {
        self.members.get(node)
    }

    /// The relays of a cell as they are seen from here, the first in rank first. A cell that is alone has them, too, with
    /// nothing to do.
    pub fn relays(&self, cell: &CellName) -> Vec<NodeId> {
        let living = self.alive().filter(|member| member.facts.cell == *cell).map(|member| &member.node);
        crate::cells::relays(cell, living, self.relays_wanted)
    }

    /// The relays of all cells as they are seen from here; nobody while there is one cell.
    pub fn all_relays(&self) -> BTreeSet<NodeId> {
        let mut cells: BTreeMap<&CellName, Vec<&NodeId>> = BTreeMap::new();
        for member in self.members.values() {
            let living = cells.entry(&member.facts.cell).or_default();
            living.extend((member.state == MemberState::Alive).then_some(&member.node));
        }
        if cells.len() < 2 {
            return BTreeSet::new();
        }
        let of = |(cell, living): (&CellName, Vec<&NodeId>)| {
            crate::cells::relays(cell, living.into_iter(), self.relays_wanted)
        };
        cells.into_iter().flat_map(of).collect()
    }

    /// The members that are there, this node included.
    pub fn alive(&self) -> impl Iterator<Item = &Arc<MemberView>> {
        self.members.values().filter(|member| member.state == MemberState::Alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Claim;
    use crate::testing::{instance, instance_key, stamp};

    #[test]
    fn the_counts_of_a_service_are_those_of_its_instances_whatever_came_and_went() {
        let mut rng = fastrand::Rng::with_seed(5);
        let key = instance_key("orders", "o0").service;
        let mut service = ServiceView::new(key, Revision(1), Sorted::default());
        for step in 0..2_000 {
            let key = instance_key("orders", &format!("o{}", rng.u32(..100)));
            if rng.u32(..3) == 0 {
                service.remove(Revision(step), &key.instance);
            } else {
                let record = Arc::new(Claimed { key, claim: Claim::new(stamp("a", step)), instance: instance() });
                let usability = Usability::ALL[rng.usize(..Usability::ALL.len())];
                service.put(Revision(step), InstanceView { record, override_: None, usability });
            }
        }
        let recounted = ServiceView::new(service.key.clone(), service.revision, service.instances.clone());
        assert_eq!(service.counts(), recounted.counts());
        let total: u32 = Usability::ALL.into_iter().map(|usability| service.counts().of(usability)).sum();
        assert!(total > 30 && total as usize == service.instances.len());
        assert_eq!(service.copy().counts(), service.counts());
    }
}
