//! Starling's data plane: it carries requests by what the view says.
//!
//! It reads the view, opens tunnels through the node, and keeps spans and counters. It knows nothing of the store,
//! gossip, certificates or the control API; whom to send to and what to protect from is decided in `starling_core`
//! (`route`, `balance`, `guard`), purely.
//!
//! ```text
//! app --HTTP--> outbound -> stack -> exchange --tunnel--> inbound -> exchange --HTTP--> app
//!                                       '-----TCP, instance on this host or on one without a node-----^
//! ```
//!
//! Requests are carried by threads of their own (`workers`), one a core: control work never delays a request, and a
//! request never crosses a thread. One task carries a request from its first byte to its last, over both connections.
//!
//! | Room | What it does |
//! |---|---|
//! | `stack` | what happens to a request, in order: read this first |
//! | `outbound`, `inbound`, `serve` | the listener for applications, tunnels from other nodes, one connection |
//! | `bound`, `connect`, `tcp` | ports that lead to one service each; ways asked for by CONNECT; bytes to a service |
//! | `redirect` | connections meant for somebody else that the kernel brought here |
//! | `detect` | what a client speaks, told from its first bytes |
//! | `attempts` | when a request is sent once more, or to several at once |
//! | `client`, `exchange`, `relay`, `pool`, `tapped` | a request on its way; one attempt; a response on its way; connections to instances; those with something in the way |
//! | `h1`, `reason` | HTTP/1.1 as a proxy needs it; the sidecar's own answers |
//! | `tls` | applications that encrypt |
//! | `lesson` | what an attempt says of its instance, and when that is known |
//! | `grpc` | who speaks it, how long they wait, what an outcome is called there |
//! | `http2`, `rewound` | HTTP/2 and gRPC at both ends, as the HTTP/1.1 all other rooms speak; bytes that were looked at |
//! | `checking` | how instances are that breakers have taken out |
//! | `access` | who calls, and whether they may |
//! | `guards`, `guarded`, `throttle` | what a request passes before it goes anywhere: the list of guards; copies and fallbacks |
//! | `last_good` | answers that are kept to stand in when there are none |
//! | `failback` | requests that are kept on disk and sent later |
//! | `keys` | requests with idempotency keys, at the instance's side |
//! | `directory`, `policies` | what is remembered of each service: candidates, budget, counters; its policy in force |
//! | `quotas` | the mesh's quotas, between guards and heart |
//! | `system` | this host's own guard, which comes before all others, and what it reads of load and CPU |
//! | `trace`, `metrics`, `report`, `clock` | what can be seen; the rim's clock and dice |
//! | [`mesh`] | the node, as far as it is needed here |

mod access;
mod attempts;
mod bound;
mod checking;
mod client;
mod clock;
mod connect;
mod detect;
mod directory;
mod exchange;
mod failback;
mod grpc;
mod guarded;
mod guards;
mod h1;
mod http2;
mod inbound;
mod keys;
mod last_good;
mod lesson;
pub mod mesh;
mod metrics;
mod outbound;
mod policies;
mod pool;
mod quotas;
mod reason;
mod redirect;
mod relay;
mod report;
mod rewound;
mod serve;
mod settings;
mod stack;
mod system;
mod tapped;
mod tcp;
mod throttle;
mod tls;
mod trace;
mod workers;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use bound::BoundPort;
pub use h1::forwarded::Forwarded;
pub use http2::Http2Settings;
pub use outbound::{Listeners, Place, listen};
pub use redirect::RedirectUnknown;
pub use settings::ProxySettings;
use starling_core::id::ServiceKey;
use starling_core::observe::MetricSource;
use starling_core::policy::Governor;
use starling_net::{Handle, IncomingTunnel};
pub use tls::{AppTls, ProxyTlsSettings};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::clock::Clock;
use crate::directory::Directory;
use crate::failback::Failback;
use crate::mesh::{Arrival, Knock, Mesh};
use crate::metrics::Connections;
use crate::outbound::Gate;
use crate::policies::Ground;
use crate::pool::{Counted, Gauge};
use crate::redirect::Redirect;
use crate::serve::{Entrance, Lifetime, Phase};
use crate::stack::Carrier;
use crate::system::Host;
use crate::workers::Crew;

/// The most connections that wait for one worker to begin with them.
const DEALT: usize = 256;

/// How long the workers may take to say good-bye to other nodes and to end.
const THREADS_END: Duration = Duration::from_secs(5);

/// Why the data plane could not start; nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is out of its range.
    #[error("proxy settings: {0}")]
    Settings(String),
    /// The listener could not be opened.
    #[error("cannot listen for applications on {address}: {error}; is another node running here? set proxy.listen")]
    Listen {
        /// The address, as set.
        address: SocketAddr,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The port of a service could not be opened.
    #[error("cannot listen on {port}: {error}; change `listen` of that [[upstream]], or end who listens there")]
    Bound {
        /// The port.
        port: BoundPort,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The listener for redirected connections could not be opened.
    #[error("cannot listen for redirected connections on {address}: {error}; change proxy.redirect_listen")]
    Redirected {
        /// The address, as set.
        address: SocketAddr,
        /// The system's reason.
        error: std::io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a worker: {0}")]
    Worker(io::Error),
}

/// A running data plane. Dropping it drops every connection; [`Proxy::drain`] lets them finish.
pub struct Proxy {
    local_addr: SocketAddr,
    bound: Vec<(ServiceKey, SocketAddr)>,
    redirected: Option<SocketAddr>,
    carrier: Arc<Carrier>,
    phase: watch::Sender<Phase>,
    /// Closed when no task is left.
    alive: mpsc::Receiver<Infallible>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Proxy {
    /// Listens for applications and takes tunnels from other nodes. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        settings: ProxySettings,
        handle: Handle,
        tunnels: mpsc::Receiver<IncomingTunnel>,
    ) -> Result<Proxy, StartError> {
        Self::start_in(settings, Arc::new(handle), tunnels).await
    }

    /// The same in any mesh, for tests and for those who bring their own links.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_in<T: Knock>(
        settings: ProxySettings,
        mesh: Arc<dyn Mesh>,
        tunnels: mpsc::Receiver<T>,
    ) -> Result<Proxy, StartError> {
        let listeners = Listeners::open(&settings)?;
        Self::start_on(listeners, settings, mesh, tunnels).await
    }

    /// The same on listeners that are open already.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_on<T: Knock>(
        open: Listeners,
        settings: ProxySettings,
        mesh: Arc<dyn Mesh>,
        tunnels: mpsc::Receiver<T>,
    ) -> Result<Proxy, StartError> {
        settings.check().map_err(StartError::Settings)?;
        let local = |listener: &std::net::TcpListener, place: Place<'_>| {
            listener.local_addr().map_err(|error| place.failed(error))
        };
        let local_addr = local(&open.apps, Place::Apps(settings.listen))?;
        let tunnel_places = Arc::new(Semaphore::new(settings.max_tunnels));
        let mut entrances = BTreeMap::from([(local_addr, Entrance::Any)]);
        let mut listeners = vec![(open.apps, Gate::Entrance(Entrance::Any))];
        let mut bound = Vec::new();
        for (port, listener) in settings.upstreams.iter().zip(open.upstreams) {
            let address = local(&listener, Place::Upstream(port))?;
            let entrance = Entrance::Bound(Arc::new(port.clone()));
            bound.push((port.service.clone(), address));
            entrances.insert(address, entrance.clone());
            listeners.push((listener, Gate::Entrance(entrance)));
        }
        let mut redirected = None;
        if let (Some(address), Some(listener)) = (settings.redirect_listen, open.redirected) {
            redirected = Some(local(&listener, Place::Redirected(address))?);
            listeners.push((listener, Gate::Redirected));
        }
        let tls = AppTls::new(&settings.tls).map_err(StartError::Settings)?;
        let clock = Clock::start();
        let ground = Ground::new(&settings, clock).map_err(StartError::Settings)?;
        let (alive_held, alive) = mpsc::channel(1);
        let failback = Failback::open(settings.data_dir.clone(), clock).await.map_err(StartError::Worker)?;
        let carrier = Arc::new_cyclic(|own| Carrier {
            own: own.clone(),
            alive: alive_held.downgrade(),
            tls,
            identity: settings.identity(),
            mesh,
            clock,
            directory: Directory::new(),
            ground,
            host: Host::new(&settings.system, clock),
            redirect: redirected.map(|_| Redirect::new(entrances)),
            settings,
            connections: Connections::default(),
            tunnel_places,
            ejected: Notify::new(),
            answered: Semaphore::new(checking::MAX_ANSWERED),
            failback,
        });
        let (phase, phase_seen) = watch::channel(Phase::Running);
        let lifetime = Lifetime::new(phase_seen, alive_held);
        let places = Arc::new(Semaphore::new(carrier.settings.max_connections));
        let count = if carrier.settings.workers == 0 { workers::usual() } else { carrier.settings.workers };
        let crew = Crew::start(count, DEALT, || {
            let (carrier, places, lifetime, phase) =
                (carrier.clone(), places.clone(), lifetime.clone(), phase.subscribe());
            move |jobs, load| work(carrier, places, jobs, load, lifetime, phase)
        });
        let mut crew = crew.map_err(StartError::Worker)?;
        let threads = crew.take_threads();
        let crew = Arc::new(crew);
        for (listener, gate) in listeners {
            crew.tell(0, Job::Listen(listener, gate, crew.clone())).await;
        }
        tokio::spawn(inbound::run(carrier.clone(), tunnels, crew, lifetime.clone()));
        tokio::spawn(quotas::run(carrier.clone(), lifetime.clone()));
        tokio::spawn(system::run(carrier.clone(), lifetime.clone()));
        tokio::spawn(checking::run(carrier.clone(), lifetime.clone()));
        tokio::spawn(failback::run(carrier.clone(), lifetime.clone()));
        tokio::spawn(sweep(carrier.clone(), lifetime));
        Ok(Proxy { local_addr, bound, redirected, carrier, phase, alive, threads })
    }

    /// Where applications reach it.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The ports that lead to one service each, in the order of the settings.
    pub fn bound(&self) -> &[(ServiceKey, SocketAddr)] {
        &self.bound
    }

    /// Where redirected connections are taken, if any are.
    pub fn redirected(&self) -> Option<SocketAddr> {
        self.redirected
    }

    /// TLS for applications, if it is spoken: to renew its certificate.
    pub fn tls(&self) -> Option<Arc<AppTls>> {
        self.carrier.tls.clone()
    }

    /// Its metrics.
    pub fn metrics(&self) -> Arc<dyn MetricSource> {
        self.carrier.clone()
    }

    /// Who puts policies into force here.
    pub fn governor(&self) -> Arc<dyn Governor> {
        self.carrier.clone()
    }

    /// Goes on as before, but closes connections: each with the answer to its next request, which says so, and those that
    /// bring none within a second. What comes meanwhile is served. [`Proxy::drain`] is to follow.
    pub fn leave(&self) {
        self.phase.send_replace(Phase::Leaving);
    }

    /// Takes nothing new, lets requests in flight finish for up to `within`, then drops the rest. Says whether all
    /// finished.
    pub async fn drain(mut self, within: Duration) -> bool {
        self.phase.send_replace(Phase::Draining);
        let finished = tokio::time::timeout(within, self.alive.recv()).await.is_ok();
        self.phase.send_replace(Phase::Stopped);
        // Their sockets are closed when they have ended, and not before.
        let ending = tokio::task::spawn_blocking(move || {
            self.threads.into_iter().for_each(|thread| _ = thread.join());
            self.carrier.failback.close();
        });
        if tokio::time::timeout(THREADS_END, ending).await.is_err() {
            tracing::warn!("threads that carry requests have not ended within {} s", THREADS_END.as_secs());
        }
        finished
    }
}

/// What is given to a worker.
pub(crate) enum Job {
    /// Accept connections here, for all workers.
    Listen(std::net::TcpListener, Gate, Arc<Crew<Job>>),
    /// Serve an application's connection.
    Application(std::net::TcpStream, Gate, OwnedSemaphorePermit, Counted),
    /// Serve a tunnel.
    Tunnel(Arrival, OwnedSemaphorePermit, Counted),
}

/// What one worker does until the proxy stops, or has drained and nothing is left to do.
async fn work(
    carrier: Arc<Carrier>,
    places: Arc<Semaphore>,
    mut jobs: mpsc::Receiver<Job>,
    load: Arc<Gauge>,
    lifetime: Lifetime,
    mut phase: watch::Receiver<Phase>,
) {
    let lane = carrier.mesh.open_lane(DEALT).map(|(lane, tunnels)| {
        tokio::spawn(inbound::run_lane(carrier.clone(), tunnels, load, lifetime.clone()));
        lane
    });
    let working = async move {
        while let Some(job) = jobs.recv().await {
            let (carrier, lifetime) = (carrier.clone(), lifetime.clone());
            match job {
                Job::Listen(listener, gate, crew) => {
                    tokio::spawn(outbound::run(carrier, listener, gate, crew, places.clone(), lifetime));
                }
                Job::Application(stream, gate, place, share) => {
                    outbound::serve_dealt(carrier, stream, gate, (place, share), lifetime);
                }
                Job::Tunnel(arrival, place, share) => inbound::serve_dealt(carrier, arrival, (place, share), lifetime),
            }
        }
    };
    tokio::spawn(working);
    serve::reached(&mut phase, Phase::Stopped).await;
    if let Some(lane) = lane {
        lane.close().await;
    }
}

/// Closes connections that have been idle for too long and forgets services that are gone.
async fn sweep(carrier: Arc<Carrier>, mut lifetime: Lifetime) {
    let idle_timeout = carrier.settings.idle_timeout();
    loop {
        tokio::select! {
            () = tokio::time::sleep(idle_timeout / 2) => {}
            () = lifetime.draining() => return,
        }
        carrier.directory.sweep(&carrier.mesh.view(), idle_timeout, carrier.clock.now());
    }
}
