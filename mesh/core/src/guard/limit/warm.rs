//! A rate that grows while it is used: Sentinel's warm-up, itself Guava's `SmoothWarmingUp`.
//!
//! Tokens are stored while the limit is idle and taken away by traffic, once a second. Many tokens mean cold: above the
//! *warning line* a call costs more time the more tokens there are, `cold_factor` times as much with the most. With
//! c calls a second, a warm-up of w seconds and a cold factor of f:
//!
//! ```text
//! warning = w * c / (f - 1)      most = warning + 2 * w * c / (1 + f)
//! time per call = 1/c + (stored - warning) * (f - 1) / c / (most - warning)     above the line, 1/c below it
//! ```
//!
//! Tokens come in at c a second below the line; above it only while fewer than c / f calls a second pass.

use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use super::bucket::Rate;
use super::settings::LimitSettings;
use crate::time::Instant;

#[derive(Debug)]
pub(super) struct WarmUp {
    /// Calls a second when warm.
    per_s: f64,
    cold_factor: f64,
    warning: f64,
    most: f64,
    /// `f64` bits; changed by whoever moves `second` on.
    stored: AtomicU64,
    /// The second it was changed in last.
    second: AtomicU64,
    /// Calls that passed since.
    passed: AtomicU64,
    /// What a call costs now, in nanoseconds.
    interval_ns: AtomicU64,
}

impl WarmUp {
    /// A cold one.
    pub(super) fn new(settings: &LimitSettings) -> Self {
        let per_s = f64::from(settings.count) * 1_000.0 / settings.per_ms as f64;
        let cold_factor = f64::from(settings.cold_factor);
        let warm_up_s = settings.warm_up_ms as f64 / 1_000.0;
        let warning = warm_up_s * per_s / (cold_factor - 1.0);
        let most = warning + 2.0 * warm_up_s * per_s / (1.0 + cold_factor);
        let warm_up = Self {
            per_s,
            cold_factor,
            warning,
            most,
            stored: AtomicU64::new(most.to_bits()),
            second: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            interval_ns: AtomicU64::new(0),
        };
        warm_up.price(most);
        warm_up
    }

    /// What is allowed now.
    pub(super) fn rate(&self, now: Instant, warm: Rate) -> Rate {
        self.settle(now);
        warm.slowed(self.interval_ns.load(Relaxed).max(warm.interval_ns))
    }

    pub(super) fn pass(&self, cost: u32) {
        self.passed.fetch_add(cost.into(), Relaxed);
    }

    /// Calls a second allowed now.
    pub(super) fn per_s(&self) -> f64 {
        1e9 / self.interval_ns.load(Relaxed).max(1) as f64
    }

    /// Once a second: puts tokens in and takes out what has passed.
    fn settle(&self, now: Instant) {
        let second = now.0 / 1_000_000;
        let before = self.second.load(Acquire);
        if second <= before || self.second.compare_exchange(before, second, AcqRel, Acquire).is_err() {
            return;
        }
        let passed = self.passed.swap(0, Relaxed) as f64;
        let seconds = second - before;
        let passed_per_s = passed / seconds as f64;
        let stored = f64::from_bits(self.stored.load(Relaxed));
        let fills = stored < self.warning || passed_per_s < self.per_s / self.cold_factor;
        let filled = if fills { seconds as f64 * self.per_s } else { 0.0 };
        let stored = ((stored - passed).max(0.0) + filled).min(self.most);
        self.stored.store(stored.to_bits(), Relaxed);
        self.price(stored);
    }

    fn price(&self, stored: f64) {
        let above = (stored - self.warning).max(0.0);
        let slope = (self.cold_factor - 1.0) / self.per_s / (self.most - self.warning);
        self.interval_ns.store(((above * slope + 1.0 / self.per_s) * 1e9).ceil() as u64, Relaxed);
    }
}
