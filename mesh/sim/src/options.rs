//! What a run is made of besides its seed; shown as the line that replays it.

use std::fmt::{self, Write};
use std::time::Duration;

use starling_core::Settings;
use starling_core::id::NodeId;

use crate::app::Program;
use crate::links::{Latency, LinkTable, Links, micros};
use crate::mesh::Mesh;
use crate::world::World;

/// Half of 100 ms there and back, and a little more: from one side of an ocean to the other.
const FAR: Latency = Latency::Tail { floor: Duration::from_millis(50), mean: Duration::from_millis(5) };

/// Everything that decides a run, together with what the test then does.
#[derive(Debug, Clone)]
pub struct Options {
    /// All randomness is drawn from this.
    pub seed: u64,
    /// The nodes' names, `n1` and so on unless named.
    pub nodes: Vec<String>,
    /// Zones, dealt to the nodes in turn; empty: all in zone "default".
    pub zones: Vec<String>,
    /// Cells, dealt to the nodes in turn; empty: all in one. The first node of each is a seed of all others.
    pub cells: Vec<String>,
    /// How links behave.
    pub links: Links,
    /// How links behave from one cell to another. Default 50 ms and an exponential tail of 5 ms, each way.
    pub cell_links: Links,
    /// How links behave from one zone to another, where that is not as [`Options::links`] says.
    pub zone_links: Vec<(String, String, Links)>,
    /// How links behave from one node to another, where that is not as its zones say.
    pub pair_links: Vec<(String, String, Links)>,
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
    /// What is broken on purpose, to see that judgements can fail.
    pub sabotage: Option<Sabotage>,
    /// Whether a [`Recording`](crate::Recording) is kept. Changes nothing of the run.
    pub record: bool,
}

/// A mesh broken on purpose: who judges a mesh should see once that the judgement can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// No message carries a removal or a deletion: what is gone at one node stays at all others.
    DropRemovals,
    /// Nothing is kept on any disk, although it was acknowledged.
    ForgetDisk,
    /// No repair message arrives: what a push missed is missed for ever.
    MuteRepair,
}

impl Sabotage {
    /// All there are.
    pub const ALL: [Sabotage; 3] = [Sabotage::DropRemovals, Sabotage::ForgetDisk, Sabotage::MuteRepair];

    /// Its name in scenario files.
    pub fn word(self) -> &'static str {
        match self {
            Sabotage::DropRemovals => "drop-removals",
            Sabotage::ForgetDisk => "forget-disk",
            Sabotage::MuteRepair => "mute-repair",
        }
    }
}

impl std::str::FromStr for Sabotage {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|sabotage| sabotage.word() == word);
        known.ok_or_else(|| format!("{word:?} is not one of {}", Self::ALL.map(Sabotage::word).join(", ")))
    }
}

impl Options {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: Self::names(3),
            zones: Vec::new(),
            cells: Vec::new(),
            links: Links::default(),
            cell_links: Links { latency: FAR, ..Links::default() },
            zone_links: Vec::new(),
            pair_links: Vec::new(),
            lost_after: Duration::from_secs(2),
            up_after: Duration::from_millis(200),
            disk: Duration::ZERO,
            clock_spread: Duration::ZERO,
            settings: Settings::default(),
            through_bytes: false,
            sabotage: None,
            record: false,
        }
    }
}

impl Options {
    /// The names of so many nodes that have none of their own.
    pub(crate) fn names(count: usize) -> Vec<String> {
        (1..=count).map(|i| format!("n{i}")).collect()
    }

    /// The zone of each node, by its place.
    pub(crate) fn zone_of(&self, node: usize) -> Option<&str> {
        (!self.zones.is_empty()).then(|| self.zones[node % self.zones.len()].as_str())
    }

    /// Which cell each node is of, by its place.
    pub(crate) fn cell_of(&self, node: usize) -> usize {
        node % self.cells.len().max(1)
    }

    /// How links behave at the beginning.
    pub(crate) fn link_table(&self) -> LinkTable {
        let class = |zone: &str| self.zones.iter().position(|known| known == zone).unwrap_or_default() as u16;
        let classes = (0..self.nodes.len()).map(|node| self.zone_of(node).map_or(0, class)).collect();
        let mut table = LinkTable::new(self.links, classes);
        if self.cells.len() > 1 {
            table.set_cells((0..self.nodes.len()).map(|node| self.cell_of(node) as u16).collect(), self.cell_links);
        }
        for (from, to, links) in &self.zone_links {
            table.set_between(class(from), class(to), *links);
        }
        let node = |name: &String| self.nodes.iter().position(|known| known == name);
        for (from, to, links) in &self.pair_links {
            if let (Some(from), Some(to)) = (node(from), node(to)) {
                table.set_pair(from, to, *links);
            }
        }
        table
    }
}

/// The line that makes the same mesh again.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Options::new(self.seed);
        let mut line = format!("Mesh::builder({})", self.seed);
        if self.nodes == Self::names(self.nodes.len()) {
            let _ = write!(line, ".nodes({})", self.nodes.len());
        } else {
            let _ = write!(line, ".named({:?})", self.nodes);
        }
        if !self.zones.is_empty() {
            let _ = write!(line, ".zones({:?})", self.zones);
        }
        if !self.cells.is_empty() {
            let _ = write!(line, ".cells({:?})", self.cells);
        }
        if self.cell_links != default.cell_links {
            let _ = write!(line, ".between_cells({})", links_code(&self.cell_links));
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
        if self.links.reordering > 0.0 {
            let _ = write!(line, ".reordering({:?})", self.links.reordering);
        }
        if let Some(rate) = self.links.bytes_per_second {
            let _ = write!(line, ".bandwidth({rate})");
        }
        for (word, overrides) in [("between_zones", &self.zone_links), ("between_nodes", &self.pair_links)] {
            for (from, to, links) in overrides {
                let _ = write!(line, ".{word}({from:?}, {to:?}, {})", links_code(links));
            }
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
        if let Some(sabotage) = self.sabotage {
            let _ = write!(line, ".sabotage(Sabotage::{sabotage:?})");
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

fn links_code(links: &Links) -> String {
    let Links { latency, loss, duplication, reordering, bytes_per_second } = links;
    let latency = code(*latency);
    format!(
        "Links {{ latency: {latency}, loss: {loss:?}, duplication: {duplication:?}, reordering: {reordering:?}, \
         bytes_per_second: {bytes_per_second:?} }}"
    )
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

/// Says what a mesh is made of; every word has a default. Made by [`Mesh::builder`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    pub(crate) options: Options,
    pub(crate) program: Option<Program>,
    quiet: bool,
}

impl Builder {
    pub(crate) fn new(seed: u64) -> Self {
        Self::of(Options::new(seed))
    }

    pub(crate) fn of(options: Options) -> Self {
        Self { options, program: None, quiet: false }
    }

    /// So many nodes, called `n1`, `n2` and so on. Default 3.
    pub fn nodes(mut self, count: usize) -> Self {
        self.options.nodes = Options::names(count);
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

    /// Cells, dealt to the nodes in turn: with two cells every second node is in the second. Nodes know those of their
    /// own cell from the beginning; of the others they learn through the first node of each.
    pub fn cells<N: AsRef<str>>(mut self, cells: impl IntoIterator<Item = N>) -> Self {
        self.options.cells = cells.into_iter().map(|name| name.as_ref().to_owned()).collect();
        self
    }

    /// How links from one cell to another behave.
    pub fn between_cells(mut self, links: Links) -> Self {
        self.options.cell_links = links;
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

    /// The share of messages that take up to ten times as long as others, 0 to 1.
    pub fn reordering(mut self, share: f64) -> Self {
        self.options.links.reordering = share;
        self
    }

    /// Links of their own from one zone to another. One direction: say both for both.
    pub fn between_zones(mut self, from: impl Into<String>, to: impl Into<String>, links: Links) -> Self {
        self.options.zone_links.push((from.into(), to.into(), links));
        self
    }

    /// Links of their own from one node to another. One direction: say both for both.
    pub fn between_nodes(mut self, from: impl Into<String>, to: impl Into<String>, links: Links) -> Self {
        self.options.pair_links.push((from.into(), to.into(), links));
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

    /// Keeps a [`Recording`](crate::Recording) of the run, for [`Mesh::recording`].
    pub fn record(mut self) -> Self {
        self.options.record = true;
        self
    }

    /// Breaks the mesh on purpose, to see that what judges it can fail.
    pub fn sabotage(mut self, sabotage: Sabotage) -> Self {
        self.options.sabotage = Some(sabotage);
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
        Mesh::of(World::new(self.options, self.program.as_ref()))
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
        for cell in &options.cells {
            cell.parse::<starling_core::id::CellName>().map_err(|error| error.to_string())?;
        }
        options.links.check()?;
        options.cell_links.check()?;
        for (from, to, links) in &options.zone_links {
            for zone in [from, to] {
                if !options.zones.contains(zone) {
                    return Err(format!("there is no zone {zone:?} to set links of"));
                }
            }
            links.check()?;
        }
        for (from, to, links) in &options.pair_links {
            for node in [from, to] {
                if !options.nodes.contains(node) {
                    return Err(format!("there is no node {node:?} to set links of"));
                }
            }
            links.check()?;
        }
        Ok(())
    }
}
