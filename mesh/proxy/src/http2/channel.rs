//! Connections to instances that speak HTTP/2. Each worker has its own; many calls share one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use starling_core::registry::Address;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{MAX_OWN_RESETS, MAX_PENDING_RESETS};
use crate::pool::{Counted, Gauge};
use crate::settings::ProxySettings;
use crate::stack::Carrier;

thread_local! {
    /// This worker's connections, by where they lead. Bounded by the instances there are; an entry goes with its last
    /// connection.
    static SHELVES: RefCell<BTreeMap<Address, Arc<Shelf>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The connections to one address.
#[derive(Default)]
struct Shelf {
    channels: std::sync::Mutex<Vec<Arc<Channel>>>,
    /// One is opened at a time: whoever waits for it will mostly find room on it.
    dialling: tokio::sync::Mutex<()>,
}

/// One connection.
pub(super) struct Channel {
    sender: SendRequest<Bytes>,
    /// Calls by it, those that wait for a stream included.
    calls: AtomicUsize,
    /// No new call by it.
    closing: AtomicBool,
}

/// A call's place on a connection.
pub(super) struct Place(Arc<Channel>);

impl Place {
    fn on(channel: &Arc<Channel>) -> Self {
        channel.calls.fetch_add(1, Relaxed);
        Self(channel.clone())
    }

    /// The way to begin its stream.
    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.0.sender.clone()
    }

    /// The connection takes no more calls.
    pub(super) fn give_up(&self) {
        self.0.closing.store(true, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

/// A place on a connection to `address`: an open one with room, or a new one, made within `limit`.
///
/// # Errors
/// Why there is none; nothing was sent.
pub(super) async fn place(carrier: &Carrier, address: &Address, limit: Duration) -> Result<Place, String> {
    let shelf = shelf(address);
    let most = carrier.settings.http2.max_connections_per_instance;
    if let Some(place) = shelf.room(most) {
        return Ok(place);
    }
    let opening = async {
        let _turn = shelf.dialling.lock().await;
        if let Some(place) = shelf.room(most) {
            return Ok(place);
        }
        let failed = |error: &dyn std::fmt::Display| format!("no connection to {address}: {error}");
        let stream = TcpStream::connect((&*address.host, address.port)).await.map_err(|error| failed(&error))?;
        // Fails only on a socket that is broken already, which the next write will say better.
        let _ = stream.set_nodelay(true);
        let heard = Arc::new(AtomicBool::new(true));
        let io = Heard { stream, heard: heard.clone() };
        let (sender, connection) =
            builder(&carrier.settings).handshake::<_, Bytes>(io).await.map_err(|error| failed(&error))?;
        let channel = Arc::new(Channel { sender, calls: AtomicUsize::new(0), closing: AtomicBool::new(false) });
        let place = Place::on(&channel);
        shelf.put(channel.clone());
        let counted = Gauge::count(&carrier.connections.upstream);
        let keeper = Keeper { settings: carrier.settings.clone(), address: address.clone(), channel, heard, counted };
        tokio::spawn(keeper.drive(connection));
        Ok(place)
    };
    timeout(limit, opening)
        .await
        .unwrap_or_else(|_| Err(format!("no connection to {address} within {} ms", limit.as_millis())))
}

fn shelf(address: &Address) -> Arc<Shelf> {
    SHELVES.with_borrow_mut(|shelves| match shelves.get(address) {
        Some(shelf) => shelf.clone(),
        None => shelves.entry(address.clone()).or_default().clone(),
    })
}

impl Shelf {
    /// The connection with the fewest calls, if it has room for one more or no other may be opened.
    fn room(&self, most: usize) -> Option<Place> {
        let channels = self.lock();
        let best =
            channels.iter().filter(|channel| !channel.closing.load(Relaxed)).min_by_key(|c| c.calls.load(Relaxed))?;
        let has_room = best.calls.load(Relaxed) < best.sender.current_max_send_streams();
        (has_room || channels.len() >= most).then(|| Place::on(best))
    }

    fn put(&self, channel: Arc<Channel>) {
        self.lock().push(channel);
    }

    /// Takes a connection out; whether none is left.
    fn take(&self, channel: &Arc<Channel>) -> bool {
        let mut channels = self.lock();
        channels.retain(|other| !Arc::ptr_eq(other, channel));
        channels.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Channel>>> {
        self.channels.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn builder(settings: &ProxySettings) -> Builder {
    let own = &settings.http2;
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(own.stream_window_bytes)
        .initial_connection_window_size(own.connection_window_bytes)
        .max_send_buffer_size(own.stream_window_bytes as usize)
        .max_header_list_size(settings.max_head_bytes as u32)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_OWN_RESETS));
    builder
}

/// What moves one connection's bytes, and minds whether it lives.
struct Keeper {
    settings: ProxySettings,
    address: Address,
    channel: Arc<Channel>,
    /// Whether anything came since last asked.
    heard: Arc<AtomicBool>,
    counted: Counted,
}

impl Keeper {
    async fn drive(self, mut connection: Connection<Heard, Bytes>) {
        let mut pings = connection.ping_pong();
        let mut ended = self.run(&mut connection, &mut pings).await;
        self.channel.closing.store(true, Relaxed);
        let shelf = shelf(&self.address);
        if shelf.take(&self.channel) {
            SHELVES.with_borrow_mut(|shelves| shelves.remove(&self.address));
        }
        drop(self.channel);
        if let Ended::Idle = ended {
            // With its last sender gone it says good-bye; calls that came in between are finished.
            ended = match connection.await {
                Ok(()) => Ended::Closed,
                Err(error) => Ended::Broken(error.to_string()),
            };
        }
        if let Ended::Broken(why) = ended {
            tracing::debug!(instance = %self.address, why, "an HTTP/2 connection to an instance ended");
        }
        drop(self.counted);
    }

    /// Moves bytes until the connection ends, or has been idle for too long.
    async fn run(&self, connection: &mut Connection<Heard, Bytes>, pings: &mut Option<PingPong>) -> Ended {
        let own = &self.settings.http2;
        let mut look = pin!(tokio::time::sleep(own.keepalive().min(own.idle_timeout())));
        let mut last_call = Instant::now();
        let mut asked = None;
        poll_fn(|cx| {
            if let Poll::Ready(ended) = Pin::new(&mut *connection).poll(cx) {
                return Poll::Ready(match ended {
                    Ok(()) => Ended::Closed,
                    Err(error) => Ended::Broken(error.to_string()),
                });
            }
            if let (Some(pings), Some(_)) = (pings.as_mut(), asked)
                && pings.poll_pong(cx).is_ready()
            {
                asked = None;
            }
            while look.as_mut().poll(cx).is_ready() {
                let now = Instant::now();
                let busy = self.channel.calls.load(Relaxed) > 0;
                if busy {
                    last_call = now;
                } else if now >= last_call + own.idle_timeout() {
                    return Poll::Ready(Ended::Idle);
                }
                if self.heard.swap(false, Relaxed) {
                    asked = None;
                } else if let Some(when) = asked {
                    if now >= when + own.keepalive_timeout() {
                        return Poll::Ready(Ended::Broken("it gave no sign of life".into()));
                    }
                } else if busy
                    && let Some(pings) = pings.as_mut()
                    && pings.send_ping(Ping::opaque()).is_ok()
                {
                    asked = Some(now);
                    cx.waker().wake_by_ref(); // for the connection to send it
                }
                let next = if asked.is_some() { own.keepalive_timeout() } else { own.keepalive() };
                look.as_mut().reset(now + next.min(own.idle_timeout()));
            }
            Poll::Pending
        })
        .await
    }
}

enum Ended {
    Closed,
    Broken(String),
    /// Nobody has used it for long.
    Idle,
}

/// A socket that tells whether anything comes by it.
struct Heard {
    stream: TcpStream,
    heard: Arc<AtomicBool>,
}

impl AsyncRead for Heard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(cx, into);
        if read.is_ready() {
            this.heard.store(true, Relaxed);
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
