//! The program of one's own on every host: what happens to it, and what it wants.

use starling_core::time::Now;

use super::{Happening, Parcel, World};
use crate::app::{Effect, Event, Guests, Start};
use crate::host::{Durable, State};
use crate::report::APP;

impl World {
    /// Starts the copy on a host, after its heart.
    pub(super) fn start_app(&mut self, node: usize) {
        let Some(guests) = &mut self.guests else { return };
        let nodes: Vec<_> = self.hosts.iter().map(|host| host.id.clone()).collect();
        let host = &mut self.hosts[node];
        let (seed, now) = (host.chance().u64(..), host.now(self.now));
        let start = Start {
            node: &host.id,
            run: host.run(),
            nodes: &nodes,
            zone: &host.facts.zone,
            disk: host.app_disk(),
            now,
            seed,
        };
        guests.start(node, start);
        self.app_event(node, None);
    }

    pub(super) fn stop_app(&mut self, node: usize) {
        if let Some(guests) = &mut self.guests {
            guests.stop(node);
        }
    }

    /// Its heart shows something new; the copy hears of it next.
    pub(super) fn show_app(&mut self, node: usize) {
        if self.guests.is_some() {
            let run = self.hosts[node].run();
            self.at(self.now, Happening::Shown { node, run });
        }
    }

    pub(super) fn shown_app(&mut self, node: usize) {
        if let Some(view) = self.view(node).cloned() {
            self.app_event(node, Some(Event::View(view)));
        }
    }

    pub(super) fn wake_app(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        if host.app_wake_at == self.now && host.is_running() {
            host.app_wake_at = u64::MAX;
            self.app_event(node, Some(Event::Wake));
        }
    }

    /// Something happens to the copy on a host; with nothing, it is only asked when it wants to be woken.
    pub(super) fn app_event(&mut self, node: usize, event: Option<Event>) {
        if self.hosts[node].state == State::Paused {
            if let Some(event) = event {
                self.figures.undeliverable += u64::from(!self.hosts[node].hold_app(event));
            }
            return;
        }
        self.with_app(node, |guests, now| Some(event.map(|event| guests.handle(node, now, event)).unwrap_or_default()));
    }

    /// A command drawn by chance is given to the copy on a host; tells what it says. Nothing when the host does not run,
    /// or there is no program that draws any.
    pub(crate) fn draw_app(&mut self, node: usize, chance: u64) -> Option<String> {
        if !self.hosts[node].is_running() {
            return None;
        }
        let mut rng = fastrand::Rng::with_seed(chance);
        let mut told = None;
        self.with_app(node, |guests, now| {
            let (says, effects) = guests.draw(node, now, &mut rng)?;
            told = Some(says);
            Some(effects)
        });
        told
    }

    /// Lets the copy on a host do something and does what it wants.
    pub(crate) fn with_app(&mut self, node: usize, act: impl FnOnce(&mut dyn Guests, Now) -> Option<Vec<Effect>>) {
        let now = self.hosts[node].now(self.now);
        let Some(guests) = &mut self.guests else { return };
        let effects = act(&mut **guests, now).unwrap_or_default();
        let wake = guests.next_wakeup(node).map_or(u64::MAX, |at| at.0.max(self.now));
        let host = &mut self.hosts[node];
        if wake < host.app_wake_at {
            host.app_wake_at = wake;
            let run = host.run();
            self.at(wake, Happening::Wake { node, run });
        }
        let mut durable = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { to: Some(to), letter, bytes } => {
                    let Some(to) = self.find(to.as_str()) else {
                        panic!("a program sends to {to}, which is no node of this mesh");
                    };
                    self.carry(node, to, bytes as u64, APP, Parcel::App(letter));
                }
                Effect::Send { to: None, letter, bytes } => {
                    for to in (0..self.hosts.len()).filter(|to| *to != node) {
                        self.carry(node, to, bytes as u64, APP, Parcel::App(letter.clone()));
                    }
                }
                Effect::Keep(name, bytes) => durable.push(Durable::AppKeep(name, bytes)),
                Effect::Reply(ticket) => durable.push(Durable::AppReply(ticket)),
                Effect::Mesh(command) => drop(self.ask(node, command)),
                Effect::Note(what) => {
                    let what = format!("{}: {what}", self.hosts[node].id);
                    self.note(what);
                }
            }
        }
        if !durable.is_empty() {
            self.sync(node, durable);
        }
    }
}
