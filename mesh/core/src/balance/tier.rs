//! Candidates of the same rank: their weights, the draw, and the choice among a few that were drawn.

use std::sync::OnceLock;

use super::load::{Load, Pace};
use super::maglev::Table;
use super::ring::Ring;
use super::roster::{Roster, Slot};
use super::settings::{Algorithm, BalanceSettings};
use super::turns::Turns;
use crate::time::Instant;

/// Latency below which differences are scheduling noise, in microseconds.
pub(super) const NOISE_US: f32 = 500.0;
/// Latencies within this factor of each other count as equal.
const EQUAL_WITHIN: f32 = 1.5;
/// How many times a draw is repeated when it hits an unusable instance, before all are looked at.
const MAX_REDRAWS: usize = 4;

/// Candidates of the same rank.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) members: Vec<Member>,
    /// The weight of the heaviest.
    heaviest: f32,
    turns: Turns,
    ring: OnceLock<Ring>,
    table: OnceLock<Table>,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    /// Which slot of the roster.
    pub(super) slot: u32,
    pub(super) weight: u32,
    /// Weights up to and including this member's.
    cumulative: u64,
    /// Weight relative to the tier's mean.
    pub(super) share: f32,
}

/// What a choice among a tier's members goes by.
pub(super) struct Choice<'a, T, F> {
    pub(super) roster: &'a Roster<T>,
    pub(super) settings: &'a BalanceSettings,
    pub(super) pace: Pace,
    pub(super) now: Instant,
    pub(super) key: Option<u64>,
    /// Whether an instance may be taken.
    pub(super) usable: F,
}

impl Tier {
    pub(super) fn new(slots: impl Iterator<Item = (u32, u32)>, first_turn: u64) -> Self {
        let mut members: Vec<Member> =
            slots.map(|(slot, weight)| Member { slot, weight, cumulative: 0, share: 1.0 }).collect();
        let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
        let mean = total as f32 / members.len().max(1) as f32;
        let mut cumulative = 0;
        for member in &mut members {
            cumulative += u64::from(member.weight);
            member.cumulative = cumulative;
            member.share = member.weight as f32 / mean;
        }
        let heaviest = members.iter().map(|member| member.weight).max().unwrap_or(0) as f32;
        let (ring, table) = (OnceLock::new(), OnceLock::new());
        Self { members, heaviest, turns: Turns::beginning_at(first_turn), ring, table }
    }

    /// The weight of all.
    pub(super) fn weight(&self) -> u64 {
        self.members.last().map_or(0, |member| member.cumulative)
    }

    /// The member of this slot, if it is one.
    pub(super) fn member(&self, slot: u32) -> Option<&Member> {
        self.members.binary_search_by_key(&slot, |member| member.slot).ok().map(|at| &self.members[at])
    }

    /// A member's weight relative to the heaviest's.
    pub(super) fn relative(&self, member: &Member) -> f32 {
        member.weight as f32 / self.heaviest
    }
}

impl<'a, T, F: Fn(&Slot<T>) -> bool> Choice<'a, T, F> {
    /// The member that gets the request, if one may.
    pub(super) fn among(&self, tier: &Tier, rng: &mut fastrand::Rng) -> Option<&'a Slot<T>> {
        if let [only] = &tier.members[..] {
            return Some(self.slot(only)).filter(|slot| (self.usable)(slot));
        }
        match self.settings.algorithm {
            Algorithm::Random => self.draw(tier, rng).map(|member| self.slot(member)),
            Algorithm::RoundRobin => tier.turns.next(tier, self, rng),
            Algorithm::RingHash => match self.key {
                Some(key) => tier.ring.get_or_init(|| Ring::of(tier, self.roster)).get(key, tier, self, rng),
                None => self.draw(tier, rng).map(|member| self.slot(member)),
            },
            Algorithm::Maglev => match self.key {
                Some(key) => tier.table.get_or_init(|| Table::of(tier, self.roster)).get(key, tier, self, rng),
                None => self.draw(tier, rng).map(|member| self.slot(member)),
            },
            Algorithm::PeakEwma => self.best_of(2, tier, rng),
            Algorithm::Prequal => {
                // A broken one has no report, so its probe would never be sent.
                let drawn = self.slot(self.draw(tier, rng)?);
                if drawn.seat.breaker.is_probe_due(self.now) {
                    return Some(drawn);
                }
                let reported = self.roster.reports.choose(tier, self, rng);
                reported.or_else(|| self.best_of(2, tier, rng))
            }
            Algorithm::LeastRequests | Algorithm::ShortestResponse if self.settings.choices == 0 => {
                self.best_of_all(tier, rng)
            }
            Algorithm::LeastRequests | Algorithm::ShortestResponse => {
                self.best_of(self.settings.choices as usize, tier, rng)
            }
        }
    }

    pub(super) fn slot(&self, member: &Member) -> &'a Slot<T> {
        &self.roster.slots[member.slot as usize]
    }

    /// How much of its weight an instance gets now.
    pub(super) fn factor(&self, slot: &Slot<T>) -> f32 {
        slot.seat.factor(self.now, &self.pace)
    }

    /// One usable member, by weight: drawn from all and repeated while unusable, which leaves the usable ones' shares as
    /// they are; then, if luck fails, drawn from the usable ones alone.
    pub(super) fn draw<'b>(&self, tier: &'b Tier, rng: &mut fastrand::Rng) -> Option<&'b Member> {
        self.draw_other(tier, rng, &[])
    }

    /// The same, but none of these.
    fn draw_other<'b>(&self, tier: &'b Tier, rng: &mut fastrand::Rng, not: &[u32]) -> Option<&'b Member> {
        let total = tier.weight();
        if total == 0 {
            return None;
        }
        let may = |member: &Member| !not.contains(&member.slot) && (self.usable)(self.slot(member));
        for _ in 0..MAX_REDRAWS {
            let ball = rng.u64(0..total);
            let member = &tier.members[tier.members.partition_point(|member| member.cumulative <= ball)];
            if may(member) {
                let factor = self.factor(self.slot(member));
                if factor >= 1.0 || rng.f32() < factor {
                    return Some(member);
                }
            }
        }
        let mut total = 0.0;
        let mut chosen = None;
        for member in tier.members.iter().filter(|member| may(member)) {
            let weight = member.weight as f32 * self.factor(self.slot(member));
            total += weight;
            if rng.f32() * total < weight {
                chosen = Some(member);
            }
        }
        chosen
    }

    /// The best of so many that are drawn.
    fn best_of(&self, choices: usize, tier: &Tier, rng: &mut fastrand::Rng) -> Option<&'a Slot<T>> {
        let mut best = self.draw(tier, rng)?;
        let mut drawn = [best.slot; MAX_CHOICES];
        for number in 1..choices.min(MAX_CHOICES) {
            // A probe is how a broken instance comes back; by its latency alone it would never be taken.
            if self.slot(best).seat.breaker.is_probe_due(self.now) {
                break;
            }
            let Some(other) = self.draw_other(tier, rng, &drawn[..number]) else { break };
            drawn[number] = other.slot;
            if self.slot(other).seat.breaker.is_probe_due(self.now) || self.is_busier(best, other) {
                best = other;
            }
        }
        Some(self.slot(best))
    }

    /// The best of all, and of equally good ones one by weight.
    fn best_of_all(&self, tier: &Tier, rng: &mut fastrand::Rng) -> Option<&'a Slot<T>> {
        let (mut least, mut total, mut best) = (f32::INFINITY, 0.0, None);
        for member in tier.members.iter().filter(|member| (self.usable)(self.slot(member))) {
            let slot = self.slot(member);
            if slot.seat.breaker.is_probe_due(self.now) {
                return Some(slot);
            }
            let factor = self.factor(slot);
            let latency = self.latency(&slot.seat.load).unwrap_or(0.0) + NOISE_US;
            let load = latency * queue(&slot.seat.load, member.share * factor) / factor;
            if load < least {
                (least, total) = (load, 0.0);
            }
            if load <= least {
                let weight = member.weight as f32;
                total += weight;
                if rng.f32() * total < weight {
                    best = Some(slot);
                }
            }
        }
        best
    }

    /// Of two drawn, the one whose last failure is longer ago.
    pub(super) fn longest_failed(&self, tier: &Tier, rng: &mut fastrand::Rng) -> Option<&'a Slot<T>> {
        let first = self.draw(tier, rng)?;
        let second = self.draw_other(tier, rng, &[first.slot]);
        let (first, second) = (self.slot(first), second.map(|second| self.slot(second)));
        let failed_earlier = |slot: &&Slot<T>| slot.seat.breaker.last_failed() < first.seat.breaker.last_failed();
        Some(second.filter(failed_earlier).unwrap_or(first))
    }

    /// The latency that is compared, if the algorithm compares any and there is one.
    fn latency(&self, load: &Load) -> Option<f32> {
        match self.settings.algorithm {
            Algorithm::LeastRequests => None,
            Algorithm::ShortestResponse => load.mean_us(self.now),
            _ => load.latency_us(self.now),
        }
    }

    /// Whether `second` has less to do, or is quicker by more than noise. What is slow is not asked until its latency is
    /// forgotten so far that it may be as quick as the others, which is how its recovery is noticed.
    fn is_busier(&self, first: &Member, second: &Member) -> bool {
        let slots = (self.slot(first), self.slot(second));
        let loads = (&slots.0.seat.load, &slots.1.seat.load);
        let shares = (first.share * self.factor(slots.0), second.share * self.factor(slots.1));
        let slower = match (self.latency(loads.0), self.latency(loads.1)) {
            (Some(a), Some(b)) => beyond_noise((a + NOISE_US) / (b + NOISE_US)),
            _ => 1.0,
        };
        slower * queue(loads.0, shares.0) / queue(loads.1, shares.1) > 1.0
    }
}

/// The most instances drawn for one choice.
const MAX_CHOICES: usize = 16;

fn queue(load: &Load, share: f32) -> f32 {
    1.0 + load.in_flight() as f32 / share
}

fn beyond_noise(ratio: f32) -> f32 {
    if ratio > EQUAL_WITHIN {
        ratio / EQUAL_WITHIN
    } else if ratio < 1.0 / EQUAL_WITHIN {
        ratio * EQUAL_WITHIN
    } else {
        1.0
    }
}
