//! Shedding by criticality when calls queue for too long, in the way of WeChat's DAGOR (Zhou et al., SoCC 2018).
//!
//! The signal is the mean time calls wait in a queue, over a window of a second or 2,000 calls; overload begins at
//! 20 ms. (Time in a queue, not the time of calls: a slow callee's callee is no overload here.) Every request has one of
//! 128 *levels*: four classes of criticality with 32 levels of users each. Those below the *cursor* are let through.
//! After a window with overload the cursor moves so that 5 % fewer of the window's requests would have been let
//! through, after one without so that more would have, by 1 % of all. Counts per level make that exact where DAGOR's
//! own searching of levels one by one would take long.
//!
//! A user's level is a hash of the user and the hour, so one user's requests are all let through or all refused, for an
//! hour at most; never of the session, or people would log in again and again until they are lucky. With an unknown
//! user a request's level is drawn at random.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Criticality;
use super::refusal::{Guard, Invalid, Refusal, all_within};
use super::rtt::Shortest;
use crate::time::{Instant, WallTime};

/// Levels of users within a class (DAGOR has 128; 32 move at most 3 % of a class at once).
pub const USER_LEVELS: u32 = 32;
const LEVELS: u32 = 4 * USER_LEVELS;
/// How long a user keeps its level (DAGOR).
const RESHUFFLED_EVERY_MS: u64 = 3_600_000;
/// Of how long the shortest time of calls is what is not waiting.
const SHORTEST_OF: Duration = Duration::from_secs(60);

/// When requests are shed, and which first. Durations are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShedSettings {
    /// Mean time in the queue from which on there is overload. 1 to 60,000; default 20 (DAGOR).
    pub target_ms: u64,
    /// A window's length. 10 to 60,000; default 1,000 (DAGOR).
    pub window_ms: u64,
    /// Calls after which a window ends early. 10 to 1,000,000; default 2,000 (DAGOR).
    pub window_calls: u32,
    /// By how much fewer requests are let through after a window with overload, in percent. 1 to 90; default 5 (DAGOR).
    pub decrease_percent: u32,
    /// By how much more after one without, in percent of all that came. 1 to 50; default 1 (DAGOR).
    pub increase_percent: u32,
}

impl Default for ShedSettings {
    fn default() -> Self {
        Self { target_ms: 20, window_ms: 1_000, window_calls: 2_000, decrease_percent: 5, increase_percent: 1 }
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
            ("window_ms", self.window_ms, 10..=60_000),
            ("window_calls", self.window_calls.into(), 10..=1_000_000),
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
    waits: AtomicU32,
    ends_us: AtomicU64,
    shortest: Shortest,
    last_mean_us: AtomicU64,
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
            waits: AtomicU32::new(0),
            ends_us: AtomicU64::new(0),
            shortest: Shortest::of_the_last(SHORTEST_OF),
            last_mean_us: AtomicU64::new(0),
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
        let ends = self.ends_us.load(Acquire);
        if now.0 >= ends || self.waits.load(Relaxed) >= self.settings.window_calls {
            self.end_window(ends, now);
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

    /// A request waited so long in a queue before it was worked on.
    pub fn waited(&self, waited: Duration) {
        self.waited_us.fetch_add(waited.as_micros() as u64, Relaxed);
        self.waits.fetch_add(1, Relaxed);
    }

    /// A request took so long at a callee whose queue cannot be seen: what is above the shortest of the last minute, it
    /// has waited.
    pub fn took(&self, now: Instant, took: Duration) {
        self.shortest.add(now, took);
        self.waited(took.saturating_sub(self.shortest.shortest(now).unwrap_or(took)));
    }

    /// What it is doing; takes nothing.
    pub fn snapshot(&self) -> ShedSnapshot {
        let cursor = self.cursor.load(Relaxed);
        let admitted =
            |class: usize| cursor.saturating_sub(class as u32 * USER_LEVELS).min(USER_LEVELS) * 100 / USER_LEVELS;
        ShedSnapshot {
            admitted_percent: std::array::from_fn(admitted),
            waited_us: self.last_mean_us.load(Relaxed),
            overloads: self.overloads.load(Relaxed),
            refused: std::array::from_fn(|class| self.refused[class].load(Relaxed)),
        }
    }

    /// Ends the window and moves the cursor; of several callers, one does.
    fn end_window(&self, ends: u64, now: Instant) {
        let next = (now.0 + self.settings.window_ms * 1_000).max(ends + 1);
        if self.ends_us.compare_exchange(ends, next, AcqRel, Acquire).is_err() {
            return;
        }
        let waits = self.waits.swap(0, Relaxed);
        let mean_us = self.waited_us.swap(0, Relaxed) / u64::from(waits.max(1));
        self.last_mean_us.store(mean_us, Relaxed);
        let came: [u64; LEVELS as usize] = std::array::from_fn(|level| self.came[level].swap(0, Relaxed).into());
        let is_overloaded = mean_us >= self.settings.target_ms * 1_000;
        if is_overloaded {
            self.overloads.fetch_add(1, Relaxed);
        }
        let cursor = self.cursor.load(Relaxed);
        if is_overloaded || cursor < LEVELS {
            self.cursor.store(self.moved(cursor, &came, is_overloaded), Relaxed);
        }
    }

    fn moved(&self, cursor: u32, came: &[u64; LEVELS as usize], is_overloaded: bool) -> u32 {
        let below = |cursor: u32| came[..cursor as usize].iter().sum::<u64>();
        let all = below(LEVELS);
        let percent_of = |count: u64, percent: u32| count * u64::from(percent) / 100;
        if is_overloaded {
            let wanted = below(cursor) - percent_of(below(cursor), self.settings.decrease_percent);
            // At least one level fewer, and always one left: who lets nobody through never learns that it could.
            return (1..cursor).rev().find(|lower| below(*lower) <= wanted).unwrap_or(1);
        }
        let wanted = below(cursor) + percent_of(all, self.settings.increase_percent).max(1);
        (cursor + 1..LEVELS).find(|higher| below(*higher) >= wanted).unwrap_or(LEVELS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: [Criticality; 4] = Criticality::ALL;

    fn shed() -> Shed {
        assert_eq!(ShedSettings::default().check(), Ok(()));
        Shed::new(&ShedSettings::default())
    }

    /// So many seconds of 1,000 requests each, a quarter of each class, to a callee that can do `can` of them; the queue
    /// is long when it is asked for more. Returns how many of each class were let through in the last second.
    fn run(shed: &Shed, from_s: u64, seconds: u64, can: u64) -> [u64; 4] {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut passed = [0; 4];
        for second in from_s..from_s + seconds {
            let before: u64 = std::mem::take(&mut passed).iter().sum();
            let wait = Duration::from_millis(if before > can { 100 } else { 1 });
            for request in 0..1_000u64 {
                let class = CLASSES[(request % 4) as usize];
                let now = Instant(second * 1_000_000 + request * 1_000);
                if shed.admit(now, Level::drawn(class, rng.u64(..))).is_ok() {
                    passed[class as usize] += 1;
                    shed.waited(wait);
                }
            }
        }
        passed
    }

    #[test]
    fn with_no_overload_everything_passes() {
        assert_eq!(run(&shed(), 1, 30, 1_000), [250; 4]);
    }

    #[test]
    fn the_least_critical_are_shed_first_and_all_the_callee_can_do_is_done() {
        let shed = shed();
        let passed = run(&shed, 1, 60, 600);
        assert_eq!(passed[..2], [250, 250], "{passed:?}");
        let all: u64 = passed.iter().sum();
        assert!((510..=690).contains(&all), "{passed:?}");
        assert_eq!(passed[3], 0);
        assert_eq!(shed.snapshot().admitted_percent[..2], [100, 100]);
    }

    #[test]
    fn when_the_overload_is_over_everything_passes_again() {
        let shed = shed();
        run(&shed, 1, 60, 300);
        assert_eq!(run(&shed, 61, 120, 1_000), [250; 4]);
    }

    #[test]
    fn however_bad_it_is_somebody_is_let_through_to_find_out_when_it_ends() {
        let shed = shed();
        run(&shed, 1, 200, 0);
        assert!(run(&shed, 201, 20, 0)[0] > 0);
        assert_eq!(run(&shed, 221, 300, 1_000), [250; 4]);
    }

    #[test]
    fn a_users_requests_are_of_one_level_for_an_hour() {
        let level =
            |user: &str, hour: u64| Level::of(Criticality::Critical, user.as_bytes(), WallTime(hour * 3_600_000 + 5));
        assert_eq!(level("ann", 7), Level::of(Criticality::Critical, b"ann", WallTime(7 * 3_600_000 + 3_599_999)));
        let hours: std::collections::BTreeSet<Level> = (0..100).map(|hour| level("ann", hour)).collect();
        assert!(hours.len() > 20, "another hour is another chance");
        assert!(level("ann", 0) > Level::of(Criticality::CriticalPlus, b"bob", WallTime(0)));
    }

    #[test]
    fn what_a_call_takes_above_the_shortest_it_has_waited() {
        let shed = shed();
        let ms = |ms: u64| Instant(ms * 1_000);
        for (at, took) in [(1, 10), (2, 50), (3, 30)] {
            shed.took(ms(at), Duration::from_millis(took));
        }
        let _ = shed.admit(ms(5_000), Level::drawn(Criticality::Critical, 0));
        assert_eq!(shed.snapshot().waited_us, 20_000);
    }
}
