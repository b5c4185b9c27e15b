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
//! `[mesh]` says `nodes` (a number, or names), `zones`, `seed`, `latency_ms` (the floor), `jitter_ms` (the mean of an
//! exponential tail on top of it), `loss` and `duplication` (shares), `bytes_per_second`, `lost_after`, `up_after`,
//! `disk`, `clock_spread` and `repair_interval` (times). All have the defaults of [`Mesh::builder`](crate::Mesh::builder).
//!
//! | `do` | and |
//! |---|---|
//! | `register` | `node`, `instance`; `count` (then instances `instance1`, `instance2` ...), `weight`, `version`, `tags`, `check` (`http`, `tcp`, `ttl`) |
//! | `deregister`, `renew`, `clear-override` | `node`, `instance` |
//! | `override` | `node`, `instance`; `status`, `weight`, `reason` |
//! | `put` | `node`, `key`, `value` |
//! | `delete` | `node`, `key` |
//! | `cut`, `cut-one-way` | `from`, `to`: lists of nodes |
//! | `heal` | |
//! | `crash`, `restart`, `leave`, `pause`, `resume` | `node` |
//! | `skew` | `node`, `ms`: how far its wall clock is off from now on |
//! | `drift` | `node`, `ppm`: how much faster its wall clock runs from now on |
//! | `links` | `latency_ms`, `jitter_ms`, `loss`, `duplication`: what changes |
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

use std::str::FromStr;
use std::time::Duration;

use starling_core::Command;
use starling_core::id::{ConfigKey, InstanceKey};

use crate::links::Latency;
use crate::options::Builder;

pub use run::{Timeline, run};

/// A scenario, read and checked: running it can disappoint but not fail.
#[derive(Debug, Clone)]
pub struct Scenario {
    name: String,
    mesh: Builder,
    steps: Vec<Step>,
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

#[derive(Debug, Clone)]
struct Step {
    at: Duration,
    line: usize,
    action: Action,
}

#[derive(Debug, Clone)]
enum Action {
    Ask { node: String, commands: Vec<Command> },
    Cut { from: Vec<String>, to: Vec<String>, one_way: bool },
    Heal,
    Crash(String),
    Restart(String),
    Pause(String),
    Resume(String),
    Skew(String, i64),
    Drift(String, i64),
    Links { latency: Option<Latency>, loss: Option<f64>, duplication: Option<f64> },
    Probes(String, bool),
    Expect { what: Expectation, on: Vec<String>, within: Duration },
}

#[derive(Debug, Clone)]
enum Expectation {
    Converged,
    NothingLost,
    Visible(InstanceKey),
    Ready(InstanceKey),
    Gone(InstanceKey),
    Config(ConfigKey, String),
    Conflict(ConfigKey, usize),
    NoConflict(ConfigKey),
}
