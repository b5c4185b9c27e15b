//! What a service's policy does to its requests, and what a bad one does not.

mod support;

use std::sync::atomic::Ordering::SeqCst;

use starling_core::policy::LayerState;
use support::*;

#[tokio::test]
async fn a_policy_changes_what_happens_from_the_next_request_on() {
    let (flock, silent) = (Flock::default(), App::held_back("late").await.0);
    let a = flock.node("a").await;
    flock.register(silent.at("orders", "1", "a"));
    let mut client = Client::connect(a.addr()).await;
    for ms in [200, 300] {
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
    flock.policy("*", "[timeouts]\nrequest_ms = 200\n[retry]\nmax_retries = 0\n");
    let reason = async || a.get("orders.mesh", "/").await.header("x-starling-reason").unwrap().to_owned();
    assert!(reason().await.contains("within 200 ms"));
    flock.policy("orders", "[timeouts]\nrequest_ms = 300\n");
    assert!(reason().await.contains("within 300 ms"));
}

#[tokio::test]
async fn a_bad_policy_stops_nothing_the_last_good_one_stays_and_the_problem_is_shown() {
    let (flock, silent) = (Flock::default(), App::held_back("late").await.0);
    let app = App::named("well").await;
    let a = flock.node_with("a", |settings| settings.max_retries = 0).await;
    flock.register(silent.at("orders", "1", "a"));
    flock.register(app.at("other", "1", "a"));
    flock.policy("orders", "[timeouts]\nrequest_ms = 200\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 504);
    for bad in ["[timeouts]\nrequest_ms = 0\n", "no toml at all", "[timeouts]\nrequest_ms = \"soon\"\n"] {
        flock.policy("orders", bad);
        let answer = a.get("orders.mesh", "/").await;
        assert!(answer.header("x-starling-reason").unwrap().contains("within 200 ms"), "{answer:?}");
        let metrics = a.metrics();
        assert!(metrics.contains("starling_policy_problems{service=\"default/orders\"} 1"), "{metrics}");
    }
    flock.policy("other", "never = \"good\"");
    assert_eq!(a.get("other.mesh", "/").await.text(), "well", "as if there were none");
    flock.policy("orders", "[timeouts]\nrequest_ms = 300\n");
    assert!(a.get("orders.mesh", "/").await.header("x-starling-reason").unwrap().contains("within 300 ms"));
    assert!(a.metrics().contains("starling_policy_problems{service=\"default/orders\"} 0"));
    assert_eq!(app.requests.load(SeqCst), 1);
}

/// A service `orders` of one instance that answers at once, and a node whose applications call it.
async fn shop(policy: &str) -> (Flock, App, Bird) {
    let (flock, app) = (Flock::default(), App::named("well").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", policy);
    (flock, app, a)
}

#[tokio::test]
async fn what_is_too_much_is_refused_with_the_rule_and_when_to_come_back() {
    let (_flock, app, a) = shop("[[limit]]\nname = \"all\"\ncount = 2\nper_ms = 3600000\n").await;
    for _ in 0..2 {
        assert_eq!(a.get("orders.mesh", "/").await.status, 200);
    }
    let refused = a.get("orders.mesh", "/").await;
    assert_eq!(refused.status, 429);
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() > 600);
    assert_eq!(refused.header("x-starling-reason"), Some("rate: over the rate (rule all)"));
    let body: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!((body["error"].as_str(), body["rule"].as_str()), (Some("rate"), Some("all")));
    assert_eq!((body["service"].as_str(), app.requests()), (Some("default/orders"), 2));
    let counted = "starling_guard_refusals_total{service=\"default/orders\",guard=\"rate\",reason=\"over the rate\",rule=\"all\"} 1";
    assert!(a.metrics().contains(counted), "{}", a.metrics());
}

#[tokio::test]
async fn a_limit_by_header_counts_each_value_and_spares_who_has_none() {
    let policy = "[[limit]]\nby = \"header:x-user\"\ncount = 1\nper_ms = 3600000\n";
    let (_flock, _app, a) = shop(policy).await;
    let mut status = Vec::new();
    for field in ["x-user: ann\r\n", "x-user: bob\r\n", "x-user: ann\r\n", "", ""] {
        status.push(a.send("GET", "orders.mesh", "/", field, b"").await.status);
    }
    assert_eq!(status, [200, 200, 429, 200, 200]);
}

#[tokio::test]
async fn a_changed_document_keeps_what_unchanged_guards_have_counted() {
    let limit = "[[limit]]\ncount = 1\nper_ms = 3600000\n";
    let (flock, _app, a) = shop(limit).await;
    assert_eq!(a.get("orders.mesh", "/").await.status, 200);
    flock.policy("orders", &format!("[timeouts]\nrequest_ms = 9000\n{limit}"));
    assert_eq!(a.get("orders.mesh", "/").await.status, 429, "the limit was not filled again");
    flock.policy("orders", &limit.replace("= 1\n", "= 2\n"));
    assert_eq!(a.get("orders.mesh", "/").await.status, 200, "another limit");
}

#[tokio::test]
async fn a_routes_limit_holds_beside_the_services() {
    let policy = "[[limit]]\nname = \"all\"\ncount = 3\nper_ms = 3600000\n\
        [[route]]\nname = \"pay\"\npath = \"/pay\"\n[[route.limit]]\nname = \"pay\"\ncount = 1\nper_ms = 3600000\n";
    let (_flock, _app, a) = shop(policy).await;
    let mut told = Vec::new();
    for path in ["/pay", "/pay", "/", "/", "/pay"] {
        let answer = a.get("orders.mesh", path).await;
        told.push(answer.header("x-starling-reason").unwrap_or("well").to_owned());
    }
    // The second has been counted by the service's limit before the route's refused it.
    let (pay, all) = ("rate: over the rate (rule pay)", "rate: over the rate (rule all)");
    assert_eq!(told, ["well", pay, "well", all, all]);
}

#[tokio::test]
async fn a_full_bulkhead_refuses_and_a_place_is_free_when_a_body_has_ended() {
    let (flock, (slow, go)) = (Flock::default(), App::held_back("late").await);
    let a = flock.node("a").await;
    flock.register(slow.at("orders", "1", "a"));
    flock.policy("orders", "[bulkhead]\nmax_concurrent = 1\n");
    let mut first = Client::connect(a.addr()).await;
    first.send("GET", "orders.mesh", "/", "", b"").await;
    eventually("the first arrives", || async { (slow.requests() == 1).then_some(()) }).await;
    let refused = a.get("orders.mesh", "/").await;
    assert_eq!((refused.status, refused.header("x-starling-reason")), (503, Some("bulkhead: full (rule bulkhead)")));
    go.add_permits(2);
    assert_eq!(first.answer().await.text(), "late");
    eventually("a place", || async { Some(a.get("orders.mesh", "/").await).filter(|answer| answer.status == 200) })
        .await;
}

#[tokio::test]
async fn who_waits_for_a_place_in_the_bulkhead_gets_it() {
    let (flock, (slow, go)) = (Flock::default(), App::held_back("late").await);
    let a = flock.node("a").await;
    flock.register(slow.at("orders", "1", "a"));
    flock.policy("orders", "[bulkhead]\nmax_concurrent = 1\nqueue.max_queue = 1\nqueue.max_wait_ms = 60000\n");
    let mut clients = [Client::connect(a.addr()).await, Client::connect(a.addr()).await];
    for client in &mut clients {
        client.send("GET", "orders.mesh", "/", "", b"").await;
    }
    eventually("one arrives", || async { (slow.requests() == 1).then_some(()) }).await;
    go.add_permits(2);
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(slow.requests(), 2);
}

#[tokio::test]
async fn who_waits_for_a_place_its_pace_or_by_a_fault_waits_no_longer_than_its_client_is_there() {
    let (flock, (slow, _go)) = (Flock::default(), App::held_back("late").await);
    let a = flock.node("a").await;
    let queue = "[bulkhead]\nmax_concurrent = 1\nqueue.max_queue = 5\nqueue.max_wait_ms = 60000\n";
    let waits = [
        ("queued", queue.to_owned(), ("bulkhead", "waiting", 1)),
        (
            "paced",
            format!("{queue}[[limit]]\ncount = 1\nper_ms = 20000\nbehaviour = \"pace\"\nmax_wait_ms = 60000\n"),
            ("bulkhead", "in_flight", 1),
        ),
        ("delayed", format!("{queue}[[fault]]\nname = \"late\"\ndelay_ms = 60000\n"), ("fault", "active", 2)),
    ];
    let open = |count: u32| {
        a.metrics().contains(&format!("starling_proxy_connections{{kind=\"application\"}} {count}\n")).then_some(())
    };
    for (service, policy, (guard, shows, count)) in waits {
        flock.register(slow.at(service, "1", "a"));
        flock.policy(service, &policy);
        let host = format!("{service}.mesh");
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = Client::connect(a.addr()).await;
            client.send("GET", &host, "/", "", b"").await;
            clients.push(client);
        }
        eventually("both are here", || async { open(2) }).await;
        eventually(service, || async { (a.guard(service, guard)[shows] == count).then_some(()) }).await;
        drop(clients);
        eventually("both are gone", || async { open(0) }).await;
    }
}

#[tokio::test]
async fn the_adaptive_limit_goes_by_when_an_answer_begins_and_holds_the_place_until_it_has_ended() {
    let (flock, (send, body)) = (Flock::default(), tokio::sync::mpsc::channel(1));
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(Frames(body))));
    let app = App::answering(move |_| {
        let body = body.lock().unwrap().take().expect("one request");
        async move { hyper::Response::new(http_body_util::BodyExt::boxed(body)) }
    });
    let app = app.await;
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[concurrency]\nmeasure_calls = 1\n");
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "orders.mesh", "/", "", b"").await;
    assert_eq!(client.head().await.status, 200);
    let limit = a.guard("orders", "concurrency");
    assert!(limit["base_us"].as_f64() > Some(0.0) && limit["in_flight"] == 1, "{limit}");
    drop(send);
    assert_eq!(client.chunk().await, None);
    eventually("its place is free", || async { (a.guard("orders", "concurrency")["in_flight"] == 0).then_some(()) })
        .await;
}

#[tokio::test]
async fn a_circuit_opens_by_what_the_policy_calls_a_failure_and_spares_everybody() {
    let (flock, app) = (Flock::default(), App::answering(|_| async { text(429, "slow down") }).await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[failure]\nstatuses = [\"429\"]\n[circuit]\nconsecutive_failures = 3\nopen_ms = 600000\nmax_open_ms = 600000\n");
    for _ in 0..3 {
        assert_eq!(a.get("orders.mesh", "/").await.text(), "slow down");
    }
    let refused = a.get("orders.mesh", "/").await;
    assert_eq!((refused.status, refused.header("x-starling-reason")), (503, Some("breaker: open (rule circuit)")));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(app.requests(), 3);
}

#[tokio::test]
async fn one_key_degrades_a_service_until_its_time_is_over() {
    let (flock, app, a) = shop("[degrade]\nmode = \"force_open\"\n").await;
    let refused = a.get("orders.mesh", "/").await;
    assert_eq!(
        (refused.status, refused.header("x-starling-reason")),
        (503, Some("breaker: forced open (rule degrade)"))
    );
    flock.policy("orders", "[degrade]\nmode = \"force_open\"\ncriticality = [\"sheddable\"]\n");
    assert_eq!(a.send("GET", "orders.mesh", "/", "x-criticality: sheddable\r\n", b"").await.status, 503);
    assert_eq!(a.get("orders.mesh", "/").await.status, 200);
    flock.policy("orders", "[degrade]\nmode = \"force_open\"\nuntil = 1\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 200, "its time was over long ago");
    assert_eq!(app.requests(), 2);
}

#[tokio::test]
async fn a_fallback_stands_in_for_a_refusal_and_for_a_failure() {
    let fallback = "[fallback]\nstatus = 200\nheaders.content-type = \"text/plain\"\nbody = \"none today\"\n";
    let (flock, _app, a) = shop(&format!("[degrade]\nmode = \"force_open\"\n{fallback}")).await;
    let answer = a.get("orders.mesh", "/").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "none today"));
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(answer.header("x-starling-fallback"), Some("answer"));
    assert!(answer.header("x-starling-reason").unwrap().starts_with("breaker: forced open"), "it still says why");
    flock.register(Place { service: "down", id: "1", owner: "a", address: nowhere().await });
    flock.policy("down", fallback);
    assert_eq!(a.get("down.mesh", "/").await.text(), "none today");
    assert!(a.metrics().contains("starling_fallbacks_total{service=\"default/down\"} 1"));
}

#[tokio::test]
async fn another_service_answers_in_the_place_of_one_that_fails() {
    let (flock, other) = (Flock::default(), App::named("other").await);
    let a = flock.node("a").await;
    flock.register(Place { service: "orders", id: "1", owner: "a", address: nowhere().await });
    flock.register(other.at("pay/orders-next", "1", "a"));
    flock.policy("orders", "[fallback]\nservice = \"pay/orders-next\"\nstatus = 503\nbody = \"neither\"\n");
    let answer = a.send("POST", "orders.mesh", "/", "", b"buy").await;
    assert_eq!((answer.text().as_str(), answer.header("x-starling-fallback")), ("other", Some("pay/orders-next")));
    flock.deregister("pay/orders-next", "1");
    let answer = a.send("POST", "orders.mesh", "/", "", b"buy").await;
    assert_eq!((answer.status, answer.text().as_str()), (503, "neither"));
}

#[tokio::test]
async fn faults_are_made_for_those_they_are_meant_for_and_say_so() {
    let policy = "[[route]]\nheader.x-chaos = \"status\"\n[[route.fault]]\nname = \"teapot\"\nabort_status = 418\n\
        [[route]]\nheader.x-chaos = \"grpc\"\n[[route.fault]]\nabort_grpc = 14\n\
        [[route]]\nheader.x-chaos = \"reset\"\n[[route.fault]]\nreset = true\n\
        [[route]]\nheader.x-chaos = \"late\"\ntimeouts.request_ms = 5\n[[route.fault]]\ndelay_ms = 60000\n";
    let (_flock, app, a) = shop(policy).await;
    let chaos = async |kind: &str| a.send("GET", "orders.mesh", "/", &format!("x-chaos: {kind}\r\n"), b"").await;
    let status = chaos("status").await;
    assert_eq!(
        (status.status, status.header("x-starling-reason")),
        (418, Some("fault: fault teapot was made on purpose"))
    );
    let grpc = chaos("grpc").await;
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("14")));
    assert_eq!(chaos("late").await.status, 504);
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "orders.mesh", "/", "x-chaos: reset\r\n", b"").await;
    assert!(!client.fill().await, "the connection ends without a word");
    assert_eq!(app.requests(), 0);
    assert_eq!(chaos("none").await.status, 200);
}

#[tokio::test]
async fn a_throttled_body_holds_up_nobody_else_and_comes_whole_where_it_may() {
    let (flock, app) = (Flock::default(), App::answering(|_| async { text(200, "x".repeat(3_000)) }).await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let route = |path: &str, rate: u32| {
        format!("[[route]]\npath = \"{path}\"\n[[route.fault]]\nthrottle_bytes_per_s = {rate}\n")
    };
    flock.policy("orders", &(route("/crawls", 1) + &route("/walks", 1_000_000)));
    let mut crawls = Client::connect(a.addr()).await;
    crawls.send("GET", "orders.mesh", "/crawls", "", b"").await;
    eventually("it arrives", || async { (app.requests() == 1).then_some(()) }).await;
    for path in ["/walks", "/runs"] {
        assert_eq!(a.get("orders.mesh", path).await.body.len(), 3_000);
    }
    let soon = std::time::Duration::from_millis(1);
    assert!(tokio::time::timeout(soon, crawls.answer()).await.is_err(), "3,000 bytes take it 50 minutes");
}

#[tokio::test]
async fn a_copy_goes_to_another_service_marked_and_nobody_waits_for_it() {
    let (flock, (shadow, go)) = (Flock::default(), App::held_back("late").await);
    let app = App::named("real").await;
    let marks = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = marks.clone();
    let marked = App::answering(move |request| {
        seen.lock().unwrap().push(request.headers().get("x-starling-mirror").cloned());
        async { text(200, "copy") }
    });
    let marked = marked.await;
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.register(shadow.at("slow-shadow", "1", "a"));
    flock.register(marked.at("shadow", "1", "a"));
    flock.policy(
        "orders",
        "[[mirror]]\nname = \"slow\"\nservice = \"slow-shadow\"\nmax_in_flight = 1\ntimeout_ms = 600000\n\
         [[mirror]]\nname = \"next\"\nservice = \"shadow\"\n",
    );
    for _ in 0..3 {
        assert_eq!(a.send("POST", "orders.mesh", "/", "", b"buy").await.text(), "real");
    }
    eventually("copies", || async { (marked.requests() == 3 && shadow.requests() == 1).then_some(()) }).await;
    assert!(marks.lock().unwrap().iter().all(|mark| mark.as_ref().is_some_and(|mark| mark == "next")));
    go.add_permits(1);
}

#[tokio::test]
async fn callers_on_the_black_list_are_refused() {
    let (flock, _app, a) = shop("[callers]\ndeny = [\"orders\"]\n").await;
    let refused = a.get("orders.mesh", "/").await;
    assert_eq!(refused.status, 403, "who runs one service only calls as that service");
    assert_eq!(refused.header("x-starling-reason"), Some("list: the caller is denied (rule callers)"));
    flock.policy("orders", "[callers]\ndeny = [\"pay*\"]\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 200);
}

#[tokio::test]
async fn the_instances_breakers_are_as_the_policy_says_from_the_next_request_on() {
    let (flock, app) = (Flock::default(), App::hanging_up().await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let once = "[retry]\nmax_retries = 0\n";
    flock.policy("orders", once);
    for _ in 0..2 {
        assert_eq!(a.send("POST", "orders.mesh", "/", "", b"buy").await.status, 502);
    }
    flock.policy(
        "orders",
        &format!("{once}[breaker]\nconsecutive_failures = 1\nopen_ms = 600000\nmax_open_ms = 600000\n"),
    );
    assert_eq!(a.send("POST", "orders.mesh", "/", "", b"buy").await.status, 502);
    assert!(a.metrics().contains("starling_breakers_open{service=\"default/orders\"} 1"), "{}", a.metrics());
}

#[tokio::test]
async fn who_could_not_wait_for_a_paced_place_is_told_at_once() {
    let pace = "[timeouts]\nrequest_ms = 20000\n[[limit]]\nbehaviour = \"pace\"\nper_ms = 60000\nmax_wait_ms = 60000\n";
    let (_flock, app, a) = shop(&format!("{pace}count = 1\n")).await;
    assert_eq!(a.get("orders.mesh", "/").await.status, 200);
    let refused = a.get("orders.mesh", "/").await;
    assert_eq!((refused.status, refused.header("retry-after").is_some()), (429, true), "{refused:?}");
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn each_method_has_its_circuit_where_the_policy_says_so() {
    let app = App::answering(|request| async move {
        let fails = *request.method() == "PUT" || request.uri().path() == "/shop.Orders/Buy";
        text(if fails { 500 } else { 200 }, "")
    })
    .await;
    let flock = Flock::default();
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy(
        "orders",
        "[circuit]\nper = \"method\"\nmax_methods = 4\nconsecutive_failures = 3\nopen_ms = 600000\nmax_open_ms = 600000\n",
    );
    let plain = async |method| a.send(method, "orders.mesh", "/", "", b"").await;
    let grpc = async |path| a.send("POST", "orders.mesh", path, "content-type: application/grpc\r\n", b"").await;
    for _ in 0..3 {
        assert_eq!(plain("PUT").await.status, 500);
        grpc("/shop.Orders/Buy").await;
    }
    let refused = Some("breaker: open (rule circuit)");
    assert_eq!(plain("PUT").await.header("x-starling-reason"), refused);
    assert_eq!(grpc("/shop.Orders/Buy?of=7").await.header("x-starling-reason"), refused);
    assert_eq!((plain("GET").await.status, grpc("/shop.Orders/Show").await.status), (200, 200));
    assert_eq!(plain("DELETE").await.status, 200);
    let circuit = a.guard("orders", "circuit");
    let states: Vec<_> =
        circuit["methods"].as_object().unwrap().iter().map(|(name, one)| (name, &one["state"])).collect();
    let expected = [("/shop.Orders/Buy", "open"), ("/shop.Orders/Show", "closed"), ("GET", "closed"), ("PUT", "open")];
    assert!(states.iter().map(|(name, state)| (name.as_str(), state.as_str().unwrap())).eq(expected), "{circuit}");
    assert_eq!(circuit["calls"], 1, "the fifth shares what is for all the rest");
}

#[tokio::test]
async fn a_caller_without_permission_opens_no_circuit() {
    let (flock, app, a) = shop("[circuit]\nconsecutive_failures = 2\nopen_ms = 600000\nmax_open_ms = 600000\n").await;
    flock.document("access", "orders", "[[allow]]\ncallers = [\"till\"]");
    for _ in 0..3 {
        let refused = a.get("orders.mesh", "/").await;
        assert_eq!(refused.status, 403, "{refused:?}");
    }
    flock.document("access", "orders", "[[allow]]\ncallers = [\"*\"]");
    assert_eq!(a.get("orders.mesh", "/").await.status, 200, "others were never kept out");
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn what_failsafe_keeps_from_the_caller_it_does_not_keep_from_the_circuit() {
    let (flock, app) = (Flock::default(), App::answering(|_| async { text(500, "broken") }).await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let policy = "[retry]\nmax_retries = 0\n[tolerate]\nmode = \"failsafe\"\n[failure]\nresets = false\n\
        [circuit]\nconsecutive_failures = 2\nopen_ms = 600000\nmax_open_ms = 600000\n";
    flock.policy("orders", policy);
    for _ in 0..2 {
        assert_eq!(a.get("orders.mesh", "/").await.status, 204);
    }
    let refused = a.get("orders.mesh", "/").await;
    assert_eq!(refused.header("x-starling-reason"), Some("breaker: open (rule circuit)"));
}

#[tokio::test]
async fn a_fallback_gives_the_caller_no_more_time_than_it_said_it_has() {
    let (flock, (slow, _go), (other, _on)) =
        (Flock::default(), App::held_back("late").await, App::held_back("later").await);
    let a = flock.node("a").await;
    flock.register(slow.at("slow", "1", "a"));
    flock.register(Place { service: "down", id: "1", owner: "a", address: nowhere().await });
    flock.register(other.at("other", "1", "a"));
    flock.policy("*", "[timeouts]\nrequest_ms = 600000\n[retry]\nmax_retries = 0\n");
    let fallback = "[fallback]\nservice = \"other\"\nstatus = 503\nbody = \"neither\"\n";
    for service in ["slow", "down"] {
        flock.policy(service, fallback);
        let asked = a.send("GET", &format!("{service}.mesh"), "/", "x-starling-deadline-ms: 500\r\n", b"").await;
        assert_eq!((asked.status, asked.text().as_str()), (503, "neither"));
        assert!(service == "down" || other.requests() == 0, "whose time is over is not asked for elsewhere");
    }
}

#[tokio::test]
async fn connecting_takes_no_longer_than_the_request_may() {
    let flock = Flock::default();
    let full = tokio::net::TcpSocket::new_v4().unwrap();
    full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    // One may wait to be accepted, and one more (as Linux counts); who comes after them is not answered.
    let full = full.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let _waiting = [(); 2].map(|()| std::net::TcpStream::connect(address).unwrap());
    let a = flock.node("a").await;
    flock.register(Place { service: "orders", id: "1", owner: "a", address });
    flock.policy("orders", "[timeouts]\nrequest_ms = 300\nconnect_ms = 60000\n[retry]\nmax_retries = 0\n");
    let answer = a.get("orders.mesh", "/").await;
    let reason = answer.header("x-starling-reason").unwrap();
    let (_, limit) = reason.split_once(&format!("no connection to {address} within ")).expect(reason);
    assert!(limit.split_once(" ms").unwrap().0.parse::<u64>().unwrap() <= 300, "{reason}");
}

#[tokio::test]
async fn a_switch_turned_from_all_to_some_classes_lets_the_others_pass_the_circuit_again() {
    let (flock, _app, a) = shop("[circuit]\n[degrade]\nmode = \"force_open\"\n").await;
    assert_eq!(a.get("orders.mesh", "/").await.status, 503);
    flock.policy("orders", "[circuit]\n[degrade]\nmode = \"force_open\"\ncriticality = [\"sheddable\"]\n");
    assert_eq!(a.send("GET", "orders.mesh", "/", "x-criticality: sheddable\r\n", b"").await.status, 503);
    assert_eq!(a.get("orders.mesh", "/").await.status, 200);
}

#[tokio::test]
async fn a_circuit_heeds_until_when_an_answer_says_to_stay_away_whatever_its_clock_shows() {
    let head = "HTTP/1.1 503 Busy\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
        retry-after: Sun, 06 Nov 1994 08:54:37 GMT\r\ncontent-length: 0\r\n\r\n";
    let (flock, app) = (Flock::default(), App::saying(head).await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[retry]\nmax_retries = 0\n[circuit]\nmax_retry_after_ms = 600000\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 503);
    let refused = a.get("orders.mesh", "/").await;
    assert_eq!(refused.header("x-starling-reason"), Some("breaker: open (rule circuit)"));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((240..=300).contains(&seconds), "five minutes by its clock, less what has passed: {seconds}");
}

#[tokio::test]
async fn a_circuit_heeds_how_long_an_answer_of_grpc_says_to_stay_away() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 14\r\n\
        grpc-retry-pushback-ms: 300000\r\ncontent-length: 0\r\n\r\n";
    let (flock, app) = (Flock::default(), App::saying(head).await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[retry]\nmax_retries = 0\n[circuit]\nmax_retry_after_ms = 600000\n");
    assert_eq!(a.get("orders.mesh", "/").await.header("grpc-status"), Some("14"));
    let refused = a.get("orders.mesh", "/").await;
    assert_eq!(refused.header("x-starling-reason"), Some("breaker: open (rule circuit)"));
}

#[tokio::test]
async fn a_fault_slows_down_no_more_bodies_at_once_than_it_may() {
    let (flock, app) = (Flock::default(), App::answering(|_| async { text(200, "x".repeat(3_000)) }).await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[[fault]]\nthrottle_bytes_per_s = 1\nmax_active = 1\n");
    let mut crawls = Client::connect(a.addr()).await;
    crawls.send("GET", "orders.mesh", "/", "", b"").await;
    eventually("it arrives", || async { (app.requests() == 1).then_some(()) }).await;
    let spared = tokio::time::timeout(std::time::Duration::from_secs(60), a.get("orders.mesh", "/")).await;
    assert_eq!(spared.expect("3,000 bytes at a byte a second").body.len(), 3_000);
}

#[tokio::test]
async fn a_bad_document_for_all_services_takes_no_service_its_own_even_after_a_restart() {
    let (flock, app) = (Flock::default(), App::named("well").await);
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[[limit]]\nname = \"own\"\ncount = 1\nper_ms = 3600000\n");
    // No TOML; good by itself, but not over this node's settings; routes, which it cannot have.
    for bad in [
        "no toml",
        "[breaker]\nopen_ms = 5000\nmax_open_ms = 5000\n[[route]]\npath = \"/\"\n",
        "[breaker]\nmax_open_ms = 1500\n",
    ] {
        flock.policy("*", bad);
        // A node that has just started has no last good one of either.
        let a = flock.node_with("a", |settings| settings.breaker.open_ms = 2_000).await;
        assert_eq!(a.get("orders.mesh", "/").await.status, 200);
        let refused = a.get("orders.mesh", "/").await;
        assert_eq!(refused.header("x-starling-reason"), Some("rate: over the rate (rule own)"), "{bad}");
        assert!(a.metrics().contains("starling_policy_problems{service=\"default/orders\"} 1"), "{bad}");
        let judgement = a.proxy.governor().judgement(&service_key("orders"));
        assert_eq!(
            [judgement.mesh.state, judgement.service.state],
            [LayerState::LeftOut, LayerState::InForce],
            "{bad}"
        );
    }
}

#[tokio::test]
async fn a_document_for_all_services_that_turns_bad_stays_as_it_was() {
    let (flock, _app, a) = shop("[timeouts]\nrequest_ms = 9000\n").await;
    flock.policy("*", "[degrade]\nmode = \"force_open\"\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 503);
    flock.policy("*", "[degrade]\nmode = \"force_opne\"\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 503);
    let state = |a: &Bird| a.proxy.governor().judgement(&service_key("orders")).mesh.state;
    assert_eq!(state(&a), LayerState::LastGood);
    flock.policy("*", "");
    assert_eq!((a.get("orders.mesh", "/").await.status, state(&a)), (200, LayerState::Absent));
}

#[tokio::test]
async fn a_route_that_switches_itself_back_answers_while_its_service_is_degraded() {
    let degraded = "[circuit]\n[degrade]\nmode = \"force_open\"\n";
    let (flock, app, a) = shop(&format!("{degraded}[[route]]\npath = \"/pay\"\ndegrade.mode = \"auto\"\n")).await;
    assert_eq!(a.get("orders.mesh", "/").await.status, 503);
    assert_eq!(a.get("orders.mesh", "/pay").await.text(), "well");
    // And so does a service while all are.
    flock.policy("*", degraded);
    flock.policy("orders", "[degrade]\nmode = \"auto\"\n");
    assert_eq!(a.get("orders.mesh", "/").await.text(), "well");
    assert_eq!(app.requests(), 2);
}

#[tokio::test]
async fn a_limit_is_counted_by_the_traffic_of_the_route_it_is_related_to() {
    let policy = "[[route]]\nname = \"read\"\npath = \"/read\"\n\
        [[route.limit]]\nname = \"reads\"\nrelated = \"write\"\ncount = 2\nper_ms = 3600000\n\
        [[route]]\nname = \"write\"\npath = \"/write\"\n";
    let (_flock, _app, a) = shop(policy).await;
    let mut told = Vec::new();
    for path in ["/read", "/read", "/read", "/write", "/read", "/write", "/read", "/write"] {
        told.push(a.get("orders.mesh", path).await.status);
    }
    assert_eq!(told, [200, 200, 200, 200, 200, 200, 429, 200], "while two of the other's have passed lately");
}

#[tokio::test]
async fn a_document_is_tried_on_what_was_asked_beside_what_was_refused() {
    let (flock, app) = (Flock::default(), App::named("well").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    assert_eq!(a.tried("orders", "[circuit]\n")["requests"], 0, "nobody has asked");
    flock.policy("orders", "[[limit]]\nname = \"old\"\ncount = 5\nper_ms = 3600000\n");
    for path in ["/pay?a=1", "/pay", "/", "/", "/", "/"] {
        a.send("GET", "orders.mesh", path, "x-tier: gold\r\n", b"").await;
    }
    eventually("all have ended", || async { (a.tried("orders", "")["requests"] == 6).then_some(()) }).await;
    let route = "[[route]]\nname = \"pay\"\npath = \"/pay\"\nheader.x-tier = \"gold\"\nlimit = [{ name = \"one\", count = 1, per_ms = 3600000 }]\n";
    let trial = a.tried("orders", route);
    let refused = |place: usize| {
        let row = &trial["refusals"][place];
        (row["why"].as_str().unwrap(), row["was"].as_u64().unwrap(), row["would"].as_u64().unwrap())
    };
    assert_eq!(refused(0), ("over the rate (rule old)", 1, 0));
    assert_eq!(refused(1), ("over the rate (rule one)", 0, 1));
    let old = a.tried("orders", "[[limit]]\nname = \"old\"\ncount = 5\nper_ms = 3600000\n");
    assert_eq!((&old["refusals"][0]["was"], &old["refusals"][0]["would"]), (&1.into(), &1.into()), "as it was");
    assert_eq!(a.get("orders.mesh", "/").await.status, 429, "and the limit in force lost nothing by it");
}
