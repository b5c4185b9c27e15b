//! `cargo bench --bench cells`: what a mesh of many cells costs each of its nodes, and how fast a change crosses it.
//!
//! Simulated hearts, cells of 250: 4, 10 and 40 of them, 100 ms apart, without and with losses. What a node sends that is
//! no relay must not depend on how many there are.

#![allow(clippy::print_stdout)]

mod machine;

use std::time::{Duration, Instant};

use starling_sim::{Latency, Links, cells};

/// A cell as membership bears it.
const MEMBERS: usize = 250;

fn main() {
    println!("bench cells: what nodes and relays send, and how a change crosses cells");
    println!("{}", machine::describe());
    let ocean = Latency::Tail { floor: Duration::from_millis(100), mean: Duration::from_millis(5) };
    for loss in [0.0, 0.01] {
        for count in [4, 10, 40] {
            let (near, far) = (Links { loss, ..Links::default() }, Links { latency: ocean, loss, ..Links::default() });
            let begun = Instant::now();
            let report = cells(count, MEMBERS, 1, near, far);
            println!("\n{report}\n({:.1} s to simulate)", begun.elapsed().as_secs_f64());
        }
    }
}
