//! Commands of a scenario as requests to a node's API.

use starling_api::model::{CheckBody, OverrideBody, RegisterRequest, RenewRequest, StatusRequest};
use starling_core::Command;
use starling_core::id::InstanceKey;
use starling_core::registry::Instance;

use super::host::document;
use crate::cli::client::Ask;

/// The request that asks for the same; `None` for a stop, which is no request.
pub(super) fn ask(command: &Command) -> Option<Ask> {
    Some(match command {
        Command::Register(registration) => {
            instance("PUT", &registration.key, None).json(&request(&registration.instance))
        }
        Command::Renew(key, verdict) => {
            let (passing, reason) = (verdict.is_ok(), verdict.clone().err());
            instance("PUT", key, Some("renew")).json(&RenewRequest { passing, reason })
        }
        Command::SetStatus(key, status) => {
            instance("PUT", key, Some("status")).json(&StatusRequest { status: *status })
        }
        Command::Deregister(key) => instance("DELETE", key, None),
        Command::SetOverride(key, Some(value)) => {
            let (status, weight, reason) = (value.status, value.weight, value.reason.clone());
            instance("PUT", key, Some("override")).json(&OverrideBody { status, weight, reason })
        }
        Command::SetOverride(key, None) => instance("DELETE", key, Some("override")),
        Command::WriteConfig(write) => match &write.body {
            Some(body) => document(&write.key, "PUT").body("text/plain", body.as_bytes().to_vec()),
            None => document(&write.key, "DELETE"),
        }
        .query("author", &write.author),
        Command::Leave => return None,
    })
}

fn instance(method: &'static str, key: &InstanceKey, last: Option<&str>) -> Ask {
    let mut segments = vec!["v1", "services", key.service.service.as_str(), "instances", key.instance.as_str()];
    segments.extend(last);
    Ask::new(method, &segments).query("namespace", key.service.namespace.as_str())
}

fn request(instance: &Instance) -> RegisterRequest {
    RegisterRequest {
        address: instance.address.host.to_string(),
        protocol: instance.protocol,
        version: instance.version.to_string(),
        weight: instance.weight,
        tags: instance.details.tags().iter().map(ToString::to_string).collect(),
        metadata: instance.details.metadata().iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        status: instance.status,
        check: instance.details.check().map(CheckBody::from),
        reach: instance.reach,
        ..RegisterRequest::on_port(instance.address.port)
    }
}
