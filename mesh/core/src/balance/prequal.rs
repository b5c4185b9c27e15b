//! Choosing by what instances say of themselves: Prequal (Wydrowski et al., "Load is not what you should balance",
//! NSDI 2024).
//!
//! Reports of requests in flight and latency come with answers and from asking a few instances now and then; the newest
//! wait in a pool. An instance is *hot* when it has more in flight than a quantile of the reports says, *cold* otherwise.
//! The quickest cold one takes the request; if all are hot, the one with the fewest in flight. A report is used a few times
//! only, each time adding the request it sent there, and one report is dropped per request, the oldest and the worst in
//! turn: what is left would otherwise be the reports nobody wants.
//!
//! Latency is what the instance's own node measured, the median at about the present number in flight: what it would be
//! *now*, not what it was when the instance was idle.
//!
//! Reports are a sample, so their pool is under a lock that nobody waits for: who finds it taken, or fewer than two
//! usable reports in it, goes by its own experience as the default algorithm does.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::roster::Slot;
use super::settings::PrequalSettings;
use super::tier::{Choice, NOISE_US, Tier};
use crate::time::Instant;

/// How far the pool may grow by reports that are used too often (the paper's delta).
const DELTA: f32 = 1.0;
/// Reported medians within this factor of the best are as good: a step of theirs is a twentieth.
const EQUAL_WITHIN: f32 = 1.2;
/// How many reports are dropped per request.
const REMOVED: f32 = 1.0;
/// How often a report is used at most, when there are so few instances that the paper's bound is none.
const MAX_USES: u32 = 1_000;

/// What an instance says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Requests in flight, from all callers.
    pub in_flight: u32,
    /// The median latency at about so many in flight, in microseconds; zero when nothing is known.
    pub latency_us: u32,
}

/// The newest reports of a service's instances.
#[derive(Debug, Default)]
pub(super) struct Reports(Mutex<Pool>);

#[derive(Debug, Default, Clone)]
pub(super) struct Pool {
    held: Vec<Held>,
    choices: u64,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    slot: u32,
    report: Report,
    came: Instant,
    used: u32,
}

impl Reports {
    fn lock(&self) -> Option<MutexGuard<'_, Pool>> {
        // Poisoned means that another thread ended in here; it is no worse than taken.
        self.0.try_lock().ok()
    }

    /// The same reports for slots that are numbered anew.
    pub(super) fn renumbered(&self, number: impl Fn(u32) -> Option<u32>) -> Self {
        let mut pool = self.lock().map(|pool| pool.clone()).unwrap_or_default();
        pool.held.retain_mut(|held| number(held.slot).map(|slot| held.slot = slot).is_some());
        Self(Mutex::new(pool))
    }

    /// A report came.
    pub(super) fn add(&self, now: Instant, slot: u32, report: Report, settings: &PrequalSettings) {
        let Some(mut pool) = self.lock() else { return };
        pool.held.retain(|held| held.slot != slot);
        if pool.held.len() >= settings.pool as usize {
            pool.held.remove(0);
        }
        pool.held.push(Held { slot, report, came: now, used: 0 });
    }

    /// The instance for the next request, if enough is known.
    pub(super) fn choose<'a, T, F: Fn(&Slot<T>) -> bool>(
        &self,
        tier: &Tier,
        choice: &Choice<'a, T, F>,
        rng: &mut fastrand::Rng,
    ) -> Option<&'a Slot<T>> {
        let settings = &choice.settings.prequal;
        let mut pool = self.lock()?;
        let oldest = choice.now - Duration::from_millis(settings.max_age_ms);
        pool.held.retain(|held| held.came >= oldest);
        let judged = judge(&pool.held, tier, choice);
        if judged.len() < 2 {
            return None;
        }
        let hot = Hot::of(&judged, settings.hot_percent);
        let best = hot.best(&judged, rng)?;
        let slot = &choice.roster.slots[pool.held[best].slot as usize];
        pool.held[best].report.in_flight += 1;
        pool.held[best].used += 1;
        pool.choices += 1;
        let uses = uses(settings, tier.members.len());
        let worst = judged.iter().max_by(|a, b| hot.rank(a).total_cmp(&hot.rank(b)));
        let dropped = match worst {
            _ if pool.held.len() <= 2 => None,
            Some(worst) if pool.choices.is_multiple_of(2) => Some(worst.at),
            _ => Some(0),
        };
        let mut at = 0;
        pool.held.retain(|held| {
            let is_dropped = dropped == Some(at);
            at += 1;
            held.used < uses && !is_dropped
        });
        Some(slot)
    }
}

/// How often a report may be used so that the pool neither runs dry nor grows stale (the paper's equation 1; the share
/// of a full pool among all instances makes new reports replace old ones of the same instance).
fn uses(settings: &PrequalSettings, instances: usize) -> u32 {
    // What is asked for, and one with each answer.
    let comes = 1.0 + settings.probes_percent as f32 / 100.0;
    let new = (1.0 - settings.pool as f32 / instances.max(1) as f32) * comes - REMOVED;
    if new <= 0.0 {
        return MAX_USES;
    }
    ((1.0 + DELTA) / new).round().clamp(1.0, MAX_USES as f32) as u32
}

/// A report as it counts for this choice.
struct Judged {
    /// Where in the pool.
    at: usize,
    weight: f32,
    in_flight: f32,
    latency_us: f32,
}

/// The reports of usable instances of this tier.
fn judge<T, F: Fn(&Slot<T>) -> bool>(held: &[Held], tier: &Tier, choice: &Choice<'_, T, F>) -> Vec<Judged> {
    let judge = |(at, held): (usize, &Held)| {
        let member = tier.member(held.slot)?;
        let slot = Some(choice.slot(member)).filter(|slot| (choice.usable)(slot))?;
        let factor = choice.factor(slot);
        let load = &slot.seat.load;
        // What is under way from here is in flight there, or will be in a moment.
        let in_flight = held.report.in_flight.max(load.in_flight());
        // One request in flight is no crowd: where there is little to do, everybody has none or one by chance.
        let in_flight = if in_flight <= 1 { 0.0 } else { in_flight as f32 / member.share };
        // One that fails quickly calls itself quick: here it is known better.
        let known_us = if factor < 1.0 { load.latency_us(choice.now).unwrap_or(0.0) } else { 0.0 };
        let weight = member.share * factor;
        Some(Judged { at, weight, in_flight, latency_us: known_us.max(held.report.latency_us as f32) })
    };
    held.iter().enumerate().filter_map(judge).collect()
}

/// What is hot.
struct Hot {
    above: f32,
}

impl Hot {
    fn of(judged: &[Judged], percent: u32) -> Self {
        let mut in_flight: Vec<f32> = judged.iter().map(|judged| judged.in_flight).collect();
        in_flight.sort_unstable_by(f32::total_cmp);
        let at = (in_flight.len() - 1) * percent.min(100) as usize / 100;
        Self { above: in_flight[at] }
    }

    /// Where the best is. Of several that are as good one is drawn by weight: so equal ones look equal, and the heavier
    /// of idle ones gets more.
    fn best(&self, judged: &[Judged], rng: &mut fastrand::Rng) -> Option<usize> {
        let least = judged.iter().map(|judged| self.rank(judged)).min_by(f32::total_cmp)?;
        let most = if least < HOT { (least + NOISE_US) * EQUAL_WITHIN - NOISE_US } else { least };
        let (mut total, mut best) = (0.0, None);
        for judged in judged.iter().filter(|judged| self.rank(judged) <= most) {
            total += judged.weight;
            if rng.f32() * total < judged.weight {
                best = Some(judged.at);
            }
        }
        best
    }

    /// Lower is better: all cold ones before all hot ones.
    fn rank(&self, judged: &Judged) -> f32 {
        if judged.in_flight > self.above { HOT + judged.in_flight } else { judged.latency_us }
    }
}

/// More than any latency in microseconds that a report can name, and exact beside any number in flight.
const HOT: f32 = 1e10;

/// What an instance's own node measures in order to report it.
#[derive(Debug, Default)]
pub struct Reporter {
    in_flight: AtomicU32,
    /// Median latencies by the number in flight when the request came: 0, 1, 2 to 3, 4 to 7 and so on.
    medians_us: [AtomicU32; BUCKETS],
}

const BUCKETS: usize = 16;
/// By how much an answer above the median moves it up, and one below down: half of all answers are above, so it stays
/// where it belongs; forty answers bring it from anywhere to within a factor of seven of where it was not.
const STEP: f32 = 1.05;

/// A request being answered; dropped when it is not any more.
#[derive(Debug)]
pub struct Answering {
    reporter: Arc<Reporter>,
    bucket: usize,
}

fn bucket(in_flight: u32) -> usize {
    (u32::BITS - in_flight.leading_zeros()).min(BUCKETS as u32 - 1) as usize
}

impl Reporter {
    /// A request came.
    pub fn begin(self: &Arc<Self>) -> Answering {
        let before = self.in_flight.fetch_add(1, Relaxed);
        Answering { reporter: self.clone(), bucket: bucket(before) }
    }

    /// How it is.
    pub fn report(&self) -> Report {
        let in_flight = self.in_flight.load(Relaxed);
        let here = bucket(in_flight);
        // Nearest first; of two as near, the one for more in flight.
        let near = (0..BUCKETS).flat_map(|distance| [here.checked_add(distance), here.checked_sub(distance)]);
        let medians = near.flatten().filter_map(|bucket| self.medians_us.get(bucket));
        let latency_us = medians.map(|median| median.load(Relaxed)).find(|median| *median > 0).unwrap_or(0);
        Report { in_flight, latency_us }
    }
}

impl Answering {
    /// It has been answered after so long.
    pub fn end(self, took: Duration) {
        let sample = took.as_micros().clamp(1, u128::from(u32::MAX)) as u32;
        let median = &self.reporter.medians_us[self.bucket];
        // A race loses one of two samples, which a median does not mind.
        let moved = match median.load(Relaxed) {
            0 => sample,
            known if sample > known => (known as f32 * STEP).ceil().min(sample as f32) as u32,
            known => (known as f32 / STEP).floor().max(sample as f32) as u32,
        };
        median.store(moved.max(1), Relaxed);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.reporter.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_is_in_flight_and_the_median_at_about_that() {
        let reporter = Arc::new(Reporter::default());
        assert_eq!(reporter.report(), Report { in_flight: 0, latency_us: 0 });
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..2_000 {
            reporter.begin().end(Duration::from_micros(rng.u64(500..1_500)));
        }
        let idle = reporter.report();
        assert!((800..1_200).contains(&idle.latency_us), "{idle:?}");
        let held: Vec<_> = (0..5).map(|_| reporter.begin()).collect();
        assert_eq!(reporter.report(), Report { in_flight: 5, ..idle }, "nothing better is known");
        reporter.begin().end(Duration::from_micros(9_000));
        assert_eq!(reporter.report(), Report { in_flight: 5, latency_us: 9_000 });
        drop(held);
        assert_eq!(reporter.report(), idle);
    }

    #[test]
    fn a_report_is_used_as_often_as_the_paper_says() {
        let paper = PrequalSettings { probes_percent: 200, ..PrequalSettings::default() };
        assert_eq!(uses(&paper, 100), 1, "2 / ((1 - 16/100) * 3 - 1) = 1.3");
        assert_eq!(uses(&PrequalSettings { probes_percent: 100, ..paper }, 100), 3, "2 / ((1 - 16/100) * 2 - 1) = 2.9");
        assert_eq!(uses(&paper, 16), MAX_USES, "all instances are in the pool");
    }
}
