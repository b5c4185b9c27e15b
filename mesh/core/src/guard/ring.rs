//! What became of the last calls: by number of calls, or by time.
//!
//! Both windows count calls, failures and slow calls, without a lock:
//!
//! - *By number*: the last N calls, exactly. A ring holds one byte for each; the sums are one word, changed by the
//!   difference between what a call writes over and what it writes. Callers that race see the sums of some order.
//! - *By time*: the current bucket and the nine before it, so between nine and ten tenths of the window's length. A
//!   bucket is one word: the number of its time slice and three counts of 16 bits. A bucket of more than 65,535 calls
//!   halves all three, which keeps their ratios; counts are exact below that (650,000 calls a second with buckets of
//!   100 ms).

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::time::Instant;

/// Buckets of a window by time (Hystrix cuts its rolling windows into ten, too).
const BUCKETS: u64 = 10;

/// What is counted of one call, or of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// All calls.
    pub calls: u64,
    /// Those that failed.
    pub failures: u64,
    /// Those that were slow, failed or not.
    pub slow: u64,
}

impl Counts {
    /// One call.
    pub(super) fn of(failed: bool, slow: bool) -> Self {
        Self { calls: 1, failures: u64::from(failed), slow: u64::from(slow) }
    }

    /// The share of failures, in percent.
    pub(super) fn failure_percent(&self) -> f64 {
        self.failures as f64 * 100.0 / (self.calls.max(1)) as f64
    }

    /// The share of slow calls, in percent.
    pub(super) fn slow_percent(&self) -> f64 {
        self.slow as f64 * 100.0 / (self.calls.max(1)) as f64
    }
}

/// A window of one kind or the other.
#[derive(Debug)]
pub(super) enum Ring {
    Calls(LastCalls),
    Time(LastTime),
}

impl Ring {
    pub(super) fn add(&self, now: Instant, failed: bool, slow: bool) {
        match self {
            Ring::Calls(ring) => ring.add(failed, slow),
            Ring::Time(ring) => ring.add(now, Counts::of(failed, slow)),
        }
    }

    pub(super) fn sum(&self, now: Instant) -> Counts {
        match self {
            Ring::Calls(ring) => ring.sum(),
            Ring::Time(ring) => ring.sum(now),
        }
    }

    pub(super) fn clear(&self) {
        match self {
            Ring::Calls(ring) => ring.clear(),
            Ring::Time(ring) => ring.clear(),
        }
    }
}

/// The last N calls.
#[derive(Debug)]
pub(super) struct LastCalls {
    /// 0: none yet; otherwise 1, plus 2 for failed, plus 4 for slow.
    calls: Box<[AtomicU8]>,
    next: AtomicU64,
    /// Three sums of 20 bits.
    sums: AtomicU64,
}

const SUM_BITS: u32 = 20;
/// The most calls such a window may have, so that its sums fit.
pub(super) const MAX_CALLS: u64 = 100_000;

impl LastCalls {
    pub(super) fn new(size: u64) -> Self {
        let size = size.clamp(1, MAX_CALLS) as usize;
        let calls = (0..size).map(|_| AtomicU8::new(0)).collect();
        Self { calls, next: AtomicU64::new(0), sums: AtomicU64::new(0) }
    }

    fn add(&self, failed: bool, slow: bool) {
        let place = (self.next.fetch_add(1, Relaxed) % self.calls.len() as u64) as usize;
        let word = 1 | u8::from(failed) << 1 | u8::from(slow) << 2;
        let old = self.calls[place].swap(word, Relaxed);
        if old != word {
            self.sums.fetch_add(sums_of(word).wrapping_sub(sums_of(old)), Relaxed);
        }
    }

    fn sum(&self) -> Counts {
        let sums = self.sums.load(Relaxed);
        let mask = (1 << SUM_BITS) - 1;
        Counts { calls: sums >> (2 * SUM_BITS), failures: sums >> SUM_BITS & mask, slow: sums & mask }
    }

    fn clear(&self) {
        for call in &self.calls {
            let old = call.swap(0, Relaxed);
            self.sums.fetch_sub(sums_of(old), Relaxed);
        }
    }
}

fn sums_of(word: u8) -> u64 {
    let bit = |place: u8| u64::from(word >> place & 1);
    bit(0) << (2 * SUM_BITS) | bit(1) << SUM_BITS | bit(2)
}

/// The last so much time.
#[derive(Debug)]
pub(super) struct LastTime {
    bucket_us: u64,
    /// Each: 16 bits of the slice's number, then three counts of 16 bits.
    buckets: [AtomicU64; BUCKETS as usize],
    /// When something was added last: past the window's length all is stale, whatever the buckets' numbers look like
    /// (16 bits of them repeat).
    last_us: AtomicU64,
}

const COUNT_MAX: u64 = u16::MAX as u64;

impl LastTime {
    pub(super) fn new(length: Duration) -> Self {
        let bucket_us = (length.as_micros() as u64 / BUCKETS).max(1);
        Self { bucket_us, buckets: Default::default(), last_us: AtomicU64::new(0) }
    }

    pub(super) fn add(&self, now: Instant, more: Counts) {
        if self.is_stale(now) {
            self.clear();
        }
        if self.last_us.load(Relaxed) / self.bucket_us != now.0 / self.bucket_us {
            self.last_us.fetch_max(now.0, Relaxed);
        }
        let slice = now.0 / self.bucket_us + 1;
        let bucket = &self.buckets[(slice % BUCKETS) as usize];
        // The closure always returns Some, so the update always happens.
        let _ = bucket.fetch_update(Relaxed, Relaxed, |word| {
            let old = read(word, slice).unwrap_or_default();
            Some(write(
                slice,
                Counts {
                    calls: old.calls + more.calls,
                    failures: old.failures + more.failures,
                    slow: old.slow + more.slow,
                },
            ))
        });
    }

    pub(super) fn sum(&self, now: Instant) -> Counts {
        if self.is_stale(now) {
            return Counts::default();
        }
        let newest = now.0 / self.bucket_us + 1;
        let oldest = newest.saturating_sub(BUCKETS - 1);
        (oldest..=newest).fold(Counts::default(), |sum, slice| {
            let held = read(self.buckets[(slice % BUCKETS) as usize].load(Relaxed), slice).unwrap_or_default();
            Counts { calls: sum.calls + held.calls, failures: sum.failures + held.failures, slow: sum.slow + held.slow }
        })
    }

    pub(super) fn clear(&self) {
        for bucket in &self.buckets {
            bucket.store(0, Relaxed);
        }
    }

    /// The most calls of one bucket in the window, as Sentinel's BBR check wants it, scaled to a second.
    pub(super) fn max_calls_per_s(&self, now: Instant) -> f64 {
        if self.is_stale(now) {
            return 0.0;
        }
        let newest = now.0 / self.bucket_us + 1;
        let most = (newest.saturating_sub(BUCKETS - 1)..=newest)
            .filter_map(|slice| read(self.buckets[(slice % BUCKETS) as usize].load(Relaxed), slice))
            .map(|counts| counts.calls)
            .max();
        most.unwrap_or(0) as f64 * 1e6 / self.bucket_us as f64
    }

    fn is_stale(&self, now: Instant) -> bool {
        now.0.saturating_sub(self.last_us.load(Relaxed)) >= self.bucket_us * BUCKETS
    }
}

fn read(word: u64, slice: u64) -> Option<Counts> {
    (word >> 48 == slice & COUNT_MAX).then_some(Counts {
        calls: word >> 32 & COUNT_MAX,
        failures: word >> 16 & COUNT_MAX,
        slow: word & COUNT_MAX,
    })
}

fn write(slice: u64, mut counts: Counts) -> u64 {
    while counts.calls.max(counts.failures).max(counts.slow) > COUNT_MAX {
        counts = Counts { calls: counts.calls / 2, failures: counts.failures / 2, slow: counts.slow / 2 };
    }
    (slice & COUNT_MAX) << 48 | counts.calls << 32 | counts.failures << 16 | counts.slow
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Instant {
        Instant(ms * 1_000)
    }

    proptest! {
        #[test]
        fn the_last_calls_are_counted_exactly(size in 1u64..20, calls in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..100)) {
            let ring = LastCalls::new(size);
            let mut model = VecDeque::new();
            for (failed, slow) in calls {
                ring.add(failed, slow);
                model.push_back((failed, slow));
                if model.len() > size as usize {
                    model.pop_front();
                }
                let count = |of: fn(&(bool, bool)) -> bool| model.iter().filter(|call| of(call)).count() as u64;
                prop_assert_eq!(ring.sum(), Counts { calls: model.len() as u64, failures: count(|c| c.0), slow: count(|c| c.1) });
            }
            ring.clear();
            prop_assert_eq!(ring.sum(), Counts::default());
        }

        #[test]
        fn the_last_second_holds_what_its_ten_slices_hold(calls in proptest::collection::vec((0u64..700, any::<bool>()), 0..100)) {
            let ring = LastTime::new(Duration::from_secs(1));
            let mut now = 5_000;
            let mut model: Vec<(u64, bool)> = Vec::new();
            for (wait, failed) in calls {
                now += wait;
                ring.add(ms(now), Counts::of(failed, false));
                model.push((now, failed));
                let current: Vec<_> = model.iter().filter(|(at, _)| at / 100 + 10 > now / 100).collect();
                let failures = current.iter().filter(|(_, failed)| *failed).count() as u64;
                prop_assert_eq!(ring.sum(ms(now)), Counts { calls: current.len() as u64, failures, slow: 0 });
            }
        }
    }

    #[test]
    fn a_bucket_that_overflows_keeps_its_ratio() {
        let ring = LastTime::new(Duration::from_secs(1));
        for call in 0..200_000 {
            ring.add(ms(1), Counts::of(call % 4 == 0, false));
        }
        assert!((ring.sum(ms(1)).failure_percent() - 25.0).abs() < 0.1);
    }

    #[test]
    fn what_is_very_old_is_never_taken_for_new() {
        let ring = LastTime::new(Duration::from_secs(1));
        ring.add(ms(0), Counts::of(true, true));
        // The same bucket, and the same 16 bits of its number.
        let lap = ms(100 * (1 << 16) * BUCKETS);
        assert_eq!(ring.sum(lap), Counts::default());
        ring.add(lap, Counts::of(false, false));
        assert_eq!(ring.sum(lap), Counts { calls: 1, failures: 0, slow: 0 });
    }
}
