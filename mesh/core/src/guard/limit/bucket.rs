//! The generic cell rate algorithm: a token bucket in one word.
//!
//! The word is the *theoretical arrival time* (TAT): when the bucket will be full again. A call moves it on by what the
//! call costs, the *interval* (`per / count`, rounded up to a nanosecond, so never more is allowed than was said); a
//! call that would move it further ahead of now than `burst` intervals is refused, and how far too far is how long to
//! wait. No token is ever added by anybody, no timer runs, and a bucket that is full is one whose time has passed: there
//! is nothing to remember of it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::time::Instant;

/// A rate with its burst, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::guard) struct Rate {
    pub(in crate::guard) interval_ns: u64,
    pub(in crate::guard) burst_ns: u64,
}

impl Rate {
    /// `count` in `per`, `burst` at once.
    pub(in crate::guard) fn new(count: u32, per: Duration, burst: u32) -> Self {
        let interval_ns = (per.as_nanos() as u64).div_ceil(u64::from(count.max(1))).max(1);
        Self { interval_ns, burst_ns: interval_ns.saturating_mul(u64::from(burst.max(1))) }
    }

    /// The same, slower: with another interval and a burst that is worth as much time.
    pub(super) fn slowed(self, interval_ns: u64) -> Self {
        Self { interval_ns, burst_ns: self.burst_ns.max(interval_ns) }
    }
}

/// A call's place in the order: how long it must wait for it, or (refused) how long until there is one.
pub(in crate::guard) type Taken = Result<Duration, Duration>;

/// Takes `cost` calls' worth out of the bucket whose word this is. A place that begins later than `max_wait` from now
/// (beyond the burst) is not taken.
pub(in crate::guard) fn take(tat: &AtomicU64, rate: Rate, cost: u32, now: Instant, max_wait: Duration) -> Taken {
    let now_ns = now.0.saturating_mul(1_000);
    let cost_ns = rate.interval_ns.saturating_mul(u64::from(cost));
    let mut word = tat.load(Relaxed);
    loop {
        let next = word.max(now_ns).saturating_add(cost_ns);
        let wait_ns = (next - now_ns).saturating_sub(rate.burst_ns.max(cost_ns));
        if Duration::from_nanos(wait_ns) > max_wait {
            return Err(Duration::from_nanos(wait_ns) - max_wait);
        }
        match tat.compare_exchange_weak(word, next, Relaxed, Relaxed) {
            Ok(_) => return Ok(Duration::from_nanos(wait_ns)),
            Err(changed) => word = changed,
        }
    }
}

/// How many more calls the bucket would let through now.
pub(in crate::guard) fn left(tat: u64, rate: Rate, now: Instant) -> u64 {
    let ahead_ns = tat.saturating_sub(now.0.saturating_mul(1_000));
    rate.burst_ns.saturating_sub(ahead_ns) / rate.interval_ns
}
