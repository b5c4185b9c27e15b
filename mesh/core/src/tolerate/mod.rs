//! Tolerating failed attempts: how one request becomes several, when, and what the caller gets when they fail.

mod failback;
mod quantile;
mod settings;

pub use failback::{Backlog, FailbackCounts, FailbackSettings, Failed, LineSnapshot, Waiting};
pub use quantile::Quantile;
pub use settings::{HedgeSettings, Mode, RetrySettings, TolerateSettings};
