//! Carry connections that live on the data plane's own threads.
//!
//! A request that comes by QUIC would change threads four times: from its worker to the task that drives the connection,
//! on whatever thread that runs, and back, on both nodes. Each change is a wake-up through the kernel, dearer than all the
//! cryptography. So every worker opens a *lane*: it dials through a socket of its own, and a connection that a peer's
//! lane dials is driven, and its tunnels served, on the thread of the lane it is dealt to. What is left is one change, at
//! the callee: all nodes are reached at one port, and the thread that reads it hands datagrams to the lanes.
//!
//! That a lane dials shows in the length of the first connection id it chooses: known before the handshake, when the
//! thread has to be chosen. It is a hint and no more; what a connection may do is decided by its ALPN name and
//! certificate, as ever.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, ConnectionId, Endpoint, Incoming};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::carry::Carries;
use super::meet::Close;
use super::tunnel::IncomingTunnel;
use super::{GOODBYE_PATIENCE, Links, Shared, endpoint};

/// The length of the first connection id of a lane; others have twenty bytes. RFC 9000 wants eight at least.
const ID_BYTES: usize = 16;
/// The most lanes of a node; further threads share the node's own connections. Twice as many may be seen of a peer, since
/// it may be starting anew while its earlier connections are not yet known to be lost.
pub(super) const MAX_LANES: usize = 64;
/// How long a closing lane waits for peers to have all that was sent through its tunnels.
const LAST_BYTES: Duration = Duration::from_secs(2);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(2);
/// How long a lane keeps a connection through which nothing is carried: keeping it alive costs a few packets a second, a
/// new one some milliseconds.
const IDLE: Duration = Duration::from_secs(30);

thread_local! {
    static CURRENT: RefCell<Option<Arc<Lane>>> = const { RefCell::new(None) };
}

/// A thread that carries, as the links know it.
pub(super) struct Lane {
    /// Of which node's links; there may be several nodes in a process.
    process: u64,
    thread: Handle,
    /// Dials, and is driven by this thread.
    pub(super) endpoint: Endpoint,
    /// The connections it has dialled.
    pub(super) carries: Carries,
    /// Where tunnels that arrive on its connections go.
    pub(super) tunnels: mpsc::Sender<IncomingTunnel>,
    accepted: Mutex<Vec<Connection>>,
    /// Cloned by the tunnels that have arrived, until their last bytes have.
    pub(super) uses: Arc<()>,
}

/// All lanes of a node.
#[derive(Default)]
pub(super) struct Lanes(Mutex<Vec<Arc<Lane>>>);

/// A lane as long as its thread holds it. [`Self::close`] says good-bye to the peers at the other ends.
pub struct OpenLane {
    lane: Arc<Lane>,
    shared: Arc<Shared>,
}

impl Lane {
    /// The lane of the thread this runs on.
    pub(super) fn current(shared: &Shared) -> Option<Arc<Self>> {
        CURRENT.with_borrow(|lane| lane.clone()).filter(|lane| lane.process == shared.process)
    }

    /// Runs a task there.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.thread.spawn(task);
    }

    /// Takes note of a connection that was dealt to it.
    pub(super) fn accepted(&self, connection: &Connection) {
        let mut accepted = self.lock();
        accepted.retain(|one| one.close_reason().is_none());
        accepted.push(connection.clone());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lanes {
    /// The lane for a connection that knocks, if a lane has dialled it: the one that has the fewest.
    pub(super) fn lane_for(&self, incoming: &Incoming) -> Option<Arc<Lane>> {
        if incoming.orig_dst_cid().len() != ID_BYTES {
            return None;
        }
        let live = |lane: &&Arc<Lane>| lane.lock().iter().filter(|one| one.close_reason().is_none()).count();
        self.lock().iter().min_by_key(live).cloned()
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// How many connections each has.
    #[cfg(test)]
    pub(super) fn shares(&self) -> Vec<usize> {
        self.lock().iter().map(|lane| lane.lock().len()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Lane>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first connection id of a connection that a lane dials; it must not be predictable.
pub(super) fn first_id() -> ConnectionId {
    let mut bytes = [0; ID_BYTES];
    if rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).is_err() {
        // Only a system without a source of randomness, on which there are no keys either.
        bytes.fill_with(|| fastrand::u8(..));
    }
    ConnectionId::new(&bytes)
}

impl Links {
    /// Makes the calling thread one that carries: what it dials from now on goes through a socket of its own, and
    /// tunnels that peers' lanes open may arrive here; at most `queue` of them wait, and more are refused as busy. Must be
    /// called within the thread's own single-threaded runtime.
    ///
    /// # Errors
    /// No socket can be had.
    pub fn open_lane(&self, queue: usize) -> io::Result<(OpenLane, mpsc::Receiver<IncomingTunnel>)> {
        let shared = self.shared();
        let (tunnels, arrive) = mpsc::channel(queue.max(1));
        let lane = Arc::new(Lane {
            process: shared.process,
            thread: Handle::current(),
            endpoint: endpoint::open_lane(self.local_address(), &shared.limits, &shared.cut)?,
            carries: Carries::default(),
            tunnels,
            accepted: Mutex::default(),
            uses: Arc::default(),
        });
        {
            let mut lanes = shared.lanes.lock();
            if lanes.len() >= MAX_LANES {
                return Err(io::Error::other(format!("{MAX_LANES} threads have one already")));
            }
            lanes.push(lane.clone());
        }
        CURRENT.set(Some(lane.clone()));
        tokio::spawn(let_go(Arc::downgrade(&lane)));
        Ok((OpenLane { lane, shared: shared.clone() }, arrive))
    }
}

/// Closes what is not needed any more, as long as the lane is there.
async fn let_go(lane: std::sync::Weak<Lane>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let Some(lane) = lane.upgrade() else { return };
        for idle in lane.carries.take_idle(IDLE) {
            idle.close(Close::Idle.code(), b"nothing is carried here");
        }
    }
}

impl OpenLane {
    /// Waits, for a while, until peers have what was sent to them; then cuts all its connections and lets them know.
    pub async fn close(self) {
        self.withdraw();
        let arrived = async {
            while Arc::strong_count(&self.lane.uses) > 1 {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(LAST_BYTES, arrived).await;
        for connection in self.lane.lock().drain(..) {
            connection.close(Close::Stopping.code(), b"the node is stopping");
        }
        self.lane.endpoint.close(Close::Stopping.code(), b"the node is stopping");
        let _ = tokio::time::timeout(GOODBYE_PATIENCE, self.lane.endpoint.wait_idle()).await;
    }

    #[cfg(test)]
    pub(super) fn let_go(&self, within: Duration) -> Vec<Connection> {
        self.lane.carries.take_idle(within)
    }

    fn withdraw(&self) {
        self.shared.lanes.lock().retain(|lane| !Arc::ptr_eq(lane, &self.lane));
        CURRENT.set(None);
    }
}

impl Drop for OpenLane {
    fn drop(&mut self) {
        self.withdraw();
    }
}
