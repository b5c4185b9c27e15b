//! Successful answers.

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use starling_core::view::Revision;
use starling_core::{Answer, Command};

use crate::context::Context;
use crate::failure::Failure;
use crate::lists::encode;
use crate::model::{REVISION_HEADER, Registered, Written};

/// The revision header's name.
pub(crate) const REVISION: HeaderName = HeaderName::from_static(REVISION_HEADER);

/// A JSON body made of this revision.
pub(crate) fn json(revision: Revision, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(REVISION, HeaderValue::from(revision.0));
    response
}

impl Context {
    /// Carries out a command that makes this node the owner of an instance.
    pub(crate) async fn register(&self, command: Command) -> Result<Response, Failure> {
        let Answer::Done { revision, stamp } = self.command(command).await?;
        Ok(json(revision, encode(&Registered { revision, stamp, owner: self.mesh.me().clone() })))
    }

    /// Carries out any other command.
    pub(crate) async fn write(&self, command: Command) -> Result<Response, Failure> {
        let Answer::Done { revision, stamp } = self.command(command).await?;
        Ok(json(revision, encode(&Written { revision, stamp, node: self.mesh.me().clone() })))
    }
}
