//! Requests find their way, and what passes the proxy is what should pass.

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Response;
use starling_core::id::InstanceKey;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_local_instance_is_reached_by_proxy_target_and_by_host() {
    let (flock, app) = (Flock::default(), App::named("hello").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    for (host, target) in
        [("ignored", "http://orders.mesh/x"), ("orders.mesh", "/x"), ("orders", "/x"), ("orders.mesh:80", "/")]
    {
        let answer = a.get(host, target).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{host} {target}");
        assert_eq!(answer.header("x-starling-reason"), None);
    }
}

#[tokio::test]
async fn a_remote_instance_is_reached_through_its_node_and_tunnel_and_connection_are_reused() {
    let (flock, app) = (Flock::default(), App::named("over there").await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(app.at("orders", "1", "b"));
    let mut client = Client::connect(a.addr()).await;
    for _ in 0..20 {
        client.send("GET", "orders.mesh", "/", "", b"").await;
        assert_eq!(client.answer().await.text(), "over there");
    }
    assert_eq!((flock.tunnels(), app.connections.load(SeqCst), app.requests()), (1, 1, 20));
}

#[tokio::test]
async fn an_instance_on_a_host_without_a_node_is_reached_directly() {
    let (flock, app) = (Flock::default(), App::named("bare").await);
    let a = flock.node("a").await;
    flock.register_as(app.at("orders", "1", "some-other-node"), direct);
    assert_eq!(a.get("orders.mesh", "/").await.text(), "bare");
    assert_eq!(flock.tunnels(), 0);
}

#[tokio::test]
async fn a_namespace_is_a_label_of_the_host() {
    let (flock, app) = (Flock::default(), App::named("pay").await);
    let a = flock.node("a").await;
    flock.register(app.at("pay/orders", "1", "a"));
    assert_eq!(a.get("orders.pay.mesh", "/").await.text(), "pay");
    assert_eq!(a.get("orders.mesh", "/").await.status, 503);
}

#[tokio::test]
async fn bodies_stream_both_ways_without_being_held() {
    let flock = Flock::default();
    let echo = App::answering(|request| async move { Response::new(request.into_body().boxed()) }).await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(echo.at("echo", "1", "b"));
    let mut client = Client::connect(a.addr()).await;
    client.send("POST", "echo.mesh", "/", "transfer-encoding: chunked\r\n", b"").await;
    client.stream.write_all(b"5\r\nfirst\r\n").await.unwrap();
    // The answer to the first chunk is here before the second is sent.
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.chunk().await.unwrap(), b"first");
    client.stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(client.chunk().await.unwrap(), b"second");
    assert_eq!(client.chunk().await, None);
}

#[tokio::test]
async fn a_body_larger_than_any_buffer_passes_whole() {
    let flock = Flock::default();
    let echo = App::answering(|request| async move { Response::new(request.into_body().boxed()) }).await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(echo.at("echo", "1", "b"));
    let body: Vec<u8> = (0..4_000_000u32).map(|i| (i % 251) as u8).collect();
    let sent = body.clone();
    let stream = tokio::net::TcpStream::connect(a.addr()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let writing = tokio::spawn(async move {
        let head =
            format!("POST / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", sent.len());
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&sent).await.unwrap();
        write
    });
    let mut received = Vec::new();
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut received)).await.unwrap().unwrap();
    writing.await.unwrap();
    assert!(received.ends_with(&body), "{} bytes came back", received.len());
}

#[tokio::test]
async fn a_client_that_reads_slowly_holds_the_application_back() {
    let flock = Flock::default();
    let produced = Arc::new(Mutex::new(0usize));
    let counter = produced.clone();
    let endless = App::answering(move |_| {
        let counter = counter.clone();
        async move {
            let (frames, body) = tokio::sync::mpsc::channel::<Bytes>(1);
            tokio::spawn(async move {
                while frames.send(Bytes::from(vec![7; 64 * 1024])).await.is_ok() {
                    *counter.lock().unwrap() += 64 * 1024;
                }
            });
            Response::new(Frames(body).boxed())
        }
    })
    .await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(endless.at("endless", "1", "b"));
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "endless", "/", "", b"").await;
    assert_eq!(client.head().await.status, 200);
    // Reads nothing more: what is produced must come to a stand, wherever the buffers are full.
    let mut last = 0;
    eventually("production stops", || {
        let now = *produced.lock().unwrap();
        let stands = now == last && now > 0;
        last = now;
        async move {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            stands.then_some(())
        }
    })
    .await;
    assert!(*produced.lock().unwrap() < 64 << 20);
}

#[tokio::test]
async fn headers_of_one_connection_stay_there_and_the_callers_node_is_told_truly() {
    let flock = Flock::default();
    let seen = Arc::new(Mutex::new(None));
    let keep = seen.clone();
    let app = App::answering(move |request| {
        *keep.lock().unwrap() = Some(request.headers().clone());
        let mut response = text(200, "ok");
        for (name, value) in [("x-starling-reason", "forged"), ("keep-alive", "timeout=1"), ("x-fine", "1")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        async move { response }
    })
    .await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(app.at("orders", "1", "b"));
    let fields = "connection: x-private, keep-alive\r\nx-private: 1\r\nte: trailers\r\nx-public: 1\r\n\
                  x-starling-caller-node: forged\r\nproxy-authorization: secret\r\n";
    let answer = a.send("GET", "orders.mesh", "/", fields, b"").await;
    let seen = seen.lock().unwrap().take().unwrap();
    for absent in ["x-private", "te", "proxy-authorization", "connection"] {
        assert!(!seen.contains_key(absent), "{absent}");
    }
    assert_eq!(
        (&seen["x-public"], &seen["x-starling-caller-node"], &seen["host"]),
        (&"1".parse().unwrap(), &"a".parse().unwrap(), &"orders.mesh".parse().unwrap())
    );
    assert_eq!((answer.status, answer.header("x-starling-reason"), answer.header("keep-alive")), (200, None, None));
    assert_eq!(answer.header("x-fine"), Some("1"));
}

#[tokio::test]
async fn a_head_request_has_no_body_and_the_connection_stays_good() {
    let (flock, app) = (Flock::default(), App::named("five!").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let mut client = Client::connect(a.addr()).await;
    client.send("HEAD", "orders", "/", "", b"").await;
    assert_eq!(client.head().await.header("content-length"), Some("5"));
    client.send("GET", "orders", "/", "", b"").await;
    assert_eq!(client.answer().await.text(), "five!");
}

#[tokio::test]
async fn an_application_that_speaks_http_1_0_does_not_make_the_sidecar_speak_it() {
    let flock = Flock::default();
    let until_close = App::saying("HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nold but good").await;
    let counted = App::saying("HTTP/1.0 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nold").await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(until_close.at("near", "1", "a"));
    flock.register(until_close.at("far", "1", "b"));
    flock.register(counted.at("counted", "1", "b"));
    let mut client = Client::connect(a.addr()).await;
    for (service, body) in [("near", "old but good"), ("far", "old but good"), ("counted", "old")].repeat(3) {
        client.send("GET", service, "/", "", b"").await;
        let answer = client.answer().await;
        assert_eq!((answer.version.as_str(), answer.status, answer.text().as_str()), ("HTTP/1.1", 200, body));
        assert_eq!(answer.header("connection"), None, "{answer:?}");
    }
    assert_eq!(flock.tunnels(), 2, "an old application costs no tunnel");
}

#[tokio::test]
async fn a_length_beside_a_transfer_coding_counts_for_nothing() {
    let flock = Flock::default();
    let chunked = "transfer-encoding: chunked\r\n";
    let app =
        App::saying(format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n{chunked}\r\n5\r\nabcde\r\n0\r\n\r\n")).await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(app.at("near", "1", "a"));
    flock.register(app.at("far", "1", "b"));
    for service in ["near", "far"] {
        let answer = a.get(service, "/").await;
        assert_eq!((answer.text().as_str(), answer.header("content-length")), ("abcde", None));
    }
}

#[tokio::test]
async fn transfer_codings_and_switches_of_protocol_that_nobody_here_understands_are_refused() {
    let flock = Flock::default();
    let zipped = "transfer-encoding: gzip, chunked\r\n";
    let coded = App::saying(format!("HTTP/1.1 200 OK\r\n{zipped}\r\n3\r\n???\r\n0\r\n\r\n")).await;
    let switching = App::saying("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n").await;
    let a = flock.node("a").await;
    flock.register(coded.at("coded", "1", "a"));
    flock.register(switching.at("switching", "1", "a"));
    for (service, why) in [("coded", "gzip, chunked"), ("switching", "switched protocols unasked")] {
        let answer = a.get(service, "/").await;
        assert!(answer.status == 502 && answer.text().contains(why), "{answer:?}");
    }
    let mut client = Client::connect(a.addr()).await;
    let request = format!("POST / HTTP/1.1\r\nhost: coded\r\n{zipped}\r\n3\r\n???\r\n0\r\n\r\n");
    client.stream.write_all(request.as_bytes()).await.unwrap();
    let answer = client.answer().await;
    assert!(answer.status == 501 && answer.text().contains("gzip, chunked"), "{answer:?}");
    assert_eq!(coded.requests(), 1, "a request in an unknown coding is not sent on");
}

#[tokio::test]
async fn a_request_that_comes_round_and_round_is_a_loop() {
    let flock = Flock::default();
    let a = flock.node("a").await;
    flock.register(Place { service: "orders", id: "1", owner: "a", address: a.addr() });
    let answer = a.get("orders.mesh", "/").await;
    assert_eq!(answer.status, 508);
}

#[tokio::test]
async fn a_tunnel_to_an_instance_of_somebody_else_is_refused() {
    let (flock, app) = (Flock::default(), App::named("private").await);
    let _b = flock.node("b").await;
    flock.register(app.at("orders", "1", "c"));
    let theirs = InstanceKey { service: service_key("orders"), instance: "1".parse().unwrap() };
    let unknown = InstanceKey { service: service_key("orders"), instance: "2".parse().unwrap() };
    for to in [theirs, unknown] {
        let mut tunnel = flock.tunnel("a", "b", &to).await;
        tunnel.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        tunnel.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("x-starling-reason: not_here"), "{answer}");
    }
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn too_large_a_head_is_refused() {
    let flock = Flock::default();
    let a = flock.node("a").await;
    let answer = a.send("GET", "orders", "/", &"x: y\r\n".repeat(200), b"").await;
    assert_eq!(answer.status, 431);
}

#[tokio::test]
async fn draining_finishes_what_is_in_flight_and_takes_nothing_new() {
    let flock = Flock::default();
    let (slow, go) = App::held_back("finished").await;
    let a = flock.node("a").await;
    flock.register(slow.at("slow", "1", "a"));
    let addr = a.addr();
    let mut idle = Client::connect(addr).await;
    let mut client = Client::connect(addr).await;
    client.send("GET", "slow", "/", "", b"").await;
    eventually("request arrives", || async { (slow.requests() == 1).then_some(()) }).await;
    let draining = tokio::spawn(a.proxy.drain(PATIENCE));
    assert!(!idle.fill().await, "an idle connection is closed");
    eventually("listener closes", || async { tokio::net::TcpStream::connect(addr).await.is_err().then_some(()) }).await;
    assert!(!draining.is_finished());
    go.add_permits(1);
    assert_eq!(client.answer().await.text(), "finished");
    assert!(draining.await.unwrap());
}

#[tokio::test]
async fn a_drain_that_takes_too_long_ends() {
    let flock = Flock::default();
    let stuck = App::answering(|_| std::future::pending()).await;
    let a = flock.node("a").await;
    flock.register(stuck.at("stuck", "1", "a"));
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "stuck", "/", "", b"").await;
    eventually("request arrives", || async { (stuck.requests() == 1).then_some(()) }).await;
    assert!(!a.proxy.drain(std::time::Duration::from_millis(20)).await);
    assert!(!client.fill().await, "the connection is dropped");
}
