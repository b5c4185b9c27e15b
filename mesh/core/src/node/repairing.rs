//! Whom to repair with and when, and what follows from what repair brings.

use std::time::Duration;

use super::message::Way;
use super::{Node, Output};
use crate::digest::{Fingerprint, KeyHash};
use crate::id::NodeId;
use crate::record::Record;
use crate::repair::pages::{self, CatchUp};
use crate::repair::{self, Listed, Parts};
use crate::time::{Instant, Now};
use crate::wire::{Exchange, Message};

/// How long after a peer came back the repair with it begins, at most: spread, so that a heal is not a stampede.
pub(super) const RETURN_JITTER: Duration = Duration::from_millis(50);
/// How much of what repair taught is passed on to the neighbours in each repair interval, in records: enough for an
/// ordinary heal, little beside what filling a new node takes.
const MAX_PASSED_ON: usize = 2_048;

/// Where this node's own repairs stand. It has one at a time.
#[derive(Debug, Clone)]
pub(super) struct Repairing {
    /// The exchange this node opened last, and when.
    exchange: u32,
    opened: Instant,
    /// Records learnt by repair since one exchange led to the next: without any, going on at once is no use.
    learnt: usize,
    /// How many more records that repair teaches are passed on, and since when.
    pass_on_left: usize,
    pass_on_renewed: Instant,
    /// How far a peer's whole store has been read, if this node lacks most of what peers hold.
    catch_up: Option<CatchUp>,
    /// Records learnt from its pages.
    learnt_from_pages: usize,
    /// Pages since it began that taught nothing.
    vain_pages: usize,
    /// Until then there is no use in reading a whole store again: all of the last one was refused.
    vain_until: Instant,
}

/// How long a node that was taught nothing by a peer's whole store only compares.
const VAIN_PAUSE: Duration = Duration::from_secs(60);
/// Pages that teach nothing after which a node compares instead: its peer has nothing new, or never comes to an end.
const MAX_VAIN_PAGES: usize = 64;

impl Repairing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            exchange: 0,
            opened: now,
            learnt: 0,
            pass_on_left: MAX_PASSED_ON,
            pass_on_renewed: now,
            catch_up: None,
            learnt_from_pages: 0,
            vain_pages: 0,
            vain_until: Instant::default(),
        }
    }
}

impl Node {
    /// Begins a regular exchange: with a peer that has just come back, or a random neighbour.
    pub(super) fn begin_repair(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.reads(now) {
            return self.postpone_repair(now);
        }
        let chosen = self.peers.next_returned().or_else(|| {
            let neighbours = self.peers.near_neighbours();
            (!neighbours.is_empty()).then(|| neighbours[self.rng.usize(..neighbours.len())].clone())
        });
        match chosen {
            Some(peer) => {
                self.open_exchange(now, peer.clone(), out);
                out.push(Output::Send(peer, Message::Clock(self.shown_by_clocks.wall)));
            }
            None => self.postpone_repair(now),
        }
    }

    /// Opens a repair exchange, to begin anywhere; the next regular one is due an interval later.
    pub(super) fn open_exchange(&mut self, now: Now, peer: NodeId, out: &mut Vec<Output>) {
        let start = KeyHash(self.rng.u64(..));
        self.open_exchange_at(now, peer, start, out);
    }

    fn open_exchange_at(&mut self, now: Now, peer: NodeId, start: KeyHash, out: &mut Vec<Output>) {
        self.repairing.exchange = self.rng.u32(..);
        self.repairing.opened = now.elapsed;
        self.counters.repairs_begun += 1;
        let store = self.store.fingerprint();
        let exchange = Exchange { id: self.repairing.exchange, cut: false, start, held: store.count };
        out.push(Output::Send(peer, Message::Opening { store, exchange }));
        self.postpone_repair(now);
    }

    fn postpone_repair(&mut self, now: Now) {
        // A quarter of jitter keeps the exchanges of many nodes from falling into step.
        let interval = self.settings.repair_interval();
        let jitter = Duration::from_micros(self.rng.u64(..=interval.as_micros() as u64 / 4));
        let pause = if self.peers.has_returned() { RETURN_JITTER } else { interval + jitter };
        self.repair_due = now.elapsed + pause;
    }

    /// A peer wants to compare.
    pub(super) fn opened(
        &mut self,
        now: Now,
        from: NodeId,
        theirs: Fingerprint,
        exchange: Exchange,
        out: &mut Vec<Output>,
    ) {
        let mine = self.store.fingerprint();
        self.counters.repairs_differing += u64::from(mine != theirs);
        if self.reads(now) {
            return; // what this peer would send is on the pages to come
        }
        if self.repairing.catch_up.is_none() && self.is_far_behind(now, theirs.count) {
            return self.catch_up(now, from, theirs.count, out);
        }
        self.answer(from, repair::compare_all(&self.store, theirs, exchange), out);
    }

    pub(super) fn compare(
        &mut self,
        now: Now,
        from: NodeId,
        ranges: &[Parts],
        exchange: Exchange,
        out: &mut Vec<Output>,
    ) {
        if !self.reads_instead(now, &from, exchange, out) {
            self.answer(from, repair::compare_ranges(&self.store, ranges, exchange), out);
        }
    }

    pub(super) fn compare_entries(
        &mut self,
        now: Now,
        from: NodeId,
        entries: &[Listed],
        exchange: Exchange,
        out: &mut Vec<Output>,
    ) {
        if !self.reads_instead(now, &from, exchange, out) {
            self.answer(from, repair::compare_entries(&self.store, entries, exchange), out);
        }
    }

    /// Whether this node lacks so much of what the peer holds that it reads its store instead of comparing.
    fn reads_instead(&mut self, now: Now, from: &NodeId, exchange: Exchange, out: &mut Vec<Output>) -> bool {
        if exchange.id != self.repairing.exchange {
            return false;
        }
        if self.reads(now) {
            return true; // an answer from before it began
        }
        let mine = self.store.fingerprint().count;
        let reads = match &self.repairing.catch_up {
            Some(read) => read.goes_on_with(mine, exchange.held),
            None => self.is_far_behind(now, exchange.held),
        };
        if reads {
            self.catch_up(now, from.clone(), exchange.held, out);
        } else {
            self.caught_up(now);
        }
        reads
    }

    /// Whether pages are on their way.
    fn reads(&self, now: Now) -> bool {
        let interval = self.settings.repair_interval();
        self.repairing.catch_up.as_ref().is_some_and(|read| read.is_under_way(now.elapsed, interval))
    }

    fn is_far_behind(&self, now: Now, theirs: u64) -> bool {
        now.elapsed >= self.repairing.vain_until && pages::is_far_behind(self.store.fingerprint().count, theirs)
    }

    /// Begins to read a peer's whole store, or goes on with this peer where it stood.
    fn catch_up(&mut self, now: Now, peer: NodeId, theirs: u64, out: &mut Vec<Output>) {
        self.counters.catch_ups += 1;
        let mine = self.store.fingerprint().count;
        tracing::info!(%peer, mine, theirs, "catching up: this node lacks most of what a peer holds");
        let read = self.repairing.catch_up.get_or_insert_with(|| CatchUp::new(peer.clone(), mine, now.wall));
        let asked = read.ask(now.elapsed, &peer, theirs);
        self.publisher.put_catching_up(Some(read.shown()));
        out.extend(asked.into_iter().map(|message| Output::Send(peer.clone(), message)));
    }

    /// A peer holds what this node held when it asked: if it still does, nothing is missing, whoever filled the gap.
    pub(super) fn holds_the_same(&mut self, now: Now, theirs: Fingerprint) {
        if self.store.fingerprint() == theirs {
            self.caught_up(now);
        }
    }

    fn caught_up(&mut self, now: Now) {
        if self.repairing.catch_up.take().is_some() {
            self.repairing.vain_pages = 0;
            if std::mem::take(&mut self.repairing.learnt_from_pages) == 0 {
                self.repairing.vain_until = now.elapsed + VAIN_PAUSE;
            }
            let records = self.store.fingerprint().count;
            tracing::info!(records, "caught up");
            self.publisher.put_catching_up(None);
        }
    }

    /// Takes a page of a peer's store and asks for the next; after the last one the two compare what is left.
    pub(super) fn turned(
        &mut self,
        now: Now,
        from: NodeId,
        records: Vec<Record>,
        place: (Option<KeyHash>, KeyHash, u64),
        out: &mut Vec<Output>,
    ) {
        let asked = self.repairing.catch_up.as_mut().and_then(|read| read.turn(now.elapsed, &from, place));
        let awaited = asked.is_some();
        // Before the merging: the next page is on its way meanwhile. One not waited for is merged all the same.
        out.extend(asked.into_iter().flatten().map(|message| Output::Send(from.clone(), message)));
        let learnt = self.learn(now, &from, records, Way::Repair { pass_on: 0 }, out);
        self.repairing.learnt_from_pages += learnt;
        self.repairing.vain_pages += usize::from(awaited && learnt == 0);
        let vain = self.repairing.vain_pages > MAX_VAIN_PAGES;
        if self.repairing.catch_up.as_ref().is_some_and(|read| read.is_done() || vain) {
            self.caught_up(now);
            self.open_exchange(now, from, out);
        }
    }

    /// Sends what repair says.
    pub(super) fn answer(&mut self, to: NodeId, messages: Vec<Message>, out: &mut Vec<Output>) {
        for message in messages {
            if let Message::Fill { records, .. } | Message::Page { records, .. } = &message {
                self.counters.filled += records.len() as u64;
            }
            out.push(Output::Send(to.clone(), message));
        }
    }

    /// Takes what a peer found missing here. A little is passed on like a fresh change (a heal is over sooner so); the
    /// neighbours of a node that has much to learn know most of it already, and repair with each other anyway.
    pub(super) fn filled(
        &mut self,
        now: Now,
        from: NodeId,
        records: Vec<Record>,
        exchange: Exchange,
        out: &mut Vec<Output>,
    ) {
        let interval = self.settings.repair_interval();
        if now.elapsed >= self.repairing.pass_on_renewed + interval {
            self.repairing.pass_on_renewed = now.elapsed;
            self.repairing.pass_on_left = MAX_PASSED_ON;
        }
        let next = records.last().map(|record| KeyHash(KeyHash::of(&record.key).0.wrapping_add(1)));
        let learnt = self.learn(now, &from, records, Way::Repair { pass_on: self.repairing.pass_on_left }, out);
        self.repairing.pass_on_left = self.repairing.pass_on_left.saturating_sub(learnt);
        self.repairing.learnt += learnt;
        // Others open exchanges with this node too; to go on with each would be to learn the same several times over.
        let goes_on = exchange.id == self.repairing.exchange || now.elapsed >= self.repairing.opened + interval;
        if exchange.cut && goes_on && std::mem::take(&mut self.repairing.learnt) > 0 {
            self.open_exchange_at(now, from, next.unwrap_or(exchange.start), out);
        }
    }
}
