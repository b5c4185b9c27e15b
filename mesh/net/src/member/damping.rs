//! How often somebody has gone lately, and how long it has to stay before it is believed again.
//!
//! A node behind a bad cable, or one that is killed and started in a circle, comes and goes. Each return would put its
//! instances back into traffic for some seconds. As with routes (RFC 2439), every departure adds to a penalty that halves
//! with time; while it is high, a return counts only after the node has stayed. One or two departures cost nothing: a
//! partition that heals is healed at once.

use std::time::Duration;

use tokio::time::Instant;

/// In this time the penalty halves.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Departures within a minute or so that cost nothing.
const FREE: f64 = 2.5;
/// How long the first one too many has to stay; each further one doubles it.
const FIRST_HOLD: Duration = Duration::from_secs(5);
/// The longest.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Damping {
    penalty: f64,
    at: Option<Instant>,
}

impl Damping {
    /// It has gone.
    pub(super) fn went(&mut self, now: Instant) {
        self.penalty = self.penalty(now) + 1.0;
        self.at = Some(now);
    }

    /// Whether its return, which has lasted since then, does not count yet.
    pub(super) fn holds(&self, now: Instant, since: Instant) -> bool {
        let penalty = self.penalty(since);
        if penalty < FREE {
            return false;
        }
        let hold = FIRST_HOLD.mul_f64((penalty - FREE).exp2()).min(LONGEST_HOLD);
        now.duration_since(since) < hold
    }

    fn penalty(&self, now: Instant) -> f64 {
        let Some(at) = self.at else { return 0.0 };
        let halvings = now.duration_since(at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.penalty * (-halvings).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_goes_once_or_twice_is_back_at_once() {
        let (mut damping, now) = (Damping::default(), Instant::now());
        for departure in 1..3 {
            damping.went(now + SECOND * departure);
            assert!(!damping.holds(now + SECOND * departure, now + SECOND * departure));
        }
    }

    #[test]
    fn who_comes_and_goes_has_to_stay_ever_longer_but_not_for_ever() {
        let (mut damping, mut now) = (Damping::default(), Instant::now());
        let mut holds = Vec::new();
        for _ in 0..20 {
            now += SECOND * 10;
            damping.went(now);
            holds.push((0..100).take_while(|second| damping.holds(now + SECOND * *second, now)).count());
        }
        assert_eq!(holds[..2], [0, 0]);
        assert!(holds.is_sorted() && holds[19] == 30, "{holds:?}");
        assert!(!damping.holds(now + SECOND * 240, now + SECOND * 240), "forgiven after some minutes");
    }
}
