//! Blocking queries: "answer when there is something newer than the revision I hold, or after this long".
//!
//! Level-triggered: a waiter compares revisions against the newest view and never counts events, so a wake-up that is
//! lost, doubled or meant for another service does no harm. All waiters hang on the one channel of published
//! revisions; each wake-up costs a waiter one look into an immutable map.

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use starling_core::view::{ClockView, MemberView, Preservation, Revision, View};
use tokio::time::{Instant, sleep_until};

use crate::context::Context;
use crate::extract::Wait;
use crate::failure::Failure;

impl Context {
    /// The newest view, once what `revision_of` looks at is newer than the caller's revision or the wait is over.
    pub(crate) async fn newest(
        &self,
        wait: Wait,
        revision_of: impl Fn(&View) -> Revision,
    ) -> Result<Arc<View>, Failure> {
        let view = self.mesh.view();
        let Some(newer_than) = wait.newer_than else { return Ok(view) };
        // A revision from the future is one of an earlier start of this node: its holder knows nothing of this one.
        let due = |view: &View| revision_of(view) > newer_than || newer_than > view.revision;
        if due(&view) || wait.wait.is_zero() {
            return Ok(view);
        }
        let _place = self.waiters.try_acquire().map_err(|_| {
            let limit = self.settings.max_waiters;
            Failure::new(StatusCode::TOO_MANY_REQUESTS, format!("{limit} blocking queries are waiting already"))
                .hint("ask without newer_than, or raise max_waiters in the node's settings")
        })?;
        let mut changes = self.mesh.changes();
        let mut stopping = self.stopping.subscribe();
        let deadline = Instant::now() + wait.wait;
        loop {
            changes.borrow_and_update();
            let view = self.mesh.view();
            if due(&view) {
                return Ok(view);
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Ok(self.mesh.view()) },
                () = sleep_until(deadline) => return Ok(self.mesh.view()),
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(self.mesh.view()),
            }
        }
    }
}

/// The revisions of the three lists, which a view does not carry: computed once per view, whoever asks.
#[derive(Debug, Default)]
pub(crate) struct ListRevisions {
    last: Mutex<Computed>,
}

#[derive(Debug, Clone, Default)]
struct Computed {
    /// The view they were computed from.
    at: Revision,
    services: Revision,
    configs: Revision,
    members: Revision,
    /// The members of that view, to tell whether the next has others, and which of them it took not for dead.
    seen: Vec<Arc<MemberView>>,
    preservation: Arc<[Preservation]>,
    clocks: Arc<[ClockView]>,
}

impl ListRevisions {
    /// When any service last changed or vanished.
    pub(crate) fn services(&self, view: &View) -> Revision {
        self.computed(view, |last| last.services)
    }

    /// When any document last changed or vanished.
    pub(crate) fn configs(&self, view: &View) -> Revision {
        self.computed(view, |last| last.configs)
    }

    /// A view in which the members were first seen as they are.
    pub(crate) fn members(&self, view: &View) -> Revision {
        self.computed(view, |last| last.members)
    }

    fn computed(&self, view: &View, pick: impl Fn(&Computed) -> Revision) -> Revision {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if view.revision > last.at {
            last.advance(view);
        }
        // A reader that comes late with an older view must not say that it has shown what is newer than that, or its
        // client would never ask for it. Its own revision is never too large, at most the client asks once too often.
        pick(&last).min(view.revision)
    }
}

impl Computed {
    fn advance(&mut self, view: &View) {
        let absent = view.absent_revision;
        self.services = view.services.values().map(|service| service.revision).fold(absent, Revision::max);
        self.configs = view.configs.values().map(|config| config.revision).fold(absent, Revision::max);
        // Each change of it is an array of its own.
        let concluded = Arc::ptr_eq(&self.preservation, &view.preservation) && self.clocks == view.clocks;
        if !concluded || !self.seen.iter().eq(view.members.values()) {
            self.members = view.revision;
            (self.preservation, self.clocks) = (view.preservation.clone(), view.clocks.clone());
            self.seen = view.members.values().cloned().collect();
        }
        self.at = view.revision;
    }
}

#[cfg(test)]
mod tests {
    use starling_core::id::Zone;

    use super::*;

    #[test]
    fn a_reader_with_an_older_view_does_not_claim_to_have_shown_a_newer_one() {
        let view_at = |revision| View {
            revision: Revision(revision),
            absent_revision: Revision(revision),
            ..View::empty("a".parse().unwrap(), Zone::default())
        };
        let (old, new) = (view_at(4), view_at(5));
        let revisions = ListRevisions::default();
        assert_eq!(revisions.services(&new), Revision(5));
        for late in [revisions.services(&old), revisions.configs(&old), revisions.members(&old)] {
            assert!(late <= Revision(4), "the client would wait for something newer than {late:?} and miss 5");
        }
    }
}
