//! The judgement: who is there, who is lost, who has left. Pure: sightings and the time in, steps out.
//!
//! Two witnesses are heard. The *link* to a peer says that it answers us, or for how long it has not. chitchat says when
//! anybody last *heard* of it. A peer is only lost when both are against it; for either alone there is an innocent
//! explanation (a broken line between two nodes; gossip that is slow in a large group). And a node that was itself
//! stopped for a moment (a suspended laptop, a starved machine) judges nobody until it has listened again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use starling_core::PeerEvent;
use starling_core::id::NodeId;
use starling_core::view::NodeFacts;
use tokio::time::Instant;
use tracing::warn;

/// How long a link may be down before that speaks against the peer: time for a handshake across the world with a packet lost.
const LINK_GRACE: Duration = Duration::from_millis(800);
/// News of a heartbeat is fresh for this many gossip intervals (it spreads within about two), but not shorter than
/// [`LEAST_FRESH`].
const FRESH_INTERVALS: u32 = 3;
/// Scheduling alone takes that long on a busy machine.
const LEAST_FRESH: Duration = Duration::from_millis(1_000);
/// A judge this late was not awake, and knows nothing.
const LATE: Duration = Duration::from_secs(1);
/// How long it then listens before it finds anybody lost.
const LISTEN: Duration = Duration::from_secs(2);
/// How many lost peers are remembered and dialled; beyond it, those lost longest are given up.
const MAX_LOST: usize = 500;

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
    Up,
    Down(Duration),
    /// Never asked for.
    Unknown,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Tell(PeerEvent),
    Learn(NodeId, SocketAddr),
    Forget(NodeId),
    /// chitchat does not know yet that this one is there.
    Gossip(SocketAddr),
}

/// All peers ever met, within bounds.
pub(super) struct Roster {
    me: NodeId,
    address: SocketAddr,
    fresh: Duration,
    peers: BTreeMap<NodeId, Entry>,
    judged: Option<Instant>,
    listen_until: Option<Instant>,
    conflicts: Conflicts,
}

struct Entry {
    generation: u64,
    facts: NodeFacts,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Known by hearsay; nobody was told of it yet.
    Hearsay,
    There,
    Lost(Instant),
    Left,
}

impl Roster {
    pub(super) fn new(me: NodeId, address: SocketAddr, gossip_interval: Duration) -> Self {
        Self {
            me,
            address,
            fresh: LEAST_FRESH.max(gossip_interval * FRESH_INTERVALS),
            peers: BTreeMap::new(),
            judged: None,
            listen_until: None,
            conflicts: Conflicts::default(),
        }
    }

    /// Judges everybody.
    pub(super) fn judge(&mut self, now: Instant, sightings: Vec<Sighting>) -> Vec<Step> {
        if self.judged.is_some_and(|last| now.duration_since(last) > LATE) {
            warn!("this process stood still for over a second; it finds nobody lost until it has listened again");
            self.listen_until = Some(now + LISTEN);
        }
        self.judged = Some(now);
        let mut steps = Vec::new();
        let current = self.newest(now, sightings);
        for sighting in current.values() {
            self.judge_one(now, sighting, &mut steps);
        }
        self.peers.retain(|node, entry| {
            let gone = !current.contains_key(node) && entry.state == State::Hearsay;
            if gone {
                steps.push(Step::Forget(node.clone()));
            }
            !gone
        });
        self.give_up_the_longest_lost(&mut steps);
        steps
    }

    /// Of several starts of one node, the newest of those that are heard of; the old ones linger in others' memories.
    fn newest(&mut self, now: Instant, sightings: Vec<Sighting>) -> BTreeMap<NodeId, Sighting> {
        let mut newest: BTreeMap<NodeId, Sighting> = BTreeMap::new();
        for sighting in sightings {
            let heard = self.is_fresh(now, &sighting);
            if sighting.node == self.me {
                // An earlier start of ours is nobody. Who is heard of now under our name is somebody else.
                if heard && sighting.believed && !sighting.leaving && sighting.address != self.address {
                    self.conflicts.report(&sighting.node, now, [self.address, sighting.address]);
                }
                continue;
            }
            let Some(other) = newest.get(&sighting.node) else {
                newest.insert(sighting.node.clone(), sighting);
                continue;
            };
            let other_heard = self.is_fresh(now, other);
            let both = heard && other_heard && !sighting.leaving && !other.leaving;
            if both && sighting.believed && other.believed && sighting.address != other.address {
                self.conflicts.report(&sighting.node, now, [other.address, sighting.address]);
            }
            if (heard, sighting.generation) > (other_heard, other.generation) {
                newest.insert(sighting.node.clone(), sighting);
            }
        }
        newest
    }

    fn is_fresh(&self, now: Instant, sighting: &Sighting) -> bool {
        sighting.heard.is_some_and(|at| now.duration_since(at) < self.fresh)
    }

    fn judge_one(&mut self, now: Instant, sighting: &Sighting, steps: &mut Vec<Step>) {
        let node = &sighting.node;
        let known = self.peers.get(node);
        if known.is_none_or(|known| known.generation != sighting.generation) {
            let is_earlier = known.is_some_and(|known| sighting.generation < known.generation);
            if is_earlier && self.conflicts.may_tell_of_return(node, now) {
                warn!(%node, "a peer came back as an earlier start of itself; if its data directory was lost, rename it");
            }
            // A new start of somebody who is there follows without a gap; all others begin as hearsay.
            let state = match known.map(|known| known.state) {
                Some(state @ (State::There | State::Lost(_))) => state,
                _ => State::Hearsay,
            };
            steps.push(Step::Learn(node.clone(), sighting.address));
            let facts = match known {
                Some(known) => known.facts.clone(),
                None => sighting.facts.clone(),
            };
            let entry = Entry { generation: sighting.generation, facts, state };
            self.peers.insert(node.clone(), entry);
        }
        let (fresh, listening) = (self.is_fresh(now, sighting), self.listen_until.is_some_and(|until| now < until));
        let Some(entry) = self.peers.get_mut(node) else { return };
        if entry.state == State::Left {
            return;
        }
        if sighting.leaving {
            entry.state = State::Left;
            steps.push(Step::Tell(PeerEvent::Left(node.clone(), sighting.facts.incarnation)));
            steps.push(Step::Forget(node.clone()));
            return;
        }
        let was_there = entry.state == State::There;
        let there = match sighting.link {
            Link::Up => true,
            Link::Down(since) if since < LINK_GRACE && was_there => true,
            Link::Down(_) | Link::Unknown => sighting.believed && fresh,
        };
        if there {
            if !was_there || entry.facts != sighting.facts {
                entry.state = State::There;
                entry.facts = sighting.facts.clone();
                steps.push(Step::Tell(PeerEvent::Up(node.clone(), sighting.facts.clone())));
            }
            if sighting.link == Link::Up && !sighting.believed {
                steps.push(Step::Gossip(sighting.address));
            }
        } else if was_there && !listening {
            entry.state = State::Lost(now);
            steps.push(Step::Tell(PeerEvent::Lost(node.clone())));
        }
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
            steps.push(Step::Forget(node.clone()));
        }
    }
}

/// Notices that two processes use the name of one node, and says so once a minute.
#[derive(Default)]
struct Conflicts {
    seen: BTreeMap<NodeId, Conflict>,
    /// When it was last said of a node that it came back as an earlier start: of those in the roster, one each.
    returned: BTreeMap<NodeId, Instant>,
}

struct Conflict {
    since: Instant,
    last: Instant,
    told: Option<Instant>,
}

impl Conflicts {
    /// A restarted node is believed in twice for as long as its earlier start is not found dead: that is no conflict.
    const PATIENCE: Duration = Duration::from_secs(15);
    const REPEAT: Duration = Duration::from_secs(60);

    /// Whether to say that a node came back as an earlier start of itself. Two processes of one name look like that, anew
    /// with every flap of a link.
    fn may_tell_of_return(&mut self, node: &NodeId, now: Instant) -> bool {
        self.returned.retain(|_, told| now.duration_since(*told) < Self::REPEAT);
        if self.returned.contains_key(node) {
            return false;
        }
        self.returned.insert(node.clone(), now);
        true
    }

    fn report(&mut self, node: &NodeId, now: Instant, [one, other]: [SocketAddr; 2]) {
        self.seen.retain(|_, conflict| now.duration_since(conflict.last) < LATE);
        let conflict = self.seen.entry(node.clone()).or_insert(Conflict { since: now, last: now, told: None });
        conflict.last = now;
        let patient = now.duration_since(conflict.since) < Self::PATIENCE;
        if !patient && conflict.told.is_none_or(|at| now.duration_since(at) >= Self::REPEAT) {
            conflict.told = Some(now);
            warn!(%node, %one, %other, "two processes use the name of one node: give each a name and certificate of its own");
        }
    }
}

#[cfg(test)]
mod tests {
    use starling_core::id::Incarnation;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TICK: Duration = Duration::from_millis(100);

    fn peer() -> NodeId {
        "peer".parse().unwrap()
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn facts(incarnation: u64) -> NodeFacts {
        NodeFacts {
            incarnation: Incarnation(incarnation),
            zone: "z".parse().unwrap(),
            region: Default::default(),
            cell: Default::default(),
            version: "1".into(),
            address: address(1).to_string(),
        }
    }

    /// A roster, its clock, and the one peer it sees.
    struct Scene {
        roster: Roster,
        now: Instant,
        peer: Sighting,
    }

    impl Scene {
        fn new() -> Self {
            let now = Instant::now();
            let peer = Sighting {
                node: peer(),
                generation: 1,
                address: address(1),
                facts: facts(1),
                leaving: false,
                heard: None,
                believed: false,
                link: Link::Unknown,
            };
            let roster = Roster::new("me".parse().unwrap(), address(9), Duration::from_millis(500));
            Self { roster, now, peer }
        }

        /// A scene in which the peer is there, linked and heard of.
        fn with_peer() -> Self {
            let mut scene = Self::new();
            scene.peer.link = Link::Up;
            scene.peer.believed = true;
            scene.hears();
            assert_eq!(scene.told(), [PeerEvent::Up(peer(), facts(1))]);
            scene
        }

        fn hears(&mut self) {
            self.peer.heard = Some(self.now);
        }

        fn steps(&mut self) -> Vec<Step> {
            self.roster.judge(self.now, vec![self.peer.clone()])
        }

        fn told(&mut self) -> Vec<PeerEvent> {
            let tell = |step| match step {
                Step::Tell(event) => Some(event),
                _ => None,
            };
            self.steps().into_iter().filter_map(tell).collect()
        }

        /// Lets time pass, tick by tick, with the link down since `since`; returns what was told on the way.
        fn passes(&mut self, time: Duration, since: Option<Instant>) -> Vec<PeerEvent> {
            let (end, mut told) = (self.now + time, Vec::new());
            while self.now < end {
                self.now += TICK;
                if let Some(since) = since {
                    self.peer.link = Link::Down(self.now.duration_since(since));
                }
                told.extend(self.told());
            }
            told
        }
    }

    #[test]
    fn hearsay_is_dialled_but_not_told() {
        let mut scene = Scene::new();
        assert_eq!(scene.steps(), [Step::Learn(peer(), address(1))]);
        assert_eq!(scene.steps(), []);
        scene.peer.link = Link::Up;
        let up = Step::Tell(PeerEvent::Up(peer(), facts(1)));
        assert_eq!(scene.steps(), [up, Step::Gossip(address(1))]);
    }

    #[test]
    fn a_peer_nobody_hears_of_is_lost_shortly_after_its_link() {
        let mut scene = Scene::with_peer();
        assert_eq!(scene.passes(5 * SECOND, None), [], "the link alone is witness enough");
        let cut = scene.now;
        assert_eq!(scene.passes(LINK_GRACE - TICK, Some(cut)), []);
        assert_eq!(scene.passes(TICK, Some(cut)), [PeerEvent::Lost(peer())]);
        assert_eq!(scene.passes(60 * SECOND, Some(cut)), []);
        scene.peer.link = Link::Up;
        assert_eq!(scene.told(), [PeerEvent::Up(peer(), facts(1))]);
    }

    #[test]
    fn a_broken_line_between_two_is_not_a_death_while_others_hear_of_the_peer() {
        let mut scene = Scene::with_peer();
        let cut = scene.now;
        for _ in 0..20 {
            scene.hears();
            assert_eq!(scene.passes(SECOND, Some(cut)), []);
        }
        // When they do not any more, it is lost, though chitchat still believes in it.
        assert_eq!(scene.passes(3 * SECOND, Some(cut)), [PeerEvent::Lost(peer())]);
        // Being heard of again is enough, too.
        scene.hears();
        assert_eq!(scene.told(), [PeerEvent::Up(peer(), facts(1))]);
    }

    #[test]
    fn who_stood_still_finds_nobody_lost_until_it_has_listened() {
        let mut scene = Scene::with_peer();
        let cut = scene.now;
        scene.now += 60 * SECOND;
        scene.peer.link = Link::Down(60 * SECOND);
        assert_eq!(scene.told(), []);
        assert_eq!(scene.passes(SECOND, Some(cut)), []);
        assert_eq!(scene.passes(2 * SECOND, Some(cut)), [PeerEvent::Lost(peer())], "it has listened, and nothing came");
    }

    #[test]
    fn a_restart_is_told_with_its_new_facts_and_its_old_start_is_not_believed_again() {
        let mut scene = Scene::with_peer();
        let old = scene.peer.clone();
        scene.peer = Sighting { generation: 2, facts: facts(2), heard: None, ..old.clone() };
        scene.hears();
        let both = vec![old.clone(), scene.peer.clone()];
        let steps = scene.roster.judge(scene.now, both);
        assert!(steps.contains(&Step::Tell(PeerEvent::Up(peer(), facts(2)))), "{steps:?}");
        assert_eq!(scene.roster.judge(scene.now + TICK, vec![scene.peer.clone(), old]), []);
    }

    #[test]
    fn who_said_good_bye_has_left_until_its_next_start() {
        let mut scene = Scene::with_peer();
        scene.peer.leaving = true;
        let left = Step::Tell(PeerEvent::Left(peer(), Incarnation(1)));
        assert_eq!(scene.steps(), [left, Step::Forget(peer())]);
        assert_eq!(scene.passes(10 * SECOND, None), []);
        let next = Sighting { generation: 2, leaving: false, facts: facts(2), ..scene.peer.clone() };
        scene.peer = next;
        assert_eq!(scene.told(), [PeerEvent::Up(peer(), facts(2))]);
    }

    #[test]
    fn the_lost_are_remembered_after_chitchat_has_forgotten_them() {
        let mut scene = Scene::with_peer();
        let cut = scene.now;
        assert_eq!(scene.passes(3 * SECOND, Some(cut)), [PeerEvent::Lost(peer())]);
        for _ in 0..100 {
            scene.now += TICK;
            assert_eq!(scene.roster.judge(scene.now, Vec::new()), [], "never forgotten, so dialled for ever");
        }
    }

    #[test]
    fn at_most_so_many_lost_are_remembered() {
        let mut scene = Scene::new();
        let many = |link: Link, heard: Option<Instant>| -> Vec<Sighting> {
            let one =
                |i: usize| Sighting { node: format!("p{i:04}").parse().unwrap(), link, heard, ..scene.peer.clone() };
            (0..MAX_LOST + 3).map(one).collect()
        };
        let (up, down) = (many(Link::Up, None), many(Link::Down(SECOND), None));
        scene.roster.judge(scene.now, up);
        let steps = scene.roster.judge(scene.now + TICK, down);
        let forgotten = steps.iter().filter(|step| matches!(step, Step::Forget(_))).count();
        assert_eq!(forgotten, 3);
    }

    #[test]
    fn our_own_name_is_never_told_of() {
        let mut scene = Scene::with_peer();
        scene.peer.node = "me".parse().unwrap();
        assert_eq!(scene.passes(SECOND, None), []);
    }

    #[test]
    fn a_node_that_keeps_coming_back_as_its_earlier_start_is_named_once_a_minute() {
        let (mut conflicts, now) = (Conflicts::default(), Instant::now());
        let told = (0..600).filter(|tick| conflicts.may_tell_of_return(&peer(), now + TICK * *tick)).count();
        assert_eq!(told, 1);
        assert!(conflicts.may_tell_of_return(&"other".parse().unwrap(), now + TICK * 600));
        assert!(conflicts.may_tell_of_return(&peer(), now + TICK * 600));
    }
}
