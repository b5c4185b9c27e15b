//! A circuit breaker for what many instances answer together: a service, a route, a method.
//!
//! It counts four kinds of results (good and failed, each quick or slow, as resilience4j does) over the last calls or
//! the last time, and opens when a share, a number or a row of them passes its threshold. (The breaker of one
//! *instance* is [`super::Breaker`]: it looks for someone better, this one spares everybody.)
//!
//! ```text
//! closed --a threshold is reached--> open until T
//! open, T reached --next caller--> half-open until T': at most n calls on trial
//! half-open --all n ended: judged--> closed, or open for longer · --T' reached--> judged by what came, or tried again
//! ```
//!
//! It cannot stick. What it does is one word, the *gate*, that holds the state, when it ends and, half-open, how many
//! of the trial's permits are out and what has become of the others; so every change is one compare-and-swap, and every
//! state but "closed" ends at a time that stands in it. A permit that is dropped (cancelled, ignored) makes room for
//! another, one that is lost is waited for until T' and no longer. The result of a call that was let through in an
//! earlier state counts for nothing.
//!
//! A trial is decided as soon as it is certain: when so many have failed that the others cannot make up for it.

mod methods;
mod settings;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

use super::refusal::{Guard, Outcome, Refusal};
use super::ring::{Counts, Ring};
use crate::time::Instant;
pub use methods::{Circuits, CircuitsSnapshot};
pub use settings::{
    Came, CircuitPer, CircuitSettings, FailureSettings, Failures, HalfOpenThen, Mode, SwitchSettings, WindowKind,
};

/// The breaker of a service, route or method.
#[derive(Debug)]
pub struct Circuit {
    settings: CircuitSettings,
    gate: AtomicU64,
    /// `until << 3 | mode`; until 0 is for ever.
    mode: AtomicU64,
    ring: Ring,
    consecutive: AtomicU32,
    /// How often in a row it opened; the exponent of the wait.
    streak: AtomicU32,
    /// When it closed last.
    closed_us: AtomicU64,
    opened: AtomicU64,
    refused: AtomicU64,
    rehearsed: AtomicU64,
}

/// What a circuit does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Lets everything through.
    Closed,
    /// Refuses everything.
    Open,
    /// Lets some calls through on trial.
    HalfOpen,
}

/// All that can be shown of a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CircuitSnapshot {
    /// What it does, if its mode lets it.
    pub state: CircuitState,
    /// How it is driven.
    pub mode: Mode,
    /// Milliseconds until its state ends, when it is not closed.
    pub ends_in_ms: Option<u64>,
    /// Milliseconds until its mode ends, when it has an end.
    pub mode_ends_in_ms: Option<u64>,
    /// Calls in the window.
    pub calls: u64,
    /// Failures among them, in percent.
    pub failure_percent: f64,
    /// Slow ones among them, in percent.
    pub slow_percent: f64,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// How often it has opened.
    pub opened: u64,
    /// Calls it refused.
    pub refused: u64,
    /// Calls it would have refused, had it not been for its mode.
    pub rehearsed: u64,
}

/// The right to make one call. Ends by [`CircuitPermit::end`], or by being dropped (cancelled: says nothing).
#[derive(Debug)]
#[must_use = "dropping a permit at once counts the call as cancelled"]
pub struct CircuitPermit {
    circuit: Arc<Circuit>,
    began: Instant,
    /// How long it took until its answer began, where the end is told later.
    took: Option<Duration>,
    from: From,
}

/// The state a permit was given in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// Closed, when it had opened so often.
    Closed(u64),
    /// The trial that ends then.
    Trial(u64),
    /// None that its result could count in.
    Nowhere,
}

/// The gate, unpacked: 2 bits of state, 42 of milliseconds, and 4 counts of 5 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Closed,
    Open { until_ms: u64 },
    Trial(Trial),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trial {
    until_ms: u64,
    /// Permits given out, ended ones included, dropped ones not.
    given: u64,
    ended: u64,
    failed: u64,
    slow: u64,
}

const MS_MASK: u64 = (1 << 42) - 1;
const COUNT_MASK: u64 = 31;

impl Gate {
    fn read(word: u64) -> Self {
        let until_ms = word >> 22 & MS_MASK;
        match word & 3 {
            0 => Gate::Closed,
            1 => Gate::Open { until_ms },
            _ => {
                let count = |place: u32| word >> (2 + 5 * place) & COUNT_MASK;
                Gate::Trial(Trial { until_ms, given: count(0), ended: count(1), failed: count(2), slow: count(3) })
            }
        }
    }

    fn write(self) -> u64 {
        match self {
            Gate::Closed => 0,
            Gate::Open { until_ms } => (until_ms & MS_MASK) << 22 | 1,
            Gate::Trial(Trial { until_ms, given, ended, failed, slow }) => {
                (until_ms & MS_MASK) << 22 | slow << 17 | failed << 12 | ended << 7 | given << 2 | 2
            }
        }
    }
}

fn millis(now: Instant) -> u64 {
    now.0 / 1_000
}

fn reached(count: u64, of: u64, percent: u32) -> bool {
    percent > 0 && count * 100 >= of * u64::from(percent)
}

impl Circuit {
    /// A closed circuit.
    pub fn new(settings: &CircuitSettings) -> Self {
        Self {
            settings: *settings,
            gate: AtomicU64::new(0),
            mode: AtomicU64::new(0),
            ring: settings.ring(),
            consecutive: AtomicU32::new(0),
            streak: AtomicU32::new(0),
            closed_us: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            rehearsed: AtomicU64::new(0),
        }
    }

    /// Drives it by hand, until then or for ever.
    pub fn switch(&self, mode: Mode, until: Option<Instant>) {
        let number = Mode::ALL.iter().position(|known| *known == mode).unwrap_or_default() as u64;
        // A time of 0 would be "for ever".
        let until = until.map_or(0, |until| until.0.max(1));
        self.mode.store(until << 3 | number, Relaxed);
    }

    /// Drives it as another one is driven.
    fn drive_as(&self, other: &Circuit) {
        self.mode.store(other.mode.load(Relaxed), Relaxed);
    }

    /// How it is driven now.
    pub fn mode(&self, now: Instant) -> Mode {
        let word = self.mode.load(Relaxed);
        let until = word >> 3;
        if until != 0 && until <= now.0 {
            return Mode::Auto;
        }
        Mode::ALL.get((word & 7) as usize).copied().unwrap_or_default()
    }

    /// Admits a call or refuses it. `random` jitters what may follow at once (a trial that ended without a verdict and
    /// is to open the circuit again).
    ///
    /// # Errors
    /// A refusal that says when the circuit will try again.
    pub fn admit(self: &Arc<Self>, now: Instant, random: u64) -> Result<CircuitPermit, Refusal> {
        let permit = |from| CircuitPermit { circuit: self.clone(), began: now, took: None, from };
        match self.mode(now) {
            Mode::Auto => match self.pass(now, random) {
                Ok(from) => Ok(permit(from)),
                Err(wait) => {
                    self.refused.fetch_add(1, Relaxed);
                    Err(Refusal::until(Guard::Breaker, "open", wait))
                }
            },
            Mode::ForceOpen => {
                self.refused.fetch_add(1, Relaxed);
                let until = Instant(self.mode.load(Relaxed) >> 3);
                let left = (until.0 != 0).then(|| until.since(now));
                Err(Refusal { guard: Guard::Breaker, reason: "forced open", retry_after: left })
            }
            Mode::Disabled => Ok(permit(From::Nowhere)),
            Mode::ForceClosed => Ok(permit(From::Closed(self.opened.load(Relaxed)))),
            Mode::MetricsOnly => Ok(permit(self.pass(now, random).unwrap_or_else(|_| {
                self.rehearsed.fetch_add(1, Relaxed);
                From::Nowhere
            }))),
        }
    }

    /// What it is doing; takes nothing.
    pub fn snapshot(&self, now: Instant) -> CircuitSnapshot {
        let gate = Gate::read(self.gate.load(Acquire));
        let (state, until_ms) = match gate {
            Gate::Closed => (CircuitState::Closed, None),
            Gate::Open { until_ms } => (CircuitState::Open, Some(until_ms)),
            Gate::Trial(trial) => (CircuitState::HalfOpen, Some(trial.until_ms)),
        };
        let counts = self.ring.sum(now);
        let mode = self.mode(now);
        let mode_until = Instant(self.mode.load(Relaxed) >> 3);
        CircuitSnapshot {
            state,
            mode,
            ends_in_ms: until_ms.map(|until| until.saturating_sub(millis(now))),
            mode_ends_in_ms: (mode != Mode::Auto && mode_until.0 != 0)
                .then(|| mode_until.since(now).as_millis() as u64),
            calls: counts.calls,
            failure_percent: counts.failure_percent(),
            slow_percent: counts.slow_percent(),
            consecutive_failures: self.consecutive.load(Relaxed),
            opened: self.opened.load(Relaxed),
            refused: self.refused.load(Relaxed),
            rehearsed: self.rehearsed.load(Relaxed),
        }
    }

    /// In which state a call passes, or for how long none will.
    fn pass(&self, now: Instant, random: u64) -> Result<From, Duration> {
        loop {
            let word = self.gate.load(Acquire);
            let now_ms = millis(now);
            match Gate::read(word) {
                Gate::Closed => return Ok(From::Closed(self.opened.load(Relaxed))),
                Gate::Open { until_ms } if now_ms < until_ms => return Err(Instant(until_ms * 1_000).since(now)),
                Gate::Open { until_ms } => {
                    let trial = self.trial_after(until_ms, now_ms);
                    if self.swap(word, Gate::Trial(trial)) {
                        return Ok(From::Trial(trial.until_ms));
                    }
                }
                Gate::Trial(trial) if now_ms >= trial.until_ms => {
                    if let Some(from) = self.end_trial(word, trial, now, random) {
                        return Ok(from);
                    }
                }
                Gate::Trial(trial) if trial.given < u64::from(self.settings.half_open_calls) => {
                    if self.swap(word, Gate::Trial(Trial { given: trial.given + 1, ..trial })) {
                        return Ok(From::Trial(trial.until_ms));
                    }
                }
                Gate::Trial(trial) => return Err(Instant(trial.until_ms * 1_000).since(now)),
            }
        }
    }

    /// A trial with its first permit given out. Its end is its name, so no two may end at the same time.
    fn trial_after(&self, before_ms: u64, now_ms: u64) -> Trial {
        let until_ms = (now_ms + self.settings.half_open_ms).max(before_ms + 1);
        Trial { until_ms, given: 1, ended: 0, failed: 0, slow: 0 }
    }

    /// A trial took too long: another begins (with a permit for the caller, if it wins), or the gate changes.
    fn end_trial(&self, word: u64, trial: Trial, now: Instant, random: u64) -> Option<From> {
        let is_bad = reached(trial.failed, trial.ended, self.settings.failure_percent.max(1))
            || reached(trial.slow, trial.ended, self.settings.slow_percent);
        match self.settings.half_open_then {
            HalfOpenThen::Judge if trial.ended == 0 => {
                let next = self.trial_after(trial.until_ms, millis(now));
                return self.swap(word, Gate::Trial(next)).then_some(From::Trial(next.until_ms));
            }
            HalfOpenThen::Judge if is_bad => self.open(word, now, random, None),
            HalfOpenThen::Open => self.open(word, now, random, None),
            HalfOpenThen::Judge | HalfOpenThen::Close => self.close(word, now),
        };
        None
    }

    fn swap(&self, word: u64, gate: Gate) -> bool {
        self.gate.compare_exchange(word, gate.write(), AcqRel, Acquire).is_ok()
    }

    fn close(&self, word: u64, now: Instant) -> bool {
        let closed = self.swap(word, Gate::Closed);
        if closed {
            self.closed_us.store(now.0, Relaxed);
        }
        closed
    }

    /// Opens, if the gate still is `word`: for as long as it was told to, or for longer each time.
    fn open(&self, word: u64, now: Instant, random: u64, told: Option<Duration>) -> bool {
        let max_ms = self.settings.max_open_ms;
        let closed_for = now.since(Instant(self.closed_us.load(Relaxed)));
        let was_healthy = word == 0 && closed_for >= Duration::from_millis(max_ms);
        let streak = if was_healthy { 0 } else { self.streak.load(Relaxed) };
        let grown_ms = self.settings.open_ms.saturating_mul(1 << streak.min(20)).min(max_ms);
        // Nodes that opened together should not try together.
        let grown_ms = grown_ms + random % (grown_ms / 4 + 1);
        let told_ms = told.map_or(0, |told| told.as_millis() as u64).min(self.settings.max_retry_after_ms);
        if !self.swap(word, Gate::Open { until_ms: millis(now) + if told_ms > 0 { told_ms } else { grown_ms } }) {
            return false;
        }
        self.streak.store(streak.saturating_add(1), Relaxed);
        self.opened.fetch_add(1, Relaxed);
        self.consecutive.store(0, Relaxed);
        self.ring.clear();
        true
    }

    /// Whether what is counted is reason to open.
    fn is_too_bad(&self, consecutive: u32, counts: Counts) -> bool {
        let settings = &self.settings;
        let at_least = |count: u64, threshold: u32| threshold > 0 && count >= u64::from(threshold);
        at_least(consecutive.into(), settings.consecutive_failures)
            || at_least(counts.failures, settings.failures)
            || (counts.calls >= settings.min_calls()
                && (reached(counts.failures, counts.calls, settings.failure_percent)
                    || reached(counts.slow, counts.calls, settings.slow_percent)))
    }

    /// Takes a result of a call that passed while it was closed.
    fn count(&self, now: Instant, failed: bool, slow: bool, random: u64, told: Option<Duration>) -> bool {
        self.ring.add(now, failed, slow);
        let consecutive = if failed {
            self.consecutive.fetch_add(1, Relaxed).saturating_add(1)
        } else {
            if self.consecutive.load(Relaxed) != 0 {
                self.consecutive.store(0, Relaxed);
            }
            0
        };
        if self.mode(now) == Mode::ForceClosed {
            return false;
        }
        let told = told.filter(|_| failed && self.settings.max_retry_after_ms > 0);
        (told.is_some() || self.is_too_bad(consecutive, self.ring.sum(now))) && self.open(0, now, random, told)
    }

    /// Takes a result of the trial that ends at `until_ms`, or (`None`) a permit of it back.
    fn try_out(&self, until_ms: u64, result: Option<(bool, bool)>, now: Instant, random: u64) -> bool {
        loop {
            let word = self.gate.load(Acquire);
            let Gate::Trial(trial) = Gate::read(word) else { return false };
            if trial.until_ms != until_ms {
                return false;
            }
            let Some((failed, slow)) = result else {
                let given = trial.given.saturating_sub(1);
                if self.swap(word, Gate::Trial(Trial { given, ..trial })) {
                    return false;
                }
                continue;
            };
            let trial = Trial {
                ended: trial.ended + 1,
                failed: trial.failed + u64::from(failed),
                slow: trial.slow + u64::from(slow),
                ..trial
            };
            let all = u64::from(self.settings.half_open_calls);
            // With no threshold for shares, a failure on trial is one too many all the same.
            let is_bad = reached(trial.failed, all, self.settings.failure_percent.max(1))
                || reached(trial.slow, all, self.settings.slow_percent);
            let (done, changed) = match (is_bad, trial.ended >= all) {
                (true, _) => (self.open(word, now, random, None), true),
                (false, true) => (self.close(word, now), true),
                (false, false) => (self.swap(word, Gate::Trial(trial)), false),
            };
            if done {
                return changed;
            }
        }
    }
}

impl CircuitPermit {
    /// Whether this call is on trial.
    pub fn is_trial(&self) -> bool {
        matches!(self.from, From::Trial(_))
    }

    /// The answer has begun, and how it went will be known at its end: it has taken so long, however long the rest takes.
    pub fn answered(&mut self, now: Instant) {
        self.took = Some(now.since(self.began));
    }

    /// The call ended; `told` is how long its answer said to stay away. Says whether that opened or closed the circuit.
    pub fn end(mut self, outcome: Outcome, told: Option<Duration>, now: Instant, random: u64) -> bool {
        if outcome == Outcome::Ignored {
            return false; // dropped
        }
        let circuit = self.circuit.clone();
        let failed = outcome == Outcome::Failure;
        let slow =
            self.took.unwrap_or_else(|| now.since(self.began)) > Duration::from_millis(circuit.settings.slow_call_ms);
        match std::mem::replace(&mut self.from, From::Nowhere) {
            From::Closed(opened) if opened == circuit.opened.load(Relaxed) => {
                circuit.count(now, failed, slow, random, told)
            }
            From::Trial(until_ms) => circuit.try_out(until_ms, Some((failed, slow)), now, random),
            From::Closed(_) | From::Nowhere => false,
        }
    }
}

impl Drop for CircuitPermit {
    fn drop(&mut self) {
        if let From::Trial(until_ms) = self.from {
            self.circuit.try_out(until_ms, None, Instant(0), 0);
        }
    }
}

#[cfg(test)]
mod tests;
