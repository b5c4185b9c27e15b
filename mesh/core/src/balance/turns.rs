//! Smooth weighted round robin without a lock: the static stride scheduler of gRPC (proposal A58).
//!
//! One counter says whose turn it is and in which round. Every member has a phase that grows by its weight each round; it
//! takes its turn when the phase overflows, the heaviest in every round. So after any number of rounds each has had its
//! share within one turn, the turns of one member are evenly spread, and callers on many threads share one counter.
//! One that starts slowly takes its turns with that probability.
//!
//! The turn of a member that may not be used is given to one drawn by weight, not to the next in line: that one would get
//! twice its share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::roster::Slot;
use super::tier::{Choice, Tier};

/// Where in its phase a member begins differs by this from the one before: the golden ratio's part of the circle, so that
/// members of equal weight do not skip the same rounds.
const APART: u64 = 0x9E37_79B9;

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Turns(AtomicU64);

impl Turns {
    /// The first turn is this one's: not the same on all nodes, or the first instance would be everybody's first.
    pub(super) fn beginning_at(turn: u64) -> Self {
        Self(AtomicU64::new(turn))
    }

    /// The member whose turn is next.
    pub(super) fn next<'a, T, F: Fn(&Slot<T>) -> bool>(
        &self,
        tier: &Tier,
        choice: &Choice<'a, T, F>,
        rng: &mut fastrand::Rng,
    ) -> Option<&'a Slot<T>> {
        let count = tier.members.len() as u64;
        // The heaviest takes its turn in every round, so this ends after two unless it starts slowly or fails.
        for _ in 0..2 * count {
            let turn = self.0.fetch_add(1, Relaxed);
            let (round, at) = (turn / count, turn % count);
            let member = &tier.members[at as usize];
            let slot = choice.slot(member);
            let step = f64::from(tier.relative(member)) * (1u64 << 32) as f64;
            // Not by its phase: that is a product with the round, and would jump with a weight that changes.
            let factor = choice.factor(slot);
            if !overflows(round, at, step as u64) || (factor < 1.0 && rng.f32() >= factor) {
                continue;
            }
            if (choice.usable)(slot) {
                return Some(slot);
            }
            break;
        }
        choice.draw(tier, rng).map(|member| choice.slot(member))
    }
}

/// Whether the phase of the member at `at` overflows 32 bits in this round when it grows by `step` (up to 2^32).
fn overflows(round: u64, at: u64, step: u64) -> bool {
    let phase = step.wrapping_mul(round).wrapping_add(at.wrapping_mul(APART)) & u64::from(u32::MAX);
    phase + step > u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In any rounds in a row, a member has its share of turns within one.
        #[test]
        fn turns_are_evenly_spread(step in 1u64..=1 << 32, at in 0u64..100, from in 0u64..1 << 20, rounds in 1u64..500) {
            let turns = (from..from + rounds).filter(|round| overflows(*round, at, step)).count() as f64;
            let share = rounds as f64 * step as f64 / (1u64 << 32) as f64;
            prop_assert!((turns - share).abs() <= 1.0, "{turns} of {share}");
        }
    }
}
