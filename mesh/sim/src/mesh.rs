//! The vocabulary of tests: a mesh, and what people ask of it. (What the world does to it is in `trouble`; what is seen
//! of it and what must be true, in `seen`.)
//!
//! Words of doing (`register`, `cut`, `crash`) panic when they make no sense: an unknown node, a command to a node that
//! is down, a refused registration. Words of judging (`all_see`, `converges_within`) return a [`Story`](crate::Story) to be read.

use std::time::Duration;

use starling_core::id::{CommandId, NodeId};
use starling_core::quotas::{QuotaId, QuotaUse};
use starling_core::registry::{Instance, Status};
use starling_core::{Answer, Command, Input, Refusal};

use crate::ask;
use crate::checker::Watch;
use crate::links::micros;
use crate::options::{Builder, Options};
use crate::world::World;

/// How long a person waits for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition that is waited for is looked at.
const GLANCE_US: u64 = 1_000;

/// Seconds.
pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Milliseconds.
pub fn millis(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no such node.
    #[error("there is no node {0:?} in this mesh")]
    NoNode(String),
    /// It has crashed, left, or stands still.
    #[error("node {0} is not running")]
    NotRunning(NodeId),
    /// The heart refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No answer within a minute, or the node crashed before it was durable: it may be done or not.
    #[error("node {0} did not answer")]
    Unanswered(NodeId),
}

/// Many real hearts on a virtual clock. See the [crate's page](crate) for a test that uses it.
#[derive(Debug)]
pub struct Mesh {
    pub(crate) world: World,
    pub(crate) watch: Watch,
}

/// Making it, and its time.
impl Mesh {
    /// Begins to describe a mesh whose every chance is drawn from this seed.
    pub fn builder(seed: u64) -> Builder {
        Builder::new(seed)
    }

    pub(crate) fn of(world: World) -> Self {
        Self { world, watch: Watch::default() }
    }

    /// What the run is made of; its `Display` is the line that replays it.
    pub fn options(&self) -> &Options {
        &self.world.options
    }

    /// How much virtual time has passed.
    pub fn now(&self) -> Duration {
        Duration::from_micros(self.world.now)
    }

    /// Lets this much virtual time pass.
    pub fn run_for(&mut self, time: Duration) {
        self.pass_until(self.world.now + micros(time));
    }

    /// Lets time pass until a condition holds, but no more than this; tells how much it took, if it came to hold.
    pub fn run_until(&mut self, within: Duration, mut holds: impl FnMut(&Mesh) -> bool) -> Option<Duration> {
        let (begin, deadline) = (self.world.now, self.world.now + micros(within));
        self.world.changed = true;
        loop {
            if std::mem::take(&mut self.world.changed) && holds(self) {
                return Some(Duration::from_micros(self.world.now - begin));
            }
            if self.world.now >= deadline {
                return None;
            }
            // Nothing changes before the next event; then glance once a millisecond.
            let next = self.world.next_event().unwrap_or(deadline);
            self.pass_until(next.max(self.world.now + GLANCE_US).min(deadline));
        }
    }

    /// Chance for the test itself, from the same seed as everything else.
    pub fn chance(&mut self) -> &mut fastrand::Rng {
        &mut self.world.chance
    }

    /// All nodes' names, in order of their making, running or not.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.world.hosts.iter().map(|host| host.id.clone()).collect()
    }

    /// The names of the nodes that are running.
    pub fn running(&self) -> Vec<NodeId> {
        self.world.hosts.iter().filter(|host| host.is_running()).map(|host| host.id.clone()).collect()
    }

    #[track_caller]
    pub(crate) fn node(&self, name: &str) -> usize {
        match self.world.find(name) {
            Some(node) => node,
            None => panic!("{}", CommandError::NoNode(name.into())),
        }
    }
}

/// What people and programs ask of a node.
impl Mesh {
    /// Gives a node a command and lets time pass until it is acknowledged (none, unless disks take time).
    ///
    /// # Errors
    /// [`CommandError`], also when the heart refuses.
    pub fn command(&mut self, node: &str, command: Command) -> Result<Answer, CommandError> {
        let id = self.submit(node, command)?;
        let deadline = self.world.now + micros(PATIENCE);
        loop {
            if let Some(outcome) = self.outcome(id) {
                return Ok(outcome?);
            }
            if !self.world.step(deadline) {
                let at = self.node(node);
                return Err(CommandError::Unanswered(self.world.hosts[at].id.clone()));
            }
        }
    }

    /// Gives a node a command and does not wait; ask for its [`Mesh::outcome`] later.
    ///
    /// # Errors
    /// [`CommandError::NoNode`] and [`CommandError::NotRunning`].
    pub fn submit(&mut self, node: &str, command: Command) -> Result<CommandId, CommandError> {
        let at = self.world.find(node).ok_or_else(|| CommandError::NoNode(node.into()))?;
        if !self.world.hosts[at].is_running() {
            return Err(CommandError::NotRunning(self.world.hosts[at].id.clone()));
        }
        let leaves = command == Command::Leave;
        self.world.note(format!("{node}: {}", told(&command)));
        let id = self.world.ask(at, command);
        if leaves {
            self.world.leave_soon(at);
        }
        Ok(id)
    }

    /// The acknowledged answer to a submitted command, once; `None` while there is none.
    pub fn outcome(&mut self, id: CommandId) -> Option<Result<Answer, Refusal>> {
        self.world.answer(id)
    }

    #[track_caller]
    pub(crate) fn done(&mut self, node: &str, command: Command) {
        if let Err(why) = self.command(node, command) {
            panic!("{}", self.world.story(format!("{node}: {why}"), Vec::new()));
        }
    }

    /// Registers an instance of a service (`orders`, or `namespace/orders`) at a node.
    #[track_caller]
    pub fn register(&mut self, node: &str, service: &str, instance: &str) {
        self.done(node, ask::register(&format!("{service}/{instance}")));
    }

    /// Registers an instance (`orders/o1`) with everything that can be said of one.
    #[track_caller]
    pub fn register_as(&mut self, node: &str, path: &str, instance: Instance) {
        self.done(node, ask::register_as(path, instance));
    }

    /// Removes an instance (`orders/o1`), asked of any node that knows it.
    #[track_caller]
    pub fn deregister(&mut self, node: &str, path: &str) {
        self.done(node, ask::deregister(path));
    }

    /// Renews the lease of an instance with a TTL check.
    #[track_caller]
    pub fn renew(&mut self, node: &str, path: &str) {
        self.done(node, ask::renew(path));
    }

    /// Sets an operator's override of an instance's status, at any node that knows it.
    #[track_caller]
    pub fn override_status(&mut self, node: &str, path: &str, status: Status) {
        self.done(node, ask::override_status(path, status));
    }

    /// Clears an operator's override.
    #[track_caller]
    pub fn clear_override(&mut self, node: &str, path: &str) {
        self.done(node, ask::clear_override(path));
    }

    /// Writes a document (`limits`, or `group/limits`). Resolves any conflict the node shows.
    #[track_caller]
    pub fn put_config(&mut self, node: &str, path: &str, body: &str) {
        self.done(node, ask::put_config(path, body));
    }

    /// Deletes a document.
    #[track_caller]
    pub fn delete_config(&mut self, node: &str, path: &str) {
        self.done(node, ask::delete_config(path));
    }
}

/// The mesh's quotas.
impl Mesh {
    /// Tells a node what is asked of quotas there, as its rim does about four times a second, and returns what it may use
    /// of them, in thousandths of a call a second; nothing, if it is not running.
    #[track_caller]
    pub fn use_quotas(&mut self, node: &str, uses: &[QuotaUse]) -> Vec<(QuotaId, u64)> {
        let at = self.node(node);
        if !self.world.hosts[at].is_running() {
            return Vec::new();
        }
        self.world.give(at, Input::Usage(uses.to_vec()));
        self.world.hosts[at].shares.clone()
    }
}

/// A command in words, as the journal tells it.
pub fn told(command: &Command) -> String {
    match command {
        Command::Register(registration) => format!("register {}", registration.key),
        Command::Renew(key, Ok(())) => format!("renew {key}"),
        Command::Renew(key, Err(_)) => format!("renew {key} as failing"),
        Command::SetStatus(key, status) => format!("set {key} {status}"),
        Command::Deregister(key) => format!("deregister {key}"),
        Command::SetOverride(key, None) => format!("clear the override of {key}"),
        Command::SetOverride(key, Some(value)) => {
            let status = value.status.map(|status| format!(" {status}")).unwrap_or_default();
            let weight = value.weight.map(|weight| format!(" weight {weight}")).unwrap_or_default();
            format!("override {key}:{status}{weight}")
        }
        Command::WriteConfig(write) => match &write.body {
            Some(body) => format!("put {} = {body:?}", write.key),
            None => format!("delete {}", write.key),
        },
        Command::Leave => "leave".into(),
    }
}
