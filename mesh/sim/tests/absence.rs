//! Who was away for longer than tombstones are kept: raises no dead, loses nothing, and all agree.

use starling_core::Settings;
use starling_core::registry::Status;
use starling_sim::{Mesh, Story, secs};

/// Nodes that replicate tombstones for a minute, and know for an hour what they killed.
fn forgetful(seed: u64, nodes: usize) -> Mesh {
    let settings = Settings { tombstone_horizon_ms: 60_000, grave_ms: 3_600_000, ..Settings::default() };
    Mesh::builder(seed).nodes(nodes).settings(settings).build()
}

const AWAY: &str = "n1";
const REST: [&str; 3] = ["n2", "n3", "n4"];

/// Everything there is to delete, known to all; then one node is away.
fn one_goes_away(seed: u64) -> Result<Mesh, Story> {
    let mut mesh = forgetful(seed, 4);
    mesh.register(AWAY, "orders", "of-the-absent");
    mesh.register("n2", "orders", "of-another");
    mesh.register("n2", "orders", "stays");
    mesh.converges_within(secs(5))?;
    mesh.override_status("n3", "orders/stays", Status::Down);
    for document in ["deleted", "edited-meanwhile", "kept"] {
        mesh.put_config("n2", document, "first");
    }
    mesh.converges_within(secs(5))?;
    mesh.cut(&[AWAY], &REST);
    mesh.run_for(secs(10));
    Ok(mesh)
}

fn rest_deletes(mesh: &mut Mesh) {
    mesh.deregister("n2", "orders/of-the-absent");
    mesh.deregister("n2", "orders/of-another");
    mesh.clear_override("n3", "orders/stays");
    mesh.delete_config("n2", "deleted");
    mesh.delete_config("n3", "edited-meanwhile");
}

fn nothing_has_risen(mesh: &Mesh) -> Result<(), Story> {
    mesh.none_sees("orders/of-the-absent")?;
    mesh.none_sees("orders/of-another")?;
    mesh.everywhere("the document is gone", |mesh, node| mesh.config(node, "deleted").is_none())?;
    mesh.all_trust("orders/stays")?;
    mesh.all_serve("kept", "first")?;
    mesh.nothing_lost()
}

#[test]
fn a_node_away_for_longer_than_tombstones_are_kept_raises_no_dead_and_loses_nothing() -> Result<(), Story> {
    let mut mesh = one_goes_away(1)?;
    rest_deletes(&mut mesh);
    mesh.register(AWAY, "pay", "meanwhile");
    mesh.put_config(AWAY, "edited-meanwhile", "second");
    mesh.put_config(AWAY, "new", "one");
    mesh.run_for(secs(900));
    let tombstones = mesh.view("n2").fingerprint.count;
    assert_eq!(tombstones, 2, "only what is alive is still replicated: an instance and a document");
    mesh.heal();
    mesh.converges_within(secs(10))?;
    nothing_has_risen(&mesh)?;
    mesh.all_trust("pay/meanwhile")?;
    mesh.all_serve("new", "one")?;
    mesh.all_serve("edited-meanwhile", "second")?;
    assert!(mesh.report().counters.reburied >= 3);
    mesh.run_for(secs(120));
    mesh.converged()?;
    nothing_has_risen(&mesh)
}

#[test]
fn the_absent_one_may_have_been_switched_off_and_the_rest_started_anew() -> Result<(), Story> {
    let mut mesh = one_goes_away(2)?;
    mesh.crash(AWAY);
    rest_deletes(&mut mesh);
    mesh.run_for(secs(900));
    for node in REST {
        mesh.crash(node);
        mesh.run_for(secs(5));
        mesh.restart(node);
        mesh.converges_within(secs(10))?;
    }
    mesh.heal();
    mesh.restart(AWAY);
    mesh.converges_within(secs(10))?;
    nothing_has_risen(&mesh)
}

#[test]
fn what_the_absent_one_deleted_long_ago_is_dead_for_the_rest_too() -> Result<(), Story> {
    let mut mesh = one_goes_away(3)?;
    for instance in ["orders/of-the-absent", "orders/of-another"] {
        mesh.deregister(AWAY, instance);
    }
    mesh.delete_config(AWAY, "deleted");
    mesh.clear_override(AWAY, "orders/stays");
    mesh.run_for(secs(900));
    mesh.heal();
    mesh.converges_within(secs(10))?;
    nothing_has_risen(&mesh)
}

#[test]
fn a_newcomer_that_believed_the_absent_one_first_is_told_too() -> Result<(), Story> {
    // Only one node is left that knows what died: the newcomers have no graves, and tell each other what they learn.
    let mut mesh = one_goes_away(4)?;
    rest_deletes(&mut mesh);
    mesh.run_for(secs(300));
    mesh.crash("n2");
    mesh.run_for(secs(5));
    mesh.heal();
    // n3 and n4 have graves; n1 hears of them before it meets n2 again.
    mesh.cut(&["n2"], &["n1", "n3", "n4"]);
    mesh.restart("n2");
    mesh.converges_within(secs(10))?;
    mesh.heal();
    mesh.converges_within(secs(10))?;
    nothing_has_risen(&mesh)
}

#[test]
fn what_was_registered_again_after_its_burial_lives() -> Result<(), Story> {
    let mut mesh = one_goes_away(5)?;
    rest_deletes(&mut mesh);
    mesh.run_for(secs(300));
    mesh.register("n4", "orders", "of-another");
    mesh.put_config("n4", "deleted", "anew");
    mesh.run_for(secs(60));
    mesh.heal();
    mesh.converges_within(secs(10))?;
    mesh.all_trust("orders/of-another")?;
    mesh.all_serve("deleted", "anew")?;
    assert!(mesh.conflicts("n1", "deleted").is_empty(), "the old version was seen by whoever deleted it");
    mesh.nothing_lost()
}

#[test]
fn beyond_the_end_of_the_graves_the_dead_rise_once_and_all_agree() -> Result<(), Story> {
    let mut mesh = one_goes_away(6)?;
    rest_deletes(&mut mesh);
    mesh.run_for(secs(3_700));
    mesh.heal();
    mesh.converges_within(secs(10))?;
    mesh.all_serve("deleted", "first")?;
    mesh.delete_config("n3", "deleted");
    mesh.converges_within(secs(10))?;
    mesh.everywhere("it is gone for good", |mesh, node| mesh.config(node, "deleted").is_none())
}
