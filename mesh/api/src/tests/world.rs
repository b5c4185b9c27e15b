//! The vocabulary: a mesh of real hearts in memory, whose messages arrive at once unless they are cut off from each
//! other, and a control surface in front of each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use starling_core::id::{CommandId, Incarnation, NodeId, Zone};
use starling_core::node::Memory;
use starling_core::observe::Span;
use starling_core::time::{Instant, Now, WallTime};
use starling_core::view::{NodeFacts, Revision, View};
use starling_core::wire::{DiskFailing, NodeStatus, Question, Reply};
use starling_core::{Answer, Command, Input, Node, Output, PeerEvent, Refusal, Settings};
use starling_net::{CommandError, LinkError};
use tokio::sync::watch;

use crate::context::{Context, Shared};
use crate::model::ErrorBody;
use crate::port::{Later, MeshPort};
use crate::routes::router;
use crate::settings::ApiSettings;

/// All nodes and what goes on between them.
#[derive(Clone)]
pub(super) struct World {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    nodes: BTreeMap<NodeId, Place>,
    /// Nodes that neither hear nor are heard.
    cut: BTreeSet<NodeId>,
    /// Nodes that never answer a question.
    silent: BTreeSet<NodeId>,
    /// Further than the others' by so much.
    wall_ahead_ms: BTreeMap<NodeId, u64>,
    /// Refuse commands as a full queue would.
    busy: bool,
    /// Views that wait to be published, when they are held.
    held: Option<Vec<(NodeId, Arc<View>)>>,
    now_ms: u64,
    replies: BTreeMap<CommandId, Result<Answer, Refusal>>,
    commands: u64,
}

struct Place {
    heart: Node,
    view: Arc<View>,
    changes: watch::Sender<Revision>,
    spans: Vec<Span>,
    disk_failing: Option<DiskFailing>,
}

const START_UNIX_MS: u64 = 1_700_000_000_000;

impl World {
    /// Nodes of these names, each in the zone `zone-NAME`, that know each other.
    pub(super) fn of(names: &[&str]) -> World {
        let nodes = names.iter().map(|name| (id(name), Place::new(name))).collect();
        let inner = Inner {
            nodes,
            cut: BTreeSet::new(),
            silent: BTreeSet::new(),
            wall_ahead_ms: BTreeMap::new(),
            busy: false,
            held: None,
            now_ms: 0,
            replies: BTreeMap::new(),
            commands: 0,
        };
        let world = World { inner: Arc::new(Mutex::new(inner)) };
        for name in names {
            world.lock().input(&id(name), Input::Tick);
            for other in names.iter().filter(|other| *other != name) {
                world.lock().input(&id(name), Input::Peer(PeerEvent::Up(id(other), facts(other))));
            }
        }
        world
    }

    /// A node's disk takes no writes from here on, for this reason.
    pub(super) fn disk_fails(&self, node: &str, reason: &str) {
        let failing = DiskFailing { since: WallTime(START_UNIX_MS), reason: reason.into() };
        self.lock().nodes.get_mut(&id(node)).unwrap().disk_failing = Some(failing);
    }

    /// From now on nothing passes between this node and the others.
    pub(super) fn cut(&self, name: &str) {
        self.lock().cut.insert(id(name));
    }

    /// Everything passes again, but what was lost is still missing.
    pub(super) fn reconnect(&self) {
        self.lock().cut.clear();
    }

    /// Everything passes again, and all repair with all.
    pub(super) fn heal(&self) {
        let mut inner = self.lock();
        inner.cut.clear();
        for _ in 0..20 {
            inner.now_ms += 2_000;
            for name in inner.nodes.keys().cloned().collect::<Vec<_>>() {
                inner.input(&name, Input::Tick);
            }
        }
    }

    /// Membership at `at` says this of `name`.
    pub(super) fn lost(&self, at: &str, name: &str) {
        self.lock().input(&id(at), Input::Peer(PeerEvent::Lost(id(name))));
    }

    /// From now on this node answers no question.
    pub(super) fn silence(&self, name: &str) {
        self.lock().silent.insert(id(name));
    }

    /// This node's wall clock is ahead of all others.
    pub(super) fn clock_ahead(&self, name: &str, by_ms: u64) {
        self.lock().wall_ahead_ms.insert(id(name), by_ms);
    }

    /// From now on all queues are full.
    pub(super) fn busy(&self) {
        self.lock().busy = true;
    }

    /// From now on views are published late.
    pub(super) fn hold_views(&self) {
        self.lock().held = Some(Vec::new());
    }

    /// Publishes the views that were held.
    pub(super) fn release_views(&self) {
        let mut inner = self.lock();
        for (node, view) in inner.held.take().unwrap_or_default() {
            inner.nodes.get_mut(&node).unwrap().publish(view);
        }
    }

    /// How many commands were given so far.
    pub(super) fn commands(&self) -> u64 {
        self.lock().commands
    }

    /// This node keeps this span.
    pub(super) fn saw(&self, name: &str, span: Span) {
        self.lock().nodes.get_mut(&id(name)).unwrap().spans.push(span);
    }

    pub(super) fn view(&self, name: &str) -> Arc<View> {
        self.lock().nodes[&id(name)].view.clone()
    }

    /// A control surface in front of this node, with settings fit for tests.
    pub(super) fn server(&self, name: &str) -> Server {
        self.server_with(name, settings())
    }

    pub(super) fn server_with(&self, name: &str, settings: ApiSettings) -> Server {
        let ready = Arc::new(AtomicBool::new(true));
        let context = Context::new(settings, Arc::new(self.port(name)), Vec::new(), ready.clone());
        Server { router: router(context.clone()), context, ready }
    }

    pub(super) fn port(&self, name: &str) -> Port {
        Port { world: self.clone(), me: id(name) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

pub(super) fn settings() -> ApiSettings {
    ApiSettings { listen: "127.0.0.1:0".parse().unwrap(), ask_timeout_ms: 100, ..ApiSettings::default() }
}

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn zone(name: &str) -> Zone {
    format!("zone-{name}").parse().unwrap()
}

fn facts(name: &str) -> NodeFacts {
    NodeFacts {
        incarnation: Incarnation(1),
        zone: zone(name),
        region: Default::default(),
        cell: Default::default(),
        version: "test".into(),
        address: "127.0.0.1:1".into(),
    }
}

impl Place {
    fn publish(&mut self, view: Arc<View>) {
        self.view = view;
        self.changes.send_replace(self.view.revision);
    }

    fn new(name: &str) -> Place {
        let settings = Settings { zone: zone(name), ..Settings::default() };
        let now = Now { elapsed: Instant(0), wall: WallTime(START_UNIX_MS) };
        let heart = Node::new(id(name), facts(name), settings, Memory::default(), 1, now);
        let view = heart.view().clone();
        Place { heart, changes: watch::Sender::new(view.revision), view, spans: Vec::new(), disk_failing: None }
    }
}

impl Inner {
    /// Gives a node an input and carries what follows to the others, until all is quiet.
    fn input(&mut self, to: &NodeId, input: Input) {
        let mut waiting = VecDeque::from([(to.clone(), input)]);
        while let Some((to, input)) = waiting.pop_front() {
            self.now_ms += 1;
            let now = Now { elapsed: Instant(self.now_ms * 1_000), wall: WallTime(START_UNIX_MS + self.now_ms) };
            let mut out = Vec::new();
            let Some(place) = self.nodes.get_mut(&to) else { continue };
            place.heart.handle(now, input, &mut out);
            for output in out {
                match output {
                    Output::Publish(view) => match &mut self.held {
                        Some(held) => held.push((to.clone(), view)),
                        None => place.publish(view),
                    },
                    Output::Reply(command, answer) => drop(self.replies.insert(command, answer)),
                    Output::Send(peer, message) if !self.cut.contains(&to) && !self.cut.contains(&peer) => {
                        waiting.push_back((peer, Input::Message(to.clone(), message)));
                    }
                    _ => {}
                }
            }
        }
    }

    fn answer(&self, node: &NodeId, question: &Question) -> Reply {
        let place = &self.nodes[node];
        match question {
            Question::Status => Reply::Status(NodeStatus {
                node: node.clone(),
                incarnation: Incarnation(1),
                version: "test".into(),
                uptime_ms: self.now_ms,
                wall: WallTime(unix_ms() + self.wall_ahead_ms.get(node).copied().unwrap_or(0)),
                revision: place.view.revision,
                fingerprint: place.view.fingerprint,
                members_alive: place.view.alive().count() as u32,
                disk_failing: place.disk_failing.clone(),
                catching_up: place.view.catching_up.as_deref().cloned(),
                certificate: None,
            }),
            Question::Trace(trace) => {
                Reply::Spans(place.spans.iter().filter(|span| span.trace == *trace).cloned().collect())
            }
            Question::Guards(service) => {
                let refusal = serde_json::json!({"guard": "rate", "reason": "over", "rule": "few", "count": 2});
                let problem = format!("seen at {node} for {service}");
                Reply::Guards(serde_json::json!({"problems": [problem], "refusals": [refusal]}).to_string())
            }
            Question::Try { service, text, for_all } => {
                let why = format!("{text:?} at {node} for {service}, all: {for_all}");
                let refused = starling_core::policy::Refused { guard: "rate".into(), why, was: 1, would: 2 };
                let trial = starling_core::policy::Trial { requests: 5, refusals: vec![refused], ..Default::default() };
                Reply::Tried(Ok(serde_json::to_string(&trial).unwrap()))
            }
            Question::RecentTraces(limit) => {
                let roots = place.spans.iter().rev().filter(|span| span.parent.is_none());
                Reply::Spans(roots.take(*limit as usize).cloned().collect())
            }
        }
    }
}

fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// One node of the world, as its control surface holds it.
pub(super) struct Port {
    world: World,
    me: NodeId,
}

impl MeshPort for Port {
    fn me(&self) -> &NodeId {
        &self.me
    }

    fn view(&self) -> Arc<View> {
        self.world.lock().nodes[&self.me].view.clone()
    }

    fn changes(&self) -> watch::Receiver<Revision> {
        self.world.lock().nodes[&self.me].changes.subscribe()
    }

    fn command(&self, command: Command) -> Later<'_, Result<Answer, CommandError>> {
        let mut inner = self.world.lock();
        let answer = if inner.busy {
            Err(CommandError::Busy)
        } else {
            inner.commands += 1;
            let number = CommandId(inner.commands);
            inner.input(&self.me, Input::Command(number, command));
            inner.replies.remove(&number).unwrap().map_err(CommandError::from)
        };
        Box::pin(std::future::ready(answer))
    }

    fn ask<'a>(
        &'a self,
        node: &'a NodeId,
        question: Question,
        timeout: Duration,
    ) -> Later<'a, Result<Reply, LinkError>> {
        Box::pin(async move {
            let answer = {
                let inner = self.world.lock();
                let heard = !inner.silent.contains(node) && (*node == self.me || !inner.cut.contains(node));
                heard.then(|| inner.answer(node, &question))
            };
            match answer {
                Some(reply) => Ok(reply),
                None => {
                    tokio::time::sleep(timeout).await;
                    Err(LinkError::TimedOut { node: node.clone(), timeout })
                }
            }
        })
    }
}

/// A control surface without a socket.
#[derive(Clone)]
pub(super) struct Server {
    router: Router,
    pub(super) context: Shared,
    ready: Arc<AtomicBool>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Server {
    pub(super) async fn send(&self, request: Request<Body>) -> Answered {
        let response = TowerToHyperService::new(self.router.clone()).call(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answered { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// `"PUT /v1/…"`, with this body.
    pub(super) async fn ask(&self, line: &str, body: &str) -> Answered {
        self.ask_with(line, &[], body).await
    }

    pub(super) async fn ask_with(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Answered {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(path).header("host", "127.0.0.1:15000");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    pub(super) async fn get(&self, path: &str) -> Answered {
        self.ask(&format!("GET {path}"), "").await
    }

    pub(super) async fn register(&self, service: &str, instance: &str, port: u16) {
        let line = format!("PUT /v1/services/{service}/instances/{instance}");
        self.ask(&line, &format!("{{\"port\": {port}}}")).await.expect(200);
    }

    /// Asks in the background; returns once the query is seen waiting.
    pub(super) async fn wait_for(&self, path: String) -> tokio::task::JoinHandle<Answered> {
        let before = self.context.waiters.available_permits();
        let server = self.clone();
        let waiter = tokio::spawn(async move { server.get(&path).await });
        eventually(|| self.context.waiters.available_permits() < before).await;
        waiter
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }
}

impl Answered {
    /// The same, if its status is this.
    pub(super) fn expect(self, status: u16) -> Answered {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(super) fn error(&self) -> ErrorBody {
        self.json()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().unwrap()
    }

    pub(super) fn revision(&self) -> u64 {
        self.header("x-starling-revision").parse().unwrap()
    }
}

/// Polls until it is true; fails after ten seconds.
pub(super) async fn eventually(mut check: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(tokio::time::Instant::now() < deadline, "it did not become true within ten seconds");
        tokio::task::yield_now().await;
    }
}
