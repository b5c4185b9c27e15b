//! Policies: documents that are checked before they are taken, what is in force, and what guards do.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use starling_core::config::Body;
use starling_core::id::{ConfigKey, Namespace, ServiceKey, ServiceName};
use starling_core::policy::{Document, GROUP, MESH_KEY, Origin, Problem, Value, is_policy};
use starling_core::wire::{Question, Reply};

use crate::context::Shared;
use crate::extract::{Names, Params, flag};
use crate::failure::Failure;
use crate::lists::encode;
use crate::model::{
    DocumentProblem, GuardsDetail, GuardsReport, NodeGuards, PolicyDetail, PolicyLayer, PolicyRoute, PolicyValue,
    Unanswered,
};
use crate::reply::json;

/// Lets a document pass that is no policy, or a good one.
///
/// # Errors
/// 422 with everything that is wrong: line, field, and what is allowed.
pub(crate) fn check(key: &ConfigKey, body: &Body) -> Result<(), Failure> {
    if !is_policy(key) {
        return Ok(());
    }
    check_name(key)?;
    Document::read(key, body).map(drop).map_err(|problems| {
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

/// The query of a service's policy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyQuery {
    #[serde(default)]
    namespace: Namespace,
}

/// `GET /v1/policy/{service}`.
pub(crate) async fn policy(
    State(context): State<Shared>,
    Names(service): Names<ServiceName>,
    Params(query): Params<PolicyQuery>,
) -> Result<Response, Failure> {
    let key = ServiceKey { namespace: query.namespace, service };
    let view = context.mesh.view();
    let judgement = context.mesh.judgement(&key);
    let node = context.mesh.node_policy();
    let layers = judgement.layers(&node);
    let contradicts = |problem| {
        let text = format!("what is in force contradicts itself: {problem}");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    };
    let whole = layers.service().map_err(contradicts)?;
    let mut routes = Vec::new();
    let documents = judgement.service.document.iter();
    for (place, route) in documents.flat_map(|document| &document.routes).enumerate() {
        let effective = layers.route(place).map_err(contradicts)?;
        let own = effective.values.iter().filter(|value| !whole.values.contains(value));
        let matches = serde_json::to_value(&route.matching).unwrap_or_default();
        routes.push(PolicyRoute { name: route.matching.name.clone(), matches, values: own.map(shown).collect() });
    }
    let told = [&judgement.mesh, &judgement.service].into_iter();
    let problems = told.clone().flat_map(|layer| {
        let told = |problem: &Problem| DocumentProblem { document: layer.key.to_string(), problem: problem.clone() };
        layer.problems.iter().map(told)
    });
    let problems = problems.collect();
    let layers = told.map(|layer| PolicyLayer { document: layer.key.to_string(), state: layer.state }).collect();
    let values = whole.values.iter().map(shown).collect();
    let node = view.me.clone();
    let (namespace, service) = (key.namespace, key.service);
    let detail = PolicyDetail { namespace, service, node, layers, problems, values, routes };
    Ok(json(view.revision, encode(&detail)))
}

fn shown((field, value, origin): &(String, Value, Origin)) -> PolicyValue {
    let value = serde_json::to_value(value).unwrap_or_default();
    PolicyValue { field: field.clone(), value, origin: origin.to_string() }
}

/// The query of a service's guards.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuardsQuery {
    #[serde(default)]
    namespace: Namespace,
    /// Ask all nodes, not only this one.
    #[serde(default, deserialize_with = "flag")]
    all: bool,
}

/// `GET /v1/guards/{service}`.
pub(crate) async fn guards(
    State(context): State<Shared>,
    Names(service): Names<ServiceName>,
    Params(query): Params<GuardsQuery>,
) -> Result<Response, Failure> {
    let view = context.mesh.view();
    let question = Question::Guards(ServiceKey { namespace: query.namespace.clone(), service: service.clone() });
    let answers = if query.all {
        context.ask_all(&view, &question).await?.into_iter().map(|asked| (asked.node, asked.answer)).collect()
    } else {
        let me = context.mesh.me();
        let answer = context.mesh.ask(me, question, context.settings.ask_timeout()).await;
        vec![(me.clone(), answer.map_err(|error| error.to_string()))]
    };
    let (mut nodes, mut unanswered) = (Vec::new(), Vec::new());
    for (node, answer) in answers {
        let report = answer.and_then(|reply| match reply {
            Reply::Guards(text) => serde_json::from_str::<GuardsReport>(&text).map_err(|error| error.to_string()),
            _ => Err("it answered another question".into()),
        });
        match report {
            Ok(report) => nodes.push(NodeGuards { node, report }),
            Err(error) => unanswered.push(Unanswered { node, error }),
        }
    }
    let detail = GuardsDetail { namespace: query.namespace, service, nodes, unanswered };
    Ok(json(view.revision, encode(&detail)))
}
