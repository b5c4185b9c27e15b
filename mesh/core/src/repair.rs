//! Repair: finding and closing every gap that push left, in O(difference) bytes.
//!
//! One side opens with the fingerprint of everything. Whoever holds something else under a range answers: with the
//! fingerprints of its sixteen parts while there is much in it, with its entries once there is little. Entries are
//! answered by what the other lacks and a list of what oneself wants. No exchange has state between messages: what is
//! lost, cut at a limit or overtaken is found again by the next exchange.
//!
//! Every answer is bounded, so a large difference takes many exchanges. That something was cut is handed on from
//! message to message along one branch of the exchange, and whoever learnt something when its last message comes in
//! opens the next one at once: as fast as it digests and the link carries, and no faster; one at a time; and not at all
//! when everything is refused (a wrong clock, say), which waits for the next regular exchange. Each answer begins
//! somewhere else (its `turn`), so that what is refused does not stand before the rest for ever.

use crate::digest::{Fingerprint, ItemHash, KeyHash, Prefix};
use crate::record::{Cell, Record};
use crate::store::Store;
use crate::wire::{Exchange, Message};

/// A range with at most so many records is answered by its entries instead of its parts.
const FEW: u64 = 32;
/// The most ranges in one message (about 80 kB).
const MAX_RANGES: usize = 4_096;
/// The most entries listed in one message (about 80 kB).
const MAX_ENTRIES: usize = 4_096;
/// The most records sent in answer to one message (about 1 MB of instances).
const MAX_RECORDS: usize = 8_192;
/// The most bytes of records sent in answer to one message: documents can be large. One record more may be sent.
const MAX_FILL_BYTES: usize = 4 * 1024 * 1024;
/// A message is closed when it holds about this many bytes of records, so that others get their turn.
const CHUNK_BYTES: usize = 128 * 1024;

/// Answers a peer's fingerprints of ranges.
pub fn compare_ranges(store: &Store, theirs: &[(Prefix, Fingerprint)], exchange: Exchange, turn: u64) -> Vec<Message> {
    let digest = store.digest();
    if let [(Prefix::ROOT, fingerprint)] = theirs
        && *fingerprint == digest.root()
    {
        return vec![Message::Same(*fingerprint)];
    }
    let (mut ranges, mut entries, mut listed, mut cut) = (Vec::new(), Vec::new(), 0, exchange.cut);
    for (prefix, fingerprint) in in_turn(theirs, turn).take(MAX_RANGES) {
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
    let longest_branch = !ranges.is_empty();
    if !entries.is_empty() {
        messages.push(Message::Entries { entries, exchange: Exchange { cut: cut && !longest_branch, ..exchange } });
    }
    if longest_branch {
        messages.push(Message::Ranges { ranges, exchange: Exchange { cut, ..exchange } });
    }
    messages
}

/// Answers a peer's complete lists of entries: sends what it lacks, asks for what this store lacks. Entries that differ
/// go both ways, since both sides may hold something of a cell.
pub fn compare_entries(
    store: &Store,
    theirs: &[(Prefix, Vec<(KeyHash, ItemHash)>)],
    exchange: Exchange,
    turn: u64,
) -> Vec<Message> {
    let digest = store.digest();
    let (mut fill, mut hashes, mut cut) = (Filling::default(), Vec::new(), exchange.cut);
    for (prefix, entries) in in_turn(theirs, turn).take(MAX_ENTRIES) {
        if fill.is_full() || hashes.len() >= MAX_ENTRIES {
            cut = true;
            break;
        }
        let mut theirs: Vec<_> = entries.iter().take(MAX_ENTRIES).filter(|entry| prefix.contains(entry.0)).collect();
        theirs.sort_unstable();
        hashes.extend(theirs.iter().filter(|(key, item)| digest.item(*key) != Some(*item)).map(|entry| entry.0));
        // So many that something is found for all the room there is, whatever they know already.
        let mine = digest.some_entries(*prefix, turn, fill.room() + theirs.len());
        cut |= (mine.len() as u64) < digest.fingerprint(*prefix).count;
        for entry in mine.iter().filter(|entry| theirs.binary_search(entry).is_err()) {
            if fill.is_full() {
                cut = true;
                break;
            }
            fill.add(store, entry.0);
        }
    }
    cut |= hashes.len() > MAX_ENTRIES;
    hashes.truncate(MAX_ENTRIES);
    let mut messages = fill.messages(Exchange { cut: cut && hashes.is_empty(), ..exchange });
    if !hashes.is_empty() {
        messages.push(Message::Want { hashes, exchange: Exchange { cut, ..exchange } });
    }
    messages
}

/// Sends what a peer asked for.
pub fn send_wanted(store: &Store, hashes: &[KeyHash], exchange: Exchange, turn: u64) -> Vec<Message> {
    let mut fill = Filling::default();
    let mut wanted = in_turn(hashes, turn).take(MAX_ENTRIES);
    while !fill.is_full()
        && let Some(hash) = wanted.next()
    {
        fill.add(store, *hash);
    }
    let left_out = wanted.next().is_some();
    fill.messages(Exchange { cut: exchange.cut || left_out, ..exchange })
}

/// Packs fresh changes into messages of bounded size.
pub fn push(records: Vec<Record>) -> Vec<Message> {
    pack(records).into_iter().map(Message::Push).collect()
}

/// All of a list, beginning where `turn` says.
fn in_turn<T>(list: &[T], turn: u64) -> impl Iterator<Item = &T> {
    let (before, from) = list.split_at((turn % list.len().max(1) as u64) as usize);
    from.iter().chain(before)
}

/// Records gathered for an answer, up to its limits.
#[derive(Default)]
struct Filling {
    records: Vec<Record>,
    bytes: usize,
}

impl Filling {
    fn room(&self) -> usize {
        MAX_RECORDS.saturating_sub(self.records.len())
    }

    fn is_full(&self) -> bool {
        self.room() == 0 || self.bytes >= MAX_FILL_BYTES
    }

    fn add(&mut self, store: &Store, hash: KeyHash) {
        if let Some(record) = store.by_hash(hash) {
            self.bytes += rough_bytes(&record);
            self.records.push(record);
        }
    }

    fn messages(self, exchange: Exchange) -> Vec<Message> {
        let chunks = pack(self.records);
        let last = chunks.len();
        let message = |(at, records)| {
            let cut = exchange.cut && at + 1 == last;
            Message::Fill { records, exchange: Exchange { cut, ..exchange } }
        };
        chunks.into_iter().enumerate().map(message).collect()
    }
}

/// Packs records into lists that fit a message.
fn pack(records: Vec<Record>) -> Vec<Vec<Record>> {
    let mut chunks = Vec::new();
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    for record in records.into_iter().flat_map(in_parts) {
        bytes += rough_bytes(&record);
        chunk.push(record);
        if bytes >= CHUNK_BYTES {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

/// A document with many large versions in conflict may be larger than a message; its versions are not.
fn in_parts(record: Record) -> Vec<Record> {
    if rough_bytes(&record) <= CHUNK_BYTES {
        return vec![record];
    }
    let Record { key, cell } = record;
    cell.parts().into_iter().map(|cell| Record { key: key.clone(), cell }).collect()
}

/// Near enough to the encoded size to bound messages by.
fn rough_bytes(record: &Record) -> usize {
    match &record.cell {
        Cell::Instance(register) => 128 + register.val.as_ref().map_or(0, |instance| instance.rough_bytes()),
        Cell::Node(register) => 192 + register.val.facts.version.len() + register.val.facts.address.len(),
        Cell::Override(register) => 128 + register.val.as_ref().map_or(0, |value| value.reason.len()),
        Cell::Config(register) => {
            let writers = register.read_ctx().add_clock.dots.len();
            let version_bytes = |version: &crate::config::Version| {
                128 + 32 * writers
                    + version.body.as_ref().map_or(0, |body| body.as_bytes().len())
                    + version.comment.len()
            };
            crate::record::versions(register).iter().map(|version| version_bytes(version)).sum()
        }
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
        let mut inbox = vec![Message::opening(a.fingerprint(), 1)];
        let mut to_b = true;
        while !inbox.is_empty() {
            rounds += 1;
            let here: &mut Store = if to_b { b } else { a };
            let mut answers = Vec::new();
            for message in inbox {
                bytes += message.encode().len();
                match message {
                    Message::Ranges { ranges, exchange } => answers.extend(compare_ranges(here, &ranges, exchange, 7)),
                    Message::Entries { entries, exchange } => {
                        answers.extend(compare_entries(here, &entries, exchange, 7))
                    }
                    Message::Want { hashes, exchange } => answers.extend(send_wanted(here, &hashes, exchange, 7)),
                    Message::Push(records) | Message::Fill { records, .. } => {
                        records.into_iter().for_each(|record| _ = here.merge(record).unwrap());
                    }
                    _ => {}
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
}
