//! Starling's heart: it decides.
//!
//! Pure: inputs and the time go in, outputs and a new picture come out. It knows no clock, socket, runtime, file,
//! environment or hash order; its only randomness comes from the seed it is given. What runs in production is
//! therefore exactly what the simulator doubts.
//!
//! | Room | What it decides |
//! |---|---|
//! | [`id`], [`time`], [`clocks`] | names and stamps that cannot be confused, and whose clock is wrong |
//! | [`registry`], [`config`] | what is said of instances and documents |
//! | [`record`], [`store`], [`digest`] | the replicated data: CRDT cells, merging, fingerprints |
//! | [`graveyard`] | what is dead although its tombstone is gone |
//! | [`wire`] | what nodes say to each other |
//! | [`node`] | the one door: [`Node::handle`] |
//! | [`peers`], [`push`], [`repair`], [`health`] | whom to tell and how, what is missing, which probes count |
//! | [`preserve`] | whether those who vanished are dead, or this node is cut off |
//! | [`cells`] | several data centres: relays, the directory of nodes, which cell is out of reach |
//! | [`view`], [`sorted`] | the immutable picture readers use |
//! | [`access`] | who may call a service |
//! | [`route`], [`balance`], [`guard`] | which service a host means, which instance gets a request, what is kept from whom |
//! | [`tolerate`] | what is done about attempts that fail |
//! | [`ranges`] | settings that are out of their range |
//! | [`policy`] | documents that say what shall happen to the requests of a service |
//! | [`quotas`] | what part of the mesh's quotas this node may use |
//! | [`observe`] | spans and metrics |

pub mod access;
pub mod balance;
pub mod cells;
pub mod clocks;
pub mod config;
pub mod digest;
pub mod graveyard;
pub mod guard;
pub mod health;
pub mod id;
mod names;
pub mod node;
pub mod observe;
pub mod peers;
pub mod policy;
pub mod preserve;
pub mod push;
pub mod quotas;
pub mod ranges;
pub mod record;
pub mod registry;
pub mod repair;
pub mod route;
pub mod sorted;
pub mod store;
#[cfg(test)]
mod testing;
pub mod time;
pub mod tolerate;
pub mod view;
pub mod wire;

pub use node::{Answer, Command, Counters, Input, Memory, Node, Output, PeerEvent, Refusal, Settings};
