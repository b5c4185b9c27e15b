//! A run as data, to be drawn: who ran when, what was cut when, who first held which write when, and what was said.
//!
//! Kept when asked for ([`Builder::record`](crate::Builder::record)), never longer than its limits, and as repeatable as
//! the run itself. Times are microseconds of virtual time; nodes are places in [`Recording::nodes`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use starling_core::config::Body;
use starling_core::id::NodeId;
use starling_core::record::{Cell, Key, Record, versions};
use starling_core::time::Stamp;
use starling_core::view::{MemberState, Revision, View};

use crate::host::{Host, State};
use crate::links::Cuts;
use crate::options::Options;
use crate::report::Sent;
use crate::world::World;

/// The most writes followed, and the most places (writes times nodes) their arrivals take.
const MAX_WRITES: usize = 10_000;
const MAX_ARRIVALS: usize = 2_000_000;
/// The most spans of each kind (states, cuts), and notes.
const MAX_SPANS: usize = 20_000;
/// The most seconds: a day.
const MAX_SECONDS: usize = 86_400;
/// How much of a document is told, in characters.
const EXCERPT: usize = 40;
/// One second of virtual time, in microseconds.
const SECOND_US: u64 = 1_000_000;

/// Everything recorded of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recording {
    /// The line that makes the same mesh again.
    pub replay: String,
    /// How long it went on.
    pub elapsed_us: u64,
    /// The nodes, in the order of their making.
    pub nodes: Vec<NodeTrack>,
    /// Cuts, in the order they were made.
    pub cuts: Vec<CutSpan>,
    /// Writes, in the order they were made.
    pub writes: Vec<WriteTrack>,
    /// What was said in each second, and whether all knew the same at its end.
    pub seconds: Vec<Second>,
    /// What was expected, in the order it was decided.
    pub judged: Vec<Judged>,
    /// Notable happenings, as the journal tells them.
    pub notes: Vec<Noted>,
    /// Spans, writes, seconds and notes beyond the limits, together: not zero means that the picture is not whole.
    pub left_out: u64,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTrack {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its cell.
    pub cell: String,
    /// What it was doing from when on; each lasts until the next.
    pub states: Vec<StateChange>,
    /// How many nodes it held for alive from when on, itself included; sampled once a second.
    pub alive: Vec<Counted>,
    /// What it held from when on.
    pub held: Vec<Held>,
}

/// What a node holds from a time on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// When it began.
    pub at_us: u64,
    /// The fingerprint of its store: nodes of equal fingerprints hold the same.
    pub store: String,
    /// How many nodes it holds for lost.
    pub lost: u32,
    /// How many of them it takes not for dead, because too many vanished at once (self-preservation).
    pub preserved: u32,
    /// How many documents it shows with concurrent versions.
    pub conflicts: u32,
}

/// What a node does from a time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChange {
    /// When it began.
    pub at_us: u64,
    /// What.
    pub state: NodeState,
}

impl Held {
    /// Whether nothing but the time differs.
    pub fn is_like(&self, other: &Held) -> bool {
        let what = |held: &Held| (held.lost, held.preserved, held.conflicts);
        self.store == other.store && what(self) == what(other)
    }
}

/// A number from a time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// When it became so many.
    pub at_us: u64,
    /// How many.
    pub count: u32,
}

/// What a node can be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It runs.
    Running,
    /// It stands still, memory and all.
    Paused,
    /// Its memory is gone, its disk is not.
    Crashed,
    /// It stopped cleanly.
    Left,
}

impl From<State> for NodeState {
    fn from(state: State) -> Self {
        match state {
            State::Running => NodeState::Running,
            State::Paused => NodeState::Paused,
            State::Crashed => NodeState::Crashed,
            State::Left => NodeState::Left,
        }
    }
}

/// Links that were cut, one way: from each of `from` to each of `to`. A cut both ways is two of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutSpan {
    /// Who was not heard.
    pub from: Vec<u32>,
    /// Who did not hear.
    pub to: Vec<u32>,
    /// When it began.
    pub begin_us: u64,
    /// When it ended; `None` when it lasts.
    pub end_us: Option<u64>,
}

/// One write on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteTrack {
    /// What was written: `instance default/orders/o1`, `override ...` or `document ...`.
    pub key: String,
    /// What it says, in a few words.
    pub says: String,
    /// Whether it removed what was there.
    pub removal: bool,
    /// Its stamp, unique in the run.
    pub stamp: String,
    /// The node that wrote it.
    pub author: u32,
    /// When.
    pub at_us: u64,
    /// When its asker was told that it succeeded; `None` when nobody asked or was told.
    pub acknowledged_us: Option<u64>,
    /// When each node first showed it, or something newer. `None` when it did not before all nodes that were up did.
    pub seen_us: Vec<Option<u64>>,
}

/// One second of virtual time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    /// Messages sent, by kind.
    pub sent: BTreeMap<String, Sent>,
    /// How many running nodes there were at its end.
    pub running: u32,
    /// How many different stores they had at its end: 1 means that all knew the same.
    pub pictures: u32,
}

/// An expectation, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// From when on it was waited for.
    pub asked_us: u64,
    /// When it was decided.
    pub at_us: u64,
    /// What was expected.
    pub what: String,
    /// Whether it held.
    pub held: bool,
    /// What spoke against it.
    pub findings: Vec<String>,
}

/// A notable happening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// When.
    pub at_us: u64,
    /// Whether somebody did it, or it followed by itself.
    pub deed: bool,
    /// What.
    pub what: String,
}

/// Keeps the recording of a run that goes on.
#[derive(Debug)]
pub(crate) struct Recorder {
    recording: Recording,
    /// The place of each write that is kept.
    open: BTreeMap<(Key, Stamp), usize>,
    /// The place of each cut that lasts.
    lasting: BTreeSet<usize>,
    /// The revision of each node's picture when it was last looked at.
    looked_at: Vec<Revision>,
    current: Second,
    /// When the current second is over.
    ends: u64,
}

impl Recorder {
    pub(crate) fn new(options: &Options, hosts: &[Host]) -> Self {
        let track = |host: &Host| NodeTrack {
            name: host.id.to_string(),
            zone: host.facts.zone.to_string(),
            cell: host.facts.cell.to_string(),
            states: Vec::new(),
            alive: Vec::new(),
            held: Vec::new(),
        };
        let recording = Recording {
            replay: options.to_string(),
            elapsed_us: 0,
            nodes: hosts.iter().map(track).collect(),
            cuts: Vec::new(),
            writes: Vec::new(),
            seconds: Vec::new(),
            judged: Vec::new(),
            notes: Vec::new(),
            left_out: 0,
        };
        let (open, lasting) = (BTreeMap::new(), BTreeSet::new());
        let looked_at = vec![Revision::default(); hosts.len()];
        Self { recording, open, lasting, looked_at, current: Second::default(), ends: SECOND_US }
    }

    /// The recording as it is now.
    pub(crate) fn so_far(&self, now: u64) -> Recording {
        Recording { elapsed_us: now, ..self.recording.clone() }
    }

    pub(crate) fn state(&mut self, node: usize, state: State, now: u64) {
        let states = &mut self.recording.nodes[node].states;
        let change = StateChange { at_us: now, state: state.into() };
        keep(states, change, MAX_SPANS, &mut self.recording.left_out);
    }

    pub(crate) fn cut(&mut self, from: &[usize], to: &[usize], now: u64) {
        let places = |nodes: &[usize]| nodes.iter().map(|node| *node as u32).collect();
        let span = CutSpan { from: places(from), to: places(to), begin_us: now, end_us: None };
        if keep(&mut self.recording.cuts, span, MAX_SPANS, &mut self.recording.left_out) {
            self.lasting.insert(self.recording.cuts.len() - 1);
        }
    }

    /// Some links were opened again. A cut of which a part lasts is told as a new one from then on.
    pub(crate) fn healed(&mut self, cuts: &Cuts, now: u64) {
        for place in std::mem::take(&mut self.lasting) {
            let span = &mut self.recording.cuts[place];
            let lasts = |from: &u32, to: &u32| from == to || !cuts.is_open(*from as usize, *to as usize);
            if span.from.iter().all(|from| span.to.iter().all(|to| lasts(from, to))) {
                self.lasting.insert(place);
                continue;
            }
            span.end_us = Some(now);
            let (from, to) = (span.from.clone(), span.to.clone());
            for a in from {
                let still: Vec<usize> =
                    to.iter().filter(|b| **b != a && lasts(&a, b)).map(|node| *node as usize).collect();
                if !still.is_empty() {
                    self.cut(&[a as usize], &still, now);
                }
            }
        }
    }

    pub(crate) fn wrote(&mut self, author: usize, record: &Record, stamp: &Stamp, now: u64) {
        let nodes = self.recording.nodes.len();
        let key = match &record.key {
            Key::Instance(key) => format!("instance {key}"),
            Key::Override(key) => format!("override {key}"),
            Key::Config(key) => format!("document {key}"),
            Key::Node(node) => format!("node {node}"),
        };
        let track = WriteTrack {
            key,
            says: says(record, stamp),
            removal: record.cell.is_tombstone(),
            stamp: stamp.to_string(),
            author: author as u32,
            at_us: now,
            acknowledged_us: None,
            seen_us: vec![None; nodes],
        };
        let most = MAX_WRITES.min(MAX_ARRIVALS / nodes.max(1));
        if keep(&mut self.recording.writes, track, most, &mut self.recording.left_out) {
            self.open.insert((record.key.clone(), stamp.clone()), self.recording.writes.len() - 1);
        }
    }

    pub(crate) fn acknowledged(&mut self, key: &Key, stamp: &Stamp, now: u64) {
        if let Some(place) = self.open.get(&(key.clone(), stamp.clone())) {
            self.recording.writes[*place].acknowledged_us = Some(now);
        }
    }

    pub(crate) fn seen(&mut self, node: usize, key: &Key, stamp: &Stamp, now: u64) {
        if let Some(place) = self.open.get(&(key.clone(), stamp.clone())) {
            self.recording.writes[*place].seen_us[node].get_or_insert(now);
        }
    }

    /// A node shows this now.
    pub(crate) fn held(&mut self, node: usize, view: &View, now: u64) {
        let lost = view.members.values().filter(|member| member.state == MemberState::Lost).count() as u32;
        let conflicts = view.configs.values().filter(|config| config.in_conflict()).count() as u32;
        let missing: BTreeSet<&NodeId> = view.preservation.iter().flat_map(|one| one.missing.iter()).collect();
        let preserved = missing.len() as u32;
        let held = Held { at_us: now, store: view.fingerprint.to_string(), lost, preserved, conflicts };
        let track = &mut self.recording.nodes[node].held;
        if !track.last().is_some_and(|last| last.is_like(&held)) {
            keep(track, held, MAX_SPANS, &mut self.recording.left_out);
        }
    }

    pub(crate) fn judged(&mut self, judged: Judged) {
        keep(&mut self.recording.judged, judged, MAX_SPANS, &mut self.recording.left_out);
    }

    pub(crate) fn note(&mut self, now: u64, deed: bool, what: &str) {
        let noted = Noted { at_us: now, deed, what: what.to_owned() };
        keep(&mut self.recording.notes, noted, MAX_SPANS, &mut self.recording.left_out);
    }

    pub(crate) fn sent(&mut self, kind: &str, bytes: u64) {
        if !self.current.sent.contains_key(kind) {
            self.current.sent.insert(kind.to_owned(), Sent::default());
        }
        if let Some(sent) = self.current.sent.get_mut(kind) {
            sent.messages += 1;
            sent.bytes += bytes;
        }
    }

    /// Whether a second is over before this event.
    pub(crate) fn second_is_over(&self, at: u64) -> bool {
        at >= self.ends
    }

    /// Closes every second that is over, each with the state of things as it still is.
    pub(crate) fn second(&mut self, world: &World) {
        let running = world.hosts.iter().filter(|host| host.is_running());
        let views: Vec<_> = running.filter_map(|host| host.heart.as_ref().map(|heart| heart.view())).collect();
        let pictures: BTreeSet<String> = views.iter().map(|view| view.fingerprint.to_string()).collect();
        for ((track, host), looked_at) in self.recording.nodes.iter_mut().zip(&world.hosts).zip(&mut self.looked_at) {
            let Some(heart) = &host.heart else { continue };
            if std::mem::replace(looked_at, heart.view().revision) == heart.view().revision {
                continue;
            }
            let count = heart.view().alive().count() as u32;
            if track.alive.last().is_none_or(|last| last.count != count) {
                let counted = Counted { at_us: self.ends, count };
                keep(&mut track.alive, counted, MAX_SPANS, &mut self.recording.left_out);
            }
        }
        while self.ends <= world.now {
            let sent = std::mem::take(&mut self.current.sent);
            let second = Second { sent, running: views.len() as u32, pictures: pictures.len() as u32 };
            keep(&mut self.recording.seconds, second, MAX_SECONDS, &mut self.recording.left_out);
            self.ends += SECOND_US;
        }
    }
}

/// Keeps one more, unless there are so many; tells whether it did.
fn keep<T>(list: &mut Vec<T>, item: T, most: usize, left_out: &mut u64) -> bool {
    let room = list.len() < most;
    if room {
        list.push(item);
    } else {
        *left_out += 1;
    }
    room
}

/// What a write says, in a few words.
fn says(record: &Record, stamp: &Stamp) -> String {
    match &record.cell {
        Cell::Config(register) => {
            let versions = versions(register);
            let body =
                versions.iter().find(|version| version.stamp == *stamp).and_then(|version| version.body.as_ref());
            body.map_or("deleted".into(), excerpt)
        }
        Cell::Node(register) => format!("{:?}", register.val.state),
        Cell::Instance(register) => match &register.val {
            Some(instance) => format!("{}, weight {}", instance.status, instance.weight),
            None => "removed".into(),
        },
        Cell::Override(register) => match &register.val {
            Some(value) => value.status.map_or("overridden".into(), |status| format!("overridden: {status}")),
            None => "override cleared".into(),
        },
    }
}

fn excerpt(body: &Body) -> String {
    let text = String::from_utf8_lossy(body.as_bytes());
    let mut shown: String = text.chars().take(EXCERPT).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}
