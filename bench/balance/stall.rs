//! One of eleven stalls: the experiment of the Finagle authors (2016). One client sends 1,000 requests a second, evenly,
//! for 60 s; each takes 167 ms give or take 5, but from 15 s to 45 s one instance takes 2 s. What matters is how many
//! are answered within a second.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use starling_core::balance::{Algorithm, Ask, BalanceSettings, InFlight, Outcome, Report, Reporter};

const INSTANCES: usize = 11;
const SEEDS: u64 = 10;
const REQUESTS: usize = 60_000;

pub(crate) fn run() {
    println!("\none of 11 instances stalls for 30 of 60 s, 1,000 requests a second, mean of {SEEDS} seeds (ms):");
    println!("{:<34}{:>12}{:>9}{:>9}{:>9}{:>9}   published", "", "within 1 s", "p95", "p99", "p99.9", "p99.99");
    let all = |algorithm| BalanceSettings { choices: 0, ..crate::by(algorithm) };
    let rules: [(&str, BalanceSettings, &str); 9] = [
        ("round robin", crate::by(Algorithm::RoundRobin), "95 %"),
        ("random", crate::by(Algorithm::Random), ""),
        ("least requests of all", all(Algorithm::LeastRequests), "99 %"),
        ("least requests of two", crate::by(Algorithm::LeastRequests), ""),
        ("shortest response of all", all(Algorithm::ShortestResponse), ""),
        ("shortest response of two", crate::by(Algorithm::ShortestResponse), ""),
        ("peak EWMA of two (default)", crate::by(Algorithm::PeakEwma), "99.9 %"),
        ("Prequal", crate::by(Algorithm::Prequal), ""),
        ("ring hash, 125 % bound", bounded(), ""),
    ];
    for (name, settings, published) in rules {
        let mut latencies: Vec<f64> = (0..SEEDS).flat_map(|seed| play(&settings, seed)).collect();
        latencies.sort_unstable_by(f64::total_cmp);
        let good = latencies.partition_point(|latency| *latency <= 1_000.0) as f64 / latencies.len() as f64;
        let p = |share| crate::quantile(&latencies, share);
        println!(
            "{name:<34}{:>10.3} %{:>9.0}{:>9.0}{:>9.0}{:>9.0}   {published}",
            good * 100.0,
            p(0.95),
            p(0.99),
            p(0.999),
            p(0.9999)
        );
    }
}

fn bounded() -> BalanceSettings {
    BalanceSettings { bounded_load_percent: 125, ..crate::by(Algorithm::RingHash) }
}

/// The latency of each request, in milliseconds.
fn play(settings: &BalanceSettings, seed: u64) -> Vec<f64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let group = crate::group(settings, &[100; INSTANCES]);
    let slots = group.roster().slots();
    let reporters: Vec<_> = (0..INSTANCES).map(|_| Arc::new(Reporter::default())).collect();
    let mut ends = BinaryHeap::new();
    let mut pending = std::collections::BTreeMap::new();
    let mut latencies = Vec::with_capacity(REQUESTS);
    for number in 0..REQUESTS {
        let seconds = number as f64 / 1_000.0;
        let now = crate::at(seconds);
        while let Some(Reverse((end, id))) = ends.peek().copied().filter(|Reverse((end, _))| *end <= now) {
            ends.pop();
            let Some((in_flight, answering, instance, took)) = pending.remove(&id) else { continue };
            let in_flight: InFlight<()> = in_flight;
            let answering: starling_core::balance::Answering = answering;
            answering.end(took);
            in_flight.seat().load.observe(end, took, Outcome::Good);
            drop(in_flight);
            report(&group, slots, &reporters, instance, end);
        }
        if group.wants_reports() {
            for _ in 0..settings.prequal.probes_percent / 100 {
                if let Some(slot) = group.ask_whom(now, &mut rng) {
                    let instance = slots.iter().position(|other| std::ptr::eq(other, slot)).unwrap_or(0);
                    report(&group, slots, &reporters, instance, now);
                }
            }
        }
        let key = Some(rng.u64(..));
        let (slot, permit) = group.choose(now, &mut rng, &Ask { tried: &[], key }).expect("all are usable");
        permit.succeed(now);
        let instance = slots.iter().position(|other| std::ptr::eq(other, slot)).expect("one of them");
        let stalls = instance == 0 && (15.0..45.0).contains(&seconds);
        let ms = if stalls { 2_000.0 } else { 167.0 + 5.0 * crate::normal(&mut rng) };
        let took = Duration::from_secs_f64(ms / 1_000.0);
        pending.insert(number, (InFlight::begin(&slot.seat), reporters[instance].begin(), instance, took));
        ends.push(Reverse((now + took, number)));
        latencies.push(ms);
    }
    latencies
}

fn report(
    group: &starling_core::balance::Group<()>,
    slots: &[starling_core::balance::Slot<()>],
    reporters: &[Arc<Reporter>],
    instance: usize,
    now: starling_core::time::Instant,
) {
    let report: Report = reporters[instance].report();
    group.report(now, &slots[instance].instance.key.instance, report);
}
