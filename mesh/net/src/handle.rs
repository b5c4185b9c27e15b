//! The one thing other crates hold of a running node: read its view, give it commands, ask its peers, open tunnels.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use starling_core::id::{InstanceKey, NodeId};
use starling_core::observe::SpanBuffer;
use starling_core::view::{Revision, View};
use starling_core::wire::{NodeStatus, Question, Reply};
use starling_core::{Answer, Command, Refusal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::quic::{LinkError, Links, Tunnel};

/// A running node, as the rest of its process sees it. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) me: NodeId,
    pub(crate) view: ArcSwap<View>,
    pub(crate) changes: watch::Receiver<Revision>,
    pub(crate) commands: mpsc::Sender<CommandRequest>,
    pub(crate) links: Links,
    pub(crate) spans: Arc<SpanBuffer>,
    pub(crate) status: Box<dyn Fn() -> NodeStatus + Send + Sync>,
}

/// A command on its way to the loop.
pub(crate) struct CommandRequest {
    pub(crate) command: Command,
    pub(crate) reply: oneshot::Sender<Result<Answer, Refusal>>,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The loop's queue is full; nothing was done, try again in a moment.
    #[error("this node is busy, try again in a moment")]
    Busy,
    /// The node has stopped (or its disk refused the write: its log says which).
    #[error("this node has stopped")]
    Stopped,
    /// The heart refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// This node's name.
    pub fn me(&self) -> &NodeId {
        &self.shared.me
    }

    /// The last published picture; never waits.
    pub fn view(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    /// Wakes whenever a new view has been published; carries its revision.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.shared.changes.clone()
    }

    /// Gives the heart a command and waits until it is applied and, where that is due, on disk.
    ///
    /// # Errors
    /// [`CommandError::Busy`] at once when the loop's queue is full.
    pub async fn command(&self, command: Command) -> Result<Answer, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.shared.commands.try_send(CommandRequest { command, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CommandError::Busy,
            mpsc::error::TrySendError::Closed(_) => CommandError::Stopped,
        })?;
        Ok(answer.await.map_err(|_| CommandError::Stopped)??)
    }

    /// Asks another node (or this one) a question.
    ///
    /// # Errors
    /// [`LinkError`] when the node is unknown, unreachable or does not answer within `timeout`.
    pub async fn ask(&self, node: &NodeId, question: Question, timeout: Duration) -> Result<Reply, LinkError> {
        if node == &self.shared.me {
            return Ok(self.answer(question));
        }
        self.shared.links.ask(node, question, timeout).await
    }

    /// This node's own answer to a question.
    pub fn answer(&self, question: Question) -> Reply {
        match question {
            Question::Status => Reply::Status((self.shared.status)()),
            Question::Trace(trace) => Reply::Spans(self.shared.spans.trace(trace)),
            Question::RecentTraces(limit) => Reply::Spans(self.shared.spans.recent_roots(limit.min(1_000) as usize)),
        }
    }

    /// The spans this node keeps.
    pub fn spans(&self) -> &Arc<SpanBuffer> {
        &self.shared.spans
    }

    /// Opens a byte stream to an instance through the node that owns it.
    ///
    /// # Errors
    /// [`LinkError`] when there is no way to that node within `timeout`.
    pub async fn open_tunnel(&self, node: &NodeId, to: &InstanceKey, timeout: Duration) -> Result<Tunnel, LinkError> {
        self.shared.links.open_tunnel(node, to, timeout).await
    }
}
