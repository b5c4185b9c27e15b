//! The replicated store: every record this node knows, with fingerprints of every range.
//!
//! Merging is idempotent, commutative and associative, record by record, so it does not matter how records come. The
//! store does not know what the records mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::digest::{Digest, Fingerprint, ItemHash, KeyHash};
use crate::names::Names;
use crate::record::{Cell, Key, MergeError, Record};
use crate::time::HybridTime;

/// All records of a node.
#[derive(Debug, Default)]
pub struct Store {
    /// By the hash of their keys: eight bytes are compared faster than names, and repair asks by them.
    records: BTreeMap<KeyHash, Record>,
    digest: Digest,
    /// Tombstones by age, so that collecting them does not look at anything else.
    tombstones: BTreeSet<(HybridTime, KeyHash)>,
    configs: usize,
    config_bytes: usize,
    names: Names,
}

impl Store {
    /// What is known of a key.
    pub fn get(&self, key: &Key) -> Option<&Cell> {
        self.records.get(&KeyHash::of(key)).filter(|record| record.key == *key).map(|record| &record.cell)
    }

    /// The record under a key hash.
    pub fn by_hash(&self, hash: KeyHash) -> Option<&Record> {
        self.records.get(&hash)
    }

    /// Whether another key has the hash of this one. Two of 64 bits meet by chance in no mesh there will ever be, but
    /// somebody may search for two that do.
    pub fn is_taken(&self, key: &Key) -> bool {
        self.by_hash(KeyHash::of(key)).is_some_and(|record| record.key != *key)
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

    /// How many bytes all versions of all configuration documents have.
    pub fn config_bytes(&self) -> usize {
        self.config_bytes
    }

    /// All records, in order of their key hashes.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Merges a record and tells whether anything changed.
    ///
    /// # Errors
    /// [`MergeError`]; the store is then unchanged.
    pub fn merge(&mut self, mut record: Record) -> Result<bool, MergeError> {
        record.validate()?;
        let hash = KeyHash::of(&record.key);
        match self.records.get_mut(&hash) {
            Some(mine) if mine.key != record.key => return Err(MergeError::HashTaken),
            Some(mine) => {
                let tombstone = mine.cell.is_tombstone().then(|| mine.cell.latest()).flatten();
                let bytes = mine.cell.body_bytes();
                share_cell(&mut self.names, &mut record.cell);
                if !mine.cell.merge(record.cell)? {
                    return Ok(false);
                }
                self.config_bytes = self.config_bytes - bytes + mine.cell.body_bytes();
                if let Some(stamp) = tombstone {
                    self.tombstones.remove(&(stamp.time, hash));
                }
            }
            None => {
                self.configs += usize::from(matches!(record.key, Key::Config(_)));
                self.config_bytes += record.cell.body_bytes();
                share_key(&mut self.names, &mut record.key);
                share_cell(&mut self.names, &mut record.cell);
                self.records.insert(hash, record);
            }
        }
        self.index(hash);
        Ok(true)
    }

    /// Removes tombstones older than the horizon, oldest first and at most so many, and returns them.
    pub fn collect(&mut self, horizon: HybridTime, limit: usize) -> Vec<Record> {
        let mut collected = Vec::new();
        while collected.len() < limit && self.tombstones.first().is_some_and(|(time, _)| *time < horizon) {
            let Some((_, hash)) = self.tombstones.pop_first() else { break };
            self.digest.set(hash, None);
            let Some(record) = self.records.remove(&hash) else { continue };
            self.configs -= usize::from(matches!(record.key, Key::Config(_)));
            collected.push(record);
        }
        collected
    }

    /// Brings fingerprints and the tombstone index up to date with a record that has just changed.
    fn index(&mut self, hash: KeyHash) {
        let cell = &self.records[&hash].cell;
        self.digest.set(hash, Some(ItemHash::of(hash, cell)));
        if let Some(stamp) = cell.is_tombstone().then(|| cell.latest()).flatten() {
            self.tombstones.insert((stamp.time, hash));
        }
    }
}

fn share_key(names: &mut Names, key: &mut Key) {
    match key {
        Key::Instance(key) | Key::Override(key) => {
            names.share(&mut key.service.namespace);
            names.share(&mut key.service.service);
        }
        Key::Config(key) => names.share(&mut key.namespace),
    }
}

fn share_cell(names: &mut Names, cell: &mut Cell) {
    match cell {
        Cell::Instance(register) => {
            names.share(&mut register.marker.stamp.node);
            if let Some(instance) = register.val.as_mut().and_then(Arc::get_mut) {
                names.share(&mut instance.zone);
                names.share(&mut instance.version);
            }
        }
        Cell::Override(register) => names.share(&mut register.marker.node),
        Cell::Config(_) => {}
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

    #[test]
    fn a_key_whose_hash_is_taken_is_refused_and_harms_nobody() {
        let mut store = Store::default();
        let taken = instance_record("orders", "o1", "a", 10);
        let other = instance_record("orders", "o2", "a", 20);
        store.records.insert(KeyHash::of(&other.key), taken);
        assert!(store.is_taken(&other.key));
        assert_eq!(store.get(&other.key), None);
        assert_eq!(store.merge(other), Err(MergeError::HashTaken));
    }
}
