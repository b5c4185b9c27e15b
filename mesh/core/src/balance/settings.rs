//! How the requests of a service are shared out, as it is written in a document.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ranges::within;

/// How the instance for a request is chosen. The defaults are what happens when nobody has said anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalanceSettings {
    /// By what an instance is chosen; default `peak_ewma`.
    pub algorithm: Algorithm,
    /// How many instances are drawn and compared by `least_requests` and `shortest_response`. 2 to 16, or 0 for all of
    /// them; default 2 (Envoy). All is what Dubbo does: it costs time with many instances, and many callers who all see
    /// the same least busy one all go there.
    pub choices: u32,
    /// What of a request decides where `ring_hash` and `maglev` send it; default `"source"`. A request without it (no
    /// such header) is drawn by weight.
    pub key: HashOn,
    /// With a hash: how many requests in flight an instance may have, in percent of what it would have if all had their
    /// share, before the next in line is taken. 101 to 10,000; 0 (default) for no bound (Mirrokni et al., 2016; Envoy's
    /// `hash_balance_factor`, HAProxy's `hash-balance-factor`, which suggest 150).
    pub bounded_load_percent: u32,
    /// How long a new instance, or one that was broken, takes to get its full share, in milliseconds. 0 to 3,600,000;
    /// default 0, at once. An instance that was there when this node met the service is not new.
    pub slow_start_ms: u64,
    /// The share of its weight a new instance begins with, in percent. 1 to 100; default 10 (Envoy).
    pub slow_start_min_percent: u32,
    /// An instance whose answers fail, or tell callers to slow down, gets its weight times the share of its answers of
    /// about the last 10 s that do not, but at least so many percent of its weight. 1 to 100, where 100 is not to look at
    /// it; default 10.
    pub health_min_percent: u32,
    /// Which instances come first, by where they are; default `zone`.
    pub locality: Locality,
    /// An instance is counted as so many percent of itself when it is asked whether the near ones can take all: with 140
    /// (the default, Envoy's) requests begin to go elsewhere when fewer than 1 / 1.4, that is 71 %, of the near ones are
    /// usable. 100 to 1,000.
    pub overprovisioning_percent: u32,
    /// When less than so many percent of the instances of a place are usable, all that may still answer are used, those
    /// in doubt and those broken too: better some failures than all load on the few that are left. 0 to 100; default 0,
    /// that is when none is left (Envoy: 50).
    pub panic_percent: u32,
    /// Only these instances, if given.
    pub subset: Subset,
    /// How `prequal` goes about it.
    pub prequal: PrequalSettings,
}

/// By what an instance is chosen. All go by weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Drawn by weight.
    Random,
    /// In turn, the heavier more often, evenly spread (smooth weighted round robin).
    RoundRobin,
    /// Of a few drawn, the one with the fewest requests in flight.
    LeastRequests,
    /// Of two drawn, the one with the lower latency (peak EWMA) times requests in flight.
    #[default]
    PeakEwma,
    /// Of a few drawn, the one with the lower mean latency of successful answers times requests in flight (Dubbo).
    ShortestResponse,
    /// The same key to the same instance; a change of the instances moves few keys (ketama).
    RingHash,
    /// The same with a table (Maglev): quicker to choose from, shares more even, a few more keys moved by a change.
    Maglev,
    /// By reports of requests in flight and latency (Prequal): the quickest of those not busy. The sidecar's reports are
    /// of its own requests, one with each answer; it does not ask instances, and knows nothing of other callers.
    Prequal,
}

/// What of a request is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashOn {
    /// Who calls: the node, and the calling service where it is known.
    #[default]
    Source,
    /// The path, without the query.
    Path,
    /// A header, by its name.
    Header(String),
    /// A cookie, by its name.
    Cookie(String),
    /// A parameter of the query, by its name.
    Query(String),
}

/// Which instances come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Locality {
    /// Those of this node's zone, then those of its region, then all others: as much as each can take, by the share of
    /// its instances that are usable.
    #[default]
    Zone,
    /// As `zone`, and no more stays in the zone than its part of all instances can take if every node of the mesh calls
    /// alike (Envoy's zone aware routing): a zone with many callers and few instances is not overrun.
    ZoneByCapacity,
    /// Where an instance is does not matter.
    Anywhere,
}

/// Which instances of a service are meant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Subset {
    /// Those that have all these tags. At most 16.
    pub tags: Vec<String>,
    /// Those of this version.
    pub version: Option<String>,
    /// Those with all these metadata. At most 16.
    pub metadata: BTreeMap<String, String>,
    /// What if there are none that may take traffic; default `any`.
    pub otherwise: Otherwise,
}

/// Where requests go when there is no instance of those that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Otherwise {
    /// To any instance.
    #[default]
    Any,
    /// To those without any tag (Dubbo's and Nacos's base).
    Untagged,
    /// Nowhere: they are refused.
    Nowhere,
}

/// Prequal's parameters (Wydrowski et al., NSDI 2024); the defaults are the paper's, but for `hot_percent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrequalSettings {
    /// How many reports are kept to choose from. 2 to 64; default 16.
    pub pool: u32,
    /// How old a report may be, in milliseconds. 1 to 60,000; default 1,000.
    pub max_age_ms: u64,
    /// An instance is hot when it has more requests in flight than this percentage of the reports say. 0 (go by requests
    /// in flight alone) to 100 (by latency alone); default 60. The paper recommends 60 to 90; near its limits a service fares
    /// best with the lowest of these, at no cost below.
    pub hot_percent: u32,
    /// How many instances are asked for a report per 100 requests, beside the reports that come with answers: decides how
    /// often one report is used. 100 to 1,000 (with fewer it is visibly worse); default 300. The sidecar does not ask; see
    /// [`Algorithm::Prequal`].
    pub probes_percent: u32,
}

impl Default for BalanceSettings {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            choices: 2,
            key: HashOn::default(),
            bounded_load_percent: 0,
            slow_start_ms: 0,
            slow_start_min_percent: 10,
            health_min_percent: 10,
            locality: Locality::default(),
            overprovisioning_percent: 140,
            panic_percent: 0,
            subset: Subset::default(),
            prequal: PrequalSettings::default(),
        }
    }
}

impl Default for PrequalSettings {
    fn default() -> Self {
        Self { pool: 16, max_age_ms: 1_000, hot_percent: 60, probes_percent: 300 }
    }
}

/// The most tags or metadata entries a subset names.
const MAX_NAMED: usize = 16;
/// The longest name of a header, cookie or parameter, in bytes.
const MAX_NAME: usize = 128;

impl BalanceSettings {
    /// What is out of its range, if anything.
    ///
    /// # Errors
    /// A sentence for the operator: the field, its value, its range.
    pub fn check(&self) -> Result<(), String> {
        let prequal = &self.prequal;
        within(&[
            ("slow_start_ms", self.slow_start_ms, 0, 3_600_000),
            ("slow_start_min_percent", u64::from(self.slow_start_min_percent), 1, 100),
            ("health_min_percent", u64::from(self.health_min_percent), 1, 100),
            ("overprovisioning_percent", u64::from(self.overprovisioning_percent), 100, 1_000),
            ("panic_percent", u64::from(self.panic_percent), 0, 100),
            ("prequal.pool", u64::from(prequal.pool), 2, 64),
            ("prequal.max_age_ms", prequal.max_age_ms, 1, 60_000),
            ("prequal.hot_percent", u64::from(prequal.hot_percent), 0, 100),
            ("prequal.probes_percent", u64::from(prequal.probes_percent), 100, 1_000),
            ("subset.tags", self.subset.tags.len() as u64, 0, MAX_NAMED as u64),
            ("subset.metadata", self.subset.metadata.len() as u64, 0, MAX_NAMED as u64),
        ])?;
        if self.choices != 0 && !(2..=16).contains(&self.choices) {
            return Err(format!("choices is {}, allowed are 2 to 16, and 0 for all", self.choices));
        }
        let bound = self.bounded_load_percent;
        if bound != 0 && !(101..=10_000).contains(&bound) {
            return Err(format!("bounded_load_percent is {bound}, allowed are 101 to 10000, and 0 for no bound"));
        }
        self.key.check()
    }
}

impl HashOn {
    fn check(&self) -> Result<(), String> {
        let (field, name) = match self {
            Self::Source | Self::Path => return Ok(()),
            Self::Header(name) => ("key.header", name),
            Self::Cookie(name) => ("key.cookie", name),
            Self::Query(name) => ("key.query", name),
        };
        // A token (RFC 9110, section 5.6.2), which is what header and cookie names are; parameters with other bytes are
        // named as they stand in the query, escaped, which is a token too.
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(token) {
            return Err(format!("{field} is {name:?}, which is no name (1 to {MAX_NAME} letters, digits and -_.)"));
        }
        Ok(())
    }
}

impl Subset {
    /// Whether all instances are meant.
    pub fn is_everything(&self) -> bool {
        self.tags.is_empty() && self.version.is_none() && self.metadata.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_ranges() {
        assert_eq!(BalanceSettings::default().check(), Ok(()));
    }

    #[test]
    fn a_document_says_what_it_changes_and_nothing_else() {
        let read = |json: &str| serde_json::from_str::<BalanceSettings>(json).unwrap();
        let maglev = read(r#"{"algorithm": "maglev", "key": {"header": "x-user"}, "bounded_load_percent": 150}"#);
        assert_eq!((maglev.algorithm, &maglev.key), (Algorithm::Maglev, &HashOn::Header("x-user".into())));
        assert_eq!(read(r#"{"key": "path"}"#).key, HashOn::Path);
        let canary = read(r#"{"subset": {"tags": ["canary"], "otherwise": "nowhere"}}"#);
        assert!(!canary.subset.is_everything() && canary.subset.otherwise == Otherwise::Nowhere);
        let everything = BalanceSettings { subset: canary.subset.clone(), ..BalanceSettings::default() };
        assert_eq!(canary, everything);
    }

    #[test]
    fn what_is_out_of_range_or_unknown_is_named() {
        for (json, what) in [
            (r#"{"choices": 1}"#, "choices is 1, allowed are 2 to 16, and 0 for all"),
            (r#"{"bounded_load_percent": 100}"#, "bounded_load_percent is 100"),
            (r#"{"health_min_percent": 0}"#, "health_min_percent is 0, allowed are 1 to 100"),
            (r#"{"overprovisioning_percent": 99}"#, "overprovisioning_percent is 99"),
            (r#"{"prequal": {"pool": 1}}"#, "prequal.pool is 1, allowed are 2 to 64"),
            (r#"{"key": {"header": "a b"}}"#, "key.header is \"a b\""),
            (r#"{"key": {"cookie": ""}}"#, "key.cookie is \"\""),
        ] {
            let error = serde_json::from_str::<BalanceSettings>(json).unwrap().check().unwrap_err();
            assert!(error.contains(what), "{json}: {error}");
        }
        for json in [r#"{"algorthm": "random"}"#, r#"{"algorithm": "best"}"#, r#"{"subset": {"tag": "a"}}"#] {
            assert!(serde_json::from_str::<BalanceSettings>(json).is_err(), "{json}");
        }
    }
}
