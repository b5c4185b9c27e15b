//! A quota of the whole mesh, kept without a server: real hearts share it out, real guards keep to their shares, and what
//! all of them let through is counted, second by second.

use starling_core::guard::{Quota, QuotaSettings};
use starling_core::quotas::QuotaId;
use starling_core::time::Instant;
use starling_sim::{Latency, Mesh, millis, secs};

const QUOTA: QuotaId = QuotaId(7);
/// What all nodes together may let through in a second.
const LIMIT: u32 = 1_000;
/// How often a node's rim tells its heart what is asked.
const REPORT_MS: u64 = 250;
/// How finely time is looked at.
const STEP_MS: u64 = 5;

/// A mesh with a quota, the rim of each of its nodes, and what they have let through in each second.
struct Rig {
    mesh: Mesh,
    nodes: Vec<Rim>,
    chance: fastrand::Rng,
    passed: Vec<u32>,
    asked: Vec<u32>,
}

struct Rim {
    name: String,
    quota: Quota,
    /// Calls asked for in a second.
    demand: f64,
}

impl Rig {
    /// `demands` says how many calls a second are asked for at each node.
    fn new(seed: u64, demands: &[f64]) -> Self {
        Self::with(seed, QuotaSettings { burst_ms: 100, ..QuotaSettings::default() }, demands)
    }

    fn with(seed: u64, settings: QuotaSettings, demands: &[f64]) -> Self {
        let latency = Latency::Tail { floor: millis(1), mean: millis(2) };
        let mut mesh = Mesh::builder(seed).nodes(demands.len()).latency(latency).loss(0.01).build();
        mesh.run_for(secs(1));
        let settings = QuotaSettings { count: LIMIT, ..settings };
        settings.check().expect("a sound quota");
        let rim = |(at, demand): (usize, &f64)| Rim {
            name: format!("n{}", at + 1),
            quota: Quota::new(None, &settings, demands.len() as u32),
            demand: *demand,
        };
        Self {
            nodes: demands.iter().enumerate().map(rim).collect(),
            chance: fastrand::Rng::with_seed(seed),
            mesh,
            passed: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn set_demand(&mut self, nodes: std::ops::Range<usize>, demand: f64) {
        self.nodes[nodes].iter_mut().for_each(|rim| rim.demand = demand);
    }

    /// Calls arrive at random; each node reports at a time of its own. Returns what passed in each second.
    fn run(&mut self, seconds: usize) -> Vec<u32> {
        for _second in 0..seconds {
            let (mut passed, mut asked) = (0, 0);
            for milli in (0..1_000).step_by(STEP_MS as usize) {
                self.mesh.run_for(millis(STEP_MS));
                let now = Instant(self.mesh.now().as_micros() as u64);
                for (at, rim) in self.nodes.iter().enumerate() {
                    if milli % REPORT_MS == at as u64 * 35 % REPORT_MS {
                        let report = rim.quota.report(QUOTA, now);
                        for (quota, share) in self.mesh.use_quotas(&rim.name, &[report]) {
                            assert_eq!(quota, QUOTA);
                            rim.quota.set_share(Some(share));
                        }
                    }
                    // Each millisecond's call comes or does not: close enough to chance at these demands.
                    let calls = (0..STEP_MS).filter(|_| self.chance.f64() < rim.demand / 1_000.0).count();
                    asked += calls as u32;
                    passed += (0..calls).filter(|_| rim.quota.admit(now).is_ok()).count() as u32;
                }
            }
            self.passed.push(passed);
            self.asked.push(asked);
        }
        self.passed[self.passed.len() - seconds..].to_vec()
    }

    fn names(&self, nodes: std::ops::Range<usize>) -> Vec<&str> {
        self.nodes[nodes].iter().map(|rim| rim.name.as_str()).collect()
    }
}

fn most(passed: &[u32]) -> u32 {
    passed.iter().copied().max().unwrap_or_default()
}

fn mean(passed: &[u32]) -> f64 {
    f64::from(passed.iter().sum::<u32>()) / passed.len() as f64
}

/// What a second may let through when the shares add up to the quota: that, and what was saved up (a tenth of a second).
const EXACT: u32 = LIMIT + LIMIT / 10;

#[test]
fn with_steady_demand_all_nodes_together_let_through_what_the_quota_says() {
    for seed in 0..3 {
        // Very different demands, three times the quota together.
        let mut rig = Rig::new(seed, &[900.0, 900.0, 600.0, 300.0, 150.0, 90.0, 50.0, 5.0, 3.0, 2.0]);
        let begin = rig.run(5);
        let passed = rig.run(15);
        assert!(most(&passed) <= EXACT, "{passed:?}");
        assert!(mean(&passed) > 0.93 * f64::from(LIMIT), "{passed:?}");
        assert!(most(&begin) <= EXACT, "nor more while it begins: {begin:?}");
    }
}

#[test]
fn below_the_quota_hardly_anything_is_refused_wherever_it_is_asked() {
    let mut rig = Rig::new(4, &[700.0, 50.0, 20.0, 10.0, 0.0]);
    rig.run(5);
    let passed = rig.run(15);
    assert!(mean(&passed) > 0.98 * mean(&rig.asked[5..]), "{passed:?} of {:?}", &rig.asked[5..]);
}

#[test]
fn when_demand_moves_from_node_to_node_the_quota_moves_after_it() {
    let mut rig = Rig::new(5, &[900.0, 900.0, 0.0, 0.0]);
    rig.run(5);
    rig.set_demand(0..2, 0.0);
    rig.set_demand(2..4, 900.0);
    let moving = rig.run(5);
    let passed = rig.run(5);
    assert!(most(&moving) <= EXACT, "{moving:?}");
    // Those at which nothing is asked any more are left half of the even tenth.
    assert!(mean(&passed) > 0.93 * f64::from(LIMIT) && most(&passed) <= EXACT, "{passed:?}");
}

#[test]
fn both_sides_of_a_partition_together_keep_to_the_quota_while_shares_are_held() {
    let mut rig = Rig::new(6, &[300.0; 6]);
    rig.run(5);
    let (these, those) = (rig.names(0..3).join(","), rig.names(3..6).join(","));
    let cut = |mesh: &mut Mesh| {
        mesh.cut(&these.split(',').collect::<Vec<_>>(), &those.split(',').collect::<Vec<_>>());
    };
    cut(&mut rig.mesh);
    // Demand trebles on both sides, of which neither side hears from the other.
    rig.run(3);
    rig.set_demand(0..6, 900.0);
    let held = rig.run(25);
    assert!(most(&held) <= EXACT, "{held:?}");
    assert!(mean(&held) > 0.9 * f64::from(LIMIT), "{held:?}");
    // After that each side takes all of it.
    let alone = rig.run(10);
    assert!(most(&alone) <= 2 * EXACT && mean(&alone[5..]) > 1.8 * f64::from(LIMIT), "{alone:?}");
    rig.mesh.heal();
    rig.run(5);
    let healed = rig.run(5);
    assert!(most(&healed) <= EXACT && mean(&healed) > 0.93 * f64::from(LIMIT), "{healed:?}");
}

#[test]
fn a_partition_at_the_moment_demand_changes_overshoots_by_less_than_what_was_unsaid() {
    let mut rig = Rig::new(7, &[300.0; 6]);
    rig.run(5);
    let (these, those) = (rig.names(0..3).join(","), rig.names(3..6).join(","));
    rig.mesh.cut(&these.split(',').collect::<Vec<_>>(), &those.split(',').collect::<Vec<_>>());
    rig.set_demand(0..6, 900.0);
    let passed = rig.run(20);
    // Until the other side's silence is noticed its last word is reckoned with: three times the demand here looks like
    // three quarters of all.
    assert!(most(&passed) <= LIMIT * 16 / 10, "{passed:?}");
    assert!(most(&passed[4..]) <= EXACT, "{passed:?}");
}

#[test]
fn who_crashes_leaves_its_share_unused_for_as_long_as_it_is_held_and_who_leaves_does_not() {
    for leaves in [true, false] {
        let mut rig = Rig::with(
            8,
            QuotaSettings { hold_ms: 10_000, burst_ms: 100, ..QuotaSettings::default() },
            &[500.0, 500.0, 500.0],
        );
        rig.run(5);
        if leaves {
            rig.mesh.leave("n3")
        } else {
            rig.mesh.crash("n3")
        }
        rig.set_demand(2..3, 0.0);
        rig.run(4);
        let held = mean(&rig.run(4));
        let two_thirds = 0.6 * f64::from(LIMIT)..0.72 * f64::from(LIMIT);
        assert!(if leaves { held > 0.95 * f64::from(LIMIT) } else { two_thirds.contains(&held) }, "{held}");
        rig.run(5);
        assert!(mean(&rig.run(4)) > 0.95 * f64::from(LIMIT));
    }
}

#[test]
fn a_hundred_nodes_share_a_quota_for_little_traffic() {
    let mut rig = Rig::with(9, QuotaSettings::default(), &[30.0; 100]);
    let begin = rig.run(3);
    // What was saved up in a second, and the first call of each node, which always passes.
    assert!(most(&begin) <= 2 * LIMIT + 100, "nor more while it begins: {begin:?}");
    let told = |rig: &Rig| rig.mesh.report().sent["usage"].bytes;
    let before = told(&rig);
    let passed = rig.run(5);
    let bytes = (told(&rig) - before) as f64 / 5.0 / 100.0;
    assert!(most(&passed) <= EXACT && mean(&passed) > 0.93 * f64::from(LIMIT), "{passed:?}");
    assert!(bytes < 60_000.0, "{bytes} bytes a second and node");
}
