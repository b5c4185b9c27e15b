//! Streams that share a connection: how many, how much of each is held, and what happens when a side has had enough.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::Response;
use starling_core::registry::Protocol;
use starling_proxy::ProxySettings;
use support::http2::*;
use support::*;
use tokio::sync::Semaphore;

/// Registers an application that speaks HTTP/2.
fn register(flock: &Flock, place: Place) {
    flock.register_as(place, |view| change(view, |i| i.protocol = Protocol::Http2));
}

/// An application that answers one request for every permit, with so many streams at once on a connection.
async fn held_back(streams: u32) -> (App2, Arc<Semaphore>) {
    let go = Arc::new(Semaphore::new(0));
    let gate = go.clone();
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(streams);
    let app = App2::with(builder, move |_, respond| {
        let gate = gate.clone();
        async move {
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
            say(respond, Response::new(()), b"done");
        }
    });
    (app.await, go)
}

#[tokio::test]
async fn another_connection_is_opened_when_an_instance_takes_no_more_streams_and_beyond_the_limit_requests_wait() {
    let (flock, (app, go)) = (Flock::default(), held_back(2).await);
    let a = flock
        .node_with("a", |settings| {
            settings.workers = 1;
            settings.http2.max_connections_per_instance = 3;
        })
        .await;
    register(&flock, app.at("narrow", "1", "a"));
    let caller = Caller::connect(a.addr()).await;
    // The instance's limit is known when it has answered once.
    go.add_permits(1);
    assert_eq!(caller.get("narrow", "/").await.text(), "done");
    let mut waiting = Vec::new();
    for n in 1..=10 {
        waiting.push(caller.begin(request("GET", "narrow", "/"), true).await.0);
        let arrived = (1 + n).min(1 + 6);
        eventually("it arrives, or all places are taken", || async { (app.requests() == arrived).then_some(()) }).await;
    }
    assert_eq!(app.connections.load(SeqCst), 3);
    go.add_permits(10);
    for response in waiting {
        assert_eq!(hear(response).await.expect("an answer").text(), "done");
    }
    assert_eq!((app.requests(), app.connections.load(SeqCst)), (11, 3));
}

#[tokio::test]
async fn a_client_may_have_so_many_streams_and_is_told() {
    let (flock, (app, go)) = (Flock::default(), held_back(100).await);
    let a = flock.node_with("a", |settings| settings.http2.max_streams = 2).await;
    register(&flock, app.at("orders", "1", "a"));
    let caller = Caller::connect(a.addr()).await;
    go.add_permits(1);
    caller.get("orders", "/").await;
    assert_eq!(caller.requests.current_max_send_streams(), 2);
    let mut raw = Raw::connect(a.addr()).await;
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "orders"), (":path", "/")];
    for stream in [1, 3, 5] {
        raw.head(stream, &head, true).await;
    }
    assert_eq!(raw.outcome(5).await, Outcome::Reset(Reason::REFUSED_STREAM.into()), "who does not listen is refused");
}

#[tokio::test]
async fn a_refused_stream_is_known_to_be_unread_and_goes_elsewhere() {
    let flock = Flock::default();
    let refuses = App2::answering(|_, mut respond| async move { respond.send_reset(Reason::REFUSED_STREAM) }).await;
    let lives = App2::named("lives").await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    register(&flock, refuses.at("orders", "1", "a"));
    register(&flock, lives.at("orders", "2", "b"));
    let caller = Caller::connect(a.addr()).await;
    for _ in 0..10 {
        let heard = caller.send(request("POST", "orders", "/").header("content-length", "3"), "buy").await;
        assert_eq!(heard.text(), "lives", "{heard:?}");
    }
    assert!(refuses.requests() > 0);
}

/// An application that says good-bye on each connection after its first request, as one does that is restarted.
async fn leaving() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("a client of HTTP/2");
                while let Some(Ok((_, respond))) = connection.accept().await {
                    connection.graceful_shutdown();
                    say(respond, Response::new(()), b"good-bye");
                }
            });
        }
    });
    (address, task)
}

#[tokio::test]
async fn an_instance_that_says_good_bye_is_called_by_a_new_connection_and_no_post_is_lost() {
    let (flock, (address, _app)) = (Flock::default(), leaving().await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    for (service, owner) in [("near", "a"), ("far", "b")] {
        register(&flock, Place { service, id: "1", owner, address });
    }
    let caller = Caller::connect(a.addr()).await;
    for service in ["near", "far"] {
        for n in 0..50 {
            let heard = caller.send(request("POST", service, "/").header("content-length", "3"), "buy").await;
            assert_eq!((heard.status, heard.text().as_str()), (200, "good-bye"), "{service} {n}: {heard:?}");
        }
    }
}

/// Waits until the stream takes more.
async fn room(stream: &mut h2::SendStream<Bytes>) {
    stream.reserve_capacity(16_384);
    while stream.capacity() == 0 {
        std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.expect("the stream lives").expect("it lives");
    }
}

#[tokio::test]
async fn a_body_nobody_reads_is_held_back_at_its_source_and_comes_whole_in_the_end() {
    const WHOLE: usize = 16 << 20;
    let flock = Flock::default();
    let go = Arc::new(Semaphore::new(0));
    let gate = go.clone();
    let app = App2::answering(move |request, respond| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.expect("the gate stays").forget();
            let (mut body, mut heard) = (request.into_body(), 0);
            while let Some(Ok(data)) = body.data().await {
                heard += data.len();
                let _ = body.flow_control().release_capacity(data.len());
            }
            assert_eq!(heard, WHOLE);
            say(respond, Response::new(()), b"all of it");
        }
    })
    .await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    register(&flock, app.at("near", "1", "a"));
    register(&flock, app.at("far", "1", "b"));
    for service in ["near", "far"] {
        let caller = Caller::connect(a.addr()).await;
        let (response, mut to) = caller.begin(request("POST", service, "/"), false).await;
        let mut sent = 0;
        // Nothing more is taken once all windows on the way are full.
        while sent < WHOLE && tokio::time::timeout(Duration::from_millis(500), room(&mut to)).await.is_ok() {
            let n = to.capacity().min(WHOLE - sent);
            to.send_data(Bytes::from(vec![7; n]), false).expect("the stream lives");
            sent += n;
        }
        // The sidecars' windows and buffers, and what the sockets and the instance's own window hold.
        let held = 2 * (256 + 256 + 64) * 1_024 + 65_535 + (4 << 20);
        assert!(sent <= held, "{service}: {sent} bytes were taken and nobody reads");
        go.add_permits(1);
        push(&mut to, Bytes::from(vec![7; WHOLE - sent])).await.expect("the stream lives");
        to.send_data(Bytes::new(), true).expect("the stream lives");
        assert_eq!(hear(response).await.expect("an answer").text(), "all of it");
    }
}

#[tokio::test]
async fn a_client_that_resets_as_fast_as_it_asks_is_cut_off_and_others_are_served_on() {
    let (flock, (app, go)) = (Flock::default(), held_back(100).await);
    let a = flock.node("a").await;
    register(&flock, app.at("orders", "1", "a"));
    let mut raw = Raw::connect(a.addr()).await;
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "orders"), (":path", "/")];
    for n in 0..20_000 {
        let stream = 2 * n + 1;
        raw.head(stream, &head, true).await;
        raw.frame(3, 0, stream, &u32::from(Reason::CANCEL).to_be_bytes()).await;
    }
    let outcome = raw.outcome(u32::MAX).await;
    assert!(
        matches!(outcome, Outcome::Closed) || outcome == Outcome::Ended(Reason::ENHANCE_YOUR_CALM.into()),
        "{outcome:?}"
    );
    go.add_permits(1_000_000);
    assert_eq!(Caller::connect(a.addr()).await.get("orders", "/").await.text(), "done");
}

#[tokio::test]
async fn a_flood_of_pings_and_settings_is_answered_and_stops_nobody() {
    let (flock, app) = (Flock::default(), App2::named("lives").await);
    let a = flock.node_with("a", |settings| settings.workers = 1).await;
    register(&flock, app.at("orders", "1", "a"));
    let mut raw = Raw::connect(a.addr()).await;
    for _ in 0..2_000 {
        raw.frame(6, 0, 0, &[7; 8]).await;
        raw.frame(4, 0, 0, &[]).await;
    }
    assert_eq!(Caller::connect(a.addr()).await.get("orders", "/").await.text(), "lives");
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "orders"), (":path", "/")];
    raw.head(1, &head, true).await;
    assert_eq!(raw.outcome(1).await, Outcome::Well, "and it may ask like others");
}

#[tokio::test]
async fn draining_says_good_bye_and_lets_streams_finish() {
    let (flock, (app, go)) = (Flock::default(), held_back(100).await);
    let Bird { proxy, .. } = {
        let a = flock.node("a").await;
        register(&flock, app.at("orders", "1", "a"));
        a
    };
    let caller = Caller::connect(proxy.local_addr()).await;
    let (response, _) = caller.begin(request("GET", "orders", "/"), true).await;
    eventually("it arrives", || async { (app.requests() == 1).then_some(()) }).await;
    let draining = tokio::spawn(proxy.drain(PATIENCE));
    eventually("good-bye is said", || async {
        let mut requests = caller.requests.clone();
        std::future::poll_fn(|cx| requests.poll_ready(cx)).await.err()
    })
    .await;
    go.add_permits(1);
    assert_eq!(hear(response).await.expect("an answer").text(), "done");
    assert!(draining.await.expect("it ends"), "nothing was cut off");
    assert!(caller.connection.await.expect("it ends").is_ok(), "the connection was closed in order");
}

#[tokio::test]
async fn an_instance_that_gives_no_sign_of_life_is_given_up() {
    let flock = Flock::default();
    // Takes everything, shakes hands, and never says another word.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let app = tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            use tokio::io::AsyncWriteExt;
            let (mut stream, _) = listener.accept().await.expect("a connection");
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("it is taken"); // SETTINGS
            open.push(stream);
        }
    });
    let a = flock
        .node_with("a", |settings: &mut ProxySettings| {
            settings.http2.keepalive_ms = 1_000;
            settings.http2.keepalive_timeout_ms = 100;
        })
        .await;
    register(&flock, Place { service: "dead", id: "1", owner: "a", address });
    let heard = Caller::connect(a.addr()).await.send(grpc("dead"), "hello").await;
    assert_eq!(heard.header("grpc-status"), Some("14"), "{heard:?}");
    app.abort();
}
