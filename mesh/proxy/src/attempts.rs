//! When a request is sent once more, or to several instances at once.
//!
//! One after the other is `stack`'s loop, which asks here what is good, what may be repeated, and for how long. Several at
//! once (hedged, forked, broadcast) is here: only for requests whose body is held, each attempt with a twin of the request
//! and a client of its own that says nothing, so that an attempt is the same thing either way. The winner's head is then
//! put before the real client; whoever is not needed any more is dropped, and with it its connection.
//!
//! *One owner.* Whoever repeats says so to whom it calls (`x-starling-attempt`), and an application passes that on with the
//! calls it makes for it, as it does with `traceparent`. A sidecar that is told of a second attempt makes no further ones
//! of its own: three tries at each of four services in a row would be 81.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use starling_core::balance::{HashOn, InFlight, Outcome, hash_of};
use starling_core::guard::BudgetSettings;
use starling_core::id::{InstanceId, NodeId, ServiceKey};
use starling_core::policy::Fields;
use starling_core::tolerate::Mode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::client::{Client, Outgoing};
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
        unsafe_is_allowed || outgoing.is_repeatable()
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

    /// Whether more than one instance may be asked at once.
    pub(crate) fn wants_several(&self) -> bool {
        self.scope.sections.hedge.is_on()
            || matches!(self.scope.sections.tolerate.mode, Mode::Forking | Mode::Broadcast)
    }

    /// Asks several at once, if the request may be repeated. Its body is held.
    pub(crate) async fn several<S: Stream>(
        mut self,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
    ) -> Result<Arrived, Refused> {
        let (hedge, tolerate) = (self.scope.sections.hedge, self.scope.sections.tolerate);
        let allows_unsafe = hedge.unsafe_methods && !outgoing.request.upgrades;
        let is_sole = !(self.may_repeat(outgoing) || (allows_unsafe && tolerate.mode == Mode::Failover));
        // What its policy says must reach all is sent to all, whatever it is.
        if (is_sole && tolerate.mode != Mode::Broadcast) || !self.owns_retries() || outgoing.request.upgrades {
            return self.attempts(client, outgoing, asked).await;
        }
        let at_once = match tolerate.mode {
            Mode::Broadcast => self.group.slots().count().min(tolerate.broadcast_max as usize + 1),
            Mode::Forking => tolerate.forks as usize,
            _ => 1,
        };
        if tolerate.mode == Mode::Broadcast && at_once > tolerate.broadcast_max as usize {
            let why = format!("the service has more than {} instances to tell at once", tolerate.broadcast_max);
            return Err(self.refuse(Reason::Broadcast, why));
        }
        // Everything below borrows the call but for what was tried, which is noted at the end.
        let mut tried = std::mem::take(&mut self.tried);
        let (won, root) = {
            let call = &self;
            let mut crowd = Crowd { running: Vec::new(), taken: Vec::new(), root: None };
            crowd.start(call, outgoing, asked, at_once);
            let won = if crowd.running.is_empty() {
                None
            } else if tolerate.mode == Mode::Broadcast {
                Some(crowd.all(client, &mut tried, tolerate.broadcast_fail_percent).await)
            } else {
                Some(crowd.first_good(call, client, outgoing, asked, &mut tried).await)
            };
            (won, crowd.root.take())
        };
        self.tried = tried;
        match won {
            None => {
                let why = reason::why_unusable(&self.service);
                Err(self.refuse(Reason::NoneUsable, why))
            }
            Some(Won::ClientGone) => Err(self.refuse(Reason::Gone, String::new())),
            Some(Won::TooManyFailed(why)) => {
                root.into_iter().for_each(|root| root.fail(&why));
                Err(self.refuse(Reason::Broadcast, why))
            }
            Some(Won::One(one)) => {
                let One { result, span, twin, out, .. } = *one;
                match result {
                    Ok((response, upstream, in_flight)) => {
                        client.out = out;
                        outgoing.was_sent_as(&twin);
                        Ok(arrived(response, upstream, in_flight, [Some(span), root]))
                    }
                    Err(failure) => Err(self.give_up(failure, [Some(span), root])),
                }
            }
        }
    }

    /// How long to wait for an answer before another instance is asked too; none: not at all.
    fn hedges_after(&self) -> Option<Duration> {
        let hedge = &self.scope.sections.hedge;
        if !hedge.is_on() || self.scope.sections.tolerate.mode == Mode::Broadcast {
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
        let Chosen { instance, in_flight, permit } = chosen;
        let mut client = Client::new(Silent);
        let mut watch = Unfinished::of(self, &in_flight);
        let result = self.attempt(&instance, in_flight, permit, &mut client, &mut twin, asked, &mut span).await;
        watch.is_over();
        let is_good = matches!(&result, Ok((response, ..)) if self.is_good(response));
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

impl One {
    /// Whether another instance may do better at once: not if it is the same everywhere, or a wait was asked for.
    fn is_worth_another(&self) -> bool {
        match &self.result {
            Ok((response, ..)) => response.asks_wait.is_none(),
            Err(failure) => !matches!(failure.reason, Reason::Forbidden | Reason::BadRequest),
        }
    }
}

/// What all of them together brought.
enum Won {
    /// This one's answer, good or not, is the caller's.
    One(Box<One>),
    TooManyFailed(String),
    ClientGone,
}

/// Attempts that run at once.
struct Crowd<'a> {
    running: Vec<Pin<Box<dyn Future<Output = One> + Send + 'a>>>,
    /// The instances they were sent to.
    taken: Vec<InstanceId>,
    /// The span of the whole call.
    root: Option<OpenSpan>,
}

/// What happened next.
enum Next {
    Ended(One),
    Rang,
    ClientGone,
}

impl<'a> Crowd<'a> {
    /// Starts so many more, each at another instance; fewer where there are no more. How many.
    fn start<'c: 'a>(&mut self, call: &'c Call<'c>, outgoing: &Outgoing, asked: &'a Asked, count: usize) -> usize {
        let mut started = 0;
        while started < count {
            let Some(chosen) = call.choose_except(&self.taken) else { break };
            let Some(mut twin) = outgoing.twin() else { break };
            self.taken.push(chosen.instance.key.instance.clone());
            // All but the first are told that somebody else sees to it, too.
            twin.request.attempt = self.taken.len() as u32;
            let mut span = call.begin_span(outgoing, &chosen.instance);
            match &self.root {
                Some(root) => span.set_parent(root.id()),
                None => self.root = Some(call.begin_root(&mut span, outgoing)),
            }
            self.running.push(Box::pin(call.alone(chosen, twin, asked, span)));
            started += 1;
        }
        started
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
        tried: &mut Vec<(InstanceId, reason::Tried)>,
    ) -> Won {
        let metrics = &call.entry.metrics;
        let budget =
            BudgetSettings { percent: call.scope.sections.hedge.budget_percent, floor_per_s: HEDGES_FLOOR_PER_S };
        call.entry.hedges.deposit(call.carrier.clock.now());
        let mut hedges_left = call.scope.sections.hedge.max;
        let mut hedge_at = call.hedges_after().map(|after| Instant::now() + after);
        loop {
            match self.next(client, hedge_at).await {
                Next::ClientGone => return Won::ClientGone,
                Next::Rang => {
                    let now = call.carrier.clock.now();
                    let is_allowed = call.entry.hedges.withdraw_within(now, budget);
                    if is_allowed && self.start(call, outgoing, asked, 1) > 0 {
                        metrics.hedges.fetch_add(1, Relaxed);
                        hedges_left = hedges_left.saturating_sub(1);
                    } else {
                        hedges_left = 0;
                    }
                    hedge_at = hedge_at
                        .filter(|_| hedges_left > 0)
                        .and(call.hedges_after())
                        .map(|after| Instant::now() + after);
                }
                Next::Ended(one) if one.is_good => return Won::One(Box::new(one)),
                Next::Ended(one) => {
                    tried.push(one.noted.clone());
                    // While others may still do better; then, what would be a retry is one.
                    let may_go_on = one.is_worth_another();
                    let is_last =
                        self.running.is_empty() && !(may_go_on && self.once_more(call, outgoing, asked, tried.len()));
                    if is_last {
                        return Won::One(Box::new(one));
                    }
                    one.span.fail(&one.noted.1.error);
                }
            }
        }
    }

    /// Starts another one as a retry, if that may be.
    fn once_more<'c: 'a>(&mut self, call: &'c Call<'c>, outgoing: &Outgoing, asked: &'a Asked, failed: usize) -> bool {
        let goes_on = failed <= call.scope.sections.retry.max_retries as usize
            && Instant::now() < call.deadline
            && call.entry.budget.withdraw_within(call.carrier.clock.now(), call.scope.sections.retry.budget)
            && self.start(call, outgoing, asked, 1) > 0;
        if goes_on {
            call.entry.metrics.retries.fetch_add(1, Relaxed);
        }
        goes_on
    }

    /// All of them: the last good answer, unless too many have failed.
    async fn all<S: Stream>(
        &mut self,
        client: &mut Client<S>,
        tried: &mut Vec<(InstanceId, reason::Tried)>,
        fail_percent: u32,
    ) -> Won {
        let count = self.running.len();
        let mut good = None;
        while !self.running.is_empty() {
            match self.next(client, None).await {
                Next::ClientGone => return Won::ClientGone,
                Next::Ended(one) if one.is_good => good = Some(one),
                Next::Ended(one) => {
                    tried.push(one.noted);
                    one.span.fail("it failed");
                }
                Next::Rang => {}
            }
        }
        let failed = tried.len();
        match good {
            Some(good) if failed * 100 < count * fail_percent as usize => Won::One(Box::new(good)),
            _ => Won::TooManyFailed(format!("{failed} of {count} instances failed")),
        }
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
pub(crate) fn tolerate(entry: &Entry, carried: Result<Arrived, Refused>) -> Result<Arrived, Refused> {
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
struct Unfinished {
    seat: Option<Arc<starling_core::balance::Seat<Pool>>>,
    clock: crate::clock::Clock,
    began: starling_core::time::Instant,
}

impl Unfinished {
    fn of(call: &Call<'_>, in_flight: &InFlight<Pool>) -> Self {
        let clock = call.carrier.clock;
        Self { seat: Some(in_flight.seat().clone()), clock, began: clock.now() }
    }

    fn is_over(&mut self) {
        self.seat = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(seat) = &self.seat else { return };
        let now = self.clock.now();
        let took = now.since(self.began);
        let known_us = seat.load.latency_us(now).unwrap_or(0.0);
        if took.as_micros() as f32 > known_us {
            seat.load.observe(now, took, Outcome::Good);
        }
    }
}

/// A client that says nothing and is never gone.
struct Silent;

impl AsyncRead for Silent {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Silent {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
