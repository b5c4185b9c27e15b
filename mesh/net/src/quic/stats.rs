//! What the links count.

use std::sync::atomic::{AtomicU64, Ordering};

use starling_core::observe::Exposition;

use super::table::Table;

/// Membership's traffic, counted beside the kinds of [`starling_core::wire::Message`].
pub(super) const GOSSIP: &str = "gossip";
/// Words of membership about links.
pub(super) const WORDS: &str = "words";
/// What newer peers say and this release does not know.
pub(super) const OTHER: &str = "other";
/// All kinds that are counted apart; whatever else there may be one day is counted as the last.
const KINDS: [&str; 21] = [
    "push",
    "have",
    "graft",
    "prune",
    "beacon",
    "opening",
    "ranges",
    "entries",
    "want",
    "fill",
    "same",
    "pull",
    "page",
    "leaving",
    "pulse",
    "out_of_reach",
    "clock",
    "usage",
    GOSSIP,
    WORDS,
    OTHER,
];

/// Counters of one kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KindStats {
    /// Messages put into a peer's mailbox.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Messages that did not fit, had nobody to go to, or were lost with a connection.
    pub dropped: u64,
    /// Messages that came in.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

/// What the links have counted since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkStats {
    /// By kind of message.
    pub kinds: Vec<(&'static str, KindStats)>,
    /// Peers in the address book or linked.
    pub peers: u64,
    /// Peers with a link.
    pub peers_up: u64,
    /// Attempts to dial.
    pub dials: u64,
    /// Connections made or accepted, both kinds.
    pub connects: u64,
    /// Peers that were refused, or refused this node.
    pub refusals: u64,
    /// Nodes refused because a living one has their name.
    pub namesakes: u64,
    /// Frames that could not be read.
    pub malformed: u64,
    /// Records left out of messages: malformed, or of a kind or shape that only newer releases know.
    pub records_skipped: u64,
    /// Tunnels opened to peers.
    pub tunnels_out: u64,
    /// Tunnels opened by peers.
    pub tunnels_in: u64,
    /// Tunnels and questions of peers turned away because the inbox was full.
    pub turned_away: u64,
    /// Questions asked of peers.
    pub questions_out: u64,
    /// Questions asked by peers.
    pub questions_in: u64,
}

impl LinkStats {
    /// The counters of one kind.
    pub fn kind(&self, kind: &str) -> KindStats {
        self.kinds.iter().find(|(name, _)| *name == kind).map(|(_, stats)| *stats).unwrap_or_default()
    }

    pub(super) fn collect(&self, out: &mut Exposition) {
        type Field = fn(&KindStats) -> u64;
        let families: [(&str, &str, Field); 5] = [
            ("starling_link_sent_total", "Messages given to links, by kind", |k| k.sent),
            ("starling_link_sent_bytes_total", "Bytes given to links, by kind", |k| k.sent_bytes),
            ("starling_link_dropped_total", "Messages dropped before they were sent, by kind", |k| k.dropped),
            ("starling_link_received_total", "Messages received, by kind", |k| k.received),
            ("starling_link_received_bytes_total", "Bytes received, by kind", |k| k.received_bytes),
        ];
        for (name, help, field) in families {
            out.family(name, "counter", help);
            for (kind, stats) in &self.kinds {
                out.sample(name, &[("kind", kind)], field(stats) as f64);
            }
        }
        out.single("starling_link_peers", "gauge", "Peers known to the links", self.peers as f64);
        out.single("starling_link_peers_up", "gauge", "Peers with a link", self.peers_up as f64);
        for (name, help, value) in [
            ("starling_link_dials_total", "Attempts to dial a peer", self.dials),
            ("starling_link_connects_total", "Connections made or accepted", self.connects),
            ("starling_link_refusals_total", "Peers refused, or refusing this node", self.refusals),
            ("starling_link_namesakes_total", "Nodes refused because a living one has their name", self.namesakes),
            ("starling_link_malformed_total", "Frames that could not be read", self.malformed),
            (
                "starling_link_records_skipped_total",
                "Records of peers left out: malformed, or known to newer releases only",
                self.records_skipped,
            ),
            ("starling_tunnels_opened_total", "Tunnels opened to peers", self.tunnels_out),
            ("starling_tunnels_accepted_total", "Tunnels opened by peers", self.tunnels_in),
            ("starling_streams_turned_away_total", "Tunnels and questions refused as too many", self.turned_away),
            ("starling_questions_asked_total", "Questions asked of peers", self.questions_out),
            ("starling_questions_answered_total", "Questions asked by peers", self.questions_in),
        ] {
            out.single(name, "counter", help, value as f64);
        }
    }
}

/// The live counters.
#[derive(Default)]
pub(super) struct Stats {
    kinds: [KindCounters; KINDS.len()],
    dials: AtomicU64,
    connects: AtomicU64,
    refusals: AtomicU64,
    namesakes: AtomicU64,
    malformed: AtomicU64,
    records_skipped: AtomicU64,
    tunnels_out: AtomicU64,
    tunnels_in: AtomicU64,
    turned_away: AtomicU64,
    questions_out: AtomicU64,
    questions_in: AtomicU64,
}

#[derive(Default)]
struct KindCounters {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    dropped: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Stats {
    fn of(&self, kind: &str) -> &KindCounters {
        let index = KINDS.iter().position(|name| *name == kind).unwrap_or(KINDS.len() - 1);
        &self.kinds[index]
    }

    pub(super) fn sent(&self, kind: &str, bytes: usize) {
        add(&self.of(kind).sent, 1);
        add(&self.of(kind).sent_bytes, bytes);
    }

    pub(super) fn dropped(&self, kind: &str, count: usize) {
        add(&self.of(kind).dropped, count);
    }

    pub(super) fn received(&self, kind: &str, bytes: usize) {
        add(&self.of(kind).received, 1);
        add(&self.of(kind).received_bytes, bytes);
    }

    pub(super) fn dialled(&self) {
        add(&self.dials, 1);
    }

    pub(super) fn connected(&self) {
        add(&self.connects, 1);
    }

    pub(super) fn refused(&self) {
        add(&self.refusals, 1);
    }

    pub(super) fn namesake(&self) {
        add(&self.namesakes, 1);
    }

    pub(super) fn malformed(&self) {
        add(&self.malformed, 1);
    }

    pub(super) fn skipped(&self, records: usize) {
        add(&self.records_skipped, records);
    }

    pub(super) fn tunnel_opened(&self) {
        add(&self.tunnels_out, 1);
    }

    pub(super) fn tunnel_accepted(&self) {
        add(&self.tunnels_in, 1);
    }

    pub(super) fn turned_away(&self) {
        add(&self.turned_away, 1);
    }

    pub(super) fn question_asked(&self) {
        add(&self.questions_out, 1);
    }

    pub(super) fn question_heard(&self) {
        add(&self.questions_in, 1);
    }

    pub(super) fn read(&self, table: &Table) -> LinkStats {
        let (peers, peers_up) = table.counts();
        let kind = |counters: &KindCounters| KindStats {
            sent: load(&counters.sent),
            sent_bytes: load(&counters.sent_bytes),
            dropped: load(&counters.dropped),
            received: load(&counters.received),
            received_bytes: load(&counters.received_bytes),
        };
        LinkStats {
            kinds: KINDS.iter().zip(&self.kinds).map(|(name, counters)| (*name, kind(counters))).collect(),
            peers,
            peers_up,
            dials: load(&self.dials),
            connects: load(&self.connects),
            refusals: load(&self.refusals),
            namesakes: load(&self.namesakes),
            malformed: load(&self.malformed),
            records_skipped: load(&self.records_skipped),
            tunnels_out: load(&self.tunnels_out),
            tunnels_in: load(&self.tunnels_in),
            turned_away: load(&self.turned_away),
            questions_out: load(&self.questions_out),
            questions_in: load(&self.questions_in),
        }
    }
}
