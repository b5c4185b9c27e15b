//! Idle connections, and making new ones.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;

use crate::body::RequestBody;
use crate::mesh::Stream;
use crate::settings::ProxySettings;

/// The sending half of an HTTP/1.1 connection.
pub(crate) type Sender = SendRequest<RequestBody>;

/// How long to wait for a connection that has just given its last byte and is about to be idle.
const SETTLE: Duration = Duration::from_millis(20);
/// The most idle connections when nobody has said otherwise: a tunnel carries one request at a time.
const DEFAULT_MAX_IDLE: usize = 64;

/// The idle connections to one instance, newest last: the newest is the least likely to have been closed.
#[derive(Debug)]
pub(crate) struct Pool {
    idle: Mutex<Vec<Idle>>,
    max_idle: AtomicI64,
}

#[derive(Debug)]
struct Idle {
    sender: Sender,
    since: Instant,
}

impl Default for Pool {
    fn default() -> Self {
        Self { idle: Mutex::default(), max_idle: AtomicI64::new(DEFAULT_MAX_IDLE as i64) }
    }
}

impl Pool {
    /// Sets how many are kept.
    pub(crate) fn limit(&self, max_idle: usize) {
        self.max_idle.store(max_idle as i64, Relaxed);
    }

    /// The newest idle connection that works; older and closed ones are dropped on the way.
    pub(crate) async fn take(&self, idle_timeout: Duration) -> Option<Sender> {
        loop {
            let Idle { mut sender, since } = self.lock().pop()?;
            if sender.is_closed() || since.elapsed() >= idle_timeout {
                continue;
            }
            if sender.is_ready() || matches!(tokio::time::timeout(SETTLE, sender.ready()).await, Ok(Ok(()))) {
                return Some(sender);
            }
        }
    }

    /// Keeps a connection whose response has been read to its end.
    pub(crate) fn put(&self, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.lock();
        if (idle.len() as i64) < self.max_idle.load(Relaxed) {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self, idle_timeout: Duration) {
        self.lock().retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < idle_timeout);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Speaks HTTP/1.1 over a stream. The connection lives until its sender is dropped or either side closes it.
pub(crate) async fn handshake(
    stream: Box<dyn Stream>,
    settings: &ProxySettings,
    open: &Arc<Gauge>,
) -> Result<Sender, hyper::Error> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(settings.max_head_bytes)
        .max_header_size(settings.max_head_bytes)
        .max_headers(settings.max_headers)
        .handshake(TokioIo::new(stream))
        .await?;
    let counted = Gauge::count(open);
    tokio::spawn(async move {
        let _counted = counted;
        // Its errors reach whoever waits for a response; without one there is nobody to tell.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to an instance ended");
        }
    });
    Ok(sender)
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicI64);

/// One counted by a [`Gauge`] until dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Gauge>);

impl Gauge {
    pub(crate) fn count(gauge: &Arc<Gauge>) -> Counted {
        gauge.0.fetch_add(1, Relaxed);
        Counted(gauge.clone())
    }

    pub(crate) fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}
