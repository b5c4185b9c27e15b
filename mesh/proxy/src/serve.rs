//! Serving HTTP/1.1 on one connection until it, or the proxy, ends.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{mpsc, watch};

use crate::body::ReplyBody;
use crate::mesh::Stream;
use crate::settings::ProxySettings;

/// How far the proxy's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running,
    /// Nothing new is taken, requests in flight finish.
    Draining,
    /// Everything is dropped.
    Stopped,
}

/// What every task of the proxy holds: it hears of the end, and the end hears of it.
#[derive(Debug, Clone)]
pub(crate) struct Lifetime {
    phase: watch::Receiver<Phase>,
    _alive: mpsc::Sender<Infallible>,
}

impl Lifetime {
    pub(crate) fn new(phase: watch::Receiver<Phase>, alive: mpsc::Sender<Infallible>) -> Self {
        Self { phase, _alive: alive }
    }

    /// Returns when nothing new is to be taken.
    pub(crate) async fn draining(&mut self) {
        self.reached(Phase::Draining).await;
    }

    async fn reached(&mut self, phase: Phase) {
        // An error means that the proxy was dropped without being drained: that is the end too.
        let _ = self.phase.wait_for(|now| *now >= phase).await;
    }

    fn is_stopped(&self) -> bool {
        *self.phase.borrow() == Phase::Stopped || self.phase.has_changed().is_err()
    }
}

/// Answers the requests that come by `stream`.
pub(crate) async fn serve<S, F, R>(stream: S, settings: &ProxySettings, mut lifetime: Lifetime, answer: F)
where
    S: Stream,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ReplyBody>>,
{
    let service = service_fn(|request| {
        let answering = answer(request);
        async move { Ok::<_, Infallible>(answering.await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(settings.header_timeout_ms))
            .max_buf_size(settings.max_head_bytes)
            .max_header_size(settings.max_head_bytes)
            .max_headers(settings.max_headers)
            .serve_connection(TokioIo::new(stream), service)
    );
    {
        let mut draining = pin!(lifetime.draining());
        tokio::select! {
            biased;
            ended = connection.as_mut() => return log_end(ended),
            () = draining.as_mut() => {}
        }
    }
    if lifetime.is_stopped() {
        return;
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = connection.as_mut() => log_end(ended),
        () = lifetime.reached(Phase::Stopped) => {}
    }
}

fn log_end(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}
