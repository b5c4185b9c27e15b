//! Where requests go: near or far, to a part of the instances, and when few are left.

use super::*;
use crate::registry::{Details, Metadata, Tags};

fn at(zone: &str, names: &[&str]) -> Vec<InstanceView> {
    names.iter().map(|name| instance(name, 100, zone, Usability::Ready)).collect()
}

/// An instance of a version with tags.
fn of(name: &str, version: &str, tags: &[&str], metadata: &[(&str, &str)]) -> InstanceView {
    let mut instance = instance(name, 100, "default", Usability::Ready);
    let tags: Tags = tags.iter().copied().collect();
    let metadata: Metadata = metadata.iter().copied().collect();
    let record = Arc::make_mut(&mut instance.record);
    record.instance.version = version.into();
    record.instance.details = Details::new(tags, metadata, None);
    instance
}

/// How many of 1,000 requests go to instances whose name begins so.
fn to(village: &mut Village, prefix: &str) -> usize {
    (0..1_000).filter(|_| village.choose().unwrap().starts_with(prefix)).count()
}

#[test]
fn traffic_leaves_the_zone_in_proportion_to_what_is_broken_there() {
    let near = at("default", &["near-1", "near-2", "near-3", "near-4"]);
    let far = at("other", &["far-1", "far-2"]);
    for (broken, stay) in [(0, 1_000), (1, 1_000), (2, 700), (3, 350), (4, 0)] {
        let mut village = Village::of(&[near.clone(), far.clone()].concat());
        (1..=broken).for_each(|number| village.break_down(&format!("near-{number}")));
        let stayed = to(&mut village, "near");
        assert!(stayed.abs_diff(stay) <= 60, "{broken} of 4 broken: {stayed} stay, not {stay}");
    }
}

#[test]
fn instances_that_fail_their_check_count_as_missing_from_their_zone() {
    let mut instances = at("default", &["near-1"]);
    instances.extend(at("other", &["far-1"]));
    instances.push(instance("near-2", 100, "default", Usability::Health));
    let stayed = to(&mut Village::of(&instances), "near");
    assert!((640..760).contains(&stayed), "half of the zone works, times 1.4: {stayed}");
}

#[test]
fn where_it_is_does_not_matter_if_it_is_said_so() {
    let settings = BalanceSettings { locality: Locality::Anywhere, ..BalanceSettings::default() };
    let instances = [at("default", &["near"]), at("other", &["far-1", "far-2", "far-3"])].concat();
    let stayed = to(&mut Village::with(settings, &instances), "near");
    assert!((180..320).contains(&stayed), "{stayed}");
}

/// A picture with so many nodes per zone; all but those of `abroad` are in this node's region.
fn peopled(zones: &[(&str, usize)]) -> View {
    let mut view = view(1);
    view.members = Default::default();
    for (zone, count) in zones {
        for number in 0..*count {
            let node: NodeId = format!("{zone}-{number}").parse().unwrap();
            let mut facts = facts(1);
            facts.zone = zone.parse().unwrap();
            if *zone == "abroad" {
                facts.region = "elsewhere".parse().unwrap();
            }
            let member = MemberView { node: node.clone(), facts, state: MemberState::Alive, since: WallTime(0) };
            view.members.insert_mut(node, Arc::new(member));
        }
    }
    view
}

fn owned(mut instance: InstanceView, owner: &str) -> InstanceView {
    Arc::make_mut(&mut instance.record).claim.stamp.node = owner.parse().unwrap();
    instance
}

#[test]
fn the_region_comes_before_everywhere_else() {
    let view = peopled(&[("default", 1), ("other", 1), ("abroad", 1)]);
    let instances = [
        owned(instance("near", 100, "default", Usability::Ready), "default-0"),
        owned(instance("region", 100, "other", Usability::Ready), "other-0"),
        owned(instance("abroad", 100, "abroad", Usability::Ready), "abroad-0"),
    ];
    let roster = Roster::new(&service(&instances), &view, BreakerSettings::default(), NOW, None);
    let group = Group::new(Arc::new(roster), Arc::default());
    let mut village = Village { group, now: NOW, rng: fastrand::Rng::with_seed(7) };
    assert_eq!(village.choose().unwrap(), "near");
    assert_eq!(village.choose_except(&["near"]).unwrap(), "region");
    assert_eq!(village.choose_except(&["near", "region"]).unwrap(), "abroad");
}

#[test]
fn a_zone_with_many_callers_and_few_instances_is_not_overrun() {
    // Three quarters of the callers are here, and a quarter of the instances: a third of what they send can stay.
    let view = peopled(&[("default", 9), ("other", 3)]);
    let instances = [at("default", &["near"]), at("other", &["far-1", "far-2", "far-3"])].concat();
    for (locality, least, most) in [(Locality::ZoneByCapacity, 280, 390), (Locality::Zone, 1_000, 1_000)] {
        let settings = BalanceSettings { locality, ..BalanceSettings::default() };
        let roster = Roster::new(&service(&instances), &view, BreakerSettings::default(), NOW, None);
        let group = Group::new(Arc::new(roster), Arc::new(settings));
        let mut village = Village { group, now: NOW, rng: fastrand::Rng::with_seed(7) };
        let stayed = to(&mut village, "near");
        assert!((least..=most).contains(&stayed), "{locality:?}: {stayed}");
    }
}

#[test]
fn in_panic_those_broken_by_their_answers_share_the_load_again() {
    for (panic_percent, broken_get) in [(0, 0..1), (50, 650..850)] {
        let settings = BalanceSettings { panic_percent, ..BalanceSettings::default() };
        let mut village = Village::guarded(all_may_be_out(), settings, &named(&[100; 4]));
        ["a", "b", "c"].iter().for_each(|name| village.break_by(name, Fault::Answer));
        let to_broken = 1_000 - to(&mut village, "d");
        assert!(broken_get.contains(&to_broken), "panic below {panic_percent} %: {to_broken}");
    }
}

#[test]
fn a_subset_is_named_by_tags_version_and_metadata() {
    let instances = [
        of("old", "1", &["stable"], &[]),
        of("new", "2", &["canary", "stable"], &[("gpu", "yes")]),
        of("plain", "2", &[], &[]),
    ];
    let only = |subset: &str| {
        let subset: Subset = serde_json::from_str(subset).unwrap();
        let mut village = Village::with(BalanceSettings { subset, ..BalanceSettings::default() }, &instances);
        let chosen: std::collections::BTreeSet<_> = (0..100).filter_map(|_| village.choose()).collect();
        chosen.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(only(r#"{"tags": ["stable"]}"#), "new old");
    assert_eq!(only(r#"{"tags": ["stable", "canary"]}"#), "new");
    assert_eq!(only(r#"{"version": "2"}"#), "new plain");
    assert_eq!(only(r#"{"version": "2", "metadata": {"gpu": "yes"}}"#), "new");
    assert_eq!(only(r#"{"version": "3"}"#), "new old plain", "any is better than none, unless it is said otherwise");
    assert_eq!(only(r#"{"version": "3", "otherwise": "untagged"}"#), "plain");
    assert_eq!(only(r#"{"version": "3", "otherwise": "nowhere"}"#), "");
}

#[test]
fn groups_of_one_roster_know_the_same_of_an_instance() {
    let village = Village::of(&named(&[100, 100]));
    let subset = Subset { version: Some(String::new()), ..Subset::default() };
    let other = Group::new(village.group.roster().clone(), Arc::new(BalanceSettings { subset, ..Default::default() }));
    village.break_down("a");
    let mut village = Village { group: other, ..village };
    assert!((0..100).all(|_| village.choose().unwrap() == "b"));
}
