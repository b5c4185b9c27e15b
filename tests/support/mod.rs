//! Real node processes and small applications for tests; all of them end with the test, even when it panics.

#![allow(dead_code, reason = "each test file uses its part of the vocabulary")]

mod backend;
mod client;

use std::convert::Infallible;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;

#[allow(unused_imports, reason = "each test file uses its part of the vocabulary")]
pub(crate) use backend::{Backend, Mood};
#[allow(unused_imports, reason = "each test file uses its part of the vocabulary")]
pub(crate) use client::{Line, Said};

/// How long anything may take before a test gives up. Generous: the machine may be busy with other tests.
const DEADLINE: Duration = Duration::from_secs(60);
/// The pause between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Looks until the condition holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        thread::sleep(LOOK_AGAIN);
    }
}

/// Some nodes of one mesh, on loopback, with data and certificates in a directory of their own.
pub(crate) struct Mesh {
    dir: TempDir,
    nodes: Vec<NodeProcess>,
    identity: Certificates,
}

/// Where the nodes' certificates come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certificates {
    /// The throw-away authority of `--dev`.
    ThrownAway,
    /// The files named in each node's settings.
    InSettings,
}

/// One process of the binary.
pub(crate) struct NodeProcess {
    name: String,
    dir: PathBuf,
    child: Child,
    api: SocketAddr,
    proxy: SocketAddr,
    quic: SocketAddr,
    redirect: Option<SocketAddr>,
    /// Services, and the ports that lead to them.
    upstreams: Vec<(String, SocketAddr)>,
}

impl Mesh {
    /// Starts nodes of these names; the first is the seed of the others. Each knows all others when this returns.
    pub(crate) fn start<const N: usize>(names: [&str; N]) -> Mesh {
        let mut mesh = Mesh::empty(Certificates::ThrownAway);
        for name in names {
            let seed = mesh.nodes.first().map(|node| node.quic);
            mesh.add(name, seed);
        }
        mesh.all_know_each_other();
        mesh
    }

    /// A directory, and no nodes yet.
    pub(crate) fn empty(identity: Certificates) -> Mesh {
        Mesh { dir: TempDir::new().unwrap(), nodes: Vec::new(), identity }
    }

    /// Starts one node more.
    pub(crate) fn add(&mut self, name: &str, seed: Option<SocketAddr>) -> &NodeProcess {
        self.try_add(name, seed).unwrap_or_else(|log| panic!("node {name} ended instead of starting:\n{log}"))
    }

    /// The same; its log when it does not start.
    pub(crate) fn try_add(&mut self, name: &str, seed: Option<SocketAddr>) -> Result<&NodeProcess, String> {
        let node = NodeProcess::try_start(self.dir.path(), name, seed, self.identity)?;
        self.nodes.push(node);
        Ok(self.node(name))
    }

    /// Waits until every node sees all nodes alive.
    pub(crate) fn all_know_each_other(&self) {
        let mut names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        names.sort_unstable();
        for node in &self.nodes {
            eventually(&format!("{} knows all others", node.name), || node.alive_members() == names);
        }
    }

    /// Where everything of this mesh is kept.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a command of the binary in this mesh's directory: what it prints, or its complaint.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String, String> {
        outcome(starling(self.dir.path()).args(arguments))
    }

    /// A node by name.
    pub(crate) fn node(&self, name: &str) -> &NodeProcess {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    /// The same, to end it.
    pub(crate) fn node_mut(&mut self, name: &str) -> &mut NodeProcess {
        self.nodes.iter_mut().find(|node| node.name == name).unwrap()
    }

    /// Starts a node again that was ended, with the same data; through any other node that runs, if there is one.
    pub(crate) fn restart(&mut self, name: &str) {
        let others = self.nodes.iter_mut().filter(|node| node.name != name);
        let seed = others.filter_map(|node| node.is_running().then_some(node.quic)).next();
        let again = NodeProcess::try_start(self.dir.path(), name, seed, self.identity);
        *self.node_mut(name) = again.unwrap_or_else(|log| panic!("node {name} did not start again:\n{log}"));
    }

    /// What stands in a node's settings file from its next start on.
    pub(crate) fn settings(&self, name: &str, text: &str) {
        fs::write(settings_file(self.dir.path(), name), text).unwrap();
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- log of {}\n{}", node.name, node.log());
            }
        }
    }
}

impl NodeProcess {
    fn try_start(
        dir: &Path,
        name: &str,
        seed: Option<SocketAddr>,
        identity: Certificates,
    ) -> Result<NodeProcess, String> {
        let ready_file = dir.join(format!("{name}.ready"));
        let _ = fs::remove_file(&ready_file);
        let settings = settings_file(dir, name);
        if !settings.exists() {
            fs::write(&settings, "").unwrap();
        }
        let log = fs::File::options().create(true).append(true).open(log_file(dir, name)).unwrap();
        let mut command = starling(dir);
        command.args(["node", "--name", name, "--zone", name, "--config"]).arg(&settings);
        command.args(["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0", "--ready-file"]);
        command.arg(&ready_file).stdout(Stdio::null()).stderr(log);
        match identity {
            Certificates::ThrownAway => command.arg("--dev"),
            Certificates::InSettings => command.arg("--data-dir").arg(dir.join(format!("{name}.data"))),
        };
        if let Some(seed) = seed {
            command.args(["--seed", &seed.to_string()]);
        }
        let child = command.spawn().unwrap();
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let (api, proxy, quic) = (nowhere, nowhere, nowhere);
        let (upstreams, redirect) = (Vec::new(), None);
        let mut node = NodeProcess { name: name.into(), dir: dir.into(), child, api, proxy, quic, redirect, upstreams };
        eventually(&format!("{name} is ready, or has given up"), || ready_file.exists() || !node.is_running());
        if !ready_file.exists() {
            return Err(node.log());
        }
        let ready: Value = serde_json::from_str(&fs::read_to_string(&ready_file).unwrap()).unwrap();
        let address = |what: &str| ready["addresses"][what].as_str().unwrap().parse().unwrap();
        (node.api, node.proxy, node.quic) = (address("api"), address("proxy"), address("quic"));
        node.redirect = ready["addresses"]["redirect"].as_str().map(|text| text.parse().unwrap());
        let upstreams = ready["upstreams"].as_array().unwrap().iter();
        let text = |of: &Value, key: &str| of[key].as_str().unwrap().to_owned();
        node.upstreams = upstreams.map(|of| (text(of, "service"), text(of, "listen").parse().unwrap())).collect();
        Ok(node)
    }

    /// Where people and programs ask it, as the command line wants it.
    pub(crate) fn api(&self) -> String {
        self.api.to_string()
    }

    /// Where the applications of its host reach it.
    pub(crate) fn proxy(&self) -> SocketAddr {
        self.proxy
    }

    /// Its port that leads to a service.
    pub(crate) fn port_to(&self, service: &str) -> SocketAddr {
        let key = format!("default/{service}");
        self.upstreams.iter().find(|(found, _)| *found == key).expect("the settings bind a port to it").1
    }

    /// Where redirected connections are taken.
    pub(crate) fn redirect(&self) -> SocketAddr {
        self.redirect.expect("the settings say so")
    }

    /// Calls a service as a program would that knows no proxy, by the port that leads there.
    pub(crate) fn call_by_port(&self, service: &str) -> Result<String, String> {
        exchange(self.port_to(service), "anything", "/")
    }

    /// A connection to this node's API for one request after the other.
    pub(crate) fn api_line(&self) -> Line {
        Line::to(self.api)
    }

    /// Where its peers reach it.
    pub(crate) fn quic(&self) -> SocketAddr {
        self.quic
    }

    /// Everything it has said so far, over all its starts.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(log_file(&self.dir, &self.name)).unwrap_or_default()
    }

    /// The lines of its log that contain a text.
    pub(crate) fn lines(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// One of its metrics, without labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let page = self.page("/metrics");
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no metric {name} in {page}"))
    }

    /// Runs a command of the binary against this node.
    pub(crate) fn try_starling(&self, arguments: &[&str]) -> Result<String, String> {
        outcome(starling(&self.dir).arg("--peer").arg(self.api.to_string()).args(arguments))
    }

    /// Begins a command and does not wait for its end; it is ended when this is dropped.
    pub(crate) fn begin_starling(&self, arguments: &[&str]) -> Begun {
        let mut command = starling(&self.dir);
        command.arg("--peer").arg(self.api.to_string()).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        Begun(command.spawn().unwrap())
    }

    /// The same, and it must succeed.
    pub(crate) fn starling(&self, arguments: &[&str]) -> String {
        self.try_starling(arguments).unwrap_or_else(|error| panic!("starling {arguments:?} at {}: {error}", self.name))
    }

    /// The ids of the instances of a service that may take traffic, as this node sees it.
    pub(crate) fn ready_instances(&self, service: &str) -> Vec<String> {
        self.instances(&["instances", service, "--ready", "--json"])
    }

    /// The ids of all instances this node knows.
    pub(crate) fn all_instances(&self, service: &str) -> Vec<String> {
        self.instances(&["instances", service, "--json"])
    }

    fn instances(&self, arguments: &[&str]) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.starling(arguments)).unwrap();
        let ids =
            list["instances"].as_array().unwrap().iter().map(|instance| instance["id"].as_str().unwrap().to_owned());
        ids.collect()
    }

    /// The names of the members it sees alive.
    pub(crate) fn alive_members(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.starling(&["members", "--json"])).unwrap();
        let alive = list["members"].as_array().unwrap().iter().filter(|member| member["state"] == "alive");
        alive.map(|member| member["node"].as_str().unwrap().to_owned()).collect()
    }

    /// Calls a service through this node's sidecar, as an application would: the body, or what went wrong.
    pub(crate) fn call(&self, service: &str) -> Result<String, String> {
        exchange(self.proxy, &format!("{service}.mesh"), "/")
    }

    /// A page of this node's API, as it came.
    pub(crate) fn page(&self, path: &str) -> String {
        exchange(self.api, "localhost", path).unwrap_or_else(|error| panic!("GET {path} at {}: {error}", self.name))
    }

    /// A connection to this node's sidecar that has carried a request and is kept open.
    pub(crate) fn idle_connection(&self, service: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.proxy).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(format!("HEAD / HTTP/1.1\r\nhost: {service}.mesh\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        stream
    }

    /// A connection to this node's sidecar for one request after the other.
    pub(crate) fn line(&self) -> Line {
        Line::to(self.proxy)
    }

    /// A connection to this node's sidecar, if it takes any.
    pub(crate) fn connection(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect(self.proxy)
    }

    /// Ends the process as a power cut would (SIGKILL).
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks the process to stop (SIGTERM); its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.ask_to_stop();
        self.stopped()
    }

    /// Sends SIGTERM and does not wait.
    pub(crate) fn ask_to_stop(&self) {
        self.signal("-TERM");
    }

    /// Lets the binary on the disk take the place of the one that runs, and waits until it is ready.
    pub(crate) fn hand_over(&self) {
        let ready_file = self.dir.join(format!("{}.ready", self.name));
        fs::remove_file(&ready_file).unwrap();
        self.signal("-USR2");
        eventually("the new program is ready", || ready_file.exists());
    }

    /// Sends a signal and does not wait.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits until the process has ended; its exit code.
    pub(crate) fn stopped(&mut self) -> Option<i32> {
        let mut code = None;
        eventually("the node has stopped", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.and_then(|status| status.code())
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One GET: the body, or what went wrong.
fn exchange(to: SocketAddr, host: &str, path: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect(to).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    if head.starts_with("HTTP/1.1 200") { Ok(body.to_owned()) } else { Err(answer) }
}

/// A command on its way.
pub(crate) struct Begun(Child);

impl Drop for Begun {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

/// What a command prints, or its complaint.
fn outcome(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The binary, with everything it keeps under one directory and nothing from the caller's environment.
fn starling(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
    command.env_clear().env("TMPDIR", dir).env("USER", "test").current_dir(dir).stdin(Stdio::null());
    command
}

fn settings_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.toml"))
}

fn log_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}

/// A small application: answers every request with its own name.
pub(crate) struct App {
    address: SocketAddr,
    answering: Arc<watch::Sender<bool>>,
    waiting: Arc<AtomicUsize>,
    _runtime: Runtime,
}

impl App {
    /// Starts one on a port the system chooses.
    pub(crate) fn start(name: &'static str) -> App {
        Self::start_at("127.0.0.1", name)
    }

    /// The same at another of this host's addresses.
    pub(crate) fn start_at(ip: &str, name: &'static str) -> App {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind((ip, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let (answering, waiting) = (Arc::new(watch::Sender::new(true)), Arc::new(AtomicUsize::new(0)));
        let (gate, counter) = (answering.clone(), waiting.clone());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (gate, counter) = (gate.clone(), counter.clone());
                let service = hyper::service::service_fn(move |_| {
                    let (mut gate, counter) = (gate.subscribe(), counter.clone());
                    async move {
                        counter.fetch_add(1, SeqCst);
                        let _ = gate.wait_for(|open| *open).await;
                        counter.fetch_sub(1, SeqCst);
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(name.as_bytes()))))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        App { address, answering, waiting, _runtime: runtime }
    }

    /// Lets requests wait for their answers, or go on.
    pub(crate) fn answers(&self, answers: bool) {
        self.answering.send_replace(answers);
    }

    /// How many requests wait for their answers.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// Its port, as the command line wants it.
    pub(crate) fn port(&self) -> String {
        self.address.port().to_string()
    }
}
