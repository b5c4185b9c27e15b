//! Asking instances that breakers have taken out how they are, beside the callers' requests.
//!
//! Where nothing is out, nothing is asked: the task sleeps until a breaker opens. Whom to ask and when is the breaker's to
//! say, and what to make of the word too (`starling_core::guard::breaker`). An instance is asked by its own node, where its
//! health check is meant to be made, over a tunnel that begins with a byte of its own and ends with the answer:
//!
//! ```text
//! caller's side    3
//! instance's side  a verdict (1): 1 well, 2 ill, 0 not to be told
//! ```
//!
//! So it is no request: rules of access, this host's guard, counters and traces do not know it. A node that does not know of
//! it answers in HTTP, which says nothing of the instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use starling_core::guard::Breaker;
use starling_core::registry::{Check, CheckKind};
use starling_core::view::InstanceView;
use starling_net::probe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::clock;
use crate::directory::Entry;
use crate::exchange::Way;
use crate::inbound::{Opens, Tunnel, find_owned};
use crate::mesh::Stream;
use crate::serve::Lifetime;
use crate::stack::Carrier;

/// The most instances this node asks at once; more wait their turn.
const MAX_ASKED: usize = 16;
/// The most questions of other nodes this one looks into at once; to more it does not say anything.
pub(crate) const MAX_ANSWERED: usize = 64;
/// The longest a check may take here, whatever it says of itself.
const MAX_PATIENCE: Duration = Duration::from_secs(5);
/// How long what is due may wait for others: opening breakers do not make the task look at all services again and again.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What checks came to, of one service.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) well: AtomicU64,
    pub(crate) ill: AtomicU64,
    pub(crate) unknown: AtomicU64,
}

/// Asks until the proxy drains.
pub(crate) async fn run(carrier: Arc<Carrier>, mut lifetime: Lifetime) {
    // Dropped, it ends what still runs.
    let mut asked = JoinSet::new();
    loop {
        let next = ask_due(&carrier, &mut asked);
        let wait = next.map(|wait| wait.max(LOOK_EVERY));
        tokio::select! {
            () = carrier.ejected.notified() => {}
            () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            Some(_) = asked.join_next(), if !asked.is_empty() => {}
            () = lifetime.draining() => return,
        }
    }
}

/// Begins with whom it is time to ask; says how long it is to the next.
fn ask_due(carrier: &Arc<Carrier>, asked: &mut JoinSet<()>) -> Option<Duration> {
    let now = carrier.clock.now();
    let mut next: Option<Duration> = None;
    for entry in carrier.directory.entries().values() {
        let Some(roster) = entry.roster().filter(|roster| roster.ejections().out() > 0) else { continue };
        for slot in roster.slots() {
            let Some(due) = slot.seat.breaker.next_check(now) else { continue };
            if due > now || asked.len() >= MAX_ASKED {
                // Where all places are taken, whoever ends wakes the task.
                next = Some(next.map_or(due.since(now), |next| next.min(due.since(now))));
                continue;
            }
            let instance = slot.instance.clone();
            let patience = patience(carrier, &instance);
            slot.seat.breaker.begin_check(now, patience);
            asked.spawn(ask(carrier.clone(), entry.clone(), slot.seat.breaker.clone(), instance, patience));
        }
    }
    next
}

fn patience(carrier: &Carrier, instance: &InstanceView) -> Duration {
    let usual = Duration::from_millis(carrier.settings.connect_timeout_ms);
    instance.instance.details.check().map_or(usual, Check::timeout).min(MAX_PATIENCE)
}

/// Asks one, and tells its breaker.
async fn ask(
    carrier: Arc<Carrier>,
    entry: Arc<Entry>,
    breaker: Arc<Breaker>,
    instance: InstanceView,
    patience: Duration,
) {
    let well = match Way::to(&instance, carrier.mesh.me()) {
        Way::Address(_) => Some(look(&instance, patience).await),
        Way::Tunnel(node, key) => {
            // The other node has its time to look, and the question and the answer theirs to travel.
            let limit = patience + Duration::from_millis(carrier.settings.connect_timeout_ms);
            let asking = async {
                let mut tunnel = carrier.mesh.open_tunnel(node, key, limit).await.ok()?;
                tunnel.write_all(&[Opens::Check as u8]).await.ok()?;
                tunnel.flush().await.ok()?;
                tunnel.read_u8().await.ok()
            };
            match timeout(limit, asking).await {
                Ok(Some(1)) => Some(true),
                Ok(Some(2)) => Some(false),
                Ok(Some(_)) => None,
                // A node that cannot be reached cannot bring requests either.
                Ok(None) | Err(_) => Some(false),
            }
        }
    };
    let counter = match well {
        Some(true) => &entry.checks.well,
        Some(false) => &entry.checks.ill,
        None => &entry.checks.unknown,
    };
    counter.fetch_add(1, Relaxed);
    if breaker.checked(carrier.clock.now(), well, clock::random()) {
        tracing::info!(instance = %instance.key, "an instance its breaker has taken out is well: the next request tries it");
    }
}

/// Whether an instance that can be reached from here is well: by its own check, or by whether it takes a connection.
async fn look(instance: &InstanceView, patience: Duration) -> bool {
    let kind = instance.instance.details.check().map_or(&CheckKind::Tcp, |check| &check.kind);
    matches!(timeout(patience, probe::probe(&instance.instance.address, kind)).await, Ok(Ok(())))
}

/// Answers another node that asks how an instance of this one is.
pub(crate) async fn answer<S: Stream>(mut client: Client<S>, carrier: &Carrier, tunnel: &Tunnel) {
    let verdict = match (find_owned(carrier, &tunnel.to), carrier.answered.try_acquire()) {
        (Ok(instance), Ok(_place)) => match look(&instance, patience(carrier, &instance)).await {
            true => 1,
            false => 2,
        },
        (Err(_), Ok(_)) => 2,
        (_, Err(_)) => 0,
    };
    // Whoever does not hear it is gone already.
    let _ = client.io.write_all(&[verdict]).await;
    let _ = client.io.shutdown().await;
}
