//! Requests that could not be delivered, kept on disk and sent later.
//!
//! What waits, in which order, and when it is tried is the core's to say ([`Backlog`]); that it survives is the spool's
//! ([`Spool`]), whose thread alone waits for the disk. Here a request becomes a parcel (its head as it is sent on, and its
//! body), and a parcel a request again: it goes through the policy in force then, all guards of it, the instances' breakers
//! and the retry budget, like any other, with one attempt each time, and tells whom it reaches that it is a repeat
//! (`x-starling-attempt`). One at a time of each service, and a few at once in all: what waits holds up nothing that lives.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use starling_core::guard::Guard;
use starling_core::id::{NodeId, ServiceKey};
use starling_core::observe::Exposition;
use starling_core::policy::{Fields, Scope, WaitingRequest};
use starling_core::time::{Instant as Moment, WallTime};
use starling_core::tolerate::{Backlog, FailbackSettings, Failed, LineSnapshot, Mode, Waiting};
use starling_net::disk::spool::{Parcel, Spool};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::access::Identity;
use crate::client::{Client, Outgoing, Silent};
use crate::clock::{self, Clock};
use crate::guarded::Guarded;
use crate::h1::fields::{self, Written};
use crate::h1::request::{Request, Rules};
use crate::h1::response::Asked;
use crate::reason::{Reason, Refused};
use crate::relay::{self, Arrived, Relay};
use crate::serve::Lifetime;
use crate::stack::{Carrier, Known};

/// How many are sent at once, of all services together.
const MAX_AT_ONCE: usize = 8;
/// How long the disk is waited for before the caller is told that its request is not kept.
const DISK_PATIENCE: Duration = Duration::from_secs(5);
/// What a parcel costs beside its bytes.
const PARCEL_BYTES: u64 = 256;
/// Tells repeats apart where the caller has not said how (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Answers that say "later": what waits goes on waiting.
const LATER: [u16; 3] = [408, 425, 429];

/// What waits on this node.
#[derive(Debug)]
pub(crate) struct Failback {
    /// None where there is no directory to keep it in.
    spool: Option<Spool>,
    backlog: Mutex<Backlog<Arc<Parcel>>>,
    /// Told when there may be something to do earlier than was known.
    changed: Notify,
    clock: Clock,
}

/// How much of a request's body is held for this.
pub(crate) fn most_held(scope: &Scope) -> usize {
    let tolerate = &scope.sections.tolerate;
    if tolerate.mode == Mode::Failback { tolerate.failback.max_body_bytes as usize } else { 0 }
}

/// What a line shows as a number.
type Gauge = fn(&LineSnapshot) -> f64;

/// Whether what came of a request is a failure that is to wait, by its policy.
pub(crate) fn wanted<'a>(
    scope: &'a Scope,
    came: &Result<Arrived, Refused>,
    outgoing: &Outgoing,
) -> Option<&'a FailbackSettings> {
    use Reason::{Connect, Fault, Late, NoneUsable, NotHere, Reset, TimedOut};
    let tolerate = &scope.sections.tolerate;
    let asks_only = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(&outgoing.request.method);
    if tolerate.mode != Mode::Failback || asks_only || outgoing.request.upgrades || outgoing.request.grpc.is_some() {
        return None;
    }
    let settings = &tolerate.failback;
    let is_failure = match came {
        Ok(arrived) => settings.errors && arrived.response.verdict().is_server_error(),
        Err(refused) => match refused.reason {
            Connect | NotHere | NoneUsable | Reset | TimedOut | Late | Fault | Reason::Guard(Guard::Breaker) => true,
            Reason::Guard(Guard::List | Guard::Idempotency) => false,
            Reason::Guard(_) => settings.refused,
            _ => false,
        },
    };
    is_failure.then_some(settings)
}

impl Failback {
    /// Opens the spool in the node's data directory, if it has one; what waits there is due.
    pub(crate) async fn open(dir: Option<PathBuf>, clock: Clock) -> io::Result<Self> {
        let mut backlog = Backlog::default();
        let mut spool = None;
        if let Some(dir) = dir {
            let opened = tokio::task::spawn_blocking(move || Spool::open(&dir)).await.map_err(io::Error::other)??;
            let found = opened.1;
            if !found.is_empty() {
                tracing::info!("{} requests of an earlier start wait to be sent", found.len());
            }
            found.into_iter().for_each(|parcel| backlog.restore(&parcel.service.clone(), parcel.id, waiting(parcel)));
            spool = Some(opened.0);
        }
        Ok(Self { spool, backlog: Mutex::new(backlog), changed: Notify::new(), clock })
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog<Arc<Parcel>>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a request to be sent later: the name it has then, once it is on disk.
    ///
    /// # Errors
    /// Why it is not kept.
    pub(crate) async fn keep(
        &self,
        guarded: &Guarded<'_>,
        settings: &FailbackSettings,
        outgoing: &Outgoing,
    ) -> Result<String, String> {
        let Guarded { carrier, known, scope, .. } = guarded;
        let Some(spool) = &self.spool else { return Err("this node has no directory to keep it in".into()) };
        let most = settings.max_body_bytes;
        let body = outgoing.held().filter(|body| body.len() as u64 <= most);
        let body = body.ok_or_else(|| format!("only a body of a length given first, up to {most} bytes, can"))?;
        let bytes = (outgoing.head().len() + body.len()) as u64 + PARCEL_BYTES;
        let wall_us = clock::wall_us();
        let id = self.backlog().reserve(&known.key, bytes, settings, wall_us)?;
        let mut reserved = Reserved { failback: self, service: &known.key, id, bytes, kept: false };
        let name = name(carrier.mesh.me(), id);
        let queued = WallTime(wall_us / 1_000);
        let parcel = Arc::new(Parcel {
            id,
            service: known.key.clone(),
            queued,
            expires: WallTime(queued.0 + settings.expire_ms),
            head: with_key(outgoing.head(), scope, &name),
            body: body.to_vec(),
        });
        let written = timeout(DISK_PATIENCE, spool.put(parcel.clone())).await;
        written.unwrap_or_else(|_| Err(format!("the disk has not taken it in {} s", DISK_PATIENCE.as_secs())))?;
        reserved.kept = true;
        self.backlog().add(&known.key, id, waiting(parcel), settings, self.clock.now(), clock::random());
        self.changed.notify_one();
        Ok(name)
    }

    fn forget(&self, id: u64) {
        self.spool.iter().for_each(|spool| spool.done(id));
    }

    /// How a service's line is, if it ever had one here.
    pub(crate) fn line(&self, service: &ServiceKey) -> Option<LineSnapshot> {
        self.backlog().snapshot(service, self.clock.now(), wall())
    }

    /// What waits, of one service or of all: at most so many, and how many there are.
    pub(crate) fn list(&self, me: &NodeId, of: Option<&ServiceKey>, most: usize) -> (Vec<WaitingRequest>, u64) {
        let backlog = self.backlog();
        let services: Vec<&ServiceKey> =
            backlog.services().filter(|service| of.is_none_or(|of| of == *service)).collect();
        let all = || services.iter().flat_map(|service| backlog.waiting(service));
        let total = all().count() as u64;
        let shown = all().take(most).map(|(id, waiting)| shown(name(me, id), waiting));
        (shown.collect(), total)
    }

    /// Takes one out, by its name. Whether it was there.
    pub(crate) fn drop_one(&self, me: &NodeId, name: &str) -> bool {
        let number = name.strip_prefix(me.as_str()).and_then(|rest| rest.strip_prefix('.'));
        let Some(id) = number.and_then(|hex| u64::from_str_radix(hex, 16).ok()) else { return false };
        let was_there = self.backlog().drop_one(id).is_some();
        if was_there {
            self.forget(id);
        }
        was_there
    }

    /// Lets a service's line be tried at once. How many wait in it.
    pub(crate) fn hurry(&self, service: &ServiceKey) -> u64 {
        let waiting = self.backlog().hurry(service, self.clock.now());
        self.changed.notify_one();
        waiting
    }

    /// Writes what is left to be written. Blocks.
    pub(crate) fn close(&self) {
        self.spool.iter().for_each(Spool::close);
    }

    /// Takes out what has waited too long, and says when to look again.
    fn expire(&self) -> Option<Moment> {
        let mut backlog = self.backlog();
        let gone = backlog.expire(wall());
        for (service, id) in &gone {
            self.forget(*id);
            tracing::warn!(%service, id = format!("{id:x}"), "a request was never delivered: it has waited too long");
        }
        backlog.next(self.clock.now(), wall())
    }

    /// Tries one, and notes what came of it.
    async fn try_one(&self, carrier: &Carrier, service: &ServiceKey, id: u64, parcel: &Parcel) {
        let mut end = Ends { failback: self, service, is_told: false };
        let tried = send(carrier, parcel).await;
        end.is_told = true;
        let (now, mut backlog) = (self.clock.now(), self.backlog());
        match tried {
            Tried::Delivered(status) => {
                backlog.delivered(service, id, now);
                self.forget(id);
                tracing::debug!(%service, id = format!("{id:x}"), status, "a request that waited was delivered");
            }
            Tried::NotYet => backlog.put_off(service, now),
            Tried::Failed(failed, settings) => {
                if backlog.failed(service, id, &failed, &settings, now, clock::random()) {
                    self.forget(id);
                    let why = failed.why;
                    tracing::warn!(%service, id = format!("{id:x}"), why, "a request was never delivered: given up");
                }
            }
        }
    }

    /// Shows what waits, and what has become of the rest.
    pub(crate) fn collect(&self, out: &mut Exposition) {
        let (now, wall) = (self.clock.now(), wall());
        let backlog = self.backlog();
        let line = |service: &ServiceKey| Some((service.to_string(), backlog.snapshot(service, now, wall)?));
        let lines: Vec<(String, LineSnapshot)> = backlog.services().filter_map(line).collect();
        drop(backlog);
        let gauges: [(&str, &str, Gauge); 3] = [
            ("starling_failback_waiting", "Requests kept to be sent later.", |line| line.waiting as f64),
            ("starling_failback_bytes", "Bytes they have.", |line| line.bytes as f64),
            ("starling_failback_oldest_seconds", "How long the first has waited.", |line| line.oldest_ms as f64 / 1e3),
        ];
        for (name, help, gauge) in gauges {
            out.family(name, "gauge", help);
            lines.iter().for_each(|(service, line)| out.sample(name, &[("service", service)], gauge(line)));
        }
        let name = "starling_failback_total";
        out.family(name, "counter", "Requests that were to be sent later, by what became of them.");
        for (service, LineSnapshot { counts, .. }) in &lines {
            for (what, count) in [
                ("queued", counts.queued),
                ("delivered", counts.delivered),
                ("expired", counts.expired),
                ("given_up", counts.given_up),
                ("refused", counts.refused),
                ("dropped", counts.dropped),
            ] {
                out.sample(name, &[("service", service), ("what", what)], count as f64);
            }
        }
    }
}

fn wall() -> WallTime {
    WallTime(clock::wall_us() / 1_000)
}

/// What a request that waits is called: a number alone would be another one's on another node.
fn name(me: &NodeId, id: u64) -> String {
    format!("{me}.{id:x}")
}

fn shown(id: String, waiting: &Waiting<Arc<Parcel>>) -> WaitingRequest {
    let Parcel { service, head, .. } = &*waiting.parcel;
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default());
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    WaitingRequest {
        id,
        service: service.to_string(),
        method,
        // Without the query: it may hold what is nobody's business.
        path: path.split('?').next().unwrap_or_default().to_owned(),
        queued_unix_ms: waiting.queued.0,
        expires_unix_ms: waiting.expires.0,
        bytes: waiting.bytes,
    }
}

fn waiting(parcel: Arc<Parcel>) -> Waiting<Arc<Parcel>> {
    let bytes = (parcel.head.len() + parcel.body.len()) as u64 + PARCEL_BYTES;
    Waiting { bytes, queued: parcel.queued, expires: parcel.expires, parcel }
}

/// The head with a key by which its receiver can tell that it has had it before: the caller's, or else its name.
fn with_key(head: &[u8], scope: &Scope, name: &str) -> Vec<u8> {
    let field = scope.sections.idempotency.as_ref().map_or(IDEMPOTENCY_KEY, |keys| &keys.header);
    let mut head = head.to_vec();
    if Written(&head).field(field).is_none() {
        head.truncate(head.len().saturating_sub(2));
        fields::write(&mut head, field.as_bytes(), format!("\"{name}\"").as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head
}

/// Room for a request that is not on disk yet. Whoever gives up, or is dropped, gives it back.
struct Reserved<'a> {
    failback: &'a Failback,
    service: &'a ServiceKey,
    id: u64,
    bytes: u64,
    kept: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.failback.backlog().release(self.service, self.bytes);
            // It may get there yet, but nobody was told so.
            self.failback.forget(self.id);
        }
    }
}

/// An attempt under way. One that is dropped, or panics, has not been made.
struct Ends<'a> {
    failback: &'a Failback,
    service: &'a ServiceKey,
    is_told: bool,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if !self.is_told {
            self.failback.backlog().put_off(self.service, self.failback.clock.now());
        }
    }
}

/// Sends what waits, until the proxy drains; what is under way then is cut off, and waits on disk.
pub(crate) async fn run(carrier: Arc<Carrier>, mut lifetime: Lifetime) {
    let failback = &carrier.failback;
    let mut sending = JoinSet::new();
    loop {
        let mut next = failback.expire();
        while sending.len() < MAX_AT_ONCE {
            let Some((service, id, parcel)) = failback.backlog().begin(failback.clock.now()) else { break };
            let carrier = carrier.clone();
            sending.spawn(async move { carrier.failback.try_one(&carrier, &service, id, &parcel).await });
            next = failback.backlog().next(failback.clock.now(), wall());
        }
        // With all places taken, the end of an attempt is the next thing to happen.
        let rest = next.filter(|_| sending.len() < MAX_AT_ONCE).map(|next| next.since(failback.clock.now()));
        tokio::select! {
            () = lifetime.draining() => return,
            Some(_) = sending.join_next() => {}
            () = failback.changed.notified() => {}
            () = async { sleep(rest.unwrap_or_default()).await }, if rest.is_some() => {}
        }
    }
}

/// What came of an attempt.
enum Tried {
    /// Somebody has answered it, so.
    Delivered(u16),
    /// There was no leave to send it now.
    NotYet,
    Failed(Failed, FailbackSettings),
}

/// Sends a parcel, once.
async fn send(carrier: &Carrier, parcel: &Parcel) -> Tried {
    let failed = |why: String, counts: bool| Tried::Failed(Failed { why, counts }, FailbackSettings::default());
    let known = match Known::other(carrier, parcel.service.clone()) {
        Ok(known) => known,
        Err(refused) => return failed(refused.summary(), false),
    };
    let mut identity = Identity::default();
    identity.refresh(carrier, None);
    let (settings, caller, caller_service) = (&carrier.settings, carrier.mesh.me(), identity.text());
    let rules = Rules { settings, caller, caller_service, forward: None, counts_hop: false };
    let (mut head, mut host) = (Vec::new(), Vec::new());
    let mut request = match Request::read(&parcel.head, &rules, &mut head, &mut host) {
        Ok(Some(request)) => request,
        Ok(None) => return failed("its head is not whole".into(), true),
        Err(refused) => return failed(refused.summary(), true),
    };
    // Its caller waits no more, and repeating is done here.
    (request.left, request.attempt, request.expects_continue) = (None, 2, false);
    let scope = known.scope(carrier, &identity, &request, &head);
    let settings = scope.sections.tolerate.failback;
    if !known.entry.budget.withdraw_within(carrier.clock.now(), scope.sections.retry.budget) {
        return Tried::NotYet;
    }
    let deadline = Instant::now() + Duration::from_millis(scope.sections.timeouts.request_ms);
    let guarded = Guarded { carrier, known: &known, scope, identity: &identity, deadline, until: None };
    let asked = Asked { head_only: false, upgrades: false, http_10: request.http_10 };
    let mut outgoing = Outgoing::whole(request, head, parcel.body.clone());
    let mut client = Client::new(Silent);
    let arrived = match guarded.admitted(&mut client, &mut outgoing, &asked).await {
        Ok(arrived) => arrived,
        Err(refused) => {
            // What a guard or an unreachable instance turns away has been no attempt of anybody's.
            let transient =
                matches!(refused.reason, Reason::Guard(_) | Reason::Fault | Reason::Late | Reason::NoneUsable);
            let counts = !transient && !matches!(refused.reason, Reason::Connect | Reason::NotHere);
            return Tried::Failed(Failed { why: refused.summary(), counts }, settings);
        }
    };
    let status = arrived.response.verdict();
    if status.is_server_error() || LATER.contains(&status.as_u16()) {
        let why = format!("an instance answered {}", arrived.response.failure().unwrap_or(status.as_str()));
        arrived.spans.into_iter().flatten().for_each(|span| span.fail(&why));
        return Tried::Failed(Failed { why, counts: true }, settings);
    }
    // What the answer says is for nobody; reading it lets the connection be used again.
    let Arrived { mut response, mut upstream, home, lesson, spans, pass: _pass, .. } = arrived;
    let mut relay = Relay::new(&response, response.delivery(&asked), &outgoing, None);
    let received = async {
        relay.receive(&mut client, &mut upstream, &mut outgoing).await.is_ok()
            && relay.finish(&mut client, &mut upstream, &mut outgoing).await.is_ok()
    };
    let is_whole = tokio::time::timeout_at(deadline, received).await.unwrap_or(false);
    if let Some(lesson) = lesson {
        response.judge(&relay.trailers());
        lesson.end(carrier, is_whole.then(|| response.verdict()));
    }
    spans.into_iter().flatten().for_each(|span| span.end());
    if is_whole && relay::is_reusable(&response, &outgoing, &upstream) {
        home.put(upstream, Instant::now());
    }
    Tried::Delivered(status.as_u16())
}
