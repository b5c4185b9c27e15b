//! Fingerprints of the store, kept incrementally, and the ranges repair compares.
//!
//! Every record has a *key hash* (where it stands) and an *item hash* (key and stamps: what it says). A range is all key
//! hashes that share a prefix; its fingerprint is the count and wrapping sum of the item hashes in it. Sums do not
//! depend on order and change in O(1) per record and level, so equal stores are recognised by 16 bytes and a
//! difference is found by descending sixteen ways at a time (range-based set reconciliation, Meyer, arXiv:2212.13567).
//!
//! The sums are not safe against somebody who makes collisions on purpose; peers are authenticated by certificate.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::id::{ConfigKey, InstanceKey};
use crate::record::Key;
use crate::time::Stamp;

/// Where a record stands in the digest: a hash of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyHash(pub u64);

/// What a record says: a hash of its key and its cell's stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemHash(pub u64);

impl KeyHash {
    /// The hash of a key; the same on every machine and version.
    pub fn of(key: &Key) -> Self {
        match key {
            Key::Instance(key) => Self::of_instance(key),
            Key::Override(key) => Self::of_override(key),
            Key::Config(ConfigKey { namespace, group, key }) => {
                Self::of_parts(CONFIG, [namespace.as_str(), group.as_str(), key.as_str()])
            }
            Key::Node(node) => Self::of_parts(NODE, [node.as_str(), "", ""]),
        }
    }

    /// The hash of [`Key::Instance`].
    pub fn of_instance(InstanceKey { service, instance }: &InstanceKey) -> Self {
        Self::of_parts(INSTANCE, [service.namespace.as_str(), service.service.as_str(), instance.as_str()])
    }

    /// The hash of [`Key::Override`].
    pub fn of_override(InstanceKey { service, instance }: &InstanceKey) -> Self {
        Self::of_parts(OVERRIDE, [service.namespace.as_str(), service.service.as_str(), instance.as_str()])
    }

    fn of_parts(kind: u8, parts: [&str; 3]) -> Self {
        let mut text = Scratch::new(kind);
        for part in parts {
            text.put(part.as_bytes());
            text.put(&[0]); // no name contains it
        }
        Self(xxh3_64(text.bytes()))
    }
}

/// What tells keys of different kinds apart in their hashes.
const INSTANCE: u8 = 1;
const OVERRIDE: u8 = 2;
const CONFIG: u8 = 3;
const NODE: u8 = 4;

/// Bytes to be hashed, beside the heap: hashing happens several times per record that comes in.
struct Scratch {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl Scratch {
    /// More than the longest key takes: a config key has up to 63 + 128 + 256 bytes.
    const MAX: usize = 512;

    fn new(first: u8) -> Self {
        let mut bytes = [0; Self::MAX];
        bytes[0] = first;
        Self { bytes, len: 1 }
    }

    fn put(&mut self, more: &[u8]) {
        self.bytes[self.len..][..more.len()].copy_from_slice(more);
        self.len += more.len();
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl ItemHash {
    /// The hash of what a record says. Stamps name values, so the values themselves need not be hashed (and must not:
    /// equal CRDTs may be encoded differently).
    pub fn of<'a>(key: KeyHash, stamps: impl IntoIterator<Item = &'a Stamp>) -> Self {
        // A cell of many versions has many stamps: each is hashed into the next.
        let hash = stamps.into_iter().fold(key.0, |seed, Stamp { time, node }| {
            let mut text = Scratch::new(0);
            text.put(&time.0.to_le_bytes());
            text.put(node.as_str().as_bytes());
            xxh3_64_with_seed(text.bytes(), seed)
        });
        Self(hash)
    }
}

impl ItemHash {
    /// Four bytes of it, see [`Fingerprint::salted`].
    pub fn salted(self, salt: u32) -> u32 {
        Fingerprint { count: 1, sum: self.0 }.salted(salt)
    }
}

/// The content of a range, or of a whole store, in 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Fingerprint {
    /// How many records.
    pub count: u64,
    /// The wrapping sum of their item hashes.
    pub sum: u64,
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}/{}", self.sum, self.count)
    }
}

impl Fingerprint {
    /// Four bytes of it, other ones with each salt: different contents look alike once in four thousand million times.
    pub fn salted(self, salt: u32) -> u32 {
        let odd = u64::from(salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        ((self.sum ^ self.count.rotate_left(32)).wrapping_mul(odd) >> 32) as u32
    }

    fn add(&mut self, item: ItemHash) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(item.0);
    }

    fn remove(&mut self, item: ItemHash) {
        self.count -= 1;
        self.sum = self.sum.wrapping_sub(item.0);
    }
}

/// A range of key hashes: all that begin with the same bits, four bits a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    bits: u64,
    levels: u8,
}

impl Prefix {
    /// Everything.
    pub const ROOT: Prefix = Prefix { bits: 0, levels: 0 };
    /// The deepest prefix: one key hash.
    pub const MAX_LEVELS: u8 = 16;

    /// The sixteen ranges this one is made of; none at the deepest level.
    pub fn children(self) -> impl Iterator<Item = Prefix> {
        let levels = self.levels + 1;
        let count = if self.levels >= Self::MAX_LEVELS { 0 } else { 16u64 };
        (0..count).map(move |child| Prefix { bits: self.bits | (child << (64 - 4 * u32::from(levels))), levels })
    }

    /// Whether a key hash lies in the range.
    pub fn contains(self, key: KeyHash) -> bool {
        key.0 & self.mask() == self.bits
    }

    /// The last key hash in the range.
    pub fn last(self) -> KeyHash {
        KeyHash(self.bits | !self.mask())
    }

    /// Its bits and how many levels of four of them count: what the wire carries.
    pub(crate) fn to_parts(self) -> (u64, u8) {
        (self.bits, self.levels)
    }

    /// What [`Self::to_parts`] gave; nothing else, whatever comes from the wire.
    pub(crate) fn from_parts(bits: u64, levels: u8) -> Option<Self> {
        let prefix = Self { bits, levels };
        (levels <= Self::MAX_LEVELS && bits & !prefix.mask() == 0).then_some(prefix)
    }

    fn mask(self) -> u64 {
        match self.levels {
            0 => 0,
            levels => u64::MAX << (64 - 4 * u32::from(levels.min(Self::MAX_LEVELS))),
        }
    }
}

/// How many entries a leaf holds before it is split. Its parts hold eight each then, so that what every leaf costs
/// besides its entries stays small at any size of the store.
const LEAF_MAX: usize = 128;
/// By how many entries a leaf grows: doubling would leave a third of a large store's memory unused.
const LEAF_STEP: usize = 4;

/// The records of a store with the fingerprints of all their ranges: a hash trie, sixteen ways, whose inner nodes hold
/// sums. Memory follows the number of records, not the depth of the hash; one way down finds the record and everything
/// that must change with it.
#[derive(Debug, Clone)]
pub struct Digest<R> {
    root: Trie<R>,
}

#[derive(Debug, Clone)]
struct Entry<R> {
    key: KeyHash,
    item: ItemHash,
    record: R,
}

impl<R> Entry<R> {
    fn hashes(&self) -> (KeyHash, ItemHash) {
        (self.key, self.item)
    }
}

#[derive(Debug, Clone)]
struct Trie<R> {
    fingerprint: Fingerprint,
    node: TrieNode<R>,
}

#[derive(Debug, Clone)]
enum TrieNode<R> {
    Leaf(Vec<Entry<R>>),
    Inner(Box<[Trie<R>; 16]>),
}

impl<R> Default for Trie<R> {
    fn default() -> Self {
        Self { fingerprint: Fingerprint::default(), node: TrieNode::Leaf(Vec::new()) }
    }
}

impl<R> Default for Digest<R> {
    fn default() -> Self {
        Self { root: Trie::default() }
    }
}

fn slot(key: KeyHash, level: u8) -> usize {
    ((key.0 >> (60 - 4 * u32::from(level))) & 0xf) as usize
}

fn seat<R>(entries: &[Entry<R>], key: KeyHash) -> Result<usize, usize> {
    entries.binary_search_by_key(&key, |entry| entry.key)
}

impl<R> Trie<R> {
    fn insert(&mut self, entry: Entry<R>, level: u8) -> Option<Entry<R>> {
        let item = entry.item;
        let old = match &mut self.node {
            TrieNode::Inner(children) => children[slot(entry.key, level)].insert(entry, level + 1),
            TrieNode::Leaf(entries) => match seat(entries, entry.key) {
                Ok(at) => Some(std::mem::replace(&mut entries[at], entry)),
                Err(at) => {
                    if entries.len() == entries.capacity() {
                        entries.reserve_exact(LEAF_STEP);
                    }
                    entries.insert(at, entry);
                    None
                }
            },
        };
        if let Some(old) = &old {
            self.fingerprint.remove(old.item);
        }
        self.fingerprint.add(item);
        self.split_if_full(level);
        old
    }

    fn remove(&mut self, key: KeyHash, level: u8) -> Option<Entry<R>> {
        let old = match &mut self.node {
            TrieNode::Inner(children) => children[slot(key, level)].remove(key, level + 1)?,
            TrieNode::Leaf(entries) => {
                let at = seat(entries, key).ok()?;
                let old = entries.remove(at);
                if entries.len() + 2 * LEAF_STEP <= entries.capacity() {
                    entries.shrink_to(entries.len() + LEAF_STEP);
                }
                old
            }
        };
        self.fingerprint.remove(old.item);
        self.fold_if_small();
        Some(old)
    }

    fn split_if_full(&mut self, level: u8) {
        let TrieNode::Leaf(entries) = &mut self.node else { return };
        if entries.len() <= LEAF_MAX || level >= Prefix::MAX_LEVELS {
            return;
        }
        let mut children: Box<[Trie<R>; 16]> = Box::default();
        for entry in std::mem::take(entries) {
            children[slot(entry.key, level)].insert(entry, level + 1);
        }
        self.node = TrieNode::Inner(children);
    }

    /// Well below the size at which a leaf is split, so that a store around the limit does not flap.
    fn fold_if_small(&mut self) {
        if matches!(self.node, TrieNode::Leaf(_)) || self.fingerprint.count as usize > LEAF_MAX / 2 {
            return;
        }
        let mut entries = Vec::with_capacity(self.fingerprint.count as usize);
        std::mem::take(self).drain_into(&mut entries);
        let sum = entries.iter().fold(Fingerprint::default(), |mut sum, entry| {
            sum.add(entry.item);
            sum
        });
        *self = Self { fingerprint: sum, node: TrieNode::Leaf(entries) };
    }

    fn drain_into(self, out: &mut Vec<Entry<R>>) {
        match self.node {
            TrieNode::Leaf(entries) => out.extend(entries),
            TrieNode::Inner(children) => children.into_iter().for_each(|child| child.drain_into(out)),
        }
    }

    fn get_mut(&mut self, key: KeyHash, level: u8) -> Option<&mut Entry<R>> {
        match &mut self.node {
            TrieNode::Inner(children) => children[slot(key, level)].get_mut(key, level + 1),
            TrieNode::Leaf(entries) => seat(entries, key).ok().map(|at| &mut entries[at]),
        }
    }

    /// Notes another item hash of an entry that is there, and tells the old one.
    fn restate(&mut self, key: KeyHash, item: ItemHash, level: u8) -> ItemHash {
        let old = match &mut self.node {
            TrieNode::Inner(children) => children[slot(key, level)].restate(key, item, level + 1),
            TrieNode::Leaf(entries) => {
                let at = seat(entries, key).expect("the caller has just found it");
                std::mem::replace(&mut entries[at].item, item)
            }
        };
        self.fingerprint.remove(old);
        self.fingerprint.add(item);
        old
    }

    /// Visits entries in order, beginning at a key hash that lies in this range, until told to stop (by `false`).
    fn visit(&self, from: KeyHash, level: u8, visit: &mut impl FnMut((KeyHash, ItemHash)) -> bool) -> bool {
        match &self.node {
            TrieNode::Leaf(entries) => {
                let first = entries.partition_point(|entry| entry.key < from);
                entries[first..].iter().all(|entry| visit(entry.hashes()))
            }
            TrieNode::Inner(children) => {
                let first = slot(from, level);
                let rest = first + 1..children.len();
                children[first].visit(from, level + 1, visit)
                    && rest.into_iter().all(|child| children[child].visit(KeyHash(0), level + 1, visit))
            }
        }
    }

    fn collect(&self, out: &mut Vec<(KeyHash, ItemHash)>) {
        match &self.node {
            TrieNode::Leaf(entries) => out.extend(entries.iter().map(Entry::hashes)),
            TrieNode::Inner(children) => children.iter().for_each(|child| child.collect(out)),
        }
    }
}

impl<R> Digest<R> {
    /// Puts a record under a key and gives back what was there.
    pub fn insert(&mut self, key: KeyHash, item: ItemHash, record: R) -> Option<R> {
        self.root.insert(Entry { key, item, record }, 0).map(|entry| entry.record)
    }

    /// Takes the record of a key out.
    pub fn remove(&mut self, key: KeyHash) -> Option<R> {
        self.root.remove(key, 0).map(|entry| entry.record)
    }

    /// The record of a key.
    pub fn get(&self, key: KeyHash) -> Option<&R> {
        self.entry(key).map(|entry| &entry.record)
    }

    /// Lets `change` change the record of a key, if there is one, and say its new item hash; `None` when it has left the
    /// record as it was. Tells whether it changed.
    ///
    /// # Errors
    /// Those of `change`, which must have left the record as it was.
    pub fn change<E>(
        &mut self,
        key: KeyHash,
        change: impl FnOnce(&mut R) -> Result<Option<ItemHash>, E>,
    ) -> Result<bool, E> {
        let Some(entry) = self.root.get_mut(key, 0) else { return Ok(false) };
        let item = change(&mut entry.record)?;
        if let Some(item) = item {
            self.root.restate(key, item, 0);
        }
        Ok(item.is_some())
    }

    /// All records, in order of their key hashes.
    pub fn records(&self) -> impl Iterator<Item = &R> {
        // The ways not taken yet, the next one last.
        let mut ways = vec![&self.root];
        let mut leaf = [].iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(Entry { record, .. }) = leaf.next() {
                    return Some(record);
                }
                match &ways.pop()?.node {
                    TrieNode::Leaf(entries) => leaf = entries.iter(),
                    TrieNode::Inner(children) => ways.extend(children.iter().rev()),
                }
            }
        })
    }

    /// The fingerprint of everything.
    pub fn root(&self) -> Fingerprint {
        self.root.fingerprint
    }

    /// The fingerprint of a range.
    pub fn fingerprint(&self, prefix: Prefix) -> Fingerprint {
        match self.walk(prefix) {
            Ok(trie) => trie.fingerprint,
            Err(entries) => {
                let mut fingerprint = Fingerprint::default();
                entries.iter().for_each(|entry| fingerprint.add(entry.item));
                fingerprint
            }
        }
    }

    /// The entries of a range, in order of key hash.
    pub fn entries(&self, prefix: Prefix) -> Vec<(KeyHash, ItemHash)> {
        match self.walk(prefix) {
            Ok(trie) => {
                let mut found = Vec::with_capacity(trie.fingerprint.count as usize);
                trie.collect(&mut found);
                found
            }
            Err(entries) => entries.iter().map(Entry::hashes).collect(),
        }
    }

    /// At most so many entries from one key hash to another, both included, in order.
    pub fn entries_from(&self, from: KeyHash, last: KeyHash, limit: usize) -> Vec<(KeyHash, ItemHash)> {
        let mut found = Vec::with_capacity(limit.min(self.root.fingerprint.count as usize));
        self.root.visit(from, 0, &mut |entry| {
            let wanted = entry.0 <= last && found.len() < limit;
            if wanted {
                found.push(entry);
            }
            wanted
        });
        found
    }

    /// What a key holds.
    pub fn item(&self, key: KeyHash) -> Option<ItemHash> {
        self.entry(key).map(|entry| entry.item)
    }

    fn entry(&self, key: KeyHash) -> Option<&Entry<R>> {
        let mut trie = &self.root;
        for level in 0.. {
            match &trie.node {
                TrieNode::Inner(children) => trie = &children[slot(key, level)],
                TrieNode::Leaf(entries) => return seat(entries, key).ok().map(|at| &entries[at]),
            }
        }
        None
    }

    /// At most so many entries of a range, beginning where `turn` says and going round: with another turn each time,
    /// every entry has its chance.
    pub fn some_entries(&self, prefix: Prefix, turn: u64, limit: usize) -> Vec<(KeyHash, ItemHash)> {
        let from = KeyHash(prefix.bits | (turn & !prefix.mask()));
        let trie = match self.walk(prefix) {
            _ if limit == 0 => return Vec::new(),
            Ok(trie) if trie.fingerprint.count as usize > limit => trie,
            Ok(_) => return self.entries(prefix),
            Err(entries) => {
                let (before, rest) = entries.split_at(entries.partition_point(|entry| entry.key < from));
                return rest.iter().chain(before).take(limit).map(Entry::hashes).collect();
            }
        };
        let mut found = Vec::with_capacity(limit);
        let mut take = |entry| {
            found.push(entry);
            found.len() < limit
        };
        let _ = trie.visit(from, prefix.levels, &mut take)
            && trie.visit(KeyHash(prefix.bits), prefix.levels, &mut |entry| entry.0 < from && take(entry));
        found
    }

    /// The trie of exactly this prefix, or those of its entries that lie in a leaf above it among others.
    fn walk(&self, prefix: Prefix) -> Result<&Trie<R>, &[Entry<R>]> {
        let mut trie = &self.root;
        for level in 0..prefix.levels {
            match &trie.node {
                TrieNode::Inner(children) => trie = &children[slot(KeyHash(prefix.bits), level)],
                TrieNode::Leaf(entries) => {
                    let first = entries.partition_point(|entry| entry.key.0 < prefix.bits);
                    let count = entries[first..].partition_point(|entry| prefix.contains(entry.key));
                    return Err(&entries[first..][..count]);
                }
            }
        }
        Ok(trie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(seed: u64, count: u64) -> (Digest<()>, Vec<(KeyHash, ItemHash)>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let entries: Vec<_> = (0..count).map(|_| (KeyHash(rng.u64(..)), ItemHash(rng.u64(..)))).collect();
        let mut digest = Digest::default();
        entries.iter().for_each(|(key, item)| _ = digest.insert(*key, *item, ()));
        (digest, entries)
    }

    #[test]
    fn a_fingerprint_does_not_depend_on_the_order_of_writing() {
        let (digest, mut entries) = filled(1, 5_000);
        entries.reverse();
        let mut other = Digest::default();
        entries.iter().for_each(|(key, item)| _ = other.insert(*key, *item, ()));
        assert_eq!(digest.root(), other.root());
        assert_eq!(digest.root().count, 5_000);
    }

    #[test]
    fn a_range_is_the_sum_of_its_children_at_every_depth() {
        let (digest, _) = filled(2, 3_000);
        let mut ranges = vec![Prefix::ROOT];
        for _ in 0..4 {
            let parent = ranges[0];
            let whole = digest.fingerprint(parent);
            let mut sum = Fingerprint::default();
            for child in parent.children() {
                let part = digest.fingerprint(child);
                assert_eq!(part.count as usize, digest.entries(child).len());
                sum.count += part.count;
                sum.sum = sum.sum.wrapping_add(part.sum);
            }
            assert_eq!(sum, whole);
            ranges = parent.children().collect();
        }
    }

    #[test]
    fn some_entries_go_round_from_anywhere_and_miss_none() {
        let (digest, mut entries) = filled(4, 3_000);
        entries.sort_unstable();
        assert!(entries.iter().all(|(key, item)| digest.item(*key) == Some(*item)));
        assert_eq!(digest.item(KeyHash(1)), None);
        let child = Prefix::ROOT.children().nth(5).unwrap();
        for prefix in [Prefix::ROOT, child, child.children().nth(9).unwrap()] {
            let all = digest.entries(prefix);
            for turn in [0, 7 << 60, 0x5a << 56, 0x59ff << 48, u64::MAX] {
                for limit in [1, 10, all.len() - 1, all.len(), 10_000] {
                    let mut some = digest.some_entries(prefix, turn, limit);
                    assert_eq!(some.len(), limit.min(all.len()));
                    some.sort_unstable();
                    some.dedup();
                    assert_eq!(some.len(), limit.min(all.len()));
                    assert!(some.iter().all(|entry| all.contains(entry)));
                }
            }
        }
    }

    #[test]
    fn what_is_removed_leaves_no_trace() {
        let (mut digest, entries) = filled(3, 2_000);
        entries.iter().for_each(|(key, _)| assert!(digest.remove(*key).is_some()));
        assert_eq!(digest.root(), Fingerprint::default());
        assert!(digest.entries(Prefix::ROOT).is_empty());
    }
}
