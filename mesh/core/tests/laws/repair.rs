//! Two stores that talk become one, for the price of their difference.

use std::collections::VecDeque;

use starling_core::digest::KeyHash;
use starling_core::repair::{compare_all, compare_entries, compare_ranges, send_wanted};
use starling_core::wire::{Exchange, Message};

use super::*;

/// What became of exchanges until both were equal.
#[derive(Default)]
struct Course {
    exchanges: usize,
    messages: usize,
    records: usize,
    needless: usize,
}

/// Lets two stores repair until they hold the same.
fn repair(stores: &mut [Store; 2], start: u64) -> Course {
    let mut course = Course::default();
    while stores[0].fingerprint() != stores[1].fingerprint() && course.exchanges < 20 {
        course.exchanges += 1;
        let store = stores[0].fingerprint();
        let exchange = Exchange { id: course.exchanges as u32, cut: false, start: KeyHash(start), held: store.count };
        let opening = Message::Opening { store, exchange };
        let mut under_way = VecDeque::from([(1, opening)]);
        while let Some((to, message)) = under_way.pop_front() {
            course.messages += 1;
            let store = &mut stores[to];
            let answers = match message {
                Message::Opening { store: theirs, exchange } => compare_all(store, theirs, exchange),
                Message::Ranges { ranges, exchange } => compare_ranges(store, &ranges, exchange),
                Message::Entries { entries, exchange } => compare_entries(store, &entries, exchange),
                Message::Want { wanted, exchange } => send_wanted(store, &wanted, exchange),
                Message::Fill { records, .. } => {
                    for record in records {
                        course.records += 1;
                        course.needless += usize::from(!store.merge(record).unwrap());
                    }
                    Vec::new()
                }
                _ => Vec::new(),
            };
            under_way.extend(answers.into_iter().map(|answer| (1 - to, answer)));
        }
    }
    course
}

/// A registration at a node, at a time.
fn registered(number: u32, at: u64, node: &str) -> Record {
    let service = ServiceKey { namespace: Default::default(), service: format!("s{}", number % 7).parse().unwrap() };
    let key = InstanceKey { service, instance: format!("o{number}").parse().unwrap() };
    let stamp = Stamp { time: HybridTime(at), node: node.parse().unwrap() };
    let cell = Cell::Instance(LWWReg { val: Some(instance(1)), marker: Claim::new(stamp) });
    Record { key: Key::Instance(key), cell }
}

proptest! {
    #[test]
    fn after_any_histories_two_stores_that_repair_hold_what_both_held(history in writes(), start in any::<u64>()) {
        let mut stores = replicas(&history);
        stores.truncate(2);
        let mut both = Store::default();
        stores.iter().for_each(|store| merge_all(&mut both, &records(store)));
        let mut stores: [Store; 2] = stores.try_into().unwrap_or_else(|_| unreachable!());
        let course = repair(&mut stores, start);
        prop_assert_eq!(content(&stores[0]), content(&both));
        prop_assert_eq!(content(&stores[1]), content(&both));
        prop_assert!(course.exchanges <= 1, "a small difference takes one exchange");
    }

    #[test]
    fn a_repair_costs_as_much_as_the_difference_and_not_as_much_as_the_store(
        common in 0_u32..1_500,
        only_here in 0_u32..60,
        only_there in 0_u32..60,
        start in any::<u64>(),
    ) {
        let mut stores = [Store::default(), Store::default()];
        for store in &mut stores {
            (0..common).for_each(|number| _ = store.merge(registered(number, 1, "a")).unwrap());
        }
        (0..only_here).for_each(|number| _ = stores[0].merge(registered(number * 20, 2, "b")).unwrap());
        (0..only_there).for_each(|number| _ = stores[1].merge(registered(number * 20 + 1, 2, "c")).unwrap());
        let course = repair(&mut stores, start);
        prop_assert_eq!(stores[0].fingerprint(), stores[1].fingerprint());
        // A fingerprint does not say which of two states is the newer: of what both have, both send theirs.
        let changed = (0..only_here).map(|number| number * 20).chain((0..only_there).map(|number| number * 20 + 1));
        let changed = changed.filter(|number| *number < common).count();
        prop_assert!(course.records <= (only_here + only_there) as usize + changed, "{} records", course.records);
        prop_assert!(course.needless <= changed);
        prop_assert!(course.exchanges <= 1);
        // Sixteen-fold ranges: three levels for some thousand records, and a few messages a level.
        prop_assert!(course.messages <= 20, "{} messages", course.messages);
    }
}
