//! The mesh itself: who is there, and do they agree?

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use clap::Args;
use starling_api::model::{
    CatchingUpInfo, CertificateInfo, MemberList, MeshStatus, NodeReport, PreservationInfo, Verdict,
};
use starling_core::id::{CellName, NodeId};
use starling_core::view::{MemberState, Revision};

use super::client::{Ask, Client};
use super::failure::Failure;
use super::output::{Cell, Out, Style, Table, ago, count, micros, span_of, when};
use crate::settings::HumanDuration;

/// `starling members`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Shows the mesh as one node sees it; another node may see another one, for example during a partition.

Examples:
  starling members
  starling members --peer 10.0.0.7:15000
  starling members --cell eu-1                       one of several data centres
  starling members --wait 3 --timeout 1m             before a script uses a mesh that has just been started")]
pub(crate) struct MembersArgs {
    /// Wait until at least so many are alive, and for the node itself if it does not answer yet
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    wait: Option<u32>,
    /// How long to wait; then the exit code is 1
    #[arg(long, value_name = "DURATION", default_value = "30s", requires = "wait")]
    timeout: HumanDuration,
    /// Only the nodes of this cell
    #[arg(long, value_name = "CELL")]
    cell: Option<CellName>,
}

/// `starling status`
#[derive(Debug, Args)]
#[command(after_long_help = "\
One node asks all others what they hold and compares. Nodes differ for milliseconds while a write is on its way;
a node that differs for seconds is behind.

Examples:
  starling status
  starling status --check && echo 'all nodes hold the same'")]
pub(crate) struct StatusArgs {
    /// Exit with code 1 unless every node answers and holds the same
    #[arg(long)]
    check: bool,
}

/// Clocks further apart than this are worth a warning, in milliseconds: an operator sees writes out of order.
const CLOCK_WARNING_MS: u64 = 500;
/// The pause before a node that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The longest blocking query; a longer wait is several of them.
const LONGEST_QUERY: Duration = Duration::from_secs(60);
/// How much longer than its wait a blocking query may take.
const SLACK: Duration = Duration::from_secs(5);

pub(crate) fn members(args: &MembersArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let list = match args.wait {
        Some(wanted) => wait_for_members(wanted as usize, args.timeout, args.cell.as_ref(), client)?,
        None => client.fetch(list_of(args.cell.as_ref()))?,
    };
    if out.wants_json() { Ok(out.json(&list)?) } else { Ok(show_members(&list, out)?) }
}

fn list_of(cell: Option<&CellName>) -> Ask {
    Ask::get(&["v1", "members"]).query_opt("cell", cell)
}

fn wait_for_members(
    wanted: usize,
    timeout: HumanDuration,
    cell: Option<&CellName>,
    client: &Client,
) -> Result<MemberList, Failure> {
    let began = Instant::now();
    let mut revision = None;
    loop {
        let left = timeout.0.saturating_sub(began.elapsed());
        let wait = left.min(LONGEST_QUERY);
        let ask = list_of(cell);
        let ask = match revision {
            Some(Revision(revision)) => ask.newer_than(revision, wait),
            None => ask,
        };
        let trouble = match client.fetch::<MemberList>(ask.within(wait + SLACK)) {
            Ok(list) if alive(&list) >= wanted => return Ok(list),
            Ok(list) => {
                revision = Some(list.revision);
                let (seen, node) = (alive(&list), &list.node);
                format!("node {node} sees {seen}")
            }
            Err(Failure::NoPeer(text)) => {
                // Revisions of one node mean nothing to another, nor to its next start.
                revision = None;
                std::thread::sleep(ASK_AGAIN.min(left));
                text
            }
            Err(failure) => return Err(failure),
        };
        if began.elapsed() >= timeout.0 {
            return Err(Failure::Refused(format!("{} not alive within {timeout}: {trouble}", count(wanted, "node"))));
        }
    }
}

fn alive(list: &MemberList) -> usize {
    list.members.iter().filter(|member| member.state == MemberState::Alive).count()
}

fn show_members(list: &MemberList, out: &mut Out) -> io::Result<()> {
    // A mesh of one cell has nothing to say about cells.
    let cells: BTreeSet<&CellName> = list.members.iter().map(|member| &member.cell).collect();
    let linked = list.members.iter().any(|member| member.relay);
    let several = cells.len() > 1 || linked || !list.out_of_reach.is_empty();
    let headings = ["NODE", "STATE", "SINCE", "CELL", "REGION", "ROLE", "ZONE", "ADDRESS", "VERSION"];
    let shown = |heading: &&str| several || !matches!(*heading, "CELL" | "REGION" | "ROLE");
    let mut table = Table::new(&headings.into_iter().filter(shown).collect::<Vec<_>>());
    for member in &list.members {
        let style = match member.state {
            MemberState::Alive => Style::Good,
            MemberState::Lost => Style::Bad,
            MemberState::Left => Style::Dim,
        };
        let state = match member.state {
            MemberState::Alive => "alive",
            MemberState::Lost if member.preserved => "lost, preserved",
            MemberState::Lost => "lost",
            MemberState::Left => "left",
        };
        let mut row =
            vec![Cell::styled(Style::Bold, &member.node), Cell::styled(style, state), ago(member.since_unix_ms).into()];
        if several {
            let role = if member.relay { "relay" } else { "" };
            row.extend([Cell::from(&member.cell), Cell::from(&member.region), Cell::from(role)]);
        }
        row.extend([Cell::from(&member.zone), Cell::from(&member.address), Cell::from(&member.version)]);
        table.row(row);
    }
    out.table(&table)?;
    for cell in &list.out_of_reach {
        let text = format!("nothing is heard of cell {cell}; its last known instances stay listed, in doubt");
        out.styled(Style::Doubtful, &text)?;
    }
    show_preservation(&list.preservation, &list.node, out)?;
    for member in &list.members {
        if let Some(ahead) = member.clock_ahead_ms {
            let (by, direction) = (span_of(ahead.unsigned_abs()), if ahead > 0 { "ahead" } else { "behind" });
            out.styled(Style::Bad, &format!("clock: node {} is {by} {direction}; set it, run NTP", member.node))?;
        }
    }
    let (total, alive) = (count(list.members.len(), "node"), alive(list));
    out.styled(Style::Dim, &format!("{total}, {alive} alive, as node {} sees it", list.node))
}

/// One line for each zone in which a node takes those that vanished not for dead.
fn show_preservation(preservation: &[PreservationInfo], node: &NodeId, out: &mut Out) -> io::Result<()> {
    for one in preservation {
        let of = match &one.zone {
            Some(zone) => format!("zone {zone}"),
            None => "the whole mesh".into(),
        };
        let (missing, since) = (one.missing.len(), ago(one.since_unix_ms));
        let lasts = span_of(one.ends_unix_ms.saturating_sub(one.since_unix_ms));
        out.styled(
            Style::Doubtful,
            &format!(
                "self-preservation of {of} at node {node} since {since}: {missing} of {} nodes vanished together; it may be \
                 this node that is cut off, so their instances stay candidates until they are back or {lasts} are over",
                one.of
            ),
        )?;
    }
    Ok(())
}

pub(crate) fn status(args: &StatusArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let status: MeshStatus = client.fetch(Ask::get(&["v1", "status"]))?;
    if out.wants_json() {
        out.json(&status)?;
    } else {
        show_status(&status, out)?;
    }
    out.flush()?;
    if args.check && !status.agree {
        return Err(Failure::Refused("not every node answered and holds the same".into()));
    }
    Ok(())
}

/// Says what is to be done about a node's certificate, if anything is.
fn show_certificate(node: &NodeId, certificate: &CertificateInfo, out: &mut Out) -> io::Result<()> {
    let CertificateInfo { expires_unix_ms, ends_soon, refused } = certificate;
    if let Some(why) = refused {
        out.styled(Style::Bad, &format!("certificate: node {node} cannot use the new one in its files: {why}"))?;
    }
    if *ends_soon {
        let ends = when(*expires_unix_ms);
        out.styled(
            Style::Doubtful,
            &format!("certificate: that of node {node} ends {ends}; peers will refuse it then: issue a new one"),
        )?;
    }
    Ok(())
}

fn show_status(status: &MeshStatus, out: &mut Out) -> io::Result<()> {
    let (style, sentence) = verdict_on_all(status);
    out.styled(style, &sentence)?;
    out.line("")?;
    let mut table =
        Table::new(&["NODE", "ZONE", "HOLDS", "RECORDS", "SEES", "CLOCK", "ANSWERED IN", "UP FOR", "VERSION", "WHY"]);
    for report in &status.nodes {
        table.row(status_row(report, status));
    }
    out.table(&table)?;
    show_preservation(&status.preservation, &status.node, out)?;
    for report in &status.nodes {
        if let Some(failing) = report.status.as_ref().and_then(|said| said.disk_failing.as_ref()) {
            let since = ago(failing.since_unix_ms);
            let sentence = format!(
                "disk: node {} takes no new registrations, overrides and documents since {since}: {}",
                report.node, failing.reason
            );
            out.styled(Style::Bad, &sentence)?;
        }
        if let Some(certificate) = report.status.as_ref().and_then(|said| said.certificate.as_ref()) {
            show_certificate(&report.node, certificate, out)?;
        }
        if let Some(said) = &report.status
            && let Some(reading) = &said.catching_up
        {
            let CatchingUpInfo { from, of, records_per_second, seconds_left } = reading;
            let left =
                seconds_left.map_or(String::new(), |seconds| format!(", about {} left", span_of(seconds * 1_000)));
            let sentence = format!(
                "catching up: node {} holds {} of {of} records, {records_per_second} a second from node {from}{left}; it \
                 serves what it has",
                report.node, said.records
            );
            out.styled(Style::Doubtful, &sentence)?;
        }
        if let Some(offset) = report.clock_offset_ms.filter(|offset| offset.unsigned_abs() > CLOCK_WARNING_MS) {
            let direction = if offset > 0 { "ahead of" } else { "behind" };
            let by = span_of(offset.unsigned_abs());
            out.styled(
                Style::Doubtful,
                &format!("clock: node {} is {by} {direction} node {}; run NTP on both", report.node, status.node),
            )?;
        }
    }
    Ok(())
}

/// One sentence for everything.
fn verdict_on_all(status: &MeshStatus) -> (Style, String) {
    let of = |verdict: Verdict| -> Vec<&NodeReport> {
        status.nodes.iter().filter(|report| report.verdict == verdict).collect()
    };
    let names =
        |reports: &[&NodeReport]| reports.iter().map(|report| report.node.to_string()).collect::<Vec<_>>().join(", ");
    let (same, differs, lost) = (of(Verdict::Same), of(Verdict::Differs), of(Verdict::Lost));
    let silent = of(Verdict::Unreachable);
    let mut trouble = Vec::new();
    if !differs.is_empty() {
        trouble.push(format!(
            "{} {} something else",
            names(&differs),
            if differs.len() == 1 { "holds" } else { "hold" }
        ));
    }
    if !silent.is_empty() {
        trouble.push(format!("{} did not answer", names(&silent)));
    }
    if !lost.is_empty() {
        trouble.push(format!("{} {} lost", names(&lost), if lost.len() == 1 { "is" } else { "are" }));
    }
    let agreeing = match same.len() {
        1 if status.nodes.len() == 1 => format!("node {} is alone", status.node),
        number => format!("{} the same", count_hold(number)),
    };
    match (trouble.is_empty(), differs.is_empty() && silent.is_empty()) {
        (true, _) => (Style::Good, agreeing),
        (false, true) => (Style::Doubtful, format!("{agreeing}; {}", trouble.join("; "))),
        (false, false) => (Style::Bad, format!("{agreeing}; {}", trouble.join("; "))),
    }
}

fn count_hold(number: usize) -> String {
    if number == 1 { "1 node holds".into() } else { format!("{number} nodes hold") }
}

fn status_row(report: &NodeReport, all: &MeshStatus) -> [Cell; 10] {
    let (style, word) = match report.verdict {
        Verdict::Same => (Style::Good, "the same"),
        Verdict::Differs => (Style::Bad, "something else"),
        Verdict::Unreachable => (Style::Bad, "no answer"),
        Verdict::Lost => (Style::Doubtful, "lost"),
        Verdict::Left => (Style::Dim, "left"),
    };
    let said = report.status.as_ref();
    let clock = match report.clock_offset_ms {
        Some(_) if report.node == all.node => String::new(),
        Some(offset) => format!("{offset:+} ms"),
        None => String::new(),
    };
    [
        Cell::styled(Style::Bold, &report.node),
        Cell::from(&report.zone),
        Cell::styled(style, word),
        Cell::number(said.map_or(String::new(), |info| info.records.to_string())),
        said.map_or(String::new(), |info| count(info.members_alive as usize, "node")).into(),
        Cell::number(clock),
        Cell::number(report.round_trip_us.filter(|_| report.node != all.node).map_or(String::new(), micros)),
        said.map_or(String::new(), |info| span_of(info.uptime_ms)).into(),
        said.map_or(String::new(), |info| info.version.clone()).into(),
        Cell::from(report.error.as_deref().unwrap_or_default()),
    ]
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::super::output::captured;
    use super::*;

    /// A node that gives these answers, one per connection; what it was asked comes back from the thread.
    fn node(answers: Vec<String>) -> (Client, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(vec![listener.local_addr().unwrap().to_string().parse().unwrap()]);
        let asked = std::thread::spawn(move || {
            let answer = |answer: String| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = [0; 4096];
                let length = stream.read(&mut bytes).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8_lossy(&bytes[..length]).lines().next().unwrap_or_default().to_owned()
            };
            answers.into_iter().map(answer).collect()
        });
        (client, asked)
    }

    fn members_answer(revision: u64, names: &[&str]) -> String {
        let member = |name: &&str| {
            serde_json::json!({ "node": name, "state": "alive", "since_unix_ms": 0, "zone": "west",
                "region": "default", "cell": "default",
                "address": "127.0.0.1:1", "version": "", "incarnation": 1 })
        };
        let members: Vec<_> = names.iter().map(member).collect();
        let body = serde_json::json!({ "revision": revision, "node": "a", "members": members }).to_string();
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn waiting_for_members_outlives_a_node_that_is_not_up_yet() {
        let (client, asked) = node(vec![String::new(), members_answer(7, &["a"]), members_answer(9, &["a", "b"])]);
        let list =
            wait_for_members(2, HumanDuration::from_secs(60), None, &client).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(alive(&list), 2);
        let asked = asked.join().unwrap();
        assert_eq!(asked[..2], ["GET /v1/members HTTP/1.1", "GET /v1/members HTTP/1.1"]);
        assert!(asked[2].starts_with("GET /v1/members?newer_than=7&wait="), "{asked:?}");
    }

    #[test]
    fn a_wait_that_is_over_says_what_was_missing() {
        let (client, _asked) = node(vec![members_answer(7, &["a"])]);
        let failure = wait_for_members(2, HumanDuration(Duration::ZERO), None, &client).err().unwrap();
        assert!(failure.to_string().contains("2 nodes not alive within 0s: node a sees 1"), "{failure}");
        assert_eq!(failure.exit_code(), 1);
        let (nobody, _asked) = node(Vec::new());
        let failure = wait_for_members(2, HumanDuration(Duration::ZERO), None, &nobody).err().unwrap();
        assert!(failure.to_string().contains("no node answered"), "{failure}");
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn cells_are_shown_where_there_are_several() {
        let list = |cell: &str| -> MemberList {
            let member = |node: &str, cell: &str, relay: bool| {
                serde_json::json!({ "node": node, "state": "alive", "since_unix_ms": 0, "zone": "west", "region": "r",
                    "cell": cell, "relay": relay, "address": "127.0.0.1:1", "version": "", "incarnation": 1 })
            };
            let members = [member("a", "eu", cell != "eu"), member("b", cell, false)];
            let list = serde_json::json!({ "revision": 1, "node": "a", "members": members });
            serde_json::from_value(list).unwrap()
        };
        let text = |list: &MemberList| captured::text(false, |out| show_members(list, out).unwrap());
        assert!(text(&list("us")).contains("CELL") && text(&list("us")).contains("relay"));
        assert!(!text(&list("eu")).contains("CELL"));
        let cut = MemberList { out_of_reach: vec!["us".parse().unwrap()], ..list("eu") };
        assert!(text(&cut).contains("nothing is heard of cell us"), "{}", text(&cut));
    }

    fn report(node: &str, verdict: &str) -> serde_json::Value {
        serde_json::json!({ "node": node, "zone": "west", "verdict": verdict, "clock_offset_ms": 0, "round_trip_us": 900 })
    }

    fn shown(agree: bool, nodes: Vec<serde_json::Value>) -> String {
        let status = serde_json::json!({ "node": "a", "fingerprint": "ab/2", "agree": agree, "nodes": nodes });
        let status: MeshStatus = serde_json::from_value(status).unwrap();
        captured::text(false, |out| show_status(&status, out).unwrap())
    }

    #[test]
    fn agreement_is_one_sentence() {
        let text = shown(true, vec![report("a", "same"), report("b", "same")]);
        assert!(text.starts_with("2 nodes hold the same\n"), "{text}");
        assert!(shown(true, vec![report("a", "same")]).starts_with("node a is alone\n"));
    }

    #[test]
    fn a_disk_that_takes_no_writes_is_named_with_its_node_and_what_to_do() {
        let mut failing = report("b", "same");
        failing["status"] = serde_json::json!({ "node": "b", "incarnation": 1, "version": "", "uptime_ms": 0,
            "wall_unix_ms": 0, "revision": 1, "fingerprint": "ab/2", "records": 2, "members_alive": 2,
            "disk_failing": { "since_unix_ms": 0, "reason": "disk full; make room" } });
        let text = shown(true, vec![report("a", "same"), failing]);
        assert!(text.contains("disk: node b takes no new registrations") && text.contains("make room"), "{text}");
    }

    #[test]
    fn who_is_behind_silent_or_lost_is_named() {
        let nodes = vec![report("a", "same"), report("b", "differs"), report("c", "unreachable"), report("d", "lost")];
        let text = shown(false, nodes);
        let first = text.lines().next().unwrap();
        assert_eq!(first, "1 node holds the same; b holds something else; c did not answer; d is lost");
    }

    #[test]
    fn a_wrong_clock_is_pointed_out() {
        let mut late = report("b", "same");
        late["clock_offset_ms"] = (-7_000).into();
        let text = shown(true, vec![report("a", "same"), late]);
        assert!(text.contains("clock: node b is 7.0s behind node a"), "{text}");
    }
}
