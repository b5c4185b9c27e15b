//! What membership costs and how fast it is: cells of real nodes on an in-memory network, by size, under loss, on starved
//! machines, and after long cuts.
//!
//! `cargo bench --bench cell` prints the machine and four tables; `-- size`, `-- loss`, `-- starved` or `-- cuts` one of
//! them. Times are of the network's own clock, with 5 ms a way; bytes are what the sockets send, with the headers of
//! UDP and IPv4. The same code as in production runs, and the processor time is that of the whole process for all
//! nodes, with what the in-memory network costs.

#![allow(clippy::print_stdout)]

#[path = "machine.rs"]
mod machine;
#[path = "../tests/memory/mod.rs"]
mod memory;

use std::time::Duration;

use memory::{Cell, Plan};
use starling_core::view::MemberState;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() {
    println!("bench cell: real nodes (QUIC, certificates, chitchat), {} ms a way", memory::STEP.as_millis());
    println!("{}", machine::describe());
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let tables: [(&str, fn()); 4] = [("size", by_size), ("loss", by_loss), ("starved", starved), ("cuts", cuts)];
    for (name, table) in tables {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            println!();
            table();
        }
    }
}

fn formed(nodes: usize) -> (Cell, Duration) {
    let mut cell = Cell::of(nodes, Plan::default());
    let all = cell.running();
    let joined = cell.until("all see each other", PATIENCE, |cell| cell.are_one(&all));
    cell.run_for(25 * SECOND); // links that were made on the way in end
    (cell, joined)
}

fn by_size() {
    println!(
        "{:>6} {:>8} {:>7} {:>9} {:>9} {:>10} {:>10} {:>9} {:>7} {:>7}",
        "", "joined", "links", "idle KB/s", "idle CPU", "crash seen", "by the", "falsely", "halves", "healed"
    );
    println!(
        "{:>6} {:>8} {:>7} {:>9} {:>9} {:>10} {:>10} {:>9} {:>7} {:>7}",
        "nodes", "s", "a node", "a node", "% a node", "first, s", "last, s", "lost", "apart s", "s"
    );
    for nodes in [3, 30, 100, 250] {
        let (mut cell, joined) = formed(nodes);
        let all = cell.running();
        let links = sum(&cell, &all, "starling_link_peers_up") / nodes as f64;
        let (bytes, cpu) = (sent(&cell, &all), cpu_seconds());
        cell.run_for(20 * SECOND);
        let idle = (sent(&cell, &all) - bytes) as f64 / 20.0 / nodes as f64 / 1_000.0;
        let cpu = (cpu_seconds() - cpu) / 20.0 / nodes as f64 * 100.0;
        let before = sum(&cell, &all, "starling_member_lost_total");
        let (first, last) = crash(&mut cell, nodes / 2);
        let rest = cell.running();
        let falsely = sum(&cell, &rest, "starling_member_lost_total") - before - rest.len() as f64;
        let (these, those) = rest.split_at(rest.len() / 2);
        cell.cut(these, those);
        let apart = cell.until("apart", PATIENCE, |cell| cell.are_one(these) && cell.are_one(those));
        cell.run_for(MINUTE);
        cell.heal();
        let healed = cell.until("healed", PATIENCE, |cell| cell.are_one(&rest));
        println!(
            "{nodes:>6} {:>8.2} {links:>7.1} {idle:>9.1} {cpu:>9.2} {:>10.2} {:>10.2} {falsely:>9} {:>7.2} {:>7.2}",
            joined.as_secs_f64(),
            first.as_secs_f64(),
            last.as_secs_f64(),
            apart.as_secs_f64(),
            healed.as_secs_f64()
        );
    }
}

fn by_loss() {
    println!("30 nodes, 10 minutes a row, then five crashes:");
    println!(
        "{:>6} {:>12} {:>12} {:>13} {:>13} {:>13}",
        "loss %", "suspicions", "falsely lost", "first seen, s", "by all, s", "worst, s"
    );
    for loss in [0.0, 0.01, 0.05, 0.2] {
        let (mut cell, _) = formed(30);
        cell.network.set_loss(loss);
        cell.run_for(10 * MINUTE);
        report_losses(&mut cell, &format!("{:>6}", loss * 100.0));
    }
    println!("12 nodes, an hour at 5 %, then five crashes:");
    let (mut cell, _) = formed(12);
    cell.network.set_loss(0.05);
    cell.run_for(60 * MINUTE);
    report_losses(&mut cell, "     5");
}

fn starved() {
    println!("30 nodes for 5 minutes; every second one stands still for a time between half and all of what is said:");
    println!(
        "{:>6} {:>12} {:>12} {:>13} {:>13} {:>13}",
        "at most", "suspicions", "falsely lost", "first seen, s", "by all, s", "worst, s"
    );
    for most_ms in [500, 1_000, 1_500, 2_500] {
        let (mut cell, _) = formed(30);
        let mut random = fastrand::Rng::with_seed(most_ms);
        for _ in 0..300 {
            let (place, span) = (random.usize(0..30), random.u64(most_ms / 2..=most_ms));
            cell.freeze(place, Duration::from_millis(span));
            cell.run_for(SECOND);
        }
        cell.run_for(5 * SECOND);
        report_losses(&mut cell, &format!("{:>4} ms", most_ms));
    }
}

fn cuts() {
    println!("6 nodes, cut in halves and healed:");
    println!("{:>12} {:>10} {:>22}", "cut for", "healed, s", "dials a node and minute");
    for minutes in [1, 10, 120] {
        let (mut cell, _) = formed(6);
        let all = cell.running();
        cell.cut(&all[..3], &all[3..]);
        let dials = sum(&cell, &all, "starling_link_dials_total");
        cell.run_for(MINUTE * minutes);
        let dials = (sum(&cell, &all, "starling_link_dials_total") - dials) / 6.0 / f64::from(minutes);
        cell.heal();
        let healed = cell.until("healed", PATIENCE, |cell| cell.are_one(&all));
        println!("{:>8} min {:>10.2} {dials:>22.1}", minutes, healed.as_secs_f64());
    }
}

/// What was suspected and lost without a death, and how fast five deaths are seen.
fn report_losses(cell: &mut Cell, row: &str) {
    let all = cell.running();
    let suspicions = sum(cell, &all, "starling_member_suspicions_total");
    let falsely = sum(cell, &all, "starling_member_lost_total");
    let mut seen = Vec::new();
    for place in 1..6 {
        seen.push(crash(cell, place));
        cell.run_for(5 * SECOND);
    }
    let mean = |of: fn(&(Duration, Duration)) -> Duration| {
        seen.iter().map(|both| of(both).as_secs_f64()).sum::<f64>() / seen.len() as f64
    };
    let worst = seen.iter().map(|(_, last)| last.as_secs_f64()).fold(0.0, f64::max);
    println!("{row} {suspicions:>12} {falsely:>12} {:>13.2} {:>13.2} {worst:>13.2}", mean(|b| b.0), mean(|b| b.1));
}

/// Kills a node; when the first and the last of the others miss it.
fn crash(cell: &mut Cell, place: usize) -> (Duration, Duration) {
    let name = cell.seats[place].name.clone();
    cell.kill(place);
    let rest = cell.running();
    let lost = |cell: &Cell, at: &usize| cell.state(*at, &name) == Some(MemberState::Lost);
    let first = cell.until("one misses it", PATIENCE, |cell| rest.iter().any(|at| lost(cell, at)));
    let more = cell.until("all miss it", PATIENCE, |cell| rest.iter().all(|at| lost(cell, at)));
    (first, first + more)
}

fn sum(cell: &Cell, places: &[usize], metric: &str) -> f64 {
    places.iter().map(|at| cell.metric(*at, metric)).sum()
}

fn sent(cell: &Cell, places: &[usize]) -> u64 {
    places.iter().map(|at| cell.network.sent(cell.seats[*at].address).1).sum()
}

/// The processor time this process has used, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0 // the kernel counts hundredths
}
