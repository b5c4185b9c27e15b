//! What the sidecar costs: latency added, requests a second, CPU per request; through none, one and two sidecars.
//!
//! `cargo bench --bench traffic [SECONDS]`. Everything shares this machine's cores (load, backend and nodes), so requests
//! a second say what the whole chain fits into the machine; CPU per request is the nodes' own, from the scheduler's
//! accounts, and is the figure to compare.

#![allow(clippy::print_stdout)]

use std::net::SocketAddr;
use std::time::Duration;

#[path = "load.rs"]
mod load;
#[path = "machine.rs"]
mod machine;
#[path = "processes.rs"]
mod processes;

use load::Pace;
use processes::Process;

/// Keep-alive connections of the load generator.
const CONNECTIONS: u32 = 64;
/// Requests a second of the paced run.
const RATE: u32 = 2_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(5);
    let time = Duration::from_secs(seconds);
    let dir = tempfile::tempdir()?;
    let nodes = Process::mesh(dir.path(), 2)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let backend = runtime.block_on(load::backend())?;
    nodes[0].register("near", "near-1", backend.port())?;
    nodes[1].register("far", "far-1", backend.port())?;
    println!(
        "bench traffic: {CONNECTIONS} keep-alive connections, GET, {}-byte answers, {seconds} s a row",
        load::BODY_BYTES
    );
    println!("{}\n", machine::describe());
    println!("as fast as answers come:");
    println!(
        "{:>16} {:>12} {:>16} {:>10} {:>10} {:>10} {:>8}",
        "", "requests/s", "CPU µs/request", "p50 µs", "p99 µs", "p99.9 µs", "failed"
    );
    let bench = Bench { runtime, nodes, backend, time };
    for way in WAYS {
        bench.row(way, Pace::Closed);
    }
    println!("\n{RATE} requests/s, latency from the moment each was due:");
    println!(
        "{:>16} {:>12} {:>16} {:>10} {:>10} {:>10} {:>8}",
        "", "requests/s", "CPU µs/request", "p50 µs", "p99 µs", "p99.9 µs", "failed"
    );
    for way in WAYS {
        bench.row(way, Pace::Open(RATE));
    }
    let memory: Vec<String> = bench.nodes.iter().map(|node| format!("{:.1}", node.resident_megabytes())).collect();
    println!("\nresident after the load, MB a node: {}", memory.join(", "));
    Ok(())
}

/// How a request gets to the backend.
#[derive(Clone, Copy)]
enum Way {
    Direct,
    OneSidecar,
    TwoSidecars,
}

const WAYS: [Way; 3] = [Way::Direct, Way::OneSidecar, Way::TwoSidecars];

struct Bench {
    runtime: tokio::runtime::Runtime,
    nodes: Vec<Process>,
    backend: SocketAddr,
    time: Duration,
}

impl Bench {
    fn row(&self, way: Way, pace: Pace) {
        let (name, target, host) = match way {
            Way::Direct => ("direct", self.backend, "backend"),
            Way::OneSidecar => ("one sidecar", self.nodes[0].proxy, "near"),
            Way::TwoSidecars => ("two sidecars", self.nodes[0].proxy, "far"),
        };
        let warm = Duration::from_secs(1);
        self.runtime.block_on(load::run(target, host, CONNECTIONS, pace, warm));
        let cpu = |nodes: &[Process]| nodes.iter().map(Process::cpu_seconds).sum::<f64>();
        let before = cpu(&self.nodes);
        let outcome = self.runtime.block_on(load::run(target, host, CONNECTIONS, pace, self.time));
        let micros_each = (cpu(&self.nodes) - before) * 1e6 / outcome.latency.len().max(1) as f64;
        println!(
            "{name:>16} {:>12.0} {:>16.1} {:>10.0} {:>10.0} {:>10.0} {:>8}",
            outcome.rate(),
            if matches!(way, Way::Direct) { 0.0 } else { micros_each },
            outcome.micros(0.5),
            outcome.micros(0.99),
            outcome.micros(0.999),
            outcome.failed
        );
    }
}
