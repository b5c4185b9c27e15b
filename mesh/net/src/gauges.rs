//! What the loop shows of itself: counts and times, written by it and read by whoever collects metrics.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use starling_core::node::Counters;
use starling_core::observe::Exposition;

/// Upper bounds of the buckets of handling times, in microseconds.
const BUCKETS_US: [u64; 9] = [10, 30, 100, 300, 1_000, 3_000, 10_000, 100_000, 1_000_000];

/// The kinds of input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum InputKind {
    Command,
    Message,
    Event,
    Probe,
    Usage,
    Tick,
}

const KINDS: [(InputKind, &str); 6] = [
    (InputKind::Command, "command"),
    (InputKind::Message, "message"),
    (InputKind::Event, "event"),
    (InputKind::Probe, "probe"),
    (InputKind::Usage, "usage"),
    (InputKind::Tick, "tick"),
];

/// Figures of one loop.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    inputs: [AtomicU64; KINDS.len()],
    /// One more than there are bounds: the last is for all that is longer.
    handled: [AtomicU64; BUCKETS_US.len() + 1],
    handled_us: AtomicU64,
    longest_us: AtomicU64,
    batches: AtomicU64,
    queued: [AtomicUsize; 3],
    counters: Mutex<Counters>,
}

impl Gauges {
    /// One input was handled in this time.
    pub(crate) fn handled(&self, kind: InputKind, took: Duration) {
        let us = took.as_micros() as u64;
        self.inputs[kind as usize].fetch_add(1, Relaxed);
        self.handled[BUCKETS_US.partition_point(|bound| *bound < us)].fetch_add(1, Relaxed);
        self.handled_us.fetch_add(us, Relaxed);
        self.longest_us.fetch_max(us, Relaxed);
    }

    /// A batch is over; this is what the heart has counted, and what still waits.
    pub(crate) fn batch(&self, counters: Counters, messages: usize, events: usize, probes: usize) {
        self.batches.fetch_add(1, Relaxed);
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
        for (gauge, queued) in self.queued.iter().zip([messages, events, probes]) {
            gauge.store(queued, Relaxed);
        }
    }

    /// What the heart has counted.
    pub(crate) fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all but the heart's own counters.
    pub(crate) fn collect(&self, commands_queued: usize, out: &mut Exposition) {
        out.family("starling_loop_inputs_total", "counter", "Inputs the heart has handled, by kind.");
        for (kind, name) in KINDS {
            let count = self.inputs[kind as usize].load(Relaxed);
            out.sample("starling_loop_inputs_total", &[("kind", name)], count as f64);
        }
        out.family("starling_loop_handle_seconds", "histogram", "Time the heart took for one input.");
        let mut count = 0;
        for (i, bucket) in self.handled.iter().enumerate() {
            count += bucket.load(Relaxed);
            let bound = BUCKETS_US.get(i).map_or("+Inf".into(), |us| (*us as f64 / 1e6).to_string());
            out.sample("starling_loop_handle_seconds_bucket", &[("le", &bound)], count as f64);
        }
        out.sample("starling_loop_handle_seconds_sum", &[], self.handled_us.load(Relaxed) as f64 / 1e6);
        out.sample("starling_loop_handle_seconds_count", &[], count as f64);
        let longest = self.longest_us.load(Relaxed) as f64 / 1e6;
        out.single("starling_loop_handle_longest_seconds", "gauge", "The longest time for one input so far.", longest);
        let batches = self.batches.load(Relaxed) as f64;
        out.single("starling_loop_batches_total", "counter", "Batches of inputs, each published once.", batches);
        out.family("starling_loop_queue_depth", "gauge", "Inputs waiting, by kind.");
        out.sample("starling_loop_queue_depth", &[("kind", "command")], commands_queued as f64);
        for (gauge, name) in self.queued.iter().zip(["message", "event", "probe"]) {
            out.sample("starling_loop_queue_depth", &[("kind", name)], gauge.load(Relaxed) as f64);
        }
    }
}
