//! The settings a policy has, and their ranges. A layer sets as many of them as it likes; see `layers`.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::actions::{Classes, Fallback, Fault, Mirror};
use crate::balance::BalanceSettings;
use crate::guard::bulkhead::BulkheadSettings;
use crate::guard::circuit::{CircuitSettings, FailureSettings, SwitchSettings};
use crate::guard::{
    BreakerSettings, ConcurrencySettings, IdempotencySettings, Invalid, LimitSettings, ListSettings, QuotaSettings,
    ShedSettings,
};
use crate::tolerate::{HedgeSettings, RetrySettings, TolerateSettings};

/// All sections of a policy, filled in. What is optional is off until a layer has a section of that name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sections {
    /// How long things may take.
    pub timeouts: Timeouts,
    /// When a request is sent once more.
    pub retry: RetrySettings,
    /// When a second attempt starts while the first still runs.
    pub hedge: HedgeSettings,
    /// What becomes of a request whose attempts fail.
    pub tolerate: TolerateSettings,
    /// How an instance is chosen.
    pub balance: BalanceSettings,
    /// When an instance is taken out because its answers fail. Of the service as a whole: a route cannot set it.
    pub breaker: BreakerSettings,
    /// What counts as a failure, for the circuit.
    pub failure: FailureSettings,
    /// How much a request matters, for shedding and degrading.
    pub classes: Classes,
    /// The hand on the switch: forced open, forced closed, disabled, metrics only; with an end.
    pub degrade: SwitchSettings,
    /// Who may call, by name.
    pub callers: Option<ListSettings>,
    /// Shedding by criticality.
    pub shed: Option<ShedSettings>,
    /// So many calls at once.
    pub bulkhead: Option<BulkheadSettings>,
    /// As many calls at once as the callee can do.
    pub concurrency: Option<ConcurrencySettings>,
    /// The breaker of the service, or of a route.
    pub circuit: Option<CircuitSettings>,
    /// Repeated requests get the first answer.
    pub idempotency: Option<IdempotencySettings>,
    /// What is answered instead of a refusal or a failure.
    pub fallback: Option<Fallback>,
    /// Calls in a time. Those of all layers hold.
    pub limit: Vec<LimitSettings>,
    /// Calls in a time, at all nodes of the mesh together. Those of all layers hold.
    pub quota: Vec<QuotaSettings>,
    /// Trouble made on purpose. That of all layers is made.
    pub fault: Vec<Fault>,
    /// Where copies of requests go.
    pub mirror: Vec<Mirror>,
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

impl Sections {
    /// The sections' names, in the order of this struct.
    pub const NAMES: [&str; 20] = [
        "timeouts",
        "retry",
        "hedge",
        "tolerate",
        "balance",
        "breaker",
        "failure",
        "classes",
        "degrade",
        "callers",
        "shed",
        "bulkhead",
        "concurrency",
        "circuit",
        "idempotency",
        "fallback",
        "limit",
        "quota",
        "fault",
        "mirror",
    ];
    /// What a route cannot set, and why.
    pub(super) const WHOLE_SERVICE: [(&str, &str); 2] = [
        ("breaker", "an instance is in or out for all requests"),
        ("retry.budget", "all requests of a service share one budget"),
    ];
    /// The most rules of one list: each request may have to pass all.
    const MAX_RULES: usize = 64;

    /// What differs from the defaults, as a layer: whatever nobody has set keeps the program as its origin.
    pub fn beside_defaults(&self) -> Table {
        // Settings of ours always become tables.
        let mut table = Table::try_from(self).unwrap_or_default();
        difference(&mut table, &Table::try_from(Self::default()).unwrap_or_default());
        table
    }

    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        fn part<T>(name: &str, part: Option<&T>, check: fn(&T) -> Result<(), Invalid>) -> Result<(), Invalid> {
            part.map_or(Ok(()), |part| check(part).map_err(|invalid| invalid.under(name)))
        }
        fn list<T>(name: &str, rules: &[T], check: fn(&T) -> Result<(), Invalid>) -> Result<(), Invalid> {
            if rules.len() > Sections::MAX_RULES {
                return Err(Invalid::new(
                    name,
                    format_args!("{} rules", rules.len()),
                    format_args!("at most {}", Sections::MAX_RULES),
                ));
            }
            let mut numbered = rules.iter().enumerate();
            numbered.try_for_each(|(i, rule)| check(rule).map_err(|invalid| invalid.under(&format!("{name}[{i}]"))))
        }
        let ranges = [
            ("timeouts.request_ms", self.timeouts.request_ms, 1, 3_600_000),
            ("timeouts.connect_ms", self.timeouts.connect_ms, 1, 60_000),
        ];
        if let Some((field, value, min, max)) =
            ranges.into_iter().find(|(_, value, min, max)| !(min..=max).contains(&value))
        {
            return Err(Invalid::new(field, value, format_args!("{min} to {max}")));
        }
        let sentences = [
            ("retry", self.retry.check()),
            ("hedge", self.hedge.check()),
            ("tolerate", self.tolerate.check()),
            ("balance", self.balance.check()),
        ];
        for (name, checked) in sentences {
            checked.map_err(|sentence| from_sentence(&sentence).under(name))?;
        }
        part("breaker", Some(&self.breaker), BreakerSettings::check)?;
        part("failure", Some(&self.failure), FailureSettings::check)?;
        part("classes", Some(&self.classes), Classes::check)?;
        part("degrade", Some(&self.degrade), SwitchSettings::check)?;
        part("callers", self.callers.as_ref(), ListSettings::check)?;
        part("shed", self.shed.as_ref(), ShedSettings::check)?;
        part("bulkhead", self.bulkhead.as_ref(), BulkheadSettings::check)?;
        part("concurrency", self.concurrency.as_ref(), ConcurrencySettings::check)?;
        part("circuit", self.circuit.as_ref(), CircuitSettings::check)?;
        part("idempotency", self.idempotency.as_ref(), IdempotencySettings::check)?;
        part("fallback", self.fallback.as_ref(), Fallback::check)?;
        list("limit", &self.limit, LimitSettings::check)?;
        list("quota", &self.quota, QuotaSettings::check)?;
        list("fault", &self.fault, Fault::check)?;
        list("mirror", &self.mirror, Mirror::check)
    }
}

/// Reads "FIELD is VALUE, allowed are RANGE" ([`crate::ranges::within`]) as what it says.
fn from_sentence(sentence: &str) -> Invalid {
    let (field, rest) = sentence.split_once(" is ").unwrap_or(("", sentence));
    let (value, allowed) = rest.split_once(", allowed are ").unwrap_or((rest, "others"));
    Invalid::new(field, value, allowed)
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
