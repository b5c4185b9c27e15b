//! Keeping the picture: after every input the changed parts, and only those, are made anew and published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Node;
use crate::digest::{Fingerprint, KeyHash};
use crate::id::{CellName, ConfigKey, InstanceKey, NodeId, ServiceKey};
use crate::preserve::Conclusion;
use crate::record::{Cell, Key, versions};
use crate::sorted::Sorted;
use crate::time::Now;
use crate::view::{
    CatchingUp, ClockView, ConfigView, InstanceView, MemberState, MemberView, OverrideView, Owner, Preservation,
    Revision, ServiceView, Usability, View,
};

/// The picture in the making and the last one published.
#[derive(Debug, Clone)]
pub(super) struct Publisher {
    draft: View,
    published: Arc<View>,
    dirty: bool,
    /// Which instances a node owns, by the hashes of their keys: what must be judged anew when it comes or goes.
    owned: BTreeMap<NodeId, BTreeSet<KeyHash>>,
}

impl Publisher {
    pub(super) fn new(view: View) -> Self {
        Self { published: Arc::new(view.clone()), draft: view, dirty: true, owned: BTreeMap::new() }
    }

    pub(super) fn published(&self) -> &Arc<View> {
        &self.published
    }

    /// The revision that will show everything done so far.
    pub(super) fn current_revision(&self) -> Revision {
        self.draft.revision
    }

    pub(super) fn instance(&self, key: &InstanceKey) -> Option<&InstanceView> {
        self.draft.instance(key)
    }

    pub(super) fn config(&self, key: &ConfigKey) -> Option<&Arc<ConfigView>> {
        self.draft.config(key)
    }

    pub(super) fn owned_by(&self, node: &NodeId) -> Vec<KeyHash> {
        self.owned.get(node).into_iter().flatten().copied().collect()
    }

    /// The new picture, if anything changed since the last one.
    pub(super) fn publish(&mut self, fingerprint: Fingerprint) -> Option<Arc<View>> {
        if fingerprint != self.draft.fingerprint {
            self.touch();
        }
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.draft.fingerprint = fingerprint;
        self.draft.own_instances = self.owned.get(&self.draft.me).map_or(0, BTreeSet::len);
        self.published = Arc::new(self.draft.clone());
        Some(self.published.clone())
    }

    /// Begins a change; all changes until the next publication share its revision.
    fn touch(&mut self) -> Revision {
        if !std::mem::replace(&mut self.dirty, true) {
            self.draft.revision.0 += 1;
        }
        self.draft.revision
    }

    fn put_instance(&mut self, hash: KeyHash, shown: InstanceView) {
        let revision = self.touch();
        let owner = shown.owner().clone();
        let service = shown.key.service.clone();
        let before = self.service(&service, revision).put(revision, shown);
        if let Some(before) = before.filter(|before| *before.owner() != owner) {
            self.disown(before.owner(), hash, &service);
        }
        let is_mine = owner == self.draft.me;
        if self.owned.entry(owner).or_default().insert(hash) && is_mine {
            let count = self.draft.own_services.get(&service).map_or(1, |count| count + 1);
            self.draft.own_services.insert_mut(service, count);
        }
    }

    fn remove_instance(&mut self, hash: KeyHash, key: &InstanceKey) {
        let Some(shown) = self.draft.instance(key).cloned() else { return };
        let revision = self.touch();
        self.disown(shown.owner(), hash, &key.service);
        let service = self.service(&key.service, revision);
        service.remove(revision, &key.instance);
        if service.instances.is_empty() {
            self.draft.services.remove_mut(&key.service);
            self.draft.absent_revision = revision;
        }
    }

    /// A service, to be changed. What is published stays as it is; what is not yet is changed in
    /// place, so that a thousand changes by one input do not cost a thousand copies.
    fn service(&mut self, key: &ServiceKey, revision: Revision) -> &mut ServiceView {
        if !self.draft.services.contains_key(key) {
            let service = ServiceView::new(key.clone(), revision, Sorted::default());
            self.draft.services.insert_mut(key.clone(), Arc::new(service));
        }
        let service = self.draft.services.get_mut(key).expect("it was there or has just been put there");
        if Arc::get_mut(service).is_none() {
            *service = Arc::new(service.copy());
        }
        Arc::get_mut(service).expect("nobody else holds what has just been made")
    }

    fn disown(&mut self, owner: &NodeId, hash: KeyHash, service: &ServiceKey) {
        let Some(owned) = self.owned.get_mut(owner) else { return };
        let removed = owned.remove(&hash);
        if owned.is_empty() {
            self.owned.remove(owner);
        }
        if removed && *owner == self.draft.me {
            match self.draft.own_services.get(service) {
                Some(count @ 2..) => self.draft.own_services.insert_mut(service.clone(), count - 1),
                _ => _ = self.draft.own_services.remove_mut(service),
            }
        }
    }

    fn put_config(&mut self, key: ConfigKey, versions: Vec<Arc<crate::config::Version>>) {
        let revision = self.touch();
        self.draft.configs.insert_mut(key.clone(), Arc::new(ConfigView { key, revision, versions }));
    }

    fn remove_config(&mut self, key: &ConfigKey) {
        let revision = self.touch();
        self.draft.configs.remove_mut(key);
        self.draft.absent_revision = revision;
    }

    pub(super) fn remove_member(&mut self, node: &NodeId) {
        if self.draft.members.contains_key(node) {
            self.touch();
            self.draft.members.remove_mut(node);
        }
    }

    pub(super) fn put_clocks(&mut self, clocks: Vec<ClockView>) {
        self.touch();
        self.draft.clocks = clocks.into();
    }

    /// Shows how the node catches up, or that it does so no more.
    pub(super) fn put_catching_up(&mut self, shown: Option<CatchingUp>) {
        if self.draft.catching_up.as_deref() != shown.as_ref() {
            self.touch();
            self.draft.catching_up = shown.map(Arc::new);
        }
    }

    pub(super) fn put_preservation(&mut self, preservation: Vec<Preservation>) {
        self.touch();
        self.draft.preservation = preservation.into();
    }

    fn put_override(&mut self, key: InstanceKey, shown: OverrideView) {
        self.touch();
        self.draft.overrides.insert_mut(key, shown);
    }

    fn remove_override(&mut self, key: &InstanceKey) {
        self.touch();
        self.draft.overrides.remove_mut(key);
    }

    pub(super) fn overrides(&self) -> usize {
        self.draft.overrides.size()
    }

    pub(super) fn put_out_of_reach(&mut self, cells: BTreeSet<CellName>) {
        self.touch();
        self.draft.out_of_reach = Arc::new(cells);
    }

    fn put_member(&mut self, member: MemberView) {
        self.touch();
        self.draft.members.insert_mut(member.node.clone(), Arc::new(member));
    }
}

impl Node {
    /// Brings the picture of one key up to date with the store.
    pub(super) fn show(&mut self, key: &Key, now: Now) {
        match key {
            Key::Instance(key) => self.show_instance(key, now),
            Key::Override(instance) => {
                match self.store.get(key) {
                    Some(Cell::Override(register)) => {
                        let shown = OverrideView { value: register.val.clone(), stamp: register.marker.clone() };
                        self.publisher.put_override(instance.clone(), shown);
                    }
                    _ => self.publisher.remove_override(instance),
                }
                self.show_instance(instance, now);
            }
            Key::Config(document) => match self.store.get(key) {
                Some(Cell::Config(register)) => self.publisher.put_config(document.clone(), versions(&register)),
                _ => self.publisher.remove_config(document),
            },
            Key::Node(node) => self.show_node(node, now),
        }
    }

    /// Brings the picture of a node, and of everything it owns, up to date.
    ///
    /// A restart that was too quick for anybody to miss the node changes nothing about its instances, and yet their
    /// services are published anew: who holds something against them (the balancer does) must hear of it.
    pub(super) fn member_changed(&mut self, node: &NodeId, now: Now) {
        let start = |member: &MemberView| member.facts.incarnation;
        let shown_start = self.publisher.draft.member(node).map(|shown| start(shown));
        let restarted = shown_start.is_some() && shown_start != self.peers.get(node).map(start);
        self.show_member(node);
        if self.peers.state(node) == Some(MemberState::Left) {
            self.quotas.left(node);
        }
        if let Some(member) = self.peers.get(node) {
            // A cell that is cut off as a whole is told of by its relays: its nodes are neither dead nor doubted one by one.
            let state = if self.peers.is_behind_the_cut(node) { MemberState::Alive } else { member.state };
            let others = self.preserver.observe(node, &member.facts.zone, state, now);
            self.concluded(others, now);
        }
        self.judge_owned_by(node, restarted, now);
    }

    /// Brings the picture of what these nodes own up to date with what is now concluded of them.
    pub(super) fn concluded(&mut self, nodes: Vec<NodeId>, now: Now) {
        for node in &nodes {
            self.judge_owned_by(node, false, now);
        }
    }

    fn judge_owned_by(&mut self, node: &NodeId, anew: bool, now: Now) {
        let owner = self.conclusion(node);
        for hash in self.publisher.owned_by(node) {
            let Some(key) = self.store.instance_by_hash(hash).map(|known| known.key.clone()) else { continue };
            let changed = self.publisher.instance(&key).is_some_and(|shown| shown.judge(owner) != shown.usability);
            if changed || anew {
                self.show_instance(&key, now);
            }
        }
    }

    /// What this node holds of another one.
    fn conclusion(&self, node: &NodeId) -> Owner {
        match self.peers.state(node) {
            Some(MemberState::Alive) => Owner::Alive,
            // As long as it can be asked it is there: the applications of its own host go on calling each other by it.
            Some(MemberState::Left) if *node == self.me => Owner::Alive,
            Some(MemberState::Left) => Owner::Left,
            Some(MemberState::Lost) if self.peers.is_behind_the_cut(node) => Owner::Doubtful,
            Some(MemberState::Lost) | None => match self.preserver.conclusion(node) {
                Conclusion::Doubtful => Owner::Doubtful,
                Conclusion::Lost => Owner::Lost,
            },
        }
    }

    /// A node of another cell is as its record says, and gone when there is none any more.
    fn show_node(&mut self, node: &NodeId, now: Now) {
        match self.store.get(&Key::Node(node.clone())) {
            Some(Cell::Node(register)) => {
                let (record, since) = (register.val.clone(), register.marker.stamp.time.wall());
                if let Some(node) = self.peers.told(node, &record, since) {
                    self.member_changed(&node, now);
                }
            }
            _ if self.peers.is_elsewhere(node) => {
                self.peers.forget(node);
                self.publisher.remove_member(node);
            }
            _ => {}
        }
    }

    pub(super) fn show_member(&mut self, node: &NodeId) {
        if let Some(member) = self.peers.get(node) {
            self.publisher.put_member(member.clone());
        }
    }

    fn show_instance(&mut self, key: &InstanceKey, now: Now) {
        let hash = KeyHash::of_instance(key);
        let Some(record) = self.store.instance_by_hash(hash) else { return self.publisher.remove_instance(hash, key) };
        let override_ = self.store.override_of(key).cloned();
        let mut shown = InstanceView { record: record.clone(), override_, usability: Usability::Ready };
        if self.peers.state(shown.owner()).is_none() {
            self.preserver.unheard_of(shown.owner(), now.elapsed);
        }
        shown.usability = shown.judge(self.conclusion(shown.owner()));
        self.publisher.put_instance(hash, shown);
    }
}
