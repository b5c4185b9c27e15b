//! Several cells: data centres that know of each other through relays, over slow and lossy lines.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

use starling_core::Settings;
use starling_core::id::{CellName, NodeId};
use starling_core::view::{MemberState, Usability};
use starling_sim::{Latency, Links, Mesh, Story, millis, secs};

const EU: [&str; 4] = ["n1", "n3", "n5", "n7"];
const US: [&str; 4] = ["n2", "n4", "n6", "n8"];

/// Two cells of four nodes, an ocean apart: 100 ms and more each way, one message in fifty lost.
fn two_cells(seed: u64) -> Mesh {
    let ocean =
        Links { latency: Latency::Tail { floor: millis(100), mean: millis(5) }, loss: 0.02, ..Links::default() };
    let mut mesh = Mesh::builder(seed).nodes(8).cells(["eu", "us"]).between_cells(ocean).through_bytes().build();
    assert!(mesh.run_until(secs(30), knows_all).is_some(), "{}", mesh.explain());
    mesh
}

fn knows_all(mesh: &Mesh) -> bool {
    let all = mesh.nodes().len();
    mesh.nodes().iter().all(|node| mesh.view(node.as_str()).alive().count() == all)
}

fn state(mesh: &Mesh, observer: &str, subject: &str) -> Option<MemberState> {
    Some(mesh.view(observer).member(&subject.parse().unwrap())?.state)
}

/// The relays of a cell as a node sees them.
fn relays(mesh: &Mesh, observer: &str, cell: &str) -> Vec<NodeId> {
    mesh.view(observer).relays(&cell.parse().unwrap())
}

fn out_of_reach(mesh: &Mesh, observer: &str) -> Vec<CellName> {
    mesh.view(observer).out_of_reach.iter().cloned().collect()
}

fn usability(mesh: &Mesh, observer: &str, path: &str) -> Option<Usability> {
    Some(mesh.instance(observer, path)?.usability)
}

#[test]
fn cells_that_share_one_seed_learn_of_each_other_and_agree_across_an_ocean() -> Result<(), Story> {
    let mut mesh = two_cells(1);
    mesh.register("n1", "orders", "in-eu");
    mesh.register("n8", "orders", "in-us");
    mesh.put_config("n4", "limits.json", "7");
    mesh.converges_within(secs(20))?;
    mesh.all_trust("orders/in-eu")?;
    mesh.all_trust("orders/in-us")?;
    mesh.all_serve("limits.json", "7")
}

#[test]
fn one_cell_knows_nothing_of_this() {
    let mut mesh = Mesh::builder(2).nodes(12).cells(["eu"]).build();
    mesh.register("n1", "orders", "o1");
    mesh.run_for(secs(60));
    let report = mesh.report();
    let kinds: Vec<_> = report.sent.keys().copied().collect();
    assert!(!kinds.iter().any(|kind| matches!(*kind, "pulse" | "out_of_reach")), "{kinds:?}");
    assert_eq!(mesh.view("n2").fingerprint.count, 1, "the instance, and no record of any node");
}

#[test]
fn only_relays_speak_with_other_cells() {
    let mut mesh = Mesh::builder(3).nodes(60).cells(["a", "b", "c"]).build();
    assert!(mesh.run_until(secs(30), knows_all).is_some(), "{}", mesh.explain());
    mesh.run_for(secs(10));
    let relays: Vec<NodeId> = ["a", "b", "c"].iter().flat_map(|cell| relays(&mesh, "n1", cell)).collect();
    assert_eq!(relays.len(), 9);
    let before = mesh.traffic();
    mesh.register("n10", "orders", "o1");
    mesh.run_for(secs(30));
    let after = mesh.traffic();
    for node in mesh.nodes() {
        let spoke = after[&node].abroad > before[&node].abroad;
        assert_eq!(spoke, relays.contains(&node), "{node}: {}", mesh.explain());
    }
}

#[test]
fn a_relay_that_dies_is_replaced_and_changes_still_cross() -> Result<(), Story> {
    let mut mesh = two_cells(4);
    for round in 0..3 {
        let first = relays(&mesh, "n2", "eu")[0].clone();
        mesh.crash(first.as_str());
        mesh.run_for(secs(5));
        let now = relays(&mesh, "n2", "eu");
        assert!(!now.contains(&first), "{}", mesh.explain());
        let alive = mesh.running().into_iter().find(|node| EU.contains(&node.as_str())).unwrap();
        mesh.register(alive.as_str(), "orders", &format!("o{round}"));
        mesh.converges_within(secs(10))?;
        assert_eq!(usability(&mesh, "n2", &format!("orders/o{round}")), Some(Usability::Ready));
    }
    Ok(())
}

#[test]
fn the_crash_of_a_node_is_one_record_for_all_other_cells() {
    let mut mesh = Mesh::builder(5).nodes(30).cells(["a", "b", "c"]).build();
    assert!(mesh.run_until(secs(30), knows_all).is_some(), "{}", mesh.explain());
    for instance in 0..20 {
        mesh.register("n1", "orders", &format!("o{instance}"));
    }
    mesh.run_for(secs(20));
    let (merged, records) = (mesh.report().counters.merged, mesh.view("n2").fingerprint.count);
    mesh.crash("n1");
    mesh.run_for(secs(20));
    assert_eq!(state(&mesh, "n2", "n1"), Some(MemberState::Lost));
    assert_eq!(usability(&mesh, "n2", "orders/o19"), Some(Usability::OwnerLost));
    // Written by one relay of its cell, and learnt once by every other node that is left.
    assert_eq!(mesh.report().counters.merged - merged, 28, "{}", mesh.explain());
    assert_eq!(mesh.view("n2").fingerprint.count, records);
}

#[test]
fn a_node_that_restarts_or_leaves_is_known_for_it_in_all_cells() -> Result<(), Story> {
    let mut mesh = two_cells(6);
    mesh.register("n1", "orders", "o1");
    mesh.crash("n1");
    mesh.run_for(secs(10));
    assert_eq!(state(&mesh, "n2", "n1"), Some(MemberState::Lost));
    mesh.restart("n1");
    mesh.run_for(secs(10));
    assert_eq!(state(&mesh, "n2", "n1"), Some(MemberState::Alive));
    assert_eq!(mesh.view("n2").member(&"n1".parse().unwrap()).unwrap().facts.incarnation.0, 2);
    mesh.all_trust("orders/o1")?;
    mesh.leave("n1");
    mesh.run_for(secs(2));
    assert_eq!(state(&mesh, "n2", "n1"), Some(MemberState::Left), "without waiting for any detector");
    assert_eq!(usability(&mesh, "n2", "orders/o1"), Some(Usability::OwnerLeft));
    Ok(())
}

#[test]
fn a_data_centre_cut_off_for_an_hour_goes_on_as_the_rest_does_and_heals_within_seconds() -> Result<(), Story> {
    let mut mesh = two_cells(7);
    mesh.register("n1", "orders", "in-eu");
    mesh.register("n2", "orders", "in-us");
    mesh.converges_within(secs(20))?;
    let writes = mesh.view("n1").fingerprint.count;
    mesh.cut(&EU, &US);
    mesh.run_for(secs(3_600));
    for (here, there, ours, theirs) in [(EU, "us", "in-eu", "in-us"), (US, "eu", "in-us", "in-eu")] {
        for node in here {
            assert_eq!(out_of_reach(&mesh, node), [there.parse().unwrap()], "{node}: {}", mesh.explain());
            assert_eq!(usability(&mesh, node, &format!("orders/{ours}")), Some(Usability::Ready));
            let last_known = usability(&mesh, node, &format!("orders/{theirs}"));
            assert_eq!(last_known, Some(Usability::Doubtful), "last known, and kept as long as the cut lasts");
        }
    }
    assert_eq!(mesh.view("n1").fingerprint.count, writes, "being out of reach is written nowhere");
    mesh.register("n3", "orders", "new-in-eu");
    mesh.put_config("n4", "limits.json", "us");
    mesh.run_for(secs(5));
    mesh.heal();
    mesh.converges_within(secs(5))?;
    let reached = mesh.run_until(secs(5), |mesh| EU.iter().chain(&US).all(|node| out_of_reach(mesh, node).is_empty()));
    assert!(reached.is_some(), "{}", mesh.explain());
    for path in ["orders/in-eu", "orders/in-us", "orders/new-in-eu"] {
        mesh.all_trust(path)?;
    }
    mesh.all_serve("limits.json", "us")
}

#[test]
fn cells_find_each_other_again_although_all_relays_either_knew_are_gone() -> Result<(), Story> {
    let settings = Settings { relays: 1, ..Settings::default() };
    let mut mesh = Mesh::builder(8).nodes(8).cells(["eu", "us"]).settings(settings).build();
    assert!(mesh.run_until(secs(30), knows_all).is_some(), "{}", mesh.explain());
    mesh.cut(&EU, &US);
    for cell in ["eu", "us"] {
        let relay = relays(&mesh, "n1", cell)[0].clone();
        mesh.crash(relay.as_str());
    }
    mesh.run_for(secs(60));
    mesh.heal();
    mesh.run_for(secs(60));
    let both = mesh.running();
    mesh.register(both[0].as_str(), "orders", "o1");
    mesh.converges_within(secs(10))?;
    for node in both {
        assert_eq!(mesh.view(node.as_str()).alive().count(), 6, "{node}: {}", mesh.explain());
    }
    Ok(())
}

#[test]
fn a_relay_cut_off_from_its_own_cell_calls_nobody_lost_abroad() {
    let mut mesh = Mesh::builder(9).nodes(16).cells(["eu", "us"]).build();
    assert!(mesh.run_until(secs(30), knows_all).is_some(), "{}", mesh.explain());
    mesh.run_for(secs(5));
    let relay = relays(&mesh, "n2", "eu")[0].to_string();
    let eu = ["n1", "n3", "n5", "n7", "n9", "n11", "n13", "n15"];
    let rest: Vec<&str> = eu.into_iter().filter(|node| *node != relay).collect();
    mesh.cut(&[&relay], &rest);
    mesh.run_for(secs(20));
    for node in &rest {
        assert_eq!(state(&mesh, "n2", node), Some(MemberState::Alive), "{node}: {}", mesh.explain());
    }
    mesh.heal();
    mesh.run_for(secs(10));
    assert!(knows_all(&mesh), "{}", mesh.explain());
}

#[test]
fn a_whole_cell_that_restarts_is_back_with_its_instances() -> Result<(), Story> {
    let mut mesh = two_cells(10);
    mesh.register("n2", "orders", "o1");
    mesh.run_for(secs(5));
    for node in US {
        mesh.crash(node);
    }
    mesh.run_for(secs(30));
    assert_eq!(out_of_reach(&mesh, "n1"), ["us".parse().unwrap()]);
    for node in US {
        mesh.restart(node);
    }
    assert!(mesh.run_until(secs(30), knows_all).is_some(), "{}", mesh.explain());
    mesh.converges_within(secs(10))?;
    mesh.all_trust("orders/o1")
}

#[test]
fn in_a_cell_torn_in_two_that_both_reach_others_everybody_stays_known_as_alive_there() {
    let mut mesh = Mesh::builder(11).nodes(16).cells(["eu", "us"]).build();
    assert!(mesh.run_until(secs(30), knows_all).is_some(), "{}", mesh.explain());
    mesh.cut(&["n1", "n3", "n5", "n7"], &["n9", "n11", "n13", "n15"]);
    mesh.run_for(secs(50));
    let before = mesh.report().counters.merged;
    mesh.run_for(secs(60));
    let alive = mesh.view("n2").alive().count();
    assert_eq!(alive, 16, "each half calls the other lost, and each of those objects: {}", mesh.explain());
    let a_minute = mesh.report().counters.merged - before;
    assert!(a_minute <= 16 * 2 * 16, "a loss and an objection per node and minute, learnt by all: {a_minute}");
}
