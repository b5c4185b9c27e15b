//! Starling's doubt: many real hearts, a virtual clock and one seed.
//!
//! A simulated mesh runs [`starling_core::Node`], the very code that runs in production, and nothing else of Starling:
//! no sockets, no threads, no clock. Links, disks, wall clocks and the failure detector are modelled, and can be made as
//! bad as a test wishes. Everything is drawn from one seed, so what was found once is found again.
//!
//! ```
//! use starling_sim::{Latency, Mesh, Story, millis, secs};
//!
//! fn main() -> Result<(), Story> {
//!     let mut mesh = Mesh::builder(7).nodes(5).zones(["a", "b"]).latency(Latency::Fixed(millis(1))).loss(0.01).build();
//!     mesh.register("n1", "orders", "o1");
//!     mesh.converges_within(secs(5))?;
//!     mesh.all_see("orders/o1")?;
//!
//!     mesh.cut(&["n1", "n2"], &["n3", "n4", "n5"]);
//!     mesh.register("n1", "orders", "o2"); // both sides go on
//!     mesh.put_config("n1", "app/limits", "10");
//!     mesh.put_config("n4", "app/limits", "20");
//!     mesh.run_for(secs(30));
//!     assert!(mesh.sees("n2", "orders/o2") && !mesh.sees("n3", "orders/o2"));
//!
//!     mesh.heal();
//!     mesh.converges_within(secs(5))?;
//!     mesh.all_see("orders/o2")?;
//!     assert_eq!(mesh.conflicts("n2", "app/limits").len(), 2); // both edits are kept, and shown
//!     mesh.nothing_lost()
//! }
//! ```
//!
//! When a word of judging fails, its [`Story`] tells what differs on which node, what happened last, and the line that
//! makes the run again. [`Mesh::report`] tells what it cost.
//!
//! | Room | What is in it |
//! |---|---|
//! | [`Mesh`], [`Builder`], [`ask`] | the vocabulary of tests |
//! | [`scenario`] | the same as a file to be run and read |
//! | [`app`] | a program of your own on every node |
//! | [`swarm`] | many seeds at once, each a scenario drawn by chance; what fails is made small |
//! | [`Checker`] | judges that look at a mesh while it runs |
//! | [`Recording`], [`picture`] | a run written down, and drawn as a page |
//! | [`spread()`] | how fast and at what cost one change reaches everybody |
//! | `world`, `host`, `links`, `detector` | the queue of events, and what is modelled |
//! | `ledger`, `check`, [`Report`] | what is known outside of the nodes: every write there ever was, and figures |
//!
//! The model is rougher than the world where that makes it stricter: a lost message stays lost (QUIC would send it again
//! while the link lives), and one cut link makes two nodes lose each other although others hear both.

pub mod app;
pub mod ask;
mod cells;
mod check;
mod checker;
mod detector;
mod host;
mod ledger;
mod links;
mod mesh;
mod options;
pub mod picture;
mod recording;
mod report;
pub mod scenario;
mod seen;
mod spread;
pub mod swarm;
mod trouble;
mod world;

pub use cells::{CellsReport, cells};
pub use check::Story;
pub use checker::{
    Bounded, CHECKERS, Checker, NoGhost, NoGoingBack, NothingInvented, NothingLost, Preserved, Verdict, checker,
};
pub use host::Traffic;
pub use links::{Latency, Links};
pub use mesh::{CommandError, Mesh, millis, secs};
pub use options::{Builder, Options, Sabotage};
pub use recording::{
    Counted, CutSpan, Held, Judged, NodeState, NodeTrack, Noted, Recording, Second, StateChange, WriteTrack,
};
pub use report::{Report, Sent, Spread};
pub use spread::{SpreadReport, Trial, spread};

/// The seed to use: the environment's `STARLING_SEED` if it is set (as a story's line says), else this one.
///
/// # Panics
/// When `STARLING_SEED` is not a number.
pub fn seed_or(default: u64) -> u64 {
    match std::env::var("STARLING_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("STARLING_SEED is {text:?}, not a number")),
        Err(_) => default,
    }
}
