//! Rules of access through the real binary: who may call what is decided at the callee's node by the certificate of the
//! caller's, and changes while both run.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use support::{App, Mesh, NodeProcess, Said, eventually};

fn call(node: &NodeProcess, method: &str, path: &str, fields: &str) -> Said {
    node.line().tell(method, "orders", path, fields, "").unwrap()
}

/// `orders` is at `b`; the shop's host is `a`, that of nobody in particular is `c`.
fn shop_calls_orders(orders: &App, shop: &App) -> Mesh {
    let mesh = Mesh::start(["a", "b", "c"]);
    mesh.node("b").starling(&["register", "orders", "--port", &orders.port()]);
    mesh.node("a").starling(&["register", "shop", "--port", &shop.port()]);
    for node in ["a", "b", "c"] {
        let knows = |service: &&str| mesh.node(node).ready_instances(service).len() == 1;
        eventually("all know both services", || ["orders", "shop"].iter().all(knows));
    }
    mesh
}

/// Puts a document into force; it is written at the caller's node, and decided by at the other.
fn put(mesh: &Mesh, group: &str, name: &str, text: &str) {
    mesh.node("a").starling(&["config", "put", name, "--group", group, "--value", text, "--format", "toml"]);
}

#[test]
fn callers_are_allowed_and_refused_by_service_method_and_path_and_told_why() {
    let (orders, shop) = (App::start("orders"), App::start("shop"));
    let mesh = shop_calls_orders(&orders, &shop);
    let (a, c) = (mesh.node("a"), mesh.node("c"));
    for node in [a, c] {
        assert_eq!(call(node, "POST", "/v2", "").status, 200, "without rules everybody may");
    }
    put(&mesh, "access", "orders", "[[allow]]\ncallers = [\"shop\"]\nmethods = [\"GET\"]\npaths = [\"/v1/*\"]\n");
    eventually("the rules are in force at the callee's", || call(c, "GET", "/v1/x", "").status == 403);
    assert_eq!(call(a, "GET", "/v1/x", "").body, "orders");
    // What is said of oneself counts for nothing: the node is known by its certificate.
    let forged = "x-starling-caller-service: default/shop\r\nx-starling-caller-node: a\r\n";
    for (said, who) in [
        (call(a, "POST", "/v1/x", ""), "default/shop"),
        (call(a, "GET", "/v2", ""), "default/shop"),
        (call(a, "GET", "/v1/../v2", ""), "default/shop"),
        (call(c, "GET", "/v1/x", ""), "node c"),
        (call(c, "GET", "/v1/x", forged), "node c"),
    ] {
        assert_eq!(said.status, 403, "{said:?}");
        let reason = said.reason();
        assert!(reason.starts_with("forbidden: no allow rule of access/orders fits"), "{reason}");
        assert!(reason.contains(who), "it says who was refused: {reason}");
    }
    let denied = mesh.node("b").metric("starling_access_denied_total{service=\"default/orders\"}");
    assert!(denied >= 6.0, "counted where it is decided: {denied}");

    put(&mesh, "access", "orders", "[[deny]]\nname = \"closed\"\ncallers = [\"node:a\"]\n");
    eventually("the caller's node is refused by its name", || call(a, "GET", "/v1/x", "").status == 403);
    let reason = call(a, "GET", "/v1/x", "").reason().to_owned();
    assert!(
        reason.contains("rule \"closed\" of access/orders denies it to service default/shop at node a"),
        "{reason}"
    );
    eventually("and nobody else is", || call(c, "POST", "/v2", "").status == 200);

    a.starling(&["config", "rm", "orders", "--group", "access"]);
    eventually("without rules everybody may again", || call(a, "POST", "/v2", "").status == 200);
}

#[test]
fn rules_that_change_while_calls_run_refuse_some_and_break_none() {
    let (orders, shop) = (App::start("orders"), App::start("shop"));
    let mesh = shop_calls_orders(&orders, &shop);
    let mut line = mesh.node("a").line();
    for allowed in [false, true, false, true] {
        let stance = if allowed { "allow" } else { "deny" };
        put(&mesh, "access", "orders", &format!("default = \"{stance}\"\n"));
        eventually("the change has come", || {
            let said = line.get("orders");
            assert!(matches!(said.status, 200 | 403), "by a kept connection: {said:?}");
            (said.status == 200) == allowed
        });
    }
}
