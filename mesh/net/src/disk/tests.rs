//! What the disk promises, as sentences.

use std::collections::BTreeMap;
use std::fs;

use starling_core::config::Version;
use starling_core::id::ConfigKey;
use starling_core::record::Cell;
use starling_core::time::{HybridTime, Stamp};

use super::*;

mod crashes;
mod failing;
mod sick;
mod spooling;

fn key(name: &str) -> Key {
    let key = name.parse().unwrap();
    Key::Config(ConfigKey { namespace: Default::default(), group: Default::default(), key })
}

fn record(name: &str, body: &str, at_ms: u64) -> Record {
    document(name, body, Stamp { time: HybridTime::from_wall(WallTime(at_ms)), node: "a".parse().unwrap() })
}

fn document(name: &str, body: &str, stamp: Stamp) -> Record {
    let (format, author, comment) = Default::default();
    let version = Version { stamp, body: Some(body.into()), format, author, comment };
    Record { key: key(name), cell: Cell::config_write(None, version) }
}

fn keep(name: &str, body: &str, at_ms: u64) -> Changes {
    Changes::from([(key(name), Some(record(name, body, at_ms)))])
}

fn open(dir: &Path, now_ms: u64) -> (Log, log::Recovered) {
    let (mesh, node) = (MeshName::default(), "a".parse().unwrap());
    Log::open(real(dir), &mesh, &node, WallTime(now_ms), Arc::default()).unwrap()
}

fn real(dir: &Path) -> Box<RealDirectory> {
    Box::new(RealDirectory(dir.into()))
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("starling.log")
}

fn names(records: &[Record]) -> Vec<String> {
    let name = |record: &Record| match &record.key {
        Key::Config(key) => key.key.to_string(),
        other => panic!("{other:?}"),
    };
    records.iter().map(name).collect()
}

fn open_disk(dir: &Path) -> Opened {
    Disk::open(dir, &MeshName::default(), &"a".parse().unwrap()).unwrap()
}

async fn write(disk: &Disk, record: Record) -> Result<(), String> {
    let (done, result) = oneshot::channel();
    let waiter: Waiter = Box::new(move |result| _ = done.send(result));
    disk.submit(vec![(record.key.clone(), Some(record))], vec![waiter]);
    result.await.unwrap()
}

#[test]
fn the_newest_record_of_a_key_survives_and_a_forgotten_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1_000);
    log.commit(&keep("one", "old", 1), None).unwrap();
    log.commit(&keep("one", "new", 2), None).unwrap();
    log.commit(&keep("two", "gone", 3), None).unwrap();
    log.commit(&Changes::from([(key("two"), None)]), None).unwrap();
    drop(log);
    let (_log, found) = open(dir.path(), 2_000);
    assert_eq!(found.memory.records, [record("one", "new", 2)]);
    assert_eq!(found.memory.last_used, HybridTime::from_wall(WallTime(3)), "a forgotten stamp is still used");
    assert!(found.problems.is_empty(), "{:?}", found.problems);
}

#[test]
fn a_log_cut_anywhere_in_its_last_record_keeps_everything_before() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1_000);
    log.commit(&keep("one", "kept", 1), None).unwrap();
    let before = fs::metadata(log_file(dir.path())).unwrap().len() as usize;
    log.commit(&keep("two", "cut", 2), None).unwrap();
    drop(log);
    let whole = fs::read(log_file(dir.path())).unwrap();
    for cut in before..whole.len() {
        fs::write(log_file(dir.path()), &whole[..cut]).unwrap();
        let (_log, found) = open(dir.path(), 2_000);
        assert_eq!(names(&found.memory.records), ["one"], "cut at {cut}");
        assert_eq!(found.problems.len(), usize::from(cut > before), "cut at {cut}: {:?}", found.problems);
        drop(_log);
        let (_log, found) = open(dir.path(), 3_000);
        assert!(found.problems.is_empty(), "cut at {cut}: the tail is gone for good: {:?}", found.problems);
    }
}

#[test]
fn a_flipped_bit_costs_one_record_and_is_reported_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, first) = open(dir.path(), 1_000);
    log.commit(&keep("one", "kept", 1), None).unwrap();
    log.commit(&keep("two", "needle", 2), None).unwrap();
    log.commit(&keep("three", "kept", 3), None).unwrap();
    drop(log);
    let mut bytes = fs::read(log_file(dir.path())).unwrap();
    let at = bytes.windows(6).position(|window| window == b"needle").unwrap();
    bytes[at] ^= 1;
    fs::write(log_file(dir.path()), bytes).unwrap();

    let (log, found) = open(dir.path(), 1_000);
    assert_eq!(names(&found.memory.records), ["one", "three"]);
    let [problem @ Problem::Corrupt { key: damaged, copy: Some(copy), .. }] = &found.problems[..] else {
        panic!("{:?}", found.problems);
    };
    assert_eq!(damaged, &Some(key("two")));
    let said = problem.to_string();
    assert!(said.contains("starling.log") && said.contains("offset") && said.contains("default/default/two"), "{said}");
    assert!(copy.exists(), "the damaged log is kept");
    assert!(found.incarnation > first.incarnation);
    drop(log);
    let (_log, found) = open(dir.path(), 1_000);
    assert_eq!(names(&found.memory.records), ["one", "three"]);
    assert!(found.problems.is_empty(), "the log was rewritten: {:?}", found.problems);
}

#[test]
fn a_damaged_file_header_does_not_cost_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1_000);
    log.commit(&keep("one", "kept", 1), None).unwrap();
    drop(log);
    let mut bytes = fs::read(log_file(dir.path())).unwrap();
    bytes[0] ^= 1;
    fs::write(log_file(dir.path()), &bytes).unwrap();
    let (log, found) = open(dir.path(), 1_000);
    assert_eq!((names(&found.memory.records), found.problems.len()), (vec!["one".to_owned()], 1));
    drop(log);
    assert!(open(dir.path(), 1_000).1.problems.is_empty());
}

#[test]
fn a_log_cut_while_it_was_begun_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    for cut in 0..=frame::HEADER.len() {
        fs::write(log_file(dir.path()), &frame::HEADER[..cut]).unwrap();
        let (mut log, found) = open(dir.path(), 1_000);
        assert!(found.problems.is_empty(), "cut at {cut}: {:?}", found.problems);
        log.commit(&keep("one", "kept", 1), None).unwrap();
        drop(log);
        let (_log, found) = open(dir.path(), 2_000);
        assert_eq!((names(&found.memory.records), found.problems), (vec!["one".to_owned()], vec![]), "cut at {cut}");
    }
}

#[test]
fn a_byte_changed_anywhere_costs_one_record_at_most_and_never_the_start() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let (mut log, first) = open(dir.path(), 1_000);
    log.commit(&keep("one", "kept", 1), None).unwrap();
    log.commit(&keep("two", "kept", 2), Some(WallTime(1_001))).unwrap();
    drop(log);
    let sound = fs::read(log_file(dir.path())).unwrap();
    let version = frame::HEADER.len() - 1; // another version is refused, whoever wrote it
    for at in (0..sound.len()).filter(|at| *at != version) {
        let mut bytes = sound.clone();
        bytes[at] ^= random.u8(1..);
        fs::write(log_file(dir.path()), &bytes).unwrap();
        let (log, found) = open(dir.path(), 500);
        assert_eq!(found.problems.len(), 1, "at {at}: {:?}", found.problems);
        assert!(!found.memory.records.is_empty(), "at {at}");
        assert!(found.incarnation > first.incarnation, "at {at}: {found:?}");
        drop(log);
        let (_log, again) = open(dir.path(), 500);
        assert!(again.problems.is_empty(), "at {at}: {:?}", again.problems);
        assert_eq!(again.memory.records, found.memory.records, "at {at}");
    }
}

#[test]
fn a_log_of_another_version_or_node_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), 1_000));
    let refused = |mesh: &str, node: &str| {
        let (mesh, node) = (mesh.parse().unwrap(), node.parse().unwrap());
        Log::open(real(dir.path()), &mesh, &node, WallTime(1), Arc::default()).unwrap_err().to_string()
    };
    assert!(refused("starling", "b").contains("belongs to node a"));
    assert!(refused("other", "a").contains("of mesh starling"));
    let mut bytes = fs::read(log_file(dir.path())).unwrap();
    bytes[7] = 9;
    fs::write(log_file(dir.path()), bytes).unwrap();
    let said = refused("starling", "a");
    assert!(said.contains("format 9") && said.contains("reads 1"), "{said}");
}

#[test]
fn two_openers_of_one_directory_are_refused_and_the_holder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, _) = open(dir.path(), 1_000);
    let second = Log::open(real(dir.path()), &MeshName::default(), &"a".parse().unwrap(), WallTime(1), Arc::default());
    let said = second.unwrap_err().to_string();
    assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
}

#[test]
fn every_start_has_a_larger_incarnation_even_with_a_clock_set_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = Incarnation(0);
    for now in [5_000, 5_000, 10, 10, 6_000] {
        let (_log, found) = open(dir.path(), now);
        assert!(found.incarnation > last, "{found:?}");
        last = found.incarnation;
    }
}

#[test]
fn stamps_go_on_after_the_last_mark_when_the_clock_was_set_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1_000_000);
    log.commit(&Changes::new(), Some(WallTime(1_005_000))).unwrap();
    drop(log);
    let (_log, found) = open(dir.path(), 1_006_000);
    assert_eq!(found.memory.last_used, HybridTime(0), "no jump when the clock is right");
    drop(_log);
    let (_log, behind) = open(dir.path(), 500_000);
    assert_eq!(behind.memory.last_used.wall(), WallTime(1_016_000));
    drop(_log);
    let (_log, again) = open(dir.path(), 500_000);
    assert!(again.memory.last_used > behind.memory.last_used, "each start begins after all that the last could use");
}

#[test]
fn a_log_that_is_mostly_dead_is_rewritten_and_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1_000);
    let filler = "x".repeat(500_000);
    let mut longest = 0;
    for round in 1..=20 {
        log.commit(&keep("big", &format!("{round}{filler}"), round), None).unwrap();
        log.commit(&keep("small", &round.to_string(), round), None).unwrap();
        log.compact_if_due().unwrap();
        longest = longest.max(fs::metadata(log_file(dir.path())).unwrap().len());
    }
    assert!(longest < log::COMPACT_MIN_BYTES + 1_000_000, "{longest}");
    drop(log);
    let (_log, found) = open(dir.path(), 2_000);
    assert_eq!(found.memory.records, [record("big", &format!("20{filler}"), 20), record("small", "20", 20)]);
    assert!(found.problems.is_empty());
}

#[test]
fn a_rewrite_that_a_crash_interrupted_leaves_the_old_log_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1_000);
    log.commit(&keep("one", "kept", 1), None).unwrap();
    drop(log);
    fs::write(dir.path().join("starling.log.new"), b"half a log").unwrap();
    let (_log, found) = open(dir.path(), 2_000);
    assert_eq!(names(&found.memory.records), ["one"]);
    assert!(found.problems.is_empty());
}

#[test]
fn a_record_too_large_for_the_log_is_named_and_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1_000);
    let mut changes = keep("huge", &"x".repeat(frame::MAX_PAYLOAD_BYTES), 1);
    changes.extend(keep("small", "kept", 2));
    let error = log.commit(&changes, None).unwrap_err();
    assert!(matches!(&error, log::CommitError::LeftOut(why) if why.contains("huge")), "{error}");
    drop(log);
    let (_log, found) = open(dir.path(), 2_000);
    assert_eq!((names(&found.memory.records), found.problems.len()), (vec!["small".to_owned()], 0));
}

#[test]
fn after_any_writes_crashes_and_restarts_the_log_says_what_a_map_would() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut model: BTreeMap<Key, Record> = BTreeMap::new();
    let mut clock = 1_000;
    for _ in 0..30 {
        let (mut log, found) = open(dir.path(), clock);
        assert_eq!(found.memory.records, model.values().cloned().collect::<Vec<_>>());
        for _ in 0..random.usize(..10) {
            let mut changes = Changes::new();
            for _ in 0..random.usize(1..5) {
                clock += 1;
                let name = format!("k{}", random.u8(..12));
                let body = "b".repeat(random.usize(..2_000));
                let new = random.u8(..4).ne(&0).then(|| record(&name, &body, clock));
                changes.insert(key(&name), new);
            }
            log.commit(&changes, random.bool().then_some(WallTime(clock))).unwrap();
            for (key, record) in changes {
                match record {
                    Some(record) => model.insert(key, record),
                    None => model.remove(&key),
                };
            }
            if random.u8(..8) == 0 {
                log.rewrite().unwrap();
            }
        }
        drop(log);
        if random.bool() {
            let mut bytes = fs::read(log_file(dir.path())).unwrap();
            bytes.extend((0..random.usize(..200)).map(|_| random.u8(..)));
            fs::write(log_file(dir.path()), bytes).unwrap();
        }
    }
}

#[tokio::test]
async fn a_thousand_writers_at_once_share_their_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { disk, .. } = open_disk(dir.path());
    let disk = Arc::new(disk);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..1_000 {
        let disk = disk.clone();
        writers.spawn(async move { write(&disk, record(&format!("k{writer}"), "x", writer + 1)).await.unwrap() });
    }
    assert_eq!(writers.join_all().await.len(), 1_000);
    let figures = disk.figures();
    assert!(figures.syncs.load(Relaxed) < figures.entries.load(Relaxed), "{figures:?}");
    assert!(disk.is_settled());
    Arc::into_inner(disk).unwrap().close().await;
    assert_eq!(open_disk(dir.path()).memory.records.len(), 1_000);
}

#[tokio::test]
async fn a_closed_disk_has_written_everything_and_frees_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let Opened { disk, memory, .. } = open_disk(dir.path());
        assert_eq!(memory.records.len(), round);
        let record = record(&format!("k{round}"), "x", 1);
        disk.submit(vec![(record.key.clone(), Some(record))], Vec::new());
        disk.close().await;
    }
}

#[tokio::test]
async fn without_a_directory_every_write_is_done_at_once() {
    let Opened { disk, incarnation, .. } = Disk::none(wall_now());
    write(&disk, record("one", "x", 1)).await.unwrap();
    assert!(disk.is_settled() && disk.has_room() && incarnation.0 > 0);
    disk.close().await;
}

/// A log of an earlier release; never changed. Another format has another version in its header and a file of its own.
const LOG_V1: &[u8] = include_bytes!("../../tests/disk/v1.log");

/// What it says.
fn log_v1() -> (Vec<frame::Entry>, Vec<u8>) {
    let node = "a".parse().unwrap();
    let stamp = Stamp { time: HybridTime(70_000), node: "b".parse().unwrap() };
    let key = starling_core::id::InstanceKey {
        service: starling_core::id::ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() },
        instance: "o1".parse().unwrap(),
    };
    let word = starling_core::registry::Override { status: None, weight: Some(3), reason: "disk swap".into() };
    let cell = Cell::Override(crdts::LWWReg { val: Some(Arc::new(word)), marker: stamp.clone() });
    let instance =
        starling_core::registry::Instance::at(starling_core::registry::Address { host: "10.0.0.7".into(), port: 80 });
    let claim = starling_core::record::Claim::new(stamp);
    let registered = Cell::Instance(crdts::LWWReg { val: Some(Arc::new(instance)), marker: claim });
    let (mesh, incarnation, mark) = (MeshName::default(), Incarnation(5), WallTime(6));
    let entries = vec![
        frame::Entry::Meta(frame::Meta { mesh, node, incarnation, mark, highest: HybridTime(7), damaged: None }),
        frame::Entry::Record(record("one", "kept", 1)),
        frame::Entry::Record(Record { key: Key::Override(key.clone()), cell }),
        frame::Entry::Record(Record { key: Key::Instance(key), cell: registered }),
        frame::Entry::Forget(super::tests::key("two")),
    ];
    let mut bytes = frame::HEADER.to_vec();
    for entry in &entries {
        match entry {
            frame::Entry::Meta(meta) => frame::push_meta(&mut bytes, 0, meta),
            frame::Entry::Record(record) => frame::push_record(&mut bytes, 0, record),
            frame::Entry::Forget(key) => frame::push_forget(&mut bytes, 0, key),
        }
        .unwrap();
    }
    (entries, bytes)
}

#[test]
fn a_log_of_an_earlier_release_is_read_as_what_it_was_and_todays_is_the_same() {
    let (entries, bytes) = log_v1();
    let mut read = Vec::new();
    assert!(frame::scan(LOG_V1, |_, _, entry| read.push(entry)).is_empty());
    assert_eq!(read, entries);
    assert!(bytes == LOG_V1, "written as before");
}
