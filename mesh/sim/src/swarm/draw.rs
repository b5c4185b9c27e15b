//! Drawing a scenario from a seed: how large a mesh, which links, what people ask of it, and what befalls it.
//!
//! Each seed switches on a random part of the kinds of trouble, not all of them ("swarm testing", Groce et al., ISSTA
//! 2012): a run in which everything happens hides what a run with one kind alone would show. Names are few, so that
//! writes meet: the same instance registered at two nodes, the same document edited on both sides of a cut.

use std::ops::RangeInclusive;
use std::time::Duration;

use fastrand::Rng;
use starling_core::Command;
use starling_core::registry::{Address, Check, CheckKind, Details, Instance, Metadata, Status};

use crate::ask;
use crate::checker::CHECKERS;
use crate::links::{Latency, Links};
use crate::options::{Builder, Options, Sabotage};
use crate::scenario::{Action, Expectation, LinkChange, Scenario, Step};

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The mesh falls into two parts.
    Partition,
    /// Some nodes are no longer heard, but hear.
    OneWay,
    /// A single link is cut, and others go around it.
    Link,
    /// A node crashes and comes back.
    Crash,
    /// A node loses its power: what was not on its disk is torn.
    Power,
    /// A node stands still (a suspended machine, a long collection) and goes on.
    Pause,
    /// A node stops cleanly and comes back.
    Leave,
    /// A node's wall clock jumps.
    Skew,
    /// A node's wall clock runs fast or slow.
    Drift,
    /// A node is slow.
    Slow,
    /// A node's disk is slow.
    Disk,
    /// All links lose, double and delay messages.
    Weather,
    /// Probes of instances fail.
    Probes,
}

impl Trouble {
    /// All there are.
    pub const ALL: [Trouble; 13] = [
        Trouble::Partition,
        Trouble::OneWay,
        Trouble::Link,
        Trouble::Crash,
        Trouble::Power,
        Trouble::Pause,
        Trouble::Leave,
        Trouble::Skew,
        Trouble::Drift,
        Trouble::Slow,
        Trouble::Disk,
        Trouble::Weather,
        Trouble::Probes,
    ];
}

/// What seeds may draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// How many nodes. Default 2 to 7.
    pub nodes: RangeInclusive<usize>,
    /// How many cells; with several, all links between them are long. Default 1.
    pub cells: RangeInclusive<usize>,
    /// How long anything may break, before all is mended. Default 5 to 40 s.
    pub trouble_lasts: RangeInclusive<u64>,
    /// How many troubles befall the mesh. Default 1 to 15.
    pub troubles: RangeInclusive<usize>,
    /// The kinds there are to choose from. Default all.
    pub kinds: Vec<Trouble>,
    /// How many things people ask of it. Default 5 to 60.
    pub commands: RangeInclusive<usize>,
    /// How many commands users give to a program of one's own. Default none.
    pub app_commands: RangeInclusive<usize>,
    /// How soon all must agree once all is mended. Default 10 s: several repairs, each of which the worst links drawn may
    /// lose.
    pub agree_within: Duration,
    /// What is broken on purpose. Default nothing.
    pub sabotage: Option<Sabotage>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            nodes: 2..=7,
            cells: 1..=1,
            trouble_lasts: 5..=40,
            troubles: 1..=15,
            kinds: Trouble::ALL.to_vec(),
            commands: 5..=60,
            app_commands: 0..=0,
            agree_within: Duration::from_secs(10),
            sabotage: None,
        }
    }
}

/// The first trouble comes after this: first of all, the nodes meet.
const BEGIN_MS: u64 = 1_000;
/// How long a mesh that has agreed is watched in peace: longer than it takes to be judged idle.
const PEACE: Duration = Duration::from_secs(12);

impl Shape {
    /// The scenario of a seed: two phases, first anything breaks, then all is mended and must agree. The same shape and
    /// seed draw the same.
    pub fn draw(&self, seed: u64) -> Scenario {
        let mut seeds = Rng::with_seed(seed);
        let (mut mesh_rng, mut trouble_rng, mut work_rng) = (seeds.fork(), seeds.fork(), seeds.fork());
        let options = self.mesh(seed, &mut mesh_rng);
        let lasts_ms = mesh_rng.u64(self.trouble_lasts.clone()) * 1_000;
        let (nodes, links) = (options.nodes.clone(), options.links);
        let mut drawing = Drawing { nodes, links, end_ms: BEGIN_MS + lasts_ms, steps: Vec::new() };
        drawing.troubles(self, &mut trouble_rng);
        drawing.work(self, &mut work_rng);
        let mut steps = drawing.steps;
        // By time; what was drawn first comes first.
        steps.sort_by_key(|step| step.at);
        let end = Duration::from_millis(BEGIN_MS + lasts_ms);
        let nothing_on = Vec::new();
        let expect = |what, within| Action::Expect { what, on: nothing_on.clone(), within };
        let peace = end + self.agree_within + PEACE;
        for (at, action) in [
            (end, Action::Mend),
            (end, expect(Expectation::Converged, self.agree_within)),
            (peace, expect(Expectation::Converged, Duration::from_secs(2))),
            (peace, expect(Expectation::NothingLost, Duration::ZERO)),
        ] {
            steps.push(Step { at, line: 0, action });
        }
        let check = CHECKERS.iter().map(|name| (*name).to_owned()).collect();
        let mesh = Builder::of(options);
        Scenario { name: format!("drawn from seed {seed}"), lenient: true, check, mesh, steps }
    }

    fn mesh(&self, seed: u64, rng: &mut Rng) -> Options {
        let count = rng.usize(self.nodes.clone());
        let mut options = Options { nodes: Options::names(count), ..Options::new(seed) };
        if rng.bool() {
            options.zones = (0..rng.usize(1..=3)).map(|zone| format!("z{zone}")).collect();
        }
        let cells = rng.usize(self.cells.clone());
        if cells > 1 {
            options.cells = (1..=cells).map(|cell| format!("c{cell}")).collect();
        }
        let micros = Duration::from_micros;
        options.links.latency = match rng.u8(..4) {
            0 => Latency::Fixed(micros(rng.u64(50..=5_000))),
            1 => Latency::Uniform(micros(100), micros(rng.u64(1_000..=50_000))),
            _ => Latency::Tail { floor: micros(rng.u64(50..=2_000)), mean: micros(rng.u64(50..=5_000)) },
        };
        let mut share = |most: u32| if rng.bool() { 0.0 } else { f64::from(rng.u32(0..=most)) / 1_000.0 };
        (options.links.loss, options.links.duplication, options.links.reordering) = (share(50), share(50), share(200));
        if options.zones.len() > 1 && rng.bool() {
            let far = Latency::Tail { floor: micros(rng.u64(10_000..=100_000)), mean: micros(2_000) };
            let (one, other) = (options.zones[0].clone(), options.zones[1].clone());
            let links = Links { latency: far, ..options.links };
            options.zone_links = vec![(one.clone(), other.clone(), links), (other, one, links)];
        }
        options.disk = Duration::from_millis([0, 0, 2, 20][rng.usize(..4)]);
        options.clock_spread = Duration::from_millis([0, 0, 50, 500][rng.usize(..4)]);
        options.settings.repair_interval_ms = [500, 1_000, 1_000, 2_000][rng.usize(..4)];
        options.through_bytes = rng.u8(..4) == 0;
        options.sabotage = self.sabotage;
        options
    }
}

struct Drawing {
    nodes: Vec<String>,
    /// How links are in fair weather.
    links: Links,
    end_ms: u64,
    steps: Vec<Step>,
}

impl Drawing {
    fn step(&mut self, at_ms: u64, action: Action) {
        self.steps.push(Step { at: Duration::from_millis(at_ms), line: 0, action });
    }

    fn time(&self, rng: &mut Rng) -> u64 {
        rng.u64(BEGIN_MS..self.end_ms)
    }

    fn node(&self, rng: &mut Rng) -> String {
        self.nodes[rng.usize(..self.nodes.len())].clone()
    }

    /// Two parts, neither empty.
    fn split(&self, rng: &mut Rng) -> (Vec<String>, Vec<String>) {
        let mut shuffled = self.nodes.clone();
        rng.shuffle(&mut shuffled);
        let mut those = shuffled.split_off(rng.usize(1..shuffled.len().max(2)).min(shuffled.len()));
        shuffled.sort();
        those.sort();
        (shuffled, those)
    }

    fn troubles(&mut self, shape: &Shape, rng: &mut Rng) {
        let kinds: Vec<Trouble> = shape.kinds.iter().copied().filter(|_| rng.bool()).collect();
        let count = rng.usize(shape.troubles.clone());
        if kinds.is_empty() {
            return; // a run in peace, which is a case as well
        }
        for _ in 0..count {
            let kind = kinds[rng.usize(..kinds.len())];
            let begin = self.time(rng);
            // Short and long troubles alike: half of them are over within two seconds.
            let most = if rng.bool() { 2_000 } else { self.end_ms };
            let end = (begin + rng.u64(1..=most)).min(self.end_ms);
            self.trouble(kind, begin, end, rng);
        }
    }

    fn trouble(&mut self, kind: Trouble, begin: u64, end: u64, rng: &mut Rng) {
        let node = self.node(rng);
        let (from, to) = self.split(rng);
        match kind {
            Trouble::Partition | Trouble::OneWay => {
                let one_way = kind == Trouble::OneWay;
                self.step(begin, Action::Cut { from: from.clone(), to: to.clone(), one_way });
                self.step(end, Action::HealBetween { from, to });
            }
            Trouble::Link => {
                let (from, to) = (vec![from[0].clone()], to.first().cloned().into_iter().collect::<Vec<_>>());
                self.step(begin, Action::Cut { from: from.clone(), to: to.clone(), one_way: false });
                self.step(end, Action::HealBetween { from, to });
            }
            Trouble::Crash | Trouble::Power => {
                self.step(begin, Action::Crash { node: node.clone(), torn: kind == Trouble::Power });
                self.step(end, Action::Restart(node));
            }
            Trouble::Pause => {
                self.step(begin, Action::Pause(node.clone()));
                self.step(end, Action::Resume(node));
            }
            Trouble::Leave => {
                self.step(begin, Action::Ask { node: node.clone(), commands: vec![Command::Leave] });
                self.step(end.max(begin + 200), Action::Restart(node));
            }
            Trouble::Skew => self.step(begin, Action::Skew(node, rng.i64(-20_000..=4_000))),
            Trouble::Drift => self.step(begin, Action::Drift(node, rng.i64(-50_000..=50_000))),
            Trouble::Slow => {
                self.step(begin, Action::Slow(node.clone(), Duration::from_millis(rng.u64(1..=300))));
                self.step(end, Action::Slow(node, Duration::ZERO));
            }
            Trouble::Disk => {
                self.step(begin, Action::Disk(node, Duration::from_millis(rng.u64(1..=2_000))));
            }
            Trouble::Weather => {
                let mut share = |most: u32| Some(f64::from(rng.u32(0..=most)) / 1_000.0);
                let (loss, duplication, reordering) = (share(900), share(500), share(500));
                self.step(begin, Action::Links(LinkChange { loss, duplication, reordering, ..LinkChange::default() }));
                let Links { loss, duplication, reordering, .. } = self.links;
                let (loss, duplication, reordering) = (Some(loss), Some(duplication), Some(reordering));
                self.step(end, Action::Links(LinkChange { loss, duplication, reordering, ..LinkChange::default() }));
            }
            Trouble::Probes => {
                let path = instance(rng);
                self.step(begin, Action::Probes(path.clone(), false));
                self.step(end, Action::Probes(path, true));
            }
        }
    }

    fn work(&mut self, shape: &Shape, rng: &mut Rng) {
        for i in 0..rng.usize(shape.commands.clone()) {
            // The first writes come before any trouble, so that there is something to lose.
            let at = if i < 3 { rng.u64(100..BEGIN_MS) } else { self.time(rng) };
            let node = self.node(rng);
            let commands = vec![command(i, &node, rng)];
            self.step(at, Action::Ask { node, commands });
        }
        for _ in 0..rng.usize(shape.app_commands.clone()) {
            let (at, node) = (self.time(rng), self.node(rng));
            // A number that a file can say.
            self.step(at, Action::App { node, chance: rng.u64(..=i64::MAX as u64) });
        }
    }
}

fn instance(rng: &mut Rng) -> String {
    format!("s{}/i{}", rng.u8(1..=2), rng.u8(1..=3))
}

fn command(i: usize, node: &str, rng: &mut Rng) -> Command {
    let path = instance(rng);
    let document = format!("app/k{}", rng.u8(1..=3));
    let status = [Status::Up, Status::Down, Status::Up][rng.usize(..3)];
    match rng.u8(..20) {
        0..=6 => {
            let mut instance = Instance::at(Address { host: format!("{node}.test").into(), port: 8080 });
            instance.weight = rng.u32(1..=100);
            let check = match rng.u8(..4) {
                0 => Some(Check::new(CheckKind::Ttl)),
                1 => Some(Check::new(CheckKind::Tcp)),
                _ => None,
            };
            instance.details = Details::new(Default::default(), Metadata::default(), check);
            ask::register_as(&path, instance)
        }
        7..=9 => ask::deregister(&path),
        10 => ask::renew(&path),
        11 => ask::set_status(&path, status),
        12 => ask::override_status(&path, status),
        13 => ask::clear_override(&path),
        14 => ask::delete_config(&document),
        _ => ask::put_config(&document, &format!("edit {i}")),
    }
}
