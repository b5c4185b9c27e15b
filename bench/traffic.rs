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

use processes::Process;

/// Keep-alive connections when as much is sent as fits.
const MANY: u32 = 64;
/// Keep-alive connections of the paced run.
const FEW: u32 = 16;
/// Requests a second of the paced run.
const RATE: u32 = 2_000;
/// Before each row.
const WARM_UP: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(5);
    let time = Duration::from_secs(seconds);
    let dir = tempfile::tempdir()?;
    let nodes = Process::mesh(dir.path(), 2)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let backend = runtime.block_on(load::backend())?;
    nodes[0].register("near", "near-1", backend.port())?;
    nodes[1].register("far", "far-1", backend.port())?;
    let bench = Bench { nodes, backend, time };
    println!("bench traffic: GET, {}-byte answers, keep-alive, {seconds} s a row", load::BODY_BYTES);
    println!("{}", machine::describe());
    println!("\n{MANY} connections, each sends the next request when it has its answer:");
    bench.table(|target, host, time| runtime.block_on(load::saturate(target, host, MANY, time)));
    println!("\n{FEW} connections, {RATE} requests/s together, latency from the moment each was due:");
    bench.table(|target, host, time| load::pace(target, host, FEW, RATE, time));
    println!("\none connection, one request after the other:");
    bench.table(|target, host, time| runtime.block_on(load::saturate(target, host, 1, time)));
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

struct Bench {
    nodes: Vec<Process>,
    backend: SocketAddr,
    time: Duration,
}

impl Bench {
    /// A row for each way, all loaded in the same manner.
    fn table(&self, load: impl Fn(SocketAddr, &str, Duration) -> load::Outcome) {
        println!(
            "{:>16} {:>12} {:>16} {:>10} {:>10} {:>10} {:>8}",
            "", "requests/s", "CPU µs/request", "p50 µs", "p99 µs", "p99.9 µs", "failed"
        );
        for way in [Way::Direct, Way::OneSidecar, Way::TwoSidecars] {
            let (name, target, host) = match way {
                Way::Direct => ("direct", self.backend, "backend"),
                Way::OneSidecar => ("one sidecar", self.nodes[0].proxy, "near"),
                Way::TwoSidecars => ("two sidecars", self.nodes[0].proxy, "far"),
            };
            load(target, host, WARM_UP);
            let before = self.cpu_seconds();
            let outcome = load(target, host, self.time);
            let micros_each = (self.cpu_seconds() - before) * 1e6 / outcome.latency.len().max(1) as f64;
            let cpu = if matches!(way, Way::Direct) { "-".into() } else { format!("{micros_each:.1}") };
            println!(
                "{name:>16} {:>12.0} {cpu:>16} {:>10.0} {:>10.0} {:>10.0} {:>8}",
                outcome.rate(),
                outcome.micros(0.5),
                outcome.micros(0.99),
                outcome.micros(0.999),
                outcome.failed
            );
        }
    }

    fn cpu_seconds(&self) -> f64 {
        self.nodes.iter().map(Process::cpu_seconds).sum()
    }
}
