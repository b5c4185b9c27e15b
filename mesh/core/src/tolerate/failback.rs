//! Requests that could not be delivered and are to be sent later: what a policy says of them, and the lines they wait in.
//!
//! A line for each service, in the order in which its requests were taken; only the first of a line is ever tried, and no
//! second one while it is. What waits is counted before it is kept, so that every bound holds while disks are slow.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::ServiceKey;
use crate::ranges::within;
use crate::time::{Instant, WallTime};

/// The most bytes that wait on one node, of all services together: all of it is in memory too.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// The most lines that are remembered; beyond, empty ones and their counts are forgotten.
const MAX_LINES: usize = 1_000;
/// How long an attempt is put off that was not made, for want of budget.
const PUT_OFF: Duration = Duration::from_millis(100);
/// The longest error that is remembered, in characters.
const MAX_ERROR: usize = 300;

/// Which requests wait, how many, and how long. `[tolerate.failback]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailbackSettings {
    /// Whether an answer of 500 and above is a failure, too; default true. With false only what got no answer waits.
    pub errors: bool,
    /// Whether what a guard of the policy refuses (but for the circuit, whose refusals are failures, and the lists of
    /// callers) waits, too; default false.
    pub refused: bool,
    /// The largest body that waits, in bytes; it must say its length first. 0 to 1,048,576; default 65,536.
    pub max_body_bytes: u64,
    /// The most requests of the service that wait at one node. 1 to 100,000; default 1,000.
    pub max_entries: u64,
    /// The most bytes they have there. 1,024 to 67,108,864; default 16,777,216.
    pub max_bytes: u64,
    /// How long a request waits at most before it is given up, in milliseconds, by the wall clock and over restarts.
    /// 1,000 to 604,800,000 (a week); default 3,600,000 (an hour).
    pub expire_ms: u64,
    /// How many attempts of a request may fail in the line that reached an instance, before it is given up for those behind
    /// it. Counted since the node's start. 1 to 1,000; default 10.
    pub max_attempts: u32,
    /// The wait before the second attempt in the line, doubled after each one that fails; the half of each wait is random. In
    /// milliseconds, 10 to 60,000; default 1,000.
    pub first_wait_ms: u64,
    /// The longest such wait, in milliseconds. 10 to 3,600,000; default 60,000.
    pub max_wait_ms: u64,
}

impl Default for FailbackSettings {
    fn default() -> Self {
        Self {
            errors: true,
            refused: false,
            max_body_bytes: 65_536,
            max_entries: 1_000,
            max_bytes: 16 << 20,
            expire_ms: 3_600_000,
            max_attempts: 10,
            first_wait_ms: 1_000,
            max_wait_ms: 60_000,
        }
    }
}

impl FailbackSettings {
    /// What is out of its range, if anything.
    ///
    /// # Errors
    /// A sentence for the operator: the field, its value, its range.
    pub fn check(&self) -> Result<(), String> {
        within(&[
            ("failback.max_body_bytes", self.max_body_bytes, 0, 1 << 20),
            ("failback.max_entries", self.max_entries, 1, 100_000),
            ("failback.max_bytes", self.max_bytes, 1_024, MAX_BYTES),
            ("failback.expire_ms", self.expire_ms, 1_000, 7 * 24 * 3_600_000),
            ("failback.max_attempts", u64::from(self.max_attempts), 1, 1_000),
            ("failback.first_wait_ms", self.first_wait_ms, 10, 60_000),
            ("failback.max_wait_ms", self.max_wait_ms, 10, 3_600_000),
        ])
    }

    /// How long to wait after so many failures in a row: doubling, with a random half (as Polly's and AWS' "equal jitter").
    fn wait(&self, failures: u32, random: u64) -> Duration {
        let doubled = self.first_wait_ms.saturating_mul(1 << failures.saturating_sub(1).min(30));
        let most_us = doubled.min(self.max_wait_ms.max(self.first_wait_ms)) * 1_000;
        Duration::from_micros(most_us / 2 + random % (most_us / 2 + 1))
    }
}

/// What has become of a service's requests since the node's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct FailbackCounts {
    /// Taken, to be sent later.
    pub queued: u64,
    /// Answered later, and well enough.
    pub delivered: u64,
    /// Waited too long.
    pub expired: u64,
    /// Failed too often.
    pub given_up: u64,
    /// Not taken, for a bound or a disk.
    pub refused: u64,
    /// Taken out of the line by a person.
    pub dropped: u64,
}

/// A request that waits.
#[derive(Debug, Clone)]
pub struct Waiting<T> {
    /// The request.
    pub parcel: T,
    /// What it counts for.
    pub bytes: u64,
    /// When it was taken.
    pub queued: WallTime,
    /// When it is given up.
    pub expires: WallTime,
}

/// One service's line.
#[derive(Debug)]
struct Line<T> {
    waiting: BTreeMap<u64, Waiting<T>>,
    /// Of those that wait and those that are about to.
    entries: u64,
    bytes: u64,
    /// Attempts in a row that failed, of whichever request: the next wait follows from it.
    failures: u32,
    /// Attempts of the first one that reached an instance.
    attempts: u32,
    due: Instant,
    /// Which one is being tried.
    trying: Option<u64>,
    last_error: String,
    counts: FailbackCounts,
}

/// What a line shows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LineSnapshot {
    /// How many requests wait.
    pub waiting: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the first one has waited, in milliseconds.
    pub oldest_ms: u64,
    /// How long until it is tried, in milliseconds; 0 while it is.
    pub next_try_in_ms: u64,
    /// Attempts in a row that failed.
    pub failures: u32,
    /// Why the last one did.
    pub last_error: String,
    /// What has become of its requests.
    #[serde(flatten)]
    pub counts: FailbackCounts,
}

/// How an attempt failed.
#[derive(Debug)]
pub struct Failed {
    /// In words.
    pub why: String,
    /// Whether it reached an instance, or would never.
    pub counts: bool,
}

/// All lines of a node.
#[derive(Debug)]
pub struct Backlog<T> {
    lines: BTreeMap<ServiceKey, Line<T>>,
    bytes: u64,
    last_id: u64,
}

impl<T> Default for Backlog<T> {
    fn default() -> Self {
        Self { lines: BTreeMap::new(), bytes: 0, last_id: 0 }
    }
}

impl<T: Clone> Backlog<T> {
    fn line(&mut self, service: &ServiceKey) -> &mut Line<T> {
        if self.lines.len() >= MAX_LINES && !self.lines.contains_key(service) {
            self.lines.retain(|_, line| line.entries > 0);
        }
        self.lines.entry(service.clone()).or_insert_with(|| Line {
            waiting: BTreeMap::new(),
            entries: 0,
            bytes: 0,
            failures: 0,
            attempts: 0,
            due: Instant(0),
            trying: None,
            last_error: String::new(),
            counts: FailbackCounts::default(),
        })
    }

    /// Makes room for a request of so many bytes; its number is greater than any before, also those of earlier starts.
    ///
    /// # Errors
    /// Which bound is reached.
    pub fn reserve(
        &mut self,
        service: &ServiceKey,
        bytes: u64,
        settings: &FailbackSettings,
        wall_us: u64,
    ) -> Result<u64, String> {
        let all = self.bytes;
        let line = self.line(service);
        let full = if line.entries >= settings.max_entries {
            Some(format!("{} requests of this service wait here already", line.entries))
        } else if line.bytes + bytes > settings.max_bytes {
            Some(format!("{} bytes of this service wait here already", line.bytes))
        } else if all + bytes > MAX_BYTES {
            Some(format!("{all} bytes wait here already, of all services"))
        } else {
            None
        };
        if let Some(why) = full {
            line.counts.refused += 1;
            return Err(why);
        }
        (line.entries, line.bytes) = (line.entries + 1, line.bytes + bytes);
        self.bytes += bytes;
        self.last_id = wall_us.max(self.last_id + 1);
        Ok(self.last_id)
    }

    /// What was reserved is not to wait after all.
    pub fn release(&mut self, service: &ServiceKey, bytes: u64) {
        self.line(service).counts.refused += 1;
        self.forget(service, bytes);
    }

    fn forget(&mut self, service: &ServiceKey, bytes: u64) {
        let line = self.line(service);
        (line.entries, line.bytes) = (line.entries.saturating_sub(1), line.bytes.saturating_sub(bytes));
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// What was reserved is kept, and waits. It has just failed, so an empty line rests for the first wait.
    pub fn add(
        &mut self,
        service: &ServiceKey,
        id: u64,
        waiting: Waiting<T>,
        settings: &FailbackSettings,
        now: Instant,
        random: u64,
    ) {
        let line = self.line(service);
        line.counts.queued += 1;
        if line.waiting.is_empty() && line.trying.is_none() {
            (line.failures, line.attempts) = (1, 0);
            line.due = now + settings.wait(1, random);
        }
        line.waiting.insert(id, waiting);
    }

    /// What an earlier start has left. It may be tried at once.
    pub fn restore(&mut self, service: &ServiceKey, id: u64, waiting: Waiting<T>) {
        let bytes = waiting.bytes;
        let line = self.line(service);
        (line.entries, line.bytes) = (line.entries + 1, line.bytes + bytes);
        line.waiting.insert(id, waiting);
        self.bytes += bytes;
        self.last_id = self.last_id.max(id);
    }

    /// Takes out what has waited too long: whose it is, and its number.
    pub fn expire(&mut self, wall: WallTime) -> Vec<(ServiceKey, u64)> {
        let mut gone = Vec::new();
        for (service, line) in &self.lines {
            // One that is being tried may yet be delivered.
            let over = |(id, waiting): (&u64, &Waiting<T>)| waiting.expires <= wall && line.trying != Some(*id);
            let ids = line.waiting.iter().filter(|entry| over(*entry)).map(|(id, _)| *id);
            gone.extend(ids.map(|id| (service.clone(), id)));
        }
        for (service, id) in &gone {
            self.take(service, *id);
            self.line(service).counts.expired += 1;
        }
        gone
    }

    fn take(&mut self, service: &ServiceKey, id: u64) -> Option<Waiting<T>> {
        let line = self.lines.get_mut(service)?;
        if line.waiting.first_key_value().is_some_and(|(first, _)| *first == id) {
            line.attempts = 0;
        }
        let taken = line.waiting.remove(&id)?;
        self.forget(service, taken.bytes);
        Some(taken)
    }

    /// The next request to be tried, if one is due; no other one of its line is until this one's end is told.
    pub fn begin(&mut self, now: Instant) -> Option<(ServiceKey, u64, T)> {
        let due = |line: &Line<T>| line.trying.is_none() && line.due <= now && !line.waiting.is_empty();
        // Whoever has been due the longest, so that no line waits for another's.
        let (service, line) = self.lines.iter_mut().filter(|(_, line)| due(line)).min_by_key(|(_, line)| line.due)?;
        let (id, waiting) = line.waiting.first_key_value()?;
        line.trying = Some(*id);
        Some((service.clone(), *id, waiting.parcel.clone()))
    }

    /// When [`Self::begin`] or [`Self::expire`] has something to do next, if nothing happens meanwhile.
    pub fn next(&self, now: Instant, wall: WallTime) -> Option<Instant> {
        let idle = self.lines.values().filter(|line| line.trying.is_none());
        idle.filter_map(|line| {
            let expires = line.waiting.values().map(|waiting| waiting.expires).min()?;
            Some(line.due.min(now + Duration::from_millis(expires.0.saturating_sub(wall.0))))
        })
        .min()
    }

    /// It was answered. Whether it was still in its line.
    pub fn delivered(&mut self, service: &ServiceKey, id: u64, now: Instant) -> bool {
        let was_there = self.take(service, id).is_some();
        let line = self.line(service);
        (line.trying, line.failures, line.due) = (None, 0, now);
        line.last_error.clear();
        line.counts.delivered += 1;
        was_there
    }

    /// An attempt was put off: nothing was sent, and nothing learnt.
    pub fn put_off(&mut self, service: &ServiceKey, now: Instant) {
        let line = self.line(service);
        (line.trying, line.due) = (None, now + PUT_OFF);
    }

    /// It was tried in vain. Whether it is given up with that, and to be forgotten.
    pub fn failed(
        &mut self,
        service: &ServiceKey,
        id: u64,
        failed: &Failed,
        settings: &FailbackSettings,
        now: Instant,
        random: u64,
    ) -> bool {
        let line = self.line(service);
        line.trying = None;
        line.failures += 1;
        line.due = now + settings.wait(line.failures, random);
        line.last_error = failed.why.chars().take(MAX_ERROR).collect();
        if !line.waiting.contains_key(&id) {
            return false;
        }
        line.attempts += u32::from(failed.counts);
        if line.attempts < settings.max_attempts {
            return false;
        }
        line.counts.given_up += 1;
        // The next one has not failed yet.
        (line.failures, line.due) = (0, now);
        self.take(service, id).is_some()
    }

    /// Takes one out for a person; whose it was.
    pub fn drop_one(&mut self, id: u64) -> Option<ServiceKey> {
        let holds = |(_, line): &(&ServiceKey, &Line<T>)| line.waiting.contains_key(&id);
        let service = self.lines.iter().find(holds)?.0.clone();
        self.take(&service, id)?;
        self.line(&service).counts.dropped += 1;
        Some(service)
    }

    /// Makes the service's line due, however long it was to rest. How many wait there.
    pub fn hurry(&mut self, service: &ServiceKey, now: Instant) -> u64 {
        let Some(line) = self.lines.get_mut(service) else { return 0 };
        line.due = now;
        line.waiting.len() as u64
    }

    /// How a service's line is, if it has ever had one.
    pub fn snapshot(&self, service: &ServiceKey, now: Instant, wall: WallTime) -> Option<LineSnapshot> {
        let line = self.lines.get(service)?;
        let first = line.waiting.values().next();
        let rests = first.filter(|_| line.trying.is_none()).map_or(0, |_| line.due.since(now).as_millis() as u64);
        Some(LineSnapshot {
            waiting: line.waiting.len() as u64,
            bytes: line.bytes,
            oldest_ms: first.map_or(0, |first| wall.0.saturating_sub(first.queued.0)),
            next_try_in_ms: rests,
            failures: line.failures,
            last_error: line.last_error.clone(),
            counts: line.counts,
        })
    }

    /// All services that have a line.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.lines.keys()
    }

    /// What waits in a service's line, the first first.
    pub fn waiting(&self, service: &ServiceKey) -> impl Iterator<Item = (u64, &Waiting<T>)> {
        self.lines.get(service).into_iter().flat_map(|line| line.waiting.iter().map(|(id, waiting)| (*id, waiting)))
    }
}

#[cfg(test)]
mod tests;
