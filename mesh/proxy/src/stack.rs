//! What happens to an application's request, in order. This list is the only place that knows the order.
//!
//! | # | Step | Why here |
//! |---|---|---|
//! | 1 | read the head (`h1::request`) | framing that can be read in two ways, and a loop, end before they cost anything; fields of one connection are left out as the head is written anew, once, before any attempt sends it |
//! | 2 | trace | everything below, refusals too, belongs to a trace the caller can ask for |
//! | 3 | route | host to service; all later state is per service |
//! | 4 | policy: the route it takes, and with it all settings below (`policies`) | all that follows is set per route; the list is made when a document changes, and asked without allocating |
//! | 5 | this host's guard (`system`) | before the body: what is refused shall cost nothing; after the route, which says how much a request matters |
//! | 6 | hold a small body | decides whether the request can be repeated at all |
//! | 7 | retry budget: deposit | what is carried is what retries may be a share of |
//! | 8 | deadline | over everything below, so that retries never add to what the caller waits |
//! | 9 | retry: at most n, within the budget, not where it was | outside the choice: each attempt chooses anew, from the newest view |
//! | 10 | balance, with the breakers in its draw | a broken instance is not drawn, rather than drawn and refused |
//! | 11 | may the caller (`access`), where this sidecar is the instance's | at the instance's side: no caller's sidecar is trusted with it |
//! | 12 | exchange | idle or new connection, send, wait for the head |
//! | 13 | learn (`lesson`) | latency, breaker and counters hear of every attempt, also of those that were repeated; of a call of gRPC at its end |

use std::convert::Infallible;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::StatusCode;
use starling_core::access::Caller;
use starling_core::balance::{Ask, Group, InFlight};
use starling_core::guard::{Guard, Permit};
use starling_core::id::{InstanceId, ServiceKey};
use starling_core::observe::SpanKind;
use starling_core::policy::{Force, Scope};
use starling_core::registry::Reach;
use starling_core::route::{RouteError, route};
use starling_core::view::{InstanceView, ServiceView, View};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

use crate::access;
use crate::access::Identity;
use crate::attempts;
use crate::client::{Client, Outgoing};
use crate::clock::{self, Clock};
use crate::directory::{Directory, Entry};
use crate::exchange::{Attempt, Failure, Way, check_protocol};
use crate::failback::Failback;
use crate::guarded;
use crate::h1::fields::Written;
use crate::h1::request::Request;
use crate::h1::response::{Asked, Response};
use crate::keys::{self, At, Lent};
use crate::lesson::{Learner, Lesson};
use crate::mesh::{Mesh, Stream};
use crate::metrics::Connections;
use crate::policies::Ground;
use crate::pool::{Pool, Upstream};
use crate::reason::{self, Reason, Refused, Tried};
use crate::redirect::Redirect;
use crate::relay::{Arrived, Home};
use crate::serve::Facts;
use crate::settings::ProxySettings;
use crate::system::Host;
use crate::tls::AppTls;
use crate::trace::{Context, OpenSpan};

/// Longest path shown in a span.
const MAX_SPAN_PATH: usize = 200;

/// The data plane's state, shared by all connections.
pub(crate) struct Carrier {
    pub(crate) settings: ProxySettings,
    /// How applications may encrypt, if they may.
    pub(crate) tls: Option<Arc<AppTls>>,
    /// The service its applications call for, if the settings name one.
    pub(crate) identity: Option<ServiceKey>,
    pub(crate) mesh: Arc<dyn Mesh>,
    /// Itself, for what goes on after a request has been answered.
    pub(crate) own: Weak<Carrier>,
    /// For what outlives its connection: a drain waits for whoever holds one of these.
    pub(crate) alive: mpsc::WeakSender<Infallible>,
    pub(crate) clock: Clock,
    pub(crate) directory: Directory,
    /// The node's own layer of every policy.
    pub(crate) ground: Ground,
    /// This host's own guard, if anything of it is limited.
    pub(crate) host: Option<Host>,
    pub(crate) connections: Connections,
    /// For redirected connections, if any are taken.
    pub(crate) redirect: Option<Redirect>,
    /// For tunnels from other nodes, on all workers together.
    pub(crate) tunnel_places: Arc<Semaphore>,
    /// Told when a breaker opens.
    pub(crate) ejected: Notify,
    /// For other nodes' questions how an instance is.
    pub(crate) answered: Semaphore,
    /// Requests that are to be sent later.
    pub(crate) failback: Failback,
}

/// Where a host leads, as long as the view is this one.
pub(crate) struct Known {
    host: Vec<u8>,
    pub(crate) view: Arc<View>,
    pub(crate) key: ServiceKey,
    pub(crate) service: Arc<ServiceView>,
    pub(crate) entry: Arc<Entry>,
    /// What is in force there.
    force: Arc<Force>,
}

impl Known {
    /// How long what is no request, and so on no route, may take.
    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.force.service.sections.timeouts.connect_ms)
    }

    /// What is in force for a request. Where a service has no routes, this is a look at an empty list.
    pub(crate) fn scope(&self, carrier: &Carrier, identity: &Identity, request: &Request, head: &[u8]) -> &Arc<Scope> {
        if self.force.routes.is_empty() {
            return &self.force.service;
        }
        let fields = Written(head);
        let asked = guarded::asked_of(carrier, identity, request, head, &fields);
        self.force.scope(|route| route.matches(&asked))
    }

    /// The same for another service, asked in the place of this one.
    pub(crate) fn other(carrier: &Carrier, key: ServiceKey) -> Result<Self, Refused> {
        let view = carrier.mesh.view();
        let Some(service) = view.service(&key).cloned() else {
            return Err(Refused::new(Reason::NoSuchService, format!("no service {key} is registered")).of(&key));
        };
        let entry = carrier.directory.entry(&key, &carrier.settings);
        let force = entry.policy.force(&key, &view, &carrier.ground, carrier.clock);
        Ok(Known { host: Vec::new(), view, key, service, entry, force })
    }

    /// What is in force there for requests no route is for.
    pub(crate) fn whole(&self) -> &Arc<Scope> {
        &self.force.service
    }
}

/// What says where a request goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// The host it names.
    Host(&'a [u8]),
    /// The port it came by, whatever host it names.
    Service(&'a ServiceKey),
}

/// The service that is meant. A connection's next request nearly always goes where its last went.
pub(crate) fn find<'a>(
    carrier: &Carrier,
    wanted: Wanted<'_>,
    known: &'a mut Option<Known>,
) -> Result<&'a Known, Refused> {
    let view = carrier.mesh.view();
    let is_wanted = |known: &Known| match wanted {
        Wanted::Host(host) => known.host == host,
        Wanted::Service(key) => known.key == *key,
    };
    if known.as_ref().is_some_and(|known| known.view.revision == view.revision && is_wanted(known)) {
        return known.as_ref().ok_or_else(|| Refused::new(Reason::BadRequest, "no host"));
    }
    *known = None;
    let settings = &carrier.settings;
    let (host, key) = match wanted {
        Wanted::Service(key) => (&b""[..], key.clone()),
        Wanted::Host(host) => {
            let name = std::str::from_utf8(host);
            let name = name.map_err(|_| Refused::new(Reason::BadRequest, "the host is not ASCII"))?;
            (host, route(name, &settings.suffix, &view).map_err(not_routed)?)
        }
    };
    let found = Known { host: host.to_vec(), ..Known::other(carrier, key)? };
    Ok(known.insert(found))
}

/// Carries a request from an application on this host to an instance; its response's head is then at the client. A failure
/// is still one: what is to be tolerated is the caller's to say, once all have learnt from it.
#[allow(clippy::too_many_arguments)] // one call's all
pub(crate) async fn carry<S: Stream>(
    carrier: &Carrier,
    known: &Known,
    caller: Option<&ServiceKey>,
    scope: &Scope,
    client: &mut Client<S>,
    outgoing: &mut Outgoing,
    asked: &Asked,
    now: Instant,
    deadline: Instant,
) -> Result<Arrived, Refused> {
    let Known { view, key, service, entry, .. } = known;
    entry.budget.deposit(carrier.clock.at(now));
    let group = entry.group(service, view, scope, carrier);
    let context = outgoing.request.context;
    let service = service.clone();
    let (tried, attempt) = (Vec::new(), outgoing.request.attempt);
    let hash = group.hashes_on().and_then(|on| attempts::hash(on, caller, carrier.mesh.me(), outgoing));
    let keyed = keys::steered_by(scope, outgoing);
    let call =
        Call { carrier, caller, service, key, entry, scope, group, context, deadline, tried, attempt, hash, keyed };
    if call.wants_several(outgoing) {
        // In a box: what few services want shall not make every connection's task larger.
        Box::pin(call.several(client, outgoing, asked)).await
    } else {
        call.attempts(client, outgoing, asked, now).await
    }
}

/// Leaves a trace of a request the sidecar has answered itself, for the caller is about to be told where to look.
pub(crate) fn note_refusal(carrier: &Carrier, known: Option<&Known>, refused: &Refused, facts: &Facts) {
    let metrics = known.map_or(carrier.directory.unknown(), |known| &known.entry.metrics);
    metrics.own_answers.fetch_add(1, Relaxed);
    if facts.context.sampled() && !refused.tried.is_empty() {
        return; // its attempts have left theirs
    }
    let context = facts.context.of_failure();
    let mut span = OpenSpan::begin(&context, SpanKind::Client, carrier.mesh.me(), carrier.mesh.spans());
    span.began(facts.arrived.into_std());
    span.describe(|span| {
        span.name = facts.method.to_string();
        span.service = refused.service.as_ref().map_or_else(String::new, ServiceKey::to_string);
    });
    span.fail(&refused.why);
}

fn not_routed(error: RouteError) -> Refused {
    let reason = match error {
        RouteError::NotMesh { .. } => Reason::NotMesh,
        RouteError::Name(_) => Reason::BadRequest,
    };
    Refused::new(reason, error.to_string())
}

/// What one attempt brought: a response's head with its connection, or why not.
pub(crate) type Attempted = Result<(Response, Upstream, Seated), Failure>;

/// A request in flight at an instance, and what is to be learnt of that at its end, if it is not known yet.
pub(crate) struct Seated {
    in_flight: InFlight<Pool>,
    lesson: Option<Box<Lesson>>,
    /// When its response's head had come.
    at: Instant,
}

/// Where the next attempt goes. Holds nothing of the group it was drawn from, which may be another one by the attempt
/// after.
pub(crate) struct Chosen {
    pub(crate) instance: InstanceView,
    pub(crate) in_flight: InFlight<Pool>,
    pub(crate) permit: Permit,
    /// When it goes there.
    pub(crate) at: Instant,
}

/// One request to one service, through all its attempts.
pub(crate) struct Call<'a> {
    pub(crate) carrier: &'a Carrier,
    /// The service that calls, if it is known.
    pub(crate) caller: Option<&'a ServiceKey>,
    /// The service and its candidates, as they were at the last choice.
    pub(crate) service: Arc<ServiceView>,
    pub(crate) key: &'a ServiceKey,
    pub(crate) entry: &'a Arc<Entry>,
    pub(crate) scope: &'a Scope,
    pub(crate) group: Arc<Group<Pool>>,
    pub(crate) context: Context,
    pub(crate) deadline: Instant,
    pub(crate) tried: Vec<(InstanceId, Tried)>,
    /// Which attempt of the caller's own this request is.
    pub(crate) attempt: u32,
    /// What is hashed of it, if instances are chosen by that.
    pub(crate) hash: Option<u64>,
    /// What stands for its idempotency key, if it has one that counts.
    pub(crate) keyed: Option<u64>,
}

impl Call<'_> {
    pub(crate) async fn attempts<S: Stream>(
        mut self,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
        now: Instant,
    ) -> Result<Arrived, Refused> {
        let Some(mut chosen) = self.choose(now) else {
            let why = reason::why_unusable(&self.service);
            return Err(self.refuse(Reason::NoneUsable, why));
        };
        let mut root: Option<OpenSpan> = None;
        loop {
            let Chosen { instance, in_flight, permit, at } = chosen;
            let mut span = self.begin_span(outgoing, &instance);
            if let Some(root) = &root {
                span.set_parent(root.id());
            }
            let result = self.attempt(&instance, in_flight, permit, at, client, outgoing, asked, &mut span).await;
            if matches!(&result, Err(failure) if failure.reason == Reason::Gone) {
                return Err(self.refuse(Reason::Gone, String::new()));
            }
            let again = self.wants_again(&result, outgoing);
            if again || result.is_err() {
                self.tried.push(note(&instance, &result));
            }
            let asked_wait = result.as_ref().ok().and_then(|(response, ..)| response.asks_wait);
            let next = if again && self.may_wait(asked_wait) { self.next_chance() } else { None };
            let Some(next) = next else {
                return match result {
                    Ok((response, upstream, seated)) => Ok(arrived(response, upstream, seated, [Some(span), root])),
                    Err(failure) => Err(self.give_up(failure, [Some(span), root])),
                };
            };
            root = Some(root.unwrap_or_else(|| self.begin_root(&mut span, outgoing)));
            span.fail(&self.tried.last().map_or(String::new(), |(_, tried)| tried.error.clone()));
            drop(result);
            chosen = next;
            self.back_off(asked_wait.unwrap_or_default()).await;
            chosen.at = Instant::now();
        }
    }

    fn choose(&self, at: Instant) -> Option<Chosen> {
        let tried: Vec<InstanceId> = self.tried.iter().map(|(instance, _)| instance.clone()).collect();
        self.choose_except(&tried, at)
    }

    pub(crate) fn choose_except(&self, tried: &[InstanceId], at: Instant) -> Option<Chosen> {
        let now = self.carrier.clock.at(at);
        let steered = self.keyed.filter(|_| self.scope.sections.idempotency.as_ref().is_some_and(|keys| keys.steer));
        let steered = steered.and_then(|key| self.group.choose_for_key(now, key, tried));
        let drawn = || clock::with_dice(|dice| self.group.choose(now, dice, &Ask { tried, key: self.hash }));
        let (slot, permit) = steered.or_else(drawn)?;
        Some(Chosen { instance: slot.instance.clone(), in_flight: InFlight::begin(&slot.seat), permit, at })
    }

    /// Another instance, if this request may be sent once more.
    pub(crate) fn next_chance(&mut self) -> Option<Chosen> {
        let most = self.scope.sections.retry.max_retries as usize;
        if self.tried.len() > most || Instant::now() >= self.deadline || !self.owns_retries() {
            return None;
        }
        // The attempt before may have waited long: whoever was registered meanwhile is a candidate too.
        let view = self.carrier.mesh.view();
        self.service = view.service(self.key)?.clone();
        self.group = self.entry.group(&self.service, &view, self.scope, self.carrier);
        let now = Instant::now();
        let next = self.choose(now)?;
        if !self.entry.budget.withdraw_within(self.carrier.clock.at(now), self.scope.sections.retry.budget) {
            self.entry.metrics.retries_refused.fetch_add(1, Relaxed);
            return None;
        }
        self.entry.metrics.retries.fetch_add(1, Relaxed);
        Some(next)
    }

    /// Sends it to one instance and lets balance and breaker learn from what comes.
    #[allow(clippy::too_many_arguments)] // one attempt's all
    pub(crate) async fn attempt<S: Stream>(
        &self,
        instance: &InstanceView,
        in_flight: InFlight<Pool>,
        permit: Permit,
        at: Instant,
        client: &mut Client<S>,
        outgoing: &mut Outgoing,
        asked: &Asked,
        span: &mut OpenSpan,
    ) -> Attempted {
        let (carrier, seat) = (self.carrier, in_flight.seat());
        let way = Way::to(instance, carrier.mesh.me());
        check_protocol(instance)?;
        if matches!(way, Way::Address(_)) {
            // There is no other sidecar to ask.
            let caller = Caller { node: carrier.mesh.me(), service: self.caller };
            access::check(carrier, self.entry, self.key, caller, outgoing.called())?;
        }
        let attempt = Attempt {
            carrier,
            pool: &seat.extra,
            way,
            protocol: instance.instance.protocol,
            span: span.id(),
            began: at,
            deadline: self.deadline_of_a_try(outgoing),
            timeouts: self.scope.sections.timeouts,
            number: self.number().max(outgoing.request.attempt),
        };
        let result = match (&self.scope.sections.idempotency, way) {
            // In a box: few services want this, and none shall be larger for it.
            (Some(settings), Way::Address(address)) if self.keyed.is_some() || settings.required => {
                let owned = instance.instance.reach == Reach::Owner && instance.owner() == carrier.mesh.me();
                let pool = Lent::Seat(seat.clone());
                let at = At { settings, entry: self.entry, instance: &instance.key, address, owned, pool };
                Box::pin(at.exchange(&attempt, self.caller, self.scope, client, outgoing, asked)).await
            }
            _ => attempt.exchange(client, outgoing, asked).await,
        };
        let came = Instant::now();
        let (status, asked_wait) = match &result {
            Ok((response, _)) => (Some(response.verdict()), response.asks_wait),
            // Its host has too much to do: that is being told to slow down, and no defect of the instance.
            Err(failure) if failure.reason == Reason::Guard(Guard::System) => {
                (Some(StatusCode::TOO_MANY_REQUESTS), failure.asks_wait)
            }
            Err(_) => (None, None),
        };
        let deadline = attempt.deadline;
        let says_nothing =
            |failure: &Failure| !failure.reason.blames_the_callee() || self.was_hurried(failure, deadline, outgoing);
        let (took, now) = (came - at, carrier.clock.at(came));
        let learner = Learner {
            entry: self.entry,
            group: &self.group,
            instance,
            seat,
            percentile: self.scope.sections.hedge.after_percentile,
        };
        let lesson = match &result {
            Ok((response, _)) if response.is_judged_later() => Some(Box::new(learner.later(permit, took))),
            Err(failure) if says_nothing(failure) => None,
            _ => {
                learner.learn(carrier, permit, now, took, status, asked_wait);
                None
            }
        };
        if let Ok((response, _)) = &result {
            span.describe(|span| {
                span.status = Some(response.status.as_u16());
                span.error = response.failure().map(str::to_owned);
            });
        }
        let (response, upstream) = result?;
        Ok((response, upstream, Seated { in_flight, lesson, at: came }))
    }

    /// Whether an attempt failed only because its caller waits far less than its policy lets an instance take: one caller's
    /// impatience shall not take an instance from all others. A caller that gives it half of that time says no less than
    /// the policy, nor does the limit of one try.
    fn was_hurried(&self, failure: &Failure, deadline: Instant, outgoing: &Outgoing) -> bool {
        let limit = Duration::from_millis(self.scope.sections.timeouts.request_ms);
        let in_a_hurry = outgoing.request.left.is_some_and(|left| left < limit / 2);
        in_a_hurry
            && deadline >= self.deadline
            && (failure.reason == Reason::TimedOut || Instant::now() >= self.deadline)
    }

    /// Full jitter, as Envoy: up to base, 3 x base, 7 x base ..., and never less than the instance asked for.
    pub(crate) async fn back_off(&self, asked_wait: Duration) {
        let retry = &self.scope.sections.retry;
        let steps = (1u64 << self.tried.len().min(20)) - 1;
        let most_ms = retry.backoff_ms.saturating_mul(steps).min(retry.max_backoff_ms.max(retry.backoff_ms));
        let wait = Duration::from_micros(clock::random() % (most_ms * 1_000 + 1));
        tokio::time::sleep_until((Instant::now() + wait.max(asked_wait)).min(self.deadline)).await;
    }

    pub(crate) fn begin_span(&self, outgoing: &Outgoing, instance: &InstanceView) -> OpenSpan {
        let mesh = &self.carrier.mesh;
        let mut span = OpenSpan::begin(&self.context, SpanKind::Client, mesh.me(), mesh.spans());
        span.describe(|span| {
            describe(span, self.key, outgoing);
            span.attributes.insert("instance".into(), instance.key.instance.to_string());
            span.attributes.insert("server.node".into(), instance.owner().to_string());
            if !self.tried.is_empty() {
                span.attributes.insert("http.request.resend_count".into(), self.tried.len().to_string());
            }
        });
        span
    }

    /// The span of the whole call, put above its first attempt when there is to be a second.
    pub(crate) fn begin_root(&self, first: &mut OpenSpan, outgoing: &Outgoing) -> OpenSpan {
        let mesh = &self.carrier.mesh;
        let mut root = OpenSpan::begin(&self.context, SpanKind::Client, mesh.me(), mesh.spans());
        root.describe(|span| describe(span, self.key, outgoing));
        root.starts_with(first);
        first.set_parent(root.id());
        root
    }

    pub(crate) fn give_up(self, failure: Failure, spans: [Option<OpenSpan>; 2]) -> Refused {
        spans.into_iter().flatten().for_each(|span| span.fail(&failure.why));
        let why = match failure.reason {
            Reason::Connect | Reason::NotHere => {
                format!("no instance could be reached; {}", reason::why_unusable(&self.service))
            }
            _ => failure.why,
        };
        let reason = if failure.reason == Reason::NotHere { Reason::Connect } else { failure.reason };
        let refused = self.refuse(reason, why);
        match failure.asks_wait {
            Some(wait) => refused.told("", Some(wait.as_secs())),
            None => refused,
        }
    }

    pub(crate) fn refuse(self, reason: Reason, why: String) -> Refused {
        let tried = self.tried.into_iter().map(|(_, tried)| tried).collect();
        Refused::new(reason, why).of(self.key).after(tried)
    }
}

pub(crate) fn note(instance: &InstanceView, attempted: &Attempted) -> (InstanceId, Tried) {
    let error = match attempted {
        Ok((response, ..)) => format!("it answered {}", response.failure().unwrap_or(response.status.as_str())),
        Err(failure) => failure.why.clone(),
    };
    let id = instance.key.instance.clone();
    let tried = Tried { instance: id.to_string(), node: instance.owner().to_string(), error };
    (id, tried)
}

/// What is the same for every span of a call.
pub(crate) fn describe(span: &mut starling_core::observe::Span, service: &ServiceKey, outgoing: &Outgoing) {
    span.service = service.to_string();
    span.name = outgoing.request.method.to_string();
    // Without the query: it may hold what is nobody's business.
    let path = outgoing.path().split('?').next().unwrap_or_default();
    span.attributes.insert("url.path".into(), path.chars().take(MAX_SPAN_PATH).collect());
}

pub(crate) fn arrived(
    response: Response,
    upstream: Upstream,
    Seated { in_flight, lesson, at }: Seated,
    mut spans: [Option<OpenSpan>; 2],
) -> Arrived {
    if let Some(root) = &mut spans[1] {
        root.describe(|span| {
            span.status = Some(response.status.as_u16());
            span.error = response.failure().map(str::to_owned);
        });
    }
    Arrived { response, at, upstream, home: Home::Seat(in_flight), lesson, spans, pass: None }
}
