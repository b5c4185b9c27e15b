mod algorithms;
mod hashing;
mod places;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::guard::{BreakerSettings, BreakerState, Fault};
use crate::id::{InstanceId, InstanceKey, NodeId, ServiceKey, Zone};
use crate::record::{Claim, Claimed};
use crate::registry::{Address, Instance};
use crate::testing::facts;
use crate::time::Instant;
use crate::time::{HybridTime, Stamp, WallTime};
use crate::view::{InstanceView, MemberState, MemberView, Revision, ServiceView, Usability, View};
use proptest::prelude::*;

const NOW: Instant = Instant(1_000_000_000);

/// For what is told of services that are broken as a whole.
fn all_may_be_out() -> BreakerSettings {
    BreakerSettings { max_ejected_percent: 100, ..BreakerSettings::default() }
}

/// A service of instances called `a`, `b`, ... with these weights, zones and usabilities.
struct Village {
    group: Group<()>,
    now: Instant,
    rng: fastrand::Rng,
}

fn instance(name: &str, weight: u32, zone: &str, usability: Usability) -> InstanceView {
    let service = ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() };
    let mut instance = Instance::at(Address { host: "127.0.0.1".into(), port: 80 });
    instance.weight = weight;
    instance.zone = zone.parse().unwrap();
    let key = InstanceKey { service, instance: name.parse().unwrap() };
    let claim = Claim::new(Stamp { time: HybridTime(1), node: "n1".parse().unwrap() });
    InstanceView { record: Arc::new(Claimed { key, claim, instance }), override_: None, usability }
}

fn named(weights: &[u32]) -> Vec<InstanceView> {
    let names = weights.iter().zip("abcdefghijklmnop".chars());
    names.map(|(weight, name)| instance(&name.to_string(), *weight, "default", Usability::Ready)).collect()
}

/// The picture of a node that sees `n1`, the owner of all instances, in its `start`th life.
fn view(start: u64) -> View {
    let mut view = View::empty("n0".parse().unwrap(), Zone::default());
    let node: NodeId = "n1".parse().unwrap();
    let member = MemberView { node: node.clone(), facts: facts(start), state: MemberState::Alive, since: WallTime(0) };
    view.members.insert_mut(node, Arc::new(member));
    view
}

fn service(instances: &[InstanceView]) -> Arc<ServiceView> {
    let key = ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() };
    Arc::new(ServiceView::new(key, Revision(1), instances.iter().cloned().collect()))
}

impl Village {
    fn of(instances: &[InstanceView]) -> Self {
        Self::with(BalanceSettings::default(), instances)
    }

    fn with(settings: BalanceSettings, instances: &[InstanceView]) -> Self {
        Self::guarded(BreakerSettings::default(), settings, instances)
    }

    fn guarded(breaker: BreakerSettings, settings: BalanceSettings, instances: &[InstanceView]) -> Self {
        let roster = Roster::new(&service(instances), &view(1), breaker, NOW, None);
        let group = Group::new(Arc::new(roster), Arc::new(settings));
        Self { group, now: NOW, rng: fastrand::Rng::with_seed(7) }
    }

    fn ready(weights: &[u32]) -> Self {
        Self::of(&named(weights))
    }

    /// Instances called `a`, `b`, ... with these weights, chosen among by this algorithm.
    fn by(algorithm: Algorithm, weights: &[u32]) -> Self {
        Self::with(BalanceSettings { algorithm, ..BalanceSettings::default() }, &named(weights))
    }

    /// The same instances and these, as the same service a while later.
    fn joined_by(self, others: &[InstanceView]) -> Self {
        let before = self.group.roster().slots().iter().map(|slot| slot.instance.clone());
        let all: Vec<_> = before.chain(others.iter().cloned()).collect();
        let previous = Some(&**self.group.roster());
        let roster = Roster::new(&service(&all), &view(1), BreakerSettings::default(), self.now, previous);
        let group = Group::new(Arc::new(roster), self.group.settings().clone());
        Self { group, ..self }
    }

    fn seat(&self, name: &str) -> &Arc<Seat<()>> {
        &self.group.slots().find(|slot| slot.instance.key.instance.as_str() == name).unwrap().seat
    }

    fn choose(&mut self) -> Option<String> {
        self.choose_except(&[])
    }

    /// Each request has a key of its own.
    fn choose_except(&mut self, tried: &[&str]) -> Option<String> {
        let key = self.rng.u64(..);
        self.choose_for(key, tried)
    }

    fn choose_for(&mut self, key: u64, tried: &[&str]) -> Option<String> {
        let tried: Vec<InstanceId> = tried.iter().map(|name| name.parse().unwrap()).collect();
        let (slot, permit) = self.group.choose(self.now, &mut self.rng, &Ask { tried: &tried, key: Some(key) })?;
        permit.succeed(self.now);
        Some(slot.instance.key.instance.to_string())
    }

    /// Requests come every `gap_us`, each answered as `answer` says; counts per instance. Instances report how they are
    /// with each answer, and each request asks two more.
    fn play(
        &mut self,
        n: usize,
        gap_us: u64,
        answer: impl Fn(&str, &mut fastrand::Rng) -> (Duration, Outcome),
    ) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let mut pending: BTreeMap<(Instant, usize), (InFlight<()>, Duration, Outcome)> = BTreeMap::new();
        for number in 0..n {
            self.now = self.now + Duration::from_micros(gap_us);
            while let Some(first) = pending.first_entry().filter(|first| first.key().0 <= self.now) {
                let (in_flight, took, outcome) = first.remove();
                in_flight.seat().load.observe(self.now, took, outcome);
            }
            let name = self.choose().unwrap();
            let (took, outcome) = answer(&name, &mut self.rng);
            let in_flight = InFlight::begin(self.seat(&name));
            pending.insert((self.now + took, number), (in_flight, took, outcome));
            *counts.entry(name.clone()).or_default() += 1;
            let asked = |village: &mut Self| {
                let slot = village.group.ask_whom(village.now, &mut village.rng)?;
                Some(slot.instance.key.instance.to_string())
            };
            for name in [Some(name), asked(self), asked(self)].into_iter().flatten() {
                let latency_us = answer(&name, &mut self.rng).0.as_micros() as u32;
                let report = Report { in_flight: self.seat(&name).load.in_flight(), latency_us };
                self.group.report(self.now, &name.parse().unwrap(), report);
            }
        }
        counts
    }

    /// One request at a time, `gap_ms` apart, each answered after what `latency` says; counts per instance.
    fn serve(
        &mut self,
        n: usize,
        gap_ms: u64,
        latency: impl Fn(&str, &mut fastrand::Rng) -> Duration,
    ) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..n {
            let name = self.choose().unwrap();
            let took = latency(&name, &mut self.rng);
            self.now = self.now + took;
            self.seat(&name).load.observe(self.now, took, Outcome::Good);
            self.now = self.now + Duration::from_millis(gap_ms);
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    /// Opens its breaker: nobody answers there.
    fn break_down(&self, name: &str) {
        self.break_by(name, Fault::Silence);
    }

    fn break_by(&self, name: &str, fault: Fault) {
        for _ in 0..5 {
            self.seat(name).breaker.admit(self.now, false).unwrap().fail(fault, self.now, 0);
        }
    }
}

#[test]
fn two_equal_instances_at_low_load_get_equal_shares_although_their_latency_jitters() {
    let mut village = Village::ready(&[100, 100]);
    let exponential = |_: &str, rng: &mut fastrand::Rng| Duration::from_secs_f32(-0.005 * rng.f32().max(1e-6).ln());
    let counts = village.serve(4_000, 50, exponential);
    assert!((1_600..=2_400).contains(&counts["a"]), "{counts:?}");
}

#[test]
fn the_slower_instance_gets_little_but_is_not_forgotten() {
    let mut village = Village::ready(&[100, 100]);
    let counts = village.serve(2_000, 10, |name, _| Duration::from_millis(if name == "a" { 200 } else { 5 }));
    assert!((1..100).contains(&counts["a"]), "{counts:?}");
}

#[test]
fn fast_failures_do_not_attract_traffic() {
    let mut village = Village::ready(&[100, 100]);
    let counts =
        village.serve(2_000, 10, |name, _| if name == "a" { FAILURE_PENALTY } else { Duration::from_millis(20) });
    assert!(counts["a"] < 40, "{counts:?}");
}

#[test]
fn a_newcomer_gets_its_share_at_once() {
    let mut village = Village::ready(&[100, 100, 100]);
    village.seat("a").load.observe(village.now, Duration::from_millis(10), Outcome::Good);
    village.seat("b").load.observe(village.now, Duration::from_millis(10), Outcome::Good);
    let c = (0..3_000).filter(|_| village.choose().unwrap() == "c").count();
    assert!((900..1_100).contains(&c), "{c}");
}

#[test]
fn requests_in_flight_push_the_next_one_elsewhere() {
    let mut village = Village::ready(&[100, 100]);
    let busy = village.seat("a").clone();
    let _held: Vec<_> = (0..20).map(|_| InFlight::begin(&busy)).collect();
    let a = (0..1_000).filter(|_| village.choose().unwrap() == "a").count();
    assert!(a < 20, "{a}");
}

#[test]
fn in_flight_ends_with_its_guard() {
    let village = Village::ready(&[1]);
    let guard = InFlight::begin(village.seat("a"));
    assert_eq!(guard.seat().load.in_flight(), 1);
    drop(guard);
    assert_eq!(village.seat("a").load.in_flight(), 0);
}

#[test]
fn latency_jumps_to_a_peak_and_decays_when_read() {
    let load = Load::default();
    let start = Instant(1_000_000_000);
    assert_eq!(load.latency_us(start), None);
    load.observe(start, Duration::from_millis(1), Outcome::Good);
    load.observe(start, Duration::from_millis(100), Outcome::Good);
    assert!((load.latency_us(start).unwrap() - 100_000.0).abs() < 1.0);
    let later = load.latency_us(start + Duration::from_secs(10)).unwrap();
    assert!((later - 100_000.0 / std::f32::consts::E).abs() < 10.0, "{later}");
    load.observe(start + Duration::from_secs(10), Duration::from_millis(1), Outcome::Good);
    let blended = load.latency_us(start + Duration::from_secs(10)).unwrap();
    assert!((blended - (100_000.0 * 0.36788 + 1_000.0 * 0.63212)).abs() < 10.0, "{blended}");
}

#[test]
fn the_own_zone_comes_first_and_others_only_when_it_has_nothing_usable() {
    let ready = Usability::Ready;
    let mut village = Village::of(&[instance("near", 1, "default", ready), instance("far", 1_000, "other", ready)]);
    assert!((0..100).all(|_| village.choose().unwrap() == "near"));
    assert_eq!(village.choose_except(&["near"]).unwrap(), "far");
    village.break_down("near");
    assert!((0..100).all(|_| village.choose().unwrap() == "far"));
}

#[test]
fn doubtful_instances_are_tried_only_when_nothing_is_ready() {
    let lost = instance("lost", 1_000, "default", Usability::Doubtful);
    let mut village = Village::of(&[lost, instance("far", 1, "other", Usability::Ready)]);
    assert!((0..100).all(|_| village.choose().unwrap() == "far"));
    assert_eq!(village.choose_except(&["far"]).unwrap(), "lost");
}

#[test]
fn what_may_not_take_traffic_is_never_chosen() {
    let usabilities = [Usability::Status, Usability::Health, Usability::OwnerLeft, Usability::Weight];
    let instances: Vec<_> =
        usabilities.iter().zip(["a", "b", "c", "d"]).map(|(u, name)| instance(name, 1, "default", *u)).collect();
    assert_eq!(Village::of(&instances).choose(), None);
}

#[test]
fn a_broken_instance_is_probed_when_its_time_has_come_however_slow_it_was() {
    let mut village = Village::ready(&[100, 100, 100]);
    village.break_down("a");
    village.seat("a").load.observe(village.now, Duration::from_millis(1), Outcome::Unwelcome(FAILURE_PENALTY));
    assert!((0..100).all(|_| village.choose().unwrap() != "a"));
    village.now = village.now + Duration::from_secs(7);
    assert!((0..100).any(|_| village.choose().unwrap() == "a"));
    assert_eq!(village.seat("a").breaker.state(), BreakerState::Closed);
}

#[test]
fn when_all_are_broken_one_caller_a_second_may_still_try() {
    let mut village = Village::ready(&[100]);
    village.break_down("a");
    assert_eq!(village.choose(), None);
    village.now = village.now + Duration::from_secs(1);
    assert_eq!(village.choose().unwrap(), "a");
}

#[test]
fn when_all_are_broken_by_their_answers_the_least_recently_failed_is_still_asked() {
    let mut village = Village::guarded(all_may_be_out(), BalanceSettings::default(), &named(&[100; 3]));
    village.break_down("c");
    village.break_by("a", Fault::Answer);
    assert!((0..100).all(|_| village.choose().unwrap() == "b"), "a broken one is out while another is not");
    assert_eq!(village.choose_except(&["b"]), None, "and retries do not go there either");
    village.now = village.now + Duration::from_millis(1);
    village.break_by("b", Fault::Answer);
    assert!((0..100).all(|_| village.choose().unwrap() == "a"));
    village.now = village.now + Duration::from_millis(1);
    village.seat("a").breaker.admit_anyway().fail(Fault::Answer, village.now, 0);
    assert!((0..100).all(|_| village.choose().unwrap() == "b"));
    assert_eq!(village.choose_except(&["b"]).unwrap(), "a");
    assert_eq!(village.choose_except(&["a", "b"]), None, "nobody answers at c");
    assert!(matches!(village.seat("a").breaker.state(), BreakerState::Open(_)), "what is let past is no probe");
}

#[test]
fn instances_of_lost_nodes_are_no_candidates_unless_there_are_no_others() {
    let lost = || instance("lost", 1_000, "default", Usability::OwnerLost);
    for other in [Usability::Ready, Usability::Doubtful] {
        let mut village = Village::of(&[lost(), instance("other", 1, "default", other)]);
        assert_eq!(village.choose().unwrap(), "other");
        assert_eq!(village.choose_except(&["other"]), None, "a retry does not go there");
    }
    let mut village = Village::of(&[lost(), instance("down", 1, "default", Usability::Status)]);
    assert_eq!(village.choose().unwrap(), "lost", "this node may be the one that is wrong");
}

#[test]
fn seats_outlive_a_change_of_the_service_but_not_newer_word_of_the_instance() {
    let ready = instance("a", 100, "default", Usability::Ready);
    let lost = instance("a", 100, "default", Usability::Doubtful);
    let heavier = instance("a", 300, "default", Usability::Ready);
    let mut rewritten = ready.clone();
    Arc::make_mut(&mut rewritten.record).claim.stamp.time = HybridTime(2);
    let mut moved = ready.clone();
    Arc::make_mut(&mut moved.record).claim.stamp.node = "n2".parse().unwrap();
    for (what, before, after, start, kept) in [
        ("an override", &ready, &heavier, 1, true),
        ("the owner was lost", &ready, &lost, 1, true),
        ("the owner came back", &lost, &ready, 1, false),
        ("the owner was started anew, too quickly to be missed", &ready, &ready, 2, false),
        ("the owner wrote of it", &ready, &rewritten, 1, false),
        ("another owner took it", &ready, &moved, 1, false),
    ] {
        let village = Village::of(std::slice::from_ref(before));
        village.break_down("a");
        village.seat("a").load.observe(village.now, Duration::from_millis(1), Outcome::Unwelcome(FAILURE_PENALTY));
        let others = [after.clone(), instance("b", 100, "default", Usability::Ready)];
        let previous = Some(&**village.group.roster());
        let roster = Roster::new(&service(&others), &view(start), BreakerSettings::default(), village.now, previous);
        let seat = &roster.slots().iter().find(|slot| slot.instance.key.instance.as_str() == "a").unwrap().seat;
        assert_eq!(Arc::ptr_eq(seat, village.seat("a")), kept, "{what}");
        let is_held_against_it =
            seat.breaker.state() != BreakerState::Closed || seat.load.latency_us(village.now).is_some();
        assert_eq!(is_held_against_it, kept, "{what}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Idle and equally fast, each instance gets its weight's share, whatever the weights.
    #[test]
    fn weights_are_respected(weights in proptest::collection::vec(1u32..1_000, 1..8), seed in any::<u64>()) {
        const N: usize = 20_000;
        let mut village = Village::ready(&weights);
        village.rng = fastrand::Rng::with_seed(seed);
        let counts = village.serve(N, 1, |_, _| Duration::from_millis(3));
        let total: u32 = weights.iter().sum();
        for (weight, name) in weights.iter().zip("abcdefgh".chars()) {
            let expected = N as f64 * f64::from(*weight) / f64::from(total);
            let got = counts.get(&name.to_string()).copied().unwrap_or(0) as f64;
            // Six standard deviations of a binomial.
            prop_assert!((got - expected).abs() <= 6.0 * expected.sqrt() + 1.0, "{weights:?} {counts:?}");
        }
    }

    /// With requests in flight too: a queue per instance that drains in turn.
    #[test]
    fn weights_are_respected_under_load(weights in proptest::collection::vec(1u32..10, 2..6), seed in any::<u64>()) {
        const N: usize = 10_000;
        let mut village = Village::ready(&weights);
        village.rng = fastrand::Rng::with_seed(seed);
        let mut held = std::collections::VecDeque::new();
        let mut counts = BTreeMap::<String, usize>::new();
        for _ in 0..N {
            let name = village.choose().unwrap();
            held.push_back(InFlight::begin(village.seat(&name)));
            if held.len() > 16 {
                held.pop_front();
            }
            *counts.entry(name).or_default() += 1;
        }
        let total: u32 = weights.iter().sum();
        for (weight, name) in weights.iter().zip("abcdefgh".chars()) {
            let expected = N as f64 * f64::from(*weight) / f64::from(total);
            let got = counts.get(&name.to_string()).copied().unwrap_or(0) as f64;
            // Queues are whole numbers, so a small share cannot be met exactly while the balancer evens them out.
            prop_assert!((got - expected).abs() <= 0.25 * expected + 6.0 * expected.sqrt(), "{weights:?} {counts:?}");
        }
    }
}
