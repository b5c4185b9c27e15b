use proptest::prelude::*;

use super::*;

const CLASSES: [Criticality; 4] = Criticality::ALL;

fn shed() -> Shed {
    assert_eq!(ShedSettings::default().check(), Ok(()));
    Shed::new(&ShedSettings::default())
}

/// So many seconds of 1,000 requests each, a quarter of each class, to a callee that can do `can` of them; the queue
/// is long when it is asked for more. Returns how many of each class were let through in the last second.
fn run(shed: &Shed, from_s: u64, seconds: u64, can: u64) -> [u64; 4] {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut passed = [0; 4];
    for second in from_s..from_s + seconds {
        let before: u64 = std::mem::take(&mut passed).iter().sum();
        let wait = Duration::from_millis(if before > can { 100 } else { 1 });
        for request in 0..1_000u64 {
            let class = CLASSES[(request % 4) as usize];
            let now = Instant(second * 1_000_000 + request * 1_000);
            if shed.admit(now, Level::drawn(class, rng.u64(..))).is_ok() {
                passed[class as usize] += 1;
                shed.waited(wait);
            }
        }
    }
    passed
}

#[test]
fn with_no_overload_everything_passes() {
    assert_eq!(run(&shed(), 1, 30, 1_000), [250; 4]);
}

#[test]
fn the_least_critical_are_shed_first_and_all_the_callee_can_do_is_done() {
    let shed = shed();
    let passed = run(&shed, 1, 60, 600);
    assert_eq!(passed[..2], [250, 250], "{passed:?}");
    let all: u64 = passed.iter().sum();
    assert!((510..=690).contains(&all), "{passed:?}");
    assert_eq!(passed[3], 0);
    assert_eq!(shed.snapshot().admitted_percent[..2], [100, 100]);
}

#[test]
fn when_the_overload_is_over_everything_passes_again() {
    let shed = shed();
    run(&shed, 1, 60, 300);
    assert_eq!(run(&shed, 61, 120, 1_000), [250; 4]);
}

#[test]
fn however_bad_it_is_somebody_is_let_through_to_find_out_when_it_ends() {
    let shed = shed();
    run(&shed, 1, 200, 0);
    assert!(run(&shed, 201, 20, 0)[0] > 0);
    assert_eq!(run(&shed, 221, 300, 1_000), [250; 4]);
}

#[test]
fn a_users_requests_are_of_one_level_for_an_hour() {
    let level =
        |user: &str, hour: u64| Level::of(Criticality::Critical, user.as_bytes(), WallTime(hour * 3_600_000 + 5));
    assert_eq!(level("ann", 7), Level::of(Criticality::Critical, b"ann", WallTime(7 * 3_600_000 + 3_599_999)));
    let hours: std::collections::BTreeSet<Level> = (0..100).map(|hour| level("ann", hour)).collect();
    assert!(hours.len() > 20, "another hour is another chance");
    assert!(level("ann", 0) > Level::of(Criticality::CriticalPlus, b"bob", WallTime(0)));
}

/// A service with so many places that takes so long for each call, first come first served: what the bulkhead in front of
/// it measures.
struct Service {
    shed: Shed,
    /// When each place is free again.
    free_us: Vec<u64>,
}

impl Service {
    fn new(places: usize) -> Self {
        Self { shed: shed(), free_us: vec![0; places] }
    }

    /// Whether a call at this moment was let through; it then waits for its turn, which is measured, and is answered.
    fn call(&mut self, at_us: u64, level: Level, takes_us: u64) -> bool {
        let passed = self.shed.admit(Instant(at_us), level).is_ok();
        if passed {
            let place = self.free_us.iter_mut().min().expect("a place");
            let begins = (*place).max(at_us);
            *place = begins + takes_us;
            self.shed.waited(Duration::from_micros(begins - at_us));
        }
        passed
    }
}

/// What came of a class only, in its levels.
fn came_of(counts: &[(u32, u64)]) -> Came {
    let mut came = [0; LEVELS as usize];
    counts.iter().for_each(|(level, count)| came[*level as usize] += count);
    came
}

proptest! {
    #[test]
    fn a_service_is_never_shed_for_being_slow(
        takes_ms in 1u64..20_000, apart_ms in 1u64..2_000, calls in 20usize..300, levels in proptest::collection::vec(0..LEVELS, 1..20),
    ) {
        // As many places as calls overlap: however long each takes, none waits for its turn.
        let mut service = Service::new((takes_ms / apart_ms + 1) as usize);
        for call in 0..calls {
            let level = Level(levels[call % levels.len()]);
            let at_us = call as u64 * apart_ms * 1_000;
            prop_assert!(service.call(at_us, level, takes_ms * 1_000), "call {call}");
        }
        prop_assert_eq!(service.shed.snapshot().overloads, 0);
    }

    #[test]
    fn whatever_happens_the_least_important_go_first(
        takes_ms in 1u64..100, places in 1usize..4, calls in proptest::collection::vec((0u64..30, 0..LEVELS), 50..600),
    ) {
        let mut service = Service::new(places);
        let mut at_us = 0;
        for (apart_ms, level) in calls {
            at_us += apart_ms * 1_000;
            let passed = service.call(at_us, Level(level), takes_ms * 1_000);
            let cursor = service.shed.cursor.load(Relaxed);
            prop_assert_eq!(passed, level < cursor, "all below one level, and none above it");
        }
    }

    #[test]
    fn a_step_is_bounded_and_leaves_somebody(
        cursor in 1..=LEVELS, counts in proptest::collection::vec((0..LEVELS, 1u64..1_000), 0..60), percent in 1u32..=90,
    ) {
        let came = came_of(&counts);
        let (lower, higher) = (lowered(cursor, &came, percent), raised(cursor, &came, percent));
        let all = came.iter().sum::<u64>();
        let first = came.iter().position(|count| *count > 0).map_or(LEVELS, |first| first as u32);
        prop_assert!(lower > first || counts.is_empty(), "the most important that came is let through");
        prop_assert!(lower <= cursor.max(first + 1) && higher >= cursor);
        let levels = |from: u32, to: u32| (from..to).filter(|level| !is_class_empty(&came, *level)).count() as u32;
        prop_assert!(levels(lower, cursor) <= MAX_STEP && levels(cursor, higher) <= MAX_STEP);
        let taken = |from: u32, to: u32| came[from as usize..to.max(from) as usize].iter().filter(|count| **count > 0);
        let fewer = taken(lower, cursor).sum::<u64>();
        let most = came[..cursor as usize].iter().sum::<u64>() * u64::from(percent) / 100;
        prop_assert!(fewer <= most || taken(lower, cursor).count() == 1, "{fewer} of {all}, {most} were meant");
    }
}

#[test]
fn ordinary_traffic_of_one_class_is_not_refused_at_once_however_much_of_it_one_user_is() {
    // Two users; what they ask is all there is. One of them goes at most, and classes nobody is of are passed over.
    let came = came_of(&[(40, 1_000), (50, 10)]);
    let cursor = lowered(LEVELS, &came, 5);
    assert!((USER_LEVELS..=2 * USER_LEVELS).contains(&cursor), "{cursor}");
    let mut lowest = cursor;
    (0..20).for_each(|_| lowest = lowered(lowest, &came, 5));
    assert_eq!(lowest, 41, "one of the two is always let through");
    assert_eq!(lowered(LEVELS, &came_of(&[(127, 5)]), 90), LEVELS, "whoever is alone stays");
}

#[test]
fn few_calls_make_no_overload_and_a_queue_that_is_full_makes_one() {
    let window = |measured: u32, measure: &dyn Fn(&Shed)| {
        let shed = shed();
        (0..measured).for_each(|_| measure(&shed));
        let _ = shed.admit(Instant(5_000_000), Level::drawn(Criticality::Critical, 0));
        shed.snapshot()
    };
    let waits = |shed: &Shed| shed.waited(Duration::from_secs(1));
    assert_eq!(window(MIN_CALLS - 1, &waits).overloads, 0);
    let overloaded = window(MIN_CALLS, &waits);
    assert_eq!((overloaded.overloads, overloaded.waited_us), (1, 1_000_000));
    let full = window(MIN_CALLS, &Shed::found_full);
    assert_eq!((full.overloads, full.waited_us, full.full_percent), (1, 0, 100));
}
