//! HTTP/1.1 as clients really speak it: several requests at once, words before bodies, other protocols, and lies.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use http_body_util::BodyExt;
use hyper::Response;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn echo() -> App {
    App::answering(|request| async move { Response::new(request.into_body().boxed()) }).await
}

#[tokio::test]
async fn requests_sent_together_are_answered_in_their_order() {
    let flock = Flock::default();
    let app = App::answering(|request| async move { text(200, request.uri().path()) }).await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(app.at("near", "1", "a"));
    flock.register(app.at("far", "1", "b"));
    let mut client = Client::connect(a.addr()).await;
    let together: String =
        (0..50).map(|i| format!("GET /{i} HTTP/1.1\r\nhost: {}\r\n\r\n", ["near", "far"][i % 2])).collect();
    client.stream.write_all(together.as_bytes()).await.unwrap();
    for i in 0..50 {
        assert_eq!(client.answer().await.text(), format!("/{i}"));
    }
}

#[tokio::test]
async fn a_client_that_waits_for_a_word_before_its_body_gets_it() {
    let (flock, app) = (Flock::default(), echo().await);
    let a = flock.node_with("a", |settings| settings.max_replay_bytes = 8).await;
    let _b = flock.node("b").await;
    flock.register(app.at("near", "1", "a"));
    flock.register(app.at("far", "1", "b"));
    for (service, body) in [("near", "short"), ("near", "longer than what is held"), ("far", "longer than that too")] {
        let mut client = Client::connect(a.addr()).await;
        let length = body.len();
        let head =
            format!("POST / HTTP/1.1\r\nhost: {service}\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n");
        client.stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(client.head().await.status, 100, "{service} {body}");
        client.stream.write_all(body.as_bytes()).await.unwrap();
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, body));
    }
}

#[tokio::test]
async fn a_refused_request_with_a_body_still_hears_why() {
    let flock = Flock::default();
    let a = flock.node("a").await;
    let mut client = Client::connect(a.addr()).await;
    let head = "POST / HTTP/1.1\r\nhost: nobody\r\ncontent-length: 200000\r\n\r\n";
    client.stream.write_all(head.as_bytes()).await.unwrap();
    client.stream.write_all(&vec![b'x'; 200_000]).await.unwrap();
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
    assert!(answer.text().contains("no service default/nobody is registered"));
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_bodies_it_can_read_and_a_closed_connection() {
    let flock = Flock::default();
    let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let chunked = App::saying(chunks).await;
    let until_close = App::saying("HTTP/1.1 200 OK\r\n\r\nhello world").await;
    let a = flock.node("a").await;
    flock.register(chunked.at("chunked", "1", "a"));
    flock.register(until_close.at("closing", "1", "a"));
    for service in ["chunked", "closing"] {
        let mut stream = TcpStream::connect(a.addr()).await.unwrap();
        stream.write_all(format!("GET / HTTP/1.0\r\nhost: {service}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.contains("connection: close\r\n") && !answer.contains("transfer-encoding"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello world"), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_stops_the_work_upstream() {
    let flock = Flock::default();
    let given_up = Arc::new(AtomicUsize::new(0));
    let count = given_up.clone();
    struct Noted(Arc<AtomicUsize>);
    impl Drop for Noted {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let slow = App::answering(move |_| {
        let noted = Noted(count.clone());
        async move {
            std::future::pending::<()>().await;
            drop(noted);
            text(200, "never")
        }
    })
    .await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(slow.at("near", "1", "a"));
    flock.register(slow.at("far", "1", "b"));
    for (n, service) in [(1, "near"), (2, "far")] {
        let mut client = Client::connect(a.addr()).await;
        client.send("GET", service, "/", "", b"").await;
        eventually("request arrives", || async { (slow.requests() == n).then_some(()) }).await;
        drop(client);
        eventually("the work is given up", || async { (given_up.load(SeqCst) == n).then_some(()) }).await;
    }
}

#[tokio::test]
async fn a_connection_that_changes_its_protocol_carries_bytes_both_ways_to_the_end() {
    let flock = Flock::default();
    // Shouts back whatever it hears once it has agreed to shout.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap().to_lowercase();
                assert!(head.contains("upgrade: shout\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
                let agreed = "HTTP/1.1 101 Switching Protocols\r\nupgrade: shout\r\nconnection: Upgrade\r\n\r\nREADY";
                stream.write_all(agreed.as_bytes()).await.unwrap();
                let mut bytes = [0; 1_024];
                while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                    stream.write_all(bytes[..n].to_ascii_uppercase().as_slice()).await.unwrap();
                }
                stream.write_all(b"BYE").await.unwrap();
            });
        }
    });
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(Place { service: "near", id: "1", owner: "a", address });
    flock.register(Place { service: "far", id: "1", owner: "b", address });
    for service in ["near", "far"] {
        let mut client = Client::connect(a.addr()).await;
        client.send("GET", service, "/", "connection: upgrade\r\nupgrade: shout\r\n", b"").await;
        let answer = client.head().await;
        assert_eq!((answer.status, answer.header("upgrade")), (101, Some("shout")), "{answer:?}");
        assert_eq!((answer.header("transfer-encoding"), answer.header("content-length")), (None, None), "{answer:?}");
        for (said, heard) in [("", "READY"), ("hello", "HELLO"), ("again", "AGAIN")] {
            client.stream.write_all(said.as_bytes()).await.unwrap();
            assert_eq!(client.bytes(heard.len()).await, heard.as_bytes());
        }
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.bytes(3).await, b"BYE");
        assert!(!client.fill().await, "and then it ends");
    }
}

#[tokio::test]
async fn a_body_whose_chunks_are_malformed_reaches_nobody_whole() {
    let (flock, app) = (Flock::default(), echo().await);
    let a = flock.node("a").await;
    flock.register(app.at("echo", "1", "a"));
    for chunks in [
        "5\nhello\n0\n\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloGET /admin HTTP/1.1\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-fine: 1\r\nX_Starling_Caller_Service: forged\r\n\r\n",
    ] {
        let mut client = Client::connect(a.addr()).await;
        let request = format!("POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        client.stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut answer)).await.expect("it ends");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        // It is told, or, where the echo had begun, broken off; never completed.
        assert!(answer.contains("HTTP/1.1 400") || !answer.contains("\r\n0\r\n\r\n"), "{chunks:?}: {answer}");
    }
    assert_eq!(a.get("echo", "/").await.status, 200, "others are served as before");
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_read_and_one_that_never_ends_is_refused() {
    let (flock, app) = (Flock::default(), App::named("patient").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let mut client = Client::connect(a.addr()).await;
    for byte in b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n" {
        client.stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(client.answer().await.text(), "patient");
    let endless = format!("GET / HTTP/1.1\r\nhost: orders\r\nx: {}", "y".repeat(70_000));
    client.stream.write_all(endless.as_bytes()).await.unwrap();
    assert_eq!(client.answer().await.status, 431);
}

#[tokio::test]
async fn a_connection_with_half_a_request_on_it_is_never_used_again() {
    let flock = Flock::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    // Answers when it has read a head, and never reads the body.
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, SeqCst);
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nno!").await.unwrap();
            open.push(stream);
        }
    });
    let a = flock.node_with("a", |settings| settings.max_replay_bytes = 16 << 20).await;
    flock.register(Place { service: "narrow", id: "1", owner: "a", address });
    let body = vec![b'x'; 12 << 20]; // more than sockets hold on the way
    for n in 1..=3 {
        let answer = a.send("POST", "narrow", "/", "", &body).await;
        assert_eq!((answer.status, answer.text().as_str()), (413, "no!"));
        assert_eq!(connections.load(SeqCst), n, "each request has a connection of its own");
    }
}
