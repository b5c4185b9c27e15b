//! The task behind [`super::Membership`]: looks at chitchat and the links, lets the roster judge, and does what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, Heartbeat, spawn_chitchat,
};
use starling_core::PeerEvent;
use starling_core::id::NodeId;
use starling_core::view::NodeFacts;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::figures::{Figures, Snapshot};
use super::roster::{Link, Myself, Roster, Sighting, Step};
use super::socket::{Crowd, Foreigners, LinkTransport, MAX_FOREIGNERS, Receiving};
use super::word::{self, Word};
use super::{MemberError, MemberSettings, facts, seeds};
use crate::quic::{GossipFrame, Links};

/// How often the picture is judged anew: a tenth of the time in which a crash should be noticed is lost at most.
const JUDGE_INTERVAL: Duration = Duration::from_millis(100);
/// How long after its start a node is a newcomer, who refuses to join a cell that was full without it.
const NEWCOMER: Duration = Duration::from_secs(60);
/// How long chitchat remembers the dead, for half of which it also tells others of them. We remember longer; and each
/// restart of a node makes one more of them, which a group must be able to bear.
const CHITCHAT_MEMORY: Duration = Duration::from_secs(600);
/// How many heartbeat intervals per peer the failure detector keeps: the default of 1,000 costs 8 kB a peer.
const SAMPLES: usize = 64;
/// News of members is not left to the next round: a round is begun at once, but after the last such one a pause is made
/// of so much for each member, as the round costs in proportion.
const HURRY_PER_MEMBER: Duration = Duration::from_millis(4);
/// How long leaving waits for the good-bye to get around: two exchanges on any sane network.
const GOODBYE: Duration = Duration::from_millis(200);
/// The pause before chitchat is started again after it has stopped by itself.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How many restarts of chitchat fit beside an incarnation in chitchat's generation.
const RESTART_BITS: u32 = 16;
/// How often the same complaint is made.
const COMPLAIN: Duration = Duration::from_secs(60);

/// What this node says of itself.
struct Me {
    address: SocketAddr,
    facts: NodeFacts,
    /// How often chitchat had to be started again.
    restarts: u64,
}

impl Me {
    fn generation(&self) -> u64 {
        self.facts.incarnation.0.saturating_mul(1 << RESTART_BITS).saturating_add(self.restarts)
    }
}

/// See the module.
pub(super) struct Keeper {
    roster: Roster,
    /// When each heartbeat was last seen to advance.
    heard: BTreeMap<ChitchatId, (Heartbeat, Option<Instant>)>,
    /// Facts are decoded once per version of a node's state.
    known_facts: BTreeMap<ChitchatId, (u64, Option<facts::Told>)>,
    /// When somebody was last gossiped with because the roster asked for it.
    gossiped: Instant,
    /// Whether there is news of members that shall not wait for a round, and when that was last hurried for.
    news: bool,
    hurried: Option<Instant>,
    started: Instant,
    complained: Option<Instant>,
    crowd: Crowd,
    foreigners: Foreigners,
    /// Seeds that are of other cells: while they are linked, there is no need to look for them.
    abroad: BTreeMap<NodeId, SocketAddr>,
    settings: MemberSettings,
    transport: LinkTransport,
    chitchat: ChitchatHandle,
    links: Links,
    me: Me,
    events: mpsc::Sender<PeerEvent>,
    /// The addresses of peers that are linked or heard of, for who looks for seeds.
    found: watch::Sender<BTreeSet<SocketAddr>>,
    figures: Arc<Figures>,
}

impl Keeper {
    pub(super) async fn new(
        links: Links,
        frames: mpsc::Receiver<GossipFrame>,
        settings: MemberSettings,
        address: SocketAddr,
        facts: NodeFacts,
        events: mpsc::Sender<PeerEvent>,
        figures: Arc<Figures>,
    ) -> Result<Self, MemberError> {
        let transport = LinkTransport::new(links.clone(), Arc::new(Mutex::new(Receiving::new(frames))));
        let me = Me { address, facts, restarts: 0 };
        let chitchat = start(&links, &settings, &me, &transport).await?;
        let myself = Myself { node: links.me().clone(), generation: me.generation(), address };
        Ok(Self {
            roster: Roster::new(myself, settings.interval()),
            heard: BTreeMap::new(),
            known_facts: BTreeMap::new(),
            gossiped: Instant::now(),
            news: false,
            hurried: None,
            started: Instant::now(),
            complained: None,
            crowd: transport.crowd(),
            foreigners: transport.foreigners(),
            abroad: BTreeMap::new(),
            settings,
            transport,
            chitchat,
            links,
            me,
            events,
            found: watch::Sender::new(BTreeSet::new()),
            figures,
        })
    }

    pub(super) async fn run(
        mut self,
        mut words: mpsc::Receiver<(NodeId, Bytes)>,
        mut leave: mpsc::Receiver<oneshot::Sender<()>>,
        mut introduced: mpsc::Receiver<SocketAddr>,
    ) {
        let (found, mut seeds) = mpsc::channel(1);
        let seeking = seeds::seek(
            self.settings.seeds.clone(),
            self.settings.interval(),
            self.me.address,
            self.found.subscribe(),
            found,
        );
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
                Some((from, frame)) = words.recv() => self.hear(&from, &frame),
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
        let linked = self.links.linked();
        let chitchat = self.chitchat.chitchat();
        let sightings = self.sightings(&*chitchat.lock().await, &linked, now);
        let members: BTreeMap<&NodeId, u64> = sightings
            .iter()
            .filter(|sighting| (sighting.believed || sighting.link != Link::Unknown) && !sighting.leaving)
            .filter(|sighting| sighting.node != *self.links.me())
            .map(|sighting| (&sighting.node, sighting.generation))
            .collect();
        // Generations follow the clock, so all find the same ones to have come last.
        let earlier = members.values().filter(|generation| **generation < self.me.generation()).count();
        let members = members.len() + 1;
        if self.too_many(members, earlier, now).await {
            return true;
        }
        if !self.meet_foreigners().await {
            return false;
        }
        // Seeds that are members need not be looked for: links would be made to them by everybody.
        let members_at = sightings.iter().filter(|sighting| sighting.believed).map(|sighting| sighting.address);
        let abroad = self.abroad.iter().filter(|(node, _)| self.links.is_up(node)).map(|(_, address)| *address);
        let addresses: BTreeSet<SocketAddr> = linked.values().copied().chain(members_at).chain(abroad).collect();
        self.found.send_if_modified(|known| {
            let changed = *known != addresses;
            if changed {
                *known = addresses;
            }
            changed
        });
        let due = now.duration_since(self.gossiped) >= self.settings.interval();
        if due {
            self.gossiped = now;
        }
        let linked = linked.into_keys().collect();
        let mut said = Vec::new();
        for step in self.roster.judge(now, sightings, &linked) {
            match step {
                Step::Tell(event) => {
                    log(&event);
                    if self.events.send(event).await.is_err() {
                        return false;
                    }
                }
                Step::Link(node, address) => {
                    self.news = true;
                    self.links.learn_member(&node, address, true);
                }
                Step::Note(node, address) => {
                    self.news = true;
                    self.links.learn_member(&node, address, false);
                }
                Step::Forget(node) => self.links.forget(&node),
                Step::Gossip(address) if due => self.gossip([address]),
                Step::Gossip(_) => {}
                Step::Say(word) => said.push(word),
                Step::Refuse(node, first, second) => self.links.refuse_namesake(&node, first, second),
            }
        }
        self.say(None, &said);
        self.hurry(now, members);
        self.figures.set(Snapshot {
            tally: self.roster.tally(),
            name_conflicts: self.roster.name_conflicts(now),
            refused: self.crowd.is_refused(),
            restarts: self.me.restarts,
        });
        true
    }

    /// Tells of seeds that turned out to be of another cell. False when nobody listens.
    async fn meet_foreigners(&mut self) -> bool {
        for (node, address) in self.foreigners.take() {
            if self.abroad.len() >= MAX_FOREIGNERS {
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

    fn sightings(&mut self, chitchat: &Chitchat, linked: &BTreeMap<NodeId, SocketAddr>, now: Instant) -> Vec<Sighting> {
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
            let link = match linked.get(&node) {
                Some(address) => Link::Up(*address),
                None => {
                    self.links.down_since(&node).map_or(Link::Unknown, |since| Link::Down(now.duration_since(since)))
                }
            };
            sightings.push(Sighting {
                link,
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

    /// Takes the words a peer has brought.
    fn hear(&mut self, from: &NodeId, frame: &[u8]) {
        if self.crowd.is_refused() {
            return;
        }
        match word::decode(frame) {
            Ok(words) => {
                let response = self.roster.hear(Instant::now(), words);
                self.news |= response.strangers;
                self.say(Some(from), &response.pass_on);
                self.say(None, &response.say);
            }
            Err(error) => self.links.malformed(from, &error),
        }
    }

    fn say(&self, except: Option<&NodeId>, words: &[Word]) {
        for frame in word::encode(words) {
            self.links.send_words(except, &frame);
        }
    }

    /// Gossips at these addresses, even if that takes a link.
    fn gossip(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        for address in addresses {
            self.transport.dial_for(address);
            // Fails only when chitchat has stopped, which its watcher tells.
            let _ = self.chitchat.gossip(address);
        }
    }

    /// Begins a round with two linked peers when there is news, but not all the time.
    fn hurry(&mut self, now: Instant, members: usize) {
        let pause = JUDGE_INTERVAL.max(HURRY_PER_MEMBER * members as u32);
        if !self.news || self.hurried.is_some_and(|at| now.duration_since(at) < pause) {
            return;
        }
        self.news = false;
        self.hurried = Some(now);
        let mut near: Vec<SocketAddr> = self.links.linked().into_values().collect();
        fastrand::shuffle(&mut near);
        self.gossip(near.into_iter().take(2));
    }

    /// Whether there are more members than this cell takes, and this node has to stay out.
    async fn too_many(&mut self, members: usize, earlier: usize, now: Instant) -> bool {
        let limit = self.settings.max_members;
        let newcomer = now.duration_since(self.started) < NEWCOMER;
        let refused = self.crowd.is_refused();
        let refuse = refused || (newcomer && earlier >= limit);
        if (members > limit || refuse) && self.complained.is_none_or(|at| now.duration_since(at) > COMPLAIN) {
            self.complained = Some(now);
            let (mesh, cell) = (self.links.mesh(), &self.me.facts.cell);
            if refuse {
                error!(
                    limit, %mesh, %cell,
                    "cell {cell} is full ({limit} nodes), and this node refuses to join it: it goes on alone; give it \
                     another node.cell and start it again"
                );
            } else {
                warn!(members, limit, %mesh, %cell, "cell {cell} is over its limit; newcomers refuse to join it: begin another");
            }
        }
        if refuse && !refused {
            self.say_goodbye().await;
            self.crowd.refuse();
            self.links.forget_all();
            self.figures.set(Snapshot { refused: true, ..Snapshot::default() });
        }
        refuse
    }

    /// chitchat has stopped by itself. Its state is lost, and comes back from the others within a round.
    async fn restart(&mut self, why: Option<String>) {
        let why = why.unwrap_or_else(|| "it ended".to_owned());
        error!(why, "membership stopped by itself and is started again; please report this");
        tokio::time::sleep(RESTART_PAUSE).await;
        self.me.restarts += 1;
        self.roster.restarted(self.me.generation());
        match start(&self.links, &self.settings, &self.me, &self.transport).await {
            Ok(chitchat) => self.chitchat = chitchat,
            Err(error) => error!(%error, "membership is not started"), // tried again: its watcher fires once more
        }
    }

    async fn say_goodbye(&mut self) {
        let bye = self.roster.say_bye(Instant::now());
        self.say(None, &[bye]);
        let peers: Vec<SocketAddr> = self.links.linked().into_values().collect();
        self.chitchat.with_chitchat(|chitchat| facts::say_goodbye(chitchat.self_node_state())).await;
        info!(peers = peers.len(), "leaving the mesh");
        if !peers.is_empty() {
            self.gossip(peers);
            tokio::time::sleep(GOODBYE).await;
        }
    }
}

async fn start(
    links: &Links,
    settings: &MemberSettings,
    me: &Me,
    transport: &LinkTransport,
) -> Result<ChitchatHandle, MemberError> {
    let config = ChitchatConfig {
        chitchat_id: ChitchatId::new(links.me().as_str(), me.generation(), me.address),
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
