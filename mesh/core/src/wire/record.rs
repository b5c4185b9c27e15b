//! Records as bytes: about 60 for an ordinary instance, against 150 when every field brought its name along.
//!
//! Each record has its length and its kind in front, so that a peer that knows more kinds, or says more in one than this
//! node can read, costs that record and no more.

use std::sync::Arc;

use crdts::LWWReg;

use super::bytes::{Names, Reader, Writer};
use super::{DecodeError, MAX_RECORDS};
use crate::cells::NodeRecord;
use crate::id::{ConfigKey, Incarnation, InstanceKey, NameError, ServiceKey};
use crate::record::{Cell, Claim, Key, Record, Start, register_from_bytes};
use crate::registry::{
    Address, Check, CheckKind, DEFAULT_WEIGHT, Details, Health, Instance, MAX_METADATA, MAX_TAGS, Override, Protocol,
    Reach, Status,
};
use crate::time::{HybridTime, Stamp};
use crate::view::{MemberState, NodeFacts};

/// Kinds of record.
const INSTANCE: u8 = 1;
const OVERRIDE: u8 = 2;
const CONFIG: u8 = 3;
const NODE: u8 = 4;

/// What an instance has beyond the least: one bit each.
const HAS_IPV4: u8 = 1;
const HAS_VERSION: u8 = 2;
const HAS_WEIGHT: u8 = 4;
const HAS_TAGS: u8 = 8;
const HAS_METADATA: u8 = 16;
const HAS_CHECK: u8 = 32;
const IS_DIRECT: u8 = 64;
const IS_DECLARED: u8 = 128;

/// The fewest bytes of a record, its length and kind included.
const LEAST_RECORD_BYTES: usize = 2;

/// Appends records, with the table of the names in them.
pub(super) fn put_records(records: &[Record], out: &mut Vec<u8>) {
    let mut to = Writer::new();
    to.number(records.len() as u64);
    for record in records {
        to.framed(|to| put_record(record, to));
    }
    to.finish(out);
}

/// Reads records, and how many of them were of a kind or a shape that this node does not know.
pub(super) fn records(from: &mut Reader) -> Result<(Vec<Record>, usize), DecodeError> {
    let mut names = from.names()?;
    let count = from.count(LEAST_RECORD_BYTES, MAX_RECORDS)?;
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        let frame = from.blob()?;
        records.extend(record(frame, &mut names).ok());
    }
    let skipped = count - records.len();
    Ok((records, skipped))
}

fn put_record<'a>(record: &'a Record, to: &mut Writer<'a>) {
    match (&record.key, &record.cell) {
        (Key::Instance(key), Cell::Instance(register)) => {
            to.byte(INSTANCE);
            put_instance_key(key, to);
            put_stamp(&register.marker.stamp, to);
            to.number(register.marker.stamp.time.0.wrapping_sub(register.marker.claimed.0));
            to.byte(u8::from(register.val.is_some()));
            if let Some(instance) = &register.val {
                put_instance(instance, to);
            }
        }
        (Key::Override(key), Cell::Override(register)) => {
            to.byte(OVERRIDE);
            put_instance_key(key, to);
            put_stamp(&register.marker, to);
            to.byte(u8::from(register.val.is_some()));
            if let Some(value) = &register.val {
                put_override(value, to);
            }
        }
        (Key::Config(key), Cell::Config(register)) => {
            to.byte(CONFIG);
            to.name(key.namespace.as_str());
            to.text(key.group.as_str());
            to.text(key.key.as_str());
            to.blob(&rmp_serde::to_vec(register).expect("registers encode"));
        }
        (Key::Node(node), Cell::Node(register)) => {
            to.byte(NODE);
            to.name(node.as_str());
            put_stamp(&register.marker.stamp, to);
            put_node(&register.val, to);
        }
        // No store holds such a record; readers skip a kind of 0.
        _ => to.byte(0),
    }
}

fn record(frame: &[u8], names: &mut Names) -> Result<Record, DecodeError> {
    let from = &mut Reader::new(frame);
    match from.byte()? {
        INSTANCE => {
            let key = instance_key(from, names)?;
            let stamp = stamp(from, names)?;
            let claimed = HybridTime(stamp.time.0.wrapping_sub(from.number()?));
            let val = present(from)?.then(|| instance(from, names)).transpose()?.map(Arc::new);
            let cell = Cell::Instance(LWWReg { val, marker: Claim { claimed, stamp } });
            Ok(Record { key: Key::Instance(key), cell })
        }
        OVERRIDE => {
            let key = instance_key(from, names)?;
            let marker = stamp(from, names)?;
            let val = present(from)?.then(|| override_(from)).transpose()?.map(Arc::new);
            Ok(Record { key: Key::Override(key), cell: Cell::Override(LWWReg { val, marker }) })
        }
        CONFIG => {
            let namespace = names.namespace(from)?;
            let (group, key) = (from.text()?.parse().map_err(bad_name)?, from.text()?.parse().map_err(bad_name)?);
            let register = register_from_bytes(from.blob()?)?;
            Ok(Record { key: Key::Config(ConfigKey { namespace, group, key }), cell: Cell::Config(register) })
        }
        NODE => {
            let (name, stamp, val) = (names.node(from)?, stamp(from, names)?, Arc::new(node(from, names)?));
            let marker = Start { incarnation: val.facts.incarnation, stamp };
            Ok(Record { key: Key::Node(name), cell: Cell::Node(LWWReg { val, marker }) })
        }
        other => Err(DecodeError::Malformed(format!("a record of unknown kind {other}"))),
    }
    .and_then(|record| from.end().map(|()| record))
}

fn bad_name(error: NameError) -> DecodeError {
    DecodeError::Malformed(error.to_string())
}

fn present(from: &mut Reader) -> Result<bool, DecodeError> {
    match from.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError::Malformed(format!("{other} is neither yes nor no"))),
    }
}

fn put_instance_key<'a>(key: &'a InstanceKey, to: &mut Writer<'a>) {
    to.name(key.service.namespace.as_str());
    to.name(key.service.service.as_str());
    to.text(key.instance.as_str());
}

fn instance_key(from: &mut Reader, names: &mut Names) -> Result<InstanceKey, DecodeError> {
    let service = ServiceKey { namespace: names.namespace(from)?, service: names.service(from)? };
    Ok(InstanceKey { service, instance: from.text()?.parse().map_err(bad_name)? })
}

fn put_stamp<'a>(stamp: &'a Stamp, to: &mut Writer<'a>) {
    to.fixed(stamp.time.0);
    to.name(stamp.node.as_str());
}

fn stamp(from: &mut Reader, names: &mut Names) -> Result<Stamp, DecodeError> {
    Ok(Stamp { time: HybridTime(from.fixed()?), node: names.node(from)? })
}

fn put_instance<'a>(instance: &'a Instance, to: &mut Writer<'a>) {
    let (tags, metadata, check) = (instance.details.tags(), instance.details.metadata(), instance.details.check());
    let ipv4 = ipv4(&instance.address.host);
    let flag = |there: bool, flag: u8| if there { flag } else { 0 };
    to.byte(
        flag(ipv4.is_some(), HAS_IPV4)
            | flag(!instance.version.is_empty(), HAS_VERSION)
            | flag(instance.weight != DEFAULT_WEIGHT, HAS_WEIGHT)
            | flag(!tags.is_empty(), HAS_TAGS)
            | flag(!metadata.is_empty(), HAS_METADATA)
            | flag(check.is_some(), HAS_CHECK)
            | flag(instance.reach == Reach::Direct, IS_DIRECT)
            | flag(instance.declared, IS_DECLARED),
    );
    to.byte(protocol_code(instance.protocol) | status_code(instance.status) << 2 | health_code(instance.health) << 4);
    match ipv4 {
        Some(octets) => to.bytes.extend_from_slice(&octets),
        None => to.text(&instance.address.host),
    }
    to.bytes.extend_from_slice(&instance.address.port.to_le_bytes());
    to.name(instance.zone.as_str());
    if !instance.version.is_empty() {
        to.text(&instance.version);
    }
    if instance.weight != DEFAULT_WEIGHT {
        to.number(u64::from(instance.weight));
    }
    if !tags.is_empty() {
        to.number(tags.len() as u64);
        tags.iter().for_each(|tag| to.text(tag));
    }
    if !metadata.is_empty() {
        to.number(metadata.len() as u64);
        for (key, value) in metadata.iter() {
            to.text(key);
            to.text(value);
        }
    }
    if let Some(check) = check {
        put_check(check, to);
    }
}

fn instance(from: &mut Reader, names: &mut Names) -> Result<Instance, DecodeError> {
    let (flags, codes) = (from.byte()?, from.byte()?);
    let has = |flag: u8| flags & flag != 0;
    let host = if has(HAS_IPV4) {
        let octets = from.take(4)?;
        ecow::eco_format!("{}.{}.{}.{}", octets[0], octets[1], octets[2], octets[3])
    } else {
        from.text()?.into()
    };
    let port = u16::from(from.byte()?) | u16::from(from.byte()?) << 8;
    let mut instance = Instance {
        protocol: protocol(codes & 3),
        status: status(codes >> 2 & 3),
        health: health(codes >> 4 & 3),
        reach: if has(IS_DIRECT) { Reach::Direct } else { Reach::Owner },
        declared: has(IS_DECLARED),
        zone: names.zone(from)?,
        ..Instance::at(Address { host, port })
    };
    if codes >> 6 != 0 {
        return Err(DecodeError::malformed("an instance has marks this node does not know"));
    }
    if has(HAS_VERSION) {
        instance.version = from.text()?.into();
    }
    if has(HAS_WEIGHT) {
        instance.weight = from.small()?;
    }
    if flags & (HAS_TAGS | HAS_METADATA | HAS_CHECK) != 0 {
        let tags = if has(HAS_TAGS) { from.count(1, MAX_TAGS)? } else { 0 };
        let tags = (0..tags).map(|_| from.text()).collect::<Result<_, _>>()?;
        let pairs = if has(HAS_METADATA) { from.count(2, MAX_METADATA)? } else { 0 };
        let pairs = (0..pairs).map(|_| Ok((from.text()?, from.text()?))).collect::<Result<_, DecodeError>>()?;
        instance.details = Details::new(tags, pairs, has(HAS_CHECK).then(|| check(from)).transpose()?);
    }
    Ok(instance)
}

fn put_node<'a>(node: &'a NodeRecord, to: &mut Writer<'a>) {
    let NodeFacts { incarnation, zone, region, cell, version, address } = &node.facts;
    to.byte(match node.state {
        MemberState::Alive => 0,
        MemberState::Lost => 1,
        MemberState::Left => 2,
    });
    to.number(incarnation.0);
    to.name(zone.as_str());
    to.name(region.as_str());
    to.name(cell.as_str());
    to.name(version);
    to.text(address);
}

fn node(from: &mut Reader, names: &mut Names) -> Result<NodeRecord, DecodeError> {
    let state = match from.byte()? {
        0 => MemberState::Alive,
        1 => MemberState::Lost,
        2 => MemberState::Left,
        other => return Err(DecodeError::Malformed(format!("a node's state of unknown code {other}"))),
    };
    let facts = NodeFacts {
        incarnation: Incarnation(from.number()?),
        zone: names.zone(from)?,
        region: names.region(from)?,
        cell: names.cell(from)?,
        version: names.text(from)?.to_owned(),
        address: from.text()?.to_owned(),
    };
    Ok(NodeRecord { facts, state })
}

/// The four octets of an address in its only usual form, which can be had back from them.
fn ipv4(host: &str) -> Option<[u8; 4]> {
    let mut octets = [0; 4];
    let mut parts = host.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        *octet = part.parse().ok()?;
        let as_written = part.bytes().all(|b| b.is_ascii_digit()) && (part.len() == 1 || !part.starts_with('0'));
        if !as_written {
            return None;
        }
    }
    parts.next().is_none().then_some(octets)
}

fn put_check(check: &Check, to: &mut Writer) {
    match &check.kind {
        CheckKind::Http { path } => {
            to.byte(0);
            to.text(path);
        }
        CheckKind::Tcp => to.byte(1),
        CheckKind::Ttl => to.byte(2),
    }
    to.number(check.interval_ms);
    to.number(check.timeout_ms);
    to.number(u64::from(check.failures_to_fail));
    to.number(u64::from(check.successes_to_pass));
    // One more, so that 0 stands for "never".
    to.number(check.deregister_after_ms.map_or(0, |after| after.saturating_add(1)));
}

fn check(from: &mut Reader) -> Result<Check, DecodeError> {
    let kind = match from.byte()? {
        0 => CheckKind::Http { path: from.text()?.to_owned() },
        1 => CheckKind::Tcp,
        2 => CheckKind::Ttl,
        other => return Err(DecodeError::Malformed(format!("a check of unknown kind {other}"))),
    };
    Ok(Check {
        kind,
        interval_ms: from.number()?,
        timeout_ms: from.number()?,
        failures_to_fail: from.small()?,
        successes_to_pass: from.small()?,
        deregister_after_ms: from.number()?.checked_sub(1),
    })
}

fn put_override(value: &Override, to: &mut Writer) {
    to.byte(value.status.map_or(0, |status| status_code(status) + 1));
    to.number(value.weight.map_or(0, |weight| u64::from(weight) + 1));
    to.text(&value.reason);
}

fn override_(from: &mut Reader) -> Result<Override, DecodeError> {
    let status = match from.byte()? {
        0 => None,
        code @ 1..=4 => Some(status(code - 1)),
        other => return Err(DecodeError::Malformed(format!("a status of unknown code {other}"))),
    };
    let weight = match from.number()?.checked_sub(1) {
        Some(weight) => Some(u32::try_from(weight).map_err(|_| DecodeError::malformed("a weight is too large"))?),
        None => None,
    };
    Ok(Override { status, weight, reason: from.text()?.to_owned() })
}

/// The words of the registry as numbers of two bits, written once for both directions.
macro_rules! codes {
    ($to:ident, $from:ident, $type:ident, $($variant:ident = $code:literal),+) => {
        fn $to(value: $type) -> u8 {
            match value { $($type::$variant => $code),+ }
        }
        fn $from(code: u8) -> $type {
            match code & 3 { $($code => $type::$variant,)+ _ => unreachable!("all four codes of two bits are named") }
        }
    };
}

codes!(protocol_code, protocol, Protocol, Http = 0, Http2 = 1, Grpc = 2, Tcp = 3);
codes!(status_code, status, Status, Up = 0, Down = 1, Starting = 2, OutOfService = 3);
codes!(health_code, health, Health, Unchecked = 0, Unknown = 1, Passing = 2, Failing = 3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_packed_only_if_it_reads_back_as_it_was_written() {
        assert_eq!(ipv4("10.0.255.1"), Some([10, 0, 255, 1]));
        for other in ["10.0.0", "10.0.0.1.2", "010.0.0.1", "10.0.0.+1", "10.0.0.256", "10..0.1", "::1", "a.b.c.d", ""] {
            assert_eq!(ipv4(other), None, "{other}");
        }
    }
}
