//! A policy in force: the rules, and the guards that were made of them.
//!
//! There is a *scope* for the service and one for each route. A guard a route does not set is the service's own, shared
//! with all requests that have no other; one it sets is the route's alone. Limits add up: a route's requests pass the
//! service's limits and the route's. When a document changes, guards whose settings did not change are taken over, with
//! all they have counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::actions::{Fault, Mirror};
use super::{Asked, Layers, Problem, RouteMatch, Sections};
use crate::balance::BalanceSettings;
use crate::guard::circuit::{CircuitSettings, Failures, Mode};
use crate::guard::limit::{KeyBudget, LimitBy, Meter};
use crate::guard::{
    Bulkhead, BulkheadSettings, Circuits, Concurrency, ConcurrencySettings, Criticality, Guard, Limit, List, Quota,
    Shed, ShedSettings,
};
use crate::time::{Instant, WallTime};
use crate::tolerate::Mode as Tolerate;

/// What is in force for a service.
#[derive(Debug)]
pub struct Force {
    /// For requests no route is for.
    pub service: Arc<Scope>,
    /// The routes, in order.
    pub routes: Vec<(RouteMatch, Arc<Scope>)>,
    meters: Meters,
}

/// What passes on routes that limits are related to: by the route's name, and the limit's time in milliseconds.
type Meters = BTreeMap<(String, u64), Arc<Meter>>;

/// What is in force for some of the requests of a service.
#[derive(Debug)]
pub struct Scope {
    /// The route's name; none: the service itself.
    pub route: Option<String>,
    /// The values.
    pub sections: Sections,
    /// How instances are chosen.
    pub balance: Arc<BalanceSettings>,
    /// What counts as a failure.
    pub failures: Failures,
    /// Who may call.
    pub callers: Option<List>,
    /// Shedding by criticality.
    pub shed: Option<Arc<Shed>>,
    /// Whose queues the shedding hears of.
    pub heard: Heard,
    /// So many at once.
    pub bulkhead: Option<Arc<Bulkhead>>,
    /// As many at once as the callee can do.
    pub concurrency: Option<Arc<Concurrency>>,
    /// The breaker, or one for each method.
    pub circuit: Option<Arc<Circuits>>,
    /// Calls in a time; those of the service first.
    pub limits: Vec<Arc<Limit>>,
    /// For each of the limits, the meter of the route it is related to, if it is.
    pub related: Vec<Option<Arc<Meter>>>,
    /// The meters of this route, for the limits that are related to it.
    pub watched: Vec<Arc<Meter>>,
    /// Calls in a time, at all nodes together; those of the service first.
    pub quotas: Vec<Arc<Quota>>,
    /// Trouble on purpose.
    pub faults: Vec<Arc<Active<Fault>>>,
    /// Copies.
    pub mirrors: Vec<Arc<Active<Mirror>>>,
    /// Whether any of this has to be asked: without, a request passes by one look at this.
    pub is_guarded: bool,
}

/// Which waits say something to a scope's shedding: those in a queue that is as wide as it, or wider. A route with a bulkhead of
/// its own was set apart from the service, and its queue shall get no request of another route refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// Those for a place in the bulkhead.
    pub bulkhead: bool,
    /// Those for a place in the limit of concurrency.
    pub concurrency: bool,
}

/// A rule that has some requests in its hands.
#[derive(Debug)]
pub struct Active<T> {
    /// The rule.
    pub rule: T,
    active: AtomicU32,
    /// How often it was carried out.
    pub done: AtomicU64,
    /// How often it was not, since too much was under way.
    pub skipped: AtomicU64,
}

/// One request in the hands of a rule.
#[derive(Debug)]
pub struct Held<T>(Arc<Active<T>>);

impl<T> Active<T> {
    fn new(rule: T) -> Self {
        Self { rule, active: AtomicU32::new(0), done: AtomicU64::new(0), skipped: AtomicU64::new(0) }
    }

    /// Takes one in, unless there are as many as there may be.
    pub fn hold(self: &Arc<Self>, most: u32) -> Option<Held<T>> {
        if self.active.fetch_add(1, Relaxed) >= most {
            self.active.fetch_sub(1, Relaxed);
            self.skipped.fetch_add(1, Relaxed);
            return None;
        }
        self.done.fetch_add(1, Relaxed);
        Some(Held(self.clone()))
    }

    /// How many it has now.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// What a switch is turned by: now, by both clocks; and what of the node guards share.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The node's own clock.
    pub now: Instant,
    /// The wall's.
    pub wall: WallTime,
    /// How many nodes there are, for quotas that have no share yet.
    pub members: u32,
    /// Memory for the values limits tell apart.
    pub keys: &'a Arc<KeyBudget>,
}

impl Force {
    /// Makes what the layers say, out of what was in force before.
    ///
    /// # Errors
    /// Which field contradicts another layer's.
    pub fn new(layers: &Layers<'_>, before: Option<&Force>, at: Moment<'_>) -> Result<Self, Problem> {
        let routes = layers.service.map_or(&[][..], |document| &document.routes);
        let old = before.map(|before| &*before.service);
        let whole = layers.service()?.sections;
        let mut meters = Meters::new();
        relate(&whole, before, &mut meters);
        for place in 0..routes.len() {
            relate(&layers.route(place)?.sections, before, &mut meters);
        }
        let service = Arc::new(Scope::new(None, whole, old, |_| true, None, at).metered(&meters));
        let made = routes.iter().enumerate().map(|(place, route)| {
            let name = &route.matching.name;
            let old = before.and_then(|before| before.routes.iter().find(|(matching, _)| matching.name == *name));
            let own = |section: &str| route.sections.contains_key(section);
            let sections = layers.route(place)?.sections;
            let scope =
                Scope::new(Some(name.clone()), sections, old.map(|(_, scope)| &**scope), own, Some(&service), at)
                    .metered(&meters);
            Ok((route.matching.clone(), Arc::new(scope)))
        });
        let routes = made.collect::<Result<_, Problem>>()?;
        Ok(Self { service, routes, meters })
    }

    /// What is in force for a request. Where a service has no routes, this is a look at an empty list.
    pub fn scope(&self, asked: impl Fn(&RouteMatch) -> bool) -> &Arc<Scope> {
        self.routes.iter().find(|(matching, _)| asked(matching)).map_or(&self.service, |(_, scope)| scope)
    }

    /// All scopes, the service's first.
    pub fn scopes(&self) -> impl Iterator<Item = &Arc<Scope>> {
        std::iter::once(&self.service).chain(self.routes.iter().map(|(_, scope)| scope))
    }
}

/// Makes the meters that a scope's limits are related to, or takes over those there were. That such a route is there, the
/// document has been asked.
fn relate(sections: &Sections, before: Option<&Force>, meters: &mut Meters) {
    for limit in &sections.limit {
        let Some(name) = &limit.related else { continue };
        let key = (name.clone(), limit.per_ms);
        let former = before.and_then(|before| before.meters.get(&key)).cloned();
        meters
            .entry(key)
            .or_insert_with(|| former.unwrap_or_else(|| Arc::new(Meter::new(Duration::from_millis(limit.per_ms)))));
    }
}

/// A guard for `wanted`: the service's where the route has no word of its own, the former one where nothing changed.
fn guard<S: PartialEq, G>(
    wanted: Option<&S>,
    shared: Option<Option<&Arc<G>>>,
    before: Option<(&Option<S>, &Option<Arc<G>>)>,
    make: impl Fn(&S) -> G,
) -> Option<Arc<G>> {
    if let Some(shared) = shared {
        return shared.cloned();
    }
    let wanted = wanted?;
    match before {
        Some((Some(settings), Some(guard))) if settings == wanted => Some(guard.clone()),
        _ => Some(Arc::new(make(wanted))),
    }
}

impl Scope {
    /// `own` says which sections the layer of this scope has; all others are those of `service`, if there is one.
    fn new(
        route: Option<String>,
        sections: Sections,
        before: Option<&Scope>,
        own: impl Fn(&str) -> bool,
        service: Option<&Arc<Scope>>,
        at: Moment<'_>,
    ) -> Self {
        let shared = |section: &str| service.filter(|_| !own(section));
        macro_rules! guard {
            ($section:ident, $type:ident, $settings:ident) => {
                guard(
                    sections.$section.as_ref(),
                    shared(stringify!($section)).map(|service| service.$section.as_ref()),
                    before.map(|before| (&before.sections.$section, &before.$section)),
                    |settings: &$settings| $type::new(settings),
                )
            };
        }
        let shed = guard!(shed, Shed, ShedSettings);
        let bulkhead = guard!(bulkhead, Bulkhead, BulkheadSettings);
        let concurrency = guard!(concurrency, Concurrency, ConcurrencySettings);
        let heard = |section: &str, is_there: bool| {
            shed.is_some() && is_there && (shared("shed").is_none() || shared(section).is_some())
        };
        let heard = Heard {
            bulkhead: heard("bulkhead", bulkhead.is_some()),
            concurrency: heard("concurrency", concurrency.is_some()),
        };
        let circuit = guard!(circuit, Circuits, CircuitSettings);
        if let Some(circuit) = circuit.as_ref().filter(|_| shared("circuit").is_none()) {
            let left = sections.degrade.until.map(|until| until.saturating_sub(at.wall.0));
            // What is forced open is refused before its circuit is asked (`forced_open`): a route that has switched itself
            // back shares the circuit, and is not to meet the service's switch there.
            let drives = sections.degrade.mode != Mode::ForceOpen && left != Some(0);
            let mode = if drives { sections.degrade.mode } else { Mode::Auto };
            let until = left.map(|ms| Instant(at.now.0.saturating_add(ms.saturating_mul(1_000))));
            circuit.switch(mode, until);
        }
        let inherited = service.map_or(0, |service| service.sections.limit.len());
        let limits: Vec<Arc<Limit>> = sections
            .limit
            .iter()
            .enumerate()
            .map(|(i, settings)| {
                let same = |limit: &&Arc<Limit>| limit.settings() == settings;
                let of_service =
                    service.filter(|_| i < inherited).and_then(|service| service.limits.get(i)).filter(same);
                let former = || before.and_then(|before| before.limits.iter().find(same));
                of_service.or_else(former).cloned().unwrap_or_else(|| Arc::new(Limit::within(settings, at.keys)))
            })
            .collect();
        let quotas = sections.quota.iter().map(|settings| {
            let known = service.into_iter().map(|service| &**service).chain(before).flat_map(|scope| &scope.quotas);
            // The service's own, or the one it was before.
            let found = { known }.find(|quota| quota.settings() == settings).cloned();
            found.unwrap_or_else(|| Arc::new(Quota::new(route.as_deref(), settings, at.members)))
        });
        let quotas = quotas.collect();
        let mut scope = Self {
            failures: Failures::new(&sections.failure),
            callers: sections.callers.as_ref().map(List::new),
            // Whoever keeps what was made of it goes by its address, and the breakers belong to that. The service's
            // first: after an edit that concerns all, all routes share one again.
            balance: service
                .map(|service| &**service)
                .into_iter()
                .chain(before)
                .find(|other| *other.balance == sections.balance && other.sections.breaker == sections.breaker)
                .map_or_else(|| Arc::new(sections.balance.clone()), |other| other.balance.clone()),
            faults: active(
                &sections.fault,
                before.map(|before| &before.faults),
                service.map(|service| &service.faults),
            ),
            mirrors: active(
                &sections.mirror,
                before.map(|before| &before.mirrors),
                service.map(|service| &service.mirrors),
            ),
            route,
            sections,
            shed,
            heard,
            bulkhead,
            concurrency,
            circuit,
            limits,
            related: Vec::new(),
            watched: Vec::new(),
            quotas,
            is_guarded: false,
        };
        scope.is_guarded = scope.callers.is_some()
            || scope.shed.is_some()
            || scope.bulkhead.is_some()
            || scope.concurrency.is_some()
            || scope.circuit.is_some()
            || !scope.limits.is_empty()
            || !scope.quotas.is_empty()
            || !scope.faults.is_empty()
            || !scope.mirrors.is_empty()
            || scope.sections.degrade.mode == Mode::ForceOpen
            || scope.sections.tolerate.mode == Tolerate::Failback;
        scope
    }

    /// With the meters of those its limits are related to, and of those related to it.
    fn metered(mut self, meters: &Meters) -> Self {
        let meter = |limit: &Arc<Limit>| {
            let settings = limit.settings();
            meters.get(&(settings.related.clone()?, settings.per_ms)).cloned()
        };
        self.related = self.limits.iter().map(meter).collect();
        let own = meters.iter().filter(|((name, _), _)| self.route.as_ref() == Some(name));
        self.watched = own.map(|(_, meter)| meter.clone()).collect();
        self.is_guarded |= !self.watched.is_empty();
        self
    }

    /// Until when everything of this class is refused by hand; `Some(None)` is without an end.
    pub fn forced_open(&self, class: Criticality, wall: WallTime) -> Option<Option<Duration>> {
        let switch = &self.sections.degrade;
        let concerns =
            switch.mode == Mode::ForceOpen && (switch.criticality.is_empty() || switch.criticality.contains(&class));
        let left_ms = switch.until.map(|until| until.saturating_sub(wall.0));
        (concerns && left_ms != Some(0)).then(|| left_ms.map(Duration::from_millis))
    }

    /// What a rule is called to callers: those of the service as a whole the same from every route; limits and quotas are
    /// named by themselves.
    pub fn rule(&self, guard: Guard, rule: &str) -> String {
        match &self.route {
            Some(route) if guard != Guard::Rate && guard != Guard::Quota => format!("{route}/{rule}"),
            _ => rule.to_owned(),
        }
    }

    /// How much a request matters.
    pub fn class(&self, asked: &Asked<'_>) -> Criticality {
        let classes = &self.sections.classes;
        let said = asked.fields.field(&classes.header).and_then(|value| std::str::from_utf8(value).ok());
        said.and_then(|said| said.parse().ok()).unwrap_or(classes.default)
    }
}

/// Rules in the hands of which requests may be: the service's or the former ones where they are the same.
fn active<T: Clone + PartialEq>(
    rules: &[T],
    before: Option<&Vec<Arc<Active<T>>>>,
    service: Option<&Vec<Arc<Active<T>>>>,
) -> Vec<Arc<Active<T>>> {
    let known = || service.into_iter().chain(before).flatten();
    let same = |rule: &T| known().find(|known| known.rule == *rule).cloned();
    rules.iter().map(|rule| same(rule).unwrap_or_else(|| Arc::new(Active::new(rule.clone())))).collect()
}

/// What a limit tells requests apart by; empty where the request has no such thing.
pub fn value_of<'a>(by: &LimitBy, asked: &Asked<'a>) -> &'a [u8] {
    let found = match by {
        LimitBy::All => None,
        LimitBy::Caller => Some(asked.service.unwrap_or(asked.node).as_bytes()),
        LimitBy::Method => Some(asked.method.as_bytes()),
        LimitBy::Path => Some(bare(asked.path).as_bytes()),
        LimitBy::Header(name) => asked.fields.field(name),
        LimitBy::Query(name) => pair(asked.path.split_once('?').map_or("", |(_, query)| query), '&', name),
        LimitBy::Cookie(name) => {
            let cookies = asked.fields.field("cookie").and_then(|value| std::str::from_utf8(value).ok());
            pair(cookies.unwrap_or_default(), ';', name)
        }
    };
    found.unwrap_or_default()
}

fn bare(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

/// The value of `name` in `a=b&c=d` (or `a=b; c=d`), as it is written.
fn pair<'a>(text: &'a str, between: char, name: &str) -> Option<&'a [u8]> {
    let mut pairs = text.split(between).filter_map(|pair| pair.trim_start().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::Document;
    use super::*;

    #[test]
    fn after_an_edit_that_concerns_all_routes_they_share_one_way_to_balance() {
        let node = toml::Table::new();
        let keys = Arc::new(KeyBudget::of(1_000));
        let at = Moment { now: Instant(1), wall: WallTime(1), members: 1, keys: &keys };
        let routes = "[[route]]\npath = \"/a\"\n[[route]]\npath = \"/b\"\n";
        let mut force: Option<Force> = None;
        for percent in [10, 20, 30] {
            let text = format!("[balance]\npanic_percent = {percent}\n{routes}");
            let document = Document::parse(&text).unwrap();
            let layers = Layers { node: &node, mesh: None, service: Some(&document) };
            let next = Force::new(&layers, force.as_ref(), at).unwrap();
            assert!(next.scopes().all(|scope| Arc::ptr_eq(&scope.balance, &next.service.balance)), "{percent}");
            force = Some(next);
        }
    }

    #[test]
    fn what_all_limits_of_a_node_tell_apart_is_bounded_and_given_back() {
        let (node, keys) = (toml::Table::new(), Arc::new(KeyBudget::of(1_000)));
        let at = Moment { now: Instant(1), wall: WallTime(1), members: 1, keys: &keys };
        let force = |max_keys: u32| {
            let text = format!("[[limit]]\nby = \"caller\"\ncount = 1\nmax_keys = {max_keys}\n");
            let document = Document::parse(&text).unwrap();
            Force::new(&Layers { node: &node, mesh: None, service: Some(&document) }, None, at).unwrap()
        };
        let places = |force: &Force| force.service.limits[0].snapshot(Instant(1)).keys;
        let (first, second) = (force(800), force(800));
        assert_eq!((places(&first), places(&second)), (Some(800), Some(200)));
        let third = force(800);
        assert_eq!((places(&third), keys.used(), keys.short()), (Some(KeyBudget::LEAST.into()), 1_064, 2));
        drop((first, third));
        assert_eq!(places(&force(800)), Some(800));
        assert_eq!(keys.used(), 200);
    }

    #[test]
    fn a_route_that_switches_itself_back_is_not_refused_with_its_service() {
        let (node, keys) = (toml::Table::new(), Arc::new(KeyBudget::of(0)));
        let at = Moment { now: Instant(1), wall: WallTime(1), members: 1, keys: &keys };
        let text = "[circuit]\n[degrade]\nmode = \"force_open\"\n[[route]]\npath = \"/pay\"\ndegrade.mode = \"auto\"\n";
        let document = Document::parse(text).unwrap();
        let force = Force::new(&Layers { node: &node, mesh: None, service: Some(&document) }, None, at).unwrap();
        let (service, route) = (&force.service, &force.routes[0].1);
        let open = |scope: &Scope| scope.forced_open(Criticality::Critical, at.wall);
        assert_eq!((open(service), open(route)), (Some(None), None));
        assert!(route.circuit.as_ref().unwrap().of(|| "GET").admit(at.now, 0).is_ok(), "nor by the circuit they share");
    }
}
