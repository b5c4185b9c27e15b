//! Consistent hashing on a ring (ketama), with bounded load.
//!
//! Every instance has points on a ring of hashes, as many as its weight says; a key belongs to the next point. An
//! instance that comes or goes moves only the keys between its points and the ones before. Points depend on nothing but
//! the instance's id: all nodes agree without a word.
//!
//! With a bound, an instance that has more than its part of the requests in flight is passed over, as is one that may not
//! be used: the key goes to the next one on the ring (Mirrokni, Thorup and Zadimoghaddam, 2016).

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::roster::{Roster, Slot};
use super::tier::{Choice, Member, Tier};

/// Points of an instance of mean weight (ketama's, Dubbo's and nginx's number): shares within some 8 % of each other.
const POINTS: f32 = 160.0;
/// The most points of all instances together. Beyond 800 instances each has fewer; sorting them takes some 10 ms then.
const MAX_POINTS: usize = 1 << 17;

/// A ring of points.
#[derive(Debug)]
pub(super) struct Ring {
    /// By hash: the point and whose it is.
    points: Vec<(u64, u32)>,
}

impl Ring {
    pub(super) fn of<T>(tier: &Tier, roster: &Roster<T>) -> Self {
        let each = POINTS.min(MAX_POINTS as f32 / tier.members.len().max(1) as f32);
        let mut points = Vec::new();
        for (at, member) in tier.members.iter().enumerate() {
            let id = roster.slots[member.slot as usize].instance.key.instance.as_str().as_bytes();
            let count = (each * member.share).round().clamp(1.0, MAX_POINTS as f32) as u64;
            let first = xxh3_64(id);
            points.extend((0..count).map(|number| (mix(first, number), at as u32)));
        }
        points.sort_unstable();
        Self { points }
    }

    /// Whose the key is.
    pub(super) fn get<'a, T, F: Fn(&Slot<T>) -> bool>(
        &self,
        key: u64,
        tier: &Tier,
        choice: &Choice<'a, T, F>,
        rng: &mut fastrand::Rng,
    ) -> Option<&'a Slot<T>> {
        let bound = Bound::of(tier, choice);
        let from = self.points.partition_point(|(hash, _)| *hash < key);
        let (before, after) = self.points.split_at(from);
        let mut last = None;
        for (_, at) in after.iter().chain(before) {
            // Neighbouring points of one instance need not be looked at twice.
            if last.replace(*at) != Some(*at) && bound.takes(key, &tier.members[*at as usize], choice) {
                return Some(choice.slot(&tier.members[*at as usize]));
            }
        }
        // Nobody is within the bound: those that start slowly, or all are unusable.
        choice.draw(tier, rng).map(|member| choice.slot(member))
    }
}

/// The so many'th number after `first` of a sequence of random ones (SplitMix64): points of ids that look alike must not.
fn mix(first: u64, number: u64) -> u64 {
    let mut z = first.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// How many requests in flight members may have.
pub(super) struct Bound {
    /// For a member of mean weight; none without a bound.
    mean: Option<f32>,
}

impl Bound {
    pub(super) fn of<T, F: Fn(&Slot<T>) -> bool>(tier: &Tier, choice: &Choice<'_, T, F>) -> Self {
        let percent = choice.settings.bounded_load_percent;
        let mean = (percent > 0).then(|| {
            // Of those that can take any: the bound must leave room for all that is in flight.
            let (mut in_flight, mut shares) = (1.0, 0.0);
            for member in &tier.members {
                let slot = choice.slot(member);
                in_flight += slot.seat.load.in_flight() as f32;
                shares += if (choice.usable)(slot) { member.share } else { 0.0 };
            }
            in_flight / f32::max(shares, f32::MIN_POSITIVE) * percent as f32 / 100.0
        });
        Self { mean }
    }

    /// Whether this member may have one more request, and one with this key.
    pub(super) fn takes<T, F: Fn(&Slot<T>) -> bool>(
        &self,
        key: u64,
        member: &Member,
        choice: &Choice<'_, T, F>,
    ) -> bool {
        let slot = choice.slot(member);
        if !(choice.usable)(slot) {
            return false;
        }
        if let Some(mean) = self.mean
            && slot.seat.load.in_flight() as f32 + 1.0 > (mean * member.share).ceil()
        {
            return false;
        }
        let factor = choice.factor(slot);
        if factor >= 1.0 {
            return true;
        }
        // It takes the same part of its keys every time, and more of them as it comes to its full weight.
        let id = slot.instance.key.instance.as_str().as_bytes();
        (xxh3_64_with_seed(id, key) >> 40) as f32 / (1u64 << 24) as f32 <= factor
    }
}
