//! Reading a scenario: every wrong word is refused with its line and, when there is one, the word that was meant.

use std::time::Duration;

use starling_core::Command;
use starling_core::registry::{Address, Check, CheckKind, Instance, Override};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Action, Expectation, Scenario, ScenarioError, Step};
use crate::ask::{self, config_key, instance_key};
use crate::links::{Latency, Links};
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
    ("override", &["node", "instance", "status", "weight", "reason"]),
    ("clear-override", &["node", "instance"]),
    ("put", &["node", "key", "value"]),
    ("delete", &["node", "key"]),
    ("cut", &["from", "to"]),
    ("cut-one-way", &["from", "to"]),
    ("heal", &[]),
    ("crash", &["node"]),
    ("restart", &["node"]),
    ("leave", &["node"]),
    ("pause", &["node"]),
    ("resume", &["node"]),
    ("skew", &["node", "ms"]),
    ("drift", &["node", "ppm"]),
    ("links", &["latency_ms", "jitter_ms", "loss", "duplication"]),
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
    "seed",
    "latency_ms",
    "jitter_ms",
    "loss",
    "duplication",
    "bytes_per_second",
    "lost_after",
    "up_after",
    "disk",
    "clock_spread",
    "repair_interval",
];

type Result<T> = std::result::Result<T, ScenarioError>;

pub(super) fn scenario(text: &str) -> Result<Scenario> {
    let whole = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        ScenarioError { line: line_of(text, at), what: error.message().into() }
    })?;
    let top = Fields { text, what: "a scenario", line: 1, table: whole.get_ref() };
    top.only(&["name", "mesh", "step"])?;
    let name = top.text("name")?.unwrap_or_default();
    let mesh = match top.find("mesh") {
        Some(value) => mesh(&top.table_in(value, "[mesh]")?)?,
        None => Builder::new(1),
    };
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
    Ok(Scenario { name, mesh, steps: read })
}

fn mesh(fields: &Fields) -> Result<Builder> {
    fields.only(MESH)?;
    let mut builder = Builder::new(fields.count("seed")?.unwrap_or(1));
    builder = match fields.find("nodes") {
        Some(value) if value.get_ref().is_array() => builder.named(fields.texts("nodes")?.unwrap_or_default()),
        _ => builder.nodes(fields.count("nodes")?.unwrap_or(3) as usize),
    };
    if builder.options.nodes.len() > MAX_NODES {
        return fields.wrong(format!("at most {MAX_NODES} nodes"));
    }
    builder = builder.zones(fields.texts("zones")?.unwrap_or_default());
    let options = &mut builder.options;
    options.links = Links {
        latency: latency(fields)?.unwrap_or(options.links.latency),
        loss: fields.number("loss")?.unwrap_or_default(),
        duplication: fields.number("duplication")?.unwrap_or_default(),
        bytes_per_second: fields.count("bytes_per_second")?,
    };
    options.lost_after = fields.time("lost_after")?.unwrap_or(options.lost_after);
    options.up_after = fields.time("up_after")?.unwrap_or(options.up_after);
    options.disk = fields.time("disk")?.unwrap_or_default();
    options.clock_spread = fields.time("clock_spread")?.unwrap_or_default();
    if let Some(interval) = fields.time("repair_interval")? {
        options.settings.repair_interval_ms = (interval.as_millis() as u64).clamp(100, 60_000);
    }
    builder.check().or_else(|why| fields.wrong(why))?;
    Ok(builder)
}

fn latency(fields: &Fields) -> Result<Option<Latency>> {
    let ms = |value: f64| Duration::from_micros((value.clamp(0.0, 3.6e6) * 1_000.0) as u64);
    let (floor, mean) = (fields.number("latency_ms")?.map(ms), fields.number("jitter_ms")?.map(ms));
    Ok(match (floor, mean) {
        (None, None) => None,
        (Some(floor), None) => Some(Latency::Fixed(floor)),
        (floor, Some(mean)) => Some(Latency::Tail { floor: floor.unwrap_or_default(), mean }),
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
    fields.only(&[&["at", "do"], *allowed].concat())?;
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
        "cut" | "cut-one-way" => Action::Cut {
            from: fields.nodes("from", nodes)?,
            to: fields.nodes("to", nodes)?,
            one_way: kind == "cut-one-way",
        },
        "heal" => Action::Heal,
        "crash" => Action::Crash(node()?),
        "restart" => Action::Restart(node()?),
        "leave" => one(node()?, Command::Leave),
        "pause" => Action::Pause(node()?),
        "resume" => Action::Resume(node()?),
        "skew" => Action::Skew(node()?, fields.need(fields.integer("ms")?, "ms")?),
        "drift" => Action::Drift(node()?, fields.need(fields.integer("ppm")?, "ppm")?),
        "links" => {
            let share = |name| match fields.number(name)? {
                Some(share) if !(0.0..=1.0).contains(&share) => fields.wrong(format!("{name} is between 0 and 1")),
                share => Ok(share),
            };
            Action::Links { latency: latency(fields)?, loss: share("loss")?, duplication: share("duplication")? }
        }
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
    let mut instance = Instance::at(Address { host: format!("{node}.test"), port: 8080 });
    if let Some(weight) = fields.count("weight")? {
        instance.weight = weight.min(u64::from(u32::MAX)) as u32;
    }
    instance.version = fields.text("version")?.unwrap_or_default();
    instance.tags = fields.texts("tags")?.unwrap_or_default().into_iter().collect();
    instance.check = match fields.text("check")?.as_deref() {
        None => None,
        Some("http") => Some(Check::new(CheckKind::Http { path: "/".into() })),
        Some("tcp") => Some(Check::new(CheckKind::Tcp)),
        Some("ttl") => Some(Check::new(CheckKind::Ttl)),
        Some(other) => return fields.wrong(format!("check {other:?} is not one of http, tcp, ttl")),
    };
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

/// The fields of one table, with what to call it and where it begins.
struct Fields<'a> {
    text: &'a str,
    what: &'a str,
    line: usize,
    table: &'a DeTable<'a>,
}

impl<'a> Fields<'a> {
    fn find(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value)
    }

    fn only(&self, allowed: &[&str]) -> Result<()> {
        for key in self.table.keys() {
            if !allowed.contains(&key.get_ref().as_ref()) {
                let word = key.get_ref();
                let what = format!("{} has no field {word:?}{}", self.what, meant(word, allowed.iter().copied()));
                return Err(ScenarioError { line: line_of(self.text, key.span().start), what });
            }
        }
        Ok(())
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(ScenarioError { line: self.line, what: format!("{}: {}", self.what, what.into()) })
    }

    fn wrong_at<T>(&self, value: &Spanned<DeValue>, what: impl Into<String>) -> Result<T> {
        let what = format!("{}: {}", self.what, what.into());
        Err(ScenarioError { line: line_of(self.text, value.span().start), what })
    }

    fn need<T>(&self, value: Option<T>, name: &str) -> Result<T> {
        value.map_or_else(|| self.wrong(format!("{name} is missing")), Ok)
    }

    fn table_in(&self, value: &'a Spanned<DeValue<'a>>, what: &'a str) -> Result<Fields<'a>> {
        match value.get_ref().as_table() {
            Some(table) => Ok(Fields { text: self.text, what, line: line_of(self.text, value.span().start), table }),
            None => self.wrong_at(value, format!("{what} is a table")),
        }
    }

    fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        match value.get_ref().as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => self.wrong_at(value, format!("{name} is a text, in quotes")),
        }
    }

    fn texts(&self, name: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let Some(list) = value.get_ref().as_array() else {
            return self.wrong_at(value, format!("{name} is a list of texts"));
        };
        let text = |value: &Spanned<DeValue>| match value.get_ref().as_str() {
            Some(text) => Ok(text.to_owned()),
            None => self.wrong_at(value, format!("{name} is a list of texts")),
        };
        list.iter().map(text).collect::<Result<Vec<_>>>().map(Some)
    }

    fn truth(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        value
            .get_ref()
            .as_bool()
            .map_or_else(|| self.wrong_at(value, format!("{name} is true or false")), |b| Ok(Some(b)))
    }

    fn integer(&self, name: &str) -> Result<Option<i64>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let read = value.get_ref().as_integer().and_then(|i| i64::from_str_radix(i.as_str(), i.radix()).ok());
        read.map_or_else(|| self.wrong_at(value, format!("{name} is a whole number")), |read| Ok(Some(read)))
    }

    fn count(&self, name: &str) -> Result<Option<u64>> {
        match self.integer(name)? {
            Some(negative) if negative < 0 => self.wrong(format!("{name} is {negative}; it cannot be negative")),
            read => Ok(read.map(|read| read as u64)),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let read = match value.get_ref() {
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => return Ok(self.integer(name)?.map(|whole| whole as f64)),
        };
        let usable = read.filter(|read: &f64| read.is_finite());
        usable.map_or_else(|| self.wrong_at(value, format!("{name} is a number")), |read| Ok(Some(read)))
    }

    fn time(&self, name: &str) -> Result<Option<Duration>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let read = match value.get_ref().as_str() {
            Some(text) => duration(text),
            None => self.number(name)?.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        };
        // A day of virtual time is more than any scenario needs; beyond it is a typing error.
        let usable = read.filter(|time| *time <= Duration::from_secs(86_400));
        let what = || format!("{name} is a time such as \"20ms\", \"1.5s\" or \"5m\", at most a day");
        usable.map_or_else(|| self.wrong_at(value, what()), |time| Ok(Some(time)))
    }

    fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(&self, name: &str, word: &str) -> Result<T> {
        word.parse().or_else(|error: T::Err| self.wrong(format!("{name}: {error}")))
    }

    fn known(&self, name: String, nodes: &[String]) -> Result<String> {
        if nodes.contains(&name) {
            return Ok(name);
        }
        self.wrong(format!("there is no node {name:?}{}", meant(&name, nodes.iter().map(String::as_str))))
    }

    fn node(&self, field: &str, nodes: &[String]) -> Result<String> {
        self.known(self.need(self.text(field)?, field)?, nodes)
    }

    fn nodes(&self, field: &str, nodes: &[String]) -> Result<Vec<String>> {
        let named = self.need(self.texts(field)?, field)?;
        named.into_iter().map(|name| self.known(name, nodes)).collect()
    }

    fn instance(&self, path: String) -> Result<String> {
        instance_key(&path).or_else(|why| self.wrong(why))?;
        Ok(path)
    }

    fn document(&self) -> Result<String> {
        let path = self.need(self.text("key")?, "key")?;
        config_key(&path).or_else(|why| self.wrong(why))?;
        Ok(path)
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let seconds = match text[digits..].trim() {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" | "" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds)
        .ok()
        .map(|exact| Duration::from_micros((exact.as_nanos() as u64 + 500) / 1_000))
}

/// "; did you mean ...?", or what there is when nothing is near.
fn meant<'w>(word: &str, known: impl Iterator<Item = &'w str> + Clone) -> String {
    let nearest = known.clone().map(|candidate| (distance(word, candidate), candidate)).min();
    match nearest {
        Some((far, candidate)) if far <= 2.max(candidate.len() / 3) => format!("; did you mean {candidate:?}?"),
        _ => {
            let shown: Vec<&str> = known.clone().take(30).collect();
            let more = if known.count() > shown.len() { " ..." } else { "" };
            format!("; there is {}{more}", shown.join(", "))
        }
    }
}

/// Levenshtein's distance: how many letters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().take(100).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.iter().enumerate() {
            let change = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
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

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, micros) in [("20ms", 20_000), ("1.5s", 1_500_000), ("5m", 300_000_000), ("3", 3_000_000)] {
            assert_eq!(duration(text), Some(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "s", "1x", "-1s", "1.2.3s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
