//! The limit before a modelled callee: so many workers, a queue before them, exponential or fixed work.

use std::collections::BTreeMap;

use super::*;

/// A callee with `workers`, each call of which takes `work_us` on average (exponentially distributed).
struct Callee {
    workers: usize,
    work_us: f64,
}

/// How a run went.
#[derive(Debug)]
struct Ran {
    limit: f64,
    good_per_s: f64,
    mean_us: f64,
    refused: u64,
}

/// Open-loop load of `per_s` on the callee behind the limit; what is measured is the last half of `seconds`.
fn run(limit: &Arc<Concurrency>, callee: &Callee, per_s: f64, seconds: u64, seed: u64) -> Ran {
    run_from(1, limit, callee, per_s, seconds, seed)
}

/// The same, from that second on.
fn run_from(start_s: u64, limit: &Arc<Concurrency>, callee: &Callee, per_s: f64, seconds: u64, seed: u64) -> Ran {
    let mut rng = fastrand::Rng::with_seed(seed);
    let draw = |rng: &mut fastrand::Rng, mean_us: f64| (-(1.0 - rng.f64()).ln() * mean_us).max(1.0) as u64;
    let start = start_s * 1_000_000;
    let end = start + seconds * 1_000_000;
    let mut free_at = vec![start; callee.workers];
    let mut ends: BTreeMap<(u64, u64), ConcurrencyPermit> = BTreeMap::new();
    let (mut now, mut calls, mut good, mut took_us) = (start, 0, 0u64, 0u64);
    let (mut refused, mut limits, mut looks) = (0, 0.0, 0u64);
    while now < end {
        now += draw(&mut rng, 1e6 / per_s);
        while let Some(first) = ends.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((at, _), permit) = first.remove_entry();
            if at > start + (end - start) / 2 {
                good += 1;
                took_us += at - permit.began.0;
            }
            permit.end(Outcome::Success, Instant(at), rng.u64(..));
        }
        match limit.admit(Instant(now)) {
            Ok(ConcurrencyAdmission::Permit(permit)) => {
                let worker = (0..free_at.len()).min_by_key(|worker| free_at[*worker]).unwrap();
                free_at[worker] = free_at[worker].max(now) + draw(&mut rng, callee.work_us);
                calls += 1;
                ends.insert((free_at[worker], calls), permit);
            }
            _ => refused += 1,
        }
        if now > start + (end - start) / 2 {
            limits += f64::from(limit.snapshot().places.limit);
            looks += 1;
        }
    }
    Ran {
        limit: limits / looks as f64,
        good_per_s: good as f64 * 2.0 / seconds as f64,
        mean_us: took_us as f64 / good.max(1) as f64,
        refused,
    }
}

fn limit(law: Law) -> Arc<Concurrency> {
    let settings = ConcurrencySettings { law, ..ConcurrencySettings::default() };
    assert_eq!(settings.check(), Ok(()));
    Arc::new(Concurrency::new(&settings))
}

/// Twenty workers of 10 ms: two thousand calls a second.
const CALLEE: Callee = Callee { workers: 20, work_us: 10_000.0 };

#[test]
fn at_twice_what_the_callee_can_do_it_does_all_it_can_and_nothing_waits_for_long() {
    for law in [Law::Queueing, Law::Gradient] {
        for seed in 0..2 {
            let ran = run(&limit(law), &CALLEE, 4_000.0, 20, seed);
            assert!(ran.good_per_s > 1_800.0, "{law:?}: {ran:?}");
            // Ten of work, and no more than twice the target of waiting.
            assert!(ran.mean_us < 50_000.0, "{law:?}: {ran:?}");
            assert!((20.0..110.0).contains(&ran.limit), "{law:?}: {ran:?}");
        }
    }
}

#[test]
fn gradient2_keeps_a_steady_overload_steady() {
    let ran = run(&limit(Law::Gradient2), &CALLEE, 4_000.0, 20, 1);
    assert!(ran.good_per_s > 1_900.0 && ran.limit < 400.0, "{ran:?}");
}

#[test]
fn what_the_callee_can_do_is_hardly_ever_refused() {
    for law in [Law::Queueing, Law::Gradient, Law::Gradient2] {
        let ran = run(&limit(law), &CALLEE, 1_200.0, 40, 7);
        // But for what comes while the shortest time is measured: 50 calls at most three at once.
        assert!((ran.refused as f64) < 0.02 * 1_200.0 * 40.0, "{law:?}: {ran:?}");
        assert!(ran.mean_us < 20_000.0, "{law:?}: {ran:?}");
    }
}

#[test]
fn a_callee_that_becomes_slower_gets_less_and_one_that_recovers_gets_more() {
    let limit = limit(Law::Queueing);
    let slow = Callee { workers: 4, ..CALLEE };
    let before = run_from(1, &limit, &CALLEE, 4_000.0, 10, 1);
    let worse = run_from(20, &limit, &slow, 4_000.0, 10, 1);
    let after = run_from(40, &limit, &CALLEE, 4_000.0, 10, 1);
    assert!(worse.limit < before.limit / 2.0 && worse.good_per_s > 350.0, "{before:?}, then {worse:?}");
    assert!(
        after.limit > before.limit * 0.8 && after.good_per_s > 1_800.0,
        "{before:?}, then {worse:?}, then {after:?}"
    );
}

#[test]
fn it_does_not_grow_while_nobody_needs_it() {
    let limit = limit(Law::Queueing);
    run(&limit, &Callee { workers: 1_000, work_us: 10_000.0 }, 500.0, 20, 1);
    assert!(limit.snapshot().places.limit <= 50, "five at once on average, seventeen at most: {:?}", limit.snapshot());
}

#[test]
fn quick_errors_do_not_look_like_a_quick_callee() {
    let limit = limit(Law::Queueing);
    run(&limit, &CALLEE, 1_000.0, 5, 1);
    let before = limit.snapshot();
    let mut now = Instant(100_000_000);
    for _ in 0..10_000 {
        now = now + Duration::from_millis(1);
        let Ok(ConcurrencyAdmission::Permit(permit)) = limit.admit(now) else { panic!("refused") };
        permit.end(Outcome::Failure, now, 0);
    }
    assert_eq!(limit.snapshot().base_us, before.base_us);
    assert_eq!(limit.snapshot().recent_us, before.recent_us);
}

#[test]
fn a_lost_measurement_does_not_hold_it_at_the_lowest_limit_for_ever() {
    // Permits that are dropped say nothing; the next ones do.
    let limit = limit(Law::Queueing);
    for call in 0..1_000 {
        match limit.admit(Instant(1_000_000 + call)) {
            Ok(ConcurrencyAdmission::Permit(permit)) => drop(permit),
            other => panic!("a dropped permit keeps its place: {other:?}"),
        }
    }
    assert!(limit.snapshot().measuring);
    run(&limit, &CALLEE, 1_000.0, 5, 1);
    assert!(!limit.snapshot().measuring && limit.snapshot().places.limit > 3);
}

#[test]
fn an_answer_that_is_read_slowly_holds_its_place_and_makes_no_callee_slow() {
    let limit = Arc::new(Concurrency::new(&ConcurrencySettings::default()));
    let at = |ms: u64| Instant(1_000_000 + ms * 1_000);
    let mut read = Vec::new();
    for _ in 0..ConcurrencySettings::default().min {
        let Ok(ConcurrencyAdmission::Permit(mut permit)) = limit.admit(at(0)) else { panic!("there is a place") };
        permit.answered(Outcome::Success, at(2), 0);
        read.push(permit);
    }
    assert!(limit.admit(at(2)).is_err() || limit.snapshot().places.in_flight == ConcurrencySettings::default().min);
    read.into_iter().for_each(|permit| permit.end(Outcome::Success, at(60_000), 0));
    assert_eq!(limit.snapshot().places.in_flight, 0);
    for call in 0..ConcurrencySettings::default().measure_calls {
        let Ok(ConcurrencyAdmission::Permit(permit)) = limit.admit(at(60_000)) else { panic!("there is a place") };
        permit.end(Outcome::Success, at(60_002 + u64::from(call % 2)), 0);
    }
    let base_us = limit.snapshot().base_us;
    assert!((1_000.0..4_000.0).contains(&base_us), "{base_us}");
}
