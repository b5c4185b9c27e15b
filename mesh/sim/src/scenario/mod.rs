//! A scenario: a mesh and what happens to it, written in a file, run to a timeline that reads as a story.
//!
//! ```
//! use starling_sim::scenario::{Scenario, run};
//!
//! let scenario: Scenario = r#"
//!     name = "both sides edit the same document"
//!
//!     [mesh]
//!     nodes = 4
//!     latency_ms = 1
//!     seed = 7
//!
//!     [[step]]
//!     at = "1s"
//!     do = "cut"
//!     from = ["n1", "n2"]
//!     to = ["n3", "n4"]
//!
//!     [[step]]
//!     at = "2s"
//!     do = "put"
//!     node = "n1"
//!     key = "app/limits"
//!     value = "10"
//!
//!     [[step]]
//!     at = "2s"
//!     do = "put"
//!     node = "n3"
//!     key = "app/limits"
//!     value = "20"
//!
//!     [[step]]
//!     at = "60s"
//!     do = "heal"
//!
//!     [[step]]
//!     at = "60s"
//!     do = "expect-conflict"
//!     key = "app/limits"
//!     within = "5s"
//! "#.parse().unwrap();
//! let timeline = run(&scenario, scenario.seed());
//! assert!(timeline.ok(), "{timeline}");
//! assert_eq!(timeline.to_string(), run(&scenario, 7).to_string()); // the same seed, the same bytes
//! ```
//!
//! Times are `"1.5s"`, `"20ms"`, `"5m"`, or a number of seconds. Instances are named `service/instance`, documents
//! `group/key`.
//!
//! `[mesh]` says `nodes` (a number, or names), `zones`, `cells`, `seed`, how links are, `lost_after`, `up_after`, `disk`,
//! `clock_spread`, `repair_interval`, `tombstone_horizon` and `max_clock_skew` (times), `through_bytes` (every message is
//! encoded and read again) and `sabotage` ([`Sabotage`](crate::Sabotage): what is broken on purpose). All have the
//! defaults of [`Mesh::builder`](crate::Mesh::builder). `[between_cells]` says how links from one cell to
//! another are, each `[[between]]` how those between two `zones` (or two `nodes`) are, one way with `one_way = true`.
//!
//! How links are: `latency_ms`, and either `jitter_ms` (the mean of an exponential tail on top of it) or `latency_to_ms`
//! (anything in between); `loss`, `duplication` and `reordering` (shares); `bytes_per_second`.
//!
//! `check` lists the judges that look at the mesh all the while, of [`CHECKERS`](crate::CHECKERS): what one finds fails the
//! run.
//!
//! With `lenient = true`, commands are given and not waited for, and one that a node cannot take (it is down, or
//! refuses) is told but fails nothing: so that any steps can be left out of a scenario that was drawn by chance.
//!
//! | `do` | and |
//! |---|---|
//! | `register` | `node`, `instance`; `count` (then instances `instance1`, `instance2` ...), `weight`, `version`, `tags`, `check` (`http`, `tcp`, `ttl`) |
//! | `deregister`, `renew`, `clear-override` | `node`, `instance` |
//! | `status` | `node` (its owner), `instance`, `status` |
//! | `override` | `node`, `instance`; `status`, `weight`, `reason` |
//! | `put` | `node`, `key`, `value` |
//! | `delete` | `node`, `key` |
//! | `app` | `node`, `chance`: a command to a program of one's own, drawn from this number; only where one is played |
//! | `cut`, `cut-one-way` | `from`, `to`: lists of nodes |
//! | `heal` | all, or only `from`, `to` |
//! | `crash` | `node`; `torn = true`: of what was not on its disk yet any part may be there |
//! | `restart`, `leave`, `pause`, `resume` | `node` |
//! | `slow` | `node`, `each`: how long it takes over every input (a time) |
//! | `disk` | `node`, `latency`: how long its writes take to be on disk |
//! | `skew` | `node`, `ms`: how far its wall clock is off from now on |
//! | `drift` | `node`, `ppm`: how much faster its wall clock runs from now on |
//! | `links` | what changes of how links are; all, or only those `from`, `to` lists of nodes |
//! | `mend` | all that was broken is as at the beginning, and every node runs |
//! | `probes` | `instance`, `good`: what probes of its check find from now on |
//! | `expect-converged` | nodes that reach each other agree |
//! | `expect-visible`, `expect-ready`, `expect-gone` | `instance`: is listed; would take traffic; is not listed |
//! | `expect-config` | `key`, `value`: is served |
//! | `expect-conflict`, `expect-no-conflict` | `key`; `versions`: how many (default 2) |
//! | `expect-nothing-lost` | every acknowledged write is there or was replaced |
//!
//! Expectations may say `within` (how long to wait until it holds; default: it must hold at once, `expect-converged`
//! 5 s) and, but for `expect-converged` and `expect-nothing-lost`, `on` (which nodes; default: all that run).

mod fields;
mod parse;
mod run;
mod write;

use std::str::FromStr;
use std::time::Duration;

use starling_core::Command;
use starling_core::id::{ConfigKey, InstanceKey};

use crate::links::{Latency, Links};
use crate::options::{Builder, Options};

pub use run::{Failed, Stage, Timeline, record, run};

/// A scenario, read and checked: running it can disappoint but not fail. Its `Display` is the file it can be read from.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub(crate) name: String,
    pub(crate) lenient: bool,
    /// The checkers that look on, by name; all exist.
    pub(crate) check: Vec<String>,
    pub(crate) mesh: Builder,
    pub(crate) steps: Vec<Step>,
}

impl Scenario {
    /// Its name; empty when it has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The seed it asks for; 1 when it asks for none.
    pub fn seed(&self) -> u64 {
        self.mesh.options.seed
    }

    /// What its mesh is made of.
    pub fn options(&self) -> &Options {
        &self.mesh.options
    }

    /// Whether commands that a node cannot take fail nothing.
    pub fn lenient(&self) -> bool {
        self.lenient
    }

    /// What happens, in order of time.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

impl FromStr for Scenario {
    type Err = ScenarioError;
    fn from_str(text: &str) -> Result<Self, ScenarioError> {
        parse::scenario(text)
    }
}

/// What is wrong with a scenario file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ScenarioError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong, and what to do.
    pub what: String,
}

/// Something that happens at its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// When, from the beginning.
    pub at: Duration,
    /// The line of the file it was read from; 0 when it was drawn.
    pub line: usize,
    /// What.
    pub action: Action,
}

/// What can happen. Nodes are named as in [`Options::nodes`], all of which exist.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A node is asked to do these.
    Ask {
        /// Which node.
        node: String,
        /// What it is asked.
        commands: Vec<Command>,
    },
    /// Links between two groups are cut.
    Cut {
        /// Who is not heard any more.
        from: Vec<String>,
        /// Who hears them no more.
        to: Vec<String>,
        /// Whether only that direction is cut.
        one_way: bool,
    },
    /// A program of one's own (see [`app`](crate::app)) is given a command drawn from this number.
    App {
        /// At which node.
        node: String,
        /// What chance it is drawn from; see [`App::draw`](crate::app::App::draw).
        chance: u64,
    },
    /// All cuts end.
    Heal,
    /// What is cut between two groups is healed, both ways.
    HealBetween {
        /// One group.
        from: Vec<String>,
        /// The other.
        to: Vec<String>,
    },
    /// A node is killed.
    Crash {
        /// Which.
        node: String,
        /// Whether any part of what was not on its disk yet may be there.
        torn: bool,
    },
    /// A node that is down starts.
    Restart(String),
    /// A node stands still.
    Pause(String),
    /// A paused node goes on.
    Resume(String),
    /// A node takes so long over every input.
    Slow(String, Duration),
    /// Writes of a node take so long to be on disk.
    Disk(String, Duration),
    /// A node's wall clock is off by so many milliseconds.
    Skew(String, i64),
    /// A node's wall clock runs faster by so many parts per million.
    Drift(String, i64),
    /// All links change.
    Links(LinkChange),
    /// Links from some nodes to others change.
    LinksBetween {
        /// From these.
        from: Vec<String>,
        /// To those.
        to: Vec<String>,
        /// What changes.
        change: LinkChange,
    },
    /// Probes of an instance find it good, or bad, from now on.
    Probes(String, bool),
    /// All that was broken is as at the beginning.
    Mend,
    /// Something must be so.
    Expect {
        /// What.
        what: Expectation,
        /// At which nodes; empty: all that run.
        on: Vec<String>,
        /// How long it is waited for.
        within: Duration,
    },
}

/// What changes of how links are.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LinkChange {
    /// How long messages take.
    pub latency: Option<Latency>,
    /// The share that is lost.
    pub loss: Option<f64>,
    /// The share that arrives twice.
    pub duplication: Option<f64>,
    /// The share that is overtaken.
    pub reordering: Option<f64>,
    /// What a host can send.
    pub bytes_per_second: Option<u64>,
}

impl LinkChange {
    /// These links, changed.
    pub fn apply(self, links: Links) -> Links {
        Links {
            latency: self.latency.unwrap_or(links.latency),
            loss: self.loss.unwrap_or(links.loss),
            duplication: self.duplication.unwrap_or(links.duplication),
            reordering: self.reordering.unwrap_or(links.reordering),
            bytes_per_second: self.bytes_per_second.or(links.bytes_per_second),
        }
    }
}

/// What can be expected.
#[derive(Debug, Clone, PartialEq)]
pub enum Expectation {
    /// Nodes that reach each other agree.
    Converged,
    /// Every acknowledged write is there or was replaced.
    NothingLost,
    /// An instance is listed.
    Visible(InstanceKey),
    /// An instance would take traffic.
    Ready(InstanceKey),
    /// An instance is not listed.
    Gone(InstanceKey),
    /// A document is served with this content.
    Config(ConfigKey, String),
    /// A document shows so many versions.
    Conflict(ConfigKey, usize),
    /// A document shows one version at most.
    NoConflict(ConfigKey),
}
