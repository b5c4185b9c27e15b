//! What the disk has done and how it is; written by its thread, read by metrics and by whoever asks how the node is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use starling_core::observe::Exposition;
use starling_core::time::WallTime;

/// Figures of one disk.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Entries written.
    pub(crate) entries: AtomicU64,
    /// Syncs; fewer than entries when the writers are many.
    pub(crate) syncs: AtomicU64,
    /// Commits that failed.
    pub(crate) failures: AtomicU64,
    /// Rewrites of the log.
    pub(crate) compactions: AtomicU64,
    /// The log's length now.
    pub(crate) log_bytes: AtomicU64,
    /// How much of it still says something.
    pub(crate) live_bytes: AtomicU64,
    /// The longest commit so far, in microseconds.
    pub(crate) longest_commit_us: AtomicU64,
    /// Damages found in the log at the start.
    pub(crate) damages: AtomicU64,
    /// Commands refused because the disk takes no writes.
    pub(crate) refused: AtomicU64,
    /// Changes that wait in memory because the disk takes no writes.
    pub(crate) unsaved: AtomicU64,
    is_failing: AtomicBool,
    failing: Mutex<Option<Failing>>,
}

/// A disk that takes no writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failing {
    /// Since when.
    pub(crate) since: WallTime,
    /// What the operating system says, and what to do.
    pub(crate) reason: String,
}

impl Figures {
    /// Why it takes no writes, if it does not. Costs next to nothing while it does.
    pub(crate) fn failing(&self) -> Option<Failing> {
        if !self.is_failing.load(Relaxed) {
            return None;
        }
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that it takes no writes, and since when if that is new.
    pub(crate) fn fails(&self, reason: &str, now: WallTime) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let since = failing.as_ref().map_or(now, |before| before.since);
        *failing = Some(Failing { since, reason: reason.to_owned() });
        self.is_failing.store(true, Relaxed);
    }

    /// Notes that it takes writes.
    pub(crate) fn works(&self) {
        self.is_failing.store(false, Relaxed);
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Writes them.
    pub(crate) fn collect(&self, out: &mut Exposition) {
        let mut single = |name: &str, kind: &str, help: &str, figure: &AtomicU64, scale: f64| {
            out.single(name, kind, help, figure.load(Relaxed) as f64 / scale);
        };
        single("starling_disk_entries_total", "counter", "Entries written to the log.", &self.entries, 1.0);
        single("starling_disk_syncs_total", "counter", "Syncs of the log.", &self.syncs, 1.0);
        single("starling_disk_failures_total", "counter", "Writes of the log that failed.", &self.failures, 1.0);
        single("starling_disk_compactions_total", "counter", "Rewrites of the log.", &self.compactions, 1.0);
        single("starling_disk_log_bytes", "gauge", "Length of the log.", &self.log_bytes, 1.0);
        single("starling_disk_live_bytes", "gauge", "How much of the log still counts.", &self.live_bytes, 1.0);
        let longest = "The longest write with its sync so far.";
        single("starling_disk_longest_commit_seconds", "gauge", longest, &self.longest_commit_us, 1e6);
        single("starling_disk_damages", "gauge", "Damages found in the log at the start.", &self.damages, 1.0);
        let refused = "Commands refused because the data directory takes no writes.";
        single("starling_disk_refused_total", "counter", refused, &self.refused, 1.0);
        let unsaved = "Changes kept in memory because the data directory takes no writes.";
        single("starling_disk_unsaved_changes", "gauge", unsaved, &self.unsaved, 1.0);
        let failing = f64::from(self.is_failing.load(Relaxed));
        out.single("starling_disk_failing", "gauge", "1 while the data directory takes no writes.", failing);
    }
}
