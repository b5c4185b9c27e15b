//! The file that `GET /v1/backup` gives and `starling backup` writes.
//!
//! JSON, one value a line, in this order; every line is an object with one field that says what it is:
//!
//! | Line | |
//! |---|---|
//! | `{"starling_backup": …}` | once, first: [`BackupHeader`] |
//! | `{"config": …}` | [`BackupDocument`]: one document with all its versions nobody had replaced, deletions too |
//! | `{"override": …}` | [`BackupOverride`]: an operator's word on one instance, clearings too |
//! | `{"end": …}` | once, last: [`BackupEnd`]: how much there was, and a checksum of all bytes before this line |
//!
//! All lines are of one moment at one node. A file without its last line was cut off and is refused; so is one that
//! was changed. Readers refuse a `format` they do not know; within a format, objects may grow fields.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use starling_core::config::{Body, Version};
use starling_core::id::{ConfigKey, InstanceId, InstanceKey, Namespace, NodeId, ServiceKey, ServiceName};
use starling_core::time::Stamp;
use starling_core::view::{ConfigView, OverrideView, Revision};
use xxhash_rust::xxh3::Xxh3;

use super::{ConfigDocument, OverrideBody, VersionInfo};

/// The format this program writes and reads.
pub const BACKUP_FORMAT: u32 = 1;

/// One line of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupLine {
    /// The first.
    StarlingBackup(BackupHeader),
    /// A document.
    Config(BackupDocument),
    /// An override.
    Override(BackupOverride),
    /// The last.
    End(BackupEnd),
}

/// Whose backup it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHeader {
    /// [`BACKUP_FORMAT`].
    pub format: u32,
    /// The node that gave it.
    pub node: NodeId,
    /// The version of its binary.
    pub version: String,
    /// When, by its clock.
    pub taken_unix_ms: u64,
    /// Of which revision of its view.
    pub revision: Revision,
}

/// A document in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupDocument {
    /// Its name and its versions, the served one first.
    #[serde(flatten)]
    pub document: ConfigDocument,
    /// The bytes of those versions that are not UTF-8 text, in base64, by their stamps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base64: Vec<(String, String)>,
}

/// An override in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupOverride {
    /// The service's namespace.
    pub namespace: Namespace,
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub id: InstanceId,
    /// When it was set or cleared.
    #[serde(with = "super::text")]
    pub stamp: Stamp,
    /// The word; absent when it was cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word: Option<OverrideBody>,
}

/// How a backup ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupEnd {
    /// How many documents.
    pub configs: u64,
    /// How many overrides.
    pub overrides: u64,
    /// XXH3 (64 bits, in hexadecimal) of all bytes before this line. It tells a damaged file, not a forged one.
    pub xxh3: String,
}

/// Makes a backup line by line and counts what there was.
#[derive(Clone)]
pub(crate) struct BackupWriter {
    sum: Xxh3,
    end: BackupEnd,
}

impl BackupWriter {
    pub(crate) fn new() -> Self {
        Self { sum: Xxh3::new(), end: BackupEnd { configs: 0, overrides: 0, xxh3: String::new() } }
    }

    /// Appends a line to what will be sent.
    pub(crate) fn line(&mut self, line: &BackupLine, out: &mut Vec<u8>) {
        match line {
            BackupLine::Config(_) => self.end.configs += 1,
            BackupLine::Override(_) => self.end.overrides += 1,
            BackupLine::StarlingBackup(_) | BackupLine::End(_) => {}
        }
        let start = out.len();
        serde_json::to_writer(&mut *out, line).expect("lines encode");
        out.push(b'\n');
        self.sum.update(&out[start..]);
    }

    /// The last line.
    pub(crate) fn end(&self, out: &mut Vec<u8>) {
        let end = BackupEnd { xxh3: format!("{:016x}", self.sum.digest()), ..self.end.clone() };
        self.clone().line(&BackupLine::End(end), out);
    }
}

impl BackupDocument {
    /// A document as a node holds it.
    pub(crate) fn of(config: &ConfigView) -> Self {
        let binary =
            |version: &&std::sync::Arc<Version>| version.body.as_ref().is_some_and(|body| body.as_text().is_none());
        let encode = |version: &std::sync::Arc<Version>| {
            let bytes = version.body.as_ref().map_or(&[][..], Body::as_bytes);
            (version.stamp.to_string(), BASE64_STANDARD.encode(bytes))
        };
        Self {
            document: crate::show::document(config),
            base64: config.versions.iter().filter(binary).map(encode).collect(),
        }
    }

    /// Its full name.
    pub fn key(&self) -> ConfigKey {
        let ConfigDocument { namespace, group, key, .. } = &self.document;
        ConfigKey { namespace: namespace.clone(), group: group.clone(), key: key.clone() }
    }

    /// The version that was served, if the document was not deleted.
    pub fn served(&self) -> Option<&VersionInfo> {
        self.document.versions.first().filter(|version| !version.deleted)
    }

    /// The bytes of one of its versions.
    pub fn bytes_of(&self, version: &VersionInfo) -> Option<Vec<u8>> {
        if let Some(text) = &version.text {
            return Some(text.clone().into_bytes());
        }
        let stamp = version.stamp.to_string();
        let (_, encoded) = self.base64.iter().find(|(known, _)| *known == stamp)?;
        BASE64_STANDARD.decode(encoded).ok()
    }
}

impl BackupOverride {
    /// An override as a node holds it.
    pub(crate) fn of(key: &InstanceKey, shown: &OverrideView) -> Self {
        Self {
            namespace: key.service.namespace.clone(),
            service: key.service.service.clone(),
            id: key.instance.clone(),
            stamp: shown.stamp.clone(),
            word: shown.value.as_deref().map(crate::show::operator),
        }
    }

    /// The instance it is about.
    pub fn key(&self) -> InstanceKey {
        let service = ServiceKey { namespace: self.namespace.clone(), service: self.service.clone() };
        InstanceKey { service, instance: self.id.clone() }
    }
}

/// A whole backup, read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Whose it is.
    pub header: BackupHeader,
    /// Its documents.
    pub documents: Vec<BackupDocument>,
    /// Its overrides.
    pub overrides: Vec<BackupOverride>,
}

/// Why a file is not a backup that can be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It does not begin like one.
    #[error("this is no backup of Starling: its first line is not {{\"starling_backup\": …}}")]
    NotABackup,
    /// It was written by a newer program.
    #[error(
        "the backup has format {0}, this program reads {BACKUP_FORMAT}: use the version that wrote it, or a newer one"
    )]
    Format(u32),
    /// Its end is missing.
    #[error("the backup was cut off after line {0}: its last line, {{\"end\": …}}, is missing. Take it again")]
    Cut(usize),
    /// It is not what was written.
    #[error("the backup was changed or damaged: {0}. Use another copy of it")]
    Damaged(String),
    /// A line that makes no sense.
    #[error("line {line} of the backup is wrong: {error}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        error: String,
    },
}

impl Backup {
    /// Reads a backup and checks that it is whole.
    ///
    /// # Errors
    /// [`BackupError`] says what is wrong with it, and what to do.
    pub fn read(bytes: &[u8]) -> Result<Backup, BackupError> {
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
        let first = lines.next().map(|(_, line)| serde_json::from_slice::<BackupLine>(line));
        let Some(Ok(BackupLine::StarlingBackup(header))) = first else { return Err(BackupError::NotABackup) };
        if header.format != BACKUP_FORMAT {
            return Err(BackupError::Format(header.format));
        }
        let mut backup = Backup { header, documents: Vec::new(), overrides: Vec::new() };
        let mut at = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
        for (number, line) in lines {
            let wrong = |error: String| BackupError::Line { line: number + 1, error };
            match serde_json::from_slice(line) {
                Ok(BackupLine::Config(document)) => {
                    let complete = |version: &VersionInfo| version.deleted || document.bytes_of(version).is_some();
                    if !document.document.versions.iter().all(complete) {
                        return Err(wrong(format!("a version of {} has no bytes", document.key())));
                    }
                    backup.documents.push(document);
                }
                Ok(BackupLine::Override(word)) => backup.overrides.push(word),
                Ok(BackupLine::End(end)) => return backup.checked(&end, bytes, at, line.len()),
                Ok(BackupLine::StarlingBackup(_)) => return Err(wrong("a second first line".into())),
                // The last line of a file that was cut off is cut off too.
                Err(_) if at + line.len() == bytes.len() && !line.ends_with(b"\n") => {
                    return Err(BackupError::Cut(number));
                }
                Err(error) => return Err(wrong(error.to_string())),
            }
            at += line.len();
        }
        Err(BackupError::Cut(backup.documents.len() + backup.overrides.len() + 1))
    }

    fn checked(self, end: &BackupEnd, bytes: &[u8], at: usize, length: usize) -> Result<Backup, BackupError> {
        let mut sum = Xxh3::new();
        sum.update(&bytes[..at]);
        let counted = (self.documents.len() as u64, self.overrides.len() as u64);
        if format!("{:016x}", sum.digest()) != end.xxh3 {
            return Err(BackupError::Damaged("its checksum is another one".into()));
        }
        if counted != (end.configs, end.overrides) {
            return Err(BackupError::Damaged("it has not as many lines as it says".into()));
        }
        if at + length != bytes.len() {
            return Err(BackupError::Damaged("something follows its last line".into()));
        }
        Ok(self)
    }
}
