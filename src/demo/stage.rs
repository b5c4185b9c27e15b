//! The stage: a directory, a throw-away authority, and the processes that play.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use starling_api::model::{CheckBody, CheckWord, RegisterRequest};
use starling_core::id::NodeId;
use starling_net::Authority;

use super::api::Api;
use super::cast::{HOSTS, PLAYERS, Player};
use super::leash::{Leash, Starting};
use super::part::{self, Addresses, AppPart, NodePart, Order, Part, Word};
use crate::scratch::Scratch;

/// How long the certificates are good for: longer than anybody leaves a demo running.
const VALIDITY: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often a node looks after its instances. Two bad looks take one out, within a second.
const CHECK_INTERVAL_MS: u64 = 300;

/// Everything that runs.
pub(crate) struct Stage {
    program: PathBuf,
    nodes: Vec<Option<Node>>,
    apps: Vec<Option<App>>,
    /// Last, so that it outlives those who write into it. Removed with all that is in it, unless somebody should look.
    dir: Scratch,
}

struct Node {
    leash: Leash,
    addresses: Addresses,
    api: Arc<Api>,
}

struct App {
    leash: Leash,
    listen: SocketAddr,
}

impl Stage {
    /// An empty stage: a directory, and certificates for all hosts in it.
    pub(crate) fn build() -> Result<Self, String> {
        let dir = Scratch::make("demo")?;
        let program = std::env::current_exe().map_err(|error| format!("this program cannot find itself: {error}"))?;
        let authority = Authority::throw_away(&part::mesh()?).map_err(|error| error.to_string())?;
        for host in HOSTS {
            let certificate = authority.issue(&node_id(host.node)?, VALIDITY).map_err(|error| error.to_string())?;
            certificate.save(&dir.path().join(host.node).join("tls")).map_err(|error| error.to_string())?;
        }
        let (nodes, apps) = (HOSTS.iter().map(|_| None).collect(), PLAYERS.iter().map(|_| None).collect());
        Ok(Self { program, nodes, apps, dir })
    }

    /// Where everything is kept, logs among it.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves the directory behind for somebody to look at.
    pub(crate) fn keep_directory(&mut self) {
        self.dir.keep();
    }

    /// Starts these nodes side by side; they find the others through those that run already.
    pub(crate) async fn start_nodes(&mut self, hosts: &[usize]) -> Result<(), String> {
        let seeds: Vec<_> = self.nodes.iter().flatten().map(|node| node.addresses.quic).collect();
        let mut starting = Vec::new();
        for &at in hosts {
            let host = HOSTS[at];
            let home = self.dir.path().join(host.node);
            let part = Part::Node(NodePart {
                name: node_id(host.node)?,
                zone: host.zone.parse().map_err(|error| format!("{error}"))?,
                seeds: seeds.clone(),
                data_dir: home.join("data"),
                tls_dir: home.join("tls"),
            });
            starting.push((at, Starting::spawn(&self.program, host.node, &part, &self.log(host.node)).await?));
        }
        for (at, starting) in starting {
            match starting.ready().await? {
                (leash, Word::Node(addresses)) => {
                    let api = Arc::new(Api::new(addresses.api));
                    self.nodes[at] = Some(Node { leash, addresses, api });
                }
                (_, other) => return Err(format!("{} answered {other:?}", HOSTS[at].node)),
            }
            self.tell_apps(at).await?;
        }
        Ok(())
    }

    /// Kills a node: it gets no chance to say anything.
    pub(crate) async fn kill_node(&mut self, host: usize) -> Result<(), String> {
        match self.nodes[host].take() {
            Some(node) => node.leash.kill().await,
            None => Err(format!("{} does not run", HOSTS[host].node)),
        }
    }

    /// Starts these applications side by side and registers each at its host's node.
    pub(crate) async fn start_apps(&mut self, players: &[usize]) -> Result<(), String> {
        let mut starting = Vec::new();
        for &at in players {
            let Player { name, role, host } = PLAYERS[at];
            let part = Part::App(AppPart { name: name.into(), role, sidecar: self.addresses(host)?.sidecar });
            starting.push((at, Starting::spawn(&self.program, name, &part, &self.log(name)).await?));
        }
        for (at, starting) in starting {
            let Player { name, role, host } = PLAYERS[at];
            let (leash, listen) = match starting.ready().await? {
                (leash, Word::App { listen }) => (leash, listen),
                (_, other) => return Err(format!("{name} answered {other:?}")),
            };
            self.apps[at] = Some(App { leash, listen });
            self.api(host)?.register(role.service(), name, &registration(listen)).await?;
        }
        Ok(())
    }

    /// Kills an application and nothing else: it stays registered, as after any crash.
    pub(crate) async fn kill_app(&mut self, player: usize) -> Result<(), String> {
        match self.apps[player].take() {
            Some(app) => app.leash.kill().await,
            None => Err(format!("{} does not run", PLAYERS[player].name)),
        }
    }

    /// Ends every process, applications first.
    pub(crate) async fn close(&mut self) {
        for app in self.apps.iter_mut().filter_map(Option::take) {
            let _ = app.leash.kill().await;
        }
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            let _ = node.leash.kill().await;
        }
    }

    /// From now on nothing passes between this host and the others, in neither direction.
    pub(crate) async fn cut_off(&mut self, alone: usize) -> Result<(), String> {
        let hosts = 0..HOSTS.len();
        let quic = hosts.clone().map(|at| Ok(self.addresses(at)?.quic)).collect::<Result<Vec<_>, String>>()?;
        for at in hosts.clone() {
            let lost = |other: &usize| *other != at && (at == alone || *other == alone);
            let cut: BTreeSet<_> = hosts.clone().filter(lost).map(|other| quic[other]).collect();
            self.node_mut(at)?.leash.order(&Order::Cut(cut)).await?;
        }
        Ok(())
    }

    /// Everything passes again.
    pub(crate) async fn heal(&mut self) -> Result<(), String> {
        for at in 0..HOSTS.len() {
            self.node_mut(at)?.leash.order(&Order::Cut(BTreeSet::new())).await?;
        }
        Ok(())
    }

    /// A node's control surface.
    pub(crate) fn api(&self, host: usize) -> Result<Arc<Api>, String> {
        Ok(self.node(host)?.api.clone())
    }

    /// Where a node listens.
    pub(crate) fn addresses(&self, host: usize) -> Result<Addresses, String> {
        Ok(self.node(host)?.addresses)
    }

    /// A node's process.
    pub(crate) fn node_pid(&self, host: usize) -> Result<u32, String> {
        Ok(self.node(host)?.leash.pid())
    }

    /// An application's process and where it listens.
    pub(crate) fn app(&self, player: usize) -> Result<(u32, SocketAddr), String> {
        let app = self.apps[player].as_ref().ok_or_else(|| format!("{} does not run", PLAYERS[player].name))?;
        Ok((app.leash.pid(), app.listen))
    }

    /// Tells a host's applications where their sidecar is now.
    async fn tell_apps(&mut self, host: usize) -> Result<(), String> {
        let order = Order::Sidecar(self.addresses(host)?.sidecar);
        for (app, _) in self.apps.iter_mut().zip(PLAYERS).filter(|(_, player)| player.host == host) {
            if let Some(app) = app {
                app.leash.order(&order).await?;
            }
        }
        Ok(())
    }

    fn node(&self, host: usize) -> Result<&Node, String> {
        self.nodes[host].as_ref().ok_or_else(|| format!("{} does not run", HOSTS[host].node))
    }

    fn node_mut(&mut self, host: usize) -> Result<&mut Node, String> {
        self.nodes[host].as_mut().ok_or_else(|| format!("{} does not run", HOSTS[host].node))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }
}

fn registration(listen: SocketAddr) -> RegisterRequest {
    let check = CheckBody {
        path: Some("/health".into()),
        interval_ms: Some(CHECK_INTERVAL_MS),
        timeout_ms: Some(2_000),
        failures_to_fail: Some(2),
        ..CheckBody::new(CheckWord::Http)
    };
    RegisterRequest { address: listen.ip().to_string(), check: Some(check), ..RegisterRequest::on_port(listen.port()) }
}

fn node_id(name: &str) -> Result<NodeId, String> {
    name.parse().map_err(|error| format!("{error}"))
}
