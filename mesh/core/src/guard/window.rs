//! Counts over the last ten seconds, in one atomic word per second.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::time::Instant;

/// The window's length: Hystrix's and Finagle's rolling windows are 10 s, cut into seconds.
pub(crate) const WINDOW_S: u64 = 10;

const COUNT_BITS: u32 = 20;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const SECOND_MAX: u64 = (1 << 24) - 1;

/// Two counts per second (all, and those marked), each saturating at a million. A word is 24 bits of the second it
/// belongs to (so a bucket from an earlier lap is recognised; 24 bits repeat after 194 days), then the two counts.
#[derive(Debug, Default)]
pub(crate) struct Window {
    seconds: [AtomicU64; WINDOW_S as usize],
}

impl Window {
    /// Adds to the current second.
    pub(crate) fn add(&self, now: Instant, all: u64, marked: u64) {
        let second = second(now);
        let bucket = &self.seconds[(second % WINDOW_S) as usize];
        // The closure always returns Some, so the update always happens.
        let _ = bucket.fetch_update(Relaxed, Relaxed, |word| {
            let (held, old_all, old_marked) = unpack(word);
            let (old_all, old_marked) = if held == tag(second) { (old_all, old_marked) } else { (0, 0) };
            Some(pack(tag(second), (old_all + all).min(COUNT_MAX), (old_marked + marked).min(COUNT_MAX)))
        });
    }

    /// The sums over the window: all, and those marked.
    pub(crate) fn sum(&self, now: Instant) -> (u64, u64) {
        let newest = second(now);
        let oldest = newest.saturating_sub(WINDOW_S - 1);
        (oldest..=newest).fold((0, 0), |(all, marked), second| {
            let (held, a, m) = unpack(self.seconds[(second % WINDOW_S) as usize].load(Relaxed));
            if held == tag(second) { (all + a, marked + m) } else { (all, marked) }
        })
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        for bucket in &self.seconds {
            bucket.store(0, Relaxed);
        }
    }
}

/// Seconds since the origin, from 1: an untouched word (0) must not look like second 0.
fn second(now: Instant) -> u64 {
    now.0 / 1_000_000 + 1
}

fn tag(second: u64) -> u64 {
    second & SECOND_MAX
}

fn pack(tag: u64, all: u64, marked: u64) -> u64 {
    tag << (2 * COUNT_BITS) | all << COUNT_BITS | marked
}

fn unpack(word: u64) -> (u64, u64, u64) {
    (word >> (2 * COUNT_BITS), (word >> COUNT_BITS) & COUNT_MAX, word & COUNT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Instant {
        Instant((seconds * 1e6) as u64)
    }

    #[test]
    fn what_is_older_than_ten_seconds_is_forgotten() {
        let window = Window::default();
        window.add(at(0.0), 5, 1);
        window.add(at(9.5), 2, 2);
        assert_eq!(window.sum(at(9.9)), (7, 3));
        assert_eq!(window.sum(at(10.0)), (2, 2));
        assert_eq!(window.sum(at(60.0)), (0, 0));
        window.add(at(20.0), 1, 0);
        assert_eq!(window.sum(at(20.0)), (1, 0));
    }

    #[test]
    fn counts_saturate_instead_of_spilling_into_each_other() {
        let window = Window::default();
        window.add(at(1.0), 10_000_000, 10_000_000);
        window.add(at(1.0), 1, 1);
        assert_eq!(window.sum(at(1.0)), (COUNT_MAX, COUNT_MAX));
    }
}
