//! Requests that wait on a node to be sent later.

use serde::{Deserialize, Serialize};
use starling_core::id::NodeId;
use starling_core::policy::WaitingRequest;

/// `GET /v1/failback`: what waits at the node, each service's in its order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingList {
    /// The node.
    pub node: NodeId,
    /// At most a thousand.
    pub requests: Vec<WaitingRequest>,
    /// How many there are.
    pub total: u64,
}

/// `POST /v1/failback?service=NAME`: the service's line is due at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hurried {
    /// How many wait in it.
    pub waiting: u64,
}
