//! House rules as a test: who may know whom, what must not be written, and that the README tells the truth.

#![allow(clippy::unwrap_used)] // a helper that fails is a failed test

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(root().join(path.as_ref())).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// The files the project consists of, as paths from its root.
fn files() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    walk(&path, found);
                }
            } else if name != "Cargo.lock" && name != ".git" {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found.sort();
    found
}

fn rust_files() -> Vec<PathBuf> {
    files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

fn rust_files_under(dir: &str) -> Vec<PathBuf> {
    let found: Vec<PathBuf> = rust_files().into_iter().filter(|path| path.starts_with(dir)).collect();
    assert!(!found.is_empty(), "{dir} holds Rust files");
    found
}

/// Every package a crate is built from, tests left out.
fn dependency_tree(package: &str) -> BTreeSet<String> {
    let arguments =
        ["tree", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{p}", "--package"];
    let output = Command::new(env!("CARGO")).args(arguments).arg(package).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_heart_is_pure() {
    let tree = dependency_tree("starling-core");
    assert!(tree.contains("crdts"), "the tree was read: {tree:?}");
    for forbidden in ["tokio", "quinn", "quinn-proto", "rustls", "chitchat", "hyper", "mio", "socket2", "getrandom"] {
        assert!(!tree.contains(forbidden), "mesh/core must not depend on {forbidden}");
    }
    let world = ["SystemTime", "std::fs", "std::net", "std::thread", "std::env", "HashMap", "HashSet", "Instant::now"];
    for path in rust_files_under("mesh/core/src") {
        let text = read(&path);
        for forbidden in world {
            assert!(!text.contains(forbidden), "{}: {forbidden} has no place in the heart", path.display());
        }
    }
}

#[test]
fn the_simulator_has_no_real_time() {
    for path in rust_files_under("mesh/sim/src") {
        let text = read(&path);
        // Whole runs may be spread over threads; within a run there is none.
        let spreads_runs = path.ends_with("swarm/mod.rs");
        for forbidden in ["SystemTime", "Instant::now", "std::thread", "HashMap", "HashSet", "std::net"] {
            if spreads_runs && forbidden == "std::thread" {
                continue;
            }
            assert!(!text.contains(forbidden), "{}: {forbidden} would make a run unrepeatable", path.display());
        }
    }
}

#[test]
fn layers_know_only_what_is_below_them() {
    let may_know: BTreeMap<&str, &[&str]> = [
        ("core", &[][..]),
        ("net", &["core"][..]),
        ("proxy", &["core", "net"][..]),
        ("api", &["core", "net"][..]),
        ("sim", &["core"][..]),
    ]
    .into();
    for (layer, below) in &may_know {
        let manifest = read(format!("mesh/{layer}/Cargo.toml"));
        for other in may_know.keys().filter(|other| !below.contains(other) && *other != layer) {
            assert!(!manifest.contains(&format!("starling-{other}")), "mesh/{layer} must not know mesh/{other}");
        }
    }
    let net = read("mesh/net/Cargo.toml");
    assert!(!net.contains("hyper") && !net.contains("axum"), "mesh/net must not know HTTP");
    let api = read("mesh/api/Cargo.toml");
    assert!(!api.contains("quinn") && !api.contains("rustls"), "mesh/api must not know certificates");
    for path in rust_files_under("mesh/proxy/src") {
        let text = read(&path);
        for forbidden in ["starling_core::store", "starling_core::node", "starling_core::repair", "Command::"] {
            assert!(
                !text.contains(forbidden),
                "{}: the data plane reads the view only, not {forbidden}",
                path.display()
            );
        }
    }
}

#[test]
fn the_top_level_is_what_it_should_be() {
    let allowed = "Cargo.toml Cargo.lock LICENSE README.md rust-toolchain.toml src mesh examples tests bench target";
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let allowed = name.starts_with('.') || allowed.split(' ').any(|known| known == name);
        assert!(allowed, "{name} does not belong at the top level");
    }
}

#[test]
fn nothing_is_left_undone_or_switched_off() {
    // Put together here so that this file does not find itself.
    let undone = [["to", "do!("], ["unimple", "mented!("], ["#[ig", "nore"], ["TO", "DO"], ["FIX", "ME"]]
        .map(|word| word.concat());
    for path in rust_files() {
        let text = read(&path);
        for word in &undone {
            assert!(!text.contains(word.as_str()), "{}: {word}", path.display());
        }
    }
}

#[test]
fn every_file_fits_a_readers_head() {
    for path in rust_files() {
        let lines = read(&path).lines().count();
        assert!(lines <= 800, "{}: {lines} lines; a room for two families?", path.display());
    }
}

#[test]
fn every_crate_opens_with_a_map() {
    for path in ["src/lib.rs", "src/main.rs"] {
        assert!(read(path).starts_with("//! "), "{path}: no crate doc");
    }
    for layer in ["core", "net", "proxy", "api", "sim"] {
        assert!(read(format!("mesh/{layer}/src/lib.rs")).starts_with("//! "), "mesh/{layer}: no crate doc");
    }
}

#[test]
fn randomness_is_overridden_only_in_tests() {
    let symbol = ["no_", "mangle"].concat();
    for path in rust_files().iter().filter(|path| !path.starts_with("tests")) {
        assert!(!read(path).contains(&symbol), "{}: an override here would make keys constant", path.display());
    }
}

/// The commands of all ```sh blocks of a document.
fn shell_lines(document: &str) -> Vec<String> {
    let (mut lines, mut inside) = (Vec::new(), false);
    for line in document.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside && !command.is_empty() && !command.starts_with('#') => lines.push(command.to_owned()),
            _ => {}
        }
    }
    lines
}

#[test]
fn the_readmes_commands_exist() {
    let lines = shell_lines(&read("README.md"));
    assert!(lines.iter().any(|line| line == "cargo run --release -- demo"), "the README names the main job");
    assert!(lines.iter().any(|line| line == "cargo test --workspace"), "the README names the test command");
    assert!(read(".ci/run").contains("\ncargo test --workspace\n"), ".ci/run runs the README's test command");
    let mut checked = 0;
    for line in &lines {
        let mut words = line.split_whitespace().skip_while(|word| !word.ends_with("starling")).skip(1);
        let Some(subcommand) = words.next().filter(|word| !word.starts_with('-')) else { continue };
        let nested = ["config", "override", "policy", "ca"].contains(&subcommand);
        let mut arguments = vec![subcommand];
        arguments.extend(words.next().filter(|_| nested));
        arguments.push("--help");
        let output = Command::new(env!("CARGO_BIN_EXE_starling")).args(&arguments).output().unwrap();
        assert!(output.status.success(), "`{line}`: starling {} does not exist", arguments.join(" "));
        checked += 1;
    }
    assert!(checked >= 5, "the tour's commands were found");
    let named = lines.iter().flat_map(|line| line.split_whitespace());
    for path in named.filter(|word| word.starts_with("examples/") || word.starts_with("bench/")) {
        assert!(root().join(path).exists(), "the README names {path}, which does not exist");
    }
}

#[test]
fn links_in_documents_lead_somewhere() {
    for document in files().iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let text = read(document);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            let from = root().join(document.parent().unwrap());
            assert!(from.join(path).exists(), "{}: link to {target}", document.display());
        }
    }
}
