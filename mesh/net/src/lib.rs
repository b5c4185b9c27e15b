//! Starling's talking part: QUIC with mutual TLS, membership, disk, probes, and the loop that owns the heart.

pub mod handle;
pub mod quic;

pub use handle::{CommandError, Handle};
pub use quic::{IncomingTunnel, LinkError, Tunnel};
