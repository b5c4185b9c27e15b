//! Policies: documents that are checked before they are taken or tried, what is in force, and what guards do.

use axum::body::Body as RequestBody;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use starling_core::config::Body;
use starling_core::id::{ConfigKey, Namespace, NodeId, ServiceKey, ServiceName};
use starling_core::policy::{
    Document, GROUP, MAX_DOCUMENT_BYTES, MESH_KEY, Origin, Problem, Value, document_of, is_policy, mesh_document,
};
use starling_core::view::View;
use starling_core::wire::{Question, Reply};

use crate::context::{Context, Shared};
use crate::extract::{Names, Params, flag, read_body};
use crate::failure::Failure;
use crate::lists::encode;
use crate::model::{
    DocumentProblem, GuardsDetail, NodeGuards, NodeTrial, PolicyDetail, PolicyLayer, PolicyRoute, PolicyTrial,
    PolicyValue, Unanswered,
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
    let answers = ask(&context, &view, question, query.all).await?;
    let (nodes, unanswered) = parted(answers, |node, reply| match reply {
        Reply::Guards(text) => Ok(NodeGuards { node, report: read(&text)? }),
        _ => Err(OTHER_ANSWER.into()),
    });
    let detail = GuardsDetail { namespace: query.namespace, service, nodes, unanswered };
    Ok(json(view.revision, encode(&detail)))
}

/// The query of a policy that is tried.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TryQuery {
    #[serde(default)]
    namespace: Namespace,
    /// It is to be the document for all services.
    #[serde(default, deserialize_with = "flag")]
    for_all: bool,
    /// At all nodes, not only this one.
    #[serde(default, deserialize_with = "flag")]
    all: bool,
}

/// `POST /v1/policy/{service}/try`.
pub(crate) async fn rehearse(
    State(context): State<Shared>,
    Names(service): Names<ServiceName>,
    Params(query): Params<TryQuery>,
    body: RequestBody,
) -> Result<Response, Failure> {
    let TryQuery { namespace, for_all, all } = query;
    let key = ServiceKey { namespace: namespace.clone(), service: service.clone() };
    let document = if for_all { mesh_document() } else { document_of(&key) };
    let body = read_body(body, MAX_DOCUMENT_BYTES, context.settings.request_timeout()).await?.to_vec();
    check(&document, &Body::from(body.clone()))?;
    // Text, or it would not have passed the check.
    let text = String::from_utf8(body).unwrap_or_default();
    let view = context.mesh.view();
    let answers = ask(&context, &view, Question::Try { service: key, text, for_all }, all).await?;
    let (nodes, unanswered) = parted(answers, |node, reply| match reply {
        Reply::Tried(tried) => Ok(NodeTrial { node, trial: read(&tried?)? }),
        _ => Err(OTHER_ANSWER.into()),
    });
    Ok(json(view.revision, encode(&PolicyTrial { namespace, service, nodes, unanswered })))
}

const OTHER_ANSWER: &str = "it answered another question";

/// What came of asking a node.
type Answered = (NodeId, Result<Reply, String>);

/// Asks this node, or all.
async fn ask(context: &Context, view: &View, question: Question, all: bool) -> Result<Vec<Answered>, Failure> {
    if all {
        let asked = context.ask_all(view, &question).await?;
        return Ok(asked.into_iter().map(|asked| (asked.node, asked.answer)).collect());
    }
    let me = context.mesh.me();
    let answer = context.mesh.ask(me, question, context.settings.ask_timeout()).await;
    Ok(vec![(me.clone(), answer.map_err(|error| error.to_string()))])
}

/// Parts the nodes that answered from those that did not.
fn parted<T>(answers: Vec<Answered>, read: impl Fn(NodeId, Reply) -> Result<T, String>) -> (Vec<T>, Vec<Unanswered>) {
    let (mut nodes, mut unanswered) = (Vec::new(), Vec::new());
    for (node, answer) in answers {
        match answer.and_then(|reply| read(node.clone(), reply)) {
            Ok(answer) => nodes.push(answer),
            Err(error) => unanswered.push(Unanswered { node, error }),
        }
    }
    (nodes, unanswered)
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}
