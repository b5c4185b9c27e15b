//! How much a request matters: four classes, named as Google's SRE book does ("Handling Overload").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::refusal::Invalid;

/// The class of a request; the first is shed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criticality {
    /// A person notices at once: shed only when nothing else is left.
    CriticalPlus,
    /// A person notices. Requests that do not say are of this class.
    #[default]
    Critical,
    /// Will be repeated: batches.
    SheddablePlus,
    /// May be lost: background work.
    Sheddable,
}

impl Criticality {
    /// All of them, the most critical first.
    pub const ALL: [Criticality; 4] = [Self::CriticalPlus, Self::Critical, Self::SheddablePlus, Self::Sheddable];

    /// Its name in headers and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::CriticalPlus => "critical_plus",
            Self::Critical => "critical",
            Self::SheddablePlus => "sheddable_plus",
            Self::Sheddable => "sheddable",
        }
    }
}

impl fmt::Display for Criticality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Criticality {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|class| class.name() == text).ok_or_else(|| {
            Invalid::new("criticality", format_args!("{text:?}"), "critical_plus, critical, sheddable_plus, sheddable")
        })
    }
}
