//! What people and programs ask of a node: checked, stamped, stored, told.

use std::sync::Arc;

use crdts::LWWReg;

use super::{Answer, Command, Node, Output, Refusal};
use crate::access;
use crate::config::{ConfigWrite, Version};
use crate::health::Verdict;
use crate::id::{CommandId, InstanceKey, NodeId};
use crate::record::{Cell, Claim, Key, Record};
use crate::registry::{CheckKind, Health, Instance, Override, Registration, Status};
use crate::time::{Now, Stamp};
use crate::view::InstanceView;
use crate::wire::Message;

impl Node {
    pub(super) fn command(&mut self, now: Now, id: CommandId, command: Command, out: &mut Vec<Output>) {
        let result = if self.leaving {
            Err(Refusal::Leaving)
        } else {
            match command {
                Command::Register(registration) => self.register(now, registration, out),
                Command::Renew(key, verdict) => self.renew(now, key, verdict.is_ok(), out),
                Command::SetStatus(key, status) => self.set_status(now, key, status, out),
                Command::Deregister(key) => self.deregister(now, key, out),
                Command::SetOverride(key, value) => self.set_override(now, key, value, out),
                Command::WriteConfig(write) => self.write_config(now, write, out),
                Command::Leave => self.leave(now, out),
            }
        };
        let answer = result.map(|stamp| Answer::Done { revision: self.publisher.current_revision(), stamp });
        out.push(Output::Reply(id, answer));
    }

    fn register(&mut self, now: Now, wanted: Registration, out: &mut Vec<Output>) -> Result<Option<Stamp>, Refusal> {
        let Registration { key, mut instance } = wanted;
        instance.check_limits().map_err(Refusal::Invalid)?;
        self.free(Key::Instance(key.clone()))?;
        let known = self.own(&key).map(|shown| (shown.instance.clone(), shown.stamp().clone()));
        if known.is_none() {
            self.room_to_own()?;
        }
        instance.health = match (instance.details.check(), &known) {
            (None, _) => Health::Unchecked,
            // Registering is the first renewal.
            (Some(check), _) if check.kind == CheckKind::Ttl => Health::Passing,
            (Some(check), Some((before, _)))
                if Some(check) == before.details.check() && before.address == instance.address =>
            {
                before.health
            }
            _ => Health::Unknown,
        };
        if let Some((before, stamp)) = known
            && before == instance
        {
            // Registered again as it is: a renewal at most, and nothing to tell anybody.
            self.monitor.renewed(&key, true, now.elapsed);
            return Ok(Some(stamp));
        }
        let stamp = self.claim_instance(now, key.clone(), Some(instance), out);
        self.monitor.renewed(&key, true, now.elapsed);
        Ok(Some(stamp))
    }

    /// Refuses a name that the store cannot tell from another.
    fn free(&self, key: Key) -> Result<(), Refusal> {
        if self.store.is_taken(&key) {
            return Err(Refusal::Invalid("this name has the hash of another that is in use; choose another".into()));
        }
        Ok(())
    }

    /// Refuses what would make this node own one more instance than it may.
    fn room_to_own(&self) -> Result<(), Refusal> {
        let limit = self.settings.max_own_instances;
        if self.own_instances < limit {
            return Ok(());
        }
        Err(Refusal::Full { what: "instances owned by this node", limit })
    }

    fn renew(
        &mut self,
        now: Now,
        key: InstanceKey,
        good: bool,
        out: &mut Vec<Output>,
    ) -> Result<Option<Stamp>, Refusal> {
        let shown = self.shown(&key)?;
        if shown.instance.details.check().is_none_or(|check| check.kind != CheckKind::Ttl) {
            return Err(Refusal::Invalid(format!("instance {key} has no TTL check, so there is no lease to renew")));
        }
        if shown.owner() == &self.me {
            let verdict = self.monitor.renewed(&key, good, now.elapsed);
            return Ok(verdict.and_then(|verdict| self.verdict(now, &key, verdict, out)));
        }
        self.room_to_own()?;
        // The application has moved to this peer: from now on its lease is kept here.
        let health = if good { Health::Passing } else { Health::Failing };
        let instance = Instance { health, declared: false, ..shown.instance.clone() };
        Ok(Some(self.claim_instance(now, key, Some(instance), out)))
    }

    fn set_status(
        &mut self,
        now: Now,
        key: InstanceKey,
        status: Status,
        out: &mut Vec<Output>,
    ) -> Result<Option<Stamp>, Refusal> {
        let shown = self.shown(&key)?;
        if shown.owner() != &self.me {
            return Err(Refusal::NotOwner { owner: shown.owner().clone(), key });
        }
        if shown.instance.status == status {
            return Ok(None);
        }
        let instance = Instance { status, ..shown.instance.clone() };
        Ok(Some(self.update_instance(now, key, Some(instance), out)))
    }

    fn deregister(&mut self, now: Now, key: InstanceKey, out: &mut Vec<Output>) -> Result<Option<Stamp>, Refusal> {
        self.shown(&key)?;
        Ok(Some(self.claim_instance(now, key, None, out)))
    }

    fn set_override(
        &mut self,
        now: Now,
        key: InstanceKey,
        value: Option<Override>,
        out: &mut Vec<Output>,
    ) -> Result<Option<Stamp>, Refusal> {
        match &value {
            None if self.store.override_of(&key).is_none() => return Ok(None),
            None => {}
            Some(value) => {
                value.check_limits().map_err(Refusal::Invalid)?;
                self.free(Key::Override(key.clone()))?;
                let limit = self.settings.max_overrides;
                if self.store.override_of(&key).is_none() && self.publisher.overrides() >= limit {
                    return Err(Refusal::Full { what: "overrides", limit });
                }
            }
        }
        let stamp = self.clock.issue(now.wall);
        let cell = Cell::Override(LWWReg { val: value.map(Arc::new), marker: stamp.clone() });
        self.write(now, Record { key: Key::Override(key), cell }, out);
        Ok(Some(stamp))
    }

    fn write_config(&mut self, now: Now, write: ConfigWrite, out: &mut Vec<Output>) -> Result<Option<Stamp>, Refusal> {
        write.check_limits().map_err(Refusal::Invalid)?;
        if let Some(body) = &write.body {
            access::check(&write.key, body).map_err(Refusal::Invalid)?;
        }
        self.free(Key::Config(write.key.clone()))?;
        let shown = self.publisher.config(&write.key);
        let served = shown.and_then(|shown| shown.served()).map(|version| version.stamp.clone());
        if let Some(expected) = &write.expect
            && *expected != served
        {
            return Err(Refusal::Changed(served));
        }
        if write.body.is_none() && served.is_none() {
            return Err(Refusal::NoConfig(write.key));
        }
        if shown.is_none() && self.store.configs() >= self.settings.max_configs {
            return Err(Refusal::Full { what: "configuration documents", limit: self.settings.max_configs });
        }
        if let Some(body) = &write.body {
            let replaced = self.store.get(&Key::Config(write.key.clone())).map_or(0, |cell| cell.body_bytes());
            let limit = self.settings.max_config_bytes;
            if self.store.config_bytes() - replaced + body.as_bytes().len() > limit {
                return Err(Refusal::Full { what: "bytes of configuration documents", limit });
            }
        }
        let stamp = self.clock.issue(now.wall);
        let ConfigWrite { key, body, format, author, comment, .. } = write;
        let version = Version { stamp: stamp.clone(), body, format, author, comment };
        let key = Key::Config(key);
        // What is buried stays so: an old version that returns is then older than this one, not beside it.
        let seen = self.store.get(&key).or_else(|| self.graveyard.cell(&key).cloned());
        let cell = Cell::config_write(seen.as_ref(), version);
        self.write(now, Record { key, cell }, out);
        Ok(Some(stamp))
    }

    fn leave(&mut self, now: Now, out: &mut Vec<Output>) -> Result<Option<Stamp>, Refusal> {
        self.leaving = true;
        let Some(incarnation) = self.peers.get(&self.me).map(|me| me.facts.incarnation) else { return Ok(None) };
        self.announce_leaving(now, out);
        let neighbours = self.peers.neighbours().to_vec();
        out.extend(
            neighbours.into_iter().map(|peer| Output::Send(peer, Message::Leaving(self.me.clone(), incarnation))),
        );
        self.peers.leave(now.wall);
        self.member_changed(&self.me.clone(), now);
        Ok(None)
    }

    /// Acts on what the monitor decided of an own instance; returns the stamp of what it wrote.
    pub(super) fn verdict(
        &mut self,
        now: Now,
        key: &InstanceKey,
        verdict: Verdict,
        out: &mut Vec<Output>,
    ) -> Option<Stamp> {
        let shown = self.own(key)?;
        let value = match verdict {
            Verdict::Changed(health) => {
                tracing::info!(instance = %key, %health, "health verdict changed");
                Some(Instance { health, ..shown.instance.clone() })
            }
            Verdict::Expired => {
                tracing::info!(instance = %key, "deregistered: failing for longer than its check allows");
                None
            }
        };
        Some(self.update_instance(now, key.clone(), value, out))
    }

    /// Writes what somebody said of where an instance belongs: to this node, or nowhere.
    pub(super) fn claim_instance(
        &mut self,
        now: Now,
        key: InstanceKey,
        value: Option<Instance>,
        out: &mut Vec<Output>,
    ) -> Stamp {
        let claim = Claim::new(self.clock.issue(now.wall));
        self.write_instance(now, key, value, claim, out)
    }

    /// Writes what this node found out or was told of an instance it owns, under the claim it has on it.
    pub(super) fn update_instance(
        &mut self,
        now: Now,
        key: InstanceKey,
        value: Option<Instance>,
        out: &mut Vec<Output>,
    ) -> Stamp {
        let mut claim = Claim::new(self.clock.issue(now.wall));
        if let Some(known) = self.store.instance(&key) {
            claim.claimed = known.claim.claimed;
        }
        self.write_instance(now, key, value, claim, out)
    }

    fn write_instance(
        &mut self,
        now: Now,
        key: InstanceKey,
        value: Option<Instance>,
        claim: Claim,
        out: &mut Vec<Output>,
    ) -> Stamp {
        let stamp = claim.stamp.clone();
        let cell = Cell::Instance(LWWReg { val: value.map(Arc::new), marker: claim });
        self.write(now, Record { key: Key::Instance(key), cell }, out);
        stamp
    }

    /// Stores a record this node has just written, keeps it on disk and will tell the neighbours when the input is done.
    pub(super) fn write(&mut self, now: Now, record: Record, out: &mut Vec<Output>) {
        let key = record.key.clone();
        let changed = self.absorb(record.clone(), now, out);
        assert!(changed == Ok(true), "a write of our own is newer than all it replaces: {changed:?}");
        self.show(&key, now);
        self.fresh.push(record.clone());
        out.push(Output::Persist(record));
    }

    /// Passes records on to the neighbours, but not to the one they came from.
    pub(super) fn tell(&mut self, now: Now, records: Vec<Record>, from: Option<&NodeId>, out: &mut Vec<Output>) {
        if records.is_empty() {
            return;
        }
        let change = |record: Record| {
            let (hash, item) = record.hashes();
            (item.into(), hash, record)
        };
        let changes = records.into_iter().map(change).collect();
        self.push.spread(now.elapsed, changes, from, self.peers.neighbours(), &mut self.counters, out);
    }

    fn shown(&self, key: &InstanceKey) -> Result<InstanceView, Refusal> {
        self.publisher.instance(key).cloned().ok_or_else(|| Refusal::NoInstance(key.clone()))
    }

    /// An instance this node owns.
    fn own(&self, key: &InstanceKey) -> Option<InstanceView> {
        self.publisher.instance(key).filter(|shown| shown.owner() == &self.me).cloned()
    }
}
