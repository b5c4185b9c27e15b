//! Repair: finding and closing every gap that push left, in O(difference) bytes and O(log n) messages.
//!
//! One side opens with the fingerprint of everything. Whoever holds something else under a range answers: with the sums
//! of its sixteen parts while there is much in it, with its entries once there is little. Entries are answered by what
//! the other lacks and a list of what oneself wants. No exchange has state between messages: what is lost, cut at a
//! limit or overtaken is found again by the next exchange, and what an interrupted one has closed stays closed.
//!
//! Sums and entries are four bytes each, salted with the number of the exchange: two that are equal by chance (once in
//! four thousand million) are so in one exchange, not for ever.
//!
//! Every answer is bounded, so a large difference takes many exchanges. That something was cut is handed on from
//! message to message along one branch of the exchange, and whoever learnt something when its last message comes in
//! opens the next one at once, to begin where this one ended: as fast as it digests and the link carries, and no faster;
//! one at a time; and not at all when everything is refused (a wrong clock, say), which waits for the next regular
//! exchange. That begins anywhere, so that what is refused does not stand before the rest for ever.
//!
//! A node that lacks more than it holds does not compare: it reads a peer's store page by page, see [`pages`].

pub mod pages;

use crate::digest::{Digest, KeyHash, Prefix};
use crate::record::{Cell, Record};
use crate::store::Store;
use crate::wire::{Exchange, Message};

/// A range with at most so many records is answered by its entries instead of its parts.
const FEW: u64 = 32;
/// The most ranges in one message (70 kB), of sixteen parts each.
const MAX_RANGES: usize = 1_024;
/// The most entries listed in one message (64 kB).
const MAX_ENTRIES: usize = 16_384;
/// The most entries looked at for one message.
const MAX_LOOKED_AT: usize = 65_536;
/// The most records sent in answer to one message (about 130 kB of instances): a few milliseconds, then others have
/// their turn.
const MAX_RECORDS: usize = 2_048;
/// The most bytes of records sent in answer to one message: documents can be large. One record more may be sent.
const MAX_FILL_BYTES: usize = 4 * 1024 * 1024;
/// A message is closed when it holds about this many bytes of records, so that others get their turn.
const CHUNK_BYTES: usize = 128 * 1024;

/// A range, and the salted sums of its sixteen parts.
pub type Parts = (Prefix, [u32; 16]);
/// A range, and the salted item hashes of entries in it.
pub type Listed = (Prefix, Vec<u32>);

/// Answers a peer's opening.
pub fn compare_all(store: &Store, theirs: crate::digest::Fingerprint, exchange: Exchange) -> Vec<Message> {
    if theirs == store.fingerprint() {
        return vec![Message::Same(theirs)];
    }
    let exchange = Exchange { held: store.fingerprint().count, ..exchange };
    let digest = store.digest();
    if store.fingerprint().count <= FEW {
        return vec![Message::Entries { entries: vec![entries(digest, Prefix::ROOT, exchange)], exchange }];
    }
    vec![Message::Ranges { ranges: vec![parts(digest, Prefix::ROOT, exchange)], exchange }]
}

/// Answers a peer's sums of ranges.
pub fn compare_ranges(store: &Store, theirs: &[Parts], exchange: Exchange) -> Vec<Message> {
    let exchange = Exchange { held: store.fingerprint().count, ..exchange };
    let digest = store.digest();
    let (mut ranges, mut few, mut listed, mut cut) = (Vec::new(), Vec::new(), 0, exchange.cut);
    'all: for (prefix, sums) in in_turn(theirs, exchange.start) {
        for (child, sum) in prefix.children().zip(sums) {
            let mine = digest.fingerprint(child);
            if mine.salted(exchange.id) == *sum {
                continue;
            }
            if ranges.len() >= MAX_RANGES || listed >= MAX_ENTRIES {
                cut = true;
                break 'all;
            }
            if mine.count <= FEW {
                listed += mine.count as usize + 1;
                few.push(entries(digest, child, exchange));
            } else {
                ranges.push(parts(digest, child, exchange));
            }
        }
    }
    let mut messages = Vec::new();
    let longest_branch = !ranges.is_empty();
    if !few.is_empty() {
        let exchange = Exchange { cut: cut && !longest_branch, ..exchange };
        messages.push(Message::Entries { entries: few, exchange });
    }
    if longest_branch {
        messages.push(Message::Ranges { ranges, exchange: Exchange { cut, ..exchange } });
    }
    messages
}

/// Answers a peer's complete lists of entries: sends what it lacks, asks for what this store lacks. Entries that differ
/// go both ways, since both sides may hold something of a cell.
pub fn compare_entries(store: &Store, theirs: &[Listed], exchange: Exchange) -> Vec<Message> {
    let exchange = Exchange { held: store.fingerprint().count, ..exchange };
    let digest = store.digest();
    let (mut fill, mut wanted, mut cut) = (Filling::default(), Vec::new(), exchange.cut);
    let (mut asked, mut looked_at) = (0, 0);
    for (prefix, theirs) in in_turn(theirs, exchange.start) {
        if fill.is_full() || asked >= MAX_ENTRIES || looked_at >= MAX_LOOKED_AT {
            cut = true;
            break;
        }
        let mut theirs = theirs.clone();
        theirs.sort_unstable();
        // So many that something is found for all the room there is, whatever they know already.
        let start = if prefix.contains(exchange.start) { exchange.start.0 } else { 0 };
        let mine = digest.some_entries(*prefix, start, fill.room() + theirs.len());
        looked_at += mine.len() + 1;
        let all = mine.len() as u64 == digest.fingerprint(*prefix).count;
        let mut known = Vec::with_capacity(mine.len().min(theirs.len()));
        for (key, item) in mine {
            let salted = item.salted(exchange.id);
            if theirs.binary_search(&salted).is_ok() {
                known.push(salted);
            } else if fill.is_full() {
                cut = true;
                break;
            } else {
                fill.add(store, key);
            }
        }
        cut |= !all;
        // Of what was seen in part, nobody can say what is missing here; once it is alike, the next exchange will.
        if all {
            known.sort_unstable();
            theirs.retain(|salted| known.binary_search(salted).is_err());
            asked += theirs.len();
            if !theirs.is_empty() {
                wanted.push((*prefix, theirs));
            }
        }
    }
    let sent = fill.messages(Exchange { cut: cut && wanted.is_empty(), ..exchange });
    // Asked before anything is sent: what is merged there is called something else afterwards.
    let asked = (!wanted.is_empty()).then(|| Message::Want { wanted, exchange: Exchange { cut, ..exchange } });
    asked.into_iter().chain(sent).collect()
}

/// Sends what a peer asked for.
pub fn send_wanted(store: &Store, wanted: &[Listed], exchange: Exchange) -> Vec<Message> {
    let exchange = Exchange { held: store.fingerprint().count, ..exchange };
    let digest = store.digest();
    let (mut fill, mut looked_at, mut cut) = (Filling::default(), 0, exchange.cut);
    for (prefix, wanted) in in_turn(wanted, exchange.start) {
        looked_at += digest.fingerprint(*prefix).count as usize;
        if fill.is_full() || looked_at > MAX_LOOKED_AT {
            cut = true;
            break;
        }
        let mut wanted = wanted.clone();
        wanted.sort_unstable();
        let is_wanted = |item: crate::digest::ItemHash| wanted.binary_search(&item.salted(exchange.id)).is_ok();
        for (key, _) in digest.entries(*prefix).into_iter().filter(|(_, item)| is_wanted(*item)) {
            if fill.is_full() {
                cut = true;
                break;
            }
            fill.add(store, key);
        }
    }
    fill.messages(Exchange { cut, ..exchange })
}

fn parts<R>(digest: &Digest<R>, prefix: Prefix, exchange: Exchange) -> Parts {
    let mut sums = [0; 16];
    for (sum, child) in sums.iter_mut().zip(prefix.children()) {
        *sum = digest.fingerprint(child).salted(exchange.id);
    }
    (prefix, sums)
}

fn entries<R>(digest: &Digest<R>, prefix: Prefix, exchange: Exchange) -> Listed {
    (prefix, digest.entries(prefix).into_iter().map(|(_, item)| item.salted(exchange.id)).collect())
}

/// Packs fresh changes into messages of bounded size.
pub fn push(records: Vec<Record>) -> Vec<Message> {
    pack(records).into_iter().map(Message::Push).collect()
}

/// All of a list of ranges in order, beginning with the one that holds a key hash.
fn in_turn<T>(list: &[(Prefix, T)], start: KeyHash) -> impl Iterator<Item = &(Prefix, T)> {
    let (before, from) = list.split_at(list.partition_point(|(prefix, _)| prefix.last() < start));
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

/// Whether a record should be sent in parts, if it has any.
fn is_large(record: &Record) -> bool {
    rough_bytes(record) > CHUNK_BYTES && record.cell.parts().len() > 1
}

/// A document with many large versions in conflict may be larger than a message; its versions are not.
fn in_parts(record: Record) -> Vec<Record> {
    if !is_large(&record) {
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
mod tests;
