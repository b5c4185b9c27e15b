//! Quotas of the whole mesh, through proxies.

mod support;

use std::time::{Duration, Instant};

use starling_core::view::MemberState;
use support::*;

/// Calls a second that all nodes together may let through.
const QUOTA: u32 = 20;

#[tokio::test]
async fn two_sidecars_together_let_through_what_the_quota_says() {
    let (flock, app) = (Flock::default(), App::named("well").await);
    let (a, b) = (flock.node("a").await, flock.node("b").await);
    ["a", "b"].into_iter().for_each(|node| flock.member(node, MemberState::Alive));
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", &format!("[[quota]]\nname = \"all\"\ncount = {QUOTA}\n"));
    let began = Instant::now();
    let (mut passed, mut refused) = ([0u32; 2], None);
    // Ten times the quota is asked, by twos, until sharing must have shown.
    while began.elapsed() < Duration::from_millis(2_500) {
        for (node, passed) in [&a, &b].into_iter().zip(&mut passed) {
            let answer = node.get("orders.mesh", "/").await;
            match answer.status {
                200 => *passed += 1,
                _ => refused = Some(answer),
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answer = refused.expect("far more is asked than the quota allows");
    assert_eq!(answer.status, 429);
    assert!(answer.header("retry-after").is_some());
    let reason = answer.header("x-starling-reason").unwrap();
    assert!(reason.contains("quota") && reason.contains("rule all"), "{reason}");
    // What the quota allows in this time, a second's saving of each share, and what was not known of the other.
    let allowed = f64::from(QUOTA) * (began.elapsed().as_secs_f64() + 1.0 + 2.0 * 0.1 * 1.5);
    assert!(f64::from(passed.iter().sum::<u32>()) <= allowed + 2.0, "{passed:?} of {allowed}");
    assert!(passed.iter().all(|passed| *passed > 0), "{passed:?}");
}

#[tokio::test]
async fn a_quota_nobody_has_asked_for_yet_lets_the_first_call_through() {
    let (flock, app) = (Flock::default(), App::named("well").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[[quota]]\ncount = 1\nper_ms = 60000\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 200);
    assert_eq!(a.get("orders.mesh", "/").await.status, 429);
}

#[tokio::test]
async fn what_a_node_may_use_of_a_quota_and_what_is_asked_of_it_are_shown() {
    let (flock, app) = (Flock::default(), App::named("well").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", &format!("[[quota]]\nname = \"all\"\ncount = {QUOTA}\n"));
    let shown = eventually("a share", || async {
        a.get("orders.mesh", "/").await;
        let report = a.guards("orders");
        let quota = &report["guards"][0];
        assert_eq!(quota["guard"], "quota");
        let is_known = quota["state"]["share_per_s"] == f64::from(QUOTA);
        (is_known && quota["state"]["demand_per_s"].as_f64() > Some(0.0)).then(|| quota["state"].clone())
    });
    assert_eq!(shown.await["limit_per_s"], f64::from(QUOTA), "alone, a node may use all of it");
    let metrics = a.metrics();
    let of_quota = |what: &str| format!("starling_quota_{what}_per_second{{service=\"default/orders\",rule=\"all\"}} ");
    assert!(metrics.contains(&(of_quota("share") + "20")) && metrics.contains(&of_quota("demand")), "{metrics}");
}

#[tokio::test]
async fn a_related_limit_gives_way_to_another_route_and_an_entrance_limits_only_who_came_through_it() {
    let (flock, app) = (Flock::default(), App::named("well").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let policy = r#"
[[route]]
name = "write"
path_prefix = "/write"
[[route]]
name = "read"
path_prefix = "/read"
[[route.limit]]
name = "reads"
count = 3
per_ms = 60000
related = "write"
[[route.limit]]
name = "of-cart"
count = 1
per_ms = 60000
entrance = "cart"
"#;
    flock.policy("orders", policy);
    for (path, status) in
        [("/read", 200), ("/read", 200), ("/write", 200), ("/write", 200), ("/read", 200), ("/write", 200)]
    {
        assert_eq!(a.get("orders.mesh", path).await.status, status, "{path}");
    }
    let refused = a.get("orders.mesh", "/read").await;
    assert_eq!(refused.status, 429);
    assert!(refused.header("x-starling-reason").unwrap().contains("related"), "{refused:?}");
    assert_eq!(a.get("orders.mesh", "/write").await.status, 200, "the other has no limit");
    // This host's applications call on behalf of its only service.
    flock.policy("orders", "[[limit]]\nname = \"own\"\ncount = 1\nper_ms = 60000\nentrance = \"orders\"\n");
    assert_eq!([a.get("orders.mesh", "/").await.status, a.get("orders.mesh", "/").await.status], [200, 429]);
}
