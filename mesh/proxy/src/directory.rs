//! What the data plane remembers of the services it has carried requests for, beside the view.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use starling_core::balance::Group;
use starling_core::guard::{BreakerState, RetryBudget};
use starling_core::id::ServiceKey;
use starling_core::view::{ServiceView, View};

use crate::metrics::ServiceMetrics;
use crate::pool::Pool;
use crate::settings::ProxySettings;

/// All services called or answered for here. Read without a lock; written when a service is met the first time.
#[derive(Debug)]
pub(crate) struct Directory {
    entries: ArcSwap<BTreeMap<ServiceKey, Arc<Entry>>>,
    writing: Mutex<()>,
    unknown: ServiceMetrics,
}

/// One service.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) metrics: ServiceMetrics,
    pub(crate) budget: RetryBudget,
    group: ArcSwapOption<Group<Pool>>,
    writing: Mutex<()>,
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self { entries: ArcSwap::default(), writing: Mutex::new(()), unknown: ServiceMetrics::default() }
    }

    /// Where requests to services that do not exist are counted.
    pub(crate) fn unknown(&self) -> &ServiceMetrics {
        &self.unknown
    }

    pub(crate) fn entries(&self) -> Arc<BTreeMap<ServiceKey, Arc<Entry>>> {
        self.entries.load_full()
    }

    /// The entry of a service that is in the view (so their number is bounded by the registry's).
    pub(crate) fn entry(&self, key: &ServiceKey, settings: &ProxySettings) -> Arc<Entry> {
        if let Some(entry) = self.entries.load().get(key) {
            return entry.clone();
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = BTreeMap::clone(&self.entries.load());
        let entry = entries.entry(key.clone()).or_insert_with(|| Arc::new(Entry::new(settings))).clone();
        self.entries.store(Arc::new(entries));
        entry
    }

    /// Closes idle connections and forgets services that are in the view no more.
    pub(crate) fn sweep(&self, view: &View, idle_timeout: Duration) {
        let entries = self.entries.load_full();
        for group in entries.values().filter_map(|entry| entry.group.load_full()) {
            group.slots().for_each(|slot| slot.seat.extra.sweep(idle_timeout));
        }
        if entries.keys().any(|key| view.service(key).is_none()) {
            let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut entries = BTreeMap::clone(&self.entries.load());
            entries.retain(|key, _| view.service(key).is_some());
            self.entries.store(Arc::new(entries));
        }
    }
}

impl Entry {
    fn new(settings: &ProxySettings) -> Self {
        Self {
            metrics: ServiceMetrics::default(),
            budget: RetryBudget::new(settings.retry_budget),
            group: ArcSwapOption::empty(),
            writing: Mutex::new(()),
        }
    }

    /// How many instances are taken out by their breaker, and how many requests are in flight.
    pub(crate) fn broken_and_in_flight(&self) -> (usize, u64) {
        let Some(group) = self.group.load_full() else { return (0, 0) };
        let broken = group.slots().filter(|slot| slot.seat.breaker.state() != BreakerState::Closed).count();
        (broken, group.slots().map(|slot| u64::from(slot.seat.load.in_flight())).sum())
    }

    /// The service's candidates; made anew when the service has changed.
    pub(crate) fn group(&self, service: &Arc<ServiceView>, view: &View, settings: &ProxySettings) -> Arc<Group<Pool>> {
        let fits = |group: &Arc<Group<Pool>>| {
            // A request that began with an older view must not bring back what the newer one has dropped.
            Arc::ptr_eq(group.service(), service) || group.service().revision > service.revision
        };
        if let Some(group) = self.group.load_full().filter(fits) {
            return group;
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.group.load_full();
        if let Some(group) = previous.clone().filter(fits) {
            return group;
        }
        let group = Arc::new(Group::new(service, view, settings.breaker, previous.as_deref()));
        group.slots().for_each(|slot: &starling_core::balance::Slot<Pool>| {
            slot.seat.extra.limit(settings.max_idle_per_instance);
        });
        self.group.store(Some(group.clone()));
        group
    }
}
