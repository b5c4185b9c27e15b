//! What many instances do without: tags, metadata, a check. Eight bytes where there are none; where there are, sorted and
//! as small in memory as their texts.
//!
//! A B-tree of two pairs takes half a kilobyte; there may be a million of them, each read often and never changed.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Check, CheckKind};
use crate::id::Text;

/// How many tags an instance may have.
pub const MAX_TAGS: usize = 64;
/// How many metadata entries an instance may have.
pub const MAX_METADATA: usize = 64;
/// How many bytes all tags and metadata of an instance may have together.
pub const MAX_LABEL_BYTES: usize = 8 * 1024;

/// Tags, metadata and the check of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Details {
    /// `None` when there are none, and only then: equal instances must be equal.
    given: Option<Box<Given>>,
}

/// What is given of an instance that is not without.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Given {
    tags: Tags,
    metadata: Metadata,
    check: Option<Check>,
}

static NONE: LazyLock<Given> = LazyLock::new(Given::default);

impl Details {
    /// All three; each may be empty.
    pub fn new(tags: Tags, metadata: Metadata, check: Option<Check>) -> Self {
        Self::of(Box::new(Given { tags, metadata, check }))
    }

    fn of(given: Box<Given>) -> Self {
        Self { given: (*given != *NONE).then_some(given) }
    }

    fn all(&self) -> &Given {
        self.given.as_deref().unwrap_or(&NONE)
    }

    /// Words callers can select by.
    pub fn tags(&self) -> &Tags {
        &self.all().tags
    }

    /// Free key/value pairs.
    pub fn metadata(&self) -> &Metadata {
        &self.all().metadata
    }

    /// How the owner checks the instance.
    pub fn check(&self) -> Option<&Check> {
        self.given.as_ref()?.check.as_ref()
    }

    pub(super) fn check_limits(&self) -> Result<(), String> {
        let Some(given) = &self.given else { return Ok(()) };
        let Given { tags, metadata, check } = &**given;
        if tags.len() > MAX_TAGS {
            return Err(format!("{} tags, at most {MAX_TAGS}", tags.len()));
        }
        if metadata.len() > MAX_METADATA {
            return Err(format!("{} metadata entries, at most {MAX_METADATA}", metadata.len()));
        }
        let label_bytes = tags.bytes() + metadata.bytes();
        if label_bytes > MAX_LABEL_BYTES {
            return Err(format!("tags and metadata have {label_bytes} bytes, at most {MAX_LABEL_BYTES}"));
        }
        check.as_ref().map_or(Ok(()), Check::check_limits)
    }

    pub(super) fn rough_bytes(&self) -> usize {
        let Some(given) = &self.given else { return 0 };
        let path = match &given.check {
            Some(Check { kind: CheckKind::Http { path }, .. }) => path.len(),
            _ => 0,
        };
        given.tags.bytes() + 2 * given.tags.len() + given.metadata.bytes() + 4 * given.metadata.len() + path
    }
}

impl<'de> Deserialize<'de> for Details {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::<Box<Given>>::deserialize(from)?.map(Self::of).unwrap_or_default())
    }
}

/// Words callers can select by: sorted, each once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tags(Box<[Text]>);

impl Tags {
    /// Whether this is one of them.
    pub fn contains(&self, tag: &str) -> bool {
        self.0.binary_search_by(|known| known.as_str().cmp(tag)).is_ok()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(Text::as_str)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of all their texts.
    fn bytes(&self) -> usize {
        self.0.iter().map(|tag| tag.len()).sum()
    }
}

impl<T: Into<Text>> FromIterator<T> for Tags {
    fn from_iter<I: IntoIterator<Item = T>>(tags: I) -> Self {
        let mut tags: Vec<Text> = tags.into_iter().map(Into::into).collect();
        tags.sort_unstable();
        tags.dedup();
        Self(tags.into())
    }
}

impl Serialize for Tags {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Vec::<Text>::deserialize(from)?.into_iter().collect())
    }
}

/// Free key/value pairs: sorted by key, each key once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata(Box<[(Text, Text)]>);

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| known.as_str().cmp(key)).ok()?;
        Some(self.0[at].1.as_str())
    }

    /// All pairs, in order of their keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// How many pairs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of all their texts.
    fn bytes(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

impl<K: Into<Text>, V: Into<Text>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let pairs: BTreeMap<Text, Text> = pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Self(pairs.into_iter().collect())
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::<Text, Text>::deserialize(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_same_in_whatever_order_they_were_given() {
        let tags: Tags = ["b", "a", "b"].into_iter().collect();
        assert_eq!(tags.iter().collect::<Vec<_>>(), ["a", "b"]);
        assert!(tags.contains("b") && !tags.contains("c"));
        let pairs: Metadata = [("b", "1"), ("a", "2"), ("b", "3")].into_iter().collect();
        assert_eq!(pairs.iter().collect::<Vec<_>>(), [("a", "2"), ("b", "3")]);
        assert_eq!((pairs.get("b"), pairs.get("c")), (Some("3"), None));
    }

    #[test]
    fn labels_out_of_order_on_the_wire_come_to_order() {
        let bytes = rmp_serde::to_vec(&["b", "a", "b"]).unwrap();
        let tags: Tags = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(tags, ["a", "b"].into_iter().collect());
        assert_eq!(rmp_serde::from_slice::<Tags>(&rmp_serde::to_vec(&tags).unwrap()).unwrap(), tags);
    }
}
