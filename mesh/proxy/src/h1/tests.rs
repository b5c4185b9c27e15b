//! Heads nobody would write: read without a panic, and what is sent on means to another reader what it meant here.

#![allow(clippy::print_stdout)] // a randomised test says its seed first

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use super::request::{Request, Rules};
use super::response::{Asked, Response};
use super::{BodyReader, Framing};
use crate::settings::ProxySettings;

const REQUESTS: [&str; 6] = [
    "GET / HTTP/1.1\r\nhost: orders.mesh\r\n\r\n",
    "POST /a?b=c HTTP/1.1\r\nHost: orders\r\nContent-Length: 11\r\nConnection: close, x-a\r\nX-A: 1\r\n\r\n",
    "PUT http://u@orders.mesh:80/x HTTP/1.1\r\nhost: other\r\ntransfer-encoding: chunked\r\nTE: trailers\r\n\r\n",
    "GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n",
    "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nexpect: 100-continue\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: a\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
];
const RESPONSES: [&str; 4] = [
    "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ndate: x\r\n\r\n",
    "HTTP/1.1 404 \r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
    "HTTP/1.0 204 No Content\r\nx-starling-reason: not_here: no\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
];
const CHUNKED: &str = "5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nx: y\r\n\r\n";
/// Pieces that parsers have stumbled over.
const STONES: [&str; 14] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    ":",
    ",",
    "content-length: 3\r\n",
    "transfer-encoding: chunked\r\n",
    "transfer-encoding: identity\r\n",
    "host: b\r\n",
    "\x0b",
    "\u{ff}",
];

fn seed() -> u64 {
    let seed = std::env::var("STARLING_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("STARLING_SEED={seed}");
    seed
}

/// One of `sources` with some of it taken away, doubled, or replaced.
fn mutated(rng: &mut fastrand::Rng, sources: &[&str]) -> Vec<u8> {
    let mut bytes = sources[rng.usize(..sources.len())].as_bytes().to_vec();
    for _ in 0..rng.usize(0..4) {
        let at = rng.usize(..=bytes.len());
        let to = rng.usize(at..=bytes.len().min(at + 12));
        match rng.u8(..5) {
            0 => drop(bytes.drain(at..to)),
            1 => drop(bytes.splice(at..at, STONES[rng.usize(..STONES.len())].bytes())),
            2 if at < bytes.len() => bytes[at] = rng.u8(..),
            3 => {
                let piece = bytes[at..to].to_vec();
                let where_to = rng.usize(..=bytes.len());
                drop(bytes.splice(where_to..where_to, piece));
            }
            _ => bytes.truncate(to.max(1)),
        }
    }
    bytes
}

fn read(data: &[u8]) -> Option<(Request, Vec<u8>, Vec<u8>)> {
    let (mut out, mut host) = (Vec::new(), Vec::new());
    let (settings, caller) = (ProxySettings::default(), "n1".parse().unwrap());
    let rules = Rules { settings: &settings, caller: &caller, caller_service: None, forward: None, counts_hop: true };
    let request = Request::read(data, &rules, &mut out, &mut host).ok().flatten()?;
    Some((request, out, host))
}

#[test]
fn whatever_comes_is_read_without_a_panic_and_what_is_sent_on_reads_the_same_again() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut accepted = 0;
    for _ in 0..30_000 {
        let bytes = mutated(&mut rng, &REQUESTS);
        let Some((request, out, host)) = read(&bytes) else { continue };
        accepted += 1;
        let shown = || String::from_utf8_lossy(&bytes).into_owned();
        let (again, _, host_again) = read(&out).unwrap_or_else(|| panic!("{:?} became {:?}", shown(), out));
        assert_eq!(again.length, out.len(), "{:?}", shown());
        assert_eq!(
            (&again.method, again.framing, host_again),
            (&request.method, request.framing, host),
            "{:?}",
            shown()
        );
    }
    assert!(accepted > 3_000, "{accepted} of them made sense");
    let settings = ProxySettings::default();
    for _ in 0..30_000 {
        let asked = Asked { head_only: rng.bool(), upgrades: rng.bool(), http_10: rng.bool() };
        let mut out = Vec::new();
        let _ = Response::read(&mutated(&mut rng, &RESPONSES), &settings, &asked, &mut out);
        let body = mutated(&mut rng, &[CHUNKED]);
        let mut reader = BodyReader::new(Framing::Chunked);
        let whole = reader.take(&body);
        // However it is cut, it ends at the same byte and for the same reason.
        let (mut pieces, mut taken) = (BodyReader::new(Framing::Chunked), 0);
        let cut = rng.usize(..=body.len());
        let in_two = pieces.take(&body[..cut]).and_then(|n| {
            taken = n;
            pieces.take(&body[n..]).map(|more| taken + more)
        });
        assert_eq!(whole, in_two, "{:?} cut at {cut}", String::from_utf8_lossy(&body));
    }
}

#[tokio::test]
async fn another_reader_finds_the_same_request_and_the_same_body_in_what_is_sent_on() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut compared = 0;
    while compared < 400 {
        let bytes = mutated(&mut rng, &REQUESTS);
        let Some((request, out, _)) = read(&bytes) else { continue };
        let (sent, expected) = match request.framing {
            Framing::Length(length) if length <= 64 => (vec![b'x'; length as usize], vec![b'x'; length as usize]),
            Framing::Length(_) => continue,
            Framing::Chunked => (CHUNKED.as_bytes().to_vec(), b"hello world".to_vec()),
            Framing::Empty | Framing::UntilClose => (Vec::new(), Vec::new()),
        };
        compared += 1;
        let heard = hears(&[out.as_slice(), &sent, b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n"].concat()).await;
        let first = (request.method.to_string(), request.path(&out).to_owned(), expected);
        let next = ("GET".to_owned(), "/next".to_owned(), Vec::new());
        // After a request to switch protocols nothing more is heard as a request.
        let all = if request.upgrades { vec![first] } else { vec![first, next] };
        assert!(heard.starts_with(&all), "{:?}: {heard:?}", String::from_utf8_lossy(&bytes));
    }
}

/// The requests hyper hears: method, target, body.
async fn hears(bytes: &[u8]) -> Vec<(String, String, Vec<u8>)> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let list = heard.clone();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let list = list.clone();
        async move {
            let (method, target) = (request.method().to_string(), request.uri().to_string());
            if let Ok(body) = request.into_body().collect().await {
                list.lock().unwrap().push((method, target, body.to_bytes().to_vec()));
            }
            Ok::<_, Infallible>(hyper::Response::new(String::new()))
        }
    });
    near.write_all(bytes).await.unwrap();
    near.shutdown().await.unwrap();
    let serving =
        hyper::server::conn::http1::Builder::new().half_close(true).serve_connection(TokioIo::new(far), service);
    let _ = serving.await;
    let heard = heard.lock().unwrap();
    heard.clone()
}
