//! From time to place.

use super::model::Run;

/// How time is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// As the clock goes.
    Clock,
    /// Every stretch in which nothing happens gets the logarithm of its length: milliseconds that matter can be seen
    /// beside minutes that do not. Order is kept.
    Events,
}

/// A quiet stretch shorter than this (µs) is drawn to scale with others of its kind.
const GRAIN_US: f64 = 2_000.0;
/// The share of the width that is given to the clock even when events decide, so that a minute is never nothing.
const CLOCK_SHARE: f64 = 0.12;
/// Moments kept to be told apart; beyond them the picture has fewer dots than that.
const MAX_MOMENTS: usize = 4_000;

/// Where each moment is, between two edges.
#[derive(Debug)]
pub(super) struct Axis {
    /// Time and place, both rising.
    points: Vec<(u64, f64)>,
}

impl Axis {
    pub(super) fn new(run: &Run, scale: Scale, left: f64, right: f64) -> Self {
        let end = run.end_us.max(1);
        if scale == Scale::Clock {
            return Self { points: vec![(0, left), (end, right)] };
        }
        let moments = moments(run, end);
        let weights = moments.windows(2).map(|pair| {
            let gap = (pair[1] - pair[0]) as f64;
            (1.0 + gap / GRAIN_US).ln()
        });
        let weights: Vec<f64> = weights.collect();
        let whole: f64 = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let mut points = vec![(0, left)];
        let mut done = 0.0;
        for (moment, weight) in moments.iter().skip(1).zip(weights) {
            done += weight;
            let share = (1.0 - CLOCK_SHARE) * done / whole + CLOCK_SHARE * *moment as f64 / end as f64;
            points.push((*moment, left + (right - left) * share));
        }
        Self { points }
    }

    pub(super) fn x(&self, at_us: u64) -> f64 {
        let after = self.points.partition_point(|(time, _)| *time <= at_us);
        let Some(&(later, right)) = self.points.get(after) else { return self.right() };
        let (earlier, left) = self.points[after.saturating_sub(1)];
        if later <= earlier {
            return left;
        }
        left + (right - left) * (at_us - earlier) as f64 / (later - earlier) as f64
    }

    pub(super) fn right(&self) -> f64 {
        self.points.last().map_or(0.0, |(_, right)| *right)
    }

    /// Moments to be named, at least so far apart on the page, each with how far in time its nearest neighbour is.
    pub(super) fn ticks(&self, apart: f64) -> Vec<(u64, u64)> {
        let ticks = if self.points.len() == 2 { self.round_ticks(apart) } else { self.moment_ticks(apart) };
        let gap = |pair: &[u64]| pair[1] - pair[0];
        let before = [u64::MAX].into_iter().chain(ticks.windows(2).map(gap));
        let after = ticks.windows(2).map(gap).chain([u64::MAX]);
        ticks.iter().zip(before.zip(after)).map(|(at, (before, after))| (*at, before.min(after))).collect()
    }

    fn round_ticks(&self, apart: f64) -> Vec<u64> {
        let (end, right) = self.points[1];
        let least = end as f64 * apart / (right - self.points[0].1);
        let steps = (0..12).flat_map(|power| [1u64, 2, 5].map(|digit| digit * 10u64.pow(power)));
        let step = steps.into_iter().find(|step| *step as f64 >= least).unwrap_or(end).max(1);
        (0..=end / step).map(|at| at * step).collect()
    }

    fn moment_ticks(&self, apart: f64) -> Vec<u64> {
        let mut ticks: Vec<u64> = Vec::new();
        let mut last = f64::NEG_INFINITY;
        for (at, x) in &self.points {
            if x - last >= apart && self.right() - x >= apart / 2.0 {
                ticks.push(*at);
                last = *x;
            }
        }
        ticks
    }
}

/// All moments at which something is drawn, in order; first 0, last the end.
fn moments(run: &Run, end: u64) -> Vec<u64> {
    let mut moments = vec![0, end];
    moments.extend(run.beliefs.iter().map(|belief| belief.at_us));
    moments.extend(run.states.iter().map(|change| change.at_us));
    moments.extend(run.cuts.iter().flat_map(|cut| [Some(cut.begin_us), cut.end_us]).flatten());
    moments.extend(run.writes.iter().map(|write| write.at_us));
    moments.extend(run.writes.iter().flat_map(|write| &write.learned).map(|(_, at)| *at));
    moments.extend(run.judged.iter().map(|judged| judged.at_us));
    moments.retain(|at| *at <= end);
    moments.sort_unstable();
    moments.dedup();
    let every = moments.len().div_ceil(MAX_MOMENTS).max(1);
    let kept = moments.iter().enumerate().filter(|(at, _)| at % every == 0).map(|(_, moment)| *moment);
    let mut kept: Vec<u64> = kept.collect();
    if kept.last() != Some(&end) {
        kept.push(end);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Judged;

    fn busy() -> Run {
        let judged = [1_000_000, 1_002_000, 60_000_000];
        let judged = judged.map(|at_us| Judged {
            asked_us: at_us,
            at_us,
            what: String::new(),
            held: true,
            findings: Vec::new(),
        });
        Run { judged: judged.into(), end_us: 100_000_000, ..Run::default() }
    }

    #[test]
    fn time_runs_from_the_left_to_the_right_edge_in_both_scales() {
        for scale in [Scale::Clock, Scale::Events] {
            let axis = Axis::new(&busy(), scale, 10.0, 110.0);
            let places: Vec<f64> = (0..=100).map(|second| axis.x(second * 1_000_000)).collect();
            assert_eq!((places[0], places[100], axis.x(u64::MAX)), (10.0, 110.0, 110.0));
            assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "{scale:?}: {places:?}");
        }
    }

    #[test]
    fn two_milliseconds_that_matter_are_seen_beside_a_minute_that_does_not() {
        let at = |scale| {
            let axis = Axis::new(&busy(), scale, 0.0, 1_000.0);
            axis.x(1_002_000) - axis.x(1_000_000)
        };
        assert!(at(Scale::Clock) < 0.1 && at(Scale::Events) > 15.0, "{} {}", at(Scale::Clock), at(Scale::Events));
    }
}
