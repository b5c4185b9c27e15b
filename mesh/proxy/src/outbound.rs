//! The listener applications of this host send their requests to.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::pool::Gauge;
use crate::serve::{Door, Lifetime, serve};
use crate::stack::Carrier;

/// Pause after a failed accept: it is nearly always a lack of file descriptors, which only time mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until the proxy drains.
pub(crate) async fn run(carrier: Arc<Carrier>, listener: TcpListener, places: Arc<Semaphore>, mut lifetime: Lifetime) {
    loop {
        let accepted = tokio::select! {
            accepted = accept(&carrier, &listener, &places) => accepted,
            () = lifetime.draining() => return,
        };
        let Some((stream, place)) = accepted else { continue };
        let (carrier, lifetime) = (carrier.clone(), lifetime.clone());
        tokio::spawn(async move {
            let _place = place;
            let _counted = Gauge::count(&carrier.connections.outbound);
            serve(stream, &carrier, Door::Application, lifetime).await;
        });
    }
}

async fn accept(
    carrier: &Carrier,
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    if places.available_permits() == 0 {
        carrier.connections.accepts_delayed.fetch_add(1, Relaxed);
    }
    // The semaphore is never closed.
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Fails only on a socket that is broken already.
            let _ = stream.set_nodelay(true);
            Some((stream, place))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}
