//! Two data centres of three real processes each, in network namespaces, with 50 ms each way and losses between them.
//!
//! Needs root, `ip`, and either a kernel with netem or `/dev/net/tun` and python3, which then carries the packets; where
//! one of these is missing, a line says which, and nothing is tested.

#![allow(clippy::unwrap_used)] // a helper that fails is a failed test
#![allow(clippy::print_stdout, clippy::print_stderr)] // what is skipped is said, and why a test failed

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use starling_net::Authority;
use tempfile::TempDir;

/// How long anything may take before a test gives up. Generous: the machine may be busy with other tests.
const DEADLINE: Duration = Duration::from_secs(90);
/// The pause between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What the names of all namespaces of this test begin with; the number of its process follows.
const PREFIX: &str = "starling-dc-";
/// The end of the line in each data centre.
const DEVICE: &str = "ocean";
/// The line between the data centres, each way.
const OCEAN: [&str; 6] = ["delay", "50ms", "2ms", "loss", "1%", "limit"];

/// The same where the kernel has no netem: milliseconds, and per cent lost.
const CARRIED: [&str; 2] = ["50", "1"];

/// Two namespaces and the line between them.
struct Ocean {
    sides: [String; 2],
    carrier: Option<Child>,
}

impl Ocean {
    /// `Err` says what this machine lacks.
    fn new() -> Result<Self, String> {
        sweep();
        let me = std::process::id();
        let sides = ["eu", "us"].map(|side| format!("{PREFIX}{me}-{side}"));
        let mut ocean = Ocean { sides, carrier: None };
        for side in &ocean.sides {
            run("ip", &["netns", "add", side])?;
            run("ip", &["-n", side, "link", "set", "lo", "up"])?;
        }
        if let Err(netem) = ocean.connect() {
            ocean.carry().map_err(|tun| format!("{netem}; and {tun}"))?;
        }
        for (number, side) in ocean.sides.iter().enumerate() {
            run("ip", &["-n", side, "address", "add", &format!("10.77.0.{}/24", number + 1), "dev", DEVICE])?;
            run("ip", &["-n", side, "link", "set", DEVICE, "up"])?;
        }
        Ok(ocean)
    }

    /// A pair of devices that delay and lose.
    fn connect(&self) -> Result<(), String> {
        let [eu, us] = &self.sides;
        run("ip", &["-n", eu, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", us])?;
        for side in &self.sides {
            let netem = ["netns", "exec", side, "tc", "qdisc", "add", "dev", DEVICE, "root", "netem"];
            if let Err(why) = run("ip", &[&netem[..], &OCEAN, &["10000"]].concat()) {
                run("ip", &["-n", eu, "link", "delete", DEVICE])?;
                return Err(why);
            }
        }
        Ok(())
    }

    /// A program that does.
    fn carry(&mut self) -> Result<(), String> {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data_centres/ocean.py");
        let mut command = Command::new("python3");
        command.arg(program).args(&self.sides).arg(DEVICE).args(CARRIED).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut carrier = command.spawn().map_err(|error| format!("python3: {error}"))?;
        let mut first = [0; 6];
        let ready = carrier.stdout.take().is_some_and(|mut told| told.read_exact(&mut first).is_ok());
        self.carrier = Some(carrier);
        if ready { Ok(()) } else { Err("python3 cannot carry packets between tun devices".into()) }
    }

    fn set(&self, state: &str) {
        run("ip", &["-n", &self.sides[0], "link", "set", DEVICE, state]).unwrap();
    }
}

impl Drop for Ocean {
    fn drop(&mut self) {
        if let Some(carrier) = &mut self.carrier {
            let _ = carrier.kill();
            let _ = carrier.wait();
        }
        for side in &self.sides {
            let _ = run("ip", &["netns", "delete", side]);
        }
    }
}

/// Removes what a test that was killed could not.
fn sweep() {
    for line in run("ip", &["netns", "list"]).unwrap_or_default().lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            let _ = run("ip", &["netns", "delete", name]);
        }
    }
}

/// Runs a program to its end: what it prints, or its complaint.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// A node's process.
struct Node {
    name: String,
    side: String,
    log: PathBuf,
    process: Child,
    api: String,
    proxy: String,
}

impl Node {
    fn start(authority: &Authority, dir: &Path, side: &str, cell: &str, number: usize, seed: &str) -> Node {
        let name = format!("{cell}-{number}");
        let home = dir.join(&name);
        fs::create_dir(&home).unwrap();
        let issued = authority.issue(&name.parse().unwrap(), Duration::from_secs(3600)).unwrap();
        for (file, pem) in [("ca", issued.ca_pem), ("cert", issued.certificate_pem), ("key", issued.key_pem)] {
            fs::write(home.join(file), pem).unwrap();
        }
        run("chmod", &["600", &home.join("key").to_string_lossy()]).unwrap();
        let at = if cell == "eu" { 1 } else { 2 };
        let (ready, log) = (home.join("ready"), home.join("log"));
        let mut command = inside(side);
        command.args(["node", "--name", &name, "--mesh", "oceans", "--zone", cell, "--cell", cell, "--region", cell]);
        command.args(["--listen", &format!("10.77.0.{at}:{}", 15_100 + number), "--seed", seed]);
        command.args(["--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0", "--set", "api.allowed_hosts=whoami.mesh"]);
        for file in ["ca", "cert", "key"] {
            command.args(["--set", &format!("tls.{file}={}", home.join(file).display())]);
        }
        command.arg("--data-dir").arg(home.join("data")).arg("--ready-file").arg(&ready);
        let process = command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut node = Node { name, side: side.into(), log, process, api: String::new(), proxy: String::new() };
        eventually("it is ready", || ready.exists() || node.process.try_wait().unwrap().is_some());
        assert!(ready.exists(), "{} ended instead of starting:\n{}", node.name, fs::read_to_string(&node.log).unwrap());
        let ready: Value = serde_json::from_str(&fs::read_to_string(&ready).unwrap()).unwrap();
        let address = |what: &str| ready["addresses"][what].as_str().unwrap().to_owned();
        (node.api, node.proxy) = (address("api"), address("proxy"));
        node
    }

    fn starling(&self, arguments: &[&str]) -> Result<String, String> {
        let output = inside(&self.side).arg("--peer").arg(&self.api).args(arguments).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn alive(&self) -> usize {
        let list: Value = serde_json::from_str(&self.starling(&["members", "--json"]).unwrap()).unwrap();
        list["members"].as_array().unwrap().iter().filter(|member| member["state"] == "alive").count()
    }

    fn knows(&self, id: &str) -> bool {
        self.starling(&["instances", "whoami", "--json"]).unwrap().contains(&format!("\"{id}\""))
    }

    /// Asks the service through this node's sidecar: which node's own API answers.
    fn calls(&self) -> String {
        let (host, port) = self.proxy.rsplit_once(':').unwrap();
        let request = "GET /v1/node HTTP/1.1\\r\\nhost: whoami.mesh\\r\\nconnection: close\\r\\n\\r\\n";
        let script = format!("exec 3<>/dev/tcp/{host}/{port}; printf '{request}' >&3; cat <&3");
        run("ip", &["netns", "exec", &self.side, "timeout", "20", "bash", "-c", &script]).unwrap_or_else(|why| why)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// The binary, in a namespace. (`ip netns exec` becomes what it runs: to kill the one is to kill the other.)
fn inside(side: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", side, env!("CARGO_BIN_EXE_starling")]).stdin(Stdio::null());
    command
}

/// Looks until the condition holds; how long that took.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        thread::sleep(LOOK_AGAIN);
    }
    began.elapsed()
}

#[test]
fn two_data_centres_call_each_other_go_on_when_they_are_cut_and_are_one_again_when_healed() {
    let ocean = match Ocean::new() {
        Ok(ocean) => ocean,
        Err(why) => return println!("skipped: network namespaces with netem cannot be made here: {why}"),
    };
    let dir = TempDir::new().unwrap();
    let authority = Authority::throw_away(&"oceans".parse().unwrap()).unwrap();
    let start = |(cell, number): (usize, usize)| {
        let name = ["eu", "us"][cell];
        Node::start(&authority, dir.path(), &ocean.sides[cell], name, number, "10.77.0.1:15100")
    };
    let nodes: Vec<Node> = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)].map(start).into();
    let all_see = |alive: usize| nodes.iter().all(|node| node.alive() == alive);
    eventually("all six know each other through one seed", || all_see(6));

    let there = nodes[0].starling(&["members", "--cell", "us"]).unwrap();
    assert!(there.contains("us-0") && there.contains("relay") && !there.contains("eu-1"), "{there}");
    let port = nodes[4].api.rsplit_once(':').unwrap().1;
    nodes[4].starling(&["register", "whoami", "--port", port, "--id", "in-us"]).unwrap();
    eventually("the other side of the ocean knows it", || nodes[2].knows("in-us"));
    let mut answer = String::new();
    eventually("a call crosses the ocean", || {
        answer = nodes[2].calls();
        answer.contains("\"us-1\"")
    });

    ocean.set("down");
    let lost = eventually("each side has lost the other, and nobody else", || all_see(3));
    let port = nodes[1].api.rsplit_once(':').unwrap().1;
    nodes[1].starling(&["register", "whoami", "--port", port, "--id", "in-eu"]).unwrap();
    nodes[3].starling(&["config", "put", "limits.json", "--value", "7"]).unwrap();
    eventually("one side goes on", || nodes[0].knows("in-eu") && nodes[0].calls().contains("\"eu-1\""));
    eventually("the other goes on", || nodes[5].starling(&["config", "get", "limits.json"]).as_deref() == Ok("7"));
    assert!(nodes[0].knows("in-us"), "the last known instances stay");
    assert!(nodes[0].starling(&["members"]).unwrap().contains("nothing is heard of cell us"));

    ocean.set("up");
    let back = eventually("all six know each other again", || all_see(6));
    eventually("each side has what the other wrote", || {
        nodes[5].knows("in-eu") && nodes[0].starling(&["config", "get", "limits.json"]).as_deref() == Ok("7")
    });
    eventually("all nodes hold the same", || nodes[0].starling(&["status", "--check"]).is_ok());
    println!("the cut was noticed within {lost:?}, the heal within {back:?}");
}
