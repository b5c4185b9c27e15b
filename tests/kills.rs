//! A node that is killed again and again while it is written to: nothing that was acknowledged is lost.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use support::Mesh;

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
