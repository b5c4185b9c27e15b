//! The story, chapter by chapter. Each chapter makes something happen, watches, and states what it saw.

mod config;
mod formed;
mod found;
mod instance;
mod node;
mod partition;
mod shop;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::api::Api;
use super::cast::HOSTS;
use super::figure::Figure;
use super::load::{Fault, Load, Sample, Window};
use super::report::Report;
use super::screen::Screen;
use super::stage::Stage;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Registrations to time.
    pub(crate) registrations: usize,
    /// Config changes to time.
    pub(crate) releases: usize,
    /// Requests per second of the customers, if the machine can carry them with ease.
    pub(crate) rate: u32,
    /// For how long what it can carry is measured.
    pub(crate) rush: Duration,
    /// Calls of each kind to compare direct with sidecars.
    pub(crate) calls: usize,
    /// How long to watch traffic while nothing else happens.
    pub(crate) watching: Duration,
}

impl Plan {
    pub(crate) const FULL: Plan =
        Plan { registrations: 200, releases: 100, rate: 300, rush: ms(600), calls: 400, watching: ms(3_000) };
    /// For tests: the same story with fewer repetitions.
    pub(crate) const FAST: Plan =
        Plan { registrations: 40, releases: 20, rate: 100, rush: ms(300), calls: 60, watching: ms(800) };
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What all chapters share.
pub(crate) struct Story {
    pub(crate) screen: Screen,
    pub(crate) report: Report,
    pub(crate) stage: Stage,
    pub(crate) load: Option<Load>,
    plan: Plan,
    dice: fastrand::Rng,
}

/// A chapter that could be told; or what kept it.
type Told = Result<(), String>;

impl Story {
    pub(crate) fn new(screen: Screen, report: Report, stage: Stage, plan: Plan, seed: u64) -> Self {
        Self { screen, report, stage, load: None, plan, dice: fastrand::Rng::with_seed(seed) }
    }

    /// Tells it all.
    pub(crate) async fn tell(&mut self) -> Told {
        formed::tell(self).await?;
        found::tell(self).await?;
        shop::tell(self).await?;
        instance::tell(self).await?;
        // Which host dies and which is cut off is up to the seed; customers need the first.
        let (dies, alone) = if self.dice.bool() { (1, 2) } else { (2, 1) };
        node::tell(self, dies).await?;
        partition::tell(self, alone).await?;
        config::tell(self).await?;
        trace::tell(self).await
    }

    /// Says whether a promise was kept, and by which measurement.
    fn promise(&mut self, kept: bool, promise: &str, measured: &str) {
        self.report.promise(kept, promise, measured);
        self.screen.promise(kept, promise, measured);
    }

    fn load(&self) -> Result<&Load, String> {
        self.load.as_ref().ok_or_else(|| "the shop has no customers".into())
    }

    fn api(&self, host: usize) -> Result<Arc<Api>, String> {
        self.stage.api(host)
    }

    /// The control surfaces of all hosts.
    fn apis(&self) -> Result<Vec<Arc<Api>>, String> {
        (0..HOSTS.len()).map(|host| self.api(host)).collect()
    }

    /// What became of the customers since a moment: the reasons of what was lost, and whether the promise was kept
    /// that nothing is lost that may be repeated.
    async fn account(&mut self, name: &str, since: Instant, promise: &str) -> Result<Vec<Sample>, String> {
        let samples = self.load()?.within(Window { from: since, until: Instant::now() }).await;
        let count = |safe: bool, lost: bool| {
            let counted = samples.iter().filter(|sample| sample.safe == safe && sample.outcome.is_err() | !lost);
            counted.count() as u64
        };
        let (gets, posts, lost_gets, lost_posts) =
            (count(true, false), count(false, false), count(true, true), count(false, true));
        for (what, value) in [("get", gets), ("post", posts), ("lost_get", lost_gets), ("lost_post", lost_posts)] {
            self.report.figure(&format!("{name}_{what}"), Figure::Count(value));
        }
        let slowest = samples.iter().map(|sample| sample.took).max().unwrap_or_default();
        self.report.figure(&format!("{name}_slowest"), Figure::Time(slowest));
        self.explain(&samples);
        if lost_posts > 0 {
            self.screen.remark(
                "A POST that was on its way in what died may have been carried out: it is not sent again but reported \
                 to its caller.",
            );
        }
        self.promise(lost_gets == 0, promise, &format!("{lost_gets} of {} GET", Figure::Count(gets)));
        Ok(samples)
    }

    /// Why requests were lost, most frequent reasons first.
    fn explain(&mut self, samples: &[Sample]) {
        let mut reasons: Vec<(&Fault, u64, u64)> = Vec::new();
        for (fault, safe) in samples.iter().filter_map(|it| it.outcome.as_ref().err().map(|fault| (fault, it.safe))) {
            let at = reasons.iter().position(|(known, ..)| known.code == fault.code).unwrap_or_else(|| {
                reasons.push((fault, 0, 0));
                reasons.len() - 1
            });
            reasons[at].1 += u64::from(safe);
            reasons[at].2 += u64::from(!safe);
        }
        reasons.sort_by_key(|(_, gets, posts)| std::cmp::Reverse(gets + posts));
        for (fault, gets, posts) in reasons.iter().take(MAX_REASONS) {
            self.screen.remark(&format!("lost {gets} GET, {posts} POST: {}", fault.code));
            let words = fault.words.split("; tried").next().unwrap_or_default();
            self.screen.remark(&format!("e.g. {}", words.chars().take(MAX_WORDS).collect::<String>()));
        }
    }
}

/// Different reasons shown for one accident.
const MAX_REASONS: usize = 4;
/// Characters shown of an example.
const MAX_WORDS: usize = 160;

/// All but one.
fn others<T>(all: &mut [T], but: usize) -> impl Iterator<Item = &mut T> {
    all.iter_mut().enumerate().filter(move |(at, _)| *at != but).map(|(_, one)| one)
}
