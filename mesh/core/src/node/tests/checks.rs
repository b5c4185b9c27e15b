//! Which instances a node probes, and what counts as a verdict, while instances change, move and vanish.

use super::*;

fn checked(kind: CheckKind) -> Instance {
    instance().checked(Check::new(kind))
}

fn register(mesh: &mut Mesh, at: &str, instance: Instance) -> InstanceKey {
    let key = instance_key("orders", "o1");
    mesh.command(at, Command::Register(Registration { key: key.clone(), instance })).unwrap();
    key
}

#[test]
fn a_probe_ends_when_the_check_becomes_a_lease_or_goes_and_its_late_result_renews_nothing() {
    let mut mesh = Mesh::of(&["a"]);
    let key = register(&mut mesh, "a", checked(CheckKind::Tcp));
    assert_eq!(mesh.probed("a", &key), Some(8080));
    register(&mut mesh, "a", checked(CheckKind::Ttl));
    assert_eq!(mesh.probed("a", &key), None);
    mesh.wait(Duration::from_secs(10));
    mesh.give(&id("a"), Input::Probe(key.clone(), Ok(())));
    mesh.wait(Duration::from_secs(6));
    mesh.all_see("orders", "o1", Some(Usability::Health));
    register(&mut mesh, "a", checked(CheckKind::Tcp));
    assert_eq!(mesh.probed("a", &key), Some(8080));
    register(&mut mesh, "a", instance());
    assert_eq!(mesh.probed("a", &key), None);
    mesh.all_see("orders", "o1", Some(Usability::Ready));
}

#[test]
fn a_probe_ends_with_an_instance_that_failed_for_too_long() {
    let mut mesh = Mesh::of(&["a"]);
    let check = Check { deregister_after_ms: Some(1_000), ..Check::new(CheckKind::Tcp) };
    let key = register(&mut mesh, "a", instance().checked(check));
    for _ in 0..3 {
        mesh.give(&id("a"), Input::Probe(key.clone(), Err("refused".into())));
    }
    mesh.wait(Duration::from_secs(2));
    mesh.all_see("orders", "o1", None);
    assert_eq!(mesh.probed("a", &key), None);
}

#[test]
fn a_probe_moves_with_the_instance() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let key = register(&mut mesh, "a", checked(CheckKind::Tcp));
    register(&mut mesh, "b", checked(CheckKind::Tcp));
    assert_eq!((mesh.probed("a", &key), mesh.probed("b", &key)), (None, Some(8080)));
    let elsewhere = Address { port: 9090, ..instance().address };
    register(&mut mesh, "b", Instance { address: elsewhere, ..checked(CheckKind::Tcp) });
    assert_eq!(mesh.probed("b", &key), Some(9090));
}

#[test]
fn a_probe_follows_a_write_that_reached_the_peers_but_not_the_disk() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let key = register(&mut mesh, "a", checked(CheckKind::Tcp));
    let disk = mesh.disks[&id("a")].clone();
    let elsewhere = Address { port: 9090, ..instance().address };
    register(&mut mesh, "a", Instance { address: elsewhere, ..checked(CheckKind::Tcp) });
    mesh.disks.insert(id("a"), disk);
    mesh.probes.clear();
    mesh.start("a", 2);
    mesh.wait(Duration::from_secs(3));
    mesh.all_agree();
    assert_eq!(mesh.probed("a", &key), Some(9090));
}

#[test]
fn an_instance_is_probed_once_whatever_else_is_written_of_it() {
    let mut mesh = Mesh::of(&["a"]);
    let key = register(&mut mesh, "a", checked(CheckKind::Tcp));
    mesh.probes.clear();
    mesh.give(&id("a"), Input::Probe(key.clone(), Ok(())));
    mesh.command("a", Command::SetStatus(key.clone(), Status::Starting)).unwrap();
    register(&mut mesh, "a", Instance { version: "2".into(), ..checked(CheckKind::Tcp) });
    assert_eq!(mesh.probed("a", &key), None, "the running probe goes on");
    assert_eq!(mesh.nodes[&id("a")].view().instance(&key).unwrap().instance.health, Health::Passing);
}

#[test]
fn a_renewal_says_what_it_wrote() {
    let mut mesh = Mesh::of(&["a"]);
    let key = register(&mut mesh, "a", checked(CheckKind::Ttl));
    let renew = |mesh: &mut Mesh| match mesh.command("a", Command::Renew(key.clone(), Ok(()))) {
        Ok(Answer::Done { stamp, .. }) => stamp,
        Err(why) => panic!("{why}"),
    };
    assert_eq!(renew(&mut mesh), None, "nothing to tell anybody");
    mesh.wait(Duration::from_secs(16));
    let stamp = renew(&mut mesh);
    assert_eq!(stamp.as_ref(), Some(mesh.nodes[&id("a")].view().instance(&key).unwrap().stamp()));
}

#[test]
fn a_renewal_takes_over_no_more_instances_than_a_node_may_own() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let key = register(&mut mesh, "a", checked(CheckKind::Ttl));
    mesh.nodes.get_mut(&id("b")).unwrap().settings.max_own_instances = 0;
    let full = mesh.command("b", Command::Renew(key, Ok(())));
    assert!(matches!(full, Err(Refusal::Full { limit: 0, .. })), "{full:?}");
}
