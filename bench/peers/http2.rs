//! HTTP/2 and gRPC: a backend that answers both, and `h2load` (of nghttp2) as the load.

use std::net::SocketAddr;
use std::process::Command;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};

use crate::load::BODY_BYTES;
use crate::run::{CORE_OF_LOAD, Failure, HOST, Running};

/// Connections, and requests at a time on each.
pub(crate) const CONNECTIONS: u32 = 8;
pub(crate) const STREAMS: u32 = 8;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `GET`, answered with the usual body.
    Get,
    /// A unary call of gRPC: a message of 64 bytes, answered with one of 128 and a status in the trailers.
    Grpc,
}

/// Answers what comes: gRPC with gRPC, the rest with the usual body. Knows no more.
pub(crate) async fn backend() -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let is_grpc = request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
                    tokio::spawn(async move {
                        // An error here is a load that is over.
                        let _ = if is_grpc { answer_call(request, &mut respond).await } else { answer(&mut respond) };
                    });
                }
            });
        }
    });
    Ok(address)
}

type Respond = h2::server::SendResponse<Bytes>;

fn answer(respond: &mut Respond) -> Result<(), h2::Error> {
    let head = Response::builder().header("content-length", BODY_BYTES).body(()).expect("a valid head");
    respond.send_response(head, false)?.send_data(Bytes::from_static(&[b'x'; BODY_BYTES]), true)
}

async fn answer_call(request: http::Request<h2::RecvStream>, respond: &mut Respond) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let size = data?.len();
        body.flow_control().release_capacity(size)?;
    }
    let head = Response::builder().header("content-type", "application/grpc").body(()).expect("a valid head");
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(message(BODY_BYTES), false)?;
    let status = HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"))]);
    stream.send_trailers(status)
}

/// A message of gRPC: not compressed, so long, so many bytes.
fn message(bytes: usize) -> Bytes {
    let mut message = vec![0];
    message.extend_from_slice(&(bytes as u32).to_be_bytes());
    message.resize(5 + bytes, b'x');
    message.into()
}

/// Whether the load is there to be had.
pub(crate) fn is_installed() -> bool {
    Command::new("h2load").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// What one run of load found.
pub(crate) struct Outcome {
    pub(crate) rate: f64,
    /// Mean time of a request, in microseconds.
    pub(crate) mean_micros: f64,
    pub(crate) micros_each: f64,
    /// Share of its core that the proxy used, in percent.
    pub(crate) core: f64,
    pub(crate) failed: u64,
}

/// Sends so many requests as fast as they are answered.
pub(crate) fn load(running: &Running, kind: Kind, requests: u64) -> Result<Outcome, Failure> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), message(64))?;
    let mut command = Command::new("taskset");
    command.args(["-c", CORE_OF_LOAD, "h2load", "-t", "1", "-n", &requests.to_string()]);
    command.args(["-c", &CONNECTIONS.to_string(), "-m", &STREAMS.to_string(), "-H", &format!(":authority: {HOST}")]);
    if kind == Kind::Grpc {
        command.args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-d"]).arg(file.path());
    }
    command.arg(format!("http://{}/bench.Echo/Say", running.address));
    let (before, begun) = (running.cpu_seconds(), std::time::Instant::now());
    let output = command.output()?;
    let (used, took) = (running.cpu_seconds() - before, begun.elapsed().as_secs_f64());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = |line: &str, word: &str| -> Option<String> {
        let line = text.lines().find(|text| text.trim_start().starts_with(line))?;
        let mut words = line.split_whitespace().rev();
        words.find(|text| text.trim_end_matches(',') == word)?;
        words.next().map(str::to_owned)
    };
    let parsed = (|| {
        let rate: f64 = told("finished in", "req/s")?.parse().ok()?;
        let good: u64 = told("requests:", "succeeded")?.parse().ok()?;
        let mean = micros(text.lines().find(|line| line.starts_with("time for request:"))?.split_whitespace().nth(5)?)?;
        let micros_each = used * 1e6 / good.max(1) as f64;
        Some(Outcome { rate, mean_micros: mean, micros_each, core: used * 100.0 / took, failed: requests - good })
    })();
    parsed.ok_or_else(|| format!("h2load said something unexpected: {text}").into())
}

/// A time as h2load writes it: `12.3us`, `4.56ms`, `1.02s`.
fn micros(text: &str) -> Option<f64> {
    let (number, factor) = [("us", 1.0), ("ms", 1e3), ("s", 1e6)]
        .into_iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}
