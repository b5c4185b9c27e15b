//! Which instance gets the next request: two random choices by peak-EWMA latency, near ones first.
//!
//! Two instances are drawn by weight (without replacement) and the less loaded one is taken ("power of two choices").
//! Load is latency times requests in flight; latency is Finagle's peak EWMA: jumps up to every slower answer at once,
//! forgets with a time constant of ten seconds, also while nothing is heard. Four refinements, each against a known flaw:
//!
//! - *Weights are in the draw, not in the comparison.* Dividing the load by the weight makes the heavier of two idle
//!   instances win always. In the draw, equally loaded instances get exactly their share; requests in flight are
//!   compared per weight, so that stays true under load.
//! - *Equal means equal within noise.* At low load the strict comparison sends everything to whichever of two equal
//!   instances was a little faster last (measured with another proxy: 436 to 65). Latencies within half of each other,
//!   or within half a millisecond, count as equal; beyond that the slower one is still taken now and then, the less
//!   the slower it is, which is also how its recovery is noticed.
//! - *Failing fast must not attract.* A failed answer is observed as [`FAILURE_PENALTY`], not as its short latency.
//! - *No history is no reason.* An instance that has not answered yet is assumed to be as fast as the one it is
//!   compared with; its requests in flight still count, so a dead newcomer collects few.
//!
//! A breaker takes an instance out in favour of a better one, so only while there is one: when all of a service are
//! broken, refusing spares nobody and costs the requests that would have gone well. Envoy's panic threshold is the same
//! rule (with too small a share of good hosts it sends to bad ones too); ours is the simplest of thresholds, none left.
//! An application that fails only some requests opens all breakers: without the rule, 14 failures of one were seen to
//! become 280 refusals.
//! It holds for instances that *answer*: of two drawn, the one takes the request whose last failure is longer ago, so
//! what has recovered is preferred at once. Where no answer comes (nobody listens, or it hangs) quick refusal is worth
//! more than a long wait, and only probes go there. Probes stay what closes a breaker, here as ever.
//!
//! What is known of an instance lives in its [`Seat`], beside the view: seats are taken over when the view changes and
//! vanish with their instance. They vanish as well when there is word newer than what is held against it: its owner
//! wrote of it, was started anew, or came back after being lost. Otherwise a penalty of seconds, forgotten at the pace
//! above, would keep callers away for most of a minute from an instance that is long well again. A decision takes no
//! lock and never waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::guard::{Breaker, BreakerSettings, BreakerState, Permit};
use crate::id::{Incarnation, InstanceId};
use crate::time::Instant;
use crate::view::{InstanceView, ServiceView, Usability, View};

/// How fast latency is forgotten (Finagle's and Linkerd's decay).
const TAU_S: f32 = 10.0;
/// What a failed answer counts as (Linkerd feeds its balancer the same for a 429).
pub const FAILURE_PENALTY: Duration = Duration::from_secs(5);
/// Latency below which differences are scheduling noise, in microseconds.
const NOISE_US: f32 = 500.0;
/// Latencies within this factor of each other count as equal.
const EQUAL_WITHIN: f32 = 1.5;
/// How many times a draw is repeated when it hits an unusable instance, before all are looked at.
const MAX_REDRAWS: usize = 4;

/// What is measured of one instance.
#[derive(Debug, Default)]
pub struct Load {
    /// Zero without history; otherwise the cost in microseconds as `f32` bits, then when it was updated, in ticks.
    cost: AtomicU64,
    in_flight: AtomicU32,
}

/// Ticks of 64 microseconds: fine enough for the decay at any rate, and 32 bits of them repeat only after three days
/// (an instance unheard of for so long looks more recent than it is, which its next answer mends).
fn ticks(now: Instant) -> u32 {
    (now.0 >> 6) as u32
}

fn seconds_between(earlier: u32, later: u32) -> f32 {
    // Another thread may have a later clock reading than ours: that is no time at all, not three days.
    let passed = later.wrapping_sub(earlier) as i32;
    passed.max(0) as f32 * 64e-6
}

impl Load {
    /// An answer came after `latency` (failed ones: [`FAILURE_PENALTY`] or their latency, whichever is longer).
    pub fn observe(&self, now: Instant, latency: Duration) {
        let sample = (latency.as_secs_f32() * 1e6).max(1.0);
        // The closure always returns Some, so the update always happens.
        let _ = self.cost.fetch_update(Relaxed, Relaxed, |word| {
            let cost = match word {
                0 => sample,
                _ => {
                    let (cost, at) = unpack(word);
                    let keep = (-seconds_between(at, ticks(now)) / TAU_S).exp();
                    if sample > cost { sample } else { cost * keep + sample * (1.0 - keep) }
                }
            };
            Some(pack(cost.max(1.0), ticks(now)))
        });
    }

    /// The decayed latency in microseconds, if anything was observed.
    pub fn latency_us(&self, now: Instant) -> Option<f32> {
        match self.cost.load(Relaxed) {
            0 => None,
            word => {
                let (cost, at) = unpack(word);
                Some(cost * (-seconds_between(at, ticks(now)) / TAU_S).exp())
            }
        }
    }

    /// Forgets the latency: the instance gets a fair start (again).
    pub fn forget(&self) {
        self.cost.store(0, Relaxed);
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }
}

fn pack(cost: f32, ticks: u32) -> u64 {
    u64::from(cost.to_bits()) << 32 | u64::from(ticks)
}

fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

/// Everything kept of one instance as long as it is a candidate; `T` is what the carrier adds (its connections).
#[derive(Debug)]
pub struct Seat<T> {
    /// Latency and requests in flight.
    pub load: Load,
    /// Its breaker.
    pub breaker: Arc<Breaker>,
    /// The carrier's own.
    pub extra: T,
}

/// A request in flight at an instance; dropped when its answer has been carried to the end.
#[derive(Debug)]
pub struct InFlight<T>(Arc<Seat<T>>);

impl<T> InFlight<T> {
    /// Counts one more until dropped.
    pub fn begin(seat: &Arc<Seat<T>>) -> Self {
        seat.load.in_flight.fetch_add(1, Relaxed);
        Self(seat.clone())
    }

    /// The seat it is counted at.
    pub fn seat(&self) -> &Arc<Seat<T>> {
        &self.0
    }
}

impl<T> Drop for InFlight<T> {
    fn drop(&mut self) {
        self.0.load.in_flight.fetch_sub(1, Relaxed);
    }
}

/// One candidate with its seat.
#[derive(Debug)]
pub struct Slot<T> {
    /// The instance as the view shows it.
    pub instance: InstanceView,
    /// What is known of it here.
    pub seat: Arc<Seat<T>>,
    /// Which start of its owner this is, if membership knows.
    owner_start: Option<Incarnation>,
    /// Weights up to and including this slot.
    cumulative: u64,
    /// Weight relative to the tier's mean.
    share: f32,
}

/// The candidates of one service in the order they are tried; made once per change of the service.
#[derive(Debug)]
pub struct Group<T> {
    service: Arc<ServiceView>,
    /// Ready in this zone, ready elsewhere, doubtful in this zone, doubtful elsewhere.
    tiers: [Vec<Slot<T>>; 4],
}

impl<T: Default> Group<T> {
    /// The candidates of `service` as `view` shows them, with the seats of `previous` for instances of which nothing
    /// has been heard since that would make what is known of them outdated.
    pub fn new(service: &Arc<ServiceView>, view: &View, breaker: BreakerSettings, previous: Option<&Group<T>>) -> Self {
        // By id, once: a look through all of them per instance would cost a large service's next request dearly.
        let known: BTreeMap<&InstanceId, &Slot<T>> =
            previous.into_iter().flat_map(Group::slots).map(|old| (&old.instance.key.instance, old)).collect();
        let slot = |instance: &InstanceView| {
            let owner_start = view.member(instance.owner()).map(|owner| owner.facts.incarnation);
            let kept = known.get(&instance.key.instance).filter(|old| old.is_current(instance, owner_start));
            let seat = kept.map(|old| old.seat.clone()).unwrap_or_else(|| {
                let breaker = Arc::new(Breaker::new(breaker));
                Arc::new(Seat { load: Load::default(), breaker, extra: T::default() })
            });
            Slot { instance: instance.clone(), seat, owner_start, cumulative: 0, share: 1.0 }
        };
        let candidates = service.candidates();
        let tier = |of: &[InstanceView], near: bool| {
            let members = of.iter().filter(|i| (i.instance.zone == view.zone) == near && i.weight() > 0);
            weighted(members.map(slot).collect())
        };
        let tiers = [
            tier(&candidates.ready, true),
            tier(&candidates.ready, false),
            tier(&candidates.doubtful, true),
            tier(&candidates.doubtful, false),
        ];
        Self { service: service.clone(), tiers }
    }
}

fn weighted<T>(mut slots: Vec<Slot<T>>) -> Vec<Slot<T>> {
    let total: u64 = slots.iter().map(|slot| u64::from(slot.instance.weight())).sum();
    let mean = total as f32 / slots.len().max(1) as f32;
    let mut cumulative = 0;
    for slot in &mut slots {
        cumulative += u64::from(slot.instance.weight());
        slot.cumulative = cumulative;
        slot.share = slot.instance.weight() as f32 / mean;
    }
    slots
}

impl<T> Slot<T> {
    /// Whether what is known of it is still about the same instance as the view shows it now.
    fn is_current(&self, now: &InstanceView, owner_start: Option<Incarnation>) -> bool {
        let before = &self.instance;
        let was_away = matches!(before.usability, Usability::OwnerLost | Usability::Doubtful);
        let came_back = was_away && now.usability == Usability::Ready;
        before.stamp() == now.stamp() && self.owner_start == owner_start && !came_back
    }
}

impl<T> Group<T> {
    /// The service it was made from.
    pub fn service(&self) -> &Arc<ServiceView> {
        &self.service
    }

    /// All candidates.
    pub fn slots(&self) -> impl Iterator<Item = &Slot<T>> {
        self.tiers.iter().flatten()
    }

    /// The instance for the next request, with its breaker's permit; `None` when none is usable. `tried` are left out.
    pub fn choose(&self, now: Instant, rng: &mut fastrand::Rng, tried: &[InstanceId]) -> Option<(&Slot<T>, Permit)> {
        let unbroken_or_probe = [false, true].into_iter().find_map(|desperate| {
            self.tiers.iter().find_map(|tier| {
                let usable = |slot: &Slot<T>| {
                    slot.seat.breaker.admits(now, desperate) && !tried.contains(&slot.instance.key.instance)
                };
                // Whoever loses the race for a breaker's one probe finds it refused in the next round.
                (0..=tier.len()).find_map(|_| match pick(tier, now, rng, &usable) {
                    None => Some(None),
                    Some(slot) => slot.seat.breaker.admit(now, desperate).map(|permit| Some((slot, permit))),
                })?
            })
        });
        unbroken_or_probe.or_else(|| self.choose_broken(rng, tried))
    }

    /// A broken instance that still answers, if there is none that is not broken.
    fn choose_broken(&self, rng: &mut fastrand::Rng, tried: &[InstanceId]) -> Option<(&Slot<T>, Permit)> {
        let is_tried = |slot: &Slot<T>| tried.contains(&slot.instance.key.instance);
        // One that is not broken was tried already (it would have been taken otherwise): that is choice enough.
        if self.slots().any(|slot| is_tried(slot) && slot.seat.breaker.state() == BreakerState::Closed) {
            return None;
        }
        let usable = |slot: &Slot<T>| slot.seat.breaker.still_answers() && !is_tried(slot);
        let slot = self.tiers.iter().find_map(|tier| {
            let first = draw(tier, rng, &usable)?;
            let second = draw(tier, rng, &|slot: &Slot<T>| !std::ptr::eq(slot, first) && usable(slot));
            let failed_earlier = |slot: &&Slot<T>| slot.seat.breaker.last_failed() < first.seat.breaker.last_failed();
            Some(second.filter(failed_earlier).unwrap_or(first))
        })?;
        Some((slot, slot.seat.breaker.admit_anyway()))
    }
}

fn pick<'a, T>(
    tier: &'a [Slot<T>],
    now: Instant,
    rng: &mut fastrand::Rng,
    usable: &impl Fn(&Slot<T>) -> bool,
) -> Option<&'a Slot<T>> {
    let first = draw(tier, rng, usable)?;
    if tier.len() == 1 {
        return Some(first);
    }
    let Some(second) = draw(tier, rng, &|slot: &Slot<T>| !std::ptr::eq(slot, first) && usable(slot)) else {
        return Some(first);
    };
    // A probe is how a broken instance comes back; by its latency alone it would never be taken.
    for slot in [first, second] {
        if slot.seat.breaker.is_probe_due(now) {
            return Some(slot);
        }
    }
    Some(if is_much_busier(first, second, now, rng) { second } else { first })
}

/// One usable slot, by weight: drawn from all and repeated while unusable, which leaves the usable ones' shares as they
/// are; then, if luck fails, drawn from the usable ones alone.
fn draw<'a, T>(
    tier: &'a [Slot<T>],
    rng: &mut fastrand::Rng,
    usable: &impl Fn(&Slot<T>) -> bool,
) -> Option<&'a Slot<T>> {
    let total = tier.last()?.cumulative;
    for _ in 0..MAX_REDRAWS {
        let ball = rng.u64(0..total);
        let slot = &tier[tier.partition_point(|slot| slot.cumulative <= ball)];
        if usable(slot) {
            return Some(slot);
        }
    }
    let mut total = 0;
    let mut chosen = None;
    for slot in tier.iter().filter(|slot| usable(slot)) {
        let weight = u64::from(slot.instance.weight());
        total += weight;
        if rng.u64(0..total) < weight {
            chosen = Some(slot);
        }
    }
    chosen
}

/// Whether to take `second` instead: certain when `first` is far busier, never when it is not.
fn is_much_busier<T>(first: &Slot<T>, second: &Slot<T>, now: Instant, rng: &mut fastrand::Rng) -> bool {
    let latencies = (first.seat.load.latency_us(now), second.seat.load.latency_us(now));
    let slower = match latencies {
        (Some(a), Some(b)) => beyond_noise((a + NOISE_US) / (b + NOISE_US)),
        _ => 1.0,
    };
    let queue = |slot: &Slot<T>| 1.0 + slot.seat.load.in_flight() as f32 / slot.share;
    let ratio = slower * queue(first) / queue(second);
    ratio > 1.0 && rng.f32() > 1.0 / (ratio * ratio)
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

#[cfg(test)]
mod tests;
