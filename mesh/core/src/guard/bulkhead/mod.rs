//! A fixed limit of concurrency: what one service, route or caller may take at most of what all share.

mod settings;
mod turnstile;

use std::sync::Arc;
use std::time::Duration;

use super::refusal::{Guard, Refusal};
use crate::time::Instant;
pub use settings::{BulkheadSettings, QueueOrder, QueueSettings};
pub(super) use turnstile::Turnstile;
pub use turnstile::{Admission, Pass, TurnstileSnapshot, Waiting};

/// A limit of concurrency with a bounded queue before it.
#[derive(Debug)]
pub struct Bulkhead {
    turnstile: Arc<Turnstile>,
    max_wait: Duration,
}

impl Bulkhead {
    /// An empty one.
    pub fn new(settings: &BulkheadSettings) -> Self {
        Self {
            turnstile: Arc::new(Turnstile::new(Guard::Bulkhead, settings.max_concurrent, settings.queue)),
            max_wait: Duration::from_millis(settings.queue.max_wait_ms),
        }
    }

    /// Admits a call, lets it wait, or refuses it.
    ///
    /// # Errors
    /// A refusal: it is full, and so is its queue. When that ends nobody knows.
    pub fn admit(&self, now: Instant) -> Result<Admission, Refusal> {
        self.turnstile.enter(now)
    }

    /// How long a call may wait.
    pub fn max_wait(&self) -> Duration {
        self.max_wait
    }

    /// What it is doing; takes nothing.
    pub fn snapshot(&self) -> TurnstileSnapshot {
        self.turnstile.snapshot()
    }
}

#[cfg(test)]
mod tests;
