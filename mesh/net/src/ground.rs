//! What a node stands on: its socket, its wall clock, and where QUIC's random choices begin.
//!
//! For a node in production all of it is real. A test may put the same code on an in-memory network and tokio's paused
//! clock instead: whole meshes in one process, hours in seconds, and the same run again from the same seed. Monotonic
//! time needs no place here: everything in this crate reads tokio's clock, which such a test drives.

use std::net::UdpSocket;
use std::sync::Arc;
use std::{fmt, io};

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
use starling_core::time::WallTime;

use crate::disk::wall_now;

/// See the module.
#[derive(Clone)]
pub struct Ground {
    /// Carries the datagrams; `None` opens a UDP socket of the system.
    pub socket: Option<Arc<dyn AsyncUdpSocket>>,
    /// The wall clock.
    pub wall: fn() -> WallTime,
    /// Seeds QUIC's random choices (connection ids, skipped packet numbers), but no key of TLS. `None`: the system's.
    pub quic_seed: Option<[u8; 32]>,
}

impl Default for Ground {
    fn default() -> Self {
        Self { socket: None, wall: wall_now, quic_seed: None }
    }
}

impl Ground {
    /// Real ground, with a UDP socket that is open already. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What the system says of the socket.
    pub fn with_socket(socket: UdpSocket) -> io::Result<Self> {
        Ok(Self { socket: Some(TokioRuntime.wrap_udp_socket(socket)?), ..Self::default() })
    }
}

impl fmt::Debug for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ground").field("socket", &self.socket).field("quic_seed", &self.quic_seed).finish()
    }
}
