//! A node's binary is put in the place of the one that runs, and nobody who connects notices but by waiting.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use support::{App, Certificates, Line, Mesh, NodeProcess, Said, eventually};

/// A kind of traffic: asks once more, and says what went wrong.
type Ask<'a> = Box<dyn FnMut() -> Result<(), String> + Send + 'a>;

#[test]
fn while_one_program_takes_over_from_another_no_connection_is_refused_and_no_request_fails() {
    let mesh = Mesh::start(["a", "b"]);
    let (on_a, on_b) = (App::start("a"), App::start("b"));
    mesh.node("a").starling(&["register", "near", "--id", "1", "--port", &on_a.port()]);
    mesh.node("b").starling(&["register", "far", "--id", "1", "--port", &on_b.port()]);
    eventually("a knows both", || mesh.node("a").call("near").is_ok() && mesh.node("a").call("far").is_ok());
    let a = mesh.node("a");
    hand_over_twice(a, calls(a, ["near", "far"]));
    eventually("b calls what a has", || mesh.node("b").call("near") == Ok("a".to_owned()));
}

#[test]
fn ports_that_lead_to_services_and_the_one_for_redirected_connections_are_handed_over() {
    let mut mesh = Mesh::empty(Certificates::ThrownAway);
    mesh.settings(
        "a",
        "[proxy]\nredirect_listen = \"127.0.0.1:0\"\n\
         [[upstream]]\nservice = \"raw\"\nlisten = 0\n\
         [[upstream]]\nservice = \"near\"\nlisten = 0\n",
    );
    let a = mesh.add("a", None);
    let (app, raw) = (App::start("near"), App::start("raw"));
    a.starling(&["register", "near", "--port", &app.port()]);
    a.starling(&["register", "raw", "--port", &raw.port(), "--protocol", "tcp"]);
    let mut traffic: Vec<Ask> = Vec::new();
    for service in ["near", "raw"] {
        eventually("it is known", || a.call_by_port(service).is_ok());
        traffic.push(Box::new(move || {
            match a.call_by_port(service).map_err(|error| format!("{service}: {error}"))? {
                answer if answer == service => Ok(()),
                other => Err(format!("the port that leads to {service} leads to {other}")),
            }
        }));
    }
    // Nobody has redirected these, so they are cut off: sometimes before the kernel has told that they are connected.
    traffic.push(Box::new(|| match TcpStream::connect(a.redirect()) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(format!("redirected: {error}")),
        _ => Ok(()),
    }));
    hand_over_twice(a, traffic);
}

#[test]
fn the_api_answers_all_that_it_is_asked_by_the_one_program_or_the_other() {
    let mesh = Mesh::start(["a", "b"]);
    let a = mesh.node("a");
    let mut traffic: Vec<Ask> = Vec::new();
    for (method, path) in [("GET", "/v1/members"), ("PUT", "/v1/config/default/app/traffic")] {
        traffic.push(Box::new(move || asked(&mut a.api_line(), method, path, "close").map(drop)));
        let mut line = a.api_line();
        traffic.push(Box::new(move || {
            let said = asked(&mut line, method, path, "keep-alive")?;
            if said.field("connection") == "close" {
                line = a.api_line();
            }
            Ok(())
        }));
    }
    // Waits for each of the writes.
    let mut revision = "0".to_owned();
    traffic.push(Box::new(move || {
        let path = format!("/v1/config?newer_than={revision}&wait=5m");
        revision = asked(&mut a.api_line(), "GET", &path, "close")?.field("x-starling-revision").to_owned();
        Ok(())
    }));
    hand_over_twice(a, traffic);
}

/// Calls each service over connections of their own, and over one that is kept.
fn calls<'a>(node: &'a NodeProcess, services: [&'a str; 2]) -> Vec<Ask<'a>> {
    let mut traffic: Vec<Ask> = Vec::new();
    for service in services {
        traffic.push(Box::new(move || node.call(service).map(drop)));
        let mut line = node.line();
        traffic.push(Box::new(move || {
            let said = line.tell("POST", service, "/", "", "")?;
            if said.field("connection") == "close" {
                line = node.line();
            }
            if said.status == 200 { Ok(()) } else { Err(format!("{service}, over a kept connection: {said:?}")) }
        }));
    }
    traffic
}

/// A request to an API that must be carried out.
fn asked(line: &mut Line, method: &str, path: &str, connection: &str) -> Result<Said, String> {
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: {connection}\r\ncontent-length: 0\r\n\r\n");
    line.send(head.as_bytes()).map_err(|error| error.to_string())?;
    let said = line.hear()?;
    if said.status == 200 { Ok(said) } else { Err(format!("{method} {path}: {said:?}")) }
}

/// Puts the binary in its own place, twice, while each kind of traffic goes on without a pause.
fn hand_over_twice(node: &NodeProcess, traffic: Vec<Ask<'_>>) {
    let (enough, answered) = (AtomicBool::new(false), Vec::from_iter(traffic.iter().map(|_| AtomicUsize::new(0))));
    let answers = |more: usize| {
        let from: Vec<usize> = answered.iter().map(|count| count.load(SeqCst)).collect();
        eventually("all are answered", || {
            enough.load(SeqCst) || answered.iter().zip(&from).all(|(count, from)| count.load(SeqCst) >= from + more)
        });
    };
    thread::scope(|scope| {
        let _end = End(&enough);
        for (mut ask, count) in traffic.into_iter().zip(&answered) {
            let enough = &enough;
            scope.spawn(move || {
                let _end = End(enough);
                while !enough.load(SeqCst) {
                    ask().unwrap();
                    count.fetch_add(1, SeqCst);
                }
            });
        }
        for _ in 0..2 {
            answers(20);
            node.hand_over();
            answers(20);
        }
    });
    assert_eq!(node.lines("handing over").len(), 2);
}

/// Ends all traffic when the test ends, and when any of it has failed.
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
