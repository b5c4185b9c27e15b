//! A request to an instance that speaks HTTP/2, as if it were an HTTP/1.1 connection that carries one request.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::Reason;
use h2::client::ResponseFuture;
use http::{Method, StatusCode};
use starling_core::registry::Address;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::bodies::{Reader, Writer, malformed};
use super::channel::{self, Place};
use super::heads::{self, Body, Malformed, Pieces};
use super::{Unprocessed, Unsayable, broken};
use crate::h1::Framing;
use crate::stack::Carrier;

/// One request and its response.
pub(crate) struct Call {
    place: Place,
    pieces: Pieces,
    /// The request, once its head has been sent, until it is all sent.
    writer: Option<Writer>,
    waiting: Option<ResponseFuture>,
    head_only: bool,
    reader: Reader,
    begun: bool,
    /// Why it could not be sent: whoever waits for an answer hears it, too.
    failed: Option<Failed>,
    max_headers: usize,
}

/// Why a request could not be sent.
#[derive(Debug, Clone)]
enum Failed {
    /// The connection was at its end.
    Ended(String),
    Unsayable(Unsayable),
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Ended(why) => Unprocessed::ended(why).into(),
            Failed::Unsayable(unsayable) => unsayable.into(),
        }
    }
}

impl Call {
    /// Takes a place on a connection to `address`; making one takes no longer than `limit`.
    ///
    /// # Errors
    /// Why there is none; nothing was sent.
    pub(crate) async fn open(carrier: &Carrier, address: &Address, limit: Duration) -> Result<Self, String> {
        let place = channel::place(carrier, address, limit).await?;
        let max_headers = carrier.settings.max_headers;
        Ok(Self {
            place,
            pieces: Pieces::default(),
            writer: None,
            waiting: None,
            head_only: false,
            reader: Reader::default(),
            begun: false,
            failed: None,
            max_headers,
        })
    }

    fn fail(&mut self, failed: Failed) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(self.failed.insert(failed).clone().into()))
    }

    fn write(&mut self, parts: [&[u8]; 2], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.begun {
            let Some(writer) = &mut self.writer else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
            let written = ready!(writer.poll_write(parts, cx));
            return self.written(written);
        }
        let most = self.max_headers;
        let (taken, whole) = match self.pieces.take(parts, |text| heads::read_request(text, most)) {
            Ok(taken) => taken,
            Err(why) => return self.fail(Failed::Unsayable(why.into())),
        };
        let Some((head, rest)) = whole else { return Poll::Ready(Ok(taken)) };
        self.head_only = *head.message.method() == Method::HEAD;
        let ends = matches!(head.framing, Framing::Empty | Framing::Length(0));
        let (waiting, stream) = match self.place.sender().send_request(head.message, ends) {
            Ok(begun) => begun,
            Err(error) => {
                // The connection is at its end; nothing of this has been sent.
                self.place.give_up();
                return self.fail(Failed::Ended(error.to_string()));
            }
        };
        self.begun = true;
        self.waiting = Some(waiting);
        if ends {
            return Poll::Ready(Ok(taken));
        }
        let mut writer = Writer::new(stream, head.framing, most);
        let written = writer.poll_write_behind(taken, rest, cx);
        self.writer = Some(writer);
        let written = ready!(written);
        self.written(written)
    }

    /// Some of the request's body has been written. If the rest cannot be said, nobody waits for an answer to it.
    fn written(&mut self, written: io::Result<usize>) -> Poll<io::Result<usize>> {
        if self.writer.as_ref().is_some_and(Writer::is_done) {
            self.writer = None;
        }
        let malformed = written.as_ref().err().and_then(|error| error.get_ref()?.downcast_ref::<Malformed>()).copied();
        let Some(why) = malformed else { return Poll::Ready(written) };
        if let Some(mut writer) = self.writer.take() {
            writer.stream().send_reset(Reason::CANCEL);
        }
        self.waiting = None;
        self.fail(Failed::Unsayable(why.into()))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(waiting) = &mut self.waiting else {
            return match &self.failed {
                Some(failed) => Poll::Ready(Err(failed.clone().into())),
                None => Poll::Pending, // nothing has been asked yet: the write that asks comes from the same task
            };
        };
        let response = match ready!(Pin::new(waiting).poll(cx)) {
            Ok(response) => response,
            Err(error) => {
                if error.is_go_away() || error.is_io() {
                    self.place.give_up();
                }
                return Poll::Ready(Err(broken(&error)));
            }
        };
        self.waiting = None;
        let (parts, source) = response.into_parts();
        let stated = heads::stated_length(&parts.headers).map_err(malformed)?;
        let bare = self.head_only || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = match stated {
            // What would be there.
            Some(length) if bare => Body::Length(length),
            None if bare => Body::None,
            _ if source.is_end_stream() => Body::Length(0),
            // Trailers only pass behind chunks.
            Some(length) if !heads::map_is_grpc(&parts.headers) => Body::Length(length),
            _ => Body::Chunked,
        };
        Poll::Ready(self.reader.begin(source, Some(body), cx, |body, out| {
            heads::write_response(&parts, body, out);
            Ok(())
        }))
    }
}

impl AsyncRead for Call {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.waiting.is_some() || !this.begun || this.failed.is_some() {
            ready!(this.poll_head(cx))?;
        }
        this.reader.poll_read(cx, into)
    }
}

impl AsyncWrite for Call {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write([bytes, &[]], cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let part = |at: usize| parts.get(at).map_or(&[][..], |part| part);
        self.get_mut().write([part(0), part(1)], cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
