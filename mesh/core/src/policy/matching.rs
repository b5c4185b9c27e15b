//! Which requests a route is for. Everything is compared as it was sent, byte by byte: paths are not decoded.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What a route can be chosen by.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The method, in capitals.
    pub method: &'a str,
    /// The path, with or without its query.
    pub path: &'a str,
    /// The header fields.
    pub fields: &'a dyn Fields,
    /// The node whose application asks.
    pub node: &'a str,
    /// The service that asks, where it is known.
    pub service: Option<&'a str>,
}

/// The header fields of a request.
pub trait Fields: Sync {
    /// The first field of this name (in lower case).
    fn field(&self, name: &str) -> Option<&[u8]>;
}

/// The fields of a head as it was written to be sent on, for policies.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a>(pub &'a [u8]);

impl<'a> Written<'a> {
    /// Its fields, each as name and value.
    pub fn lines(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.0.split(|byte| *byte == b'\n').skip(1).filter_map(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }
}

impl Fields for Written<'_> {
    fn field(&self, name: &str) -> Option<&[u8]> {
        self.lines().find(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }
}

impl Asked<'_> {
    /// The path without its query.
    pub fn bare_path(&self) -> &str {
        self.path.split_once('?').map_or(self.path, |(path, _)| path)
    }

    /// What is called: a method of HTTP, or of a service of gRPC.
    pub fn called(&self) -> &str {
        let is_grpc = self.fields.field("content-type").is_some_and(is_grpc);
        if is_grpc { self.bare_path() } else { self.method }
    }
}

/// Whether a media type is one of gRPC's: `application/grpc`, with or without `+proto` or parameters.
pub fn is_grpc(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    content_type.len() >= GRPC.len()
        && content_type[..GRPC.len()].eq_ignore_ascii_case(GRPC)
        && matches!(content_type.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
}

/// `[[route]]`: all that is given must match; a route that gives nothing matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteMatch {
    /// What it is called, in refusals and metrics; default `route-1`, `route-2`, by position.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// One of these methods.
    #[serde(deserialize_with = "one_or_more", skip_serializing_if = "Vec::is_empty")]
    pub method: Vec<String>,
    /// Exactly this path, its query left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// This path and those below it: `/a` is for `/a` and `/a/b`, not for `/ab`; `/a/` only for those below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// Paths of this form; see [`Template`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_template: Option<Template>,
    /// Header fields, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<String, HeaderRule>,
    /// Who asks.
    #[serde(skip_serializing_if = "Callers::is_empty")]
    pub caller: Callers,
}

impl RouteMatch {
    /// The keys a `[[route]]` has beside its sections.
    pub const KEYS: [&str; 7] = ["name", "method", "path", "path_prefix", "path_template", "header", "caller"];

    /// Whether a request is one of those.
    pub fn matches(&self, asked: &Asked<'_>) -> bool {
        let path = asked.bare_path();
        (self.method.is_empty() || self.method.iter().any(|method| method == asked.method))
            && self.path.as_deref().is_none_or(|exact| exact == path)
            && self.path_prefix.as_deref().is_none_or(|prefix| is_below(path, prefix))
            && self.path_template.as_ref().is_none_or(|template| template.matches(path))
            && self.header.iter().all(|(name, rule)| rule.matches(asked.fields.field(name)))
            && self.caller.matches(asked.node, asked.service)
    }

    /// Whether it certainly takes every request the other takes; `false` when that cannot be told from the outside.
    pub(super) fn takes_all_of(&self, other: &RouteMatch) -> bool {
        let methods = self.method.is_empty()
            || (!other.method.is_empty() && other.method.iter().all(|method| self.method.contains(method)));
        let path = match (&self.path, &self.path_prefix, &self.path_template) {
            (None, None, None) => true,
            (_, Some(prefix), _) => {
                [&other.path, &other.path_prefix].into_iter().flatten().any(|path| is_below(path, prefix))
            }
            (path, _, template) => {
                (path.is_some() && *path == other.path) || (template.is_some() && *template == other.path_template)
            }
        };
        let headers = self.header.iter().all(|(name, rule)| other.header.get(name) == Some(rule));
        methods && path && headers && (self.caller.is_empty() || self.caller == other.caller)
    }

    /// What is wrong with it: the key, and a sentence.
    pub(super) fn mistake(&self) -> Option<(&'static str, String)> {
        let upper = |method: &String| {
            !method.is_empty() && method.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_lowercase())
        };
        if let Some(method) = self.method.iter().find(|method| !upper(method)) {
            return Some(("method", format!("{method:?} is no method; methods are written in capitals, as \"GET\"")));
        }
        for (key, path) in [("path", &self.path), ("path_prefix", &self.path_prefix)] {
            match path {
                Some(path) if !path.starts_with('/') => {
                    return Some((key, format!("{path:?} does not begin with '/'")));
                }
                Some(path) if path.contains(['?', '#']) => {
                    return Some((key, format!("{path:?} has a query; routes are chosen by the path alone")));
                }
                _ => {}
            }
        }
        if [self.path.is_some(), self.path_prefix.is_some(), self.path_template.is_some()]
            .iter()
            .filter(|set| **set)
            .count()
            > 1
        {
            return Some(("path", "only one of path, path_prefix and path_template can be given".into()));
        }
        if let Some(name) =
            self.header.keys().find(|name| name.is_empty() || name.bytes().any(|b| b.is_ascii_uppercase()))
        {
            return Some(("header", format!("{name:?}: names of header fields are written in lower case")));
        }
        None
    }
}

/// Whether `path` is `prefix` or lies below it.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

/// A form of paths, segment by segment: `/orders/{id}/items` has any one segment that is not empty at `{id}`; `{*}` at
/// the end takes any number of segments, at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Any,
    Rest,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A sentence about what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('/').ok_or_else(|| format!("{text:?} does not begin with '/'"))?;
        let segment = |part: &str| match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some("*") => Ok(Segment::Rest),
            Some(name) if !name.is_empty() && !name.contains(['{', '}']) => Ok(Segment::Any),
            None if !part.contains(['{', '}', '?', '#']) => Ok(Segment::Literal(part.to_owned())),
            _ => Err(format!("{part:?} in {text:?} is neither a segment nor a \"{{name}}\"")),
        };
        let segments: Vec<Segment> = rest.split('/').map(segment).collect::<Result<_, _>>()?;
        let early = segments.iter().rev().skip(1).any(|segment| *segment == Segment::Rest);
        if early {
            Err(format!("{text:?}: {{*}} can only stand at the end"))
        } else {
            Ok(Self { text: text.into(), segments })
        }
    }

    fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else { return false };
        let mut parts = rest.split('/');
        for segment in &self.segments {
            let Some(part) = parts.next() else { return false };
            match segment {
                Segment::Literal(literal) if literal != part => return false,
                Segment::Any if part.is_empty() => return false,
                Segment::Rest => return true,
                _ => {}
            }
        }
        parts.next().is_none()
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

/// What a header field must be: `"gold"` (exactly), `{ prefix = "g" }`, `{ present = false }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderRule {
    /// Exactly this.
    Exact(String),
    /// It begins with this.
    Prefix(String),
    /// It is there, or it is not.
    Present(bool),
}

impl HeaderRule {
    fn matches(&self, value: Option<&[u8]>) -> bool {
        match self {
            Self::Exact(exact) => value == Some(exact.as_bytes()),
            Self::Prefix(prefix) => value.is_some_and(|value| value.starts_with(prefix.as_bytes())),
            Self::Present(present) => value.is_some() == *present,
        }
    }
}

impl<'de> Deserialize<'de> for HeaderRule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Long {
            Exact(String),
            Prefix(String),
            Present(bool),
        }
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = HeaderRule;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or one of { exact = \"...\" }, { prefix = \"...\" }, { present = true }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<HeaderRule, E> {
                Ok(HeaderRule::Exact(text.to_owned()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<HeaderRule, A::Error> {
                Ok(match Long::deserialize(de::value::MapAccessDeserializer::new(map))? {
                    Long::Exact(exact) => HeaderRule::Exact(exact),
                    Long::Prefix(prefix) => HeaderRule::Prefix(prefix),
                    Long::Present(present) => HeaderRule::Present(present),
                })
            }
        }
        from.deserialize_any(Either)
    }
}

/// Who asks: one of these services, or an application on one of these nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Callers {
    /// Services, as `orders`, or `pay/orders` in namespace `pay`.
    #[serde(deserialize_with = "one_or_more", skip_serializing_if = "Vec::is_empty")]
    pub service: Vec<String>,
    /// Nodes.
    #[serde(deserialize_with = "one_or_more", skip_serializing_if = "Vec::is_empty")]
    pub node: Vec<String>,
}

impl Callers {
    fn is_empty(&self) -> bool {
        self.service.is_empty() && self.node.is_empty()
    }

    fn matches(&self, node: &str, service: Option<&str>) -> bool {
        self.is_empty()
            || self.node.iter().any(|known| known == node)
            || service.is_some_and(|service| self.service.iter().any(|known| known == service))
    }
}

/// Reads `"GET"` as well as `["GET", "HEAD"]`.
fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    struct Either;
    impl<'de> de::Visitor<'de> for Either {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of texts")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(vec![text.to_owned()])
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Vec<String>, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(seq))
        }
    }
    from.deserialize_any(Either)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Headers(&'static [(&'static str, &'static str)]);

    impl Fields for Headers {
        fn field(&self, name: &str) -> Option<&[u8]> {
            self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_bytes())
        }
    }

    fn matches(route: &str, method: &str, path: &str, headers: &'static [(&'static str, &'static str)]) -> bool {
        let route: RouteMatch = toml::from_str(route).unwrap();
        assert_eq!(route.mistake(), None);
        let fields = Headers(headers);
        route.matches(&Asked { method, path, fields: &fields, node: "n1", service: Some("shop") })
    }

    #[test]
    fn a_route_that_gives_nothing_is_for_everything() {
        assert!(matches("", "GET", "/", &[]));
    }

    #[test]
    fn all_that_a_route_gives_must_match() {
        let route = "method = [\"POST\", \"PUT\"]\npath = \"/pay\"\nheader.x-tier = \"gold\"";
        assert!(matches(route, "POST", "/pay?now", &[("x-tier", "gold")]));
        assert!(!matches(route, "GET", "/pay", &[("x-tier", "gold")]));
        assert!(!matches(route, "POST", "/pay/", &[("x-tier", "gold")]));
        assert!(!matches(route, "POST", "/pay", &[("x-tier", "golden")]));
        assert!(!matches(route, "POST", "/pay", &[]));
    }

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let below = |prefix: &str, path| matches(&format!("path_prefix = \"{prefix}\""), "GET", path, &[]);
        assert!(below("/a", "/a") && below("/a", "/a/b") && below("/a", "/a?q"));
        assert!(!below("/a", "/ab") && !below("/a", "/"));
        assert!(below("/a/", "/a/b") && !below("/a/", "/a"));
        assert!(below("/", "/x"));
    }

    #[test]
    fn a_template_takes_a_segment_for_each_name() {
        let of = |template: &str, path| matches(&format!("path_template = \"{template}\""), "GET", path, &[]);
        assert!(of("/orders/{id}/items", "/orders/7/items"));
        for other in ["/orders//items", "/orders/7", "/orders/7/items/", "/orders/7/8/items", "/"] {
            assert!(!of("/orders/{id}/items", other), "{other}");
        }
        assert!(of("/files/{*}", "/files/a/b") && of("/files/{*}", "/files/"));
        assert!(!of("/files/{*}", "/files"));
        for wrong in ["orders", "/{", "/{}", "/a{b}", "/{*}/x", "/a?b"] {
            assert!(Template::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn headers_can_be_asked_for_their_beginning_and_their_absence() {
        assert!(matches("header.x = { prefix = \"ab\" }", "GET", "/", &[("x", "abc")]));
        assert!(!matches("header.x = { prefix = \"ab\" }", "GET", "/", &[("x", "a")]));
        assert!(matches("header.x = { present = false }", "GET", "/", &[]));
        assert!(!matches("header.x = { present = true }", "GET", "/", &[]));
    }

    #[test]
    fn callers_are_services_or_nodes() {
        assert!(matches("caller.service = \"shop\"", "GET", "/", &[]));
        assert!(matches("caller.node = [\"n9\", \"n1\"]", "GET", "/", &[]));
        assert!(matches("caller = { service = \"x\", node = \"n1\" }", "GET", "/", &[]));
        assert!(!matches("caller = { service = \"x\", node = \"n2\" }", "GET", "/", &[]));
    }
}
