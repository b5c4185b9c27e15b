//! A scenario on its real stage: each step at its time by the real clock, each expectation asked of the nodes' APIs.
//!
//! While it waits, it looks at every node again and again, so that the run can be drawn like a simulated one; what is
//! drawn is as exact as that: about [`LOOK_EVERY`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use starling_core::Command;
use starling_core::id::ConfigKey;
use starling_core::view::Usability;
use starling_sim::ask::told;
use starling_sim::scenario::{Action, Expectation, Scenario, Step};
use starling_sim::{CutSpan, Held, Judged, NodeState, NodeTrack, Noted, Recording, StateChange, WriteTrack};

use super::asks::ask;
use super::book::{Book, Wrote};
use super::host::Host;
use super::place::Place;
use crate::cli::output::{Out, Style};

/// How often nodes are looked at while nothing else is to be done.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long an expectation is waited for at least: real detectors need seconds, and a machine may be busy.
const GRACE: Duration = Duration::from_secs(10);
/// How many findings of a failed expectation are told.
const TOLD: usize = 12;

pub(super) struct Stage<'a> {
    scenario: &'a Scenario,
    place: Place,
    hosts: Vec<Host>,
    began: Instant,
    /// What was left out of long waits so far.
    skipped: Duration,
    longest_wait: Option<Duration>,
    book: Book,
    pub(super) recording: Recording,
    pub(super) lines: Vec<String>,
    pub(super) held: usize,
    pub(super) failed: usize,
    out: &'a mut Out,
}

impl<'a> Stage<'a> {
    /// All nodes of these hosts are started and know each other; the clock starts.
    pub(super) fn set(
        scenario: &'a Scenario,
        place: Place,
        hosts: Vec<Host>,
        longest_wait: Option<Duration>,
        out: &'a mut Out,
    ) -> Self {
        let (zones, cells) = (&scenario.options().zones, &scenario.options().cells);
        let track = |(at, host): (usize, &Host)| NodeTrack {
            name: host.name.clone(),
            zone: if zones.is_empty() { "default".into() } else { zones[at % zones.len()].clone() },
            cell: if cells.is_empty() { "0".into() } else { cells[at % cells.len()].clone() },
            states: vec![StateChange { at_us: 0, state: NodeState::Running }],
            alive: Vec::new(),
            held: Vec::new(),
        };
        let recording = Recording {
            replay: String::new(),
            elapsed_us: 0,
            nodes: hosts.iter().enumerate().map(track).collect(),
            cuts: Vec::new(),
            writes: Vec::new(),
            seconds: Vec::new(),
            judged: Vec::new(),
            notes: Vec::new(),
            left_out: 0,
        };
        let (began, skipped, book) = (Instant::now(), Duration::ZERO, Book::default());
        let lines = Vec::new();
        Self { scenario, place, hosts, began, skipped, longest_wait, book, recording, lines, held: 0, failed: 0, out }
    }

    /// Plays it to its end.
    pub(super) fn play(&mut self) -> Result<(), String> {
        for step in self.scenario.steps() {
            self.wait_for(step.at);
            self.step(step)?;
            self.out.flush().map_err(|error| error.to_string())?;
        }
        self.look();
        self.recording.elapsed_us = self.now_us();
        Ok(())
    }

    fn now(&self) -> Duration {
        self.began.elapsed() + self.skipped
    }

    fn now_us(&self) -> u64 {
        self.now().as_micros() as u64
    }

    fn wait_for(&mut self, at: Duration) {
        self.look();
        let wait = at.saturating_sub(self.now());
        if let Some(longest) = self.longest_wait {
            self.skipped += wait.saturating_sub(longest);
        }
        while self.now() < at {
            self.look();
            std::thread::sleep(at.saturating_sub(self.now()).min(LOOK_EVERY));
        }
    }

    // ---- what is told

    fn line(&mut self, style: Style, mark: &str, what: &str) {
        let at = self.now();
        let line = format!("{:>4}.{:03} s {mark} {what}", at.as_secs(), at.subsec_millis());
        self.say(style, line);
    }

    /// Tells a line as it happens, unless all of them come at the end as JSON.
    fn say(&mut self, style: Style, line: String) {
        if !self.out.wants_json() {
            let _ = self.out.styled(style, &line); // who has closed the output gets the exit code still
        }
        self.lines.push(line);
    }

    fn deed(&mut self, what: String) {
        self.recording.notes.push(Noted { at_us: self.now_us(), deed: true, what: what.clone() });
        self.line(Style::Plain, " ", &what);
    }

    fn fails(&mut self, what: &str) {
        self.failed += 1;
        self.line(Style::Bad, "✗", what);
    }

    // ---- steps

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match &step.action {
            Action::Ask { node, commands } => self.ask(node, commands)?,
            Action::Cut { from, to, one_way } => self.cut(from, to, *one_way)?,
            Action::Heal => {
                let all: Vec<usize> = (0..self.hosts.len()).collect();
                self.deed("heal".into());
                self.join(&all, &all)?;
            }
            Action::HealBetween { from, to } => {
                self.deed(format!("heal between {} and {}", from.join(", "), to.join(", ")));
                let (from, to) = (self.places(from), self.places(to));
                self.join(&from, &to)?;
                self.join(&to, &from)?;
            }
            Action::Crash { node, .. } => {
                self.deed(format!("{node} crashes"));
                self.turn(node, NodeState::Crashed, |host, _| {
                    host.crash();
                    Ok(())
                })?;
            }
            Action::Restart(node) => {
                self.deed(format!("{node} starts again"));
                self.turn(node, NodeState::Running, |host, place| {
                    host.start(place)?;
                    host.ready()
                })?;
            }
            Action::Pause(node) => {
                self.deed(format!("{node} stands still"));
                self.turn(node, NodeState::Paused, |host, _| host.pause())?;
            }
            Action::Resume(node) => {
                self.deed(format!("{node} goes on"));
                self.turn(node, NodeState::Running, |host, _| host.resume())?;
            }
            Action::Links(change) => {
                let links = change.apply(self.scenario.options().links);
                self.deed(format!("links: {links}"));
                (0..self.hosts.len()).try_for_each(|node| self.place.shape(node, &links))?;
            }
            Action::Mend => self.mend()?,
            Action::Expect { what, on, within } => self.expect(what, on, *within, step.line),
            other => return Err(format!("line {}: {other:?} cannot be done to a real node", step.line)),
        }
        Ok(())
    }

    fn place_of(&self, name: &str) -> usize {
        self.hosts.iter().position(|host| host.name == name).expect("a scenario names its own nodes")
    }

    fn places(&self, names: &[String]) -> Vec<usize> {
        names.iter().map(|name| self.place_of(name)).collect()
    }

    fn turn(
        &mut self,
        node: &str,
        state: NodeState,
        deed: impl FnOnce(&mut Host, &Place) -> Result<(), String>,
    ) -> Result<(), String> {
        let at = self.place_of(node);
        deed(&mut self.hosts[at], &self.place)?;
        let change = StateChange { at_us: self.now_us(), state };
        self.recording.nodes[at].states.push(change);
        Ok(())
    }

    fn cut(&mut self, from: &[String], to: &[String], one_way: bool) -> Result<(), String> {
        match one_way {
            true => self.deed(format!("cut from {} to {}, one way", from.join(", "), to.join(", "))),
            false => self.deed(format!("cut between {} and {}", from.join(", "), to.join(", "))),
        }
        let (from, to) = (self.places(from), self.places(to));
        let begin_us = self.now_us();
        let ways = if one_way { vec![(from, to)] } else { vec![(from.clone(), to.clone()), (to, from)] };
        for (from, to) in ways {
            self.place.set(&from, &to, true)?;
            let [from, to] = [from, to].map(|side| side.iter().map(|node| *node as u32).collect());
            self.recording.cuts.push(CutSpan { from, to, begin_us, end_us: None });
        }
        Ok(())
    }

    fn join(&mut self, from: &[usize], to: &[usize]) -> Result<(), String> {
        self.place.set(from, to, false)?;
        let (place, now) = (&self.place, self.now_us());
        for cut in self.recording.cuts.iter_mut().filter(|cut| cut.end_us.is_none()) {
            // Drawn as healed once any part of it is.
            let open = |a: &u32, b: &u32| a != b && place.is_open(*a as usize, *b as usize);
            if cut.from.iter().any(|a| cut.to.iter().any(|b| open(a, b))) {
                cut.end_us = Some(now);
            }
        }
        Ok(())
    }

    fn mend(&mut self) -> Result<(), String> {
        self.deed("all is mended".into());
        let all: Vec<usize> = (0..self.hosts.len()).collect();
        self.join(&all, &all)?;
        for at in all {
            let name = self.hosts[at].name.clone();
            if !self.hosts[at].is_up() {
                self.turn(&name, NodeState::Running, |host, place| {
                    host.start(place)?;
                    host.ready()
                })?;
            } else if !self.hosts[at].is_running() {
                self.turn(&name, NodeState::Running, |host, _| host.resume())?;
            }
        }
        Ok(())
    }

    fn ask(&mut self, node: &str, commands: &[Command]) -> Result<(), String> {
        let at = self.place_of(node);
        for command in commands {
            self.deed(format!("{node}: {}", told(command)));
            if !self.hosts[at].is_running() {
                if !self.scenario.lenient() {
                    self.fails(&format!("{node}: node {node} is not running"));
                }
                continue;
            }
            let Some(request) = ask(command) else {
                self.turn(node, NodeState::Left, |host, _| host.leave())?;
                continue;
            };
            let replaces = match command {
                Command::WriteConfig(write) => self.stamps(at, &write.key),
                _ => Vec::new(),
            };
            let at_us = self.now_us();
            match self.hosts[at].write::<Stamped>(request) {
                Ok(Stamped { stamp }) => self.wrote(at, command, stamp.unwrap_or_default(), replaces, at_us),
                Err(why) if self.scenario.lenient() => self.line(Style::Dim, " ", &format!("{node}: {why}")),
                Err(why) => self.fails(&format!("{node}: {why}")),
            }
        }
        Ok(())
    }

    fn wrote(&mut self, at: usize, command: &Command, stamp: String, replaces: Vec<String>, at_us: u64) {
        let Some((wrote, key, removal)) = Wrote::of(command) else { return };
        self.recording.writes.push(WriteTrack {
            key,
            says: wrote.says(),
            removal,
            stamp: stamp.clone(),
            author: at as u32,
            at_us,
            acknowledged_us: Some(self.now_us()),
            seen_us: vec![None; self.hosts.len()],
        });
        self.book.acknowledged(wrote, stamp, replaces);
        self.look();
    }

    // ---- looking

    /// Looks at every node that runs: what it holds, and which writes have reached it.
    fn look(&mut self) {
        for at in 0..self.hosts.len() {
            if !self.hosts[at].is_running() {
                continue;
            }
            let Ok(detail) = self.hosts[at].node() else { continue };
            let lost = (self.hosts.len() as u32).saturating_sub(detail.node.members_alive);
            let preserved = if lost == 0 { 0 } else { self.hosts[at].preserved().unwrap_or(0) };
            let (store, conflicts) = (detail.node.fingerprint, detail.conflicts);
            let held = Held { at_us: self.now_us(), store, lost, preserved, conflicts };
            let track = &mut self.recording.nodes[at].held;
            if track.last().is_some_and(|last| last.is_like(&held)) {
                continue;
            }
            track.push(held);
            self.arrivals(at);
        }
    }

    fn arrivals(&mut self, at: usize) {
        let pending = |write: &(usize, &WriteTrack)| write.1.seen_us[at].is_none();
        let open: Vec<usize> =
            self.recording.writes.iter().enumerate().filter(pending).map(|(place, _)| place).collect();
        for place in open {
            if self.book.shows(place, &self.hosts[at]) {
                self.recording.writes[place].seen_us[at] = Some(self.now_us());
            }
        }
    }

    fn stamps(&self, at: usize, key: &ConfigKey) -> Vec<String> {
        let document = self.hosts[at].document(key).ok().flatten();
        let versions = document.into_iter().flat_map(|document| document.versions);
        versions.map(|version| version.stamp.to_string()).collect()
    }

    // ---- expectations

    fn expect(&mut self, what: &Expectation, on: &[String], within: Duration, line: usize) {
        let (asked, asked_us, limit) = (Instant::now(), self.now_us(), within.max(GRACE));
        let on: Vec<usize> = match on {
            [] => (0..self.hosts.len()).filter(|at| self.hosts[*at].is_running()).collect(),
            named => self.places(named),
        };
        let findings = loop {
            let findings = self.findings(what, &on);
            if findings.is_empty() || asked.elapsed() > limit {
                break findings;
            }
            self.look();
            std::thread::sleep(LOOK_EVERY);
        };
        let held = findings.is_empty();
        if held {
            self.held += 1;
            let waited = match asked.elapsed() {
                soon if soon < 2 * LOOK_EVERY => String::new(),
                waited => format!(", after {:.1} s", waited.as_secs_f64()),
            };
            self.line(Style::Good, "✓", &format!("{what}{waited}"));
        } else {
            self.fails(&format!("{what}: not so within {limit:?} (line {line})"));
            for finding in findings.iter().take(TOLD) {
                self.say(Style::Plain, format!("             {finding}"));
            }
        }
        let judged = Judged { asked_us, at_us: self.now_us(), what: what.to_string(), held, findings };
        self.recording.judged.push(judged);
    }

    /// What speaks against an expectation.
    fn findings(&self, what: &Expectation, on: &[usize]) -> Vec<String> {
        match what {
            Expectation::Converged => self.disagreements(),
            Expectation::NothingLost => self.book.losses(&self.hosts),
            _ => on.iter().filter_map(|at| self.against(*at, what)).collect(),
        }
    }

    fn against(&self, at: usize, what: &Expectation) -> Option<String> {
        let host = &self.hosts[at];
        if !host.is_up() {
            return Some(format!("{} is down", host.name));
        }
        let found = match what {
            Expectation::Visible(key) | Expectation::Ready(key) | Expectation::Gone(key) => {
                host.instance(key).map(|shown| instance_against(what, shown.map(|shown| shown.usability)))
            }
            Expectation::Config(key, _) | Expectation::Conflict(key, _) | Expectation::NoConflict(key) => {
                host.document(key).map(|shown| {
                    let versions = shown.map_or(Vec::new(), |document| document.versions);
                    let texts = versions.into_iter().map(|version| version.text.filter(|_| !version.deleted));
                    document_against(what, &texts.collect::<Vec<_>>())
                })
            }
            Expectation::Converged | Expectation::NothingLost => Ok(None),
        };
        let found = found.unwrap_or_else(|why| Some(format!("does not answer: {why}")));
        found.map(|found| format!("{} {found}", host.name))
    }

    /// Nodes that reach each other, directly or through others, and hold something else.
    fn disagreements(&self) -> Vec<String> {
        let mut prints: BTreeMap<usize, String> = BTreeMap::new();
        let mut found = Vec::new();
        for (at, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.is_running()) {
            match host.node() {
                Ok(detail) => _ = prints.insert(at, detail.node.fingerprint),
                Err(why) => found.push(format!("{} does not answer: {why}", host.name)),
            }
        }
        let mut left: Vec<usize> = prints.keys().copied().collect();
        while let Some(first) = left.pop() {
            let mut group = vec![first];
            let mut next = 0;
            while let Some(&node) = group.get(next) {
                let linked = |other: &usize| self.place.is_open(node, *other) && self.place.is_open(*other, node);
                let (reached, rest): (Vec<usize>, Vec<usize>) = left.iter().partition(|other| linked(other));
                group.extend(reached);
                left = rest;
                next += 1;
            }
            let others = group.iter().filter(|other| prints[other] != prints[&first]);
            found.extend(others.map(|other| {
                let [one, two] = [first, *other].map(|at| &self.hosts[at].name);
                format!("{one} and {two} hold something else ({} and {})", prints[&first], prints[other])
            }));
        }
        found
    }
}

/// The part of an answer that names the write.
#[derive(Debug, Deserialize)]
struct Stamped {
    #[serde(default)]
    stamp: Option<String>,
}

fn instance_against(what: &Expectation, shown: Option<Usability>) -> Option<String> {
    match (what, shown) {
        (Expectation::Gone(_), Some(_)) => Some("lists it".into()),
        (Expectation::Gone(_), None) | (Expectation::Visible(_), Some(_)) => None,
        (Expectation::Ready(_), Some(Usability::Ready)) => None,
        (Expectation::Ready(_), Some(other)) => Some(format!("holds it back: {other:?}")),
        _ => Some("does not list it".into()),
    }
}

/// Against the texts of a document's versions, the served one first; a deletion is `None`.
fn document_against(what: &Expectation, versions: &[Option<String>]) -> Option<String> {
    let shows = || Some(format!("shows {} versions", versions.len()));
    match what {
        Expectation::Config(_, value) => match versions.first().and_then(Option::as_ref) {
            Some(served) if served == value => None,
            Some(other) => Some(format!("serves {other:?}")),
            None => Some("serves nothing".into()),
        },
        Expectation::Conflict(_, wanted) if versions.len() != *wanted => shows(),
        Expectation::NoConflict(_) if versions.len() > 1 => shows(),
        _ => None,
    }
}
