//! Disks: what is kept, when it is acknowledged, and what a crash leaves of what was on its way.

use starling_core::Answer;
use starling_core::id::CommandId;

use super::{Happening, MAX_ANSWERS, Outcome, World};
use crate::host::Durable;
use crate::options::Sabotage;

impl World {
    pub(super) fn sync(&mut self, node: usize, durable: Vec<Durable>) {
        let host = &mut self.hosts[node];
        let latency = host.disk_us;
        if latency == 0 && host.unsynced.is_empty() {
            return self.durable(node, durable);
        }
        host.unsynced.push_back(durable);
        let run = host.run();
        self.at(self.now + latency, Happening::Synced { node, run });
    }

    pub(super) fn synced(&mut self, node: usize) {
        if let Some(durable) = self.hosts[node].unsynced.pop_front() {
            self.durable(node, durable);
        }
    }

    fn durable(&mut self, node: usize, batch: Vec<Durable>) {
        let forgets = self.options.sabotage == Some(Sabotage::ForgetDisk);
        for durable in batch {
            match durable {
                Durable::Reply(id, answer) => self.answered(node, id, answer),
                Durable::AppReply(ticket) => {
                    if let Some(guests) = &mut self.guests {
                        guests.release(ticket);
                    }
                }
                _ if forgets => {}
                kept => self.hosts[node].keep(kept),
            }
        }
    }

    fn answered(&mut self, node: usize, id: CommandId, answer: Outcome) {
        let about = self.ledger.answered(id, node);
        if let (Some(key), Ok(Answer::Done { stamp: Some(stamp), .. })) = (&about, &answer) {
            self.ledger.acknowledge(key, stamp);
            if let Some(recorder) = &mut self.recorder {
                recorder.acknowledged(key, stamp, self.now);
            }
        }
        if self.answers.len() >= MAX_ANSWERS {
            self.answers.pop_first();
        }
        self.answers.insert(id, answer);
    }

    /// The power fails: of what was on its way to the disk any part may be there, in any order, and the rest is torn and
    /// will be recognised as such. Nobody had been told that any of it succeeded.
    pub(super) fn tear(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        let batches: Vec<Vec<Durable>> = host.unsynced.drain(..).collect();
        let mut lost = Vec::new();
        for durable in batches.into_iter().flatten() {
            if durable.is_told() {
                continue;
            }
            if host.chance().bool() {
                host.keep(durable);
            } else {
                lost.push(durable);
            }
        }
        host.unsynced.push_back(lost);
    }
}
