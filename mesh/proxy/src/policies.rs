//! What is in force for a service: its documents in the view, read when they change and never twice.
//!
//! A document that cannot be read, or that contradicts what lies under it, changes nothing: the last good one stays in
//! force for as long as this node runs, and what is wrong is shown. Where there was never a good one, it is as if there
//! were none.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use starling_core::id::{ConfigKey, ServiceKey};
use starling_core::policy::{self, Document, Layers, Problem, Rules, Sections};
use starling_core::time::Stamp;
use starling_core::view::View;
use toml::Table;

use crate::settings::ProxySettings;

/// The node's own layer, and what follows from it alone.
#[derive(Debug)]
pub(crate) struct Ground {
    layer: Table,
    /// For services without a document.
    bare: Arc<Rules>,
}

/// What stands for one service.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    now: ArcSwapOption<Force>,
    /// The last good documents: for all services, and for this one.
    good: Mutex<[Option<Arc<Document>>; 2]>,
}

/// What was made of two versions of documents.
#[derive(Debug)]
struct Force {
    of: [Option<Stamp>; 2],
    rules: Arc<Rules>,
    problems: Vec<String>,
}

impl Ground {
    pub(crate) fn new(settings: &ProxySettings) -> Self {
        let layer = settings.as_policy();
        let bare = Layers { node: &layer, mesh: None, service: None }.resolve().unwrap_or_else(|problem| {
            // Settings are checked at the start, within bounds that are the policies' own.
            tracing::error!(%problem, "the node's settings are no policy; the program's defaults are in force");
            Rules { service: Sections::default(), routes: Vec::new() }
        });
        Self { layer, bare: Arc::new(bare) }
    }
}

impl Standing {
    /// What is in force by this view.
    pub(crate) fn rules(&self, key: &ServiceKey, view: &View, ground: &Ground) -> Arc<Rules> {
        let keys = [policy::mesh_document(), policy::document_of(key)];
        let of = [stamp(&keys[0], view), stamp(&keys[1], view)];
        if let Some(force) = &*self.now.load() {
            if force.of == of {
                return force.rules.clone();
            }
        } else if of == [None, None] {
            return ground.bare.clone();
        }
        self.renew(&keys, of, view, ground)
    }

    /// What is wrong with the documents, in sentences.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.now.load().as_ref().map(|force| force.problems.clone()).unwrap_or_default()
    }

    fn renew(&self, keys: &[ConfigKey; 2], of: [Option<Stamp>; 2], view: &View, ground: &Ground) -> Arc<Rules> {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.now.load_full();
        if let Some(force) = previous.as_ref().filter(|force| force.of == of) {
            return force.rules.clone();
        }
        let mut problems = Vec::new();
        let mut read: [Option<Arc<Document>>; 2] = [None, None];
        for place in 0..2 {
            read[place] = match document(&keys[place], view) {
                None => None,
                Some(Ok(document)) => Some(Arc::new(document)),
                Some(Err(wrong)) => {
                    problems.extend(wrong.iter().map(|problem| format!("{}: {problem}", keys[place])));
                    good[place].clone()
                }
            };
        }
        let resolve = |documents: &[Option<Arc<Document>>; 2]| {
            let [mesh, service] = documents;
            Layers { node: &ground.layer, mesh: mesh.as_deref(), service: service.as_deref() }.resolve()
        };
        let rules = match resolve(&read) {
            Ok(rules) => {
                *good = read;
                Arc::new(rules)
            }
            Err(problem) => {
                problems.push(format!("{}: {problem}", keys[1]));
                previous.map_or_else(|| ground.bare.clone(), |force| force.rules.clone())
            }
        };
        for problem in &problems {
            tracing::warn!(%problem, "a policy cannot be used; the last good one stays in force");
        }
        self.now.store(Some(Arc::new(Force { of, rules: rules.clone(), problems })));
        rules
    }
}

fn stamp(key: &ConfigKey, view: &View) -> Option<Stamp> {
    Some(view.config(key)?.served()?.stamp.clone())
}

fn document(key: &ConfigKey, view: &View) -> Option<Result<Document, Vec<Problem>>> {
    Some(Document::read(view.config(key)?.served()?.body.as_ref()?))
}
