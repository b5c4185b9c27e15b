//! The sections of settings: which keys each has, and whether a value fits.

use serde::de::DeserializeOwned;
use starling_api::ApiSettings;
use starling_core::guard::{BreakerSettings, BudgetSettings, SystemSettings};
use starling_net::MemberSettings;
use starling_net::quic::Limits;
use starling_proxy::{Http2Settings, ProxySettings, ProxyTlsSettings};
use toml::de::{DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};

use super::known::keys_of;
use super::{LogSettings, NodeSettings, TlsSettings};

/// A table of the file, its keys, and a way to try whether a value fits.
pub(super) struct Section {
    pub(super) name: &'static str,
    /// Its keys; those of a table within are written `breaker.open_ms`.
    pub(super) keys: Vec<String>,
    pub(super) fits: fn(&Table) -> Result<(), String>,
    pub(super) fits_file: fn(Spanned<DeValue<'_>>) -> Result<(), toml::de::Error>,
}

pub(super) fn section<T: DeserializeOwned>(name: &'static str) -> Section {
    Section {
        name,
        keys: keys_of::<T>().iter().map(|key| (*key).to_owned()).collect(),
        fits: |table| T::deserialize(table.clone()).map(drop).map_err(|error| error.message().to_owned()),
        fits_file: |value| T::deserialize(ValueDeserializer::from(value)).map(drop),
    }
}

impl Section {
    /// Leaves out a key that is set elsewhere.
    pub(super) fn without(mut self, key: &str) -> Self {
        self.keys.retain(|known| known != key);
        self
    }

    /// Adds the keys of a table within the section.
    pub(super) fn within<T: DeserializeOwned>(mut self, table: &str) -> Self {
        self.keys.retain(|known| known != table);
        self.keys.extend(keys_of::<T>().iter().map(|key| format!("{table}.{key}")));
        self
    }

    pub(super) fn knows(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known == key)
    }

    /// The keys directly in the table with this prefix ("" or "breaker.").
    pub(super) fn keys_under(&self, prefix: &str) -> Vec<&str> {
        let below = self.keys.iter().filter_map(|key| key.strip_prefix(prefix));
        let mut keys: Vec<_> = below.map(|key| key.split_once('.').map_or(key, |(table, _)| table)).collect();
        keys.dedup();
        keys
    }
}

/// The sections that hold values: what the environment and flags can set too.
pub(super) fn sections() -> Vec<Section> {
    vec![
        section::<NodeSettings>("node"),
        section::<TlsSettings>("tls"),
        section::<ApiSettings>("api"),
        section::<ProxySettings>("proxy")
            .within::<BudgetSettings>("retry_budget")
            .within::<BreakerSettings>("breaker")
            .within::<SystemSettings>("system")
            .within::<ProxyTlsSettings>("tls")
            .within::<Http2Settings>("http2"),
        section::<starling_core::Settings>("gossip").without("zone"), // it is node.zone
        section::<MemberSettings>("members").without("seeds"),        // they are node.seeds
        section::<Limits>("links"),
        section::<LogSettings>("log"),
    ]
}

/// A table that holds one value: `breaker.open_ms` lies in a table of its own.
pub(super) fn nested(key: &str, value: Value) -> Table {
    match key.split_once('.') {
        Some((outer, inner)) => Table::from_iter([(outer.to_owned(), Value::Table(nested(inner, value)))]),
        None => Table::from_iter([(key.to_owned(), value)]),
    }
}

/// Lays one table over another; tables within are merged, everything else is replaced.
pub(super) fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (_, value) => drop(under.insert(key, value)),
        }
    }
}

/// `STARLING_NODE_DATA_DIR` is `data_dir` of the section `node`, `STARLING_PROXY_BREAKER_OPEN_MS` is `breaker.open_ms`
/// of `proxy`.
pub(super) fn split_variable(name: &str, sections: &[Section]) -> Option<(usize, String)> {
    let rest = name.strip_prefix("STARLING_")?.to_ascii_lowercase();
    sections.iter().enumerate().find_map(|(at, section)| {
        let key = rest.strip_prefix(section.name)?.strip_prefix('_')?;
        let known = section.keys.iter().find(|known| known.replace('.', "_") == key);
        Some((at, known.cloned().unwrap_or_else(|| key.to_owned())))
    })
}
