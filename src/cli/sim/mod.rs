//! `starling sim`: stories of broken meshes, played on a virtual clock with the very code of the nodes, or for real.

mod many;
mod real;
mod stories;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use starling_sim::picture::{Page, Scale};
use starling_sim::{Recording, Report, scenario};

use super::failure::Failure;
use super::output::{Out, Style, notice};
use crate::settings::HumanDuration;
use stories::Story;

/// `starling sim`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Plays what a story says with the very code of the nodes, on a virtual clock: no network, no waiting. The same seed gives
the same timeline, byte for byte. A story is a file (see examples/scenarios), a directory of files, or the name of one
that is built in. Without a story, the seed draws one: anything may break for a while, then all is mended and must agree.

Examples:
  starling sim --list
  starling sim partition --html partition.html         look at it in a browser
  starling sim examples/scenarios/partition.toml --seed 42
  starling sim examples/scenarios                      every story in a directory
  starling sim partition --seeds 1000                  one story, a thousand seeds
  starling sim --seeds 1000                            a thousand stories, each drawn from its seed
  starling sim --seed 17 --html 17.html                the one that seed 17 draws
  starling sim partition --real --longest-wait 3s      real nodes in network namespaces

Exit codes:
  0    every expectation held
  1    one did not, or a command was refused
  2    the command line makes no sense
  4    with --real: this machine lacks a tool or a right, or the story does what cannot be done to real nodes
  130  with --real: somebody ended it")]
pub(crate) struct SimArgs {
    /// Files, directories, or names of built-in stories
    #[arg(value_name = "STORY", required_unless_present_any = ["list", "seed", "seeds"])]
    stories: Vec<String>,
    /// List the built-in stories
    #[arg(long)]
    list: bool,
    /// Play it with this seed [default: the story's]; without a story: play what it draws; with --seeds: the first one
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Play it with so many seeds, on all cores
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    seeds: Option<u64>,
    /// Draw the run as a page to look at: who held what and when
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    html: Option<PathBuf>,
    /// The drawing alone, as SVG
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    svg: Option<PathBuf>,
    /// Play it with real nodes: processes in network namespaces, in real time (Linux; root or user namespaces)
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    real: bool,
    /// With --real: cut waits that are longer than this short
    #[arg(long, value_name = "TIME", requires = "real", value_parser = wait)]
    longest_wait: Option<Duration>,
    /// The player of --real, in its namespaces; keeps its files here
    #[arg(long, value_name = "DIR", hide = true, requires = "real")]
    inside: Option<PathBuf>,
}

fn wait(text: &str) -> Result<Duration, String> {
    let time = text.parse::<HumanDuration>().map_err(|error| error.to_string())?;
    Ok(Duration::from_millis(time.as_millis()))
}

pub(crate) fn run(args: &SimArgs, out: &mut Out) -> Result<ExitCode, Failure> {
    if args.list {
        stories::list(out)?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let first = args.seed.unwrap_or(1);
    let stories = match (args.stories.is_empty(), args.seeds) {
        (true, Some(seeds)) => return many::drawn(first, seeds, out),
        (true, None) => vec![stories::drawn(first)],
        (false, _) => stories::find(&args.stories)?,
    };
    let drawn = args.html.is_some() || args.svg.is_some();
    if drawn && stories.len() > 1 {
        return Err(Failure::Usage(format!("one picture shows one story, not {}; name a single one", stories.len())));
    }
    if let Some(seeds) = args.seeds {
        return many::play(&stories, first, seeds, out);
    }
    let mut worst = ExitCode::SUCCESS;
    for story in &stories {
        let code = match (args.real, &args.inside) {
            (true, Some(dir)) => real::inside(story, args, dir, out)?,
            (true, None) => {
                if stories.len() > 1 && !out.wants_json() {
                    out.styled(Style::Bold, &format!("{}: {}", story.name, story.scenario.name()))?;
                    out.flush()?;
                }
                real::play(story, args, out.wants_json())?
            }
            (false, _) if stories.len() == 1 => one(story, args, out)?,
            (false, _) => in_a_line(story, args, out)?,
        };
        if code != ExitCode::SUCCESS {
            worst = code;
        }
    }
    out.flush()?;
    Ok(worst)
}

/// One story, told in full.
fn one(story: &Story, args: &SimArgs, out: &mut Out) -> Result<ExitCode, Failure> {
    let scenario = &story.scenario;
    let seed = args.seed.unwrap_or(scenario.seed());
    let timeline = if args.html.is_some() || args.svg.is_some() {
        let (timeline, recording) = scenario::record(scenario, seed);
        let replay = story.again(seed);
        let shown = Shown { title: scenario.name(), replay: &replay, ok: timeline.ok() };
        draw(args, &shown, &recording, Some(timeline.report()), timeline.lines())?;
        timeline
    } else {
        scenario::run(scenario, seed)
    };
    if out.wants_json() {
        out.json(&serde_json::json!({ "name": scenario.name(), "seed": seed, "ok": timeline.ok(),
            "lines": timeline.lines(), "report": timeline.report().to_string() }))?;
    } else {
        show(&timeline.to_string(), timeline.ok(), out)?;
    }
    out.flush()?;
    if timeline.to_string().ends_with("nothing was expected") {
        // It cannot fail, which is seldom what its author wanted.
        notice(&format!("starling: {} expects nothing, so it cannot fail", story.name));
    }
    if timeline.ok() {
        return Ok(ExitCode::SUCCESS);
    }
    let again = story.again(seed);
    Err(Failure::Refused(format!("not everything went as expected; play it again with: {again}")))
}

/// One of several stories: its verdict, and its timeline only when something went wrong.
fn in_a_line(story: &Story, args: &SimArgs, out: &mut Out) -> Result<ExitCode, Failure> {
    let seed = args.seed.unwrap_or(story.scenario.seed());
    let timeline = scenario::run(&story.scenario, seed);
    if out.wants_json() {
        out.json_line(&serde_json::json!({ "story": story.name, "name": story.scenario.name(), "seed": seed,
            "ok": timeline.ok(), "lines": timeline.lines() }))?;
    } else if timeline.ok() {
        let what = format!("✓ {}: {} (seed {seed})", story.name, story.scenario.name());
        out.styled(Style::Good, &what)?;
    } else {
        out.styled(Style::Bad, &format!("✗ {}: {}", story.name, story.again(seed)))?;
        show(&timeline.to_string(), false, out)?;
    }
    Ok(if timeline.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a picture says besides what it draws.
struct Shown<'a> {
    title: &'a str,
    replay: &'a str,
    ok: bool,
}

/// Writes the pictures that were asked for.
fn draw(
    args: &SimArgs,
    shown: &Shown,
    recording: &Recording,
    report: Option<&Report>,
    story: &[String],
) -> Result<(), Failure> {
    let page = Page { title: shown.title, replay: shown.replay, recording, report, story, ok: shown.ok };
    let write = |path: &PathBuf, text: String| {
        std::fs::write(path, text).map_err(|error| Failure::Refused(format!("{}: {error}", path.display())))
    };
    args.html.iter().try_for_each(|path| write(path, page.html()))?;
    args.svg.iter().try_for_each(|path| write(path, page.svg(Scale::Events)))
}

/// The timeline as it is, with its last line, the verdict, coloured.
fn show(text: &str, ok: bool, out: &mut Out) -> std::io::Result<()> {
    let (story, verdict) = text.trim_end().rsplit_once('\n').unwrap_or(("", text));
    out.line(story)?;
    out.styled(if ok { Style::Good } else { Style::Bad }, verdict)
}
