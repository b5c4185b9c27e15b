//! Whose clock is wrong?
//!
//! Stamps are hybrid: they order writes by the wall clock where it can be trusted. A record from too far in the future is
//! refused, since one clock a year ahead would otherwise drag the whole mesh along. But to the node that is *behind*
//! everybody else seems ahead: it would refuse all there is, and what it writes would lose against what it replaces.
//! Machines without a battery start in 1970, resumed ones in the past, and a mistyped year is soon made.
//!
//! So every node tells its neighbours what its clock shows, now and then, and goes by the **median** of theirs and its
//! own, once its own is off by more than the skew that is allowed. With two others that agree, a clock that starts
//! behind, or steps while the node runs, ahead or back, changes nothing; the median follows no minority. (It is the idea
//! of NTP's selection, without its precision: here a second is nothing.) Between two nodes there is no majority, and the
//! one that is behind refuses what the other writes until its clock is set.
//!
//! What is told is what the clock shows, uncorrected: corrected nodes do not vouch for each other. What was heard is
//! kept against the monotonic clock, so a step of one's own clock is noticed with the next input.
//!
//! What remains: a node that *starts* ahead and writes before it has heard of two others has used stamps that the others
//! refuse until time has caught up with them (it never goes back behind a stamp it used). Nothing is lost by it, and
//! both sides say whose clock it is.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::NodeId;
use crate::time::{Instant, Now, WallTime};
use crate::view::ClockView;

/// How long what was heard of a clock counts; neighbours tell about every eight seconds.
const FRESH: Duration = Duration::from_secs(60);
/// The most clocks that count: neighbours are fewer, and more would not be wiser.
const MAX_HEARD: usize = 64;
/// How many others make a majority possible.
const QUORUM: usize = 2;
/// A change of one's own clock of more than this is a step, and judged at once.
const STEP_MS: i64 = 50;
/// How often it is judged otherwise.
const JUDGE_INTERVAL: Duration = Duration::from_secs(1);

/// The clocks of this node and of those that tell it theirs.
#[derive(Debug, Clone)]
pub struct Clocks {
    me: NodeId,
    bound_ms: i64,
    heard: BTreeMap<NodeId, Heard>,
    /// How far this node's clock is behind what it goes by.
    behind_ms: i64,
    judged_for: i64,
    judge_due: Instant,
    /// Whose clocks are off, as last shown.
    off: BTreeMap<NodeId, i64>,
    news: bool,
}

#[derive(Debug, Clone)]
struct Heard {
    /// What its clock showed when this node's monotonic clock stood at zero.
    origin_ms: i64,
    at: Instant,
}

fn origin_ms(wall: WallTime, elapsed: Instant) -> i64 {
    i64::try_from(wall.0).unwrap_or(i64::MAX).saturating_sub((elapsed.0 / 1_000) as i64)
}

impl Clocks {
    /// One clock, which may be off by so much before it matters.
    pub fn new(me: NodeId, bound: Duration) -> Self {
        Self {
            me,
            bound_ms: bound.as_millis() as i64,
            heard: BTreeMap::new(),
            behind_ms: 0,
            judged_for: 0,
            judge_due: Instant::default(),
            off: BTreeMap::new(),
            news: false,
        }
    }

    /// A peer has told what its clock shows. `now` is what this node's own clocks show.
    pub fn heard(&mut self, node: &NodeId, wall: WallTime, now: Now) {
        if *node == self.me || (self.heard.len() >= MAX_HEARD && !self.heard.contains_key(node)) {
            return;
        }
        self.heard.insert(node.clone(), Heard { origin_ms: origin_ms(wall, now.elapsed), at: now.elapsed });
        self.judge(now);
    }

    /// The time to go by, given what this node's own clocks show.
    pub fn correct(&mut self, now: Now) -> Now {
        let mine = origin_ms(now.wall, now.elapsed);
        if (mine - self.judged_for).abs() > STEP_MS || now.elapsed >= self.judge_due {
            self.judge(now);
        }
        Now { wall: WallTime(now.wall.0.saturating_add_signed(self.behind_ms)), ..now }
    }

    fn judge(&mut self, now: Now) {
        let mine = origin_ms(now.wall, now.elapsed);
        (self.judged_for, self.judge_due) = (mine, now.elapsed + JUDGE_INTERVAL);
        self.heard.retain(|_, heard| heard.at + FRESH >= now.elapsed);
        let mut ahead: Vec<i64> = self.heard.values().map(|heard| heard.origin_ms.saturating_sub(mine)).collect();
        self.behind_ms = 0;
        if ahead.len() >= QUORUM {
            ahead.push(0);
            ahead.sort_unstable();
            // Of an even number there are two in the middle: the one that changes less.
            let middle = [ahead[(ahead.len() - 1) / 2], ahead[ahead.len() / 2]];
            let median = middle.into_iter().min_by_key(|off| off.abs()).unwrap_or_default();
            self.behind_ms = if median.abs() > self.bound_ms { median } else { 0 };
        }
        self.note_off(mine);
    }

    /// Takes note of whose clocks are off by more than may be, and says so once.
    fn note_off(&mut self, mine: i64) {
        let goes_by = mine.saturating_add(self.behind_ms);
        let others = self.heard.iter().map(|(node, heard)| (node, heard.origin_ms.saturating_sub(goes_by)));
        let all = others.chain([(&self.me, -self.behind_ms)]);
        let off: BTreeMap<NodeId, i64> =
            all.filter(|(_, ahead)| ahead.abs() > self.bound_ms).map(|(node, ahead)| (node.clone(), ahead)).collect();
        let alike = |(a, b): ((&NodeId, &i64), (&NodeId, &i64))| a.0 == b.0 && a.1.abs_diff(*b.1) < 1_000;
        if off.len() == self.off.len() && off.iter().zip(&self.off).all(alike) {
            return;
        }
        for (node, ahead) in off.iter().filter(|(node, _)| !self.off.contains_key(*node)) {
            let (seconds, direction) = (ahead.abs() / 1_000, if *ahead > 0 { "ahead" } else { "behind" });
            if *node == self.me {
                tracing::warn!(
                    "the clock of this node is {seconds} s {direction} of its peers': it goes by theirs; set it"
                );
            } else {
                tracing::warn!(%node, "the clock of node {node} is {seconds} s {direction}: set it, run NTP");
            }
        }
        for node in self.off.keys().filter(|node| !off.contains_key(*node)) {
            tracing::info!(%node, "the clock of node {node} is right again, or not heard of any more");
        }
        (self.off, self.news) = (off, true);
    }

    /// Whose clocks are off, if that has changed since it was last asked.
    pub fn news(&mut self) -> Option<Vec<ClockView>> {
        let shown = |(node, ahead_ms): (&NodeId, &i64)| ClockView { node: node.clone(), ahead_ms: *ahead_ms };
        std::mem::take(&mut self.news).then(|| self.off.iter().map(shown).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    /// One node among others whose clocks are off by so much; the right time is what the monotonic clock says.
    struct Story {
        clocks: Clocks,
        others: Vec<i64>,
        mine: i64,
        at_ms: u64,
    }

    impl Story {
        fn of(mine: i64, others: &[i64]) -> Self {
            let clocks = Clocks::new("me".parse().unwrap(), Duration::from_secs(5));
            Self { clocks, others: others.to_vec(), mine, at_ms: 0 }
        }

        fn now(&self) -> Now {
            Now { elapsed: Instant(self.at_ms * 1_000), wall: Self::wall(self.at_ms, self.mine) }
        }

        fn wall(at_ms: u64, off_ms: i64) -> WallTime {
            WallTime((1_700_000_000_000 + at_ms).saturating_add_signed(off_ms))
        }

        fn hear_all(&mut self) {
            for (number, off) in self.others.iter().enumerate() {
                let now = self.now();
                self.clocks.heard(&format!("n{number}").parse().unwrap(), Self::wall(self.at_ms, *off), now);
            }
        }

        /// How far off the time is that it goes by.
        fn off(&mut self) -> i64 {
            let now = self.now();
            self.clocks.correct(now).wall.0 as i64 - Self::wall(self.at_ms, 0).0 as i64
        }
    }

    #[test]
    fn a_clock_that_is_off_goes_by_two_others_that_are_right() {
        for mine in [-HOUR_MS, HOUR_MS, -6_000, 6_000, -1_600_000_000_000] {
            let mut story = Story::of(mine, &[20, -20]);
            assert_eq!(story.off(), mine, "it has heard of nobody yet");
            story.hear_all();
            assert!(story.off().abs() <= 20, "{mine}: {}", story.off());
            let shown = story.clocks.news().unwrap();
            assert_eq!((shown.len(), shown[0].node.as_str()), (1, "me"));
            assert!((shown[0].ahead_ms - mine).abs() <= 20);
        }
    }

    #[test]
    fn a_small_difference_is_left_alone() {
        let mut story = Story::of(4_000, &[0, 0, 0]);
        story.hear_all();
        assert_eq!((story.off(), story.clocks.news()), (4_000, None));
    }

    #[test]
    fn a_minority_is_not_followed_and_is_named() {
        for others in [&[HOUR_MS, 0][..], &[HOUR_MS, HOUR_MS, 0, 0], &[HOUR_MS, -HOUR_MS], &[HOUR_MS]] {
            let mut story = Story::of(0, others);
            story.hear_all();
            assert_eq!(story.off(), 0, "{others:?}");
            let wrong = others.iter().filter(|off| **off != 0).count();
            assert_eq!(story.clocks.news().map(|shown| shown.len()), Some(wrong));
        }
    }

    #[test]
    fn a_step_while_it_runs_changes_nothing_not_even_for_a_moment() {
        let mut story = Story::of(0, &[0, 0]);
        story.hear_all();
        for step in [HOUR_MS, -HOUR_MS, 0, 86_400_000 * 365] {
            story.at_ms += 500;
            story.mine = step;
            assert_eq!(story.off(), 0, "stepped by {step} ms");
        }
    }

    #[test]
    fn what_was_heard_long_ago_does_not_count() {
        let mut story = Story::of(-HOUR_MS, &[0, 0]);
        story.hear_all();
        story.at_ms += 61_000;
        assert_eq!(story.off(), -HOUR_MS);
        assert!(story.clocks.heard.is_empty());
    }

    #[test]
    fn no_more_clocks_are_kept_than_count() {
        let mut story = Story::of(0, &[0; 500]);
        story.hear_all();
        assert_eq!(story.clocks.heard.len(), MAX_HEARD);
    }
}
