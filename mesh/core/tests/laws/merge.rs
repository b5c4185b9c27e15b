//! Merging is commutative, associative and idempotent, and the fingerprint follows the content.

use super::*;

proptest! {
    #[test]
    fn merging_in_any_order_and_any_number_of_times_gives_the_same(history in writes(), order in any::<u64>()) {
        let stores = replicas(&history);
        let mut all: Vec<Record> = stores.iter().flat_map(records).collect();
        let mut first = Store::default();
        merge_all(&mut first, &all);
        all.extend(all.clone());
        fastrand::Rng::with_seed(order).shuffle(&mut all);
        let mut second = Store::default();
        merge_all(&mut second, &all);
        prop_assert_eq!(content(&first), content(&second));
        prop_assert_eq!(first.fingerprint(), second.fingerprint());
    }

    #[test]
    fn merging_is_associative(history in writes()) {
        let stores = replicas(&history);
        let (a, b, c) = (records(&stores[0]), records(&stores[1]), records(&stores[2]));
        let mut left = Store::default();
        merge_all(&mut left, &a);
        merge_all(&mut left, &b);
        merge_all(&mut left, &c);
        let mut bc = Store::default();
        merge_all(&mut bc, &b);
        merge_all(&mut bc, &c);
        let mut right = Store::default();
        merge_all(&mut right, &a);
        merge_all(&mut right, &records(&bc));
        prop_assert_eq!(content(&left), content(&right));
    }

    #[test]
    fn a_merge_says_truly_whether_it_changed_anything(history in writes()) {
        let stores = replicas(&history);
        let mut store = Store::default();
        merge_all(&mut store, &records(&stores[0]));
        for record in records(&stores[1]) {
            let before = content(&store);
            let changed = store.merge(record.clone()).unwrap();
            prop_assert_eq!(changed, content(&store) != before);
            prop_assert_eq!(store.merge(record), Ok(false));
        }
    }

    #[test]
    fn equal_fingerprints_mean_equal_content(history in writes()) {
        let stores = replicas(&history);
        for (a, b) in [(0, 1), (1, 2), (0, 2)] {
            let same = stores[a].fingerprint() == stores[b].fingerprint();
            prop_assert_eq!(same, content(&stores[a]) == content(&stores[b]));
        }
    }

    #[test]
    fn a_fingerprint_kept_up_to_date_is_the_one_of_a_store_made_anew(history in writes()) {
        for store in replicas(&history) {
            let mut anew = Store::default();
            merge_all(&mut anew, &records(&store));
            prop_assert_eq!(store.fingerprint(), anew.fingerprint());
        }
    }
}
