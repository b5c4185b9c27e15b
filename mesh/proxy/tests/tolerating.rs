//! How one request becomes several attempts, and what the caller gets when they fail.

#![allow(clippy::unwrap_used)] // a helper that cannot help fails its test

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use support::*;

/// An application that answers so, and says how.
async fn answers(status: u16, field: &'static str, value: &'static str) -> App {
    App::answering(move |_| async move {
        let mut response = text(status, "as it is told");
        if !field.is_empty() {
            response.headers_mut().insert(field, value.parse().unwrap());
        }
        response
    })
    .await
}

/// An application that answers with the fields of the request it got.
async fn echo() -> App {
    App::answering(|request| async move {
        let lines = request.headers().iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()));
        text(200, lines.collect::<String>())
    })
    .await
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn which_answers_are_repeated_is_the_services_to_say() {
    let (flock, app) = (Flock::default(), answers(500, "", "").await);
    let other = answers(500, "", "").await;
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.register(other.at("orders", "2", "a"));
    assert_eq!(a.get("orders.mesh", "/").await.status, 500);
    assert_eq!(app.requests() + other.requests(), 1, "a 500 is the application's own");
    flock.policy("orders", "[retry]\nstatuses = [500]\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 500);
    assert_eq!(app.requests() + other.requests(), 3);
}

#[tokio::test]
async fn what_is_not_safe_is_repeated_only_where_the_route_says_so() {
    let (flock, hangs_up) = (Flock::default(), App::hanging_up().await);
    let lives = App::named("lives").await;
    let a = flock.node("a").await;
    flock.register(hangs_up.at("orders", "1", "a"));
    flock.register_as(lives.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    flock.policy("orders", "[[route]]\npath_prefix = \"/search\"\nretry.unsafe_methods = true\n");
    assert_eq!(a.send("POST", "orders.mesh", "/buy", "", b"x").await.status, 502);
    assert_eq!(lives.requests(), 0);
    assert_eq!(a.send("POST", "orders.mesh", "/search", "", b"x").await.text(), "lives");
}

#[tokio::test]
async fn one_attempt_that_takes_too_long_is_given_up_for_another() {
    let (flock, (silent, _held)) = (Flock::default(), App::held_back("late").await);
    let lives = App::named("lives").await;
    let a = flock.node("a").await;
    flock.register(silent.at("orders", "1", "a"));
    flock.register_as(lives.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    flock.policy("orders", "[retry]\nper_try_timeout_ms = 300\n");
    assert_eq!(a.get("orders.mesh", "/").await.text(), "lives");
}

#[tokio::test]
async fn a_wait_an_instance_asks_for_is_kept_if_it_is_short_and_ends_the_matter_if_it_is_long() {
    for (name, long) in [("retry-after", "60"), ("grpc-retry-pushback-ms", "60000"), ("grpc-retry-pushback-ms", "-1")] {
        let (flock, busy) = (Flock::default(), answers(503, name, long).await);
        let lives = App::named("lives").await;
        let a = flock.node("a").await;
        flock.register(busy.at("orders", "1", "a"));
        flock.register_as(lives.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
        let answer = a.get("orders.mesh", "/").await;
        assert_eq!((answer.status, answer.header(name), lives.requests()), (503, Some(long), 0), "{name}: {long}");
    }
    let (flock, busy) = (Flock::default(), answers(503, "grpc-retry-pushback-ms", "30").await);
    let lives = App::named("lives").await;
    let a = flock.node("a").await;
    flock.register(busy.at("orders", "1", "a"));
    flock.register_as(lives.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    let began = std::time::Instant::now();
    assert_eq!(a.get("orders.mesh", "/").await.text(), "lives");
    assert!(began.elapsed() >= Duration::from_millis(30), "{:?}", began.elapsed());
}

#[tokio::test]
async fn failfast_makes_one_attempt_and_failsafe_tells_nobody() {
    let (flock, app) = (Flock::default(), answers(503, "", "").await);
    let other = answers(503, "", "").await;
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.register(other.at("orders", "2", "a"));
    flock.policy("orders", "[tolerate]\nmode = \"failfast\"\n");
    assert_eq!(a.get("orders.mesh", "/").await.status, 503);
    assert_eq!(app.requests() + other.requests(), 1);
    flock.policy("orders", "[tolerate]\nmode = \"failsafe\"\n");
    let mut client = Client::connect(a.addr()).await;
    for _ in 0..2 {
        client.send("GET", "orders.mesh", "/", "", b"").await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (204, ""));
        assert!(answer.header("x-starling-reason").unwrap().starts_with("failure_tolerated: "), "{answer:?}");
    }
    assert!(a.metrics().contains("starling_failures_tolerated_total{service=\"default/orders\"} 2"), "{}", a.metrics());
}

#[tokio::test]
async fn whoever_is_called_knows_which_attempt_it_is_and_repeats_nothing_itself() {
    let flock = Flock::default();
    let (hangs_up, told) = (App::hanging_up().await, echo().await);
    let busy = [answers(503, "", "").await, answers(503, "", "").await];
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(hangs_up.at("orders", "1", "a"));
    flock.register(told.at("orders", "2", "b"));
    flock.register(busy[0].at("stock", "1", "a"));
    flock.register(busy[1].at("stock", "2", "a"));
    let mut attempts = std::collections::BTreeSet::new();
    for _ in 0..30 {
        let answer = a.get("orders.mesh", "/").await;
        attempts.insert(field(&answer.text(), "x-starling-attempt").unwrap_or("first").to_owned());
    }
    assert!(attempts.contains("02") && attempts.len() <= 3, "{attempts:?}");
    // The application passes on what it was told; its sidecar then leaves repeating to the first one.
    let asked = |before: usize| busy[0].requests() + busy[1].requests() - before;
    assert_eq!(a.send("GET", "stock.mesh", "/", "x-starling-attempt: 02\r\n", b"").await.status, 503);
    assert_eq!(asked(0), 1);
    assert_eq!(a.get("stock.mesh", "/").await.status, 503);
    assert_eq!(asked(1), 2);
}

#[tokio::test]
async fn what_is_left_of_a_deadline_travels_and_cannot_be_made_more() {
    let (flock, told) = (Flock::default(), echo().await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(told.at("orders", "1", "b"));
    let left = async |fields: &str| -> u64 {
        let text = a.send("GET", "orders.mesh", "/", fields, b"").await.text();
        field(&text, "x-starling-deadline-ms").unwrap().parse().unwrap()
    };
    let own = left("").await;
    assert!((20_000..=30_000).contains(&own), "{own}");
    let given = left("x-starling-deadline-ms: 15000\r\n").await;
    assert!((5_000..=15_000).contains(&given), "{given}");
    let more = left("x-starling-deadline-ms: 500000\r\n").await;
    assert!((20_000..=30_000).contains(&more), "an application cannot have more than the sidecar gives: {more}");
    let both = left("x-starling-deadline-ms: 500000\r\nx-starling-deadline-ms: 14000\r\n").await;
    assert!(both <= 14_000, "{both}");
}

#[tokio::test]
async fn the_deadline_of_a_grpc_call_is_passed_on_with_what_is_left_of_it() {
    let (flock, told) = (Flock::default(), echo().await);
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(told.at("orders", "1", "b"));
    let fields = "content-type: application/grpc\r\ngrpc-timeout: 20S\r\n";
    let text = a.send("POST", "orders.mesh", "/", fields, b"x").await.text();
    let left: u64 =
        field(&text, "grpc-timeout").unwrap_or_else(|| panic!("{text}")).strip_suffix('m').unwrap().parse().unwrap();
    assert!((10_000..=20_000).contains(&left), "{text}");
}

#[tokio::test]
async fn work_that_is_expired_is_not_begun() {
    let (flock, app) = (Flock::default(), App::named("app").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let answer = a.send("GET", "orders.mesh", "/", "x-starling-deadline-ms: 0\r\n", b"").await;
    assert_eq!((answer.status, app.requests()), (504, 0));
    let reason = answer.header("x-starling-reason").unwrap();
    assert!(reason.contains("deadline had passed"), "{reason}");
}

#[tokio::test]
async fn a_caller_that_waits_less_is_answered_sooner() {
    let (flock, (silent, _held)) = (Flock::default(), App::held_back("late").await);
    let a = flock.node("a").await;
    flock.register(silent.at("orders", "1", "a"));
    let answer = a.send("GET", "orders.mesh", "/", "x-starling-deadline-ms: 30\r\n", b"").await;
    assert_eq!(answer.status, 504, "not after the 30 s that the sidecar would give: {answer:?}");
}

#[tokio::test]
async fn a_caller_in_a_hurry_says_nothing_of_the_instance() {
    let (flock, (silent, _held)) = (Flock::default(), App::held_back("late").await);
    let a = flock.node("a").await;
    flock.register(silent.at("orders", "1", "a"));
    let grpc = "content-type: application/grpc\r\ngrpc-timeout: 30m\r\n";
    for hurry in ["x-starling-deadline-ms: 30\r\n", grpc].repeat(10) {
        a.send("GET", "orders.mesh", "/", hurry, b"").await;
    }
    let metrics = a.metrics();
    assert!(metrics.contains("starling_breaker_opens_total{service=\"default/orders\"} 0\n"), "{metrics}");
}

#[tokio::test]
async fn a_hedge_answers_when_the_first_instance_does_not() {
    let (flock, (silent, _held)) = (Flock::default(), App::held_back("late").await);
    let lives = App::named("lives").await;
    let a = flock.node("a").await;
    flock.register(silent.at("orders", "1", "a"));
    flock.register_as(lives.at("orders", "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    flock.policy("orders", "[hedge]\nafter_ms = 10\n");
    let mut client = Client::connect(a.addr()).await;
    for _ in 0..2 {
        client.send("PUT", "orders.mesh", "/", "", b"body").await;
        assert_eq!(client.answer().await.text(), "lives");
    }
    assert!(silent.requests() >= 1);
    let metrics = a.metrics();
    assert!(metrics.contains("starling_hedges_total{service=\"default/orders\"} "), "{metrics}");
    assert!(!metrics.contains("starling_hedges_total{service=\"default/orders\"} 0"), "{metrics}");
}

#[tokio::test]
async fn what_is_not_safe_is_not_hedged_and_a_quick_answer_needs_none() {
    let (flock, app) = (Flock::default(), App::named("app").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    flock.policy("orders", "[hedge]\nafter_ms = 60000\n");
    assert_eq!(a.send("POST", "orders.mesh", "/", "", b"buy").await.text(), "app");
    assert_eq!(a.get("orders.mesh", "/").await.text(), "app");
    assert_eq!(app.requests(), 2);
    let (late, go) = App::held_back("late").await;
    flock.register(late.at("stock", "1", "a"));
    flock.register(app.at("stock", "2", "a"));
    flock.policy("stock", "[hedge]\nafter_ms = 1\n");
    go.add_permits(100);
    for _ in 0..20 {
        a.send("POST", "stock.mesh", "/", "", b"buy").await;
    }
    assert_eq!(late.requests() + app.requests(), 22, "each was sent once");
}

#[tokio::test]
async fn hedging_changes_nothing_about_retries() {
    let flock = Flock::default();
    let lives = App::named("lives").await;
    let a = flock.node("a").await;
    let pair = |name: &'static str, bad: &App, policy: &str| {
        flock.register(bad.at(name, "1", "a"));
        flock.register_as(lives.at(name, "2", "a"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
        flock.policy(name, &format!("[hedge]\nafter_ms = 60000\n{policy}"));
    };
    // A short wait is kept, a long one ends the matter.
    let busy = answers(503, "grpc-retry-pushback-ms", "30").await;
    pair("soon", &busy, "");
    let began = std::time::Instant::now();
    assert_eq!(a.get("soon.mesh", "/").await.text(), "lives");
    assert!(began.elapsed() >= Duration::from_millis(30), "{:?}", began.elapsed());
    let busy = answers(503, "retry-after", "60").await;
    pair("late", &busy, "");
    assert_eq!(a.get("late.mesh", "/").await.status, 503);
    // What may be hedged may not therefore be repeated after a failure.
    for (name, bad) in [("full", answers(503, "", "").await), ("gone", App::hanging_up().await)] {
        pair(name, &bad, "unsafe_methods = true\n");
        let answer = a.send("POST", &format!("{name}.mesh"), "/", "", b"buy").await;
        assert!(answer.status >= 500, "{name}: {answer:?}");
    }
    assert_eq!(lives.requests(), 1);
    // What the budget forbids is counted, and what needs none takes nothing from it.
    let bad = answers(503, "", "").await;
    pair("poor", &bad, "[retry.budget]\npercent = 0\nfloor_per_s = 0\n");
    assert_eq!(a.get("poor.mesh", "/").await.status, 503);
    let metrics = a.metrics();
    assert!(metrics.contains("starling_retries_refused_total{service=\"default/poor\"} 1"), "{metrics}");
    flock.register(bad.at("sole", "1", "a"));
    flock.policy("sole", "[hedge]\nafter_ms = 60000\n[retry.budget]\npercent = 0\nfloor_per_s = 0\n");
    assert_eq!(a.get("sole.mesh", "/").await.status, 503);
    let metrics = a.metrics();
    assert!(metrics.contains("starling_retries_refused_total{service=\"default/sole\"} 0"), "{metrics}");
}

#[tokio::test]
async fn of_forks_the_first_good_answer_wins_and_a_failing_one_does_not() {
    let flock = Flock::default();
    let (busy, lives) = (answers(503, "", "").await, App::named("lives").await);
    let (late, _held) = App::held_back("late").await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(busy.at("orders", "1", "a"));
    flock.register(lives.at("orders", "2", "b"));
    flock.register(late.at("orders", "3", "a"));
    flock.policy("orders", "[tolerate]\nmode = \"forking\"\nforks = 3\n");
    let mut client = Client::connect(a.addr()).await;
    for _ in 0..5 {
        client.send("GET", "orders.mesh", "/", "", b"").await;
        assert_eq!(client.answer().await.text(), "lives");
    }
    let told = echo().await;
    flock.register(told.at("stock", "1", "a"));
    flock.register_as(late.at("stock", "2", "b"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    flock.policy("stock", "[tolerate]\nmode = \"forking\"\n");
    let text = a.get("stock.mesh", "/").await.text();
    assert!(!text.contains("x-starling-attempt"), "the first is told of no other: {text}");
    assert!(lives.requests() == 5 && late.requests() >= 1, "{} {}", lives.requests(), late.requests());
}

#[tokio::test]
async fn a_fork_that_loses_is_dropped() {
    let flock = Flock::default();
    let gone = Arc::new(AtomicUsize::new(0));
    let (seen, lives) = (gone.clone(), App::named("lives").await);
    let late = App::answering(move |_| {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, SeqCst);
            }
        }
        let counted = Counted(seen.clone());
        async move {
            let _counted = counted;
            std::future::pending().await
        }
    })
    .await;
    let a = flock.node("a").await;
    flock.register(late.at("orders", "1", "a"));
    flock.register(lives.at("orders", "2", "a"));
    flock.policy("orders", "[tolerate]\nmode = \"forking\"\n");
    assert_eq!(a.get("orders.mesh", "/").await.text(), "lives");
    eventually("the loser's connection ends", || async { (late.requests() == gone.load(SeqCst)).then_some(()) }).await;
}

#[tokio::test]
async fn a_broadcast_reaches_all_and_fails_by_share() {
    let flock = Flock::default();
    let good = [App::named("good").await, App::named("good").await];
    let bad = answers(500, "", "").await;
    let a = flock.node("a").await;
    let _b = flock.node("b").await;
    flock.register(good[0].at("orders", "1", "a"));
    flock.register_as(good[1].at("orders", "2", "b"), |view| change(view, |i| i.zone = "far".parse().unwrap()));
    flock.register(bad.at("orders", "3", "a"));
    let policy = |percent| {
        format!("[tolerate]\nmode = \"broadcast\"\nbroadcast_fail_percent = {percent}\n[retry]\nstatuses = [500]\n")
    };
    flock.policy("orders", &policy(50));
    let answer = a.send("POST", "orders.mesh", "/", "", b"forget it").await;
    assert_eq!(answer.text(), "good");
    assert_eq!((good[0].requests(), good[1].requests(), bad.requests()), (1, 1, 1));
    flock.policy("orders", &policy(1));
    let answer = a.send("POST", "orders.mesh", "/", "", b"forget it").await;
    assert_eq!(answer.status, 502);
    let reason = answer.header("x-starling-reason").unwrap();
    assert!(reason.starts_with("broadcast_failed: 1 of 3"), "{reason}");
}

#[tokio::test]
async fn what_cannot_be_told_to_all_is_told_to_none() {
    let flock = Flock::default();
    let apps = [App::named("told").await, App::named("told").await];
    let a = flock.node_with("a", |settings| settings.max_replay_bytes = 4).await;
    flock.register(apps[0].at("orders", "1", "a"));
    flock.register(apps[1].at("orders", "2", "a"));
    flock.policy("orders", "[tolerate]\nmode = \"broadcast\"\n");
    let counts = || (apps[0].requests(), apps[1].requests());
    let refused = a.send("POST", "orders.mesh", "/", "", b"more than four").await;
    assert_eq!((refused.status, counts()), (502, (0, 0)));
    let reason = refused.header("x-starling-reason").unwrap();
    assert!(reason.starts_with("broadcast_failed: only a body") && reason.contains("4 bytes"), "{reason}");
    let upgrade = a.send("GET", "orders.mesh", "/", "connection: upgrade\r\nupgrade: websocket\r\n", b"").await;
    assert_eq!((upgrade.status, counts()), (502, (0, 0)));
    // Telling all repeats nothing: whoever is called a second time tells all, too.
    let answer = a.send("POST", "orders.mesh", "/", "x-starling-attempt: 02\r\n", b"four").await;
    assert_eq!((answer.text().as_str(), counts()), ("told", (1, 1)));
}

#[tokio::test]
async fn a_broadcast_is_no_success_where_an_instance_is_broken_or_all_fail_in_their_own_way() {
    let flock = Flock::default();
    let (hangs_up, good) = (App::hanging_up().await, App::named("good").await);
    let a = flock.node("a").await;
    flock.register(hangs_up.at("orders", "1", "a"));
    flock.register(good.at("orders", "2", "a"));
    flock.policy(
        "orders",
        "[tolerate]\nmode = \"broadcast\"\nbroadcast_fail_percent = 1\n[breaker]\nconsecutive_failures = 1\n",
    );
    for told in 1..4 {
        let answer = a.get("orders.mesh", "/").await;
        let reason = answer.header("x-starling-reason").unwrap_or_default();
        assert!(answer.status == 502 && reason.starts_with("broadcast_failed: 1 of 2"), "{told}: {answer:?}");
        assert_eq!(good.requests(), told);
    }
    let bad = [answers(500, "", "").await, answers(500, "", "").await];
    flock.register(bad[0].at("stock", "1", "a"));
    flock.register(bad[1].at("stock", "2", "a"));
    flock.policy("stock", "[tolerate]\nmode = \"broadcast\"\n");
    let answer = a.get("stock.mesh", "/").await;
    assert_eq!((answer.status, bad[0].requests(), bad[1].requests()), (502, 1, 1));
}

#[tokio::test]
async fn a_failure_of_the_applications_own_wins_no_race_and_is_not_repeated() {
    let flock = Flock::default();
    let (bad, (late, go)) = (answers(500, "", "").await, App::held_back("late").await);
    let a = flock.node("a").await;
    flock.register(bad.at("orders", "1", "a"));
    flock.register(late.at("orders", "2", "a"));
    flock.policy("orders", "[tolerate]\nmode = \"forking\"\n");
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "orders.mesh", "/", "", b"").await;
    eventually("the failure is there", || async { (bad.requests() + late.requests() == 2).then_some(()) }).await;
    go.add_permits(1);
    assert_eq!(client.answer().await.text(), "late");

    let others = [answers(500, "", "").await, answers(500, "", "").await];
    flock.register(others[0].at("stock", "1", "a"));
    flock.register(others[1].at("stock", "2", "a"));
    flock.policy("stock", "[hedge]\nafter_ms = 60000\n");
    assert_eq!(a.get("stock.mesh", "/").await.status, 500);
    assert_eq!(others[0].requests() + others[1].requests(), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_all_attempts_of_its_request() {
    let (flock, (late, _held)) = (Flock::default(), App::held_back("late").await);
    let other = App::held_back("late").await;
    let a = flock.node("a").await;
    flock.register(late.at("orders", "1", "a"));
    flock.register(other.0.at("orders", "2", "a"));
    flock.policy("orders", "[tolerate]\nmode = \"forking\"\n");
    let mut client = Client::connect(a.addr()).await;
    client.send("GET", "orders.mesh", "/", "", b"").await;
    eventually("both are asked", || async { (late.requests() + other.0.requests() == 2).then_some(()) }).await;
    drop(client);
    eventually("nothing is in flight", || async {
        a.metrics().contains("starling_requests_in_flight{service=\"default/orders\"} 0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_same_key_goes_to_the_same_instance_from_every_node() {
    let flock = Flock::default();
    let apps = [App::named("1").await, App::named("2").await, App::named("3").await];
    let nodes = [flock.node("a").await, flock.node("b").await];
    for (app, id) in apps.iter().zip(["1", "2", "3"]) {
        flock.register(app.at("orders", id, "a"));
    }
    for (key, of) in [
        ("{ header = \"x-user\" }", |user: usize| (format!("x-user: {user}\r\n"), "/".to_owned())),
        ("{ cookie = \"user\" }", |user| (format!("cookie: theme=dark; user={user}\r\n"), "/".to_owned())),
        ("{ query = \"user\" }", |user| (String::new(), format!("/?x=1&user={user}"))),
        ("\"path\"", |user| (String::new(), format!("/{user}?x={user}"))),
    ] as [(&str, fn(usize) -> (String, String)); 4]
    {
        for algorithm in ["ring_hash", "maglev"] {
            flock.policy("orders", &format!("[balance]\nalgorithm = \"{algorithm}\"\nkey = {key}\n"));
            let mut homes = std::collections::BTreeSet::new();
            for user in 0..12 {
                let (fields, path) = of(user);
                let mut seen = std::collections::BTreeSet::new();
                for node in &nodes {
                    for _ in 0..2 {
                        seen.insert(node.send("GET", "orders.mesh", &path, &fields, b"").await.text());
                    }
                }
                assert_eq!(seen.len(), 1, "{algorithm} by {key}: user {user} went to {seen:?}");
                homes.extend(seen);
            }
            assert!(homes.len() > 1, "{algorithm} by {key}: all went to {homes:?}");
        }
    }
}
