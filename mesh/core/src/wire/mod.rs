//! What nodes say to each other, and how it becomes bytes.
//!
//! Two conversations: [`Message`]s between hearts, one way and free to be lost, and [`Question`]s with one [`Reply`],
//! asked on behalf of a person or a program. Both have one version byte in front. Questions and replies are few, and
//! MessagePack. Messages are many: after the version comes one byte that says their kind, then what `message` and
//! `record` write.
//!
//! Within a version more may be said, never something else: a kind of message or record this node does not know is
//! skipped and counted, and so is what a newer peer appends to a message. So nodes of neighbouring releases live in
//! one mesh. (A new field of an *existing* kind of record needs a kind of its own: a node that passed a record on
//! without what it could not read would make two values of one stamp.)

mod bytes;
mod message;
mod record;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::digest::{Fingerprint, KeyHash};
use crate::id::{CellName, Incarnation, NodeId, ServiceKey};
use crate::observe::{Span, TraceId};
use crate::push::{Beacon, ChangeId};
use crate::quotas::Word;
use crate::record::Record;
use crate::repair::{Listed, Parts};
use crate::time::{Stamp, WallTime};
use crate::view::{CatchingUp, Revision};

/// The first byte of everything sent; a peer that speaks another version is refused with a clear error.
pub const WIRE_VERSION: u8 = 2;
/// The largest encoded message or reply, in bytes. A record with the largest document fits.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// The most records in one message; senders stay far below.
pub const MAX_RECORDS: usize = 16_384;

/// What every message of one repair exchange carries, handed on from answer to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Chosen at random by whoever opened it, who knows its own exchange by it.
    pub id: u32,
    /// Something was left out at a limit: whoever learns from the last message should open another exchange.
    pub cut: bool,
    /// Where to begin if not everything fits: where an exchange before this one ended, or anywhere.
    pub start: KeyHash,
    /// How many records the sender of the message holds.
    pub held: u64,
}

/// From heart to heart. Any message may be lost, doubled or overtaken.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Records the receiver may not have: fresh changes.
    Push(Vec<Record>),
    /// Repair: "let us compare: this is what I hold in all".
    Opening {
        /// The fingerprint of everything.
        store: Fingerprint,
        /// Which exchange this opens.
        exchange: Exchange,
    },
    /// Repair: "these ranges differ; here the sixteen parts of each have these sums".
    Ranges {
        /// Ranges and the sums of their parts.
        ranges: Vec<Parts>,
        /// Of which exchange this is part.
        exchange: Exchange,
    },
    /// Repair: "in these ranges I hold exactly these entries". An answer to ranges that differ and are small.
    Entries {
        /// Ranges and all that is in them.
        entries: Vec<Listed>,
        /// Of which exchange this is part.
        exchange: Exchange,
    },
    /// Repair: "send me these of your entries".
    Want {
        /// Ranges and what is wanted of them.
        wanted: Vec<Listed>,
        /// Of which exchange this is part.
        exchange: Exchange,
    },
    /// Repair: "this you seem to lack".
    Fill {
        /// Records the receiver lacks or has in another state.
        records: Vec<Record>,
        /// Of which exchange this is part.
        exchange: Exchange,
    },
    /// Repair: "we hold the same", with the fingerprint both have.
    Same(Fingerprint),
    /// Catching up: "send me the page of your store that begins here".
    Pull {
        /// The first key hash wanted.
        from: KeyHash,
        /// The last, where the lane ends.
        last: KeyHash,
    },
    /// Catching up: "this is the page you asked for".
    Page {
        /// What stands on it.
        records: Vec<Record>,
        /// Where the next page begins, if the lane has more.
        next: Option<KeyHash>,
        /// Where the lane ends.
        last: KeyHash,
        /// How many records the sender holds.
        held: u64,
    },
    /// "This start of this node is stopping cleanly"; passed on by whoever hears it first.
    Leaving(NodeId, Incarnation),
    /// Push, busy: "these changes I have, and send you only if you ask".
    Have(Vec<ChangeId>),
    /// Push, busy: "send me these, and from now on whatever comes".
    Graft(Vec<ChangeId>),
    /// Push, busy: "to me, ids are enough".
    Prune,
    /// Push, busy: what the tree is made by.
    Beacon(Beacon),
    /// Among relays: the highest beats heard of cells, those that rose since the last time.
    Pulse(Vec<(CellName, u64)>),
    /// Within a cell: "these cells I cannot reach", said by the relay in the stamp and passed on by whoever hears it first.
    OutOfReach {
        /// Who says it, and when.
        said: Stamp,
        /// All it cannot reach.
        cells: Vec<CellName>,
    },
    /// "This is what my clock shows", uncorrected.
    Clock(WallTime),
    /// "So much is asked of the mesh's quotas", said of each node by itself and passed on by whoever hears it first.
    Usage {
        /// What nodes say.
        words: Vec<Word>,
        /// "Tell me what you have heard of others."
        ask: bool,
    },
}

impl Message {
    /// A short name for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Message::Push(_) => "push",
            Message::Opening { .. } => "opening",
            Message::Ranges { .. } => "ranges",
            Message::Entries { .. } => "entries",
            Message::Want { .. } => "want",
            Message::Fill { .. } => "fill",
            Message::Same(_) => "same",
            Message::Pull { .. } => "pull",
            Message::Page { .. } => "page",
            Message::Leaving(..) => "leaving",
            Message::Have(_) => "have",
            Message::Graft(_) => "graft",
            Message::Prune => "prune",
            Message::Beacon(_) => "beacon",
            Message::Pulse(_) => "pulse",
            Message::OutOfReach { .. } => "out_of_reach",
            Message::Clock(_) => "clock",
            Message::Usage { .. } => "usage",
        }
    }

    /// The opening of a repair exchange by a node that holds this.
    pub fn opening(store: Fingerprint, id: u32) -> Self {
        Message::Opening { store, exchange: Exchange { id, cut: false, start: KeyHash(0), held: store.count } }
    }
}

/// Asked of one node by another, on behalf of a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Question {
    /// How are you, and what do you hold?
    Status,
    /// Your spans of this trace.
    Trace(TraceId),
    /// The newest root spans you keep, at most so many.
    RecentTraces(u32),
    /// What do the guards of this service do at your side?
    Guards(ServiceKey),
    /// What would this policy have refused of what your applications asked of a service in the last minute?
    Try {
        /// The service.
        service: ServiceKey,
        /// The document.
        text: String,
        /// Whether it is to be the one for all services.
        for_all: bool,
    },
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Question::Status`].
    Status(NodeStatus),
    /// To [`Question::Trace`] and [`Question::RecentTraces`].
    Spans(Vec<Span>),
    /// To [`Question::Guards`]: JSON, for a person to read.
    Guards(String),
    /// To [`Question::Try`]: a [`Trial`](crate::policy::Trial) as JSON, or why there is none.
    Tried(Result<String, String>),
}

/// What a node says of itself when asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Who answers.
    pub node: NodeId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// The version of its binary.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Its wall clock when it answered.
    pub wall: WallTime,
    /// Its view's revision (comparable only with itself).
    pub revision: Revision,
    /// Its store's fingerprint: equal to another node's exactly when both hold the same.
    pub fingerprint: Fingerprint,
    /// Members it holds for alive, itself included.
    pub members_alive: u32,
    /// What is wrong with its disk, when it takes no writes.
    #[serde(default)]
    pub disk_failing: Option<DiskFailing>,
    /// How it comes to know what its peers know, while it lacks most of it.
    #[serde(default)]
    pub catching_up: Option<CatchingUp>,
    /// Of its certificate; absent from nodes of before this was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
}

/// A node's own certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// When it ends: then peers refuse the node's new connections.
    pub expires: WallTime,
    /// Whether less than a fifth of its life is left.
    pub ends_soon: bool,
    /// Why the one that was to take its place could not be used.
    pub refused: Option<String>,
}

/// A node's disk that takes no writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFailing {
    /// Since when, by that node's clock.
    pub since: WallTime,
    /// What its operating system says, and what to do.
    pub reason: String,
}

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Nothing at all.
    #[error("empty frame")]
    Empty,
    /// A peer with another wire version.
    #[error("wire version {theirs}, this node speaks {WIRE_VERSION}: run the same major version on all nodes")]
    Version {
        /// The version it speaks.
        theirs: u8,
    },
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("frame of {0} bytes is over the limit of {MAX_MESSAGE_BYTES}")]
    TooLong(usize),
    /// Not decodable.
    #[error("malformed frame: {0}")]
    Malformed(String),
}

impl DecodeError {
    fn malformed(why: &str) -> Self {
        Self::Malformed(why.to_owned())
    }
}

impl From<rmp_serde::decode::Error> for DecodeError {
    fn from(error: rmp_serde::decode::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// What came of a frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// The message; `None` when it is of a kind this node does not know.
    pub message: Option<Message>,
    /// How many of its records were left out: of a kind or a shape this node does not know, or malformed.
    pub skipped: usize,
}

/// Encodes a question, a reply, or what else is asked of one node by another.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    // Our own types always encode into memory; failing here is a bug, not an input.
    rmp_serde::encode::write(&mut bytes, value).expect("wire types encode");
    bytes
}

/// Decodes what [`encode`] made.
///
/// # Errors
/// [`DecodeError`]; nothing is allocated beyond the size of the input.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    Ok(rmp_serde::from_slice(body(bytes)?)?)
}

/// What follows the version byte.
fn body(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    match bytes.split_first() {
        None => Err(DecodeError::Empty),
        Some((&WIRE_VERSION, body)) => Ok(body),
        Some((&theirs, _)) => Err(DecodeError::Version { theirs }),
    }
}
