//! The listener: accepts connections up to a limit, serves HTTP/1.1 on each, and ends without cutting answers short.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use starling_core::observe::MetricSource;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::context::{Context, Shared};
use crate::impatient::ImpatientStream;
use crate::port::MeshPort;
use crate::routes::router;
use crate::settings::ApiSettings;

/// The control surface, bound to its address.
pub struct Api {
    listener: TcpListener,
    address: SocketAddr,
    pub(crate) context: Shared,
}

/// The control surface could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Its address could not be taken.
    #[error(
        "the API cannot listen on {address}: {source}; is another node running here? Choose another address with \
         api.listen in the settings"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Its settings contradict themselves.
    #[error("settings of the API: {0}")]
    Settings(String),
}

impl Api {
    /// Takes the address. `metrics` are shown by `/metrics` besides the control surface's own; `ready` is what
    /// `/readyz` answers.
    ///
    /// # Errors
    /// [`BindError`] when the settings are wrong, or the address is taken or not this host's.
    pub async fn bind<M: MeshPort>(
        settings: ApiSettings,
        mesh: M,
        metrics: Vec<Arc<dyn MetricSource>>,
        ready: Arc<AtomicBool>,
    ) -> Result<Api, BindError> {
        let listener = TcpListener::bind(settings.listen).await.and_then(TcpListener::into_std);
        let listener = listener.map_err(|source| BindError::Listen { address: settings.listen, source })?;
        Self::on(listener, settings, mesh, metrics, ready)
    }

    /// As [`Self::bind`], on a listener that is open already and does not block.
    ///
    /// # Errors
    /// [`BindError`] when the settings are wrong, or the listener cannot be used.
    pub fn on<M: MeshPort>(
        listener: std::net::TcpListener,
        settings: ApiSettings,
        mesh: M,
        metrics: Vec<Arc<dyn MetricSource>>,
        ready: Arc<AtomicBool>,
    ) -> Result<Api, BindError> {
        settings.check().map_err(BindError::Settings)?;
        let wrong = |source| BindError::Listen { address: settings.listen, source };
        let listener = TcpListener::from_std(listener).map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "the API is not on loopback: whoever reaches it can change the mesh");
        }
        Ok(Api { listener, address, context: Context::new(settings, Arc::new(mesh), metrics, ready) })
    }

    /// The address it listens on, with the port the system chose if the settings said 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` ends; then accepts nothing new, answers waiting queries, lets each connection that has been
    /// accepted bring one more request within a second, and gives all in flight [`ApiSettings::drain_timeout_ms`] to
    /// finish.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let limit = self.context.settings.max_connections.min(Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(limit));
        let router = router(Arc::clone(&self.context));
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Most often the process is out of files; accepting again at once would only turn in circles.
                    tracing::warn!(%error, "the API cannot accept connections");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => drop(connections.spawn(connection(stream, router.clone(), self.context.clone(), place))),
                Err(_) => {
                    self.context.counters.connections(|counts| counts.refused += 1);
                    connections.spawn(refuse(stream));
                }
            }
        }
        drop(self.listener);
        self.context.stopping.send_replace(true);
        let drain = async { while connections.join_next().await.is_some() {} };
        if timeout(self.context.settings.drain_timeout(), drain).await.is_err() {
            tracing::warn!("API requests were still in flight when the node stopped");
        }
    }
}

/// Serves one connection until either side closes it, or the node stops and its request is answered.
async fn connection(stream: TcpStream, router: Router, context: Shared, _place: OwnedSemaphorePermit) {
    context.counters.connections(|counts| {
        counts.open += 1;
        counts.accepted += 1;
    });
    let _open = Open(&context);
    // Small answers, asked for one at a time: waiting to fill a packet only costs.
    let _ = stream.set_nodelay(true);
    let stream = ImpatientStream::new(stream, context.settings.write_timeout());
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(context.settings.idle_timeout())
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = pin!(served);
    let mut stopping = context.stopping.subscribe();
    let ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        () = async { drop(stopping.wait_for(|stopping| *stopping).await) } => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => match timeout(LAST_REQUEST, served.as_mut()).await {
            Ok(ended) => ended,
            Err(_) => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        },
    };
    if let Err(error) = ended {
        if is_stalled(&error) {
            context.counters.connections(|counts| counts.stalled += 1);
        }
        tracing::debug!(%error, "an API connection ended early");
    }
}

/// Whether a connection ended because a write made no progress. A head that does not come is another kind of error.
fn is_stalled(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut)
}

/// One connection too many: says so, in time bounded.
async fn refuse(mut stream: TcpStream) {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{TOO_MANY}",
        TOO_MANY.len()
    );
    let _ = timeout(REFUSE_WITHIN, async {
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
        // Closing with its request unread would reset the connection, and the answer with it.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
}

/// Counts a connection as open as long as it lives.
struct Open<'a>(&'a Context);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.counters.connections(|counts| counts.open -= 1);
    }
}

/// The most bytes of a request's head, query included.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// How long a connection is kept for one more request when the node stops: whoever is just sending one gets an answer that
/// says `connection: close`, and not a connection that is gone.
const LAST_REQUEST: Duration = Duration::from_secs(1);
/// How long nothing is accepted after accepting failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a refused connection may take to hear that.
const REFUSE_WITHIN: Duration = Duration::from_millis(200);
const TOO_MANY: &str =
    r#"{"error":"too many connections","hint":"close idle ones, or raise max_connections in the settings"}"#;
