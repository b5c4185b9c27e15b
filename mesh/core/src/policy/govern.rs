//! What the data plane says of its policies when it is asked.

use serde::{Deserialize, Serialize};
use toml::Table;

use super::{Candidate, Judgement};
use crate::id::ServiceKey;

/// A request that waits on this node to be sent later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingRequest {
    /// The name its caller was given: that of the node, and a number.
    pub id: String,
    /// The service it is for, as NAMESPACE/NAME.
    pub service: String,
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// When it was taken.
    pub queued_unix_ms: u64,
    /// When it is given up.
    pub expires_unix_ms: u64,
    /// What it counts for.
    pub bytes: u64,
}

/// Whoever puts policies into force on this node.
pub trait Governor: Send + Sync {
    /// What the node's settings say, as sections of a policy: the layer between the program and the documents.
    fn layer(&self) -> Table;

    /// Which documents stand for a service on this node, by its newest picture.
    fn judgement(&self, service: &ServiceKey) -> Judgement;

    /// What the guards of a service do now on this node, as JSON: breakers, limits, refusals by reason. A service nobody
    /// has called here has none yet.
    fn guards(&self, service: &ServiceKey) -> String;

    /// What a document would have refused of what was asked of a service here in the last minute: a
    /// [`Trial`](super::Trial) as JSON.
    ///
    /// # Errors
    /// What is wrong with the document.
    fn rehearse(&self, service: &ServiceKey, candidate: Candidate<'_>) -> Result<String, String>;

    /// What waits here to be sent later, of one service or of all: at most so many, and how many there are.
    fn waiting(&self, service: Option<&ServiceKey>, most: usize) -> (Vec<WaitingRequest>, u64);

    /// Takes one out by its name. Whether it was there.
    fn drop_waiting(&self, id: &str) -> bool;

    /// Lets a service's line be tried at once. How many wait in it.
    fn hurry_waiting(&self, service: &ServiceKey) -> u64;
}
