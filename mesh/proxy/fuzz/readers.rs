//! The two readers of the tests, fed by a fuzzer.

#[path = "../tests/two_readers/mod.rs"]
mod two_readers;

use std::sync::{LazyLock, Mutex};

use fastrand::Rng;
use tokio::runtime::Runtime;
use two_readers::requests::Lane;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads"));
static LANE: LazyLock<Mutex<Lane>> = LazyLock::new(|| Mutex::new(RUNTIME.block_on(Lane::new())));

/// Compares one connection; what else is drawn for it follows from its bytes, so that it can be fed again.
pub fn feed(bytes: &[u8], answers: bool) {
    let seed = bytes.iter().fold(0_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let mut random = Rng::with_seed(seed);
    let mut lane = LANE.lock().expect("no panic");
    let compared = RUNTIME.block_on(async {
        match answers {
            true => lane.compare_answers(bytes, &mut random).await,
            false => lane.compare(bytes, &mut random).await,
        }
    });
    drop(lane);
    if let Err(why) = compared {
        panic!("{why}");
    }
}
