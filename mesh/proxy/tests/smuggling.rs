//! What somebody may try who knows that HTTP/2 is translated: no message may mean one thing here and another there.

mod support;

use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use support::http2::*;
use support::*;

const GOOD: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":authority", "orders"), (":path", "/")];
const PROTOCOL_ERROR: Outcome = Outcome::Reset(1);

/// An HTTP/1.1 application that writes down every request it is given.
async fn witness() -> (App, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let book = seen.clone();
    let app = App::answering(move |request| {
        let book = book.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let mut lines = vec![format!("{} {}", parts.method, parts.uri)];
            lines.extend(parts.headers.iter().map(|(name, value)| format!("{name}: {value:?}")));
            lines.push(String::from_utf8_lossy(&body).into_owned());
            book.lock().expect("no panic").push(lines.join("\n"));
            text(200, "seen")
        }
    });
    (app.await, seen)
}

/// The good head with some fields replaced (by name) and others added.
fn with<'a>(fields: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let kept = GOOD.iter().filter(|(name, _)| !fields.iter().any(|(other, _)| other == name));
    let (pseudo, others): (Vec<_>, Vec<_>) = kept.chain(fields).copied().partition(|(name, _)| name.starts_with(':'));
    pseudo.into_iter().chain(others).collect()
}

#[tokio::test]
async fn heads_that_could_be_read_in_two_ways_reach_nobody() {
    let (flock, (app, seen)) = (Flock::default(), witness().await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let long = "x".repeat(20_000);
    let huge = "x".repeat(70_000);
    let lines: [(&str, Vec<(&str, &str)>); 31] = [
        ("a line end in a value", with(&[("x", "a\r\nx-evil: 1")])),
        ("a line feed in a value", with(&[("x", "a\nx-evil: 1")])),
        ("a carriage return in a value", with(&[("x", "a\rx-evil: 1")])),
        ("a zero in a value", with(&[("x", "a\0b")])),
        ("a line end in a name", with(&[("x\r\nx-evil", "1")])),
        ("a colon in a name", with(&[("x:y", "1")])),
        ("a space in a name", with(&[("x y", "1")])),
        ("an empty name", with(&[("", "1")])),
        ("a name in upper case", with(&[("Host", "admin")])),
        ("a line end in the path", with(&[(":path", "/ HTTP/1.1\r\nx-evil: 1")])),
        ("a space in the path", with(&[(":path", "/a b")])),
        ("no path", with(&[(":path", "")])),
        ("a path that is none", with(&[(":path", "x")])),
        ("a line end in the method", with(&[(":method", "GET / HTTP/1.1\r\n")])),
        ("a space in the method", with(&[(":method", "GET /admin HTTP/1.1")])),
        ("an empty method", with(&[(":method", "")])),
        ("a line end in the authority", with(&[(":authority", "orders\r\nx-evil: 1")])),
        ("a space in the authority", with(&[(":authority", "orders admin")])),
        ("another host", with(&[("host", "admin")])),
        (
            "two hosts",
            vec![(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "orders"), ("host", "admin")],
        ),
        ("a transfer coding", with(&[("transfer-encoding", "chunked")])),
        ("a connection field", with(&[("connection", "x-starling-hops")])),
        ("an upgrade", with(&[("upgrade", "h2c")])),
        ("keep-alive", with(&[("keep-alive", "5")])),
        ("a te that is not trailers", with(&[("te", "gzip, trailers")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "5")])),
        ("a length that is no number", with(&[("content-length", "+0")])),
        (
            "two paths",
            vec![
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":path", "/admin"),
                (":authority", "orders"),
            ],
        ),
        (
            "a pseudo field behind others",
            vec![(":method", "GET"), (":scheme", "http"), ("x", "y"), (":path", "/"), (":authority", "orders")],
        ),
        ("a pseudo field of responses", with(&[(":status", "200")])),
        ("a head that is too large", with(&[("a", &long), ("b", &long), ("c", &long), ("d", &huge)])),
    ];
    for (what, head) in lines {
        let mut raw = Raw::connect(a.addr()).await;
        raw.head(1, &head, true).await;
        let outcome = raw.outcome(1).await;
        assert_ne!(outcome, Outcome::Well, "{what}");
        assert!(seen.lock().expect("no panic").is_empty(), "{what} ({outcome:?}): {seen:?}");
    }
    let many: Vec<(&str, &str)> = GOOD.into_iter().chain((0..150).map(|_| ("x-many", "1"))).collect();
    let mut raw = Raw::connect(a.addr()).await;
    raw.head(1, &many, true).await;
    assert_eq!(raw.outcome(1).await, Outcome::Refused, "more fields than are taken");
    assert!(seen.lock().expect("no panic").is_empty());
    let mut raw = Raw::connect(a.addr()).await;
    raw.head(1, &GOOD, true).await;
    assert_eq!(raw.outcome(1).await, Outcome::Well, "the good one is good");
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_it_was_said_to_be_reaches_nobody_whole() {
    let (flock, (app, seen)) = (Flock::default(), witness().await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    for (length, frames, ends) in [
        ("5", &[&b"hel"[..]][..], true),
        ("5", &[b"hello GET /admin HTTP/1.1\r\nhost: orders\r\n\r\n"], true),
        ("0", &[b"GET /admin HTTP/1.1\r\n\r\n"], true),
        ("5", &[b"hel", b"lo!"], false),
    ] {
        let mut raw = Raw::connect(a.addr()).await;
        raw.head(1, &with(&[("content-length", length)]), false).await;
        for (i, frame) in frames.iter().enumerate() {
            raw.frame(0, u8::from(ends && i + 1 == frames.len()), 1, frame).await;
        }
        assert_eq!(raw.outcome(1).await, PROTOCOL_ERROR, "{length} {frames:?}");
    }
    // Who says that there is no body has said all, before anybody knows what comes next; that is heard by nobody.
    assert!(seen.lock().expect("no panic").iter().all(|request| request.ends_with('\n')), "{seen:?}");
    let mut raw = Raw::connect(a.addr()).await;
    raw.head(1, &with(&[("content-length", "5")]), true).await;
    assert_eq!(raw.outcome(1).await, PROTOCOL_ERROR, "a length and no body");
}

#[tokio::test]
async fn a_body_that_looks_like_chunks_or_a_request_is_only_a_body() {
    let (flock, (app, seen)) = (Flock::default(), witness().await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(app.at("near", "1", "a"));
    flock.register(app.at("far", "1", "b"));
    let evil = "0\r\n\r\nGET /admin HTTP/1.1\r\nhost: near\r\n\r\n";
    for service in ["near", "far"] {
        let mut raw = Raw::connect(a.addr()).await;
        raw.head(1, &with(&[(":authority", service)]), false).await;
        for byte in evil.as_bytes() {
            raw.frame(0, 0, 1, &[*byte]).await;
        }
        raw.frame(0, 1, 1, &[]).await;
        assert_eq!(raw.outcome(1).await, Outcome::Well);
    }
    let seen = seen.lock().expect("no panic");
    assert!(seen.len() == 2 && seen.iter().all(|request| request.ends_with(evil)), "{seen:?}");
}

#[tokio::test]
async fn trailers_cannot_add_what_a_head_could_not_say() {
    let (flock, app) = (Flock::default(), App2::echo().await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register_as(app.at("orders", "1", "b"), |view| {
        change(view, |instance| instance.protocol = starling_core::registry::Protocol::Http2);
    });
    let caller = Caller::connect(a.addr()).await;
    let (response, mut to) = caller.begin(request("POST", "orders", "/"), false).await;
    to.send_data("hello".into(), false).expect("it is taken");
    let mut trailers = http::HeaderMap::new();
    for name in ["x-fine", "content-length", "host", "x-starling-reason", "x-starling-caller-node"] {
        trailers.insert(name, http::HeaderValue::from_static("5"));
    }
    to.send_trailers(trailers).expect("they are taken");
    let heard = hear(response).await.expect("an answer");
    let names: Vec<&str> = heard.trailers.iter().flatten().map(|(name, _)| name.as_str()).collect();
    assert_eq!((heard.text().as_str(), names), ("hello", vec!["x-fine"]));
}

#[tokio::test]
async fn what_only_sidecars_may_say_is_taken_from_applications_and_their_cookies_are_joined() {
    let (flock, (app, seen)) = (Flock::default(), witness().await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let mut raw = Raw::connect(a.addr()).await;
    let fields = [("x-starling-caller-node", "forged"), ("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")];
    raw.head(1, &with(&fields), true).await;
    assert_eq!(raw.outcome(1).await, Outcome::Well);
    let seen = seen.lock().expect("no panic").remove(0);
    assert!(seen.contains("x-starling-caller-node: \"a\"") && !seen.contains("forged"), "{seen}");
    assert!(seen.contains("cookie: \"a=1; b=2\""), "{seen}");
}
