//! HTTP/2 and gRPC: by prior knowledge in, to instances that speak it out, through one sidecar and through two, and
//! translated where the ends speak differently.

mod support;

use bytes::Bytes;
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
    assert_eq!(app.connections.load(std::sync::atomic::Ordering::SeqCst), 2, "one of each sidecar");
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
