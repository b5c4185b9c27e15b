//! What can be said about services and instances on the command line.

use clap::{ArgGroup, Args, Subcommand};
use starling_api::model::{CheckBody, CheckWord};
use starling_core::id::{InstanceId, Namespace, ServiceName, Zone};
use starling_core::registry::{DEFAULT_WEIGHT, Protocol, Status};

use crate::settings::HumanDuration;

/// Which instance.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The service
    pub(crate) service: ServiceName,
    /// The instance's id
    pub(crate) id: InstanceId,
    /// The service's namespace
    #[arg(long, short, default_value = "default")]
    pub(crate) namespace: Namespace,
}

/// `starling register`
#[derive(Debug, Args)]
#[command(after_long_help = "\
The node that answers owns the instance from now on and checks its health.

Examples:
  starling register orders --port 8080
  starling register orders --port 8080 --check http:/healthz --interval 2s --tag v2 --meta team=shop
  starling register legacy --address 10.0.0.7 --port 5432 --protocol tcp --direct")]
pub(crate) struct RegisterArgs {
    /// The service, by the name its callers use
    pub(crate) service: ServiceName,
    /// The TCP port it listens on
    #[arg(long, short, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
    /// Where it listens, as seen from the node
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    pub(crate) address: String,
    /// The instance's id, unique in the service [default: NODE:PORT]
    #[arg(long)]
    pub(crate) id: Option<InstanceId>,
    /// The service's namespace
    #[arg(long, short, default_value = "default")]
    pub(crate) namespace: Namespace,
    /// What it speaks: http, http2, grpc or tcp
    #[arg(long, default_value = "http")]
    pub(crate) protocol: Protocol,
    /// Its zone [default: the node's]
    #[arg(long)]
    pub(crate) zone: Option<Zone>,
    /// The application's version
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) version: String,
    /// Its share of traffic relative to its siblings; 0 takes none
    #[arg(long, default_value_t = DEFAULT_WEIGHT)]
    pub(crate) weight: u32,
    /// A word callers can select by; repeatable
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Vec<String>,
    /// A key/value pair; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) meta: Vec<(String, String)>,
    /// What it says of itself: UP, DOWN, STARTING or OUT_OF_SERVICE
    #[arg(long, default_value = "UP")]
    pub(crate) status: Status,
    /// How the node checks it: http:/PATH, tcp, or ttl (it renews by itself)
    #[arg(long, value_name = "CHECK", value_parser = check)]
    pub(crate) check: Option<CheckBody>,
    /// Time between checks, or how long a renewal lasts: 500ms, 5s
    #[arg(long, requires = "check", value_name = "DURATION")]
    pub(crate) interval: Option<HumanDuration>,
    /// How long one check may take
    #[arg(long, requires = "check", value_name = "DURATION")]
    pub(crate) timeout: Option<HumanDuration>,
    /// Remove it after its check has failed this long
    #[arg(long, requires = "check", value_name = "DURATION")]
    pub(crate) deregister_after: Option<HumanDuration>,
    /// Other nodes reach it straight at its address: it lives on a host without a node
    #[arg(long)]
    pub(crate) direct: bool,
}

/// `starling deregister`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Works at any node, whichever owns the instance.

Example:
  starling deregister orders node-a:8080")]
pub(crate) struct DeregisterArgs {
    #[command(flatten)]
    pub(crate) which: Which,
}

/// `starling renew`
#[derive(Debug, Args)]
#[command(after_long_help = "\
A node that is asked to renew an instance of another node takes it over.

Examples:
  starling renew orders node-a:8080
  starling renew orders node-a:8080 --failing 'cannot reach the database'")]
pub(crate) struct RenewArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Report that it does not work, and why
    #[arg(long, value_name = "REASON")]
    pub(crate) failing: Option<String>,
}

/// `starling services`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  starling services
  starling services --prefix pay --json")]
pub(crate) struct ServicesArgs {
    /// Only names that begin with this
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// Only this namespace [default: all]
    #[arg(long, short)]
    pub(crate) namespace: Option<Namespace>,
}

/// `starling instances`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  starling instances orders
  starling instances orders --ready --zone west
  starling instances orders --json")]
pub(crate) struct InstancesArgs {
    /// The service
    pub(crate) service: ServiceName,
    /// The service's namespace
    #[arg(long, short, default_value = "default")]
    pub(crate) namespace: Namespace,
    /// Only those that may take traffic
    #[arg(long)]
    pub(crate) ready: bool,
    /// Only this zone
    #[arg(long)]
    pub(crate) zone: Option<Zone>,
    /// Only those with this tag
    #[arg(long)]
    pub(crate) tag: Option<String>,
    /// Only this version of the application
    #[arg(long)]
    pub(crate) version: Option<String>,
    /// Only this status
    #[arg(long)]
    pub(crate) status: Option<Status>,
}

/// `starling override`
#[derive(Debug, Subcommand)]
pub(crate) enum OverrideCommand {
    /// Overrule status or weight until it is cleared
    #[command(after_long_help = "\
Examples:
  starling override set orders node-a:8080 --status OUT_OF_SERVICE --reason 'disk is being swapped'
  starling override set orders node-a:8080 --weight 10")]
    Set(OverrideSetArgs),
    /// Let the owner's word count again
    #[command(after_long_help = "\
Example:
  starling override clear orders node-a:8080")]
    Clear {
        #[command(flatten)]
        which: Which,
    },
}

/// `starling override set`
#[derive(Debug, Args)]
#[group(skip)]
#[command(group(ArgGroup::new("what").args(["status", "weight"]).required(true).multiple(true)))]
pub(crate) struct OverrideSetArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// UP, DOWN, STARTING or OUT_OF_SERVICE
    #[arg(long)]
    pub(crate) status: Option<Status>,
    /// Its share of traffic; 0 takes no new traffic
    #[arg(long)]
    pub(crate) weight: Option<u32>,
    /// Why, for the next person who looks
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) reason: String,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".into()),
    }
}

fn check(text: &str) -> Result<CheckBody, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("http", "") => Ok(CheckBody::new(CheckWord::Http)),
        ("http", path) if path.starts_with('/') => {
            Ok(CheckBody { path: Some(path.to_owned()), ..CheckBody::new(CheckWord::Http) })
        }
        ("http", _) => Err("the path begins with '/', as in http:/healthz".into()),
        ("tcp", "") => Ok(CheckBody::new(CheckWord::Tcp)),
        ("ttl", "") => Ok(CheckBody::new(CheckWord::Ttl)),
        _ => Err("a check is http:/PATH, tcp or ttl".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_and_pairs_are_read_as_they_are_written() {
        assert_eq!(check("http:/up").unwrap().path.as_deref(), Some("/up"));
        assert_eq!((check("tcp").unwrap().kind, check("ttl").unwrap().kind), (CheckWord::Tcp, CheckWord::Ttl));
        assert!(check("http:up").unwrap_err().contains("begins with '/'") && check("ping").is_err());
        assert_eq!(key_value("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert!(key_value("=b").is_err() && key_value("a").is_err());
    }
}
