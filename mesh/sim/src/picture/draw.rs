//! The drawing: lanes and what befalls them.

use std::fmt::Write;

use super::axis::{Axis, Scale};
use super::marks;
use super::model::{Cut, Run};
use super::text::{Escaped, count, moment, names, tick, took};
use super::truths::{Span, spans};
use crate::recording::NodeState;

/// The width of the drawing, and where lanes begin and end in it.
pub(super) const WIDTH: f64 = 1_200.0;
const LEFT: f64 = 112.0;
const RIGHT: f64 = WIDTH - 22.0;
/// How many colours truths have before they begin again.
pub(super) const COLOURS: usize = 6;
/// Rows of words over the lanes that say who is cut from whom; further cuts are only shaded.
const CUT_ROWS: usize = 4;
const ROW: f64 = 19.0;
/// The most lanes drawn; more nodes than this are counted.
const MAX_LANES: usize = 400;
/// A span of another truth is never drawn narrower than this: that it happened must be seen.
const LEAST: f64 = 2.5;
/// The colours, when the drawing stands alone.
const STYLE: &str = include_str!("drawing.css");

/// Where everything is.
pub(super) struct Layout {
    pub(super) axis: Axis,
    /// Nodes from top to bottom, and where each lane's middle is.
    pub(super) order: Vec<usize>,
    pub(super) middle: Vec<Option<f64>>,
    /// Names of zones (and cells), and where their lanes begin and end.
    groups: Vec<(String, f64, f64)>,
    /// Which row tells of which cut.
    cut_rows: Vec<Option<usize>>,
    pub(super) pitch: f64,
    pub(super) checks: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    pub(super) height: f64,
}

impl Layout {
    fn of(run: &Run, scale: Scale) -> Self {
        let axis = Axis::new(run, scale, LEFT, RIGHT);
        let cut_rows = rows(run, &axis);
        let rows = cut_rows.iter().flatten().max().map_or(0, |row| row + 1);
        let order = order(run);
        let pitch = match order.len() {
            0..=8 => 38.0,
            9..=16 => 30.0,
            17..=40 => 20.0,
            41..=100 => 12.0,
            _ => 7.0,
        };
        let checks = 14.0 + rows as f64 * ROW;
        let top = checks + 20.0;
        let (mut groups, mut middle, mut y) = (Vec::new(), vec![None; run.nodes.len()], top);
        let name = |node: usize| (run.nodes[node].cell.as_str(), run.nodes[node].zone.as_str());
        for (at, node) in order.iter().take(MAX_LANES).enumerate() {
            if at == 0 || name(order[at - 1]) != name(*node) {
                y += if at == 0 { 0.0 } else { 10.0 };
                groups.push((group(run, *node), y, y));
            }
            middle[*node] = Some(y + pitch / 2.0);
            y += pitch;
            if let Some(last) = groups.last_mut() {
                last.2 = y;
            }
        }
        let height = y + 22.0 + marks::TRAFFIC_HEIGHT + 26.0;
        Self { axis, order, middle, groups, cut_rows, pitch, checks, top, bottom: y, height }
    }

    pub(super) fn bar(&self) -> f64 {
        (self.pitch * 0.5).max(4.0)
    }
}

/// The drawing. A `lone` one carries its colours and its legend with it.
pub(super) fn svg(run: &Run, scale: Scale, lone: bool) -> String {
    let layout = Layout::of(run, scale);
    let mut out = String::new();
    let legend = if lone { 26.0 } else { 0.0 };
    let height = layout.height + legend;
    let (id, what) = (if scale == Scale::Clock { "clock" } else { "events" }, describe(run));
    let space = if lone { " xmlns=\"http://www.w3.org/2000/svg\"" } else { "" };
    let _ = write!(
        out,
        "<svg{space} viewBox=\"0 0 {WIDTH} {height:.0}\" class=\"drawing\" role=\"img\" \
         aria-labelledby=\"{id}-title {id}-desc\"><title id=\"{id}-title\">{}</title><desc id=\"{id}-desc\">{}</desc>",
        Escaped(if run.title.is_empty() { "A run" } else { &run.title }),
        Escaped(what)
    );
    if lone {
        let _ = write!(
            out,
            "<style>{STYLE}</style><rect class=\"paper\" width=\"{WIDTH}\" height=\"{height:.0}\" rx=\"8\"/>"
        );
    }
    let _ = write!(
        out,
        "<defs><pattern id=\"{id}-hatch\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><rect class=\"hatch\" width=\"2\" height=\"7\"/></pattern></defs>"
    );
    groups(&layout, &mut out);
    ticks(&layout, &mut out);
    run.cuts.iter().zip(&layout.cut_rows).for_each(|(cut, row)| cut_band(run, &layout, (cut, *row), id, &mut out));
    let spans = spans(run);
    lanes(run, &layout, &spans, &mut out);
    states(run, &layout, id, &mut out);
    marks::beliefs(run, &layout, &mut out);
    fences(run, &layout, &mut out);
    marks::checks(run, &layout, &mut out);
    marks::writes(run, &layout, &spans, &mut out);
    marks::traffic(run, &layout, &mut out);
    if lone {
        marks::legend(layout.height + 4.0, &mut out);
    }
    out.push_str("</svg>");
    out
}

fn describe(run: &Run) -> String {
    let failed = run.judged.iter().filter(|judged| !judged.held).count();
    format!(
        "{} over {}; {}, {}, {} of which {failed} failed. Each lane is a node; lanes of one colour hold the same data.",
        count(run.nodes.len(), "node"),
        moment(run.end_us),
        count(run.cuts.len(), "cut"),
        count(run.writes.len(), "write"),
        count(run.judged.len(), "expectation")
    )
}

/// Nodes from top to bottom: by cell and zone, and within those such that the sides of the first cut stay together.
fn order(run: &Run) -> Vec<usize> {
    let mut places: Vec<(&str, &str)> = Vec::new();
    for node in &run.nodes {
        if !places.contains(&(&node.cell, &node.zone)) {
            places.push((&node.cell, &node.zone));
        }
    }
    places.sort_by_key(|(cell, _)| places_of(run, cell));
    let side = |node: usize| match run.cuts.first() {
        Some(cut) if cut.from.contains(&node) => 0,
        Some(cut) if cut.to.contains(&node) => 1,
        _ => 2,
    };
    let place = |node: usize| places.iter().position(|place| *place == (&run.nodes[node].cell, &run.nodes[node].zone));
    let mut order: Vec<usize> = (0..run.nodes.len()).collect();
    order.sort_by_key(|node| (place(*node), side(*node), *node));
    order
}

/// The first node of a cell.
fn places_of(run: &Run, cell: &str) -> Option<usize> {
    run.nodes.iter().position(|node| node.cell == cell)
}

fn group(run: &Run, node: usize) -> String {
    let cells = run.nodes.iter().any(|other| other.cell != run.nodes[0].cell);
    let node = &run.nodes[node];
    if cells && node.cell != node.zone { format!("{} · {}", node.cell, node.zone) } else { node.zone.clone() }
}

fn groups(layout: &Layout, out: &mut String) {
    for (at, (name, from, to)) in layout.groups.iter().enumerate() {
        let shade = if at % 2 == 0 { "zone even" } else { "zone" };
        let height = to - from;
        let _ = write!(
            out,
            "<rect class=\"{shade}\" x=\"4\" y=\"{from:.1}\" width=\"{:.1}\" height=\"{height:.1}\" rx=\"6\"/>",
            WIDTH - 8.0
        );
        if layout.groups.len() > 1 {
            let y = from + height / 2.0;
            let _ = write!(
                out,
                "<text class=\"zone-name\" transform=\"translate(17 {y:.1}) rotate(-90)\">{}</text>",
                Escaped(name)
            );
        }
    }
}

fn ticks(layout: &Layout, out: &mut String) {
    let y = layout.height - 12.0;
    for (at, apart) in layout.axis.ticks(78.0) {
        let x = layout.axis.x(at);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <text class=\"tick\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
            layout.top,
            y - 12.0,
            tick(at, apart)
        );
    }
}

/// Which cut is told in which row: the first where it does not run into another's words.
fn rows(run: &Run, axis: &Axis) -> Vec<Option<usize>> {
    let mut ends = [f64::NEG_INFINITY; CUT_ROWS];
    let row = |cut: &Cut| {
        let from = axis.x(cut.begin_us);
        let to = axis.x(cut.end_us.unwrap_or(run.end_us)).max(from + 6.5 * words(run, cut).chars().count() as f64);
        let free = ends.iter().position(|end| *end + 8.0 <= from)?;
        ends[free] = to;
        Some(free)
    };
    run.cuts.iter().map(row).collect()
}

fn words(run: &Run, cut: &Cut) -> String {
    let side = |side: &[usize]| names(&side.iter().map(|node| run.nodes[*node].name.as_str()).collect::<Vec<_>>());
    let sign = if cut.one_way { "→✕" } else { "✕" };
    format!("{} {sign} {}", side(&cut.from), side(&cut.to))
}

fn cut_band(run: &Run, layout: &Layout, (cut, row): (&Cut, Option<usize>), id: &str, out: &mut String) {
    let end = cut.end_us.unwrap_or(run.end_us);
    let (from, to) = (layout.axis.x(cut.begin_us), layout.axis.x(end));
    let (top, height) = (layout.checks - 8.0, layout.bottom - layout.checks + 8.0);
    let lasted = match cut.end_us {
        Some(_) => format!("healed after {}", took(end - cut.begin_us)),
        None => "never healed".into(),
    };
    let way = if cut.one_way { "one way: what the left say does not reach the right" } else { "both ways" };
    let _ = write!(
        out,
        "<g class=\"cut\"><title>cut at {}, {lasted}\n{}\n{way}</title>\
         <rect class=\"band\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>\
         <rect fill=\"url(#{id}-hatch)\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
        moment(cut.begin_us),
        Escaped(words(run, cut)),
        (to - from).max(1.0),
        (to - from).max(1.0),
    );
    if let Some(row) = row {
        let y = 15.0 + row as f64 * ROW;
        let (label, room) = (words(run, cut), RIGHT - 6.5 * words(run, cut).chars().count() as f64);
        let _ = write!(
            out,
            "<path class=\"edge\" d=\"M{from:.1} {:.1}V{y:.1}H{to:.1}V{:.1}\"/>\
             <text class=\"cut-name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            layout.bottom,
            layout.bottom,
            (from + 4.0).min(room.max(LEFT)),
            y - 4.0,
            Escaped(label)
        );
    }
    out.push_str("</g>");
}

/// A fence between neighbouring lanes that a cut keeps apart.
fn fences(run: &Run, layout: &Layout, out: &mut String) {
    for cut in &run.cuts {
        let (from, to) = (layout.axis.x(cut.begin_us), layout.axis.x(cut.end_us.unwrap_or(run.end_us)));
        for pair in layout.order.windows(2) {
            let apart = |a: &usize, b: &usize| cut.from.contains(a) && cut.to.contains(b);
            let [Some(above), Some(below)] = [layout.middle[pair[0]], layout.middle[pair[1]]] else { continue };
            if !apart(&pair[0], &pair[1]) && !apart(&pair[1], &pair[0]) {
                continue;
            }
            let y = (above + below) / 2.0;
            let _ = write!(out, "<line class=\"fence\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
            if cut.one_way {
                let down = apart(&pair[0], &pair[1]);
                let (tip, back) = if down { (y + 5.0, y - 4.0) } else { (y - 5.0, y + 4.0) };
                let x = (from + to) / 2.0;
                let _ = write!(
                    out,
                    "<path class=\"fence-way\" d=\"M{:.1} {back:.1}H{:.1}L{x:.1} {tip:.1}Z\"/>",
                    x - 5.0,
                    x + 5.0
                );
            }
        }
    }
}

fn lanes(run: &Run, layout: &Layout, spans: &[Span], out: &mut String) {
    for node in layout.order.iter().filter(|node| layout.middle[**node].is_some()) {
        let y = layout.middle[*node].unwrap_or_default();
        let _ = write!(out, "<line class=\"down\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",);
        if layout.pitch >= 10.0 {
            let name = Escaped(&run.nodes[*node].name);
            let _ = write!(out, "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>", LEFT - 10.0, y + 4.0);
        }
    }
    // Truth 0 first, so that a short time of another is not painted over.
    for common in [true, false] {
        for (at, span) in spans.iter().enumerate().filter(|(_, span)| (span.truth == 0) == common) {
            let before = at.checked_sub(1).map(|before| spans[before]);
            let goes_on = before.is_some_and(|before| {
                (before.node, before.to_us) == (span.node, span.from_us) && before.letter() == span.letter()
            });
            bar(run, layout, span, goes_on, out);
        }
    }
}

/// One span of a lane. The letter says what its colour says, where it begins.
fn bar(run: &Run, layout: &Layout, span: &Span, goes_on: bool, out: &mut String) {
    let Some(y) = layout.middle[span.node] else { return };
    let bar = layout.bar();
    let (from, to) = (layout.axis.x(span.from_us), layout.axis.x(span.to_us));
    let width = if span.truth == 0 { to - from } else { (to - from).max(LEAST) };
    let with = match span.shared {
        (1, 1) => "alone".to_owned(),
        (all, up) if all == up => format!("the same as all {up} that are up"),
        (1, up) => format!("what none of the other {} that are up holds", up - 1),
        (some, up) => format!("the same as {} of the other {} that are up", some - 1, up - 1),
    };
    let _ = write!(
        out,
        "<g><title>{} holds {with}\n{} to {}</title><rect class=\"truth t{}\" x=\"{from:.1}\" y=\"{:.1}\" \
         width=\"{width:.2}\" height=\"{bar:.1}\"/>",
        Escaped(&run.nodes[span.node].name),
        moment(span.from_us),
        moment(span.to_us),
        span.truth % COLOURS,
        y - bar / 2.0
    );
    if let Some(letter) = span.letter().filter(|_| !goes_on && width > 44.0 && bar >= 12.0) {
        let _ = write!(out, "<text class=\"letter\" x=\"{:.1}\" y=\"{:.1}\">{letter}</text>", from + 26.0, y + 4.0);
    }
    out.push_str("</g>");
}

/// Crashes, stops and pauses, each until the node is up again.
fn states(run: &Run, layout: &Layout, id: &str, out: &mut String) {
    let bar = layout.bar();
    for (at, change) in run.states.iter().enumerate() {
        let Some(y) = layout.middle[change.node] else { continue };
        let until = run.states[at + 1..].iter().find(|later| later.node == change.node);
        let until = until.map_or(run.end_us, |later| later.at_us);
        let (from, to) = (layout.axis.x(change.at_us), layout.axis.x(until));
        let name = Escaped(&run.nodes[change.node].name);
        let (when, lasted) = (moment(change.at_us), took(until - change.at_us));
        let half = (bar / 2.0).min(6.0);
        let _ = match change.state {
            NodeState::Running if change.at_us == 0 => Ok(()),
            NodeState::Running => write!(
                out,
                "<g><title>{name} runs from {when}</title><path class=\"start\" d=\"M{from:.1} {:.1}V{:.1}L{:.1} {y:.1}Z\"/></g>",
                y - half,
                y + half,
                from + half * 1.4
            ),
            NodeState::Paused => write!(
                out,
                "<g><title>{name} stands still at {when}, for {lasted}</title><rect class=\"paused\" x=\"{from:.1}\" \
                 y=\"{:.1}\" width=\"{:.1}\" height=\"{bar:.1}\"/><rect fill=\"url(#{id}-hatch)\" x=\"{from:.1}\" \
                 y=\"{:.1}\" width=\"{:.1}\" height=\"{bar:.1}\"/></g>",
                y - bar / 2.0,
                to - from,
                y - bar / 2.0,
                to - from
            ),
            NodeState::Crashed => write!(
                out,
                "<g><title>{name} crashes at {when}, down for {lasted}</title><path class=\"crash\" \
                 d=\"M{:.1} {:.1}l{:.1} {:.1}m0 {:.1}l{:.1} {:.1}\"/></g>",
                from - half,
                y - half,
                2.0 * half,
                2.0 * half,
                -2.0 * half,
                -2.0 * half,
                2.0 * half
            ),
            NodeState::Left => write!(
                out,
                "<g><title>{name} stops cleanly at {when}, away for {lasted}</title><rect class=\"left\" x=\"{:.1}\" \
                 y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/></g>",
                from - half,
                y - half,
                2.0 * half,
                2.0 * half
            ),
        };
    }
}
