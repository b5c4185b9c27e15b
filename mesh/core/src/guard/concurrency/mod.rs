//! A limit of concurrency that finds by itself how many calls the callee can do at once.
//!
//! A callee that has more calls than it can work on makes them wait; more of them at once then change nothing but the
//! wait. So the limit follows the time calls take, once a window (`window_ms`, and at least `window_calls` calls):
//!
//! | `law` | The new limit | From |
//! |---|---|---|
//! | `queueing` | `wait = mean - shortest`; up to the target: `limit + sqrt(limit) / 2`; above it: `limit * max(1 - 0.4 * (wait - target) / wait, 0.6)` | the signal of DAGOR, Breakwater and CoDel: queueing time, not latency |
//! | `gradient` | `limit * clamp((1 + tolerance) * shortest / median, 0.5, 2) + sqrt(limit)` | Envoy |
//! | `gradient2` | `limit * clamp((1 + tolerance) * usual / mean, 0.5, 1) + 4`, a fifth of the way there; `usual` follows the mean over 600 windows | Netflix |
//!
//! The published evidence is for queueing time; the gradients are there for those who know them. A limit that was not
//! used (fewer than half of it at once) does not grow.
//!
//! The shortest time must be measured: under steady overload every call waits, and what is shortest of those is no
//! measure. Every `measure_every_ms` (jittered), or when the limit has been lowest for five windows, the limit goes to
//! its lowest until `measure_calls` calls have ended; what they took is the shortest time from then on. When
//! for a window no more calls were out than the lowest limit anyway, that window is the measurement.
//!
//! A call takes as long as until its answer begins, and holds its place until that has ended.
//!
//! What failed more quickly than is usual is left out (a quick error must not look like a quick callee); what failed
//! slowly, time-outs above all, counts.

mod sample;
mod settings;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

use super::bulkhead::{Admission, Pass, Turnstile, TurnstileSnapshot};
use super::refusal::{Guard, Outcome, Refusal};
use crate::time::Instant;
use sample::{Drawn, Sample};
pub use settings::{ConcurrencySettings, Law};

/// How many windows with the lowest limit make the shortest time doubtful (Envoy).
const DOUBTFUL_AFTER: u32 = 5;
/// Gradient2's constants (Netflix): how much more than the gradient, how far at once, over how many windows.
const GRADIENT2_QUEUE: f64 = 4.0;
const GRADIENT2_STEP: f64 = 0.2;
const GRADIENT2_WINDOWS: f64 = 600.0;
/// Of those, so many are a plain mean (Netflix's warm-up).
const GRADIENT2_FIRST: f64 = 10.0;

/// The limit of what one service, or one instance, is asked at once.
#[derive(Debug)]
pub struct Concurrency {
    settings: ConcurrencySettings,
    turnstile: Arc<Turnstile>,
    sample: Sample,
    /// When the next conclusion is due. Whoever moves it on draws it.
    due_us: AtomicU64,
    /// The limit, unrounded, as it is when nothing is being measured; `f64` bits. This and what follows are written
    /// only by who draws conclusions.
    limit: AtomicU64,
    /// The shortest time (`gradient2`: the usual time) in microseconds, `f64` bits; 0: not known.
    base_us: AtomicU64,
    /// The mean of the last window, `f64` bits.
    recent_us: AtomicU64,
    windows: AtomicU32,
    lowest_for: AtomicU32,
    /// When it is measured next; 0: it is being measured.
    measure_at_us: AtomicU64,
}

/// What a limit lets through: at once, or after a wait.
#[derive(Debug)]
pub enum ConcurrencyAdmission {
    /// Go.
    Permit(ConcurrencyPermit),
    /// Wait for a place, then call [`Concurrency::begin`].
    Wait(super::bulkhead::Waiting),
}

/// A call. Ends by [`ConcurrencyPermit::end`], or by being dropped (cancelled: says nothing).
#[derive(Debug)]
#[must_use = "dropping a permit at once counts the call as cancelled"]
pub struct ConcurrencyPermit {
    concurrency: Arc<Concurrency>,
    pass: Pass,
    began: Instant,
    is_answered: bool,
}

/// All that can be shown of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ConcurrencySnapshot {
    /// The places.
    #[serde(flatten)]
    pub places: TurnstileSnapshot,
    /// The shortest time known, or the usual one, in microseconds.
    pub base_us: f64,
    /// The mean time of the last window, in microseconds.
    pub recent_us: f64,
    /// Whether the shortest time is being measured: the limit is the lowest meanwhile.
    pub measuring: bool,
}

fn read(value: &AtomicU64) -> f64 {
    f64::from_bits(value.load(Relaxed))
}

fn write(value: &AtomicU64, to: f64) {
    value.store(to.to_bits(), Relaxed);
}

impl Concurrency {
    /// A limit that has seen nothing.
    pub fn new(settings: &ConcurrencySettings) -> Self {
        let measures = settings.law != Law::Gradient2;
        let first = if measures { settings.min } else { settings.initial };
        Self {
            settings: *settings,
            turnstile: Arc::new(Turnstile::new(Guard::Concurrency, first, settings.queue)),
            sample: Sample::default(),
            due_us: AtomicU64::new(0),
            limit: AtomicU64::new(f64::from(settings.initial).to_bits()),
            base_us: AtomicU64::new(0),
            recent_us: AtomicU64::new(0),
            windows: AtomicU32::new(0),
            lowest_for: AtomicU32::new(0),
            measure_at_us: AtomicU64::new(if measures { 0 } else { u64::MAX }),
        }
    }

    /// Admits a call, lets it wait, or refuses it.
    ///
    /// # Errors
    /// A refusal: as many are out as the callee can do. They will be fewer after about one call's time.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<ConcurrencyAdmission, Refusal> {
        match self.turnstile.enter(now) {
            Ok(Admission::Pass(pass)) => Ok(ConcurrencyAdmission::Permit(self.begin(pass, now))),
            Ok(Admission::Wait(waiting)) => Ok(ConcurrencyAdmission::Wait(waiting)),
            Err(refusal) => {
                let recent_us = read(&self.recent_us);
                let retry_after = (recent_us > 0.0).then(|| Duration::from_micros(recent_us as u64));
                Err(Refusal { retry_after, ..refusal })
            }
        }
    }

    /// A call that has waited for its place begins: the wait here is not the callee's.
    pub fn begin(self: &Arc<Self>, pass: Pass, now: Instant) -> ConcurrencyPermit {
        ConcurrencyPermit { concurrency: self.clone(), pass, began: now, is_answered: false }
    }

    /// How long a call may wait for a place.
    pub fn max_wait(&self) -> Duration {
        Duration::from_millis(self.settings.queue.max_wait_ms)
    }

    /// What it is doing; takes nothing.
    pub fn snapshot(&self) -> ConcurrencySnapshot {
        ConcurrencySnapshot {
            places: self.turnstile.snapshot(),
            base_us: read(&self.base_us),
            recent_us: read(&self.recent_us),
            measuring: self.measure_at_us.load(Relaxed) == 0,
        }
    }

    /// Draws a conclusion, if it is time for one.
    fn conclude(&self, now: Instant, random: u64) {
        let is_measuring = self.measure_at_us.load(Relaxed) == 0;
        let needed = if is_measuring { self.settings.measure_calls } else { self.settings.window_calls };
        let due = self.due_us.load(Acquire);
        // The time first: that is read without a look at what others are writing.
        if (now.0 < due && !is_measuring) || self.sample.count() < needed {
            return;
        }
        let next = now.0 + self.settings.window_ms * 1_000;
        if self.due_us.compare_exchange(due, next.max(due + 1), AcqRel, Acquire).is_err() {
            return;
        }
        let drawn = self.sample.draw();
        if drawn.count == 0 {
            return; // another has just emptied it
        }
        write(&self.recent_us, drawn.mean_us);
        if is_measuring {
            self.measured(drawn, now, random);
            self.turnstile.set_limit(self.rounded());
            return;
        }
        let limit = self.changed(drawn).clamp(f64::from(self.settings.min), f64::from(self.settings.max));
        write(&self.limit, limit);
        self.turnstile.set_limit(self.rounded());
        if self.settings.law != Law::Gradient2 {
            self.consider_measuring(drawn, now, random);
        }
    }

    fn rounded(&self) -> u32 {
        (read(&self.limit) as u32).clamp(self.settings.min, self.settings.max)
    }

    /// The limit a window's calls suggest.
    fn changed(&self, drawn: Drawn) -> f64 {
        let limit = read(&self.limit);
        let tolerance = 1.0 + f64::from(self.settings.tolerance_percent) / 100.0;
        let base_us = read(&self.base_us);
        let changed = match self.settings.law {
            Law::Queueing => {
                let wait_us = (drawn.mean_us - base_us).max(0.0);
                let target_us = self.settings.target_ms as f64 * 1_000.0;
                if wait_us <= target_us {
                    limit + limit.sqrt() / 2.0
                } else {
                    limit * (1.0 - 0.4 * (wait_us - target_us) / wait_us).max(0.6)
                }
            }
            Law::Gradient => limit * (tolerance * base_us / drawn.median_us.max(1.0)).clamp(0.5, 2.0) + limit.sqrt(),
            Law::Gradient2 => {
                let usual_us = self.usual(drawn.mean_us);
                let gradient = (tolerance * usual_us / drawn.mean_us.max(1.0)).clamp(0.5, 1.0);
                let wanted = limit * gradient + GRADIENT2_QUEUE;
                limit + (wanted - limit) * GRADIENT2_STEP
            }
        };
        let is_used = f64::from(drawn.most) >= limit / 2.0;
        if is_used { changed } else { changed.min(limit) }
    }

    /// Follows the usual time.
    fn usual(&self, mean_us: f64) -> f64 {
        let windows = f64::from(self.windows.fetch_add(1, Relaxed));
        let usual_us = read(&self.base_us);
        let mut usual_us = if windows < GRADIENT2_FIRST {
            (usual_us * windows + mean_us) / (windows + 1.0)
        } else {
            usual_us + (mean_us - usual_us) * 2.0 / (GRADIENT2_WINDOWS + 1.0)
        };
        // After an overload, the usual comes down more quickly than it went up.
        if usual_us / mean_us.max(1.0) > 2.0 {
            usual_us *= 0.95;
        }
        write(&self.base_us, usual_us);
        usual_us
    }

    fn consider_measuring(&self, drawn: Drawn, now: Instant, random: u64) {
        if drawn.most <= self.settings.min && drawn.count >= self.settings.measure_calls {
            return self.measured(drawn, now, random); // in passing
        }
        let is_lowest = read(&self.limit) <= f64::from(self.settings.min);
        let lowest_for = if is_lowest { self.lowest_for.load(Relaxed) + 1 } else { 0 };
        self.lowest_for.store(lowest_for, Relaxed);
        if now.0 >= self.measure_at_us.load(Relaxed) || lowest_for >= DOUBTFUL_AFTER {
            self.lowest_for.store(0, Relaxed);
            self.measure_at_us.store(0, Relaxed);
            self.turnstile.set_limit(self.settings.min);
        }
    }

    fn measured(&self, drawn: Drawn, now: Instant, random: u64) {
        let shortest_us = if self.settings.law == Law::Queueing { drawn.mean_us } else { drawn.median_us };
        write(&self.base_us, shortest_us.max(1.0));
        let every_us = self.settings.measure_every_ms * 1_000;
        let jitter_us = random % (every_us * u64::from(self.settings.measure_jitter_percent) / 100 + 1);
        self.measure_at_us.store((now.0 + every_us + jitter_us).max(1), Relaxed);
    }
}

impl ConcurrencyPermit {
    /// The answer has begun, or will not come: the call took as long as it took the callee until now. How long the rest
    /// takes is the matter of whoever reads it; the place is held until the end all the same. Only the first time counts.
    /// `random` is for the next measurement's jitter.
    pub fn answered(&mut self, outcome: Outcome, now: Instant, random: u64) {
        if std::mem::replace(&mut self.is_answered, true) {
            return;
        }
        let concurrency = &self.concurrency;
        let took = now.since(self.began);
        let is_quick = (took.as_micros() as f64) < read(&concurrency.recent_us);
        let says_something = match outcome {
            Outcome::Success => true,
            Outcome::Failure => !is_quick,
            Outcome::Ignored => false,
        };
        if says_something {
            concurrency.sample.add(took, concurrency.turnstile.in_flight());
            concurrency.conclude(now, random);
        }
    }

    /// The call ended, and with it its answer, if that had not begun before.
    pub fn end(mut self, outcome: Outcome, now: Instant, random: u64) {
        self.answered(outcome, now, random);
        self.pass.end(now);
    }
}

#[cfg(test)]
mod tests;
