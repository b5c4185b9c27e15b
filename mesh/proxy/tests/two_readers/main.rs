//! HTTP/1.1 as the sidecar reads it and as hyper does: nothing may pass that hyper reads as other messages. Where the two
//! differ, the sidecar refuses.
//!
//! Connections are drawn from a seed that is printed, each from the next one. With STARLING_FUZZ_SEED=7 the first is that
//! of this seed, with STARLING_FUZZ_SECONDS=60 there are as many as can be in that time:
//!
//!     STARLING_FUZZ_SECONDS=60 cargo test --release -p starling-proxy --test two_readers -- --nocapture
//!
//! `mesh/proxy/fuzz` lets a fuzzer look for such connections with the same comparison.

#![allow(clippy::print_stdout, reason = "whoever sees a failure needs the seed")]

#[path = "mod.rs"]
mod two_readers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fastrand::Rng;
use two_readers::drawn;
use two_readers::requests::Lane;

/// How many connections there are in an ordinary run.
const CONNECTIONS: u64 = 600;
/// How many are under way at once: most of those that go wrong are waited for.
const LANES: usize = 12;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Seeds to draw from, dealt to whoever asks.
struct Seeds {
    first: u64,
    dealt: AtomicU64,
    until: Option<Instant>,
}

impl Seeds {
    fn announced() -> Arc<Self> {
        let first = variable("STARLING_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..1 << 48));
        println!("STARLING_FUZZ_SEED={first}");
        let until = variable("STARLING_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
        Arc::new(Self { first, dealt: AtomicU64::new(0), until })
    }

    fn next(&self) -> Option<u64> {
        let n = self.dealt.fetch_add(1, Relaxed);
        self.until.map_or(n < CONNECTIONS, |until| Instant::now() < until).then_some(self.first + n)
    }
}

/// What is compared: how many messages there were for hyper, and how many of them passed.
async fn compare(lane: &mut Lane, answers: bool, seed: u64) -> (usize, usize) {
    let mut random = Rng::with_seed(seed);
    let bytes = if answers { drawn::answers(&mut random) } else { drawn::requests(&mut random) };
    let compared = match answers {
        true => lane.compare_answers(&bytes, &mut random).await,
        false => lane.compare(&bytes, &mut random).await,
    };
    compared.unwrap_or_else(|why| panic!("STARLING_FUZZ_SEED={seed}: {why}\nof {}", bytes.escape_ascii()))
}

async fn compare_all(answers: bool) {
    let seeds = Seeds::announced();
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..LANES {
        let seeds = seeds.clone();
        lanes.spawn(async move {
            let (mut lane, mut count) = (Lane::new().await, (0, 0));
            while let Some(seed) = seeds.next() {
                let (read, passed) = compare(&mut lane, answers, seed).await;
                count = (count.0 + read, count.1 + passed);
            }
            lane.end().await;
            count
        });
    }
    let counts = lanes.join_all().await;
    let (read, passed) = counts.iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    println!("{read} messages for hyper, {passed} of them passed");
    assert!(passed * 2 > read, "a sidecar that refuses everything would be of no use");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_reaches_an_application_that_hyper_reads_as_other_requests() {
    compare_all(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_what_hyper_reads_as_another_answer() {
    compare_all(true).await;
}
