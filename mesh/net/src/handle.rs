//! The one thing other crates hold of a running node: read its view, give it commands, ask its peers, open tunnels.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use starling_core::id::{CellName, Incarnation, InstanceKey, NodeId, ServiceKey};
use starling_core::node::Counters;
use starling_core::observe::{Exposition, MetricSource, SpanBuffer};
use starling_core::policy::{Candidate, Governor};
use starling_core::quotas::{QuotaId, QuotaUse};
use starling_core::view::{MemberState, Revision, Usability, View};
use starling_core::wire::{DiskFailing, NodeStatus, Question, Reply};
use starling_core::{Answer, Command, Refusal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::disk;
use crate::driver::Clocks;
use crate::gauges::Gauges;
use crate::identity::Identity;
use crate::member;
use crate::probe::ProbeFigures;
use crate::quic::{IncomingTunnel, LinkError, Links, OpenLane, Tunnel};

/// A running node, as the rest of its process sees it. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) me: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) clocks: Clocks,
    pub(crate) view: Arc<ArcSwap<View>>,
    pub(crate) changes: watch::Receiver<Revision>,
    pub(crate) commands: mpsc::Sender<CommandRequest>,
    pub(crate) usage: watch::Sender<Vec<QuotaUse>>,
    pub(crate) shares: watch::Receiver<Vec<(QuotaId, u64)>>,
    pub(crate) links: Links,
    pub(crate) spans: Arc<SpanBuffer>,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) disk: Arc<disk::Figures>,
    pub(crate) probes: Arc<ProbeFigures>,
    pub(crate) members: Arc<member::Figures>,
    /// The data plane, once there is one.
    pub(crate) governor: OnceLock<Arc<dyn Governor>>,
}

/// A command on its way to the loop.
pub(crate) struct CommandRequest {
    pub(crate) command: Command,
    pub(crate) reply: oneshot::Sender<Result<Answer, CommandError>>,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The loop's queue is full; nothing was done, try again in a moment.
    #[error("this node is busy, try again in a moment")]
    Busy,
    /// The node has stopped; whether the command was carried out is not known.
    #[error("this node has stopped")]
    Stopped,
    /// It was carried out and peers were told, but it is not on this node's disk.
    #[error(
        "done, but not saved on this node's disk ({0}): it may be lost if this node stops before its disk works again"
    )]
    Unsaved(String),
    /// Nothing was done: the node could not keep it.
    #[error("nothing was changed: this node's data directory takes no writes ({0})")]
    Unwritable(String),
    /// The heart refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Puts a command into the loop's queue, if there is room, and gives the way its answer will come.
pub(crate) fn give(
    commands: &mpsc::Sender<CommandRequest>,
    command: Command,
) -> Result<oneshot::Receiver<Result<Answer, CommandError>>, CommandError> {
    let (reply, answer) = oneshot::channel();
    match commands.try_send(CommandRequest { command, reply }) {
        Ok(()) => Ok(answer),
        Err(mpsc::error::TrySendError::Full(_)) => Err(CommandError::Busy),
        Err(mpsc::error::TrySendError::Closed(_)) => Err(CommandError::Stopped),
    }
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// This node's name.
    pub fn me(&self) -> &NodeId {
        &self.shared.me
    }

    /// The last published picture; never waits.
    pub fn view(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    /// Wakes whenever a new view has been published; carries its revision.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.shared.changes.clone()
    }

    /// Gives the heart a command and waits until it is applied and, where that is due, on disk.
    ///
    /// # Errors
    /// [`CommandError::Busy`] at once when the loop's queue is full.
    pub async fn command(&self, command: Command) -> Result<Answer, CommandError> {
        give(&self.shared.commands, command)?.await.map_err(|_| CommandError::Stopped)?
    }

    /// Tells what is asked of the mesh's quotas here; about four times a second while there is anything to tell, and once
    /// more, empty, when there is not. Never waits; only the last word counts.
    pub fn use_quotas(&self, uses: Vec<QuotaUse>) {
        self.shared.usage.send_replace(uses);
    }

    /// What this node may use of the quotas it told of, in thousandths of a call a second; changes after each word.
    pub fn shares(&self) -> watch::Receiver<Vec<(QuotaId, u64)>> {
        self.shared.shares.clone()
    }

    /// Waits until the loop has ended.
    pub(crate) async fn ended(&self) {
        self.shared.commands.closed().await;
    }

    /// Asks another node (or this one) a question.
    ///
    /// # Errors
    /// [`LinkError`] when the node is unknown, unreachable or does not answer within `timeout`.
    pub async fn ask(&self, node: &NodeId, question: Question, timeout: Duration) -> Result<Reply, LinkError> {
        if node == &self.shared.me {
            return Ok(self.answer(question));
        }
        self.shared.links.ask(node, question, timeout).await
    }

    /// Names who puts policies into force here; the first one named stays.
    pub fn govern(&self, governor: Arc<dyn Governor>) {
        if self.shared.governor.set(governor).is_err() {
            tracing::warn!("a second data plane wants to put policies into force on this node; the first one does");
        }
    }

    /// Who puts policies into force here.
    pub fn governor(&self) -> Option<&Arc<dyn Governor>> {
        self.shared.governor.get()
    }

    /// This node's own answer to a question.
    pub fn answer(&self, question: Question) -> Reply {
        match question {
            Question::Status => Reply::Status(self.status()),
            Question::Trace(trace) => Reply::Spans(self.shared.spans.trace(trace)),
            Question::RecentTraces(limit) => Reply::Spans(self.shared.spans.recent_roots(limit.min(1_000) as usize)),
            Question::Guards(service) => {
                Reply::Guards(self.governor().map_or_else(|| "{}".into(), |governor| governor.guards(&service)))
            }
            Question::Try { service, text, for_all } => Reply::Tried(self.rehearse(&service, &text, for_all)),
        }
    }

    fn rehearse(&self, service: &ServiceKey, text: &str, for_all: bool) -> Result<String, String> {
        let governor = self.governor().ok_or("this node carries no requests")?;
        governor.rehearse(service, Candidate { text, for_all })
    }

    fn status(&self) -> NodeStatus {
        let view = self.view();
        let now = self.shared.clocks.now();
        NodeStatus {
            node: self.shared.me.clone(),
            incarnation: self.shared.incarnation,
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: now.elapsed.0 / 1_000,
            wall: now.wall,
            revision: view.revision,
            fingerprint: view.fingerprint,
            members_alive: view.alive().count() as u32,
            disk_failing: self
                .shared
                .disk
                .failing()
                .map(|failing| DiskFailing { since: failing.since, reason: failing.reason }),
            catching_up: view.catching_up.as_deref().cloned(),
            certificate: Some(self.shared.links.shown().status(SystemTime::now())),
        }
    }

    /// The spans this node keeps.
    pub fn spans(&self) -> &Arc<SpanBuffer> {
        &self.shared.spans
    }

    /// Opens a byte stream to an instance through the node that owns it.
    ///
    /// # Errors
    /// [`LinkError`] when there is no way to that node within `timeout`.
    pub async fn open_tunnel(&self, node: &NodeId, to: &InstanceKey, timeout: Duration) -> Result<Tunnel, LinkError> {
        self.shared.links.open_tunnel(node, to, timeout).await
    }

    /// Makes the calling thread one that carries: see [`Links::open_lane`].
    ///
    /// # Errors
    /// No socket can be had.
    pub fn open_lane(&self, queue: usize) -> std::io::Result<(OpenLane, mpsc::Receiver<IncomingTunnel>)> {
        self.shared.links.open_lane(queue)
    }

    /// Takes a new certificate, as it was read, in the place of the one this node shows: from the next handshake on. What is
    /// connected stays so. One that could not be read, or is another node's, leaves the one before, and `status` says why.
    ///
    /// # Errors
    /// Why it was not taken.
    pub fn renew(&self, read: Result<Identity, String>) -> Result<(), String> {
        self.shared.links.shown().renew(read)
    }

    /// Fault injection: see [`Links::set_cut`].
    pub fn set_cut(&self, to: BTreeSet<SocketAddr>) {
        self.shared.links.set_cut(to);
    }
}

impl MetricSource for Handle {
    fn collect(&self, out: &mut Exposition) {
        let shared = &self.shared;
        collect_view(&self.view(), out);
        collect_counters(shared.gauges.counters(), out);
        shared.gauges.collect(shared.commands.max_capacity() - shared.commands.capacity(), out);
        shared.probes.collect(out);
        shared.disk.collect(out);
        let (recorded, kept) = shared.spans.counts();
        out.single("starling_spans_recorded_total", "counter", "Spans recorded on this node.", recorded as f64);
        out.single("starling_spans_kept", "gauge", "Spans still kept on this node.", kept as f64);
        shared.links.collect(out);
        shared.links.shown().collect(out);
        shared.members.collect(out);
    }
}

fn collect_view(view: &View, out: &mut Exposition) {
    out.single("starling_view_revision", "gauge", "Revision of this node's picture.", view.revision.0 as f64);
    out.family("starling_members", "gauge", "Nodes known, by state as seen from here.");
    for (state, name) in [(MemberState::Alive, "alive"), (MemberState::Lost, "lost"), (MemberState::Left, "left")] {
        let count = view.members.values().filter(|member| member.state == state).count();
        out.sample("starling_members", &[("state", name)], count as f64);
    }
    out.family("starling_preserved", "gauge", "Nodes that vanished together and are not taken for dead, by zone.");
    for one in view.preservation.iter() {
        // All of one zone, or the mesh as a whole.
        let zone = one.zone.as_ref().map_or("", |zone| zone.as_str());
        out.sample("starling_preserved", &[("zone", zone)], one.missing.size() as f64);
    }
    out.family("starling_clock_ahead_seconds", "gauge", "How far clocks are off, where that is too much, by node.");
    for clock in view.clocks.iter() {
        let seconds = clock.ahead_ms as f64 / 1e3;
        out.sample("starling_clock_ahead_seconds", &[("node", clock.node.as_str())], seconds);
    }
    let cells: BTreeSet<&CellName> = view.members.values().map(|member| &member.facts.cell).collect();
    let out_of_reach = view.out_of_reach.len();
    out.family("starling_cells", "gauge", "Cells known, this one included, by whether anything is heard of them.");
    out.sample("starling_cells", &[("state", "heard")], cells.len().saturating_sub(out_of_reach) as f64);
    out.sample("starling_cells", &[("state", "out_of_reach")], out_of_reach as f64);
    let relay = view.all_relays().contains(&view.me);
    out.single("starling_relay", "gauge", "1 while this node links its cell with others.", f64::from(u8::from(relay)));
    let of = view.catching_up.as_ref().map_or(0, |reading| reading.of);
    out.single("starling_records", "gauge", "Records held, removals included.", view.fingerprint.count as f64);
    out.single("starling_catching_up_of", "gauge", "Records of the peer this node catches up with, else 0.", of as f64);
    out.single("starling_services", "gauge", "Services with instances.", view.services.size() as f64);
    let (mut ready, mut total) = (0, 0);
    for service in view.services.values() {
        total += service.instances.len();
        ready += service.counts().of(Usability::Ready) as usize;
    }
    out.family("starling_instances", "gauge", "Instances known, by whether they may take traffic.");
    out.sample("starling_instances", &[("usable", "true")], ready as f64);
    out.sample("starling_instances", &[("usable", "false")], (total - ready) as f64);
    let conflicts = view.configs.values().filter(|config| config.in_conflict() && config.served().is_some()).count();
    let served = view.configs.values().filter(|config| config.served().is_some()).count();
    out.single("starling_configs", "gauge", "Configuration documents served.", served as f64);
    out.single("starling_config_conflicts", "gauge", "Documents with concurrent versions.", conflicts as f64);
}

fn collect_counters(counters: Counters, out: &mut Exposition) {
    let mut single = |name: &str, help: &str, value: u64| out.single(name, "counter", help, value as f64);
    single("starling_records_merged_total", "Records from peers that changed the store.", counters.merged);
    single("starling_records_duplicate_total", "Records from peers that were known already.", counters.duplicates);
    single("starling_records_refused_total", "Records from peers that were refused.", counters.refused);
    single("starling_records_pushed_total", "Records pushed to peers, copies counted.", counters.pushed);
    single("starling_tombstones_buried_total", "Tombstones past the horizon.", counters.buried);
    single("starling_records_reburied_total", "Records from peers that were dead, by a grave.", counters.reburied);
    single("starling_graves_dropped_total", "Graves dropped early, being too many.", counters.graves_dropped);
    single("starling_ids_sent_total", "Ids of changes sent in place of the changes.", counters.ids_sent);
    single("starling_ids_dropped_total", "Ids left to repair, since too many waited.", counters.ids_dropped);
    single("starling_grafts_total", "Changes asked for because only their ids had come.", counters.grafts);
    single("starling_prunes_total", "Links told to send ids only, for duplicates.", counters.prunes);
    single("starling_ghosts_expired_total", "Instances of nodes gone for good, expired here.", counters.expired);
    single("starling_instances_reclaimed_total", "Own instances claimed again.", counters.reclaimed);
    single("starling_records_filled_total", "Records sent that repair found peers to lack.", counters.filled);
    single("starling_catch_ups_total", "Times a peer's whole store was read, or read on.", counters.catch_ups);
    single("starling_repairs_begun_total", "Repair exchanges begun.", counters.repairs_begun);
    single("starling_repairs_differing_total", "Repair exchanges that found a difference.", counters.repairs_differing);
}
