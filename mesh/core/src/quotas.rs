//! Quotas of the whole mesh, without a server: each node takes its share by demand.
//!
//! Every node that uses a quota tells its neighbours how much is asked of it there, and they pass that on; so each knows
//! what is asked everywhere and works out its own share:
//!
//! ```text
//! share = a tenth of the quota, split evenly + nine tenths * own demand / all demand
//! ```
//!
//! In proportion to demand, so that a call has the same chance at each node, as it would have at one server; the tenth,
//! so that a node at which traffic begins need not wait to be heard.
//!
//! Shares must not add up to more than the quota while nodes know different things:
//!
//! - *A share falls at once and rises late*: it is the smallest that was worked out within the last second
//!   ([`RISES_AFTER`]), in which word of a change reaches every node that can be reached.
//! - *A node that is not heard of keeps its share*: when nothing has come from it for two and a half seconds
//!   ([`FRESH`]), what it last said it takes is set aside, and the others share what is left, for as long as the quota
//!   says (`hold_ms`). It may be dead (then that much goes unused so long) or behind a partition (then the sides together
//!   keep to the quota so long; after that, each side takes all of it: as many times the quota as there are sides).
//!   A node that says it is leaving gives its share up at once.
//!
//! With steady demand the shares add up to the quota, never to more; a change of demand, or a partition while it
//! changes, moves that by what nodes did not know of each other for the time it took to tell them. How much that is is
//! measured by a story of the simulator, `quotas`.
//!
//! Usage is told when demand has changed by more than a tenth, otherwise once a second, and only while a quota is used.
//! It is no record: nothing of it is stored, repaired or kept on disk. One node's word replaces its word before it (by
//! its *beat*, which is its wall clock in milliseconds or one more than the beat before).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::id::{NodeId, ServiceKey};
use crate::time::{Instant, Now};

/// For how long a larger share must have been right before it is taken.
pub const RISES_AFTER: Duration = Duration::from_secs(1);
/// After how long without a word a node is not reckoned with any more, but its share is set aside.
pub const FRESH: Duration = Duration::from_millis(2_500);
/// How often usage is told that does not change.
const REPEAT: Duration = Duration::from_secs(1);
/// How long words are gathered before they are passed on.
const GATHER: Duration = Duration::from_millis(50);
/// How long the words of others are kept by a node that uses no quota itself.
const KEPT_BY_OTHERS: Duration = Duration::from_secs(10);
/// The part of a quota that is split evenly: one in so many.
const EVEN_PART: u64 = 10;
/// The most quotas one node tells of; a mesh has a few.
pub const MAX_QUOTAS: usize = 256;
/// The most nodes whose words are kept.
pub const MAX_NODES: usize = 30_000;
/// The most of its quotas all nodes together are listened to.
pub const MAX_USAGES: usize = 200_000;

/// Names a quota everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuotaId(pub u64);

impl QuotaId {
    /// A service's quota of a name.
    pub fn of(service: &ServiceKey, name: &str) -> Self {
        let seed = xxh3_64_with_seed(service.namespace.as_str().as_bytes(), 0);
        let seed = xxh3_64_with_seed(service.service.as_str().as_bytes(), seed);
        Self(xxh3_64_with_seed(name.as_bytes(), seed))
    }
}

/// What a node's rim reports of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaUse {
    /// Which.
    pub quota: QuotaId,
    /// What all nodes together may let through, in thousandths of a call a second.
    pub limit_milli: u64,
    /// What is asked for at this node, in thousandths of a call a second.
    pub demand_milli: u64,
    /// How long the share of a node is set aside that is not heard of.
    pub hold: Duration,
}

/// What one node says of one quota, in thousandths of a call a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Which.
    pub quota: QuotaId,
    /// What is asked for there.
    pub demand_milli: u64,
    /// What it lets through at most.
    pub share_milli: u64,
}

/// What one node says of all its quotas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Whose word.
    pub node: NodeId,
    /// Later words have higher ones.
    pub beat: u64,
    /// Of each quota it uses; empty when it uses none any more.
    pub usages: Vec<Usage>,
}

/// What is to be said to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saying {
    /// To whom.
    pub to: NodeId,
    /// Whose words.
    pub words: Vec<Word>,
    /// Whether everything the other knows is wanted in return.
    pub ask: bool,
}

/// What a node knows of the mesh's quotas.
#[derive(Debug, Clone, Default)]
pub struct Quotas {
    mine: BTreeMap<QuotaId, Mine>,
    others: BTreeMap<NodeId, Heard>,
    usages: usize,
    beat: u64,
    /// What was told last, and when.
    told: Vec<Usage>,
    told_at: Instant,
    /// Whose words are to be passed on, and from whom each came.
    fresh: BTreeMap<NodeId, NodeId>,
    pass_on_due: Option<Instant>,
    dropped: u64,
}

#[derive(Debug, Clone)]
struct Mine {
    of: QuotaUse,
    /// The shares worked out lately.
    targets: VecDeque<(Instant, u64)>,
}

#[derive(Debug, Clone)]
struct Heard {
    word: Word,
    at: Instant,
}

impl Quotas {
    /// Takes note of what is asked for here and gives this node's shares, in thousandths of a call a second.
    /// `members` is how many nodes there are, `neighbours` whom to tell.
    pub fn used(
        &mut self,
        now: Now,
        me: &NodeId,
        uses: Vec<QuotaUse>,
        members: usize,
        neighbours: &[NodeId],
        out: &mut Vec<Saying>,
    ) -> Vec<(QuotaId, u64)> {
        let begins = self.mine.is_empty() && !uses.is_empty();
        let before = std::mem::take(&mut self.mine);
        for of in uses.into_iter().take(MAX_QUOTAS) {
            let targets = match before.get(&of.quota) {
                Some(known) => known.targets.clone(),
                // Nobody has told us anything yet: what all would have if all used it alike.
                None => VecDeque::from([(now.elapsed, of.limit_milli / members.max(1) as u64)]),
            };
            self.mine.insert(of.quota, Mine { of, targets });
        }
        self.forget_old(now.elapsed);
        let shares: Vec<(QuotaId, u64)> = self
            .mine
            .keys()
            .copied()
            .collect::<Vec<_>>()
            .into_iter()
            .map(|quota| (quota, self.share(quota, now.elapsed)))
            .collect();
        self.tell(now, me, &shares, begins, neighbours, out);
        shares
    }

    /// A neighbour said something. What is news is passed on a little later.
    pub fn heard(&mut self, now: Now, me: &NodeId, from: &NodeId, words: Vec<Word>, ask: bool, out: &mut Vec<Saying>) {
        // A node that uses no quota itself has no other occasion.
        self.forget_old(now.elapsed);
        for word in words {
            self.hear(now.elapsed, me, from, word);
        }
        if ask {
            // Only of those that are still heard of: whoever is told takes a word for new, and would set the share of
            // one that is dead aside once more.
            let fresh = |heard: &&Heard| now.elapsed.since(heard.at) <= FRESH;
            let mut words: Vec<Word> = self.others.values().filter(fresh).map(|heard| heard.word.clone()).collect();
            words.extend((!self.told.is_empty()).then(|| self.own_word(me)));
            if !words.is_empty() {
                out.push(Saying { to: from.clone(), words, ask: false });
            }
        }
    }

    fn hear(&mut self, now: Instant, me: &NodeId, from: &NodeId, word: Word) {
        if word.node == *me {
            // Of an earlier start, whose clock was ahead of ours.
            self.beat = self.beat.max(word.beat);
            return;
        }
        let known = self.others.get(&word.node);
        let is_news = known.is_none_or(|heard| heard.word.beat < word.beat);
        let held = known.map_or(0, |heard| heard.word.usages.len());
        let usages = self.usages - held + word.usages.len();
        let has_room = usages <= MAX_USAGES && (known.is_some() || self.others.len() < MAX_NODES);
        if !is_news || word.usages.len() > MAX_QUOTAS {
            return;
        }
        if !has_room {
            self.dropped += 1;
            return;
        }
        self.usages = usages;
        self.fresh.insert(word.node.clone(), from.clone());
        self.pass_on_due.get_or_insert(now + GATHER);
        self.others.insert(word.node.clone(), Heard { word, at: now });
    }

    /// A node has left for good: nothing is set aside for it.
    pub fn left(&mut self, node: &NodeId) {
        if let Some(heard) = self.others.remove(node) {
            self.usages -= heard.word.usages.len();
        }
        self.fresh.remove(node);
    }

    /// When something is to be passed on.
    pub fn next_due(&self) -> Option<Instant> {
        self.pass_on_due
    }

    /// Passes on what has come since the last time.
    pub fn pass_on(&mut self, now: Instant, neighbours: &[NodeId], out: &mut Vec<Saying>) {
        if self.pass_on_due.is_none_or(|due| due > now) {
            return;
        }
        self.pass_on_due = None;
        let fresh = std::mem::take(&mut self.fresh);
        for to in neighbours {
            let words: Vec<Word> = fresh
                .iter()
                .filter(|(node, from)| *from != to && *node != to)
                .filter_map(|(node, _)| self.others.get(node))
                .map(|heard| heard.word.clone())
                .collect();
            if !words.is_empty() {
                out.push(Saying { to: to.clone(), words, ask: false });
            }
        }
    }

    /// Words that were not kept, since there were too many.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn share(&mut self, quota: QuotaId, now: Instant) -> u64 {
        let Some(mine) = self.mine.get(&quota) else { return 0 };
        let target = self.target(&mine.of, now);
        let Some(Mine { targets, .. }) = self.mine.get_mut(&quota) else { return 0 };
        targets.push_back((now, target));
        // One that is older than the time counts still: it was right when the time began.
        while targets.get(1).is_some_and(|(at, _)| *at + RISES_AFTER <= now) {
            targets.pop_front();
        }
        targets.iter().map(|(_, target)| *target).min().unwrap_or(target)
    }

    /// The share that is right by what is known now.
    fn target(&self, of: &QuotaUse, now: Instant) -> u64 {
        let (mut demand, mut users, mut aside) = (u128::from(of.demand_milli), 1, 0u64);
        for heard in self.others.values() {
            for usage in heard.word.usages.iter().filter(|usage| usage.quota == of.quota) {
                if now.since(heard.at) <= FRESH {
                    demand += u128::from(usage.demand_milli);
                    users += 1;
                } else if now.since(heard.at) <= of.hold {
                    aside = aside.saturating_add(usage.share_milli);
                }
            }
        }
        let left = of.limit_milli.saturating_sub(aside);
        let even = left / EVEN_PART / users;
        let by_demand = left - left / EVEN_PART;
        match demand {
            0 => left / users,
            _ => even + (u128::from(by_demand) * u128::from(of.demand_milli) / demand) as u64,
        }
    }

    fn tell(
        &mut self,
        now: Now,
        me: &NodeId,
        shares: &[(QuotaId, u64)],
        begins: bool,
        neighbours: &[NodeId],
        out: &mut Vec<Saying>,
    ) {
        let usages: Vec<Usage> = self
            .mine
            .values()
            .zip(shares)
            .map(|(mine, (quota, share))| Usage {
                quota: *quota,
                demand_milli: mine.of.demand_milli,
                share_milli: *share,
            })
            .collect();
        let is_due = !usages.is_empty() && now.elapsed.since(self.told_at) >= REPEAT;
        if !is_due && !differ(&self.told, &usages) {
            return;
        }
        self.beat = (self.beat + 1).max(now.wall.0);
        (self.told, self.told_at) = (usages, now.elapsed);
        let word = self.own_word(me);
        out.extend(neighbours.iter().map(|to| Saying { to: to.clone(), words: vec![word.clone()], ask: begins }));
    }

    fn own_word(&self, me: &NodeId) -> Word {
        Word { node: me.clone(), beat: self.beat, usages: self.told.clone() }
    }

    fn forget_old(&mut self, now: Instant) {
        let hold = self.mine.values().map(|mine| mine.of.hold).max().unwrap_or_default().max(KEPT_BY_OTHERS);
        let usages = &mut self.usages;
        self.others.retain(|_, heard| {
            let is_kept = now.since(heard.at) <= hold;
            *usages -= if is_kept { 0 } else { heard.word.usages.len() };
            is_kept
        });
    }
}

/// Whether they are of other quotas, or a demand or a share has changed by more than a tenth.
fn differ(before: &[Usage], after: &[Usage]) -> bool {
    let far = |a: u64, b: u64| a.abs_diff(b) > a.max(b) / 10;
    before.len() != after.len()
        || before.iter().zip(after).any(|(a, b)| {
            a.quota != b.quota || far(a.demand_milli, b.demand_milli) || far(a.share_milli, b.share_milli)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::WallTime;

    const QUOTA: QuotaId = QuotaId(7);

    fn now(ms: u64) -> Now {
        Now { elapsed: Instant(1_000_000 + ms * 1_000), wall: WallTime(1_700_000_000_000 + ms) }
    }

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn word(name: &str, beat: u64, demand: u64, share: u64) -> Word {
        let usage = Usage { quota: QUOTA, demand_milli: demand * 1_000, share_milli: share * 1_000 };
        Word { node: node(name), beat, usages: vec![usage] }
    }

    /// The node `me`, whose neighbour is `a`, at which so much is asked for of a quota of 100 a second.
    fn share(quotas: &mut Quotas, ms: u64, demand: u64) -> (u64, Vec<Saying>) {
        let mut out = Vec::new();
        let of = QuotaUse {
            quota: QUOTA,
            limit_milli: 100_000,
            demand_milli: demand * 1_000,
            hold: Duration::from_secs(30),
        };
        let shares = quotas.used(now(ms), &node("me"), vec![of], 4, &[node("a")], &mut out);
        (shares[0].1 / 1_000, out)
    }

    fn hear(quotas: &mut Quotas, ms: u64, word: Word) {
        quotas.heard(now(ms), &node("me"), &node("a"), vec![word], false, &mut Vec::new());
    }

    #[test]
    fn a_share_is_nine_tenths_by_demand_and_one_tenth_evenly() {
        let mut quotas = Quotas::default();
        hear(&mut quotas, 0, word("a", 1, 300, 0));
        hear(&mut quotas, 0, word("b", 1, 0, 0));
        share(&mut quotas, 0, 100);
        assert_eq!(share(&mut quotas, 1_000, 100).0, 100 / 10 / 3 + 90 / 4);
    }

    #[test]
    fn a_share_falls_at_once_and_rises_after_a_second() {
        let mut quotas = Quotas::default();
        assert_eq!(share(&mut quotas, 0, 10).0, 25, "a quarter, since there are four nodes");
        assert_eq!(share(&mut quotas, 999, 10).0, 25);
        assert_eq!(share(&mut quotas, 1_000, 10).0, 100, "nobody else uses it");
        hear(&mut quotas, 1_100, word("a", 1, 10, 0));
        assert_eq!(share(&mut quotas, 1_100, 10).0, 50);
        hear(&mut quotas, 1_200, word("a", 2, 0, 0));
        assert_eq!(share(&mut quotas, 2_150, 10).0, 50);
        hear(&mut quotas, 2_200, word("a", 3, 0, 0));
        assert_eq!(share(&mut quotas, 3_200, 10).0, 95);
    }

    #[test]
    fn the_share_of_who_is_not_heard_of_is_set_aside_for_as_long_as_the_quota_says() {
        let mut quotas = Quotas::default();
        hear(&mut quotas, 0, word("a", 1, 40, 40));
        let shares: Vec<u64> = (0..36).map(|second| share(&mut quotas, second * 1_000, 960).0).collect();
        assert!(shares[4..31].iter().all(|share| *share == 60), "{shares:?}");
        assert_eq!(shares[33..], [100, 100, 100]);
    }

    #[test]
    fn who_leaves_gives_its_share_up() {
        let mut quotas = Quotas::default();
        hear(&mut quotas, 0, word("a", 1, 100, 50));
        share(&mut quotas, 0, 100);
        quotas.left(&node("a"));
        share(&mut quotas, 100, 100);
        assert_eq!(share(&mut quotas, 1_100, 100).0, 100);
        assert_eq!(quotas.usages, 0);
    }

    #[test]
    fn usage_is_told_when_it_changes_and_once_a_second_and_no_more_when_it_ends() {
        let mut quotas = Quotas::default();
        let mut told = |ms, demand| share(&mut quotas, ms, demand).1.len();
        assert_eq!(told(0, 100), 1);
        assert_eq!([told(250, 101), told(500, 99)], [0, 0]);
        assert_eq!(told(750, 150), 1);
        assert_eq!([told(1_000, 150), told(1_250, 150), told(1_500, 150)], [1, 0, 0], "its share rose");
        assert_eq!(told(2_000, 150), 1);
        let mut out = Vec::new();
        quotas.used(now(2_250), &node("me"), vec![], 4, &[node("a")], &mut out);
        quotas.used(now(9_000), &node("me"), vec![], 4, &[node("a")], &mut out);
        assert_eq!(out.len(), 1);
        assert!(out[0].words[0].usages.is_empty());
    }

    #[test]
    fn words_are_passed_on_once_and_not_back_and_who_begins_is_told_all() {
        let mut quotas = Quotas::default();
        for beat in [1, 1, 2] {
            hear(&mut quotas, 0, word("b", beat, 1, 1));
        }
        let mut out = Vec::new();
        quotas.pass_on(now(49).elapsed, &[node("a"), node("b"), node("c")], &mut out);
        assert!(out.is_empty() && quotas.next_due() == Some(now(50).elapsed));
        quotas.pass_on(now(50).elapsed, &[node("a"), node("b"), node("c")], &mut out);
        assert_eq!(out, [Saying { to: node("c"), words: vec![word("b", 2, 1, 1)], ask: false }]);
        assert_eq!(quotas.next_due(), None);

        assert!(share(&mut quotas, 100, 5).1[0].ask);
        out.clear();
        quotas.heard(now(200), &node("me"), &node("d"), vec![], true, &mut out);
        assert_eq!(out[0].words.iter().map(|word| word.node.as_str()).collect::<Vec<_>>(), ["b", "me"]);
    }

    #[test]
    fn the_word_of_who_is_not_heard_of_any_more_is_not_repeated_to_who_asks() {
        let mut quotas = Quotas::default();
        hear(&mut quotas, 0, word("b", 1, 40, 40));
        let mut asked = |ms| {
            let mut out = Vec::new();
            quotas.heard(now(ms), &node("me"), &node("a"), vec![], true, &mut out);
            (out.len(), quotas.others.len())
        };
        assert_eq!(asked(1_000), (1, 1));
        assert_eq!(asked(FRESH.as_millis() as u64 + 1), (0, 1), "it is set aside here, and not there");
        assert_eq!(asked(3_600_000), (0, 0), "nor kept by one that uses no quota");
        assert_eq!(quotas.usages, 0);
    }

    #[test]
    fn a_word_too_large_and_words_too_many_are_not_kept() {
        let mut quotas = Quotas::default();
        let usage = Usage { quota: QUOTA, demand_milli: 1, share_milli: 1 };
        hear(&mut quotas, 0, Word { node: node("a"), beat: 1, usages: vec![usage; MAX_QUOTAS + 1] });
        assert!(quotas.others.is_empty());
        for name in 0..1_000 {
            hear(&mut quotas, 0, Word { node: node(&format!("n{name}")), beat: 1, usages: vec![usage; MAX_QUOTAS] });
        }
        assert!(quotas.usages <= MAX_USAGES && quotas.dropped() > 0);
    }
}
