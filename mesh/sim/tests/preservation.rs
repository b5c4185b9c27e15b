//! Self-preservation: what a node concludes when others vanish. Eureka's users know it as that which never ends, is global
//! and cannot be seen; each story here is one of the ways it must not be so.

use starling_core::view::{Preservation, Usability};
use starling_sim::{Mesh, Story, secs};

/// A mesh in which every node has an instance of its own, `orders/on-NODE`, and all know all.
fn mesh(seed: u64, nodes: usize, zones: &[&str]) -> Mesh {
    let mut mesh = Mesh::builder(seed).nodes(nodes).zones(zones).build();
    for node in names(1..=nodes) {
        mesh.register(&node, "orders", &format!("on-{node}"));
    }
    mesh.converges_within(secs(5)).expect("they can all hear each other");
    mesh
}

fn names(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|number| format!("n{number}")).collect()
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// How a node holds the instance that another one owns.
fn held(mesh: &Mesh, at: &str, owner: &str) -> Usability {
    mesh.instance(at, &format!("orders/on-{owner}")).expect("nobody forgets an instance").usability
}

/// How many of the instances are candidates for a request at a node, and how many of those without doubt.
fn candidates(mesh: &Mesh, at: &str) -> (usize, usize) {
    let view = mesh.view(at);
    let service = view.services.values().next().expect("a registry is never emptied");
    let candidates = service.candidates();
    (candidates.ready.len() + candidates.doubtful.len(), candidates.ready.len())
}

fn preservation(mesh: &Mesh, at: &str) -> Vec<Preservation> {
    mesh.view(at).preservation.to_vec()
}

fn nobody_preserves(mesh: &Mesh) -> Result<(), Story> {
    mesh.everywhere("nobody preserves anything", |mesh, node| preservation(mesh, node).is_empty())
}

#[test]
fn one_host_dies_and_is_out_of_selection_at_once() -> Result<(), Story> {
    for nodes in [2, 3, 12] {
        let mut mesh = mesh(1, nodes, &[]);
        mesh.crash("n1");
        mesh.run_for(secs(3));
        mesh.everywhere("n1 is lost", |mesh, node| held(mesh, node, "n1") == Usability::OwnerLost)?;
        mesh.everywhere("and no candidate", |mesh, node| candidates(mesh, node) == (nodes - 1, nodes - 1))?;
        nobody_preserves(&mesh)?;
        mesh.restart("n1");
        mesh.run_for(secs(2));
        mesh.all_trust("orders/on-n1")?;
        mesh.nothing_lost()?;
    }
    Ok(())
}

#[test]
fn a_rack_dies_its_zone_is_preserved_for_ten_minutes_and_then_taken_for_dead() -> Result<(), Story> {
    let mut mesh = mesh(2, 12, &["a", "b", "c"]);
    let rack = names([3, 6, 9, 12]);
    rack.iter().for_each(|node| mesh.crash(node));
    mesh.run_for(secs(5));
    mesh.everywhere("the rack is doubtful, the others are not", |mesh, node| {
        rack.iter().all(|dead| held(mesh, node, dead) == Usability::Doubtful) && candidates(mesh, node) == (12, 8)
    })?;
    let shown = preservation(&mesh, "n1");
    let zone = shown.iter().find(|one| one.zone.is_some()).expect("its zone is named");
    assert_eq!((zone.zone.as_ref().unwrap().as_str(), zone.of, zone.missing.size()), ("c", 4, 4));
    assert!(shown.iter().all(|one| one.missing.iter().all(|node| rack.contains(&node.to_string()))));
    // A host of another zone that dies meanwhile is dead.
    mesh.run_for(secs(60));
    mesh.crash("n1");
    mesh.run_for(secs(5));
    mesh.everywhere("n1 is lost", |mesh, node| held(mesh, node, "n1") == Usability::OwnerLost)?;
    mesh.run_for(secs(600));
    nobody_preserves(&mesh)?;
    mesh.everywhere("the rack is dead", |mesh, node| candidates(mesh, node) == (7, 7))?;
    mesh.nothing_lost()
}

#[test]
fn half_the_mesh_is_cut_off_and_each_half_keeps_what_it_knew_of_the_other() -> Result<(), Story> {
    let mut mesh = mesh(3, 12, &["a", "b"]);
    let (left, right) = (names(1..=6), names(7..=12));
    mesh.cut(&refs(&left), &refs(&right));
    mesh.run_for(secs(5));
    mesh.everywhere("all are candidates, half in doubt", |mesh, node| candidates(mesh, node) == (12, 6))?;
    mesh.run_for(secs(120));
    mesh.heal();
    mesh.converges_within(secs(5))?;
    nobody_preserves(&mesh)?;
    mesh.everywhere("all are trusted again", |mesh, node| candidates(mesh, node) == (12, 12))?;
    mesh.nothing_lost()
}

#[test]
fn a_node_alone_cut_off_preserves_what_it_knew_and_the_others_take_it_for_dead() -> Result<(), Story> {
    for nodes in [3, 12] {
        let mut mesh = mesh(4, nodes, &[]);
        let others = names(2..=nodes);
        mesh.cut(&["n1"], &refs(&others));
        mesh.run_for(secs(5));
        assert_eq!(candidates(&mesh, "n1"), (nodes, 1));
        assert_eq!(held(&mesh, "n1", "n2"), Usability::Doubtful);
        for other in &others {
            assert_eq!(
                (candidates(&mesh, other), held(&mesh, other, "n1")),
                ((nodes - 1, nodes - 1), Usability::OwnerLost)
            );
            assert!(preservation(&mesh, other).is_empty());
        }
        // Both go on; it may take a day.
        mesh.register("n1", "pay", "alone");
        mesh.register("n2", "pay", "together");
        mesh.run_for(secs(3_600));
        assert!(preservation(&mesh, "n1").is_empty(), "it has ended by itself");
        assert_eq!(candidates(&mesh, "n1"), (1, 1), "the others are out of reach, and its own is there");
        mesh.heal();
        mesh.converges_within(secs(5))?;
        mesh.all_trust("pay/alone")?;
        mesh.all_trust("pay/together")?;
        mesh.nothing_lost()?;
    }
    Ok(())
}

#[test]
fn a_service_that_is_only_on_the_other_side_is_never_refused() -> Result<(), Story> {
    let mut mesh = mesh(5, 3, &[]);
    mesh.register("n3", "pay", "p1");
    mesh.converges_within(secs(5))?;
    mesh.cut(&["n1"], &["n2", "n3"]);
    mesh.cut(&["n2"], &["n3"]);
    let key = starling_core::id::ServiceKey { namespace: Default::default(), service: "pay".parse().unwrap() };
    for wait in [5, 3_600, 86_000] {
        mesh.run_for(secs(wait));
        for node in ["n1", "n2"] {
            let view = mesh.view(node);
            assert_eq!(view.service(&key).unwrap().candidates().doubtful.len(), 1, "at {node}");
        }
    }
    Ok(())
}

#[test]
fn everything_restarts_at_once_and_nothing_is_preserved_nor_lost() -> Result<(), Story> {
    let mut mesh = mesh(6, 12, &["a", "b", "c"]);
    mesh.put_config("n1", "app/limits", "10");
    mesh.converges_within(secs(5))?;
    for node in names(1..=12) {
        mesh.crash(&node);
    }
    mesh.run_for(secs(30));
    for node in names(1..=12) {
        mesh.restart(&node);
    }
    mesh.converges_within(secs(10))?;
    mesh.run_for(secs(2));
    nobody_preserves(&mesh)?;
    mesh.everywhere("all are trusted", |mesh, node| candidates(mesh, node) == (12, 12))?;
    mesh.all_serve("app/limits", "10")?;
    mesh.nothing_lost()
}

#[test]
fn a_rolling_restart_is_no_reason_for_doubt() -> Result<(), Story> {
    let mut mesh = mesh(7, 12, &["a", "b", "c"]);
    for node in names(1..=12) {
        mesh.crash(&node);
        mesh.run_for(secs(5));
        nobody_preserves(&mesh)?;
        mesh.restart(&node);
        mesh.run_for(secs(5));
    }
    mesh.everywhere("all are trusted", |mesh, node| candidates(mesh, node) == (12, 12))?;
    mesh.nothing_lost()
}

#[test]
fn a_flapping_node_writes_nothing_and_publishes_twice_per_flap() -> Result<(), Story> {
    let mut mesh = mesh(8, 6, &[]);
    let revision = |mesh: &Mesh| mesh.view("n2").revision.0;
    let (writes, before) = (mesh.report().writes, revision(&mesh));
    let others = names(2..=6);
    for _ in 0..20 {
        mesh.cut(&["n1"], &refs(&others));
        mesh.run_for(secs(4));
        mesh.heal();
        mesh.run_for(secs(2));
    }
    assert_eq!(mesh.report().writes, writes);
    let published = revision(&mesh) - before;
    assert!(published <= 40, "{published} pictures were published");
    mesh.all_trust("orders/on-n1")?;
    mesh.nothing_lost()
}

#[test]
fn a_node_that_loses_all_finds_one_again_and_loses_it_too_holds_nobody_for_dead() {
    let mut mesh = mesh(11, 3, &[]);
    mesh.cut(&["n3"], &["n1", "n2"]);
    mesh.run_for(secs(3));
    mesh.heal_between(&["n3"], &["n1"]);
    mesh.run_for(secs(1));
    assert_eq!(held(&mesh, "n3", "n2"), Usability::OwnerLost, "one of three is dead");
    mesh.cut(&["n3"], &["n1"]);
    mesh.run_for(secs(3));
    assert_eq!([held(&mesh, "n3", "n1"), held(&mesh, "n3", "n2")], [Usability::Doubtful; 2]);
}
