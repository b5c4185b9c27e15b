//! One real node: its process, its directory, and its API.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use starling_api::model::{ConfigDocument, InstanceInfo, InstanceList, MemberList, NodeDetail};
use starling_core::id::{ConfigKey, InstanceKey};

use super::place::{Place, address, run};
use crate::cli::client::{Ask, Client};
use crate::cli::failure::Failure;
use crate::settings::DEFAULT_API_PORT;

/// How long a node may take to be ready, and to stop; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an answer of a node that runs may take.
const ANSWER: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const QUIC_PORT: u16 = 15_100;

pub(super) struct Host {
    pub(super) name: String,
    at: usize,
    dir: PathBuf,
    arguments: Vec<String>,
    process: Option<Child>,
    paused: bool,
    client: Client,
}

impl Host {
    /// A host whose certificates are in `DIR/NAME` already; its node is not started.
    pub(super) fn new(at: usize, name: &str, size: usize, dir: &Path, settings: &[String]) -> Self {
        let dir = dir.join(name);
        let here = address(at);
        let mut arguments = vec!["node".to_owned(), "--name".into(), name.into(), "--log".into(), "info".into()];
        let addresses = [
            ("--listen", format!("{here}:{QUIC_PORT}")),
            ("--advertise", format!("{here}:{QUIC_PORT}")),
            ("--api", format!("{here}:{DEFAULT_API_PORT}")),
        ];
        addresses.into_iter().for_each(|(flag, value)| arguments.extend([flag.into(), value]));
        // A few of its peers to join through, so that no single one must be there.
        for seed in (1..size.min(4)).map(|step| (at + step) % size) {
            arguments.extend(["--seed".into(), format!("{}:{QUIC_PORT}", address(seed))]);
        }
        let file = |name: &str| dir.join(name).display().to_string();
        for (key, file) in [("ca", file("ca.crt")), ("cert", file("node.crt")), ("key", file("node.key"))] {
            arguments.extend(["--set".into(), format!("tls.{key}={file}")]);
        }
        arguments.extend(["--data-dir".into(), file("data"), "--ready-file".into(), file("ready")]);
        arguments.extend_from_slice(settings);
        let peer = format!("{here}:{DEFAULT_API_PORT}").parse().expect("an address and a port");
        let client = Client::new(vec![peer]);
        Self { name: name.into(), at, dir, arguments, process: None, paused: false, client }
    }

    pub(super) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    pub(super) fn is_running(&self) -> bool {
        self.is_up() && !self.paused
    }

    /// Starts its node, with what its disk remembers, and does not wait.
    pub(super) fn start(&mut self, place: &Place) -> Result<(), String> {
        let told = |error: std::io::Error| format!("{}: {error}", self.name);
        let _ = std::fs::remove_file(self.dir.join("ready"));
        let log = File::options().create(true).append(true).open(self.dir.join("log")).map_err(told)?;
        let program = std::env::current_exe().map_err(told)?;
        let mut command = place.command(self.at, &program);
        command.args(&self.arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().map_err(told)?);
        self.paused = false;
        Ok(())
    }

    /// Waits until its node takes commands.
    pub(super) fn ready(&mut self) -> Result<(), String> {
        let (began, ready) = (Instant::now(), self.dir.join("ready"));
        while !ready.exists() {
            let ended = self.process.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || began.elapsed() > PATIENCE {
                let what = if ended { "ended instead of starting" } else { "is not ready in time" };
                return Err(format!("{} {what}; the end of its log:\n{}", self.name, self.end_of_log()));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    pub(super) fn end_of_log(&self) -> String {
        const SHOWN: usize = 12;
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }

    /// SIGKILL: no good-bye, no last write.
    pub(super) fn crash(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for its end.
    pub(super) fn leave(&mut self) -> Result<(), String> {
        self.signal("TERM")?;
        let Some(child) = &mut self.process else { return Ok(()) };
        let began = Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if began.elapsed() > PATIENCE {
                return Err(format!("{} does not stop", self.name));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        self.process = None;
        Ok(())
    }

    /// SIGSTOP: memory, sockets and all stand still.
    pub(super) fn pause(&mut self) -> Result<(), String> {
        self.paused = true;
        self.signal("STOP")
    }

    pub(super) fn resume(&mut self) -> Result<(), String> {
        self.paused = false;
        self.signal("CONT")
    }

    fn signal(&self, which: &str) -> Result<(), String> {
        let Some(child) = &self.process else { return Err(format!("{} is not running", self.name)) };
        run(Command::new("kill").args([format!("-{which}"), child.id().to_string()]), "")
    }

    // ---- its API

    pub(super) fn write<T: DeserializeOwned>(&self, ask: Ask) -> Result<T, Failure> {
        self.client.fetch(ask.within(ANSWER))
    }

    pub(super) fn node(&self) -> Result<NodeDetail, Failure> {
        self.client.fetch(Ask::get(&["v1", "node"]).within(ANSWER))
    }

    /// How many nodes it takes not for dead although they vanished.
    pub(super) fn preserved(&self) -> Result<u32, Failure> {
        let list: MemberList = self.client.fetch(Ask::get(&["v1", "members"]).within(ANSWER))?;
        Ok(list.members.iter().filter(|member| member.preserved).count() as u32)
    }

    pub(super) fn instance(&self, key: &InstanceKey) -> Result<Option<InstanceInfo>, Failure> {
        let service = &key.service;
        let ask = Ask::get(&["v1", "services", service.service.as_str()]);
        let list: Option<InstanceList> = self.look(ask.query("namespace", service.namespace.as_str()))?;
        Ok(list.and_then(|list| list.instances.into_iter().find(|instance| instance.id == key.instance)))
    }

    pub(super) fn document(&self, key: &ConfigKey) -> Result<Option<ConfigDocument>, Failure> {
        self.look(document(key, "GET").query("meta", "true"))
    }

    fn look<T: DeserializeOwned>(&self, ask: Ask) -> Result<Option<T>, Failure> {
        let answer = self.client.look(ask.within(ANSWER))?;
        if answer.is_missing() { Ok(None) } else { answer.parse().map(Some) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.crash();
    }
}

/// A request about a document.
pub(super) fn document(key: &ConfigKey, method: &'static str) -> Ask {
    Ask::new(method, &["v1", "config", key.namespace.as_str(), key.group.as_str(), key.key.as_str()])
}
