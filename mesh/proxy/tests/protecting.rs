//! What a host that is burdened too much refuses, and whom it spares.

mod support;

use std::time::Duration;

use starling_core::guard::{Criticality, SystemSettings};
use support::*;

const IN_FLIGHT: &str = "system: too many calls in flight on this host (rule system)";
const TOO_LONG: &str = "system: calls take too long on this host (rule system)";
const PLUS: &str = "x-criticality: critical_plus\r\n";

/// A node that guards its host so.
async fn guarded(flock: &Flock, name: &str, system: SystemSettings) -> Bird {
    flock.node_with(name, |settings| settings.system = system).await
}

fn in_flight(most: u32) -> SystemSettings {
    SystemSettings { max_in_flight: most, ..SystemSettings::default() }
}

/// Clients whose requests have reached an application that holds them back.
async fn held(node: &Bird, app: &App, count: usize) -> Vec<Client> {
    let before = app.requests();
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = Client::connect(node.addr()).await;
        client.send("GET", "orders.mesh", "/", "", b"").await;
        clients.push(client);
    }
    eventually("they arrive", || async { (app.requests() == before + count).then_some(()) }).await;
    clients
}

#[tokio::test]
async fn the_sixth_request_of_five_that_may_be_in_flight_is_refused_however_critical() {
    let (flock, (slow, go)) = (Flock::default(), App::held_back("late").await);
    let a = guarded(&flock, "a", SystemSettings { spare: Some(Criticality::CriticalPlus), ..in_flight(5) }).await;
    flock.register(slow.at("orders", "1", "a"));
    let clients = held(&a, &slow, 5).await;
    for fields in ["", PLUS] {
        let refused = a.send("GET", "orders.mesh", "/", fields, b"").await;
        assert_eq!((refused.status, refused.header("x-starling-reason")), (503, Some(IN_FLIGHT)));
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    assert_eq!(slow.requests(), 5);
    let counted = "starling_guard_refusals_total{service=\"default/orders\",guard=\"system\",\
        reason=\"too many calls in flight on this host\",rule=\"system\"} 2";
    let metrics = a.metrics();
    assert!(metrics.contains(counted) && metrics.contains("starling_system_in_flight 5"), "{metrics}");
    let shown = a.guards("orders");
    let state = &shown["guards"][0];
    assert_eq!((state["guard"].as_str(), state["state"]["in_flight"].as_u64()), (Some("system"), Some(5)));

    go.add_permits(1_000);
    for mut client in clients {
        assert_eq!(client.answer().await.text(), "late");
    }
    eventually("all places", || async { a.metrics().contains("starling_system_in_flight 0").then_some(()) }).await;
    assert_eq!(a.get("orders.mesh", "/").await.status, 200);
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_its_place() {
    let (flock, (slow, _go)) = (Flock::default(), App::held_back("late").await);
    let a = guarded(&flock, "a", in_flight(1)).await;
    flock.register(slow.at("orders", "1", "a"));
    drop(held(&a, &slow, 1).await);
    eventually("its place", || async { a.metrics().contains("starling_system_in_flight 0").then_some(()) }).await;
    held(&a, &slow, 1).await;
}

#[tokio::test]
async fn when_requests_take_too_long_the_most_critical_are_spared_by_header_or_by_their_services_class() {
    let slow = App::answering(|_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        text(200, "slow")
    });
    let (flock, slow) = (Flock::default(), slow.await);
    let system = SystemSettings { max_mean_ms: 1, spare: Some(Criticality::CriticalPlus), ..SystemSettings::default() };
    let a = guarded(&flock, "a", system).await;
    flock.register(slow.at("orders", "1", "a"));
    flock.register(slow.at("pay", "1", "a"));
    flock.policy("pay", "[classes]\ndefault = \"critical_plus\"\n");
    let mut client = Client::connect(a.addr()).await;
    let mut told = Vec::new();
    for (host, fields) in [
        ("orders.mesh", ""),
        ("orders.mesh", ""),
        ("orders.mesh", PLUS),
        ("pay.mesh", ""),
        ("pay.mesh", "x-criticality: critical\r\n"),
    ] {
        client.send("GET", host, "/", fields, b"").await;
        told.push(client.answer().await.header("x-starling-reason").unwrap_or("well").to_owned());
    }
    assert_eq!(told, ["well", TOO_LONG, "well", "well", TOO_LONG]);
}

#[tokio::test]
async fn what_another_host_cannot_take_goes_elsewhere_and_no_breaker_is_opened_by_it() {
    let (flock, (slow, _go)) = (Flock::default(), App::held_back("late").await);
    let a = flock.node("a").await;
    let b = guarded(&flock, "b", in_flight(1)).await;
    let _c = flock.node("c").await;
    flock.register(slow.at("orders", "1", "b"));
    let _held = held(&a, &slow, 1).await;
    for _ in 0..6 {
        let refused = a.send("POST", "orders.mesh", "/", "", b"buy").await;
        let reason = refused.header("x-starling-reason").unwrap_or_default();
        assert!(refused.status == 503 && reason.starts_with(IN_FLIGHT), "{refused:?}");
        assert_eq!(refused.header("retry-after"), Some("1"), "as the other host said");
    }
    assert_eq!(slow.requests(), 1);
    assert!(b.metrics().contains("guard=\"system\""), "{}", b.metrics());
    assert!(a.metrics().contains("starling_breakers_open{service=\"default/orders\"} 0"), "{}", a.metrics());
    let free = App::named("elsewhere").await;
    flock.register(free.at("orders", "2", "c"));
    for _ in 0..3 {
        assert_eq!(a.send("POST", "orders.mesh", "/", "", b"buy").await.text(), "elsewhere");
    }
}

#[tokio::test]
async fn a_host_that_guards_only_what_comes_in_lets_its_own_applications_call() {
    let (flock, (slow, _go)) = (Flock::default(), App::held_back("late").await);
    let a = guarded(&flock, "a", SystemSettings { inbound_only: true, ..in_flight(1) }).await;
    let b = flock.node("b").await;
    flock.register(slow.at("orders", "1", "a"));
    let _own = held(&a, &slow, 2).await;
    let _other = held(&b, &slow, 1).await;
    assert_eq!(b.get("orders.mesh", "/").await.status, 503);
}

/// Takes connections and says nothing until they end.
async fn listening() -> App {
    App::talking(|mut stream| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await
}

#[tokio::test]
async fn a_connection_of_bytes_is_in_flight_until_it_ends() {
    let (flock, app) = (Flock::default(), listening().await);
    let a = flock.node_with("a", |settings| {
        settings.system = in_flight(1);
        settings.upstreams = vec![port_to("db")];
    });
    let a = a.await;
    flock.register_as(app.at("db", "1", "a"), tcp);
    let open = tokio::net::TcpStream::connect(a.port_to("db")).await.unwrap();
    eventually("it is open", || async { a.metrics().contains("starling_system_in_flight 1\n").then_some(()) }).await;
    cut_off_at(a.port_to("db")).await;
    assert_eq!(a.get("db.mesh", "/").await.header("x-starling-reason"), Some(IN_FLIGHT), "as any request is");
    assert_eq!(app.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    drop(open);
    eventually("its place", || async { a.metrics().contains("starling_system_in_flight 0\n").then_some(()) }).await;
    let _next = tokio::net::TcpStream::connect(a.port_to("db")).await.unwrap();
    eventually("the next one is", || async { a.metrics().contains("starling_system_in_flight 1\n").then_some(()) })
        .await;
}

#[tokio::test]
async fn bytes_another_host_cannot_take_go_elsewhere_and_no_breaker_is_opened_by_it() {
    let (flock, full, free) = (Flock::default(), listening().await, listening().await);
    let a = flock.node_with("a", |settings| settings.upstreams = vec![port_to("db")]).await;
    let b = guarded(&flock, "b", in_flight(1)).await;
    let _c = flock.node("c").await;
    flock.register_as(full.at("db", "1", "b"), tcp);
    let _open = tokio::net::TcpStream::connect(a.port_to("db")).await.unwrap();
    eventually("it is open", || async { b.metrics().contains("starling_system_in_flight 1\n").then_some(()) }).await;
    for _ in 0..6 {
        cut_off_at(a.port_to("db")).await;
    }
    assert!(a.metrics().contains("starling_breakers_open{service=\"default/db\"} 0\n"), "{}", a.metrics());
    flock.register_as(free.at("db", "2", "c"), tcp);
    let _other = tokio::net::TcpStream::connect(a.port_to("db")).await.unwrap();
    let connections = |app: &App| app.connections.load(std::sync::atomic::Ordering::SeqCst);
    eventually("it goes elsewhere", || async { (connections(&free) == 1).then_some(()) }).await;
    assert_eq!(connections(&full), 1);
}

#[tokio::test]
async fn a_fallback_that_is_an_answer_stands_in_for_what_the_host_refuses() {
    let (flock, (slow, _go)) = (Flock::default(), App::held_back("late").await);
    let a = guarded(&flock, "a", in_flight(1)).await;
    flock.register(slow.at("orders", "1", "a"));
    flock.policy("orders", "[fallback]\nstatus = 200\nbody = \"none today\"\n");
    let _held = held(&a, &slow, 1).await;
    let answer = a.get("orders.mesh", "/").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "none today"));
    assert_eq!(answer.header("x-starling-reason"), Some(IN_FLIGHT));
    flock.policy("orders", "[fallback]\nservice = \"orders\"\nstatus = 200\nbody = \"none today\"\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 503, "another service would burden the host again");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn load_and_cpu_are_read_where_they_are_limited_and_only_there() {
    let flock = Flock::default();
    let reads = guarded(&flock, "a", SystemSettings { max_cpu_percent: 100, ..SystemSettings::default() }).await;
    let not = guarded(&flock, "b", in_flight(1)).await;
    let is_read = |node: &Bird| {
        let metrics = node.metrics();
        ["cpu", "load"].map(|what| metrics.contains(&format!("starling_system_{what}_percent ")))
    };
    eventually("a reading", || async { (is_read(&reads) == [true; 2]).then_some(()) }).await;
    assert_eq!(is_read(&not), [false; 2]);
    assert!(!flock.node("c").await.metrics().contains("starling_system_"), "no guard, nothing to show");
}
