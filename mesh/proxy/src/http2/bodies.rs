//! Bodies between HTTP/2 frames and the HTTP/1.1 text the rest of the sidecar carries: chunks, lengths, trailers.
//!
//! Flow control is passed through: a window is opened again by what has been taken out of a [`Reader`], and a
//! [`Writer`] takes what its stream's window allows. What is held in between is bounded by the windows the settings
//! name.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::ReadBuf;

use super::broken;
use super::heads::{self, Body, Malformed};
use crate::h1::framing::Span;
use crate::h1::{BodyReader, Framing};

/// Room for a usual head, so that it does not grow piece by piece.
const USUAL_HEAD: usize = 512;

/// A message that comes in frames, read as text.
#[derive(Default)]
pub(super) struct Reader {
    /// Text to be read before anything else: heads, the lines around chunks. Kept for its memory.
    staged: Vec<u8>,
    /// How much of it has been read.
    at: usize,
    /// The rest of a frame.
    data: Bytes,
    /// How much of the window comes back when that rest has been read.
    owed: usize,
    source: Option<RecvStream>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Frames are to come, to be written as chunks or not.
    Data { chunked: bool },
    /// All data has come.
    Trailers,
    #[default]
    Done,
}

impl Reader {
    /// Begins a message whose head `write` writes.
    ///
    /// # Errors
    /// What `write` says.
    pub(super) fn begin<E>(
        &mut self,
        mut source: RecvStream,
        body: Option<Body>,
        cx: &mut Context<'_>,
        write: impl FnOnce(Body, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.staged.clear();
        self.at = 0;
        self.data.clear();
        let body = body.unwrap_or_else(|| self.first_frame(&mut source, cx));
        self.staged.reserve(USUAL_HEAD);
        write(body, &mut self.staged)?;
        self.state = match body {
            Body::None => State::Done,
            Body::Length(_) => State::Data { chunked: false },
            Body::Chunked => State::Data { chunked: true },
        };
        if body == Body::Chunked && !self.data.is_empty() {
            write_size(self.data.len(), &mut self.staged);
        }
        self.source = Some(source);
        Ok(())
    }

    /// A small body is often all there: it can be given a length then, which lets the sidecar hold and repeat it.
    fn first_frame(&mut self, source: &mut RecvStream, cx: &mut Context<'_>) -> Body {
        // What is wrong with the frame is found again, and told, when it is read.
        if let Poll::Ready(Some(Ok(data))) = source.poll_data(cx) {
            self.owed = data.len();
            self.data = data;
        }
        if source.is_end_stream() { Body::Length(self.data.len() as u64) } else { Body::Chunked }
    }

    /// Whether all of the message has been read.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done && self.at == self.staged.len() && self.data.is_empty()
    }

    /// Forgets the message; the stream is told that no more of it is wanted.
    pub(super) fn end(&mut self) {
        self.source = None;
        self.state = State::Done;
        self.staged.clear();
        self.at = 0;
        self.data.clear();
    }

    /// Reads what is there; `Ready` with nothing read at the end of the message.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        loop {
            let room = into.remaining();
            if self.at < self.staged.len() {
                let n = room.min(self.staged.len() - self.at);
                into.put_slice(&self.staged[self.at..self.at + n]);
                self.at += n;
            } else if !self.data.is_empty() {
                let n = room.min(self.data.len());
                into.put_slice(&self.data[..n]);
                self.data.advance(n);
                if self.data.is_empty() {
                    self.give_back();
                }
            } else if self.state == State::Done {
                return Poll::Ready(Ok(()));
            } else {
                self.staged.clear();
                self.at = 0;
                match self.poll_frame(cx) {
                    Poll::Ready(Ok(())) => {}
                    // What was wrong is told when there is nothing else to tell.
                    _ if into.filled().len() > before => return Poll::Ready(Ok(())),
                    other => return other,
                }
            }
            if into.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// The window is open again by as much as has been read.
    fn give_back(&mut self) {
        if self.state == (State::Data { chunked: true }) {
            self.staged.clear();
            self.at = 0;
            self.staged.extend_from_slice(b"\r\n");
        }
        if let Some(source) = &mut self.source {
            // Fails only for more than was taken.
            let _ = source.flow_control().release_capacity(std::mem::take(&mut self.owed));
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(source) = &mut self.source else {
            self.state = State::Done;
            return Poll::Ready(Ok(()));
        };
        match self.state {
            State::Data { chunked } => match ready!(source.poll_data(cx)) {
                Some(Ok(data)) => {
                    if chunked && !data.is_empty() {
                        write_size(data.len(), &mut self.staged);
                    }
                    self.owed = data.len();
                    self.data = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(&error))),
                None => self.state = if chunked { State::Trailers } else { State::Done },
            },
            State::Trailers => {
                let trailers = ready!(source.poll_trailers(cx)).map_err(|error| broken(&error))?;
                heads::write_trailers(trailers.as_ref(), &mut self.staged);
                self.state = State::Done;
            }
            State::Done => {}
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes the line before a chunk.
fn write_size(size: usize, out: &mut Vec<u8>) {
    use std::io::Write;
    // Writing into memory does not fail.
    let _ = write!(out, "{size:x}\r\n");
}

/// A message's body that comes as text, written in frames.
pub(super) struct Writer {
    to: SendStream<Bytes>,
    body: BodyReader,
    trailers: Vec<u8>,
    max_trailers: usize,
    ended: bool,
}

/// What of some text is to be sent.
#[derive(Default)]
struct Taken {
    /// How much of the text.
    text: usize,
    data: Vec<u8>,
}

impl Writer {
    /// Writes a body so framed, with at most so many trailers, to a stream whose head has been sent.
    pub(super) fn new(to: SendStream<Bytes>, framing: Framing, max_trailers: usize) -> Self {
        let body = BodyReader::new(framing);
        Self { to, body, trailers: Vec::new(), max_trailers, ended: body.is_done() }
    }

    /// Whether all of it has been written.
    pub(super) fn is_done(&self) -> bool {
        self.ended
    }

    /// Ends a body of no stated length.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.ended = true;
        self.to.send_data(Bytes::new(), true).map_err(|error| broken(&error))
    }

    /// The stream.
    pub(super) fn stream(&mut self) -> &mut SendStream<Bytes> {
        &mut self.to
    }

    /// Takes so much of the text in `parts` as the stream's window allows.
    pub(super) fn poll_write(&mut self, parts: [&[u8]; 2], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let (body, trailers) = (self.body, self.trailers.len());
        let mut taken = self.take(parts, usize::MAX)?;
        let whole = taken.data.len();
        if whole > 0 {
            self.to.reserve_capacity(whole);
            let mut allowed = self.to.capacity();
            if allowed == 0 {
                allowed = match self.to.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(allowed))) => allowed,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(&error))),
                    Poll::Ready(None) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                    Poll::Pending => 0,
                };
            }
            if allowed < whole {
                self.body = body;
                self.trailers.truncate(trailers);
                taken = self.take(parts, allowed)?;
                if taken.text == 0 {
                    return Poll::Pending;
                }
            }
        }
        let Taken { text, data } = taken;
        self.send(data)?;
        Poll::Ready(Ok(text))
    }

    /// The same for the text behind a head of which so much has been taken already.
    pub(super) fn poll_write_behind(
        &mut self,
        head: usize,
        rest: [&[u8]; 2],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if rest.iter().all(|part| part.is_empty()) {
            return Poll::Ready(Ok(head));
        }
        match self.poll_write(rest, cx) {
            Poll::Ready(written) => Poll::Ready(written.map(|more| head + more)),
            Poll::Pending => Poll::Ready(Ok(head)),
        }
    }

    /// Takes text with up to so many bytes of data in it.
    fn take(&mut self, parts: [&[u8]; 2], most: usize) -> io::Result<Taken> {
        let mut taken = Taken::default();
        for part in parts {
            let mut at = 0;
            loop {
                let room = most - taken.data.len();
                if room == 0 && self.body.is_in_data() {
                    taken.text += at;
                    return Ok(taken);
                }
                let rest = &part[at..at + (part.len() - at).min(room.max(1))];
                let in_trailers = self.body.is_in_trailers();
                match self.body.next(rest).map_err(io::Error::other)? {
                    Span::Data(n) => {
                        taken.data.extend_from_slice(&rest[..n]);
                        at += n;
                    }
                    Span::Frame(n) => {
                        if in_trailers {
                            self.trailers.extend_from_slice(&rest[..n]);
                        }
                        at += n;
                    }
                    Span::More | Span::End => break,
                }
            }
            taken.text += at;
        }
        Ok(taken)
    }

    fn send(&mut self, data: Vec<u8>) -> io::Result<()> {
        let done = self.body.is_done();
        let trailers = if done && self.trailers.len() > 2 {
            heads::read_trailers(&self.trailers, self.max_trailers).map_err(malformed)?
        } else {
            None
        };
        let ends = done && trailers.is_none();
        if ends || !data.is_empty() {
            self.to.send_data(data.into(), ends).map_err(|error| broken(&error))?;
        }
        if let Some(trailers) = trailers {
            self.to.send_trailers(trailers).map_err(|error| broken(&error))?;
        }
        self.ended = done;
        Ok(())
    }
}

pub(super) fn malformed(why: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
