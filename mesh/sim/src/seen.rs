//! The rest of the vocabulary of tests: what is seen of a mesh, and what must be true of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use starling_core::config::Body;
use starling_core::id::NodeId;
use starling_core::time::WallTime;
use starling_core::view::{InstanceView, Usability, View};

use crate::ask::{config_key, instance_key, named};
use crate::check::Story;
use crate::host::Traffic;
use crate::mesh::Mesh;
use crate::recording::Recording;
use crate::report::Report;

/// What is seen of it.
impl Mesh {
    /// A node's picture.
    ///
    /// # Panics
    /// When it is down: it has none then.
    #[track_caller]
    pub fn view(&self, node: &str) -> Arc<View> {
        match self.try_view(node) {
            Some(view) => view,
            None => panic!("{node} is down and shows nothing"),
        }
    }

    /// A node's picture, if it is up.
    #[track_caller]
    pub fn try_view(&self, node: &str) -> Option<Arc<View>> {
        self.world.view(self.node(node)).cloned()
    }

    /// A node's wall clock.
    #[track_caller]
    pub fn wall(&self, node: &str) -> WallTime {
        self.world.hosts[self.node(node)].now(self.world.now).wall
    }

    /// What a node shows of an instance.
    #[track_caller]
    pub fn instance(&self, node: &str, path: &str) -> Option<InstanceView> {
        self.try_view(node)?.instance(&named(instance_key(path))).cloned()
    }

    /// Whether a node lists an instance, usable or not.
    #[track_caller]
    pub fn sees(&self, node: &str, path: &str) -> bool {
        self.instance(node, path).is_some()
    }

    /// Whether a node would send an instance traffic without a doubt.
    #[track_caller]
    pub fn trusts(&self, node: &str, path: &str) -> bool {
        self.instance(node, path).is_some_and(|shown| shown.usability == Usability::Ready)
    }

    /// The document a node serves, as text.
    #[track_caller]
    pub fn config(&self, node: &str, path: &str) -> Option<String> {
        let view = self.try_view(node)?;
        let served = view.config(&named(config_key(path)))?.served()?.clone();
        served.body.as_ref().map(|body| String::from_utf8_lossy(body.as_bytes()).into_owned())
    }

    /// The concurrent versions of a document at a node, the served one first; a deletion is `None`. Empty unless there is
    /// a conflict.
    #[track_caller]
    pub fn conflicts(&self, node: &str, path: &str) -> Vec<Option<String>> {
        let Some(view) = self.try_view(node) else { return Vec::new() };
        let Some(config) = view.config(&named(config_key(path))).filter(|config| config.in_conflict()) else {
            return Vec::new();
        };
        let text = |body: &Body| String::from_utf8_lossy(body.as_bytes()).into_owned();
        config.versions.iter().map(|version| version.body.as_ref().map(text)).collect()
    }

    /// How long every node has been running, at its full speed, and reaching every other. `None` while that is not so.
    /// Lossy links are no trouble in this sense.
    pub fn calm_for(&self) -> Option<Duration> {
        let world = &self.world;
        let calm = !world.cuts.any() && world.hosts.iter().all(|host| host.is_running() && host.slow_us == 0);
        calm.then(|| Duration::from_micros(world.now - world.troubled_at))
    }

    /// The run so far as data to be drawn; `None` unless it was asked for with [`Builder::record`](crate::Builder::record).
    pub fn recording(&self) -> Option<Recording> {
        self.world.recorder.as_ref().map(|recorder| recorder.so_far(self.world.now))
    }

    /// What each node has sent so far.
    pub fn traffic(&self) -> BTreeMap<NodeId, Traffic> {
        self.world.hosts.iter().map(|host| (host.id.clone(), host.traffic)).collect()
    }

    /// The run's figures so far.
    pub fn report(&self) -> Report {
        self.world.figures.report(&self.world.hosts, &self.world.ledger, self.world.now)
    }
}

/// What must be true.
impl Mesh {
    /// Every running node lists this instance.
    ///
    /// # Errors
    /// A story of who does not.
    pub fn all_see(&self, path: &str) -> Result<(), Story> {
        self.everywhere(&format!("all see {path}"), |mesh, node| mesh.sees(node, path))
    }

    /// No running node lists this instance.
    ///
    /// # Errors
    /// A story of who does.
    pub fn none_sees(&self, path: &str) -> Result<(), Story> {
        self.everywhere(&format!("none sees {path}"), |mesh, node| !mesh.sees(node, path))
    }

    /// Every running node would send this instance traffic without a doubt.
    ///
    /// # Errors
    /// A story of who would not.
    pub fn all_trust(&self, path: &str) -> Result<(), Story> {
        self.everywhere(&format!("all trust {path}"), |mesh, node| mesh.trusts(node, path))
    }

    /// Every running node serves this document with this content.
    ///
    /// # Errors
    /// A story of who serves something else.
    pub fn all_serve(&self, path: &str, body: &str) -> Result<(), Story> {
        self.everywhere(&format!("all serve {path} as {body:?}"), |mesh, node| {
            mesh.config(node, path).as_deref() == Some(body)
        })
    }

    /// A condition holds at every running node.
    ///
    /// # Errors
    /// A story of where it does not.
    pub fn everywhere(&self, what: &str, holds: impl Fn(&Mesh, &str) -> bool) -> Result<(), Story> {
        let running = self.running();
        let failing: Vec<String> =
            running.iter().filter(|node| !holds(self, node.as_str())).map(|node| format!("not at {node}")).collect();
        if failing.is_empty() {
            return Ok(());
        }
        let title = format!("expected that {what}; it is not so at {} of {} nodes", failing.len(), running.len());
        Err(self.world.story(title, failing))
    }

    /// Nodes that can reach each other agree: equal fingerprints and equal pictures of services and documents.
    ///
    /// # Errors
    /// A story of what they disagree about.
    pub fn converged(&self) -> Result<(), Story> {
        match self.world.disagreements() {
            none if none.is_empty() => Ok(()),
            findings => Err(self.world.story("nodes that reach each other disagree".into(), findings)),
        }
    }

    /// Whether nodes that can reach each other agree; see [`Mesh::converged`] for what they disagree about.
    pub fn agrees(&self) -> bool {
        self.world.fingerprints_agree() && self.world.disagreements().is_empty()
    }

    /// Lets time pass until nodes that can reach each other agree, and tells how much it took.
    ///
    /// # Errors
    /// A story of what they disagree about after so long.
    pub fn converges_within(&mut self, bound: Duration) -> Result<Duration, Story> {
        if let Some(took) = self.run_until(bound, Mesh::agrees) {
            self.world.note(format!("all agree, after {took:?}"));
            return Ok(took);
        }
        let title = format!("nodes that reach each other disagree after {bound:?}");
        Err(self.world.story(title, self.world.disagreements()))
    }

    /// Nothing acknowledged is lost, nothing is shown that nobody wrote, and every command was answered.
    ///
    /// An acknowledged write must be shown or have been replaced: always at its author while that runs, and wherever
    /// nodes agree.
    ///
    /// # Errors
    /// A story of what is missing where.
    pub fn nothing_lost(&self) -> Result<(), Story> {
        let mut findings = self.world.losses();
        if self.world.options.disk.is_zero() {
            let waiting = |at: &usize| self.world.hosts[*at].is_running() && self.world.ledger.waiting(*at).is_some();
            let silent = (0..self.world.hosts.len()).filter(waiting);
            findings.extend(silent.map(|at| format!("{} has not answered a command", self.world.hosts[at].id)));
        }
        if findings.is_empty() {
            return Ok(());
        }
        Err(self.world.story("something acknowledged is lost".into(), findings))
    }

    /// The state of things to be read: who runs, what they disagree about, what happened last, how to replay.
    pub fn explain(&self) -> Story {
        let states = self.world.hosts.iter().map(|host| {
            let shown = host.heart.as_ref().map(|heart| heart.view());
            let shown = shown.map_or(String::new(), |view| {
                format!(", {} services, fingerprint {}", view.services.size(), view.fingerprint)
            });
            format!("{}: {:?}, start {}{shown}", host.id, host.state, host.run())
        });
        let findings = states.chain(self.world.disagreements()).collect();
        self.world.story("how things are".into(), findings)
    }

    /// The notable happenings so far (the last 10,000), each with its virtual time.
    pub fn journal(&self) -> impl Iterator<Item = String> {
        self.world.journal.iter().map(ToString::to_string)
    }
}
