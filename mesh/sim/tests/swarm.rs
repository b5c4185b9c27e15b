//! Many seeds: what they draw holds, what is broken on purpose is found and told in a few steps.

use std::collections::BTreeSet;

use starling_sim::scenario::{Action, Scenario, run};
use starling_sim::swarm::{Failure, Shape, Swarm};
use starling_sim::{Checker, Mesh, Sabotage, secs};

#[test]
fn two_hundred_drawn_runs_lose_nothing_and_come_to_agree() {
    let summary = Swarm::default().run(1..=200, |_| {});
    assert!(summary.ok(), "{summary}");
    assert_eq!(summary.played, 200);
    let seldom: Vec<_> = summary.steps.iter().filter(|(_, seeds)| **seeds < 20).collect();
    assert!(seldom.is_empty() && summary.steps.len() >= 25, "every kind of trouble is drawn: {summary}");
}

#[test]
fn several_cells_an_ocean_apart_come_to_agree_too() {
    let shape = Shape { nodes: 4..=9, cells: 2..=3, agree_within: secs(30), ..Shape::default() };
    let summary = Swarm::default().shape(shape).run(1..=20, |_| {});
    assert!(summary.ok(), "{summary}");
}

#[test]
fn the_same_seeds_give_the_same_summary_whoever_plays_them() {
    let swarm = |threads| Swarm::default().shape(broken(Sabotage::DropRemovals)).threads(threads).run(1..=30, |_| {});
    let (alone, together) = (swarm(1), swarm(4));
    assert_eq!(alone.to_string(), together.to_string());
}

#[test]
fn a_seed_draws_the_same_scenario_again_and_it_reads_back_from_its_file() {
    for seed in [1, 77, 4_711] {
        let drawn = Shape::default().draw(seed);
        assert_eq!(drawn.to_string(), Shape::default().draw(seed).to_string());
        let read: Scenario = drawn.to_string().parse().unwrap();
        assert_eq!(run(&drawn, seed).to_string(), run(&read, seed).to_string());
    }
}

fn broken(sabotage: Sabotage) -> Shape {
    Shape { sabotage: Some(sabotage), ..Shape::default() }
}

fn first_failure(swarm: &Swarm) -> Box<Failure> {
    (1..=50).find_map(|seed| swarm.play(seed).err()).expect("a mesh that is broken fails some seed of fifty")
}

#[test]
fn what_is_broken_on_purpose_is_found_and_told_in_a_few_steps() {
    for (sabotage, most_steps) in [(Sabotage::DropRemovals, 4), (Sabotage::ForgetDisk, 5), (Sabotage::MuteRepair, 6)] {
        let failure = first_failure(&Swarm::default().shape(broken(sabotage)));
        let shrunk = failure.shrunk.as_ref().expect("a failure is made smaller");
        assert_eq!(shrunk.verdict.kind, failure.verdict.kind);
        assert!(shrunk.steps.1 <= most_steps && shrunk.nodes.1 <= 3, "{failure}");
        let file: Scenario = shrunk.scenario.to_string().parse().unwrap();
        let again = run(&file, file.seed());
        assert_eq!(again.failed()[0].kind, failure.verdict.kind, "the file tells it again\n{failure}");
        assert!(failure.to_string().contains(&format!("replay: play({}) of this swarm", failure.seed)), "{failure}");
    }
}

/// Forbids what is no fault at all, to see it found.
#[derive(Debug)]
struct NeverTwoDown;

impl Checker for NeverTwoDown {
    fn name(&self) -> &'static str {
        "never-two-down"
    }

    fn look(&mut self, mesh: &Mesh) -> Vec<String> {
        let running: BTreeSet<_> = mesh.running().into_iter().collect();
        let down: Vec<String> =
            mesh.nodes().into_iter().filter(|node| !running.contains(node)).map(|node| node.to_string()).collect();
        if down.len() < 2 { Vec::new() } else { vec![format!("{} are down together", down.join(" and "))] }
    }
}

#[test]
fn a_judge_of_ones_own_is_heard_and_the_story_holds_only_what_it_takes() {
    let failure = first_failure(&Swarm::default().check(|| vec![Box::new(NeverTwoDown)]));
    assert_eq!(failure.verdict.kind, "never-two-down");
    let shrunk = failure.shrunk.as_ref().unwrap();
    let ends_a_node = |action: &Action| matches!(action.word(), "crash" | "leave" | "pause");
    let needed = shrunk.scenario.steps().iter().filter(|step| ends_a_node(&step.action)).count();
    assert_eq!((needed, shrunk.nodes.1), (2, 2), "{failure}");
    assert!(shrunk.steps.1 <= 3, "{failure}");
}

/// Falls over when it sees a document.
#[derive(Debug)]
struct Clumsy;

impl Checker for Clumsy {
    fn name(&self) -> &'static str {
        "clumsy"
    }

    fn look(&mut self, mesh: &Mesh) -> Vec<String> {
        for node in mesh.running() {
            assert!(mesh.view(node.as_str()).configs.is_empty(), "a document at {node}");
        }
        Vec::new()
    }
}

#[test]
fn a_run_that_panics_is_a_failure_like_any_other() {
    let failure = first_failure(&Swarm::default().check(|| vec![Box::new(Clumsy)]));
    assert_eq!(failure.verdict.kind, "panic");
    assert!(failure.verdict.told.contains("a document at n"), "{failure}");
    assert!(failure.shrunk.as_ref().unwrap().steps.1 <= 2, "{failure}");
}
