//! Who plays: three hosts in three zones, and the instances of a small shop on them.

use super::shop::Role;

/// A host: its node's name and its zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) node: &'static str,
    pub(crate) zone: &'static str,
}

/// The three hosts. Customers come in at the first.
pub(crate) const HOSTS: [Host; 3] = [
    Host { node: "ams-1", zone: "amsterdam" },
    Host { node: "ber-1", zone: "berlin" },
    Host { node: "cph-1", zone: "copenhagen" },
];

/// The host customers come in at.
pub(crate) const ENTRANCE: usize = 0;

/// One instance of the shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Player {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    /// Index into [`HOSTS`].
    pub(crate) host: usize,
}

/// The shop. `orders` stands everywhere, so that being near counts; `stock` does not stand at the entrance, so that
/// every sale crosses from one host to another.
pub(crate) const PLAYERS: [Player; 9] = [
    Player { name: "web-ams-1", role: Role::Web, host: 0 },
    Player { name: "orders-ams-1", role: Role::Orders, host: 0 },
    Player { name: "orders-ams-2", role: Role::Orders, host: 0 },
    Player { name: "orders-ber-1", role: Role::Orders, host: 1 },
    Player { name: "orders-cph-1", role: Role::Orders, host: 2 },
    Player { name: "stock-ber-1", role: Role::Stock, host: 1 },
    Player { name: "stock-ber-2", role: Role::Stock, host: 1 },
    Player { name: "stock-cph-1", role: Role::Stock, host: 2 },
    Player { name: "stock-cph-2", role: Role::Stock, host: 2 },
];

/// The instances of one service, as indices into [`PLAYERS`].
pub(crate) fn players(role: Role) -> impl Iterator<Item = usize> {
    (0..PLAYERS.len()).filter(move |at| PLAYERS[*at].role == role)
}
