//! Self-preservation: are they dead, or am I cut off?
//!
//! A node that hears nothing of another cannot tell a dead host from a broken network in between. For one host it does
//! not matter: it is out of reach, so its instances are out of selection at once. When many vanish together it does:
//! either a great deal died at the same moment, or something is wrong between them and *here*, and then to strike them
//! all off empties the registry by our own fault. So when too many vanish within a window, their instances stay
//! candidates, marked *doubtful* and tried after those beyond doubt, and what really happens to requests (breakers,
//! latencies) decides.
//!
//! Eureka has had this for years, and its users know it as the thing that keeps dead instances listed. Four lessons:
//!
//! - *It never ends* ("Eureka will disable expiration forever in some cases?", Netflix/eureka 1073): its expected number
//!   of renewals lags behind a scale-in for good. Here it concerns **those nodes that vanished together** and nobody
//!   else: a host that dies an hour later is simply dead. It ends when enough of them are back, when nothing has changed
//!   for a while (they are dead, then, or scaled in without a word), and in any case after six times that while.
//! - *It is global*: one bad zone keeps the dead of all zones. Here every zone is judged by itself, and the mesh as a
//!   whole besides, for meshes whose zones are too small to be judged.
//! - *It is invisible*: a red line on a dashboard nobody opens. Here it is in the view, in `status`, in `members`, in the
//!   metrics and in the log, with numbers, when it begins and when it ends.
//! - *It misjudges small meshes*: of three nodes one is a third. One loss is never enough here, and below
//!   [`SMALL`] nodes it takes half of them. So one dead host of three is dead; when one is cut off from two, the two
//!   take it for dead and go on with each other, and the one, which misses both, preserves what it knew.
//!
//! A node that said good-bye is no loss. Nobody is asked and nothing is written: each node concludes for itself.
//!
//! A node that was never heard of (its records came before it, or it has been dead since before this start) is given
//! the same window to appear; until then its instances are doubtful. That is how everything can restart at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use rpds::RedBlackTreeSetSync;

use crate::id::{NodeId, Zone};
use crate::node::Settings;
use crate::time::{Instant, Now, WallTime};
use crate::view::{MemberState, Preservation};

/// In fewer nodes than this a share of 15 % means one node; it takes half of them there.
pub const SMALL: usize = 10;
/// It ends after at most so many times the time it may last without any change.
const LONGEST: u32 = 6;

/// What a set of nodes is judged as.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Mesh,
    Zone(Zone),
}

/// One set of nodes.
#[derive(Debug, Clone, Default)]
struct Domain {
    alive: usize,
    /// Lost within the window and not back.
    recent: BTreeMap<NodeId, Instant>,
    /// The same in order of time, and some that are not any more.
    by_time: VecDeque<(Instant, NodeId)>,
    /// Those of the recent ones that the episode does not hold.
    apart: BTreeSet<NodeId>,
    episode: Option<Episode>,
}

/// Self-preservation of one domain, from its beginning to its end.
#[derive(Debug, Clone)]
struct Episode {
    since: Now,
    /// When a node last vanished into it or came back out of it.
    changed: Now,
    /// How many nodes there were before they vanished.
    of: usize,
    /// Those that vanished together and are not back; there may be thousands, and the picture shows each change.
    nodes: RedBlackTreeSetSync<NodeId>,
}

#[derive(Debug, Clone)]
struct Known {
    zone: Zone,
    state: MemberState,
    since: Instant,
}

#[derive(Debug, Clone)]
struct Unknown {
    since: Instant,
    doubtful: bool,
}

/// Who vanished when, and what this node concludes from it.
#[derive(Debug, Clone)]
pub struct Preserver {
    share_percent: usize,
    window: Duration,
    quiet: Duration,
    known: BTreeMap<NodeId, Known>,
    /// Owners of records that membership has not told of.
    unknown: BTreeMap<NodeId, Unknown>,
    /// Those of them about which there is doubt still, in order of time.
    doubted: VecDeque<(Instant, NodeId)>,
    domains: BTreeMap<Scope, Domain>,
    news: bool,
}

/// What is concluded of a node that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conclusion {
    /// It may be this node that is cut off, or it has yet to appear.
    Doubtful,
    /// It is out of reach.
    Lost,
}

impl Preserver {
    /// A node that knows only itself.
    pub fn new(settings: &Settings, me: &NodeId, zone: &Zone, now: Now) -> Self {
        let mut preserver = Self {
            share_percent: settings.preserve_share_percent as usize,
            window: Duration::from_millis(settings.preserve_window_ms),
            quiet: Duration::from_millis(settings.preserve_quiet_ms),
            known: BTreeMap::new(),
            unknown: BTreeMap::new(),
            doubted: VecDeque::new(),
            domains: BTreeMap::new(),
            news: false,
        };
        preserver.observe(me, zone, MemberState::Alive, now);
        preserver
    }

    /// Takes note of what membership says of a node. Returns the nodes about which the conclusion may have changed
    /// with it, besides this one.
    pub fn observe(&mut self, node: &NodeId, zone: &Zone, state: MemberState, now: Now) -> Vec<NodeId> {
        self.unknown.remove(node);
        let before = self.known.get(node).cloned();
        if before.as_ref().is_some_and(|before| before.state == state && before.zone == *zone) {
            return Vec::new();
        }
        let mut scopes = BTreeSet::from([Scope::Mesh, Scope::Zone(zone.clone())]);
        if let Some(before) = before {
            scopes.insert(Scope::Zone(before.zone.clone()));
            self.discount(node, &before, now);
        }
        for scope in [Scope::Mesh, Scope::Zone(zone.clone())] {
            let domain = self.domains.entry(scope).or_default();
            match state {
                MemberState::Alive => domain.alive += 1,
                MemberState::Lost => domain.lose(node, now.elapsed),
                MemberState::Left => {}
            }
        }
        self.known.insert(node.clone(), Known { zone: zone.clone(), state, since: now.elapsed });
        scopes.into_iter().flat_map(|scope| self.review(scope, state == MemberState::Lost, now)).collect()
    }

    /// Counts a node no longer.
    fn discount(&mut self, node: &NodeId, was: &Known, now: Now) {
        for scope in [Scope::Mesh, Scope::Zone(was.zone.clone())] {
            let Some(domain) = self.domains.get_mut(&scope) else { continue };
            domain.alive -= usize::from(was.state == MemberState::Alive);
            domain.recent.remove(node);
            domain.apart.remove(node);
            if let Some(episode) = &mut domain.episode
                && episode.nodes.remove_mut(node)
            {
                episode.changed = now;
                self.news = true;
            }
        }
    }

    /// Begins, widens or ends the self-preservation of a domain that has changed; returns who is concerned.
    fn review(&mut self, scope: Scope, lost: bool, now: Now) -> Vec<NodeId> {
        let Some(domain) = self.domains.get_mut(&scope) else { return Vec::new() };
        domain.expire(self.window, now.elapsed);
        let missing = domain.episode.as_ref().map_or(0, |episode| episode.nodes.size());
        let (share, of) = (self.share_percent, domain.alive + missing + domain.apart.len());
        if lost && too_many(share, domain.recent.len(), of) {
            let begins = domain.episode.is_none();
            let joining = domain.join(of, now);
            self.news = true;
            if begins {
                self.log_beginning(&scope, joining.len(), of);
            }
            return joining;
        }
        match &domain.episode {
            Some(_) if !too_many(share, missing, domain.alive + missing) => self.end(&scope, now),
            _ => Vec::new(),
        }
    }

    fn end(&mut self, scope: &Scope, now: Now) -> Vec<NodeId> {
        let Some(ended) = self.domains.get_mut(scope).and_then(Domain::part) else { return Vec::new() };
        let lasted = now.elapsed.since(ended.since.elapsed).as_secs();
        self.news = true;
        let (missing, of) = (ended.nodes.size(), ended.of);
        if self.is_told(scope) {
            tracing::info!(
                "self-preservation of {scope} has ended after {lasted} s: {missing} of {of} nodes are still missing{}",
                if missing > 0 { ", and are taken for dead" } else { "" }
            );
        }
        ended.nodes.iter().cloned().collect()
    }

    /// Of a mesh that is one zone, once is enough.
    fn is_told(&self, scope: &Scope) -> bool {
        *scope != Scope::Mesh || self.domains.len() > 2
    }

    fn log_beginning(&self, scope: &Scope, missing: usize, of: usize) {
        if !self.is_told(scope) {
            return;
        }
        tracing::warn!(
            "self-preservation of {scope} begins: {missing} of {of} nodes have vanished within {} s; their instances stay \
             candidates, doubtful, until the nodes are back or nothing has changed for {} s",
            self.window.as_secs(),
            self.quiet.as_secs(),
        );
    }

    /// Takes note of the owner of a record that membership has not told of.
    pub fn unheard_of(&mut self, node: &NodeId, now: Instant) {
        if !self.known.contains_key(node) && !self.unknown.contains_key(node) {
            self.unknown.insert(node.clone(), Unknown { since: now, doubtful: true });
            self.doubted.push_back((now, node.clone()));
        }
    }

    /// What to conclude of a node that is not there.
    pub fn conclusion(&self, node: &NodeId) -> Conclusion {
        let doubtful = match self.known.get(node) {
            Some(known) => self.episodes_of(&known.zone).any(|episode| episode.nodes.contains(node)),
            None => self.unknown.get(node).is_some_and(|unknown| unknown.doubtful),
        };
        if doubtful { Conclusion::Doubtful } else { Conclusion::Lost }
    }

    /// The nodes that have been away for at least so long and about which there is no doubt, and for how long.
    pub fn away_for(&self, at_least: Duration, now: Instant) -> Vec<(NodeId, Duration)> {
        let known = self.known.iter().filter(|(_, known)| known.state != MemberState::Alive);
        let since = known.map(|(node, known)| (node, known.since));
        let since = since.chain(self.unknown.iter().map(|(node, unknown)| (node, unknown.since)));
        let away = since.map(|(node, since)| (node.clone(), now.since(since))).filter(|(_, away)| *away >= at_least);
        away.filter(|(node, _)| self.conclusion(node) == Conclusion::Lost).collect()
    }

    /// Forgets a node that is not there.
    pub fn forget(&mut self, node: &NodeId) {
        self.unknown.remove(node);
        let gone = self.known.get(node).is_some_and(|known| known.state != MemberState::Alive);
        if gone && let Some(known) = self.known.remove(node) {
            let now = Now { elapsed: known.since, wall: WallTime::default() };
            self.discount(node, &known, now);
            let is_empty = |domain: &Domain| domain.alive + domain.by_time.len() == 0 && domain.episode.is_none();
            self.domains.retain(|_, domain| !is_empty(domain));
        }
    }

    fn episodes_of(&self, zone: &Zone) -> impl Iterator<Item = &Episode> {
        let scopes = [Scope::Mesh, Scope::Zone(zone.clone())];
        scopes.into_iter().filter_map(|scope| self.domains.get(&scope)?.episode.as_ref())
    }

    /// When [`Self::pass_time`] has something to say.
    pub fn next_deadline(&self) -> Option<Instant> {
        let ends = self.domains.values().filter_map(|domain| Some(self.end_of(domain.episode.as_ref()?)));
        ends.chain(self.doubted.front().map(|(since, _)| *since + self.window)).min()
    }

    fn end_of(&self, episode: &Episode) -> Instant {
        (episode.changed.elapsed + self.quiet).min(episode.since.elapsed + self.quiet * LONGEST)
    }

    /// Ends what has lasted for long enough; returns the nodes about which the conclusion may have changed.
    pub fn pass_time(&mut self, now: Now) -> Vec<NodeId> {
        let mut changed = Vec::new();
        while let Some((_, node)) = self.doubted.pop_front_if(|(since, _)| *since + self.window <= now.elapsed) {
            if let Some(unknown) = self.unknown.get_mut(&node) {
                unknown.doubtful = false;
                changed.push(node);
            }
        }
        let is_over = |domain: &Domain| domain.episode.as_ref().is_some_and(|e| self.end_of(e) <= now.elapsed);
        let over: Vec<Scope> =
            self.domains.iter().filter(|(_, domain)| is_over(domain)).map(|(scope, _)| scope.clone()).collect();
        for scope in over {
            changed.extend(self.end(&scope, now));
        }
        changed
    }

    /// How things stand, for people, if that has changed since it was last asked.
    pub fn news(&mut self) -> Option<Vec<Preservation>> {
        std::mem::take(&mut self.news).then(|| self.shown())
    }

    fn shown(&self) -> Vec<Preservation> {
        let shown = |(scope, domain): (&Scope, &Domain)| {
            let episode = domain.episode.as_ref().filter(|_| self.is_told(scope))?;
            let quiet_ms = self.quiet.as_millis() as u64;
            let (changed, since) = (episode.changed.wall.0, episode.since.wall.0);
            let ends = WallTime((changed + quiet_ms).min(since + quiet_ms * u64::from(LONGEST)));
            Some(Preservation {
                zone: match scope {
                    Scope::Mesh => None,
                    Scope::Zone(zone) => Some(zone.clone()),
                },
                since: episode.since.wall,
                ends,
                of: episode.of,
                missing: episode.nodes.clone(),
            })
        };
        self.domains.iter().filter_map(shown).collect()
    }
}

impl Domain {
    fn lose(&mut self, node: &NodeId, now: Instant) {
        self.recent.insert(node.clone(), now);
        self.by_time.push_back((now, node.clone()));
        self.apart.insert(node.clone());
    }

    /// Those lost before the window are recent no longer.
    fn expire(&mut self, window: Duration, now: Instant) {
        while let Some((at, node)) = self.by_time.pop_front_if(|(at, _)| *at + window < now) {
            // It may be back, and even lost again.
            if self.recent.get(&node) == Some(&at) {
                self.recent.remove(&node);
                self.apart.remove(&node);
            }
        }
    }

    /// Takes all recent ones into the episode, and returns those that are new in it.
    fn join(&mut self, of: usize, now: Now) -> Vec<NodeId> {
        let joining: Vec<NodeId> = std::mem::take(&mut self.apart).into_iter().collect();
        let begun = Episode { since: now, changed: now, of, nodes: RedBlackTreeSetSync::new_sync() };
        let episode = self.episode.get_or_insert(begun);
        (episode.changed, episode.of) = (now, of);
        joining.iter().for_each(|node| episode.nodes.insert_mut(node.clone()));
        joining
    }

    /// Ends the episode. Those of it that were lost within the window can join another one.
    fn part(&mut self) -> Option<Episode> {
        let ended = self.episode.take()?;
        self.apart.extend(ended.nodes.iter().filter(|node| self.recent.contains_key(*node)).cloned());
        Some(ended)
    }
}

/// Whether so many of so many nodes are too many to have died at the same moment.
fn too_many(share_percent: usize, lost: usize, of: usize) -> bool {
    if lost < 2 || share_percent >= 100 {
        return false;
    }
    if of < SMALL { lost * 2 >= of } else { lost * 100 > of * share_percent }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Mesh => f.write_str("the whole mesh"),
            Scope::Zone(zone) => write!(f, "zone {zone}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one node, `n0`, is told; all zones are `a` unless said otherwise.
    struct Story {
        preserver: Preserver,
        zones: BTreeMap<usize, &'static str>,
        at_s: u64,
    }

    fn node(number: usize) -> NodeId {
        format!("n{number}").parse().unwrap()
    }

    impl Story {
        fn of(size: usize) -> Self {
            Self::zoned(size, |_| "a")
        }

        fn zoned(size: usize, zone: impl Fn(usize) -> &'static str) -> Self {
            let zones: BTreeMap<usize, &'static str> = (0..size).map(|number| (number, zone(number))).collect();
            let me = zones[&0].parse().unwrap();
            let preserver = Preserver::new(&Settings::default(), &node(0), &me, Now::default());
            let mut story = Self { preserver, zones, at_s: 0 };
            story.tell(1..size, MemberState::Alive);
            story
        }

        fn now(&self) -> Now {
            Now { elapsed: Instant(self.at_s * 1_000_000), wall: WallTime(self.at_s * 1_000) }
        }

        fn tell(&mut self, nodes: impl IntoIterator<Item = usize>, state: MemberState) {
            for number in nodes {
                let zone = self.zones[&number].parse().unwrap();
                let now = self.now();
                self.preserver.observe(&node(number), &zone, state, now);
            }
        }

        fn lose(&mut self, nodes: impl IntoIterator<Item = usize>) {
            self.tell(nodes, MemberState::Lost);
        }

        fn after(&mut self, seconds: u64) {
            self.at_s += seconds;
            let now = self.now();
            self.preserver.pass_time(now);
            assert!(
                self.preserver.next_deadline().is_none_or(|due| due > now.elapsed),
                "it would be due at once again"
            );
        }

        fn doubtful(&self) -> Vec<usize> {
            let is_doubtful = |number: &usize| self.preserver.conclusion(&node(*number)) == Conclusion::Doubtful;
            (0..self.zones.len()).filter(is_doubtful).collect()
        }
    }

    #[test]
    fn one_dead_host_is_dead_however_small_the_mesh() {
        for size in [2, 3, 7, 100] {
            let mut story = Story::of(size);
            story.lose([1]);
            assert!(story.doubtful().is_empty() && story.preserver.shown().is_empty(), "of {size}");
        }
    }

    #[test]
    fn of_three_the_one_that_is_cut_off_preserves_and_the_two_do_not() {
        let mut alone = Story::of(3);
        alone.lose([1, 2]);
        assert_eq!(alone.doubtful(), [1, 2]);
        let mut one_of_two = Story::of(3);
        one_of_two.lose([1]);
        assert!(one_of_two.doubtful().is_empty());
    }

    #[test]
    fn in_a_small_mesh_it_takes_half_and_in_a_large_one_the_share() {
        for (size, enough) in [(4, 2), (5, 3), (9, 5), (10, 2), (20, 4), (100, 16)] {
            let mut story = Story::of(size);
            story.lose(1..enough);
            assert!(story.doubtful().is_empty(), "{} of {size} are dead", enough - 1);
            story.lose([enough]);
            assert_eq!(story.doubtful().len(), enough, "{enough} of {size} are too many, those before included");
        }
    }

    #[test]
    fn a_zone_that_vanishes_is_preserved_and_a_host_of_another_that_dies_later_is_not() {
        let mut story = Story::zoned(30, |number| ["a", "b", "c"][number % 3]);
        story.lose((0..30).filter(|number| number % 3 == 2));
        assert_eq!(story.doubtful().len(), 10);
        let shown = story.preserver.shown();
        let zones: Vec<Option<&str>> = shown.iter().map(|one| one.zone.as_ref().map(Zone::as_str)).collect();
        assert_eq!(zones, [None, Some("c")]);
        assert_eq!((shown[0].of, shown[1].of, shown[1].missing.size()), (30, 10, 10));
        story.after(61);
        story.lose([1]);
        assert!(!story.doubtful().contains(&1), "it did not vanish together with the zone");
    }

    #[test]
    fn zones_of_single_nodes_are_judged_together() {
        const ZONES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
        let mut story = Story::zoned(6, |number| ZONES[number]);
        story.lose([3, 4, 5]);
        assert_eq!(story.doubtful(), [3, 4, 5]);
    }

    #[test]
    fn hosts_that_die_one_after_the_other_are_dead() {
        let mut story = Story::of(20);
        for number in 1..20 {
            story.lose([number]);
            story.after(61);
        }
        assert!(story.doubtful().is_empty());
    }

    #[test]
    fn it_ends_when_enough_are_back_and_the_rest_is_dead() {
        let mut story = Story::of(20);
        story.lose(1..=10);
        story.tell(1..8, MemberState::Alive);
        assert!(story.doubtful().is_empty() && story.preserver.shown().is_empty());
        assert_eq!(story.preserver.conclusion(&node(8)), Conclusion::Lost);
    }

    #[test]
    fn a_scale_in_without_a_word_is_preserved_for_ten_minutes_and_then_dead() {
        let mut story = Story::of(20);
        story.lose(1..=10);
        story.after(599);
        assert_eq!(story.doubtful().len(), 10);
        story.after(1);
        assert!(story.doubtful().is_empty() && story.preserver.shown().is_empty());
    }

    #[test]
    fn a_clean_scale_in_is_no_loss() {
        let mut story = Story::of(20);
        story.tell(1..=18, MemberState::Left);
        assert!(story.doubtful().is_empty() && story.preserver.shown().is_empty());
    }

    #[test]
    fn flapping_does_not_keep_it_for_ever() {
        let mut story = Story::of(20);
        story.lose(1..=10);
        let mut lasted = 0;
        while !story.doubtful().is_empty() {
            story.tell([1], MemberState::Alive);
            story.after(61);
            story.lose([1]);
            story.after(61);
            lasted += 122;
            assert!(lasted <= 3_700, "it has lasted for {lasted} s");
        }
    }

    #[test]
    fn everything_that_restarts_at_once_is_back_without_a_trace() {
        let mut story = Story::of(20);
        story.lose(1..20);
        assert_eq!(story.doubtful().len(), 19);
        story.after(5);
        story.tell(1..20, MemberState::Alive);
        assert!(story.preserver.shown().is_empty());
        story.after(3);
        story.lose([4]);
        assert!(story.doubtful().is_empty(), "those that came back are not counted as lost");
    }

    #[test]
    fn an_owner_never_heard_of_is_doubtful_for_as_long_as_it_may_take_to_appear() {
        let mut story = Story::of(1);
        story.zones.insert(1, "a");
        let now = story.now().elapsed;
        story.preserver.unheard_of(&node(1), now);
        assert_eq!(story.doubtful(), [1]);
        story.after(60);
        assert_eq!(story.preserver.conclusion(&node(1)), Conclusion::Lost);
    }

    #[test]
    fn thousands_that_vanish_and_come_back_leave_nothing_behind() {
        let mut story = Story::of(5_000);
        story.lose(1..4_000);
        assert_eq!(story.preserver.shown()[0].missing.size(), 3_999);
        story.tell(1..4_000, MemberState::Alive);
        assert!(story.preserver.shown().is_empty());
        story.after(61);
        story.lose([4_999]);
        let domain = &story.preserver.domains[&Scope::Mesh];
        assert_eq!((domain.recent.len(), domain.by_time.len(), domain.apart.len()), (1, 1, 1));
        story.preserver.forget(&node(4_999));
        assert_eq!(story.preserver.known.len(), 4_999);
    }
}
