//! What happens when instances fail: around them, back to them, and what the caller is told.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use starling_core::registry::{Health, Protocol, Status};
use starling_core::view::{MemberState, Usability};
use support::*;

#[tokio::test]
async fn a_killed_instance_is_routed_around_and_no_get_is_lost() {
    let flock = Flock::default();
    let (dies, lives) = (App::named("dies").await, App::named("lives").await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    let _c = flock.node("c").await;
    flock.register(dies.at("orders", "1", "b"));
    flock.register(lives.at("orders", "2", "c"));
    let mut client = Client::connect(a.addr()).await;
    let mut texts = std::collections::BTreeSet::new();
    for _ in 0..40 {
        client.send("GET", "orders.mesh", "/", "", b"").await;
        texts.insert(client.answer().await.text());
    }
    assert_eq!(texts.len(), 2);
    drop(dies);
    for _ in 0..40 {
        client.send("GET", "orders.mesh", "/", "", b"").await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "lives"));
    }
}

#[tokio::test]
async fn a_post_that_was_never_sent_is_repeated_even_when_the_instance_is_remote() {
    let (flock, lives) = (Flock::default(), App::named("lives").await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(Place { service: "orders", id: "1", owner: "b", address: nowhere().await });
    flock.register(lives.at("orders", "2", "a"));
    for _ in 0..20 {
        assert_eq!(a.send("POST", "orders.mesh", "/", "", b"buy").await.text(), "lives");
    }
}

#[tokio::test]
async fn a_post_that_was_sent_is_not_repeated_but_a_get_is() {
    let flock = Flock::default();
    let (hangs_up, lives) = (App::hanging_up().await, App::named("lives").await);
    let a = flock.node("a").await;
    flock.register(hangs_up.at("orders", "1", "a"));
    flock.register_as(lives.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    for sent in 1..=3 {
        let answer = a.send("POST", "orders.mesh", "/", "", b"buy").await;
        assert_eq!((answer.status, hangs_up.requests()), (502, sent));
        assert!(answer.header("x-starling-reason").unwrap().starts_with("connection_lost: "), "{answer:?}");
    }
    assert_eq!(lives.requests(), 0);
    assert_eq!(a.get("orders.mesh", "/").await.text(), "lives");
    assert_eq!(hangs_up.requests(), 4);
}

#[tokio::test]
async fn an_instance_its_owner_writes_of_again_is_chosen_again_at_once() {
    let flock = Flock::default();
    let well = Arc::new(AtomicBool::new(false));
    let state = well.clone();
    let returns = App::answering(move |_| {
        let status = if state.load(SeqCst) { 200 } else { 503 };
        async move { text(status, "returns") }
    })
    .await;
    let lives = App::named("lives").await;
    let a = flock.node("a").await;
    flock.register(returns.at("orders", "1", "a"));
    flock.register(lives.at("orders", "2", "a"));
    for _ in 0..20 {
        assert_eq!(a.get("orders.mesh", "/").await.text(), "lives");
    }
    assert!(returns.requests() > 0);
    well.store(true, SeqCst);
    flock.register(returns.at("orders", "1", "a"));
    let mut texts = std::collections::BTreeSet::new();
    for _ in 0..40 {
        texts.insert(a.get("orders.mesh", "/").await.text());
    }
    // Whether the other one is as quick still as it was is not the question.
    assert!(texts.contains("returns"), "{texts:?}");
}

#[tokio::test]
async fn an_answer_that_says_not_now_is_asked_elsewhere_if_safe() {
    let flock = Flock::default();
    let (busy, lives) = (App::answering(|_| async { text(503, "busy") }).await, App::named("lives").await);
    let a = flock.node("a").await;
    flock.register(busy.at("orders", "1", "a"));
    flock.register(lives.at("orders", "2", "a"));
    for _ in 0..20 {
        assert_eq!(a.get("orders.mesh", "/").await.text(), "lives");
    }
    flock.deregister("orders", "2");
    let answer = a.get("orders.mesh", "/").await;
    let reason = answer.header("x-starling-reason");
    assert!(
        (answer.text() == "busy" && reason.is_none()) || reason.unwrap().starts_with("no_usable_instance"),
        "with nobody else to ask, the application's own words pass: {answer:?}"
    );
}

#[tokio::test]
async fn a_retry_finds_an_instance_registered_while_the_request_waited() {
    let (flock, told) = (Flock::default(), Arc::new(tokio::sync::Notify::new()));
    let waiting = told.clone();
    let slow = App::answering(move |_| {
        let told = waiting.clone();
        async move {
            told.notified().await;
            text(503, "not now")
        }
    })
    .await;
    let lives = App::named("lives").await;
    let a = flock.node("a").await;
    flock.register(slow.at("orders", "1", "a"));
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "orders.mesh", "/", "", b"").await;
    eventually("request arrives", || async { (slow.requests() == 1).then_some(()) }).await;
    flock.register(lives.at("orders", "2", "a"));
    told.notify_one();
    assert_eq!(client.answer().await.text(), "lives");
}

#[tokio::test]
async fn a_request_with_a_large_body_is_not_repeated_once_sent() {
    let (flock, hangs_up) = (Flock::default(), App::hanging_up().await);
    let lives = App::named("lives").await;
    let a = flock.node_with("a", |settings| settings.max_replay_bytes = 10).await;
    flock.register(hangs_up.at("orders", "1", "a"));
    flock.register_as(lives.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    assert_eq!(a.send("PUT", "orders", "/", "", b"more than ten bytes").await.status, 502);
    assert_eq!(a.send("PUT", "orders", "/", "", b"few bytes").await.text(), "lives");
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_not_noticed_by_callers() {
    let flock = Flock::default();
    let brief = App::answering(|_| async {
        let mut response = text(200, "bye");
        response.headers_mut().insert("connection", "close".parse().unwrap());
        response
    })
    .await;
    let a = flock.node("a").await;
    flock.register(brief.at("brief", "1", "a"));
    let mut client = Client::connect(a.addr()).await;
    for _ in 0..20 {
        client.send("POST", "brief", "/", "", b"x").await;
        assert_eq!(client.answer().await.text(), "bye");
    }
}

#[tokio::test]
async fn the_breaker_opens_is_told_of_and_closes_again() {
    let flock = Flock::default();
    let well = Arc::new(AtomicBool::new(false));
    let state = well.clone();
    let app = App::answering(move |_| {
        let status = if state.load(SeqCst) { 200 } else { 500 };
        async move { text(status, "app") }
    })
    .await;
    let a =
        flock.node_with("a", |settings| (settings.breaker.open_ms, settings.breaker.max_open_ms) = (100, 100)).await;
    flock.register(app.at("orders", "1", "a"));
    for _ in 0..5 {
        assert_eq!(a.get("orders", "/").await.status, 500);
    }
    assert!(a.metrics().contains("starling_breakers_open{service=\"default/orders\"} 1\n"), "{}", a.metrics());
    assert!(a.metrics().contains("starling_breaker_opens_total{service=\"default/orders\"} 1\n"), "{}", a.metrics());
    well.store(true, SeqCst);
    eventually("the breaker closes and tells of it", || async {
        assert_eq!(a.get("orders", "/").await.status, 200);
        a.metrics().contains("starling_breakers_open{service=\"default/orders\"} 0\n").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_application_that_fails_some_requests_gets_all_of_them_while_there_is_no_better_one() {
    let flock = Flock::default();
    let app = App::answering(|request| async move {
        let good = request.uri().path() == "/good";
        text(if good { 200 } else { 500 }, "app")
    })
    .await;
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.register(app.at("orders", "2", "a"));
    for _ in 0..30 {
        let answer = a.get("orders", "/bad").await;
        assert_eq!((answer.status, answer.header("x-starling-reason")), (500, None));
    }
    assert!(a.metrics().contains("starling_breakers_open{service=\"default/orders\"} 1\n"), "{}", a.metrics());
    for _ in 0..30 {
        assert_eq!(a.get("orders", "/good").await.status, 200);
    }
}

#[tokio::test]
async fn an_instance_that_never_answers_is_refused_for_by_its_breaker() {
    let (flock, hangs_up) = (Flock::default(), App::hanging_up().await);
    let a = flock.node("a").await;
    flock.register(hangs_up.at("orders", "1", "a"));
    eventually("it is refused for", || async {
        let answer = a.send("POST", "orders", "/", "", b"buy").await;
        answer.header("x-starling-reason").unwrap().contains("taken out by their breaker").then_some(())
    })
    .await;
    assert!(hangs_up.requests() >= 5);
}

#[tokio::test]
async fn a_probe_whose_caller_goes_away_does_not_hold_the_breaker_half_open() {
    let flock = Flock::default();
    let phase = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let state = phase.clone();
    let app = App::answering(move |_| {
        let phase = state.load(SeqCst);
        async move {
            match phase {
                0 => text(500, "ill"),
                1 => std::future::pending().await,
                _ => text(200, "well"),
            }
        }
    })
    .await;
    let a =
        flock.node_with("a", |settings| (settings.breaker.open_ms, settings.breaker.max_open_ms) = (100, 100)).await;
    flock.register(app.at("orders", "1", "a"));
    for _ in 0..5 {
        a.get("orders", "/").await;
    }
    phase.store(1, SeqCst);
    // Clients come and go, each after 20 ms; the breaker is open for 125 at most, so the last of ten was a probe.
    let sent_before = app.requests();
    eventually("a probe goes out", || async {
        let mut client = Client::connect(a.addr()).await;
        client.send("GET", "orders", "/", "", b"").await;
        let _ = tokio::time::timeout(std::time::Duration::from_millis(20), client.head()).await;
        (app.requests() >= sent_before + 10).then_some(())
    })
    .await;
    phase.store(2, SeqCst);
    eventually("the next probe closes it", || async {
        assert_eq!(a.get("orders", "/").await.status, 200);
        a.metrics().contains("starling_breakers_open{service=\"default/orders\"} 0\n").then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_answer_in_time_is_told_as_such() {
    let flock = Flock::default();
    let stuck = App::answering(|_| std::future::pending()).await;
    let a = flock.node_with("a", |settings| settings.request_timeout_ms = 50).await;
    flock.register(stuck.at("stuck", "1", "a"));
    let answer = a.get("stuck", "/").await;
    assert_eq!(answer.status, 504);
    assert!(answer.header("x-starling-reason").unwrap().starts_with("timed_out: "), "{answer:?}");
}

#[tokio::test]
async fn nobody_usable_says_who_there_is_and_why_not() {
    let flock = Flock::default();
    let a = flock.node("a").await;
    let address = nowhere().await;
    let place = |id| Place { service: "orders", id, owner: "a", address };
    flock.register_as(place("1"), |view| {
        change(view, |i| i.status = Status::Down);
        view.usability = Usability::Status;
    });
    for id in ["2", "3"] {
        flock.register_as(place(id), |view| {
            change(view, |i| i.health = Health::Failing);
            view.usability = Usability::Health;
        });
    }
    flock.register_as(place("4"), |view| {
        change(view, |i| i.health = Health::Unknown);
        view.usability = Usability::Health;
    });
    let answer = a.get("orders.mesh", "/").await;
    let expected = "service default/orders has 4 instances: 1 DOWN, 2 failing health, 1 not checked yet";
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("x-starling-reason").unwrap(), format!("no_usable_instance: {expected}"));
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&json["service"], &json["why"]), (&"default/orders".into(), &expected.into()));
}

#[tokio::test]
async fn what_was_tried_is_told() {
    let flock = Flock::default();
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(Place { service: "orders", id: "1", owner: "a", address: nowhere().await });
    flock.register(Place { service: "orders", id: "2", owner: "b", address: nowhere().await });
    flock.register(Place { service: "orders", id: "3", owner: "gone", address: nowhere().await });
    let answer = a.get("orders.mesh", "/").await;
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, &json["error"]), (503, &"connect_failed".into()));
    let mut tried: Vec<_> = json["tried"].as_array().unwrap().iter().map(|t| t["instance"].as_str().unwrap()).collect();
    tried.sort_unstable();
    assert_eq!(tried, ["1", "2", "3"]);
    assert!(
        answer.text().contains("no address is known for node gone") && answer.text().contains("refused"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn a_service_nobody_registered_and_a_host_of_somebody_else_are_told_apart() {
    let flock = Flock::default();
    let a = flock.node("a").await;
    let unknown = a.get("orders.mesh", "/").await;
    assert_eq!(
        (unknown.status, unknown.header("x-starling-reason").unwrap()),
        (503, "no_such_service: no service default/orders is registered")
    );
    let foreign = a.get("example.com", "/").await;
    assert_eq!(foreign.status, 421);
    assert!(foreign.header("x-starling-reason").unwrap().starts_with("not_a_mesh_name: "), "{foreign:?}");
    assert!(a.metrics().contains(r#"starling_own_answers_total{service="unknown"} 2"#));
}

#[tokio::test]
async fn the_retry_budget_stops_retries() {
    let flock = Flock::default();
    let a = flock
        .node_with("a", |settings| {
            settings.retry_budget.percent = 0;
            settings.retry_budget.floor_per_s = 0;
        })
        .await;
    flock.register(Place { service: "orders", id: "1", owner: "a", address: nowhere().await });
    flock.register(Place { service: "orders", id: "2", owner: "a", address: nowhere().await });
    let json: serde_json::Value = serde_json::from_slice(&a.get("orders", "/").await.body).unwrap();
    assert_eq!(json["tried"].as_array().unwrap().len(), 1);
    assert!(a.metrics().contains(r#"starling_retries_refused_total{service="default/orders"} 1"#));
}

#[tokio::test]
async fn the_own_zone_is_preferred_until_it_has_nobody() {
    let flock = Flock::default();
    let (near, far) = (App::named("near").await, App::named("far").await);
    let a = flock.node("a").await;
    flock.register(near.at("orders", "1", "a"));
    flock.register_as(far.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    for _ in 0..20 {
        assert_eq!(a.get("orders", "/").await.text(), "near");
    }
    flock.deregister("orders", "1");
    assert_eq!(a.get("orders", "/").await.text(), "far");
}

#[tokio::test]
async fn who_waits_for_a_node_that_is_lost_meanwhile_asks_elsewhere() {
    let flock = Flock::default();
    let (silent, lives) = (App::answering(|_| std::future::pending()).await, App::named("lives").await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.member("b", MemberState::Alive);
    flock.register(silent.at("orders", "1", "b"));
    flock.register_as(lives.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "orders.mesh", "/", "", b"").await;
    eventually("request arrives", || async { (silent.requests() == 1).then_some(()) }).await;
    flock.member("b", MemberState::Lost);
    assert_eq!(client.answer().await.text(), "lives");
}

#[tokio::test]
async fn what_a_node_has_taken_is_waited_for_while_it_stops() {
    let flock = Flock::default();
    let (slow, go) = App::held_back("finished").await;
    let other = App::named("other").await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.member("b", MemberState::Alive);
    flock.register(slow.at("orders", "1", "b"));
    flock.register_as(other.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "orders.mesh", "/", "", b"").await;
    eventually("request arrives", || async { (slow.requests() == 1).then_some(()) }).await;
    flock.member("b", MemberState::Left);
    // Three times as long as a caller waits before it looks whether the node is lost.
    assert!(tokio::time::timeout(std::time::Duration::from_millis(750), client.fill()).await.is_err());
    go.add_permits(1);
    assert_eq!(client.answer().await.text(), "finished");
    assert_eq!(other.requests(), 0);
}

#[tokio::test]
async fn an_instance_that_speaks_something_else_is_told_of_and_not_blamed() {
    let (flock, app) = (Flock::default(), App::named("tcp").await);
    let a = flock.node("a").await;
    flock.register_as(app.at("orders", "1", "a"), |view| change(view, |i| i.protocol = Protocol::Tcp));
    for _ in 0..10 {
        let answer = a.get("orders", "/").await;
        assert_eq!(answer.status, 501);
        assert!(answer.header("x-starling-reason").unwrap().contains("speaks tcp"), "{answer:?}");
    }
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn tunnels_beyond_the_limit_are_refused_and_counted() {
    let (flock, app) = (Flock::default(), App::answering(|_| std::future::pending()).await);
    let a = flock.node("a").await;
    let b = flock.node_with("b", |settings| settings.max_tunnels = 1).await;
    flock.register(app.at("orders", "1", "b"));
    let mut first = Client::connect(a.addr()).await;
    first.send("GET", "orders", "/", "", b"").await;
    eventually("request arrives", || async { (app.requests() == 1).then_some(()) }).await;
    let second = a.get("orders", "/").await;
    assert!((502..=503).contains(&second.status), "{second:?}");
    assert!(b.metrics().contains("starling_tunnels_refused_total 1\n"), "{}", b.metrics());
}
