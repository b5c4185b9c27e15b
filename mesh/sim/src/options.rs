//! What a run is made of besides its seed; shown as the line that replays it.

use std::fmt::{self, Write};
use std::time::Duration;

use starling_core::Settings;
use starling_core::id::NodeId;

use crate::links::{Latency, Links, micros};
use crate::mesh::Mesh;
use crate::world::World;

/// Everything that decides a run, together with what the test then does.
#[derive(Debug, Clone)]
pub struct Options {
    /// All randomness is drawn from this.
    pub seed: u64,
    /// The nodes' names, `n1` and so on unless named.
    pub nodes: Vec<String>,
    /// Zones, dealt to the nodes in turn; empty: all in zone "default".
    pub zones: Vec<String>,
    /// How links behave.
    pub links: Links,
    /// How long two nodes must be out of reach of each other before they hold each other for lost. Default 2 s.
    pub lost_after: Duration,
    /// How long two nodes must reach each other before they know. Default 200 ms.
    pub up_after: Duration,
    /// How long a write takes to be on disk; acknowledged only then. Default 0.
    pub disk: Duration,
    /// How far apart the nodes' wall clocks are: each is off by up to this much, either way. Default 0.
    pub clock_spread: Duration,
    /// Every heart's settings; its zone is set from [`Options::zones`].
    pub settings: Settings,
    /// Whether every message goes through the bytes of the wire and back. Slower, and doubts the codec too.
    pub through_bytes: bool,
}

impl Options {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: names(3),
            zones: Vec::new(),
            links: Links::default(),
            lost_after: Duration::from_secs(2),
            up_after: Duration::from_millis(200),
            disk: Duration::ZERO,
            clock_spread: Duration::ZERO,
            settings: Settings::default(),
            through_bytes: false,
        }
    }
}

/// The line that makes the same mesh again.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Options::new(self.seed);
        let mut line = format!("Mesh::builder({})", self.seed);
        if self.nodes == names(self.nodes.len()) {
            let _ = write!(line, ".nodes({})", self.nodes.len());
        } else {
            let _ = write!(line, ".named({:?})", self.nodes);
        }
        if !self.zones.is_empty() {
            let _ = write!(line, ".zones({:?})", self.zones);
        }
        if self.links.latency != default.links.latency {
            let _ = write!(line, ".latency({})", code(self.links.latency));
        }
        if self.links.loss > 0.0 {
            let _ = write!(line, ".loss({:?})", self.links.loss);
        }
        if self.links.duplication > 0.0 {
            let _ = write!(line, ".duplication({:?})", self.links.duplication);
        }
        if let Some(rate) = self.links.bytes_per_second {
            let _ = write!(line, ".bandwidth({rate})");
        }
        if (self.lost_after, self.up_after) != (default.lost_after, default.up_after) {
            let _ = write!(line, ".detection({}, {})", ms(self.lost_after), ms(self.up_after));
        }
        if !self.disk.is_zero() {
            let _ = write!(line, ".disk({})", ms(self.disk));
        }
        if !self.clock_spread.is_zero() {
            let _ = write!(line, ".clock_spread({})", ms(self.clock_spread));
        }
        if self.settings != default.settings {
            let _ = write!(line, ".settings({:?})", self.settings);
        }
        if self.through_bytes {
            line.push_str(".through_bytes()");
        }
        f.write_str(&line)
    }
}

fn code(latency: Latency) -> String {
    match latency {
        Latency::Fixed(always) => format!("Latency::Fixed({})", us(always)),
        Latency::Uniform(least, most) => format!("Latency::Uniform({}, {})", us(least), us(most)),
        Latency::Tail { floor, mean } => format!("Latency::Tail {{ floor: {}, mean: {} }}", us(floor), us(mean)),
    }
}

fn us(duration: Duration) -> String {
    format!("Duration::from_micros({})", micros(duration))
}

fn ms(duration: Duration) -> String {
    match micros(duration) % 1_000 {
        0 => format!("millis({})", duration.as_millis()),
        _ => us(duration),
    }
}

fn names(count: usize) -> Vec<String> {
    (1..=count).map(|i| format!("n{i}")).collect()
}

/// Says what a mesh is made of; every word has a default. Made by [`Mesh::builder`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    pub(crate) options: Options,
    quiet: bool,
}

impl Builder {
    pub(crate) fn new(seed: u64) -> Self {
        Self { options: Options::new(seed), quiet: false }
    }

    /// So many nodes, called `n1`, `n2` and so on. Default 3.
    pub fn nodes(mut self, count: usize) -> Self {
        self.options.nodes = names(count);
        self
    }

    /// Nodes with these names.
    pub fn named<N: AsRef<str>>(mut self, nodes: impl IntoIterator<Item = N>) -> Self {
        self.options.nodes = nodes.into_iter().map(|name| name.as_ref().to_owned()).collect();
        self
    }

    /// Zones, dealt to the nodes in turn: with two zones every second node is in the second.
    pub fn zones<N: AsRef<str>>(mut self, zones: impl IntoIterator<Item = N>) -> Self {
        self.options.zones = zones.into_iter().map(|name| name.as_ref().to_owned()).collect();
        self
    }

    /// How long messages are under way.
    pub fn latency(mut self, latency: Latency) -> Self {
        self.options.links.latency = latency;
        self
    }

    /// The share of messages that never arrive, 0 to 1.
    pub fn loss(mut self, share: f64) -> Self {
        self.options.links.loss = share;
        self
    }

    /// The share of messages that arrive twice, 0 to 1.
    pub fn duplication(mut self, share: f64) -> Self {
        self.options.links.duplication = share;
        self
    }

    /// What every host can send, in bytes per second.
    pub fn bandwidth(mut self, bytes_per_second: u64) -> Self {
        self.options.links.bytes_per_second = Some(bytes_per_second);
        self
    }

    /// How long the failure detector takes to lose a node, and to find it again.
    pub fn detection(mut self, lost_after: Duration, up_after: Duration) -> Self {
        (self.options.lost_after, self.options.up_after) = (lost_after, up_after);
        self
    }

    /// How long a write takes to be on disk. A crash before that forgets it, and nobody was told it succeeded.
    pub fn disk(mut self, latency: Duration) -> Self {
        self.options.disk = latency;
        self
    }

    /// Wall clocks are off by up to this much, either way, each node's differently.
    pub fn clock_spread(mut self, most: Duration) -> Self {
        self.options.clock_spread = most;
        self
    }

    /// Every heart's settings, but for its zone.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.options.settings = settings;
        self
    }

    /// Sends every message through the bytes of the wire and back, to doubt the codec too.
    pub fn through_bytes(mut self) -> Self {
        self.options.through_bytes = true;
        self
    }

    /// Does not print the line that replays the run when it begins.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Starts the nodes at virtual time 0; they know each other from the beginning. Prints the line that replays it.
    ///
    /// # Panics
    /// When the options make no sense (no nodes, a name that is none, a share beyond 1); see [`Builder::check`].
    #[track_caller]
    #[allow(clippy::print_stdout)] // a test's output is shown when it fails, and then the seed must be its first line
    pub fn build(self) -> Mesh {
        if let Err(why) = self.check() {
            panic!("{why}");
        }
        if !self.quiet {
            println!("{}", self.options);
        }
        Mesh::of(World::new(self.options))
    }

    /// What is wrong with the options, if anything.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        let options = &self.options;
        if options.nodes.is_empty() {
            return Err("a mesh has at least one node".into());
        }
        let mut seen = std::collections::BTreeSet::new();
        for name in &options.nodes {
            let id: NodeId = name.parse().map_err(|error: starling_core::id::NameError| error.to_string())?;
            if !seen.insert(id) {
                return Err(format!("there are two nodes called {name:?}"));
            }
        }
        for zone in &options.zones {
            zone.parse::<starling_core::id::Zone>().map_err(|error| error.to_string())?;
        }
        for (what, share) in [("loss", options.links.loss), ("duplication", options.links.duplication)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{what} is {share}, a share between 0 and 1"));
            }
        }
        if options.links.bytes_per_second == Some(0) {
            return Err("a bandwidth of 0 lets nothing through; cut the links instead".into());
        }
        Ok(())
    }
}
