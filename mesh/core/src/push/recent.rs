//! What push remembers for a moment: changes that came, changes others speak of, and how many come.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::ChangeId;
use crate::digest::KeyHash;
use crate::id::NodeId;
use crate::time::Instant;

/// How many changes are remembered: some seconds of a busy mesh, in about half a megabyte.
const MAX_RECENT: usize = 8_192;
/// How many changes heard of and not seen are waited for; more are left to repair.
const MAX_MISSING: usize = 4_096;
/// How many neighbours that have a missing change are remembered.
const MAX_SOURCES: usize = 4;
/// How often a missing change is asked for before it is left to repair.
const MAX_ATTEMPTS: usize = 4;
/// How long a change may stay behind its id before it is asked for: a few times the round trip of a data centre and the
/// pauses of a busy host. Longer links lengthen it by themselves, see [`Missing::arrived`].
const PATIENCE: Duration = Duration::from_millis(10);
/// The most it is ever lengthened to: twice the round trip around the world.
const MAX_PATIENCE: Duration = Duration::from_millis(640);
/// Over what time changes are counted.
const WINDOW: Duration = Duration::from_millis(500);

/// The latest changes by id, and where they stand in the store.
#[derive(Debug, Clone, Default)]
pub(super) struct Recent {
    keys: BTreeMap<ChangeId, KeyHash>,
    order: VecDeque<ChangeId>,
}

impl Recent {
    pub(super) fn note(&mut self, id: ChangeId, key: KeyHash) {
        if self.keys.insert(id, key).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > MAX_RECENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }

    pub(super) fn contains(&self, id: ChangeId) -> bool {
        self.keys.contains_key(&id)
    }

    pub(super) fn key(&self, id: ChangeId) -> Option<KeyHash> {
        self.keys.get(&id).copied()
    }
}

/// Changes that neighbours have and this node has not.
#[derive(Debug, Clone)]
pub(super) struct Missing {
    wanted: BTreeMap<ChangeId, Wanted>,
    due: BTreeSet<(Instant, ChangeId)>,
    patience: Duration,
}

#[derive(Debug, Clone)]
struct Wanted {
    due: Instant,
    attempts: usize,
    sources: Vec<NodeId>,
}

impl Default for Missing {
    fn default() -> Self {
        Self { wanted: BTreeMap::new(), due: BTreeSet::new(), patience: PATIENCE }
    }
}

impl Missing {
    /// Notes who has a change; false when there are too many to remember.
    pub(super) fn note(&mut self, now: Instant, id: ChangeId, from: &NodeId) -> bool {
        if let Some(wanted) = self.wanted.get_mut(&id) {
            if wanted.sources.len() < MAX_SOURCES && !wanted.sources.contains(from) {
                wanted.sources.push(from.clone());
            }
            return true;
        }
        if self.wanted.len() >= MAX_MISSING {
            return false;
        }
        let due = now + self.patience;
        self.due.insert((due, id));
        self.wanted.insert(id, Wanted { due, attempts: 0, sources: vec![from.clone()] });
        true
    }

    /// Notes that a change has come. One that was asked for in vain, because it was on its way from another neighbour,
    /// says that this node asks too soon; one that came for being asked says that it need not wait longer.
    pub(super) fn arrived(&mut self, id: ChangeId, from: &NodeId) {
        let Some(wanted) = self.wanted.remove(&id) else { return };
        self.due.remove(&(wanted.due, id));
        let Some(last) = wanted.attempts.checked_sub(1) else { return };
        self.patience = if wanted.sources[last % wanted.sources.len()] == *from {
            (self.patience * 7 / 8).max(PATIENCE)
        } else {
            (self.patience * 2).min(MAX_PATIENCE)
        };
    }

    /// What is to be asked for now, by whom to ask: each time another of those who have it.
    pub(super) fn due(&mut self, now: Instant) -> BTreeMap<NodeId, Vec<ChangeId>> {
        let mut asked: BTreeMap<NodeId, Vec<ChangeId>> = BTreeMap::new();
        while let Some((due, id)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, id));
            let Some(wanted) = self.wanted.get_mut(&id) else { continue };
            if wanted.attempts == MAX_ATTEMPTS {
                self.wanted.remove(&id);
                continue;
            }
            asked.entry(wanted.sources[wanted.attempts % wanted.sources.len()].clone()).or_default().push(id);
            wanted.attempts += 1;
            wanted.due = now + self.patience * 2;
            self.due.insert((wanted.due, id));
        }
        asked
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }
}

/// How many changes there are, and whether that is many.
#[derive(Debug, Clone)]
pub(super) struct Rate {
    /// So many in a window are many; fewer than half as many are few again.
    many: usize,
    counted: usize,
    ends: Option<Instant>,
    busy: bool,
}

impl Rate {
    pub(super) fn new(per_second: u32) -> Self {
        let many = (f64::from(per_second) * WINDOW.as_secs_f64()).ceil() as usize;
        Self { many: many.max(1), counted: 0, ends: None, busy: false }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    pub(super) fn count(&mut self, now: Instant, changes: usize) {
        if changes == 0 {
            return;
        }
        self.ends.get_or_insert(now + WINDOW);
        self.counted += changes;
        self.busy |= self.counted >= self.many;
    }

    /// When the window under way ends: none while nothing happens.
    pub(super) fn ends(&self) -> Option<Instant> {
        self.ends
    }

    /// Ends the window if it is time, and tells whether that made a busy mesh a quiet one.
    pub(super) fn calmed(&mut self, now: Instant) -> bool {
        if self.ends.is_none_or(|ends| now < ends) {
            return false;
        }
        let few = self.counted < self.many.div_ceil(2);
        let calmed = self.busy && few;
        self.busy &= !few;
        self.counted = 0;
        self.ends = self.busy.then(|| now + WINDOW);
        calmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000)
    }

    #[test]
    fn only_the_latest_changes_are_remembered() {
        let mut recent = Recent::default();
        for id in 0..=MAX_RECENT as u32 {
            recent.note(ChangeId(id), KeyHash(7));
            recent.note(ChangeId(id), KeyHash(8));
        }
        assert!(!recent.contains(ChangeId(0)) && recent.contains(ChangeId(1)));
        assert_eq!(recent.key(ChangeId(1)), Some(KeyHash(8)));
        assert_eq!((recent.keys.len(), recent.order.len()), (MAX_RECENT, MAX_RECENT));
    }

    #[test]
    fn a_missing_change_is_asked_of_each_who_has_it_and_given_up_in_the_end() {
        let (a, b): (NodeId, NodeId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut missing = Missing::default();
        assert!(missing.note(at(0), ChangeId(1), &a) && missing.note(at(1), ChangeId(1), &b));
        assert!(missing.due(at(9)).is_empty(), "patience");
        assert!(missing.due(at(10)).into_keys().eq([a.clone()]));
        assert!(missing.due(at(30)).into_keys().eq([b.clone()]));
        for later in 2..20 {
            missing.due(at(10 + 20 * later));
        }
        assert!(missing.wanted.is_empty() && missing.due.is_empty());
    }

    #[test]
    fn who_asks_too_soon_becomes_more_patient_and_less_so_again() {
        let (a, b): (NodeId, NodeId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut missing = Missing::default();
        let mut ask = |from: &NodeId| {
            missing.note(at(0), ChangeId(1), &a);
            missing.due(at(10_000));
            missing.arrived(ChangeId(1), from);
            missing.patience
        };
        assert_eq!(ask(&b), 2 * PATIENCE);
        assert!(ask(&a) < 2 * PATIENCE);
        assert_eq!((0..20).map(|_| ask(&b)).max(), Some(MAX_PATIENCE));
        assert_eq!((0..99).map(|_| ask(&a)).min(), Some(PATIENCE));
    }

    #[test]
    fn what_is_missing_has_a_bound() {
        let a: NodeId = "a".parse().unwrap();
        let mut missing = Missing::default();
        assert!((0..MAX_MISSING as u32).all(|id| missing.note(at(0), ChangeId(id), &a)));
        assert!(!missing.note(at(0), ChangeId(u32::MAX), &a));
    }

    #[test]
    fn a_mesh_is_busy_from_many_changes_on_until_there_are_few() {
        let mut rate = Rate::new(100);
        rate.count(at(0), 49);
        assert!(!rate.is_busy());
        rate.count(at(400), 1);
        assert!(rate.is_busy() && rate.ends() == Some(at(500)));
        assert!(!rate.calmed(at(500)), "fifty in half a second");
        rate.count(at(600), 25);
        assert!(!rate.calmed(at(1_000)), "half of many is not few");
        rate.count(at(1_100), 24);
        assert!(rate.calmed(at(1_500)) && !rate.is_busy());
        assert_eq!(rate.ends(), None, "nothing to wake up for while nothing happens");
    }
}
