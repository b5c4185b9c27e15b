use super::*;
use crate::testing::instance_record;

/// A node among neighbours, and what it sends.
struct Bird {
    push: Push,
    neighbours: Vec<NodeId>,
    now: Instant,
    counters: Counters,
    written: u32,
}

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn to(name: &str, out: &[Output]) -> Vec<Message> {
    let sent = out.iter().filter_map(|output| match output {
        Output::Send(peer, message) if *peer == id(name) => Some(message.clone()),
        _ => None,
    });
    sent.collect()
}

impl Bird {
    fn among(neighbours: &[&str]) -> Self {
        let neighbours = neighbours.iter().map(|name| id(name)).collect();
        let push = Push::new(&id("me"), 100);
        Bird { push, neighbours, now: Instant(1_000_000), counters: Counters::default(), written: 0 }
    }

    fn change(&mut self) -> Change {
        self.written += 1;
        let record = instance_record("orders", &format!("o{}", self.written), "a", u64::from(self.written));
        let (key, item) = record.hashes();
        (item.into(), key, record)
    }

    fn spread(&mut self, changes: Vec<Change>, from: Option<&str>) -> Vec<Output> {
        let mut out = Vec::new();
        let from = from.map(id);
        self.push.spread(self.now, changes, from.as_ref(), &self.neighbours, &mut self.counters, &mut out);
        out
    }

    fn wait(&mut self, ms: u64) -> Vec<Output> {
        self.now = self.now + Duration::from_millis(ms);
        let mut out = Vec::new();
        self.push.pass_time(self.now, false, &self.neighbours, &mut self.counters, &mut out);
        out
    }

    fn beacon(&mut self, from: &str, number: u32, hops: u8) -> Vec<Output> {
        let mut out = Vec::new();
        self.push.beacon(self.now, &id(from), Beacon { root: 0, number, hops }, &self.neighbours, &mut out);
        out
    }

    /// Has it seen a burst of changes and two beacons by way of its parent.
    fn settled(neighbours: &[&str], parent: &str) -> Self {
        let mut bird = Bird::among(neighbours);
        let burst = (0..60).map(|_| bird.change()).collect();
        bird.spread(burst, None);
        bird.beacon(parent, 1, 3);
        bird.beacon(parent, 2, 3);
        assert!(bird.push.uses_tree(bird.now));
        bird.wait(0);
        bird
    }

    /// Whether a fresh change goes to a neighbour at once.
    fn sends_to(&mut self, name: &str) -> bool {
        let change = self.change();
        let out = self.spread(vec![change], None);
        !to(name, &out).is_empty()
    }
}

#[test]
fn a_quiet_mesh_floods_but_not_back() {
    let mut bird = Bird::among(&["a", "b", "c"]);
    let change = bird.change();
    let out = bird.spread(vec![change], Some("b"));
    assert_eq!((to("a", &out).len(), to("b", &out).len(), to("c", &out).len()), (1, 0, 1));
}

#[test]
fn a_busy_mesh_floods_until_the_tree_has_settled() {
    let mut bird = Bird::among(&["a", "b"]);
    let burst = (0..60).map(|_| bird.change()).collect();
    bird.spread(burst, None);
    assert!(bird.sends_to("a") && bird.sends_to("b"));
    bird.beacon("a", 1, 3);
    assert!(bird.sends_to("a") && bird.sends_to("b"));
    bird.beacon("a", 2, 3);
    assert!(bird.sends_to("a") && !bird.sends_to("b"));
}

#[test]
fn outside_the_tree_only_ids_are_sent_together_and_soon() {
    let mut bird = Bird::settled(&["a", "b", "c"], "a");
    let changes = vec![bird.change(), bird.change()];
    let ids: Vec<ChangeId> = changes.iter().map(|change| change.0).collect();
    let out = bird.spread(changes, Some("c"));
    assert!(matches!(to("a", &out)[..], [Message::Push(ref records)] if records.len() == 2));
    assert!(to("b", &out).is_empty() && to("c", &out).is_empty());
    assert_eq!(bird.push.next_wakeup(), Some(bird.now + ID_DELAY));
    let out = bird.wait(5);
    assert_eq!(to("b", &out), [Message::Have(ids)]);
    assert!(to("c", &out).is_empty(), "it came from there");
}

#[test]
fn who_is_heard_to_have_a_change_is_not_told_of_it() {
    let mut bird = Bird::settled(&["a", "b"], "a");
    let change = bird.change();
    let told = change.0;
    bird.spread(vec![change], None);
    bird.push.heard_of(bird.now, &id("b"), &[told], &mut bird.counters);
    assert!(to("b", &bird.wait(5)).is_empty());
}

#[test]
fn a_child_gets_changes_until_it_prunes() {
    let mut bird = Bird::settled(&["a", "b"], "a");
    bird.push.grafted(&id("b"), &[], &bird.neighbours.clone());
    assert!(bird.sends_to("b"));
    bird.push.pruned(&id("b"));
    assert!(!bird.sends_to("b"));
}

#[test]
fn a_change_whose_id_came_alone_is_asked_for_and_no_more_once_it_has_come() {
    let mut bird = Bird::settled(&["a", "b"], "a");
    let (lost, late) = (bird.change(), bird.change());
    bird.push.heard_of(bird.now, &id("b"), &[lost.0, late.0], &mut bird.counters);
    assert!(to("b", &bird.wait(9)).is_empty(), "it may be on its way");
    bird.push.arrived(bird.now, &id("a"), (late.0, late.1), true, &mut bird.counters, &mut Vec::new());
    assert_eq!(to("b", &bird.wait(1)), [Message::Graft(vec![lost.0])]);
    bird.push.arrived(bird.now, &id("b"), (lost.0, lost.1), true, &mut bird.counters, &mut Vec::new());
    assert!(to("b", &bird.wait(1_000)).is_empty());
    assert_eq!(bird.counters.grafts, 1);
}

#[test]
fn who_is_asked_for_a_change_knows_where_it_stands() {
    let mut bird = Bird::settled(&["a", "b"], "a");
    let change = bird.change();
    let (told, key, _) = change.clone();
    bird.spread(vec![change], None);
    assert_eq!(bird.push.grafted(&id("b"), &[told, ChangeId(77)], &bird.neighbours.clone()), [key]);
}

#[test]
fn a_link_is_pruned_after_several_duplicates_in_a_row_and_the_parent_never() {
    let mut bird = Bird::settled(&["a", "b"], "a");
    let mut bring = |from: &str, news: bool| {
        let change = bird.change();
        let mut out = Vec::new();
        bird.push.arrived(bird.now, &id(from), (change.0, change.1), news, &mut bird.counters, &mut out);
        !to(from, &out).is_empty()
    };
    assert!(!bring("b", false) && !bring("b", false) && !bring("b", false));
    assert!(!bring("b", true), "news is no habit of duplicates");
    assert!(!bring("b", false) && !bring("b", false) && !bring("b", false));
    assert!(bring("b", false));
    assert!((0..20).all(|_| !bring("b", false)), "said once, not again at once");
    assert!((0..20).all(|_| !bring("a", false)));
}

#[test]
fn the_parent_is_kept_until_another_is_nearer_or_it_brings_no_beacon() {
    let mut bird = Bird::settled(&["a", "b"], "a");
    let graft = || Message::Graft(Vec::new());
    // First by another, but by the parent in as few hops: kept.
    bird.beacon("b", 3, 3);
    bird.beacon("a", 3, 3);
    let out = bird.beacon("b", 4, 2);
    assert!(!to("b", &out).contains(&graft()));
    // The parent brought beacon 4 in more hops than another.
    bird.beacon("a", 4, 3);
    let out = bird.beacon("b", 5, 2);
    assert!(to("b", &out).contains(&graft()));
    assert!(!to("a", &out).contains(&Message::Prune), "until the new parent delivers, the old one may");
    assert!(bird.sends_to("b") && !bird.sends_to("a"));
}

#[test]
fn beacons_are_passed_on_once_and_the_better_root_wins() {
    let mut bird = Bird::among(&["a", "b", "c"]);
    let out = bird.beacon("a", 1, 3);
    let further = Message::Beacon(Beacon { root: 0, number: 1, hops: 4 });
    assert!(to("b", &out).contains(&further) && to("c", &out).contains(&further) && !to("a", &out).contains(&further));
    assert!(bird.beacon("b", 1, 2).is_empty());
    let mut out = Vec::new();
    let worse = Beacon { root: 1, number: 9, hops: 0 };
    bird.push.beacon(bird.now, &id("c"), worse, &bird.neighbours, &mut out);
    assert!(out.is_empty());
}

#[test]
fn without_fresh_beacons_a_busy_mesh_floods() {
    let mut bird = Bird::settled(&["a", "b"], "a");
    for _ in 0..8 {
        let burst = (0..60).map(|_| bird.change()).collect();
        bird.spread(burst, None);
        bird.wait(500);
    }
    assert!(bird.sends_to("b"));
}

#[test]
fn a_mesh_that_has_become_quiet_floods_again() {
    let mut bird = Bird::settled(&["a", "b"], "a");
    assert!(!bird.sends_to("b"));
    bird.wait(500);
    bird.wait(500);
    assert!(bird.sends_to("b"));
}

#[test]
fn ids_that_do_not_fit_are_counted_and_left_to_repair() {
    let mut bird = Bird::settled(&["a", "b"], "a");
    let many = (0..MAX_IDS + 5).map(|_| bird.change()).collect();
    bird.spread(many, None);
    assert_eq!(bird.counters.ids_dropped, 5);
    assert!(matches!(to("b", &bird.wait(5))[..], [Message::Have(ref ids)] if ids.len() == MAX_IDS));
}

#[test]
fn the_root_beats_twice_soon_and_then_every_second() {
    let mut bird = Bird::among(&["a"]);
    let burst = (0..60).map(|_| bird.change()).collect();
    bird.spread(burst, None);
    let mut beats = Vec::new();
    for ms in 0..2_200 {
        let mut out = Vec::new();
        if ms % 400 == 0 {
            let burst = (0..60).map(|_| bird.change()).collect();
            bird.spread(burst, None);
        }
        bird.push.pass_time(bird.now, true, &bird.neighbours, &mut bird.counters, &mut out);
        if to("a", &out).iter().any(|message| matches!(message, Message::Beacon(_))) {
            beats.push(ms);
        }
        bird.now = bird.now + Duration::from_millis(1);
    }
    assert_eq!(beats, [0, 100, 1_100, 2_100]);
}
