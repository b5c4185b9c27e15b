//! The spool on a disk that dies, fails and forgets: what was acknowledged is found again, until it is done.

use std::io::ErrorKind;

use super::sick::{Left, SickDisk, Trouble};
use super::*;
use crate::disk::spool::{Book, Change, FILE, Parcel, Spool};

fn parcel(id: u64) -> Arc<Parcel> {
    let service = starling_core::id::ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() };
    let (queued, expires) = (WallTime(id), WallTime(id + 1_000));
    let head = format!("POST /{id} HTTP/1.1\r\n\r\n").into_bytes();
    Arc::new(Parcel { id, service, queued, expires, head, body: vec![b'x'; 20 + id as usize] })
}

fn put(id: u64) -> Change {
    Change::Put(parcel(id))
}

fn open(disk: &SickDisk) -> (Book, Vec<String>) {
    Book::open(Box::new(disk.clone()))
}

fn found(disk: &SickDisk) -> Vec<u64> {
    let (book, _) = open(disk);
    book.live()
        .map(|found| {
            assert_eq!(**found, *parcel(found.id), "what is found is what was put");
            found.id
        })
        .collect()
}

/// A life of a spool: changes that are written together.
fn life() -> Vec<Vec<Change>> {
    vec![vec![put(1)], vec![put(2), put(3), Change::Done(1)], vec![Change::Done(3)], vec![put(4)], vec![put(5)]]
}

/// What must be there and what may be, of all that was asked of a spool so far.
#[derive(Default)]
struct Promised {
    acknowledged: Vec<u64>,
    may_be: Vec<u64>,
}

impl Promised {
    fn note(&mut self, changes: &[Change], written: bool) {
        for change in changes {
            match change {
                Change::Put(parcel) if written => self.acknowledged.push(parcel.id),
                Change::Put(parcel) => self.may_be.push(parcel.id),
                Change::Done(id) => {
                    self.acknowledged.retain(|known| known != id);
                    if !written {
                        self.may_be.push(*id);
                    }
                }
            }
        }
    }

    fn holds(&self, found: &[u64], when: &str) {
        for id in &self.acknowledged {
            assert!(found.contains(id), "{when}: {id} was acknowledged, found are {found:?}");
        }
        for id in found {
            let known = self.acknowledged.contains(id) || self.may_be.contains(id);
            assert!(known, "{when}: {id} was done, found are {found:?}");
        }
        assert!(found.is_sorted(), "{when}: {found:?}");
    }
}

fn live(disk: &SickDisk) -> Promised {
    let (mut book, _) = open(disk);
    let mut promised = Promised::default();
    for changes in life() {
        let written = book.commit(&changes);
        promised.note(&changes, written.is_ok());
    }
    promised
}

/// The operations of a life, each with its length if it is a write.
fn operations() -> Vec<Option<usize>> {
    let (disk, seen) = (SickDisk::new(), Arc::new(Mutex::new(Vec::new())));
    let seen_too = seen.clone();
    disk.script(move |_, length| {
        seen_too.lock().unwrap().push(length);
        None
    });
    live(&disk);
    let seen = seen.lock().unwrap().clone();
    assert!(seen.len() > 10, "{seen:?}");
    seen
}

#[test]
fn what_was_put_is_found_in_its_order_until_it_is_done() {
    let disk = SickDisk::new();
    live(&disk);
    assert_eq!(found(&disk), [2, 4, 5]);
    assert_eq!(found(&disk.after(Left::Nothing)), [2, 4, 5]);
}

#[test]
fn a_death_at_any_operation_and_byte_loses_nothing_that_was_acknowledged() {
    let mut deaths = 0;
    for (at, length) in operations().into_iter().enumerate() {
        for bytes in 0..=length.unwrap_or(0) {
            let disk = SickDisk::new();
            disk.script(move |number, _| (number == at as u64).then_some(Trouble::Dies(bytes)));
            let promised = live(&disk);
            for left in [Left::Everything, Left::Nothing, Left::Some(at as u64), Left::Some(bytes as u64 + 77)] {
                let when = format!("dead at operation {at}, byte {bytes}, {left:?}");
                let after = disk.after(left);
                promised.holds(&found(&after), &when);
                // And it goes on from there.
                let (mut book, _) = open(&after);
                book.commit(&[put(9)]).unwrap();
                assert!(found(&after.after(Left::Nothing)).contains(&9), "{when}");
                deaths += 1;
            }
        }
    }
    assert!(deaths > 500, "{deaths}");
}

#[test]
fn a_failure_of_any_operation_is_told_and_heals_with_the_disk() {
    for at in 0..operations().len() as u64 {
        for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
            let disk = SickDisk::new();
            disk.script(move |number, _| (number == at).then_some(Trouble::Fails(kind)));
            let promised = live(&disk);
            let when = format!("{kind:?} at operation {at}");
            promised.holds(&found(&disk.after(Left::Nothing)), &when);
            promised.holds(&found(&disk), &when);
        }
    }
    let disk = SickDisk::new();
    let (mut book, _) = open(&disk);
    book.commit(&[put(1)]).unwrap();
    disk.script(|_, _| Some(Trouble::Fails(ErrorKind::StorageFull)));
    assert!(book.commit(&[put(2)]).unwrap_err().contains("make room"));
    disk.heals();
    book.commit(&[put(3)]).unwrap();
    assert_eq!(found(&disk.after(Left::Nothing)), [1, 3], "what was refused is not sent later");
}

#[test]
fn any_flipped_bit_costs_one_parcel_at_most_and_is_told() {
    let disk = SickDisk::new();
    let (mut book, _) = open(&disk);
    for id in 1..=3 {
        book.commit(&[put(id)]).unwrap();
    }
    let sound = disk.bytes(FILE);
    for bit in 8 * 8..sound.len() * 8 {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let damaged = SickDisk::new();
        write_raw(&damaged, &bytes);
        let (mut book, problems) = open(&damaged);
        assert_eq!((book.live().count(), problems.len()), (2, 1), "bit {bit}: {problems:?}");
        book.commit(&[put(4)]).unwrap();
        let (book, problems) = open(&damaged);
        assert_eq!((book.live().count(), problems.len()), (3, 0), "bit {bit}: it was written anew: {problems:?}");
    }
}

fn write_raw(disk: &SickDisk, bytes: &[u8]) {
    use crate::disk::layer::{Directory, Open};
    let mut file = disk.open(FILE, Open::OrCreate).unwrap();
    crate::disk::layer::write_all_at(&mut *file, 0, bytes).unwrap();
}

#[test]
fn any_bytes_can_be_read_without_a_panic_and_what_is_not_ours_is_left_alone() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = SickDisk::new();
    live(&disk);
    for _ in 0..300 {
        let mut bytes = disk.bytes(FILE);
        for _ in 0..random.usize(1..40) {
            let at = random.usize(8..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(..=bytes.len()));
        let damaged = SickDisk::new();
        write_raw(&damaged, &bytes);
        assert!(open(&damaged).0.live().count() <= 5);
    }
    let foreign = SickDisk::new();
    write_raw(&foreign, b"somebody's letters");
    let (mut book, problems) = open(&foreign);
    assert!(problems[0].contains("move it away"), "{problems:?}");
    assert!(book.commit(&[put(1)]).unwrap_err().contains("move it away"));
    assert_eq!(foreign.bytes(FILE), b"somebody's letters");
}

#[test]
fn what_is_done_takes_no_room_for_long() {
    let disk = SickDisk::new();
    let (mut book, _) = open(&disk);
    let large = |id: u64| Change::Put(Arc::new(Parcel { body: vec![0; 100_000], ..(*parcel(id)).clone() }));
    for id in 1..=60 {
        book.commit(&[large(id), Change::Done(id.saturating_sub(1))]).unwrap();
    }
    assert!(disk.bytes(FILE).len() < 1_300_000, "{}", disk.bytes(FILE).len());
    assert_eq!(open(&disk).0.live().map(|parcel| parcel.id).collect::<Vec<_>>(), [60]);
}

#[tokio::test]
async fn a_spool_of_a_real_directory_is_found_again_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, found) = Spool::open(dir.path()).unwrap();
    assert!(found.is_empty());
    let written = put_all(&spool, 1..=20).await;
    assert!(written.iter().all(Result::is_ok), "{written:?}");
    spool.done(3);
    spool.close();
    assert_eq!(spool.put(parcel(21)).await, Err("the node is stopping".into()));
    let (_spool, found) = Spool::open(dir.path()).unwrap();
    let ids: Vec<u64> = found.iter().map(|parcel| parcel.id).collect();
    assert_eq!(ids, (1..=20).filter(|id| *id != 3).collect::<Vec<_>>());
}

/// What became of parcels that were put one after the other.
async fn put_all(spool: &Spool, ids: std::ops::RangeInclusive<u64>) -> Vec<Result<(), String>> {
    let mut written = Vec::new();
    for id in ids {
        written.push(spool.put(parcel(id)).await);
    }
    written
}
