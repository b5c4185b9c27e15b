//! Real node processes on loopback for benchmarks: the built binary, ports the system chose, gone when dropped.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a node may take to be ready, and a mesh to be complete.
const PATIENCE: Duration = Duration::from_secs(30);

/// One `starling node --dev`.
pub(crate) struct Process {
    child: Child,
    /// Its UDP socket.
    pub(crate) quic: SocketAddr,
    /// Its HTTP API.
    pub(crate) api: SocketAddr,
    /// Its sidecar.
    #[allow(dead_code)] // not every benchmark sends requests
    pub(crate) proxy: SocketAddr,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts a node and waits until it is ready.
    pub(crate) fn start(dir: &Path, name: &str, seeds: &[SocketAddr]) -> io::Result<Self> {
        let ready = dir.join(format!("{name}.json"));
        let any = "127.0.0.1:0";
        let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
        command.args(["node", "--dev", "--log", "warn", "--name", name, "--listen", any]);
        command.args(["--set", &format!("api.listen={any}"), "--set", &format!("proxy.listen={any}")]);
        // As a node that is not for development does.
        command.args(["--set", "proxy.trace_one_in=100"]);
        command.arg("--data-dir").arg(dir.join(name)).arg("--ready-file").arg(&ready);
        for seed in seeds {
            command.args(["--seed", &seed.to_string()]);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let begun = Instant::now();
        let text = loop {
            if let Ok(text) = std::fs::read_to_string(&ready) {
                break text;
            }
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("node {name} ended: {status}")));
            }
            if begun.elapsed() > PATIENCE {
                child.kill()?;
                return Err(io::Error::other(format!("node {name} is not ready after {PATIENCE:?}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let told: serde_json::Value = serde_json::from_str(&text)?;
        let address = |what: &str| {
            let text = told["addresses"][what].as_str().unwrap_or_default();
            text.parse().map_err(|_| io::Error::other(format!("no {what} address in {told}")))
        };
        Ok(Self { quic: address("quic")?, api: address("api")?, proxy: address("proxy")?, child })
    }

    /// A mesh of so many nodes, each of which sees all others.
    pub(crate) fn mesh(dir: &Path, count: usize) -> io::Result<Vec<Self>> {
        let mut nodes: Vec<Self> = Vec::new();
        for number in 0..count {
            let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.quic).collect();
            nodes.push(Self::start(dir, &format!("n{number}"), &seeds)?);
        }
        let begun = Instant::now();
        while !nodes.iter().all(|node| node.members_alive().is_ok_and(|alive| alive == count)) {
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::other("the nodes do not find each other"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(nodes)
    }

    fn members_alive(&self) -> io::Result<usize> {
        let list = get(&format!("http://{}/v1/members", self.api))?;
        let members = list["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(members.iter().filter(|member| member["state"] == "alive").count())
    }

    /// Registers an instance at this node.
    pub(crate) fn register(&self, service: &str, id: &str, port: u16) -> io::Result<()> {
        let url = format!("http://{}/v1/services/{service}/instances/{id}", self.api);
        let body = serde_json::json!({ "port": port }).to_string();
        let answer = ureq::put(&url).content_type("application/json").send(body);
        answer.map(drop).map_err(|error| io::Error::other(format!("{url}: {error}")))
    }

    /// Takes an instance out again.
    #[allow(dead_code)] // not every benchmark takes out what it put in
    pub(crate) fn deregister(&self, service: &str, id: &str) -> io::Result<()> {
        let url = format!("http://{}/v1/services/{service}/instances/{id}", self.api);
        ureq::delete(&url).call().map(drop).map_err(|error| io::Error::other(format!("{url}: {error}")))
    }

    /// CPU time used so far, user and kernel, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let nanos: u64 = threads
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("schedstat")).ok())
            .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .sum();
        nanos as f64 / 1e9
    }

    /// Memory held now, in megabytes.
    pub(crate) fn resident_megabytes(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap_or_default();
        let pages: f64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
        pages * 4096.0 / 1e6
    }
}

/// `GET` of a JSON document.
pub(crate) fn get(url: &str) -> io::Result<serde_json::Value> {
    let mut answer = ureq::get(url).call().map_err(|error| io::Error::other(format!("{url}: {error}")))?;
    answer.body_mut().read_json().map_err(|error| io::Error::other(format!("{url}: {error}")))
}

/// What a waiting reader is told of a service.
#[allow(dead_code)] // only one benchmark reads while it waits
pub(crate) struct Told {
    pub(crate) revision: u64,
    /// Its first instance; none when it has none (any more).
    pub(crate) instance: Option<String>,
}

/// A blocking query for a service, which may not exist.
#[allow(dead_code)] // only one benchmark reads while it waits
pub(crate) fn wait_for(url: &str) -> io::Result<Told> {
    let call = ureq::get(url).config().http_status_as_error(false).build().call();
    let mut answer = call.map_err(|error| io::Error::other(format!("{url}: {error}")))?;
    let revision = answer.headers().get("x-starling-revision").and_then(|value| value.to_str().ok()?.parse().ok());
    let list: serde_json::Value =
        answer.body_mut().read_json().map_err(|error| io::Error::other(format!("{url}: {error}")))?;
    let instance = list["instances"][0]["id"].as_str().map(str::to_owned);
    Ok(Told { revision: revision.unwrap_or(0), instance })
}
