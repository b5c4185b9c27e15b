//! How much of the traffic stays near: Envoy's priorities, with the zone, the region and everywhere else as levels.
//!
//! A level's health is the share of its weight that is usable, times the overprovisioning factor, at most 1. The nearest
//! level gets its health's share of the traffic, the next one what is left up to its health, and so on; when all
//! together cannot reach 1, they are scaled up. So with the usual factor of 1.4 nothing leaves the zone while 71 % of its
//! instances are usable, then traffic shifts in proportion, and no level is sent more than the share of it that works.
//!
//! A level is in *panic* when less of it than a threshold is usable and the levels together cannot take all: then those
//! in doubt and those broken that still answer share its traffic.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::time::Instant;

/// How many levels there are: the zone, the region, everywhere else.
pub(super) const LEVELS: usize = 3;

/// How long shares are believed: long enough that looking at a thousand instances does not count, and far below the
/// time in which breakers change.
const BELIEVED: Duration = Duration::from_millis(100);

/// What is known of a level when its share is computed; in weight.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Level {
    /// That of all instances which are meant to take traffic.
    pub(super) expected: u64,
    /// That of those which can.
    pub(super) usable: u64,
    /// How much of all traffic it may keep, 0 to 1, by its capacity.
    pub(super) capacity: f64,
}

/// What each level gets, in thousandths, and which are in panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) permille: [u32; LEVELS],
    pub(super) panic: [bool; LEVELS],
}

impl Shares {
    /// What each of these levels gets.
    pub(super) fn of(levels: &[Level; LEVELS], overprovisioning_percent: u32, panic_percent: u32) -> Self {
        let healths = levels.map(|level| {
            let share = level.usable as f64 / level.expected.max(1) as f64;
            (share * f64::from(overprovisioning_percent) / 100.0).min(1.0)
        });
        let all: f64 = healths.iter().sum::<f64>().min(1.0);
        let panic = levels.map(|level| {
            let usable_percent = level.usable * 100 / level.expected.max(1);
            level.expected > 0 && all < 1.0 && usable_percent < u64::from(panic_percent)
        });
        // What capacity leaves to the others, they must be able to take; what they cannot stays where it was.
        let mut shares = [0.0; LEVELS];
        let mut left = 1.0;
        for (share, (level, health)) in shares.iter_mut().zip(levels.iter().zip(healths)) {
            *share = health.min(level.capacity).min(left);
            left -= *share;
        }
        for (share, health) in shares.iter_mut().zip(healths) {
            let more = (health - *share).min(left).max(0.0);
            *share += more;
            left -= more;
        }
        let sum: f64 = shares.iter().sum();
        let permille = shares.map(|share| if sum > 0.0 { (share / sum * 1_000.0).round() as u32 } else { 0 });
        Self { permille, panic }
    }

    /// The level of the next request: `ball` is drawn from 0 to 999.
    pub(super) fn level(&self, ball: u32) -> usize {
        let mut below = 0;
        let falls_here = |share: &u32| {
            below += share;
            ball < below
        };
        // Rounding may leave a thousandth to nobody, and with nothing usable all is: the nearest is as good as any.
        self.permille.iter().position(falls_here).unwrap_or(0)
    }
}

/// Shares, computed now and then.
#[derive(Debug, Default)]
pub(super) struct Remembered(AtomicU64);

impl Remembered {
    /// The shares as they are or were a moment ago.
    pub(super) fn get(&self, now: Instant, compute: impl FnOnce() -> Shares) -> Shares {
        let word = self.0.load(Relaxed);
        let tick = (now.0 / BELIEVED.as_micros() as u64) & TICK_MAX;
        if word & KNOWN != 0 && word & TICK_MAX == tick {
            return unpack(word);
        }
        let shares = compute();
        self.0.store(pack(shares) | tick | KNOWN, Relaxed);
        shares
    }
}

/// 29 bits of a tenth of a second repeat after more than a year.
const TICK_MAX: u64 = (1 << 29) - 1;
const KNOWN: u64 = 1 << 29;
const PERMILLE_BITS: u32 = 10;
const PERMILLE_MAX: u64 = (1 << PERMILLE_BITS) - 1;

fn pack(shares: Shares) -> u64 {
    let bits = (0..LEVELS).map(|level| {
        let permille = u64::from(shares.permille[level]) << (30 + level as u32 * PERMILLE_BITS);
        permille | u64::from(shares.panic[level]) << (60 + level)
    });
    bits.fold(0, |word, bits| word | bits)
}

fn unpack(word: u64) -> Shares {
    let levels: [usize; LEVELS] = std::array::from_fn(|level| level);
    Shares {
        permille: levels.map(|level| (word >> (30 + level as u32 * PERMILLE_BITS) & PERMILLE_MAX) as u32),
        panic: levels.map(|level| word >> (60 + level) & 1 == 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn levels(levels: [(u64, u64); LEVELS]) -> [Level; LEVELS] {
        levels.map(|(usable, expected)| Level { expected, usable, capacity: 1.0 })
    }

    fn permille(usable_of: [(u64, u64); LEVELS]) -> [u32; LEVELS] {
        Shares::of(&levels(usable_of), 140, 0).permille
    }

    #[test]
    fn shares_are_those_of_envoys_table_for_two_priorities() {
        // "Priority levels" in Envoy's documentation: health of the first level against what each level gets.
        for (usable, first) in [(100, 1_000), (72, 1_000), (71, 994), (50, 700), (25, 350), (0, 0)] {
            assert_eq!(permille([(usable, 100), (100, 100), (0, 0)]), [first, 1_000 - first, 0], "{usable}");
        }
        assert_eq!(permille([(25, 100), (25, 100), (0, 0)]), [500, 500, 0], "too few together: scaled up");
    }

    #[test]
    fn the_third_place_gets_what_the_nearer_two_cannot_take() {
        assert_eq!(permille([(30, 100), (30, 100), (100, 100)]), [420, 420, 160]);
        assert_eq!(permille([(0, 0), (0, 0), (1, 4)]), [0, 0, 1_000]);
        assert_eq!(permille([(0, 5), (0, 0), (0, 0)]), [0, 0, 0], "nothing is usable: the balancer tries all in order");
    }

    #[test]
    fn what_capacity_leaves_to_others_stays_if_they_cannot_take_it() {
        let mut of = levels([(100, 100), (0, 0), (100, 100)]);
        of[0].capacity = 0.4;
        assert_eq!(Shares::of(&of, 140, 0).permille, [400, 0, 600]);
        of[2].usable = 20;
        assert_eq!(Shares::of(&of, 140, 0).permille, [720, 0, 280]);
        of[2].usable = 0;
        assert_eq!(Shares::of(&of, 140, 0).permille, [1_000, 0, 0]);
    }

    #[test]
    fn a_place_is_in_panic_only_when_the_others_cannot_help() {
        let panic = |of| Shares::of(&levels(of), 140, 50).panic;
        assert_eq!(panic([(40, 100), (100, 100), (0, 0)]), [false; 3]);
        assert_eq!(panic([(40, 100), (10, 100), (0, 0)]), [true, true, false]);
        assert_eq!(panic([(60, 100), (0, 0), (0, 0)]), [false; 3]);
    }

    #[test]
    fn shares_are_remembered_for_a_tenth_of_a_second() {
        let shares = Shares { permille: [700, 299, 1], panic: [true, false, true] };
        let remembered = Remembered::default();
        assert_eq!(remembered.get(Instant(0), || shares), shares);
        let other = Shares { permille: [1_000, 0, 0], panic: [false; 3] };
        assert_eq!(remembered.get(Instant(99_999), || other), shares);
        assert_eq!(remembered.get(Instant(100_000), || other), other);
    }

    proptest! {
        /// All traffic goes somewhere, nothing goes where nothing is usable, and the near is served first.
        #[test]
        fn shares_add_up(usable in prop::array::uniform3(0u64..50), extra in prop::array::uniform3(0u64..50), capacity in prop::array::uniform3(0.0f64..=1.0)) {
            let of = [0, 1, 2].map(|i| Level { usable: usable[i], expected: usable[i] + extra[i], capacity: capacity[i] });
            let shares = Shares::of(&of, 140, 0);
            let sum: u32 = shares.permille.iter().sum();
            if usable.iter().sum::<u64>() == 0 {
                prop_assert_eq!(sum, 0);
            } else {
                prop_assert!((998..=1_002).contains(&sum), "{:?}", shares);
            }
            for (usable, permille) in usable.iter().zip(shares.permille) {
                prop_assert!(*usable > 0 || permille == 0);
            }
        }
    }
}
