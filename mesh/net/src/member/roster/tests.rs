use starling_core::id::Incarnation;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

fn name(text: &str) -> NodeId {
    text.parse().unwrap()
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

fn up(node: &str, incarnation: u64) -> PeerEvent {
    PeerEvent::Up(name(node), facts(incarnation))
}

fn lost(node: &str) -> PeerEvent {
    PeerEvent::Lost(name(node))
}

/// What this node, "me", sees of some peers, and what time it is.
struct Scene {
    roster: Roster,
    now: Instant,
    seen: BTreeMap<String, Sighting>,
    /// Since when links are down.
    down: BTreeMap<String, Instant>,
    number: u64,
    said: Vec<Word>,
}

impl Scene {
    /// All these are there, linked and heard of.
    fn with(peers: &[&str]) -> Self {
        let me = Myself { node: name("me"), generation: 1, address: address(9) };
        let roster = Roster::new(me, Duration::from_millis(500));
        let mut scene = Self {
            roster,
            now: Instant::now(),
            seen: BTreeMap::new(),
            down: BTreeMap::new(),
            number: 0,
            said: Vec::new(),
        };
        for (peer, port) in peers.iter().zip(1..) {
            let sighting = Sighting {
                node: name(peer),
                generation: 1,
                address: address(port),
                facts: facts(1),
                leaving: false,
                heard: Some(scene.now),
                believed: true,
                link: Link::Up(address(port)),
            };
            scene.seen.insert((*peer).to_owned(), sighting);
        }
        let mut expected: Vec<PeerEvent> = peers.iter().map(|peer| up(peer, 1)).collect();
        expected.sort_by_key(|event| format!("{event:?}"));
        let mut told = scene.told();
        told.sort_by_key(|event| format!("{event:?}"));
        assert_eq!(told, expected);
        scene.said.clear();
        scene
    }

    fn peer(&mut self, peer: &str) -> &mut Sighting {
        self.seen.get_mut(peer).unwrap()
    }

    /// A heartbeat of these has come.
    fn hears(&mut self, peers: &[&str]) {
        for peer in peers {
            self.peer(peer).heard = Some(self.now);
        }
    }

    fn cut(&mut self, peers: &[&str]) {
        for peer in peers {
            self.down.insert((*peer).to_owned(), self.now);
        }
    }

    fn mend(&mut self, peer: &str) {
        self.down.remove(peer);
        let address = self.peer(peer).address;
        self.peer(peer).link = Link::Up(address);
    }

    fn steps(&mut self) -> Vec<Step> {
        for (peer, since) in &self.down {
            self.seen.get_mut(peer).unwrap().link = Link::Down(self.now.duration_since(*since));
        }
        let linked = self.seen.values().filter(|s| s.link.is_up()).map(|s| s.node.clone()).collect();
        let steps = self.roster.judge(self.now, self.seen.values().cloned().collect(), &linked);
        self.said.extend(steps.iter().filter_map(|step| match step {
            Step::Say(word) => Some(word.clone()),
            _ => None,
        }));
        steps
    }

    fn told(&mut self) -> Vec<PeerEvent> {
        let tell = |step| match step {
            Step::Tell(event) => Some(event),
            _ => None,
        };
        self.steps().into_iter().filter_map(tell).collect()
    }

    /// Lets time pass, tick by tick; gives what was told on the way.
    fn passes(&mut self, time: Duration) -> Vec<PeerEvent> {
        let (end, mut told) = (self.now + time, Vec::new());
        while self.now < end {
            self.now += TICK;
            told.extend(self.told());
        }
        told
    }

    /// Somebody says something of a peer.
    fn somebody_says(&mut self, by: &str, about: &str, says: Says) -> Response {
        self.number += 1;
        let generation = self.seen.get(about).map_or(1, |sighting| sighting.generation);
        let word = Word { about: name(about), generation, by: name(by), number: self.number, says };
        self.roster.hear(self.now, vec![word])
    }

    fn has_said(&self, about: &str, says: Says) -> usize {
        self.said.iter().filter(|word| word.about == name(about) && word.says == says).count()
    }
}

#[test]
fn hearsay_is_dialled_but_not_told() {
    let mut scene = Scene::with(&["a"]);
    let mut stranger = scene.peer("a").clone();
    (stranger.node, stranger.heard, stranger.link) = (name("b"), None, Link::Unknown);
    scene.seen.insert("b".into(), stranger);
    assert_eq!(scene.steps(), [Step::Link(name("b"), address(1))]);
    assert_eq!(scene.steps(), []);
    scene.peer("b").link = Link::Up(address(1));
    assert_eq!(scene.told(), [up("b", 1)]);
    assert_eq!(scene.has_said("b", Says::Heard), 1, "others need not wait for a heartbeat");
}

#[test]
fn of_two_nodes_each_finds_the_other_lost_by_itself() {
    let mut scene = Scene::with(&["a"]);
    assert_eq!(scene.passes(5 * SECOND), [], "the link alone is witness enough");
    scene.cut(&["a"]);
    assert_eq!(scene.passes(LINK_GRACE), []);
    assert_eq!(scene.passes(CONFIRM), [lost("a")]);
    assert_eq!(scene.passes(60 * SECOND), []);
    scene.mend("a");
    assert_eq!(scene.told(), [up("a", 1)]);
}

#[test]
fn a_broken_line_is_no_death_while_another_observer_hears_the_peer() {
    let mut scene = Scene::with(&["a", "b", "c"]);
    scene.cut(&["a"]);
    for _ in 0..60 {
        scene.hears(&["a", "b", "c"]);
        assert_eq!(scene.passes(SECOND), []);
    }
    let said = scene.has_said("a", Says::Silent);
    assert!((2..8).contains(&said), "it is said again, but ever less often: {said}");
    scene.mend("a");
    assert_eq!(scene.told(), []);
    assert_eq!(scene.has_said("a", Says::Heard), 1, "taken back");
}

#[test]
fn two_observers_and_no_objection_are_a_death() {
    let mut scene = Scene::with(&["a", "b", "c"]);
    scene.cut(&["a"]);
    assert_eq!(scene.passes(2 * SECOND), []);
    scene.somebody_says("b", "a", Says::Silent);
    assert_eq!(scene.passes(CONFIRM - TICK), []);
    assert_eq!(scene.passes(TICK), [lost("a")]);
}

#[test]
fn an_objection_is_believed_more_than_two_observers() {
    let mut scene = Scene::with(&["a", "b", "c"]);
    scene.cut(&["a"]);
    scene.passes(SECOND);
    scene.somebody_says("b", "a", Says::Silent);
    scene.now += TICK;
    assert_eq!(scene.somebody_says("a", "a", Says::Heard).pass_on.len(), 1);
    scene.hears(&["a"]);
    assert_eq!(scene.passes(2 * SECOND), []);
    // If it dies later, the observers say so again, and then nobody objects.
    scene.somebody_says("b", "a", Says::Silent);
    assert_eq!(scene.passes(SECOND), [lost("a")]);
}

#[test]
fn who_does_not_observe_a_peer_believes_two_who_do() {
    let mut scene = Scene::with(&["a", "b", "c", "d"]);
    scene.peer("a").link = Link::Unknown;
    scene.passes(SECOND);
    scene.somebody_says("b", "a", Says::Silent);
    assert_eq!(scene.passes(5 * SECOND), [], "one may be mistaken");
    scene.somebody_says("c", "a", Says::Silent);
    assert_eq!(scene.passes(SECOND), [lost("a")]);
    scene.somebody_says("b", "a", Says::Heard);
    assert_eq!(scene.told(), [up("a", 1)], "and they say when it is back");
}

#[test]
fn echoes_of_the_dead_raise_nobody() {
    let mut scene = Scene::with(&["a", "b", "c"]);
    scene.cut(&["a"]);
    scene.passes(SECOND);
    scene.somebody_says("b", "a", Says::Silent);
    assert_eq!(scene.passes(CONFIRM), [lost("a")]);
    scene.hears(&["a"]); // sent before it died, and slow
    assert_eq!(scene.passes(SECOND), []);
    scene.now += SECOND * 5;
    scene.hears(&["a"]);
    scene.passes(TICK); // judged late: it listens
    assert_eq!(scene.roster.peers[&name("a")].state, State::There(scene.now), "that one was not");
}

#[test]
fn a_node_that_nobody_answers_loses_everybody_at_once() {
    let mut scene = Scene::with(&["a", "b", "c"]);
    scene.cut(&["a", "b", "c"]);
    assert_eq!(scene.passes(LINK_GRACE), []);
    assert_eq!(scene.passes(CONFIRM + TICK).len(), 3);
}

#[test]
fn chitchat_finds_those_whom_nobody_observes() {
    let mut scene = Scene::with(&["a", "b"]);
    scene.peer("a").link = Link::Unknown;
    scene.peer("a").believed = false;
    assert_eq!(scene.passes(4 * SECOND), [], "its detector has just begun");
    assert_eq!(scene.passes(2 * SECOND), [lost("a")]);
}

#[test]
fn who_stood_still_finds_nobody_lost_until_it_has_listened() {
    let mut scene = Scene::with(&["a"]);
    scene.cut(&["a"]);
    scene.now += 60 * SECOND;
    assert_eq!(scene.told(), []);
    assert_eq!(scene.passes(SECOND), []);
    assert_eq!(scene.has_said("a", Says::Silent), 0, "and tells nobody that somebody is silent");
    assert_eq!(scene.passes(2 * SECOND), [lost("a")], "it has listened, and nothing came");
}

#[test]
fn a_restart_is_told_with_its_new_facts_and_its_old_start_is_not_believed_again() {
    let mut scene = Scene::with(&["a"]);
    let old = scene.peer("a").clone();
    scene.seen.insert("old".into(), old.clone());
    *scene.peer("a") = Sighting { generation: 2, facts: facts(2), ..old };
    assert_eq!(scene.told(), [up("a", 2)]);
    assert_eq!(scene.told(), []);
}

#[test]
fn who_said_good_bye_has_left_until_its_next_start() {
    let mut scene = Scene::with(&["a", "b"]);
    scene.somebody_says("a", "a", Says::Bye);
    let left = Step::Tell(PeerEvent::Left(name("a"), Incarnation(1)));
    assert_eq!(scene.steps(), [left, Step::Forget(name("a"))]);
    assert_eq!(scene.passes(10 * SECOND), []);
    let next = Sighting { generation: 2, facts: facts(2), ..scene.peer("a").clone() };
    *scene.peer("a") = next;
    assert_eq!(scene.told(), [up("a", 2)]);
    scene.peer("a").leaving = true;
    assert_eq!(scene.told(), [PeerEvent::Left(name("a"), Incarnation(2))], "chitchat tells of it as well");
}

#[test]
fn the_lost_are_remembered_and_greeted_after_chitchat_has_forgotten_them() {
    let mut scene = Scene::with(&["a"]);
    scene.cut(&["a"]);
    assert_eq!(scene.passes(2 * SECOND), [lost("a")]);
    let at = scene.peer("a").address;
    scene.seen.clear();
    scene.down.clear();
    for _ in 0..100 {
        scene.now += TICK;
        assert_eq!(scene.steps(), [], "never forgotten, so dialled for ever");
    }
    let linked = [name("a")].into();
    assert_eq!(scene.roster.judge(scene.now, Vec::new(), &linked), [Step::Gossip(at)]);
}

#[test]
fn at_most_so_many_lost_are_remembered() {
    let mut scene = Scene::with(&["a"]);
    let one = scene.peer("a").clone();
    for i in 0..MAX_LOST + 3 {
        scene.seen.insert(format!("p{i}"), Sighting { node: name(&format!("p{i:04}")), ..one.clone() });
    }
    scene.passes(TICK);
    scene.now += 10 * SECOND;
    let all: Vec<String> = scene.seen.keys().cloned().collect();
    for peer in &all {
        scene.down.insert(peer.clone(), scene.now - 5 * SECOND);
    }
    scene.passes(3 * SECOND);
    let remembered = scene.roster.peers.values().filter(|entry| matches!(entry.state, State::Lost(_))).count();
    assert_eq!(remembered, MAX_LOST);
}

#[test]
fn our_own_name_is_never_told_of() {
    let mut scene = Scene::with(&["a"]);
    scene.peer("a").node = name("me");
    assert_eq!(scene.passes(30 * SECOND), []);
}

#[test]
fn a_node_that_is_called_silent_objects() {
    let mut scene = Scene::with(&["a"]);
    let word = |generation, number| Word { about: name("me"), generation, by: name("a"), number, says: Says::Silent };
    let response = scene.roster.hear(scene.now, vec![word(1, 1)]);
    assert_eq!(response.say.iter().map(|word| word.says).collect::<Vec<_>>(), [Says::Heard]);
    assert_eq!(scene.roster.hear(scene.now, vec![word(1, 2)]).say, [], "one objection is enough for a moment");
    let response = scene.roster.hear(scene.now + SECOND, vec![word(0, 3)]);
    assert_eq!(response.say, [], "that was an earlier start");
}

#[test]
fn words_are_passed_on_once_and_too_many_are_refused() {
    let mut scene = Scene::with(&["a"]);
    assert_eq!(scene.somebody_says("x", "stranger", Says::Heard).pass_on.len(), 1);
    scene.number -= 1;
    assert_eq!(scene.somebody_says("x", "stranger", Says::Heard), Response::default());
    for _ in 0..WORDS_PER_SECOND {
        scene.somebody_says("x", "a", Says::Silent);
    }
    assert!(scene.roster.tally().words_refused > 0);
    scene.now += SECOND;
    assert_eq!(scene.somebody_says("x", "a", Says::Silent).pass_on.len(), 1);
}

#[test]
fn a_node_that_comes_and_goes_is_told_of_a_bounded_number_of_times() {
    let mut scene = Scene::with(&["a", "b"]);
    let mut told = 0;
    for _ in 0..60 {
        scene.cut(&["a"]);
        scene.passes(TICK);
        scene.somebody_says("b", "a", Says::Silent);
        told += scene.passes(5 * SECOND).len();
        scene.mend("a");
        told += scene.passes(5 * SECOND).len();
    }
    assert!((3..20).contains(&told), "{told} events in ten minutes of going and coming every ten seconds");
    scene.hears(&["a"]);
    assert_eq!(scene.passes(60 * SECOND), [up("a", 1)], "when it stays, it is believed again");
}

#[test]
fn in_a_large_cell_links_are_kept_with_neighbours_and_some_of_the_lost() {
    let mut scene = Scene::with(&["a"]);
    let one = scene.peer("a").clone();
    for i in 0..100 {
        let seen = Sighting { node: name(&format!("p{i}")), link: Link::Unknown, ..one.clone() };
        scene.seen.insert(format!("p{i}"), seen);
    }
    let links = |steps: &[Step]| steps.iter().filter(|step| matches!(step, Step::Link(..))).count();
    let notes = |steps: &[Step]| steps.iter().filter(|step| matches!(step, Step::Note(..))).count();
    let (_, steps) = (scene.steps(), scene.steps());
    assert_eq!(links(&steps), 0, "all is arranged: {steps:?}");
    let kept = scene.roster.peers.values().filter(|entry| matches!(entry.linked, Some((_, true)))).count();
    assert!((8..=16).contains(&kept), "{kept}");
    // Half of them is lost: there are neighbours among the rest, and the lost are still tried.
    for i in 0..50 {
        scene.peer(&format!("p{i}")).believed = false;
    }
    for _ in 0..10 {
        for i in 50..100 {
            scene.hears(&[&format!("p{i}")]);
        }
        scene.passes(SECOND);
    }
    let kept = |wanted: fn(State) -> bool| {
        let kept = |entry: &&Entry| matches!(entry.linked, Some((_, true))) && wanted(entry.state);
        scene.roster.peers.values().filter(kept).count()
    };
    assert!((6..=16).contains(&kept(|state| matches!(state, State::There(_)))));
    assert!((1..=8).contains(&kept(|state| matches!(state, State::Lost(_)))));
    assert_eq!(notes(&scene.steps()), 0);
}

/// Two processes that both are heard of under one name, first at port 1 and then at port 3; and somebody else.
fn namesakes() -> Scene {
    let mut scene = Scene::with(&["a", "b"]);
    let second = Sighting { generation: 2, address: address(3), facts: facts(2), ..scene.peer("a").clone() };
    scene.seen.insert("second".into(), second);
    scene
}

#[test]
fn of_two_living_nodes_of_one_name_the_first_stays_and_the_second_is_refused() {
    let mut scene = namesakes();
    for _ in 0..20 {
        scene.hears(&["a", "second"]);
        assert_eq!(scene.passes(SECOND), [], "no one takes the other's place");
    }
    assert_eq!(scene.roster.name_conflicts(scene.now), 1);
    // Even where the second was linked, as after a partition.
    for peer in ["a", "second"] {
        scene.peer(peer).link = Link::Up(address(3));
    }
    scene.hears(&["a", "second"]);
    assert!(scene.steps().contains(&Step::Refuse(name("a"), address(1), address(3))));
}

#[test]
fn a_reinstalled_node_of_the_same_name_is_taken_when_its_earlier_life_is_over() {
    let mut scene = namesakes();
    scene.peer("a").link = Link::Unknown;
    scene.peer("second").link = Link::Unknown;
    let mut told = Vec::new();
    for _ in 0..5 {
        scene.hears(&["second"]);
        told.extend(scene.passes(SECOND));
    }
    assert_eq!(told, [up("a", 2)], "without a gap, and at once where it is linked");
    assert_eq!(scene.roster.name_conflicts(scene.now), 0);
}
