//! `[[service]]`: the services of this host as its settings file declares them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use starling_core::id::{InstanceId, InstanceKey, Namespace, NodeId, ServiceKey, ServiceName, Zone};
use starling_core::registry::{Address, Check, CheckKind, DEFAULT_WEIGHT, Details, Instance, Protocol, Registration};

use super::duration::HumanDuration;

/// One `[[service]]`: registered when the node starts, gone when it is no longer in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSettings {
    /// The name callers use: `http://NAME.mesh/`.
    pub name: ServiceName,
    /// Its namespace. Default "default".
    #[serde(default)]
    pub namespace: Namespace,
    /// The instance's id, unique in the service. Default: `NODE:PORT`.
    #[serde(default)]
    pub id: Option<InstanceId>,
    /// Where it listens, as seen from this host. Default 127.0.0.1.
    #[serde(default = "loopback")]
    pub address: String,
    /// Its port.
    pub port: u16,
    /// What it speaks: http, http2, grpc or tcp. Default http.
    #[serde(default)]
    pub protocol: Protocol,
    /// Its zone. Default: the node's.
    #[serde(default)]
    pub zone: Option<Zone>,
    /// The application's version, free text.
    #[serde(default)]
    pub version: String,
    /// Its share of traffic relative to its siblings, 0 to 1,000,000; 0 takes none. Default 100.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Words callers can select by.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Free key/value pairs.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// How the node finds out whether it works. Without: it counts as working while the node does.
    #[serde(default)]
    pub check: Option<CheckSettings>,
}

/// `[service.check]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckSettings {
    /// http (GET `path`), tcp (connect) or ttl (the application renews by itself).
    pub kind: CheckWord,
    /// For http: the path to GET; 200 to 299 is good. Default "/".
    #[serde(default)]
    pub path: Option<String>,
    /// Time between probes, or how long a renewal lasts; 100ms to 1h. Default 5s, ttl 15s.
    #[serde(default)]
    pub interval: Option<HumanDuration>,
    /// How long one probe may take. Default 2s.
    #[serde(default)]
    pub timeout: Option<HumanDuration>,
    /// Bad probes in a row until it counts as failing. Default 3.
    #[serde(default)]
    pub failures_to_fail: Option<u32>,
    /// Good probes in a row until it counts as passing again. Default 1.
    #[serde(default)]
    pub successes_to_pass: Option<u32>,
    /// Remove the instance after failing this long. Default: never.
    #[serde(default)]
    pub deregister_after: Option<HumanDuration>,
}

/// The kind of a check, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckWord {
    /// GET a path.
    Http,
    /// Open a connection.
    Tcp,
    /// Wait for renewals.
    Ttl,
}

impl ServiceSettings {
    /// What the node registers for it.
    ///
    /// # Errors
    /// A sentence that names the field that is wrong.
    pub fn registration(&self, node: &NodeId, node_zone: &Zone) -> Result<Registration, String> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => format!("{node}:{}", self.port).parse().map_err(|error| format!("{error}"))?,
        };
        let service = ServiceKey { namespace: self.namespace.clone(), service: self.name.clone() };
        let instance = Instance {
            protocol: self.protocol,
            zone: self.zone.clone().unwrap_or_else(|| node_zone.clone()),
            version: self.version.as_str().into(),
            weight: self.weight,
            declared: true,
            details: Details::new(
                self.tags.iter().map(String::as_str).collect(),
                self.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
                self.check.as_ref().map(CheckSettings::check).transpose()?,
            ),
            ..Instance::at(Address { host: self.address.as_str().into(), port: self.port })
        };
        instance.check_limits()?;
        Ok(Registration { key: InstanceKey { service, instance: id }, instance })
    }
}

impl CheckSettings {
    fn check(&self) -> Result<Check, String> {
        let kind = match (self.kind, &self.path) {
            (CheckWord::Http, path) => CheckKind::Http { path: path.clone().unwrap_or_else(|| "/".into()) },
            (CheckWord::Tcp, None) => CheckKind::Tcp,
            (CheckWord::Ttl, None) => CheckKind::Ttl,
            (_, Some(_)) => return Err("check.path is only for kind = \"http\"; remove it or change the kind".into()),
        };
        let usual = Check::new(kind.clone());
        Ok(Check {
            kind,
            interval_ms: self.interval.map_or(usual.interval_ms, HumanDuration::as_millis),
            timeout_ms: self.timeout.map_or(usual.timeout_ms, HumanDuration::as_millis),
            failures_to_fail: self.failures_to_fail.unwrap_or(usual.failures_to_fail),
            successes_to_pass: self.successes_to_pass.unwrap_or(usual.successes_to_pass),
            deregister_after_ms: self.deregister_after.map(HumanDuration::as_millis),
        })
    }
}

fn loopback() -> String {
    "127.0.0.1".into()
}

fn default_weight() -> u32 {
    DEFAULT_WEIGHT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(toml: &str) -> Result<Registration, String> {
        let service: ServiceSettings = toml::from_str(toml).map_err(|error| error.message().to_owned())?;
        service.registration(&"node-a".parse().unwrap(), &"west".parse().unwrap())
    }

    #[test]
    fn two_lines_declare_a_service() {
        let registration = registration("name = \"Orders\"\nport = 8080").unwrap();
        assert_eq!(registration.key.to_string(), "default/orders/node-a:8080");
        assert_eq!(registration.instance.address.to_string(), "127.0.0.1:8080");
        assert_eq!(registration.instance.zone.as_str(), "west");
        assert!(registration.instance.declared && registration.instance.details.check().is_none());
    }

    #[test]
    fn a_check_takes_human_durations_and_usual_values_for_the_rest() {
        let text = "name = \"o\"\nport = 1\n[check]\nkind = \"http\"\npath = \"/up\"\ninterval = \"500ms\"";
        let registration = registration(text).unwrap();
        let check = registration.instance.details.check().unwrap();
        assert_eq!(check.kind, CheckKind::Http { path: "/up".into() });
        assert_eq!((check.interval_ms, check.timeout_ms, check.failures_to_fail), (500, 2_000, 3));
    }

    #[test]
    fn a_wrong_declaration_names_the_field() {
        let errors = [
            ("name = \"o\"\nport = 0", "port"),
            ("name = \"o o\"\nport = 1", "service name"),
            ("name = \"o\"\nport = 1\nweight = 2000000", "weight"),
            ("name = \"o\"\nport = 1\n[check]\nkind = \"tcp\"\npath = \"/\"", "check.path"),
            ("name = \"o\"\nport = 1\n[check]\nkind = \"tcp\"\ninterval = \"1ms\"", "interval"),
            ("name = \"o\"\nport = 1\n[check]\nkind = \"tcp\"\ninterval = \"5\"", "no unit"),
            ("name = \"o\"", "port"),
        ];
        for (text, field) in errors {
            let error = registration(text).unwrap_err();
            assert!(error.contains(field), "{text:?}: {error}");
        }
    }
}
