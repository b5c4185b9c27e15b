//! One name, one node: what to make of several processes that use the name of one.
//!
//! Mostly they are starts of one node, one after the other, and the older linger in others' memories for a moment. The one
//! this node is linked with counts, as links find out which of two is alive; else the later start, unless an
//! earlier one is still heard of elsewhere.
//!
//! When two are heard of for longer than any memory lasts, there really are two, with copies of one certificate. The
//! earlier start keeps the name, and the later one is refused by all: everybody has to choose the same one, and that one
//! has been serving. Its instances are nobody's until it is given a name of its own, which both are told.

use std::collections::BTreeMap;
use std::time::Duration;

use starling_core::id::NodeId;
use tokio::time::Instant;
use tracing::error;

use super::roster::{Link, Myself, Sighting, Step, is_fresh};

/// A restarted node is heard of twice for as long as its earlier start is not found dead: that is no conflict.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often a conflict is named.
const REPEAT: Duration = Duration::from_secs(60);
/// A conflict not seen for so long is over.
const OVER: Duration = Duration::from_secs(5);

/// Conflicts that are going on.
#[derive(Default)]
pub(super) struct Names {
    conflicts: BTreeMap<NodeId, Conflict>,
}

struct Conflict {
    since: Instant,
    last: Instant,
    told: Option<Instant>,
}

impl Names {
    /// One sighting for each name, which is not this node's own.
    pub(super) fn one_each(
        &mut self,
        now: Instant,
        me: &Myself,
        interval: Duration,
        sightings: Vec<Sighting>,
        steps: &mut Vec<Step>,
    ) -> BTreeMap<NodeId, Sighting> {
        self.conflicts.retain(|_, conflict| now.duration_since(conflict.last) < OVER);
        let alive = |sighting: &Sighting| is_fresh(now, interval, sighting) && sighting.believed && !sighting.leaving;
        let mut chosen: BTreeMap<NodeId, Sighting> = BTreeMap::new();
        for sighting in sightings {
            if sighting.node == me.node {
                // An earlier start of ours is nobody. Who is heard of now under our name is somebody else.
                if alive(&sighting) && sighting.address != me.address && self.lasts(&me.node, now) {
                    self.tell_namesake(now, me, &sighting);
                }
                continue;
            }
            let Some(other) = chosen.remove(&sighting.node) else {
                chosen.insert(sighting.node.clone(), sighting);
                continue;
            };
            let (earlier, later) =
                if sighting.generation < other.generation { (sighting, other) } else { (other, sighting) };
            let both = alive(&earlier) && alive(&later) && earlier.address != later.address;
            let winner = if both && self.lasts(&earlier.node, now) {
                self.tell(now, &earlier, &later, steps);
                earlier
            } else {
                choose(now, interval, earlier, later)
            };
            chosen.insert(winner.node.clone(), winner);
        }
        chosen
    }

    /// How many names are used twice.
    pub(super) fn conflicts(&self, now: Instant) -> usize {
        self.conflicts.values().filter(|conflict| now.duration_since(conflict.since) >= PATIENCE).count()
    }

    /// Whether two have been heard of under a name for too long.
    fn lasts(&mut self, node: &NodeId, now: Instant) -> bool {
        let conflict = self.conflicts.entry(node.clone()).or_insert(Conflict { since: now, last: now, told: None });
        conflict.last = now;
        now.duration_since(conflict.since) >= PATIENCE
    }

    /// Whether it is time to name a conflict again.
    fn may_tell(&mut self, node: &NodeId, now: Instant) -> bool {
        let Some(conflict) = self.conflicts.get_mut(node) else { return false };
        let due = conflict.told.is_none_or(|at| now.duration_since(at) >= REPEAT);
        if due {
            conflict.told = Some(now);
        }
        due
    }

    fn tell(&mut self, now: Instant, earlier: &Sighting, later: &Sighting, steps: &mut Vec<Step>) {
        if matches!(later.link, Link::Up(address) if address == later.address) {
            steps.push(Step::Refuse(later.node.clone(), earlier.address, later.address));
        }
        if self.may_tell(&earlier.node, now) {
            error!(
                node = %earlier.node, first = %earlier.address, second = %later.address,
                "two processes use the name of one node; the second is refused: stop it, or give it a name and a certificate \
                 of its own"
            );
        }
    }

    fn tell_namesake(&mut self, now: Instant, me: &Myself, other: &Sighting) {
        if self.may_tell(&me.node, now) {
            let which = if other.generation < me.generation { "refuse this one" } else { "refuse that one" };
            error!(
                node = %me.node, me = %me.address, other = %other.address,
                "another process uses this node's name, and the others {which}: stop one of the two, or give it a name and \
                 a certificate of its own"
            );
        }
    }
}

/// Of two starts of one node, the one that counts.
fn choose(now: Instant, interval: Duration, earlier: Sighting, later: Sighting) -> Sighting {
    let linked = |sighting: &Sighting| matches!(sighting.link, Link::Up(address) if address == sighting.address);
    if earlier.address != later.address && linked(&earlier) != linked(&later) {
        return if linked(&earlier) { earlier } else { later };
    }
    let still_there = earlier.address != later.address && is_fresh(now, interval, &earlier);
    if still_there { earlier } else { later }
}
