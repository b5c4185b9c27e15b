//! Policies: documents that are checked before they are taken.

use axum::http::StatusCode;
use starling_core::config::Body;
use starling_core::id::{ConfigKey, Namespace, ServiceName};
use starling_core::policy::{Document, GROUP, MESH_KEY, is_policy};

use crate::failure::Failure;

/// Lets a document pass that is no policy, or a good one.
///
/// # Errors
/// 422 with everything that is wrong: line, field, and what is allowed.
pub(crate) fn check(key: &ConfigKey, body: &Body) -> Result<(), Failure> {
    if !is_policy(key) {
        return Ok(());
    }
    check_name(key)?;
    Document::read(body).map(drop).map_err(|problems| {
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let error = format!("the policy {} was not taken: {}", key.key, text.join("; "));
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error)
            .problems(problems)
            .hint("nothing was changed; `starling policy check FILE` says the same without writing")
    })
}

/// A policy is a service's, or all services': any other name would never be read.
fn check_name(key: &ConfigKey) -> Result<(), Failure> {
    let name = key.key.as_str();
    if name == MESH_KEY {
        if key.namespace == Namespace::default() {
            return Ok(());
        }
        let error = format!("the policy for all services is {}/{GROUP}/{MESH_KEY}", Namespace::default());
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error).hint("namespaces have none of their own"));
    }
    match name.parse::<ServiceName>() {
        Ok(service) if service.as_str() == name => Ok(()),
        Ok(service) => {
            let error = format!("no service is called {name:?}; services are in lower case");
            Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error).hint(format!("did you mean {service}?")))
        }
        Err(error) => {
            Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, format!("a policy is named like its service: {error}")))
        }
    }
}
