//! The candidates of one service, and what is kept of each from one picture to the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::load::Seat;
use super::prequal::Reports;
use crate::guard::{Breaker, BreakerSettings, Ejections};
use crate::id::{Incarnation, InstanceId, NodeId, Region, Zone};
use crate::time::Instant;
use crate::view::{InstanceView, MemberState, ServiceView, Usability, View};

/// The candidates of one service; made once per change of the service, and shared by all ways to choose among them.
#[derive(Debug)]
pub struct Roster<T> {
    pub(super) service: Arc<ServiceView>,
    pub(super) slots: Vec<Slot<T>>,
    /// Those that are meant to take traffic and cannot.
    pub(super) missing: Vec<(InstanceView, Distance)>,
    pub(super) here: Here,
    /// This node.
    pub(super) me: NodeId,
    /// What instances said of themselves, if anybody asked.
    pub(super) reports: Reports,
    /// How many of them are out, and may be.
    ejections: Arc<Ejections>,
    breaker: BreakerSettings,
    /// How many slots, the first ones, are of instances that are ready; the rest are in doubt. Both by id.
    ready: usize,
}

/// One candidate with its seat.
#[derive(Debug)]
pub struct Slot<T> {
    /// The instance as the view shows it.
    pub instance: InstanceView,
    /// What is known of it here.
    pub seat: Arc<Seat<T>>,
    /// How far it is from here.
    pub(super) distance: Distance,
    /// Which start of its owner this is, if membership knows.
    owner_start: Option<Incarnation>,
}

/// How far an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Distance {
    Zone,
    Region,
    Elsewhere,
}

/// Where this node is, and how many of the mesh's living nodes are as near.
#[derive(Debug, Clone)]
pub(super) struct Here {
    zone: Zone,
    region: Region,
    /// Nodes in the zone, in the region (the zone's among them), and all.
    pub(super) nodes: [u32; 3],
}

impl Here {
    fn of(view: &View) -> Self {
        let region = view.member(&view.me).map(|me| me.facts.region.clone()).unwrap_or_default();
        let mut here = Self { zone: view.zone.clone(), region, nodes: [0; 3] };
        for member in view.members.values().filter(|member| member.state == MemberState::Alive) {
            let distance = here.distance_of(&member.facts.zone, Some(&member.facts.region));
            here.nodes.iter_mut().skip(distance as usize).for_each(|nodes| *nodes += 1);
        }
        here
    }

    fn distance_of(&self, zone: &Zone, region: Option<&Region>) -> Distance {
        match (*zone == self.zone, region.is_none_or(|region| *region == self.region)) {
            (true, true) => Distance::Zone,
            (false, true) if region.is_some() => Distance::Region,
            _ => Distance::Elsewhere,
        }
    }

    /// How far the instance is. Its zone is its own, its region that of the node that owns it.
    pub(super) fn distance(&self, instance: &InstanceView, view: &View) -> Distance {
        let region = view.member(instance.owner()).map(|owner| &owner.facts.region);
        self.distance_of(&instance.instance.zone, region)
    }
}

impl<T: Default> Roster<T> {
    /// The candidates of `service` as `view` shows them, with the seats of `previous` for instances of which nothing
    /// has been heard since that would make what is known of them outdated. Instances that were not among the previous
    /// candidates are new.
    pub fn new(
        service: &Arc<ServiceView>,
        view: &View,
        breaker: BreakerSettings,
        now: Instant,
        previous: Option<&Roster<T>>,
    ) -> Self {
        // By id, once: a look through all of them per instance would cost a large service's next request dearly.
        let known: BTreeMap<&InstanceId, &Slot<T>> =
            previous.into_iter().flat_map(|old| &old.slots).map(|old| (&old.instance.key.instance, old)).collect();
        let here = Here::of(view);
        let began = (!known.is_empty()).then_some(now);
        let guarded_alike = previous.filter(|previous| previous.breaker == breaker);
        let ejections = guarded_alike.map_or_else(|| Arc::new(Ejections::new(&breaker)), |old| old.ejections.clone());
        let slot = |instance: &InstanceView| {
            let owner_start = view.member(instance.owner()).map(|owner| owner.facts.incarnation);
            let kept = known.get(&instance.key.instance).filter(|old| old.is_current(instance, owner_start));
            let kept = kept.filter(|_| guarded_alike.is_some());
            let new = || Arc::new(Seat::new(Breaker::among(breaker, ejections.clone()), began));
            let seat = kept.map_or_else(new, |old| old.seat.clone());
            Slot { instance: instance.clone(), seat, distance: here.distance(instance, view), owner_start }
        };
        let candidates = service.candidates();
        let all = candidates.ready.iter().chain(&candidates.doubtful);
        let slots: Vec<Slot<T>> = all.filter(|instance| instance.weight() > 0).map(slot).collect();
        ejections.resize(slots.len());
        let ready = slots.partition_point(Slot::is_ready);
        let is_missing = |instance: &&InstanceView| match instance.usability {
            Usability::Health => instance.weight() > 0,
            Usability::OwnerLost => instance.weight() > 0 && !candidates.ready.is_empty(),
            _ => false,
        };
        let missing = service.instances.iter().filter(is_missing);
        let missing = missing.map(|instance| (instance.clone(), here.distance(instance, view))).collect();
        let reports = Reports::default();
        let (service, me) = (service.clone(), view.me.clone());
        let mut roster = Self { service, slots, missing, here, me, reports, ejections, breaker, ready };
        if let Some(previous) = previous {
            let number = |old: u32| roster.slot_of(&previous.slots.get(old as usize)?.instance.key.instance);
            roster.reports = previous.reports.renumbered(number);
        }
        roster
    }
}

impl<T> Roster<T> {
    /// The service it was made from.
    pub fn service(&self) -> &Arc<ServiceView> {
        &self.service
    }

    /// How many of them their breakers have taken out, and may.
    pub fn ejections(&self) -> &Ejections {
        &self.ejections
    }

    /// What their breakers are made of.
    pub fn breaker(&self) -> &BreakerSettings {
        &self.breaker
    }

    /// All candidates.
    pub fn slots(&self) -> &[Slot<T>] {
        &self.slots
    }

    /// Where a candidate is among all.
    pub(super) fn slot_of(&self, instance: &InstanceId) -> Option<u32> {
        let (ready, doubtful) = self.slots.split_at(self.ready);
        let find = |slots: &[Slot<T>]| slots.binary_search_by(|slot| slot.instance.key.instance.cmp(instance)).ok();
        let at = find(ready).or_else(|| Some(self.ready + find(doubtful)?))?;
        u32::try_from(at).ok()
    }
}

impl<T> Slot<T> {
    /// Whether it is beyond doubt.
    pub(super) fn is_ready(&self) -> bool {
        self.instance.usability == Usability::Ready
    }

    /// Whether what is known of it is still about the same instance as the view shows it now.
    fn is_current(&self, now: &InstanceView, owner_start: Option<Incarnation>) -> bool {
        let before = &self.instance;
        let was_away = matches!(before.usability, Usability::OwnerLost | Usability::Doubtful);
        let came_back = was_away && now.usability == Usability::Ready;
        before.stamp() == now.stamp() && self.owner_start == owner_start && !came_back
    }
}
