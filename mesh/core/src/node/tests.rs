//! Stories of a few hearts that hear each other at once, or not at all. Long and hostile ones are the simulator's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::config::ConfigWrite;
use crate::registry::Instance;
use crate::registry::{CheckKind, Health};
use crate::testing::{facts, instance, instance_key};
use crate::time::WallTime;
use crate::view::{MemberState, Usability};

/// Hearts with links that deliver at once unless they are cut.
struct Mesh {
    nodes: BTreeMap<NodeId, Node>,
    disks: BTreeMap<NodeId, BTreeMap<Key, Record>>,
    cut: BTreeSet<(NodeId, NodeId)>,
    now: Now,
    commands: u64,
    sent: usize,
    /// Whoever starts next knows that its disk has lost something.
    incomplete: bool,
    /// What each node probes, and where.
    probes: BTreeMap<(NodeId, InstanceKey), u16>,
}

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

impl Mesh {
    fn of(names: &[&str]) -> Self {
        let now = Now { elapsed: Instant(0), wall: WallTime(1_000_000) };
        let mut mesh = Mesh {
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            cut: BTreeSet::new(),
            now,
            commands: 0,
            sent: 0,
            incomplete: false,
            probes: BTreeMap::new(),
        };
        for name in names {
            mesh.start(name, 1);
        }
        mesh
    }

    fn start(&mut self, name: &str, incarnation: u64) {
        let me = id(name);
        let records = self.disks.entry(me.clone()).or_default().values().cloned().collect();
        let memory = Memory { records, incomplete: self.incomplete, ..Memory::default() };
        let node = Node::new(me.clone(), facts(incarnation), Settings::default(), memory, 1, self.now);
        let others: Vec<(NodeId, NodeFacts)> = self
            .nodes
            .values()
            .filter(|n| n.me != me)
            .map(|n| (n.me.clone(), n.peers.get(&n.me).unwrap().facts.clone()))
            .collect();
        self.nodes.insert(me.clone(), node);
        for (other, other_facts) in others {
            self.give(&me, Input::Peer(PeerEvent::Up(other.clone(), other_facts)));
            self.give(&other, Input::Peer(PeerEvent::Up(me.clone(), facts(incarnation))));
        }
    }

    fn give(&mut self, to: &NodeId, input: Input) -> Option<Result<Answer, Refusal>> {
        let mut inputs = vec![(to.clone(), input)];
        let mut reply = None;
        while let Some((to, input)) = inputs.pop() {
            let mut out = Vec::new();
            let Some(node) = self.nodes.get_mut(&to) else { continue };
            node.handle(self.now, input, &mut out);
            for output in out {
                match output {
                    Output::Send(peer, message) if !self.cut.contains(&(to.clone(), peer.clone())) => {
                        self.sent += 1;
                        inputs.push((peer, Input::Message(to.clone(), message)));
                    }
                    Output::Send(..)
                    | Output::Publish(_)
                    | Output::Shares(_)
                    | Output::Link(..)
                    | Output::Unlink(_)
                    | Output::Introduce(_) => {}
                    Output::Reply(_, answer) => reply = Some(answer),
                    Output::Persist(record) => {
                        self.disks.entry(to.clone()).or_default().insert(record.key.clone(), record);
                    }
                    Output::Forget(key) => {
                        self.disks.entry(to.clone()).or_default().remove(&key);
                    }
                    Output::Probe(key, address, check) => {
                        assert!(check.kind != CheckKind::Ttl, "a lease needs no probe");
                        self.probes.insert((to.clone(), key), address.port);
                    }
                    Output::StopProbe(key) => {
                        assert!(self.probes.remove(&(to.clone(), key)).is_some(), "nothing to stop");
                    }
                }
            }
        }
        reply
    }

    fn command(&mut self, at: &str, command: Command) -> Result<Answer, Refusal> {
        self.commands += 1;
        self.give(&id(at), Input::Command(CommandId(self.commands), command)).expect("every command is answered")
    }

    fn register(&mut self, at: &str, service: &str, instance_id: &str) {
        let registration = Registration { key: instance_key(service, instance_id), instance: instance() };
        self.command(at, Command::Register(registration)).unwrap();
    }

    fn put(&mut self, at: &str, body: Option<&str>, expect: Option<Option<Stamp>>) -> Result<Answer, Refusal> {
        let write = ConfigWrite {
            key: config_key(),
            body: body.map(Into::into),
            format: "text".into(),
            author: at.into(),
            comment: String::new(),
            expect,
        };
        self.command(at, Command::WriteConfig(write))
    }

    fn separate(&mut self, a: &str, b: &str) {
        self.cut.insert((id(a), id(b)));
        self.cut.insert((id(b), id(a)));
        self.give(&id(a), Input::Peer(PeerEvent::Lost(id(b))));
        self.give(&id(b), Input::Peer(PeerEvent::Lost(id(a))));
    }

    fn heal(&mut self) {
        for (a, b) in std::mem::take(&mut self.cut) {
            self.give(&a, Input::Peer(PeerEvent::Up(b, facts(1))));
        }
        self.wait(Duration::from_secs(3));
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now.elapsed + time;
        while self.now.elapsed < end {
            self.now.elapsed = self.now.elapsed + Duration::from_millis(20);
            self.now.wall.0 += 20;
            let names: Vec<NodeId> = self.nodes.keys().cloned().collect();
            for name in names {
                self.give(&name, Input::Tick);
            }
        }
    }

    /// The port at which a node probes an instance, if it does.
    fn probed(&self, at: &str, key: &InstanceKey) -> Option<u16> {
        self.probes.get(&(id(at), key.clone())).copied()
    }

    fn usability(&self, at: &str, service: &str, instance_id: &str) -> Option<Usability> {
        self.nodes[&id(at)].view().instance(&instance_key(service, instance_id)).map(|shown| shown.usability)
    }

    fn all_see(&self, service: &str, instance_id: &str, expected: Option<Usability>) {
        for name in self.nodes.keys() {
            assert_eq!(self.usability(name.as_str(), service, instance_id), expected, "at {name}");
        }
    }

    fn served(&self, at: &str) -> Option<String> {
        let view = self.nodes[&id(at)].view();
        Some(view.config(&config_key())?.served()?.body.as_ref()?.as_text()?.to_owned())
    }

    fn versions(&self, at: &str) -> usize {
        self.nodes[&id(at)].view().config(&config_key()).map_or(0, |shown| shown.versions.len())
    }

    fn all_agree(&self) {
        let fingerprints: BTreeSet<String> = self.nodes.values().map(|n| n.view().fingerprint.to_string()).collect();
        assert_eq!(fingerprints.len(), 1, "{fingerprints:?}");
    }
}

fn config_key() -> ConfigKey {
    ConfigKey { namespace: Default::default(), group: Default::default(), key: "limits".parse().unwrap() }
}

#[test]
fn what_is_registered_at_one_node_is_seen_at_all_by_push_alone() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    mesh.register("a", "orders", "o1");
    mesh.all_see("orders", "o1", Some(Usability::Ready));
    mesh.all_agree();
}

#[test]
fn registering_the_same_again_tells_nobody() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    mesh.register("a", "orders", "o1");
    let sent = mesh.sent;
    mesh.register("a", "orders", "o1");
    assert_eq!(mesh.sent, sent);
}

#[test]
fn a_dying_host_and_its_return_cause_no_writes() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    mesh.register("b", "orders", "o1");
    let (sent, fingerprint) = (mesh.sent, mesh.nodes[&id("a")].view().fingerprint);
    for at in ["a", "c"] {
        mesh.give(&id(at), Input::Peer(PeerEvent::Lost(id("b"))));
        assert_eq!(mesh.usability(at, "orders", "o1"), Some(Usability::OwnerLost));
    }
    mesh.nodes.remove(&id("b"));
    assert_eq!(mesh.sent, sent);
    mesh.start("b", 2);
    mesh.wait(Duration::from_secs(2));
    mesh.all_see("orders", "o1", Some(Usability::Ready));
    assert_eq!(mesh.nodes[&id("c")].view().fingerprint, fingerprint);
}

#[test]
fn moving_an_instance_to_another_node_is_one_newer_write() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    mesh.register("a", "orders", "o1");
    mesh.register("b", "orders", "o1");
    for node in mesh.nodes.values() {
        assert_eq!(node.view().instance(&instance_key("orders", "o1")).unwrap().owner(), &id("b"));
    }
    assert_eq!(mesh.disks[&id("a")].len(), 1, "the old owner keeps it until the new one certainly has it");
    mesh.now.elapsed = mesh.now.elapsed + owner::HELD_FOR;
    mesh.wait(Duration::from_millis(20));
    assert!(mesh.disks[&id("a")].is_empty(), "the old owner forgets it");
    assert_eq!(mesh.nodes[&id("a")].displaced.len(), 0);
}

#[test]
fn a_reinstalled_host_clears_what_it_no_longer_knows() {
    let mut mesh = Mesh::of(&["a", "b"]);
    mesh.register("b", "orders", "o1");
    mesh.nodes.remove(&id("b"));
    mesh.disks.clear();
    mesh.start("b", 2);
    mesh.wait(Duration::from_secs(3));
    mesh.all_see("orders", "o1", None);
    mesh.all_agree();
}

#[test]
fn a_node_whose_disk_lost_an_instance_takes_it_back_from_its_peers_and_keeps_it() {
    let mut mesh = Mesh::of(&["a", "b"]);
    mesh.register("b", "orders", "o1");
    mesh.nodes.remove(&id("b"));
    mesh.disks.clear();
    mesh.incomplete = true;
    mesh.start("b", 2);
    mesh.wait(Duration::from_secs(3));
    mesh.all_see("orders", "o1", Some(Usability::Ready));
    mesh.all_agree();
    assert_eq!(mesh.disks[&id("b")].len(), 1, "it is on its disk again");
}

#[test]
fn an_override_wins_until_it_is_cleared_and_survives_its_author() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    mesh.register("a", "orders", "o1");
    let key = instance_key("orders", "o1");
    let down = Override { status: Some(Status::OutOfService), weight: None, reason: "maintenance".into() };
    mesh.command("c", Command::SetOverride(key.clone(), Some(down))).unwrap();
    mesh.all_see("orders", "o1", Some(Usability::Status));
    let again = Registration { key: key.clone(), instance: Instance { version: "2".into(), ..instance() } };
    mesh.command("a", Command::Register(again)).unwrap();
    mesh.all_see("orders", "o1", Some(Usability::Status));
    mesh.command("b", Command::SetOverride(key, None)).unwrap();
    mesh.all_see("orders", "o1", Some(Usability::Ready));
}

#[test]
fn both_sides_of_a_cut_write_and_agree_after_healing() {
    let mut mesh = Mesh::of(&["a", "b"]);
    mesh.put("a", Some("one"), None).unwrap();
    mesh.separate("a", "b");
    mesh.register("a", "orders", "left");
    mesh.register("b", "orders", "right");
    mesh.put("a", Some("left"), None).unwrap();
    mesh.put("b", Some("right"), None).unwrap();
    assert_eq!(mesh.usability("b", "orders", "left"), None);
    mesh.heal();
    mesh.all_see("orders", "left", Some(Usability::Ready));
    mesh.all_see("orders", "right", Some(Usability::Ready));
    mesh.all_agree();
    assert_eq!((mesh.versions("a"), mesh.versions("b")), (2, 2), "the conflict is visible on both");
    assert_eq!(mesh.served("a"), mesh.served("b"));
    mesh.put("b", Some("decided"), None).unwrap();
    assert_eq!((mesh.versions("a"), mesh.versions("b")), (1, 1));
    assert_eq!(mesh.served("a").as_deref(), Some("decided"));
}

#[test]
fn an_edit_beats_a_concurrent_deletion() {
    let mut mesh = Mesh::of(&["a", "b"]);
    mesh.put("a", Some("one"), None).unwrap();
    mesh.separate("a", "b");
    mesh.put("a", Some("edited"), None).unwrap();
    mesh.wait(Duration::from_millis(100));
    mesh.put("b", None, None).unwrap();
    mesh.heal();
    assert_eq!((mesh.served("a"), mesh.served("b")), (Some("edited".into()), Some("edited".into())));
    assert_eq!(mesh.versions("a"), 2);
}

#[test]
fn a_write_that_expects_another_version_is_refused() {
    let mut mesh = Mesh::of(&["a"]);
    let Ok(Answer::Done { stamp: Some(first), .. }) = mesh.put("a", Some("one"), Some(None)) else { panic!() };
    assert_eq!(mesh.put("a", Some("two"), Some(None)), Err(Refusal::Changed(Some(first.clone()))));
    mesh.put("a", Some("two"), Some(Some(first))).unwrap();
    assert_eq!(mesh.served("a").as_deref(), Some("two"));
}

#[test]
fn a_clean_leave_is_seen_by_one_push_and_the_next_start_is_back() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    mesh.register("b", "orders", "o1");
    mesh.command("b", Command::Leave).unwrap();
    let seen = ["a", "b", "c"].map(|at| mesh.usability(at, "orders", "o1").unwrap());
    // What runs on its own host goes on as long as it does.
    assert_eq!(seen, [Usability::OwnerLeft, Usability::Ready, Usability::OwnerLeft]);
    assert_eq!(mesh.command("b", Command::Deregister(instance_key("orders", "o1"))), Err(Refusal::Leaving));
    mesh.nodes.remove(&id("b"));
    mesh.give(&id("a"), Input::Peer(PeerEvent::Up(id("b"), facts(1))));
    assert_eq!(mesh.nodes[&id("a")].view().member(&id("b")).unwrap().state, MemberState::Left);
    mesh.start("b", 2);
    mesh.all_see("orders", "o1", Some(Usability::Ready));
}

#[test]
fn a_lease_lapses_is_renewed_and_moves_with_its_application() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let key = instance_key("orders", "o1");
    let checked = instance().checked(Check::new(CheckKind::Ttl));
    mesh.command("a", Command::Register(Registration { key: key.clone(), instance: checked })).unwrap();
    mesh.all_see("orders", "o1", Some(Usability::Ready));
    mesh.wait(Duration::from_secs(16));
    mesh.all_see("orders", "o1", Some(Usability::Health));
    mesh.command("b", Command::Renew(key.clone(), Ok(()))).unwrap();
    mesh.all_see("orders", "o1", Some(Usability::Ready));
    assert_eq!(mesh.nodes[&id("a")].view().instance(&key).unwrap().owner(), &id("b"));
    mesh.wait(Duration::from_secs(16));
    assert_eq!(mesh.nodes[&id("a")].view().instance(&key).unwrap().instance.health, Health::Failing);
}

#[test]
fn probes_begin_at_registration_and_after_a_restart_and_end_with_the_instance() {
    let mut mesh = Mesh::of(&["a"]);
    let key = instance_key("orders", "o1");
    let checked = instance().checked(Check::new(CheckKind::Tcp));
    mesh.command("a", Command::Register(Registration { key: key.clone(), instance: checked })).unwrap();
    assert_eq!(mesh.probed("a", &key), Some(8080));
    assert_eq!(mesh.usability("a", "orders", "o1"), Some(Usability::Health));
    mesh.give(&id("a"), Input::Probe(key.clone(), Ok(())));
    assert_eq!(mesh.usability("a", "orders", "o1"), Some(Usability::Ready));
    mesh.probes.clear();
    mesh.start("a", 2);
    mesh.give(&id("a"), Input::Tick);
    assert_eq!(mesh.probed("a", &key), Some(8080));
    mesh.command("a", Command::Deregister(key.clone())).unwrap();
    assert_eq!(mesh.probed("a", &key), None);
    assert_eq!(mesh.usability("a", "orders", "o1"), None);
}

#[test]
fn a_record_from_the_far_future_is_refused_and_counted() {
    let mut mesh = Mesh::of(&["a", "b"]);
    let record = crate::testing::instance_record("orders", "o1", "b", u64::MAX / 2);
    mesh.give(&id("a"), Input::Message(id("b"), Message::Push(vec![record])));
    assert_eq!(mesh.usability("a", "orders", "o1"), None);
    assert_eq!(mesh.nodes[&id("a")].counters().refused, 1);
    mesh.register("a", "orders", "o2");
}

#[test]
fn collected_tombstones_are_gone_everywhere_and_do_not_come_back() {
    let mut mesh = Mesh::of(&["a", "b"]);
    for node in mesh.nodes.values_mut() {
        node.settings.tombstone_horizon_ms = 30_000;
        node.settings.grave_ms = 120_000;
    }
    mesh.register("a", "orders", "o1");
    mesh.command("a", Command::Deregister(instance_key("orders", "o1"))).unwrap();
    assert_eq!(mesh.nodes[&id("b")].view().fingerprint.count, 1);
    mesh.wait(Duration::from_secs(60));
    mesh.all_agree();
    assert_eq!(mesh.nodes[&id("b")].view().fingerprint.count, 0);
    assert_eq!(mesh.disks[&id("a")].len(), 1, "the disk remembers what is dead as long as the node does");
    mesh.now.elapsed = mesh.now.elapsed + owner::HELD_FOR;
    mesh.wait(Duration::from_secs(90));
    assert!(mesh.disks.values().all(BTreeMap::is_empty));
    assert!(mesh.nodes.values().all(|node| node.graveyard.is_empty()));
}

#[test]
fn a_restart_nobody_missed_still_publishes_the_services_of_the_node_anew() {
    let mut mesh = Mesh::of(&["a", "b"]);
    mesh.register("b", "orders", "o1");
    mesh.register("a", "pay", "p1");
    let revisions = |mesh: &Mesh| {
        let view = mesh.nodes[&id("a")].view();
        ["orders", "pay"].map(|service| view.service(&instance_key(service, "x").service).unwrap().revision)
    };
    let [orders, pay] = revisions(&mesh);
    mesh.nodes.remove(&id("b"));
    mesh.start("b", 2);
    let after = revisions(&mesh);
    assert!(after[0] > orders && after[1] == pay, "{after:?}");
}

#[test]
fn an_unchanged_view_is_not_published_again() {
    let mut mesh = Mesh::of(&["a"]);
    mesh.register("a", "orders", "o1");
    let before = mesh.nodes[&id("a")].view().clone();
    mesh.wait(Duration::from_secs(5));
    assert!(Arc::ptr_eq(&before, mesh.nodes[&id("a")].view()));
}

mod bounds;
mod checks;
mod hostile;
mod moves;
mod repairs;
