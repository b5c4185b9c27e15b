//! From the bytes of a request to typed values, once, at the edge. Whatever does not fit is refused with the name of
//! the field and the nearest one known.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use http_body_util::BodyExt;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use starling_core::view::Revision;
use tokio::time::timeout;

use crate::context::Shared;
use crate::failure::Failure;
use crate::near::nearest;

/// The largest JSON body, in bytes: several times an instance with all its labels at their limits.
pub(crate) const MAX_JSON_BYTES: usize = 64 * 1024;
/// How much of a body that is too long is read and thrown away, so that its sender gets to see the answer: a connection
/// closed with data unread is reset.
const MAX_DISCARDED_BYTES: usize = 4 * 1024 * 1024;
/// The longest a blocking query may wait.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(600);
/// How long it waits when it does not say.
pub(crate) const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// The names in the path, parsed.
pub(crate) struct Names<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Shared> for Names<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Failure> {
        match Path::<T>::from_request_parts(parts, context).await {
            Ok(Path(names)) => Ok(Self(names)),
            Err(rejection) => Err(Failure::bad(tail(&rejection.body_text(), "Invalid URL: "))),
        }
    }
}

/// The query's parameters; unknown ones are refused.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Shared> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Failure> {
        match Query::<T>::from_request_parts(parts, context).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                let text = rejection.body_text();
                Err(refused_field("query", tail(&text, "Failed to deserialize query string: ")))
            }
        }
    }
}

/// A JSON body. The `Content-Type` is not looked at: there is nothing else it could be.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Shared> for JsonBody<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, context: &Shared) -> Result<Self, Failure> {
        let bytes = read_body(request.into_body(), MAX_JSON_BYTES, context.settings.request_timeout()).await?;
        parse_json(&bytes).map(Self)
    }
}

/// A JSON body that may be left out.
pub(crate) struct OptionalJson<T>(pub(crate) Option<T>);

impl<T: DeserializeOwned> FromRequest<Shared> for OptionalJson<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, context: &Shared) -> Result<Self, Failure> {
        let bytes = read_body(request.into_body(), MAX_JSON_BYTES, context.settings.request_timeout()).await?;
        if bytes.trim_ascii().is_empty() { Ok(Self(None)) } else { parse_json(&bytes).map(|body| Self(Some(body))) }
    }
}

/// The whole body, at most so long and within so much time.
pub(crate) async fn read_body(body: Body, max_bytes: usize, limit: Duration) -> Result<Bytes, Failure> {
    match timeout(limit, collect(body, max_bytes)).await {
        Ok(read) => read,
        Err(_) => {
            let text = format!("the body did not arrive within {} ms", limit.as_millis());
            Err(Failure::new(StatusCode::REQUEST_TIMEOUT, text).closing())
        }
    }
}

async fn collect(mut body: Body, max_bytes: usize) -> Result<Bytes, Failure> {
    let mut read = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::bad(format!("the body could not be read: {error}")).closing())?;
        let Some(bytes) = frame.data_ref() else { continue };
        length += bytes.len();
        if length <= max_bytes {
            read.extend_from_slice(bytes);
        } else if length > max_bytes + MAX_DISCARDED_BYTES {
            break;
        }
    }
    if length > max_bytes {
        return Err(
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {max_bytes} bytes")).closing()
        );
    }
    Ok(read.into())
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    if bytes.trim_ascii().is_empty() {
        return Err(Failure::bad("the body is empty, JSON is expected"));
    }
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let path = error.path().to_string();
        refused_field(if path == "." { "body" } else { &path }, &error.inner().to_string())
    })?;
    parser.end().map_err(|error| Failure::bad(format!("body: {error}")))?;
    Ok(value)
}

/// What serde says of a field, with the nearest known name when the field is unknown.
fn refused_field(place: &str, error: &str) -> Failure {
    // serde writes: unknown field `x`, expected one of `a`, `b`
    let mut words = error.split('`').skip(1).step_by(2);
    let hint = if error.contains("unknown field") || error.contains("unknown variant") {
        let unknown = words.next().unwrap_or_default();
        let known: Vec<&str> = words.collect();
        nearest(unknown, known.iter().copied()).map(|near| format!("did you mean {near}?"))
    } else {
        None
    };
    Failure::bad(format!("{place}: {error}")).maybe_hint(hint)
}

fn tail<'a>(text: &'a str, lead: &str) -> &'a str {
    text.strip_prefix(lead).unwrap_or(text)
}

/// `newer_than` and `wait` of a blocking query.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wait {
    /// Answer when there is something newer; at once when absent.
    pub(crate) newer_than: Option<Revision>,
    /// Answer after this long in any case.
    pub(crate) wait: Duration,
}

impl Wait {
    pub(crate) fn new(newer_than: Option<u64>, wait: Option<Duration>) -> Self {
        Self { newer_than: newer_than.map(Revision), wait: wait.unwrap_or(DEFAULT_WAIT).min(MAX_WAIT) }
    }
}

/// Reads `30s`, `500ms`, `2m`; without a unit, seconds.
pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let wrong = || D::Error::custom(format!("{text:?} is not a time: write 500ms, 30s or 2m"));
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        _ => return Err(wrong()),
    };
    Ok(Some(Duration::from_millis(number.saturating_mul(unit_ms))))
}

/// Reads `true` and `false`; the bare name of the parameter is true.
pub(crate) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(D::Error::custom(format!("{other:?} is neither true nor false"))),
    }
}

/// Reads anything that can be parsed; an empty text is absent.
pub(crate) fn parsed<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}
