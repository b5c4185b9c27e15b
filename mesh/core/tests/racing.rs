//! The guards' promises where several threads use one guard at once.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use starling_core::guard::bulkhead::{Admission, Pass, QueueSettings};
use starling_core::guard::limit::LimitBy;
use starling_core::guard::{Bulkhead, BulkheadSettings, Limit, LimitSettings};
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
