//! One instance, two owners: moves, zombies and what a crash in between leaves.

use starling_core::registry::{Address, Check, CheckKind, Details, Instance};
use starling_core::view::Usability;
use starling_sim::{Latency, Mesh, Story, ask, millis, secs};

/// Three nodes whose disks take 20 ms and whose links take one: a write is known to all long before it is durable.
fn slow_disks(seed: u64) -> Mesh {
    let mut mesh = Mesh::builder(seed).nodes(3).disk(millis(20)).latency(Latency::Fixed(millis(1))).build();
    mesh.register("n1", "orders", "o1");
    mesh.run_for(secs(1));
    mesh
}

fn owner(mesh: &Mesh, at: &str) -> Option<String> {
    mesh.instance(at, "orders/o1").map(|shown| shown.owner().to_string())
}

fn all_know_as_owner(mesh: &Mesh, node: &str) -> Result<(), Story> {
    mesh.everywhere(&format!("{node} owns it"), |mesh, at| owner(mesh, at).as_deref() == Some(node))
}

/// The new owner takes it, all hear of it, and its disk has not.
fn takeover_under_way(mesh: &mut Mesh) -> Result<(), Story> {
    mesh.submit("n2", ask::register("orders/o1")).expect("it is running");
    mesh.run_for(millis(10));
    all_know_as_owner(mesh, "n2")
}

#[test]
fn when_all_crash_before_a_new_owner_has_it_on_disk_the_old_one_still_has_it() -> Result<(), Story> {
    let mut mesh = slow_disks(1);
    takeover_under_way(&mut mesh)?;
    ["n1", "n2", "n3"].iter().for_each(|node| mesh.crash(node));
    ["n1", "n2", "n3"].iter().for_each(|node| mesh.restart(node));
    mesh.converges_within(secs(10))?;
    all_know_as_owner(&mesh, "n1")?;
    mesh.run_for(secs(2));
    mesh.all_trust("orders/o1")?;
    mesh.nothing_lost()
}

#[test]
fn when_a_new_owner_crashes_before_it_has_it_on_disk_the_old_one_claims_it_again() -> Result<(), Story> {
    let mut mesh = slow_disks(2);
    takeover_under_way(&mut mesh)?;
    mesh.crash("n2");
    mesh.run_for(secs(30));
    mesh.restart("n2");
    mesh.converges_within(secs(10))?;
    mesh.run_for(secs(2));
    all_know_as_owner(&mesh, "n1")?;
    mesh.all_trust("orders/o1")?;
    mesh.nothing_lost()
}

#[test]
fn when_all_crash_before_a_removal_elsewhere_is_on_disk_it_is_still_there() -> Result<(), Story> {
    let mut mesh = slow_disks(3);
    mesh.submit("n2", ask::deregister("orders/o1")).expect("it is running");
    mesh.run_for(millis(10));
    mesh.none_sees("orders/o1")?;
    ["n1", "n2", "n3"].iter().for_each(|node| mesh.crash(node));
    ["n1", "n2", "n3"].iter().for_each(|node| mesh.restart(node));
    mesh.converges_within(secs(10))?;
    mesh.run_for(secs(2));
    mesh.all_trust("orders/o1")?;
    mesh.nothing_lost()
}

#[test]
fn a_move_that_was_acknowledged_outlives_everything() -> Result<(), Story> {
    let mut mesh = slow_disks(4);
    mesh.register("n2", "orders", "o1");
    mesh.run_for(millis(50));
    for pause in [0, 700] {
        mesh.run_for(secs(pause));
        ["n1", "n2", "n3"].iter().for_each(|node| mesh.crash(node));
        ["n1", "n2", "n3"].iter().for_each(|node| mesh.restart(node));
        mesh.converges_within(secs(10))?;
        mesh.run_for(secs(2));
        all_know_as_owner(&mesh, "n2")?;
    }
    mesh.deregister("n3", "orders/o1");
    mesh.run_for(secs(700));
    ["n1", "n2", "n3"].iter().for_each(|node| mesh.crash(node));
    ["n1", "n2", "n3"].iter().for_each(|node| mesh.restart(node));
    mesh.converges_within(secs(10))?;
    mesh.run_for(secs(2));
    mesh.none_sees("orders/o1")?;
    mesh.nothing_lost()
}

#[test]
fn an_instance_registered_on_both_sides_of_a_cut_has_one_owner_afterwards() -> Result<(), Story> {
    let mut mesh = Mesh::builder(5).nodes(4).build();
    mesh.register("n1", "orders", "o1");
    mesh.run_for(secs(1));
    mesh.cut(&["n1", "n2"], &["n3", "n4"]);
    for _ in 0..10 {
        mesh.register("n1", "orders", "o1");
        mesh.run_for(secs(2));
        mesh.register("n4", "orders", "o1");
        mesh.run_for(secs(2));
    }
    mesh.heal();
    mesh.converges_within(secs(5))?;
    all_know_as_owner(&mesh, "n4")?;
    mesh.run_for(secs(1));
    mesh.all_trust("orders/o1")?;
    mesh.nothing_lost()
}

fn leased() -> Instance {
    let check = Check { interval_ms: 10_000, ..Check::new(CheckKind::Ttl) };
    Instance {
        details: Details::new(Default::default(), Default::default(), Some(check)),
        ..Instance::at(Address { host: "app.test".into(), port: 8080 })
    }
}

#[test]
fn a_lease_that_moved_during_a_cut_is_not_let_lapse_by_its_old_keeper() -> Result<(), Story> {
    let mut mesh = Mesh::builder(6).nodes(3).build();
    mesh.register_as("n1", "orders/o1", leased());
    mesh.converges_within(secs(5))?;
    mesh.cut(&["n1"], &["n2", "n3"]);
    // Its application cannot reach n1 any more, and goes on at n2. At n1 the lease lapses, later than it moved.
    for _ in 0..6 {
        mesh.renew("n2", "orders/o1");
        mesh.run_for(secs(5));
    }
    assert_eq!(mesh.instance("n1", "orders/o1").unwrap().usability, Usability::Health);
    mesh.renew("n2", "orders/o1");
    mesh.heal();
    mesh.converges_within(secs(5))?;
    all_know_as_owner(&mesh, "n2")?;
    mesh.run_for(secs(1));
    mesh.all_trust("orders/o1")?;
    mesh.nothing_lost()
}

#[test]
fn two_keepers_of_one_lease_write_once_per_renewal_and_no_more() -> Result<(), Story> {
    let mut mesh = Mesh::builder(7).nodes(5).build();
    mesh.register_as("n1", "orders/o1", leased());
    mesh.run_for(secs(1));
    let before = mesh.report().writes;
    for _ in 0..20 {
        mesh.renew("n1", "orders/o1");
        mesh.run_for(secs(2));
        mesh.renew("n2", "orders/o1");
        mesh.run_for(secs(2));
    }
    let writes = mesh.report().writes - before;
    assert!(writes <= 40, "{writes} writes by 40 renewals");
    mesh.converged()?;
    all_know_as_owner(&mesh, "n2")?;
    mesh.nothing_lost()
}
