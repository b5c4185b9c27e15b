//! Carry connections: one two-way stream per tunnel or question.
//!
//! A stream begins with one byte for its kind and one frame (the instance asked for, or the question); what follows in
//! a tunnel is the applications' own bytes, sent along without waiting for an answer. A refusal is a reset with a code.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{ClientConfig, Connection, Endpoint, ReadError, RecvStream, SendStream, WriteError};
use starling_core::id::{InstanceKey, NodeId};
use starling_core::policy::MAX_DOCUMENT_BYTES;
use starling_core::wire::{MAX_MESSAGE_BYTES, Question, Reply, decode, encode};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::frame::{FrameError, framed, read_one};
use super::lane::{Lane, MAX_LANES};
use super::meet::{self, Close, Met, remote};
use super::tunnel::{IncomingTunnel, Tunnel, TunnelRefusal, cut};
use super::{LinkError, Shared};

/// The first byte of a stream.
const TUNNEL: u8 = 1;
const QUESTION: u8 = 2;
/// The largest opening of a stream: a question with a policy in it; names have at most 128 bytes each.
const MAX_OPENING_BYTES: usize = MAX_DOCUMENT_BYTES + 4 * 1024;
/// How long an opened stream may take to say what it is for.
const OPENING_PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer may take here; askers give up earlier.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How many carry connections a peer may have to this node. It needs one, and another while the first is not yet known
/// to be lost.
const MAX_CARRIERS: usize = 4;
/// The same for those dialled by its threads that carry: one each.
const MAX_LANE_CARRIERS: usize = 2 * MAX_LANES;
/// How many questions of one connection are answered at a time; more wait. An answer can have megabytes, and whoever
/// asks may not read it.
const MAX_ANSWERING: usize = 16;
/// After a failed attempt, callers are told at once for this long: a thousand requests a second must not become as
/// many attempts.
const FAILURE_MEMORY: Duration = Duration::from_millis(200);

/// How long a connection to a node of another cell is kept that nobody needs.
const DISTANT_IDLE: Duration = Duration::from_secs(60);

/// This node's carry connection to a peer, dialled when first needed.
#[derive(Default)]
pub(super) struct Carry {
    slot: Mutex<Slot>,
    /// Cloned by whoever uses the connection.
    uses: Arc<()>,
    /// Held while dialling, so that many callers make one connection.
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    failed: Option<(Instant, String)>,
}

impl Carry {
    /// The connection if it lives, the last failure if it was just now, or neither.
    fn known(&self) -> Option<Result<Connection, String>> {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = slot.connection.as_ref().filter(|connection| connection.close_reason().is_none()) {
            return Some(Ok(connection.clone()));
        }
        let recent = slot.failed.as_ref().filter(|(at, _)| at.elapsed() < FAILURE_MEMORY);
        recent.map(|(_, reason)| Err(reason.clone()))
    }

    async fn connection(
        &self,
        shared: &Arc<Shared>,
        from: (&Endpoint, &ClientConfig),
        node: &NodeId,
        address: impl FnOnce() -> Option<SocketAddr>,
    ) -> Result<Connection, LinkError> {
        let unreachable = |reason| LinkError::Unreachable { node: node.clone(), reason };
        if let Some(known) = self.known() {
            return known.map_err(unreachable);
        }
        let _one = self.dialling.lock().await;
        if let Some(known) = self.known() {
            return known.map_err(unreachable);
        }
        let Some(address) = address() else { return Err(LinkError::UnknownNode(node.clone())) };
        let met = meet::dial_from(shared, from, address, Some(node)).await;
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        match met {
            Ok(met) => {
                slot.connection = Some(met.connection.clone());
                slot.failed = None;
                Ok(met.connection)
            }
            Err(reason) => {
                slot.connection = None;
                slot.failed = Some((Instant::now(), reason.clone()));
                Err(unreachable(reason))
            }
        }
    }
}

/// The connection to a peer, or to a node of another cell that is none: this thread's, if it carries.
async fn connection(shared: &Arc<Shared>, node: &NodeId) -> Result<(Connection, Arc<()>), LinkError> {
    let looked_up = || shared.directory.get().and_then(|directory| directory(node));
    let from = (&shared.endpoint, &shared.dialling.carry);
    let too_many = || LinkError::Unreachable {
        node: node.clone(),
        reason: format!("{} nodes are called already", shared.limits.peers),
    };
    if let Some(lane) = Lane::current(shared) {
        let whereabouts = || shared.table.get(node).and_then(|peer| peer.whereabouts()).or_else(looked_up);
        let carry = lane.carries.carry(node, shared.limits.peers).ok_or_else(too_many)?;
        let from = (&lane.endpoint, &shared.dialling.lane);
        return Ok((carry.connection(shared, from, node, whereabouts).await?, carry.uses.clone()));
    }
    match shared.table.get(node) {
        Some(peer) => {
            let whereabouts = || peer.whereabouts().or_else(looked_up);
            let connection = peer.carry.connection(shared, from, node, whereabouts).await?;
            Ok((connection, peer.carry.uses.clone()))
        }
        None => {
            let Some(address) = looked_up() else { return Err(LinkError::UnknownNode(node.clone())) };
            let carry = shared.distant.carry(node, shared.limits.peers).ok_or_else(too_many)?;
            Ok((carry.connection(shared, from, node, || Some(address)).await?, carry.uses.clone()))
        }
    }
}

/// Carry connections by node: of a lane, or to nodes that are no peers. Instances of other cells are called at their
/// node, not through relays.
#[derive(Default)]
pub(super) struct Carries(Mutex<BTreeMap<NodeId, (Instant, Arc<Carry>)>>);

impl Carries {
    /// The place for a node's connection; `None` when there are so many that were needed lately. Those that were not are
    /// let go: the connection ends with the last stream in it.
    pub(super) fn carry(&self, node: &NodeId, most: usize) -> Option<Arc<Carry>> {
        let mut all = self.lock();
        let now = Instant::now();
        if !all.contains_key(node) {
            all.retain(|_, (used, _)| now.duration_since(*used) < DISTANT_IDLE);
            if all.len() >= most {
                return None;
            }
        }
        let place = all.entry(node.clone()).or_insert_with(|| (now, Arc::default()));
        place.0 = now;
        Some(place.1.clone())
    }

    /// Takes out the connections that nobody uses and nobody has asked for within this time.
    pub(super) fn take_idle(&self, within: Duration) -> Vec<Connection> {
        let (mut idle, now) = (Vec::new(), Instant::now());
        self.lock().retain(|_, (used, carry)| {
            let keep = Arc::strong_count(&carry.uses) > 1 || now.duration_since(*used) < within;
            if !keep {
                let mut slot = carry.slot.lock().unwrap_or_else(PoisonError::into_inner);
                idle.extend(slot.connection.take());
            }
            keep
        });
        idle
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, (Instant, Arc<Carry>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a stream to a peer and sends its opening.
async fn open(
    shared: &Arc<Shared>,
    node: &NodeId,
    kind: u8,
    opening: &[u8],
) -> Result<(SendStream, RecvStream, Arc<()>), LinkError> {
    let (connection, uses) = connection(shared, node).await?;
    let lost = |error: &dyn std::error::Error| LinkError::Unreachable { node: node.clone(), reason: error.to_string() };
    let (mut send, receive) = connection.open_bi().await.map_err(|error| lost(&error))?;
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&framed(opening));
    send.write_all(&bytes).await.map_err(|error| match error {
        WriteError::Stopped(code) => refused(node, code),
        error => lost(&error),
    })?;
    Ok((send, receive, uses))
}

fn refused(node: &NodeId, code: quinn::VarInt) -> LinkError {
    let reason = TunnelRefusal::from_code(code).map_or_else(|| format!("code {code}"), |refusal| refusal.to_string());
    LinkError::Refused { node: node.clone(), reason }
}

pub(super) async fn open_tunnel(shared: &Arc<Shared>, node: &NodeId, to: &InstanceKey) -> Result<Tunnel, LinkError> {
    let (send, receive, uses) = open(shared, node, TUNNEL, &encode(to)).await?;
    shared.stats.tunnel_opened();
    Ok(Tunnel::new(send, receive, Some(uses)))
}

pub(super) async fn ask(shared: &Arc<Shared>, node: &NodeId, question: &Question) -> Result<Reply, LinkError> {
    let (mut send, mut receive, _uses) = open(shared, node, QUESTION, &encode(question)).await?;
    shared.stats.question_asked();
    let _ = send.finish(); // fails only when it was refused, which reading tells
    let unreachable = |reason: String| LinkError::Unreachable { node: node.clone(), reason };
    let answer = read_one(&mut receive, MAX_MESSAGE_BYTES).await.map_err(|error| match error {
        FrameError::Read(ReadError::Reset(code)) => refused(node, code),
        error => unreachable(error.to_string()),
    })?;
    decode(&answer).map_err(|error| unreachable(error.to_string()))
}

/// The carry connections peers have to this node: what one peer may take of memory is bounded per connection, so the
/// connections are bounded, too.
#[derive(Default)]
pub(super) struct Carriers(Mutex<BTreeMap<NodeId, Vec<Connection>>>);

impl Carriers {
    /// Takes a connection in; of too many, the oldest gives way.
    fn begun(&self, node: &NodeId, connection: &Connection, most: usize) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_node = all.entry(node.clone()).or_default();
        of_node.retain(|held| held.close_reason().is_none());
        if of_node.len() >= most {
            of_node.remove(0).close(Close::TooMany.code(), b"too many connections of one node");
        }
        of_node.push(connection.clone());
    }

    fn ended(&self, node: &NodeId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_node) = all.get_mut(node) {
            of_node.retain(|held| held.close_reason().is_none());
            if of_node.is_empty() {
                all.remove(node);
            }
        }
    }
}

/// Serves the streams a peer opens on its carry connection, until that ends; on this thread, if it is a lane's.
pub(super) async fn serve(shared: Arc<Shared>, met: Met, lane: Option<Arc<Lane>>) {
    let (node, address) = (met.node, remote(&met.connection));
    let (carriers, most) = match &lane {
        Some(lane) => {
            lane.accepted(&met.connection);
            (&shared.lane_carriers, MAX_LANE_CARRIERS)
        }
        None => (&shared.carriers, MAX_CARRIERS),
    };
    carriers.begun(&node, &met.connection, most);
    let answering = Arc::new(Semaphore::new(MAX_ANSWERING));
    while let Ok((send, receive)) = met.connection.accept_bi().await {
        let (shared, node, answering, lane) = (shared.clone(), node.clone(), answering.clone(), lane.clone());
        tokio::spawn(serve_stream(shared, (node, address), answering, lane, send, receive));
    }
    carriers.ended(&node);
    debug!(%node, "a peer's carry connection has ended");
}

async fn serve_stream(
    shared: Arc<Shared>,
    (node, address): (NodeId, SocketAddr),
    answering: Arc<Semaphore>,
    lane: Option<Arc<Lane>>,
    mut send: SendStream,
    mut receive: RecvStream,
) {
    let opening = async {
        let mut kind = [0];
        receive.read_exact(&mut kind).await.ok()?;
        let opening = read_one(&mut receive, MAX_OPENING_BYTES).await.ok()?;
        Some((kind[0], opening))
    };
    let opening = tokio::time::timeout(OPENING_PATIENCE, opening).await.ok().flatten();
    match opening {
        Some((TUNNEL, opening)) => match decode::<InstanceKey>(&opening) {
            Ok(to) => serve_tunnel(&shared, lane.as_deref(), (node, to), send, receive),
            Err(error) => malformed(&shared, &node, address, &error.to_string(), &mut send, &mut receive),
        },
        Some((QUESTION, opening)) => match decode::<Question>(&opening) {
            Ok(question) => {
                // The semaphore is never closed.
                let Ok(_place) = answering.acquire().await else { return };
                serve_question(&shared, node, question, send, receive).await;
            }
            Err(error) => malformed(&shared, &node, address, &error.to_string(), &mut send, &mut receive),
        },
        Some((other, _)) => {
            malformed(&shared, &node, address, &format!("a stream of unknown kind {other}"), &mut send, &mut receive);
        }
        // Abandoned before it began, too slow, or too long: there is nobody to answer.
        None => cut(&mut send, &mut receive, TunnelRefusal::Malformed.code()),
    }
}

fn malformed(
    shared: &Shared,
    node: &NodeId,
    address: SocketAddr,
    what: &str,
    send: &mut SendStream,
    receive: &mut RecvStream,
) {
    shared.stats.malformed();
    if shared.may_say(address, "stream") {
        warn!(%node, %address, "refused a stream of a peer that began with something malformed: {what}");
    }
    cut(send, receive, TunnelRefusal::Malformed.code());
}

fn serve_tunnel(
    shared: &Shared,
    lane: Option<&Lane>,
    (from, to): (NodeId, InstanceKey),
    send: SendStream,
    receive: RecvStream,
) {
    let tunnel = IncomingTunnel { from, to, tunnel: Tunnel::new(send, receive, lane.map(|lane| lane.uses.clone())) };
    let takers = lane.map_or(&shared.into.tunnels, |lane| &lane.tunnels);
    match takers.try_send(tunnel) {
        Ok(()) => shared.stats.tunnel_accepted(),
        Err(error) => {
            shared.stats.turned_away();
            error.into_inner().refuse(TunnelRefusal::Busy);
        }
    }
}

async fn serve_question(
    shared: &Shared,
    from: NodeId,
    question: Question,
    mut send: SendStream,
    mut receive: RecvStream,
) {
    shared.stats.question_heard();
    let (reply, answer) = oneshot::channel();
    if shared.into.questions.try_send((from, question, reply)).is_err() {
        shared.stats.turned_away();
        return cut(&mut send, &mut receive, TunnelRefusal::Busy.code());
    }
    let Ok(Ok(reply)) = tokio::time::timeout(ANSWER_PATIENCE, answer).await else {
        return cut(&mut send, &mut receive, TunnelRefusal::Stopping.code());
    };
    let bytes = encode(&reply);
    if bytes.len() > MAX_MESSAGE_BYTES {
        warn!(bytes = bytes.len(), "an answer over the size limit was not sent: it should have been limited");
        return cut(&mut send, &mut receive, TunnelRefusal::Busy.code());
    }
    match tokio::time::timeout(ANSWER_PATIENCE, send.write_all(&framed(&bytes))).await {
        Ok(Ok(())) => _ = send.finish(),
        Ok(Err(_)) => {} // if the asker has gone, so has the need for an answer
        Err(_) => cut(&mut send, &mut receive, TunnelRefusal::Busy.code()), // it asked, and does not read
    }
}
