//! What it costs two large stores to find out how they differ and to close the gap, by the size of the difference.
//!
//! `cargo bench --bench repair`. Messages are counted as they are encoded; one way each, so two are a round trip.

#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::Instant as Clock;

use crdts::LWWReg;
use starling_core::digest::KeyHash;
use starling_core::id::{InstanceKey, ServiceKey};
use starling_core::record::{Cell, Claim, Key, Record};
use starling_core::registry::{Address, Instance};
use starling_core::repair::{compare_all, compare_entries, compare_ranges, send_wanted};
use starling_core::store::Store;
use starling_core::time::{HybridTime, Stamp};
use starling_core::wire::{Exchange, Message};

#[path = "machine.rs"]
mod machine;

/// Records both sides hold.
const COMMON: u64 = 1_000_000;

fn main() {
    println!("bench repair: two stores of {COMMON} instances that differ in a few, half of them lacking on each side");
    println!("{}\n", machine::describe());
    println!(
        "{:>12} {:>10} {:>16} {:>16} {:>20} {:>10}",
        "differences", "exchanges", "messages deep", "bytes", "bytes/difference", "CPU ms"
    );
    let (mut a, mut b) = (Store::default(), Store::default());
    for number in 0..COMMON {
        a.merge(record(number, 1)).expect("a sound record");
        b.merge(record(number, 1)).expect("a sound record");
    }
    let mut newest = COMMON;
    for differences in [0, 1, 10, 100, 1_000, 10_000, 100_000] {
        for _ in 0..differences {
            let here = if newest.is_multiple_of(2) { &mut a } else { &mut b };
            here.merge(record(newest, 1)).expect("a sound record");
            newest += 1;
        }
        let begun = Clock::now();
        let talk = talk(&mut a, &mut b);
        assert_eq!(a.fingerprint(), b.fingerprint());
        println!(
            "{differences:>12} {:>10} {:>16} {:>16} {:>20} {:>10.1}",
            talk.exchanges,
            talk.deepest,
            talk.bytes,
            (talk.bytes as u64).checked_div(differences).map_or("-".into(), |bytes| bytes.to_string()),
            begun.elapsed().as_secs_f64() * 1e3
        );
    }
}

fn record(number: u64, time: u64) -> Record {
    let service = format!("service{}", number / 100).parse().expect("a valid name");
    let instance = format!("host-{}.example:8080", number % 100).parse().expect("a valid id");
    let key = InstanceKey { service: ServiceKey { namespace: Default::default(), service }, instance };
    let node = format!("node-{}", number % 300).parse().expect("a valid name");
    let marker = Claim::new(Stamp { time: HybridTime((1_700_000_000_000 << 16) + number + time), node });
    let host = format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255);
    let val = Some(Arc::new(Instance::at(Address { host: host.into(), port: 8080 })));
    Record { key: Key::Instance(key), cell: Cell::Instance(LWWReg { val, marker }) }
}

#[derive(Default)]
struct Talk {
    exchanges: u32,
    /// One-way messages one after the other, in the deepest exchange.
    deepest: usize,
    bytes: usize,
}

/// Lets two stores talk, in exchange after exchange, until nothing was cut.
fn talk(a: &mut Store, b: &mut Store) -> Talk {
    let mut talk = Talk::default();
    let mut begin = Some(KeyHash(0));
    while let Some(start) = begin.take() {
        talk.exchanges += 1;
        let store = a.fingerprint();
        let exchange = Exchange { id: talk.exchanges, cut: false, start, held: store.count };
        let (mut inbox, mut at_b, mut depth) = (vec![Message::Opening { store, exchange }], true, 0);
        while !inbox.is_empty() {
            depth += 1;
            let here: &mut Store = if at_b { b } else { a };
            let mut answers = Vec::new();
            for message in inbox {
                talk.bytes += message.encode().len();
                match message {
                    Message::Opening { store, exchange } => answers.extend(compare_all(here, store, exchange)),
                    Message::Ranges { ranges, exchange } => answers.extend(compare_ranges(here, &ranges, exchange)),
                    Message::Entries { entries, exchange } => answers.extend(compare_entries(here, &entries, exchange)),
                    Message::Want { wanted, exchange } => answers.extend(send_wanted(here, &wanted, exchange)),
                    Message::Fill { records, exchange } => {
                        if exchange.cut {
                            begin = records.last().map(|last| KeyHash(KeyHash::of(&last.key).0.wrapping_add(1)));
                        }
                        for record in records {
                            here.merge(record).expect("a sound record");
                        }
                    }
                    _ => {}
                }
            }
            (inbox, at_b) = (answers, !at_b);
        }
        talk.deepest = talk.deepest.max(depth);
    }
    talk
}
