//! Two cells: data centres of one mesh, in one process and as processes in network namespaces.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

mod memory;

use std::time::Duration;

use memory::{Cell, Plan, name};
use starling_core::view::MemberState;

const SECOND: Duration = Duration::from_secs(1);

/// Two cells of three nodes that share one seed; the even places are one, the odd ones the other.
fn two_cells(seed: u64) -> Cell {
    let mut mesh = Cell::of(6, Plan { seed, cells: 2, seeds: 1, ..Plan::default() });
    mesh.until("all know all", 30 * SECOND, |mesh| mesh.are_one(&mesh.running()));
    mesh
}

#[test]
fn real_nodes_of_two_cells_that_share_a_seed_see_each_other_and_what_each_registers() {
    let mut mesh = two_cells(1);
    mesh.register(3, "o1");
    mesh.until("all know it", 2 * SECOND, |mesh| mesh.running().iter().all(|at| mesh.knows(*at, "o1")));
}

#[test]
fn two_cells_of_real_nodes_are_cut_go_on_and_are_one_again_within_seconds() {
    let mut mesh = two_cells(2);
    let (even, odd) = ([0, 2, 4], [1, 3, 5]);
    mesh.cut(&even, &odd);
    mesh.until("both hold the other for lost", 30 * SECOND, |mesh| {
        even.iter().all(|at| mesh.are_alive(*at, &even)) && odd.iter().all(|at| mesh.are_alive(*at, &odd))
    });
    mesh.register(2, "even");
    mesh.register(5, "odd");
    mesh.run_for(30 * SECOND);
    mesh.heal();
    mesh.until("all know all again", 10 * SECOND, |mesh| {
        mesh.are_one(&mesh.running())
            && mesh.running().iter().all(|at| mesh.knows(*at, "even") && mesh.knows(*at, "odd"))
    });
}

#[test]
fn a_node_killed_in_one_cell_is_lost_in_the_other_and_its_next_start_is_back() {
    let mut mesh = two_cells(3);
    mesh.kill(4);
    let rest = mesh.running();
    mesh.until("lost everywhere", 20 * SECOND, |mesh| mesh.all_think(&rest, &name(4), MemberState::Lost));
    mesh.start(4, name(4));
    mesh.until("back", 20 * SECOND, |mesh| mesh.are_one(&mesh.running()));
    mesh.stop(2);
    let rest = mesh.running();
    mesh.until("left", 2 * SECOND, |mesh| mesh.all_think(&rest, &name(2), MemberState::Left));
}
