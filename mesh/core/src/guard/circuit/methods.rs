//! The circuits of a scope: one for all of its requests, or one for each method of a service.
//!
//! Methods are what callers say, so how many get a circuit of their own is bounded: whoever comes later, or is called by
//! a very long name, shares the one for all the rest. A method is looked up without a lock in a table twice as large as it
//! may be full; a name is written into it once and stays as long as the settings do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::{Circuit, CircuitPer, CircuitSettings, CircuitSnapshot, Mode};
use crate::time::Instant;

/// The longest name of a method that gets a circuit of its own, in bytes: paths of gRPC are below it.
const MAX_NAME_BYTES: usize = 256;

/// One circuit, or as many as there are methods.
#[derive(Debug)]
pub struct Circuits {
    settings: CircuitSettings,
    /// For all; where each method has its own, for those without.
    rest: Arc<Circuit>,
    /// Empty where there is one for all; a power of two otherwise.
    table: Box<[OnceLock<Method>]>,
    /// How many of the table are taken; held by whoever writes into it, or drives all.
    taken: Mutex<u32>,
}

#[derive(Debug)]
struct Method {
    name: Box<str>,
    circuit: Arc<Circuit>,
}

/// All that can be shown of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CircuitsSnapshot {
    /// The one for all, or for methods that have none of their own.
    #[serde(flatten)]
    pub rest: CircuitSnapshot,
    /// Each method's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub methods: BTreeMap<String, CircuitSnapshot>,
}

impl Circuits {
    /// Closed ones.
    pub fn new(settings: &CircuitSettings) -> Self {
        let places = match settings.per {
            CircuitPer::All => 0,
            CircuitPer::Method => 2 * settings.max_methods.next_power_of_two(),
        };
        Self {
            settings: *settings,
            rest: Arc::new(Circuit::new(settings)),
            table: (0..places).map(|_| OnceLock::new()).collect(),
            taken: Mutex::new(0),
        }
    }

    /// The circuit for a request; what its method is called is asked only where that matters.
    pub fn of<'a>(&self, method: impl FnOnce() -> &'a str) -> &Arc<Circuit> {
        if self.table.is_empty() {
            return &self.rest;
        }
        let name = method();
        if name.len() > MAX_NAME_BYTES {
            return &self.rest;
        }
        let hash = xxh3_64(name.as_bytes()) as usize;
        self.find(hash, name).or_else(|| self.begin(hash, name)).unwrap_or(&self.rest)
    }

    /// Drives all of them by hand, those of methods that are yet to come included.
    pub fn switch(&self, mode: Mode, until: Option<Instant>) {
        let _taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.rest.switch(mode, until);
        self.methods().for_each(|method| method.circuit.switch(mode, until));
    }

    /// What they are doing; takes nothing.
    pub fn snapshot(&self, now: Instant) -> CircuitsSnapshot {
        let methods = self.methods().map(|method| (method.name.to_string(), method.circuit.snapshot(now)));
        CircuitsSnapshot { rest: self.rest.snapshot(now), methods: methods.collect() }
    }

    fn methods(&self) -> impl Iterator<Item = &Method> {
        self.table.iter().filter_map(OnceLock::get)
    }

    /// Where a name is, or would be: at its place or behind it, up to the first that is free. There always is one.
    fn places(&self, hash: usize) -> impl Iterator<Item = &OnceLock<Method>> {
        let mask = self.table.len() - 1;
        (hash..hash + self.table.len()).map(move |place| &self.table[place & mask])
    }

    fn find(&self, hash: usize, name: &str) -> Option<&Arc<Circuit>> {
        let mut known = self.places(hash).map_while(OnceLock::get);
        known.find(|method| *method.name == *name).map(|method| &method.circuit)
    }

    /// A circuit for a method that has none, unless there are as many as there may be.
    fn begin(&self, hash: usize, name: &str) -> Option<&Arc<Circuit>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meanwhile) = self.find(hash, name) {
            return Some(meanwhile);
        }
        if *taken >= self.settings.max_methods {
            return None;
        }
        let free = self.places(hash).find(|place| place.get().is_none())?;
        *taken += 1;
        let circuit = Circuit::new(&self.settings);
        circuit.drive_as(&self.rest);
        Some(&free.get_or_init(|| Method { name: name.into(), circuit: Arc::new(circuit) }).circuit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Outcome;
    use crate::guard::circuit::{CircuitState, WindowKind};

    const NOW: Instant = Instant(1_000_000);

    fn circuits(max_methods: u32) -> Circuits {
        let settings = CircuitSettings {
            per: CircuitPer::Method,
            max_methods,
            consecutive_failures: 3,
            ..CircuitSettings::default()
        };
        assert_eq!(settings.check(), Ok(()));
        Circuits::new(&settings)
    }

    fn fail(circuits: &Circuits, method: &str) {
        for _ in 0..3 {
            circuits.of(|| method).admit(NOW, 0).unwrap().end(Outcome::Failure, None, NOW, 0);
        }
    }

    #[test]
    fn a_method_that_fails_is_refused_and_no_other() {
        let circuits = circuits(10);
        fail(&circuits, "POST");
        assert!(circuits.of(|| "POST").admit(NOW, 0).is_err());
        assert!(circuits.of(|| "GET").admit(NOW, 0).is_ok());
        let seen = circuits.snapshot(NOW);
        let states: Vec<_> = seen.methods.iter().map(|(name, circuit)| (name.as_str(), circuit.state)).collect();
        assert_eq!(states, [("GET", CircuitState::Closed), ("POST", CircuitState::Open)]);
        assert_eq!(seen.rest.state, CircuitState::Closed);
    }

    #[test]
    fn those_beyond_the_bound_and_those_with_long_names_share_one() {
        for max_methods in [1, 5, 1_000] {
            let circuits = circuits(max_methods);
            for method in 0..2 * max_methods {
                let name = format!("/shop.Orders/{method}");
                let is_own = !Arc::ptr_eq(circuits.of(|| &name), &circuits.rest);
                assert_eq!(is_own, method < max_methods, "{name} of {max_methods}");
            }
            assert_eq!(circuits.snapshot(NOW).methods.len(), max_methods as usize);
        }
        let long = "/".repeat(MAX_NAME_BYTES + 1);
        let circuits = circuits(10);
        assert!(Arc::ptr_eq(circuits.of(|| &long), &circuits.rest));
    }

    #[test]
    fn with_one_for_all_nobody_asks_for_the_method() {
        let circuits = Circuits::new(&CircuitSettings::default());
        assert!(Arc::ptr_eq(circuits.of(|| unreachable!("it does not matter")), &circuits.rest));
    }

    #[test]
    fn the_switch_drives_those_there_are_and_those_to_come() {
        let circuits = circuits(10);
        fail(&circuits, "POST");
        circuits.switch(Mode::Disabled, None);
        fail(&circuits, "PUT");
        assert!(circuits.of(|| "POST").admit(NOW, 0).is_ok());
        assert!(circuits.of(|| "PUT").admit(NOW, 0).is_ok());
    }

    #[test]
    fn windows_of_all_methods_together_are_bounded() {
        let large = CircuitSettings {
            per: CircuitPer::Method,
            max_methods: 1_000,
            window: WindowKind::Calls,
            window_calls: 100_000,
            ..CircuitSettings::default()
        };
        assert_eq!(large.check().unwrap_err().to_string(), "max_methods is 1000, allowed are 1 to 100");
        assert_eq!(CircuitSettings { window: WindowKind::Time, ..large }.check(), Ok(()));
        assert_eq!(CircuitSettings { per: CircuitPer::All, ..large }.check(), Ok(()));
    }
}
