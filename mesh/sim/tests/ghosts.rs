//! Hosts that are gone for good: what they leave behind goes too, and nothing is lost of those that come back after all.

use starling_core::Settings;
use starling_core::view::MemberState;
use starling_sim::{Mesh, Story, millis, secs};

/// Nodes for which a host is gone for good after an hour, and a deletion everywhere after two.
fn mesh(seed: u64, nodes: usize, zones: &[&str]) -> Mesh {
    let settings = Settings {
        ghost_after_ms: 3_600_000,
        tombstone_horizon_ms: 7_200_000,
        repair_interval_ms: 10_000,
        ..Settings::default()
    };
    Mesh::builder(seed).nodes(nodes).zones(zones).settings(settings).build()
}

fn register_many(mesh: &mut Mesh, node: &str) -> Result<(), Story> {
    for number in 0..20 {
        mesh.register(node, "orders", &format!("{node}-{number}"));
    }
    mesh.converges_within(secs(60))?;
    Ok(())
}

fn listed(mesh: &Mesh, at: &str) -> usize {
    mesh.view(at).services.values().map(|service| service.instances.len()).sum()
}

fn all_list(mesh: &Mesh, count: usize) -> Result<(), Story> {
    mesh.everywhere(&format!("{count} instances are listed"), |mesh, node| listed(mesh, node) == count)
}

#[test]
fn a_host_scrapped_without_a_word_leaves_nothing_behind() -> Result<(), Story> {
    let mut mesh = mesh(1, 5, &[]);
    register_many(&mut mesh, "n1")?;
    register_many(&mut mesh, "n2")?;
    mesh.crash("n1");
    mesh.run_for(secs(3_500));
    all_list(&mesh, 40)?;
    mesh.run_for(secs(200));
    all_list(&mesh, 20)?;
    assert_eq!(mesh.report().counters.expired, 20, "one node removed them, and no other");
    mesh.run_for(secs(7_300));
    mesh.everywhere("nothing is left of it", |mesh, node| {
        let view = mesh.view(node);
        view.fingerprint.count == 20 && view.members.size() == 4
    })?;
    mesh.nothing_lost()
}

#[test]
fn what_the_first_in_turn_does_not_do_another_does() -> Result<(), Story> {
    // Whoever is nearest to n1 stands still in turn: for the others it is not lost yet.
    for still in ["n2", "n3", "n4"] {
        let settings = Settings { ghost_after_ms: 60_000, ..Settings::default() };
        let mut mesh = Mesh::builder(2).nodes(4).settings(settings).detection(secs(600), millis(200)).build();
        register_many(&mut mesh, "n1")?;
        mesh.crash("n1");
        mesh.run_for(secs(800));
        mesh.pause(still);
        mesh.run_for(secs(400));
        all_list(&mesh, 0)?;
    }
    Ok(())
}

#[test]
fn an_owner_that_comes_back_after_all_claims_what_it_has_at_once() -> Result<(), Story> {
    for away in [3_800, 12_000] {
        // The second is away for longer than the tombstones of its instances.
        let mut mesh = mesh(3, 4, &[]);
        register_many(&mut mesh, "n1")?;
        mesh.crash("n1");
        mesh.run_for(secs(away));
        all_list(&mesh, 0)?;
        mesh.restart("n1");
        mesh.converges_within(secs(20))?;
        mesh.run_for(secs(1));
        all_list(&mesh, 20)?;
        mesh.all_trust("orders/n1-7")?;
        assert_eq!(mesh.report().counters.reclaimed, 20);
        mesh.run_for(secs(8_000));
        all_list(&mesh, 20)?;
        mesh.nothing_lost()?;
    }
    Ok(())
}

#[test]
fn what_was_removed_or_taken_over_meanwhile_is_not_claimed_again() -> Result<(), Story> {
    let mut mesh = mesh(4, 4, &[]);
    register_many(&mut mesh, "n1")?;
    mesh.crash("n1");
    mesh.run_for(secs(60));
    mesh.deregister("n2", "orders/n1-0");
    mesh.register("n3", "orders", "n1-1");
    mesh.run_for(secs(4_000));
    all_list(&mesh, 1)?;
    mesh.restart("n1");
    mesh.converges_within(secs(20))?;
    mesh.run_for(secs(1));
    mesh.none_sees("orders/n1-0")?;
    mesh.everywhere("n3 has it", |mesh, node| mesh.instance(node, "orders/n1-1").unwrap().owner().as_str() == "n3")?;
    all_list(&mesh, 19)?;
    mesh.nothing_lost()
}

#[test]
fn a_node_that_left_cleanly_keeps_its_place_as_long_as_one_that_was_lost() -> Result<(), Story> {
    let mut mesh = mesh(5, 4, &[]);
    register_many(&mut mesh, "n1")?;
    mesh.leave("n1");
    mesh.run_for(secs(3_000));
    all_list(&mesh, 20)?;
    mesh.run_for(secs(900));
    all_list(&mesh, 0)?;
    mesh.restart("n1");
    mesh.converges_within(secs(20))?;
    mesh.all_trust("orders/n1-7")
}

#[test]
fn a_node_cut_off_for_days_expires_nothing_of_the_many_it_misses() -> Result<(), Story> {
    let mut mesh = mesh(6, 4, &[]);
    register_many(&mut mesh, "n1")?;
    register_many(&mut mesh, "n2")?;
    mesh.cut(&["n1"], &["n2", "n3", "n4"]);
    mesh.run_for(secs(4 * 3_600));
    assert_eq!((listed(&mesh, "n1"), listed(&mesh, "n2")), (40, 20));
    let member = |mesh: &Mesh, node: &str| mesh.view("n1").member(&node.parse().unwrap()).map(|member| member.state);
    assert_eq!(member(&mesh, "n2"), Some(MemberState::Lost));
    mesh.heal();
    mesh.converges_within(secs(20))?;
    mesh.run_for(secs(1));
    all_list(&mesh, 40)?;
    mesh.all_trust("orders/n1-3")?;
    mesh.all_trust("orders/n2-3")?;
    mesh.nothing_lost()
}

#[test]
fn a_rack_that_is_preserved_has_no_ghosts() -> Result<(), Story> {
    let settings = Settings { ghost_after_ms: 60_000, ..Settings::default() };
    let mut mesh = Mesh::builder(7).nodes(9).zones(["a", "b", "c"]).settings(settings).build();
    for node in ["n3", "n6", "n9"] {
        register_many(&mut mesh, node)?;
    }
    ["n3", "n6", "n9"].iter().for_each(|node| mesh.crash(node));
    mesh.run_for(secs(590));
    all_list(&mesh, 60)?;
    mesh.run_for(secs(900));
    all_list(&mesh, 0)
}

#[test]
fn an_owner_that_only_one_other_can_hear_is_not_expired_over_and_over() -> Result<(), Story> {
    let mut mesh = mesh(8, 4, &[]);
    register_many(&mut mesh, "n1")?;
    mesh.cut(&["n1"], &["n2", "n3"]);
    mesh.run_for(secs(4 * 3_600));
    let counters = mesh.report().counters;
    assert!(counters.expired <= 4 * 20 && counters.reclaimed <= counters.expired, "{counters:?}");
    all_list(&mesh, 20)?;
    mesh.nothing_lost()
}
