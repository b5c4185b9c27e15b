//! A node that is asked to stop lets what runs through it finish, whichever side of a request it is on, and then ends.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::thread;

use support::{App, Mesh, eventually};

/// How many requests are under way when the node is asked to stop.
const REQUESTS: usize = 20;

#[test]
fn the_node_of_the_application_answers_what_it_has_taken_and_new_requests_go_elsewhere() {
    let mut mesh = Mesh::start(["a", "b", "c"]);
    let (on_b, on_c) = (App::start("b"), App::start("c"));
    mesh.node("b").starling(&["register", "orders", "--id", "on-b", "--port", &on_b.port()]);
    eventually("a reaches b", || mesh.node("a").call("orders") == Ok("b".to_owned()));
    on_b.answers(false);
    thread::scope(|scope| {
        let a = mesh.node("a");
        let calls: Vec<_> = (0..REQUESTS).map(|_| scope.spawn(|| a.call("orders"))).collect();
        eventually("all requests are under way", || on_b.waiting() == REQUESTS);
        mesh.node("c").starling(&["register", "orders", "--id", "on-c", "--port", &on_c.port()]);
        eventually("a sees both", || a.ready_instances("orders") == ["on-b", "on-c"]);

        mesh.node("b").ask_to_stop();
        eventually("b's instance is gone", || a.ready_instances("orders") == ["on-c"]);
        for _ in 0..REQUESTS {
            assert_eq!(a.call("orders"), Ok("c".to_owned()));
        }
        on_b.answers(true);
        for call in calls {
            assert_eq!(call.join().unwrap(), Ok("b".to_owned()), "what b had taken it answers");
        }
    });
    assert_eq!(mesh.node_mut("b").stopped(), Some(0));
    assert!(!mesh.node("b").log().contains("cut off"), "it ended by itself:\n{}", mesh.node("b").log());
}

#[test]
fn the_node_of_the_caller_finishes_its_calls_and_idle_connections_do_not_hold_it_up() {
    let mut mesh = Mesh::start(["a", "b"]);
    let on_b = App::start("b");
    mesh.node("b").starling(&["register", "orders", "--id", "on-b", "--port", &on_b.port()]);
    eventually("a reaches b", || mesh.node("a").call("orders") == Ok("b".to_owned()));
    let _idle = mesh.node("a").idle_connection("orders");
    let _silent = mesh.node("a").connection().unwrap();
    on_b.answers(false);
    thread::scope(|scope| {
        let a = mesh.node("a");
        let calls: Vec<_> = (0..REQUESTS).map(|_| scope.spawn(|| a.call("orders"))).collect();
        eventually("all requests are under way", || on_b.waiting() == REQUESTS);
        a.ask_to_stop();
        eventually("a takes nothing new", || a.connection().is_err());
        on_b.answers(true);
        for call in calls {
            assert_eq!(call.join().unwrap(), Ok("b".to_owned()), "what a had taken is answered");
        }
    });
    assert_eq!(mesh.node_mut("a").stopped(), Some(0));
    assert!(!mesh.node("a").log().contains("cut off"), "it ended by itself:\n{}", mesh.node("a").log());
}
