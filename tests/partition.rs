//! Partitions, over many seeds: both sides accept writes and serve what they know, agree after healing, and nothing
//! acknowledged is lost. What runs is the heart that ships; what is bad about the world is drawn from the seed.
//!
//! `STARLING_SEED=17 cargo test --test partition` runs that seed alone, `STARLING_SEEDS=1000` that many.

#![allow(clippy::print_stdout)] // a test's output is shown when it fails, and begins with its seed

use starling::sim::{Latency, Mesh, Story, ask, millis, secs, seed_or};
use starling_core::registry::Status;

/// How many seeds a run tries, one after the other, unless told otherwise.
const SEEDS: u64 = 60;
/// How soon after the world is whole again all must agree: detection of the healed nodes and a few repairs.
const BOUND_SECS: u64 = 5;

/// Runs a story over all seeds; each prints its seed before anything else.
fn over_seeds(story: impl Fn(u64) -> Result<(), Story>) -> Result<(), Story> {
    let chosen = std::env::var_os("STARLING_SEED").map(|_| seed_or(0));
    let many = std::env::var("STARLING_SEEDS").map_or(SEEDS, |many| many.parse().expect("STARLING_SEEDS is a number"));
    let seeds = chosen.map_or(1..=many, |seed| seed..=seed);
    seeds.into_iter().try_for_each(|seed| {
        println!("STARLING_SEED={seed}");
        story(seed)
    })
}

/// 3 to 7 nodes on links that lose, double and overtake, with slow disks and clocks that disagree.
fn rough_mesh(seed: u64) -> Mesh {
    let mut chance = fastrand::Rng::with_seed(seed);
    Mesh::builder(seed)
        .nodes(chance.usize(3..=7))
        .zones(["a", "b", "c"])
        .latency(Latency::Tail { floor: millis(1), mean: millis(chance.u64(1..20)) })
        .loss(chance.f64() * 0.1)
        .duplication(chance.f64() * 0.1)
        .disk(millis(chance.u64(0..10)))
        .clock_spread(millis(chance.u64(0..2_000)))
        .through_bytes()
        .build()
}

/// Two groups of nodes, neither empty.
fn sides(mesh: &mut Mesh) -> (Vec<String>, Vec<String>) {
    let mut nodes: Vec<String> = mesh.nodes().iter().map(ToString::to_string).collect();
    mesh.chance().shuffle(&mut nodes);
    let at = mesh.chance().usize(1..nodes.len());
    let other = nodes.split_off(at);
    (nodes, other)
}

fn cut(mesh: &mut Mesh, one: &[String], other: &[String], one_way: bool) {
    let one: Vec<&str> = one.iter().map(String::as_str).collect();
    let other: Vec<&str> = other.iter().map(String::as_str).collect();
    if one_way { mesh.cut_one_way(&one, &other) } else { mesh.cut(&one, &other) }
}

/// One random write at one random running node. The heart may refuse what it cannot know; it may not be silent.
fn write_something(mesh: &mut Mesh) {
    let running = mesh.running();
    let Some(node) = mesh.chance().choice(running) else { return };
    let (what, which) = (mesh.chance().u32(0..12), mesh.chance().u32(0..8));
    let (instance, document) = (format!("s{}/i{which}", which % 3), format!("c{}", which % 4));
    let command = match what {
        0..=3 => ask::register(&instance),
        4 | 5 => ask::deregister(&instance),
        6 => ask::override_status(&instance, Status::OutOfService),
        7 => ask::clear_override(&instance),
        8 => ask::delete_config(&document),
        _ => ask::put_config(&document, &format!("{node} at {:?}", mesh.now())),
    };
    let submitted = mesh.submit(node.as_str(), command);
    assert!(submitted.is_ok(), "a running node takes any command: {submitted:?}");
}

/// Something bad, and now and then something good.
fn trouble(mesh: &mut Mesh) {
    let nodes = mesh.nodes();
    let Some(node) = mesh.chance().choice(nodes) else { return };
    let node = node.as_str();
    match mesh.chance().u32(0..9) {
        0 | 1 => {
            let (one, other) = sides(mesh);
            let one_way = mesh.chance().bool();
            cut(mesh, &one, &other, one_way);
        }
        2 => mesh.heal(),
        3 => mesh.crash(node),
        4 | 5 => mesh.restart(node),
        6 => mesh.pause(node),
        7 => mesh.resume(node),
        _ => {
            let ms = mesh.chance().i64(-2_000..2_000);
            mesh.skew(node, ms);
        }
    }
}

/// Ends all trouble.
fn make_whole(mesh: &mut Mesh) {
    mesh.heal();
    for node in mesh.nodes() {
        mesh.resume(node.as_str());
        mesh.restart(node.as_str());
    }
}

#[test]
fn whatever_happens_all_agree_soon_after_and_nothing_acknowledged_is_lost() -> Result<(), Story> {
    over_seeds(|seed| {
        let mut mesh = rough_mesh(seed);
        for _ in 0..mesh.chance().u32(1..4) {
            for _ in 0..40 {
                write_something(&mut mesh);
                if mesh.chance().u32(0..5) == 0 {
                    trouble(&mut mesh);
                }
                let pause = mesh.chance().u64(0..500);
                mesh.run_for(millis(pause));
                mesh.nothing_lost()?;
            }
            make_whole(&mut mesh);
            mesh.converges_within(secs(BOUND_SECS))?;
            mesh.nothing_lost()?;
        }
        Ok(())
    })
}

#[test]
fn both_sides_of_a_cut_take_writes_and_serve_what_they_know() -> Result<(), Story> {
    over_seeds(|seed| {
        let mut mesh = rough_mesh(seed);
        mesh.register("n1", "orders", "before");
        mesh.converges_within(secs(BOUND_SECS))?;
        let (one, other) = sides(&mut mesh);
        cut(&mut mesh, &one, &other, false);
        mesh.run_for(secs(10));
        // Nobody's registry is emptied by a cut.
        mesh.all_see("orders/before")?;
        mesh.register(&one[0], "orders", "one");
        mesh.register(&other[0], "orders", "other");
        let each_knows_its_own = |mesh: &Mesh| {
            let knows = |node: &String, own, foreign| mesh.trusts(node, own) && !mesh.sees(node, foreign);
            one.iter().all(|node| knows(node, "orders/one", "orders/other"))
                && other.iter().all(|node| knows(node, "orders/other", "orders/one"))
        };
        // Twice the bound: at first half of the repairs go to nodes behind the cut.
        assert!(mesh.run_until(secs(2 * BOUND_SECS), each_knows_its_own).is_some(), "{}", mesh.explain());
        mesh.heal();
        mesh.converges_within(secs(BOUND_SECS))?;
        for path in ["orders/before", "orders/one", "orders/other"] {
            mesh.all_trust(path)?;
        }
        mesh.nothing_lost()
    })
}

#[test]
fn concurrent_edits_are_a_conflict_on_every_node_until_somebody_decides() -> Result<(), Story> {
    over_seeds(|seed| {
        let mut mesh = rough_mesh(seed);
        mesh.put_config("n1", "app/limits", "first");
        mesh.converges_within(secs(BOUND_SECS))?;
        let (one, other) = sides(&mut mesh);
        cut(&mut mesh, &one, &other, false);
        mesh.put_config(&one[0], "app/limits", "one");
        mesh.put_config(&other[0], "app/limits", "other");
        let each_serves_its_own = |mesh: &Mesh| {
            let serves = |node: &String, body| mesh.config(node, "app/limits").as_deref() == Some(body);
            one.iter().all(|node| serves(node, "one")) && other.iter().all(|node| serves(node, "other"))
        };
        assert!(mesh.run_until(secs(2 * BOUND_SECS), each_serves_its_own).is_some(), "{}", mesh.explain());
        mesh.heal();
        mesh.converges_within(secs(BOUND_SECS))?;
        let shown = mesh.conflicts("n1", "app/limits");
        assert_eq!(shown.len(), 2, "{}", mesh.explain());
        mesh.everywhere("the same conflict is shown", |mesh, node| mesh.conflicts(node, "app/limits") == shown)?;

        mesh.put_config("n2", "app/limits", "decided");
        mesh.converges_within(secs(BOUND_SECS))?;
        mesh.all_serve("app/limits", "decided")?;
        // It stays so when nodes come back that have seen less, or more, of the quarrel.
        let (one, other) = sides(&mut mesh);
        cut(&mut mesh, &one, &other, false);
        mesh.crash(&one[0]);
        mesh.run_for(secs(5));
        make_whole(&mut mesh);
        mesh.converges_within(secs(BOUND_SECS))?;
        mesh.run_for(secs(5));
        mesh.all_serve("app/limits", "decided")?;
        mesh.everywhere("no conflict", |mesh, node| mesh.conflicts(node, "app/limits").is_empty())?;
        mesh.nothing_lost()
    })
}

#[test]
fn the_dead_do_not_rise_after_a_cut() -> Result<(), Story> {
    over_seeds(|seed| {
        let mut mesh = rough_mesh(seed);
        mesh.register("n1", "orders", "o1");
        mesh.converges_within(secs(BOUND_SECS))?;
        let (one, other) = sides(&mut mesh);
        cut(&mut mesh, &one, &other, false);
        // Anybody may remove it, also where its owner cannot be asked.
        mesh.deregister(&other[0], "orders/o1");
        mesh.run_for(secs(5));
        mesh.crash("n1");
        mesh.heal();
        mesh.run_for(secs(5));
        mesh.restart("n1");
        mesh.converges_within(secs(BOUND_SECS))?;
        mesh.run_for(secs(5));
        mesh.none_sees("orders/o1")?;
        mesh.nothing_lost()
    })
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut mesh = rough_mesh(seed);
        for _ in 0..60 {
            write_something(&mut mesh);
            trouble(&mut mesh);
            mesh.run_for(millis(300));
        }
        (mesh.explain(), mesh.report(), mesh.journal().collect::<Vec<_>>())
    };
    let seed = seed_or(1);
    assert_eq!(run(seed), run(seed));
    assert_ne!(run(seed), run(seed + 1));
}
