//! What is measured of one instance, and the requests in flight at it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::guard::Breaker;
use crate::time::Instant;

/// How fast latency and failures are forgotten (Finagle's and Linkerd's decay).
const TAU_S: f32 = 10.0;
/// How fast the mean latency of good answers is forgotten (Dubbo averages over 30 s).
const MEAN_TAU_S: f32 = 30.0;
/// One answer is at least this much of the mean: at high rates the mean is of the last 20, not of those of 30 s.
const MEAN_STEP: f32 = 0.05;
/// What a failed answer counts as (Linkerd feeds its balancer the same for a 429).
pub const FAILURE_PENALTY: Duration = Duration::from_secs(5);
/// The longest penalty an answer may ask for by `Retry-After` (Linkerd's cap).
const MAX_PENALTY: Duration = Duration::from_secs(300);
/// One answer is at least and at most this much of the share of failures: so ten in a row are a tenth at the highest
/// rate, and a single one after a long silence is a fifth.
const FAILURE_STEP: (f32, f32) = (0.01, 0.2);
/// A share of failures below this is none.
const NO_FAILURES: f32 = 0.005;

/// How an attempt went, as far as the balance cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A good answer.
    Good,
    /// A failure, or a word to slow down: counts as an answer that took at least so long.
    Unwelcome(Duration),
}

/// What is measured of one instance.
#[derive(Debug, Default)]
pub struct Load {
    /// Peak EWMA of the latency: zero without history; otherwise microseconds as `f32` bits, then when, in ticks.
    cost: AtomicU64,
    /// The mean latency of good answers in the same form, if anybody wants it.
    mean: AtomicU64,
    /// The share of answers that were unwelcome in the same form; zero when there were none.
    failing: AtomicU64,
    in_flight: AtomicU32,
    wants_mean: AtomicBool,
}

/// Ticks of 64 microseconds: fine enough for the decay at any rate, and 32 bits of them repeat only after three days
/// (an instance unheard of for so long looks more recent than it is, which its next answer mends).
fn ticks(now: Instant) -> u32 {
    (now.0 >> 6) as u32
}

fn seconds_between(earlier: u32, later: u32) -> f32 {
    // Another thread may have a later clock reading than ours: that is no time at all, not three days.
    let passed = later.wrapping_sub(earlier) as i32;
    passed.max(0) as f32 * 64e-6
}

fn pack(value: f32, ticks: u32) -> u64 {
    u64::from(value.to_bits()) << 32 | u64::from(ticks)
}

fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

/// What is left of a value after the time since it was written.
fn keep(at: u32, now: Instant, tau_s: f32) -> f32 {
    (-seconds_between(at, ticks(now)) / tau_s).exp()
}

/// Replaces the word by what `next` makes of the value in it (none: nothing yet) and how much of it is left by now.
fn update(word: &AtomicU64, now: Instant, tau_s: f32, next: impl Fn(Option<(f32, f32)>) -> f32) {
    // The closure always returns Some, so the update always happens.
    let _ = word.fetch_update(Relaxed, Relaxed, |word| {
        let value = match word {
            0 => next(None),
            _ => {
                let (value, at) = unpack(word);
                next(Some((value, keep(at, now, tau_s))))
            }
        };
        Some(if value > 0.0 { pack(value, ticks(now)) } else { 0 })
    });
}

impl Load {
    /// An answer came after `latency`, or none did.
    pub fn observe(&self, now: Instant, latency: Duration, outcome: Outcome) {
        let us = |duration: Duration| (duration.as_secs_f32() * 1e6).max(1.0);
        let sample = match outcome {
            Outcome::Good => us(latency),
            Outcome::Unwelcome(penalty) => us(latency.max(penalty.min(MAX_PENALTY))),
        };
        update(&self.cost, now, TAU_S, |known| match known {
            Some((cost, keep)) if sample <= cost => (cost * keep + sample * (1.0 - keep)).max(1.0),
            _ => sample,
        });
        if outcome != Outcome::Good {
            self.note_failure(now, 1.0);
        } else {
            if self.failing.load(Relaxed) != 0 {
                self.note_failure(now, 0.0);
            }
            if self.wants_mean.load(Relaxed) {
                update(&self.mean, now, MEAN_TAU_S, |known| match known {
                    Some((mean, keep)) => (mean + (sample - mean) * (1.0 - keep).max(MEAN_STEP)).max(1.0),
                    None => sample,
                });
            }
        }
    }

    fn note_failure(&self, now: Instant, sample: f32) {
        update(&self.failing, now, TAU_S, |known| {
            let (share, keep) = known.unwrap_or((0.0, 0.0));
            let step = (1.0 - keep).clamp(FAILURE_STEP.0, FAILURE_STEP.1);
            let share = share + (sample - share) * step;
            if share < NO_FAILURES { 0.0 } else { share }
        });
    }

    /// The decayed latency in microseconds, if anything was observed.
    pub fn latency_us(&self, now: Instant) -> Option<f32> {
        match self.cost.load(Relaxed) {
            0 => None,
            word => {
                let (cost, at) = unpack(word);
                Some(cost * keep(at, now, TAU_S))
            }
        }
    }

    /// The mean latency of good answers in microseconds, if it is kept and there was one. Forgotten while nothing is
    /// heard, or one that was slow once would never be asked again.
    pub(super) fn mean_us(&self, now: Instant) -> Option<f32> {
        match self.mean.load(Relaxed) {
            0 => None,
            word => {
                let (mean, at) = unpack(word);
                Some(mean * keep(at, now, MEAN_TAU_S))
            }
        }
    }

    /// The share of recent answers that were welcome, 0 to 1; it recovers with time, too.
    pub fn success(&self, now: Instant) -> f32 {
        match self.failing.load(Relaxed) {
            0 => 1.0,
            word => {
                let (share, at) = unpack(word);
                1.0 - share * keep(at, now, TAU_S)
            }
        }
    }

    /// From now on the mean latency is kept too.
    pub(super) fn want_mean(&self) {
        if !self.wants_mean.load(Relaxed) {
            self.wants_mean.store(true, Relaxed);
        }
    }

    /// Forgets latency and failures: the instance gets a fair start (again).
    fn forget(&self) {
        for word in [&self.cost, &self.mean, &self.failing] {
            word.store(0, Relaxed);
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }
}

/// Everything kept of one instance as long as it is a candidate; `T` is what the carrier adds (its connections).
#[derive(Debug)]
pub struct Seat<T> {
    /// Latency and requests in flight.
    pub load: Load,
    /// Its breaker.
    pub breaker: Arc<Breaker>,
    /// The carrier's own.
    pub extra: T,
    /// When it began, in microseconds; zero for one that was there before.
    began: AtomicU64,
}

impl<T: Default> Seat<T> {
    /// A seat nothing is known of; `began`, if its instance is new among others.
    pub(super) fn new(breaker: Breaker, began: Option<Instant>) -> Self {
        let breaker = Arc::new(breaker);
        let began = AtomicU64::new(began.map_or(0, |began| began.0.max(1)));
        Self { load: Load::default(), breaker, extra: T::default(), began }
    }
}

impl<T> Seat<T> {
    /// The instance works again: what was held against it is forgotten, and it starts slowly if that is wished.
    pub fn begin_again(&self, now: Instant) {
        self.load.forget();
        self.began.store(now.0.max(1), Relaxed);
    }

    /// How much of its weight it gets now: less than 1 while it starts, or fails.
    pub(super) fn factor(&self, now: Instant, pace: &Pace) -> f32 {
        let mut factor = 1.0;
        if pace.slow_start_s > 0.0 {
            let began = self.began.load(Relaxed);
            if began != 0 {
                let age_s = now.since(Instant(began)).as_secs_f32();
                factor = (age_s / pace.slow_start_s).clamp(pace.start, 1.0);
            }
        }
        if pace.healthy_min < 1.0 && self.load.failing.load(Relaxed) != 0 {
            factor *= self.load.success(now).max(pace.healthy_min);
        }
        factor
    }
}

/// How weights are changed by age and failures.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// How long a slow start takes; zero for none.
    pub(super) slow_start_s: f32,
    /// What it begins with.
    pub(super) start: f32,
    /// What is left to one that only fails.
    pub(super) healthy_min: f32,
}

/// A request in flight at an instance; dropped when its answer has been carried to the end.
#[derive(Debug)]
pub struct InFlight<T>(Arc<Seat<T>>);

impl<T> InFlight<T> {
    /// Counts one more until dropped.
    pub fn begin(seat: &Arc<Seat<T>>) -> Self {
        seat.load.in_flight.fetch_add(1, Relaxed);
        Self(seat.clone())
    }

    /// The seat it is counted at.
    pub fn seat(&self) -> &Arc<Seat<T>> {
        &self.0
    }
}

impl<T> Drop for InFlight<T> {
    fn drop(&mut self) {
        self.0.load.in_flight.fetch_sub(1, Relaxed);
    }
}
