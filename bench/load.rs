//! A small backend and a small load generator, cheap enough that the sidecars are what is measured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The size of every answer's body, in bytes.
pub(crate) const BODY_BYTES: usize = 128;

/// Answers every request head on every connection with the same bytes; knows no more HTTP than that.
pub(crate) async fn backend() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let answer: Arc<[u8]> =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY_BYTES}\r\n\r\n{}", "x".repeat(BODY_BYTES))
                .into_bytes()
                .into();
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer.clone()));
        }
    });
    Ok(address)
}

async fn serve(mut stream: TcpStream, answer: Arc<[u8]>) {
    let _ = stream.set_nodelay(true);
    let (mut buffer, mut filled) = ([0u8; 8192], 0);
    loop {
        match stream.read(&mut buffer[filled..]).await {
            Ok(read) if read > 0 => filled += read,
            _ => return,
        }
        while let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            buffer.copy_within(end + 4..filled, 0);
            filled -= end + 4;
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
        if filled == buffer.len() {
            return;
        }
    }
}

/// What a run of load found.
pub(crate) struct Outcome {
    /// Latency in nanoseconds; in an open loop counted from the moment a request was due.
    pub(crate) latency: Histogram<u64>,
    /// Answers that were not 200, and requests without an answer.
    pub(crate) failed: u64,
    /// How long it took.
    pub(crate) elapsed: Duration,
}

impl Outcome {
    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.latency.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// A quantile of the latency in microseconds.
    pub(crate) fn micros(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1_000.0
    }
}

/// How requests are paced.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// Each connection sends the next request when it has its answer.
    Closed,
    /// This many requests a second over all connections, whether or not earlier ones are answered in time.
    Open(u32),
}

/// Loads `target` with `GET /` for `host` over keep-alive connections.
pub(crate) async fn run(target: SocketAddr, host: &str, connections: u32, pace: Pace, time: Duration) -> Outcome {
    let request: Arc<[u8]> = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes().into();
    let failed = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..connections {
        let (request, failed) = (request.clone(), failed.clone());
        tasks.spawn(async move {
            let gap = match pace {
                Pace::Closed => None,
                Pace::Open(rate) => Some(Duration::from_secs_f64(f64::from(connections) / f64::from(rate))),
            };
            let first = begun + gap.unwrap_or_default().mul_f64(f64::from(number) / f64::from(connections));
            connection(target, &request, &failed, first, gap, begun + time).await
        });
    }
    let mut latency = new_histogram();
    while let Some(done) = tasks.join_next().await {
        latency.add(done.expect("a load task does not panic")).expect("equal histograms add up");
    }
    Outcome { latency, failed: failed.load(Ordering::Relaxed), elapsed: begun.elapsed() }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("3 digits up to a minute are valid bounds")
}

async fn connection(
    target: SocketAddr,
    request: &[u8],
    failed: &AtomicU64,
    first: Instant,
    gap: Option<Duration>,
    end: Instant,
) -> Histogram<u64> {
    let mut latency = new_histogram();
    let mut stream: Option<TcpStream> = None;
    let mut due = first;
    while Instant::now() < end && due < end {
        if gap.is_some() {
            tokio::time::sleep_until(due.into()).await;
        }
        let begun = if gap.is_some() { due } else { Instant::now() };
        if stream.is_none() {
            stream = TcpStream::connect(target).await.inspect(|s| drop(s.set_nodelay(true))).ok();
        }
        let good = match &mut stream {
            Some(open) => exchange(open, request).await.unwrap_or(false),
            None => false,
        };
        if good {
            latency.saturating_record(begun.elapsed().as_nanos() as u64);
        } else {
            failed.fetch_add(1, Ordering::Relaxed);
            stream = None;
        }
        due += gap.unwrap_or_default();
    }
    latency
}

/// One request and its answer; false when the answer is not a 200 of the backend's.
async fn exchange(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<bool> {
    stream.write_all(request).await?;
    let (mut buffer, mut filled) = ([0u8; 4096], 0);
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(false);
        }
        filled += read;
        if let Some(head) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            let good = buffer.starts_with(b"HTTP/1.1 200");
            if !good || filled >= head + 4 + BODY_BYTES {
                return Ok(good);
            }
        }
    }
}
