//! Shedding by criticality when calls queue for too long, in the way of WeChat's DAGOR (Zhou et al., SoCC 2018).
//!
//! **What is measured** is queueing and nothing else: how long calls wait for a place in the `[bulkhead]` and the
//! `[concurrency]` behind this guard, from when they ask for it until they have it, give up, or go away. DAGOR measures the same
//! (from a request's arrival to when work on it begins), and so does CoDel (the time in the queue, not its length).
//! How long the *answer* takes is no part of it: a service that takes half a second for each of its few calls is slow and
//! healthy, one whose calls wait half a second for their turn is not. DAGOR says why: response time grows with every service
//! behind, so who goes by it refuses for somebody else's slowness. CoDel takes the shortest wait of an interval, so that a
//! burst is not taken for a standing queue; this guard, as DAGOR, the mean of a second.
//!
//! A queue with no room makes nobody wait: there, the share of calls that found it full is the measure (of a system without a
//! queue, what is lost is all there is to measure; Erlang). Without a bulkhead and without a limit of concurrency there
//! is no queue here at all: nothing is measured and nobody is shed, of which `policy check` warns.
//!
//! **When there is overload**: in a window of a second or 2,000 measured calls, the mean wait was 20 ms or more, or 5 % found
//! everything full. A window of fewer than [`MIN_CALLS`] measured calls is none: whoever is called less shall lengthen it.
//!
//! **Who is shed**: every request has one of 128 *levels*, four classes of criticality with 32 levels of users each. Those below
//! the *cursor* are let through. After a window with overload the cursor moves down so that 5 % fewer of the window's
//! requests would have been let through, after one without it moves up by 1 % of all. Counts per level make that exact where
//! DAGOR's own searching of levels one by one would take long. Bounds on a step: at most [`MAX_STEP`] levels, a quarter of
//! a class, for what a window did not see may come in the next (classes of which nobody came are passed over); no more than
//! the 5 %, but for one level; and the most important level that came is always let through: who lets nobody through
//! never learns that it could.
//!
//! A user's level is a hash of the user and the hour, so one user's requests are all let through or all refused, for an
//! hour at most; never of the session, or people would log in again and again until they are lucky. With an unknown
//! user a request's level is drawn at random.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Criticality;
use super::refusal::{Guard, Invalid, Refusal, all_within};
use crate::time::{Instant, WallTime};

/// Levels of users within a class (DAGOR has 128; 32 move at most 3 % of a class at once).
pub const USER_LEVELS: u32 = 32;
const LEVELS: u32 = 4 * USER_LEVELS;
/// How long a user keeps its level (DAGOR).
const RESHUFFLED_EVERY_MS: u64 = 3_600_000;
/// By how many levels the cursor moves at most after a window, classes of which nobody came not counted.
pub const MAX_STEP: u32 = USER_LEVELS / 4;
/// A window of fewer measured calls says nothing: one that waited would make a mean.
pub const MIN_CALLS: u32 = 10;

/// When requests are shed, and which first. Durations are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShedSettings {
    /// Mean time in the queue from which on there is overload. 1 to 60,000; default 20 (DAGOR).
    pub target_ms: u64,
    /// Calls that found everything full, queue included, from which on there is overload, in percent of those that
    /// asked for a place. 1 to 100; default 5.
    pub full_percent: u32,
    /// A window's length. 10 to 60,000; default 1,000 (DAGOR).
    pub window_ms: u64,
    /// Measured calls after which a window ends early. 10 to 1,000,000; default 2,000 (DAGOR).
    pub window_calls: u32,
    /// By how much fewer requests are let through after a window with overload, in percent. 1 to 90; default 5 (DAGOR).
    pub decrease_percent: u32,
    /// By how much more after one without, in percent of all that came. 1 to 50; default 1 (DAGOR).
    pub increase_percent: u32,
}

impl Default for ShedSettings {
    fn default() -> Self {
        Self {
            target_ms: 20,
            full_percent: 5,
            window_ms: 1_000,
            window_calls: 2_000,
            decrease_percent: 5,
            increase_percent: 1,
        }
    }
}

impl ShedSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        all_within([
            ("target_ms", self.target_ms, 1..=60_000),
            ("full_percent", self.full_percent.into(), 1..=100),
            ("window_ms", self.window_ms, 10..=60_000),
            ("window_calls", self.window_calls.into(), u64::from(MIN_CALLS)..=1_000_000),
            ("decrease_percent", self.decrease_percent.into(), 1..=90),
            ("increase_percent", self.increase_percent.into(), 1..=50),
        ])
    }
}

/// Where a request stands among all: lower is let through longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u32);

impl Level {
    /// The level of this user's requests of a class, in this hour.
    pub fn of(class: Criticality, user: &[u8], wall: WallTime) -> Self {
        Self::drawn(class, xxh3_64_with_seed(user, wall.0 / RESHUFFLED_EVERY_MS))
    }

    /// The level of a request of nobody in particular.
    pub fn drawn(class: Criticality, random: u64) -> Self {
        Self(class as u32 * USER_LEVELS + (random % u64::from(USER_LEVELS)) as u32)
    }
}

/// The guard.
#[derive(Debug)]
pub struct Shed {
    settings: ShedSettings,
    /// Levels below it are let through.
    cursor: AtomicU32,
    /// What came in this window, by level.
    came: [AtomicU32; LEVELS as usize],
    waited_us: AtomicU64,
    /// Calls measured in this window, and those among them that found everything full.
    calls: AtomicU32,
    full: AtomicU32,
    ends_us: AtomicU64,
    /// Held by whoever ends a window: two that did it at once would each take a part of what came for all of it.
    ending: Mutex<()>,
    last_mean_us: AtomicU64,
    last_full_percent: AtomicU32,
    overloads: AtomicU64,
    refused: [AtomicU64; 4],
}

/// All that can be shown of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ShedSnapshot {
    /// The share of levels let through, in percent, for each class, the most critical first.
    pub admitted_percent: [u32; 4],
    /// Mean time in the queue in the last window, in microseconds.
    pub waited_us: u64,
    /// Calls that found everything full in the last window, in percent.
    pub full_percent: u32,
    /// Windows with overload.
    pub overloads: u64,
    /// Requests refused, by class.
    pub refused: [u64; 4],
}

impl Shed {
    /// One that lets everything through.
    pub fn new(settings: &ShedSettings) -> Self {
        Self {
            settings: *settings,
            cursor: AtomicU32::new(LEVELS),
            came: std::array::from_fn(|_| AtomicU32::new(0)),
            waited_us: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            full: AtomicU32::new(0),
            ends_us: AtomicU64::new(0),
            ending: Mutex::new(()),
            last_mean_us: AtomicU64::new(0),
            last_full_percent: AtomicU32::new(0),
            overloads: AtomicU64::new(0),
            refused: Default::default(),
        }
    }

    /// Admits a request or sheds it.
    ///
    /// # Errors
    /// A refusal; the next window may let it through.
    pub fn admit(&self, now: Instant, level: Level) -> Result<(), Refusal> {
        let Level(level) = level;
        self.came[level as usize].fetch_add(1, Relaxed);
        if self.is_over(now) {
            self.end_window(now);
        }
        if level < self.cursor.load(Relaxed) {
            return Ok(());
        }
        self.refused[(level / USER_LEVELS) as usize].fetch_add(1, Relaxed);
        Err(Refusal::until(
            Guard::Shed,
            "less critical than there is room for",
            Duration::from_millis(self.settings.window_ms),
        ))
    }

    /// A call waited so long for a place, whether it got one, gave up or went away.
    pub fn waited(&self, waited: Duration) {
        self.waited_us.fetch_add(waited.as_micros() as u64, Relaxed);
        self.calls.fetch_add(1, Relaxed);
    }

    /// A call found neither a place nor room to wait for one.
    pub fn found_full(&self) {
        self.full.fetch_add(1, Relaxed);
        self.calls.fetch_add(1, Relaxed);
    }

    /// What it is doing; takes nothing.
    pub fn snapshot(&self) -> ShedSnapshot {
        let cursor = self.cursor.load(Relaxed);
        let admitted =
            |class: usize| cursor.saturating_sub(class as u32 * USER_LEVELS).min(USER_LEVELS) * 100 / USER_LEVELS;
        ShedSnapshot {
            admitted_percent: std::array::from_fn(admitted),
            waited_us: self.last_mean_us.load(Relaxed),
            full_percent: self.last_full_percent.load(Relaxed),
            overloads: self.overloads.load(Relaxed),
            refused: std::array::from_fn(|class| self.refused[class].load(Relaxed)),
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.0 >= self.ends_us.load(Relaxed) || self.calls.load(Relaxed) >= self.settings.window_calls
    }

    /// Ends the window and moves the cursor; of several callers, one does, and the others go on as before.
    fn end_window(&self, now: Instant) {
        let Ok(_ending) = self.ending.try_lock() else { return };
        if !self.is_over(now) {
            return;
        }
        self.ends_us.store(now.0 + self.settings.window_ms * 1_000, Relaxed);
        let calls = self.calls.swap(0, Relaxed);
        let full = self.full.swap(0, Relaxed).min(calls);
        // Of those that could wait: whoever found everything full has waited for nothing.
        let mean_us = self.waited_us.swap(0, Relaxed) / u64::from((calls - full).max(1));
        let full_percent = (u64::from(full) * 100 / u64::from(calls.max(1))) as u32;
        self.last_mean_us.store(mean_us, Relaxed);
        self.last_full_percent.store(full_percent, Relaxed);
        let came: Came = std::array::from_fn(|level| self.came[level].swap(0, Relaxed).into());
        let is_overloaded = calls >= MIN_CALLS
            && (mean_us >= self.settings.target_ms * 1_000 || full_percent >= self.settings.full_percent);
        let cursor = self.cursor.load(Relaxed);
        if is_overloaded {
            self.overloads.fetch_add(1, Relaxed);
            self.cursor.store(lowered(cursor, &came, self.settings.decrease_percent), Relaxed);
        } else if cursor < LEVELS {
            self.cursor.store(raised(cursor, &came, self.settings.increase_percent), Relaxed);
        }
    }
}

/// What came in a window, by level.
type Came = [u64; LEVELS as usize];

/// Whether none came of the class this level is of.
fn is_class_empty(came: &Came, level: u32) -> bool {
    let first = level / USER_LEVELS * USER_LEVELS;
    came[first as usize..(first + USER_LEVELS) as usize].iter().all(|count| *count == 0)
}

/// The cursor after overload.
fn lowered(cursor: u32, came: &Came, percent: u32) -> u32 {
    let Some(first) = came.iter().position(|count| *count > 0) else { return cursor };
    let lowest = first as u32 + 1;
    let wanted = came[..cursor as usize].iter().sum::<u64>() * u64::from(percent) / 100;
    let (mut at, mut levels, mut fewer) = (cursor.max(lowest), 0, 0);
    while at > lowest {
        if is_class_empty(came, at - 1) {
            at = (at - 1) / USER_LEVELS * USER_LEVELS;
            continue;
        }
        let more = came[at as usize - 1];
        // A level that is more than is wanted goes alone.
        if levels == MAX_STEP || (fewer > 0 && fewer + more > wanted) {
            break;
        }
        (at, levels, fewer) = (at - 1, levels + 1, fewer + more);
        if fewer > 0 && fewer >= wanted {
            break;
        }
    }
    at
}

/// The cursor after a window without overload.
fn raised(cursor: u32, came: &Came, percent: u32) -> u32 {
    let wanted = (came.iter().sum::<u64>() * u64::from(percent) / 100).max(1);
    let (mut at, mut levels, mut more) = (cursor, 0, 0);
    while at < LEVELS && levels < MAX_STEP && more < wanted {
        if is_class_empty(came, at) {
            at = (at / USER_LEVELS + 1) * USER_LEVELS;
            continue;
        }
        (at, levels, more) = (at + 1, levels + 1, more + came[at as usize]);
    }
    at
}

#[cfg(test)]
mod tests;
