//! Names shared in memory: a million records name a few hundred nodes, zones and services, each of them once here.
//!
//! Names that come off the wire are texts of their own. Sharing them saves memory, and comparing shared names is mostly
//! comparing pointers.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

use arcstr::ArcStr;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that many records have in common, eight bytes wide. Equal ones of a store share their memory.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct CommonText(ArcStr);

impl CommonText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn is_shared(&self) -> bool {
        ArcStr::strong_count(&self.0).is_none_or(|holders| holders > 1)
    }
}

impl Deref for CommonText {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for CommonText {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for CommonText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Ord for CommonText {
    fn cmp(&self, other: &Self) -> Ordering {
        if ArcStr::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.as_str().cmp(&other.0) }
    }
}

impl PartialOrd for CommonText {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for CommonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for CommonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl Serialize for CommonText {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for CommonText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Texts;
        impl de::Visitor<'_> for Texts {
            type Value = CommonText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<CommonText, E> {
                Ok(text.into())
            }
        }
        from.deserialize_str(Texts)
    }
}

/// What is a text that records have in common.
pub(crate) trait Common {
    fn common(&mut self) -> &mut CommonText;
}

impl Common for CommonText {
    fn common(&mut self) -> &mut CommonText {
        self
    }
}

/// The texts a store's records have in common, whatever they mean: "default" is a zone and a namespace.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    known: BTreeSet<CommonText>,
    /// When there are so many, those nobody uses any more are dropped.
    tidy_at: usize,
}

/// Below this many names, tidying up is not worth it.
const TIDY_MIN: usize = 1_024;

impl Default for Names {
    fn default() -> Self {
        Self { known: BTreeSet::new(), tidy_at: TIDY_MIN }
    }
}

impl Names {
    /// Puts the text everybody shares in the place of this one.
    pub(crate) fn share(&mut self, name: &mut impl Common) {
        let name = name.common();
        match self.known.get(name) {
            Some(known) => *name = known.clone(),
            None => {
                if self.known.len() >= self.tidy_at {
                    self.known.retain(CommonText::is_shared);
                    self.tidy_at = (2 * self.known.len()).max(TIDY_MIN);
                }
                self.known.insert(name.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_come_to_share_one_text_and_unused_ones_are_dropped() {
        let mut names = Names::default();
        let mut held: Vec<CommonText> = Vec::new();
        for number in 0..10_000 {
            let mut name: CommonText = format!("n{}", number % 5_000).into();
            names.share(&mut name);
            if number % 100 == 0 {
                held.push(name);
            }
        }
        assert!(held[..50].iter().zip(&held[50..]).all(|(a, b)| std::ptr::eq(a.as_str(), b.as_str())));
        assert!(names.known.len() <= TIDY_MIN);
    }
}
