//! What repair costs, and that it ends, when there is much to repair, links are slow, or a peer refuses what it is sent.

use super::*;
use crate::config::Version;
use crate::digest::{Fingerprint, KeyHash, Prefix};
use crate::record::Cell;
use crate::testing::{instance_record, stamp};
use crate::wire::{Exchange, MAX_MESSAGE_BYTES};

/// Messages with more records than this hold small ones; encoding all of them takes long.
const MAX_SMALL: usize = 100;

/// Two hearts with a slow link between them.
struct Pair {
    nodes: BTreeMap<NodeId, Node>,
    link: Duration,
    under_way: BTreeMap<(Instant, u64), (NodeId, NodeId, Message)>,
    now: Now,
    sent: u64,
    sent_records: usize,
}

impl Pair {
    fn new(link: Duration) -> Self {
        let now = Now { elapsed: Instant(0), wall: WallTime(1_000_000) };
        let mut pair = Pair { nodes: BTreeMap::new(), link, under_way: BTreeMap::new(), now, sent: 0, sent_records: 0 };
        for (me, peer) in [("a", "b"), ("b", "a")] {
            let node = Node::new(id(me), facts(1), Settings::default(), Memory::default(), 1, now);
            pair.nodes.insert(id(me), node);
            pair.give(&id(me), Input::Peer(PeerEvent::Up(id(peer), facts(1))));
        }
        pair
    }

    fn give(&mut self, to: &NodeId, input: Input) {
        let mut out = Vec::new();
        self.nodes.get_mut(to).unwrap().handle(self.now, input, &mut out);
        for output in out {
            if let Output::Send(peer, message) = output {
                let records = records_in(&message);
                assert!(records > MAX_SMALL || message.encode().len() <= MAX_MESSAGE_BYTES);
                self.sent += 1;
                self.sent_records += records;
                let arrives = self.now.elapsed + self.link;
                self.under_way.insert((arrives, self.sent), (to.clone(), peer, message));
            }
        }
    }

    /// Puts records straight into a node's store, as if it had always had them.
    fn knows(&mut self, at: &str, records: impl Iterator<Item = Record>) {
        let now = self.now;
        let node = self.nodes.get_mut(&id(at)).unwrap();
        for record in records {
            node.absorb(record, now, &mut Vec::new()).unwrap();
        }
    }

    /// Runs until both agree or time is up; tells how long it took.
    fn agree_within(&mut self, limit: Duration) -> Option<Duration> {
        let begun = self.now.elapsed;
        self.run(limit, |pair| pair.agree()).then(|| self.now.elapsed.since(begun))
    }

    fn agree(&self) -> bool {
        let mut fingerprints = self.nodes.values().map(|node| node.store.fingerprint());
        fingerprints.next() == fingerprints.next()
    }

    fn run(&mut self, time: Duration, done: impl Fn(&Pair) -> bool) -> bool {
        let end = self.now.elapsed + time;
        while !done(self) {
            let wakeup = self.nodes.values().filter_map(Node::next_wakeup).min();
            let arrival = self.under_way.keys().next().map(|(at, _)| *at);
            let Some(next) = wakeup.into_iter().chain(arrival).min().filter(|next| *next <= end) else { return false };
            self.now.wall.0 += next.since(self.now.elapsed).as_millis() as u64;
            self.now.elapsed = self.now.elapsed.max(next);
            match self.under_way.first_entry().filter(|first| first.key().0 <= self.now.elapsed) {
                Some(first) => {
                    let (from, to, message) = first.remove();
                    self.give(&to, Input::Message(from, message));
                }
                None => {
                    for name in ["a", "b"] {
                        self.give(&id(name), Input::Tick);
                    }
                }
            }
        }
        true
    }
}

fn records_in(message: &Message) -> usize {
    match message {
        Message::Push(records) | Message::Fill { records, .. } | Message::Page { records, .. } => records.len(),
        _ => 0,
    }
}

fn instances(range: std::ops::Range<u64>) -> impl Iterator<Item = Record> {
    range.map(|number| instance_record("orders", &format!("o{number}"), "c", number + 1))
}

/// Instances whose stamps only a node with a wrong clock believes.
fn from_the_future(range: std::ops::Range<u64>) -> impl Iterator<Item = Record> {
    let ahead = HybridTime::from_wall(WallTime(9_000_000)).0;
    range.map(move |number| instance_record("future", &format!("o{number}"), "c", ahead + number))
}

fn document(number: usize, writer: &str, time: u64, bytes: usize) -> Record {
    let key = ConfigKey { key: format!("d{number}").parse().unwrap(), ..config_key() };
    let version = Version {
        stamp: stamp(writer, time),
        body: Some(vec![b'x'; bytes].into()),
        format: String::new(),
        author: String::new(),
        comment: String::new(),
    };
    Record { key: Key::Config(key), cell: Cell::config_write(None, version) }
}

fn exchange() -> Exchange {
    Exchange { id: 1, cut: false, start: KeyHash(0), held: 0 }
}

#[test]
fn an_empty_node_is_filled_over_a_slow_link_in_seconds_and_sent_little_twice() {
    let mut pair = Pair::new(Duration::from_millis(40));
    pair.knows("a", instances(0..20_000));
    let took = pair.agree_within(Duration::from_secs(60));
    assert!(took.is_some_and(|took| took < Duration::from_secs(5)), "{took:?}");
    assert!(pair.sent_records < 30_000, "{} records were sent", pair.sent_records);
}

#[test]
fn two_halves_that_differ_in_much_agree_in_seconds() {
    let mut pair = Pair::new(Duration::from_millis(40));
    pair.knows("a", instances(0..15_000));
    pair.knows("b", instances(5_000..20_000));
    let took = pair.agree_within(Duration::from_secs(60));
    assert!(took.is_some_and(|took| took < Duration::from_secs(5)), "{took:?}");
    assert!(pair.sent_records < 30_000, "{} records were sent", pair.sent_records);
}

#[test]
fn a_peer_that_refuses_much_is_not_sent_it_again_and_again() {
    let mut pair = Pair::new(Duration::from_millis(1));
    pair.knows("a", from_the_future(0..12_000));
    pair.run(Duration::from_secs(5), |_| false);
    assert!(!pair.agree());
    let exchanges: u64 = pair.nodes.values().map(|node| node.counters().repairs_begun).sum();
    assert!(exchanges < 25, "{exchanges} exchanges in five seconds");
}

#[test]
fn what_a_peer_refuses_does_not_keep_it_from_the_rest() {
    let mut pair = Pair::new(Duration::from_millis(1));
    pair.knows("a", from_the_future(0..12_000));
    pair.run(Duration::from_secs(3), |_| false);
    pair.knows("a", instances(0..20));
    let known = |pair: &Pair| pair.nodes[&id("b")].store.fingerprint().count == 20;
    assert!(pair.run(Duration::from_secs(60), known));
}

#[test]
fn one_message_is_not_answered_by_more_than_a_few_megabytes() {
    let mut pair = Pair::new(Duration::from_millis(1));
    pair.knows("a", (0..40).map(|number| document(number, "c", number as u64 + 1, 300_000)));
    let mut out = Vec::new();
    let exchange = exchange();
    let entries = pair.nodes[&id("a")].store.digest().entries(Prefix::ROOT);
    let wanted = vec![(Prefix::ROOT, entries.into_iter().map(|entry| entry.1.salted(exchange.id)).collect())];
    let now = pair.now;
    let node = pair.nodes.get_mut(&id("a")).unwrap();
    node.handle(now, Input::Message(id("b"), Message::Want { wanted, exchange }), &mut out);
    let bytes: usize = out.iter().map(|o| if let Output::Send(_, m) = o { m.encode().len() } else { 0 }).sum();
    assert!(bytes < 6_000_000, "{bytes} bytes");
    assert!(pair.agree_within(Duration::from_secs(30)).is_some());
}

#[test]
fn a_document_with_many_large_versions_in_conflict_reaches_everybody() {
    let mut pair = Pair::new(Duration::from_millis(1));
    for number in 0..12 {
        pair.knows("a", [document(0, &format!("w{number}"), number + 1, 500_000)].into_iter());
    }
    assert!(pair.agree_within(Duration::from_secs(30)).is_some());
}

#[test]
fn a_node_that_has_much_to_learn_does_not_flood_its_neighbours_with_it() {
    let mut mesh = Mesh::of(&["a", "b", "c"]);
    let exchange = exchange();
    let records: Vec<Record> = instances(0..6_000).collect();
    let now = mesh.now;
    let node = mesh.nodes.get_mut(&id("a")).unwrap();
    let mut passed_on = 0;
    for records in records.chunks(1_000) {
        let mut out = Vec::new();
        let fill = Message::Fill { records: records.to_vec(), exchange };
        node.handle(now, Input::Message(id("b"), fill), &mut out);
        for output in out {
            if let Output::Send(to, Message::Push(records)) = output {
                assert_eq!(to, id("c"));
                passed_on += records.len();
            }
        }
    }
    assert_eq!(node.store.fingerprint().count, 6_000);
    assert_eq!(passed_on, 2_048, "a heal's worth, and no more");
}

#[test]
fn a_new_node_serves_what_it_has_and_says_how_far_it_is() {
    let mut pair = Pair::new(Duration::from_millis(40));
    pair.knows("a", instances(0..20_000));
    let held = |pair: &Pair| pair.nodes[&id("b")].view().fingerprint.count;
    assert!(pair.run(Duration::from_secs(5), |pair| held(pair) >= 5_000));
    let view = pair.nodes[&id("b")].view().clone();
    let shown = view.catching_up.clone().expect("it is catching up");
    assert_eq!((shown.from.clone(), shown.of, shown.began_with), (id("a"), 20_000, 0));
    let listed: usize = view.services.values().map(|service| service.instances.iter().count()).sum();
    assert_eq!(listed as u64, held(&pair), "what it holds, it serves");
    assert!(pair.agree_within(Duration::from_secs(5)).is_some());
    assert!(pair.run(Duration::from_secs(5), |pair| pair.nodes[&id("b")].view().catching_up.is_none()));
}

#[test]
fn an_interrupted_catching_up_goes_on_where_it_stood() {
    let mut pair = Pair::new(Duration::from_millis(40));
    pair.knows("a", instances(0..20_000));
    for part in [4_000, 9_000, 14_000] {
        assert!(pair.run(Duration::from_secs(9), |pair| pair.nodes[&id("b")].store.fingerprint().count >= part));
        // Everything on its way is lost.
        pair.under_way.clear();
    }
    assert!(pair.agree_within(Duration::from_secs(9)).is_some());
    // The pages under way were lost each time.
    assert!(pair.sent_records < 20_000 + 3 * 4_096 + 2_048, "{} records were sent", pair.sent_records);
}

#[test]
fn others_have_their_turn_while_a_node_catches_up() {
    let mut pair = Pair::new(Duration::from_millis(1));
    pair.knows("a", instances(0..20_000));
    assert!(pair.run(Duration::from_secs(5), |pair| pair.nodes[&id("b")].store.fingerprint().count >= 2_000));
    // No answer holds more than a page, so a change made now waits for a few pages at most.
    let news = instance_record("news", "n1", "c", 5);
    let key = news.key.clone();
    pair.give(&id("b"), Input::Message(id("c"), Message::Push(vec![news])));
    assert!(pair.nodes[&id("b")].store.get(&key).is_some());
    let pages = pair.under_way.values().filter(|(_, _, message)| records_in(message) > 0);
    assert!(pages.clone().count() <= 4 && pages.clone().all(|(_, _, message)| records_in(message) <= 1_024));
}

#[test]
fn a_gap_that_others_have_filled_is_not_shown_any_more() {
    let mut pair = Pair::new(Duration::from_millis(40));
    pair.knows("a", instances(0..20_000));
    assert!(pair.run(Duration::from_secs(5), |pair| pair.nodes[&id("b")].view().catching_up.is_some()));
    pair.under_way.clear();
    pair.knows("b", instances(0..20_000));
    assert!(pair.run(Duration::from_secs(5), |pair| pair.nodes[&id("b")].view().catching_up.is_none()));
}

#[test]
fn a_peer_whose_pages_are_empty_for_ever_keeps_nobody_from_comparing() {
    let mut pair = Pair::new(Duration::from_millis(1));
    let promise =
        |exchange| Message::Opening { store: Fingerprint { count: 1 << 40, ..Fingerprint::default() }, exchange };
    let exchange = Exchange { id: 1, cut: false, start: KeyHash(0), held: 1 << 40 };
    pair.give(&id("b"), Input::Message(id("a"), promise(exchange)));
    let sent = |pair: &Pair| pair.under_way.values().map(|(_, _, message)| message.clone()).collect::<Vec<_>>();
    let mut asked = sent(&pair);
    asked.retain(|message| matches!(message, Message::Pull { .. }));
    let (mut pages, mut compares) = (0, false);
    while let Some(question) = asked.pop() {
        compares |= matches!(question, Message::Opening { .. });
        let Message::Pull { from, last } = question else { continue };
        pages += 1;
        assert!(pages < 1_000, "it reads empty pages for ever");
        let empty = Message::Page { records: vec![], next: Some(KeyHash(from.0 + 1)), last, held: 1 << 40 };
        pair.under_way.clear();
        pair.give(&id("b"), Input::Message(id("a"), empty));
        asked.extend(sent(&pair));
    }
    assert!(pages > 0 && pair.nodes[&id("b")].view().catching_up.is_none());
    assert!(compares);
}
