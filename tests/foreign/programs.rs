//! A small vocabulary: find a program or say what is missing, run it, and end it with the test.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

/// Whether a missing program fails the test.
fn required() -> bool {
    std::env::var_os("STARLING_FOREIGN").is_some_and(|word| word == "required")
}

/// Whether this is root; says so, or fails where nothing may be missing, if not.
pub(crate) fn is_root() -> bool {
    let is_root = run(Command::new("id").arg("-u")).trim() == "0";
    if !is_root {
        skip("skipped: needs root");
    }
    is_root
}

/// Says what is missing, or fails where nothing may be.
fn missing(what: &str, package: &str) {
    skip(&format!("skipped: needs {what} (apt-get install {package})"));
}

fn skip(skipped: &str) {
    assert!(!required(), "{skipped}");
    println!("{skipped}");
}

/// Where a program is, as the shell would find it or where only root's shell does; `None`, and why, without it.
pub(crate) fn program(name: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.map(|place| place.join(name)).find(|path| path.is_file());
    if found.is_none() {
        missing(name, package);
    }
    found
}

/// A Python that has a module, the first of the shell's and the system's.
pub(crate) fn python(module: &str, package: &str) -> Option<PathBuf> {
    let has = |python: &PathBuf| {
        let mut trial = Command::new(python);
        trial.args(["-c", &format!("import {module}")]).stdin(Stdio::null()).stdout(Stdio::null());
        trial.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let found = ["python3", "/usr/bin/python3"].map(PathBuf::from).into_iter().find(has);
    if found.is_none() {
        missing(&format!("python3 with the module {module}"), package);
    }
    found
}

/// Runs a program to its end: what it printed. It must succeed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let [told, complaints] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{told}\n{complaints}", output.status);
    told
}

/// A program that runs until this is dropped.
pub(crate) struct Running(Child);

impl Running {
    /// Starts it and waits until it prints a line in which `says` finds something: what that is.
    pub(crate) fn start<T>(command: &mut Command, says: impl Fn(&str) -> Option<T>) -> (Running, T) {
        Self::try_start(command, says).unwrap_or_else(|| panic!("{command:?} ended before it was ready"))
    }

    /// The same; nothing if it ends before that.
    fn try_start<T>(command: &mut Command, says: impl Fn(&str) -> Option<T>) -> Option<(Running, T)> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        let running = Running(child);
        let mut line = String::new();
        loop {
            line.clear();
            if told.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(found) = says(&line) {
                // The rest is for nobody; a reader that is gone must not end it.
                thread::spawn(move || std::io::copy(&mut told, &mut std::io::sink()));
                return Some((running, found));
            }
        }
    }

    /// Starts a program that must be told its port, on one that is free: a few times, since another may take it first.
    pub(crate) fn on_a_port(command: impl Fn(u16) -> Command, says: impl Fn(&str) -> bool) -> (Running, u16) {
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some((running, ())) = Self::try_start(&mut command(port), |line| says(line).then_some(())) {
                return (running, port);
            }
        }
        panic!("{:?} does not start", command(0))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}
