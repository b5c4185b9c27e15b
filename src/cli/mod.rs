//! The command line: its grammar and what each command does.
//!
//! `starling node` runs a node; `ca` and `sim` work on files; all else asks a running node over its HTTP API, any of
//! them. Exit codes: 0 done, 1 refused or failed, 2 the command line makes no sense, 3 no node answered, 4 it cannot
//! be done here.

mod backup;
mod ca;
mod client;
mod config;
mod failback;
mod failure;
mod mesh;
mod node;
mod output;
mod policy;
mod registry;
mod sim;
mod trace;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::settings::{DEFAULT_API_PORT, HostPort};
use client::Client;
use failure::Failure;
use output::{Out, notice};

pub(crate) use trace::Tree;

/// A service mesh without a control plane: one binary per host, any of them answers.
#[derive(Debug, Parser)]
#[command(name = "starling", version, max_term_width = 100, after_long_help = TOP_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// A node's API to ask; repeat it to name more, the first that answers is taken
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "STARLING_PEER",
        value_delimiter = ',',
        help_heading = "Asking"
    )]
    peer: Vec<HostPort>,
    /// Print JSON instead of tables
    #[arg(long, global = true, help_heading = "Asking")]
    json: bool,
}

const TOP_HELP: &str = "\
First steps:
  starling node --dev                                a node on this host, nothing to prepare
  starling register orders --port 8080               tell it of a program listening on port 8080
  http_proxy=http://127.0.0.1:15001 curl http://orders.mesh/   call that program from any host of the mesh
  starling status                                    do all nodes hold the same?

Exit codes:
  0  done
  1  the mesh refused or something failed; the message says what
  2  the command line makes no sense
  3  no node answered
  4  it cannot be done here (sim --real: a tool or a right is missing)";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node on this host
    Node(node::NodeArgs),
    /// See it all at work: three nodes, a small shop, and what happens when things break
    Demo(crate::demo::DemoArgs),
    /// Put an instance of a service into the registry
    Register(registry::RegisterArgs),
    /// Take an instance out of the registry
    Deregister(registry::DeregisterArgs),
    /// Renew the lease of an instance that has a TTL check
    Renew(registry::RenewArgs),
    /// List services
    Services(registry::ServicesArgs),
    /// List the instances of a service
    Instances(registry::InstancesArgs),
    /// Overrule an instance's status or weight, from any node
    #[command(subcommand)]
    Override(registry::OverrideCommand),
    /// Read and write configuration documents
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Say what shall happen to a service's requests: limits, breakers, retries, routes
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Show what guards a service now: breakers, limits, what was refused and why
    Guards(policy::GuardsArgs),
    /// Requests that wait at a node to be sent later: list, drop, try now
    #[command(subcommand)]
    Failback(failback::FailbackCommand),
    /// Save all configuration and overrides to a file, from any node
    Backup(backup::BackupArgs),
    /// Bring configuration and overrides back from such a file, through any node
    Restore(backup::RestoreArgs),
    /// List the nodes of the mesh
    Members(mesh::MembersArgs),
    /// Show whether all nodes hold the same data, and who is behind or lost
    Status(mesh::StatusArgs),
    /// Show a trace as a tree, or the newest traces
    Trace(trace::TraceArgs),
    /// Play a scenario (partitions, crashes, wrong clocks) against simulated nodes
    Sim(sim::SimArgs),
    /// Make the mesh's certificates
    #[command(subcommand)]
    Ca(ca::CaCommand),
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    // clap ends the process by itself: 0 after help, 2 after a mistake.
    let cli = Cli::parse();
    match execute(cli) {
        Ok(code) => code,
        Err(failure) => {
            if !matches!(failure, Failure::OutputClosed) {
                notice(&format!("starling: {failure}"));
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode, Failure> {
    let mut out = Out::stdout(cli.global.json);
    let peers = if cli.global.peer.is_empty() { vec![default_peer()] } else { cli.global.peer };
    let client = Client::new(peers);
    match cli.command {
        Command::Node(args) => node::run(args, &mut out),
        // It prints by itself, and its promises are more than done or failed.
        Command::Demo(args) => return Ok(crate::demo::run(&args, cli.global.json)),
        Command::Register(args) => registry::register(args, &client, &mut out),
        Command::Deregister(args) => registry::deregister(args, &client, &mut out),
        Command::Renew(args) => registry::renew(args, &client, &mut out),
        Command::Services(args) => registry::services(&args, &client, &mut out),
        Command::Instances(args) => registry::instances(&args, &client, &mut out),
        Command::Override(command) => registry::override_(command, &client, &mut out),
        Command::Config(command) => config::run(command, &client, &mut out),
        Command::Policy(command) => policy::run(command, &client, &mut out),
        Command::Guards(args) => policy::guards(&args, &client, &mut out),
        Command::Failback(command) => failback::run(&command, &client, &mut out),
        Command::Backup(args) => backup::backup(&args, &client, &mut out),
        Command::Restore(args) => backup::restore(&args, &client, &mut out),
        Command::Members(args) => mesh::members(&args, &client, &mut out),
        Command::Status(args) => mesh::status(&args, &client, &mut out),
        Command::Trace(args) => trace::run(&args, &client, &mut out),
        // It tells of failed stories itself; the exit code says the rest.
        Command::Sim(args) => return sim::run(&args, &mut out),
        Command::Ca(command) => ca::run(command, &mut out),
    }?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn default_peer() -> HostPort {
    format!("127.0.0.1:{DEFAULT_API_PORT}").parse().expect("a fixed address that is well-formed")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_in_its_long_help() {
        fn check(command: &mut clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let leaf = command.get_subcommands().next().is_none();
            let help = command.render_long_help().to_string();
            assert!(!leaf || help.contains("Example"), "{path} has no example:\n{help}");
            assert!(command.get_about().is_some(), "{path} says nothing about itself");
            command.get_subcommands_mut().filter(|sub| sub.get_name() != "help").for_each(|sub| check(sub, &path));
        }
        Cli::command()
            .get_subcommands_mut()
            .filter(|sub| sub.get_name() != "help")
            .for_each(|sub| check(sub, "starling"));
    }

    #[test]
    fn peers_can_be_repeated_or_separated_by_commas() {
        for line in [
            &["starling", "--peer", "a:1", "services", "--peer", "b:2"][..],
            &["starling", "services", "--peer", "a:1,b:2"],
        ] {
            let peers = Cli::try_parse_from(line).unwrap().global.peer;
            assert!(!peers.is_empty(), "{line:?}");
        }
        assert_eq!(
            Cli::try_parse_from(["starling", "services", "--peer", "a:1", "--peer", "b:2"]).unwrap().global.peer.len(),
            2
        );
        let error = Cli::try_parse_from(["starling", "services", "--peer", "nowhere"]).unwrap_err().to_string();
        assert!(error.contains("no port"), "{error}");
    }

    #[test]
    fn a_misspelt_command_is_answered_with_the_nearest_one() {
        let error = Cli::try_parse_from(["starling", "servces"]).unwrap_err().to_string();
        assert!(error.contains("services"), "{error}");
    }
}
