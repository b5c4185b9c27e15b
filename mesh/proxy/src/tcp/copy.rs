//! Bytes both ways until both ends have ended.
//!
//! What is read is written at once from a buffer the thread shares, so that a connection that waits holds no memory;
//! only what the other end does not take is kept, at most one read, and nothing more is read until it has gone. That is
//! all the back-pressure there is and all the memory one connection can take: [`READ`] bytes in each direction.
//!
//! An end of bytes is passed on and the other direction goes on (half-close). A broken end breaks the other: whoever
//! reads must never take half of something for all of it. Only an instance that takes nothing more is heard to its end,
//! for it may have said why; what the client still sends is then dropped, so that it is free to read, and once that end has
//! come the client is cut off.

use std::any::Any;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client::{Alarm, some};
use crate::h1::Buffer;
use crate::metrics::{End, Traffic};

/// The most bytes of one read.
const READ: usize = 64 * 1024;
/// How often one direction is read before others have their turn.
const TURNS: usize = 16;

/// How long a client that goes on sending may read what came before the instance was gone.
const LINGER: Duration = Duration::from_secs(1);

thread_local! {
    static LANDING: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Both ends have said that nothing more comes.
    Whole,
    /// Nothing came from either end for too long.
    Idle,
    /// The client broke off.
    Client(io::Error),
    /// The instance, or the way to it, broke off.
    Instance(io::Error),
}

impl Ended {
    /// As it is counted.
    pub(crate) fn kind(&self) -> End {
        match self {
            Self::Whole => End::Whole,
            Self::Idle => End::Idle,
            Self::Client(_) | Self::Instance(_) => End::Broken,
        }
    }

    /// What went wrong, if anything did.
    pub(crate) fn error(&self) -> Option<String> {
        match self {
            Self::Whole => None,
            Self::Idle => Some("nothing was carried for too long".into()),
            Self::Client(error) => Some(format!("the client broke off: {error}")),
            Self::Instance(error) => Some(format!("the instance broke off: {error}")),
        }
    }
}

/// Two streams being joined.
pub(crate) struct Copying<'a, C, I> {
    client: &'a mut C,
    instance: &'a mut I,
    alarm: &'a mut Alarm,
    traffic: &'a Traffic,
    /// `None`: for ever.
    patience: Option<Duration>,
    up: Lane,
    down: Lane,
    /// Why the instance takes nothing more.
    refused: Option<io::Error>,
    /// When the client has had its time to read the last of what an instance said that takes nothing more.
    lingers_until: Option<Instant>,
}

/// One direction.
struct Lane {
    /// What has been read and not been taken.
    held: Buffer,
    state: State,
    unflushed: bool,
    moved: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing more is taken: what comes is dropped.
    Dropping,
    /// Nothing more comes; the end is still to be passed on.
    Ending,
    Ended,
}

/// Whose fault an error is.
enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

impl<'a, C, I> Copying<'a, C, I>
where
    C: AsyncRead + AsyncWrite + Unpin,
    I: AsyncRead + AsyncWrite + Unpin,
{
    /// Begins with what each of them has sent already.
    pub(crate) fn new(
        (client, sent): (&'a mut C, Buffer),
        (instance, received): (&'a mut I, Buffer),
        alarm: &'a mut Alarm,
        patience: Option<Duration>,
        traffic: &'a Traffic,
    ) -> Self {
        let (up, down) = (Lane::new(sent), Lane::new(received));
        let (refused, lingers_until) = (None, None);
        let mut copying = Self { client, instance, alarm, traffic, patience, up, down, refused, lingers_until };
        copying.be_patient();
        copying
    }

    /// Bytes that went to the instance, and that came from it.
    pub(crate) fn moved(&self) -> (u64, u64) {
        (self.up.moved, self.down.moved)
    }

    /// Goes on until the instance has sent something (nothing is returned) or all has ended.
    pub(crate) async fn until_answered(&mut self) -> Option<Ended> {
        poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if self.down.moved > 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Goes on until all has ended.
    pub(crate) async fn until_ended(&mut self) -> Ended {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let before = self.moved();
        // A lane that has ended must not keep the other from being looked at, and an error of one is an end of both.
        let mut up = self.up.poll(self.client, self.instance, cx);
        if let Poll::Ready(Err(Broken::Writing(error))) = up {
            self.refused = Some(error);
            self.up.drop_what_comes();
            up = self.up.poll(self.client, self.instance, cx);
        }
        let down = self.down.poll(self.instance, self.client, cx);
        let after = self.moved();
        if after != before {
            self.traffic.sent.fetch_add(after.0 - before.0, Relaxed);
            self.traffic.received.fetch_add(after.1 - before.1, Relaxed);
            self.be_patient();
        }
        match (up, down) {
            (Poll::Ready(Err(Broken::Reading(error))), _) | (_, Poll::Ready(Err(Broken::Writing(error)))) => {
                Poll::Ready(Ended::Client(error))
            }
            (Poll::Ready(Err(Broken::Writing(error))), _) | (_, Poll::Ready(Err(Broken::Reading(error)))) => {
                Poll::Ready(Ended::Instance(error))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ended::Whole),
            // It has said all it had to say: the client shall not go on sending to nobody.
            (Poll::Pending, Poll::Ready(Ok(()))) if self.refused.is_some() => self.linger(cx),
            _ if self.patience.is_some() => self.alarm.poll(cx).map(|()| Ended::Idle),
            _ => Poll::Pending,
        }
    }

    /// Cutting the connection off takes away what the client has not read yet: it has a moment for that.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let due = *self.lingers_until.get_or_insert_with(|| Instant::now() + LINGER);
        self.alarm.set(due);
        ready!(self.alarm.poll(cx));
        Poll::Ready(Ended::Instance(self.refused.take().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())))
    }

    fn be_patient(&mut self) {
        if let Some(patience) = self.patience {
            self.alarm.set(Instant::now() + patience);
        }
    }
}

impl Lane {
    fn new(held: Buffer) -> Self {
        Self { held, state: State::Open, unflushed: false, moved: 0 }
    }

    fn drop_what_comes(&mut self) {
        self.held.clear();
        (self.state, self.unflushed) = (State::Dropping, false);
    }

    /// Moves what can be moved; ready when this direction has ended.
    fn poll<R, W>(&mut self, from: &mut R, to: &mut W, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURNS {
            while !self.held.is_empty() {
                let written = some(ready!(Pin::new(&mut *to).poll_write(cx, self.held.data())));
                let written = written.map_err(Broken::Writing)?;
                self.held.consume(written);
                self.moved += written as u64;
                self.unflushed = true;
            }
            self.held.release();
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    // An end that cannot be told is told by what the other direction meets.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.state = State::Ended;
                    return Poll::Ready(Ok(()));
                }
                State::Open | State::Dropping => {}
            }
            match LANDING.with_borrow_mut(|landing| self.poll_through(landing, from, to, cx)) {
                Poll::Ready(moved) => moved?,
                Poll::Pending => {
                    if self.unflushed && Pin::new(&mut *to).poll_flush(cx).map_err(Broken::Writing)?.is_ready() {
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read, and as much of it written as is taken.
    fn poll_through<R, W>(
        &mut self,
        landing: &mut [u8],
        from: &mut R,
        to: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut space = ReadBuf::new(landing);
        ready!(Pin::new(from).poll_read(cx, &mut space)).map_err(Broken::Reading)?;
        let read = space.filled();
        if read.is_empty() {
            self.state = if self.state == State::Open { State::Ending } else { State::Ended };
            return Poll::Ready(Ok(()));
        }
        if self.state == State::Dropping {
            return Poll::Ready(Ok(()));
        }
        let written = match Pin::new(to).poll_write(cx, read) {
            Poll::Ready(written) => some(written).map_err(Broken::Writing)?,
            Poll::Pending => 0,
        };
        self.moved += written as u64;
        self.unflushed |= written > 0;
        self.held.keep(&read[written..]);
        Poll::Ready(Ok(()))
    }
}

/// Makes sure that the other end learns, when this stream is dropped, that it was cut off: TCP would say an ordinary
/// end. Tunnels that were not shut down say so by themselves.
pub(crate) fn cut_off<S: Any>(stream: &mut S) {
    if let Some(tcp) = (stream as &mut dyn Any).downcast_mut::<TcpStream>() {
        // Fails only on a socket that is broken already.
        let _ = tcp.set_zero_linger();
    }
}
