//! Clocks that are wrong: refused, followed or outlived, and never a write lost or raised by it.

use starling_sim::{Mesh, Story, secs};

const HOUR_MS: i64 = 3_600_000;

/// Nodes that have heard of each other's clocks, and an instance and a document that all know.
fn mesh(seed: u64, nodes: usize) -> Result<Mesh, Story> {
    let mut mesh = Mesh::builder(seed).nodes(nodes).build();
    mesh.register("n2", "orders", "o1");
    mesh.put_config("n2", "limits", "one");
    mesh.converges_within(secs(5))?;
    mesh.run_for(secs(20));
    Ok(mesh)
}

/// How far a node shows another's clock (or its own) to be off, in seconds.
fn shown(mesh: &Mesh, at: &str, node: &str) -> Option<i64> {
    mesh.view(at).clock_ahead_ms(&node.parse().expect("a name")).map(|ms| ms / 1_000)
}

fn owner(mesh: &Mesh, at: &str) -> Option<String> {
    mesh.instance(at, "orders/o1").map(|shown| shown.owner().to_string())
}

/// A node writes over everything there is; all agree with it at once.
fn writes_over_all(mesh: &mut Mesh, node: &str) -> Result<(), Story> {
    mesh.register(node, "orders", "o1");
    mesh.put_config(node, "limits", node);
    mesh.converges_within(secs(1))?;
    mesh.everywhere("its claim has won", |mesh, at| owner(mesh, at).as_deref() == Some(node))?;
    mesh.all_serve("limits", node)?;
    mesh.deregister(node, "orders/o1");
    mesh.delete_config(node, "limits");
    mesh.converges_within(secs(1))?;
    mesh.none_sees("orders/o1")?;
    mesh.everywhere("the document is gone", |mesh, at| mesh.config(at, "limits").is_none())?;
    mesh.nothing_lost()
}

#[test]
fn a_clock_that_steps_by_an_hour_while_the_node_runs_changes_nothing_and_is_shown() -> Result<(), Story> {
    for step in [HOUR_MS, -HOUR_MS, 365 * 24 * HOUR_MS] {
        for nodes in [3, 12] {
            let mut mesh = mesh(1, nodes)?;
            mesh.skew("n1", step);
            writes_over_all(&mut mesh, "n1")?;
            mesh.register("n3", "pay", "p1");
            mesh.converges_within(secs(1))?;
            mesh.all_trust("pay/p1")?;
            assert_eq!(mesh.report().counters.refused, 0, "stepped by {step} ms");
            mesh.run_for(secs(60));
            assert_eq!(shown(&mesh, "n1", "n1").map(|off| (off - step / 1_000).abs() <= 1), Some(true));
            let seen = mesh.running().iter().filter(|at| shown(&mesh, at.as_str(), "n1").is_some()).count();
            assert!(seen >= 3, "its neighbours show it too");
            mesh.skew("n1", 0);
            mesh.run_for(secs(120));
            mesh.everywhere("all clocks are right", |mesh, at| mesh.view(at).clocks.is_empty())?;
            mesh.nothing_lost()?;
        }
    }
    Ok(())
}

#[test]
fn a_node_that_starts_an_hour_behind_sees_everything_and_what_it_writes_wins() -> Result<(), Story> {
    let mut mesh = mesh(2, 4)?;
    mesh.register("n1", "orders", "o2");
    mesh.converges_within(secs(5))?;
    mesh.crash("n1");
    mesh.skew("n1", -HOUR_MS);
    mesh.register("n3", "orders", "o3");
    mesh.run_for(secs(30));
    mesh.restart("n1");
    mesh.converges_within(secs(10))?;
    mesh.run_for(secs(1));
    for instance in ["orders/o1", "orders/o2", "orders/o3"] {
        mesh.all_trust(instance)?;
    }
    writes_over_all(&mut mesh, "n1")
}

#[test]
fn a_node_that_starts_an_hour_ahead_and_hears_of_others_first_is_believed_at_once() -> Result<(), Story> {
    let mut mesh = mesh(3, 4)?;
    mesh.crash("n1");
    mesh.skew("n1", HOUR_MS);
    mesh.restart("n1");
    mesh.run_for(secs(3));
    writes_over_all(&mut mesh, "n1")
}

#[test]
fn a_node_that_starts_an_hour_ahead_and_writes_at_once_is_refused_until_time_has_caught_up() -> Result<(), Story> {
    let mut mesh = mesh(4, 4)?;
    mesh.crash("n1");
    mesh.skew("n1", HOUR_MS);
    mesh.restart("n1");
    mesh.register("n1", "orders", "early");
    mesh.run_for(secs(600));
    assert!(mesh.sees("n1", "orders/early") && !mesh.sees("n2", "orders/early"));
    assert!(mesh.report().counters.refused > 0);
    assert_eq!(shown(&mesh, "n1", "n1"), Some(3_600), "it knows itself");
    // The others go on, it follows them, and nobody is dragged along.
    mesh.register("n3", "pay", "p1");
    mesh.run_for(secs(2));
    mesh.all_see("pay/p1")?;
    mesh.run_for(secs(3_100));
    mesh.converges_within(secs(5))?;
    mesh.all_trust("orders/early")?;
    mesh.nothing_lost()
}

#[test]
fn between_two_nodes_nobody_can_tell_and_nothing_is_lost() -> Result<(), Story> {
    let mut mesh = mesh(5, 2)?;
    mesh.skew("n1", HOUR_MS);
    mesh.register("n1", "orders", "from-ahead");
    mesh.register("n2", "orders", "from-behind");
    mesh.run_for(secs(30));
    assert!(mesh.sees("n1", "orders/from-behind") && !mesh.sees("n2", "orders/from-ahead"));
    assert_eq!((shown(&mesh, "n2", "n1"), shown(&mesh, "n1", "n2")), (Some(3_600), Some(-3_600)));
    mesh.skew("n1", 0);
    mesh.run_for(secs(3_600));
    mesh.converges_within(secs(5))?;
    mesh.all_trust("orders/from-ahead")?;
    mesh.nothing_lost()
}

#[test]
fn a_restart_with_a_clock_behind_the_last_stamp_used_goes_on_after_it() -> Result<(), Story> {
    // Alone: there is nobody whose clock it could go by. The simulator asserts that no stamp is used twice.
    for nodes in [1, 3] {
        let mut mesh = mesh(6, nodes.max(2))?;
        if nodes == 1 {
            mesh.crash("n1");
        }
        mesh.put_config("n2", "limits", "two");
        mesh.crash("n2");
        mesh.skew("n2", -HOUR_MS);
        mesh.restart("n2");
        mesh.put_config("n2", "limits", "three");
        mesh.register("n2", "orders", "o1");
        assert_eq!(mesh.config("n2", "limits").as_deref(), Some("three"));
        mesh.converges_within(secs(10))?;
        mesh.all_serve("limits", "three")?;
        mesh.nothing_lost()?;
    }
    Ok(())
}

#[test]
fn a_minority_of_wrong_clocks_drags_nobody_along_and_a_majority_is_the_time() -> Result<(), Story> {
    let mut mesh = mesh(7, 5)?;
    mesh.skew("n1", HOUR_MS);
    mesh.skew("n2", HOUR_MS);
    mesh.run_for(secs(60));
    let wall = mesh.wall("n3").0;
    mesh.put_config("n1", "limits", "by-n1");
    mesh.put_config("n3", "other", "by-n3");
    mesh.converges_within(secs(1))?;
    let key = starling_sim::ask::config_key("limits").expect("a name");
    let stamped = mesh.view("n3").config(&key).and_then(|config| config.served().map(|v| v.stamp.time.wall().0));
    assert!(stamped.is_some_and(|stamped| stamped.abs_diff(wall) < 5_000), "{stamped:?} at {wall}");
    mesh.nothing_lost()
}
