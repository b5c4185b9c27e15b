//! The listener for redirected connections, as far as it can be seen where nothing is redirected; where something is, see
//! the tests with foreign programs.

mod support;

use support::*;

#[tokio::test]
async fn who_comes_straight_to_it_is_cut_off_and_counted() {
    let flock = Flock::default();
    let at = Some("127.0.0.1:0".parse().unwrap());
    let a = flock.node_with("a", |settings| settings.redirect_listen = at).await;
    assert_eq!(cut_off_at(a.proxy.redirected().unwrap()).await, std::io::ErrorKind::ConnectionReset);
    assert!(a.metrics().contains("starling_redirected_total{by=\"refused\"} 1"), "{}", a.metrics());
}

#[tokio::test]
async fn without_the_setting_there_is_no_such_listener() {
    let a = Flock::default().node("a").await;
    assert_eq!(a.proxy.redirected(), None);
    assert!(!a.metrics().contains("redirected"));
}
