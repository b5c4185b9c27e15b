//! What the guards of a service do now on this node, for a person to read.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use starling_core::balance::Roster;
use starling_core::guard::{BreakerState, Word};
use starling_core::id::ServiceKey;
use starling_core::policy::{Candidate, Governor, Judgement, Scope, Stage, WaitingRequest};
use starling_core::time::{Instant, WallTime};

use crate::clock;
use crate::directory::Entry;
use crate::pool::Pool;
use crate::stack::Carrier;

/// The most instances shown of a service, those whose breaker is not closed first.
const MAX_INSTANCES: usize = 200;

#[derive(Default, Serialize)]
struct Report {
    problems: Vec<String>,
    guards: Vec<Guard>,
    refusals: Vec<Refusal>,
    instances: Vec<Instance>,
}

#[derive(Serialize)]
struct Guard {
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    guard: &'static str,
    state: Value,
}

#[derive(Serialize)]
struct Refusal {
    guard: &'static str,
    reason: &'static str,
    rule: String,
    count: u64,
}

#[derive(Serialize)]
struct Instance {
    instance: String,
    node: String,
    breaker: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_in_ms: Option<u64>,
    /// What the last check of it said, if it is out and was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<&'static str>,
    in_flight: u32,
    opened: u64,
}

impl Governor for Carrier {
    fn layer(&self) -> toml::Table {
        self.ground.layer.clone()
    }

    fn judgement(&self, service: &ServiceKey) -> Judgement {
        let view = self.mesh.view();
        let called = self.directory.entries().get(service).cloned();
        let judged = called.and_then(|entry| {
            entry.policy.force(service, &view, &self.ground, self.clock);
            entry.policy.judgement()
        });
        judged.unwrap_or_else(|| Judgement::of(&view, &self.ground.layer, service, None))
    }

    fn guards(&self, service: &ServiceKey) -> String {
        let entry = self.directory.entries().get(service).cloned();
        let report = entry.map_or_else(Report::default, |entry| self.report(service, &entry));
        // A struct of numbers and texts always becomes JSON.
        serde_json::to_string(&report).unwrap_or_else(|_| "{}".into())
    }

    fn rehearse(&self, service: &ServiceKey, candidate: Candidate<'_>) -> Result<String, String> {
        let entry = self.directory.entries().get(service).cloned();
        let stage = Stage {
            node: self.mesh.me().as_str(),
            layer: &self.ground.layer,
            members: self.mesh.view().alive().count() as u32,
            now: self.clock.now(),
            wall: WallTime(clock::wall_us() / 1_000),
        };
        let recent = entry.as_ref().map(|entry| &entry.recent);
        let trial = candidate.play(&self.judgement(service), recent, &stage)?;
        serde_json::to_string(&trial).map_err(|error| error.to_string())
    }

    fn waiting(&self, service: Option<&ServiceKey>, most: usize) -> (Vec<WaitingRequest>, u64) {
        self.failback.list(self.mesh.me(), service, most)
    }

    fn drop_waiting(&self, id: &str) -> bool {
        self.failback.drop_one(self.mesh.me(), id)
    }

    fn hurry_waiting(&self, service: &ServiceKey) -> u64 {
        self.failback.hurry(service)
    }
}

impl Guard {
    /// One that is no route's.
    fn of_all(guard: &'static str, state: &impl Serialize) -> Self {
        Self { route: None, guard, state: serde_json::to_value(state).unwrap_or_default() }
    }
}

impl Carrier {
    fn report(&self, service: &ServiceKey, entry: &Entry) -> Report {
        let now = self.clock.now();
        let force = entry.policy.force(service, &self.mesh.view(), &self.ground, self.clock);
        let mut guards = Vec::new();
        if let Some(host) = &self.host {
            guards.push(Guard::of_all("system", &host.snapshot()));
        }
        for scope in force.scopes() {
            // A guard a route shares with the service is shown once, as the service's.
            let whole = (!Arc::ptr_eq(scope, &force.service)).then_some(&*force.service);
            show(scope, whole, now, &mut guards);
        }
        let kept = Kept::of(entry);
        if kept.answers > 0 {
            guards.push(Guard::of_all("last_good", &kept));
        }
        if let Some(line) = self.failback.line(service) {
            guards.push(Guard::of_all("failback", &line));
        }
        if let Some(roster) = entry.roster() {
            guards.push(Guard::of_all("breaker", &Ejected::of(entry, &roster)));
        }
        let keys = entry.keys.snapshot();
        if keys.counts != Default::default() || force.scopes().any(|scope| scope.sections.idempotency.is_some()) {
            guards.push(Guard::of_all("idempotency", &keys));
        }
        let refusals = entry.refusals.all().map(|(why, count)| Refusal {
            guard: why.guard,
            reason: why.reason,
            rule: why.rule,
            count,
        });
        Report {
            problems: entry.policy.problems(),
            guards,
            refusals: refusals.collect(),
            instances: instances(entry, now),
        }
    }
}

fn show(scope: &Scope, whole: Option<&Scope>, now: Instant, guards: &mut Vec<Guard>) {
    let mut add = |guard: &'static str, state: serde_json::Result<Value>| {
        guards.push(Guard { route: scope.route.clone(), guard, state: state.unwrap_or_default() });
    };
    if whole.is_none_or(|whole| whole.sections.degrade != scope.sections.degrade)
        && scope.sections.degrade != Default::default()
    {
        add("degrade", serde_json::to_value(&scope.sections.degrade));
    }
    macro_rules! one {
        ($field:ident, $snapshot:expr) => {
            let shared = |whole: &Scope| same(whole.$field.as_ref(), scope.$field.as_ref());
            if let Some(guard) = scope.$field.as_ref().filter(|_| !whole.is_some_and(shared)) {
                add(stringify!($field), serde_json::to_value($snapshot(guard)));
            }
        };
    }
    one!(shed, |guard: &Arc<starling_core::guard::Shed>| guard.snapshot());
    one!(bulkhead, |guard: &Arc<starling_core::guard::Bulkhead>| guard.snapshot());
    one!(concurrency, |guard: &Arc<starling_core::guard::Concurrency>| guard.snapshot());
    one!(circuit, |guard: &Arc<starling_core::guard::Circuits>| guard.snapshot(now));
    for limit in &scope.limits {
        let shared = |whole: &Scope| whole.limits.iter().any(|other| Arc::ptr_eq(other, limit));
        if !whole.is_some_and(shared) {
            add("limit", serde_json::to_value(limit.snapshot(now)));
        }
    }
    for quota in &scope.quotas {
        let shared = |whole: &Scope| whole.quotas.iter().any(|other| Arc::ptr_eq(other, quota));
        if !whole.is_some_and(shared) {
            add("quota", serde_json::to_value(quota.snapshot()));
        }
    }
    for fault in &scope.faults {
        let state = (&fault.rule.name, fault.active(), &fault.done, &fault.skipped);
        add("fault", serde_json::to_value(Acted::of(state)));
    }
    for mirror in &scope.mirrors {
        let state = (&mirror.rule.name, mirror.active(), &mirror.done, &mirror.skipped);
        add("mirror", serde_json::to_value(Acted::of(state)));
    }
}

/// How many instances are out.
#[derive(Serialize)]
struct Ejected {
    instances: usize,
    ejected: u32,
    /// So many may be, of those that answer.
    at_most: u32,
    /// How often one more was left in.
    spared: u64,
    /// What checks of those that were out have said.
    checks_well: u64,
    checks_ill: u64,
}

impl Ejected {
    fn of(entry: &Entry, roster: &Roster<Pool>) -> Self {
        let read = |counter: &Counter| counter.load(std::sync::atomic::Ordering::Relaxed);
        let places = roster.ejections();
        Self {
            instances: roster.slots().len(),
            ejected: places.out(),
            at_most: places.most(),
            spared: places.spared(),
            checks_well: read(&entry.checks.well),
            checks_ill: read(&entry.checks.ill),
        }
    }
}

/// How many answers are kept to stand in.
#[derive(Serialize)]
struct Kept {
    answers: usize,
    bytes: u64,
    dropped: u64,
}

impl Kept {
    fn of(entry: &Entry) -> Self {
        let kept = entry.last_good.lock();
        Self { answers: kept.len(), bytes: kept.bytes(), dropped: kept.dropped() }
    }
}

fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if Arc::ptr_eq(one, other))
}

/// What a fault or a mirror has done.
#[derive(Serialize)]
struct Acted<'a> {
    name: &'a str,
    active: u32,
    done: u64,
    skipped: u64,
}

type Counter = std::sync::atomic::AtomicU64;

impl<'a> Acted<'a> {
    fn of((name, active, done, skipped): (&'a String, u32, &Counter, &Counter)) -> Self {
        let read = |counter: &Counter| counter.load(std::sync::atomic::Ordering::Relaxed);
        Self { name, active, done: read(done), skipped: read(skipped) }
    }
}

fn instances(entry: &Entry, now: Instant) -> Vec<Instance> {
    let Some(roster) = entry.roster() else { return Vec::new() };
    let mut shown: Vec<Instance> = roster
        .slots()
        .iter()
        .map(|slot| {
            let (breaker, until) = match slot.seat.breaker.state() {
                BreakerState::Closed => ("closed", None),
                BreakerState::Open(until) => ("open", Some(until)),
                BreakerState::HalfOpen(until) => ("half_open", Some(until)),
            };
            Instance {
                instance: slot.instance.key.instance.to_string(),
                node: slot.instance.owner().to_string(),
                breaker,
                ends_in_ms: until.map(|until| until.since(now).as_millis() as u64),
                check: match slot.seat.breaker.word() {
                    _ if until.is_none() => None,
                    Word::None => None,
                    Word::Well => Some("well"),
                    Word::Ill => Some("ill"),
                },
                in_flight: slot.seat.load.in_flight(),
                opened: slot.seat.breaker.opened(),
            }
        })
        .collect();
    shown.sort_by_key(|instance| instance.breaker == "closed");
    shown.truncate(MAX_INSTANCES);
    shown
}
