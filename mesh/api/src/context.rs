//! What all requests share: the node, the settings, the limits and the counters.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use starling_core::observe::{Exposition, MetricSource};
use starling_core::{Answer, Command, Refusal};
use starling_net::CommandError;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::documents::no_document;
use crate::failure::Failure;
use crate::lists::ListCache;
use crate::port::MeshPort;
use crate::services::no_instance;
use crate::settings::ApiSettings;
use crate::watch::ListRevisions;

/// The context, as handlers hold it.
pub(crate) type Shared = Arc<Context>;

/// What all requests share.
pub(crate) struct Context {
    pub(crate) mesh: Arc<dyn MeshPort>,
    pub(crate) settings: ApiSettings,
    pub(crate) metrics: Vec<Arc<dyn MetricSource>>,
    pub(crate) ready: Arc<AtomicBool>,
    /// Turns true when the node stops: waiters answer at once.
    pub(crate) stopping: watch::Sender<bool>,
    /// One permit per blocking query that may wait.
    pub(crate) waiters: Semaphore,
    /// One permit per request that may ask all other nodes.
    pub(crate) gatherings: Semaphore,
    pub(crate) lists: ListCache,
    pub(crate) revisions: ListRevisions,
    pub(crate) counters: Counters,
}

/// How many requests may ask all other nodes at the same time: each is a question to every node of the mesh.
const MAX_GATHERINGS: usize = 8;

impl Context {
    pub(crate) fn new(
        settings: ApiSettings,
        mesh: Arc<dyn MeshPort>,
        metrics: Vec<Arc<dyn MetricSource>>,
        ready: Arc<AtomicBool>,
    ) -> Shared {
        Arc::new(Self {
            waiters: Semaphore::new(settings.max_waiters.min(Semaphore::MAX_PERMITS)),
            gatherings: Semaphore::new(MAX_GATHERINGS),
            stopping: watch::Sender::new(false),
            lists: ListCache::default(),
            revisions: ListRevisions::default(),
            counters: Counters::default(),
            mesh,
            settings,
            metrics,
            ready,
        })
    }

    /// Whether the assembler says this node may be used.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Carries out a command, within the time a request may take. When it returns, the view shows what was written: who
    /// writes and then reads at the same node sees it.
    pub(crate) async fn command(&self, command: Command) -> Result<Answer, Failure> {
        let limit = self.settings.request_timeout();
        let in_time = timeout(limit, async {
            let answer = self.mesh.command(command).await?;
            let Answer::Done { revision, .. } = &answer;
            let mut changes = self.mesh.changes();
            while self.mesh.view().revision < *revision && changes.changed().await.is_ok() {}
            Ok(answer)
        });
        match in_time.await {
            Ok(answer) => answer.map_err(|error| self.explain(error)),
            Err(_) => {
                let text = format!("the node did not carry this out within {} ms", limit.as_millis());
                Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, text)
                    .hint("it may still happen; read before you repeat it"))
            }
        }
    }

    /// Where the view knows the name that may have been meant, it is said.
    fn explain(&self, error: CommandError) -> Failure {
        match error {
            CommandError::Refused(Refusal::NoInstance(key)) => no_instance(&self.mesh.view(), &key),
            CommandError::Refused(Refusal::NoConfig(key)) => no_document(&self.mesh.view(), &key),
            other => other.into(),
        }
    }
}

/// What the control surface counts of itself.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// By route, as many as there are in the router.
    requests: Mutex<BTreeMap<Box<str>, Answers>>,
    /// Connections now, accepted, refused for being too many, and ended because the client did not read.
    pub(crate) connections: Mutex<Connections>,
}

/// Requests of one route, by method and status.
type Answers = BTreeMap<(&'static str, u16), u64>;

/// Connections as numbers.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Connections {
    pub(crate) open: usize,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) stalled: u64,
}

impl Counters {
    /// Notes an answered request.
    pub(crate) fn answered(&self, method: &'static str, route: &str, status: StatusCode) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (method, status.as_u16());
        match requests.get_mut(route) {
            Some(answers) => *answers.entry(key).or_default() += 1,
            None => drop(requests.insert(route.into(), BTreeMap::from([(key, 1)]))),
        }
    }

    /// Changes the numbers of connections.
    pub(crate) fn connections(&self, change: impl FnOnce(&mut Connections)) {
        change(&mut self.connections.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl MetricSource for Context {
    fn collect(&self, out: &mut Exposition) {
        out.family("starling_build_info", "gauge", "The version of the running program; always 1.");
        out.sample("starling_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        out.single("starling_ready", "gauge", "1 when this node is ready to serve.", f64::from(self.is_ready()));

        out.family("starling_api_requests_total", "counter", "Requests answered by the control surface.");
        let requests = self.counters.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (route, answers) in &requests {
            for ((method, status), count) in answers {
                let labels = [("method", *method), ("route", route), ("status", &status.to_string())];
                out.sample("starling_api_requests_total", &labels, *count as f64);
            }
        }

        let connections = *self.counters.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.settings.max_waiters.saturating_sub(self.waiters.available_permits());
        let mut single = |name, kind, help, value: f64| out.single(name, kind, help, value);
        single("starling_api_waiters", "gauge", "Blocking queries waiting now.", waiting as f64);
        single(
            "starling_api_list_cache_drops_total",
            "counter",
            "Times the encoded lists of services were dropped because there were too many.",
            self.lists.drops() as f64,
        );
        single("starling_api_connections", "gauge", "Open connections.", connections.open as f64);
        single(
            "starling_api_connections_total",
            "counter",
            "Connections accepted since the start.",
            connections.accepted as f64,
        );
        single(
            "starling_api_connections_refused_total",
            "counter",
            "Connections refused because there were too many.",
            connections.refused as f64,
        );
        single(
            "starling_api_connections_stalled_total",
            "counter",
            "Connections ended because the client did not read its answers.",
            connections.stalled as f64,
        );
    }
}
