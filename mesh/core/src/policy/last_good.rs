//! The last good answers of a service, kept to stand in when there is none.
//!
//! An answer is known by all that it depends on, which its carrier puts together and compares byte for byte: one caller's
//! answer must never be another's by accident. What is kept is bounded in number, bytes and age; the oldest go first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::guard::Invalid;
use crate::time::Instant;

/// `[fallback.last_good]`: the last good answer to the same `GET` stands in. Durations are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LastGoodSettings {
    /// How old it may be. 1 to 604,800,000 (a week); default 300,000 (five minutes).
    pub max_age_ms: u64,
    /// How old the kept one is at least before a newer takes its place: what is asked often is not kept anew each time. 0 to
    /// 3,600,000; default 1,000.
    pub refresh_ms: u64,
    /// The most answers kept of the service at this node. 1 to 100,000; default 1,000.
    pub max_answers: u32,
    /// The most bytes all of them have together. 1,024 to 1,073,741,824; default 16,777,216 (16 MiB).
    pub max_bytes: u64,
    /// The most bytes one may have to be kept, head and body. 1 to 16,777,216; default 65,536.
    pub max_answer_bytes: u64,
    /// Whether answers to requests with `Authorization` or `Cookie`, those that are `Cache-Control: private`, and those with
    /// `Set-Cookie` are kept, too: for the same credentials only, and without the `Set-Cookie`. Default false.
    pub private: bool,
}

impl Default for LastGoodSettings {
    fn default() -> Self {
        Self {
            max_age_ms: 300_000,
            refresh_ms: 1_000,
            max_answers: 1_000,
            max_bytes: 16 << 20,
            max_answer_bytes: 65_536,
            private: false,
        }
    }
}

impl LastGoodSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        crate::guard::all_within([
            ("max_age_ms", self.max_age_ms, 1..=604_800_000),
            ("refresh_ms", self.refresh_ms, 0..=3_600_000),
            ("max_answers", self.max_answers.into(), 1..=100_000),
            ("max_bytes", self.max_bytes, 1_024..=1 << 30),
            ("max_answer_bytes", self.max_answer_bytes, 1..=16 << 20),
        ])
    }
}

/// The answers that are kept. `A` is an answer as its carrier keeps it.
#[derive(Debug)]
pub struct LastGood<A> {
    known: BTreeMap<Arc<[u8]>, Entry<A>>,
    /// In the order they were kept; those whose number is no more their key's have been replaced.
    order: VecDeque<(Arc<[u8]>, u64)>,
    bytes: u64,
    kept: u64,
    dropped: u64,
}

#[derive(Debug)]
struct Entry<A> {
    answer: Arc<A>,
    bytes: u64,
    since: Instant,
    number: u64,
}

impl<A> Default for LastGood<A> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), order: VecDeque::new(), bytes: 0, kept: 0, dropped: 0 }
    }
}

impl<A> LastGood<A> {
    /// Whether an answer to this is worth keeping now.
    pub fn wants(&self, settings: &LastGoodSettings, now: Instant, key: &[u8]) -> bool {
        let fresh = Duration::from_millis(settings.refresh_ms);
        self.known.get(key).is_none_or(|entry| now.since(entry.since) >= fresh)
    }

    /// Keeps an answer of so many bytes in the place of the last one. One that is too large is not kept, and the last one
    /// stays.
    pub fn keep(&mut self, settings: &LastGoodSettings, now: Instant, key: &[u8], answer: A, bytes: u64) {
        let bytes = bytes.saturating_add(key.len() as u64);
        if bytes > settings.max_answer_bytes.min(settings.max_bytes) {
            self.dropped += 1;
            return;
        }
        self.kept += 1;
        let key: Arc<[u8]> = key.into();
        let entry = Entry { answer: Arc::new(answer), bytes, since: now, number: self.kept };
        if let Some(before) = self.known.insert(key.clone(), entry) {
            self.bytes -= before.bytes;
        }
        self.bytes += bytes;
        self.order.push_back((key, self.kept));
        self.make_room(settings, now);
    }

    /// The last good answer, and how old it is, if it is not too old.
    pub fn find(&self, settings: &LastGoodSettings, now: Instant, key: &[u8]) -> Option<(Arc<A>, Duration)> {
        let entry = self.known.get(key)?;
        let age = now.since(entry.since);
        (age <= Duration::from_millis(settings.max_age_ms)).then(|| (entry.answer.clone(), age))
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// How many bytes they have, with what they are known by.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many were dropped for a bound: too large, or the oldest of too many.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn make_room(&mut self, settings: &LastGoodSettings, now: Instant) {
        let max_age = Duration::from_millis(settings.max_age_ms);
        while let Some((key, number)) = self.order.front() {
            let entry = self.known.get(key).filter(|entry| entry.number == *number);
            let is_old = entry.is_some_and(|entry| now.since(entry.since) > max_age);
            let too_much = self.known.len() > settings.max_answers as usize || self.bytes > settings.max_bytes;
            if entry.is_some() && !is_old && !too_much {
                break;
            }
            if let Some(bytes) = entry.map(|entry| entry.bytes) {
                self.known.remove(&key.clone());
                self.bytes -= bytes;
                self.dropped += u64::from(!is_old);
            }
            self.order.pop_front();
        }
        // One that is kept anew again and again stands behind one that is never: what it has left behind is taken out.
        if self.order.len() > 2 * self.known.len() + 16 {
            self.order.retain(|(key, number)| self.known.get(key).is_some_and(|entry| entry.number == *number));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Instant {
        Instant(1_000_000_000 + ms * 1_000)
    }

    fn small() -> LastGoodSettings {
        LastGoodSettings { max_age_ms: 1_000, refresh_ms: 100, max_answers: 3, ..LastGoodSettings::default() }
    }

    #[test]
    fn the_newest_answer_stands_in_until_it_is_too_old() {
        let mut answers = LastGood::default();
        assert!(answers.wants(&small(), ms(0), b"/a") && answers.find(&small(), ms(0), b"/a").is_none());
        answers.keep(&small(), ms(0), b"/a", 1, 10);
        assert!(!answers.wants(&small(), ms(99), b"/a"), "it was kept a moment ago");
        assert!(answers.wants(&small(), ms(100), b"/a"));
        answers.keep(&small(), ms(100), b"/a", 2, 10);
        assert_eq!(answers.find(&small(), ms(1_100), b"/a"), Some((Arc::new(2), Duration::from_secs(1))));
        assert_eq!(answers.find(&small(), ms(1_101), b"/a"), None);
    }

    #[test]
    fn the_oldest_go_first_and_what_is_too_large_is_not_kept() {
        let mut answers = LastGood::default();
        for (at, key) in [b"/1", b"/2", b"/1", b"/3", b"/4"].into_iter().enumerate() {
            answers.keep(&small(), ms(at as u64), key, at, 10);
        }
        let known = |key: &[u8]| answers.find(&small(), ms(9), key).map(|(at, _)| *at);
        assert_eq!([known(b"/1"), known(b"/2"), known(b"/3"), known(b"/4")], [Some(2), None, Some(3), Some(4)]);
        assert_eq!((answers.dropped(), answers.bytes()), (1, 36));
        answers.keep(&small(), ms(9), b"/1", 9, 70_000);
        assert_eq!(answers.find(&small(), ms(9), b"/1").map(|(at, _)| *at), Some(2), "the last one that fits stays");
    }

    proptest! {
        /// Whatever is kept, no bound is passed, and nothing is left behind.
        #[test]
        fn nothing_grows_beyond_its_bounds(steps in proptest::collection::vec((0u8..9, 0u64..4_000, 0u64..300), 0..300)) {
            let settings = LastGoodSettings { max_bytes: 1_024, max_answers: 5, ..small() };
            let (mut answers, mut now) = (LastGood::default(), ms(0));
            for (key, bytes, wait) in steps {
                now = now + Duration::from_millis(wait);
                answers.keep(&settings, now, &[key], (), bytes);
                prop_assert!(answers.len() <= 5 && answers.bytes() <= 1_024);
                prop_assert_eq!(answers.bytes(), answers.known.values().map(|entry| entry.bytes).sum::<u64>());
                prop_assert!(answers.order.len() <= 2 * answers.len() + 16);
            }
        }
    }
}
