//! Instances that are moved or removed while their old owner cannot hear of it.

use super::*;

fn check() -> Check {
    Check { failures_to_fail: 1, ..Check::new(CheckKind::Tcp) }
}

fn register(mesh: &mut Mesh, at: &str, port: u16) -> InstanceKey {
    let key = instance_key("orders", "o1");
    let address = Address { port, ..instance().address };
    let instance = Instance::at(address).checked(check());
    mesh.command(at, Command::Register(Registration { key: key.clone(), instance })).unwrap();
    mesh.give(&id(at), Input::Probe(key.clone(), Ok(())));
    key
}

/// What everybody agrees on: the owner and the port.
fn agreed(mesh: &Mesh, key: &InstanceKey) -> Option<(NodeId, u16)> {
    mesh.all_agree();
    let shown = mesh.nodes[&id("a")].view().instance(key)?;
    Some((shown.owner().clone(), shown.instance.address.port))
}

#[test]
fn a_verdict_of_the_old_owner_does_not_undo_a_move_it_has_not_heard_of() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let key = register(&mut mesh, "a", 1);
    mesh.separate("a", "b");
    register(&mut mesh, "b", 2);
    mesh.wait(Duration::from_millis(100));
    mesh.give(&id("a"), Input::Probe(key.clone(), Err("refused".into())));
    mesh.heal();
    assert_eq!(agreed(&mesh, &key), Some((id("b"), 2)));
    mesh.all_see("orders", "o1", Some(Usability::Ready));
    assert_eq!((mesh.probed("a", &key), mesh.probed("b", &key)), (None, Some(2)));
}

#[test]
fn a_verdict_of_the_owner_does_not_raise_what_was_removed_elsewhere() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let key = register(&mut mesh, "a", 1);
    mesh.separate("a", "b");
    mesh.command("b", Command::Deregister(key.clone())).unwrap();
    mesh.wait(Duration::from_millis(100));
    mesh.give(&id("a"), Input::Probe(key.clone(), Err("refused".into())));
    mesh.command("a", Command::SetStatus(key.clone(), Status::OutOfService)).unwrap();
    mesh.heal();
    assert_eq!(agreed(&mesh, &key), None);
    assert_eq!(mesh.probed("a", &key), None);
}

#[test]
fn a_registration_after_a_removal_it_has_not_heard_of_wins() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let key = register(&mut mesh, "a", 1);
    mesh.separate("a", "b");
    mesh.command("b", Command::Deregister(key.clone())).unwrap();
    mesh.wait(Duration::from_millis(100));
    register(&mut mesh, "a", 3);
    mesh.heal();
    assert_eq!(agreed(&mesh, &key), Some((id("a"), 3)));
}

#[test]
fn a_late_record_of_a_start_that_is_over_raises_nothing() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    let key = register(&mut mesh, "a", 1);
    let store = |mesh: &Mesh| mesh.nodes[&id("b")].store.iter().next().unwrap().clone();
    let late = store(&mesh);
    mesh.nodes.remove(&id("a"));
    mesh.start("a", 2);
    mesh.command("a", Command::Deregister(key.clone())).unwrap();
    for to in ["a", "b", "c"] {
        mesh.give(&id(to), Input::Message(id("b"), Message::Push(vec![late.clone()])));
    }
    assert_eq!(agreed(&mesh, &key), None);
    // And when even its tombstone is gone.
    for node in mesh.nodes.values_mut() {
        node.settings.tombstone_horizon_ms = 30_000;
    }
    mesh.wait(Duration::from_secs(60));
    mesh.give(&id("c"), Input::Message(id("b"), Message::Push(vec![late])));
    assert_eq!(agreed(&mesh, &key), None);
    assert_eq!(mesh.nodes[&id("c")].counters().reburied, 1);
}

#[test]
fn a_reinstalled_host_does_not_give_back_what_it_took_over_long_ago() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    let key = register(&mut mesh, "a", 1);
    register(&mut mesh, "b", 2);
    mesh.now.elapsed = mesh.now.elapsed + owner::HELD_FOR;
    mesh.wait(Duration::from_secs(1));
    mesh.nodes.remove(&id("b"));
    mesh.disks.remove(&id("b"));
    mesh.start("b", 2);
    mesh.wait(Duration::from_secs(5));
    assert_eq!(agreed(&mesh, &key), None);
    assert_eq!(mesh.nodes[&id("a")].counters().reclaimed, 0);
}

#[test]
fn a_node_knows_which_services_it_has_instances_of() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let services = |mesh: &Mesh, at: &str| {
        let own = mesh.nodes[&id(at)].view().own_services.clone();
        own.iter().map(|(key, count)| format!("{} {count}", key.service)).collect::<Vec<_>>()
    };
    let key = register(&mut mesh, "a", 1);
    register(&mut mesh, "a", 2);
    assert_eq!((services(&mesh, "a"), services(&mesh, "b")), (vec!["orders 1".to_owned()], vec![]));
    register(&mut mesh, "b", 3);
    mesh.all_agree();
    assert_eq!((services(&mesh, "a"), services(&mesh, "b")), (vec![], vec!["orders 1".to_owned()]));
    mesh.command("a", Command::Deregister(key)).unwrap();
    mesh.all_agree();
    assert_eq!((services(&mesh, "a"), services(&mesh, "b")), (vec![], vec![]));
}

#[test]
fn a_document_about_access_that_says_nothing_sensible_is_refused_where_it_is_written() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let write = |group: &str, text: &str| {
        let key =
            ConfigKey { namespace: Default::default(), group: group.parse().unwrap(), key: "orders".parse().unwrap() };
        let (format, author, comment) = Default::default();
        Command::WriteConfig(ConfigWrite { key, body: Some(text.into()), format, author, comment, expect: None })
    };
    let refusal = mesh.command("a", write("access", "[[allow]]\nmethods = [\"get\"]")).unwrap_err();
    assert!(refusal.to_string().contains("access/orders: allow[0].methods[0]: \"get\""), "{refusal}");
    mesh.command("a", write("access", "[[allow]]\nmethods = [\"GET\"]")).unwrap();
    mesh.command("a", write("other", "[[allow]]\nmethods = [\"get\"]")).unwrap();
}
