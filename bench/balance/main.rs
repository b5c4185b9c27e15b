//! What choosing an instance is worth, and what it costs.
//!
//! Two published experiments are simulated with the balancer that ships, on a virtual clock, from a seed; then a choice is
//! timed. `-- stall`, `-- antagonists`, `-- cost` run one part; `-- svg FILE` writes the picture of the second.

#![allow(clippy::print_stdout)]

mod antagonists;
mod cost;
#[path = "../machine.rs"]
mod machine;
mod picture;
mod stall;

use std::sync::Arc;
use std::time::Duration;

use starling_core::balance::{Algorithm, BalanceSettings, Group, Roster};
use starling_core::guard::BreakerSettings;
use starling_core::id::{InstanceKey, ServiceKey};
use starling_core::record::{Claim, Claimed};
use starling_core::registry::{Address, Instance};
use starling_core::time::{HybridTime, Instant, Stamp};
use starling_core::view::{InstanceView, Revision, ServiceView, Usability, View};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let wants = |part: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == part);
    println!("bench balance: which instance gets the next request");
    println!("{}", machine::describe());
    if wants("stall") {
        stall::run();
    }
    if wants("antagonists") || wants("svg") {
        let runs = antagonists::run();
        if let Some(at) = arguments.iter().position(|argument| argument == "svg") {
            let path = arguments.get(at + 1).map_or("bench/balance/antagonists.svg", String::as_str);
            std::fs::write(path, picture::draw(&runs)).expect("the picture can be written");
            println!("\npicture: {path}");
        }
    }
    if wants("cost") {
        cost::run();
    }
}

/// Settings that choose by this algorithm. Breakers are closed throughout: the balancer is to do it alone.
fn by(algorithm: Algorithm) -> BalanceSettings {
    BalanceSettings { algorithm, ..BalanceSettings::default() }
}

/// The candidates a caller has, of a service with instances of these weights.
fn roster(caller: usize, revision: u64, weights: &[u32], previous: Option<&Roster<()>>) -> Roster<()> {
    let service = ServiceKey { namespace: Default::default(), service: "orders".parse().expect("a valid name") };
    let instances = weights.iter().enumerate().map(|(number, weight)| {
        let mut instance = Instance::at(Address { host: "10.0.0.1".into(), port: 8080 });
        instance.weight = *weight;
        let id = format!("host-{number:04}.example:8080").parse().expect("a valid id");
        let key = InstanceKey { service: service.clone(), instance: id };
        let claim = Claim::new(Stamp { time: HybridTime(1), node: "n1".parse().expect("a valid name") });
        let record = Arc::new(Claimed { key, claim, instance });
        InstanceView { record, override_: None, usability: Usability::Ready }
    });
    let service = Arc::new(ServiceView::new(service.clone(), Revision(revision), instances.collect()));
    let view = View::empty(format!("n{caller}").parse().expect("a valid name"), Default::default());
    Roster::new(&service, &view, BreakerSettings::default(), at(0.0), previous)
}

fn group(settings: &BalanceSettings, weights: &[u32]) -> Group<()> {
    group_of(0, settings, weights)
}

fn group_of(caller: usize, settings: &BalanceSettings, weights: &[u32]) -> Group<()> {
    Group::new(Arc::new(roster(caller, 1, weights, None)), Arc::new(settings.clone()))
}

/// A second of the virtual clock.
fn at(seconds: f64) -> Instant {
    Instant(1_000_000_000) + Duration::from_secs_f64(seconds)
}

/// Normally distributed around 0 with a standard deviation of 1 (Box and Muller).
fn normal(rng: &mut fastrand::Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()
}

/// The value that this share of all does not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1]
}
