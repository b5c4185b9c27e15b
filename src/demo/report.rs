//! What the story amounts to: its promises, kept or not, and every figure, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::figure::{Figure, Times};

/// Everything measured and promised so far.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    starling: &'static str,
    build: &'static str,
    seed: u64,
    fast: bool,
    cores: usize,
    /// Whether every promise was kept and the story came to its end.
    pub(crate) held: bool,
    seconds: f64,
    pub(crate) promises: Vec<Promise>,
    /// By name; times are in microseconds (`_us`), shares between 0 and 1 (`_share`), all else are counts.
    figures: BTreeMap<String, f64>,
}

/// Something the mesh is there for, and what was seen of it.
#[derive(Debug, Serialize)]
pub(crate) struct Promise {
    pub(crate) promise: String,
    pub(crate) kept: bool,
    pub(crate) measured: String,
}

impl Report {
    pub(crate) fn new(seed: u64, fast: bool) -> Self {
        let build = if cfg!(debug_assertions) { "debug" } else { "release" };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let starling = env!("CARGO_PKG_VERSION");
        Self {
            starling,
            build,
            seed,
            fast,
            cores,
            held: false,
            seconds: 0.0,
            promises: Vec::new(),
            figures: BTreeMap::new(),
        }
    }

    /// The circumstances in one line.
    pub(crate) fn circumstances(&self) -> String {
        format!("starling {} · {} build · {} cores · seed {}", self.starling, self.build, self.cores, self.seed)
    }

    /// Files a figure; the unit is added to its name.
    pub(crate) fn figure(&mut self, name: &str, figure: Figure) {
        self.figures.insert(format!("{name}{}", figure.suffix()), figure.number());
    }

    /// Files the quantiles of many measurements.
    pub(crate) fn times(&mut self, name: &str, times: &Times) {
        self.figure(&format!("{name}_count"), Figure::Count(times.len()));
        for (which, value) in [("p50", times.p50()), ("p99", times.p99()), ("max", times.max())] {
            self.figure(&format!("{name}_{which}"), Figure::Time(value));
        }
    }

    /// Files a promise.
    pub(crate) fn promise(&mut self, kept: bool, promise: &str, measured: &str) {
        self.promises.push(Promise { promise: promise.into(), kept, measured: measured.into() });
    }

    /// The story is over: told to its end, or broken off.
    pub(crate) fn close(&mut self, told: bool, took: Duration) {
        self.held = told && self.promises.iter().all(|promise| promise.kept);
        self.seconds = (took.as_secs_f64() * 100.0).round() / 100.0;
    }

    /// How many promises were kept.
    pub(crate) fn kept(&self) -> usize {
        self.promises.iter().filter(|promise| promise.kept).count()
    }

    /// The whole report for programs.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_promise_breaks_the_story_and_so_does_an_early_end() {
        let mut report = Report::new(1, true);
        report.promise(true, "a", "1");
        report.close(true, Duration::from_secs(1));
        assert!(report.held);
        report.close(false, Duration::from_secs(1));
        assert!(!report.held);
        report.promise(false, "b", "2");
        report.close(true, Duration::from_secs(1));
        assert!(!report.held && report.kept() == 1);
    }

    #[test]
    fn figures_carry_their_unit_in_their_name() {
        let mut report = Report::new(1, true);
        report.figure("lost", Figure::Count(0));
        report.times("seen", &[Duration::from_millis(2)].into_iter().collect());
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["figures"]["lost"], 0.0);
        assert_eq!(json["figures"]["seen_count"], 1.0);
        assert!((json["figures"]["seen_p50_us"].as_f64().unwrap() - 2_000.0).abs() < 5.0);
    }
}
