//! Connections of applications: what a sidecar makes of one, and what hyper does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use starling_core::id::InstanceKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::drawn;
use super::heard::{self, Book};
use super::support::*;

/// More than any connection here carries.
const ROOM: usize = 1 << 20;

/// Two nodes, each with a way to an instance of its own.
pub(crate) struct Lane {
    flock: Flock,
    near: Bird,
    far: Bird,
    /// Applications of earlier turns: they may still be called, and nobody else shall be taken for them.
    past: VecDeque<(&'static str, App)>,
}

/// The instances they are, each until it is its turn again.
const INSTANCES: [&str; 12] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];

impl Lane {
    pub(crate) async fn new() -> Self {
        let flock = Flock::default();
        let near = flock.node_with("a", hasty).await;
        let far = flock.node_with("b", hasty).await;
        Self { flock, near, far, past: VecDeque::new() }
    }

    /// Sends these bytes by a sidecar, or two, and compares what came of them with how hyper reads them: how many
    /// requests there were for it, and how many came through. An error is a request that was there for only one of them.
    pub(crate) async fn compare(&mut self, bytes: &[u8], random: &mut Rng) -> Result<(usize, usize), String> {
        let read = Arc::<Mutex<Book>>::default();
        let (mut client, server) = duplex(ROOM);
        client.write_all(bytes).await.expect("there is room");
        client.shutdown().await.expect("nothing is in the way");
        heard::serve(server, read.clone()).await;
        let arrived = Arc::<Mutex<Book>>::default();
        let book = arrived.clone();
        let app = App::talking(move |stream| heard::serve(stream, book.clone())).await;
        let (owner, id) = self.register(app, random);
        if random.u8(..3) == 0 {
            let key = InstanceKey { service: service_key("orders"), instance: id.parse().expect("a name") };
            let width = [1, 2, 3, 7, 40, 4_096][random.usize(..6)];
            let tunnel = self.flock.tunnel_as_wide("c", owner, &key, width).await;
            talk(tunnel, vec![bytes]).await;
        } else {
            talk(self.connect().await, drawn::cut(random, bytes)).await;
        }
        let (read, arrived) = (read.lock().expect("no panic"), arrived.lock().expect("no panic"));
        agree(&read, &arrived).map(|()| (read.requests.len(), arrived.requests.len()))
    }

    /// Makes this the instance there is, at one node or the other: at which, and its name.
    pub(crate) fn register(&mut self, app: App, random: &mut Rng) -> (&'static str, &'static str) {
        let owner = if random.bool() { "a" } else { "b" };
        if let Some((last, _)) = self.past.back() {
            self.flock.deregister("orders", last);
        }
        let unused = (self.past.len() == INSTANCES.len()).then(|| self.past.pop_front()).flatten();
        let id = unused.map_or_else(|| INSTANCES[self.past.len()], |(id, _)| id);
        self.flock.register(app.at("orders", id, owner));
        self.past.push_back((id, app));
        (owner, id)
    }

    /// A connection of an application.
    pub(crate) async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.near.port_to("orders")).await.expect("it listens");
        stream.set_nodelay(true).expect("it is connected");
        stream
    }

    pub(crate) async fn end(self) {
        self.near.proxy.drain(PATIENCE).await;
        self.far.proxy.drain(PATIENCE).await;
    }
}

/// Nobody waits long for what will not come.
pub(crate) fn hasty(settings: &mut starling_proxy::ProxySettings) {
    settings.header_timeout_ms = 200;
    settings.request_timeout_ms = 200;
    settings.body_idle_timeout_ms = 200;
    settings.max_retries = 0;
    settings.workers = 1;
    settings.upstreams = vec![port_to("orders")];
}

/// Says all of it and hears all that is said to that.
async fn talk(io: impl AsyncRead + AsyncWrite, pieces: Vec<&[u8]>) {
    let (mut from, mut to) = tokio::io::split(io);
    let saying = async {
        for piece in pieces {
            // Who refuses a beginning need not hear the end.
            let _ = to.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        std::future::pending::<()>().await;
    };
    let mut answers = Vec::new();
    let hearing = async { timeout(PATIENCE, from.read_to_end(&mut answers)).await.expect("the connection ends") };
    tokio::select! {
        // A reset is an end, too.
        _ = hearing => {}
        () = saying => {}
    }
}

/// Whether all that arrived had been sent, in that order.
fn agree(read: &Book, arrived: &Book) -> Result<(), String> {
    let mut sent = read.requests.iter();
    for request in &arrived.requests {
        if !sent.any(|known| request.is_left_of(known)) {
            return Err(format!("{request:?} arrived, of {:#?}", read.requests));
        }
    }
    match &arrived.unreadable {
        // A target of bytes that hyper does not take in one.
        Some(_) if read.unreadable.is_some() => Ok(()),
        Some(why) => Err(format!("what arrived could not be read: {why}")),
        None => Ok(()),
    }
}
