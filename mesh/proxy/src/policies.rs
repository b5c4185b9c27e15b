//! What is in force for a service: its documents in the view, read when they change and never twice.
//!
//! Which of them stand is judged by the core ([`Judgement`]): a bad one changes nothing and takes nothing from the other, the
//! last good one stays in force for as long as this node runs, and what is wrong is shown.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use starling_core::guard::limit::KeyBudget;
use starling_core::id::{ConfigKey, ServiceKey};
use starling_core::observe::Exposition;
use starling_core::policy::{self, Force, Good, Judgement, Layers, Moment};
use starling_core::time::{Stamp, WallTime};
use starling_core::view::View;
use toml::Table;

use crate::clock::{self, Clock};
use crate::settings::ProxySettings;

/// How many values all limits of this node tell apart at most, of all services together: 64 MB.
const MAX_NODE_KEYS: u64 = 4_000_000;

/// The node's own layer, and what follows from it alone.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) layer: Table,
    pub(crate) keys: Arc<KeyBudget>,
    /// For services without a document.
    bare: Arc<Force>,
}

/// What stands for one service.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    now: ArcSwapOption<Made>,
    /// What stood last; none before the first judgement.
    stood: Mutex<Option<Good>>,
}

/// What was made of two versions of documents.
#[derive(Debug)]
struct Made {
    of: [Option<Stamp>; 2],
    force: Arc<Force>,
    judgement: Judgement,
    problems: Vec<String>,
}

impl Ground {
    /// # Errors
    /// What of the settings no policy may say.
    pub(crate) fn new(settings: &ProxySettings, clock: Clock) -> Result<Self, String> {
        let (layer, keys) = (settings.as_policy(), Arc::new(KeyBudget::of(MAX_NODE_KEYS)));
        let layers = Layers { node: &layer, mesh: None, service: None };
        let bare = Force::new(&layers, None, moment(clock, 1, &keys)).map_err(|problem| problem.to_string())?;
        Ok(Self { bare: Arc::new(bare), keys, layer })
    }

    /// Shows how much of the memory for limits is given out.
    pub(crate) fn collect(&self, out: &mut Exposition) {
        let (used, short) = (self.keys.used() as f64, self.keys.short() as f64);
        out.single("starling_limit_keys", "gauge", "Values that limits of this node have room to tell apart.", used);
        let help = "Limits that got room for fewer values than they asked for.";
        out.single("starling_limit_keys_short_total", "counter", help, short);
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
        self.renew(key, of, view, ground, clock)
    }

    /// What was in force at the last request, if there is any document.
    pub(crate) fn last(&self) -> Option<Arc<Force>> {
        self.now.load().as_ref().map(|made| made.force.clone())
    }

    /// How the documents were judged at the last request, if there was one.
    pub(crate) fn judgement(&self) -> Option<Judgement> {
        self.now.load().as_ref().map(|made| made.judgement.clone())
    }

    /// What is wrong with the documents, in sentences.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.now.load().as_ref().map(|made| made.problems.clone()).unwrap_or_default()
    }

    fn renew(
        &self,
        key: &ServiceKey,
        of: [Option<Stamp>; 2],
        view: &View,
        ground: &Ground,
        clock: Clock,
    ) -> Arc<Force> {
        let mut stood = self.stood.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.now.load_full();
        if let Some(made) = previous.as_ref().filter(|made| made.of == of) {
            return made.force.clone();
        }
        let judgement = Judgement::of(view, &ground.layer, key, stood.as_ref());
        *stood = Some(judgement.good());
        let mut problems: Vec<String> = judgement.problems().collect();
        let before = previous.as_ref().map(|made| &*made.force);
        let members = view.alive().count() as u32;
        let made = Force::new(&judgement.layers(&ground.layer), before, moment(clock, members, &ground.keys));
        let force = made.map(Arc::new).unwrap_or_else(|problem| {
            // What stands was judged to fit; whatever this is, traffic goes on as it did.
            problems.push(format!("{}: {problem}", judgement.service.key));
            previous.map_or_else(|| ground.bare.clone(), |made| made.force.clone())
        });
        for problem in &problems {
            tracing::warn!(%problem, "a policy cannot be used; the last good one stays in force");
        }
        self.now.store(Some(Arc::new(Made { of, force: force.clone(), judgement, problems })));
        force
    }
}

fn moment(clock: Clock, members: u32, keys: &Arc<KeyBudget>) -> Moment<'_> {
    Moment { now: clock.now(), wall: WallTime(clock::wall_us() / 1_000), members, keys }
}

fn stamp(key: &ConfigKey, view: &View) -> Option<Stamp> {
    Some(view.config(key)?.served()?.stamp.clone())
}
