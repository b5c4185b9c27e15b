//! Instances that share their machines with others: the experiment of the Prequal authors (2024), simulated.
//!
//! 100 callers, each with its own sidecar, send to 100 instances, Poisson; a request's work is normal with a standard
//! deviation as large as its mean, cut at 0; after 5 s it has failed. An instance may always use what it is allotted, but
//! neighbours come and go: one time in five they slow it to 0.4 to 0.9 of that, otherwise it finds idle processors for 1 to
//! 3 times of it. That is drawn anew every 10 s or so, for each by itself. Load is in shares of what is allotted, so some
//! instances are overloaded when the mean is not. An instance works at its requests in turns of no length (processor
//! sharing), at none faster than one processor does.
//!
//! C3's score and the weights by requests per processor time (WRR) are not of the balancer; they are here for comparison.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use starling_core::balance::{
    Algorithm, Answering, Ask, BalanceSettings, FAILURE_PENALTY, Group, InFlight, Outcome, Report, Reporter,
};

const CALLERS: usize = 100;
const INSTANCES: usize = 100;
/// Processors an instance is allotted.
const ALLOTTED: f64 = 4.0;
const MEAN_WORK_S: f64 = 0.065;
const NEIGHBOURS_STAY_S: f64 = 10.0;
const TIMEOUT_S: f64 = 5.0;
const NETWORK_S: f64 = 0.000_5;
/// What is measured: after a time to settle.
const SETTLE_S: f64 = 10.0;
const MEASURE_S: f64 = 30.0;
const LOADS: [f64; 8] = [0.5, 0.7, 0.9, 1.1, 1.25, 1.4, 1.5, 1.6];

/// How requests are dealt.
#[derive(Clone)]
pub(crate) enum Rule {
    /// By the balancer.
    Ours(BalanceSettings),
    /// Weighted round robin by requests per processor time, renewed each second.
    Weighted,
    /// C3's score over all instances.
    C3,
}

/// What one rule reached, load by load.
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<Point>,
}

/// One rule at one load; milliseconds, and the share that failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) load: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) failed: f64,
}

pub(crate) fn run() -> Vec<Run> {
    println!(
        "\n{CALLERS} callers, {INSTANCES} instances with antagonists on their machines, {MEASURE_S} s each; p50/p90/p99 in ms"
    );
    println!("(5000: timed out), and what failed, by load in shares of what is allotted:");
    print!("{:<28}", "");
    LOADS.iter().for_each(|load| print!("{:>22}", format!("{:.0} %", load * 100.0)));
    println!();
    let rules: [(&'static str, Rule); 9] = [
        ("round robin", Rule::Ours(crate::by(Algorithm::RoundRobin))),
        ("random", Rule::Ours(crate::by(Algorithm::Random))),
        ("WRR by requests/processor", Rule::Weighted),
        ("least requests of two", Rule::Ours(crate::by(Algorithm::LeastRequests))),
        ("least requests of all", Rule::Ours(BalanceSettings { choices: 0, ..crate::by(Algorithm::LeastRequests) })),
        ("shortest response of two", Rule::Ours(crate::by(Algorithm::ShortestResponse))),
        ("peak EWMA of two (default)", Rule::Ours(crate::by(Algorithm::PeakEwma))),
        ("C3's score", Rule::C3),
        ("Prequal", Rule::Ours(crate::by(Algorithm::Prequal))),
    ];
    let mut runs = Vec::new();
    for (name, rule) in rules {
        print!("{name:<28}");
        let points: Vec<Point> = LOADS.iter().map(|load| play(&rule, *load, 1)).collect();
        for point in &points {
            let failed = format!("{:.1}%", point.failed * 100.0);
            print!("{:>22}", format!("{:.0}/{:.0}/{:.0} {failed}", point.p50, point.p90, point.p99));
        }
        println!();
        runs.push(Run { name, points });
    }
    runs
}

/// An instance on its machine.
struct Server {
    /// What it can use, in shares of what it is allotted.
    speed: f64,
    /// Work each of its requests has had since the beginning.
    progress: f64,
    updated: f64,
    /// Requests by the progress at which they are done.
    jobs: BTreeMap<(u64, usize), ()>,
    /// Distinguishes the event that counts from those overtaken.
    version: u64,
    busy: f64,
    served: f64,
    reporter: Arc<Reporter>,
}

impl Server {
    fn rate(&self) -> f64 {
        let jobs = self.jobs.len().max(1) as f64;
        (self.speed * ALLOTTED / jobs).min(self.speed).min(1.0)
    }

    fn advance(&mut self, now: f64) {
        let passed = now - self.updated;
        self.updated = now;
        if !self.jobs.is_empty() {
            self.busy += (self.jobs.len() as f64).min(ALLOTTED * self.speed.max(1.0)) * passed;
            self.progress += self.rate() * passed;
        }
    }

    fn next_end(&self) -> Option<f64> {
        let ((done_at, _), ()) = self.jobs.first_key_value()?;
        Some(self.updated + ((f64::from_bits(*done_at) - self.progress) / self.rate()).max(0.0))
    }
}

enum Event {
    Arrival,
    /// A server's first request is done, if nothing has changed since.
    Done(usize, u64),
    TimedOut(usize),
    Neighbours(usize),
    /// A report reaches a caller.
    Reported(usize, usize, Report),
    Second,
}

/// A request under way.
struct Pending {
    caller: usize,
    server: usize,
    began: f64,
    done_at: u64,
    in_flight: InFlight<()>,
    answering: Answering,
}

/// What C3 knows of one server at one caller.
#[derive(Clone, Copy, Default)]
struct Known {
    response_s: f64,
    service_s: f64,
    queue: f64,
}

struct World<'a> {
    rule: &'a Rule,
    rng: fastrand::Rng,
    now: f64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, Event>,
    next_event: u64,
    servers: Vec<Server>,
    groups: Vec<Group<()>>,
    known: Vec<Vec<Known>>,
    weights: Vec<f64>,
    pending: BTreeMap<usize, Pending>,
    latencies: Vec<f64>,
    failed: usize,
}

fn play(rule: &Rule, load: f64, seed: u64) -> Point {
    let settings = match rule {
        Rule::Ours(settings) => settings.clone(),
        Rule::Weighted | Rule::C3 => crate::by(Algorithm::RoundRobin),
    };
    let mut rng = fastrand::Rng::with_seed(seed);
    let server = |rng: &mut fastrand::Rng| Server {
        speed: draw_speed(rng),
        progress: 0.0,
        updated: 0.0,
        jobs: BTreeMap::new(),
        version: 0,
        busy: 0.0,
        served: 0.0,
        reporter: Arc::default(),
    };
    let mut world = World {
        rule,
        now: 0.0,
        events: BinaryHeap::new(),
        bodies: BTreeMap::new(),
        next_event: 0,
        servers: (0..INSTANCES).map(|_| server(&mut rng)).collect(),
        groups: (0..CALLERS).map(|caller| crate::group_of(caller, &settings, &[1_000; INSTANCES])).collect(),
        known: vec![vec![Known::default(); INSTANCES]; CALLERS],
        weights: vec![1.0; INSTANCES],
        pending: BTreeMap::new(),
        latencies: Vec::new(),
        failed: 0,
        rng,
    };
    // The mean of a normal cut at 0 whose deviation is its mean.
    let mean_work = MEAN_WORK_S * 1.083;
    let per_second = load * ALLOTTED * INSTANCES as f64 / mean_work;
    world.at(0.0, Event::Arrival);
    world.at(1.0, Event::Second);
    for number in 0..INSTANCES {
        let stays = exponential(&mut world.rng, NEIGHBOURS_STAY_S);
        world.at(stays, Event::Neighbours(number));
    }
    let mut number = 0;
    while let Some(Reverse((bits, id))) = world.events.pop() {
        world.now = f64::from_bits(bits);
        if world.now > SETTLE_S + MEASURE_S + TIMEOUT_S + 1.0 {
            break;
        }
        match world.bodies.remove(&id) {
            Some(Event::Arrival) if world.now < SETTLE_S + MEASURE_S => {
                let gap = exponential(&mut world.rng, 1.0 / per_second);
                world.at(world.now + gap, Event::Arrival);
                world.arrive(number);
                number += 1;
            }
            Some(event) => world.handle(event),
            None => {}
        }
    }
    let mut latencies = std::mem::take(&mut world.latencies);
    let failed = world.failed as f64 / latencies.len() as f64;
    latencies.sort_unstable_by(f64::total_cmp);
    let p = |share| crate::quantile(&latencies, share) * 1_000.0;
    Point { load, p50: p(0.5), p90: p(0.9), p99: p(0.99), failed }
}

fn draw_speed(rng: &mut fastrand::Rng) -> f64 {
    if rng.f64() < 0.2 { 0.4 + 0.5 * rng.f64() } else { 1.0 + 2.0 * rng.f64() }
}

fn exponential(rng: &mut fastrand::Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}

impl World<'_> {
    fn at(&mut self, when: f64, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((when.to_bits(), self.next_event)));
        self.bodies.insert(self.next_event, event);
    }

    fn arrive(&mut self, number: usize) {
        let caller = self.rng.usize(..CALLERS);
        let now = crate::at(self.now);
        let by_score = matches!(self.rule, Rule::C3).then(|| self.best_by_c3(caller));
        let group = &self.groups[caller];
        let server = if let Some(server) = by_score {
            server
        } else {
            let (slot, permit) = group.choose(now, &mut self.rng, &Ask::default()).expect("all are usable");
            permit.succeed(now);
            place(group, slot)
        };
        let in_flight = InFlight::begin(&group.roster().slots()[server].seat);
        if let Rule::Ours(settings) = self.rule
            && group.wants_reports()
        {
            let asked: Vec<usize> = (0..settings.prequal.probes_percent / 100)
                .filter_map(|_| Some(place(group, group.ask_whom(now, &mut self.rng)?)))
                .collect();
            for asked in asked {
                let report = self.servers[asked].reporter.report();
                self.at(self.now + NETWORK_S, Event::Reported(caller, asked, report));
            }
        }
        let work = (MEAN_WORK_S * (1.0 + crate::normal(&mut self.rng))).max(1e-6);
        let one = &mut self.servers[server];
        one.advance(self.now);
        let done_at = (one.progress + work).to_bits();
        one.jobs.insert((done_at, number), ());
        let answering = one.reporter.begin();
        self.pending.insert(number, Pending { caller, server, began: self.now, done_at, in_flight, answering });
        self.at(self.now + TIMEOUT_S, Event::TimedOut(number));
        self.reschedule(server);
    }

    fn reschedule(&mut self, server: usize) {
        let one = &mut self.servers[server];
        one.version += 1;
        let version = one.version;
        if let Some(end) = one.next_end() {
            self.at(end, Event::Done(server, version));
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrival => {}
            Event::Done(server, version) if self.servers[server].version == version => {
                self.servers[server].advance(self.now);
                if let Some(((_, number), ())) = self.servers[server].jobs.pop_first() {
                    self.servers[server].served += 1.0;
                    self.end(number, Outcome::Good);
                }
                self.reschedule(server);
            }
            Event::Done(..) => {}
            Event::TimedOut(number) => {
                let Some(pending) = self.pending.get(&number) else { return };
                let (server, done_at) = (pending.server, pending.done_at);
                self.servers[server].advance(self.now);
                self.servers[server].jobs.remove(&(done_at, number));
                self.end(number, Outcome::Unwelcome(FAILURE_PENALTY));
                self.reschedule(server);
            }
            Event::Neighbours(server) => {
                self.servers[server].advance(self.now);
                self.servers[server].speed = draw_speed(&mut self.rng);
                self.reschedule(server);
                let stays = exponential(&mut self.rng, NEIGHBOURS_STAY_S);
                self.at(self.now + stays, Event::Neighbours(server));
            }
            Event::Reported(caller, server, report) => {
                let group = &self.groups[caller];
                group.report(crate::at(self.now), &group.roster().slots()[server].instance.key.instance, report);
            }
            Event::Second => {
                self.renew_weights();
                self.at(self.now + 1.0, Event::Second);
            }
        }
    }

    fn end(&mut self, number: usize, outcome: Outcome) {
        let Some(pending) = self.pending.remove(&number) else { return };
        let took = self.now - pending.began;
        let queue = self.servers[pending.server].jobs.len() as f64;
        pending.answering.end(Duration::from_secs_f64(took));
        let seen = took + 2.0 * NETWORK_S;
        pending.in_flight.seat().load.observe(crate::at(self.now), Duration::from_secs_f64(seen), outcome);
        let report = self.servers[pending.server].reporter.report();
        if self.groups[pending.caller].wants_reports() {
            self.at(self.now + NETWORK_S, Event::Reported(pending.caller, pending.server, report));
        }
        let known = &mut self.known[pending.caller][pending.server];
        let smooth = |old: f64, new: f64| if old == 0.0 { new } else { 0.9 * new + 0.1 * old };
        known.response_s = smooth(known.response_s, seen);
        known.service_s = smooth(known.service_s, took / (queue + 1.0));
        known.queue = smooth(known.queue, queue);
        if pending.began >= SETTLE_S {
            self.latencies.push(seen.min(TIMEOUT_S));
            self.failed += usize::from(outcome != Outcome::Good);
        }
    }

    /// Response time without service, and the cube of the queue that is thought to be there times service.
    fn best_by_c3(&mut self, caller: usize) -> usize {
        let slots = self.groups[caller].roster().slots();
        let (mut best, mut least) = (0, f64::INFINITY);
        let from = self.rng.usize(..INSTANCES);
        for server in (0..INSTANCES).map(|n| (from + n) % INSTANCES) {
            let known = &self.known[caller][server];
            let outstanding = f64::from(slots[server].seat.load.in_flight());
            let queue = 1.0 + outstanding * CALLERS as f64 + known.queue;
            let score = known.response_s - known.service_s + queue.powi(3) * known.service_s;
            if score < least {
                (best, least) = (server, score);
            }
        }
        best
    }

    fn renew_weights(&mut self) {
        if !matches!(self.rule, Rule::Weighted) {
            return;
        }
        for (server, weight) in self.servers.iter_mut().zip(&mut self.weights) {
            server.advance(self.now);
            if server.busy > 0.0 && server.served > 0.0 {
                *weight = 0.5 * *weight + 0.5 * server.served / server.busy * MEAN_WORK_S;
            }
            (server.busy, server.served) = (0.0, 0.0);
        }
        let weights: Vec<u32> = self.weights.iter().map(|weight| (weight * 1_000.0).clamp(1.0, 1e6) as u32).collect();
        let settings = Arc::new(crate::by(Algorithm::RoundRobin));
        let revision = self.now as u64 + 1;
        for (caller, group) in self.groups.iter_mut().enumerate() {
            let roster = crate::roster(caller, revision, &weights, Some(group.roster()));
            *group = Group::new(Arc::new(roster), settings.clone());
        }
    }
}

/// Which server a slot is.
fn place(group: &Group<()>, slot: &starling_core::balance::Slot<()>) -> usize {
    let id = &slot.instance.key.instance;
    let slots = group.roster().slots();
    slots.binary_search_by(|other| other.instance.key.instance.cmp(id)).expect("one of them")
}
