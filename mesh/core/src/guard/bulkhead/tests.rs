use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

use proptest::prelude::*;

use super::*;

const fn ms(ms: u64) -> Instant {
    Instant(1_000_000_000 + ms * 1_000)
}

fn bulkhead(max_concurrent: u32, queue: QueueSettings) -> Bulkhead {
    let settings = BulkheadSettings { max_concurrent, queue };
    assert_eq!(settings.check(), Ok(()));
    Bulkhead::new(&settings)
}

fn fifo(max_queue: u32) -> QueueSettings {
    QueueSettings { max_queue, ..QueueSettings::default() }
}

fn adaptive(max_queue: u32) -> QueueSettings {
    QueueSettings { max_queue, order: QueueOrder::Adaptive, ..QueueSettings::default() }
}

fn pass(bulkhead: &Bulkhead, now: Instant) -> Pass {
    match bulkhead.admit(now) {
        Ok(Admission::Pass(pass)) => pass,
        other => panic!("not let in at once: {other:?}"),
    }
}

fn wait(bulkhead: &Bulkhead, now: Instant) -> Waiting {
    match bulkhead.admit(now) {
        Ok(Admission::Wait(waiting)) => waiting,
        other => panic!("does not wait: {other:?}"),
    }
}

fn poll(waiting: &mut Waiting) -> Poll<Result<Pass, Refusal>> {
    Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn what_finds_no_place_is_refused_at_once_without_a_queue() {
    let bulkhead = bulkhead(2, fifo(0));
    let held = [pass(&bulkhead, ms(0)), pass(&bulkhead, ms(0))];
    assert_eq!(bulkhead.admit(ms(0)).unwrap_err(), Refusal::new(Guard::Bulkhead, "full"));
    drop(held);
    assert_eq!(bulkhead.snapshot().in_flight, 0);
    drop(pass(&bulkhead, ms(1)));
}

#[test]
fn those_who_wait_get_a_place_in_the_order_they_came_and_nobody_overtakes_them() {
    let bulkhead = bulkhead(1, fifo(2));
    let inside = pass(&bulkhead, ms(0));
    let (mut first, mut second) = (wait(&bulkhead, ms(1)), wait(&bulkhead, ms(2)));
    assert!(bulkhead.admit(ms(3)).is_err(), "a third");
    assert!(poll(&mut first).is_pending());
    inside.end(ms(4));
    let mut third = wait(&bulkhead, ms(4));
    assert!(poll(&mut second).is_pending());
    let Poll::Ready(Ok(inside)) = poll(&mut first) else { panic!("the first has no place") };
    drop(inside);
    assert!(poll(&mut third).is_pending());
    assert!(matches!(poll(&mut second), Poll::Ready(Ok(_))));
}

#[test]
fn who_gives_up_is_no_longer_waited_for_even_with_a_place_already_granted() {
    let bulkhead = bulkhead(1, fifo(10));
    let inside = pass(&bulkhead, ms(0));
    let (granted, given_up, mut last) = (wait(&bulkhead, ms(1)), wait(&bulkhead, ms(1)), wait(&bulkhead, ms(1)));
    assert_eq!(given_up.give_up().guard, Guard::Bulkhead);
    assert_eq!(bulkhead.snapshot().waiting, 2);
    drop(inside);
    drop(granted); // has a place it never saw
    assert!(matches!(poll(&mut last), Poll::Ready(Ok(_))));
    let snapshot = bulkhead.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.waiting, snapshot.turned_away), (0, 0, 1));
}

#[test]
fn under_overload_the_newest_goes_first_and_the_late_are_turned_away() {
    let bulkhead = bulkhead(1, adaptive(3));
    let inside = pass(&bulkhead, ms(0));
    let mut waiting: Vec<_> = (1..=3).map(|at| wait(&bulkhead, ms(at))).collect();
    // Not empty for a tenth of a second: the oldest of a full queue makes room.
    waiting.push(wait(&bulkhead, ms(150)));
    assert!(matches!(poll(&mut waiting[0]), Poll::Ready(Err(_))));
    inside.end(ms(152));
    let Poll::Ready(Ok(inside)) = poll(&mut waiting[3]) else { panic!("the newest goes first") };
    inside.end(ms(153));
    assert!(waiting[1..3].iter_mut().all(|late| matches!(poll(late), Poll::Ready(Err(_)))), "5 ms is all they get");
    assert_eq!(bulkhead.snapshot().turned_away, 3);
}

#[test]
fn without_overload_the_adaptive_queue_is_first_come_first_served() {
    let bulkhead = bulkhead(1, adaptive(3));
    let inside = pass(&bulkhead, ms(0));
    let (mut first, mut second) = (wait(&bulkhead, ms(1)), wait(&bulkhead, ms(2)));
    inside.end(ms(60));
    let first = poll(&mut first);
    assert!(matches!(first, Poll::Ready(Ok(_))) && poll(&mut second).is_pending());
}

#[test]
fn a_raised_limit_lets_those_in_who_wait_and_a_lowered_one_waits_for_others_to_leave() {
    let turnstile = Arc::new(Turnstile::new(Guard::Concurrency, 1, fifo(10)));
    let enter = || turnstile.enter(ms(0)).unwrap();
    let Admission::Pass(first) = enter() else { panic!("no place") };
    let mut waiting: Vec<_> = (0..3)
        .filter_map(|_| match enter() {
            Admission::Wait(waiting) => Some(waiting),
            Admission::Pass(_) => None,
        })
        .collect();
    turnstile.set_limit(3);
    let inside: Vec<_> = waiting[..2].iter_mut().map(poll).collect();
    assert!(inside.iter().all(Poll::is_ready) && poll(&mut waiting[2]).is_pending());
    turnstile.set_limit(1);
    drop(inside);
    assert!(poll(&mut waiting[2]).is_pending(), "one is inside still");
    drop(first);
    assert!(poll(&mut waiting[2]).is_ready());
}

struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn who_waits_is_woken_when_its_turn_comes() {
    let bulkhead = bulkhead(1, fifo(1));
    let inside = pass(&bulkhead, ms(0));
    let mut waiting = wait(&bulkhead, ms(0));
    let bell = Arc::new(Bell(AtomicUsize::new(0)));
    assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&bell.clone().into())).is_pending());
    drop(inside);
    assert_eq!(bell.0.load(Relaxed), 1);
}

proptest! {
    /// Whatever comes, waits, gives up and leaves: never too many are inside, nobody waits while there is room, and in
    /// the end nothing is left.
    #[test]
    fn places_are_kept_exactly(
        limit in 1u32..4,
        is_adaptive in any::<bool>(),
        steps in proptest::collection::vec((0u8..5, 0usize..8, 0u64..60), 0..200),
    ) {
        let bulkhead = bulkhead(limit, if is_adaptive { adaptive(4) } else { fifo(4) });
        let (mut inside, mut queue) = (Vec::new(), Vec::new());
        let mut now = ms(0);
        for (step, which, wait_ms) in steps {
            now = now + Duration::from_millis(wait_ms);
            match step {
                0 | 1 => match bulkhead.admit(now) {
                    Ok(Admission::Pass(pass)) => inside.push(pass),
                    Ok(Admission::Wait(waiting)) => queue.push(waiting),
                    Err(_) => {}
                },
                2 if which < queue.len() => drop(queue.remove(which)),
                3 if which < inside.len() => inside.remove(which).end(now),
                4 if which < queue.len() => match poll(&mut queue[which]) {
                    Poll::Ready(outcome) => {
                        inside.extend(outcome);
                        drop(queue.remove(which));
                    }
                    Poll::Pending => {}
                },
                _ => {}
            }
            let snapshot = bulkhead.snapshot();
            prop_assert!(snapshot.in_flight <= limit && snapshot.waiting <= 4);
            prop_assert!(snapshot.waiting == 0 || snapshot.in_flight == limit, "somebody waits beside a free place");
        }
        drop((inside, queue));
        let snapshot = bulkhead.snapshot();
        prop_assert_eq!((snapshot.in_flight, snapshot.waiting), (0, 0));
    }
}
