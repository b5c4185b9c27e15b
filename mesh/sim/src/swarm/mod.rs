//! Many seeds at once: each draws a scenario, all are played over the cores of this machine, and what fails is made as
//! small as it can be.
//!
//! ```
//! use starling_sim::swarm::Swarm;
//!
//! let summary = Swarm::default().run(1..=20, |_| {});
//! assert!(summary.ok(), "{summary}");
//! ```
//!
//! A failure tells the seed, the line that plays it again, the smallest scenario found that fails in the same way (a file
//! for `starling sim`), and what that tells.

mod draw;
mod guard;
mod shrink;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::checker::Checker;
use crate::options::Builder;
use crate::scenario::{Scenario, Stage, Timeline};

pub use draw::{Shape, Trouble};
pub use shrink::Shrunk;

/// After so many failing seeds no more are played: they mostly tell the same.
const MOST_FAILURES: usize = 5;
/// How many of the failures are made smaller, and how many runs each may take.
const SHRUNK_FAILURES: usize = 2;
const SHRINK_RUNS: usize = 1_500;

/// How seeds are turned into scenarios, and who judges them.
#[derive(Debug, Clone, Default)]
pub struct Swarm {
    shape: Shape,
    stage: Stage,
    threads: Option<usize>,
}

/// What was wrong with a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which expectation or checker it was (`expect-converged`, `no-ghost`), or `panic`.
    pub kind: String,
    /// The step at which it was found, counted from 0; `None` when a checker found it, or it was a panic.
    pub step: Option<usize>,
    /// What the run told, up to its end.
    pub told: String,
}

/// A seed that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What plays it again: a command line, or the call where the swarm is one of a test's own making.
    pub replay: String,
    /// What it drew.
    pub scenario: Scenario,
    /// What was wrong.
    pub verdict: Verdict,
    /// The smallest scenario found that fails in the same way; only of the first few failures.
    pub shrunk: Option<Shrunk>,
}

/// How far a swarm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Seeds played.
    pub done: u64,
    /// Seeds there are.
    pub of: u64,
    /// Seeds that failed.
    pub failed: u64,
    /// Virtual time that has passed in all of them together.
    pub virtual_time: Duration,
}

/// What became of a swarm. The same seeds give the same summary, however many threads played them.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Seeds that were played and counted; fewer than asked for after several failures.
    pub played: u64,
    /// Virtual time that passed in all of them together.
    pub virtual_time: Duration,
    /// Messages sent in all of them together.
    pub messages: u64,
    /// Writes in all of them together.
    pub writes: u64,
    /// In how many seeds each kind of step happened.
    pub steps: BTreeMap<&'static str, u64>,
    /// The seeds that failed, lowest first, at most five.
    pub failures: Vec<Failure>,
}

impl Swarm {
    /// Seeds draw within this.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// Appoints judges of your own to every run, besides those that ship.
    #[must_use]
    pub fn check(mut self, checkers: impl Fn() -> Vec<Box<dyn Checker>> + Send + Sync + 'static) -> Self {
        self.stage = self.stage.check(checkers);
        self
    }

    /// Changes every mesh before it is built, to run a program of your own on it; see [`Stage::prepare`].
    #[must_use]
    pub fn prepare(mut self, prepare: impl Fn(Builder) -> Builder + Send + Sync + 'static) -> Self {
        self.stage = self.stage.prepare(prepare);
        self
    }

    /// Plays on so many threads. Default: as many as the machine has cores.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.max(1));
        self
    }

    /// The scenario a seed draws.
    pub fn scenario(&self, seed: u64) -> Scenario {
        self.shape.draw(seed)
    }

    /// Plays one seed, in this thread.
    ///
    /// # Errors
    /// What failed, made small.
    pub fn play(&self, seed: u64) -> Result<Timeline, Box<Failure>> {
        let scenario = self.scenario(seed);
        match self.judge(&scenario) {
            Ok(timeline) => Ok(timeline),
            Err(verdict) => {
                let (shrunk, replay) = (self.shrink(&scenario), self.replay(seed));
                Err(Box::new(Failure { seed, replay, scenario, verdict, shrunk }))
            }
        }
    }

    /// The line that plays a seed again.
    fn replay(&self, seed: u64) -> String {
        if self.shape == Shape::default() && self.stage.is_plain() {
            format!("starling sim --seed {seed}")
        } else {
            format!("play({seed}) of this swarm")
        }
    }

    /// Looks for a smaller scenario that fails in the same way; `None` when this one does not fail.
    pub fn shrink(&self, scenario: &Scenario) -> Option<Shrunk> {
        shrink::shrink(scenario, SHRINK_RUNS, &|smaller| self.judge(smaller).err())
    }

    /// Plays many seeds and tells of each step forward. Ends early once several have failed.
    pub fn run(&self, seeds: RangeInclusive<u64>, mut progress: impl FnMut(&Progress)) -> Summary {
        let of = seeds.end().saturating_add(1).saturating_sub(*seeds.start());
        let threads = self.threads.unwrap_or_else(cores).min(of.max(1) as usize);
        let (next, failed) = (AtomicU64::new(0), AtomicUsize::new(0));
        let (tell, hear) = mpsc::channel();
        let mut played: BTreeMap<u64, Played> = BTreeMap::new();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (tell, next, failed, first) = (tell.clone(), &next, &failed, *seeds.start());
                scope.spawn(move || {
                    // Every seed that was handed out is played to its end, so that the lowest failures are always the same.
                    while failed.load(Ordering::SeqCst) < MOST_FAILURES {
                        let place = next.fetch_add(1, Ordering::SeqCst);
                        if place >= of {
                            break;
                        }
                        let seed = first + place;
                        let one = self.played(seed);
                        failed.fetch_add(usize::from(one.failure.is_some()), Ordering::SeqCst);
                        if tell.send((seed, one)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(tell);
            let mut so_far = Progress { done: 0, of, failed: 0, virtual_time: Duration::ZERO };
            for (seed, one) in hear {
                so_far.done += 1;
                so_far.failed += u64::from(one.failure.is_some());
                so_far.virtual_time += one.virtual_time;
                progress(&so_far);
                played.insert(seed, one);
            }
        });
        self.summary(played)
    }

    fn played(&self, seed: u64) -> Played {
        let scenario = self.scenario(seed);
        let mut steps: Vec<&'static str> = scenario.steps().iter().map(|step| step.action.word()).collect();
        steps.sort_unstable();
        steps.dedup();
        let mut played = Played { steps, ..Played::default() };
        match self.judge(&scenario) {
            Ok(timeline) => {
                let report = timeline.report();
                (played.virtual_time, played.messages, played.writes) =
                    (report.elapsed, report.total().messages, report.writes);
            }
            Err(verdict) => {
                played.failure = Some(Failure { seed, replay: self.replay(seed), scenario, verdict, shrunk: None });
            }
        }
        played
    }

    /// Counts up to the last failure that is told: which seeds beyond it were played is a matter of chance.
    fn summary(&self, played: BTreeMap<u64, Played>) -> Summary {
        let mut summary = Summary::default();
        for one in played.into_values() {
            summary.played += 1;
            summary.virtual_time += one.virtual_time;
            summary.messages += one.messages;
            summary.writes += one.writes;
            for word in one.steps {
                *summary.steps.entry(word).or_default() += 1;
            }
            summary.failures.extend(one.failure);
            if summary.failures.len() == MOST_FAILURES {
                break;
            }
        }
        for failure in summary.failures.iter_mut().take(SHRUNK_FAILURES) {
            failure.shrunk = self.shrink(&failure.scenario);
        }
        summary
    }

    /// Plays a scenario and says what is wrong, if anything.
    fn judge(&self, scenario: &Scenario) -> Result<Timeline, Verdict> {
        let run = guard::guarded(|| self.stage.run(scenario, scenario.seed()));
        let timeline = run.map_err(|told| Verdict { kind: "panic".into(), step: None, told })?;
        match timeline.failed().first() {
            None => Ok(timeline),
            Some(first) => Err(Verdict { kind: first.kind.into(), step: first.step, told: timeline.to_string() }),
        }
    }
}

/// What is kept of a seed that was played.
#[derive(Debug, Default)]
struct Played {
    steps: Vec<&'static str>,
    virtual_time: Duration,
    messages: u64,
    writes: u64,
    failure: Option<Failure>,
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Summary {
    /// Whether no seed failed.
    pub fn ok(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failures {
            writeln!(f, "{failure}\n")?;
        }
        let (minutes, seconds) = (self.virtual_time.as_secs() / 60, self.virtual_time.as_secs() % 60);
        let (played, writes, messages) = (self.played, self.writes, self.messages);
        writeln!(f, "{played} seeds, {minutes} min {seconds} s of virtual time, {writes} writes, {messages} messages")?;
        let kinds: Vec<String> = self.steps.iter().map(|(word, seeds)| format!("{word} {seeds}")).collect();
        writeln!(f, "in so many of them: {}", kinds.join(", "))?;
        match self.failures.len() {
            0 => write!(f, "ok: none failed"),
            MOST_FAILURES => write!(f, "FAILED: {MOST_FAILURES} seeds, and no more were played"),
            some => write!(f, "FAILED: {some} seeds"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} fails: {}", self.seed, self.verdict.kind)?;
        writeln!(f, "replay: {}", self.replay)?;
        let Some(shrunk) = &self.shrunk else { return write!(f, "{}", self.verdict.told) };
        let ((steps, few_steps), (nodes, few_nodes)) = (shrunk.steps, shrunk.nodes);
        writeln!(
            f,
            "{few_nodes} of {nodes} nodes and {few_steps} of {steps} steps suffice (found in {} runs):",
            shrunk.runs
        )?;
        writeln!(f, "\n{}", shrunk.scenario)?;
        write!(f, "which tells:\n\n{}", shrunk.verdict.told)
    }
}
