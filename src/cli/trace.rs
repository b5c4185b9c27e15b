//! Traces as trees: who called whom, on which node, and where the time went.

use std::collections::BTreeMap;
use std::io;

use clap::Args;
use starling_api::model::{RecentTraces, SpanInfo, TraceDetail, Unanswered};
use starling_core::observe::{SpanId, SpanKind, TraceId};

use super::client::{Ask, Client};
use super::failure::Failure;
use super::output::{Cell, Out, Style, Table, ago, count, micros};

/// `starling trace`
#[derive(Debug, Args)]
#[command(after_long_help = "\
The node that is asked gathers the parts from all nodes. Each node keeps a limited number of spans; old ones go.
A trace's id is in the answer's `x-starling-trace` header, and `--recent` lists the newest.

Examples:
  starling trace --recent
  starling trace 4bf92f3577b34da6a3ce929d0e0e4736")]
pub(crate) struct TraceArgs {
    /// The trace's id, 32 hex digits; without one, the newest traces are listed
    id: Option<TraceId>,
    /// List the newest traces, so many
    #[arg(long, conflicts_with = "id", num_args = 0..=1, default_missing_value = "20", value_name = "COUNT")]
    recent: Option<u32>,
}

/// How wide the bars are, in characters.
const BAR_COLUMNS: u64 = 32;
/// How deep a tree is shown; deeper spans stand at this depth. What comes from the network may nest without end.
const MAX_DEPTH: usize = 64;

pub(crate) fn run(args: &TraceArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let Some(id) = args.id else {
        let limit = args.recent.unwrap_or(20).to_string();
        let recent: RecentTraces = client.fetch(Ask::get(&["v1", "traces"]).query("limit", &limit))?;
        return if out.wants_json() { Ok(out.json(&recent)?) } else { Ok(show_recent(&recent, out)?) };
    };
    let detail: TraceDetail = client.fetch(Ask::get(&["v1", "traces", &id.to_string()]))?;
    if out.wants_json() { Ok(out.json(&detail)?) } else { Ok(show_trace(&detail, out)?) }
}

fn show_recent(recent: &RecentTraces, out: &mut Out) -> io::Result<()> {
    if recent.roots.is_empty() {
        out.line(
            "no traces yet; send a request through a sidecar: http_proxy=http://127.0.0.1:15001 curl http://NAME.mesh/",
        )?;
    } else {
        let mut table = Table::new(&["TRACE", "WHEN", "CALL", "SERVICE", "NODE", "TOOK", "RESULT"]);
        for root in &recent.roots {
            let (style, result) = result_of(root);
            table.row([
                root.trace.to_string().into(),
                ago(root.start_unix_us / 1_000).into(),
                Cell::from(&root.name),
                Cell::styled(Style::Bold, &root.service),
                Cell::from(&root.node),
                Cell::number(micros(root.duration_us)),
                Cell::styled(style, result),
            ]);
        }
        out.table(&table)?;
    }
    show_unanswered(&recent.unanswered, out)
}

fn show_trace(detail: &TraceDetail, out: &mut Out) -> io::Result<()> {
    if detail.spans.is_empty() {
        out.line(&format!("no node keeps a span of trace {}; nodes keep only the newest ones", detail.trace))?;
        return show_unanswered(&detail.unanswered, out);
    }
    let tree = Tree::of(&detail.spans);
    let nodes: std::collections::BTreeSet<_> = detail.spans.iter().map(|span| &span.node).collect();
    let spans = count(detail.spans.len(), "span");
    out.styled(
        Style::Bold,
        &format!("trace {}  {spans} on {}, {}", detail.trace, count(nodes.len(), "node"), micros(tree.length_us())),
    )?;
    let mut table = Table::new(&["CALL", "SIDE", "NODE", "TOOK", "RESULT", "TIME", "DETAILS"]);
    for line in &tree.lines {
        let (style, result) = result_of(line.span);
        let side = match line.span.kind {
            SpanKind::Client => "caller",
            SpanKind::Server => "callee",
        };
        let attributes = line.span.attributes.iter().map(|(key, value)| format!("{key}={value}"));
        table.row([
            format!("{}{} {}", line.branch, line.span.service, line.span.name).into(),
            side.into(),
            Cell::from(&line.span.node),
            Cell::number(micros(line.span.duration_us)),
            Cell::styled(style, result),
            Cell::styled(style, tree.bar(line, BAR_COLUMNS)),
            Cell::styled(Style::Dim, attributes.collect::<Vec<_>>().join(" ")),
        ]);
    }
    out.table(&table)?;
    if tree.lines.iter().any(|line| line.shifted) {
        out.styled(Style::Dim, "~ the nodes' clocks differ: this part is drawn in the middle of its caller's")?;
    }
    show_unanswered(&detail.unanswered, out)
}

fn show_unanswered(unanswered: &[Unanswered], out: &mut Out) -> io::Result<()> {
    for node in unanswered {
        out.styled(
            Style::Doubtful,
            &format!("node {} did not answer, its spans are missing: {}", node.node, node.error),
        )?;
    }
    Ok(())
}

fn result_of(span: &SpanInfo) -> (Style, String) {
    match (&span.error, span.status) {
        (Some(error), Some(status)) => (Style::Bad, format!("{status} {error}")),
        (Some(error), None) => (Style::Bad, error.clone()),
        (None, Some(status)) if status >= 500 => (Style::Bad, status.to_string()),
        (None, Some(status)) if status >= 400 => (Style::Doubtful, status.to_string()),
        (None, Some(status)) => (Style::Good, status.to_string()),
        (None, None) => (Style::Plain, "done".into()),
    }
}

/// A trace's spans in the order of a tree, with their times on the root's clock.
pub(crate) struct Tree<'a> {
    pub(crate) lines: Vec<Line<'a>>,
}

pub(crate) struct Line<'a> {
    pub(crate) span: &'a SpanInfo,
    /// The branches drawn before its name.
    pub(crate) branch: String,
    /// When it began, on the clock of the root's node as far as can be told.
    start_us: u64,
    /// Whether its own clock said something impossible.
    shifted: bool,
}

impl<'a> Tree<'a> {
    pub(crate) fn of(spans: &'a [SpanInfo]) -> Self {
        let mut children: BTreeMap<Option<SpanId>, Vec<&SpanInfo>> = BTreeMap::new();
        for span in spans {
            // A parent outside the mesh, or one that is no longer kept, makes a root.
            let parent =
                span.parent.filter(|parent| *parent != span.id && spans.iter().any(|other| other.id == *parent));
            children.entry(parent).or_default().push(span);
        }
        let mut tree = Tree { lines: Vec::new() };
        for root in children.remove(&None).unwrap_or_default() {
            tree.add(root, None, String::new(), String::new(), 0, &mut children);
        }
        // Spans that are their own ancestors hang on no root; show them rather than lose them.
        let loose: Vec<_> = children.into_values().flatten().collect();
        for span in loose {
            tree.add(span, None, String::new(), String::new(), 0, &mut BTreeMap::new());
        }
        tree
    }

    fn add(
        &mut self,
        span: &'a SpanInfo,
        parent: Option<(u64, &SpanInfo)>,
        branch: String,
        below: String,
        depth: usize,
        children: &mut BTreeMap<Option<SpanId>, Vec<&'a SpanInfo>>,
    ) {
        let (start_us, shifted) = parent.map_or((span.start_unix_us, false), |parent| place(span, parent));
        self.lines.push(Line { span, branch, start_us, shifted });
        let mine = children.remove(&Some(span.id)).unwrap_or_default();
        let last = mine.len().saturating_sub(1);
        for (at, child) in mine.into_iter().enumerate() {
            let (turn, bar) = if at == last { ("└ ", "  ") } else { ("├ ", "│ ") };
            let (branch, next) = match depth < MAX_DEPTH {
                true => (format!("{below}{turn}"), format!("{below}{bar}")),
                false => (below.clone(), below.clone()),
            };
            self.add(child, Some((start_us, span)), branch, next, depth + 1, children);
        }
    }

    fn start_us(&self) -> u64 {
        self.lines.iter().map(|line| line.start_us).min().unwrap_or(0)
    }

    fn length_us(&self) -> u64 {
        let end = self.lines.iter().map(|line| line.start_us.saturating_add(line.span.duration_us)).max().unwrap_or(0);
        end.saturating_sub(self.start_us())
    }

    /// When and how long, drawn in so many columns.
    pub(crate) fn bar(&self, line: &Line<'_>, columns: u64) -> String {
        let whole = u128::from(self.length_us().max(1));
        let scale = |us: u64| (u128::from(us) * u128::from(columns) / whole).min(u128::from(columns)) as usize;
        let before = scale(line.start_us - self.start_us()).min(columns as usize - 1);
        let length = scale(line.span.duration_us).clamp(1, columns as usize - before);
        let after = columns as usize - before - length;
        let mark = if line.shifted { "~" } else { " " };
        format!("{}{}{}{mark}", "·".repeat(before), "█".repeat(length), "·".repeat(after))
    }
}

/// When a span began on its parent's clock. A span of another node that does not lie within its parent was timed by a
/// clock that differs; it is drawn in the middle, where it is least wrong.
fn place(span: &SpanInfo, (parent_start_us, parent): (u64, &SpanInfo)) -> (u64, bool) {
    let offset = i128::from(span.start_unix_us) - i128::from(parent.start_unix_us);
    let spare_us = parent.duration_us.saturating_sub(span.duration_us);
    let fits = offset >= 0 && offset <= i128::from(spare_us);
    if fits || (span.node == parent.node && offset >= 0) {
        return (parent_start_us.saturating_add(offset as u64), false);
    }
    (parent_start_us.saturating_add(spare_us / 2), span.node != parent.node)
}

#[cfg(test)]
mod tests {
    use super::super::output::captured;
    use super::*;

    fn span(id: &str, parent: Option<&str>, node: &str, start: u64, took: u64) -> SpanInfo {
        let kind = if parent.is_some() { "SERVER" } else { "CLIENT" };
        serde_json::from_value(serde_json::json!({ "trace": format!("{:032x}", 7), "id": format!("{id:0>16}"),
            "parent": parent.map(|parent| format!("{parent:0>16}")), "kind": kind, "node": node, "service": "default/orders",
            "name": "GET", "start_unix_us": start, "duration_us": took, "status": 200 }))
        .unwrap()
    }

    fn shown(spans: Vec<SpanInfo>) -> String {
        let detail = TraceDetail { trace: TraceId(7), spans, unanswered: Vec::new() };
        captured::text(false, |out| show_trace(&detail, out).unwrap())
    }

    #[test]
    fn a_call_between_two_nodes_is_a_tree_with_bars() {
        let text = shown(vec![span("1", None, "a", 1_000_000, 8_000), span("2", Some("1"), "b", 1_002_000, 4_000)]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains("2 spans on 2 nodes, 8.00 ms"), "{text}");
        assert!(lines[2].contains("default/orders GET") && lines[2].contains(&"█".repeat(32)), "{text}");
        let middle = format!("{}{}{}", "·".repeat(8), "█".repeat(16), "·".repeat(8));
        assert!(lines[3].contains("└ default/orders GET") && lines[3].contains(&middle), "{text}");
        assert!(!text.contains('~'), "{text}");
    }

    #[test]
    fn a_clock_that_differs_does_not_tear_the_picture() {
        let text = shown(vec![span("1", None, "a", 1_000_000, 8_000), span("2", Some("1"), "b", 9_000_000, 4_000)]);
        assert!(text.contains("8.00 ms") && text.contains('~'), "{text}");
    }

    #[test]
    fn spans_without_their_parent_and_spans_in_a_circle_are_shown_all_the_same() {
        let orphan = span("2", Some("9"), "b", 5, 1);
        let circle = [span("3", Some("4"), "b", 5, 1), span("4", Some("3"), "b", 5, 1)];
        let text = shown([vec![orphan], circle.to_vec()].concat());
        assert_eq!(text.matches("default/orders GET").count(), 3, "{text}");
    }

    #[test]
    fn a_trace_nobody_keeps_is_explained() {
        assert!(shown(Vec::new()).contains("nodes keep only the newest"));
    }
}
