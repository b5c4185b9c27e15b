//! `starling demo`: a mesh of three real nodes, a small shop behind it, and what happens when things break.
//!
//! One command, one tree of processes, loopback only. Every figure shown is measured in that run, by a client from
//! outside: the demo uses the HTTP API and the sidecars like any other program, and knows nothing else of a node.
//!
//! | Room | What it does |
//! |---|---|
//! | `story` | what is told, chapter by chapter: read this first |
//! | `cast`, `stage` | who plays; the directory, the certificates and the processes |
//! | `leash`, `part` | a child process from the demo's side, and from its own |
//! | `shop`, `load` | the applications; their customers |
//! | `api`, `http`, `watch` | a node's control surface, a tiny client, waiting by blocking queries |
//! | `figure`, `screen`, `report` | how values are written, what the story looks like, what it amounts to |

mod api;
mod cast;
mod figure;
mod http;
mod leash;
mod load;
mod part;
mod report;
mod screen;
mod shop;
mod stage;
mod story;
mod watch;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use cast::HOSTS;
use figure::counted;
use report::Report;
use screen::{Paint, Screen};
use stage::Stage;
use story::{Plan, Story};

/// `starling demo`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Starts three nodes in three zones and nine small programs behind them as processes of their own, on loopback, with
certificates and ports for this run only, and tells what happens while instances, a node and the network break. Every
figure is measured in that run. It ends by itself and leaves nothing behind; Ctrl-C ends it sooner.

Examples:
  starling demo
  starling demo --stay
  starling demo --fast --json

Exit codes:
  0  every promise was kept
  1  one was not, or the story could not be told to its end; the logs are kept and named")]
pub struct DemoArgs {
    /// Leave the mesh and the shop running afterwards, until Ctrl-C, with commands to try
    #[arg(long)]
    stay: bool,
    /// Tell the same story with fewer repetitions
    #[arg(long)]
    fast: bool,
    /// Choose who dies and who is cut off; default another choice each time
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Be one of the demo's own processes; what to be comes over standard input
    #[arg(long, hide = true, value_name = "NAME")]
    part: Option<String>,
}

/// Exit code of a run that was interrupted: 128 and the number of SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

/// Runs the demo, or one of its processes. With `json`, the summary is all that is printed.
pub fn run(args: &DemoArgs, json: bool) -> ExitCode {
    if args.part.is_some() {
        return part::live();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(perform(args, json)),
        Err(error) => {
            say(&format!("starling: the demo cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn perform(args: &DemoArgs, json: bool) -> ExitCode {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..100_000));
    let plan = if args.fast { Plan::FAST } else { Plan::FULL };
    let report = Report::new(seed, args.fast);
    let mut screen = if json { Screen::silent() } else { Screen::stdout() };
    screen.title("Starling: a service mesh without a control plane, in one command", &report.circumstances());
    let stage = match Stage::build() {
        Ok(stage) => stage,
        Err(error) => {
            say(&format!("starling: the stage cannot be built: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let mut story = Story::new(screen, report, stage, plan, seed);
    let told = tokio::select! {
        told = story.tell() => told,
        () = interrupted() => {
            story.screen.gap();
            story.screen.say("Interrupted; everything the demo started is being ended.");
            story.stage.close().await;
            return ExitCode::from(INTERRUPTED);
        }
    };
    let took = story.screen.elapsed();
    story.report.close(told.is_ok(), took);
    summarise(&mut story, told, took);
    if json {
        say_out(&story.report.json());
        if !story.report.held {
            say(&format!("starling demo: a promise was broken; the logs are in {}", story.stage.path().display()));
        }
    }
    if args.stay {
        stay(&mut story).await;
    }
    story.load = None;
    story.stage.close().await;
    if story.report.held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The closing table. Whoever has to find out what went wrong gets the logs.
fn summarise(story: &mut Story, told: Result<(), String>, took: Duration) {
    let screen = &mut story.screen;
    screen.chapter("What was promised, and what was measured");
    for promise in &story.report.promises {
        screen.row(promise.kept, &promise.promise, &promise.measured);
    }
    screen.gap();
    let (kept, all) = (story.report.kept(), story.report.promises.len());
    let took = format!("{:.1} s", took.as_secs_f64());
    let verdict = match &told {
        Ok(()) if kept == all => format!("All {} were kept, in {took}.", counted(all as u64, "promise")),
        Ok(()) => format!("Kept were {kept} of {}, in {took}.", counted(all as u64, "promise")),
        Err(_) => format!("The story broke off after {took}."),
    };
    let paint = if story.report.held { Paint::Good } else { Paint::Bad };
    let verdict = screen.paint(paint, &verdict);
    screen.say(&verdict);
    if let Err(why) = told {
        screen.say(&why);
    }
    if !story.report.held {
        story.stage.keep_directory();
        let logs = format!("The logs of all processes are in {}", story.stage.path().display());
        story.screen.say(&logs);
    }
}

/// Shows where everything is, and waits to be interrupted.
async fn stay(story: &mut Story) {
    story.screen.chapter("It is yours until Ctrl-C");
    for (at, host) in HOSTS.iter().enumerate() {
        if let Ok(addresses) = story.stage.addresses(at) {
            story
                .screen
                .event(host.node, &format!("api http://{} · sidecar http://{}", addresses.api, addresses.sidecar));
        }
    }
    story.screen.gap();
    if let (Ok(one), Ok(other)) = (story.stage.addresses(0), story.stage.addresses(1)) {
        let (api, sidecar, far) = (one.api, one.sidecar, other.api);
        for command in [
            format!("http_proxy=http://{sidecar} curl -i http://web.mesh/order"),
            format!("curl -H 'Host: stock.mesh' http://{sidecar}/hello"),
            format!("starling --peer {far} instances stock"),
            format!("starling --peer {far} trace --recent"),
            format!("starling --peer {api} status"),
            format!("curl http://{api}/metrics"),
        ] {
            story.screen.verbatim(&command);
        }
    }
    story.screen.gap();
    interrupted().await;
}

/// Returns when somebody wants this to end.
async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// A word to people beside what is printed for programs.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn say_out(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
