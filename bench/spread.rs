//! How fast a registration at one node is visible at all others: three real processes, and thousands of simulated hearts.
//!
//! `cargo bench --bench spread [-- real simulated healed]`. In the real part the clock starts before the HTTP request is sent and stops when a
//! reader that waits at *each* other node (a blocking query) has its answer: what an application would see.

#![allow(clippy::print_stdout)]

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use starling::sim::{Links, Mesh, Trial, ask, millis, secs, spread};

#[path = "machine.rs"]
mod machine;
#[path = "processes.rs"]
mod processes;

use processes::{Process, wait_for};

/// The seed of the simulated part.
const SEED: u64 = 1;
/// Registrations measured with real processes.
const ROUNDS: usize = 1_000;
/// Mean pause between them: the mesh is quiet, as most meshes are most of the time.
const PAUSE: Duration = Duration::from_millis(5);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("bench spread: register at one node, visible at all others");
    println!("{}\n", machine::describe());
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|name| name == part);
    if wants("real") {
        real()?;
    }
    if wants("simulated") {
        simulated();
    }
    if wants("healed") {
        healed()?;
    }
    Ok(())
}

fn real() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let nodes = Process::mesh(dir.path(), 3)?;
    let (seen, news) = mpsc::channel();
    for (reader, node) in nodes[1..].iter().enumerate() {
        let (api, seen) = (node.api, seen.clone());
        std::thread::spawn(move || watch(api, |id| seen.send((reader, id, Instant::now())).is_ok()));
    }
    let mut acknowledged = Histogram::<u64>::new(3)?;
    let mut each = Histogram::<u64>::new(3)?;
    let mut all = Histogram::<u64>::new(3)?;
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 1..=ROUNDS {
        std::thread::sleep(PAUSE.mul_f64(rng.f64() + 0.5));
        let begun = Instant::now();
        let id = format!("i{round}");
        nodes[0].register("spread", &id, 80)?;
        acknowledged.record(begun.elapsed().as_micros() as u64)?;
        let mut waiting = vec![true; nodes.len() - 1];
        let mut last = begun;
        while waiting.contains(&true) {
            let (reader, newest, at) = news.recv_timeout(Duration::from_secs(10))?;
            if newest == id && std::mem::take(&mut waiting[reader]) {
                each.record(at.saturating_duration_since(begun).as_micros() as u64)?;
                last = last.max(at);
            }
        }
        all.record(last.saturating_duration_since(begun).as_micros() as u64)?;
        // Out again, so that the answer a reader waits for stays small.
        nodes[0].deregister("spread", &id)?;
    }
    println!("3 processes on loopback, {ROUNDS} registrations, synced to disk before they are acknowledged (ms):");
    println!("{:>34} {:>8} {:>8} {:>8}", "", "p50", "p99", "max");
    for (what, histogram) in
        [("acknowledged", &acknowledged), ("seen by one waiting reader", &each), ("seen by all of them", &all)]
    {
        let millis = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        println!("{what:>34} {:>8.2} {:>8.2} {:>8.2}", millis(0.5), millis(0.99), millis(1.0));
    }
    let idle_from = nodes[0].cpu_seconds();
    std::thread::sleep(Duration::from_secs(5));
    let idle = (nodes[0].cpu_seconds() - idle_from) / 5.0 * 100.0;
    println!("\nidle afterwards: {idle:.2} % of a core, {:.1} MB resident, a node\n", nodes[0].resident_megabytes());
    Ok(())
}

/// Waits at a node for changes of the service, for as long as somebody wants to hear which instance it has.
fn watch(api: SocketAddr, tell: impl Fn(String) -> bool) {
    let mut revision = 0;
    loop {
        let url = format!("http://{api}/v1/services/spread/instances?newer_than={revision}&wait=10s");
        let Ok(list) = wait_for(&url) else { continue };
        revision = list.revision;
        if list.instance.is_some_and(|id| !tell(id)) {
            return;
        }
    }
}

/// Simulated meshes by size.
const HEARTS: [usize; 7] = [3, 30, 100, 300, 1_000, 10_000, 30_000];
/// The load of the loaded rows, in changes per second over the whole mesh.
const LOAD: u64 = 1_000;

fn simulated() {
    let (clean, lossy) = (Links::default(), Links { loss: 0.01, ..Links::default() });
    println!(
        "simulated hearts, links of {}, seed {SEED} (times are the protocol's own: hops and links);",
        clean.latency
    );
    println!("loaded: {LOAD} changes/s over the whole mesh; lossy: 1 % of messages lost and 2 % of nodes just dead");
    println!(
        "{:>8} {:>14} {:>8} {:>8} {:>8} {:>12} {:>10} {:>15} {:>8} {:>8}",
        "hearts", "", "changes", "p50 ms", "p99 ms", "last p50 ms", "worst ms", "bytes/receiver", "copies", "missed"
    );
    for (load, links, dead, what) in [
        (0, clean, 0.0, "quiet"),
        (0, lossy, 0.02, "quiet, lossy"),
        (LOAD, clean, 0.0, "loaded"),
        (LOAD, lossy, 0.02, "loaded, lossy"),
    ] {
        for hearts in HEARTS {
            let trial = if load == 0 { Trial::quiet(hearts, SEED) } else { Trial::loaded(hearts, SEED, load) };
            let report = spread(Trial { links, dead, ..trial });
            let millis = |time: Duration| time.as_secs_f64() * 1e3;
            println!(
                "{hearts:>8} {what:>14} {:>8} {:>8.2} {:>8.2} {:>12.2} {:>10.2} {:>15.0} {:>8.2} {:>8}",
                report.trial.changes,
                millis(report.visible.quantile(0.5)),
                millis(report.visible.quantile(0.99)),
                millis(report.last.quantile(0.5)),
                millis(report.last.max()),
                report.bytes_per_receiver,
                report.copies_per_receiver,
                report.missed
            );
        }
    }
}

/// How long a mesh of 100 is cut in halves, in minutes.
const CUTS_MINUTES: [u64; 3] = [1, 10, 60];

/// Halves that went on for themselves: how long until all nodes hold the same again.
fn healed() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "\n100 simulated nodes cut in halves, 500 instances registered on each side meanwhile, 1 % of messages lost:"
    );
    println!("{:>16} {:>24}", "cut for, minutes", "all equal after, seconds");
    for minutes in CUTS_MINUTES {
        let mut mesh = Mesh::builder(SEED).nodes(100).loss(0.01).quiet().build();
        let names: Vec<String> = mesh.nodes().iter().map(ToString::to_string).collect();
        let sides = names.split_at(50);
        let [these, those] = [sides.0, sides.1].map(|side| side.iter().map(String::as_str).collect::<Vec<_>>());
        mesh.run_for(secs(10));
        mesh.cut(&these, &those);
        for number in 0..500 {
            for side in [&these, &those] {
                let node = side[number % side.len()];
                mesh.submit(node, ask::register(&format!("service{}/{node}-{number}", number % 20)))?;
            }
            mesh.run_for(millis(minutes * 60_000 / 500));
        }
        mesh.heal();
        let took = mesh.converges_within(secs(120))?;
        println!("{minutes:>16} {:>24.2}", took.as_secs_f64());
    }
    Ok(())
}
