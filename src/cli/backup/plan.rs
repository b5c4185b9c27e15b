//! What a restore has to do: the backup held against what the mesh holds now, entry by entry.

use std::collections::BTreeMap;

use serde::Serialize;
use starling_api::model::{Backup, BackupDocument, BackupOverride, VersionInfo, Written};
use starling_core::time::Stamp;

use super::super::client::{Ask, Client};
use super::super::failure::Failure;
use super::super::output::ago;

/// The longest comment a document takes, in bytes.
const MAX_COMMENT_BYTES: usize = 512;

/// What becomes of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Action {
    /// The mesh has the same.
    Unchanged,
    /// The mesh had nothing of that name.
    Created,
    /// The mesh had something else.
    Replaced,
    /// It had been deleted or cleared.
    BroughtBack,
    /// The mesh has something newer.
    KeptNewer,
    /// It was deleted or cleared after the backup.
    KeptDeleted,
    /// The mesh refused it.
    Failed(String),
}

impl Action {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Action::Unchanged => "the same",
            Action::Created => "created",
            Action::Replaced => "replaced",
            Action::BroughtBack => "brought back",
            Action::KeptNewer | Action::KeptDeleted => "kept",
            Action::Failed(_) => "refused",
        }
    }

    pub(super) fn writes(&self) -> bool {
        matches!(self, Action::Created | Action::Replaced | Action::BroughtBack)
    }
}

/// One entry of a backup, and what becomes of it.
#[derive(Debug, Serialize)]
pub(super) struct Item {
    /// "config" or "override".
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) action: Action,
    /// What the mesh has, by its stamp.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<String>,
    #[serde(skip)]
    now_unix_ms: u64,
    #[serde(skip)]
    write: Write,
}

impl Item {
    fn new(kind: &'static str, name: String, action: Action, now: Option<&Stamp>, write: Write) -> Item {
        let now_unix_ms = now.map_or(0, |stamp| stamp.time.wall().0);
        Item { kind, name, action, now: now.map(Stamp::to_string), now_unix_ms, write }
    }

    /// Why it becomes what it becomes, where that is not plain.
    pub(super) fn why(&self) -> String {
        match &self.action {
            Action::KeptNewer => format!("written {}, after the backup", ago(self.now_unix_ms)),
            Action::KeptDeleted => format!("deleted {}, after the backup", ago(self.now_unix_ms)),
            Action::Failed(reason) => reason.lines().collect::<Vec<_>>().join("; "),
            _ => String::new(),
        }
    }

    /// Writes it, if that is what becomes of it. What the mesh refuses is noted; a mesh that does not answer ends it.
    pub(super) fn carry_out(&mut self, client: &Client) -> Result<(), Failure> {
        if !self.action.writes() {
            return Ok(());
        }
        let Some(ask) = self.write.ask() else {
            self.action = Action::Failed("the backup has no bytes of it".into());
            return Ok(());
        };
        match client.fetch::<Written>(ask) {
            Ok(_) => Ok(()),
            Err(Failure::Refused(reason)) => {
                self.action = Action::Failed(reason);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }
}

impl Write {
    fn ask(&self) -> Option<Ask> {
        match self {
            Write::Document(document, seen) => {
                let version = document.served()?;
                let key = document.key();
                let path = ["v1", "config", key.namespace.as_str(), key.group.as_str(), key.key.as_str()];
                let ask = Ask::new("PUT", &path).query("comment", &comment(version));
                let ask = ask.query("expect", &seen.as_ref().map_or("none".to_owned(), Stamp::to_string));
                let ask = if version.author.is_empty() { ask } else { ask.query("author", &version.author) };
                let content_type = match is_token(&version.format) {
                    true => format!("application/{}", version.format),
                    false => "text/plain".into(), // by the name's ending
                };
                Some(ask.body(&content_type, document.bytes_of(version)?))
            }
            Write::Override(backed_up) => {
                let (service, id) = (backed_up.service.as_str(), backed_up.id.as_str());
                let ask = Ask::new("PUT", &["v1", "services", service, "instances", id, "override"]);
                let ask = ask.query("namespace", backed_up.namespace.as_str()).query("unregistered", "true");
                Some(ask.json(backed_up.word.as_ref()?))
            }
        }
    }
}

/// Where it comes from, and what its writer said.
fn comment(version: &VersionInfo) -> String {
    const BEGINNING: &str = "restored from a backup";
    if version.comment.starts_with(BEGINNING) {
        return version.comment.clone();
    }
    let mut comment = format!("{BEGINNING} ({})", version.stamp);
    if !version.comment.is_empty() {
        comment.push_str(&format!(": {}", version.comment));
    }
    comment.truncate(comment.floor_char_boundary(MAX_COMMENT_BYTES));
    comment
}

/// Whether a format can be said in a content type.
fn is_token(format: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".+-_".contains(&byte);
    !format.is_empty() && !format.starts_with("x-") && format != "yml" && format.bytes().all(allowed)
}

/// Whether two versions are the same to whoever reads them.
fn is_same(one: (&BackupDocument, &VersionInfo), other: (&BackupDocument, &VersionInfo)) -> bool {
    let format = one.1.format == other.1.format || !is_token(&one.1.format);
    format && one.0.bytes_of(one.1) == other.0.bytes_of(other.1)
}

/// What is written if it is.
#[derive(Debug, Clone)]
enum Write {
    Document(Box<BackupDocument>, Option<Stamp>),
    Override(Box<BackupOverride>),
}

/// A whole restore.
pub(super) struct Plan {
    pub(super) items: Vec<Item>,
    /// Documents of which the backup has versions that are not restored.
    pub(super) other_versions: Vec<String>,
}

/// What the mesh has under a name.
enum Now<'a, T> {
    Nothing,
    Gone(&'a Stamp),
    Has(T, &'a Stamp),
}

/// The rule, the same for documents and overrides.
fn decide<T>(now: &Now<'_, T>, same: impl FnOnce(&T) -> bool, backed_up: &Stamp, overwrite: bool) -> Action {
    match now {
        Now::Nothing => Action::Created,
        Now::Has(held, _) if same(held) => Action::Unchanged,
        Now::Has(_, stamp) if *stamp > backed_up && !overwrite => Action::KeptNewer,
        Now::Gone(stamp) if *stamp > backed_up && !overwrite => Action::KeptDeleted,
        Now::Has(..) => Action::Replaced,
        Now::Gone(_) => Action::BroughtBack,
    }
}

impl<T> Now<'_, T> {
    fn stamp(&self) -> Option<&Stamp> {
        match self {
            Now::Nothing => None,
            Now::Gone(stamp) | Now::Has(_, stamp) => Some(stamp),
        }
    }
}

impl Plan {
    /// What has to be done to bring `backup` into a mesh that holds `now`. What was deleted in the backup is not
    /// restored: it says only that there was nothing.
    pub(super) fn new(backup: &Backup, now: &Backup, overwrite: bool) -> Plan {
        let held: BTreeMap<_, _> = now.documents.iter().map(|document| (document.key(), document)).collect();
        let mut plan = Plan { items: Vec::new(), other_versions: Vec::new() };
        for document in &backup.documents {
            let Some(wanted) = document.served() else { continue };
            let now = match held.get(&document.key()) {
                None => Now::Nothing,
                Some(held) => match (held.served(), held.document.versions.first()) {
                    (Some(served), _) => Now::Has((*held, served), &served.stamp),
                    (None, Some(deletion)) => Now::Gone(&deletion.stamp),
                    (None, None) => Now::Nothing,
                },
            };
            let same = |(held, served): &(&BackupDocument, &VersionInfo)| is_same((document, wanted), (held, served));
            let action = decide(&now, same, &wanted.stamp, overwrite);
            if document.document.versions.len() > 1 && action.writes() {
                plan.other_versions.push(document.key().to_string());
            }
            let seen = match &now {
                Now::Has(_, stamp) => Some((*stamp).clone()),
                _ => None,
            };
            let write = Write::Document(Box::new(document.clone()), seen);
            plan.items.push(Item::new("config", document.key().to_string(), action, now.stamp(), write));
        }
        let held: BTreeMap<_, _> = now.overrides.iter().map(|held| (held.key(), held)).collect();
        for backed_up in backup.overrides.iter().filter(|backed_up| backed_up.word.is_some()) {
            let now = match held.get(&backed_up.key()) {
                None => Now::Nothing,
                Some(BackupOverride { word: Some(word), stamp, .. }) => Now::Has(word, stamp),
                Some(BackupOverride { stamp, .. }) => Now::Gone(stamp),
            };
            let action = decide(&now, |word| Some(*word) == backed_up.word.as_ref(), &backed_up.stamp, overwrite);
            let write = Write::Override(Box::new(backed_up.clone()));
            plan.items.push(Item::new("override", backed_up.key().to_string(), action, now.stamp(), write));
        }
        plan
    }

    /// How many entries have such an action.
    pub(super) fn number(&self, is: impl Fn(&Action) -> bool) -> usize {
        self.items.iter().filter(|item| is(&item.action)).count()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A backup with documents and overrides; what is null was deleted or cleared. Stamps are seconds.
    fn holding(documents: &[(&str, u64, Option<&str>)], overrides: &[(&str, u64, Option<u32>)]) -> Backup {
        let document = |(key, at, text): &(&str, u64, Option<&str>)| {
            serde_json::from_value(json!({ "namespace": "default", "group": "default", "key": key, "revision": 1,
                "conflict": 0, "versions": [{ "stamp": format!("{at}000.0@a"), "written_unix_ms": at * 1000,
                    "deleted": text.is_none(), "format": "text", "author": "ada", "comment": "why", "bytes": 0,
                    "text": text }] }))
            .unwrap()
        };
        let word = |(id, at, weight): &(&str, u64, Option<u32>)| {
            let word = weight.map(|weight| json!({ "weight": weight }));
            serde_json::from_value(json!({ "namespace": "default", "service": "orders", "id": id,
                "stamp": format!("{at}000.0@a"), "word": word }))
            .unwrap()
        };
        let header = json!({ "format": 1, "node": "a", "version": "", "taken_unix_ms": 0, "revision": 1 });
        Backup {
            header: serde_json::from_value(header).unwrap(),
            documents: documents.iter().map(document).collect(),
            overrides: overrides.iter().map(word).collect(),
        }
    }

    fn actions(backup: &Backup, now: &Backup, overwrite: bool) -> Vec<Action> {
        Plan::new(backup, now, overwrite).items.into_iter().map(|item| item.action).collect()
    }

    #[test]
    fn what_is_missing_or_older_is_written_and_what_is_newer_is_kept() {
        use Action::{BroughtBack, Created, KeptDeleted, KeptNewer, Replaced, Unchanged};
        let backup = holding(
            &[
                ("new", 5, Some("x")),
                ("same", 5, Some("x")),
                ("older", 5, Some("x")),
                ("newer", 5, Some("x")),
                ("deleted before", 5, Some("x")),
                ("deleted since", 5, Some("x")),
                ("gone", 5, None),
            ]
            .map(|(key, at, text)| (key.split(' ').next_back().unwrap(), at, text)),
            &[("o1", 5, Some(1)), ("o2", 5, Some(1)), ("o3", 5, Some(1)), ("o4", 5, None)],
        );
        let now = holding(
            &[
                ("same", 9, Some("x")),
                ("older", 4, Some("y")),
                ("newer", 6, Some("y")),
                ("before", 4, None),
                ("since", 6, None),
                ("other", 1, Some("z")),
            ],
            &[("o1", 9, Some(1)), ("o2", 6, Some(2)), ("o3", 6, None)],
        );
        let kept =
            [Created, Unchanged, Replaced, KeptNewer, BroughtBack, KeptDeleted, Unchanged, KeptNewer, KeptDeleted];
        assert_eq!(actions(&backup, &now, false), kept);
        let all = [Created, Unchanged, Replaced, Replaced, BroughtBack, BroughtBack, Unchanged, Replaced, BroughtBack];
        assert_eq!(actions(&backup, &now, true), all);
    }

    #[test]
    fn a_restore_of_what_is_there_changes_nothing() {
        let backup = holding(&[("a", 5, Some("x"))], &[("o1", 5, Some(1))]);
        assert_eq!(actions(&backup, &backup, true), [Action::Unchanged, Action::Unchanged]);
    }

    #[test]
    fn a_comment_says_where_the_document_comes_from_once_and_fits() {
        let backup = holding(&[("a", 5, Some("x"))], &[]);
        let mut version = backup.documents[0].document.versions[0].clone();
        version.comment = comment(&version);
        assert_eq!(version.comment, "restored from a backup (5000.0@a): why");
        assert_eq!(comment(&version), version.comment);
        version.comment = "é".repeat(MAX_COMMENT_BYTES / 2);
        assert!(comment(&version).len() <= MAX_COMMENT_BYTES);
    }
}
