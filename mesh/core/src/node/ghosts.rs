//! Ghosts: what belongs to a node that is gone for good, and what is known of such a node.
//!
//! A host that is scrapped without a word leaves its instances behind: out of selection, but listed, replicated and kept
//! by everybody. After [`Settings::ghost_after_ms`](super::Settings) they expire: one living node, the nearest to the
//! absent one by rendezvous hash, writes their tombstones (and if it does not, the next one does). It writes them *under
//! the owner's claim*, as the owner itself would note a finding: so any claim made since, by the owner or whoever took
//! the instance over, wins over it, and an owner that comes back after all claims what it has at once
//! ([`super::owner`]). Then the node itself is forgotten, and nothing is left of it.
//!
//! To expire is a conclusion, so it is drawn with care: not about nodes that self-preservation holds; not about what was
//! written within that time (the owner is there for somebody, and would claim it again and again); and by a node that sees
//! less than half of the others only after seven times as long, for it is more likely to be the one that is away.

use std::cmp::Reverse;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{AT_ONCE, COLLECT_PAUSE, Node, Output};
use crate::id::NodeId;
use crate::time::Now;

/// How often ghosts are looked for.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How much later than the first each further node does what the first has not done.
const TURN: Duration = Duration::from_secs(60);
/// So many nodes are ever waited for.
const MAX_TURNS: usize = 10;
/// How many times longer a node waits that sees less than half of the others.
const MINORITY_PATIENCE: u32 = 7;

impl Node {
    /// Expires what belongs to nodes that are gone for good, in portions, and forgets nodes of which nothing is left.
    pub(super) fn lay_ghosts(&mut self, now: Now, out: &mut Vec<Output>) {
        self.ghosts_due = now.elapsed + LOOK_INTERVAL;
        let after = Duration::from_millis(self.settings.ghost_after_ms);
        let patience = if self.peers.sees_half() { after } else { after * MINORITY_PATIENCE };
        let mut left = AT_ONCE;
        for (node, away) in self.preserver.away_for(after, now.elapsed) {
            let owned = self.publisher.owned_by(&node);
            if owned.is_empty() && away >= patience {
                self.forget(&node);
                continue;
            }
            let turn = TURN * self.turn(&node) as u32;
            if self.leaving || away < patience + turn {
                continue;
            }
            let written_before = self.before(now.wall, (after + turn).as_millis() as u64);
            let mut expired = 0;
            for hash in owned {
                if expired == left {
                    break;
                }
                let Some(known) = self.store.instance_by_hash(hash) else { continue };
                if known.claim.stamp.time >= written_before {
                    continue;
                }
                let key = known.key.clone();
                self.update_instance(now, key, None, out);
                expired += 1;
            }
            if expired > 0 {
                let hours = away.as_secs() / 3_600;
                tracing::info!(%node, expired, "its instances have expired: the node has been away for {hours} h");
                self.counters.expired += expired as u64;
            }
            left -= expired.min(left);
            if left == 0 {
                // The next portion when others have had their turn.
                self.ghosts_due = now.elapsed + COLLECT_PAUSE;
                return;
            }
        }
    }

    /// How many living nodes are nearer to this one than this node is, by a hash all compute alike.
    fn turn(&self, node: &NodeId) -> usize {
        let near = |other: &NodeId| {
            let seed = xxh3_64_with_seed(node.as_str().as_bytes(), 0);
            Reverse((xxh3_64_with_seed(other.as_str().as_bytes(), seed), other.clone()))
        };
        let mine = near(&self.me);
        self.peers.alive().filter(|other| near(other) < mine).count().min(MAX_TURNS)
    }

    fn forget(&mut self, node: &NodeId) {
        self.peers.forget(node);
        self.preserver.forget(node);
        self.publisher.remove_member(node);
    }
}
