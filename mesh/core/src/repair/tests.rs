use super::*;
use crate::testing::instance_record;

fn store(ids: impl Iterator<Item = u64>) -> Store {
    let mut store = Store::default();
    for id in ids {
        store.merge(instance_record("orders", &format!("o{id}"), "a", id + 1)).unwrap();
    }
    store
}

/// What two stores said to each other.
#[derive(Debug, Default)]
struct Talk {
    rounds: usize,
    messages: usize,
    bytes: usize,
    records: usize,
}

/// Lets two stores talk until they are silent, in exchange after exchange while something was cut.
fn talk(a: &mut Store, b: &mut Store) -> Talk {
    talk_for(a, b, usize::MAX)
}

/// The same, with at most so many messages.
fn talk_for(a: &mut Store, b: &mut Store, messages: usize) -> Talk {
    let mut talk = Talk::default();
    let (mut left, mut start) = (messages, Some(KeyHash(0)));
    for id in 1.. {
        let Some(begin) = start.take() else { break };
        let exchange = Exchange { id, cut: false, start: begin, held: a.fingerprint().count };
        let mut inbox = vec![Message::Opening { store: a.fingerprint(), exchange }];
        let mut to_b = true;
        while !inbox.is_empty() {
            talk.rounds += 1;
            let here: &mut Store = if to_b { b } else { a };
            let mut answers = Vec::new();
            for message in inbox {
                let Some(fewer) = left.checked_sub(1) else { return talk };
                left = fewer;
                talk.messages += 1;
                talk.bytes += message.encode().len();
                match message {
                    Message::Opening { store, exchange } => answers.extend(compare_all(here, store, exchange)),
                    Message::Ranges { ranges, exchange } => answers.extend(compare_ranges(here, &ranges, exchange)),
                    Message::Entries { entries, exchange } => answers.extend(compare_entries(here, &entries, exchange)),
                    Message::Want { wanted, exchange } => answers.extend(send_wanted(here, &wanted, exchange)),
                    Message::Fill { records, exchange } => {
                        if exchange.cut {
                            start = records.last().map(|record| KeyHash(KeyHash::of(&record.key).0.wrapping_add(1)));
                        }
                        talk.records += records.len();
                        records.into_iter().for_each(|record| _ = here.merge(record).unwrap());
                    }
                    Message::Same(_) => {}
                    other => panic!("{other:?} is no part of an exchange"),
                }
            }
            inbox = answers;
            to_b = !to_b;
        }
    }
    talk
}

#[test]
fn equal_stores_cost_one_small_exchange() {
    let talk = talk(&mut store(0..5_000), &mut store(0..5_000));
    assert_eq!(talk.rounds, 2);
    assert!(talk.bytes < 48, "{talk:?}");
}

#[test]
fn one_difference_among_many_costs_little() {
    let (mut a, mut b) = (store(0..20_000), store(0..20_001));
    let talk = talk(&mut a, &mut b);
    assert_eq!(a.fingerprint(), b.fingerprint());
    assert!(talk.rounds <= 7 && talk.bytes < 600, "{talk:?}");
}

#[test]
fn bytes_follow_the_difference_and_rounds_the_depth() {
    for difference in [10, 100, 1_000] {
        let (mut a, mut b) = (store(0..20_000), store(difference..20_000 + difference));
        let talk = talk(&mut a, &mut b);
        assert_eq!(a.fingerprint(), b.fingerprint());
        // Both sides lack so many; a record is some 40 bytes here.
        assert_eq!(talk.records as u64, 2 * difference);
        assert!(talk.bytes as u64 <= 2 * difference * 250, "{difference} differences: {talk:?}");
        assert!(talk.rounds <= 8, "{difference} differences: {talk:?}");
    }
}

#[test]
fn differences_on_both_sides_are_closed_by_one_exchange() {
    let (mut a, mut b) = (store(0..1_500), store(500..2_000));
    talk(&mut a, &mut b);
    assert_eq!(a.fingerprint(), b.fingerprint());
    assert_eq!(a.fingerprint().count, 2_000);
}

#[test]
fn an_empty_store_is_filled() {
    let (mut a, mut b) = (store(0..0), store(0..3_000));
    talk(&mut a, &mut b);
    assert_eq!(a.fingerprint(), b.fingerprint());
}

#[test]
fn an_interrupted_repair_goes_on_where_it_stood() {
    let whole = talk(&mut store(0..15_000), &mut store(10_000..25_000));
    let (mut a, mut b) = (store(0..15_000), store(10_000..25_000));
    let before = talk_for(&mut a, &mut b, whole.messages / 2);
    assert!(before.records > 5_000 && a.fingerprint() != b.fingerprint(), "somewhere in the middle: {before:?}");
    let after = talk(&mut a, &mut b);
    assert_eq!(a.fingerprint(), b.fingerprint());
    let bytes = before.bytes + after.bytes;
    assert!(bytes < whole.bytes * 11 / 10, "{bytes} instead of {} bytes", whole.bytes);
}

#[test]
fn questions_about_everything_at_once_are_answered_in_bounds() {
    let store = store(0..50_000);
    let exchange = Exchange { id: 7, cut: false, start: KeyHash(0), held: 0 };
    let all: Vec<Listed> = (0..10_000).map(|_| (Prefix::ROOT, vec![1, 2, 3])).collect();
    for answer in [compare_entries(&store, &all, exchange), send_wanted(&store, &all, exchange)] {
        let records: usize =
            answer.iter().map(|m| if let Message::Fill { records, .. } = m { records.len() } else { 0 }).sum();
        assert!(records <= MAX_RECORDS && answer.len() < 10);
    }
    let sums: Vec<Parts> = (0..10_000).map(|_| (Prefix::ROOT, [9; 16])).collect();
    let answer = compare_ranges(&store, &sums, exchange);
    assert!(
        matches!(&answer[..], [Message::Ranges { ranges, exchange }] if ranges.len() == MAX_RANGES && exchange.cut)
    );
}
