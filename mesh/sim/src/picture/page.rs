//! The page around the drawing: verdict, how to run it again, figures, tables, and the story in words.

use std::fmt::Write;

use super::Page;
use super::axis::Scale;
use super::draw;
use super::marks::MAX_NUMBERED;
use super::model::{Kind, Run, Write as Written};
use super::text::{Escaped, bytes, count, moment, took, took_by};
use crate::report::Report;

const DRAWING: &str = include_str!("drawing.css");
const STYLE: &str = include_str!("page.css");
/// Shows at once, beside the pointer, what the drawing's titles say; without it, a browser shows them after a while.
const SCRIPT: &str = include_str!("page.js");
/// The most rows of a table.
const MAX_ROWS: usize = 500;

pub(super) fn html(page: &Page) -> String {
    let run = &Run::of(page.recording, page.title);
    let title = if page.title.is_empty() { "a simulated run" } else { page.title };
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>{}</title>\n<style>\n{DRAWING}{STYLE}</style></head>\n<body><main>\n",
        Escaped(title)
    );
    header(page, run, title, &mut out);
    cards(page, run, &mut out);
    drawing(run, &mut out);
    checks(run, &mut out);
    writes(run, &mut out);
    if let Some(report) = page.report {
        figures(report, &mut out);
    }
    story(page, &mut out);
    let _ = write!(
        out,
        "</main><div id=\"tip\" role=\"presentation\" hidden></div>\n<script>\n{SCRIPT}</script></body></html>\n"
    );
    out
}

fn header(page: &Page, run: &Run, title: &str, out: &mut String) {
    let failed = run.judged.iter().filter(|judged| !judged.held).count();
    let (class, verdict) = match (page.ok, run.judged.len()) {
        (true, 0) => ("none", "nothing was expected".to_owned()),
        (true, all) => ("good", format!("all {all} expectations held")),
        (false, _) if failed == 0 => ("bad", "not everything that was asked was done".to_owned()),
        (false, all) => ("bad", format!("{failed} of {all} expectations failed")),
    };
    let _ = writeln!(
        out,
        "<header><h1>{}</h1><p class=\"verdict {class}\">{}</p><p class=\"replay\">Run it again: <code>{}</code></p></header>",
        Escaped(title),
        Escaped(verdict),
        Escaped(page.replay)
    );
}

fn cards(page: &Page, run: &Run, out: &mut String) {
    let mut cards = vec![
        ("nodes", run.nodes.len().to_string(), zones(run)),
        (
            "virtual time",
            moment(run.end_us),
            format!("{}, {}", count(run.writes.len(), "write"), count(run.cuts.len(), "cut")),
        ),
    ];
    if let Some(report) = page.report {
        let (spread, trouble) = (&report.visible, &report.visible_through_faults);
        if spread.count() > 0 {
            let more =
                format!("a change, at the median; the slowest of {} in {}", spread.count(), took_by(spread.max()));
            cards.push(("everywhere in", took_by(spread.quantile(0.5)), more));
        }
        if trouble.count() > 0 {
            let more = format!("the slowest of {} changes that met a fault", trouble.count());
            cards.push(("through faults", took_by(trouble.max()), more));
        }
        let total = report.total();
        let seconds = report.elapsed.as_secs_f64().max(1e-6) * report.nodes.max(1) as f64;
        let each = bytes((total.bytes as f64 / seconds) as u64);
        cards.push(("sent", bytes(total.bytes), format!("{} messages; {each}/s a node", total.messages)));
    }
    if let Some((longest, at)) = longest_disagreement(run) {
        cards.push(("apart for", took(longest), format!("the longest: {at}")));
    }
    out.push_str("<section class=\"cards\" aria-label=\"Key figures\">");
    for (what, figure, more) in cards {
        let _ = write!(
            out,
            "<div class=\"card\"><span>{}</span><b>{}</b><small>{}</small></div>",
            Escaped(what),
            Escaped(figure),
            Escaped(more)
        );
    }
    out.push_str("</section>\n");
}

fn zones(run: &Run) -> String {
    let mut zones: Vec<&str> = run.nodes.iter().map(|node| node.zone.as_str()).collect();
    zones.sort_unstable();
    zones.dedup();
    match zones.len() {
        1 => format!("in zone {}", zones[0]),
        many => format!("in {many} zones"),
    }
}

/// The longest a node held something else than most, and which.
fn longest_disagreement(run: &Run) -> Option<(u64, String)> {
    let mut apart: Vec<(usize, u64, u64)> = Vec::new();
    for span in super::truths::spans(run).into_iter().filter(|span| span.truth > 0) {
        match apart.last_mut() {
            Some((node, _, to)) if *node == span.node && *to == span.from_us => *to = span.to_us,
            _ => apart.push((span.node, span.from_us, span.to_us)),
        }
    }
    let (node, from, to) = apart.into_iter().max_by_key(|(_, from, to)| to - from)?;
    Some((to - from, format!("{} from {}", run.nodes[node].name, moment(from))))
}

fn drawing(run: &Run, out: &mut String) {
    out.push_str(
        "<section class=\"figure\" aria-label=\"Who held what, and when\">\
         <input type=\"radio\" name=\"scale\" id=\"by-events\" checked><label for=\"by-events\">Event time</label>\
         <input type=\"radio\" name=\"scale\" id=\"by-clock\"><label for=\"by-clock\">Clock time</label>\
         <span class=\"hint\">Event time presses quiet stretches together, so that milliseconds show beside minutes. \
         Point at anything for its story.</span>\n",
    );
    for (class, scale) in [("events", Scale::Events), ("clock", Scale::Clock)] {
        let _ = writeln!(out, "<div class=\"{class} scroll\">{}</div>", draw::svg(run, scale, false));
    }
    legend(out);
    out.push_str("</section>\n");
}

fn legend(out: &mut String) {
    const ENTRIES: [(&str, &str, &str); 11] = [
        (
            "<rect class=\"truth t0\" width=\"22\" height=\"12\" y=\"2\"/>",
            "holds what most hold",
            "lanes of one colour hold the same, byte for byte",
        ),
        (
            "<rect class=\"truth t1\" width=\"22\" height=\"12\" y=\"2\"/>",
            "holds something else",
            "one colour for each group that agrees",
        ),
        (
            "<line class=\"fence\" x2=\"22\" y1=\"8\" y2=\"8\"/>",
            "cut",
            "lanes on its two sides do not reach each other; an arrowhead: only that way is cut",
        ),
        ("<rect class=\"doubt\" width=\"22\" height=\"4\" y=\"6\"/>", "under a lane", "it holds other nodes for lost"),
        (
            "<rect class=\"preserved\" width=\"22\" height=\"4\" y=\"6\"/>",
            "under a lane",
            "self-preservation: so many vanished at once that it takes them not for dead",
        ),
        (
            "<rect class=\"conflict\" width=\"22\" height=\"4\" y=\"6\"/>",
            "over a lane",
            "it shows a document with concurrent versions: a conflict for people to decide",
        ),
        (
            "<circle class=\"badge\" cx=\"11\" cy=\"8\" r=\"7\"/>",
            "a registration",
            "dashed: a removal; the lines lead to where and when others learned of it",
        ),
        ("<path class=\"badge\" d=\"M11 0l8 8l-8 8l-8 -8Z\"/>", "a document", "or, smaller, an operator's override"),
        (
            "<path class=\"crash\" d=\"M6 3l10 10m0 -10l-10 10\"/>",
            "crash",
            "the dotted lane is a node that is not there",
        ),
        ("<path class=\"start\" d=\"M6 2V14L16 8Z\"/>", "start", "with its disk, and a newer incarnation"),
        (
            "<g class=\"check held\"><circle cx=\"11\" cy=\"8\" r=\"6.5\"/><path d=\"M7.6 8l2.6 2.8l4.6 -5.4\"/></g>",
            "expected",
            "green: it held; red: it did not",
        ),
    ];
    out.push_str("<ul class=\"legend drawing\">");
    for (sign, words, more) in ENTRIES {
        let _ = write!(
            out,
            "<li><svg width=\"22\" height=\"16\" aria-hidden=\"true\">{sign}</svg><span><b>{words}</b> {more}</span></li>"
        );
    }
    out.push_str("</ul>");
}

fn checks(run: &Run, out: &mut String) {
    if run.judged.is_empty() {
        return;
    }
    out.push_str("<section><h2>What was expected</h2><div class=\"scroll\"><table><thead><tr><th></th><th class=\"n\">at</th><th>expectation</th><th class=\"n\">waited</th></tr></thead><tbody>\n");
    for judged in run.judged.iter().take(MAX_ROWS) {
        let (class, sign) = if judged.held { ("good", "✓") } else { ("bad", "✗") };
        let waited = judged.at_us - judged.asked_us;
        let waited = if waited == 0 { String::new() } else { took(waited) };
        let _ = write!(
            out,
            "<tr class=\"{class}\"><td>{sign}</td><td class=\"n\">{}</td><td>{}",
            moment(judged.at_us),
            Escaped(&judged.what)
        );
        for finding in judged.findings.iter().take(12) {
            let _ = write!(out, "<br><small>{}</small>", Escaped(finding));
        }
        let _ = writeln!(out, "</td><td class=\"n\">{waited}</td></tr>");
    }
    rest(run.judged.len(), 4, out);
    out.push_str("</tbody></table></div></section>\n");
}

fn writes(run: &Run, out: &mut String) {
    if run.writes.is_empty() {
        return;
    }
    out.push_str("<section><h2>What was written, and when everybody knew</h2><div class=\"scroll\"><table><thead><tr><th class=\"n\">no.</th><th class=\"n\">at</th><th>node</th><th>what</th><th>says</th><th class=\"n\">half knew after</th><th class=\"n\">the last after</th><th class=\"n\">known at</th></tr></thead><tbody>\n");
    for (at, write) in run.writes.iter().take(MAX_ROWS).enumerate() {
        let (half, last) = knew(write, run.nodes.len());
        let kind = match write.kind {
            Kind::Instance => "instance",
            Kind::Override => "override",
            Kind::Document => "document",
        };
        let number = if at < MAX_NUMBERED { (at + 1).to_string() } else { String::new() };
        let _ = writeln!(
            out,
            "<tr><td class=\"n\">{number}</td><td class=\"n\">{}</td><td>{}</td><td>{kind} <code>{}</code></td><td>{}</td><td class=\"n\">{half}</td>\
             <td class=\"n\">{last}</td><td class=\"n\">{} of {}</td></tr>",
            moment(write.at_us),
            Escaped(&run.nodes[write.node].name),
            Escaped(&write.key),
            Escaped(&write.says),
            write.learned.len(),
            run.nodes.len()
        );
    }
    rest(run.writes.len(), 8, out);
    out.push_str("</tbody></table></div></section>\n");
}

/// After how long half of all nodes, and the last that ever did, knew of a write.
fn knew(write: &Written, nodes: usize) -> (String, String) {
    let mut after: Vec<u64> = write.learned.iter().map(|(_, at)| at - write.at_us).collect();
    after.sort_unstable();
    let half = after.get(nodes.div_ceil(2).saturating_sub(1)).map_or("never".into(), |us| took(*us));
    (half, after.last().map_or("never".into(), |us| took(*us)))
}

fn rest(all: usize, columns: usize, out: &mut String) {
    if all > MAX_ROWS {
        let _ = writeln!(out, "<tr><td colspan=\"{columns}\">and {} more</td></tr>", all - MAX_ROWS);
    }
}

fn figures(report: &Report, out: &mut String) {
    let _ = writeln!(
        out,
        "<section><h2>What it cost</h2><div class=\"scroll\"><table><thead><tr><th>messages</th><th class=\"n\">sent</th>\
         <th class=\"n\">bytes</th></tr></thead><tbody>"
    );
    for (kind, sent) in &report.sent {
        let (messages, size) = (sent.messages, bytes(sent.bytes));
        let _ = writeln!(out, "<tr><td>{kind}</td><td class=\"n\">{messages}</td><td class=\"n\">{size}</td></tr>");
    }
    let total = report.total();
    let _ = writeln!(
        out,
        "<tr class=\"sum\"><td>together</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr></tbody></table></div><p>{} lost, {} \
         doubled, {} into a cut or to a node that was gone. {} writes, {} acknowledged; {:.2} copies for each node that \
         had to receive one. {} repair exchanges, of which {} found a difference.</p></section>",
        total.messages,
        bytes(total.bytes),
        report.lost,
        report.duplicated,
        report.undeliverable,
        report.writes,
        report.acknowledged,
        report.copies_per_receiver(),
        report.counters.repairs_begun,
        report.counters.repairs_differing
    );
}

fn story(page: &Page, out: &mut String) {
    if !page.story.is_empty() {
        let _ = write!(out, "<section><details><summary>The story in words</summary><pre>");
        for line in page.story {
            let _ = writeln!(out, "{}", Escaped(line));
        }
        out.push_str("</pre></details></section>\n");
    }
    if page.recording.left_out > 0 {
        let _ = writeln!(
            out,
            "<p class=\"hint\">{} entries were left out of the recording because there were too many.</p>",
            page.recording.left_out
        );
    }
}
