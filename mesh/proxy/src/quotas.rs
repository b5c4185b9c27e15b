//! The mesh's quotas, between the guards that measure and keep to a share and the heart that works it out.
//!
//! Four times a second this tells the heart what is asked of each quota that is used, and hands back what it may use. A
//! quota nobody asks for is not told, and costs nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use starling_core::guard::Quota;
use starling_core::guard::quota::QuotaSnapshot;
use starling_core::id::ServiceKey;
use starling_core::observe::Exposition;
use starling_core::quotas::QuotaId;

use crate::serve::Lifetime;
use crate::stack::Carrier;

/// How often.
const EVERY: Duration = Duration::from_millis(250);
/// How long the heart is waited for; later, its answer is taken the next time.
const PATIENCE: Duration = Duration::from_millis(100);

/// Runs until the proxy drains.
pub(crate) async fn run(carrier: Arc<Carrier>, mut lifetime: Lifetime) {
    let mut shares = carrier.mesh.shares();
    let mut told = BTreeMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = lifetime.draining() => break,
        }
        let used = used(&carrier);
        if used.is_empty() && told.is_empty() {
            continue;
        }
        shares.mark_unchanged();
        let now = carrier.clock.now();
        carrier.mesh.use_quotas(used.iter().map(|(id, (_, quota))| quota.report(*id, now)).collect());
        // Its answer follows at once, unless it is very busy; an older one is better than none.
        let _ = tokio::time::timeout(PATIENCE, shares.changed()).await;
        let known: BTreeMap<QuotaId, u64> = shares.borrow().iter().copied().collect();
        used.iter().for_each(|(id, (_, quota))| quota.set_share(known.get(id).copied()));
        told.iter()
            .filter(|(id, _)| !used.contains_key(id))
            .for_each(|(_, (_, quota)): (_, &Used)| quota.set_share(None));
        told = used;
    }
    if !told.is_empty() {
        carrier.mesh.use_quotas(Vec::new());
    }
}

/// Shows what this node may use of the quotas that are used, and what is asked of it.
pub(crate) fn collect(carrier: &Carrier, out: &mut Exposition) {
    let used: Vec<_> = used(carrier).into_values().map(|(key, quota)| (key.to_string(), quota.snapshot())).collect();
    let mut family = |name, help, value: fn(&QuotaSnapshot) -> f64| {
        out.family(name, "gauge", help);
        for (service, now) in &used {
            out.sample(name, &[("service", service), ("rule", &now.name)], value(now));
        }
    };
    family("starling_quota_share_per_second", "What this node may use of a quota that is used.", |now| now.share_per_s);
    family("starling_quota_demand_per_second", "What is asked of a quota at this node.", |now| now.demand_per_s);
}

/// Whose quota, and the quota.
type Used = (ServiceKey, Arc<Quota>);

/// The quotas of all services that somebody asks for.
fn used(carrier: &Carrier) -> BTreeMap<QuotaId, Used> {
    let mut used = BTreeMap::new();
    let members = carrier.mesh.view().alive().count() as u32;
    for (key, entry) in carrier.directory.entries().iter() {
        let Some(force) = entry.policy.last() else { continue };
        let quotas = force.scopes().flat_map(|scope| &scope.quotas);
        let quotas = quotas.inspect(|quota| quota.set_members(members));
        used.extend(quotas.filter(|quota| quota.is_used()).map(|quota| (quota.id(key), (key.clone(), quota.clone()))));
    }
    used
}
