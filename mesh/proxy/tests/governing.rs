//! What a service's policy does to its requests, and what a bad one does not.

mod support;

use std::sync::atomic::Ordering::SeqCst;

use support::*;

#[tokio::test]
async fn a_policy_changes_what_happens_from_the_next_request_on() {
    let (flock, silent) = (Flock::default(), App::held_back("late").await.0);
    let a = flock.node("a").await;
    flock.register(silent.at("orders", "1", "a"));
    let mut client = Client::connect(a.addr()).await;
    for ms in [20, 40] {
        flock.policy("orders", &format!("[timeouts]\nrequest_ms = {ms}\n[retry]\nmax_retries = 0\n"));
        client.send("GET", "orders.mesh", "/", "", b"").await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 504);
        let reason = answer.header("x-starling-reason").unwrap();
        assert!(reason.contains(&format!("no response within {ms} ms")), "{reason}");
    }
}

#[tokio::test]
async fn the_route_a_request_takes_has_its_own_values() {
    let (flock, app) = (Flock::default(), App::answering(|_| async { text(503, "busy") }).await);
    let a = flock.node("a").await;
    let other = App::answering(|_| async { text(503, "busy") }).await;
    flock.register(app.at("orders", "1", "a"));
    flock.register(other.at("orders", "2", "a"));
    let policy = "[retry]\nmax_retries = 0\n[[route]]\npath_prefix = \"/again\"\nheader.x-kind = \"read\"\nretry.max_retries = 1\n";
    flock.policy("orders", policy);
    let sent = |before: usize| app.requests() + other.requests() - before;
    let mut before = 0;
    for (path, field, attempts) in
        [("/once", "x-kind: read\r\n", 1), ("/again/1", "", 1), ("/again/1", "X-Kind: read\r\n", 2)]
    {
        assert_eq!(a.send("GET", "orders.mesh", path, field, b"").await.status, 503);
        assert_eq!(sent(before), attempts, "{path} {field}");
        before = sent(0);
    }
}

#[tokio::test]
async fn the_document_for_all_services_lies_under_each_services_own() {
    let (flock, silent) = (Flock::default(), App::held_back("late").await.0);
    let a = flock.node("a").await;
    flock.register(silent.at("orders", "1", "a"));
    flock.policy("*", "[timeouts]\nrequest_ms = 10\n[retry]\nmax_retries = 0\n");
    let reason = async || a.get("orders.mesh", "/").await.header("x-starling-reason").unwrap().to_owned();
    assert!(reason().await.contains("within 10 ms"));
    flock.policy("orders", "[timeouts]\nrequest_ms = 20\n");
    assert!(reason().await.contains("within 20 ms"));
}

#[tokio::test]
async fn a_bad_policy_stops_nothing_the_last_good_one_stays_and_the_problem_is_shown() {
    let (flock, silent) = (Flock::default(), App::held_back("late").await.0);
    let app = App::named("well").await;
    let a = flock.node_with("a", |settings| settings.max_retries = 0).await;
    flock.register(silent.at("orders", "1", "a"));
    flock.register(app.at("other", "1", "a"));
    flock.policy("orders", "[timeouts]\nrequest_ms = 30\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 504);
    for bad in ["[timeouts]\nrequest_ms = 0\n", "no toml at all", "[timeouts]\nrequest_ms = \"soon\"\n"] {
        flock.policy("orders", bad);
        let answer = a.get("orders.mesh", "/").await;
        assert!(answer.header("x-starling-reason").unwrap().contains("within 30 ms"), "{answer:?}");
        let metrics = a.metrics();
        assert!(metrics.contains("starling_policy_problems{service=\"default/orders\"} 1"), "{metrics}");
    }
    flock.policy("other", "never = \"good\"");
    assert_eq!(a.get("other.mesh", "/").await.text(), "well", "as if there were none");
    flock.policy("orders", "[timeouts]\nrequest_ms = 40\n");
    assert!(a.get("orders.mesh", "/").await.header("x-starling-reason").unwrap().contains("within 40 ms"));
    assert!(a.metrics().contains("starling_policy_problems{service=\"default/orders\"} 0"));
    assert_eq!(app.requests.load(SeqCst), 1);
}
