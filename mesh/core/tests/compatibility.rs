//! Nodes of neighbouring releases live in one mesh: bytes of earlier releases are kept as files and read as what they
//! were, today's bytes are the same, and what a newer release says is passed over.
//!
//! A file in `tests/wire` is never changed: a release that writes other bytes has another wire version and files of its
//! own. For a new kind of message or record, STARLING_WRITE_SAMPLES=1 writes the files that are missing.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crdts::LWWReg;
use starling_core::cells::NodeRecord;
use starling_core::config::{Body, Version};
use starling_core::digest::{Fingerprint, KeyHash, Prefix};
use starling_core::id::{ConfigKey, Incarnation, InstanceKey, NodeId, ServiceKey};
use starling_core::observe::{Span, SpanId, SpanKind, TraceId};
use starling_core::push::{Beacon, ChangeId};
use starling_core::quotas::{QuotaId, Usage, Word};
use starling_core::record::{Cell, Claim, Key, Record, Start};
use starling_core::registry::{
    Address, Check, CheckKind, Details, Health, Instance, Override, Protocol, Reach, Status,
};
use starling_core::time::{HybridTime, Stamp, WallTime};
use starling_core::view::{CatchingUp, MemberState, NodeFacts, Revision};
use starling_core::wire::{
    self, CertificateStatus, DiskFailing, Exchange, Message, NodeStatus, Question, Received, Reply, WIRE_VERSION,
};

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn stamp(name: &str, ms: u64) -> Stamp {
    Stamp { time: HybridTime(ms << 16 | 7), node: node(name) }
}

fn instance_key(id: &str) -> InstanceKey {
    let service = ServiceKey { namespace: "shop".parse().unwrap(), service: "orders".parse().unwrap() };
    InstanceKey { service, instance: id.parse().unwrap() }
}

fn instance_record(id: &str, value: Option<Instance>) -> Record {
    let marker = Claim { claimed: HybridTime(5), ..Claim::new(stamp("node-a", 1_700_000_000_000)) };
    Record { key: Key::Instance(instance_key(id)), cell: Cell::Instance(LWWReg { val: value.map(Arc::new), marker }) }
}

/// An instance that says everything an instance can say.
fn full_instance() -> Instance {
    let check = Check { deregister_after_ms: Some(60_000), ..Check::new(CheckKind::Http { path: "/up".into() }) };
    let tags = ["blue", "canary"].map(String::from).into_iter().collect();
    let metadata = [("team", "pay")].map(|(key, value)| (String::from(key), String::from(value))).into_iter().collect();
    Instance {
        protocol: Protocol::Tcp,
        zone: "west".parse().unwrap(),
        version: "1.2.3".into(),
        weight: 7,
        status: Status::OutOfService,
        health: Health::Failing,
        reach: Reach::Direct,
        declared: true,
        details: Details::new(tags, metadata, Some(check)),
        ..Instance::at(Address { host: "orders.internal".into(), port: 8080 })
    }
}

fn override_record(value: Option<Override>) -> Record {
    let cell = Cell::Override(LWWReg { val: value.map(Arc::new), marker: stamp("node-b", 1_700_000_000_001) });
    Record { key: Key::Override(instance_key("o1")), cell }
}

fn version(by: &str, ms: u64, body: Option<&[u8]>) -> Version {
    Version {
        stamp: stamp(by, ms),
        body: body.map(|bytes| Body::from(bytes.to_vec())),
        format: "json".into(),
        author: "ada".into(),
        comment: "why".into(),
    }
}

fn config_record(versions: &[Version]) -> Record {
    let key = ConfigKey {
        namespace: "shop".parse().unwrap(),
        group: "limits".parse().unwrap(),
        key: "a/b.json".parse().unwrap(),
    };
    // Written by people who had not seen each other's.
    let mut cell = Cell::config_write(None, versions[0].clone());
    for version in &versions[1..] {
        cell.merge(Cell::config_write(None, version.clone())).unwrap();
    }
    Record { key: Key::Config(key), cell }
}

fn node_record() -> Record {
    let facts = NodeFacts {
        incarnation: Incarnation(1_700_000_000_123),
        zone: "west".parse().unwrap(),
        region: "eu".parse().unwrap(),
        cell: "c1".parse().unwrap(),
        version: "0.1.0".into(),
        address: "10.0.0.1:7946".into(),
    };
    let marker = Start { incarnation: facts.incarnation, stamp: stamp("node-a", 1_700_000_000_200) };
    let val = Arc::new(NodeRecord { facts, state: MemberState::Alive });
    Record { key: Key::Node(node("node-c")), cell: Cell::Node(LWWReg { val, marker }) }
}

/// One record of each kind, in each shape.
fn records() -> Vec<Record> {
    let word = |status, weight| Override { status, weight, reason: "disk swap".into() };
    vec![
        instance_record("o1", Some(Instance::at(Address { host: "10.0.0.7".into(), port: 80 }))),
        instance_record("o2", Some(full_instance())),
        instance_record("o3", None),
        override_record(Some(word(Some(Status::Down), Some(3)))),
        override_record(None),
        config_record(&[version("node-a", 1, Some(b"{}"))]),
        config_record(&[
            version("node-a", 1, Some(b"{}")),
            version("node-b", 2, Some(&[0, 159])),
            version("node-c", 3, None),
        ]),
        node_record(),
    ]
}

fn messages() -> Vec<(&'static str, Message)> {
    let exchange = Exchange { id: 0x1234_5678, cut: true, start: KeyHash(1 << 63), held: 300 };
    let fingerprint = Fingerprint { count: 3, sum: 0x0123_4567_89ab_cdef };
    let child = Prefix::ROOT.children().nth(5).unwrap();
    let word = |usages| {
        let usage = Usage { quota: QuotaId(1 << 63), demand_milli: 1_500_000, share_milli: 250_000 };
        Word { node: node("node-a"), beat: 1_700_000_000_000, usages: vec![usage; usages] }
    };
    let all = |message: &Message| match message {
        // A new kind of message needs a line here, and below.
        Message::Opening { .. } | Message::Pull { .. } | Message::Page { .. } => (),
        Message::Push(_) | Message::Ranges { .. } | Message::Entries { .. } | Message::Want { .. } => (),
        Message::Fill { .. } | Message::Same(_) | Message::Leaving(..) | Message::Have(_) | Message::Graft(_) => (),
        Message::Prune | Message::Beacon(_) | Message::Pulse(_) | Message::OutOfReach { .. } | Message::Clock(_) => (),
        Message::Usage { .. } => (),
    };
    let messages = vec![
        ("push", Message::Push(records())),
        ("opening", Message::Opening { store: fingerprint, exchange }),
        ("ranges", Message::Ranges { ranges: vec![(Prefix::ROOT, [1; 16]), (child, [u32::MAX; 16])], exchange }),
        ("entries", Message::Entries { entries: vec![(child, vec![1, u32::MAX])], exchange }),
        ("want", Message::Want { wanted: vec![(child, vec![1, u32::MAX])], exchange }),
        ("pull", Message::Pull { from: KeyHash(1), last: KeyHash(u64::MAX) }),
        ("page", Message::Page { records: vec![], next: Some(KeyHash(7)), last: KeyHash(u64::MAX), held: 300 }),
        ("fill", Message::Fill { records: vec![instance_record("o3", None)], exchange }),
        ("same", Message::Same(fingerprint)),
        ("leaving", Message::Leaving(node("node-a"), Incarnation(1_700_000_000_123))),
        ("have", Message::Have(vec![ChangeId(1), ChangeId(u32::MAX)])),
        ("graft", Message::Graft(vec![ChangeId(7)])),
        ("prune", Message::Prune),
        ("beacon", Message::Beacon(Beacon { root: 7, number: 300, hops: 2 })),
        ("pulse", Message::Pulse(vec![("c1".parse().unwrap(), 41), ("c2".parse().unwrap(), 1 << 40)])),
        ("out-of-reach", Message::OutOfReach { said: stamp("node-a", 9), cells: vec!["c2".parse().unwrap()] }),
        ("clock", Message::Clock(WallTime(1_700_000_000_000))),
        ("usage", Message::Usage { words: vec![word(2), word(0)], ask: true }),
    ];
    messages.iter().for_each(|(_, message)| all(message));
    messages
}

fn questions() -> Vec<(&'static str, Question)> {
    vec![
        ("status", Question::Status),
        ("trace", Question::Trace(TraceId(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c))),
        ("recent-traces", Question::RecentTraces(20)),
        ("guards", Question::Guards(instance_key("1").service)),
        ("try", Question::Try { service: instance_key("1").service, text: "[circuit]\n".into(), for_all: true }),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let status = NodeStatus {
        node: node("node-a"),
        incarnation: Incarnation(1_700_000_000_123),
        version: "0.1.0".into(),
        uptime_ms: 5_000,
        wall: WallTime(1_700_000_005_000),
        revision: Revision(77),
        fingerprint: Fingerprint { count: 3, sum: 9 },
        members_alive: 3,
        disk_failing: Some(DiskFailing { since: WallTime(1), reason: "no space left".into() }),
        catching_up: Some(CatchingUp { from: node("node-b"), of: 300, began_with: 1, since: WallTime(2) }),
        certificate: None,
    };
    let span = Span {
        trace: TraceId(1),
        id: SpanId(2),
        parent: Some(SpanId(3)),
        kind: SpanKind::Server,
        node: node("node-a"),
        service: "shop/orders".into(),
        name: "GET".into(),
        start_us: 4,
        duration_us: 5,
        status: Some(503),
        error: Some("refused".into()),
        attributes: [("attempt".to_owned(), "1".to_owned())].into(),
    };
    let guards = Reply::Guards(r#"{"problems":[],"guards":[]}"#.into());
    let tried = Reply::Tried(Ok(r#"{"requests":7}"#.into()));
    let certificate = CertificateStatus { expires: WallTime(3), ends_soon: true, refused: Some("no key".into()) };
    let certified = Reply::Status(NodeStatus { certificate: Some(certificate), ..status.clone() });
    vec![
        ("status", Reply::Status(status)),
        ("status-certificate", certified),
        ("spans", Reply::Spans(vec![span])),
        ("guards", guards),
        ("tried", tried),
    ]
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wire")
}

/// The bytes kept under this name; what is missing is written when that is asked for.
fn kept(name: &str, written: &[u8]) -> Vec<u8> {
    let path = folder().join(name);
    if std::env::var_os("STARLING_WRITE_SAMPLES").is_some() && !path.exists() {
        fs::create_dir_all(folder()).unwrap();
        fs::write(&path, written).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; see the top of this file", path.display()))
}

#[test]
fn bytes_of_earlier_releases_are_read_as_what_they_were_and_todays_are_the_same() {
    let mut known = BTreeSet::new();
    for (name, message) in messages() {
        let name = format!("v{WIRE_VERSION}-{name}.message");
        let bytes = kept(&name, &message.encode());
        assert_eq!(Message::decode(&bytes).unwrap(), Received { message: Some(message.clone()), skipped: 0 }, "{name}");
        assert_eq!(message.encode(), bytes, "{name}");
        known.insert(name);
    }
    for (name, question) in questions() {
        let name = format!("v{WIRE_VERSION}-{name}.question");
        let bytes = kept(&name, &wire::encode(&question));
        assert_eq!(wire::decode::<Question>(&bytes).unwrap(), question, "{name}");
        assert_eq!(wire::encode(&question), bytes, "{name}");
        known.insert(name);
    }
    for (name, reply) in replies() {
        let name = format!("v{WIRE_VERSION}-{name}.reply");
        let bytes = kept(&name, &wire::encode(&reply));
        assert_eq!(wire::decode::<Reply>(&bytes).unwrap(), reply, "{name}");
        assert_eq!(wire::encode(&reply), bytes, "{name}");
        known.insert(name);
    }
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(files.collect::<BTreeSet<_>>(), known, "every file is read by this test");
}

#[test]
fn kinds_of_messages_of_a_later_release_are_passed_over_and_another_version_is_refused() {
    for kind in [200, 255] {
        let later = [WIRE_VERSION, kind, 1, 2, 3];
        assert_eq!(Message::decode(&later).unwrap(), Received { message: None, skipped: 0 });
    }
    for (name, message) in messages() {
        let mut bytes = message.encode();
        bytes.extend([9, 9, 9]); // what a later release appends to it
        assert_eq!(Message::decode(&bytes).unwrap().message, Some(message.clone()), "{name}");
        bytes[0] = WIRE_VERSION + 1;
        let error = Message::decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("run the same major version"), "{name}: {error}");
    }
}
