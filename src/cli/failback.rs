//! Requests that wait at a node to be sent later.

use clap::{Args, Subcommand};
use starling_api::model::{Hurried, WaitingList};
use starling_core::id::{Namespace, ServiceName};

use super::client::{Ask, Client};
use super::failure::Failure;
use super::output::{Cell, Out, Style, Table, ago, count, size};

/// `starling failback`
#[derive(Debug, Subcommand)]
pub(crate) enum FailbackCommand {
    /// List what waits at the node that is asked
    #[command(after_long_help = "\
Each node keeps what its own applications have sent. `starling guards NAME --all` shows how many wait at each node.

Examples:
  starling failback list
  starling failback list orders")]
    List(ListArgs),
    /// Take a request out: it is never sent
    #[command(after_long_help = "\
The node that is asked must be the one it waits at: its name is the first part of the request's.

Example:
  starling failback drop a.6421f3c09a80")]
    Drop(DropArgs),
    /// Try a service's first request now, however long it was to rest
    #[command(after_long_help = "\
Example:
  starling failback retry orders")]
    Retry(RetryArgs),
}

/// `starling failback list`
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only this service's
    service: Option<ServiceName>,
    /// Its namespace
    #[arg(long, short, default_value = "default")]
    namespace: Namespace,
}

/// `starling failback drop`
#[derive(Debug, Args)]
pub(crate) struct DropArgs {
    /// The name its caller was given (`x-starling-failback`)
    id: String,
}

/// `starling failback retry`
#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    /// The service
    service: ServiceName,
    /// Its namespace
    #[arg(long, short, default_value = "default")]
    namespace: Namespace,
}

pub(crate) fn run(command: &FailbackCommand, client: &Client, out: &mut Out) -> Result<(), Failure> {
    match command {
        FailbackCommand::List(args) => {
            let ask = Ask::get(&["v1", "failback"]).query("namespace", args.namespace.as_str());
            let list: WaitingList = client.fetch(ask.query_opt("service", args.service.as_ref()))?;
            if out.wants_json() { Ok(out.json(&list)?) } else { Ok(show(&list, out)?) }
        }
        FailbackCommand::Drop(args) => {
            let list: WaitingList = client.fetch(Ask::new("DELETE", &["v1", "failback", &args.id]))?;
            if out.wants_json() {
                return Ok(out.json(&list)?);
            }
            let left = count(list.total as usize, "request");
            Ok(out.line(&format!("{} is never sent; {left} left at node {}", args.id, list.node))?)
        }
        FailbackCommand::Retry(args) => {
            let ask = Ask::new("POST", &["v1", "failback"]).query("namespace", args.namespace.as_str());
            let hurried: Hurried = client.fetch(ask.query("service", args.service.as_str()))?;
            if out.wants_json() {
                return Ok(out.json(&hurried)?);
            }
            let waiting = count(hurried.waiting as usize, "request");
            Ok(out.line(&format!("{waiting} of {} are tried now, one after the other", args.service))?)
        }
    }
}

fn show(list: &WaitingList, out: &mut Out) -> std::io::Result<()> {
    if list.requests.is_empty() {
        return out.line(&format!("nothing waits at node {}", list.node));
    }
    let mut table = Table::new(&["REQUEST", "SERVICE", "CALL", "QUEUED", "SIZE"]);
    for request in &list.requests {
        table.row([
            Cell::styled(Style::Bold, &request.id),
            Cell::from(&request.service),
            Cell::from(&format!("{} {}", request.method, request.path)),
            ago(request.queued_unix_ms).into(),
            Cell::number(size(request.bytes)),
        ]);
    }
    out.table(&table)?;
    let more = list.total.saturating_sub(list.requests.len() as u64);
    if more > 0 { out.styled(Style::Dim, &format!("and {more} more")) } else { Ok(()) }
}
