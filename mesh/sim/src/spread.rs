//! How fast a change reaches everybody, and at what cost: quiet or under load, with losses and dead nodes.
//!
//! These are the times of the protocol: hops and links, no queues. Hearts are told of their overlay neighbours only. They
//! speak to nobody else anyway, and n hearts that each remember n members would need memory in n squared, in one
//! process, for nothing that is measured here.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use starling_core::Settings;
use starling_core::peers::whole_overlay;
use starling_core::registry::{Address, Instance};

use crate::ask;
use crate::links::Links;
use crate::options::Options;
use crate::report::{Sent, Spread, ms};
use crate::world::World;

/// Until everybody has compared notes with the neighbours met at the start, in microseconds of virtual time.
const WARM_UP_US: u64 = 3_000_000;
/// From one change to the next in a quiet mesh: longer than any takes, and no multiple of the repair interval.
const GAP_US: u64 = 330_000;
/// How long the last stragglers are waited for: many repair intervals.
const PATIENCE_US: u64 = 20_000_000;
/// Under load the same instances change over and over, so that thousands of hearts fit into memory.
const LOADED_INSTANCES: u64 = 64;
/// Load that makes the mesh busy before anything is measured, in changes a second, and for how long: until the tree
/// stands, with little flooding before.
const BUSYING: (u64, u64) = (100, 600_000);

/// What is to be measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// How many nodes.
    pub nodes: usize,
    /// The seed.
    pub seed: u64,
    /// How the links are.
    pub links: Links,
    /// The share of nodes that have just died without anybody having noticed.
    pub dead: f64,
    /// Changes per second over the whole mesh; 0 for one after the other.
    pub load: u64,
    /// How many changes are measured.
    pub changes: usize,
}

impl Trial {
    /// One change after the other over whole links, enough of them for stable figures.
    pub fn quiet(nodes: usize, seed: u64) -> Self {
        Self { nodes, seed, links: Links::default(), dead: 0.0, load: 0, changes: (100_000 / nodes).clamp(8, 100) }
    }

    /// The same under a load of so many changes a second.
    pub fn loaded(nodes: usize, seed: u64, load: u64) -> Self {
        Self { load, changes: (2_000_000 / nodes).clamp(100, 1_000), ..Self::quiet(nodes, seed) }
    }
}

/// What [`spread()`] measured.
#[derive(Debug, Clone, PartialEq)]
pub struct SpreadReport {
    /// What was tried.
    pub trial: Trial,
    /// From the write to each other living node, all changes together.
    pub visible: Spread,
    /// From the write to the last living node, per change.
    pub last: Spread,
    /// Pairs of a change and a living node it never reached.
    pub missed: usize,
    /// Messages of push per change.
    pub messages_per_change: f64,
    /// Bytes of push per change and receiver, ids and the tree's upkeep included.
    pub bytes_per_receiver: f64,
    /// Copies of the record per change and receiver; 1 would be perfect.
    pub copies_per_receiver: f64,
    /// Everything else that was said meanwhile (repair), in bytes per node and second.
    pub idle_bytes_per_node_second: f64,
}

impl fmt::Display for SpreadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, last, trial) = (&self.visible, &self.last, &self.trial);
        write!(f, "{} nodes, seed {}, {}, {} changes", trial.nodes, trial.seed, trial.links, trial.changes)?;
        if trial.dead > 0.0 {
            write!(f, ", {} % dead", trial.dead * 100.0)?;
        }
        if trial.load > 0 {
            write!(f, ", {} changes/s", trial.load)?;
        }
        let (p50, p99) = (ms(all.quantile(0.5)), ms(all.quantile(0.99)));
        writeln!(f, "\nvisible at a node   p50 {p50}, p99 {p99}, max {}", ms(all.max()))?;
        writeln!(f, "visible at the last p50 {}, max {}", ms(last.quantile(0.5)), ms(last.max()))?;
        let (copies, bytes) = (self.copies_per_receiver, self.bytes_per_receiver);
        let messages = self.messages_per_change;
        writeln!(
            f,
            "per change          {messages:.0} messages, {copies:.2} copies and {bytes:.0} bytes per receiver"
        )?;
        write!(f, "missed {}, idle {:.0} bytes/s per node", self.missed, self.idle_bytes_per_node_second)
    }
}

/// Changes instances at nodes drawn by chance, and measures when each change is visible where.
///
/// 10,000 nodes take some seconds in a release build.
///
/// # Panics
/// With fewer than two nodes: there is nobody to tell.
pub fn spread(trial: Trial) -> SpreadReport {
    assert!(trial.nodes >= 2, "a change spreads among at least two nodes");
    let names: Vec<String> = (1..=trial.nodes).map(|i| format!("n{i}")).collect();
    // Soon busy: what is measured is a tree that stands, not the flood before it.
    let settings = Settings { flood_below_per_second: 40, ..Settings::default() };
    let mut world =
        World::of_strangers(Options { nodes: names, links: trial.links, settings, ..Options::new(trial.seed) });
    let ids: Vec<_> = world.hosts.iter().map(|host| host.id.clone()).collect();
    for (node, neighbours) in whole_overlay(&ids).into_iter().enumerate() {
        neighbours.into_iter().for_each(|neighbour| world.introduce(node, neighbour));
    }
    world.run_until(WARM_UP_US);
    let mut writers = Writers { loaded: trial.load > 0, written: 0 };
    if writers.loaded {
        writers.write(&mut world, BUSYING.0, (BUSYING.1 * BUSYING.0 / 1_000_000) as usize);
    }
    for node in dead(&trial, &mut world) {
        world.crash(node, false);
    }
    let mut before = Before { sent: world.figures.sent.clone(), copies: world.figures.copies, begun: world.now };
    world.figures.arrivals = Some(Vec::with_capacity(trial.changes * trial.nodes));
    world.figures.forget_followed();
    if writers.loaded {
        writers.write(&mut world, trial.load, trial.changes);
    } else {
        writers.one_by_one(&mut world, trial.changes);
    }
    // What follows is silence and repair: it costs what it costs, but it is not under load.
    let ended = world.now;
    let deadline = world.now + PATIENCE_US;
    while world.figures.following() > 0 && world.now < deadline {
        world.run_until(world.now + GAP_US);
    }
    before.begun += world.now - ended;
    report(&mut world, trial, &before)
}

/// The nodes that die: the first so many in an order drawn by chance.
fn dead(trial: &Trial, world: &mut World) -> Vec<usize> {
    let mut nodes: Vec<usize> = (0..trial.nodes).collect();
    world.chance.shuffle(&mut nodes);
    nodes.truncate((trial.nodes as f64 * trial.dead) as usize);
    nodes
}

/// Who writes what.
struct Writers {
    loaded: bool,
    written: u64,
}

impl Writers {
    fn one_by_one(&mut self, world: &mut World, changes: usize) {
        for _ in 0..changes {
            self.change(world);
            world.run_until(world.now + GAP_US);
        }
    }

    /// So many changes a second, evenly.
    fn write(&mut self, world: &mut World, per_second: u64, changes: usize) {
        for _ in 0..changes {
            self.change(world);
            world.run_until(world.now + 1_000_000 / per_second);
        }
    }

    /// Quiet: a new instance at any living node. Under load: one of a few instances, each at a node of its own.
    fn change(&mut self, world: &mut World) {
        self.written += 1;
        let nodes = world.hosts.len();
        let (mut node, path) = if self.loaded {
            let instance = self.written % LOADED_INSTANCES;
            // Far from each other in any order of the nodes.
            ((instance as usize * 7_919) % nodes, format!("spread/i{instance}"))
        } else {
            (world.chance.usize(..nodes), format!("spread/i{}", self.written))
        };
        while !world.hosts[node].is_up() {
            node = (node + 1) % nodes;
        }
        let weight = (self.written % 1_000) as u32 + 1;
        let instance = Instance { weight, ..Instance::at(Address { host: "10.0.0.1".into(), port: 8080 }) };
        world.ask(node, ask::register_as(&path, instance));
    }
}

/// What had been counted when the measurement began.
struct Before {
    sent: BTreeMap<&'static str, Sent>,
    copies: u64,
    begun: u64,
}

/// The kinds of message that push is made of; all others are repair's and membership's.
const PUSH: [&str; 5] = ["push", "have", "graft", "prune", "beacon"];

fn report(world: &mut World, trial: Trial, before: &Before) -> SpreadReport {
    // The author sees its own change at once; that is no arrival.
    let arrivals: Vec<Duration> =
        world.figures.arrivals.take().unwrap_or_default().into_iter().filter(|took| !took.is_zero()).collect();
    let living = world.hosts.iter().filter(|host| host.is_up()).count();
    let receivers = trial.changes * (living - 1);
    let mut push = Sent::default();
    let mut idle_bytes = 0;
    for (kind, now) in &world.figures.sent {
        let then = before.sent.get(kind).copied().unwrap_or_default();
        if PUSH.contains(kind) {
            push.messages += now.messages - then.messages;
            push.bytes += now.bytes - then.bytes;
        } else {
            idle_bytes += now.bytes - then.bytes;
        }
    }
    let copies = world.figures.copies - before.copies;
    let node_seconds = living as f64 * (world.now - before.begun).max(1) as f64 / 1e6;
    let figures = world.figures.report(&world.hosts, &world.ledger, world.now);
    // A death makes every change after it one that travelled in trouble.
    let last = if trial.dead > 0.0 { figures.visible_through_faults } else { figures.visible };
    SpreadReport {
        missed: receivers - arrivals.len(),
        visible: Spread::of(arrivals),
        last,
        messages_per_change: push.messages as f64 / trial.changes as f64,
        bytes_per_receiver: push.bytes as f64 / receivers as f64,
        copies_per_receiver: copies as f64 / receivers as f64,
        idle_bytes_per_node_second: idle_bytes as f64 / node_seconds,
        trial,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lossy(loss: f64) -> Links {
        Links { loss, ..Links::default() }
    }

    #[test]
    fn a_change_reaches_everybody_within_a_few_hops_and_with_fewer_than_eight_copies() {
        let report = spread(Trial::quiet(60, 1));
        assert_eq!(report.missed, 0);
        assert!(report.last.max() < Duration::from_millis(5), "{report}");
        assert!(report.copies_per_receiver < 8.0 && report.bytes_per_receiver < 8.0 * 100.0, "{report}");
    }

    #[test]
    fn under_load_a_change_costs_hardly_more_than_one_copy_and_two_hundred_bytes() {
        let report = spread(Trial { changes: 300, ..Trial::loaded(100, 1, 1_000) });
        assert_eq!(report.missed, 0, "{report}");
        assert!(report.copies_per_receiver < 1.5 && report.bytes_per_receiver < 200.0, "{report}");
        assert!(report.last.max() < Duration::from_millis(10), "{report}");
    }

    #[test]
    fn under_load_with_losses_and_dead_nodes_every_living_node_still_sees_every_change() {
        let report = spread(Trial { links: lossy(0.01), dead: 0.05, changes: 150, ..Trial::loaded(60, 2, 500) });
        assert_eq!(report.missed, 0, "{report}");
        assert!(report.copies_per_receiver < 4.0, "{report}");
    }

    #[test]
    fn losses_are_repaired() {
        let report = spread(Trial { links: lossy(0.3), ..Trial::quiet(40, 2) });
        assert_eq!(report.missed, 0, "{report}");
    }

    #[test]
    fn the_same_seed_measures_the_same() {
        assert_eq!(spread(Trial::quiet(20, 3)), spread(Trial::quiet(20, 3)));
        let loaded = || spread(Trial { changes: 50, ..Trial::loaded(20, 3, 500) });
        assert_eq!(loaded(), loaded());
    }
}
