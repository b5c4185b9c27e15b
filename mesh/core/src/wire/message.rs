//! Messages as bytes: the version, the kind, and then as little as says it.

use std::str::FromStr;

use super::bytes::{Reader, put_number};
use super::record::{put_records, records};
use super::{DecodeError, Exchange, Message, Received, WIRE_VERSION, body};
use crate::digest::{Fingerprint, KeyHash, Prefix};
use crate::id::{Incarnation, NameError};
use crate::push::{Beacon, ChangeId};
use crate::quotas::{QuotaId, Usage, Word};
use crate::record::Record;
use crate::repair::{Listed, Parts};
use crate::time::{HybridTime, Stamp, WallTime};

/// Kinds of message.
const PUSH: u8 = 1;
const RANGES: u8 = 2;
const ENTRIES: u8 = 3;
const WANT: u8 = 4;
const FILL: u8 = 5;
const SAME: u8 = 6;
const LEAVING: u8 = 7;
const HAVE: u8 = 8;
const GRAFT: u8 = 9;
const PRUNE: u8 = 10;
const BEACON: u8 = 11;
const PULSE: u8 = 32;
const OUT_OF_REACH: u8 = 33;
const CLOCK: u8 = 12;
const OPENING: u8 = 13;
const PULL: u8 = 14;
const PAGE: u8 = 15;
const USAGE: u8 = 16;

/// The most ranges, entries or hashes read of one message; senders stay below.
const MAX_LISTED: usize = 65_536;

impl Message {
    /// The message as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![WIRE_VERSION, 0];
        let to = &mut out;
        let kind = match self {
            Message::Push(records) => {
                put_records(records, to);
                PUSH
            }
            Message::Opening { store, exchange } => {
                put_exchange(exchange, to);
                put_fingerprint(store, to);
                OPENING
            }
            Message::Ranges { ranges, exchange } => {
                put_exchange(exchange, to);
                put_number(to, ranges.len() as u64);
                for (prefix, sums) in ranges {
                    put_prefix(*prefix, to);
                    sums.iter().for_each(|sum| to.extend_from_slice(&sum.to_le_bytes()));
                }
                RANGES
            }
            Message::Entries { entries, exchange } => {
                put_exchange(exchange, to);
                put_listed(entries, to);
                ENTRIES
            }
            Message::Want { wanted, exchange } => {
                put_exchange(exchange, to);
                put_listed(wanted, to);
                WANT
            }
            Message::Fill { records, exchange } => {
                put_exchange(exchange, to);
                put_records(records, to);
                FILL
            }
            Message::Same(fingerprint) => {
                put_fingerprint(fingerprint, to);
                SAME
            }
            Message::Pull { from, last } => {
                to.extend_from_slice(&from.0.to_le_bytes());
                to.extend_from_slice(&last.0.to_le_bytes());
                PULL
            }
            Message::Page { records, next, last, held } => {
                // A page that ends its lane says so by beginning the next one before itself, at nothing.
                to.extend_from_slice(&next.map_or(0, |next| next.0).to_le_bytes());
                to.extend_from_slice(&last.0.to_le_bytes());
                put_number(to, *held);
                put_records(records, to);
                PAGE
            }
            Message::Leaving(node, incarnation) => {
                put_number(to, incarnation.0);
                put_text(node.as_str(), to);
                LEAVING
            }
            Message::Have(ids) => {
                put_ids(ids, to);
                HAVE
            }
            Message::Graft(ids) => {
                put_ids(ids, to);
                GRAFT
            }
            Message::Prune => PRUNE,
            Message::Beacon(Beacon { root, number, hops }) => {
                to.extend_from_slice(&root.to_le_bytes());
                put_number(to, u64::from(*number));
                to.push(*hops);
                BEACON
            }
            Message::Pulse(beats) => {
                put_number(to, beats.len() as u64);
                for (cell, beat) in beats {
                    put_text(cell.as_str(), to);
                    put_number(to, *beat);
                }
                PULSE
            }
            Message::OutOfReach { said, cells } => {
                to.extend_from_slice(&said.time.0.to_le_bytes());
                put_text(said.node.as_str(), to);
                put_number(to, cells.len() as u64);
                cells.iter().for_each(|cell| put_text(cell.as_str(), to));
                OUT_OF_REACH
            }
            Message::Clock(wall) => {
                put_number(to, wall.0);
                CLOCK
            }
            Message::Usage { words, ask } => {
                to.push(u8::from(*ask));
                put_number(to, words.len() as u64);
                words.iter().for_each(|word| put_word(word, to));
                USAGE
            }
        };
        out[1] = kind;
        out
    }

    /// Reads what a peer sent.
    ///
    /// # Errors
    /// [`DecodeError`] when it is of another version, or no message at all. Nothing is allocated beyond a small
    /// multiple of the size of the input.
    pub fn decode(bytes: &[u8]) -> Result<Received, DecodeError> {
        let from = &mut Reader::new(body(bytes)?);
        let mut skipped = 0;
        let message = match from.byte()? {
            PUSH => Message::Push(read_records(from, &mut skipped)?),
            OPENING => Message::Opening { exchange: exchange(from)?, store: fingerprint(from)? },
            RANGES => Message::Ranges { exchange: exchange(from)?, ranges: list(from, 65, parts)? },
            ENTRIES => Message::Entries { exchange: exchange(from)?, entries: list(from, 2, listed)? },
            WANT => Message::Want { exchange: exchange(from)?, wanted: list(from, 2, listed)? },
            PULL => Message::Pull { from: KeyHash(from.fixed()?), last: KeyHash(from.fixed()?) },
            PAGE => {
                let (next, last) = (from.fixed()?, KeyHash(from.fixed()?));
                let next = (next != 0).then_some(KeyHash(next));
                Message::Page { next, last, held: from.number()?, records: read_records(from, &mut skipped)? }
            }
            FILL => Message::Fill { exchange: exchange(from)?, records: read_records(from, &mut skipped)? },
            SAME => Message::Same(fingerprint(from)?),
            LEAVING => {
                let incarnation = Incarnation(from.number()?);
                Message::Leaving(name(from)?, incarnation)
            }
            PULSE => Message::Pulse(list(from, 2, |from| Ok((name(from)?, from.number()?)))?),
            OUT_OF_REACH => {
                let said = Stamp { time: HybridTime(from.fixed()?), node: name(from)? };
                Message::OutOfReach { said, cells: list(from, 1, name)? }
            }
            HAVE => Message::Have(list(from, 4, id)?),
            GRAFT => Message::Graft(list(from, 4, id)?),
            PRUNE => Message::Prune,
            BEACON => {
                let (root, number) = (from.fixed()?, from.small()?);
                Message::Beacon(Beacon { root, number, hops: from.byte()? })
            }
            CLOCK => Message::Clock(WallTime(from.number()?)),
            USAGE => {
                let ask = from.byte()? & 1 == 1;
                Message::Usage { ask, words: list(from, 3, word)? }
            }
            _ => return Ok(Received { message: None, skipped }),
        };
        Ok(Received { message: Some(message), skipped })
    }
}

fn read_records(from: &mut Reader, skipped: &mut usize) -> Result<Vec<Record>, DecodeError> {
    let (read, unknown) = records(from)?;
    *skipped = unknown;
    Ok(read)
}

fn list<T>(
    from: &mut Reader,
    least_bytes: usize,
    read: impl Fn(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = from.count(least_bytes, MAX_LISTED)?;
    (0..count).map(|_| read(from)).collect()
}

fn put_text(text: &str, to: &mut Vec<u8>) {
    put_number(to, text.len() as u64);
    to.extend_from_slice(text.as_bytes());
}

fn name<T: FromStr<Err = NameError>>(from: &mut Reader) -> Result<T, DecodeError> {
    from.text()?.parse().map_err(|error: NameError| DecodeError::Malformed(error.to_string()))
}

fn parts(from: &mut Reader) -> Result<Parts, DecodeError> {
    let (prefix, mut sums) = (prefix(from)?, [0; 16]);
    for sum in &mut sums {
        *sum = from.fixed32()?;
    }
    Ok((prefix, sums))
}

fn put_listed(listed: &[Listed], to: &mut Vec<u8>) {
    put_number(to, listed.len() as u64);
    for (prefix, entries) in listed {
        put_prefix(*prefix, to);
        put_number(to, entries.len() as u64);
        entries.iter().for_each(|entry| to.extend_from_slice(&entry.to_le_bytes()));
    }
}

fn listed(from: &mut Reader) -> Result<Listed, DecodeError> {
    Ok((prefix(from)?, list(from, 4, |from| from.fixed32())?))
}

fn put_ids(ids: &[ChangeId], to: &mut Vec<u8>) {
    put_number(to, ids.len() as u64);
    ids.iter().for_each(|id| to.extend_from_slice(&id.0.to_le_bytes()));
}

fn id(from: &mut Reader) -> Result<ChangeId, DecodeError> {
    Ok(ChangeId(from.fixed32()?))
}

fn put_word(word: &Word, to: &mut Vec<u8>) {
    put_text(word.node.as_str(), to);
    put_number(to, word.beat);
    put_number(to, word.usages.len() as u64);
    for usage in &word.usages {
        to.extend_from_slice(&usage.quota.0.to_le_bytes());
        put_number(to, usage.demand_milli);
        put_number(to, usage.share_milli);
    }
}

fn word(from: &mut Reader) -> Result<Word, DecodeError> {
    let usage = |from: &mut Reader| {
        let quota = QuotaId(from.fixed()?);
        Ok(Usage { quota, demand_milli: from.number()?, share_milli: from.number()? })
    };
    Ok(Word { node: name(from)?, beat: from.number()?, usages: list(from, 10, usage)? })
}

fn put_exchange(exchange: &Exchange, to: &mut Vec<u8>) {
    to.extend_from_slice(&exchange.id.to_le_bytes());
    to.push(u8::from(exchange.cut));
    to.extend_from_slice(&exchange.start.0.to_le_bytes());
    put_number(to, exchange.held);
}

fn exchange(from: &mut Reader) -> Result<Exchange, DecodeError> {
    let (id, cut) = (from.fixed32()?, from.byte()? & 1 == 1);
    Ok(Exchange { id, cut, start: KeyHash(from.fixed()?), held: from.number()? })
}

fn put_fingerprint(fingerprint: &Fingerprint, to: &mut Vec<u8>) {
    put_number(to, fingerprint.count);
    if fingerprint.count > 0 {
        to.extend_from_slice(&fingerprint.sum.to_le_bytes());
    }
}

fn fingerprint(from: &mut Reader) -> Result<Fingerprint, DecodeError> {
    match from.number()? {
        0 => Ok(Fingerprint::default()),
        count => Ok(Fingerprint { count, sum: from.fixed()? }),
    }
}

/// A prefix: its levels, and the bytes that hold its bits.
fn put_prefix(prefix: Prefix, to: &mut Vec<u8>) {
    let (bits, levels) = prefix.to_parts();
    to.push(levels);
    to.extend_from_slice(&bits.to_be_bytes()[..usize::from(levels).div_ceil(2)]);
}

fn prefix(from: &mut Reader) -> Result<Prefix, DecodeError> {
    let unsound = DecodeError::malformed("there is no such range");
    let levels = from.byte()?;
    if levels > Prefix::MAX_LEVELS {
        return Err(unsound);
    }
    let bytes = from.take(usize::from(levels).div_ceil(2))?;
    let bits = bytes.iter().zip((0..8).rev()).fold(0, |bits, (byte, place)| bits | u64::from(*byte) << (8 * place));
    Prefix::from_parts(bits, levels).ok_or(unsound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{instance_record, node_record, stamp, tombstone_record};
    use crate::view::MemberState;

    fn every_kind() -> Vec<Message> {
        let exchange = Exchange { id: 0xdead_beef, cut: true, start: KeyHash(u64::MAX - 5), held: 1_000_000 };
        let fingerprint = Fingerprint { count: 300, sum: u64::MAX - 1 };
        let child = Prefix::ROOT.children().nth(11).unwrap();
        let grandchild = child.children().nth(15).unwrap();
        let lost = node_record("n1", 3, "eu-1", MemberState::Lost, stamp("n2", 8));
        let word = |name: &str, usages| {
            let usage = Usage { quota: QuotaId(u64::MAX - 7), demand_milli: 1 << 40, share_milli: 0 };
            Word { node: name.parse().unwrap(), beat: 1_700_000_000_000, usages: vec![usage; usages] }
        };
        let records = vec![instance_record("orders", "o1", "a", 7), tombstone_record("orders", "o2", "b", 9), lost];
        vec![
            Message::Push(records.clone()),
            Message::Opening { store: fingerprint, exchange },
            Message::Ranges { ranges: vec![(Prefix::ROOT, [u32::MAX; 16]), (grandchild, [7; 16])], exchange },
            Message::Entries { entries: vec![(child, vec![1, u32::MAX]), (grandchild, vec![])], exchange },
            Message::Want { wanted: vec![(child, vec![8])], exchange },
            Message::Pull { from: KeyHash(1), last: KeyHash(u64::MAX) },
            Message::Page { records: records.clone(), next: Some(KeyHash(5)), last: KeyHash(9), held: 77 },
            Message::Page { records: vec![], next: None, last: KeyHash(9), held: 0 },
            Message::Fill { records, exchange },
            Message::Same(fingerprint),
            Message::Leaving("node-7.example".parse().unwrap(), Incarnation(3)),
            Message::Have(vec![ChangeId(1), ChangeId(u32::MAX)]),
            Message::Graft(vec![ChangeId(77)]),
            Message::Prune,
            Message::Beacon(Beacon { root: u64::MAX, number: 300, hops: 9 }),
            Message::Pulse(vec![("eu-1".parse().unwrap(), 7), ("us-1".parse().unwrap(), u64::MAX)]),
            Message::OutOfReach { said: stamp("relay", 9), cells: vec!["eu-1".parse().unwrap()] },
            Message::Clock(WallTime(1_700_000_000_000)),
            Message::Usage { words: vec![], ask: true },
            Message::Usage { words: vec![word("n1", 0), word("n2", 2)], ask: false },
        ]
    }

    #[test]
    fn every_kind_of_message_reads_back_as_it_was_written() {
        for message in every_kind() {
            let received = Message::decode(&message.encode()).unwrap();
            assert_eq!(received, Received { message: Some(message), skipped: 0 });
        }
    }

    #[test]
    fn a_message_cut_anywhere_is_an_error_and_never_a_panic() {
        for message in every_kind() {
            let bytes = message.encode();
            for end in 0..bytes.len() {
                assert!(Message::decode(&bytes[..end]).is_err(), "{message:?} cut at {end}");
            }
        }
    }

    #[test]
    fn what_a_newer_peer_says_is_let_pass_and_counted() {
        let unknown = [WIRE_VERSION, 99, 1, 2, 3];
        assert_eq!(Message::decode(&unknown).unwrap(), Received { message: None, skipped: 0 });

        let mut longer = Message::Same(Fingerprint::default()).encode();
        longer.extend_from_slice(b"and more");
        assert_eq!(Message::decode(&longer).unwrap().message, Some(Message::Same(Fingerprint::default())));

        // No names, three records: one of an unknown kind, one of no kind at all, one malformed.
        let records = [WIRE_VERSION, PUSH, 0, 3, 2, 99, 1, 0, 2, 1, 200];
        assert_eq!(Message::decode(&records).unwrap(), Received { message: Some(Message::Push(vec![])), skipped: 3 });
    }

    #[test]
    fn a_peer_of_another_version_is_told_apart_from_a_broken_one() {
        let mut bytes = Message::Same(Fingerprint::default()).encode();
        bytes[0] = WIRE_VERSION + 1;
        assert!(matches!(Message::decode(&bytes), Err(DecodeError::Version { theirs }) if theirs == WIRE_VERSION + 1));
        assert!(matches!(Message::decode(&[]), Err(DecodeError::Empty)));
    }

    #[test]
    fn a_small_change_costs_less_than_seventy_bytes() {
        let record = instance_record("orders", "host-17.example:8080", "node-17", 1_700_000_000_000 << 16);
        let bytes = Message::Push(vec![record]).encode().len();
        assert!(bytes < 70, "{bytes}");
    }

    #[test]
    fn unsound_ranges_are_refused() {
        for bad in [&[17u8, 0, 0, 0, 0, 0, 0, 0, 0][..], &[1, 0x01]] {
            assert!(prefix(&mut Reader::new(bad)).is_err(), "{bad:?}");
        }
    }
}
