//! What can be set about the heart.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::Zone;

/// What an operator can set about the heart. Durations are milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// This node's zone; instances registered here are in it unless they say otherwise.
    pub zone: Zone,
    /// How often a repair exchange with a random peer begins. 100 to 60,000; default 1,000.
    pub repair_interval_ms: u64,
    /// How far ahead of this node's clock a stamp may be before its record is refused. Default 5,000.
    pub max_clock_skew_ms: u64,
    /// How long a tombstone is kept; a node cut off for longer may bring back what was deleted meanwhile.
    /// Default 86,400,000 (one day).
    pub tombstone_horizon_ms: u64,
    /// The most instances owned by this node. Default 100,000.
    pub max_own_instances: usize,
    /// The most configuration documents in the mesh, counting recently deleted ones. Default 100,000.
    pub max_configs: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            zone: Zone::default(),
            repair_interval_ms: 1_000,
            max_clock_skew_ms: 5_000,
            tombstone_horizon_ms: 86_400_000,
            max_own_instances: 100_000,
            max_configs: 100_000,
        }
    }
}

impl Settings {
    /// The repair interval as a duration.
    pub fn repair_interval(&self) -> Duration {
        Duration::from_millis(self.repair_interval_ms)
    }
}
