//! Messages as hyper reads them, and what it means that one came by way of a sidecar.

use std::sync::{Arc, Mutex};

use http::HeaderMap;
use http::header::HOST;
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::support::text;

/// The most header fields hyper takes; a sidecar adds some to those it is given.
const MAX_FIELDS: usize = 200;

/// A message: its first line, its fields (trailers are marked), its body, and whether that came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) whole: bool,
}

impl Heard {
    /// Reads the rest of a message.
    pub(crate) async fn read<B>(line: String, head: &HeaderMap, mut body: B) -> Self
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut heard = Self { line, fields: of_ends(head, ""), body: Vec::new(), whole: false };
        while let Some(frame) = body.frame().await {
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) => heard.body.extend_from_slice(&data),
                Ok(Err(frame)) => {
                    heard
                        .fields
                        .extend(frame.trailers_ref().into_iter().flat_map(|fields| of_ends(fields, "trailer ")));
                }
                Err(_) => return heard,
            }
        }
        heard.whole = true;
        heard
    }

    /// Whether this is what may be left of `other` behind a sidecar: all of it, but for fields that end there; or its
    /// beginning, broken off.
    pub(crate) fn is_left_of(&self, other: &Self) -> bool {
        let mut others = other.fields.iter();
        let fields_agree = self.fields.iter().all(|field| others.any(|known| known == field));
        let bodies_agree =
            if self.whole { other.whole && self.body == other.body } else { other.body.starts_with(&self.body) };
        self.line == other.line && fields_agree && bodies_agree
    }
}

/// Those fields that a sidecar neither writes nor answers for.
fn of_ends(fields: &HeaderMap, mark: &str) -> Vec<(String, Vec<u8>)> {
    const OF_HOPS: [&str; 14] = [
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "keep-alive",
        "te",
        "upgrade",
        "expect",
        "traceparent",
        "tracestate",
        "date",
        "http2-settings",
        "proxy-connection",
        "proxy-authorization",
    ];
    let kept = fields.iter().filter(|(name, _)| {
        !mark.is_empty() || !(OF_HOPS.contains(&name.as_str()) || name.as_str().starts_with("x-starling-"))
    });
    kept.map(|(name, value)| (format!("{mark}{name}"), value.as_bytes().to_vec())).collect()
}

/// What a server has read.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) requests: Vec<Heard>,
    /// How reading ended, where it did because of what was sent.
    pub(crate) unreadable: Option<String>,
}

/// Reads a connection as hyper does, to its end.
pub(crate) async fn serve<S>(io: S, book: Arc<Mutex<Book>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let seen = book.clone();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let seen = seen.clone();
        async move {
            let (parts, body) = request.into_parts();
            let named = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
            let named = named.or(parts.headers.get(HOST).map(|host| host.as_bytes())).unwrap_or_default();
            let named = named.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
            let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
            let line = format!("{} {} {path} {query}", parts.method, String::from_utf8_lossy(named));
            let heard = Heard::read(line, &parts.headers, body).await;
            seen.lock().expect("no panic").requests.push(heard);
            // With a yes to CONNECT there would be no further requests.
            let status = if parts.method == http::Method::CONNECT { 501 } else { 200 };
            Ok::<_, std::convert::Infallible>(text(status, "seen"))
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.half_close(true).max_headers(MAX_FIELDS);
    if let Err(error) = server.serve_connection(TokioIo::new(io), service).await
        && error.is_parse()
    {
        book.lock().expect("no panic").unreadable = Some(error.to_string());
    }
}
