//! Reading the registry: services and their instances.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use starling_core::id::{InstanceId, InstanceKey, Namespace, ServiceKey, ServiceName, Zone};
use starling_core::registry::Status;
use starling_core::view::{InstanceView, ServiceView, View};

use crate::context::Shared;
use crate::extract::{Names, Params, Wait, duration, flag, parsed};
use crate::failure::Failure;
use crate::lists::encode;
use crate::model::{InstanceInfo, InstanceList, ServiceList};
use crate::near::nearest;
use crate::reply::json;
use crate::show;

/// The query of the list of services.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    namespace: Option<Namespace>,
    #[serde(default)]
    prefix: String,
    newer_than: Option<u64>,
    #[serde(default, deserialize_with = "duration")]
    wait: Option<Duration>,
}

/// `GET /v1/services`.
pub(crate) async fn list(State(context): State<Shared>, Params(query): Params<ListQuery>) -> Result<Response, Failure> {
    let revision_of = |view: &View| context.revisions.services(view);
    let view = context.newest(Wait::new(query.newer_than, query.wait), revision_of).await?;
    let wanted = |key: &ServiceKey| {
        query.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && key.service.as_str().starts_with(&query.prefix)
    };
    let revision = revision_of(&view);
    let services = view.services.iter().filter(|(key, _)| wanted(key)).map(|(_, found)| show::service(found)).collect();
    Ok(json(revision, encode(&ServiceList { revision, services })))
}

/// The query of the list of a service's instances.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InstancesQuery {
    #[serde(default)]
    namespace: Namespace,
    #[serde(default, deserialize_with = "flag")]
    ready: bool,
    zone: Option<Zone>,
    tag: Option<String>,
    version: Option<String>,
    #[serde(default, deserialize_with = "parsed")]
    status: Option<Status>,
    newer_than: Option<u64>,
    #[serde(default, deserialize_with = "duration")]
    wait: Option<Duration>,
}

impl InstancesQuery {
    /// Whether it asks for nothing that the cached lists do not have.
    fn is_plain(&self) -> bool {
        self.zone.is_none() && self.tag.is_none() && self.version.is_none() && self.status.is_none()
    }

    fn wants(&self, view: &InstanceView) -> bool {
        self.zone.as_ref().is_none_or(|zone| *zone == view.instance.zone)
            && self.tag.as_ref().is_none_or(|tag| view.instance.details.tags().contains(tag))
            && self.version.as_ref().is_none_or(|version| *version == *view.instance.version)
            && self.status.is_none_or(|status| status == view.status())
    }

    fn list(&self, service: &ServiceView) -> InstanceList {
        let candidates = service.candidates();
        // As a sidecar chooses: a client that asks for what it may use is not left with nothing by a cut.
        let usable = if candidates.ready.is_empty() { &candidates.doubtful } else { &candidates.ready };
        let all = service.instances.iter().filter(|_| !self.ready);
        let wanted = all.chain(usable.iter().filter(|_| self.ready)).filter(|instance| self.wants(instance));
        InstanceList {
            namespace: service.key.namespace.clone(),
            service: service.key.service.clone(),
            revision: service.revision,
            instances: wanted.map(show::instance).collect(),
        }
    }
}

/// `GET /v1/services/{service}` and `…/instances`.
pub(crate) async fn instances(
    State(context): State<Shared>,
    Names(service): Names<ServiceName>,
    Params(query): Params<InstancesQuery>,
) -> Result<Response, Failure> {
    let key = ServiceKey { namespace: query.namespace.clone(), service };
    let wait = Wait::new(query.newer_than, query.wait);
    let view = context.newest(wait, |view| view.service_revision(&key)).await?;
    let Some(service) = view.service(&key) else { return Err(no_service(&view, &key)) };
    let body: Bytes = if query.is_plain() {
        context.lists.get(service, query.ready, || query.list(service))
    } else {
        encode(&query.list(service))
    };
    Ok(json(service.revision, body))
}

/// The query of everything about one instance.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InstanceQuery {
    /// Its namespace.
    #[serde(default)]
    pub(crate) namespace: Namespace,
}

/// `GET /v1/services/{service}/instances/{id}`.
pub(crate) async fn instance(
    State(context): State<Shared>,
    Names((service, instance)): Names<(ServiceName, InstanceId)>,
    Params(query): Params<InstanceQuery>,
) -> Result<Response, Failure> {
    let key = InstanceKey { service: ServiceKey { namespace: query.namespace, service }, instance };
    let view = context.mesh.view();
    let Some(found) = view.instance(&key) else { return Err(no_instance(&view, &key)) };
    let info: InstanceInfo = show::instance(found);
    Ok(json(view.service_revision(&key.service), encode(&info)))
}

/// 404, with the revision to wait from and the name that may have been meant.
fn no_service(view: &View, key: &ServiceKey) -> Failure {
    Failure::absent(format!("no service {key} is known at node {}", view.me))
        .at(view.service_revision(key))
        .maybe_hint(near_service(view, key))
}

/// 404 for an instance: the service may be misspelt, or the instance.
pub(crate) fn no_instance(view: &View, key: &InstanceKey) -> Failure {
    let Some(service) = view.service(&key.service) else { return no_service(view, &key.service) };
    let near = nearest(key.instance.as_str(), service.instances.iter().map(|known| known.key.instance.as_str()));
    Failure::absent(format!("no instance {key} is known at node {}", view.me))
        .at(service.revision)
        .maybe_hint(near.map(|near| format!("did you mean {near}?")))
}

fn near_service(view: &View, key: &ServiceKey) -> Option<String> {
    let elsewhere = view.services.keys().find(|other| other.service == key.service);
    if let Some(other) = elsewhere {
        return Some(format!("there is one in namespace {}: add ?namespace={}", other.namespace, other.namespace));
    }
    let known = view.services.keys().filter(|other| other.namespace == key.namespace);
    let near = nearest(key.service.as_str(), known.map(|other| other.service.as_str()))?;
    Some(format!("did you mean {near}?"))
}
