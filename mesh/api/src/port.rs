//! What the control surface holds of a running node, as a trait: the real [`Handle`], or a node in a test.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use starling_core::id::{NodeId, ServiceKey};
use starling_core::policy::{Governor, Judgement, Table};
use starling_core::view::{Revision, View};
use starling_core::wire::{Question, Reply};
use starling_core::{Answer, Command};
use starling_net::{CommandError, Handle, LinkError};
use tokio::sync::watch;

/// An answer that comes later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A running node.
pub trait MeshPort: Send + Sync + 'static {
    /// Its name.
    fn me(&self) -> &NodeId;

    /// The last published picture; never waits.
    fn view(&self) -> Arc<View>;

    /// Wakes after a new view was published.
    fn changes(&self) -> watch::Receiver<Revision>;

    /// Gives the heart a command and waits until it is applied and on disk.
    fn command(&self, command: Command) -> Later<'_, Result<Answer, CommandError>>;

    /// Asks a node, or this one, a question.
    fn ask<'a>(
        &'a self,
        node: &'a NodeId,
        question: Question,
        timeout: Duration,
    ) -> Later<'a, Result<Reply, LinkError>>;

    /// What its settings say, as a layer of policies.
    fn node_policy(&self) -> Table {
        Table::new()
    }

    /// Who carries requests here, if anybody does.
    fn governor(&self) -> Option<Arc<dyn Governor>> {
        None
    }

    /// Which documents stand for a service here; where nothing carries requests, what would stand.
    fn judgement(&self, service: &ServiceKey) -> Judgement {
        Judgement::of(&self.view(), &self.node_policy(), service, None)
    }
}

impl MeshPort for Handle {
    fn me(&self) -> &NodeId {
        Handle::me(self)
    }

    fn view(&self) -> Arc<View> {
        Handle::view(self)
    }

    fn changes(&self) -> watch::Receiver<Revision> {
        Handle::changes(self)
    }

    fn command(&self, command: Command) -> Later<'_, Result<Answer, CommandError>> {
        Box::pin(Handle::command(self, command))
    }

    fn ask<'a>(
        &'a self,
        node: &'a NodeId,
        question: Question,
        timeout: Duration,
    ) -> Later<'a, Result<Reply, LinkError>> {
        Box::pin(Handle::ask(self, node, question, timeout))
    }

    fn governor(&self) -> Option<Arc<dyn Governor>> {
        Handle::governor(self).cloned()
    }

    fn node_policy(&self) -> Table {
        Handle::governor(self).map(|governor| governor.layer()).unwrap_or_default()
    }

    fn judgement(&self, service: &ServiceKey) -> Judgement {
        match Handle::governor(self) {
            Some(governor) => governor.judgement(service),
            None => Judgement::of(&Handle::view(self), &Table::new(), service, None),
        }
    }
}
