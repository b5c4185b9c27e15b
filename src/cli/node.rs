//! `starling node`: settings from everywhere, a node until somebody stops it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;
use super::output::{Cell, Out, Style, Table, notice};

use crate::node::{self, Node};
use crate::settings::{Flag, Loaded, Settings, Sources, load};
use crate::sockets::Sockets;

/// `starling node`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Settings come from a TOML file, from environment variables STARLING_SECTION_KEY and from flags; flags win over the
environment, the environment wins over the file. Unknown keys are refused.

SIGTERM or SIGINT stops the node politely: its instances are gone everywhere at once, requests in flight finish. A
second signal ends it at once.

SIGUSR2 puts the binary that now lies where this one was started from in its place, as the same process: it is asked first
whether it would start (--check), then this node stops politely and the new one goes on with its sockets. Nobody who
connects meanwhile is refused, they wait. Sockets may also come from systemd, named quic, api, proxy, redirect and
upstream (FileDescriptorName= in a socket unit; one for each [[upstream]], which are told apart by their addresses).

Examples:
  starling node --dev
  starling node --dev --name b --listen 127.0.0.1:0 --api 127.0.0.1:0 --proxy 127.0.0.1:0 --seed 127.0.0.1:15100
  starling node --config /etc/starling.toml --check
  STARLING_NODE_ZONE=west starling node --config /etc/starling.toml --set gossip.repair_interval_ms=500

Exit codes:
  0  stopped as asked; with --check: the settings are good
  1  the settings are wrong, the node could not start, or it ended by itself; the message says why
  2  the command line makes no sense")]
pub(crate) struct NodeArgs {
    /// The settings file
    #[arg(long, short, env = "STARLING_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Try it out: loopback only, with a throw-away certificate authority shared by this user's nodes
    #[arg(long, env = "STARLING_DEV", value_parser = clap::builder::FalseyValueParser::new())]
    dev: bool,
    /// Check all settings, print those in effect and where they come from, and end
    #[arg(long)]
    check: bool,
    /// Write the addresses in use to this file, as JSON, once the node is ready
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// The node's name [node.name]
    #[arg(long, value_name = "NAME", help_heading = "Settings")]
    name: Option<String>,
    /// The mesh it belongs to [node.mesh]
    #[arg(long, value_name = "NAME", help_heading = "Settings")]
    mesh: Option<String>,
    /// Its zone [node.zone]
    #[arg(long, value_name = "NAME", help_heading = "Settings")]
    zone: Option<String>,
    /// The cell whose nodes it watches over [node.cell]
    #[arg(long, value_name = "NAME", help_heading = "Settings")]
    cell: Option<String>,
    /// The region its cell stands in [node.region]
    #[arg(long, value_name = "NAME", help_heading = "Settings")]
    region: Option<String>,
    /// Where it keeps its data [node.data_dir]
    #[arg(long, value_name = "DIR", help_heading = "Settings")]
    data_dir: Option<String>,
    /// Its QUIC socket [node.listen]
    #[arg(long, value_name = "IP:PORT", help_heading = "Settings")]
    listen: Option<String>,
    /// Where peers reach that socket [node.advertise]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Settings")]
    advertise: Option<String>,
    /// A peer to join through, or a file with one a line; repeatable [node.seeds]
    #[arg(long, value_name = "HOST:PORT|@FILE", help_heading = "Settings")]
    seed: Vec<String>,
    /// Where its API listens [api.listen]
    #[arg(long, value_name = "IP:PORT", help_heading = "Settings")]
    api: Option<String>,
    /// Where applications on this host reach its sidecar [proxy.listen]
    #[arg(long, value_name = "IP:PORT", help_heading = "Settings")]
    proxy: Option<String>,
    /// Log level or filter [log.level]
    #[arg(long, value_name = "LEVEL", help_heading = "Settings")]
    log: Option<String>,
    /// Any other setting; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = assignment, help_heading = "Settings")]
    set: Vec<(String, String)>,
}

pub(crate) fn run(args: NodeArgs, out: &mut Out) -> Result<(), Failure> {
    let loaded =
        load(&sources(&args)?).map_err(|error| Failure::Refused(format!("the settings are wrong:\n{error}")))?;
    if args.check {
        return check(&loaded, out);
    }
    crate::logging::start(&loaded.settings.log).map_err(Failure::Refused)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    open_files(&loaded.settings);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let program = program()?;
    let result = runtime.block_on(serve(loaded, args.ready_file.as_deref(), &program));
    let handed_over = match result {
        Ok(Some(sockets)) => sockets,
        // What still runs by now (a lookup that hangs, say) must not keep the process.
        ended => {
            runtime.shutdown_background();
            return ended.map(drop);
        }
    };
    // The next program's descriptors take the places of this one's: no other thread may be using them.
    runtime.shutdown_timeout(THREADS_END);
    let error = handed_over.exec(&program, std::env::args_os().skip(1));
    Err(Failure::Refused(format!("cannot become {}: {error}", program.display())))
}

/// Lets the node have as many open files as the system allows, and says when that is fewer than its connections may take.
fn open_files(settings: &Settings) {
    let proxy = &settings.proxy;
    // A connection of an application, and one to an instance for it; tunnels need only the second.
    let wanted = (2 * proxy.max_connections + proxy.max_tunnels) as u64;
    match rlimit::increase_nofile_limit(u64::MAX) {
        // Nobody tries things out with thousands of connections.
        Ok(limit) if limit >= wanted || settings.dev => {}
        Ok(limit) => tracing::warn!(
            limit,
            wanted,
            "the system lets this node open fewer files than its connections may need (proxy.max_connections, \
             proxy.max_tunnels): raise its limit (LimitNOFILE=, ulimit -Hn) or lower those"
        ),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

fn sources(args: &NodeArgs) -> Result<Sources, Failure> {
    let file = match &args.config {
        Some(path) => match std::fs::read_to_string(path) {
            Ok(text) => Some((path.clone(), text)),
            Err(error) => return Err(Failure::Refused(format!("{}: {error}", path.display()))),
        },
        None => None,
    };
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let seeds = (!args.seed.is_empty()).then(|| args.seed.join(","));
    let named = [
        ("--name", "node.name", &args.name),
        ("--mesh", "node.mesh", &args.mesh),
        ("--zone", "node.zone", &args.zone),
        ("--cell", "node.cell", &args.cell),
        ("--region", "node.region", &args.region),
        ("--data-dir", "node.data_dir", &args.data_dir),
        ("--listen", "node.listen", &args.listen),
        ("--advertise", "node.advertise", &args.advertise),
        ("--seed", "node.seeds", &seeds),
        ("--api", "api.listen", &args.api),
        ("--proxy", "proxy.listen", &args.proxy),
        ("--log", "log.level", &args.log),
    ];
    let named = named.into_iter().filter_map(|(flag, key, value)| {
        Some(Flag { flag: flag.to_owned(), key: key.to_owned(), value: value.clone()? })
    });
    let set = args.set.iter().map(|(key, value)| Flag { flag: "--set".into(), key: key.clone(), value: value.clone() });
    Ok(Sources { dev: args.dev, file, environment: environment.collect(), flags: named.chain(set).collect() })
}

/// `--check`: what is in effect, where it comes from, and whether a node could start with it.
fn check(loaded: &Loaded, out: &mut Out) -> Result<(), Failure> {
    let settings = &loaded.settings;
    let value = serde_json::to_value(settings).map_err(|error| Failure::Refused(error.to_string()))?;
    if out.wants_json() {
        let origins = loaded.origins.iter().map(|(key, origin)| (key.clone(), origin.to_string()));
        let origins: serde_json::Map<String, serde_json::Value> =
            origins.map(|(key, origin)| (key, origin.into())).collect();
        out.json(&serde_json::json!({ "settings": value, "origins": origins, "warnings": loaded.warnings }))?;
    } else {
        show_settings(&value, loaded, out)?;
    }
    out.flush()?;
    for warning in &loaded.warnings {
        notice(&format!("starling: {warning}"));
    }
    // The throw-away authority is made when the first node starts, not by looking.
    let has_files = settings.tls.ca.is_some() || settings.tls.cert.is_some() || settings.tls.key.is_some();
    if has_files || !settings.dev || !settings.node.listen.ip().is_loopback() {
        node::identity(settings).map_err(|error| Failure::Refused(error.to_string()))?;
    }
    notice("starling: the settings are good");
    Ok(())
}

fn show_settings(value: &serde_json::Value, loaded: &Loaded, out: &mut Out) -> Result<(), Failure> {
    let mut table = Table::new(&["SETTING", "VALUE", "FROM"]);
    let mut rows = Vec::new();
    flatten("", value, &mut rows);
    // Two values are copies of others, made where the parts of a node need them.
    rows.retain(|(key, _)| key != "gossip.zone" && key != "members.seeds");
    for (key, value) in rows {
        let origin = loaded.origins.get(&key);
        let from = match origin {
            Some(origin) => Cell::from(origin),
            None if key.starts_with("service[") || key.starts_with("upstream[") => "file".into(),
            None if key == "dev" => Cell::default(),
            None => Cell::styled(Style::Dim, "default"),
        };
        table.row([key.into(), value.into(), from]);
    }
    Ok(out.table(&table)?)
}

/// Every value by its full key, in order; what is not set is left out.
fn flatten(key: &str, value: &serde_json::Value, rows: &mut Vec<(String, String)>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        serde_json::Value::Object(fields) => fields.iter().for_each(|(name, value)| flatten(&below(name), value, rows)),
        serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
            items.iter().enumerate().for_each(|(at, value)| flatten(&format!("{key}[{}]", at + 1), value, rows));
        }
        serde_json::Value::Array(items) if items.is_empty() => {}
        serde_json::Value::Null => {}
        serde_json::Value::String(text) => rows.push((key.to_owned(), text.clone())),
        other => rows.push((key.to_owned(), other.to_string())),
    }
}

/// Runs the node until it is asked to stop, or to hand these sockets over.
async fn serve(loaded: Loaded, ready_file: Option<&Path>, program: &Path) -> Result<Option<Sockets>, Failure> {
    let mut stop = Stop::listen()?;
    let mut upgrade = signal(SignalKind::user_defined2())?;
    let second_dev = if loaded.settings.dev { SECOND_DEV } else { "" };
    let starting = Node::start_on(loaded.settings, Sockets::inherited());
    let node = tokio::select! {
        started = starting => started.map_err(|error| {
            let hint = if error.is_taken() { second_dev } else { "" };
            Failure::Refused(format!("the node cannot start: {error}{hint}"))
        })?,
        name = stop.asked() => return Err(Failure::Refused(format!("{name} before the node was up"))),
    };
    if let Some(path) = ready_file {
        write_ready_file(path, &node).map_err(|error| Failure::Refused(format!("{}: {error}", path.display())))?;
    }
    loop {
        tokio::select! {
            name = stop.asked() => {
                tracing::info!("{name}: stopping; once more ends at once");
                break;
            }
            () = node.ended() => return Err(Failure::Refused("the node ended by itself; its log says why".into())),
            _ = upgrade.recv() => {
                let startable = tokio::select! {
                    startable = is_startable(program) => startable,
                    name = stop.asked() => {
                        tracing::info!("{name}: stopping instead of handing over; once more ends at once");
                        break;
                    }
                };
                match startable {
                    Err(why) => {
                        tracing::error!("SIGUSR2: {} would not start, so this one goes on: {why}", program.display());
                    }
                    Ok(()) => return hand_over(node, program, &mut stop).await.map(Some),
                }
            }
        }
    }
    tokio::select! {
        () = node.stop() => tracing::info!("stopped"),
        name = stop.asked() => return Err(Failure::Refused(format!("{name} again: ended at once"))),
    }
    Ok(None)
}

/// The program as it was started, links and all: a new version may be what they lead to by now.
fn program() -> std::io::Result<PathBuf> {
    let Some(name) = std::env::args_os().next().map(PathBuf::from) else { return std::env::current_exe() };
    if name.components().count() > 1 {
        return std::path::absolute(name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|place| place.join(&name)).find(|program| program.is_file());
    found.map_or_else(std::env::current_exe, std::path::absolute)
}

/// Asks the program that is to take over whether it would start with these arguments.
async fn is_startable(program: &Path) -> Result<(), String> {
    let asking = tokio::process::Command::new(program).args(std::env::args_os().skip(1)).arg("--check").output();
    let output = tokio::time::timeout(CHECK_PATIENCE, asking).await.map_err(|_| "it does not answer".to_owned())?;
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

/// Stops the node, for the program that lies where this one was started from to go on with its sockets.
async fn hand_over(node: Node, program: &Path, stop: &mut Stop) -> Result<Sockets, Failure> {
    tracing::info!("SIGUSR2: handing over to {}; whoever connects meanwhile waits", program.display());
    tokio::select! {
        sockets = node.hand_over() => Ok(sockets),
        name = stop.asked() => Err(Failure::Refused(format!("{name} while handing over: ended at once"))),
    }
}

/// How long threads may take to end before the process becomes another program.
const THREADS_END: Duration = Duration::from_secs(5);

/// How long a new program may take to check its settings.
const CHECK_PATIENCE: Duration = Duration::from_secs(10);

/// What most often is meant when a `--dev` node finds its name or ports taken.
const SECOND_DEV: &str = "\nA second --dev node on this host takes a name and ports of its own, and the first for its seed:\n  \
    starling node --dev --name b --listen 127.0.0.1:0 --api 127.0.0.1:0 --proxy 127.0.0.1:0 --seed 127.0.0.1:15100";

/// Whole or not at all: whoever waits for the file must not read half of it.
fn write_ready_file(path: &Path, node: &Node) -> std::io::Result<()> {
    let me = node.handle().me();
    let addresses = node.addresses();
    let upstreams = node.upstreams().iter();
    let upstreams: Vec<_> = upstreams
        .map(|(service, listen)| serde_json::json!({ "service": service.to_string(), "listen": listen }))
        .collect();
    let text = serde_json::json!({
        "node": me, "pid": std::process::id(), "addresses": addresses, "upstreams": upstreams,
    });
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&aside, format!("{text}\n"))?;
    std::fs::rename(&aside, path)
}

/// The signals that ask a node to stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The name of the next one.
    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if key.contains('.') => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("write it as SECTION.KEY=VALUE, for example node.zone=west".into()),
    }
}
