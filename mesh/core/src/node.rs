//! The one door into the heart: [`Node::handle`].

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::ConfigWrite;
use crate::id::{CommandId, ConfigKey, Incarnation, InstanceKey, NodeId, Zone};
use crate::record::{Key, Record};
use crate::registry::{Address, Check, Override, Registration};
use crate::time::{HybridTime, Instant, Now, Stamp};
use crate::view::{NodeFacts, Revision, View};
use crate::wire::Message;

/// What an operator can set about the heart. Durations are milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// This node's zone; instances registered here are in it unless they say otherwise.
    pub zone: Zone,
    /// How often a repair exchange with a random peer begins. 100 to 60,000; default 1,000.
    pub repair_interval_ms: u64,
    /// How far ahead of this node's clock a stamp may be before its record is refused. Default 5,000.
    pub max_clock_skew_ms: u64,
    /// How long a tombstone is kept; a node cut off for longer may bring back what was deleted meanwhile.
    /// Default 86,400,000 (one day).
    pub tombstone_horizon_ms: u64,
    /// How long a lost node is remembered with its instances. Default 86,400,000 (one day).
    pub forget_lost_after_ms: u64,
    /// The most instances owned by this node. Default 100,000.
    pub max_own_instances: usize,
    /// The most configuration documents in the mesh, counting recently deleted ones. Default 100,000.
    pub max_configs: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            zone: Zone::default(),
            repair_interval_ms: 1_000,
            max_clock_skew_ms: 5_000,
            tombstone_horizon_ms: 86_400_000,
            forget_lost_after_ms: 86_400_000,
            max_own_instances: 100_000,
            max_configs: 100_000,
        }
    }
}

impl Settings {
    /// The repair interval as a duration.
    pub fn repair_interval(&self) -> Duration {
        Duration::from_millis(self.repair_interval_ms)
    }
}

/// Everything that can happen to a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A person or program wants something; answered by exactly one [`Output::Reply`].
    Command(CommandId, Command),
    /// A peer said something; `NodeId` is the name in its certificate.
    Message(NodeId, Message),
    /// Membership noticed something.
    Peer(PeerEvent),
    /// One probe of an instance's check ended: good, or bad with the reason.
    Probe(InstanceKey, Result<(), String>),
    /// Time has passed; due at [`Node::next_wakeup`], harmless at any other time.
    Tick,
}

/// What people and programs can ask of a node. Every peer takes every command.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Put an instance into the registry, owned by this node from now on (taking it over if it was elsewhere).
    Register(Registration),
    /// Renew the lease of an instance with a TTL check: "alive" (`Ok`) or "failing", with the reason. A renewal at a
    /// node that is not the owner takes the instance over.
    Renew(InstanceKey, Result<(), String>),
    /// Change only the status the owner gives. Refused at other nodes than the owner; operators use an override.
    SetStatus(InstanceKey, crate::registry::Status),
    /// Remove an instance, wherever it is owned.
    Deregister(InstanceKey),
    /// Set (or with `None` clear) an operator's override.
    SetOverride(InstanceKey, Option<Override>),
    /// Write or delete a configuration document. Resolves any conflict visible here.
    WriteConfig(ConfigWrite),
    /// Stop cleanly: tell everybody that this node's instances are gone. Further commands are refused.
    Leave,
}

/// What became of a [`Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Applied here, on disk here, and on its way to the peers.
    Done {
        /// The first revision of this node's view that shows it.
        revision: Revision,
        /// The stamp of the write; `None` when there was nothing to write.
        stamp: Option<Stamp>,
    },
}

/// Why a [`Command`] was refused; the node's state is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request itself is wrong: which field, and what to do.
    #[error("{0}")]
    Invalid(String),
    /// No such instance.
    #[error("no instance {0} is known at this node")]
    NoInstance(InstanceKey),
    /// No such document.
    #[error("no config document {0}")]
    NoConfig(ConfigKey),
    /// The instance belongs to another node.
    #[error("instance {key} is owned by node {owner}; ask there, or set an override")]
    NotOwner {
        /// The instance.
        key: InstanceKey,
        /// Its owner.
        owner: NodeId,
    },
    /// Somebody else wrote first.
    #[error("the document has changed: the version served now is {}", match .0 { Some(stamp) => stamp.to_string(), None => "none".into() })]
    Changed(Option<Stamp>),
    /// A limit is reached.
    #[error("{what}: the limit of {limit} is reached")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The node is stopping.
    #[error("this node is stopping; ask another peer")]
    Leaving,
}

/// What membership says of another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEvent {
    /// It is there (again), or its facts changed.
    Up(NodeId, NodeFacts),
    /// It has not been heard of for too long.
    Lost(NodeId),
    /// It said it is stopping: this start of it is over.
    Left(NodeId, Incarnation),
}

/// Everything a node can want from the world.
#[derive(Debug, Clone)]
pub enum Output {
    /// Give this to a peer, if you can. Drop it if not: repair will notice.
    Send(NodeId, Message),
    /// Answer a command, after everything persisted before it is on disk.
    Reply(CommandId, Result<Answer, Refusal>),
    /// Keep this record on disk: newest wins per key.
    Persist(Record),
    /// This key need not be on disk any more.
    Forget(Key),
    /// Begin (or change) probing an instance on this host; answer with [`Input::Probe`] per probe.
    Probe(InstanceKey, Address, Check),
    /// Stop probing it.
    StopProbe(InstanceKey),
    /// The new picture for all readers.
    Publish(Arc<View>),
}

/// What a node remembers from its last run.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The records it was asked to persist.
    pub records: Vec<Record>,
    /// A hybrid time not earlier than any it has ever issued.
    pub last_used: HybridTime,
}

/// What the heart counts; all grow only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Records merged from peers that changed the store.
    pub merged: u64,
    /// Records from peers that were known already.
    pub duplicates: u64,
    /// Records refused: malformed, or stamped too far in the future.
    pub refused: u64,
    /// Repair exchanges begun.
    pub repairs_begun: u64,
    /// Repair exchanges that found a difference.
    pub repairs_differing: u64,
    /// Records pushed to peers, copies counted.
    pub pushed: u64,
}

/// One node's heart.
#[derive(Debug)]
pub struct Node {
    view: Arc<View>,
}

impl Node {
    /// A heart that remembers `memory` and begins its life as `facts.incarnation`. `seed` is its only randomness.
    pub fn new(_me: NodeId, _facts: NodeFacts, _settings: Settings, _memory: Memory, _seed: u64, _now: Now) -> Node {
        unreachable!("assembled in the next commit")
    }

    /// Takes one input and appends what follows from it to `out`.
    pub fn handle(&mut self, _now: Now, _input: Input, _out: &mut Vec<Output>) {}

    /// When [`Input::Tick`] is due, if nothing else happens before.
    pub fn next_wakeup(&self) -> Option<Instant> {
        None
    }

    /// The last published picture.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
}
