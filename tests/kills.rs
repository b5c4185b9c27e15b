//! A node that is killed again and again while it is written to: nothing that was acknowledged is lost.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use support::{Backend, Mesh, Mood, eventually};

/// As many as a bad night has.
const KILLS: usize = 20;
/// How many documents are written between two kills; the last one is on its way when the node is killed.
const WRITES: usize = 3;

#[test]
fn nothing_acknowledged_is_lost_however_often_the_node_is_killed() {
    let mut mesh = Mesh::start(["a"]);
    let mut acknowledged: BTreeMap<String, String> = BTreeMap::new();
    let mut overrides: BTreeMap<String, usize> = BTreeMap::new();
    for kill in 0..KILLS {
        for write in 0..WRITES {
            // Keys are written again after some rounds: the newest must be there, not just any.
            let (key, value) = (format!("k{}", (kill * WRITES + write) % 20), format!("{kill}.{write}"));
            mesh.node("a").starling(&["config", "put", &key, "--value", &value]);
            acknowledged.insert(key, value);
        }
        let (instance, weight) = (format!("o{}", kill % 7), kill.to_string());
        mesh.node("a").starling(&["register", "orders", "--port", "9", "--id", &instance]);
        mesh.node("a").starling(&["override", "set", "orders", &instance, "--weight", &weight]);
        overrides.insert(instance, kill);
        let late = mesh.node("a").begin_starling(&["config", "put", "late", "--value", &kill.to_string()]);
        mesh.node_mut("a").kill();
        drop(late);
        mesh.restart("a");
        let (key, value) = acknowledged.iter().nth(kill % acknowledged.len()).unwrap();
        assert_eq!(&mesh.node("a").starling(&["config", "get", key]), value, "{key} after {} kills", kill + 1);
    }
    for (key, value) in &acknowledged {
        assert_eq!(&mesh.node("a").starling(&["config", "get", key]), value, "{key} at the end");
    }
    let list: Value = serde_json::from_str(&mesh.node("a").starling(&["instances", "orders", "--json"])).unwrap();
    let weight =
        |found: &Value| (found["id"].as_str().unwrap().into(), found["override"]["weight"].as_u64().unwrap() as usize);
    let found: BTreeMap<String, usize> = list["instances"].as_array().unwrap().iter().map(weight).collect();
    assert_eq!(found, overrides, "registrations and overrides at the end");
    assert!(mesh.node("a").lines("damaged").is_empty(), "a kill may cut a write short, and damages nothing");
}

#[test]
fn what_waits_to_be_sent_later_is_sent_after_its_node_was_killed() {
    let mut mesh = Mesh::start(["a"]);
    let shop = Backend::start("shop", Mood::Answers(503));
    mesh.node("a").starling(&["register", "orders", "--id", "1", "--port", &shop.port()]);
    std::fs::write(mesh.dir().join("policy.toml"), "[tolerate]\nmode = \"failback\"\nfailback.first_wait_ms = 500\n")
        .unwrap();
    mesh.node("a").starling(&["policy", "set", "orders", "policy.toml"]);
    for n in 0..10 {
        let said = mesh.node("a").line().tell("POST", "orders", &format!("/{n}"), "", "x").unwrap();
        assert_eq!(said.status, 202, "{said:?}");
        assert!(said.field("x-starling-failback").starts_with("a."), "{said:?}");
    }
    let listed = mesh.node("a").starling(&["failback", "list", "orders"]);
    assert!(listed.contains("POST /0") && listed.contains("POST /9"), "{listed}");
    let last = listed.lines().last().unwrap().split_whitespace().next().unwrap().to_owned();
    let dropped = mesh.node("a").starling(&["failback", "drop", &last]);
    assert!(dropped.contains("is never sent; 9 requests left at node a"), "{dropped}");
    let missing = mesh.node("a").try_starling(&["failback", "drop", &last]).unwrap_err();
    assert!(missing.contains("no request") && missing.contains("the node its name begins with"), "{missing}");
    let hurried = mesh.node("a").starling(&["failback", "retry", "orders"]);
    assert!(hurried.contains("9 requests of orders are tried now"), "{hurried}");
    mesh.node_mut("a").kill();
    let before = shop.heard().len();
    shop.becomes(Mood::Well);
    mesh.restart("a");
    let a = mesh.node("a");
    let delivered = "starling_failback_total{service=\"default/orders\",what=\"delivered\"}";
    eventually("all are delivered", || a.metric(delivered) == 9.0);
    let heard = shop.heard().split_off(before);
    let mut paths: Vec<String> = heard.iter().map(|heard| heard.head.split(' ').nth(1).unwrap().to_owned()).collect();
    paths.dedup(); // the kill may have come within an attempt
    assert_eq!(paths, (0..9).map(|n| format!("/{n}")).collect::<Vec<_>>(), "in order");
    assert!(heard.iter().all(|heard| heard.body == b"x" && heard.head.contains("idempotency-key: \"a.")), "{heard:?}");
    assert!(a.starling(&["guards", "orders"]).contains("delivered=9"));
}
