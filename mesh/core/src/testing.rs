//! Small words for the tests of this crate.

use std::sync::Arc;

use crdts::LWWReg;

use crate::cells::NodeRecord;
use crate::id::{CellName, Incarnation, InstanceKey, Namespace, Region, ServiceKey, Zone};
use crate::record::{Cell, Claim, Key, Record, Start};
use crate::registry::{Address, Instance};
use crate::time::{HybridTime, Stamp};
use crate::view::{MemberState, NodeFacts};

pub(crate) fn instance_key(service: &str, id: &str) -> InstanceKey {
    let service = ServiceKey { namespace: Namespace::default(), service: service.parse().unwrap() };
    InstanceKey { service, instance: id.parse().unwrap() }
}

pub(crate) fn instance() -> Instance {
    Instance::at(Address { host: "127.0.0.1".into(), port: 8080 })
}

pub(crate) fn stamp(node: &str, time: u64) -> Stamp {
    Stamp { time: HybridTime(time), node: node.parse().unwrap() }
}

pub(crate) fn instance_record(service: &str, id: &str, owner: &str, time: u64) -> Record {
    let cell = Cell::Instance(LWWReg { val: Some(Arc::new(instance())), marker: Claim::new(stamp(owner, time)) });
    Record { key: Key::Instance(instance_key(service, id)), cell }
}

pub(crate) fn tombstone_record(service: &str, id: &str, by: &str, time: u64) -> Record {
    let cell = Cell::Instance(LWWReg { val: None, marker: Claim::new(stamp(by, time)) });
    Record { key: Key::Instance(instance_key(service, id)), cell }
}

pub(crate) fn node_record(node: &str, incarnation: u64, cell: &str, state: MemberState, stamp: Stamp) -> Record {
    let facts = NodeFacts { cell: cell.parse().unwrap(), ..facts(incarnation) };
    let marker = Start { incarnation: Incarnation(incarnation), stamp };
    let cell = Cell::Node(LWWReg { val: Arc::new(NodeRecord { facts, state }), marker });
    Record { key: Key::Node(node.parse().unwrap()), cell }
}

pub(crate) fn facts(incarnation: u64) -> NodeFacts {
    NodeFacts {
        incarnation: Incarnation(incarnation),
        zone: Zone::default(),
        region: Region::default(),
        cell: CellName::default(),
        version: "test".into(),
        address: "127.0.0.1:1".into(),
    }
}
