//! What can be set about a circuit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::refusal::{Invalid, all_within};
use super::super::ring::{LastCalls, LastTime, MAX_CALLS, Ring};
use super::super::{Criticality, Outcome};

/// When a circuit opens, for how long, and how it closes again. Durations are milliseconds. A threshold of 0 is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CircuitSettings {
    /// Share of failures in the window from which on it opens, in percent (`>=`). 0 to 100; default 50 (resilience4j,
    /// Hystrix).
    pub failure_percent: u32,
    /// Share of slow calls in the window from which on it opens, in percent (`>=`). 0 to 100; default 100
    /// (resilience4j).
    pub slow_percent: u32,
    /// A call that takes longer than this (`>`) is slow, whether it fails or not. 1 to 3,600,000; default 60,000
    /// (resilience4j).
    pub slow_call_ms: u64,
    /// Failures in a row from which on it opens, however few calls there were. 0 to 1,000,000; default 0.
    pub consecutive_failures: u32,
    /// Failures in the window from which on it opens, whatever their share. 0 to 1,000,000; default 0.
    pub failures: u32,
    /// Whether the window is the last so many calls or the last so much time. Default `time`.
    pub window: WindowKind,
    /// The window by calls: how many. 1 to 100,000; default 100 (resilience4j). A byte each.
    pub window_calls: u32,
    /// The window by time: how long, in ten slices. 100 to 3,600,000; default 10,000 (Hystrix).
    pub window_ms: u64,
    /// Calls in the window below which no share is looked at; with a window by calls at most its size counts. 1 to
    /// 1,000,000; default 20 (Hystrix).
    pub min_calls: u32,
    /// How long it is open the first time. 1 to 3,600,000; default 5,000 (Hystrix).
    pub open_ms: u64,
    /// How long it is open at most: doubled up to it each time a trial fails, and reset when it has been closed for as
    /// long. `open_ms` to 86,400,000; default 60,000.
    pub max_open_ms: u64,
    /// How many calls are let through on trial when it has been open for long enough. 1 to 31; default 3.
    pub half_open_calls: u32,
    /// How long a trial may take before it is judged by what has come of it. 1 to 3,600,000; default 10,000.
    pub half_open_ms: u64,
    /// What becomes of a trial that takes too long. Default `judge`.
    pub half_open_then: HalfOpenThen,
    /// A failure that says when to come back (`Retry-After`, `grpc-retry-pushback-ms`) opens it for that long, at most
    /// for this long. 0 (such words are not heeded) to 86,400,000; default 0: one instance's word is no reason to spare
    /// all of a service.
    pub max_retry_after_ms: u64,
    /// Whether all requests share one circuit, or those of each method have their own. Default `all`.
    pub per: CircuitPer,
    /// How many methods get a circuit of their own at most, those called first; the rest share one. 1 to 1,000, and with a
    /// window by calls at most ten million divided by `window_calls`; default 100.
    pub max_methods: u32,
}

/// Which requests share a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitPer {
    /// All of the service's, or of the route's.
    #[default]
    All,
    /// Those of one method: of HTTP (`GET`), or, for calls of gRPC, their path (`/shop.Orders/Buy`).
    Method,
}

/// What a window is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowKind {
    /// The last `window_calls` calls.
    Calls,
    /// The last `window_ms`.
    #[default]
    Time,
}

/// What becomes of a trial whose calls have not all ended in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HalfOpenThen {
    /// Those that have ended decide; if none has, another trial begins.
    #[default]
    Judge,
    /// It opens again.
    Open,
    /// It closes.
    Close,
}

impl Default for CircuitSettings {
    fn default() -> Self {
        Self {
            failure_percent: 50,
            slow_percent: 100,
            slow_call_ms: 60_000,
            consecutive_failures: 0,
            failures: 0,
            window: WindowKind::Time,
            window_calls: 100,
            window_ms: 10_000,
            min_calls: 20,
            open_ms: 5_000,
            max_open_ms: 60_000,
            half_open_calls: 3,
            half_open_ms: 10_000,
            half_open_then: HalfOpenThen::Judge,
            max_retry_after_ms: 0,
            per: CircuitPer::All,
            max_methods: 100,
        }
    }
}

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Services of gRPC have tens of methods; this many are most likely made up by callers.
const MAX_METHODS: u64 = 1_000;
/// Calls in the windows of all methods together: a byte each.
const MAX_WINDOWS: u64 = 10_000_000;

impl CircuitSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        let max_methods = match (self.per, self.window) {
            (CircuitPer::Method, WindowKind::Calls) => {
                (MAX_WINDOWS / u64::from(self.window_calls.max(1))).clamp(1, MAX_METHODS)
            }
            _ => MAX_METHODS,
        };
        all_within([
            ("failure_percent", self.failure_percent.into(), 0..=100),
            ("slow_percent", self.slow_percent.into(), 0..=100),
            ("slow_call_ms", self.slow_call_ms, 1..=HOUR_MS),
            ("consecutive_failures", self.consecutive_failures.into(), 0..=1_000_000),
            ("failures", self.failures.into(), 0..=1_000_000),
            ("window_calls", self.window_calls.into(), 1..=MAX_CALLS),
            ("window_ms", self.window_ms, 100..=HOUR_MS),
            ("min_calls", self.min_calls.into(), 1..=1_000_000),
            ("open_ms", self.open_ms, 1..=HOUR_MS),
            ("max_open_ms", self.max_open_ms, self.open_ms..=DAY_MS),
            ("half_open_calls", self.half_open_calls.into(), 1..=31),
            ("half_open_ms", self.half_open_ms, 1..=HOUR_MS),
            ("max_retry_after_ms", self.max_retry_after_ms, 0..=DAY_MS),
            ("max_methods", self.max_methods.into(), 1..=max_methods),
        ])
    }

    pub(super) fn ring(&self) -> Ring {
        match self.window {
            WindowKind::Calls => Ring::Calls(LastCalls::new(self.window_calls.into())),
            WindowKind::Time => Ring::Time(LastTime::new(Duration::from_millis(self.window_ms))),
        }
    }

    /// Calls needed before a share is looked at.
    pub(super) fn min_calls(&self) -> u64 {
        match self.window {
            WindowKind::Calls => self.min_calls.min(self.window_calls).into(),
            WindowKind::Time => self.min_calls.into(),
        }
    }
}

/// What counts as a failure of the callee, for every guard that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailureSettings {
    /// Statuses that are failures: `503`, `500-599` or `5xx`. Up to 64; default `["5xx"]`.
    pub statuses: Vec<String>,
    /// gRPC codes (0 to 16) that are failures. Default those that load or defects cause: 2 (unknown), 4 (deadline
    /// exceeded), 8 (resource exhausted), 13 (internal), 14 (unavailable), 15 (data loss).
    pub grpc: Vec<u8>,
    /// Statuses that say nothing of the callee and count neither way; they win over `statuses`. Up to 64; default none.
    pub ignore: Vec<String>,
    /// Whether a connection that breaks or cannot be made is a failure. Default true.
    pub resets: bool,
    /// Whether no answer in time is a failure. Default true.
    pub timeouts: bool,
}

impl Default for FailureSettings {
    fn default() -> Self {
        Self {
            statuses: vec!["5xx".to_owned()],
            grpc: vec![2, 4, 8, 13, 14, 15],
            ignore: Vec::new(),
            resets: true,
            timeouts: true,
        }
    }
}

/// The most entries of a list of statuses.
const MAX_STATUSES: u64 = 64;

impl FailureSettings {
    /// What is not what it may be, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        for (field, statuses) in [("statuses", &self.statuses), ("ignore", &self.ignore)] {
            super::super::refusal::within(&format!("{field} (entries)"), statuses.len() as u64, 0..=MAX_STATUSES)?;
            if let Some(wrong) = statuses.iter().find(|status| read_statuses(status).is_none()) {
                return Err(Invalid::new(
                    field,
                    format_args!("{wrong:?}"),
                    "a status (503), a range (500-599), a class (5xx)",
                ));
            }
        }
        match self.grpc.iter().find(|code| **code > 16) {
            Some(code) => Err(Invalid::new("grpc", code, "0 to 16")),
            None => Ok(()),
        }
    }
}

/// A status, a range or a class, as first and last.
fn read_statuses(text: &str) -> Option<(u16, u16)> {
    let status = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status));
    let (first, last) = match text.as_bytes() {
        [class @ b'1'..=b'5', b'x', b'x'] => {
            let first = u16::from(class - b'0') * 100;
            (first, first + 99)
        }
        _ => match text.split_once('-') {
            Some((first, last)) => (status(first)?, status(last)?),
            None => (status(text)?, status(text)?),
        },
    };
    (first <= last).then_some((first, last))
}

/// What came of a call, as the one who carried it saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// An answer with this status and, if it was gRPC, this code.
    Answer {
        /// The HTTP status.
        status: u16,
        /// The gRPC code.
        grpc: Option<u8>,
    },
    /// No connection, or a broken one.
    Reset,
    /// No answer in time.
    Timeout,
    /// The caller gave up.
    Cancelled,
}

/// [`FailureSettings`], ready to be asked: a bit per status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    failed: [u64; 10],
    ignored: [u64; 10],
    grpc: u32,
    resets: bool,
    timeouts: bool,
}

impl Failures {
    /// What `settings` (that passed their check) call a failure.
    pub fn new(settings: &FailureSettings) -> Self {
        let bits = |statuses: &[String]| {
            let mut bits = [0; 10];
            for (first, last) in statuses.iter().filter_map(|status| read_statuses(status)) {
                (first..=last).for_each(|status| bits[usize::from(status / 64)] |= 1 << (status % 64));
            }
            bits
        };
        Self {
            failed: bits(&settings.statuses),
            ignored: bits(&settings.ignore),
            grpc: settings.grpc.iter().filter(|code| **code < 32).fold(0, |bits, code| bits | 1 << code),
            resets: settings.resets,
            timeouts: settings.timeouts,
        }
    }

    /// What this says of the callee.
    pub fn judge(&self, came: Came) -> Outcome {
        let failed = match came {
            Came::Cancelled => return Outcome::Ignored,
            Came::Answer { status, .. } if is_in(&self.ignored, status) => return Outcome::Ignored,
            Came::Answer { status, grpc: None } => is_in(&self.failed, status),
            Came::Answer { status, grpc: Some(code) } => {
                is_in(&self.failed, status) || (code < 32 && self.grpc >> code & 1 == 1)
            }
            Came::Reset => self.resets,
            Came::Timeout => self.timeouts,
        };
        if failed { Outcome::Failure } else { Outcome::Success }
    }
}

fn is_in(bits: &[u64; 10], status: u16) -> bool {
    bits.get(usize::from(status / 64)).is_some_and(|word| word >> (status % 64) & 1 == 1)
}

/// A hand on the switch: the one-key degrade.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SwitchSettings {
    /// What the circuit does instead of what it would do.
    pub mode: Mode,
    /// Until when, in milliseconds since the Unix epoch; after that it is `auto` again. 0 to 253,402,300,799,999 (the end of
    /// the year 9999). Without it: until changed.
    pub until: Option<u64>,
    /// Which classes of requests it is for, with `force_open` only: a circuit counts all classes together. Without any: all.
    pub criticality: Vec<Criticality>,
}

/// The end of the year 9999: what is later was meant in another unit.
const LAST_UNTIL_MS: u64 = 253_402_300_799_999;

impl SwitchSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        all_within([("until", self.until.unwrap_or_default(), 0..=LAST_UNTIL_MS)])?;
        let knows_classes = matches!(self.mode, Mode::Auto | Mode::ForceOpen);
        match self.criticality.first().filter(|_| !knows_classes) {
            Some(class) => Err(Invalid::new("criticality", class, "none but with mode force_open")),
            None => Ok(()),
        }
    }
}

/// How a circuit is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// By what it counts.
    #[default]
    Auto,
    /// Refuses everything (resilience4j's FORCED_OPEN): the degrade switch.
    ForceOpen,
    /// Admits everything, counts, and stays closed (Hystrix's forceClosed).
    ForceClosed,
    /// Admits everything and counts nothing (resilience4j's DISABLED).
    Disabled,
    /// Admits everything, and goes through its states all the same; what it would have refused is counted
    /// (resilience4j's METRICS_ONLY): a rehearsal.
    MetricsOnly,
}

impl Mode {
    /// All of them, by the number they have in a word.
    pub(super) const ALL: [Mode; 5] =
        [Self::Auto, Self::ForceOpen, Self::ForceClosed, Self::Disabled, Self::MetricsOnly];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_bounds() {
        assert_eq!(CircuitSettings::default().check(), Ok(()));
        assert_eq!(FailureSettings::default().check(), Ok(()));
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let wrong = CircuitSettings { max_open_ms: 10, ..CircuitSettings::default() };
        assert_eq!(wrong.check().unwrap_err().to_string(), "max_open_ms is 10, allowed are 5000 to 86400000");
        for status in ["", "6xx", "99", "600", "599-500", "5x", "-", "500-"] {
            let wrong = FailureSettings { statuses: vec![status.into()], ..FailureSettings::default() };
            assert!(wrong.check().is_err(), "{status}");
        }
    }

    #[test]
    fn a_switch_is_for_classes_only_where_it_refuses_and_ends_within_the_calendar() {
        let switch = |mode, until, criticality: &[Criticality]| {
            let settings = SwitchSettings { mode, until, criticality: criticality.to_vec() };
            settings.check().map_err(|invalid| invalid.field)
        };
        let some = [Criticality::Sheddable];
        assert_eq!(switch(Mode::ForceOpen, Some(LAST_UNTIL_MS), &some), Ok(()));
        assert_eq!(switch(Mode::ForceOpen, Some(u64::MAX), &[]), Err("until".into()));
        for mode in [Mode::ForceClosed, Mode::Disabled, Mode::MetricsOnly] {
            assert_eq!((switch(mode, None, &[]), switch(mode, None, &some)), (Ok(()), Err("criticality".into())));
        }
    }

    #[test]
    fn a_failure_is_what_the_settings_say() {
        let settings = FailureSettings {
            statuses: vec!["5xx".into(), "429".into(), "408-410".into()],
            ignore: vec!["501".into()],
            grpc: vec![14],
            resets: true,
            timeouts: false,
        };
        let failures = Failures::new(&settings);
        let answer = |status, grpc| failures.judge(Came::Answer { status, grpc });
        for status in [500, 599, 429, 408, 409, 410] {
            assert_eq!(answer(status, None), Outcome::Failure, "{status}");
        }
        for status in [200, 407, 411, 499, 700, 65_535] {
            assert_eq!(answer(status, None), Outcome::Success, "{status}");
        }
        assert_eq!(answer(501, None), Outcome::Ignored);
        assert_eq!((answer(200, Some(14)), answer(200, Some(5))), (Outcome::Failure, Outcome::Success));
        assert_eq!(answer(200, Some(200)), Outcome::Success);
        let others = [Came::Reset, Came::Timeout, Came::Cancelled].map(|came| failures.judge(came));
        assert_eq!(others, [Outcome::Failure, Outcome::Success, Outcome::Ignored]);
    }
}
