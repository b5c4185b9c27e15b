//! What the model promises to tests: that its faults are faults, and that its judgements judge.

use starling_core::registry::{Address, Check, CheckKind, Instance, Status};
use starling_core::view::{MemberState, Usability};
use starling_sim::{Latency, Links, Mesh, NodeState, Sabotage, Story, ask, millis, secs};

fn state(mesh: &Mesh, observer: &str, subject: &str) -> MemberState {
    let view = mesh.view(observer);
    view.member(&subject.parse().expect("a node id")).expect("a member").state
}

#[test]
fn nodes_lose_each_other_after_the_detection_time_even_when_only_one_direction_is_cut() {
    let mut mesh = Mesh::builder(1).nodes(3).detection(secs(2), millis(200)).build();
    mesh.cut_one_way(&["n1"], &["n2"]);
    mesh.run_for(millis(1_900));
    assert_eq!(state(&mesh, "n1", "n2"), MemberState::Alive);
    mesh.run_for(millis(700));
    assert_eq!([state(&mesh, "n1", "n2"), state(&mesh, "n2", "n1")], [MemberState::Lost; 2]);
    assert_eq!(state(&mesh, "n3", "n1"), MemberState::Alive);
    mesh.heal();
    mesh.run_for(millis(300));
    assert_eq!([state(&mesh, "n1", "n2"), state(&mesh, "n2", "n1")], [MemberState::Alive; 2]);
}

#[test]
fn across_a_cut_the_later_word_wins_on_every_node_whichever_it_is() -> Result<(), Story> {
    for (earlier, later) in [(Status::Up, Status::Down), (Status::Down, Status::Up)] {
        let mut mesh = Mesh::builder(4).nodes(3).build();
        let instances: Vec<String> = (0..40).map(|number| format!("orders/o{number}")).collect();
        for number in 0..instances.len() {
            mesh.register("n1", "orders", &format!("o{number}"));
        }
        mesh.converges_within(secs(5))?;
        mesh.cut(&["n1"], &["n2", "n3"]);
        instances.iter().for_each(|path| mesh.override_status("n1", path, earlier));
        mesh.run_for(secs(5));
        instances.iter().for_each(|path| mesh.override_status("n3", path, later));
        mesh.run_for(secs(5));
        mesh.heal();
        mesh.converges_within(secs(5))?;
        for node in ["n1", "n2", "n3"] {
            let view = mesh.view(node);
            for path in &instances {
                let key = ask::instance_key(path).expect("a name");
                assert_eq!(view.instance(&key).expect("an instance").status(), later, "{node} {path}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_short_cut_is_not_noticed() {
    let mut mesh = Mesh::builder(2).nodes(2).build();
    mesh.cut(&["n1"], &["n2"]);
    mesh.run_for(secs(1));
    mesh.heal();
    mesh.run_for(secs(5));
    assert!(!mesh.journal().any(|line| line.contains("loses")), "{}", mesh.explain());
}

#[test]
fn a_crash_keeps_the_disk_and_a_restart_is_a_newer_incarnation() -> Result<(), Story> {
    let mut mesh = Mesh::builder(3).nodes(3).build();
    mesh.register("n1", "orders", "o1");
    mesh.run_for(secs(1));
    mesh.crash("n1");
    assert!(mesh.try_view("n1").is_none());
    mesh.run_for(secs(5));
    assert_eq!(mesh.instance("n2", "orders/o1").unwrap().usability, Usability::OwnerLost);
    mesh.restart("n1");
    assert!(mesh.sees("n1", "orders/o1"), "it remembers by itself");
    mesh.run_for(secs(1));
    let view = mesh.view("n2");
    assert_eq!(view.member(&"n1".parse().unwrap()).unwrap().facts.incarnation.0, 2);
    mesh.all_trust("orders/o1")?;
    mesh.nothing_lost()
}

#[test]
fn what_was_not_on_disk_before_a_crash_was_not_acknowledged() -> Result<(), Story> {
    let mut mesh = Mesh::builder(4).nodes(1).disk(millis(10)).build();
    let early = mesh.submit("n1", ask::register("orders/early")).unwrap();
    mesh.run_for(millis(10));
    let late = mesh.submit("n1", ask::register("orders/late")).unwrap();
    mesh.run_for(millis(5));
    mesh.crash("n1");
    mesh.restart("n1");
    mesh.run_for(secs(1));
    assert!(mesh.outcome(early).is_some_and(|answer| answer.is_ok()) && mesh.outcome(late).is_none());
    assert!(mesh.sees("n1", "orders/early") && !mesh.sees("n1", "orders/late"));
    mesh.nothing_lost()
}

#[test]
fn a_clean_stop_is_known_at_once_and_takes_its_instances_out() {
    let mut mesh = Mesh::builder(5).nodes(4).build();
    mesh.register("n1", "orders", "o1");
    mesh.run_for(secs(1));
    mesh.leave("n1");
    mesh.run_for(millis(5));
    for node in ["n2", "n3", "n4"] {
        assert_eq!(mesh.instance(node, "orders/o1").unwrap().usability, Usability::OwnerLeft);
    }
    mesh.run_for(secs(1));
    assert!(mesh.try_view("n1").is_none());
}

#[test]
fn a_paused_node_goes_on_where_it_was() -> Result<(), Story> {
    let mut mesh = Mesh::builder(6).nodes(3).build();
    mesh.pause("n3");
    mesh.run_for(secs(4));
    mesh.register("n1", "orders", "o1");
    mesh.run_for(secs(4));
    assert!(mesh.command("n3", ask::register("orders/o2")).is_err() && !mesh.sees("n3", "orders/o1"));
    mesh.resume("n3");
    mesh.converges_within(secs(5))?;
    mesh.all_see("orders/o1")
}

#[test]
fn a_node_whose_clock_is_far_ahead_is_believed_only_when_time_has_caught_up() -> Result<(), Story> {
    let mut mesh = Mesh::builder(7).nodes(3).build();
    mesh.skew("n1", 10_000);
    mesh.register("n1", "orders", "o1");
    mesh.run_for(secs(3));
    assert!(!mesh.sees("n2", "orders/o1"));
    assert!(mesh.report().counters.refused > 0);
    assert!(mesh.converged().is_err());
    mesh.run_for(secs(6));
    mesh.all_see("orders/o1")
}

#[test]
fn probes_follow_their_script() -> Result<(), Story> {
    let mut mesh = Mesh::builder(8).nodes(3).build();
    let mut instance = Instance::at(Address { host: "app.test".into(), port: 8080 });
    instance = instance.checked(Check { interval_ms: 1_000, ..Check::new(CheckKind::Tcp) });
    mesh.register_as("n1", "orders/o1", instance);
    mesh.run_for(secs(2));
    mesh.all_trust("orders/o1")?;
    mesh.probes("orders/o1", false);
    mesh.run_for(secs(4));
    assert_eq!(mesh.instance("n3", "orders/o1").unwrap().usability, Usability::Health);
    mesh.probes("orders/o1", true);
    mesh.run_for(secs(2));
    mesh.all_trust("orders/o1")
}

#[test]
fn a_story_says_what_differs_where_and_how_to_see_it_again() {
    let mut mesh = Mesh::builder(9).nodes(3).loss(1.0).build();
    mesh.register("n2", "orders", "o1");
    let story = mesh.converges_within(secs(1)).unwrap_err().to_string();
    assert!(story.contains("default/orders/o1: n1 has nothing, n2 has UP weight 100"), "{story}");
    assert!(story.contains("n2: register default/orders/o1"), "{story}");
    assert!(story.ends_with("replay: Mesh::builder(9).nodes(3).loss(1.0)"), "{story}");
    let story = mesh.all_see("orders/o1").unwrap_err().to_string();
    assert!(story.contains("it is not so at 2 of 3 nodes") && story.contains("not at n1"), "{story}");
}

#[test]
fn figures_tell_what_a_change_cost() -> Result<(), Story> {
    let mut mesh = Mesh::builder(10).nodes(5).bandwidth(1_000_000).build();
    mesh.run_for(secs(5));
    mesh.register("n1", "orders", "o1");
    mesh.converges_within(secs(1))?;
    let report = mesh.report();
    assert_eq!((report.writes, report.acknowledged, report.not_everywhere), (1, 1, 0));
    assert_eq!((report.visible.count(), report.visible_through_faults.count()), (1, 0));
    assert!(report.visible.max() < millis(5) && report.copies_per_receiver() <= 4.0, "{report}");
    Ok(())
}

#[test]
fn power_lost_in_the_middle_of_writes_leaves_any_part_of_them_and_nothing_acknowledged_is_missing() -> Result<(), Story>
{
    let mut survivors = std::collections::BTreeSet::new();
    for seed in 1..=20 {
        let mut mesh = Mesh::builder(seed).nodes(2).disk(millis(10)).quiet().build();
        mesh.register("n1", "orders", "acknowledged");
        for i in 0..4 {
            mesh.submit("n1", ask::register(&format!("orders/o{i}"))).unwrap();
        }
        mesh.cut(&["n1"], &["n2"]);
        mesh.crash_torn("n1");
        mesh.restart("n1");
        assert!(mesh.sees("n1", "orders/acknowledged"));
        survivors.insert((0..4).map(|i| mesh.sees("n1", &format!("orders/o{i}"))).collect::<Vec<_>>());
        mesh.heal();
        mesh.converges_within(secs(5))?;
        mesh.nothing_lost()?;
    }
    assert!(survivors.len() > 5, "{survivors:?}");
    Ok(())
}

#[test]
fn a_slow_node_falls_behind_the_others_and_catches_up() -> Result<(), Story> {
    let mut mesh = Mesh::builder(12).nodes(4).build();
    mesh.slow("n4", millis(200));
    for i in 0..10 {
        mesh.register("n1", "orders", &format!("o{i}"));
    }
    mesh.run_for(millis(400));
    assert!(mesh.sees("n2", "orders/o9") && !mesh.sees("n4", "orders/o9"));
    mesh.slow("n4", millis(0));
    mesh.converges_within(secs(10))?;
    mesh.nothing_lost()
}

#[test]
fn links_between_two_zones_can_be_slower_than_within_them() {
    let wan = Links { latency: Latency::Fixed(millis(100)), ..Links::default() };
    let mut mesh = Mesh::builder(13)
        .nodes(4)
        .zones(["a", "b"])
        .latency(Latency::Fixed(millis(1)))
        .between_zones("a", "b", wan)
        .between_zones("b", "a", wan)
        .build();
    mesh.register("n1", "orders", "o1");
    mesh.run_for(millis(50));
    assert!(mesh.sees("n3", "orders/o1") && !mesh.sees("n2", "orders/o1"));
    mesh.run_for(millis(60));
    assert!(mesh.sees("n2", "orders/o1"));
}

#[test]
fn what_is_mended_is_as_at_the_beginning() -> Result<(), Story> {
    let mut mesh = Mesh::builder(14).nodes(5).build();
    mesh.register("n1", "orders", "o1");
    mesh.cut(&["n1"], &["n2", "n3"]);
    mesh.crash("n1");
    mesh.pause("n2");
    mesh.slow("n3", secs(1));
    mesh.slow_disk("n4", secs(100));
    mesh.skew("n5", 4_000);
    mesh.set_links(Links { loss: 1.0, ..Links::default() });
    mesh.run_for(secs(10));
    mesh.mend();
    mesh.register("n4", "orders", "o2");
    mesh.converges_within(secs(10))?;
    mesh.all_trust("orders/o1")?;
    mesh.all_trust("orders/o2")?;
    mesh.nothing_lost()
}

#[test]
fn a_healed_part_of_a_cut_is_open_and_the_rest_is_not() {
    let mut mesh = Mesh::builder(15).nodes(3).build();
    mesh.cut(&["n1"], &["n2", "n3"]);
    mesh.heal_between(&["n1"], &["n2"]);
    mesh.run_for(secs(5));
    assert_eq!(state(&mesh, "n1", "n2"), MemberState::Alive);
    assert_eq!(state(&mesh, "n1", "n3"), MemberState::Lost);
}

#[test]
fn what_is_broken_on_purpose_is_found() {
    let mut mesh = Mesh::builder(16).nodes(3).sabotage(Sabotage::DropRemovals).build();
    mesh.register("n1", "orders", "o1");
    mesh.run_for(secs(1));
    mesh.deregister("n1", "orders/o1");
    assert!(mesh.converges_within(secs(20)).is_err());

    let mut mesh = Mesh::builder(17).nodes(1).sabotage(Sabotage::ForgetDisk).build();
    mesh.register("n1", "orders", "o1");
    mesh.crash("n1");
    mesh.restart("n1");
    assert!(mesh.nothing_lost().is_err());

    let mut mesh = Mesh::builder(18).nodes(2).sabotage(Sabotage::MuteRepair).build();
    mesh.cut(&["n1"], &["n2"]);
    mesh.run_for(secs(5));
    mesh.register("n1", "orders", "o1");
    mesh.heal();
    assert!(mesh.converges_within(secs(20)).is_err());
}

#[test]
fn a_recording_tells_who_knew_what_when_and_changes_nothing() -> Result<(), Story> {
    let run = |builder: starling_sim::Builder| -> Result<Mesh, Story> {
        let mut mesh = builder.build();
        mesh.run_for(millis(1_500));
        mesh.cut(&["n1"], &["n2", "n3"]);
        mesh.run_for(millis(500));
        mesh.register("n1", "orders", "o1");
        mesh.crash("n3");
        mesh.heal_between(&["n1"], &["n2"]);
        mesh.run_for(secs(2));
        mesh.heal();
        mesh.restart("n3");
        mesh.converges_within(secs(5))?;
        Ok(mesh)
    };
    let (plain, recorded) = (run(Mesh::builder(19).nodes(3))?, run(Mesh::builder(19).nodes(3).record())?);
    assert_eq!(plain.report(), recorded.report());
    assert!(plain.recording().is_none());
    let recording = recorded.recording().unwrap();
    let states: Vec<NodeState> = recording.nodes[2].states.iter().map(|change| change.state).collect();
    assert_eq!(states, [NodeState::Running, NodeState::Crashed, NodeState::Running]);
    let spans: Vec<_> =
        recording.cuts.iter().map(|cut| (&cut.from[..], &cut.to[..], cut.begin_us, cut.end_us)).collect();
    assert_eq!(
        spans,
        [
            (&[0][..], &[1, 2][..], 1_500_000, Some(2_000_000)),
            (&[1, 2][..], &[0][..], 1_500_000, Some(2_000_000)),
            (&[0][..], &[2][..], 2_000_000, Some(4_000_000)),
            (&[2][..], &[0][..], 2_000_000, Some(4_000_000)),
        ]
    );
    let write = &recording.writes[0];
    assert_eq!((write.key.as_str(), write.author, write.at_us), ("instance default/orders/o1", 0, 2_000_000));
    assert_eq!((write.acknowledged_us, write.seen_us[0]), (Some(2_000_000), Some(2_000_000)));
    assert!(write.seen_us[1].is_some_and(|at| at > 2_000_000));
    assert!(recording.seconds.len() >= 4 && recording.left_out == 0);
    assert!(recording.seconds[3].sent.values().any(|sent| sent.messages > 0));
    assert!(recording.nodes[0].alive.iter().any(|counted| counted.count == 2), "{:?}", recording.nodes[0].alive);
    Ok(())
}

#[test]
fn a_node_that_goes_on_notices_who_was_lost_while_it_stood_still() {
    let mut mesh = Mesh::builder(20).nodes(3).build();
    mesh.pause("n1");
    mesh.run_for(secs(1));
    mesh.crash("n2");
    mesh.run_for(secs(10));
    mesh.resume("n1");
    mesh.run_for(secs(1));
    assert_eq!(state(&mesh, "n1", "n2"), MemberState::Alive);
    mesh.run_for(secs(2));
    assert_eq!([state(&mesh, "n1", "n2"), state(&mesh, "n1", "n3")], [MemberState::Lost, MemberState::Alive]);
}
