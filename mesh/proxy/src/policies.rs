//! What is in force for a service: its documents in the view, read when they change and never twice.
//!
//! A document that cannot be read, or that contradicts what lies under it, changes nothing: the last good one stays in
//! force for as long as this node runs, and what is wrong is shown. Where there was never a good one, it is as if there
//! were none.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use starling_core::id::{ConfigKey, ServiceKey};
use starling_core::policy::{self, Document, Force, Layers, Moment, Problem};
use starling_core::time::{Stamp, WallTime};
use starling_core::view::View;
use toml::Table;

use crate::clock::{self, Clock};
use crate::settings::ProxySettings;

/// The node's own layer, and what follows from it alone.
#[derive(Debug)]
pub(crate) struct Ground {
    layer: Table,
    /// For services without a document.
    bare: Arc<Force>,
}

/// What stands for one service.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    now: ArcSwapOption<Made>,
    /// The last good documents: for all services, and for this one.
    good: Mutex<[Option<Arc<Document>>; 2]>,
}

/// What was made of two versions of documents.
#[derive(Debug)]
struct Made {
    of: [Option<Stamp>; 2],
    force: Arc<Force>,
    problems: Vec<String>,
}

impl Ground {
    /// # Errors
    /// What of the settings no policy may say.
    pub(crate) fn new(settings: &ProxySettings, clock: Clock) -> Result<Self, String> {
        let layer = settings.as_policy();
        let bare = Force::new(&Layers { node: &layer, mesh: None, service: None }, None, moment(clock, 1));
        Ok(Self { bare: Arc::new(bare.map_err(|problem| problem.to_string())?), layer })
    }
}

impl Standing {
    /// What is in force by this view.
    pub(crate) fn force(&self, key: &ServiceKey, view: &View, ground: &Ground, clock: Clock) -> Arc<Force> {
        let keys = [policy::mesh_document(), policy::document_of(key)];
        let of = [stamp(&keys[0], view), stamp(&keys[1], view)];
        if let Some(made) = &*self.now.load() {
            if made.of == of {
                return made.force.clone();
            }
        } else if of == [None, None] {
            return ground.bare.clone();
        }
        self.renew(&keys, of, view, ground, clock)
    }

    /// What was in force at the last request, if there is any document.
    pub(crate) fn last(&self) -> Option<Arc<Force>> {
        self.now.load().as_ref().map(|made| made.force.clone())
    }

    /// What is wrong with the documents, in sentences.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.now.load().as_ref().map(|made| made.problems.clone()).unwrap_or_default()
    }

    fn renew(
        &self,
        keys: &[ConfigKey; 2],
        of: [Option<Stamp>; 2],
        view: &View,
        ground: &Ground,
        clock: Clock,
    ) -> Arc<Force> {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.now.load_full();
        if let Some(made) = previous.as_ref().filter(|made| made.of == of) {
            return made.force.clone();
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
        let [mesh, service] = &read;
        let layers = Layers { node: &ground.layer, mesh: mesh.as_deref(), service: service.as_deref() };
        let before = previous.as_ref().map(|made| &*made.force);
        let members = view.alive().count() as u32;
        let force = match Force::new(&layers, before, moment(clock, members)) {
            Ok(force) => {
                *good = read;
                Arc::new(force)
            }
            Err(problem) => {
                problems.push(format!("{}: {problem}", keys[1]));
                previous.map_or_else(|| ground.bare.clone(), |made| made.force.clone())
            }
        };
        for problem in &problems {
            tracing::warn!(%problem, "a policy cannot be used; the last good one stays in force");
        }
        self.now.store(Some(Arc::new(Made { of, force: force.clone(), problems })));
        force
    }
}

fn moment(clock: Clock, members: u32) -> Moment {
    Moment { now: clock.now(), wall: WallTime(clock::wall_us() / 1_000), members }
}

fn stamp(key: &ConfigKey, view: &View) -> Option<Stamp> {
    Some(view.config(key)?.served()?.stamp.clone())
}

fn document(key: &ConfigKey, view: &View) -> Option<Result<Document, Vec<Problem>>> {
    Some(Document::read(view.config(key)?.served()?.body.as_ref()?))
}
