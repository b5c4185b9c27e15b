//! Words about links: what a few observers tell everybody at once.
//!
//! chitchat spreads news within two or three of its rounds, and at a second a round that is too slow for a death and too
//! frequent for more traffic. So whoever keeps a link to a node tells of it: *silent* when the link is down and cannot be
//! made again, *heard* when it is back, and a node that hears of its own silence says that it is *heard*. Words are flooded
//! over all links: whoever hears a new one passes it on, not back. They are hints, no verdicts: [`super::roster`] weighs
//! them. As with everything of membership, a member that lies can at most make others doubt a peer until that speaks up.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use starling_core::id::NodeId;
use starling_core::wire;
use tokio::time::Instant;

/// How many words travel in a frame: a name has at most 128 bytes.
pub(super) const WORDS_PER_FRAME: usize = 200;
/// How many pairs of speaker and subject are remembered: eight observers of each of 500 nodes, and some room.
const MAX_REMEMBERED: usize = 5_000;
/// How long a word counts; who still means it repeats it.
const STANDS: Duration = Duration::from_secs(40);
/// A word of silence that arrives so soon after the node was heard was on its way already.
const OVERTAKEN: Duration = Duration::from_millis(500);

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub(super) enum Says {
    /// The speaker's link to the node is down, and it cannot be made again.
    Silent,
    /// The speaker hears the node, or is the node.
    Heard,
    /// The speaker is the node, and this start of it is over.
    Bye,
}

impl From<Says> for u8 {
    fn from(says: Says) -> u8 {
        match says {
            Says::Silent => 1,
            Says::Heard => 2,
            Says::Bye => 3,
        }
    }
}

impl TryFrom<u8> for Says {
    type Error = String;

    fn try_from(code: u8) -> Result<Self, String> {
        match code {
            1 => Ok(Says::Silent),
            2 => Ok(Says::Heard),
            3 => Ok(Says::Bye),
            other => Err(format!("nobody says {other}")),
        }
    }
}

/// One word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Word {
    pub(super) about: NodeId,
    /// Which start of it.
    pub(super) generation: u64,
    pub(super) by: NodeId,
    /// Grows with everything the speaker says, over its restarts, too.
    pub(super) number: u64,
    pub(super) says: Says,
}

/// Frames of words.
pub(super) fn encode(words: &[Word]) -> Vec<Vec<u8>> {
    words.chunks(WORDS_PER_FRAME).map(|chunk| wire::encode(&chunk)).collect()
}

/// Reads a frame.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Word>, String> {
    let words: Vec<Word> = wire::decode(bytes).map_err(|error| error.to_string())?;
    if words.len() > WORDS_PER_FRAME {
        return Err(format!("{} words in a frame, {WORDS_PER_FRAME} are allowed", words.len()));
    }
    Ok(words)
}

/// What has been said lately.
#[derive(Default)]
pub(super) struct Words {
    /// By subject, then by speaker.
    said: BTreeMap<NodeId, BTreeMap<NodeId, Last>>,
    remembered: usize,
    /// Which start of a node was last heard by somebody who has not taken it back.
    heard: BTreeMap<NodeId, Heard>,
}

#[derive(Clone, Copy)]
struct Last {
    number: u64,
    generation: u64,
    says: Says,
    at: Instant,
}

struct Heard {
    generation: u64,
    by: NodeId,
    at: Instant,
}

impl Words {
    /// Takes a word; false when it is no news, which is not passed on.
    pub(super) fn take(&mut self, now: Instant, word: &Word) -> bool {
        let known = self.said.get(&word.about).and_then(|of| of.get(&word.by));
        if known.is_some_and(|last| last.number >= word.number) || !self.has_room(now, known.is_some()) {
            return false;
        }
        let last = Last { number: word.number, generation: word.generation, says: word.says, at: now };
        let before = self.said.entry(word.about.clone()).or_default().insert(word.by.clone(), last);
        self.remembered += usize::from(before.is_none());
        let heard = self.heard.get(&word.about);
        if word.says == Says::Heard && heard.is_none_or(|heard| heard.generation <= word.generation) {
            let heard = Heard { generation: word.generation, by: word.by.clone(), at: now };
            self.heard.insert(word.about.clone(), heard);
        } else if word.says == Says::Silent && heard.is_some_and(|heard| heard.by == word.by) {
            self.heard.remove(&word.about);
        }
        true
    }

    fn has_room(&mut self, now: Instant, known: bool) -> bool {
        if !known && self.remembered >= MAX_REMEMBERED {
            self.said.retain(|_, of| {
                of.retain(|_, last| now.duration_since(last.at) < STANDS);
                !of.is_empty()
            });
            self.heard.retain(|_, heard| now.duration_since(heard.at) < STANDS);
            self.remembered = self.said.values().map(BTreeMap::len).sum();
        }
        known || self.remembered < MAX_REMEMBERED
    }

    /// When a start of a node was last heard by anybody who said so.
    pub(super) fn heard(&self, node: &NodeId, generation: u64) -> Option<Instant> {
        self.heard.get(node).filter(|heard| heard.generation == generation).map(|heard| heard.at)
    }

    /// Whether this start of a node has said good-bye.
    pub(super) fn said_bye(&self, node: &NodeId, generation: u64) -> bool {
        let own = self.said.get(node).and_then(|of| of.get(node));
        own.is_some_and(|last| last.says == Says::Bye && last.generation >= generation)
    }

    /// Since when others than `me` call a start of a node silent; those who have heard it since are left out.
    pub(super) fn silent(&self, now: Instant, me: &NodeId, node: &NodeId, generation: u64) -> Vec<Instant> {
        let heard = self.heard(node, generation);
        let all = self.said.get(node).into_iter().flatten().filter(|(by, _)| *by != me).map(|(_, last)| last);
        all.filter(|last| last.says == Says::Silent && last.generation == generation)
            .map(|last| last.at)
            .filter(|at| now.duration_since(*at) < STANDS && heard.is_none_or(|heard| *at > heard + OVERTAKEN))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(by: &str, number: u64, says: Says) -> Word {
        Word { about: "x".parse().unwrap(), generation: 7, by: by.parse().unwrap(), number, says }
    }

    #[test]
    fn a_word_is_news_once() {
        let (mut words, now) = (Words::default(), Instant::now());
        assert!(words.take(now, &word("a", 1, Says::Silent)));
        assert!(!words.take(now, &word("a", 1, Says::Silent)), "it comes over every link");
        assert!(words.take(now, &word("a", 2, Says::Heard)));
        assert!(!words.take(now, &word("a", 1, Says::Silent)), "older than what is known");
    }

    #[test]
    fn who_is_heard_is_not_silent() {
        let (mut words, now) = (Words::default(), Instant::now());
        let (me, x) = ("me".parse().unwrap(), "x".parse().unwrap());
        words.take(now, &word("me", 1, Says::Silent));
        words.take(now, &word("a", 1, Says::Silent));
        words.take(now, &word("b", 1, Says::Silent));
        assert_eq!(words.silent(now, &me, &x, 7).len(), 2);
        assert_eq!(words.silent(now, &me, &x, 8), [], "that was another start");
        words.take(now, &word("x", 1, Says::Heard));
        assert_eq!(words.silent(now, &me, &x, 7), []);
        words.take(now + OVERTAKEN / 2, &word("c", 1, Says::Silent));
        assert_eq!(words.silent(now + OVERTAKEN, &me, &x, 7), [], "it was on its way");
        let later = now + 2 * OVERTAKEN;
        words.take(later, &word("a", 2, Says::Silent));
        assert_eq!(words.silent(later, &me, &x, 7), [later]);
        assert_eq!(words.silent(later + STANDS, &me, &x, 7), [], "it is not repeated");
    }

    #[test]
    fn only_a_node_itself_says_good_bye() {
        let (mut words, now) = (Words::default(), Instant::now());
        let x = "x".parse().unwrap();
        words.take(now, &word("a", 1, Says::Bye));
        assert!(!words.said_bye(&x, 7));
        words.take(now, &word("x", 1, Says::Bye));
        assert!(words.said_bye(&x, 7) && !words.said_bye(&x, 8));
    }

    #[test]
    fn at_most_so_much_is_remembered() {
        let (mut words, now) = (Words::default(), Instant::now());
        let of = |i: usize| Word { about: format!("n{i}").parse().unwrap(), ..word("a", 1, Says::Silent) };
        let taken = (0..MAX_REMEMBERED + 5).filter(|i| words.take(now, &of(*i))).count();
        assert_eq!(taken, MAX_REMEMBERED);
        assert!(words.take(now + STANDS, &of(MAX_REMEMBERED + 6)), "the old are forgotten");
    }

    #[test]
    fn words_come_back_as_they_were_said_and_nonsense_is_refused() {
        let said: Vec<Word> = (0..WORDS_PER_FRAME as u64 + 1).map(|i| word("a", i, Says::Silent)).collect();
        let frames = encode(&said);
        assert_eq!(frames.len(), 2);
        let read: Vec<Word> = frames.iter().flat_map(|frame| decode(frame).unwrap()).collect();
        assert_eq!(read, said);
        let too_many: Vec<Word> = said.iter().chain(&said).cloned().collect();
        for bytes in [vec![], vec![1], frames[0][..50].to_vec(), wire::encode(&too_many)] {
            assert!(decode(&bytes).is_err());
        }
    }
}
