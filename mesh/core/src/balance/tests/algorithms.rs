//! What is true of every algorithm.

use super::*;

const ALL: [Algorithm; 8] = [
    Algorithm::Random,
    Algorithm::RoundRobin,
    Algorithm::LeastRequests,
    Algorithm::PeakEwma,
    Algorithm::ShortestResponse,
    Algorithm::RingHash,
    Algorithm::Maglev,
    Algorithm::Prequal,
];

fn good(ms: u64) -> (Duration, Outcome) {
    (Duration::from_millis(ms), Outcome::Good)
}

fn of(counts: &BTreeMap<String, usize>, name: &str) -> usize {
    counts.get(name).copied().unwrap_or(0)
}

/// How far from its share an instance of a hash's may be: the ring's is known for it.
fn slack(algorithm: Algorithm) -> f64 {
    match algorithm {
        Algorithm::RingHash => 0.35,
        Algorithm::Prequal => 0.2,
        _ => 0.1,
    }
}

#[test]
fn two_equal_instances_get_equal_shares_at_low_load_and_at_high() {
    for algorithm in ALL {
        for gap_us in [50_000, 500] {
            let exponential = |_: &str, rng: &mut fastrand::Rng| {
                (Duration::from_secs_f32(-0.005 * rng.f32().max(1e-6).ln()), Outcome::Good)
            };
            let counts = Village::by(algorithm, &[100, 100]).play(4_000, gap_us, exponential);
            let off = (of(&counts, "a") as f64 / 2_000.0 - 1.0).abs();
            assert!(off < slack(algorithm) + 0.05, "{algorithm:?}, every {gap_us} us: {counts:?}");
        }
    }
}

#[test]
fn an_instance_that_fails_fast_gets_less_than_its_share_and_not_nothing() {
    for algorithm in ALL {
        let answer = |name: &str, _: &mut fastrand::Rng| match name {
            "a" => (Duration::from_millis(1), Outcome::Unwelcome(FAILURE_PENALTY)),
            _ => good(20),
        };
        let counts = Village::by(algorithm, &[100; 4]).play(8_000, 500, answer);
        let a = of(&counts, "a");
        assert!((1..=1_000).contains(&a), "{algorithm:?}: a fair share is 2,000, {counts:?}");
    }
}

#[test]
fn nobody_starves_although_it_is_slow() {
    for algorithm in ALL {
        let answer = |name: &str, _: &mut fastrand::Rng| good(if name == "a" { 60 } else { 20 });
        let counts = Village::by(algorithm, &[100; 4]).play(8_000, 2_000, answer);
        assert!(of(&counts, "a") >= 8, "{algorithm:?}: {counts:?}");
        assert!(["b", "c", "d"].iter().all(|name| of(&counts, name) > 1_000), "{algorithm:?}: {counts:?}");
    }
}

#[test]
fn the_same_dice_choose_the_same() {
    for algorithm in ALL {
        let play = || {
            let mut village = Village::by(algorithm, &[10, 20, 30]);
            (0..200).map(|_| village.choose().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(play(), play(), "{algorithm:?}");
    }
}

#[test]
fn a_new_instance_starts_slowly_whatever_the_algorithm() {
    for algorithm in ALL {
        let settings = BalanceSettings { algorithm, slow_start_ms: 100_000, ..BalanceSettings::default() };
        let share_after_s = |seconds: u64| {
            let mut village = Village::with(settings.clone(), &named(&[100, 100, 100]));
            village = village.joined_by(&[instance("new", 100, "default", Usability::Ready)]);
            village.now = village.now + Duration::from_secs(seconds);
            // Over 2 s, in which its weight hardly changes.
            let counts = village.play(4_000, 500, |_, _| good(1));
            of(&counts, "new") as f64 / 4_000.0
        };
        // Its weight is a tenth, a half, all of the others'.
        for (seconds, expected) in [(0, 0.1 / 3.1), (50, 0.5 / 3.5), (200, 0.25)] {
            let share = share_after_s(seconds);
            // Of several, the new one is the idle one, so it gets up to twice its weight's share while that is small.
            let goes_by_in_flight = matches!(algorithm, Algorithm::LeastRequests | Algorithm::Prequal);
            let idle = if goes_by_in_flight && seconds == 0 { 1.0 } else { 0.0 };
            let most_off = (slack(algorithm) + 0.1 + idle) * expected + 0.01;
            assert!(
                (share - expected).abs() < most_off,
                "{algorithm:?} after {seconds} s: {share:.3}, not {expected:.3}"
            );
        }
    }
}

#[test]
fn a_service_that_was_there_before_starts_at_once_and_one_that_recovers_slowly() {
    let settings = BalanceSettings { slow_start_ms: 100_000, ..BalanceSettings::default() };
    let mut village = Village::with(settings, &named(&[100, 100]));
    let a = |village: &mut Village| (0..1_000).filter(|_| village.choose().unwrap() == "a").count();
    assert!((400..600).contains(&a(&mut village)));
    village.seat("a").begin_again(village.now);
    assert!((50..150).contains(&a(&mut village)));
}

#[test]
fn a_broken_instance_is_left_out_until_its_probe_is_due_and_then_tried() {
    for algorithm in ALL {
        let mut village = Village::by(algorithm, &[100; 3]);
        village.play(100, 1_000, |_, _| good(1));
        village.break_down("b");
        let counts = village.play(1_000, 1_000, |_, _| good(1));
        assert_eq!(of(&counts, "b"), 0, "{algorithm:?}");
        village.now = village.now + Duration::from_secs(7);
        village.play(500, 1_000, |_, _| good(1));
        assert_eq!(village.seat("b").breaker.state(), BreakerState::Closed, "{algorithm:?}");
    }
}

#[test]
fn what_was_tried_is_not_tried_again_and_doubtful_instances_come_last() {
    for algorithm in ALL {
        let mut instances = named(&[100, 100]);
        instances.push(instance("x", 100, "default", Usability::Doubtful));
        let settings = BalanceSettings { algorithm, ..BalanceSettings::default() };
        let mut village = Village::with(settings, &instances);
        for _ in 0..100 {
            let first = village.choose().unwrap();
            let second = village.choose_except(&[&first]).unwrap();
            assert!(first != second && first != "x" && second != "x", "{algorithm:?}");
            assert_eq!(village.choose_except(&[&first, &second]).unwrap(), "x", "{algorithm:?}");
            assert_eq!(village.choose_except(&["a", "b", "x"]), None, "{algorithm:?}");
        }
    }
}

#[test]
fn round_robin_goes_in_turn_and_a_dead_ones_turns_are_spread_over_all() {
    let mut village = Village::by(Algorithm::RoundRobin, &[100; 4]);
    let turns: Vec<String> = (0..12).map(|_| village.choose().unwrap()).collect();
    assert!(turns.windows(4).all(|window| window.iter().collect::<std::collections::BTreeSet<_>>().len() == 4));
    village.break_down("b");
    let counts = village.play(3_000, 100, |_, _| good(0));
    assert!(["a", "c", "d"].iter().all(|name| (900..1_100).contains(&of(&counts, name))), "{counts:?}");
}

#[test]
fn the_heavier_take_their_turns_between_the_lighter_ones() {
    let mut village = Village::by(Algorithm::RoundRobin, &[5, 1, 1]);
    let turns: String = (0..70).map(|_| village.choose().unwrap()).collect();
    let counts = ["a", "b", "c"].map(|name| turns.matches(name).count());
    assert_eq!(counts, [50, 10, 10], "{turns}");
    assert!(!turns.contains("aaaaaa") && !turns.contains("bb") && !turns.contains("cc"), "{turns}");
}

#[test]
fn least_requests_takes_the_one_with_fewest_of_all_if_all_are_looked_at() {
    let settings = BalanceSettings { algorithm: Algorithm::LeastRequests, choices: 0, ..BalanceSettings::default() };
    let mut village = Village::with(settings, &named(&[100; 4]));
    let _held = ["a", "b", "d"].map(|name| InFlight::begin(village.seat(name)));
    assert!((0..100).all(|_| village.choose().unwrap() == "c"));
}

#[test]
fn shortest_response_goes_by_the_mean_of_good_answers_times_requests_in_flight() {
    let settings = BalanceSettings { algorithm: Algorithm::ShortestResponse, choices: 0, ..BalanceSettings::default() };
    let mut village = Village::with(settings, &named(&[100; 3]));
    for (name, ms) in [("a", 30), ("b", 10), ("c", 25)] {
        village.seat(name).load.observe(village.now, Duration::from_millis(ms), Outcome::Good);
    }
    assert_eq!(village.choose().unwrap(), "b");
    let _held = [(); 2].map(|()| InFlight::begin(village.seat("b")));
    assert_eq!(village.choose().unwrap(), "c", "25 ms against three times 10");
    // A peak would be remembered as one; the mean moves by what one answer is worth.
    village.seat("c").load.observe(village.now, Duration::from_millis(100), Outcome::Good);
    assert_eq!(village.choose().unwrap(), "c");
}

#[test]
fn prequal_takes_the_quickest_that_is_not_busy() {
    let mut village = Village::by(Algorithm::Prequal, &[100; 4]);
    let say = |name: &str, in_flight, latency_us| {
        village.group.report(village.now, &name.parse().unwrap(), Report { in_flight, latency_us });
    };
    say("a", 2, 9_000);
    say("b", 3, 5_000);
    say("c", 50, 1_000);
    assert_eq!(village.choose().unwrap(), "b", "c is quicker and hot");
    village.now = village.now + Duration::from_secs(2);
    let chosen: std::collections::BTreeSet<_> = (0..100).map(|_| village.choose().unwrap()).collect();
    assert_eq!(chosen.len(), 4, "old reports say nothing");
}

#[test]
fn reports_outlive_a_change_of_the_service() {
    let village = Village::by(Algorithm::Prequal, &[100; 4]);
    for (name, latency_us) in [("b", 9_000), ("d", 1_000)] {
        village.group.report(village.now, &name.parse().unwrap(), Report { in_flight: 0, latency_us });
    }
    let mut village = village.joined_by(&[instance("aa", 100, "default", Usability::Ready)]);
    assert_eq!(village.choose().unwrap(), "d");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Idle and equally fast, each instance gets its weight's share, whatever the weights and the algorithm.
    #[test]
    fn shares_go_by_weight(weights in proptest::collection::vec(10u32..200, 2..6), seed in any::<u64>()) {
        const N: usize = 4_000;
        for algorithm in ALL {
            let mut village = Village::by(algorithm, &weights);
            village.rng = fastrand::Rng::with_seed(seed);
            let counts = village.play(N, 5_000, |_, _| good(3));
            let total: u32 = weights.iter().sum();
            for (weight, name) in weights.iter().zip("abcdefgh".chars()) {
                let expected = N as f64 * f64::from(*weight) / f64::from(total);
                let got = of(&counts, &name.to_string()) as f64;
                let most_off = 6.0 * expected.sqrt() + 1.0 + match algorithm {
                    Algorithm::RingHash => 0.5 * expected,
                    Algorithm::Prequal => 0.25 * expected,
                    _ => 0.0,
                };
                prop_assert!((got - expected).abs() <= most_off, "{algorithm:?} {weights:?} {counts:?}");
            }
        }
    }
}
