//! The settings a policy has, and their ranges. A layer sets as many of them as it likes; see `layers`.

use serde::{Deserialize, Serialize};

use toml::{Table, Value};

use crate::guard::{BreakerSettings, BudgetSettings};

/// All sections of a policy, filled in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sections {
    /// How long things may take.
    pub timeouts: Timeouts,
    /// When a request is sent once more.
    pub retry: RetryPolicy,
    /// When an instance is taken out because its answers fail. Of the service as a whole: a route cannot set it.
    pub breaker: BreakerSettings,
}

/// `[timeouts]`. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// How long a request may take, retries included, until its response begins. 1 to 3,600,000; default 30,000.
    pub request_ms: u64,
    /// How long connecting to an instance may take. 1 to 60,000; default 1,000.
    pub connect_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { request_ms: 30_000, connect_ms: 1_000 }
    }
}

/// `[retry]`: when a request is sent once more. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// The most retries of one request. 0 to 10; default 2.
    pub max_retries: u32,
    /// The wait before the first retry is random up to this, before the second up to three times this, and so on.
    /// 0 to 10,000; default 25.
    pub backoff_ms: u64,
    /// How much of the traffic may be retries. Of the service as a whole: a route cannot set it.
    pub budget: BudgetSettings,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_retries: 2, backoff_ms: 25, budget: BudgetSettings::default() }
    }
}

impl Sections {
    /// The sections' names, in the order of this struct.
    pub const NAMES: [&str; 3] = ["timeouts", "retry", "breaker"];
    /// What a route cannot set, and why.
    pub(super) const WHOLE_SERVICE: [(&str, &str); 2] = [
        ("breaker", "an instance is in or out for all requests"),
        ("retry.budget", "all requests of a service share one budget"),
    ];

    /// What differs from the defaults, as a layer: whatever nobody has set keeps the program as its origin.
    pub fn beside_defaults(&self) -> Table {
        // Settings of ours always become tables.
        let mut table = Table::try_from(self).unwrap_or_default();
        difference(&mut table, &Table::try_from(Self::default()).unwrap_or_default());
        table
    }

    /// The first field out of its range: its path, and a sentence with what is allowed.
    pub fn out_of_range(&self) -> Option<(&'static str, String)> {
        let hour_ms = 3_600_000;
        let (breaker, budget) = (&self.breaker, &self.retry.budget);
        let ranges = [
            ("timeouts.request_ms", self.timeouts.request_ms, 1, hour_ms),
            ("timeouts.connect_ms", self.timeouts.connect_ms, 1, 60_000),
            ("retry.max_retries", u64::from(self.retry.max_retries), 0, 10),
            ("retry.backoff_ms", self.retry.backoff_ms, 0, 10_000),
            ("retry.budget.percent", u64::from(budget.percent), 0, 1_000),
            ("retry.budget.floor_per_s", u64::from(budget.floor_per_s), 0, 10_000),
            ("breaker.consecutive_failures", u64::from(breaker.consecutive_failures), 1, u64::from(u32::MAX)),
            ("breaker.failure_percent", u64::from(breaker.failure_percent), 1, 100),
            ("breaker.min_calls", u64::from(breaker.min_calls), 1, u64::from(u32::MAX)),
            ("breaker.open_ms", breaker.open_ms, 100, 600_000),
            ("breaker.max_open_ms", breaker.max_open_ms, breaker.open_ms, hour_ms),
            ("breaker.probe_wait_ms", breaker.probe_wait_ms, 100, 600_000),
        ];
        let (field, value, min, max) = ranges.into_iter().find(|(_, value, min, max)| !(min..=max).contains(&value))?;
        Some((field, format!("is {value}; allowed are {min} to {max}")))
    }
}

/// Leaves only what differs.
fn difference(table: &mut Table, defaults: &Table) {
    table.retain(|key, value| match (value, defaults.get(key)) {
        (Value::Table(inner), Some(Value::Table(default))) => {
            difference(inner, default);
            !inner.is_empty()
        }
        (value, default) => Some(&*value) != default,
    });
}
