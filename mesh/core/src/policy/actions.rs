//! What a policy does to requests beside guarding: classes, trouble on purpose, copies, and answers in place of refusals.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::last_good::LastGoodSettings;
use crate::guard::{Criticality, Invalid};
use crate::id::ServiceKey;

/// A share of requests, in percent: `50`, or `0.1` (exact to a ten-thousandth of a percent).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// All of them.
    pub const ALL: Share = Share(1_000_000);

    /// Whether the request with this random number is in it.
    pub fn takes(self, random: u64) -> bool {
        self.0 > 0 && random % 1_000_000 < u64::from(self.0)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", f64::from(self.0) / 10_000.0)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 % 10_000 {
            0 => to.serialize_u32(self.0 / 10_000),
            _ => to.serialize_f64(f64::from(self.0) / 10_000.0),
        }
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Number;
        impl de::Visitor<'_> for Number {
            type Value = Share;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share in percent, 0 to 100")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Share, E> {
                self.visit_f64(value as f64)
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Share, E> {
                self.visit_f64(value as f64)
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Share, E> {
                if (0.0..=100.0).contains(&value) {
                    return Ok(Share((value * 10_000.0).round() as u32));
                }
                Err(E::custom(format_args!("is {value}; allowed are 0 to 100")))
            }
        }
        from.deserialize_any(Number)
    }
}

/// `[classes]`: how much a request matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Classes {
    /// The header field that says so (`critical_plus`, `critical`, `sheddable_plus`, `sheddable`), in lower case.
    /// Default `x-criticality`; another value than these counts as none.
    pub header: String,
    /// What a request is that does not say so. Default `critical`.
    pub default: Criticality,
    /// The header field that names the user, in lower case: requests of one user are shed together. Default none: each
    /// request is drawn.
    pub user_header: Option<String>,
}

impl Default for Classes {
    fn default() -> Self {
        Self { header: "x-criticality".into(), default: Criticality::default(), user_header: None }
    }
}

impl Classes {
    /// What is not what it may be, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        field_name("header", &self.header)?;
        self.user_header.as_ref().map_or(Ok(()), |name| field_name("user_header", name))
    }
}

/// `[[fault]]`: trouble made on purpose, before the request goes anywhere. Milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fault {
    /// What refusals and counters call it. Default `fault`.
    pub name: String,
    /// The share of requests it strikes, in percent. 0 to 100; default 100.
    pub percent: Share,
    /// How long the request is held up. 0 to 600,000; default 0.
    pub delay_ms: u64,
    /// The status that is answered in the place of an instance. 200 to 599; default none.
    pub abort_status: Option<u16>,
    /// The gRPC code that is answered (with HTTP status 200). 1 to 16; default none.
    pub abort_grpc: Option<u8>,
    /// The client's connection is broken off without an answer. Default false.
    pub reset: bool,
    /// How fast the response's body passes, in bytes a second. 0 (not held back) or 1 to 1,000,000,000; default 0.
    pub throttle_bytes_per_s: u64,
    /// The most requests it holds up at once; more pass untouched. 1 to 100,000; default 1,000.
    pub max_active: u32,
}

impl Default for Fault {
    fn default() -> Self {
        Self {
            name: "fault".into(),
            percent: Share::ALL,
            delay_ms: 0,
            abort_status: None,
            abort_grpc: None,
            reset: false,
            throttle_bytes_per_s: 0,
            max_active: 1_000,
        }
    }
}

impl Fault {
    /// What is not what it may be, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        rule_name(&self.name)?;
        within("delay_ms", self.delay_ms, 0, 600_000)?;
        within("max_active", self.max_active.into(), 1, 100_000)?;
        within("throttle_bytes_per_s", self.throttle_bytes_per_s, 0, 1_000_000_000)?;
        self.abort_status.map_or(Ok(()), |status| within("abort_status", status.into(), 200, 599))?;
        self.abort_grpc.map_or(Ok(()), |code| within("abort_grpc", code.into(), 1, 16))?;
        let ends = [self.abort_status.is_some(), self.abort_grpc.is_some(), self.reset];
        match ends.into_iter().filter(|set| *set).count() {
            0 if self.delay_ms == 0 && self.throttle_bytes_per_s == 0 => Err(Invalid::new(
                "delay_ms",
                0,
                "a fault that does something: delay_ms, throttle_bytes_per_s, abort_status, abort_grpc or reset",
            )),
            0 | 1 => Ok(()),
            _ => Err(Invalid::new(
                "abort_status",
                "set beside another end",
                "only one of abort_status, abort_grpc, reset",
            )),
        }
    }
}

/// `[[mirror]]`: copies of requests go to another service; nobody waits for them and their answers are dropped. Only
/// requests whose body is held in memory (`proxy.max_replay_bytes`) are copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mirror {
    /// What counters call it. Default `mirror`.
    pub name: String,
    /// The service, as `orders-next` or `pay/orders`. There is no default.
    pub service: String,
    /// The share of requests that is copied, in percent. 0 to 100; default 100.
    pub percent: Share,
    /// The most copies on their way at once; more are not made, and counted. 1 to 10,000; default 16.
    pub max_in_flight: u32,
    /// How long a copy may take. 1 to 600,000 ms; default 5,000.
    pub timeout_ms: u64,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            name: "mirror".into(),
            service: String::new(),
            percent: Share::ALL,
            max_in_flight: 16,
            timeout_ms: 5_000,
        }
    }
}

impl Mirror {
    /// What is not what it may be, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        rule_name(&self.name)?;
        named("service", &self.service)?;
        within("max_in_flight", self.max_in_flight.into(), 1, 10_000)?;
        within("timeout_ms", self.timeout_ms, 1, 600_000)
    }
}

/// `[fallback]`: what is answered instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fallback {
    /// Instead of what. Default `refused` (a guard of this sidecar said no) and `failed` (no instance answered); beside them
    /// there is `errors` (an instance answered 500, 502, 503 or 504, and is not asked again).
    pub on: Vec<When>,
    /// Another service that is asked the same, as `orders-next` or `pay/orders`; if it is refused or fails too,
    /// `last_good` and then the rest of this section say what is answered. A request whose body has gone already is not asked again.
    pub service: Option<String>,
    /// The last good answer to the same `GET`, if there is one that is not too old. Without `status`, `headers` and `body`
    /// beside it, a request for which there is none is answered as if there were no fallback. Default none is kept.
    pub last_good: Option<LastGoodSettings>,
    /// The status of the answer. 200 to 599; default 200.
    pub status: u16,
    /// Its header fields, names in lower case. Up to 32.
    pub headers: BTreeMap<String, String>,
    /// Its body; default empty. Up to 16,384 bytes.
    pub body: String,
}

/// What a fallback stands in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// A guard of this sidecar refused.
    Refused,
    /// No instance could be asked, or none answered.
    Failed,
    /// An instance answered that it cannot: 500, 502, 503 or 504 (those of RFC 5861's `stale-if-error`).
    Errors,
}

impl Default for Fallback {
    fn default() -> Self {
        Self {
            on: vec![When::Refused, When::Failed],
            service: None,
            last_good: None,
            status: 200,
            headers: BTreeMap::new(),
            body: String::new(),
        }
    }
}

impl Fallback {
    /// Whether an answer of its own stands in where nothing better does.
    pub fn has_answer(&self) -> bool {
        let says_nothing = self.status == 200 && self.headers.is_empty() && self.body.is_empty();
        self.last_good.is_none() || !says_nothing
    }

    /// What is not what it may be, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        within("status", self.status.into(), 200, 599)?;
        within("headers (entries)", self.headers.len() as u64, 0, 32)?;
        within("body (bytes)", self.body.len() as u64, 0, 16_384)?;
        self.service.as_ref().map_or(Ok(()), |service| named("service", service))?;
        if let Some(last_good) = &self.last_good {
            last_good.check().map_err(|invalid| invalid.under("last_good"))?;
        }
        for (name, value) in &self.headers {
            field_name("headers", name)?;
            if ["content-length", "transfer-encoding", "connection", "date"].contains(&name.as_str())
                || name.starts_with("x-starling-")
            {
                return Err(Invalid::new(
                    "headers",
                    format_args!("{name:?}"),
                    "fields the sidecar does not write itself",
                ));
            }
            if value.len() > 1_024 || value.bytes().any(|byte| !(byte == b' ' || byte.is_ascii_graphic())) {
                return Err(Invalid::new(
                    "headers",
                    format_args!("{value:?}"),
                    "up to 1,024 printable ASCII characters",
                ));
            }
        }
        Ok(())
    }
}

/// The service a policy names: `orders`, or `pay/orders` in namespace `pay`.
pub fn service_named(name: &str) -> Option<ServiceKey> {
    let (namespace, service) = name.split_once('/').unwrap_or(("default", name));
    Some(ServiceKey { namespace: namespace.parse().ok()?, service: service.parse().ok()? })
}

fn named(field: &str, name: &str) -> Result<(), Invalid> {
    match service_named(name) {
        Some(_) => Ok(()),
        None => Err(Invalid::new(field, format_args!("{name:?}"), "a service, as \"orders\" or \"pay/orders\"")),
    }
}

fn within(field: &str, value: u64, min: u64, max: u64) -> Result<(), Invalid> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(Invalid::new(field, value, format_args!("{min} to {max}"))) }
}

fn rule_name(name: &str) -> Result<(), Invalid> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if !name.is_empty() && name.len() <= 64 && name.chars().all(is_fit) {
        return Ok(());
    }
    Err(Invalid::new("name", format_args!("{name:?}"), "1 to 64 letters, digits, '-', '_', '.', '/'"))
}

fn field_name(field: &str, name: &str) -> Result<(), Invalid> {
    let is_fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if !name.is_empty() && name.len() <= 64 && name.chars().all(is_fit) {
        return Ok(());
    }
    Err(Invalid::new(field, format_args!("{name:?}"), "names of header fields in lower case, up to 64 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_taken_as_often_as_it_says() {
        let share = |text: &str| {
            #[derive(Deserialize)]
            struct Only {
                percent: Share,
            }
            toml::from_str::<Only>(&format!("percent = {text}")).map(|only| only.percent)
        };
        let mut rng = fastrand::Rng::with_seed(3);
        for (text, expected) in [("0", 0..=0), ("100", 100_000..=100_000), ("10", 9_500..=10_500), ("0.5", 400..=600)] {
            let share = share(text).unwrap();
            let taken = (0..100_000).filter(|_| share.takes(rng.u64(..))).count();
            assert!(expected.contains(&taken), "{text}: {taken}");
        }
        assert!(share("101").is_err() && share("-1").is_err());
    }

    #[test]
    fn a_fault_does_something_and_ends_in_one_way() {
        assert!(Fault::default().check().is_err());
        assert!(Fault { delay_ms: 5, ..Fault::default() }.check().is_ok());
        assert!(Fault { reset: true, abort_status: Some(503), ..Fault::default() }.check().is_err());
    }

    #[test]
    fn a_fallback_cannot_write_what_frames_a_message() {
        let with = |name: &str, value: &str| Fallback {
            headers: [(name.to_owned(), value.to_owned())].into(),
            ..Fallback::default()
        };
        assert!(with("content-type", "text/plain").check().is_ok());
        for (name, value) in [("content-length", "3"), ("X-A", "b"), ("x-a", "b\r\nc: d"), ("x-starling-reason", "no")]
        {
            assert!(with(name, value).check().is_err(), "{name}: {value}");
        }
    }
}
