//! Names shared in memory: a million records name a few hundred nodes, zones and services, each of them once here.
//!
//! Names that come off the wire are texts of their own. Sharing them saves memory, and comparing shared names is mostly
//! comparing pointers.

use std::collections::BTreeSet;

use crate::id::{Namespace, NodeId, ServiceName, Zone};

/// The names a store's records have in common.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) namespaces: Shared<Namespace>,
    pub(crate) services: Shared<ServiceName>,
    pub(crate) nodes: Shared<NodeId>,
    pub(crate) zones: Shared<Zone>,
}

/// Names of one kind.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    known: BTreeSet<T>,
    /// When there are so many, those nobody uses any more are dropped.
    tidy_at: usize,
}

/// A name that knows whether anybody else holds the same text.
pub(crate) trait Name: Ord + Clone {
    fn is_shared(&self) -> bool;
}

/// Below this many names, tidying up is not worth it.
const TIDY_MIN: usize = 1_024;

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { known: BTreeSet::new(), tidy_at: TIDY_MIN }
    }
}

impl<T: Name> Shared<T> {
    /// Puts the text everybody shares in the place of this one.
    pub(crate) fn share(&mut self, name: &mut T) {
        match self.known.get(name) {
            Some(known) => *name = known.clone(),
            None => {
                if self.known.len() >= self.tidy_at {
                    self.known.retain(Name::is_shared);
                    self.tidy_at = (2 * self.known.len()).max(TIDY_MIN);
                }
                self.known.insert(name.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_come_to_share_one_text_and_unused_ones_are_dropped() {
        let mut names = Names::default();
        let mut held: Vec<NodeId> = Vec::new();
        for number in 0..10_000 {
            let mut name: NodeId = format!("n{}", number % 5_000).parse().unwrap();
            names.nodes.share(&mut name);
            if number % 100 == 0 {
                held.push(name);
            }
        }
        assert!(held[..50].iter().zip(&held[50..]).all(|(a, b)| std::ptr::eq(a.as_str(), b.as_str())));
        assert!(names.nodes.known.len() <= TIDY_MIN);
    }
}
