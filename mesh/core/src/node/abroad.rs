//! What a node does about other cells: its record in the directory, and as a relay the beats, the links, the repair
//! between cells and the word on who is out of reach. (What these are, [`crate::cells`] tells.)
//!
//! A node's record is written by the node itself: when it first hears of another cell, when it leaves, and when it finds
//! itself called lost. Its relays write only that it is lost. They say so half a second after membership, the second
//! relay a second after the first, and a relay that has lost more than half of its cell waits for much longer: what it
//! sees then is more likely its own misfortune. Where the halves of a cell disagree (each has lost the other, and both
//! reach the other cells), whoever is called lost objects, and a relay that insists does so once a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crdts::LWWReg;

use super::{Node, Output};
use crate::cells::{MAX_CELLS, NodeRecord, Pulses, Words};
use crate::id::{CellName, NodeId};
use crate::record::{Cell, Key, Record, Start};
use crate::time::{Instant, Now, Stamp};
use crate::view::MemberState;
use crate::wire::Message;

/// How often cells tell that they are there, as a part of the time after which they are lost.
const BEATS_UNTIL_LOST: u32 = 6;
/// How long a relay gathers what it has heard before it tells the others.
const GATHER: Duration = Duration::from_millis(200);
/// How long after it has heard of another cell a node announces itself, at most: spread, so that a cell that meets
/// another is not a stampede.
const ANNOUNCE_JITTER: Duration = Duration::from_millis(200);
/// How long a relay waits before it writes that a member is lost: until others that are lost with it are known, too.
const SETTLE: Duration = Duration::from_millis(500);
/// How much longer each next relay waits for the one before it.
const NEXT_RELAY: Duration = Duration::from_secs(1);
/// How much longer a relay waits that has lost more than half of its cell.
const MISFORTUNE: Duration = Duration::from_secs(30);
/// How long a relay waits before it contradicts a record that was written after it had lost the node.
const INSIST: Duration = Duration::from_secs(60);
/// How often a relay repeats which cells it cannot reach, and when what was not repeated is forgotten.
const REPEAT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(15));
/// How often another node of a cell out of reach is tried: those that were its relays may all be gone.
const NEXT_TRIAL: Duration = Duration::from_secs(10);
/// How soon after another a repair exchange is begun because somebody out of reach has spoken.
const CONTACT_PAUSE: Duration = Duration::from_secs(1);
/// How many nodes met through seeds are asked at a time who they are, and how often.
const STRANGERS: (usize, u32) = (64, 30);

/// What a node remembers of other cells, besides its peers.
#[derive(Debug, Clone, Default)]
pub(super) struct Abroad {
    /// Whether anything was ever heard of other cells. One cell alone does none of this.
    awake: bool,
    look_due: Instant,
    /// Nodes met that are not in the directory yet, and how often they were asked.
    strangers: BTreeMap<NodeId, u32>,
    /// Which records of this cell's nodes are to be looked at, and when.
    due: BTreeMap<NodeId, Due>,
    is_relay: bool,
    pulses: Pulses,
    tell_due: Option<Instant>,
    words: Words,
    /// What this relay has said it cannot reach, and when.
    said: BTreeSet<CellName>,
    said_at: Instant,
    repair_due: Instant,
    contact_due: Instant,
    /// The links asked for, with their addresses.
    linked: BTreeMap<NodeId, String>,
    /// A node of a cell out of reach, tried although it is none of its relays.
    trial: Option<NodeId>,
    trial_due: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    /// It has waited for longer than usual already.
    patient: bool,
}

impl Abroad {
    /// When there is something to do.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if !self.awake {
            return None;
        }
        let records = self.due.values().map(|due| due.at).min();
        [Some(self.look_due), self.tell_due, records].into_iter().flatten().min()
    }

    fn schedule(&mut self, node: &NodeId, at: Instant, patient: bool) {
        let due = self.due.entry(node.clone()).or_insert(Due { at, patient });
        if at < due.at {
            *due = Due { at, patient };
        }
    }
}

impl Node {
    /// Does what is due about other cells.
    pub(super) fn look_abroad(&mut self, now: Now, out: &mut Vec<Output>) {
        if !self.abroad.awake {
            return;
        }
        let due: Vec<(NodeId, Due)> =
            self.abroad.due.iter().filter(|(_, due)| due.at <= now.elapsed).map(|(n, d)| (n.clone(), *d)).collect();
        for (node, due) in due {
            self.abroad.due.remove(&node);
            self.check_record(now, &node, due.patient, out);
        }
        if now.elapsed >= self.abroad.look_due {
            self.abroad.look_due = now.elapsed + self.beat_interval();
            self.ask_strangers(now, out);
            if self.peers.has_other_cells() {
                self.relay(now, out);
                self.abroad.words.expire(now.elapsed - REPEAT.1);
                self.judge_cells(now);
            }
            self.keep_links(out);
            self.introduce(out);
        }
        if self.abroad.tell_due.is_some_and(|due| due <= now.elapsed) {
            self.tell_beats(out);
        }
    }

    fn beat_interval(&self) -> Duration {
        Duration::from_millis(self.settings.cell_lost_after_ms.clamp(1_000, 600_000)) / BEATS_UNTIL_LOST
    }

    /// There are other cells after all.
    fn wake(&mut self, now: Now) {
        if !std::mem::replace(&mut self.abroad.awake, true) {
            let jitter = Duration::from_micros(self.rng.u64(..=ANNOUNCE_JITTER.as_micros() as u64));
            let me = self.me.clone();
            self.abroad.schedule(&me, now.elapsed + jitter, true);
            self.abroad.look_due = now.elapsed;
        }
    }

    /// A simulator has told of a node of another cell, in place of its record: there is nothing to announce then.
    pub(super) fn told_by_hand(&mut self, now: Now) {
        if !std::mem::replace(&mut self.abroad.awake, true) {
            self.abroad.look_due = now.elapsed;
        }
    }

    /// What is remembered from the last run tells of other cells.
    pub(super) fn remember_cells(&mut self, now: Now) {
        if self.store.nodes() > 0 {
            self.wake(now);
        }
    }

    // ---- the directory

    /// A link leads to a node of another cell.
    pub(super) fn met(&mut self, now: Now, node: NodeId, out: &mut Vec<Output>) {
        let known = self.peers.state(&node);
        if node == self.me || known == Some(MemberState::Alive) {
            return;
        }
        self.wake(now);
        let me = self.me.clone();
        self.abroad.schedule(&me, now.elapsed, true);
        if known.is_some() {
            self.contact(now, node, out);
        } else if self.abroad.strangers.len() < STRANGERS.0 {
            self.abroad.strangers.insert(node, 0);
            self.abroad.look_due = now.elapsed;
        }
    }

    /// Repairs with those that were met until their records are here.
    fn ask_strangers(&mut self, now: Now, out: &mut Vec<Output>) {
        let peers = &self.peers;
        self.abroad.strangers.retain(|node, asked| peers.get(node).is_none() && *asked < STRANGERS.1);
        let strangers: Vec<NodeId> = self.abroad.strangers.keys().cloned().collect();
        for node in strangers {
            self.abroad.strangers.entry(node.clone()).and_modify(|asked| *asked += 1);
            self.open_exchange(now, node, out);
        }
    }

    /// Somebody speaks who was held for lost, or is not known: repairs with it at once.
    fn contact(&mut self, now: Now, node: NodeId, out: &mut Vec<Output>) {
        if now.elapsed >= self.abroad.contact_due {
            self.abroad.contact_due = now.elapsed + CONTACT_PAUSE;
            self.open_exchange(now, node, out);
        }
    }

    /// A peer's record of a node is news here.
    pub(super) fn heard_of_node(&mut self, now: Now, node: &NodeId) {
        self.wake(now);
        let Some(record) = self.node_record(node) else { return };
        let alive = record.state == MemberState::Alive;
        if *node == self.me {
            if !alive && !self.leaving {
                self.abroad.schedule(node, now.elapsed, true);
            }
        } else if record.facts.cell == *self.peers.cell() && alive && self.peers.state(node) != Some(MemberState::Alive)
        {
            self.abroad.due.remove(node);
            let delay = INSIST + self.relay_delay();
            self.abroad.schedule(node, now.elapsed + delay, true);
        }
    }

    /// Membership has changed its mind about a node of this cell.
    pub(super) fn neighbour_changed(&mut self, now: Now, node: &NodeId) {
        if !self.abroad.awake {
            return;
        }
        self.abroad.due.remove(node);
        if self.peers.state(node) != Some(MemberState::Alive) {
            let delay = SETTLE + self.relay_delay();
            self.abroad.schedule(node, now.elapsed + delay, false);
        }
    }

    fn relay_delay(&mut self) -> Duration {
        NEXT_RELAY * self.peers.rank().unwrap_or(0) as u32
    }

    fn node_record(&self, node: &NodeId) -> Option<Arc<NodeRecord>> {
        match self.store.get(&Key::Node(node.clone())) {
            Some(Cell::Node(register)) => Some(register.val.clone()),
            _ => None,
        }
    }

    /// Compares a record with what is known here, and corrects it if that is this node's to do.
    fn check_record(&mut self, now: Now, node: &NodeId, patient: bool, out: &mut Vec<Output>) {
        let record = self.node_record(node);
        if *node == self.me {
            let Some(me) = self.peers.get(node).filter(|_| !self.leaving) else { return };
            let mine = NodeRecord { facts: me.facts.clone(), state: MemberState::Alive };
            if record.as_deref() != Some(&mine) {
                self.write_record(now, node, mine, out);
            }
            return;
        }
        let (Some(record), Some(_)) = (record, self.peers.rank()) else { return };
        let known = self.peers.get(node);
        let state = known.map_or(MemberState::Lost, |known| known.state);
        let newer = known.is_some_and(|known| known.facts.incarnation > record.facts.incarnation);
        let ours = record.facts.cell == *self.peers.cell() && !newer;
        if !ours || state == MemberState::Alive || record.state == state || record.state == MemberState::Left {
            return;
        }
        if !patient && state == MemberState::Lost && !self.sees_most() {
            let delay = MISFORTUNE + self.relay_delay();
            return self.abroad.schedule(node, now.elapsed + delay, true);
        }
        self.write_record(now, node, NodeRecord { state, ..(*record).clone() }, out);
    }

    /// Whether this node sees at least half of those its cell is said to have: a smaller part may be the one that is cut off.
    fn sees_most(&self) -> bool {
        let said = |node: &&NodeId| self.node_record(node).is_some_and(|record| record.state == MemberState::Alive);
        self.peers.living().count() >= self.peers.missing().filter(said).count()
    }

    fn write_record(&mut self, now: Now, node: &NodeId, record: NodeRecord, out: &mut Vec<Output>) {
        let key = Key::Node(node.clone());
        let incarnation = record.facts.incarnation;
        let newer = matches!(self.store.get(&key), Some(Cell::Node(known)) if known.marker.incarnation > incarnation);
        let full = self.store.get(&key).is_none() && self.store.nodes() >= crate::cells::MAX_NODES;
        if newer || full || self.store.is_taken(&key) {
            // A newer start speaks for itself; a full directory takes nobody, as it does of a peer; and a name whose hash
            // is taken cannot be told of.
            return;
        }
        let marker = Start { incarnation, stamp: self.clock.issue(now.wall) };
        self.write(now, Record { key, cell: Cell::Node(LWWReg { val: Arc::new(record), marker }) }, out);
    }

    /// This node is stopping, and says so to the other cells.
    pub(super) fn announce_leaving(&mut self, now: Now, out: &mut Vec<Output>) {
        if !self.abroad.awake {
            return;
        }
        if let Some(me) = self.peers.get(&self.me) {
            let record = NodeRecord { facts: me.facts.clone(), state: MemberState::Left };
            let me = self.me.clone();
            self.write_record(now, &me, record, out);
        }
    }

    // ---- the relay

    /// What a relay does at every beat.
    fn relay(&mut self, now: Now, out: &mut Vec<Output>) {
        let rank = self.peers.rank().filter(|_| !self.leaving);
        let was_relay = std::mem::replace(&mut self.abroad.is_relay, rank.is_some());
        let Some(rank) = rank else { return };
        let own = self.peers.cell().clone();
        let abroad = &mut self.abroad;
        abroad.pulses.keep(self.peers.directory().cells().chain([&own]), now.elapsed);
        if !was_relay {
            abroad.pulses.listen(now.elapsed, self.peers.out_of_reach());
            abroad.repair_due = now.elapsed;
            self.look_through_records(now);
        }
        let interval = self.beat_interval();
        let last = self.abroad.pulses.heard(&own);
        // The first relay counts; each next one when those before it seem not to.
        if rank == 0 || last.is_none_or(|last| last + interval * (1 + 2 * rank as u32) <= now.elapsed) {
            self.abroad.pulses.beat(&own, now.elapsed);
            self.abroad.tell_due = Some(now.elapsed);
        }
        self.say_out_of_reach(now, out);
        self.repair_abroad(now, out);
        self.try_another(now);
    }

    /// A new relay may find records that nobody corrected.
    fn look_through_records(&mut self, now: Now) {
        let delay = self.relay_delay();
        for node in self.peers.missing() {
            self.abroad.schedule(node, now.elapsed + SETTLE + delay, false);
        }
        for node in self.peers.unmet().keys() {
            self.abroad.schedule(node, now.elapsed + INSIST + delay, true);
        }
    }

    /// Tells the other relays, of this cell and of others, which beats have risen.
    fn tell_beats(&mut self, out: &mut Vec<Output>) {
        self.abroad.tell_due = None;
        let news = self.abroad.pulses.take_news();
        if news.is_empty() {
            return;
        }
        let trial = self.abroad.trial.iter().cloned();
        let fellows = self.peers.relays().iter().filter(|relay| **relay != self.me).cloned();
        let listeners: BTreeSet<NodeId> = fellows.collect::<Vec<_>>().into_iter().chain(trial).collect();
        let listeners = listeners.into_iter().chain(self.peers.links().iter().cloned()).collect::<BTreeSet<_>>();
        out.extend(listeners.into_iter().map(|relay| Output::Send(relay, Message::Pulse(news.clone()))));
    }

    /// A relay tells which beats have risen.
    pub(super) fn heard_pulse(&mut self, now: Now, from: NodeId, beats: Vec<(CellName, u64)>, out: &mut Vec<Output>) {
        match self.peers.state(&from) {
            Some(MemberState::Alive) => {}
            Some(_) => self.contact(now, from, out),
            None => self.met(now, from, out),
        }
        if !self.abroad.is_relay {
            return;
        }
        let mut back = false;
        for (cell, beat) in beats.into_iter().take(MAX_CELLS) {
            back |= self.abroad.pulses.take(&cell, beat, now.elapsed) && self.abroad.said.contains(&cell);
        }
        if self.abroad.pulses.has_news() {
            let due = now.elapsed + GATHER;
            self.abroad.tell_due = Some(self.abroad.tell_due.map_or(due, |before| before.min(due)));
        }
        if back {
            self.say_out_of_reach(now, out);
            self.judge_cells(now);
        }
    }

    /// Says to the cell which others cannot be reached, when that has changed and now and then while there are any.
    fn say_out_of_reach(&mut self, now: Now, out: &mut Vec<Output>) {
        let patience = Duration::from_millis(self.settings.cell_lost_after_ms.clamp(1_000, 600_000));
        let mut silent = self.abroad.pulses.silent_since(now.elapsed - patience);
        silent.remove(self.peers.cell());
        let repeat = !silent.is_empty() && now.elapsed >= self.abroad.said_at + REPEAT.0;
        if silent == self.abroad.said && !repeat {
            return;
        }
        self.abroad.said = silent.clone();
        self.abroad.said_at = now.elapsed;
        let said = self.clock.issue(now.wall);
        let cells = silent.iter().take(MAX_CELLS).cloned().collect();
        self.abroad.words.take(&self.me, said.time, silent, now.elapsed);
        let word = Message::OutOfReach { said, cells };
        out.extend(self.peers.near_neighbours().iter().map(|peer| Output::Send(peer.clone(), word.clone())));
    }

    /// A relay of this cell says which others it cannot reach.
    pub(super) fn heard_out_of_reach(
        &mut self,
        now: Now,
        from: &NodeId,
        said: Stamp,
        cells: Vec<CellName>,
        out: &mut Vec<Output>,
    ) {
        let fellow = self.peers.get(&said.node).is_some_and(|relay| relay.facts.cell == *self.peers.cell());
        if !fellow || said.node == self.me || !self.peers.has_other_cells() {
            return;
        }
        let named = cells.iter().take(MAX_CELLS).cloned().collect();
        if self.abroad.words.take(&said.node, said.time, named, now.elapsed) {
            let others = self.peers.near_neighbours().iter().filter(|peer| *peer != from && **peer != said.node);
            let word = Message::OutOfReach { said: said.clone(), cells };
            out.extend(others.map(|peer| Output::Send(peer.clone(), word.clone())));
            self.judge_cells(now);
        }
    }

    /// Believes what most relays say.
    fn judge_cells(&mut self, now: Now) {
        let relays = self.peers.relays().to_vec();
        let known: BTreeSet<CellName> = self.peers.directory().cells().cloned().collect();
        let verdict: BTreeSet<CellName> = self.abroad.words.verdict(&relays).intersection(&known).cloned().collect();
        let before = self.peers.out_of_reach().clone();
        if verdict == before {
            return;
        }
        for cell in verdict.difference(&before) {
            tracing::warn!(%cell, "nothing is heard of a cell: its nodes are held for lost, their instances stay listed");
        }
        for cell in before.difference(&verdict) {
            tracing::info!(%cell, "a cell is heard of again");
        }
        for node in self.peers.set_out_of_reach(verdict.clone(), now.wall) {
            self.member_changed(&node, now);
        }
        self.publisher.put_out_of_reach(verdict);
    }

    /// Repairs with a relay of another cell, now and then.
    fn repair_abroad(&mut self, now: Now, out: &mut Vec<Output>) {
        if now.elapsed < self.abroad.repair_due {
            return;
        }
        let interval = Duration::from_millis(self.settings.relay_repair_interval_ms.clamp(100, 600_000));
        let jitter = Duration::from_micros(self.rng.u64(..=interval.as_micros() as u64 / 4));
        self.abroad.repair_due = now.elapsed + interval + jitter;
        let links = self.peers.links().to_vec();
        let reached: Vec<NodeId> =
            links.into_iter().filter(|relay| self.peers.state(relay) == Some(MemberState::Alive)).collect();
        if !reached.is_empty() {
            let chosen = reached[self.rng.usize(..reached.len())].clone();
            self.open_exchange(now, chosen, out);
        }
    }

    /// The relays of a cell out of reach may all be gone, and others in their place that nobody here could hear of: any
    /// of its nodes may still be there.
    fn try_another(&mut self, now: Now) {
        let lost: Vec<&CellName> = self.peers.out_of_reach().iter().collect();
        if lost.is_empty() {
            self.abroad.trial = None;
        } else if now.elapsed >= self.abroad.trial_due {
            self.abroad.trial_due = now.elapsed + NEXT_TRIAL;
            let cell = lost[self.rng.usize(..lost.len())];
            let members = self.peers.directory().members(cell).filter(|member| member.1 != MemberState::Left);
            let members: Vec<&NodeId> = members.map(|member| member.0).collect();
            self.abroad.trial = (!members.is_empty()).then(|| members[self.rng.usize(..members.len())].clone());
        }
    }

    /// Members of one cell may know only seeds of other cells in common, and then hear of each other through these.
    fn introduce(&mut self, out: &mut Vec<Output>) {
        let unmet = self.peers.unmet();
        if !unmet.is_empty() {
            let chosen = self.rng.usize(..unmet.len());
            out.extend(unmet.values().nth(chosen).map(|address| Output::Introduce(address.clone())));
        }
    }

    /// Asks for the links this node needs as a relay, and lets go of those it does not need any more.
    fn keep_links(&mut self, out: &mut Vec<Output>) {
        let mut wanted = self.peers.links().to_vec();
        if self.abroad.is_relay {
            wanted.extend(self.abroad.trial.clone());
        }
        let address = |node: &NodeId| Some((node.clone(), self.peers.get(node)?.facts.address.clone()));
        let wanted: BTreeMap<NodeId, String> = wanted.iter().filter_map(address).collect();
        let own = self.peers.cell();
        for node in self.abroad.linked.keys().filter(|node| !wanted.contains_key(*node)) {
            // One that has moved into this cell is membership's to keep.
            if self.peers.get(node).is_none_or(|known| known.facts.cell != *own) {
                out.push(Output::Unlink(node.clone()));
            }
        }
        for (node, address) in &wanted {
            if self.abroad.linked.get(node) != Some(address) {
                out.push(Output::Link(node.clone(), address.clone()));
            }
        }
        self.abroad.linked = wanted;
    }
}
