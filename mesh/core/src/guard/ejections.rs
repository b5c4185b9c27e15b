//! How many instances of a service may be out at once.
//!
//! Each instance that is taken out sends its share to the others; too many out, and those left are overrun, fail, and
//! follow. So at most a share of a service's instances is out ([`BreakerSettings::max_ejected_percent`]), and a breaker
//! that would be one too many stays closed: its instance gets what its failures leave of its weight, and goes out as soon
//! as another has come back.
//!
//! An instance that does not *answer* carries nothing whichever way it is counted: taking it out adds nothing to the others'
//! load, and leaving it in makes callers wait in vain. It goes out beyond the share unless that is not wished.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use super::breaker::{BreakerSettings, Fault};

/// The places for ejected instances of one service.
#[derive(Debug)]
pub struct Ejections {
    percent: u32,
    spares_silent: bool,
    most: AtomicU32,
    out: AtomicU32,
    spared: AtomicU64,
}

impl Ejections {
    /// Places as these settings give them to a service of one instance.
    pub fn new(settings: &BreakerSettings) -> Self {
        let places = Self {
            percent: settings.max_ejected_percent,
            spares_silent: settings.spare_silent,
            most: AtomicU32::new(0),
            out: AtomicU32::new(0),
            spared: AtomicU64::new(0),
        };
        places.resize(1);
        places
    }

    /// The service has so many instances now. Whoever is out stays out, if there are too many of them by that.
    pub fn resize(&self, instances: usize) {
        let instances = u64::try_from(instances).unwrap_or(u64::MAX);
        let most = instances.saturating_mul(u64::from(self.percent)).div_ceil(100);
        self.most.store(most.min(u64::from(u32::MAX)) as u32, Relaxed);
    }

    /// How many may be out.
    pub fn most(&self) -> u32 {
        self.most.load(Relaxed)
    }

    /// How many are out.
    pub fn out(&self) -> u32 {
        self.out.load(Acquire)
    }

    /// How often one stayed in because too many were out.
    pub fn spared(&self) -> u64 {
        self.spared.load(Relaxed)
    }

    /// Takes a place for one that failed so, if it may be out.
    pub(super) fn take(&self, fault: Fault) -> bool {
        let most = if fault == Fault::Silence && !self.spares_silent { u32::MAX } else { self.most() };
        let more = |out: u32| (out < most).then_some(out + 1);
        let taken = self.out.fetch_update(AcqRel, Acquire, more).is_ok();
        if !taken {
            self.spared.fetch_add(1, Relaxed);
        }
        taken
    }

    /// One is in again, or no more.
    pub(super) fn give_back(&self) {
        self.out.fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::breaker::{Breaker, BreakerState};
    use super::*;
    use crate::time::Instant;

    const NOW: Instant = Instant(1_000_000_000);

    fn settings(max_ejected_percent: u32) -> BreakerSettings {
        BreakerSettings { max_ejected_percent, consecutive_failures: 1, ..BreakerSettings::default() }
    }

    fn service(settings: BreakerSettings, instances: usize) -> (Arc<Ejections>, Vec<Arc<Breaker>>) {
        let places = Arc::new(Ejections::new(&settings));
        places.resize(instances);
        let breaker = |_| Arc::new(Breaker::among(settings, places.clone()));
        (places.clone(), (0..instances).map(breaker).collect())
    }

    fn fails(breaker: &Arc<Breaker>, fault: Fault) -> bool {
        breaker.admit(NOW, false).is_some_and(|permit| permit.fail(fault, NOW, 0))
    }

    #[test]
    fn of_few_instances_one_at_least_may_be_out_and_of_none_percent_none() {
        for (percent, instances, most) in [
            (50, 1, 1),
            (50, 2, 1),
            (50, 3, 2),
            (50, 10, 5),
            (10, 3, 1),
            (10, 10, 1),
            (10, 11, 2),
            (0, 9, 0),
            (100, 7, 7),
        ] {
            assert_eq!(service(settings(percent), instances).0.most(), most, "{percent} % of {instances}");
        }
    }

    #[test]
    fn one_too_many_stays_in_and_goes_out_when_another_has_come_back() {
        let (places, breakers) = service(settings(50), 4);
        assert!(fails(&breakers[0], Fault::Answer) && fails(&breakers[1], Fault::Answer));
        assert!(!fails(&breakers[2], Fault::Answer));
        assert_eq!((breakers[2].state(), places.out(), places.spared()), (BreakerState::Closed, 2, 1));
        let later = NOW + std::time::Duration::from_secs(60);
        assert!(breakers[0].admit(later, false).unwrap().succeed(later));
        assert!(fails(&breakers[2], Fault::Answer));
        assert_eq!(places.out(), 2);
    }

    #[test]
    fn what_does_not_answer_goes_out_beyond_the_share_unless_it_is_to_be_spared() {
        for (spare_silent, out) in [(false, 3), (true, 2)] {
            let (places, breakers) = service(BreakerSettings { spare_silent, ..settings(50) }, 4);
            breakers[..3].iter().for_each(|breaker| _ = fails(breaker, Fault::Silence));
            assert_eq!(places.out(), out);
            assert!(!fails(&breakers[3], Fault::Answer), "those that are silent count as well");
        }
    }

    #[test]
    fn an_instance_that_vanishes_gives_its_place_back() {
        let (places, mut breakers) = service(settings(50), 2);
        assert!(fails(&breakers[0], Fault::Answer));
        breakers.remove(0);
        assert_eq!(places.out(), 0);
    }

    proptest! {
        /// Whatever happens, no more are out than may be, and as many are counted as are out.
        #[test]
        fn never_more_than_the_share_are_out(
            percent in 0u32..=100,
            instances in 1usize..12,
            steps in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..4, 0u64..20_000), 1..200),
        ) {
            let settings = BreakerSettings { spare_silent: true, ..settings(percent) };
            let (places, breakers) = service(settings, instances);
            let mut now = NOW;
            for (which, step, wait_ms) in steps {
                now = now + std::time::Duration::from_millis(wait_ms);
                let breaker = &breakers[which.index(instances)];
                match (step, breaker.admit(now, wait_ms % 2 == 0)) {
                    (0, Some(permit)) => _ = permit.fail(Fault::Silence, now, wait_ms),
                    (1, Some(permit)) => _ = permit.fail(Fault::Answer, now, wait_ms),
                    (2, Some(permit)) => _ = permit.succeed(now),
                    (_, permit) => drop(permit),
                }
                let out = breakers.iter().filter(|breaker| breaker.state() != BreakerState::Closed).count();
                prop_assert_eq!(places.out() as usize, out);
                prop_assert!(out <= (instances * percent as usize).div_ceil(100));
            }
        }
    }
}
