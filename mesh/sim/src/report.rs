//! Figures of a run: what was said, what it cost, how long a change took to be everywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use starling_core::Counters;
use starling_core::record::{Key, Record};
use starling_core::time::Stamp;
use starling_core::view::View;
use starling_core::wire::Message;

use crate::host::Host;
use crate::ledger::Ledger;
use crate::recording::Recorder;

/// How many changes are followed on their way at once; more are counted as not followed.
const MAX_FOLLOWED: usize = 10_000;

/// The kind of messages that programs of one's own send.
pub(crate) const APP: &str = "app";

/// Messages of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sent {
    /// How many were sent.
    pub messages: u64,
    /// Their encoded size together, in bytes.
    pub bytes: u64,
}

/// How long changes took to be visible at every running node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spread {
    sorted: Vec<Duration>,
}

impl Spread {
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { sorted: times }
    }

    /// How many changes were measured.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The time within which this share of the changes was visible (nearest rank); zero when there were none.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (share.clamp(0.0, 1.0) * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// The slowest.
    pub fn max(&self) -> Duration {
        self.sorted.last().copied().unwrap_or_default()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99) = (ms(self.quantile(0.5)), ms(self.quantile(0.99)));
        write!(f, "p50 {p50}, p99 {p99}, max {} ({} changes)", ms(self.max()), self.count())
    }
}

/// The records a message carries. Every kind is named, so that a new one has to be thought of here.
pub(crate) fn records(message: &Message) -> &[Record] {
    match message {
        Message::Push(records) | Message::Fill { records, .. } | Message::Page { records, .. } => records,
        Message::Opening { .. } | Message::Pull { .. } => &[],
        Message::Ranges { .. }
        | Message::Entries { .. }
        | Message::Want { .. }
        | Message::Same(_)
        | Message::Leaving(..)
        | Message::Have(_)
        | Message::Graft(_)
        | Message::Prune
        | Message::Beacon(_)
        | Message::Pulse(_)
        | Message::OutOfReach { .. }
        | Message::Clock(_)
        | Message::Usage { .. } => &[],
    }
}

pub(crate) fn ms(duration: Duration) -> String {
    match duration.as_secs_f64() {
        long if long >= 10.0 => format!("{long:.2} s"),
        short => format!("{:.2} ms", short * 1_000.0),
    }
}

/// What a run was like so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Virtual time that has passed.
    pub elapsed: Duration,
    /// Nodes there are, running or not.
    pub nodes: usize,
    /// Messages sent, by kind.
    pub sent: BTreeMap<&'static str, Sent>,
    /// Messages lost on their way by chance.
    pub lost: u64,
    /// Messages delivered a second time.
    pub duplicated: u64,
    /// Messages that ran into a cut, or found their receiver gone.
    pub undeliverable: u64,
    /// Writes, those of the hearts themselves (health verdicts, lapsed leases) included.
    pub writes: u64,
    /// Writes that were acknowledged to somebody.
    pub acknowledged: u64,
    /// Records in all messages together: every copy of every change.
    pub copies: u64,
    /// From the write to the last node, for changes made while nothing was cut, down or lost.
    pub visible: Spread,
    /// The same for changes that met a cut, a crash or a heal on their way.
    pub visible_through_faults: Spread,
    /// Changes that have not reached every running node.
    pub not_everywhere: usize,
    /// What the hearts counted, together.
    pub counters: Counters,
}

impl Report {
    /// Messages and bytes of all kinds.
    pub fn total(&self) -> Sent {
        self.sent.values().fold(Sent::default(), |sum, sent| Sent {
            messages: sum.messages + sent.messages,
            bytes: sum.bytes + sent.bytes,
        })
    }

    /// How many copies of a change were sent for each node that had to receive it; 1 would be perfect.
    pub fn copies_per_receiver(&self) -> f64 {
        let receivers = self.writes * (self.nodes as u64).saturating_sub(1);
        if receivers == 0 { 0.0 } else { self.copies as f64 / receivers as f64 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sent { messages, bytes } = self.total();
        writeln!(f, "{} nodes, {:.3} s of virtual time", self.nodes, self.elapsed.as_secs_f64())?;
        writeln!(f, "messages     {messages} in {bytes} bytes")?;
        for (kind, sent) in &self.sent {
            writeln!(f, "  {kind:<10} {} in {} bytes", sent.messages, sent.bytes)?;
        }
        let (lost, duplicated, dead) = (self.lost, self.duplicated, self.undeliverable);
        writeln!(f, "on the way   {lost} lost, {duplicated} doubled, {dead} into a cut or to a node that was gone")?;
        let each = self.copies_per_receiver();
        writeln!(f, "writes       {}, {} acknowledged; {each:.2} copies per receiver", self.writes, self.acknowledged)?;
        writeln!(f, "visible      {}", self.visible)?;
        if self.visible_through_faults.count() > 0 {
            writeln!(f, "  in trouble {}", self.visible_through_faults)?;
        }
        if self.not_everywhere > 0 {
            writeln!(f, "  not yet    {} changes", self.not_everywhere)?;
        }
        let Counters { repairs_begun, repairs_differing, refused, .. } = self.counters;
        write!(f, "repair       {repairs_begun} exchanges, {repairs_differing} times a difference, {refused} refused")
    }
}

/// What is counted while the run goes on.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) sent: BTreeMap<&'static str, Sent>,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) undeliverable: u64,
    pub(crate) writes: u64,
    pub(crate) copies: u64,
    followed: BTreeMap<Key, Vec<Follow>>,
    follows: usize,
    calm: Vec<Duration>,
    troubled: Vec<Duration>,
    /// When each write to be spread was seen by one more node; kept only when asked for.
    pub(crate) arrivals: Option<Vec<Duration>>,
}

/// One change on its way.
#[derive(Debug)]
struct Follow {
    stamp: Stamp,
    since: u64,
    seen: Vec<bool>,
    seen_by: usize,
    troubled: bool,
}

impl Figures {
    pub(crate) fn sent(&mut self, kind: &'static str, bytes: u64) {
        let sent = self.sent.entry(kind).or_default();
        sent.messages += 1;
        sent.bytes += bytes;
    }

    /// Counts the copies of changes a message carries.
    pub(crate) fn copies(&mut self, message: &Message) {
        self.copies += records(message).len() as u64;
    }

    /// Bytes hearts have sent so far.
    pub(crate) fn heart_bytes(&self) -> u64 {
        self.sent.iter().filter(|(kind, _)| **kind != APP).map(|(_, sent)| sent.bytes).sum()
    }

    /// Begins to follow a change, unless too many are followed already.
    pub(crate) fn follow(&mut self, key: Key, stamp: Stamp, now: u64, nodes: usize, troubled: bool) {
        if self.follows < MAX_FOLLOWED {
            self.follows += 1;
            let follow = Follow { stamp, since: now, seen: vec![false; nodes], seen_by: 0, troubled };
            self.followed.entry(key).or_default().push(follow);
        }
    }

    /// Whether any of these records is of a followed change.
    pub(crate) fn concerned(&self, records: &[Record], keys: &mut Vec<Key>) {
        if !self.followed.is_empty() {
            keys.extend(records.iter().map(|record| &record.key).filter(|k| self.followed.contains_key(k)).cloned());
        }
    }

    /// How many changes have not arrived everywhere.
    pub(crate) fn following(&self) -> usize {
        self.follows
    }

    pub(crate) fn all_followed(&self) -> Vec<Key> {
        self.followed.keys().cloned().collect()
    }

    /// Follows only what is written from now on.
    pub(crate) fn forget_followed(&mut self) {
        self.followed.clear();
        self.follows = 0;
        self.calm.clear();
        self.troubled.clear();
    }

    /// Something was cut, crashed or healed: no change that is on its way travels in calm.
    pub(crate) fn trouble(&mut self) {
        self.followed.values_mut().flatten().for_each(|follow| follow.troubled = true);
    }

    /// Notes what of a key a node shows now.
    pub(crate) fn shown(
        &mut self,
        node: usize,
        key: &Key,
        view: &View,
        ledger: &Ledger,
        mut recorder: Option<&mut Recorder>,
        now: u64,
    ) {
        let Some(follows) = self.followed.get_mut(key) else { return };
        for follow in follows.iter_mut() {
            if !follow.seen[node] && ledger.covers(view, key, &follow.stamp) {
                follow.seen[node] = true;
                follow.seen_by += 1;
                if let Some(recorder) = recorder.as_deref_mut() {
                    recorder.seen(node, key, &follow.stamp, now);
                }
                if let Some(arrivals) = &mut self.arrivals {
                    arrivals.push(Duration::from_micros(now - follow.since));
                }
            }
        }
    }

    /// Takes the changes of a key off the road that every node has seen that is up (so many there are).
    pub(crate) fn finish(&mut self, key: &Key, hosts: &[Host], up: usize, ledger: &mut Ledger, now: u64) {
        let Some(follows) = self.followed.get_mut(key) else { return };
        follows.retain(|follow| {
            let everywhere =
                follow.seen_by >= up && hosts.iter().zip(&follow.seen).all(|(host, seen)| *seen || !host.is_up());
            if everywhere {
                let took = Duration::from_micros(now - follow.since);
                if follow.troubled {
                    self.troubled.push(took)
                } else {
                    self.calm.push(took)
                }
                ledger.spread(key, &follow.stamp, &follow.seen);
                self.follows -= 1;
            }
            !everywhere
        });
        if follows.is_empty() {
            self.followed.remove(key);
        }
    }

    pub(crate) fn report(&self, hosts: &[Host], ledger: &Ledger, now: u64) -> Report {
        let counters = hosts.iter().map(Host::counters).fold(Counters::default(), crate::host::add);
        Report {
            elapsed: Duration::from_micros(now),
            nodes: hosts.len(),
            sent: self.sent.clone(),
            lost: self.lost,
            duplicated: self.duplicated,
            undeliverable: self.undeliverable,
            writes: self.writes,
            acknowledged: ledger.acknowledged,
            copies: self.copies,
            visible: Spread::of(self.calm.clone()),
            visible_through_faults: Spread::of(self.troubled.clone()),
            not_everywhere: self.follows,
            counters,
        }
    }
}
