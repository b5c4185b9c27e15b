use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const fn ms(ms: u64) -> Instant {
    Instant(1_000_000_000 + ms * 1_000)
}

fn limit(settings: LimitSettings) -> Limit {
    assert_eq!(settings.check(), Ok(()));
    Limit::new(&settings)
}

fn per_second(count: u32) -> LimitSettings {
    LimitSettings { count, ..LimitSettings::default() }
}

fn passed(limit: &Limit, value: &str, now: Instant, calls: usize) -> usize {
    (0..calls).filter(|_| limit.admit(now, value.as_bytes(), 1).is_ok()).count()
}

#[test]
fn a_bucket_lets_its_burst_through_at_once_and_then_its_rate() {
    let limit = limit(LimitSettings { burst: 5, ..per_second(10) });
    assert_eq!(passed(&limit, "", ms(0), 100), 5);
    assert_eq!(passed(&limit, "", ms(99), 100), 0);
    assert_eq!(passed(&limit, "", ms(100), 100), 1);
    assert_eq!(passed(&limit, "", ms(350), 100), 2);
    assert_eq!(passed(&limit, "", ms(60_000), 100), 5, "a long rest is worth no more than the burst");
    assert_eq!(limit.snapshot(ms(60_000)).refused, 95 + 100 + 99 + 98 + 95);
}

#[test]
fn a_refusal_says_when_there_will_be_room() {
    let limit = limit(LimitSettings { burst: 1, ..per_second(10) });
    assert!(limit.admit(ms(0), b"", 1).is_ok());
    let refusal = limit.admit(ms(30), b"", 1).unwrap_err();
    assert_eq!(refusal.retry_after, Some(Duration::from_millis(70)));
    assert!(limit.admit(ms(99), b"", 1).is_err() && limit.admit(ms(100), b"", 1).is_ok());
}

#[test]
fn paced_calls_go_one_by_one_and_those_that_would_wait_too_long_are_refused() {
    let limit = limit(LimitSettings { behaviour: Behaviour::Pace, max_wait_ms: 250, ..per_second(10) });
    let waits: Vec<_> = (0..4).map(|_| limit.admit(ms(0), b"", 1).map(|wait| wait.as_millis())).collect();
    assert_eq!(waits[..3], [Ok(0), Ok(100), Ok(200)]);
    assert_eq!(waits[3], Err(Refusal::until(Guard::Rate, "over the rate", Duration::from_millis(50))));
    assert_eq!(limit.admit(ms(1_000), b"", 1), Ok(Duration::ZERO), "a rest is worth no burst");
    assert_eq!(limit.admit(ms(1_000), b"", 1), Ok(Duration::from_millis(100)));
    assert_eq!(limit.snapshot(ms(1_000)).held, 3);
}

#[test]
fn who_has_less_time_than_it_would_wait_is_refused_and_takes_nobodys_place() {
    let limit = limit(LimitSettings { behaviour: Behaviour::Pace, max_wait_ms: 60_000, ..per_second(1) });
    assert_eq!(limit.admit(ms(0), b"", 1), Ok(Duration::ZERO));
    let hurried = limit.admit_within(ms(0), b"", 1, Duration::from_millis(300));
    assert_eq!(hurried, Err(Refusal::until(Guard::Rate, "over the rate", Duration::from_millis(700))));
    assert_eq!(limit.admit(ms(0), b"", 1), Ok(Duration::from_secs(1)), "the next place is still free");
}

#[test]
fn each_value_has_its_own_limit_and_some_have_another() {
    let values = BTreeMap::from([("vip".to_owned(), 50)]);
    let limit = limit(LimitSettings { by: LimitBy::Caller, values, ..per_second(10) });
    let all = ["a", "b", "vip", ""].map(|value| passed(&limit, value, ms(0), 100));
    assert_eq!(all, [10, 10, 50, 10]);
    assert_eq!(limit.snapshot(ms(0)).busy_keys, Some(4));
}

#[test]
fn more_values_than_are_told_apart_never_get_more_than_their_limit() {
    let limit = limit(LimitSettings { by: LimitBy::Path, max_keys: 16, ..per_second(10) });
    let values: Vec<String> = (0..1_000).map(|value| format!("/{value}")).collect();
    let mut passed_of = vec![0; values.len()];
    for round in 0..30 {
        for (value, passed_of) in values.iter().zip(&mut passed_of) {
            *passed_of += passed(&limit, value, ms(round), 1);
        }
    }
    assert!(passed_of.iter().all(|passed| *passed <= 10));
    assert!(limit.snapshot(ms(30)).crowded > Some(900), "and it is told that there are too many");
    assert_eq!(passed(&limit, "new", ms(5_000), 20), 10, "a rest forgets them all");
}

#[test]
fn a_value_at_rest_is_forgotten_first_and_loses_nothing() {
    let limit = limit(LimitSettings { by: LimitBy::Caller, max_keys: 8, ..per_second(10) });
    for busy in 0..4 {
        assert_eq!(passed(&limit, &format!("busy-{busy}"), ms(2_000), 20), 10);
    }
    for idle in 0..100u64 {
        // One call is paid off after a tenth of a second.
        passed(&limit, &format!("idle-{idle}"), ms(2_000 + idle * 200), 1);
        for busy in 0..4 {
            let calls = passed(&limit, &format!("busy-{busy}"), ms(2_000 + idle * 200), 20);
            assert!(calls <= 2, "{calls} in 200 ms");
        }
    }
    assert_eq!(limit.snapshot(ms(30_000)).crowded, Some(0));
}

#[test]
fn a_cold_limit_allows_a_third_and_warms_up_within_its_time() {
    let limit = limit(LimitSettings { behaviour: Behaviour::WarmUp, ..per_second(300) });
    let per_second: Vec<usize> =
        (0..20).map(|second| (0..1_000).map(|milli| passed(&limit, "", ms(second * 1_000 + milli), 1)).sum()).collect();
    // The first second has its burst besides: a second's worth at the cold rate.
    assert!((195..=205).contains(&per_second[0]), "{per_second:?}");
    assert!((100..=110).contains(&per_second[1]), "{per_second:?}");
    assert!(per_second[1..].windows(2).all(|pair| pair[0] <= pair[1] + 1), "{per_second:?}");
    assert!(per_second[8] < 290, "{per_second:?}");
    assert!(per_second[13..].iter().all(|passed| (299..=301).contains(passed)), "{per_second:?}");
    // A minute of rest, and it is cold again.
    assert!(passed(&limit, "", ms(80_000), 1_000) <= 101);
}

#[test]
fn a_related_limit_gives_way_to_the_others_traffic() {
    let limit = limit(LimitSettings { related: Some("write".into()), ..per_second(10) });
    let writes = Meter::new(Duration::from_secs(1));
    (0..9).for_each(|_| writes.pass(ms(0)));
    assert!(limit.admit_related(ms(0), &writes).is_ok());
    writes.pass(ms(500));
    let refusal = limit.admit_related(ms(500), &writes).unwrap_err();
    assert_eq!((refusal.guard, refusal.retry_after), (Guard::Rate, Some(Duration::from_millis(100))));
    assert!(limit.admit_related(ms(1_000), &writes).is_ok());
}

proptest! {
    /// In any time from one call to another no more pass than the burst and what the rate allows for that time.
    #[test]
    fn no_time_sees_more_than_the_bound(
        count in 1u32..50,
        per_ms in 1u64..3_000,
        burst in 1u32..20,
        paced in any::<bool>(),
        waits_us in proptest::collection::vec(0u64..200_000, 1..200),
    ) {
        let behaviour = if paced { Behaviour::Pace } else { Behaviour::Reject };
        let limit = limit(LimitSettings { count, per_ms, burst, behaviour, ..LimitSettings::default() });
        let burst = if paced { 1 } else { burst };
        let mut now = ms(0);
        let mut passed = Vec::new();
        for wait_us in waits_us {
            now = now + Duration::from_micros(wait_us);
            if let Ok(wait) = limit.admit(now, b"", 1) {
                passed.push(now + wait);
            }
        }
        for (first, from) in passed.iter().enumerate() {
            for (nth, to) in passed[first..].iter().enumerate() {
                // Times are whole microseconds: a call may go up to one before its nanosecond.
                let time_us = to.since(*from).as_micros() as u64 + 1;
                let bound = u64::from(burst) * per_ms * 1_000 + u64::from(count) * time_us;
                prop_assert!((nth as u64 + 1) * per_ms * 1_000 <= bound, "{} calls in {time_us} us", nth + 1);
            }
        }
    }

    /// With many values, each has the bound of its own, also while there is room for a few only.
    #[test]
    fn no_value_sees_more_than_the_bound(calls in proptest::collection::vec((0u64..50_000, 0u8..40), 1..600)) {
        let limit = limit(LimitSettings { by: LimitBy::Path, max_keys: 8, burst: 3, ..per_second(10) });
        let mut now = ms(0);
        let mut passed = BTreeMap::<u8, Vec<Instant>>::new();
        for (wait_us, value) in calls {
            now = now + Duration::from_micros(wait_us);
            if limit.admit(now, &[value], 1).is_ok() {
                passed.entry(value).or_default().push(now);
            }
        }
        for times in passed.values() {
            for (first, from) in times.iter().enumerate() {
                for (nth, to) in times[first..].iter().enumerate() {
                    let time_us = to.since(*from).as_micros() as u64 + 1;
                    prop_assert!((nth as u64 + 1) * 1_000_000 <= 3_000_000 + 10 * time_us);
                }
            }
        }
    }
}
