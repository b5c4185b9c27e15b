//! One host: a heart, and what a crash leaves of it (the disk) and what it does not (everything else).

use std::collections::{BTreeMap, VecDeque};

use starling_core::id::{CellName, CommandId, Incarnation, InstanceKey, NodeId, Region, Zone};
use starling_core::quotas::QuotaId;
use starling_core::record::{Key, Record};
use starling_core::time::{HybridTime, Instant, Now, WallTime};
use starling_core::view::NodeFacts;
use starling_core::{Answer, Counters, Input, Memory, Node, Refusal, Settings};

use crate::app::Event;

/// Virtual time 0 by everybody's wall clock, in milliseconds: 2023-11-14T22:13:20Z. Any other would do.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// How many inputs wait for a paused host; more are dropped, as a full socket buffer drops them.
const MAX_BACKLOG: usize = 10_000;

/// What a host is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// Stopped in its tracks, memory and all; goes on where it was.
    Paused,
    /// Memory gone, disk kept.
    Crashed,
    /// Stopped cleanly; disk kept.
    Left,
}

/// What is to be written to a disk, or told once it is.
#[derive(Debug)]
pub(crate) enum Durable {
    Keep(Record),
    Forget(Key),
    Reply(CommandId, Result<Answer, Refusal>),
    /// What a program of one's own keeps under a name; `None` takes it off.
    AppKeep(String, Option<Vec<u8>>),
    AppReply(u64),
}

impl Durable {
    /// Whether it is told to somebody once everything before it is kept.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self, Durable::Reply(..) | Durable::AppReply(_))
    }
}

/// What waits for a paused host.
#[derive(Debug)]
pub(crate) enum Held {
    Heart(Input),
    App(Event),
}

/// What a host has sent since it was made, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Altogether.
    pub sent: u64,
    /// To other cells.
    pub abroad: u64,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: NodeId,
    pub(crate) facts: NodeFacts,
    pub(crate) state: State,
    /// `None` while crashed or left.
    pub(crate) heart: Option<Node>,
    /// What the hearts of earlier starts had counted.
    pub(crate) counted: Counters,
    pub(crate) skew_ms: i64,
    /// How much faster than real time its wall clock runs, in parts per million, and since when.
    drift: (i64, u64),
    /// The wake-up that is queued; `u64::MAX` when none is.
    pub(crate) tick_at: u64,
    /// What it may use of the mesh's quotas, as its heart said last.
    pub(crate) shares: Vec<(QuotaId, u64)>,
    disk: BTreeMap<Key, Record>,
    app_disk: BTreeMap<String, Vec<u8>>,
    /// The wake-up of its program that is queued; `u64::MAX` when none is.
    pub(crate) app_wake_at: u64,
    /// The latest time this node has ever stamped anything with. Drivers keep a bound of it on disk before they use it.
    last_used: HybridTime,
    /// What is on its way to the disk, in the order it was written.
    pub(crate) unsynced: VecDeque<Vec<Durable>>,
    /// Probed instances, and every how many microseconds.
    pub(crate) probes: BTreeMap<InstanceKey, u64>,
    backlog: Vec<Held>,
    pub(crate) traffic: Traffic,
    /// When its uplink has sent all it was given.
    pub(crate) uplink_free_at: u64,
    /// How long it takes over one input, in microseconds, and when it is done with all it was given.
    pub(crate) slow_us: u64,
    busy_until: u64,
    /// How long a write takes to be on its disk, in microseconds.
    pub(crate) disk_us: u64,
    /// How far its clock was off at the beginning, in milliseconds.
    first_skew_ms: i64,
    seeds: fastrand::Rng,
}

impl Host {
    pub(crate) fn new(id: NodeId, zone: Zone, skew_ms: i64, disk_us: u64, seeds: fastrand::Rng) -> Self {
        let address = format!("{id}:7070");
        let facts = NodeFacts {
            incarnation: Incarnation(0),
            zone,
            region: Region::default(),
            cell: CellName::default(),
            version: "sim".into(),
            address,
        };
        Self {
            id,
            facts,
            state: State::Crashed,
            heart: None,
            counted: Counters::default(),
            skew_ms,
            drift: (0, 0),
            tick_at: u64::MAX,
            shares: Vec::new(),
            disk: BTreeMap::new(),
            app_disk: BTreeMap::new(),
            app_wake_at: u64::MAX,
            last_used: HybridTime::default(),
            unsynced: VecDeque::new(),
            probes: BTreeMap::new(),
            backlog: Vec::new(),
            traffic: Traffic::default(),
            uplink_free_at: 0,
            slow_us: 0,
            busy_until: 0,
            disk_us,
            first_skew_ms: skew_ms,
            seeds,
        }
    }

    /// The chance that belongs to this host alone.
    pub(crate) fn chance(&mut self) -> &mut fastrand::Rng {
        &mut self.seeds
    }

    /// Which start of the host this is; 0 before the first.
    pub(crate) fn run(&self) -> u64 {
        self.facts.incarnation.0
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Whether it has a heart, be it one that stands still.
    pub(crate) fn is_up(&self) -> bool {
        self.heart.is_some()
    }

    /// Starts it with what its disk remembers.
    pub(crate) fn start(&mut self, at: u64, settings: &Settings) {
        self.facts.incarnation.0 += 1;
        let settings = Settings { zone: self.facts.zone.clone(), ..settings.clone() };
        let memory =
            Memory { records: self.disk.values().cloned().collect(), last_used: self.last_used, incomplete: false };
        let (facts, seed, now) = (self.facts.clone(), self.seeds.u64(..), self.now(at));
        self.heart = Some(Node::new(self.id.clone(), facts, settings, memory, seed, now));
        self.state = State::Running;
        (self.tick_at, self.app_wake_at) = (u64::MAX, u64::MAX);
    }

    /// Ends it: the disk stays, everything else goes.
    pub(crate) fn stop(&mut self, state: State, at: u64) {
        if let Some(heart) = self.heart.take() {
            let now = heart.counters();
            self.counted = add(self.counted, now);
        }
        self.state = state;
        self.unsynced.clear();
        self.probes.clear();
        self.backlog.clear();
        (self.uplink_free_at, self.busy_until) = (at, at);
    }

    /// When a slow host comes to what arrives now: after all it was given before. `None` when too much waits already, as
    /// a full socket buffer drops what does not fit.
    pub(crate) fn turn(&mut self, at: u64) -> Option<u64> {
        let begin = self.busy_until.max(at);
        if self.slow_us > 0 && (begin - at) / self.slow_us >= MAX_BACKLOG as u64 {
            return None;
        }
        self.busy_until = begin + self.slow_us;
        Some(self.busy_until)
    }

    /// When it is done with all it was given.
    pub(crate) fn busy_until(&self) -> u64 {
        self.busy_until
    }

    /// Lets it be as it was at the beginning: clock, disk and speed.
    pub(crate) fn mend(&mut self, disk_us: u64, at: u64) {
        (self.slow_us, self.disk_us, self.busy_until) = (0, disk_us, at.min(self.busy_until));
        (self.skew_ms, self.drift) = (self.first_skew_ms, (0, at));
    }

    pub(crate) fn counters(&self) -> Counters {
        self.heart.as_ref().map_or(self.counted, |heart| add(self.counted, heart.counters()))
    }

    /// Both its clocks.
    pub(crate) fn now(&self, at: u64) -> Now {
        let (ppm, since) = self.drift;
        let drifted_us = (at.saturating_sub(since) as i128 * i128::from(ppm) / 1_000_000) as i64;
        let wall = (EPOCH_MS + at / 1_000).saturating_add_signed(self.skew_ms.saturating_add(drifted_us / 1_000));
        Now { elapsed: Instant(at), wall: WallTime(wall) }
    }

    /// Lets its wall clock run at another speed from now on; what it has drifted so far stays.
    pub(crate) fn set_drift(&mut self, ppm: i64, at: u64) {
        let straight = EPOCH_MS + at / 1_000;
        self.skew_ms = self.now(at).wall.0 as i64 - straight as i64;
        self.drift = (ppm, at);
    }

    /// Notes that a stamp of its own exists, so that no later start uses it again.
    pub(crate) fn used(&mut self, time: HybridTime) {
        self.last_used = self.last_used.max(time);
    }

    pub(crate) fn last_used(&self) -> HybridTime {
        self.last_used
    }

    /// Keeps something; what is told instead of kept does nothing here.
    pub(crate) fn keep(&mut self, durable: Durable) {
        match durable {
            Durable::Keep(record) => _ = self.disk.insert(record.key.clone(), record),
            Durable::Forget(key) => _ = self.disk.remove(&key),
            Durable::AppKeep(name, Some(bytes)) => _ = self.app_disk.insert(name, bytes),
            Durable::AppKeep(name, None) => _ = self.app_disk.remove(&name),
            Durable::Reply(..) | Durable::AppReply(_) => {}
        }
    }

    /// What its program has kept.
    pub(crate) fn app_disk(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.app_disk
    }

    /// Keeps an input for when it goes on; tells whether there was room.
    pub(crate) fn hold(&mut self, input: Input) -> bool {
        self.hold_any(Held::Heart(input))
    }

    /// The same for its program.
    pub(crate) fn hold_app(&mut self, event: Event) -> bool {
        self.hold_any(Held::App(event))
    }

    fn hold_any(&mut self, held: Held) -> bool {
        let room = self.backlog.len() < MAX_BACKLOG;
        if room {
            self.backlog.push(held);
        }
        room
    }

    pub(crate) fn take_backlog(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.backlog)
    }
}

pub(crate) fn add(a: Counters, b: Counters) -> Counters {
    Counters {
        merged: a.merged + b.merged,
        duplicates: a.duplicates + b.duplicates,
        refused: a.refused + b.refused,
        repairs_begun: a.repairs_begun + b.repairs_begun,
        repairs_differing: a.repairs_differing + b.repairs_differing,
        filled: a.filled + b.filled,
        catch_ups: a.catch_ups + b.catch_ups,
        pushed: a.pushed + b.pushed,
        buried: a.buried + b.buried,
        reburied: a.reburied + b.reburied,
        graves_dropped: a.graves_dropped + b.graves_dropped,
        ids_sent: a.ids_sent + b.ids_sent,
        ids_dropped: a.ids_dropped + b.ids_dropped,
        grafts: a.grafts + b.grafts,
        prunes: a.prunes + b.prunes,
        expired: a.expired + b.expired,
        reclaimed: a.reclaimed + b.reclaimed,
    }
}
