//! Registering, listing, overriding.

use starling_core::registry::{Health, Status};
use starling_core::view::Usability;

use super::world::{World, eventually};
use crate::model::{InstanceInfo, InstanceList, Registered, ServiceList, Written};

const ORDERS_1: &str = "/v1/services/orders/instances/o-1";

#[tokio::test]
async fn what_is_registered_at_one_node_is_listed_at_another() {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    let body = r#"{"port": 8080, "version": "1.2", "weight": 50, "tags": ["blue"], "metadata": {"team": "shop"}}"#;
    let registered: Registered = a.ask(&format!("PUT {ORDERS_1}"), body).await.expect(200).json();
    assert_eq!(registered.owner.as_str(), "a");

    let list: InstanceList = b.get("/v1/services/orders").await.expect(200).json();
    let [instance] = &list.instances[..] else { panic!("{list:?}") };
    assert_eq!((instance.id.as_str(), instance.address.as_str(), instance.port), ("o-1", "127.0.0.1", 8080));
    assert_eq!((instance.zone.as_str(), instance.owner.as_str(), instance.weight), ("zone-a", "a", 50));
    assert_eq!((instance.usability, &instance.reason), (Usability::Ready, &None));
    assert_eq!(Some(&instance.stamp), registered.stamp.as_ref());
    assert!(instance.tags.contains("blue") && instance.metadata["team"] == "shop");
    let same: InstanceList = b.get("/v1/services/orders/instances").await.expect(200).json();
    assert_eq!(same, list);
}

#[tokio::test]
async fn a_list_is_as_fresh_as_the_view_however_often_it_was_asked_for() {
    let server = World::of(&["a"]).server("a");
    for port in 1..=5 {
        server.register("orders", &format!("o-{port}"), port).await;
        for path in ["/v1/services/orders", "/v1/services/orders?ready=true"] {
            for _ in 0..2 {
                let list: InstanceList = server.get(path).await.json();
                assert_eq!(list.instances.len(), usize::from(port));
            }
        }
    }
}

#[tokio::test]
async fn filters_let_through_what_they_say() {
    let server = World::of(&["a"]).server("a");
    let put = async |id: &str, body: &str| {
        server.ask(&format!("PUT /v1/services/pay/instances/{id}"), body).await.expect(200);
    };
    put("1", r#"{"port": 1, "zone": "east", "version": "1", "tags": ["x"]}"#).await;
    put("2", r#"{"port": 2, "zone": "west", "version": "2", "tags": ["x", "y"]}"#).await;
    put("3", r#"{"port": 3, "zone": "west", "version": "2", "status": "DOWN"}"#).await;
    let ids = async |query: &str| {
        let list: InstanceList = server.get(&format!("/v1/services/pay?{query}")).await.expect(200).json();
        list.instances.iter().map(|i| i.id.as_str().to_owned()).collect::<String>()
    };
    assert_eq!(ids("").await, "123");
    assert_eq!(ids("ready=true").await, "12");
    assert_eq!(ids("ready").await, "12");
    assert_eq!(ids("zone=west").await, "23");
    assert_eq!(ids("zone=west&ready=true").await, "2");
    assert_eq!(ids("tag=x").await, "12");
    assert_eq!(ids("version=2").await, "23");
    assert_eq!(ids("status=down").await, "3");
    assert_eq!(ids("tag=none").await, "");
}

#[tokio::test]
async fn the_list_of_services_counts_by_usability() {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    a.register("orders", "1", 1).await;
    b.register("orders", "2", 2).await;
    a.ask("PUT /v1/services/pay/instances/p?namespace=shop", r#"{"port": 1, "status": "STARTING"}"#).await.expect(200);
    world.lost("a", "b");
    let list: ServiceList = a.get("/v1/services").await.expect(200).json();
    let [orders, pay] = &list.services[..] else { panic!("{list:?}") };
    assert_eq!((orders.instances, orders.usability.ready, orders.usability.owner_lost), (2, 1, 1));
    assert_eq!((pay.namespace.as_str(), pay.usability.status), ("shop", 1));
    let names = async |query: &str| {
        let list: ServiceList = a.get(&format!("/v1/services?{query}")).await.expect(200).json();
        list.services.iter().map(|s| s.service.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("namespace=shop").await, ["pay"]);
    assert_eq!(names("prefix=or").await, ["orders"]);

    let lost: InstanceInfo = a.get("/v1/services/orders/instances/2").await.expect(200).json();
    assert_eq!(lost.reason.as_deref(), Some("its node b is lost from here"));
}

#[tokio::test]
async fn an_operators_word_wins_until_it_is_taken_back() {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    a.register("orders", "o-1", 1).await;
    let word = r#"{"status": "OUT_OF_SERVICE", "weight": 7, "reason": "disk is full"}"#;
    let written: Written = b.ask(&format!("PUT {ORDERS_1}/override"), word).await.expect(200).json();
    assert_eq!(written.node.as_str(), "b");
    let seen: InstanceInfo = a.get(ORDERS_1).await.expect(200).json();
    assert_eq!((seen.status, seen.weight, seen.usability), (Status::OutOfService, 7, Usability::Status));
    assert_eq!(seen.reason.as_deref(), Some("its status is OUT_OF_SERVICE by an operator's override: disk is full"));
    assert_eq!(seen.owner_says.map(|owner| (owner.status, owner.weight)), Some((Status::Up, 100)));
    a.ask(&format!("DELETE {ORDERS_1}/override"), "").await.expect(200);
    let seen: InstanceInfo = b.get(ORDERS_1).await.expect(200).json();
    assert_eq!((seen.status, seen.override_), (Status::Up, None));

    let error = a.ask(&format!("PUT {ORDERS_1}/override"), r#"{"reason": "why not"}"#).await.expect(400).error();
    assert!(error.error.contains("a status, a weight, or both"), "{error:?}");
}

#[tokio::test]
async fn only_the_owner_changes_the_status() {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    a.register("orders", "o-1", 1).await;
    let error = b.ask(&format!("PUT {ORDERS_1}/status"), r#"{"status": "DOWN"}"#).await.expect(409).error();
    assert_eq!(error.owner.unwrap().as_str(), "a");
    a.ask(&format!("PUT {ORDERS_1}/status"), r#"{"status": "DOWN"}"#).await.expect(200);
    let seen: InstanceInfo = b.get(ORDERS_1).await.json();
    assert_eq!(seen.reason.as_deref(), Some("its status is DOWN by its owner's word"));
}

#[tokio::test]
async fn a_lease_is_renewed_with_or_without_a_body_and_taken_over_by_another_node() {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    let body = r#"{"port": 1, "check": {"kind": "ttl", "interval_ms": 60000, "failures_to_fail": 1}}"#;
    a.ask(&format!("PUT {ORDERS_1}"), body).await.expect(200);
    a.ask(&format!("PUT {ORDERS_1}/renew"), "").await.expect(200);
    let renewed: Registered =
        b.ask(&format!("POST {ORDERS_1}/heartbeat"), r#"{"passing": true}"#).await.expect(200).json();
    assert_eq!(renewed.owner.as_str(), "b");
    b.ask(&format!("PUT {ORDERS_1}/renew"), r#"{"passing": false, "reason": "no database"}"#).await.expect(200);
    let seen: InstanceInfo = a.get(ORDERS_1).await.json();
    assert_eq!((seen.owner.as_str(), seen.health, seen.usability), ("b", Health::Failing, Usability::Health));
}

#[tokio::test]
async fn what_is_removed_is_gone_everywhere() {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    a.register("orders", "o-1", 1).await;
    b.ask(&format!("DELETE {ORDERS_1}"), "").await.expect(200);
    a.get("/v1/services/orders").await.expect(404);
    a.ask(&format!("DELETE {ORDERS_1}"), "").await.expect(404);
}

#[tokio::test]
async fn a_wrong_name_is_answered_with_the_one_that_was_meant() {
    let server = World::of(&["a"]).server("a");
    server.register("orders", "o-1", 1).await;
    server.ask("PUT /v1/services/pay/instances/p?namespace=shop", r#"{"port": 1}"#).await.expect(200);
    let hint = async |line: &str| server.ask(line, r#"{"status": "UP"}"#).await.expect(404).error().hint.unwrap();
    assert_eq!(hint("GET /v1/services/ordres").await, "did you mean orders?");
    assert_eq!(hint("GET /v1/services/orders/instances/o-2").await, "did you mean o-1?");
    assert_eq!(hint("PUT /v1/services/order/instances/o-1/override").await, "did you mean orders?");
    assert_eq!(hint("GET /v1/services/pay").await, "there is one in namespace shop: add ?namespace=shop");
    assert!(hint("GET /v1/service").await.starts_with("did you mean /v1/services?"));
}

#[tokio::test]
async fn a_wrong_request_is_told_which_field_is_wrong() {
    let server = World::of(&["a"]).server("a");
    let refused = async |line: &str, body: &str, says: &str, hint: Option<&str>| {
        let error = server.ask(line, body).await.expect(400).error();
        assert!(error.error.contains(says), "{error:?}");
        assert_eq!(error.hint.as_deref(), hint, "{error:?}");
    };
    let put = format!("PUT {ORDERS_1}");
    refused(&put, r#"{"port": 1, "wieght": 3}"#, "`wieght`", Some("did you mean weight?")).await;
    refused(&put, r#"{"port": 1, "check": {"kind": "http", "pth": "/"}}"#, "check", Some("did you mean path?")).await;
    refused(&put, r#"{"port": "x"}"#, "port: invalid type", None).await;
    refused(&put, r#"{"port": 1, "protocol": "htpp"}"#, "protocol", Some("did you mean http?")).await;
    refused(&put, r#"{"port": 0}"#, "port is 0", None).await;
    refused(&put, r#"{}"#, "missing field `port`", None).await;
    refused(&put, r#"{"port": 1} extra"#, "trailing", None).await;
    refused(&put, "", "empty", None).await;
    refused(&put, r#"{"port": 1, "check": {"kind": "ttl", "interval_ms": 1}}"#, "interval", None).await;
    refused("PUT /v1/services/a%20b/instances/1", r#"{"port": 1}"#, "service name \"a b\"", None).await;
    refused("GET /v1/services?prefx=a", "", "prefx", Some("did you mean prefix?")).await;
    refused("GET /v1/services/orders?ready=maybe", "", "neither true nor false", None).await;
    refused("GET /v1/services/orders?newer_than=1&wait=soon", "", "500ms, 30s or 2m", None).await;
    refused("GET /v1/services/orders?namespace=a.b", "", "namespace", None).await;
}

#[tokio::test]
async fn a_full_queue_is_said_at_once() {
    let world = World::of(&["a"]);
    let server = world.server("a");
    world.busy();
    let answer = server.ask(&format!("PUT {ORDERS_1}"), r#"{"port": 1}"#).await.expect(503);
    assert_eq!(answer.header("retry-after"), "1");
    assert!(answer.error().error.contains("busy"));
}

#[tokio::test]
async fn a_write_is_answered_when_the_view_shows_it() {
    let world = World::of(&["a"]);
    let server = world.server("a");
    world.hold_views();
    let writer = server.clone();
    let write = tokio::spawn(async move { writer.register("orders", "o-1", 1).await });
    eventually(|| world.commands() == 1).await;
    tokio::task::yield_now().await;
    assert!(!write.is_finished());
    world.release_views();
    write.await.unwrap();
    server.get(ORDERS_1).await.expect(200);
}
