//! What protects callers and instances from each other. Each guard is pure: time and randomness are passed in, state
//! is a few atomics, and no decision takes a lock.
//!
//! | Guard | Protects |
//! |---|---|
//! | [`breaker`] | callers from an instance that fails, and the instance from more load |
//! | [`budget`] | a service from a storm of retries |

pub mod breaker;
pub mod budget;
mod window;

pub use breaker::{Breaker, BreakerSettings, BreakerState, Fault, Permit};
pub use budget::{BudgetSettings, RetryBudget};
