//! The guards' promises where several threads use one guard at once.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use starling_core::guard::bulkhead::{Admission, Pass, QueueSettings};
use starling_core::guard::circuit::CircuitPer;
use starling_core::guard::concurrency::ConcurrencyAdmission;
use starling_core::guard::limit::LimitBy;
use starling_core::guard::shed::Level;
use starling_core::guard::{
    Bulkhead, BulkheadSettings, CircuitSettings, Circuits, Concurrency, ConcurrencySettings, Criticality, Limit,
    LimitSettings, Outcome, Shed, ShedSettings,
};
use starling_core::time::Instant;

const THREADS: usize = 4;
const NOW: Instant = Instant(1_000_000);

/// Runs it in several threads at once and adds up what they return.
fn race(run: impl Fn() -> usize + Sync) -> usize {
    std::thread::scope(|scope| {
        let racers: Vec<_> = (0..THREADS).map(|_| scope.spawn(&run)).collect();
        racers.into_iter().map(|racer| racer.join().expect("a racer fails")).sum()
    })
}

#[test]
fn racing_callers_of_a_limit_get_no_more_than_one_would() {
    for by in [LimitBy::All, LimitBy::Caller] {
        let limit = Limit::new(&LimitSettings { by, count: 1, burst: 1_000, ..LimitSettings::default() });
        assert_eq!(race(|| (0..1_000).filter(|_| limit.admit(NOW, b"one", 1).is_ok()).count()), 1_000);
    }
}

#[test]
fn racing_callers_of_a_bulkhead_never_exceed_it_and_leave_nothing_behind() {
    let queue = QueueSettings { max_queue: 2, ..QueueSettings::default() };
    let bulkhead = Bulkhead::new(&BulkheadSettings { max_concurrent: 3, queue });
    let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = |_: Pass| {
        most.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
        inside.fetch_sub(1, Relaxed);
        1
    };
    let worked = race(|| {
        let turns = (0..2_000).map(|_| match bulkhead.admit(NOW) {
            Ok(Admission::Pass(pass)) => work(pass),
            Ok(Admission::Wait(mut waiting)) => {
                match Pin::new(&mut waiting).poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Ok(pass)) => work(pass),
                    _ => 0,
                }
            }
            Err(_) => 0,
        });
        turns.sum()
    });
    assert!(worked > 0 && most.load(Relaxed) <= 3);
    let snapshot = bulkhead.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.waiting), (0, 0));
}

#[test]
fn a_window_of_shedding_is_ended_by_one_of_those_who_find_it_over() {
    let shed = Shed::new(&ShedSettings { window_ms: 60_000, window_calls: 10, ..ShedSettings::default() });
    let call = || {
        let _ = shed.admit(NOW, Level::drawn(Criticality::Critical, 0));
        shed.waited(Duration::from_secs(1));
        let seen = shed.snapshot();
        assert!(seen.overloads == 0 || seen.waited_us > 0, "a window nobody waited in: {seen:?}");
        1
    };
    assert_eq!(race(|| (0..50_000).map(|_| call()).sum()), THREADS * 50_000);
}

#[test]
fn methods_that_race_for_a_circuit_get_one_each() {
    let settings = CircuitSettings { per: CircuitPer::Method, max_methods: 64, ..CircuitSettings::default() };
    let circuits = Circuits::new(&settings);
    let call = |method: usize| {
        let name = method.to_string();
        let permit = circuits.of(|| &name).admit(NOW, 0).expect("it is closed");
        permit.end(Outcome::Success, None, NOW, 0);
        1
    };
    let calls = race(|| (0..64).map(call).sum());
    let seen = circuits.snapshot(NOW);
    assert_eq!((calls, seen.methods.len()), (THREADS * 64, 64));
    assert!(seen.methods.values().all(|circuit| circuit.calls == THREADS as u64), "{seen:?}");
}

#[test]
fn the_adaptive_limit_goes_by_the_calls_of_all_threads_together() {
    let settings =
        ConcurrencySettings { min: 10, measure_calls: 100 * THREADS as u32, ..ConcurrencySettings::default() };
    let limit = Arc::new(Concurrency::new(&settings));
    let measured_before_the_last = race(|| {
        let calls = (0..100).map(|_| {
            let Ok(ConcurrencyAdmission::Permit(permit)) = limit.admit(NOW) else { panic!("there are ten places") };
            let is_measured = limit.snapshot().base_us > 0.0;
            permit.end(Outcome::Success, NOW + Duration::from_millis(3), 0);
            usize::from(is_measured)
        });
        calls.sum()
    });
    let seen = limit.snapshot();
    assert_eq!((measured_before_the_last, seen.base_us, seen.places.in_flight), (0, 3_000.0, 0));
}
