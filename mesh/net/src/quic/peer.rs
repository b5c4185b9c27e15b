//! One peer: its connections, its mailboxes, and the task that keeps a link up and writes to it.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, WriteError};
use starling_core::id::NodeId;
use starling_core::wire::{MAX_MESSAGE_BYTES, Message};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::carry::Carry;
use super::frame::{FrameError, Frames};
use super::letters::Room;
use super::mailbox::Mailbox;
use super::meet::{self, Close, Kind, Met, remote};
use super::{GossipFrame, Limits, Shared, claim, stats};

/// The first byte of a stream on a talk connection: what its frames are.
const MESSAGES: u8 = 1;
const GOSSIP: u8 = 2;
const WORDS: u8 = 3;
/// The largest message of membership: chitchat's own limit is a UDP datagram, 65,507 bytes.
const MAX_GOSSIP_BYTES: usize = 128 * 1024;
/// How many messages of membership wait for a peer: a round makes a handful; older ones are worthless.
const GOSSIP_MAILBOX: usize = 16;
/// The largest frame of words about links: some hundreds of them.
pub(super) const MAX_WORDS_BYTES: usize = 64 * 1024;
/// How many frames of words wait for a peer: half a mesh may fall silent at once, each peer in a frame of its own.
const WORDS_MAILBOX: usize = 512;
/// How long the pause between attempts to dial a lost peer is: at first, and at most while few are lost.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// An attempt costs about a millisecond of arithmetic, so with many peers lost each is tried less often: together they
/// cost at most about twenty attempts a second.
const BACKOFF_PER_LOST: Duration = Duration::from_millis(50);
/// The node whose name is larger waits this long for the other to dial first, so that mostly one connection is made.
const AFTER_YOU: Duration = Duration::from_millis(100);
/// A link that lasted less counts as a failed attempt: two processes that share a name would otherwise push each other
/// out as fast as they can dial.
const STEADY: Duration = Duration::from_secs(2);
/// How long a connection that is not used any more is kept, so that what is on its way in it arrives.
const SPARE_GRACE: Duration = Duration::from_secs(3);
/// How long a link that was made for a message stays without another one. A handshake costs as much as ten seconds of
/// keeping alive.
const IDLE: Duration = Duration::from_secs(15);
/// How many talk connections there may be with one process: both may dial at once, and again before the first are known
/// to be lost. The oldest give way.
const MAX_CONNECTIONS: usize = 4;
/// How long a closing node waits for a peer to acknowledge what it was sent.
const LAST_WORDS: Duration = Duration::from_millis(700);

/// A peer, in the address book or linked, or both.
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) messages: Mailbox,
    pub(super) gossip: Mailbox,
    pub(super) words: Mailbox,
    /// What its messages may take while they wait for the loop.
    room: Room,
    /// Whether it is a member of this node's own cell: membership talks with those only.
    pub(super) near: AtomicBool,
    pub(super) carry: Carry,
    /// Wakes the task when the address book changed.
    pub(super) changed: Notify,
    state: Mutex<State>,
    /// The connection that is written to.
    current: watch::Sender<Option<Connection>>,
}

pub(super) struct State {
    /// Where to dial it; `None` when it is not in the address book.
    pub(super) address: Option<SocketAddr>,
    pub(super) keep: Keep,
    /// When a message went to it or came from it.
    pub(super) used: Instant,
    /// Live talk connections, oldest first. Usually one.
    pub(super) connections: Vec<Held>,
    pub(super) down_since: Option<Instant>,
}

/// When a peer of the address book is to be linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Always: the link is made again whenever it is lost.
    Up,
    /// While there are messages for it.
    OnDemand,
}

pub(super) struct Held {
    pub(super) connection: Connection,
    process: u64,
    dialled: bool,
}

impl Peer {
    pub(super) fn new(node: NodeId, limits: &Limits) -> Self {
        let bytes = limits.mailbox_bytes.max(MAX_MESSAGE_BYTES);
        Self {
            node,
            messages: Mailbox::new(limits.mailbox_messages.max(1), bytes),
            gossip: Mailbox::new(GOSSIP_MAILBOX, GOSSIP_MAILBOX * MAX_GOSSIP_BYTES),
            room: Room::of(limits.inbox_bytes_per_peer),
            words: Mailbox::new(WORDS_MAILBOX, 4 * MAX_WORDS_BYTES),
            near: AtomicBool::new(false),
            carry: Carry::default(),
            changed: Notify::new(),
            state: Mutex::new(State {
                address: None,
                keep: Keep::OnDemand,
                used: Instant::now(),
                connections: Vec::new(),
                down_since: None,
            }),
            current: watch::Sender::new(None),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to dial it: as the address book says, or where it is linked from.
    pub(super) fn whereabouts(&self) -> Option<SocketAddr> {
        let state = self.state();
        let linked = state.connections.last().map(|held| remote(&held.connection));
        state.address.or(linked)
    }

    /// Where the connection that is written to leads.
    pub(super) fn remote(&self) -> Option<SocketAddr> {
        self.current.borrow().as_ref().map(remote)
    }

    pub(super) fn close_all(&self, why: Close, text: &[u8]) {
        for held in &self.state().connections {
            held.connection.close(why.code(), text);
        }
    }

    /// Closes what leads to an address, as that is not the node it says it is.
    pub(super) fn refuse(&self, address: SocketAddr, text: &str) {
        for held in self.state().connections.iter().filter(|held| remote(&held.connection) == address) {
            held.connection.close(Close::SameName.code(), text.as_bytes());
        }
    }

    /// A message is on its way to it, or has come from it.
    pub(super) fn use_link(&self) {
        self.state().used = Instant::now();
    }

    /// Waits until this node has no reason any more to keep the link: nobody asked for it, it dialled it itself, and
    /// nothing was said for a while. Who was dialled never ends it: the dialler may have a reason.
    async fn idle(&self, connection: &Connection) {
        loop {
            let wake = {
                let state = self.state();
                let ours = |held: &Held| held.dialled && held.connection.stable_id() == connection.stable_id();
                let (idle_at, now) = (state.used + IDLE, Instant::now());
                if state.keep == Keep::Up || !state.connections.iter().any(ours) {
                    now + IDLE
                } else if idle_at <= now {
                    return;
                } else {
                    idle_at
                }
            };
            tokio::time::sleep_until(wake).await;
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// A connection of another process at another address, if there is none of this one.
    pub(super) fn rival(&self, met: &Met) -> Option<Connection> {
        let (state, address) = (self.state(), remote(&met.connection));
        let live = || state.connections.iter().filter(|held| held.connection.close_reason().is_none());
        if live().any(|held| held.process == met.process) {
            return None;
        }
        live().find(|held| remote(&held.connection) != address).map(|held| held.connection.clone())
    }

    /// Takes a new connection. Connections to an earlier process of the same node are dead, as [`super::claim`] has found
    /// out.
    pub(super) fn adopt(&self, me: &NodeId, met: Met) {
        let mut state = self.state();
        state.connections.retain(|held| {
            let same = held.process == met.process;
            if !same {
                held.connection.close(Close::Superseded.code(), b"a newer process of this node has come");
            }
            same
        });
        if state.connections.len() >= MAX_CONNECTIONS {
            state.connections.remove(0).connection.close(Close::TooMany.code(), b"too many connections of one node");
        }
        state.connections.push(Held { connection: met.connection, process: met.process, dialled: met.dialled });
        state.down_since = None;
        state.used = Instant::now();
        self.choose(me, &state);
        let chosen = self.current.borrow().as_ref().map(Connection::stable_id);
        for spare in state.connections.iter().filter(|held| held.dialled) {
            if Some(spare.connection.stable_id()) != chosen {
                let spare = spare.connection.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(SPARE_GRACE).await;
                    spare.close(Close::Duplicate.code(), b"there is another connection");
                });
            }
        }
    }

    /// Lets go of a connection that has ended; says whether another is left.
    pub(super) fn drop_connection(&self, me: &NodeId, connection: &Connection) -> bool {
        let mut state = self.state();
        state.connections.retain(|held| held.connection.stable_id() != connection.stable_id());
        if state.connections.is_empty() && state.down_since.is_none() && state.keep == Keep::Up {
            state.down_since = Some(Instant::now());
        }
        self.choose(me, &state);
        !state.connections.is_empty()
    }

    /// When both sides dialled at once, both prefer what the smaller name dialled; else the newest is the best.
    fn choose(&self, me: &NodeId, state: &State) {
        let i_dial = *me < self.node;
        let best = state.connections.iter().rev().max_by_key(|held| held.dialled == i_dial);
        let best = best.map(|held| held.connection.clone());
        self.current.send_if_modified(|current| {
            let changed = current.as_ref().map(Connection::stable_id) != best.as_ref().map(Connection::stable_id);
            if changed {
                *current = best;
            }
            changed
        });
    }
}

/// Keeps a link to a peer up while it is in the address book, and writes to whatever link there is.
pub(super) async fn keep(shared: &Arc<Shared>, peer: &Arc<Peer>) {
    let mut current = peer.current.subscribe();
    let mut closing = shared.closing.subscribe();
    let mut failures: u32 = 0;
    while !*closing.borrow_and_update() {
        let connection = current.borrow_and_update().clone();
        if let Some(connection) = connection {
            let began = Instant::now();
            write(shared, peer, &connection, &mut current, &mut closing).await;
            failures = if began.elapsed() < STEADY { failures.saturating_add(1) } else { 0 };
            continue;
        }
        let (address, keep) = {
            let state = peer.state();
            (state.address, state.keep)
        };
        let Some(address) = address else {
            if shared.table.retire(peer) {
                return;
            }
            tokio::select! {
                _ = current.changed() => {}
                _ = closing.changed() => {}
                () = peer.changed.notified() => {}
            }
            continue;
        };
        if keep == Keep::OnDemand && peer.messages.is_empty() && peer.gossip.is_empty() {
            tokio::select! {
                _ = current.changed() => {}
                _ = closing.changed() => {}
                () = peer.changed.notified() => {}
                () = peer.messages.filled() => {}
                () = peer.gossip.filled() => {}
            }
            continue;
        }
        tokio::select! {
            _ = current.changed() => {} // the peer has dialled us
            _ = closing.changed() => {}
            () = pause_and_dial(shared, peer, address, &mut failures) => {}
        }
    }
}

async fn pause_and_dial(shared: &Arc<Shared>, peer: &Arc<Peer>, address: SocketAddr, failures: &mut u32) {
    let pause = if *failures > 0 {
        let most = BACKOFF.1.max(BACKOFF_PER_LOST * shared.table.down());
        let pause = (BACKOFF.0 * 2_u32.saturating_pow((*failures - 1).min(16))).min(most);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    } else if shared.me > peer.node && peer.messages.is_empty() {
        AFTER_YOU
    } else {
        Duration::ZERO
    };
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = peer.changed.notified() => return, // the address, perhaps
    }
    match meet::dial(shared, address, Some(&peer.node), Kind::Talk).await {
        Ok(met) => claim::admit(shared, met).await,
        Err(reason) => {
            *failures = failures.saturating_add(1);
            debug!(node = %peer.node, %address, reason, failures, "could not reach a peer");
            shared.table.not_there(&peer.node, address);
            // What waits was meant for now. When the peer is back, repair brings it everything.
            let waiting = [&peer.messages, &peer.gossip, &peer.words];
            for (kind, _) in waiting.into_iter().flat_map(Mailbox::clear) {
                shared.stats.dropped(kind, 1);
            }
        }
    }
}

/// Writes to a connection until it is replaced, lost, or the node is closing.
async fn write(
    shared: &Shared,
    peer: &Peer,
    connection: &Connection,
    current: &mut watch::Receiver<Option<Connection>>,
    closing: &mut watch::Receiver<bool>,
) {
    // Streams are told to end, not cut: what is half written is completed.
    let enough = watch::Sender::new(false);
    let writing = async {
        tokio::join!(
            write_stream(shared, connection, MESSAGES, &peer.messages, enough.subscribe()),
            write_stream(shared, connection, GOSSIP, &peer.gossip, enough.subscribe()),
            write_stream(shared, connection, WORDS, &peer.words, enough.subscribe()),
        )
    };
    tokio::pin!(writing);
    let ended = tokio::select! {
        ended = &mut writing => Some(ended),
        _ = current.changed() => None,
        _ = closing.changed() => None,
        () = peer.idle(connection) => {
            connection.close(Close::Idle.code(), b"nothing is said here");
            return wait_for_another(connection, current, closing).await;
        }
    };
    if ended.is_none() {
        enough.send_replace(true);
        let _ = tokio::time::timeout(LAST_WORDS, writing).await; // a connection that is dead cannot take any more
    } else {
        wait_for_another(connection, current, closing).await;
    }
}

/// The connection has ended, and its reader will say so in a moment.
async fn wait_for_another(
    connection: &Connection,
    current: &mut watch::Receiver<Option<Connection>>,
    closing: &mut watch::Receiver<bool>,
) {
    if current.borrow().as_ref().is_some_and(|now| now.stable_id() == connection.stable_id()) {
        tokio::select! {
            _ = current.changed() => {}
            _ = closing.changed() => {}
        }
    }
}

async fn write_stream(
    shared: &Shared,
    connection: &Connection,
    kind: u8,
    mailbox: &Mailbox,
    enough: watch::Receiver<bool>,
) {
    match try_write_stream(shared, connection, kind, mailbox, enough).await {
        Ok(stream) => drop(stream.stopped().await), // that is, until everything is acknowledged
        Err(error) => debug!(%error, address = %remote(connection), "a stream to a peer has broken"),
    }
}

async fn try_write_stream(
    shared: &Shared,
    connection: &Connection,
    kind: u8,
    mailbox: &Mailbox,
    mut enough: watch::Receiver<bool>,
) -> Result<SendStream, WriteError> {
    let mut stream = connection.open_uni().await?;
    // Words about links (short, few and urgent) go first. Changes and membership have equal priority: QUIC sends of each
    // in turn, so that neither starves behind the other.
    let _ = stream.set_priority(i32::from(kind == WORDS)); // fails only on closed streams
    stream.write_all(&[kind]).await?;
    loop {
        let batch = tokio::select! {
            batch = mailbox.take() => batch,
            _ = enough.changed() => break,
        };
        write_batch(shared, &mut stream, batch).await?;
    }
    if *shared.closing.borrow() {
        write_batch(shared, &mut stream, mailbox.clear()).await?;
    } // else what waits goes over the next connection
    let _ = stream.finish(); // fails only on closed streams
    Ok(stream)
}

async fn write_batch(
    shared: &Shared,
    stream: &mut SendStream,
    batch: Vec<(&'static str, Bytes)>,
) -> Result<(), WriteError> {
    let (kinds, mut frames): (Vec<&'static str>, Vec<Bytes>) = batch.into_iter().unzip();
    let written = stream.write_all_chunks(&mut frames).await;
    if written.is_err() {
        for (kind, _) in kinds.iter().zip(&frames).filter(|(_, rest)| !rest.is_empty()) {
            shared.stats.dropped(kind, 1);
        }
    }
    written
}

/// Reads everything a peer sends on a talk connection, until it ends.
pub(super) async fn read_streams(shared: Arc<Shared>, node: NodeId, connection: Connection) {
    let error = loop {
        match connection.accept_uni().await {
            Ok(stream) => {
                let (shared, node, connection) = (shared.clone(), node.clone(), connection.clone());
                tokio::spawn(async move { read_stream(&shared, &node, &connection, stream).await });
            }
            Err(error) => break error,
        }
    };
    match &error {
        // Objections that come late are worth the words.
        ConnectionError::ConnectionClosed(_)
        | ConnectionError::TransportError(_)
        | ConnectionError::ApplicationClosed(_) => {
            shared.explain(remote(&connection), Some(&node), &error);
        }
        _ => {}
    }
    shared.table.lost(&shared, &node, &connection, &error);
}

/// What was wrong with something a peer sent: a sentence.
type Malformed = String;

async fn read_stream(shared: &Shared, node: &NodeId, connection: &Connection, mut stream: RecvStream) {
    let mut kind = [0];
    if stream.read_exact(&mut kind).await.is_err() {
        return; // opened and abandoned, or the connection is gone
    }
    let read = match kind {
        [MESSAGES] => read_messages(shared, node, stream).await,
        [GOSSIP] => read_gossip(shared, node, connection, stream).await,
        [WORDS] => read_words(shared, node, stream).await,
        [other] => Err(format!("a stream of unknown kind {other}")),
    };
    if let Err(what) = read {
        shared.stats.malformed();
        let address = remote(connection);
        if shared.may_say(address, "malformed") {
            warn!(%node, %address, "closed the connection to a peer that sent something malformed: {what}");
        }
        connection.close(Close::Malformed.code(), what.as_bytes());
    }
}

/// The next frame; `None` when the stream or its connection has ended.
async fn next(frames: &mut Frames) -> Result<Option<Bytes>, Malformed> {
    match frames.next().await {
        Ok(frame) => Ok(frame),
        Err(FrameError::Read(_) | FrameError::CutOff) => Ok(None),
        Err(error @ FrameError::TooLong { .. }) => Err(error.to_string()),
    }
}

async fn read_messages(shared: &Shared, node: &NodeId, stream: RecvStream) -> Result<(), Malformed> {
    let peer = shared.table.get(node);
    let mut frames = Frames::new(stream, MAX_MESSAGE_BYTES);
    while let Some(frame) = next(&mut frames).await? {
        let received = Message::decode(&frame).map_err(|error| error.to_string())?;
        shared.stats.skipped(received.skipped);
        let Some(message) = received.message else {
            shared.stats.received(stats::OTHER, frame.len());
            continue; // from a newer release, which this one lets pass
        };
        shared.stats.received(message.kind(), frame.len());
        if let Some(peer) = &peer {
            peer.use_link();
        }
        // When the loop is behind, only this peer's stream waits, and then its sender. The queue is fair: of many
        // readers waiting for a place, each gets one in turn.
        let room = match &peer {
            Some(peer) => peer.room.take(frame.len()).await,
            None => None, // retired this moment: its connection ends
        };
        if !shared.into.messages.deliver(node.clone(), message, room).await {
            return Ok(()); // nobody listens any more: the node is stopping
        }
    }
    Ok(())
}

async fn read_gossip(
    shared: &Shared,
    node: &NodeId,
    connection: &Connection,
    stream: RecvStream,
) -> Result<(), Malformed> {
    let mut frames = Frames::new(stream, MAX_GOSSIP_BYTES);
    while let Some(bytes) = next(&mut frames).await? {
        shared.stats.received(stats::GOSSIP, bytes.len());
        let frame = GossipFrame { from: node.clone(), address: remote(connection), bytes };
        if shared.into.gossip.send(frame).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn read_words(shared: &Shared, node: &NodeId, stream: RecvStream) -> Result<(), Malformed> {
    let mut frames = Frames::new(stream, MAX_WORDS_BYTES);
    while let Some(bytes) = next(&mut frames).await? {
        shared.stats.received(stats::WORDS, bytes.len());
        if shared.into.words.send((node.clone(), bytes)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
