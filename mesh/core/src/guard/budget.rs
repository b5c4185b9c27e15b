//! A retry budget per service, as Finagle's: retries may add a share of the traffic, plus a floor so that a quiet
//! service may retry at all. When everything fails, retries therefore add a fifth, not a multiple.

use serde::{Deserialize, Serialize};

use super::refusal::{Invalid, all_within};
use super::window::{WINDOW_S, Window};
use crate::time::Instant;

/// How much may be retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetSettings {
    /// Retries as a share of the requests of the last 10 s, in percent. 0 to 1,000; default 20 (Finagle, Linkerd, Envoy).
    pub percent: u32,
    /// Retries per second that are always allowed, so that low traffic can retry. 0 to 10,000; default 10 (Finagle).
    pub floor_per_s: u32,
}

impl Default for BudgetSettings {
    fn default() -> Self {
        Self { percent: 20, floor_per_s: 10 }
    }
}

impl BudgetSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        all_within([("percent", self.percent.into(), 0..=1_000), ("floor_per_s", self.floor_per_s.into(), 0..=10_000)])
    }
}

/// The budget of one service.
#[derive(Debug)]
pub struct RetryBudget {
    settings: BudgetSettings,
    window: Window,
}

impl RetryBudget {
    /// A budget nothing has been deposited in.
    pub fn new(settings: BudgetSettings) -> Self {
        Self { settings, window: Window::default() }
    }

    /// A request came (not a retry of one): its share is available for 10 s.
    pub fn deposit(&self, now: Instant) {
        self.window.add(now, 1, 0);
    }

    /// Takes one retry out of the budget, if there is one. Callers racing for the last one may overdraw by their
    /// number; it is a brake, not an account.
    pub fn withdraw(&self, now: Instant) -> bool {
        self.withdraw_within(now, self.settings)
    }

    /// The same within other settings, for what is set per route.
    pub fn withdraw_within(&self, now: Instant, settings: BudgetSettings) -> bool {
        let (requests, retries) = self.window.sum(now);
        let allowed = requests * u64::from(settings.percent) / 100 + u64::from(settings.floor_per_s) * WINDOW_S;
        if retries >= allowed {
            return false;
        }
        self.window.add(now, 0, 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000)
    }

    fn withdrawn(budget: &RetryBudget, now: Instant) -> usize {
        (0..100_000).take_while(|_| budget.withdraw(now)).count()
    }

    #[test]
    fn a_quiet_service_has_the_floor() {
        let budget = RetryBudget::new(BudgetSettings { percent: 20, floor_per_s: 2 });
        assert_eq!(withdrawn(&budget, at(1)), 20);
    }

    #[test]
    fn a_busy_service_may_retry_a_fifth() {
        let budget = RetryBudget::new(BudgetSettings { percent: 20, floor_per_s: 0 });
        (0..1_000).for_each(|_| budget.deposit(at(1)));
        assert_eq!(withdrawn(&budget, at(2)), 200);
    }

    #[test]
    fn deposits_and_withdrawals_expire_together() {
        let budget = RetryBudget::new(BudgetSettings { percent: 20, floor_per_s: 1 });
        (0..100).for_each(|_| budget.deposit(at(1)));
        assert_eq!(withdrawn(&budget, at(1)), 30);
        assert_eq!(withdrawn(&budget, at(20)), 10);
    }
}
