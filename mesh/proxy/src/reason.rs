//! What the sidecar answers when it answers itself: never without saying why.
//!
//! Such a response carries `x-starling-reason: CODE: SENTENCE` (responses of applications never do) and a JSON body
//! with the same, the service, and every instance that was tried. Between sidecars the code also says whether anything
//! reached the application, and so whether any request may be repeated.

use std::fmt::Write;
use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use starling_core::guard::Guard;
use starling_core::id::ServiceKey;
use starling_core::observe::TraceId;
use starling_core::policy::{Fallback, Scope, Sections, When};
use starling_core::registry::Health;
use starling_core::view::{ServiceView, Usability};

use crate::grpc;
use crate::h1::{fields, response};
use crate::last_good::StandIn;

/// Why the sidecar answered itself.
pub(crate) const REASON: &str = "x-starling-reason";
/// The trace of the request, for `starling trace ID`.
pub(crate) const TRACE: &[u8] = b"x-starling-trace";
/// Says that a fallback answered: `answer`, `last_good` with its age in seconds and the node that kept it, or the service
/// that was asked instead.
pub(crate) const FALLBACK: &[u8] = b"x-starling-fallback";
/// Names the request that is kept to be sent later, or says why it is not.
pub(crate) const FAILBACK: &[u8] = b"x-starling-failback";
/// Longest reason in a header; the body has all of it.
const MAX_HEADER_REASON: usize = 400;

/// Why a request was not answered by an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The request cannot be carried as it is.
    BadRequest,
    /// The head has more bytes or fields than are taken.
    HeadTooLarge,
    /// The client took too long to send the body.
    SlowRequest,
    /// The client went away; nobody is there to be told.
    Gone,
    /// The host is not of this mesh.
    NotMesh,
    /// It passed too many sidecars.
    Loop,
    /// A method or protocol this sidecar does not carry.
    Unsupported,
    /// The rules of the service, or the mesh's, do not let this caller do this.
    Forbidden,
    /// Nobody has registered such a service.
    NoSuchService,
    /// It has instances, and none may take this request.
    NoneUsable,
    /// Nothing reached an application: connecting failed.
    Connect,
    /// The tunnel's end does not own the instance (any more).
    NotHere,
    /// It was sent, and the connection broke before an answer.
    Reset,
    /// No answer in time.
    TimedOut,
    /// Its time was over before an instance was asked.
    Late,
    /// An instance answered with an error, which the policy counts as none.
    Answered,
    /// It failed, and the policy says that this does not matter to the caller.
    Tolerated,
    /// It failed, and is kept to be sent later.
    Queued,
    /// Too many instances failed of those that were all to be told.
    Broadcast,
    /// A fault of the policy's, made on purpose.
    Fault,
    /// It must have an idempotency key, and has none that can be used.
    KeyMissing,
    /// Its idempotency key is another request's.
    KeyMisused,
    /// It has an idempotency key, and a body that cannot be held to be compared.
    KeyTooLarge,
    /// A node that may know its idempotency key does not say, and the policy wants to know.
    KeyUnknown,
    /// A guard of the policy said no.
    Guard(Guard),
}

impl Reason {
    /// Those of which there is one each.
    const ALL: [Reason; 24] = [
        Self::BadRequest,
        Self::HeadTooLarge,
        Self::SlowRequest,
        Self::Gone,
        Self::NotMesh,
        Self::Loop,
        Self::Unsupported,
        Self::Forbidden,
        Self::NoSuchService,
        Self::NoneUsable,
        Self::Connect,
        Self::NotHere,
        Self::Reset,
        Self::TimedOut,
        Self::Late,
        Self::Answered,
        Self::Fault,
        Self::Tolerated,
        Self::Queued,
        Self::Broadcast,
        Self::KeyMissing,
        Self::KeyMisused,
        Self::KeyTooLarge,
        Self::KeyUnknown,
    ];

    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::HeadTooLarge => "head_too_large",
            Self::SlowRequest => "slow_request",
            Self::Gone => "client_gone",
            Self::NotMesh => "not_a_mesh_name",
            Self::Loop => "loop",
            Self::Unsupported => "unsupported",
            Self::Forbidden => "forbidden",
            Self::NoSuchService => "no_such_service",
            Self::NoneUsable => "no_usable_instance",
            Self::Connect => "connect_failed",
            Self::NotHere => "not_here",
            Self::Reset => "connection_lost",
            Self::TimedOut => "timed_out",
            Self::Late => "no_time_left",
            Self::Answered => "error_answered",
            Self::Tolerated => "failure_tolerated",
            Self::Queued => "queued",
            Self::Broadcast => "broadcast_failed",
            Self::Fault => "fault",
            Self::KeyMissing => "idempotency_key_missing",
            Self::KeyMisused => "idempotency_key_misused",
            Self::KeyTooLarge => "idempotency_body_too_large",
            Self::KeyUnknown => "idempotency_key_not_known",
            Self::Guard(guard) => guard.name(),
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::KeyMissing => StatusCode::BAD_REQUEST,
            Self::KeyMisused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::KeyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::KeyUnknown => StatusCode::SERVICE_UNAVAILABLE,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::SlowRequest | Self::Gone => StatusCode::REQUEST_TIMEOUT,
            Self::NotMesh => StatusCode::MISDIRECTED_REQUEST,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NoSuchService | Self::NoneUsable | Self::Connect | Self::NotHere => StatusCode::SERVICE_UNAVAILABLE,
            Self::Reset | Self::Broadcast | Self::Answered => StatusCode::BAD_GATEWAY,
            Self::Tolerated => StatusCode::NO_CONTENT,
            Self::Queued => StatusCode::ACCEPTED,
            Self::TimedOut | Self::Late => StatusCode::GATEWAY_TIMEOUT,
            Self::Guard(Guard::List) => StatusCode::FORBIDDEN,
            Self::Guard(Guard::Rate | Guard::Quota) => StatusCode::TOO_MANY_REQUESTS,
            Self::Guard(Guard::Idempotency) => StatusCode::CONFLICT,
            Self::Fault | Self::Guard(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether it is certain that no application saw the request.
    pub(crate) fn is_unsent(self) -> bool {
        use Reason::{Answered, Broadcast, Gone, Queued, Reset, TimedOut, Tolerated};
        !matches!(self, Reset | TimedOut | Gone | Tolerated | Queued | Broadcast | Answered)
    }

    /// Whether it says something of the callee. What the caller, the rules or the clock ended before the callee had a part
    /// in it does not: one caller without permission must not cost all others of its host the instance.
    pub(crate) fn blames_the_callee(self) -> bool {
        let is_the_callers = matches!(
            self,
            Self::BadRequest | Self::HeadTooLarge | Self::SlowRequest | Self::Gone | Self::Loop | Self::Unsupported
        );
        !is_the_callers && !self.is_of_its_key() && !matches!(self, Self::Forbidden | Self::Late)
    }

    /// Whether the request's idempotency key is why.
    pub(crate) fn is_of_its_key(self) -> bool {
        let own = [Self::KeyMissing, Self::KeyMisused, Self::KeyTooLarge, Self::KeyUnknown];
        self == Self::Guard(Guard::Idempotency) || own.contains(&self)
    }

    /// Reads another sidecar's header; an unknown code counts as [`Reason::Reset`], which promises nothing.
    pub(crate) fn read(value: &[u8]) -> (Self, String) {
        let text = String::from_utf8_lossy(value);
        let (code, sentence) = text.split_once(": ").unwrap_or((&text, ""));
        let mut known = Self::ALL.into_iter().chain(Guard::ALL.into_iter().map(Self::Guard));
        let reason = known.find(|reason| reason.code() == code).unwrap_or(Self::Reset);
        (reason, sentence.to_owned())
    }
}

/// One instance that was tried in vain.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Tried {
    pub(crate) instance: String,
    pub(crate) node: String,
    pub(crate) error: String,
}

/// A request the sidecar answers itself.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) why: String,
    pub(crate) service: Option<ServiceKey>,
    pub(crate) tried: Vec<Tried>,
    /// What a policy adds.
    ruling: Option<Box<Ruling>>,
}

/// What a policy has to say of a refusal.
#[derive(Debug, Default)]
struct Ruling {
    rule: String,
    retry_after_s: Option<u64>,
    /// Instead of the reason's status; with a gRPC code.
    answer: Option<(StatusCode, Option<u8>)>,
    /// Where the answer is that is given instead.
    fallback: Option<Arc<Scope>>,
    /// An answer that was given before, and is given instead.
    last_good: Option<StandIn>,
    /// The name it is kept under, to be sent later.
    queued: Option<String>,
}

/// How a refusal is told.
pub(crate) struct Told {
    pub(crate) trace: Option<TraceId>,
    /// The connection ends with it.
    pub(crate) close: bool,
    /// The request was a HEAD.
    pub(crate) head_only: bool,
    /// The caller speaks gRPC.
    pub(crate) grpc: bool,
}

#[derive(Serialize)]
struct Explanation<'a> {
    error: &'static str,
    why: &'a str,
    service: Option<String>,
    tried: &'a [Tried],
    trace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queued: Option<&'a str>,
}

impl Refused {
    pub(crate) fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into(), service: None, tried: Vec::new(), ruling: None }
    }

    /// After these attempts.
    pub(crate) fn after(mut self, tried: Vec<Tried>) -> Self {
        self.tried = tried;
        self
    }

    /// By which rule, and when asking again may help.
    pub(crate) fn told(mut self, rule: &str, retry_after_s: Option<u64>) -> Self {
        self.ruling = Some(Box::new(Ruling { rule: rule.to_owned(), retry_after_s, ..Ruling::default() }));
        self
    }

    /// With this status, and this gRPC code, instead of the reason's.
    pub(crate) fn answered(mut self, status: StatusCode, grpc: Option<u8>) -> Self {
        self.ruling.get_or_insert_default().answer = Some((status, grpc));
        self
    }

    /// Answers what this scope's fallback says, if it has one for this.
    pub(crate) fn or_fallback(mut self, scope: &Arc<Scope>) -> Self {
        if self.falls_back(&scope.sections).is_some() {
            self.ruling.get_or_insert_default().fallback = Some(scope.clone());
        }
        self
    }

    /// Answers what was answered before.
    pub(crate) fn stood_in_for(mut self, last_good: StandIn) -> Self {
        self.ruling.get_or_insert_default().last_good = Some(last_good);
        self
    }

    /// With this to be said, too.
    pub(crate) fn also(mut self, sentence: &str) -> Self {
        self.why = format!("{}; {sentence}", self.why);
        self
    }

    /// Kept under this name, to be sent later.
    pub(crate) fn queued_as(mut self, name: String) -> Self {
        self.ruling.get_or_insert_default().queued = Some(name);
        self
    }

    /// The fallback for this, if there is one.
    pub(crate) fn falls_back<'a>(&self, sections: &'a Sections) -> Option<&'a Fallback> {
        let when = match self.reason {
            Reason::Guard(_) => When::Refused,
            Reason::NoneUsable | Reason::Connect | Reason::NotHere | Reason::Reset => When::Failed,
            Reason::TimedOut | Reason::Late => When::Failed,
            Reason::Answered => When::Errors,
            _ => return None,
        };
        sections.fallback.as_ref().filter(|fallback| fallback.on.contains(&when))
    }

    pub(crate) fn of(mut self, service: &ServiceKey) -> Self {
        self.service = Some(service.clone());
        self
    }

    /// Its status.
    pub(crate) fn status(&self) -> StatusCode {
        if let Some(last_good) = self.last_good() {
            return last_good.status();
        }
        if let Some(fallback) = self.fallback() {
            return StatusCode::from_u16(fallback.status).unwrap_or(StatusCode::OK);
        }
        let answer = self.ruling.as_ref().and_then(|ruling| ruling.answer);
        answer.map_or(self.reason.status(), |(status, _)| status)
    }

    fn last_good(&self) -> Option<&StandIn> {
        self.ruling.as_ref()?.last_good.as_ref()
    }

    fn fallback(&self) -> Option<&Fallback> {
        self.ruling.as_ref()?.fallback.as_ref()?.sections.fallback.as_ref()
    }

    /// Writes the response that says all this, or what is answered instead; the header says why in either case.
    pub(crate) fn write(&self, told: &Told, out: &mut Vec<u8>) {
        let grpc = self.ruling.as_ref().and_then(|ruling| ruling.answer?.1);
        let (fallback, last_good) = (self.fallback(), self.last_good());
        if fallback.is_none() && last_good.is_none() && (told.grpc || grpc.is_some()) {
            return self.write_grpc(grpc, told, out);
        }
        let status = self.status();
        let phrase = status.canonical_reason().unwrap_or_default();
        out.extend_from_slice(format!("HTTP/1.1 {} {phrase}\r\n", status.as_str()).as_bytes());
        let body = match (last_good, fallback) {
            (Some(last_good), _) => {
                last_good.write_fields(FALLBACK, out);
                last_good.body().to_vec()
            }
            (None, Some(fallback)) => {
                for (name, value) in &fallback.headers {
                    fields::write(out, name.as_bytes(), value.as_bytes());
                }
                fields::write(out, FALLBACK, b"answer");
                fallback.body.as_bytes().to_vec()
            }
            (None, None) => self.explain(told, out),
        };
        let is_bodiless =
            matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
        if !is_bodiless {
            fields::write_number(out, b"content-length", body.len() as u64);
        }
        self.finish(told, out);
        if !told.head_only && !is_bodiless {
            out.extend_from_slice(&body);
        }
    }

    /// The same as a status of gRPC: a response of nothing but trailers, which is what its clients understand.
    fn write_grpc(&self, code: Option<u8>, told: &Told, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        fields::write(out, b"content-type", b"application/grpc");
        let own = if self.reason == Reason::Tolerated { 0 } else { grpc::status_for(self.status()) };
        let code = code.unwrap_or(own);
        fields::write_number(out, b"grpc-status", u64::from(code));
        out.extend_from_slice(b"grpc-message: ");
        grpc::write_message(&self.header(), out);
        out.extend_from_slice(b"\r\ncontent-length: 0\r\n");
        if let Some(seconds) = self.retry_after_s() {
            fields::write_number(out, b"grpc-retry-pushback-ms", seconds.saturating_mul(1_000));
        }
        self.finish(told, out);
    }

    fn retry_after_s(&self) -> Option<u64> {
        self.ruling.as_ref().and_then(|ruling| ruling.retry_after_s)
    }

    fn finish(&self, told: &Told, out: &mut Vec<u8>) {
        fields::write(out, REASON.as_bytes(), self.header().as_bytes());
        if let Some(trace) = told.trace {
            fields::write(out, TRACE, trace.to_string().as_bytes());
        }
        // One that was given before has its own.
        if self.last_good().is_none() {
            response::write_date(out);
        }
        if told.close {
            fields::write(out, b"connection", b"close");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Writes the fields of an answer of our own, and returns its body.
    fn explain(&self, told: &Told, out: &mut Vec<u8>) -> Vec<u8> {
        let retry_after_s = self.retry_after_s();
        if let Some(seconds) = retry_after_s {
            fields::write_number(out, b"retry-after", seconds);
        }
        fields::write(out, b"content-type", b"application/json");
        let rule = self.ruling.as_ref().map(|ruling| ruling.rule.as_str());
        let queued = self.ruling.as_ref().and_then(|ruling| ruling.queued.as_deref());
        if let Some(name) = queued {
            fields::write(out, FAILBACK, name.as_bytes());
        }
        let explanation = Explanation {
            error: self.reason.code(),
            why: &self.why,
            service: self.service.as_ref().map(ServiceKey::to_string),
            tried: &self.tried,
            trace: told.trace.map(|trace| trace.to_string()),
            rule: rule.filter(|rule| !rule.is_empty()),
            retry_after_s,
            queued,
        };
        // A struct of strings always becomes JSON; an empty body would still leave the header.
        let mut json = serde_json::to_vec(&explanation).unwrap_or_default();
        json.push(b'\n');
        json
    }

    fn header(&self) -> String {
        let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
        self.summary().chars().take(MAX_HEADER_REASON).map(printable).collect()
    }

    /// All of it in a line.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!("{}: {}", self.reason.code(), self.why);
        for tried in &self.tried {
            let _ = write!(text, "; tried {} at {}: {}", tried.instance, tried.node, tried.error);
        }
        text
    }
}

/// How many instances a service has and what keeps them from taking traffic.
pub(crate) fn why_unusable(service: &ServiceView) -> String {
    let mut counts = [0usize; 8];
    let mut statuses = std::collections::BTreeMap::<String, usize>::new();
    for instance in &service.instances {
        match instance.usability {
            Usability::Ready => counts[0] += 1,
            Usability::Doubtful => counts[7] += 1,
            Usability::OwnerLost => counts[1] += 1,
            Usability::OwnerLeft => counts[2] += 1,
            Usability::Status => *statuses.entry(instance.status().to_string()).or_default() += 1,
            Usability::Health if instance.instance.health == Health::Unknown => counts[5] += 1,
            Usability::Health => counts[4] += 1,
            Usability::Weight => counts[6] += 1,
        }
    }
    let mut parts: Vec<String> = statuses.into_iter().map(|(status, n)| format!("{n} {status}")).collect();
    let words = [
        "ready but failed or taken out by their breaker",
        "on a node that is lost",
        "on a node that left",
        "",
        "failing health",
        "not checked yet",
        "of weight 0",
        "in doubt, on nodes that vanished together",
    ];
    parts.extend(counts.iter().zip(words).filter(|(n, _)| **n > 0).map(|(n, words)| format!("{n} {words}")));
    let n = service.instances.len();
    format!("service {} has {n} instance{}: {}", service.key, if n == 1 { "" } else { "s" }, parts.join(", "))
}
