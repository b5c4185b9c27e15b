//! Durations as people write them: `500ms`, `5s`, `1m30s`, `2h`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration that is read and shown as `500ms`, `5s`, `1m30s`; whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// So many seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// In milliseconds.
    pub fn as_millis(self) -> u64 {
        self.0.as_millis().min(u128::from(u64::MAX)) as u64
    }
}

/// Units by the word that names them, in milliseconds; the largest first, as they are written.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The longest duration that makes sense in a settings file: a year, in milliseconds.
const MAX_MS: u64 = 366 * 86_400_000;

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            |why: &str| format!("{text:?} is not a duration: {why}; write it like \"500ms\", \"5s\" or \"1m30s\"");
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(refuse("it is empty"));
        }
        let mut total_ms: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(|| refuse("it has no unit"))?;
            let number: u64 =
                rest[..digits].parse().map_err(|_| refuse("a whole number must come before each unit"))?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let unit = UNITS.iter().find(|(word, _)| *word == &rest[..letters]);
            let (_, unit_ms) = unit.ok_or_else(|| refuse("units are ms, s, m, h and d"))?;
            rest = &rest[letters..];
            total_ms = number
                .checked_mul(*unit_ms)
                .and_then(|ms| ms.checked_add(total_ms))
                .filter(|ms| *ms <= MAX_MS)
                .ok_or_else(|| refuse("it is longer than a year"))?;
        }
        Ok(Self(Duration::from_millis(total_ms)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (word, unit_ms) in UNITS {
            if rest >= unit_ms {
                write!(f, "{}{word}", rest / unit_ms)?;
                rest %= unit_ms;
            }
        }
        Ok(())
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = HumanDuration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with its unit, like \"500ms\" or \"5s\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<HumanDuration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_they_are_written() {
        for (text, ms) in [("500ms", 500), ("5s", 5_000), ("1m30s", 90_000), ("2h", 7_200_000), ("1d", 86_400_000)] {
            let read: HumanDuration = text.parse().unwrap();
            assert_eq!(read.as_millis(), ms);
            assert_eq!(read.to_string(), text);
        }
    }

    #[test]
    fn a_bad_duration_says_what_is_wrong_and_how_to_write_it() {
        for bad in ["", "5", "s", "5 s", "five", "5x", "-5s", "1.5s", "99999999999999999999s", "900d"] {
            let error = bad.parse::<HumanDuration>().unwrap_err();
            assert!(error.contains("\"500ms\""), "{bad:?}: {error}");
        }
        assert!("5".parse::<HumanDuration>().unwrap_err().contains("no unit"));
    }
}
