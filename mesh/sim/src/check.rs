//! What must be true, judged from outside: agreement, and that nothing acknowledged is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use starling_core::record::Key;
use starling_core::view::{ConfigView, InstanceView, Usability, View};

use crate::ledger::Missing;
use crate::world::World;

/// How many differences, and how many happenings, a story tells before it only counts.
const TOLD: usize = 12;

/// What went wrong, to be read: what differs where, what had happened, and the line that makes it happen again.
///
/// `Debug` prints the same text as `Display`, so that a test that returns `Result<(), Story>` shows it as it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Story {
    /// What was expected and is not so.
    pub title: String,
    /// What differs, on which node.
    pub findings: Vec<String>,
    /// The last notable happenings.
    pub happenings: Vec<String>,
    /// The builder's line that makes the same run again, given the same calls.
    pub replay: String,
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for finding in self.findings.iter().take(TOLD) {
            writeln!(f, "  {finding}")?;
        }
        if self.findings.len() > TOLD {
            writeln!(f, "  and {} more", self.findings.len() - TOLD)?;
        }
        if !self.happenings.is_empty() {
            writeln!(f, "what had happened:")?;
        }
        for happening in &self.happenings {
            writeln!(f, "  {happening}")?;
        }
        write!(f, "replay: {}", self.replay)
    }
}

impl fmt::Debug for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::error::Error for Story {}

impl World {
    /// The story of what was found.
    pub(crate) fn story(&self, title: String, findings: Vec<String>) -> Story {
        let title = format!("at {}: {title}", clock(self.now));
        let skipped = self.journal.len().saturating_sub(TOLD);
        let mut happenings: Vec<String> = self.journal.iter().skip(skipped).map(ToString::to_string).collect();
        if skipped > 0 {
            happenings.insert(0, format!("({} happenings before)", self.journaled as usize - TOLD));
        }
        Story { title, findings, happenings, replay: self.options.to_string() }
    }

    /// The nodes that are running, in groups that can reach each other, directly or through others.
    pub(crate) fn components(&self) -> Vec<Vec<usize>> {
        let mut left: BTreeSet<usize> = (0..self.hosts.len()).filter(|node| self.hosts[*node].is_running()).collect();
        let mut components: Vec<Vec<usize>> = Vec::new();
        while let Some(first) = left.pop_first() {
            let (mut members, mut open) = (Vec::new(), vec![first]);
            while let Some(node) = open.pop() {
                members.push(node);
                let reached: Vec<usize> = left.iter().copied().filter(|other| self.linked(node, *other)).collect();
                reached.iter().for_each(|other| _ = left.remove(other));
                open.extend(reached);
            }
            members.sort_unstable();
            components.push(members);
        }
        components
    }

    pub(crate) fn linked(&self, a: usize, b: usize) -> bool {
        self.cuts.is_open(a, b) && self.cuts.is_open(b, a)
    }

    /// Whether all fingerprints agree; cheap, to be asked often.
    pub(crate) fn fingerprints_agree(&self) -> bool {
        self.components().iter().all(|component| {
            let mut fingerprints = component.iter().filter_map(|node| self.view(*node)).map(|view| view.fingerprint);
            let first = fingerprints.next();
            fingerprints.all(|other| Some(other) == first)
        })
    }

    /// Everything nodes that can reach each other disagree about.
    pub(crate) fn disagreements(&self) -> Vec<String> {
        let mut found = Vec::new();
        for component in self.components() {
            let Some((first, others)) = component.split_first() else { continue };
            for other in others {
                self.compare(*first, *other, &mut found);
            }
        }
        found
    }

    fn compare(&self, a: usize, b: usize, found: &mut Vec<String>) {
        let (Some(one), Some(two)) = (self.view(a), self.view(b)) else { return };
        let before = found.len();
        let (left, right) = (instances(one), instances(two));
        for key in left.keys().chain(right.keys().filter(|key| !left.contains_key(*key))) {
            let (here, there) = (left.get(key), right.get(key));
            if !self.same_instance(a, b, here.copied(), there.copied()) {
                found.push(format!(
                    "{key}: {} has {}, {} has {}",
                    one.me,
                    said_of_instance(here.copied()),
                    two.me,
                    said_of_instance(there.copied())
                ));
            }
        }
        for key in one.configs.keys().chain(two.configs.keys().filter(|key| one.config(key).is_none())) {
            let (here, there) = (one.config(key), two.config(key));
            if here.map(|config| &config.versions) != there.map(|config| &config.versions) {
                let (here, there) = (said_of_config(here.map(|c| &**c)), said_of_config(there.map(|c| &**c)));
                found.push(format!("document {key}: {} has {here}, {} has {there}", one.me, two.me));
            }
        }
        if one.fingerprint != two.fingerprint && found.len() == before {
            let why = "the same is shown, but the stores differ";
            found.push(format!("{} and {}: {why} ({} and {})", one.me, two.me, one.fingerprint, two.fingerprint));
        }
        if one.fingerprint == two.fingerprint && found.len() > before {
            found.push(format!("{} and {} hold these for equal: {}", one.me, two.me, one.fingerprint));
        }
    }

    fn same_instance(&self, a: usize, b: usize, here: Option<&InstanceView>, there: Option<&InstanceView>) -> bool {
        let (Some(here), Some(there)) = (here, there) else { return here.is_none() && there.is_none() };
        // Whether its owner is there is membership's word, and may rightly differ where only one of them reaches it.
        let alike = match self.find(here.owner().as_str()) {
            Some(owner) => (owner == a || self.linked(a, owner)) == (owner == b || self.linked(b, owner)),
            None => true,
        };
        here.stamp() == there.stamp()
            && here.instance == there.instance
            && here.override_ == there.override_
            && (!alike || (here.usability == Usability::Ready) == (there.usability == Usability::Ready))
    }

    /// Acknowledged writes that are neither shown nor replaced where they must be: always at their author, and at every
    /// node of a group that agrees. Also what is shown but was never written.
    pub(crate) fn losses(&self) -> Vec<String> {
        // As the clock that is furthest ahead has it.
        let ahead_ms = self.hosts.iter().map(|host| host.skew_ms.max(0) as u64).max().unwrap_or_default();
        let kept_ms = self.options.settings.tombstone_horizon_ms.saturating_sub(ahead_ms);
        let horizon = self.now.saturating_sub(kept_ms.saturating_mul(1_000));
        let mut found = Vec::new();
        for component in self.components() {
            let agreed = component.windows(2).all(|pair| {
                let prints = [pair[0], pair[1]].map(|node| self.view(node).map(|view| view.fingerprint));
                prints[0] == prints[1]
            });
            for (at, node) in component.iter().enumerate() {
                let Some(view) = self.view(*node) else { continue };
                // Views of equal fingerprints were compared elsewhere; one of them speaks for all.
                let speaks = agreed && at == 0;
                let missing = self.ledger.missing(view, horizon, |write| {
                    let author_here = write.author == *node;
                    let author_near = component.contains(&write.author);
                    let outlives_author = || write.holders.iter().any(|holder| component.contains(holder));
                    !write.handed_over && (author_here || (speaks && (author_near || outlives_author())))
                });
                found.extend(missing.iter().map(|missing| lost(view, missing)));
                if speaks || !agreed {
                    let invented = self.ledger.invented(view);
                    found.extend(invented.iter().map(|what| format!("{} shows what nobody wrote: {what}", view.me)));
                }
            }
        }
        found
    }
}

fn lost(view: &View, missing: &Missing) -> String {
    let Missing { key, stamp, at, what } = missing;
    let shown = match key {
        Key::Instance(key) | Key::Override(key) => said_of_instance(view.instance(key)),
        Key::Config(key) => said_of_config(view.config(key).map(|shown| &**shown)),
        Key::Node(node) => view.member(node).map_or("nothing".into(), |member| format!("{:?}", member.state)),
    };
    let me = &view.me;
    format!("{me} has lost {what}, acknowledged at {} by {} as {stamp}; it shows {shown}", clock(*at), stamp.node)
}

fn instances(view: &View) -> BTreeMap<String, &InstanceView> {
    let shown = view.services.values().flat_map(|service| service.instances.iter());
    shown.map(|shown| (shown.key.to_string(), shown)).collect()
}

fn said_of_instance(shown: Option<&InstanceView>) -> String {
    let Some(shown) = shown else { return "nothing".into() };
    let mut text =
        format!("{} weight {} as of {}, {:?}", shown.status(), shown.weight(), shown.stamp(), shown.usability);
    if let Some(over) = &shown.override_ {
        let _ = write!(text, " (overridden: {:?} {:?})", over.status, over.weight);
    }
    text
}

fn said_of_config(shown: Option<&ConfigView>) -> String {
    let Some(shown) = shown else { return "nothing".into() };
    let said = |version: &std::sync::Arc<starling_core::config::Version>| match &version.body {
        Some(body) => format!("{body:?} as of {}", version.stamp),
        None => format!("its deletion as of {}", version.stamp),
    };
    shown.versions.iter().map(said).collect::<Vec<_>>().join(" | ")
}

/// A virtual time, as lines begin with it.
pub(crate) fn clock(at: u64) -> String {
    format!("{:>4}.{:03} s", at / 1_000_000, at % 1_000_000 / 1_000)
}
