//! What is known to be dead after its tombstone is gone.
//!
//! A tombstone must be replicated until everybody has it, so it counts in fingerprints and costs as much as a record.
//! After the horizon it is collected. A peer that was away for longer still holds what it killed, and offers it: if the
//! rest has forgotten why it was gone, the dead rise; if the rest merely refuses whatever is old, what was never deleted
//! is lost, and the two never agree. (Solana's cluster had to learn to record what it had purged, since its peers' pulls
//! brought it back.)
//!
//! So a collected tombstone is not thrown away but buried: kept under the hash of its key, not replicated, not counted,
//! for much longer than the horizon. Whoever is offered a record merges it with the grave, as it would have with the
//! tombstone. If nothing new comes out, the record is dead, *exactly* when the tombstone would have beaten it, and the
//! tombstone itself is the answer: the peer that was away merges it, passes it on to those it has told meanwhile, and
//! buries it too. No new stamp is written for that, so nothing that was written elsewhere in the meantime can lose
//! against it. A record that is merely old, and anything written since or never seen by whoever deleted, is taken as ever.
//!
//! Graves of what a node keeps on disk (documents, overrides, instances of its own) stay on its disk. Beyond the end of a
//! grave, or when there are more than there may be (the oldest go first, counted), a peer that comes back after all that
//! time does raise what was deleted: somebody has to delete it once more.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::KeyHash;
use crate::record::{Cell, Key, MergeError, Record};
use crate::time::HybridTime;

/// Tombstones that are no longer in the store.
#[derive(Debug, Clone)]
pub struct Graveyard {
    graves: BTreeMap<KeyHash, Grave>,
    /// By the time of the tombstone, so that the oldest are found at once.
    by_age: BTreeSet<(HybridTime, KeyHash)>,
    limit: usize,
}

#[derive(Debug, Clone)]
struct Grave {
    cell: Cell,
    died: HybridTime,
    /// Of what is on disk, and must be taken off it at the end.
    on_disk: Option<Box<Key>>,
}

/// What a graveyard says of a record.
#[derive(Debug, PartialEq)]
pub enum Offered {
    /// There is no grave, or the record says something it does not: this is what both say together.
    Alive(Record),
    /// The tombstone that beats it.
    Dead(Record),
}

impl Graveyard {
    /// An empty one for at most so many graves.
    pub fn new(limit: usize) -> Self {
        Self { graves: BTreeMap::new(), by_age: BTreeSet::new(), limit }
    }

    /// How many graves there are.
    pub fn len(&self) -> usize {
        self.graves.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.graves.is_empty()
    }

    /// What is buried under a key.
    pub fn cell(&self, key: &Key) -> Option<&Cell> {
        self.graves.get(&KeyHash::of(key)).map(|grave| &grave.cell)
    }

    /// Buries a tombstone. `on_disk`: the disk has it, and shall keep it as long as the grave lasts.
    pub fn bury(&mut self, tombstone: Record, on_disk: bool) {
        debug_assert!(tombstone.cell.is_tombstone(), "the living are not buried");
        let Some(stamp) = tombstone.cell.latest() else { return };
        let hash = KeyHash::of(&tombstone.key);
        self.dig_up(hash);
        let grave = Grave { cell: tombstone.cell, died: stamp.time, on_disk: on_disk.then(|| Box::new(tombstone.key)) };
        self.by_age.insert((grave.died, hash));
        self.graves.insert(hash, grave);
    }

    /// There is a record again.
    pub fn dig_up(&mut self, hash: KeyHash) {
        if let Some(grave) = self.graves.remove(&hash) {
            self.by_age.remove(&(grave.died, hash));
        }
    }

    /// Judges what a peer offers, for a key that has no record.
    ///
    /// # Errors
    /// [`MergeError`] when it does not fit.
    pub fn judge(&self, record: Record) -> Result<Offered, MergeError> {
        if self.is_empty() {
            return Ok(Offered::Alive(record));
        }
        let Some(grave) = self.graves.get(&KeyHash::of(&record.key)) else { return Ok(Offered::Alive(record)) };
        record.validate()?;
        let mut both = grave.cell.clone();
        let says_more = both.merge(record.cell)?;
        let cell = if says_more { both } else { grave.cell.clone() };
        let merged = Record { key: record.key, cell };
        Ok(if says_more { Offered::Alive(merged) } else { Offered::Dead(merged) })
    }

    /// Removes graves of what died before this, and the oldest of those that are too many; at most `at_once`. Returns
    /// the keys that need no longer be on disk, how many were removed in all, and how many of them before their time.
    pub fn level(&mut self, before: HybridTime, at_once: usize) -> Levelled {
        let mut levelled = Levelled::default();
        while levelled.graves < at_once
            && let Some((died, hash)) = self.by_age.first().copied()
            && (died < before || self.graves.len() > self.limit)
        {
            self.by_age.pop_first();
            levelled.graves += 1;
            levelled.too_many += usize::from(died >= before);
            levelled.off_disk.extend(self.graves.remove(&hash).and_then(|grave| grave.on_disk).map(|key| *key));
        }
        levelled
    }
}

/// What [`Graveyard::level`] did.
#[derive(Debug, Default)]
pub struct Levelled {
    /// Graves removed.
    pub graves: usize,
    /// Those of them that were removed before their time, since there were too many.
    pub too_many: usize,
    /// What need no longer be on disk.
    pub off_disk: Vec<Key>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Version;
    use crate::id::ConfigKey;
    use crate::testing::{instance_record, stamp, tombstone_record};

    fn grave(time: u64) -> Graveyard {
        let mut graveyard = Graveyard::new(9);
        graveyard.bury(tombstone_record("orders", "o1", "a", time), false);
        graveyard
    }

    fn document(seen: Option<&Cell>, writer: &str, time: u64, body: Option<&str>) -> Record {
        let name: ConfigKey =
            ConfigKey { namespace: Default::default(), group: Default::default(), key: "limits".parse().unwrap() };
        let version = Version {
            stamp: stamp(writer, time),
            body: body.map(Into::into),
            format: String::new(),
            author: String::new(),
            comment: String::new(),
        };
        Record { key: Key::Config(name), cell: Cell::config_write(seen, version) }
    }

    #[test]
    fn what_the_tombstone_beat_is_dead_and_what_was_written_since_is_not() {
        let graveyard = grave(20);
        let dead = graveyard.judge(instance_record("orders", "o1", "b", 10)).unwrap();
        assert_eq!(dead, Offered::Dead(tombstone_record("orders", "o1", "a", 20)));
        let newer = instance_record("orders", "o1", "b", 30);
        assert_eq!(graveyard.judge(newer.clone()), Ok(Offered::Alive(newer)));
        let other = instance_record("orders", "o2", "b", 10);
        assert_eq!(graveyard.judge(other.clone()), Ok(Offered::Alive(other)), "old, but never deleted");
    }

    #[test]
    fn a_document_deleted_is_dead_and_an_edit_its_deleter_had_not_seen_is_alive() {
        let written = document(None, "a", 10, Some("one"));
        let deleted = document(Some(&written.cell), "b", 20, None);
        let unseen = document(Some(&written.cell), "c", 15, Some("two"));
        let mut graveyard = Graveyard::new(9);
        graveyard.bury(deleted.clone(), true);
        assert_eq!(graveyard.judge(written), Ok(Offered::Dead(deleted)));
        let Ok(Offered::Alive(both)) = graveyard.judge(unseen) else { panic!("an edit beats a deletion") };
        let versions = both.cell.stamps();
        assert_eq!(versions, [stamp("c", 15), stamp("b", 20)], "and what both had seen stays dead");
    }

    #[test]
    fn graves_last_their_time_and_are_not_too_many() {
        let mut graveyard = Graveyard::new(3);
        for number in 0..6 {
            graveyard.bury(tombstone_record("orders", &format!("o{number}"), "a", 10 + number), number % 2 == 0);
        }
        let levelled = graveyard.level(HybridTime(11), 100);
        assert_eq!((levelled.graves, levelled.too_many, levelled.off_disk.len()), (3, 2, 2));
        assert_eq!(graveyard.level(HybridTime(14), 1).graves, 1, "at most so many at once");
        assert_eq!(graveyard.level(HybridTime(100), 100).graves, 2);
        assert!(graveyard.is_empty() && graveyard.by_age.is_empty());
    }

    #[test]
    fn who_is_buried_twice_has_one_grave() {
        let mut graveyard = grave(20);
        graveyard.bury(tombstone_record("orders", "o1", "b", 40), false);
        assert_eq!((graveyard.len(), graveyard.by_age.len()), (1, 1));
        graveyard.dig_up(KeyHash::of(&tombstone_record("orders", "o1", "b", 40).key));
        assert!(graveyard.is_empty() && graveyard.by_age.is_empty());
    }
}
