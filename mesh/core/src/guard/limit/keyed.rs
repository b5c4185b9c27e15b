//! A bucket for each value of something, with a bounded memory and without a lock.
//!
//! A table of sets of eight; a value's hash says in which set it is looked for. A value that is not there takes the
//! place whose bucket is full soonest, *and takes over its bucket*. If that bucket was full (its time has passed), the
//! value it was of loses nothing by being forgotten, for a full bucket is what an unknown value has. If all eight are
//! in use, the newcomer begins with the debt of the one it displaced, as in the space-saving sketch (Metwally et al.,
//! 2005): times in a set only grow, so no value ever gets more than its limit by being forgotten; a new one may get
//! less. Such evictions are counted (`crowded`): more values than places were busy at once, raise `max_keys`.
//!
//! The hash is 64 bits: two values that share it share a bucket. Changing a place's value is one compare-and-swap; a
//! call that had just found the value displaced charges the newcomer instead, once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use xxhash_rust::xxh3::xxh3_64;

use crate::time::Instant;

const WAYS: usize = 8;

/// What stands for a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyHash(u64);

impl KeyHash {
    pub(super) fn of(value: &[u8]) -> Self {
        // Zero is an empty place.
        Self(xxh3_64(value).max(1))
    }
}

#[derive(Debug, Default)]
struct Set {
    keys: [AtomicU64; WAYS],
    tats: [AtomicU64; WAYS],
}

/// How many values all limits of a node may tell apart together: what bounds their memory, however many services and
/// documents there are. A limit that finds less left than it asks for gets what is left, and no less than [`Self::LEAST`];
/// with fewer places it is [`crowded`](self) sooner, which refuses more and lets nobody through who is over the limit.
#[derive(Debug)]
pub struct KeyBudget {
    most: u64,
    used: AtomicU64,
    short: AtomicU64,
}

impl KeyBudget {
    /// What every limit gets, 1 kB of it.
    pub const LEAST: u32 = 64;

    /// So many values.
    pub fn of(most: u64) -> Self {
        Self { most, used: AtomicU64::new(0), short: AtomicU64::new(0) }
    }

    /// How many are given out now.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// How many limits have got fewer than they asked for.
    pub fn short(&self) -> u64 {
        self.short.load(Relaxed)
    }

    fn take(&self, wanted: u32) -> u32 {
        let mut given = 0;
        // The closure always returns Some, so the update always happens.
        let _ = self.used.fetch_update(AcqRel, Acquire, |used| {
            let left = u32::try_from(self.most.saturating_sub(used)).unwrap_or(u32::MAX);
            given = wanted.min(left.max(Self::LEAST));
            Some(used + u64::from(given))
        });
        if given < wanted {
            self.short.fetch_add(1, Relaxed);
        }
        given
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Keyed {
    sets: Box<[Set]>,
    crowded: AtomicU64,
    /// What it took, and from where.
    budget: Arc<KeyBudget>,
    given: u32,
}

impl Drop for Keyed {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.given.into(), AcqRel);
    }
}

impl Keyed {
    pub(super) fn new(max_keys: u32, budget: &Arc<KeyBudget>) -> Self {
        let given = budget.take(max_keys);
        let sets = (given as usize).div_ceil(WAYS).max(1);
        let sets = (0..sets).map(|_| Set::default()).collect();
        Self { sets, crowded: AtomicU64::new(0), budget: budget.clone(), given }
    }

    /// How many values it can tell apart.
    pub(super) fn places(&self) -> u64 {
        (self.sets.len() * WAYS) as u64
    }

    /// The bucket of a value; it may be another's by the time it is used.
    pub(super) fn bucket(&self, key: KeyHash, now: Instant) -> &AtomicU64 {
        let set = &self.sets[((u128::from(key.0) * self.sets.len() as u128) >> 64) as usize];
        // Each time around somebody else has taken a place; after a few the first place will do.
        for _ in 0..WAYS {
            if let Some(place) = set.find(key) {
                return &set.tats[place];
            }
            if let Some(place) = set.take_place(key, now, &self.crowded) {
                return &set.tats[place];
            }
        }
        &set.tats[0]
    }

    /// How many values are in debt now, and how many were ever displaced in debt.
    pub(super) fn busy_and_crowded(&self, now: Instant) -> (u64, u64) {
        let now_ns = now.0.saturating_mul(1_000);
        let tats = self.sets.iter().flat_map(|set| &set.tats);
        (tats.filter(|tat| tat.load(Relaxed) > now_ns).count() as u64, self.crowded.load(Relaxed))
    }
}

impl Set {
    fn find(&self, key: KeyHash) -> Option<usize> {
        self.keys.iter().position(|held| held.load(Acquire) == key.0)
    }

    fn take_place(&self, key: KeyHash, now: Instant, crowded: &AtomicU64) -> Option<usize> {
        let held = |place: usize| self.keys[place].load(Acquire);
        let tat = |place: usize| self.tats[place].load(Relaxed);
        let place = (0..WAYS).min_by_key(|place| (tat(*place), held(*place) != 0)).unwrap_or_default();
        let old = held(place);
        if old == key.0 {
            return Some(place);
        }
        self.keys[place].compare_exchange(old, key.0, AcqRel, Acquire).ok()?;
        // Somebody may have put the same value elsewhere meanwhile: the first place is its place.
        let first = self.find(key).unwrap_or(place);
        if first < place {
            let _ = self.keys[place].compare_exchange(key.0, 0, AcqRel, Acquire);
            return Some(first);
        }
        if tat(place) > now.0.saturating_mul(1_000) {
            crowded.fetch_add(1, Relaxed);
        }
        Some(place)
    }
}
