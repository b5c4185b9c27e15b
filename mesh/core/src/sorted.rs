//! A sorted collection that is cheap to keep old versions of: what the picture's large lists are made of.
//!
//! A B+ tree whose parts are shared between versions. A change copies one leaf and the few nodes above it and shares the
//! rest, so it costs nearly the same in a list of a million as in one of a hundred; parts nobody else holds are changed
//! in place. An item takes little more memory than itself. (A persistent binary tree, as most such maps are, has a node
//! and an entry on the heap for each: a hundred bytes more.)

use std::borrow::Borrow;
use std::fmt;
use std::slice;
use std::sync::Arc;

/// What knows by which key it is sorted.
pub trait Keyed {
    /// The key.
    type Key: Ord + Clone;
    /// The key of this item, always the same.
    fn key(&self) -> &Self::Key;
}

/// The most items of a leaf and branches of an inner node: all of them are cloned when one changes.
const PART_MAX: usize = 32;
/// By how many items a leaf grows: doubling would leave a third of the memory unused.
const LEAF_STEP: usize = 4;

/// Items in order of their keys, each key once.
#[derive(Clone)]
pub struct Sorted<T: Keyed> {
    root: Arc<Part<T>>,
    len: usize,
}

#[derive(Clone)]
enum Part<T: Keyed> {
    Leaf(Vec<T>),
    /// Never empty.
    Inner(Vec<Branch<T>>),
}

#[derive(Clone)]
struct Branch<T: Keyed> {
    /// No key in this part is smaller, no key in the part before it is as large. In the first branch of a node it says
    /// nothing: whatever is smaller than the second's is there.
    from: T::Key,
    part: Arc<Part<T>>,
}

impl<T: Keyed> Default for Sorted<T> {
    fn default() -> Self {
        Self { root: Arc::default(), len: 0 }
    }
}

impl<T: Keyed> Default for Part<T> {
    fn default() -> Self {
        Part::Leaf(Vec::new())
    }
}

impl<T: Keyed> Sorted<T> {
    /// How many items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The item with this key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&T>
    where
        T::Key: Borrow<Q>,
    {
        let mut part = &*self.root;
        loop {
            match part {
                Part::Inner(branches) => part = &branches[way(branches, key)].part,
                Part::Leaf(items) => return seat(items, key).ok().map(|at| &items[at]),
            }
        }
    }

    /// All items, in order.
    pub fn iter(&self) -> Iter<'_, T> {
        let mut iter = Iter { above: Vec::new(), items: [].iter(), left: self.len };
        iter.descend(&self.root);
        iter
    }
}

impl<T: Keyed + Clone> Sorted<T> {
    /// Puts an item in, and gives back the one with the same key that was there.
    pub fn insert(&mut self, item: T) -> Option<T> {
        let (old, split) = insert(&mut self.root, item);
        if let Some(right) = split {
            // The first branch's key says nothing; any will do.
            let left = Branch { from: right.from.clone(), part: std::mem::take(&mut self.root) };
            self.root = Arc::new(Part::Inner(vec![left, right]));
        }
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes the item with this key out.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<T>
    where
        T::Key: Borrow<Q>,
    {
        self.get(key)?; // or everything on the way would be copied for nothing
        let old = remove(&mut self.root, key);
        self.len -= 1;
        if self.is_empty() {
            *self = Self::default();
        }
        while let Part::Inner(branches) = &*self.root
            && branches.len() == 1
        {
            self.root = branches[0].part.clone();
        }
        old
    }
}

fn way<T: Keyed, Q: Ord + ?Sized>(branches: &[Branch<T>], key: &Q) -> usize
where
    T::Key: Borrow<Q>,
{
    branches[1..].partition_point(|branch| branch.from.borrow() <= key)
}

fn seat<T: Keyed, Q: Ord + ?Sized>(items: &[T], key: &Q) -> Result<usize, usize>
where
    T::Key: Borrow<Q>,
{
    items.binary_search_by(|item| item.key().borrow().cmp(key))
}

/// Puts an item into a part; gives back what it replaced, and the part's right half if it had to be split.
fn insert<T: Keyed + Clone>(part: &mut Arc<Part<T>>, item: T) -> (Option<T>, Option<Branch<T>>) {
    match Arc::make_mut(part) {
        Part::Leaf(items) => match seat(items, item.key()) {
            Ok(at) => (Some(std::mem::replace(&mut items[at], item)), None),
            Err(at) => {
                if items.len() == items.capacity() {
                    items.reserve_exact(LEAF_STEP);
                }
                items.insert(at, item);
                (None, split_leaf(items, at))
            }
        },
        Part::Inner(branches) => {
            let at = way(branches, item.key());
            let (old, split) = insert(&mut branches[at].part, item);
            if let Some(right) = split {
                branches.insert(at + 1, right);
            }
            (old, split_inner(branches))
        }
    }
}

/// The right half of a leaf that has become too large by an item at `at`. When that is the last one, it goes alone: what
/// comes in order fills its leaves.
fn split_leaf<T: Keyed>(items: &mut Vec<T>, at: usize) -> Option<Branch<T>> {
    if items.len() <= PART_MAX {
        return None;
    }
    let right = items.split_off(if at == PART_MAX { at } else { PART_MAX / 2 });
    items.shrink_to_fit();
    Some(Branch { from: right[0].key().clone(), part: Arc::new(Part::Leaf(right)) })
}

fn split_inner<T: Keyed>(branches: &mut Vec<Branch<T>>) -> Option<Branch<T>> {
    if branches.len() <= PART_MAX {
        return None;
    }
    let right = branches.split_off(PART_MAX / 2);
    branches.shrink_to_fit();
    Some(Branch { from: right[0].from.clone(), part: Arc::new(Part::Inner(right)) })
}

/// Takes an item out of a part, which may be left empty.
fn remove<T: Keyed + Clone, Q: Ord + ?Sized>(part: &mut Arc<Part<T>>, key: &Q) -> Option<T>
where
    T::Key: Borrow<Q>,
{
    match Arc::make_mut(part) {
        Part::Leaf(items) => {
            let old = items.remove(seat(items, key).ok()?);
            if items.len() + 2 * LEAF_STEP <= items.capacity() {
                items.shrink_to(items.len() + LEAF_STEP);
            }
            Some(old)
        }
        Part::Inner(branches) => {
            let at = way(branches, key);
            let old = remove(&mut branches[at].part, key);
            if branches[at].part.len() < PART_MAX / 4 && branches.len() > 1 {
                // With the one after it; the last with the one before it.
                unite(branches, at.min(branches.len() - 2));
            }
            old
        }
    }
}

/// Makes one part of the one at `at` and the one after it, if it has room to grow then.
fn unite<T: Keyed + Clone>(branches: &mut Vec<Branch<T>>, at: usize) {
    if branches[at].part.len() + branches[at + 1].part.len() > PART_MAX / 4 * 3 {
        return;
    }
    let mut right = branches.remove(at + 1);
    match (Arc::make_mut(&mut branches[at].part), Arc::make_mut(&mut right.part)) {
        (Part::Leaf(left), Part::Leaf(right)) => left.append(right),
        (Part::Inner(left), Part::Inner(rest)) => {
            // No longer a first branch, so its key counts from now on.
            rest[0].from = right.from;
            left.append(rest);
        }
        _ => unreachable!("all leaves are equally deep"),
    }
}

impl<T: Keyed> Part<T> {
    fn len(&self) -> usize {
        match self {
            Part::Leaf(items) => items.len(),
            Part::Inner(branches) => branches.len(),
        }
    }
}

/// The items of a [`Sorted`], in order.
pub struct Iter<'a, T: Keyed> {
    /// The branches not visited yet, of each node on the way down.
    above: Vec<slice::Iter<'a, Branch<T>>>,
    items: slice::Iter<'a, T>,
    left: usize,
}

impl<'a, T: Keyed> Iter<'a, T> {
    fn descend(&mut self, mut part: &'a Part<T>) {
        while let Part::Inner(branches) = part {
            let mut rest = branches.iter();
            let Some(first) = rest.next() else { return };
            self.above.push(rest);
            part = &first.part;
        }
        if let Part::Leaf(items) = part {
            self.items = items.iter();
        }
    }
}

impl<'a, T: Keyed> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(item) = self.items.next() {
                self.left -= 1;
                return Some(item);
            }
            match self.above.last_mut()?.next() {
                Some(branch) => self.descend(&branch.part),
                None => _ = self.above.pop(),
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T: Keyed> ExactSizeIterator for Iter<'_, T> {}

impl<'a, T: Keyed> IntoIterator for &'a Sorted<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T: Keyed + Clone> FromIterator<T> for Sorted<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut sorted = Self::default();
        items.into_iter().for_each(|item| _ = sorted.insert(item));
        sorted
    }
}

impl<T: Keyed + fmt::Debug> fmt::Debug for Sorted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Item(u32, u64);

    impl Keyed for Item {
        type Key = u32;
        fn key(&self) -> &u32 {
            &self.0
        }
    }

    fn listed(sorted: &Sorted<Item>) -> Vec<(u32, u64)> {
        sorted.iter().map(|item| (item.0, item.1)).collect()
    }

    fn parts(part: &Part<Item>) -> Vec<*const Part<Item>> {
        let below = match part {
            Part::Leaf(_) => Vec::new(),
            Part::Inner(branches) => branches.iter().flat_map(|branch| parts(&branch.part)).collect(),
        };
        [vec![std::ptr::from_ref(part)], below].concat()
    }

    #[test]
    fn it_does_what_a_plain_map_does_and_old_versions_stay_as_they_were() {
        for (seed, keys) in [(1, 50), (2, 700), (3, 20_000)] {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut plain, mut sorted) = (BTreeMap::new(), Sorted::default());
            let mut old = Vec::new();
            // Grows, and shrinks again to next to nothing.
            for step in 0..20_000u64 {
                let key = rng.u32(..keys);
                if rng.u64(..20_000) > step {
                    let before = plain.insert(key, step);
                    assert_eq!(sorted.insert(Item(key, step)).map(|item| item.1), before);
                } else {
                    assert_eq!(sorted.remove(&key).map(|item| item.1), plain.remove(&key));
                }
                assert_eq!(
                    (sorted.len(), sorted.get(&key).map(|item| item.1)),
                    (plain.len(), plain.get(&key).copied())
                );
                if step % 1_000 == 0 {
                    old.push((plain.clone(), sorted.clone()));
                }
            }
            old.push((plain, sorted));
            for (plain, sorted) in old {
                assert_eq!(listed(&sorted), plain.into_iter().collect::<Vec<_>>());
                assert_eq!(sorted.iter().len(), sorted.len());
            }
        }
    }

    #[test]
    fn a_change_copies_the_way_to_it_and_shares_the_rest() {
        let before: Sorted<Item> = (0..100_000).map(|key| Item(key, 0)).collect();
        let mut after = before.clone();
        after.insert(Item(50_000, 1));
        after.remove(&7);
        let (before, after) = (parts(&before.root), parts(&after.root));
        let copied = after.iter().filter(|part| !before.contains(part)).count();
        assert!(before.len() > 3_000 && copied <= 8, "{copied} of {}", before.len());
    }

    #[test]
    fn what_comes_in_order_fills_its_parts() {
        let sorted: Sorted<Item> = (0..100_000).map(|key| Item(key, 0)).collect();
        assert!(parts(&sorted.root).len() < 100_000 / PART_MAX * 10 / 8, "{} parts", parts(&sorted.root).len());
    }

    #[test]
    fn what_is_taken_out_leaves_nothing_behind() {
        let mut sorted: Sorted<Item> = (0..10_000).map(|key| Item(key, 0)).collect();
        (0..10_000).for_each(|key| assert!(sorted.remove(&(key * 7_919 % 10_000)).is_some()));
        assert_eq!((sorted.len(), parts(&sorted.root).len(), sorted.iter().next()), (0, 1, None));
    }
}
