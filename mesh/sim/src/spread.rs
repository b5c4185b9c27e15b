//! How fast one change reaches everybody, and at what cost.
//!
//! The mesh stands still but for the changes that are measured, so these are the times of the protocol: hops and links,
//! no queues. Hearts are told of their overlay neighbours only. They speak to nobody else anyway, and n hearts that each
//! remember n members would need memory in n squared, in one process, for nothing that is measured here.

use std::fmt;
use std::time::Duration;

use starling_core::peers::whole_overlay;

use crate::ask;
use crate::links::Links;
use crate::options::Options;
use crate::report::{Sent, Spread, ms};
use crate::world::World;

/// Until everybody has compared notes with the neighbours met at the start, in microseconds of virtual time.
const WARM_UP_US: u64 = 3_000_000;
/// From one change to the next: longer than any takes, and no multiple of the repair interval.
const GAP_US: u64 = 330_000;
/// How long the last stragglers are waited for: many repair intervals.
const PATIENCE_US: u64 = 20_000_000;

/// What [`spread()`] measured.
#[derive(Debug, Clone, PartialEq)]
pub struct SpreadReport {
    /// How many nodes.
    pub nodes: usize,
    /// The seed.
    pub seed: u64,
    /// How the links were.
    pub links: Links,
    /// How many instances were registered, each at a node drawn by chance.
    pub changes: usize,
    /// From the registration to each other node, all changes together.
    pub visible: Spread,
    /// From the registration to the last node, per change.
    pub last: Spread,
    /// Pairs of a change and a node it never reached.
    pub missed: usize,
    /// Push messages per change.
    pub messages_per_change: f64,
    /// Bytes of push messages per change and receiver.
    pub bytes_per_receiver: f64,
    /// Copies of the record per change and receiver; 1 would be perfect.
    pub copies_per_receiver: f64,
    /// Everything else that was said meanwhile (repair), in bytes per node and second.
    pub idle_bytes_per_node_second: f64,
}

impl fmt::Display for SpreadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, last) = (&self.visible, &self.last);
        writeln!(f, "{} nodes, seed {}, {}, {} changes", self.nodes, self.seed, self.links, self.changes)?;
        let (p50, p99) = (ms(all.quantile(0.5)), ms(all.quantile(0.99)));
        writeln!(f, "visible at a node   p50 {p50}, p99 {p99}, max {}", ms(all.max()))?;
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

/// Registers instances at nodes of a quiet mesh, one after the other, and measures how each becomes visible at all.
///
/// 10,000 nodes take some seconds in a release build.
///
/// # Panics
/// With fewer than two nodes: there is nobody to tell.
pub fn spread(nodes: usize, seed: u64, links: Links) -> SpreadReport {
    assert!(nodes >= 2, "a change spreads among at least two nodes");
    let names: Vec<String> = (1..=nodes).map(|i| format!("n{i}")).collect();
    let mut world = World::of_strangers(Options { nodes: names, links, ..Options::new(seed) });
    let ids: Vec<_> = world.hosts.iter().map(|host| host.id.clone()).collect();
    for (node, neighbours) in whole_overlay(&ids).into_iter().enumerate() {
        neighbours.into_iter().for_each(|neighbour| world.introduce(node, neighbour));
    }
    world.run_until(WARM_UP_US);
    let before = world.figures.sent.clone();
    let begun = world.now;

    let changes = (100_000 / nodes).clamp(8, 100);
    world.figures.arrivals = Some(Vec::with_capacity(changes * nodes));
    for change in 0..changes {
        let node = world.chance.usize(..nodes);
        world.ask(node, ask::register(&format!("spread/i{change}")));
        world.run_until(world.now + GAP_US);
    }
    let deadline = world.now + PATIENCE_US;
    while world.figures.following() > 0 && world.now < deadline {
        world.run_until(world.now + GAP_US);
    }
    report(&mut world, (seed, changes), &before, begun)
}

type Kinds = std::collections::BTreeMap<&'static str, Sent>;

fn report(world: &mut World, (seed, changes): (u64, usize), before: &Kinds, begun: u64) -> SpreadReport {
    let nodes = world.hosts.len();
    // The author sees its own change at once; that is no arrival.
    let arrivals: Vec<Duration> =
        world.figures.arrivals.take().unwrap_or_default().into_iter().filter(|took| !took.is_zero()).collect();
    let receivers = (changes * (nodes - 1)) as f64;
    let since = |kind: &str| {
        let count = |kinds: &Kinds| kinds.get(kind).copied().unwrap_or_default();
        let (then, now) = (count(before), count(&world.figures.sent));
        Sent { messages: now.messages - then.messages, bytes: now.bytes - then.bytes }
    };
    let push = since("push");
    let idle_bytes: u64 = world.figures.sent.keys().filter(|kind| **kind != "push").map(|kind| since(kind).bytes).sum();
    let node_seconds = nodes as f64 * (world.now - begun) as f64 / 1e6;
    SpreadReport {
        nodes,
        seed,
        links: world.options.links,
        changes,
        missed: changes * (nodes - 1) - arrivals.len(),
        visible: Spread::of(arrivals),
        last: world.figures.report(&world.hosts, &world.ledger, world.now).visible,
        messages_per_change: push.messages as f64 / changes as f64,
        bytes_per_receiver: push.bytes as f64 / receivers,
        copies_per_receiver: world.figures.copies as f64 / receivers,
        idle_bytes_per_node_second: idle_bytes as f64 / node_seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_reaches_everybody_within_a_few_hops_and_with_fewer_than_eight_copies() {
        let report = spread(60, 1, Links::default());
        assert_eq!(report.missed, 0);
        assert!(report.last.max() < Duration::from_millis(5), "{report}");
        assert!(report.copies_per_receiver < 8.0 && report.bytes_per_receiver < 8.0 * 200.0, "{report}");
    }

    #[test]
    fn losses_are_repaired() {
        let report = spread(40, 2, Links { loss: 0.3, ..Links::default() });
        assert_eq!(report.missed, 0, "{report}");
    }

    #[test]
    fn the_same_seed_measures_the_same() {
        assert_eq!(spread(20, 3, Links::default()), spread(20, 3, Links::default()));
    }
}
