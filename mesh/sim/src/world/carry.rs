//! Links: what is sent, what becomes of it on its way, and which of them are cut.

use starling_core::Input;
use starling_core::id::NodeId;
use starling_core::record::Record;
use starling_core::wire::{Message, Received};

use super::{Happening, Parcel, World};
use crate::app::Event;
use crate::options::Sabotage;
use crate::report::records;

impl World {
    /// A heart says something to another.
    pub(super) fn send(&mut self, from: usize, to: &NodeId, message: Message) {
        let Some(&to) = self.index.get(to.as_str()) else {
            panic!("{} sends to {to}, which is no node of this mesh", self.hosts[from].id);
        };
        let bytes = message.encode();
        self.figures.copies(&message);
        let kind = message.kind();
        let Some(message) = self.sabotaged(message) else { return };
        let message = match self.options.through_bytes && self.options.sabotage.is_none() {
            false => message,
            true => match Message::decode(&bytes) {
                Ok(Received { message: Some(message), skipped: 0 }) => message,
                other => panic!("what a heart says reads back: {other:?}"),
            },
        };
        self.carry(from, to, bytes.len() as u64, kind, Parcel::Heart(message));
    }

    /// Puts something on its way.
    pub(super) fn carry(&mut self, from: usize, to: usize, bytes: u64, kind: &'static str, parcel: Parcel) {
        self.figures.sent(kind, bytes);
        if let Some(recorder) = &mut self.recorder {
            recorder.sent(kind, bytes);
        }
        let abroad = self.options.cell_of(from) != self.options.cell_of(to);
        let traffic = &mut self.hosts[from].traffic;
        traffic.sent += bytes;
        traffic.abroad += if abroad { bytes } else { 0 };
        if !self.cuts.is_open(from, to) || !self.hosts[to].is_up() {
            self.figures.undeliverable += 1;
            return;
        }
        let links = self.links.of(from, to);
        let depart = match links.bytes_per_second {
            Some(rate) => {
                let host = &mut self.hosts[from];
                host.uplink_free_at = host.uplink_free_at.max(self.now) + bytes * 1_000_000 / rate;
                host.uplink_free_at
            }
            None => self.now,
        };
        if links.loss > 0.0 && self.transit.f64() < links.loss {
            self.figures.lost += 1;
            return;
        }
        let run = self.hosts[to].run();
        if links.duplication > 0.0 && self.transit.f64() < links.duplication {
            self.figures.duplicated += 1;
            let at = depart + links.draw_us(&mut self.transit);
            self.at(at, Happening::Deliver { from, to, run, parcel: parcel.clone() });
        }
        let at = depart + links.draw_us(&mut self.transit);
        self.at(at, Happening::Deliver { from, to, run, parcel });
    }

    pub(super) fn deliver(&mut self, from: usize, to: usize, run: u64, parcel: Parcel) {
        let host = &self.hosts[to];
        if host.run() != run || !host.is_up() || !self.cuts.is_open(from, to) {
            self.figures.undeliverable += 1;
            return;
        }
        let host = &mut self.hosts[to];
        if host.slow_us == 0 {
            return self.hand(from, to, parcel);
        }
        match host.turn(self.now) {
            Some(at) => self.at(at, Happening::Handle { from, to, run, parcel }),
            None => self.figures.undeliverable += 1,
        }
    }

    /// Gives what has arrived to whom it is for.
    pub(super) fn hand(&mut self, from: usize, to: usize, parcel: Parcel) {
        let sender = self.hosts[from].id.clone();
        let message = match parcel {
            Parcel::Heart(message) => message,
            Parcel::App(letter) => return self.app_event(to, Some(Event::Letter(sender, letter))),
        };
        self.figures.concerned(records(&message), &mut self.concerned);
        // The heart may answer with a write of its own, which is noted on the way.
        let mut keys = std::mem::take(&mut self.concerned);
        self.give(to, Input::Message(sender, message));
        self.concerned.append(&mut keys);
        if !self.concerned.is_empty() {
            self.note_shown(to);
        }
    }

    /// What sabotage leaves of a message.
    fn sabotaged(&self, message: Message) -> Option<Message> {
        let kept = |records: Vec<Record>| records.into_iter().filter(|record| !record.cell.is_tombstone()).collect();
        match (self.options.sabotage, message) {
            (Some(Sabotage::DropRemovals), Message::Push(records)) => Some(Message::Push(kept(records))),
            (Some(Sabotage::DropRemovals), Message::Fill { records, exchange }) => {
                Some(Message::Fill { records: kept(records), exchange })
            }
            (Some(Sabotage::MuteRepair), message) if !matches!(message, Message::Push(_)) => None,
            (_, message) => Some(message),
        }
    }

    /// Cuts every link from one of these hosts to one of those; tells recorders and detector of nothing yet.
    pub(crate) fn close(&mut self, from: &[usize], to: &[usize]) {
        for &a in from {
            for &b in to {
                if a != b {
                    self.cuts.close(a, b);
                }
            }
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.cut(from, to, self.now);
        }
    }

    /// Opens every link from one of these hosts to one of those.
    pub(crate) fn open(&mut self, from: &[usize], to: &[usize]) {
        for &a in from {
            for &b in to {
                self.cuts.open(a, b);
            }
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.healed(&self.cuts, self.now);
        }
    }

    pub(crate) fn open_all(&mut self) {
        self.cuts.open_all();
        if let Some(recorder) = &mut self.recorder {
            recorder.healed(&self.cuts, self.now);
        }
    }

    pub(crate) fn topology_changed(&mut self, of: Option<usize>) {
        self.changed = true;
        self.troubled_at = self.now;
        self.figures.trouble();
        let Some(detector) = &mut self.detector else { return };
        for (at, observer) in detector.changed(of, &self.hosts, &self.cuts, self.now) {
            let run = self.hosts[observer].run();
            self.at(at, Happening::Look { observer, run });
        }
    }
}
