//! Three real node processes of the built binary, real QUIC on loopback: what people are promised, end to end.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use support::{App, Mesh, eventually};

#[test]
fn an_instance_registered_at_one_node_is_seen_at_all() {
    let mesh = Mesh::start(["a", "b", "c"]);
    mesh.node("a").starling(&["register", "orders", "--port", "9", "--id", "o1"]);
    for node in ["a", "b", "c"] {
        eventually(&format!("{node} sees o1"), || mesh.node(node).ready_instances("orders") == ["o1"]);
    }
    mesh.node("c").starling(&["deregister", "orders", "o1"]);
    for node in ["a", "b", "c"] {
        eventually(&format!("{node} sees that o1 is gone"), || mesh.node(node).ready_instances("orders").is_empty());
    }
}

#[test]
fn requests_through_a_sidecar_reach_the_other_nodes_and_outlive_a_crash() {
    let mut mesh = Mesh::start(["a", "b", "c"]);
    let (on_b, on_c) = (App::start("b"), App::start("c"));
    mesh.node("b").starling(&["register", "orders", "--id", "on-b", "--port", &on_b.port()]);
    mesh.node("c").starling(&["register", "orders", "--id", "on-c", "--port", &on_c.port()]);
    let both = ["on-b", "on-c"];
    eventually("a sees both instances", || mesh.node("a").ready_instances("orders") == both);
    let mut reached = std::collections::BTreeSet::new();
    eventually("requests reach both apps", || {
        reached.insert(mesh.node("a").call("orders").expect("both apps work"));
        reached.len() == 2
    });

    mesh.node_mut("b").kill();
    eventually("a has lost b, and no request failed meanwhile", || {
        mesh.node("a").call("orders").expect("a request failed after the crash");
        mesh.node("a").ready_instances("orders") == ["on-c"]
    });

    mesh.restart("b");
    eventually("b is back without an operator", || mesh.node("a").ready_instances("orders") == both);
    // What was held against b before its restart does not count any more.
    eventually("b takes traffic again", || mesh.node("a").call("orders") == Ok("b".to_owned()));
}

#[test]
fn a_node_that_is_asked_to_stop_takes_its_instances_with_it() {
    let mut mesh = Mesh::start(["a", "b"]);
    mesh.node("b").starling(&["register", "orders", "--port", "9", "--id", "o1"]);
    eventually("a sees o1", || mesh.node("a").ready_instances("orders") == ["o1"]);
    assert_eq!(mesh.node_mut("b").terminate(), Some(0), "a polite stop is a success");
    eventually("o1 left with its node", || mesh.node("a").ready_instances("orders").is_empty());
    eventually("a knows that b left, not that it was lost", || {
        mesh.node("a").starling(&["members", "--json"]).contains(r#""state": "left""#)
    });
}

#[test]
fn a_script_can_wait_until_the_mesh_is_complete() {
    let mut mesh = Mesh::start(["a"]);
    let early = mesh.node("a").try_starling(&["members", "--wait", "2", "--timeout", "50ms"]).unwrap_err();
    assert!(early.contains("2 nodes not alive within 50ms: node a sees 1"), "{early}");
    mesh.add("b", Some(mesh.node("a").quic()));
    let seen = mesh.node("a").starling(&["members", "--wait", "2", "--timeout", "1m"]);
    assert!(seen.contains("2 nodes, 2 alive"), "{seen}");
}

#[test]
fn config_written_at_one_node_is_read_at_another_and_outlives_the_whole_mesh() {
    let mut mesh = Mesh::start(["a", "b", "c"]);
    mesh.node("c").starling(&["config", "put", "limits.json", "--value", "{\"rate\": 7}"]);
    let reads = |mesh: &Mesh, node: &str| mesh.node(node).try_starling(&["config", "get", "limits.json"]);
    for node in ["a", "b", "c"] {
        eventually(&format!("{node} reads it"), || reads(&mesh, node).as_deref() == Ok("{\"rate\": 7}"));
    }
    for node in ["a", "b", "c"] {
        mesh.node_mut(node).kill();
    }
    for node in ["a", "b", "c"] {
        mesh.restart(node);
    }
    for node in ["a", "b", "c"] {
        eventually(&format!("{node} still reads it"), || reads(&mesh, node).as_deref() == Ok("{\"rate\": 7}"));
    }
    eventually("all nodes hold the same", || mesh.node("b").try_starling(&["status", "--check"]).is_ok());
}

#[test]
fn a_declared_service_comes_and_goes_with_the_settings_file() {
    let mut mesh = Mesh::start(["a", "b"]);
    mesh.settings("b", "[[service]]\nname = \"orders\"\nport = 9\nid = \"declared\"\n");
    mesh.node_mut("b").kill();
    mesh.restart("b");
    eventually("a sees the declared instance", || mesh.node("a").ready_instances("orders") == ["declared"]);
    mesh.settings("b", "");
    mesh.node_mut("b").kill();
    mesh.restart("b");
    eventually("it is gone with its declaration", || {
        mesh.node("a").all_instances("orders").is_empty() && mesh.node("b").all_instances("orders").is_empty()
    });
}

#[test]
fn one_metrics_page_shows_the_heart_the_links_the_sidecar_and_the_api() {
    let mesh = Mesh::start(["a", "b"]);
    let page = mesh.node("a").page("/metrics");
    for name in ["starling_members", "starling_link_peers", "starling_requests_total", "starling_api_connections"] {
        assert!(page.contains(&format!("# TYPE {name} ")), "{name} is missing:\n{page}");
    }
    let families: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let distinct: std::collections::BTreeSet<&str> = families.iter().copied().collect();
    assert_eq!(families.len(), distinct.len(), "a family must be declared once:\n{page}");
}
