//! What the heart costs: remembering, merging, publishing, answering, repairing, forgetting; by size of the registry.
//!
//! `cargo bench --bench store` prints the machine, the settings and four tables. Nothing here is compared with a limit:
//! figures are for people. Every row is measured in a process of its own, so that what one leaves behind is not counted
//! for the next. Memory is what the kernel holds for the process. Seconds and shares are processor time, so that they mean
//! the same on a busy machine.

#![allow(clippy::print_stdout)]

use std::alloc::System;
use std::process::Command;
use std::time::{Duration, Instant};

use cap::Cap;
use hdrhistogram::Histogram;
use starling_core::view::View;
use starling_core::wire::Message;

#[path = "heart.rs"]
mod heart;
#[path = "machine.rs"]
mod machine;

use heart::{Heart, instance_key, service_key};

/// Counts what is in use; what the kernel counts is more, and is not given back at once.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Instances per service.
const PER_SERVICE: usize = 100;
/// Operations measured per cell.
const ROUNDS: usize = 5_000;
/// How many instances the registry of each row holds.
const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// Past the time for which tombstones are kept by default.
const TWO_DAYS_MS: u64 = 2 * 86_400_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, table, size] = &arguments[..]
        && let Ok(size) = size.parse()
    {
        return match table.as_str() {
            "operations" => operations(size),
            "transfers" => transfers(size),
            "in-and-out" => in_and_out(size),
            _ => one_service(size),
        };
    }
    println!("bench store: one heart, {PER_SERVICE} instances a service, {ROUNDS} operations a row");
    println!("{}", machine::describe());
    table("operations", OPERATIONS);
    table("transfers", TRANSFERS);
    table("in-and-out", IN_AND_OUT);
    table("one-service", ONE_SERVICE);
}

fn table(name: &str, head: &str) {
    println!("{head}");
    for size in SIZES {
        let program = std::env::current_exe().expect("a program knows where it is");
        let row = Command::new(program).args([name, &size.to_string()]).status().expect("it can be run again");
        assert!(row.success(), "the row of {size} failed");
    }
}

const OPERATIONS: &str = "
 instances   RSS MB   bytes each   register µs   merge one µs   list one µs   look up µs   churn of 1 %/min
                        heap/RSS       p50/p99        p50/p99       p50/p99      p50/p99    CPU %   grows MB/h";

fn operations(size: usize) {
    let mut full = Heart::new("full", &["p1", "p2"], Vec::new());
    let before = (machine::resident_bytes(), HEAP.allocated());
    full.fill(size, PER_SERVICE);
    let resident = machine::resident_bytes();
    let each = |now: usize, before: usize| (now - before) / size;
    let bytes_each = format!("{}/{}", each(HEAP.allocated(), before.1), each(resident, before.0));
    let services = size / PER_SERVICE;
    let register = measure(|round| full.register(services + round % 50, round));
    let foreign: Vec<_> = (0..ROUNDS).map(|round| full.record(round * 7_919 % services, round)).collect();
    let mut foreign = foreign.into_iter();
    let merge = measure(|_| full.merge(foreign.next().into_iter().collect()));
    let view = full.node.view().clone();
    let list = measure(|round| list(&view, round * 7_919 % services));
    let look_up = measure(|round| look_up(&view, round * 7_919 % services, round % PER_SERVICE));
    drop(view);
    let (churn, grows) = churn(&mut full, size);
    println!(
        "{:>10} {:>8.0} {:>12} {:>13} {:>14} {:>13} {:>12} {:>8.2} {:>12.1}",
        size,
        resident as f64 / 1e6,
        bytes_each,
        quantiles(&register),
        quantiles(&merge),
        quantiles(&list),
        quantiles(&look_up),
        churn * 100.0,
        grows / 1e6,
    );
}

/// What a sidecar or the API does to answer: find the service, walk its instances.
fn list(view: &View, service: usize) {
    let shown = view.service(&service_key(service)).expect("the service was filled in");
    let ready = shown.instances.iter().filter(|instance| instance.weight() > 0).count();
    assert!(ready >= PER_SERVICE);
}

fn look_up(view: &View, service: usize, number: usize) {
    assert!(view.instance(&instance_key(service, number)).is_some());
}

/// In every minute one of a hundred instances is replaced by one of another name: what that takes of a processor, with
/// the bytes that come and go, and how fast memory grows while its tombstones are not yet due.
fn churn(heart: &mut Heart, size: usize) -> (f64, f64) {
    let changes: Vec<Vec<u8>> = (0..ROUNDS)
        .map(|round| {
            let (service, number) = (round * 7_919 % (size / PER_SERVICE), round / 2 % PER_SERVICE);
            let record = if round % 2 == 0 {
                heart.tombstone(service, number)
            } else {
                heart.record(service, 1_000_000 + round)
            };
            Message::Push(vec![record]).encode()
        })
        .collect();
    let before = machine::resident_bytes();
    let begun = machine::cpu_time();
    for change in changes {
        heart.answers("p1", vec![change]);
        heart.sent_to("p2");
    }
    let each = (machine::cpu_time() - begun).as_secs_f64() / ROUNDS as f64;
    let grown = machine::resident_bytes().saturating_sub(before) as f64 / ROUNDS as f64;
    let per_second = size as f64 / 100.0 / 60.0;
    (each * per_second, grown * per_second * 3_600.0)
}

const TRANSFERS: &str = "
 instances   remember s   fill a peer s   MB sent   bytes/record";

/// Loading: what a disk remembered, and from a peer (the processor time of both, with the bytes written and read).
fn transfers(size: usize) {
    let mut full = Heart::new("full", &["p1", "p2"], Vec::new());
    full.fill(size, PER_SERVICE);
    let (fill, bytes) = fill_a_peer(&mut full);
    let records = (0..size).map(|n| full.record(n / PER_SERVICE, n % PER_SERVICE)).collect();
    drop(full);
    let begun = machine::cpu_time();
    let mut remembering = Heart::new("p1", &[], records);
    remembering.sleep_ms(0);
    let remember = (machine::cpu_time() - begun).as_secs_f64();
    assert_eq!(remembering.node.view().services.size(), size / PER_SERVICE);
    println!(
        "{:>10} {:>12.2} {:>15.2} {:>9.1} {:>14.0}",
        size,
        remember,
        fill.as_secs_f64(),
        bytes as f64 / 1e6,
        bytes as f64 / size as f64,
    );
}

/// Lets an empty heart repair itself until it holds what the full one does.
fn fill_a_peer(full: &mut Heart) -> (Duration, usize) {
    let mut empty = Heart::new("p2", &["full"], Vec::new());
    let (mut bytes, mut slept, begun) = (0, 0, machine::cpu_time());
    while empty.node.view().fingerprint != full.node.view().fingerprint {
        let mut to_empty = vec![Message::opening(full.node.view().fingerprint, 1).encode()];
        while !to_empty.is_empty() {
            bytes += to_empty.iter().map(Vec::len).sum::<usize>();
            let to_full = empty.answers("full", to_empty);
            bytes += to_full.iter().map(Vec::len).sum::<usize>();
            to_empty = full.answers("p2", to_full);
        }
        // Its clock is the processor's.
        let elapsed = (machine::cpu_time() - begun).as_millis() as u64;
        empty.sleep_ms(elapsed - slept);
        slept = elapsed;
    }
    (machine::cpu_time() - begun, bytes)
}

const IN_AND_OUT: &str = "
 instances             heap/RSS MB:   empty         full   all removed   tombstones collected   full again";

/// What a heart holds on to when all that was in it is gone.
fn in_and_out(size: usize) {
    let mut heart = Heart::new("full", &["p1", "p2"], Vec::new());
    let megabytes = || format!("{:.1}/{:.0}", HEAP.allocated() as f64 / 1e6, machine::resident_bytes() as f64 / 1e6);
    let empty = megabytes();
    heart.fill(size, PER_SERVICE);
    let full = megabytes();
    heart.empty(size, PER_SERVICE);
    let removed = megabytes();
    heart.sleep_ms(TWO_DAYS_MS);
    assert_eq!(heart.node.view().fingerprint.count, 0, "everything is gone");
    let collected = megabytes();
    heart.fill(size, PER_SERVICE);
    let again = megabytes();
    println!("{size:>10} {empty:>31} {full:>12} {removed:>13} {collected:>22} {again:>12}");
}

const ONE_SERVICE: &str = "
 instances of
  one service   merge one µs   look up µs   first look after a change ms
                     p50/p99      p50/p99";

/// All instances in one service: what grows with its size.
fn one_service(size: usize) {
    let mut heart = Heart::new("full", &["p1", "p2"], Vec::new());
    heart.fill(size, size);
    let changes: Vec<_> = (0..ROUNDS).map(|round| heart.record(0, round * 7_919 % size)).collect();
    let mut changes = changes.into_iter();
    let merge = measure(|_| heart.merge(changes.next().into_iter().collect()));
    let view = heart.node.view().clone();
    let look_up = measure(|round| look_up(&view, 0, round * 7_919 % size));
    let begun = machine::cpu_time();
    let shown = view.service(&service_key(0)).expect("it was filled in");
    assert_eq!(shown.candidates().ready.len() + shown.candidates().doubtful.len(), size);
    let first = (machine::cpu_time() - begun).as_secs_f64() * 1e3;
    println!("{size:>13} {:>14} {:>12} {first:>30.2}", quantiles(&merge), quantiles(&look_up));
}

fn measure(mut operation: impl FnMut(usize)) -> Histogram<u64> {
    let mut histogram = Histogram::new(3).expect("3 digits is a valid precision");
    for round in 0..ROUNDS {
        let begun = Instant::now();
        operation(round);
        histogram.record(begun.elapsed().as_nanos() as u64).expect("the histogram grows by itself");
    }
    histogram
}

fn quantiles(histogram: &Histogram<u64>) -> String {
    let micros = |q| histogram.value_at_quantile(q) as f64 / 1_000.0;
    format!("{:.1}/{:.1}", micros(0.5), micros(0.99))
}
