//! Policies and guards: write and check documents, see what is in force, and what it does.

mod trial;

use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use starling_api::model::{ConfigList, GuardInfo, GuardsDetail, NodeGuards, PolicyDetail, PolicyValue};
use starling_core::id::{Namespace, ServiceName};
use starling_core::policy::{Document, GROUP, LayerState, MESH_KEY};

use super::client::{Ask, Client};
use super::config::{Note, read_file};
use super::failure::Failure;
use super::output::{Cell, Out, Style, Table, ago, count, notice, span_of};
use super::registry::written;
use crate::settings::HumanDuration;

/// `starling policy`
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say what is wrong with a document, without writing it
    #[command(after_long_help = "\
Needs no node. Exit code 1 when the document would be refused.

Examples:
  starling policy check orders.toml
  cat orders.toml | starling policy check -")]
    Check(CheckArgs),
    /// Say what a document would have refused in the last minute, without writing it
    #[command(
        name = "try",
        after_long_help = "\
Each node remembers what its applications asked of a service in the last minute. The document's guards are asked about
those requests, in the place of the document that is in force; what was really refused stands beside it.

Examples:
  starling policy try orders orders.toml
  starling policy try orders orders.toml --all            at every node
  starling policy try orders all.toml --for-all           as the document for all services"
    )]
    Try(TryArgs),
    /// Put a document into force, everywhere
    #[command(
        after_long_help = "\
The node that is asked checks it first; a bad one changes nothing. NAME is the service, or '*' for all services.

Examples:
  starling policy set orders orders.toml
  starling policy set '*' all.toml --comment 'two seconds are enough'",
        visible_alias = "apply"
    )]
    Set(SetArgs),
    /// Print a document, or with --effective what is in force and where each value came from
    #[command(after_long_help = "\
Examples:
  starling policy show orders
  starling policy show orders --effective")]
    Show(ShowArgs),
    /// List policies
    #[command(after_long_help = "\
Example:
  starling policy list")]
    List,
    /// Take a document back
    #[command(after_long_help = "\
Example:
  starling policy rm orders --comment 'the defaults will do'")]
    Rm(RmArgs),
    /// Drive a service's circuit by hand: refuse everything, or nothing, for a while
    #[command(after_long_help = "\
Writes [degrade] into the service's document, so it holds everywhere and ends by itself.

Examples:
  starling policy drive orders force-open --for 10m --comment 'the database is being moved'
  starling policy drive orders force-open --for 10m --criticality sheddable
  starling policy drive orders auto")]
    Drive(DriveArgs),
}

/// Whose policy.
#[derive(Debug, Args)]
pub(crate) struct Whose {
    /// The service, or '*' for all services
    name: String,
    /// Its namespace
    #[arg(long, short, default_value = "default")]
    namespace: Namespace,
}

/// `starling policy check`
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The document; '-' reads standard input
    file: PathBuf,
    /// It is to be the document for all services ('*'), which has no routes
    #[arg(long)]
    for_all: bool,
}

/// `starling policy try`
#[derive(Debug, Args)]
pub(crate) struct TryArgs {
    /// The service whose requests it is tried on
    service: ServiceName,
    /// The document; '-' reads standard input
    file: PathBuf,
    /// The service's namespace
    #[arg(long, short, default_value = "default")]
    namespace: Namespace,
    /// It is to be the document for all services ('*'); the service's own stays as it is
    #[arg(long)]
    for_all: bool,
    /// Of what all nodes have seen, not only the one that is asked
    #[arg(long)]
    all: bool,
}

/// `starling policy set`
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    whose: Whose,
    /// The document; '-' reads standard input
    file: PathBuf,
    #[command(flatten)]
    note: Note,
}

/// `starling policy show`
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    whose: Whose,
    /// What is in force at the node that is asked, with the origin of each value
    #[arg(long)]
    effective: bool,
}

/// `starling policy rm`
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    note: Note,
}

/// `starling policy drive`
#[derive(Debug, Args)]
pub(crate) struct DriveArgs {
    #[command(flatten)]
    whose: Whose,
    /// How
    mode: Mode,
    /// For how long; without it until somebody changes it
    #[arg(long = "for", value_name = "DURATION")]
    lasting: Option<HumanDuration>,
    /// Only requests of these classes (critical_plus, critical, sheddable_plus, sheddable)
    #[arg(long, value_delimiter = ',')]
    criticality: Vec<starling_core::guard::Criticality>,
    #[command(flatten)]
    note: Note,
}

/// How a circuit is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// By what it counts
    Auto,
    /// Refuses everything
    ForceOpen,
    /// Admits everything and counts
    ForceClosed,
    /// Admits everything and counts nothing
    Disabled,
    /// Admits everything, and counts what it would have refused
    MetricsOnly,
}

/// `starling guards`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Breakers, limits and refusals as the node that is asked has them; each node guards its own applications.

Examples:
  starling guards orders
  starling guards orders --all                       at every node")]
pub(crate) struct GuardsArgs {
    /// The service
    service: ServiceName,
    /// Its namespace
    #[arg(long, short, default_value = "default")]
    namespace: Namespace,
    /// Ask all nodes
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(command: PolicyCommand, client: &Client, out: &mut Out) -> Result<(), Failure> {
    match command {
        PolicyCommand::Check(args) => check(&args, out),
        PolicyCommand::Try(args) => trial::run(&args, client, out),
        PolicyCommand::Set(args) => {
            let body = read_file(&args.file)?;
            parsed(&args.file.display().to_string(), &body, args.whose.name == MESH_KEY)?;
            let ask = args.note.onto(args.whose.ask("PUT")).body("application/toml", body);
            let what = format!("{} is in force", args.whose.shown());
            written(&client.fetch(ask)?, &what, out)
        }
        PolicyCommand::Show(args) if args.effective => effective(&args, client, out),
        PolicyCommand::Show(args) => Ok(out.raw(&client.send(args.whose.ask("GET"))?.body)?),
        PolicyCommand::List => list(client, out),
        PolicyCommand::Rm(args) => {
            let ask = args.note.onto(args.whose.ask("DELETE"));
            written(&client.fetch(ask)?, &format!("{} is no more", args.whose.shown()), out)
        }
        PolicyCommand::Drive(args) => drive(&args, client, out),
    }
}

impl Whose {
    fn ask(&self, method: &'static str) -> Ask {
        Ask::new(method, &["v1", "config", self.namespace.as_str(), GROUP, &self.name])
    }

    fn shown(&self) -> String {
        match self.name.as_str() {
            MESH_KEY => "the policy for all services".into(),
            name if self.namespace == Namespace::default() => format!("the policy of {name}"),
            name => format!("the policy of {}/{name}", self.namespace),
        }
    }
}

/// A document as it is read, or everything that is wrong with it.
fn parsed(file: &str, body: &[u8], for_all: bool) -> Result<Document, Failure> {
    let text = std::str::from_utf8(body).map_err(|_| Failure::Refused(format!("{file}: not UTF-8 text")))?;
    let document = if for_all { Document::parse_for_all(text) } else { Document::parse(text) };
    document.map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(|problem| format!("{file}, {problem}")).collect();
        Failure::Refused(lines.join("\n"))
    })
}

fn check(args: &CheckArgs, out: &mut Out) -> Result<(), Failure> {
    let file = args.file.display().to_string();
    let document = parsed(&file, &read_file(&args.file)?, args.for_all)?;
    for warning in document.warnings() {
        notice(&format!("starling: {file}, {warning}"));
    }
    Ok(out.line(&format!("{file} is a good policy with {}", count(document.routes.len(), "route")))?)
}

fn effective(args: &ShowArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    if args.whose.name == MESH_KEY {
        return Err(Failure::Usage(
            "what is in force is asked for a service: starling policy show NAME --effective".into(),
        ));
    }
    let ask = Ask::get(&["v1", "policy", &args.whose.name]).query("namespace", args.whose.namespace.as_str());
    let detail: PolicyDetail = client.fetch(ask)?;
    if out.wants_json() { Ok(out.json(&detail)?) } else { Ok(show_effective(&detail, out)?) }
}

fn show_effective(detail: &PolicyDetail, out: &mut Out) -> io::Result<()> {
    out.styled(Style::Bold, &format!("{}/{} at node {}", detail.namespace, detail.service, detail.node))?;
    for layer in &detail.layers {
        let document = &layer.document;
        match layer.state {
            LayerState::Absent => out.styled(Style::Dim, &format!("{document}: there is none"))?,
            LayerState::InForce => out.line(&format!("{document}: in force"))?,
            LayerState::LastGood => {
                out.styled(Style::Bad, &format!("{document}: not in force here, but the last good version of it is"))?;
            }
            LayerState::LeftOut => out.styled(Style::Bad, &format!("{document}: not in force here"))?,
        }
        for problem in detail.problems.iter().filter(|problem| problem.document == *document) {
            out.styled(Style::Bad, &format!("  {}", problem.problem))?;
        }
    }
    show_values(&detail.values, out)?;
    for route in &detail.routes {
        out.line("")?;
        out.styled(Style::Bold, &format!("route {}  {}", route.name, route.matches))?;
        show_values(&route.values, out)?;
    }
    Ok(())
}

fn show_values(values: &[PolicyValue], out: &mut Out) -> io::Result<()> {
    let mut table = Table::new(&["FIELD", "VALUE", "FROM"]);
    for value in values {
        let style = if value.origin == "default" { Style::Dim } else { Style::Plain };
        table.row([
            Cell::styled(style, &value.field),
            Cell::styled(style, &value.value),
            Cell::styled(style, &value.origin),
        ]);
    }
    out.table(&table)
}

fn list(client: &Client, out: &mut Out) -> Result<(), Failure> {
    let list: ConfigList = client.fetch(Ask::get(&["v1", "config"]).query("group", GROUP))?;
    if out.wants_json() {
        return Ok(out.json(&list)?);
    }
    if list.documents.is_empty() {
        return Ok(out.line("no policies; defaults are in force: starling policy show NAME --effective")?);
    }
    let mut table = Table::new(&["SERVICE", "WRITTEN", "BY", "WHY", "CONFLICT"]);
    for document in &list.documents {
        let name = match document.namespace == Namespace::default() {
            true => document.key.to_string(),
            false => format!("{}/{}", document.namespace, document.key),
        };
        let conflict = if document.conflict > 0 { document.conflict.to_string() } else { String::new() };
        table.row([
            Cell::styled(Style::Bold, name),
            ago(document.version.written_unix_ms).into(),
            Cell::from(&document.version.author),
            Cell::from(&document.version.comment),
            Cell::styled(Style::Bad, conflict),
        ]);
    }
    Ok(out.table(&table)?)
}

fn drive(args: &DriveArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let answer = client.look(args.whose.ask("GET"))?;
    let (text, expect) = match answer.is_missing() {
        true => (String::new(), "none".to_owned()),
        false => {
            let text = String::from_utf8(answer.body.clone())
                .map_err(|_| Failure::Refused("the policy is not text".into()))?;
            (text, answer.stamp.clone().unwrap_or_default())
        }
    };
    let until = args.lasting.map(|lasting| now_unix_ms().saturating_add(lasting.as_millis()));
    let changed = switched(&text, args.mode, until, &args.criticality);
    parsed(&args.whose.shown(), changed.as_bytes(), args.whose.name == MESH_KEY).map_err(|failure| {
        Failure::Refused(format!("{failure}\nnothing was changed; write [degrade] by hand: starling policy set"))
    })?;
    let ask = args.note.onto(args.whose.ask("PUT")).query("expect", &expect);
    let until = args.lasting.map_or(String::new(), |lasting| format!(" for {lasting}"));
    let mode = args.mode.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
    let what = format!("{} is driven {mode}{until}", args.whose.shown());
    written(&client.fetch(ask.body("application/toml", changed.into_bytes()))?, &what, out)
}

/// The text with another `[degrade]`; all else, comments too, stays as it was.
fn switched(text: &str, mode: Mode, until: Option<u64>, classes: &[starling_core::guard::Criticality]) -> String {
    let mut inside = false;
    let mut kept: Vec<&str> = Vec::new();
    for line in text.lines() {
        let line_starts = line.trim_start();
        if line_starts.starts_with('[') {
            inside = line_starts.split(']').next() == Some("[degrade");
        }
        if !inside {
            kept.push(line);
        }
    }
    let mut changed = kept.join("\n").trim_end().to_owned();
    if !changed.is_empty() {
        changed.push('\n');
    }
    if mode == Mode::Auto {
        return changed;
    }
    let mode = match mode {
        Mode::Auto => "auto",
        Mode::ForceOpen => "force_open",
        Mode::ForceClosed => "force_closed",
        Mode::Disabled => "disabled",
        Mode::MetricsOnly => "metrics_only",
    };
    changed.push_str(&format!("[degrade]\nmode = \"{mode}\"\n"));
    if let Some(until) = until {
        changed.push_str(&format!("until = {until}\n"));
    }
    if !classes.is_empty() {
        let classes: Vec<String> = classes.iter().map(|class| format!("\"{class}\"")).collect();
        changed.push_str(&format!("criticality = [{}]\n", classes.join(", ")));
    }
    changed
}

fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

pub(crate) fn guards(args: &GuardsArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let mut ask = Ask::get(&["v1", "guards", args.service.as_str()]).query("namespace", args.namespace.as_str());
    if args.all {
        ask = ask.query("all", "true");
    }
    let detail: GuardsDetail = client.fetch(ask)?;
    if out.wants_json() { Ok(out.json(&detail)?) } else { Ok(show_guards(&detail, out)?) }
}

fn show_guards(detail: &GuardsDetail, out: &mut Out) -> io::Result<()> {
    for node in &detail.nodes {
        show_node(node, out)?;
    }
    for missing in &detail.unanswered {
        out.styled(Style::Bad, &format!("node {} did not answer: {}", missing.node, missing.error))?;
    }
    Ok(())
}

fn show_node(node: &NodeGuards, out: &mut Out) -> io::Result<()> {
    let report = &node.report;
    out.styled(Style::Bold, &format!("node {}", node.node))?;
    for problem in &report.problems {
        out.styled(Style::Bad, &format!("  not in force: {problem}"))?;
    }
    if report.guards.is_empty() && report.refusals.is_empty() && report.instances.is_empty() {
        return out.line("  nobody has called it here");
    }
    if !report.guards.is_empty() {
        let mut table = Table::new(&["GUARD", "ROUTE", "STATE"]);
        for guard in &report.guards {
            table.row([
                guard.guard.as_str().into(),
                guard.route.as_deref().unwrap_or("").into(),
                state_of(guard).into(),
            ]);
        }
        out.table(&table)?;
    }
    if !report.refusals.is_empty() {
        let mut table = Table::new(&["REFUSED", "GUARD", "RULE", "REASON"]);
        for refusal in &report.refusals {
            table.row([
                Cell::number(refusal.count),
                (&refusal.guard).into(),
                (&refusal.rule).into(),
                (&refusal.reason).into(),
            ]);
        }
        out.table(&table)?;
    }
    if !report.instances.is_empty() {
        let mut table = Table::new(&["INSTANCE", "NODE", "BREAKER", "CHECK", "IN FLIGHT", "OPENED"]);
        for instance in &report.instances {
            let left = instance.ends_in_ms.map_or(String::new(), |ms| format!(" for {}", span_of(ms)));
            let style = if instance.breaker == "closed" { Style::Plain } else { Style::Bad };
            table.row([
                (&instance.instance).into(),
                (&instance.node).into(),
                Cell::styled(style, format!("{}{left}", instance.breaker)),
                instance.check.as_deref().unwrap_or("").into(),
                Cell::number(instance.in_flight),
                Cell::number(instance.opened),
            ]);
        }
        out.table(&table)?;
    }
    Ok(())
}

fn state_of(guard: &GuardInfo) -> String {
    let fields = guard.state.iter().filter(|(_, value)| !value.is_null());
    let word = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    fields.map(|(name, value)| format!("{name}={}", word(value))).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_changes_its_section_and_nothing_else() {
        let text = "# mine\n[timeouts]\nrequest_ms = 5 # ms\n\n[[route]]\npath = \"/a\"\n";
        let open = switched(text, Mode::ForceOpen, Some(7), &[]);
        assert_eq!(open, format!("{}[degrade]\nmode = \"force_open\"\nuntil = 7\n", text));
        assert!(Document::parse(&open).is_ok());
        let closed = switched(&open, Mode::ForceClosed, None, &[]);
        assert_eq!(closed, format!("{text}[degrade]\nmode = \"force_closed\"\n"));
        assert_eq!(switched(&closed, Mode::Auto, None, &[]), text);
        assert_eq!(switched("", Mode::Auto, None, &[]), "");
    }
}
