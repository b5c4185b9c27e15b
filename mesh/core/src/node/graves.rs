//! From tombstone to grave to nothing: what is done with what is gone.

use super::message::Refused;
use super::{AT_ONCE, COLLECT_INTERVAL, COLLECT_PAUSE, Node, Output};
use crate::graveyard::Offered;
use crate::record::{Key, Record};
use crate::time::{HybridTime, Now, WallTime};

/// What a peer's record was to this node.
#[derive(Debug)]
pub(super) enum Merged {
    /// It changed the store.
    News,
    /// It was known.
    Known,
    /// It is dead, and this is what killed it.
    Dead(Record),
}

impl Node {
    /// Merges a peer's record that can be believed with what is known of it, be it dead.
    pub(super) fn merge_with_graves(
        &mut self,
        record: Record,
        now: Now,
        out: &mut Vec<Output>,
    ) -> Result<Merged, Refused> {
        let is_tombstone = record.cell.is_tombstone();
        match self.graveyard.judge(record)? {
            Offered::Dead(_) if is_tombstone => Ok(Merged::Known),
            Offered::Dead(tombstone) => Ok(Merged::Dead(tombstone)),
            Offered::Alive(tombstone) if self.is_old(&tombstone, now) && self.store.get(&tombstone.key).is_none() => {
                // A peer collects it later than this node; nobody needs it any more but for its grave.
                tombstone.validate()?;
                self.graveyard.bury(tombstone, false);
                Ok(Merged::Known)
            }
            Offered::Alive(record) => {
                let changed = self.absorb(record, now, out)?;
                Ok(if changed { Merged::News } else { Merged::Known })
            }
        }
    }

    /// Buries tombstones nobody needs for replication any more, and levels old graves.
    pub(super) fn collect(&mut self, now: Now, out: &mut Vec<Output>) {
        let buried = self.bury_old(now, out);
        let levelled = self.graveyard.level(self.before(now.wall, self.settings.grave_ms), AT_ONCE);
        self.counters.graves_dropped += levelled.too_many as u64;
        out.extend(levelled.off_disk.into_iter().map(Output::Forget));
        let more = buried == AT_ONCE || levelled.graves == AT_ONCE;
        self.collect_due = now.elapsed + if more { COLLECT_PAUSE } else { COLLECT_INTERVAL };
    }

    /// Moves tombstones older than the horizon from the store to the graveyard, and tells how many.
    pub(super) fn bury_old(&mut self, now: Now, out: &mut Vec<Output>) -> usize {
        let collected = self.store.collect(self.before(now.wall, self.settings.tombstone_horizon_ms), AT_ONCE);
        let count = collected.len();
        self.counters.buried += count as u64;
        for tombstone in collected {
            self.show(&tombstone.key, now);
            let on_disk = match &tombstone.key {
                Key::Override(_) | Key::Config(_) => true,
                Key::Node(_) => false,
                Key::Instance(_) => tombstone.cell.latest().is_some_and(|stamp| stamp.node == self.me),
            };
            if !on_disk {
                out.push(Output::Forget(tombstone.key.clone()));
            }
            self.graveyard.bury(tombstone, on_disk);
        }
        count
    }

    /// Whether it is a tombstone past the horizon.
    pub(super) fn is_old(&self, tombstone: &Record, now: Now) -> bool {
        let horizon = self.before(now.wall, self.settings.tombstone_horizon_ms);
        tombstone.cell.is_tombstone() && tombstone.cell.latest().is_some_and(|stamp| stamp.time < horizon)
    }

    /// This long ago.
    pub(super) fn before(&self, wall: WallTime, ms: u64) -> HybridTime {
        HybridTime::from_wall(WallTime(wall.0.saturating_sub(ms)))
    }
}
