//! The tree a busy mesh's changes travel along: whose beacon came first is the parent.
//!
//! One node, the first by a hash of the names, floods a small beacon every second. Each node takes the neighbour that
//! brought it first for its *parent*, tells it so (a graft), and keeps it for as long as it brings the beacons in no
//! more hops than whoever was first. Parents are nearer to the root by count of hops, so there are no circles, and all
//! paths are at most twice as long as the overlay is deep. It is the spanning tree of bridged networks (Perlman 1985).
//!
//! A node whose parent is gone floods until the next beacon. If the root is gone, the next by hash takes over when
//! membership says so; until beacons of one root have come twice, everybody floods.

use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::id::NodeId;
use crate::node::Output;
use crate::time::Instant;
use crate::wire::Message;

/// From one beacon to the next: how long a broken branch may last. A beacon costs some 20 bytes on each link.
const BEAT: Duration = Duration::from_secs(1);
/// From the first beacon to the second: the time in which parents hear of their children.
const FIRST_BEAT: Duration = Duration::from_millis(100);
/// Without a beacon for so long there is no tree: three were lost on every path at once, or there is no root.
const EXPIRY: Duration = Duration::from_millis(3_500);
/// Beacons of a root before its tree is used.
const BEACONS_TO_SETTLE: u32 = 2;
/// The farthest a beacon goes: no overlay is so deep, a stale one that goes in circles ends here.
const MAX_HOPS: u8 = 64;
/// The ring (see [`crate::peers`]) that ranks roots: none of the overlay's.
const ROOT_RING: u64 = 0x7ee;

/// What the root of the tree floods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beacon {
    /// The rank of the root: the smallest wins.
    pub root: u64,
    /// Counts the root's beacons.
    pub number: u32,
    /// How many links it has come over, this one not counted.
    pub hops: u8,
}

/// A node's rank as a root.
pub(crate) fn rank(node: &NodeId) -> u64 {
    xxh3_64_with_seed(node.as_str().as_bytes(), ROOT_RING)
}

#[derive(Debug, Clone)]
pub(super) struct Tree {
    rank: u64,
    /// The last beacon as it first came, when, and how many of this root there were.
    last: Option<(Beacon, Instant, u32)>,
    parent: Option<NodeId>,
    /// Whether the parent has brought the last beacon, in as few hops as whoever was first.
    parent_is_near: bool,
    beats: u32,
    beat_due: Instant,
}

impl Tree {
    pub(super) fn new(me: &NodeId) -> Self {
        Self { rank: rank(me), last: None, parent: None, parent_is_near: false, beats: 0, beat_due: Instant(0) }
    }

    pub(super) fn is_parent(&self, peer: &NodeId) -> bool {
        self.parent.as_ref() == Some(peer)
    }

    /// Whether there is a tree, and this node knows its place in it.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        let roots = self.rank_of_root(now) == Some(self.rank);
        let beacons = self.last.map_or(0, |(_, _, beacons)| beacons);
        (roots || self.rank_of_root(now).is_some() && self.parent.is_some()) && beacons >= BEACONS_TO_SETTLE
    }

    fn rank_of_root(&self, now: Instant) -> Option<u64> {
        self.last.filter(|(_, at, _)| now < *at + EXPIRY).map(|(beacon, ..)| beacon.root)
    }

    pub(super) fn heard(
        &mut self,
        now: Instant,
        from: &NodeId,
        beacon: Beacon,
        neighbours: &[NodeId],
        out: &mut Vec<Output>,
    ) {
        let current = self.rank_of_root(now);
        if beacon.root == self.rank || current.is_some_and(|root| root < beacon.root) || beacon.hops >= MAX_HOPS {
            return;
        }
        let followed = self.last.filter(|_| current == Some(beacon.root));
        let beacons = match followed {
            Some((first, ..)) if first.number == beacon.number => {
                self.parent_is_near |= self.is_parent(from) && beacon.hops <= first.hops;
                return;
            }
            // Overtaken on the way.
            Some((first, ..)) if first.number.wrapping_sub(beacon.number) < u32::MAX / 2 => return,
            Some((_, _, beacons)) => beacons.saturating_add(1),
            None => 1,
        };
        self.last = Some((beacon, now, beacons));
        let parent_is_there = self.parent.as_ref().is_some_and(|parent| neighbours.contains(parent));
        let keeps = parent_is_there && self.parent_is_near && followed.is_some();
        self.parent_is_near = keeps && self.is_parent(from);
        if !keeps && neighbours.contains(from) {
            self.take_parent(from, out);
        }
        pass_on(Beacon { hops: beacon.hops + 1, ..beacon }, Some(from), neighbours, out);
    }

    fn take_parent(&mut self, parent: &NodeId, out: &mut Vec<Output>) {
        self.parent_is_near = true;
        // The parent of before is not told: it goes on until its duplicates show that the new one delivers.
        self.parent = Some(parent.clone());
        out.push(Output::Send(parent.clone(), Message::Graft(Vec::new())));
    }

    /// Sends a beacon if this node leads and it is time, and there is no better root.
    pub(super) fn beat(&mut self, now: Instant, leads: bool, neighbours: &[NodeId], out: &mut Vec<Output>) {
        if !leads {
            self.beats = 0;
            self.beat_due = Instant(0);
            return;
        }
        if now < self.beat_due {
            return;
        }
        self.beats += 1;
        self.beat_due = now + if self.beats == 1 { FIRST_BEAT } else { BEAT };
        if self.rank_of_root(now).is_some_and(|root| root < self.rank) {
            return;
        }
        let (number, beacons) = match self.last.filter(|(last, ..)| last.root == self.rank) {
            Some((last, _, beacons)) => (last.number.wrapping_add(1), if self.beats == 1 { 1 } else { beacons + 1 }),
            None => (1, 1),
        };
        let beacon = Beacon { root: self.rank, number, hops: 0 };
        self.last = Some((beacon, now, beacons));
        self.parent = None;
        pass_on(beacon, None, neighbours, out);
    }

    /// When the next beacon is due, for a node that leads.
    pub(super) fn next_beat(&self) -> Instant {
        self.beat_due
    }
}

fn pass_on(beacon: Beacon, from: Option<&NodeId>, neighbours: &[NodeId], out: &mut Vec<Output>) {
    let others = neighbours.iter().filter(|peer| Some(*peer) != from);
    out.extend(others.map(|peer| Output::Send(peer.clone(), Message::Beacon(beacon))));
}
