//! Layers of settings become one: defaults, file, environment, flags.
//!
//! The file is checked by itself first, so that its errors carry lines; variables and flags are checked one by one, so
//! that theirs carry names. Everything that is wrong is reported together.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};

use super::Settings;
use super::file::{File, lines_of, unknown_in_section};
use super::known::{keys_of, suggest};
use super::section::{Section, merge, nested, sections, split_variable};
use super::service::{CheckSettings, ServiceSettings};
use super::upstream::UpstreamSettings;

/// What the settings are made of, besides the defaults.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Whether this is a `--dev` node: other defaults.
    pub dev: bool,
    /// The file's path (for messages) and text.
    pub file: Option<(PathBuf, String)>,
    /// The environment; only `STARLING_SECTION_KEY` is looked at.
    pub environment: Vec<(String, String)>,
    /// Values given on the command line.
    pub flags: Vec<Flag>,
}

/// One value given on the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// The flag as the user knows it: `--name`, or `--set` for any key.
    pub flag: String,
    /// The key: `node.name`.
    pub key: String,
    /// The value as text; lists are separated by commas.
    pub value: String,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The settings file, at this line.
    File(usize),
    /// This environment variable.
    Environment(String),
    /// This flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(line) => write!(f, "file, line {line}"),
            Origin::Environment(name) => write!(f, "environment, {name}"),
            Origin::Flag(name) => write!(f, "flag, {name}"),
        }
    }
}

/// Settings, and how they came to be.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What is in effect.
    pub settings: Settings,
    /// Where each value that is not a default came from, by key.
    pub origins: BTreeMap<String, Origin>,
    /// What was ignored, and why.
    pub warnings: Vec<String>,
}

/// Everything that is wrong with the settings, one sentence each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct SettingsError(pub Vec<String>);

/// The name of the list of declared services.
const SERVICE: &str = "service";
/// The name of the list of ports that lead to services.
const UPSTREAM: &str = "upstream";

/// Builds the settings from their sources.
///
/// # Errors
/// [`SettingsError`] with everything found wrong.
pub fn load(sources: &Sources) -> Result<Loaded, SettingsError> {
    let mut layers = Layers { sections: sections(), ..Layers::default() };
    if let Some((path, text)) = &sources.file {
        layers.add_file(path, text);
    }
    layers.add_environment(&sources.environment);
    for flag in &sources.flags {
        layers.add_flag(flag);
    }
    layers.finish(sources.dev)
}

#[derive(Default)]
struct Layers {
    sections: Vec<Section>,
    values: BTreeMap<&'static str, Table>,
    services: Vec<ServiceSettings>,
    service_lines: Vec<usize>,
    upstreams: Vec<UpstreamSettings>,
    origins: BTreeMap<String, Origin>,
    warnings: Vec<String>,
    problems: Vec<String>,
}

impl Layers {
    fn add_file(&mut self, path: &Path, text: &str) {
        let file = File { path, text };
        let root = match DeTable::parse(text) {
            Ok(root) => root.into_inner(),
            Err(error) => {
                let line = error.span().map_or(1, |span| file.line(&span));
                self.problems.push(format!("{}, line {line}: {}", path.display(), error.message()));
                return;
            }
        };
        for (name, value) in root {
            let line = file.line(&name.span());
            if name.get_ref() == SERVICE {
                let check = Some(("check", keys_of::<CheckSettings>()));
                let (services, lines) = self.list(&file, SERVICE, "name", check, value, line).into_iter().unzip();
                (self.services, self.service_lines) = (services, lines);
            } else if name.get_ref() == UPSTREAM {
                let upstreams = self.list(&file, UPSTREAM, "service", None, value, line);
                self.upstreams = upstreams.into_iter().map(|(upstream, _)| upstream).collect();
            } else if let Some(at) = self.sections.iter().position(|section| section.name == name.get_ref().as_ref()) {
                self.add_file_section(&file, at, value);
            } else {
                let names =
                    self.sections.iter().map(|section| section.name).chain([SERVICE, UPSTREAM]).collect::<Vec<_>>();
                let what = if value.get_ref().is_table() { "section" } else { "key" };
                self.problems.push(format!(
                    "{}: unknown {what} `{}` at line {line}; {}",
                    path.display(),
                    name.get_ref(),
                    suggest(name.get_ref(), &names)
                ));
            }
        }
    }

    fn add_file_section(&mut self, file: &File<'_>, at: usize, value: Spanned<DeValue<'_>>) {
        let section = &self.sections[at];
        let Some(table) = value.get_ref().as_table() else {
            self.problems.push(file.problem(&value.span(), section.name, "is a section: write it as [section]"));
            return;
        };
        let unknown = unknown_in_section(file, section, "", table);
        if !unknown.is_empty() {
            self.problems.extend(unknown);
            return;
        }
        let plain = match Table::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(plain) => plain,
            Err(error) => return self.problems.push(file.problem(&value.span(), section.name, error.message())),
        };
        let mut lines = Vec::new();
        lines_of(file, "", table, &mut lines);
        if let Err(error) = (section.fits_file)(value.clone()) {
            let span = error.span().unwrap_or(value.span());
            let key = table.iter().find(|(_, value)| contains(&value.span(), &span)).map(|(key, _)| key.get_ref());
            let what = key.map_or(section.name.to_owned(), |key| format!("{}.{key}", section.name));
            self.problems.push(file.problem(&span, &what, &helpful(error.message())));
            return;
        }
        for (key, line) in lines {
            self.origins.insert(format!("{}.{key}", section.name), Origin::File(line));
        }
        self.values.insert(section.name, plain);
    }

    /// Reads a list of tables, each called by the value of one of its keys: what is good in it, with its lines. A table
    /// may have one within, whose keys are known too.
    fn list<T: DeserializeOwned>(
        &mut self,
        file: &File<'_>,
        list: &str,
        called: &str,
        within: Option<(&str, &[&str])>,
        value: Spanned<DeValue<'_>>,
        line: usize,
    ) -> Vec<(T, usize)> {
        let is_a_list = format!("is a list: write each {list} as [[{list}]]");
        let span = value.span();
        let DeValue::Array(items) = value.into_inner() else {
            self.problems.push(file.problem(&span, list, &is_a_list));
            return Vec::new();
        };
        let mut good = Vec::new();
        for item in items {
            let span = item.span();
            let Some(table) = item.get_ref().as_table() else {
                self.problems.push(file.problem(&span, list, &is_a_list));
                continue;
            };
            let mut unknown = file.unknown_keys(list, keys_of::<T>(), table);
            if let Some((name, keys)) = within
                && let Some(inner) = table.get(name).and_then(|inner| inner.get_ref().as_table())
            {
                unknown.extend(file.unknown_keys(&format!("{list}.{name}"), keys, inner));
            }
            if !unknown.is_empty() {
                self.problems.extend(unknown);
                continue;
            }
            let name =
                table.get(called).and_then(|name| name.get_ref().as_str()).unwrap_or("without a name").to_owned();
            let first_line = table.keys().map(|key| file.line(&key.span())).min().unwrap_or(line);
            match T::deserialize(ValueDeserializer::from(item)) {
                Ok(item) => good.push((item, first_line)),
                Err(error) => {
                    let span = error.span().unwrap_or(span);
                    self.problems.push(file.problem(&span, &format!("{list} {name}"), error.message()));
                }
            }
        }
        good
    }

    fn add_environment(&mut self, environment: &[(String, String)]) {
        for (name, value) in environment {
            let Some((section, key)) = split_variable(name, &self.sections) else { continue };
            if self.sections[section].knows(&key) {
                self.set(
                    section,
                    &key,
                    value,
                    Origin::Environment(name.clone()),
                    &format!("environment variable {name}"),
                );
            } else {
                // Not refused: container platforms put variables of their own into every environment, and a service
                // called "starling-api" would make a node fail that has nothing to do with it.
                let hint = suggest(&key, &self.sections[section].keys_under(""));
                self.warnings.push(format!("environment variable {name} sets nothing and is ignored; {hint}"));
            }
        }
    }

    fn add_flag(&mut self, flag: &Flag) {
        let Some((name, key)) = flag.key.split_once('.') else {
            self.problems.push(format!("{}: {:?} is not SECTION.KEY", flag.flag, flag.key));
            return;
        };
        let Some(section) = self.sections.iter().position(|section| section.name == name) else {
            let names: Vec<_> = self.sections.iter().map(|section| section.name).collect();
            self.problems.push(format!("{}: unknown section `{name}`; {}", flag.flag, suggest(name, &names)));
            return;
        };
        if !self.sections[section].knows(key) {
            let known: Vec<&str> = self.sections[section].keys.iter().map(String::as_str).collect();
            let hint = suggest(key, &known);
            self.problems.push(format!("{}: unknown key `{key}` in section [{name}]; {hint}", flag.flag));
            return;
        }
        self.set(section, key, &flag.value, Origin::Flag(flag.flag.clone()), &flag.flag);
    }

    /// Sets a key from text: as a string if that fits, else as a TOML value, else as a list separated by commas.
    fn set(&mut self, section: usize, key: &str, text: &str, origin: Origin, whence: &str) {
        let section = &self.sections[section];
        let literal = ValueDeserializer::parse(text).and_then(Value::deserialize).ok();
        let list = text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect();
        let candidates = [Some(Value::from(text)), literal, Some(Value::Array(list))];
        let mut first_error = None;
        let mut last_error = None;
        for candidate in candidates.into_iter().flatten() {
            let is_list = candidate.is_array();
            let alone = nested(key, candidate);
            match (section.fits)(&alone) {
                Ok(()) => {
                    merge(self.values.entry(section.name).or_default(), alone);
                    self.origins.insert(format!("{}.{key}", section.name), origin);
                    return;
                }
                Err(error) if is_list => last_error = Some(error),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        // A list is meant where a string is the wrong type; otherwise the string's own error says more.
        let wants_list = first_error.as_ref().is_some_and(|error| error.contains("expected a sequence"));
        let error = if wants_list { last_error } else { first_error }.unwrap_or_default();
        self.problems.push(format!("{whence}: {}.{key}: {}", section.name, helpful(&error)));
    }

    fn finish(mut self, dev: bool) -> Result<Loaded, SettingsError> {
        if !self.problems.is_empty() {
            return Err(SettingsError(self.problems));
        }
        let mut settings = Settings::defaults(dev);
        self.overlay("node", &mut settings.node);
        self.overlay("tls", &mut settings.tls);
        self.overlay("api", &mut settings.api);
        self.overlay("proxy", &mut settings.proxy);
        self.overlay("gossip", &mut settings.gossip);
        self.overlay("members", &mut settings.members);
        self.overlay("links", &mut settings.links);
        self.overlay("log", &mut settings.log);
        settings.gossip.zone = settings.node.zone.clone();
        settings.members.seeds = settings.node.seeds.iter().map(|seed| seed.as_str().to_owned()).collect();
        if dev && !self.origins.contains_key("node.data_dir") {
            settings.node.data_dir = super::dev_data_dir(&settings.node);
        }
        settings.services = std::mem::take(&mut self.services);
        self.check_services(&settings);
        settings.upstreams = std::mem::take(&mut self.upstreams);
        settings.proxy.upstreams = settings.upstreams.iter().map(UpstreamSettings::bound_port).collect();
        let redirected = settings.proxy.redirect_listen.map(|address| ("proxy.redirect_listen", address));
        let taken: Vec<_> = [("proxy.listen", settings.proxy.listen), ("api.listen", settings.api.listen)]
            .into_iter()
            .chain(redirected)
            .collect();
        self.problems.extend(UpstreamSettings::check_all(&settings.upstreams, &taken));
        self.problems.extend(settings.proxy.check().err().map(|error| format!("proxy.{error}")));
        self.problems.extend(settings.gossip.check().err().map(|error| format!("gossip.{error}")));
        self.problems.extend(settings.api.check().err().map(|error| format!("api.{error}")));
        self.problems
            .extend(crate::logging::filter(&settings.log.level).err().map(|error| format!("log.level: {error}")));
        if !self.problems.is_empty() {
            return Err(SettingsError(self.problems));
        }
        Ok(Loaded { settings, origins: self.origins, warnings: self.warnings })
    }

    /// Puts what the layers set over the defaults of a section.
    fn overlay<T: serde::Serialize + DeserializeOwned>(&mut self, name: &'static str, section: &mut T) {
        let Some(values) = self.values.remove(name) else { return };
        let merged = Table::try_from(&*section).map_err(|error| error.to_string()).and_then(|mut table| {
            merge(&mut table, values);
            T::deserialize(table).map_err(|error| error.message().to_owned())
        });
        match merged {
            Ok(merged) => *section = merged,
            Err(error) => self.problems.push(format!("{name}: {error}")),
        }
    }

    fn check_services(&mut self, settings: &Settings) {
        for (service, line) in settings.services.iter().zip(&self.service_lines) {
            if let Err(error) = service.registration(&settings.node.name, &settings.node.zone) {
                self.problems.push(format!("service {} at line {line}: {error}", service.name));
            }
        }
        if self.problems.is_empty() {
            self.problems.extend(settings.registrations().err().unwrap_or_default());
        }
    }
}

fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// What the parser of addresses says does not tell what an address looks like.
fn helpful(error: &str) -> String {
    match error {
        "invalid socket address syntax" => {
            "not an address to listen on: write IP:PORT, like 127.0.0.1:15000 or [::1]:15000; names are not looked up"
                .into()
        }
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Sources {
        Sources { file: Some(("starling.toml".into(), text.into())), ..Sources::default() }
    }

    fn env(name: &str, value: &str) -> Vec<(String, String)> {
        vec![(name.into(), value.into())]
    }

    fn flag(key: &str, value: &str) -> Vec<Flag> {
        vec![Flag { flag: format!("--{key}"), key: key.into(), value: value.into() }]
    }

    fn refused(sources: &Sources) -> String {
        load(sources).unwrap_err().to_string()
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
        let mut sources = file("[node]\nname = \"from-file\"\nzone = \"z\"\n");
        let name = |sources: &Sources| load(sources).unwrap().settings.node.name.to_string();
        assert_eq!(name(&sources), "from-file");
        sources.environment = env("STARLING_NODE_NAME", "from-env");
        assert_eq!(name(&sources), "from-env");
        sources.flags = flag("node.name", "from-flag");
        assert_eq!(name(&sources), "from-flag");
        let loaded = load(&sources).unwrap();
        assert_eq!(loaded.origins["node.zone"], Origin::File(3));
        assert_eq!(loaded.origins["node.name"], Origin::Flag("--node.name".into()));
        assert!(!loaded.origins.contains_key("node.mesh"));
        assert_eq!(loaded.settings.gossip.zone.as_str(), "z");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
        let error = refused(&file("[node]\nname = \"a\"\nlisen = \"127.0.0.1:0\"\n"));
        assert_eq!(error, "starling.toml: unknown key `lisen` at line 3 in [node]; did you mean `listen`?");
        let error = refused(&file("[nod]\nname = \"a\"\n"));
        assert!(error.contains("unknown section `nod` at line 1") && error.contains("`node`"), "{error}");
        let error =
            refused(&file("[[service]]\nname = \"a\"\nport = 1\n[service.check]\nkind = \"tcp\"\nintervall = \"1s\""));
        assert!(error.contains("line 6 in [service.check]") && error.contains("`interval`"), "{error}");
        let error = refused(&file("[gossip]\nzone = \"a\"\n"));
        assert!(error.contains("unknown key `zone`"), "{error}");
    }

    #[test]
    fn a_port_to_a_service_that_cannot_be_is_refused_by_name() {
        let upstream = |rest: &str| file(&format!("[[upstream]]\nservice = \"db\"\n{rest}\n"));
        assert_eq!(load(&upstream("listen = 5433")).unwrap().settings.proxy.upstreams.len(), 1);
        for (rest, why) in [
            ("listen = 5433\nport = 1", "unknown key `port` at line 4 in [upstream]; known here:"),
            ("listn = 5433", "did you mean `listen`?"),
            ("listen = 70000", "line 3: upstream db: 70000 is no port"),
            ("listen = 15001", "upstream db: 127.0.0.1:15001 is taken by proxy.listen"),
            (
                "listen = 1\n[[upstream]]\nservice = \"b\"\nlisten = 1",
                "upstream b: 127.0.0.1:1 is taken by upstream db",
            ),
        ] {
            let error = refused(&upstream(rest));
            assert!(error.contains(why), "{rest:?}: {error}");
        }
        assert!(refused(&file("upstream = 1\n")).contains("write each upstream as [[upstream]]"));
    }

    #[test]
    fn everything_wrong_is_reported_together() {
        let error = refused(&file("[node]\nnam = 1\n[log]\nformat = \"xml\"\n[[service]]\nname = \"a b\"\nport = 1\n"));
        assert_eq!(error.lines().count(), 3, "{error}");
        assert!(error.contains("line 4: log.format") && error.contains("line 6: service a b"), "{error}");
    }

    #[test]
    fn a_bad_value_names_its_line_key_or_variable() {
        let error = refused(&file("[node]\nlisten = \"nowhere\"\n"));
        assert!(error.contains("line 2: node.listen") && error.contains("IP:PORT"), "{error}");
        let error = refused(&Sources { flags: flag("api.listen", "localhost:15000"), ..Sources::default() });
        assert!(error.contains("api.listen") && error.contains("IP:PORT"), "{error}");
        let error = refused(&file("[node]\ndrain_timeout = \"5\"\n"));
        assert!(error.contains("line 2: node.drain_timeout") && error.contains("no unit"), "{error}");
        let error = refused(&file("[node\n"));
        assert!(error.contains("starling.toml, line 1"), "{error}");
        let error = refused(&Sources { environment: env("STARLING_NODE_SEEDS", "a:1,b"), ..Sources::default() });
        assert!(error.contains("STARLING_NODE_SEEDS: node.seeds") && error.contains("no port"), "{error}");
        let error = refused(&Sources { flags: flag("node.name", "a b"), ..Sources::default() });
        assert!(error.contains("--node.name: node.name: node id \"a b\""), "{error}");
        let error = refused(&Sources { flags: flag("node.naem", "a"), ..Sources::default() });
        assert!(error.contains("did you mean `name`?"), "{error}");
        let error = refused(&Sources { flags: flag("log.level", "loud=="), ..Sources::default() });
        assert!(error.contains("log.level"), "{error}");
    }

    #[test]
    fn text_from_the_environment_becomes_numbers_lists_and_words() {
        let sources = Sources {
            environment: [
                ("STARLING_GOSSIP_REPAIR_INTERVAL_MS", "250"),
                ("STARLING_NODE_SEEDS", "a:1, b:2"),
                ("STARLING_NODE_NAME", "7"),
                ("STARLING_LOG_FORMAT", "json"),
                ("STARLING_PEER", "127.0.0.1:1"),
                ("PATH", "/bin"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
            ..Sources::default()
        };
        let settings = load(&sources).unwrap().settings;
        assert_eq!(settings.gossip.repair_interval_ms, 250);
        assert_eq!(settings.node.seeds.len(), 2);
        assert_eq!(settings.node.name.as_str(), "7");
        assert_eq!(settings.log.format, super::super::LogFormat::Json);
    }

    #[test]
    fn a_variable_that_sets_nothing_is_a_warning_since_platforms_add_their_own() {
        let sources = Sources { environment: env("STARLING_NODE_PORT_80_TCP", "tcp://1.2.3.4"), ..Sources::default() };
        assert!(load(&sources).unwrap().warnings[0].contains("STARLING_NODE_PORT_80_TCP"));
    }

    #[test]
    fn a_dev_node_is_on_loopback_and_keeps_its_data_under_its_own_name() {
        let sources = Sources { dev: true, flags: flag("node.name", "b"), ..Sources::default() };
        let settings = load(&sources).unwrap().settings;
        assert!(settings.node.listen.ip().is_loopback());
        assert!(settings.node.data_dir.ends_with("data/b"));
    }

    const EXAMPLE: &str = include_str!("../../examples/starling.toml");

    /// The example with every default spelled out.
    fn example_in_full() -> String {
        let is_setting = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let lines = EXAMPLE.lines().map(|line| line.strip_prefix('#').filter(|rest| is_setting(rest)).unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_file_is_good_as_it_is_and_with_every_default_spelled_out() {
        let short = load(&file(EXAMPLE)).unwrap().settings;
        let full = load(&file(&example_in_full())).unwrap().settings;
        assert_eq!(short.services[0].name, full.services[0].name);
        assert_eq!(short.registrations().unwrap().len(), 2);
        // Spelled out or not, it is the same node.
        let json = |settings: &Settings| {
            let alone = Settings { services: Vec::new(), upstreams: Vec::new(), ..settings.clone() };
            serde_json::to_value(alone).unwrap()
        };
        assert_eq!(short.upstreams.len(), full.upstreams.len());
        assert_eq!(json(&short), json(&full));
    }

    #[test]
    fn the_example_file_shows_every_key_there_is() {
        let full = load(&file(&example_in_full())).unwrap();
        for section in sections() {
            for key in &section.keys {
                let name = format!("{}.{key}", section.name);
                assert!(full.origins.contains_key(&name), "{name} is not in the example");
            }
        }
        let upstream = serde_json::to_value(&full.settings.upstreams[0]).unwrap();
        assert!(upstream.as_object().unwrap().values().all(|value| !value.is_null()), "{upstream}");
        let service = serde_json::to_value(&full.settings.services[0]).unwrap();
        let unset: Vec<_> = service.as_object().unwrap().iter().filter(|(_, value)| value.is_null()).collect();
        assert!(unset.is_empty(), "not in the example: {unset:?}");
        assert!(service["check"].as_object().unwrap().values().all(|value| !value.is_null()), "{service}");
    }
}
