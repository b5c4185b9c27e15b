//! Limits, lists of callers and the guard of the host, through the real binary: who is refused, what they are told, and that no
//! application hears of it.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::io::Read;
use std::net::TcpStream;

use support::{Backend, Certificates, Mesh, Mood, eventually};

/// Two nodes of these settings; `shop` is at `b`, and its policy is in force at `a`.
fn shop(settings: [&str; 2], backend: &Backend, policy: &str) -> Mesh {
    let mut mesh = Mesh::empty(Certificates::ThrownAway);
    let mut seed = None;
    for (node, settings) in ["a", "b"].into_iter().zip(settings) {
        mesh.settings(node, settings);
        seed = Some(mesh.add(node, seed).quic());
    }
    mesh.all_know_each_other();
    mesh.node("b").starling(&["register", "shop", "--id", "1", "--port", &backend.port()]);
    std::fs::write(mesh.dir().join("shop.toml"), policy).unwrap();
    mesh.node("b").starling(&["policy", "set", "shop", "shop.toml"]);
    eventually("a has the instance and the policy", || {
        mesh.node("a").ready_instances("shop") == ["1"]
            && mesh.node("a").try_starling(&["policy", "show", "shop"]).as_deref() == Ok(policy)
    });
    mesh
}

#[test]
fn each_user_has_a_limit_of_its_own_and_a_route_one_beside_it() {
    let backend = Backend::start("shop", Mood::Well);
    let policy = "[[limit]]\nname = \"each\"\nby = \"header:x-user\"\ncount = 3\nper_ms = 3600000\n\
        [[route]]\nname = \"export\"\npath_prefix = \"/export\"\n\
        [[route.limit]]\nname = \"exports\"\ncount = 1\nper_ms = 3600000\n";
    let mesh = shop([""; 2], &backend, policy);
    let mut line = mesh.node("a").line();
    let mut ask = |user: &str, path: &str| line.tell("GET", "shop", path, user, "").unwrap();
    let (ann, bob) = ("x-user: ann\r\n", "x-user: bob\r\n");
    assert_eq!(ask(ann, "/export/all").status, 200);
    let refused = ask(bob, "/export/some");
    assert_eq!((refused.status, refused.reason()), (429, "rate: over the rate (rule exports)"));
    assert_eq!([ask(ann, "/").status, ask(ann, "/").status], [200; 2]);
    let refused = ask(ann, "/");
    assert_eq!((refused.status, refused.reason()), (429, "rate: over the rate (rule each)"));
    let seconds: u64 = refused.field("retry-after").parse().unwrap();
    assert!((1..=3_600).contains(&seconds), "{refused:?}");
    assert_eq!([ask(bob, "/").status, ask("", "/").status], [200; 2], "others are not refused for it");
    assert_eq!(backend.asked(), 5, "what is refused reaches no application");
    let shown = mesh.node("b").starling(&["guards", "shop", "--all"]);
    assert!(shown.contains("node a") && shown.contains("exports") && shown.contains("each"), "{shown}");
}

#[test]
fn a_caller_on_the_black_list_is_refused_and_with_a_white_list_all_but_those_on_it() {
    let backend = Backend::start("shop", Mood::Well);
    let mesh = shop([""; 2], &backend, "[callers]\ndeny = [\"old-*\"]\n");
    let a = mesh.node("a");
    let calls_for = |service: &str| a.starling(&["register", service, "--id", "own", "--port", "9"]);
    let told = |reason: &str| eventually(reason, || a.line().get("shop").reason() == reason);
    assert_eq!(a.line().get("shop").status, 200, "whom nobody knows may call");
    calls_for("old-cart");
    told("list: the caller is denied (rule callers)");
    let refused = a.line().get("shop");
    assert_eq!((refused.status, refused.field("retry-after")), (403, ""), "coming back is of no use: {refused:?}");
    let asked = backend.asked();
    assert_eq!(a.line().get("shop").status, 403);
    assert_eq!(backend.asked(), asked);

    std::fs::write(mesh.dir().join("shop.toml"), "[callers]\nallow = [\"cart\"]\n").unwrap();
    mesh.node("b").starling(&["policy", "set", "shop", "shop.toml"]);
    told("list: the caller is not among the allowed (rule callers)");
    a.starling(&["deregister", "old-cart", "own"]);
    calls_for("cart");
    eventually("the one that is allowed may call", || a.line().get("shop").status == 200);
    assert_eq!(mesh.node("b").line().get("shop").status, 403, "shop itself is not on it");
}

#[test]
fn a_host_lets_in_so_many_calls_a_second_of_its_own_applications_and_tells_how_many_it_refused() {
    let backend = Backend::start("shop", Mood::Well);
    let mesh = shop(["[proxy.system]\nmax_per_s = 3\n", ""], &backend, "[retry]\nmax_retries = 0\n");
    let a = mesh.node("a");
    let mut line = a.line();
    eventually("more come in a second than it takes", || {
        line.get("shop").reason() == "system: too many calls a second on this host (rule system)"
    });
    let counted = "starling_guard_refusals_total{service=\"default/shop\",guard=\"system\",\
        reason=\"too many calls a second on this host\",rule=\"system\"}";
    assert!(a.metric(counted) >= 1.0);
    assert_eq!(mesh.node("b").line().get("shop").status, 200, "the other host has no such limit");
    eventually("a second later it takes more", || line.get("shop").status == 200);
}

#[test]
fn who_matters_most_is_spared_what_is_only_a_sign_of_burden() {
    let backend = Backend::start("shop", Mood::Slow(std::time::Duration::from_millis(20)));
    let system = "[proxy.system]\nmax_mean_ms = 1\nspare = \"critical_plus\"\n";
    let mesh = shop([system, ""], &backend, "[retry]\nmax_retries = 0\n");
    let mut line = mesh.node("a").line();
    assert_eq!(line.get("shop").status, 200, "nothing is known yet");
    let refused = line.get("shop");
    assert_eq!((refused.status, refused.reason()), (503, "system: calls take too long on this host (rule system)"));
    let spared = line.tell("GET", "shop", "/", "x-criticality: critical_plus\r\n", "").unwrap();
    assert_eq!(spared.status, 200);
}

#[test]
fn a_connection_of_bytes_takes_a_place_on_the_host_until_it_ends() {
    let backend = Backend::start("shop", Mood::Well);
    let settings = "[proxy.system]\nmax_in_flight = 1\n[[upstream]]\nservice = \"db\"\nlisten = 0\n";
    let mesh = shop([settings, ""], &backend, "[retry]\nmax_retries = 0\n");
    let a = mesh.node("a");
    let db = Backend::start("db", Mood::Holds);
    mesh.node("b").starling(&["register", "db", "--id", "1", "--port", &db.port(), "--protocol", "tcp"]);
    eventually("a knows db", || a.ready_instances("db") == ["1"]);
    let open = TcpStream::connect(a.port_to("db")).unwrap();
    eventually("it has its place", || a.metric("starling_system_in_flight") == 1.0);
    let mut second = TcpStream::connect(a.port_to("db")).unwrap();
    assert!(matches!(second.read(&mut [0]), Err(_) | Ok(0)), "there is no second place");
    assert_eq!(a.line().get("shop").reason(), "system: too many calls in flight on this host (rule system)");
    drop(open);
    eventually("its place is free", || a.line().get("shop").status == 200);
}
