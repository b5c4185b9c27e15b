//! One cell of real nodes (quinn, certificates, chitchat, hearts) on an in-memory network and a clock of its own.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

mod memory;

use std::time::Duration;

use memory::{Cell, Plan};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn thirty_nodes_form_one_mesh_and_see_what_each_registers() {
    let mut cell = Cell::of(30, Plan::default());
    let all = cell.running();
    cell.until("all see each other", 20 * SECOND, |cell| cell.are_one(&all));
    cell.register(7, "o1");
    cell.until("all know what one registered", 2 * SECOND, |cell| all.iter().all(|at| cell.knows(*at, "o1")));
}
