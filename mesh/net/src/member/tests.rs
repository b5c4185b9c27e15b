//! Whole nodes' membership over real links on loopback, each in a runtime of its own so that it can be killed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use starling_core::PeerEvent;
use starling_core::id::{Incarnation, NodeId};
use starling_core::view::NodeFacts;
use tokio::runtime::Runtime;

use super::{MemberSettings, Membership};
use crate::identity::{Authority, Identity};
use crate::quic::{Limits, Links};

/// Far longer than anything here takes; only a failing test waits for it.
const DEADLINE: Duration = Duration::from_secs(30);

struct Mesh {
    authority: Authority,
    nodes: Vec<TestNode>,
}

struct TestNode {
    address: SocketAddr,
    events: Arc<Mutex<Vec<PeerEvent>>>,
    membership: Membership,
    links: Links,
    runtime: Runtime,
}

fn name(number: usize) -> NodeId {
    format!("n{number}").parse().unwrap()
}

impl Mesh {
    fn new() -> Self {
        Self { authority: Authority::throw_away(&"m".parse().unwrap()).unwrap(), nodes: Vec::new() }
    }

    /// So many nodes, each with the first as its seed.
    fn of(size: usize) -> Self {
        let mut mesh = Self::new();
        for number in 0..size {
            let seeds = mesh.nodes.first().map(|first| first.address);
            let node = mesh.start(number, 1, loopback(), seeds);
            mesh.nodes.push(node);
        }
        mesh
    }

    fn start(&self, number: usize, incarnation: u64, listen: SocketAddr, seed: Option<SocketAddr>) -> TestNode {
        let pem = self.authority.issue(&name(number), Duration::from_secs(3600)).unwrap();
        let identity = Identity::from_pem(&pem).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let collected = events.clone();
        let seeds = seed.map(|seed| seed.to_string()).into_iter().collect();
        let (links, membership) = runtime.block_on(async move {
            let (links, inbox) = bind(&identity, listen).await;
            let facts = facts(incarnation, links.local_address());
            let settings = MemberSettings { seeds, gossip_interval_ms: 100, ..MemberSettings::default() };
            let (membership, mut events) =
                Membership::join(links.clone(), inbox.gossip, settings, facts).await.unwrap();
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    collected.lock().unwrap().push(event);
                }
            });
            (links, membership)
        });
        TestNode { address: links.local_address(), events, membership, links, runtime }
    }

    /// What one node was told last of another.
    fn last(&self, at: usize, of: usize) -> Option<PeerEvent> {
        self.nodes[at].last(&name(of))
    }

    fn all_see_each_other(&self) {
        for at in 0..self.nodes.len() {
            for of in (0..self.nodes.len()).filter(|of| *of != at) {
                until(&format!("{at} sees {of}"), || matches!(self.last(at, of), Some(PeerEvent::Up(..))));
            }
        }
    }

    /// Cuts every line between these and those, until they are all healed.
    fn cut(&self, these: &[usize], those: &[usize]) {
        for (here, there) in [(these, those), (those, these)] {
            for number in here {
                self.nodes[*number].links.set_cut(there.iter().map(|other| self.nodes[*other].address).collect());
            }
        }
    }

    fn heal(&self) {
        for node in &self.nodes {
            node.links.set_cut(BTreeSet::new());
        }
    }

    /// Stops a node's every task, as SIGSTOP would or a cut of all its lines; what is returned lets it go on.
    fn freeze(&self, number: usize) -> Arc<AtomicBool> {
        let thawed = Arc::new(AtomicBool::new(false));
        let thaw = thawed.clone();
        self.nodes[number].runtime.spawn(async move {
            while !thaw.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10)); // on purpose: the runtime has this one thread
            }
        });
        thawed
    }

    /// Removes a node as SIGKILL would: no task of it runs any more, and its socket is closed without a word.
    fn kill(&mut self, number: usize) -> SocketAddr {
        let node = self.nodes.remove(number);
        node.runtime.shutdown_timeout(Duration::from_secs(5)); // before the links are let go, which would say good-bye
        node.address
    }
}

impl TestNode {
    fn last(&self, of: &NodeId) -> Option<PeerEvent> {
        let about = |event: &PeerEvent| match event {
            PeerEvent::Up(node, _) | PeerEvent::Lost(node) | PeerEvent::Left(node, _) | PeerEvent::Met(node) => {
                node == of
            }
        };
        self.events.lock().unwrap().iter().rev().find(|event| about(event)).cloned()
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn facts(incarnation: u64, address: SocketAddr) -> NodeFacts {
    NodeFacts {
        incarnation: Incarnation(incarnation),
        zone: "z".parse().unwrap(),
        region: Default::default(),
        cell: Default::default(),
        version: "1".into(),
        address: address.to_string(),
    }
}

/// Binds, and waits for the address when its last owner is still being taken down.
async fn bind(identity: &Identity, listen: SocketAddr) -> (Links, crate::quic::Inbox) {
    let end = Instant::now() + DEADLINE;
    loop {
        match Links::bind(identity, listen, Limits::default()) {
            Ok(bound) => return bound,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn five_nodes_see_each_other_and_each_others_facts() {
    let mesh = Mesh::of(5);
    mesh.all_see_each_other();
    let expected = PeerEvent::Up(name(4), facts(1, mesh.nodes[4].address));
    assert_eq!(mesh.last(1, 4), Some(expected));
}

#[test]
fn a_killed_node_is_lost_and_its_next_start_is_up_with_the_new_incarnation() {
    let mut mesh = Mesh::of(5);
    mesh.all_see_each_other();
    let killed = Instant::now();
    let address = mesh.kill(4);
    for at in 0..4 {
        until("it is lost", || mesh.last(at, 4) == Some(PeerEvent::Lost(name(4))));
    }
    eprintln!("a killed node was lost everywhere after {:?}", killed.elapsed());
    let again = mesh.start(4, 2, address, None); // it has no seed: the others have not given it up
    mesh.nodes.push(again);
    for at in 0..4 {
        until("it is back", || mesh.last(at, 4) == Some(PeerEvent::Up(name(4), facts(2, address))));
    }
    mesh.all_see_each_other();
}

#[test]
fn the_halves_of_a_partition_lose_each_other_and_nobody_else_and_find_each_other_again() {
    let mesh = Mesh::of(4);
    mesh.all_see_each_other();
    mesh.cut(&[0, 1], &[2, 3]);
    for (at, of) in [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (3, 0), (3, 1)] {
        until(&format!("{at} has lost {of}"), || mesh.last(at, of) == Some(PeerEvent::Lost(name(of))));
    }
    for (at, of) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
        assert!(matches!(mesh.last(at, of), Some(PeerEvent::Up(..))), "{at} and {of} are on the same side");
    }
    mesh.heal();
    mesh.all_see_each_other();
}

#[test]
fn a_broken_line_between_two_nodes_loses_neither_while_a_third_hears_both() {
    let mesh = Mesh::of(3);
    mesh.all_see_each_other();
    mesh.cut(&[0], &[1]);
    let down = |at: usize, of: usize| {
        let since = mesh.nodes[at].links.down_since(&name(of));
        since.is_some_and(|since| since.elapsed() > Duration::from_secs(2))
    };
    until("the line has been down for long", || down(0, 1) && down(1, 0));
    for (at, of) in [(0, 1), (1, 0), (2, 0), (2, 1)] {
        // Waiting forgives a machine so busy that even the third is not heard in time; without a third it is for ever.
        until(&format!("{at} counts on {of}"), || matches!(mesh.last(at, of), Some(PeerEvent::Up(..))));
    }
}

#[test]
fn a_frozen_node_is_lost_and_finds_everybody_again_by_itself() {
    let mesh = Mesh::of(3);
    mesh.all_see_each_other();
    let thaw = mesh.freeze(2);
    for at in 0..2 {
        until("it is lost", || mesh.last(at, 2) == Some(PeerEvent::Lost(name(2))));
    }
    thaw.store(true, Ordering::Relaxed);
    mesh.all_see_each_other();
    let lost = |event: &PeerEvent| matches!(event, PeerEvent::Lost(_));
    assert!(!mesh.nodes[2].events.lock().unwrap().iter().any(lost), "it stood still, and blames nobody for that");
}

#[test]
fn a_node_that_leaves_has_left_everywhere_and_may_return() {
    let mut mesh = Mesh::of(4);
    mesh.all_see_each_other();
    let leaver = mesh.nodes.remove(3);
    leaver.runtime.block_on(async {
        leaver.membership.leave().await;
        leaver.links.close().await;
    });
    for at in 0..3 {
        until("it has left", || mesh.last(at, 3) == Some(PeerEvent::Left(name(3), Incarnation(1))));
    }
    let seed = mesh.nodes[0].address;
    let again = mesh.start(3, 2, loopback(), Some(seed));
    mesh.nodes.push(again);
    mesh.all_see_each_other();
}

#[test]
fn a_node_whose_seed_starts_later_joins_it_then() {
    let mut mesh = Mesh::new();
    let place = std::net::UdpSocket::bind(loopback()).unwrap();
    let seed = place.local_addr().unwrap();
    let early = mesh.start(0, 1, loopback(), Some(seed));
    mesh.nodes.push(early);
    until("the seed was dialled", || mesh.nodes[0].links.stats().dials > 0);
    drop(place);
    let late = mesh.start(1, 1, seed, None);
    mesh.nodes.push(late);
    mesh.all_see_each_other();
}

#[test]
fn settings_and_facts_out_of_range_are_refused_with_a_sentence() {
    let cases = [
        (MemberSettings { gossip_interval_ms: 1, ..MemberSettings::default() }, "gossip_interval_ms 1"),
        (MemberSettings { phi_threshold: f64::NAN, ..MemberSettings::default() }, "phi_threshold"),
        (MemberSettings { seeds: vec!["nowhere".into()], ..MemberSettings::default() }, "seed \"nowhere\""),
        (MemberSettings { seeds: vec!["host:0".into()], ..MemberSettings::default() }, "seed \"host:0\""),
        (MemberSettings { seeds: vec!["@".into()], ..MemberSettings::default() }, "seed \"@\" names no file"),
        (MemberSettings { max_members: 501, ..MemberSettings::default() }, "max_members 501"),
    ];
    for (settings, expected) in cases {
        let error = settings.check().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let seeds = vec!["10.0.0.1:7946".into(), "[::1]:7946".into(), "mesh.example:7946".into(), "@/etc/seeds".into()];
    assert!(MemberSettings { seeds, ..MemberSettings::default() }.check().is_ok());
}
