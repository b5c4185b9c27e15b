//! The replicated store: every record this node knows, with fingerprints of every range.
//!
//! Merging is idempotent, commutative and associative, record by record, so it does not matter how records come. The
//! store does not know what the records mean.
//!
//! What it holds may be a million instances, so it holds them as [`Claimed`]: one piece of memory each, which the picture
//! for readers shares. [`Record`]s, as they are sent and kept on disk, are made of that when they are asked for.

use std::collections::BTreeSet;
use std::sync::Arc;

use crdts::LWWReg;

use crate::digest::{Digest, Fingerprint, ItemHash, KeyHash};
use crate::id::InstanceKey;
use crate::names::Names;
use crate::record::{Cell, Claim, Claimed, Key, MergeError, Record, is_newer};
use crate::registry::{Instance, Override};
use crate::time::HybridTime;

/// All records of a node.
#[derive(Debug, Clone, Default)]
pub struct Store {
    records: Digest<Kept>,
    /// Tombstones by age, so that collecting them does not look at anything else.
    tombstones: BTreeSet<(HybridTime, KeyHash)>,
    /// The key hashes of all overrides. There are few, and without it every change of any instance would have to look
    /// for one among all records.
    overrides: BTreeSet<KeyHash>,
    configs: usize,
    nodes: usize,
    config_bytes: usize,
    names: Names,
}

/// A record as the store holds it.
#[derive(Debug, Clone)]
enum Kept {
    Instance(Arc<Claimed>),
    Gone(Box<Gone>),
    /// An override or a document: there are few of them.
    Other(Box<Record>),
}

/// An instance that was removed.
#[derive(Debug, Clone)]
struct Gone {
    key: InstanceKey,
    claim: Claim,
}

impl Store {
    /// What is known of a key.
    pub fn get(&self, key: &Key) -> Option<Cell> {
        self.records.get(KeyHash::of(key)).filter(|kept| kept.is_of(key)).map(Kept::cell)
    }

    /// An instance that is there.
    pub fn instance(&self, key: &InstanceKey) -> Option<&Arc<Claimed>> {
        self.instance_by_hash(KeyHash::of_instance(key)).filter(|known| known.key == *key)
    }

    /// The instance under a key hash.
    pub fn instance_by_hash(&self, hash: KeyHash) -> Option<&Arc<Claimed>> {
        match self.records.get(hash)? {
            Kept::Instance(known) => Some(known),
            _ => None,
        }
    }

    /// What operators say of an instance.
    pub fn override_of(&self, key: &InstanceKey) -> Option<&Arc<Override>> {
        if self.overrides.is_empty() {
            return None;
        }
        let hash = KeyHash::of_override(key);
        self.overrides.get(&hash)?;
        let Kept::Other(kept) = self.records.get(hash)? else { return None };
        match &**kept {
            Record { key: Key::Override(known), cell: Cell::Override(register) } if known == key => {
                register.val.as_ref()
            }
            _ => None,
        }
    }

    /// The record under a key hash.
    pub fn by_hash(&self, hash: KeyHash) -> Option<Record> {
        self.records.get(hash).map(Kept::record)
    }

    /// Whether another key has the hash of this one. Two of 64 bits meet by chance in no mesh there will ever be, but
    /// somebody may search for two that do.
    pub fn is_taken(&self, key: &Key) -> bool {
        self.records.get(KeyHash::of(key)).is_some_and(|kept| !kept.is_of(key))
    }

    /// The fingerprints of all ranges.
    pub fn digest(&self) -> &Digest<impl Sized> {
        &self.records
    }

    /// The fingerprint of everything.
    pub fn fingerprint(&self) -> Fingerprint {
        self.records.root()
    }

    /// How many configuration documents there are, deleted ones included until they are collected.
    pub fn configs(&self) -> usize {
        self.configs
    }

    /// How many records of nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// How many bytes all versions of all configuration documents have.
    pub fn config_bytes(&self) -> usize {
        self.config_bytes
    }

    /// All records, in order of their key hashes.
    pub fn iter(&self) -> impl Iterator<Item = Record> {
        self.records.records().map(Kept::record)
    }

    /// Merges a record and tells whether anything changed.
    ///
    /// # Errors
    /// [`MergeError`]; the store is then unchanged.
    pub fn merge(&mut self, record: Record) -> Result<bool, MergeError> {
        record.validate()?;
        let hash = KeyHash::of(&record.key);
        let Self { records, tombstones, overrides, configs, nodes, config_bytes, names } = self;
        if records.get(hash).is_none() {
            let kept = Kept::new(record, names);
            overrides.extend(kept.is_override().then_some(hash));
            *configs += usize::from(kept.is_config());
            *nodes += usize::from(kept.is_node());
            *config_bytes += kept.body_bytes();
            tombstones.extend(kept.tombstone().map(|time| (time, hash)));
            records.insert(hash, kept.item(hash), kept);
            return Ok(true);
        }
        records.change(hash, |kept| {
            if !kept.is_of(&record.key) {
                return Err(MergeError::HashTaken);
            }
            let (tombstone, bytes) = (kept.tombstone(), kept.body_bytes());
            if !kept.merge(record.cell, names)? {
                return Ok(None);
            }
            *config_bytes = *config_bytes - bytes + kept.body_bytes();
            if let Some(time) = tombstone {
                tombstones.remove(&(time, hash));
            }
            tombstones.extend(kept.tombstone().map(|time| (time, hash)));
            Ok(Some(kept.item(hash)))
        })
    }

    /// Removes tombstones older than the horizon, oldest first and at most so many, and returns them.
    pub fn collect(&mut self, horizon: HybridTime, limit: usize) -> Vec<Record> {
        let mut collected = Vec::new();
        while collected.len() < limit && self.tombstones.first().is_some_and(|(time, _)| *time < horizon) {
            let Some((_, hash)) = self.tombstones.pop_first() else { break };
            let Some(kept) = self.records.remove(hash) else { continue };
            self.overrides.remove(&hash);
            self.configs -= usize::from(kept.is_config());
            self.nodes -= usize::from(kept.is_node());
            collected.push(kept.record());
        }
        collected
    }
}

impl Kept {
    /// A record nothing was known of.
    fn new(record: Record, names: &mut Names) -> Self {
        match record {
            Record { key: Key::Instance(mut key), cell: Cell::Instance(LWWReg { val, marker }) } => {
                share_key(names, &mut key);
                Self::last_write(key, val.as_deref(), marker, names)
            }
            mut other => {
                match &mut other.key {
                    Key::Instance(key) | Key::Override(key) => share_key(names, key),
                    Key::Config(key) => names.share(&mut key.namespace),
                    Key::Node(node) => names.share(node),
                }
                share_facts(names, &mut other.cell);
                Kept::Other(Box::new(other))
            }
        }
    }

    fn last_write(key: InstanceKey, value: Option<&Instance>, mut claim: Claim, names: &mut Names) -> Self {
        names.share(&mut claim.stamp.node);
        let Some(mut instance) = value.cloned() else { return Kept::Gone(Box::new(Gone { key, claim })) };
        names.share(&mut instance.zone);
        names.share(&mut instance.version);
        Kept::Instance(Arc::new(Claimed { key, claim, instance }))
    }

    /// Merges a cell of the same key; see [`Cell::merge`].
    fn merge(&mut self, cell: Cell, names: &mut Names) -> Result<bool, MergeError> {
        let (key, mine, instance) = match self {
            Kept::Other(kept) => return kept.cell.merge(cell),
            Kept::Instance(known) => (&known.key, &known.claim, Some(&known.instance)),
            Kept::Gone(gone) => (&gone.key, &gone.claim, None),
        };
        let Cell::Instance(LWWReg { val, marker }) = cell else { return Err(MergeError::Kind) };
        let newer = is_newer(mine, &marker, || val.as_deref() == instance)?;
        if newer {
            *self = Self::last_write(key.clone(), val.as_deref(), marker, names);
        }
        Ok(newer)
    }

    fn is_of(&self, key: &Key) -> bool {
        match (self, key) {
            (Kept::Instance(known), Key::Instance(key)) => known.key == *key,
            (Kept::Gone(gone), Key::Instance(key)) => gone.key == *key,
            (Kept::Other(kept), key) => kept.key == *key,
            _ => false,
        }
    }

    fn is_node(&self) -> bool {
        matches!(self, Kept::Other(kept) if matches!(kept.key, Key::Node(_)))
    }

    fn is_config(&self) -> bool {
        matches!(self, Kept::Other(kept) if matches!(kept.key, Key::Config(_)))
    }

    fn is_override(&self) -> bool {
        matches!(self, Kept::Other(kept) if matches!(kept.key, Key::Override(_)))
    }

    fn key(&self) -> Key {
        match self {
            Kept::Instance(known) => Key::Instance(known.key.clone()),
            Kept::Gone(gone) => Key::Instance(gone.key.clone()),
            Kept::Other(kept) => kept.key.clone(),
        }
    }

    fn cell(&self) -> Cell {
        match self {
            Kept::Instance(known) => Cell::from(&**known),
            Kept::Gone(gone) => Cell::Instance(LWWReg { val: None, marker: gone.claim.clone() }),
            Kept::Other(kept) => kept.cell.clone(),
        }
    }

    fn record(&self) -> Record {
        Record { key: self.key(), cell: self.cell() }
    }

    fn item(&self, hash: KeyHash) -> ItemHash {
        match self {
            Kept::Instance(known) => ItemHash::of(hash, [&known.claim.stamp]),
            Kept::Gone(gone) => ItemHash::of(hash, [&gone.claim.stamp]),
            Kept::Other(kept) => ItemHash::of(hash, &kept.cell.stamps()),
        }
    }

    /// When it was written, if it says only that something is gone.
    fn tombstone(&self) -> Option<HybridTime> {
        match self {
            Kept::Instance(_) => None,
            Kept::Gone(gone) => Some(gone.claim.stamp.time),
            Kept::Other(kept) => kept.cell.is_tombstone().then(|| kept.cell.latest())?.map(|stamp| stamp.time),
        }
    }

    /// How many bytes of documents it holds, in all versions.
    fn body_bytes(&self) -> usize {
        match self {
            Kept::Other(kept) => kept.cell.body_bytes(),
            _ => 0,
        }
    }
}

fn share_facts(names: &mut Names, cell: &mut Cell) {
    let Cell::Node(register) = cell else { return };
    names.share(&mut register.marker.stamp.node);
    if let Some(node) = Arc::get_mut(&mut register.val) {
        names.share(&mut node.facts.zone);
        names.share(&mut node.facts.region);
        names.share(&mut node.facts.cell);
    }
}

fn share_key(names: &mut Names, key: &mut InstanceKey) {
    names.share(&mut key.service.namespace);
    names.share(&mut key.service.service);
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
        let kept = Kept::new(taken, &mut store.names);
        store.records.insert(KeyHash::of(&other.key), ItemHash(1), kept);
        assert!(store.is_taken(&other.key));
        assert_eq!(store.get(&other.key), None);
        assert_eq!(store.merge(other), Err(MergeError::HashTaken));
    }
}
