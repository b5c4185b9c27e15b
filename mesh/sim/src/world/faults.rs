//! What befalls hosts: starts and stops of every kind, what others notice of it, and what probes find.

use starling_core::id::InstanceKey;
use starling_core::{Input, PeerEvent};

use super::{Happening, World, brief};
use crate::host::{Durable, Held, State};
use crate::links::micros;

/// How long a node that stops cleanly goes on before it is gone: its farewells are sent.
const LINGER_US: u64 = 100_000;

/// How many nodes of each cell look for the others, and how often.
const SEEKERS: usize = 2;
const SEEK_AGAIN_US: u64 = 10_000_000;

impl World {
    // ---- membership

    pub(super) fn look(&mut self, observer: usize) {
        if !self.hosts[observer].is_running() {
            return; // when it goes on, it will look again
        }
        let Some(detector) = &mut self.detector else { return };
        let events = detector.look(observer, &self.hosts, self.now);
        let (mut up, mut lost) = (Vec::new(), Vec::new());
        for (subject, event) in &events {
            let name = self.hosts[*subject].id.as_str();
            if matches!(event, PeerEvent::Up(..)) { up.push(name) } else { lost.push(name) }
        }
        let me = &self.hosts[observer].id;
        let lines = [(lost, "loses"), (up, "sees")]
            .map(|(names, verb)| (!names.is_empty()).then(|| format!("{me} {verb} {}", brief(&names))));
        lines.into_iter().flatten().for_each(|line| self.journal(false, line));
        for (_, event) in events {
            self.give(observer, Input::Peer(event));
        }
    }

    /// Looks for other cells at their seeds, until it knows somebody there, and whenever it does not.
    pub(super) fn seek(&mut self, node: usize) {
        for seed in 0..self.options.cells.len() {
            let cell = &self.hosts[seed].facts.cell;
            let open = self.cuts.is_open(node, seed) && self.cuts.is_open(seed, node);
            let known = self.view(node).is_some_and(|view| view.members.values().any(|m| m.facts.cell == *cell));
            if self.options.cell_of(node) != seed && open && self.hosts[seed].is_running() && !known {
                let met = PeerEvent::Met(self.hosts[seed].id.clone());
                self.give(node, Input::Peer(met));
            }
        }
        let run = self.hosts[node].run();
        self.at(self.now + SEEK_AGAIN_US, Happening::Seek { node, run });
    }

    // ---- hosts

    pub(crate) fn start(&mut self, node: usize) {
        let settings = self.options.settings.clone();
        self.hosts[node].start(self.now, &settings);
        self.up += 1;
        self.record_state(node);
        self.give(node, Input::Tick);
        self.start_app(node);
        if let Some(detector) = &mut self.detector {
            detector.forget_all(node);
            let cells = self.options.cells.len();
            if cells > 1 && node / cells < SEEKERS {
                let (at, run) = (self.now + micros(self.options.up_after), self.hosts[node].run());
                self.at(at, Happening::Seek { node, run });
            }
        }
        if self.now > 0 {
            self.topology_changed(Some(node));
            self.concerned = self.figures.all_followed();
            self.note_shown(node);
        }
    }

    /// Kills a host. With `torn`, any part of what was not yet on its disk may be there nevertheless.
    pub(crate) fn crash(&mut self, node: usize, torn: bool) {
        if torn {
            self.tear(node);
        }
        self.end(node, State::Crashed);
        self.topology_changed(Some(node));
        self.others_have_it_all();
    }

    /// The last step of a clean stop.
    pub(super) fn gone(&mut self, node: usize) {
        let incarnation = self.hosts[node].run();
        self.end(node, State::Left);
        if let Some(detector) = &mut self.detector {
            for (at, observer) in detector.left(node, &self.hosts, &self.cuts, self.now) {
                self.at(at, Happening::Farewell { observer, subject: node, incarnation });
            }
        }
        self.topology_changed(Some(node));
        self.others_have_it_all();
        let name = self.hosts[node].id.to_string();
        self.journal(false, format!("{name} is gone"));
    }

    fn end(&mut self, node: usize, state: State) {
        for durable in self.hosts[node].unsynced.iter().flatten() {
            if let Durable::Keep(record) = durable {
                self.ledger.unsynced(node, &record.key);
            }
        }
        self.stop_app(node);
        self.hosts[node].stop(state, self.now);
        self.ledger.unasked(node);
        self.up -= 1;
        self.record_state(node);
    }

    /// A node less to wait for: some changes may now be everywhere.
    fn others_have_it_all(&mut self) {
        for key in self.figures.all_followed() {
            self.figures.finish(&key, &self.hosts, self.up, &mut self.ledger, self.now);
        }
    }

    pub(crate) fn leave_soon(&mut self, node: usize) {
        let run = self.hosts[node].run();
        self.at(self.now + LINGER_US, Happening::Gone { node, run });
    }

    pub(crate) fn pause(&mut self, node: usize) {
        self.hosts[node].state = State::Paused;
        self.record_state(node);
        self.topology_changed(Some(node));
    }

    pub(crate) fn resume(&mut self, node: usize) {
        self.hosts[node].state = State::Running;
        self.record_state(node);
        for held in self.hosts[node].take_backlog() {
            match held {
                Held::Heart(input) => self.give(node, input),
                Held::App(event) => self.app_event(node, Some(event)),
            }
        }
        let host = &mut self.hosts[node];
        (host.tick_at, host.app_wake_at) = (self.now, self.now);
        let run = host.run();
        self.at(self.now, Happening::Tick { node, run });
        self.at(self.now, Happening::Wake { node, run });
        self.topology_changed(Some(node));
        self.concerned = self.figures.all_followed();
        self.note_shown(node);
    }

    /// Records what a host has become and, when it is up, what it holds.
    fn record_state(&mut self, node: usize) {
        if let Some(recorder) = &mut self.recorder {
            recorder.state(node, self.hosts[node].state, self.now);
        }
        self.record_held(node);
    }

    pub(super) fn record_held(&mut self, node: usize) {
        if let (Some(recorder), Some(heart)) = (&mut self.recorder, &self.hosts[node].heart) {
            recorder.held(node, heart.view(), self.now);
        }
    }

    /// Takes a sample of the second that is over.
    pub(super) fn record_second(&mut self) {
        let Some(mut recorder) = self.recorder.take() else { return };
        recorder.second(self);
        self.recorder = Some(recorder);
    }

    pub(super) fn probe(&mut self, node: usize, key: InstanceKey) {
        let Some(&every) = self.hosts[node].probes.get(&key) else { return };
        let run = self.hosts[node].run();
        if self.hosts[node].is_running() {
            let result = if self.failing_probes.contains(&key) { Err("as scripted".into()) } else { Ok(()) };
            self.give(node, Input::Probe(key.clone(), result));
        }
        self.at(self.now + every, Happening::Probe { node, run, key });
    }
}
