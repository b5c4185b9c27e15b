//! Scenario files: what they tell, and that they tell the same again.

use starling_sim::scenario::{Scenario, run};

const SHIPPED: &str = include_str!("../../../examples/scenarios/partition.toml");

#[test]
fn the_scenario_that_ships_goes_as_it_says_whatever_the_seed() {
    let scenario: Scenario = SHIPPED.parse().unwrap();
    for seed in 1..=10 {
        let timeline = run(&scenario, seed);
        assert!(timeline.ok(), "{timeline}");
    }
}

#[test]
fn a_timeline_begins_with_its_seed_and_is_the_same_again_to_the_byte() {
    let scenario: Scenario = SHIPPED.parse().unwrap();
    let told = run(&scenario, scenario.seed()).to_string();
    assert!(told.starts_with("Mesh::builder(7)"), "{told}");
    assert_eq!(told, run(&scenario, scenario.seed()).to_string());
    assert_ne!(told, run(&scenario, 8).to_string());
}

#[test]
fn what_does_not_go_as_expected_is_told_with_its_line_and_fails_the_run() {
    let scenario: Scenario = r#"
        [mesh]
        nodes = 3
        [[step]]
        at = "1s"
        do = "cut"
        from = ["n1"]
        to = ["n2", "n3"]
        [[step]]
        at = "1s"
        do = "register"
        node = "n1"
        instance = "orders/o1"
        [[step]]
        at = "2s"
        do = "expect-visible"
        instance = "orders/o1"
        within = "1s"
        [[step]]
        at = "4s"
        do = "crash"
        node = "n2"
        [[step]]
        at = "4s"
        do = "put"
        node = "n2"
        key = "limits"
        value = "1"
    "#
    .parse()
    .unwrap();
    let timeline = run(&scenario, 1);
    let told = timeline.to_string();
    assert!(!timeline.ok(), "{told}");
    assert!(told.contains("✗ default/orders/o1 is visible: not so within 1s (line 14)"), "{told}");
    assert!(told.contains("n2 does not list it") && told.contains("n3 does not list it"), "{told}");
    assert!(told.contains("✗ n2: node n2 is not running"), "{told}");
    assert!(told.ends_with("FAILED: 2 did not go as expected, 0 did"), "{told}");
}
