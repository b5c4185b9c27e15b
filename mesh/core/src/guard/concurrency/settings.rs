//! What can be set about a limit of concurrency that adapts.

use serde::{Deserialize, Serialize};

use super::super::bulkhead::QueueSettings;
use super::super::refusal::{Invalid, all_within};

/// As many calls at once as the callee can do without making them wait. Durations are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConcurrencySettings {
    /// By which law the limit changes. Default `queueing`.
    pub law: Law,
    /// The limit to begin with. `min` to `max`; default 20 (Netflix).
    pub initial: u32,
    /// The lowest limit. 1 to 1,000,000; default 3 (Envoy).
    pub min: u32,
    /// The highest limit. `min` to 1,000,000; default 1,000 (Envoy).
    pub max: u32,
    /// How often the limit changes at most. 10 to 60,000; default 100 (Envoy).
    pub window_ms: u64,
    /// Calls that must have ended before it changes. 1 to 100,000; default 10 (Netflix).
    pub window_calls: u32,
    /// How long calls may wait at the callee, with `queueing`: mean time above the shortest time known. 1 to 60,000;
    /// default 20 (DAGOR).
    pub target_ms: u64,
    /// By how much the time of calls may be above the shortest, with `gradient`, and above the usual, with `gradient2`,
    /// in percent. 0 to 1,000; default 50 (Netflix's tolerance of 1.5; Envoy's buffer is 25).
    pub tolerance_percent: u32,
    /// How often the shortest time is measured anew, with `queueing` and `gradient`: with the lowest limit, for
    /// `measure_calls` calls. 1,000 to 86,400,000; default 60,000 (Envoy). It is not, if so little was going on meanwhile
    /// that it was measured in passing.
    pub measure_every_ms: u64,
    /// By how much of that the next measurement is put off, at random, so that not all nodes measure at once, in
    /// percent. 0 to 100; default 15 (Envoy).
    pub measure_jitter_percent: u32,
    /// Calls a measurement takes. 1 to 10,000; default 50 (Envoy).
    pub measure_calls: u32,
    /// Those that wait for a place. With `order = "adaptive"`, as Facebook's adaptive LIFO with CoDel.
    pub queue: QueueSettings,
}

/// How a limit changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Law {
    /// Grows while calls wait less than a target at the callee, shrinks in proportion to how much more they wait.
    #[default]
    Queueing,
    /// Envoy's: in proportion to shortest time over median time.
    Gradient,
    /// Netflix's Gradient2: in proportion to usual time over recent time; knows no shortest time and measures none.
    Gradient2,
}

impl Default for ConcurrencySettings {
    fn default() -> Self {
        Self {
            law: Law::Queueing,
            initial: 20,
            min: 3,
            max: 1_000,
            window_ms: 100,
            window_calls: 10,
            target_ms: 20,
            tolerance_percent: 50,
            measure_every_ms: 60_000,
            measure_jitter_percent: 15,
            measure_calls: 50,
            queue: QueueSettings::default(),
        }
    }
}

impl ConcurrencySettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        all_within([
            ("min", self.min.into(), 1..=1_000_000),
            ("max", self.max.into(), self.min.into()..=1_000_000),
            ("initial", self.initial.into(), self.min.into()..=self.max.into()),
            ("window_ms", self.window_ms, 10..=60_000),
            ("window_calls", self.window_calls.into(), 1..=100_000),
            ("target_ms", self.target_ms, 1..=60_000),
            ("tolerance_percent", self.tolerance_percent.into(), 0..=1_000),
            ("measure_every_ms", self.measure_every_ms, 1_000..=86_400_000),
            ("measure_jitter_percent", self.measure_jitter_percent.into(), 0..=100),
            ("measure_calls", self.measure_calls.into(), 1..=10_000),
        ])?;
        self.queue.check().map_err(|invalid| invalid.under("queue"))
    }
}
