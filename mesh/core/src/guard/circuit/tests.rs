use proptest::prelude::*;

use super::*;

const fn ms(ms: u64) -> Instant {
    Instant(1_000_000_000 + ms * 1_000)
}

fn circuit(settings: CircuitSettings) -> Arc<Circuit> {
    assert_eq!(settings.check(), Ok(()));
    Arc::new(Circuit::new(&settings))
}

fn by_calls(calls: u32) -> CircuitSettings {
    CircuitSettings { window: WindowKind::Calls, window_calls: calls, min_calls: calls, ..CircuitSettings::default() }
}

fn admits(circuit: &Arc<Circuit>, now: Instant) -> bool {
    circuit.admit(now, 0).is_ok()
}

fn state(circuit: &Circuit, now: Instant) -> CircuitState {
    circuit.snapshot(now).state
}

impl Circuit {
    /// A call that is let through and ends like this, after so many milliseconds.
    fn call(self: &Arc<Self>, now: Instant, outcome: Outcome, took_ms: u64) {
        let permit = self.admit(now, 0).expect("let through");
        permit.end(outcome, None, now + Duration::from_millis(took_ms), 0);
    }

    fn calls(self: &Arc<Self>, now: Instant, good: usize, failed: usize) {
        (0..good).for_each(|_| self.call(now, Outcome::Success, 0));
        (0..failed).for_each(|_| self.call(now, Outcome::Failure, 0));
    }
}

#[test]
fn half_of_the_last_calls_failing_opens_it_but_not_less() {
    let circuit = circuit(by_calls(10));
    circuit.calls(ms(0), 6, 4);
    assert_eq!(state(&circuit, ms(0)), CircuitState::Closed);
    circuit.calls(ms(0), 0, 1); // over a good one: 5 of 10
    let refusal = circuit.admit(ms(1), 0).unwrap_err();
    assert_eq!(refusal, Refusal::until(Guard::Breaker, "open", Duration::from_millis(4_999)));
}

#[test]
fn the_call_that_makes_enough_calls_opens_it_even_if_it_is_good() {
    let circuit = circuit(CircuitSettings { min_calls: 4, ..CircuitSettings::default() });
    circuit.calls(ms(0), 0, 3);
    assert_eq!(state(&circuit, ms(0)), CircuitState::Closed, "three calls are too few to judge");
    circuit.calls(ms(0), 1, 0);
    assert_eq!(state(&circuit, ms(0)), CircuitState::Open);
}

#[test]
fn slow_calls_open_it_although_they_succeed() {
    let circuit = circuit(CircuitSettings { slow_percent: 50, slow_call_ms: 100, ..by_calls(4) });
    (0..2).for_each(|_| circuit.call(ms(0), Outcome::Success, 100));
    (0..1).for_each(|_| circuit.call(ms(0), Outcome::Success, 101));
    assert_eq!(state(&circuit, ms(0)), CircuitState::Closed);
    circuit.call(ms(0), Outcome::Success, 101);
    assert_eq!(state(&circuit, ms(0)), CircuitState::Open);
}

#[test]
fn failures_in_a_row_or_in_a_time_open_it_whatever_their_share() {
    let row = circuit(CircuitSettings { consecutive_failures: 3, failure_percent: 0, ..CircuitSettings::default() });
    row.calls(ms(0), 0, 2);
    row.calls(ms(0), 1, 2);
    assert_eq!(state(&row, ms(0)), CircuitState::Closed);
    row.calls(ms(0), 0, 1);
    assert_eq!(state(&row, ms(0)), CircuitState::Open);

    let number = circuit(CircuitSettings { failures: 3, failure_percent: 0, ..CircuitSettings::default() });
    number.calls(ms(0), 1_000, 1);
    number.calls(ms(9_000), 1_000, 1);
    number.calls(ms(11_000), 1_000, 1); // the first is forgotten
    assert_eq!(state(&number, ms(11_000)), CircuitState::Closed);
    number.calls(ms(11_000), 0, 1);
    assert_eq!(state(&number, ms(11_000)), CircuitState::Open);
}

#[test]
fn what_is_ignored_counts_neither_way() {
    let circuit = circuit(by_calls(2));
    circuit.calls(ms(0), 0, 1);
    (0..10).for_each(|_| circuit.call(ms(0), Outcome::Ignored, 0));
    assert_eq!(circuit.snapshot(ms(0)).calls, 1);
    circuit.calls(ms(0), 0, 1);
    assert_eq!(state(&circuit, ms(0)), CircuitState::Open);
}

#[test]
fn three_good_calls_on_trial_close_it_and_nobody_else_gets_through_meanwhile() {
    let circuit = circuit(by_calls(2));
    circuit.calls(ms(0), 0, 2);
    assert!(!admits(&circuit, ms(4_999)));
    let trial: Vec<_> = (0..3).map(|_| circuit.admit(ms(5_000), 0).unwrap()).collect();
    assert!(trial.iter().all(CircuitPermit::is_trial));
    assert!(!admits(&circuit, ms(5_000)), "a fourth");
    let changed: Vec<bool> = trial.into_iter().map(|permit| permit.end(Outcome::Success, None, ms(5_001), 0)).collect();
    assert_eq!(changed, [false, false, true]);
    assert_eq!(state(&circuit, ms(5_001)), CircuitState::Closed);
}

#[test]
fn a_trial_is_lost_as_soon_as_the_others_cannot_make_up_for_it() {
    let circuit = circuit(by_calls(2));
    circuit.calls(ms(0), 0, 2);
    circuit.call(ms(5_000), Outcome::Failure, 0);
    assert_eq!(state(&circuit, ms(5_000)), CircuitState::HalfOpen, "one of three is less than half");
    circuit.call(ms(5_000), Outcome::Failure, 0);
    assert_eq!(circuit.snapshot(ms(5_000)).ends_in_ms, Some(10_000), "open for twice as long");
}

#[test]
fn a_dropped_permit_makes_room_and_a_lost_one_is_not_waited_for() {
    let circuit = circuit(CircuitSettings { half_open_calls: 1, ..by_calls(2) });
    circuit.calls(ms(0), 0, 2);
    drop(circuit.admit(ms(5_000), 0).unwrap());
    circuit.call(ms(5_000), Outcome::Ignored, 0);
    let lost = circuit.admit(ms(5_000), 0).unwrap();
    assert!(!admits(&circuit, ms(14_999)));
    let next = circuit.admit(ms(15_000), 0).expect("another trial");
    assert!(!lost.end(Outcome::Failure, None, ms(15_001), 0), "it is of a trial that is over");
    assert!(next.end(Outcome::Success, None, ms(15_002), 0));
}

#[test]
fn a_trial_with_too_few_calls_is_judged_by_those_or_as_the_settings_say() {
    for (then, result, expected) in [
        (HalfOpenThen::Judge, Outcome::Success, CircuitState::Closed),
        (HalfOpenThen::Judge, Outcome::Failure, CircuitState::Open),
        (HalfOpenThen::Open, Outcome::Success, CircuitState::Open),
        (HalfOpenThen::Close, Outcome::Failure, CircuitState::Closed),
    ] {
        let circuit = circuit(CircuitSettings { half_open_then: then, ..by_calls(2) });
        circuit.calls(ms(0), 0, 2);
        circuit.call(ms(5_000), result, 0);
        assert_eq!(admits(&circuit, ms(15_000)), expected == CircuitState::Closed);
        assert_eq!(state(&circuit, ms(15_000)), expected, "{then:?} after {result:?}");
    }
}

#[test]
fn what_was_let_through_in_an_earlier_state_says_nothing_in_a_later_one() {
    let circuit = circuit(CircuitSettings { half_open_calls: 1, ..by_calls(2) });
    let early: Vec<_> = (0..10).map(|_| circuit.admit(ms(0), 0).unwrap()).collect();
    circuit.calls(ms(0), 0, 2);
    circuit.call(ms(5_000), Outcome::Success, 0);
    assert_eq!(state(&circuit, ms(5_000)), CircuitState::Closed);
    early.into_iter().for_each(|permit| assert!(!permit.end(Outcome::Failure, None, ms(5_001), 0)));
    assert_eq!(circuit.snapshot(ms(5_001)).calls, 0);
}

#[test]
fn it_stays_open_for_as_long_as_the_callee_asks_within_the_bound() {
    let open_for = |told_s| {
        let circuit = circuit(CircuitSettings { max_retry_after_ms: 30_000, ..CircuitSettings::default() });
        let permit = circuit.admit(ms(0), 0).unwrap();
        assert!(permit.end(Outcome::Failure, Some(Duration::from_secs(told_s)), ms(0), 0));
        circuit.snapshot(ms(0)).ends_in_ms
    };
    assert_eq!((open_for(7), open_for(3_600)), (Some(7_000), Some(30_000)));
    let deaf = circuit(CircuitSettings::default());
    assert!(!deaf.admit(ms(0), 0).unwrap().end(Outcome::Failure, Some(Duration::from_secs(7)), ms(0), 0));
}

#[test]
fn a_hand_on_the_switch_wins_until_its_time_is_over() {
    let circuit = circuit(by_calls(2));
    circuit.switch(Mode::ForceOpen, Some(ms(100)));
    let refusal = circuit.admit(ms(40), 0).unwrap_err();
    assert_eq!(refusal, Refusal::until(Guard::Breaker, "forced open", Duration::from_millis(60)));
    assert!(admits(&circuit, ms(100)));

    circuit.switch(Mode::ForceClosed, None);
    circuit.calls(ms(100), 0, 5);
    let snapshot = circuit.snapshot(ms(100));
    assert_eq!((snapshot.state, snapshot.calls), (CircuitState::Closed, 2));

    circuit.switch(Mode::Disabled, None);
    circuit.calls(ms(101), 1, 0);
    assert_eq!(circuit.snapshot(ms(101)).failure_percent, 100.0, "nothing was counted");
}

#[test]
fn a_rehearsal_refuses_nobody_and_counts_whom_it_would_have_refused() {
    let circuit = circuit(by_calls(2));
    circuit.switch(Mode::MetricsOnly, None);
    circuit.calls(ms(0), 0, 2);
    circuit.calls(ms(1), 3, 4);
    let snapshot = circuit.snapshot(ms(1));
    assert_eq!((snapshot.state, snapshot.rehearsed, snapshot.refused), (CircuitState::Open, 7, 0));
    circuit.calls(ms(5_000), 3, 0);
    assert_eq!(state(&circuit, ms(5_000)), CircuitState::Closed);
}

fn settings() -> impl Strategy<Value = CircuitSettings> {
    let then = prop_oneof![Just(HalfOpenThen::Judge), Just(HalfOpenThen::Open), Just(HalfOpenThen::Close)];
    (any::<bool>(), 1u32..20, 0u32..3, 1u32..31, then, 0u64..2_000).prop_map(
        |(by_calls, min, row, trial, then, told)| CircuitSettings {
            window: if by_calls { WindowKind::Calls } else { WindowKind::Time },
            window_calls: 10,
            min_calls: min,
            consecutive_failures: row,
            half_open_calls: trial,
            half_open_then: then,
            max_retry_after_ms: told,
            ..CircuitSettings::default()
        },
    )
}

#[test]
fn a_call_is_as_slow_as_its_answer_was_to_begin_however_long_it_goes_on() {
    let circuit = circuit(CircuitSettings { slow_call_ms: 10, slow_percent: 50, failure_percent: 0, ..by_calls(1) });
    let mut permit = circuit.admit(ms(0), 0).unwrap();
    permit.answered(ms(10));
    assert!(!permit.end(Outcome::Success, None, ms(60_000), 0));
    let mut permit = circuit.admit(ms(60_000), 0).unwrap();
    permit.answered(ms(60_011));
    assert!(permit.end(Outcome::Success, None, ms(60_011), 0), "it opens");
}

proptest! {
    /// Whatever happened, however many permits were lost: after at most three days of good calls only, it is closed.
    #[test]
    fn it_never_sticks(settings in settings(), steps in proptest::collection::vec((0u8..6, 0u64..8_000, any::<u64>()), 0..200)) {
        let circuit = circuit(settings);
        let mut now = ms(0);
        let mut held = Vec::new();
        for (step, wait_ms, random) in steps {
            now = now + Duration::from_millis(wait_ms);
            let told = (random % 7 == 0).then(|| Duration::from_millis(random % 5_000));
            match step {
                0 => held.extend(circuit.admit(now, random)),
                1 => held.pop().into_iter().for_each(|permit: CircuitPermit| { permit.end(Outcome::Failure, told, now, random); }),
                2 => held.pop().into_iter().for_each(|permit| { permit.end(Outcome::Success, None, now, random); }),
                3 => drop(held.pop()),
                4 => circuit.switch(Mode::ALL[(random % 5) as usize], Some(now + Duration::from_millis(random % 9_000))),
                _ => (0..9).filter_map(|_| circuit.admit(now, random).ok()).for_each(|permit| {
                    permit.end(Outcome::Failure, None, now, random);
                }),
            }
        }
        std::mem::forget(held);
        // A trial whose time is over may be judged badly first, and so may failures that a switch has kept from counting.
        for _day in 0..3 {
            now = now + Duration::from_secs(86_400);
            for permit in (0..100).filter_map(|_| circuit.admit(now, 0).ok()) {
                permit.end(Outcome::Success, None, now, 0);
            }
        }
        prop_assert_eq!(circuit.snapshot(now).state, CircuitState::Closed);
    }

    /// Half-open, no more than the permitted are out at once and none after the trial is full.
    #[test]
    fn a_trial_lets_no_more_through_than_it_says(permitted in 1u32..31, steps in proptest::collection::vec(0u8..3, 0..200)) {
        let circuit = circuit(CircuitSettings { half_open_calls: permitted, failure_percent: 100, ..by_calls(2) });
        circuit.calls(ms(0), 0, 2);
        let mut out = Vec::new();
        let mut ended = 0;
        for step in steps {
            match step {
                0 => out.extend(circuit.admit(ms(5_000), 0)),
                1 => drop(out.pop()),
                _ => {
                    if let Some(permit) = out.pop() {
                        ended += 1;
                        permit.end(Outcome::Success, None, ms(5_000), 0);
                    }
                }
            }
            if ended == permitted as usize {
                break;
            }
            prop_assert!(out.len() + ended <= permitted as usize);
        }
    }

    #[test]
    fn a_gate_reads_back_as_it_was_written(until_ms in 0u64..1 << 42, counts in [0u64..32, 0u64..32, 0u64..32, 0u64..32]) {
        let [given, ended, failed, slow] = counts;
        for gate in [Gate::Closed, Gate::Open { until_ms }, Gate::Trial(Trial { until_ms, given, ended, failed, slow })] {
            prop_assert_eq!(Gate::read(gate.write()), gate);
        }
    }
}
