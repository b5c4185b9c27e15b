//! The listeners applications of this host connect to.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bound::BoundPort;
use crate::h1::forwarded::{Forwarded, Peer};
use crate::pool::{Counted, Gauge};
use crate::redirect;
use crate::serve::{Door, Entrance, Lifetime, serve};
use crate::settings::ProxySettings;
use crate::stack::Carrier;
use crate::workers::Crew;
use crate::{Job, StartError};

/// Pause after a failed accept: it is nearly always a lack of file descriptors, which only time mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many connections wait in the kernel to be accepted; Linux allows no more by default (`net.core.somaxconn`).
const BACKLOG: u32 = 4_096;

/// What a listener is for.
#[derive(Debug, Clone)]
pub(crate) enum Gate {
    /// Applications that connect to it.
    Entrance(Entrance),
    /// Those that want to go elsewhere, and are redirected to it.
    Redirected,
}

/// All listeners of a data plane; none of them blocks.
#[derive(Debug)]
pub struct Listeners {
    /// For applications, on `listen` of the settings.
    pub apps: std::net::TcpListener,
    /// For each of the settings' `upstreams`, in their order.
    pub upstreams: Vec<std::net::TcpListener>,
    /// For redirected connections, if `redirect_listen` is set.
    pub redirected: Option<std::net::TcpListener>,
}

impl Listeners {
    /// Opens all that the settings name.
    ///
    /// # Errors
    /// Which could not be opened, and why.
    pub fn open(settings: &ProxySettings) -> Result<Self, StartError> {
        Self::open_by(settings, |place| listen(place.address()))
    }

    /// The same by a way of one's own, which may know some that are open already.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_by(
        settings: &ProxySettings,
        mut open: impl FnMut(Place<'_>) -> io::Result<std::net::TcpListener>,
    ) -> Result<Self, StartError> {
        let mut open = |place: Place<'_>| open(place).map_err(|error| place.failed(error));
        let upstreams = settings.upstreams.iter().map(Place::Upstream);
        Ok(Self {
            apps: open(Place::Apps(settings.listen))?,
            upstreams: upstreams.map(&mut open).collect::<Result<_, _>>()?,
            redirected: settings.redirect_listen.map(|address| open(Place::Redirected(address))).transpose()?,
        })
    }
}

/// One of a data plane's listeners, by what it is for.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Applications, at this address.
    Apps(SocketAddr),
    /// Those that want one service.
    Upstream(&'a BoundPort),
    /// Redirected connections, at this address.
    Redirected(SocketAddr),
}

impl Place<'_> {
    /// Where the settings say it is; port 0 is any.
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Apps(address) | Self::Redirected(address) => address,
            Self::Upstream(port) => port.listen,
        }
    }

    /// What it means that there is no listener.
    pub(crate) fn failed(self, error: io::Error) -> StartError {
        match self {
            Self::Apps(address) => StartError::Listen { address, error },
            Self::Upstream(port) => StartError::Bound { port: port.clone(), error },
            Self::Redirected(address) => StartError::Redirected { address, error },
        }
    }
}

/// Opens a listener for applications, which does not block.
///
/// # Errors
/// What the system says.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Accepts connections and deals them to the workers until the proxy drains; what waits in the kernel by then is taken.
pub(crate) async fn run(
    carrier: Arc<Carrier>,
    listener: std::net::TcpListener,
    gate: Gate,
    crew: Arc<Crew<Job>>,
    places: Arc<Semaphore>,
    mut lifetime: Lifetime,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a worker cannot listen"),
    };
    loop {
        let accepted = tokio::select! {
            // Asked first: while connections keep coming, the end would never be heard of.
            biased;
            () = lifetime.draining() => break,
            accepted = accept(&carrier, &listener, &places) => accepted,
        };
        // Not within the choice: what has been accepted must not be dropped while a worker's queue is full.
        if let Some((stream, place)) = accepted {
            deal(&crew, stream, &gate, place).await;
        }
    }
    // The system is asked, not what is known of its readiness: the last to come would be reset.
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..BACKLOG {
        let Ok(place) = places.clone().try_acquire_owned() else { return };
        let Ok((stream, _)) = listener.accept() else { return };
        if stream.set_nonblocking(true).is_ok() {
            deal(&crew, stream, &gate, place).await;
        }
    }
}

async fn accept(
    carrier: &Carrier,
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(std::net::TcpStream, OwnedSemaphorePermit)> {
    if places.available_permits() == 0 {
        carrier.connections.accepts_delayed.fetch_add(1, Relaxed);
    }
    // The semaphore is never closed.
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        // Fails only on a socket that is broken already.
        Ok((stream, _)) => Some((stream.into_std().ok()?, place)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn deal(crew: &Crew<Job>, stream: std::net::TcpStream, gate: &Gate, place: OwnedSemaphorePermit) {
    // Without workers there is no proxy any more.
    let Some(dealt) = crew.place().await else { return };
    dealt.queue.send(Job::Application(stream, gate.clone(), place, dealt.share));
}

/// Serves what [`run`] has dealt to this worker.
pub(crate) fn serve_dealt(
    carrier: Arc<Carrier>,
    stream: std::net::TcpStream,
    gate: Gate,
    held: (OwnedSemaphorePermit, Counted),
    lifetime: Lifetime,
) {
    // Both fail only on a socket that is broken already.
    let _ = stream.set_nodelay(true);
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let is_told = carrier.settings.forwarded != Forwarded::Off || !carrier.settings.forwarded_keep;
    let peer =
        if is_told { stream.peer_addr().ok().map(|peer| Peer { ip: peer.ip(), encrypted: false }) } else { None };
    let held = (held, Gauge::count(&carrier.connections.outbound));
    // Two kinds of tasks, so that the common one is no larger for the other.
    match gate {
        Gate::Entrance(entrance) => tokio::spawn(async move {
            let _held = held;
            serve(stream, peer, &carrier, Door::Application(entrance), lifetime).await;
        }),
        Gate::Redirected => tokio::spawn(async move {
            let _held = held;
            redirect::serve(stream, peer, &carrier, lifetime).await;
        }),
    };
}
