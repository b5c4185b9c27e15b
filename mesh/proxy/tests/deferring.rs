//! Requests that could not be delivered wait on disk and are sent later: once, in order, within bounds.

#![allow(clippy::unwrap_used)] // a helper that cannot help fails its test

mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use support::*;

const POLICY: &str = "[retry]\nmax_retries = 0\n[tolerate]\nmode = \"failback\"\nfailback.first_wait_ms = 10\n";

/// An application that remembers what it was sent: path, body and idempotency key.
async fn memory(status: u16) -> (App, Arc<Mutex<Vec<[String; 3]>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let remembers = seen.clone();
    let app = App::answering(move |request| {
        let seen = remembers.clone();
        async move {
            let path = request.uri().path().to_owned();
            let key = request.headers().get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            seen.lock().unwrap().push([path, body, key.unwrap_or_default()]);
            text(status, "done")
        }
    });
    (app.await, seen)
}

async fn node(flock: &Flock, dir: &Path) -> Bird {
    let dir = dir.to_owned();
    flock.node_with("a", |settings| settings.data_dir = Some(dir)).await
}

/// A service whose only instance is at an address nobody listens on.
async fn nobody(flock: &Flock, policy: &str) {
    let address = nowhere().await;
    flock.register(Place { service: "orders", id: "gone", owner: "a", address });
    flock.policy("orders", policy);
}

/// The instance that is not there gives way to one that is.
fn comes_back(flock: &Flock, app: &App) {
    flock.register(app.at("orders", "back", "a"));
    flock.deregister("orders", "gone");
}

async fn post(node: &Bird, path: &str, body: &[u8]) -> Answer {
    node.send("POST", "orders.mesh", path, "", body).await
}

async fn until(node: &Bird, what: &str, count: u64) {
    eventually(what, || async { (node.guard("orders", "failback")[what] == count).then_some(()) }).await;
}

#[tokio::test]
async fn what_could_not_be_delivered_is_accepted_and_delivered_once_and_in_order_when_somebody_is_back() {
    let (flock, dir) = (Flock::default(), tempfile::tempdir().unwrap());
    let a = node(&flock, dir.path()).await;
    nobody(&flock, POLICY).await;
    let mut names = Vec::new();
    for n in 1..=5 {
        let answer = post(&a, &format!("/{n}"), format!("order {n}").as_bytes()).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        assert!(answer.header("x-starling-reason").unwrap().starts_with("queued: it will be sent later"), "{answer:?}");
        let name = answer.header("x-starling-failback").unwrap().to_owned();
        assert!(name.starts_with("a.") && answer.text().contains(&format!("\"queued\":\"{name}\"")), "{answer:?}");
        names.push(name);
    }
    let own_key = a.send("POST", "orders.mesh", "/6", "Idempotency-Key: mine\r\n", b"order 6").await;
    assert_eq!(own_key.status, 202);
    until(&a, "waiting", 6).await;
    let (app, seen) = memory(200).await;
    comes_back(&flock, &app);
    until(&a, "delivered", 6).await;
    let expected: Vec<[String; 3]> = (1..=6)
        .map(|n| {
            let key = names.get(n - 1).map_or("mine".to_owned(), |name| format!("\"{name}\""));
            [format!("/{n}"), format!("order {n}"), key]
        })
        .collect();
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(a.guard("orders", "failback")["waiting"], 0);
    let metrics = a.metrics();
    for line in ["starling_failback_total{service=\"default/orders\",what=\"queued\"} 6", "what=\"delivered\"} 6"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert_eq!(post(&a, "/7", b"").await.status, 200, "who can be reached is asked at once");
}

#[tokio::test]
async fn what_waits_is_found_again_by_the_next_process() {
    let (flock, dir) = (Flock::default(), tempfile::tempdir().unwrap());
    nobody(&flock, POLICY).await;
    let a = node(&flock, dir.path()).await;
    for n in 1..=3 {
        assert_eq!(post(&a, &format!("/{n}"), b"x").await.status, 202);
    }
    a.proxy.drain(PATIENCE).await;
    let (app, seen) = memory(200).await;
    comes_back(&flock, &app);
    let again = node(&flock, dir.path()).await;
    until(&again, "delivered", 3).await;
    let paths: Vec<String> = seen.lock().unwrap().iter().map(|[path, ..]| path.clone()).collect();
    assert_eq!(paths, ["/1", "/2", "/3"]);
    again.proxy.drain(PATIENCE).await;
    let third = node(&flock, dir.path()).await;
    assert_eq!(post(&third, "/4", b"").await.status, 200);
    assert!(third.guard("orders", "failback").is_null(), "what was delivered does not come back");
}

#[tokio::test]
async fn what_cannot_wait_gets_the_plain_failure_and_why_it_cannot() {
    let (flock, dir) = (Flock::default(), tempfile::tempdir().unwrap());
    let a = node(&flock, dir.path()).await;
    nobody(&flock, &format!("{POLICY}failback.max_entries = 1\nfailback.max_body_bytes = 10\n")).await;
    assert_eq!(post(&a, "/", b"x").await.status, 202);
    let why = |answer: &Answer| (answer.status, answer.header("x-starling-reason").unwrap().to_owned());
    let (status, full) = why(&post(&a, "/", b"x").await);
    assert!(status == 503 && full.contains("cannot wait to be sent later: 1 requests of this service"), "{full}");
    let (status, large) = why(&post(&a, "/", b"eleven byte").await);
    assert!(status == 503 && large.contains("up to 10 bytes"), "{large}");
    let (status, asks) = why(&a.get("orders.mesh", "/").await);
    assert!(status == 503 && !asks.contains("later"), "an answer is what a GET is for: {asks}");
    assert_eq!(a.guard("orders", "failback")["refused"], 1);
    let b = flock.node("b").await;
    let (status, bare) = why(&post(&b, "/", b"x").await);
    assert!(status == 503 && bare.contains("no directory"), "{bare}");
}

#[tokio::test]
async fn an_error_of_the_application_waits_unless_the_policy_says_it_is_an_answer() {
    let (flock, dir) = (Flock::default(), tempfile::tempdir().unwrap());
    let a = node(&flock, dir.path()).await;
    let (app, seen) = memory(500).await;
    flock.register(app.at("orders", "ill", "a"));
    flock.policy("orders", &format!("{POLICY}failback.errors = false\n"));
    assert_eq!(post(&a, "/", b"x").await.status, 500);
    flock.policy("orders", &format!("{POLICY}failback.max_attempts = 2\n"));
    assert_eq!((post(&a, "/first", b"x").await.status, post(&a, "/second", b"x").await.status), (202, 202));
    until(&a, "given_up", 2).await;
    let later: Vec<String> = seen.lock().unwrap()[3..].iter().map(|[path, ..]| path.clone()).collect();
    assert_eq!(later, ["/first", "/first", "/second", "/second"], "each has its attempts, and none holds up the rest");
    let line = a.guard("orders", "failback");
    assert!(line["last_error"].as_str().unwrap().contains("500"), "{line}");
}

#[tokio::test]
async fn what_has_waited_too_long_is_given_up_and_counted() {
    let (flock, dir) = (Flock::default(), tempfile::tempdir().unwrap());
    let a = node(&flock, dir.path()).await;
    nobody(&flock, &format!("{POLICY}failback.expire_ms = 1000\n")).await;
    assert_eq!(post(&a, "/", b"x").await.status, 202);
    until(&a, "expired", 1).await;
    let line = a.guard("orders", "failback");
    assert_eq!((line["waiting"].as_u64(), line["delivered"].as_u64()), (Some(0), Some(0)), "{line}");
    let (app, seen) = memory(200).await;
    comes_back(&flock, &app);
    assert_eq!(post(&a, "/now", b"").await.status, 200);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_open_circuit_sends_nothing_now_or_later_but_what_it_refuses_waits() {
    let (flock, dir) = (Flock::default(), tempfile::tempdir().unwrap());
    let a = node(&flock, dir.path()).await;
    let (app, seen) = memory(200).await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", &format!("{POLICY}[circuit]\n[degrade]\nmode = \"force_open\"\n"));
    assert_eq!(post(&a, "/", b"x").await.status, 202);
    // It has been tried when it has failed once more.
    eventually("a try", || async { (a.guard("orders", "failback")["failures"].as_u64() >= Some(2)).then_some(()) })
        .await;
    assert!(seen.lock().unwrap().is_empty());
    flock.policy("orders", POLICY);
    until(&a, "delivered", 1).await;
    assert_eq!(seen.lock().unwrap().len(), 1);
}
