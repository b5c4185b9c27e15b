//! The judgement: who is there, who is lost, who has left. Pure: sightings, words and the time in, steps out.
//!
//! Three witnesses are heard.
//!
//! - The *link* to a peer, where this node keeps one, says that the peer answers, or since when it does not. Links are kept
//!   with the neighbours on the overlay, so every node has up to eight such observers.
//! - The *words* of other observers ([`super::word`]). Two who find a node silent, and no objection from anybody, are a
//!   death: it takes a second and a half for a link to be given up, most of another to fail to make it again, and a
//!   moment for the node or somebody who hears it to object. One observer is enough where there is no second, as between
//!   two nodes, or on this side of a cut.
//! - *chitchat*, whose heartbeats arrive through anybody. It is slower (six to ten of its rounds), needs no observers, and so
//!   finds those whom nobody observes.
//!
//! A broken line between two nodes is no death: the node objects through a third. A node that was itself stopped for a
//! moment (a suspended laptop, a starved machine) judges nobody until it has listened again. One that comes and goes is
//! believed after ever longer times of staying ([`super::damping`]).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use starling_core::PeerEvent;
use starling_core::id::NodeId;
use starling_core::peers::neighbours_of;
use starling_core::view::NodeFacts;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::damping::Damping;
use super::names::Names;
use super::word::{Says, Word, Words};

/// How long a link may be down before that speaks against the peer: time for a handshake across the world with a packet lost.
const LINK_GRACE: Duration = Duration::from_millis(700);
/// How long two observers' silence waits for an objection: a few hops of the overlay there and back, with a packet lost.
const CONFIRM: Duration = Duration::from_millis(300);
/// An observer whose word was objected to repeats it after such pauses, from the first, doubling, up to the last.
const REPEAT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// When another observer falls silent, one that was objected to speaks up again, but not within this time.
const AGREE_PAUSE: Duration = Duration::from_secs(1);
/// A node that is called silent objects at most this often, which is enough: see [`super::word`].
const OBJECT_PAUSE: Duration = Duration::from_millis(200);
/// How long the word that somebody is heard is enough to believe in it, until its heartbeats are.
const HEARD_STANDS: Duration = Duration::from_secs(10);
/// News of a heartbeat is fresh for this many gossip intervals (it spreads within about two), but not shorter than
/// [`LEAST_FRESH`].
const FRESH_INTERVALS: u32 = 4;
/// Scheduling alone takes that long on a busy machine.
const LEAST_FRESH: Duration = Duration::from_millis(1_000);
/// So many intervals after a death, heartbeats from before it may still come around.
const ECHO_INTERVALS: u32 = 4;
/// So many intervals after somebody has come back, chitchat's detector has not got enough heartbeats to speak.
const WARM_UP_INTERVALS: u32 = 10;
/// A judge this late was not awake, and knows nothing.
const LATE: Duration = Duration::from_secs(1);
/// How long it then listens before it finds anybody lost.
const LISTEN: Duration = Duration::from_secs(2);
/// How many lost peers are remembered and dialled; beyond it, those lost longest are given up.
const MAX_LOST: usize = 500;
/// How many words a second are taken from all peers together: far more than half a large mesh falling silent makes.
const WORDS_PER_SECOND: u32 = 10_000;

/// What is seen of one start of one peer.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) node: NodeId,
    pub(super) generation: u64,
    pub(super) address: SocketAddr,
    pub(super) facts: NodeFacts,
    pub(super) leaving: bool,
    /// When its heartbeat last advanced, as far as anybody has told us.
    pub(super) heard: Option<Instant>,
    /// Whether chitchat's failure detector believes in it.
    pub(super) believed: bool,
    pub(super) link: Link,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// To this address.
    Up(SocketAddr),
    Down(Duration),
    /// None is kept.
    Unknown,
}

impl Link {
    fn is_up(self) -> bool {
        matches!(self, Link::Up(_))
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Tell(PeerEvent),
    /// Put it into the address book and keep a link to it.
    Link(NodeId, SocketAddr),
    /// Put it into the address book; a link is made when there is something to say.
    Note(NodeId, SocketAddr),
    Forget(NodeId),
    /// chitchat does not know yet that this one is there.
    Gossip(SocketAddr),
    Say(Word),
    /// The second of two that use one name loses its link: the node, the address of the first, and its own.
    Refuse(NodeId, SocketAddr, SocketAddr),
}

/// What came of words heard.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Response {
    /// For everybody but the one who brought them.
    pub(super) pass_on: Vec<Word>,
    /// For everybody.
    pub(super) say: Vec<Word>,
    /// Somebody is spoken of whom chitchat has not told of yet.
    pub(super) strangers: bool,
}

/// What has been judged since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tally {
    /// Times a link was found down for too long, and others were told.
    pub(super) suspicions: u64,
    /// Times this node objected to being called silent.
    pub(super) objections: u64,
    /// Peers found lost.
    pub(super) lost: u64,
    /// Returns that had to wait because the peer had come and gone too often.
    pub(super) damped: u64,
    /// Words not taken because there were too many.
    pub(super) words_refused: u64,
}

/// This node, as others see it.
pub(super) struct Myself {
    pub(super) node: NodeId,
    pub(super) generation: u64,
    pub(super) address: SocketAddr,
}

/// All peers ever met, within bounds.
pub(super) struct Roster {
    me: Myself,
    interval: Duration,
    peers: BTreeMap<NodeId, Entry>,
    /// Whether links have to be chosen anew.
    moved: bool,
    words: Words,
    /// The number of the last word said.
    number: u64,
    objected: Option<Instant>,
    words_taken: (Option<Instant>, u32),
    judged: Option<Instant>,
    listen_until: Option<Instant>,
    /// Since when no link is up although some should be.
    alone_since: Option<Instant>,
    names: Names,
    tally: Tally,
}

struct Entry {
    generation: u64,
    address: SocketAddr,
    facts: NodeFacts,
    state: State,
    /// What the links were told last: where it is, and whether to keep one.
    linked: Option<(SocketAddr, bool)>,
    silence: Option<Silence>,
    /// Whether this node's last word about it was that it is heard.
    said_heard: bool,
    /// Since when it has been back, while [`Damping`] holds it.
    back_since: Option<Instant>,
    damping: Damping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Known by hearsay; nobody was told of it yet.
    Hearsay,
    There(Instant),
    Lost(Instant),
    Left,
}

/// This node's own link to a peer has been down for too long.
struct Silence {
    since: Instant,
    said: Option<Instant>,
    pause: Duration,
}

impl Roster {
    pub(super) fn new(me: Myself, gossip_interval: Duration) -> Self {
        Self {
            number: me.generation,
            me,
            interval: gossip_interval,
            peers: BTreeMap::new(),
            moved: false,
            words: Words::default(),
            objected: None,
            words_taken: (None, 0),
            judged: None,
            listen_until: None,
            alone_since: None,
            names: Names::default(),
            tally: Tally::default(),
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    /// How many names are used by two living nodes.
    pub(super) fn name_conflicts(&self, now: Instant) -> usize {
        self.names.conflicts(now)
    }

    /// chitchat was started again, under this generation.
    pub(super) fn restarted(&mut self, generation: u64) {
        self.me.generation = generation;
        self.number = self.number.max(generation);
    }

    /// Takes what a peer brought.
    pub(super) fn hear(&mut self, now: Instant, words: Vec<Word>) -> Response {
        let mut response = Response::default();
        for word in words {
            if !self.may_take_word(now) {
                self.tally.words_refused += 1;
                continue;
            }
            if !self.words.take(now, &word) {
                continue;
            }
            if word.about == self.me.node {
                let due = self.objected.is_none_or(|at| now.duration_since(at) >= OBJECT_PAUSE);
                if word.says == Says::Silent && word.generation == self.me.generation && due {
                    self.objected = Some(now);
                    self.tally.objections += 1;
                    let heard = self.word(now, self.me.node.clone(), self.me.generation, Says::Heard);
                    response.say.push(heard);
                }
            } else {
                self.react(now, &word, &mut response);
            }
            response.pass_on.push(word);
        }
        response
    }

    fn may_take_word(&mut self, now: Instant) -> bool {
        let (since, taken) = &mut self.words_taken;
        if since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            (*since, *taken) = (Some(now), 0);
        }
        *taken += 1;
        *taken <= WORDS_PER_SECOND
    }

    fn react(&mut self, now: Instant, word: &Word, response: &mut Response) {
        let Some(entry) = self.peers.get_mut(&word.about).filter(|entry| entry.generation >= word.generation) else {
            response.strangers |= word.says != Says::Bye;
            return;
        };
        // Somebody agrees with what was objected to before: that may be news to those who heard the objection.
        if let Some(silence) = entry.silence.as_mut().filter(|_| word.says == Says::Silent)
            && silence.said.is_some_and(|said| now.duration_since(said) >= AGREE_PAUSE)
        {
            silence.said = None;
        }
    }

    /// Something to be said by this node, which it has heard itself as well.
    fn word(&mut self, now: Instant, about: NodeId, generation: u64, says: Says) -> Word {
        self.number += 1;
        let word = Word { about, generation, by: self.me.node.clone(), number: self.number, says };
        self.words.take(now, &word);
        word
    }

    /// That this node is leaving.
    pub(super) fn say_bye(&mut self, now: Instant) -> Word {
        self.word(now, self.me.node.clone(), self.me.generation, Says::Bye)
    }

    /// Judges everybody. `linked` are the peers to whom there is a link.
    pub(super) fn judge(&mut self, now: Instant, sightings: Vec<Sighting>, linked: &BTreeSet<NodeId>) -> Vec<Step> {
        if self.judged.is_some_and(|last| now.duration_since(last) > LATE) {
            warn!("this process stood still for over a second; it finds nobody lost until it has listened again");
            self.listen_until = Some(now + LISTEN);
        }
        self.judged = Some(now);
        let kept = self.peers.values().any(|entry| matches!(entry.linked, Some((_, true))));
        self.alone_since = if kept && linked.is_empty() { self.alone_since.or(Some(now)) } else { None };
        let mut steps = Vec::new();
        let current = self.names.one_each(now, &self.me, self.interval, sightings, &mut steps);
        for sighting in current.values() {
            self.meet(sighting);
            self.judge_one(now, sighting, &mut steps);
        }
        self.keep_the_unseen(&current, linked, &mut steps);
        self.give_up_the_longest_lost(&mut steps);
        if std::mem::take(&mut self.moved) {
            self.choose_links(&mut steps);
        }
        steps
    }

    /// Makes or corrects the entry of a start that was sighted.
    fn meet(&mut self, sighting: &Sighting) {
        let known = self.peers.get_mut(&sighting.node);
        if let Some(entry) = known {
            if entry.generation != sighting.generation {
                // A new start of somebody who is there follows without a gap; a lost or left one begins as hearsay of
                // its kind: what is known of the old start says nothing against it.
                entry.generation = sighting.generation;
                entry.silence = None;
                entry.state = match entry.state {
                    State::There(since) => State::There(since),
                    State::Hearsay | State::Left => State::Hearsay,
                    State::Lost(_) => State::Hearsay,
                };
                self.moved = true;
            }
            if entry.address != sighting.address {
                entry.address = sighting.address;
                self.moved = true;
            }
            return;
        }
        let entry = Entry {
            generation: sighting.generation,
            address: sighting.address,
            facts: sighting.facts.clone(),
            state: State::Hearsay,
            linked: None,
            silence: None,
            said_heard: false,
            back_since: None,
            damping: Damping::default(),
        };
        self.peers.insert(sighting.node.clone(), entry);
        self.moved = true;
    }

    fn judge_one(&mut self, now: Instant, sighting: &Sighting, steps: &mut Vec<Step>) {
        let node = &sighting.node;
        let Some(state) = self.peers.get(node).map(|entry| entry.state) else { return };
        if state == State::Left {
            return;
        }
        if sighting.leaving || self.words.said_bye(node, sighting.generation) {
            self.set_state(node, State::Left);
            steps.push(Step::Tell(PeerEvent::Left(node.clone(), sighting.facts.incarnation)));
            return;
        }
        self.observe(now, sighting, state, steps);
        let there = match state {
            State::There(since) => sighting.link.is_up() || !self.is_given_up(now, sighting, since),
            State::Lost(since) => sighting.link.is_up() || self.has_returned(now, sighting, Some(since)),
            State::Hearsay | State::Left => sighting.link.is_up() || self.has_returned(now, sighting, None),
        };
        if there && sighting.link.is_up() && !sighting.believed {
            steps.push(Step::Gossip(sighting.address));
        }
        self.settle(now, sighting, state, there, steps);
    }

    /// Draws the consequence.
    fn settle(&mut self, now: Instant, sighting: &Sighting, state: State, there: bool, steps: &mut Vec<Step>) {
        let Some(entry) = self.peers.get_mut(&sighting.node) else { return };
        let was_there = matches!(state, State::There(_));
        if !there {
            if entry.back_since.take().is_some() || was_there {
                entry.damping.went(now);
            }
            if was_there {
                self.tally.lost += 1;
                self.set_state(&sighting.node, State::Lost(now));
                steps.push(Step::Tell(PeerEvent::Lost(sighting.node.clone())));
            }
            return;
        }
        if was_there && entry.facts == sighting.facts {
            return;
        }
        if !was_there {
            let held = entry.damping.holds(now, *entry.back_since.get_or_insert(now));
            if held {
                if entry.back_since == Some(now) {
                    self.tally.damped += 1;
                    debug!(node = %sighting.node, "a peer that comes and goes is back; it has to stay for a while first");
                }
                return;
            }
            entry.back_since = None;
        }
        entry.facts = sighting.facts.clone();
        let since = if let State::There(since) = state { since } else { now };
        self.set_state(&sighting.node, State::There(since));
        steps.push(Step::Tell(PeerEvent::Up(sighting.node.clone(), sighting.facts.clone())));
    }

    fn set_state(&mut self, node: &NodeId, state: State) {
        if let Some(entry) = self.peers.get_mut(node) {
            entry.state = state;
            self.moved = true;
        }
    }

    /// Notes what the own link to a peer says, and what others should hear of it.
    fn observe(&mut self, now: Instant, sighting: &Sighting, state: State, steps: &mut Vec<Step>) {
        let (node, generation) = (&sighting.node, sighting.generation);
        let listening = self.is_listening(now);
        let others = self.words.silent(now, &self.me.node, node, generation).len();
        let heard = self.words.heard(node, generation);
        let Some(entry) = self.peers.get_mut(node) else { return };
        let says = match sighting.link {
            Link::Up(_) => {
                let silenced = entry.silence.take().is_some_and(|silence| silence.said.is_some());
                let unknown = match state {
                    State::There(_) | State::Left => false,
                    State::Lost(since) => heard.is_none_or(|at| at <= since),
                    State::Hearsay => heard.is_none(),
                };
                (silenced || unknown).then_some(Says::Heard)
            }
            Link::Down(since) if since >= LINK_GRACE && !listening && matches!(state, State::There(_)) => {
                let silence = entry.silence.get_or_insert(Silence { since: now, said: None, pause: REPEAT.0 });
                let due = silence.said.is_none_or(|said| now.duration_since(said) >= silence.pause);
                // Two have said so already: whoever listens has heard enough.
                let needed = others < 2;
                if due && silence.said.is_some() {
                    silence.pause = (silence.pause * 2).min(REPEAT.1);
                }
                if due {
                    silence.said = Some(now);
                }
                (due && needed).then_some(Says::Silent)
            }
            // It came and went before it was believed; others may have believed this node's word.
            Link::Down(since) if since >= LINK_GRACE && !listening && entry.said_heard => Some(Says::Silent),
            Link::Down(_) => None,
            Link::Unknown => {
                entry.silence = None;
                None
            }
        };
        if let Some(says) = says {
            entry.said_heard = says == Says::Heard;
            self.tally.suspicions += u64::from(says == Says::Silent);
            let word = self.word(now, node.clone(), generation, says);
            steps.push(Step::Say(word));
        }
    }

    fn is_listening(&self, now: Instant) -> bool {
        self.listen_until.is_some_and(|until| now < until)
    }

    fn is_fresh(&self, now: Instant, sighting: &Sighting) -> bool {
        is_fresh(now, self.interval, sighting)
    }

    /// Whether a peer that is not there, and not linked, shows signs of life.
    fn has_returned(&self, now: Instant, sighting: &Sighting, lost: Option<Instant>) -> bool {
        let heard = self.words.heard(&sighting.node, sighting.generation);
        if heard.is_some_and(|at| now.duration_since(at) < HEARD_STANDS && lost.is_none_or(|lost| at > lost)) {
            return true;
        }
        let echo = lost.map(|lost| lost + self.interval * ECHO_INTERVALS);
        sighting.believed && self.is_fresh(now, sighting) && echo.is_none_or(|echo| sighting.heard > Some(echo))
    }

    /// Whether a peer that was there since then, and is not linked, has to be taken for lost.
    fn is_given_up(&self, now: Instant, sighting: &Sighting, since: Instant) -> bool {
        if self.is_listening(now) {
            return false;
        }
        if self.alone_since.is_some_and(|since| now.duration_since(since) >= LINK_GRACE + CONFIRM) {
            return true; // nobody at all answers: this node is cut off, and knows of nobody
        }
        let (node, generation) = (&sighting.node, sighting.generation);
        let mut silent = self.words.silent(now, &self.me.node, node, generation);
        silent.retain(|at| *at >= since);
        // Whatever anybody objected, this node's own link is still down.
        silent.extend(self.peers.get(node).and_then(|entry| entry.silence.as_ref()).map(|silence| silence.since));
        silent.sort();
        let passed = |at: &Instant| now.duration_since(*at) >= CONFIRM;
        match silent.as_slice() {
            [_, second, ..] if passed(second) => return true,
            [only] if passed(only) && !self.has_other_observers(now, node) => return true,
            _ => {}
        }
        let heard = self.words.heard(node, generation).unwrap_or(since).max(since);
        let warm = now.duration_since(heard) >= self.interval * WARM_UP_INTERVALS;
        let unheard = match sighting.link {
            Link::Unknown => true,
            Link::Up(_) => false,
            Link::Down(since) => since >= LINK_GRACE,
        };
        warm && unheard && !sighting.believed
    }

    /// Whether anybody else should be observing a node and could tell.
    fn has_other_observers(&self, now: Instant, node: &NodeId) -> bool {
        let there = |entry: &Entry| matches!(entry.state, State::There(_));
        let all = self.peers.iter().filter(|(name, entry)| *name != node && there(entry)).map(|(name, _)| name);
        let observers = neighbours_of(node, all.chain([&self.me.node]));
        let can_tell = |observer: &NodeId| {
            self.peers.get(observer).is_some_and(|entry| {
                entry.silence.is_none() && self.words.silent(now, &self.me.node, observer, entry.generation).is_empty()
            })
        };
        // If this node is no observer itself, the one that spoke is among the others.
        let spoken = usize::from(self.peers.get(node).is_none_or(|entry| entry.silence.is_none()));
        observers.iter().filter(|observer| can_tell(observer)).count() > spoken
    }

    /// Those chitchat does not tell of: the lost are never forgotten, hearsay is.
    fn keep_the_unseen(
        &mut self,
        current: &BTreeMap<NodeId, Sighting>,
        linked: &BTreeSet<NodeId>,
        steps: &mut Vec<Step>,
    ) {
        let before = self.peers.len();
        self.peers.retain(|node, entry| {
            let unseen = !current.contains_key(node);
            let gone = unseen && matches!(entry.state, State::Hearsay | State::Left);
            if gone && entry.linked.is_some() {
                steps.push(Step::Forget(node.clone()));
            }
            if unseen && matches!(entry.state, State::Lost(_)) && linked.contains(node) {
                steps.push(Step::Gossip(entry.address)); // it is back, and chitchat has forgotten it
            }
            !gone
        });
        self.moved |= self.peers.len() != before;
    }

    fn give_up_the_longest_lost(&mut self, steps: &mut Vec<Step>) {
        let lost = |entry: &Entry| match entry.state {
            State::Lost(since) => Some(since),
            _ => None,
        };
        let mut all: Vec<(Instant, NodeId)> =
            self.peers.iter().filter_map(|(node, entry)| Some((lost(entry)?, node.clone()))).collect();
        all.sort();
        for (_, node) in all.iter().take(all.len().saturating_sub(MAX_LOST)) {
            warn!(%node, limit = MAX_LOST, "so many peers are lost that the one lost longest is given up");
            self.peers.remove(node);
            self.moved = true;
            steps.push(Step::Forget(node.clone()));
        }
    }

    /// Links are kept with the neighbours among those who are there, over which changes travel, and with the neighbours
    /// among all who might be, so that the lost are tried, by somebody, for ever.
    fn choose_links(&mut self, steps: &mut Vec<Step>) {
        let me = &self.me.node;
        let of = |wanted: fn(State) -> bool| {
            neighbours_of(me, self.peers.iter().filter(|(_, entry)| wanted(entry.state)).map(|(node, _)| node))
        };
        let mut kept: BTreeSet<NodeId> = of(|state| matches!(state, State::There(_))).into_iter().collect();
        kept.extend(of(|state| state != State::Left));
        for (node, entry) in &mut self.peers {
            let wanted = (entry.state != State::Left).then(|| (entry.address, kept.contains(node)));
            if wanted == entry.linked {
                continue;
            }
            entry.linked = wanted;
            steps.push(match wanted {
                Some((address, true)) => Step::Link(node.clone(), address),
                Some((address, false)) => Step::Note(node.clone(), address),
                None => Step::Forget(node.clone()),
            });
        }
    }
}

/// Whether a heartbeat has come a short time ago.
pub(super) fn is_fresh(now: Instant, interval: Duration, sighting: &Sighting) -> bool {
    let fresh = LEAST_FRESH.max(interval * FRESH_INTERVALS);
    sighting.heard.is_some_and(|at| now.duration_since(at) < fresh)
}
