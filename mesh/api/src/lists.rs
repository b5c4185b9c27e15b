//! The hot path: listing one service. Its JSON is made once per change of the service and shared by all who ask.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use axum::body::Bytes;
use serde::Serialize;
use starling_core::id::ServiceKey;
use starling_core::view::{Revision, ServiceView};

/// Encoded lists, by service and by whether only ready instances are in them.
#[derive(Debug, Default)]
pub(crate) struct ListCache {
    kept: RwLock<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    lists: BTreeMap<(ServiceKey, bool), (Revision, Bytes)>,
    bytes: usize,
    drops: u64,
}

/// The most bytes kept; when it is reached, all is dropped and the lists asked for are made anew.
const MAX_KEPT_BYTES: usize = 16 * 1024 * 1024;

impl ListCache {
    /// The list of a service as JSON, from the cache or made by `make`.
    pub(crate) fn get<T: Serialize>(&self, service: &ServiceView, ready_only: bool, make: impl FnOnce() -> T) -> Bytes {
        let name = (service.key.clone(), ready_only);
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((revision, json)) = kept.lists.get(&name)
            && *revision == service.revision
        {
            return json.clone();
        }
        drop(kept);
        let json = encode(&make());
        self.kept.write().unwrap_or_else(PoisonError::into_inner).put(name, service.revision, json.clone());
        json
    }

    /// How often all was dropped for want of room.
    pub(crate) fn drops(&self) -> u64 {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).drops
    }
}

impl Kept {
    fn put(&mut self, name: (ServiceKey, bool), revision: Revision, json: Bytes) {
        if json.len() > MAX_KEPT_BYTES {
            return;
        }
        if let Some((known, _)) = self.lists.get(&name)
            && *known > revision
        {
            return; // Somebody with a newer view was faster.
        }
        if self.bytes + json.len() > MAX_KEPT_BYTES {
            *self = Self { drops: self.drops + 1, ..Self::default() };
        }
        self.bytes += json.len();
        if let Some((_, old)) = self.lists.insert(name, (revision, json)) {
            self.bytes -= old.len();
        }
    }
}

/// A body as JSON.
pub(crate) fn encode<T: Serialize>(body: &T) -> Bytes {
    // Bodies are structs of text and numbers with text for keys; failing to write them to memory is a bug.
    serde_json::to_vec(body).expect("bodies encode").into()
}
