//! What a heart keeps in memory, counted by the allocator. Alone in its process, so that nothing else is counted.

#![allow(clippy::unwrap_used)] // a helper that fails is a failed test

use std::alloc::System;
use std::sync::Arc;

use cap::Cap;
use crdts::LWWReg;
use starling_core::id::{Incarnation, InstanceKey, NodeId, ServiceKey};
use starling_core::record::{Cell, Claim, Key, Record};
use starling_core::registry::{Address, Instance};
use starling_core::time::{HybridTime, Instant, Now, Stamp, WallTime};
use starling_core::view::NodeFacts;
use starling_core::wire::Message;
use starling_core::{Input, Memory, Node, Output, Settings};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

const COUNT: usize = 6_000;
const PER_SERVICE: usize = 100;
const EPOCH_MS: u64 = 1_700_000_000_000;

struct Heart {
    node: Node,
    now: Now,
    stamps: u64,
}

impl Heart {
    fn new() -> Self {
        let me: NodeId = "me".parse().unwrap();
        let facts = NodeFacts {
            incarnation: Incarnation(1),
            zone: Default::default(),
            cell: Default::default(),
            region: Default::default(),
            version: String::new(),
            address: String::new(),
        };
        let now = Now { elapsed: Instant(1), wall: WallTime(EPOCH_MS) };
        let settings = Settings { max_graves: 0, ..Settings::default() };
        Self { node: Node::new(me, facts, settings, Memory::default(), 1, now), now, stamps: 0 }
    }

    /// A peer says this of all instances: what they are, or that they are gone.
    fn told(&mut self, instance: impl Fn(usize) -> Option<Instance>) {
        for chunk in 0..COUNT / 1_000 {
            let records = (chunk * 1_000..(chunk + 1) * 1_000).map(|number| {
                self.stamps += 1;
                let time = HybridTime((self.now.wall.0 << 16) + self.stamps);
                let marker = Claim::new(Stamp { time, node: "peer".parse().unwrap() });
                let service = format!("service{}", number / PER_SERVICE).parse().unwrap();
                let key = InstanceKey {
                    service: ServiceKey { namespace: Default::default(), service },
                    instance: format!("host-{number}.example:8080").parse().unwrap(),
                };
                Record {
                    key: Key::Instance(key),
                    cell: Cell::Instance(LWWReg { val: instance(number).map(Arc::new), marker }),
                }
            });
            let records = records.collect();
            self.give(Input::Message("peer".parse().unwrap(), Message::Push(records)));
        }
    }

    fn give(&mut self, input: Input) {
        let mut out: Vec<Output> = Vec::new();
        self.node.handle(self.now, input, &mut out);
    }

    fn sleep_days(&mut self, days: u64) {
        let until = Instant(self.now.elapsed.0 + days * 86_400_000_000);
        self.now.wall.0 += days * 86_400_000;
        // The last minute is enough for whatever is due, again and again.
        self.now.elapsed = Instant(until.0 - 60_000_000);
        while let Some(due) = self.node.next_wakeup().filter(|due| *due <= until) {
            self.now.elapsed = self.now.elapsed.max(due);
            self.give(Input::Tick);
        }
        self.now.elapsed = until;
    }
}

fn at(number: usize) -> Instance {
    let host = format!("10.0.{}.{}", number >> 8 & 255, number & 255);
    Instance { version: "1.4.2".into(), ..Instance::at(Address { host: host.into(), port: 8080 }) }
}

/// Well below what the instances took, and above all bounded lists together.
const BOUNDED_BYTES: usize = 512 * 1024;

#[test]
fn an_instance_takes_less_than_300_bytes_and_leaves_none_of_them_behind() {
    let mut heart = Heart::new();
    heart.give(Input::Tick);
    let empty = HEAP.allocated();
    let mut left_behind = Vec::new();
    for _ in 0..2 {
        heart.told(|number| Some(at(number)));
        let shown = heart.node.view().services.values().map(|service| service.instances.len()).sum::<usize>();
        assert_eq!((shown, heart.node.view().fingerprint.count as usize), (COUNT, COUNT));
        let each = (HEAP.allocated() - empty) / COUNT;
        assert!(each < 300, "{each} bytes an instance");

        heart.told(|_| None);
        assert_eq!(heart.node.view().services.size(), 0);
        let each = (HEAP.allocated() - empty) / COUNT;
        assert!(each < 250, "{each} bytes a tombstone");

        heart.sleep_days(2);
        assert_eq!(heart.node.view().fingerprint.count, 0, "all tombstones are collected");
        left_behind.push(HEAP.allocated() - empty);
    }
    // What is kept for reuse, and of recent changes for those who have yet to hear of them, is bounded: it is small, and
    // does not grow from one time to the next.
    assert!(left_behind.iter().all(|bytes| *bytes < BOUNDED_BYTES), "{left_behind:?} bytes");
    assert!(left_behind[1] <= left_behind[0] + left_behind[0] / 5, "{left_behind:?} bytes");
}
