//! Time as the heart is told it: it never reads a clock.
//!
//! Two clocks come with every input. *Elapsed* time is monotonic and drives timers. *Wall* time is only read by the
//! hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014), which turns it into [`Stamp`]s that never
//! repeat and never run backwards, whatever the machine's clock does.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Incarnation, NodeId};

/// A point on the monotonic clock of one process: microseconds since an origin its driver chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// The time from `earlier` to this instant; zero when `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, by: Duration) -> Instant {
        Instant(self.0.saturating_add(by.as_micros().min(u128::from(u64::MAX)) as u64))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, by: Duration) -> Instant {
        Instant(self.0.saturating_sub(by.as_micros().min(u128::from(u64::MAX)) as u64))
    }
}

/// Wall clock time: milliseconds since the Unix epoch, as the machine believes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct WallTime(pub u64);

/// Both clocks, read once per input by whoever drives the heart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// The monotonic clock.
    pub elapsed: Instant,
    /// The wall clock.
    pub wall: WallTime,
}

/// Hybrid logical time: 48 bits of milliseconds since the epoch, 16 bits of counter. The counter borrows from the
/// milliseconds when it overflows, so time only ever grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct HybridTime(pub u64);

impl HybridTime {
    /// No time at or after this one is believed, from a peer, a disk or this machine's clock (it is in the year 6429):
    /// a hybrid clock at the end of its range could not go on.
    pub const CEILING: HybridTime = HybridTime(1 << 63);

    /// The first hybrid time of a millisecond.
    pub fn from_wall(wall: WallTime) -> Self {
        Self(wall.0.min((Self::CEILING.0 >> 16) - 1) << 16)
    }

    /// Whether it is before [`Self::CEILING`].
    pub fn is_sane(self) -> bool {
        self < Self::CEILING
    }

    /// The millisecond it lies in.
    pub fn wall(self) -> WallTime {
        WallTime(self.0 >> 16)
    }
}

impl fmt::Debug for HybridTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// When and by whom something was written; unique in the mesh, since a node never uses a hybrid time twice.
/// Ordered by time, then node: the later write wins, and ties are broken the same way everywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// When.
    pub time: HybridTime,
    /// By whom.
    pub node: NodeId,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.time.0 >> 16, self.time.0 & 0xffff, self.node)
    }
}

impl FromStr for Stamp {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a stamp: MILLISECONDS.COUNTER@NODE, as it was shown");
        let (time, node) = text.split_once('@').ok_or_else(wrong)?;
        let (millis, counter) = time.split_once('.').ok_or_else(wrong)?;
        let millis: u64 = millis.parse().map_err(|_| wrong())?;
        let counter: u16 = counter.parse().map_err(|_| wrong())?;
        let node = node.parse().map_err(|error| format!("{}: {error}", wrong()))?;
        if millis >> 48 != 0 {
            return Err(wrong());
        }
        Ok(Self { time: HybridTime(millis << 16 | u64::from(counter)), node })
    }
}

/// A stamp from too far in the future: the sender's clock, or ours, is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stamp {stamp} is {ahead_ms} ms ahead of this node's clock, more than the {bound_ms} ms allowed")]
pub struct FutureStamp {
    /// The stamp as it came.
    pub stamp: Stamp,
    /// How far ahead it is, in milliseconds.
    pub ahead_ms: u64,
    /// The bound it broke, in milliseconds.
    pub bound_ms: u64,
}

/// One node's hybrid logical clock.
#[derive(Debug, Clone)]
pub struct HybridClock {
    node: NodeId,
    /// The last bits of every time it issues: what a start wrote that reached peers but not the disk before a crash
    /// cannot be written again, as something else, by the next start.
    tag: u8,
    last: HybridTime,
    /// The latest the wall clock has ever shown. After a step back, a mesh that had followed the clock goes on with
    /// stamps in the clock's future; they are no further ahead of this.
    latest_wall: WallTime,
    max_skew: Duration,
}

impl HybridClock {
    /// The clock of one start of a node. It issues only times after `last_used` and accepts stamps at most `max_skew`
    /// ahead of the wall clock.
    pub fn new(node: NodeId, start: Incarnation, last_used: HybridTime, max_skew: Duration) -> Self {
        Self { node, tag: start.0 as u8, last: last_used, latest_wall: last_used.wall(), max_skew }
    }

    /// The last time issued or seen.
    pub fn last(&self) -> HybridTime {
        self.last
    }

    /// A stamp later than all that were issued or accepted before.
    pub fn issue(&mut self, wall: WallTime) -> Stamp {
        self.latest_wall = self.latest_wall.max(wall);
        let wall = HybridTime::from_wall(wall);
        let earliest = wall.max(HybridTime(self.last.0 + 1)).0;
        let tagged = earliest & !0xff | u64::from(self.tag);
        let next = HybridTime(if tagged < earliest { tagged + 0x100 } else { tagged });
        assert!(next > self.last, "a hybrid clock must never repeat itself");
        self.last = next;
        Stamp { time: next, node: self.node.clone() }
    }

    /// Takes note of a stamp from elsewhere, so that whatever this node writes next is later. A stamp that is not
    /// later than what was issued or seen already is always fine: after a step back of the wall clock, this node's own
    /// stamps come back to it from its future.
    ///
    /// # Errors
    /// [`FutureStamp`] when it is further ahead of the wall clock than allowed; the clock is then unchanged.
    pub fn witness(&mut self, stamp: &Stamp, wall: WallTime) -> Result<(), FutureStamp> {
        self.latest_wall = self.latest_wall.max(wall);
        if stamp.time <= self.last {
            return Ok(());
        }
        let bound_ms = self.max_skew.as_millis() as u64;
        let ahead_ms = stamp.time.wall().0.saturating_sub(self.latest_wall.0);
        if ahead_ms > bound_ms || !stamp.time.is_sane() {
            return Err(FutureStamp { stamp: stamp.clone(), ahead_ms, bound_ms });
        }
        self.last = stamp.time;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back_what_it_shows_and_refuses_all_else() {
        let stamp = Stamp { time: HybridTime(1_700_000_000_000 << 16 | 7), node: "a.b".parse().unwrap() };
        assert_eq!(stamp.to_string().parse(), Ok(stamp));
        for wrong in ["", "1@a", "1.2", "1.2@", "1.70000@a", "-1.0@a", "281474976710656.0@a", "1.0@A B"] {
            assert!(wrong.parse::<Stamp>().is_err(), "{wrong}");
        }
    }

    fn clock() -> HybridClock {
        HybridClock::new("a".parse().unwrap(), Incarnation(7), HybridTime::default(), Duration::from_secs(5))
    }

    #[test]
    fn stamps_grow_even_when_the_wall_clock_steps_back() {
        let mut clock = clock();
        let first = clock.issue(WallTime(1_000_000));
        let second = clock.issue(WallTime(10));
        assert!(second > first);
    }

    #[test]
    fn two_nodes_whose_clocks_step_back_together_go_on_believing_each_other() {
        let (mut mine, mut theirs) = (clock(), clock());
        mine.issue(WallTime(1_000_000));
        theirs.issue(WallTime(1_000_001));
        for millis in 0..100_000 {
            let stamp = theirs.issue(WallTime(500_000 + millis / 100));
            mine.witness(&stamp, WallTime(500_000 + millis / 100)).unwrap();
        }
    }

    #[test]
    fn a_stamp_seen_is_always_surpassed() {
        let mut clock = clock();
        let theirs = Stamp { time: HybridTime::from_wall(WallTime(1_003)), node: "b".parse().unwrap() };
        clock.witness(&theirs, WallTime(1_000)).unwrap();
        assert!(clock.issue(WallTime(1_000)) > theirs);
    }

    #[test]
    fn a_stamp_from_the_far_future_is_refused_and_forgotten() {
        let mut clock = clock();
        let theirs = Stamp { time: HybridTime::from_wall(WallTime(3_600_000)), node: "b".parse().unwrap() };
        let error = clock.witness(&theirs, WallTime(1_000)).unwrap_err();
        assert_eq!(error.ahead_ms, 3_599_000);
        assert!(clock.issue(WallTime(1_001)).time < theirs.time);
    }
}
