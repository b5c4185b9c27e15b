//! What can be set about the heart.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::Zone;

/// What an operator can set about the heart. Durations are milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// This node's zone, as its view shows it. (Whoever registers an instance here puts it in this zone or another.)
    pub zone: Zone,
    /// How often a repair exchange with a random peer begins. 100 to 60,000; default 1,000.
    pub repair_interval_ms: u64,
    /// From so many changes a second on, a change travels along a tree: one copy to each node instead of one over each
    /// link, for some milliseconds more. Below half of it, changes flood again. 1 to 1,000,000; default 100, which floods
    /// with less than 50 kB a second at each node.
    pub flood_below_per_second: u32,
    /// How many relays a cell has; the same on all nodes of a mesh. 1 to 8; default 3. Only used where there are
    /// several cells, as the next two are.
    pub relays: usize,
    /// How often a relay begins a repair exchange with one of another cell. 100 to 600,000; default 5,000.
    pub relay_repair_interval_ms: u64,
    /// How long nothing may be heard of another cell before its nodes are held for lost from here. 1,000 to 600,000;
    /// default 6,000. Six times as often cells tell that they are there.
    pub cell_lost_after_ms: u64,
    /// How far ahead of this node's clock a stamp may be before its record is refused. 100 to 5,000 (the disk reckons
    /// with no more when it promises never to use a stamp twice); default 5,000.
    pub max_clock_skew_ms: u64,
    /// How long a tombstone is replicated; then it is buried ([`crate::graveyard`]). 60,000 (a minute) to 31,536,000,000
    /// (a year); default 86,400,000 (one day).
    pub tombstone_horizon_ms: u64,
    /// How long it is known after that what is dead, counted from its death; a node cut off for longer brings back what
    /// was deleted meanwhile. 60,000 (a minute) to 315,360,000,000 (ten years); default 2,592,000,000 (30 days).
    pub grave_ms: u64,
    /// The most graves; the oldest go first. About 100 bytes each; default 200,000.
    pub max_graves: usize,
    /// How long after a node was last there its instances expire: some other node removes them, and it is forgotten. A
    /// node that comes back later claims its instances again. 60,000 (a minute) to 31,536,000,000 (a year); default
    /// 86,400,000 (one day).
    pub ghost_after_ms: u64,
    /// Self-preservation begins when more than this share of a zone's nodes (or of all nodes) vanish within the window, and
    /// at least two: then their instances stay candidates, doubtful. In fewer than ten nodes it takes half of them. 1 to
    /// 100 percent (100: never); default 15.
    pub preserve_share_percent: u32,
    /// Within what time nodes vanish together. 1,000 to 3,600,000 (an hour); default 60,000 (a minute).
    pub preserve_window_ms: u64,
    /// Self-preservation ends after so long without a node vanishing or coming back, and at the latest after six times
    /// that. 10,000 to 86,400,000 (a day); default 600,000 (ten minutes).
    pub preserve_quiet_ms: u64,
    /// The most instances owned by this node. Default 100,000.
    pub max_own_instances: usize,
    /// The most operators' overrides in the mesh, counting recently cleared ones. Default 100,000.
    pub max_overrides: usize,
    /// The most configuration documents in the mesh, counting recently deleted ones. Default 100,000.
    pub max_configs: usize,
    /// The most bytes all configuration documents have together: every node keeps all of them in memory and on disk.
    /// Default 268,435,456 (256 MiB).
    pub max_config_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            zone: Zone::default(),
            repair_interval_ms: 1_000,
            flood_below_per_second: 100,
            relays: crate::cells::RELAYS,
            relay_repair_interval_ms: 5_000,
            cell_lost_after_ms: 6_000,
            max_clock_skew_ms: 5_000,
            tombstone_horizon_ms: 86_400_000,
            grave_ms: 30 * 86_400_000,
            max_graves: 200_000,
            ghost_after_ms: 86_400_000,
            preserve_share_percent: 15,
            preserve_window_ms: 60_000,
            preserve_quiet_ms: 600_000,
            max_own_instances: 100_000,
            max_overrides: 100_000,
            max_configs: 100_000,
            max_config_bytes: 256 * 1024 * 1024,
        }
    }
}

/// Sane repair intervals: below, a mesh does little else; above, what a push lost stays lost for too long.
const REPAIR_INTERVAL_MS: RangeInclusive<u64> = 100..=60_000;

impl Settings {
    /// What is wrong with them, if anything.
    ///
    /// # Errors
    /// A sentence for the person who wrote them, beginning with the key.
    pub fn check(&self) -> Result<(), String> {
        let year_ms = 365 * 86_400_000;
        for (key, value, range) in [
            ("repair_interval_ms", self.repair_interval_ms, REPAIR_INTERVAL_MS),
            ("flood_below_per_second", u64::from(self.flood_below_per_second), 1..=1_000_000),
            ("relays", self.relays as u64, 1..=8),
            ("relay_repair_interval_ms", self.relay_repair_interval_ms, 100..=600_000),
            ("cell_lost_after_ms", self.cell_lost_after_ms, 1_000..=600_000),
            ("max_clock_skew_ms", self.max_clock_skew_ms, 100..=5_000),
            ("tombstone_horizon_ms", self.tombstone_horizon_ms, 60_000..=year_ms),
            ("grave_ms", self.grave_ms, 60_000..=10 * year_ms),
            ("ghost_after_ms", self.ghost_after_ms, 60_000..=year_ms),
            ("preserve_share_percent", self.preserve_share_percent.into(), 1..=100),
            ("preserve_window_ms", self.preserve_window_ms, 1_000..=3_600_000),
            ("preserve_quiet_ms", self.preserve_quiet_ms, 10_000..=86_400_000),
        ] {
            if !range.contains(&value) {
                return Err(format!("{key}: {value} is not within {} and {}", range.start(), range.end()));
            }
        }
        Ok(())
    }

    /// The repair interval as a duration; whatever was set, the heart sleeps between two.
    pub fn repair_interval(&self) -> Duration {
        Duration::from_millis(self.repair_interval_ms.clamp(*REPAIR_INTERVAL_MS.start(), *REPAIR_INTERVAL_MS.end()))
    }
}
