//! The laws replication stands on, as properties: a room for each, and here the histories they are tried on.
//!
//! | Room | |
//! |---|---|
//! | `merge` | merging is commutative, associative and idempotent; the fingerprint follows the content |
//! | `stamps` | no stamp is issued twice, and what is written later has a later one |
//! | `repair` | two stores become one, for the price of their difference |
//! | `tombstones` | what was collected stays dead |
//! | `wire` | bytes come back as what they were made of, and never panic |

#![allow(clippy::unwrap_used)] // a helper that fails is a failed test

mod merge;
mod repair;
mod stamps;
mod tombstones;
mod wire;

use std::sync::Arc;

use crdts::LWWReg;
use proptest::prelude::*;
use starling_core::config::Version;
use starling_core::id::{ConfigKey, InstanceKey, NodeId, ServiceKey};
use starling_core::record::{Cell, Claim, Key, Record};
use starling_core::registry::{Address, Instance, Override, Status};
use starling_core::store::Store;
use starling_core::time::{HybridTime, Stamp};

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
