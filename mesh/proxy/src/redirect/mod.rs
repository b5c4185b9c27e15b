//! Connections an application meant for somebody else, and the kernel brought here (nftables' `redirect`).
//!
//! | # | The destination | What becomes of the connection |
//! |---|---|---|
//! | 1 | none, or this listener itself: nobody redirected it | cut off |
//! | 2 | met by a connection of this sidecar's own: the rule does not exempt its user | cut off, and said aloud: it would go round for ever |
//! | 3 | the sidecar's own port, or one that leads to a service | as there |
//! | 4 | where an instance is registered | as by a port that leads to its service, whatever host is named: balanced, not necessarily to this instance |
//! | 5 | another; HTTP/1.1 whose first request names a service of the mesh | as on the sidecar's own port, to its end |
//! | 6 | another | bytes to where it was meant to go, untouched; or refused, as set |
//!
//! Only for 5 anything is read before it is clear where to: at most one head, and for [`FIRST_WORDS`] at most, so that
//! servers that speak first are heard. HTTP/2 and TLS to another destination are of the sixth kind.

mod addresses;

use std::collections::{BTreeMap, BTreeSet};
use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::SockRef;
use starling_core::observe::Exposition;
use starling_core::route::route;
use starling_core::view::View;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::bound::BoundPort;
use crate::client::Client;
use crate::detect::{self, Spoken};
use crate::h1::forwarded::Peer;
use crate::h1::request::{Request, Rules};
use crate::mesh::Stream;
use crate::metrics::{End, Traffic};
use crate::pool::Gauge;
use crate::serve::{self, Door, Entrance, Lifetime};
use crate::stack::Carrier;
use crate::tcp::copy::{self, Copying, Ended};

use addresses::Registered;

/// How long a client may take to say where it wants to go, if its destination does not. Clients that speak first do so at
/// once; those that wait for the server wait so much longer.
const FIRST_WORDS: Duration = Duration::from_millis(100);

/// What becomes of redirected connections that mean nothing of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedirectUnknown {
    /// They go where they were meant to go.
    #[default]
    Pass,
    /// They are refused: HTTP/1.1 with an answer, all else by being cut off.
    Refuse,
}

/// What is kept for redirected connections; nothing where none are taken.
#[derive(Debug)]
pub(crate) struct Redirect {
    /// The listeners of this sidecar.
    entrances: BTreeMap<SocketAddr, Entrance>,
    registered: Registered,
    /// This sidecar's own connections of bytes: their two ends. As many as connections are taken, at most.
    own: Mutex<BTreeSet<(SocketAddr, SocketAddr)>>,
    counts: [AtomicU64; KINDS.len()],
    /// What passes to where it was meant to go.
    pub(crate) passing: Traffic,
}

/// What a redirected connection turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Its destination is of the mesh.
    Address,
    /// Its first request names a service.
    Name,
    /// It went where it was meant to go.
    Elsewhere,
    /// It was refused.
    Refused,
}

const KINDS: [&str; 4] = ["address", "name", "elsewhere", "refused"];

impl Redirect {
    pub(crate) fn new(entrances: BTreeMap<SocketAddr, Entrance>) -> Self {
        Self {
            entrances,
            registered: Registered::default(),
            own: Mutex::default(),
            counts: Default::default(),
            passing: Traffic::default(),
        }
    }

    /// By which way somebody came who wanted to go there, if it is of the mesh.
    fn entrance(&self, meant: SocketAddr, view: &View) -> Option<Entrance> {
        let own = self.entrances.get(&meant).cloned();
        own.or_else(|| {
            let service = self.registered.service(meant, view)?;
            Some(Entrance::Bound(Arc::new(BoundPort { listen: meant, service, protocol: None, caller: None })))
        })
    }

    /// Remembers a connection of this sidecar's own until the result is dropped.
    pub(crate) fn own_end(&self, stream: &TcpStream) -> Option<OwnEnd<'_>> {
        let ends = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
        self.own.lock().unwrap_or_else(PoisonError::into_inner).insert(ends);
        Some(OwnEnd { of: &self.own, ends })
    }

    fn is_own(&self, ends: (SocketAddr, SocketAddr)) -> bool {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).contains(&ends)
    }

    fn count(&self, kind: Kind) {
        self.counts[kind as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn collect(&self, out: &mut Exposition) {
        out.family("starling_redirected_total", "counter", "Redirected connections, by what led them on.");
        for (kind, count) in KINDS.iter().zip(&self.counts) {
            out.sample("starling_redirected_total", &[("by", kind)], count.load(Relaxed) as f64);
        }
    }
}

/// A connection of this sidecar's own, while it lasts.
pub(crate) struct OwnEnd<'a> {
    of: &'a Mutex<BTreeSet<(SocketAddr, SocketAddr)>>,
    ends: (SocketAddr, SocketAddr),
}

impl Drop for OwnEnd<'_> {
    fn drop(&mut self) {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.ends);
    }
}

/// Serves a connection that was redirected here.
pub(crate) async fn serve(mut stream: TcpStream, peer: Option<Peer>, carrier: &Arc<Carrier>, lifetime: Lifetime) {
    let Some(redirect) = &carrier.redirect else { return };
    let meant = match meant(&stream, redirect) {
        Ok(meant) => meant,
        Err(why) => {
            redirect.count(Kind::Refused);
            why.tell();
            return copy::cut_off(&mut stream);
        }
    };
    if let Some(entrance) = redirect.entrance(meant, &carrier.mesh.view()) {
        redirect.count(Kind::Address);
        return serve::serve(stream, peer, carrier, Door::Application(entrance), lifetime).await;
    }
    let mut client = Client::new(stream);
    client.peer = peer;
    let word = first_word(&mut client, carrier).await;
    let unknown = carrier.settings.redirect_unknown;
    match word {
        Word::Mesh => redirect.count(Kind::Name),
        Word::Http if unknown == RedirectUnknown::Refuse => redirect.count(Kind::Refused),
        Word::Http | Word::Other if unknown == RedirectUnknown::Pass => {
            redirect.count(Kind::Elsewhere);
            return pass(client, meant, redirect, carrier).await;
        }
        Word::Http | Word::Other => {
            redirect.count(Kind::Refused);
            tracing::debug!(%meant, "a redirected connection was refused: it means nothing of the mesh");
            return copy::cut_off(&mut client.io);
        }
    }
    serve::serve_from(client, carrier, Door::Application(Entrance::Any), lifetime).await;
}

/// Why a connection cannot have been redirected, or should not have been.
enum Wrong {
    NotRedirected(SocketAddr),
    /// The destination.
    Own(SocketAddr),
    Broken(io::Error),
}

impl Wrong {
    fn tell(&self) {
        match self {
            Self::NotRedirected(here) => {
                tracing::debug!("a connection came straight to {here}, which takes only redirected ones");
            }
            Self::Own(meant) => tracing::warn!(
                "this node's own connection to {meant} was redirected to it: exempt its user from the redirection"
            ),
            Self::Broken(error) => tracing::debug!(%error, "a redirected connection broke before it began"),
        }
    }
}

/// Where its client wanted to go.
fn meant(stream: &TcpStream, redirect: &Redirect) -> Result<SocketAddr, Wrong> {
    let ends = || Ok((stream.peer_addr()?, stream.local_addr()?));
    let (from, here) = ends().map_err(Wrong::Broken)?;
    // A listener of both versions shows an IPv4 address within one of IPv6; the kernel knows the connection by the former.
    let [from, here] = [from, here].map(|end| SocketAddr::new(end.ip().to_canonical(), end.port()));
    let socket = SockRef::from(stream);
    let original = if here.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // An error says that the kernel follows no such connection, so nothing was done to it.
    let meant = original.ok().and_then(|address| address.as_socket()).filter(|meant| *meant != here);
    let meant = meant.ok_or(Wrong::NotRedirected(here))?;
    if redirect.is_own((from, meant)) { Err(Wrong::Own(meant)) } else { Ok(meant) }
}

/// What a client begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// A request of HTTP/1.1 to a service of the mesh.
    Mesh,
    /// Another request of HTTP/1.1.
    Http,
    /// Anything else, or nothing for so long.
    Other,
}

/// Listens to the client's first words; what it says stays in its buffer.
async fn first_word<S: Stream>(client: &mut Client<S>, carrier: &Carrier) -> Word {
    if detect::first(client, FIRST_WORDS, pin!(pending())).await != Some(Spoken::Http1) {
        return Word::Other;
    }
    let (most, mut tried) = (carrier.settings.max_head_bytes, 0);
    poll_fn(|cx| {
        loop {
            let data = client.buffer.data();
            if data.len() > tried && serve::may_be_whole(data, tried) {
                tried = data.len();
                if let Some(word) = word_of(data, carrier) {
                    return Poll::Ready(word);
                }
            }
            match client.buffer.poll_fill(&mut client.io, cx, most) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(Word::Http),
                // The time since it was first listened to goes on.
                Poll::Pending => return client.alarm.poll(cx).map(|()| Word::Http),
            }
        }
    })
    .await
}

/// What a request's head says; `None` until all of it is there.
fn word_of(data: &[u8], carrier: &Carrier) -> Option<Word> {
    let (settings, caller) = (&carrier.settings, carrier.mesh.me());
    let rules = Rules { settings, caller, caller_service: None, counts_hop: true, forward: None };
    let (mut head, mut host) = (Vec::new(), Vec::new());
    let names_service = match Request::read(data, &rules, &mut head, &mut host) {
        Ok(None) => return None,
        Ok(Some(_)) => names_service(&host, &settings.suffix, &carrier.mesh.view()),
        // What this reader does not like may be good enough where it was meant to go.
        Err(_) => false,
    };
    Some(if names_service { Word::Mesh } else { Word::Http })
}

/// Whether a host means a service. Under the mesh's suffix every name does, so that a wrong one is told; a name without
/// dots only if there is such a service: other networks have such names too.
fn names_service(host: &[u8], suffix: &str, view: &View) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    route(host, suffix, view).is_ok_and(|key| host.contains('.') || view.service(&key).is_some())
}

/// Carries bytes to where the client wanted to go.
async fn pass(mut client: Client<TcpStream>, meant: SocketAddr, redirect: &Redirect, carrier: &Carrier) {
    let traffic = &redirect.passing;
    let limit = carrier.settings.timeouts().connect_ms;
    let connected = match timeout(Duration::from_millis(limit), TcpStream::connect(meant)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit} ms"))),
    };
    let mut upstream = match connected {
        Ok(upstream) => upstream,
        Err(error) => {
            traffic.ended(End::Failed);
            tracing::debug!(%meant, %error, "a redirected connection could not be passed on");
            return copy::cut_off(&mut client.io);
        }
    };
    let _own = redirect.own_end(&upstream);
    let _counted = (Gauge::count(&traffic.open), Gauge::count(&carrier.connections.upstream));
    // Fails only on a socket that is broken already.
    let _ = upstream.set_nodelay(true);
    let patience = carrier.settings.tcp_idle_timeout();
    let sent = std::mem::take(&mut client.buffer);
    let sides = ((&mut client.io, sent), (&mut upstream, Default::default()));
    let ended = Copying::new(sides.0, sides.1, &mut client.alarm, patience, traffic).until_ended().await;
    traffic.ended(ended.kind());
    if !matches!(ended, Ended::Whole) {
        copy::cut_off(&mut client.io);
        copy::cut_off(&mut upstream);
    }
}

#[cfg(test)]
mod tests {
    use starling_core::id::ServiceKey;
    use starling_core::sorted::Sorted;
    use starling_core::view::{Revision, ServiceView};

    use super::*;

    fn orders() -> ServiceKey {
        ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() }
    }

    fn view() -> View {
        let mut view = View::empty("a".parse().unwrap(), Default::default());
        view.services.insert_mut(orders(), Arc::new(ServiceView::new(orders(), Revision(1), Sorted::default())));
        view
    }

    #[test]
    fn a_host_names_a_service_under_the_meshs_suffix_or_by_a_bare_name_that_is_registered() {
        for (host, names) in [
            ("orders", true),
            ("orders:8080", true),
            ("orders.mesh", true),
            ("ordrs.mesh:80", true), // is told what is wrong
            ("localhost", false),
            ("intranet:8080", false),
            ("orders.example.org", false),
            ("10.0.0.1:80", false),
            ("[fd00::1]:80", false),
            ("", false),
        ] {
            assert_eq!(names_service(host.as_bytes(), "mesh", &view()), names, "{host}");
        }
    }

    #[test]
    fn what_was_meant_for_a_port_of_the_sidecar_is_served_as_there() {
        let [own, bound, elsewhere] =
            ["127.0.0.1:15001", "127.0.0.1:5433", "10.0.0.1:80"].map(|text| text.parse::<SocketAddr>().unwrap());
        let port = Arc::new(BoundPort { listen: bound, service: orders(), protocol: None, caller: None });
        let redirect = Redirect::new(BTreeMap::from([(own, Entrance::Any), (bound, Entrance::Bound(port))]));
        assert!(matches!(redirect.entrance(own, &view()), Some(Entrance::Any)));
        let Some(Entrance::Bound(port)) = redirect.entrance(bound, &view()) else { panic!("it leads to a service") };
        assert_eq!(port.service, orders());
        assert!(redirect.entrance(elsewhere, &view()).is_none());
    }

    #[tokio::test]
    async fn a_connection_of_its_own_is_known_by_both_ends_while_it_lasts() {
        let redirect = Redirect::new(BTreeMap::new());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let meant = listener.local_addr().unwrap();
        let stream = TcpStream::connect(meant).await.unwrap();
        let from = stream.local_addr().unwrap();
        let own = redirect.own_end(&stream);
        assert!(redirect.is_own((from, meant)));
        assert!(!redirect.is_own((from, "10.0.0.1:80".parse().unwrap())), "somebody else's, from the same port");
        drop(own);
        assert!(!redirect.is_own((from, meant)));
    }
}
