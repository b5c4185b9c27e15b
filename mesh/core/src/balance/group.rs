//! The order in which candidates are tried.
//!
//! A request is for one level by the levels' shares (see `places`), and for the others in order if that one has nothing
//! for it; then for those in doubt, near ones first. Each of these tiers is looked through twice: for instances that are
//! not broken or whose probe is due, and, if there is none anywhere, for any that may be probed early. What is left are
//! broken ones that still answer.

use std::sync::Arc;

use super::load::Pace;
use super::places::{LEVELS, Level, Remembered, Shares};
use super::prequal::Report;
use super::roster::{Distance, Roster, Slot};
use super::settings::{Algorithm, BalanceSettings, HashOn, Locality, Otherwise, Subset};
use super::tier::{Choice, Tier};
use crate::guard::idempotency::weight_for;
use crate::guard::{BreakerState, Permit};
use crate::id::InstanceId;
use crate::time::Instant;
use crate::view::{InstanceView, ServiceView};

/// The candidates of one service in the order they are tried, as one settings document wants it; made once per change of
/// either.
#[derive(Debug)]
pub struct Group<T> {
    roster: Arc<Roster<T>>,
    settings: Arc<BalanceSettings>,
    pace: Pace,
    /// Ready ones by level, then those in doubt by level.
    tiers: [Tier; 2 * LEVELS],
    /// The weight that each level should have.
    expected: [u64; LEVELS],
    shares: Remembered,
}

/// What a request brings to the choice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask<'a> {
    /// Instances that are left out: they were tried.
    pub tried: &'a [InstanceId],
    /// The hash of what [`Group::hashes_on`], if the request has it.
    pub key: Option<u64>,
}

impl<T> Group<T> {
    /// The candidates as these settings (checked before) want them.
    pub fn new(roster: Arc<Roster<T>>, settings: Arc<BalanceSettings>) -> Self {
        let is_meant = meant(&roster, &settings.subset);
        let level = |distance: Distance| match settings.locality {
            Locality::Anywhere => 0,
            Locality::Zone | Locality::ZoneByCapacity => distance as usize,
        };
        let mut members: [Vec<(u32, u32)>; 2 * LEVELS] = Default::default();
        let mut expected = [0; LEVELS];
        for (at, slot) in roster.slots.iter().enumerate().filter(|(_, slot)| is_meant(&slot.instance)) {
            let (level, weight) = (level(slot.distance), slot.instance.weight());
            expected[level] += u64::from(weight);
            members[if slot.is_ready() { level } else { LEVELS + level }].push((at as u32, weight));
            if settings.algorithm == Algorithm::ShortestResponse {
                slot.seat.load.want_mean();
            }
        }
        for (instance, distance) in roster.missing.iter().filter(|(instance, _)| is_meant(instance)) {
            expected[level(*distance)] += u64::from(instance.weight());
        }
        drop(is_meant);
        // Elsewhere on every node and after every change: the first instances would else get every beginning.
        let revision = roster.service.revision.0;
        let first_turn = xxhash_rust::xxh3::xxh3_64_with_seed(roster.me.as_str().as_bytes(), revision) >> 32;
        let tiers = members.map(|members| Tier::new(members.into_iter(), first_turn));
        let pace = Pace {
            slow_start_s: settings.slow_start_ms as f32 / 1_000.0,
            start: settings.slow_start_min_percent as f32 / 100.0,
            healthy_min: settings.health_min_percent as f32 / 100.0,
        };
        Self { roster, settings, pace, tiers, expected, shares: Remembered::default() }
    }

    /// The service it was made from.
    pub fn service(&self) -> &Arc<ServiceView> {
        &self.roster.service
    }

    /// The candidates it was made from.
    pub fn roster(&self) -> &Arc<Roster<T>> {
        &self.roster
    }

    /// The settings it was made by.
    pub fn settings(&self) -> &Arc<BalanceSettings> {
        &self.settings
    }

    /// What of a request is to be hashed for [`Ask::key`], if anything.
    pub fn hashes_on(&self) -> Option<&HashOn> {
        matches!(self.settings.algorithm, Algorithm::RingHash | Algorithm::Maglev).then_some(&self.settings.key)
    }

    /// All candidates that are meant, nearest first, those in doubt last.
    pub fn slots(&self) -> impl Iterator<Item = &Slot<T>> {
        self.tiers.iter().flat_map(|tier| &tier.members).map(|member| &self.roster.slots[member.slot as usize])
    }

    /// The instance for the next request, with its breaker's permit; `None` when none is usable.
    pub fn choose(&self, now: Instant, rng: &mut fastrand::Rng, ask: &Ask<'_>) -> Option<(&Slot<T>, Permit)> {
        let (level, panics) = self.level(now, rng);
        if panics && let Some(chosen) = self.choose_in_panic(level, now, rng, ask) {
            return Some(chosen);
        }
        let others = (0..LEVELS).filter(|other| *other != level);
        let order = std::iter::once(level).chain(others).chain(LEVELS..2 * LEVELS);
        let unbroken_or_probe = [false, true].into_iter().find_map(|desperate| {
            order.clone().map(|tier| &self.tiers[tier]).filter(|tier| !tier.members.is_empty()).find_map(|tier| {
                let usable = |slot: &Slot<T>| slot.seat.breaker.admits(now, desperate) && !ask.has_tried(slot);
                let choice = self.choice(now, ask, usable);
                // Whoever loses the race for a breaker's one probe finds it refused in the next round.
                (0..=tier.members.len()).find_map(|_| match choice.among(tier, rng) {
                    None => Some(None),
                    Some(slot) => slot.seat.breaker.admit(now, desperate).map(|permit| Some((slot, permit))),
                })?
            })
        });
        unbroken_or_probe.or_else(|| self.choose_broken(now, rng, ask))
    }

    /// The instance for a request with an idempotency key: wherever the caller, the same one for the same key, while it is
    /// there, not broken and not tried; `None` when no other is left either. Where it is, and how busy, does not matter.
    pub fn choose_for_key(&self, now: Instant, key: u64, tried: &[InstanceId]) -> Option<(&Slot<T>, Permit)> {
        let ready = self.tiers[..LEVELS].iter().flat_map(|tier| &tier.members);
        let slots = ready.map(|member| (&self.roster.slots[member.slot as usize], member.weight));
        let usable = slots
            .filter(|(slot, _)| slot.seat.breaker.admits(now, false) && !tried.contains(&slot.instance.key.instance));
        let drawn = usable.map(|(slot, weight)| (slot, weight_for(key, slot.instance.key.instance.as_str(), weight)));
        let (slot, _) = drawn.max_by(|(_, one), (_, other)| one.total_cmp(other))?;
        slot.seat.breaker.admit(now, false).map(|permit| (slot, permit))
    }

    /// What an instance said of itself, if that matters here.
    pub fn report(&self, now: Instant, instance: &InstanceId, report: Report) {
        if self.wants_reports()
            && let Some(slot) = self.roster.slot_of(instance)
        {
            self.roster.reports.add(now, slot, report, &self.settings.prequal);
        }
    }

    /// Whether what instances say of themselves matters.
    pub fn wants_reports(&self) -> bool {
        self.settings.algorithm == Algorithm::Prequal
    }

    /// An instance to be asked how it is, any of where the next request would go. Not by weight: among those that have
    /// answered, the choice is.
    pub fn ask_whom(&self, now: Instant, rng: &mut fastrand::Rng) -> Option<&Slot<T>> {
        let members = &self.tiers[self.level(now, rng).0].members;
        let member = rng.choice(members)?;
        let slot = &self.roster.slots[member.slot as usize];
        Some(slot).filter(|slot| slot.seat.breaker.state() == BreakerState::Closed)
    }

    fn choice<'a, F: Fn(&Slot<T>) -> bool>(&'a self, now: Instant, ask: &Ask<'_>, usable: F) -> Choice<'a, T, F> {
        let (roster, settings) = (&*self.roster, &*self.settings);
        Choice { roster, settings, pace: self.pace, now, key: ask.key, usable }
    }

    /// The level of the next request, and whether it is in panic.
    fn level(&self, now: Instant, rng: &mut fastrand::Rng) -> (usize, bool) {
        let nearest = self.expected.iter().position(|expected| *expected > 0).unwrap_or(0);
        let is_only = self.expected.iter().skip(nearest + 1).all(|expected| *expected == 0);
        if is_only && self.settings.panic_percent == 0 {
            return (nearest, false);
        }
        let shares = self.shares.get(now, || self.compute_shares());
        let level = if is_only { nearest } else { shares.level(rng.u32(0..1_000)) };
        (level, shares.panic[level])
    }

    fn compute_shares(&self) -> Shares {
        let mut levels = [Level { expected: 0, usable: 0, capacity: 1.0 }; LEVELS];
        for (level, (tier, expected)) in levels.iter_mut().zip(self.tiers.iter().zip(self.expected)) {
            let closed = tier
                .members
                .iter()
                .filter(|member| self.roster.slots[member.slot as usize].seat.breaker.state() == BreakerState::Closed);
            level.usable = closed.map(|member| u64::from(member.weight)).sum();
            level.expected = expected;
        }
        if self.settings.locality == Locality::ZoneByCapacity {
            let all: u64 = levels.iter().map(|level| level.usable).sum();
            let nodes = self.roster.here.nodes;
            let (mut usable, mut below) = (0, 0.0);
            for (level, as_near) in levels.iter_mut().zip(nodes) {
                usable += level.usable;
                // What the instances that are as near can take of what the nodes that are as near send.
                let can = usable as f64 / all.max(1) as f64;
                let sent = f64::from(as_near.max(1)) / f64::from(nodes[LEVELS - 1].max(1));
                let part = f64::min(can / sent, 1.0).max(below);
                level.capacity = part - below;
                below = part;
            }
        }
        Shares::of(&levels, self.settings.overprovisioning_percent, self.settings.panic_percent)
    }

    /// Any instance of the level that may still answer, in doubt or broken though it be.
    fn choose_in_panic(
        &self,
        level: usize,
        now: Instant,
        rng: &mut fastrand::Rng,
        ask: &Ask<'_>,
    ) -> Option<(&Slot<T>, Permit)> {
        let usable = |slot: &Slot<T>| {
            (slot.seat.breaker.admits(now, true) || slot.seat.breaker.still_answers()) && !ask.has_tried(slot)
        };
        let (ready, doubtful) = (&self.tiers[level], &self.tiers[LEVELS + level]);
        let both = ready.weight() + doubtful.weight();
        let (first, second) =
            if rng.u64(0..both.max(1)) < ready.weight() { (ready, doubtful) } else { (doubtful, ready) };
        let choice = self.choice(now, ask, usable);
        let slot = choice.among(first, rng).or_else(|| choice.among(second, rng))?;
        let permit = slot.seat.breaker.admit(now, true).unwrap_or_else(|| slot.seat.breaker.admit_anyway());
        Some((slot, permit))
    }

    /// A broken instance that still answers, if there is none that is not broken.
    fn choose_broken(&self, now: Instant, rng: &mut fastrand::Rng, ask: &Ask<'_>) -> Option<(&Slot<T>, Permit)> {
        // One that is not broken was tried already (it would have been taken otherwise): that is choice enough.
        if self.slots().any(|slot| ask.has_tried(slot) && slot.seat.breaker.state() == BreakerState::Closed) {
            return None;
        }
        let usable = |slot: &Slot<T>| slot.seat.breaker.still_answers() && !ask.has_tried(slot);
        let slot = self.tiers.iter().find_map(|tier| self.choice(now, ask, usable).longest_failed(tier, rng))?;
        Some((slot, slot.seat.breaker.admit_anyway()))
    }
}

impl Ask<'_> {
    fn has_tried<T>(&self, slot: &Slot<T>) -> bool {
        self.tried.contains(&slot.instance.key.instance)
    }
}

/// Which instances are meant.
fn meant<'a, T>(roster: &Roster<T>, subset: &'a Subset) -> impl Fn(&InstanceView) -> bool + use<'a, T> {
    let matches = move |instance: &InstanceView| {
        let (details, version) = (&instance.instance.details, &instance.instance.version);
        subset.tags.iter().all(|tag| details.tags().contains(tag))
            && subset.version.as_ref().is_none_or(|wanted| version.as_str() == wanted)
            && subset.metadata.iter().all(|(key, value)| details.metadata().get(key).is_some_and(|held| held == value))
    };
    let there_are = subset.is_everything() || roster.slots.iter().any(|slot| matches(&slot.instance));
    move |instance| match subset.otherwise {
        _ if there_are => matches(instance),
        Otherwise::Any => true,
        Otherwise::Untagged => instance.instance.details.tags().is_empty(),
        Otherwise::Nowhere => false,
    }
}
