//! How long answers usually take, as a quantile in one word.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// By how much one answer moves the estimate, times the quantile above it and its complement below: it comes to rest
/// where as many answers push up as down. A hundred answers move it by a factor of ten at most; noise is some percent.
const STEP: f32 = 0.05;
/// Answers until the estimate is believed.
const ENOUGH: u32 = 20;

/// An estimate of one quantile of latencies, which follows them as they change (stochastic approximation).
#[derive(Debug, Default)]
pub struct Quantile {
    micros: AtomicU32,
    seen: AtomicU32,
}

impl Quantile {
    /// An answer took so long; `percent` is the quantile that is wanted.
    pub fn observe(&self, percent: u32, took: Duration) {
        let sample = took.as_secs_f32() * 1e6;
        let known = f32::from_bits(self.micros.load(Relaxed));
        let share = percent as f32 / 100.0;
        let moved = if self.seen.load(Relaxed) == 0 {
            sample
        } else if sample > known {
            known * (1.0 + STEP * share)
        } else {
            known * (1.0 - STEP * (1.0 - share))
        };
        // A race loses one of two answers, which an estimate does not mind.
        self.micros.store(moved.max(1.0).to_bits(), Relaxed);
        if self.seen.load(Relaxed) < ENOUGH {
            self.seen.fetch_add(1, Relaxed);
        }
    }

    /// An answer was not waited for any longer than this: where that is above the estimate, so is the answer; else it
    /// says nothing.
    pub fn observe_at_least(&self, percent: u32, took: Duration) {
        if self.get().is_some_and(|known| took > known) {
            self.observe(percent, took);
        }
    }

    /// The estimate, when enough has been seen.
    pub fn get(&self) -> Option<Duration> {
        let known = f32::from_bits(self.micros.load(Relaxed));
        (self.seen.load(Relaxed) >= ENOUGH).then(|| Duration::from_secs_f32(known / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_sink_where_no_slow_answer_is_waited_for() {
        let quantile = Quantile::default();
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..10_000 {
            let took = Duration::from_micros(rng.u64(0..1_000));
            // Whoever is slower than the estimate is overtaken, and given up a little later.
            let given_up = quantile.get().map(|known| known + Duration::from_micros(1)).filter(|up| took > *up);
            match given_up {
                Some(given_up) => quantile.observe_at_least(95, given_up),
                None => quantile.observe(95, took),
            }
        }
        let found = quantile.get().unwrap().as_micros();
        assert!((800..=1_100).contains(&found), "{found}");
    }

    #[test]
    fn it_finds_its_quantile_and_follows_it() {
        let quantile = Quantile::default();
        let mut rng = fastrand::Rng::with_seed(4);
        assert_eq!(quantile.get(), None);
        for scale in [1_000, 20_000] {
            for _ in 0..5_000 {
                quantile.observe(95, Duration::from_micros(rng.u64(0..scale)));
            }
            let found = quantile.get().unwrap().as_micros() as u64;
            assert!((scale * 80 / 100..=scale * 110 / 100).contains(&found), "{found} of {scale}");
        }
    }
}
