//! Who is there: chitchat over our links, behind a small surface.
//!
//! chitchat tells every node a few facts of every other and how recently each was heard of, through third nodes as
//! well. Links tell within two seconds when a peer stops answering, and at once when it is back. Put together (in
//! [`roster`]): a peer is there while a link to it is up, or while others hear of it; it is lost when its link is down,
//! cannot be made again for most of a second, *and* nobody else has heard of it. So a killed process is found out in less than
//! three seconds at a gossip interval that is affordable, and a broken line between two nodes is not mistaken for a
//! death.
//!
//! The lost are never given up: their addresses stay in the links' address book and are dialled for ever, however long a
//! partition lasts, and chitchat is told to gossip with whoever comes back before it would itself.
//!
//! What chitchat cannot do, it is kept from: it panics when some 850 nodes are known (a message of its own then does not
//! fit into 64 KiB), so a newcomer to a crowd refuses to join and the crowd stops listening to newcomers; one value over
//! 64 KiB blocks all later ones, so facts are checked; and if it panics for another reason, it is started again under a
//! new generation.

mod facts;
mod roster;
mod seeds;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, Heartbeat, spawn_chitchat,
};
use serde::{Deserialize, Serialize};
use starling_core::PeerEvent;
use starling_core::id::NodeId;
use starling_core::view::NodeFacts;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::quic::{GossipInbox, Links};
use roster::{Link, Roster, Sighting, Step};
use socket::{LinkTransport, Receiving};

/// How often the picture is judged anew: a tenth of the time in which a crash should be noticed is lost at most.
const JUDGE_INTERVAL: Duration = Duration::from_millis(100);
/// How many members one chitchat group takes. Designed for 250; it panics past about 850.
pub const MAX_MEMBERS: usize = 500;
/// How long after its start a node is a newcomer, who refuses to join a group that is too large.
const NEWCOMER: Duration = Duration::from_secs(60);
/// How long chitchat remembers the dead, for half of which it also tells others of them. We remember longer.
const CHITCHAT_MEMORY: Duration = Duration::from_secs(3600);
/// How many heartbeat intervals per peer the failure detector keeps: the default of 1,000 costs 8 kB a peer.
const SAMPLES: usize = 64;
/// How many membership events wait for the loop. A full queue makes this room wait, and nobody else.
const EVENTS: usize = 1_024;
/// How many introductions wait: there is one a second at most.
const INTRODUCTIONS: usize = 16;
/// How long leaving waits for the good-bye to get around: two exchanges on any sane network.
const GOODBYE: Duration = Duration::from_millis(200);
/// The pause before chitchat is started again after it has stopped by itself.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How many restarts of chitchat fit beside an incarnation in chitchat's generation.
const RESTART_BITS: u32 = 16;

/// What an operator can set about membership.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemberSettings {
    /// Nodes to join through, as `host:port`; looked up again and again. None: this node waits to be joined.
    pub seeds: Vec<String>,
    /// How often this node gossips with three others, in milliseconds. 50 to 10,000; default 500.
    pub gossip_interval_ms: u64,
    /// How sure the failure detector must be (phi accrual). 1 to 20; default 8, and lower suspects sooner.
    pub phi_threshold: f64,
}

impl Default for MemberSettings {
    fn default() -> Self {
        Self { seeds: Vec::new(), gossip_interval_ms: 500, phi_threshold: 8.0 }
    }
}

impl MemberSettings {
    fn interval(&self) -> Duration {
        Duration::from_millis(self.gossip_interval_ms)
    }

    fn check(&self) -> Result<(), MemberError> {
        let wrong = |text: String| Err(MemberError::Invalid(text));
        if !(50..=10_000).contains(&self.gossip_interval_ms) {
            return wrong(format!("gossip_interval_ms {} is not within 50 and 10000", self.gossip_interval_ms));
        }
        if !(1.0..=20.0).contains(&self.phi_threshold) {
            return wrong(format!("phi_threshold {} is not within 1 and 20", self.phi_threshold));
        }
        for seed in &self.seeds {
            let port = seed.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                return wrong(format!("seed {seed:?} is not host:port"));
            }
        }
        Ok(())
    }
}

/// Why membership cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// A setting or fact is out of its range.
    #[error("{0}")]
    Invalid(String),
    /// chitchat could not be started.
    #[error("membership cannot be started: {0}")]
    Start(String),
}

/// This node's membership. Cheap to clone; when the last clone is gone, gossip stops.
#[derive(Clone)]
pub struct Membership {
    leave: mpsc::Sender<oneshot::Sender<()>>,
    introduced: mpsc::Sender<SocketAddr>,
}

impl Membership {
    /// Begins to gossip. `facts.address` must be the `IP:port` at which peers reach this node's links.
    ///
    /// What membership notices comes out of the receiver, which must be drained. Every node met is taught to the
    /// links by itself.
    ///
    /// # Errors
    /// [`MemberError`] when a setting or a fact is out of range.
    pub async fn join(
        links: Links,
        gossip: GossipInbox,
        settings: MemberSettings,
        facts: NodeFacts,
    ) -> Result<(Self, mpsc::Receiver<PeerEvent>), MemberError> {
        settings.check()?;
        let address = facts::check(&facts).map_err(MemberError::Invalid)?;
        let (events, events_out) = mpsc::channel(EVENTS);
        let (leave, leave_requests) = mpsc::channel(1);
        let (introduced, introductions) = mpsc::channel(INTRODUCTIONS);
        let transport = LinkTransport::new(links.clone(), Arc::new(Mutex::new(Receiving::new(gossip))));
        let (crowd, foreigners) = (transport.crowd(), transport.foreigners());
        let me = Me { address, facts, restarts: 0 };
        let chitchat = start(&links, &settings, &me, &transport).await?;
        let (linked, linked_out) = watch::channel(BTreeSet::new());
        let keeper = Keeper {
            roster: Roster::new(links.me().clone(), me.address, settings.interval()),
            heard: BTreeMap::new(),
            known_facts: BTreeMap::new(),
            gossiped: Instant::now(),
            started: Instant::now(),
            complained: None,
            crowd,
            foreigners,
            abroad: BTreeMap::new(),
            settings: settings.clone(),
            transport,
            chitchat,
            links,
            me,
            events,
            linked,
        };
        tokio::spawn(keeper.run(leave_requests, introductions, linked_out));
        Ok((Self { leave, introduced }, events_out))
    }

    /// Gossips with whoever is at an address: somebody has told that it is a member of this cell. Never waits; one that
    /// is not taken will be told again.
    pub(crate) fn introduce(&self, address: SocketAddr) {
        let _ = self.introduced.try_send(address);
    }

    /// Tells the others that this start of the node is over, and stops gossiping. Takes a fraction of a second.
    pub async fn leave(&self) {
        let (done, wait) = oneshot::channel();
        // If nobody takes the request, or it is dropped, gossip has stopped already.
        if self.leave.send(done).await.is_ok() {
            let _ = wait.await;
        }
    }
}

/// What this node says of itself.
struct Me {
    address: SocketAddr,
    facts: NodeFacts,
    /// How often chitchat had to be started again.
    restarts: u64,
}

async fn start(
    links: &Links,
    settings: &MemberSettings,
    me: &Me,
    transport: &LinkTransport,
) -> Result<ChitchatHandle, MemberError> {
    let generation = me.facts.incarnation.0.saturating_mul(1 << RESTART_BITS).saturating_add(me.restarts);
    let config = ChitchatConfig {
        chitchat_id: ChitchatId::new(links.me().as_str(), generation, me.address),
        cluster_id: format!("{}/{}", links.mesh(), me.facts.cell),
        gossip_interval: settings.interval(),
        listen_addr: me.address, // only passed on to our own transport, which has no use for it
        seed_nodes: Vec::new(),  // see `seeds`: chitchat looks names up once a minute, and tries one seed now and then
        failure_detector_config: FailureDetectorConfig::new(
            settings.phi_threshold,
            SAMPLES,
            settings.interval() * 10,
            settings.interval(),
            CHITCHAT_MEMORY,
        ),
        marked_for_deletion_grace_period: CHITCHAT_MEMORY,
        catchup_callback: None,
        extra_liveness_predicate: None,
    };
    spawn_chitchat(config, facts::encode(&me.facts), transport)
        .await
        .map_err(|error| MemberError::Start(error.to_string()))
}

fn log(event: &PeerEvent) {
    match event {
        PeerEvent::Up(node, facts) => {
            info!(%node, address = facts.address, zone = %facts.zone, incarnation = facts.incarnation.0, "a member is there");
        }
        PeerEvent::Lost(node) => warn!(%node, "a member is lost: neither its link nor the others hear of it"),
        PeerEvent::Left(node, _) => info!(%node, "a member has left"),
        PeerEvent::Met(node) => info!(%node, "a node of another cell was met"),
    }
}

/// The task behind [`Membership`].
struct Keeper {
    roster: Roster,
    /// When each heartbeat was last seen to advance.
    heard: BTreeMap<ChitchatId, (Heartbeat, Option<Instant>)>,
    /// Facts are decoded once per version of a node's state.
    known_facts: BTreeMap<ChitchatId, (u64, Option<facts::Told>)>,
    gossiped: Instant,
    started: Instant,
    complained: Option<Instant>,
    crowd: socket::Crowd,
    foreigners: socket::Foreigners,
    /// Seeds that are of other cells: while they are linked, there is no need to look for them.
    abroad: BTreeMap<NodeId, SocketAddr>,
    settings: MemberSettings,
    transport: LinkTransport,
    chitchat: ChitchatHandle,
    links: Links,
    me: Me,
    events: mpsc::Sender<PeerEvent>,
    /// The addresses of linked peers, for those who look for seeds.
    linked: watch::Sender<BTreeSet<SocketAddr>>,
}

impl Keeper {
    async fn run(
        mut self,
        mut leave: mpsc::Receiver<oneshot::Sender<()>>,
        mut introduced: mpsc::Receiver<SocketAddr>,
        linked: watch::Receiver<BTreeSet<SocketAddr>>,
    ) {
        let (found, mut seeds) = mpsc::channel(1);
        let seeking =
            seeds::seek(self.settings.seeds.clone(), self.settings.interval(), self.me.address, linked, found);
        let seeking = tokio::spawn(seeking).abort_handle();
        let mut tick = tokio::time::interval(JUDGE_INTERVAL.min(self.settings.interval()));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let leaver = loop {
            tokio::select! {
                _ = tick.tick() => {
                    if !self.judge().await {
                        break None;
                    }
                }
                Some(addresses) = seeds.recv() => self.gossip(addresses),
                Some(address) = introduced.recv() => self.gossip([address]),
                ended = self.chitchat.termination_watcher() => self.restart(ended.err().map(|e| e.to_string())).await,
                leaver = leave.recv() => break leaver,
            }
        };
        seeking.abort();
        if let Some(done) = leaver {
            self.say_goodbye().await;
            let _ = done.send(()); // it may have stopped waiting
        }
        self.chitchat.abort();
    }

    /// Looks at everybody once. False when nobody listens to what is found.
    async fn judge(&mut self) -> bool {
        let now = Instant::now();
        let chitchat = self.chitchat.chitchat();
        let sightings = self.sightings(&*chitchat.lock().await, now);
        if self.too_many(sightings.len(), now) {
            return true;
        }
        if !self.meet_foreigners().await {
            return false;
        }
        let near = sightings.iter().filter(|s| s.link == Link::Up).map(|s| s.address);
        let abroad = self.abroad.iter().filter(|(node, _)| self.links.is_up(node)).map(|(_, address)| *address);
        self.linked.send_replace(near.chain(abroad).collect());
        let due = now.duration_since(self.gossiped) >= self.settings.interval();
        if due {
            self.gossiped = now;
        }
        for step in self.roster.judge(now, sightings) {
            match step {
                Step::Tell(event) => {
                    log(&event);
                    if self.events.send(event).await.is_err() {
                        return false;
                    }
                }
                Step::Learn(node, address) => self.links.learn(&node, address),
                Step::Forget(node) => self.links.forget(&node),
                Step::Gossip(address) if due => self.gossip([address]),
                Step::Gossip(_) => {}
            }
        }
        true
    }

    /// Tells of seeds that turned out to be of another cell. False when nobody listens.
    async fn meet_foreigners(&mut self) -> bool {
        for (node, address) in self.foreigners.take() {
            if self.abroad.len() >= socket::MAX_FOREIGNERS {
                self.abroad.pop_first();
            }
            self.abroad.insert(node.clone(), address);
            let event = PeerEvent::Met(node);
            log(&event);
            if self.events.send(event).await.is_err() {
                return false;
            }
        }
        true
    }

    fn sightings(&mut self, chitchat: &Chitchat, now: Instant) -> Vec<Sighting> {
        let live: BTreeSet<&ChitchatId> = chitchat.live_nodes().collect();
        let states = chitchat.node_states();
        self.heard.retain(|id, _| states.contains_key(id));
        self.known_facts.retain(|id, _| states.contains_key(id));
        let mut sightings = Vec::with_capacity(states.len());
        for (id, state) in states.iter().filter(|(id, _)| *id != chitchat.self_chitchat_id()) {
            let newest = self.heard.entry(id.clone()).or_insert((state.heartbeat(), None));
            if state.heartbeat() > newest.0 {
                *newest = (state.heartbeat(), Some(now));
            }
            let heard = newest.1;
            let told = self.known_facts.entry(id.clone()).or_insert((0, None));
            if told.0 != state.max_version() {
                *told = (state.max_version(), facts::decode(state.key_values()));
            }
            // Facts that have not come yet will; facts that make no sense are as good as none.
            let (Some(told), Ok(node)) = (told.1.clone(), id.node_id.parse::<NodeId>()) else { continue };
            sightings.push(Sighting {
                link: self.link(&node, now),
                node,
                generation: id.generation_id,
                address: id.gossip_advertise_addr,
                facts: told.facts,
                leaving: told.leaving,
                heard,
                believed: live.contains(id),
            });
        }
        sightings
    }

    fn link(&self, node: &NodeId, now: Instant) -> Link {
        if self.links.is_up(node) {
            return Link::Up;
        }
        self.links.down_since(node).map_or(Link::Unknown, |since| Link::Down(now.duration_since(since)))
    }

    fn gossip(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        for address in addresses {
            // Fails only when chitchat has stopped, which its watcher tells.
            let _ = self.chitchat.gossip(address);
        }
    }

    /// Whether there are more members than chitchat can take, and this node has to stay out.
    fn too_many(&mut self, others: usize, now: Instant) -> bool {
        let members = others + 1;
        let newcomer = now.duration_since(self.started) < NEWCOMER;
        let refuse = self.crowd.is_refused() || (newcomer && members > MAX_MEMBERS);
        if members > MAX_MEMBERS && self.complained.is_none_or(|at| now.duration_since(at) > Duration::from_secs(60)) {
            self.complained = Some(now);
            let what = if refuse { "this node refuses to join" } else { "newcomers are refused" };
            error!(
                members, limit = MAX_MEMBERS, mesh = %self.links.mesh(),
                "one membership group takes {MAX_MEMBERS} nodes, so {what}: split the mesh"
            );
        }
        if refuse {
            self.crowd.refuse();
        }
        refuse
    }

    /// chitchat has stopped by itself. Its state is lost, and comes back from the others within a round.
    async fn restart(&mut self, why: Option<String>) {
        let why = why.unwrap_or_else(|| "it ended".to_owned());
        error!(why, "membership stopped by itself and is started again; please report this");
        tokio::time::sleep(RESTART_PAUSE).await;
        self.me.restarts += 1;
        match start(&self.links, &self.settings, &self.me, &self.transport).await {
            Ok(chitchat) => self.chitchat = chitchat,
            Err(error) => error!(%error, "membership is not started"), // tried again: its watcher fires once more
        }
    }

    async fn say_goodbye(&mut self) {
        let peers: Vec<SocketAddr> = self.linked.borrow().iter().copied().collect();
        self.chitchat.with_chitchat(|chitchat| facts::say_goodbye(chitchat.self_node_state())).await;
        info!(peers = peers.len(), "leaving the mesh");
        if !peers.is_empty() {
            self.gossip(peers);
            tokio::time::sleep(GOODBYE).await;
        }
    }
}
