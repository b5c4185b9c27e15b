//! What stands in the lanes: doubt, conflicts, writes and their ways, expectations, traffic.

use std::fmt::Write;

use super::draw::{COLOURS, Layout, WIDTH};
use super::model::{Belief, Kind, Run, Write as Written};
use super::text::{Escaped, bytes, count, moment, took};
use super::truths::Span;
use crate::recording::NodeState::{Crashed, Left};

/// How high the strip of traffic is.
pub(super) const TRAFFIC_HEIGHT: f64 = 34.0;
/// The most lines drawn from writes to those who learned of them; the slowest go first.
const MAX_WAYS: usize = 1_500;
/// A way longer than this on the page is drawn heavier: something was in it.
const LATE: f64 = 12.0;
/// Traffic is counted by the second.
const SECOND_US: u64 = 1_000_000;
/// Writes get numbers up to here; beyond, dots.
pub(super) const MAX_NUMBERED: usize = 60;

/// Stripes under and over the bars: whom a node holds for lost, and documents in conflict.
pub(super) fn beliefs(run: &Run, layout: &Layout, out: &mut String) {
    let (bar, stripe) = (layout.bar(), (layout.pitch * 0.09).clamp(1.5, 3.5));
    for node in layout.order.iter().filter(|node| layout.middle[**node].is_some()) {
        let y = layout.middle[*node].unwrap_or_default();
        let lost = |lost: u32| format!("holds {lost} of {} nodes for lost", run.nodes.len());
        for (from, to, number) in stretches(run, *node, |belief| belief.lost) {
            stripe_of(run, layout, (*node, from, to), ("doubt", &lost(number)), (y + bar / 2.0 + 1.0, stripe), out);
        }
        let preserved = |preserved: u32| {
            let nodes = count(preserved as usize, "node");
            format!("preserves itself: so many vanished at once that it takes {nodes} not for dead")
        };
        for (from, to, number) in stretches(run, *node, |belief| belief.preserved) {
            let place = (y + bar / 2.0 + 1.0, stripe);
            stripe_of(run, layout, (*node, from, to), ("preserved", &preserved(number)), place, out);
        }
        let conflicts =
            |conflicts: u32| format!("shows {} with concurrent versions", count(conflicts as usize, "document"));
        for (from, to, number) in stretches(run, *node, |belief| belief.conflicts) {
            let top = y - bar / 2.0 - 1.0 - stripe;
            stripe_of(run, layout, (*node, from, to), ("conflict", &conflicts(number)), (top, stripe), out);
        }
    }
}

fn stripe_of(
    run: &Run,
    layout: &Layout,
    (node, from, to): (usize, u64, u64),
    (class, what): (&str, &str),
    (y, height): (f64, f64),
    out: &mut String,
) {
    let (left, right) = (layout.axis.x(from), layout.axis.x(to));
    let _ = write!(
        out,
        "<g><title>{} {what}\n{} to {}</title><rect class=\"{class}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" \
         height=\"{height:.1}\"/></g>",
        Escaped(&run.nodes[node].name),
        moment(from),
        moment(to),
        (right - left).max(1.0)
    );
}

/// The stretches over which a node's count of something is above zero.
fn stretches(run: &Run, node: usize, count: impl Fn(&Belief) -> u32) -> Vec<(u64, u64, u32)> {
    let ends = run.states.iter().filter(|change| change.node == node && matches!(change.state, Crashed | Left));
    let mut counts: Vec<(u64, u32)> = ends.map(|change| (change.at_us, 0)).collect();
    counts.extend(run.beliefs.iter().filter(|belief| belief.node == node).map(|belief| (belief.at_us, count(belief))));
    counts.sort_by_key(|(at, _)| *at);
    counts.push((run.end_us, 0));
    let mut stretches: Vec<(u64, u64, u32)> = Vec::new();
    for pair in counts.windows(2) {
        let ((from, count), (to, _)) = (pair[0], pair[1]);
        match stretches.last_mut() {
            _ if count == 0 || from == to => {}
            Some(last) if last.1 == from && last.2 == count => last.1 = to,
            _ => stretches.push((from, to, count)),
        }
    }
    stretches
}

/// Expectations, in a row over the lanes.
pub(super) fn checks(run: &Run, layout: &Layout, out: &mut String) {
    let y = layout.checks + 4.0;
    let _ = write!(out, "<text class=\"row-name\" x=\"102\" y=\"{:.1}\">expected</text>", y + 4.0);
    let mut rightmost = f64::NEG_INFINITY;
    for judged in &run.judged {
        let asked = layout.axis.x(judged.asked_us);
        // Several at one moment stand side by side.
        let x = layout.axis.x(judged.at_us).max(rightmost + 9.0).min(layout.axis.right() + 10.0);
        rightmost = x;
        let (class, path) = match judged.held {
            true => ("held", format!("M{:.1} {y:.1}l2.6 2.8 4.6 -5.4", x - 3.4)),
            false => ("failed", format!("M{:.1} {:.1}l6 6m0 -6l-6 6", x - 3.0, y - 3.0)),
        };
        let verdict = match (judged.held, judged.at_us - judged.asked_us) {
            (true, 0) => format!("held at {}", moment(judged.at_us)),
            (true, waited) => format!("held at {}, after {}", moment(judged.at_us), took(waited)),
            (false, _) => format!("NOT SO at {}\n{}", moment(judged.at_us), judged.findings.join("\n")),
        };
        let _ = write!(
            out,
            "<g class=\"check {class}\"><title>{}\n{}</title><line x1=\"{asked:.1}\" x2=\"{x:.1}\" y1=\"{y:.1}\" \
             y2=\"{y:.1}\"/><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"6.5\"/><path d=\"{path}\"/></g>",
            Escaped(&judged.what),
            Escaped(verdict)
        );
    }
}

/// Writes, and the ways they went.
pub(super) fn writes(run: &Run, layout: &Layout, spans: &[Span], out: &mut String) {
    let mut slowest: Vec<u64> =
        run.writes.iter().flat_map(|write| write.learned.iter().map(|(_, at)| at - write.at_us)).collect();
    slowest.sort_unstable();
    let floor = slowest.len().checked_sub(MAX_WAYS).map_or(0, |at| slowest[at]);
    let places = places(run, layout);
    for (at, write) in run.writes.iter().enumerate() {
        let Some((x, y)) = places[at] else { continue };
        let kind = match write.kind {
            Kind::Instance => "instance",
            Kind::Override => "override",
            Kind::Document => "document",
        };
        let _ =
            write!(out, "<g class=\"write {kind}\" tabindex=\"0\"><title>{}</title>", Escaped(story(run, at, write)));
        let held = spans.iter().find(|span| span.node == write.node && span.to_us > write.at_us);
        ways(layout, write, (x, y), (floor, held.map_or(0, |span| span.truth % COLOURS)), out);
        badge(at, write, (x, y), layout, out);
        out.push_str("</g>");
    }
}

/// Where each write's badge stands: in its author's lane, beside what is there already.
fn places(run: &Run, layout: &Layout) -> Vec<Option<(f64, f64)>> {
    let mut rightmost = vec![f64::NEG_INFINITY; run.nodes.len()];
    let apart = if layout.pitch >= 16.0 { 14.0 } else { 3.0 };
    let place = |write: &Written| {
        let y = layout.middle[write.node]?;
        let x = layout.axis.x(write.at_us).max(rightmost[write.node] + apart);
        rightmost[write.node] = x;
        Some((x, y))
    };
    run.writes.iter().map(place).collect()
}

/// Lines from a write to where and when the others learned of it, in the colour of what its author held.
fn ways(layout: &Layout, write: &Written, (x, y): (f64, f64), (floor, colour): (u64, usize), out: &mut String) {
    for (node, at_us) in write.learned.iter().filter(|(node, at)| *node != write.node && at - write.at_us >= floor) {
        let Some(to) = layout.middle[*node] else { continue };
        let learned = layout.axis.x(*at_us).max(x);
        let bend = ((learned - x) * 0.5).min(60.0);
        let late = if learned - x > LATE { " late" } else { "" };
        let _ = write!(
            out,
            "<path class=\"way w{colour}{late}\" d=\"M{x:.1} {y:.1}C{:.1} {y:.1} {:.1} {to:.1} {learned:.1} {to:.1}\"/>\
             <circle class=\"learned\" cx=\"{learned:.1}\" cy=\"{to:.1}\" r=\"2.2\"/>",
            x + bend,
            learned - bend
        );
    }
}

fn badge(at: usize, write: &Written, (x, y): (f64, f64), layout: &Layout, out: &mut String) {
    let small = layout.pitch < 16.0 || at >= MAX_NUMBERED;
    let r = if small { 2.6 } else { 7.2 };
    let gone = if write.removes { " removes" } else { "" };
    let _ = match write.kind {
        Kind::Instance => {
            write!(out, "<circle class=\"badge{gone}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\"/>")
        }
        Kind::Override | Kind::Document => {
            let r = if write.kind == Kind::Document { r * 1.25 } else { r };
            write!(
                out,
                "<path class=\"badge{gone}\" d=\"M{x:.1} {:.1}l{r:.1} {r:.1}l-{r:.1} {r:.1}l-{r:.1} -{r:.1}Z\"/>",
                y - r
            )
        }
    };
    if !small {
        let _ = write!(out, "<text class=\"number\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>", y + 3.2, at + 1);
    }
}

fn story(run: &Run, at: usize, write: &Written) -> String {
    let author = &run.nodes[write.node].name;
    let mut told =
        format!("{}. {}: {}\nwritten at {} at {}", at + 1, write.key, write.says, author, moment(write.at_us));
    for (node, learned) in write.learned.iter().filter(|(node, _)| *node != write.node).take(24) {
        let _ = write!(told, "\n{} after {}", run.nodes[*node].name, took(learned - write.at_us));
    }
    let missing = run.nodes.len().saturating_sub(write.learned.len());
    if missing > 0 {
        let _ = write!(told, "\nnot at {missing} of {} nodes by the end", run.nodes.len());
    }
    told
}

/// How much was said: pushes above, repair below one line.
pub(super) fn traffic(run: &Run, layout: &Layout, out: &mut String) {
    let base = layout.bottom + 14.0 + TRAFFIC_HEIGHT * 0.5;
    if run.traffic.is_empty() {
        return; // of real nodes it is not known
    }
    let most = run.traffic.iter().map(|(push, repair)| *push.max(repair)).max().unwrap_or(0).max(1);
    let _ = write!(
        out,
        "<text class=\"row-name\" x=\"102\" y=\"{:.1}\">push</text><text class=\"row-name\" x=\"102\" \
         y=\"{:.1}\">repair</text>",
        base - 4.0,
        base + 12.0
    );
    // The root of it: one repair exchange must be seen beside a snapshot.
    let scaled = |bytes: u64| (bytes as f64 / most as f64).sqrt() * TRAFFIC_HEIGHT * 0.5;
    for (at, (push, repair)) in run.traffic.iter().enumerate().filter(|(_, (push, repair))| push + repair > 0) {
        let (from, to) = (at as u64 * SECOND_US, (at as u64 + 1) * SECOND_US);
        let (left, right) = (layout.axis.x(from), layout.axis.x(to.min(run.end_us)));
        let width = (right - left).max(0.8);
        let _ = write!(
            out,
            "<g><title>{} to {}\npush {}, repair {}</title><rect class=\"push\" x=\"{left:.1}\" y=\"{:.1}\" \
             width=\"{width:.1}\" height=\"{:.1}\"/><rect class=\"repair\" x=\"{left:.1}\" y=\"{base:.1}\" \
             width=\"{width:.1}\" height=\"{:.1}\"/></g>",
            moment(from),
            moment(to),
            bytes(*push),
            bytes(*repair),
            base - scaled(*push),
            scaled(*push),
            scaled(*repair)
        );
    }
}

/// What the signs mean, in one line under a drawing that stands alone.
pub(super) fn legend(y: f64, out: &mut String) {
    const ENTRIES: [(&str, &str); 9] = [
        ("<rect class=\"truth t0\" x=\"0\" y=\"-6\" width=\"16\" height=\"11\"/>", "holds what most hold"),
        ("<rect class=\"truth t1\" x=\"0\" y=\"-6\" width=\"16\" height=\"11\"/>", "holds something else"),
        ("<rect class=\"doubt\" x=\"0\" y=\"-2\" width=\"16\" height=\"3.5\"/>", "holds others for lost"),
        ("<rect class=\"preserved\" x=\"0\" y=\"-2\" width=\"16\" height=\"3.5\"/>", "preserves itself"),
        ("<rect class=\"conflict\" x=\"0\" y=\"-2\" width=\"16\" height=\"3.5\"/>", "shows a conflict"),
        ("<circle class=\"badge\" cx=\"8\" cy=\"0\" r=\"6\"/>", "a registration"),
        ("<path class=\"badge\" d=\"M8 -7l7 7l-7 7l-7 -7Z\"/>", "a document"),
        ("<line class=\"fence\" x1=\"0\" x2=\"18\" y1=\"0\" y2=\"0\"/>", "cut"),
        ("<path class=\"crash\" d=\"M3 -5l10 10m0 -10l-10 10\"/>", "crash"),
    ];
    let mut x = 14.0;
    for (sign, words) in ENTRIES {
        let _ = write!(
            out,
            "<g transform=\"translate({x:.0} {y:.0})\">{sign}<text class=\"legend\" x=\"22\" y=\"4\">{words}</text></g>"
        );
        x += 38.0 + 5.7 * words.chars().count() as f64;
    }
    debug_assert!(x < WIDTH, "the legend fits its line");
}
