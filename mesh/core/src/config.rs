//! Configuration documents: small, written anywhere, served everywhere, conflicts shown.
//!
//! A document's cell is a multi-value register: a write replaces exactly the versions its writer had seen, so two
//! sides of a partition that edit the same document both keep their edit. One of them is served everywhere (the
//! same one on every node), the others are shown as a conflict until somebody writes again.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::ConfigKey;
use crate::time::Stamp;

/// The largest document, in bytes (Consul's limit for a KV value).
pub const MAX_BODY_BYTES: usize = 512 * 1024;

/// A document's bytes, shared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Body(pub Arc<[u8]>);

impl Body {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, if they are UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_text() {
            Some(text) if text.len() <= 200 => write!(f, "{text:?}"),
            _ => write!(f, "{} bytes", self.0.len()),
        }
    }
}

impl Serialize for Body {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Body;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Body, E> {
                Ok(Body(bytes.into()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// One version of a document as somebody wrote it. Immutable; its stamp names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// When and where it was written.
    pub stamp: Stamp,
    /// The document, or nothing: this version deletes it.
    pub body: Option<Body>,
    /// The format ("json", "yaml", "text" ...); not interpreted. At most 32 bytes.
    pub format: String,
    /// Who wrote it, as they said. At most 128 bytes.
    pub author: String,
    /// Why, as they said. At most 512 bytes.
    pub comment: String,
}

/// A request to write a document (or, without a body, to delete it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWrite {
    /// Which document.
    pub key: ConfigKey,
    /// The new content; `None` deletes.
    pub body: Option<Body>,
    /// The format, see [`Version::format`].
    pub format: String,
    /// Who writes.
    pub author: String,
    /// Why.
    pub comment: String,
    /// Write only if the version served now is this one (`Some(None)`: only if there is none). Guards against this
    /// node's own other writers; edits elsewhere that have not arrived yet become a conflict, not an error.
    pub expect: Option<Option<Stamp>>,
}

impl ConfigWrite {
    /// What is wrong with it, if anything.
    ///
    /// # Errors
    /// A sentence for the person who wrote it.
    pub fn check_limits(&self) -> Result<(), String> {
        check_limits(self.body.as_ref(), &self.format, &self.author, &self.comment)
    }
}

impl Version {
    /// What is wrong with it, if anything.
    ///
    /// # Errors
    /// A sentence for the person who wrote it.
    pub fn check_limits(&self) -> Result<(), String> {
        check_limits(self.body.as_ref(), &self.format, &self.author, &self.comment)
    }
}

fn check_limits(body: Option<&Body>, format: &str, author: &str, comment: &str) -> Result<(), String> {
    let body_bytes = body.map_or(0, |body| body.as_bytes().len());
    if body_bytes > MAX_BODY_BYTES {
        return Err(format!("the document has {body_bytes} bytes, at most {MAX_BODY_BYTES}"));
    }
    for (what, text, max) in [("format", format, 32), ("author", author, 128), ("comment", comment, 512)] {
        if text.len() > max {
            return Err(format!("{what} is longer than {max} bytes"));
        }
    }
    Ok(())
}
