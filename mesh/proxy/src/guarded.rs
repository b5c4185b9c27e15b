//! A request to a service whose policy has something to say: through its guards, copied if it shall be, carried, learned
//! from; and what is answered when that fails. (A request to any other service never comes here.)

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use starling_core::guard::circuit::Came;
use starling_core::policy::{self, Fallback, Fields, Held, Mirror, Scope, When, service_named};
use tokio::time::{Instant, timeout};

use crate::access::Identity;
use crate::attempts;
use crate::client::{Client, Outgoing, Silent};
use crate::clock;
use crate::failback;
use crate::guards::{self, Question, came_of};
use crate::h1::fields::{self, Written};
use crate::h1::request::Request;
use crate::h1::response::{Asked, Response};
use crate::last_good::{self, Keep, StandIn};
use crate::mesh::Stream;
use crate::reason::{FAILBACK, FALLBACK, Reason, Refused};
use crate::relay::{self, Arrived, Relay};
use crate::stack::{self, Carrier, Known};
use crate::system::{Entered, Host};

/// Marks a copy: its receiver can tell it from the real one.
const MIRRORED: &[u8] = b"x-starling-mirror";

/// What is known of the request's way.
pub(crate) struct Guarded<'a> {
    pub(crate) carrier: &'a Carrier,
    pub(crate) known: &'a Known,
    pub(crate) scope: &'a Arc<Scope>,
    pub(crate) identity: &'a Identity,
    pub(crate) deadline: Instant,
    /// When the caller waits no longer, if it said so.
    pub(crate) until: Option<Instant>,
}

/// What a policy's rules see of a request whose head was written for sending on.
pub(crate) fn asked_of<'a>(
    carrier: &'a Carrier,
    identity: &'a Identity,
    request: &'a Request,
    head: &'a [u8],
    fields: &'a Written<'a>,
) -> policy::Asked<'a> {
    policy::Asked {
        method: request.method.as_str(),
        path: request.path(head),
        fields,
        node: carrier.mesh.me().as_str(),
        service: identity.plain(),
    }
}

/// Lets a request of an application into this host, or refuses it. A fallback that is an answer stands in for that; one that
/// is another service would be one request more for a host that has too many.
pub(crate) fn enter(
    carrier: &Carrier,
    host: &Host,
    known: &Known,
    scope: &Arc<Scope>,
    identity: &Identity,
    request: &Request,
    head: &[u8],
) -> Result<Entered, Refused> {
    let fields = Written(head);
    let asked = asked_of(carrier, identity, request, head, &fields);
    host.admit(&known.key, &known.entry, || scope.class(&asked)).map_err(|refused| {
        let Some(fallback) = refused.falls_back(&scope.sections) else { return refused };
        let node = carrier.mesh.me().as_str();
        let last_good = last_good::find(scope, &known.entry, carrier.clock, node, request, head);
        if last_good.is_none() && fallback.service.is_some() {
            return refused;
        }
        stand_in(known, scope, last_good, refused)
    })
}

/// What is answered instead of a refusal for which there is a fallback: what was answered last, what the policy says, or
/// nothing else.
fn stand_in(known: &Known, scope: &Arc<Scope>, last_good: Option<StandIn>, refused: Refused) -> Refused {
    let refused = match last_good {
        Some(last_good) => refused.stood_in_for(last_good),
        None if scope.sections.fallback.as_ref().is_some_and(Fallback::has_answer) => refused.or_fallback(scope),
        None => return refused,
    };
    known.entry.metrics.fallbacks.fetch_add(1, Relaxed);
    refused
}

impl Guarded<'_> {
    /// Carries it, or answers what the policy says instead.
    pub(crate) async fn carry<S: Stream>(
        &self,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
    ) -> Result<Arrived, Refused> {
        let admitted = self.admitted(client, outgoing, asked).await;
        let admitted = self.or_later(admitted, client, outgoing).await;
        let refused = match admitted.and_then(|arrived| self.as_failure(arrived, outgoing)) {
            Ok(arrived) => return Ok(arrived),
            Err(refused) => refused,
        };
        let Some(fallback) = refused.falls_back(&self.scope.sections) else { return Err(refused) };
        let again = outgoing.is_whole() && (refused.reason.is_unsent() || outgoing.is_repeatable());
        let in_time = self.until.is_none_or(|until| Instant::now() < until);
        if let Some(key) = fallback.service.as_deref().and_then(service_named).filter(|_| again && in_time) {
            match self.ask_other(&key, client, outgoing, asked).await {
                Ok(arrived) => {
                    self.known.entry.metrics.fallbacks.fetch_add(1, Relaxed);
                    return Ok(arrived);
                }
                Err(other) => tracing::debug!(service = %key, why = other.why, "the fallback did not answer either"),
            }
        }
        Err(stand_in(self.known, self.scope, self.last_good(outgoing), refused))
    }

    /// What could not be delivered waits to be sent later, where the policy says so and there is room for it.
    async fn or_later<S: Stream>(
        &self,
        admitted: Result<Arrived, Refused>,
        client: &mut Client<S>,
        outgoing: &Outgoing,
    ) -> Result<Arrived, Refused> {
        let Some(settings) = failback::wanted(self.scope, &admitted, outgoing) else { return admitted };
        match self.carrier.failback.keep(self, settings, outgoing).await {
            Ok(name) => {
                let (why, tried) = match admitted {
                    Ok(arrived) => {
                        let why = format!("an instance answered {}", arrived.response.failure().unwrap_or_default());
                        arrived.spans.into_iter().flatten().for_each(|span| span.fail(&why));
                        (why, Vec::new())
                    }
                    Err(refused) => (refused.why, refused.tried),
                };
                let why = format!("it will be sent later; {why}");
                Err(Refused::new(Reason::Queued, why).of(&self.known.key).after(tried).queued_as(name))
            }
            Err(why_not) => admitted
                .inspect(|_| fields::write(&mut client.out, FAILBACK, format!("refused: {why_not}").as_bytes()))
                .map_err(|refused| refused.also(&format!("it cannot wait to be sent later: {why_not}"))),
        }
    }

    fn last_good(&self, outgoing: &Outgoing) -> Option<StandIn> {
        let (entry, node) = (&self.known.entry, self.carrier.mesh.me().as_str());
        last_good::find(self.scope, entry, self.carrier.clock, node, &outgoing.request, outgoing.head())
    }

    /// An error an instance answered, if something is to stand in for that.
    fn as_failure(&self, arrived: Arrived, outgoing: &Outgoing) -> Result<Arrived, Refused> {
        let verdict = arrived.response.verdict();
        let fallback = self.scope.sections.fallback.as_ref().filter(|fallback| fallback.on.contains(&When::Errors));
        let is_error = matches!(verdict.as_u16(), 500 | 502..=504);
        let Some(fallback) = fallback.filter(|_| is_error) else { return Ok(arrived) };
        // The instance's own words are better than ours.
        if fallback.service.is_none() && !fallback.has_answer() && self.last_good(outgoing).is_none() {
            return Ok(arrived);
        }
        let why = format!("an instance answered {}", arrived.response.failure().unwrap_or(verdict.as_str()));
        arrived.spans.into_iter().flatten().for_each(|span| span.fail(&why));
        Err(Refused::new(Reason::Answered, why).of(&self.known.key))
    }

    /// What is to be kept of an answer.
    fn keep(&self, outgoing: &Outgoing, response: &Response, head: &[u8]) -> Option<Box<Keep>> {
        let settings = self.scope.sections.fallback.as_ref()?.last_good.as_ref()?;
        // The answer to a HEAD has no body that could stand in for another's.
        let key = last_good::key_of(settings, &outgoing.request, outgoing.head());
        let key = key.filter(|_| outgoing.request.method == http::Method::GET)?;
        Keep::begin(&key, settings, &self.known.entry, self.carrier.clock, response, head)
    }

    async fn ask_other<S: Stream>(
        &self,
        key: &starling_core::id::ServiceKey,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
    ) -> Result<Arrived, Refused> {
        let known = Known::other(self.carrier, key.clone())?;
        let scope = known.whole();
        // What the first has used up of its time is not the other's fault; what the caller has said, holds for both.
        let patience = Instant::now() + Duration::from_millis(scope.sections.timeouts.request_ms);
        let (deadline, until) = (self.until.map_or(patience, |until| patience.min(until)), self.until);
        let other = Guarded { carrier: self.carrier, known: &known, scope, identity: self.identity, deadline, until };
        let arrived = other.admitted(client, outgoing, asked).await?;
        fields::write(&mut client.out, FALLBACK, key.to_string().as_bytes());
        Ok(arrived)
    }

    /// Through the guards, to an instance.
    pub(crate) async fn admitted<S: Stream>(
        &self,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
    ) -> Result<Arrived, Refused> {
        let Guarded { carrier, known, scope, identity, deadline, .. } = *self;
        let mut pass = {
            let fields = Written(outgoing.head());
            let about = asked_of(carrier, identity, &outgoing.request, outgoing.head(), &fields);
            let refusals = &known.entry.refusals;
            let question = Question { clock: carrier.clock, scope, asked: &about, refusals, deadline };
            guards::admit(&question, client).await.map_err(|refused| refused.of(&known.key))?
        };
        self.mirror(outgoing);
        let (caller, now) = (identity.service(), Instant::now());
        let carried = stack::carry(carrier, known, caller, scope, client, outgoing, asked, now, deadline).await;
        let learnt = match carried {
            Ok(mut arrived) => {
                let head = Written(&client.out);
                let number = |name| head.field(name).and_then(fields::number);
                let grpc = number("grpc-status").and_then(|code| u8::try_from(code).ok());
                // One that says "never" (of gRPC) says nothing of when.
                let told = arrived.response.asks_wait.filter(|wait| *wait != Duration::MAX);
                if arrived.response.is_judged_later() {
                    pass.begins();
                } else {
                    pass.learn(Came::Answer { status: arrived.response.status.as_u16(), grpc }, told);
                }
                pass.keep = self.keep(outgoing, &arrived.response, &client.out);
                arrived.pass = Some(Box::new(pass));
                Ok(arrived)
            }
            Err(refused) => {
                pass.learn(came_of(&refused), None);
                Err(refused)
            }
        };
        // Not before: what the caller is not to know of is a failure to the circuit all the same.
        attempts::tolerate(scope, &known.entry, learnt)
    }

    /// Sends copies on their way; nobody waits for them.
    fn mirror(&self, outgoing: &Outgoing) {
        for mirror in &self.scope.mirrors {
            if !mirror.rule.percent.takes(clock::random()) || outgoing.request.upgrades || !outgoing.is_held() {
                continue;
            }
            let (Some(key), Some(carrier)) = (service_named(&mirror.rule.service), self.carrier.own.upgrade()) else {
                continue;
            };
            let Some(held) = mirror.hold(mirror.rule.max_in_flight) else { continue };
            let Some(copy) = outgoing.copy(MIRRORED, mirror.rule.name.as_bytes()) else { continue };
            let limit = Duration::from_millis(mirror.rule.timeout_ms);
            tokio::spawn(async move {
                // What becomes of a copy concerns nobody.
                let _ = timeout(limit, send_copy(&carrier, key, copy, limit, held)).await;
            });
        }
    }
}

/// Sends a copy and reads its answer to the end, so that its connection can be used again.
async fn send_copy(
    carrier: &Carrier,
    key: starling_core::id::ServiceKey,
    mut copy: Outgoing,
    limit: Duration,
    _held: Held<Mirror>,
) {
    let Ok(known) = Known::other(carrier, key) else { return };
    let mut client = Client::new(Silent);
    let asked =
        Asked { head_only: copy.request.method == http::Method::HEAD, upgrades: false, http_10: copy.request.http_10 };
    let (now, whole) = (Instant::now(), known.whole());
    let carried = stack::carry(carrier, &known, None, whole, &mut client, &mut copy, &asked, now, now + limit).await;
    let Ok(Arrived { mut response, mut upstream, home, lesson, .. }) = carried else { return };
    let mut relay = Relay::new(&response, response.delivery(&asked), &copy, None);
    let received = relay.receive(&mut client, &mut upstream, &mut copy).await.is_ok();
    if let Some(lesson) = lesson {
        response.judge(&relay.trailers());
        lesson.end(carrier, received.then(|| response.verdict()));
    }
    if received
        && relay.finish(&mut client, &mut upstream, &mut copy).await.is_ok()
        && relay::is_reusable(&response, &copy, &upstream)
    {
        home.put(upstream, Instant::now());
    }
}
