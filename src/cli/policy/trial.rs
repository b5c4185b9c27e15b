//! What a document would have refused in the last minute.

use std::io;

use starling_api::model::{NodeTrial, PolicyTrial};

use super::{TryArgs, parsed};
use crate::cli::client::{Ask, Client};
use crate::cli::config::read_file;
use crate::cli::failure::Failure;
use crate::cli::output::{Cell, Out, Style, Table, count, span_of};

pub(super) fn run(args: &TryArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let body = read_file(&args.file)?;
    parsed(&args.file.display().to_string(), &body, args.for_all)?;
    let mut ask = Ask::new("POST", &["v1", "policy", args.service.as_str(), "try"])
        .query("namespace", args.namespace.as_str())
        .body("application/toml", body);
    for (name, is_set) in [("for_all", args.for_all), ("all", args.all)] {
        if is_set {
            ask = ask.query(name, "true");
        }
    }
    let trial: PolicyTrial = client.fetch(ask)?;
    if out.wants_json() { Ok(out.json(&trial)?) } else { Ok(show(&trial, out)?) }
}

fn show(trial: &PolicyTrial, out: &mut Out) -> io::Result<()> {
    for node in &trial.nodes {
        show_node(node, out)?;
    }
    for missing in &trial.unanswered {
        out.styled(Style::Bad, &format!("node {} did not answer: {}", missing.node, missing.error))?;
    }
    Ok(())
}

fn show_node(node: &NodeTrial, out: &mut Out) -> io::Result<()> {
    let NodeTrial { node, trial } = node;
    out.styled(Style::Bold, &format!("node {node}"))?;
    if trial.requests == 0 {
        return out.line("  nobody has called it here in the last minute");
    }
    let (would, was) = trial.refusals.iter().fold((0, 0), |(would, was), row| (would + row.would, was + row.was));
    let requests = count(trial.requests as usize, "request");
    let (within, about) = (span_of(trial.covers_ms), if trial.kept < trial.requests { "about " } else { "" });
    out.line(&format!(
        "  of {about}{requests} in the last {within} it would have refused {would}; {was} were refused"
    ))?;
    if trial.kept < trial.requests {
        out.styled(Style::Dim, &format!("  there were too many to keep: {} stand for all", trial.kept))?;
    }
    if !trial.left_out.is_empty() {
        let guards = trial.left_out.join(", ");
        out.styled(Style::Dim, &format!("  left out, since it cannot be told in retrospect: {guards}"))?;
    }
    if trial.refusals.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["WOULD REFUSE", "REFUSED", "GUARD", "REASON"]);
    for row in &trial.refusals {
        table.row([Cell::number(row.would), Cell::number(row.was), (&row.guard).into(), (&row.why).into()]);
    }
    out.table(&table)
}
