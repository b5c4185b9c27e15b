//! What a service was asked lately, kept so that a document can be tried on it before it is in force ([`super::replay`]).
//!
//! Every request costs an atomic addition; one that is kept, a lock for as long as it takes to copy its head. Places are
//! used again, so nothing is allocated once they are all there. Of up to 31 requests a second each is kept; of more only
//! every second, every fourth and so on, and such a one stands for those that were not.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Asked, Written};
use crate::guard::Guard;
use crate::guard::circuit::Came;
use crate::time::Instant;

/// How far back a document can be tried.
pub(super) const REACH: Duration = Duration::from_secs(60);
/// The most requests that are kept of a service: as many as come to a minute at the highest rate that is kept.
const MAX_KEPT: usize = 2_048;
/// The most bytes that are kept of a request's head: the usual ones fit. With [`MAX_KEPT`], less than 2 MB a service.
const MAX_HEAD_BYTES: usize = 768;
/// The most bytes of a caller's name, and of a refusal's reason.
const MAX_WORD_BYTES: usize = 128;
/// From twice as many a second on, not all are kept.
const KEPT_PER_S: u32 = 16;

/// The requests of the last minute, or as many of them as there is room for.
#[derive(Debug, Default)]
pub struct Recent {
    /// The second (32 bits), and how many came in it (32 bits).
    pace: AtomicU64,
    /// How many came in the second before.
    before: AtomicU32,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    facts: Vec<Fact>,
    /// The place of the oldest, once all are taken.
    oldest: usize,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// So, as who carried it saw it.
    Came(Came),
    /// This guard refused it.
    Refused(Guard),
}

/// A request that has ended, to be remembered.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// When it came.
    pub came: Instant,
    /// When it had ended.
    pub ended: Instant,
    /// Its head, as it was sent on.
    pub head: &'a [u8],
    /// The calling service, if it is known.
    pub service: Option<&'a str>,
    /// How it ended.
    pub end: End,
    /// If it was refused: the reason and the rule.
    pub why: &'a str,
}

/// A request that is remembered.
#[derive(Debug, Clone)]
pub(super) struct Fact {
    pub(super) came: Instant,
    pub(super) took: Duration,
    pub(super) end: End,
    /// How many it stands for, itself included.
    pub(super) stands_for: u32,
    head: Vec<u8>,
    service: String,
    why: String,
}

impl Recent {
    /// Remembers a request, if it is one of those that are kept.
    pub fn note(&self, seen: &Seen<'_>) {
        let Some(stands_for) = self.take_part(seen.ended) else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.facts.len() < MAX_KEPT {
            kept.facts.push(Fact::empty());
        } else {
            kept.oldest = (kept.oldest + 1) % MAX_KEPT;
        }
        let place = (kept.oldest + kept.facts.len() - 1) % kept.facts.len();
        kept.facts[place].become_of(seen, stands_for);
    }

    /// Forgets what is out of reach, and gives its memory back when that is all.
    pub fn sweep(&self, now: Instant) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.facts.iter().all(|fact| fact.came + REACH < now) {
            *kept = Kept::default();
        }
    }

    /// What is kept of the last minute, in the order it came, and how far back it goes without a gap.
    pub(super) fn facts(&self, now: Instant) -> (Vec<Fact>, Duration) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = kept.facts.len() == MAX_KEPT;
        let oldest = kept.facts.get(kept.oldest).filter(|_| is_full).map_or(REACH, |fact| now.since(fact.came));
        let mut facts: Vec<Fact> = kept.facts.iter().filter(|fact| now.since(fact.came) <= REACH).cloned().collect();
        drop(kept);
        facts.sort_by_key(|fact| fact.came);
        (facts, oldest.min(REACH))
    }

    /// How many requests the one that ends now is to stand for, if it is to be kept. Two threads that begin a second at
    /// once may both count as its first.
    fn take_part(&self, now: Instant) -> Option<u32> {
        let second = now.0 / 1_000_000;
        let word = self.pace.fetch_add(1, Relaxed);
        let mut number = (word as u32).wrapping_add(1);
        if word >> 32 != second & u64::from(u32::MAX) {
            let was_just_before = (word >> 32).wrapping_add(1) == second;
            self.before.store(if was_just_before { word as u32 } else { 0 }, Relaxed);
            self.pace.store(second << 32 | 1, Relaxed);
            number = 1;
        }
        let pace = number.max(self.before.load(Relaxed));
        let stands_for = 1 << (pace / KEPT_PER_S).max(1).ilog2();
        number.is_multiple_of(stands_for).then_some(stands_for)
    }
}

impl Fact {
    fn empty() -> Self {
        let end = End::Came(Came::Cancelled);
        let (came, took) = (Instant(0), Duration::ZERO);
        Self { came, took, end, stands_for: 1, head: Vec::new(), service: String::new(), why: String::new() }
    }

    fn become_of(&mut self, seen: &Seen<'_>, stands_for: u32) {
        (self.came, self.took, self.end) = (seen.came, seen.ended.since(seen.came), seen.end);
        self.stands_for = stands_for;
        self.head.clear();
        self.head.extend_from_slice(whole_lines(seen.head));
        self.service.clear();
        self.service.push_str(beginning(seen.service.unwrap_or_default()));
        self.why.clear();
        self.why.push_str(beginning(seen.why));
    }

    /// Its header fields, as far as they are kept.
    pub(super) fn fields(&self) -> Written<'_> {
        Written(&self.head)
    }

    /// What was asked, of the applications of this node.
    pub(super) fn asked<'a>(&'a self, fields: &'a Written<'a>, node: &'a str) -> Asked<'a> {
        let line = self.head.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
        let mut words = std::str::from_utf8(line).unwrap_or_default().split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let service = Some(&*self.service).filter(|service| !service.is_empty());
        Asked { method, path, fields, node, service }
    }

    /// Which guard refused it, and why.
    pub(super) fn refusal(&self) -> Option<(Guard, &str)> {
        match self.end {
            End::Refused(guard) => Some((guard, &self.why)),
            End::Came(_) => None,
        }
    }
}

/// As many lines of a head as are kept.
fn whole_lines(head: &[u8]) -> &[u8] {
    let Some(kept) = head.get(..MAX_HEAD_BYTES) else { return head };
    // Of a path longer than that, its beginning.
    &kept[..kept.iter().rposition(|byte| *byte == b'\n').map_or(MAX_HEAD_BYTES, |end| end + 1)]
}

/// As much of a text as is kept.
fn beginning(text: &str) -> &str {
    let end = (0..=MAX_WORD_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"GET /a?b=1 HTTP/1.1\r\nx-tier: gold\r\n";

    fn seen(at: Instant, head: &[u8]) -> Seen<'_> {
        let end = End::Came(Came::Answer { status: 200, grpc: None });
        Seen { came: at, ended: at, head, service: Some("shop"), end, why: "" }
    }

    const fn ms(ms: u64) -> Instant {
        Instant(100_000_000 + ms * 1_000)
    }

    #[test]
    fn a_request_is_remembered_with_what_documents_choose_by_for_a_minute() {
        let recent = Recent::default();
        recent.note(&seen(ms(0), HEAD));
        let (facts, covers) = recent.facts(ms(60_000));
        let [fact] = &facts[..] else { panic!("{facts:?}") };
        let fields = fact.fields();
        let asked = fact.asked(&fields, "a");
        assert_eq!((asked.method, asked.path, asked.service), ("GET", "/a?b=1", Some("shop")));
        assert_eq!((asked.fields.field("x-tier"), covers), (Some(&b"gold"[..]), REACH));
        assert!(recent.facts(ms(60_001)).0.is_empty());
        recent.sweep(ms(60_001));
        assert_eq!(recent.kept.lock().unwrap().facts.capacity(), 0);
    }

    #[test]
    fn of_very_many_requests_some_stand_for_all_and_memory_stays_bounded() {
        let recent = Recent::default();
        for at in 0..120_000 {
            recent.note(&seen(ms(at), HEAD));
        }
        let (facts, covers) = recent.facts(ms(120_000));
        let stood_for: u32 = facts.iter().map(|fact| fact.stands_for).sum();
        assert!(facts.len() <= MAX_KEPT && facts.len() > MAX_KEPT / 2, "{}", facts.len());
        let counted = f64::from(stood_for) / covers.as_secs_f64();
        assert!((counted - 1_000.0).abs() < 50.0, "{counted} a second");
        assert!(covers > Duration::from_secs(25), "{covers:?}");
    }

    #[test]
    fn a_head_too_long_is_kept_in_whole_lines() {
        let long = [HEAD, b"x-long: ", &[b'a'; MAX_HEAD_BYTES], b"\r\n"].concat();
        assert_eq!(whole_lines(&long), HEAD);
        assert_eq!(whole_lines(&[b'a'; 2_000]).len(), MAX_HEAD_BYTES);
        assert_eq!(beginning(&"ä".repeat(100)), "ä".repeat(64));
    }
}
