//! Nodes whose disk is full, read-only or damaged: nothing acknowledged is lost, they go on serving, and say what is
//! wrong and what to do.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Certificates, Mesh, eventually};

/// A small file system of its own, in memory; gone with the test.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `None`, with a word on why, where this user may not mount anything.
    fn mount(at: &Path) -> Option<SmallDisk> {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at).output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk { path: at.into() }),
            Ok(output) => skipped(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => skipped(&error.to_string()),
        }
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.path).status().unwrap().success());
    }

    /// Leaves no room on it.
    fn fill(&self) {
        let mut filler = fs::File::create(self.path.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.path.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn skipped(why: &str) -> Option<SmallDisk> {
    eprintln!("skipped: mounting a small file system needs root ({})", why.trim());
    None
}

/// Nodes a and b, the second with its data on a small disk.
fn mesh_with_small_disk() -> Option<(Mesh, SmallDisk)> {
    let mut mesh = Mesh::empty(Certificates::ThrownAway);
    let disk = SmallDisk::mount(&mesh.dir().join("small"))?;
    mesh.settings("b", &format!("[node]\ndata_dir = {:?}\n", disk.path.join("data")));
    let seed = mesh.add("a", None).quic();
    mesh.add("b", Some(seed));
    mesh.all_know_each_other();
    Some((mesh, disk))
}

#[test]
fn a_full_disk_loses_nothing_acknowledged_is_said_everywhere_and_is_used_again_when_there_is_room() {
    let Some((mut mesh, disk)) = mesh_with_small_disk() else { return };
    let put =
        |mesh: &Mesh, key: &str, value: &str| mesh.node("b").try_starling(&["config", "put", key, "--value", value]);
    put(&mesh, "early", "kept").unwrap();
    disk.fill();
    let mut acknowledged = 0;
    let first = loop {
        // The file system's last page has room for some.
        match put(&mesh, &format!("k{acknowledged}"), &"x".repeat(500)) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(first.contains("not saved on this node's disk") && first.contains("make room"), "{first}");
    let refused = put(&mesh, "late", "refused").unwrap_err();
    assert!(refused.contains("nothing was changed") && refused.contains("ask another node"), "{refused}");
    assert!(mesh.node("b").page("/readyz").contains("takes no writes"));
    assert_eq!(mesh.node("b").metric("starling_disk_failing"), 1.0);
    assert!(mesh.node("a").starling(&["status"]).contains("disk: node b takes no new registrations"));

    // It serves, hears, carries out what traffic needs, and whoever knows another peer is not even delayed.
    assert_eq!(mesh.node("b").starling(&["config", "get", "early"]), "kept");
    mesh.node("a").starling(&["config", "put", "news", "--value", "heard"]);
    eventually("b hears", || mesh.node("b").try_starling(&["config", "get", "news"]).is_ok());
    let other = mesh.node("a").api();
    mesh.node("b").starling(&["--peer", &other, "config", "put", "late", "--value", "taken by a"]);

    disk.make_room();
    eventually("b's disk is used again", || mesh.node("b").metric("starling_disk_failing") == 0.0);
    put(&mesh, "after", "kept").unwrap();
    mesh.node_mut("a").kill(); // b has to know it by itself
    mesh.node_mut("b").kill();
    mesh.restart("b");
    for (key, value) in [("early", "kept"), ("after", "kept"), ("late", "taken by a"), ("news", "heard")] {
        assert_eq!(mesh.node("b").starling(&["config", "get", key]), value, "{key}");
    }
    for number in 0..acknowledged {
        mesh.node("b").starling(&["config", "get", &format!("k{number}")]);
    }
}

#[test]
fn a_node_starts_from_a_read_only_disk_serves_what_is_on_it_and_takes_writes_once_it_can() {
    let Some((mut mesh, disk)) = mesh_with_small_disk() else { return };
    mesh.node("b").starling(&["config", "put", "early", "--value", "kept"]);
    mesh.node_mut("a").kill();
    mesh.node_mut("b").kill();
    disk.remount("ro");
    mesh.restart("b");
    assert_eq!(mesh.node("b").starling(&["config", "get", "early"]), "kept");
    assert_eq!(mesh.node("b").lines("cannot be written").len(), 1, "said once, with the reason");
    let refused = mesh.node("b").try_starling(&["config", "put", "late", "--value", "x"]).unwrap_err();
    assert!(refused.contains("nothing was changed") && refused.contains("mount it to be written"), "{refused}");
    disk.remount("rw");
    eventually("b's disk is used again", || mesh.node("b").metric("starling_disk_failing") == 0.0);
    mesh.node("b").starling(&["config", "put", "late", "--value", "kept"]);
    mesh.node_mut("b").kill();
    mesh.restart("b");
    assert_eq!(mesh.node("b").starling(&["config", "get", "late"]), "kept");
}

#[test]
fn a_damaged_log_is_named_by_file_offset_and_key_and_peers_give_back_what_it_lost() {
    let mut mesh = Mesh::empty(Certificates::ThrownAway);
    let data = mesh.dir().join("b.data");
    mesh.settings("b", &format!("[node]\ndata_dir = {data:?}\n"));
    let seed = mesh.add("a", None).quic();
    mesh.add("b", Some(seed));
    mesh.all_know_each_other();
    mesh.node("b").starling(&["register", "orders", "--port", "9", "--id", "o1", "--version", "needle"]);
    mesh.node("b").starling(&["config", "put", "other", "--value", "kept"]);
    eventually("a has it", || mesh.node("a").ready_instances("orders") == ["o1"]);
    mesh.node_mut("b").kill();
    let log = data.join("starling.log");
    let mut bytes = fs::read(&log).unwrap();
    let at = bytes.windows(6).rposition(|window| window == b"needle").unwrap();
    bytes[at] ^= 1;
    fs::write(&log, bytes).unwrap();
    mesh.restart("b");
    let said = mesh.node("b").lines("are damaged");
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["starling.log", "at offset", "instance default/orders/o1", "register it again if none does", "kept as"]
    {
        assert!(said[0].contains(part), "{part}: {}", said[0]);
    }
    eventually("b has it back", || mesh.node("b").ready_instances("orders") == ["o1"]);
    assert_eq!(mesh.node("b").starling(&["config", "get", "other"]), "kept");
    mesh.node_mut("a").kill();
    mesh.node_mut("b").kill();
    mesh.restart("b");
    assert_eq!(mesh.node("b").ready_instances("orders"), ["o1"], "and it is on its disk again");
}
