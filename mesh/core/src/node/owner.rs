//! Whose an instance is: what follows when it becomes this node's, and when it ceases to be.
//!
//! A claim moves an instance from one owner to another, and may be lost in between. The new owner tells everybody at once
//! and has it on its disk a moment later; if it crashes within that moment, nobody was ever told that the move succeeded,
//! and yet the old owner has heard of it. So the old owner does not forget at once: for [`HELD_FOR`] its disk keeps what
//! it had (if everything crashes, it comes back as if the move had never been), and if the new owner returns without
//! knowing of the instance and removes it, the old owner claims it again.
//!
//! The same holds for a removal asked of another node; and an owner that comes back to find that others have removed
//! what it owns because it was away for too long ([`super::ghosts`]) claims it again too. In none of these cases did
//! somebody *ask* for the removal: that is a claim of its own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{Node, Output};
use crate::id::{InstanceKey, NodeId};
use crate::record::{Cell, Claim, Claimed, Key};
use crate::registry::Instance;
use crate::time::{HybridTime, Instant, Now};

/// How long an old owner remembers. The new one needs milliseconds for its disk, or as long as it takes to start again.
pub(super) const HELD_FOR: Duration = Duration::from_secs(600);

/// Instances that were this node's until somebody else claimed or removed them.
#[derive(Debug, Clone, Default)]
pub(super) struct Displaced {
    by_key: BTreeMap<InstanceKey, Former>,
    /// In the order of their ends.
    ends: VecDeque<(Instant, InstanceKey)>,
}

#[derive(Debug, Clone)]
struct Former {
    record: Arc<Claimed>,
    /// Under which claim, and by whom, it was taken.
    claimed: HybridTime,
    by: NodeId,
    until: Instant,
}

impl Displaced {
    /// When [`Self::end`] has something to say.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.ends.front().map(|(until, _)| *until)
    }

    fn remember(&mut self, key: InstanceKey, former: Former) {
        self.ends.push_back((former.until, key.clone()));
        self.by_key.insert(key, former);
    }

    /// What is remembered no longer, at most so many.
    fn end(&mut self, now: Instant, at_once: usize) -> Vec<InstanceKey> {
        let mut ended = Vec::new();
        while ended.len() < at_once
            && let Some((_, key)) = self.ends.pop_front_if(|(until, _)| *until <= now)
        {
            // It may have come back since, and even gone again.
            if self.by_key.get(&key).is_some_and(|former| former.until <= now) {
                self.by_key.remove(&key);
                ended.push(key);
            }
        }
        ended
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_key.len().max(self.ends.len())
    }
}

impl Node {
    /// What this node owns under a key.
    pub(super) fn held(&self, key: &Key) -> Option<Arc<Claimed>> {
        let Key::Instance(key) = key else { return None };
        self.store.instance(key).filter(|known| known.claim.stamp.node == self.me).cloned()
    }

    pub(super) fn owns(&self, key: &Key) -> bool {
        self.held(key).is_some()
    }

    /// Claims again what a peer has just told this node is gone, if nobody had asked for that. Tells whether it did.
    pub(super) fn reclaim(&mut self, key: &Key, held: Option<Arc<Claimed>>, now: Now, out: &mut Vec<Output>) -> bool {
        let Key::Instance(instance) = key else { return false };
        if (held.is_none() && !self.displaced.by_key.contains_key(instance)) || self.leaving {
            return false;
        }
        let Some(Cell::Instance(register)) = self.store.get(key) else { return false };
        let Claim { claimed, stamp } = &register.marker;
        // A removal that somebody asked for is a claim itself; one that a node concluded is later than its claim.
        let concluded = stamp.time > *claimed;
        if register.val.is_some() || stamp.node == self.me || !concluded {
            return false;
        }
        let expired = held.filter(|held| held.claim.claimed == *claimed);
        let former = self.displaced.by_key.get(instance);
        let given_up = former.filter(|former| former.claimed == *claimed && former.by == stamp.node);
        let Some(mine) = expired.or_else(|| given_up.map(|former| former.record.clone())) else { return false };
        tracing::info!(%instance, removed_by = %stamp.node, "claimed again: nobody had asked for its removal");
        self.counters.reclaimed += 1;
        self.claim_instance(now, instance.clone(), Some(mine.instance.clone()), out);
        true
    }

    /// Keeps right all that follows ownership: probes, leases, counts, disk.
    pub(super) fn follow_ownership(
        &mut self,
        key: &InstanceKey,
        before: Option<Arc<Claimed>>,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        let own = self.store.instance(key).filter(|known| known.claim.stamp.node == self.me).cloned();
        match (before, &own) {
            (None, None) => return,
            (None, Some(_)) => {
                self.own_instances += 1;
                self.displaced.by_key.remove(key);
            }
            (Some(_), Some(_)) => {}
            (Some(before), None) => {
                self.own_instances -= 1;
                self.displace(key, before, now, out);
            }
        }
        let before = self.monitor.probe(key).map(|(address, check)| (address.clone(), check.clone()));
        match own.as_ref().and_then(|own| Some((&own.instance, own.instance.details.check()?))) {
            Some((Instance { address, health, .. }, check)) => {
                self.monitor.watch(key, address, check, *health, now.elapsed);
            }
            None => self.monitor.forget(key),
        }
        let after = self.monitor.probe(key).map(|(address, check)| (address.clone(), check.clone()));
        match after {
            _ if after == before => {}
            Some((address, check)) => out.push(Output::Probe(key.clone(), address, check)),
            None => out.push(Output::StopProbe(key.clone())),
        }
    }

    /// Remembers an instance that has just gone to, or been removed by, another node.
    fn displace(&mut self, key: &InstanceKey, record: Arc<Claimed>, now: Now, out: &mut Vec<Output>) {
        let key = Key::Instance(key.clone());
        let Some(Cell::Instance(register)) = self.store.get(&key) else { return };
        let Claim { claimed, stamp } = register.marker;
        if stamp.node == self.me {
            return;
        }
        if self.displaced.ends.len() >= self.settings.max_own_instances {
            out.push(Output::Forget(key));
            return;
        }
        let until = now.elapsed + HELD_FOR;
        self.displaced.remember(record.key.clone(), Former { record, claimed, by: stamp.node, until });
    }

    /// Takes off the disk what was displaced long ago.
    pub(super) fn forget_displaced(&mut self, now: Now, out: &mut Vec<Output>) {
        let ended = self.displaced.end(now.elapsed, super::AT_ONCE);
        out.extend(ended.into_iter().map(|key| Output::Forget(Key::Instance(key))));
    }
}
