//! A test of your own against a simulated mesh.
//!
//! The question here: our checkout service keeps its rate limit in the mesh's configuration and calls `payments`. What
//! does it see when the link between our two data centres breaks while both sides are being operated? The answer is put
//! down as a story in a small vocabulary, and run over many seeds: each gives other latencies, losses and clocks.
//!
//! `cargo run --example partition_test` tells it; in your project the same function is a `#[test]`.

#![allow(clippy::print_stdout)] // an example talks

use starling::sim::{Latency, Mesh, Story, millis, secs};

const LONDON: [&str; 3] = ["london-1", "london-2", "london-3"];
const DUBLIN: [&str; 2] = ["dublin-1", "dublin-2"];

/// Two data centres, 12 ms apart, one message in a hundred lost, clocks up to 200 ms off.
fn our_mesh(seed: u64) -> Mesh {
    Mesh::builder(seed)
        .named(LONDON.iter().chain(&DUBLIN))
        .latency(Latency::Tail { floor: millis(12), mean: millis(1) })
        .loss(0.01)
        .clock_spread(millis(200))
        .build()
}

/// Words of doing panic when they make no sense; words of judging return a story of what is wrong where, what happened
/// before, and the line that makes the same run again.
fn a_broken_link_costs_us_nothing(seed: u64) -> Result<Mesh, Story> {
    let mut mesh = our_mesh(seed);
    mesh.register("london-1", "payments", "p1");
    mesh.register("dublin-1", "payments", "p2");
    mesh.put_config("london-1", "checkout/limit", "100");
    mesh.converges_within(secs(5))?;
    mesh.all_trust("payments/p1")?;

    mesh.cut(&LONDON, &DUBLIN);
    mesh.run_for(secs(60));

    // Nobody forgets the other side, but each prefers what it can reach.
    mesh.all_see("payments/p1")?;
    mesh.all_see("payments/p2")?;
    assert!(mesh.trusts("dublin-2", "payments/p2") && !mesh.trusts("dublin-2", "payments/p1"), "{}", mesh.explain());

    // Both sides go on: a new instance here, an urgent edit there, a less urgent one here, and a host lost as well.
    mesh.register("london-2", "payments", "p3");
    mesh.put_config("dublin-2", "checkout/limit", "20");
    mesh.put_config("london-3", "checkout/limit", "150");
    mesh.crash("london-1");
    mesh.run_for(secs(60));
    assert_eq!(mesh.config("dublin-1", "checkout/limit").as_deref(), Some("20"));
    assert_eq!(mesh.config("london-2", "checkout/limit").as_deref(), Some("150"));

    // After healing all agree, soon, and nothing anybody was told had succeeded is lost.
    mesh.heal();
    mesh.restart("london-1");
    mesh.converges_within(secs(5))?;
    mesh.all_trust("payments/p3")?;
    mesh.nothing_lost()?;

    // The two edits are not quietly decided: everybody serves the same one and shows both, until somebody decides.
    mesh.everywhere("the conflict is shown", |mesh, node| mesh.conflicts(node, "checkout/limit").len() == 2)?;
    mesh.put_config("dublin-1", "checkout/limit", "50");
    mesh.converges_within(secs(5))?;
    mesh.all_serve("checkout/limit", "50")?;
    Ok(mesh)
}

fn main() -> Result<(), Story> {
    for seed in 1..=20 {
        let mesh = a_broken_link_costs_us_nothing(seed)?;
        if seed == 20 {
            println!("\nThe last of 20 runs, as it happened:\n");
            mesh.journal().for_each(|line| println!("{line}"));
            println!("\n{}", mesh.report());
        }
    }
    Ok(())
}

#[test]
fn a_broken_link_costs_us_nothing_whatever_the_seed() -> Result<(), Story> {
    (1..=20).try_for_each(|seed| a_broken_link_costs_us_nothing(seed).map(drop))
}
