//! `starling backup` and `starling restore` with real nodes.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::fs;

use serde_json::Value;
use support::{Mesh, eventually};

#[test]
fn a_backup_from_any_node_restores_what_is_missing_and_keeps_what_is_newer() {
    let mesh = Mesh::start(["a", "b"]);
    let (a, b) = (mesh.node("a"), mesh.node("b"));
    a.starling(&["config", "put", "limits.json", "--value", "{}", "--author", "ada"]);
    a.starling(&["config", "put", "gone", "--value", "old"]);
    a.starling(&["config", "put", "same", "--value", "same"]);
    a.starling(&["register", "orders", "--port", "9", "--id", "o1"]);
    a.starling(&["override", "set", "orders", "o1", "--weight", "0", "--reason", "disk swap"]);
    let agree = || a.try_starling(&["status", "--check"]).is_ok();
    eventually("both hold the same", agree);

    let said = b.starling(&["backup", "mesh.jsonl"]);
    assert!(said.contains("saved 3 documents and 1 override to mesh.jsonl") && said.contains("as node b"), "{said}");
    let unchanged = a.starling(&["restore", "mesh.jsonl"]);
    assert!(unchanged.contains("0 written, 4 the same already"), "{unchanged}");

    a.starling(&["config", "put", "limits.json", "--value", "{\"newer\": 1}"]);
    a.starling(&["config", "rm", "gone"]);
    a.starling(&["override", "clear", "orders", "o1"]);
    eventually("both hold the same", agree);
    let kept = b.starling(&["restore", "mesh.jsonl"]);
    assert!(kept.contains("0 written, 1 the same already, 3 kept") && kept.contains("--overwrite"), "{kept}");
    assert_eq!(b.starling(&["config", "get", "limits.json"]), "{\"newer\": 1}");
    let would = b.starling(&["restore", "mesh.jsonl", "--overwrite", "--dry-run"]);
    assert!(would.contains("3 would be written"), "{would}");
    assert!(b.try_starling(&["config", "get", "gone"]).is_err(), "nothing was done");
    let only = b.starling(&["restore", "mesh.jsonl", "--overwrite", "--only", "config"]);
    assert!(only.contains("2 written, 1 the same already"), "{only}");
    b.starling(&["restore", "mesh.jsonl", "--overwrite"]);
    assert_eq!(b.starling(&["config", "get", "gone"]), "old");
    let instances: Value = serde_json::from_str(&b.starling(&["instances", "orders", "--json"])).unwrap();
    assert_eq!(instances["instances"][0]["override"]["reason"], "disk swap");

    let new = Mesh::start(["x"]);
    let file = mesh.dir().join("mesh.jsonl");
    let restore = ["restore", file.to_str().unwrap()];
    let said = new.node("x").starling(&restore);
    assert!(said.contains("4 written") && said.contains("created"), "{said}");
    assert!(new.node("x").starling(&restore).contains("0 written, 4 the same already"), "again changes nothing");
    assert_eq!(new.node("x").starling(&["config", "get", "limits.json"]), "{}");
    let document: Value = serde_json::from_str(&new.node("x").starling(&["config", "get", "gone", "--json"])).unwrap();
    assert!(document["versions"][0]["comment"].as_str().unwrap().starts_with("restored from a backup"));
    new.node("x").starling(&["register", "orders", "--port", "9", "--id", "o1"]);
    assert!(new.node("x").ready_instances("orders").is_empty(), "the override was there before the instance");

    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 20]).unwrap();
    let refused = new.node("x").try_starling(&restore).unwrap_err();
    assert!(refused.contains("cut off"), "{refused}");
}
