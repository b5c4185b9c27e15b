//! Starling: the assembly of the five crates under mesh/.
//!
//! | Room | What it does |
//! |---|---|
//! | [`settings`] | one TOML file, environment, flags: read, checked, explained |
//! | [`node`] | a whole node in one process: `starling::Node::start(settings)` |
//! | `certificates` | certificates that are renewed while the node runs |
//! | [`cli`] | the command line: `starling node` and everything that asks a running node |
//! | [`sim`] | the simulator, for tests of one's own |
//! | [`demo`] | `starling demo`: the whole of it at work, with figures |
//! | [`logging`] | what a node says of itself |
//!
//! It decides nothing about the product: core decides, net talks, proxy carries, api shows, sim doubts.

mod certificates;
pub mod cli;
pub mod demo;
pub mod logging;
pub mod node;
mod scratch;
pub mod settings;
pub mod sockets;

pub use node::{Addresses, Node, StartError};
pub use settings::Settings;
/// The simulator, for tests of one's own: the very hearts of a mesh on a virtual clock.
pub use starling_sim as sim;
