//! Bodies about policies and guards.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use starling_core::id::{Namespace, NodeId, ServiceName};
use starling_core::policy::{LayerState, Problem, Trial};

use super::Unanswered;

/// `GET /v1/policy/{service}`: what is in force for a service at the node that answers, and where each value came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyDetail {
    /// The service's namespace.
    pub namespace: Namespace,
    /// The service.
    pub service: ServiceName,
    /// The node whose settings lie under the documents.
    pub node: NodeId,
    /// The documents that speak of it, the less specific first, and how much of each is in force here.
    pub layers: Vec<PolicyLayer>,
    /// What is wrong with the versions of the documents that the mesh serves: why one of them is not in force here.
    pub problems: Vec<DocumentProblem>,
    /// What is in force for requests no route is for.
    pub values: Vec<PolicyValue>,
    /// The routes, in order.
    pub routes: Vec<PolicyRoute>,
}

/// A document that speaks of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyLayer {
    /// The document, as `default/policy/orders`.
    pub document: String,
    /// How much of it is in force.
    pub state: LayerState,
}

/// Something wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentProblem {
    /// The document, as `default/policy/orders`.
    pub document: String,
    /// What is wrong.
    pub problem: Problem,
}

/// One value in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyValue {
    /// As `timeouts.request_ms`.
    pub field: String,
    /// The value.
    pub value: Value,
    /// Where it came from, with the line where that is a document.
    pub origin: String,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyRoute {
    /// Its name.
    pub name: String,
    /// Which requests it is for.
    pub matches: Value,
    /// Its values that are not the service's.
    pub values: Vec<PolicyValue>,
}

/// `POST /v1/policy/{service}/try`: what a document that is not in force would have refused in the last minute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyTrial {
    /// The service's namespace.
    pub namespace: Namespace,
    /// The service.
    pub service: ServiceName,
    /// Of what each node that was asked has seen.
    pub nodes: Vec<NodeTrial>,
    /// Members that did not answer in time, or cannot.
    pub unanswered: Vec<Unanswered>,
}

/// A document tried on what one node's applications asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeTrial {
    /// The node.
    pub node: NodeId,
    /// What came of it.
    #[serde(flatten)]
    pub trial: Trial,
}

/// `GET /v1/guards/{service}`: what the guards of a service do now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardsDetail {
    /// The service's namespace.
    pub namespace: Namespace,
    /// The service.
    pub service: ServiceName,
    /// At each node that was asked.
    pub nodes: Vec<NodeGuards>,
    /// Members that did not answer in time.
    pub unanswered: Vec<Unanswered>,
}

/// The guards of a service at one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeGuards {
    /// The node.
    pub node: NodeId,
    /// What it does.
    #[serde(flatten)]
    pub report: GuardsReport,
}

/// What the guards of a service do at a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardsReport {
    /// What is wrong with its documents; the last good ones are in force.
    pub problems: Vec<String>,
    /// Each guard, the service's first.
    pub guards: Vec<GuardInfo>,
    /// What was refused since the node started.
    pub refusals: Vec<RefusalInfo>,
    /// The instances' breakers, those that are not closed first.
    pub instances: Vec<InstanceGuard>,
}

/// One guard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardInfo {
    /// The route it is of; none: the service as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Which kind: `limit`, `bulkhead`, `circuit` ...
    pub guard: String,
    /// What it counts and does; the fields depend on the kind.
    pub state: Map<String, Value>,
}

/// Requests that were refused for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalInfo {
    /// By which guard.
    pub guard: String,
    /// Why.
    pub reason: String,
    /// By which rule.
    pub rule: String,
    /// How many.
    pub count: u64,
}

/// An instance as its breaker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceGuard {
    /// The instance.
    pub instance: String,
    /// Its owner.
    pub node: String,
    /// `closed`, `open` or `half_open`.
    pub breaker: String,
    /// When that ends, if it is not closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_in_ms: Option<u64>,
    /// What the last check of it has said, if it is out: `well` or `ill`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// Requests in flight there from this node.
    pub in_flight: u32,
    /// How often the breaker has opened.
    pub opened: u64,
}
