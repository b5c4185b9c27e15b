//! Applications and clients that speak HTTP/2 by prior knowledge.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{PATIENCE, Place};

/// A real application on loopback that speaks HTTP/2; dropping it kills it.
pub(crate) struct App2 {
    pub(crate) addr: SocketAddr,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) connections: Arc<AtomicUsize>,
    tasks: tokio::task::JoinHandle<()>,
}

impl App2 {
    /// Answers each stream as `answer` does.
    pub(crate) async fn answering<F, R>(answer: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> R + Clone + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::with(h2::server::Builder::new(), answer).await
    }

    /// The same with settings of its own.
    pub(crate) async fn with<F, R>(builder: h2::server::Builder, answer: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> R + Clone + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (requests, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, met) = (requests.clone(), connections.clone());
        let tasks = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                met.fetch_add(1, SeqCst);
                let (builder, answer, seen) = (builder.clone(), answer.clone(), seen.clone());
                open.spawn(async move {
                    let Ok(mut connection) = builder.handshake(stream).await else { return };
                    let mut answers = tokio::task::JoinSet::new();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        seen.fetch_add(1, SeqCst);
                        answers.spawn(answer(request, respond));
                    }
                });
            }
        });
        Self { addr, requests, connections, tasks }
    }

    /// Answers every request with its own name.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::answering(move |_, respond| async move { say(respond, Response::new(()), name.as_bytes()) }).await
    }

    /// Sends every body back as it comes, and its trailers behind it.
    pub(crate) async fn echo() -> Self {
        Self::answering(|request, mut respond| async move {
            let mut response = Response::new(());
            if let Some(kind) = request.headers().get("content-type") {
                response.headers_mut().insert("content-type", kind.clone());
            }
            let mut body = request.into_body();
            let mut back = respond.send_response(response, false).unwrap();
            while let Some(Ok(data)) = body.data().await {
                let n = data.len();
                if push(&mut back, data).await.is_err() {
                    return;
                }
                let _ = body.flow_control().release_capacity(n);
            }
            match body.trailers().await {
                Ok(Some(trailers)) => _ = back.send_trailers(trailers),
                Ok(None) => _ = back.send_data(Bytes::new(), true),
                Err(_) => {}
            }
        })
        .await
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }

    pub(crate) fn at(&self, service: &'static str, id: &'static str, owner: &'static str) -> Place {
        Place { service, id, owner, address: self.addr }
    }
}

impl Drop for App2 {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

/// Answers a request at once and whole.
pub(crate) fn say(mut respond: SendResponse<Bytes>, response: Response<()>, body: &'static [u8]) {
    if let Ok(mut stream) = respond.send_response(response, body.is_empty())
        && !body.is_empty()
    {
        let _ = stream.send_data(Bytes::from_static(body), true);
    }
}

/// Sends data as the window allows.
pub(crate) async fn push(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let allowed = match stream.capacity() {
            0 => poll_fn(|cx| stream.poll_capacity(cx)).await.transpose()?.unwrap_or(0),
            allowed => allowed,
        };
        if allowed == 0 {
            return Err(h2::Reason::CANCEL.into());
        }
        stream.send_data(data.split_to(allowed.min(data.len())), false)?;
    }
    Ok(())
}

/// A client connection that speaks HTTP/2.
pub(crate) struct Caller {
    pub(crate) requests: SendRequest<Bytes>,
    pub(crate) connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// A response as it came.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Whether the head was all of it.
    pub(crate) bare: bool,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Heard {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.as_ref()?.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request for `http://HOST/PATH`.
pub(crate) fn request(method: &str, host: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://{host}{path}"))
}

/// A call of gRPC.
pub(crate) fn grpc(host: &str) -> http::request::Builder {
    request("POST", host, "/a.Service/Method").header("content-type", "application/grpc").header("te", "trailers")
}

impl Caller {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self::with(h2::client::Builder::new(), to).await
    }

    pub(crate) async fn with(builder: h2::client::Builder, to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let (requests, connection) = builder.handshake(stream).await.unwrap();
        Self { requests, connection: tokio::spawn(connection) }
    }

    /// Begins a request; its body is to follow unless it `ends` here.
    pub(crate) async fn begin(
        &self,
        request: http::request::Builder,
        ends: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut ready = self.requests.clone().ready().await.unwrap();
        ready.send_request(request.body(()).unwrap(), ends).unwrap()
    }

    pub(crate) async fn send(&self, request: http::request::Builder, body: impl Into<Bytes>) -> Heard {
        self.try_send(request, body).await.unwrap()
    }

    pub(crate) async fn try_send(
        &self,
        request: http::request::Builder,
        body: impl Into<Bytes>,
    ) -> Result<Heard, h2::Error> {
        let body = body.into();
        let (response, mut stream) = self.begin(request, body.is_empty()).await;
        if !body.is_empty() {
            stream.send_data(body, true)?;
        }
        timeout(PATIENCE, hear(response)).await.expect("an answer in time")
    }

    pub(crate) async fn get(&self, host: &str, path: &str) -> Heard {
        self.send(request("GET", host, path), Bytes::new()).await
    }
}

/// All of a response.
pub(crate) async fn hear(response: ResponseFuture) -> Result<Heard, h2::Error> {
    let (parts, mut body) = response.await?.into_parts();
    let mut heard = Heard {
        status: parts.status.as_u16(),
        headers: parts.headers,
        bare: body.is_end_stream(),
        body: Bytes::new(),
        trailers: None,
    };
    let mut whole = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        whole.extend_from_slice(&data);
    }
    heard.body = whole.freeze();
    heard.trailers = body.trailers().await?;
    Ok(heard)
}

/// A client that writes frames by hand, to say what no library would.
pub(crate) struct Raw {
    stream: TcpStream,
}

/// What a stream, or the whole connection, came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered with 200.
    Well,
    /// Answered with another status.
    Refused,
    /// Reset for this reason.
    Reset(u32),
    /// The connection was ended for this reason.
    Ended(u32),
    /// The connection was closed without a word.
    Closed,
}

impl Raw {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut raw = Self { stream };
        raw.frame(4, 0, 0, &[]).await;
        raw
    }

    /// Sends a frame; a connection that is closed meanwhile is found so by reading.
    pub(crate) async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        let _ = self.stream.write_all(&frame).await;
    }

    /// Sends a head, its fields written out.
    pub(crate) async fn head(&mut self, stream: u32, fields: &[(&str, &str)], ends: bool) {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0); // a literal, not to be indexed
            for text in [name, value] {
                integer(text.len(), &mut block);
                block.extend_from_slice(text.as_bytes());
            }
        }
        const END_STREAM: u8 = 1;
        const END_HEADERS: u8 = 4;
        let mut pieces = block.chunks(16_384).peekable();
        let mut kind = 1;
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            let end = if kind == 1 && ends { END_STREAM } else { 0 };
            self.frame(kind, last | end, stream, piece).await;
            kind = 9; // CONTINUATION
        }
    }

    /// Reads until this stream has come to something.
    pub(crate) async fn outcome(&mut self, of: u32) -> Outcome {
        timeout(PATIENCE, async {
            loop {
                let mut head = [0; 9];
                if self.stream.read_exact(&mut head).await.is_err() {
                    return Outcome::Closed;
                }
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let mut payload = vec![0; length];
                if self.stream.read_exact(&mut payload).await.is_err() {
                    return Outcome::Closed;
                }
                let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
                let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
                match head[3] {
                    1 if stream == of && status(&payload) == 200 => return Outcome::Well,
                    1 if stream == of => return Outcome::Refused,
                    3 if stream == of => return Outcome::Reset(number(0)),
                    7 => return Outcome::Ended(number(4)),
                    _ => {}
                }
            }
        })
        .await
        .expect("it comes to something in time")
    }
}

/// The status that a head block begins with: 200 is the one that has an index everybody uses.
fn status(block: &[u8]) -> u16 {
    // A change of the dynamic table's size may come before it.
    let first = block.iter().find(|byte| **byte & 0xe0 != 0x20);
    if first == Some(&0x88) { 200 } else { 0 }
}

/// An integer after HPACK's seven-bit prefix.
fn integer(mut value: usize, out: &mut Vec<u8>) {
    if value < 127 {
        out.push(value as u8);
        return;
    }
    out.push(127);
    value -= 127;
    while value >= 128 {
        out.push((value % 128) as u8 | 128);
        value /= 128;
    }
    out.push(value as u8);
}
