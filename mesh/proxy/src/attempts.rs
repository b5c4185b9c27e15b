//! When a request is sent once more, or to several instances at once.
//!
//! One after the other is `stack`'s loop, which asks here what is good, what may be repeated, and for how long. Several at
//! once (hedged, forked, broadcast) is here: only for requests whose body is held, each attempt with a twin of the request
//! and a client of its own that says nothing, so that an attempt is the same thing either way. When all of a round have
//! failed, the next one is a retry as any other. The winner's head is then
//! put before the real client; whoever is not needed any more is dropped, and with it its connection.
//!
//! *One owner.* Whoever repeats says so to whom it calls (`x-starling-attempt`), and an application passes that on with the
//! calls it makes for it, as it does with `traceparent`. A sidecar that is told of a second attempt makes no further ones
//! of its own: three tries at each of four services in a row would be 81.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use starling_core::balance::{HashOn, InFlight, Outcome, hash_of};
use starling_core::guard::BudgetSettings;
use starling_core::id::{InstanceId, NodeId, ServiceKey};
use starling_core::policy::{Fields, Scope};
use starling_core::tolerate::{Mode, Quantile};
use tokio::time::Instant;

use crate::client::{Client, Outgoing, Silent};
use crate::directory::Entry;
use crate::h1::fields::Written;
use crate::h1::response::{Asked, Response};
use crate::mesh::Stream;
use crate::pool::Pool;
use crate::reason::{self, Reason, Refused};
use crate::relay::Arrived;
use crate::stack::{Attempted, Call, Chosen, arrived, note};
use crate::trace::OpenSpan;

/// Hedges per second that are always allowed: a share of little is nothing.
const HEDGES_FLOOR_PER_S: u32 = 1;

impl Call<'_> {
    /// Whether the caller shall have this answer, rather than another one's.
    pub(crate) fn is_good(&self, response: &Response) -> bool {
        !self.scope.sections.retry.statuses.contains(&response.verdict().as_u16())
    }

    /// Whether it may be sent again although an application may have seen it.
    pub(crate) fn may_repeat(&self, outgoing: &Outgoing) -> bool {
        let unsafe_is_allowed =
            self.scope.sections.retry.unsafe_methods && outgoing.is_whole() && !outgoing.request.upgrades;
        let retry = &self.scope.sections.retry;
        let key_allows = retry.keyed && self.keyed.is_some() && outgoing.is_whole();
        unsafe_is_allowed || key_allows || outgoing.is_repeatable()
    }

    /// Whether repeating is this sidecar's to do.
    pub(crate) fn owns_retries(&self) -> bool {
        self.attempt <= 1 && self.scope.sections.tolerate.mode != Mode::Failfast
    }

    /// Which attempt the next one is, as those who are called shall know it.
    pub(crate) fn number(&self) -> u32 {
        self.attempt.max(self.tried.len() as u32 + 1)
    }

    /// Whether there is time, and patience, to wait as long as an instance asks before the next attempt.
    pub(crate) fn may_wait(&self, asked_wait: Option<Duration>) -> bool {
        asked_wait.is_none_or(|wait| {
            let most = Duration::from_millis(self.scope.sections.retry.max_asked_wait_ms);
            wait <= most && wait < self.deadline.saturating_duration_since(Instant::now())
        })
    }

    /// When one attempt has taken long enough. A body that is passed on cannot be sent again: it has all the time there is.
    pub(crate) fn deadline_of_a_try(&self, outgoing: &Outgoing) -> Instant {
        match self.scope.sections.retry.per_try_timeout_ms {
            0 => self.deadline,
            _ if !outgoing.is_held() => self.deadline,
            ms => self.deadline.min(Instant::now() + Duration::from_millis(ms)),
        }
    }

    /// Whether it shall be sent once more after this.
    pub(crate) fn wants_again(&self, attempted: &Attempted, outgoing: &Outgoing) -> bool {
        match attempted {
            Ok((response, ..)) => !self.is_good(response) && self.may_repeat(outgoing),
            // It is the same everywhere, or will be in a moment.
            Err(failure) if matches!(failure.reason, Reason::Forbidden | Reason::BadRequest | Reason::Gone) => false,
            Err(failure) if failure.reason.is_of_its_key() => false,
            // Never sent, or no harm in doing it twice; either way it must still be here.
            Err(failure) => outgoing.is_whole() && (failure.reason.is_unsent() || self.may_repeat(outgoing)),
        }
    }

    /// Whether more than one instance may be asked at once: that takes a body that is held. Whoever must tell all is
    /// among them with any body, to say that it cannot.
    pub(crate) fn wants_several(&self, outgoing: &Outgoing) -> bool {
        match self.scope.sections.tolerate.mode {
            Mode::Broadcast => true,
            Mode::Forking => outgoing.is_held(),
            _ => self.scope.sections.hedge.is_on() && outgoing.is_held(),
        }
    }

    /// Asks several at once, if the request may be repeated.
    pub(crate) async fn several<S: Stream>(
        mut self,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
    ) -> Result<Arrived, Refused> {
        let (hedge, mode) = (self.scope.sections.hedge, self.scope.sections.tolerate.mode);
        if mode == Mode::Broadcast {
            return self.broadcast(client, outgoing, asked).await;
        }
        let may_be_twice = self.may_repeat(outgoing) || (hedge.unsafe_methods && mode == Mode::Failover);
        if !may_be_twice || outgoing.request.upgrades || !self.owns_retries() {
            return self.attempts(client, outgoing, asked, Instant::now()).await;
        }
        self.entry.hedges.deposit(self.carrier.clock.now());
        let at_once = if mode == Mode::Forking { self.scope.sections.tolerate.forks as usize } else { 1 };
        let (mut again, mut root, mut hedges_left) = (None, None, hedge.max);
        // Each round is one try and its hedges, or the forks; whoever runs in it borrows the call.
        loop {
            let (won, mut crowd) = {
                let call = &self;
                let mut crowd = Crowd::after(&self.tried, root);
                match again.take() {
                    Some(chosen) => _ = crowd.start(call, outgoing, asked, chosen),
                    None => _ = crowd.start_some(call, outgoing, asked, at_once),
                }
                let won = match crowd.running.is_empty() {
                    true => None,
                    false => Some(crowd.first_good(call, client, outgoing, asked, &mut hedges_left).await),
                };
                (won, crowd.ended())
            };
            self.tried.append(&mut crowd.failed);
            let one = match won {
                Some(Won::One(one)) => one,
                Some(Won::ClientGone) => return Err(self.refuse(Reason::Gone, String::new())),
                None => {
                    let why = reason::why_unusable(&self.service);
                    return Err(self.refuse(Reason::NoneUsable, why));
                }
            };
            let goes_on = !one.is_good && crowd.want_again && self.may_wait(crowd.asked_wait);
            again = if goes_on { self.next_chance() } else { None };
            if again.is_none() {
                return self.end_with(*one, client, outgoing, crowd.root);
            }
            one.span.fail(&one.noted.1.error);
            root = crowd.root;
            drop(one.result);
            self.back_off(crowd.asked_wait.unwrap_or_default()).await;
        }
    }

    /// Tells all instances; what cannot be told to all is told to none.
    async fn broadcast<S: Stream>(
        mut self,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
    ) -> Result<Arrived, Refused> {
        let tolerate = self.scope.sections.tolerate;
        let count = self.group.slots().count();
        let why_not = if outgoing.request.upgrades {
            Some("a connection that is to change its protocol leads to one instance".to_owned())
        } else if !outgoing.is_held() {
            let most = self.carrier.settings.max_replay_bytes;
            Some(format!("only a body of a length that is given first, up to {most} bytes, can be sent to all"))
        } else if count > tolerate.broadcast_max as usize {
            Some(format!("the service has more than {} instances to tell at once", tolerate.broadcast_max))
        } else {
            None
        };
        if let Some(why) = why_not {
            return Err(self.refuse(Reason::Broadcast, why));
        }
        if count == 0 {
            let why = reason::why_unusable(&self.service);
            return Err(self.refuse(Reason::NoneUsable, why));
        }
        let (won, mut crowd) = {
            let call = &self;
            let mut crowd = Crowd::after(&self.tried, None);
            call.everyone().into_iter().for_each(|chosen| _ = crowd.start(call, outgoing, asked, chosen));
            (crowd.all(call, client, outgoing).await, crowd.ended())
        };
        self.tried.append(&mut crowd.failed);
        let failed = self.tried.len();
        match won {
            Err(ClientGone) => Err(self.refuse(Reason::Gone, String::new())),
            Ok(Some(good)) if failed * 100 < count * tolerate.broadcast_fail_percent as usize => {
                self.end_with(good, client, outgoing, crowd.root)
            }
            Ok(_) => {
                let why = format!("{failed} of {count} instances failed");
                crowd.root.into_iter().for_each(|root| root.fail(&why));
                Err(self.refuse(Reason::Broadcast, why))
            }
        }
    }

    /// All candidates, broken or not: that one is likely to fail is no reason not to tell it.
    fn everyone(&self) -> Vec<Chosen> {
        let at = Instant::now();
        let now = self.carrier.clock.at(at);
        let chosen = self.group.slots().map(|slot| {
            let breaker = &slot.seat.breaker;
            let permit = breaker.admit(now, true).unwrap_or_else(|| breaker.admit_anyway());
            Chosen { instance: slot.instance.clone(), in_flight: InFlight::begin(&slot.seat), permit, at }
        });
        chosen.collect()
    }

    /// This one's answer, or failure, is the caller's.
    fn end_with<S: Stream>(
        self,
        one: One,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        root: Option<OpenSpan>,
    ) -> Result<Arrived, Refused> {
        let One { result, span, twin, out, .. } = one;
        match result {
            Ok((response, upstream, seated)) => {
                client.out = out;
                outgoing.was_sent_as(&twin);
                Ok(arrived(response, upstream, seated, [Some(span), root]))
            }
            Err(failure) => Err(self.give_up(failure, [Some(span), root])),
        }
    }

    /// How long to wait for an answer before another instance is asked too; none: not at all.
    fn hedges_after(&self) -> Option<Duration> {
        let hedge = &self.scope.sections.hedge;
        if !hedge.is_on() {
            return None;
        }
        let fixed = Duration::from_millis(hedge.after_ms);
        match hedge.after_percentile {
            0 => Some(fixed),
            // Until it is known what is usual, nothing is unusual.
            _ => self.entry.latency.get().map(|usual| usual.max(fixed)),
        }
    }

    /// One attempt with a twin of the request, from the choice to the head of its answer.
    async fn alone(&self, chosen: Chosen, mut twin: Outgoing, asked: &Asked, mut span: OpenSpan) -> One {
        let Chosen { instance, in_flight, permit, at } = chosen;
        let mut client = Client::new(Silent);
        let mut watch = Unfinished::of(self, &in_flight);
        let result = self.attempt(&instance, in_flight, permit, at, &mut client, &mut twin, asked, &mut span).await;
        watch.is_over();
        // One that failed in its own way is not repeated for it, but another's answer is better.
        let is_good = matches!(&result, Ok((response, ..))
            if self.is_good(response) && !response.verdict().is_server_error());
        let noted = note(&instance, &result);
        One { result, noted, is_good, span, twin, out: client.out }
    }
}

/// How an attempt among several ended.
struct One {
    result: Attempted,
    noted: (InstanceId, reason::Tried),
    is_good: bool,
    span: OpenSpan,
    twin: Outgoing,
    /// The head of its answer.
    out: Vec<u8>,
}

/// What a round brought.
enum Won {
    /// This one's answer, good or not: all others have failed before it, or are not waited for.
    One(Box<One>),
    ClientGone,
}

/// The client has gone away.
struct ClientGone;

/// Attempts that run at once.
struct Crowd<'a> {
    running: Vec<Pin<Box<dyn Future<Output = One> + Send + 'a>>>,
    /// The instances they were sent to, and those tried before.
    taken: Vec<InstanceId>,
    so_far: Ended,
}

/// What is left of attempts that have ended.
struct Ended {
    /// The span of the whole call.
    root: Option<OpenSpan>,
    /// Those that were not good.
    failed: Vec<(InstanceId, reason::Tried)>,
    /// Whether none of these is a reason not to send it once more.
    want_again: bool,
    /// The longest wait that any of them has asked for.
    asked_wait: Option<Duration>,
}

/// What happened next.
enum Next {
    Ended(One),
    Rang,
    ClientGone,
}

impl<'a> Crowd<'a> {
    /// Nobody yet, after these were tried.
    fn after(tried: &[(InstanceId, reason::Tried)], root: Option<OpenSpan>) -> Self {
        let taken = tried.iter().map(|(instance, _)| instance.clone()).collect();
        let so_far = Ended { root, failed: Vec::new(), want_again: true, asked_wait: None };
        Self { running: Vec::new(), taken, so_far }
    }

    /// Drops whoever still runs.
    fn ended(self) -> Ended {
        self.so_far
    }

    /// Starts one there. Whether it could: the body must be held.
    fn start<'c: 'a>(&mut self, call: &'c Call<'c>, outgoing: &Outgoing, asked: &'a Asked, chosen: Chosen) -> bool {
        let Some(mut twin) = outgoing.twin() else { return false };
        self.taken.push(chosen.instance.key.instance.clone());
        // All but the first are told that somebody else sees to it, too.
        twin.request.attempt = self.taken.len() as u32;
        let mut span = call.begin_span(outgoing, &chosen.instance);
        match &self.so_far.root {
            Some(root) => span.set_parent(root.id()),
            None => self.so_far.root = Some(call.begin_root(&mut span, outgoing)),
        }
        self.running.push(Box::pin(call.alone(chosen, twin, asked, span)));
        true
    }

    /// Starts so many more, each at another instance; fewer where there are no more. How many.
    fn start_some<'c: 'a>(&mut self, call: &'c Call<'c>, outgoing: &Outgoing, asked: &'a Asked, count: usize) -> usize {
        let mut more = || {
            let chosen = call.choose_except(&self.taken, Instant::now())?;
            self.start(call, outgoing, asked, chosen).then_some(())
        };
        (0..count).map_while(|_| more()).count()
    }

    /// Takes note of one that was not good.
    fn failed(&mut self, call: &Call<'_>, outgoing: &Outgoing, one: &One) {
        let asked_wait = one.result.as_ref().ok().and_then(|(response, ..)| response.asks_wait);
        self.so_far.asked_wait = self.so_far.asked_wait.max(asked_wait);
        self.so_far.want_again &= call.wants_again(&one.result, outgoing);
        self.so_far.failed.push(one.noted.clone());
    }

    /// The next one that ends, unless the client goes away or the time comes before.
    async fn next<S: Stream>(&mut self, client: &mut Client<S>, until: Option<Instant>) -> Next {
        if let Some(until) = until {
            client.alarm.set(until);
        }
        poll_fn(|cx| {
            for at in 0..self.running.len() {
                if let Poll::Ready(one) = self.running[at].as_mut().poll(cx) {
                    drop(self.running.swap_remove(at));
                    return Poll::Ready(Next::Ended(one));
                }
            }
            if client.poll_gone(cx).is_ready() {
                return Poll::Ready(Next::ClientGone);
            }
            if until.is_some() && client.alarm.poll(cx).is_ready() {
                return Poll::Ready(Next::Rang);
            }
            Poll::Pending
        })
        .await
    }

    /// The first good answer; if there is none, the last one that came.
    async fn first_good<'c: 'a, S: Stream>(
        &mut self,
        call: &'c Call<'c>,
        client: &mut Client<S>,
        outgoing: &Outgoing,
        asked: &'a Asked,
        hedges_left: &mut u32,
    ) -> Won {
        let budget =
            BudgetSettings { percent: call.scope.sections.hedge.budget_percent, floor_per_s: HEDGES_FLOOR_PER_S };
        let next_hedge = |left: u32| Some(Instant::now() + call.hedges_after().filter(|_| left > 0)?);
        let mut hedge_at = next_hedge(*hedges_left);
        loop {
            match self.next(client, hedge_at).await {
                Next::ClientGone => return Won::ClientGone,
                Next::Rang => {
                    let is_allowed = call.entry.hedges.withdraw_within(call.carrier.clock.now(), budget);
                    if is_allowed && self.start_some(call, outgoing, asked, 1) > 0 {
                        call.entry.metrics.hedges.fetch_add(1, Relaxed);
                        *hedges_left -= 1;
                        hedge_at = next_hedge(*hedges_left);
                    } else {
                        hedge_at = None;
                    }
                }
                Next::Ended(one) if one.is_good => return Won::One(Box::new(one)),
                Next::Ended(one) => {
                    self.failed(call, outgoing, &one);
                    // While others may still do better.
                    if self.running.is_empty() {
                        return Won::One(Box::new(one));
                    }
                    one.span.fail(&one.noted.1.error);
                }
            }
        }
    }

    /// All of them: the last good answer, if there is one.
    async fn all<S: Stream>(
        &mut self,
        call: &Call<'_>,
        client: &mut Client<S>,
        outgoing: &Outgoing,
    ) -> Result<Option<One>, ClientGone> {
        let mut good = None;
        while !self.running.is_empty() {
            match self.next(client, None).await {
                Next::ClientGone => return Err(ClientGone),
                Next::Ended(one) if one.is_good => good = Some(one),
                Next::Ended(one) => {
                    self.failed(call, outgoing, &one);
                    one.span.fail(&one.noted.1.error);
                }
                Next::Rang => {}
            }
        }
        Ok(good)
    }
}

/// What of a request its instance is chosen by, hashed; none if it has no such thing.
pub(crate) fn hash(on: &HashOn, caller: Option<&ServiceKey>, me: &NodeId, outgoing: &Outgoing) -> Option<u64> {
    let path = outgoing.path();
    let fields = Written(outgoing.head());
    let query = || path.split_once('?').map_or("", |(_, query)| query);
    match on {
        HashOn::Source => {
            let service = caller.map(ServiceKey::to_string).unwrap_or_default();
            Some(hash_of(format!("{me} {service}").as_bytes()))
        }
        HashOn::Path => Some(hash_of(path.split_once('?').map_or(path, |(path, _)| path).as_bytes())),
        HashOn::Header(name) => fields.field(name).map(hash_of),
        HashOn::Cookie(name) => {
            let cookies = std::str::from_utf8(fields.field("cookie")?).ok()?;
            named(cookies.split(';').map(str::trim_ascii_start), name)
        }
        HashOn::Query(name) => named(query().split('&'), name),
    }
}

fn named<'a>(mut pairs: impl Iterator<Item = &'a str>, name: &str) -> Option<u64> {
    pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(|value| hash_of(value.as_bytes()))
}

/// What the policy calls tolerable is an empty good answer to the caller, and counted.
pub(crate) fn tolerate(scope: &Scope, entry: &Entry, carried: Result<Arrived, Refused>) -> Result<Arrived, Refused> {
    if scope.sections.tolerate.mode != Mode::Failsafe {
        return carried;
    }
    let (why, service, tried) = match carried {
        Ok(arrived) if !arrived.response.verdict().is_server_error() => return Ok(arrived),
        Ok(arrived) => (format!("it answered {}", arrived.response.status.as_u16()), None, Vec::new()),
        Err(refused) if matches!(refused.reason, Reason::Gone | Reason::BadRequest | Reason::Forbidden) => {
            return Err(refused);
        }
        Err(refused) => (refused.why, refused.service, refused.tried),
    };
    entry.metrics.tolerated.fetch_add(1, Relaxed);
    tracing::debug!(%why, "a failure was tolerated");
    let mut refused = Refused::new(Reason::Tolerated, why);
    (refused.service, refused.tried) = (service, tried);
    Err(refused)
}

/// An attempt that is given up because another one was quicker has taken at least so long: without that, whoever is
/// always overtaken is never known to be slow.
struct Unfinished<'a> {
    /// Where hedges go by how long answers usually take.
    latency: Option<(&'a Quantile, u32)>,
    seat: Option<Arc<starling_core::balance::Seat<Pool>>>,
    clock: crate::clock::Clock,
    began: starling_core::time::Instant,
}

impl<'a> Unfinished<'a> {
    fn of(call: &Call<'a>, in_flight: &InFlight<Pool>) -> Self {
        let clock = call.carrier.clock;
        let percent = call.scope.sections.hedge.after_percentile;
        let latency = (percent > 0).then_some((&call.entry.latency, percent));
        Self { latency, seat: Some(in_flight.seat().clone()), clock, began: clock.now() }
    }

    fn is_over(&mut self) {
        self.seat = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let Some(seat) = &self.seat else { return };
        let now = self.clock.now();
        let took = now.since(self.began);
        if let Some((latency, percent)) = self.latency {
            latency.observe_at_least(percent, took);
        }
        let known_us = seat.load.latency_us(now).unwrap_or(0.0);
        if took.as_micros() as f32 > known_us {
            seat.load.observe(now, took, Outcome::Good);
        }
    }
}
