//! How long calls take at best: what is above it, they have waited.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::time::Instant;

const SLICES: u64 = 4;
const TIME_MAX: u64 = (1 << 40) - 1;
const SLICE_MAX: u64 = (1 << 24) - 1;

/// The shortest time of the current slice of time and the three before it. A slice is one word: 24 bits of its number
/// (a slice untouched for exactly 16 million slices would be taken for the current one), then microseconds.
#[derive(Debug)]
pub(super) struct Shortest {
    slice_us: u64,
    slices: [AtomicU64; SLICES as usize],
}

impl Shortest {
    /// Of the last `length` (three to four quarters of it).
    pub(super) fn of_the_last(length: Duration) -> Self {
        Self { slice_us: (length.as_micros() as u64 / SLICES).max(1), slices: Default::default() }
    }

    pub(super) fn add(&self, now: Instant, took: Duration) {
        let slice = now.0 / self.slice_us + 1;
        let took = (took.as_micros() as u64).clamp(1, TIME_MAX);
        let word = &self.slices[(slice % SLICES) as usize];
        let shorter = |word| match read(word, slice) {
            Some(known) if known <= took => None,
            _ => Some((slice & SLICE_MAX) << 40 | took),
        };
        // Nothing to change is fine.
        let _ = word.fetch_update(Relaxed, Relaxed, shorter);
    }

    /// Nothing, if nothing was added.
    pub(super) fn shortest(&self, now: Instant) -> Option<Duration> {
        let newest = now.0 / self.slice_us + 1;
        (newest.saturating_sub(SLICES - 1)..=newest)
            .filter_map(|slice| read(self.slices[(slice % SLICES) as usize].load(Relaxed), slice))
            .min()
            .map(Duration::from_micros)
    }
}

fn read(word: u64, slice: u64) -> Option<u64> {
    (word != 0 && word >> 40 == slice & SLICE_MAX).then_some(word & TIME_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_is_forgotten_when_it_is_old() {
        let at = |ms: u64| Instant(ms * 1_000);
        let took = Duration::from_millis;
        let shortest = Shortest::of_the_last(took(400));
        assert_eq!(shortest.shortest(at(0)), None);
        shortest.add(at(0), took(5));
        shortest.add(at(50), took(3));
        shortest.add(at(99), took(9));
        shortest.add(at(250), took(7));
        assert_eq!(shortest.shortest(at(399)), Some(took(3)));
        assert_eq!(shortest.shortest(at(400)), Some(took(7)));
        assert_eq!(shortest.shortest(at(1_000)), None);
    }
}
