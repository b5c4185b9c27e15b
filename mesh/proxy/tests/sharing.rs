//! Quotas of the whole mesh, through proxies.

mod support;

use std::time::{Duration, Instant};

use support::*;

/// Calls a second that all nodes together may let through.
const QUOTA: u32 = 20;

#[tokio::test]
async fn two_sidecars_together_let_through_what_the_quota_says() {
    let (flock, app) = (Flock::default(), App::named("well").await);
    let (a, b) = (flock.node("a").await, flock.node("b").await);
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
    // What the quota allows in this time, a second's saving of each share, and the tenth that each took before it knew.
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
