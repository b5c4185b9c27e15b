//! What the guards cost a request that all of them let through.
//!
//! `cargo bench --bench guards` prints the machine and a table: nanoseconds for one call from `admit` to its end, for each
//! guard alone and for all together, in one thread and in two that share every guard (the worst case: each line of memory
//! goes to and fro). Each figure is processor time, the median of seven runs of a million calls; the time is passed in, so reading a clock
//! (which the data plane does anyway) is not in it. Nothing here is compared with a limit: figures are for people.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use starling_core::guard::breaker::Breaker;
use starling_core::guard::bulkhead::Admission;
use starling_core::guard::concurrency::ConcurrencyAdmission;
use starling_core::guard::limit::{Behaviour, LimitBy};
use starling_core::guard::shed::Level;
use starling_core::guard::{
    BreakerSettings, Bulkhead, BulkheadSettings, Circuit, CircuitSettings, Concurrency, ConcurrencySettings,
    Criticality, Limit, LimitSettings, List, ListSettings, Outcome, Quota, QuotaSettings, Shed, ShedSettings,
    SystemGuard, SystemSettings,
};
use starling_core::time::Instant;

#[path = "machine.rs"]
mod machine;

const CALLS: u64 = 1_000_000;
const RUNS: usize = 7;
/// Calls are this far apart and take this long: a busy service, below every limit.
const APART_US: u64 = 10;
const TAKES: Duration = Duration::from_micros(500);

/// All guards, none of which has a reason to refuse.
struct Guards {
    list: List,
    system: Arc<SystemGuard>,
    shed: Shed,
    quota: Quota,
    limit: Limit,
    by_caller: Limit,
    warm_up: Limit,
    bulkhead: Bulkhead,
    concurrency: Arc<Concurrency>,
    circuit: Arc<Circuit>,
    breaker: Arc<Breaker>,
}

impl Guards {
    fn new() -> Self {
        let limit = LimitSettings { count: 1_000_000, ..LimitSettings::default() };
        let by_caller = LimitSettings { by: LimitBy::Caller, ..limit.clone() };
        let warm_up = LimitSettings { behaviour: Behaviour::WarmUp, ..limit.clone() };
        let list = ListSettings { allow: vec!["shop-*".into(), "cart".into()], ..ListSettings::default() };
        let system = SystemSettings {
            max_load_percent: 1_000,
            max_cpu_percent: 100,
            max_in_flight: 1_000_000,
            max_per_s: 10_000_000,
            max_mean_ms: 60_000,
            spare: None,
            inbound_only: false,
        };
        let quota = Quota::new(None, &QuotaSettings { count: 1_000_000, ..QuotaSettings::default() }, 1);
        quota.set_share(Some(1_000_000_000));
        Self {
            list: List::new(&list),
            system: Arc::new(SystemGuard::new(&system)),
            shed: Shed::new(&ShedSettings::default()),
            quota,
            limit: Limit::new(&limit),
            by_caller: Limit::new(&by_caller),
            warm_up: Limit::new(&warm_up),
            bulkhead: Bulkhead::new(&BulkheadSettings::default()),
            concurrency: Arc::new(Concurrency::new(&ConcurrencySettings::default())),
            circuit: Arc::new(Circuit::new(&CircuitSettings::default())),
            breaker: Arc::new(Breaker::new(BreakerSettings::default())),
        }
    }

    fn list(&self) {
        black_box(self.list.admit(Some("shop-7")).is_ok());
    }

    fn system(&self, now: Instant) {
        if let Ok(permit) = self.system.admit(now, Criticality::Critical) {
            permit.end(Outcome::Success, now + TAKES);
        }
    }

    fn shed(&self, now: Instant) {
        let level = Level::drawn(Criticality::Critical, now.0);
        black_box(self.shed.admit(now, level).is_ok());
        self.shed.waited(Duration::from_micros(1));
    }

    fn quota(&self, now: Instant) {
        black_box(self.quota.admit(now).is_ok());
    }

    fn limit(&self, now: Instant) {
        black_box(self.limit.admit(now, b"", 1).is_ok());
    }

    fn by_caller(&self, now: Instant) {
        let caller: &[u8] = [b"shop-1".as_slice(), b"shop-2", b"shop-3", b"shop-4"][(now.0 / APART_US % 4) as usize];
        black_box(self.by_caller.admit(now, caller, 1).is_ok());
    }

    fn warm_up(&self, now: Instant) {
        black_box(self.warm_up.admit(now, b"", 1).is_ok());
    }

    fn bulkhead(&self, now: Instant) {
        if let Ok(Admission::Pass(place)) = self.bulkhead.admit(now) {
            place.end(now + TAKES);
        }
    }

    fn concurrency(&self, now: Instant) {
        if let Ok(ConcurrencyAdmission::Permit(permit)) = self.concurrency.admit(now) {
            permit.end(Outcome::Success, now + TAKES, now.0);
        }
    }

    fn circuit(&self, now: Instant) {
        if let Ok(permit) = self.circuit.admit(now, now.0) {
            permit.end(Outcome::Success, None, now + TAKES, now.0);
        }
    }

    fn breaker(&self, now: Instant) {
        if let Some(permit) = self.breaker.admit(now, false) {
            permit.succeed(now + TAKES);
        }
    }

    fn all(&self, now: Instant) {
        self.list();
        let system = self.system.admit(now, Criticality::Critical);
        self.shed(now);
        self.quota(now);
        self.limit(now);
        self.by_caller(now);
        let place = self.bulkhead.admit(now);
        let concurrency = self.concurrency.admit(now);
        let circuit = self.circuit.admit(now, now.0);
        self.breaker(now);
        let end = now + TAKES;
        if let Ok(permit) = circuit {
            permit.end(Outcome::Success, None, end, now.0);
        }
        if let Ok(ConcurrencyAdmission::Permit(permit)) = concurrency {
            permit.end(Outcome::Success, end, now.0);
        }
        if let Ok(Admission::Pass(place)) = place {
            place.end(end);
        }
        if let Ok(permit) = system {
            permit.end(Outcome::Success, end);
        }
    }
}

/// Median nanoseconds a call, in so many threads at once.
fn measure(threads: u64, call: impl Fn(&Guards, Instant) + Sync) -> f64 {
    let mut figures: Vec<f64> = (0..RUNS)
        .map(|_| {
            let guards = Guards::new();
            let run = || {
                let begun = machine::cpu_time();
                (0..CALLS).for_each(|n| call(&guards, Instant(1_000_000_000 + n * APART_US)));
                (machine::cpu_time() - begun).as_nanos() as f64 / CALLS as f64
            };
            std::thread::scope(|scope| {
                let runs: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
                let figures = runs.into_iter().map(|run| run.join().expect("a run ends"));
                figures.sum::<f64>() / threads as f64
            })
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    figures[RUNS / 2]
}

type Call = (&'static str, fn(&Guards, Instant));

fn main() {
    println!("bench guards: one call from admit to end, ns of processor time; median of {RUNS} runs of {CALLS} calls");
    println!("{}", machine::describe());
    println!("{:34} {:>10} {:>12}", "guard", "one thread", "two threads");
    let rows: [Call; 12] = [
        ("list of callers", |guards, _| guards.list()),
        ("system (all five checks)", Guards::system),
        ("shed by criticality", Guards::shed),
        ("quota of the mesh", Guards::quota),
        ("rate limit, token bucket", Guards::limit),
        ("rate limit by caller", Guards::by_caller),
        ("rate limit, warm-up", Guards::warm_up),
        ("bulkhead", Guards::bulkhead),
        ("concurrency, adaptive", Guards::concurrency),
        ("circuit of a service", Guards::circuit),
        ("breaker of an instance", Guards::breaker),
        ("all together (without warm-up)", Guards::all),
    ];
    for (name, call) in rows {
        println!("{name:34} {:>10.1} {:>12.1}", measure(1, call), measure(2, call));
    }
}
