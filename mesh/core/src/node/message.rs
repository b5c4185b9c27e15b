//! What peers say: merged, passed on, answered.

use super::graves::Merged;
use super::{Node, Output, PeerEvent};
use crate::cells;
use crate::digest::KeyHash;
use crate::id::{Incarnation, NodeId};
use crate::push::ChangeId;
use crate::record::{Cell, Key, Record, versions};
use crate::repair::{self, pages};
use crate::time::Now;
use crate::wire::Message;

/// The most records believed of one message.
const MAX_PUSHED: usize = 16_384;

/// How records came.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Push,
    /// Of which so many may be passed on.
    Repair {
        pass_on: usize,
    },
}

/// Why a record was not merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Future(#[from] crate::time::FutureStamp),
    #[error(transparent)]
    Merge(#[from] crate::record::MergeError),
    #[error("{0}")]
    Limits(String),
}

impl Node {
    pub(super) fn message(&mut self, now: Now, from: NodeId, message: Message, out: &mut Vec<Output>) {
        match message {
            Message::Push(records) => _ = self.learn(now, &from, records, Way::Push, out),
            Message::Fill { records, exchange } => self.filled(now, from, records, exchange, out),
            Message::Opening { store, exchange } => self.opened(now, from, store, exchange, out),
            Message::Ranges { ranges, exchange } => self.compare(now, from, &ranges, exchange, out),
            Message::Entries { entries, exchange } => self.compare_entries(now, from, &entries, exchange, out),
            Message::Want { wanted, exchange } => {
                self.answer(from, repair::send_wanted(&self.store, &wanted, exchange), out);
            }
            Message::Pull { from: first, last } => self.answer(from, vec![pages::page(&self.store, first, last)], out),
            Message::Page { records, next, last, held } => self.turned(now, from, records, (next, last, held), out),
            Message::Same(theirs) => self.holds_the_same(now, theirs),
            Message::Clock(wall) => self.clocks.heard(&from, wall, self.shown_by_clocks),
            Message::Leaving(node, incarnation) => self.heard_leaving(now, &from, node, incarnation, out),
            Message::Have(ids) => self.push.heard_of(now.elapsed, &from, &ids, &mut self.counters),
            Message::Graft(ids) => self.grafted(from, &ids, out),
            Message::Prune => self.push.pruned(&from),
            Message::Beacon(beacon) => {
                self.push.beacon(now.elapsed, &from, beacon, self.peers.neighbours(), out);
            }
            Message::Pulse(beats) => self.heard_pulse(now, from, beats, out),
            Message::Usage { words, ask } => self.heard_usage(now, &from, words, ask, out),
            Message::OutOfReach { said, cells } => self.heard_out_of_reach(now, &from, said, cells, out),
        }
    }

    /// Sends what a neighbour has heard of and not got.
    fn grafted(&mut self, from: NodeId, ids: &[ChangeId], out: &mut Vec<Output>) {
        let hashes = self.push.grafted(&from, ids, self.peers.neighbours());
        let records: Vec<Record> = hashes.into_iter().filter_map(|hash| self.store.by_hash(hash)).collect();
        self.counters.pushed += records.len() as u64;
        out.extend(repair::push(records).into_iter().map(|message| Output::Send(from.clone(), message)));
    }

    /// Merges what a peer sent, passes news on and tells how many there were.
    pub(super) fn learn(
        &mut self,
        now: Now,
        from: &NodeId,
        records: Vec<Record>,
        way: Way,
        out: &mut Vec<Output>,
    ) -> usize {
        let (mut news, mut dead) = (Vec::new(), Vec::new());
        let merged_before = self.counters.merged;
        for record in records.into_iter().take(MAX_PUSHED) {
            let key = record.key.clone();
            let held = self.held(&key);
            let (hash, item) = record.hashes();
            let id = item.into();
            let merged = self.merge(record, now, out);
            match way {
                Way::Push => {
                    let news = !matches!(merged, Ok(Merged::Known));
                    self.push.arrived(now.elapsed, from, (id, hash), news, &mut self.counters, out);
                }
                Way::Repair { .. } => self.push.filled(from, id),
            }
            match merged {
                Ok(Merged::News) => {
                    self.counters.merged += 1;
                    self.show(&key, now);
                    let owned_before = held.is_some();
                    if !self.reclaim(&key, held, now, out) {
                        news.extend(self.news(key, owned_before, now, out));
                    }
                }
                Ok(Merged::Known) => self.counters.duplicates += 1,
                Ok(Merged::Dead(tombstone)) => dead.push(tombstone),
                Err(why) => self.refuse(from, &key, &why),
            }
        }
        self.counters.reburied += dead.len() as u64;
        out.extend(repair::push(dead).into_iter().map(|message| Output::Send(from.clone(), message)));
        if let Way::Repair { pass_on } = way {
            news.truncate(pass_on);
        }
        self.tell(now, news, Some(from), out);
        (self.counters.merged - merged_before) as usize
    }

    /// What to do with a record that a peer has just changed here: keep it on disk if it is everybody's, and pass it on
    /// as it is now (the merged cell says at least as much as the one that came).
    fn news(&mut self, key: Key, owned_before: bool, now: Now, out: &mut Vec<Output>) -> Option<Record> {
        let record = Record { cell: self.store.get(&key)?, key };
        if self.is_old(&record, now) {
            // It has killed what this node was alone to keep; it is told to others, and buried.
            self.collect_due = now.elapsed;
        }
        match &record.key {
            Key::Override(_) | Key::Config(_) => out.push(Output::Persist(record.clone())),
            Key::Instance(instance) if self.owns(&record.key) => {
                if !owned_before && self.incomplete {
                    tracing::info!(%instance, "taken back from peers: this node's disk had lost it");
                } else if !owned_before {
                    // Peers remember it as ours, we do not: this host was reinstalled, or crashed before the write was
                    // acknowledged. Nobody here looks after it, so it goes.
                    tracing::info!(%instance, "removed: peers held it for this node's, but it is not registered here");
                    self.update_instance(now, instance.clone(), None, out);
                    return None;
                }
                // A write of ours that reached peers but not our disk, or that our disk did not keep.
                out.push(Output::Persist(record.clone()));
            }
            Key::Instance(_) => {}
            Key::Node(node) => self.heard_of_node(now, node),
        }
        Some(record)
    }

    fn heard_leaving(
        &mut self,
        now: Now,
        from: &NodeId,
        node: NodeId,
        incarnation: Incarnation,
        out: &mut Vec<Output>,
    ) {
        if node == self.me {
            return;
        }
        let neighbours = self.peers.neighbours().to_vec();
        let Some(changed) = self.peers.apply(PeerEvent::Left(node.clone(), incarnation), now.wall) else { return };
        self.member_changed(&changed, now);
        self.neighbour_changed(now, &changed);
        let others = neighbours.into_iter().filter(|peer| peer != from && *peer != node);
        out.extend(others.map(|peer| Output::Send(peer, Message::Leaving(node.clone(), incarnation))));
    }

    /// Merges a peer's record, if it can be believed.
    fn merge(&mut self, record: Record, now: Now, out: &mut Vec<Output>) -> Result<Merged, Refused> {
        self.believable(&record, now)?;
        self.merge_with_graves(record, now, out)
    }

    /// Merges a record into the store and keeps everything that follows ownership (probes, leases, counts, disk) right.
    pub(super) fn absorb(&mut self, record: Record, now: Now, out: &mut Vec<Output>) -> Result<bool, Refused> {
        let key = record.key.clone();
        let held = self.held(&key);
        let about_node = matches!(record.key, Key::Node(_));
        if about_node && self.store.get(&key).is_none() && self.store.nodes() >= cells::MAX_NODES {
            return Err(Refused::Limits(format!("more than {} nodes in the directory", cells::MAX_NODES)));
        }
        if !self.store.merge(record)? {
            return Ok(false);
        }
        self.graveyard.dig_up(KeyHash::of(&key));
        if let Key::Instance(instance) = &key {
            self.follow_ownership(instance, held, now, out);
        }
        Ok(true)
    }

    fn believable(&mut self, record: &Record, now: Now) -> Result<(), Refused> {
        // Our own stamps too: after the loss of our disk, peers may know later ones than we do.
        for stamp in record.cell.stamps() {
            self.clock.witness(&stamp, now.wall)?;
        }
        let within_limits = match &record.cell {
            Cell::Instance(register) => register.val.as_ref().map_or(Ok(()), |instance| instance.check_limits()),
            Cell::Override(register) => register.val.as_ref().map_or(Ok(()), |value| value.check_limits()),
            Cell::Node(register) => register.val.check_limits(),
            Cell::Config(register) => versions(register).iter().try_for_each(|version| version.check_limits()),
        };
        within_limits.map_err(Refused::Limits)
    }

    fn refuse(&mut self, from: &NodeId, key: &Key, why: &Refused) {
        self.counters.refused += 1;
        // A peer with a wrong clock sends many of these; the powers of two tell the story without filling the log.
        if self.counters.refused.is_power_of_two() {
            tracing::warn!(peer = %from, ?key, %why, refused = self.counters.refused, "record refused");
        }
    }
}
