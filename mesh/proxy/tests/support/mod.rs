//! A small vocabulary: a mesh of proxies joined by pipes instead of QUIC, applications that do as they are told, and
//! clients that speak plain HTTP over TCP.

#![allow(dead_code)] // each test file uses its part of the vocabulary
#![allow(clippy::unwrap_used)] // a helper that cannot help fails its test

pub(crate) mod http2;

mod quotas;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use starling_core::config::Version;
use starling_core::id::{ConfigKey, Incarnation, InstanceKey, NodeId, ServiceKey};
use starling_core::observe::{Exposition, Span, SpanBuffer, TraceId};
use starling_core::quotas::{QuotaId, QuotaUse};
use starling_core::record::{Claim, Claimed};
use starling_core::registry::{Address, Instance, Protocol, Reach};
use starling_core::time::{HybridTime, Stamp};
use starling_core::view::{
    ConfigView, InstanceView, MemberState, MemberView, NodeFacts, Revision, ServiceView, Usability, View,
};
use starling_net::quic::Limits;
use starling_net::{Identity, LinkError, Links, TunnelRefusal};
use starling_proxy::mesh::{Arrival, Knock, Mesh, Opening, Stream};
use starling_proxy::{BoundPort, Proxy, ProxySettings, StartError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Nodes joined by pipes. All see the same instances.
#[derive(Clone, Default)]
pub(crate) struct Flock(Arc<Shared>);

#[derive(Default)]
struct Shared {
    doors: Mutex<BTreeMap<NodeId, mpsc::Sender<Waiting>>>,
    members: Mutex<BTreeMap<NodeId, MemberState>>,
    instances: Mutex<BTreeMap<InstanceKey, InstanceView>>,
    documents: Mutex<BTreeMap<ConfigKey, ConfigView>>,
    revision: AtomicUsize,
    tunnels: AtomicUsize,
    quotas: quotas::Sharing,
}

/// One node of a flock: its proxy and what it has seen.
pub(crate) struct Bird {
    pub(crate) proxy: Proxy,
    pub(crate) node: Arc<Node>,
}

pub(crate) struct Node {
    me: NodeId,
    flock: Flock,
    spans: Arc<SpanBuffer>,
    view: Mutex<Arc<View>>,
    shares: watch::Sender<Vec<(QuotaId, u64)>>,
    /// Real links instead of pipes.
    links: Option<Links>,
}

/// An instance about to be registered.
pub(crate) struct Place {
    pub(crate) service: &'static str,
    pub(crate) id: &'static str,
    pub(crate) owner: &'static str,
    pub(crate) address: SocketAddr,
}

pub(crate) fn service_key(name: &str) -> ServiceKey {
    let (namespace, service) = name.split_once('/').unwrap_or(("default", name));
    ServiceKey { namespace: namespace.parse().unwrap(), service: service.parse().unwrap() }
}

fn settings(change: impl FnOnce(&mut ProxySettings)) -> ProxySettings {
    let mut settings = ProxySettings { listen: "127.0.0.1:0".parse().unwrap(), ..ProxySettings::default() };
    settings.retry_backoff_ms = 1;
    settings.trace_one_in = 1;
    change(&mut settings);
    settings
}

impl Flock {
    pub(crate) async fn node(&self, name: &str) -> Bird {
        self.node_with(name, |_| {}).await
    }

    pub(crate) async fn node_with(&self, name: &str, change: impl FnOnce(&mut ProxySettings)) -> Bird {
        self.try_node_with(name, change).await.unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) async fn try_node_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut ProxySettings),
    ) -> Result<Bird, StartError> {
        let settings = settings(change);
        let node = self.stand(name, None);
        let (door, tunnels) = mpsc::channel(64);
        self.0.doors.lock().unwrap().insert(node.me.clone(), door);
        let proxy = Proxy::start_in(settings, node.clone(), tunnels).await?;
        Ok(Bird { proxy, node })
    }

    /// A node whose links are real: QUIC with mutual TLS.
    pub(crate) async fn linked(&self, identity: &Identity, change: impl FnOnce(&mut ProxySettings)) -> Bird {
        let (links, inbox) = Links::bind(identity, "127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
        let node = self.stand(identity.node().as_str(), Some(links));
        let proxy = Proxy::start_in(settings(change), node.clone(), inbox.tunnels).await.unwrap();
        Bird { proxy, node }
    }

    fn stand(&self, name: &str, links: Option<Links>) -> Arc<Node> {
        let me: NodeId = name.parse().unwrap();
        let view = Mutex::new(Arc::new(View::empty(me.clone(), Default::default())));
        Arc::new(Node {
            me,
            flock: self.clone(),
            spans: Arc::new(SpanBuffer::new(1_000)),
            view,
            shares: watch::channel(Vec::new()).0,
            links,
        })
    }

    /// Registers an instance that is ready.
    pub(crate) fn register(&self, place: Place) {
        self.register_as(place, |_| {});
    }

    pub(crate) fn register_as(&self, place: Place, change: impl FnOnce(&mut InstanceView)) {
        let key = InstanceKey { service: service_key(place.service), instance: place.id.parse().unwrap() };
        let address = Address { host: place.address.ip().to_string().into(), port: place.address.port() };
        let time = HybridTime(self.0.revision.load(SeqCst) as u64 + 1);
        let claim = Claim::new(Stamp { time, node: place.owner.parse().unwrap() });
        let record = Arc::new(Claimed { key: key.clone(), claim, instance: Instance::at(address) });
        let mut view = InstanceView { record, override_: None, usability: Usability::Ready };
        change(&mut view);
        self.0.instances.lock().unwrap().insert(key, view);
        self.0.revision.fetch_add(1, SeqCst);
    }

    pub(crate) fn deregister(&self, service: &str, id: &str) {
        let key = InstanceKey { service: service_key(service), instance: id.parse().unwrap() };
        self.0.instances.lock().unwrap().remove(&key);
        self.0.revision.fetch_add(1, SeqCst);
    }

    /// Writes a policy, past the check of those who take one.
    pub(crate) fn policy(&self, of: &str, text: &str) {
        self.document(starling_core::policy::GROUP, of, text);
    }

    /// Writes a document, past the check of those who take one; an empty text deletes it.
    pub(crate) fn document(&self, group: &str, name: &str, text: &str) {
        let key =
            ConfigKey { namespace: Default::default(), group: group.parse().unwrap(), key: name.parse().unwrap() };
        let revision = self.0.revision.fetch_add(1, SeqCst) as u64 + 2;
        let stamp = Stamp { time: HybridTime(revision), node: "a".parse().unwrap() };
        let (format, author, comment) = ("toml".into(), String::new(), String::new());
        let body = (!text.is_empty()).then(|| text.into());
        let version = Version { stamp, body, format, author, comment };
        let view = ConfigView { key: key.clone(), revision: Revision(revision), versions: vec![Arc::new(version)] };
        self.0.documents.lock().unwrap().insert(key, view);
    }

    /// Lets membership say this of a node.
    pub(crate) fn member(&self, node: &str, state: MemberState) {
        self.0.members.lock().unwrap().insert(node.parse().unwrap(), state);
        self.0.revision.fetch_add(1, SeqCst);
    }

    /// How many tunnels were opened so far.
    pub(crate) fn tunnels(&self) -> usize {
        self.0.tunnels.load(SeqCst)
    }

    /// Opens a tunnel by hand, as a node that may be wrong.
    pub(crate) async fn tunnel(&self, from: &str, node: &str, to: &InstanceKey) -> tokio::io::DuplexStream {
        self.tunnel_as_wide(from, node, to, 4_096).await
    }

    /// The same, that takes in so many bytes at a time.
    pub(crate) async fn tunnel_as_wide(
        &self,
        from: &str,
        node: &str,
        to: &InstanceKey,
        bytes: usize,
    ) -> tokio::io::DuplexStream {
        let (near, far) = tokio::io::duplex(bytes);
        let door = self.0.doors.lock().unwrap()[node].clone();
        let arrival = Arrival { from: from.parse().unwrap(), to: to.clone(), stream: Box::new(far) };
        assert!(door.send(Waiting(arrival)).await.is_ok(), "the node takes tunnels");
        near
    }

    fn publish(&self, old: &Arc<View>) -> Arc<View> {
        let revision = Revision(self.0.revision.load(SeqCst) as u64 + 1);
        if revision == old.revision {
            return old.clone();
        }
        let mut view = View::empty(old.me.clone(), old.zone.clone());
        view.revision = revision;
        for (node, state) in self.0.members.lock().unwrap().iter() {
            let facts = NodeFacts {
                incarnation: Incarnation(1),
                zone: Default::default(),
                region: Default::default(),
                cell: Default::default(),
                version: String::new(),
                address: String::new(),
            };
            let member = MemberView { node: node.clone(), facts, state: *state, since: Default::default() };
            view.members.insert_mut(node.clone(), Arc::new(member));
        }
        for (key, document) in self.0.documents.lock().unwrap().iter() {
            view.configs.insert_mut(key.clone(), Arc::new(document.clone()));
        }
        let mut services = BTreeMap::<ServiceKey, Vec<InstanceView>>::new();
        for instance in self.0.instances.lock().unwrap().values() {
            if *instance.owner() == old.me {
                let count = view.own_services.get(&instance.key.service).map_or(1, |count| count + 1);
                view.own_services.insert_mut(instance.key.service.clone(), count);
            }
            services.entry(instance.key.service.clone()).or_default().push(instance.clone());
        }
        for (key, instances) in services {
            let instances = instances.into_iter().collect();
            view.services.insert_mut(key.clone(), Arc::new(ServiceView::new(key, revision, instances)));
        }
        Arc::new(view)
    }
}

/// A tunnel that waits to be taken.
struct Waiting(Arrival);

impl Knock for Waiting {
    fn take(self) -> Arrival {
        self.0
    }

    fn refuse(self, _: TunnelRefusal) {}
}

/// How a connection to this address ends that says nothing and hears nothing. One that is cut off at once may hear of that
/// already while it connects.
pub(crate) async fn cut_off_at(address: SocketAddr) -> std::io::ErrorKind {
    let connection = async { TcpStream::connect(address).await?.read_u8().await };
    let end = tokio::time::timeout(PATIENCE, connection).await.expect("it ends");
    end.expect_err("nothing is said").kind()
}

/// A port of a node that leads to this service.
pub(crate) fn port_to(service: &str) -> BoundPort {
    BoundPort { listen: "127.0.0.1:0".parse().unwrap(), service: service_key(service), protocol: None, caller: None }
}

/// Makes an instance one of bytes.
pub(crate) fn tcp(view: &mut InstanceView) {
    change(view, |instance| instance.protocol = Protocol::Tcp);
}

/// Makes an instance reachable without a node.
pub(crate) fn direct(view: &mut InstanceView) {
    change(view, |instance| instance.reach = Reach::Direct);
}

pub(crate) fn change(view: &mut InstanceView, f: impl FnOnce(&mut Instance)) {
    f(&mut Arc::make_mut(&mut view.record).instance);
}

impl Mesh for Node {
    fn use_quotas(&self, uses: Vec<QuotaUse>) {
        let members = self.view().alive().count();
        self.shares.send_replace(self.flock.0.quotas.used(&self.me, members, uses));
    }

    fn shares(&self) -> watch::Receiver<Vec<(QuotaId, u64)>> {
        self.shares.subscribe()
    }

    fn me(&self) -> &NodeId {
        &self.me
    }

    fn view(&self) -> Arc<View> {
        let mut view = self.view.lock().unwrap();
        *view = self.flock.publish(&view);
        view.clone()
    }

    fn spans(&self) -> &Arc<SpanBuffer> {
        &self.spans
    }

    fn open_tunnel<'a>(&'a self, node: &'a NodeId, to: &'a InstanceKey, timeout: Duration) -> Opening<'a> {
        Box::pin(async move {
            if let Some(links) = &self.links {
                let tunnel = links.open_tunnel(node, to, timeout).await?;
                self.flock.0.tunnels.fetch_add(1, SeqCst);
                return Ok(Box::new(tunnel) as Box<dyn Stream>);
            }
            let door = self.flock.0.doors.lock().unwrap().get(node).cloned();
            let (near, far) = tokio::io::duplex(16 * 1024);
            let arrival = Arrival { from: self.me.clone(), to: to.clone(), stream: Box::new(far) };
            let door = door.ok_or_else(|| LinkError::UnknownNode(node.clone()))?;
            let closed = |_| LinkError::Unreachable { node: node.clone(), reason: "it has stopped".into() };
            door.send(Waiting(arrival)).await.map_err(closed)?;
            self.flock.0.tunnels.fetch_add(1, SeqCst);
            Ok(Box::new(near) as Box<dyn Stream>)
        })
    }
}

impl Bird {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.proxy.local_addr()
    }

    /// Where its port to this service is.
    pub(crate) fn port_to(&self, service: &str) -> SocketAddr {
        let key = service_key(service);
        self.proxy.bound().iter().find(|(found, _)| *found == key).expect("a bound port").1
    }

    /// `GET path` with this Host, over a connection of its own.
    pub(crate) async fn get(&self, host: &str, path: &str) -> Answer {
        self.send("GET", host, path, "", b"").await
    }

    pub(crate) async fn send(&self, method: &str, host: &str, path: &str, fields: &str, body: &[u8]) -> Answer {
        let mut client = Client::connect(self.addr()).await;
        client.send(method, host, path, fields, body).await;
        client.answer().await
    }

    pub(crate) async fn spans_of(&self, answer: &Answer, n: usize) -> Vec<Span> {
        let trace: TraceId = answer.header("x-starling-trace").unwrap().parse().unwrap();
        eventually("spans", || async { Some(self.node.spans.trace(trace)).filter(|spans| spans.len() >= n) }).await
    }

    /// The spans it has kept of its last trace.
    pub(crate) fn last_trace(&self) -> Vec<Span> {
        let root = self.node.spans.recent_roots(1).pop();
        root.map(|root| self.node.spans.trace(root.trace)).unwrap_or_default()
    }

    /// The spans it has kept of a trace.
    pub(crate) fn trace(&self, trace: TraceId) -> Vec<Span> {
        self.node.spans.trace(trace)
    }

    /// Its links, when they are real.
    pub(crate) fn links(&self) -> &Links {
        self.node.links.as_ref().expect("a linked node")
    }

    /// What `starling guards` says of a service here.
    pub(crate) fn guards(&self, service: &str) -> serde_json::Value {
        serde_json::from_str(&self.proxy.governor().guards(&service_key(service))).expect("a report")
    }

    /// What a document would have refused of what was asked of a service here.
    pub(crate) fn tried(&self, service: &str, text: &str) -> serde_json::Value {
        let candidate = starling_core::policy::Candidate { text, for_all: false };
        let trial = self.proxy.governor().rehearse(&service_key(service), candidate);
        serde_json::from_str(&trial.expect("a good document")).expect("a trial")
    }

    /// The state of its first guard of this name in that; nothing where there is none.
    pub(crate) fn guard(&self, service: &str, guard: &str) -> serde_json::Value {
        let report = self.guards(service);
        let mut guards = report["guards"].as_array().into_iter().flatten();
        guards.find(|known| known["guard"] == guard).map(|known| known["state"].clone()).unwrap_or_default()
    }

    pub(crate) fn metrics(&self) -> String {
        let mut out = Exposition::default();
        self.proxy.metrics().collect(&mut out);
        out.finish()
    }
}

/// Asks until there is an answer.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A client connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

/// A response as it came.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) version: String,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(to).await.unwrap(), read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, method: &str, host: &str, target: &str, fields: &str, body: &[u8]) {
        let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let head = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{fields}{length}\r\n");
        self.stream.write_all(head.as_bytes()).await.unwrap();
        self.stream.write_all(body).await.unwrap();
    }

    /// The head of the next response.
    pub(crate) async fn head(&mut self) -> Answer {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            assert!(self.fill().await, "closed within a head: {:?}", String::from_utf8_lossy(&self.read));
        };
        let head = String::from_utf8(self.read.drain(..end + 4).collect()).unwrap();
        let mut lines = head.lines();
        let mut words = lines.next().unwrap().split(' ');
        let (version, status) = (words.next().unwrap().to_owned(), words.next().unwrap().parse().unwrap());
        let field = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_lowercase(), v.to_owned()));
        Answer { version, status, headers: lines.filter_map(field).collect(), body: Vec::new() }
    }

    /// The next response with its body.
    pub(crate) async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().unwrap();
            while self.read.len() < length {
                assert!(self.fill().await, "closed within a body");
            }
            answer.body = self.read.drain(..length).collect();
        } else if answer.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk().await {
                answer.body.extend(chunk);
            }
        }
        answer
    }

    /// The next chunk of a chunked body; `None` after the last.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let at = loop {
            if let Some(at) = self.read.windows(2).position(|w| w == b"\r\n") {
                break at;
            }
            assert!(self.fill().await, "closed within a chunked body");
        };
        let size = usize::from_str_radix(std::str::from_utf8(&self.read[..at]).unwrap(), 16).unwrap();
        while self.read.len() < at + 2 + size + 2 {
            assert!(self.fill().await, "closed within a chunk");
        }
        let chunk: Vec<u8> = self.read.drain(..at + 2 + size + 2).skip(at + 2).take(size).collect();
        (size > 0).then_some(chunk)
    }

    /// The next bytes, whatever they are.
    pub(crate) async fn bytes(&mut self, n: usize) -> Vec<u8> {
        while self.read.len() < n {
            assert!(self.fill().await, "closed after {:?}", String::from_utf8_lossy(&self.read));
        }
        self.read.drain(..n).collect()
    }

    pub(crate) async fn fill(&mut self) -> bool {
        let reading = self.stream.read_buf(&mut self.read);
        tokio::time::timeout(PATIENCE, reading).await.expect("the proxy answers in time").unwrap_or(0) > 0
    }
}

pub(crate) type AppBody = BoxBody<Bytes, hyper::Error>;

pub(crate) fn text(status: u16, text: impl Into<String>) -> Response<AppBody> {
    let body = Full::new(Bytes::from(text.into())).map_err(|never| match never {}).boxed();
    Response::builder().status(status).body(body).unwrap()
}

/// A real application on loopback; dropping it kills it with all its connections.
pub(crate) struct App {
    pub(crate) addr: SocketAddr,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) connections: Arc<AtomicUsize>,
    tasks: tokio::task::JoinHandle<()>,
}

impl App {
    /// Answers every request with its own name.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::answering(move |_| async move { text(200, name) }).await
    }

    pub(crate) async fn answering<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<AppBody>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (requests, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, met) = (requests.clone(), connections.clone());
        let tasks = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                met.fetch_add(1, SeqCst);
                let (answer, seen) = (answer.clone(), seen.clone());
                let service = service_fn(move |request| {
                    seen.fetch_add(1, SeqCst);
                    let answering = answer(request);
                    async move { Ok::<_, std::convert::Infallible>(answering.await) }
                });
                connections.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { addr, requests, connections, tasks }
    }

    /// Answers one request with its name for every permit that is added.
    pub(crate) async fn held_back(name: &'static str) -> (Self, Arc<tokio::sync::Semaphore>) {
        let go = Arc::new(tokio::sync::Semaphore::new(0));
        let gate = go.clone();
        let app = Self::answering(move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                text(200, name)
            }
        });
        (app.await, go)
    }

    /// Talks bytes: every connection is left to `talk`.
    pub(crate) async fn talking<F, R>(talk: F) -> Self
    where
        F: Fn(TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let met = connections.clone();
        let tasks = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                met.fetch_add(1, SeqCst);
                talks.spawn(talk(stream));
            }
        });
        Self { addr, requests: Arc::default(), connections, tasks }
    }

    /// Reads each request's head and body as far as they come at once, then closes the connection without a word.
    pub(crate) async fn hanging_up() -> Self {
        Self::saying("").await
    }

    /// The same, but says these bytes first, whatever they are.
    pub(crate) async fn saying(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = requests.clone();
        let tasks = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 4_096];
                let _ = stream.read(&mut buffer).await;
                seen.fetch_add(1, SeqCst);
                let _ = stream.write_all(&bytes).await;
            }
        });
        Self { addr, requests, connections: Arc::default(), tasks }
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }

    pub(crate) fn at(&self, service: &'static str, id: &'static str, owner: &'static str) -> Place {
        Place { service, id, owner, address: self.addr }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

/// An address nobody listens on.
pub(crate) async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A body of what a channel brings.
pub(crate) struct Frames(pub(crate) tokio::sync::mpsc::Receiver<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
