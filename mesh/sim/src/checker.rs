//! Judges that stand outside of the nodes and look at a mesh while it runs.
//!
//! [`Mesh::watch`](crate::Mesh::watch) appoints one; scenario files name those that ship (`check = [...]`). A judge of
//! your own is a struct that remembers what it needs and implements [`Checker`].

use std::collections::BTreeMap;
use std::fmt;

use starling_core::id::{InstanceKey, NodeId};
use starling_core::record::Key;
use starling_core::time::Stamp;
use starling_core::view::{MemberState, Revision, Usability};

use crate::check::Story;
use crate::links::micros;
use crate::mesh::Mesh;

/// How often checkers look, in microseconds of virtual time.
pub(crate) const LOOK_EVERY_US: u64 = 250_000;
/// Every how many looks all acknowledged writes are looked for.
const LOSSES_EVERY: u64 = 4;
/// How much longer than the failure detector may take a node may be trusted that is out of reach, in microseconds: its
/// own jitter (a quarter), and two looks.
const GHOST_SLACK_US: u64 = 1_000_000;
/// How long nodes may take to find each other again, besides what the detector takes, in microseconds.
const PEACE_US: u64 = 3_000_000;
/// After so long without any change a mesh is idle, in microseconds: what is sent then is what standing still costs.
const IDLE_AFTER_US: u64 = 10_000_000;
/// What an idle node may send in each repair interval, in bytes: the figure to reach is 1 KB/s at an interval of 1 s.
const IDLE_BYTES: f64 = 1_024.0;

/// Judges a mesh from outside, while it runs.
pub trait Checker: fmt::Debug {
    /// Its name, as stories tell it. Of the same kind of wrong it should be the same: a story is made shorter as long as
    /// the same judge complains.
    fn name(&self) -> &'static str;

    /// Looks at the mesh as it is now, four times in a virtual second, and says what is wrong, a sentence each.
    /// Whoever has found something is not asked again.
    fn look(&mut self, mesh: &Mesh) -> Vec<String>;
}

/// The checkers that ship, by name.
pub const CHECKERS: [&str; 6] =
    ["nothing-lost", "nothing-invented", "no-going-back", "no-ghost", "bounded", "preservation"];

/// One of the checkers that ship ([`CHECKERS`]).
///
/// # Errors
/// A sentence, when there is none of that name.
pub fn checker(name: &str) -> Result<Box<dyn Checker>, String> {
    Ok(match name {
        "nothing-lost" => Box::new(NothingLost::default()),
        "nothing-invented" => Box::new(NothingInvented::default()),
        "no-going-back" => Box::new(NoGoingBack::default()),
        "no-ghost" => Box::new(NoGhost),
        "bounded" => Box::new(Bounded::default()),
        "preservation" => Box::new(Preserved),
        _ => return Err(format!("there is no checker {name:?}; there is {}", CHECKERS.join(", "))),
    })
}

/// No acknowledged write is lost: each is shown at its author, and wherever nodes agree, or was replaced.
#[derive(Debug, Default)]
pub struct NothingLost {
    looks: u64,
}

impl Checker for NothingLost {
    fn name(&self) -> &'static str {
        "nothing-lost"
    }

    fn look(&mut self, mesh: &Mesh) -> Vec<String> {
        self.looks += 1;
        if self.looks.is_multiple_of(LOSSES_EVERY) { mesh.world.losses() } else { Vec::new() }
    }
}

/// Whether a node's picture has changed since it was last looked at.
#[derive(Debug, Default)]
struct News(BTreeMap<usize, (u64, Revision)>);

impl News {
    fn is_news(&mut self, node: usize, run: u64, revision: Revision) -> bool {
        self.0.insert(node, (run, revision)) != Some((run, revision))
    }
}

/// Nothing is shown that nobody wrote, or that was written differently.
#[derive(Debug, Default)]
pub struct NothingInvented {
    news: News,
}

impl Checker for NothingInvented {
    fn name(&self) -> &'static str {
        "nothing-invented"
    }

    fn look(&mut self, mesh: &Mesh) -> Vec<String> {
        let mut found = Vec::new();
        for (node, host) in mesh.world.hosts.iter().enumerate() {
            let Some(view) = host.heart.as_ref().map(|heart| heart.view()) else { continue };
            if self.news.is_news(node, host.run(), view.revision) {
                let invented = mesh.world.ledger.invented(view);
                found.extend(invented.into_iter().map(|what| format!("{} shows what nobody wrote: {what}", host.id)));
            }
        }
        found
    }
}

/// What a node showed of an instance: the newest stamp it ever showed, and whether it shows it now.
#[derive(Debug)]
struct Shown {
    stamp: Stamp,
    now: bool,
}

/// No node's picture of an instance goes back: none shows an older write after a newer one, and none shows again what it
/// no longer showed (a removal undone: a resurrected tombstone), unless somebody registered it anew.
#[derive(Debug, Default)]
pub struct NoGoingBack {
    news: News,
    /// By node: which start of it, and what that showed. A newer start knows only what its disk says.
    shown: BTreeMap<usize, (u64, BTreeMap<InstanceKey, Shown>)>,
}

impl Checker for NoGoingBack {
    fn name(&self) -> &'static str {
        "no-going-back"
    }

    fn look(&mut self, mesh: &Mesh) -> Vec<String> {
        let mut found = Vec::new();
        for (node, host) in mesh.world.hosts.iter().enumerate() {
            let Some(view) = host.heart.as_ref().map(|heart| heart.view()) else { continue };
            if !self.news.is_news(node, host.run(), view.revision) {
                continue;
            }
            let (run, known) = self.shown.entry(node).or_default();
            if std::mem::replace(run, host.run()) != host.run() {
                known.clear();
            }
            for shown in view.services.values().flat_map(|service| service.instances.iter()) {
                let key = Key::Instance(shown.key.clone());
                let order = |stamp| mesh.world.ledger.order(&key, stamp);
                match known.get(&shown.key) {
                    Some(before) if order(shown.stamp()) < order(&before.stamp) => found.push(format!(
                        "{} showed {} as of {} and now shows it as of {}",
                        host.id,
                        shown.key,
                        before.stamp,
                        shown.stamp()
                    )),
                    Some(before) if !before.now && *shown.stamp() == before.stamp => {
                        found.push(format!(
                            "{} shows {} as of {} again after it was gone",
                            host.id,
                            shown.key,
                            shown.stamp()
                        ));
                    }
                    _ => {}
                }
                known.insert(shown.key.clone(), Shown { stamp: shown.stamp().clone(), now: true });
            }
            for (key, before) in known.iter_mut() {
                before.now = view.instance(key).is_some();
            }
        }
        found
    }
}

/// No node sends traffic without a doubt to instances of a node that has been out of its reach for longer than the
/// failure detector takes.
#[derive(Debug, Default)]
pub struct NoGhost;

impl Checker for NoGhost {
    fn name(&self) -> &'static str {
        "no-ghost"
    }

    fn look(&mut self, mesh: &Mesh) -> Vec<String> {
        let world = &mesh.world;
        let Some(detector) = &world.detector else { return Vec::new() };
        let bound = world.options.lost_after.as_micros() as u64 * 5 / 4 + GHOST_SLACK_US;
        let mut found = Vec::new();
        for (observer, host) in world.hosts.iter().enumerate().filter(|(_, host)| host.is_running()) {
            let Some(view) = host.heart.as_ref().map(|heart| heart.view()) else { continue };
            let gone_us = |subject: usize| Some(world.now - detector.unreached_since(observer, subject)?);
            let others = (0..world.hosts.len()).filter(|subject| *subject != observer);
            let long_gone = others.filter_map(|subject| Some((&world.hosts[subject].id, gone_us(subject)?)));
            let ghosts: BTreeMap<&NodeId, u64> = long_gone.filter(|(_, gone_us)| *gone_us > bound).collect();
            if ghosts.is_empty() {
                continue;
            }
            for shown in view.services.values().flat_map(|service| service.instances.iter()) {
                if let Some(gone_us) = ghosts.get(shown.owner()).filter(|_| shown.usability == Usability::Ready) {
                    let (me, owner, gone_ms) = (&host.id, shown.owner(), gone_us / 1_000);
                    let why = format!("although {owner} has been out of its reach for {gone_ms} ms");
                    found.push(format!("{me} would send traffic to {}, {why}", shown.key));
                }
            }
        }
        found
    }
}

/// Self-preservation is entered and left: a node that has lost all others at once (two at least) holds none of their
/// instances for dead, and once every node has been reaching every other for a while, none preserves anything.
#[derive(Debug, Default)]
pub struct Preserved;

impl Checker for Preserved {
    fn name(&self) -> &'static str {
        "preservation"
    }

    fn look(&mut self, mesh: &Mesh) -> Vec<String> {
        let world = &mesh.world;
        let calm = mesh.calm_for().is_some_and(|calm| micros(calm) > PEACE_US + 2 * micros(world.options.up_after));
        let window = world.options.settings.preserve_window_ms * 1_000;
        let mut found = Vec::new();
        for (observer, host) in world.hosts.iter().enumerate().filter(|(_, host)| host.is_running()) {
            let Some(view) = host.heart.as_ref().map(|heart| heart.view()) else { continue };
            if calm {
                let still = view.preservation.iter().map(|one| {
                    format!("{} still preserves {} nodes, although all are there", host.id, one.missing.size())
                });
                found.extend(still);
                continue;
            }
            let others = || view.members.values().filter(|member| member.node != view.me);
            // Who has left is not lost, and was no part of what was lost at once.
            let alone = others().count() >= 2 && others().all(|member| member.state == MemberState::Lost);
            let at_once = (0..world.hosts.len()).filter(|other| *other != observer).all(|other| {
                let since = world.detector.as_ref().and_then(|detector| detector.unreached_since(observer, other));
                since.is_some_and(|since| world.now - since < window)
            });
            if alone && at_once {
                let shown = view.services.values().flat_map(|service| service.instances.iter());
                let dead = shown.filter(|shown| shown.usability == Usability::OwnerLost);
                found.extend(
                    dead.map(|shown| format!("{} has lost all others and holds {} for dead", host.id, shown.key)),
                );
            }
        }
        found
    }
}

/// Memory and messages are bounded: no store holds more than was ever written, and a mesh in which nothing changes says
/// no more than a repair costs.
#[derive(Debug, Default)]
pub struct Bounded {
    /// What must stay as it is for the mesh to be idle, since when that is so, and what had been sent then.
    quiet: Option<(Vec<Revision>, u64, u64)>,
}

impl Checker for Bounded {
    fn name(&self) -> &'static str {
        "bounded"
    }

    fn look(&mut self, mesh: &Mesh) -> Vec<String> {
        let world = &mesh.world;
        // Several cells keep one record more for every node: their directory.
        let directory = if world.options.cells.len() > 1 { world.hosts.len() } else { 0 };
        let (mut found, written) = (Vec::new(), (world.ledger.keys() + directory) as u64);
        let mut revisions = Vec::new();
        for host in &world.hosts {
            let Some(view) = host.heart.as_ref().map(|heart| heart.view()) else { continue };
            let held = view.fingerprint.count;
            if held > written {
                found.push(format!("{} holds {held} records, although there are only {written} keys", host.id));
            }
            revisions.push(view.revision);
        }
        let whole = !world.cuts.any() && world.hosts.iter().all(|host| host.is_running() && host.slow_us == 0);
        if !whole || world.figures.following() > 0 || !world.fingerprints_agree() {
            self.quiet = None;
            return found;
        }
        let bytes = world.figures.heart_bytes();
        match &self.quiet {
            Some((before, since, sent)) if *before == revisions => {
                let lasted = world.now - since;
                if lasted >= IDLE_AFTER_US {
                    let interval = world.options.settings.repair_interval().as_secs_f64();
                    let each = (bytes - sent) as f64 / world.hosts.len() as f64 / (lasted as f64 / 1e6) * interval;
                    if each > IDLE_BYTES {
                        found.push(format!(
                            "an idle node sends {each:.0} bytes in each repair interval, more than {IDLE_BYTES:.0}"
                        ));
                    }
                }
            }
            _ => self.quiet = Some((revisions, world.now, bytes)),
        }
        found
    }
}

/// The checkers of a mesh, when they look next, and what they found.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Those that have found nothing yet.
    pub(crate) on_duty: Vec<Box<dyn Checker>>,
    pub(crate) next_look: u64,
    pub(crate) verdicts: Vec<Verdict>,
}

/// What a checker found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which checker.
    pub checker: &'static str,
    /// When, in virtual time.
    pub at: std::time::Duration,
    /// What is wrong, in sentences.
    pub findings: Vec<String>,
}

impl Mesh {
    /// Appoints a checker: it looks four times in a virtual second from now on, until it finds something.
    pub fn watch(&mut self, checker: impl Checker + 'static) {
        self.appoint(Box::new(checker));
    }

    pub(crate) fn appoint(&mut self, checker: Box<dyn Checker>) {
        self.watch.next_look = self.watch.next_look.max(self.world.now);
        self.watch.on_duty.push(checker);
    }

    /// Nothing has been found by any checker.
    ///
    /// # Errors
    /// A story of what was found first.
    pub fn watched(&self) -> Result<(), Story> {
        let Some(first) = self.watch.verdicts.first() else { return Ok(()) };
        let seconds = first.at.as_secs_f64();
        let title = format!("{} found something wrong at {seconds:.3} s", first.checker);
        Err(self.world.story(title, first.findings.clone()))
    }

    /// What checkers have found so far.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.watch.verdicts
    }

    /// Lets time pass, and checkers look.
    pub(crate) fn pass_until(&mut self, until: u64) {
        while !self.watch.on_duty.is_empty() && self.watch.next_look <= until {
            let look = self.watch.next_look.max(self.world.now);
            self.world.run_until(look);
            self.look();
            self.watch.next_look = look + LOOK_EVERY_US;
        }
        self.world.run_until(until);
    }

    fn look(&mut self) {
        let at = self.now();
        // Taken out while they look at the rest.
        let mut on_duty = std::mem::take(&mut self.watch.on_duty);
        on_duty.retain_mut(|checker| {
            let findings = checker.look(self);
            let done = !findings.is_empty();
            if done {
                self.world.note(format!("{}: {}", checker.name(), findings[0]));
                self.watch.verdicts.push(Verdict { checker: checker.name(), at, findings });
            }
            !done
        });
        self.watch.on_duty = on_duty;
    }
}
