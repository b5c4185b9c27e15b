//! A running node: disk, heart, links, membership and the loop, put together and taken apart in the right order.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use starling_core::id::{CellName, NodeId, Region};
use starling_core::observe::SpanBuffer;
use starling_core::time::WallTime;
use starling_core::view::NodeFacts;
use starling_core::wire::{Question, Reply};
use starling_core::{Command, Node, Refusal, Settings};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, timeout_at};

use crate::disk::{Disk, DiskError, Opened, Problem};
use crate::driver::{Clocks, Driver, Fulfil, Queues, Wish, World};
use crate::gauges::Gauges;
use crate::ground::Ground;
use crate::handle::{CommandError, Handle, Shared};
use crate::identity::{Identity, Shown};
use crate::member::{MemberError, MemberSettings, Membership};
use crate::probe::Prober;
use crate::quic::{BindError, IncomingTunnel, Limits, Links};

/// The most commands that wait for the loop; the next caller hears "busy". At some 10 us each they are 10 ms of work.
const COMMAND_QUEUE: usize = 1_024;
/// The most probe results that wait; further probes wait with theirs.
const PROBE_QUEUE: usize = 1_024;
/// How long a stopping node waits for its disk beyond the grace it was given: what is acknowledged is there already.
const DISK_GRACE: Duration = Duration::from_secs(5);

/// A log can be damaged in thousands of places; whoever reads the messages needs only the first.
const MAX_PROBLEMS_LOGGED: usize = 100;

/// What an operator can set about a node's talking part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetSettings {
    /// Where to listen for other nodes (UDP). Default 127.0.0.1 with a port the system chooses.
    pub listen: SocketAddr,
    /// Where other nodes reach this one; by default the address it listens on, which then must not be 0.0.0.0 or ::.
    pub advertise: Option<SocketAddr>,
    /// Where to keep what must survive. None: in memory only, for development and tests.
    pub data_dir: Option<PathBuf>,
    /// How many spans are kept (about 300 bytes each). Default 10,000.
    pub span_capacity: usize,
    /// The region its cell stands in. Default "default".
    pub region: Region,
    /// The cell whose members it watches over. Default "default".
    pub cell: CellName,
    /// The seed of the heart's random choices; by default another one at each start.
    pub seed: Option<u64>,
    /// Membership.
    pub members: MemberSettings,
    /// Bounds of the links.
    pub links: Limits,
    /// The heart.
    pub node: Settings,
}

impl Default for NetSettings {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: None,
            data_dir: None,
            span_capacity: 10_000,
            region: Region::default(),
            cell: CellName::default(),
            seed: None,
            members: MemberSettings::default(),
            links: Limits::default(),
            node: Settings::default(),
        }
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its data directory cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It cannot listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// It cannot take part.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// Others could not reach it.
    #[error("listening on {0} does not tell other nodes where to reach this one: set `advertise` to its address")]
    NoAddress(SocketAddr),
}

/// A node that runs; [`Running::stop`] ends it politely. When it is dropped instead, its loop ends without a word.
pub struct Running {
    /// What the rest of the process works with.
    pub handle: Handle,
    /// Tunnels that peers open to instances of this node: for one data plane to take, and to drain. While nobody takes
    /// them they wait, and time out at the peers.
    pub tunnels: Option<mpsc::Receiver<IncomingTunnel>>,
    /// Where it listens for other nodes.
    pub local_addr: SocketAddr,
    /// What was found wrong with its data directory; logged already.
    pub problems: Vec<Problem>,
    links: Links,
    membership: Membership,
    driver: JoinHandle<Disk>,
    stop: oneshot::Sender<()>,
    _answering: AbortOnDrop,
    _certificate: AbortOnDrop,
}

/// A task that ends with its owner.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts the node that `identity` names. It is ready for commands at once; peers are found in the background.
///
/// # Errors
/// [`StartError`] says what to change; nothing is left running.
pub async fn start(identity: &Identity, settings: NetSettings) -> Result<Running, StartError> {
    start_on(identity, settings, Ground::default()).await
}

/// As [`start`], on other ground than the real one: for tests that run whole meshes in one process.
///
/// # Errors
/// As [`start`].
pub async fn start_on(identity: &Identity, settings: NetSettings, ground: Ground) -> Result<Running, StartError> {
    let me = identity.node().clone();
    let wall = ground.wall;
    let opened = open_disk(settings.data_dir.as_deref(), identity, wall)?;
    let (links, inbox) = Links::bind_on(identity, settings.listen, settings.links.clone(), ground)?;
    let local_addr = links.local_address();
    let address = settings.advertise.unwrap_or(local_addr);
    if address.ip().is_unspecified() || address.port() == 0 {
        links.close().await;
        return Err(StartError::NoAddress(address));
    }
    let facts = NodeFacts {
        incarnation: opened.incarnation,
        zone: settings.node.zone.clone(),
        region: settings.region.clone(),
        cell: settings.cell.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        address: address.to_string(),
    };
    let joined = Membership::join(links.clone(), inbox.gossip, settings.members.clone(), facts.clone()).await;
    let (membership, events) = match joined {
        Ok(joined) => joined,
        Err(error) => {
            links.close().await;
            return Err(error.into());
        }
    };

    let clocks = Clocks::start(wall);
    let seed = settings.seed.unwrap_or_else(|| fastrand::u64(..));
    tracing::info!(node = %me, %address, incarnation = opened.incarnation.0, records = opened.memory.records.len(), seed, "started");
    let node = Node::new(me.clone(), facts, settings.node, opened.memory, seed, clocks.now());
    let (commands, command_queue) = mpsc::channel(COMMAND_QUEUE);
    let (probe_results, probe_queue) = mpsc::channel(PROBE_QUEUE);
    let (changed, changes) = watch::channel(node.view().revision);
    let view = Arc::new(ArcSwap::new(node.view().clone()));
    let (usage, used) = watch::channel(Vec::new());
    let (shares, shared_out) = watch::channel(Vec::new());
    let gauges = Arc::new(Gauges::default());
    let prober = Prober::new(probe_results);
    let shared = Shared {
        governor: OnceLock::new(),
        me,
        incarnation: opened.incarnation,
        clocks,
        view: view.clone(),
        changes,
        commands,
        usage,
        shares: shared_out,
        links: links.clone(),
        spans: Arc::new(SpanBuffer::new(settings.span_capacity)),
        gauges: gauges.clone(),
        disk: opened.disk.figures(),
        probes: prober.figures(),
        members: membership.figures(),
    };
    let handle = Handle::new(Arc::new(shared));
    let outgoing = links.clone();
    let send = Box::new(move |peer: &NodeId, message| outgoing.send(peer, message));
    let fulfil = fulfilment(links.clone(), membership.clone());
    let directory = view.clone();
    links.look_up(move |node| directory.load().member(node)?.facts.address.parse().ok());
    let world = World { send, fulfil, disk: opened.disk, prober, view, changes: changed, shares, gauges };
    let queues = Queues::new(command_queue, inbox.messages, events, probe_queue, used);
    let (stop, stopped) = oneshot::channel();
    let driver = tokio::spawn(Driver::new(node, clocks, world).run(queues, stopped));
    let _answering = AbortOnDrop(tokio::spawn(answer(handle.clone(), inbox.questions)).abort_handle());
    let _certificate = AbortOnDrop(tokio::spawn(watch_certificate(links.shown().clone())).abort_handle());
    let problems = opened.problems;
    let tunnels = Some(inbox.tunnels);
    Ok(Running { handle, tunnels, local_addr, problems, links, membership, driver, stop, _answering, _certificate })
}

impl Running {
    /// Returns when the node has ended by itself, which it never should: its loop has hit a fault of its own.
    pub async fn ended(&self) {
        self.handle.ended().await;
    }

    /// Stops: tells everybody that this node's instances are gone, lets the links deliver that, and closes the disk.
    /// Takes at most about `grace`, unless the disk is slower.
    pub async fn stop(self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let goodbye = async {
            match self.handle.command(Command::Leave).await {
                // Said already: whoever lets requests in flight finish first says it before them.
                Ok(_) | Err(CommandError::Refused(Refusal::Leaving)) => {}
                Err(error) => tracing::warn!("stopping without a good-bye: {error}"),
            }
            self.membership.leave().await;
            self.links.close().await;
        };
        if timeout_at(deadline, goodbye).await.is_err() {
            tracing::warn!("the good-bye took longer than {} ms; peers will notice by themselves", grace.as_millis());
        }
        drop(self.stop);
        let closing = async {
            match self.driver.await {
                Ok(disk) => disk.close().await,
                Err(error) => tracing::error!("the node's loop had failed: {error}"),
            }
        };
        if timeout_at(deadline.max(Instant::now()) + DISK_GRACE, closing).await.is_err() {
            tracing::error!("the data directory did not take the last writes in time; nothing acknowledged is lost");
        }
    }
}

/// What a node knows of other cells it knows from records: their addresses are told by others, and may be none.
fn fulfilment(links: Links, membership: Membership) -> Fulfil {
    Box::new(move |wish| match wish {
        Wish::Link(node, address) => match address.parse() {
            Ok(address) => links.learn(&node, address),
            Err(_) => tracing::warn!(%node, address, "a relay of another cell has no IP address and cannot be linked"),
        },
        Wish::Unlink(node) => links.forget(&node),
        Wish::Introduce(address) => {
            if let Ok(address) = address.parse() {
                membership.introduce(address);
            }
        }
    })
}

/// Blocks for as long as it takes to read the log: nothing else can begin before.
fn open_disk(dir: Option<&Path>, identity: &Identity, wall: fn() -> WallTime) -> Result<Opened, DiskError> {
    let Some(dir) = dir else { return Ok(Disk::none(wall())) };
    let opened = Disk::open(dir, identity.mesh(), identity.node())?;
    log_problems(dir, &opened.problems);
    Ok(opened)
}

fn log_problems(dir: &Path, problems: &[Problem]) {
    for problem in problems.iter().take(MAX_PROBLEMS_LOGGED) {
        tracing::warn!("{problem}");
    }
    if problems.len() > MAX_PROBLEMS_LOGGED {
        tracing::warn!("{}: {} more problems of this kind", dir.display(), problems.len() - MAX_PROBLEMS_LOGGED);
    }
}

/// Warns in good time, again and again. What it was at the start was said when it was read.
async fn watch_certificate(shown: Arc<Shown>) {
    loop {
        tokio::time::sleep(shown.identity().look_again()).await;
        shown.identity().warn_when_ending(SystemTime::now());
    }
}

/// Answers what other nodes ask on behalf of people.
async fn answer(handle: Handle, mut questions: mpsc::Receiver<(NodeId, Question, oneshot::Sender<Reply>)>) {
    while let Some((_, question, reply)) = questions.recv().await {
        let _ = reply.send(handle.answer(question));
    }
}
