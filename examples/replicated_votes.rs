//! A program of your own under the simulator: votes, counted on every node of a mesh without any server.
//!
//! Whoever asks any node to count a vote is told once it is counted for good. The nodes tell each other what they have
//! counted, now and then; they find each other in the view of their Starling node. The part that decides is a state
//! machine ([`App`]) and touches nothing: the simulator runs it on every node, beside the node's own heart, and lets
//! links break, disks forget what was not synced, clocks jump and machines stand still.
//!
//! `cargo run --example replicated_votes` tells it; in your project the same functions are `#[test]`s. What it shows: a
//! version with a mistake (it answers before the vote is on disk: [`Votes::careless`]) works in every test in which nothing
//! breaks, is caught within a few seeds, and the story of it is cut down to what it takes: a vote, a crash.

#![allow(clippy::print_stdout)] // an example talks

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use starling::sim::app::{App, Input, Instant, NodeId, Now, Outbox, Start};
use starling::sim::swarm::{Shape, Swarm};
use starling::sim::{Checker, Mesh, Story, millis, secs};

/// How often a node tells another all it has counted.
const GOSSIP: Duration = Duration::from_millis(300);

/// Counts that merge: for every option, how many votes were counted in each slot. A slot is written by one start of one
/// node only and grows, so the larger number is the newer one, and what is doubled, late or lost does no harm.
type Counts = BTreeMap<String, BTreeMap<String, u64>>;

/// One node's votes.
#[derive(Debug)]
struct Votes {
    /// Where this start of this node counts.
    slot: String,
    counts: Counts,
    /// Who is there, as the node's heart sees it.
    peers: Vec<NodeId>,
    gossip_at: Instant,
    turn: usize,
    writes_behind: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Vote(String);

impl Votes {
    fn start(start: Start<'_>) -> Self {
        let kept = start.disk.get("counts").map(|bytes| serde_json::from_slice(bytes).expect("what was written"));
        Self {
            // Never the slot of an earlier start: that may have told others of votes that are not on this disk, and the
            // same number would mean other votes.
            slot: format!("{} start {}", start.node, start.run),
            counts: kept.unwrap_or_default(),
            peers: Vec::new(),
            gossip_at: start.now.elapsed + GOSSIP,
            turn: start.seed as usize,
            writes_behind: false,
        }
    }

    /// The same with a mistake that seldom shows: it answers at once and writes to disk a little later.
    fn careless(start: Start<'_>) -> Self {
        Self { writes_behind: true, ..Self::start(start) }
    }

    fn merge(&mut self, theirs: Counts) {
        for (option, slots) in theirs {
            let mine = self.counts.entry(option).or_default();
            for (slot, count) in slots {
                let known = mine.entry(slot).or_default();
                *known = count.max(*known);
            }
        }
    }

    fn keep(&self, out: &mut Outbox<Self>) {
        out.persist("counts", serde_json::to_vec(&self.counts).expect("names and numbers"));
    }

    fn of(&self, option: &str) -> u64 {
        self.counts.get(option).map_or(0, |slots| slots.values().sum())
    }
}

impl App for Votes {
    type Message = Counts;
    type Command = Vote;
    type Answer = Vote;

    fn handle(&mut self, now: Now, input: Input<Self>, out: &mut Outbox<Self>) {
        match input {
            Input::Command(ticket, Vote(option)) => {
                *self.counts.entry(option.clone()).or_default().entry(self.slot.clone()).or_default() += 1;
                if !self.writes_behind {
                    self.keep(out);
                }
                out.reply(ticket, Vote(option)); // told once all that was given to the disk before is there
                self.peers.iter().for_each(|peer| out.send(peer.clone(), self.counts.clone()));
            }
            Input::Message(_, theirs) => {
                let before = self.counts.clone();
                self.merge(theirs);
                if self.counts != before {
                    self.keep(out);
                }
            }
            Input::View(view) => {
                let others = view.alive().map(|member| member.node.clone()).filter(|node| *node != view.me);
                self.peers = others.collect();
            }
            Input::Wake => {
                self.gossip_at = now.elapsed + GOSSIP;
                self.turn += 1;
                if self.writes_behind {
                    self.keep(out);
                }
                if !self.peers.is_empty() {
                    let peer = self.peers[self.turn % self.peers.len()].clone();
                    out.send(peer, self.counts.clone());
                }
            }
        }
    }

    fn next_wakeup(&self) -> Option<Instant> {
        Some(self.gossip_at)
    }

    fn wire_size(message: &Counts) -> usize {
        serde_json::to_vec(message).map_or(0, |bytes| bytes.len())
    }

    fn draw(chance: &mut fastrand::Rng) -> Option<Vote> {
        Some(Vote(["tea", "coffee"][chance.usize(..2)].into()))
    }
}

/// The judge: once nothing has been broken and nobody has voted for ten seconds, every node has counted every vote that
/// anybody was told is counted.
#[derive(Debug, Default)]
struct EveryVoteCounts {
    /// How many votes were confirmed when it last looked, and since when there are so many.
    confirmed: (usize, Duration),
}

impl Checker for EveryVoteCounts {
    fn name(&self) -> &'static str {
        "every-vote-counts"
    }

    fn look(&mut self, mesh: &Mesh) -> Vec<String> {
        let confirmed = mesh.answers::<Votes>().count();
        if confirmed != self.confirmed.0 {
            self.confirmed = (confirmed, mesh.now());
        }
        let quiet_for = mesh.calm_for().unwrap_or_default().min(mesh.now() - self.confirmed.1);
        if quiet_for < secs(10) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for option in ["tea", "coffee"] {
            let told = mesh.answers::<Votes>().filter(|(_, Vote(said))| said == option).count() as u64;
            for node in mesh.running() {
                let counted = mesh.app::<Votes>(node.as_str()).map_or(0, |votes| votes.of(option));
                if counted < told {
                    found.push(format!("{node} has counted {counted} votes for {option}, but {told} were confirmed"));
                }
            }
        }
        found
    }
}

/// A story in words: a partition, votes on both sides, a power failure, and everything is counted.
fn both_sides_vote(seed: u64) -> Result<Mesh, Story> {
    let mut mesh = Mesh::builder(seed).nodes(5).loss(0.02).disk(millis(5)).app(Votes::start).build();
    mesh.watch(EveryVoteCounts::default());
    mesh.tell::<Votes>("n1", Vote("tea".into())).expect("n1 runs");
    mesh.cut(&["n1", "n2"], &["n3", "n4", "n5"]);
    mesh.run_for(secs(10));
    mesh.tell::<Votes>("n2", Vote("tea".into())).expect("both sides go on");
    mesh.tell::<Votes>("n4", Vote("coffee".into())).expect("both sides go on");
    mesh.crash_torn("n4");
    mesh.run_for(secs(5));
    assert_eq!(mesh.app::<Votes>("n1").expect("n1 runs").of("coffee"), 0);
    mesh.mend();
    mesh.run_for(secs(15));
    for node in mesh.running() {
        let votes = mesh.app::<Votes>(node.as_str()).expect("it runs");
        assert_eq!((votes.of("tea"), votes.of("coffee")), (2, 1), "{}", mesh.explain());
    }
    mesh.watched()?;
    Ok(mesh)
}

/// Many drawn stories. Each seed draws the mesh, what befalls it and who votes where: small meshes, many votes and short
/// troubles, since that is where a program of this kind goes wrong.
fn many(start: fn(Start<'_>) -> Votes) -> Swarm {
    let shape = Shape {
        nodes: 2..=4,
        trouble_lasts: 3..=12,
        troubles: 3..=20,
        commands: 0..=3,
        app_commands: 20..=120,
        ..Shape::default()
    };
    let swarm = Swarm::default().shape(shape).prepare(move |mesh| mesh.app(start));
    swarm.check(|| vec![Box::new(EveryVoteCounts::default())])
}

fn main() -> Result<(), Story> {
    println!("A partition, told as it happened:\n");
    both_sides_vote(1)?.journal().for_each(|line| println!("{line}"));
    println!("\n100 drawn stories:\n{}", many(Votes::start).run(1..=100, |_| {}));
    println!("\nThe same with a mistake:\n{}", many(Votes::careless).run(1..=50, |_| {}));
    Ok(())
}

#[test]
fn both_sides_of_a_cut_vote_and_everything_is_counted() -> Result<(), Story> {
    (1..=20).try_for_each(|seed| both_sides_vote(seed).map(drop))
}

#[test]
fn no_confirmed_vote_is_lost_whatever_happens() {
    let summary = many(Votes::start).run(1..=100, |_| {});
    assert!(summary.ok(), "{summary}");
}

#[test]
fn a_mistake_that_takes_a_crash_at_the_wrong_moment_is_found_and_told_in_a_few_steps() {
    let summary = many(Votes::careless).run(1..=50, |_| {});
    let failure = summary.failures.first().expect("some seed finds it");
    let shrunk = failure.shrunk.as_ref().expect("it was made smaller");
    assert_eq!(failure.verdict.kind, "every-vote-counts");
    assert!(shrunk.steps.1 <= 6, "{failure}");
}
