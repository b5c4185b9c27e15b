//! A whole node in one process: links, heart, sidecar and API, started and stopped in the right order.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use starling_api::Api;
use starling_core::id::{CellName, InstanceKey, ServiceKey};
use starling_core::observe::MetricSource;
use starling_core::registry::Registration;
use starling_core::view::{MemberState, MemberView, View};
use starling_core::{Command, Refusal};
use starling_net::identity::IdentityError;
use starling_net::quic::BindError;
use starling_net::{CommandError, DiskError, Ground, Handle, Identity, NetSettings, Running};
use starling_proxy::{Proxy, ProxySettings};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::certificates::{Files, Renewing};
use crate::settings::{NodeSettings, Seed, Settings, dev_dir};
use crate::sockets::{Sockets, Told};

/// How long the good-bye to the peers may take, after everything else has ended.
const GOODBYE: Duration = Duration::from_secs(2);

/// How long a node that has said good-bye goes on as before: whoever chose its instances a moment ago is on the way, and
/// some hundreds of milliseconds are the way of the good-bye itself to far cells.
const GOODBYE_HEARD: Duration = Duration::from_millis(300);

/// How long a node that hands its sockets over goes on accepting while connections are told to end: as long as the
/// sidecar keeps them for a last request, and a little.
const HANDING_OVER: Duration = Duration::from_millis(1_100);
/// How long a node that was handed sockets waits for its picture before it takes anything by them. Whoever connects
/// meanwhile waits; an empty picture would be a wrong answer.
const CATCHING_UP: Duration = Duration::from_secs(3);
/// At how many living peers the next program may ask for the others.
const PEERS_TOLD: usize = 8;

/// A running node. When it is dropped, it ends as if it had crashed; [`Node::stop`] ends it politely.
pub struct Node {
    running: Running,
    addresses: Addresses,
    ready: Arc<AtomicBool>,
    proxy: Proxy,
    drain: Duration,
    api: RunningApi,
    /// Copies of its sockets, to be handed over.
    sockets: Sockets,
    _renewing: Renewing,
}

struct RunningApi {
    /// Until it has ended.
    task: Option<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl RunningApi {
    fn start(api: Api) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(api.serve(async move {
            // The sender's end is as good a reason to stop as its word.
            let _ = stopped.wait_for(|stop| *stop).await;
        }));
        Self { task: Some(task), stop }
    }

    /// Lets requests in flight finish.
    async fn end(&mut self) {
        self.stop.send_replace(true);
        let Some(task) = self.task.take() else { return };
        if let Err(error) = task.await {
            tracing::error!("the API had failed: {error}");
        }
    }
}

/// Where a node can be reached, with the ports the system chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Addresses {
    /// By its peers (UDP).
    pub quic: SocketAddr,
    /// By people and programs that ask it (HTTP).
    pub api: SocketAddr,
    /// By the applications on its host (HTTP).
    pub proxy: SocketAddr,
    /// By connections that are redirected to it, if it takes any.
    pub redirect: Option<SocketAddr>,
}

/// Why a node did not start; nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It has no certificate, and nobody said it may do without.
    #[error(
        "node {node} has no certificate. Make one, and name its files in the settings under [tls]:\n\
         \x20 starling ca init --mesh {mesh} --dir ca\n\
         \x20 starling ca issue {node} --dir ca\n\
         To try Starling on this host only, without certificates of your own: starling node --dev"
    )]
    NoCertificate {
        /// The node.
        node: String,
        /// Its mesh.
        mesh: String,
    },
    /// Its certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Settings that are well-formed but contradict each other or the certificate.
    #[error("{0}")]
    Settings(String),
    /// The talking part did not start.
    #[error(transparent)]
    Net(#[from] starling_net::StartError),
    /// The API did not start.
    #[error(transparent)]
    Api(#[from] starling_api::BindError),
    /// The sidecar did not start.
    #[error(transparent)]
    Proxy(#[from] starling_proxy::StartError),
    /// A declared service was refused.
    #[error("declared service {key}: {error}")]
    Service {
        /// The instance.
        key: InstanceKey,
        /// Why.
        error: CommandError,
    },
}

impl StartError {
    /// Whether another process of this host holds what this node needs: an address, or the data directory.
    pub fn is_taken(&self) -> bool {
        let taken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
        match self {
            Self::Net(starling_net::StartError::Disk(DiskError::InUse { .. })) => true,
            Self::Net(starling_net::StartError::Bind(BindError::Socket { error, .. })) => taken(error),
            Self::Api(starling_api::BindError::Listen { source, .. }) => taken(source),
            Self::Proxy(starling_proxy::StartError::Listen { error, .. }) => taken(error),
            Self::Proxy(starling_proxy::StartError::Bound { error, .. }) => taken(error),
            Self::Proxy(starling_proxy::StartError::Redirected { error, .. }) => taken(error),
            _ => false,
        }
    }
}

impl Node {
    /// Starts a node: peers are found in the background, everything else is in place when this returns.
    ///
    /// # Errors
    /// [`StartError`] says what to change; nothing is left running.
    pub async fn start(settings: Settings) -> Result<Node, StartError> {
        Self::start_on(settings, Sockets::default()).await
    }

    /// The same on sockets that are open already.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_on(mut settings: Settings, mut sockets: Sockets) -> Result<Node, StartError> {
        let told_peers = sockets.told.iter().flat_map(|told| told.peers.iter().cloned());
        settings.members.seeds.extend(told_peers);
        let declared = settings.registrations().map_err(|errors| StartError::Settings(errors.join("\n")))?;
        let files = Files::of(&settings);
        let identity = identity(&settings)?;
        let advertise = advertised(&settings.node).await?;
        let net = NetSettings {
            listen: settings.node.listen,
            advertise,
            data_dir: Some(settings.node.data_dir.clone()),
            region: settings.node.region.clone(),
            cell: settings.node.cell.clone(),
            members: settings.members.clone(),
            links: settings.links.clone(),
            node: settings.gossip.clone(),
            ..NetSettings::default()
        };
        let listen = settings.node.listen;
        let failed = |error| BindError::Socket { address: listen, error };
        let open = |address| starling_net::quic::socket(address, &settings.links);
        let quic = Sockets::socket(sockets.quic.take(), listen, open)
            .map_err(failed)
            .map_err(starling_net::StartError::from)?;
        let ground =
            quic.try_clone().and_then(Ground::with_socket).map_err(failed).map_err(starling_net::StartError::from)?;
        let mut running = starling_net::start_on(&identity, net, ground).await?;
        if let Some(told) = &sockets.told {
            catch_up(&running.handle, told).await;
        }
        let ready = Arc::new(AtomicBool::new(false));
        let (proxy, api, kept) = match listeners(&settings, &mut running, &ready, sockets).await {
            Ok(listeners) => listeners,
            Err(error) => {
                running.stop(GOODBYE).await;
                return Err(error);
            }
        };
        let addresses = Addresses {
            quic: running.local_addr,
            api: api.local_addr(),
            proxy: proxy.local_addr(),
            redirect: proxy.redirected(),
        };
        let api = RunningApi::start(api);
        let sockets = Sockets { quic: Some(quic), ..kept };
        let drain = settings.node.drain_timeout.0;
        let _renewing = files.watch(settings.clone(), running.handle.clone(), proxy.tls());
        let node = Node { running, addresses, ready, proxy, drain, api, sockets, _renewing };
        if let Err(error) = declare(node.handle(), declared).await {
            node.stop().await;
            return Err(error);
        }
        node.ready.store(true, Ordering::Release);
        node.introduce(&settings);
        Ok(node)
    }

    /// What the rest of the process works with.
    pub fn handle(&self) -> &Handle {
        &self.running.handle
    }

    /// Where it can be reached.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its ports that lead to one service each, in the order of the settings.
    pub fn upstreams(&self) -> &[(ServiceKey, SocketAddr)] {
        self.proxy.bound()
    }

    /// Returns when the node has ended by itself, which it never should: the log says what happened.
    pub async fn ended(&self) {
        self.running.ended().await;
    }

    /// Stops politely: not ready, gone from the registry everywhere at once; what still comes by those who have not heard of
    /// that is served; then nothing new is taken, requests in flight finish (up to `node.drain_timeout`), links close.
    pub async fn stop(mut self) {
        // With copies of its listeners open, the system would go on taking connections for nobody.
        self.sockets = Sockets::default();
        self.end(GOODBYE_HEARD).await;
    }

    /// The same, but nobody who connects is refused: the sockets stay open, for the next program.
    pub async fn hand_over(mut self) -> Sockets {
        let upstreams = self.upstreams().to_vec();
        // While this node still takes writes: what comes later is for the next program to answer.
        self.api.end().await;
        let told = Told { upstreams, ..told(&self.handle().view()) };
        Sockets { told: Some(told), ..self.end(HANDING_OVER).await }
    }

    async fn end(mut self, leaving: Duration) -> Sockets {
        self.ready.store(false, Ordering::Release);
        match self.handle().command(Command::Leave).await {
            Ok(_) | Err(CommandError::Refused(Refusal::Leaving)) => {}
            Err(error) => tracing::warn!("stopping without a good-bye: {error}"),
        }
        self.proxy.leave();
        if self.has_peers() || leaving > GOODBYE_HEARD {
            tokio::time::sleep(leaving.min(self.drain)).await;
        }
        if !self.proxy.drain(self.drain).await {
            tracing::warn!("requests were still in flight after {} ms and were cut off", self.drain.as_millis());
        }
        self.api.end().await;
        self.running.stop(GOODBYE).await;
        self.sockets
    }

    fn has_peers(&self) -> bool {
        let view = self.handle().view();
        let is_other = |member: &MemberView| member.state == MemberState::Alive && member.node != view.me;
        view.members.values().any(|member| is_other(member))
    }

    /// The first lines a person wants to see.
    fn introduce(&self, settings: &Settings) {
        let node = &settings.node;
        let dev = if settings.dev { "; throw-away certificates, loopback only" } else { "" };
        let cell = if node.cell == CellName::default() { String::new() } else { format!(" of cell {}", node.cell) };
        tracing::info!("node {} of mesh {} is up in zone {}{cell}{dev}", node.name, node.mesh, node.zone);
        let seeds: Vec<&str> = node.seeds.iter().map(Seed::as_str).collect();
        let asks = if seeds.is_empty() {
            "waits for others to join".to_owned()
        } else {
            format!("joins {}", seeds.join(", "))
        };
        tracing::info!("  peers  QUIC on {}, {asks}", self.addresses.quic);
        tracing::info!(
            "  apps   http_proxy=http://{}; services are http://NAME.{}/",
            self.addresses.proxy,
            settings.proxy.suffix
        );
        for (service, listen) in self.upstreams() {
            tracing::info!("  port   {listen} leads to {service}");
        }
        if let Some(listen) = self.proxy.redirected() {
            tracing::info!("  port   {listen} takes redirected connections");
        }
        tracing::info!("  API    http://{}; try: starling --peer {} status", self.addresses.api, self.addresses.api);
    }
}

/// The sidecar and the API, listening. The API's port answers from here on; it is not ready yet.
async fn listeners(
    settings: &Settings,
    running: &mut Running,
    ready: &Arc<AtomicBool>,
    mut inherited: Sockets,
) -> Result<(Proxy, Api, Sockets), StartError> {
    let address = settings.proxy.listen;
    let failed = |error| starling_proxy::StartError::Listen { address, error };
    let for_apps = inherited.listeners(&settings.proxy)?;
    let kept = Sockets::copies(&for_apps).map_err(failed)?;
    let address = settings.api.listen;
    let failed = |source| starling_api::BindError::Listen { address, source };
    let for_people = Sockets::listener(inherited.api.take(), address, TcpListener::bind).map_err(failed)?;
    let kept_api = for_people.try_clone().map_err(failed)?;
    let tunnels = running.tunnels.take().expect("nobody has taken the tunnels of a node that was just started");
    let for_proxy = ProxySettings { data_dir: Some(settings.node.data_dir.clone()), ..settings.proxy.clone() };
    let proxy = Proxy::start_on(for_apps, for_proxy, Arc::new(running.handle.clone()), tunnels).await?;
    running.handle.govern(proxy.governor());
    let metrics: Vec<Arc<dyn MetricSource>> = vec![Arc::new(running.handle.clone()), proxy.metrics()];
    let api = Api::on(for_people, settings.api.clone(), running.handle.clone(), metrics, ready.clone())?;
    Ok((proxy, api, Sockets { api: Some(kept_api), ..kept }))
}

/// What the next program is told of this one's picture.
fn told(view: &View) -> Told {
    let others = view.members.values().filter(|member| member.state == MemberState::Alive && member.node != view.me);
    let peers = others.map(|member| member.facts.address.clone()).filter(|address| !address.is_empty());
    Told { records: view.fingerprint.count, peers: peers.take(PEERS_TOLD).collect(), ..Told::default() }
}

/// Waits until this node knows as much as the program before it did, and a living peer, for a while at most.
async fn catch_up(handle: &Handle, told: &Told) {
    if told.peers.is_empty() {
        return;
    }
    let knows = |view: &View| {
        let is_other = |member: &MemberView| member.state == MemberState::Alive && member.node != view.me;
        view.fingerprint.count >= told.records && view.members.values().any(|member| is_other(member))
    };
    let waiting = async {
        while !knows(&handle.view()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(CATCHING_UP, waiting).await.is_err() {
        tracing::warn!("taking requests without having caught up with the peers, which did not answer in time");
    }
}

/// The identity the settings name, checked against them.
///
/// # Errors
/// [`StartError`] says which file or setting is wrong, and which commands make a certificate.
pub fn identity(settings: &Settings) -> Result<Identity, StartError> {
    let NodeSettings { name, mesh, listen, .. } = &settings.node;
    let tls = &settings.tls;
    let identity = match (&tls.ca, &tls.cert, &tls.key) {
        (Some(ca), Some(cert), Some(key)) => Identity::load_files(ca, cert, key)?,
        (None, None, None) if settings.dev && !listen.ip().is_loopback() => {
            return Err(StartError::Settings(format!(
                "node.listen is {listen}, but with --dev everybody has the authority's key: only loopback addresses are allowed"
            )));
        }
        (None, None, None) if settings.dev => Identity::dev(&dev_dir(), mesh, name)?,
        (None, None, None) => {
            return Err(StartError::NoCertificate { node: name.to_string(), mesh: mesh.to_string() });
        }
        _ => return Err(StartError::Settings("[tls] needs all three of ca, cert and key".into())),
    };
    if identity.node() != name {
        return Err(StartError::Settings(format!(
            "node.name is {name}, but the certificate was issued for {}; change one of them",
            identity.node()
        )));
    }
    if identity.mesh() != mesh {
        return Err(StartError::Settings(format!(
            "node.mesh is {mesh}, but the certificate is of mesh {}; change one of them",
            identity.mesh()
        )));
    }
    Ok(identity)
}

/// Where peers are told to reach this node; `None` when that is simply where it listens.
async fn advertised(node: &NodeSettings) -> Result<Option<SocketAddr>, StartError> {
    if let Some(address) = &node.advertise {
        let mut found = tokio::net::lookup_host(address.as_str())
            .await
            .map_err(|error| StartError::Settings(format!("node.advertise {address} cannot be resolved: {error}")))?;
        return Ok(found.next());
    }
    if !node.listen.ip().is_unspecified() || node.listen.port() == 0 {
        return Ok(None);
    }
    let mut towards = None;
    for seed in &node.seeds {
        towards = tokio::net::lookup_host(seed.as_str()).await.ok().and_then(|mut found| found.next());
        if towards.is_some() {
            break;
        }
    }
    Ok(source_address(towards).map(|ip| SocketAddr::new(ip, node.listen.port())))
}

/// The address of this host on the way to a peer, or on the way out. Connecting a UDP socket sends nothing.
fn source_address(towards: Option<SocketAddr>) -> Option<IpAddr> {
    /// An address reserved for documentation (RFC 5737): the way to it is the way to the world.
    const OUTSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
    let towards = towards.unwrap_or(OUTSIDE);
    let any: SocketAddr = if towards.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().ok()?;
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(towards).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

/// Registers what the settings declare, and takes back what an earlier start declared and these settings no longer do.
async fn declare(handle: &Handle, declared: Vec<Registration>) -> Result<(), StartError> {
    let keys: BTreeSet<&InstanceKey> = declared.iter().map(|registration| &registration.key).collect();
    let view = handle.view();
    let instances = view.services.values().flat_map(|service| service.instances.iter());
    let mine = instances.filter(|found| found.instance.declared && found.stamp().node == *handle.me());
    let stale: Vec<InstanceKey> = mine.map(|found| found.key.clone()).filter(|key| !keys.contains(key)).collect();
    for key in stale {
        tracing::info!("{key} is no longer declared and is deregistered");
        match handle.command(Command::Deregister(key.clone())).await {
            // The next start says it again.
            Ok(_) | Err(CommandError::Unsaved(_)) => {}
            Err(error) => return Err(StartError::Service { key, error }),
        }
    }
    for registration in declared {
        let key = registration.key.clone();
        match handle.command(Command::Register(registration)).await {
            // The settings remember it.
            Ok(_) | Err(CommandError::Unsaved(_)) => {}
            Err(error) => return Err(StartError::Service { key, error }),
        }
    }
    Ok(())
}
