//! A small backend and a small load generator, cheap enough that the sidecars are what is measured.

use std::io::{Read, Write};
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
    /// Latency in nanoseconds; when paced, counted from the moment a request was due.
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

/// Loads `target` with `GET /` for `host` over keep-alive connections, each of which sends its next request when it has
/// its answer: how much fits.
pub(crate) async fn saturate(target: SocketAddr, host: &str, connections: u32, time: Duration) -> Outcome {
    let request: Arc<[u8]> = request(host).into();
    let failed = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(closed_loop(target, request.clone(), failed.clone(), begun + time));
    }
    let mut latency = new_histogram();
    while let Some(done) = tasks.join_next().await {
        latency.add(done.expect("a load task does not panic")).expect("equal histograms add up");
    }
    Outcome { latency, failed: failed.load(Ordering::Relaxed), elapsed: begun.elapsed() }
}

async fn closed_loop(target: SocketAddr, request: Arc<[u8]>, failed: Arc<AtomicU64>, end: Instant) -> Histogram<u64> {
    let mut latency = new_histogram();
    let mut stream: Option<TcpStream> = None;
    while Instant::now() < end {
        if stream.is_none() {
            stream = TcpStream::connect(target).await.inspect(|s| drop(s.set_nodelay(true))).ok();
        }
        let begun = Instant::now();
        let good = match &mut stream {
            Some(open) => exchange(open, &request).await.unwrap_or(false),
            None => false,
        };
        if good {
            latency.saturating_record(begun.elapsed().as_nanos() as u64);
        } else {
            failed.fetch_add(1, Ordering::Relaxed);
            stream = None;
        }
    }
    latency
}

async fn exchange(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<bool> {
    stream.write_all(request).await?;
    let mut answer = Answer::default();
    loop {
        let read = stream.read(answer.space()).await?;
        if let Some(good) = answer.filled(read) {
            return Ok(good);
        }
    }
}

/// Loads `target` with so many requests a second over keep-alive connections, whether or not earlier ones are answered
/// in time. One thread a connection: an asynchronous runtime's timers tick in milliseconds, more than a sidecar adds.
pub(crate) fn pace(target: SocketAddr, host: &str, connections: u32, rate: u32, time: Duration) -> Outcome {
    let request = request(host);
    let failed = AtomicU64::new(0);
    let gap = Duration::from_secs_f64(f64::from(connections) / f64::from(rate));
    let begun = Instant::now();
    let mut latency = new_histogram();
    std::thread::scope(|scope| {
        let (request, failed) = (&request[..], &failed);
        let connect = |number: u32| {
            let first = begun + gap.mul_f64(f64::from(number) / f64::from(connections));
            scope.spawn(move || open_loop(target, request, failed, first, gap, begun + time))
        };
        let threads: Vec<_> = (0..connections).map(connect).collect();
        for thread in threads {
            latency.add(thread.join().expect("a load thread does not panic")).expect("equal histograms add up");
        }
    });
    Outcome { latency, failed: failed.load(Ordering::Relaxed), elapsed: begun.elapsed() }
}

fn open_loop(
    target: SocketAddr,
    request: &[u8],
    failed: &AtomicU64,
    first: Instant,
    gap: Duration,
    end: Instant,
) -> Histogram<u64> {
    let mut latency = new_histogram();
    let mut stream: Option<std::net::TcpStream> = None;
    let mut due = first;
    while due < end {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if stream.is_none() {
            stream = std::net::TcpStream::connect(target).inspect(|s| drop(s.set_nodelay(true))).ok();
        }
        let good = match &mut stream {
            Some(open) => blocking_exchange(open, request).unwrap_or(false),
            None => false,
        };
        if good {
            latency.saturating_record(due.elapsed().as_nanos() as u64);
        } else {
            failed.fetch_add(1, Ordering::Relaxed);
            stream = None;
        }
        due += gap;
    }
    latency
}

fn blocking_exchange(stream: &mut std::net::TcpStream, request: &[u8]) -> std::io::Result<bool> {
    stream.write_all(request)?;
    let mut answer = Answer::default();
    loop {
        let read = stream.read(answer.space())?;
        if let Some(good) = answer.filled(read) {
            return Ok(good);
        }
    }
}

/// Asks once over a connection of its own; `None` unless the answer is the backend's.
#[allow(dead_code)] // not every benchmark waits for somebody to answer
pub(crate) fn once(target: SocketAddr, host: &str) -> Option<()> {
    let mut stream = std::net::TcpStream::connect(target).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    blocking_exchange(&mut stream, &request(host)).ok()?.then_some(())
}

fn request(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes()
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("3 digits up to a minute are valid bounds")
}

/// One answer as it comes in.
struct Answer {
    buffer: [u8; 4096],
    filled: usize,
}

impl Default for Answer {
    fn default() -> Self {
        Self { buffer: [0; 4096], filled: 0 }
    }
}

impl Answer {
    fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// Takes note of so many more bytes. Done when the whole answer is there: true when it is the backend's 200.
    fn filled(&mut self, read: usize) -> Option<bool> {
        self.filled += read;
        let text = &self.buffer[..self.filled];
        let head = text.windows(4).position(|window| window == b"\r\n\r\n");
        match head {
            _ if read == 0 => Some(false),
            Some(_) if !text.starts_with(b"HTTP/1.1 200") => Some(false),
            Some(head) if text.len() >= head + 4 + BODY_BYTES => Some(true),
            _ => None,
        }
    }
}
