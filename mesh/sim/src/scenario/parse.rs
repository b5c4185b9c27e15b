//! Reading a scenario: every wrong word is refused with its line and, when there is one, the word that was meant.

use std::time::Duration;

use starling_core::Command;
use starling_core::registry::{Address, Check, CheckKind, Details, Instance, Metadata, Override};
use toml::de::DeTable;

use super::fields::{Fields, Result, line_of, meant};
use super::{Action, Expectation, LinkChange, Scenario, ScenarioError, Step};
use crate::ask::{self, config_key, instance_key};
use crate::checker::checker;
use crate::links::Latency;
use crate::options::Builder;

/// The most steps in a file, and nodes in a mesh, and instances registered by one step: beyond that it is a mistake.
const MAX_STEPS: usize = 10_000;
const MAX_NODES: usize = 2_000;
const MAX_COUNT: usize = 10_000;
/// How long an agreement is waited for when nothing else is said: the figure to reach after a heal.
const CONVERGED_WITHIN: Duration = Duration::from_secs(5);

/// What a step may say besides `at` and `do`.
const STEPS: &[(&str, &[&str])] = &[
    ("register", &["node", "instance", "count", "weight", "version", "tags", "check"]),
    ("deregister", &["node", "instance"]),
    ("renew", &["node", "instance"]),
    ("status", &["node", "instance", "status"]),
    ("override", &["node", "instance", "status", "weight", "reason"]),
    ("clear-override", &["node", "instance"]),
    ("put", &["node", "key", "value"]),
    ("delete", &["node", "key"]),
    ("app", &["node", "chance"]),
    ("cut", &["from", "to"]),
    ("cut-one-way", &["from", "to"]),
    ("heal", &["from", "to"]),
    ("crash", &["node", "torn"]),
    ("restart", &["node"]),
    ("leave", &["node"]),
    ("pause", &["node"]),
    ("resume", &["node"]),
    ("slow", &["node", "each"]),
    ("disk", &["node", "latency"]),
    ("skew", &["node", "ms"]),
    ("drift", &["node", "ppm"]),
    ("links", &["from", "to"]),
    ("mend", &[]),
    ("probes", &["instance", "good"]),
    ("expect-converged", &["within"]),
    ("expect-nothing-lost", &["within"]),
    ("expect-visible", &["instance", "on", "within"]),
    ("expect-ready", &["instance", "on", "within"]),
    ("expect-gone", &["instance", "on", "within"]),
    ("expect-config", &["key", "value", "on", "within"]),
    ("expect-conflict", &["key", "versions", "on", "within"]),
    ("expect-no-conflict", &["key", "on", "within"]),
];

const MESH: &[&str] = &[
    "nodes",
    "zones",
    "cells",
    "seed",
    "lost_after",
    "up_after",
    "disk",
    "clock_spread",
    "repair_interval",
    "tombstone_horizon",
    "max_clock_skew",
    "through_bytes",
    "sabotage",
];

/// What is said of links: those of a mesh, between zones, nodes or cells, and by a step that changes them.
const LINKS: &[&str] =
    &["latency_ms", "latency_to_ms", "jitter_ms", "loss", "duplication", "reordering", "bytes_per_second"];

/// What a table of links between two zones or nodes may say.
const BETWEEN: &[&str] = &["zones", "nodes", "one_way"];

pub(super) fn scenario(text: &str) -> Result<Scenario> {
    let whole = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        ScenarioError { line: line_of(text, at), what: error.message().into() }
    })?;
    let top = Fields { text, what: "a scenario", line: 1, table: whole.get_ref() };
    top.only(&["name", "lenient", "check", "mesh", "between", "between_cells", "step"])?;
    let name = top.text("name")?.unwrap_or_default();
    let lenient = top.truth("lenient")?.unwrap_or_default();
    let check = top.texts("check")?.unwrap_or_default();
    for name in &check {
        checker(name).or_else(|why| top.wrong(why))?;
    }
    let mut mesh = match top.find("mesh") {
        Some(value) => mesh(&top.table_in(value, "[mesh]")?)?,
        None => Builder::new(1),
    };
    if let Some(value) = top.find("between_cells") {
        let fields = top.table_in(value, "[between_cells]")?;
        fields.only(LINKS)?;
        mesh.options.cell_links = link_change(&fields)?.apply(mesh.options.cell_links);
    }
    if let Some(value) = top.find("between") {
        let Some(tables) = value.get_ref().as_array() else {
            return top.wrong_at(value, "links between zones or nodes are written as [[between]]");
        };
        for table in tables.iter() {
            mesh = between(&top.table_in(table, "[[between]]")?, mesh)?;
        }
    }
    let Some(steps) = top.find("step") else { return top.wrong("there is no [[step]]: nothing would happen") };
    let Some(steps) = steps.get_ref().as_array() else { return top.wrong_at(steps, "steps are written as [[step]]") };
    if steps.len() > MAX_STEPS {
        return top.wrong(format!("there are {} steps, at most {MAX_STEPS}", steps.len()));
    }
    let mut read: Vec<Step> = Vec::new();
    for value in steps.iter() {
        let step = step(&top.table_in(value, "a step")?, &mesh.options.nodes)?;
        if let Some(before) = read.last().filter(|before| before.at > step.at) {
            let (earlier, line) = (step.at, before.line);
            let what = format!("this step is at {earlier:?}, before the one in line {line}; order steps by time");
            return Err(ScenarioError { line: step.line, what });
        }
        read.push(step);
    }
    Ok(Scenario { name, lenient, check, mesh, steps: read })
}

fn mesh(fields: &Fields) -> Result<Builder> {
    fields.only(&[MESH, LINKS].concat())?;
    let mut builder = Builder::new(fields.count("seed")?.unwrap_or(1));
    builder = match fields.find("nodes") {
        Some(value) if value.get_ref().is_array() => builder.named(fields.texts("nodes")?.unwrap_or_default()),
        _ => builder.nodes(fields.count("nodes")?.unwrap_or(3) as usize),
    };
    if builder.options.nodes.len() > MAX_NODES {
        return fields.wrong(format!("at most {MAX_NODES} nodes"));
    }
    builder = builder.zones(fields.texts("zones")?.unwrap_or_default());
    builder = builder.cells(fields.texts("cells")?.unwrap_or_default());
    let options = &mut builder.options;
    options.links = link_change(fields)?.apply(options.links);
    options.lost_after = fields.time("lost_after")?.unwrap_or(options.lost_after);
    options.up_after = fields.time("up_after")?.unwrap_or(options.up_after);
    options.disk = fields.time("disk")?.unwrap_or_default();
    options.clock_spread = fields.time("clock_spread")?.unwrap_or_default();
    let settings = &mut options.settings;
    for (name, setting) in [
        ("repair_interval", &mut settings.repair_interval_ms),
        ("tombstone_horizon", &mut settings.tombstone_horizon_ms),
        ("max_clock_skew", &mut settings.max_clock_skew_ms),
    ] {
        if let Some(time) = fields.time(name)? {
            *setting = time.as_millis() as u64;
        }
    }
    settings.check().or_else(|why| fields.wrong(why))?;
    options.through_bytes = fields.truth("through_bytes")?.unwrap_or_default();
    options.sabotage = fields.text("sabotage")?.map(|word| fields.parse("sabotage", &word)).transpose()?;
    builder.check().or_else(|why| fields.wrong(why))?;
    Ok(builder)
}

/// Adds links between two zones or two nodes.
fn between(fields: &Fields, mut mesh: Builder) -> Result<Builder> {
    fields.only(&[BETWEEN, LINKS].concat())?;
    let links = link_change(fields)?.apply(mesh.options.links);
    let pair = |name| match fields.texts(name)?.as_deref() {
        None => Ok(None),
        Some([one, other]) => Ok(Some((one.clone(), other.clone()))),
        Some(_) => fields.wrong(format!("{name} names two")),
    };
    let (ends, list) = match (pair("zones")?, pair("nodes")?) {
        (Some(zones), None) => (zones, &mut mesh.options.zone_links),
        (None, Some(nodes)) => (nodes, &mut mesh.options.pair_links),
        _ => return fields.wrong("say either zones or nodes, two of them"),
    };
    if !fields.truth("one_way")?.unwrap_or_default() {
        list.push((ends.1.clone(), ends.0.clone(), links));
    }
    list.push((ends.0, ends.1, links));
    mesh.check().or_else(|why| fields.wrong(why))?;
    Ok(mesh)
}

fn latency(fields: &Fields) -> Result<Option<Latency>> {
    let ms = |value: f64| Duration::from_micros((value.clamp(0.0, 3.6e6) * 1_000.0).round() as u64);
    let read = |name| fields.number(name).map(|value| value.map(ms));
    Ok(match (read("latency_ms")?, read("latency_to_ms")?, read("jitter_ms")?) {
        (None, None, None) => None,
        (Some(floor), None, None) => Some(Latency::Fixed(floor)),
        (floor, None, Some(mean)) => Some(Latency::Tail { floor: floor.unwrap_or_default(), mean }),
        (floor, Some(most), None) => Some(Latency::Uniform(floor.unwrap_or_default(), most)),
        (_, Some(_), Some(_)) => return fields.wrong("say either jitter_ms or latency_to_ms"),
    })
}

fn link_change(fields: &Fields) -> Result<LinkChange> {
    let share = |name| match fields.number(name)? {
        Some(share) if !(0.0..=1.0).contains(&share) => {
            fields.wrong(format!("{name} is {share}, a share between 0 and 1"))
        }
        share => Ok(share),
    };
    let bytes_per_second = fields.count("bytes_per_second")?;
    if bytes_per_second == Some(0) {
        return fields.wrong("a bandwidth of 0 lets nothing through; cut the links instead");
    }
    Ok(LinkChange {
        latency: latency(fields)?,
        loss: share("loss")?,
        duplication: share("duplication")?,
        reordering: share("reordering")?,
        bytes_per_second,
    })
}

fn step(fields: &Fields, nodes: &[String]) -> Result<Step> {
    let kind = fields.need(fields.text("do")?, "do")?;
    let Some((kind, allowed)) = STEPS.iter().find(|(known, _)| *known == kind) else {
        let known = STEPS.iter().map(|(known, _)| *known);
        let value = fields.find("do").map_or(fields.line, |value| line_of(fields.text, value.span().start));
        let what = format!("there is no step {kind:?}{}", meant(&kind, known));
        return Err(ScenarioError { line: value, what });
    };
    let fields = &Fields { what: kind, ..*fields };
    let links: &[&str] = if *kind == "links" { LINKS } else { &[] };
    fields.only(&[&["at", "do"], *allowed, links].concat())?;
    let at = fields.need(fields.time("at")?, "at")?;
    let action = action(kind, fields, nodes)?;
    Ok(Step { at, line: fields.line, action })
}

fn action(kind: &str, fields: &Fields, nodes: &[String]) -> Result<Action> {
    let node = || fields.node("node", nodes);
    let path = || fields.need(fields.text("instance")?, "instance").and_then(|path| fields.instance(path));
    Ok(match kind {
        "register" => register(fields, nodes)?,
        "deregister" => one(node()?, ask::deregister(&path()?)),
        "renew" => one(node()?, ask::renew(&path()?)),
        "clear-override" => one(node()?, ask::clear_override(&path()?)),
        "status" => {
            let word = fields.need(fields.text("status")?, "status")?;
            one(node()?, ask::set_status(&path()?, fields.parse("status", &word)?))
        }
        "override" => {
            let status = fields.text("status")?.map(|word| fields.parse::<_>("status", &word)).transpose()?;
            let weight = fields.count("weight")?.map(|weight| weight.min(u64::from(u32::MAX)) as u32);
            let reason = fields.text("reason")?.unwrap_or_default();
            one(node()?, ask::set_override(&path()?, Override { status, weight, reason }))
        }
        "put" => {
            let value = fields.need(fields.text("value")?, "value")?;
            one(node()?, ask::put_config(&fields.document()?, &value))
        }
        "delete" => one(node()?, ask::delete_config(&fields.document()?)),
        "app" => Action::App { node: node()?, chance: fields.need(fields.count("chance")?, "chance")? },
        "cut" | "cut-one-way" => Action::Cut {
            from: fields.nodes("from", nodes)?,
            to: fields.nodes("to", nodes)?,
            one_way: kind == "cut-one-way",
        },
        "heal" if fields.find("from").is_some() || fields.find("to").is_some() => {
            Action::HealBetween { from: fields.nodes("from", nodes)?, to: fields.nodes("to", nodes)? }
        }
        "heal" => Action::Heal,
        "crash" => Action::Crash { node: node()?, torn: fields.truth("torn")?.unwrap_or_default() },
        "restart" => Action::Restart(node()?),
        "leave" => one(node()?, Command::Leave),
        "pause" => Action::Pause(node()?),
        "resume" => Action::Resume(node()?),
        "slow" => Action::Slow(node()?, fields.need(fields.time("each")?, "each")?),
        "disk" => Action::Disk(node()?, fields.need(fields.time("latency")?, "latency")?),
        "mend" => Action::Mend,
        "skew" => Action::Skew(node()?, fields.need(fields.integer("ms")?, "ms")?),
        "drift" => Action::Drift(node()?, fields.need(fields.integer("ppm")?, "ppm")?),
        "links" if fields.find("from").is_some() || fields.find("to").is_some() => Action::LinksBetween {
            from: fields.nodes("from", nodes)?,
            to: fields.nodes("to", nodes)?,
            change: link_change(fields)?,
        },
        "links" => Action::Links(link_change(fields)?),
        "probes" => Action::Probes(path()?, fields.need(fields.truth("good")?, "good")?),
        _ => expectation(kind, fields, nodes)?,
    })
}

fn one(node: String, command: Command) -> Action {
    Action::Ask { node, commands: vec![command] }
}

fn register(fields: &Fields, nodes: &[String]) -> Result<Action> {
    let path = fields.need(fields.text("instance")?, "instance")?;
    let node = fields.node("node", nodes)?;
    let mut instance = Instance::at(Address { host: format!("{node}.test").into(), port: 8080 });
    if let Some(weight) = fields.count("weight")? {
        instance.weight = weight.min(u64::from(u32::MAX)) as u32;
    }
    instance.version = fields.text("version")?.unwrap_or_default().into();
    let tags = fields.texts("tags")?.unwrap_or_default().into_iter().collect();
    let check = match fields.text("check")?.as_deref() {
        None => None,
        Some("http") => Some(Check::new(CheckKind::Http { path: "/".into() })),
        Some("tcp") => Some(Check::new(CheckKind::Tcp)),
        Some("ttl") => Some(Check::new(CheckKind::Ttl)),
        Some(other) => return fields.wrong(format!("check {other:?} is not one of http, tcp, ttl")),
    };
    instance.details = Details::new(tags, Metadata::default(), check);
    instance.check_limits().or_else(|why| fields.wrong(why))?;
    let paths = match fields.count("count")? {
        None => vec![path],
        Some(count) if count as usize > MAX_COUNT => return fields.wrong(format!("count is over {MAX_COUNT}")),
        Some(count) => (1..=count).map(|i| format!("{path}{i}")).collect(),
    };
    let command = |path: String| Ok(ask::register_as(&fields.instance(path)?, instance.clone()));
    Ok(Action::Ask { node, commands: paths.into_iter().map(command).collect::<Result<_>>()? })
}

fn expectation(kind: &str, fields: &Fields, nodes: &[String]) -> Result<Action> {
    let key = || {
        let path = fields.need(fields.text("instance")?, "instance")?;
        instance_key(&path).or_else(|why| fields.wrong(why))
    };
    let document = || config_key(&fields.document()?).or_else(|why| fields.wrong(why));
    let what = match kind {
        "expect-converged" => Expectation::Converged,
        "expect-nothing-lost" => Expectation::NothingLost,
        "expect-visible" => Expectation::Visible(key()?),
        "expect-ready" => Expectation::Ready(key()?),
        "expect-gone" => Expectation::Gone(key()?),
        "expect-config" => Expectation::Config(document()?, fields.need(fields.text("value")?, "value")?),
        "expect-conflict" => Expectation::Conflict(document()?, fields.count("versions")?.unwrap_or(2) as usize),
        _ => Expectation::NoConflict(document()?),
    };
    let default = if matches!(what, Expectation::Converged) { CONVERGED_WITHIN } else { Duration::ZERO };
    let on = if fields.find("on").is_some() { fields.nodes("on", nodes)? } else { Vec::new() };
    Ok(Action::Expect { what, on, within: fields.time("within")?.unwrap_or(default) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        scenario(text).unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_word_is_refused_with_its_line_and_the_word_that_was_meant() {
        let step = |body: &str| format!("[mesh]\nnodes = 2\n\n[[step]]\nat = \"1s\"\n{body}\n");
        assert_eq!(
            error(&step("do = \"regsiter\"")),
            "line 6: there is no step \"regsiter\"; did you mean \"register\"?"
        );
        assert_eq!(
            error(&step("do = \"crash\"\nnod = \"n1\"")),
            "line 7: crash has no field \"nod\"; did you mean \"node\"?"
        );
        assert_eq!(
            error(&step("do = \"crash\"\nnode = \"n3\"")),
            "line 4: crash: there is no node \"n3\"; did you mean \"n1\"?"
        );
        assert_eq!(error(&step("do = \"crash\"")), "line 4: crash: node is missing");
        assert_eq!(error("[mesh]\nnodse = 3"), "line 2: [mesh] has no field \"nodse\"; did you mean \"nodes\"?");
        assert!(error("[mesh]\nnodes = 3").contains("no [[step]]"));
        assert!(error("[mesh\n").starts_with("line 1: "));
        assert!(error("[mesh]\nloss = 3.0\n[[step]]\nat=1\ndo=\"heal\"").contains("loss is 3"));
    }

    #[test]
    fn steps_out_of_order_are_refused() {
        let text = "[[step]]\nat = \"2s\"\ndo = \"heal\"\n[[step]]\nat = \"1s\"\ndo = \"heal\"\n";
        assert_eq!(error(text), "line 4: this step is at 1s, before the one in line 1; order steps by time");
    }
}
