//! Who may call a service: rules as documents, decided at the instance's side.
//!
//! | Document (namespace / group / key) | Says |
//! |---|---|
//! | `NAMESPACE / access / SERVICE` | who may call this service ([`Access`]) |
//! | `default / mesh / access` | what holds where no rule of the service does ([`MeshAccess`]) |
//!
//! ```toml
//! # default/access/orders: everybody may read, the shop may do anything, and nobody may touch /internal from outside
//! [[allow]]
//! methods = ["GET", "HEAD"]
//! paths = ["/v1/*"]
//! [[allow]]
//! callers = ["shop", "node:batch-7"]
//! [[deny]]
//! name = "internal"
//! callers = ["*"]
//! paths = ["/internal", "/internal/*"]
//! ```
//!
//! 1. A `[[deny]]` rule that fits refuses.
//! 2. Else an `[[allow]]` rule that fits allows.
//! 3. Else the document's `default`; without one, a service that has `[[allow]]` rules refuses whom they do not fit.
//! 4. Without all of that, the mesh's default holds, which is to allow.
//!
//! **What a caller is.** Its *node* is the one in its certificate: nobody can claim another's. Its *service* is what its node
//! says of it, and a node may say only what it could do itself anyway: the name of a service it owns an instance of, by the
//! view of whoever decides (and that its certificate lists, where it lists any). So a rule for a service trusts the hosts
//! that run it, and no others.
//!
//! **What a path is.** What applications make of `/a/../b`, `//b` or `%62` differs, and whoever is kept out tries them all. So
//! rules see the path as the most daring server would: decoded, dots resolved, slashes merged. Where even that is open
//! (an encoded slash, a backslash, a NUL), every `[[deny]]` rule fits that names paths, and no `[[allow]]` rule that does.
//! Nor do all applications tell `/Internal` from `/internal`, or `get` from `GET`: `[[deny]]` rules do not, `[[allow]]` rules do.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::config::Body;
use crate::id::{ConfigKey, Namespace, NodeId, ServiceKey, ServiceName};

/// The group of the documents about services.
pub const GROUP: &str = "access";
/// Group and key of the document about the mesh.
pub const MESH: (&str, &str) = ("mesh", "access");
/// The most rules of a document: they are read one after the other.
pub const MAX_RULES: usize = 200;
/// The most entries of one list of a rule.
pub const MAX_ENTRIES: usize = 200;
/// The longest entry of a list, in bytes.
const MAX_ENTRY_BYTES: usize = 1_024;

/// What happens to calls no rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stance {
    /// They go through.
    #[default]
    Allow,
    /// They are refused.
    Deny,
}

/// The document about the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshAccess {
    /// For every service whose own document does not say otherwise. Allow, if not set.
    #[serde(default)]
    pub default: Stance,
}

/// The document about one service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// For calls no rule fits. Not set: deny, if there is an `[[allow]]` rule, else the mesh's default.
    pub default: Option<Stance>,
    /// Refuse what they fit. At most [`MAX_RULES`].
    pub deny: Vec<Rule>,
    /// Allow what they fit, unless it is denied. At most [`MAX_RULES`].
    pub allow: Vec<Rule>,
}

/// A rule fits a call that each of its lists fits; a list that is empty fits every call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// What refusals call it; otherwise its place in the list.
    pub name: Option<String>,
    /// `SERVICE` (of the same namespace), `NAMESPACE/SERVICE`, `NAMESPACE/*`, `node:NODE`, or `*` for everybody.
    pub callers: Vec<String>,
    /// HTTP methods, in capitals. A rule with any does not fit what is not HTTP.
    pub methods: Vec<String>,
    /// Paths, exact or up to a `*` at the end. A rule with any does not fit what is not HTTP. gRPC: `/package.Service/*`.
    pub paths: Vec<String>,
}

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Its node, by certificate.
    pub node: &'a NodeId,
    /// Its service, if it is known and its node may say so.
    pub service: Option<&'a ServiceKey>,
}

/// What is called.
#[derive(Debug, Clone, Copy)]
pub enum Called<'a> {
    /// A request.
    Http {
        /// Its method.
        method: &'a str,
        /// Its path, as it came; a query is ignored.
        path: &'a str,
    },
    /// A connection whose bytes are not looked at.
    Bytes,
}

/// Why a call is refused: which rule or default, of which document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied(pub String);

impl Access {
    /// Reads a document, TOML.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn parse(text: &str) -> Result<Self, String> {
        let access: Self = toml::from_str(text).map_err(|error| one_line(&error))?;
        for (list, rules) in [("deny", &access.deny), ("allow", &access.allow)] {
            if rules.len() > MAX_RULES {
                return Err(format!("{list} has {} rules, at most {MAX_RULES}", rules.len()));
            }
            for (at, rule) in rules.iter().enumerate() {
                rule.check().map_err(|(field, why)| format!("{list}[{at}].{field}: {why}"))?;
            }
        }
        Ok(access)
    }

    /// Whether the service's rules, or else the mesh's, let a call through.
    ///
    /// # Errors
    /// Which of them refuses it.
    pub fn decide(
        &self,
        service: &ServiceKey,
        mesh: MeshAccess,
        caller: Caller<'_>,
        called: Called<'_>,
    ) -> Result<(), Denied> {
        let call = Call::new(service, caller, called);
        if let Some((at, rule)) = self.deny.iter().enumerate().find(|(_, rule)| rule.fits(&call, Side::Deny)) {
            let name = rule.name.as_ref().map_or_else(|| format!("deny[{at}]"), |name| format!("{name:?}"));
            return Err(Denied(format!("rule {name} of access/{} denies it to {}", service.service, call.who())));
        }
        if self.allow.iter().any(|rule| rule.fits(&call, Side::Allow)) {
            return Ok(());
        }
        let denied = |what: String| Err(Denied(format!("{what} denies it to {}", call.who())));
        match self.default {
            Some(Stance::Allow) => Ok(()),
            Some(Stance::Deny) => denied(format!("the default of access/{}", service.service)),
            None if !self.allow.is_empty() => {
                denied(format!("no allow rule of access/{} fits, which", service.service))
            }
            None => mesh.decide(call.caller),
        }
    }
}

impl MeshAccess {
    /// Reads the document, TOML.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| one_line(&error))
    }

    /// What holds for services without rules of their own.
    ///
    /// # Errors
    /// That it refuses.
    pub fn decide(self, caller: Caller<'_>) -> Result<(), Denied> {
        match self.default {
            Stance::Allow => Ok(()),
            Stance::Deny => Err(Denied(format!("the mesh's default (mesh/access) denies it to {}", who(caller)))),
        }
    }
}

/// Whether a document says who may call; if so, what is wrong with it.
///
/// # Errors
/// A sentence that names the field.
pub fn check(key: &ConfigKey, body: &Body) -> Result<(), String> {
    let is_mesh = is_mesh_default(key);
    if !is_mesh && key.group.as_str() != GROUP {
        return Ok(());
    }
    let text = body.as_text().ok_or("it is not text; write it in TOML")?;
    let checked = if is_mesh { MeshAccess::parse(text).map(drop) } else { Access::parse(text).map(drop) };
    checked.map_err(|why| format!("{}/{}: {why}", key.group, key.key))
}

/// Whether this is the document about the mesh.
pub fn is_mesh_default(key: &ConfigKey) -> bool {
    key.namespace == Namespace::default() && (key.group.as_str(), key.key.as_str()) == MESH
}

impl Rule {
    fn check(&self) -> Result<(), (String, String)> {
        for (field, list) in [("callers", &self.callers), ("methods", &self.methods), ("paths", &self.paths)] {
            if list.len() > MAX_ENTRIES {
                return Err((field.into(), format!("{} entries, at most {MAX_ENTRIES}", list.len())));
            }
            for (at, entry) in list.iter().enumerate() {
                let place = format!("{field}[{at}]");
                if entry.len() > MAX_ENTRY_BYTES {
                    return Err((place, format!("longer than {MAX_ENTRY_BYTES} bytes")));
                }
                let checked = match field {
                    "callers" => check_caller(entry),
                    "methods" => check_method(entry),
                    _ => check_path(entry),
                };
                checked.map_err(|why| (place, format!("{entry:?}: {why}")))?;
            }
        }
        match &self.name {
            Some(name) if name.len() > 128 => Err(("name".into(), "longer than 128 bytes".into())),
            _ => Ok(()),
        }
    }

    fn fits(&self, call: &Call<'_>, side: Side) -> bool {
        let any =
            |list: &[String], fits: &dyn Fn(&str) -> bool| list.is_empty() || list.iter().any(|entry| fits(entry));
        any(&self.callers, &|entry| call.is_from(entry))
            && match &call.called {
                Asked::Bytes => self.methods.is_empty() && self.paths.is_empty(),
                Asked::Http { method, path } => {
                    any(&self.methods, &|entry| side.equal(entry, method))
                        && (self.paths.is_empty()
                            || path
                                .as_ref()
                                .map_or(side == Side::Deny, |path| any(&self.paths, &|entry| side.path(entry, path))))
                }
            }
    }
}

/// A call, as rules see it.
struct Call<'a> {
    service: &'a ServiceKey,
    caller: Caller<'a>,
    called: Asked<'a>,
}

enum Asked<'a> {
    /// Without a path where nobody can say which one the application will see.
    Http {
        method: &'a str,
        path: Option<Cow<'a, str>>,
    },
    Bytes,
}

impl<'a> Call<'a> {
    fn new(service: &'a ServiceKey, caller: Caller<'a>, called: Called<'a>) -> Self {
        let called = match called {
            Called::Http { method, path } => Asked::Http { method, path: plain_path(path) },
            Called::Bytes => Asked::Bytes,
        };
        Self { service, caller, called }
    }

    fn is_from(&self, entry: &str) -> bool {
        if entry == "*" {
            return true;
        }
        if let Some(node) = entry.strip_prefix("node:") {
            return node == self.caller.node.as_str();
        }
        let Some(service) = self.caller.service else { return false };
        match entry.split_once('/') {
            Some((namespace, name)) => {
                namespace == service.namespace.as_str()
                    && (name == "*" || name.eq_ignore_ascii_case(service.service.as_str()))
            }
            None => service.namespace == self.service.namespace && entry.eq_ignore_ascii_case(service.service.as_str()),
        }
    }

    fn who(&self) -> String {
        who(self.caller)
    }
}

fn who(caller: Caller<'_>) -> String {
    match caller.service {
        Some(service) => format!("service {service} at node {}", caller.node),
        None => format!("node {} (which says of no service that it calls)", caller.node),
    }
}

/// The path as the most daring server would read it; `None` where that is open.
fn plain_path(path: &str) -> Option<Cow<'_, str>> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let ordinary =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'~' | b'$' | b':' | b'@');
    // By far the most: nothing encoded, and no dot or slash after a slash.
    let mut before = b' ';
    let is_plain = path.bytes().all(|byte| {
        let good = (ordinary(byte) || (byte == b'.' && before != b'/')) && !(byte == b'/' && before == b'/');
        before = byte;
        good
    });
    if is_plain {
        return Some(Cow::Borrowed(path));
    }
    let decoded = decode(path)?;
    let mut parts: Vec<&str> = Vec::new();
    let mut ends_open = false;
    for part in decoded.split('/') {
        // What follows a semicolon is a parameter to some servers, and part of the name to others.
        if part.contains(';') {
            return None;
        }
        ends_open = matches!(part, "" | "." | "..");
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    let end = if ends_open && !parts.is_empty() { "/" } else { "" };
    Some(Cow::Owned(format!("/{}{end}", parts.join("/"))))
}

/// What is encoded, decoded once; `None` for what means different things to different servers.
fn decode(path: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let byte = (digit()? * 16 + digit()?) as u8;
            // An encoded slash, or something encoded twice.
            if matches!(byte, b'/' | b'%') {
                return None;
            }
            byte
        } else {
            byte
        };
        if byte == b'\\' || byte.is_ascii_control() {
            return None;
        }
        decoded.push(byte);
    }
    String::from_utf8(decoded).ok()
}

/// What a rule is for: whoever is in doubt is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Allow,
    Deny,
}

impl Side {
    fn equal(self, entry: &str, said: &str) -> bool {
        match self {
            Self::Allow => entry == said,
            Self::Deny => entry.eq_ignore_ascii_case(said),
        }
    }

    fn path(self, entry: &str, path: &str) -> bool {
        let Some(beginning) = entry.strip_suffix('*') else { return self.equal(entry, path) };
        path.get(..beginning.len()).is_some_and(|path| self.equal(beginning, path))
    }
}

fn check_caller(entry: &str) -> Result<(), String> {
    let bad = |error: &dyn std::fmt::Display| error.to_string();
    match (entry.strip_prefix("node:"), entry.split_once('/')) {
        _ if entry == "*" => Ok(()),
        (Some(node), _) => node.parse::<NodeId>().map(drop).map_err(|error| bad(&error)),
        (None, Some((namespace, service))) => {
            namespace.parse::<Namespace>().map_err(|error| bad(&error))?;
            if service == "*" { Ok(()) } else { check_service(service) }
        }
        (None, None) => check_service(entry),
    }
}

fn check_service(name: &str) -> Result<(), String> {
    name.parse::<ServiceName>().map(drop).map_err(|error| error.to_string())
}

fn check_method(entry: &str) -> Result<(), String> {
    if !entry.is_empty() && entry.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
        return Ok(());
    }
    Err("not a method in capitals, such as GET".into())
}

fn check_path(entry: &str) -> Result<(), String> {
    let beginning = entry.strip_suffix('*').unwrap_or(entry);
    if !entry.starts_with('/') && entry != "*" {
        return Err("a path begins with '/'".into());
    }
    if beginning.contains('*') {
        return Err("'*' may stand at the end only".into());
    }
    if entry == "*" || plain_path(beginning).is_some_and(|plain| plain == beginning) {
        return Ok(());
    }
    Err("write the path as it is after decoding, without '%', '.', '..', '//', ';', '?' and '#'".into())
}

/// What is wrong, where, in one line.
fn one_line(error: &toml::de::Error) -> String {
    error.to_string().split('\n').filter(|line| !line.trim().is_empty()).map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: &str = r#"
        [[allow]]
        methods = ["GET", "HEAD"]
        paths = ["/v1/*", "/health"]
        [[allow]]
        callers = ["shop", "pay/*", "node:batch-7"]
        [[deny]]
        name = "internal"
        paths = ["/internal", "/internal/*"]
    "#;

    fn key(name: &str) -> ServiceKey {
        let (namespace, service) = name.split_once('/').unwrap_or(("default", name));
        ServiceKey { namespace: namespace.parse().unwrap(), service: service.parse().unwrap() }
    }

    /// Decides on a call to `orders` by `NODE` or `NODE SERVICE`.
    fn asked(rules: &str, mesh: MeshAccess, who: &str, called: Called<'_>) -> Result<(), Denied> {
        let (node, service) = who.split_once(' ').unwrap_or((who, ""));
        let node = node.parse().unwrap();
        let service = (!service.is_empty()).then(|| key(service));
        let caller = Caller { node: &node, service: service.as_ref() };
        Access::parse(rules).unwrap().decide(&key("orders"), mesh, caller, called)
    }

    fn may(rules: &str, who: &str, method: &str, path: &str) -> bool {
        asked(rules, MeshAccess::default(), who, Called::Http { method, path }).is_ok()
    }

    #[test]
    fn a_deny_rule_wins_over_allow_rules_and_they_over_the_default() {
        assert!(may(ORDERS, "n1", "GET", "/v1/orders?x=/internal"));
        assert!(!may(ORDERS, "n1", "POST", "/v1/orders"));
        assert!(!may(ORDERS, "n1", "GET", "/v2"));
        assert!(may(ORDERS, "n1 shop", "POST", "/v2"));
        assert!(may(ORDERS, "n1 pay/billing", "POST", "/v2"));
        assert!(may(ORDERS, "batch-7", "POST", "/v2"));
        assert!(!may(ORDERS, "n1 shop", "GET", "/internal/x"));
        let open = format!("default = \"allow\"\n{ORDERS}");
        assert!(may(&open, "n1", "POST", "/v2") && !may(&open, "n1", "GET", "/internal"));
    }

    #[test]
    fn a_service_is_named_within_its_namespace() {
        let rules = "[[allow]]\ncallers = [\"shop\"]";
        assert!(may(rules, "n1 shop", "GET", "/"));
        assert!(!may(rules, "n1 other/shop", "GET", "/"));
        assert!(!may(rules, "shop", "GET", "/"), "a node is no service");
    }

    #[test]
    fn without_rules_the_mesh_decides_and_says_so() {
        let deny = MeshAccess::parse("default = \"deny\"").unwrap();
        let get = Called::Http { method: "GET", path: "/" };
        assert_eq!(asked("", MeshAccess::default(), "n1", get), Ok(()));
        let denied = asked("", deny, "n1 shop", get).unwrap_err();
        assert_eq!(denied.0, "the mesh's default (mesh/access) denies it to service default/shop at node n1");
        assert_eq!(asked("default = \"allow\"", deny, "n1", get), Ok(()));
        let denied = asked(ORDERS, deny, "n1", Called::Http { method: "GET", path: "/internal" }).unwrap_err();
        assert!(denied.0.starts_with("rule \"internal\" of access/orders denies it to node n1"), "{}", denied.0);
    }

    #[test]
    fn a_path_cannot_be_written_so_that_it_slips_past_a_rule() {
        for path in [
            "/internal",
            "/internal/",
            "//internal",
            "/./internal",
            "/v1/../internal",
            "/%69nternal",
            "/v1/%2e%2e/internal",
            "/v1/..%2finternal",
            "/v1/..\\internal",
            "/v1/%2e%2e%5cinternal",
            "/v1/%252e%252e/internal",
            "/internal;x=1",
            "/x/..;/internal",
            "/v1/%00",
            "/v1/%2",
            "/v1/%zz",
            "/internal?x",
            "/internal#x",
            "/Internal",
            "/v1/%2e%2e/INTERNAL/x",
        ] {
            assert!(!may(ORDERS, "n1", "GET", path), "{path}");
            assert!(!may(ORDERS, "n1 shop", "GET", path), "{path}");
        }
        for path in ["/v1/a%20b", "/v1/a+b=c,d&(e)!'*", "/v1/./x", "/v1/.well-known", "/v1/a..b", "/v2/../v1/x"] {
            assert!(may(ORDERS, "n1", "GET", path), "{path}");
        }
        assert!(!may(ORDERS, "n1", "GET", "/V1/x") && !may(ORDERS, "n1", "get", "/v1/x"), "an allow rule is exact");
        let no_posts = "[[deny]]\nmethods = [\"POST\"]";
        assert!(!may(no_posts, "n1", "post", "/") && may(no_posts, "n1", "get", "/"));
    }

    #[test]
    fn rules_about_methods_and_paths_do_not_fit_what_is_not_http() {
        let may = |who| asked(ORDERS, MeshAccess::default(), who, Called::Bytes).is_ok();
        assert!(may("n1 shop") && !may("n1"));
    }

    #[test]
    fn a_bad_document_is_refused_by_field() {
        for (text, field) in [
            ("default = \"maybe\"", "maybe"),
            ("[[alow]]", "alow"),
            ("[[allow]]\ncaller = []", "caller"),
            ("[[allow]]\n[[allow]]\ncallers = [\"a\", \"a b\"]", "allow[1].callers[1]"),
            ("[[deny]]\ncallers = [\"node:\"]", "deny[0].callers[0]"),
            ("[[deny]]\nmethods = [\"get\"]", "deny[0].methods[0]"),
            ("[[deny]]\npaths = [\"x\"]", "deny[0].paths[0]"),
            ("[[deny]]\npaths = [\"/a*b\"]", "deny[0].paths[0]"),
            ("[[deny]]\npaths = [\"/a%62\"]", "deny[0].paths[0]"),
            ("[[deny]]\npaths = [\"/a/../*\"]", "deny[0].paths[0]"),
        ] {
            let error = Access::parse(text).unwrap_err();
            assert!(error.contains(field) && !error.contains('\n'), "{text}: {error}");
        }
        let document = |group: &str, name: &str| ConfigKey {
            namespace: Namespace::default(),
            group: group.parse().unwrap(),
            key: name.parse().unwrap(),
        };
        let error = check(&document("access", "orders"), &"[[deny]]\npaths = [\"x\"]".into()).unwrap_err();
        assert!(error.starts_with("access/orders: deny[0].paths[0]"), "{error}");
        assert!(check(&document("mesh", "access"), &"default = 1".into()).unwrap_err().starts_with("mesh/access: "));
        assert_eq!(check(&document("mesh", "other"), &"default = 1".into()), Ok(()));
    }
}
