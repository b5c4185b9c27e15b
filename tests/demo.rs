//! The demo is true: the built program tells its whole story, every promise is kept, and every figure is there.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_demo_tells_its_story_and_every_promise_is_kept() {
    let output = Command::new(env!("CARGO_BIN_EXE_starling"))
        .args(["demo", "--fast", "--json", "--seed", "7"])
        .output()
        .expect("the built program runs");
    let told = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    let report: Value =
        serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error} in {told:?}, and it said {complaints:?}"));
    let promises = report["promises"].as_array().expect("a list of promises");
    let broken: Vec<&Value> = promises.iter().filter(|promise| promise["kept"] != Value::Bool(true)).collect();
    assert!(broken.is_empty(), "broken promises: {broken:#?}\n{complaints}");
    assert!(output.status.success() && report["held"] == Value::Bool(true), "{told}\n{complaints}");
    assert!(promises.len() >= 20, "only {} promises were made: {promises:#?}", promises.len());

    let figure = |name: &str| report["figures"][name].as_f64().unwrap_or_else(|| panic!("no figure {name} in {told}"));
    for name in [
        "mesh_last_ready_to_formed_us",
        "register_seen_p50_us",
        "register_seen_p99_us",
        "deregister_seen_p99_us",
        "call_direct_p50_us",
        "call_one_sidecar_p50_us",
        "call_two_sidecars_p50_us",
        "shop_request_p99_us",
        "instance_killed_seen_us",
        "node_killed_seen_us",
        "node_back_agreed_us",
        "partition_seen_us",
        "heal_agreed_us",
        "conflict_resolved_us",
        "config_seen_p50_us",
        "trace_gathered_us",
    ] {
        assert!(figure(name) > 0.0, "{name} cannot take no time at all");
    }
    assert_eq!(figure("register_seen_count"), 40.0);
    assert!(figure("register_seen_p50_us") <= figure("register_seen_p99_us"));
    assert!(figure("shop_get") > 0.0 && figure("shop_post") > 0.0);
    assert!(figure("trace_spans") >= 4.0);
    for lost in ["shop_lost_get", "instance_killed_lost_get", "node_killed_lost_get", "partition_lost_get"] {
        assert_eq!(figure(lost), 0.0, "{lost}");
    }
}
