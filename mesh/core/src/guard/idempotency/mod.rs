//! Idempotency keys: whoever repeats a request with the same key within a window gets the first answer.
//!
//! This is the table of one node for one service, where instances are: of the requests with one key that reach it within
//! `window_ms` of the first answer, one is carried to the application; the others wait for its answer, get it, or are told
//! that it is under way. It ends with the node's process, when the table is full (the oldest answers go first, which is
//! counted), for answers that are too large to keep (the next is told so), and when the first request failed (it may be
//! tried again: whether the application has acted is for the application to know).
//!
//! *Across nodes.* Callers send a key to the same instance ([`weight_for`], rendezvous hashing), as long as it is there
//! and answers. Where a key arrives that a table does not know, its node asks others of the service's nodes before it
//! carries the request, and they tell what they know ([`Answers::tell`]). Two that meet the same key at once ask each
//! other: the one whose name hashes higher with the key goes on, the other *yields* and waits there. Who was told
//! "unknown" is remembered ([`Answers::whom_to_ask`]): it is about to carry that key. So two nodes that can talk to each
//! other, and ask each other, never carry one key both; nodes that cannot talk may.
//!
//! A key names a request: with another method, path or body it is refused, not answered with what it did not ask for.

mod settings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64_with_seed};

use super::refusal::{Guard, Refusal};
use crate::id::NodeId;
use crate::time::Instant;
pub use settings::{IdempotencySettings, KeyScope, Meanwhile, Unanswered};

/// The longest key, in bytes (UUIDs have 36; the IETF's draft leaves it open).
pub const MAX_KEY_BYTES: usize = 256;

/// How many of what is past its window a request drops at most: so that nobody pays for all.
const DROPPED_AT_ONCE: usize = 8;

/// The answers of one node to the requests of one service. `A` is an answer as its carrier keeps it.
///
/// Not an atomic: whoever shares it puts a lock around it, which only requests with a key take, a few times each. Settings
/// come with each call, since they change and a service's routes may have their own.
#[derive(Debug)]
pub struct Answers<A> {
    known: BTreeMap<KeyId, Entry<A>>,
    /// Those that have been answered, in the order they were.
    ended: VecDeque<(u64, KeyId)>,
    /// Who is about to carry, or has carried, a key that was not known here; until when that matters.
    elsewhere: BTreeMap<KeyId, (Instant, NodeId)>,
    /// The same in the order they were told.
    told: VecDeque<(Instant, KeyId)>,
    bytes: u64,
    begun: u64,
    counts: IdempotencyCounts,
}

/// What stands for a key and whose it is: 128 bits, so that two keys do not meet by accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(pub u128);

/// What stands for a request, for its key: a hash of what must be the same in a repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Print(pub u64);

#[derive(Debug)]
struct Entry<A> {
    print: Print,
    /// Which beginning this is: who was held for lost has another.
    number: u64,
    state: State<A>,
}

#[derive(Debug)]
enum State<A> {
    /// Others are being asked, since then; to whom it has yielded meanwhile.
    Asking(Instant, Option<NodeId>),
    /// The application has it; it is held for lost then.
    Carried(Instant),
    /// Answered, known until then; nothing is kept if it was too large.
    Answered(Instant, Option<Arc<A>>, u64),
}

/// The right to carry the first request with a key.
#[derive(Debug)]
#[must_use = "a key stays under way until its request is ended"]
pub struct First {
    key: KeyId,
    number: u64,
}

/// What is to be done with a request that has a key.
#[derive(Debug)]
pub enum Begun<A> {
    /// Ask others, then [`Answers::carry`] it, then [`Answers::end`] it.
    First(First),
    /// Answer it with this.
    Repeat(Arc<A>),
    /// The first is under way.
    UnderWay,
}

/// How a first request ended.
#[derive(Debug)]
pub enum Ended<A> {
    /// With this answer, of so many bytes.
    Answered(Arc<A>, u64),
    /// With more than is kept.
    TooLarge,
    /// Without an answer that is the last word: the key is free.
    Failed,
}

/// What another node is told of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Told<A> {
    /// Nothing is known of it: whoever asks may go on.
    Unknown,
    /// It is under way here.
    UnderWay,
    /// It was answered so; for how long that is kept.
    Answered(Arc<A>, Duration),
    /// It was answered, with more than is kept.
    NotKept,
    /// It is another request's.
    Misused,
}

/// What a table has counted; all grow only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct IdempotencyCounts {
    /// Requests carried.
    pub first: u64,
    /// Requests answered with the first answer, from here.
    pub repeated: u64,
    /// First answers fetched from other nodes.
    pub fetched: u64,
    /// Requests that came while the first was under way.
    pub under_way: u64,
    /// Requests refused, since their key names another request.
    pub misused: u64,
    /// Requests refused, since their answer was too large to be kept.
    pub not_kept: u64,
    /// Requests carried whose answer was no last word: their keys were free again.
    pub failed: u64,
    /// Answers dropped before their time, since there were too many.
    pub evicted: u64,
    /// First requests that never ended.
    pub lost: u64,
    /// Questions other nodes asked.
    pub asked: u64,
    /// Questions to other nodes that were not answered.
    pub unanswered: u64,
}

/// All that can be shown of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IdempotencySnapshot {
    /// Keys known.
    pub keys: u64,
    /// Bytes of all answers.
    pub bytes: u64,
    /// What it has counted.
    #[serde(flatten)]
    pub counts: IdempotencyCounts,
}

impl IdempotencyCounts {
    /// Each with its name.
    pub fn all(&self) -> [(&'static str, u64); 11] {
        [
            ("first", self.first),
            ("repeated", self.repeated),
            ("fetched", self.fetched),
            ("under_way", self.under_way),
            ("misused", self.misused),
            ("not_kept", self.not_kept),
            ("failed", self.failed),
            ("evicted", self.evicted),
            ("lost", self.lost),
            ("asked", self.asked),
            ("unanswered", self.unanswered),
        ]
    }
}

impl KeyId {
    /// What stands for a key that `scope` (a caller, header fields) uses.
    pub fn new<'a>(key: &'a [u8], scope: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Xxh3Default::new();
        for part in std::iter::once(key).chain(scope) {
            // With their lengths: "ab", "c" is not "a", "bc".
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.digest128())
    }
}

impl Print {
    /// Of a request.
    pub fn new(method: &str, path: &str, body: &[u8]) -> Self {
        let head = xxh3_64_with_seed(path.as_bytes(), xxh3_64_with_seed(method.as_bytes(), 0));
        Self(xxh3_64_with_seed(body, head))
    }
}

/// How strongly the requests with a key are drawn to something of this name and weight: all go where it is highest, so that
/// only those of one that goes move, and each gets its share (weighted rendezvous, or highest random weight: Thaler and
/// Ravishankar, 1998). 0 for a weight of 0.
pub fn weight_for(key: u64, name: &str, weight: u32) -> f64 {
    let hash = xxh3_64_with_seed(name.as_bytes(), key);
    // In (0, 1): 53 bits are what a double holds, and a half keeps it off both ends.
    let drawn = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    f64::from(weight) / -drawn.ln()
}

impl<A> Default for Answers<A> {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            ended: VecDeque::new(),
            elsewhere: BTreeMap::new(),
            told: VecDeque::new(),
            bytes: 0,
            begun: 0,
            counts: IdempotencyCounts::default(),
        }
    }
}

impl<A> Answers<A> {
    /// A request with a key came.
    ///
    /// # Errors
    /// A refusal: the key is another request's ([`MISUSED`]), its answer was not kept, or all keys known are under way.
    pub fn begin(
        &mut self,
        now: Instant,
        settings: &IdempotencySettings,
        key: KeyId,
        print: Print,
    ) -> Result<Begun<A>, Refusal> {
        self.forget_old(now);
        match self.look(now, key, print) {
            Some(Told::Answered(answer, _)) => {
                self.counts.repeated += 1;
                return Ok(Begun::Repeat(answer));
            }
            Some(Told::UnderWay) => {
                self.counts.under_way += 1;
                return Ok(Begun::UnderWay);
            }
            Some(told) => return Err(self.refuse(&told)),
            None if !self.known.contains_key(&key) && !self.make_room(now, settings.max_keys) => {
                return Err(Refusal::new(Guard::Idempotency, "too many keys are under way"));
            }
            None => {}
        }
        self.begun += 1;
        let until = now + Duration::from_millis(settings.lost_after_ms);
        self.known.insert(key, Entry { print, number: self.begun, state: State::Asking(until, None) });
        Ok(Begun::First(First { key, number: self.begun }))
    }

    /// Who may know more of a key than others, if anybody was told to go on with it.
    pub fn whom_to_ask(&self, now: Instant, key: KeyId) -> Option<&NodeId> {
        self.elsewhere.get(&key).filter(|(until, _)| now < *until).map(|(_, node)| node)
    }

    /// Nobody else knows it: from now on it is carried here, which holds for everybody who asks.
    ///
    /// # Errors
    /// The node it has yielded to meanwhile; the key is not under way here any more.
    pub fn carry(&mut self, now: Instant, settings: &IdempotencySettings, first: &First) -> Result<(), Option<NodeId>> {
        let Some(entry) = self.own(first) else { return Err(None) };
        if let State::Asking(_, Some(_)) = entry.state {
            let Some(Entry { state: State::Asking(_, yielded), .. }) = self.known.remove(&first.key) else {
                return Err(None);
            };
            return Err(yielded);
        }
        entry.state = State::Carried(now + Duration::from_millis(settings.lost_after_ms));
        self.counts.first += 1;
        Ok(())
    }

    /// The first request with a key ended, or was answered elsewhere.
    pub fn end(&mut self, now: Instant, settings: &IdempotencySettings, first: &First, ended: Ended<A>) {
        self.end_within(now, settings, first, ended, Duration::from_millis(settings.window_ms));
    }

    /// Another node has told what became of a key that was begun here; it is known here too, for as long as it is there.
    pub fn learn(
        &mut self,
        now: Instant,
        settings: &IdempotencySettings,
        first: &First,
        answer: Option<(Arc<A>, u64)>,
        left: Duration,
    ) {
        self.counts.fetched += u64::from(answer.is_some());
        let ended = answer.map_or(Ended::TooLarge, |(answer, bytes)| Ended::Answered(answer, bytes));
        self.end_within(now, settings, first, ended, left.min(Duration::from_millis(settings.window_ms)));
    }

    /// Another node asks.
    pub fn asked(&mut self) {
        self.counts.asked += 1;
    }

    /// A question to another node was not answered.
    pub fn not_told(&mut self) {
        self.counts.unanswered += 1;
    }

    /// Tells another node what is known of a key. Where nothing is, it will carry it, and that is remembered.
    pub fn tell(
        &mut self,
        now: Instant,
        settings: &IdempotencySettings,
        key: KeyId,
        print: Print,
        asker: &NodeId,
        me: &NodeId,
    ) -> Told<A> {
        self.forget_old(now);
        if let Some(Entry { state: State::Asking(until, yielded), .. }) = self.known.get_mut(&key)
            && now < *until
            && goes_first(key, asker, me)
        {
            *yielded = Some(asker.clone());
            return Told::Unknown;
        }
        if let Some(told) = self.look(now, key, print) {
            return told;
        }
        while self.elsewhere.len() >= settings.max_keys as usize && self.forget_told() {}
        let until = now + Duration::from_millis(settings.window_ms.saturating_add(settings.lost_after_ms));
        self.elsewhere.insert(key, (until, asker.clone()));
        self.told.push_back((until, key));
        Told::Unknown
    }

    /// Whether a first request under way has not ended: what those who wait for it ask.
    pub fn is_under_way(&self, now: Instant, key: KeyId) -> bool {
        self.known.get(&key).is_some_and(|entry| match entry.state {
            State::Asking(until, _) | State::Carried(until) => now < until,
            State::Answered(..) => false,
        })
    }

    /// What it holds.
    pub fn snapshot(&self) -> IdempotencySnapshot {
        IdempotencySnapshot { keys: self.known.len() as u64, bytes: self.bytes, counts: self.counts }
    }

    /// What is known of a key, of what still counts. What does not is dropped.
    fn look(&mut self, now: Instant, key: KeyId, print: Print) -> Option<Told<A>> {
        let entry = self.known.get(&key)?;
        let told = match &entry.state {
            State::Asking(until, _) | State::Carried(until) if now >= *until => {
                self.counts.lost += 1;
                None
            }
            State::Answered(until, ..) if now >= *until => None,
            _ if entry.print != print => Some(Told::Misused),
            State::Asking(..) | State::Carried(_) => Some(Told::UnderWay),
            State::Answered(until, Some(answer), _) => Some(Told::Answered(answer.clone(), until.since(now))),
            State::Answered(_, None, _) => Some(Told::NotKept),
        };
        if told.is_none() {
            self.remove(key);
        }
        told
    }

    /// The refusal of what is known to be no good.
    pub fn refuse(&mut self, told: &Told<A>) -> Refusal {
        let misused = matches!(told, Told::Misused);
        *(if misused { &mut self.counts.misused } else { &mut self.counts.not_kept }) += 1;
        Refusal::new(Guard::Idempotency, if misused { MISUSED } else { NOT_KEPT })
    }

    fn own(&mut self, first: &First) -> Option<&mut Entry<A>> {
        // Held for lost, another may have taken its place.
        self.known.get_mut(&first.key).filter(|entry| entry.number == first.number)
    }

    fn end_within(
        &mut self,
        now: Instant,
        settings: &IdempotencySettings,
        first: &First,
        ended: Ended<A>,
        window: Duration,
    ) {
        let Some(entry) = self.own(first) else { return };
        let was_carried = matches!(entry.state, State::Carried(_));
        let (answer, bytes) = match ended {
            Ended::Failed => {
                self.counts.failed += u64::from(was_carried);
                self.known.remove(&first.key);
                return;
            }
            Ended::Answered(answer, bytes) if bytes <= settings.max_bytes => (Some(answer), bytes),
            Ended::Answered(..) | Ended::TooLarge => (None, 0),
        };
        entry.state = State::Answered(now + window, answer, bytes);
        self.bytes += bytes;
        self.ended.push_back((first.number, first.key));
        while self.bytes > settings.max_bytes && self.evict() {}
    }

    fn forget_old(&mut self, now: Instant) {
        for _ in 0..DROPPED_AT_ONCE {
            let Some((number, key)) = self.ended.front() else { break };
            let is_over = self
                .known
                .get(key)
                .filter(|entry| entry.number == *number)
                .is_none_or(|entry| matches!(entry.state, State::Answered(until, ..) if now >= until));
            if !is_over {
                break;
            }
            self.drop_oldest();
        }
        for _ in 0..DROPPED_AT_ONCE {
            if self.told.front().is_none_or(|(until, _)| now < *until) {
                break;
            }
            self.forget_told();
        }
    }

    fn forget_told(&mut self) -> bool {
        let Some((until, key)) = self.told.pop_front() else { return false };
        // Told again since, it is to be remembered for longer.
        if self.elsewhere.get(&key).is_some_and(|(known, _)| *known == until) {
            self.elsewhere.remove(&key);
        }
        true
    }

    fn make_room(&mut self, now: Instant, most: u32) -> bool {
        let most = most as usize;
        while self.known.len() >= most && self.evict() {}
        if self.known.len() < most {
            return true;
        }
        // All are under way; those that are lost need not be known any longer.
        let before = self.known.len();
        self.known
            .retain(|_, entry| !matches!(entry.state, State::Asking(until, _) | State::Carried(until) if now >= until));
        self.counts.lost += (before - self.known.len()) as u64;
        self.known.len() < most
    }

    fn evict(&mut self) -> bool {
        while let Some(dropped) = self.drop_oldest() {
            if dropped {
                self.counts.evicted += 1;
                return true;
            }
        }
        false
    }

    /// Drops the oldest answer: whether it was still there, if there is any.
    fn drop_oldest(&mut self) -> Option<bool> {
        let (number, key) = self.ended.pop_front()?;
        let is_there = self.known.get(&key).is_some_and(|entry| entry.number == number);
        if is_there {
            self.remove(key);
        }
        Some(is_there)
    }

    fn remove(&mut self, key: KeyId) {
        if let Some(Entry { state: State::Answered(_, _, bytes), .. }) = self.known.remove(&key) {
            self.bytes -= bytes;
        }
    }
}

/// The reason of a refusal: the key came with another request.
pub const MISUSED: &str = "the key was used for another request";
/// The reason of a refusal: what is to be answered is not there.
pub const NOT_KEPT: &str = "it was answered, with more than is kept";

/// Of two nodes that meet a key at once, whether the first is the one to go on; all nodes agree.
fn goes_first(key: KeyId, one: &NodeId, other: &NodeId) -> bool {
    let rank = |node: &NodeId| (xxh3_64_with_seed(node.as_str().as_bytes(), key.0 as u64), node.clone());
    rank(one) > rank(other)
}
