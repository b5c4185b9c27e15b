//! Scenario files: what they tell, and that they tell the same again.

use starling_sim::scenario::{Scenario, run};

const SHIPPED: &str = include_str!("../../../examples/scenarios/partition.toml");

#[test]
fn every_scenario_that_ships_goes_as_it_says_whatever_the_seed() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/scenarios");
    let mut played = 0;
    for entry in std::fs::read_dir(dir).expect("the scenarios are there") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("a scenario is text");
        let scenario: Scenario = text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for seed in (1..=10).chain([scenario.seed()]) {
            let timeline = run(&scenario, seed);
            assert!(timeline.ok(), "{} with seed {seed}\n{timeline}", path.display());
        }
        played += 1;
    }
    assert!(played >= 12, "{played} scenarios");
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

#[test]
fn a_scenario_that_is_written_down_reads_back_as_the_same_run() {
    let everything = r#"
        name = "a \"quoted\" name"
        lenient = true
        [mesh]
        nodes = ["a", "b", "c", "d"]
        zones = ["x", "y"]
        cells = ["eu", "us"]
        seed = 5
        latency_ms = 0.29
        latency_to_ms = 1.5
        loss = 0.03
        reordering = 0.1
        disk = "3ms"
        clock_spread = "250ms"
        repair_interval = "700ms"
        tombstone_horizon = "90s"
        through_bytes = true
        sabotage = "mute-repair"
        [between_cells]
        latency_ms = 55
        loss = 0.01
        [[between]]
        zones = ["x", "y"]
        latency_ms = 30
        jitter_ms = 2
        loss = 0.0
        [[between]]
        nodes = ["a", "c"]
        one_way = true
        bytes_per_second = 100000
        [[step]]
        at = "1s"
        do = "register"
        node = "a"
        instance = "orders/o"
        count = 3
        weight = 7
        version = "v1"
        tags = ["t1", "t2"]
        check = "ttl"
        [[step]]
        at = "1500us"
        do = "heal"
        [[step]]
        at = "1500us"
        do = "crash"
        node = "b"
        torn = true
    "#;
    assert!(everything.parse::<Scenario>().unwrap_err().to_string().contains("order steps by time"));
    let steps = [
        "do = \"renew\"\nnode = \"b\"\ninstance = \"orders/o1\"",
        "do = \"status\"\nnode = \"a\"\ninstance = \"orders/o2\"\nstatus = \"DOWN\"",
        "do = \"override\"\nnode = \"c\"\ninstance = \"orders/o2\"\nstatus = \"UP\"\nweight = 3\nreason = \"why\"",
        "do = \"clear-override\"\nnode = \"d\"\ninstance = \"orders/o2\"",
        "do = \"deregister\"\nnode = \"d\"\ninstance = \"orders/o3\"",
        "do = \"put\"\nnode = \"d\"\nkey = \"shop/limits\"\nvalue = \"two\\nlines \\\\ and a \\\"quote\\\"\"",
        "do = \"delete\"\nnode = \"a\"\nkey = \"shop/limits\"",
        "do = \"cut\"\nfrom = [\"a\"]\nto = [\"b\", \"c\"]",
        "do = \"cut-one-way\"\nfrom = [\"d\"]\nto = [\"a\"]",
        "do = \"heal\"\nfrom = [\"a\"]\nto = [\"b\"]",
        "do = \"crash\"\nnode = \"b\"\ntorn = true",
        "do = \"restart\"\nnode = \"b\"",
        "do = \"pause\"\nnode = \"c\"",
        "do = \"resume\"\nnode = \"c\"",
        "do = \"slow\"\nnode = \"c\"\neach = \"5ms\"",
        "do = \"disk\"\nnode = \"a\"\nlatency = \"80ms\"",
        "do = \"skew\"\nnode = \"d\"\nms = -900",
        "do = \"drift\"\nnode = \"d\"\nppm = 300",
        "do = \"links\"\nloss = 0.2\nduplication = 0.1",
        "do = \"links\"\nfrom = [\"a\"]\nto = [\"d\"]\nlatency_ms = 40",
        "do = \"probes\"\ninstance = \"orders/o1\"\ngood = false",
        "do = \"leave\"\nnode = \"d\"",
        "do = \"mend\"",
        "do = \"expect-converged\"\nwithin = \"9s\"",
        "do = \"expect-nothing-lost\"",
        "do = \"expect-visible\"\ninstance = \"orders/o1\"\non = [\"a\"]",
        "do = \"expect-ready\"\ninstance = \"orders/o1\"",
        "do = \"expect-gone\"\ninstance = \"orders/o3\"\nwithin = \"1s\"",
        "do = \"expect-config\"\nkey = \"shop/limits\"\nvalue = \"x\"",
        "do = \"expect-conflict\"\nkey = \"shop/limits\"\nversions = 3",
        "do = \"expect-no-conflict\"\nkey = \"shop/limits\"",
    ];
    let mut text = everything.split("[[step]]\n        at = \"1500us\"").next().unwrap().to_owned();
    for (i, step) in steps.iter().enumerate() {
        text.push_str(&format!("[[step]]\nat = \"{}ms\"\n{step}\n", 1_100 + i * 137));
    }
    let read: Scenario = text.parse().unwrap();
    let written = read.to_string();
    let again: Scenario = written.parse().unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(written, again.to_string());
    let [first, second] = [&read, &again].map(|scenario| run(scenario, 5).to_string());
    let without_lines =
        |told: &str| told.lines().map(|line| line.split(" (line ").next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(without_lines(&first), without_lines(&second));
    assert!(first.contains("n: not so") || first.contains("FAILED"), "{first}");
}
