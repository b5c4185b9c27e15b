//! HTTP/2 and gRPC: by prior knowledge in, to instances that speak it out, through one sidecar and through two, and
//! translated where the ends speak differently.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Response};
use starling_core::registry::Protocol;
use support::http2::*;
use support::*;

/// Registers an application that speaks HTTP/2 once on this node and once on the other.
fn near_and_far(flock: &Flock, app: &App2, protocol: Protocol) {
    flock.register_as(app.at("near", "1", "a"), |view| change(view, |i| i.protocol = protocol));
    flock.register_as(app.at("far", "1", "b"), |view| change(view, |i| i.protocol = protocol));
}

fn trailers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let value = |value| HeaderValue::from_str(value).expect("a value");
    fields.iter().map(|(name, text)| (name.parse().expect("a name"), value(text))).collect()
}

#[tokio::test]
async fn requests_by_http2_reach_instances_of_http2_through_one_sidecar_and_through_two() {
    let (flock, app) = (Flock::default(), App2::echo().await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    near_and_far(&flock, &app, Protocol::Http2);
    let caller = Caller::connect(a.addr()).await;
    for service in ["near.mesh", "far.mesh"] {
        assert_eq!(caller.get(service, "/").await.status, 200);
        for body in [&b"hello"[..], &[7; 10_000], &[8; 200_000]] {
            let heard = caller.send(request("POST", service, "/x?y=1"), body.to_vec()).await;
            assert_eq!((heard.status, heard.body.len()), (200, body.len()), "{service}");
            assert!(heard.header("x-starling-trace").is_some(), "{:?}", heard.headers);
        }
    }
}

#[tokio::test]
async fn a_unary_call_of_grpc_keeps_its_trailers_and_an_answer_of_only_trailers_stays_one() {
    let flock = Flock::default();
    let app = App2::answering(|request, mut respond| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert!(request.headers().get("content-length").is_none());
        let mut response = Response::new(());
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let mut body = request.into_body();
        let message = body.data().await.unwrap().unwrap();
        if message == "fail" {
            response.headers_mut().extend(trailers(&[("grpc-status", "9"), ("grpc-message", "not now")]));
            respond.send_response(response, true).unwrap();
            return;
        }
        let mut back = respond.send_response(response, false).unwrap();
        back.send_data(message, false).unwrap();
        back.send_trailers(trailers(&[("grpc-status", "0"), ("x-more", "yes")])).unwrap();
    })
    .await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    near_and_far(&flock, &app, Protocol::Grpc);
    let caller = Caller::connect(a.addr()).await;
    for service in ["near.mesh", "far.mesh"] {
        let heard = caller.send(grpc(service), "hello").await;
        assert_eq!((heard.status, heard.text().as_str(), heard.bare), (200, "hello", false));
        assert_eq!((heard.trailer("grpc-status"), heard.trailer("x-more")), (Some("0"), Some("yes")), "{heard:?}");
        let heard = caller.send(grpc(service), "fail").await;
        assert_eq!((heard.header("grpc-status"), heard.bare), (Some("9"), true), "{heard:?}");
        assert!(heard.header("content-length").is_none(), "{heard:?}");
    }
    assert_eq!(app.connections.load(SeqCst), 2, "one of each sidecar");
}

#[tokio::test]
async fn a_call_of_grpc_that_fails_behind_its_messages_has_failed_for_circuits_breakers_and_counts() {
    let flock = Flock::default();
    let app = App2::answering(|request, mut respond| async move {
        let message = request.into_body().data().await.unwrap().unwrap();
        let mut response = Response::new(());
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let mut back = respond.send_response(response, false).unwrap();
        let code = if message == "fail" { "14" } else { "0" };
        back.send_data(message, false).unwrap();
        back.send_trailers(trailers(&[("grpc-status", code)])).unwrap();
    })
    .await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    near_and_far(&flock, &app, Protocol::Grpc);
    flock.policy(
        "near",
        "[breaker]\nconsecutive_failures = 1000\nmin_calls = 1000\n\
         [circuit]\nconsecutive_failures = 3\nopen_ms = 600000\nmax_open_ms = 600000\n",
    );
    let caller = Caller::connect(a.addr()).await;
    for service in ["near.mesh", "far.mesh"] {
        assert_eq!(caller.send(grpc(service), "hello").await.trailer("grpc-status"), Some("0"));
        for _ in 0..3 {
            let heard = caller.send(grpc(service), "fail").await;
            assert_eq!((heard.text().as_str(), heard.trailer("grpc-status")), ("fail", Some("14")), "{heard:?}");
        }
    }
    let refused = caller.send(grpc("near.mesh"), "hello").await;
    assert_eq!(refused.header("x-starling-reason"), Some("breaker: open (rule circuit)"), "{refused:?}");
    for _ in 0..2 {
        caller.send(grpc("far.mesh"), "fail").await;
    }
    let metrics = a.metrics();
    for counted in [
        "starling_breaker_opens_total{service=\"default/far\"} 1\n",
        "starling_breaker_opens_total{service=\"default/near\"} 0\n",
        "starling_requests_total{service=\"default/far\",direction=\"outbound\",class=\"5xx\"} 5\n",
        "starling_requests_total{service=\"default/far\",direction=\"outbound\",class=\"2xx\"} 1\n",
    ] {
        assert!(metrics.contains(counted), "{counted}: {metrics}");
    }
}

#[tokio::test]
async fn clients_and_instances_of_different_versions_are_translated_both_ways() {
    let flock = Flock::default();
    let (old, new) =
        (App::answering(|request| async move { text(200, request.uri().path()) }).await, App2::named("new").await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    near_and_far(&flock, &new, Protocol::Http2);
    flock.register(old.at("near-old", "1", "a"));
    flock.register(old.at("far-old", "1", "b"));
    let caller = Caller::connect(a.addr()).await;
    for service in ["near-old", "far-old"] {
        let heard = caller.get(service, "/path").await;
        assert_eq!((heard.status, heard.text().as_str()), (200, "/path"));
        let heard = caller.send(request("HEAD", service, "/path"), "").await;
        assert_eq!((heard.status, heard.header("content-length"), heard.bare), (200, Some("5"), true));
        let careful = request("POST", service, "/path").header("expect", "100-continue");
        assert_eq!(caller.send(careful, vec![7; 200_000]).await.text(), "/path");
    }
    for service in ["near", "far"] {
        let answer = a.get(service, "/").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "new"), "{answer:?}");
        let answer = a.send("HEAD", service, "/", "", b"").await;
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn both_directions_of_a_stream_move_while_neither_has_ended() {
    let (flock, app) = (Flock::default(), App2::echo().await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    near_and_far(&flock, &app, Protocol::Grpc);
    let caller = Caller::connect(a.addr()).await;
    for service in ["near.mesh", "far.mesh"] {
        let (response, mut to) = caller.begin(grpc(service), false).await;
        to.send_data(Bytes::from_static(b"first"), false).unwrap();
        let response =
            tokio::time::timeout(PATIENCE, response).await.expect("a head while the request goes on").unwrap();
        let mut body = response.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "first");
        for round in 0..20 {
            let said = format!("round {round}");
            to.send_data(said.clone().into(), false).unwrap();
            let heard = tokio::time::timeout(PATIENCE, body.data()).await.expect("an echo in time").unwrap().unwrap();
            assert_eq!(heard, said);
        }
        to.send_trailers(trailers(&[("x-end", "1")])).unwrap();
        assert!(body.data().await.is_none());
        assert_eq!(body.trailers().await.unwrap().unwrap()["x-end"], "1");
    }
}

#[tokio::test]
async fn the_sidecars_own_answers_are_statuses_of_grpc_to_whoever_speaks_it() {
    let flock = Flock::default();
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    let gone = Place { service: "gone", id: "1", owner: "b", address: nowhere().await };
    flock.register_as(gone, |view| change(view, |i| i.protocol = Protocol::Grpc));
    let caller = Caller::connect(a.addr()).await;
    for (host, status, reason) in [
        ("nobody.mesh", "14", "no_such_service"),
        ("gone.mesh", "14", "connect_failed"),
        ("example.org", "12", "not_a_mesh_name"),
    ] {
        let heard = caller.send(grpc(host), "hello").await;
        assert_eq!((heard.status, heard.bare, heard.header("grpc-status")), (200, true, Some(status)), "{heard:?}");
        assert_eq!(heard.header("content-type"), Some("application/grpc"));
        assert!(heard.header("x-starling-reason").unwrap().starts_with(reason), "{heard:?}");
        assert!(heard.header("grpc-message").unwrap().starts_with(reason), "{heard:?}");
    }
    let heard = caller.get("nobody.mesh", "/").await;
    assert_eq!((heard.status, heard.header("content-type")), (503, Some("application/json")), "others hear HTTP");
}

/// An application that never answers, and counts those who came and those who gave up.
async fn waiting() -> (App2, Arc<AtomicUsize>) {
    let given_up = Arc::<AtomicUsize>::default();
    let count = given_up.clone();
    let app = App2::answering(move |_, mut respond| {
        let count = count.clone();
        async move {
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.expect("a reset");
            assert_eq!(reason, Reason::CANCEL);
            count.fetch_add(1, SeqCst);
        }
    });
    (app.await, given_up)
}

#[tokio::test]
async fn a_caller_that_cancels_stops_the_work_and_so_does_its_deadline() {
    let (flock, (app, given_up)) = (Flock::default(), waiting().await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    near_and_far(&flock, &app, Protocol::Grpc);
    let caller = Caller::connect(a.addr()).await;
    for (n, service) in [(1, "near.mesh"), (3, "far.mesh")] {
        let (response, mut to) = caller.begin(grpc(service), false).await;
        to.send_data(Bytes::from_static(b"hello"), false).unwrap();
        eventually("it arrives", || async { (app.requests() == n).then_some(()) }).await;
        to.send_reset(Reason::CANCEL);
        drop(response);
        eventually("the work is given up", || async { (given_up.load(SeqCst) == n).then_some(()) }).await;
        let heard = caller.send(grpc(service).header("grpc-timeout", "50m"), "hello").await;
        assert_eq!((heard.header("grpc-status"), heard.bare), (Some("4"), true), "{heard:?}");
        eventually("the work is given up", || async { (given_up.load(SeqCst) == n + 1).then_some(()) }).await;
    }
}

#[tokio::test]
async fn a_quiet_call_of_grpc_waits_as_long_as_its_caller_and_others_do_not() {
    let flock = Flock::default();
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = go.clone();
    let app = App2::answering(move |_, respond| {
        let gate = gate.clone();
        async move {
            let _ = gate.acquire().await;
            say(respond, Response::new(()), b"at last");
        }
    })
    .await;
    let a = flock.node_with("a", |settings| settings.request_timeout_ms = 50).await;
    let _b = flock.node_with("b", |settings| settings.request_timeout_ms = 50).await;
    near_and_far(&flock, &app, Protocol::Grpc);
    let caller = Caller::connect(a.addr()).await;
    let (near, _) = caller.begin(grpc("near"), true).await;
    let (far, _) = caller.begin(grpc("far"), true).await;
    for service in ["near", "far"] {
        assert_eq!(caller.get(service, "/").await.status, 504);
    }
    go.add_permits(2);
    for response in [near, far] {
        assert_eq!(hear(response).await.unwrap().text(), "at last");
    }
}

#[tokio::test]
async fn an_instance_that_breaks_off_its_answer_is_not_taken_for_one_that_ended_it() {
    let flock = Flock::default();
    let app = App2::answering(|request, mut respond| async move {
        let mut response = Response::new(());
        if let Some(kind) = request.headers().get("content-type") {
            response.headers_mut().insert("content-type", kind.clone());
        }
        let mut back = respond.send_response(response, false).unwrap();
        back.send_data(Bytes::from_static(b"some of "), false).unwrap();
        // So that it leaves before the reset does.
        let _ = push(&mut back, Bytes::from(vec![0; 1_000_000])).await;
        back.send_reset(Reason::CANCEL);
    })
    .await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    near_and_far(&flock, &app, Protocol::Http2);
    let caller = Caller::connect(a.addr()).await;
    for service in ["near", "far"] {
        let error = caller.try_send(request("GET", service, "/"), "").await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}");
        let heard = caller.send(grpc(service), "hello").await;
        assert_eq!(heard.trailer("grpc-status"), Some("14"), "{:?}", heard.trailers);
    }
}

#[tokio::test]
async fn an_instance_whose_calls_fail_is_taken_out_though_it_answers_200() {
    let flock = Flock::default();
    let bad = App2::answering(|_, mut respond| async move {
        let mut response = Response::new(());
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
        respond.send_response(response, true).unwrap();
    })
    .await;
    let (good, a) = (App2::named("good").await, flock.node("a").await);
    for (app, id) in [(&bad, "1"), (&good, "2")] {
        flock.register_as(app.at("orders", id, "a"), |view| change(view, |i| i.protocol = Protocol::Grpc));
    }
    let caller = Caller::connect(a.addr()).await;
    for _ in 0..60 {
        caller.send(grpc("orders"), "hello").await;
    }
    let asked = bad.requests();
    for _ in 0..20 {
        assert_eq!(caller.send(grpc("orders"), "hello").await.text(), "good");
    }
    assert_eq!(bad.requests(), asked);
    assert!(a.metrics().contains("class=\"5xx\""), "its failures are counted as such: {}", a.metrics());
}

#[tokio::test]
async fn what_http2_cannot_say_is_refused_at_once_and_is_no_fault_of_the_instance() {
    let (flock, app) = (Flock::default(), App2::named("well").await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    near_and_far(&flock, &app, Protocol::Http2);
    for service in ["near", "far"] {
        // As often as would open a breaker.
        for _ in 0..10 {
            let answer = a.get(service, "/a<b>").await;
            let reason = answer.header("x-starling-reason").unwrap_or_default().to_owned();
            assert_eq!(answer.status, 400, "{service}: {reason}");
            assert!(reason.contains("HTTP/2, which cannot say the request"), "{reason}");
        }
        assert_eq!(a.get(service, "/").await.text(), "well", "{service}: others are served as before");
    }
    let metrics = a.metrics();
    for counter in ["starling_breaker_opens_total{", "starling_retries_total{"] {
        let mut counts = metrics.lines().filter(|line| line.starts_with(counter)).peekable();
        assert!(counts.peek().is_some() && counts.all(|line| line.ends_with(" 0")), "{metrics}");
    }
}

#[tokio::test]
async fn a_connection_whose_client_never_answers_the_farewell_ends_all_the_same() {
    let (flock, app) = (Flock::default(), App2::named("well").await);
    let a = flock.node_with("a", |settings| settings.http2.idle_timeout_ms = 1_000).await;
    near_and_far(&flock, &app, Protocol::Http2);
    let mut raw = Raw::connect(a.addr()).await;
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "near"), (":path", "/")];
    raw.head(1, &head, true).await;
    assert_eq!(raw.outcome(1).await, Outcome::Well);
    let (no_stream, no_error) = (u32::MAX, Outcome::Ended(0));
    let mut outcomes = [raw.outcome(no_stream).await, Outcome::Closed];
    while outcomes[0] == no_error {
        outcomes = [raw.outcome(no_stream).await, outcomes[0]];
    }
    assert_eq!(outcomes, [Outcome::Closed, no_error], "it is told to go, and then closed");
}

#[tokio::test]
async fn a_node_that_leaves_does_not_wait_for_clients_that_never_answer_the_farewell() {
    let (flock, app) = (Flock::default(), App2::named("well").await);
    let a = flock.node("a").await;
    near_and_far(&flock, &app, Protocol::Http2);
    let mut raw = Raw::connect(a.addr()).await;
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "near"), (":path", "/")];
    raw.head(1, &head, true).await;
    assert_eq!(raw.outcome(1).await, Outcome::Well);
    a.proxy.leave();
    let mut outcome = raw.outcome(u32::MAX).await;
    while outcome == Outcome::Ended(0) {
        outcome = raw.outcome(u32::MAX).await;
    }
    assert_eq!(outcome, Outcome::Closed, "long before it would be closed for being idle");
}

#[tokio::test]
async fn trailers_beyond_the_bound_end_their_message_at_once() {
    let trailers = "x-many: 1\r\n".repeat(150);
    let flock = Flock::default();
    let body = format!("transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{trailers}\r\n");
    let (talks, hears) = (
        App::saying(format!("HTTP/1.1 200 OK\r\n{body}")).await,
        App2::answering(|mut request, respond| async move {
            while let Some(Ok(_)) = request.body_mut().data().await {}
            if request.body_mut().trailers().await.is_ok() {
                say(respond, Response::new(()), b"all of it came");
            }
        })
        .await,
    );
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    near_and_far(&flock, &hears, Protocol::Http2);
    flock.register(talks.at("talks", "1", "a"));
    let caller = Caller::connect(a.addr()).await;
    let (response, _) = caller.begin(request("GET", "talks", "/"), true).await;
    assert!(hear(response).await.is_err(), "an answer that is not whole");
    for service in ["near", "far"] {
        let mut client = Client::connect(a.addr()).await;
        let head = format!("POST / HTTP/1.1\r\nhost: {service}\r\n{body}");
        tokio::io::AsyncWriteExt::write_all(&mut client.stream, head.as_bytes()).await.expect("it is taken");
        let answer = client.answer().await;
        let reason = answer.header("x-starling-reason").unwrap_or_default();
        assert_eq!(answer.status, 400, "{service}: {answer:?}");
        assert!(reason.contains("HTTP/2, which cannot say the request"), "{reason}");
    }
}
