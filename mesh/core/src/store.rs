//! The replicated store: every record this node knows, with fingerprints of every range.
//!
//! Merging is idempotent, commutative and associative, record by record, so it does not matter how records come. The
//! store does not know what the records mean.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::{Digest, Fingerprint, ItemHash, KeyHash};
use crate::record::{Cell, Key, MergeError, Record};
use crate::time::HybridTime;

/// All records of a node.
#[derive(Debug, Default)]
pub struct Store {
    cells: BTreeMap<Key, Cell>,
    keys: BTreeMap<KeyHash, Key>,
    digest: Digest,
    /// Tombstones by age, so that collecting them does not look at anything else.
    tombstones: BTreeSet<(HybridTime, Key)>,
    configs: usize,
}

impl Store {
    /// What is known of a key.
    pub fn get(&self, key: &Key) -> Option<&Cell> {
        self.cells.get(key)
    }

    /// The record under a key hash, as repair asks for it.
    pub fn by_hash(&self, hash: KeyHash) -> Option<Record> {
        let key = self.keys.get(&hash)?;
        Some(Record { key: key.clone(), cell: self.cells.get(key)?.clone() })
    }

    /// The fingerprints of all ranges.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The fingerprint of everything.
    pub fn fingerprint(&self) -> Fingerprint {
        self.digest.root()
    }

    /// How many configuration documents there are, deleted ones included until they are collected.
    pub fn configs(&self) -> usize {
        self.configs
    }

    /// All records, in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Cell)> {
        self.cells.iter()
    }

    /// Merges a record and tells whether anything changed.
    ///
    /// # Errors
    /// [`MergeError`]; the store is then unchanged.
    pub fn merge(&mut self, record: Record) -> Result<bool, MergeError> {
        record.validate()?;
        let Record { key, cell } = record;
        match self.cells.get_mut(&key) {
            Some(mine) => {
                let tombstone = mine.is_tombstone().then(|| mine.latest()).flatten();
                if !mine.merge(cell)? {
                    return Ok(false);
                }
                if let Some(stamp) = tombstone {
                    self.tombstones.remove(&(stamp.time, key.clone()));
                }
            }
            None => {
                self.configs += usize::from(matches!(key, Key::Config(_)));
                self.cells.insert(key.clone(), cell);
            }
        }
        self.index(key);
        Ok(true)
    }

    /// Removes tombstones older than the horizon, oldest first and at most so many, and returns their keys.
    pub fn collect(&mut self, horizon: HybridTime, limit: usize) -> Vec<Key> {
        let mut collected = Vec::new();
        while collected.len() < limit && self.tombstones.first().is_some_and(|(time, _)| *time < horizon) {
            let Some((_, key)) = self.tombstones.pop_first() else { break };
            let hash = KeyHash::of(&key);
            self.digest.set(hash, None);
            self.keys.remove(&hash);
            self.cells.remove(&key);
            self.configs -= usize::from(matches!(key, Key::Config(_)));
            collected.push(key);
        }
        collected
    }

    /// Brings fingerprints and the tombstone index up to date with a cell that has just changed.
    fn index(&mut self, key: Key) {
        let cell = &self.cells[&key];
        let hash = KeyHash::of(&key);
        self.digest.set(hash, Some(ItemHash::of(hash, cell)));
        if let Some(stamp) = cell.is_tombstone().then(|| cell.latest()).flatten() {
            self.tombstones.insert((stamp.time, key.clone()));
        }
        self.keys.insert(hash, key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{instance_record, tombstone_record};

    #[test]
    fn a_tombstone_is_collected_only_after_the_horizon() {
        let mut store = Store::default();
        store.merge(instance_record("orders", "o1", "a", 10)).unwrap();
        store.merge(tombstone_record("orders", "o1", "a", 20)).unwrap();
        assert!(store.collect(HybridTime(20), 9).is_empty());
        assert_eq!(store.collect(HybridTime(21), 9).len(), 1);
        assert_eq!(store.fingerprint(), Fingerprint::default());
    }

    #[test]
    fn a_tombstone_that_was_written_over_is_not_collected() {
        let mut store = Store::default();
        store.merge(tombstone_record("orders", "o1", "a", 20)).unwrap();
        store.merge(instance_record("orders", "o1", "b", 30)).unwrap();
        assert!(store.collect(HybridTime(100), 9).is_empty());
        assert_eq!(store.fingerprint().count, 1);
    }
}
