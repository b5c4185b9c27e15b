//! What is asked twice and done once, through the real binary, before an application that counts.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use support::{Backend, Mesh, Mood, NodeProcess, Said, eventually};

/// A POST by a connection of its own, with this key.
fn post(node: &NodeProcess, key: &str, body: &str) -> Said {
    node.line().tell("POST", "ledger", "/entries", &format!("idempotency-key: {key}\r\n"), body).unwrap()
}

fn set(mesh: &Mesh, at: &str, service: &str, text: &str) {
    std::fs::write(mesh.dir().join("policy.toml"), text).unwrap();
    mesh.node(at).starling(&["policy", "set", service, "policy.toml"]);
}

#[test]
fn a_post_sent_twice_with_a_key_through_two_nodes_is_entered_once() {
    let mesh = Mesh::start(["a", "b"]);
    let (one, other) = (Backend::start("one", Mood::Numbers), Backend::start("other", Mood::Numbers));
    mesh.node("a").starling(&["register", "ledger", "--id", "1", "--port", &one.port()]);
    mesh.node("b").starling(&["register", "ledger", "--id", "2", "--port", &other.port()]);
    set(&mesh, "a", "ledger", "[idempotency]\nsteer = false\nask_ms = 10000\n[balance]\nalgorithm = \"round_robin\"\n");
    for node in ["a", "b"] {
        eventually("both are there", || mesh.node(node).ready_instances("ledger").len() == 2);
        let shown = || mesh.node(node).starling(&["policy", "show", "ledger", "--effective"]);
        eventually("the policy is there", || shown().contains("idempotency.window_ms"));
    }
    for n in 0..4 {
        let key = format!("key-{n}");
        let first = post(mesh.node("a"), &key, "5 apples");
        assert_eq!((first.status, first.field("idempotent-replayed")), (201, ""), "{first:?}");
        for node in ["a", "b", "a"] {
            let again = post(mesh.node(node), &key, "5 apples");
            assert_eq!((again.status, again.field("idempotent-replayed")), (201, "true"), "{again:?}");
            assert_eq!(again.body, first.body);
        }
        assert_eq!(post(mesh.node("b"), &key, "6 apples").status, 422);
    }
    assert_eq!(one.asked() + other.asked(), 4);
    let seen = mesh.node("a").starling(&["guards", "ledger", "--all"]);
    assert!(seen.contains("idempotency") && seen.contains("fetched"), "{seen}");
}
