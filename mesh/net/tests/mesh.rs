//! Three whole nodes on loopback: real links, real membership, real disks.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

use std::path::Path;
use std::time::{Duration, Instant};

use starling_core::id::{InstanceKey, NodeId, ServiceKey};
use starling_core::observe::{Exposition, MetricSource};
use starling_core::registry::{Address, Instance, Registration};
use starling_core::view::{MemberState, Usability, View};
use starling_core::wire::{Question, Reply};
use starling_core::{Answer, Command};
use starling_net::{
    Authority, CommandError, Handle, Identity, MemberSettings, NetSettings, Running, StartError, start,
};
use tokio::runtime::Runtime;

/// Far longer than anything here takes; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mesh whose nodes each have a runtime of their own, so that one can be killed without the others.
struct Mesh {
    authority: Authority,
    seeds: Vec<String>,
}

struct Node {
    name: NodeId,
    runtime: Runtime,
    running: Running,
    dir: tempfile::TempDir,
}

impl Mesh {
    fn new() -> Self {
        Self { authority: Authority::throw_away(&"test".parse().unwrap()).unwrap(), seeds: Vec::new() }
    }

    /// Three nodes that know each other.
    fn of_three() -> (Self, Node, Node, Node) {
        let mut mesh = Mesh::new();
        let a = mesh.start("a");
        mesh.seeds.push(a.running.local_addr.to_string());
        let (b, c) = (mesh.start("b"), mesh.start("c"));
        for node in [&a, &b, &c] {
            node.sees(|view| view.alive().count() == 3);
        }
        (mesh, a, b, c)
    }

    fn start(&self, name: &str) -> Node {
        self.start_in(name, tempfile::tempdir().unwrap())
    }

    fn start_in(&self, name: &str, dir: tempfile::TempDir) -> Node {
        let name: NodeId = name.parse().unwrap();
        let certificate = self.authority.issue(&name, Duration::from_secs(3_600)).unwrap();
        let identity = Identity::from_pem(&certificate).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let began = Instant::now();
        let running = loop {
            match runtime.block_on(start(&identity, self.settings(dir.path()))) {
                Ok(running) => break running,
                // The disk of a killed node is let go of by its own thread.
                Err(StartError::Disk(error)) if began.elapsed() < PATIENCE => {
                    assert!(error.to_string().contains("in use"), "{error}");
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        };
        Node { name, runtime, running, dir }
    }

    fn settings(&self, dir: &Path) -> NetSettings {
        let members = MemberSettings { seeds: self.seeds.clone(), gossip_interval_ms: 100, ..Default::default() };
        NetSettings { data_dir: Some(dir.to_owned()), members, ..NetSettings::default() }
    }
}

impl Node {
    fn handle(&self) -> &Handle {
        &self.running.handle
    }

    fn command(&self, command: Command) -> Result<Answer, CommandError> {
        self.runtime.block_on(self.handle().command(command))
    }

    fn register(&self, instance: &str) {
        let address = Address { host: "127.0.0.1".into(), port: 80 };
        self.command(Command::Register(Registration { key: key(instance), instance: Instance::at(address) })).unwrap();
    }

    /// Waits until this node's picture is as wanted.
    fn sees(&self, wanted: impl Fn(&View) -> bool) {
        let mut changes = self.handle().changes();
        let seen = async {
            while !wanted(&self.handle().view()) {
                changes.changed().await.unwrap();
            }
        };
        let seen = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, seen).await });
        seen.unwrap_or_else(|_| panic!("{} does not see it: {:?}", self.name, self.handle().view()));
    }

    fn sees_instance(&self, instance: &str, usability: Usability) {
        self.sees(|view| view.instance(&key(instance)).is_some_and(|shown| shown.usability == usability));
    }

    /// Ends it without a word, as `kill -9` would. What it leaves is its directory.
    fn kill(self) -> tempfile::TempDir {
        self.runtime.shutdown_background();
        self.dir
    }

    fn stop(self) -> tempfile::TempDir {
        self.runtime.block_on(self.running.stop(Duration::from_secs(5)));
        self.dir
    }
}

fn key(instance: &str) -> InstanceKey {
    let service = ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() };
    InstanceKey { service, instance: instance.parse().unwrap() }
}

#[test]
fn what_is_registered_at_one_node_is_seen_at_all() {
    let (_mesh, a, b, c) = Mesh::of_three();
    a.register("o1");
    for node in [&a, &b, &c] {
        node.sees_instance("o1", Usability::Ready);
    }
    let asked = a.runtime.block_on(a.handle().ask(&c.name, Question::Status, PATIENCE)).unwrap();
    let Reply::Status(status) = asked else { panic!("{asked:?}") };
    assert_eq!((status.node, status.members_alive), (c.name.clone(), 3));
    let mut metrics = Exposition::default();
    a.handle().collect(&mut metrics);
    let metrics = metrics.finish();
    for line in ["starling_members{state=\"alive\"} 3", "starling_instances{usable=\"true\"} 1"] {
        assert!(metrics.lines().any(|said| said == line), "{line} in {metrics}");
    }
}

#[test]
fn a_killed_node_delays_nobody_and_comes_back_with_its_instances() {
    let (mesh, a, b, c) = Mesh::of_three();
    b.register("of-b");
    a.sees_instance("of-b", Usability::Ready);
    let (name, before) = (b.name.clone(), a.handle().view().member(&b.name).unwrap().facts.incarnation);
    let dir = b.kill();
    for i in 0..50 {
        a.register(&i.to_string()); // answered although a peer no longer listens
    }
    c.sees_instance("49", Usability::Ready);
    a.sees_instance("of-b", Usability::OwnerLost);

    let b = mesh.start_in("b", dir);
    a.sees_instance("of-b", Usability::Ready);
    c.sees_instance("of-b", Usability::Ready);
    assert!(a.handle().view().member(&name).unwrap().facts.incarnation > before);
    b.sees_instance("49", Usability::Ready);
}

#[test]
fn a_node_that_stops_says_so_and_can_start_again() {
    let (mesh, a, b, c) = Mesh::of_three();
    c.register("of-c");
    a.sees_instance("of-c", Usability::Ready);
    let name = c.name.clone();
    let dir = c.stop();
    for node in [&a, &b] {
        node.sees(|view| view.member(&name).is_some_and(|member| member.state == MemberState::Left));
        node.sees_instance("of-c", Usability::OwnerLeft);
    }
    let _c = mesh.start_in("c", dir);
    a.sees_instance("of-c", Usability::Ready);
}

#[test]
fn a_mesh_that_was_killed_altogether_keeps_what_it_acknowledged() {
    let (_mesh, a, b, c) = Mesh::of_three();
    for (node, instance) in [(&a, "of-a"), (&b, "of-b"), (&c, "of-c")] {
        node.register(instance);
    }
    let dirs = [("a", a.kill()), ("b", b.kill()), ("c", c.kill())];
    let mut mesh = Mesh::new();
    let mut nodes = Vec::new();
    for (name, dir) in dirs {
        nodes.push(mesh.start_in(name, dir));
        mesh.seeds.push(nodes[0].running.local_addr.to_string());
    }
    for node in &nodes {
        for instance in ["of-a", "of-b", "of-c"] {
            node.sees_instance(instance, Usability::Ready);
        }
    }
}

#[test]
fn a_directory_can_be_used_by_one_node_only() {
    let mesh = Mesh::new();
    let a = mesh.start("a");
    let certificate = mesh.authority.issue(&a.name, PATIENCE).unwrap();
    let identity = Identity::from_pem(&certificate).unwrap();
    let second = a.runtime.block_on(start(&identity, mesh.settings(a.dir.path())));
    let Err(error) = second else { panic!("two nodes in one directory") };
    assert!(error.to_string().contains("in use by process"), "{error}");
}
