//! From a document's text to what it says, or to what is wrong with it: field, line, and what is allowed.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, Deserializer};
use toml::{Spanned, Table, Value};

use super::layers::{Layers, laid};
use super::text::{field_at, join, line_at, lines_of};
use super::{MAX_DOCUMENT_BYTES, MAX_KEYS, MAX_ROUTES, MESH_KEY, RouteMatch, Sections};
use crate::config::Body;
use crate::guard::LimitSettings;
use crate::guard::limit::LimitBy;
use crate::id::ConfigKey;

/// A checked document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub(super) sections: Table,
    pub(super) lines: BTreeMap<String, usize>,
    /// Its routes, in order; the first that matches a request is its route.
    pub routes: Vec<RouteDocument>,
}

/// One `[[route]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteDocument {
    /// Which requests it is for.
    pub matching: RouteMatch,
    pub(super) sections: Table,
}

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// The line, from 1, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The field, as `route[0].timeouts.request_ms`; empty: the document as a whole.
    pub field: String,
    /// What is wrong, and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl Problem {
    /// A problem of the document as a whole.
    pub fn whole(message: impl Into<String>) -> Self {
        Self { line: None, field: String::new(), message: message.into() }
    }
}

impl Document {
    /// Reads and checks a document as it is kept under a key.
    ///
    /// # Errors
    /// All that was found to be wrong, in the order of the text; never empty.
    pub fn read(key: &ConfigKey, body: &Body) -> Result<Self, Vec<Problem>> {
        match body.as_text() {
            Some(text) if key.key.as_str() == MESH_KEY => Self::parse_for_all(text),
            Some(text) => Self::parse(text),
            None => Err(vec![Problem::whole("the document is not UTF-8 text; a policy is TOML")]),
        }
    }

    /// Reads and checks the document of a service.
    ///
    /// # Errors
    /// All that was found to be wrong, in the order of the text; never empty.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        Self::parse_as(text, false)
    }

    /// Reads and checks the document for all services, which has no routes.
    ///
    /// # Errors
    /// All that was found to be wrong, in the order of the text; never empty.
    pub fn parse_for_all(text: &str) -> Result<Self, Vec<Problem>> {
        Self::parse_as(text, true)
    }

    fn parse_as(text: &str, is_for_all: bool) -> Result<Self, Vec<Problem>> {
        if text.len() > MAX_DOCUMENT_BYTES {
            let message = format!("the document has {} bytes; allowed are {MAX_DOCUMENT_BYTES}", text.len());
            return Err(vec![Problem::whole(message)]);
        }
        let root = DeTable::parse(text).map_err(|error| {
            let hint = if text.trim_start().starts_with('{') { "; policies are written in TOML, not JSON" } else { "" };
            let line = error.span().map(|span| line_at(text, span.start));
            vec![Problem { line, field: String::new(), message: format!("{}{hint}", error.message()) }]
        })?;
        let mut reader = Reader { text, root: root.get_ref(), is_for_all, problems: Vec::new() };
        let document = reader.document();
        match document {
            Some(document) if reader.problems.is_empty() => Ok(document),
            _ => {
                reader.problems.sort_by_key(|problem| problem.line);
                Err(reader.problems)
            }
        }
    }

    /// What is allowed and hardly meant: routes that no request can take, since one before them takes all; shedding without
    /// a queue to measure.
    pub fn warnings(&self) -> Vec<Problem> {
        let mut warnings = self.deaf();
        for (place, route) in self.routes.iter().enumerate() {
            let Some(earlier) =
                self.routes[..place].iter().position(|earlier| earlier.matching.takes_all_of(&route.matching))
            else {
                continue;
            };
            let field = format!("route[{place}]");
            let message =
                format!("no request takes it: route {} before it takes them all", self.routes[earlier].matching.name);
            warnings.push(Problem { line: self.line_of(&field), field, message });
        }
        warnings
    }

    /// Shedding that hears of no queue, but for what another document may add.
    fn deaf(&self) -> Vec<Problem> {
        let queues = |sections: &Table| sections.contains_key("bulkhead") || sections.contains_key("concurrency");
        let routes = self.routes.iter().enumerate().map(|(place, route)| (format!("route[{place}]."), &route.sections));
        let scopes = std::iter::once((String::new(), &self.sections)).chain(routes);
        let deaf = scopes
            .filter(|(_, sections)| sections.contains_key("shed") && !queues(sections) && !queues(&self.sections));
        let warning = |(prefix, _)| {
            let field = format!("{prefix}shed");
            let message = "measures how long calls wait for a place, and there is none to wait for: add [bulkhead] or \
                [concurrency] with queue.max_queue (fine if another document of this service has one)";
            Problem { line: self.line_of(&field), field, message: message.into() }
        };
        deaf.map(warning).collect()
    }

    /// The line of a field, or of what holds it.
    pub fn line_of(&self, field: &str) -> Option<usize> {
        let mut path = field;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }
}

/// Reads one text.
struct Reader<'a> {
    text: &'a str,
    root: &'a DeTable<'a>,
    is_for_all: bool,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn document(&mut self) -> Option<Document> {
        let lines = lines_of(self.text, self.root).into_iter().collect();
        let mut top = self.root.clone();
        let routes = top.remove("route");
        self.unknown("", &top, &["route"]);
        let sections = self.sections("", top)?;
        let mut document = Document { sections, lines, routes: Vec::new() };
        document.routes = match routes {
            None => Vec::new(),
            Some(routes) => self.routes(routes)?,
        };
        self.check(&document);
        Some(document)
    }

    fn routes(&mut self, routes: Spanned<DeValue<'_>>) -> Option<Vec<RouteDocument>> {
        let line = Some(line_at(self.text, routes.span().start));
        if self.is_for_all {
            let message = "cannot be set for all services: which requests a route takes is a service's own matter; write it into \
                the document of each service that has such requests";
            self.problems.push(Problem { line, field: "route".into(), message: message.into() });
            return None;
        }
        let DeValue::Array(routes) = routes.into_inner() else {
            let message = "is not a list; write [[route]]".into();
            self.problems.push(Problem { line, field: "route".into(), message });
            return None;
        };
        if routes.len() > MAX_ROUTES {
            let message = format!("{} routes; allowed are {MAX_ROUTES}", routes.len());
            self.problems.push(Problem { line, field: "route".into(), message });
            return None;
        }
        let read: Vec<Option<RouteDocument>> =
            routes.into_iter().enumerate().map(|(i, route)| self.route(i, route)).collect();
        read.into_iter().collect()
    }

    fn route(&mut self, i: usize, route: Spanned<DeValue<'_>>) -> Option<RouteDocument> {
        let field = format!("route[{i}]");
        let line = Some(line_at(self.text, route.span().start));
        let DeValue::Table(mut sections) = route.into_inner() else {
            self.problems.push(Problem { line, field, message: "is not a table; write [[route]]".into() });
            return None;
        };
        let mut matching = DeTable::new();
        let keys: Vec<_> =
            sections.keys().filter(|key| RouteMatch::KEYS.contains(&key.get_ref().as_ref())).cloned().collect();
        for key in keys {
            if let Some(value) = sections.remove(key.get_ref().as_ref()) {
                matching.insert(key, value);
            }
        }
        self.unknown(&field, &sections, &RouteMatch::KEYS);
        let mut matching: RouteMatch = self.read(&field, matching)?;
        if let Some((key, message)) = matching.mistake() {
            self.problems.push(Problem { line, field: format!("{field}.{key}"), message });
            return None;
        }
        if matching.name.is_empty() {
            matching.name = format!("route-{}", i + 1);
        }
        let sections = self.sections(&field, sections)?;
        for (path, why) in Sections::WHOLE_SERVICE {
            if holds(&sections, path) {
                let message = format!("cannot be set for a route: {why}; set it for the service");
                self.problems.push(Problem { line, field: format!("{field}.{path}"), message });
            }
        }
        Some(RouteDocument { matching, sections })
    }

    /// Reads sections, and whether their types and names are right.
    fn sections(&mut self, field: &str, table: DeTable<'_>) -> Option<Table> {
        let _: Sections = self.read(field, table.clone())?;
        self.read(field, table)
    }

    fn read<T: DeserializeOwned>(&mut self, field: &str, table: DeTable<'_>) -> Option<T> {
        match T::deserialize(Deserializer::from(Spanned::new(0..0, table))) {
            Ok(read) => Some(read),
            Err(error) => {
                let span = error.span().filter(|span| span.end > 0);
                let at = span.as_ref().map_or_else(|| field.to_owned(), |span| field_at(self.root, span));
                let line = span.map(|span| line_at(self.text, span.start));
                self.problems.push(Problem { line, field: at, message: error.message().to_owned() });
                None
            }
        }
    }

    /// Notes keys nobody knows, and takes them for said.
    fn unknown(&mut self, field: &str, table: &DeTable<'_>, beside: &[&str]) {
        for key in table.keys().filter(|key| !Sections::NAMES.contains(&key.get_ref().as_ref())) {
            let mut path = field.to_owned();
            join(&mut path, key.get_ref());
            let known: Vec<&str> = beside.iter().chain(&Sections::NAMES).copied().collect();
            let message = format!("is unknown; allowed are {}", known.join(", "));
            self.problems.push(Problem { line: Some(line_at(self.text, key.span().start)), field: path, message });
        }
    }

    /// Whether the values are in their ranges, the program's defaults being under them.
    fn check(&mut self, document: &Document) {
        let defaults = Table::new();
        let layers = Layers { node: &defaults, mesh: None, service: Some(document) };
        let service = layers.service().map(drop);
        let routes = (0..document.routes.len()).map(|i| layers.route(i).map(drop));
        let mut problems: Vec<Problem> = std::iter::once(service).chain(routes).filter_map(Result::err).collect();
        problems.dedup();
        self.problems.extend(problems);
        self.problems.extend((0..document.routes.len()).filter_map(|place| idle_switch(document, place)));
        self.problems.extend(rules(document).filter_map(|rule| unrelated(document, &rule)));
        self.problems.extend(too_many_keys(document));
    }
}

/// A `[[limit]]` of a document: the field it is, and what it says. Its fields have the right types.
struct Rule<'a> {
    field: String,
    table: &'a Table,
}

/// All limits of a document, those of its routes included.
fn rules(document: &Document) -> impl Iterator<Item = Rule<'_>> {
    let routes = document.routes.iter().enumerate().map(|(place, route)| (format!("route[{place}]."), &route.sections));
    std::iter::once((String::new(), &document.sections)).chain(routes).flat_map(|(prefix, sections)| {
        let limits = sections.get("limit").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table);
        limits.enumerate().map(move |(place, table)| Rule { field: format!("{prefix}limit[{place}]"), table })
    })
}

/// A limit that is related to no route: it would never be in force.
fn unrelated(document: &Document, rule: &Rule<'_>) -> Option<Problem> {
    let name = rule.table.get("related")?.as_str()?;
    let known: Vec<&str> = document.routes.iter().map(|route| route.matching.name.as_str()).collect();
    if known.contains(&name) {
        return None;
    }
    let field = format!("{}.related", rule.field);
    let allowed = if known.is_empty() { "; it has none".to_owned() } else { format!(": {}", known.join(", ")) };
    let message = format!("is {name:?}; allowed is the name of a route of this document{allowed}");
    Some(Problem { line: document.line_of(&field), field, message })
}

/// More memory for values told apart than a document may ask for.
fn too_many_keys(document: &Document) -> Option<Problem> {
    let limits = rules(document).filter_map(|rule| rule.table.clone().try_into::<LimitSettings>().ok());
    let keys: u64 = limits.filter(|limit| limit.by != LimitBy::All).map(|limit| u64::from(limit.max_keys)).sum();
    (keys > MAX_KEYS).then(|| {
        let message = format!("max_keys of all limits together are {keys}; allowed are {MAX_KEYS} (16 bytes each)");
        Problem { line: document.line_of("limit"), field: "limit".into(), message }
    })
}

/// A route's switch that would drive nothing: all modes that do not refuse drive a circuit, and the service's is not the
/// route's to drive.
fn idle_switch(document: &Document, place: usize) -> Option<Problem> {
    let sections = &document.routes[place].sections;
    let mode = sections.get("degrade")?.get("mode")?.as_str()?;
    let has_effect = matches!(mode, "auto" | "force_open") || sections.contains_key("circuit");
    let field = format!("route[{place}].degrade.mode");
    let message = format!("is {mode:?}; allowed are auto and force_open, and others where the route has a [circuit]");
    (!has_effect).then(|| Problem { line: document.line_of(&field), field, message })
}

fn holds(table: &Table, path: &str) -> bool {
    laid(table)
        .iter()
        .any(|(known, _)| known == path || known.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        Document::parse(text).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_empty_document_says_nothing() {
        let document = Document::parse("").unwrap();
        assert!(document.sections.is_empty() && document.routes.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_field_with_what_is_allowed() {
        assert_eq!(
            problems("\n[timeouts]\nrequest_ms = 0\n"),
            ["line 3: timeouts.request_ms: is 0; allowed are 1 to 3600000"]
        );
        let unknown = problems("[timeouts]\n# how long\nrequst_ms = 5\n").join("\n");
        assert!(unknown.starts_with("line 3: timeouts.requst_ms: unknown field `requst_ms`, expected"), "{unknown}");
        assert!(unknown.contains("request_ms"), "{unknown}");
        let wrong = problems("[retry]\nmax_retries = \"two\"\n").join("\n");
        assert!(wrong.starts_with("line 2: retry.max_retries: invalid type: string"), "{wrong}");
        let section = problems("[timeout]\nrequest_ms = 5\n").join("\n");
        assert!(section.starts_with("line 1: timeout: is unknown; allowed are route, timeouts, retry"), "{section}");
    }

    #[test]
    fn mistakes_in_routes_are_named_by_their_position() {
        let text = "[[route]]\npath = \"/a\"\n[[route]]\npath = \"/b\"\ntimeouts.request_ms = 4000000\n";
        assert_eq!(problems(text), ["line 5: route[1].timeouts.request_ms: is 4000000; allowed are 1 to 3600000"]);
        let unknown = problems("[[route]]\npaht = \"/a\"\n").join("\n");
        assert!(unknown.starts_with("line 2: route[0].paht: is unknown; allowed are name, method, path"), "{unknown}");
        let relative = problems("[[route]]\npath = \"a\"\n").join("\n");
        assert_eq!(relative, "line 1: route[0].path: \"a\" does not begin with '/'");
        let template = problems("[[route]]\npath_template = \"/{}\"\n").join("\n");
        assert!(template.starts_with("line 2: route[0].path_template: \"{}\" in"), "{template}");
    }

    #[test]
    fn a_route_cannot_set_what_is_the_services_as_a_whole() {
        let text = "[[route]]\nbreaker.min_calls = 3\n";
        assert_eq!(
            problems(text),
            [
                "line 1: route[0].breaker: cannot be set for a route: an instance is in or out for all requests; set it for the service"
            ]
        );
    }

    #[test]
    fn a_route_behind_one_that_takes_all_its_requests_is_warned_of() {
        let text = "[[route]]\npath_prefix = \"/a\"\n[[route]]\nmethod = \"GET\"\npath = \"/a/b\"\n[[route]]\npath = \"/ab\"\n";
        let warnings: Vec<String> = Document::parse(text).unwrap().warnings().iter().map(ToString::to_string).collect();
        assert_eq!(warnings, ["line 3: route[1]: no request takes it: route route-1 before it takes them all"]);
    }

    #[test]
    fn a_limit_related_to_no_route_is_refused_with_the_names_there_are() {
        let limit = "[[limit]]\ncount = 5\nrelated = \"pay\"\n";
        let allowed = "is \"pay\"; allowed is the name of a route of this document";
        assert_eq!(problems(limit), [format!("line 3: limit[0].related: {allowed}; it has none")]);
        let route = "[[route]]\nname = \"buy\"\npath = \"/buy\"\n";
        assert_eq!(problems(&format!("{limit}{route}")), [format!("line 3: limit[0].related: {allowed}: buy")]);
        let of_route = "[[route.limit]]\ncount = 5\nrelated = \"pay\"\n";
        let found = problems(&format!("{route}{of_route}"));
        assert_eq!(found, [format!("line 6: route[0].limit[0].related: {allowed}: buy")]);
        assert_eq!(problems(&format!("{limit}{}", route.replace("buy", "pay"))), [""; 0]);
    }

    #[test]
    fn the_document_for_all_services_has_no_routes() {
        let for_all = |text: &str| Document::parse_for_all(text).err().unwrap_or_default();
        let route = for_all("[timeouts]\nrequest_ms = 5\n[[route]]\npath = \"/a\"\n");
        assert_eq!((route[0].line, route[0].field.as_str(), route.len()), (Some(3), "route", 1));
        assert!(route[0].message.starts_with("cannot be set for all services"));
        assert_eq!(for_all("[[limit]]\ncount = 5\nrelated = \"pay\"\n").len(), 1);
        assert!(for_all("[timeouts]\nrequest_ms = 5\n").is_empty());
    }

    #[test]
    fn limits_together_tell_no_more_values_apart_than_a_document_may() {
        let limit = |list: &str, keys: u64| format!("[[{list}]]\nby = \"caller\"\ncount = 1\nmax_keys = {keys}\n");
        let half = MAX_KEYS / 2;
        let document =
            |keys| format!("{}[[route]]\npath = \"/a\"\n{}", limit("limit", half), limit("route.limit", keys));
        assert_eq!(problems(&document(half)), [""; 0]);
        let found = problems(&document(half + 8));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("limit: max_keys of all limits together are"), "{found:?}");
    }

    #[test]
    fn shedding_without_a_queue_to_measure_is_warned_of() {
        let warned = |text: &str| Document::parse(text).unwrap().warnings().len();
        assert_eq!([warned("[shed]\n"), warned("[shed]\n[bulkhead]\n"), warned("[shed]\n[concurrency]\n")], [1, 0, 0]);
        let route = "[[route]]\npath = \"/a\"\nshed.target_ms = 5\n";
        let found = Document::parse(route).unwrap().warnings();
        assert_eq!((found[0].line, found[0].field.as_str(), found.len()), (Some(3), "route[0].shed", 1));
        assert_eq!(
            [warned(&format!("[bulkhead]\n{route}")), warned(&format!("{route}bulkhead.max_concurrent = 1\n"))],
            [0, 0]
        );
    }

    #[test]
    fn bounds_between_two_fields_hold_for_the_merged_values() {
        let text = "[breaker]\nopen_ms = 90000\n";
        assert_eq!(problems(text), ["line 1: breaker.max_open_ms: is 60000; allowed are 90000 to 3600000"]);
        assert_eq!(problems("[breaker]\nopen_ms = 90000\nmax_open_ms = 90000\n"), [""; 0]);
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        assert!(problems("a = = 1")[0].starts_with("line 1: "));
        let json = problems("{\"timeouts\": {}}");
        assert!(json[0].contains("TOML, not JSON"), "{json:?}");
        assert!(Document::read(&super::super::mesh_document(), &Body::from(vec![0xff])).is_err());
        assert!(problems(&" ".repeat(MAX_DOCUMENT_BYTES + 1))[0].contains("allowed are 65536"));
        let many = "[[route]]\n".repeat(MAX_ROUTES + 1);
        assert!(problems(&many)[0].contains("257 routes; allowed are 256"));
    }

    #[test]
    fn a_routes_switch_must_have_something_to_drive() {
        let route = "[[route]]\npath = \"/a\"\n";
        for (mode, circuit, fine) in [
            ("force_open", "", true),
            ("auto", "", true),
            ("disabled", "circuit.failures = 3\n", true),
            ("disabled", "", false),
            ("force_closed", "", false),
        ] {
            let found = problems(&format!("[circuit]\n{route}degrade.mode = \"{mode}\"\n{circuit}"));
            assert_eq!(found.is_empty(), fine, "{mode} {circuit}: {found:?}");
            assert!(found.iter().all(|problem| problem.contains("route[0].degrade.mode")), "{found:?}");
        }
    }
}
