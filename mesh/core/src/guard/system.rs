//! What protects a host as a whole (Sentinel's system rule): load, CPU, calls in flight, a second, and their time.
//!
//! Load and CPU are read by whoever has a clock and a `/proc`, and told ([`SystemGuard::read`]); a reading older than
//! [`READING_KEEPS`] is not believed. They refuse nobody by themselves in one case: above the highest load, calls are
//! let through as long as no more are in flight than the host has shown it can carry, `most a second * shortest time`
//! (the bandwidth-delay product, as TCP BBR; Sentinel's BBR check). A host whose load comes from elsewhere would
//! otherwise serve nobody.
//!
//! Checked in Sentinel's order: calls a second, in flight, their time, load, CPU. The most critical requests are spared
//! what is only a sign (time, load, CPU), never what is a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Criticality;
use super::refusal::{Guard, Invalid, Outcome, Refusal, all_within};
use super::ring::{Counts, LastTime};
use super::rtt::Shortest;
use crate::time::Instant;

/// How long a reading of load and CPU is believed.
pub const READING_KEEPS: Duration = Duration::from_secs(10);
/// When asking again may help: as soon as the next reading.
const COME_BACK: Duration = Duration::from_secs(1);
/// The windows of what is counted (Sentinel's is a second; shortest times need some calls more).
const WINDOW: Duration = Duration::from_secs(1);
const SHORTEST_WINDOW: Duration = Duration::from_secs(4);
/// How fast the mean time of calls follows: half of it is of the last dozen.
const MEAN_SHIFT: u32 = 4;

/// What a host may be burdened with. 0 is off, and all are off by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SystemSettings {
    /// Load average of the last minute for each core, in percent; above it, the BBR check decides. 0 to 100,000.
    pub max_load_percent: u32,
    /// CPU used by all programs of the host, in percent of all cores. 0 to 100.
    pub max_cpu_percent: u32,
    /// Calls in flight. 0 to 10,000,000.
    pub max_in_flight: u32,
    /// Calls let through in the last second. 0 to 10,000,000.
    pub max_per_s: u32,
    /// Mean time of recent calls, in milliseconds. 0 to 3,600,000.
    pub max_mean_ms: u64,
    /// Requests at least as critical as this are spared the checks of time, load and CPU. Without it nobody is.
    pub spare: Option<Criticality>,
    /// Ask only about what other hosts ask of this one (Sentinel's inbound traffic). What its own applications ask belongs,
    /// more often than not, to a request that was let in already: refusing it wastes what was done for that. Default false,
    /// since a host may have no other way in than its own applications.
    pub inbound_only: bool,
}

impl SystemSettings {
    /// Whether nothing is limited.
    pub fn is_off(&self) -> bool {
        let Self { max_load_percent, max_cpu_percent, max_in_flight, max_per_s, max_mean_ms, .. } = *self;
        [max_load_percent, max_cpu_percent, max_in_flight, max_per_s] == [0; 4] && max_mean_ms == 0
    }

    /// Whether load or CPU is limited, so that somebody has to read them.
    pub fn wants_readings(&self) -> bool {
        self.max_load_percent > 0 || self.max_cpu_percent > 0
    }

    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        all_within([
            ("max_load_percent", self.max_load_percent.into(), 0..=100_000),
            ("max_cpu_percent", self.max_cpu_percent.into(), 0..=100),
            ("max_in_flight", self.max_in_flight.into(), 0..=10_000_000),
            ("max_per_s", self.max_per_s.into(), 0..=10_000_000),
            ("max_mean_ms", self.max_mean_ms, 0..=3_600_000),
        ])
    }
}

/// The guard of one host.
#[derive(Debug)]
pub struct SystemGuard {
    settings: SystemSettings,
    in_flight: AtomicU32,
    passed: LastTime,
    ended: LastTime,
    shortest: Shortest,
    mean_us: AtomicU64,
    load_percent: AtomicU32,
    cpu_percent: AtomicU32,
    /// When they were read; 0: never.
    read_us: AtomicU64,
    refused: AtomicU64,
}

/// A call in flight; dropping it without [`SystemPermit::end`] counts it as cancelled.
#[derive(Debug)]
#[must_use = "dropping a permit at once counts the call as cancelled"]
pub struct SystemPermit {
    guard: Arc<SystemGuard>,
    began: Instant,
}

/// All that can be shown of a host's guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SystemSnapshot {
    /// As read last, if that is recent.
    pub load_percent: Option<u32>,
    /// As read last, if that is recent.
    pub cpu_percent: Option<u32>,
    /// Calls in flight.
    pub in_flight: u32,
    /// Calls let through in the last second.
    pub per_s: u64,
    /// Mean time of recent calls, in microseconds.
    pub mean_us: u64,
    /// Calls in flight the host has shown it can carry.
    pub carries: u64,
    /// Calls refused.
    pub refused: u64,
}

impl SystemGuard {
    /// The guard of a host that has done nothing yet.
    pub fn new(settings: &SystemSettings) -> Self {
        Self {
            settings: *settings,
            in_flight: AtomicU32::new(0),
            passed: LastTime::new(WINDOW),
            ended: LastTime::new(WINDOW),
            shortest: Shortest::of_the_last(SHORTEST_WINDOW),
            mean_us: AtomicU64::new(0),
            load_percent: AtomicU32::new(0),
            cpu_percent: AtomicU32::new(0),
            read_us: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes note of the host's load (of the last minute, for each core) and CPU, both in percent.
    pub fn read(&self, now: Instant, load_percent: u32, cpu_percent: u32) {
        self.load_percent.store(load_percent, Relaxed);
        self.cpu_percent.store(cpu_percent, Relaxed);
        self.read_us.store(now.0.max(1), Relaxed);
    }

    /// Admits a call or refuses it.
    ///
    /// # Errors
    /// A refusal that names what there is too much of.
    pub fn admit(self: &Arc<Self>, now: Instant, class: Criticality) -> Result<SystemPermit, Refusal> {
        let already = self.in_flight.fetch_add(1, Relaxed);
        if let Some(reason) = self.too_much(now, class, already) {
            self.in_flight.fetch_sub(1, Relaxed);
            self.refused.fetch_add(1, Relaxed);
            return Err(Refusal::until(Guard::System, reason, COME_BACK));
        }
        self.passed.add(now, Counts::of(false, false));
        Ok(SystemPermit { guard: self.clone(), began: now })
    }

    fn too_much(&self, now: Instant, class: Criticality, in_flight: u32) -> Option<&'static str> {
        let settings = &self.settings;
        let above = |value: u64, limit: u64| limit > 0 && value > limit;
        if settings.max_per_s > 0 && above(self.passed.sum(now).calls + 1, settings.max_per_s.into()) {
            return Some("too many calls a second on this host");
        }
        if above(u64::from(in_flight) + 1, settings.max_in_flight.into()) {
            return Some("too many calls in flight on this host");
        }
        if settings.spare.is_some_and(|spared| class <= spared) {
            return None;
        }
        if above(self.mean_us.load(Relaxed), settings.max_mean_ms * 1_000) {
            return Some("calls take too long on this host");
        }
        if !settings.wants_readings() || !self.is_recent(now) {
            return None;
        }
        if above(self.load_percent.load(Relaxed).into(), settings.max_load_percent.into())
            && in_flight > 1
            && u64::from(in_flight) > self.carries(now)
        {
            return Some("the load of this host is too high");
        }
        above(self.cpu_percent.load(Relaxed).into(), settings.max_cpu_percent.into())
            .then_some("the CPU of this host is too busy")
    }

    /// How many calls in flight the host has shown it can carry.
    fn carries(&self, now: Instant) -> u64 {
        let shortest_s = self.shortest.shortest(now).map_or(0.0, |shortest| shortest.as_secs_f64());
        (self.ended.max_calls_per_s(now) * shortest_s) as u64
    }

    fn is_recent(&self, now: Instant) -> bool {
        let read = self.read_us.load(Relaxed);
        read != 0 && now.since(Instant(read)) <= READING_KEEPS
    }

    /// What it sees; takes nothing.
    pub fn snapshot(&self, now: Instant) -> SystemSnapshot {
        let recent = |value: &AtomicU32| self.is_recent(now).then(|| value.load(Relaxed));
        SystemSnapshot {
            load_percent: recent(&self.load_percent),
            cpu_percent: recent(&self.cpu_percent),
            in_flight: self.in_flight.load(Relaxed),
            per_s: self.passed.sum(now).calls,
            mean_us: self.mean_us.load(Relaxed),
            carries: self.carries(now),
            refused: self.refused.load(Relaxed),
        }
    }
}

impl SystemPermit {
    /// The call ended.
    pub fn end(self, outcome: Outcome, now: Instant) {
        if outcome != Outcome::Success {
            return; // a quick error says nothing of how long the work takes
        }
        let took = now.since(self.began);
        self.guard.ended.add(now, Counts::of(false, false));
        self.guard.shortest.add(now, took);
        let took = took.as_micros() as u64;
        let mean = |mean: u64| Some(if mean == 0 { took } else { mean - (mean >> MEAN_SHIFT) + (took >> MEAN_SHIFT) });
        // The closure always returns Some, so the update always happens.
        let _ = self.guard.mean_us.fetch_update(Relaxed, Relaxed, mean);
    }
}

impl Drop for SystemPermit {
    fn drop(&mut self) {
        self.guard.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Instant {
        Instant(1_000_000_000 + ms * 1_000)
    }

    fn guard(settings: SystemSettings) -> Arc<SystemGuard> {
        assert_eq!(settings.check(), Ok(()));
        Arc::new(SystemGuard::new(&settings))
    }

    fn admit(guard: &Arc<SystemGuard>, now: Instant) -> Result<SystemPermit, &'static str> {
        guard.admit(now, Criticality::Critical).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn with_no_settings_everything_passes() {
        let guard = guard(SystemSettings::default());
        guard.read(ms(0), 100_000, 100);
        let all: Result<Vec<_>, _> = (0..1_000).map(|_| admit(&guard, ms(0))).collect();
        assert!(all.is_ok());
    }

    #[test]
    fn calls_in_flight_and_a_second_are_limits_for_all() {
        let settings = SystemSettings { max_in_flight: 2, spare: Some(Criticality::Sheddable), ..Default::default() };
        let in_flight = guard(settings);
        let held = [admit(&in_flight, ms(0)).unwrap(), admit(&in_flight, ms(0)).unwrap()];
        assert_eq!(admit(&in_flight, ms(0)).unwrap_err(), "too many calls in flight on this host");
        drop(held);
        assert!(admit(&in_flight, ms(0)).is_ok());

        let per_s = guard(SystemSettings { max_per_s: 3, ..Default::default() });
        assert_eq!((0..9).filter(|_| admit(&per_s, ms(0)).is_ok()).count(), 3);
        assert_eq!((0..9).filter(|_| admit(&per_s, ms(1_000)).is_ok()).count(), 3);
    }

    #[test]
    fn a_busy_cpu_refuses_all_but_those_who_are_spared_while_its_reading_is_fresh() {
        let guard =
            guard(SystemSettings { max_cpu_percent: 80, spare: Some(Criticality::CriticalPlus), ..Default::default() });
        guard.read(ms(0), 0, 80);
        assert!(admit(&guard, ms(0)).is_ok());
        guard.read(ms(0), 0, 81);
        assert_eq!(admit(&guard, ms(0)).unwrap_err(), "the CPU of this host is too busy");
        assert!(guard.admit(ms(0), Criticality::CriticalPlus).is_ok());
        assert!(admit(&guard, ms(10_001)).is_ok(), "nobody has read it for ten seconds");
    }

    #[test]
    fn under_load_no_more_is_let_through_than_the_host_has_shown_it_carries() {
        let guard = guard(SystemSettings { max_load_percent: 100, ..Default::default() });
        // 200 calls in a tenth of a second, of 5 ms each: it carries ten at once.
        for call in 0..200 {
            let began = ms(100 + call / 2);
            admit(&guard, began).unwrap().end(Outcome::Success, began + Duration::from_millis(5));
        }
        let now = ms(205);
        let flood = || (0..1_000).map_while(|_| admit(&guard, now).ok()).collect::<Vec<_>>().len();
        assert_eq!(flood(), 1_000, "nothing is known of load");
        guard.read(now, 101, 0);
        let carried = flood();
        assert!((9..=11).contains(&carried), "{carried}");
    }

    #[test]
    fn calls_that_take_too_long_are_a_sign_and_quick_errors_are_not() {
        let guard = guard(SystemSettings { max_mean_ms: 10, ..Default::default() });
        let calls: Vec<_> = (0..100).map(|_| admit(&guard, ms(0)).unwrap()).collect();
        for (nth, call) in calls.into_iter().enumerate() {
            if nth == 0 { call.end(Outcome::Success, ms(11)) } else { call.end(Outcome::Failure, ms(0)) }
        }
        assert_eq!(admit(&guard, ms(11)).unwrap_err(), "calls take too long on this host");
    }
}
