//! What is done about an attempt that fails, as it is written in a document.

use serde::{Deserialize, Serialize};

use crate::guard::BudgetSettings;
use crate::ranges::within;
use crate::tolerate::FailbackSettings;

/// How one request becomes attempts, and what the caller gets when they fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TolerateSettings {
    /// In which way; default `failover`.
    pub mode: Mode,
    /// With `forking`: how many instances are asked at once. 2 to 8; default 2 (Dubbo).
    pub forks: u32,
    /// With `broadcast`: the request fails when at least so many percent of the instances fail. 1 to 100; default 100,
    /// when all fail. With 1, when any fails.
    pub broadcast_fail_percent: u32,
    /// With `broadcast`: the most instances that are told; a service with more refuses it. 1 to 256; default 64.
    pub broadcast_max: u32,
    /// With `failback`: what waits, how many, and how long.
    pub failback: FailbackSettings,
}

/// The ways to tolerate a failure, by their names in Dubbo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Another instance, not yet tried, as the retry settings allow.
    #[default]
    Failover,
    /// One attempt, and its failure is the caller's.
    Failfast,
    /// A failure is counted and logged, and the caller gets an empty good answer (204).
    Failsafe,
    /// Several at once, and the first good answer (none of 500 and above) is the caller's; the others are cancelled. A
    /// request that may not be repeated, or whose body is not held, is sent to one.
    Forking,
    /// All instances at once, those whose breaker is open too; the caller gets the last good answer (none of 500 and
    /// above), unless too many fail. What cannot be sent to all is refused: a body that is not held, and a change of
    /// protocol.
    Broadcast,
    /// As `failover`; what could not be delivered is kept on this node's disk, the caller gets 202 with the name it is kept
    /// under, and it is sent again, in order and by growing waits, until it is answered or given up: at least once. Never a
    /// method that only asks (GET, HEAD, OPTIONS, TRACE), gRPC, a change of protocol, or a body that is not held.
    Failback,
}

/// When a request is sent once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrySettings {
    /// The most retries of one request, the first attempt not counted. 0 to 10; default 2.
    pub max_retries: u32,
    /// Answers that are worth another attempt, by status. At most 32, each 400 to 599; default 502, 503, 504. An answer of
    /// gRPC that is nothing but its status counts as the one that means the same, UNAVAILABLE as 503.
    pub statuses: Vec<u16>,
    /// Whether methods that are not idempotent (POST, PATCH and all unknown ones) are repeated too, although the instance
    /// may have done what was asked; default false. What certainly reached no instance is always repeated.
    pub unsafe_methods: bool,
    /// Whether requests with a key that `[idempotency]` looks at are repeated whatever their method; default false. It is as
    /// safe as their keys: where instances cannot ask each other, it may be done twice.
    pub keyed: bool,
    /// How long one attempt may take until its answer begins, in milliseconds; then the next one starts if the request
    /// may be repeated. 0 (default, no limit of its own) to 3,600,000.
    pub per_try_timeout_ms: u64,
    /// The wait before the first retry is random up to this, before the second up to three times this, and so on
    /// (doubling plus one), in milliseconds. 0 to 10,000; default 25 (Envoy).
    pub backoff_ms: u64,
    /// The longest of these waits, in milliseconds. 0 to 60,000; default 250 (Envoy: ten times the first).
    pub max_backoff_ms: u64,
    /// An instance may ask for a wait (`Retry-After`, `grpc-retry-pushback-ms`): the longest that is waited for it, in
    /// milliseconds. If it asks for more, or for more than is left of the deadline, its answer is the caller's.
    /// 0 to 300,000; default 1,000.
    pub max_asked_wait_ms: u64,
    /// How many retries are allowed as a share of the service's requests.
    pub budget: BudgetSettings,
}

/// When a second attempt is started while the first still runs; the first good answer wins, the other is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HedgeSettings {
    /// After so many milliseconds without an answer. 0 (default: not by time) to 60,000.
    pub after_ms: u64,
    /// After as long as this percentage of the service's recent answers took. 0 (default: not by latency) to 99; 95 is
    /// what "The Tail at Scale" uses. With `after_ms` too, after whichever is later.
    pub after_percentile: u32,
    /// How many more attempts at most. 1 to 4; default 1.
    pub max: u32,
    /// How many hedges there may be as a share of the service's requests of the last 10 s, in percent (and
    /// one a second in any case). 1 to 100; default 5.
    pub budget_percent: u32,
    /// Whether methods that are not idempotent are hedged too; default false.
    pub unsafe_methods: bool,
}

impl Default for TolerateSettings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            forks: 2,
            broadcast_fail_percent: 100,
            broadcast_max: 64,
            failback: FailbackSettings::default(),
        }
    }
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            max_retries: 2,
            statuses: vec![502, 503, 504],
            unsafe_methods: false,
            keyed: false,
            per_try_timeout_ms: 0,
            backoff_ms: 25,
            max_backoff_ms: 250,
            max_asked_wait_ms: 1_000,
            budget: BudgetSettings::default(),
        }
    }
}

impl Default for HedgeSettings {
    fn default() -> Self {
        Self { after_ms: 0, after_percentile: 0, max: 1, budget_percent: 5, unsafe_methods: false }
    }
}

/// The longest time any of these settings names, in milliseconds.
const HOUR_MS: u64 = 3_600_000;

impl TolerateSettings {
    /// What is out of its range, if anything.
    ///
    /// # Errors
    /// A sentence for the operator: the field, its value, its range.
    pub fn check(&self) -> Result<(), String> {
        within(&[
            ("forks", u64::from(self.forks), 2, 8),
            ("broadcast_fail_percent", u64::from(self.broadcast_fail_percent), 1, 100),
            ("broadcast_max", u64::from(self.broadcast_max), 1, 256),
        ])?;
        self.failback.check()
    }
}

impl RetrySettings {
    /// What is out of its range, if anything.
    ///
    /// # Errors
    /// A sentence for the operator: the field, its value, its range.
    pub fn check(&self) -> Result<(), String> {
        within(&[
            ("max_retries", u64::from(self.max_retries), 0, 10),
            ("statuses (how many)", self.statuses.len() as u64, 0, 32),
            ("per_try_timeout_ms", self.per_try_timeout_ms, 0, HOUR_MS),
            ("backoff_ms", self.backoff_ms, 0, 10_000),
            ("max_backoff_ms", self.max_backoff_ms, 0, 60_000),
            ("max_asked_wait_ms", self.max_asked_wait_ms, 0, 300_000),
            ("budget.percent", u64::from(self.budget.percent), 0, 1_000),
            ("budget.floor_per_s", u64::from(self.budget.floor_per_s), 0, 10_000),
        ])?;
        self.statuses.iter().try_for_each(|status| within(&[("statuses", u64::from(*status), 400, 599)]))
    }
}

impl HedgeSettings {
    /// What is out of its range, if anything.
    ///
    /// # Errors
    /// A sentence for the operator: the field, its value, its range.
    pub fn check(&self) -> Result<(), String> {
        within(&[
            ("after_ms", self.after_ms, 0, 60_000),
            ("after_percentile", u64::from(self.after_percentile), 0, 99),
            ("max", u64::from(self.max), 1, 4),
            ("budget_percent", u64::from(self.budget_percent), 1, 100),
        ])
    }

    /// Whether anything is hedged.
    pub fn is_on(&self) -> bool {
        self.after_ms > 0 || self.after_percentile > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_ranges() {
        assert_eq!(TolerateSettings::default().check(), Ok(()));
        assert_eq!(RetrySettings::default().check(), Ok(()));
        assert_eq!(HedgeSettings::default().check(), Ok(()));
        assert!(!HedgeSettings::default().is_on());
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let forks = TolerateSettings { forks: 1, ..TolerateSettings::default() };
        assert_eq!(forks.check().unwrap_err(), "forks is 1, allowed are 2 to 8");
        let statuses = RetrySettings { statuses: vec![503, 200], ..RetrySettings::default() };
        assert_eq!(statuses.check().unwrap_err(), "statuses is 200, allowed are 400 to 599");
        let hedge = HedgeSettings { after_percentile: 100, ..HedgeSettings::default() };
        assert_eq!(hedge.check().unwrap_err(), "after_percentile is 100, allowed are 0 to 99");
    }

    #[test]
    fn a_mode_is_called_as_in_dubbo() {
        let read = |json: &str| serde_json::from_str::<TolerateSettings>(json).map(|settings| settings.mode);
        assert_eq!(read(r#"{"mode": "forking"}"#).unwrap(), Mode::Forking);
        assert!(read(r#"{"mode": "failsoft"}"#).is_err());
    }
}
