//! A tiny HTTP/1.1 client: one address, connections kept for the next request, a limit on everything.
//!
//! It repeats nothing: what fails here is counted as lost by those who use it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// The most idle connections kept.
const MAX_IDLE: usize = 64;
/// How long an idle connection is trusted; well below what any server here closes them after.
const IDLE_FOR: Duration = Duration::from_secs(10);
/// The largest answer read: far beyond any list in the demo.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;

/// Talks to one address.
pub(crate) struct Client {
    address: SocketAddr,
    idle: Mutex<VecDeque<(Instant, SendRequest<Full<Bytes>>)>>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Nothing came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    #[error("the connection to {0} broke: {1}")]
    Broken(SocketAddr, hyper::Error),
    #[error("the answer of {0} could not be read: {1}")]
    Body(SocketAddr, String),
    #[error("{0} did not answer within {1} ms")]
    TimedOut(SocketAddr, u128),
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::default() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request and reads the whole answer, within a time.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>, within: Duration) -> Result<Answer, NoAnswer> {
        match timeout(within, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(NoAnswer::TimedOut(self.address, within.as_millis())),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, NoAnswer> {
        let mut connection = self.connection().await?;
        let broken = |error| NoAnswer::Broken(self.address, error);
        let (head, body) = connection.send_request(request).await.map_err(broken)?.into_parts();
        let read = Limited::new(body, MAX_BODY_BYTES).collect().await;
        let body = read.map_err(|error| NoAnswer::Body(self.address, error.to_string()))?.to_bytes();
        self.keep(connection);
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, NoAnswer> {
        while let Some((since, mut idle)) = self.take() {
            if since.elapsed() < IDLE_FOR && idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let failed = |error| NoAnswer::Connect(self.address, error);
        let stream = TcpStream::connect(self.address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let broken = |error| NoAnswer::Broken(self.address, error);
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// The connection used last: the one least likely to have been closed meanwhile.
    fn take(&self) -> Option<(Instant, SendRequest<Full<Bytes>>)> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop_back()
    }

    fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() == MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back((Instant::now(), connection));
    }
}

impl Answer {
    /// A header as text; empty when it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The beginning of the body on one line, for people.
    pub(crate) fn excerpt(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
    }
}
