//! Everything that reads bytes others wrote is fed what nobody would write: it never panics, never hangs, and what it
//! takes it can write and read again.
//!
//! Each run draws its inputs from a seed that it prints: samples of what is sound, changed a little or a lot. With
//! STARLING_FUZZ_SECONDS=60 each reader is fed for so long, with STARLING_FUZZ_SEED=7 the inputs are those of that seed:
//!
//!     STARLING_FUZZ_SECONDS=60 cargo test --release --test decoders -- --nocapture --test-threads 1

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a helper that fails is a failed test; figures are shown")]

mod mutate;
mod readers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use mutate::Mutator;
use readers::Reader;

/// How many inputs each reader gets in an ordinary run.
const INPUTS: usize = 1_500;
/// The longest input.
const MAX_BYTES: usize = 64 * 1024;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Feeds a reader, and tells what it was fed when it fails.
fn feed(reader: &Reader) {
    let seed = variable("STARLING_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{}: STARLING_FUZZ_SEED={seed}", reader.name);
    let until = variable("STARLING_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let samples = (reader.samples)();
    for sample in &samples {
        assert!(
            (reader.read)(sample),
            "{}: a sound sample is not taken: {:?}",
            reader.name,
            String::from_utf8_lossy(sample)
        );
    }
    let mut mutator = Mutator::new(seed, samples, MAX_BYTES);
    let (mut fed, mut taken) = (0_u64, 0_u64);
    while until.map_or(fed < INPUTS as u64, |until| Instant::now() < until) {
        let input = mutator.next();
        match catch_unwind(AssertUnwindSafe(|| (reader.read)(&input))) {
            Ok(sound) => {
                taken += u64::from(sound);
                if sound {
                    mutator.keep(input);
                }
            }
            Err(_) => panic!("{}: input {fed} of seed {seed} is {input:?}", reader.name),
        }
        fed += 1;
    }
    println!("{}: {fed} inputs, {taken} of them taken", reader.name);
    assert!(taken < fed, "{}: whatever is taken was not read", reader.name);
}

macro_rules! readers {
    ($($test:ident: $reader:expr;)*) => { $(#[test] fn $test() { feed(&$reader); })* };
}

readers! {
    messages_of_peers: readers::MESSAGES;
    questions_of_peers: readers::QUESTIONS;
    replies_of_peers: readers::REPLIES;
    logs_on_disk: readers::LOGS;
    frames_on_a_link: readers::FRAMES;
    facts_of_members: readers::FACTS;
    settings_files: readers::SETTINGS;
    scenario_files: readers::SCENARIOS;
    backups: readers::BACKUPS;
    host_names: readers::HOSTS;
    stamps_and_names: readers::NAMES;
}
