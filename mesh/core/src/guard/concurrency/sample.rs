//! The times of the calls that ended lately, until somebody draws a conclusion from them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::super::striped::Striped;

/// Eight buckets for each doubling, from 16 microseconds to 70 seconds: a median is wrong by a twelfth at most.
const PER_OCTAVE: u32 = 8;
const LOWEST_OCTAVE: u32 = 4;
const OCTAVES: u32 = 22;
const PLACES: usize = (PER_OCTAVE * OCTAVES) as usize;

/// Filled by many, emptied by one.
#[derive(Debug, Default)]
pub(super) struct Sample(Striped<Stripe>);

/// What some threads have filled in.
#[derive(Debug)]
struct Stripe {
    count: AtomicU32,
    sum_us: AtomicU64,
    /// The most calls at once.
    most: AtomicU32,
    buckets: [AtomicU32; PLACES],
}

impl Default for Stripe {
    fn default() -> Self {
        let buckets = std::array::from_fn(|_| AtomicU32::new(0));
        Self { count: AtomicU32::new(0), sum_us: AtomicU64::new(0), most: AtomicU32::new(0), buckets }
    }
}

/// What a sample says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Drawn {
    pub(super) count: u32,
    pub(super) mean_us: f64,
    pub(super) median_us: f64,
    pub(super) most: u32,
}

impl Sample {
    /// A call took so long, while so many were out.
    pub(super) fn add(&self, took: Duration, at_once: u32) {
        let us = took.as_micros() as u64;
        let own = self.0.own();
        own.buckets[place(us)].fetch_add(1, Relaxed);
        own.sum_us.fetch_add(us, Relaxed);
        if own.most.load(Relaxed) < at_once {
            own.most.fetch_max(at_once, Relaxed);
        }
        own.count.fetch_add(1, Relaxed);
    }

    pub(super) fn count(&self) -> u32 {
        self.0.all().map(|stripe| stripe.count.load(Relaxed)).sum()
    }

    /// Takes out what is in it. A call that ends meanwhile may be split between this sample and the next.
    pub(super) fn draw(&self) -> Drawn {
        let count: u32 = self.0.all().map(|stripe| stripe.count.swap(0, Relaxed)).sum();
        let sum_us: u64 = self.0.all().map(|stripe| stripe.sum_us.swap(0, Relaxed)).sum();
        let most = self.0.all().map(|stripe| stripe.most.swap(0, Relaxed)).max().unwrap_or(0);
        let mut left = count.div_ceil(2);
        let mut median_us = None;
        for place in 0..PLACES {
            let filled = self.0.all().map(|stripe| &stripe.buckets[place]).filter(|bucket| bucket.load(Relaxed) > 0);
            let held: u32 = filled.map(|bucket| bucket.swap(0, Relaxed)).sum();
            left = left.saturating_sub(held);
            if held > 0 && left == 0 && median_us.is_none() {
                median_us = Some(middle(place));
            }
        }
        let mean_us = sum_us as f64 / f64::from(count.max(1));
        Drawn { count, mean_us, median_us: median_us.unwrap_or(mean_us), most }
    }
}

fn place(us: u64) -> usize {
    let us = us.max(1 << LOWEST_OCTAVE);
    let octave = us.ilog2();
    let within = (us >> (octave - 3)) as u32 & (PER_OCTAVE - 1);
    ((octave - LOWEST_OCTAVE) * PER_OCTAVE + within).min(PER_OCTAVE * OCTAVES - 1) as usize
}

fn middle(place: usize) -> f64 {
    let (octave, within) = (place as u32 / PER_OCTAVE + LOWEST_OCTAVE, place as u32 % PER_OCTAVE);
    (1u64 << octave) as f64 * (1.0 + (f64::from(within) + 0.5) / f64::from(PER_OCTAVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_right_within_a_twelfth() {
        let sample = Sample::default();
        for us in [20u64, 100, 1_000, 3_333, 65_535, 1_000_000, 50_000_000] {
            (0..3).for_each(|_| sample.add(Duration::from_micros(us), 7));
            sample.add(Duration::ZERO, 1);
            sample.add(Duration::from_secs(3_600), 1);
            let drawn = sample.draw();
            assert!((drawn.median_us / us as f64 - 1.0).abs() < 1.0 / 12.0, "{us}: {drawn:?}");
            assert_eq!((drawn.count, drawn.most, sample.count()), (5, 7, 0));
        }
    }
}
