//! What the data plane says of its policies when it is asked.

use toml::Table;

use super::{Candidate, Judgement};
use crate::id::ServiceKey;

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
}
