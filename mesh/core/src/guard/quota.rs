//! One node's part of a quota of the whole mesh: a token bucket whose rate is what the heart says this node's share is
//! ([`crate::quotas`]), and a measure of how much is asked for, by which the heart shares out.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limit::bucket::{Rate, take};
use super::refusal::{Guard, Invalid, Refusal, all_within};
use crate::id::ServiceKey;
use crate::quotas::{QuotaId, QuotaUse};
use crate::time::Instant;

/// So many calls in so much time, at all nodes together. Durations are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaSettings {
    /// What refusals, counters and peers call it: a service's quotas of one name are one quota. Up to 64 letters,
    /// digits, `-`, `_`, `.`, `/`; default `quota`.
    pub name: String,
    /// Calls allowed in `per_ms`. 1 to 1,000,000,000, at most 1,000,000 in a second and at least one in an hour; there is
    /// no default.
    pub count: u32,
    /// The time `count` is for. 1 to 86,400,000; default 1,000.
    pub per_ms: u64,
    /// How much of its share a node may save up: what it allows in this time may pass at once. 1 to 60,000; default
    /// 1,000.
    pub burst_ms: u64,
    /// How long the share of a node that is not heard of is kept for it: it may be behind a partition, using it. Then the
    /// others take it, and each side of a partition that lasts longer allows the whole quota. 1,000 to 86,400,000;
    /// default 30,000.
    pub hold_ms: u64,
}

impl Default for QuotaSettings {
    fn default() -> Self {
        Self { name: "quota".into(), count: 0, per_ms: 1_000, burst_ms: 1_000, hold_ms: 30_000 }
    }
}

impl QuotaSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        super::limit::check_name("name", &self.name)?;
        all_within([
            ("count", self.count.into(), 1..=1_000_000_000),
            ("per_ms", self.per_ms, 1..=86_400_000),
            ("burst_ms", self.burst_ms, 1..=60_000),
            ("hold_ms", self.hold_ms, 1_000..=86_400_000),
        ])?;
        let rate = || format!("{} in {} ms", self.count, self.per_ms);
        if u64::from(self.count) * 1_000 > 1_000_000 * self.per_ms {
            return Err(Invalid::new("count", rate(), "at most 1000000 in 1000 ms"));
        }
        if u64::from(self.count) * 3_600_000 < self.per_ms {
            return Err(Invalid::new("count", rate(), "at least 1 in 3600000 ms"));
        }
        Ok(())
    }

    /// Thousandths of a call a second.
    fn limit_milli(&self) -> u64 {
        (u64::from(self.count) * 1_000_000 / self.per_ms).max(1)
    }
}

/// How much of a new measurement is believed at once: reports come four times a second, so a step is believed to three
/// quarters after a second.
const BELIEVED: f64 = 0.3;
/// A measured demand is told when it differs from what was told by more than a tenth and by more than chance would have
/// it. (Calls that come at random, measured like this, differ by 0.84 times the root of their rate; twice that is rare.)
/// A share is the smallest of a second's: noise would make all of them smaller.
const DIFFERS: (f64, f64) = (0.1, 1.7);
/// No share is known: what all nodes would have if all used it alike is taken until it is, a quarter of a second or so,
/// and nothing counts as saved up.
const UNKNOWN: u64 = u64::MAX;
/// Below so many calls a second there are none.
const NOTHING: f64 = 0.01;

/// One node's part of a quota.
#[derive(Debug)]
pub struct Quota {
    settings: QuotaSettings,
    /// What it is called among the service's.
    name: String,
    tat: AtomicU64,
    /// Thousandths of a call a second; [`UNKNOWN`] before the heart has spoken.
    share_milli: AtomicU64,
    /// How many nodes there are.
    members: AtomicU32,
    asked: AtomicU64,
    /// What had been asked when it was reported last, and when.
    reported: AtomicU64,
    reported_us: AtomicU64,
    /// Calls a second, `f64` bits: as measured, and as told.
    demand: AtomicU64,
    told: AtomicU64,
    refused: AtomicU64,
}

/// All that can be shown of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuotaSnapshot {
    /// Its name.
    pub name: String,
    /// Calls a second allowed at all nodes together.
    pub limit_per_s: f64,
    /// Calls a second allowed here.
    pub share_per_s: f64,
    /// Calls a second asked for here.
    pub demand_per_s: f64,
    /// Calls asked for here.
    pub asked: u64,
    /// Calls refused here.
    pub refused: u64,
}

impl Quota {
    /// The part of a node that has no share yet, one of so many nodes. `route` is whose it is, if not the service's as a
    /// whole.
    pub fn new(route: Option<&str>, settings: &QuotaSettings, members: u32) -> Self {
        Self {
            name: route.map_or_else(|| settings.name.clone(), |route| format!("{route}/{}", settings.name)),
            settings: settings.clone(),
            tat: AtomicU64::new(0),
            share_milli: AtomicU64::new(UNKNOWN),
            members: AtomicU32::new(members),
            asked: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            reported_us: AtomicU64::new(0),
            demand: AtomicU64::new(0f64.to_bits()),
            told: AtomicU64::new(0f64.to_bits()),
            refused: AtomicU64::new(0),
        }
    }

    /// Which quota of a service's this is a part of.
    pub fn id(&self, service: &ServiceKey) -> QuotaId {
        QuotaId::of(service, &self.name)
    }

    /// What it is called among the service's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was made of.
    pub fn settings(&self) -> &QuotaSettings {
        &self.settings
    }

    /// Takes note of this node's share, in thousandths of a call a second; `None`: it is not reported any more, and what
    /// it was is out of date.
    pub fn set_share(&self, share_milli: Option<u64>) {
        self.share_milli.store(share_milli.map_or(UNKNOWN, |share| share.min(UNKNOWN - 1)), Relaxed);
    }

    /// Takes note of how many nodes there are.
    pub fn set_members(&self, members: u32) {
        self.members.store(members, Relaxed);
    }

    /// This node's share, and whether it is known.
    fn share_milli(&self) -> (u64, bool) {
        match self.share_milli.load(Relaxed) {
            UNKNOWN => {
                let members = u64::from(self.members.load(Relaxed).max(1));
                ((self.settings.limit_milli() / members).max(1), false)
            }
            known => (known, true),
        }
    }

    /// Admits a call or refuses it.
    ///
    /// # Errors
    /// A refusal that says when this node's share will allow another, if that does not change.
    pub fn admit(&self, now: Instant) -> Result<(), Refusal> {
        self.asked.fetch_add(1, Relaxed);
        let (share_milli, is_known) = self.share_milli();
        let taken = match 1_000_000_000_000_u64.checked_div(share_milli) {
            None => Err(Duration::from_secs(1)),
            Some(interval_ns) => {
                let saved_ns = if is_known { self.settings.burst_ms * 1_000_000 } else { 0 };
                let burst_ns = saved_ns.max(interval_ns);
                take(&self.tat, Rate { interval_ns: interval_ns.max(1), burst_ns }, 1, now, Duration::ZERO).map(|_| ())
            }
        };
        taken.map_err(|wait| {
            self.refused.fetch_add(1, Relaxed);
            Refusal::until(Guard::Quota, "over the mesh's quota", wait)
        })
    }

    /// What is to be told to the heart, about four times a second.
    pub fn report(&self, id: QuotaId, now: Instant) -> QuotaUse {
        let asked = self.asked.load(Relaxed);
        let more = asked.wrapping_sub(self.reported.swap(asked, Relaxed));
        let since = now.since(Instant(self.reported_us.swap(now.0, Relaxed)));
        let per_s = more as f64 / since.as_secs_f64().max(0.001);
        let believed = f64::from_bits(self.demand.load(Relaxed));
        let demand = believed + (per_s - believed) * BELIEVED;
        self.demand.store(demand.to_bits(), Relaxed);
        let told = f64::from_bits(self.told.load(Relaxed));
        let larger = demand.max(told);
        let told = match (demand - told).abs() > DIFFERS.0 * larger + DIFFERS.1 * larger.sqrt() {
            _ if demand < NOTHING => 0.0,
            true => demand,
            false => told,
        };
        self.told.store(told.to_bits(), Relaxed);
        QuotaUse {
            quota: id,
            limit_milli: self.settings.limit_milli(),
            demand_milli: (told * 1_000.0) as u64,
            hold: Duration::from_millis(self.settings.hold_ms),
        }
    }

    /// Whether anybody has asked for anything lately: a quota that is not used need not be reported.
    pub fn is_used(&self) -> bool {
        self.asked.load(Relaxed) != self.reported.load(Relaxed) || f64::from_bits(self.demand.load(Relaxed)) >= NOTHING
    }

    /// What it is doing; takes nothing.
    pub fn snapshot(&self) -> QuotaSnapshot {
        QuotaSnapshot {
            name: self.name.clone(),
            limit_per_s: self.settings.limit_milli() as f64 / 1e3,
            share_per_s: self.share_milli().0 as f64 / 1e3,
            demand_per_s: f64::from_bits(self.demand.load(Relaxed)),
            asked: self.asked.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Instant {
        Instant(1_000_000_000 + ms * 1_000)
    }

    fn quota(count: u32) -> Quota {
        let settings = QuotaSettings { count, ..QuotaSettings::default() };
        assert_eq!(settings.check(), Ok(()));
        Quota::new(None, &settings, 10)
    }

    #[test]
    fn a_node_allows_its_share_and_no_more() {
        let quota = quota(1_000);
        quota.set_share(Some(0));
        assert!(quota.admit(ms(0)).is_err());
        quota.set_share(Some(100_000));
        let passed = |from: u64, to: u64| (from..to).filter(|at| quota.admit(ms(*at)).is_ok()).count();
        assert_eq!(passed(0, 1_000), 199, "a hundred saved up, and a hundred");
        assert_eq!(passed(1_000, 2_000), 100);
        quota.set_share(Some(10_000));
        assert!(passed(2_000, 4_000) <= 20);
    }

    #[test]
    fn before_it_has_a_share_a_node_allows_an_even_part_without_savings_and_one_call_always() {
        let passed = |count| {
            let quota = quota(count);
            (0..250).filter(|at| quota.admit(ms(*at)).is_ok()).count()
        };
        assert_eq!((passed(1_000), passed(1)), (25, 1), "a tenth for one of ten nodes, for a quarter of a second");
    }

    #[test]
    fn what_is_asked_for_is_measured_whether_it_passes_or_not() {
        let quota = quota(10);
        quota.report(QuotaId(7), ms(0));
        for at in 0..5_000 {
            let _ = quota.admit(ms(at));
            if at % 250 == 249 {
                quota.report(QuotaId(7), ms(at + 1));
            }
        }
        assert!((990.0..1_001.0).contains(&quota.snapshot().demand_per_s), "{:?}", quota.snapshot());
        assert!(quota.is_used());
        (20..100).for_each(|quarter| _ = quota.report(QuotaId(7), ms(quarter * 250)));
        assert!(!quota.is_used());
    }

    #[test]
    fn a_quota_too_fast_or_too_slow_is_refused() {
        let check = |count, per_ms| QuotaSettings { count, per_ms, ..QuotaSettings::default() }.check().is_ok();
        assert!(check(1, 3_600_000) && !check(1, 3_600_001) && check(1_000_000, 1_000) && !check(1_000_001, 1_000));
        assert!(!check(0, 1_000));
    }
}
