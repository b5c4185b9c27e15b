//! A node that is asked to stop lets what runs through it finish, whichever side of a request it is on, and then ends.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use support::{App, Line, Mesh, NodeProcess, eventually};

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

/// Applications that call without a pause, each over a connection it keeps or over one each time.
struct Callers {
    enough: AtomicBool,
    answered: AtomicUsize,
}

impl Callers {
    /// Calls until it is enough, or until the sidecar says that it closes the connection; anything but a good answer ends
    /// the test.
    fn keep_calling(&self, mut line: Line, method: &str) {
        while !self.enough.load(SeqCst) {
            let answer =
                line.ask(method, "orders").unwrap_or_else(|error| panic!("{method} over a kept connection: {error}"));
            assert!(answer.starts_with("HTTP/1.1 200 "), "{method}: {answer}");
            self.answered.fetch_add(1, SeqCst);
            if answer.contains("connection: close") {
                return;
            }
        }
    }

    /// Calls over a new connection each time.
    fn call_anew(&self, node: &NodeProcess) {
        while !self.enough.load(SeqCst) {
            let answer = node.call("orders");
            assert!(answer.is_ok(), "over a connection of its own: {answer:?}");
            self.answered.fetch_add(1, SeqCst);
        }
    }

    /// They stop when this is dropped: also when a test fails, which waits for them.
    fn end(&self) -> End<'_> {
        End(&self.enough)
    }

    /// Waits until so many more have been answered.
    fn answer(&self, more: usize) {
        let from = self.answered.load(SeqCst);
        eventually("calls are answered", || self.answered.load(SeqCst) >= from + more);
    }
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn no_request_is_lost_while_the_nodes_of_callee_and_caller_stop_under_load() {
    let mut mesh = Mesh::start(["a", "b", "c"]);
    let (on_b, on_c) = (App::start("b"), App::start("c"));
    mesh.node("b").starling(&["register", "orders", "--id", "on-b", "--port", &on_b.port()]);
    mesh.node("c").starling(&["register", "orders", "--id", "on-c", "--port", &on_c.port()]);
    eventually("a sees both", || mesh.node("a").ready_instances("orders") == ["on-b", "on-c"]);
    let callers = Callers { enough: AtomicBool::new(false), answered: AtomicUsize::new(0) };
    thread::scope(|scope| {
        let (a, b, callers, _end) = (mesh.node("a"), mesh.node("b"), &callers, callers.end());
        // A POST may not be repeated: it is answered only if it was never sent to where it is not answered.
        let kept =
            ["GET", "POST", "GET", "POST"].map(|method| scope.spawn(move || callers.keep_calling(a.line(), method)));
        let anew = [(), ()].map(|()| scope.spawn(move || callers.call_anew(a)));
        callers.answer(200);
        b.ask_to_stop();
        eventually("b has stopped", || b.log().contains("stopped"));
        callers.answer(200);
        callers.enough.store(true, SeqCst);
        anew.into_iter().chain(kept).for_each(|call| call.join().unwrap());
        // Who connects while nobody listens any more is refused, and knows it: here they have connected before.
        callers.enough.store(false, SeqCst);
        let kept =
            ["GET", "POST", "GET", "POST"].map(|method| scope.spawn(move || callers.keep_calling(a.line(), method)));
        callers.answer(200);
        a.ask_to_stop();
        kept.into_iter().for_each(|call| call.join().unwrap());
    });
    assert_eq!((mesh.node_mut("a").stopped(), mesh.node_mut("b").stopped()), (Some(0), Some(0)));
}

#[test]
fn a_node_that_is_killed_or_restarted_under_load_costs_no_request_that_may_be_repeated() {
    let mut mesh = Mesh::start(["a", "b", "c"]);
    let (on_b, on_c) = (App::start("b"), App::start("c"));
    mesh.node("b").starling(&["register", "orders", "--id", "on-b", "--port", &on_b.port()]);
    mesh.node("c").starling(&["register", "orders", "--id", "on-c", "--port", &on_c.port()]);
    eventually("a sees both", || mesh.node("a").ready_instances("orders") == ["on-b", "on-c"]);
    for killed in [true, false] {
        let callers = Callers { enough: AtomicBool::new(false), answered: AtomicUsize::new(0) };
        let (lines, callers) = ([(), (), (), ()].map(|()| mesh.node("a").line()), &callers);
        thread::scope(|scope| {
            let _end = callers.end();
            for line in lines {
                scope.spawn(move || callers.keep_calling(line, "GET"));
            }
            callers.answer(200);
            let b = mesh.node_mut("b");
            if killed {
                b.kill()
            } else {
                assert_eq!(b.terminate(), Some(0))
            }
            callers.answer(200);
            mesh.restart("b");
            eventually("a sees both again", || mesh.node("a").ready_instances("orders") == ["on-b", "on-c"]);
            callers.answer(200);
        });
        eventually("b's instance is called again", || mesh.node("a").call("orders") == Ok("b".to_owned()));
    }
}
