//! What a mesh of many cells costs each of its nodes, and how fast a change crosses it.
//!
//! As in [`crate::spread()`], hearts are told only of those they deal with: every node of the members of its cell, relays
//! of the relays of other cells besides. The directory (a record per node and no more) is left out: ten thousand hearts in
//! one process that each hold ten thousand records of it would need tens of gigabytes. It costs nothing but its changes,
//! which travel as all others do. What membership says within a cell is not counted either; it depends on the cell's size.

use std::collections::BTreeSet;
use std::fmt;

use starling_core::cells::{RELAYS, relays};
use starling_core::id::NodeId;

use crate::ask;
use crate::links::{Links, micros};
use crate::options::Options;
use crate::report::{Spread, ms};
use crate::world::World;

/// Until everybody has compared notes with the neighbours met at the start, in microseconds of virtual time.
const WARM_UP_US: u64 = 12_000_000;
/// How long traffic is counted while nothing changes.
const IDLE_US: u64 = 30_000_000;
/// From one change to the next: longer than any takes.
const GAP_US: u64 = 1_100_000;
/// How long the last stragglers are waited for: several repairs between cells.
const PATIENCE_US: u64 = 60_000_000;

/// What [`cells()`] measured.
#[derive(Debug, Clone, PartialEq)]
pub struct CellsReport {
    /// How many cells.
    pub cells: usize,
    /// How many nodes altogether.
    pub nodes: usize,
    /// What the run was made of.
    pub options: String,
    /// How many instances were registered, each at a node drawn by chance.
    pub changes: usize,
    /// From the registration to each node of the same cell.
    pub near: Spread,
    /// From the registration to each node of the other cells.
    pub far: Spread,
    /// From the registration to the last node of all, per change.
    pub last: Spread,
    /// Pairs of a change and a node it never reached.
    pub missed: usize,
    /// What a node that is no relay sends while nothing changes, in bytes a second: on average, and at most.
    pub idle: (f64, f64),
    /// What a relay sends then, on average and at most, and how much of the average goes to other cells.
    pub idle_relay: (f64, f64, f64),
    /// What a node sends for one change, in bytes, on average.
    pub change: f64,
    /// What a relay sends for one change, and how much of that goes to other cells.
    pub change_relay: (f64, f64),
}

impl fmt::Display for CellsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quantiles = |spread: &Spread| {
            let [p50, p99] = [0.5, 0.99].map(|q| ms(spread.quantile(q)));
            format!("p50 {p50}, p99 {p99}, max {}", ms(spread.max()))
        };
        writeln!(f, "{} nodes in {} cells, {} changes; {}", self.nodes, self.cells, self.changes, self.options)?;
        writeln!(f, "visible in the same cell  {}", quantiles(&self.near))?;
        writeln!(f, "visible in other cells    {}", quantiles(&self.far))?;
        writeln!(f, "visible at the last       {}, missed {}", quantiles(&self.last), self.missed)?;
        let ((mean, most), (relay, relay_most, abroad)) = (self.idle, self.idle_relay);
        writeln!(
            f,
            "idle, bytes/s             node {mean:.0} (most {most:.0}), relay {relay:.0} (most {relay_most:.0}), of it abroad {abroad:.0}"
        )?;
        let (relay, abroad) = self.change_relay;
        write!(f, "per change, bytes         node {:.0}, relay {relay:.0}, of it abroad {abroad:.0}", self.change)
    }
}

/// Registers instances at nodes of a quiet mesh of several cells and measures how each becomes visible, and what nodes
/// and relays send.
///
/// # Panics
/// With fewer than two cells or two members each.
pub fn cells(cells: usize, members: usize, seed: u64, links: Links, cell_links: Links) -> CellsReport {
    assert!(cells >= 2 && members >= 2, "there are cells to be linked, and members to be told");
    let nodes = cells * members;
    let names = (0..cells).map(|cell| format!("cell-{cell}")).collect();
    let options = Options { nodes: Options::names(nodes), cells: names, links, cell_links, ..Options::new(seed) };
    let told = format!("seed {}, within cells {}, between them {}", options.seed, options.links, options.cell_links);
    let far_us = micros(options.cell_links.latency.floor());
    let mut world = World::of_strangers(options);
    let linking = acquaint(&mut world, cells);
    world.run_until(WARM_UP_US);

    let before = traffic(&world);
    world.run_until(world.now + IDLE_US);
    let idle = Sent::between(&before, &traffic(&world), &linking, IDLE_US as f64 / 1e6);

    let changes = (20_000 / nodes).clamp(8, 20);
    let (mut near, mut far, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let (before, begun) = (traffic(&world), world.now);
    for change in 0..changes {
        world.figures.arrivals = Some(Vec::with_capacity(nodes));
        let (node, asked) = (world.chance.usize(..nodes), world.now);
        world.ask(node, ask::register(&format!("cells/i{change}")));
        while world.figures.following() > 0 && world.now < asked + PATIENCE_US {
            world.run_until(world.now + GAP_US);
        }
        // The author sees its own change at once; that is no arrival. Nothing crosses an ocean sooner than it can.
        let arrivals = world.figures.arrivals.take().unwrap_or_default().into_iter().filter(|took| !took.is_zero());
        let (there, here): (Vec<_>, Vec<_>) = arrivals.partition(|took| micros(*took) >= far_us);
        last.extend(there.iter().max());
        near.extend(here);
        far.extend(there);
    }
    let seconds = (world.now - begun) as f64 / 1e6;
    let busy = Sent::between(&before, &traffic(&world), &linking, 1.0);
    let each = |busy: f64, idle: f64| (busy - idle * seconds) / changes as f64;
    CellsReport {
        cells,
        nodes,
        options: told,
        changes,
        missed: changes * (nodes - 1) - near.len() - far.len(),
        near: Spread::of(near),
        far: Spread::of(far),
        last: Spread::of(last),
        idle: (idle.node, idle.node_most),
        idle_relay: (idle.relay, idle.relay_most, idle.relay_abroad),
        change: each(busy.node, idle.node),
        change_relay: (each(busy.relay, idle.relay), each(busy.relay_abroad, idle.relay_abroad)),
    }
}

/// Tells every heart of its cell, and relays of the relays of the others; returns which nodes are relays.
fn acquaint(world: &mut World, cells: usize) -> BTreeSet<usize> {
    let of = |cell: usize, nodes: usize| (cell..nodes).step_by(cells);
    let nodes = world.hosts.len();
    let mut linking = BTreeSet::new();
    for cell in 0..cells {
        for observer in of(cell, nodes) {
            of(cell, nodes)
                .filter(|subject| *subject != observer)
                .for_each(|subject| world.introduce(observer, subject));
        }
        let ids: Vec<NodeId> = of(cell, nodes).map(|node| world.hosts[node].id.clone()).collect();
        let chosen = relays(&world.hosts[cell].facts.cell, ids.iter(), RELAYS);
        linking.extend(chosen.iter().filter_map(|relay| world.find(relay.as_str())));
    }
    for observer in &linking {
        for subject in linking.iter().filter(|subject| *subject % cells != observer % cells) {
            world.introduce(*observer, *subject);
        }
    }
    linking
}

fn traffic(world: &World) -> Vec<(u64, u64)> {
    world.hosts.iter().map(|host| (host.traffic.sent, host.traffic.abroad)).collect()
}

/// Averages and maxima of what nodes sent, per second.
struct Sent {
    node: f64,
    node_most: f64,
    relay: f64,
    relay_most: f64,
    relay_abroad: f64,
}

impl Sent {
    fn between(before: &[(u64, u64)], after: &[(u64, u64)], linking: &BTreeSet<usize>, seconds: f64) -> Self {
        let mut all = [Vec::new(), Vec::new()];
        let mut abroad = 0;
        for (node, (then, now)) in before.iter().zip(after).enumerate() {
            let is_relay = linking.contains(&node);
            all[usize::from(is_relay)].push(now.0 - then.0);
            assert!(is_relay || now.1 == then.1, "only relays speak with other cells");
            abroad += now.1 - then.1;
        }
        let mean = |sent: &[u64]| sent.iter().sum::<u64>() as f64 / sent.len().max(1) as f64 / seconds;
        let most = |sent: &[u64]| sent.iter().max().copied().unwrap_or_default() as f64 / seconds;
        let [nodes, relays] = &all;
        Self {
            node: mean(nodes),
            node_most: most(nodes),
            relay: mean(relays),
            relay_most: most(relays),
            relay_abroad: abroad as f64 / relays.len().max(1) as f64 / seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::links::Latency;

    #[test]
    fn what_a_node_sends_depends_on_its_cell_and_not_on_how_many_there_are() {
        let ocean = Links { latency: Latency::Fixed(Duration::from_millis(50)), ..Links::default() };
        let [few, many] = [2, 6].map(|count| cells(count, 10, 1, Links::default(), ocean));
        assert_eq!([few.missed, many.missed], [0, 0], "{few}\n{many}");
        assert!(many.idle.0 < few.idle.0 * 1.1 + 1.0 && many.change < few.change * 1.1 + 1.0, "{few}\n{many}");
        assert!(many.far.max() < Duration::from_secs(2), "{many}");
    }
}
