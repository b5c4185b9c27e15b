//! What can be set about a rate limit.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::refusal::{Invalid, all_within, within};

/// So many calls in so much time. Durations are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// What refusals and counters call it. Up to 64 letters, digits, `-`, `_`, `.`; default `limit`.
    pub name: String,
    /// What has a limit of its own: `all` calls together, each `caller`, `method`, `path`, or each value of a
    /// `header:NAME`, `query:NAME`, `cookie:NAME`. Default `all`.
    pub by: LimitBy,
    /// Calls allowed in `per_ms`. 1 to 1,000,000,000, and at most 1,000,000 in a second; there is no default.
    pub count: u32,
    /// The time `count` is for. 1 to 86,400,000; default 1,000.
    pub per_ms: u64,
    /// Calls allowed at once after a rest, with `reject`. In any time t no more pass than `burst + count * t / per_ms`.
    /// 1 to 1,000,000,000; default 0: as many as `count`.
    pub burst: u32,
    /// What is done with what is too much. Default `reject`.
    pub behaviour: Behaviour,
    /// How long a call may be held back, with `pace` and `warm_up_pace`. 0 to 60,000; default 500 (Sentinel).
    pub max_wait_ms: u64,
    /// How long it takes from cold to the full count, with `warm_up` and `warm_up_pace`. 1,000 to 3,600,000; default
    /// 10,000 (Sentinel).
    pub warm_up_ms: u64,
    /// A cold limit allows `count / cold_factor`. 2 to 100; default 3 (Sentinel, Guava).
    pub cold_factor: u32,
    /// The most values (callers, paths ...) told apart at once; 16 bytes each, rounded up to a multiple of eight. 8 to
    /// 1,000,000; default 4,096 (Sentinel: 4,000).
    pub max_keys: u32,
    /// Other counts for some values, by value. Up to 1,000.
    pub values: BTreeMap<String, u32>,
    /// Limits these calls by the traffic of another route of the document instead of their own (Sentinel's RELATE): the
    /// other's name. They are refused while `count` or more of the other's calls have passed within `per_ms`.
    pub related: Option<String>,
    /// Only for calls on behalf of this service (Sentinel's CHAIN: the entrance through which they came): its name.
    pub entrance: Option<String>,
}

/// What is done with what is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    /// It is refused: a token bucket.
    #[default]
    Reject,
    /// It is held back so that calls go evenly, one every `per_ms / count` (Sentinel's rate limiter: a leaky bucket).
    Pace,
    /// It is refused, and what is allowed grows from `count / cold_factor` to `count` while traffic lasts.
    WarmUp,
    /// Both: calls go evenly, and what is allowed grows.
    WarmUpPace,
}

/// What has a limit of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LimitBy {
    /// All calls together.
    #[default]
    All,
    /// Each calling service.
    Caller,
    /// Each method.
    Method,
    /// Each path, without its query.
    Path,
    /// Each value of this header field, in lower case.
    Header(String),
    /// Each value of this parameter of the query.
    Query(String),
    /// Each value of this cookie.
    Cookie(String),
}

impl FromStr for LimitBy {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let name = |name: &str| {
            let is_fit = |c: char| c.is_ascii_graphic() && !"\"(),/:;<=>?@[\\]{}".contains(c);
            (!name.is_empty() && name.len() <= MAX_NAME && name.chars().all(is_fit)).then(|| name.to_owned())
        };
        let by = match text.split_once(':') {
            None => match text {
                "all" => Some(Self::All),
                "caller" => Some(Self::Caller),
                "method" => Some(Self::Method),
                "path" => Some(Self::Path),
                _ => None,
            },
            Some(("header", field)) => name(field).map(|field| Self::Header(field.to_ascii_lowercase())),
            Some(("query", parameter)) => name(parameter).map(Self::Query),
            Some(("cookie", cookie)) => name(cookie).map(Self::Cookie),
            Some(_) => None,
        };
        by.ok_or_else(|| {
            let allowed = "all, caller, method, path, header:NAME, query:NAME, cookie:NAME";
            Invalid::new("by", format_args!("{text:?}"), allowed)
        })
    }
}

impl fmt::Display for LimitBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Caller => f.write_str("caller"),
            Self::Method => f.write_str("method"),
            Self::Path => f.write_str("path"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
        }
    }
}

impl TryFrom<String> for LimitBy {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<LimitBy> for String {
    fn from(by: LimitBy) -> String {
        by.to_string()
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            name: "limit".into(),
            by: LimitBy::All,
            count: 0,
            per_ms: 1_000,
            burst: 0,
            behaviour: Behaviour::Reject,
            max_wait_ms: 500,
            warm_up_ms: 10_000,
            cold_factor: 3,
            max_keys: 4_096,
            values: BTreeMap::new(),
            related: None,
            entrance: None,
        }
    }
}

/// The longest name, in bytes.
const MAX_NAME: usize = 64;
/// The longest value with a count of its own, in bytes.
const MAX_VALUE: usize = 256;
/// The most calls in a second: a call takes a microsecond's worth of time or more, so that nanoseconds are exact enough.
const MAX_PER_S: u64 = 1_000_000;
const MOST: u64 = 1_000_000_000;

impl LimitSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        check_name("name", &self.name)?;
        all_within([
            ("count", self.count.into(), 1..=MOST),
            ("per_ms", self.per_ms, 1..=86_400_000),
            ("burst", self.burst.into(), 0..=MOST),
            ("max_wait_ms", self.max_wait_ms, 0..=60_000),
            ("warm_up_ms", self.warm_up_ms, 1_000..=3_600_000),
            ("cold_factor", self.cold_factor.into(), 2..=100),
            ("max_keys", self.max_keys.into(), 8..=1_000_000),
            ("values (entries)", self.values.len() as u64, 0..=1_000),
        ])?;
        self.check_rate("count", self.count)?;
        for (value, count) in &self.values {
            let field = format!("values.{value:?}");
            within(&format!("{field} (bytes of the value)"), value.len() as u64, 0..=MAX_VALUE as u64)?;
            within(&field, (*count).into(), 1..=MOST)?;
            self.check_rate(&field, *count)?;
        }
        for (field, name) in [("related", &self.related), ("entrance", &self.entrance)] {
            name.as_ref().map_or(Ok(()), |name| check_name(field, name))?;
        }
        let simple = self.behaviour == Behaviour::Reject || self.behaviour == Behaviour::Pace;
        if self.by != LimitBy::All && !simple {
            return Err(Invalid::new("behaviour", "one that warms up", "reject or pace, with any `by` but `all`"));
        }
        if self.related.is_some() && (self.by != LimitBy::All || self.behaviour != Behaviour::Reject) {
            return Err(Invalid::new("related", "set", "only with by = \"all\" and behaviour = \"reject\""));
        }
        if self.by == LimitBy::All && !self.values.is_empty() {
            return Err(Invalid::new("values", "set", "only with a `by` that has values"));
        }
        Ok(())
    }

    fn check_rate(&self, field: &str, count: u32) -> Result<(), Invalid> {
        if u64::from(count) * 1_000 > MAX_PER_S * self.per_ms {
            let rate = format_args!("{count} in {} ms", self.per_ms).to_string();
            return Err(Invalid::new(field, rate, format_args!("at most {MAX_PER_S} in 1000 ms")));
        }
        Ok(())
    }

    pub(super) fn max_wait(&self) -> Duration {
        match self.behaviour {
            Behaviour::Pace | Behaviour::WarmUpPace => Duration::from_millis(self.max_wait_ms),
            Behaviour::Reject | Behaviour::WarmUp => Duration::ZERO,
        }
    }

    /// How many calls may pass at once after a rest.
    pub(super) fn burst_of(&self, count: u32) -> u32 {
        match (self.behaviour, self.burst) {
            (Behaviour::Pace | Behaviour::WarmUpPace, _) => 1,
            (_, 0) => count,
            (_, burst) => burst,
        }
    }
}

pub(in crate::guard) fn check_name(field: &str, name: &str) -> Result<(), Invalid> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_fit) {
        let allowed = format!("1 to {MAX_NAME} letters, digits, '-', '_', '.', '/'");
        return Err(Invalid::new(field, format_args!("{name:?}"), allowed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(count: u32) -> LimitSettings {
        LimitSettings { count, ..LimitSettings::default() }
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        assert_eq!(limit(1).check(), Ok(()));
        let why = |settings: LimitSettings| settings.check().unwrap_err().to_string();
        assert_eq!(why(limit(0)), "count is 0, allowed are 1 to 1000000000");
        assert_eq!(why(limit(1_000_001)), "count is 1000001 in 1000 ms, allowed are at most 1000000 in 1000 ms");
        assert!(why(LimitSettings { name: "a b".into(), ..limit(1) }).starts_with("name is \"a b\""));
        let by_caller = LimitSettings { by: LimitBy::Caller, ..limit(1) };
        assert!(why(LimitSettings { behaviour: Behaviour::WarmUp, ..by_caller.clone() }).starts_with("behaviour"));
        assert!(why(LimitSettings { related: Some("x".into()), ..by_caller.clone() }).starts_with("related"));
        let values = BTreeMap::from([("vip".to_owned(), 0)]);
        assert_eq!(why(LimitSettings { values, ..by_caller }), "values.\"vip\" is 0, allowed are 1 to 1000000000");
    }

    #[test]
    fn what_a_limit_is_by_reads_back_as_it_is_shown() {
        for text in ["all", "caller", "method", "path", "header:x-user", "query:user", "cookie:session"] {
            assert_eq!(text.parse::<LimitBy>().unwrap().to_string(), text);
        }
        assert_eq!("header:X-User".parse::<LimitBy>().unwrap(), LimitBy::Header("x-user".into()));
        for text in ["", "header", "header:", "header:a b", "ip:1", "query:a=b"] {
            assert!(text.parse::<LimitBy>().is_err(), "{text}");
        }
    }
}
