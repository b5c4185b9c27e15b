//! A node's sockets, open before it begins and after it ends: handed from one program to the next, so that nobody who
//! connects in between is refused. They come the way systemd passes them (`LISTEN_FDS`, sd_listen_fds(3)), whether systemd
//! opened them, or the program that ran before in this very process.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};
use listenfd::ListenFd;
use serde::{Deserialize, Serialize};

/// The first descriptor that is passed.
const FIRST: i32 = 3;
/// What the program before tells, beside the sockets.
const TOLD: &str = "STARLING_HANDED_OVER";
/// The names of the sockets; in a socket unit of systemd: `FileDescriptorName=`.
const NAMES: [&str; 3] = ["quic", "api", "proxy"];

/// Sockets that are open already; those that are not are opened as the settings say.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For peers.
    pub quic: Option<UdpSocket>,
    /// For people and programs that ask.
    pub api: Option<TcpListener>,
    /// For the applications of the host.
    pub proxy: Option<TcpListener>,
    /// What the program before knew.
    pub told: Option<Told>,
}

/// What the next program should know before it takes anything: with an empty picture it would refuse what the one before
/// could carry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// How many records the store had.
    pub records: u64,
    /// Where living peers are: seeds beside those of the settings.
    pub peers: Vec<String>,
}

impl Sockets {
    /// Those this process was given by whoever started it; none, for most.
    pub fn inherited() -> Self {
        let mut sockets = Self::default();
        let mut given = ListenFd::from_env();
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        for at in 0..given.len() {
            let name = names.get(at).copied().unwrap_or("unnamed");
            let taken = match name {
                "quic" => given.take_udp_socket(at).map(|socket| sockets.quic = socket),
                "api" => given.take_tcp_listener(at).map(|listener| sockets.api = listener),
                "proxy" => given.take_tcp_listener(at).map(|listener| sockets.proxy = listener),
                _ => Err(io::Error::other(format!("its name is none of {}", NAMES.join(", ")))),
            };
            if let Err(error) = taken {
                tracing::warn!("socket {name} that was passed to this process is not used: {error}");
            }
        }
        sockets.told = std::env::var(TOLD).ok().and_then(|text| serde_json::from_str(&text).ok());
        sockets
    }

    /// Takes an inherited listener if it listens where it should, else opens one.
    pub(crate) fn listener(
        inherited: Option<TcpListener>,
        address: SocketAddr,
        open: impl FnOnce(SocketAddr) -> io::Result<TcpListener>,
    ) -> io::Result<TcpListener> {
        let fits = |listener: &TcpListener| listener.local_addr().is_ok_and(|local| is_meant(local, address));
        let listener = inherited.filter(fits).map_or_else(|| open(address), Ok)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// The same for the socket of the peers.
    pub(crate) fn socket(
        inherited: Option<UdpSocket>,
        address: SocketAddr,
        open: impl FnOnce(SocketAddr) -> io::Result<UdpSocket>,
    ) -> io::Result<UdpSocket> {
        let fits = |socket: &UdpSocket| socket.local_addr().is_ok_and(|local| is_meant(local, address));
        inherited.filter(fits).map_or_else(|| open(address), Ok)
    }

    /// Becomes another program, which inherits these sockets. Returns only when that fails.
    pub fn exec(self, program: &Path, arguments: impl IntoIterator<Item = std::ffi::OsString>) -> io::Error {
        let open: [Option<OwnedFd>; 3] =
            [self.quic.map(OwnedFd::from), self.api.map(OwnedFd::from), self.proxy.map(OwnedFd::from)];
        let (names, open): (Vec<&str>, Vec<OwnedFd>) =
            NAMES.into_iter().zip(open).filter_map(|(name, fd)| Some((name, fd?))).unzip();
        let count = open.len();
        let mapped = (FIRST..).zip(open).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd }).collect();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("LISTEN_FDS", count.to_string())
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env(TOLD, serde_json::to_string(&self.told.unwrap_or_default()).unwrap_or_default());
        match command.fd_mappings(mapped) {
            Ok(command) => command.exec(),
            Err(error) => io::Error::other(error),
        }
    }
}

/// Whether a socket is the one the settings mean; port 0 means any.
fn is_meant(local: SocketAddr, set: SocketAddr) -> bool {
    local.ip() == set.ip() && (set.port() == 0 || local.port() == set.port())
}
