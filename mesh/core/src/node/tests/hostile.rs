//! What peers, clocks and disks must not be able to do to a heart: stop it.

use crdts::LWWReg;

use super::*;
use crate::record::{Cell, Claim, register_from_bytes};
use crate::testing::{instance_record, stamp};

fn push(mesh: &mut Mesh, to: &str, from: &str, records: Vec<Record>) {
    mesh.give(&id(to), Input::Message(id(from), Message::Push(records)));
}

fn in_wall_ms(millis: u64) -> u64 {
    HybridTime::from_wall(WallTime(millis)).0
}

#[test]
fn a_write_wins_over_what_a_peer_says_this_node_wrote_in_the_future() {
    let mut mesh = Mesh::of(&["a", "b"]);
    for time in [in_wall_ms(1_004_000), u64::MAX] {
        push(&mut mesh, "a", "b", vec![instance_record("orders", "o1", "a", time)]);
        mesh.register("a", "orders", "o1");
        mesh.all_see("orders", "o1", Some(Usability::Ready));
    }
    mesh.all_agree();
}

#[test]
fn a_reinstalled_node_writes_after_all_it_wrote_before() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let ahead = instance_record("orders", "other", "b", in_wall_ms(1_004_000));
    push(&mut mesh, "a", "b", vec![ahead]);
    mesh.register("a", "orders", "o1");
    mesh.nodes.remove(&id("a"));
    mesh.disks.clear();
    mesh.start("a", 2);
    mesh.wait(Duration::from_secs(3));
    mesh.all_see("orders", "o1", None);
    mesh.all_agree();
}

#[test]
fn no_stamp_is_believed_that_leaves_no_room_for_later_ones() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let settings = Settings { max_clock_skew_ms: u64::MAX, ..Settings::default() };
    let poisoned = instance_record("orders", "disk", "b", u64::MAX);
    let memory = Memory { records: vec![poisoned], last_used: HybridTime(u64::MAX), incomplete: false };
    let node = Node::new(id("a"), facts(1), settings, memory, 1, mesh.now);
    mesh.nodes.insert(id("a"), node);
    push(&mut mesh, "a", "b", vec![instance_record("orders", "wire", "b", u64::MAX)]);
    mesh.register("a", "orders", "o1");
    assert_eq!(mesh.usability("a", "orders", "o1"), Some(Usability::Ready));
}

#[test]
fn an_instance_from_an_older_disk_that_breaks_todays_limits_can_still_be_removed_and_judged() {
    let mut mesh = Mesh::of(&["a"]);
    let key = instance_key("orders", "o1");
    let leased = instance().checked(Check::new(CheckKind::Ttl));
    let old = Instance { version: "x".repeat(1_000).into(), health: Health::Passing, ..leased };
    let cell = Cell::Instance(LWWReg { val: Some(Arc::new(old)), marker: Claim::new(stamp("a", 7)) });
    let record = Record { key: Key::Instance(key.clone()), cell };
    mesh.disks.insert(id("a"), [(record.key.clone(), record)].into());
    mesh.start("a", 2);
    mesh.wait(Duration::from_secs(16));
    mesh.all_see("orders", "o1", Some(Usability::Health));
}

/// A version: the clock its writer claims to have seen, and its stamp.
type Forged<'a> = (&'a [(&'a str, u64)], &'a str, u64);

/// A document's register as bytes, with whatever clocks.
fn forged_config(versions: &[Forged]) -> Vec<u8> {
    type Clock = BTreeMap<NodeId, u64>;
    let versions: Vec<((Clock,), crate::config::Version)> = versions
        .iter()
        .map(|(clock, author, time)| {
            let clock = clock.iter().map(|(node, counter)| (id(node), *counter)).collect();
            let version = crate::config::Version {
                stamp: stamp(author, *time),
                body: Some("forged".into()),
                format: String::new(),
                author: String::new(),
                comment: String::new(),
            };
            ((clock,), version)
        })
        .collect();
    rmp_serde::to_vec(&(versions,)).unwrap()
}

#[test]
fn a_documents_register_is_believed_only_with_clocks_its_writers_can_have_had() {
    let sound = forged_config(&[(&[("b", 5)], "b", 5), (&[("b", 3), ("c", 6)], "c", 6)]);
    assert_eq!(Cell::Config(register_from_bytes(&sound).unwrap()).stamps().len(), 2);
    let unsound: [&[Forged]; 6] = [
        &[(&[], "b", 5)],
        &[(&[("c", 5)], "b", 5)],
        &[(&[("b", 4)], "b", 5)],
        &[(&[("a", u64::MAX), ("b", 5)], "b", 5)],
        &[(&[("a", 5), ("b", 5)], "b", 5)],
        &[(&[("a", 0), ("b", 5)], "b", 5)],
    ];
    for forged in unsound {
        assert!(register_from_bytes(&forged_config(forged)).is_err(), "{forged:?}");
    }
}

#[test]
fn what_peers_say_is_held_to_the_limits_of_what_people_may_write() {
    let mut mesh = Mesh::of(&["a", "b"]);
    mesh.register("a", "orders", "o1");
    let key = Key::Override(instance_key("orders", "o1"));
    let long = "x".repeat(1_000);
    let overrides = [
        Override { weight: Some(u32::MAX), ..Override::default() },
        Override { status: Some(Status::Down), reason: long.clone(), ..Override::default() },
        Override::default(),
    ];
    for value in overrides {
        let cell = Cell::Override(LWWReg { val: Some(Arc::new(value)), marker: stamp("b", in_wall_ms(1_000_000)) });
        push(&mut mesh, "a", "b", vec![Record { key: key.clone(), cell }]);
    }
    let version = |body: &[u8], format: &str, author: &str, comment: &str| crate::config::Version {
        stamp: stamp("b", in_wall_ms(1_000_000)),
        body: Some(body.to_vec().into()),
        format: format.into(),
        author: author.into(),
        comment: comment.into(),
    };
    let big = vec![0; crate::config::MAX_BODY_BYTES + 1];
    for version in [
        version(&big, "", "", ""),
        version(b"", &long, "", ""),
        version(b"", "", &long, ""),
        version(b"", "", "", &long),
    ] {
        let cell = Cell::config_write(None, version);
        push(&mut mesh, "a", "b", vec![Record { key: Key::Config(config_key()), cell }]);
    }
    assert_eq!(mesh.nodes[&id("a")].counters().refused, 7);
    mesh.all_see("orders", "o1", Some(Usability::Ready));
    assert_eq!(mesh.versions("a"), 0);
}

#[test]
fn a_node_that_crashed_before_its_write_was_on_disk_does_not_use_the_stamp_again() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let stamps: Vec<Stamp> = (1..=20)
        .map(|start| {
            mesh.nodes.remove(&id("a"));
            mesh.disks.remove(&id("a"));
            mesh.start("a", start);
            let ahead = instance_record("orders", "other", "b", in_wall_ms(1_004_000));
            push(&mut mesh, "a", "b", vec![ahead]);
            mesh.register("a", "orders", &format!("o{start}"));
            let key = instance_key("orders", &format!("o{start}"));
            mesh.nodes[&id("a")].view().instance(&key).unwrap().stamp().clone()
        })
        .collect();
    let distinct: BTreeSet<&Stamp> = stamps.iter().collect();
    assert_eq!(distinct.len(), stamps.len());
}
