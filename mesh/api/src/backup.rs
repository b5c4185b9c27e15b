//! Configuration and overrides as one file, of one moment.

use std::convert::Infallible;
use std::ops::Bound::{Excluded, Unbounded};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use hyper::body::Frame;
use serde::Deserialize;
use starling_core::id::{ConfigKey, InstanceKey};
use starling_core::view::View;

use crate::context::Shared;
use crate::extract::Params;
use crate::failure::Failure;
use crate::gather::now_unix_ms;
use crate::model::{BACKUP_FORMAT, BackupDocument, BackupHeader, BackupLine, BackupOverride, BackupWriter};

/// How much is made at once, so that a large backup is never in memory as a whole (a document more may come on top).
const CHUNK_BYTES: usize = 64 * 1024;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    Config,
    Overrides,
}

/// The query of a backup.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackupQuery {
    only: Option<Part>,
}

/// `GET /v1/backup`.
pub(crate) async fn backup(
    State(context): State<Shared>,
    Params(query): Params<BackupQuery>,
) -> Result<Response, Failure> {
    let view = context.mesh.view();
    let header = BackupHeader {
        format: BACKUP_FORMAT,
        node: view.me.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        taken_unix_ms: now_unix_ms(),
        revision: view.revision,
    };
    let next = match query.only {
        Some(Part::Overrides) => Next::Override(None),
        _ => Next::Config(None),
    };
    let (mut writer, mut begun) = (BackupWriter::new(), Vec::new());
    writer.line(&BackupLine::StarlingBackup(header), &mut begun);
    let lines = Lines { view, writer, begun, next, with_overrides: query.only != Some(Part::Config) };
    let mut response = Response::new(Body::new(lines));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
    Ok(response)
}

/// A backup in the making: a body that is written as fast as it is read.
struct Lines {
    view: Arc<View>,
    writer: BackupWriter,
    /// Lines made and not given away yet.
    begun: Vec<u8>,
    next: Next,
    with_overrides: bool,
}

/// Where it goes on: behind the key it did last.
enum Next {
    Config(Option<ConfigKey>),
    Override(Option<InstanceKey>),
    End,
    Nothing,
}

impl Lines {
    /// Makes the next line; false when there is none.
    fn step(&mut self) -> bool {
        match &self.next {
            Next::Config(last) => {
                let found = match last {
                    Some(last) => self.view.configs.range((Excluded(last), Unbounded)).next(),
                    None => self.view.configs.iter().next(),
                };
                self.next = match found {
                    Some((key, config)) => {
                        self.writer.line(&BackupLine::Config(BackupDocument::of(config)), &mut self.begun);
                        Next::Config(Some(key.clone()))
                    }
                    None if self.with_overrides => Next::Override(None),
                    None => Next::End,
                };
            }
            Next::Override(last) => {
                let found = match last {
                    Some(last) => self.view.overrides.range((Excluded(last), Unbounded)).next(),
                    None => self.view.overrides.iter().next(),
                };
                self.next = match found {
                    Some((key, shown)) => {
                        self.writer.line(&BackupLine::Override(BackupOverride::of(key, shown)), &mut self.begun);
                        Next::Override(Some(key.clone()))
                    }
                    None => Next::End,
                };
            }
            Next::End => {
                self.writer.end(&mut self.begun);
                self.next = Next::Nothing;
            }
            Next::Nothing => return false,
        }
        true
    }
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        while self.begun.len() < CHUNK_BYTES && self.step() {}
        let lines = std::mem::take(&mut self.begun);
        Poll::Ready((!lines.is_empty()).then(|| Ok(Frame::data(lines.into()))))
    }
}
