//! Instances that breakers take out: how many at once, and how they come back.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use starling_core::registry::{Check, CheckKind};
use support::*;

/// An application that answers `/health` by one switch and all else by another, and counts what it was asked.
struct Patient {
    app: App,
    healthy: Arc<AtomicBool>,
    works: Arc<AtomicBool>,
    /// Requests other than those for its health.
    work: Arc<AtomicUsize>,
    checks: Arc<AtomicUsize>,
}

impl Patient {
    async fn ill() -> Self {
        let (healthy, works) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (work, checks) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let switches = (healthy.clone(), works.clone(), work.clone(), checks.clone());
        let app = App::answering(move |request| {
            let (healthy, works, work, checks) = switches.clone();
            async move {
                let is_check = request.uri().path() == "/health";
                if is_check { &checks } else { &work }.fetch_add(1, SeqCst);
                let good = if is_check { &healthy } else { &works }.load(SeqCst);
                text(if good { 200 } else { 500 }, "patient")
            }
        });
        Self { app: app.await, healthy, works, work, checks }
    }
}

/// Its health is what `/health` says.
fn checked(view: &mut starling_core::view::InstanceView) {
    change(view, |instance| {
        let check = Check::new(CheckKind::Http { path: "/health".into() });
        instance.details = starling_core::registry::Details::new(Default::default(), Default::default(), Some(check));
    });
}

fn metric(bird: &Bird, name: &str) -> u64 {
    let text = bird.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.trim().parse().expect("a number")
}

fn open(bird: &Bird) -> u64 {
    metric(bird, r#"starling_breakers_open{service="default/orders"}"#)
}

fn checks(bird: &Bird, word: &str) -> u64 {
    metric(bird, &format!(r#"starling_ejection_checks_total{{service="default/orders",word="{word}"}}"#))
}

/// All get their turn, also those that fail.
const IN_TURN: &str = "[balance]\nalgorithm = \"round_robin\"\nhealth_min_percent = 100\n";

/// In turn, and long out unless somebody asks how it is, which is done often.
fn long_out() -> String {
    format!("{IN_TURN}[breaker]\nopen_ms = 60000\ncheck_every_ms = 100\n")
}

#[tokio::test]
async fn no_more_than_the_share_are_taken_out_however_many_fail() {
    let (flock, ill) = (Flock::default(), App::answering(|_| async { text(500, "ill") }).await);
    let a = flock.node("a").await;
    ["1", "2", "3", "4", "5"].into_iter().for_each(|id| flock.register(ill.at("orders", id, "a")));
    flock.policy("orders", "[breaker]\nmax_ejected_percent = 40\n");
    let mut client = Client::connect(a.addr()).await;
    for _ in 0..200 {
        client.send("POST", "orders", "/", "", b"").await;
        assert_eq!(client.answer().await.text(), "ill", "the instances that are in get the requests");
        assert!(open(&a) <= 2);
    }
    let breaker = a.guard("orders", "breaker");
    assert_eq!((&breaker["ejected"], &breaker["at_most"]), (&2.into(), &2.into()), "{breaker}");
    assert_eq!(open(&a), 2);
    assert!(metric(&a, r#"starling_ejections_spared_total{service="default/orders"}"#) > 0);
}

#[tokio::test]
async fn an_instance_that_is_out_comes_back_as_soon_as_its_health_check_is_good_again() {
    let (flock, patient, other) = (Flock::default(), Patient::ill().await, App::named("other").await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register_as(patient.app.at("orders", "1", "b"), checked);
    flock.register(other.at("orders", "2", "b"));
    flock.policy("orders", &long_out());
    eventually("it is taken out", || async {
        a.get("orders", "/").await;
        (open(&a) == 1).then_some(())
    })
    .await;
    eventually("its own node asks it, and it says that it is ill", || async { (checks(&a, "ill") > 0).then_some(()) })
        .await;
    assert_eq!(a.guards("orders")["instances"][0]["check"], "ill");
    assert_eq!(patient.work.load(SeqCst), 5, "no caller's request is spent on it meanwhile");
    patient.works.store(true, SeqCst);
    patient.healthy.store(true, SeqCst);
    eventually("it is back a minute before its time", || async {
        assert_eq!(a.get("orders", "/").await.status, 200);
        (open(&a) == 0).then_some(())
    })
    .await;
    assert!(patient.checks.load(SeqCst) >= 2);
}

#[tokio::test]
async fn one_that_calls_itself_well_and_fails_its_callers_is_tried_early_once() {
    let (flock, patient, other) = (Flock::default(), Patient::ill().await, App::named("other").await);
    patient.healthy.store(true, SeqCst);
    let a = flock.node("a").await;
    flock.register_as(patient.app.at("orders", "1", "a"), checked);
    flock.register(other.at("orders", "2", "a"));
    flock.policy("orders", &long_out());
    eventually("it is taken out, tried, and asked again in vain", || async {
        a.get("orders", "/").await;
        (patient.work.load(SeqCst) >= 6 && checks(&a, "well") >= 3).then_some(())
    })
    .await;
    for _ in 0..30 {
        assert_eq!(a.get("orders", "/").await.text(), "other");
    }
    assert_eq!(patient.work.load(SeqCst), 6, "five failures, and one early try");
}

#[tokio::test]
async fn one_without_a_health_check_is_asked_whether_it_takes_connections() {
    let well = Arc::new(AtomicBool::new(false));
    let state = well.clone();
    let app = App::talking(move |mut stream| {
        let well = state.load(SeqCst);
        async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let heard = stream.read(&mut [0; 4_096]).await.unwrap_or(0);
            if well && heard > 0 {
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nwell").await;
            }
        }
    })
    .await;
    let flock = Flock::default();
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(app.at("orders", "1", "b"));
    flock.policy("orders", &long_out());
    assert_eq!(a.get("orders", "/").await.status, 502);
    assert_eq!((checks(&a, "well"), checks(&a, "ill")), (0, 0), "while nothing is out, nothing is asked");
    eventually("it is taken out", || async {
        a.get("orders", "/").await;
        (open(&a) == 1).then_some(())
    })
    .await;
    well.store(true, SeqCst);
    eventually("it is back a minute before its time", || async {
        (a.get("orders", "/").await.status == 200).then_some(())
    })
    .await;
    assert!(checks(&a, "well") > 0);
    assert_eq!(open(&a), 0);
}

#[tokio::test]
async fn without_checks_an_instance_is_out_for_its_time() {
    let (flock, patient, other) = (Flock::default(), Patient::ill().await, App::named("other").await);
    let a = flock.node("a").await;
    flock.register_as(patient.app.at("orders", "1", "a"), checked);
    flock.register(other.at("orders", "2", "a"));
    flock.policy("orders", &format!("{IN_TURN}[breaker]\nopen_ms = 200\nmax_open_ms = 200\ncheck_every_ms = 0\n"));
    eventually("it is taken out", || async {
        a.get("orders", "/").await;
        (open(&a) == 1).then_some(())
    })
    .await;
    patient.works.store(true, SeqCst);
    eventually("a caller's request has found it well", || async {
        a.get("orders", "/").await;
        (open(&a) == 0).then_some(())
    })
    .await;
    assert_eq!((patient.checks.load(SeqCst), checks(&a, "well")), (0, 0));
}
