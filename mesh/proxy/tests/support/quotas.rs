//! What the hearts of a flock do about quotas: they hear each other at once.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use starling_core::id::NodeId;
use starling_core::quotas::{QuotaId, QuotaUse, Quotas, Saying};
use starling_core::time::{self, Now, WallTime};

#[derive(Default)]
pub(super) struct Sharing {
    hearts: Mutex<BTreeMap<NodeId, Quotas>>,
    began: OnceLock<Instant>,
}

impl Sharing {
    /// What a node may use, of so many that membership knows.
    pub(super) fn used(&self, me: &NodeId, members: usize, uses: Vec<QuotaUse>) -> Vec<(QuotaId, u64)> {
        let us = self.began.get_or_init(Instant::now).elapsed().as_micros() as u64;
        let now = Now { elapsed: time::Instant(us), wall: WallTime(us / 1_000) };
        let mut hearts = self.hearts.lock().unwrap();
        hearts.entry(me.clone()).or_default();
        let others: Vec<NodeId> = hearts.keys().filter(|node| *node != me).cloned().collect();
        let mut said = Vec::new();
        let mine = hearts.get_mut(me).unwrap();
        let shares = mine.used(now, me, uses, members.max(others.len() + 1), &others, &mut said);
        for Saying { to, words, ask } in said {
            let mut answers = Vec::new();
            hearts.entry(to.clone()).or_default().heard(now, &to, me, words, ask, &mut answers);
            for answer in answers {
                hearts.entry(me.clone()).or_default().heard(now, me, &to, answer.words, false, &mut Vec::new());
            }
        }
        shares
    }
}
