//! What one input may cost, and what time and settings may not do.

use super::*;
use crate::testing::{instance_record, tombstone_record};

#[test]
fn a_node_with_nonsense_settings_still_sleeps() {
    let settings =
        Settings { repair_interval_ms: 0, tombstone_horizon_ms: 0, max_clock_skew_ms: 0, ..Settings::default() };
    assert!(settings.check().is_err());
    let now = Now { elapsed: Instant(5), wall: WallTime(1_000_000) };
    let mut node = Node::new(id("a"), facts(1), settings, Memory::default(), 1, now);
    node.handle(now, Input::Peer(PeerEvent::Up(id("b"), facts(1))), &mut Vec::new());
    for _ in 0..10 {
        let due = node.next_wakeup().unwrap();
        node.handle(Now { elapsed: due, ..now }, Input::Tick, &mut Vec::new());
        assert!(node.next_wakeup().unwrap() > due);
    }
}

#[test]
fn what_happens_at_once_is_told_in_one_message() {
    let mut mesh = Mesh::of(&["a", "b"]);
    for number in 0..100 {
        let key = instance_key("orders", &format!("o{number}"));
        let leased = instance().checked(Check::new(CheckKind::Ttl));
        mesh.command("a", Command::Register(Registration { key, instance: leased })).unwrap();
    }
    let later = Now { elapsed: mesh.now.elapsed + Duration::from_secs(15), ..mesh.now };
    let mut out = Vec::new();
    mesh.nodes.get_mut(&id("a")).unwrap().handle(later, Input::Tick, &mut out);
    mesh.now = later;
    let sent: Vec<&Message> =
        out.iter().filter_map(|o| if let Output::Send(_, m) = o { Some(m) } else { None }).collect();
    assert!(
        matches!(sent[..], [Message::Push(records), Message::Opening { .. }, Message::Clock(_)] if records.len() == 100),
        "{sent:?}"
    );
}

#[test]
fn a_great_many_lapses_or_tombstones_are_dealt_with_in_portions() {
    let mut mesh = Mesh::of(&["a"]);
    let now = mesh.now;
    let node = mesh.nodes.get_mut(&id("a")).unwrap();
    let leased = instance().checked(Check::new(CheckKind::Ttl));
    for number in 0..3_000 {
        let registration =
            Registration { key: instance_key("orders", &format!("o{number}")), instance: leased.clone() };
        node.handle(now, Input::Command(CommandId(number), Command::Register(registration)), &mut Vec::new());
        node.absorb(tombstone_record("old", &format!("o{number}"), "b", number), now, &mut Vec::new()).unwrap();
    }
    let failing = |node: &Node| {
        let service = node.view().service(&instance_key("orders", "o1").service).unwrap().clone();
        service.instances.iter().filter(|shown| shown.instance.health == Health::Failing).count()
    };
    let later = now.elapsed + Duration::from_secs(15);
    let wall = WallTime(now.wall.0 + node.settings.tombstone_horizon_ms);
    let mut most = 0;
    for step in 0..100 {
        let mut out = Vec::new();
        node.handle(Now { elapsed: later + Duration::from_millis(step * 5), wall }, Input::Tick, &mut out);
        most = most.max(out.len());
    }
    assert!(most <= 2_100, "{most} outputs of one tick");
    assert_eq!(failing(node), 3_000);
    assert_eq!(node.store.fingerprint().count, 3_000, "the tombstones are gone");
}

#[test]
fn revisions_go_on_after_a_restart_so_that_no_watcher_waits_for_what_has_happened() {
    let mut mesh = Mesh::of(&["a"]);
    for number in 0..50 {
        mesh.register("a", "orders", &format!("o{number}"));
    }
    let service = instance_key("orders", "o1").service;
    let held = mesh.nodes[&id("a")].view().service_revision(&service);
    mesh.nodes.remove(&id("a"));
    mesh.wait(Duration::from_millis(20));
    mesh.now.wall.0 += 1;
    mesh.start("a", 2);
    mesh.give(&id("a"), Input::Tick);
    assert!(mesh.nodes[&id("a")].view().service_revision(&service) > held);
    assert!(mesh.nodes[&id("a")].view().revision.0 < 1 << 53, "a number every JSON reader keeps whole");
}

#[test]
fn the_heart_lives_through_a_wall_clock_that_steps_back() {
    let mut mesh = Mesh::of(&["a", "b"]);
    mesh.register("a", "orders", "o1");
    mesh.now.wall.0 -= 500_000;
    mesh.register("a", "orders", "o2");
    mesh.command("a", Command::Deregister(instance_key("orders", "o1"))).unwrap();
    mesh.wait(Duration::from_secs(20));
    mesh.all_see("orders", "o1", None);
    mesh.all_see("orders", "o2", Some(Usability::Ready));
    mesh.all_agree();
    let old = instance_record("orders", "o1", "a", 1);
    mesh.give(&id("b"), Input::Message(id("a"), Message::Push(vec![old])));
    mesh.all_see("orders", "o1", None);
}

#[test]
fn what_is_published_never_changes_however_much_one_input_does() {
    let mut mesh = Mesh::of(&["a"]);
    let records =
        |time: u64| (0..50).map(|number| instance_record("orders", &format!("o{number}"), "b", time)).collect();
    mesh.give(&id("a"), Input::Message(id("b"), Message::Push(records(1))));
    let before = mesh.nodes[&id("a")].view().clone();
    let service = instance_key("orders", "o0").service;
    let shown = before.service(&service).unwrap().clone();
    assert_eq!(shown.candidates().doubtful.len(), 50);
    mesh.give(&id("a"), Input::Message(id("b"), Message::Push(records(2))));
    mesh.give(&id("a"), Input::Peer(PeerEvent::Up(id("b"), facts(1))));
    let after = mesh.nodes[&id("a")].view().service(&service).unwrap().clone();
    assert_eq!((after.candidates().ready.len(), after.candidates().doubtful.len()), (50, 0));
    assert_eq!((shown.candidates().ready.len(), shown.candidates().doubtful.len()), (0, 50));
    assert!(shown.instances.iter().all(|instance| instance.stamp().time == HybridTime(1)));
    assert!(after.revision > shown.revision && before.revision >= shown.revision);
    let gone: Vec<Record> = (0..50).map(|number| tombstone_record("orders", &format!("o{number}"), "b", 3)).collect();
    mesh.give(&id("a"), Input::Message(id("b"), Message::Push(gone)));
    let last = mesh.nodes[&id("a")].view();
    assert!(last.service(&service).is_none());
    assert!(last.service_revision(&service) > after.revision);
    assert_eq!(after.instances.len(), 50);
}

#[test]
fn documents_take_no_more_memory_than_they_may_and_deleting_makes_room() {
    let mut mesh = Mesh::of(&["a", "b"]);
    for node in mesh.nodes.values_mut() {
        node.settings.max_config_bytes = 1_000;
    }
    let put = |mesh: &mut Mesh, at: &str, name: &str, bytes: Option<usize>| {
        let write = ConfigWrite {
            key: ConfigKey { key: name.parse().unwrap(), ..config_key() },
            body: bytes.map(|bytes| vec![b'x'; bytes].into()),
            format: String::new(),
            author: String::new(),
            comment: String::new(),
            expect: None,
        };
        mesh.command(at, Command::WriteConfig(write)).map(|_| ())
    };
    let full = Err(Refusal::Full { what: "bytes of configuration documents", limit: 1_000 });
    put(&mut mesh, "a", "one", Some(600)).unwrap();
    assert_eq!(put(&mut mesh, "b", "two", Some(401)), full);
    put(&mut mesh, "b", "two", Some(400)).unwrap();
    put(&mut mesh, "a", "one", Some(600)).unwrap();
    assert_eq!(put(&mut mesh, "a", "one", Some(601)), full);
    put(&mut mesh, "b", "one", None).unwrap();
    put(&mut mesh, "a", "three", Some(600)).unwrap();
}

#[test]
fn overrides_are_shown_without_their_instances_and_there_is_a_limit_to_them() {
    let now = Now { elapsed: Instant(5), wall: WallTime(1_000_000) };
    let settings = Settings { max_overrides: 2, ..Settings::default() };
    let mut node = Node::new(id("a"), facts(1), settings, Memory::default(), 1, now);
    let mut set = |name: &str, weight: Option<u32>| {
        let word = weight.map(|weight| Override { status: None, weight: Some(weight), reason: String::new() });
        let mut out = Vec::new();
        node.handle(
            now,
            Input::Command(CommandId(1), Command::SetOverride(instance_key("orders", name), word)),
            &mut out,
        );
        let shown = node.view().overrides.values().filter(|shown| shown.value.is_some()).count();
        let reply =
            out.into_iter().find_map(|output| if let Output::Reply(_, reply) = output { Some(reply) } else { None });
        (reply.unwrap().is_ok(), shown)
    };
    assert_eq!(set("o1", Some(1)), (true, 1));
    assert_eq!(set("o2", Some(1)), (true, 2));
    assert_eq!(set("o3", Some(1)), (false, 2), "full");
    assert_eq!(set("o1", Some(5)), (true, 2), "what is there can be changed");
    assert_eq!(set("o1", None), (true, 1));
}
