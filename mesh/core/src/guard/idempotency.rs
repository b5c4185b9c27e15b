//! Idempotency keys: whoever repeats a request with the same key within a window gets the first answer.
//!
//! The guarantee, as far as one node can give it: of the requests with one key that reach *this* node's table within
//! `window_ms` of the first answer, one is carried to the application; the others wait for its answer or are told that
//! it is under way. It ends with the node's process, when the table is full (the oldest answers go first, which is
//! counted), for answers that are too large to keep (the next is told so), and when the first request failed before an
//! answer (it may be tried again: whether the application has acted is for the application to know). Across nodes, the
//! table that sees a key must be the same one each time: the one at the instance's side, with every request of a key
//! carried to the same instance ([`rendezvous`]); then the guarantee holds as long as the service's instances stay the
//! same.
//!
//! A key names a request: with another method, path or body it is refused, not answered with what it did not ask for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

use super::refusal::{Guard, Invalid, Refusal, all_within};
use crate::time::Instant;

/// Which requests have keys, and how their answers are kept. Durations are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdempotencySettings {
    /// The header field with the key, in lower case. 1 to 64 bytes; default `idempotency-key` (the IETF's draft).
    pub header: String,
    /// The methods it is looked at for. Up to 16; default POST and PATCH: the others are repeatable as they are.
    pub methods: Vec<String>,
    /// Whether such a request without a key is refused. Default false.
    pub required: bool,
    /// How long an answer is kept. 1,000 to 604,800,000 (a week); default 600,000 (ten minutes).
    pub window_ms: u64,
    /// What happens to a repeat while the first is under way. Default `wait`.
    pub meanwhile: Meanwhile,
    /// How long a repeat waits for the first answer; then it is told that it is under way. 1 to 600,000; default 10,000.
    pub max_wait_ms: u64,
    /// After so long without an end the first request is held for lost. 1,000 to 3,600,000; default 60,000.
    pub lost_after_ms: u64,
    /// The most keys known at once. 1 to 10,000,000; default 10,000.
    pub max_keys: u32,
    /// The most bytes all answers have together. 1,024 to 17,179,869,184; default 16,777,216 (16 MiB).
    pub max_bytes: u64,
    /// The most bytes one answer may have to be kept. 0 to 16,777,216; default 65,536.
    pub max_answer_bytes: u64,
}

/// What happens to a repeat while the first request is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meanwhile {
    /// It waits for the first answer.
    #[default]
    Wait,
    /// It is told so, with 409.
    Conflict,
}

impl Default for IdempotencySettings {
    fn default() -> Self {
        Self {
            header: "idempotency-key".into(),
            methods: vec!["POST".into(), "PATCH".into()],
            required: false,
            window_ms: 600_000,
            meanwhile: Meanwhile::Wait,
            max_wait_ms: 10_000,
            lost_after_ms: 60_000,
            max_keys: 10_000,
            max_bytes: 16 << 20,
            max_answer_bytes: 65_536,
        }
    }
}

/// The longest key, in bytes (UUIDs have 36; the IETF's draft leaves it open).
pub const MAX_KEY_BYTES: usize = 256;

impl IdempotencySettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if self.header.is_empty() || self.header.len() > 64 || !self.header.chars().all(is_name) {
            return Err(Invalid::new(
                "header",
                format_args!("{:?}", self.header),
                "a header field's name in lower case",
            ));
        }
        let is_method = |method: &String| {
            !method.is_empty() && method.len() <= 32 && method.chars().all(|c| c.is_ascii_uppercase())
        };
        if let Some(wrong) = self.methods.iter().find(|method| !is_method(method)) {
            return Err(Invalid::new("methods", format_args!("{wrong:?}"), "methods in capitals"));
        }
        all_within([
            ("methods (entries)", self.methods.len() as u64, 1..=16),
            ("window_ms", self.window_ms, 1_000..=604_800_000),
            ("max_wait_ms", self.max_wait_ms, 1..=600_000),
            ("lost_after_ms", self.lost_after_ms, 1_000..=3_600_000),
            ("max_keys", self.max_keys.into(), 1..=10_000_000),
            ("max_bytes", self.max_bytes, 1_024..=16 << 30),
            ("max_answer_bytes", self.max_answer_bytes, 0..=16 << 20),
        ])
    }
}

/// The answers of one node (of one service, or of all). `A` is an answer as its carrier keeps it.
///
/// Not an atomic: whoever shares it puts a lock around it, which only requests with a key take, twice each.
#[derive(Debug)]
pub struct Answers<A> {
    settings: IdempotencySettings,
    known: BTreeMap<KeyHash, Entry<A>>,
    /// Those that have ended, in the order they did.
    ended: VecDeque<(Instant, KeyHash)>,
    bytes: u64,
    begun: u64,
    counts: IdempotencyCounts,
}

/// What stands for a key: 128 bits, so that two keys do not meet by accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct KeyHash(u128);

#[derive(Debug)]
struct Entry<A> {
    /// What the first request was.
    print: u64,
    state: State<A>,
}

#[derive(Debug)]
enum State<A> {
    /// Under way since then; by whom.
    UnderWay(Instant, u64),
    /// Answered; nothing is kept if it was too large.
    Answered(Instant, Option<Arc<A>>, u64),
}

/// The right to carry the first request with a key.
#[derive(Debug)]
#[must_use = "a key stays under way until its request is ended"]
pub struct First {
    key: KeyHash,
    number: u64,
}

/// What is to be done with a request that has a key.
#[derive(Debug)]
pub enum Begun<A> {
    /// Carry it, then [`Answers::end`] it.
    First(First),
    /// Answer it with this.
    Repeat(Arc<A>),
    /// The first is under way.
    UnderWay,
}

/// What a table has counted; all grow only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct IdempotencyCounts {
    /// Requests carried.
    pub first: u64,
    /// Requests answered with the first answer.
    pub repeated: u64,
    /// Requests that came while the first was under way.
    pub under_way: u64,
    /// Requests refused, since their key names another request, or is too long.
    pub misused: u64,
    /// Requests refused, since their answer was too large to be kept.
    pub not_kept: u64,
    /// Answers dropped before their time, since there were too many.
    pub evicted: u64,
    /// First requests that never ended.
    pub lost: u64,
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

/// What a request is, for its key: a hash of what must be the same in a repeat.
pub fn print(method: &[u8], path: &[u8], body: &[u8]) -> u64 {
    xxh3_64_with_seed(body, xxh3_64_with_seed(path, xxh3_64(method)))
}

/// The one of `candidates` that all nodes choose for a key, and go on choosing when others come or go (rendezvous, or
/// highest random weight: Thaler and Ravishankar, 1998). Only the keys of one that goes move.
pub fn rendezvous<'a, T>(
    key: &[u8],
    candidates: impl IntoIterator<Item = &'a T>,
    name: impl Fn(&T) -> &str,
) -> Option<&'a T> {
    let seed = xxh3_64(key);
    candidates.into_iter().max_by_key(|candidate| {
        let name = name(candidate);
        (xxh3_64_with_seed(name.as_bytes(), seed), name.len())
    })
}

impl<A> Answers<A> {
    /// An empty table.
    pub fn new(settings: &IdempotencySettings) -> Self {
        Self {
            settings: settings.clone(),
            known: BTreeMap::new(),
            ended: VecDeque::new(),
            bytes: 0,
            begun: 0,
            counts: IdempotencyCounts::default(),
        }
    }

    /// A request with a key came.
    ///
    /// # Errors
    /// A refusal: the key is another request's, too long, or all keys known are under way.
    pub fn begin(&mut self, now: Instant, key: &[u8], print: u64) -> Result<Begun<A>, Refusal> {
        self.forget_old(now);
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            self.counts.misused += 1;
            return Err(Refusal::new(Guard::Idempotency, "the key is empty or too long"));
        }
        let key = KeyHash(xxh3_128(key));
        if let Some(entry) = self.known.get(&key) {
            if entry.print != print {
                self.counts.misused += 1;
                return Err(Refusal::new(Guard::Idempotency, "the key was used for another request"));
            }
            match &entry.state {
                State::Answered(_, Some(answer), _) => {
                    self.counts.repeated += 1;
                    return Ok(Begun::Repeat(answer.clone()));
                }
                State::Answered(_, None, _) => {
                    self.counts.not_kept += 1;
                    return Err(Refusal::new(Guard::Idempotency, "it was answered, with more than is kept"));
                }
                State::UnderWay(since, _) if now.since(*since) < Duration::from_millis(self.settings.lost_after_ms) => {
                    self.counts.under_way += 1;
                    return Ok(Begun::UnderWay);
                }
                State::UnderWay(..) => self.counts.lost += 1,
            }
        } else if !self.make_room(now) {
            return Err(Refusal::new(Guard::Idempotency, "too many keys are under way"));
        }
        self.begun += 1;
        self.counts.first += 1;
        self.known.insert(key, Entry { print, state: State::UnderWay(now, self.begun) });
        Ok(Begun::First(First { key, number: self.begun }))
    }

    /// The first request with a key ended: with an answer of so many bytes, or without one (then it may be tried again).
    pub fn end(&mut self, now: Instant, first: First, answer: Option<(A, u64)>) {
        let Some(entry) = self.known.get_mut(&first.key) else { return };
        if !matches!(entry.state, State::UnderWay(_, number) if number == first.number) {
            return; // held for lost, and another has taken its place
        }
        let Some((answer, bytes)) = answer else {
            self.known.remove(&first.key);
            return;
        };
        let is_kept = bytes <= self.settings.max_answer_bytes.min(self.settings.max_bytes);
        let (answer, bytes) = if is_kept { (Some(Arc::new(answer)), bytes) } else { (None, 0) };
        entry.state = State::Answered(now, answer, bytes);
        self.bytes += bytes;
        self.ended.push_back((now, first.key));
        while self.bytes > self.settings.max_bytes && self.evict() {}
    }

    /// Whether a first request under way has ended since: what those who wait for it ask.
    pub fn is_under_way(&self, key: &[u8]) -> bool {
        matches!(self.known.get(&KeyHash(xxh3_128(key))), Some(Entry { state: State::UnderWay(..), .. }))
    }

    /// What it holds.
    pub fn snapshot(&self) -> IdempotencySnapshot {
        IdempotencySnapshot { keys: self.known.len() as u64, bytes: self.bytes, counts: self.counts }
    }

    /// Drops what is past its window: a few at a time, so that nobody pays for all.
    fn forget_old(&mut self, now: Instant) {
        let window = Duration::from_millis(self.settings.window_ms);
        for _ in 0..8 {
            match self.ended.front() {
                Some((at, _)) if now.since(*at) >= window => self.drop_oldest(),
                _ => return,
            };
        }
    }

    fn make_room(&mut self, now: Instant) -> bool {
        if self.known.len() < self.settings.max_keys as usize || self.evict() {
            return true;
        }
        // All are under way; those that are lost need not be known any longer.
        let lost_after = Duration::from_millis(self.settings.lost_after_ms);
        let before = self.known.len();
        self.known
            .retain(|_, entry| !matches!(entry.state, State::UnderWay(since, _) if now.since(since) >= lost_after));
        self.counts.lost += (before - self.known.len()) as u64;
        self.known.len() < before
    }

    fn evict(&mut self) -> bool {
        let evicted = self.drop_oldest();
        self.counts.evicted += u64::from(evicted);
        evicted
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((at, key)) = self.ended.pop_front() else { return false };
        if let Some(Entry { state: State::Answered(answered, _, bytes), .. }) = self.known.get(&key)
            && *answered == at
        {
            self.bytes -= bytes;
            self.known.remove(&key);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000)
    }

    fn answers(settings: IdempotencySettings) -> Answers<&'static str> {
        assert_eq!(settings.check(), Ok(()));
        Answers::new(&settings)
    }

    fn first(answers: &mut Answers<&'static str>, now: Instant, key: &str) -> First {
        match answers.begin(now, key.as_bytes(), 0) {
            Ok(Begun::First(first)) => first,
            other => panic!("{key} is not the first: {other:?}"),
        }
    }

    fn repeat(answers: &mut Answers<&'static str>, now: Instant, key: &str) -> &'static str {
        match answers.begin(now, key.as_bytes(), 0) {
            Ok(Begun::Repeat(answer)) => *answer,
            other => panic!("{key} is no repeat: {other:?}"),
        }
    }

    #[test]
    fn a_repeat_within_the_window_gets_the_first_answer() {
        let mut answers = answers(IdempotencySettings::default());
        let begun = first(&mut answers, at(0), "k");
        assert!(matches!(answers.begin(at(1), b"k", 0), Ok(Begun::UnderWay)));
        assert!(answers.is_under_way(b"k"));
        answers.end(at(2), begun, Some(("paid", 4)));
        assert_eq!(repeat(&mut answers, at(601), "k"), "paid");
        let begun = first(&mut answers, at(602), "k");
        answers.end(at(603), begun, Some(("paid again", 10)));
        assert_eq!(answers.snapshot().bytes, 10);
    }

    #[test]
    fn what_failed_may_be_tried_again_and_what_is_lost_is_not_waited_for_for_ever() {
        let mut answers = answers(IdempotencySettings::default());
        let begun = first(&mut answers, at(0), "k");
        answers.end(at(0), begun, None);
        let lost = first(&mut answers, at(0), "k");
        assert!(matches!(answers.begin(at(59), b"k", 0), Ok(Begun::UnderWay)));
        let begun = first(&mut answers, at(60), "k");
        answers.end(at(61), lost, Some(("late", 4)));
        assert!(answers.is_under_way(b"k"), "whoever was held for lost has no say");
        answers.end(at(62), begun, Some(("good", 4)));
        assert_eq!(repeat(&mut answers, at(63), "k"), "good");
    }

    #[test]
    fn a_key_of_another_request_is_refused() {
        let mut answers = answers(IdempotencySettings::default());
        let _first = first(&mut answers, at(0), "k");
        let pay = |body: &str| print(b"POST", b"/pay", body.as_bytes());
        assert_ne!(pay("1"), pay("2"));
        assert_eq!(answers.begin(at(0), b"k", pay("2")).unwrap_err().reason, "the key was used for another request");
        assert!(answers.begin(at(0), &[b'x'; 257], 0).is_err());
    }

    #[test]
    fn an_answer_too_large_to_keep_is_said_to_be_so_and_not_carried_twice() {
        let mut answers = answers(IdempotencySettings::default());
        let begun = first(&mut answers, at(0), "k");
        answers.end(at(0), begun, Some(("huge", 65_537)));
        assert_eq!(answers.begin(at(1), b"k", 0).unwrap_err().reason, "it was answered, with more than is kept");
    }

    #[test]
    fn a_full_table_drops_the_oldest_answers_and_says_so_and_never_what_is_under_way() {
        let mut answers = answers(IdempotencySettings { max_keys: 2, ..IdempotencySettings::default() });
        let (a, _b) = (first(&mut answers, at(0), "a"), first(&mut answers, at(0), "b"));
        assert!(answers.begin(at(0), b"c", 0).is_err());
        answers.end(at(0), a, Some(("a", 1)));
        let _c = first(&mut answers, at(0), "c");
        assert_eq!((answers.snapshot().counts.evicted, answers.snapshot().keys), (1, 2));
        let _a = first(&mut answers, at(60), "a"); // b and c are lost by now
        assert!(answers.snapshot().keys <= 2);
    }

    #[test]
    fn when_an_instance_goes_only_its_keys_move() {
        let names: Vec<String> = (0..10).map(|name| format!("i{name}")).collect();
        let choose = |key: u32, names: &[String]| rendezvous(&key.to_le_bytes(), names, |name| name).cloned();
        let mut counts = BTreeMap::<String, u32>::new();
        for key in 0..10_000 {
            let chosen = choose(key, &names).unwrap();
            *counts.entry(chosen.clone()).or_default() += 1;
            let without = choose(key, &names[1..]).unwrap();
            assert!(chosen == "i0" || chosen == without);
        }
        assert!(counts.values().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }

    proptest! {
        /// Whatever comes in whatever order: no key is carried twice at once, bytes and keys stay within their limits and
        /// are counted exactly.
        #[test]
        fn bounds_hold_and_nothing_is_carried_twice_at_once(steps in proptest::collection::vec((0u8..4, 0u8..6, 0u64..40, 0u64..2_000), 0..200)) {
            let settings = IdempotencySettings { max_keys: 4, max_bytes: 3_000, max_answer_bytes: 1_500, window_ms: 60_000, ..IdempotencySettings::default() };
            let mut answers: Answers<u8> = Answers::new(&settings);
            let mut now = at(0);
            let mut out: Vec<(u8, First)> = Vec::new();
            for (step, key, wait_s, bytes) in steps {
                now = now + Duration::from_secs(wait_s);
                if step < 2 {
                    if let Ok(Begun::First(first)) = answers.begin(now, &[key], 0) {
                        // Another of the same key may be out only if it was held for lost.
                        if answers.counts.lost == 0 {
                            prop_assert!(out.iter().all(|(held, _)| *held != key));
                        }
                        out.push((key, first));
                    }
                } else if let Some((key, first)) = out.pop() {
                    answers.end(now, first, (step == 2).then_some((key, bytes)));
                }
                let held: u64 = answers.known.values().map(|entry| match entry.state {
                    State::Answered(_, _, bytes) => bytes,
                    State::UnderWay(..) => 0,
                }).sum();
                prop_assert_eq!(held, answers.bytes);
                prop_assert!(answers.bytes <= 3_000 && answers.known.len() <= 4);
            }
        }
    }
}
