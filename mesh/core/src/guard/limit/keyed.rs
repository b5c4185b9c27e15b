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

/// The table.
#[derive(Debug)]
pub(super) struct Keyed {
    sets: Box<[Set]>,
    crowded: AtomicU64,
}

impl Keyed {
    pub(super) fn new(max_keys: u32) -> Self {
        let sets = (max_keys as usize).div_ceil(WAYS).max(1);
        Self { sets: (0..sets).map(|_| Set::default()).collect(), crowded: AtomicU64::new(0) }
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
