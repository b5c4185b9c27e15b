//! Consistent hashing by a table (Eisenbud et al., "Maglev", NSDI 2016), weighted as in Envoy.
//!
//! Every instance has its own order of preference of the table's places, given by two hashes of its id. In turns, the
//! heavier more often, each takes the first place in its order that is free, until the table is full. A key is one look
//! into the table. Shares are even within about one percent; when an instance comes or goes, about twice as many keys move
//! as on a ring.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ring::Bound;
use super::roster::{Roster, Slot};
use super::tier::{Choice, Tier};

/// How many places the table has: a prime (so that every order visits all places), of the paper and Envoy's default.
/// Always the same, or the size would move all keys when it changes.
const PLACES: usize = 65_537;
/// How many times a key is hashed anew when an instance may not be used; then the next places are looked at in order.
const MAX_REHASHES: u64 = 16;

/// A full table.
#[derive(Debug)]
pub(super) struct Table {
    places: Vec<u32>,
}

/// Where a member's order of preference is.
struct Order {
    next: usize,
    skip: usize,
    /// How many places it is to take, and how many more every turn.
    due: f32,
    step: f32,
}

impl Table {
    pub(super) fn of<T>(tier: &Tier, roster: &Roster<T>) -> Self {
        const FREE: u32 = u32::MAX;
        let mut places = vec![FREE; PLACES];
        let mut orders: Vec<Order> = tier
            .members
            .iter()
            .map(|member| {
                let id = roster.slots[member.slot as usize].instance.key.instance.as_str().as_bytes();
                let next = (xxh3_64_with_seed(id, 0) % PLACES as u64) as usize;
                let skip = (xxh3_64_with_seed(id, 1) % (PLACES as u64 - 1)) as usize + 1;
                Order { next, skip, due: 0.0, step: member.share }
            })
            .collect();
        let mut free = if orders.is_empty() { 0 } else { PLACES };
        while free > 0 {
            for (at, order) in orders.iter_mut().enumerate() {
                order.due += order.step;
                while order.due >= 1.0 && free > 0 {
                    order.due -= 1.0;
                    while places[order.next] != FREE {
                        order.next = (order.next + order.skip) % PLACES;
                    }
                    places[order.next] = at as u32;
                    free -= 1;
                }
            }
        }
        Self { places }
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
        let takes = |place: usize| {
            let member = self.places.get(place).and_then(|at| tier.members.get(*at as usize))?;
            bound.takes(key, member, choice).then(|| choice.slot(member))
        };
        let place = |attempt: u64| match attempt {
            0 => (key % PLACES as u64) as usize,
            _ => (xxh3_64_with_seed(&key.to_le_bytes(), attempt) % PLACES as u64) as usize,
        };
        if let Some(slot) = (0..=MAX_REHASHES).find_map(|attempt| takes(place(attempt))) {
            return Some(slot);
        }
        // Few are left: in an order that is the key's own, so that it is the same one every time.
        let from = place(MAX_REHASHES) % tier.members.len().max(1);
        let (before, after) = tier.members.split_at(from);
        let left = after.iter().chain(before).find(|member| bound.takes(key, member, choice));
        left.or_else(|| choice.draw(tier, rng)).map(|member| choice.slot(member))
    }
}
