//! Everything that is not a success: a status and a body that says what was wrong and what to do.

use axum::Json;
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use starling_core::Refusal;
use starling_core::policy::Problem;
use starling_core::view::Revision;
use starling_net::CommandError;

use crate::model::{ErrorBody, REVISION_HEADER};

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    body: ErrorBody,
    revision: Option<Revision>,
    close: bool,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: ErrorBody { error: error.into(), ..ErrorBody::default() }, revision: None, close: false }
    }

    /// The request is wrong; the text names the field.
    pub(crate) fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// What was asked for is not there.
    pub(crate) fn absent(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// With what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    /// With what is wrong in particular.
    pub(crate) fn problems(mut self, problems: Vec<Problem>) -> Self {
        self.body.problems = problems;
        self
    }

    /// With a hint if there is one.
    pub(crate) fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.body.hint = hint;
        self
    }

    /// With the revision to wait from.
    pub(crate) fn at(mut self, revision: Revision) -> Self {
        self.revision = Some(revision);
        self
    }

    /// And the connection is closed: the rest of the request was not read.
    pub(crate) fn closing(mut self) -> Self {
        self.close = true;
        self
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        let headers = response.headers_mut();
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(revision) = self.revision {
            headers.insert(REVISION_HEADER, HeaderValue::from(revision.0));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        let text = error.to_string();
        match error {
            CommandError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, text).hint("nothing was changed"),
            CommandError::Unsaved(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, text)
                .hint("see to this node's disk; other nodes have been told and keep it"),
            CommandError::Unwritable(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
                .hint("ask another node meanwhile; this one takes writes again as soon as its disk does"),
            CommandError::Stopped => Self::new(StatusCode::SERVICE_UNAVAILABLE, text).hint("ask another node"),
            CommandError::Refused(refusal) => refusal.into(),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Invalid(_) => Self::bad(text),
            Refusal::NoInstance(_) | Refusal::NoConfig(_) => Self::absent(text),
            Refusal::NotOwner { owner, .. } => {
                let mut failure = Self::new(StatusCode::CONFLICT, text);
                failure.body.owner = Some(owner);
                failure
            }
            Refusal::Changed(served) => {
                let mut failure = Self::new(StatusCode::CONFLICT, text)
                    .hint("read the document again, apply your change to it, and write with the new stamp");
                failure.body.served = served;
                failure
            }
            Refusal::Full { .. } => Self::new(StatusCode::INSUFFICIENT_STORAGE, text)
                .hint("remove what is no longer used, or raise the limit in the node's settings"),
            Refusal::Leaving => Self::new(StatusCode::SERVICE_UNAVAILABLE, text).hint("ask another node"),
        }
    }
}
