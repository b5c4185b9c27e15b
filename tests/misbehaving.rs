//! Backends that misbehave, through the real binary: what callers notice of it, and what the backends do.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use support::{Backend, Certificates, Mesh, Mood, NodeProcess, eventually};

/// Instances are drawn in turn and never taken out, and nothing is repeated: who is asked shows.
const EVEN: &str = "[balance]\nalgorithm = \"round_robin\"\n[breaker]\nconsecutive_failures = 1000000\n\
    failure_percent = 100\nmin_calls = 1000000\n";

/// Two nodes; these are the instances of `shop`, all at `b`. Who calls is at `a`.
fn shop(backends: &[&Backend]) -> Mesh {
    shop_of(Mesh::start(["a", "b"]), backends)
}

fn shop_of(mesh: Mesh, backends: &[&Backend]) -> Mesh {
    for (i, backend) in backends.iter().enumerate() {
        let (id, port) = (i.to_string(), backend.port());
        mesh.node("b").starling(&["register", "shop", "--id", &id, "--port", &port]);
    }
    eventually("a knows all instances", || mesh.node("a").ready_instances("shop").len() == backends.len());
    mesh
}

/// Puts a policy of `shop` into force at `b`, and waits until `a` has it.
fn govern(mesh: &Mesh, policy: &str) {
    let file = mesh.dir().join("shop.toml");
    std::fs::write(&file, policy).unwrap();
    mesh.node("b").starling(&["policy", "set", "shop", "shop.toml"]);
    eventually("a has the policy", || {
        mesh.node("a").try_starling(&["policy", "show", "shop"]).as_deref() == Ok(policy)
    });
}

/// Calls until it holds; every call must be answered with 200.
fn all_well_until(what: &str, a: &NodeProcess, mut holds: impl FnMut() -> bool) {
    let mut line = a.line();
    eventually(what, || {
        let said = line.get("shop");
        assert_eq!(said.status, 200, "{what}: {said:?}");
        holds()
    });
}

/// What `a` counts as being in flight.
fn in_flight(mesh: &Mesh) -> f64 {
    mesh.node("a").metric("starling_requests_in_flight{service=\"default/shop\"}")
}

#[test]
fn a_flapping_instance_is_ejected_and_its_callers_see_no_failure() {
    let (flapping, well) = (Backend::start("flapping", Mood::Flapping), Backend::start("well", Mood::Well));
    let mesh = shop(&[&flapping, &well]);
    govern(
        &mesh,
        "[retry]\nstatuses = [500]\n[balance]\nalgorithm = \"round_robin\"\n\
        [breaker]\nfailure_percent = 30\nmin_calls = 6\nopen_ms = 600000\nmax_open_ms = 600000\n",
    );
    let a = mesh.node("a");
    let is_out = || a.starling(&["guards", "shop"]).lines().any(|line| line.starts_with('0') && line.contains("open"));
    all_well_until("the flapping instance is out", a, is_out);
    let asked = flapping.asked();
    let mut line = a.line();
    for _ in 0..20 {
        assert_eq!(line.get("shop").body, "well");
    }
    assert_eq!(flapping.asked(), asked, "who is out is left alone");
}

#[test]
fn a_call_that_is_reset_is_repeated_elsewhere_if_that_is_safe_and_a_post_is_not() {
    let (resets, well) = (Backend::start("resets", Mood::Resets), Backend::start("well", Mood::Well));
    let mesh = shop(&[&resets, &well]);
    govern(&mesh, EVEN);
    let a = mesh.node("a");
    all_well_until("the resetting instance is met often", a, || resets.asked_to("GET") >= 5);
    let (mut line, mut posts, mut lost) = (a.line(), 0, 0);
    while lost < 3 {
        let said = line.tell("POST", "shop", "/", "", "order").unwrap();
        posts += 1;
        assert!(posts < 1_000, "the resetting instance is never asked: {said:?}");
        if said.status != 200 {
            lost += 1;
            assert_eq!(said.status, 502);
            let names_the_hop = said.reason().starts_with("connection_lost: ") && said.reason().contains("at b");
            assert!(names_the_hop, "{said:?}");
        }
    }
    assert_eq!((resets.asked_to("POST"), well.asked_to("POST")), (lost, posts - lost), "none was sent twice");
}

#[test]
fn requests_at_an_instance_that_dies_are_answered_by_another() {
    let (dying, well) = (Backend::start("dying", Mood::Holds), Backend::start("well", Mood::Well));
    let mesh = shop(&[&dying, &well]);
    govern(&mesh, EVEN);
    let a = mesh.node("a");
    thread::scope(|scope| {
        let callers: Vec<_> = (0..6).map(|_| scope.spawn(|| a.line().get("shop"))).collect();
        eventually("some wait for the one that is to die", || dying.asked() >= 3);
        dying.dies();
        for caller in callers {
            assert_eq!(caller.join().unwrap().body, "well");
        }
    });
    for _ in 0..10 {
        assert_eq!(a.line().get("shop").body, "well", "nobody listens there any more");
    }
}

#[test]
fn an_instance_that_is_quick_to_say_429_attracts_no_traffic() {
    let (busy, well) = (
        Backend::start("busy", Mood::Refuses429 { retry_after_s: 30 }),
        Backend::start("well", Mood::Slow(Duration::from_millis(5))),
    );
    let mesh = shop(&[&busy, &well]);
    let mut line = mesh.node("a").line();
    for _ in 0..200 {
        let said = line.get("shop");
        assert!(said.status == 200 || said.field("retry-after") == "30", "{said:?}");
    }
    // Half would be an even share; more, attraction.
    assert!(busy.asked() < 50, "{} of 200 went to the one that refuses", busy.asked());
}

#[test]
fn a_slow_instance_is_shunned_without_anybody_having_asked_for_it() {
    let (slow, well) =
        (Backend::start("slow", Mood::Slow(Duration::from_millis(200))), Backend::start("well", Mood::Well));
    let mesh = shop(&[&slow, &well]);
    all_well_until("the slow one is met", mesh.node("a"), || slow.asked() >= 1);
    let mut line = mesh.node("a").line();
    let before = slow.asked();
    (0..100).for_each(|_| assert_eq!(line.get("shop").status, 200));
    let share = slow.asked() - before;
    assert!(share <= 20, "{share} of 100 went to the slow one");
}

#[test]
fn an_answer_that_never_begins_ends_by_the_deadline_and_nothing_is_left_of_it() {
    let silent = Backend::start("silent", Mood::Holds);
    let mesh = shop(&[&silent]);
    govern(&mesh, "[timeouts]\nrequest_ms = 300\n[retry]\nmax_retries = 0\n[bulkhead]\nmax_concurrent = 1\n");
    let a = mesh.node("a");
    for _ in 0..2 {
        let said = a.line().get("shop");
        assert_eq!(said.status, 504, "{said:?}");
        let reason = said.reason();
        assert!(
            reason.contains("timed_out: ") && reason.contains("within 300 ms") && reason.contains("at b"),
            "{said:?}"
        );
        eventually("its place is free", || in_flight(&mesh) == 0.0);
    }
    silent.becomes(Mood::Well);
    eventually("no connection is left of those that were given up", || silent.open() == 0);
    assert_eq!(a.line().get("shop").body, "silent");
}

#[test]
fn answers_that_hang_half_way_end_are_not_taken_for_whole_and_take_their_instance_out() {
    let mut mesh = Mesh::empty(Certificates::ThrownAway);
    for name in ["a", "b"] {
        mesh.settings(name, "[proxy]\nbody_idle_timeout_ms = 200\n");
    }
    let seed = mesh.add("a", None).quic();
    mesh.add("b", Some(seed));
    mesh.all_know_each_other();
    let (hangs, well) =
        (Backend::start("hangs", Mood::HangsHalfway { after: 100 }), Backend::start("well", Mood::Well));
    let mesh = shop_of(mesh, &[&hangs, &well]);
    govern(
        &mesh,
        "[balance]\nalgorithm = \"round_robin\"\n\
        [breaker]\nconsecutive_failures = 3\nopen_ms = 600000\nmax_open_ms = 600000\n",
    );
    let (a, mut cut_off) = (mesh.node("a"), 0);
    eventually("the one that hangs is out", || {
        match a.line().tell("GET", "shop", "/", "", "") {
            Ok(said) => assert_eq!((said.status, said.body.as_str()), (200, "well")),
            Err(_) => cut_off += 1,
        }
        a.starling(&["guards", "shop"]).lines().any(|line| line.starts_with('0') && line.contains("open"))
    });
    assert!(cut_off >= 3, "none of them was whole: {cut_off}");
    for _ in 0..10 {
        assert_eq!(a.line().get("shop").body, "well");
    }
    eventually("nothing is held of them", || in_flight(&mesh) == 0.0 && hangs.open() == 0);
}

#[test]
fn a_hedge_rescues_requests_from_an_instance_that_does_not_answer() {
    let (silent, well) = (Backend::start("silent", Mood::Holds), Backend::start("well", Mood::Well));
    let mesh = shop(&[&silent, &well]);
    govern(&mesh, &format!("{EVEN}[hedge]\nafter_ms = 20\nbudget_percent = 100\n"));
    let a = mesh.node("a");
    let second = |head: &str| head.contains("x-starling-attempt: 02");
    // On a busy machine the well one is slow at times, and the silent one asked second.
    let asked_first = || silent.heard().iter().filter(|heard| !second(&heard.head)).count();
    all_well_until("the silent one is asked", a, || asked_first() >= 3);
    silent.becomes(Mood::Well);
    eventually("nothing is in flight", || in_flight(&mesh) == 0.0);
    let well_asked = well.heard().iter().filter(|heard| second(&heard.head)).count();
    assert!(well_asked >= 3, "the second attempts say that they are: {:?}", well.heard());
}

#[test]
fn in_a_storm_of_failures_retries_add_their_budget_and_no_more() {
    let storm = [Backend::start("0", Mood::Answers(503)), Backend::start("1", Mood::Answers(503))];
    let mesh = shop(&[&storm[0], &storm[1]]);
    let budget = "[retry]\nmax_retries = 5\nbackoff_ms = 0\nbudget = { percent = 20, floor_per_s = 0 }\n";
    govern(&mesh, &format!("{EVEN}{budget}"));
    const CALLERS: usize = 4;
    const CALLS: usize = 100;
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let mut line = mesh.node("a").line();
                for _ in 0..CALLS {
                    assert_eq!(line.get("shop").status, 503);
                }
            });
        }
    });
    let (calls, asked) = (CALLERS * CALLS, storm.iter().map(Backend::asked).sum::<usize>());
    assert!(asked > calls, "some are repeated");
    // Those who race for the last of the budget may all have it.
    assert!(asked <= calls + calls / 5 + CALLERS, "{asked} attempts of {calls} calls");
}

#[test]
fn a_circuit_opens_before_a_failing_service_and_closes_when_it_is_well_again() {
    let backend = Backend::start("shop", Mood::Answers(500));
    let mesh = shop(&[&backend]);
    govern(&mesh, "[circuit]\nconsecutive_failures = 3\nopen_ms = 300\nmax_open_ms = 300\nhalf_open_calls = 1\n");
    let mut line = mesh.node("a").line();
    eventually("the circuit opens", || line.get("shop").reason() == "breaker: open (rule circuit)");
    let said = line.get("shop");
    assert!(said.status == 500 || !said.field("retry-after").is_empty(), "{said:?}");
    eventually("a trial is made, and fails", || line.get("shop").status >= 500 && backend.asked() > 3);
    backend.becomes(Mood::Well);
    eventually("a trial is made, and is good", || line.get("shop").status == 200);
    for _ in 0..20 {
        assert_eq!(line.get("shop").body, "shop");
    }
    let shown = mesh.node("b").starling(&["guards", "shop", "--all"]);
    assert!(shown.contains("state=closed"), "{shown}");
}

#[test]
fn a_service_whose_answers_are_slow_has_its_circuit_opened_too() {
    let backend = Backend::start("shop", Mood::Slow(Duration::from_millis(60)));
    let mesh = shop(&[&backend]);
    govern(
        &mesh,
        "[circuit]\nslow_call_ms = 30\nslow_percent = 50\nmin_calls = 3\nopen_ms = 600000\nmax_open_ms = 600000\n",
    );
    let mut line = mesh.node("a").line();
    for _ in 0..3 {
        assert_eq!(line.get("shop").status, 200);
    }
    let said = line.get("shop");
    assert_eq!((said.status, said.reason()), (503, "breaker: open (rule circuit)"));
    assert_eq!(backend.asked(), 3);
}

#[test]
fn a_circuit_forced_open_for_a_while_comes_back_by_itself() {
    let backend = Backend::start("shop", Mood::Well);
    let mesh = shop(&[&backend]);
    let a = mesh.node("a");
    mesh.node("b").starling(&["policy", "drive", "shop", "force-open", "--for", "5s"]);
    eventually("it is refused at the other node", || {
        a.line().get("shop").reason() == "breaker: forced open (rule degrade)"
    });
    eventually("it is served again", || a.line().get("shop").status == 200);
    let written = a.starling(&["policy", "show", "shop"]);
    assert!(written.contains("force_open"), "nobody has changed the document: {written}");
}

#[test]
fn a_quota_is_one_for_both_nodes() {
    const PER_S: f64 = 20.0;
    let backend = Backend::start("shop", Mood::Well);
    let mesh = shop(&[&backend]);
    govern(&mesh, &format!("[[quota]]\nname = \"all\"\ncount = {PER_S}\n"));
    let nodes = [mesh.node("a"), mesh.node("b")];
    let share =
        |node: &NodeProcess| node.metric("starling_quota_share_per_second{service=\"default/shop\",rule=\"all\"}");
    let (mut lines, began) = (nodes.map(NodeProcess::line), Instant::now());
    let (mut passed, mut refused) = ([0u32; 2], [0u32; 2]);
    eventually("both have a share of it and are refused more", || {
        for (i, line) in lines.iter_mut().enumerate() {
            for _ in 0..5 {
                let said = line.get("shop");
                match said.status {
                    200 => passed[i] += 1,
                    _ => {
                        refused[i] += 1;
                        let names_the_rule = said.reason().starts_with("quota: ") && said.reason().contains("rule all");
                        assert!(said.status == 429 && names_the_rule, "{said:?}");
                        assert!(!said.field("retry-after").is_empty(), "{said:?}");
                    }
                }
            }
        }
        let shares = nodes.map(share);
        refused.iter().all(|refused| *refused > 5) && shares.iter().all(|share| *share > 0.0 && *share < PER_S)
    });
    assert!(passed.iter().all(|passed| *passed > 0), "{passed:?}");
    // What it allows in this time, what each may have saved up of its share, and what was not known of the other.
    let allowed = PER_S * (began.elapsed().as_secs_f64() + 1.0 + 0.3);
    assert!(f64::from(passed.iter().sum::<u32>()) <= allowed + 2.0, "{passed:?} of {allowed}");
    let shown = nodes[1].starling(&["guards", "shop", "--all"]);
    for told in ["node a", "node b", "share_per_s="] {
        assert!(shown.contains(told), "{told}: {shown}");
    }
}

#[test]
fn a_host_that_has_enough_to_do_refuses_and_who_may_go_elsewhere_does() {
    let (busy, other) = (Backend::start("busy", Mood::Holds), Backend::start("other", Mood::Well));
    let mut mesh = Mesh::empty(Certificates::ThrownAway);
    let seed = mesh.add("a", None).quic();
    mesh.settings("b", "[proxy.system]\nmax_in_flight = 1\n");
    mesh.add("b", Some(seed));
    mesh.all_know_each_other();
    let mesh = shop_of(mesh, &[&busy]);
    let (a, b) = (mesh.node("a"), mesh.node("b"));
    thread::scope(|scope| {
        let first = scope.spawn(|| a.line().get("shop"));
        eventually("b has as much to do as it may", || busy.asked() == 1);
        for node in [a, b] {
            let said = node.line().get("shop");
            assert_eq!((said.status, said.field("retry-after")), (503, "1"), "{said:?}");
            assert!(said.reason().contains("system: "), "{said:?}");
        }
        a.starling(&["register", "shop", "--id", "other", "--port", &other.port()]);
        eventually("a has an instance of its own", || a.ready_instances("shop").len() == 2);
        for _ in 0..10 {
            let said = a.line().tell("POST", "shop", "/", "", "order").unwrap();
            assert_eq!(said.body, "other", "no application has seen what a host refused");
        }
        assert_eq!(busy.asked(), 1);
        busy.becomes(Mood::Well);
        assert_eq!(first.join().unwrap().body, "busy");
    });
}
