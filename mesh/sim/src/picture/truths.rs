//! Which nodes hold the same, and so which colour a lane has when.
//!
//! At every moment the nodes that are up fall into groups of equal fingerprints. A group is a *truth*, numbered so that it
//! keeps its number while most of its nodes stay together: when all agree, it is truth 0; when a part goes its own way,
//! the others keep what they had and the part gets the lowest number that is free. While a change is spreading there are
//! as many groups as it has steps, each for a moment; what lasts no longer than [`SETTLED`] is passed over.

use std::collections::{BTreeMap, BTreeSet};

use super::model::Run;
use crate::recording::NodeState;

/// The share of the run that must pass without a change for groups to count, and its bound in microseconds.
const SETTLED: (u64, u64) = (1_000, 50_000);
/// A storm of changes that never settles is looked at this often, in settling times.
const STORM: u64 = 20;

/// A node holding one truth for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) node: usize,
    pub(super) from_us: u64,
    pub(super) to_us: u64,
    pub(super) truth: usize,
    /// How many nodes held it when it began, this one included, and how many were up.
    pub(super) shared: (usize, usize),
}

impl Span {
    /// What the truth is called while there is more than one.
    pub(super) fn letter(&self) -> Option<char> {
        let (with, up) = self.shared;
        (with < up).then(|| char::from(b'A' + (self.truth % 26) as u8))
    }
}

/// A node's fingerprint changes, or it goes down (`None`).
type Change<'r> = (u64, usize, Option<&'r str>);

/// All spans, by node and then by time.
pub(super) fn spans(run: &Run) -> Vec<Span> {
    let end = run.end_us;
    let settled = (end / SETTLED.0).min(SETTLED.1);
    let mut lanes: Vec<Lane> = run.nodes.iter().map(|_| Lane::default()).collect();
    let changes = changes(run);
    let mut at = 0;
    while at < changes.len() {
        // A burst: changes that follow each other closely.
        let begin = changes[at].0;
        let mut last: BTreeMap<usize, Change> = BTreeMap::new();
        let mut previous = begin;
        while let Some(change) = changes.get(at) {
            if change.0 - previous > settled || change.0 - begin > settled * STORM {
                break;
            }
            previous = change.0;
            last.insert(change.1, *change);
            at += 1;
        }
        for (_, node, holds) in last.values() {
            lanes[*node].holds = *holds;
        }
        settle(&mut lanes, |node| last.get(&node).map_or(begin, |change| change.0));
    }
    let close = |(node, lane): (usize, Lane)| lane.closed(node, end);
    lanes.into_iter().enumerate().flat_map(close).collect()
}

/// One node on its way through the run.
#[derive(Debug, Default)]
struct Lane<'r> {
    holds: Option<&'r str>,
    /// Its truth, since when, and with how many.
    truth: Option<(usize, u64, (usize, usize))>,
    done: Vec<(u64, u64, usize, (usize, usize))>,
}

impl Lane<'_> {
    fn turn(&mut self, truth: Option<usize>, at_us: u64, shared: (usize, usize)) {
        if let Some((old, since, with)) = self.truth {
            if truth == Some(old) && with == shared {
                return;
            }
            self.done.push((since, at_us, old, with));
        }
        self.truth = truth.map(|truth| (truth, at_us, shared));
    }

    fn closed(mut self, node: usize, end: u64) -> Vec<Span> {
        self.turn(None, end, (0, 0));
        let span = |(from_us, to_us, truth, shared)| Span { node, from_us, to_us, truth, shared };
        self.done.into_iter().filter(|(from, to, ..)| from < to).map(span).collect()
    }
}

/// Gives every group of equal fingerprints its truth.
fn settle(lanes: &mut [Lane], when: impl Fn(usize) -> u64) {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (node, lane) in lanes.iter().enumerate() {
        if let Some(print) = lane.holds {
            groups.entry(print).or_default().push(node);
        }
    }
    let up = groups.values().map(Vec::len).sum();
    let truths = numbered(lanes, &groups);
    for (members, truth) in groups.values().zip(truths) {
        for node in members {
            lanes[*node].turn(Some(truth), when(*node), (members.len(), up));
        }
    }
    for (node, lane) in lanes.iter_mut().enumerate().filter(|(_, lane)| lane.holds.is_none()) {
        lane.turn(None, when(node), (0, 0));
    }
}

fn numbered(lanes: &[Lane], groups: &BTreeMap<&str, Vec<usize>>) -> Vec<usize> {
    if groups.len() == 1 {
        return vec![0];
    }
    // Who shares most with an old truth goes on with its number.
    let mut claims: Vec<(usize, usize, usize)> = Vec::new();
    for (group, members) in groups.values().enumerate() {
        let mut votes: BTreeMap<usize, usize> = BTreeMap::new();
        members.iter().filter_map(|node| lanes[*node].truth).for_each(|(old, ..)| *votes.entry(old).or_default() += 1);
        claims.extend(votes.into_iter().map(|(old, count)| (count, group, old)));
    }
    claims.sort_unstable_by_key(|(count, group, old)| (std::cmp::Reverse(*count), *old, *group));
    let mut truths: Vec<Option<usize>> = vec![None; groups.len()];
    let mut taken = BTreeSet::new();
    for (_, group, old) in claims {
        if truths[group].is_none() && taken.insert(old) {
            truths[group] = Some(old);
        }
    }
    let free = |taken: &mut BTreeSet<usize>| {
        let lowest = (0..).find(|number| !taken.contains(number)).unwrap_or_default();
        taken.insert(lowest);
        lowest
    };
    truths.into_iter().map(|truth| truth.unwrap_or_else(|| free(&mut taken))).collect()
}

/// Everything that changes what a node holds, in order of time.
fn changes(run: &Run) -> Vec<Change<'_>> {
    let downs = run.states.iter().filter(|change| matches!(change.state, NodeState::Crashed | NodeState::Left));
    let downs = downs.map(|change| (change.at_us, change.node, None));
    let prints = run.beliefs.iter().map(|belief| (belief.at_us, belief.node, Some(belief.store.as_str())));
    let mut changes: Vec<Change> = downs.chain(prints).collect();
    // Stable: what a node publishes in the moment of its end comes after neither.
    changes.sort_by_key(|(at, ..)| *at);
    changes
}

#[cfg(test)]
mod tests {
    use super::super::model::{Belief, Change as Turn, Node};
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn recording(beliefs: &[(u64, usize, u64)], states: &[(u64, usize, NodeState)]) -> Run {
        let node = |name: &str| Node { name: name.into(), zone: "z".into(), cell: "0".into() };
        let belief = |&(at, node, sum): &(u64, usize, u64)| Belief {
            at_us: at * SECOND,
            node,
            store: sum.to_string(),
            lost: 0,
            preserved: 0,
            conflicts: 0,
        };
        let state = |&(at, node, state)| Turn { at_us: at * SECOND, node, state };
        Run {
            nodes: ["a", "b", "c"].map(node).into(),
            beliefs: beliefs.iter().map(belief).collect(),
            states: states.iter().map(state).collect(),
            end_us: 100 * SECOND,
            ..Run::default()
        }
    }

    /// Node, from, to, truth.
    fn told(run: &Run) -> Vec<(usize, u64, u64, usize)> {
        let mut told: Vec<(usize, u64, u64, usize)> = Vec::new();
        for span in spans(run) {
            let (from, to) = (span.from_us / SECOND, span.to_us / SECOND);
            match told.last_mut() {
                Some(last) if (last.0, last.2, last.3) == (span.node, from, span.truth) => last.2 = to,
                _ => told.push((span.node, from, to, span.truth)),
            }
        }
        told
    }

    #[test]
    fn a_part_that_goes_its_own_way_has_another_colour_until_it_agrees_again() {
        let run = recording(&[(0, 0, 1), (0, 1, 1), (0, 2, 1), (10, 2, 9), (30, 0, 5), (30, 1, 5), (30, 2, 5)], &[]);
        let expected = [(0, 0, 100, 0), (1, 0, 100, 0), (2, 0, 10, 0), (2, 10, 30, 1), (2, 30, 100, 0)];
        assert_eq!(told(&run), expected);
    }

    #[test]
    fn a_node_that_is_down_holds_nothing() {
        let run = recording(&[(0, 0, 1), (0, 1, 1), (0, 2, 1), (50, 2, 1)], &[(20, 2, NodeState::Crashed)]);
        assert_eq!(told(&run)[2..], [(2, 0, 20, 0), (2, 50, 100, 0)]);
    }

    #[test]
    fn the_steps_of_a_spreading_change_are_no_truths_of_their_own() {
        let mut run = recording(&[(0, 0, 1), (0, 1, 1), (0, 2, 1)], &[]);
        let late = |node, at_us| Belief { at_us, node, store: "7".into(), lost: 0, preserved: 0, conflicts: 0 };
        let spread = [late(0, 10 * SECOND), late(1, 10 * SECOND + 300), late(2, 10 * SECOND + 700)];
        run.beliefs.extend(spread);
        assert_eq!(told(&run), [(0, 0, 100, 0), (1, 0, 100, 0), (2, 0, 100, 0)]);
    }
}
