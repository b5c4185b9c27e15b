//! The same over real links: QUIC with mutual TLS between two nodes on loopback.

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Response;
use starling_core::id::MeshName;
use starling_net::{Authority, Identity};
use starling_proxy::ProxySettings;
use support::*;

/// Nodes `a` and `b` of one flock, linked.
async fn pair(flock: &Flock, max_tunnels_at_b: usize) -> (Bird, Bird) {
    pair_with(flock, |_| {}, |settings| settings.max_tunnels = max_tunnels_at_b).await
}

async fn pair_with(
    flock: &Flock,
    change_a: impl FnOnce(&mut ProxySettings),
    change_b: impl FnOnce(&mut ProxySettings),
) -> (Bird, Bird) {
    let authority = Authority::throw_away(&MeshName::default()).expect("an authority");
    let identity = |node: &str| {
        let certificate = authority.issue(&node.parse().expect("a name"), Duration::from_secs(86_400));
        Identity::from_pem(&certificate.expect("a certificate")).expect("an identity")
    };
    let a = flock.linked(&identity("a"), change_a).await;
    let b = flock.linked(&identity("b"), change_b).await;
    a.links().learn(b.links().me(), b.links().local_address());
    b.links().learn(a.links().me(), a.links().local_address());
    eventually("both are linked", || async {
        (a.links().is_up(b.links().me()) && b.links().is_up(a.links().me())).then_some(())
    })
    .await;
    (a, b)
}

#[tokio::test]
async fn requests_share_a_tunnel_and_large_bodies_pass_whole() {
    let flock = Flock::default();
    let echo = App::answering(|request| async move { Response::new(request.into_body().boxed()) }).await;
    let (a, b) = pair(&flock, 10).await;
    flock.register(echo.at("echo", "1", "b"));
    let mut client = Client::connect(a.addr()).await;
    for round in 0..20 {
        client.send("POST", "echo.mesh", "/", "", format!("round {round}").as_bytes()).await;
        assert_eq!(client.answer().await.text(), format!("round {round}"));
    }
    assert_eq!((flock.tunnels(), echo.connections.load(SeqCst)), (1, 1));
    let large = vec![b'x'; 200_000];
    let answer = a.send("PUT", "echo.mesh", "/", "", &large).await;
    assert_eq!((answer.status, answer.body.len()), (200, large.len()));
    assert_eq!(b.spans_of(&answer, 1).await.len(), 1);
}

#[tokio::test]
async fn a_refused_tunnel_is_known_to_have_forwarded_nothing_so_a_post_goes_elsewhere() {
    let flock = Flock::default();
    let stuck = App::answering(|_| std::future::pending()).await;
    let lives = App::named("lives").await;
    let (a, b) = pair(&flock, 1).await;
    flock.register(stuck.at("orders", "1", "b"));
    let mut first = Client::connect(a.addr()).await;
    first.send("GET", "orders", "/", "", b"").await;
    eventually("request arrives", || async { (stuck.requests() == 1).then_some(()) }).await;
    flock.register_as(lives.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().expect("a zone")));
    assert_eq!(a.send("POST", "orders", "/", "", b"buy").await.text(), "lives");
    assert!(b.metrics().contains("starling_tunnels_refused_total 1\n"), "{}", b.metrics());
}

#[tokio::test]
async fn an_answer_on_its_way_when_the_node_drains_comes_whole_through_a_tunnel() {
    let flock = Flock::default();
    let (frames, body) = tokio::sync::mpsc::channel::<bytes::Bytes>(1);
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    let app = App::answering(move |_| {
        let body = body.lock().expect("it goes well").take().expect("it goes well");
        async move { Response::new(Frames(body).boxed()) }
    })
    .await;
    let (a, b) = pair(&flock, 10).await;
    flock.register(app.at("slow", "1", "b"));
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "slow", "/", "", b"").await;
    assert_eq!(client.head().await.status, 200);
    let draining = tokio::spawn(b.proxy.drain(PATIENCE));
    for _ in 0..100 {
        frames.send(bytes::Bytes::from(vec![b'x'; 10_000])).await.expect("it goes well");
    }
    drop(frames);
    let mut received = 0;
    while let Some(chunk) = client.chunk().await {
        received += chunk.len();
    }
    assert_eq!(received, 1_000_000);
    assert!(draining.await.expect("it goes well"));
}

#[tokio::test]
async fn bytes_and_their_ends_and_resets_travel_through_a_tunnel() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    // Repeats what it hears; ends as it is told, and tells how it was ended.
    let (told, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let app = App::talking(move |mut stream| {
        let told = told.clone();
        async move {
            let _ = stream.write_all(b"x").await;
            let end = loop {
                match stream.read_u8().await {
                    Ok(b'r') => return stream.set_zero_linger().expect("it goes well"),
                    Ok(byte) => stream.write_u8(byte).await.expect("it goes well"),
                    Err(error) => break error.kind(),
                }
            };
            let _ = stream.write_all(b"bye").await;
            let _ = told.send(end);
        }
    })
    .await;
    let flock = Flock::default();
    let (a, _b) = pair_with(&flock, |settings| settings.upstreams = vec![port_to("db")], |_| {}).await;
    flock.register_as(app.at("db", "1", "b"), tcp);
    let connect = || async {
        let mut stream = TcpStream::connect(a.port_to("db")).await.expect("it goes well");
        assert_eq!(stream.read_u8().await.expect("it greets"), b'x');
        stream
    };
    let mut stream = connect().await;
    stream.write_all(b"hello").await.expect("it goes well");
    stream.shutdown().await.expect("it goes well");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("it ends well");
    assert_eq!((rest.as_str(), ends.recv().await), ("hellobye", Some(std::io::ErrorKind::UnexpectedEof)));

    let stream = connect().await;
    stream.set_zero_linger().expect("it goes well");
    drop(stream);
    assert_eq!(ends.recv().await, Some(std::io::ErrorKind::ConnectionReset));

    let mut stream = connect().await;
    stream.write_all(b"r").await.expect("it goes well");
    let end = stream.read_u8().await.expect_err("it ends");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}
