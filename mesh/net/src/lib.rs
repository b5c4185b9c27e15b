//! Starling's talking part: whatever stands between a heart and the world.
//!
//! | Room | What it does |
//! |---|---|
//! | [`mod@start`] | puts the rooms together: a running node |
//! | [`handle`] | what other crates hold of a running node |
//! | `driver` | the one loop that owns the heart |
//! | [`disk`] | what must survive: a checked log, synced before anything is acknowledged |
//! | [`probe`] | health probes of this host's instances |
//! | [`identity`] | certificates: who a node is |
//! | [`quic`] | links between nodes: messages, questions, tunnels |
//! | [`member`] | who is there: chitchat over the links |
//! | `gauges` | figures of the loop |
//! | [`ground`] | what a node stands on: real for everybody but tests |
//!
//! It knows nothing of HTTP, of routing, or of any dialect of the control surface.

#[doc(hidden)]
pub mod decoders;
pub mod disk;
mod driver;
mod gauges;
pub mod ground;
pub mod handle;
pub mod identity;
pub mod member;
pub mod probe;
pub mod quic;
pub mod start;

pub use disk::{DiskError, Problem};
pub use ground::Ground;
pub use handle::{CommandError, Handle};
pub use identity::{Authority, Identity};
pub use member::{MemberSettings, Membership};
pub use quic::{IncomingTunnel, LinkError, Links, OpenLane, Tunnel, TunnelRefusal};
pub use start::{NetSettings, Running, StartError, start, start_on};
