//! Connections nobody would send by mistake, drawn from a seed: mostly sound, here and there odd, and then spoilt.

use fastrand::Rng;

/// One of so many choices that could be odd is.
const ODD_ONE_IN: u8 = 14;
/// What bodies are made of: bytes that mean something to who takes them for something else.
const BODIES: [&[u8]; 6] = [
    b"hello",
    b"",
    b"0\r\n\r\n",
    b"GET /smuggled HTTP/1.1\r\nhost: orders\r\n\r\n",
    b"0\r\n\r\nPOST /smuggled HTTP/1.1\r\nhost: orders\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled",
];
/// Pieces that tell readers where something begins or ends.
const TELLING: [&[u8]; 16] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b"0",
    b"\0",
    b"\x0b",
    b"\xff",
    b";",
    b"-1",
    b"+",
    b"5\r\n",
];

/// Several requests by one connection.
pub(crate) fn requests(random: &mut Rng) -> Vec<u8> {
    let (mut bytes, count) = (Vec::new(), random.usize(1..=4));
    for n in 1..=count {
        let methods = ["POST", "GET", "PUT", "HEAD", "DELETE", "OPTIONS", "CONNECT", "post", "M-SEARCH"];
        let method = pick(random, &methods, 4);
        let target = pick(random, &["/a", "/a?b=c", "http://orders/a", "/a//b", "*", "/a#b", "a", "//b", "/%00"], 2);
        let version = pick(random, &["HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1"], 1);
        text(&mut bytes, &format!("{method} {target}{n} {version}"));
        end_line(random, &mut bytes);
        field(random, "host", "orders", &mut bytes);
        message(random, n == count, false, &mut bytes);
    }
    spoil(random, &mut bytes);
    bytes
}

/// What an instance says to one request, and perhaps more than it was asked.
pub(crate) fn answers(random: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + random.usize(..4) / 3 {
        if odd(random) {
            text(
                &mut bytes,
                pick(random, &["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n"], 2),
            );
        }
        let version = pick(random, &["HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2"], 1);
        let status = pick(
            random,
            &["200 OK", "404 Not Found", "204 No Content", "304 Not Modified", "101 Switch", "200", "99 x"],
            2,
        );
        text(&mut bytes, &format!("{version} {status}"));
        end_line(random, &mut bytes);
        let last = random.bool();
        message(random, last, true, &mut bytes);
    }
    spoil(random, &mut bytes);
    bytes
}

/// The same bytes, cut anywhere.
pub(crate) fn cut<'a>(random: &mut Rng, bytes: &'a [u8]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = (0..random.usize(..6)).map(|_| random.usize(..=bytes.len())).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// The fields, and the body they announce, more or less.
fn message(random: &mut Rng, last: bool, may_end_by_closing: bool, bytes: &mut Vec<u8>) {
    let mut body = Vec::new();
    (0..random.usize(..3)).for_each(|_| body.extend_from_slice(BODIES[random.usize(..BODIES.len())]));
    for _ in 0..random.usize(..3) {
        let name = pick(random, &["x-a", "accept", "cookie", "x_a", "X-A", "te", "upgrade", "expect", "keep-alive"], 5);
        let value = pick(random, &["1", "a, b", "", "trailers", "100-continue", "websocket", "\"q\"", "a\tb"], 3);
        field(random, name, value, bytes);
    }
    if last && random.u8(..3) > 0 {
        field(random, "connection", "close", bytes);
    } else if odd(random) {
        let value = pick(random, &["keep-alive", "upgrade", "close, x-a", "content-length", "transfer-encoding"], 2);
        field(random, "connection", value, bytes);
    }
    let length = body.len().to_string();
    match random.u8(..10) {
        0..4 if odd(random) => {
            let wrong =
                [format!("+{length}"), format!("{length}, {length}"), format!("0{length}"), format!("{length}1")];
            let at = random.usize(..wrong.len());
            field(random, "content-length", &wrong[at], bytes);
        }
        0..4 => field(random, "content-length", &length, bytes),
        4..8 => field(random, "transfer-encoding", "chunked", bytes),
        8 if odd(random) => {
            let codings =
                ["gzip, chunked", "chunked, chunked", "identity", "\x0bchunked", "Chunked", "chunked\r\n ", "x"];
            let at = random.usize(..codings.len());
            field(random, "transfer-encoding", codings[at], bytes);
        }
        8 if odd(random) => {
            field(random, "content-length", &length, bytes);
            let (name, value) = if random.bool() { ("content-length", "3") } else { ("transfer-encoding", "chunked") };
            field(random, name, value, bytes);
        }
        _ if may_end_by_closing => {}
        _ => return end_line(random, bytes),
    }
    let chunked = String::from_utf8_lossy(bytes).rsplit("\r\n\r\n").next().is_some_and(|head| head.contains("chunked"));
    end_line(random, bytes);
    if chunked { chunks(random, &body, bytes) } else { bytes.extend_from_slice(&body) }
}

fn chunks(random: &mut Rng, mut body: &[u8], bytes: &mut Vec<u8>) {
    while !body.is_empty() {
        let size = random.usize(1..=body.len());
        size_line(random, size, bytes);
        bytes.extend_from_slice(&body[..size]);
        end_line(random, bytes);
        body = &body[size..];
    }
    size_line(random, 0, bytes);
    if random.u8(..4) == 0 {
        let name = pick(random, &["x-sum", "x-b", "content-length", "host", "transfer-encoding", "x-starling-hops"], 2);
        field(random, name, "7", bytes);
    }
    end_line(random, bytes);
}

fn size_line(random: &mut Rng, size: usize, bytes: &mut Vec<u8>) {
    if odd(random) {
        let lines = [
            format!("0{size:x}"),
            format!("{size:x};a=b"),
            format!("{size:x} "),
            format!("0x{size:x}"),
            format!("+{size:x}"),
            format!("1000000000000000{size:x}"),
            format!("{size:x};a\n"),
        ];
        text(bytes, &lines[random.usize(..lines.len())]);
    } else {
        text(bytes, &format!("{size:x}"));
    }
    end_line(random, bytes);
}

fn field(random: &mut Rng, name: &str, value: &str, bytes: &mut Vec<u8>) {
    let colon =
        if odd(random) { pick(random, &[":", ":\t", ":  ", " : ", ": \t", ":\x0b", ":\r\n "], 4) } else { ": " };
    text(bytes, &format!("{name}{colon}{value}"));
    end_line(random, bytes);
}

fn end_line(random: &mut Rng, bytes: &mut Vec<u8>) {
    let end =
        if odd(random) && odd(random) { pick(random, &["\n", "\r", " \r\n", "\r\r\n", "\r\n\r\n"], 2) } else { "\r\n" };
    text(bytes, end);
}

/// Changes bytes without regard to what they mean; half of all connections are left as they are.
fn spoil(random: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..random.usize(..6).saturating_sub(2) {
        let at = random.usize(..bytes.len().max(1)).min(bytes.len());
        let until = at + random.usize(..=(bytes.len() - at).min(24));
        match random.u8(..6) {
            0 => drop(bytes.drain(at..until)),
            1 => {
                let (piece, to) = (bytes[at..until].to_vec(), random.usize(..=bytes.len()));
                bytes.splice(to..to, piece);
            }
            2 if at < bytes.len() => bytes[at] ^= 1 << random.u32(..8),
            3 => bytes.truncate(bytes.len() - (bytes.len() - at).min(40)),
            _ => {
                let piece = TELLING[random.usize(..TELLING.len())].iter().copied();
                bytes.splice(at..at, piece);
            }
        }
    }
}

fn odd(random: &mut Rng) -> bool {
    random.u8(..ODD_ONE_IN) == 0
}

/// One of the first `usual`, or, if it is to be odd, one of all.
fn pick<'a>(random: &mut Rng, of: &[&'a str], usual: usize) -> &'a str {
    let most = if odd(random) { of.len() } else { usual };
    of[random.usize(..most)]
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(text.as_bytes());
}
