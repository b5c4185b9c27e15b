//! Answers that stop half-way: they are given up, whoever waits for them learns that they are not whole, and they count
//! against the instance.

mod support;

use support::http2::*;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BY_LENGTH: &str = "content-length: 100\r\n\r\n0123456789";
const IN_CHUNKS: &str = "transfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n";

/// Begins an answer to whatever it is asked, and then is silent until nobody waits any more, or closes at once.
async fn stalls(begun: &'static str, closes: bool) -> App {
    App::talking(move |mut stream: TcpStream| async move {
        let _ = stream.read(&mut [0; 4_096]).await;
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{begun}").as_bytes()).await;
        while !closes && matches!(stream.read(&mut [0; 4_096]).await, Ok(1..)) {}
    })
    .await
}

async fn impatient(flock: &Flock, name: &str) -> Bird {
    flock.node_with(name, |settings| settings.body_idle_timeout_ms = 100).await
}

#[tokio::test]
async fn an_answer_that_stops_half_way_is_given_up_and_is_not_taken_for_whole() {
    for (begun, closes) in [(BY_LENGTH, false), (IN_CHUNKS, false), (BY_LENGTH, true), (IN_CHUNKS, true)] {
        let (flock, app) = (Flock::default(), stalls(begun, closes).await);
        let a = impatient(&flock, "a").await;
        let _b = impatient(&flock, "b").await;
        flock.register(app.at("near", "1", "a"));
        flock.register(app.at("far", "1", "b"));
        for service in ["near", "far"] {
            let mut client = Client::connect(a.addr()).await;
            client.send("GET", service, "/", "", b"").await;
            let answer = client.head().await;
            assert_eq!(answer.status, 200);
            let body = if answer.header("content-length").is_some() {
                client.bytes(10).await
            } else {
                client.chunk().await.expect("it has begun")
            };
            assert_eq!(body, b"0123456789");
            assert!(!client.fill().await, "nothing follows but the connection's end: no last chunk");
            let spans =
                eventually("its spans", || async { Some(a.last_trace()).filter(|spans| !spans.is_empty()) }).await;
            let told = |span: &starling_core::observe::Span| {
                span.error.as_ref().is_some_and(|error| error.starts_with("response broke off"))
            };
            assert!(spans.iter().any(told), "{spans:?}");

            let caller = Caller::connect(a.addr()).await;
            let (response, _) = caller.begin(request("GET", service, "/"), true).await;
            assert!(hear(response).await.is_err(), "the stream was reset: {begun}");
        }
    }
}

#[tokio::test]
async fn who_can_tell_the_end_only_by_the_connections_is_told_by_a_reset() {
    let (flock, app) = (Flock::default(), stalls(IN_CHUNKS, false).await);
    let a = impatient(&flock, "a").await;
    flock.register(app.at("orders", "1", "a"));
    let mut stream = TcpStream::connect(a.addr()).await.expect("it listens");
    stream.write_all(b"GET / HTTP/1.0\r\nhost: orders\r\n\r\n").await.expect("it is sent");
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("it ends");
    assert_eq!(end.expect_err("it is no ordinary end").kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_instance_whose_answers_stop_half_way_is_taken_out() {
    let (flock, stalls) = (Flock::default(), stalls(BY_LENGTH, true).await);
    let (well, a) = (App::named("well").await, impatient(&flock, "a").await);
    flock.register(stalls.at("orders", "1", "a"));
    eventually("its breaker opens", || async {
        let mut client = Client::connect(a.addr()).await;
        client.send("GET", "orders", "/", "connection: close\r\n", b"").await;
        while client.fill().await {}
        a.metrics().contains("starling_breakers_open{service=\"default/orders\"} 1\n").then_some(())
    })
    .await;
    flock.register(well.at("orders", "2", "a"));
    for _ in 0..20 {
        assert_eq!(a.get("orders", "/").await.text(), "well");
    }
}

#[tokio::test]
async fn an_answer_that_comes_slowly_is_waited_for() {
    let flock = Flock::default();
    let slow = App::talking(|mut stream: TcpStream| async move {
        let _ = stream.read(&mut [0; 4_096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n").await;
        for _ in 0..12 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let _ = stream.write_all(b"x").await;
        }
    })
    .await;
    let a = flock.node_with("a", |settings| settings.body_idle_timeout_ms = 1_000).await;
    flock.register(slow.at("orders", "1", "a"));
    assert_eq!(a.get("orders", "/").await.text(), "xxxxxxxxxxxx");
}
