//! Blocking queries.

use super::world::{World, settings};
use crate::model::{ConfigList, InstanceList, MemberList, ServiceList};
use crate::settings::ApiSettings;

#[tokio::test]
async fn a_waiting_query_wakes_when_its_service_changes() {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    a.register("orders", "1", 1).await;
    let revision = a.get("/v1/services/orders").await.revision();
    let waiter = a.wait_for(format!("/v1/services/orders?newer_than={revision}&wait=1m")).await;
    b.register("other", "1", 1).await;
    b.register("orders", "2", 2).await;
    let answer = waiter.await.unwrap().expect(200);
    assert!(answer.revision() > revision);
    assert_eq!(answer.json::<InstanceList>().instances.len(), 2);
}

#[tokio::test]
async fn a_query_without_a_change_is_answered_after_its_wait() {
    let server = World::of(&["a"]).server("a");
    server.register("orders", "1", 1).await;
    let revision = server.get("/v1/services/orders").await.revision();
    let answer = server.get(&format!("/v1/services/orders?newer_than={revision}&wait=20ms")).await.expect(200);
    assert_eq!(answer.revision(), revision);
    let answer = server.get(&format!("/v1/services/orders?newer_than={revision}&wait=0s")).await.expect(200);
    assert_eq!(answer.revision(), revision);
}

#[tokio::test]
async fn a_change_between_two_queries_is_not_lost() {
    let server = World::of(&["a"]).server("a");
    server.register("orders", "1", 1).await;
    let revision = server.get("/v1/services/orders").await.revision();
    server.register("orders", "2", 2).await;
    let answer = server.get(&format!("/v1/services/orders?newer_than={revision}&wait=10m")).await.expect(200);
    assert!(answer.revision() > revision);
}

#[tokio::test]
async fn a_service_that_is_not_there_can_be_waited_for_and_its_end_too() {
    let server = World::of(&["a"]).server("a");
    let revision = server.get("/v1/services/orders").await.expect(404).revision();
    let waiter = server.wait_for(format!("/v1/services/orders?newer_than={revision}&wait=1m")).await;
    server.register("orders", "1", 1).await;
    let revision = waiter.await.unwrap().expect(200).revision();
    let waiter = server.wait_for(format!("/v1/services/orders?newer_than={revision}&wait=1m")).await;
    server.ask("DELETE /v1/services/orders/instances/1", "").await.expect(200);
    assert!(waiter.await.unwrap().expect(404).revision() > revision);
}

#[tokio::test]
async fn a_revision_from_before_a_restart_is_answered_at_once() {
    let server = World::of(&["a"]).server("a");
    server.register("orders", "1", 1).await;
    let later = 1 << 60; // of a start whose clock was ahead
    for path in ["/v1/services/orders", "/v1/services", "/v1/config", "/v1/members"] {
        let answer = server.get(&format!("{path}?newer_than={later}&wait=10m")).await.expect(200);
        assert!(answer.revision() < later);
    }
}

#[tokio::test]
async fn lists_wake_for_their_own_changes() {
    let world = World::of(&["a", "b"]);
    let server = world.server("a");
    let wait = async |path: &str| {
        let revision = server.get(path).await.expect(200).revision();
        (revision, server.wait_for(format!("{path}?newer_than={revision}&wait=1m")).await)
    };
    let services = wait("/v1/services").await;
    let config = wait("/v1/config").await;
    let members = wait("/v1/members").await;

    server.register("orders", "1", 1).await;
    let answer = services.1.await.unwrap().expect(200);
    assert!(answer.revision() > services.0 && answer.json::<ServiceList>().services.len() == 1);

    server.ask("PUT /v1/config/default/app/limits", "x").await.expect(200);
    let answer = config.1.await.unwrap().expect(200);
    assert!(answer.revision() > config.0 && answer.json::<ConfigList>().documents.len() == 1);

    assert!(!members.1.is_finished());
    world.lost("a", "b");
    let answer = members.1.await.unwrap().expect(200);
    assert!(answer.revision() > members.0 && answer.json::<MemberList>().members.len() == 2);
}

#[tokio::test]
async fn waiters_beyond_the_limit_are_refused_and_a_place_comes_free_again() {
    let world = World::of(&["a"]);
    let server = world.server_with("a", ApiSettings { max_waiters: 1, ..settings() });
    let revision = server.get("/v1/services/orders").await.revision();
    let path = format!("/v1/services/orders?newer_than={revision}&wait=1m");
    let waiter = server.wait_for(path.clone()).await;
    let error = server.get(&path).await.expect(429).error();
    assert!(error.error.contains("1 blocking queries"), "{error:?}");
    server.register("orders", "1", 1).await;
    waiter.await.unwrap().expect(200);
    server.get(&path).await.expect(200);
    assert_eq!(server.context.waiters.available_permits(), 1);
}

#[tokio::test]
async fn a_stopping_node_lets_its_waiters_go() {
    let server = World::of(&["a"]).server("a");
    let revision = server.get("/v1/services").await.revision();
    let waiter = server.wait_for(format!("/v1/services?newer_than={revision}&wait=10m")).await;
    server.context.stopping.send_replace(true);
    waiter.await.unwrap().expect(200);
}
