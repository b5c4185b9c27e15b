//! What the heart costs: merging, publishing, answering, repairing, remembering; by size of the registry.
//!
//! `cargo bench --bench store` prints the machine, the settings and a table. Nothing here is compared with a limit:
//! figures are for people.

#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::Instant as Clock;

use hdrhistogram::Histogram;
use starling_core::id::{CommandId, Incarnation, InstanceKey, NodeId, ServiceKey};
use starling_core::record::{Cell, Claim, Key, Record};
use starling_core::registry::{Address, Instance, Registration};
use starling_core::time::{HybridTime, Instant, Now, Stamp, WallTime};
use starling_core::view::{NodeFacts, View};
use starling_core::wire::Message;
use starling_core::{Command, Input, Memory, Node, Output, PeerEvent, Settings};

#[path = "machine.rs"]
mod machine;

/// Instances per service in the filled registry.
const PER_SERVICE: usize = 100;
/// Operations measured per row.
const ROUNDS: usize = 5_000;

fn main() {
    println!("bench store: one heart, {PER_SERVICE} instances a service, {ROUNDS} operations a row");
    println!("{}", machine::describe());
    println!();
    println!(
        "{:>10} {:>12} {:>24} {:>24} {:>24} {:>16} {:>14}",
        "instances",
        "bytes each",
        "register µs p50/p99",
        "merge one µs p50/p99",
        "list service µs p50/p99",
        "fill a peer s",
        "wire B/record"
    );
    for size in [1_000, 10_000, 100_000, 1_000_000] {
        row(size);
    }
}

fn row(size: usize) {
    let before = machine::resident_bytes();
    let mut full = Heart::new("full");
    full.fill(size);
    let bytes_each = machine::resident_bytes().saturating_sub(before) / size;
    // Below this the allocator's reserves from earlier rows drown the figure.
    let bytes_each = if size < 100_000 { "-".into() } else { bytes_each.to_string() };
    let register = measure(|round| full.register(&format!("bench{}", round % 50), &format!("own-{round}")));
    let foreign: Vec<Record> =
        (0..ROUNDS).map(|round| full.record(round % (size / PER_SERVICE).max(1), round)).collect();
    let wire = Message::Push(foreign.clone()).encode().len() as f64 / ROUNDS as f64;
    let mut foreign = foreign.into_iter();
    let merge = measure(|_| full.merge(foreign.next().into_iter().collect()));
    let view = full.node.view().clone();
    let list = measure(|round| list(&view, round % (size / PER_SERVICE).max(1)));
    let fill = full.fill_a_peer();
    println!(
        "{:>10} {:>12} {:>24} {:>24} {:>24} {:>16.2} {:>14.0}",
        size,
        bytes_each,
        quantiles(&register),
        quantiles(&merge),
        quantiles(&list),
        fill,
        wire
    );
}

fn measure(mut operation: impl FnMut(usize)) -> Histogram<u64> {
    let mut histogram = Histogram::new(3).expect("3 digits is a valid precision");
    for round in 0..ROUNDS {
        let begun = Clock::now();
        operation(round);
        histogram.record(begun.elapsed().as_nanos() as u64).expect("the histogram grows by itself");
    }
    histogram
}

fn quantiles(histogram: &Histogram<u64>) -> String {
    let micros = |q| histogram.value_at_quantile(q) as f64 / 1_000.0;
    format!("{:.1} / {:.1}", micros(0.5), micros(0.99))
}

/// What a sidecar or the API does to answer: find the service, walk its instances.
fn list(view: &View, service: usize) {
    let shown = view.service(&service_key(&format!("service{service}"))).expect("the service was filled in");
    let ready = shown.instances.iter().filter(|instance| instance.weight() > 0).count();
    assert!(ready > 0);
}

struct Heart {
    node: Node,
    out: Vec<Output>,
    commands: u64,
    stamps: u64,
}

fn name(text: &str) -> NodeId {
    text.parse().expect("a valid name")
}

fn now() -> Now {
    Now { elapsed: Instant(1), wall: WallTime(1_700_000_000_000) }
}

fn facts() -> NodeFacts {
    NodeFacts {
        incarnation: Incarnation(1),
        zone: Default::default(),
        region: Default::default(),
        cell: Default::default(),
        version: "bench".into(),
        address: "127.0.0.1:1".into(),
    }
}

fn service_key(service: &str) -> ServiceKey {
    ServiceKey { namespace: Default::default(), service: service.parse().expect("a valid name") }
}

fn instance(number: usize) -> Instance {
    let host = format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255);
    Instance { version: "1.4.2".into(), ..Instance::at(Address { host: host.into(), port: 8080 }) }
}

impl Heart {
    fn new(name: &str) -> Self {
        let me: NodeId = name.parse().expect("a valid name");
        let settings = Settings { max_own_instances: 10_000_000, ..Settings::default() };
        let mut heart = Heart {
            node: Node::new(me, facts(), settings, Memory::default(), 1, now()),
            out: Vec::new(),
            commands: 0,
            stamps: 0,
        };
        for peer in ["p1", "p2"] {
            heart.give(Input::Peer(PeerEvent::Up(peer.parse().expect("a valid name"), facts())));
        }
        heart
    }

    fn give(&mut self, input: Input) {
        self.out.clear();
        self.node.handle(now(), input, &mut self.out);
    }

    fn register(&mut self, service: &str, id: &str) {
        let key = InstanceKey { service: service_key(service), instance: id.parse().expect("a valid id") };
        self.commands += 1;
        let registration = Registration { key, instance: instance(1) };
        self.give(Input::Command(CommandId(self.commands), Command::Register(registration)));
    }

    fn record(&mut self, service: usize, number: usize) -> Record {
        self.stamps += 1;
        let time = HybridTime((1_700_000_000_000 << 16) + self.stamps);
        let marker = Claim::new(Stamp { time, node: name("p1") });
        let key = InstanceKey {
            service: service_key(&format!("service{service}")),
            instance: format!("host-{number}.example:8080").parse().expect("a valid id"),
        };
        let cell = Cell::Instance(crdts::LWWReg { val: Some(Arc::new(instance(number))), marker });
        Record { key: Key::Instance(key), cell }
    }

    fn fill(&mut self, size: usize) {
        for service in 0..size.div_ceil(PER_SERVICE) {
            let records = (0..PER_SERVICE).map(|number| self.record(service, number)).collect();
            self.merge(records);
        }
    }

    fn merge(&mut self, records: Vec<Record>) {
        self.give(Input::Message(name("p1"), Message::Push(records)));
    }

    /// How many seconds of CPU a full repair of an empty peer takes, both sides together.
    fn fill_a_peer(&mut self) -> f64 {
        let mut empty = Heart::new("empty");
        let begun = Clock::now();
        while empty.node.view().fingerprint != self.node.view().fingerprint {
            let opening = Message::opening(empty.node.view().fingerprint, 1);
            let mut to_full = vec![opening];
            while !to_full.is_empty() {
                let to_empty = self.answers(to_full);
                to_full = empty.answers(to_empty);
            }
        }
        begun.elapsed().as_secs_f64()
    }

    fn answers(&mut self, messages: Vec<Message>) -> Vec<Message> {
        let mut answers = Vec::new();
        for message in messages {
            self.give(Input::Message(name("p2"), message));
            answers.extend(self.sent_to("p2"));
        }
        answers
    }

    fn sent_to(&self, peer: &str) -> Vec<Message> {
        self.out
            .iter()
            .filter_map(|output| match output {
                Output::Send(to, message) if to.as_str() == peer => Some(message.clone()),
                _ => None,
            })
            .collect()
    }
}
