//! Requests with idempotency keys, next to their instance: a repeat gets the first answer (the machine, and what it is
//! worth, are [`starling_core::guard::idempotency`]'s).
//!
//! It stands where this sidecar connects to an instance itself: for requests other nodes bring, and for those of
//! applications of this host. So every caller's repeats to an instance meet here.
//!
//! 1. The key is looked up. A repeat is answered; while the first is under way, it waits or is told so.
//! 2. A key that is not known is asked of other nodes with instances of the service ([`ask`]).
//! 3. The first request is carried by a task of its own ([`first`]), which goes on when its client goes away: whoever gave
//!    up waiting and asks again shall get the answer, and not have it done twice.
//! 4. An answer that is the last word is kept, up to a bound, before its client gets it.

mod ask;
mod first;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use http::StatusCode;
use starling_core::balance::Seat;
use starling_core::guard::idempotency::{
    Answers, Begun, Ended, First, IdempotencySettings, IdempotencySnapshot, KeyId, KeyScope, MAX_KEY_BYTES, MISUSED,
    Meanwhile, Print, Told, Unanswered,
};
use starling_core::guard::{Guard, Refusal};
use starling_core::id::{InstanceKey, NodeId, ServiceKey};
use starling_core::observe::Exposition;
use starling_core::policy::{Fields, Scope};
use starling_core::registry::Address;
use starling_core::time::Instant as Moment;
use starling_core::tolerate::Mode;
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use ask::answer;

use crate::client::{Client, Outgoing};
use crate::clock::Clock;
use crate::directory::Entry;
use crate::exchange::{Attempt, Failure};
use crate::h1::fields::{self, Written};
use crate::h1::request::Request;
use crate::h1::response::{Asked, Response};
use crate::mesh::Stream;
use crate::pool::{Pipe, Pool, Upstream};
use crate::reason::Reason;
use ask::{Heard, Question};
use first::{Outcome, Run};

/// Marks an answer that was given before.
const REPLAYED: &[u8] = b"idempotent-replayed";

/// How long a request rests before it looks again for what another node has under way, if that did not let it wait.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The keys of one service at this node.
#[derive(Debug, Default)]
pub(crate) struct Table {
    answers: Mutex<Answers<Kept>>,
    /// Told whenever a first request has ended.
    ended: Notify,
}

/// An answer as it is given again: its head up to where fields are added, and its body, of a known length and without
/// trailers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    status: StatusCode,
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Answers<Kept>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it holds.
    pub(crate) fn snapshot(&self) -> IdempotencySnapshot {
        self.lock().snapshot()
    }
}

impl Kept {
    /// How many bytes it is held for.
    fn size(&self) -> u64 {
        (self.head.len() + self.body.len()) as u64
    }

    /// Puts it before a client, as if an instance had just answered it.
    fn put<S>(&self, client: &mut Client<S>, is_repeat: bool) -> (Response, Upstream) {
        client.out.clear();
        client.out.extend_from_slice(&self.head);
        if is_repeat {
            fields::write(&mut client.out, REPLAYED, b"true");
        }
        let mut upstream = Upstream::new(Pipe::nothing(), &Arc::default());
        upstream.buffer.keep(&self.body);
        (Response::kept(self.status, self.body.len() as u64), upstream)
    }
}

/// What of a policy concerns a request, if keys are looked at for it. A call of gRPC tells how it went behind its body, and
/// a broadcast is to be done more than once: neither has keys.
fn settings<'a>(scope: &'a Scope, request: &Request) -> Option<&'a IdempotencySettings> {
    let settings = scope.sections.idempotency.as_ref()?;
    let has_keys = settings.is_for(request.method.as_str())
        && request.grpc.is_none()
        && !request.upgrades
        && scope.sections.tolerate.mode != Mode::Broadcast;
    has_keys.then_some(settings)
}

/// Whether a request has a key, or must have one.
pub(crate) fn concerned(scope: &Scope, request: &Request, head: &[u8]) -> bool {
    settings(scope, request).is_some_and(|keys| keys.required || Written(head).field(&keys.header).is_some())
}

/// How much of a request's body is held: one that has a key must be, to be compared.
pub(crate) fn most_held(scope: &Scope, request: &Request, head: &[u8], usual: usize) -> usize {
    match settings(scope, request) {
        Some(keys) if Written(head).field(&keys.header).is_some() => usual.max(keys.max_body_bytes as usize),
        _ => usual,
    }
}

/// What the instance is chosen by for a request with a key. Where a service has no keys, this is a branch.
pub(crate) fn steered_by(scope: &Scope, outgoing: &Outgoing) -> Option<u64> {
    scope.sections.idempotency.as_ref()?;
    let settings = settings(scope, &outgoing.request)?;
    Written(outgoing.head()).field(&settings.header).map(steering)
}

fn steering(key: &[u8]) -> u64 {
    KeyId::new(key, []).0 as u64
}

/// Where a request with a key is about to go.
pub(crate) struct At<'a> {
    pub(crate) settings: &'a IdempotencySettings,
    pub(crate) entry: &'a Entry,
    pub(crate) instance: &'a InstanceKey,
    pub(crate) address: &'a Address,
    /// Whether the instance is this node's: then other nodes may know its keys.
    pub(crate) owned: bool,
    pub(crate) pool: Lent,
}

/// Whose connections a request goes by.
#[derive(Clone)]
pub(crate) enum Lent {
    Seat(Arc<Seat<Pool>>),
    Tunnel(Arc<Pool>),
}

impl Lent {
    fn pool(&self) -> &Pool {
        match self {
            Self::Seat(seat) => &seat.extra,
            Self::Tunnel(pool) => pool,
        }
    }
}

/// A request's key, and what it asks for.
#[derive(Debug, Clone, Copy)]
struct Keyed {
    id: KeyId,
    print: Print,
    steering: u64,
}

/// The right to carry the first request with a key; whoever drops it gives the key free.
struct Right {
    table: Arc<Table>,
    settings: IdempotencySettings,
    clock: Clock,
    first: Option<First>,
}

impl Right {
    fn carry(&self) -> Result<(), Option<NodeId>> {
        match &self.first {
            Some(first) => self.table.lock().carry(self.clock.now(), &self.settings, first),
            None => Err(None),
        }
    }

    fn end(mut self, ended: Ended<Kept>) {
        self.end_by(|answers, now, settings, first| answers.end(now, settings, first, ended));
    }

    fn learn(mut self, answer: Option<Arc<Kept>>, left: Duration) {
        let answer = answer.map(|kept| {
            let size = kept.size();
            (kept, size)
        });
        self.end_by(|answers, now, settings, first| answers.learn(now, settings, first, answer, left));
    }

    fn end_by(&mut self, end: impl FnOnce(&mut Answers<Kept>, Moment, &IdempotencySettings, &First)) {
        if let Some(first) = self.first.take() {
            end(&mut self.table.lock(), self.clock.now(), &self.settings, &first);
            self.table.ended.notify_waiters();
        }
    }
}

impl Drop for Right {
    fn drop(&mut self) {
        self.end_by(|answers, now, settings, first| answers.end(now, settings, first, Ended::Failed));
    }
}

impl At<'_> {
    /// Brings a request to the instance, or gives it the answer its key has had.
    pub(crate) async fn exchange<S: Stream>(
        &self,
        attempt: &Attempt<'_>,
        caller: Option<&ServiceKey>,
        scope: &Scope,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
    ) -> Result<(Response, Upstream), Failure> {
        if settings(scope, &outgoing.request).is_none() {
            return attempt.exchange(client, outgoing, asked).await;
        }
        let keyed = self.key(caller, outgoing).inspect_err(|failure| self.count(failure))?;
        let exchanged = self.with_key(attempt, keyed, client, outgoing, asked).await;
        exchanged.inspect_err(|failure| self.count(failure))
    }

    fn count(&self, failure: &Failure) {
        let reason = match failure.reason {
            Reason::KeyMissing => "the key is missing",
            Reason::KeyMisused => MISUSED,
            Reason::KeyTooLarge => "the body is too large to be compared",
            Reason::KeyUnknown => "a node that may know the key does not answer",
            Reason::Guard(Guard::Idempotency) => "the first request is under way, or its answer was not kept",
            _ => return,
        };
        self.entry.refusals.count(Guard::Idempotency.name(), reason, "idempotency");
    }

    fn key(&self, caller: Option<&ServiceKey>, outgoing: &Outgoing) -> Result<Keyed, Failure> {
        let settings = self.settings;
        let fields = Written(outgoing.head());
        let Some(key) = fields.field(&settings.header).filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len())) else {
            let header = &settings.header;
            let why = format!("this request needs a key of 1 to {MAX_KEY_BYTES} bytes in its field {header}");
            return Err(Failure::new(Reason::KeyMissing, why));
        };
        let Some(body) = outgoing.held() else {
            let most = settings.max_body_bytes;
            let why = format!("with a key, only a body of a length that is given first, up to {most} bytes, is taken");
            return Err(Failure::new(Reason::KeyTooLarge, why));
        };
        let caller = caller.filter(|_| settings.scope == KeyScope::Caller).map(ServiceKey::to_string);
        let of_scope = settings.scope_headers.iter().map(|name| fields.field(name).unwrap_or_default());
        let id = KeyId::new(key, std::iter::once(caller.as_deref().unwrap_or_default().as_bytes()).chain(of_scope));
        let print = Print::new(outgoing.request.method.as_str(), outgoing.path(), body);
        Ok(Keyed { id, print, steering: steering(key) })
    }

    async fn with_key<S: Stream>(
        &self,
        attempt: &Attempt<'_>,
        keyed: Keyed,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
    ) -> Result<(Response, Upstream), Failure> {
        let (carrier, table, settings) = (attempt.carrier, &self.entry.keys, self.settings);
        let until = attempt.deadline.min(Instant::now() + Duration::from_millis(settings.max_wait_ms));
        let waits = || settings.meanwhile == Meanwhile::Wait && Instant::now() < until;
        let mut yielded = None;
        loop {
            let now = carrier.clock.now();
            let begun = table.lock().begin(now, settings, keyed.id, keyed.print);
            let first = match begun.map_err(refused)? {
                Begun::Repeat(kept) => {
                    outgoing.need_not_be_sent();
                    return Ok(kept.put(client, true));
                }
                Begun::UnderWay if waits() => {
                    self.wait_here(carrier.clock, keyed.id, until, client).await?;
                    continue;
                }
                Begun::UnderWay => return Err(under_way()),
                Begun::First(first) => first,
            };
            let right =
                Right { table: table.clone(), settings: settings.clone(), clock: carrier.clock, first: Some(first) };
            let heard = match self.owned && settings.ask > 0 {
                true => self.question(keyed, until).ask(carrier, yielded.take()).await,
                false => Heard::Nothing,
            };
            match heard {
                Heard::Nothing => {}
                Heard::Silence if settings.unanswered == Unanswered::Carry => {}
                Heard::Silence => {
                    let why = "a node that may know the key did not answer; nothing was done";
                    return Err(Failure::new(Reason::KeyUnknown, why));
                }
                Heard::Told(Told::Answered(kept, left)) => {
                    let put = kept.put(client, true);
                    right.learn(Some(kept), left);
                    outgoing.need_not_be_sent();
                    return Ok(put);
                }
                Heard::Told(Told::UnderWay) if waits() => {
                    drop(right);
                    tokio::time::sleep_until((Instant::now() + LOOK_AGAIN).min(until)).await;
                    continue;
                }
                Heard::Told(Told::UnderWay) => return Err(under_way()),
                Heard::Told(told) => {
                    if matches!(told, Told::NotKept) {
                        right.learn(None, Duration::from_millis(settings.window_ms));
                    }
                    return Err(refused(table.lock().refuse(&told)));
                }
            }
            if let Err(to) = right.carry() {
                yielded = to;
                continue;
            }
            let Some(run) = Run::new(self, attempt, right, outgoing) else {
                return Err(Failure::new(Reason::Reset, "the node is stopping"));
            };
            let answered = self.await_first(run, attempt.deadline, client, asked).await;
            outgoing.need_not_be_sent();
            return answered;
        }
    }

    fn question(&self, keyed: Keyed, until: Instant) -> Question<'_> {
        let wait = until.saturating_duration_since(Instant::now());
        let waits = self.settings.meanwhile == Meanwhile::Wait;
        Question { at: self, keyed, wait: if waits { wait } else { Duration::ZERO } }
    }

    /// Returns when the first request has ended, or that has been waited for long enough.
    async fn wait_here<S: Stream>(
        &self,
        clock: Clock,
        key: KeyId,
        until: Instant,
        client: &mut Client<S>,
    ) -> Result<(), Failure> {
        let mut ended = pin!(self.entry.keys.ended.notified());
        ended.as_mut().enable();
        if !self.entry.keys.lock().is_under_way(clock.now(), key) {
            return Ok(());
        }
        client.alarm.set(until);
        poll_fn(|cx| {
            if ended.as_mut().poll(cx).is_ready() || client.alarm.poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            client.poll_gone(cx).map(|()| Err(gone()))
        })
        .await
    }

    /// Starts the first request and waits for its answer as long as its client does.
    async fn await_first<S: Stream>(
        &self,
        run: Run,
        deadline: Instant,
        client: &mut Client<S>,
        asked: &Asked,
    ) -> Result<(Response, Upstream), Failure> {
        let mut outcome = pin!(run.start());
        client.alarm.set(deadline);
        let outcome = poll_fn(|cx| {
            if let Poll::Ready(outcome) = outcome.as_mut().poll(cx) {
                let lost = |_| Failure::new(Reason::Reset, "the node is stopping");
                return Poll::Ready(outcome.map_err(lost));
            }
            if client.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(gone()));
            }
            client.alarm.poll(cx).map(|()| {
                let why =
                    "no response in time; the application may still answer, and a repeat with this key will get that";
                Err(Failure::new(Reason::TimedOut, why))
            })
        });
        match outcome.await? {
            Outcome::Whole(kept) => Ok(kept.put(client, false)),
            Outcome::Large(large) => Ok(large.put(client, asked)),
            Outcome::Failed(failure) => Err(failure),
        }
    }
}

/// What is counted of keys, for services that have any.
pub(crate) fn collect(entries: &BTreeMap<ServiceKey, Arc<Entry>>, out: &mut Exposition) {
    let all = entries.iter().map(|(service, entry)| (service.to_string(), entry.keys.snapshot()));
    let all: Vec<_> = all.filter(|(_, keys)| keys.counts != Default::default()).collect();
    if all.is_empty() {
        return;
    }
    out.family("starling_idempotency_total", "counter", "Requests with idempotency keys at their instances' node.");
    for (service, keys) in &all {
        for (what, count) in keys.counts.all() {
            out.sample("starling_idempotency_total", &[("service", service), ("what", what)], count as f64);
        }
    }
    out.family("starling_idempotency_keys", "gauge", "Idempotency keys known.");
    for (service, keys) in &all {
        out.sample("starling_idempotency_keys", &[("service", service)], keys.keys as f64);
    }
    out.family("starling_idempotency_bytes", "gauge", "Bytes of answers kept for idempotency keys.");
    for (service, keys) in &all {
        out.sample("starling_idempotency_bytes", &[("service", service)], keys.bytes as f64);
    }
}

fn gone() -> Failure {
    Failure::new(Reason::Gone, "the client is gone")
}

fn under_way() -> Failure {
    refused(Refusal::new(Guard::Idempotency, "the first request with this key is under way"))
}

fn refused(refusal: Refusal) -> Failure {
    let reason = if refusal.reason == MISUSED { Reason::KeyMisused } else { Reason::Guard(refusal.guard) };
    Failure::new(reason, refusal.reason)
}
