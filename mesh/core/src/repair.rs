//! Repair: finding and closing every gap that push left, in O(difference) bytes.
//!
//! One side opens with the fingerprint of everything. Whoever holds something else under a range answers: with the
//! fingerprints of its sixteen parts while there is much in it, with its entries once there is little. Entries are
//! answered by what the other lacks and a list of what oneself wants. No exchange has state between messages: what is
//! lost, cut at a limit or overtaken is found again by the next exchange.

use crate::digest::{Fingerprint, ItemHash, KeyHash, Prefix};
use crate::record::{Cell, Record};
use crate::store::Store;
use crate::wire::Message;

/// A range with at most so many records is answered by its entries instead of its parts.
const FEW: u64 = 32;
/// The most ranges in one message (about 80 kB).
const MAX_RANGES: usize = 4_096;
/// The most entries listed in one message (about 80 kB).
const MAX_ENTRIES: usize = 4_096;
/// The most records sent in answer to one message; the next exchange sends the rest.
const MAX_RECORDS: usize = 4_096;
/// A push message is closed when it holds about this many bytes, so that other messages get their turn.
const CHUNK_BYTES: usize = 128 * 1024;

/// What to answer, and whether more was left out than said.
#[derive(Debug, Default)]
pub struct Answer {
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// Whether a limit cut something off: another exchange should follow soon.
    pub cut: bool,
}

/// Answers a peer's fingerprints of ranges.
pub fn compare_ranges(store: &Store, theirs: &[(Prefix, Fingerprint)]) -> Answer {
    let digest = store.digest();
    if let [(Prefix::ROOT, fingerprint)] = theirs
        && *fingerprint == digest.root()
    {
        return Answer { messages: vec![Message::Same(*fingerprint)], cut: false };
    }
    let (mut ranges, mut entries, mut listed, mut cut) = (Vec::new(), Vec::new(), 0, false);
    for (prefix, fingerprint) in theirs.iter().take(MAX_RANGES).filter(|(prefix, _)| prefix.is_sound()) {
        let mine = digest.fingerprint(*prefix);
        if mine == *fingerprint {
            continue;
        }
        if ranges.len() + 16 > MAX_RANGES || listed > MAX_ENTRIES {
            cut = true;
            break;
        }
        if mine.count <= FEW {
            listed += mine.count as usize + 1;
            entries.push((*prefix, digest.entries(*prefix)));
        } else {
            ranges.extend(prefix.children().map(|child| (child, digest.fingerprint(child))));
        }
    }
    let mut messages = Vec::new();
    if !ranges.is_empty() {
        messages.push(Message::Ranges(ranges));
    }
    if !entries.is_empty() {
        messages.push(Message::Entries(entries));
    }
    Answer { messages, cut }
}

/// Answers a peer's complete lists of entries: sends what it lacks, asks for what this store lacks. Entries that differ
/// go both ways, since both sides may hold something of a cell.
pub fn compare_entries(store: &Store, theirs: &[(Prefix, Vec<(KeyHash, ItemHash)>)]) -> Answer {
    let (mut records, mut want, mut cut) = (Vec::new(), Vec::new(), false);
    for (prefix, entries) in theirs.iter().take(MAX_ENTRIES).filter(|(prefix, _)| prefix.is_sound()) {
        let mut theirs: Vec<_> = entries.iter().take(MAX_ENTRIES).filter(|entry| prefix.contains(entry.0)).collect();
        theirs.sort_unstable();
        let mine = store.digest().entries(*prefix);
        if records.len() + mine.len() > MAX_RECORDS && !records.is_empty() {
            cut = true;
            break;
        }
        want.extend(theirs.iter().filter(|entry| mine.binary_search(entry).is_err()).map(|entry| entry.0));
        let unknown = mine.iter().filter(|entry| theirs.binary_search(entry).is_err());
        records.extend(unknown.take(MAX_RECORDS).filter_map(|entry| store.by_hash(entry.0)));
    }
    cut |= want.len() > MAX_ENTRIES;
    want.truncate(MAX_ENTRIES);
    let mut messages = push(records);
    if !want.is_empty() {
        messages.push(Message::Want(want));
    }
    Answer { messages, cut }
}

/// Sends what a peer asked for.
pub fn send_wanted(store: &Store, hashes: &[KeyHash]) -> Vec<Message> {
    push(hashes.iter().take(MAX_ENTRIES).filter_map(|hash| store.by_hash(*hash)).collect())
}

/// Packs records into messages of bounded size.
pub fn push(records: Vec<Record>) -> Vec<Message> {
    let mut messages = Vec::new();
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    for record in records {
        bytes += rough_bytes(&record);
        chunk.push(record);
        if bytes >= CHUNK_BYTES {
            messages.push(Message::Push(std::mem::take(&mut chunk)));
            bytes = 0;
        }
    }
    if !chunk.is_empty() {
        messages.push(Message::Push(chunk));
    }
    messages
}

/// Near enough to the encoded size to bound messages by.
fn rough_bytes(record: &Record) -> usize {
    match &record.cell {
        Cell::Instance(_) => 512,
        Cell::Override(_) => 256,
        Cell::Config(register) => crate::record::versions(register)
            .iter()
            .map(|version| 256 + version.body.as_ref().map_or(0, |body| body.as_bytes().len()))
            .sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::instance_record;

    fn store(ids: impl Iterator<Item = u64>) -> Store {
        let mut store = Store::default();
        for id in ids {
            store.merge(instance_record("orders", &format!("o{id}"), "a", id + 1)).unwrap();
        }
        store
    }

    /// Lets two stores talk until they are silent; returns rounds and bytes.
    fn talk(a: &mut Store, b: &mut Store) -> (usize, usize) {
        let (mut rounds, mut bytes) = (0, 0);
        let mut inbox = vec![Message::opening(a.digest())];
        let mut to_b = true;
        while !inbox.is_empty() {
            rounds += 1;
            let here: &mut Store = if to_b { b } else { a };
            let mut answers = Vec::new();
            for message in inbox {
                bytes += crate::wire::encode(&message).len();
                match message {
                    Message::Ranges(ranges) => answers.extend(compare_ranges(here, &ranges).messages),
                    Message::Entries(entries) => answers.extend(compare_entries(here, &entries).messages),
                    Message::Want(hashes) => answers.extend(send_wanted(here, &hashes)),
                    Message::Push(records) => records.into_iter().for_each(|record| {
                        here.merge(record).unwrap();
                    }),
                    Message::Same(_) | Message::Leaving(..) => {}
                }
            }
            inbox = answers;
            to_b = !to_b;
        }
        (rounds, bytes)
    }

    #[test]
    fn equal_stores_cost_one_small_exchange() {
        let (rounds, bytes) = talk(&mut store(0..5_000), &mut store(0..5_000));
        assert_eq!(rounds, 2);
        assert!(bytes < 64, "{bytes} bytes");
    }

    #[test]
    fn one_difference_among_many_costs_little() {
        let (mut a, mut b) = (store(0..5_000), store(0..5_001));
        let (rounds, bytes) = talk(&mut a, &mut b);
        assert_eq!(a.fingerprint(), b.fingerprint());
        assert!(rounds <= 6 && bytes < 4_000, "{rounds} rounds, {bytes} bytes");
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
    fn unsound_ranges_from_the_wire_are_ignored() {
        let bytes = rmp_serde::to_vec(&(u64::MAX, 200u8)).unwrap();
        let prefix: Prefix = rmp_serde::from_slice(&bytes).unwrap();
        let answer = compare_ranges(&store(0..100), &[(prefix, Fingerprint::default())]);
        assert!(answer.messages.is_empty());
    }
}
