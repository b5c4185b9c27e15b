//! Making a failing scenario smaller, as long as it fails in the same way.
//!
//! First steps are left out, in halves, quarters and so on down to single ones (delta debugging: Zeller and Hildebrandt,
//! "Simplifying and Isolating Failure-Inducing Input", 2002); then nodes; then what is said of the mesh is made plain;
//! then the pauses between steps are made short. Again from the beginning, until nothing more can go.

use std::time::Duration;

use super::Verdict;
use crate::options::Options;
use crate::scenario::{Action, Scenario, Step};

/// What is left of a scenario that failed.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// The smallest scenario found that fails in the same way.
    pub scenario: Scenario,
    /// How many steps the first one had, and how many this one has.
    pub steps: (usize, usize),
    /// How many nodes the first one had, and how many this one has.
    pub nodes: (usize, usize),
    /// How many runs it took.
    pub runs: usize,
    /// What this one tells when it is played.
    pub verdict: Verdict,
}

/// Looks for a smaller scenario that `judge` finds wrong in the same way, with at most so many runs. `None` when the
/// scenario itself is not wrong.
pub(super) fn shrink(
    first: &Scenario,
    most_runs: usize,
    judge: &dyn Fn(&Scenario) -> Option<Verdict>,
) -> Option<Shrunk> {
    let verdict = judge(first)?;
    let mut search = Search { best: first.clone(), verdict, runs: 1, most_runs, judge };
    search.cut_after_failure();
    loop {
        let before = search.best.to_string();
        search.fewer_steps();
        search.fewer_nodes();
        search.smaller_groups();
        search.plainer_mesh();
        search.shorter();
        if search.best.to_string() == before || search.runs >= most_runs {
            break;
        }
    }
    Some(Shrunk {
        steps: (first.steps.len(), search.best.steps.len()),
        nodes: (first.mesh.options.nodes.len(), search.best.mesh.options.nodes.len()),
        scenario: search.best,
        runs: search.runs,
        verdict: search.verdict,
    })
}

struct Search<'a> {
    best: Scenario,
    verdict: Verdict,
    runs: usize,
    most_runs: usize,
    judge: &'a dyn Fn(&Scenario) -> Option<Verdict>,
}

impl Search<'_> {
    /// Takes a smaller scenario if it fails in the same way.
    fn try_out(&mut self, smaller: Scenario) -> bool {
        if self.runs >= self.most_runs || smaller.mesh.check().is_err() {
            return false;
        }
        self.runs += 1;
        match (self.judge)(&smaller) {
            Some(verdict) if verdict.kind == self.verdict.kind => {
                (self.best, self.verdict) = (smaller, verdict);
                true
            }
            _ => false,
        }
    }

    /// What comes after the failure cannot have caused it.
    fn cut_after_failure(&mut self) {
        if let Some(place) = self.verdict.step {
            let mut smaller = self.best.clone();
            smaller.steps.truncate(place + 1);
            self.try_out(smaller);
        }
    }

    fn fewer_steps(&mut self) {
        let mut chunk = self.best.steps.len().div_ceil(2).max(1);
        loop {
            let (mut at, mut smaller_found) = (0, false);
            while at < self.best.steps.len() && self.best.steps.len() > 1 {
                let mut smaller = self.best.clone();
                let until = (at + chunk).min(smaller.steps.len());
                smaller.steps.drain(at..until);
                if !smaller.steps.is_empty() && self.try_out(smaller) {
                    smaller_found = true; // the next chunk is now at the same place
                } else {
                    at += chunk;
                }
            }
            if chunk == 1 && !smaller_found {
                return;
            }
            if !smaller_found || chunk > self.best.steps.len() {
                chunk = (chunk / 2).max(1);
            }
            if self.runs >= self.most_runs {
                return;
            }
        }
    }

    fn fewer_nodes(&mut self) {
        let mut at = self.best.mesh.options.nodes.len();
        while at > 0 && self.best.mesh.options.nodes.len() > 1 {
            at -= 1;
            let smaller = without_node(&self.best, at);
            self.try_out(smaller);
        }
    }

    /// Cuts between fewer nodes.
    fn smaller_groups(&mut self) {
        let mut place = 0;
        while place < self.best.steps.len() {
            for side in [0, 1] {
                let mut at = group(&mut self.best.steps[place].action, side).map_or(0, |group| group.len());
                while at > 0 {
                    at -= 1;
                    let mut smaller = self.best.clone();
                    let Some(group) = group(&mut smaller.steps[place].action, side) else { break };
                    if group.len() < 2 {
                        break;
                    }
                    group.remove(at);
                    self.try_out(smaller);
                }
            }
            place += 1;
        }
    }

    fn plainer_mesh(&mut self) {
        let plain = Options::new(self.best.seed());
        let changes: [&dyn Fn(&mut Options); 12] = [
            &|options| (options.zone_links, options.pair_links) = (Vec::new(), Vec::new()),
            &|options| options.zones = Vec::new(),
            &|options| options.cells = Vec::new(),
            &|options| options.cell_links = plain.cell_links,
            &|options| options.links.loss = 0.0,
            &|options| options.links.duplication = 0.0,
            &|options| options.links.reordering = 0.0,
            &|options| options.links = plain.links,
            &|options| options.disk = Duration::ZERO,
            &|options| options.clock_spread = Duration::ZERO,
            &|options| options.settings = plain.settings.clone(),
            &|options| options.through_bytes = false,
        ];
        for change in changes {
            let mut smaller = self.best.clone();
            change(&mut smaller.mesh.options);
            if smaller.to_string() != self.best.to_string() {
                self.try_out(smaller);
            }
        }
        for place in 0..self.best.check.len() {
            let mut smaller = self.best.clone();
            if self.best.check.len() > place {
                smaller.check.remove(place);
                self.try_out(smaller);
            }
        }
    }

    /// Shorter pauses before each step; all that follow come earlier.
    fn shorter(&mut self) {
        for place in 0..self.best.steps.len() {
            let before = place.checked_sub(1).map_or(Duration::ZERO, |before| self.best.steps[before].at);
            let pause = self.best.steps[place].at.saturating_sub(before);
            for shorter in [Duration::ZERO, Duration::from_secs(1), whole(pause / 4), whole(pause / 2), whole(pause)] {
                if shorter >= pause {
                    continue;
                }
                let mut smaller = self.best.clone();
                smaller.steps[place..].iter_mut().for_each(|step| step.at -= pause - shorter);
                if self.try_out(smaller) {
                    break;
                }
            }
        }
    }
}

/// Whole seconds, or whole milliseconds of what is less: nicer to read.
fn whole(time: Duration) -> Duration {
    match time.as_secs() {
        0 => Duration::from_millis(time.as_millis() as u64),
        seconds => Duration::from_secs(seconds),
    }
}

/// A group of nodes that a step names, when it names two.
fn group(action: &mut Action, side: usize) -> Option<&mut Vec<String>> {
    match action {
        Action::Cut { from, to, .. } | Action::HealBetween { from, to } | Action::LinksBetween { from, to, .. } => {
            Some(if side == 0 { from } else { to })
        }
        _ => None,
    }
}

/// The scenario without a node, and without what only that node did or suffered.
fn without_node(scenario: &Scenario, at: usize) -> Scenario {
    let mut smaller = scenario.clone();
    let gone = smaller.mesh.options.nodes.remove(at);
    smaller.mesh.options.pair_links.retain(|(from, to, _)| *from != gone && *to != gone);
    smaller.steps.retain_mut(|step| goes_on_without(step, &gone));
    smaller
}

fn goes_on_without(step: &mut Step, gone: &str) -> bool {
    for side in [0, 1] {
        if let Some(group) = group(&mut step.action, side) {
            group.retain(|node| node != gone);
            if group.is_empty() {
                return false;
            }
        }
    }
    match &mut step.action {
        Action::Ask { node, .. }
        | Action::App { node, .. }
        | Action::Crash { node, .. }
        | Action::Restart(node)
        | Action::Pause(node)
        | Action::Resume(node)
        | Action::Slow(node, _)
        | Action::Disk(node, _)
        | Action::Skew(node, _)
        | Action::Drift(node, _) => node != gone,
        Action::Expect { on, .. } => {
            let named = !on.is_empty();
            on.retain(|node| node != gone);
            !named || !on.is_empty()
        }
        _ => true,
    }
}
