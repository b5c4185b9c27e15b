//! Requests that wait on this node to be sent later.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use starling_core::id::{Namespace, ServiceKey, ServiceName};
use starling_core::policy::Governor;

use crate::context::{Context, Shared};
use crate::extract::{Names, Params};
use crate::failure::Failure;
use crate::lists::encode;
use crate::mesh::NoQuery;
use crate::model::{Hurried, WaitingList};
use crate::reply::json;

/// The most requests that are listed.
const MAX_LISTED: usize = 1_000;

/// The query of the list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    #[serde(default)]
    namespace: Namespace,
    service: Option<ServiceName>,
}

/// `GET /v1/failback`.
pub(crate) async fn list(State(context): State<Shared>, Params(query): Params<ListQuery>) -> Result<Response, Failure> {
    let ListQuery { namespace, service } = query;
    let key = service.map(|service| ServiceKey { namespace, service });
    let governor = governor(&context)?;
    // Reading heads of a thousand requests is nothing to wait for, but the lock they are under is the sidecar's.
    let (requests, total) = governor.waiting(key.as_ref(), MAX_LISTED);
    let list = WaitingList { node: context.mesh.me().clone(), requests, total };
    Ok(json(context.mesh.view().revision, encode(&list)))
}

/// `DELETE /v1/failback/{id}`.
pub(crate) async fn drop_one(
    State(context): State<Shared>,
    Names(id): Names<String>,
    Params(NoQuery {}): Params<NoQuery>,
) -> Result<Response, Failure> {
    let node = context.mesh.me().clone();
    if !governor(&context)?.drop_waiting(&id) {
        let hint = "it is delivered or given up, or waits at the node its name begins with: GET /v1/failback there";
        return Err(Failure::absent(format!("no request {id} waits at node {node}")).hint(hint));
    }
    let (requests, total) = governor(&context)?.waiting(None, MAX_LISTED);
    Ok(json(context.mesh.view().revision, encode(&WaitingList { node, requests, total })))
}

/// The query of a try at once.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetryQuery {
    #[serde(default)]
    namespace: Namespace,
    service: ServiceName,
}

/// `POST /v1/failback`.
pub(crate) async fn retry(
    State(context): State<Shared>,
    Params(query): Params<RetryQuery>,
) -> Result<Response, Failure> {
    let key = ServiceKey { namespace: query.namespace, service: query.service };
    let waiting = governor(&context)?.hurry_waiting(&key);
    Ok(json(context.mesh.view().revision, encode(&Hurried { waiting })))
}

fn governor(context: &Context) -> Result<Arc<dyn Governor>, Failure> {
    let none = || Failure::new(StatusCode::SERVICE_UNAVAILABLE, "nothing carries requests on this node".to_owned());
    context.mesh.governor().ok_or_else(none)
}
