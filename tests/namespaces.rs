//! The stories of the simulator, played by real nodes in network namespaces.
//!
//! They need Linux, `ip` and `unshare`, and root or user namespaces; where one of these is missing, a line says which, and
//! nothing is tested.

#![allow(clippy::unwrap_used)] // a helper that fails is a failed test
#![allow(clippy::print_stdout)] // what is skipped is said

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything may take before a test gives up. Generous: the machine may be busy with other tests.
const DEADLINE: Duration = Duration::from_secs(120);
/// The exit code that says that it cannot be done here.
const UNABLE: i32 = 4;

/// `starling sim STORY --real`, with everything it keeps in a directory of the test's.
fn real(story: &str, dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
    command.args(["sim", story, "--real", "--longest-wait", "3s"]).env("TMPDIR", dir).stdin(Stdio::null());
    command
}

/// Plays a story to its end: what it told; nothing where it cannot be played.
fn played(story: &str) -> Option<String> {
    let dir = TempDir::new().unwrap();
    let output = real(story, dir.path()).output().unwrap();
    let [told, complaints] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    if output.status.code() == Some(UNABLE) {
        println!("skipped: {complaints}");
        return None;
    }
    assert!(output.status.success(), "{told}\n{complaints}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the run cleans up after itself");
    Some(told)
}

/// A run that has come as far as its first step; `None` where it cannot be played.
fn begun(story: &str, dir: &Path) -> Option<Child> {
    let mut run = real(story, dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    while told.read_line(&mut line).unwrap() > 0 {
        if line.contains("register") {
            // The rest is for nobody; a reader that is gone must not end it.
            thread::spawn(move || std::io::copy(&mut told, &mut std::io::sink()));
            return Some(run);
        }
    }
    assert_eq!(run.wait().unwrap().code(), Some(UNABLE), "it ended before its first step: {line}");
    println!("skipped: this machine cannot play it");
    None
}

/// How many processes have this directory among their arguments.
fn processes_of(dir: &Path) -> usize {
    let dir = dir.to_str().unwrap().as_bytes();
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let arguments = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    arguments.filter(|arguments| arguments.windows(dir.len()).any(|window| window == dir)).count()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn signal(run: &Child, which: &str) {
    assert!(Command::new("kill").args([which, &run.id().to_string()]).status().unwrap().success());
}

#[test]
fn the_story_of_a_partition_holds_with_real_nodes() {
    let Some(told) = played("partition") else { return };
    assert!(told.contains("cut between a1, a2, a3 and b1, b2"), "{told}");
    assert!(told.contains("✓ default/shop/limits shows a conflict of 2 versions"), "{told}");
    assert!(told.contains("✓ nothing acknowledged is lost"), "{told}");
    assert!(told.trim_end().ends_with("ok: all 11 expectations held, with real nodes"), "{told}");
}

#[test]
fn the_story_of_a_crash_holds_with_real_nodes() {
    let Some(told) = played("crash") else { return };
    assert!(told.contains("n2 crashes") && told.contains("n2 starts again"), "{told}");
    assert!(told.trim_end().ends_with("ok: all 9 expectations held, with real nodes"), "{told}");
}

#[test]
fn an_expectation_that_does_not_hold_with_real_nodes_fails_the_run() {
    let dir = TempDir::new().unwrap();
    let story = dir.path().join("wrong.toml");
    let text = "[mesh]\nnodes = 2\n[[step]]\nat = 0\ndo = \"expect-visible\"\ninstance = \"orders/o1\"\n";
    std::fs::write(&story, text).unwrap();
    let output = real(story.to_str().unwrap(), dir.path()).arg("--json").output().unwrap();
    if output.status.code() == Some(UNABLE) {
        println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    let result: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert!(result["ok"] == false && result["real"] == true, "{told}");
    assert!(told.contains("✗ default/orders/o1 is visible: not so within 10s (line 3)"), "{told}");
    assert!(told.contains("n1 does not list it") && told.contains("n2 does not list it"), "{told}");
}

#[test]
fn a_run_that_somebody_ends_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let Some(mut run) = begun("crash", dir.path()) else { return };
    assert!(processes_of(dir.path()) > 5, "five nodes and who plays with them");
    signal(&run, "-INT");
    assert_eq!(run.wait().unwrap().code(), Some(130));
    eventually("all its processes are gone", || processes_of(dir.path()) == 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "and all its files");
}

#[test]
fn even_a_run_that_is_killed_leaves_no_process_behind() {
    let dir = TempDir::new().unwrap();
    let Some(mut run) = begun("crash", dir.path()) else { return };
    run.kill().unwrap();
    run.wait().unwrap();
    eventually("all its processes are gone", || processes_of(dir.path()) == 0);
}

#[test]
fn a_machine_without_the_tools_says_which_one_is_missing() {
    let dir = TempDir::new().unwrap();
    let output = real("crash", dir.path()).env("PATH", dir.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(UNABLE), "{told}");
    assert!(told.contains("there is no unshare (package util-linux)"), "{told}");
}

#[test]
fn what_cannot_be_done_to_real_nodes_is_refused_before_any_is_started() {
    let dir = TempDir::new().unwrap();
    let output = real("clocks", dir.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(UNABLE), "{told}");
    assert!(told.contains("clocks: line 28: all processes of a machine share its clock"), "{told}");
}
