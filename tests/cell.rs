//! One cell of real nodes (quinn, certificates, chitchat, hearts) on an in-memory network and a clock of its own.
//! How it does at other sizes, and under loss for hours, `bench/cell.rs` prints.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

mod memory;

use std::time::Duration;

use memory::{Cell, Log, Plan, address, name};
use starling_core::view::MemberState::{Alive, Left, Lost};
use starling_net::MemberSettings;

const SECOND: Duration = Duration::from_secs(1);
/// More than a node has neighbours, so that some are not linked with each other.
const NODES: usize = 12;

/// A cell whose nodes all see each other.
fn formed(nodes: usize) -> Cell {
    let mut cell = Cell::of(nodes, Plan::default());
    let all = cell.running();
    cell.until("all see each other", 20 * SECOND, |cell| cell.are_one(&all));
    cell
}

/// How many peers these have found lost since they started.
fn found_lost(cell: &Cell, places: &[usize]) -> f64 {
    places.iter().map(|at| cell.metric(*at, "starling_member_lost_total")).sum()
}

#[test]
fn nodes_form_one_mesh_see_what_each_registers_and_keep_few_links() {
    let mut cell = formed(20);
    let all = cell.running();
    cell.register(7, "o1");
    cell.until("all know what one registered", 2 * SECOND, |cell| all.iter().all(|at| cell.knows(*at, "o1")));
    cell.run_for(18 * SECOND); // links that were made on the way in end
    for at in &all {
        let links = cell.metric(*at, "starling_link_peers_up");
        assert!((3.0..=16.0).contains(&links), "{links} links for 19 peers");
    }
}

#[test]
fn a_crash_is_seen_by_the_whole_cell_within_three_seconds_and_nobody_else_is_suspected() {
    let mut cell = formed(NODES);
    let victim = cell.seats[4].name.clone();
    cell.run_for(5 * SECOND);
    cell.kill(4);
    let rest = cell.running();
    cell.until("all miss it", 3 * SECOND, |cell| cell.all_think(&rest, &victim, Lost));
    cell.run_for(5 * SECOND);
    assert_eq!(found_lost(&cell, &rest), rest.len() as f64, "each lost that one, once");
    cell.start(4, victim);
    let all = cell.running();
    cell.until("it is back, with a new disk and the old name", 3 * SECOND, |cell| cell.are_one(&all));
}

#[test]
fn halves_that_are_cut_apart_go_on_apart_and_are_one_within_seconds_of_healing() {
    let mut cell = formed(NODES);
    let all = cell.running();
    let (these, those) = all.split_at(NODES / 2);
    cell.cut(these, those);
    cell.until("each half sees itself", 10 * SECOND, |cell| cell.are_one(these) && cell.are_one(those));
    cell.register(0, "here");
    cell.register(NODES - 1, "there");
    cell.run_for(5 * SECOND);
    let dials = |cell: &Cell| all.iter().map(|at| cell.metric(*at, "starling_link_dials_total")).sum::<f64>();
    let before = dials(&cell);
    cell.run_for(10 * SECOND);
    let per_second = (dials(&cell) - before) / 10.0 / NODES as f64;
    assert!(per_second < 20.0, "the lost are dialled {per_second} times a second and node");
    cell.heal();
    cell.until("all see each other again", 5 * SECOND, |cell| cell.are_one(&all));
    let know = |cell: &Cell| all.iter().all(|at| cell.knows(*at, "here") && cell.knows(*at, "there"));
    cell.until("and what was registered meanwhile", 5 * SECOND, know);
}

#[test]
fn a_broken_line_or_one_that_works_one_way_is_no_death() {
    let mut cell = formed(NODES);
    let all = cell.running();
    cell.cut(&[0], &[1]);
    cell.cut_one_way(2, 3);
    cell.run_for(20 * SECOND);
    assert!(cell.are_one(&all));
    assert_eq!(found_lost(&cell, &all), 0.0);
}

#[test]
fn a_node_that_stands_still_for_a_second_is_not_suspected_and_for_ten_is_lost_and_blames_nobody() {
    let mut cell = formed(NODES);
    let all = cell.running();
    for at in [3, 5, 7] {
        cell.freeze(at, SECOND);
        cell.run_for(2 * SECOND);
    }
    assert_eq!(found_lost(&cell, &all), 0.0);
    let sleeper = cell.seats[3].name.clone();
    cell.freeze(3, 10 * SECOND);
    let others: Vec<usize> = all.iter().copied().filter(|at| *at != 3).collect();
    cell.until("it is lost", 3 * SECOND, |cell| cell.all_think(&others, &sleeper, Lost));
    cell.until("it is back", 12 * SECOND, |cell| cell.are_one(&all));
    cell.run_for(5 * SECOND);
    assert!(cell.are_one(&all));
    assert_eq!(cell.metric(3, "starling_member_lost_total"), 0.0, "it stood still, and blames nobody for that");
}

#[test]
fn a_clean_stop_is_seen_at_once() {
    let mut cell = formed(NODES);
    let leaver = cell.seats[6].name.clone();
    cell.register(6, "of-the-leaver");
    cell.run_for(SECOND);
    cell.stop(6);
    let rest = cell.running();
    cell.until("all know that it has left", SECOND / 2, |cell| cell.all_think(&rest, &leaver, Left));
    cell.run_for(5 * SECOND);
    assert_eq!(found_lost(&cell, &rest), 0.0, "nobody takes it for lost");
    cell.start(6, leaver.clone());
    cell.until("it may return", 3 * SECOND, |cell| cell.all_think(&rest, &leaver, Alive));
}

#[test]
fn of_two_living_nodes_of_one_name_the_second_is_refused_and_told_why_and_taken_when_the_first_is_dead() {
    let (log, _guard) = Log::capture();
    let mut cell = formed(3);
    let (all, shared) = (cell.running(), name(1));
    cell.start(3, shared.clone());
    for _ in 0..100 {
        cell.run_for(SECOND / 5);
        for at in [0, 2] {
            assert_eq!(cell.address_of(at, &shared), Some(address(1)), "nobody takes the other's place");
        }
    }
    assert!(cell.are_one(&all), "those who were there go on");
    assert_eq!(found_lost(&cell, &all), 0.0);
    assert_eq!(cell.alive_at(3), 1, "the second is alone");
    assert!(all.iter().any(|at| cell.metric(*at, "starling_link_namesakes_total") > 0.0));
    let first = address(1).to_string();
    log.says(&["ERROR", "refused a second node of the same name", "n1", &first, &address(3).to_string()]);
    log.says(&["refused this node: another node named n1 lives at", &first, "certificate of its own"]);
    cell.kill(1);
    let taken = |cell: &Cell| [0, 2].iter().all(|at| cell.address_of(*at, &shared) == Some(address(3)));
    cell.until("the second is taken", 10 * SECOND, taken);
    cell.until("all are one", 5 * SECOND, |cell| cell.are_one(&cell.running()));
}

#[test]
fn a_reinstalled_host_with_a_new_address_takes_its_old_name() {
    let mut cell = formed(NODES);
    let old = cell.seats[5].name.clone();
    cell.kill(5);
    cell.start(NODES, old.clone());
    let all = cell.running();
    let moved = |cell: &Cell| all.iter().all(|at| cell.address_of(*at, &old) == Some(address(NODES)));
    cell.until("all know where it is now", 10 * SECOND, moved);
    assert!(cell.are_one(&all));
}

#[test]
fn a_newcomer_to_a_full_cell_refuses_to_join_it_and_says_what_to_do() {
    let (log, _guard) = Log::capture();
    let members = MemberSettings { max_members: 4, ..MemberSettings::default() };
    let mut cell = Cell::of(4, Plan { members, ..Plan::default() });
    let all = cell.running();
    cell.until("the cell is full", 10 * SECOND, |cell| cell.are_one(&all));
    cell.start(4, name(4));
    cell.until("it stays out", 10 * SECOND, |cell| cell.metric(4, "starling_member_refused") == 1.0);
    log.says(&["ERROR", "cell c0 is full (4 nodes)", "refuses to join", "another node.cell"]);
    cell.run_for(10 * SECOND);
    assert!(cell.are_one(&all), "the others go on without it");
    assert!(all.iter().all(|at| !cell.metric(*at, "starling_member_refused").is_normal()));
    cell.register(4, "of-the-newcomer"); // what it does for its own host, it goes on doing
}

#[test]
fn a_flapping_node_does_not_flap_the_registry() {
    let mut cell = formed(5);
    let (rest, flapping) = ([0, 1, 2, 3], cell.seats[4].name.clone());
    for _ in 0..10 {
        cell.cut(&rest, &[4]);
        cell.run_for(4 * SECOND);
        cell.heal();
        cell.run_for(4 * SECOND);
    }
    let lost = found_lost(&cell, &rest) / rest.len() as f64;
    assert!((2.0..=6.0).contains(&lost), "it went ten times, and was lost {lost} times");
    cell.until("it is believed when it stays", 60 * SECOND, |cell| cell.all_think(&rest, &flapping, Alive));
}
