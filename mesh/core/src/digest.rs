//! Fingerprints of the store, kept incrementally, and the ranges repair compares.
//!
//! Every record has a *key hash* (where it stands) and an *item hash* (key and stamps: what it says). A range is all key
//! hashes that share a prefix; its fingerprint is the count and wrapping sum of the item hashes in it. Sums do not
//! depend on order and change in O(1) per record and level, so equal stores are recognised by 16 bytes and a
//! difference is found by descending sixteen ways at a time (range-based set reconciliation, Meyer, arXiv:2212.13567).
//!
//! The sums are not safe against somebody who makes collisions on purpose; peers are authenticated by certificate.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::record::{Cell, Key};

/// Where a record stands in the digest: a hash of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyHash(pub u64);

/// What a record says: a hash of its key and its cell's stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemHash(pub u64);

impl KeyHash {
    /// The hash of a key; the same on every machine and version.
    pub fn of(key: &Key) -> Self {
        Self(xxh3_64(&rmp_serde::to_vec(key).expect("keys encode")))
    }
}

impl ItemHash {
    /// The hash of what a record says. Stamps name values, so the values themselves need not be hashed (and must not:
    /// equal CRDTs may be encoded differently).
    pub fn of(key: KeyHash, cell: &Cell) -> Self {
        let mut hasher = Xxh3::with_seed(key.0);
        for stamp in cell.stamps() {
            hasher.update(&stamp.time.0.to_le_bytes());
            hasher.update(stamp.node.as_str().as_bytes());
            hasher.update(&[0]);
        }
        Self(hasher.digest())
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

/// How many entries a leaf holds before it is split.
const LEAF_MAX: usize = 32;

/// The fingerprints of all ranges of a store: a hash trie, sixteen ways, whose inner nodes hold sums. Memory follows
/// the number of records, not the depth of the hash.
#[derive(Debug, Clone, Default)]
pub struct Digest {
    root: Trie,
}

#[derive(Debug, Clone)]
struct Trie {
    fingerprint: Fingerprint,
    node: TrieNode,
}

#[derive(Debug, Clone)]
enum TrieNode {
    Leaf(Vec<(KeyHash, ItemHash)>),
    Inner(Box<[Trie; 16]>),
}

impl Default for Trie {
    fn default() -> Self {
        Self { fingerprint: Fingerprint::default(), node: TrieNode::Leaf(Vec::new()) }
    }
}

fn slot(key: KeyHash, level: u8) -> usize {
    ((key.0 >> (60 - 4 * u32::from(level))) & 0xf) as usize
}

impl Trie {
    fn set(&mut self, key: KeyHash, item: Option<ItemHash>, level: u8) -> Option<ItemHash> {
        let old = match &mut self.node {
            TrieNode::Inner(children) => children[slot(key, level)].set(key, item, level + 1),
            TrieNode::Leaf(entries) => match (entries.binary_search_by_key(&key, |entry| entry.0), item) {
                (Ok(at), Some(item)) => Some(std::mem::replace(&mut entries[at].1, item)),
                (Ok(at), None) => Some(entries.remove(at).1),
                (Err(at), Some(item)) => {
                    entries.insert(at, (key, item));
                    None
                }
                (Err(_), None) => None,
            },
        };
        if let Some(old) = old {
            self.fingerprint.remove(old);
        }
        if let Some(item) = item {
            self.fingerprint.add(item);
        }
        self.reshape(level);
        old
    }

    /// Splits a leaf that grew too large, and folds an inner node that has shrunk well below that (so that a store
    /// around the limit does not flap).
    fn reshape(&mut self, level: u8) {
        match &mut self.node {
            TrieNode::Leaf(entries) if entries.len() > LEAF_MAX && level < Prefix::MAX_LEVELS => {
                let mut children: Box<[Trie; 16]> = Box::default();
                for (key, item) in std::mem::take(entries) {
                    children[slot(key, level)].set(key, Some(item), level + 1);
                }
                self.node = TrieNode::Inner(children);
            }
            TrieNode::Inner(_) if self.fingerprint.count as usize <= LEAF_MAX / 2 => {
                let mut entries = Vec::with_capacity(self.fingerprint.count as usize);
                self.collect(&mut entries);
                self.node = TrieNode::Leaf(entries);
            }
            _ => {}
        }
    }

    /// Visits entries in order, beginning at a key hash that lies in this range, until told to stop (by `false`).
    fn visit(&self, from: KeyHash, level: u8, visit: &mut impl FnMut((KeyHash, ItemHash)) -> bool) -> bool {
        match &self.node {
            TrieNode::Leaf(entries) => entries.iter().filter(|entry| entry.0 >= from).all(|entry| visit(*entry)),
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
            TrieNode::Leaf(entries) => out.extend_from_slice(entries),
            TrieNode::Inner(children) => children.iter().for_each(|child| child.collect(out)),
        }
    }
}

impl Digest {
    /// Notes that a key now holds this item (or nothing).
    pub fn set(&mut self, key: KeyHash, item: Option<ItemHash>) {
        self.root.set(key, item, 0);
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
                entries.iter().filter(|entry| prefix.contains(entry.0)).for_each(|entry| fingerprint.add(entry.1));
                fingerprint
            }
        }
    }

    /// The entries of a range, in order of key hash.
    pub fn entries(&self, prefix: Prefix) -> Vec<(KeyHash, ItemHash)> {
        let mut found = Vec::new();
        match self.walk(prefix) {
            Ok(trie) => trie.collect(&mut found),
            Err(entries) => found.extend(entries.iter().filter(|entry| prefix.contains(entry.0))),
        }
        found
    }

    /// What a key holds.
    pub fn item(&self, key: KeyHash) -> Option<ItemHash> {
        let mut trie = &self.root;
        for level in 0.. {
            match &trie.node {
                TrieNode::Inner(children) => trie = &children[slot(key, level)],
                TrieNode::Leaf(entries) => {
                    let at = entries.binary_search_by_key(&key, |entry| entry.0).ok()?;
                    return Some(entries[at].1);
                }
            }
        }
        None
    }

    /// At most so many entries of a range, beginning where `turn` says and going round: with another turn each time,
    /// every entry has its chance.
    pub fn some_entries(&self, prefix: Prefix, turn: u64, limit: usize) -> Vec<(KeyHash, ItemHash)> {
        let trie = match self.walk(prefix) {
            _ if limit == 0 => return Vec::new(),
            Ok(trie) if trie.fingerprint.count as usize > limit => trie,
            _ => return self.entries(prefix),
        };
        let from = KeyHash(prefix.bits | (turn & !prefix.mask()));
        let mut found = Vec::with_capacity(limit);
        let mut take = |entry| {
            found.push(entry);
            found.len() < limit
        };
        let _ = trie.visit(from, prefix.levels, &mut take)
            && trie.visit(KeyHash(prefix.bits), prefix.levels, &mut |entry| entry.0 < from && take(entry));
        found
    }

    /// The trie of exactly this prefix, or the leaf above it that holds its entries among others.
    fn walk(&self, prefix: Prefix) -> Result<&Trie, &[(KeyHash, ItemHash)]> {
        let mut trie = &self.root;
        for level in 0..prefix.levels {
            match &trie.node {
                TrieNode::Inner(children) => trie = &children[slot(KeyHash(prefix.bits), level)],
                TrieNode::Leaf(entries) => return Err(entries),
            }
        }
        Ok(trie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(seed: u64, count: u64) -> (Digest, Vec<(KeyHash, ItemHash)>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let entries: Vec<_> = (0..count).map(|_| (KeyHash(rng.u64(..)), ItemHash(rng.u64(..)))).collect();
        let mut digest = Digest::default();
        entries.iter().for_each(|(key, item)| digest.set(*key, Some(*item)));
        (digest, entries)
    }

    #[test]
    fn a_fingerprint_does_not_depend_on_the_order_of_writing() {
        let (digest, mut entries) = filled(1, 5_000);
        entries.reverse();
        let mut other = Digest::default();
        entries.iter().for_each(|(key, item)| other.set(*key, Some(*item)));
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
        entries.iter().for_each(|(key, _)| digest.set(*key, None));
        assert_eq!(digest.root(), Fingerprint::default());
        assert!(digest.entries(Prefix::ROOT).is_empty());
    }
}
