//! A node's binary is put in the place of the one that runs, and nobody who connects notices but by waiting.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use support::{App, Mesh, eventually};

#[test]
fn while_one_program_takes_over_from_another_no_connection_is_refused_and_no_request_fails() {
    let mesh = Mesh::start(["a", "b"]);
    let (on_a, on_b) = (App::start("a"), App::start("b"));
    mesh.node("a").starling(&["register", "near", "--id", "1", "--port", &on_a.port()]);
    mesh.node("b").starling(&["register", "far", "--id", "1", "--port", &on_b.port()]);
    eventually("a knows both", || mesh.node("a").call("near").is_ok() && mesh.node("a").call("far").is_ok());
    let (enough, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let answer = |more: usize| {
        let from = answered.load(SeqCst);
        eventually("calls are answered", || answered.load(SeqCst) >= from + more);
    };
    thread::scope(|scope| {
        let (a, enough, answered) = (mesh.node("a"), &enough, &answered);
        let _end = End(enough);
        for service in ["near", "far"] {
            scope.spawn(move || {
                while !enough.load(SeqCst) {
                    let answer = a.call(service);
                    assert!(answer.is_ok(), "{service}, over a connection of its own: {answer:?}");
                    answered.fetch_add(1, SeqCst);
                }
            });
            scope.spawn(move || {
                let mut line = a.line();
                while !enough.load(SeqCst) {
                    let answer = line.ask("POST", service).unwrap();
                    assert!(answer.starts_with("HTTP/1.1 200 "), "{service}, over a kept connection: {answer}");
                    answered.fetch_add(1, SeqCst);
                    if answer.contains("connection: close") {
                        line = a.line();
                    }
                }
            });
        }
        for _ in 0..2 {
            answer(100);
            a.hand_over();
            answer(100);
        }
    });
    assert_eq!(mesh.node("a").lines("handing over").len(), 2);
    eventually("b calls what a has", || mesh.node("b").call("near") == Ok("a".to_owned()));
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn a_program_that_would_not_start_does_not_take_over() {
    let mesh = Mesh::start(["a"]);
    let app = App::start("a");
    mesh.node("a").starling(&["register", "near", "--id", "1", "--port", &app.port()]);
    mesh.settings("a", "[proxy]\nno_such_setting = 1\n");
    mesh.node("a").signal("-USR2");
    eventually("it says why", || !mesh.node("a").lines("no_such_setting").is_empty());
    assert_eq!(mesh.node("a").call("near"), Ok("a".to_owned()));
}
