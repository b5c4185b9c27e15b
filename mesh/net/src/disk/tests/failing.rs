//! Disks that are full, read-only or bad in places: what the node can do then, and what it says.

use super::sick::{Left, SickDisk, Trouble};
use super::*;

fn start(disk: &SickDisk) -> Result<(Log, log::Recovered), DiskError> {
    let (mesh, node) = (MeshName::default(), "a".parse().unwrap());
    Log::open(Box::new(disk.clone()), &mesh, &node, WallTime(1_000), Arc::default())
}

/// A disk that a node has written these documents to.
fn disk_with(names: &[&str]) -> SickDisk {
    let disk = SickDisk::new();
    let (mut log, _) = start(&disk).unwrap();
    for (at, name) in names.iter().enumerate() {
        log.commit(&keep(name, &"kept ".repeat(2_000), at as u64 + 1), None).unwrap();
    }
    disk
}

/// Where a document's record stands in the log.
fn place_of(disk: &SickDisk, name: &str) -> u64 {
    let bytes = disk.bytes(log::LOG);
    let at = bytes.windows(name.len()).position(|window| window == name.as_bytes());
    at.unwrap() as u64
}

#[test]
fn after_a_failed_sync_nothing_is_believed_to_be_on_disk_until_it_was_written_again() {
    let (disk, figures) = (SickDisk::new(), Arc::new(Figures::default()));
    let (mesh, node) = (MeshName::default(), "a".parse().unwrap());
    let (mut log, _) = Log::open(Box::new(disk.clone()), &mesh, &node, WallTime(1_000), figures.clone()).unwrap();
    log.commit(&keep("one", "kept", 1), None).unwrap();
    disk.script(|at, _| (at == 1).then_some(Trouble::Fails(std::io::ErrorKind::Other)));
    let error = log.commit(&keep("two", "late", 2), None).unwrap_err().to_string();
    assert!(error.contains("sync the log"), "{error}");
    assert!(names(&start(&disk.after(Left::Nothing)).unwrap().1.memory.records) == ["one"], "the pages are gone");
    log.commit(&keep("two", "late", 2), None).unwrap();
    assert_eq!(names(&start(&disk.after(Left::Nothing)).unwrap().1.memory.records), ["one", "two"]);
    assert_eq!(figures.compactions.load(Relaxed), 1, "to another file");
}

#[test]
fn what_a_failed_write_left_behind_is_never_read_as_newer_than_what_was_written_over_it() {
    let disk = SickDisk::new();
    let (mut log, _) = start(&disk).unwrap();
    let all =
        |body: &str, at_ms| ["one", "two", "three", "four"].iter().flat_map(|name| keep(name, body, at_ms)).collect();
    let long: Changes = all(&"old ".repeat(100), 1);
    disk.script(|at, bytes| match (at, bytes) {
        (0, Some(bytes)) => Some(Trouble::Short(bytes - 1)),
        (1, _) => Some(Trouble::Fails(std::io::ErrorKind::StorageFull)),
        _ => None,
    });
    log.commit(&long, None).unwrap_err();
    let short: Changes = all("new", 2);
    log.commit(&short, None).unwrap();
    for left in [Left::Everything, Left::Nothing] {
        let (_, found) = start(&disk.after(left)).unwrap();
        assert_eq!(found.memory.records, short.values().flatten().cloned().collect::<Vec<_>>());
        assert!(found.problems.is_empty(), "{:?}", found.problems);
    }
}

#[test]
fn a_full_disk_is_said_to_be_full_and_is_written_when_there_is_room() {
    let disk = disk_with(&["one"]);
    let (mut log, _) = start(&disk).unwrap();
    disk.has_room_for(10);
    let error = log.commit(&keep("two", &"x".repeat(1_000), 2), None).unwrap_err().to_string();
    assert!(error.contains("make room on the disk"), "{error}");
    log.commit(&keep("tiny", "", 3), None).unwrap_err(); // for which there is no room either
    disk.has_room_for(10_000);
    let mut changes = keep("two", "late", 2);
    changes.extend(keep("tiny", "", 3));
    log.commit(&changes, None).unwrap();
    assert_eq!(names(&start(&disk.after(Left::Nothing)).unwrap().1.memory.records), ["one", "tiny", "two"]);
}

#[test]
fn a_node_starts_from_a_read_only_disk_and_is_a_new_start_once_it_can_be_written() {
    let disk = disk_with(&["one"]);
    let (_, first) = start(&disk).unwrap();
    disk.is_read_only();
    let (mut log, found) = start(&disk).unwrap();
    assert_eq!(names(&found.memory.records), ["one"]);
    let [problem @ Problem::Unwritable { .. }] = &found.problems[..] else { panic!("{:?}", found.problems) };
    assert!(problem.to_string().contains("/sick cannot be written") && problem.to_string().contains("mount it"));
    log.commit(&keep("two", "refused", 2), None).unwrap_err();
    disk.heals();
    log.commit(&keep("two", "late", 2), None).unwrap();
    let (_, after) = start(&disk.after(Left::Nothing)).unwrap();
    assert_eq!(names(&after.memory.records), ["one", "two"]);
    assert!(after.incarnation > found.incarnation && found.incarnation > first.incarnation);
}

#[test]
fn a_node_starts_on_a_disk_that_was_full_from_the_beginning() {
    let disk = SickDisk::new();
    disk.has_room_for(3);
    let (mut log, found) = start(&disk).unwrap();
    assert!(matches!(&found.problems[..], [Problem::Unwritable { .. }]), "{:?}", found.problems);
    log.commit(&keep("one", "refused", 1), None).unwrap_err();
    disk.heals();
    log.commit(&keep("one", "late", 1), None).unwrap();
    assert_eq!(names(&start(&disk.after(Left::Nothing)).unwrap().1.memory.records), ["one"]);
}

#[test]
fn a_directory_that_may_not_be_written_is_a_mistake_and_the_node_does_not_start() {
    let disk = SickDisk::new();
    disk.script(|_, _| Some(Trouble::Fails(std::io::ErrorKind::PermissionDenied)));
    let said = start(&disk).unwrap_err().to_string();
    assert!(said.contains("node.data_dir") && said.contains("must be able to write there"), "{said}");
}

#[test]
fn what_the_disk_does_not_give_back_is_named_and_costs_nothing_else() {
    let disk = disk_with(&["one", "needle", "three"]);
    let at = place_of(&disk, "needle") + 5_000;
    disk.loses(at..at + 1);
    let (log, found) = start(&disk).unwrap();
    assert_eq!(names(&found.memory.records), ["one", "three"]);
    assert!(found.memory.incomplete, "peers are asked for what was lost");
    let [problem @ Problem::Corrupt { .. }] = &found.problems[..] else { panic!("{:?}", found.problems) };
    let said = problem.to_string();
    assert!(said.contains("cannot be read: Input/output error") && said.contains("default/default/needle"), "{said}");
    assert!(said.contains("starling.log.damaged-"), "what could be read is kept for a look: {said}");
    drop(log);
    let disk = disk.after(Left::Nothing);
    let (_, again) = start(&disk).unwrap();
    assert!(again.memory.incomplete, "peers may not have been there the first time");
    assert_eq!(names(&again.memory.records), ["one", "three"]);
}

#[test]
fn a_record_that_goes_bad_while_the_node_runs_is_asked_for_again() {
    let disk = disk_with(&["one", "needle", "three"]);
    let (mut log, _) = start(&disk).unwrap();
    let at = place_of(&disk, "needle") + 5_000;
    disk.loses(at..at + 1);
    log.rewrite().unwrap();
    assert_eq!(log.take_lost(), [key("needle")]);
    assert!(log.take_lost().is_empty(), "once");
    log.commit(&keep("needle", "from memory", 2), None).unwrap();
    let sound = disk.after(Left::Nothing);
    assert_eq!(sound.bytes(log::LOG).windows(11).filter(|window| window == b"from memory").count(), 1);
}

#[tokio::test]
async fn a_full_disk_is_known_while_it_lasts_and_recovers_by_itself() {
    let sick = SickDisk::new();
    let (mesh, node) = (MeshName::default(), "a".parse().unwrap());
    let Opened { disk, .. } = Disk::open_in(Box::new(sick.clone()), &mesh, &node).unwrap();
    write(&disk, record("one", "kept", 1)).await.unwrap();
    assert!(disk.refuses().is_none());
    sick.has_room_for(10);
    let error = write(&disk, record("two", "late", 2)).await.unwrap_err();
    assert!(error.contains("make room"), "{error}");
    assert!(disk.refuses().unwrap().reason.contains("make room"));
    assert!(!disk.is_settled());
    sick.heals();
    // Whoever asks next is answered by an attempt; without anybody, the next one is a second away.
    let (done, result) = oneshot::channel();
    let waiter: Waiter = Box::new(move |result| _ = done.send(result));
    disk.submit(Vec::new(), vec![waiter]);
    result.await.unwrap().unwrap();
    assert!(disk.refuses().is_none() && disk.is_settled());
    disk.close().await;
    assert_eq!(names(&start(&sick.after(Left::Nothing)).unwrap().1.memory.records), ["one", "two"]);
}
