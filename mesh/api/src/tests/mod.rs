//! The control surface in front of real hearts, held together in memory: what a client sees.

mod backup;
mod blocking;
mod config;
mod openapi;
mod process;
mod questions;
mod registry;
mod sockets;
mod world;
