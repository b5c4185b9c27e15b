//! Which service is meant by an address.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use starling_core::id::ServiceKey;
use starling_core::registry::Reach;
use starling_core::view::{InstanceView, Revision, View};
use tokio::time::Instant;

/// How often the addresses are looked up anew, at most: that costs a look at every instance there is. Who has registered
/// within this time may not be known by address yet.
const RENEWAL: Duration = Duration::from_secs(1);

/// Where the instances of all services are; looked up when somebody asks.
#[derive(Debug, Default)]
pub(super) struct Registered {
    seen: ArcSwapOption<Seen>,
    looking: Mutex<()>,
}

#[derive(Debug)]
struct Seen {
    of: Revision,
    at: Instant,
    services: BTreeMap<SocketAddr, Claim>,
}

/// Who says to be at an address.
#[derive(Debug)]
struct Claim {
    /// Whether one who is seen from this host says so: others' addresses may be meant as seen from theirs.
    near: bool,
    /// `None` when several say so, none nearer than the others.
    service: Option<ServiceKey>,
}

impl Registered {
    /// The service that has an instance there.
    pub(super) fn service(&self, address: SocketAddr, view: &View) -> Option<ServiceKey> {
        self.seen(view).services.get(&address)?.service.clone()
    }

    fn seen(&self, view: &View) -> Arc<Seen> {
        let good = |seen: &Arc<Seen>| seen.of == view.revision || seen.at.elapsed() < RENEWAL;
        if let Some(seen) = self.seen.load_full().filter(good) {
            return seen;
        }
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = self.seen.load_full().filter(good) {
            return seen;
        }
        let seen = Arc::new(Seen { of: view.revision, at: Instant::now(), services: look(view) });
        self.seen.store(Some(seen.clone()));
        seen
    }
}

fn look(view: &View) -> BTreeMap<SocketAddr, Claim> {
    let mut services = BTreeMap::<SocketAddr, Claim>::new();
    for service in view.services.values() {
        for instance in service.instances.iter() {
            let near = *instance.owner() == view.me || instance.instance.reach == Reach::Direct;
            let Some(address) = address_of(instance, near) else { continue };
            let new = || Claim { near, service: Some(service.key.clone()) };
            let claim = services.entry(address).or_insert_with(new);
            if near && !claim.near {
                *claim = new();
            } else if near == claim.near && claim.service.as_ref() != Some(&service.key) {
                claim.service = None;
            }
        }
    }
    services
}

/// Where it can be met by applications of this host. Instances that are registered by a host name are known by the mesh's
/// names only: which address somebody has looked that up to is not known here. Another host's loopback is not this one's.
fn address_of(instance: &InstanceView, near: bool) -> Option<SocketAddr> {
    let address = &instance.instance.address;
    let ip: IpAddr = address.host.parse().ok()?;
    (near || !ip.is_loopback()).then(|| SocketAddr::new(ip, address.port))
}

#[cfg(test)]
mod tests {
    use starling_core::id::InstanceKey;
    use starling_core::record::{Claim as Owned, Claimed};
    use starling_core::registry::{Address, Instance};
    use starling_core::time::{HybridTime, Stamp};
    use starling_core::view::{ServiceView, Usability};

    use super::*;

    /// Node `a`'s view of these: service, owner, host, how it is reached; all on port 80.
    fn view(revision: u64, instances: &[(&str, &str, &str, Reach)]) -> View {
        let mut view = View::empty("a".parse().unwrap(), Default::default());
        view.revision = Revision(revision);
        for (service, owner, host, reach) in instances {
            let key = ServiceKey { namespace: Default::default(), service: service.parse().unwrap() };
            let stamp = Stamp { time: HybridTime(1), node: owner.parse().unwrap() };
            let mut instance = Instance::at(Address { host: (*host).into(), port: 80 });
            instance.reach = *reach;
            let instance_key = InstanceKey { service: key.clone(), instance: owner.parse().unwrap() };
            let record = Arc::new(Claimed { key: instance_key, claim: Owned::new(stamp), instance });
            let instance = InstanceView { record, override_: None, usability: Usability::Ready };
            let before = view.services.get(&key).map(|service| service.instances.iter().cloned().collect::<Vec<_>>());
            let all = before.unwrap_or_default().into_iter().chain([instance]).collect();
            view.services.insert_mut(key.clone(), Arc::new(ServiceView::new(key, Revision(revision), all)));
        }
        view
    }

    fn at(registered: &Registered, host: &str, view: &View) -> Option<String> {
        let service = registered.service(SocketAddr::new(host.parse().unwrap(), 80), view)?;
        Some(service.service.to_string())
    }

    #[test]
    fn an_address_means_the_service_that_has_an_instance_there_as_seen_from_this_host() {
        let (owner, direct) = (Reach::Owner, Reach::Direct);
        let view = view(
            1,
            &[
                ("orders", "b", "10.0.0.1", owner),
                ("orders", "c", "10.0.0.1", owner),
                ("far", "b", "127.0.0.1", owner),
                ("six", "b", "fd00::1", owner),
                ("named", "b", "db.example", owner),
                // Two bridges of two hosts have the same addresses: this host's is meant.
                ("mine", "a", "172.17.0.2", owner),
                ("others", "b", "172.17.0.2", owner),
                // Somebody says so of whom only it knows how it is meant, somebody else of a host without a node.
                ("bare", "b", "10.0.0.9", direct),
                ("local", "c", "10.0.0.9", owner),
                // Nobody knows which of the two is meant.
                ("one", "b", "172.17.0.3", owner),
                ("two", "c", "172.17.0.3", owner),
            ],
        );
        let registered = Registered::default();
        for (host, service) in [
            ("10.0.0.1", Some("orders")),
            ("127.0.0.1", None),
            ("fd00::1", Some("six")),
            ("172.17.0.2", Some("mine")),
            ("10.0.0.9", Some("bare")),
            ("172.17.0.3", None),
            ("10.0.0.2", None),
        ] {
            assert_eq!(at(&registered, host, &view).as_deref(), service, "{host}");
        }
        assert_eq!(registered.service("10.0.0.1:81".parse().unwrap(), &view), None, "another port");
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_view_is_looked_at_before_long_and_not_at_once_again_and_again() {
        let registered = Registered::default();
        let (before, after) = (view(1, &[]), view(2, &[("orders", "b", "10.0.0.1", Reach::Owner)]));
        assert_eq!(at(&registered, "10.0.0.1", &before), None);
        assert_eq!(at(&registered, "10.0.0.1", &after), None);
        tokio::time::advance(RENEWAL).await;
        assert_eq!(at(&registered, "10.0.0.1", &after).as_deref(), Some("orders"));
    }
}
