//! The book kept outside of all nodes: every write there ever was, which of them were acknowledged, and whether they
//! are still there.
//!
//! A write is still there when it is shown or when a later write replaced it: for registers where the last write wins,
//! any with a later stamp; for documents, only one whose writer had seen it (or had seen one that had). A write is held
//! against the nodes when it was acknowledged and its author is running; a document also when any node is running that
//! had it when everybody had. It is not when its author has taken it off its disk because somebody else had written
//! since: then that write is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use starling_core::id::{CommandId, ConfigKey, InstanceKey, NodeId};
use starling_core::record::{Cell, Key, Record, versions};
use starling_core::registry::{Instance, Override};
use starling_core::time::{HybridTime, Stamp};
use starling_core::view::View;

/// What a write said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    Instance(Option<Arc<Instance>>),
    Override(Option<Arc<Override>>),
    /// A document that is there, or its deletion.
    Config(bool),
}

#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) author: usize,
    pub(crate) at: u64,
    pub(crate) said: Said,
    /// The versions its author had seen and so replaced; documents only.
    replaces: Vec<Stamp>,
    /// What comes before its stamp in the order of writes; instances only.
    claimed: Option<HybridTime>,
    pub(crate) acknowledged: bool,
    /// The nodes that had it when every running one had; documents only.
    pub(crate) holders: Vec<usize>,
    /// Its author has seen a later write by somebody else and keeps it no longer.
    pub(crate) handed_over: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// By key, then by stamp.
    writes: BTreeMap<Key, BTreeMap<Stamp, Write>>,
    /// Commands that wait for their reply, and what they are about.
    asked: BTreeMap<CommandId, (usize, Option<Key>)>,
    pub(crate) acknowledged: u64,
}

/// A write that should be there and is not.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    pub(crate) key: Key,
    pub(crate) stamp: Stamp,
    pub(crate) at: u64,
    pub(crate) what: String,
}

impl Ledger {
    pub(crate) fn asked(&mut self, id: CommandId, node: usize, about: Option<Key>) {
        let known = self.asked.insert(id, (node, about));
        assert!(known.is_none(), "command ids are used once");
    }

    /// Notes what a node wants on disk. Returns the newest stamp of its own that nobody had seen before.
    pub(crate) fn persisted(
        &mut self,
        (author, me): (usize, &NodeId),
        record: &Record,
        before: &View,
        at: u64,
    ) -> Option<Stamp> {
        let mut newest = None;
        for stamp in record.cell.stamps().into_iter().filter(|stamp| stamp.node == *me) {
            let known = self.writes.entry(record.key.clone()).or_default();
            if known.contains_key(&stamp) {
                continue;
            }
            let replaces = match &record.key {
                Key::Config(key) => shown_stamps(before, key),
                _ => Vec::new(),
            };
            let claimed = match &record.cell {
                Cell::Instance(register) => Some(register.marker.claimed),
                _ => None,
            };
            let said = said(&record.cell, &stamp);
            let (acknowledged, handed_over, holders) = (false, false, Vec::new());
            let write = Write { author, at, said, replaces, claimed, acknowledged, holders, handed_over };
            known.insert(stamp.clone(), write);
            newest = newest.max(Some(stamp));
        }
        newest
    }

    /// A command was answered; the answer is not with the asker yet.
    ///
    /// # Panics
    /// When nobody asked, or it was answered before: the heart's fault.
    pub(crate) fn answered(&mut self, id: CommandId, node: usize) -> Option<Key> {
        let (asked_at, about) = self.asked.remove(&id).unwrap_or_else(|| panic!("{id:?} was answered twice"));
        assert_eq!(asked_at, node, "{id:?} was answered by another node than the one asked");
        about
    }

    /// Whether any command of a node waits for its answer.
    pub(crate) fn waiting(&self, node: usize) -> Option<CommandId> {
        self.asked.iter().find(|(_, (at, _))| *at == node).map(|(id, _)| *id)
    }

    /// A node forgot what it was asked: it crashed.
    pub(crate) fn unasked(&mut self, node: usize) {
        self.asked.retain(|_, (at, _)| *at != node);
    }

    /// The asker has been told that this write succeeded.
    ///
    /// # Panics
    /// When it was never given to the disk: the heart's fault.
    pub(crate) fn acknowledge(&mut self, key: &Key, stamp: &Stamp) {
        let write = self.writes.get_mut(key).and_then(|writes| writes.get_mut(stamp));
        let write = write.unwrap_or_else(|| panic!("a write to {key:?} was acknowledged as {stamp} but never kept"));
        self.acknowledged += u64::from(!write.acknowledged);
        write.acknowledged = true;
    }

    /// Every running node has seen a write: these. Of an instance only its owner keeps a copy on disk, and whether a
    /// node has an override, or another of the same value, cannot be seen from outside: nobody is held to those.
    pub(crate) fn spread(&mut self, key: &Key, stamp: &Stamp, seen: &[bool]) {
        if !matches!(key, Key::Config(_)) {
            return;
        }
        if let Some(write) = self.writes.get_mut(key).and_then(|writes| writes.get_mut(stamp)) {
            write.holders = (0..seen.len()).filter(|node| seen[*node]).collect();
        }
    }

    /// A node crashed before this key was on its disk.
    pub(crate) fn unsynced(&mut self, node: usize, key: &Key) {
        let writes = self.writes.get_mut(key).into_iter().flat_map(BTreeMap::values_mut);
        writes.for_each(|write| write.holders.retain(|holder| *holder != node));
    }

    /// A node needs no longer keep a key on its disk.
    pub(crate) fn forgotten(&mut self, node: usize, key: &Key) {
        let writes = self.writes.get_mut(key).into_iter().flat_map(BTreeMap::values_mut);
        writes.filter(|write| write.author == node).for_each(|write| write.handed_over = true);
    }

    /// How many keys were ever written.
    pub(crate) fn keys(&self) -> usize {
        self.writes.len()
    }

    pub(crate) fn write(&self, key: &Key, stamp: &Stamp) -> Option<&Write> {
        self.writes.get(key)?.get(stamp)
    }

    /// Whether a view shows a write, or something that replaced it.
    pub(crate) fn covers(&self, view: &View, key: &Key, stamp: &Stamp) -> bool {
        match key {
            Key::Instance(instance) => self.covers_instance(view, key, instance, stamp),
            Key::Override(instance) => self.covers_override(view, key, instance, stamp),
            Key::Config(config) => self.covered_versions(key, shown_stamps(view, config)).contains(stamp),
            Key::Node(_) => true, // written by nobody's wish, and so not in the ledger
        }
    }

    fn covers_instance(&self, view: &View, key: &Key, instance: &InstanceKey, stamp: &Stamp) -> bool {
        match view.instance(instance) {
            Some(shown) => self.order(key, shown.stamp()) >= self.order(key, stamp),
            // A removal of that age or newer explains the absence.
            None => {
                let this = self.order(key, stamp);
                let removals = self.of(key).filter(|(_, write)| write.said == Said::Instance(None));
                removals.map(|(stamp, write)| (write.claimed, stamp)).any(|removal| removal >= this)
            }
        }
    }

    /// What orders the writes of an instance.
    pub(crate) fn order<'s>(&self, key: &Key, stamp: &'s Stamp) -> (Option<HybridTime>, &'s Stamp) {
        (self.write(key, stamp).and_then(|write| write.claimed), stamp)
    }

    fn of(&self, key: &Key) -> impl Iterator<Item = (&Stamp, &Write)> {
        self.writes.get(key).into_iter().flatten()
    }

    fn covers_override(&self, view: &View, key: &Key, instance: &InstanceKey, stamp: &Stamp) -> bool {
        // A view shows an override with its instance only, and without its stamp: any value written since will do.
        let Some(shown) = view.instance(instance) else { return true };
        self.after(key, stamp).any(|write| write.said == Said::Override(shown.override_.clone()))
    }

    fn after(&self, key: &Key, stamp: &Stamp) -> impl Iterator<Item = &Write> {
        self.writes.get(key).into_iter().flat_map(move |writes| writes.range(stamp..)).map(|(_, write)| write)
    }

    /// These versions and all they replaced, directly or not.
    fn covered_versions(&self, key: &Key, shown: Vec<Stamp>) -> BTreeSet<Stamp> {
        let (mut covered, mut open) = (BTreeSet::new(), shown);
        while let Some(stamp) = open.pop() {
            if let Some(write) = self.write(key, &stamp) {
                open.extend(write.replaces.iter().filter(|older| !covered.contains(*older)).cloned());
            }
            covered.insert(stamp);
        }
        covered
    }

    /// The acknowledged writes a view lacks, among those `held` says are to be there. Deletions from before `horizon` (a
    /// virtual time) may be buried.
    pub(crate) fn missing(&self, view: &View, horizon: u64, held: impl Fn(&Write) -> bool) -> Vec<Missing> {
        let mut missing = Vec::new();
        for (key, writes) in &self.writes {
            let collected = || self.collected(key, writes, view, horizon);
            let covered = match key {
                Key::Config(config) => {
                    let mut shown = shown_stamps(view, config);
                    shown.extend(collected());
                    Some(self.covered_versions(key, shown))
                }
                _ => None,
            };
            for (stamp, write) in writes.iter().filter(|(_, write)| write.acknowledged && held(write)) {
                let there = match &covered {
                    Some(covered) => covered.contains(stamp),
                    None => self.covers(view, key, stamp),
                };
                if !there {
                    let what = write.describe(key);
                    missing.push(Missing { key: key.clone(), stamp: stamp.clone(), at: write.at, what });
                }
            }
        }
        missing
    }

    /// Deletions so old that a view need not show them any more. What they replaced it must not show either.
    fn collected(&self, key: &Key, writes: &BTreeMap<Stamp, Write>, view: &View, horizon: u64) -> Vec<Stamp> {
        let Key::Config(config) = key else { return Vec::new() };
        let shown = shown_stamps(view, config);
        let old = |write: &Write| write.said == Said::Config(false) && write.at < horizon;
        let deletions = writes.iter().filter(|(_, write)| old(write)).map(|(stamp, _)| stamp.clone());
        let is_buried = |stamp: &Stamp| {
            let replaced = self.covered_versions(key, vec![stamp.clone()]);
            !shown.iter().any(|version| replaced.contains(version))
        };
        deletions.filter(is_buried).collect()
    }

    /// What nobody ever wrote, or wrote differently, and is shown all the same.
    pub(crate) fn invented(&self, view: &View) -> Vec<String> {
        let mut invented = Vec::new();
        for shown in view.services.values().flat_map(|service| service.instances.iter()) {
            let write = self.write(&Key::Instance(shown.key.clone()), shown.stamp());
            if !matches!(write, Some(Write { said: Said::Instance(Some(said)), .. }) if **said == shown.instance) {
                invented.push(format!("instance {} as of {}", shown.key, shown.stamp()));
            }
        }
        for config in view.configs.values() {
            for version in &config.versions {
                let said = self.write(&Key::Config(config.key.clone()), &version.stamp).map(|write| &write.said);
                if said != Some(&Said::Config(version.body.is_some())) {
                    invented.push(format!("document {} as of {}", config.key, version.stamp));
                }
            }
        }
        invented
    }
}

impl Write {
    pub(crate) fn describe(&self, key: &Key) -> String {
        match (&self.said, key) {
            (Said::Instance(Some(_)), Key::Instance(key)) => format!("the registration of {key}"),
            (Said::Instance(None), Key::Instance(key)) => format!("the removal of {key}"),
            (Said::Override(Some(_)), Key::Override(key)) => format!("the override of {key}"),
            (Said::Override(None), Key::Override(key)) => format!("the clearing of the override of {key}"),
            (Said::Config(true), Key::Config(key)) => format!("the edit of {key}"),
            (Said::Config(false), Key::Config(key)) => format!("the deletion of {key}"),
            _ => format!("a write to {key:?}"),
        }
    }
}

fn shown_stamps(view: &View, key: &ConfigKey) -> Vec<Stamp> {
    let shown = view.config(key);
    shown.into_iter().flat_map(|config| &config.versions).map(|version| version.stamp.clone()).collect()
}

fn said(cell: &Cell, stamp: &Stamp) -> Said {
    match cell {
        Cell::Instance(register) => Said::Instance(register.val.clone()),
        Cell::Override(register) => Said::Override(register.val.clone()),
        Cell::Node(_) => unreachable!("what nodes tell of each other is not in the ledger"),
        Cell::Config(register) => {
            Said::Config(versions(register).iter().any(|v| v.stamp == *stamp && v.body.is_some()))
        }
    }
}
