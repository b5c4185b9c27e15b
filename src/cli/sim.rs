//! `starling sim`: a scenario file played to a timeline, on this machine, without any node.

use std::path::{Path, PathBuf};

use clap::Args;
use starling_sim::picture::{Page, Scale};
use starling_sim::scenario::{self, Scenario};

use super::failure::Failure;
use super::output::{Out, Style, notice};

/// `starling sim`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Plays what happens in the file with the very code of the nodes, on a virtual clock: no network, no waiting. The same
seed gives the same timeline, byte for byte. Exit code 0 when every expectation held, 1 when one did not.

Examples:
  starling sim examples/scenarios/partition.toml
  starling sim examples/scenarios/partition.toml --seed 42
  for seed in $(seq 100); do starling sim partition.toml --seed $seed > last || break; done")]
pub(crate) struct SimArgs {
    /// The scenario (TOML)
    file: PathBuf,
    /// Play it with this seed [default: the file's]
    #[arg(long)]
    seed: Option<u64>,
    /// Draw the run as a page to look at: who held what and when
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The drawing alone, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(crate) fn run(args: &SimArgs, out: &mut Out) -> Result<(), Failure> {
    let refused = |why: String| Failure::Refused(format!("{}: {why}", args.file.display()));
    let text = std::fs::read_to_string(&args.file).map_err(|error| refused(error.to_string()))?;
    let scenario: Scenario = text.parse().map_err(|error: scenario::ScenarioError| refused(error.to_string()))?;
    let seed = args.seed.unwrap_or(scenario.seed());
    let (timeline, recording) = scenario::record(&scenario, seed);
    let replay = format!("starling sim {} --seed {seed}", args.file.display());
    let page = Page {
        title: scenario.name(),
        replay: &replay,
        story: timeline.lines(),
        ok: timeline.ok(),
        ..Page::of(&recording, timeline.report())
    };
    if let Some(path) = &args.html {
        std::fs::write(path, page.html())?;
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, page.svg(Scale::Events))?;
    }
    if out.wants_json() {
        out.json(&serde_json::json!({ "name": scenario.name(), "seed": seed, "ok": timeline.ok(),
            "lines": timeline.lines(), "report": timeline.report().to_string() }))?;
    } else {
        show(&timeline.to_string(), timeline.ok(), out)?;
    }
    out.flush()?;
    if !timeline.ok() {
        return Err(refused(format!("not everything went as expected; play it again with --seed {seed}")));
    }
    warn_of_silence(&args.file, &timeline);
    Ok(())
}

/// The timeline as it is, with its last line, the verdict, coloured.
fn show(text: &str, ok: bool, out: &mut Out) -> std::io::Result<()> {
    let (story, verdict) = text.trim_end().rsplit_once('\n').unwrap_or(("", text));
    out.line(story)?;
    out.styled(if ok { Style::Good } else { Style::Bad }, verdict)
}

/// A scenario that expects nothing cannot fail, which is seldom what its author wanted.
fn warn_of_silence(file: &Path, timeline: &scenario::Timeline) {
    if timeline.to_string().ends_with("nothing was expected") {
        notice(&format!("starling: {} expects nothing, so it cannot fail", file.display()));
    }
}
