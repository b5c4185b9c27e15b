//! A recording as it is drawn: two one-way cuts of the same links are one cut, beliefs are in order of time, keys are as
//! people say them.

use crate::recording::{CutSpan, Judged, NodeState, Recording, WriteTrack};

/// A run, ready to be drawn.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) title: String,
    pub(super) nodes: Vec<Node>,
    pub(super) end_us: u64,
    /// What nodes hold from when on, in order of time.
    pub(super) beliefs: Vec<Belief>,
    /// What hosts do from when on, in order of time.
    pub(super) states: Vec<Change>,
    pub(super) cuts: Vec<Cut>,
    pub(super) writes: Vec<Write>,
    pub(super) judged: Vec<Judged>,
    /// Bytes of pushes and of everything else, second by second.
    pub(super) traffic: Vec<(u64, u64)>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) zone: String,
    pub(super) cell: String,
}

#[derive(Debug, Clone)]
pub(super) struct Belief {
    pub(super) at_us: u64,
    pub(super) node: usize,
    pub(super) store: String,
    pub(super) lost: u32,
    pub(super) preserved: u32,
    pub(super) conflicts: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) at_us: u64,
    pub(super) node: usize,
    pub(super) state: NodeState,
}

#[derive(Debug)]
pub(super) struct Cut {
    pub(super) from: Vec<usize>,
    pub(super) to: Vec<usize>,
    pub(super) one_way: bool,
    pub(super) begin_us: u64,
    pub(super) end_us: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Instance,
    Override,
    Document,
}

#[derive(Debug)]
pub(super) struct Write {
    pub(super) at_us: u64,
    pub(super) node: usize,
    pub(super) kind: Kind,
    pub(super) key: String,
    pub(super) says: String,
    pub(super) removes: bool,
    /// Who came to know, and when.
    pub(super) learned: Vec<(usize, u64)>,
}

impl Run {
    pub(super) fn of(recording: &Recording, title: &str) -> Self {
        let tracks = || recording.nodes.iter().enumerate();
        let node = |track: &crate::recording::NodeTrack| Node {
            name: track.name.clone(),
            zone: track.zone.clone(),
            cell: track.cell.clone(),
        };
        let held = tracks().flat_map(|(node, track)| track.held.iter().map(move |held| (node, held)));
        let belief = |(node, held): (usize, &crate::recording::Held)| Belief {
            at_us: held.at_us,
            node,
            store: held.store.clone(),
            lost: held.lost,
            preserved: held.preserved,
            conflicts: held.conflicts,
        };
        let mut beliefs: Vec<Belief> = held.map(belief).collect();
        beliefs.sort_by_key(|belief| belief.at_us);
        let changes = tracks().flat_map(|(node, track)| {
            track.states.iter().map(move |change| Change { at_us: change.at_us, node, state: change.state })
        });
        let mut states: Vec<Change> = changes.collect();
        states.sort_by_key(|change| change.at_us);
        let second = |second: &crate::recording::Second| {
            let push = second.sent.get("push").map_or(0, |sent| sent.bytes);
            (push, second.sent.values().map(|sent| sent.bytes).sum::<u64>() - push)
        };
        Self {
            title: title.to_owned(),
            nodes: recording.nodes.iter().map(node).collect(),
            end_us: recording.elapsed_us,
            beliefs,
            states,
            cuts: cuts(&recording.cuts),
            writes: recording.writes.iter().map(write).collect(),
            judged: recording.judged.clone(),
            traffic: recording.seconds.iter().map(second).collect(),
        }
    }
}

fn write(track: &WriteTrack) -> Write {
    let (kind, key) = track.key.split_once(' ').unwrap_or(("document", &track.key));
    let kind = match kind {
        "instance" => Kind::Instance,
        "override" => Kind::Override,
        _ => Kind::Document,
    };
    let learned = track.seen_us.iter().enumerate().filter_map(|(node, at)| Some((node, (*at)?)));
    Write {
        at_us: track.at_us,
        node: track.author as usize,
        kind,
        // The namespace everything is in unless somebody says otherwise says nothing.
        key: key.strip_prefix("default/").unwrap_or(key).to_owned(),
        says: track.says.clone(),
        removes: track.removal,
        learned: learned.collect(),
    }
}

/// Cuts as people made them: both ways where both ways were cut at once.
fn cuts(spans: &[CutSpan]) -> Vec<Cut> {
    let mut taken = vec![false; spans.len()];
    let mut cuts = Vec::new();
    for (at, span) in spans.iter().enumerate() {
        if taken[at] {
            continue;
        }
        let back = spans.iter().enumerate().skip(at + 1).find(|(other, back)| {
            !taken[*other]
                && (&back.from, &back.to) == (&span.to, &span.from)
                && (back.begin_us, back.end_us) == (span.begin_us, span.end_us)
        });
        if let Some((other, _)) = back {
            taken[other] = true;
        }
        let [from, to] = [&span.from, &span.to].map(|side| side.iter().map(|node| *node as usize).collect());
        cuts.push(Cut { from, to, one_way: back.is_none(), begin_us: span.begin_us, end_us: span.end_us });
    }
    cuts
}
