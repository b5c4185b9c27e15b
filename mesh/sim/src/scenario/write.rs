//! Writing a scenario down again, as the file it can be read from. What was read and written reads back as the same run.

use std::fmt::{self, Write};
use std::time::Duration;

use starling_core::Command;
use starling_core::registry::{CheckKind, Instance};

use super::{Action, Expectation, LinkChange, Scenario};
use crate::links::{Latency, Links, micros};
use crate::options::Options;

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut file = String::new();
        self.head(&mut file);
        for step in &self.steps {
            match &step.action {
                // One step per command: each can then be left out by itself.
                Action::Ask { node, commands } => {
                    commands.iter().for_each(|command| ask(&mut file, step.at, node, command));
                }
                action => {
                    begin(&mut file, step.at, action.word());
                    told(&mut file, action);
                }
            }
        }
        f.write_str(file.trim_end())?;
        writeln!(f)
    }
}

impl Scenario {
    fn head(&self, file: &mut String) {
        if !self.name.is_empty() {
            text(file, "name", &self.name);
        }
        if self.lenient {
            line(file, "lenient", "true");
        }
        if !self.check.is_empty() {
            list(file, "check", &self.check);
        }
        let (options, default) = (&self.mesh.options, Options::new(self.seed()));
        file.push_str("\n[mesh]\n");
        let count = options.nodes.len();
        if options.nodes == Options::names(count) {
            line(file, "nodes", &count.to_string());
        } else {
            list(file, "nodes", &options.nodes);
        }
        if !options.zones.is_empty() {
            list(file, "zones", &options.zones);
        }
        if !options.cells.is_empty() {
            list(file, "cells", &options.cells);
        }
        line(file, "seed", &options.seed.to_string());
        links(file, &difference(&options.links, &default.links));
        let (own, settings) = (&options.settings, &default.settings);
        let ms = Duration::from_millis;
        for (name, time, default) in [
            ("lost_after", options.lost_after, default.lost_after),
            ("up_after", options.up_after, default.up_after),
            ("disk", options.disk, default.disk),
            ("clock_spread", options.clock_spread, default.clock_spread),
            ("repair_interval", ms(own.repair_interval_ms), ms(settings.repair_interval_ms)),
            ("tombstone_horizon", ms(own.tombstone_horizon_ms), ms(settings.tombstone_horizon_ms)),
            ("max_clock_skew", ms(own.max_clock_skew_ms), ms(settings.max_clock_skew_ms)),
        ] {
            if time != default {
                text(file, name, &time_text(time));
            }
        }
        if options.through_bytes {
            line(file, "through_bytes", "true");
        }
        if let Some(sabotage) = options.sabotage {
            text(file, "sabotage", sabotage.word());
        }
        if options.cell_links != default.cell_links {
            file.push_str("\n[between_cells]\n");
            links(file, &difference(&options.cell_links, &default.cell_links));
        }
        for (what, between) in [("zones", &options.zone_links), ("nodes", &options.pair_links)] {
            for (from, to, own) in between {
                file.push_str("\n[[between]]\n");
                list(file, what, &[from.clone(), to.clone()]);
                line(file, "one_way", "true");
                links(file, &difference(own, &options.links));
            }
        }
    }
}

fn begin(file: &mut String, at: Duration, word: &str) {
    file.push_str("\n[[step]]\n");
    text(file, "at", &time_text(at));
    text(file, "do", word);
}

impl Action {
    /// Its word in scenario files; of what is asked of a node, that of the first command.
    pub fn word(&self) -> &'static str {
        match self {
            Action::Ask { commands, .. } => commands.first().map_or("ask", asked),
            Action::Cut { one_way: false, .. } => "cut",
            Action::Cut { one_way: true, .. } => "cut-one-way",
            Action::App { .. } => "app",
            Action::Heal | Action::HealBetween { .. } => "heal",
            Action::Crash { .. } => "crash",
            Action::Restart(_) => "restart",
            Action::Pause(_) => "pause",
            Action::Resume(_) => "resume",
            Action::Slow(..) => "slow",
            Action::Disk(..) => "disk",
            Action::Skew(..) => "skew",
            Action::Drift(..) => "drift",
            Action::Links(_) | Action::LinksBetween { .. } => "links",
            Action::Probes(..) => "probes",
            Action::Mend => "mend",
            Action::Expect { what, .. } => what.word(),
        }
    }
}

impl Expectation {
    /// Its word in scenario files.
    pub fn word(&self) -> &'static str {
        match self {
            Expectation::Converged => "expect-converged",
            Expectation::NothingLost => "expect-nothing-lost",
            Expectation::Visible(_) => "expect-visible",
            Expectation::Ready(_) => "expect-ready",
            Expectation::Gone(_) => "expect-gone",
            Expectation::Config(..) => "expect-config",
            Expectation::Conflict(..) => "expect-conflict",
            Expectation::NoConflict(_) => "expect-no-conflict",
        }
    }
}

/// What a step says besides its time and its word.
fn told(file: &mut String, action: &Action) {
    match action {
        Action::Ask { .. } | Action::Heal | Action::Mend => {}
        Action::Cut { from, to, .. } | Action::HealBetween { from, to } => {
            list(file, "from", from);
            list(file, "to", to);
        }
        Action::App { node, chance } => {
            text(file, "node", node);
            line(file, "chance", &chance.to_string());
        }
        Action::Crash { node, torn } => {
            text(file, "node", node);
            if *torn {
                line(file, "torn", "true");
            }
        }
        Action::Restart(node) | Action::Pause(node) | Action::Resume(node) => text(file, "node", node),
        Action::Slow(node, time) | Action::Disk(node, time) => {
            text(file, "node", node);
            text(file, if matches!(action, Action::Slow(..)) { "each" } else { "latency" }, &time_text(*time));
        }
        Action::Skew(node, by) | Action::Drift(node, by) => {
            text(file, "node", node);
            line(file, if matches!(action, Action::Skew(..)) { "ms" } else { "ppm" }, &by.to_string());
        }
        Action::Links(change) => links(file, change),
        Action::LinksBetween { from, to, change } => {
            list(file, "from", from);
            list(file, "to", to);
            links(file, change);
        }
        Action::Probes(path, good) => {
            text(file, "instance", path);
            line(file, "good", &good.to_string());
        }
        Action::Expect { what, on, within } => {
            match what {
                Expectation::Converged | Expectation::NothingLost => {}
                Expectation::Visible(key) | Expectation::Ready(key) | Expectation::Gone(key) => {
                    text(file, "instance", &key.to_string());
                }
                Expectation::Config(key, value) => {
                    text(file, "key", &format!("{}/{}", key.group, key.key));
                    text(file, "value", value);
                }
                Expectation::Conflict(key, versions) => {
                    text(file, "key", &format!("{}/{}", key.group, key.key));
                    line(file, "versions", &versions.to_string());
                }
                Expectation::NoConflict(key) => text(file, "key", &format!("{}/{}", key.group, key.key)),
            }
            if !on.is_empty() {
                list(file, "on", on);
            }
            text(file, "within", &time_text(*within));
        }
    }
}

/// The word of a command.
fn asked(command: &Command) -> &'static str {
    match command {
        Command::Register(_) => "register",
        Command::Renew(..) => "renew",
        Command::Deregister(_) => "deregister",
        Command::SetOverride(_, Some(_)) => "override",
        Command::SetOverride(_, None) => "clear-override",
        Command::WriteConfig(write) if write.body.is_some() => "put",
        Command::WriteConfig(_) => "delete",
        Command::SetStatus(..) => "status",
        Command::Leave => "leave",
    }
}

fn ask(file: &mut String, at: Duration, node: &str, command: &Command) {
    begin(file, at, asked(command));
    text(file, "node", node);
    match command {
        Command::Register(registration) => {
            text(file, "instance", &registration.key.to_string());
            registered(file, &registration.instance);
        }
        Command::Renew(key, _) | Command::Deregister(key) | Command::SetOverride(key, None) => {
            text(file, "instance", &key.to_string());
        }
        Command::SetStatus(key, status) => {
            text(file, "instance", &key.to_string());
            text(file, "status", &status.to_string());
        }
        Command::SetOverride(key, Some(value)) => {
            text(file, "instance", &key.to_string());
            if let Some(status) = value.status {
                text(file, "status", &status.to_string());
            }
            if let Some(weight) = value.weight {
                line(file, "weight", &weight.to_string());
            }
            if !value.reason.is_empty() {
                text(file, "reason", &value.reason);
            }
        }
        Command::WriteConfig(write) => {
            text(file, "key", &format!("{}/{}", write.key.group, write.key.key));
            if let Some(body) = &write.body {
                text(file, "value", &String::from_utf8_lossy(body.as_bytes()));
            }
        }
        _ => {}
    }
}

fn registered(file: &mut String, instance: &Instance) {
    let default = Instance::at(instance.address.clone());
    if instance.weight != default.weight {
        line(file, "weight", &instance.weight.to_string());
    }
    if !instance.version.is_empty() {
        text(file, "version", &instance.version);
    }
    if !instance.details.tags().is_empty() {
        list(file, "tags", &instance.details.tags().iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    match instance.details.check().map(|check| &check.kind) {
        None => {}
        Some(CheckKind::Http { .. }) => text(file, "check", "http"),
        Some(CheckKind::Tcp) => text(file, "check", "tcp"),
        Some(CheckKind::Ttl) => text(file, "check", "ttl"),
    }
}

/// What of some links is not as others are.
fn difference(links: &Links, from: &Links) -> LinkChange {
    LinkChange {
        latency: (links.latency != from.latency).then_some(links.latency),
        loss: (links.loss != from.loss).then_some(links.loss),
        duplication: (links.duplication != from.duplication).then_some(links.duplication),
        reordering: (links.reordering != from.reordering).then_some(links.reordering),
        bytes_per_second: links.bytes_per_second.filter(|_| links.bytes_per_second != from.bytes_per_second),
    }
}

fn links(file: &mut String, change: &LinkChange) {
    let ms = |time: Duration| format!("{:?}", micros(time) as f64 / 1_000.0);
    match change.latency {
        None => {}
        Some(Latency::Fixed(always)) => line(file, "latency_ms", &ms(always)),
        Some(Latency::Uniform(least, most)) => {
            line(file, "latency_ms", &ms(least));
            line(file, "latency_to_ms", &ms(most));
        }
        Some(Latency::Tail { floor, mean }) => {
            line(file, "latency_ms", &ms(floor));
            line(file, "jitter_ms", &ms(mean));
        }
    }
    let shares = [("loss", change.loss), ("duplication", change.duplication), ("reordering", change.reordering)];
    for (name, share) in shares {
        if let Some(share) = share {
            line(file, name, &format!("{share:?}"));
        }
    }
    if let Some(rate) = change.bytes_per_second {
        line(file, "bytes_per_second", &rate.to_string());
    }
}

fn line(file: &mut String, name: &str, value: &str) {
    let _ = writeln!(file, "{name} = {value}");
}

fn text(file: &mut String, name: &str, value: &str) {
    line(file, name, &quoted(value));
}

fn list(file: &mut String, name: &str, values: &[String]) {
    let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
    line(file, name, &format!("[{}]", values.join(", ")));
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", control as u32);
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// A time as [`fields`](super::fields) reads it, in the largest unit that is exact.
fn time_text(time: Duration) -> String {
    match micros(time) {
        us if us.is_multiple_of(1_000_000) => format!("{}s", us / 1_000_000),
        us if us.is_multiple_of(1_000) => format!("{}ms", us / 1_000),
        us => format!("{us}us"),
    }
}
