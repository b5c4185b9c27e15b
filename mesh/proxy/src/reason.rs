//! What the sidecar answers when it answers itself: never without saying why.
//!
//! Such a response carries `x-starling-reason: CODE: SENTENCE` (responses of applications never do) and a JSON body
//! with the same, the service, and every instance that was tried. Between sidecars the code also says whether anything
//! reached the application, and so whether any request may be repeated.

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use starling_core::id::ServiceKey;
use starling_core::observe::TraceId;
use starling_core::registry::Health;
use starling_core::view::{ServiceView, Usability};

use crate::body::ReplyBody;

/// Why the sidecar answered itself.
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-starling-reason");
/// The trace of the request, for `starling trace ID`.
pub(crate) const TRACE: HeaderName = HeaderName::from_static("x-starling-trace");
/// Longest reason in a header; the body has all of it.
const MAX_HEADER_REASON: usize = 400;

/// Why a request was not answered by an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The request cannot be carried as it is.
    BadRequest,
    /// The client took too long to send the body.
    SlowRequest,
    /// The host is not of this mesh.
    NotMesh,
    /// It passed too many sidecars.
    Loop,
    /// A method or protocol this sidecar does not carry.
    Unsupported,
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
}

impl Reason {
    const ALL: [Reason; 11] = [
        Self::BadRequest,
        Self::SlowRequest,
        Self::NotMesh,
        Self::Loop,
        Self::Unsupported,
        Self::NoSuchService,
        Self::NoneUsable,
        Self::Connect,
        Self::NotHere,
        Self::Reset,
        Self::TimedOut,
    ];

    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::SlowRequest => "slow_request",
            Self::NotMesh => "not_a_mesh_name",
            Self::Loop => "loop",
            Self::Unsupported => "unsupported",
            Self::NoSuchService => "no_such_service",
            Self::NoneUsable => "no_usable_instance",
            Self::Connect => "connect_failed",
            Self::NotHere => "not_here",
            Self::Reset => "connection_lost",
            Self::TimedOut => "timed_out",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::SlowRequest => StatusCode::REQUEST_TIMEOUT,
            Self::NotMesh => StatusCode::MISDIRECTED_REQUEST,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::NoSuchService | Self::NoneUsable | Self::Connect | Self::NotHere => StatusCode::SERVICE_UNAVAILABLE,
            Self::Reset => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Whether it is certain that no application saw the request.
    pub(crate) fn is_unsent(self) -> bool {
        !matches!(self, Self::Reset | Self::TimedOut)
    }

    /// Reads another sidecar's header; an unknown code counts as [`Reason::Reset`], which promises nothing.
    pub(crate) fn read(value: &HeaderValue) -> (Self, String) {
        let text = String::from_utf8_lossy(value.as_bytes());
        let (code, sentence) = text.split_once(": ").unwrap_or((&text, ""));
        let reason = Self::ALL.into_iter().find(|reason| reason.code() == code).unwrap_or(Self::Reset);
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
}

#[derive(Serialize)]
struct Explanation<'a> {
    error: &'static str,
    why: &'a str,
    service: Option<String>,
    tried: &'a [Tried],
    trace: Option<String>,
}

impl Refused {
    pub(crate) fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into(), service: None, tried: Vec::new() }
    }

    pub(crate) fn of(mut self, service: &ServiceKey) -> Self {
        self.service = Some(service.clone());
        self
    }

    /// The response that says all this.
    pub(crate) fn into_response(self, trace: Option<TraceId>) -> Response<ReplyBody> {
        let explanation = Explanation {
            error: self.reason.code(),
            why: &self.why,
            service: self.service.as_ref().map(ServiceKey::to_string),
            tried: &self.tried,
            trace: trace.map(|trace| trace.to_string()),
        };
        // A struct of strings always becomes JSON; an empty body would still leave the header.
        let mut json = serde_json::to_vec(&explanation).unwrap_or_default();
        json.push(b'\n');
        let mut response = Response::new(ReplyBody::own(Bytes::from(json)));
        *response.status_mut() = self.reason.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(REASON, self.header());
        if let Some(trace) = trace {
            insert_trace(headers, trace);
        }
        response
    }

    fn header(&self) -> HeaderValue {
        let mut text = format!("{}: {}", self.reason.code(), self.why);
        for tried in &self.tried {
            let _ = write!(text, "; tried {} at {}: {}", tried.instance, tried.node, tried.error);
        }
        let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
        let text: String = text.chars().take(MAX_HEADER_REASON).map(printable).collect();
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("unprintable"))
    }
}

/// Tells the caller which trace its request belongs to.
pub(crate) fn insert_trace(headers: &mut http::HeaderMap, trace: TraceId) {
    if let Ok(value) = HeaderValue::from_str(&trace.to_string()) {
        headers.insert(TRACE, value);
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
