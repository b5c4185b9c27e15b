//! What steady change costs each node: 100 hearts, each with the whole registry, while instances come and go.
//!
//! `cargo bench --bench churn`. The rate is that of a registry of a million instances of which one in a hundred changes
//! each minute: 167 changes a second. The registry itself is smaller, since a hundred of a million each do not fit into
//! one process; what a change costs a node that holds a million stands in the store bench. Time is virtual, links take
//! 0.25 ms and lose nothing, hearts know their overlay neighbours; membership is not part of it. Bytes are those of the
//! messages as they travel, processor time is that of the hearts with encoding and decoding.

#![allow(clippy::print_stdout)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use starling_core::id::{CommandId, InstanceKey, NodeId};
use starling_core::peers::whole_overlay;
use starling_core::registry::Registration;
use starling_core::wire::Message;
use starling_core::{Command, Input, Output};

#[path = "heart.rs"]
mod heart;
#[path = "machine.rs"]
mod machine;

use heart::{Heart, instance, instance_key, name};

const HEARTS: usize = 100;
/// Instances per service.
const PER_SERVICE: usize = 100;
/// One way.
const LINK_US: u64 = 250;
/// One change: a million, a hundredth of them, in a minute.
const CHANGE_EVERY_US: u64 = 60 * 1_000_000 / (1_000_000 / 100);
/// Until the hearts have met, and the tree stands.
const WARM_UP_US: u64 = 5_000_000;
/// What is measured.
const MEASURED_US: u64 = 20_000_000;

fn main() {
    println!(
        "bench churn: {HEARTS} hearts, {} changes a second, {} s",
        1_000_000 / CHANGE_EVERY_US,
        MEASURED_US / 1_000_000
    );
    println!("{}\n", machine::describe());
    println!(
        "{:>10} {:>15} {:>15} {:>17} {:>13} {:>14}",
        "instances", "sent B/s, push", "B/s, repair", "bytes per change", "CPU % a node", "behind at end"
    );
    for instances in [1_000, 10_000] {
        let mut mesh = Mesh::new(instances);
        mesh.run_until(WARM_UP_US);
        let (before, begun) = (mesh.sent.clone(), machine::cpu_time());
        mesh.run_until(WARM_UP_US + MEASURED_US);
        let cpu = (machine::cpu_time() - begun).as_secs_f64();
        let seconds = MEASURED_US as f64 / 1e6;
        let sent = |repair: bool| {
            let kinds = mesh.sent.iter().filter(|(kind, _)| is_repair(kind) == repair);
            let bytes: u64 = kinds.map(|(kind, bytes)| bytes - before.get(kind).unwrap_or(&0)).sum();
            bytes as f64 / seconds / HEARTS as f64
        };
        let changes_per_second = 1e6 / CHANGE_EVERY_US as f64;
        println!(
            "{instances:>10} {:>15.0} {:>15.0} {:>17.0} {:>13.2} {:>14}",
            sent(false),
            sent(true),
            sent(false) / changes_per_second,
            cpu / seconds / HEARTS as f64 * 100.0,
            mesh.behind()
        );
    }
}

fn is_repair(kind: &str) -> bool {
    ["ranges", "entries", "want", "fill", "same"].contains(&kind)
}

/// A message on its way: when it arrives, its number, to whom, from whom.
type Flight = (u64, u64, usize, usize, Vec<u8>);

struct Mesh {
    hearts: Vec<Heart>,
    names: BTreeMap<NodeId, usize>,
    flights: BinaryHeap<Reverse<Flight>>,
    /// When a heart may want to be woken; old entries do no harm.
    wakes: BinaryHeap<Reverse<(u64, usize)>>,
    next_change: u64,
    changes: u64,
    /// Instances registered while the clock runs, the oldest first, with who owns them.
    alive: VecDeque<(usize, InstanceKey)>,
    rng: fastrand::Rng,
    /// Bytes by kind of message.
    sent: BTreeMap<&'static str, u64>,
}

impl Mesh {
    fn new(instances: usize) -> Self {
        let ids: Vec<NodeId> = (0..HEARTS).map(|number| name(&format!("n{number}"))).collect();
        let overlay = whole_overlay(&ids);
        let hearts = overlay.iter().enumerate().map(|(number, neighbours)| {
            let neighbours: Vec<&str> = neighbours.iter().map(|neighbour| ids[*neighbour].as_str()).collect();
            let mut heart = Heart::new(ids[number].as_str(), &neighbours, Vec::new());
            heart.fill(instances, PER_SERVICE);
            heart
        });
        let mut mesh = Self {
            hearts: hearts.collect(),
            names: ids.iter().cloned().zip(0..).collect(),
            flights: BinaryHeap::new(),
            wakes: (0..HEARTS).map(|heart| Reverse((1, heart))).collect(),
            next_change: 0,
            changes: 0,
            alive: VecDeque::new(),
            rng: fastrand::Rng::with_seed(1),
            sent: BTreeMap::new(),
        };
        mesh.hearts.iter_mut().for_each(|heart| heart.out.clear());
        mesh
    }

    /// How many hearts do not hold what the first one does.
    fn behind(&self) -> usize {
        let first = self.hearts[0].node.view().fingerprint;
        self.hearts.iter().filter(|heart| heart.node.view().fingerprint != first).count()
    }

    fn run_until(&mut self, until_us: u64) {
        loop {
            let flight = self.flights.peek().map_or(u64::MAX, |Reverse(flight)| flight.0);
            let wake = self.wakes.peek().map_or(u64::MAX, |Reverse(wake)| wake.0);
            let now = flight.min(wake).min(self.next_change);
            if now > until_us {
                return;
            }
            if now == self.next_change {
                self.next_change += CHANGE_EVERY_US;
                self.change(now);
            } else if now == flight {
                let Some(Reverse((_, _, to, from, bytes))) = self.flights.pop() else { return };
                let message = Message::decode(&bytes).expect("hearts understand each other").message;
                let from = self.hearts[from].name.clone();
                self.give(now, to, Input::Message(from, message.expect("of one version")));
            } else {
                let Some(Reverse((_, heart))) = self.wakes.pop() else { return };
                if self.hearts[heart].node.next_wakeup().is_some_and(|due| due.0 <= now) {
                    self.give(now, heart, Input::Tick);
                }
            }
        }
    }

    /// Every other change is a new instance, and the others take an old one away, once there are some.
    fn change(&mut self, now: u64) {
        self.changes += 1;
        let number = self.changes as usize;
        let old = if number > 200 && number.is_multiple_of(2) { self.alive.pop_front() } else { None };
        let (heart, command) = match old {
            Some((owner, key)) => (owner, Command::Deregister(key)),
            None => {
                let (heart, key) = (self.rng.usize(..HEARTS), instance_key(number % 10, 1_000_000 + number));
                self.alive.push_back((heart, key.clone()));
                (heart, Command::Register(Registration { key, instance: instance(number) }))
            }
        };
        self.give(now, heart, Input::Command(CommandId(self.changes), command));
    }

    fn give(&mut self, now: u64, to: usize, input: Input) {
        let heart = &mut self.hearts[to];
        heart.give_at(now, input);
        for output in heart.out.drain(..) {
            let Output::Send(peer, message) = output else { continue };
            let bytes = message.encode();
            *self.sent.entry(message.kind()).or_default() += bytes.len() as u64;
            let flight = (now + LINK_US, self.flights.len() as u64, self.names[&peer], to, bytes);
            self.flights.push(Reverse(flight));
        }
        self.wakes.extend(heart.node.next_wakeup().map(|due| Reverse((due.0.max(now + 1), to))));
    }
}
