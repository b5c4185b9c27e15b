//! What the sidecar answers when it answers itself: never without saying why.
//!
//! Such a response carries `x-starling-reason: CODE: SENTENCE` (responses of applications never do) and a JSON body
//! with the same, the service, and every instance that was tried. Between sidecars the code also says whether anything
//! reached the application, and so whether any request may be repeated.

use std::fmt::Write;

use http::StatusCode;
use serde::Serialize;
use starling_core::id::ServiceKey;
use starling_core::observe::TraceId;
use starling_core::registry::Health;
use starling_core::view::{ServiceView, Usability};

use crate::grpc;
use crate::h1::{fields, response};

/// Why the sidecar answered itself.
pub(crate) const REASON: &str = "x-starling-reason";
/// The trace of the request, for `starling trace ID`.
pub(crate) const TRACE: &[u8] = b"x-starling-trace";
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
}

impl Reason {
    const ALL: [Reason; 14] = [
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
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::SlowRequest | Self::Gone => StatusCode::REQUEST_TIMEOUT,
            Self::NotMesh => StatusCode::MISDIRECTED_REQUEST,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NoSuchService | Self::NoneUsable | Self::Connect | Self::NotHere => StatusCode::SERVICE_UNAVAILABLE,
            Self::Reset => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Whether it is certain that no application saw the request.
    pub(crate) fn is_unsent(self) -> bool {
        !matches!(self, Self::Reset | Self::TimedOut | Self::Gone)
    }

    /// Reads another sidecar's header; an unknown code counts as [`Reason::Reset`], which promises nothing.
    pub(crate) fn read(value: &[u8]) -> (Self, String) {
        let text = String::from_utf8_lossy(value);
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
}

impl Refused {
    pub(crate) fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into(), service: None, tried: Vec::new() }
    }

    pub(crate) fn of(mut self, service: &ServiceKey) -> Self {
        self.service = Some(service.clone());
        self
    }

    /// Its status.
    pub(crate) fn status(&self) -> StatusCode {
        self.reason.status()
    }

    /// Writes the response that says all this.
    pub(crate) fn write(&self, told: &Told, out: &mut Vec<u8>) {
        if told.grpc {
            return self.write_grpc(told, out);
        }
        let explanation = Explanation {
            error: self.reason.code(),
            why: &self.why,
            service: self.service.as_ref().map(ServiceKey::to_string),
            tried: &self.tried,
            trace: told.trace.map(|trace| trace.to_string()),
        };
        // A struct of strings always becomes JSON; an empty body would still leave the header.
        let mut json = serde_json::to_vec(&explanation).unwrap_or_default();
        json.push(b'\n');
        let status = self.status();
        let phrase = status.canonical_reason().unwrap_or_default();
        out.extend_from_slice(format!("HTTP/1.1 {} {phrase}\r\n", status.as_str()).as_bytes());
        fields::write(out, b"content-type", b"application/json");
        fields::write_number(out, b"content-length", json.len() as u64);
        self.finish(told, out);
        if !told.head_only {
            out.extend_from_slice(&json);
        }
    }

    /// The same as a status of gRPC: a response of nothing but trailers, which is what its clients understand.
    fn write_grpc(&self, told: &Told, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        fields::write(out, b"content-type", b"application/grpc");
        fields::write_number(out, b"grpc-status", u64::from(grpc::status_for(self.status())));
        out.extend_from_slice(b"grpc-message: ");
        grpc::write_message(&self.header(), out);
        out.extend_from_slice(b"\r\ncontent-length: 0\r\n");
        self.finish(told, out);
    }

    fn finish(&self, told: &Told, out: &mut Vec<u8>) {
        fields::write(out, REASON.as_bytes(), self.header().as_bytes());
        if let Some(trace) = told.trace {
            fields::write(out, TRACE, trace.to_string().as_bytes());
        }
        response::write_date(out);
        if told.close {
            fields::write(out, b"connection", b"close");
        }
        out.extend_from_slice(b"\r\n");
    }

    fn header(&self) -> String {
        let mut text = format!("{}: {}", self.reason.code(), self.why);
        for tried in &self.tried {
            let _ = write!(text, "; tried {} at {}: {}", tried.instance, tried.node, tried.error);
        }
        let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
        text.chars().take(MAX_HEADER_REASON).map(printable).collect()
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
