//! The last good answer stands in when there is none, marked, within its bounds, and never for somebody else.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Response;
use support::*;

const KEEP: &str = "[fallback.last_good]\nrefresh_ms = 0\n";

/// A service with one instance, on another node, that answers so.
async fn shop<F, R>(policy: &str, answer: F) -> (Flock, App, Bird, Bird)
where
    F: Fn(hyper::Request<hyper::body::Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<AppBody>> + Send + 'static,
{
    let (flock, app) = (Flock::default(), App::answering(answer).await);
    let (a, b) = (flock.node("a").await, flock.node("b").await);
    flock.register(app.at("orders", "1", "b"));
    flock.policy("orders", policy);
    (flock, app, a, b)
}

fn with(name: &'static str, value: &'static str) -> Response<AppBody> {
    let mut response = text(200, "for you");
    response.headers_mut().insert(name, value.parse().expect("a value"));
    response
}

fn kept(bird: &Bird) -> u64 {
    let metrics = bird.metrics();
    let of = "starling_last_good_kept{service=\"default/orders\"} ";
    metrics.lines().find_map(|line| line.strip_prefix(of)).map_or(0, |value| value.parse().expect("a number"))
}

#[tokio::test]
async fn when_the_backend_dies_callers_get_the_last_good_answer_until_it_is_too_old() {
    let count = Arc::new(AtomicUsize::new(0));
    let (flock, app, a, _b) = shop(KEEP, move |_| {
        let n = count.fetch_add(1, SeqCst);
        async move {
            let mut response = text(200, format!("answer {n}"));
            response.headers_mut().insert("etag", "\"x\"".parse().expect("a value"));
            response
        }
    })
    .await;
    for n in 0..3 {
        let answer = a.get("orders.mesh", "/list?page=1").await;
        assert_eq!((answer.text(), answer.header("x-starling-fallback")), (format!("answer {n}"), None));
    }
    drop(app);
    let answer = a.get("orders.mesh", "/list?page=1").await;
    assert_eq!((answer.status, answer.text().as_str(), answer.header("etag")), (200, "answer 2", Some("\"x\"")));
    assert_eq!(answer.header("x-starling-fallback"), Some("last_good; age=0; node=a"));
    assert!(answer.header("x-starling-reason").expect("a reason").starts_with("connect"), "{answer:?}");
    assert_eq!((answer.header("age"), answer.header("warning")), (Some("0"), Some("110 - \"Response is Stale\"")));
    assert_eq!(answer.headers.iter().filter(|(name, _)| name == "date").count(), 1);
    let mut client = Client::connect(a.addr()).await;
    client.send("HEAD", "orders.mesh", "/list?page=1", "", b"").await;
    assert_eq!(client.head().await.header("content-length"), Some("8"));
    assert_eq!(a.get("orders.mesh", "/list?page=2").await.status, 503, "another page is another answer");
    assert_eq!(a.send("POST", "orders.mesh", "/list?page=1", "", b"x").await.status, 503);
    assert!(a.metrics().contains("starling_fallbacks_total{service=\"default/orders\"} 2\n"), "{}", a.metrics());
    flock.policy("orders", &format!("{KEEP}max_age_ms = 1\n"));
    eventually("it is too old", || async { (a.get("orders.mesh", "/list?page=1").await.status == 503).then_some(()) })
        .await;
}

#[tokio::test]
async fn nothing_that_is_somebodys_own_or_depends_on_more_is_kept() {
    let (_flock, _app, a, _b) = shop(KEEP, |request| async move {
        match request.uri().path() {
            "/set-cookie" => with("set-cookie", "session=1"),
            "/private" => with("cache-control", "max-age=5, Private"),
            "/no-store" => with("cache-control", "no-store"),
            "/vary" => with("vary", "accept, user-agent"),
            "/vary-all" => with("vary", "*"),
            "/part" => text(206, "part"),
            "/missing" => text(404, "missing"),
            _ => text(200, "for all"),
        }
    })
    .await;
    for (path, fields) in [
        ("/set-cookie", ""),
        ("/private", ""),
        ("/no-store", ""),
        ("/vary", ""),
        ("/vary-all", ""),
        ("/part", ""),
        ("/missing", ""),
        ("/", "authorization: Basic eDp5\r\n"),
        ("/", "Cookie: session=1\r\n"),
        ("/", "range: bytes=0-1\r\n"),
    ] {
        a.send("GET", "orders.mesh", path, fields, b"").await;
        assert_eq!(kept(&a), 0, "{path} {fields}");
    }
    a.send("POST", "orders.mesh", "/", "", b"x").await;
    assert_eq!(kept(&a), 0);
    a.get("orders.mesh", "/").await;
    assert_eq!(kept(&a), 1);
}

#[tokio::test]
async fn where_the_policy_keeps_private_answers_each_caller_gets_its_own_and_no_cookie_twice() {
    let policy = format!("{KEEP}private = true\n");
    let (_flock, app, a, _b) = shop(&policy, |request| async move {
        let who = request.headers().get("authorization").map_or("nobody", |value| value.to_str().expect("text"));
        let mut response = text(200, who.to_owned());
        response.headers_mut().insert("set-cookie", "session=1".parse().expect("a value"));
        response
    })
    .await;
    let of = |who: &str| format!("authorization: {who}\r\n");
    for who in ["ann", "bob"] {
        a.send("GET", "orders.mesh", "/", &of(who), b"").await;
    }
    drop(app);
    for who in ["ann", "bob"] {
        let answer = a.send("GET", "orders.mesh", "/", &of(who), b"").await;
        assert_eq!((answer.text().as_str(), answer.header("set-cookie")), (who, None));
    }
    assert_eq!(a.send("GET", "orders.mesh", "/", &of("eve"), b"").await.status, 503);
    assert_eq!(a.get("orders.mesh", "/").await.status, 503);
}

#[tokio::test]
async fn who_asks_for_another_form_of_it_does_not_get_this_one() {
    let (_flock, app, a, _b) = shop(KEEP, |_| async { with("vary", "Accept, Accept-Encoding") }).await;
    a.send("GET", "orders.mesh", "/", "accept: text/plain\r\n", b"").await;
    drop(app);
    assert_eq!(a.send("GET", "orders.mesh", "/", "Accept: text/plain\r\n", b"").await.text(), "for you");
    assert_eq!(a.send("GET", "orders.mesh", "/", "accept: text/html\r\n", b"").await.status, 503);
}

#[tokio::test]
async fn a_body_in_chunks_is_kept_whole_and_one_that_breaks_off_or_is_too_large_not_at_all() {
    let policy = format!("{KEEP}max_answer_bytes = 2000\n");
    let (flock, app, a, _b) = shop(&policy, |request| async move {
        let size = if request.uri().path() == "/large" { 3_000 } else { 500 };
        let (send, frames) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            for part in ["one ", "two ", "three "] {
                let _ = send.send(Bytes::from(part.repeat(size / 12))).await;
            }
        });
        Response::new(Frames(frames).boxed())
    })
    .await;
    let whole = a.get("orders.mesh", "/").await;
    assert_eq!(whole.header("transfer-encoding"), Some("chunked"));
    a.get("orders.mesh", "/large").await;
    let cut = App::saying("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel").await;
    flock.register(cut.at("cut", "1", "b"));
    flock.policy("cut", KEEP);
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "cut.mesh", "/", "", b"").await;
    assert_eq!(client.head().await.status, 200);
    while client.fill().await {}
    assert!(!a.metrics().contains("starling_last_good_kept{service=\"default/cut\"}"), "{}", a.metrics());
    drop(app);
    let answer = a.get("orders.mesh", "/").await;
    assert_eq!((answer.text(), answer.header("transfer-encoding")), (whole.text(), None));
    assert_eq!(a.get("orders.mesh", "/large").await.status, 503);
    assert!(
        a.metrics().contains("starling_last_good_dropped_total{service=\"default/orders\"} 1\n"),
        "{}",
        a.metrics()
    );
    assert_eq!(kept(&a), 1);
}

#[tokio::test]
async fn it_stands_in_for_errors_only_where_the_policy_says_so_and_the_instances_words_are_better_than_none() {
    let count = Arc::new(AtomicUsize::new(0));
    let answer = move |_| {
        let n = count.fetch_add(1, SeqCst);
        async move { if n == 0 { text(200, "good") } else { text(500, "broken") } }
    };
    let (flock, _app, a, _b) = shop(KEEP, answer).await;
    assert_eq!(a.get("orders.mesh", "/").await.text(), "good");
    assert_eq!(a.get("orders.mesh", "/").await.text(), "broken");
    flock.policy("orders", &format!("[fallback]\non = [\"errors\"]\n{KEEP}"));
    let answer = a.get("orders.mesh", "/").await;
    assert_eq!(answer.text(), "good");
    assert_eq!(answer.header("x-starling-reason"), Some("error_answered: an instance answered 500"));
    let other = a.get("orders.mesh", "/other").await;
    assert_eq!((other.status, other.text().as_str()), (500, "broken"));
    flock.policy("orders", &format!("[fallback]\non = [\"errors\"]\nstatus = 203\nbody = \"none\"\n{KEEP}"));
    assert_eq!(a.get("orders.mesh", "/other").await.text(), "none");
}

#[tokio::test]
async fn a_service_that_is_degraded_by_hand_goes_on_with_its_last_answers() {
    let (flock, app, a, _b) = shop(KEEP, |_| async { text(200, "menu") }).await;
    a.get("orders.mesh", "/").await;
    flock.policy("orders", &format!("{KEEP}[degrade]\nmode = \"force_open\"\n"));
    let answer = a.get("orders.mesh", "/").await;
    assert_eq!((answer.text().as_str(), app.requests()), ("menu", 1));
    assert!(answer.header("x-starling-reason").expect("a reason").starts_with("breaker: forced open"));
    assert_eq!(a.get("orders.mesh", "/other").await.status, 503);
}
