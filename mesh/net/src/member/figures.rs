//! What membership shows of itself.

use std::sync::{Mutex, PoisonError};

use starling_core::observe::Exposition;

use super::roster::Tally;

/// Written by the keeper, read by whoever collects metrics.
#[derive(Debug, Default)]
pub(crate) struct Figures(Mutex<Snapshot>);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Snapshot {
    pub(super) tally: Tally,
    /// Names used by two living nodes, as seen from here.
    pub(super) name_conflicts: usize,
    /// Whether this node stays out because its cell is full.
    pub(super) refused: bool,
    /// How often chitchat had to be started again.
    pub(super) restarts: u64,
}

impl Figures {
    pub(super) fn set(&self, snapshot: Snapshot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    pub(crate) fn collect(&self, out: &mut Exposition) {
        let Snapshot { tally, name_conflicts, refused, restarts } =
            *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, value) in [
            ("starling_member_suspicions_total", "Peers this node told others are silent.", tally.suspicions),
            ("starling_member_objections_total", "Times this node was called silent, and objected.", tally.objections),
            ("starling_member_lost_total", "Peers found lost.", tally.lost),
            ("starling_member_damped_total", "Returns made to wait: the peer comes and goes.", tally.damped),
            ("starling_member_words_refused_total", "Words about links not taken: too many.", tally.words_refused),
            ("starling_member_gossip_restarts_total", "Times gossip stopped by itself.", restarts),
        ] {
            out.single(name, "counter", help, value as f64);
        }
        let conflicts = "Names used by two living nodes at once.";
        out.single("starling_member_name_conflicts", "gauge", conflicts, name_conflicts as f64);
        let help = "1 when this node stays out of its cell because that is full.";
        out.single("starling_member_refused", "gauge", help, f64::from(u8::from(refused)));
    }
}
