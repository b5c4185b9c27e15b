//! The book kept outside of all nodes: what was acknowledged, and whether it is still there.
//!
//! An instance is as its last acknowledged registration or removal left it. An edit of a document is there while its
//! version is shown, or one that replaced it, directly or not: which versions a node showed when it took an edit is asked
//! right before.

use std::collections::{BTreeMap, BTreeSet};

use starling_core::Command;
use starling_core::id::{ConfigKey, InstanceKey};

use super::host::Host;

/// What a command writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrote {
    Instance { key: InstanceKey, there: bool },
    Document { key: ConfigKey, body: Option<String> },
}

/// All acknowledged writes, in their order.
#[derive(Debug, Default)]
pub(super) struct Book {
    writes: Vec<(Wrote, String)>,
    /// Which versions of documents each version replaced, by their stamps.
    replaced: BTreeMap<String, Vec<String>>,
}

impl Wrote {
    /// What a command writes, its key as recordings have it, and whether it removes. `None` for what is not followed.
    pub(super) fn of(command: &Command) -> Option<(Self, String, bool)> {
        match command {
            Command::Register(registration) => {
                let key = registration.key.clone();
                let name = format!("instance {key}");
                Some((Wrote::Instance { key, there: true }, name, false))
            }
            Command::Deregister(key) => {
                Some((Wrote::Instance { key: key.clone(), there: false }, format!("instance {key}"), true))
            }
            Command::WriteConfig(write) => {
                let body = write.body.as_ref().map(|body| String::from_utf8_lossy(body.as_bytes()).into_owned());
                let (key, gone) = (write.key.clone(), body.is_none());
                let name = format!("document {key}");
                Some((Wrote::Document { key, body }, name, gone))
            }
            _ => None,
        }
    }

    pub(super) fn says(&self) -> String {
        match self {
            Wrote::Instance { there: true, .. } => "registered".into(),
            Wrote::Instance { there: false, .. } => "removed".into(),
            Wrote::Document { body: Some(body), .. } => format!("{body:?}"),
            Wrote::Document { body: None, .. } => "deleted".into(),
        }
    }
}

impl Book {
    pub(super) fn acknowledged(&mut self, wrote: Wrote, stamp: String, replaces: Vec<String>) {
        self.replaced.insert(stamp.clone(), replaces);
        self.writes.push((wrote, stamp));
    }

    /// Whether a node shows this write (the n-th) or what replaced it.
    pub(super) fn shows(&self, place: usize, host: &Host) -> bool {
        match self.writes.get(place) {
            Some((Wrote::Instance { key, there }, _)) => {
                host.instance(key).is_ok_and(|shown| shown.is_some() == *there)
            }
            Some((Wrote::Document { key, .. }, stamp)) => {
                shown(host, key).is_ok_and(|shown| self.covered(shown).contains(stamp))
            }
            None => false,
        }
    }

    /// What acknowledged writes nodes that run do not show.
    pub(super) fn losses(&self, hosts: &[Host]) -> Vec<String> {
        let mut last: BTreeMap<&InstanceKey, bool> = BTreeMap::new();
        let mut documents: BTreeMap<&ConfigKey, Vec<(&String, String)>> = BTreeMap::new();
        for (wrote, stamp) in &self.writes {
            match wrote {
                Wrote::Instance { key, there } => _ = last.insert(key, *there),
                Wrote::Document { key, .. } => documents.entry(key).or_default().push((stamp, wrote.says())),
            }
        }
        let mut found = Vec::new();
        for host in hosts.iter().filter(|host| host.is_running()) {
            let name = &host.name;
            for (key, there) in &last {
                match host.instance(key).map(|shown| shown.is_some()) {
                    Ok(shown) if shown == *there => {}
                    Ok(true) => found.push(format!("{name} lists {key}, which was removed")),
                    Ok(false) => found.push(format!("{name} has lost {key}")),
                    Err(why) => found.push(format!("{name} does not answer: {why}")),
                }
            }
            for (key, edits) in &documents {
                match shown(host, key).map(|shown| self.covered(shown)) {
                    Ok(covered) => {
                        let lost = edits.iter().filter(|(stamp, _)| !covered.contains(*stamp));
                        found.extend(lost.map(|(stamp, what)| format!("{name} has lost {key} = {what} of {stamp}")));
                    }
                    Err(why) => found.push(format!("{name} does not answer: {why}")),
                }
            }
        }
        found
    }

    /// These versions and all they replaced, directly or not.
    fn covered(&self, shown: Vec<String>) -> BTreeSet<String> {
        let (mut covered, mut open) = (BTreeSet::new(), shown);
        while let Some(stamp) = open.pop() {
            let older = self.replaced.get(&stamp).into_iter().flatten();
            open.extend(older.filter(|older| !covered.contains(*older)).cloned());
            covered.insert(stamp);
        }
        covered
    }
}

/// The stamps of the versions a node shows.
fn shown(host: &Host, key: &ConfigKey) -> Result<Vec<String>, crate::cli::failure::Failure> {
    let versions = host.document(key)?.map_or(Vec::new(), |document| document.versions);
    Ok(versions.into_iter().map(|version| version.stamp.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_covers_all_that_its_writers_had_seen() {
        let mut book = Book::default();
        let key: ConfigKey = starling_sim::ask::config_key("limits").expect("a key");
        let edit = |body: &str| Wrote::Document { key: key.clone(), body: Some(body.into()) };
        book.acknowledged(edit("1"), "1".into(), vec![]);
        book.acknowledged(edit("2"), "2".into(), vec!["1".into()]);
        book.acknowledged(edit("3"), "3".into(), vec!["1".into()]);
        assert_eq!(book.covered(vec!["2".into()]), ["1", "2"].map(String::from).into());
        book.acknowledged(edit("4"), "4".into(), vec!["2".into(), "3".into()]);
        assert_eq!(book.covered(vec!["4".into()]).len(), 4);
    }
}
