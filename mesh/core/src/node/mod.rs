//! The one door into the heart: [`Node::handle`].
//!
//! Everything that can happen to a node comes in as an [`Input`], everything it wants from the world goes out as an
//! [`Output`]; the picture for readers is republished whenever it changed. What commands do is in `command`, what
//! peers' messages do in `message`, what follows from ownership in `owner`, what becomes of what is gone in
//! `graves` and `ghosts`, what is done about other cells in `abroad`, about the mesh's quotas in `quota`, how the
//! picture is kept in `publish`.

mod abroad;
mod command;
mod ghosts;
mod graves;
mod message;
mod owner;
mod publish;
mod quota;
mod repairing;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clocks::Clocks;
use crate::config::ConfigWrite;
use crate::graveyard::Graveyard;
use crate::health::Monitor;
use crate::id::{CommandId, ConfigKey, Incarnation, InstanceKey, NodeId};
use crate::peers::Peers;
use crate::preserve::Preserver;
use crate::push::Push;
use crate::quotas::{QuotaId, QuotaUse, Quotas};
use crate::record::{Key, Record};
use crate::registry::{Address, Check, Override, Registration, Status};
use crate::store::Store;
use crate::time::{HybridClock, HybridTime, Instant, Now, Stamp};
use crate::view::{NodeFacts, Revision, View};
use crate::wire::Message;
use abroad::Abroad;
use publish::Publisher;
use repairing::{RETURN_JITTER, Repairing};
pub use settings::Settings;

/// Everything that can happen to a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A person or program wants something; answered by exactly one [`Output::Reply`].
    Command(CommandId, Command),
    /// A peer said something; `NodeId` is the name in its certificate.
    Message(NodeId, Message),
    /// Membership noticed something.
    Peer(PeerEvent),
    /// One probe of an instance's check ended: good, or bad with the reason.
    Probe(InstanceKey, Result<(), String>),
    /// What is asked of the mesh's quotas here: about four times a second while there is anything to tell, and once more,
    /// empty, when there is not. Answered by one [`Output::Shares`].
    Usage(Vec<QuotaUse>),
    /// Time has passed; due at [`Node::next_wakeup`], harmless at any other time.
    Tick,
}

/// What people and programs can ask of a node. Every peer takes every command.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Put an instance into the registry, owned by this node from now on (taking it over if it was elsewhere).
    Register(Registration),
    /// Renew the lease of an instance with a TTL check: "alive" (`Ok`) or "failing", with the reason. A renewal at a
    /// node that is not the owner takes the instance over.
    Renew(InstanceKey, Result<(), String>),
    /// Change only the status the owner gives. Refused at other nodes than the owner; operators use an override.
    SetStatus(InstanceKey, Status),
    /// Remove an instance, wherever it is owned.
    Deregister(InstanceKey),
    /// Set (or with `None` clear) an operator's override, also of an instance that is not registered (yet).
    SetOverride(InstanceKey, Option<Override>),
    /// Write or delete a configuration document. Resolves any conflict visible here.
    WriteConfig(ConfigWrite),
    /// Stop cleanly: tell everybody that this node's instances are gone. Further commands are refused.
    Leave,
}

/// What became of a [`Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Applied here, on disk here, and on its way to the peers.
    Done {
        /// The first revision of this node's view that shows it.
        revision: Revision,
        /// The stamp of the write; `None` when there was nothing to write.
        stamp: Option<Stamp>,
    },
}

/// Why a [`Command`] was refused; the node's state is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request itself is wrong: which field, and what to do.
    #[error("{0}")]
    Invalid(String),
    /// No such instance.
    #[error("no instance {0} is known at this node")]
    NoInstance(InstanceKey),
    /// No such document.
    #[error("no config document {0}")]
    NoConfig(ConfigKey),
    /// The instance belongs to another node.
    #[error("instance {key} is owned by node {owner}; ask there, or set an override")]
    NotOwner {
        /// The instance.
        key: InstanceKey,
        /// Its owner.
        owner: NodeId,
    },
    /// Somebody else wrote first.
    #[error("the document has changed: the version served now is {}", match .0 { Some(stamp) => stamp.to_string(), None => "none".into() })]
    Changed(Option<Stamp>),
    /// A limit is reached.
    #[error("{what}: the limit of {limit} is reached")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The node is stopping.
    #[error("this node is stopping; ask another peer")]
    Leaving,
}

/// What membership says of another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEvent {
    /// It is there (again), or its facts changed. (Of nodes of other cells records tell; a simulator may do so instead.)
    Up(NodeId, NodeFacts),
    /// It has not been heard of for too long.
    Lost(NodeId),
    /// It said it is stopping: this start of it is over.
    Left(NodeId, Incarnation),
    /// A link leads to it, and it says it is of another cell.
    Met(NodeId),
}

/// Everything a node can want from the world.
#[derive(Debug, Clone)]
pub enum Output {
    /// Give this to a peer, if you can. Drop it if not: repair will notice.
    Send(NodeId, Message),
    /// Answer a command, after everything persisted before it is on disk.
    Reply(CommandId, Result<Answer, Refusal>),
    /// Keep this record on disk: newest wins per key.
    Persist(Record),
    /// This key need not be on disk any more.
    Forget(Key),
    /// Begin (or change) probing an instance on this host; answer with [`Input::Probe`] per probe.
    Probe(InstanceKey, Address, Check),
    /// Stop probing it.
    StopProbe(InstanceKey),
    /// Keep a link to this node of another cell from now on; here is its address.
    Link(NodeId, String),
    /// That link is no longer needed.
    Unlink(NodeId),
    /// At this address there should be a member of this cell that membership has not told of: it may not know it.
    Introduce(String),
    /// What this node may use of the quotas it reported, in thousandths of a call a second.
    Shares(Vec<(QuotaId, u64)>),
    /// The new picture for all readers.
    Publish(Arc<View>),
}

/// What a node remembers from its last run.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The records it was asked to persist.
    pub records: Vec<Record>,
    /// A hybrid time not earlier than any it has ever issued.
    pub last_used: HybridTime,
    /// Some of it could not be read: instances that peers hold for this node's are believed to be, not removed.
    pub incomplete: bool,
}

/// What the heart counts; all grow only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Records merged from peers that changed the store.
    pub merged: u64,
    /// Records from peers that were known already.
    pub duplicates: u64,
    /// Records refused: malformed, or stamped too far in the future.
    pub refused: u64,
    /// Repair exchanges begun.
    pub repairs_begun: u64,
    /// Repair exchanges that found a difference.
    pub repairs_differing: u64,
    /// Records sent to peers that repair found them to lack, pages included.
    pub filled: u64,
    /// Times this node began, or went on, to read a peer's whole store.
    pub catch_ups: u64,
    /// Records pushed to peers, copies counted.
    pub pushed: u64,
    /// Tombstones past the horizon: no longer replicated, but not forgotten.
    pub buried: u64,
    /// Records a peer offered that were dead, by a grave.
    pub reburied: u64,
    /// Graves dropped before their time, since there were too many.
    pub graves_dropped: u64,
    /// Ids sent instead of records, over links outside the tree of a busy mesh.
    pub ids_sent: u64,
    /// Ids left to repair, because too many waited.
    pub ids_dropped: u64,
    /// Changes asked for because only their id had come.
    pub grafts: u64,
    /// Links told that ids are enough, because they brought duplicates only.
    pub prunes: u64,
    /// Instances expired here, since their owners had been away for too long.
    pub expired: u64,
    /// Own instances claimed again, since they had been removed without anybody asking for it.
    pub reclaimed: u64,
}

/// The most lapsed leases, and the most old tombstones, dealt with before other inputs have their turn: some 10 ms.
const AT_ONCE: usize = 1_024;
/// How soon more tombstones are collected, when there are.
const COLLECT_PAUSE: Duration = Duration::from_millis(5);
/// How often old tombstones are looked for.
const COLLECT_INTERVAL: Duration = Duration::from_secs(10);

/// One node's heart.
#[derive(Debug, Clone)]
pub struct Node {
    me: NodeId,
    settings: Settings,
    clock: HybridClock,
    clocks: Clocks,
    /// What this node's own clocks show, right or wrong; everything else goes by what [`Clocks`] makes of it.
    shown_by_clocks: Now,
    rng: fastrand::Rng,
    store: Store,
    graveyard: Graveyard,
    peers: Peers,
    preserver: Preserver,
    push: Push,
    monitor: Monitor,
    /// How many instances this node owns.
    own_instances: usize,
    /// Those it owned until a short while ago.
    displaced: owner::Displaced,
    /// See [`Memory::incomplete`].
    incomplete: bool,
    publisher: Publisher,
    /// What was written here by the input under way, to be told in one go.
    fresh: Vec<Record>,
    counters: Counters,
    started: bool,
    leaving: bool,
    repair_due: Instant,
    repairing: Repairing,
    collect_due: Instant,
    ghosts_due: Instant,
    /// What is done about other cells.
    abroad: Abroad,
    quotas: Quotas,
}

impl Node {
    /// A heart that remembers `memory` and begins its life as `facts.incarnation`. `seed` is its only randomness.
    /// Its first wake-up is due at once: it publishes its first picture then.
    pub fn new(me: NodeId, facts: NodeFacts, settings: Settings, memory: Memory, seed: u64, now: Now) -> Node {
        // Later than everything remembered, whoever wrote it: a write of ours must win over what it replaces.
        let stamps = memory.records.iter().filter(|record| record.validate().is_ok()).flat_map(|r| r.cell.stamps());
        let remembered = stamps.map(|stamp| stamp.time).max();
        let last_used =
            remembered.into_iter().chain([memory.last_used].into_iter().filter(|time| time.is_sane())).max();
        let revision = Revision::first(now.wall);
        let mut node = Node {
            clock: HybridClock::new(
                me.clone(),
                facts.incarnation,
                last_used.unwrap_or_default(),
                Duration::from_millis(settings.max_clock_skew_ms),
            ),
            clocks: Clocks::new(me.clone(), Duration::from_millis(settings.max_clock_skew_ms)),
            shown_by_clocks: now,
            rng: fastrand::Rng::with_seed(seed),
            store: Store::default(),
            graveyard: Graveyard::new(settings.max_graves),
            preserver: Preserver::new(&settings, &me, &facts.zone, now),
            peers: Peers::new(me.clone(), facts, now.wall).with_relays(settings.relays),
            push: Push::new(&me, settings.flood_below_per_second),
            monitor: Monitor::default(),
            own_instances: 0,
            displaced: owner::Displaced::default(),
            incomplete: memory.incomplete,
            publisher: Publisher::new(View {
                revision,
                absent_revision: revision,
                relays_wanted: settings.relays,
                ..View::empty(me.clone(), settings.zone.clone())
            }),
            fresh: Vec::new(),
            counters: Counters::default(),
            started: false,
            leaving: false,
            repair_due: now.elapsed + settings.repair_interval(),
            repairing: Repairing::new(now.elapsed),
            collect_due: now.elapsed + COLLECT_INTERVAL,
            ghosts_due: now.elapsed + ghosts::LOOK_INTERVAL,
            abroad: Abroad::default(),
            quotas: Quotas::default(),
            me,
            settings,
        };
        node.show_member(&node.me.clone());
        for record in memory.records {
            let key = record.key.clone();
            match node.absorb(record, now, &mut Vec::new()) {
                Ok(_) => node.show(&key, now),
                Err(why) => tracing::error!(?key, %why, "a remembered record does not fit and is left out"),
            }
        }
        // Those the disk has kept for their graves; peers have none of them in their stores.
        while node.bury_old(now, &mut Vec::new()) > 0 {}
        node.remember_cells(now);
        node
    }

    /// Takes one input and appends what follows from it to `out`.
    pub fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Output>) {
        if !self.started {
            self.start(out);
        }
        self.shown_by_clocks = now;
        let now = self.clocks.correct(now);
        match input {
            Input::Command(id, command) => self.command(now, id, command, out),
            Input::Message(from, message) => self.message(now, from, message, out),
            Input::Peer(event) => self.peer(now, event, out),
            Input::Probe(key, result) => {
                if let Some(verdict) = self.monitor.probed(&key, result.is_ok(), now.elapsed) {
                    self.verdict(now, &key, verdict, out);
                }
            }
            Input::Usage(uses) => self.use_quotas(now, uses, out),
            Input::Tick => {}
        }
        self.pass_time(now, out);
        if let Some(preservation) = self.preserver.news() {
            self.publisher.put_preservation(preservation);
        }
        if let Some(clocks) = self.clocks.news() {
            self.publisher.put_clocks(clocks);
        }
        if let Some(view) = self.publisher.publish(self.store.fingerprint()) {
            out.push(Output::Publish(view));
        }
    }

    /// When [`Input::Tick`] is due, if nothing else happens before.
    pub fn next_wakeup(&self) -> Option<Instant> {
        if !self.started {
            return Some(Instant(0));
        }
        let timers = [
            self.monitor.next_deadline(),
            self.preserver.next_deadline(),
            self.displaced.next_deadline(),
            self.push.next_wakeup(),
            self.abroad.next_due(),
            self.quotas.next_due(),
        ];
        [self.repair_due, self.collect_due, self.ghosts_due].into_iter().chain(timers.into_iter().flatten()).min()
    }

    /// The last published picture.
    pub fn view(&self) -> &Arc<View> {
        self.publisher.published()
    }

    /// What it holds under a key.
    pub fn record(&self, key: &Key) -> Option<Record> {
        self.store.get(key).map(|cell| Record { key: key.clone(), cell: cell.clone() })
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Asks for the probes of instances known from the last run.
    fn start(&mut self, out: &mut Vec<Output>) {
        self.started = true;
        let probes = self.monitor.probes();
        out.extend(probes.map(|(key, address, check)| Output::Probe(key.clone(), address.clone(), check.clone())));
    }

    fn peer(&mut self, now: Now, event: PeerEvent, out: &mut Vec<Output>) {
        if let PeerEvent::Met(node) = event {
            return self.met(now, node, out);
        }
        if let Some(node) = self.peers.apply(event, now.wall) {
            self.member_changed(&node, now);
            self.neighbour_changed(now, &node);
            if self.peers.is_elsewhere(&node) {
                self.told_by_hand(now);
            }
            if self.peers.has_returned() {
                let jitter = Duration::from_micros(self.rng.u64(..=RETURN_JITTER.as_micros() as u64));
                self.repair_due = self.repair_due.min(now.elapsed + jitter);
            }
        }
    }

    /// Does what is due by now.
    fn pass_time(&mut self, now: Now, out: &mut Vec<Output>) {
        for (key, verdict) in self.monitor.due(now.elapsed, AT_ONCE) {
            self.verdict(now, &key, verdict, out);
        }
        let concluded = self.preserver.pass_time(now);
        if !concluded.is_empty() {
            self.concluded(concluded, now);
        }
        self.forget_displaced(now, out);
        if now.elapsed >= self.ghosts_due {
            self.lay_ghosts(now, out);
        }
        self.look_abroad(now, out);
        // Before the opening of a repair, which speaks of it.
        let fresh = std::mem::take(&mut self.fresh);
        self.tell(now, fresh, None, out);
        if self.push.next_wakeup().is_some_and(|due| due <= now.elapsed) {
            let leads = self.peers.leads();
            self.push.pass_time(now.elapsed, leads, self.peers.neighbours(), &mut self.counters, out);
        }
        self.pass_usage_on(now, out);
        if now.elapsed >= self.repair_due {
            self.begin_repair(now, out);
        }
        if now.elapsed >= self.collect_due {
            self.collect(now, out);
        }
    }
}

#[cfg(test)]
mod tests;
