//! What the sidecar costs beside the proxies people use today: the same load, the same backend, the same run.
//!
//! `cargo bench --bench peers [SECONDS] [ROUNDS]`. Each proxy has one worker on a core of its own; the load and two
//! backends share another. Rounds are interleaved, figures are medians with the lowest and highest. nginx, HAProxy and
//! h2load (for HTTP/2) are taken from the path and left out where they are not installed; `ENVOY=FILE` names Envoy's
//! binary. CPU per request is the scheduler's account of the proxy's processes.

#![allow(clippy::print_stdout)]

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

#[path = "peers/http2.rs"]
mod http2;
#[path = "load.rs"]
mod load;
#[path = "machine.rs"]
mod machine;
#[path = "peers/run.rs"]
mod run;

use http2::Kind;
use run::{CORE_OF_LOAD, Failure, HOST, Peer, Running};

/// Keep-alive connections when as much is sent as fits.
const MANY: u32 = 64;
/// Keep-alive connections of the paced run.
const FEW: u32 = 16;
/// Requests a second of the paced run.
const RATE: u32 = 5_000;
/// Before each figure.
const WARM_UP: Duration = Duration::from_secs(1);
/// Requests of HTTP/2 for each second of a figure, about what the slowest answers.
const HTTP2_REQUESTS: u64 = 15_000;

fn main() -> Result<(), Failure> {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let seconds = numbers.first().copied().unwrap_or(5);
    let rounds = numbers.get(1).copied().unwrap_or(5);
    let machine = machine::describe();
    // Threads started from here on stay on this core too.
    pin(std::process::id())?;
    println!("bench peers: {}-byte answers, {seconds} s a figure, {rounds} rounds", load::BODY_BYTES);
    println!("{machine}\n");
    compare_http1(Duration::from_secs(seconds), rounds)?;
    if http2::is_installed() {
        compare_http2(Kind::Get, seconds * HTTP2_REQUESTS, rounds)?;
        compare_http2(Kind::Grpc, seconds * HTTP2_REQUESTS, rounds)?;
    } else {
        println!("\nHTTP/2 is left out: h2load (nghttp2-client) is not installed");
    }
    Ok(())
}

fn compare_http1(time: Duration, rounds: u64) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let backends = [backend(load::backend)?, backend(load::backend)?];
    let figures = in_rounds(Peer::all(), rounds, &backends, |running| Ok(measure(running, &runtime, time)))?;
    println!(
        "HTTP/1.1, GET. At saturation: {MANY} connections. Latency: {RATE} requests/s over {FEW} connections, from when \
         each was due.\n"
    );
    println!(
        "{:>15} {:>22} {:>7} {:>20} {:>16} {:>18} {:>18} {:>11} {:>6}",
        "", "requests/s", "core %", "CPU µs/request", "at 5,000/s", "p50 µs", "p99 µs", "RSS MB", "failed"
    );
    for (peer, figures) in &figures {
        print(*peer, figures);
    }
    Ok(())
}

fn compare_http2(kind: Kind, requests: u64, rounds: u64) -> Result<(), Failure> {
    let backends = [backend(http2::backend)?, backend(http2::backend)?];
    let figures = in_rounds(Peer::http2(), rounds, &backends, |running| {
        http2::load(running, kind, requests / 5)?;
        http2::load(running, kind, requests)
    })?;
    let what = if kind == Kind::Get { "HTTP/2 (no TLS), GET" } else { "gRPC, unary calls" };
    println!(
        "\n{what}. {} connections with {} requests at a time each, {requests} requests.\n",
        http2::CONNECTIONS,
        http2::STREAMS
    );
    println!(
        "{:>15} {:>22} {:>7} {:>20} {:>22} {:>6}",
        "", "requests/s", "core %", "CPU µs/request", "mean µs", "failed"
    );
    for (peer, figures) in &figures {
        println!(
            "{:>15} {:>22} {:>7.0} {:>20} {:>22} {:>6}",
            peer.name(),
            spread(figures, |f| f.rate, 0),
            median(figures, |f| f.core),
            spread(figures, |f| f.micros_each, 1),
            spread(figures, |f| f.mean_micros, 0),
            figures.iter().map(|f| f.failed).sum::<u64>(),
        );
    }
    Ok(())
}

/// Measures each once a round, one after the other, so that what disturbs a round disturbs all alike.
fn in_rounds<F>(
    peers: Vec<Peer>,
    rounds: u64,
    backends: &[SocketAddr; 2],
    mut measure: impl FnMut(&Running) -> Result<F, Failure>,
) -> Result<Vec<(Peer, Vec<F>)>, Failure> {
    let mut figures: Vec<(Peer, Vec<F>)> = peers.into_iter().map(|peer| (peer, Vec::new())).collect();
    for _ in 0..rounds {
        for (peer, of_peer) in &mut figures {
            let dir = tempfile::tempdir()?;
            let running = Running::start(*peer, dir.path(), backends)?;
            of_peer.push(measure(&running)?);
        }
    }
    Ok(figures)
}

/// One round's figures.
struct Figures {
    rate: f64,
    /// Share of the proxy's core that it used at saturation, in percent.
    core: f64,
    micros_each: f64,
    micros_each_paced: f64,
    p50: f64,
    p99: f64,
    idle_megabytes: f64,
    megabytes: f64,
    failed: u64,
}

fn measure(running: &Running, runtime: &tokio::runtime::Runtime, time: Duration) -> Figures {
    let saturate = |time| runtime.block_on(load::saturate(running.address, HOST, MANY, time));
    let pace = |time| load::pace(running.address, HOST, FEW, RATE, time);
    let cost = |load: &dyn Fn(Duration) -> load::Outcome| {
        load(WARM_UP);
        let before = running.cpu_seconds();
        let outcome = load(time);
        let used = running.cpu_seconds() - before;
        (outcome, used)
    };
    let idle_megabytes = running.resident_megabytes();
    let (full, full_cpu) = cost(&saturate);
    let (paced, paced_cpu) = cost(&pace);
    Figures {
        rate: full.rate(),
        core: full_cpu * 100.0 / full.elapsed.as_secs_f64(),
        micros_each: full_cpu * 1e6 / full.latency.len().max(1) as f64,
        micros_each_paced: paced_cpu * 1e6 / paced.latency.len().max(1) as f64,
        p50: paced.micros(0.5),
        p99: paced.micros(0.99),
        idle_megabytes,
        megabytes: running.resident_megabytes(),
        failed: full.failed + paced.failed,
    }
}

fn sorted<F>(figures: &[F], of: impl Fn(&F) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median<F>(figures: &[F], of: impl Fn(&F) -> f64) -> f64 {
    sorted(figures, of)[figures.len() / 2]
}

/// Median, lowest and highest.
fn spread<F>(figures: &[F], of: impl Fn(&F) -> f64, decimals: usize) -> String {
    let values = sorted(figures, of);
    let (lowest, highest) = (values[0], values[values.len() - 1]);
    format!("{:.decimals$} ({lowest:.decimals$}-{highest:.decimals$})", values[values.len() / 2])
}

fn print(peer: Peer, figures: &[Figures]) {
    let failed: u64 = figures.iter().map(|figures| figures.failed).sum();
    let memory = format!("{:.1}→{:.1}", median(figures, |f| f.idle_megabytes), median(figures, |f| f.megabytes));
    println!(
        "{:>15} {:>22} {:>7.0} {:>20} {:>16.1} {:>18} {:>18} {memory:>11} {failed:>6}",
        peer.name(),
        spread(figures, |f| f.rate, 0),
        median(figures, |f| f.core),
        spread(figures, |f| f.micros_each, 1),
        median(figures, |f| f.micros_each_paced),
        spread(figures, |f| f.p50, 0),
        spread(figures, |f| f.p99, 0),
    );
}

/// A backend on a thread of its own.
fn backend<F>(serve: fn() -> F) -> Result<SocketAddr, Failure>
where
    F: Future<Output = std::io::Result<SocketAddr>> + 'static,
{
    let (told, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        runtime.block_on(async {
            told.send(serve().await).expect("somebody waits for the address");
            std::future::pending::<()>().await;
        });
    });
    Ok(hears.recv()??)
}

fn pin(pid: u32) -> Result<(), Failure> {
    let pinned = Command::new("taskset").args(["-cp", CORE_OF_LOAD, &pid.to_string()]).output();
    match pinned {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
        Err(error) => Err(format!("taskset (util-linux) keeps load and proxy apart: {error}").into()),
    }
}
