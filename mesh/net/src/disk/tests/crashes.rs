//! A crash at every operation, a kill at every byte, in the middle of recovery too: nothing acknowledged is lost, no
//! stamp is used twice, and every start is known for a new one.

use std::collections::BTreeSet;

use starling_core::time::HybridClock;

use super::sick::{Left, SickDisk, Trouble};
use super::*;

/// One step of a node's life with its disk.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Write these documents, together.
    Keep(&'static [&'static str]),
    /// Forget this one.
    Forget(&'static str),
    /// Note the time.
    Mark,
    /// Rewrite the log.
    Rewrite,
}

use Step::{Forget, Keep, Mark, Rewrite};

/// Everything a log can be asked for, in an order in which each step meets the leftovers of those before.
const LIFE: [Step; 11] = [
    Keep(&["one"]),
    Keep(&["two", "three"]),
    Mark,
    Keep(&["one"]),
    Forget("two"),
    Rewrite,
    Keep(&["four", "five", "one"]),
    Mark,
    Forget("five"),
    Rewrite,
    Keep(&["two"]),
];

/// What was promised and what was only tried, over all starts of a node.
#[derive(Debug, Clone)]
struct Story {
    now: WallTime,
    acknowledged: BTreeMap<Key, Option<Record>>,
    /// Handed over and not acknowledged, since the acknowledged one: any of them may be there after a crash.
    tried: BTreeMap<Key, Vec<Option<Record>>>,
    stamps: BTreeSet<Stamp>,
    /// The last start that was told it has one, and the one under way.
    incarnation: u64,
    current: u64,
    unsaved: Changes,
}

/// The wall clock of these tests stands still, but where they say otherwise: whatever must grow has to be remembered.
const NOW: WallTime = WallTime(1_000_000);

fn start(disk: &SickDisk, now: WallTime) -> Result<(Log, log::Recovered), DiskError> {
    Log::open(Box::new(disk.clone()), &MeshName::default(), &"a".parse().unwrap(), now, Arc::default())
}

impl Story {
    fn new() -> Self {
        let (acknowledged, tried) = Default::default();
        Story {
            now: NOW,
            acknowledged,
            tried,
            stamps: BTreeSet::new(),
            incarnation: 0,
            current: 0,
            unsaved: Changes::new(),
        }
    }

    /// A start of the node, if its disk lets it. What it remembers must be what was promised, or tried later.
    fn begin(&mut self, disk: &SickDisk) -> Option<(Log, HybridClock)> {
        let (log, found) = match start(disk, self.now) {
            Ok(_) if disk.is_dead() => return None,
            Ok(opened) => opened,
            Err(error) => {
                assert!(disk.is_dead(), "a disk that works is opened: {error}");
                return None;
            }
        };
        let found_now: BTreeMap<_, _> = found.memory.records.iter().map(|record| (&record.key, record)).collect();
        let keys: BTreeSet<&Key> = self.acknowledged.keys().chain(self.tried.keys()).collect();
        for key in keys {
            let found = found_now.get(key).copied();
            let promised = self.acknowledged.get(key).is_some_and(|record| record.as_ref() == found);
            let never = !self.acknowledged.contains_key(key) && found.is_none();
            let tried = self.tried.get(key).is_some_and(|tried| tried.iter().any(|record| record.as_ref() == found));
            assert!(promised || never || tried, "{key:?}: found {found:?}, promised {:?}", self.acknowledged.get(key));
        }
        assert!(found.incarnation.0 > self.incarnation, "{:?} after {}", found.incarnation, self.incarnation);
        self.current = found.incarnation.0;
        // A start whose disk takes no writes has promised nothing yet.
        if !found.problems.iter().any(|problem| matches!(problem, Problem::Unwritable { .. })) {
            self.incarnation = self.current;
        }
        Some((log, clock(&found)))
    }

    /// One step, as the disk's thread would do it: what could not be written is tried again with the next.
    fn step(&mut self, step: Step, log: &mut Log, clock: &mut HybridClock) {
        let mut mark = None;
        match step {
            Keep(names) => {
                for name in names {
                    let stamp = clock.issue(self.now);
                    assert!(self.stamps.insert(stamp.clone()), "stamp {stamp} is used twice");
                    // Ever shorter, so that leftovers of an earlier attempt stick out behind a later one.
                    let filler = "x".repeat(300_usize.saturating_sub(self.stamps.len() * 40));
                    let record = document(name, &format!("{stamp}{filler}"), stamp);
                    self.unsaved.insert(record.key.clone(), Some(record));
                }
            }
            Forget(name) => _ = self.unsaved.insert(key(name), None),
            Mark => mark = Some(self.now),
            Rewrite => _ = log.rewrite(),
        }
        for (key, record) in &self.unsaved {
            self.tried.entry(key.clone()).or_default().push(record.clone());
        }
        if log.commit(&self.unsaved, mark).is_ok() {
            self.incarnation = self.current;
            for (key, record) in std::mem::take(&mut self.unsaved) {
                self.tried.remove(&key);
                self.acknowledged.insert(key, record);
            }
        }
    }

    fn live(&mut self, disk: &SickDisk) {
        let Some((mut log, mut clock)) = self.begin(disk) else { return };
        for step in LIFE.into_iter().take_while(|_| !disk.is_dead()) {
            self.step(step, &mut log, &mut clock);
        }
    }

    /// What every crash must leave: a log that opens, remembers, can be written, and is whole at the next start.
    fn goes_on(mut self, disk: &SickDisk) {
        self.unsaved.clear();
        let (mut log, mut clock) = self.begin(disk).unwrap();
        self.step(Keep(&["after", "one"]), &mut log, &mut clock);
        assert!(self.unsaved.is_empty(), "a sound disk takes writes");
        drop(log);
        let after = disk.after(Left::Nothing);
        let (_, found) = start(&after, self.now).unwrap();
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        self.begin(&after).unwrap();
    }
}

fn clock(found: &log::Recovered) -> HybridClock {
    let skew = std::time::Duration::from_secs(5);
    HybridClock::new("a".parse().unwrap(), found.incarnation, found.memory.last_used, skew)
}

/// The lengths of the writes of a whole life, `None` for other operations.
fn operations() -> Vec<Option<usize>> {
    let seen: Arc<Mutex<Vec<Option<usize>>>> = Arc::default();
    let (disk, list) = (SickDisk::new(), seen.clone());
    disk.script(move |_, length| {
        list.lock().unwrap().push(length);
        None
    });
    Story::new().live(&disk);
    seen.lock().unwrap().clone()
}

/// A life on a disk that dies at this operation, of which so many bytes are still done.
fn life_until(number: u64, bytes: usize) -> (SickDisk, Story) {
    let disk = SickDisk::new();
    disk.script(move |at, _| (at == number).then_some(Trouble::Dies(bytes)));
    let mut story = Story::new();
    story.live(&disk);
    assert!(disk.is_dead(), "a life has operation {number}");
    (disk, story)
}

#[test]
fn a_kill_at_every_byte_of_every_write_loses_nothing_and_damages_nothing() {
    let mut kills = 0;
    for (number, length) in operations().into_iter().enumerate() {
        for bytes in 0..=length.unwrap_or(0) {
            let (disk, story) = life_until(number as u64, bytes);
            let disk = disk.after(Left::Everything);
            let (_, found) = start(&disk.after(Left::Everything), NOW).unwrap();
            let cut_short = |problem: &Problem| matches!(problem, Problem::TornTail { .. });
            assert!(found.problems.iter().all(cut_short), "operation {number}, byte {bytes}: {:?}", found.problems);
            story.goes_on(&disk);
            kills += 1;
        }
    }
    assert!(kills > 1_000, "{kills}");
}

#[test]
fn a_power_cut_at_every_operation_loses_nothing_acknowledged_whatever_survives_of_the_rest() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    for (number, length) in operations().into_iter().enumerate() {
        let (disk, story) = life_until(number as u64, length.unwrap_or(0));
        story.clone().goes_on(&disk.after(Left::Nothing));
        for variant in 0..40 {
            story.clone().goes_on(&disk.after(Left::Some(seed.wrapping_add(variant))));
        }
    }
}

#[test]
fn a_second_crash_at_every_operation_of_the_recovery_loses_nothing_either() {
    for (number, length) in operations().into_iter().enumerate() {
        // Half a write: the recovery has something to repair.
        let (disk, story) = life_until(number as u64, length.unwrap_or(0) / 2);
        for left in [Left::Everything, Left::Nothing, Left::Some(number as u64)] {
            for second in 0.. {
                let (disk, mut story) = (disk.after(left), story.clone());
                disk.script(move |at, length| (at == second).then_some(Trouble::Dies(length.unwrap_or(0) / 2)));
                story.unsaved.clear();
                story.begin(&disk);
                if !disk.is_dead() {
                    break; // the recovery has no more operations
                }
                story.clone().goes_on(&disk.after(Left::Everything));
                story.goes_on(&disk.after(Left::Nothing));
            }
        }
    }
}

#[test]
fn any_operation_may_fail_and_be_right_again_later_and_what_was_acknowledged_meanwhile_is_there() {
    use std::io::ErrorKind::{Other, ReadOnlyFilesystem, StorageFull};
    let count = operations().len() as u64;
    for (kind, part) in [(StorageFull, true), (StorageFull, false), (ReadOnlyFilesystem, false), (Other, false)] {
        for (first, length) in (0..count).flat_map(|first| [(first, 1), (first, 4)]) {
            let disk = SickDisk::new();
            disk.script(move |at, bytes| match bytes {
                // A disk that fills up takes a part of the last write.
                Some(bytes) if part && at == first => Some(Trouble::Short(bytes - 1)),
                _ if part && at == first => None,
                _ => (first..first + length + u64::from(part)).contains(&at).then_some(Trouble::Fails(kind)),
            });
            let mut story = Story::new();
            let Some((mut log, mut clock)) = story.begin(&disk) else {
                panic!("{kind:?} at {first} is no reason to stop")
            };
            for step in LIFE {
                story.step(step, &mut log, &mut clock);
                // Every promise holds from the moment it is given.
                story.clone().begin(&disk.after(Left::Nothing)).unwrap();
            }
            disk.heals();
            story.step(Mark, &mut log, &mut clock);
            assert!(story.unsaved.is_empty(), "{kind:?} at {first}: saved when the disk works again");
            story.goes_on(&disk.after(Left::Nothing));
        }
    }
}

#[test]
fn a_system_that_writes_less_than_it_is_given_is_given_the_rest() {
    let disk = SickDisk::new();
    disk.script(|_, _| Some(Trouble::Short(7)));
    let mut story = Story::new();
    story.live(&disk);
    assert!(story.tried.is_empty(), "all was acknowledged");
    story.goes_on(&disk.after(Left::Nothing));
}

#[test]
fn any_life_of_troubles_and_crashes_keeps_every_promise() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..150 {
        let (mut disk, mut story) = (SickDisk::new(), Story::new());
        for _ in 0..6 {
            let mut dice = fastrand::Rng::with_seed(random.u64(..));
            disk.script(move |_, length| match dice.u8(..60) {
                0 => Some(Trouble::Fails(std::io::ErrorKind::StorageFull)),
                1 => Some(Trouble::Fails(std::io::ErrorKind::Other)),
                2 => Some(Trouble::Dies(dice.usize(..=length.unwrap_or(0)))),
                3..10 => length.map(|length| Trouble::Short(dice.usize(1..=length))),
                _ => None,
            });
            story.live(&disk);
            // A start whose disk took no writes at all is told from the next by the clock alone.
            story.now.0 += 1;
            let left = match random.u8(..3) {
                0 => Left::Everything,
                1 => Left::Nothing,
                _ => Left::Some(random.u64(..)),
            };
            story.unsaved.clear();
            disk = disk.after(left);
        }
        story.goes_on(&disk);
    }
}
