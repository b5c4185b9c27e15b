//! What a request passes before it goes anywhere, in order. This list is the order; [`admit`] reads like it (but for the
//! first, which `serve` asks).
//!
//! | # | Guard | Why here |
//! |---|---|---|
//! | 1 | system: this host as a whole (`system`; of the node's settings, not of a policy) | at the entrances, those of other nodes' requests included, and before the body is read: what this host cannot do at all costs nobody anything below |
//! | 2 | degrade: the switch | whoever turned it wants nothing below to be asked |
//! | 3 | callers: lists by name | who has no business here costs nobody a place or a token. (Who *may* call is decided at the instance's side, by certificate: `access`.) |
//! | 4 | faults: delay, abort, reset | trouble made on purpose stands for the callee's: nothing below may spare it, and it takes no place or token |
//! | 5 | shed: by criticality | under overload the cheapest no comes first, and the least important requests get it; what it goes by is the waits at 8 and 9 |
//! | 6 | limits: the service's, then the route's | they count what is asked; what waits for a place below has been counted |
//! | 7 | quotas: of the mesh as a whole | after this node's own limits: what they refuse asks nothing of others |
//! | 8 | bulkhead: so many at once | after the limits, so that who is refused there never held a place |
//! | 9 | concurrency: as many as the callee can do | within the bulkhead's places; its clock starts after the wait there |
//! | 10 | circuit: the service's, route's or method's breaker | last: its trial permits are few, and none is taken by who would have been refused above; its clock measures the callee, not our queues |
//! | 11 | mirror | copies of what really goes out, and of nothing else |
//! | 12 | attempts (`stack`): retries, balance with the instances' breakers, exchange | one admission for all attempts: a retry is no new request |
//! | 13 | learn: circuit (of a call of gRPC at its end) and the time it took at the response's head, places when its body has ended | how long a body takes is also its reader's doing |
//!
//! Whoever waits in one of these (a fault's delay, a limit's pace, a place) waits no longer than its client is there.
//!
//! A request to a service without a policy passes all this by one look at `Scope::is_guarded`. Limits are this
//! node's: each sidecar counts what its own applications ask. Quotas are shared out by the heart (`quotas`).

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::StatusCode;
use starling_core::guard::bulkhead::{Admission, Pass as Place, Waiting};
use starling_core::guard::circuit::{Came, CircuitPermit};
use starling_core::guard::concurrency::{ConcurrencyAdmission, ConcurrencyPermit};
use starling_core::guard::limit::LimitBy;
use starling_core::guard::shed::Level;
use starling_core::guard::{Guard, Outcome, Refusal, Shed};
use starling_core::policy::{Asked, Fault, Held, Scope, value_of};
use starling_core::time::{Instant as Moment, WallTime};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::Client;
use crate::clock::{self, Clock};
use crate::last_good::Keep;
use crate::mesh::Stream;
use crate::reason::{Reason, Refused};

/// The most different (guard, reason, rule) that are counted apart; the rest is counted as one.
const MAX_REASONS: usize = 64;

/// What a guard refused, and how often: looked up without a lock, written once for each reason.
#[derive(Debug)]
pub(crate) struct Refusals {
    known: [OnceLock<Why>; MAX_REASONS],
    counts: [AtomicU64; MAX_REASONS],
    others: AtomicU64,
}

/// Who said no, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Why {
    pub(crate) guard: &'static str,
    pub(crate) reason: &'static str,
    /// The rule's name, for guards that have several.
    pub(crate) rule: String,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            known: std::array::from_fn(|_| OnceLock::new()),
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            others: AtomicU64::new(0),
        }
    }
}

impl Refusals {
    pub(crate) fn count(&self, guard: &'static str, reason: &'static str, rule: &str) {
        let same = |why: &Why| why.guard == guard && why.reason == reason && why.rule == rule;
        for (known, count) in self.known.iter().zip(&self.counts) {
            // Whoever loses the race for a free place looks whether the winner meant the same.
            if same(known.get_or_init(|| Why { guard, reason, rule: rule.to_owned() })) {
                count.fetch_add(1, Relaxed);
                return;
            }
        }
        self.others.fetch_add(1, Relaxed);
    }

    /// What was refused so far.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Why, u64)> {
        let known = self
            .known
            .iter()
            .zip(&self.counts)
            .filter_map(|(why, count)| Some((why.get()?.clone(), count.load(Relaxed))));
        let others = self.others.load(Relaxed);
        let rest = Why { guard: "other", reason: "more reasons than are told apart", rule: String::new() };
        known.chain((others > 0).then_some((rest, others)))
    }
}

/// What a request that was let through holds until it has ended.
pub(crate) struct Pass {
    scope: Arc<Scope>,
    clock: Clock,
    circuit: Option<CircuitPermit>,
    concurrency: Option<ConcurrencyPermit>,
    place: Option<Place>,
    outcome: Outcome,
    /// What is to be kept of its answer.
    pub(crate) keep: Option<Box<Keep>>,
    /// How fast the response's body may pass, by a fault.
    pub(crate) throttle: Option<u64>,
    /// The faults that slow it down.
    throttled: Vec<Held<Fault>>,
}

impl Pass {
    /// The response's head has come, and its end will say how the call went.
    pub(crate) fn begins(&mut self) {
        let now = self.clock.now();
        if let Some(circuit) = &mut self.circuit {
            circuit.answered(now);
        }
        if let Some(concurrency) = &mut self.concurrency {
            concurrency.answered(Outcome::Success, now, clock::random());
        }
    }

    /// It is known how the call went, or nothing came.
    pub(crate) fn learn(&mut self, came: Came, told: Option<Duration>) {
        self.outcome = self.scope.failures.judge(came);
        let now = self.clock.now();
        if let Some(concurrency) = &mut self.concurrency {
            concurrency.answered(self.outcome, now, clock::random());
        }
        if let Some(circuit) = self.circuit.take()
            && circuit.end(self.outcome, told, now, clock::random())
        {
            tracing::warn!(route = self.scope.route.as_deref(), "a circuit has opened or closed");
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let now = self.clock.now();
        if let Some(concurrency) = self.concurrency.take() {
            concurrency.end(self.outcome, now, clock::random());
        }
        if let Some(place) = self.place.take() {
            place.end(now);
        }
    }
}

/// What is asked about a request.
pub(crate) struct Question<'a> {
    pub(crate) clock: Clock,
    pub(crate) scope: &'a Arc<Scope>,
    pub(crate) asked: &'a Asked<'a>,
    pub(crate) refusals: &'a Refusals,
    /// Nothing may wait for longer.
    pub(crate) deadline: Instant,
}

/// Lets a request through, perhaps after a while, or refuses it.
///
/// # Errors
/// Which guard refused, by which rule and why.
pub(crate) async fn admit<S: Stream>(question: &Question<'_>, client: &mut Client<S>) -> Result<Pass, Refused> {
    let scope = question.scope;
    let mut pass = Pass {
        scope: scope.clone(),
        clock: question.clock,
        circuit: None,
        concurrency: None,
        place: None,
        outcome: Outcome::Ignored,
        keep: None,
        throttle: None,
        throttled: Vec::new(),
    };
    question.degrade()?;
    question.callers()?;
    question.faults(&mut pass, client).await?;
    question.shed()?;
    question.limits(client).await?;
    question.quotas()?;
    question.places(&mut pass, client).await?;
    pass.circuit = question.circuit()?;
    if !scope.watched.is_empty() {
        let now = question.clock.now();
        scope.watched.iter().for_each(|meter| meter.pass(now));
    }
    Ok(pass)
}

impl Question<'_> {
    fn degrade(&self) -> Result<(), Refused> {
        let class = self.scope.class(self.asked);
        match self.scope.forced_open(class, wall()) {
            None => Ok(()),
            Some(retry_after) => {
                let refusal = Refusal { guard: Guard::Breaker, reason: "forced open", retry_after };
                Err(self.refuse(refusal, "degrade"))
            }
        }
    }

    fn callers(&self) -> Result<(), Refused> {
        let Some(callers) = &self.scope.callers else { return Ok(()) };
        callers.admit(self.asked.service).map_err(|refusal| self.refuse(refusal, "callers"))
    }

    async fn faults<S: Stream>(&self, pass: &mut Pass, client: &mut Client<S>) -> Result<(), Refused> {
        for fault in &self.scope.faults {
            if !fault.rule.percent.takes(clock::random()) {
                continue;
            }
            let Some(held) = fault.hold(fault.rule.max_active) else { continue };
            if fault.rule.delay_ms > 0 {
                let until = Instant::now() + Duration::from_millis(fault.rule.delay_ms);
                client.while_there(sleep_until(until.min(self.deadline))).await?;
                if until > self.deadline {
                    return Err(Refused::new(
                        Reason::TimedOut,
                        format!("fault {} held it up beyond its time", fault.rule.name),
                    ));
                }
            }
            if fault.rule.throttle_bytes_per_s > 0 {
                pass.throttle = Some(fault.rule.throttle_bytes_per_s);
            }
            if let Some(end) = ended_by(&fault.rule) {
                return Err(end);
            }
            if fault.rule.throttle_bytes_per_s > 0 {
                pass.throttled.push(held); // it is in the fault's hands until its body has ended
            }
        }
        Ok(())
    }

    fn shed(&self) -> Result<(), Refused> {
        let Some(shed) = &self.scope.shed else { return Ok(()) };
        let class = self.scope.class(self.asked);
        let user = self.scope.sections.classes.user_header.as_ref().and_then(|name| self.asked.fields.field(name));
        let level = match user {
            Some(user) => Level::of(class, user, wall()),
            None => Level::drawn(class, clock::random()),
        };
        shed.admit(self.clock.now(), level).map_err(|refusal| self.refuse(refusal, class.name()))
    }

    async fn limits<S: Stream>(&self, client: &mut Client<S>) -> Result<(), Refused> {
        for (limit, related) in self.scope.limits.iter().zip(&self.scope.related) {
            let name = &limit.settings().name;
            if limit.settings().entrance.as_deref().is_some_and(|entrance| self.asked.service != Some(entrance)) {
                continue; // it came in another way
            }
            if let Some(other) = related {
                limit.admit_related(self.clock.now(), other).map_err(|refusal| self.refuse(refusal, name))?;
                continue;
            }
            let by = &limit.settings().by;
            let value = value_of(by, self.asked);
            if value.is_empty() && *by != LimitBy::All {
                continue; // it has no such header, parameter or cookie: nothing to count it by
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            let wait = limit.admit_within(self.clock.now(), value, 1, left);
            let wait = wait.map_err(|refusal| self.refuse(refusal, name))?;
            if !wait.is_zero() {
                client.while_there(sleep(wait)).await?;
            }
        }
        Ok(())
    }

    fn quotas(&self) -> Result<(), Refused> {
        let mut quotas = self.scope.quotas.iter();
        quotas.try_for_each(|quota| quota.admit(self.clock.now()).map_err(|refusal| self.refuse(refusal, quota.name())))
    }

    /// The places in the bulkhead and the limit of concurrency, one after the other. What they cost in time is what
    /// shedding goes by.
    async fn places<S: Stream>(&self, pass: &mut Pass, client: &mut Client<S>) -> Result<(), Refused> {
        let heard = self.scope.heard;
        let mut queued = heard.bulkhead.then(|| Queued::of(self)).flatten();
        pass.place = self.bulkhead(&mut queued, client).await?;
        if !heard.concurrency {
            drop(queued.take()); // what follows is none of its queues
        } else if queued.is_none() {
            queued = Queued::of(self);
        }
        pass.concurrency = self.concurrency(&mut queued, client).await?;
        Ok(())
    }

    async fn bulkhead<S: Stream>(
        &self,
        queued: &mut Option<Queued<'_>>,
        client: &mut Client<S>,
    ) -> Result<Option<Place>, Refused> {
        let Some(bulkhead) = &self.scope.bulkhead else { return Ok(None) };
        match bulkhead.admit(self.clock.now()).map_err(|refusal| self.full(refusal, "bulkhead", queued))? {
            Admission::Pass(place) => Ok(Some(place)),
            Admission::Wait(waiting) => self.wait(waiting, bulkhead.max_wait(), "bulkhead", client).await.map(Some),
        }
    }

    async fn concurrency<S: Stream>(
        &self,
        queued: &mut Option<Queued<'_>>,
        client: &mut Client<S>,
    ) -> Result<Option<ConcurrencyPermit>, Refused> {
        let Some(concurrency) = &self.scope.concurrency else { return Ok(None) };
        match concurrency.admit(self.clock.now()).map_err(|refusal| self.full(refusal, "concurrency", queued))? {
            ConcurrencyAdmission::Permit(permit) => Ok(Some(permit)),
            ConcurrencyAdmission::Wait(waiting) => {
                let place = self.wait(waiting, concurrency.max_wait(), "concurrency", client).await?;
                Ok(Some(concurrency.begin(place, self.clock.now())))
            }
        }
    }

    fn circuit(&self) -> Result<Option<CircuitPermit>, Refused> {
        let Some(circuits) = &self.scope.circuit else { return Ok(None) };
        let admitted = circuits.of(|| self.asked.called()).admit(self.clock.now(), clock::random());
        admitted.map(Some).map_err(|refusal| self.refuse(refusal, "circuit"))
    }

    async fn wait<S: Stream>(
        &self,
        mut waiting: Waiting,
        most: Duration,
        rule: &str,
        client: &mut Client<S>,
    ) -> Result<Place, Refused> {
        let most = most.min(self.deadline.saturating_duration_since(Instant::now()));
        let waited = match client.while_there(timeout(most, &mut waiting)).await? {
            Ok(ended) => ended,
            Err(_) => Err(waiting.give_up()),
        };
        waited.map_err(|refusal| self.refuse(refusal, rule))
    }

    /// Refused without a wait: there was no room for one.
    fn full(&self, refusal: Refusal, rule: &str, queued: &mut Option<Queued<'_>>) -> Refused {
        if let Some(queued) = queued {
            queued.is_full = true;
        }
        self.refuse(refusal, rule)
    }

    fn refuse(&self, refusal: Refusal, rule: &str) -> Refused {
        let guard = refusal.guard.name();
        let rule = self.scope.rule(refusal.guard, rule);
        self.refusals.count(guard, refusal.reason, &rule);
        Refused::new(Reason::Guard(refusal.guard), refusal.told(&rule)).told(&rule, refusal.retry_after_s())
    }
}

/// A request on its way to its places. When that has ended, however it did, its client's going away included, shedding hears
/// how long it took.
struct Queued<'a> {
    shed: &'a Shed,
    clock: Clock,
    since: Moment,
    is_full: bool,
}

impl<'a> Queued<'a> {
    fn of(question: &Question<'a>) -> Option<Self> {
        let (shed, clock) = (question.scope.shed.as_deref()?, question.clock);
        Some(Self { shed, clock, since: clock.now(), is_full: false })
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if self.is_full {
            self.shed.found_full();
        } else {
            self.shed.waited(self.clock.now().since(self.since));
        }
    }
}

/// How a fault ends a request, if it does.
fn ended_by(fault: &Fault) -> Option<Refused> {
    let why = format!("fault {} was made on purpose", fault.name);
    if fault.reset {
        return Some(Refused::new(Reason::Gone, why));
    }
    let (status, grpc) = match (fault.abort_status, fault.abort_grpc) {
        (Some(status), _) => (StatusCode::from_u16(status).ok()?, None),
        (None, Some(code)) => (StatusCode::OK, Some(code)),
        (None, None) => return None,
    };
    Some(Refused::new(Reason::Fault, why).told(&fault.name, None).answered(status, grpc))
}

/// What a failure to get an answer was.
pub(crate) fn came_of(refused: &Refused) -> Came {
    match refused.reason {
        Reason::TimedOut => Came::Timeout,
        reason if reason.blames_the_callee() => Came::Reset,
        _ => Came::Cancelled,
    }
}

fn wall() -> WallTime {
    WallTime(clock::wall_us() / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_the_rules_or_the_clock_ended_is_no_failure_of_the_callee() {
        let came = |reason| came_of(&Refused::new(reason, ""));
        for reason in [Reason::Forbidden, Reason::Unsupported, Reason::Loop, Reason::Gone, Reason::Late] {
            assert_eq!(came(reason), Came::Cancelled, "{reason:?}");
        }
        assert_eq!(came(Reason::TimedOut), Came::Timeout);
        for reason in [Reason::Connect, Reason::Reset, Reason::NoneUsable, Reason::Broadcast] {
            assert_eq!(came(reason), Came::Reset, "{reason:?}");
        }
    }
}
