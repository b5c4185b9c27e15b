//! Measured values: how they are collected, and how they are written for people and for programs.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

/// One measured value with its unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Figure {
    /// How long something took.
    Time(Duration),
    /// How many there were.
    Count(u64),
    /// A part of a whole, 0 to 1.
    Share(f64),
}

impl Figure {
    /// The number and its unit, apart, so that columns of them can be aligned. Three digits say enough.
    pub(crate) fn parts(self) -> (String, &'static str) {
        match self {
            Figure::Time(time) => {
                let us = time.as_nanos() as f64 / 1e3;
                match us {
                    // The bounds are where rounding would show a fourth digit.
                    ..999.5 => (three_digits(us), "µs"),
                    ..999_500.0 => (three_digits(us / 1e3), "ms"),
                    _ => (three_digits(us / 1e6), "s"),
                }
            }
            Figure::Count(count) => (grouped(count), ""),
            Figure::Share(share) => (format!("{:.1}", share * 100.0), "%"),
        }
    }

    /// The value for programs; its unit is in the name it is filed under.
    pub(crate) fn number(self) -> f64 {
        match self {
            Figure::Time(time) => (time.as_nanos() as f64 / 1e3).round(),
            Figure::Count(count) => count as f64,
            Figure::Share(share) => (share * 1e4).round() / 1e4,
        }
    }

    /// What the name of such a value ends with.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Figure::Time(_) => "_us",
            Figure::Count(_) => "",
            Figure::Share(_) => "_share",
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = self.parts();
        f.pad(format!("{number} {unit}").trim_end())
    }
}

/// A time, written like every other.
pub(crate) fn time(time: Duration) -> String {
    Figure::Time(time).to_string()
}

/// "1 request", "2 requests".
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" })
}

fn three_digits(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// `12 345`: thousands are set apart by a space, which no language mistakes for a decimal point.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Many measurements of the same thing.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    nanos: Histogram<u64>,
}

impl Times {
    pub(crate) fn new() -> Self {
        // Three digits are shown; one minute is beyond every time limit of the demo.
        let nanos = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("fixed bounds the histogram accepts");
        Self { nanos }
    }

    pub(crate) fn record(&mut self, time: Duration) {
        self.nanos.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    pub(crate) fn len(&self) -> u64 {
        self.nanos.len()
    }

    /// The time which this share (0 to 1) of the measurements did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.nanos.value_at_quantile(share))
    }

    pub(crate) fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    pub(crate) fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.nanos.max())
    }

    /// `p50 812 µs · p99 3.20 ms`.
    pub(crate) fn short(&self) -> String {
        format!("p50 {} · p99 {}", time(self.p50()), time(self.p99()))
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut all = Self::new();
        times.into_iter().for_each(|time| all.record(time));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_with_three_digits_and_the_unit_that_fits() {
        let shown = |nanos| time(Duration::from_nanos(nanos));
        assert_eq!(shown(0), "0.00 µs");
        assert_eq!(shown(812_400), "812 µs");
        assert_eq!(shown(999_499), "999 µs");
        assert_eq!(shown(999_600), "1.00 ms");
        assert_eq!(shown(9_996_000), "10.0 ms");
        assert_eq!(shown(99_960_000), "100 ms");
        assert_eq!(shown(2_345_000_000), "2.35 s");
    }

    #[test]
    fn counts_and_shares_are_readable() {
        assert_eq!(Figure::Count(7).to_string(), "7");
        assert_eq!(Figure::Count(1_234_567).to_string(), "1 234 567");
        assert_eq!(Figure::Share(0.50149).to_string(), "50.1 %");
        assert_eq!(counted(1, "request"), "1 request");
        assert_eq!(counted(12_000, "request"), "12 000 requests");
    }

    #[test]
    fn programs_get_the_unit_with_the_name() {
        let time = Figure::Time(Duration::from_micros(1_500));
        assert_eq!((time.number(), time.suffix()), (1_500.0, "_us"));
    }

    #[test]
    fn quantiles_are_exact_to_three_digits() {
        let times: Times = (1..=1_000).map(Duration::from_micros).collect();
        let near = |shown: Duration, us: f64| (shown.as_nanos() as f64 / 1e3 / us - 1.0).abs() < 0.002;
        assert!(
            near(times.p50(), 500.0) && near(times.p99(), 990.0) && near(times.max(), 1_000.0),
            "{}",
            times.short()
        );
        assert_eq!(Times::new().p99(), Duration::ZERO);
    }
}
