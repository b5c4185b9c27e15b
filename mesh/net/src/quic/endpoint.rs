//! The UDP socket, and how QUIC is tuned on it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, Runtime, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use super::faults::{Cut, Lossy};
use super::{BindError, Limits, lane};
use crate::ground::Ground;
use crate::identity::{IdentityError, Shown, tls};

/// The ALPN names of the two kinds of connection; the number is the version of what is spoken on them.
pub(super) const TALK: &[u8] = b"starling-talk/1";
/// See [`TALK`].
pub(super) const CARRY: &[u8] = b"starling-carry/1";

/// How often an idle link shows that it is alive. With [`IDLE_TIMEOUT_MS`], a peer must miss five in a row, each with
/// its retransmissions, before the link is given up: at 5 % loss once in years.
const KEEP_ALIVE: Duration = Duration::from_millis(300);
/// When a silent link is given up. The clock starts with the last packet sent unanswered, so a killed peer's link is
/// down after 1.8 s at most; it is lost 0.8 s later, which makes less than three in all.
const IDLE_TIMEOUT_MS: u32 = 1_500;
/// The first guess at a round trip, until it is measured: QUIC's own 333 ms makes a lost first packet cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// One-way streams a peer may have open on a talk connection: three for what it says, three more while it changes over
/// from one connection to another, one greeting, and some room.
const TALK_STREAMS: u32 = 10;
/// How far a tunnel may run ahead of its reader: 1 MiB is 80 Mbit/s at 100 ms, and what a stalled reader can cost us.
const TUNNEL_WINDOW: u32 = 1024 * 1024;
/// The same for all tunnels from one peer together: 64 stalled ones do not stop the others.
const CARRY_WINDOW: u32 = 64 * 1024 * 1024;
/// How much unacknowledged data a carry connection keeps: enough for 1 Gbit/s at 100 ms.
const CARRY_SEND_WINDOW: u64 = 16 * 1024 * 1024;

/// How many strangers wait for their handshakes to begin; more are turned away, and try again.
const MAX_INCOMING: usize = 1_024;
/// How many bytes one of them may send meanwhile: a hello with some room.
const INCOMING_BYTES: u64 = 16 * 1024;
/// And all of them together.
const ALL_INCOMING_BYTES: u64 = 8 * 1024 * 1024;

/// How this node dials, per kind of connection.
pub(super) struct ClientConfigs {
    pub(super) talk: ClientConfig,
    pub(super) carry: ClientConfig,
    /// As `carry`, recognized as coming from a lane.
    pub(super) lane: ClientConfig,
}

/// Opens the socket and makes both sides' configurations.
pub(super) fn open(
    shown: &Arc<Shown>,
    listen: SocketAddr,
    limits: &Limits,
    ground: Ground,
    cut: &Arc<Cut>,
) -> Result<(Endpoint, ClientConfigs), BindError> {
    let tls = tls::server_config(shown, &[TALK, CARRY])?;
    let tls = QuicServerConfig::try_from(tls).map_err(|error| unusable(&error))?;
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    // An accepted connection may turn out to be of either kind, so it is tuned for the larger one.
    server.transport_config(Arc::new(transport(limits.streams_per_peer)));
    // What waits for its handshake is kept by QUIC meanwhile; its own defaults would let strangers fill 100 MiB.
    server
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(ALL_INCOMING_BYTES);
    server.migration(false); // a peer is addressed by where it dialled from; it must stay there
    let carry = client(shown, CARRY, 0)?;
    let mut lane = carry.clone();
    lane.initial_dst_cid_provider(Arc::new(lane::first_id));
    let dialling = ClientConfigs { talk: client(shown, TALK, 0)?, carry, lane };
    let socket_error = |error| BindError::Socket { address: listen, error };
    let socket = match ground.socket {
        Some(socket) => socket,
        None => {
            let socket = socket(listen, limits).map_err(socket_error)?;
            TokioRuntime.wrap_udp_socket(socket).map_err(socket_error)?
        }
    };
    let socket = Arc::new(Lossy { socket, cut: cut.clone() });
    let mut config = EndpointConfig::default();
    config.rng_seed(ground.quic_seed);
    let endpoint = Endpoint::new_with_abstract_socket(config, Some(server), socket, Arc::new(TokioRuntime))
        .map_err(socket_error)?;
    Ok((endpoint, dialling))
}

/// A socket of its own for a thread that carries: it dials, from a port the system chooses, and takes no strangers. Real,
/// whatever ground the node stands on: only real threads carry.
pub(super) fn open_lane(node: SocketAddr, limits: &Limits, cut: &Arc<Cut>) -> std::io::Result<Endpoint> {
    let socket = TokioRuntime.wrap_udp_socket(socket(SocketAddr::new(node.ip(), 0), limits)?)?;
    let socket = Arc::new(Lossy { socket, cut: cut.clone() });
    Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
}

fn client(shown: &Arc<Shown>, protocol: &[u8], incoming_streams: u32) -> Result<ClientConfig, IdentityError> {
    let tls = tls::client_config(shown, protocol)?;
    let tls = QuicClientConfig::try_from(tls).map_err(|error| unusable(&error))?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport(incoming_streams)));
    Ok(config)
}

fn unusable(error: &dyn std::error::Error) -> IdentityError {
    IdentityError::Invalid { what: "TLS".into(), why: error.to_string() }
}

fn transport(incoming_streams: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_uni_streams(VarInt::from_u32(TALK_STREAMS))
        .max_concurrent_bidi_streams(VarInt::from_u32(incoming_streams))
        .stream_receive_window(VarInt::from_u32(TUNNEL_WINDOW))
        .receive_window(VarInt::from_u32(CARRY_WINDOW))
        .send_window(CARRY_SEND_WINDOW)
        .datagram_receive_buffer_size(None); // nothing of ours is a datagram
    config
}

/// Opens a UDP socket as [`open`] does, for those who keep it themselves.
pub fn socket(listen: SocketAddr, limits: &Limits) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // The kernel takes as much as its own limit allows, silently.
    socket.set_recv_buffer_size(limits.socket_buffer)?;
    socket.set_send_buffer_size(limits.socket_buffer)?;
    let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    if receive.min(send) < limits.socket_buffer {
        warn!(
            wanted = limits.socket_buffer,
            receive,
            send,
            "the kernel gives this node's socket smaller buffers; bursts may be lost and sent again \
             (raise net.core.rmem_max and net.core.wmem_max)"
        );
    }
    socket.bind(&listen.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
