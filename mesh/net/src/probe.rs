//! Probes of this host's instances: is something listening, does it answer well?
//!
//! One small task per probed instance does what its check says and reports every result; which results make a verdict
//! is the heart's business. Leases (TTL checks) need no probe.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use starling_core::id::InstanceKey;
use starling_core::observe::Exposition;
use starling_core::registry::{Address, Check, CheckKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// How many probes run at once; more wait their turn, so that a start with thousands of instances is no storm.
const MAX_IN_FLIGHT: usize = 64;
/// A new instance takes no traffic before its first good probe, so the first comes within this time...
const FIRST_PROBE_WITHIN: Duration = Duration::from_millis(200);
/// A status line is shorter than this; what is longer is not HTTP.
const MAX_STATUS_LINE: usize = 1_024;

/// The result of one probe: good, or bad with the reason.
pub(crate) type ProbeResult = (InstanceKey, Result<(), String>);

/// Figures of all probes; read by metrics.
#[derive(Debug, Default)]
pub(crate) struct ProbeFigures {
    pub(crate) good: AtomicU64,
    pub(crate) bad: AtomicU64,
    pub(crate) targets: AtomicU64,
}

impl ProbeFigures {
    /// Writes them.
    pub(crate) fn collect(&self, out: &mut Exposition) {
        out.family("starling_probes_total", "counter", "Health probes of this node's instances, by result.");
        out.sample("starling_probes_total", &[("result", "good")], self.good.load(Relaxed) as f64);
        out.sample("starling_probes_total", &[("result", "bad")], self.bad.load(Relaxed) as f64);
        out.single("starling_probe_targets", "gauge", "Instances being probed.", self.targets.load(Relaxed) as f64);
    }
}

/// Probes instances until told to stop. Dropping it stops all.
pub(crate) struct Prober {
    targets: HashMap<InstanceKey, Target>,
    results: mpsc::Sender<ProbeResult>,
    in_flight: Arc<Semaphore>,
    figures: Arc<ProbeFigures>,
}

struct Target {
    address: Address,
    check: Check,
    task: AbortHandle,
}

impl Prober {
    /// A prober that reports to `results`; a probe waits when nobody takes its result.
    pub(crate) fn new(results: mpsc::Sender<ProbeResult>) -> Self {
        let in_flight = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        Self { targets: HashMap::new(), results, in_flight, figures: Arc::default() }
    }

    /// What all probes came to.
    pub(crate) fn figures(&self) -> Arc<ProbeFigures> {
        self.figures.clone()
    }

    /// Begins to probe an instance, or goes on as told if its address or check has changed. Must run in a runtime.
    pub(crate) fn start(&mut self, key: InstanceKey, address: Address, check: Check) {
        if check.kind == CheckKind::Ttl {
            return self.stop(&key);
        }
        if self.targets.get(&key).is_some_and(|target| target.address == address && target.check == check) {
            return;
        }
        let probes = Probes {
            key: key.clone(),
            address: address.clone(),
            check: check.clone(),
            results: self.results.clone(),
            in_flight: self.in_flight.clone(),
            figures: self.figures.clone(),
        };
        let task = tokio::spawn(probes.run()).abort_handle();
        if let Some(before) = self.targets.insert(key, Target { address, check, task }) {
            before.task.abort();
        }
        self.figures.targets.store(self.targets.len() as u64, Relaxed);
    }

    /// Stops probing an instance. A result that is on its way may still arrive.
    pub(crate) fn stop(&mut self, key: &InstanceKey) {
        if let Some(target) = self.targets.remove(key) {
            target.task.abort();
        }
        self.figures.targets.store(self.targets.len() as u64, Relaxed);
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.targets.values().for_each(|target| target.task.abort());
    }
}

/// The probes of one instance.
struct Probes {
    key: InstanceKey,
    address: Address,
    check: Check,
    results: mpsc::Sender<ProbeResult>,
    in_flight: Arc<Semaphore>,
    figures: Arc<ProbeFigures>,
}

impl Probes {
    async fn run(self) {
        let interval = self.check.interval();
        // ...and the second somewhere within one interval: instances that came together are not probed together.
        let share = jitter(&self.key);
        let mut due = Instant::now() + FIRST_PROBE_WITHIN.min(interval).mul_f64(share);
        sleep_until(due).await;
        due += interval.mul_f64(0.1 + 0.9 * share);
        loop {
            // The semaphore is never closed.
            let Ok(permit) = self.in_flight.acquire().await else { return };
            let limit = self.check.timeout();
            let result = match timeout(limit, probe(&self.address, &self.check.kind)).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer from {} within {} ms", self.address, limit.as_millis())),
            };
            drop(permit);
            let count = if result.is_ok() { &self.figures.good } else { &self.figures.bad };
            count.fetch_add(1, Relaxed);
            if self.results.send((self.key.clone(), result)).await.is_err() {
                return;
            }
            sleep_until(due).await;
            // A probe that took longer than the interval is not followed by a burst.
            due = (due + interval).max(Instant::now());
        }
    }
}

/// Where in an interval an instance has its place, 0 to 1; the same after a restart.
fn jitter(key: &InstanceKey) -> f64 {
    f64::from(crc32fast::hash(key.to_string().as_bytes())) / f64::from(u32::MAX)
}

/// Makes one check, which takes as long as it takes. Of a lease there is nothing to ask but whether a connection is taken.
///
/// # Errors
/// What is wrong, in words.
pub async fn probe(address: &Address, kind: &CheckKind) -> Result<(), String> {
    let refused = |error: std::io::Error| format!("cannot connect to {address}: {error}");
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(refused)?;
    match kind {
        CheckKind::Http { path } => http_status(stream, address, path).await,
        CheckKind::Tcp | CheckKind::Ttl => Ok(()),
    }
}

/// Asks for the path and reads no more than the status line: the smallest HTTP client there is.
async fn http_status(mut stream: TcpStream, address: &Address, path: &str) -> Result<(), String> {
    let broke = |error: std::io::Error| format!("{address} broke off: {error}");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: starling-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(broke)?;
    let mut line = Vec::with_capacity(256);
    while !line.contains(&b'\n') && line.len() < MAX_STATUS_LINE {
        if stream.read_buf(&mut line).await.map_err(broke)? == 0 {
            break;
        }
    }
    let status = line.split(|byte| *byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
    match status.and_then(status_code) {
        Some(200..=299) => Ok(()),
        Some(code) => Err(format!("GET {path} at {address} answered {code}")),
        None if line.is_empty() => Err(format!("{address} closed the connection without an answer")),
        None => Err(format!("{address} does not speak HTTP/1.1")),
    }
}

fn status_code(line: &str) -> Option<u16> {
    let code = line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.trim_end();
    (code.len() == 3).then(|| code.parse().ok())?
}

#[cfg(test)]
mod tests {
    use starling_core::id::ServiceKey;
    use tokio::net::TcpListener;

    use super::*;

    fn key(instance: &str) -> InstanceKey {
        let service = ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() };
        InstanceKey { service, instance: instance.parse().unwrap() }
    }

    fn http() -> CheckKind {
        CheckKind::Http { path: "/health".into() }
    }

    fn every_100_ms(kind: CheckKind) -> Check {
        Check { interval_ms: 100, timeout_ms: 50, ..Check::new(kind) }
    }

    /// An application that answers every request with these bytes and then closes.
    async fn app(answer: &'static [u8]) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap_or(0) > 0 {}
                    assert!(request.starts_with(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:"));
                    let _ = stream.write_all(answer).await;
                });
            }
        });
        Address { host: "127.0.0.1".into(), port }
    }

    /// A port where connections are taken and nothing is ever said.
    async fn silent() -> (Address, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (Address { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() }, listener)
    }

    async fn closed() -> Address {
        silent().await.0
    }

    async fn said(address: &Address, kind: CheckKind) -> String {
        probe(address, &kind).await.unwrap_err()
    }

    #[tokio::test]
    async fn only_a_2xx_status_is_good() {
        let good = app(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        probe(&good, &http()).await.unwrap();
        assert!(said(&app(b"HTTP/1.1 503 Busy\r\n\r\n").await, http()).await.ends_with("answered 503"));
        assert!(said(&app(b"HTTP/1.1 302 Found\r\n\r\n").await, http()).await.ends_with("answered 302"));
    }

    #[tokio::test]
    async fn what_is_not_http_is_bad_and_read_only_so_far() {
        assert!(said(&app(b"SSH-2.0-hello\r\n").await, http()).await.contains("does not speak"));
        assert!(said(&app(&[b'x'; 100_000]).await, http()).await.contains("does not speak"));
        assert!(said(&app(b"").await, http()).await.contains("without an answer"));
    }

    #[tokio::test]
    async fn a_tcp_probe_only_connects() {
        let (address, _listener) = silent().await;
        probe(&address, &CheckKind::Tcp).await.unwrap();
        assert!(said(&closed().await, CheckKind::Tcp).await.contains("cannot connect to 127.0.0.1:"));
    }

    #[tokio::test]
    async fn an_instance_is_probed_again_and_again_until_stopped() {
        let (results, mut heard) = mpsc::channel(8);
        let mut prober = Prober::new(results);
        prober.start(key("good"), app(b"HTTP/1.1 200 OK\r\n\r\n").await, every_100_ms(http()));
        for _ in 0..3 {
            assert_eq!(heard.recv().await, Some((key("good"), Ok(()))));
        }
        prober.stop(&key("good"));
        drop(prober);
        while heard.recv().await.is_some() {} // ends only when no probe is left
    }

    #[tokio::test]
    async fn an_application_that_hangs_is_bad_in_time() {
        let (address, _listener) = silent().await;
        let (results, mut heard) = mpsc::channel(8);
        let mut prober = Prober::new(results);
        prober.start(key("hangs"), address, every_100_ms(http()));
        let (_, result) = heard.recv().await.unwrap();
        assert!(result.unwrap_err().contains("within 50 ms"));
    }

    #[tokio::test]
    async fn a_changed_address_takes_effect() {
        let (results, mut heard) = mpsc::channel(8);
        let mut prober = Prober::new(results);
        prober.start(key("moves"), closed().await, every_100_ms(http()));
        assert!(heard.recv().await.unwrap().1.is_err());
        prober.start(key("moves"), app(b"HTTP/1.1 200 OK\r\n\r\n").await, every_100_ms(http()));
        while heard.recv().await.unwrap().1.is_err() {}
        assert_eq!(prober.targets.len(), 1);
    }
}
