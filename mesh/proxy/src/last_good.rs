//! Keeping the last good answer to a `GET`, and giving it when there is none.
//!
//! While an answer is carried its bytes are copied on their way, up to a bound; nothing waits for that, and what does not
//! come whole is not kept. What it is known by is what it may depend on: host, path and query, and the header fields of
//! content negotiation ([`NEGOTIATED`]), compared byte for byte. An answer that says it depends on more (`Vary`) is not kept.
//! Credentials are part of what it is known by where the policy lets answers to them be kept at all.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Method, StatusCode};
use starling_core::policy::{LastGood, LastGoodSettings, Scope};
use tokio::io::{AsyncRead, ReadBuf};

use crate::clock::Clock;
use crate::directory::Entry;
use crate::h1::fields::{self, Written};
use crate::h1::framing::{FRAMING_ROOM, Span};
use crate::h1::request::Request;
use crate::h1::response::Response;
use crate::h1::{BodyReader, Framing};
use crate::pool::{Pipe, Upstream};
use crate::tapped::{Tap, Tapped};

/// The fields an answer may depend on beside the path, in lower case.
const NEGOTIATED: [&[u8]; 5] = [b"host", b"accept", b"accept-encoding", b"accept-language", b"origin"];
/// Those that say who asks.
const CREDENTIALS: [&[u8]; 2] = [b"authorization", b"cookie"];
/// Fields of an answer that are about this one passage of it, or that are written anew.
const PASSING: [&[u8]; 8] = [
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"age",
    b"warning",
    b"traceparent",
    b"tracestate",
    b"set-cookie",
];

/// A service's kept answers. The lock is held for a look or an insertion, and by nobody whose policy keeps none.
#[derive(Debug, Default)]
pub(crate) struct Shelf(Mutex<LastGood<Kept>>);

/// One kept answer.
#[derive(Debug)]
pub(crate) struct Kept {
    status: StatusCode,
    /// Its fields that go on, each with its line's end.
    fields: Vec<u8>,
    body: Vec<u8>,
    /// How old it was when it came, in seconds.
    age_s: u64,
}

/// An answer that stands in.
#[derive(Debug, Clone)]
pub(crate) struct StandIn {
    kept: Arc<Kept>,
    age: Duration,
    /// The node that has kept it.
    node: String,
}

impl Shelf {
    pub(crate) fn lock(&self) -> MutexGuard<'_, LastGood<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_one_of(names: &[&[u8]], name: &[u8]) -> bool {
    names.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// What the answer to a request is known by; none where none may be kept.
pub(crate) fn key_of(settings: &LastGoodSettings, request: &Request, head: &[u8]) -> Option<Vec<u8>> {
    if !matches!(request.method, Method::GET | Method::HEAD) || request.upgrades {
        return None;
    }
    let mut key = request.path(head).as_bytes().to_vec();
    for (name, value) in Written(head).lines() {
        let says_who = is_one_of(&CREDENTIALS, name);
        if name.eq_ignore_ascii_case(b"range") || (says_who && !settings.private) {
            return None;
        }
        if says_who || is_one_of(&NEGOTIATED, name) {
            // No field has a line feed in it, so no two requests are known by the same.
            key.push(b'\n');
            key.extend(name.iter().map(u8::to_ascii_lowercase));
            key.push(b':');
            key.extend_from_slice(value);
        }
    }
    Some(key)
}

/// Whether an answer with this head is good, and anybody's who asks the same.
fn is_for_all(settings: &LastGoodSettings, status: StatusCode, head: &[u8]) -> bool {
    if !status.is_success() || status == StatusCode::PARTIAL_CONTENT {
        return false;
    }
    Written(head).lines().all(|(name, value)| {
        let mut words = value.split(|byte| *byte == b',').map(|word| {
            let word = word.trim_ascii();
            word.split(|byte| *byte == b'=').next().unwrap_or_default()
        });
        if name.eq_ignore_ascii_case(b"vary") {
            let private = |word: &[u8]| settings.private && is_one_of(&CREDENTIALS, word);
            return words.all(|word| is_one_of(&NEGOTIATED, word) || private(word));
        }
        if name.eq_ignore_ascii_case(b"cache-control") {
            return !words.any(|word| {
                word.eq_ignore_ascii_case(b"no-store") || (word.eq_ignore_ascii_case(b"private") && !settings.private)
            });
        }
        settings.private || !name.eq_ignore_ascii_case(b"set-cookie")
    })
}

/// An answer that is to be kept if it comes whole.
pub(crate) struct Keep {
    key: Vec<u8>,
    entry: Arc<Entry>,
    settings: LastGoodSettings,
    clock: Clock,
    status: StatusCode,
    framing: Framing,
    fields: Vec<u8>,
    age_s: u64,
}

impl Keep {
    /// If the answer whose head is written in `head` is worth it.
    pub(crate) fn begin(
        key: &[u8],
        settings: &LastGoodSettings,
        entry: &Arc<Entry>,
        clock: Clock,
        response: &Response,
        head: &[u8],
    ) -> Option<Box<Self>> {
        let too_large = matches!(response.framing, Framing::Length(length) if length > settings.max_answer_bytes);
        if too_large
            || !is_for_all(settings, response.status, head)
            || !entry.last_good.lock().wants(settings, clock.now(), key)
        {
            return None;
        }
        let (mut kept, mut age_s) = (Vec::new(), 0);
        for (name, value) in Written(head).lines() {
            if name.eq_ignore_ascii_case(b"age") {
                age_s = fields::number(value).unwrap_or(0);
            }
            if !is_one_of(&PASSING, name) && !name.starts_with(b"x-starling-") {
                fields::write(&mut kept, name, value);
            }
        }
        Some(Box::new(Self {
            key: key.to_vec(),
            entry: entry.clone(),
            settings: *settings,
            clock,
            status: response.status,
            framing: response.framing,
            fields: kept,
            age_s,
        }))
    }

    /// From now on what comes by this connection is copied.
    pub(crate) fn watch(&self, upstream: &mut Upstream) {
        let most = self.settings.max_answer_bytes as usize + FRAMING_ROOM;
        let already = upstream.buffer.data();
        let copy = (already.len() <= most).then(|| already.to_vec());
        let pipe = upstream.take_pipe();
        upstream.pipe = Pipe::Watched(Box::new(Tapped { pipe, tap: Copying { copy, most } }));
    }

    /// All of it has come.
    pub(crate) fn end(self, upstream: &mut Upstream) {
        let Pipe::Watched(watched) = upstream.take_pipe() else { return };
        let Tapped { pipe, tap } = *watched;
        upstream.pipe = pipe;
        let Some(body) = tap.copy.and_then(|raw| whole_body(self.framing, &raw)) else { return };
        let bytes = (self.fields.len() + body.len()) as u64;
        let kept = Kept { status: self.status, fields: self.fields, body, age_s: self.age_s };
        let mut shelf = self.entry.last_good.lock();
        shelf.keep(&self.settings, self.clock.now(), &self.key, kept, bytes);
    }
}

/// A body without what it is framed by; none if it is not whole.
fn whole_body(framing: Framing, mut raw: &[u8]) -> Option<Vec<u8>> {
    let (mut reader, mut body) = (BodyReader::new(framing), Vec::with_capacity(raw.len()));
    loop {
        match reader.next(raw).ok()? {
            Span::Data(n) => {
                body.extend_from_slice(&raw[..n]);
                raw = &raw[n..];
            }
            Span::Frame(n) => raw = &raw[n..],
            Span::End => return Some(body),
            Span::More => return (reader.is_done() || reader.may_end_here()).then_some(body),
        }
    }
}

/// Copies bytes as they come.
pub(crate) struct Copying {
    /// None from where there was too much.
    copy: Option<Vec<u8>>,
    most: usize,
}

impl Tap for Copying {
    fn poll_read(&mut self, pipe: &mut Pipe, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(pipe).poll_read(cx, buffer))?;
        let came = &buffer.filled()[before..];
        match &mut self.copy {
            Some(copy) if copy.len() + came.len() <= self.most => copy.extend_from_slice(came),
            copy => *copy = None,
        }
        Poll::Ready(Ok(()))
    }
}

/// The last good answer to a request, if this scope's policy has it stand in and there is one that is not too old.
pub(crate) fn find(
    scope: &Scope,
    entry: &Entry,
    clock: Clock,
    node: &str,
    request: &Request,
    head: &[u8],
) -> Option<StandIn> {
    let settings = scope.sections.fallback.as_ref()?.last_good.as_ref()?;
    let key = key_of(settings, request, head)?;
    let (kept, age) = entry.last_good.lock().find(settings, clock.now(), &key)?;
    Some(StandIn { kept, age, node: node.to_owned() })
}

impl StandIn {
    pub(crate) fn status(&self) -> StatusCode {
        self.kept.status
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.kept.body
    }

    /// Writes its fields and the marks: how old it is (RFC 9111, section 5.1), that it is stale in the word old caches know
    /// (RFC 7234, section 5.5.1), and whose it is.
    pub(crate) fn write_fields(&self, name: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.kept.fields);
        let age_s = self.age.as_secs();
        fields::write_number(out, b"age", self.kept.age_s.saturating_add(age_s));
        fields::write(out, b"warning", b"110 - \"Response is Stale\"");
        fields::write(out, name, format!("last_good; age={age_s}; node={}", self.node).as_bytes());
    }
}
