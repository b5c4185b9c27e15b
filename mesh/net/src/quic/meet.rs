//! How two nodes meet: dial or accept, check each other, greet, and say clearly what went wrong.
//!
//! In TLS 1.3 the dialler is done before the other side has seen its certificate. So each side sends a greeting on a
//! stream of its own, and believes in the connection when it has the other's: nobody greets whom it does not trust.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::HandshakeData;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, Incoming, VarInt};
use rustls::pki_types::CertificateDer;
use starling_core::id::NodeId;
use starling_core::wire::WIRE_VERSION;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::{Shared, carry, claim, endpoint, stats};
use crate::identity::{node_name, refused_by_peer};

/// How long a connection may take to be made and greeted. A handshake is two round trips and a few milliseconds of
/// arithmetic; three seconds forgive two lost packets on a slow line.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many strangers may be in their handshakes at a time; more wait in the kernel's and QUIC's queues.
const MAX_HANDSHAKES: usize = 256;
/// How many connections there may be for each peer of the address book, on the average: two kinds, some more while they
/// change over, and one for each thread that carries there.
const MAX_CONNECTIONS: usize = 32;
/// A greeting: version, then the number of the process.
const GREETING_BYTES: usize = 9;

/// Why a connection is closed, as the other side sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    Stopping = 1,
    Malformed = 2,
    Duplicate = 3,
    Superseded = 4,
    WrongNode = 5,
    SameName = 6,
    Version = 7,
    TooMany = 8,
    Idle = 9,
}

impl Close {
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Which of the two kinds a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Talk,
    Carry,
}

/// A node that was met: its name is in its certificate, which was checked.
pub(super) struct Met {
    pub(super) node: NodeId,
    pub(super) process: u64,
    pub(super) connection: Connection,
    pub(super) dialled: bool,
}

/// Accepts until the endpoint is closed.
pub(super) async fn accept(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = shared.endpoint.accept().await {
        // When it gets crowded, strangers have to show first that they are where they say: whoever only writes sender
        // addresses into datagrams must not take the places of peers.
        if handshakes.available_permits() < MAX_HANDSHAKES / 2 && incoming.may_retry() {
            let _ = incoming.retry(); // it may retry: that was asked
            continue;
        }
        if shared.endpoint.open_connections() > shared.limits.peers.saturating_mul(MAX_CONNECTIONS) {
            shared.complain(
                canonical(incoming.remote_address()),
                "crowded",
                "too many connections are open; it was turned away",
            );
            incoming.refuse();
            continue;
        }
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let lane = shared.lanes.lane_for(&incoming);
        let (shared, here, dealt) = (shared.clone(), tokio::runtime::Handle::current(), lane.clone());
        let welcoming = async move {
            let met = tokio::time::timeout(PATIENCE, welcome(&shared, incoming)).await;
            drop(permit);
            match met {
                Ok(Ok((Kind::Talk, met))) => _ = here.spawn(async move { claim::admit(&shared, met).await }),
                Ok(Ok((Kind::Carry, met))) => carry::serve(shared, met, dealt).await,
                // Said already; or it never finished, and the dialler knows more about that than we do.
                Ok(Err(_)) | Err(_) => {}
            }
        };
        match lane {
            Some(lane) => lane.spawn(welcoming),
            None => _ = tokio::spawn(welcoming),
        }
    }
}

async fn welcome(shared: &Shared, incoming: Incoming) -> Result<(Kind, Met), String> {
    let address = canonical(incoming.remote_address());
    let connected = async { incoming.accept()?.await }.await;
    let connection = connected.map_err(|error| shared.explain(address, None, &error))?;
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let protocol = data.and_then(|data| data.protocol);
    let kind = if protocol.as_deref() == Some(endpoint::CARRY) { Kind::Carry } else { Kind::Talk };
    Ok((kind, greet(shared, connection, None, false).await?))
}

/// Dials an address. `meant` is the node that should be there, when that is known.
pub(super) async fn dial(
    shared: &Shared,
    address: SocketAddr,
    meant: Option<&NodeId>,
    kind: Kind,
) -> Result<Met, String> {
    let config = match kind {
        Kind::Talk => &shared.dialling.talk,
        Kind::Carry => &shared.dialling.carry,
    };
    dial_from(shared, (&shared.endpoint, config), address, meant).await
}

/// Dials an address through a socket.
pub(super) async fn dial_from(
    shared: &Shared,
    (endpoint, config): (&Endpoint, &ClientConfig),
    address: SocketAddr,
    meant: Option<&NodeId>,
) -> Result<Met, String> {
    let attempt = async {
        // The name is not looked at by anybody: the certificate's own name is what counts.
        let connecting = endpoint.connect_with(config.clone(), address, "starling");
        let connection = connecting
            .map_err(|error| format!("cannot dial {address}: {error}"))?
            .await
            .map_err(|error| shared.explain(address, meant, &error))?;
        greet(shared, connection, meant, true).await
    };
    shared.stats.dialled();
    tokio::time::timeout(PATIENCE, attempt).await.unwrap_or_else(|_| Err(format!("no answer from {address}")))
}

/// Sends a greeting, waits for the other's, and compares who it is with who was meant.
async fn greet(shared: &Shared, connection: Connection, meant: Option<&NodeId>, dialled: bool) -> Result<Met, String> {
    let address = remote(&connection);
    let Some(node) = peer_name(&connection) else {
        return Err(shared.complain(address, "name", "its certificate names no node, although it was accepted"));
    };
    let greetings = async {
        let mut stream = connection.open_uni().await?;
        let mut greeting = [WIRE_VERSION; GREETING_BYTES];
        greeting[1..].copy_from_slice(&shared.process.to_be_bytes());
        // If this fails, so does the reading below, and says why.
        let _ = stream.write_all(&greeting).await;
        let _ = stream.finish();
        connection.accept_uni().await
    };
    let mut stream = greetings.await.map_err(|error| shared.explain(address, Some(&node), &error))?;
    let mut theirs = [0; GREETING_BYTES];
    if stream.read_exact(&mut theirs).await.is_err() || theirs[0] != WIRE_VERSION {
        let text = format!(
            "node {node} does not greet in version {WIRE_VERSION} of the protocol; run the same major version on all nodes"
        );
        connection.close(Close::Version.code(), text.as_bytes());
        return Err(shared.complain(address, "version", &text));
    }
    let [_, process @ ..] = theirs;
    let process = u64::from_be_bytes(process);
    if node == shared.me {
        return Err(shared.met_own_name(&connection, process));
    }
    if let Some(meant) = meant.filter(|meant| **meant != node) {
        let text = format!("node {meant} was expected there, but it is node {node}");
        connection.close(Close::WrongNode.code(), text.as_bytes());
        return Err(shared.complain(address, "wrong-node", &text));
    }
    shared.stats.connected();
    Ok(Met { node, process, connection, dialled })
}

/// The name in the certificate, which the handshake has checked.
fn peer_name(connection: &Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Some(node_name(identity.first()?).ok()?.node)
}

/// What the second of two processes under one name is told.
pub(super) fn same_name(node: &NodeId, first: SocketAddr) -> String {
    format!(
        "another node named {node} lives at {first}: stop one of the two, or give each a name and a certificate of its own"
    )
}

/// A text that a peer may have written, for a log: no control characters, and not too long.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Where a peer is. On a socket for both versions of IP, an IPv4 peer appears in IPv6's clothes, under which nobody
/// else knows it.
pub(super) fn remote(connection: &Connection) -> SocketAddr {
    canonical(connection.remote_address())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Dials an address nobody is known at, on behalf of membership, and delivers `frame` there.
pub(super) fn dial_address(shared: &Arc<Shared>, address: SocketAddr, frame: Bytes) {
    if !shared.table.begin_dialling(address) {
        shared.stats.dropped(stats::GOSSIP, 1);
        return;
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        match dial(&shared, address, None, Kind::Talk).await {
            Ok(met) => {
                let (node, size) = (met.node.clone(), frame.len());
                claim::admit(&shared, met).await;
                let taken = shared.table.get(&node).is_some_and(|peer| peer.gossip.push(stats::GOSSIP, frame));
                if taken {
                    shared.stats.sent(stats::GOSSIP, size);
                }
            }
            Err(reason) => {
                debug!(%address, reason, "could not reach an address membership asked for");
                shared.stats.dropped(stats::GOSSIP, 1);
            }
        }
        shared.table.end_dialling(address);
    });
}

impl Shared {
    /// Logs why a connection failed, in words, and returns them.
    pub(super) fn explain(&self, address: SocketAddr, node: Option<&NodeId>, error: &ConnectionError) -> String {
        let who = node.map_or_else(|| "the node".to_owned(), |node| format!("node {node}"));
        let alert = |code: u64| (0x100..0x200).contains(&code).then_some((code & 0xff) as u8);
        match error {
            ConnectionError::TransportError(ours) => match alert(u64::from(ours.code)) {
                Some(number) => {
                    let (text, advice) = refused_by_peer(&ours.reason, Some(number));
                    self.complain_of_refusal(address, &format!("this node refused {who} at {address}: {text}"), advice)
                }
                None => printable(&error.to_string()),
            },
            ConnectionError::ConnectionClosed(theirs) => match alert(u64::from(theirs.error_code)) {
                Some(number) => {
                    let reason = String::from_utf8_lossy(&theirs.reason);
                    let (text, advice) = refused_by_peer(&reason, Some(number));
                    self.complain_of_refusal(address, &format!("{who} at {address} refused this node: {text}"), advice)
                }
                None => printable(&error.to_string()),
            },
            ConnectionError::ApplicationClosed(theirs) => {
                let reason = printable(&String::from_utf8_lossy(&theirs.reason));
                if [Close::WrongNode, Close::SameName, Close::Version].iter().any(|c| c.code() == theirs.error_code) {
                    self.complain_of_refusal(address, &format!("{who} at {address} refused this node: {reason}"), "")
                } else {
                    reason
                }
            }
            _ => error.to_string(),
        }
    }

    fn complain_of_refusal(&self, address: SocketAddr, text: &str, advice: &'static str) -> String {
        self.stats.refused();
        if self.complaints.is_new(address, advice) {
            if advice.is_empty() {
                warn!(%address, "{text}");
            } else {
                warn!(%address, "{text}; {advice}");
            }
        }
        text.to_owned()
    }

    /// Whether to log this about a peer, or whether the same was said a moment ago.
    pub(super) fn may_say(&self, address: SocketAddr, what: &'static str) -> bool {
        self.complaints.is_new(address, what)
    }

    fn complain(&self, address: SocketAddr, code: &'static str, text: &str) -> String {
        if self.complaints.is_new(address, code) {
            warn!(%address, "refused the peer at {address}: {text}");
        }
        self.stats.refused();
        text.to_owned()
    }

    /// Somebody shows a certificate with this node's own name: this node itself (a seed list may name it), or another
    /// process that was given the same certificate or name, which cannot work.
    fn met_own_name(&self, connection: &Connection, process: u64) -> String {
        let (me, address) = (&self.me, remote(connection));
        if process == self.process {
            connection.close(Close::Duplicate.code(), b"this is the same node");
            return "that address is this node's own".to_owned();
        }
        let text = format!("both nodes are named {me}: give every node a name and certificate of its own");
        connection.close(Close::SameName.code(), text.as_bytes());
        self.stats.refused();
        if self.complaints.is_new(address, "same-name") {
            error!(%address, "refused the node at {address}: {text}");
        }
        text
    }
}

/// Remembers what was complained about, so that a peer that tries again every second is named once a minute.
#[derive(Default)]
pub(super) struct Complaints {
    recent: Mutex<BTreeMap<(SocketAddr, &'static str), Instant>>,
}

impl Complaints {
    /// How long the same complaint is kept back.
    const SILENCE: Duration = Duration::from_secs(60);
    /// How many different ones there may be within that time; then there is silence, and only the figures tell.
    const MAX: usize = 256;

    fn is_new(&self, address: SocketAddr, what: &'static str) -> bool {
        let now = Instant::now();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|_, at| now.duration_since(*at) < Self::SILENCE);
        recent.len() < Self::MAX && recent.insert((address, what), now).is_none()
    }
}
