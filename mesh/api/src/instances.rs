//! Writing the registry: registration, renewal, status, overrides.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use starling_core::Command;
use starling_core::id::{InstanceId, InstanceKey, Namespace, ServiceKey, ServiceName};
use starling_core::registry::{Address, Details, Instance, Override, Registration};

use crate::context::Shared;
use crate::extract::{JsonBody, Names, OptionalJson, Params, flag};
use crate::failure::Failure;
use crate::model::{OverrideBody, RegisterRequest, RenewRequest, StatusRequest};
use crate::services::{InstanceQuery, no_instance};

type InstanceNames = Names<(ServiceName, InstanceId)>;

/// `PUT /v1/services/{service}/instances/{id}`.
pub(crate) async fn register(
    State(context): State<Shared>,
    names: InstanceNames,
    Params(query): Params<InstanceQuery>,
    JsonBody(request): JsonBody<RegisterRequest>,
) -> Result<Response, Failure> {
    let instance = Instance {
        protocol: request.protocol,
        zone: request.zone.unwrap_or_else(|| context.mesh.view().zone.clone()),
        version: request.version.into(),
        weight: request.weight,
        status: request.status,
        reach: request.reach,
        details: Details::new(
            request.tags.into_iter().collect(),
            request.metadata.into_iter().collect(),
            request.check.map(Into::into),
        ),
        ..Instance::at(Address { host: request.address.into(), port: request.port })
    };
    instance.check_limits().map_err(Failure::bad)?;
    context.register(Command::Register(Registration { key: key(names, query), instance })).await
}

/// `PUT …/renew` and `POST …/heartbeat`.
pub(crate) async fn renew(
    State(context): State<Shared>,
    names: InstanceNames,
    Params(query): Params<InstanceQuery>,
    OptionalJson(request): OptionalJson<RenewRequest>,
) -> Result<Response, Failure> {
    let request = request.unwrap_or(RenewRequest { passing: true, reason: None });
    let verdict = match (request.passing, request.reason) {
        (true, _) => Ok(()),
        (false, reason) => Err(reason.unwrap_or_else(|| "the application says so".into())),
    };
    context.register(Command::Renew(key(names, query), verdict)).await
}

/// `PUT …/status`.
pub(crate) async fn set_status(
    State(context): State<Shared>,
    names: InstanceNames,
    Params(query): Params<InstanceQuery>,
    JsonBody(request): JsonBody<StatusRequest>,
) -> Result<Response, Failure> {
    context.write(Command::SetStatus(key(names, query), request.status)).await
}

/// `DELETE /v1/services/{service}/instances/{id}`.
pub(crate) async fn deregister(
    State(context): State<Shared>,
    names: InstanceNames,
    Params(query): Params<InstanceQuery>,
) -> Result<Response, Failure> {
    context.write(Command::Deregister(key(names, query))).await
}

/// The query of an override's PUT.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OverrideQuery {
    #[serde(default)]
    namespace: Namespace,
    /// Also for an instance that is not known here (yet); otherwise that is taken for a mistake.
    #[serde(default, deserialize_with = "flag")]
    unregistered: bool,
}

/// `PUT …/override`.
pub(crate) async fn set_override(
    State(context): State<Shared>,
    names: InstanceNames,
    Params(query): Params<OverrideQuery>,
    JsonBody(body): JsonBody<OverrideBody>,
) -> Result<Response, Failure> {
    if body.status.is_none() && body.weight.is_none() {
        return Err(Failure::bad("an override gives a status, a weight, or both")
            .hint("to clear it, DELETE this address; for example {\"status\":\"OUT_OF_SERVICE\",\"reason\":\"…\"}"));
    }
    let word = Override { status: body.status, weight: body.weight, reason: body.reason };
    let key = key(names, InstanceQuery { namespace: query.namespace });
    let view = context.mesh.view();
    if !query.unregistered && view.instance(&key).is_none() {
        return Err(no_instance(&view, &key));
    }
    context.write(Command::SetOverride(key, Some(word))).await
}

/// `DELETE …/override`.
pub(crate) async fn clear_override(
    State(context): State<Shared>,
    names: InstanceNames,
    Params(query): Params<InstanceQuery>,
) -> Result<Response, Failure> {
    context.write(Command::SetOverride(key(names, query), None)).await
}

fn key(Names((service, instance)): InstanceNames, query: InstanceQuery) -> InstanceKey {
    InstanceKey { service: ServiceKey { namespace: query.namespace, service }, instance }
}
