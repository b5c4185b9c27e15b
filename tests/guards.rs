//! Policies through the real binary: written at one node, in force at all, before applications that misbehave; and the
//! examples of the reference, which are good policies.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::path::Path;

use starling_core::policy::{Document, Sections};
use support::{App, Backend, Mesh, Mood, eventually};

/// Writes a document beside the nodes and puts it into force through this node.
fn set(mesh: &Mesh, at: &str, service: &str, text: &str) -> Result<String, String> {
    std::fs::write(mesh.dir().join("policy.toml"), text).unwrap();
    mesh.node(at).try_starling(&["policy", "set", service, "policy.toml"])
}

#[test]
fn a_policy_set_at_one_node_guards_callers_at_another_and_is_seen_from_any() {
    let mesh = Mesh::start(["a", "b"]);
    let app = App::start("well");
    mesh.node("b").starling(&["register", "orders", "--id", "1", "--port", &app.port()]);
    eventually("a reaches b", || mesh.node("a").call("orders") == Ok("well".to_owned()));
    set(&mesh, "b", "orders", "[[limit]]\nname = \"few\"\ncount = 3\nper_ms = 3600000\n").unwrap();

    let a = mesh.node("a");
    eventually("a refuses", || a.line().ask("GET", "orders").is_ok_and(|answer| answer.contains(" 429 ")));
    let refused = a.line().ask("GET", "orders").unwrap();
    for told in ["retry-after: ", "x-starling-reason: rate: over the rate (rule few)", "\"rule\":\"few\""] {
        assert!(refused.contains(told), "{told}: {refused}");
    }
    let seen = mesh.node("b").starling(&["guards", "orders", "--all"]);
    assert!(seen.contains("node a") && seen.contains("over the rate") && seen.contains("name=few"), "{seen}");
    let here = mesh.node("b").starling(&["guards", "orders"]);
    assert!(!here.contains("over the rate"), "nobody was refused at b: {here}");
    let counted = "starling_guard_refusals_total{service=\"default/orders\",guard=\"rate\",reason=\"over the rate\",rule=\"few\"}";
    assert!(a.page("/metrics").contains(counted));

    mesh.node("a").starling(&["policy", "rm", "orders"]);
    eventually("a calls again", || a.call("orders") == Ok("well".to_owned()));
}

#[test]
fn a_bad_policy_is_refused_by_line_and_what_is_in_force_says_where_it_came_from() {
    let mesh = Mesh::start(["a"]);
    set(&mesh, "a", "*", "[timeouts]\nconnect_ms = 70\n").unwrap();
    set(&mesh, "a", "orders", "# ours\n[timeouts]\nrequest_ms = 800\n").unwrap();
    let error = set(&mesh, "a", "orders", "[timeouts]\nrequest_ms = 0\n").unwrap_err();
    assert!(error.contains("line 2: timeouts.request_ms: is 0; allowed are 1 to 3600000"), "{error}");
    let raw =
        mesh.node("a").try_starling(&["config", "put", "orders", "policy.toml", "--group", "policy"]).unwrap_err();
    assert!(raw.contains("line 2: timeouts.request_ms"), "the node checks too: {raw}");

    let shown = mesh.node("a").starling(&["policy", "show", "orders", "--effective"]);
    let line = |field: &str| shown.lines().find(|line| line.contains(field)).unwrap_or_default().to_owned();
    assert!(line("timeouts.request_ms").contains("800") && line("timeouts.request_ms").contains("line 3"), "{shown}");
    assert!(line("timeouts.connect_ms").contains("policy/*, line 2"), "{shown}");
    assert!(line("breaker.open_ms").contains("default"), "{shown}");
    assert!(mesh.node("a").starling(&["policy", "list"]).contains("orders"));
}

#[test]
fn which_documents_are_in_force_is_said_and_why_one_is_not() {
    let mesh = Mesh::start(["a"]);
    let show = || mesh.node("a").starling(&["policy", "show", "orders", "--effective"]);
    set(&mesh, "a", "*", "[breaker]\nmax_open_ms = 5500\n").unwrap();
    let shown = show();
    assert!(shown.contains("default/policy/*: in force\ndefault/policy/orders: there is none\n"), "{shown}");
    set(&mesh, "a", "orders", "[breaker]\nopen_ms = 6000\n").unwrap();
    let shown = show();
    assert!(shown.contains("default/policy/*: not in force here\n  "), "{shown}");
    assert!(shown.contains("breaker.max_open_ms: is 5500; allowed are 6000 to 3600000"), "{shown}");
    assert!(shown.contains("default/policy/orders: in force\n"), "{shown}");
    let max = shown.lines().find(|line| line.contains("breaker.max_open_ms ")).unwrap_or_default();
    assert!(
        max.contains("60000") && max.contains("default"),
        "what is not in force is not shown as if it were: {shown}"
    );
}

#[test]
fn routes_for_all_services_are_refused_wherever_they_are_written() {
    let mesh = Mesh::start(["a"]);
    let route = "[[route]]\npath = \"/a\"\ntimeouts.request_ms = 5\n";
    let error = set(&mesh, "a", "*", route).unwrap_err();
    assert!(error.contains("line 1: route: cannot be set for all services"), "{error}");
    let checked = |more: &[&str]| mesh.node("a").try_starling(&[&["policy", "check", "policy.toml"], more].concat());
    assert!(checked(&[]).is_ok() && checked(&["--for-all"]).is_err());
    let raw = mesh.node("a").try_starling(&["config", "put", "*", "policy.toml", "--group", "policy"]).unwrap_err();
    assert!(raw.contains("cannot be set for all services"), "the node checks too: {raw}");
}

#[test]
fn one_key_degrades_a_service_at_every_node_and_gives_it_back() {
    let mesh = Mesh::start(["a", "b"]);
    let app = App::start("well");
    mesh.node("a").starling(&["register", "orders", "--id", "1", "--port", &app.port()]);
    eventually("b reaches a", || mesh.node("b").call("orders") == Ok("well".to_owned()));
    set(&mesh, "a", "orders", "# ours\n[fallback]\nbody = \"later\"\n").unwrap();
    mesh.node("a").starling(&["policy", "drive", "orders", "force-open", "--for", "10m"]);
    for node in ["a", "b"] {
        eventually("the fallback", || mesh.node(node).call("orders") == Ok("later".to_owned()));
    }
    mesh.node("b").starling(&["policy", "drive", "orders", "auto"]);
    for node in ["a", "b"] {
        eventually("it is back", || mesh.node(node).call("orders") == Ok("well".to_owned()));
    }
    assert!(mesh.node("a").starling(&["policy", "show", "orders"]).starts_with("# ours\n"), "comments stay");
}

#[test]
fn a_backend_that_says_429_or_hangs_up_opens_the_circuit_and_is_left_alone() {
    let mesh = Mesh::start(["a"]);
    for (service, mood) in [("busy", Mood::Answers(429)), ("rude", Mood::Resets)] {
        let rude = Backend::start(service, mood);
        mesh.node("a").starling(&["register", service, "--id", "1", "--port", &rude.port()]);
        let policy = "[retry]\nmax_retries = 0\n[failure]\nstatuses = [\"5xx\", \"429\"]\n\
            [circuit]\nconsecutive_failures = 2\nopen_ms = 600000\nmax_open_ms = 600000\n";
        set(&mesh, "a", service, policy).unwrap();
        let mut line = mesh.node("a").line();
        for _ in 0..2 {
            let answer = line.ask("POST", service).unwrap();
            assert!(answer.contains(" 429 ") || answer.contains(" 502 "), "{answer}");
        }
        let answer = line.ask("POST", service).unwrap();
        assert!(answer.contains(" 503 ") && answer.contains("breaker: open (rule circuit)"), "{answer}");
        assert_eq!(rude.asked(), 2, "{service}");
    }
}

/// The documents of the reference.
fn examples() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/policies");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap())).collect()
}

#[test]
fn the_examples_are_good_policies_with_a_section_of_each_kind() {
    let mut text = String::new();
    for (file, example) in examples() {
        let document = Document::parse(&example).unwrap_or_else(|problems| panic!("{file}: {problems:?}"));
        assert_eq!(document.warnings(), [], "{file}");
        text.push_str(&example);
    }
    for section in Sections::NAMES {
        let is_shown = [format!("[{section}"), format!("\n{section}."), format!(".{section}]")];
        assert!(is_shown.iter().any(|shown| text.contains(shown.as_str())), "no example has [{section}]");
    }
}

#[test]
fn the_reference_names_every_section_and_every_example() {
    let reference = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh/POLICIES.md")).unwrap();
    for section in Sections::NAMES {
        assert!(reference.contains(&format!("[{section}]")), "mesh/POLICIES.md does not explain [{section}]");
    }
    for (file, _) in examples() {
        let name = Path::new(&file).file_name().unwrap().to_string_lossy().into_owned();
        assert!(reference.contains(&format!("policies/{name}")), "mesh/POLICIES.md does not show {name}");
    }
}
