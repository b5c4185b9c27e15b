//! The other processes of the demo: nodes and applications, each on a leash.
//!
//! A child is this same program. It reads what to be from the first line of its standard input, answers with one line
//! on its standard output when it is ready, and then takes orders line by line and says when each is carried out. When its input ends it ends too: however
//! the demo itself dies, nothing is left behind.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use starling_core::id::{MeshName, NodeId, Zone};
use tokio::sync::mpsc;

use super::shop::{self, Role};
use crate::settings::Settings;

/// What a child is to be.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Part {
    Node(NodePart),
    App(AppPart),
}

/// A node with its own data, certificate and ports (which the system picks).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodePart {
    pub(crate) name: NodeId,
    pub(crate) zone: Zone,
    /// QUIC addresses of other nodes.
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) data_dir: PathBuf,
    /// Holds `ca.crt`, `node.crt` and `node.key`.
    pub(crate) tls_dir: PathBuf,
}

/// One instance of the shop's applications.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AppPart {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Its host's sidecar, for its own calls.
    pub(crate) sidecar: SocketAddr,
}

/// What a child says: once that it is ready, then once per order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    Node(Addresses),
    App { listen: SocketAddr },
    Done,
    Failed(String),
}

/// Where a node listens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) quic: SocketAddr,
    pub(crate) api: SocketAddr,
    pub(crate) sidecar: SocketAddr,
}

/// What a child can be told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// To a node: let everything to these QUIC addresses be lost from now on.
    Cut(BTreeSet<SocketAddr>),
    /// To an application: your host's sidecar is here now.
    Sidecar(SocketAddr),
}

/// The whole life of a child.
pub(crate) fn live() -> ExitCode {
    let mut lines = io::stdin().lock().lines();
    let part = match lines.next() {
        Some(Ok(line)) => serde_json::from_str::<Part>(&line).map_err(|error| error.to_string()),
        _ => Err("there is nobody to tell this process what to be".into()),
    };
    // Orders come from a thread of their own, which can always end the process: even a runtime that hangs.
    drop(lines);
    let (orders, inbox) = mpsc::channel(MAX_ORDERS);
    std::thread::spawn(move || {
        for order in io::stdin().lock().lines().map_while(Result::ok) {
            if let Ok(order) = serde_json::from_str(&order) {
                let _ = orders.blocking_send(order);
            }
        }
        std::process::exit(0);
    });
    let lived = part.and_then(|part| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers(&part)).enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        runtime.block_on(async {
            match part {
                Part::Node(part) => node(part, inbox).await,
                Part::App(part) => shop::serve(part, inbox).await,
            }
        })
    });
    match lived {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            report(&Word::Failed(why));
            ExitCode::FAILURE
        }
    }
}

/// Runs a node exactly as `starling node` does, but for the orders.
async fn node(part: NodePart, mut orders: mpsc::Receiver<Order>) -> Result<(), String> {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut settings = Settings::defaults(false);
    settings.node.mesh = mesh()?;
    settings.node.name = part.name;
    settings.node.zone = part.zone.clone();
    settings.node.data_dir = part.data_dir;
    settings.node.listen = any_port;
    settings.gossip.zone = part.zone;
    settings.members.seeds = part.seeds.iter().map(SocketAddr::to_string).collect();
    settings.tls.ca = Some(part.tls_dir.join("ca.crt"));
    settings.tls.cert = Some(part.tls_dir.join("node.crt"));
    settings.tls.key = Some(part.tls_dir.join("node.key"));
    settings.api.listen = any_port;
    settings.proxy.listen = any_port;
    settings.proxy.trace_one_in = 1; // its story ends with a trace
    crate::logging::start(&settings.log)?;
    let node = crate::Node::start(settings).await.map_err(|error| error.to_string())?;
    let crate::Addresses { quic, api, proxy, .. } = node.addresses();
    report(&Word::Node(Addresses { quic, api, sidecar: proxy }));
    loop {
        tokio::select! {
            Some(order) = orders.recv() => {
                if let Order::Cut(to) = order {
                    node.handle().set_cut(to);
                }
                report(&Word::Done);
            }
            () = node.ended() => return Err("the node has ended by itself".into()),
        }
    }
}

/// The mesh's name.
pub(crate) fn mesh() -> Result<MeshName, String> {
    "demo".parse().map_err(|error| format!("{error}"))
}

/// Says something to the demo. Nobody else reads this process's standard output.
pub(crate) fn report(word: &Word) {
    let line = serde_json::to_string(word).unwrap_or_default();
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// Reads one line of the leash.
pub(crate) fn parse<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    serde_json::from_str(line).map_err(|error| format!("{error} in {line:?}"))
}

/// More orders than this never wait: each is awaited by the story.
const MAX_ORDERS: usize = 16;

/// A node takes what a host would give it; an application is small.
fn workers(part: &Part) -> usize {
    match part {
        Part::Node(_) => 2,
        Part::App(_) => 1,
    }
}
