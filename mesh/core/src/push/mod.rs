//! Push: how a fresh change travels, before repair has to look for it.
//!
//! **Quiet**, a change floods the overlay: whoever's store changed passes it on to all neighbours but the one it came
//! from. That is as fast as the links, survives losses and deaths, and costs a copy per link: seven at each node.
//!
//! **Busy**, changes travel along a tree and cost one copy. The tree is Plumtree's (Leitão, Pereira, Rodrigues 2007):
//! on links outside it only the *ids* of changes are sent, a few milliseconds later and together; who hears of an id
//! and does not get the change *grafts* the link, that is, asks for the change and for what follows; a link that brings
//! duplicates several times over is *pruned*. What makes the tree differs. Plumtree prunes wherever a copy comes second,
//! which suits one sender: with many at once every link is second for somebody, and a measured mesh kept five copies
//! (`reference`: Corrosion's simulator). Here the tree follows the beacons of one node ([`tree`]), so all nodes prune
//! alike and the tree is as shallow as the overlay. Nobody depends on that node: without fresh beacons a mesh floods.
//!
//! Each node decides by the rate of changes it sees, which is nearly the same everywhere. A node that floods and one
//! that does not understand each other: the choice is only about what the sender saves.
//!
//! Everything is bounded, and whatever is forgotten at a bound is found by repair.

mod recent;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::digest::{ItemHash, KeyHash};
use crate::id::NodeId;
use crate::node::{Counters, Output};
use crate::record::Record;
use crate::repair;
use crate::time::Instant;
use crate::wire::Message;
use recent::{Missing, Rate, Recent};
pub use tree::Beacon;
use tree::Tree;
pub(crate) use tree::rank;

/// What a change is called in talk about it: half of its item hash. Two that meet by chance cost one change one hop,
/// until the next repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeId(pub u32);

impl From<ItemHash> for ChangeId {
    fn from(item: ItemHash) -> Self {
        Self((item.0 >> 32) as u32)
    }
}

/// A change on its way: its id, where it stands, and what it says.
pub type Change = (ChangeId, KeyHash, Record);

/// How long ids wait for company. Only ids ever wait: they matter when a payload is lost, and then the graft's patience
/// is longer still.
const ID_DELAY: Duration = Duration::from_millis(5);
/// The most ids waiting for one link; more are left to repair. At 10,000 changes a second fifty come together.
const MAX_IDS: usize = 4_096;
/// So many duplicates in a row over a link outside the tree prune it: one alone is a race, several are a habit.
const DUPLICATES_TO_PRUNE: u32 = 4;
/// The least time between two prunes of one link: a neighbour that floods on purpose goes on anyway.
const PRUNE_PAUSE: Duration = Duration::from_millis(100);
/// Links remembered beyond the neighbours there are now; they go when neighbours have changed by more.
const SPARE_LINKS: usize = 16;

/// How this node passes changes on.
#[derive(Debug, Clone)]
pub struct Push {
    rate: Rate,
    tree: Tree,
    links: BTreeMap<NodeId, Link>,
    recent: Recent,
    missing: Missing,
    ids_due: Option<Instant>,
    /// Whether this node is the one whose beacons make the tree; `None` until it was looked at since the mesh is busy.
    leads: Option<bool>,
}

/// What is known of one neighbour.
#[derive(Debug, Clone, Default)]
struct Link {
    /// It asked for changes themselves, not only their ids: this node is its parent in the tree, or was grafted.
    wants: bool,
    /// Duplicates it has brought in a row.
    duplicates: u32,
    pruned: Option<Instant>,
    /// Ids it is to hear of.
    ids: Vec<ChangeId>,
}

impl Push {
    /// Nothing pushed yet. Above `busy_rate` changes a second the tree is used; below half of that, no longer.
    pub fn new(me: &NodeId, busy_rate: u32) -> Self {
        Self {
            rate: Rate::new(busy_rate),
            tree: Tree::new(me),
            links: BTreeMap::new(),
            recent: Recent::default(),
            missing: Missing::default(),
            ids_due: None,
            leads: None,
        }
    }

    /// Whether changes travel along the tree now, from here on.
    pub fn uses_tree(&self, now: Instant) -> bool {
        self.rate.is_busy() && self.tree.is_settled(now)
    }

    /// Passes changes on to the neighbours, but not to the one they came from.
    pub fn spread(
        &mut self,
        now: Instant,
        changes: Vec<Change>,
        from: Option<&NodeId>,
        neighbours: &[NodeId],
        counters: &mut Counters,
        out: &mut Vec<Output>,
    ) {
        self.rate.count(now, changes.len());
        self.tidy(neighbours);
        let (mut ids, mut records) = (Vec::with_capacity(changes.len()), Vec::with_capacity(changes.len()));
        for (id, key, record) in changes {
            self.recent.note(id, key);
            ids.push(id);
            records.push(record);
        }
        let (count, tree) = (records.len() as u64, self.uses_tree(now));
        let messages = repair::push(records);
        for peer in neighbours.iter().filter(|peer| Some(*peer) != from) {
            let link = self.links.entry(peer.clone()).or_default();
            if !tree || link.wants || self.tree.is_parent(peer) {
                counters.pushed += count;
                out.extend(messages.iter().map(|message| Output::Send(peer.clone(), message.clone())));
                continue;
            }
            let room = MAX_IDS - link.ids.len();
            counters.ids_dropped += ids.len().saturating_sub(room) as u64;
            link.ids.extend(ids.iter().take(room));
            self.ids_due.get_or_insert(now + ID_DELAY);
        }
    }

    /// Takes note that a change has come from a peer: whether it was news, or known before.
    pub fn arrived(
        &mut self,
        now: Instant,
        from: &NodeId,
        (id, key): (ChangeId, KeyHash),
        news: bool,
        counters: &mut Counters,
        out: &mut Vec<Output>,
    ) {
        self.missing.arrived(id, from);
        self.recent.note(id, key);
        let in_tree = !self.uses_tree(now) || self.tree.is_parent(from);
        let Some(link) = self.links.get_mut(from) else { return };
        if news || in_tree {
            link.duplicates = 0;
            return;
        }
        link.duplicates += 1;
        let said = link.pruned.is_some_and(|pruned| now < pruned + PRUNE_PAUSE);
        if link.duplicates >= DUPLICATES_TO_PRUNE && !said {
            link.duplicates = 0;
            link.pruned = Some(now);
            counters.prunes += 1;
            out.push(Output::Send(from.clone(), Message::Prune));
        }
    }

    /// A neighbour has these changes, and sends them only if asked.
    pub fn heard_of(&mut self, now: Instant, from: &NodeId, ids: &[ChangeId], counters: &mut Counters) {
        if let Some(link) = self.links.get_mut(from) {
            link.ids.retain(|id| !ids.contains(id)); // it knows, then
        }
        for id in ids.iter().filter(|id| !self.recent.contains(**id)) {
            counters.ids_dropped += u64::from(!self.missing.note(now, *id, from));
        }
    }

    /// A neighbour wants these changes, and from now on whatever comes. Tells where they stand.
    pub fn grafted(&mut self, from: &NodeId, ids: &[ChangeId], neighbours: &[NodeId]) -> Vec<KeyHash> {
        if neighbours.contains(from) {
            self.links.entry(from.clone()).or_default().wants = true;
        }
        // Each once, however often it was asked for.
        let wanted: BTreeSet<KeyHash> = ids.iter().filter_map(|id| self.recent.key(*id)).collect();
        wanted.into_iter().collect()
    }

    /// To a neighbour, ids are enough.
    pub fn pruned(&mut self, from: &NodeId) {
        if let Some(link) = self.links.get_mut(from) {
            link.wants = false;
        }
    }

    /// Takes a beacon, follows it if it is the best there is, and passes it on.
    pub fn beacon(
        &mut self,
        now: Instant,
        from: &NodeId,
        beacon: Beacon,
        neighbours: &[NodeId],
        out: &mut Vec<Output>,
    ) {
        self.tree.heard(now, from, beacon, neighbours, out);
    }

    /// Takes note that repair has brought a change: nobody need be asked for it any more.
    pub fn filled(&mut self, from: &NodeId, id: ChangeId) {
        self.missing.arrived(id, from);
    }

    /// Does what is due by now. `leads` says whether this node is the one whose beacons make the tree.
    pub fn pass_time(
        &mut self,
        now: Instant,
        leads: bool,
        neighbours: &[NodeId],
        counters: &mut Counters,
        out: &mut Vec<Output>,
    ) {
        if self.rate.calmed(now) {
            self.links.values_mut().for_each(|link| link.wants = false);
        }
        self.leads = self.rate.is_busy().then_some(leads);
        self.tree.beat(now, leads && self.rate.is_busy(), neighbours, out);
        if self.ids_due.is_some_and(|due| due <= now) {
            self.ids_due = None;
            for (peer, link) in self.links.iter_mut().filter(|(_, link)| !link.ids.is_empty()) {
                counters.ids_sent += link.ids.len() as u64;
                out.push(Output::Send(peer.clone(), Message::Have(std::mem::take(&mut link.ids))));
            }
        }
        for (peer, ids) in self.missing.due(now) {
            counters.grafts += ids.len() as u64;
            out.push(Output::Send(peer, Message::Graft(ids)));
        }
    }

    /// When [`Self::pass_time`] has something to do, if nothing happens before.
    pub fn next_wakeup(&self) -> Option<Instant> {
        let beat = (self.rate.is_busy() && self.leads != Some(false)).then(|| self.tree.next_beat());
        [self.ids_due, self.missing.next_due(), self.rate.ends(), beat].into_iter().flatten().min()
    }

    /// Forgets links of former neighbours, once there are many.
    fn tidy(&mut self, neighbours: &[NodeId]) {
        if self.links.len() > neighbours.len() + SPARE_LINKS {
            self.links.retain(|peer, _| neighbours.contains(peer));
        }
    }
}

#[cfg(test)]
mod tests;
