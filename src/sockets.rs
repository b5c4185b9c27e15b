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
use starling_core::id::ServiceKey;
use starling_proxy::{BoundPort, Listeners, Place, ProxySettings};

/// The first descriptor that is passed.
const FIRST: i32 = 3;
/// What the program before tells, beside the sockets.
const TOLD: &str = "STARLING_HANDED_OVER";
/// The names of the sockets; in a socket unit of systemd: `FileDescriptorName=`. There may be several of the last.
const NAMES: [&str; 5] = ["quic", "api", "proxy", "redirect", "upstream"];

/// Sockets that are open already; those that are not are opened as the settings say.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For peers.
    pub quic: Option<UdpSocket>,
    /// For people and programs that ask.
    pub api: Option<TcpListener>,
    /// For the applications of the host.
    pub proxy: Option<TcpListener>,
    /// For redirected connections.
    pub redirect: Option<TcpListener>,
    /// For those that want one service; which one, the settings say.
    pub upstreams: Vec<TcpListener>,
    /// What the program before knew.
    pub told: Option<Told>,
}

/// What the next program should know before it takes anything: with an empty picture it would refuse what the one before
/// could carry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Told {
    /// How many records the store had.
    pub records: u64,
    /// Where living peers are: seeds beside those of the settings.
    pub peers: Vec<String>,
    /// Which service each of its ports led to: where the settings leave the choice of a port to the system, it is found
    /// again by that.
    pub upstreams: Vec<(ServiceKey, SocketAddr)>,
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
                "redirect" => given.take_tcp_listener(at).map(|listener| sockets.redirect = listener),
                "upstream" => given.take_tcp_listener(at).map(|listener| sockets.upstreams.extend(listener)),
                _ => Err(io::Error::other(format!("its name is none of {}", NAMES.join(", ")))),
            };
            if let Err(error) = taken {
                tracing::warn!("socket {name} that was passed to this process is not used: {error}");
            }
        }
        sockets.told = std::env::var(TOLD).ok().and_then(|text| serde_json::from_str(&text).ok());
        sockets
    }

    /// The sidecar's listeners: inherited ones that listen where the settings say, all others are opened. Inherited ones
    /// that nobody wants any more are closed.
    pub(crate) fn listeners(&mut self, settings: &ProxySettings) -> Result<Listeners, starling_proxy::StartError> {
        Listeners::open_by(settings, |place| {
            let inherited = match place {
                Place::Apps(_) => self.proxy.take(),
                Place::Redirected(_) => self.redirect.take(),
                Place::Upstream(port) => self.upstream(port),
            };
            Self::listener(inherited, place.address(), starling_proxy::listen)
        })
    }

    fn upstream(&mut self, port: &BoundPort) -> Option<TcpListener> {
        let told: &[_] = self.told.as_ref().map_or(&[], |told| &told.upstreams);
        let fits = |listener: &TcpListener| {
            let Ok(local) = listener.local_addr() else { return false };
            let led_there = || told.iter().any(|(service, address)| *service == port.service && *address == local);
            is_meant(local, port.listen) && (port.listen.port() != 0 || led_there())
        };
        let found = self.upstreams.iter().position(fits)?;
        Some(self.upstreams.swap_remove(found))
    }

    /// Copies of the sidecar's listeners, to be handed on.
    pub(crate) fn copies(listeners: &Listeners) -> io::Result<Self> {
        Ok(Self {
            proxy: Some(listeners.apps.try_clone()?),
            redirect: listeners.redirected.as_ref().map(TcpListener::try_clone).transpose()?,
            upstreams: listeners.upstreams.iter().map(TcpListener::try_clone).collect::<Result<_, _>>()?,
            ..Self::default()
        })
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
        let [quic, api, proxy, redirect, upstream] = NAMES;
        let listeners = [(api, self.api), (proxy, self.proxy), (redirect, self.redirect)];
        let listeners = listeners.into_iter().filter_map(|(name, listener)| Some((name, listener?)));
        let listeners = listeners.chain(self.upstreams.into_iter().map(|listener| (upstream, listener)));
        let (names, open): (Vec<&str>, Vec<OwnedFd>) = (self.quic.into_iter().map(|socket| (quic, socket.into())))
            .chain(listeners.map(|(name, listener)| (name, listener.into())))
            .unzip();
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
