//! Many seeds, of the same stories or each of a story it draws, over all cores: how many held, how slow the slowest was,
//! and which seed to play again to see what went wrong.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use starling_sim::scenario;
use starling_sim::swarm::{Shrunk, Summary, Swarm};

use super::stories::Story;
use crate::cli::failure::Failure;
use crate::cli::output::{Out, Style, count};

/// After so many failing seeds of a story no more of it are played: they mostly tell the same.
const MOST_FAILURES: usize = 5;
/// How often progress is told: on a terminal, and in a log.
const ON_TERMINAL: Duration = Duration::from_millis(200);
const IN_LOG: Duration = Duration::from_secs(10);

/// What came of all seeds of a story.
#[derive(Debug, Default)]
struct Sum {
    played: u64,
    virtual_time: Duration,
    messages: u64,
    /// The slowest any change was everywhere while nothing was broken, and its seed.
    slowest: (Duration, u64),
    /// Seeds that failed, and the lines that say with what.
    failures: BTreeMap<u64, Vec<String>>,
}

/// One seed, played.
struct Played {
    seed: u64,
    virtual_time: Duration,
    messages: u64,
    slowest: Duration,
    wrong: Option<Vec<String>>,
}

/// Plays every story with so many seeds from this one on.
pub(super) fn play(stories: &[Story], first: u64, seeds: u64, out: &mut Out) -> Result<ExitCode, Failure> {
    let mut ok = true;
    for story in stories {
        let began = Instant::now();
        let sum = swarm(story, first, seeds, &mut Progress::new(&story.name, seeds));
        ok &= sum.failures.is_empty();
        tell(story, &sum, began.elapsed(), out)?;
    }
    out.flush()?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn swarm(story: &Story, first: u64, seeds: u64, progress: &mut Progress) -> Sum {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(seeds as usize);
    let (next, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let (told, heard) = mpsc::sync_channel(64);
    let mut sum = Sum::default();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (told, next, enough) = (told.clone(), &next, &enough);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= seeds || told.send(played(story, first.wrapping_add(at))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(told);
        for played in heard {
            sum.add(played);
            enough.store(sum.failures.len() >= MOST_FAILURES, Ordering::Relaxed);
            progress.step(&sum);
        }
    });
    progress.end();
    sum
}

fn played(story: &Story, seed: u64) -> Played {
    let timeline = scenario::run(&story.scenario, seed);
    let report = timeline.report();
    let wrong = || timeline.lines().iter().filter(|line| line.contains('✗')).cloned().collect();
    Played {
        seed,
        virtual_time: report.elapsed,
        messages: report.total().messages,
        slowest: report.visible.max(),
        wrong: (!timeline.ok()).then(wrong),
    }
}

impl Sum {
    fn add(&mut self, played: Played) {
        self.played += 1;
        self.virtual_time += played.virtual_time;
        self.messages += played.messages;
        // Of equals the lowest seed, in whatever order threads came back.
        let slowest = (played.slowest, u64::MAX - played.seed);
        if slowest > (self.slowest.0, u64::MAX - self.slowest.1) {
            self.slowest = (played.slowest, played.seed);
        }
        if let Some(wrong) = played.wrong {
            self.failures.insert(played.seed, wrong);
        }
    }
}

fn tell(story: &Story, sum: &Sum, took: Duration, out: &mut Out) -> Result<(), Failure> {
    let per_second = sum.played as f64 / took.as_secs_f64().max(1e-9);
    if out.wants_json() {
        let again = |seed: &u64| format!("starling sim {} --seed {seed}", story.name);
        let failures = sum
            .failures
            .iter()
            .map(|(seed, wrong)| serde_json::json!({ "seed": seed, "replay": again(seed), "wrong": wrong }));
        return Ok(out.json_line(&serde_json::json!({ "story": story.name, "ok": sum.failures.is_empty(),
            "seeds": sum.played, "seconds": took.as_secs_f64(), "virtual_seconds": sum.virtual_time.as_secs_f64(),
            "messages": sum.messages, "slowest_change_us": sum.slowest.0.as_micros() as u64,
            "slowest_seed": sum.slowest.1, "failures": failures.collect::<Vec<_>>() }))?);
    }
    let seeds = count(sum.played as usize, "seed");
    let hours = sum.virtual_time.as_secs_f64() / 3_600.0;
    match sum.failures.len() {
        0 => out.styled(Style::Good, &format!("✓ {}: all held with {seeds}", story.name))?,
        failed => out.styled(Style::Bad, &format!("✗ {}: {failed} of {seeds} failed", story.name))?,
    }
    out.line(&format!(
        "    {hours:.1} virtual hours in {:.1} s ({per_second:.0} seeds/s), {} messages; slowest change without a \
         fault {:.2} ms (seed {})",
        took.as_secs_f64(),
        sum.messages,
        sum.slowest.0.as_secs_f64() * 1e3,
        sum.slowest.1
    ))?;
    for (seed, wrong) in sum.failures.iter().take(MOST_FAILURES) {
        out.styled(Style::Bad, &format!("    {}", story.again(*seed)))?;
        wrong.iter().take(3).try_for_each(|line| out.line(&format!("      {}", line.trim_start())))?;
    }
    Ok(())
}

/// As many stories as seeds, each drawn from its own.
pub(super) fn drawn(first: u64, seeds: u64, out: &mut Out) -> Result<ExitCode, Failure> {
    let began = Instant::now();
    let mut progress = Progress::new("drawn", seeds);
    let swarm = Swarm::default();
    let last = first.saturating_add(seeds - 1);
    let sum = swarm.run(first..=last, |so_far| progress.at(so_far.done, so_far.failed as usize));
    progress.end();
    let seconds = began.elapsed().as_secs_f64();
    if out.wants_json() {
        drawn_as_json(&sum, seconds, out)?;
    } else {
        drawn_in_words(&sum, seconds, out)?;
    }
    out.flush()?;
    Ok(if sum.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn drawn_in_words(sum: &Summary, seconds: f64, out: &mut Out) -> Result<(), Failure> {
    for failure in &sum.failures {
        let (seed, kind) = (failure.seed, &failure.verdict.kind);
        out.styled(Style::Bad, &format!("✗ seed {seed} fails: {kind}; starling sim --seed {seed}"))?;
        match &failure.shrunk {
            Some(small) => out.line(&shrunk(small))?,
            None => out.line(&failure.verdict.told)?,
        }
    }
    let hours = sum.virtual_time.as_secs_f64() / 3_600.0;
    let per_second = sum.played as f64 / seconds.max(1e-9);
    let seeds = count(sum.played as usize, "seed");
    match sum.failures.len() {
        0 => out.styled(Style::Good, &format!("✓ {seeds}, each of a story of its own: none failed"))?,
        failed => out.styled(Style::Bad, &format!("✗ {failed} of {seeds} failed"))?,
    }
    out.line(&format!(
        "    {hours:.1} virtual hours in {seconds:.1} s ({per_second:.0} seeds/s), {} writes, {} messages",
        sum.writes, sum.messages
    ))?;
    let kinds: Vec<String> = sum.steps.iter().map(|(word, seeds)| format!("{word} {seeds}")).collect();
    Ok(out.line(&format!("    in so many of them: {}", kinds.join(", ")))?)
}

fn drawn_as_json(sum: &Summary, seconds: f64, out: &mut Out) -> Result<(), Failure> {
    let failures = sum.failures.iter().map(|failure| {
        serde_json::json!({ "seed": failure.seed, "kind": failure.verdict.kind, "told": failure.verdict.told,
            "replay": format!("starling sim --seed {}", failure.seed),
            "shrunk": failure.shrunk.as_ref().map(|small| small.scenario.to_string()) })
    });
    let failures: Vec<_> = failures.collect();
    Ok(out.json(&serde_json::json!({ "ok": sum.ok(), "seeds": sum.played, "seconds": seconds,
        "virtual_seconds": sum.virtual_time.as_secs_f64(), "writes": sum.writes, "messages": sum.messages,
        "steps": sum.steps, "failures": failures }))?)
}

/// A failure made small, as a file that can be kept and played.
fn shrunk(small: &Shrunk) -> String {
    let ((all_steps, steps), (all_nodes, nodes)) = (small.steps, small.nodes);
    format!(
        "    {steps} of {all_steps} steps and {nodes} of {all_nodes} nodes suffice; this file fails in the same way:\n\n{}\n\
         which tells:\n\n{}\n",
        small.scenario, small.verdict.told
    )
}

/// How far it is, on standard error: one line that changes on a terminal, a line now and then elsewhere.
pub(super) struct Progress {
    what: String,
    of: u64,
    terminal: bool,
    began: Instant,
    told: Instant,
}

impl Progress {
    pub(super) fn new(what: &str, of: u64) -> Self {
        use std::io::IsTerminal;
        let (what, now) = (what.to_owned(), Instant::now());
        Self { what, of, terminal: std::io::stderr().is_terminal(), began: now, told: now }
    }

    fn step(&mut self, sum: &Sum) {
        self.at(sum.played, sum.failures.len());
    }

    /// So many are done, and so many of them failed.
    pub(super) fn at(&mut self, done: u64, failed: usize) {
        let every = if self.terminal { ON_TERMINAL } else { IN_LOG };
        if self.told.elapsed() < every {
            return;
        }
        self.told = Instant::now();
        let per_second = done as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
        let line = format!("{}: {done} of {} seeds, {failed} failed, {per_second:.0} seeds/s", self.what, self.of);
        say(&if self.terminal { format!("\r\x1b[K{line}") } else { format!("{line}\n") });
    }

    pub(super) fn end(&self) {
        if self.terminal {
            say("\r\x1b[K");
        }
    }
}

fn say(text: &str) {
    use std::io::Write;
    let mut stderr = std::io::stderr();
    // Nobody is left to be told when standard error is gone.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}
