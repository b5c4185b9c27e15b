//! What an acknowledged write costs: registrations at one node, in memory and with a data directory, by callers.
//!
//! `cargo bench --bench acknowledge [DIRECTORY]`; the directory decides which disk is measured (default: the system's
//! directory for temporary files, which may be memory). Acknowledged means synced.

#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use starling_core::Command;
use starling_core::id::{InstanceKey, ServiceKey};
use starling_core::observe::{Exposition, MetricSource};
use starling_core::registry::{Address, Instance, Registration};
use starling_net::{Authority, Handle, Identity, NetSettings, start};

#[path = "machine.rs"]
mod machine;

/// How long each row is measured.
const ROW: Duration = Duration::from_secs(3);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let base = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).map_or(std::env::temp_dir(), PathBuf::from);
    println!("bench acknowledge: one node, {} s a row, data directories below {}", ROW.as_secs(), base.display());
    println!("{}\n", machine::describe());
    println!("{:>8} {:>8} {:>14} {:>22} {:>16}", "disk", "callers", "writes/s", "answer µs p50/p99", "writes per sync");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for on_disk in [false, true] {
        for callers in [1, 16, 256] {
            runtime.block_on(row(on_disk.then(|| tempfile::tempdir_in(&base)).transpose()?, callers))?;
        }
    }
    Ok(())
}

async fn row(dir: Option<tempfile::TempDir>, callers: usize) -> Result<(), Box<dyn std::error::Error>> {
    let authority = Authority::throw_away(&"bench".parse()?)?;
    let identity = Identity::from_pem(&authority.issue(&"a".parse()?, Duration::from_secs(3_600))?)?;
    let data_dir = dir.as_ref().map(|dir| dir.path().to_owned());
    let node = start(&identity, NetSettings { data_dir, ..NetSettings::default() }).await?;
    let answers = Arc::new(Mutex::new(Histogram::<u64>::new(3)?));
    let until = Instant::now() + ROW;
    let callers_done: Vec<_> =
        (0..callers).map(|caller| tokio::spawn(call(node.handle.clone(), caller, until, answers.clone()))).collect();
    for caller in callers_done {
        caller.await?;
    }
    let mut metrics = Exposition::default();
    node.handle.collect(&mut metrics);
    let metrics = metrics.finish();
    let syncs = metrics.lines().find_map(|line| line.strip_prefix("starling_disk_syncs_total "));
    let syncs = syncs.and_then(|figure| figure.parse::<f64>().ok()).unwrap_or(0.0);
    let answers = answers.lock().map_err(|_| "a caller failed")?.clone();
    println!(
        "{:>8} {callers:>8} {:>14.0} {:>22} {:>16}",
        if dir.is_some() { "synced" } else { "none" },
        answers.len() as f64 / ROW.as_secs_f64(),
        format!("{}/{}", answers.value_at_quantile(0.5), answers.value_at_quantile(0.99)),
        if syncs > 0.0 { format!("{:.1}", answers.len() as f64 / syncs) } else { "-".into() },
    );
    node.stop(Duration::from_secs(5)).await;
    Ok(())
}

/// One caller registers instances of its own service over and over, each time after the last is acknowledged.
async fn call(handle: Handle, caller: usize, until: Instant, answers: Arc<Mutex<Histogram<u64>>>) {
    let service = format!("service-{caller}");
    for round in 0_u64.. {
        let begun = Instant::now();
        if begun >= until {
            return;
        }
        let key = InstanceKey {
            service: ServiceKey { namespace: Default::default(), service: service.parse().expect("a sound name") },
            instance: (round % 100).to_string().parse().expect("a sound name"),
        };
        let instance = Instance {
            version: round.to_string().into(), // so that every registration is a change
            ..Instance::at(Address { host: "127.0.0.1".into(), port: 80 })
        };
        handle.command(Command::Register(Registration { key, instance })).await.expect("the node takes it");
        let us = begun.elapsed().as_micros() as u64;
        answers.lock().expect("no caller fails").record(us.max(1)).expect("in range");
    }
}
