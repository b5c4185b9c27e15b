//! What the data plane remembers of the services it has carried requests for, beside the view.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use starling_core::balance::{Group, Roster};
use starling_core::guard::{BreakerState, BudgetSettings, RetryBudget};
use starling_core::id::ServiceKey;
use starling_core::policy::{Recent, Scope};
use starling_core::time::Instant;
use starling_core::tolerate::Quantile;
use starling_core::view::{ServiceView, View};

use crate::access::Seen;
use crate::checking::Checks;
use crate::guards::Refusals;
use crate::keys::Table;
use crate::last_good::Shelf;
use crate::metrics::ServiceMetrics;
use crate::policies::Standing;
use crate::pool::Pool;
use crate::settings::ProxySettings;
use crate::stack::Carrier;

/// The most ways to balance one service that are kept; routes that want more make theirs anew again and again.
const MAX_GROUPS: usize = 32;

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
    /// The same for hedges.
    pub(crate) hedges: RetryBudget,
    /// How long its answers usually take, if anybody wants to know.
    pub(crate) latency: Quantile,
    /// One for each way to balance, the newest last; all of one roster.
    groups: ArcSwap<Vec<Arc<Group<Pool>>>>,
    pub(crate) policy: Standing,
    pub(crate) refusals: Refusals,
    /// What this node's applications asked lately.
    pub(crate) recent: Recent,
    pub(crate) checks: Checks,
    pub(crate) last_good: Shelf,
    /// Idempotency keys, where its instances are of this node.
    pub(crate) keys: Arc<Table>,
    access: ArcSwapOption<Seen>,
    service: ServiceKey,
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
        let entry = entries.entry(key.clone()).or_insert_with(|| Arc::new(Entry::new(key.clone(), settings))).clone();
        self.entries.store(Arc::new(entries));
        entry
    }

    /// Closes idle connections and forgets services that are in the view no more.
    pub(crate) fn sweep(&self, view: &View, idle_timeout: Duration, now: Instant) {
        let entries = self.entries.load_full();
        entries.values().for_each(|entry| entry.recent.sweep(now));
        for roster in entries.values().filter_map(|entry| entry.roster()) {
            roster.slots().iter().for_each(|slot| slot.seat.extra.sweep(idle_timeout));
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
    fn new(service: ServiceKey, settings: &ProxySettings) -> Self {
        Self {
            metrics: ServiceMetrics::default(),
            budget: RetryBudget::new(settings.retry_budget),
            hedges: RetryBudget::new(BudgetSettings::default()),
            latency: Quantile::default(),
            groups: ArcSwap::default(),
            policy: Standing::default(),
            refusals: Refusals::default(),
            recent: Recent::default(),
            checks: Checks::default(),
            last_good: Shelf::default(),
            keys: Arc::default(),
            access: ArcSwapOption::empty(),
            service,
            writing: Mutex::new(()),
        }
    }

    /// How many instances are taken out by their breaker, and how many requests are in flight.
    pub(crate) fn broken_and_in_flight(&self) -> (usize, u64) {
        let Some(roster) = self.roster() else { return (0, 0) };
        let seats = || roster.slots().iter().map(|slot| &slot.seat);
        let broken = seats().filter(|seat| seat.breaker.state() != BreakerState::Closed).count();
        (broken, seats().map(|seat| u64::from(seat.load.in_flight())).sum())
    }

    /// Who may call the service, by this view or a later one.
    pub(crate) fn access(&self, view: &View) -> Arc<Seen> {
        if let Some(seen) = self.access.load_full().filter(|seen| seen.is_of(view)) {
            return seen;
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.access.load_full();
        if let Some(seen) = before.clone().filter(|seen| seen.is_of(view)) {
            return seen;
        }
        let seen = Arc::new(Seen::look(view, &self.service, before.as_deref()));
        self.access.store(Some(seen.clone()));
        seen
    }

    /// The candidates as they were at the last choice.
    pub(crate) fn roster(&self) -> Option<Arc<Roster<Pool>>> {
        self.groups.load().last().map(|group| group.roster().clone())
    }

    /// The service's candidates as these settings want them; made anew when the service or the settings have changed.
    /// Routes of one service may want different ones: what is known of an instance is the same for all of them.
    pub(crate) fn group(
        &self,
        service: &Arc<ServiceView>,
        view: &View,
        scope: &Scope,
        carrier: &Carrier,
    ) -> Arc<Group<Pool>> {
        let (balance, breaker) = (&scope.balance, scope.sections.breaker);
        // A request that began with an older view must not bring back what the newer one has dropped.
        let is_current = |other: &Arc<ServiceView>| Arc::ptr_eq(other, service) || other.revision > service.revision;
        let fits = |group: &&Arc<Group<Pool>>| is_current(group.service()) && Arc::ptr_eq(group.settings(), balance);
        if let Some(group) = self.groups.load().iter().find(fits) {
            return group.clone();
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = self.groups.load_full();
        if let Some(group) = groups.iter().find(fits) {
            return group.clone();
        }
        let newest = groups.last().map(|group| group.roster());
        let guards = |roster: &&Arc<Roster<Pool>>| *roster.breaker() == breaker;
        let newest_fits = newest.filter(|roster| is_current(roster.service())).filter(guards);
        let roster = newest_fits.cloned().unwrap_or_else(|| {
            let previous = newest.map(|roster| &**roster);
            let roster = Roster::new(service, view, breaker, carrier.clock.now(), previous);
            roster.slots().iter().for_each(|slot| slot.seat.extra.limit(carrier.settings.max_idle_per_instance));
            Arc::new(roster)
        });
        let group = Arc::new(Group::new(roster.clone(), balance.clone()));
        // Those of the service as it was are of no use; of those of settings that are no more, a few are in the way.
        let still = groups.iter().filter(|group| Arc::ptr_eq(group.roster(), &roster)).cloned();
        let mut groups: Vec<_> = still.chain([group.clone()]).collect();
        groups.drain(..groups.len().saturating_sub(MAX_GROUPS));
        self.groups.store(Arc::new(groups));
        group
    }
}
