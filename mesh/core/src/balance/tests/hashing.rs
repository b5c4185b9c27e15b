//! What is true of choosing by a hash.

use super::*;

const BOTH: [Algorithm; 2] = [Algorithm::RingHash, Algorithm::Maglev];
const KEYS: u64 = 5_000;

/// Instances named so that their ids are as long as real ones.
fn hosts(count: usize) -> Vec<InstanceView> {
    (0..count).map(|n| instance(&format!("host-{n:03}:8080"), 100, "default", Usability::Ready)).collect()
}

fn key(number: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes())
}

/// Where each key goes.
fn homes(algorithm: Algorithm, instances: &[InstanceView]) -> Vec<String> {
    let mut village = Village::with(BalanceSettings { algorithm, ..BalanceSettings::default() }, instances);
    (0..KEYS).map(|number| village.choose_for(key(number), &[]).unwrap()).collect()
}

#[test]
fn a_key_goes_to_the_same_instance_on_every_node_every_time() {
    for algorithm in BOTH {
        assert_eq!(homes(algorithm, &hosts(20)), homes(algorithm, &hosts(20)), "{algorithm:?}");
    }
}

#[test]
fn a_request_without_a_key_is_drawn_by_weight() {
    for algorithm in BOTH {
        let mut village = Village::by(algorithm, &[100, 300]);
        let drawn = (0..2_000).filter(|_| {
            let (slot, permit) = village.group.choose(village.now, &mut village.rng, &Ask::default()).unwrap();
            permit.succeed(village.now);
            slot.instance.key.instance.as_str() == "b"
        });
        assert!((1_400..1_600).contains(&drawn.count()), "{algorithm:?}");
    }
}

#[test]
fn an_instance_that_goes_moves_its_own_keys_and_few_others() {
    for (algorithm, most_others) in [(Algorithm::RingHash, 0), (Algorithm::Maglev, KEYS / 20)] {
        let before = homes(algorithm, &hosts(20));
        let mut left = hosts(20);
        let gone = left.remove(7).key.instance.to_string();
        let after = homes(algorithm, &left);
        let moved = |was_there: bool| {
            let pairs = before.iter().zip(&after);
            pairs.filter(|(old, new)| (**old == gone) == was_there && old != new).count() as u64
        };
        let its_own = before.iter().filter(|home| **home == gone).count() as u64;
        assert_eq!(moved(true), its_own);
        assert!(moved(false) <= most_others, "{algorithm:?}: {} others moved", moved(false));
    }
}

#[test]
fn keys_are_shared_evenly() {
    for (algorithm, most_off) in [(Algorithm::RingHash, 0.35), (Algorithm::Maglev, 0.2)] {
        let mut counts = BTreeMap::<String, f64>::new();
        homes(algorithm, &hosts(20)).into_iter().for_each(|home| *counts.entry(home).or_default() += 1.0);
        let mean = KEYS as f64 / 20.0;
        assert!(counts.values().all(|count| (count / mean - 1.0).abs() < most_off), "{algorithm:?}: {counts:?}");
    }
}

#[test]
fn a_broken_instances_keys_are_spread_and_come_back() {
    for algorithm in BOTH {
        let mut village = Village::with(BalanceSettings { algorithm, ..BalanceSettings::default() }, &hosts(10));
        let home = |village: &mut Village, number| village.choose_for(key(number), &[]).unwrap();
        let before: Vec<_> = (0..2_000).map(|number| home(&mut village, number)).collect();
        village.break_down("host-003:8080");
        let meanwhile: Vec<_> = (0..2_000).map(|number| home(&mut village, number)).collect();
        let heirs: std::collections::BTreeSet<_> =
            before.iter().zip(&meanwhile).filter(|(old, new)| old != new).map(|(_, new)| new).collect();
        assert!(heirs.len() >= 8, "{algorithm:?}: {heirs:?}");
        let others = before.iter().zip(&meanwhile).filter(|(old, _)| *old != "host-003:8080");
        assert!(others.clone().all(|(old, new)| old == new), "{algorithm:?}: nobody else's key moves");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// One hot key may not take an instance beyond its bound while others have room.
    #[test]
    fn no_instance_is_loaded_beyond_the_bound(
        percent in 101u32..300,
        weights in proptest::collection::vec(1u32..10, 2..10),
        hot in 0u64..4,
    ) {
        for algorithm in BOTH {
            let settings = BalanceSettings { algorithm, bounded_load_percent: percent, ..BalanceSettings::default() };
            let mut village = Village::with(settings, &named(&weights));
            let mut held = Vec::new();
            for number in 0..300u64 {
                // Most requests have the same few keys.
                let name = village.choose_for(key(if number % 3 == 0 { number } else { number % (hot + 1) }), &[]).unwrap();
                held.push(InFlight::begin(village.seat(&name)));
                let share = village.group.slots().find(|slot| slot.instance.key.instance.as_str() == name).unwrap();
                let weight = f64::from(share.instance.weight()) / f64::from(weights.iter().sum::<u32>());
                let bound = (held.len() as f64 * f64::from(percent) / 100.0 * weight * (1.0 + 1e-6)).ceil();
                let has = f64::from(village.seat(&name).load.in_flight());
                prop_assert!(has <= bound, "{algorithm:?}: {name} has {has} of {}, at most {bound}", held.len());
                if number % 5 == 4 {
                    held.remove(0);
                }
            }
        }
    }
}
