//! A peer to join through, as settings name it.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::HostPort;

/// `host:port`, or `@path` of a file with one of those a line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Seed(String);

impl Seed {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Seed {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@') {
            Some("") => Err(format!("{text:?} names no file: write @/path/of/the/file")),
            Some(_) => Ok(Self(text.into())),
            None => text.parse::<HostPort>().map(|seed| Self(seed.into())),
        }
    }
}

impl TryFrom<String> for Seed {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Seed> for String {
    fn from(seed: Seed) -> String {
        seed.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_host_and_port_or_a_file() {
        for good in ["a:1", "[::1]:15100", "@/etc/starling/seeds", "@seeds"] {
            assert_eq!(good.parse::<Seed>().unwrap().as_str(), good);
        }
        for (bad, why) in [("a", "no port"), ("@", "names no file"), ("", "no port")] {
            let error = bad.parse::<Seed>().unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
