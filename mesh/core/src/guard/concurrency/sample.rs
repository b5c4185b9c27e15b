//! The times of the calls that ended lately, until somebody draws a conclusion from them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Eight buckets for each doubling, from 16 microseconds to 70 seconds: a median is wrong by a twelfth at most.
const PER_OCTAVE: u32 = 8;
const LOWEST_OCTAVE: u32 = 4;
const OCTAVES: u32 = 22;

/// Filled by many, emptied by one.
#[derive(Debug)]
pub(super) struct Sample {
    count: AtomicU32,
    sum_us: AtomicU64,
    /// The most calls at once.
    most: AtomicU32,
    buckets: [AtomicU32; (PER_OCTAVE * OCTAVES) as usize],
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
    pub(super) fn new() -> Self {
        let buckets = std::array::from_fn(|_| AtomicU32::new(0));
        Self { count: AtomicU32::new(0), sum_us: AtomicU64::new(0), most: AtomicU32::new(0), buckets }
    }

    /// A call took so long, while so many were out.
    pub(super) fn add(&self, took: Duration, at_once: u32) {
        let us = took.as_micros() as u64;
        self.buckets[place(us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
        if self.most.load(Relaxed) < at_once {
            self.most.fetch_max(at_once, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
    }

    pub(super) fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// Takes out what is in it. A call that ends meanwhile may be split between this sample and the next.
    pub(super) fn draw(&self) -> Drawn {
        let count = self.count.swap(0, Relaxed);
        let sum_us = self.sum_us.swap(0, Relaxed);
        let most = self.most.swap(0, Relaxed);
        let mut left = count.div_ceil(2);
        let mut median_us = None;
        for (place, bucket) in self.buckets.iter().enumerate() {
            if bucket.load(Relaxed) > 0 {
                let held = bucket.swap(0, Relaxed);
                left = left.saturating_sub(held);
                if left == 0 && median_us.is_none() {
                    median_us = Some(middle(place));
                }
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
        let sample = Sample::new();
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
