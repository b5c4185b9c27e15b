//! Rate limits: so many calls in so much time, of all calls or of each caller, path, header value and so on.
//!
//! | `behaviour` | What too much is | Exactly |
//! |---|---|---|
//! | `reject` | refused | a token bucket ([`bucket`]): in any time t at most `burst + count * t / per_ms` |
//! | `pace` | held back up to `max_wait_ms`, then refused | a leaky bucket: one call each `per_ms / count`, no burst |
//! | `warm_up`, `warm_up_pace` | as above | the count grows from `count / cold_factor` (`warm`) |
//!
//! A decision is one compare-and-swap, two with a warm-up. `related` limits are decided by what another route's
//! [`Meter`] shows; whether a limit is for a call at all (its route, its `entrance`) is decided by whoever asks.

pub(super) mod bucket;
mod keyed;
mod settings;
mod warm;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

use super::refusal::{Guard, Refusal};
use super::ring::{Counts, LastTime};
use crate::time::Instant;
use bucket::Rate;
pub use keyed::KeyBudget;
use keyed::{KeyHash, Keyed};
pub(super) use settings::check_name;
pub use settings::{Behaviour, LimitBy, LimitSettings};
use warm::WarmUp;

/// One rate limit.
#[derive(Debug)]
pub struct Limit {
    settings: LimitSettings,
    rate: Rate,
    max_wait: Duration,
    buckets: Buckets,
    warm_up: Option<WarmUp>,
    /// Rates of some values, by their hashes.
    values: Vec<(KeyHash, Rate)>,
    passed: AtomicU64,
    held: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug)]
enum Buckets {
    One(AtomicU64),
    Many(Keyed),
}

/// All that can be shown of a limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LimitSnapshot {
    /// Its name.
    pub name: String,
    /// Calls a second allowed now (of one value, when there are many).
    pub per_s: f64,
    /// Calls it would let through at once now; without meaning when each value has a limit of its own.
    pub left: Option<u64>,
    /// Values it can tell apart; fewer than `max_keys` where the node's memory for them is used up.
    pub keys: Option<u64>,
    /// Values that have used some of theirs lately.
    pub busy_keys: Option<u64>,
    /// Values displaced while they were busy, since there were too many.
    pub crowded: Option<u64>,
    /// Calls it let through.
    pub passed: u64,
    /// Calls it held back first.
    pub held: u64,
    /// Calls it refused.
    pub refused: u64,
}

impl Limit {
    /// A limit that nothing has passed yet, with all the memory it asks for.
    pub fn new(settings: &LimitSettings) -> Self {
        Self::within(settings, &Arc::new(KeyBudget::of(u64::MAX)))
    }

    /// The same with what is left for it.
    pub fn within(settings: &LimitSettings, budget: &Arc<KeyBudget>) -> Self {
        let rate_of = |count| Rate::new(count, Duration::from_millis(settings.per_ms), settings.burst_of(count));
        let buckets = match settings.by {
            LimitBy::All => Buckets::One(AtomicU64::new(0)),
            _ => Buckets::Many(Keyed::new(settings.max_keys, budget)),
        };
        let warms = matches!(settings.behaviour, Behaviour::WarmUp | Behaviour::WarmUpPace);
        let mut values: Vec<_> =
            settings.values.iter().map(|(value, count)| (KeyHash::of(value.as_bytes()), rate_of(*count))).collect();
        values.sort_unstable_by_key(|(key, _)| *key);
        Self {
            rate: rate_of(settings.count),
            max_wait: settings.max_wait(),
            buckets,
            warm_up: warms.then(|| WarmUp::new(settings)),
            values,
            passed: AtomicU64::new(0),
            held: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            settings: settings.clone(),
        }
    }

    /// What it was made of.
    pub fn settings(&self) -> &LimitSettings {
        &self.settings
    }

    /// Lets a call through, after the time that is returned (zero but for `pace`), or refuses it. `value` is what the
    /// limit is `by` (nobody looks at it when that is `all`); `cost` is how many calls it counts for, normally one.
    ///
    /// # Errors
    /// A refusal that says when there will be room.
    pub fn admit(&self, now: Instant, value: &[u8], cost: u32) -> Result<Duration, Refusal> {
        self.admit_within(now, value, cost, self.max_wait)
    }

    /// The same for a call that has no more than `left`: what it could not wait for, it takes no place for.
    ///
    /// # Errors
    /// A refusal that says when there will be room.
    pub fn admit_within(&self, now: Instant, value: &[u8], cost: u32, left: Duration) -> Result<Duration, Refusal> {
        let max_wait = self.max_wait.min(left);
        let taken = match &self.buckets {
            Buckets::One(tat) => {
                let rate = self.warm_up.as_ref().map_or(self.rate, |warm_up| warm_up.rate(now, self.rate));
                bucket::take(tat, rate, cost, now, max_wait)
            }
            Buckets::Many(keyed) => {
                let key = KeyHash::of(value);
                let own = self.values.binary_search_by_key(&key, |(key, _)| *key);
                let rate = own.map_or(self.rate, |place| self.values[place].1);
                bucket::take(keyed.bucket(key, now), rate, cost, now, max_wait)
            }
        };
        match taken {
            Ok(wait) => {
                self.passed.fetch_add(1, Relaxed);
                if !wait.is_zero() {
                    self.held.fetch_add(1, Relaxed);
                }
                if let Some(warm_up) = &self.warm_up {
                    warm_up.pass(cost);
                }
                Ok(wait)
            }
            Err(wait) => Err(self.refuse("over the rate", wait)),
        }
    }

    /// Decides a call of a limit that is `related`: by how many of the other's calls have passed lately.
    ///
    /// # Errors
    /// A refusal; the other's window has changed after a tenth of it.
    pub fn admit_related(&self, now: Instant, other: &Meter) -> Result<(), Refusal> {
        if other.passed(now) >= u64::from(self.settings.count) {
            return Err(self.refuse("over the rate of what it is related to", other.slice()));
        }
        self.passed.fetch_add(1, Relaxed);
        Ok(())
    }

    fn refuse(&self, reason: &'static str, wait: Duration) -> Refusal {
        self.refused.fetch_add(1, Relaxed);
        Refusal::until(Guard::Rate, reason, wait)
    }

    /// What it is doing; takes nothing. With many values this reads them all.
    pub fn snapshot(&self, now: Instant) -> LimitSnapshot {
        let per_s = self.warm_up.as_ref().map_or(1e9 / self.rate.interval_ns as f64, WarmUp::per_s);
        let (left, keys, many) = match &self.buckets {
            Buckets::One(tat) => (Some(bucket::left(tat.load(Relaxed), self.rate, now)), None, None),
            Buckets::Many(keyed) => (None, Some(keyed.places()), Some(keyed.busy_and_crowded(now))),
        };
        LimitSnapshot {
            name: self.settings.name.clone(),
            per_s,
            left,
            keys,
            busy_keys: many.map(|(busy, _)| busy),
            crowded: many.map(|(_, crowded)| crowded),
            passed: self.passed.load(Relaxed),
            held: self.held.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }
}

/// What of a route has passed lately, for the limits that are related to it.
#[derive(Debug)]
pub struct Meter {
    window: LastTime,
    length: Duration,
}

impl Meter {
    /// A meter of the last `length` (nine to ten tenths of it).
    pub fn new(length: Duration) -> Self {
        Self { window: LastTime::new(length), length }
    }

    /// A call passed.
    pub fn pass(&self, now: Instant) {
        self.window.add(now, Counts::of(false, false));
    }

    /// How many did.
    pub fn passed(&self, now: Instant) -> u64 {
        self.window.sum(now).calls
    }

    fn slice(&self) -> Duration {
        self.length / 10
    }
}

#[cfg(test)]
mod tests;
