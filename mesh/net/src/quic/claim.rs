//! Who may be called by a name: a node that is met is compared with who has that name already.
//!
//! A node that starts again finds its earlier start still in others' tables: that process is dead, and the new one takes its
//! place. But a copy of a living node's certificate and name must not take that node's place, not even for a moment:
//! the two would push each other out for ever. So before the newer of two processes is believed, the older is asked
//! whether it is there. At the same address it cannot be: a port has one owner.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::Connection;
use tracing::error;

use super::Shared;
use super::meet::{self, Close, Kind, Met, remote};

/// How long the older process has to answer. A restarted node waits as long before it is believed; its first attempt to
/// join is not even over then.
const PATIENCE: Duration = Duration::from_millis(800);

/// Who already has the name of a node that was met.
pub(super) enum Holder {
    /// A process that is linked.
    Linked(Connection),
    /// The address book has it at another address.
    Listed(SocketAddr),
}

/// Takes a talk connection into use, unless its node's name is taken.
pub(super) async fn admit(shared: &Arc<Shared>, met: Met) {
    let first = match shared.table.holder(&met) {
        None => None,
        Some(Holder::Linked(connection)) => answers(&connection).await.then(|| remote(&connection)),
        Some(Holder::Listed(address)) => find(shared, address, &met).await.then_some(address),
    };
    match first {
        None => shared.table.register(shared, met),
        Some(first) => refuse(shared, &met, first),
    }
}

/// Whether anybody acknowledges what is sent on a connection. An empty stream means nothing to the peer.
async fn answers(connection: &Connection) -> bool {
    let ask = async {
        let mut stream = connection.open_uni().await.ok()?;
        stream.finish().ok()?;
        stream.stopped().await.ok()
    };
    tokio::time::timeout(PATIENCE, ask).await.ok().flatten().is_some()
}

/// Whether another process of the node answers at the address where it should be.
async fn find(shared: &Arc<Shared>, address: SocketAddr, met: &Met) -> bool {
    let dial = meet::dial(shared, address, Some(&met.node), Kind::Talk);
    match tokio::time::timeout(PATIENCE, dial).await {
        Ok(Ok(there)) => {
            let other = there.process != met.process;
            shared.table.register(shared, there); // also when it is the same one, which has two addresses
            other
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

fn refuse(shared: &Shared, met: &Met, first: SocketAddr) {
    let (node, second) = (&met.node, remote(&met.connection));
    met.connection.close(Close::SameName.code(), meet::same_name(node, first).as_bytes());
    shared.stats.refused();
    shared.stats.namesake();
    if shared.may_say(second, "namesake") {
        error!(
            %node, %first, %second,
            "refused a second node of the same name: stop one of the two, or give each a name and a certificate of its own"
        );
    }
}
