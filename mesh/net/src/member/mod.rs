//! Who is there: chitchat over our links, behind a small surface.
//!
//! chitchat tells every node a few facts of every other and how recently each was heard of, through third nodes as
//! well. Links tell within two seconds when a peer stops answering, and at once when it is back; each node keeps links to
//! its neighbours on the overlay ([`roster`]), and what they tell is flooded in a few bytes ([`word`]). So a killed process is
//! known to a whole cell in less than three seconds at a gossip interval that is affordable, and a broken line between
//! two nodes is not mistaken for a death.
//!
//! The lost are never given up: their addresses stay in the links' address book and are dialled for ever, each by some of
//! those who miss it, however long a partition lasts; and chitchat is told to gossip with whoever comes back before it
//! would itself.
//!
//! | Room | What it does |
//! |---|---|
//! | [`keeper`] | the task: feeds the roster, does what it says |
//! | [`roster`] | judges who is there and chooses whom to link; pure |
//! | [`word`] | what observers tell everybody |
//! | [`names`] | several processes under one name |
//! | [`damping`] | those who come and go |
//! | [`seeds`] | looks for the nodes to join through |
//! | [`facts`] | what nodes tell of themselves |
//! | [`socket`] | chitchat's messages over our links |
//!
//! What chitchat cannot do, it is kept from: it panics when some 850 nodes are known (a message of its own then does not
//! fit into 64 KiB), so a newcomer to a crowd refuses to join and the crowd stops listening to newcomers; one value over
//! 64 KiB blocks all later ones, so facts are checked; and if it panics for another reason, it is started again under a
//! new generation.

mod damping;
pub(crate) mod facts;
mod figures;
mod keeper;
mod names;
mod roster;
mod seeds;
mod socket;
#[cfg(test)]
mod tests;
mod word;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use starling_core::PeerEvent;
use starling_core::view::NodeFacts;
use tokio::sync::{mpsc, oneshot};

use crate::quic::{GossipInbox, Links};
pub(crate) use figures::Figures;
use keeper::Keeper;

/// How many members one chitchat group takes at most. Designed for 250; it panics past about 850.
pub const MAX_MEMBERS: usize = 500;
/// How many membership events wait for the loop. A full queue makes this room wait, and nobody else.
const EVENTS: usize = 1_024;
/// How many introductions wait: there is one a second at most.
const INTRODUCTIONS: usize = 16;

/// What an operator can set about membership.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemberSettings {
    /// Nodes to join through: `host:port`, a name standing for all its addresses, or `@path` of a file with one a line.
    /// Looked up and read again and again. None: this node waits to be joined.
    pub seeds: Vec<String>,
    /// How often this node gossips with three others, in milliseconds. 50 to 10,000; default 1,000. A round costs each
    /// member about 300 bytes per member: some 75 KB a round in a cell of 250. Deaths are found by links, not by rounds.
    pub gossip_interval_ms: u64,
    /// How sure the failure detector must be (phi accrual). 1 to 20; default 8, and lower suspects sooner.
    pub phi_threshold: f64,
    /// How many nodes one cell takes; a newcomer to a full one refuses to join it. 2 to 500; default 500. Cells are meant
    /// to have up to 250.
    pub max_members: usize,
}

impl Default for MemberSettings {
    fn default() -> Self {
        Self { seeds: Vec::new(), gossip_interval_ms: 1_000, phi_threshold: 8.0, max_members: MAX_MEMBERS }
    }
}

impl MemberSettings {
    fn interval(&self) -> Duration {
        Duration::from_millis(self.gossip_interval_ms)
    }

    fn check(&self) -> Result<(), MemberError> {
        let wrong = |text: String| Err(MemberError::Invalid(text));
        if !(50..=10_000).contains(&self.gossip_interval_ms) {
            return wrong(format!("gossip_interval_ms {} is not within 50 and 10000", self.gossip_interval_ms));
        }
        if !(1.0..=20.0).contains(&self.phi_threshold) {
            return wrong(format!("phi_threshold {} is not within 1 and 20", self.phi_threshold));
        }
        if !(2..=MAX_MEMBERS).contains(&self.max_members) {
            return wrong(format!("max_members {} is not within 2 and {MAX_MEMBERS}", self.max_members));
        }
        for seed in &self.seeds {
            seeds::check(seed).or_else(wrong)?;
        }
        Ok(())
    }
}

/// Why membership cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// A setting or fact is out of its range.
    #[error("{0}")]
    Invalid(String),
    /// chitchat could not be started.
    #[error("membership cannot be started: {0}")]
    Start(String),
}

/// This node's membership. Cheap to clone; when the last clone is gone, gossip stops.
#[derive(Clone)]
pub struct Membership {
    leave: mpsc::Sender<oneshot::Sender<()>>,
    introduced: mpsc::Sender<SocketAddr>,
    figures: Arc<Figures>,
}

impl Membership {
    /// Begins to gossip. `facts.address` must be the `IP:port` at which peers reach this node's links.
    ///
    /// What membership notices comes out of the receiver, which must be drained. Every node met is taught to the
    /// links by itself.
    ///
    /// # Errors
    /// [`MemberError`] when a setting or a fact is out of range.
    pub async fn join(
        links: Links,
        gossip: GossipInbox,
        settings: MemberSettings,
        facts: NodeFacts,
    ) -> Result<(Self, mpsc::Receiver<PeerEvent>), MemberError> {
        settings.check()?;
        let address = facts::check(&facts).map_err(MemberError::Invalid)?;
        let (events, events_out) = mpsc::channel(EVENTS);
        let (leave, leave_requests) = mpsc::channel(1);
        let (introduced, introductions) = mpsc::channel(INTRODUCTIONS);
        let figures = Arc::<Figures>::default();
        let keeper = Keeper::new(links, gossip.frames, settings, address, facts, events, figures.clone()).await?;
        tokio::spawn(keeper.run(gossip.words, leave_requests, introductions));
        Ok((Self { leave, introduced, figures }, events_out))
    }

    /// Gossips with whoever is at an address: somebody has told that it is a member of this cell. Never waits; one that
    /// is not taken will be told again.
    pub(crate) fn introduce(&self, address: SocketAddr) {
        let _ = self.introduced.try_send(address);
    }

    /// What it counts.
    pub(crate) fn figures(&self) -> Arc<Figures> {
        self.figures.clone()
    }

    /// Tells the others that this start of the node is over, and stops gossiping. Takes a fraction of a second.
    pub async fn leave(&self) {
        let (done, wait) = oneshot::channel();
        // If nobody takes the request, or it is dropped, gossip has stopped already.
        if self.leave.send(done).await.is_ok() {
            let _ = wait.await;
        }
    }
}
