//! Which instance gets the next request.
//!
//! | Room | What it decides |
//! |---|---|
//! | [`settings`](BalanceSettings) | what can be wished |
//! | [`roster`](Roster) | the candidates of a service, and what is kept of each from one picture to the next |
//! | [`group`](Group) | in which order candidates are tried: places first, doubtful last, broken only when none is left |
//! | `places` | how much of the traffic stays near |
//! | `tier` | weights, the draw, and the algorithms that draw a few and compare them |
//! | `turns`, `ring`, `maglev`, `prequal` | the other algorithms |
//! | [`load`](Load) | what is measured of one instance |
//!
//! The default is two random choices by peak-EWMA latency: two instances are drawn by weight (without replacement) and
//! the less loaded one is taken ("power of two choices"). Load is latency times requests in flight; latency is Finagle's
//! peak EWMA: jumps up to every slower answer at once, forgets with a time constant of ten seconds, also while nothing is
//! heard. Four refinements, each against a known flaw, which other algorithms share where they apply:
//!
//! - *Weights are in the draw, not in the comparison.* Dividing the load by the weight makes the heavier of two idle
//!   instances win always. In the draw, equally loaded instances get exactly their share; requests in flight are
//!   compared per weight, so that stays true under load.
//! - *Equal means equal within noise.* At low load the strict comparison sends everything to whichever of two equal
//!   instances was a little faster last (measured with another proxy: 436 to 65). Latencies within half of each other,
//!   or within half a millisecond, count as equal. A slower one is asked again when its latency is forgotten so far,
//!   which is how its recovery is noticed.
//! - *Failing fast must not attract.* A failed answer, or one that asks to slow down, is observed as
//!   [`FAILURE_PENALTY`], not as its short latency; and whatever the algorithm, an instance whose answers are unwelcome
//!   gets a part of its weight only. So one that fails fast, and so has few requests in flight, is not taken for idle.
//! - *No history is no reason.* An instance that has not answered yet is assumed to be as fast as the one it is
//!   compared with; its requests in flight still count, so a dead newcomer collects few.
//!
//! A breaker takes an instance out in favour of a better one, so only while there is one: when all of a service are
//! broken, refusing spares nobody and costs the requests that would have gone well. Envoy's panic threshold is the same
//! rule (with too small a share of good hosts it sends to bad ones too); ours is by default the simplest of thresholds,
//! none left. An application that fails only some requests opens all breakers: without the rule, 14 failures of one were
//! seen to become 280 refusals.
//! (And of several, some stay in: [`crate::guard::ejections`].)
//! It holds for instances that *answer*: of two drawn, the one takes the request whose last failure is longer ago, so
//! what has recovered is preferred at once. Where no answer comes (nobody listens, or it hangs) quick refusal is worth
//! more than a long wait, and only probes go there. Probes stay what closes a breaker, here as ever.
//!
//! What is known of an instance lives in its [`Seat`], beside the view: seats are taken over when the view changes and
//! vanish with their instance. They vanish as well when there is word newer than what is held against it: its owner
//! wrote of it, was started anew, or came back after being lost. Otherwise a penalty of seconds, forgotten at the pace
//! above, would keep callers away for most of a minute from an instance that is long well again. A decision takes no
//! lock and never waits.

mod group;
mod load;
mod maglev;
mod places;
mod prequal;
mod ring;
mod roster;
mod settings;
mod tier;
mod turns;

pub use group::{Ask, Group};
pub use load::{FAILURE_PENALTY, InFlight, Load, Outcome, Seat};
pub use prequal::{Answering, Report, Reporter};
pub use roster::{Roster, Slot};
pub use settings::{Algorithm, BalanceSettings, HashOn, Locality, Otherwise, PrequalSettings, Subset};

/// The hash of what a request is chosen by: the same on all nodes.
pub fn hash_of(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

#[cfg(test)]
mod tests;
