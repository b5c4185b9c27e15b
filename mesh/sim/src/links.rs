//! Links between hosts: how long a message takes, and whether it arrives at all.

use std::fmt;
use std::time::Duration;

/// How long a message is under way. Reordering follows by itself whenever two messages draw different latencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latency {
    /// Always the same.
    Fixed(Duration),
    /// Anything between the two, equally likely.
    Uniform(Duration, Duration),
    /// A floor, and on top of it an exponential tail with this mean: the shape of real networks.
    Tail {
        /// The shortest a message ever takes.
        floor: Duration,
        /// How much longer it takes on average.
        mean: Duration,
    },
}

impl Latency {
    /// One message's latency in microseconds.
    pub(crate) fn draw_us(self, rng: &mut fastrand::Rng) -> u64 {
        match self {
            Latency::Fixed(always) => micros(always),
            Latency::Uniform(least, most) => rng.u64(micros(least)..=micros(most).max(micros(least))),
            Latency::Tail { floor, mean } => {
                micros(floor).saturating_add((exponential(rng) * micros(mean) as f64) as u64)
            }
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Latency::Fixed(always) => write!(f, "{always:?}"),
            Latency::Uniform(least, most) => write!(f, "{least:?} to {most:?}"),
            Latency::Tail { floor, mean } => write!(f, "{floor:?} + exp({mean:?})"),
        }
    }
}

/// What all links of a mesh have in common; cuts are per pair and come and go while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Links {
    /// How long a message takes. Default 100 µs and an exponential tail of 150 µs: hosts in one data centre.
    pub latency: Latency,
    /// The share of messages that never arrive, 0 to 1. Default 0.
    pub loss: f64,
    /// The share of messages that arrive twice, 0 to 1. Default 0.
    pub duplication: f64,
    /// What a host can send, in bytes per second; what does not fit waits its turn. Default: no limit.
    pub bytes_per_second: Option<u64>,
}

impl Default for Links {
    fn default() -> Self {
        let latency = Latency::Tail { floor: Duration::from_micros(100), mean: Duration::from_micros(150) };
        Self { latency, loss: 0.0, duplication: 0.0, bytes_per_second: None }
    }
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "latency {}", self.latency)?;
        if self.loss > 0.0 {
            write!(f, ", loss {} %", self.loss * 100.0)?;
        }
        if self.duplication > 0.0 {
            write!(f, ", duplication {} %", self.duplication * 100.0)?;
        }
        if let Some(rate) = self.bytes_per_second {
            write!(f, ", {rate} bytes/s")?;
        }
        Ok(())
    }
}

/// Which directions between which hosts are cut.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    size: usize,
    /// One place per ordered pair, made when something is first cut.
    closed: Vec<bool>,
}

impl Cuts {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, closed: Vec::new() }
    }

    pub(crate) fn close(&mut self, from: usize, to: usize) {
        if self.closed.is_empty() {
            self.closed = vec![false; self.size * self.size];
        }
        self.closed[from * self.size + to] = true;
    }

    pub(crate) fn open_all(&mut self) {
        self.closed = Vec::new();
    }

    pub(crate) fn is_open(&self, from: usize, to: usize) -> bool {
        self.closed.is_empty() || !self.closed[from * self.size + to]
    }

    pub(crate) fn any(&self) -> bool {
        self.closed.contains(&true)
    }
}

/// An exponential variate with mean 1 by von Neumann's method (1951): comparisons of uniform numbers only. A logarithm
/// may round differently from one machine to the next, and a seed must give the same run everywhere.
fn exponential(rng: &mut fastrand::Rng) -> f64 {
    let mut whole = 0.0;
    loop {
        let first = rng.f64();
        let mut last = first;
        let mut falling = 1;
        loop {
            let next = rng.f64();
            if next >= last {
                break;
            }
            last = next;
            falling += 1;
        }
        if falling % 2 == 1 {
            return whole + first;
        }
        whole += 1.0;
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exponential_tail_has_its_mean_and_its_shape() {
        let mut rng = fastrand::Rng::with_seed(1);
        let drawn: Vec<f64> = (0..100_000).map(|_| exponential(&mut rng)).collect();
        let mean = drawn.iter().sum::<f64>() / 100_000.0;
        let beyond_three = drawn.iter().filter(|value| **value > 3.0).count();
        assert!((0.98..1.02).contains(&mean), "{mean}");
        // e^-3 of them: 4,979.
        assert!((4_700..5_300).contains(&beyond_three), "{beyond_three}");
    }

    #[test]
    fn a_cut_closes_one_direction() {
        let mut cuts = Cuts::new(3);
        cuts.close(0, 1);
        assert!(!cuts.is_open(0, 1) && cuts.is_open(1, 0) && cuts.is_open(0, 2) && cuts.any());
        cuts.open_all();
        assert!(cuts.is_open(0, 1) && !cuts.any());
    }
}
