use super::super::recent::Seen;
use super::super::{LayerState, document_of, mesh_document};
use super::*;
use crate::guard::circuit::Came;
use crate::policy::Layer;

const NOW: Instant = Instant(200_000_000);

/// What was asked, from a minute ago on.
#[derive(Default)]
struct Minute(Recent);

impl Minute {
    fn ask(self, at_ms: u64, took_ms: u64, caller: &str, path: &str, end: End, why: &str) -> Self {
        let came = Instant(NOW.0 - 60_000_000 + at_ms * 1_000);
        let ended = came + Duration::from_millis(took_ms);
        let head = format!("GET {path} HTTP/1.1\r\nx-tier: gold\r\n");
        self.0.note(&Seen { came, ended, head: head.as_bytes(), service: Some(caller), end, why });
        self
    }

    fn well(self, at_ms: u64, took_ms: u64, caller: &str, path: &str) -> Self {
        self.ask(at_ms, took_ms, caller, path, End::Came(Came::Answer { status: 200, grpc: None }), "")
    }

    fn ill(self, at_ms: u64) -> Self {
        self.ask(at_ms, 1, "shop", "/", End::Came(Came::Answer { status: 503, grpc: None }), "")
    }

    fn refused(self, at_ms: u64, why: &str) -> Self {
        self.ask(at_ms, 0, "shop", "/", End::Refused(Guard::Rate), why)
    }

    fn tried(&self, text: &str) -> Result<Trial, String> {
        let layer = |key| Layer { key, document: None, state: LayerState::Absent, problems: Vec::new() };
        let service = crate::testing::instance_key("orders", "1").service;
        let judgement = Judgement { mesh: layer(mesh_document()), service: layer(document_of(&service)) };
        let (node, wall) = (Table::new(), WallTime(1_000_000));
        let stage = Stage { node: "a", layer: &node, members: 1, now: NOW, wall };
        Candidate { text, for_all: false }.play(&judgement, Some(&self.0), &stage)
    }
}

/// What was refused and would be, as `guard: why, was, would`.
fn shown(trial: &Trial) -> Vec<String> {
    let line = |refused: &Refused| format!("{}: {}, {}, {}", refused.guard, refused.why, refused.was, refused.would);
    trial.refusals.iter().map(line).collect()
}

#[test]
fn a_limit_refuses_what_it_would_have_refused_beside_what_was() {
    let minute = (0..10).fold(Minute::default(), |minute, at| minute.well(at * 2_000, 1, "shop", "/"));
    let minute = minute.refused(20_100, "over the rate (rule old)");
    let trial = minute.tried("[[limit]]\nname = \"new\"\ncount = 3\nper_ms = 3600000\n").unwrap();
    assert_eq!((trial.requests, trial.kept, trial.covers_ms), (11, 11, 60_000));
    assert_eq!(shown(&trial), ["rate: over the rate (rule new), 0, 8", "rate: over the rate (rule old), 1, 0"]);
    assert!(minute.tried("").unwrap().refusals.iter().all(|refused| refused.would == 0));
}

#[test]
fn routes_callers_and_the_switch_are_told_apart() {
    let minute = Minute::default().well(0, 1, "shop", "/pay").well(10, 1, "cart", "/pay").well(20, 1, "cart", "/");
    let trial = minute
        .tried("callers.deny = [\"cart\"]\n[[route]]\nname = \"pay\"\npath = \"/pay\"\ncallers.deny = [\"shop\"]\n");
    let told =
        ["list: the caller is denied (rule callers), 0, 1", "list: the caller is denied (rule pay/callers), 0, 1"];
    assert_eq!(shown(&trial.unwrap()), told);
    let trial = minute.tried("[degrade]\nmode = \"force_open\"\n").unwrap();
    assert_eq!(shown(&trial), ["breaker: forced open (rule degrade), 0, 3"]);
}

#[test]
fn a_bulkhead_holds_a_request_for_as_long_as_it_took_and_lets_others_wait() {
    let three = Minute::default().well(0, 100, "shop", "/").well(10, 100, "shop", "/").well(20, 100, "shop", "/");
    let tried = |queue: &str| shown(&three.tried(&format!("[bulkhead]\nmax_concurrent = 1\n{queue}")).unwrap());
    assert_eq!(tried("queue.max_queue = 0\n"), ["bulkhead: full (rule bulkhead), 0, 2"]);
    assert_eq!(
        tried("queue.max_queue = 1\nqueue.max_wait_ms = 1000\n"),
        ["bulkhead: full, and its queue as well (rule bulkhead), 0, 1"]
    );
    assert_eq!(tried("queue.max_queue = 2\nqueue.max_wait_ms = 1000\n"), [""; 0]);
    assert_eq!(
        tried("queue.max_queue = 2\nqueue.max_wait_ms = 95\n"),
        ["bulkhead: waited too long for a place (rule bulkhead), 0, 1"]
    );
}

#[test]
fn a_circuit_opens_by_the_answers_there_were_and_tries_again() {
    let minute = (0..5).fold(Minute::default(), |minute, at| minute.ill(at * 1_000));
    let minute = (5..25).fold(minute, |minute, at| minute.well(at * 1_000, 1, "shop", "/"));
    let text = "[circuit]\nconsecutive_failures = 3\nopen_ms = 7000\nmax_open_ms = 7000\nhalf_open_calls = 1\n";
    let trial = minute.tried(text).unwrap();
    // Open from 2 s on, tried at 10 s, well from then on.
    assert_eq!(shown(&trial), ["breaker: open (rule circuit), 0, 7"]);
}

#[test]
fn a_limit_that_paces_holds_back_before_it_refuses() {
    let minute = (0..4).fold(Minute::default(), |minute, at| minute.well(at, 1, "shop", "/"));
    let text = "[[limit]]\nname = \"even\"\ncount = 10\nbehaviour = \"pace\"\nmax_wait_ms = 250\n";
    assert_eq!(shown(&minute.tried(text).unwrap()), ["rate: over the rate (rule even), 0, 1"]);
}

#[test]
fn requests_that_stand_for_others_are_asked_for_each_of_them() {
    let minute = (0..3_000).fold(Minute::default(), |minute, at| minute.well(at * 10, 1, "shop", "/"));
    let trial = minute.tried("[[limit]]\ncount = 50\n").unwrap();
    assert!(trial.kept < 1_200 && trial.requests.abs_diff(3_000) < 20, "{trial:?}");
    let refused = trial.refusals[0].would;
    assert!(refused.abs_diff(1_450) < 60, "half of a hundred a second: {refused}");
}

#[test]
fn what_cannot_be_tried_is_named_and_a_bad_document_is_said_to_be_bad() {
    let text = "[shed]\n[concurrency]\n[[quota]]\ncount = 5\n[[fault]]\nabort_status = 500\n";
    assert_eq!(Minute::default().tried(text).unwrap().left_out, ["shed", "concurrency", "quota", "fault"]);
    let wrong = Minute::default().tried("[timeouts]\nrequest_ms = 0\n").unwrap_err();
    assert!(wrong.starts_with("line 2: timeouts.request_ms: is 0"), "{wrong}");
}
