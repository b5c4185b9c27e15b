//! Bodies about configuration documents.

use serde::{Deserialize, Serialize};
use starling_core::id::{ConfigGroup, ConfigKey, ConfigName, Namespace};
use starling_core::time::Stamp;
use starling_core::view::Revision;

/// `GET /v1/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigList {
    /// The revision of the list.
    pub revision: Revision,
    /// By namespace, group and key; deleted documents are not listed unless a conflict keeps a version alive.
    pub documents: Vec<ConfigSummary>,
}

/// One document of a list: the version served now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSummary {
    /// The namespace.
    pub namespace: Namespace,
    /// The group.
    pub group: ConfigGroup,
    /// The key in its group.
    pub key: ConfigName,
    /// When it last changed at this node.
    pub revision: Revision,
    /// How many concurrent versions wait for a decision; 0 when there is no conflict.
    pub conflict: u32,
    /// The version served now.
    pub version: VersionInfo,
}

/// `GET /v1/config/{namespace}/{group}/{key}?meta=true`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDocument {
    /// The namespace.
    pub namespace: Namespace,
    /// The group.
    pub group: ConfigGroup,
    /// The key in its group.
    pub key: ConfigName,
    /// When it last changed at this node.
    pub revision: Revision,
    /// How many concurrent versions wait for a decision; 0 when there is no conflict.
    pub conflict: u32,
    /// All versions nobody has replaced, the served one first.
    pub versions: Vec<VersionInfo>,
}

/// One version of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// Its name; for `expect`, `choose` and `stamp`.
    #[serde(with = "super::text")]
    pub stamp: Stamp,
    /// When it was written, by its writer's hybrid clock.
    pub written_unix_ms: u64,
    /// Whether this version deletes the document.
    pub deleted: bool,
    /// The format: "json", "yaml", "toml", "super::text" or another word.
    pub format: String,
    /// Who wrote it, as they said.
    pub author: String,
    /// Why, as they said.
    pub comment: String,
    /// The document's length in bytes.
    pub bytes: u64,
    /// The document, in answers about one document and where it is UTF-8; any version can be had raw with `?stamp=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl ConfigSummary {
    /// The document's full name.
    pub fn key(&self) -> ConfigKey {
        ConfigKey { namespace: self.namespace.clone(), group: self.group.clone(), key: self.key.clone() }
    }
}
