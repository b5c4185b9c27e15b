//! What a node does about the mesh's quotas: tells its neighbours what is asked of it, passes on what it hears, and takes
//! its share. (How shares are worked out, [`crate::quotas`] tells.)

use super::{Node, Output};
use crate::id::NodeId;
use crate::quotas::{QuotaUse, Saying, Word};
use crate::time::Now;
use crate::view::MemberState;
use crate::wire::Message;

impl Node {
    pub(super) fn use_quotas(&mut self, now: Now, uses: Vec<QuotaUse>, out: &mut Vec<Output>) {
        let members = self.publisher.published().alive().count();
        let mut sayings = Vec::new();
        let shares = self.quotas.used(now, &self.me, uses, members, self.peers.neighbours(), &mut sayings);
        say(sayings, out);
        out.push(Output::Shares(shares));
    }

    pub(super) fn heard_usage(&mut self, now: Now, from: &NodeId, words: Vec<Word>, ask: bool, out: &mut Vec<Output>) {
        // What somebody repeats of a node that has left would set its share aside again.
        let peers = &self.peers;
        let words = words.into_iter().filter(|word| peers.state(&word.node) != Some(MemberState::Left)).collect();
        let mut sayings = Vec::new();
        self.quotas.heard(now, &self.me, from, words, ask, &mut sayings);
        say(sayings, out);
    }

    pub(super) fn pass_usage_on(&mut self, now: Now, out: &mut Vec<Output>) {
        let mut sayings = Vec::new();
        self.quotas.pass_on(now.elapsed, self.peers.neighbours(), &mut sayings);
        say(sayings, out);
    }
}

fn say(sayings: Vec<Saying>, out: &mut Vec<Output>) {
    out.extend(sayings.into_iter().map(|Saying { to, words, ask }| Output::Send(to, Message::Usage { words, ask })));
}
