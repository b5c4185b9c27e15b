//! Documents tried before they are in force, through the real binary.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use support::{App, Mesh, eventually};

#[test]
fn what_a_document_would_refuse_is_told_of_the_last_minute_from_any_node() {
    let mesh = Mesh::start(["a", "b"]);
    let app = App::start("well");
    mesh.node("b").starling(&["register", "orders", "--id", "1", "--port", &app.port()]);
    eventually("a reaches b", || mesh.node("a").call("orders") == Ok("well".to_owned()));
    for _ in 0..4 {
        mesh.node("a").call("orders").unwrap();
    }
    let few = "[[limit]]\nname = \"few\"\ncount = 2\nper_ms = 3600000\n[shed]\n[bulkhead]\nmax_concurrent = 5\n";
    std::fs::write(mesh.dir().join("few.toml"), few).unwrap();

    let tried = |at: &str, more: &[&str]| {
        mesh.node(at).try_starling(&[&["policy", "try", "orders", "few.toml"], more].concat()).unwrap()
    };
    let seen = tried("a", &[]);
    assert!(seen.contains("it would have refused") && seen.contains("over the rate (rule few)"), "{seen}");
    assert!(seen.contains("left out, since it cannot be told in retrospect: shed"), "{seen}");
    assert!(tried("b", &[]).contains("nobody has called it here"), "b has only answered");
    assert!(tried("b", &["--all"]).contains("over the rate (rule few)"), "a tells b");
    assert!(mesh.node("a").call("orders") == Ok("well".to_owned()), "nothing is in force");

    // A document larger than most questions crosses as well.
    let long = format!("# {}\n{few}", "a".repeat(60_000));
    std::fs::write(mesh.dir().join("few.toml"), long).unwrap();
    assert!(tried("b", &["--all"]).contains("over the rate (rule few)"));
    std::fs::write(mesh.dir().join("few.toml"), "[timeouts]\nrequest_ms = 0\n").unwrap();
    let bad = mesh.node("a").try_starling(&["policy", "try", "orders", "few.toml"]).unwrap_err();
    assert!(bad.contains("few.toml, line 2: timeouts.request_ms: is 0"), "{bad}");
}
