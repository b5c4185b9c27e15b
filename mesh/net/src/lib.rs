//! Starling's talking part: QUIC with mutual TLS, membership, disk, probes, and the loop that owns the heart.

pub mod handle;
pub mod identity;
pub mod member;
pub mod quic;

pub use handle::{CommandError, Handle};
pub use identity::{Authority, Identity};
pub use member::{MemberSettings, Membership};
pub use quic::{IncomingTunnel, LinkError, Links, Tunnel, TunnelRefusal};
