//! The listener, over real loopback sockets.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::world::{World, eventually, settings};
use crate::context::Shared;
use crate::server::Api;
use crate::settings::ApiSettings;

struct Running {
    address: std::net::SocketAddr,
    context: Shared,
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
}

async fn start(world: &World, settings: ApiSettings) -> Running {
    let api = Api::bind(settings, world.port("a"), Vec::new(), Arc::new(AtomicBool::new(true))).await.unwrap();
    let (address, context) = (api.local_addr(), api.context.clone());
    let (stop, stopped) = oneshot::channel();
    let done = tokio::spawn(api.serve(async { drop(stopped.await) }));
    Running { address, context, stop, done }
}

impl Running {
    async fn send(&self, head: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        stream
    }
}

async fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

const GET: &str = "GET /v1/node HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn it_answers_over_a_socket() {
    let world = World::of(&["a"]);
    let running = start(&world, settings()).await;
    let text = answer(running.send(GET, b"").await).await;
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("\"node\":\"a\""), "{text}");
}

#[tokio::test]
async fn a_taken_address_is_said_with_what_to_do() {
    let world = World::of(&["a"]);
    let running = start(&world, settings()).await;
    let again = ApiSettings { listen: running.address, ..settings() };
    let result = Api::bind(again, world.port("a"), Vec::new(), Arc::new(AtomicBool::new(true))).await;
    let error = result.err().unwrap().to_string();
    assert!(error.contains(&running.address.to_string()) && error.contains("api.listen"), "{error}");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let world = World::of(&["a"]);
    let running = start(&world, ApiSettings { max_connections: 1, max_waiters: 0, ..settings() }).await;
    let first = running.send("GET /v1/node HTTP/1.1\r\n", b"").await;
    eventually(|| running.context.counters.connections.lock().unwrap().open == 1).await;
    let refused = answer(running.send(GET, b"").await).await;
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503") && head.contains(&format!("content-length: {}", body.len())), "{head}");
    serde_json::from_str::<crate::model::ErrorBody>(body).unwrap();
    drop(first);
    eventually(|| running.context.counters.connections.lock().unwrap().open == 0).await;
    assert!(answer(running.send(GET, b"").await).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let world = World::of(&["a"]);
    let running = start(&world, ApiSettings { idle_timeout_ms: 20, ..settings() }).await;
    let text = answer(running.send("GET /v1/node HTTP/1.1\r\nhost:", b"").await).await;
    assert!(!text.contains("200 OK"), "{text}");
    eventually(|| running.context.counters.connections.lock().unwrap().open == 0).await;
}

#[tokio::test]
async fn a_waiting_query_is_not_idle() {
    let world = World::of(&["a"]);
    let running = start(&world, ApiSettings { idle_timeout_ms: 10, ..settings() }).await;
    let revision = world.view("a").revision.0;
    let head = format!("GET /v1/services?newer_than={revision}&wait=100ms HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(answer(running.send(&head, b"").await).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answers_is_let_go() {
    let world = World::of(&["a"]);
    let running = start(&world, ApiSettings { write_timeout_ms: 20, ..settings() }).await;
    let mut deaf = TcpStream::connect(running.address).await.unwrap();
    let ask = "GET /v1/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
    // It asks until nothing fits into the sockets' buffers any more, and then fails to ask on.
    while deaf.write_all(ask.as_bytes()).await.is_ok() {}
    eventually(|| running.context.counters.connections.lock().unwrap().open == 0).await;
    assert_eq!(running.context.counters.connections.lock().unwrap().stalled, 1);
    assert!(answer(running.send(GET, b"").await).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_waiting_query_is_not_a_stalled_one() {
    let world = World::of(&["a"]);
    let running = start(&world, ApiSettings { write_timeout_ms: 10, ..settings() }).await;
    let revision = world.view("a").revision.0;
    let head = format!(
        "GET /v1/services?newer_than={revision}&wait=100ms HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    );
    assert!(answer(running.send(&head, b"").await).await.starts_with("HTTP/1.1 200"));
    assert_eq!(running.context.counters.connections.lock().unwrap().stalled, 0);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let world = World::of(&["a"]);
    let running = start(&world, ApiSettings { request_timeout_ms: 20, ..settings() }).await;
    let head = "PUT /v1/config/default/app/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n";
    let text = answer(running.send(head, b"half").await).await;
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_and_its_sender_sees_why() {
    let world = World::of(&["a"]);
    let running = start(&world, settings()).await;
    let body = vec![b'x'; 2 * 1024 * 1024];
    let head =
        format!("PUT /v1/config/default/app/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    let text = answer(running.send(&head, &body).await).await;
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
}

#[tokio::test]
async fn stopping_answers_who_waits_and_then_ends() {
    let world = World::of(&["a"]);
    let running = start(&world, settings()).await;
    let idle = running.send("", b"").await;
    let revision = world.view("a").revision.0;
    let head = format!("GET /v1/services?newer_than={revision}&wait=10m HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let waiting = running.send(&head, b"").await;
    let free = settings().max_waiters;
    eventually(|| running.context.waiters.available_permits() < free).await;
    running.stop.send(()).unwrap();
    assert!(answer(waiting).await.starts_with("HTTP/1.1 200"));
    running.done.await.unwrap();
    assert_eq!(answer(idle).await, "");
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn a_client_that_goes_away_gives_its_place_back() {
    let world = World::of(&["a"]);
    let running = start(&world, settings()).await;
    let revision = world.view("a").revision.0;
    let head = format!("GET /v1/services?newer_than={revision}&wait=10m HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let waiting = running.send(&head, b"").await;
    let free = settings().max_waiters;
    eventually(|| running.context.waiters.available_permits() < free).await;
    drop(waiting);
    eventually(|| running.context.waiters.available_permits() == free).await;
}
