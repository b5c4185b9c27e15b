//! Who is refused when calls queue, and that nobody is for being slow.

mod support;

use std::time::Duration;

use support::*;

/// Requests of these classes, all sent before the first is answered.
async fn sent(node: &Bird, classes: &[&str]) -> Vec<Client> {
    let mut clients = Vec::new();
    for class in classes {
        let mut client = Client::connect(node.addr()).await;
        client.send("GET", "orders.mesh", "/", &format!("x-criticality: {class}\r\n"), b"").await;
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn a_service_that_answers_slowly_is_not_overloaded() {
    let slow = App::answering(|_| async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        text(200, "slow")
    });
    let (flock, slow) = (Flock::default(), slow.await);
    let a = flock.node("a").await;
    flock.register(slow.at("orders", "1", "a"));
    // A window ends with every ten calls: whatever has been measured until then has its effect on the next. Nothing but the
    // answers takes as long as what is too long.
    flock.policy(
        "orders",
        "[bulkhead]\nmax_concurrent = 100\nqueue.max_queue = 100\n[shed]\nwindow_calls = 10\ntarget_ms = 400\n",
    );
    for _ in 0..3 {
        for mut client in sent(&a, &["sheddable"; 12]).await {
            assert_eq!(client.answer().await.text(), "slow");
        }
    }
    let shed = a.guard("orders", "shed");
    assert_eq!((&shed["overloads"], &shed["admitted_percent"][3]), (&0.into(), &100.into()), "{shed}");
}

#[tokio::test]
async fn calls_that_queue_get_the_least_important_refused_and_the_others_are_answered() {
    let (flock, (app, go)) = (Flock::default(), App::held_back("late").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    // Windows end by calls alone, so that a slow machine changes nothing.
    flock.policy(
        "orders",
        "[bulkhead]\nmax_concurrent = 1\nqueue.max_queue = 100\nqueue.max_wait_ms = 60000\n\
         [shed]\ntarget_ms = 1\nwindow_ms = 60000\nwindow_calls = 10\n",
    );
    let classes: Vec<&str> = (0..18).map(|i| if i % 3 == 1 { "sheddable" } else { "critical_plus" }).collect();
    let refused_so_far = || a.guard("orders", "shed")["refused"][3].as_u64().unwrap_or_default();
    let is_held = |all: u64| {
        let bulkhead = a.guard("orders", "bulkhead");
        let count = |of: &str| bulkhead[of].as_u64().unwrap_or_default();
        count("waiting") + count("entered") + refused_so_far() == all
    };
    let (mut refused, mut rounds) = (0, 0);
    while refused < 6 {
        assert!(rounds < 60, "{}", a.guard("orders", "shed"));
        let refused_before = refused_so_far();
        // The first of a round ends the window before, and is counted there: it must be none of those that are to go first.
        let mut clients = sent(&a, &classes[..1]).await;
        eventually("the first is here", || async { is_held(18 * rounds + 1).then_some(()) }).await;
        clients.extend(sent(&a, &classes[1..]).await);
        rounds += 1;
        eventually("all wait", || async { is_held(18 * rounds).then_some(()) }).await;
        tokio::time::sleep(Duration::from_millis(5)).await; // this is how long they wait at least
        refused = refused_so_far() - refused_before;
        go.add_permits(clients.len() - refused as usize); // none is left over for the next round
        let mut told = 0;
        for (mut client, class) in clients.into_iter().zip(&classes) {
            let answer = client.answer().await;
            if answer.status != 200 {
                let reason = answer.header("x-starling-reason");
                assert_eq!(reason, Some("shed: less critical than there is room for (rule sheddable)"), "{class}");
                assert_eq!((answer.status, answer.header("retry-after")), (503, Some("60")));
                told += 1;
            }
        }
        assert_eq!(told, refused);
    }
    let shed = a.guard("orders", "shed");
    assert_eq!((&shed["admitted_percent"][0], &shed["refused"][0]), (&100.into(), &0.into()), "{shed}");
}

#[tokio::test]
async fn where_nobody_may_wait_those_who_find_no_place_are_the_measure() {
    let (flock, (app, go)) = (Flock::default(), App::held_back("late").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[bulkhead]\nmax_concurrent = 1\n[shed]\nwindow_ms = 60000\nwindow_calls = 10\n");
    let held = sent(&a, &["critical_plus"]).await;
    eventually("it arrives", || async { (app.requests() == 1).then_some(()) }).await;
    for _ in 0..10 {
        a.send("GET", "orders.mesh", "/", "x-criticality: critical_plus\r\n", b"").await;
    }
    assert_eq!(a.guard("orders", "shed")["overloads"], 1);
    go.add_permits(1);
    drop(held);
}

#[tokio::test]
async fn the_queue_of_a_route_set_apart_gets_nobody_else_refused() {
    let (flock, (app, _go)) = (Flock::default(), App::held_back("late").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy(
        "orders",
        "[bulkhead]\n[shed]\nwindow_ms = 60000\nwindow_calls = 10\n\
         [[route]]\npath = \"/report\"\nbulkhead.max_concurrent = 1\n",
    );
    let mut held = Client::connect(a.addr()).await;
    held.send("GET", "orders.mesh", "/report", "", b"").await;
    eventually("it arrives", || async { (app.requests() == 1).then_some(()) }).await;
    for _ in 0..30 {
        assert_eq!(a.get("orders.mesh", "/report").await.status, 503);
    }
    assert_eq!(a.guard("orders", "shed")["overloads"], 0);
}
