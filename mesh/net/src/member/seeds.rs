//! Looking for the nodes to join through, again and again: names may point elsewhere tomorrow, and two halves of a mesh
//! that lost each other for longer than anybody remembers still have their seeds in common.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

/// How long one lookup may take.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(2);
/// How often seeds that are not linked are tried, once somebody is.
const UNHURRIED: Duration = Duration::from_secs(10);
/// How long a node looks for its seeds in vain before it says so, and how often it then repeats it.
const COMPLAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// Sends the addresses of seeds that are not linked, until nobody wants them any more.
pub(super) async fn seek(
    seeds: Vec<String>,
    hurried: Duration,
    own: SocketAddr,
    mut linked: watch::Receiver<BTreeSet<SocketAddr>>,
    found: mpsc::Sender<Vec<SocketAddr>>,
) {
    if seeds.is_empty() {
        return;
    }
    let mut complain_at = Instant::now() + COMPLAIN.0;
    loop {
        let addresses = look_up(&seeds).await;
        let alone = linked.borrow_and_update().is_empty();
        let missing: Vec<SocketAddr> = {
            let linked = linked.borrow();
            addresses.into_iter().filter(|address| *address != own && !linked.contains(address)).collect()
        };
        if alone && Instant::now() >= complain_at {
            complain_at = Instant::now() + COMPLAIN.1;
            warn!(?seeds, "no seed could be joined yet; this node goes on alone and keeps trying");
        }
        if !missing.is_empty() && found.send(missing).await.is_err() {
            return;
        }
        tokio::time::sleep(if alone { hurried } else { UNHURRIED }).await;
    }
}

async fn look_up(seeds: &[String]) -> BTreeSet<SocketAddr> {
    let mut addresses = BTreeSet::new();
    for seed in seeds {
        if let Ok(address) = seed.parse() {
            addresses.insert(address);
            continue;
        }
        match tokio::time::timeout(LOOKUP_PATIENCE, lookup_host(seed.as_str())).await {
            Ok(Ok(found)) => addresses.extend(found),
            Ok(Err(error)) => debug!(seed, %error, "a seed's name cannot be looked up"),
            Err(_) => debug!(seed, "looking up a seed's name takes too long"),
        }
    }
    addresses
}
