//! Names that cannot be confused with each other.
//!
//! Every name is checked once, where it enters ([`str::parse`] or serde), and believed inside. All are cheap to
//! clone and ordered, so that whatever is keyed by them is iterated in the same order on every machine.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::names::Common;
pub use crate::names::CommonText;

/// A name that was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} {why}")]
pub struct NameError {
    /// Which kind of name: "service name", "node id" and so on.
    pub what: &'static str,
    /// The text as it was given, cut at 80 characters.
    pub value: String,
    /// What is wrong with it.
    pub why: String,
}

fn check(
    what: &'static str,
    value: &str,
    max_bytes: usize,
    allowed: fn(char) -> bool,
    rule: &str,
) -> Result<(), NameError> {
    let refuse = |why: String| NameError { what, value: value.chars().take(80).collect(), why };
    if value.is_empty() {
        return Err(refuse("is empty".into()));
    }
    if value.len() > max_bytes {
        return Err(refuse(format!("is longer than {max_bytes} bytes")));
    }
    match value.chars().find(|c| !allowed(*c)) {
        Some(bad) => Err(refuse(format!("contains {bad:?}; allowed are {rule}"))),
        None => Ok(()),
    }
}

/// A short text of one record: up to 15 bytes stand in place, longer ones are shared by their clones.
pub use ecow::EcoString as Text;

macro_rules! name {
    ($(#[$doc:meta])* $type:ident($text:ident), $what:literal, max $max:literal, $rule:literal, $allowed:expr, $case:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type($text);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let text = $case(text);
                check($what, &text, $max, $allowed, $rule)?;
                Ok(Self(text.as_ref().into()))
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_str(Parsed(PhantomData))
            }
        }
    };
}

/// Reads a name from the wire without an owned text in between: a million records bring four each.
struct Parsed<T>(PhantomData<T>);

impl<T: FromStr<Err = NameError>> de::Visitor<'_> for Parsed<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

fn lower(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) { text.to_ascii_lowercase().into() } else { text.into() }
}

fn as_is(text: &str) -> Cow<'_, str> {
    text.into()
}

fn label(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_')
}

fn dotted(c: char) -> bool {
    label(c) || c == '.'
}

fn graphic(c: char) -> bool {
    c.is_ascii_graphic() && c != '/'
}

fn graphic_or_slash(c: char) -> bool {
    c.is_ascii_graphic()
}

name!(
    /// A node of the mesh; the name in its certificate. Up to 64 bytes of `a-z 0-9 - _ .`, lower-cased.
    NodeId(CommonText), "node id", max 64, "a-z, 0-9, '-', '_' and '.'", dotted, lower
);
name!(
    /// A namespace of services and configuration (default [`Namespace::default`], "default").
    /// Up to 63 bytes of `a-z 0-9 - _`, lower-cased: it is one label of a host name.
    Namespace(CommonText), "namespace", max 63, "a-z, 0-9, '-' and '_'", label, lower
);
name!(
    /// A service by the name its callers use. Up to 128 bytes of `a-z 0-9 - _ .`, lower-cased as host names are.
    ServiceName(CommonText), "service name", max 128, "a-z, 0-9, '-', '_' and '.'", dotted, lower
);
name!(
    /// One instance of a service. Up to 128 printable ASCII characters without `/`.
    InstanceId(Text), "instance id", max 128, "printable ASCII without '/'", graphic, as_is
);
name!(
    /// A group of configuration documents. Up to 128 printable ASCII characters without `/`.
    ConfigGroup(Text), "config group", max 128, "printable ASCII without '/'", graphic, as_is
);
name!(
    /// The name of a configuration document in its group; may contain `/`. Up to 256 printable ASCII characters.
    ConfigName(Text), "config key", max 256, "printable ASCII", graphic_or_slash, as_is
);
name!(
    /// A zone: hosts that are near each other and fail together (rack, availability zone).
    /// Up to 63 bytes of `a-z 0-9 - _`, lower-cased.
    Zone(CommonText), "zone", max 63, "a-z, 0-9, '-' and '_'", label, lower
);
name!(
    /// A cell: nodes that watch over each other (one chitchat group of some 250 at most); cells know of each other
    /// through a few relays. Up to 63 bytes of `a-z 0-9 - _`, lower-cased.
    CellName(CommonText), "cell name", max 63, "a-z, 0-9, '-' and '_'", label, lower
);
name!(
    /// A region: cells that are near each other; between regions a message takes tens of milliseconds.
    /// Up to 63 bytes of `a-z 0-9 - _`, lower-cased.
    Region(CommonText), "region name", max 63, "a-z, 0-9, '-' and '_'", label, lower
);
name!(
    /// A mesh: nodes of different meshes refuse each other. Up to 63 bytes of `a-z 0-9 - _`, lower-cased.
    MeshName(CommonText), "mesh name", max 63, "a-z, 0-9, '-' and '_'", label, lower
);

macro_rules! common {
    ($($type:ident),+) => {
        $(impl Common for $type {
            fn common(&mut self) -> &mut CommonText {
                &mut self.0
            }
        })+
    };
}

common!(NodeId, Namespace, ServiceName, Zone, Region, CellName);

impl Default for Namespace {
    fn default() -> Self {
        Self("default".into())
    }
}

impl Default for ConfigGroup {
    fn default() -> Self {
        Self("default".into())
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self("default".into())
    }
}

impl Default for CellName {
    fn default() -> Self {
        Self("default".into())
    }
}

impl Default for Region {
    fn default() -> Self {
        Self("default".into())
    }
}

impl Default for MeshName {
    fn default() -> Self {
        Self("starling".into())
    }
}

/// A service in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// The namespace.
    pub namespace: Namespace,
    /// The service.
    pub service: ServiceName,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)
    }
}

/// One instance of a service in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceKey {
    /// The service it belongs to.
    pub service: ServiceKey,
    /// The instance.
    pub instance: InstanceId,
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.instance)
    }
}

/// A configuration document: namespace, group and key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConfigKey {
    /// The namespace.
    pub namespace: Namespace,
    /// The group, "default" when none is given.
    pub group: ConfigGroup,
    /// The document's name.
    pub key: ConfigName,
}

impl fmt::Display for ConfigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.group, self.key)
    }
}

/// Counts the starts of a node: a restarted node has a larger one than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// Pairs a [`crate::Command`] with its answer; chosen by the driver, meaningless to the heart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_names_are_lower_cased_as_host_names_are() {
        assert_eq!("Orders".parse::<ServiceName>().unwrap().as_str(), "orders");
    }

    #[test]
    fn a_bad_name_says_what_is_wrong_with_it() {
        let error = "a b".parse::<ServiceName>().unwrap_err().to_string();
        assert!(error.contains("service name") && error.contains("' '"), "{error}");
        assert!("".parse::<NodeId>().is_err());
        assert!("x".repeat(65).parse::<NodeId>().is_err());
        assert!("a/b".parse::<InstanceId>().is_err());
        assert!("a/b".parse::<ConfigName>().is_ok());
    }

    #[test]
    fn a_bad_name_on_the_wire_is_refused() {
        let bytes = rmp_serde::to_vec("no spaces please").unwrap();
        assert!(rmp_serde::from_slice::<ServiceName>(&bytes).is_err());
    }
}
