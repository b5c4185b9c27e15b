//! Who calls, and whether they may: the rules are [`starling_core::access`]'s, here they are kept at hand.
//!
//! Asked at the instance's side, for every request: by the node that delivers it, and for an instance this sidecar
//! connects to itself (of this host, or of one without a node) by this one. A caller that asks its own sidecar to look away
//! wins nothing: the other side asks again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use starling_core::access::{Access, Called, Caller, Denied, GROUP, MESH, MeshAccess, Stance};
use starling_core::id::{ConfigKey, Namespace, NodeId, ServiceKey};
use starling_core::view::{Revision, View};

use crate::directory::Entry;
use crate::exchange::Failure;
use crate::reason::Reason;
use crate::stack::Carrier;

/// What the documents say of one service, as of one view.
#[derive(Debug)]
pub(crate) struct Seen {
    view: Revision,
    service: Document<Access>,
    mesh: Document<MeshAccess>,
}

/// What a document says, and which version was looked at last.
#[derive(Debug)]
struct Document<T> {
    looked_at: Option<Revision>,
    state: State<T>,
}

#[derive(Debug)]
enum State<T> {
    /// There is none.
    Absent,
    /// The last good version.
    Good(Arc<T>),
    /// It cannot be read, and no version before it could: whoever it was to keep out is kept out.
    Unreadable,
}

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Absent => Self::Absent,
            Self::Good(good) => Self::Good(good.clone()),
            Self::Unreadable => Self::Unreadable,
        }
    }
}

/// The service on whose behalf this node's applications call, as of one view.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    view: Option<Revision>,
    service: Option<ServiceKey>,
    text: Vec<u8>,
}

/// What a tunnel's node says of the service that calls, and whether it may say so.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    text: Vec<u8>,
    named: Option<ServiceKey>,
    as_of: Option<Revision>,
    vouched: bool,
}

/// Refuses what may not be called.
pub(crate) fn check(
    carrier: &Carrier,
    entry: &Entry,
    service: &ServiceKey,
    caller: Caller<'_>,
    called: Called<'_>,
) -> Result<(), Failure> {
    let seen = entry.access(&carrier.mesh.view());
    let unreadable =
        |document: &str| Err(Denied(format!("{document} cannot be read by this node: it denies it to all")));
    let decided = match (&seen.service.state, &seen.mesh.state) {
        (State::Unreadable, _) => unreadable(&format!("{GROUP}/{}", service.service)),
        (State::Absent, State::Unreadable) => unreadable(&format!("{}/{}", MESH.0, MESH.1)),
        (State::Absent, mesh) => mesh.default().decide(caller),
        (State::Good(access), mesh) => access.decide(service, mesh.default(), caller, called),
    };
    decided.map_err(|denied| {
        entry.metrics.access_denied.fetch_add(1, Relaxed);
        Failure::new(Reason::Forbidden, denied.0)
    })
}

impl State<MeshAccess> {
    fn default(&self) -> MeshAccess {
        match self {
            Self::Absent => MeshAccess::default(),
            Self::Good(mesh) => **mesh,
            Self::Unreadable => MeshAccess { default: Stance::Deny },
        }
    }
}

impl Seen {
    /// What this view's documents say; what has not changed is taken over, and so is what was good before a bad one.
    pub(crate) fn look(view: &View, service: &ServiceKey, before: Option<&Seen>) -> Seen {
        let of_service = document(&service.namespace, GROUP, service.service.as_str());
        let of_mesh = document(&Namespace::default(), MESH.0, MESH.1);
        Seen {
            view: view.revision,
            service: Document::look(view, of_service, before.map(|seen| &seen.service), Access::parse),
            mesh: Document::look(view, of_mesh, before.map(|seen| &seen.mesh), MeshAccess::parse),
        }
    }

    /// Whether this is what `view` says, or what a later one does.
    pub(crate) fn is_of(&self, view: &View) -> bool {
        self.view >= view.revision
    }
}

fn document(namespace: &Namespace, group: &str, name: &str) -> Option<ConfigKey> {
    // A service may have a name that no document can have.
    Some(ConfigKey { namespace: namespace.clone(), group: group.parse().ok()?, key: name.parse().ok()? })
}

impl<T> Document<T> {
    fn look(
        view: &View,
        key: Option<ConfigKey>,
        before: Option<&Self>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Self {
        let found = key.as_ref().and_then(|key| view.config(key));
        let looked_at = found.map(|document| document.revision);
        let before = before.filter(|before| before.looked_at.is_some());
        if let Some(before) = before.filter(|before| before.looked_at == looked_at) {
            return Self { looked_at, state: before.state.clone() };
        }
        let text = found.and_then(|document| document.served()).and_then(|version| version.body.as_ref());
        let Some(body) = text else { return Self { looked_at, state: State::Absent } };
        let parsed = body.as_text().ok_or_else(|| "it is not text".to_owned()).and_then(parse);
        let state = match (parsed, before.map(|before| &before.state)) {
            (Ok(good), _) => State::Good(Arc::new(good)),
            // Whoever took it should have refused it: a peer of another version, most likely.
            (Err(why), Some(State::Good(good))) => {
                let key = key.as_ref().map(ToString::to_string).unwrap_or_default();
                tracing::warn!(document = key, "the last good version goes on being used: {why}");
                State::Good(good.clone())
            }
            (Err(why), _) => {
                let key = key.as_ref().map(ToString::to_string).unwrap_or_default();
                tracing::warn!(document = key, "it cannot be read, so it is taken to deny: {why}");
                State::Unreadable
            }
        };
        Self { looked_at, state }
    }
}

impl Identity {
    /// Brings it up to date: the service that `calls` by this way, or the one named in the settings, or the only one this node
    /// has instances of. For one connection it is always the same way.
    pub(crate) fn refresh(&mut self, carrier: &Carrier, calls: Option<&ServiceKey>) {
        let view = carrier.mesh.view();
        if self.view == Some(view.revision) {
            return;
        }
        self.view = Some(view.revision);
        let service = match calls.or(carrier.identity.as_ref()) {
            Some(named) => Some(named).filter(|named| view.own_services.contains_key(*named)),
            None if view.own_services.size() == 1 => view.own_services.keys().next(),
            None => None,
        };
        if self.service.as_ref() != service {
            self.service = service.cloned();
            self.text.clear();
            if let Some(service) = service {
                self.text.extend_from_slice(service.to_string().as_bytes());
            }
        }
    }

    pub(crate) fn service(&self) -> Option<&ServiceKey> {
        self.service.as_ref()
    }

    /// As it is told to others.
    pub(crate) fn text(&self) -> Option<&[u8]> {
        (!self.text.is_empty()).then_some(&self.text)
    }

    /// As policies name it: services of the default namespace go by their name alone.
    pub(crate) fn plain(&self) -> Option<&str> {
        let text = std::str::from_utf8(self.text()?).ok()?;
        Some(text.strip_prefix("default/").unwrap_or(text))
    }
}

impl Claim {
    /// Looks whether `node` may say that it calls on behalf of the service in `text`: it must own an instance of it.
    pub(crate) fn refresh(&mut self, text: &[u8], node: &NodeId, view: &View) {
        if self.text != text {
            *self = Self { text: text.to_vec(), named: named(text), as_of: None, vouched: false };
        }
        let Some(service) = self.named.as_ref().and_then(|named| view.service(named)) else {
            (self.vouched, self.as_of) = (false, None);
            return;
        };
        if self.as_of != Some(service.revision) {
            self.as_of = Some(service.revision);
            self.vouched = service.instances.iter().any(|instance| instance.owner() == node);
        }
    }

    /// The service, if its node may say so.
    pub(crate) fn service(&self) -> Option<&ServiceKey> {
        self.named.as_ref().filter(|_| self.vouched)
    }
}

/// `NAMESPACE/SERVICE`.
pub(crate) fn named(text: &[u8]) -> Option<ServiceKey> {
    let (namespace, service) = std::str::from_utf8(text).ok()?.split_once('/')?;
    Some(ServiceKey { namespace: namespace.parse().ok()?, service: service.parse().ok()? })
}
