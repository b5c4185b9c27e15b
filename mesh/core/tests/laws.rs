//! The laws replication stands on, as properties: merging is commutative, associative and idempotent, the fingerprint
//! follows the content, and bytes from the wire never panic.

#![allow(clippy::unwrap_used)] // a helper that fails is a failed test

use std::sync::Arc;

use crdts::LWWReg;
use proptest::prelude::*;
use starling_core::config::Version;
use starling_core::id::{ConfigKey, InstanceKey, NodeId, ServiceKey};
use starling_core::record::{Cell, Claim, Key, Record};
use starling_core::registry::{Address, Instance, Override, Status};
use starling_core::store::Store;
use starling_core::time::{HybridTime, Stamp};
use starling_core::wire::{self, Message, Received};

/// What a writer does in a random history.
#[derive(Debug, Clone)]
enum Write {
    Register {
        id: u8,
        weight: u8,
    },
    Deregister {
        id: u8,
    },
    /// A verdict or the like, under the claim the writer knows.
    Note {
        id: u8,
        weight: u8,
    },
    Override {
        id: u8,
        set: bool,
    },
    Config {
        key: u8,
        body: Option<u8>,
    },
    /// Takes over everything another replica holds.
    Hear {
        from: usize,
    },
}

fn writes() -> impl Strategy<Value = Vec<(usize, Write)>> {
    let write = prop_oneof![
        (0u8..3, any::<u8>()).prop_map(|(id, weight)| Write::Register { id, weight }),
        (0u8..3).prop_map(|id| Write::Deregister { id }),
        (0u8..3, any::<u8>()).prop_map(|(id, weight)| Write::Note { id, weight }),
        (0u8..3, any::<bool>()).prop_map(|(id, set)| Write::Override { id, set }),
        (0u8..2, proptest::option::of(any::<u8>())).prop_map(|(key, body)| Write::Config { key, body }),
        (0usize..3).prop_map(|from| Write::Hear { from }),
    ];
    proptest::collection::vec((0usize..3, write), 1..40)
}

fn instance_key(id: u8) -> InstanceKey {
    let service = ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() };
    InstanceKey { service, instance: format!("o{id}").parse().unwrap() }
}

fn instance(weight: u8) -> Arc<Instance> {
    let address = Address { host: "127.0.0.1".into(), port: 80 };
    Arc::new(Instance { weight: u32::from(weight), ..Instance::at(address) })
}

/// Three replicas after a random history of writes and partial exchanges.
fn replicas(history: &[(usize, Write)]) -> Vec<Store> {
    let names: Vec<NodeId> = ["a", "b", "c"].iter().map(|name| name.parse().unwrap()).collect();
    let mut stores: Vec<Store> = (0..3).map(|_| Store::default()).collect();
    for (step, (at, write)) in history.iter().enumerate() {
        let stamp = Stamp { time: HybridTime(step as u64 + 1), node: names[*at].clone() };
        let record = match write {
            Write::Register { id, weight } => {
                let cell = Cell::Instance(LWWReg { val: Some(instance(*weight)), marker: Claim::new(stamp) });
                Record { key: Key::Instance(instance_key(*id)), cell }
            }
            Write::Note { id, weight } => {
                let key = Key::Instance(instance_key(*id));
                let Some(Cell::Instance(known)) = stores[*at].get(&key) else { continue };
                let marker = Claim { claimed: known.marker.claimed, stamp };
                Record { key, cell: Cell::Instance(LWWReg { val: Some(instance(*weight)), marker }) }
            }
            Write::Deregister { id } => Record {
                key: Key::Instance(instance_key(*id)),
                cell: Cell::Instance(LWWReg { val: None, marker: Claim::new(stamp) }),
            },
            Write::Override { id, set } => {
                let value = set.then(|| Arc::new(Override { status: Some(Status::Down), ..Override::default() }));
                let cell = Cell::Override(LWWReg { val: value, marker: stamp });
                Record { key: Key::Override(instance_key(*id)), cell }
            }
            Write::Config { key, body } => {
                let name = format!("k{key}").parse().unwrap();
                let key =
                    Key::Config(ConfigKey { namespace: Default::default(), group: Default::default(), key: name });
                let body = body.map(|byte| vec![byte].into());
                let version =
                    Version { stamp, body, format: String::new(), author: String::new(), comment: String::new() };
                Record { cell: Cell::config_write(stores[*at].get(&key).as_ref(), version), key }
            }
            Write::Hear { from } => {
                let heard = records(&stores[*from]);
                merge_all(&mut stores[*at], &heard);
                continue;
            }
        };
        stores[*at].merge(record).unwrap();
    }
    stores
}

fn records(store: &Store) -> Vec<Record> {
    store.iter().collect()
}

fn merge_all(store: &mut Store, records: &[Record]) {
    for record in records {
        store.merge(record.clone()).unwrap();
    }
}

/// What a store says, independent of how a CRDT happens to be laid out in memory.
fn content(store: &Store) -> Vec<String> {
    store
        .iter()
        .map(|Record { key, cell }| match cell {
            Cell::Config(register) => format!("{key:?} {:?}", starling_core::record::versions(&register)),
            other => format!("{key:?} {other:?}"),
        })
        .collect()
}

proptest! {
    #[test]
    fn merging_in_any_order_and_any_number_of_times_gives_the_same(history in writes(), order in any::<u64>()) {
        let stores = replicas(&history);
        let mut all: Vec<Record> = stores.iter().flat_map(records).collect();
        let mut first = Store::default();
        merge_all(&mut first, &all);
        all.extend(all.clone());
        fastrand::Rng::with_seed(order).shuffle(&mut all);
        let mut second = Store::default();
        merge_all(&mut second, &all);
        prop_assert_eq!(content(&first), content(&second));
        prop_assert_eq!(first.fingerprint(), second.fingerprint());
    }

    #[test]
    fn merging_is_associative(history in writes()) {
        let stores = replicas(&history);
        let (a, b, c) = (records(&stores[0]), records(&stores[1]), records(&stores[2]));
        let mut left = Store::default();
        merge_all(&mut left, &a);
        merge_all(&mut left, &b);
        merge_all(&mut left, &c);
        let mut bc = Store::default();
        merge_all(&mut bc, &b);
        merge_all(&mut bc, &c);
        let mut right = Store::default();
        merge_all(&mut right, &a);
        merge_all(&mut right, &records(&bc));
        prop_assert_eq!(content(&left), content(&right));
    }

    #[test]
    fn a_merge_says_truly_whether_it_changed_anything(history in writes()) {
        let stores = replicas(&history);
        let mut store = Store::default();
        merge_all(&mut store, &records(&stores[0]));
        for record in records(&stores[1]) {
            let before = content(&store);
            let changed = store.merge(record.clone()).unwrap();
            prop_assert_eq!(changed, content(&store) != before);
            prop_assert_eq!(store.merge(record), Ok(false));
        }
    }

    #[test]
    fn equal_fingerprints_mean_equal_content(history in writes()) {
        let stores = replicas(&history);
        for (a, b) in [(0, 1), (1, 2), (0, 2)] {
            let same = stores[a].fingerprint() == stores[b].fingerprint();
            prop_assert_eq!(same, content(&stores[a]) == content(&stores[b]));
        }
    }

    #[test]
    fn records_survive_the_wire(history in writes()) {
        let message = Message::Push(replicas(&history).iter().flat_map(records).collect());
        let received = Received { message: Some(message.clone()), skipped: 0 };
        prop_assert_eq!(Message::decode(&message.encode()).unwrap(), received);
    }

    #[test]
    fn bytes_from_the_wire_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Message::decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = wire::WIRE_VERSION;
        }
        // Any kind of message, then the ones there are.
        let _ = Message::decode(&bytes);
        for kind in 0..16 {
            if let Some(second) = bytes.get_mut(1) {
                *second = kind;
            }
            let _ = Message::decode(&bytes);
        }
        let _ = wire::decode::<wire::Question>(&bytes);
        let _ = wire::decode::<wire::Reply>(&bytes);
    }
}
