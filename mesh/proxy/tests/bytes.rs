//! Connections of bytes: through a port that leads to the service, whoever speaks first, to the end of both directions.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Greets, then says everything back until there is no more, then says good-bye.
async fn parrot() -> App {
    App::talking(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = write.write_all(b"HELLO\n").await;
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.write_all(b"BYE\n").await;
    })
    .await
}

/// A node `a` with a port to `near` (an instance of its own) and one to `far` (an instance of node `b`).
async fn near_and_far(flock: &Flock, app: &App) -> (Bird, Bird) {
    let ports = vec![port_to("near"), port_to("far")];
    let a = flock.node_with("a", |settings| settings.upstreams = ports).await;
    let b = flock.node("b").await;
    flock.register_as(app.at("near", "1", "a"), tcp);
    flock.register_as(app.at("far", "1", "b"), tcp);
    (a, b)
}

async fn bytes(stream: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("it comes in time").expect("it comes");
    bytes
}

async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it ends in time").expect("it ends well");
    bytes
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_and_each_direction_ends_by_itself() {
    let (flock, app) = (Flock::default(), parrot().await);
    let (a, b) = near_and_far(&flock, &app).await;
    for service in ["near", "far"] {
        let mut stream = TcpStream::connect(a.port_to(service)).await.unwrap();
        assert_eq!(bytes(&mut stream, 6).await, b"HELLO\n", "{service}");
        stream.write_all(b"once").await.unwrap();
        assert_eq!(bytes(&mut stream, 4).await, b"once");
        stream.write_all(b"more").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await, b"moreBYE\n");
    }
    eventually("both are counted", || async {
        let counted = |bird: &Bird, line: &str| bird.metrics().contains(line);
        let at_a = r#"starling_tcp_connections_total{service="default/far",direction="outbound",end="whole"} 1"#;
        let at_b = r#"starling_tcp_connections_total{service="default/far",direction="inbound",end="whole"} 1"#;
        let sent = r#"starling_tcp_bytes_total{service="default/far",direction="outbound",way="sent"} 8"#;
        let received = r#"starling_tcp_bytes_total{service="default/far",direction="inbound",way="received"} 18"#;
        (counted(&a, at_a) && counted(&b, at_b) && counted(&a, sent) && counted(&b, received)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn megabytes_pass_whole_in_both_directions_at_once() {
    let app = App::talking(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let flock = Flock::default();
    let (a, _b) = near_and_far(&flock, &app).await;
    let mut rng = fastrand::Rng::with_seed(7);
    let sent: Arc<Vec<u8>> = Arc::new((0..8 << 20).map(|_| rng.u8(..)).collect());
    for service in ["near", "far"] {
        let (mut read, mut write) = TcpStream::connect(a.port_to(service)).await.unwrap().into_split();
        let all = sent.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&all).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        timeout(PATIENCE, read.read_to_end(&mut received)).await.unwrap().unwrap();
        assert!(received == *sent, "{service}: {} bytes came back", received.len());
        writing.await.unwrap();
    }
}

#[tokio::test]
async fn whoever_is_not_read_from_is_not_read_from_and_nothing_piles_up() {
    let app = App::talking(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let flock = Flock::default();
    let (a, _b) = near_and_far(&flock, &app).await;
    for service in ["near", "far"] {
        let mut stream = TcpStream::connect(a.port_to(service)).await.unwrap();
        let mut taken = 0;
        let chunk = vec![0; 64 * 1024];
        // The kernel's buffers fill first; what the sidecars add to them is far less.
        while let Ok(written) = timeout(Duration::from_millis(500), stream.write(&chunk)).await {
            taken += written.unwrap();
            assert!(taken < 64 << 20, "{service}: it takes more and more");
        }
        let passed =
            format!(r#"starling_tcp_bytes_total{{service="default/{service}",direction="outbound",way="sent"}} "#);
        let passed: usize = a.metrics().split_once(&passed).unwrap().1.lines().next().unwrap().parse().unwrap();
        assert!(taken >= passed, "{service}: {taken} taken, {passed} passed on");
    }
}

#[tokio::test]
async fn an_instance_that_cannot_be_reached_is_passed_over_before_a_byte_is_lost() {
    let (flock, app) = (Flock::default(), parrot().await);
    let (a, _b) = near_and_far(&flock, &app).await;
    let nowhere = nowhere().await;
    flock.register_as(Place { service: "near", id: "dead", owner: "a", address: nowhere }, tcp);
    flock.register_as(Place { service: "far", id: "dead", owner: "b", address: nowhere }, tcp);
    for service in ["near", "far"] {
        for _ in 0..30 {
            let mut stream = TcpStream::connect(a.port_to(service)).await.unwrap();
            stream.write_all(b"early").await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(rest(&mut stream).await, b"HELLO\nearlyBYE\n", "{service}");
        }
        let opened = format!("starling_breaker_opens_total{{service=\"default/{service}\"}} 1\n");
        assert!(a.metrics().contains(&opened), "{service}: its breaker has opened: {}", a.metrics());
    }
}

#[tokio::test]
async fn an_instance_that_hangs_up_on_everybody_is_taken_out_while_there_is_a_better_one() {
    let (flock, app) = (Flock::default(), parrot().await);
    let hangs_up = App::talking(|stream| async move { drop(stream) }).await;
    let (a, _b) = near_and_far(&flock, &app).await;
    flock.register_as(hangs_up.at("near", "2", "a"), tcp);
    let mut failed = 0;
    for _ in 0..60 {
        let mut stream = TcpStream::connect(a.port_to("near")).await.unwrap();
        let mut first = [0; 6];
        let heard = timeout(PATIENCE, stream.read_exact(&mut first)).await.expect("it does not hang");
        failed += usize::from(heard.is_err());
    }
    assert!((1..=10).contains(&failed), "{failed} of 60 connections met it");
}

#[tokio::test]
async fn connections_go_where_there_are_fewer() {
    let flock = Flock::default();
    let (one, two) = (parrot().await, parrot().await);
    let a = flock.node_with("a", |settings| settings.upstreams = vec![port_to("db")]).await;
    flock.register_as(one.at("db", "1", "a"), tcp);
    flock.register_as(two.at("db", "2", "a"), tcp);
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(a.port_to("db")).await.unwrap();
        assert_eq!(bytes(&mut stream, 6).await, b"HELLO\n");
        held.push(stream);
    }
    let counts = (one.connections.load(SeqCst), two.connections.load(SeqCst));
    assert!(counts.0.abs_diff(counts.1) <= 10, "{counts:?}");
}

#[tokio::test]
async fn a_connection_that_carries_nothing_for_too_long_is_cut_off() {
    let (flock, app) = (Flock::default(), parrot().await);
    let change = |settings: &mut starling_proxy::ProxySettings| {
        settings.upstreams = vec![port_to("db")];
        settings.tcp_idle_timeout_ms = 300;
    };
    let a = flock.node_with("a", change).await;
    flock.register_as(app.at("db", "1", "a"), tcp);
    let mut stream = TcpStream::connect(a.port_to("db")).await.unwrap();
    assert_eq!(bytes(&mut stream, 6).await, b"HELLO\n");
    let end = timeout(PATIENCE, stream.read_u8()).await.expect("it ends");
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(a.metrics().contains(r#"direction="outbound",end="idle"} 1"#), "{}", a.metrics());
}

#[tokio::test]
async fn a_reset_travels_from_end_to_end() {
    // Says what the end of each connection looked like.
    let (told, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let app = App::talking(move |mut stream| {
        let told = told.clone();
        async move {
            let _ = stream.write_all(b"x").await;
            match stream.read_u8().await {
                Ok(b'r') => stream.set_zero_linger().unwrap(),
                end => _ = told.send(end.map_err(|error| error.kind())),
            }
        }
    })
    .await;
    let flock = Flock::default();
    let (a, _b) = near_and_far(&flock, &app).await;
    let reset = Err(std::io::ErrorKind::ConnectionReset);
    let mut stream = TcpStream::connect(a.port_to("near")).await.unwrap();
    bytes(&mut stream, 1).await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    assert_eq!(timeout(PATIENCE, ends.recv()).await.unwrap(), Some(reset));
    let mut stream = TcpStream::connect(a.port_to("near")).await.unwrap();
    bytes(&mut stream, 1).await;
    stream.write_all(b"r").await.unwrap();
    assert_eq!(stream.read_u8().await.map_err(|error| error.kind()), reset);
}

#[tokio::test]
async fn whoever_only_writes_learns_that_the_instance_is_gone() {
    let app = App::talking(|mut stream| async move { stream.write_all(b"BYE").await.unwrap_or_default() }).await;
    let flock = Flock::default();
    let (a, _b) = near_and_far(&flock, &app).await;
    for service in ["near", "far"] {
        let mut stream = TcpStream::connect(a.port_to(service)).await.unwrap();
        assert_eq!(rest(&mut stream).await, b"BYE", "{service}");
        eventually("it cannot write any more", || async {
            let written = stream.try_write(b"more");
            written.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_port_to_a_service_of_http_takes_requests_whatever_host_they_name() {
    let (flock, app) = (
        Flock::default(),
        App::answering(|request| async move {
            let host = request.headers()["host"].to_str().unwrap_or_default().to_owned();
            text(200, host)
        })
        .await,
    );
    let ports = vec![port_to("web")];
    let a = flock.node_with("a", |settings| settings.upstreams = ports).await;
    let _b = flock.node("b").await;
    let ask = |to: SocketAddr| async move {
        let mut client = Client::connect(to).await;
        client.send("GET", "www.example.org", "/", "", b"").await;
        client.answer().await
    };
    let answer = ask(a.port_to("web")).await;
    assert_eq!(answer.status, 503, "before there is such a service");
    assert!(answer.text().contains("no service default/web is registered"), "{}", answer.text());
    flock.register(app.at("web", "1", "b"));
    let answer = ask(a.port_to("web")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "www.example.org"));
}

#[tokio::test]
async fn without_an_instance_a_connection_is_cut_off_and_a_trace_says_why() {
    let flock = Flock::default();
    let ports =
        vec![starling_proxy::BoundPort { protocol: Some(starling_core::registry::Protocol::Tcp), ..port_to("db") }];
    let a = flock.node_with("a", |settings| settings.upstreams = ports).await;
    assert_eq!(cut_off_at(a.port_to("db")).await, std::io::ErrorKind::ConnectionReset);
    assert!(
        a.metrics()
            .contains(r#"starling_tcp_connections_total{service="unknown",direction="outbound",end="failed"} 1"#)
    );
}

#[tokio::test]
async fn a_connection_is_one_trace_over_both_nodes() {
    let (flock, app) = (Flock::default(), parrot().await);
    let (a, b) = near_and_far(&flock, &app).await;
    let mut stream = TcpStream::connect(a.port_to("far")).await.unwrap();
    assert_eq!(bytes(&mut stream, 6).await, b"HELLO\n");
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, b"BYE\n");
    let spans = eventually("spans", || async {
        let client = a.last_trace().pop()?;
        let server = b.trace(client.trace).pop()?;
        Some([client, server])
    })
    .await;
    let [client, server] = spans;
    assert_eq!((server.parent, client.name.as_str()), (Some(client.id), "tcp"));
    assert_eq!((client.attributes["bytes.received"].as_str(), client.error.as_ref()), ("10", None));
    assert_eq!(server.attributes["client.node"], "a");
}

#[tokio::test]
async fn who_may_not_call_a_service_of_bytes_is_cut_off_before_its_instance_hears_of_it() {
    let (flock, app) = (Flock::default(), parrot().await);
    let (a, b) = near_and_far(&flock, &app).await;
    for service in ["near", "far"] {
        flock.document("access", service, "[[allow]]\ncallers = [\"shop\"]");
        assert_eq!(cut_off_at(a.port_to(service)).await, std::io::ErrorKind::ConnectionReset, "{service}");
    }
    assert_eq!(app.connections.load(SeqCst), 0);
    for (bird, service) in [(&a, "near"), (&b, "far")] {
        let denied = format!("starling_access_denied_total{{service=\"default/{service}\"}} 1\n");
        assert!(bird.metrics().contains(&denied), "{}", bird.metrics());
    }
    // In the name of a service that this node has, it may.
    let caller = App::named("shop").await;
    flock.deregister("near", "1");
    flock.register(caller.at("shop", "1", "a"));
    let mut stream = TcpStream::connect(a.port_to("far")).await.unwrap();
    assert_eq!(bytes(&mut stream, 6).await, b"HELLO\n");
}

#[tokio::test]
async fn a_way_asked_for_by_connect_carries_bytes_to_one_service_and_requests_to_another() {
    let (flock, app) = (Flock::default(), parrot().await);
    let (a, _b) = near_and_far(&flock, &app).await;
    let web = App::answering(|request| async move { text(200, request.uri().path()) }).await;
    flock.register(web.at("web", "1", "b"));
    for service in ["near", "far"] {
        let mut client = Client::connect(a.addr()).await;
        client.send("CONNECT", "ignored", &format!("{service}.mesh:5432"), "", b"").await;
        assert_eq!(client.head().await.status, 200);
        assert_eq!(client.bytes(6).await, b"HELLO\n");
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.bytes(4).await, b"BYE\n");
    }
    let mut client = Client::connect(a.addr()).await;
    // What is inside may come with the word that asks for it.
    let together = b"CONNECT web.mesh:80 HTTP/1.1\r\nhost: web.mesh:80\r\n\r\nGET /1 HTTP/1.1\r\nhost: x.org\r\n\r\n";
    client.stream.write_all(together).await.unwrap();
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.answer().await.text(), "/1");
    client.send("GET", "other.org", "/2", "", b"").await;
    assert_eq!(client.answer().await.text(), "/2");
    client.send("CONNECT", "web.mesh:80", "web.mesh:80", "", b"").await;
    assert_eq!(client.answer().await.status, 501, "a way within a way");
}

#[tokio::test]
async fn there_is_no_way_out_of_the_mesh_and_none_to_what_cannot_be_reached() {
    let flock = Flock::default();
    let a = flock.node("a").await;
    flock.register_as(Place { service: "down", id: "1", owner: "a", address: nowhere().await }, tcp);
    for (target, status, why) in [
        ("www.example.org:443", 421, "is not of this mesh"),
        ("127.0.0.1:22", 421, "is not of this mesh"),
        ("nobody.mesh:1", 503, "no service default/nobody"),
        ("down.mesh:1", 503, "no connection to"),
    ] {
        let mut client = Client::connect(a.addr()).await;
        client.send("CONNECT", target, target, "", b"").await;
        let answer = client.answer().await;
        assert_eq!(answer.status, status, "{target}");
        assert!(answer.text().contains(why), "{target}: {}", answer.text());
    }
}
