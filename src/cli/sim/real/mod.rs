//! A scenario played by real nodes: processes of this very binary with real certificates, real disks and real QUIC, each
//! in a network namespace of its own, driven through their HTTP APIs; with the same expectations as in simulation.
//!
//! **Nothing is left behind**, however it ends. The player is started through `unshare` as the first process of namespaces
//! of its own: processes, networks and mounts of the run exist in there only, and the kernel ends them with the player. The
//! player ends when its standard input does: with the command that started it. Names and addresses cannot clash with
//! anything, not even with a second run. No root is needed where users may make namespaces.
//!
//! **What cannot be done to a real node is refused**, before anything starts and by its line: other clocks, slow or torn
//! disks, slow processors, scripted probes. Latency and loss need netem in the kernel; where that is missing, links are as
//! fast as they are, and that is said.
//!
//! **Time is real.** Failure detectors need their seconds and a machine may be busy, so every expectation may take ten
//! seconds at least. `--longest-wait` shortens the quiet stretches of a story.

mod asks;
mod book;
mod host;
mod place;
mod stage;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use starling_net::Authority;
use starling_sim::Links;
use starling_sim::scenario::{Action, Scenario};
use tokio::signal::unix::{SignalKind, signal};

use super::{Shown, SimArgs, Story};
use crate::cli::failure::Failure;
use crate::cli::output::{Out, Style, notice};
use crate::scratch::Scratch;
use host::Host;
use place::{MAX_NODES, Place};
use stage::Stage;

/// How long a run may take, whatever its scenario says.
const LONGEST_RUN: Duration = Duration::from_secs(20 * 60);
/// How long nodes may take to find each other.
const ACQUAINTED_WITHIN: Duration = Duration::from_secs(60);
/// How long the certificates are good for.
const VALIDITY: Duration = Duration::from_secs(24 * 3_600);
/// Exit code of a run that somebody ended.
const INTERRUPTED: u8 = 130;

/// Plays a story in namespaces of its own; what it tells comes out here.
pub(super) fn play(story: &Story, args: &SimArgs, json: bool) -> Result<ExitCode, Failure> {
    possible(&story.scenario).map_err(|why| Failure::Unable(format!("{}: {why}", story.name)))?;
    able()?;
    // Under /run the player mounts something of its own.
    let system = std::env::temp_dir();
    let dir = if system.starts_with("/run") { Path::new("/var/tmp") } else { &system };
    let dir = Scratch::make_in(dir, "real").map_err(Failure::Refused)?;
    let program = std::env::current_exe()?;
    let mut player = unshare();
    player.arg(&program).args(["sim", "--real", "--inside"]).arg(dir.path()).arg(&story.name);
    player.args(json.then_some("--json"));
    for (flag, path) in [("--html", &args.html), ("--svg", &args.svg)] {
        path.iter().for_each(|path| _ = player.arg(flag).arg(path));
    }
    if let Some(wait) = args.longest_wait {
        player.args(["--longest-wait", &format!("{}ms", wait.as_millis())]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watched(player))
}

/// Runs the player until it ends, somebody wants it to, or it takes too long.
async fn watched(player: Command) -> Result<ExitCode, Failure> {
    let mut player = tokio::process::Command::from(player).stdin(Stdio::piped()).kill_on_drop(true).spawn()?;
    let leash = player.stdin.take();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let ended = tokio::select! {
        status = player.wait() => Some(status?),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        () = tokio::time::sleep(LONGEST_RUN) => {
            notice(&format!("starling: ended after {LONGEST_RUN:?}, the longest a run may take"));
            None
        }
    };
    drop(leash); // the player ends with it, and everything it made
    match ended {
        Some(status) => Ok(code(status)),
        None => {
            player.wait().await?;
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

fn code(status: ExitStatus) -> ExitCode {
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Starts a program as the first process of its own namespaces: when it ends, all it has started ends.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    command.args((!root).then_some(["--user", "--map-root-user"]).into_iter().flatten());
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    command
}

/// Whether this machine has what it takes.
fn able() -> Result<(), Failure> {
    let unable = |why: String| Failure::Unable(format!("real nodes cannot be played with here: {why}"));
    for (tool, package) in [("unshare", "util-linux"), ("mount", "util-linux"), ("ip", "iproute2"), ("kill", "procps")]
    {
        let found = std::env::var_os("PATH")
            .is_some_and(|paths| std::env::split_paths(&paths).any(|dir| dir.join(tool).is_file()));
        if !found {
            return Err(unable(format!("there is no {tool} (package {package})")));
        }
    }
    place::run(unshare().args(["ip", "link", "set", "lo", "up"]), "").map_err(|why| {
        unable(format!("namespaces cannot be made, which root can, and who may make user namespaces: {why}"))
    })
}

/// What of a scenario cannot be done to real nodes.
fn possible(scenario: &Scenario) -> Result<(), String> {
    let options = scenario.options();
    if options.nodes.len() > MAX_NODES {
        return Err(format!("{} nodes are too many for one machine, at most {MAX_NODES}", options.nodes.len()));
    }
    if options.sabotage.is_some() || !options.clock_spread.is_zero() {
        return Err("sabotage and clock_spread are for simulated nodes".into());
    }
    for step in scenario.steps() {
        let what = match &step.action {
            Action::Skew(..) | Action::Drift(..) => "all processes of a machine share its clock",
            Action::Slow(..) => "a real processor cannot be slowed",
            Action::Disk(..) => "a real disk cannot be slowed",
            Action::Crash { torn: true, .. } => "a real disk cannot be torn",
            Action::Probes(..) => "the probes of real nodes find what there is",
            Action::LinksBetween { .. } => "links of real nodes can be changed all together only",
            Action::Ask { commands, .. } if commands.iter().any(checked) => "there is no program a check could find",
            _ => continue,
        };
        return Err(format!("line {}: {what}; play it without --real", step.line));
    }
    Ok(())
}

fn checked(command: &starling_core::Command) -> bool {
    matches!(command, starling_core::Command::Register(what) if what.instance.details.check().is_some())
}

/// The player: inside of the namespaces.
pub(super) fn inside(story: &Story, args: &SimArgs, dir: &Path, out: &mut Out) -> Result<ExitCode, Failure> {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        // Whoever started this is gone. The kernel ends the rest.
        std::process::exit(i32::from(INTERRUPTED));
    });
    let scenario = &story.scenario;
    let (place, hosts) = build(scenario, dir, out).map_err(Failure::Refused)?;
    let mut stage = Stage::set(scenario, place, hosts, args.longest_wait, out);
    stage.play().map_err(Failure::Refused)?;
    let Stage { mut recording, lines, held, failed, .. } = stage;
    recording.replay = format!("starling sim {} --real", story.name);
    let verdict = match (held, failed) {
        (held, 0) => format!("ok: all {held} expectations held, with real nodes"),
        (held, failed) => format!("FAILED: {failed} did not go as expected with real nodes, {held} did"),
    };
    let shown = Shown { title: scenario.name(), replay: &recording.replay, ok: failed == 0 };
    super::draw(args, &shown, &recording, None, &lines)?;
    if out.wants_json() {
        out.json(&serde_json::json!({ "name": scenario.name(), "real": true, "ok": failed == 0, "lines": lines }))?;
    } else {
        out.styled(if failed == 0 { Style::Good } else { Style::Bad }, &verdict)?;
    }
    out.flush()?;
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Namespaces, certificates, nodes; all nodes know each other when this returns.
fn build(scenario: &Scenario, dir: &Path, out: &mut Out) -> Result<(Place, Vec<Host>), String> {
    let options = scenario.options();
    // `ip netns` keeps its namespaces under /run: a mount of this process's own.
    place::run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]), "")?;
    let size = options.nodes.len();
    let place = Place::build(size)?;
    if options.links != Links::default() {
        let shaped = (0..size).try_for_each(|node| place.shape(node, &options.links));
        if let Err(why) = shaped {
            notice(&format!("starling: links are as fast as they are, not {} ({why})", options.links));
        }
    }
    let authority = Authority::create(&"real".parse().map_err(|error| format!("{error}"))?);
    let authority = authority.map_err(|error| error.to_string())?;
    let mut hosts = Vec::new();
    for (at, name) in options.nodes.iter().enumerate() {
        let id = name.parse().map_err(|error| format!("{error}"))?;
        let certificate = authority.issue(&id, VALIDITY).map_err(|error| error.to_string())?;
        certificate.save(&dir.join(name)).map_err(|error| error.to_string())?;
        hosts.push(Host::new(at, name, size, dir, &settings(scenario, at)));
    }
    let began = Instant::now();
    hosts.iter_mut().try_for_each(|host| host.start(&place))?;
    hosts.iter_mut().try_for_each(Host::ready)?;
    acquainted(&hosts)?;
    if !out.wants_json() {
        let said = format!("{size} real nodes know each other after {:.1} s", began.elapsed().as_secs_f64());
        out.styled(Style::Dim, &said).map_err(|error| error.to_string())?;
        out.flush().map_err(|error| error.to_string())?;
    }
    Ok((place, hosts))
}

/// What the scenario says of nodes, as flags of `starling node`.
fn settings(scenario: &Scenario, at: usize) -> Vec<String> {
    let options = scenario.options();
    let gossip = [
        ("node.mesh", "real".to_owned()),
        ("gossip.repair_interval_ms", options.settings.repair_interval_ms.to_string()),
        ("gossip.max_clock_skew_ms", options.settings.max_clock_skew_ms.to_string()),
        ("gossip.tombstone_horizon_ms", options.settings.tombstone_horizon_ms.to_string()),
    ];
    let mut flags: Vec<String> =
        gossip.into_iter().flat_map(|(key, value)| ["--set".into(), format!("{key}={value}")]).collect();
    if !options.zones.is_empty() {
        flags.extend(["--zone".into(), options.zones[at % options.zones.len()].clone()]);
    }
    if !options.cells.is_empty() {
        flags.extend(["--cell".into(), options.cells[at % options.cells.len()].clone()]);
    }
    flags
}

fn acquainted(hosts: &[Host]) -> Result<(), String> {
    let began = Instant::now();
    let knows = |host: &Host| host.node().is_ok_and(|detail| detail.node.members_alive as usize == hosts.len());
    while let Some(host) = hosts.iter().find(|host| !knows(host)) {
        if began.elapsed() > ACQUAINTED_WITHIN {
            return Err(format!("{} does not find the others; the end of its log:\n{}", host.name, host.end_of_log()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(step: &str) -> String {
        let text = format!("[mesh]\nnodes = 2\n[[step]]\nat = \"1s\"\n{step}\n");
        possible(&text.parse().expect("a scenario")).expect_err("it is refused")
    }

    #[test]
    fn what_cannot_be_done_to_a_real_node_is_refused_by_its_line_before_anything_starts() {
        assert!(refused("do = \"skew\"\nnode = \"n1\"\nms = 5").starts_with("line 3: all processes"));
        assert!(refused("do = \"slow\"\nnode = \"n1\"\neach = \"5ms\"").contains("play it without --real"));
        assert!(
            refused("do = \"register\"\nnode = \"n1\"\ninstance = \"a/b\"\ncheck = \"tcp\"").contains("no program")
        );
        let many = "[mesh]\nnodes = 33\n[[step]]\nat = \"1s\"\ndo = \"heal\"\n".parse().expect("a scenario");
        assert!(possible(&many).expect_err("it is refused").contains("33 nodes are too many"));
        let fine = "[mesh]\nnodes = 2\n[[step]]\nat = \"1s\"\ndo = \"heal\"\n".parse().expect("a scenario");
        assert_eq!(possible(&fine), Ok(()));
    }
}
