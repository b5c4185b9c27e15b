//! A circuit breaker per instance that cannot stick.
//!
//! Other breakers hang half-open for ever when the probe's result is ignored, lost or never comes. Here the whole state
//! is one word, the *gate*: zero is closed; anything else is a time until which the instance is refused and whether a
//! probe is out. So every state but "closed" ends by itself:
//!
//! ```text
//! closed --5 failures in a row, or half of >= 20 calls in 10 s--> open until T
//! open, T reached --next caller wins the word--> half-open until T' (the probe's longest wait)
//! half-open --probe good--> closed · --probe bad--> open, longer · --probe dropped--> open until now · --T' reached--> next probe
//! ```
//!
//! A probe is a caller's real request. Its [`Permit`] carries the word it wrote; if the word has changed since, the
//! probe was given up and its result counts for nothing.
//!
//! *Desperate* callers (nothing else is usable) may probe a second after the last failure, long before T: when a
//! whole service was down for a while, its return is noticed in a second, not after the longest wait.
//!
//! Whether there is somebody better is for the balancer to know, so a breaker does not insist: an instance whose last
//! failure was an *answer* is there, and a caller with no other choice may be let past ([`Breaker::admit_anyway`]).
//! Such a call is no probe; its failure moves [`Breaker::last_failed`], and only a probe closes the breaker.
//!
//! *Checks* ask an instance that is out how it is, beside the callers' requests and cheaply: what it declares as its health
//! check, or whether it can be connected to. Only a probe closes a breaker, but a check says when one is worth a caller's
//! request:
//!
//! - *early*: a good word makes a probe due at once, if it is news, that is the first since the breaker opened, or after
//!   a bad one. One that fails its callers while its health check is content is so tried early once, and after that as if
//!   there were no checks: else its wait would never grow.
//! - *late*: a bad word puts the probe off until after the next check, but no longer than `max_open_ms` since it
//!   opened: a check may be wrong, and no state is for ever.
//!
//! Checks that say the same again and again grow rare, and none is made of an instance that is in, or whose probe only
//! waits for a caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ejections::Ejections;
use super::refusal::{Invalid, all_within};
use super::window::Window;
use crate::time::Instant;

/// How soon after a failure desperate callers may probe again: often enough to notice a recovery at once, seldom
/// enough to be no load.
const DESPERATE_AFTER: Duration = Duration::from_secs(1);
/// How many times in a row the wait between checks that say the same doubles: a thousand nodes that watch one dead instance
/// shall not ask it a thousand times a second for long.
const MAX_CHECK_DOUBLINGS: u32 = 4;

/// When a breaker opens and for how long. Durations are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerSettings {
    /// Failures in a row that open it. At least 1; default 5 (Envoy, Finagle).
    pub consecutive_failures: u32,
    /// Share of failures within 10 s that opens it, in percent. 1 to 100; default 50 (Hystrix).
    pub failure_percent: u32,
    /// Calls within 10 s below which the share is not looked at. At least 1; default 20 (Hystrix).
    pub min_calls: u32,
    /// How long it is open the first time. 100 to 600,000; default 5,000.
    pub open_ms: u64,
    /// How long it is open at most; doubles up to it with every failed probe. `open_ms` to 3,600,000; default 60,000.
    pub max_open_ms: u64,
    /// How long a probe may take before another may go. 100 to 600,000; default 10,000.
    pub probe_wait_ms: u64,
    /// The most of a service's instances that are out at once, in percent, rounded up: of few, one at least. 0 (none ever)
    /// to 100; default 50. Envoy's default is 10, for clusters of hundreds: of three instances two of which fail, that
    /// would leave one of the two in. With more than half out Envoy uses those that are out all the same (its panic
    /// threshold is 50), so half is what its defaults come to.
    pub max_ejected_percent: u32,
    /// Whether an instance that gives no answer at all is kept in too when so many are out. Default false: it carries
    /// nothing the others would have to take over.
    pub spare_silent: bool,
    /// How often an instance that is out is asked how it is: by its own health check (`http`, else a connection), from its
    /// node. Doubles up to sixteen times that while it says the same. 100 to 600,000, or 0 for never; default 1,000.
    pub check_every_ms: u64,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            failure_percent: 50,
            min_calls: 20,
            open_ms: 5_000,
            max_open_ms: 60_000,
            probe_wait_ms: 10_000,
            max_ejected_percent: 50,
            spare_silent: false,
            check_every_ms: 1_000,
        }
    }
}

impl BreakerSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        all_within([
            ("consecutive_failures", self.consecutive_failures.into(), 1..=u32::MAX.into()),
            ("failure_percent", self.failure_percent.into(), 1..=100),
            ("min_calls", self.min_calls.into(), 1..=u32::MAX.into()),
            ("open_ms", self.open_ms, 100..=600_000),
            ("max_open_ms", self.max_open_ms, self.open_ms..=3_600_000),
            ("probe_wait_ms", self.probe_wait_ms, 100..=600_000),
            ("max_ejected_percent", self.max_ejected_percent.into(), 0..=100),
            // Zero is never; all else is a time.
            ("check_every_ms", self.check_every_ms, if self.check_every_ms == 0 { 0..=0 } else { 100..=600_000 }),
        ])
    }
}

/// How a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The instance answered, with an error.
    Answer,
    /// No answer came: no connection, a broken one, or none in time.
    Silence,
}

/// What a breaker does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Lets everything through.
    Closed,
    /// Refuses until then; from then on a probe is due.
    Open(Instant),
    /// One probe is out; another may go then.
    HalfOpen(Instant),
}

/// The breaker of one instance.
#[derive(Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    /// 0, or `(microseconds << 1) | probe is out`.
    gate: AtomicU64,
    /// 0, or `(microseconds << 1) | there was no answer`, of the last failure.
    last_failed: AtomicU64,
    consecutive: AtomicU32,
    /// How many answers in a row broke off in their bodies.
    broken_off: AtomicU32,
    window: Window,
    /// How often in a row it opened; the exponent of the wait.
    streak: AtomicU32,
    last_opened_us: AtomicU64,
    last_closed_us: AtomicU64,
    opened: AtomicU64,
    places: Arc<Ejections>,
    /// What the last check since it opened has said: [`Word`] as a number.
    word: AtomicU8,
    /// How many checks have said the same in a row after the first.
    repeated: AtomicU32,
    next_check_us: AtomicU64,
}

/// What checks have said of an instance that is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Word {
    /// Nothing yet.
    None = 0,
    /// It is well.
    Well = 1,
    /// It is not.
    Ill = 2,
}

/// The right to make one call. Ends by [`Permit::succeed`], [`Permit::fail`], or by being dropped (cancelled: the call
/// says nothing about the instance).
#[derive(Debug)]
#[must_use = "dropping a permit at once counts the call as cancelled"]
pub struct Permit {
    breaker: Arc<Breaker>,
    /// The gate this probe wrote; `None` for a call that is no probe.
    probe: Option<u64>,
}

impl Breaker {
    /// A closed breaker of an instance that is alone.
    pub fn new(settings: BreakerSettings) -> Self {
        Self::among(settings, Arc::new(Ejections::new(&settings)))
    }

    /// A closed breaker of one of several instances that share these places.
    pub fn among(settings: BreakerSettings, places: Arc<Ejections>) -> Self {
        Self {
            settings,
            places,
            word: AtomicU8::new(Word::None as u8),
            repeated: AtomicU32::new(0),
            next_check_us: AtomicU64::new(0),
            gate: AtomicU64::new(0),
            last_failed: AtomicU64::new(0),
            consecutive: AtomicU32::new(0),
            broken_off: AtomicU32::new(0),
            window: Window::default(),
            streak: AtomicU32::new(0),
            last_opened_us: AtomicU64::new(0),
            last_closed_us: AtomicU64::new(0),
            opened: AtomicU64::new(0),
        }
    }

    /// What it was made of.
    pub fn settings(&self) -> &BreakerSettings {
        &self.settings
    }

    /// What it does now.
    pub fn state(&self) -> BreakerState {
        match self.gate.load(Acquire) {
            0 => BreakerState::Closed,
            gate if gate & 1 == 1 => BreakerState::HalfOpen(Instant(gate >> 1)),
            gate => BreakerState::Open(Instant(gate >> 1)),
        }
    }

    /// How often it has opened.
    pub fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    /// Whether a call would be admitted now; takes nothing.
    pub fn admits(&self, now: Instant, desperate: bool) -> bool {
        let gate = self.gate.load(Acquire);
        gate == 0 || self.may_probe(gate, now, desperate)
    }

    /// Whether the next call would be a probe.
    pub fn is_probe_due(&self, now: Instant) -> bool {
        let gate = self.gate.load(Acquire);
        gate != 0 && self.may_probe(gate, now, false)
    }

    /// Admits a call, or refuses it. Of several callers that race for a probe, one wins.
    pub fn admit(self: &Arc<Self>, now: Instant, desperate: bool) -> Option<Permit> {
        let gate = self.gate.load(Acquire);
        if gate == 0 {
            return Some(Permit { breaker: self.clone(), probe: None });
        }
        if !self.may_probe(gate, now, desperate) {
            return None;
        }
        let probe = gate_until(now + Duration::from_millis(self.settings.probe_wait_ms)) | 1;
        self.gate.compare_exchange(gate, probe, AcqRel, Acquire).ok()?;
        Some(Permit { breaker: self.clone(), probe: Some(probe) })
    }

    /// Admits a call whatever the state, for callers with no other choice.
    pub fn admit_anyway(self: &Arc<Self>) -> Permit {
        Permit { breaker: self.clone(), probe: None }
    }

    /// An answer has come to its end.
    pub fn carried(&self) {
        if self.broken_off.load(Relaxed) != 0 {
            self.broken_off.store(0, Relaxed);
        }
    }

    /// An answer that had counted as good when it began has broken off. Counted apart from calls that fail at once, since
    /// the good beginnings in between would hide how many these are in a row. Says whether that opened the breaker.
    pub fn broke_off(&self, now: Instant, random: u64) -> bool {
        self.last_failed.store(now.0 << 1 | 1, Relaxed);
        let in_a_row = self.broken_off.fetch_add(1, Relaxed).saturating_add(1);
        if self.gate.load(Acquire) != 0 {
            return false;
        }
        self.window.add(now, 0, 1);
        self.is_too_bad(in_a_row, now) && self.open(0, Fault::Silence, now, random)
    }

    /// Whether its last failure, if any, was an answer: the instance is there.
    pub fn still_answers(&self) -> bool {
        self.last_failed.load(Relaxed) & 1 == 0
    }

    /// When a call failed last; the origin of time if none has.
    pub fn last_failed(&self) -> Instant {
        Instant(self.last_failed.load(Relaxed) >> 1)
    }

    /// When it is to be checked, if it is. Never while it is closed, while a probe is out (that knows better), and while it
    /// is known to be well and only a caller is awaited.
    pub fn next_check(&self, now: Instant) -> Option<Instant> {
        let gate = self.gate.load(Acquire);
        let is_open = gate != 0 && gate & 1 == 0;
        let awaits_caller = Instant(gate >> 1) <= now && self.word() == Word::Well;
        (is_open && !awaits_caller && self.settings.check_every_ms > 0)
            .then(|| Instant(self.next_check_us.load(Relaxed)))
    }

    /// A check begins, which will take no longer than that: until then no other is due.
    pub fn begin_check(&self, now: Instant, within: Duration) {
        let wait = within + Duration::from_millis(self.settings.check_every_ms);
        self.next_check_us.store((now + wait).0, Relaxed);
    }

    /// A check has ended. `None`: it said nothing, as when nobody could be asked. `random` keeps the checks of many nodes
    /// apart. Says whether a probe is due early for it.
    pub fn checked(&self, now: Instant, well: Option<bool>, random: u64) -> bool {
        let word = match well {
            None => self.word(),
            Some(true) => Word::Well,
            Some(false) => Word::Ill,
        };
        let before = self.word.swap(word as u8, Relaxed);
        let is_news = before != word as u8;
        let repeated = if is_news { 0 } else { self.repeated.load(Relaxed).saturating_add(1) };
        self.repeated.store(repeated, Relaxed);
        let wait_ms = self.settings.check_every_ms << repeated.min(MAX_CHECK_DOUBLINGS);
        let next = now + Duration::from_millis(wait_ms + random % (wait_ms / 4 + 1));
        self.next_check_us.store(next.0, Relaxed);
        let gate = self.gate.load(Acquire);
        if gate == 0 || gate & 1 == 1 {
            return false;
        }
        let until = match well {
            Some(true) if is_news => gate_until(Instant(1)),
            Some(false) => {
                let opened = Instant(self.last_opened_us.load(Relaxed));
                let longest = opened + Duration::from_millis(self.settings.max_open_ms);
                let after_next = next + Duration::from_millis(self.settings.check_every_ms);
                gate_until(after_next.min(longest)).max(gate)
            }
            _ => return false,
        };
        // Whoever has changed it meanwhile knows better.
        let changed = self.gate.compare_exchange(gate, until, AcqRel, Acquire).is_ok();
        changed && well == Some(true)
    }

    /// What the last check has said since it opened.
    pub fn word(&self) -> Word {
        match self.word.load(Relaxed) {
            1 => Word::Well,
            2 => Word::Ill,
            _ => Word::None,
        }
    }

    fn may_probe(&self, gate: u64, now: Instant, desperate: bool) -> bool {
        let due = Instant(gate >> 1) <= now;
        let probe_is_out = gate & 1 == 1;
        let failed_at = Instant(self.last_opened_us.load(Relaxed));
        due || (desperate && !probe_is_out && failed_at + DESPERATE_AFTER <= now)
    }

    /// Whether what has been counted is reason to open.
    fn is_too_bad(&self, consecutive: u32, now: Instant) -> bool {
        let (calls, failures) = self.window.sum(now);
        consecutive >= self.settings.consecutive_failures
            || (calls >= u64::from(self.settings.min_calls)
                && failures * 100 >= calls * u64::from(self.settings.failure_percent))
    }

    /// Opens if the gate still is `expected`, and not too many are out. `random` jitters the wait so that many callers'
    /// probes do not meet.
    fn open(&self, expected: u64, fault: Fault, now: Instant, random: u64) -> bool {
        let was_in = expected == 0;
        if was_in && !self.places.take(fault) {
            return false;
        }
        let max_ms = self.settings.max_open_ms.max(self.settings.open_ms);
        let closed_for = now.since(Instant(self.last_closed_us.load(Relaxed)));
        let was_healthy = was_in && closed_for >= Duration::from_millis(max_ms);
        let streak = if was_healthy { 0 } else { self.streak.load(Relaxed) };
        let wait_ms = self.settings.open_ms.saturating_mul(1 << streak.min(20)).min(max_ms);
        let jitter_ms = random % (wait_ms / 4 + 1);
        let until = gate_until(now + Duration::from_millis(wait_ms + jitter_ms));
        if self.gate.compare_exchange(expected, until, AcqRel, Acquire).is_err() {
            if was_in {
                self.places.give_back();
            }
            return false;
        }
        if was_in {
            self.word.store(Word::None as u8, Relaxed);
        }
        self.repeated.store(0, Relaxed);
        self.next_check_us.store((now + Duration::from_millis(self.settings.check_every_ms)).0, Relaxed);
        self.last_opened_us.store(now.0, Relaxed);
        self.streak.store(streak.saturating_add(1), Relaxed);
        self.opened.fetch_add(1, Relaxed);
        self.consecutive.store(0, Relaxed);
        self.window.clear();
        true
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        if *self.gate.get_mut() != 0 {
            self.places.give_back();
        }
    }
}

/// The gate that refuses until then; never zero, which means closed.
fn gate_until(until: Instant) -> u64 {
    until.0.max(1) << 1
}

impl Permit {
    /// Whether this call is a probe of an open breaker.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// The call went well. Says whether that closed the breaker.
    pub fn succeed(mut self, now: Instant) -> bool {
        let breaker = self.breaker.clone();
        match self.probe.take() {
            Some(probe) => {
                let closed = breaker.gate.compare_exchange(probe, 0, AcqRel, Acquire).is_ok();
                if closed {
                    breaker.places.give_back();
                    breaker.last_closed_us.store(now.0, Relaxed);
                }
                closed
            }
            None => {
                if breaker.consecutive.load(Relaxed) != 0 {
                    breaker.consecutive.store(0, Relaxed);
                }
                breaker.window.add(now, 1, 0);
                false
            }
        }
    }

    /// The call failed in a way the instance answers for. Says whether that opened the breaker (again).
    pub fn fail(mut self, fault: Fault, now: Instant, random: u64) -> bool {
        let breaker = self.breaker.clone();
        breaker.last_failed.store(now.0 << 1 | u64::from(fault == Fault::Silence), Relaxed);
        match self.probe.take() {
            Some(probe) => breaker.open(probe, fault, now, random),
            // The breaker opened while this call was out, or it was let past: what it says is known already.
            None if breaker.gate.load(Acquire) != 0 => false,
            None => {
                breaker.window.add(now, 1, 1);
                let consecutive = breaker.consecutive.fetch_add(1, Relaxed).saturating_add(1);
                breaker.is_too_bad(consecutive, now) && breaker.open(0, fault, now, random)
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(probe) = self.probe.take() {
            // Due at once: the time is long past.
            let _ = self.breaker.gate.compare_exchange(probe, gate_until(Instant(1)), AcqRel, Acquire);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Instant {
        Instant(1_000_000_000 + ms * 1_000)
    }

    fn breaker() -> Arc<Breaker> {
        Arc::new(Breaker::new(BreakerSettings::default()))
    }

    fn fail_times(breaker: &Arc<Breaker>, times: usize, now: Instant) {
        for _ in 0..times {
            breaker.admit(now, false).unwrap().fail(Fault::Silence, now, 0);
        }
    }

    #[test]
    fn answers_that_begin_well_and_break_off_open_it_too_unless_one_comes_whole_in_between() {
        let (breaker, now) = (breaker(), ms(0));
        let call = |breaks_off| {
            breaker.admit(now, false).unwrap().succeed(now);
            breaks_off && breaker.broke_off(now, 0)
        };
        for _ in 0..3 {
            assert!((0..4).all(|_| !call(true)));
            call(false);
            breaker.carried();
        }
        assert!((0..4).all(|_| !call(true)) && call(true), "the fifth in a row");
        assert!(!breaker.admits(now, false) && !breaker.still_answers());
    }

    #[test]
    fn five_failures_in_a_row_open_it() {
        let breaker = breaker();
        fail_times(&breaker, 4, ms(0));
        breaker.admit(ms(0), false).unwrap().succeed(ms(0));
        fail_times(&breaker, 4, ms(0));
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail_times(&breaker, 1, ms(0));
        assert!(breaker.admit(ms(4_999), false).is_none());
        assert_eq!((breaker.state(), breaker.opened()), (BreakerState::Open(ms(5_000)), 1));
    }

    #[test]
    fn half_of_twenty_calls_failing_opens_it_although_never_five_in_a_row() {
        let breaker = breaker();
        for _ in 0..9 {
            fail_times(&breaker, 1, ms(0));
            breaker.admit(ms(0), false).unwrap().succeed(ms(0));
        }
        fail_times(&breaker, 1, ms(0));
        assert_eq!(breaker.state(), BreakerState::Closed, "19 calls are too few to judge");
        fail_times(&breaker, 1, ms(0));
        assert!(matches!(breaker.state(), BreakerState::Open(_)));
    }

    #[test]
    fn one_probe_at_a_time_closes_it_again() {
        let breaker = breaker();
        fail_times(&breaker, 5, ms(0));
        assert!(breaker.is_probe_due(ms(5_000)));
        let probe = breaker.admit(ms(5_000), false).unwrap();
        assert!(probe.is_probe());
        assert!(breaker.admit(ms(5_001), false).is_none(), "a second probe");
        assert!(probe.succeed(ms(5_002)));
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn failed_probes_double_the_wait_up_to_the_longest() {
        let breaker = breaker();
        fail_times(&breaker, 5, ms(0));
        let mut now = ms(0);
        for wait_ms in [5_000, 10_000, 20_000, 40_000, 60_000, 60_000] {
            assert_eq!(breaker.state(), BreakerState::Open(now + Duration::from_millis(wait_ms)));
            now = now + Duration::from_millis(wait_ms);
            breaker.admit(now, false).unwrap().fail(Fault::Silence, now, 0);
        }
    }

    #[test]
    fn a_dropped_probe_is_due_again_at_once_and_a_lost_one_after_the_longest_wait() {
        let breaker = breaker();
        fail_times(&breaker, 5, ms(0));
        drop(breaker.admit(ms(5_000), false).unwrap());
        let lost = breaker.admit(ms(5_000), false).unwrap();
        assert!(breaker.admit(ms(14_999), false).is_none());
        let next = breaker.admit(ms(15_000), false).unwrap();
        assert!(!lost.succeed(ms(15_001)), "a probe given up says nothing");
        assert!(next.succeed(ms(15_002)));
    }

    #[test]
    fn what_was_admitted_before_it_opened_says_nothing_afterwards() {
        let breaker = breaker();
        let early = breaker.admit(ms(0), false).unwrap();
        let late = breaker.admit(ms(0), false).unwrap();
        fail_times(&breaker, 5, ms(0));
        let open = breaker.state();
        early.succeed(ms(1));
        late.fail(Fault::Silence, ms(2), 0);
        assert_eq!(breaker.state(), open);
    }

    #[test]
    fn a_call_let_past_an_open_breaker_moves_only_its_last_failure() {
        let breaker = breaker();
        assert!(breaker.still_answers());
        for _ in 0..5 {
            breaker.admit(ms(0), false).unwrap().fail(Fault::Answer, ms(0), 0);
        }
        let open = breaker.state();
        assert!(!breaker.admit_anyway().succeed(ms(1)));
        assert!(!breaker.admit_anyway().fail(Fault::Answer, ms(2), 0));
        assert_eq!((breaker.state(), breaker.last_failed(), breaker.still_answers()), (open, ms(2), true));
        assert!(!breaker.admit_anyway().fail(Fault::Silence, ms(3), 0));
        assert_eq!((breaker.state(), breaker.last_failed(), breaker.still_answers()), (open, ms(3), false));
    }

    #[test]
    fn the_desperate_may_probe_after_a_second() {
        let breaker = breaker();
        fail_times(&breaker, 5, ms(0));
        assert!(breaker.admit(ms(999), true).is_none());
        let probe = breaker.admit(ms(1_000), true).unwrap();
        assert!(breaker.admit(ms(1_000), true).is_none(), "still one at a time");
        probe.fail(Fault::Silence, ms(1_100), 0);
        assert!(breaker.admit(ms(2_000), true).is_none());
        assert!(breaker.admit(ms(2_100), true).is_some());
    }

    #[test]
    fn a_good_word_makes_a_probe_due_early_once_and_again_after_a_bad_one() {
        let breaker = breaker();
        fail_times(&breaker, 5, ms(0));
        assert_eq!(breaker.next_check(ms(0)), Some(ms(1_000)));
        assert!(breaker.checked(ms(1_000), Some(true), 0));
        assert_eq!(breaker.next_check(ms(1_000)), None, "only a caller is awaited");
        breaker.admit(ms(1_000), false).expect("a probe").fail(Fault::Answer, ms(1_001), 0);
        assert!(!breaker.checked(ms(2_001), Some(true), 0), "no news: it fails callers and calls itself well");
        assert!(breaker.admit(ms(2_001), false).is_none());
        assert!(!breaker.checked(ms(3_000), Some(false), 0));
        assert!(breaker.checked(ms(4_000), Some(true), 0));
        assert!(breaker.admit(ms(4_000), false).unwrap().succeed(ms(4_001)));
        assert!(!breaker.checked(ms(4_002), Some(true), 0), "a word that comes late changes nothing");
        assert_eq!((breaker.state(), breaker.next_check(ms(9_000))), (BreakerState::Closed, None));
    }

    #[test]
    fn bad_words_put_the_probe_off_but_not_for_ever_and_grow_rare() {
        let breaker = breaker();
        fail_times(&breaker, 5, ms(0));
        let mut waits = Vec::new();
        let mut now = ms(0);
        while let Some(next) = breaker.next_check(now).filter(|next| *next < ms(60_000)) {
            waits.push(next.since(now).as_millis());
            now = next;
            assert!(breaker.admit(now, false).is_none(), "no caller's request while it is known to be ill");
            breaker.checked(now, Some(false), 0);
        }
        assert_eq!(waits, [1_000, 1_000, 2_000, 4_000, 8_000, 16_000, 16_000]);
        assert!(breaker.admit(ms(60_000), false).is_some(), "a check may be wrong");
    }

    #[test]
    fn without_checks_nothing_is_asked_and_nobody_who_is_asked_in_vain_says_anything() {
        let never = BreakerSettings { check_every_ms: 0, ..BreakerSettings::default() };
        let silent = Arc::new(Breaker::new(never));
        fail_times(&silent, 5, ms(0));
        assert_eq!((never.check(), silent.next_check(ms(9_000))), (Ok(()), None));
        let breaker = breaker();
        fail_times(&breaker, 5, ms(0));
        let open = breaker.state();
        assert!(!breaker.checked(ms(1_000), None, 0));
        assert_eq!((breaker.state(), breaker.word()), (open, Word::None));
    }

    proptest! {
        /// Whatever happened, an hour of silence later it admits a call, and a good one closes it.
        #[test]
        fn it_never_sticks(steps in proptest::collection::vec((0u8..8, 0u64..20_000, any::<u64>()), 0..200)) {
            let breaker = breaker();
            let mut now = ms(0);
            let mut held = Vec::new();
            for (step, wait_ms, random) in steps {
                now = now + Duration::from_millis(wait_ms);
                match step {
                    0 => held.extend(breaker.admit(now, random % 2 == 0)),
                    1 => held.pop().into_iter().for_each(|permit| { permit.fail(Fault::Answer, now, random); }),
                    2 => held.pop().into_iter().for_each(|permit| { permit.succeed(now); }),
                    3 => drop(held.pop()),
                    4 => held.push(breaker.admit_anyway()),
                    5 => _ = breaker.checked(now, Some(false), random),
                    6 => _ = breaker.checked(now, Some(true), random),
                    _ => (0..5).filter_map(|_| breaker.admit(now, false)).for_each(|permit| {
                        permit.fail(Fault::Silence, now, random);
                    }),
                }
            }
            std::mem::forget(held);
            now = now + Duration::from_secs(3_600);
            breaker.admit(now, false).expect("admits after an hour").succeed(now);
            prop_assert_eq!(breaker.state(), BreakerState::Closed);
        }
    }
}
