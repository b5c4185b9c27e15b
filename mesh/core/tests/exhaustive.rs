//! Every interleaving of a small mesh: real hearts, a few writes, and a network and disks that may do their worst.
//!
//! An explicit-state explorer: from the beginning, every action that is possible is tried in every state (deliver any
//! message under way, lose it, deliver it twice, issue a node's next command, let time pass at a node, crash a node
//! after or before its write is on disk), and every state is visited once. Where nothing is left to do, the mesh is
//! left alone; then all must agree, and what was acknowledged must be there.
//!
//! Two states are the same when all nodes hold the same, have the same on disk, have seen equally late stamps, and the
//! same is under way and left to do. What hearts count is not part of it, nor in which order news reached them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a helper that fails is a failed test; figures are shown")]

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use starling_core::config::{Body, ConfigWrite};
use starling_core::id::{CommandId, ConfigKey, Incarnation, InstanceKey, NodeId, ServiceKey};
use starling_core::record::{Cell, Key, Record, versions};
use starling_core::registry::{Address, Instance, Override, Registration};
use starling_core::time::{HybridTime, Instant, Now, Stamp, WallTime};
use starling_core::view::NodeFacts;
use starling_core::wire::Message;
use starling_core::{Answer, Command, Input, Memory, Node, Output, PeerEvent, Settings};

const NAMES: [&str; 3] = ["a", "b", "c"];
const WALL: WallTime = WallTime(1_000_000);
/// Longer than the repair interval with its jitter.
const ROUND: Duration = Duration::from_millis(1_500);
/// In how many rounds of repair a mesh that is left alone must agree: each node meets each other with some luck.
const ROUNDS: usize = 40;

/// What a case allows to go wrong, in each of its histories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Budget {
    losses: u8,
    doubles: u8,
    crashes: u8,
    ticks: u8,
}

/// How many messages may be lost and doubled, how often a node may crash, and time pass at one; and each of them as often
/// more as STARLING_EXHAUSTIVE says, for a run of hours.
fn budget(losses: u8, doubles: u8, crashes: u8, ticks: u8) -> Budget {
    let more = std::env::var("STARLING_EXHAUSTIVE").ok().map_or(0, |more| more.parse().expect("a small number"));
    Budget { losses: losses + more, doubles: doubles + more, crashes: crashes + more, ticks: ticks + more }
}

/// A small mesh, what its people do at each node in this order, and what may go wrong.
struct Case {
    name: &'static str,
    scripts: Vec<Vec<Write>>,
    budget: Budget,
}

/// What people do.
#[derive(Debug, Clone, Copy)]
enum Write {
    Register,
    Deregister,
    Override,
    Clear,
    Put(&'static str),
    Delete,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Deliver(usize),
    Lose(usize),
    Double(usize),
    Write(usize),
    Tick(usize),
    /// The node is killed and starts again with its disk.
    Crash(usize),
    /// The same in the middle of its next write: peers were told, the disk was not, nobody was answered.
    CrashWriting(usize),
}

#[derive(Clone)]
struct World {
    nodes: Vec<Node>,
    disks: Vec<BTreeMap<Key, Record>>,
    incarnations: Vec<u64>,
    elapsed: Vec<Instant>,
    /// Under way: to whom, from whom, what.
    network: Vec<(usize, usize, Vec<u8>)>,
    done: Vec<usize>,
    left: Budget,
    /// The latest stamp each node has issued or heard of.
    latest: Vec<HybridTime>,
    /// Everything any node ever wrote, by its stamp, with the versions its writer had seen.
    written: BTreeMap<Stamp, (Record, Vec<Stamp>)>,
    acknowledged: Vec<Stamp>,
}

fn id(node: usize) -> NodeId {
    NAMES[node].parse().unwrap()
}

fn facts(incarnation: u64) -> NodeFacts {
    NodeFacts {
        incarnation: Incarnation(incarnation),
        zone: Default::default(),
        region: Default::default(),
        cell: Default::default(),
        version: String::new(),
        address: "127.0.0.1:1".into(),
    }
}

fn instance_key() -> InstanceKey {
    let service = ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() };
    InstanceKey { service, instance: "o1".parse().unwrap() }
}

fn config_key() -> ConfigKey {
    ConfigKey { namespace: Default::default(), group: Default::default(), key: "k".parse().unwrap() }
}

fn keys() -> [Key; 3] {
    [Key::Instance(instance_key()), Key::Override(instance_key()), Key::Config(config_key())]
}

fn command(write: Write, by: usize) -> Command {
    let document = |body| ConfigWrite {
        key: config_key(),
        body,
        format: "text".into(),
        author: NAMES[by].into(),
        comment: String::new(),
        expect: None,
    };
    match write {
        Write::Register => {
            let address = Address { host: "127.0.0.1".into(), port: 80 + by as u16 };
            Command::Register(Registration { key: instance_key(), instance: Instance::at(address) })
        }
        Write::Deregister => Command::Deregister(instance_key()),
        Write::Override => {
            let word = Override { status: None, weight: Some(by as u32), reason: String::new() };
            Command::SetOverride(instance_key(), Some(word))
        }
        Write::Clear => Command::SetOverride(instance_key(), None),
        Write::Put(text) => Command::WriteConfig(document(Some(Body::from(text)))),
        Write::Delete => Command::WriteConfig(document(None)),
    }
}

impl World {
    fn new(case: &Case) -> World {
        let count = case.scripts.len();
        let mut world = World {
            nodes: (0..count).map(|node| heart(node, 1, Vec::new(), Instant(0))).collect(),
            disks: vec![BTreeMap::new(); count],
            incarnations: vec![1; count],
            elapsed: vec![Instant(0); count],
            network: Vec::new(),
            done: vec![0; count],
            left: case.budget,
            latest: vec![HybridTime::default(); count],
            written: BTreeMap::new(),
            acknowledged: Vec::new(),
        };
        for node in 0..count {
            world.introduce(node);
        }
        world
    }

    /// Tells a node of all others, and them of it.
    fn introduce(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let (mine, theirs) = (self.incarnations[node], self.incarnations[other]);
            self.give(node, Input::Peer(PeerEvent::Up(id(other), facts(theirs))), true);
            self.give(other, Input::Peer(PeerEvent::Up(id(node), facts(mine))), true);
        }
    }

    /// Gives a heart one input and carries out what it wants; without its disk when that is about to crash.
    fn give(&mut self, node: usize, input: Input, on_disk: bool) -> Option<Stamp> {
        let now = Now { elapsed: self.elapsed[node], wall: WALL };
        let seen_before = self.nodes[node].record(&Key::Config(config_key())).map_or(Vec::new(), |r| r.cell.stamps());
        let mut out = Vec::new();
        self.nodes[node].handle(now, input, &mut out);
        let mut answer = None;
        for output in out {
            match output {
                Output::Send(to, message) => {
                    let to = NAMES.iter().position(|name| *name == to.as_str()).unwrap();
                    self.network.push((to, node, message.encode()));
                }
                Output::Persist(record) => {
                    self.note(node, &record, &seen_before);
                    if on_disk {
                        self.disks[node].insert(record.key.clone(), record);
                    }
                }
                Output::Forget(key) => _ = self.disks[node].remove(&key),
                Output::Reply(_, Ok(Answer::Done { stamp, .. })) => answer = stamp,
                _ => {}
            }
        }
        for record in keys().iter().filter_map(|key| self.nodes[node].record(key)) {
            let latest = record.cell.stamps().into_iter().map(|stamp| stamp.time).max();
            self.latest[node] = self.latest[node].max(latest.unwrap_or_default());
        }
        answer
    }

    /// Remembers what a node wrote. A stamp names one value, for ever.
    fn note(&mut self, node: usize, record: &Record, seen_before: &[Stamp]) {
        let own: Vec<Stamp> = record.cell.stamps().into_iter().filter(|stamp| stamp.node == id(node)).collect();
        for stamp in own {
            let value = (record.clone(), seen_before.iter().filter(|seen| **seen != stamp).cloned().collect());
            if let Some((before, _)) = self.written.get(&stamp) {
                let same = before.key == record.key && value_of(&before.cell, &stamp) == value_of(&record.cell, &stamp);
                assert!(same, "stamp {stamp} was used twice: {before:?} and {record:?}");
                continue;
            }
            self.written.insert(stamp, value);
        }
    }

    fn deliver(&mut self, (to, from, bytes): (usize, usize, Vec<u8>)) {
        let message = Message::decode(&bytes).unwrap().message.unwrap();
        self.give(to, Input::Message(id(from), message), true);
    }

    fn restart(&mut self, node: usize) {
        self.network.retain(|(to, ..)| *to != node);
        self.incarnations[node] += 1;
        let records = self.disks[node].values().cloned().collect();
        self.nodes[node] = heart(node, self.incarnations[node], records, self.elapsed[node]);
        self.introduce(node);
    }

    fn actions(&self, case: &Case) -> Vec<Action> {
        let mut actions = Vec::new();
        for (at, packet) in self.network.iter().enumerate() {
            if self.network[..at].contains(packet) {
                continue; // as good as the other one
            }
            actions.push(Action::Deliver(at));
            actions.extend((self.left.losses > 0).then_some(Action::Lose(at)));
            actions.extend((self.left.doubles > 0).then_some(Action::Double(at)));
        }
        for node in 0..self.nodes.len() {
            let writes = self.done[node] < case.scripts[node].len();
            actions.extend(writes.then_some(Action::Write(node)));
            actions.extend((self.left.ticks > 0).then_some(Action::Tick(node)));
            actions.extend((self.left.crashes > 0).then_some(Action::Crash(node)));
            actions.extend((writes && self.left.crashes > 0).then_some(Action::CrashWriting(node)));
        }
        actions
    }

    fn after(&self, action: Action, case: &Case) -> World {
        let mut world = self.clone();
        match action {
            Action::Deliver(at) => {
                let packet = world.network.remove(at);
                world.deliver(packet);
            }
            Action::Lose(at) => {
                world.network.remove(at);
                world.left.losses -= 1;
            }
            Action::Double(at) => {
                world.left.doubles -= 1;
                let packet = world.network[at].clone();
                world.deliver(packet);
            }
            Action::Write(node) => world.write(node, case, true),
            Action::Tick(node) => {
                world.left.ticks -= 1;
                world.tick(node);
            }
            Action::Crash(node) => {
                world.left.crashes -= 1;
                world.restart(node);
            }
            Action::CrashWriting(node) => {
                world.left.crashes -= 1;
                world.write(node, case, false);
                world.restart(node);
            }
        }
        world
    }

    fn write(&mut self, node: usize, case: &Case, on_disk: bool) {
        let write = case.scripts[node][self.done[node]];
        self.done[node] += 1;
        let stamp = self.give(node, Input::Command(CommandId(1), command(write, node)), on_disk);
        self.acknowledged.extend(stamp.filter(|_| on_disk));
    }

    fn tick(&mut self, node: usize) {
        self.elapsed[node] = self.elapsed[node] + ROUND;
        self.give(node, Input::Tick, true);
    }

    /// What makes it another state than others.
    fn fingerprint(&self) -> u128 {
        let mut bytes = Vec::new();
        for (node, disk) in self.nodes.iter().zip(&self.disks) {
            let held: Vec<Record> = keys().iter().filter_map(|key| node.record(key)).collect();
            for records in [held, disk.values().cloned().collect()] {
                bytes.extend(records.len().to_le_bytes());
                bytes.extend(Message::Push(records).encode());
            }
        }
        let mut network: Vec<_> = self.network.iter().collect();
        network.sort_unstable();
        bytes.extend(format!("{network:?} {:?} {:?} {:?}", self.done, self.left, self.latest).into_bytes());
        bytes.extend(format!("{:?} {:?} {:?}", self.incarnations, self.elapsed, self.acknowledged).into_bytes());
        xxhash_rust::xxh3::xxh3_128(&bytes)
    }

    /// Leaves the mesh alone: everything arrives, repair goes on.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            while !self.network.is_empty() {
                let packet = self.network.remove(0);
                self.deliver(packet);
            }
            if self.agree() {
                return;
            }
            for node in 0..self.nodes.len() {
                self.tick(node);
            }
        }
    }

    fn agree(&self) -> bool {
        self.nodes.iter().all(|node| node.view().fingerprint == self.nodes[0].view().fingerprint)
    }

    /// What must be true of a mesh that was left alone, or what is wrong with it.
    fn judge(&self) -> Result<(), String> {
        if !self.agree() {
            return Err("they never agree".into());
        }
        for key in keys() {
            let held = self.nodes[0].record(&key);
            for node in &self.nodes {
                if node.record(&key).as_ref().map(|r| r.cell.stamps()) != held.as_ref().map(|r| r.cell.stamps()) {
                    return Err(format!("equal fingerprints and different values of {key:?}"));
                }
            }
            let stamps = held.as_ref().map_or(Vec::new(), |record| record.cell.stamps());
            if let Some(stranger) = stamps.iter().find(|stamp| !self.written.contains_key(stamp)) {
                return Err(format!("nobody wrote {stranger}"));
            }
            for acknowledged in self.acknowledged.iter().filter(|stamp| self.written[*stamp].0.key == key) {
                let there = match (&self.written[acknowledged].0.cell, held.as_ref().map(|record| &record.cell)) {
                    (Cell::Instance(written), Some(Cell::Instance(held))) => held.marker >= written.marker,
                    (Cell::Override(written), Some(Cell::Override(held))) => held.marker >= written.marker,
                    (Cell::Config(_), Some(Cell::Config(_))) => self.covers(&stamps, acknowledged),
                    _ => false,
                };
                if !there {
                    return Err(format!("{acknowledged} was acknowledged and is lost; there is {held:?}"));
                }
            }
        }
        Ok(())
    }

    /// Whether a document's version is there, or was replaced by somebody who had seen it.
    fn covers(&self, held: &[Stamp], version: &Stamp) -> bool {
        held.contains(version)
            || self.written.iter().any(|(later, (_, seen))| seen.contains(version) && self.covers(held, later))
    }
}

fn heart(node: usize, incarnation: u64, records: Vec<Record>, elapsed: Instant) -> Node {
    let memory = Memory { records, ..Memory::default() };
    let now = Now { elapsed, wall: WALL };
    Node::new(id(node), facts(incarnation), Settings::default(), memory, 1, now)
}

/// What stands under a stamp.
fn value_of(cell: &Cell, stamp: &Stamp) -> String {
    match cell {
        Cell::Config(register) => format!("{:?}", versions(register).iter().find(|version| version.stamp == *stamp)),
        other => format!("{other:?}"),
    }
}

/// Visits every state of a case and judges every end.
fn explore(case: &Case) -> (usize, usize) {
    let mut visited = HashSet::new();
    let mut ends = 0;
    let mut open = vec![(World::new(case), Vec::new())];
    while let Some((world, history)) = open.pop() {
        if !visited.insert(world.fingerprint()) {
            continue;
        }
        if world.network.is_empty() && world.done.iter().zip(&case.scripts).all(|(done, script)| *done == script.len())
        {
            ends += 1;
            let mut end = world.clone();
            end.settle();
            if let Err(wrong) = end.judge() {
                panic!("{}: {wrong}\nafter {history:#?}", case.name);
            }
        }
        for action in world.actions(case) {
            let mut history: Vec<Action> = history.clone();
            history.push(action);
            open.push((world.after(action, case), history));
        }
    }
    println!("{}: {} states, {ends} ends, all judged", case.name, visited.len());
    (visited.len(), ends)
}

use Write::{Clear, Delete, Deregister, Override as Overrule, Put, Register};

#[test]
fn two_nodes_that_fight_for_an_instance_agree_on_the_last_word_in_every_history() {
    let (states, ends) = explore(&Case {
        name: "an instance registered at two nodes and removed",
        scripts: vec![vec![Register, Deregister], vec![Register]],
        budget: budget(1, 1, 1, 0),
    });
    assert!(states > 1_000 && ends > 10, "{states} states, {ends} ends");
}

#[test]
fn two_nodes_that_edit_a_document_lose_no_edit_in_any_history() {
    let (states, ends) = explore(&Case {
        name: "a document edited at two nodes and deleted",
        scripts: vec![vec![Put("a1"), Put("a2")], vec![Put("b1"), Delete]],
        budget: budget(1, 1, 0, 0),
    });
    assert!(states > 1_000 && ends > 10, "{states} states, {ends} ends");
}

#[test]
fn three_nodes_agree_on_an_instance_that_moves_in_every_history() {
    let (states, ends) = explore(&Case {
        name: "an instance that moves between two of three nodes",
        scripts: vec![vec![Register], vec![Register], vec![]],
        budget: budget(1, 1, 0, 0),
    });
    assert!(states > 1_000 && ends > 10, "{states} states, {ends} ends");
}

#[test]
fn three_nodes_of_which_one_crashes_lose_no_edit_in_any_history() {
    let (states, ends) = explore(&Case {
        name: "a document edited at two of three nodes, one of which crashes",
        scripts: vec![vec![Put("a")], vec![Put("b")], vec![]],
        budget: budget(0, 0, 1, 0),
    });
    assert!(states > 1_000 && ends > 10, "{states} states, {ends} ends");
}

#[test]
fn an_override_that_is_set_and_cleared_on_both_sides_ends_as_the_last_word_in_every_history() {
    let (states, ends) = explore(&Case {
        name: "an override set and cleared at two nodes",
        scripts: vec![vec![Overrule, Clear], vec![Overrule]],
        budget: budget(1, 1, 1, 0),
    });
    assert!(states > 1_000 && ends > 10, "{states} states, {ends} ends");
}
