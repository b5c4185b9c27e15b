//! Links between hosts: how long a message takes, and whether it arrives at all.

use std::collections::BTreeMap;
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
    /// The shortest a message ever takes.
    pub(crate) fn floor(self) -> Duration {
        match self {
            Latency::Fixed(least) | Latency::Uniform(least, _) | Latency::Tail { floor: least, .. } => least,
        }
    }

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

/// How many times as long as drawn a message that is overtaken takes, at most.
const HELD_BACK: u64 = 10;

/// How links behave: all of a mesh, those between two zones, or those of a pair of nodes. Cuts are something else: they
/// are per pair and come and go while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Links {
    /// How long a message takes. Default 100 µs and an exponential tail of 150 µs: hosts in one data centre.
    pub latency: Latency,
    /// The share of messages that never arrive, 0 to 1. Default 0.
    pub loss: f64,
    /// The share of messages that arrive twice, 0 to 1. Default 0.
    pub duplication: f64,
    /// The share of messages that take up to ten times as long as others, 0 to 1, and so are overtaken. Default 0: then
    /// only those that draw different latencies overtake each other.
    pub reordering: f64,
    /// What a host can send, in bytes per second; what does not fit waits its turn. One uplink per host: what it sends
    /// over other links is in the same queue. Default: no limit.
    pub bytes_per_second: Option<u64>,
}

impl Links {
    /// How long a message is under way, in microseconds.
    pub(crate) fn draw_us(&self, rng: &mut fastrand::Rng) -> u64 {
        let latency = self.latency.draw_us(rng);
        if self.reordering > 0.0 && rng.f64() < self.reordering {
            return latency.saturating_add(rng.u64(..=latency.saturating_mul(HELD_BACK - 1)));
        }
        latency
    }

    /// What is wrong with them, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        let shares = [("loss", self.loss), ("duplication", self.duplication), ("reordering", self.reordering)];
        for (what, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{what} is {share}, a share between 0 and 1"));
            }
        }
        if self.bytes_per_second == Some(0) {
            return Err("a bandwidth of 0 lets nothing through; cut the links instead".into());
        }
        Ok(())
    }
}

impl Default for Links {
    fn default() -> Self {
        let latency = Latency::Tail { floor: Duration::from_micros(100), mean: Duration::from_micros(150) };
        Self { latency, loss: 0.0, duplication: 0.0, reordering: 0.0, bytes_per_second: None }
    }
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "latency {}", self.latency)?;
        if self.loss > 0.0 {
            write!(f, ", loss {} %", percent(self.loss))?;
        }
        if self.duplication > 0.0 {
            write!(f, ", duplication {} %", percent(self.duplication))?;
        }
        if self.reordering > 0.0 {
            write!(f, ", reordering {} %", percent(self.reordering))?;
        }
        if let Some(rate) = self.bytes_per_second {
            write!(f, ", {rate} bytes/s")?;
        }
        Ok(())
    }
}

/// A share as a number of per cent, to a hundredth.
fn percent(share: f64) -> f64 {
    (share * 10_000.0).round() / 100.0
}

/// How the links of every pair behave now: those set for the pair, else for its two zones, else for two cells, else all
/// links.
#[derive(Debug, Clone)]
pub(crate) struct LinkTable {
    pub(crate) all: Links,
    /// Which class (zone) a host is of, and how links behave from one class to another where that was said.
    classes: Vec<u16>,
    between: BTreeMap<(u16, u16), Links>,
    pairs: BTreeMap<(u32, u32), Links>,
    /// Which cell a host is of, and how links behave between two; nothing while there is one.
    cells: Option<(Vec<u16>, Links)>,
}

impl LinkTable {
    /// `classes` says which class every host is of.
    pub(crate) fn new(all: Links, classes: Vec<u16>) -> Self {
        Self { all, classes, between: BTreeMap::new(), pairs: BTreeMap::new(), cells: None }
    }

    /// Says which cell every host is of, and how the links between two cells behave.
    pub(crate) fn set_cells(&mut self, cells: Vec<u16>, links: Links) {
        self.cells = Some((cells, links));
    }

    /// Sets the links from one class of hosts to another.
    pub(crate) fn set_between(&mut self, from: u16, to: u16, links: Links) {
        self.between.insert((from, to), links);
    }

    /// Sets the links from one host to another.
    pub(crate) fn set_pair(&mut self, from: usize, to: usize, links: Links) {
        self.pairs.insert((from as u32, to as u32), links);
    }

    pub(crate) fn of(&self, from: usize, to: usize) -> Links {
        if !self.pairs.is_empty()
            && let Some(links) = self.pairs.get(&(from as u32, to as u32))
        {
            return *links;
        }
        if !self.between.is_empty()
            && let Some(links) = self.between.get(&(self.classes[from], self.classes[to]))
        {
            return *links;
        }
        if let Some((cells, links)) = &self.cells
            && cells[from] != cells[to]
        {
            return *links;
        }
        self.all
    }
}

/// Which directions between which hosts are cut.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    size: usize,
    /// One bit per ordered pair, made when something is first cut.
    closed: Vec<u64>,
    count: usize,
}

impl Cuts {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, closed: Vec::new(), count: 0 }
    }

    pub(crate) fn close(&mut self, from: usize, to: usize) {
        if self.closed.is_empty() {
            self.closed = vec![0; (self.size * self.size).div_ceil(64)];
        }
        let (word, bit) = self.place(from, to);
        self.count += usize::from(self.closed[word] & bit == 0);
        self.closed[word] |= bit;
    }

    pub(crate) fn open(&mut self, from: usize, to: usize) {
        if self.is_open(from, to) {
            return;
        }
        let (word, bit) = self.place(from, to);
        self.closed[word] &= !bit;
        self.count -= 1;
    }

    pub(crate) fn open_all(&mut self) {
        (self.closed, self.count) = (Vec::new(), 0);
    }

    pub(crate) fn is_open(&self, from: usize, to: usize) -> bool {
        if self.count == 0 {
            return true;
        }
        let (word, bit) = self.place(from, to);
        self.closed[word] & bit == 0
    }

    pub(crate) fn any(&self) -> bool {
        self.count > 0
    }

    fn place(&self, from: usize, to: usize) -> (usize, u64) {
        let at = from * self.size + to;
        (at / 64, 1 << (at % 64))
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
        cuts.close(2, 1);
        cuts.open(0, 1);
        assert!(cuts.is_open(0, 1) && !cuts.is_open(2, 1) && cuts.any());
        cuts.open_all();
        assert!(cuts.is_open(2, 1) && !cuts.any());
    }

    #[test]
    fn a_pair_has_its_own_links_before_those_of_its_zones_and_those_before_all() {
        let fixed = |ms| Links { latency: Latency::Fixed(Duration::from_millis(ms)), ..Links::default() };
        let mut table = LinkTable::new(fixed(1), vec![0, 0, 1]);
        table.set_between(0, 1, fixed(2));
        table.set_pair(1, 2, fixed(3));
        let drawn = [(0, 1), (0, 2), (1, 2), (2, 1)].map(|(from, to)| table.of(from, to));
        assert_eq!(drawn, [fixed(1), fixed(2), fixed(3), fixed(1)]);
    }

    #[test]
    fn a_message_that_is_held_back_takes_longer_but_never_more_than_ten_times() {
        let mut rng = fastrand::Rng::with_seed(1);
        let latency = Latency::Fixed(Duration::from_millis(1));
        let links = Links { latency, reordering: 0.5, ..Links::default() };
        let drawn: Vec<u64> = (0..1_000).map(|_| links.draw_us(&mut rng)).collect();
        assert!(drawn.iter().all(|took| (1_000..=10_000).contains(took)));
        let late = drawn.iter().filter(|took| **took > 1_000).count();
        assert!((400..600).contains(&late), "{late}");
    }
}
