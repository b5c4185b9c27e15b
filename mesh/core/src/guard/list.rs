//! Black and white lists of callers (Sentinel's authority rule).

use serde::{Deserialize, Serialize};

use super::refusal::{Guard, Invalid, Refusal, within};

/// Who may call. A name is a caller's, exactly, or begins it, with a `*` at the end. Who is on both lists may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListSettings {
    /// Only these may call; with none: everybody. Up to 1,000; default none.
    pub allow: Vec<String>,
    /// These may not. Up to 1,000; default none.
    pub deny: Vec<String>,
    /// Whether a caller of whom nobody knows the name may call. Default true (Sentinel).
    pub allow_unknown: bool,
}

impl Default for ListSettings {
    fn default() -> Self {
        Self { allow: Vec::new(), deny: Vec::new(), allow_unknown: true }
    }
}

impl ListSettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        for (field, names) in [("allow", &self.allow), ("deny", &self.deny)] {
            within(&format!("{field} (entries)"), names.len() as u64, 0..=1_000)?;
            let is_odd =
                |name: &&String| name.is_empty() || name.trim_end_matches('*').contains('*') || name.ends_with("**");
            if let Some(wrong) = names.iter().find(is_odd) {
                return Err(Invalid::new(
                    field,
                    format_args!("{wrong:?}"),
                    "a name, or how names begin, with a '*' at the end",
                ));
            }
        }
        Ok(())
    }
}

/// The lists, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    allow: Names,
    deny: Names,
    allow_unknown: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Names {
    exact: Vec<String>,
    beginnings: Vec<String>,
}

impl Names {
    fn new(names: &[String]) -> Self {
        let beginnings = names.iter().filter_map(|name| name.strip_suffix('*')).map(str::to_owned).collect();
        let mut exact: Vec<String> = names.iter().filter(|name| !name.ends_with('*')).cloned().collect();
        exact.sort_unstable();
        Self { exact, beginnings }
    }

    fn holds(&self, name: &str) -> bool {
        self.exact.binary_search_by(|known| known.as_str().cmp(name)).is_ok()
            || self.beginnings.iter().any(|beginning| name.starts_with(beginning.as_str()))
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.beginnings.is_empty()
    }
}

impl List {
    /// The lists of `settings`.
    pub fn new(settings: &ListSettings) -> Self {
        Self {
            allow: Names::new(&settings.allow),
            deny: Names::new(&settings.deny),
            allow_unknown: settings.allow_unknown,
        }
    }

    /// Whether this caller may call.
    ///
    /// # Errors
    /// A refusal that does not end.
    pub fn admit(&self, caller: Option<&str>) -> Result<(), Refusal> {
        match caller {
            None if self.allow_unknown => Ok(()),
            None => Err(Refusal::new(Guard::List, "the caller is not known")),
            Some(caller) if self.deny.holds(caller) => Err(Refusal::new(Guard::List, "the caller is denied")),
            Some(caller) if self.allow.is_empty() || self.allow.holds(caller) => Ok(()),
            Some(_) => Err(Refusal::new(Guard::List, "the caller is not among the allowed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(allow: &[&str], deny: &[&str]) -> List {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let settings = ListSettings { allow: owned(allow), deny: owned(deny), ..ListSettings::default() };
        assert_eq!(settings.check(), Ok(()));
        List::new(&settings)
    }

    #[test]
    fn a_white_list_lets_only_its_own_through_and_a_black_list_all_others() {
        let white = list(&["cart", "shop-*"], &[]);
        assert!([Some("cart"), Some("shop-7"), Some("shop-"), None].iter().all(|caller| white.admit(*caller).is_ok()));
        assert!(["carts", "car", "shop"].iter().all(|caller| white.admit(Some(caller)).is_err()));
        let black = list(&[], &["cart"]);
        assert!(black.admit(Some("cart")).is_err() && black.admit(Some("shop")).is_ok());
        assert!(list(&["*"], &["cart"]).admit(Some("cart")).is_err(), "denied and allowed is denied");
    }

    #[test]
    fn whom_nobody_knows_may_call_unless_that_is_switched_off() {
        let strict = List::new(&ListSettings { allow_unknown: false, ..ListSettings::default() });
        assert!(strict.admit(None).is_err() && strict.admit(Some("a")).is_ok());
        assert!(ListSettings { deny: vec!["a*b".into()], ..ListSettings::default() }.check().is_err());
    }
}
