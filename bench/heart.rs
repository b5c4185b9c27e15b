//! A heart and what is given to it, for the benchmarks that measure hearts alone.

#![allow(dead_code)] // not every benchmark asks everything

use std::sync::Arc;

use starling_core::id::{CommandId, Incarnation, InstanceKey, NodeId, ServiceKey};
use starling_core::record::{Cell, Claim, Key, Record};
use starling_core::registry::{Address, Instance, Registration};
use starling_core::time::{HybridTime, Instant, Now, Stamp, WallTime};
use starling_core::view::NodeFacts;
use starling_core::wire::Message;
use starling_core::{Command, Input, Memory, Node, Output, PeerEvent, Settings};

/// When the benchmarks' hearts believe to live, in milliseconds since 1970.
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;
/// Records in one message of a bulk load.
const PER_MESSAGE: usize = 1_000;

/// One heart, its outputs, and a pen for records that others might have written.
pub(crate) struct Heart {
    pub(crate) name: NodeId,
    pub(crate) node: Node,
    pub(crate) out: Vec<Output>,
    now: Now,
    commands: u64,
    stamps: u64,
}

pub(crate) fn name(text: &str) -> NodeId {
    text.parse().expect("a valid name")
}

pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        incarnation: Incarnation(1),
        zone: Default::default(),
        cell: Default::default(),
        region: Default::default(),
        version: "bench".into(),
        address: "127.0.0.1:1".into(),
    }
}

pub(crate) fn service_key(service: usize) -> ServiceKey {
    let service = format!("service{service}").parse().expect("a valid name");
    ServiceKey { namespace: Default::default(), service }
}

/// The name of an instance: a host and a port, longer than what fits in place.
pub(crate) fn instance_key(service: usize, number: usize) -> InstanceKey {
    let instance = format!("host-{number}.example:8080").parse().expect("a valid id");
    InstanceKey { service: service_key(service), instance }
}

/// An instance like all others, but for its address.
pub(crate) fn instance(number: usize) -> Instance {
    let host = format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255);
    Instance { version: "1.4.2".into(), ..Instance::at(Address { host: host.into(), port: 8080 }) }
}

impl Heart {
    /// A heart with these peers, which are its neighbours as long as they are few.
    pub(crate) fn new(me: &str, peers: &[&str], memory: Vec<Record>) -> Self {
        let settings = Settings { max_own_instances: 10_000_000, max_graves: 0, ..Settings::default() };
        let now = Now { elapsed: Instant(1), wall: WallTime(EPOCH_MS) };
        let memory = Memory { records: memory, ..Memory::default() };
        let node = Node::new(name(me), facts(), settings, memory, 1, now);
        let mut heart = Heart { name: name(me), node, out: Vec::new(), now, commands: 0, stamps: 0 };
        for peer in peers {
            heart.give(Input::Peer(PeerEvent::Up(name(peer), facts())));
        }
        heart
    }

    pub(crate) fn give(&mut self, input: Input) {
        self.out.clear();
        self.node.handle(self.now, input, &mut self.out);
    }

    /// The same at a time on its clock, in microseconds.
    pub(crate) fn give_at(&mut self, us: u64, input: Input) {
        self.now.elapsed = Instant(us);
        self.now.wall = WallTime(EPOCH_MS + us / 1_000);
        self.give(input);
    }

    pub(crate) fn merge(&mut self, records: Vec<Record>) {
        self.give(Input::Message(name("p1"), Message::Push(records)));
    }

    pub(crate) fn register(&mut self, service: usize, number: usize) {
        self.commands += 1;
        let registration = Registration { key: instance_key(service, number), instance: instance(number) };
        self.give(Input::Command(CommandId(self.commands), Command::Register(registration)));
    }

    /// Lets time pass without any input, until nothing is due any more.
    pub(crate) fn sleep_ms(&mut self, ms: u64) {
        let until = Instant(self.now.elapsed.0 + ms * 1_000);
        self.now.wall.0 += ms;
        while let Some(due) = self.node.next_wakeup().filter(|due| *due <= until) {
            self.now.elapsed = self.now.elapsed.max(due);
            self.give(Input::Tick);
        }
        self.now.elapsed = until;
    }

    fn claim(&mut self) -> Claim {
        self.stamps += 1;
        Claim::new(Stamp { time: HybridTime((EPOCH_MS << 16) + self.stamps), node: name("p1") })
    }

    /// A record of an instance that p1 registered.
    pub(crate) fn record(&mut self, service: usize, number: usize) -> Record {
        let cell = Cell::Instance(crdts::LWWReg { val: Some(Arc::new(instance(number))), marker: self.claim() });
        Record { key: Key::Instance(instance_key(service, number)), cell }
    }

    /// A record that says p1 removed it.
    pub(crate) fn tombstone(&mut self, service: usize, number: usize) -> Record {
        let cell = Cell::Instance(crdts::LWWReg { val: None, marker: self.claim() });
        Record { key: Key::Instance(instance_key(service, number)), cell }
    }

    /// Fills a heart with so many instances, so many of them in each service.
    pub(crate) fn fill(&mut self, size: usize, per_service: usize) {
        self.each(size, per_service, Self::record);
    }

    /// Removes what [`Self::fill`] put in.
    pub(crate) fn empty(&mut self, size: usize, per_service: usize) {
        self.each(size, per_service, Self::tombstone);
    }

    fn each(&mut self, size: usize, per_service: usize, record: impl Fn(&mut Self, usize, usize) -> Record) {
        let mut number = 0;
        while number < size {
            let until = (number + PER_MESSAGE).min(size);
            let records = (number..until).map(|n| record(self, n / per_service, n % per_service)).collect();
            self.merge(records);
            number = until;
        }
    }

    /// Answers the messages of one peer with those to it, both as the bytes they travel as.
    pub(crate) fn answers(&mut self, from: &str, messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut answers = Vec::new();
        for bytes in messages {
            let message = Message::decode(&bytes).expect("hearts understand each other").message;
            self.give(Input::Message(name(from), message.expect("of one version")));
            answers.extend(self.sent_to(from));
        }
        answers
    }

    /// What the last input made it send to a peer.
    pub(crate) fn sent_to(&self, peer: &str) -> Vec<Vec<u8>> {
        let sent = self.out.iter().filter_map(|output| match output {
            Output::Send(to, message) if to.as_str() == peer => Some(message.encode()),
            _ => None,
        });
        sent.collect()
    }
}
