//! What is asked twice and done once, through the real binary, before an application that counts.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use support::{Mesh, NodeProcess, eventually};

/// An application that keeps what it was sent, as a small server of some script would: one request a connection.
struct Ledger {
    port: String,
    taken: Arc<Mutex<Vec<String>>>,
}

impl Ledger {
    fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn start_on(listener: TcpListener) -> Self {
        let port = listener.local_addr().unwrap().port().to_string();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let book = taken.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                take(stream, &book);
            }
        });
        Self { port, taken }
    }

    /// The requests that came, each its head and body.
    fn taken(&self) -> Vec<String> {
        self.taken.lock().unwrap().clone()
    }
}

fn take(mut stream: TcpStream, book: &Mutex<Vec<String>>) {
    let (mut reader, mut request, mut length) = (BufReader::new(stream.try_clone().unwrap()), String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return; // a probe
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        request.push_str(&line);
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    request.push_str(&String::from_utf8_lossy(&body));
    let n = {
        let mut book = book.lock().unwrap();
        book.push(request);
        book.len()
    };
    let text = format!("entry {n}");
    let head = format!("HTTP/1.1 201 Created\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
    let _ = stream.write_all(format!("{head}{text}").as_bytes());
}

/// A POST by a connection of its own: all that is answered.
fn post(node: &NodeProcess, service: &str, fields: &str, body: &str) -> String {
    let mut stream = node.connection().unwrap();
    let length = body.len();
    let request = format!(
        "POST /entries HTTP/1.1\r\nhost: {service}.mesh\r\nconnection: close\r\n{fields}content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn set(mesh: &Mesh, at: &str, service: &str, text: &str) {
    std::fs::write(mesh.dir().join("policy.toml"), text).unwrap();
    mesh.node(at).starling(&["policy", "set", service, "policy.toml"]);
}

#[test]
fn a_post_sent_twice_with_a_key_through_two_nodes_is_entered_once() {
    let mesh = Mesh::start(["a", "b"]);
    let (one, other) = (Ledger::start(), Ledger::start());
    mesh.node("a").starling(&["register", "ledger", "--id", "1", "--port", &one.port]);
    mesh.node("b").starling(&["register", "ledger", "--id", "2", "--port", &other.port]);
    set(&mesh, "a", "ledger", "[idempotency]\nsteer = false\nask_ms = 10000\n[balance]\nalgorithm = \"round_robin\"\n");
    for node in ["a", "b"] {
        eventually("both are there", || mesh.node(node).ready_instances("ledger").len() == 2);
        let shown = || mesh.node(node).starling(&["policy", "show", "ledger", "--effective"]);
        eventually("the policy is there", || shown().contains("idempotency.window_ms"));
    }
    for n in 0..4 {
        let key = format!("idempotency-key: key-{n}\r\n");
        let first = post(mesh.node("a"), "ledger", &key, "5 apples");
        assert!(first.starts_with("HTTP/1.1 201 ") && !first.contains("idempotent-replayed"), "{first}");
        let text = first.rsplit("\r\n\r\n").next().unwrap();
        for node in ["a", "b", "a"] {
            let again = post(mesh.node(node), "ledger", &key, "5 apples");
            assert!(again.starts_with("HTTP/1.1 201 ") && again.contains("idempotent-replayed: true"), "{again}");
            assert_eq!(again.rsplit("\r\n\r\n").next().unwrap(), text);
        }
        assert!(post(mesh.node("b"), "ledger", &key, "6 apples").starts_with("HTTP/1.1 422 "));
    }
    assert_eq!(one.taken().len() + other.taken().len(), 4);
    let seen = mesh.node("a").starling(&["guards", "ledger", "--all"]);
    assert!(seen.contains("idempotency") && seen.contains("fetched"), "{seen}");
}
