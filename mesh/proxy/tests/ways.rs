//! Streams of HTTP/2 that become ways for bytes: CONNECT, and WebSocket (RFC 8441).

#![allow(clippy::unwrap_used)] // a helper that cannot help fails its test

mod support;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use support::http2::*;
use support::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

/// An application that greets, says back what it hears, and says good-bye when it has heard all.
async fn parrot() -> App {
    App::talking(|mut stream| async move {
        let _ = stream.write_all(b"HELLO ").await;
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.write_all(b" BYE").await;
    })
    .await
}

/// An application that switches to WebSocket, shows the path and fields it was asked with, and says back what it hears.
async fn chat() -> App {
    App::talking(|stream| async move {
        let (mut stream, mut head) = (BufReader::new(stream), String::new());
        while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).await.unwrap() > 0 {}
        let head = head.to_lowercase();
        let answer = if head.starts_with("get /chat?room=1 ") && head.contains("upgrade: websocket\r\n") {
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-accept: x\r\nsec-websocket-protocol: chat\r\n\r\n"
        } else {
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
        let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap_or_default().len();
        let shown = format!("{key} {} ", head.contains("sec-websocket-version: 13\r\n"));
        stream.write_all(shown.as_bytes()).await.unwrap();
        let (mut from, mut to) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    })
    .await
}

/// What opens a way, by CONNECT.
fn connect(target: &str) -> http::request::Builder {
    http::Request::builder().method("CONNECT").uri(target)
}

/// What opens one in this protocol.
fn extended(protocol: &'static str, path: &str) -> http::request::Builder {
    let request = request("CONNECT", "chat.mesh", path).header("sec-websocket-version", "13");
    request.extension(Protocol::from_static(protocol))
}

/// The way, once it is open.
async fn open(caller: &Caller, request: http::request::Builder) -> (http::HeaderMap, RecvStream, SendStream<Bytes>) {
    let (response, to) = caller.begin(request, false).await;
    let (parts, from) = timeout(PATIENCE, response).await.expect("an answer in time").unwrap().into_parts();
    assert_eq!(parts.status, 200);
    (parts.headers, from, to)
}

/// The next bytes, so many.
async fn hear_bytes(from: &mut RecvStream, count: usize) -> String {
    let mut heard = Vec::new();
    while heard.len() < count {
        let data = timeout(PATIENCE, from.data()).await.expect("bytes in time").expect("more").unwrap();
        let _ = from.flow_control().release_capacity(data.len());
        heard.extend_from_slice(&data);
    }
    String::from_utf8(heard).unwrap()
}

/// Waits for the end of a way, which brings no bytes.
async fn hear_end(from: &mut RecvStream) {
    while let Some(data) = timeout(PATIENCE, from.data()).await.expect("an end in time") {
        assert!(data.unwrap().is_empty(), "nothing more is said");
    }
}

#[tokio::test]
async fn a_stream_becomes_a_way_to_a_service_of_bytes_and_both_its_ends_end_alone() {
    let (flock, app) = (Flock::default(), parrot().await);
    let (a, _b) = (flock.node("a").await, flock.node("b").await);
    flock.register_as(app.at("near", "1", "a"), tcp);
    flock.register_as(app.at("far", "1", "b"), tcp);
    let caller = Caller::connect(a.addr()).await;
    for service in ["near", "far"] {
        let (_, mut from, mut to) = open(&caller, connect(&format!("{service}.mesh:5432"))).await;
        assert_eq!(hear_bytes(&mut from, 6).await, "HELLO ");
        to.send_data("one two".into(), false).unwrap();
        assert_eq!(hear_bytes(&mut from, 7).await, "one two");
        to.send_data(Bytes::new(), true).unwrap();
        assert_eq!(hear_bytes(&mut from, 4).await, " BYE");
        hear_end(&mut from).await;
    }
}

#[tokio::test]
async fn large_bytes_go_both_ways_through_the_windows() {
    let (flock, app) = (Flock::default(), parrot().await);
    let a = flock.node("a").await;
    flock.register_as(app.at("near", "1", "a"), tcp);
    let caller = Caller::connect(a.addr()).await;
    let (_, mut from, mut to) = open(&caller, connect("near.mesh:1")).await;
    let sending = tokio::spawn(async move {
        push(&mut to, vec![b'x'; 3 << 20].into()).await.unwrap();
        to.send_data(Bytes::new(), true).unwrap();
    });
    assert_eq!(hear_bytes(&mut from, 6 + (3 << 20) + 4).await.len(), 6 + (3 << 20) + 4);
    sending.await.unwrap();
}

#[tokio::test]
async fn a_broken_instance_resets_its_way_and_nothing_else_of_the_connection() {
    let app = App::talking(|mut stream| async move {
        let _ = stream.write_all(b"half").await;
        let _ = stream.read_u8().await;
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    });
    let (flock, app, web) = (Flock::default(), app.await, App::named("web").await);
    let a = flock.node("a").await;
    flock.register_as(app.at("broken", "1", "a"), tcp);
    flock.register(web.at("web", "1", "a"));
    let caller = Caller::connect(a.addr()).await;
    let (_, mut from, mut to) = open(&caller, connect("broken.mesh:1")).await;
    assert_eq!(hear_bytes(&mut from, 4).await, "half");
    to.send_data("x".into(), false).unwrap();
    let error = timeout(PATIENCE, from.data()).await.unwrap().expect("it does not just end").unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::CONNECT_ERROR));
    assert_eq!(caller.get("web.mesh", "/").await.text(), "web");
}

#[tokio::test]
async fn a_way_to_a_service_of_requests_carries_requests() {
    let flock = Flock::default();
    let web = App::answering(|request| async move { text(200, request.uri().path()) }).await;
    let a = flock.node("a").await;
    flock.register(web.at("web", "1", "a"));
    let caller = Caller::connect(a.addr()).await;
    let (_, mut from, mut to) = open(&caller, connect("web.mesh:80")).await;
    for path in ["/1", "/2"] {
        to.send_data(format!("GET {path} HTTP/1.1\r\nhost: x.org\r\n\r\n").into(), false).unwrap();
        let mut answer = String::new();
        while !answer.ends_with(path) {
            answer += &hear_bytes(&mut from, 1).await;
        }
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn there_is_no_way_out_of_the_mesh_and_none_in_unknown_protocols() {
    let (flock, chat) = (Flock::default(), chat().await);
    let a = flock.node("a").await;
    flock.register(chat.at("chat", "1", "a"));
    let caller = Caller::connect(a.addr()).await;
    for (request, status, why) in [
        (connect("www.example.org:443"), 421, "not_a_mesh_name"),
        (connect("nobody.mesh:1"), 503, "no_such_service"),
        (extended("connect-udp", "/chat?room=1"), 501, "unsupported"),
        (extended("websocket", "/no-chat"), 502, "unsupported"),
    ] {
        let (response, mut to) = caller.begin(request, false).await;
        // What is sent before the answer is no request of its own.
        let _ = to.send_data("GET / HTTP/1.1\r\nhost: chat.mesh\r\n\r\n".into(), false);
        let heard = timeout(PATIENCE, response).await.expect("an answer in time").unwrap();
        let reason = heard.headers()["x-starling-reason"].to_str().unwrap().to_owned();
        assert_eq!((heard.status().as_u16(), reason.starts_with(why)), (status, true), "{reason}");
    }
    assert_eq!(caller.get("nobody.mesh", "/").await.status, 503, "the connection goes on");
}

#[tokio::test]
async fn websocket_by_http2_is_an_upgrade_at_the_instance() {
    let (flock, chat) = (Flock::default(), chat().await);
    let (a, _b) = (flock.node("a").await, flock.node("b").await);
    for owner in ["a", "b"] {
        flock.register(chat.at("chat", "1", owner));
        let caller = Caller::connect(a.addr()).await;
        let offered = || caller.requests.is_extended_connect_protocol_enabled().then_some(());
        eventually("it is said that this is understood", || async { offered() }).await;
        let (fields, mut from, mut to) = open(&caller, extended("websocket", "/chat?room=1")).await;
        assert_eq!(fields["sec-websocket-protocol"], "chat");
        assert!(!fields.contains_key("sec-websocket-accept") && !fields.contains_key("upgrade"));
        assert_eq!(hear_bytes(&mut from, 8).await, "24 true ", "the key and the version it was asked with");
        to.send_data("frames".into(), false).unwrap();
        assert_eq!(hear_bytes(&mut from, 6).await, "frames");
        to.send_data(Bytes::new(), true).unwrap();
        hear_end(&mut from).await;
    }
}
