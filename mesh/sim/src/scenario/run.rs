//! Running a scenario: each step at its time, each expectation judged, all of it written down.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use starling_core::config::Body;
use starling_core::view::{Usability, View};

use super::{Action, Expectation, Scenario, Step};
use crate::check::clock;
use crate::checker::{Checker, checker};
use crate::mesh::Mesh;
use crate::options::Builder;
use crate::recording::{Judged, Recording};
use crate::report::Report;

/// With more nodes than this, what each learns of the others is counted instead of told.
const TOLD_MEMBERSHIP: usize = 9;
/// How many findings of a failed expectation are told.
const TOLD_FINDINGS: usize = 12;

/// What happened, when, and whether it was as expected. The same scenario and seed give the same text, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    lines: Vec<String>,
    held: usize,
    failed: Vec<Failed>,
    report: Report,
}

/// Something that did not go as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Which expectation or checker it was (`expect-converged`, `no-ghost`), or `command` for one that was not taken.
    pub kind: &'static str,
    /// When, in virtual time.
    pub at: Duration,
    /// The step of the scenario, counted from 0; `None` for a checker.
    pub step: Option<usize>,
}

impl Timeline {
    /// Whether every expectation held, every command was taken, and no checker found anything.
    pub fn ok(&self) -> bool {
        self.failed.is_empty()
    }

    /// What did not go as expected, in order of time.
    pub fn failed(&self) -> &[Failed] {
        &self.failed
    }

    /// Its lines: the seed and options first, then what happened in order of time.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The run's figures.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "\n{}", self.report)?;
        match (self.held, self.failed.len()) {
            (0, 0) => write!(f, "ok: nothing was expected"),
            (held, 0) => write!(f, "ok: all {held} expectations held"),
            (held, failed) => write!(f, "FAILED: {failed} did not go as expected, {held} did"),
        }
    }
}

/// Runs a scenario with this seed (its own is [`Scenario::seed`]).
pub fn run(scenario: &Scenario, seed: u64) -> Timeline {
    Stage::default().run(scenario, seed)
}

/// The same, recorded to be drawn. The timeline is the same as without.
pub fn record(scenario: &Scenario, seed: u64) -> (Timeline, Recording) {
    Stage::default().record(scenario, seed)
}

/// Makes the checkers of one run.
type Appoint = Arc<dyn Fn() -> Vec<Box<dyn Checker>> + Send + Sync>;

/// Changes what a scenario's mesh is made of.
type Prepare = Arc<dyn Fn(Builder) -> Builder + Send + Sync>;

/// Where scenarios are played: what else runs there, and who watches besides those the scenario names.
#[derive(Clone, Default)]
pub struct Stage {
    checkers: Option<Appoint>,
    prepare: Option<Prepare>,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").finish_non_exhaustive()
    }
}

impl Stage {
    /// Appoints checkers besides those the scenario names; made anew for every run.
    #[must_use]
    pub fn check(mut self, checkers: impl Fn() -> Vec<Box<dyn Checker>> + Send + Sync + 'static) -> Self {
        self.checkers = Some(Arc::new(checkers));
        self
    }

    /// Changes every mesh before it is built: to run a program of your own on it ([`Builder::app`]), or with settings that
    /// scenario files cannot say.
    #[must_use]
    pub fn prepare(mut self, prepare: impl Fn(Builder) -> Builder + Send + Sync + 'static) -> Self {
        self.prepare = Some(Arc::new(prepare));
        self
    }

    /// Whether nothing runs or watches but what a scenario says.
    pub(crate) fn is_plain(&self) -> bool {
        self.checkers.is_none() && self.prepare.is_none()
    }

    /// Runs a scenario with this seed.
    pub fn run(&self, scenario: &Scenario, seed: u64) -> Timeline {
        self.play(scenario, scenario.mesh.clone(), seed).0
    }

    /// The same, recorded to be drawn. The timeline is the same as without.
    pub fn record(&self, scenario: &Scenario, seed: u64) -> (Timeline, Recording) {
        let (timeline, mesh) = self.play(scenario, scenario.mesh.clone().record(), seed);
        (timeline, mesh.recording().expect("a recording was asked for"))
    }

    fn play(&self, scenario: &Scenario, builder: Builder, seed: u64) -> (Timeline, Mesh) {
        let mut builder = builder.quiet();
        builder.options.seed = seed;
        if let Some(prepare) = &self.prepare {
            builder = prepare(builder);
        }
        let mut first = vec![builder.options.to_string()];
        if !scenario.name.is_empty() {
            first.push(scenario.name.clone());
        }
        let mut mesh = builder.build();
        let named = scenario.check.iter().map(|name| checker(name).expect("names are checked when they are read"));
        let own = self.checkers.as_ref().map(|make| make()).unwrap_or_default();
        let checking = !scenario.check.is_empty() || !own.is_empty();
        named.chain(own).for_each(|checker| mesh.appoint(checker));
        let (lenient, failed) = (scenario.lenient, Vec::new());
        let mut run = Run { mesh, lenient, lines: first, held: 0, failed, told: 0, judged: 0 };
        for (place, step) in scenario.steps.iter().enumerate() {
            let wait = step.at.saturating_sub(run.mesh.now());
            run.mesh.run_for(wait);
            run.catch_up();
            run.step(place, step);
        }
        run.catch_up();
        if checking {
            run.held += usize::from(run.mesh.verdicts().is_empty());
        }
        (Timeline { lines: run.lines, held: run.held, failed: run.failed, report: run.mesh.report() }, run.mesh)
    }
}

struct Run {
    mesh: Mesh,
    lenient: bool,
    lines: Vec<String>,
    held: usize,
    failed: Vec<Failed>,
    /// How many entries of the world's journal have been told.
    told: u64,
    /// How many verdicts of checkers have been.
    judged: usize,
}

impl Run {
    /// Tells what the world has noted, and checkers have found, since the last time.
    fn catch_up(&mut self) {
        let world = &self.mesh.world;
        let new = (world.journaled - self.told) as usize;
        let untold = new.saturating_sub(world.journal.len());
        if untold > 0 {
            self.lines.push(format!("({untold} happenings left out)"));
        }
        let crowd = world.hosts.len() > TOLD_MEMBERSHIP;
        let notes = world.journal.iter().skip(world.journal.len().saturating_sub(new));
        let (told, counted): (Vec<_>, Vec<_>) = notes.partition(|note| note.deed || !crowd);
        if let Some(last) = counted.last() {
            let times = counted.len();
            self.lines.push(format!("{}    {times} times a node learned of others' coming or going", clock(last.at)));
        }
        self.lines.extend(told.into_iter().map(ToString::to_string));
        self.told = world.journaled;
        for verdict in &self.mesh.verdicts()[self.judged..] {
            self.judged += 1;
            self.failed.push(Failed { kind: verdict.checker, at: verdict.at, step: None });
            let at = clock(verdict.at.as_micros() as u64);
            self.lines.push(format!("{at} ✗ {} does not hold", verdict.checker));
            tell_findings(&mut self.lines, &verdict.findings);
        }
    }

    fn line(&mut self, mark: &str, what: &str) {
        self.catch_up();
        self.lines.push(format!("{} {mark} {what}", clock(self.mesh.world.now)));
    }

    fn fail(&mut self, kind: &'static str, place: usize, what: &str) {
        self.line("✗", what);
        self.failed.push(Failed { kind, at: self.mesh.now(), step: Some(place) });
    }

    fn step(&mut self, place: usize, step: &Step) {
        let mesh = &mut self.mesh;
        match &step.action {
            Action::Ask { node, commands } => return self.ask(place, node, commands),
            Action::App { node, chance } => {
                let at = mesh.node(node);
                if let Some(told) = mesh.world.draw_app(at, *chance) {
                    mesh.world.note(format!("{node}: {told}"));
                } else if mesh.world.guests.is_none() {
                    let what = format!("{node}: no program runs in this mesh; play it where it was drawn");
                    return self.fail("app", place, &what);
                }
            }
            Action::Cut { from, to, one_way } => {
                let (from, to) = (words(from), words(to));
                if *one_way { mesh.cut_one_way(&from, &to) } else { mesh.cut(&from, &to) }
            }
            Action::Heal => mesh.heal(),
            Action::HealBetween { from, to } => mesh.heal_between(&words(from), &words(to)),
            Action::Crash { node, torn: false } => mesh.crash(node),
            Action::Crash { node, torn: true } => mesh.crash_torn(node),
            Action::Restart(node) => mesh.restart(node),
            Action::Pause(node) => mesh.pause(node),
            Action::Resume(node) => mesh.resume(node),
            Action::Slow(node, each) => mesh.slow(node, *each),
            Action::Disk(node, latency) => mesh.slow_disk(node, *latency),
            Action::Skew(node, ms) => mesh.skew(node, *ms),
            Action::Drift(node, ppm) => mesh.drift(node, *ppm),
            Action::Links(change) => {
                let links = change.apply(mesh.world.links.all);
                mesh.set_links(links);
            }
            Action::LinksBetween { from, to, change } => {
                let links = change.apply(mesh.world.links.all);
                mesh.set_links_between(&words(from), &words(to), links);
            }
            Action::Probes(path, good) => mesh.probes(path, *good),
            Action::Mend => mesh.mend(),
            Action::Expect { what, on, within } => return self.expect(what, on, *within, (place, step)),
        }
        self.catch_up();
    }

    fn ask(&mut self, place: usize, node: &str, commands: &[starling_core::Command]) {
        for command in commands {
            if self.lenient {
                if let Err(why) = self.mesh.submit(node, command.clone()) {
                    self.line(" ", &format!("{node}: {why}"));
                }
            } else if let Err(why) = self.mesh.command(node, command.clone()) {
                self.fail("command", place, &format!("{node}: {why}"));
            }
        }
        self.catch_up();
    }

    fn expect(&mut self, what: &Expectation, on: &[String], within: Duration, (place, step): (usize, &Step)) {
        let holds = |mesh: &Mesh| findings(mesh, what, on, false).is_empty();
        let asked_us = self.mesh.world.now;
        let took = self.mesh.run_until(within, holds);
        let found = if took.is_some() { Vec::new() } else { findings(&self.mesh, what, on, true) };
        if let Some(recorder) = &mut self.mesh.world.recorder {
            let (what, findings) = (what.to_string(), found.clone());
            recorder.judged(Judged { asked_us, at_us: self.mesh.world.now, what, held: took.is_some(), findings });
        }
        match took {
            Some(took) => {
                self.held += 1;
                let waited = if took.is_zero() { String::new() } else { format!(", after {took:?}") };
                self.line("✓", &format!("{what}{waited}"));
            }
            None => {
                let waited = if within.is_zero() { String::new() } else { format!(" within {within:?}") };
                let line = if step.line > 0 { format!(" (line {})", step.line) } else { String::new() };
                self.fail(what.word(), place, &format!("{what}: not so{waited}{line}"));
                tell_findings(&mut self.lines, &found);
            }
        }
    }
}

fn tell_findings(lines: &mut Vec<String>, found: &[String]) {
    lines.extend(found.iter().take(TOLD_FINDINGS).map(|finding| format!("             {finding}")));
    if found.len() > TOLD_FINDINGS {
        lines.push(format!("             and {} more", found.len() - TOLD_FINDINGS));
    }
}

fn words(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expectation::Converged => write!(f, "nodes that reach each other agree"),
            Expectation::NothingLost => write!(f, "nothing acknowledged is lost"),
            Expectation::Visible(key) => write!(f, "{key} is visible"),
            Expectation::Ready(key) => write!(f, "{key} is ready for traffic"),
            Expectation::Gone(key) => write!(f, "{key} is gone"),
            Expectation::Config(key, value) => write!(f, "{key} is served as {value:?}"),
            Expectation::Conflict(key, versions) => write!(f, "{key} shows a conflict of {versions} versions"),
            Expectation::NoConflict(key) => write!(f, "{key} shows no conflict"),
        }
    }
}

/// What speaks against an expectation; nothing when it holds. Without `all`, the first that is found will do.
fn findings(mesh: &Mesh, what: &Expectation, on: &[String], all: bool) -> Vec<String> {
    match what {
        Expectation::Converged if !all && !mesh.world.fingerprints_agree() => {
            return vec!["fingerprints differ".into()];
        }
        Expectation::Converged => return mesh.world.disagreements(),
        Expectation::NothingLost => return mesh.nothing_lost().err().map(|story| story.findings).unwrap_or_default(),
        _ => {}
    }
    let everybody: Vec<String> = mesh.running().iter().map(ToString::to_string).collect();
    let on = if on.is_empty() { &everybody } else { on };
    let against = on.iter().filter_map(|node| match mesh.try_view(node) {
        Some(view) => against(&view, what).map(|found| format!("{node} {found}")),
        None => Some(format!("{node} is down")),
    });
    if all { against.collect() } else { against.take(1).collect() }
}

/// What a node's picture says against an expectation.
fn against(view: &View, what: &Expectation) -> Option<String> {
    let text = |body: &Body| String::from_utf8_lossy(body.as_bytes()).into_owned();
    match what {
        Expectation::Converged | Expectation::NothingLost => None,
        Expectation::Visible(key) => view.instance(key).is_none().then(|| "does not list it".into()),
        Expectation::Gone(key) => view.instance(key).is_some().then(|| "lists it".into()),
        Expectation::Ready(key) => match view.instance(key).map(|shown| shown.usability) {
            Some(Usability::Ready) => None,
            Some(other) => Some(format!("holds it back: {other:?}")),
            None => Some("does not list it".into()),
        },
        Expectation::Config(key, value) => {
            let served = view.config(key).and_then(|config| config.served()?.body.as_ref().map(text));
            (served.as_ref() != Some(value)).then(|| match served {
                Some(other) => format!("serves {other:?}"),
                None => "serves nothing".into(),
            })
        }
        Expectation::Conflict(key, versions) => {
            let shown = view.config(key).map_or(0, |config| config.versions.len());
            (shown != *versions).then(|| format!("shows {shown} versions"))
        }
        Expectation::NoConflict(key) => {
            let shown = view.config(key).map_or(0, |config| config.versions.len());
            (shown > 1).then(|| format!("shows {shown} versions"))
        }
    }
}
