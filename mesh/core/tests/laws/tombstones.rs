//! What was collected stays dead, in whatever order old news of it comes back.

use starling_core::digest::KeyHash;
use starling_core::graveyard::{Graveyard, Offered};

use super::*;

/// What is not deleted.
fn living(store: &Store) -> Vec<String> {
    let mut alive = Store::default();
    merge_all(&mut alive, &store.iter().filter(|record| !record.cell.is_tombstone()).collect::<Vec<_>>());
    content(&alive)
}

/// A node's store and what it has buried.
struct Node {
    store: Store,
    graves: Graveyard,
}

impl Node {
    fn collect(&mut self) {
        for tombstone in self.store.collect(HybridTime(u64::MAX), usize::MAX) {
            self.graves.bury(tombstone, false);
        }
    }

    fn hear(&mut self, record: Record) {
        if self.store.get(&record.key).is_some() {
            _ = self.store.merge(record).unwrap();
        } else if let Offered::Alive(record) = self.graves.judge(record).unwrap() {
            self.graves.dig_up(KeyHash::of(&record.key));
            _ = self.store.merge(record).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn old_news_of_the_dead_raises_nobody_and_news_of_the_living_is_heard(history in writes(), order in any::<u64>()) {
        let stores = replicas(&history);
        let mut all: Vec<Record> = stores.iter().flat_map(records).collect();
        let mut never_collected = Store::default();
        merge_all(&mut never_collected, &all);
        // This one has heard everything, and forgotten the tombstones; then it hears everything again, and forgets
        // again in between.
        let mut node = Node { store: Store::default(), graves: Graveyard::new(1_000) };
        merge_all(&mut node.store, &all);
        node.collect();
        let mut random = fastrand::Rng::with_seed(order);
        random.shuffle(&mut all);
        for record in all {
            node.hear(record);
            if random.bool() {
                node.collect();
            }
        }
        prop_assert_eq!(living(&node.store), living(&never_collected));
    }

    #[test]
    fn a_fingerprint_without_the_dead_is_the_one_of_a_store_that_never_heard_of_them(history in writes()) {
        for mut store in replicas(&history) {
            store.collect(HybridTime(u64::MAX), usize::MAX);
            let mut anew = Store::default();
            merge_all(&mut anew, &records(&store));
            prop_assert_eq!(store.fingerprint(), anew.fingerprint());
            prop_assert!(store.iter().all(|record| !record.cell.is_tombstone()));
        }
    }
}
