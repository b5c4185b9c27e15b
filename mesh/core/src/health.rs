//! Verdicts on this node's own instances: which probes and renewals count, and when.
//!
//! Only a change of verdict leaves this room: an instance that is probed every second for a year costs the mesh nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::InstanceKey;
use crate::registry::{Address, Check, CheckKind, Health};
use crate::time::Instant;

/// What should happen to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its health has changed to this.
    Changed(Health),
    /// It has been failing for as long as its check allows.
    Expired,
}

/// Watches the checked instances of one node.
#[derive(Debug, Clone, Default)]
pub struct Monitor {
    watched: BTreeMap<InstanceKey, Watched>,
    deadlines: BTreeSet<(Instant, InstanceKey)>,
}

#[derive(Debug, Clone)]
struct Watched {
    address: Address,
    check: Check,
    health: Health,
    good_in_a_row: u32,
    bad_in_a_row: u32,
    failing_since: Option<Instant>,
    renewed: Instant,
    deadline: Option<Instant>,
}

impl Monitor {
    /// Begins (or changes) watching. `health` is the verdict so far. Nothing happens when it is watched just so.
    pub fn watch(&mut self, key: &InstanceKey, address: &Address, check: &Check, health: Health, now: Instant) {
        let same = |w: &Watched| w.address == *address && w.check == *check && w.health == health;
        if self.watched.get(key).is_some_and(same) {
            return;
        }
        self.forget(key);
        let mut watched = Watched {
            address: address.clone(),
            check: check.clone(),
            health,
            good_in_a_row: 0,
            bad_in_a_row: 0,
            failing_since: (health == Health::Failing).then_some(now),
            renewed: now,
            deadline: None,
        };
        watched.deadline = watched.next_deadline();
        if let Some(deadline) = watched.deadline {
            self.deadlines.insert((deadline, key.clone()));
        }
        self.watched.insert(key.clone(), watched);
    }

    /// Stops watching.
    pub fn forget(&mut self, key: &InstanceKey) {
        if let Some(deadline) = self.watched.remove(key).and_then(|watched| watched.deadline) {
            self.deadlines.remove(&(deadline, key.clone()));
        }
    }

    /// Where and how an instance is to be probed; `None` when it is not watched, or has a lease.
    pub fn probe(&self, key: &InstanceKey) -> Option<(&Address, &Check)> {
        self.watched.get(key).and_then(Watched::probe)
    }

    /// All that is to be probed.
    pub fn probes(&self) -> impl Iterator<Item = (&InstanceKey, &Address, &Check)> {
        self.watched.iter().filter_map(|(key, watched)| watched.probe().map(|(address, check)| (key, address, check)))
    }

    /// Takes the result of a probe. One that comes late, after the check has become a lease, says nothing.
    pub fn probed(&mut self, key: &InstanceKey, good: bool, now: Instant) -> Option<Verdict> {
        self.probe(key)?;
        self.result(key, good, now)
    }

    /// Takes what a renewal of a lease said.
    pub fn renewed(&mut self, key: &InstanceKey, good: bool, now: Instant) -> Option<Verdict> {
        self.watched.get(key).filter(|watched| watched.check.kind == CheckKind::Ttl)?;
        self.result(key, good, now)
    }

    fn result(&mut self, key: &InstanceKey, good: bool, now: Instant) -> Option<Verdict> {
        let watched = self.watched.get_mut(key)?;
        let verdict = watched.result(good, now);
        self.reschedule(key);
        verdict.map(Verdict::Changed)
    }

    /// When [`Monitor::due`] has something to say.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// What time alone has decided by now: leases that lapsed, failures that lasted too long. At most so many; the rest
    /// stays due.
    pub fn due(&mut self, now: Instant, limit: usize) -> Vec<(InstanceKey, Verdict)> {
        let mut verdicts = Vec::new();
        while verdicts.len() < limit
            && let Some((_, key)) = self.deadlines.first().filter(|(at, _)| *at <= now).cloned()
        {
            self.deadlines.pop_first();
            let Some(watched) = self.watched.get_mut(&key) else { continue };
            watched.deadline = None;
            if watched.expired(now) {
                // Watched, so that its probe can be stopped, until the instance is gone from the store.
                verdicts.push((key, Verdict::Expired));
                continue;
            }
            if watched.lapsed(now) {
                let verdict = watched.fail(now);
                verdicts.extend(verdict.map(|health| (key.clone(), Verdict::Changed(health))));
            }
            self.reschedule(&key);
        }
        verdicts
    }

    fn reschedule(&mut self, key: &InstanceKey) {
        let Some(watched) = self.watched.get_mut(key) else { return };
        let next = watched.next_deadline();
        if let Some(old) = std::mem::replace(&mut watched.deadline, next) {
            self.deadlines.remove(&(old, key.clone()));
        }
        if let Some(next) = next {
            self.deadlines.insert((next, key.clone()));
        }
    }
}

impl Watched {
    fn probe(&self) -> Option<(&Address, &Check)> {
        (self.check.kind != CheckKind::Ttl).then_some((&self.address, &self.check))
    }

    fn result(&mut self, good: bool, now: Instant) -> Option<Health> {
        if self.check.kind == CheckKind::Ttl {
            self.renewed = now;
        }
        if good {
            self.bad_in_a_row = 0;
            self.good_in_a_row = self.good_in_a_row.saturating_add(1);
            // What has never failed passes at the first good probe, as does a renewed lease.
            let enough = self.check.kind == CheckKind::Ttl || self.health == Health::Unknown;
            let passes = enough || self.good_in_a_row >= self.check.successes_to_pass;
            return if passes { self.set(Health::Passing, now) } else { None };
        }
        self.good_in_a_row = 0;
        self.bad_in_a_row = self.bad_in_a_row.saturating_add(1);
        let told = self.check.kind == CheckKind::Ttl;
        if told || self.bad_in_a_row >= self.check.failures_to_fail { self.set(Health::Failing, now) } else { None }
    }

    fn fail(&mut self, now: Instant) -> Option<Health> {
        self.set(Health::Failing, now)
    }

    fn set(&mut self, health: Health, now: Instant) -> Option<Health> {
        if self.health == health {
            return None;
        }
        self.health = health;
        self.failing_since = (health == Health::Failing).then_some(now);
        Some(health)
    }

    fn lapsed(&self, now: Instant) -> bool {
        self.check.kind == CheckKind::Ttl && now >= self.renewed + self.check.interval()
    }

    fn expiry(&self) -> Option<Instant> {
        Some(self.failing_since? + Duration::from_millis(self.check.deregister_after_ms?))
    }

    fn expired(&self, now: Instant) -> bool {
        self.expiry().is_some_and(|at| now >= at)
    }

    fn next_deadline(&self) -> Option<Instant> {
        let lease = (self.check.kind == CheckKind::Ttl && self.health != Health::Failing)
            .then(|| self.renewed + self.check.interval());
        [lease, self.expiry()].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{instance, instance_key};

    const SECOND: u64 = 1_000_000;

    fn monitor(check: Check, health: Health) -> (Monitor, InstanceKey) {
        let mut monitor = Monitor::default();
        let key = instance_key("orders", "o1");
        monitor.watch(&key, &instance().address, &check, health, Instant(0));
        (monitor, key)
    }

    #[test]
    fn one_bad_probe_is_not_a_verdict_and_three_are() {
        let (mut monitor, key) = monitor(Check::new(CheckKind::Tcp), Health::Passing);
        assert_eq!(monitor.probed(&key, false, Instant(1)), None);
        assert_eq!(monitor.probed(&key, true, Instant(2)), None);
        assert_eq!(monitor.probed(&key, false, Instant(3)), None);
        assert_eq!(monitor.probed(&key, false, Instant(4)), None);
        assert_eq!(monitor.probed(&key, false, Instant(5)), Some(Verdict::Changed(Health::Failing)));
        assert_eq!(monitor.probed(&key, false, Instant(6)), None);
        assert_eq!(monitor.probed(&key, true, Instant(7)), Some(Verdict::Changed(Health::Passing)));
    }

    #[test]
    fn a_lease_that_is_not_renewed_lapses_once() {
        let (mut monitor, key) = monitor(Check::new(CheckKind::Ttl), Health::Passing);
        assert_eq!(monitor.next_deadline(), Some(Instant(15 * SECOND)));
        monitor.renewed(&key, true, Instant(10 * SECOND));
        assert!(monitor.due(Instant(15 * SECOND), 9).is_empty());
        assert_eq!(monitor.due(Instant(25 * SECOND), 9), [(key, Verdict::Changed(Health::Failing))]);
        assert!(monitor.due(Instant(60 * SECOND), 9).is_empty());
        assert_eq!(monitor.next_deadline(), None);
    }

    #[test]
    fn an_instance_that_fails_for_too_long_expires() {
        let check = Check { deregister_after_ms: Some(30_000), ..Check::new(CheckKind::Ttl) };
        let (mut monitor, key) = monitor(check, Health::Passing);
        assert_eq!(monitor.due(Instant(15 * SECOND), 9), [(key.clone(), Verdict::Changed(Health::Failing))]);
        assert!(monitor.due(Instant(44 * SECOND), 9).is_empty());
        assert_eq!(monitor.due(Instant(45 * SECOND), 9), [(key, Verdict::Expired)]);
        assert_eq!(monitor.next_deadline(), None);
    }
}
