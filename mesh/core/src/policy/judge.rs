//! Which documents stand for a service at this node.
//!
//! Two documents may speak of it: the one for all services and its own. Each is judged on its own, so that whoever writes a bad
//! one takes nothing from the other. What is bad (no TOML, out of range, in contradiction to this node's settings) falls
//! back to the last version this node saw to be good; after a restart there is none, and the document is left out.
//!
//! Two that are good may contradict each other (a `max` of the one below the `min` of the other). Then whichever
//! changed since both last stood together falls back to what it was; if that cannot be told, the service's own
//! document stands and the one for all is left out for this service: the most specific word wins, as everywhere in policies.
//! All of this is said where somebody looks: [`Judgement::problems`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use toml::Table;

use super::{Document, Layers, Problem, document_of, mesh_document};
use crate::id::{ConfigKey, ServiceKey};
use crate::view::View;

/// What stands for a service.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// The document for all services.
    pub mesh: Layer,
    /// The service's own.
    pub service: Layer,
}

/// A document, or what is left of it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its key.
    pub key: ConfigKey,
    /// What is in force.
    pub document: Option<Arc<Document>>,
    /// Whether that is the version the mesh serves.
    pub state: LayerState,
    /// What is wrong with that version.
    pub problems: Vec<Problem>,
}

/// How much of a document is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// There is none.
    Absent,
    /// The version the mesh serves.
    InForce,
    /// That one cannot be used; the last good one this node saw is.
    LastGood,
    /// That one cannot be used, and this node saw no good one since it started.
    LeftOut,
}

/// The documents that stood: the one for all services, and the service's own.
pub type Good = [Option<Arc<Document>>; 2];

impl Judgement {
    /// Judges what a view serves for a service; `before`: what stood at the last judgement, if there was one.
    pub fn of(view: &View, node: &Table, service: &ServiceKey, before: Option<&Good>) -> Self {
        let layer = |key: ConfigKey| {
            let body = view.config(&key).and_then(|config| config.served()).and_then(|version| version.body.as_ref());
            let read = body.map(|body| Document::read(&key, body).map(Arc::new));
            Layer::read(key, read)
        };
        let mut judged = Self { mesh: layer(mesh_document()), service: layer(document_of(service)) };
        judged.decide(node, before);
        judged
    }

    /// What is wrong, in sentences that name the document.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let layers = [&self.mesh, &self.service].into_iter();
        layers.flat_map(|layer| layer.problems.iter().map(|problem| format!("{}: {problem}", layer.key)))
    }

    /// The layers, to be laid over each other.
    pub fn layers<'a>(&'a self, node: &'a Table) -> Layers<'a> {
        Layers { node, mesh: self.mesh.document.as_deref(), service: self.service.document.as_deref() }
    }

    /// What to go back to, next time.
    pub fn good(&self) -> Good {
        [self.mesh.document.clone(), self.service.document.clone()]
    }

    fn decide(&mut self, node: &Table, before: Option<&Good>) {
        // Nearly always all is well, and this is all there is to do.
        if self.problems().next().is_none() && fits(&self.layers(node)).is_ok() {
            return;
        }
        let [good_mesh, good_service] = before.cloned().unwrap_or_default();
        let none = Layers { node, mesh: None, service: None };
        self.mesh.judge(&good_mesh, |document| fits(&Layers { mesh: Some(document), ..none }));
        self.service.judge(&good_service, |document| fits(&Layers { service: Some(document), ..none }));
        let Err(problem) = fits(&self.layers(node)) else { return };
        let with = |mesh: &Option<Arc<Document>>, service: &Option<Arc<Document>>| {
            fits(&Layers { node, mesh: mesh.as_deref(), service: service.as_deref() }).is_ok()
        };
        let message =
            |other: &Layer| Problem { message: format!("{} (with {})", problem.message, other.key), ..problem.clone() };
        let (of_mesh, of_service) = (message(&self.service), message(&self.mesh));
        match before {
            Some([mesh, _]) if with(mesh, &self.service.document) => self.mesh.fall_back(mesh, of_mesh),
            Some([_, service]) if with(&self.mesh.document, service) => self.service.fall_back(service, of_service),
            Some([mesh, service]) => {
                self.mesh.fall_back(mesh, of_mesh);
                self.service.fall_back(service, of_service);
            }
            None => self.mesh.fall_back(&None, of_mesh),
        }
    }
}

impl Layer {
    fn read(key: ConfigKey, read: Option<Result<Arc<Document>, Vec<Problem>>>) -> Self {
        let (document, state, problems) = match read {
            None => (None, LayerState::Absent, Vec::new()),
            Some(Ok(document)) => (Some(document), LayerState::InForce, Vec::new()),
            Some(Err(problems)) => (None, LayerState::LeftOut, problems),
        };
        Self { key, document, state, problems }
    }

    /// Falls back, if it is bad by itself.
    fn judge(&mut self, good: &Option<Arc<Document>>, fits: impl Fn(&Document) -> Result<(), Problem>) {
        if let Some(Err(problem)) = self.document.as_deref().map(fits) {
            self.fall_back(good, problem);
        } else if self.state == LayerState::LeftOut && good.is_some() {
            (self.document, self.state) = (good.clone(), LayerState::LastGood);
        }
    }

    fn fall_back(&mut self, good: &Option<Arc<Document>>, problem: Problem) {
        self.document = good.clone();
        self.state = if good.is_some() { LayerState::LastGood } else { LayerState::LeftOut };
        self.problems.push(problem);
    }
}

/// Whether these layers can stand over each other, all routes included.
fn fits(layers: &Layers<'_>) -> Result<(), Problem> {
    layers.service()?;
    let routes = layers.service.map_or(0, |document| document.routes.len());
    (0..routes).try_for_each(|place| layers.route(place).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: &str = "[breaker]\nopen_ms = 1000\nmax_open_ms = 2000\n";
    const HIGH: &str = "[breaker]\nopen_ms = 6000\nmax_open_ms = 9000\n";

    /// What a node with these settings makes of these documents, when the good ones were these.
    fn judged(node: &str, texts: [Option<&str>; 2], before: Option<&Good>) -> Judgement {
        let keys = [
            mesh_document(),
            document_of(&ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() }),
        ];
        let [mesh, service] = [0, 1].map(|place| {
            let read =
                texts[place].map(|text| Document::read(&keys[place], &text.as_bytes().to_vec().into()).map(Arc::new));
            Layer::read(keys[place].clone(), read)
        });
        let mut judged = Judgement { mesh, service };
        judged.decide(&toml::from_str(node).unwrap(), before);
        judged
    }

    fn states(judged: &Judgement) -> [LayerState; 2] {
        [judged.mesh.state, judged.service.state]
    }

    use LayerState::{Absent, InForce, LastGood, LeftOut};

    #[test]
    fn a_bad_document_for_all_takes_nothing_from_a_services_own() {
        for bad in ["no toml", "[timeouts]\nrequest_ms = 0\n", "[[route]]\npath = \"/a\"\n"] {
            let judged = judged("", [Some(bad), Some("[timeouts]\nrequest_ms = 7\n")], None);
            assert_eq!(states(&judged), [LeftOut, InForce], "{bad}");
            assert_eq!(judged.layers(&Table::new()).service().unwrap().sections.timeouts.request_ms, 7);
            assert!(judged.problems().all(|problem| problem.starts_with("default/policy/*: ")));
        }
    }

    #[test]
    fn what_contradicts_this_nodes_settings_is_left_out_alone() {
        let node = "breaker.max_open_ms = 2000\nbreaker.open_ms = 1000";
        let judged = judged(node, [Some("breaker.open_ms = 5000"), Some("[timeouts]\nrequest_ms = 7\n")], None);
        assert_eq!(states(&judged), [LeftOut, InForce]);
        assert_eq!(judged.mesh.problems.len(), 1);
    }

    #[test]
    fn of_two_that_contradict_each_other_the_one_that_changed_falls_back() {
        let (raised, lowered) = ("[breaker]\nopen_ms = 5000\n", "[breaker]\nmax_open_ms = 5500\n");
        let first = judged("", [Some(LOW), None], None);
        assert_eq!(states(&first), [InForce, Absent]);
        let edited = judged("", [Some(LOW), Some(raised)], Some(&first.good()));
        assert_eq!(states(&edited), [InForce, LeftOut], "the service's is new, and there was none to fall back to");
        let started = judged("", [Some(LOW), Some(raised)], None);
        assert_eq!(states(&started), [LeftOut, InForce], "nobody knows which changed: the most specific stands");
        let good = judged("", [Some(HIGH), Some(raised)], None);
        assert_eq!(states(&good), [InForce, InForce]);
        let edited = judged("", [Some(LOW), Some(raised)], Some(&good.good()));
        assert_eq!(states(&edited), [LastGood, InForce], "the one for all had changed");
        let edited = judged("", [Some(HIGH), Some(lowered)], Some(&good.good()));
        assert_eq!(states(&edited), [InForce, LastGood], "the service's had changed");
        assert!(edited.problems().next().unwrap().contains("(with default/policy/*)"));
    }

    #[test]
    fn a_document_that_is_gone_is_gone() {
        let good = judged("", [Some(LOW), Some(HIGH)], None);
        assert_eq!(states(&judged("", [None, None], Some(&good.good()))), [Absent, Absent]);
    }
}
