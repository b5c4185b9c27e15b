//! Who is there, and whom to tell first.
//!
//! Changes travel over an overlay every node computes for itself: on each of four hash rings over the living nodes, a
//! node is linked to its two neighbours. That is a random 8-regular graph: connected with overwhelming probability, a
//! few hops across even among tens of thousands, and it heals by itself when the member list changes. With up to nine
//! nodes it is simply everybody. The overlay is of one cell; the relays of several are linked as [`crate::cells`] says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::cells::{self, Directory, NodeRecord, RELAYS};
use crate::id::{CellName, Incarnation, NodeId};
use crate::node::PeerEvent;
use crate::push::rank;
use crate::time::WallTime;
use crate::view::{MemberState, MemberView, NodeFacts};

/// How many hash rings make the overlay; each gives two neighbours. Eight links flood 30,000 nodes in about six hops.
pub const RINGS: u64 = 4;
/// How many returned peers wait for their repair; more are found by the regular exchanges.
const MAX_RETURNED: usize = 64;

/// The members this node knows, itself included: of its own cell through membership, of others through the directory.
#[derive(Debug, Clone)]
pub struct Peers {
    me: NodeId,
    cell: CellName,
    /// How many relays a cell has.
    relays_wanted: usize,
    /// What the records say of the nodes of other cells; what is seen of them from here is in `members`.
    directory: Directory,
    out_of_reach: BTreeSet<CellName>,
    /// Members of its own cell that only the directory has told of, with their addresses.
    unmet: BTreeMap<NodeId, String>,
    members: BTreeMap<NodeId, MemberView>,
    /// Computed when first needed after a change: membership changes in bursts.
    neighbours: Option<Vec<NodeId>>,
    /// Whether this node is the first of the living by rank, see [`crate::push`]; computed with the neighbours.
    leads: bool,
    relays: Option<Vec<NodeId>>,
    /// The relays of other cells this one is linked with; nobody while it is no relay.
    links: Option<Vec<NodeId>>,
    returned: VecDeque<NodeId>,
}

impl Peers {
    /// A node that knows only itself.
    pub fn new(me: NodeId, facts: NodeFacts, since: WallTime) -> Self {
        let cell = facts.cell.clone();
        let myself = MemberView { node: me.clone(), facts, state: MemberState::Alive, since };
        Self {
            members: [(me.clone(), myself)].into(),
            me,
            cell,
            relays_wanted: RELAYS,
            directory: Directory::default(),
            out_of_reach: BTreeSet::new(),
            unmet: BTreeMap::new(),
            neighbours: None,
            leads: false,
            relays: None,
            links: None,
            returned: VecDeque::new(),
        }
    }

    /// The same with another number of relays per cell.
    pub fn with_relays(self, relays_wanted: usize) -> Self {
        Self { relays_wanted: relays_wanted.max(1), ..self }
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
            // Membership's word ends with the cell: a node that has moved to another is no longer its to lose.
            PeerEvent::Lost(node) if self.is_elsewhere(&node) => None,
            PeerEvent::Lost(node) if node != self.me => self.set_state(node, MemberState::Lost, wall),
            PeerEvent::Left(node, incarnation) if node != self.me => self.left(node, incarnation, wall),
            PeerEvent::Lost(_) | PeerEvent::Left(..) | PeerEvent::Met(_) => None,
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
        if facts.cell == self.cell {
            self.directory.remove(&node);
            self.unmet.remove(&node);
        } else {
            self.directory.put(&node, &facts.cell, MemberState::Alive);
        }
        let near = facts.cell == self.cell;
        if near && self.returned.len() < MAX_RETURNED && !self.returned.contains(&node) {
            self.returned.push_back(node.clone());
        }
        self.members.insert(node.clone(), MemberView { node: node.clone(), facts, state: MemberState::Alive, since });
        self.changed();
        Some(node)
    }

    /// Takes what the directory says of a node of another cell, and returns it if anything about it changed.
    pub fn told(&mut self, node: &NodeId, record: &NodeRecord, since: WallTime) -> Option<NodeId> {
        let NodeRecord { facts, state } = record;
        if facts.cell == self.cell || *node == self.me {
            // Membership knows better, if it knows at all.
            let unknown = self.members.get(node).is_none_or(|known| known.facts.cell != self.cell);
            if *state == MemberState::Alive && unknown {
                self.unmet.insert(node.clone(), facts.address.clone());
            } else {
                self.unmet.remove(node);
            }
            return None;
        }
        if let Some(known) = self.members.get(node) {
            let over = known.state == MemberState::Left && *state != MemberState::Left;
            if facts.incarnation < known.facts.incarnation || (facts.incarnation == known.facts.incarnation && over) {
                return None;
            }
        }
        self.directory.put(node, &facts.cell, *state);
        let state = self.seen_from_here(&facts.cell, *state);
        self.changed();
        let known = self.members.get(node);
        if known.is_some_and(|known| known.facts == *facts && known.state == state) {
            return None;
        }
        self.members.insert(node.clone(), MemberView { node: node.clone(), facts: facts.clone(), state, since });
        Some(node.clone())
    }

    /// Whether a node is of another cell.
    pub fn is_elsewhere(&self, node: &NodeId) -> bool {
        self.members.get(node).is_some_and(|known| known.facts.cell != self.cell)
    }

    fn seen_from_here(&self, cell: &CellName, state: MemberState) -> MemberState {
        if state == MemberState::Alive && self.out_of_reach.contains(cell) { MemberState::Lost } else { state }
    }

    fn changed(&mut self) {
        (self.neighbours, self.relays, self.links) = (None, None, None);
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
        if member.facts.cell != self.cell {
            self.directory.put(&node, &member.facts.cell, state);
        }
        self.changed();
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
            self.directory.remove(node);
            self.changed();
        }
    }

    /// The living nodes of its cell this node passes changes to, and as a relay those of other cells.
    pub fn neighbours(&mut self) -> &[NodeId] {
        if self.neighbours.is_none() {
            let mut near = self.overlay();
            near.extend_from_slice(self.links());
            self.neighbours = Some(near);
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

    /// Those of them that are of its own cell: whom it repairs with in turn.
    pub fn near_neighbours(&mut self) -> &[NodeId] {
        let links = self.links().len();
        let all = self.neighbours();
        &all[..all.len() - links]
    }

    fn overlay(&self) -> Vec<NodeId> {
        let near = |m: &&MemberView| m.state == MemberState::Alive && m.facts.cell == self.cell;
        neighbours_of(&self.me, self.members.values().filter(near).map(|member| &member.node))
    }
}

/// What there is to know beyond one's own cell.
impl Peers {
    /// This node's cell.
    pub fn cell(&self) -> &CellName {
        &self.cell
    }

    /// Whether there are other cells.
    pub fn has_other_cells(&self) -> bool {
        !self.directory.is_empty()
    }

    /// The members of its own cell that only the directory has told of, with their addresses.
    pub fn unmet(&self) -> &BTreeMap<NodeId, String> {
        &self.unmet
    }

    /// The nodes of other cells, as their records say.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The living members of this cell, this node included even while it is leaving.
    pub fn living(&self) -> impl Iterator<Item = &NodeId> {
        let there = |m: &&MemberView| m.facts.cell == self.cell && (m.state == MemberState::Alive || m.node == self.me);
        self.members.values().filter(there).map(|m| &m.node)
    }

    /// The lost members of this cell.
    pub fn missing(&self) -> impl Iterator<Item = &NodeId> {
        let lost = |m: &&MemberView| m.facts.cell == self.cell && m.state == MemberState::Lost;
        self.members.values().filter(lost).map(|m| &m.node)
    }

    /// The relays of this cell, the first in rank first.
    pub fn relays(&mut self) -> &[NodeId] {
        if self.relays.is_none() {
            self.relays = Some(cells::relays(&self.cell, self.living(), self.relays_wanted));
        }
        self.relays.as_deref().unwrap_or_default()
    }

    /// This node's rank among the relays of its cell, from 0.
    pub fn rank(&mut self) -> Option<usize> {
        let me = self.me.clone();
        self.relays().iter().position(|relay| *relay == me)
    }

    /// The relays of other cells this node is linked with: on each ring it looks after, one of the cell before and one
    /// of the cell after its own. Cells out of reach are left out of the rings, so that those within reach stay
    /// connected however many are not; and are kept in as well, because they are tried for ever.
    pub fn links(&mut self) -> &[NodeId] {
        if self.links.is_none() {
            self.links = Some(if self.directory.is_empty() { Vec::new() } else { self.linked_relays() });
        }
        self.links.as_deref().unwrap_or_default()
    }

    fn linked_relays(&mut self) -> Vec<NodeId> {
        let Some(rank) = self.rank() else { return Vec::new() };
        let relays = self.relays().len();
        let mut chosen = BTreeSet::new();
        for ring in (rank..self.relays_wanted).step_by(relays) {
            let all = cells::beside(ring, &self.cell, self.directory.cells());
            let reached = self.directory.cells().filter(|cell| !self.out_of_reach.contains(*cell));
            for cell in all.into_iter().chain(cells::beside(ring, &self.cell, reached)) {
                let theirs = self.directory.relays(cell, self.relays_wanted);
                chosen.extend(theirs.get(ring % theirs.len().max(1)).cloned());
            }
        }
        chosen.into_iter().collect()
    }

    /// Whether a node is lost only because its whole cell is out of reach.
    pub fn is_behind_the_cut(&self, node: &NodeId) -> bool {
        let Some(member) = self.members.get(node) else { return false };
        self.out_of_reach.contains(&member.facts.cell) && self.directory.state(node) == Some(MemberState::Alive)
    }

    /// The cells out of reach.
    pub fn out_of_reach(&self) -> &BTreeSet<CellName> {
        &self.out_of_reach
    }

    /// Holds the nodes of these cells for lost from here, and of all others for what their records say; returns those
    /// for which that made a difference.
    pub fn set_out_of_reach(&mut self, cells: BTreeSet<CellName>, wall: WallTime) -> Vec<NodeId> {
        let before = std::mem::replace(&mut self.out_of_reach, cells);
        let turned: Vec<CellName> = before.symmetric_difference(&self.out_of_reach).cloned().collect();
        let mut changed = Vec::new();
        for cell in turned {
            for (node, recorded) in self.directory.members(&cell) {
                let state = self.seen_from_here(&cell, recorded);
                if let Some(member) = self.members.get_mut(node)
                    && member.state != state
                {
                    (member.state, member.since) = (state, wall);
                    changed.push(node.clone());
                }
            }
        }
        self.changed();
        changed
    }
}

/// The neighbours on the overlay of one node among these, in order; whether it is itself among them makes no difference.
pub fn neighbours_of<'a>(me: &NodeId, all: impl IntoIterator<Item = &'a NodeId>) -> Vec<NodeId> {
    let others: Vec<&NodeId> = all.into_iter().filter(|node| *node != me).collect();
    if others.len() as u64 <= 2 * RINGS {
        return others.into_iter().cloned().collect();
    }
    let mut chosen = BTreeSet::new();
    for ring in 0..RINGS {
        let place = |node: &NodeId| xxh3_64_with_seed(node.as_str().as_bytes(), ring);
        let here = place(me);
        // Clockwise distance wraps around, so the smallest is the successor and the largest the predecessor.
        let distance = |node: &&&'a NodeId| (place(node).wrapping_sub(here), **node);
        chosen.extend(others.iter().min_by_key(distance).map(|node| (*node).clone()));
        chosen.extend(others.iter().max_by_key(distance).map(|node| (*node).clone()));
    }
    chosen.into_iter().collect()
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
