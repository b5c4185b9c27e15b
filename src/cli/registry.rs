//! Services and their instances: register, deregister, renew, list, overrule.

use std::io;

use clap::{Args, Subcommand};
use starling_api::model::{
    CheckBody, CheckWord, InstanceInfo, InstanceList, NodeDetail, OverrideBody, RegisterRequest, Registered,
    RenewRequest, ServiceList, ServiceSummary, Written,
};
use starling_core::id::{InstanceId, Namespace, ServiceName, Zone};
use starling_core::registry::{DEFAULT_WEIGHT, Health, Protocol, Reach, Status};
use starling_core::view::Usability;

use super::client::{Ask, Client};
use super::failure::Failure;
use super::output::{Cell, Out, Style, Table, count};
use crate::settings::HumanDuration;

/// Which instance.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The service
    service: ServiceName,
    /// The instance's id
    id: InstanceId,
    /// The service's namespace
    #[arg(long, short, default_value = "default")]
    namespace: Namespace,
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
    service: ServiceName,
    /// The TCP port it listens on
    #[arg(long, short, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Where it listens, as seen from the node
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    address: String,
    /// The instance's id, unique in the service [default: NODE:PORT]
    #[arg(long)]
    id: Option<InstanceId>,
    /// The service's namespace
    #[arg(long, short, default_value = "default")]
    namespace: Namespace,
    /// What it speaks: http, http2, grpc or tcp
    #[arg(long, default_value = "http")]
    protocol: Protocol,
    /// Its zone [default: the node's]
    #[arg(long)]
    zone: Option<Zone>,
    /// The application's version
    #[arg(long, default_value = "", hide_default_value = true)]
    version: String,
    /// Its share of traffic relative to its siblings; 0 takes none
    #[arg(long, default_value_t = DEFAULT_WEIGHT)]
    weight: u32,
    /// A word callers can select by; repeatable
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// A key/value pair; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    meta: Vec<(String, String)>,
    /// What it says of itself: UP, DOWN, STARTING or OUT_OF_SERVICE
    #[arg(long, default_value = "UP")]
    status: Status,
    /// How the node checks it: http:/PATH, tcp, or ttl (it renews by itself)
    #[arg(long, value_name = "CHECK", value_parser = check)]
    check: Option<CheckBody>,
    /// Time between checks, or how long a renewal lasts: 500ms, 5s
    #[arg(long, requires = "check", value_name = "DURATION")]
    interval: Option<HumanDuration>,
    /// How long one check may take
    #[arg(long, requires = "check", value_name = "DURATION")]
    timeout: Option<HumanDuration>,
    /// Remove it after its check has failed this long
    #[arg(long, requires = "check", value_name = "DURATION")]
    deregister_after: Option<HumanDuration>,
    /// Other nodes reach it straight at its address: it lives on a host without a node
    #[arg(long)]
    direct: bool,
}

/// `starling deregister`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Works at any node, whichever owns the instance.

Example:
  starling deregister orders node-a:8080")]
pub(crate) struct DeregisterArgs {
    #[command(flatten)]
    which: Which,
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
    which: Which,
    /// Report that it does not work, and why
    #[arg(long, value_name = "REASON")]
    failing: Option<String>,
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
    prefix: String,
    /// Only this namespace [default: all]
    #[arg(long, short)]
    namespace: Option<Namespace>,
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
    service: ServiceName,
    /// The service's namespace
    #[arg(long, short, default_value = "default")]
    namespace: Namespace,
    /// Only those that may take traffic
    #[arg(long)]
    ready: bool,
    /// Only this zone
    #[arg(long)]
    zone: Option<Zone>,
    /// Only those with this tag
    #[arg(long)]
    tag: Option<String>,
    /// Only this version of the application
    #[arg(long)]
    version: Option<String>,
    /// Only this status
    #[arg(long)]
    status: Option<Status>,
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
pub(crate) struct OverrideSetArgs {
    #[command(flatten)]
    which: Which,
    /// UP, DOWN, STARTING or OUT_OF_SERVICE
    #[arg(long, required_unless_present = "weight")]
    status: Option<Status>,
    /// Its share of traffic; 0 takes no new traffic
    #[arg(long)]
    weight: Option<u32>,
    /// Why, for the next person who looks
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

impl Which {
    fn ask(&self, method: &'static str, last: Option<&str>) -> Ask {
        let mut segments = vec!["v1", "services", self.service.as_str(), "instances", self.id.as_str()];
        segments.extend(last);
        Ask::new(method, &segments).query("namespace", self.namespace.as_str())
    }
}

pub(crate) fn register(args: RegisterArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let id = match args.id {
        Some(id) => id,
        None => {
            let node: NodeDetail = client.fetch(Ask::get(&["v1", "node"]))?;
            format!("{}:{}", node.node.node, args.port).parse().map_err(|error| Failure::Usage(format!("{error}")))?
        }
    };
    let check = args.check.map(|check| CheckBody {
        interval_ms: args.interval.map(HumanDuration::as_millis),
        timeout_ms: args.timeout.map(HumanDuration::as_millis),
        deregister_after_ms: args.deregister_after.map(HumanDuration::as_millis),
        ..check
    });
    let request = RegisterRequest {
        address: args.address,
        protocol: args.protocol,
        zone: args.zone,
        version: args.version,
        weight: args.weight,
        tags: args.tag.into_iter().collect(),
        metadata: args.meta.into_iter().collect(),
        status: args.status,
        check,
        reach: if args.direct { Reach::Direct } else { Reach::Owner },
        ..RegisterRequest::on_port(args.port)
    };
    let which = Which { service: args.service, id, namespace: args.namespace };
    let done: Registered = client.fetch(which.ask("PUT", None).json(&request))?;
    if out.wants_json() {
        // The id may have been chosen here, so it belongs into the answer.
        let id = which.id.as_str();
        return Ok(out.json(&serde_json::json!({ "id": id, "owner": done.owner, "revision": done.revision,
            "stamp": done.stamp.map(|stamp| stamp.to_string()) }))?);
    }
    Ok(out.line(&format!("registered {} of {} at node {}", which.id, which.service, done.owner))?)
}

pub(crate) fn deregister(args: DeregisterArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let done = client.fetch(args.which.ask("DELETE", None))?;
    written(&done, &format!("deregistered {} of {}", args.which.id, args.which.service), out)
}

pub(crate) fn renew(args: RenewArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let request = RenewRequest { passing: args.failing.is_none(), reason: args.failing };
    let done: Registered = client.fetch(args.which.ask("PUT", Some("renew")).json(&request))?;
    if out.wants_json() {
        return Ok(out.json(&done)?);
    }
    let word = if request.passing { "renewed" } else { "reported as failing:" };
    Ok(out.line(&format!("{word} {} of {} at node {}", args.which.id, args.which.service, done.owner))?)
}

pub(crate) fn override_(command: OverrideCommand, client: &Client, out: &mut Out) -> Result<(), Failure> {
    match command {
        OverrideCommand::Set(OverrideSetArgs { which, status, weight, reason }) => {
            let body = OverrideBody { status, weight, reason };
            let done = client.fetch(which.ask("PUT", Some("override")).json(&body))?;
            written(&done, &format!("override set on {} of {}", which.id, which.service), out)
        }
        OverrideCommand::Clear { which } => {
            let done = client.fetch(which.ask("DELETE", Some("override")))?;
            written(&done, &format!("override cleared on {} of {}", which.id, which.service), out)
        }
    }
}

/// Reports a write that was taken.
pub(crate) fn written(done: &Written, what: &str, out: &mut Out) -> Result<(), Failure> {
    if out.wants_json() {
        return Ok(out.json(done)?);
    }
    let already = if done.stamp.is_none() { " (nothing to change)" } else { "" };
    Ok(out.line(&format!("{what}, at node {}{already}", done.node))?)
}

pub(crate) fn services(args: &ServicesArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let ask = Ask::get(&["v1", "services"]).query("prefix", &args.prefix);
    let list: ServiceList = client.fetch(ask.query_opt("namespace", args.namespace.as_ref()))?;
    if out.wants_json() { Ok(out.json(&list)?) } else { Ok(show_services(&list.services, out)?) }
}

fn show_services(services: &[ServiceSummary], out: &mut Out) -> io::Result<()> {
    if services.is_empty() {
        return out.line("no services; register one with: starling register NAME --port PORT");
    }
    let one_namespace = services.iter().all(|service| service.namespace == Namespace::default());
    let mut table = Table::new(&["NAMESPACE", "SERVICE", "INSTANCES", "READY", "NOT READY"]);
    for service in services {
        let ready = service.usability.ready;
        let style = match (ready, service.instances) {
            (0, _) => Style::Bad,
            (ready, all) if ready < all => Style::Doubtful,
            _ => Style::Good,
        };
        let namespace = if one_namespace { String::new() } else { service.namespace.to_string() };
        table.row([
            namespace.into(),
            Cell::styled(Style::Bold, &service.service),
            Cell::number(service.instances),
            Cell::styled(style, ready),
            against(service).into(),
        ]);
    }
    out.table(&table)
}

/// What stands against the instances that are not ready: `2 failing health, 1 of a lost node`.
fn against(service: &ServiceSummary) -> String {
    let counts = service.usability;
    let parts = [
        (counts.health, "not healthy"),
        (counts.status, "not UP"),
        (counts.weight, "of weight 0"),
        (counts.owner_lost, "of a lost node"),
        (counts.owner_left, "of a node that left"),
    ];
    let parts = parts.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}"));
    parts.collect::<Vec<_>>().join(", ")
}

pub(crate) fn instances(args: &InstancesArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let all =
        Ask::get(&["v1", "services", args.service.as_str(), "instances"]).query("namespace", args.namespace.as_str());
    let ask = if args.ready { all.query("ready", "true") } else { all };
    let ask = ask.query_opt("zone", args.zone.as_ref()).query_opt("tag", args.tag.as_ref());
    let ask = ask.query_opt("version", args.version.as_ref()).query_opt("status", args.status.as_ref());
    let answer = client.look(ask)?;
    if answer.is_missing() {
        if out.wants_json() {
            let empty = serde_json::json!({ "namespace": args.namespace, "service": args.service,
                "revision": answer.revision, "instances": [] });
            return Ok(out.json(&empty)?);
        }
        let known: ServiceList = client.fetch(Ask::get(&["v1", "services"]))?;
        return Ok(out.line(&none_of(args.service.as_str(), &known.services))?);
    }
    let list: InstanceList = answer.parse()?;
    if out.wants_json() {
        return Ok(out.json(&list)?);
    }
    let filtered =
        args.ready || args.zone.is_some() || args.tag.is_some() || args.version.is_some() || args.status.is_some();
    if list.instances.is_empty() && filtered {
        return Ok(out.line(&format!(
            "no instance of {} matches; without the filters: starling instances {}",
            args.service, args.service
        ))?);
    }
    Ok(show_instances(&list, out)?)
}

/// The empty state of a service: which ones there are instead.
fn none_of(service: &str, known: &[ServiceSummary]) -> String {
    const SHOWN: usize = 10;
    if known.is_empty() {
        return format!("no instances of {service}; no services are registered at all");
    }
    let mut names: Vec<String> = known.iter().take(SHOWN).map(display_name).collect();
    if known.len() > SHOWN {
        names.push(format!("and {} more", known.len() - SHOWN));
    }
    format!("no instances of {service}; known services: {}", names.join(", "))
}

fn display_name(service: &ServiceSummary) -> String {
    if service.namespace == Namespace::default() { service.service.to_string() } else { service.key().to_string() }
}

fn show_instances(list: &InstanceList, out: &mut Out) -> io::Result<()> {
    if list.instances.is_empty() {
        return out.line(&format!("no instances of {}", list.service));
    }
    let mut table =
        Table::new(&["INSTANCE", "ADDRESS", "NODE", "ZONE", "VERSION", "STATUS", "HEALTH", "WEIGHT", "TAKES TRAFFIC"]);
    for instance in &list.instances {
        table.row(instance_row(instance));
    }
    out.table(&table)?;
    let ready = list.instances.iter().filter(|instance| instance.usability == Usability::Ready).count();
    let total = count(list.instances.len(), "instance");
    out.styled(Style::Dim, &format!("{total} of {}, {ready} ready", list.service))
}

fn instance_row(instance: &InstanceInfo) -> [Cell; 9] {
    let status = match instance.status {
        Status::Up => Style::Good,
        Status::Down => Style::Bad,
        _ => Style::Doubtful,
    };
    let health = match instance.health {
        Health::Passing => Style::Good,
        Health::Failing => Style::Bad,
        Health::Unknown => Style::Doubtful,
        Health::Unchecked => Style::Dim,
    };
    let takes = match (instance.usability, &instance.reason) {
        (Usability::Ready, _) => Cell::styled(Style::Good, "yes"),
        (Usability::OwnerLost, reason) => {
            Cell::styled(Style::Doubtful, reason.as_deref().unwrap_or("its node is lost"))
        }
        (_, reason) => Cell::styled(Style::Bad, reason.as_deref().unwrap_or("no")),
    };
    let overruled = |changed: bool| if changed { "*" } else { "" };
    let word = instance.override_.as_ref();
    let address = starling_core::registry::Address { host: instance.address.clone(), port: instance.port };
    let via = if instance.reach == Reach::Direct {
        format!("{} (direct)", instance.owner)
    } else {
        instance.owner.to_string()
    };
    [
        Cell::styled(Style::Bold, &instance.id),
        format!("{} {address}", instance.protocol).into(),
        via.into(),
        Cell::from(&instance.zone),
        Cell::from(&instance.version),
        Cell::styled(
            status,
            format!("{}{}", instance.status, overruled(word.is_some_and(|word| word.status.is_some()))),
        ),
        Cell::styled(health, instance.health),
        Cell::number(format!("{}{}", instance.weight, overruled(word.is_some_and(|word| word.weight.is_some())))),
        takes,
    ]
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
