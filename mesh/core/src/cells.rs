//! Several cells: which members speak for a cell, with which others they speak, and whether a cell is heard of.
//!
//! Membership ends at the border of a cell. Beyond it a node knows the *directory*: one record per node, written by the
//! node itself when it starts or stops, and by its cell's relays when they have lost it. So a crash is one record, however
//! many cells there are.
//!
//! A cell's *relays* are its living members with the greatest rendezvous hash (Thaler and Ravishankar, 1998): everybody
//! computes the same ones, nobody elects them, and when one dies the next in order takes its place. They link the cells:
//! on each of as many hash rings as there are relays, a cell is linked with its two neighbours, and the k-th relay of
//! each looks after ring k. A change goes through the cell, over these links, and through the other cells; a node that
//! is no relay speaks with members of its own cell only.
//!
//! Whether a whole cell can be reached is told by its *beat*: its first relay counts, about once a second, and all relays
//! tell each other the highest counts they have heard. A cell whose count stands still is out of reach from here. That
//! is one fact for hundreds of nodes, said by the relays to their cell, and written nowhere.
//!
//! One cell alone does none of this.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::id::{CellName, NodeId};
use crate::time::{HybridTime, Instant};
use crate::view::{MemberState, NodeFacts};

/// How many relays a cell has, unless set otherwise: two may die at once and the cell is still linked.
pub const RELAYS: usize = 3;
/// The most nodes of the directory: three times the largest mesh that was simulated.
pub const MAX_NODES: usize = 100_000;
/// The most cells spoken of in one message.
pub const MAX_CELLS: usize = 4_096;
/// The longest version and address in the directory, in bytes.
const MAX_FACT_BYTES: usize = 256;
/// Tells the rings of cells from those of nodes.
const CELL_RING: u64 = 0x6365_6c6c;

/// What the directory says of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What the node says of itself.
    pub facts: NodeFacts,
    /// Whether its own cell has it.
    pub state: MemberState,
}

impl NodeRecord {
    /// What is wrong with a record of a peer, if anything.
    pub fn check_limits(&self) -> Result<(), String> {
        for (what, text) in [("version", &self.facts.version), ("address", &self.facts.address)] {
            if text.len() > MAX_FACT_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!("the {what} of a node is longer than {MAX_FACT_BYTES} bytes or not printable"));
            }
        }
        Ok(())
    }
}

/// The relays among these living members of a cell: at most so many, the first in rank first.
pub fn relays<'a>(cell: &CellName, living: impl Iterator<Item = &'a NodeId>, most: usize) -> Vec<NodeId> {
    let seed = xxh3_64(cell.as_str().as_bytes());
    let mut ranked: Vec<(u64, &NodeId)> =
        living.map(|node| (xxh3_64_with_seed(node.as_str().as_bytes(), seed), node)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().take(most).map(|(_, node)| node.clone()).collect()
}

/// The cells before and after a cell on a ring of all cells; the same one twice when there are but two, none when it is
/// alone.
pub fn beside<'a>(ring: usize, me: &CellName, cells: impl Iterator<Item = &'a CellName>) -> Vec<&'a CellName> {
    let place = |cell: &CellName| xxh3_64_with_seed(cell.as_str().as_bytes(), CELL_RING + ring as u64);
    let here = place(me);
    let mut others: Vec<(u64, &CellName)> =
        cells.filter(|cell| *cell != me).map(|cell| (place(cell).wrapping_sub(here), cell)).collect();
    others.sort_unstable();
    [others.first(), others.last()].into_iter().flatten().map(|(_, cell)| *cell).collect()
}

/// The nodes of all cells, by cell, as their records say.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    cells: BTreeMap<CellName, BTreeMap<NodeId, MemberState>>,
    /// In which cell a node is filed.
    homes: BTreeMap<NodeId, CellName>,
}

impl Directory {
    /// Files a node; tells whether anything changed.
    pub fn put(&mut self, node: &NodeId, cell: &CellName, state: MemberState) -> bool {
        if self.homes.get(node).is_some_and(|home| home != cell) {
            self.remove(node);
        }
        self.homes.insert(node.clone(), cell.clone());
        self.cells.entry(cell.clone()).or_default().insert(node.clone(), state) != Some(state)
    }

    /// Takes a node out.
    pub fn remove(&mut self, node: &NodeId) {
        let Some(home) = self.homes.remove(node) else { return };
        let Some(members) = self.cells.get_mut(&home) else { return };
        members.remove(node);
        if members.is_empty() {
            self.cells.remove(&home);
        }
    }

    /// What a node's record says of it.
    pub fn state(&self, node: &NodeId) -> Option<MemberState> {
        self.cells.get(self.homes.get(node)?)?.get(node).copied()
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.homes.len()
    }

    /// Whether it knows of nobody.
    pub fn is_empty(&self) -> bool {
        self.homes.is_empty()
    }

    /// The cells that have anybody who has not left, in order.
    pub fn cells(&self) -> impl Iterator<Item = &CellName> {
        let there = |members: &BTreeMap<NodeId, MemberState>| members.values().any(|s| *s != MemberState::Left);
        self.cells.iter().filter(move |(_, members)| there(members)).map(|(cell, _)| cell)
    }

    /// The nodes of a cell, with what their records say.
    pub fn members(&self, cell: &CellName) -> impl Iterator<Item = (&NodeId, MemberState)> {
        self.cells.get(cell).into_iter().flatten().map(|(node, state)| (node, *state))
    }

    /// The relays of a cell as its records let one guess. When all are lost, it is as good to try one as another.
    pub fn relays(&self, cell: &CellName, most: usize) -> Vec<NodeId> {
        let of = |state| relays(cell, self.members(cell).filter(move |m| m.1 == state).map(|m| m.0), most);
        let living = of(MemberState::Alive);
        if living.is_empty() { of(MemberState::Lost) } else { living }
    }
}

/// The highest beat heard of each cell.
#[derive(Debug, Clone, Default)]
pub struct Pulses {
    cells: BTreeMap<CellName, Heard>,
    /// What has risen since it was last told.
    news: BTreeSet<CellName>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    beat: u64,
    /// When it last rose; `None` for one that was out of reach before it was listened for.
    at: Option<Instant>,
}

/// A beat so far below what is known comes from a cell that was started anew and does not know how far it had counted.
const RESTARTED: u64 = 5;

impl Pulses {
    /// Begins to listen: for the cells out of reach as if never heard, for all others as if heard just now.
    pub fn listen(&mut self, now: Instant, out_of_reach: &BTreeSet<CellName>) {
        for (cell, heard) in &mut self.cells {
            heard.at = (!out_of_reach.contains(cell)).then_some(now);
        }
    }

    /// Keeps to these cells; those that are new count as heard just now.
    pub fn keep<'a>(&mut self, cells: impl Iterator<Item = &'a CellName>, now: Instant) {
        let mut before = std::mem::take(&mut self.cells);
        for cell in cells {
            let heard = before.remove(cell).unwrap_or(Heard { beat: 0, at: Some(now) });
            self.cells.insert(cell.clone(), heard);
        }
        self.news.retain(|cell| self.cells.contains_key(cell));
    }

    /// Takes a beat that was told; whether it is higher than any before. One of an unknown cell says nothing.
    pub fn take(&mut self, cell: &CellName, beat: u64, now: Instant) -> bool {
        let Some(heard) = self.cells.get_mut(cell) else { return false };
        if beat <= heard.beat {
            if beat.saturating_add(RESTARTED) < heard.beat {
                self.news.insert(cell.clone());
            }
            return false;
        }
        *heard = Heard { beat, at: Some(now) };
        self.news.insert(cell.clone());
        true
    }

    /// The next beat of a cell, made here.
    pub fn beat(&mut self, cell: &CellName, now: Instant) {
        let next = self.cells.get(cell).map_or(1, |heard| heard.beat.saturating_add(1));
        self.cells.insert(cell.clone(), Heard { beat: next, at: Some(now) });
        self.news.insert(cell.clone());
    }

    /// When the beat of a cell last rose.
    pub fn heard(&self, cell: &CellName) -> Option<Instant> {
        self.cells.get(cell)?.at
    }

    /// The cells whose beat has not risen since then.
    pub fn silent_since(&self, then: Instant) -> BTreeSet<CellName> {
        let silent = |heard: &Heard| heard.at.is_none_or(|at| at < then);
        self.cells.iter().filter(|(_, heard)| silent(heard)).map(|(cell, _)| cell.clone()).collect()
    }

    /// Whether there is anything to tell.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// What has risen since it was last asked for.
    pub fn take_news(&mut self) -> Vec<(CellName, u64)> {
        let beat = |cell: CellName| self.cells.get(&cell).map(|heard| (cell.clone(), heard.beat));
        std::mem::take(&mut self.news).into_iter().filter_map(beat).take(MAX_CELLS).collect()
    }
}

/// Which cells each relay of this cell has said it cannot reach.
#[derive(Debug, Clone, Default)]
pub struct Words {
    words: BTreeMap<NodeId, Word>,
}

#[derive(Debug, Clone)]
struct Word {
    said: HybridTime,
    heard: Instant,
    cells: BTreeSet<CellName>,
}

impl Words {
    /// Takes what a relay says; whether it is newer than what it said before.
    pub fn take(&mut self, relay: &NodeId, said: HybridTime, cells: BTreeSet<CellName>, now: Instant) -> bool {
        if self.words.get(relay).is_some_and(|known| known.said >= said) {
            return false;
        }
        self.words.insert(relay.clone(), Word { said, heard: now, cells });
        true
    }

    /// Forgets what was said before then and not repeated.
    pub fn expire(&mut self, then: Instant) {
        self.words.retain(|_, word| word.heard >= then);
    }

    /// What more than half of these relays say they cannot reach.
    pub fn verdict(&self, relays: &[NodeId]) -> BTreeSet<CellName> {
        let said: Vec<&Word> = relays.iter().filter_map(|relay| self.words.get(relay)).collect();
        let votes = |cell: &CellName| said.iter().filter(|word| word.cells.contains(cell)).count();
        let all: BTreeSet<&CellName> = said.iter().flat_map(|word| &word.cells).collect();
        all.into_iter().filter(|cell| votes(cell) * 2 > relays.len()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(count: usize) -> Vec<CellName> {
        (0..count).map(|i| format!("c{i}").parse().unwrap()).collect()
    }

    fn nodes(count: usize) -> Vec<NodeId> {
        (0..count).map(|i| format!("n{i}").parse().unwrap()).collect()
    }

    fn cell(name: &str) -> CellName {
        name.parse().unwrap()
    }

    #[test]
    fn when_a_relay_dies_the_next_in_rank_joins_and_the_others_stay() {
        let mut living = nodes(50);
        let before = relays(&cell("a"), living.iter(), 3);
        living.retain(|node| *node != before[0]);
        let after = relays(&cell("a"), living.iter(), 3);
        assert_eq!(after[..2], before[1..]);
        assert_eq!(after.len(), 3);
        assert_ne!(relays(&cell("b"), living.iter(), 3), after, "another cell, another order");
    }

    #[test]
    fn rings_of_cells_are_mutual_and_connect_them_all() {
        let all = cells(40);
        let near = |from: &CellName| -> BTreeSet<&CellName> {
            (0..RELAYS).flat_map(|ring| beside(ring, from, all.iter())).collect()
        };
        for one in &all {
            assert!(near(one).len() <= 2 * RELAYS);
            assert!(near(one).iter().all(|other| near(other).contains(one)));
        }
        let mut reached: BTreeSet<&CellName> = [&all[0]].into();
        for _ in 0..4 {
            let next: Vec<&CellName> = reached.iter().flat_map(|from| near(from)).collect();
            reached.extend(next.iter().map(|near| all.iter().find(|cell| cell == near).unwrap()));
        }
        assert_eq!(reached.len(), 40, "within four hops");
    }

    #[test]
    fn of_two_cells_each_is_beside_the_other_and_one_is_alone() {
        let two = cells(2);
        assert_eq!(beside(0, &two[0], two.iter()), [&two[1], &two[1]]);
        assert!(beside(0, &two[0], two[..1].iter()).is_empty());
    }

    #[test]
    fn a_node_that_moves_is_filed_in_one_cell() {
        let mut directory = Directory::default();
        let node = &nodes(1)[0];
        assert!(directory.put(node, &cell("a"), MemberState::Alive));
        assert!(!directory.put(node, &cell("a"), MemberState::Alive));
        assert!(directory.put(node, &cell("b"), MemberState::Alive));
        assert_eq!((directory.len(), directory.cells().collect::<Vec<_>>()), (1, vec![&cell("b")]));
        directory.remove(node);
        assert!(directory.is_empty() && directory.cells().next().is_none());
    }

    #[test]
    fn a_cell_whose_beat_stands_still_is_silent_until_it_rises() {
        let (mut pulses, a) = (Pulses::default(), cell("a"));
        pulses.keep([&a].into_iter(), Instant(0));
        assert!(pulses.take(&a, 7, Instant(10)));
        assert_eq!(pulses.take_news(), [(a.clone(), 7)]);
        assert!(!pulses.take(&a, 7, Instant(20)) && !pulses.has_news());
        assert_eq!(pulses.silent_since(Instant(10)), [].into());
        assert_eq!(pulses.silent_since(Instant(11)), [a.clone()].into());
        assert!(pulses.take(&a, 8, Instant(30)));
        assert_eq!(pulses.silent_since(Instant(11)), [].into());
    }

    #[test]
    fn a_cell_started_anew_is_told_how_far_it_had_counted() {
        let (mut pulses, a) = (Pulses::default(), cell("a"));
        pulses.keep([&a].into_iter(), Instant(0));
        pulses.take(&a, 100, Instant(10));
        pulses.take_news();
        assert!(!pulses.take(&a, 99, Instant(20)) && !pulses.has_news(), "merely overtaken");
        assert!(!pulses.take(&a, 1, Instant(20)));
        assert_eq!(pulses.take_news(), [(a, 100)]);
    }

    #[test]
    fn a_beat_at_the_end_of_its_range_harms_nobody() {
        let (mut pulses, a) = (Pulses::default(), cell("a"));
        pulses.keep([&a].into_iter(), Instant(0));
        assert!(pulses.take(&a, u64::MAX, Instant(1)));
        pulses.beat(&a, Instant(2));
        assert!(!pulses.take(&a, 1, Instant(3)));
        assert!(!pulses.take(&cell("unknown"), 1, Instant(3)));
    }

    #[test]
    fn a_cell_is_out_of_reach_when_most_relays_say_so_lately() {
        let (mut words, relays) = (Words::default(), nodes(3));
        let a: BTreeSet<CellName> = [cell("a")].into();
        assert!(words.take(&relays[0], HybridTime(1), a.clone(), Instant(0)));
        assert_eq!(words.verdict(&relays), [].into());
        assert!(words.take(&relays[1], HybridTime(1), a.clone(), Instant(5)));
        assert_eq!(words.verdict(&relays), a);
        assert!(!words.take(&relays[1], HybridTime(1), [].into(), Instant(6)), "said before");
        words.expire(Instant(3));
        assert_eq!(words.verdict(&relays), [].into(), "one has not repeated it");
        assert_eq!(words.verdict(&relays[1..2]), a, "of one relay, one is most");
    }
}
