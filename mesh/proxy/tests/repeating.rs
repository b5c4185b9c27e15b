//! Idempotency keys: what is asked twice with one key is done once, whichever way it comes.

#![allow(clippy::unwrap_used)] // a helper that cannot help fails its test

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use support::*;
use tokio::sync::Semaphore;

/// Everything that has keys here is a POST of this service.
const HOST: &str = "orders.mesh";

/// An application that numbers what it does.
async fn counting() -> App {
    let done = Arc::new(AtomicUsize::new(0));
    App::answering(move |_| {
        let n = done.fetch_add(1, SeqCst) + 1;
        async move {
            let mut answer = text(201, format!("done {n}"));
            answer.headers_mut().insert("location", format!("/orders/{n}").parse().unwrap());
            answer
        }
    })
    .await
}

fn key(key: &str) -> String {
    format!("idempotency-key: {key}\r\n")
}

async fn post(bird: &Bird, name: &str, body: &str) -> Answer {
    bird.send("POST", HOST, "/orders", &key(name), body.as_bytes()).await
}

fn is_repeat(answer: &Answer) -> bool {
    answer.header("idempotent-replayed") == Some("true")
}

/// What `starling guards` shows of it at this node.
fn counted(bird: &Bird, what: &str) -> u64 {
    bird.guard("orders", "idempotency")[what].as_u64().unwrap_or_default()
}

#[tokio::test]
async fn a_request_sent_twice_with_one_key_is_done_once_and_answered_alike() {
    for owner in ["a", "b"] {
        let (flock, app) = (Flock::default(), counting().await);
        let (a, b) = (flock.node("a").await, flock.node("b").await);
        flock.register(app.at("orders", "1", owner));
        flock.policy("orders", "[idempotency]\nscope = \"service\"\n");
        let first = post(&a, "k", "one").await;
        assert_eq!((first.status, first.text().as_str(), is_repeat(&first)), (201, "done 1", false));
        for bird in [&a, &b] {
            let again = post(bird, "k", "one").await;
            assert_eq!((again.status, again.text().as_str(), is_repeat(&again)), (201, "done 1", true));
            assert_eq!(again.header("location"), Some("/orders/1"));
        }
        assert_eq!(post(&a, "other", "one").await.text(), "done 2");
        assert_eq!(a.send("POST", HOST, "/orders", "", b"one").await.text(), "done 3");
        assert_eq!(app.requests(), 3);
        let holder = if owner == "a" { &a } else { &b };
        assert_eq!((counted(holder, "first"), counted(holder, "repeated"), counted(holder, "keys")), (2, 2, 2));
    }
}

#[tokio::test]
async fn without_the_section_or_for_other_methods_keys_mean_nothing() {
    let (flock, app) = (Flock::default(), counting().await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    assert_eq!(post(&a, "k", "x").await.text(), "done 1");
    assert_eq!(post(&a, "k", "x").await.text(), "done 2");
    flock.policy("orders", "[idempotency]\n[[route]]\npath = \"/free\"\nidempotency.methods = []\n");
    assert_eq!(a.send("PUT", HOST, "/orders", &key("k"), b"x").await.text(), "done 3");
    assert_eq!(a.send("PUT", HOST, "/orders", &key("k"), b"x").await.text(), "done 4");
    assert_eq!(a.send("POST", HOST, "/free", &key("k"), b"x").await.text(), "done 5");
    assert_eq!(a.send("POST", HOST, "/free", &key("k"), b"x").await.text(), "done 6");
}

#[tokio::test]
async fn repeats_at_once_wait_for_the_first_or_are_told_of_it() {
    for meanwhile in ["wait", "conflict"] {
        let (flock, (app, go)) = (Flock::default(), App::held_back("done").await);
        let (a, b) = (flock.node("a").await, flock.node("b").await);
        flock.register(app.at("orders", "1", "b"));
        flock.policy("orders", &format!("[idempotency]\nscope = \"service\"\nmeanwhile = \"{meanwhile}\"\n"));
        let mut first = Client::connect(a.addr()).await;
        first.send("POST", HOST, "/orders", &key("k"), b"x").await;
        eventually("it is under way", || async { (app.requests() == 1).then_some(()) }).await;
        let mut again = Client::connect(b.addr()).await;
        again.send("POST", HOST, "/orders", &key("k"), b"x").await;
        if meanwhile == "conflict" {
            let told = again.answer().await;
            assert_eq!(told.status, 409, "{told:?}");
            assert!(
                told.header("x-starling-reason").unwrap().starts_with("idempotency: the first request"),
                "{told:?}"
            );
            go.add_permits(1);
        } else {
            eventually("it waits", || async { (counted(&b, "under_way") == 1).then_some(()) }).await;
            go.add_permits(1);
            assert!(is_repeat(&again.answer().await));
        }
        assert_eq!(first.answer().await.text(), "done");
        assert_eq!(app.requests(), 1);
    }
}

#[tokio::test]
async fn whoever_gives_up_and_asks_again_gets_the_answer_of_what_was_begun() {
    let (flock, (app, go)) = (Flock::default(), App::held_back("done").await);
    let (a, _b) = (flock.node("a").await, flock.node("b").await);
    flock.register(app.at("orders", "1", "b"));
    flock.policy("orders", "[idempotency]\n");
    let mut impatient = Client::connect(a.addr()).await;
    impatient.send("POST", HOST, "/orders", &key("k"), b"x").await;
    eventually("it is under way", || async { (app.requests() == 1).then_some(()) }).await;
    drop(impatient);
    let mut again = Client::connect(a.addr()).await;
    again.send("POST", HOST, "/orders", &key("k"), b"x").await;
    go.add_permits(1);
    let answer = again.answer().await;
    assert_eq!((answer.text().as_str(), is_repeat(&answer), app.requests()), ("done", true, 1));
}

#[tokio::test]
async fn a_key_that_comes_with_another_request_is_refused_and_so_is_what_cannot_be_compared() {
    let (flock, app) = (Flock::default(), counting().await);
    let (a, b) = (flock.node("a").await, flock.node("b").await);
    flock.register(app.at("orders", "1", "b"));
    flock.policy("orders", "[idempotency]\nrequired = true\nmax_body_bytes = 70000\n");
    assert_eq!(post(&a, "k", "one").await.status, 201);
    let other = post(&a, "k", "two").await;
    assert_eq!(other.status, 422);
    assert!(other.header("x-starling-reason").unwrap().starts_with("idempotency_key_misused: "), "{other:?}");
    assert_eq!(a.send("POST", HOST, "/elsewhere", &key("k"), b"one").await.status, 422);
    for bird in [&a, &b] {
        assert_eq!(bird.send("POST", HOST, "/orders", "", b"one").await.status, 400);
        assert_eq!(post(bird, &"k".repeat(257), "one").await.status, 400);
        let large = "x".repeat(70_001);
        assert_eq!(post(bird, "large", &large).await.status, 413);
        assert_eq!(post(bird, &format!("{}", bird.addr()), &large[1..]).await.status, 201, "it is held for this");
    }
    assert_eq!(app.requests(), 3);
    let refused = "starling_guard_refusals_total{service=\"default/orders\",guard=\"idempotency\",reason=\"the key was used for another request\",rule=\"idempotency\"} 2";
    assert!(b.metrics().contains(refused), "{}", b.metrics());
}

#[tokio::test]
async fn keys_are_their_callers_own_where_callers_are_known_and_their_tenants() {
    let (flock, app) = (Flock::default(), counting().await);
    let node = |name: &'static str, service: &'static str| {
        flock.node_with(name, move |settings| settings.identity = service.into())
    };
    let (a, b, c) = (node("a", "shop").await, node("b", "cart").await, flock.node("c").await);
    for (service, owner) in [("shop", "a"), ("cart", "b")] {
        flock.register(app.at(service, "1", owner));
    }
    flock.register(app.at("orders", "1", "c"));
    flock.policy("orders", "[idempotency]\nscope_headers = [\"x-tenant\"]\n");
    assert_eq!(post(&a, "k", "x").await.text(), "done 1");
    assert_eq!(post(&b, "k", "x").await.text(), "done 2");
    assert_eq!(post(&c, "k", "x").await.text(), "done 3");
    let of = |tenant: &str| format!("x-tenant: {tenant}\r\n{}", key("k"));
    assert_eq!(a.send("POST", HOST, "/orders", &of("t"), b"x").await.text(), "done 4");
    assert_eq!(a.send("POST", HOST, "/orders", &of("t"), b"x").await.text(), "done 4");
    flock.policy("orders", "[idempotency]\nscope = \"service\"\n");
    let texts = [post(&a, "s", "x").await.text(), post(&b, "s", "x").await.text()];
    assert_eq!(texts, ["done 5", "done 5"]);
}

#[tokio::test]
async fn after_a_failure_it_runs_again_unless_failures_count_too() {
    for (policy, expected) in
        [("[idempotency]\n", [500, 200, 200]), ("[idempotency]\nkeep_failures = true\n", [500; 3])]
    {
        let (flock, failures) = (Flock::default(), Arc::new(AtomicUsize::new(0)));
        let app = App::answering(move |_| {
            let first = failures.fetch_add(1, SeqCst) == 0;
            async move { if first { text(500, "no") } else { text(200, "yes") } }
        });
        let app = app.await;
        let (a, _b) = (flock.node("a").await, flock.node("b").await);
        flock.register(app.at("orders", "1", "b"));
        flock.policy("orders", policy);
        for status in expected {
            assert_eq!(post(&a, "k", "x").await.status, status);
        }
        assert_eq!(app.requests(), if expected[1] == 200 { 2 } else { 1 });
    }
    let (flock, app) = (Flock::default(), App::hanging_up().await);
    let (a, b) = (flock.node("a").await, flock.node("b").await);
    flock.register(app.at("orders", "1", "b"));
    flock.policy("orders", "[idempotency]\n");
    assert_eq!((post(&a, "k", "x").await.status, post(&a, "k", "x").await.status), (502, 502));
    assert_eq!((app.requests(), counted(&b, "failed")), (2, 2));
}

#[tokio::test]
async fn when_the_window_has_ended_a_key_is_new() {
    let (flock, app) = (Flock::default(), counting().await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[idempotency]\nwindow_ms = 1000\n");
    assert_eq!(post(&a, "k", "x").await.text(), "done 1");
    let again = || async { Some(post(&a, "k", "x").await.text()).filter(|text| text == "done 2") };
    eventually("the window ends", again).await;
}

#[tokio::test]
async fn a_large_answer_reaches_its_client_whole_and_its_repeat_is_told_that_it_is_not_kept() {
    let large: &'static str = "0123456789".repeat(20_000).leak();
    for chunked in [false, true] {
        let app = App::answering(move |_| async move {
            if !chunked {
                return text(200, large);
            }
            let (send, receive) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                for part in large.as_bytes().chunks(10_000) {
                    send.send(bytes::Bytes::from_static(part)).await.unwrap();
                }
            });
            hyper::Response::new(http_body_util::combinators::BoxBody::new(Frames(receive)))
        });
        let (flock, app) = (Flock::default(), app.await);
        let (a, b) = (flock.node("a").await, flock.node("b").await);
        flock.register(app.at("orders", "1", "b"));
        flock.policy("orders", "[idempotency]\n");
        assert!(post(&a, "k", "x").await.text() == large, "it comes whole");
        let again = post(&a, "k", "x").await;
        assert_eq!((again.status, app.requests(), counted(&b, "not_kept")), (409, 1, 1));
        let why = again.header("x-starling-reason").unwrap();
        assert!(why.contains("it was answered, with more than is kept"), "{why}");
        flock.policy("orders", "[idempotency]\nmax_answer_bytes = 200000\n");
        assert!(post(&a, "kept", "x").await.text() == large && post(&a, "kept", "x").await.text() == large);
        assert_eq!(app.requests(), 2);
    }
}

/// Two nodes with an instance each, and one that calls.
async fn pair(flock: &Flock) -> ([Bird; 3], [App; 2]) {
    let birds = [flock.node("a").await, flock.node("b").await, flock.node("c").await];
    let apps = [counting().await, counting().await];
    flock.register(apps[0].at("orders", "1", "a"));
    flock.register(apps[1].at("orders", "2", "b"));
    (birds, apps)
}

#[tokio::test]
async fn all_callers_bring_a_key_to_the_same_instance_and_keys_are_spread() {
    let flock = Flock::default();
    let ([a, b, c], apps) = pair(&flock).await;
    flock.policy("orders", "[idempotency]\nscope = \"service\"\nask = 0\n");
    for n in 0..40 {
        let name = format!("key-{n}");
        for bird in [&c, &a, &b] {
            assert_eq!(is_repeat(&post(bird, &name, "x").await), !std::ptr::eq(bird, &c));
        }
    }
    assert_eq!(apps[0].requests() + apps[1].requests(), 40);
    assert!(apps.iter().all(|app| app.requests() > 5), "{} {}", apps[0].requests(), apps[1].requests());
}

#[tokio::test]
async fn a_repeat_that_comes_to_another_node_gets_the_first_answer_from_there() {
    let flock = Flock::default();
    let ([a, b, c], apps) = pair(&flock).await;
    // Nobody steers, and instances take turns: repeats come anywhere.
    flock.policy("orders", "[idempotency]\nsteer = false\n[balance]\nalgorithm = \"round_robin\"\n");
    for n in 0..10 {
        let name = format!("key-{n}");
        let first = post(&c, &name, "x").await;
        for _ in 0..3 {
            let again = post(&c, &name, "x").await;
            assert_eq!((again.text(), is_repeat(&again)), (first.text(), true));
            assert_eq!(again.header("location"), first.header("location"));
        }
        assert_eq!(post(&c, &name, "y").await.status, 422);
    }
    assert_eq!(apps[0].requests() + apps[1].requests(), 10);
    assert_eq!(counted(&a, "fetched") + counted(&b, "fetched"), 10, "once for each key: then both know it");
    let shown = "starling_idempotency_total{service=\"default/orders\",what=\"fetched\"}";
    assert!(a.metrics().contains(shown), "{}", a.metrics());
}

#[tokio::test]
async fn repeats_at_two_nodes_at_once_are_done_once() {
    let (flock, go) = (Flock::default(), Arc::new(Semaphore::new(0)));
    let birds = [flock.node("a").await, flock.node("b").await];
    let held = |go: Arc<Semaphore>| {
        App::answering(move |_| {
            let go = go.clone();
            async move {
                go.acquire().await.unwrap().forget();
                text(200, "done")
            }
        })
    };
    let apps = [held(go.clone()).await, held(go.clone()).await];
    flock.register(apps[0].at("orders", "1", "a"));
    flock.register(apps[1].at("orders", "2", "b"));
    flock.policy(
        "orders",
        "[idempotency]\nsteer = false\nmax_wait_ms = 600000\nask_ms = 10000\n[balance]\nalgorithm = \"round_robin\"\n",
    );
    for n in 0..10 {
        let mut clients = Vec::new();
        for at in 0..6 {
            let mut client = Client::connect(birds[at % 2].addr()).await;
            client.send("POST", HOST, "/orders", &key(&format!("key-{n}")), b"x").await;
            clients.push(client);
        }
        go.add_permits(1);
        for client in &mut clients {
            assert_eq!(client.answer().await.text(), "done");
        }
        assert_eq!(apps[0].requests() + apps[1].requests(), n + 1);
    }
}

#[tokio::test]
async fn when_the_holder_is_dead_a_repeat_is_done_again_or_refused_as_the_policy_says() {
    for (unanswered, status) in [("carry", 201), ("refuse", 503)] {
        let flock = Flock::default();
        let ([a, b, c], _apps) = pair(&flock).await;
        flock.policy("orders", &format!("[idempotency]\nunanswered = \"{unanswered}\"\n"));
        assert_eq!(post(&c, "k", "x").await.status, 201);
        let (holder, other, id) = if counted(&a, "first") == 1 { (a, b, "1") } else { (b, a, "2") };
        // It is cut off, and its instance is not chosen any more; the mesh has not noticed that the node is dead.
        drop(holder);
        flock.register_as(counting().await.at("orders", id, if id == "1" { "a" } else { "b" }), |view| {
            view.usability = starling_core::view::Usability::Health;
        });
        let again = post(&c, "k", "x").await;
        assert_eq!((again.status, is_repeat(&again)), (status, false), "{again:?}");
        assert_eq!(counted(&other, "unanswered"), 1);
    }
}

#[tokio::test]
async fn a_key_lets_what_is_not_safe_be_tried_again_where_the_policy_says_so() {
    for (policy, status) in [("", 502), ("[retry]\nkeyed = true\n", 201)] {
        let (flock, hangs_up, app) = (Flock::default(), App::hanging_up().await, counting().await);
        let (a, _b) = (flock.node("a").await, flock.node("b").await);
        flock.register(hangs_up.at("orders", "1", "b"));
        flock.register(app.at("orders", "2", "a"));
        flock.policy("orders", &format!("[idempotency]\n{policy}"));
        // A key that is drawn to the one that hangs up.
        let mut met = None;
        for n in 0..64 {
            let answer = post(&a, &format!("key-{n}"), "x").await;
            if hangs_up.requests() > 0 {
                met = Some((n, answer));
                break;
            }
        }
        let (n, answer) = met.expect("half of all keys are");
        assert_eq!(answer.status, status);
        if status == 201 {
            let again = post(&a, &format!("key-{n}"), "x").await;
            assert_eq!((again.text(), is_repeat(&again)), (answer.text(), true));
        }
        let unkeyed = a.send("POST", HOST, "/orders", "", b"x").await.status;
        assert!(unkeyed == 201 || unkeyed == 502);
    }
}

#[tokio::test]
async fn a_hedge_with_a_key_is_no_second_doing() {
    let (flock, go) = (Flock::default(), Arc::new(Semaphore::new(0)));
    let held = |go: Arc<Semaphore>| {
        App::answering(move |_| {
            let go = go.clone();
            async move {
                go.acquire().await.unwrap().forget();
                text(200, "done")
            }
        })
    };
    let (a, b, c) = (flock.node("a").await, flock.node("b").await, flock.node("c").await);
    let apps = [held(go.clone()).await, held(go.clone()).await];
    flock.register(apps[0].at("orders", "1", "a"));
    flock.register(apps[1].at("orders", "2", "b"));
    flock.policy("orders", "[idempotency]\nask_ms = 10000\n[retry]\nkeyed = true\n[hedge]\nafter_ms = 20\n");
    let mut client = Client::connect(c.addr()).await;
    client.send("POST", HOST, "/orders", &key("k"), b"x").await;
    eventually("the hedge asks", || async { (counted(&a, "asked") + counted(&b, "asked") > 1).then_some(()) }).await;
    go.add_permits(2);
    assert_eq!(client.answer().await.text(), "done");
    assert_eq!(apps[0].requests() + apps[1].requests(), 1);
}

#[tokio::test]
async fn only_a_node_with_an_instance_of_the_service_is_told_what_was_answered() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let flock = Flock::default();
    let (_birds, _apps) = pair(&flock).await;
    flock.policy("orders", "[idempotency]\n");
    let to = starling_core::id::InstanceKey { service: service_key("orders"), instance: "1".parse().unwrap() };
    for (from, answer) in [("b", 0u8), ("c", 5), ("stranger", 5)] {
        let mut tunnel = flock.tunnel(from, "a", &to).await;
        tunnel.write_all(&[&[2u8][..], &[7; 28]].concat()).await.unwrap();
        assert_eq!(tunnel.read_u8().await.unwrap(), answer, "{from}");
    }
    for torn in [&[2u8][..], &[2; 28]] {
        let mut tunnel = flock.tunnel("b", "a", &to).await;
        tunnel.write_all(torn).await.unwrap();
        tunnel.shutdown().await.unwrap();
        assert_eq!(tunnel.read(&mut [0; 16]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_drain_waits_for_a_first_request_whose_client_has_left() {
    let (flock, (app, go)) = (Flock::default(), App::held_back("done").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[idempotency]\n");
    let mut first = Client::connect(a.addr()).await;
    first.send("POST", HOST, "/orders", &key("k"), b"x").await;
    eventually("it is under way", || async { (app.requests() == 1).then_some(()) }).await;
    drop(first);
    let none_left = "starling_proxy_connections{kind=\"application\"} 0";
    eventually("its client has left", || async { a.metrics().contains(none_left).then_some(()) }).await;
    assert!(!a.proxy.drain(Duration::from_millis(200)).await, "what it waited for was cut off");
    drop(go);
}
