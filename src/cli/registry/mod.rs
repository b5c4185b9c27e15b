//! Services and their instances: register, deregister, renew, list, overrule.

mod grammar;

use std::io;

use starling_api::model::{
    CheckBody, InstanceInfo, InstanceList, NodeDetail, OverrideBody, RegisterRequest, Registered, RenewRequest,
    ServiceList, ServiceSummary, Written,
};
use starling_core::id::Namespace;
use starling_core::registry::{Health, Reach, Status};
use starling_core::view::Usability;

use super::client::{Ask, Client};
use super::failure::Failure;
use super::output::{Cell, Out, Style, Table, count};
use crate::settings::HumanDuration;
use grammar::Which;
pub(crate) use grammar::{
    DeregisterArgs, InstancesArgs, OverrideCommand, OverrideSetArgs, RegisterArgs, RenewArgs, ServicesArgs,
};

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
            Cell::styled(style, ready).right(),
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
        (counts.doubtful, "in doubt"),
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
    for instance in &list.instances {
        if let Some(word) = &instance.override_ {
            let why = if word.reason.is_empty() { "no reason given" } else { &word.reason };
            out.styled(Style::Doubtful, &format!("* {} is overruled by an operator: {why}", instance.id))?;
        }
    }
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
        (Usability::Doubtful, reason) => Cell::styled(Style::Doubtful, reason.as_deref().unwrap_or("in doubt")),
        (_, reason) => Cell::styled(Style::Bad, reason.as_deref().unwrap_or("no")),
    };
    let overruled = |changed: bool| if changed { "*" } else { "" };
    let word = instance.override_.as_ref();
    let address = starling_core::registry::Address { host: instance.address.as_str().into(), port: instance.port };
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

#[cfg(test)]
mod tests {
    use super::super::output::captured;
    use super::*;

    fn service(name: &str, instances: u32, ready: u32) -> ServiceSummary {
        serde_json::from_value(serde_json::json!({ "namespace": "default", "service": name, "revision": 1,
            "instances": instances, "usability": { "ready": ready, "doubtful": 0, "owner_lost": instances - ready, "owner_left": 0,
            "status": 0, "health": 0, "weight": 0 } }))
        .unwrap()
    }

    fn instance(id: &str, usability: &str) -> serde_json::Value {
        serde_json::json!({ "id": id, "address": "::1", "port": 80, "protocol": "http", "zone": "west", "version": "",
            "status": "UP", "weight": 100, "health": "passing", "usability": usability, "owner": "a", "reach": "owner",
            "declared": false, "tags": [], "metadata": {}, "stamp": "1700000000000.0@a" })
    }

    fn shown(instances: Vec<serde_json::Value>) -> String {
        let list =
            serde_json::json!({ "namespace": "default", "service": "orders", "revision": 1, "instances": instances });
        let list: InstanceList = serde_json::from_value(list).unwrap();
        captured::text(false, |out| show_instances(&list, out).unwrap())
    }

    #[test]
    fn the_list_of_services_says_what_stands_against_those_that_are_not_ready() {
        let text = captured::text(false, |out| show_services(&[service("orders", 3, 1)], out).unwrap());
        assert_eq!(text, "SERVICE  INSTANCES  READY  NOT READY\norders           3      1  2 of a lost node\n");
    }

    #[test]
    fn an_empty_mesh_says_how_to_begin() {
        assert!(captured::text(false, |out| show_services(&[], out).unwrap()).contains("starling register NAME"));
        assert!(none_of("orders", &[]).contains("no services are registered"));
        assert_eq!(none_of("ordrs", &[service("orders", 1, 1)]), "no instances of ordrs; known services: orders");
    }

    #[test]
    fn an_instance_is_one_row_and_an_override_is_marked_and_explained() {
        let mut overruled = instance("o2", "weight");
        overruled["weight"] = 0.into();
        overruled["reason"] = "its weight is 0".into();
        overruled["override"] = serde_json::json!({ "weight": 0, "reason": "disk swap" });
        let text = shown(vec![instance("o1", "ready"), overruled]);
        assert!(text.contains("o1        http [::1]:80  a     west  UP      passing     100  yes"), "{text}");
        assert!(
            text.contains("0*  its weight is 0") && text.contains("* o2 is overruled by an operator: disk swap"),
            "{text}"
        );
        assert!(text.ends_with("2 instances of orders, 1 ready\n"), "{text}");
    }
}
