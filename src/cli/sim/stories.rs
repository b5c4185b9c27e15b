//! Which stories are meant: files, directories of files, or the names of those that are built in.

use std::path::Path;

use starling_sim::scenario::Scenario;
use starling_sim::swarm::Swarm;

use crate::cli::failure::Failure;
use crate::cli::output::{Cell, Out, Table};

/// A scenario and what to call it on the command line.
#[derive(Debug, Clone)]
pub(super) struct Story {
    /// Its file, or its name among those built in; empty for one that was drawn.
    pub(super) name: String,
    pub(super) scenario: Scenario,
}

impl Story {
    /// The command that plays it with this seed.
    pub(super) fn again(&self, seed: u64) -> String {
        let name = if self.name.is_empty() { String::new() } else { format!(" {}", self.name) };
        format!("starling sim{name} --seed {seed}")
    }
}

/// What a seed draws.
pub(super) fn drawn(seed: u64) -> Story {
    Story { name: String::new(), scenario: Swarm::default().scenario(seed) }
}

macro_rules! built_in {
    ($($name:literal)*) => {
        /// The stories of examples/scenarios, by name.
        const BUILT_IN: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../examples/scenarios/", $name, ".toml")))),*];
    };
}

built_in! {
    "partition" "crash" "rack" "one-way" "alone" "flapping" "rolling" "power" "edits" "datacentre" "clocks" "slow"
}

/// The stories of these names, files and directories, in their order.
pub(super) fn find(named: &[String]) -> Result<Vec<Story>, Failure> {
    let mut stories = Vec::new();
    for name in named {
        let path = Path::new(name);
        if path.is_dir() {
            stories.extend(in_directory(path)?);
        } else if path.exists() {
            stories.push(from_file(path)?);
        } else {
            stories.push(built_in(name)?);
        }
    }
    Ok(stories)
}

fn in_directory(dir: &Path) -> Result<Vec<Story>, Failure> {
    let told = |error: std::io::Error| Failure::Refused(format!("{}: {error}", dir.display()));
    let entries = std::fs::read_dir(dir).map_err(told)?;
    let mut paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(told)?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "toml"));
    paths.sort();
    if paths.is_empty() {
        return Err(Failure::Refused(format!("{}: no scenario (*.toml) in it", dir.display())));
    }
    paths.iter().map(|path| from_file(path)).collect()
}

fn from_file(path: &Path) -> Result<Story, Failure> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| Failure::Refused(format!("{name}: {error}")))?;
    story(name, &text)
}

fn built_in(name: &str) -> Result<Story, Failure> {
    match BUILT_IN.iter().find(|(known, _)| *known == name) {
        Some((name, text)) => story((*name).to_owned(), text),
        None => {
            let known: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let known = known.join(", ");
            Err(Failure::Refused(format!(
                "{name}: there is no such file, and no story of that name; there are {known}"
            )))
        }
    }
}

fn story(name: String, text: &str) -> Result<Story, Failure> {
    let scenario = text.parse().map_err(|error| Failure::Refused(format!("{name}: {error}")))?;
    Ok(Story { name, scenario })
}

/// The built-in stories, a line each.
pub(super) fn list(out: &mut Out) -> Result<(), Failure> {
    let stories = BUILT_IN.iter().map(|(name, text)| Ok((*name, *text, story((*name).to_owned(), text)?.scenario)));
    let stories = stories.collect::<Result<Vec<_>, Failure>>()?;
    if out.wants_json() {
        let listed = stories.iter().map(|(name, text, scenario)| {
            serde_json::json!({ "name": name, "title": scenario.name(), "nodes": scenario.options().nodes.len(),
                "seed": scenario.seed(), "file": text })
        });
        return Ok(out.json(&listed.collect::<Vec<_>>())?);
    }
    let mut table = Table::new(&["STORY", "NODES", "SECONDS", "WHAT"]);
    for (name, _, scenario) in &stories {
        let last = scenario.steps().last().map_or(0, |step| step.at.as_secs());
        let nodes = scenario.options().nodes.len();
        table.row([Cell::from(*name), Cell::number(nodes), Cell::number(last), Cell::from(scenario.name())]);
    }
    Ok(out.table(&table)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_that_ships_is_built_in_under_the_name_of_its_file() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/scenarios");
        let shipped = in_directory(Path::new(dir)).unwrap_or_else(|error| panic!("{error}"));
        let stem = |story: &Story| Path::new(&story.name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let mut shipped: Vec<String> = shipped.iter().filter_map(stem).collect();
        let mut built_in: Vec<String> = BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).collect();
        shipped.sort();
        built_in.sort();
        assert_eq!(shipped, built_in);
    }

    #[test]
    fn a_story_that_is_not_there_is_answered_with_those_that_are() {
        let error = find(&["partitoin".into()]).expect_err("no such story").to_string();
        assert!(error.contains("no such file") && error.contains("partition, crash"), "{error}");
    }
}
