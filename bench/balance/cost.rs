//! What one choice costs.

use std::hint::black_box;
use std::time::Duration;

use starling_core::balance::{Algorithm, Ask, BalanceSettings, Outcome, Report};

const CHOICES: u32 = 1_000_000;

pub(crate) fn run() {
    println!("\none choice, in ns of processor time (median of 5 times {CHOICES}):");
    let counts = [10usize, 100, 1_000];
    print!("{:<34}", "instances");
    counts.iter().for_each(|count| print!("{count:>10}"));
    println!();
    let all = |algorithm| BalanceSettings { choices: 0, ..crate::by(algorithm) };
    let bounded = |algorithm| BalanceSettings { bounded_load_percent: 150, ..crate::by(algorithm) };
    for (name, settings) in [
        ("random", crate::by(Algorithm::Random)),
        ("round robin", crate::by(Algorithm::RoundRobin)),
        ("least requests of two", crate::by(Algorithm::LeastRequests)),
        ("least requests of all", all(Algorithm::LeastRequests)),
        ("peak EWMA of two (default)", crate::by(Algorithm::PeakEwma)),
        ("shortest response of two", crate::by(Algorithm::ShortestResponse)),
        ("ring hash", crate::by(Algorithm::RingHash)),
        ("ring hash, bounded", bounded(Algorithm::RingHash)),
        ("Maglev", crate::by(Algorithm::Maglev)),
        ("Maglev, bounded", bounded(Algorithm::Maglev)),
        ("Prequal", crate::by(Algorithm::Prequal)),
    ] {
        print!("{name:<34}");
        for count in counts {
            print!("{:>10.0}", measure(&settings, count));
        }
        println!();
    }
}

fn measure(settings: &BalanceSettings, count: usize) -> f64 {
    let group = crate::group(settings, &vec![100; count]);
    let mut rng = fastrand::Rng::with_seed(1);
    let now = crate::at(0.0);
    for (number, slot) in group.roster().slots().iter().enumerate() {
        slot.seat.load.observe(now, Duration::from_millis(10 + number as u64 % 7), Outcome::Good);
        let report = Report { in_flight: number as u32 % 5, latency_us: 10_000 };
        group.report(now, &slot.instance.key.instance, report);
    }
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let before = crate::machine::cpu_time();
            for _ in 0..CHOICES {
                let ask = Ask { tried: &[], key: Some(rng.u64(..)) };
                let (slot, permit) = group.choose(now, &mut rng, &ask).expect("all are usable");
                black_box(slot);
                drop(permit);
            }
            (crate::machine::cpu_time() - before).as_nanos() as f64 / f64::from(CHOICES)
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    times[2]
}
