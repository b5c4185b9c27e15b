//! Catching up: reading a peer's whole store, page by page, in the order of key hashes.
//!
//! For a node that lacks more than it holds (a new one, one that was away long) comparing would only find out, range by
//! range, that everything is missing. It asks for pages instead, on a few lanes at once so that a long link is kept
//! busy; each page says where the next begins. The node uses every page as it comes. It remembers how far each lane
//! has come: after an interruption it goes on from there, with whatever peer. What changed behind its back, or got
//! lost, the ordinary exchange after the last page finds.

use std::time::Duration;

use super::{Filling, MAX_FILL_BYTES};
use crate::digest::KeyHash;
use crate::id::NodeId;
use crate::record::Record;
use crate::store::Store;
use crate::time::{Instant, WallTime};
use crate::view::CatchingUp;
use crate::wire::Message;

/// Lanes a store is read on at a time: four pages under way keep 100 ms links at some 40,000 records a second.
pub(crate) const LANES: u64 = 4;
/// The most records on a page: about 60 kB of instances, a millisecond or two on either side.
pub(crate) const PAGE_RECORDS: usize = 1_024;
/// The most bytes on a page; it is closed by the record that passes them.
const PAGE_BYTES: usize = 256 * 1024;
/// A node that lacks fewer records than this compares: that is soon done.
const MUCH: u64 = 8_192;

/// How far this node has come.
#[derive(Debug, Clone)]
pub struct CatchUp {
    from: NodeId,
    lanes: Vec<Lane>,
    /// How many records the peer holds.
    of: u64,
    began_with: u64,
    since: WallTime,
    heard: Instant,
}

#[derive(Debug, Clone)]
struct Lane {
    next: KeyHash,
    last: KeyHash,
    done: bool,
}

/// Whether a node with so many records should catch up with a peer that holds so many, rather than compare.
pub fn is_far_behind(mine: u64, theirs: u64) -> bool {
    theirs.saturating_sub(mine) >= MUCH && theirs > mine.saturating_mul(2)
}

impl CatchUp {
    /// Nothing read yet.
    pub fn new(from: NodeId, mine: u64, since: WallTime) -> Self {
        let width = u64::MAX / LANES + 1;
        let lane = |number: u64| Lane {
            next: KeyHash(number * width),
            last: KeyHash((number * width).wrapping_add(width - 1)),
            done: false,
        };
        Self { from, lanes: (0..LANES).map(lane).collect(), of: 0, began_with: mine, since, heard: Instant::default() }
    }

    /// Whether the peer has answered within this time; else another should be asked.
    pub fn is_under_way(&self, now: Instant, within: Duration) -> bool {
        now < self.heard + within
    }

    /// Whether there is something to gain from a peer that holds so many.
    pub fn goes_on_with(&self, mine: u64, theirs: u64) -> bool {
        theirs.saturating_sub(mine) >= MUCH
    }

    /// Asks a peer, this or another one, for the next page on every lane.
    pub fn ask(&mut self, now: Instant, peer: &NodeId, theirs: u64) -> Vec<Message> {
        self.from = peer.clone();
        self.of = theirs;
        self.heard = now;
        let open = self.lanes.iter().filter(|lane| !lane.done);
        open.map(|lane| Message::Pull { from: lane.next, last: lane.last }).collect()
    }

    /// Takes note of a page and asks for the next one on its lane. `None` when it is not one that was waited for.
    pub fn turn(
        &mut self,
        now: Instant,
        peer: &NodeId,
        (next, last, theirs): (Option<KeyHash>, KeyHash, u64),
    ) -> Option<Vec<Message>> {
        if *peer != self.from {
            return None;
        }
        let lane = self.lanes.iter_mut().find(|lane| lane.last == last && !lane.done)?;
        self.heard = now;
        self.of = theirs;
        match next.filter(|next| *next > lane.next && *next <= lane.last) {
            Some(next) => {
                lane.next = next;
                Some(vec![Message::Pull { from: next, last }])
            }
            None => {
                lane.done = true;
                Some(Vec::new())
            }
        }
    }

    /// Whether all has been read.
    pub fn is_done(&self) -> bool {
        self.lanes.iter().all(|lane| lane.done)
    }

    /// What readers are shown of it.
    pub fn shown(&self) -> CatchingUp {
        CatchingUp { from: self.from.clone(), of: self.of, began_with: self.began_with, since: self.since }
    }
}

/// The page of a store that begins at a key hash, up to the end of its lane.
pub fn page(store: &Store, from: KeyHash, last: KeyHash) -> Message {
    let mut filling = Filling::default();
    let mut next = None;
    // One more than a page holds, to know where the next begins.
    for (key, _) in store.digest().entries_from(from, last, PAGE_RECORDS + 1) {
        if filling.records.len() >= PAGE_RECORDS || filling.bytes >= PAGE_BYTES.min(MAX_FILL_BYTES) {
            next = Some(key);
            break;
        }
        filling.add(store, key);
    }
    // A document with many large versions in conflict may be too large for a message: the exchange sends it in parts.
    let records: Vec<Record> = filling.records.into_iter().filter(|record| !super::is_large(record)).collect();
    Message::Page { records, next, last, held: store.fingerprint().count }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::instance_record;

    fn store(count: u64) -> Store {
        let mut store = Store::default();
        for number in 0..count {
            store.merge(instance_record("orders", &format!("o{number}"), "a", number + 1)).unwrap();
        }
        store
    }

    fn peer() -> NodeId {
        "b".parse().unwrap()
    }

    #[test]
    fn all_pages_of_all_lanes_are_the_whole_store_once() {
        let full = store(6_000);
        let mut learnt = Store::default();
        let mut catch_up = CatchUp::new(peer(), 0, WallTime(0));
        let mut asked = catch_up.ask(Instant(0), &peer(), 6_000);
        let mut records_sent = 0;
        while let Some(question) = asked.pop() {
            let Message::Pull { from, last } = question else { panic!("{question:?}") };
            let Message::Page { records, next, last, held } = page(&full, from, last) else { panic!("no page") };
            assert!(records.len() <= PAGE_RECORDS);
            records_sent += records.len();
            records.into_iter().for_each(|record| _ = learnt.merge(record).unwrap());
            asked.extend(catch_up.turn(Instant(1), &peer(), (next, last, held)).unwrap());
        }
        assert!(catch_up.is_done());
        assert_eq!((learnt.fingerprint(), records_sent), (full.fingerprint(), 6_000));
    }

    #[test]
    fn a_peer_that_turns_pages_backwards_ends_its_lane() {
        let mut catch_up = CatchUp::new(peer(), 0, WallTime(0));
        let asked = catch_up.ask(Instant(0), &peer(), 6_000);
        let Message::Pull { from, last } = asked[1] else { panic!() };
        assert_eq!(catch_up.turn(Instant(1), &peer(), (Some(from), last, 6_000)), Some(vec![]));
        assert_eq!(catch_up.turn(Instant(1), &peer(), (Some(from), last, 6_000)), None, "not waited for any more");
        assert_eq!(catch_up.turn(Instant(1), &"c".parse().unwrap(), (None, last, 6_000)), None, "not who was asked");
    }

    #[test]
    fn only_who_lacks_much_and_most_catches_up() {
        assert!(is_far_behind(0, MUCH) && is_far_behind(MUCH, 3 * MUCH));
        assert!(!is_far_behind(0, MUCH - 1) && !is_far_behind(2 * MUCH, 3 * MUCH) && !is_far_behind(5, 4));
    }
}
