//! What can be set about limits of concurrency with a queue.

use serde::{Deserialize, Serialize};

use super::super::refusal::{Invalid, all_within};

/// So many calls at once. Durations are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BulkheadSettings {
    /// Calls at once. 1 to 1,000,000; default 1,024 (Envoy's max_requests).
    pub max_concurrent: u32,
    /// Those that wait for a place.
    pub queue: QueueSettings,
}

/// A queue before a limit of concurrency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// The most that wait. 0 to 100,000; default 0: what finds no place is refused (resilience4j's maxWaitDuration 0).
    pub max_queue: u32,
    /// How long each waits at most. 1 to 60,000; default 500.
    pub max_wait_ms: u64,
    /// Whose turn it is. Default `fifo`.
    pub order: QueueOrder,
    /// With `adaptive`: how long somebody may have waited while the queue does not become empty. 1 to `interval_ms`;
    /// default 5 (Facebook).
    pub target_ms: u64,
    /// With `adaptive`: how long the queue may be without becoming empty before that is overload. 1 to 60,000; default
    /// 100 (Facebook).
    pub interval_ms: u64,
}

/// Whose turn it is in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueOrder {
    /// First come, first served.
    #[default]
    Fifo,
    /// The same until there is overload, then the newest first, and who is late is turned away.
    Adaptive,
}

impl Default for BulkheadSettings {
    fn default() -> Self {
        Self { max_concurrent: 1_024, queue: QueueSettings::default() }
    }
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { max_queue: 0, max_wait_ms: 500, order: QueueOrder::Fifo, target_ms: 5, interval_ms: 100 }
    }
}

impl BulkheadSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        all_within([("max_concurrent", self.max_concurrent.into(), 1..=1_000_000)])?;
        self.queue.check().map_err(|invalid| invalid.under("queue"))
    }
}

impl QueueSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        all_within([
            ("max_queue", self.max_queue.into(), 0..=100_000),
            ("max_wait_ms", self.max_wait_ms, 1..=60_000),
            ("interval_ms", self.interval_ms, 1..=60_000),
            ("target_ms", self.target_ms, 1..=self.interval_ms),
        ])
    }
}
