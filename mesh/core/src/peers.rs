//! Who is there, and whom to tell first.
//!
//! Changes travel over an overlay every node computes for itself: on each of four hash rings over the living nodes, a
//! node is linked to its two neighbours. That is a random 8-regular graph: connected with overwhelming probability, a
//! few hops across even among tens of thousands, and it heals by itself when the member list changes. With up to nine
//! nodes it is simply everybody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::id::{Incarnation, NodeId};
use crate::node::PeerEvent;
use crate::push::rank;
use crate::time::WallTime;
use crate::view::{MemberState, MemberView, NodeFacts};

/// How many hash rings make the overlay; each gives two neighbours. Eight links flood 30,000 nodes in about six hops.
pub const RINGS: u64 = 4;
/// How many returned peers wait for their repair; more are found by the regular exchanges.
const MAX_RETURNED: usize = 64;

/// The members this node knows, itself included.
#[derive(Debug)]
pub struct Peers {
    me: NodeId,
    members: BTreeMap<NodeId, MemberView>,
    /// Computed when first needed after a change: membership changes in bursts.
    neighbours: Option<Vec<NodeId>>,
    /// Whether this node is the first of the living by rank, see [`crate::push`]; computed with the neighbours.
    leads: bool,
    returned: VecDeque<NodeId>,
}

impl Peers {
    /// A node that knows only itself.
    pub fn new(me: NodeId, facts: NodeFacts, since: WallTime) -> Self {
        let myself = MemberView { node: me.clone(), facts, state: MemberState::Alive, since };
        Self { members: [(me.clone(), myself)].into(), me, neighbours: None, leads: false, returned: VecDeque::new() }
    }

    /// What is known of a node.
    pub fn get(&self, node: &NodeId) -> Option<&MemberView> {
        self.members.get(node)
    }

    /// Whether a node is there; `None` when it was never heard of.
    pub fn state(&self, node: &NodeId) -> Option<MemberState> {
        self.members.get(node).map(|member| member.state)
    }

    /// Takes what membership says and returns the node if anything about it changed.
    pub fn apply(&mut self, event: PeerEvent, wall: WallTime) -> Option<NodeId> {
        match event {
            PeerEvent::Up(node, facts) => self.up(node, facts, wall),
            PeerEvent::Lost(node) if node != self.me => self.set_state(node, MemberState::Lost, wall),
            PeerEvent::Left(node, incarnation) if node != self.me => self.left(node, incarnation, wall),
            PeerEvent::Lost(_) | PeerEvent::Left(..) => None,
        }
    }

    /// Notes that this node itself is stopping.
    pub fn leave(&mut self, wall: WallTime) {
        self.set_state(self.me.clone(), MemberState::Left, wall);
    }

    fn up(&mut self, node: NodeId, facts: NodeFacts, wall: WallTime) -> Option<NodeId> {
        if node == self.me {
            return None;
        }
        if let Some(known) = self.members.get(&node) {
            let older = facts.incarnation < known.facts.incarnation;
            // Membership may still believe in a start that has said good-bye to us.
            let over = known.state == MemberState::Left && facts.incarnation == known.facts.incarnation;
            let same = known.state == MemberState::Alive && known.facts == facts;
            if older || over || same {
                return None;
            }
        }
        let since = match self.members.get(&node) {
            Some(known) if known.state == MemberState::Alive && known.facts.incarnation == facts.incarnation => {
                known.since
            }
            _ => wall,
        };
        if self.returned.len() < MAX_RETURNED && !self.returned.contains(&node) {
            self.returned.push_back(node.clone());
        }
        self.members.insert(node.clone(), MemberView { node: node.clone(), facts, state: MemberState::Alive, since });
        self.neighbours = None;
        Some(node)
    }

    fn left(&mut self, node: NodeId, incarnation: Incarnation, wall: WallTime) -> Option<NodeId> {
        let known = self.members.get_mut(&node)?;
        if incarnation < known.facts.incarnation {
            return None;
        }
        if incarnation > known.facts.incarnation {
            // A start that was over before it was heard of; whoever still believes in it shall not bring it back.
            known.facts.incarnation = incarnation;
            known.state = MemberState::Lost;
        }
        self.set_state(node, MemberState::Left, wall)
    }

    fn set_state(&mut self, node: NodeId, state: MemberState, wall: WallTime) -> Option<NodeId> {
        let member = self.members.get_mut(&node)?;
        if member.state == state || member.state == MemberState::Left {
            return None;
        }
        member.state = state;
        member.since = wall;
        self.neighbours = None;
        Some(node)
    }

    /// The nodes that are there, this one included unless it is leaving.
    pub fn alive(&self) -> impl Iterator<Item = &NodeId> {
        self.members.values().filter(|member| member.state == MemberState::Alive).map(|member| &member.node)
    }

    /// Whether at least half of the nodes that have not left are there.
    pub fn sees_half(&self) -> bool {
        let lost = self.members.values().filter(|member| member.state == MemberState::Lost).count();
        self.alive().count() >= lost
    }

    /// Forgets a node that is not there.
    pub fn forget(&mut self, node: &NodeId) {
        if *node != self.me && self.state(node) != Some(MemberState::Alive) {
            self.members.remove(node);
        }
    }

    /// The living nodes this node passes changes to.
    pub fn neighbours(&mut self) -> &[NodeId] {
        if self.neighbours.is_none() {
            self.neighbours = Some(self.overlay());
            let living = self.members.values().filter(|member| member.state == MemberState::Alive);
            let first = living.map(|member| &member.node).min_by_key(|node| (rank(node), *node));
            self.leads = first == Some(&self.me);
        }
        self.neighbours.as_deref().unwrap_or_default()
    }

    /// Whether this node is the one whose beacons make the tree of a busy mesh, as far as it knows.
    pub fn leads(&mut self) -> bool {
        self.neighbours();
        self.leads
    }

    /// A living peer that has just come back and not been repaired with yet, if any.
    pub fn next_returned(&mut self) -> Option<NodeId> {
        while let Some(node) = self.returned.pop_front() {
            if self.state(&node) == Some(MemberState::Alive) {
                return Some(node);
            }
        }
        None
    }

    /// Whether [`Self::next_returned`] may have something.
    pub fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    fn overlay(&self) -> Vec<NodeId> {
        let others: Vec<&NodeId> = self
            .members
            .values()
            .filter(|m| m.state == MemberState::Alive && m.node != self.me)
            .map(|m| &m.node)
            .collect();
        if others.len() as u64 <= 2 * RINGS {
            return others.into_iter().cloned().collect();
        }
        let mut chosen = BTreeSet::new();
        for ring in 0..RINGS {
            let place = |node: &NodeId| xxh3_64_with_seed(node.as_str().as_bytes(), ring);
            let here = place(&self.me);
            // Clockwise distance wraps around, so the smallest is the successor and the largest the predecessor.
            let distance = |node: &&&NodeId| (place(node).wrapping_sub(here), (**node).clone());
            chosen.extend(others.iter().min_by_key(distance).map(|node| (*node).clone()));
            chosen.extend(others.iter().max_by_key(distance).map(|node| (*node).clone()));
        }
        chosen.into_iter().collect()
    }
}

/// The overlay of a whole mesh at once: for each of these nodes the places of its neighbours. Every node computes its
/// own part of it alone; all of it together is for simulators and pictures.
pub fn whole_overlay(nodes: &[NodeId]) -> Vec<Vec<usize>> {
    let everybody_else = |at: usize| (0..nodes.len()).filter(|other| *other != at).collect();
    if nodes.len() as u64 <= 2 * RINGS + 1 {
        return (0..nodes.len()).map(everybody_else).collect();
    }
    let mut chosen: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); nodes.len()];
    for ring in 0..RINGS {
        let mut places: Vec<usize> = (0..nodes.len()).collect();
        places.sort_by_key(|at| (xxh3_64_with_seed(nodes[*at].as_str().as_bytes(), ring), &nodes[*at]));
        for (i, at) in places.iter().enumerate() {
            let next = places[(i + 1) % places.len()];
            chosen[*at].insert(next);
            chosen[next].insert(*at);
        }
    }
    chosen.into_iter().map(|neighbours| neighbours.into_iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::facts;

    fn mesh(size: usize) -> Vec<Peers> {
        let names: Vec<NodeId> = (0..size).map(|i| format!("n{i}").parse().unwrap()).collect();
        names
            .iter()
            .map(|me| {
                let mut peers = Peers::new(me.clone(), facts(1), WallTime(0));
                for other in names.iter().filter(|other| *other != me) {
                    peers.apply(PeerEvent::Up(other.clone(), facts(1)), WallTime(0));
                }
                peers
            })
            .collect()
    }

    #[test]
    fn up_to_nine_nodes_everybody_is_a_neighbour() {
        assert!(mesh(9).iter_mut().all(|peers| peers.neighbours().len() == 8));
    }

    #[test]
    fn neighbours_are_mutual_and_everybody_is_reached_in_a_few_hops() {
        let mut mesh = mesh(200);
        let links: BTreeMap<NodeId, Vec<NodeId>> =
            mesh.iter_mut().map(|peers| (peers.me.clone(), peers.neighbours().to_vec())).collect();
        for (node, neighbours) in &links {
            assert!(neighbours.len() <= 8);
            assert!(neighbours.iter().all(|neighbour| links[neighbour].contains(node)));
        }
        let mut reached: BTreeSet<NodeId> = ["n0".parse().unwrap()].into();
        for _ in 0..5 {
            let next: Vec<NodeId> = reached.iter().flat_map(|node| links[node].clone()).collect();
            reached.extend(next);
        }
        assert_eq!(reached.len(), 200);
    }

    #[test]
    fn the_overlay_of_all_is_what_each_node_computes_alone() {
        for size in [1, 2, 9, 10, 150] {
            let mut mesh = mesh(size);
            let names: Vec<NodeId> = mesh.iter().map(|peers| peers.me.clone()).collect();
            for (peers, places) in mesh.iter_mut().zip(whole_overlay(&names)) {
                let mut expected: Vec<NodeId> = places.into_iter().map(|at| names[at].clone()).collect();
                expected.sort();
                assert_eq!(peers.neighbours(), expected);
            }
        }
    }

    #[test]
    fn a_start_that_said_good_bye_before_it_was_heard_of_is_over_too() {
        let mut mesh = mesh(2);
        let other: NodeId = "n1".parse().unwrap();
        let peers = &mut mesh[0];
        for incarnation in [2, 3] {
            let left = PeerEvent::Left(other.clone(), Incarnation(incarnation));
            assert_eq!(peers.apply(left.clone(), WallTime(1)), Some(other.clone()), "news, to be passed on");
            assert_eq!(peers.apply(left, WallTime(1)), None);
            assert_eq!(peers.apply(PeerEvent::Up(other.clone(), facts(incarnation)), WallTime(2)), None);
            assert_eq!(peers.state(&other), Some(MemberState::Left));
        }
        assert_eq!(peers.apply(PeerEvent::Up(other.clone(), facts(4)), WallTime(3)), Some(other.clone()));
    }

    #[test]
    fn a_start_that_said_good_bye_comes_back_only_as_a_newer_one() {
        let mut mesh = mesh(2);
        let other: NodeId = "n1".parse().unwrap();
        let peers = &mut mesh[0];
        peers.apply(PeerEvent::Left(other.clone(), Incarnation(1)), WallTime(1));
        assert_eq!(peers.apply(PeerEvent::Up(other.clone(), facts(1)), WallTime(2)), None);
        assert_eq!(peers.state(&other), Some(MemberState::Left));
        assert_eq!(peers.apply(PeerEvent::Up(other.clone(), facts(2)), WallTime(3)), Some(other.clone()));
        assert_eq!(peers.apply(PeerEvent::Left(other.clone(), Incarnation(1)), WallTime(4)), None);
        assert_eq!(peers.state(&other), Some(MemberState::Alive));
    }
}
