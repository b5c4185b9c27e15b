//! How fast the simulator is: virtual time per second by the size of the mesh, and drawn runs per second.
//!
//! `cargo bench --bench simulator`. Each mesh has links of a few milliseconds that lose one message in a hundred; an
//! instance is registered every second, and once a minute the mesh falls into halves for twenty seconds. Seconds are CPU
//! time of the one thread that runs it; those of the drawn runs are the clock's.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use starling::sim::swarm::Swarm;
use starling::sim::{Latency, Mesh, ask, millis, secs};

#[path = "machine.rs"]
mod machine;

/// Nodes, and minutes of virtual time.
const SIZES: [(usize, u64); 5] = [(3, 60), (10, 60), (30, 30), (100, 10), (300, 2)];
/// Drawn runs.
const SEEDS: u64 = 1_000;

fn main() {
    println!("bench simulator: one change a second, halves apart for 20 s of every minute, 1 % loss, seed 1");
    println!("{}\n", machine::describe());
    println!(
        "{:>8} {:>16} {:>10} {:>20} {:>14}",
        "nodes", "virtual minutes", "CPU s", "virtual s per CPU s", "messages/CPU s"
    );
    for (nodes, minutes) in SIZES {
        let begun = cpu_seconds();
        let messages = run(nodes, minutes);
        let took = cpu_seconds() - begun;
        let (speed, rate) = (minutes as f64 * 60.0 / took, messages as f64 / took);
        println!("{nodes:>8} {minutes:>16} {took:>10.2} {speed:>20.0} {rate:>14.0}");
    }
    println!("\ndrawn runs (2 to 7 nodes, judged by all that ship):");
    for threads in [1, std::thread::available_parallelism().map_or(1, usize::from)] {
        let begun = Instant::now();
        let summary = Swarm::default().threads(threads).run(1..=SEEDS, |_| {});
        let took = begun.elapsed().as_secs_f64();
        assert!(summary.ok(), "{summary}");
        let (each, virtually) = (SEEDS as f64 / took, summary.virtual_time.as_secs_f64() / took);
        println!("{threads:>4} threads {each:>8.0} runs/s {virtually:>10.0} virtual s per second");
    }
}

/// The CPU time this thread has used.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos: f64 = stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default();
    nanos / 1e9
}

/// Returns how many messages were sent.
fn run(nodes: usize, minutes: u64) -> u64 {
    let latency = Latency::Tail { floor: millis(1), mean: millis(1) };
    let mut mesh = Mesh::builder(1).nodes(nodes).latency(latency).loss(0.01).quiet().build();
    let names: Vec<String> = mesh.nodes().iter().map(ToString::to_string).collect();
    let (these, those) = names.split_at(nodes / 2);
    let [these, those] = [these, those].map(|half| half.iter().map(String::as_str).collect::<Vec<_>>());
    for second in 0..minutes * 60 {
        match second % 60 {
            20 => mesh.cut(&these, &those),
            40 => mesh.heal(),
            _ => {}
        }
        let node = &names[second as usize % nodes];
        let command = ask::register(&format!("s{}/i{}", second % 60, second / 60));
        mesh.submit(node, command).expect("it runs");
        mesh.run_for(secs(1));
    }
    mesh.report().total().messages
}
