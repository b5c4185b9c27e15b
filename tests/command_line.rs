//! The built binary as people and scripts meet it: exit codes, and what it says when something is wrong.

#![allow(clippy::unwrap_used, reason = "what a test relies on may panic")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

fn starling(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
    command.env_clear().env("TMPDIR", dir).env("USER", "test").current_dir(dir).stdin(Stdio::null()).args(arguments);
    command
}

fn run(dir: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = starling(dir, arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn without_a_node_the_error_says_whom_it_asked_and_how_to_start_one() {
    let dir = TempDir::new().unwrap();
    let (code, stdout, stderr) = run(dir.path(), &["--peer", "127.0.0.1:1", "services"]);
    assert_eq!((code, stdout.as_str()), (Some(3), ""));
    assert!(stderr.contains("127.0.0.1:1") && stderr.contains("starling node --dev"), "{stderr}");
}

#[test]
fn a_command_line_that_makes_no_sense_is_exit_code_2() {
    let dir = TempDir::new().unwrap();
    for line in
        [&["frobnicate"][..], &["register", "orders"], &["register", "a b", "--port", "1"], &["config", "put", "x"]]
    {
        let (code, _, stderr) = run(dir.path(), line);
        assert_eq!(code, Some(2), "{line:?}: {stderr}");
    }
}

#[test]
fn a_node_without_a_certificate_says_which_commands_make_one_and_they_do() {
    let dir = TempDir::new().unwrap();
    let (code, _, stderr) = run(dir.path(), &["node", "--name", "node-a"]);
    assert_eq!(code, Some(1), "{stderr}");
    let advice = stderr.lines().filter_map(|line| line.trim().strip_prefix("starling ca "));
    let advice: Vec<Vec<&str>> = advice.map(|line| line.split(' ').collect()).collect();
    assert_eq!(advice.len(), 2, "{stderr}");
    let mut settings = String::new();
    for command in &advice {
        let (code, stdout, stderr) = run(dir.path(), &[&["ca"], &command[..]].concat());
        assert_eq!(code, Some(0), "{stderr}");
        settings = stdout;
    }
    let from_the_table = settings.split_once("[tls]").unwrap().1;
    std::fs::write(dir.path().join("node.toml"), format!("[tls]{from_the_table}")).unwrap();
    let (code, stdout, stderr) = run(dir.path(), &["node", "--config", "node.toml", "--name", "node-a", "--check"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let (code, _, stderr) = run(dir.path(), &["node", "--config", "node.toml", "--name", "node-b", "--check"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("issued for node-a"), "{stderr}");
}

#[test]
fn check_shows_each_value_with_its_origin_and_refuses_what_it_does_not_know() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("good.toml"), "[node]\nzone = \"west\"\n[proxy.breaker]\nopen_ms = 200\n").unwrap();
    let line = ["node", "--dev", "--check", "--config", "good.toml", "--set", "gossip.repair_interval_ms=500"];
    let output = starling(dir.path(), &line).env("STARLING_PROXY_BREAKER_MIN_CALLS", "7").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    for (key, value, from) in [
        ("node.zone", "west", "file, line 2"),
        ("proxy.breaker.open_ms", "200", "file, line 4"),
        ("proxy.breaker.min_calls", "7", "environment, STARLING_PROXY_BREAKER_MIN_CALLS"),
        ("gossip.repair_interval_ms", "500", "flag, --set"),
        ("node.mesh", "starling", "default"),
    ] {
        let row = stdout.lines().find(|row| row.split_whitespace().next() == Some(key)).unwrap_or_default();
        assert!(row.contains(value) && row.ends_with(from), "{key}: {row:?}");
    }
    std::fs::write(dir.path().join("bad.toml"), "[proxy.breaker]\nopn_ms = 200\n").unwrap();
    let (code, _, stderr) = run(dir.path(), &["node", "--dev", "--check", "--config", "bad.toml"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("unknown key `opn_ms` at line 2 in [proxy.breaker]; did you mean `open_ms`?"), "{stderr}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = TempDir::new().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = starling(dir.path(), &["node", "--dev", "--check", "--json"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(0), String::new()));
}

#[test]
fn the_throw_away_authority_is_for_loopback_only() {
    let dir = TempDir::new().unwrap();
    let (code, _, stderr) = run(dir.path(), &["node", "--dev", "--listen", "0.0.0.0:0"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("only loopback addresses"), "{stderr}");
}

#[test]
fn a_scenario_is_played_and_a_disappointed_expectation_is_exit_code_1() {
    let dir = TempDir::new().unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/scenarios/partition.toml");
    let (code, first, stderr) = run(dir.path(), &["sim", example, "--seed", "7"]);
    assert_eq!(code, Some(0), "{first}{stderr}");
    assert_eq!(run(dir.path(), &["sim", example, "--seed", "7"]).1, first, "the same seed gives the same timeline");
    let hopeless = "[mesh]\nnodes = 2\n[[step]]\nat = \"1s\"\ndo = \"expect-ready\"\ninstance = \"orders/o1\"\n";
    std::fs::write(dir.path().join("hopeless.toml"), hopeless).unwrap();
    let (code, stdout, stderr) = run(dir.path(), &["sim", "hopeless.toml"]);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("FAILED") && stderr.contains("--seed"), "{stdout}{stderr}");
}

#[test]
fn a_second_dev_node_whose_port_is_taken_is_told_how_to_start() {
    let dir = TempDir::new().unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, stderr) = run(dir.path(), &["node", "--dev", "--listen", &address, "--api", "127.0.0.1:0"]);
    assert_eq!(code, Some(1), "{stderr}");
    for part in [&address[..], "node.listen", "starling node --dev --name b --listen 127.0.0.1:0", "--seed"] {
        assert!(stderr.contains(part), "{part} is missing: {stderr}");
    }
}

#[test]
fn something_that_is_no_node_is_not_believed_that_nothing_is_there() {
    let dir = TempDir::new().unwrap();
    for question in [&["config", "watch", "limits"][..], &["--json", "instances", "orders"]] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let other = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nconnection: close\r\n\r\nnope").unwrap();
        });
        let (code, stdout, stderr) = run(dir.path(), &[&["--peer", &address], question].concat());
        other.join().unwrap();
        assert_eq!((code, &stdout[..]), (Some(1), ""), "{question:?}: {stderr}");
        assert!(stderr.contains("is it the API of a Starling node?"), "{question:?}: {stderr}");
    }
}

#[test]
fn an_override_of_nothing_names_both_things_that_can_be_overruled() {
    let dir = TempDir::new().unwrap();
    let (code, _, stderr) = run(dir.path(), &["override", "set", "orders", "a:1"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("--status") && stderr.contains("--weight"), "{stderr}");
}

#[test]
fn stories_can_be_played_by_name_by_directory_and_with_many_seeds() {
    let dir = TempDir::new().unwrap();
    let (code, listed, _) = run(dir.path(), &["sim", "--list"]);
    assert_eq!(code, Some(0));
    assert!(listed.contains("partition") && listed.contains("a rolling restart"), "{listed}");

    let (code, told, stderr) = run(dir.path(), &["sim", "partition", "--html", "p.html", "--svg", "p.svg"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(told.ends_with("ok: all 11 expectations held\n"), "{told}");
    let picture = std::fs::read_to_string(dir.path().join("p.html")).unwrap();
    assert!(picture.contains("starling sim partition --seed 7") && picture.contains("class=\"fence\""));
    assert!(std::fs::read_to_string(dir.path().join("p.svg")).unwrap().starts_with("<svg xmlns"));

    let stories = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/scenarios");
    let (code, told, stderr) = run(dir.path(), &["sim", stories]);
    assert_eq!(code, Some(0), "{told}{stderr}");
    assert!(told.lines().count() >= 11 && told.lines().all(|line| line.starts_with('✓')), "{told}");

    let (code, told, stderr) = run(dir.path(), &["sim", "crash", "edits", "--seeds", "20"]);
    assert_eq!(code, Some(0), "{told}{stderr}");
    assert!(told.contains("✓ crash: all held with 20 seeds") && told.contains("✓ edits: all held"), "{told}");
}

#[test]
fn a_seed_draws_a_story_and_the_same_one_again() {
    let dir = TempDir::new().unwrap();
    let (code, told, stderr) = run(dir.path(), &["sim", "--seeds", "10", "--json"]);
    assert_eq!(code, Some(0), "{told}{stderr}");
    let sum: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((sum["seeds"].as_u64(), sum["ok"].as_bool()), (Some(10), Some(true)));
    assert!(sum["steps"]["mend"] == 10 && sum["failures"].as_array().unwrap().is_empty(), "{told}");
    let (code, first, stderr) = run(dir.path(), &["sim", "--seed", "3"]);
    assert_eq!(code, Some(0), "{first}{stderr}");
    assert_eq!(run(dir.path(), &["sim", "--seed", "3"]).1, first);
}

#[test]
fn seeds_that_fail_are_told_with_the_line_that_plays_them_again() {
    let dir = TempDir::new().unwrap();
    // With these losses the push to one of three nodes does not always arrive at once.
    let story = "[mesh]\nnodes = 3\nloss = 0.5\n\
        [[step]]\nat = \"1s\"\ndo = \"register\"\nnode = \"n1\"\ninstance = \"orders/o1\"\n\
        [[step]]\nat = \"1s\"\ndo = \"expect-visible\"\ninstance = \"orders/o1\"\nwithin = \"2ms\"\n";
    std::fs::write(dir.path().join("lossy.toml"), story).unwrap();
    let (code, told, stderr) = run(dir.path(), &["sim", "lossy.toml", "--seeds", "100"]);
    assert_eq!(code, Some(1), "{told}{stderr}");
    assert!(told.contains("✗ default/orders/o1 is visible: not so within 2ms (line 9)"), "{told}");
    let again = told.lines().find_map(|line| line.trim().strip_prefix("starling sim ")).unwrap();
    let again: Vec<&str> = std::iter::once("sim").chain(again.split(' ')).collect();
    let (code, _, stderr) = run(dir.path(), &again);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("play it again with: starling sim lossy.toml --seed"), "{stderr}");
}
