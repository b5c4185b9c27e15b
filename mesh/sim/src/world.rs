//! The world: hosts, links, one queue of what will happen, and a clock that jumps from one event to the next.
//!
//! Events are ordered by (time, number), numbers are given in the order of cause, and every draw of chance comes from a
//! generator forked from the seed for its one purpose: the same options and the same calls give the same run, to the byte.

mod apps;
mod carry;
mod disk;
mod faults;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::sync::Arc;

use starling_core::id::{CommandId, InstanceKey, NodeId, Zone};
use starling_core::record::Key;
use starling_core::view::View;
use starling_core::wire::Message;
use starling_core::{Answer, Command, Input, Output, PeerEvent, Refusal};

use crate::app::{Guests, Letter, Program};
use crate::check::clock;
use crate::detector::{Detector, left_event};
use crate::host::{Durable, Host, State};
use crate::ledger::Ledger;
use crate::links::{Cuts, LinkTable, micros};
use crate::options::Options;
use crate::recording::Recorder;
use crate::report::Figures;

/// How many notable happenings are kept to be told when something goes wrong.
const MAX_JOURNAL: usize = 10_000;
/// How many answers wait to be picked up.
const MAX_ANSWERS: usize = 100_000;
/// What became of a command: the heart's answer, or why there is none.
pub(crate) type Outcome = Result<Answer, Refusal>;

/// Something that will happen.
#[derive(Debug)]
enum Happening {
    Deliver {
        from: usize,
        to: usize,
        run: u64,
        parcel: Parcel,
    },
    /// A slow host has come to a message that arrived some time ago.
    Handle {
        from: usize,
        to: usize,
        run: u64,
        parcel: Parcel,
    },
    Tick {
        node: usize,
        run: u64,
    },
    Synced {
        node: usize,
        run: u64,
    },
    Probe {
        node: usize,
        run: u64,
        key: InstanceKey,
    },
    Look {
        observer: usize,
        run: u64,
    },
    Farewell {
        observer: usize,
        subject: usize,
        incarnation: u64,
    },
    Gone {
        node: usize,
        run: u64,
    },
    Seek {
        node: usize,
        run: u64,
    },
    /// The program of one's own on a host hears what its heart shows now.
    Shown {
        node: usize,
        run: u64,
    },
    /// It is time for the program of one's own.
    Wake {
        node: usize,
        run: u64,
    },
}

/// What is on its way from one host to another.
#[derive(Debug, Clone)]
enum Parcel {
    Heart(Message),
    App(Letter),
}

#[derive(Debug)]
struct Queued {
    at: u64,
    number: u64,
    what: Happening,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    /// The earliest is the greatest: the heap hands out the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// A notable happening.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) at: u64,
    /// Whether somebody did it, or it followed by itself (membership).
    pub(crate) deed: bool,
    pub(crate) what: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", clock(self.at), if self.deed { "  " } else { "    " }, self.what)
    }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) now: u64,
    pub(crate) hosts: Vec<Host>,
    pub(crate) cuts: Cuts,
    pub(crate) links: LinkTable,
    pub(crate) ledger: Ledger,
    pub(crate) figures: Figures,
    /// Notable happenings, oldest first, and how many there ever were.
    pub(crate) journal: VecDeque<Note>,
    pub(crate) journaled: u64,
    /// Whether any picture or any link has changed since somebody last asked.
    pub(crate) changed: bool,
    /// When hosts, their speed or cuts last changed.
    pub(crate) troubled_at: u64,
    pub(crate) failing_probes: BTreeSet<InstanceKey>,
    pub(crate) recorder: Option<Recorder>,
    /// The program of one's own on all hosts.
    pub(crate) guests: Option<Box<dyn Guests>>,
    /// For tests of their own that want chance from the same seed.
    pub(crate) chance: fastrand::Rng,
    index: BTreeMap<NodeId, usize>,
    queue: BinaryHeap<Queued>,
    number: u64,
    up: usize,
    pub(crate) detector: Option<Detector>,
    transit: fastrand::Rng,
    outputs: Vec<Output>,
    concerned: Vec<Key>,
    commands: u64,
    answers: BTreeMap<CommandId, Outcome>,
}

impl World {
    /// All nodes started at time 0 and acquainted with each other.
    pub(crate) fn new(options: Options, program: Option<&Program>) -> Self {
        let mut world = Self::made(options, true, program);
        let size = world.hosts.len();
        for observer in 0..size {
            let cell = world.options.cell_of(observer);
            for subject in (0..size).filter(|subject| *subject != observer) {
                if world.options.cell_of(subject) == cell {
                    world.introduce(observer, subject);
                }
            }
        }
        if let Some(detector) = &mut world.detector {
            detector.acquaint(&world.hosts);
        }
        world
    }

    /// All nodes started at time 0, to be introduced to each other by hand. There is no failure detector, which needs a
    /// place for every pair of nodes.
    pub(crate) fn of_strangers(options: Options) -> Self {
        Self::made(options, false, None)
    }

    fn made(options: Options, detecting: bool, program: Option<&Program>) -> Self {
        // One generator per purpose, so that drawing more for one does not change the others.
        let mut seeds = fastrand::Rng::with_seed(options.seed);
        let (transit, mut skews, mut hearts, detection, chance) =
            (seeds.fork(), seeds.fork(), seeds.fork(), seeds.fork(), seeds.fork());
        let spread_ms = options.clock_spread.as_millis() as i64;
        let disk_us = micros(options.disk);
        let host = |(at, name): (usize, &String)| {
            let zone = match options.zone_of(at) {
                None => Zone::default(),
                Some(zone) => zone.parse().expect("zones are checked before the world begins"),
            };
            let id = name.parse().expect("names are checked before the world begins");
            let mut host = Host::new(id, zone, skews.i64(-spread_ms..=spread_ms), disk_us, hearts.fork());
            if let Some(cell) = options.cells.get(options.cell_of(at)) {
                host.facts.cell = cell.parse().expect("cells are checked before the world begins");
            }
            host
        };
        let hosts: Vec<Host> = options.nodes.iter().enumerate().map(host).collect();
        let cells = (0..hosts.len()).map(|node| options.cell_of(node)).collect();
        let detector = detecting.then(|| Detector::new(cells, options.lost_after, options.up_after, detection));
        let mut world = Self {
            now: 0,
            guests: program.map(|program| program.copies(&options)),
            cuts: Cuts::new(hosts.len()),
            links: options.link_table(),
            recorder: options.record.then(|| Recorder::new(&options, &hosts)),
            index: hosts.iter().enumerate().map(|(at, host)| (host.id.clone(), at)).collect(),
            hosts,
            ledger: Ledger::default(),
            figures: Figures::default(),
            journal: VecDeque::new(),
            journaled: 0,
            changed: true,
            failing_probes: BTreeSet::new(),
            troubled_at: 0,
            chance,
            queue: BinaryHeap::new(),
            number: 0,
            up: 0,
            detector,
            transit,
            outputs: Vec::new(),
            concerned: Vec::new(),
            commands: 0,
            answers: BTreeMap::new(),
            options,
        };
        for node in 0..world.hosts.len() {
            world.start(node);
        }
        world
    }

    pub(crate) fn introduce(&mut self, observer: usize, subject: usize) {
        let host = &self.hosts[subject];
        let event = PeerEvent::Up(host.id.clone(), host.facts.clone());
        self.give(observer, Input::Peer(event));
    }

    pub(crate) fn find(&self, node: &str) -> Option<usize> {
        self.index.get(node).copied()
    }

    pub(crate) fn view(&self, node: usize) -> Option<&Arc<View>> {
        self.hosts[node].heart.as_ref().map(|heart| heart.view())
    }

    // ---- time

    /// Lets everything happen that is due by then, and advances the clock to it.
    pub(crate) fn run_until(&mut self, until: u64) {
        while self.step(until) {}
        self.now = self.now.max(until);
    }

    /// When the next event is due.
    pub(crate) fn next_event(&self) -> Option<u64> {
        self.queue.peek().map(|next| next.at)
    }

    /// Lets the next event happen if it is due by then.
    pub(crate) fn step(&mut self, until: u64) -> bool {
        if self.queue.peek().is_none_or(|next| next.at > until) {
            return false;
        }
        let Some(Queued { at, what, .. }) = self.queue.pop() else { return false };
        assert!(at >= self.now, "time runs forwards only");
        self.now = at;
        if self.recorder.as_ref().is_some_and(|recorder| recorder.second_is_over(at)) {
            self.record_second();
        }
        self.happen(what);
        true
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Deliver { from, to, run, parcel } => self.deliver(from, to, run, parcel),
            Happening::Handle { from, to, run, parcel } if self.hosts[to].run() == run => self.hand(from, to, parcel),
            Happening::Shown { node, run } if self.hosts[node].run() == run => self.shown_app(node),
            Happening::Wake { node, run } if self.hosts[node].run() == run => self.wake_app(node),
            Happening::Tick { node, run } if self.hosts[node].run() == run => self.tick(node),
            Happening::Synced { node, run } if self.hosts[node].run() == run => self.synced(node),
            Happening::Probe { node, run, key } if self.hosts[node].run() == run => self.probe(node, key),
            Happening::Look { observer, run } if self.hosts[observer].run() == run => self.look(observer),
            Happening::Farewell { observer, subject, incarnation } => {
                let event = left_event(&self.hosts[subject], incarnation);
                self.give(observer, Input::Peer(event));
            }
            Happening::Gone { node, run } if self.hosts[node].run() == run && self.hosts[node].is_up() => {
                self.gone(node);
            }
            Happening::Seek { node, run } if self.hosts[node].run() == run => self.seek(node),
            _ => {} // of an earlier start
        }
    }

    fn at(&mut self, at: u64, what: Happening) {
        self.number += 1;
        self.queue.push(Queued { at, number: self.number, what });
    }

    fn tick(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        if host.tick_at != self.now || !host.is_running() {
            return;
        }
        if host.slow_us > 0 && host.busy_until() > self.now {
            let (at, run) = (host.busy_until(), host.run());
            host.tick_at = at;
            return self.at(at, Happening::Tick { node, run });
        }
        host.tick_at = u64::MAX;
        self.give(node, Input::Tick);
        let next = self.hosts[node].heart.as_ref().and_then(|heart| heart.next_wakeup());
        assert!(next.is_none_or(|next| next.0 > self.now), "a tick left the heart of {node} due at once again");
    }

    // ---- into a heart and out of it

    pub(crate) fn give(&mut self, node: usize, input: Input) {
        let host = &mut self.hosts[node];
        if host.state == State::Paused {
            self.figures.undeliverable += u64::from(!host.hold(input));
            return;
        }
        let now = host.now(self.now);
        let Some(heart) = &mut host.heart else { return };
        let before = matches!(input, Input::Command(..)).then(|| heart.view().clone());
        let mut outputs = std::mem::take(&mut self.outputs);
        heart.handle(now, input, &mut outputs);
        let wake = heart.next_wakeup().map_or(u64::MAX, |at| at.0.max(self.now));
        if wake < host.tick_at {
            host.tick_at = wake;
            let run = host.run();
            self.at(wake, Happening::Tick { node, run });
        }
        let (mut durable, mut published) = (Vec::new(), false);
        for output in outputs.drain(..) {
            match output {
                Output::Send(peer, message) => self.send(node, &peer, message),
                Output::Publish(_) => published = true,
                // Everybody can be reached who is not cut off, and knows all members of its cell.
                Output::Link(..) | Output::Unlink(_) | Output::Introduce(_) => {}
                Output::Probe(key, _, check) => {
                    let every = check.interval_ms.max(1) * 1_000;
                    let run = self.hosts[node].run();
                    if self.hosts[node].probes.insert(key.clone(), every).is_none() {
                        self.at(self.now + every, Happening::Probe { node, run, key });
                    }
                }
                Output::StopProbe(key) => {
                    self.hosts[node].probes.remove(&key);
                }
                Output::Persist(record) => {
                    let before = before.as_deref();
                    self.written(node, &record, before);
                    durable.push(Durable::Keep(record));
                }
                Output::Forget(key) => {
                    self.ledger.forgotten(node, &key);
                    durable.push(Durable::Forget(key));
                }
                Output::Shares(shares) => self.hosts[node].shares = shares,
                Output::Reply(id, answer) => durable.push(Durable::Reply(id, answer)),
            }
        }
        self.outputs = outputs;
        if published {
            self.changed = true;
            self.record_held(node);
            self.show_app(node);
        }
        if !durable.is_empty() {
            self.sync(node, durable);
        }
    }

    /// Books what a node has just written, if it is its own and new.
    fn written(&mut self, node: usize, record: &starling_core::record::Record, before: Option<&View>) {
        let host = &mut self.hosts[node];
        if matches!(record.key, Key::Node(_)) {
            // What nodes tell of each other, nobody has asked for.
            for stamp in record.cell.stamps() {
                if stamp.node == host.id {
                    host.used(stamp.time);
                }
            }
            return;
        }
        let nothing;
        let before = match before {
            Some(before) => before,
            None => {
                nothing = View::empty(host.id.clone(), host.facts.zone.clone());
                &nothing
            }
        };
        let Some(stamp) = self.ledger.persisted((node, &host.id), record, before, self.now) else { return };
        let last = host.last_used();
        assert!(stamp.time > last, "{} stamped {:?} with {stamp}, not later than {last:?}", host.id, record.key);
        host.used(stamp.time);
        self.figures.writes += 1;
        if let Some(recorder) = &mut self.recorder {
            recorder.wrote(node, record, &stamp, self.now);
        }
        let troubled = self.cuts.any() || self.up < self.hosts.len();
        self.figures.follow(record.key.clone(), stamp, self.now, self.hosts.len(), troubled);
        self.concerned.push(record.key.clone());
        self.note_shown(node);
    }

    /// Measures what a node now shows of the changes on their way.
    fn note_shown(&mut self, node: usize) {
        let mut keys = std::mem::take(&mut self.concerned);
        for key in keys.drain(..) {
            if let Some(heart) = &self.hosts[node].heart {
                let recorder = self.recorder.as_mut();
                self.figures.shown(node, &key, heart.view(), &self.ledger, recorder, self.now);
            }
            self.figures.finish(&key, &self.hosts, self.up, &mut self.ledger, self.now);
        }
        self.concerned = keys;
    }

    // ---- people

    /// Gives a node a command; its answer can be picked up once it is acknowledged.
    pub(crate) fn ask(&mut self, node: usize, command: Command) -> CommandId {
        self.commands += 1;
        let id = CommandId(self.commands);
        self.ledger.asked(id, node, about(&command));
        self.give(node, Input::Command(id, command));
        id
    }

    pub(crate) fn answer(&mut self, id: CommandId) -> Option<Outcome> {
        self.answers.remove(&id)
    }

    /// Writes a notable happening into the journal.
    pub(crate) fn note(&mut self, what: String) {
        self.journal(true, what);
    }

    fn journal(&mut self, deed: bool, what: String) {
        if self.journal.len() == MAX_JOURNAL {
            self.journal.pop_front();
        }
        self.journaled += 1;
        if let Some(recorder) = &mut self.recorder {
            recorder.note(self.now, deed, &what);
        }
        self.journal.push_back(Note { at: self.now, deed, what });
    }
}

fn about(command: &Command) -> Option<Key> {
    match command {
        Command::Register(registration) => Some(Key::Instance(registration.key.clone())),
        Command::Renew(key, _) | Command::SetStatus(key, _) | Command::Deregister(key) => {
            Some(Key::Instance(key.clone()))
        }
        Command::SetOverride(key, _) => Some(Key::Override(key.clone())),
        Command::WriteConfig(write) => Some(Key::Config(write.key.clone())),
        Command::Leave => None,
    }
}

/// A list of names for a line: the first few, and how many more.
pub(crate) fn brief(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    match names.len() {
        0..=SHOWN => names.join(", "),
        more => format!("{} and {} more", names[..SHOWN].join(", "), more - SHOWN),
    }
}
