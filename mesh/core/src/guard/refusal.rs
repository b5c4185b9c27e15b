//! What a guard says when it says no, and what is wrong with settings.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which guard spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// Black and white lists of callers.
    List,
    /// This host: load, CPU, requests in flight.
    System,
    /// Shedding by criticality, by queueing time.
    Shed,
    /// A quota of the whole mesh.
    Quota,
    /// A rate limit of this node.
    Rate,
    /// A circuit breaker.
    Breaker,
    /// A limit of concurrency that adapts.
    Concurrency,
    /// A fixed limit of concurrency.
    Bulkhead,
    /// An idempotency key.
    Idempotency,
}

impl Guard {
    /// All of them.
    pub const ALL: [Guard; 9] = [
        Self::List,
        Self::System,
        Self::Shed,
        Self::Quota,
        Self::Rate,
        Self::Breaker,
        Self::Concurrency,
        Self::Bulkhead,
        Self::Idempotency,
    ];

    /// Its name in headers, metrics and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::System => "system",
            Self::Shed => "shed",
            Self::Quota => "quota",
            Self::Rate => "rate",
            Self::Breaker => "breaker",
            Self::Concurrency => "concurrency",
            Self::Bulkhead => "bulkhead",
            Self::Idempotency => "idempotency",
        }
    }
}

/// A guard's no. Small and without memory of its own: under overload, refusing must be the cheapest thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Who refused.
    pub guard: Guard,
    /// Why, in a few words of a closed set: a label for counters.
    pub reason: &'static str,
    /// When asking again may help, if that can be computed.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal of which nobody knows when it ends.
    pub fn new(guard: Guard, reason: &'static str) -> Self {
        Self { guard, reason, retry_after: None }
    }

    /// A refusal that ends by itself.
    pub fn until(guard: Guard, reason: &'static str, retry_after: Duration) -> Self {
        Self { guard, reason, retry_after: Some(retry_after) }
    }

    /// What callers are told of it beside the guard's name.
    pub fn told(&self, rule: &str) -> String {
        format!("{} (rule {rule})", self.reason)
    }

    /// For `Retry-After`: whole seconds, rounded up, at least one.
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after.map(|after| (after.as_millis().div_ceil(1_000) as u64).max(1))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.guard.name(), self.reason)?;
        match self.retry_after {
            Some(after) => write!(f, "; retry after {} ms", after.as_micros().div_ceil(1_000)),
            None => Ok(()),
        }
    }
}

/// A setting out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, allowed are {allowed}")]
pub struct Invalid {
    /// The field, with the sections it is in: `limit[2].count`.
    pub field: String,
    /// What it is.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

impl Invalid {
    /// A value that is not what it may be.
    pub fn new(field: &str, value: impl fmt::Display, allowed: impl fmt::Display) -> Self {
        Self { field: field.to_owned(), value: value.to_string(), allowed: allowed.to_string() }
    }

    /// The same, seen from outside the section.
    pub fn under(mut self, section: &str) -> Self {
        self.field = format!("{section}.{}", self.field);
        self
    }
}

/// Whether a number is in its range.
pub(super) fn within(field: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), Invalid> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Invalid::new(field, value, format_args!("{} to {}", range.start(), range.end())))
}

/// Whether all of them are.
pub(crate) fn all_within<const N: usize>(fields: [(&str, u64, RangeInclusive<u64>); N]) -> Result<(), Invalid> {
    fields.into_iter().try_for_each(|(field, value, range)| within(field, value, range))
}

/// How a call that was let through ended, as a guard needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Success,
    /// In a way the callee answers for.
    Failure,
    /// In a way that says nothing of the callee: cancelled by its caller, or of a kind the settings ignore.
    Ignored,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_guard_the_reason_and_when_to_come_back() {
        let refusal = Refusal::until(Guard::Rate, "over the limit", Duration::from_micros(1_200_001));
        assert_eq!(refusal.to_string(), "rate: over the limit; retry after 1201 ms");
        assert_eq!(refusal.retry_after_s(), Some(2));
        assert_eq!(Refusal::until(Guard::Rate, "", Duration::ZERO).retry_after_s(), Some(1));
        assert_eq!(Refusal::new(Guard::Bulkhead, "full").retry_after_s(), None);
    }

    #[test]
    fn a_bad_setting_names_field_value_and_bounds() {
        let invalid = within("count", 0, 1..=9).unwrap_err().under("limit[2]");
        assert_eq!(invalid.to_string(), "limit[2].count is 0, allowed are 1 to 9");
    }
}
