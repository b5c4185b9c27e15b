//! A document tried on the requests of the last minute, on a clock of its own: what would it have refused?
//!
//! The guards are the very ones the document would make, empty when the minute begins. They meet the requests in the order
//! of [`crate::policy::Scope`]'s guards: the switch, lists of callers, limits, bulkhead, circuit. A request that gets through holds
//! its place for as long as it really took; of one that was really refused nobody knows how long it would have taken and how it
//! would have ended: it holds its place for as long as the others usually did, and the circuit hears nothing of it.
//!
//! Some guards cannot be asked in retrospect, and [`Trial::left_out`] names those the document has: `shed` and
//! `concurrency` go by how the callee would have done under another load, `quota` by what other nodes ask for, `fault` by
//! chance.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Table;

use super::recent::{End, Fact, Recent};
use super::{Document, Force, Judgement, Moment, Scope, value_of};
use crate::guard::bulkhead::{Admission, Pass, Waiting};
use crate::guard::circuit::CircuitPermit;
use crate::guard::limit::{KeyBudget, LimitBy};
use crate::guard::{Guard, Refusal};
use crate::time::{Instant, WallTime};

/// The most requests that are played; where more came, the latest. A tenth of a second's work or so.
const MAX_PLAYED: u64 = 100_000;

/// What would have been refused, and what was. Counts are of requests; where not all were kept, those that were count for
/// those that were not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trial {
    /// How many milliseconds back this goes.
    pub covers_ms: u64,
    /// How many requests came.
    pub requests: u64,
    /// How many of them were kept.
    pub kept: u64,
    /// By guard and reason.
    pub refusals: Vec<Refused>,
    /// Guards the document has that cannot be tried in retrospect.
    pub left_out: Vec<String>,
}

/// What one guard refused for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The guard.
    pub guard: String,
    /// The reason and the rule, as callers are told.
    pub why: String,
    /// How many were refused.
    pub was: u64,
    /// How many the document would have refused.
    pub would: u64,
}

/// A document to be tried in the place of one that is in force.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its text.
    pub text: &'a str,
    /// Whether it is the one for all services.
    pub for_all: bool,
}

/// Where and when a document is tried.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// Whose applications asked.
    pub node: &'a str,
    /// What the node's settings say.
    pub layer: &'a Table,
    /// How many nodes there are.
    pub members: u32,
    /// Now, by the clock of what was kept.
    pub now: Instant,
    /// And by the wall's.
    pub wall: WallTime,
}

impl Candidate<'_> {
    /// Tries it on what was asked of a service, whose other document stays as it was judged.
    ///
    /// # Errors
    /// What is wrong with the document, in sentences.
    pub fn play(&self, judgement: &Judgement, recent: Option<&Recent>, stage: &Stage<'_>) -> Result<Trial, String> {
        let parsed = if self.for_all { Document::parse_for_all(self.text) } else { Document::parse(self.text) };
        let document = parsed.map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            problems.join("; ")
        })?;
        let mut layers = judgement.layers(stage.layer);
        *(if self.for_all { &mut layers.mesh } else { &mut layers.service }) = Some(&document);
        let (facts, covers) = recent.map(|recent| recent.facts(stage.now)).unwrap_or_default();
        // Memory of its own: a trial shall not take any from the limits in force.
        let keys = Arc::new(KeyBudget::of(super::MAX_KEYS));
        let at = Moment { now: stage.now, wall: stage.wall, members: stage.members, keys: &keys };
        let force = Force::new(&layers, None, at).map_err(|problem| problem.to_string())?;
        Ok(Play::new(&force, &facts, stage).run(covers))
    }
}

/// A request on its way through the guards.
struct Call<'a> {
    fact: &'a Fact,
    came: Instant,
    scope: &'a Arc<Scope>,
    waiting: Option<Waiting>,
    place: Option<Pass>,
    circuit: Option<CircuitPermit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Come,
    /// Its limits have let it through.
    Enter,
    /// It waits for a place no longer.
    GiveUp,
    End,
}

struct Play<'a> {
    stage: &'a Stage<'a>,
    force: &'a Force,
    facts: &'a [Fact],
    /// Whether there were more than are played.
    is_cut: bool,
    /// How long a request usually took.
    usual: Duration,
    calls: Vec<Call<'a>>,
    /// What happens next: when, in which order of those at one time, what, and to whom.
    steps: BinaryHeap<Reverse<(Instant, u64, Step, usize)>>,
    planned: u64,
    /// Calls whose wait has ended.
    woken: Arc<Mutex<Vec<usize>>>,
    would: BTreeMap<(Guard, String), u64>,
}

impl<'a> Play<'a> {
    fn new(force: &'a Force, facts: &'a [Fact], stage: &'a Stage<'a>) -> Self {
        // The latest, as many as are played.
        let mut played = 0;
        let first = facts.iter().rposition(|fact| {
            played += u64::from(fact.stands_for);
            played > MAX_PLAYED
        });
        let (is_cut, facts) = (first.is_some(), &facts[first.map_or(0, |first| first + 1)..]);
        let mut took: Vec<Duration> =
            facts.iter().filter(|fact| fact.refusal().is_none()).map(|fact| fact.took).collect();
        took.sort_unstable();
        let usual = took.get(took.len() / 2).copied().unwrap_or_default();
        let (calls, steps, woken) = Default::default();
        Self { stage, force, facts, is_cut, usual, calls, steps, planned: 0, woken, would: BTreeMap::new() }
    }

    fn run(mut self, covers: Duration) -> Trial {
        let mut before = None;
        for fact in self.facts {
            // Those it stands for came before it, evenly since the last one that was kept, in the same second.
            let gap = before.map_or(Duration::ZERO, |before| fact.came.since(before)).min(Duration::from_secs(1));
            for place in (0..fact.stands_for).rev() {
                self.come(fact, fact.came - gap * place / fact.stands_for);
            }
            before = Some(fact.came);
        }
        while let Some(Reverse((now, _, step, call))) = self.steps.pop() {
            self.take(step, call, now);
            loop {
                let woken = std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner));
                if woken.is_empty() {
                    break;
                }
                woken.into_iter().for_each(|call| self.look(call, now));
            }
        }
        self.told(covers)
    }

    fn told(self, covers: Duration) -> Trial {
        let mut counts: BTreeMap<(Guard, String), (u64, u64)> = BTreeMap::new();
        for fact in self.facts {
            if let Some((guard, why)) = fact.refusal() {
                counts.entry((guard, why.to_owned())).or_default().0 += u64::from(fact.stands_for);
            }
        }
        for (key, would) in self.would {
            counts.entry(key).or_default().1 = would;
        }
        let refused = |((guard, why), (was, would)): (_, (u64, u64))| {
            let guard: Guard = guard;
            Refused { guard: guard.name().to_owned(), why, was, would }
        };
        // Where not all that is kept was played, it goes as far back as what was.
        let played = self.facts.first().filter(|_| self.is_cut).map(|first| self.stage.now.since(first.came));
        let covers = played.unwrap_or(covers);
        Trial {
            covers_ms: covers.as_millis() as u64,
            requests: self.calls.len() as u64,
            kept: self.facts.len() as u64,
            refusals: counts.into_iter().map(refused).collect(),
            left_out: left_out(self.force),
        }
    }

    fn plan(&mut self, at: Instant, step: Step, call: usize) {
        self.planned += 1;
        self.steps.push(Reverse((at, self.planned, step, call)));
    }

    fn come(&mut self, fact: &'a Fact, came: Instant) {
        let fields = fact.fields();
        let asked = fact.asked(&fields, self.stage.node);
        let scope = self.force.scope(|route| route.matches(&asked));
        self.calls.push(Call { fact, came, scope, waiting: None, place: None, circuit: None });
        self.plan(came, Step::Come, self.calls.len() - 1);
    }

    fn take(&mut self, step: Step, call: usize, now: Instant) {
        match step {
            Step::Come => match self.pass(call, now) {
                Ok(Duration::ZERO) => self.enter(call, now),
                Ok(wait) => self.plan(now + wait, Step::Enter, call),
                Err((refusal, rule)) => self.refuse(call, refusal, &rule),
            },
            Step::Enter => self.enter(call, now),
            Step::GiveUp => {
                if let Some(waiting) = self.calls[call].waiting.take() {
                    self.refuse(call, waiting.give_up(), "bulkhead");
                }
            }
            Step::End => self.end(call, now),
        }
    }

    /// The switch, the lists, the limits. How long it is held back.
    fn pass(&mut self, call: usize, now: Instant) -> Result<Duration, (Refusal, String)> {
        let Call { fact, scope, .. } = &self.calls[call];
        let fields = fact.fields();
        let asked = fact.asked(&fields, self.stage.node);
        if let Some(retry_after) = scope.forced_open(scope.class(&asked), self.stage.wall) {
            let refusal = Refusal { guard: Guard::Breaker, reason: "forced open", retry_after };
            return Err((refusal, "degrade".into()));
        }
        if let Some(callers) = &scope.callers {
            callers.admit(asked.service).map_err(|refusal| (refusal, "callers".into()))?;
        }
        let patience = Duration::from_millis(scope.sections.timeouts.request_ms);
        let mut held = Duration::ZERO;
        for (limit, related) in scope.limits.iter().zip(&scope.related) {
            let settings = limit.settings();
            if settings.entrance.as_deref().is_some_and(|entrance| asked.service != Some(entrance)) {
                continue;
            }
            let value = value_of(&settings.by, &asked);
            let admitted = match related {
                Some(other) => limit.admit_related(now, other).map(|()| Duration::ZERO),
                None if value.is_empty() && settings.by != LimitBy::All => continue,
                None => limit.admit_within(now + held, value, 1, patience.saturating_sub(held)),
            };
            held += admitted.map_err(|refusal| (refusal, settings.name.clone()))?;
        }
        Ok(held)
    }

    fn enter(&mut self, call: usize, now: Instant) {
        let Some(bulkhead) = &self.calls[call].scope.bulkhead else { return self.go(call, now) };
        match bulkhead.admit(now) {
            Ok(Admission::Pass(place)) => {
                self.calls[call].place = Some(place);
                self.go(call, now);
            }
            Ok(Admission::Wait(waiting)) => {
                let patience = Duration::from_millis(self.calls[call].scope.sections.timeouts.request_ms);
                let left = patience.saturating_sub(now.since(self.calls[call].came));
                let until = now + bulkhead.max_wait().min(left);
                self.calls[call].waiting = Some(waiting);
                self.plan(until, Step::GiveUp, call);
                self.look(call, now);
            }
            Err(refusal) => self.refuse(call, refusal, "bulkhead"),
        }
    }

    /// Has its wait ended?
    fn look(&mut self, call: usize, now: Instant) {
        let Some(waiting) = &mut self.calls[call].waiting else { return };
        let waker = Waker::from(Arc::new(Bell { call, woken: self.woken.clone() }));
        let Poll::Ready(ended) = Pin::new(waiting).as_mut().poll(&mut Context::from_waker(&waker)) else { return };
        self.calls[call].waiting = None;
        match ended {
            Ok(place) => {
                self.calls[call].place = Some(place);
                self.go(call, now);
            }
            Err(refusal) => self.refuse(call, refusal, "bulkhead"),
        }
    }

    /// By the circuit, to the callee.
    fn go(&mut self, call: usize, now: Instant) {
        let Call { fact, scope, .. } = self.calls[call];
        if let Some(circuits) = &scope.circuit {
            let fields = fact.fields();
            let asked = fact.asked(&fields, self.stage.node);
            // Without jitter: a trial says the same each time.
            match circuits.of(|| asked.called()).admit(now, 0) {
                Ok(permit) => self.calls[call].circuit = Some(permit),
                Err(refusal) => {
                    self.refuse(call, refusal, "circuit");
                    return self.leave(call, now);
                }
            }
        }
        scope.watched.iter().for_each(|meter| meter.pass(now));
        let took = if fact.refusal().is_some() { self.usual } else { fact.took };
        self.plan(now + took, Step::End, call);
    }

    fn end(&mut self, call: usize, now: Instant) {
        let Call { fact, scope, .. } = self.calls[call];
        if let (Some(permit), End::Came(came)) = (self.calls[call].circuit.take(), fact.end) {
            permit.end(scope.failures.judge(came), None, now, 0);
        }
        self.leave(call, now);
    }

    fn leave(&mut self, call: usize, now: Instant) {
        if let Some(place) = self.calls[call].place.take() {
            place.end(now);
        }
    }

    fn refuse(&mut self, call: usize, refusal: Refusal, rule: &str) {
        let rule = self.calls[call].scope.rule(refusal.guard, rule);
        *self.would.entry((refusal.guard, refusal.told(&rule))).or_default() += 1;
    }
}

/// Rings when the wait of a call has ended.
struct Bell {
    call: usize,
    woken: Arc<Mutex<Vec<usize>>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.call);
    }
}

fn left_out(force: &Force) -> Vec<String> {
    let has = |guard: fn(&Scope) -> bool| force.scopes().any(|scope| guard(scope));
    let known: [(&str, bool); 4] = [
        ("shed", has(|scope| scope.shed.is_some())),
        ("concurrency", has(|scope| scope.concurrency.is_some())),
        ("quota", has(|scope| !scope.quotas.is_empty())),
        ("fault", has(|scope| !scope.faults.is_empty())),
    ];
    known.into_iter().filter(|(_, is_there)| *is_there).map(|(guard, _)| guard.to_owned()).collect()
}

#[cfg(test)]
mod tests;
