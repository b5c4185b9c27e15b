//! The value in force, and where it came from: layers laid over each other, field by field.
//!
//! Lists of tables (rules) add up: those of a more specific layer come after those of a less specific one, and one with
//! the same `name` takes the other's place. All else is replaced.

use std::collections::BTreeMap;
use std::fmt;

use toml::{Table, Value};

use super::{Document, Problem, Sections};
use crate::guard::Invalid;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "layer")]
pub enum Origin {
    /// The program.
    Default,
    /// The node's own settings.
    Node,
    /// The document for all services.
    Mesh {
        /// Its line.
        line: Option<usize>,
    },
    /// The service's document.
    Service {
        /// Its line.
        line: Option<usize>,
    },
    /// A route in the service's document.
    Route {
        /// The route's name.
        name: String,
        /// The document's line.
        line: Option<usize>,
    },
}

impl Origin {
    /// The line of a document, where it is one's.
    fn line(&self) -> Option<usize> {
        match self {
            Self::Default | Self::Node => None,
            Self::Mesh { line } | Self::Service { line } | Self::Route { line, .. } => *line,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = |what: String, line: &Option<usize>| match line {
            Some(line) => write!(f, "{what}, line {line}"),
            None => f.write_str(&what),
        };
        match self {
            Self::Default => f.write_str("default"),
            Self::Node => f.write_str("node settings"),
            Self::Mesh { line } => at("policy/*".into(), line),
            Self::Service { line } => at("the service's policy".into(), line),
            Self::Route { name, line } => at(format!("route {name}"), line),
        }
    }
}

/// The layers above the program's defaults.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    /// What the node's settings say, as sections.
    pub node: &'a Table,
    /// The document for all services.
    pub mesh: Option<&'a Document>,
    /// The service's document.
    pub service: Option<&'a Document>,
}

/// What is in force for a service, or for one of its routes.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// The values.
    pub sections: Sections,
    /// Each value by its field, in order, with its origin.
    pub values: Vec<(String, Value, Origin)>,
}

impl Layers<'_> {
    /// What is in force for requests no route is for.
    ///
    /// # Errors
    /// Which field contradicts another layer's.
    pub fn service(&self) -> Result<Effective, Problem> {
        self.merged().finish()
    }

    /// What is in force for the requests of a route of the service's document.
    ///
    /// # Errors
    /// Which field contradicts another layer's.
    pub fn route(&self, place: usize) -> Result<Effective, Problem> {
        let mut merged = self.merged();
        if let Some((document, route)) = self.service.and_then(|document| Some((document, document.routes.get(place)?)))
        {
            let origin = |field: &str| {
                let line = document.line_of(&format!("route[{place}].{field}"));
                Origin::Route { name: route.matching.name.clone(), line }
            };
            merged.lay(&route.sections, origin);
            merged.document = Some((document, format!("route[{place}].")));
        }
        merged.finish()
    }

    fn merged(&self) -> Merged<'_> {
        let mut merged = Merged { table: Table::new(), origins: BTreeMap::new(), document: None };
        // Settings of ours always become a table; without it the layers above still hold.
        let defaults = Table::try_from(Sections::default()).unwrap_or_default();
        merged.lay(&defaults, |_| Origin::Default);
        merged.lay(self.node, |_| Origin::Node);
        if let Some(mesh) = self.mesh {
            merged.lay(&mesh.sections, |field| Origin::Mesh { line: mesh.line_of(field) });
            merged.document = Some((mesh, String::new()));
        }
        if let Some(service) = self.service {
            merged.lay(&service.sections, |field| Origin::Service { line: service.line_of(field) });
            merged.document = Some((service, String::new()));
        }
        merged
    }
}

/// Layers being laid.
struct Merged<'a> {
    table: Table,
    origins: BTreeMap<String, Origin>,
    /// The topmost document and what its fields begin with: whoever wrote it is told.
    document: Option<(&'a Document, String)>,
}

impl Merged<'_> {
    fn lay(&mut self, over: &Table, origin: impl Fn(&str) -> Origin) {
        // A switch is one thing: whoever turns it says for whom and until when, or it is for all and without an end. The end
        // of another layer's would end it, or have ended it already.
        if over.get("degrade").is_some_and(|switch| switch.get("mode").is_some()) {
            self.table.remove("degrade");
            self.origins.retain(|field, _| !field.starts_with("degrade."));
        }
        lay(&mut self.table, over, "", &mut self.origins, &origin);
    }

    fn finish(self) -> Result<Effective, Problem> {
        let sections: Sections = match self.table.clone().try_into() {
            Ok(sections) => sections,
            Err(error) => return Err(self.problem("", error.message().to_owned())),
        };
        if let Err(invalid) = sections.check() {
            let Invalid { field, value, allowed } = invalid;
            return Err(self.problem(&field, format!("is {value}; allowed are {allowed}")));
        }
        // With the defaults of sections that are there in part.
        let whole = Table::try_from(&sections).unwrap_or_default();
        let values = laid(&whole).into_iter().map(|(field, value)| {
            let origin = self.origin(&field).cloned().unwrap_or(Origin::Default);
            (field, value, origin)
        });
        let values = values.collect();
        Ok(Effective { sections, values })
    }

    /// Where a field is from; a rule's fields are from where the rule is.
    fn origin(&self, field: &str) -> Option<&Origin> {
        if let Some(origin) = self.origins.get(field) {
            return Some(origin);
        }
        let rule = &field[..=field.find(']')?];
        self.origins.get(rule)
    }

    /// A problem of a field, told to whoever wrote it, or who wrote the topmost document.
    fn problem(&self, field: &str, message: String) -> Problem {
        let own = self.origin(field).and_then(Origin::line);
        let (line, prefix) = match &self.document {
            Some((document, prefix)) => (document.line_of(&format!("{prefix}{field}")), prefix.as_str()),
            None => (None, ""),
        };
        Problem { line: own.or(line), field: format!("{prefix}{field}"), message }
    }
}

fn lay(
    under: &mut Table,
    over: &Table,
    prefix: &str,
    origins: &mut BTreeMap<String, Origin>,
    origin: &impl Fn(&str) -> Origin,
) {
    for (key, value) in over {
        let field = format!("{prefix}{key}");
        match (under.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => {
                lay(inner, value, &format!("{field}."), origins, origin)
            }
            (Some(Value::Array(rules)), Value::Array(more)) if more.iter().all(Value::is_table) => {
                for (i, rule) in more.iter().enumerate() {
                    let named = |known: &Value| rule.get("name").is_some() && known.get("name") == rule.get("name");
                    let place = rules.iter().position(named).unwrap_or(rules.len());
                    if place == rules.len() {
                        rules.push(rule.clone());
                    } else {
                        rules[place] = rule.clone();
                    }
                    origins.insert(format!("{field}[{place}]"), origin(&format!("{field}[{i}]")));
                    for (leaf, _) in rule.as_table().map(laid).unwrap_or_default() {
                        origins.insert(format!("{field}[{place}].{leaf}"), origin(&format!("{field}[{i}].{leaf}")));
                    }
                }
            }
            _ => {
                under.insert(key.clone(), value.clone());
                for (leaf, _) in laid(&Table::from_iter([(key.clone(), value.clone())])) {
                    let leaf = format!("{prefix}{leaf}");
                    origins.insert(leaf.clone(), origin(&leaf));
                }
            }
        }
    }
}

/// Every value of a table that holds no other, by its path.
pub(super) fn laid(table: &Table) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    gather(&Value::Table(table.clone()), String::new(), &mut found);
    found
}

fn gather(value: &Value, path: String, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                gather(value, path, found);
            }
        }
        Value::Array(values) if !values.is_empty() && values.iter().all(Value::is_table) => {
            values.iter().enumerate().for_each(|(i, value)| gather(value, format!("{path}[{i}]"), found));
        }
        value => found.push((path, value.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(effective: &Effective, field: &str) -> String {
        let (_, value, origin) = effective.values.iter().find(|(known, ..)| known == field).unwrap();
        format!("{value} ({origin})")
    }

    #[test]
    fn the_most_specific_layer_that_sets_a_field_wins_and_is_named() {
        let node: Table = toml::from_str("timeouts.connect_ms = 70").unwrap();
        let mesh = Document::parse("[timeouts]\nrequest_ms = 9000\n[retry]\nmax_retries = 1").unwrap();
        let service = Document::parse(
            "[timeouts]\nrequest_ms = 800\n[[route]]\nname = \"slow\"\npath = \"/report\"\ntimeouts.request_ms = 60000",
        )
        .unwrap();
        let layers = Layers { node: &node, mesh: Some(&mesh), service: Some(&service) };
        let whole = layers.service().unwrap();
        assert_eq!(shown(&whole, "timeouts.request_ms"), "800 (the service's policy, line 2)");
        assert_eq!(shown(&whole, "timeouts.connect_ms"), "70 (node settings)");
        assert_eq!(shown(&whole, "retry.max_retries"), "1 (policy/*, line 4)");
        assert_eq!(shown(&whole, "retry.backoff_ms"), "25 (default)");
        let route = layers.route(0).unwrap();
        assert_eq!(shown(&route, "timeouts.request_ms"), "60000 (route slow, line 6)");
        assert_eq!((route.sections.timeouts.request_ms, route.sections.retry.max_retries), (60_000, 1));
    }

    #[test]
    fn a_contradiction_between_two_layers_is_found_and_stops_nothing_but_its_document() {
        let node: Table = toml::from_str("breaker.max_open_ms = 2000\nbreaker.open_ms = 1000").unwrap();
        let service = Document::parse("[breaker]\nopen_ms = 5000").unwrap();
        let problem = Layers { node: &node, mesh: None, service: Some(&service) }.service().unwrap_err();
        assert_eq!(problem.to_string(), "line 1: breaker.max_open_ms: is 2000; allowed are 5000 to 3600000");
    }

    #[test]
    fn whoever_turns_the_switch_turns_all_of_it() {
        let service = Document::parse(
            "[degrade]\nmode = \"force_open\"\nuntil = 7\ncriticality = [\"sheddable\"]\n\
             [[route]]\npath = \"/a\"\ndegrade.mode = \"force_open\"\n[[route]]\npath = \"/b\"\n",
        )
        .unwrap();
        let layers = Layers { node: &Table::new(), mesh: None, service: Some(&service) };
        let switch = |place| layers.route(place).unwrap().sections.degrade;
        assert_eq!((switch(0).until, switch(0).criticality.len()), (None, 0), "for all, without an end");
        assert_eq!(
            switch(1),
            layers.service().unwrap().sections.degrade,
            "what a route does not turn is the service's"
        );
    }

    #[test]
    fn rules_of_all_layers_hold_and_one_of_the_same_name_takes_the_others_place() {
        let mesh = Document::parse(
            "[[limit]]\nname = \"all\"\ncount = 100\n[[limit]]\nname = \"each\"\nby = \"caller\"\ncount = 5",
        )
        .unwrap();
        let service =
            Document::parse("[[limit]]\nname = \"all\"\ncount = 7\n[[limit]]\nname = \"more\"\ncount = 9").unwrap();
        let whole = Layers { node: &Table::new(), mesh: Some(&mesh), service: Some(&service) }.service().unwrap();
        let limits: Vec<(&str, u32)> =
            whole.sections.limit.iter().map(|limit| (limit.name.as_str(), limit.count)).collect();
        assert_eq!(limits, [("all", 7), ("each", 5), ("more", 9)]);
        assert_eq!(shown(&whole, "limit[0].count"), "7 (the service's policy, line 3)");
        assert_eq!(shown(&whole, "limit[1].count"), "5 (policy/*, line 7)");
        assert_eq!(shown(&whole, "limit[2].per_ms"), "1000 (the service's policy, line 4)");
    }

    #[test]
    fn every_section_is_known_by_its_name() {
        let error = toml::from_str::<Sections>("[nothing]").unwrap_err().to_string();
        for name in Sections::NAMES {
            assert!(error.contains(&format!("`{name}`")), "{name}: {error}");
        }
        assert_eq!(error.matches('`').count(), 2 * (Sections::NAMES.len() + 1), "{error}");
    }
}
