//! Heads of messages between HTTP/2 and the HTTP/1.1 text the rest of the sidecar reads (RFC 9113, section 8).
//!
//! What comes in text has passed `h1::request` or `h1::response` already, and what goes out in text will: nothing is
//! taken on trust here that another reader could read differently. `h2` itself resets streams whose heads break the rules
//! (names in upper case, fields of one connection, pseudo fields missing, doubled or late, a `te` other than
//! `trailers`, a length that is not the body's); a value cannot hold CR, LF or NUL.

use bytes::Bytes;
use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{self, PathAndQuery, Uri};
use http::{Method, Request, Response, StatusCode, request, response};

use crate::grpc;
use crate::h1::Framing;
use crate::h1::fields::{self, Field, field, is_trailer};
use crate::reason;

/// The message makes no sense; the stream ends with PROTOCOL_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// How a body is framed in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// There is none.
    None,
    /// So many bytes, by the message's own word or because all have come.
    Length(u64),
    /// Nobody knows yet; trailers may follow.
    Chunked,
}

pub(super) fn map_is_grpc(fields: &HeaderMap) -> bool {
    fields.get(header::CONTENT_TYPE).is_some_and(|value| grpc::is_grpc(value.as_bytes()))
}

/// The one length a message states.
pub(super) fn stated_length(fields: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut stated = fields.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = stated.next() else { return Ok(None) };
    if stated.next().is_some() {
        return Err(Malformed("several content-length fields"));
    }
    fields::number(first.as_bytes()).map(Some).ok_or(Malformed("content-length is not a number"))
}

/// What a stream becomes that begins with CONNECT, once that is granted: bytes both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To what its target names (RFC 9113, section 8.5).
    Target,
    /// In the WebSocket protocol (RFC 8441); HTTP/1.1 asks for that by an upgrade.
    WebSocket,
}

impl Way {
    /// What a request asks for, if it asks for a way.
    ///
    /// # Errors
    /// When it is in a protocol there is no way in.
    pub(super) fn asked(method: &Method, protocol: Option<&Protocol>) -> Result<Option<Self>, NoSuchWay> {
        match (method == Method::CONNECT, protocol.map(Protocol::as_str)) {
            (false, _) => Ok(None),
            (true, None) => Ok(Some(Self::Target)),
            (true, Some("websocket")) => Ok(Some(Self::WebSocket)),
            (true, Some(_)) => Err(NoSuchWay),
        }
    }

    /// Whether the text grants it; makes of it what the client is told. In HTTP/2 any success grants the way, in an upgrade
    /// only one word does.
    pub(super) fn granted(self, message: &mut Response<()>) -> bool {
        let status = message.status();
        match self {
            Self::Target => status.is_success(),
            Self::WebSocket if status == StatusCode::SWITCHING_PROTOCOLS => {
                *message.status_mut() = StatusCode::OK;
                message.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
                true
            }
            Self::WebSocket => {
                if status.is_success() {
                    *message.status_mut() = StatusCode::BAD_GATEWAY;
                    let why = HeaderValue::from_static("unsupported: the instance did not switch to WebSocket");
                    message.headers_mut().insert(reason::REASON, why);
                }
                false
            }
        }
    }
}

/// A protocol nobody here carries.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoSuchWay;

/// Writes the head of a request for a way as text. No other request can follow it.
///
/// # Errors
/// As [`write_request`].
pub(super) fn write_way(way: Way, parts: &request::Parts, out: &mut Vec<u8>) -> Result<(), Malformed> {
    match way {
        Way::Target => {
            let target = parts.uri.authority().ok_or(Malformed("CONNECT without :authority"))?.as_str().as_bytes();
            out.extend_from_slice(b"CONNECT ");
            out.extend_from_slice(target);
            out.extend_from_slice(b" HTTP/1.1\r\n");
            fields::write(out, b"connection", b"close");
        }
        Way::WebSocket => {
            out.extend_from_slice(b"GET ");
            out.extend_from_slice(parts.uri.path_and_query().map_or("/", PathAndQuery::as_str).as_bytes());
            out.extend_from_slice(b" HTTP/1.1\r\n");
            fields::write(out, b"connection", b"upgrade, close");
            fields::write(out, b"upgrade", b"websocket");
            if !parts.headers.contains_key(header::SEC_WEBSOCKET_KEY) {
                fields::write(out, b"sec-websocket-key", &websocket_key());
            }
        }
    }
    write_fields(parts, out)?;
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Sixteen bytes nobody foresees, as HTTP/1.1 wants them of a client of WebSocket: base64 (RFC 6455, section 4.1). HTTP/2 has
/// no such thing, since nobody can be made to believe in its frames by accident.
fn websocket_key() -> [u8; 24] {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut key = [b'='; 24];
    key[..21].fill_with(|| DIGITS[fastrand::usize(..DIGITS.len())]);
    // The last digit has two bits of the sixteen bytes.
    key[21] = DIGITS[fastrand::usize(..4) * 16];
    key
}

/// Writes a request's head as text.
///
/// # Errors
/// When its host is stated twice and differently.
pub(super) fn write_request(parts: &request::Parts, body: Body, out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(parts.uri.path_and_query().map_or("/", PathAndQuery::as_str).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_fields(parts, out)?;
    finish(body, out);
    Ok(())
}

/// Writes the fields of a request that are the same in both, the host among them.
fn write_fields(parts: &request::Parts, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let fields = &parts.headers;
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    for host in fields.get_all(header::HOST) {
        // RFC 9113, section 8.3.1: whoever reads the other one would serve another site.
        if authority.is_some_and(|authority| !authority.eq_ignore_ascii_case(host.as_bytes())) {
            return Err(Malformed("host differs from :authority"));
        }
    }
    match authority {
        Some(authority) => fields::write(out, b"host", authority),
        // As many as there are: the stack refuses more than one.
        None => fields.get_all(header::HOST).iter().for_each(|host| fields::write(out, b"host", host.as_bytes())),
    }
    for (name, value) in fields {
        match field(name.as_str()) {
            Field::Host | Field::ContentLength => {}
            _ if is_of_connection(name.as_str()) || name == header::COOKIE => {}
            _ => fields::write(out, name.as_str().as_bytes(), value.as_bytes()),
        }
    }
    write_cookies(fields, out);
    Ok(())
}

/// HTTP/2 may split cookies into fields; HTTP/1.1 has one (RFC 9113, section 8.2.3).
fn write_cookies(fields: &HeaderMap, out: &mut Vec<u8>) {
    let mut cookies = fields.get_all(header::COOKIE).iter();
    let Some(first) = cookies.next() else { return };
    out.extend_from_slice(b"cookie: ");
    out.extend_from_slice(first.as_bytes());
    for more in cookies {
        out.extend_from_slice(b"; ");
        out.extend_from_slice(more.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a response's head as text.
pub(super) fn write_response(parts: &response::Parts, body: Body, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(parts.status.as_str().as_bytes());
    out.extend_from_slice(b" \r\n");
    for (name, value) in &parts.headers {
        let framing = matches!(field(name.as_str()), Field::ContentLength);
        if !framing && !is_of_connection(name.as_str()) {
            fields::write(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    finish(body, out);
}

fn finish(body: Body, out: &mut Vec<u8>) {
    match body {
        Body::None => {}
        Body::Length(length) => fields::write_number(out, b"content-length", length),
        Body::Chunked => fields::write(out, b"transfer-encoding", b"chunked"),
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes what ends a chunked body.
pub(super) fn write_trailers(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if is_trailer(name.as_str()) {
            fields::write(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Reads the trailers in text, the empty line at their end included. `None` when there are none.
///
/// # Errors
/// When a line is no field, or there are more than `most`.
pub(super) fn read_trailers(text: &[u8], most: usize) -> Result<Option<HeaderMap>, Malformed> {
    if text == b"\r\n" {
        return Ok(None);
    }
    let mut room = vec![httparse::EMPTY_HEADER; most];
    let Ok(httparse::Status::Complete((_, lines))) = httparse::parse_headers(text, &mut room) else {
        return Err(Malformed("the trailers cannot be read"));
    };
    let mut trailers = HeaderMap::with_capacity(lines.len());
    for line in lines.iter().filter(|line| is_trailer(line.name)) {
        append(&mut trailers, line)?;
    }
    Ok(Some(trailers))
}

/// A head that was read from text.
#[derive(Debug)]
pub(super) struct Head<T> {
    pub(super) message: T,
    pub(super) framing: Framing,
    /// How long it was.
    pub(super) length: usize,
}

/// The beginning of a head that did not come whole; nearly always nothing.
#[derive(Default)]
pub(super) struct Pieces(Vec<u8>);

/// A head, and the text that came behind it.
pub(super) type Whole<'a, T> = (Head<T>, [&'a [u8]; 2]);

impl Pieces {
    /// How much of the text in `parts` has been taken, and the head once `read` finds it whole.
    ///
    /// # Errors
    /// What `read` says.
    pub(super) fn take<'a, T>(
        &mut self,
        parts: [&'a [u8]; 2],
        read: impl Fn(&[u8]) -> Result<Option<Head<T>>, Malformed>,
    ) -> Result<(usize, Option<Whole<'a, T>>), Malformed> {
        let before = self.0.len();
        if before == 0
            && let Some(head) = read(parts[0])?
        {
            let length = head.length;
            return Ok((length, Some((head, [&parts[0][length..], parts[1]]))));
        }
        self.0.extend_from_slice(parts[0]);
        self.0.extend_from_slice(parts[1]);
        let Some(head) = read(&self.0)? else { return Ok((self.0.len() - before, None)) };
        self.0.clear();
        // What came behind it is taken another time.
        Ok((head.length - before, Some((head, [&[], &[]]))))
    }
}

/// Reads a response's head, as the sidecar writes it for its clients; `None` until all of it is there.
///
/// # Errors
/// When HTTP/2 has no way to say it.
pub(super) fn read_response(
    text: &[u8],
    head_only: bool,
    most: usize,
) -> Result<Option<Head<Response<()>>>, Malformed> {
    fields::with_room(most + OWN_FIELDS, |room| {
        let mut parsed = httparse::Response::new(&mut []);
        let read = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, text, room);
        let length = match read {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Malformed("the response cannot be read")),
        };
        let status = StatusCode::from_u16(parsed.code.unwrap_or(0)).map_err(|_| Malformed("no such status"))?;
        let gathered = gather(parsed.headers)?;
        let bare = head_only || status.is_informational() || matches!(status.as_u16(), 204 | 304);
        let framing = if bare { Framing::Empty } else { gathered.framing.unwrap_or(Framing::Empty) };
        let mut message = Response::new(());
        *message.status_mut() = status;
        *message.headers_mut() = gathered.fields;
        Ok(Some(Head { message, framing, length }))
    })
}

/// Reads a request's head, as the sidecar writes it for instances; `None` until all of it is there.
///
/// # Errors
/// When HTTP/2 has no way to say it.
pub(super) fn read_request(text: &[u8], most: usize) -> Result<Option<Head<Request<()>>>, Malformed> {
    fields::with_room(most + OWN_FIELDS, |room| {
        let mut parsed = httparse::Request::new(&mut []);
        let read = httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, text, room);
        let length = match read {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Malformed("the request cannot be read")),
        };
        let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes());
        let method = method.map_err(|_| Malformed("the method is no token"))?;
        let mut gathered = gather(parsed.headers)?;
        let mut uri = uri::Parts::default();
        uri.scheme = Some(uri::Scheme::HTTP);
        let host = gathered.host.ok_or(Malformed("the request names no host"))?;
        let host = uri::Authority::from_maybe_shared(Bytes::copy_from_slice(host));
        uri.authority = Some(host.map_err(|_| Malformed("the host cannot be an :authority"))?);
        let path = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(parsed.path.unwrap_or("/").as_bytes()));
        uri.path_and_query = Some(path.map_err(|_| Malformed("the path cannot be a :path"))?);
        if gathered.is_grpc {
            // Servers of gRPC take its absence for a proxy that loses trailers; this one does not.
            gathered.fields.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        let mut message = Request::new(());
        *message.method_mut() = method;
        *message.uri_mut() = Uri::from_parts(uri).map_err(|_| Malformed("the target cannot be said"))?;
        *message.headers_mut() = gathered.fields;
        Ok(Some(Head { message, framing: gathered.framing.unwrap_or(Framing::Empty), length }))
    })
}

/// Room for the fields the sidecar itself adds to a message: caller, hops, trace, framing, reasons, and some more.
const OWN_FIELDS: usize = 16;

struct Gathered<'a> {
    fields: HeaderMap,
    framing: Option<Framing>,
    host: Option<&'a [u8]>,
    is_grpc: bool,
}

/// Takes the fields that are the same in both, and what the text says of the body.
fn gather<'a>(lines: &[httparse::Header<'a>]) -> Result<Gathered<'a>, Malformed> {
    let mut fields = HeaderMap::with_capacity(lines.len());
    let (mut framing, mut host, mut stated) = (None, None, None);
    for line in lines {
        match field(line.name) {
            Field::TransferEncoding => framing = Some(Framing::Chunked),
            Field::ContentLength => {
                stated = Some(line);
                let length = fields::number(line.value).ok_or(Malformed("content-length is not a number"))?;
                framing = framing.or(Some(Framing::Length(length)));
            }
            Field::Host => host = Some(line.value),
            _ if is_of_connection(line.name) => {}
            _ => append(&mut fields, line)?,
        }
    }
    let is_grpc = map_is_grpc(&fields);
    // gRPC has no use for a length, and its trailers-only answers have none.
    if let Some(stated) = stated.filter(|_| !is_grpc && framing != Some(Framing::Chunked)) {
        append(&mut fields, stated)?;
    }
    Ok(Gathered { fields, framing, host, is_grpc })
}

fn append(fields: &mut HeaderMap, line: &httparse::Header<'_>) -> Result<(), Malformed> {
    let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed("a field's name is no token"))?;
    let value = HeaderValue::from_bytes(line.value).map_err(|_| Malformed("a field's value is not printable"))?;
    fields.append(name, value);
    Ok(())
}

/// Whether a field concerns one connection, and so has no place in HTTP/2.
fn is_of_connection(name: &str) -> bool {
    matches!(field(name), Field::Connection | Field::TransferEncoding | Field::Upgrade | Field::Hop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\nx: y\r\n\r\nhello";
    const HEAD: usize = RESPONSE.len() - 5;

    #[test]
    fn a_head_is_read_however_it_is_cut() {
        for first in 0..=RESPONSE.len() {
            for second in first..=RESPONSE.len() {
                let (mut pieces, mut at) = (Pieces::default(), 0);
                for parts in [[&RESPONSE[..first], &RESPONSE[first..second]], [&RESPONSE[second..], &[]]] {
                    let (taken, whole) = pieces.take(parts, |text| read_response(text, false, 10)).unwrap();
                    at += taken;
                    if let Some((head, rest)) = whole {
                        assert_eq!((head.framing, at), (Framing::Length(5), HEAD), "{first} {second}");
                        assert!(rest.concat().is_empty() || b"hello".starts_with(&rest.concat()));
                        let names: Vec<_> = head.message.headers().keys().map(HeaderName::as_str).collect();
                        assert_eq!(names, ["x", "content-length"]);
                        break;
                    }
                }
                assert!(at >= HEAD, "{first} {second}");
            }
        }
    }

    #[test]
    fn a_key_of_websocket_is_sixteen_bytes_in_base64() {
        for _ in 0..100 {
            let key = websocket_key();
            assert_eq!(&key[22..], b"==");
            assert!(key[..21].iter().all(|digit| digit.is_ascii_alphanumeric() || b"+/".contains(digit)));
            assert!(b"AQgw".contains(&key[21]), "{key:?}");
        }
    }

    #[test]
    fn trailers_that_are_no_fields_are_refused_and_those_that_say_how_to_read_are_left_out() {
        assert_eq!(read_trailers(b"\r\n", 10), Ok(None));
        let read = read_trailers(b"grpc-status: 0\r\ncontent-length: 5\r\nhost: a\r\n\r\n", 10).unwrap().unwrap();
        assert_eq!(read.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["grpc-status"]);
        assert!(read_trailers(b"a b: c\r\n\r\n", 10).is_err());
        assert!(read_trailers(b"a: b\r\nc: d\r\n\r\n", 1).is_err(), "more than are taken");
    }
}
