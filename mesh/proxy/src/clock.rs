//! The rim's clock and dice: read here, passed to the pure heart.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use starling_core::time::Instant;

/// A monotonic clock in the heart's units.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(tokio::time::Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(tokio::time::Instant::now())
    }

    pub(crate) fn now(self) -> Instant {
        self.at(tokio::time::Instant::now())
    }

    /// What it shows at a moment that has been read already: a request reads the clock where it waits, and nowhere else.
    pub(crate) fn at(self, moment: tokio::time::Instant) -> Instant {
        Instant(moment.saturating_duration_since(self.0).as_micros() as u64)
    }
}

/// Microseconds since the Unix epoch, by this machine's clock.
pub(crate) fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

thread_local! {
    // RandomState draws its keys from the operating system, so no two threads or machines share a sequence.
    static DICE: RefCell<fastrand::Rng> = RefCell::new(fastrand::Rng::with_seed(RandomState::new().hash_one(0)));
}

/// Runs `f` with this thread's generator.
pub(crate) fn with_dice<R>(f: impl FnOnce(&mut fastrand::Rng) -> R) -> R {
    DICE.with_borrow_mut(f)
}

/// A random number.
pub(crate) fn random() -> u64 {
    with_dice(|dice| dice.u64(..))
}
