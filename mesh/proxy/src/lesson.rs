//! What an attempt says of its instance: to its breaker, to the balance, and to whoever goes by how long answers take.
//!
//! Of nearly all this is known when the head of the answer has come. A call of gRPC says behind its messages how it went
//! (`grpc-status` in the trailers), and until then nobody knows: what is to be learnt of it waits as a [`Lesson`], with the
//! breaker's permit, and so do the circuit of its policy and its count. But streams may go on for days, and a breaker's trial
//! shall not: what has gone on for [`GOES_WELL`] has gone well, however it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::StatusCode;
use starling_core::balance::{FAILURE_PENALTY, Group, Outcome, Report, Seat};
use starling_core::guard::{Fault, Permit};
use starling_core::time::Instant;
use starling_core::view::InstanceView;

use crate::clock;
use crate::directory::Entry;
use crate::pool::Pool;
use crate::stack::Carrier;

/// A stream that goes on for so long has gone well: as long as a probe may take by default, and far longer than calls with one
/// answer do.
pub(crate) const GOES_WELL: Duration = Duration::from_secs(10);

/// Of whom is learnt.
pub(crate) struct Learner<'a> {
    pub(crate) entry: &'a Arc<Entry>,
    pub(crate) group: &'a Arc<Group<Pool>>,
    pub(crate) instance: &'a InstanceView,
    pub(crate) seat: &'a Arc<Seat<Pool>>,
    /// The share of answers that hedges wait for, in percent; 0: nobody wants to know.
    pub(crate) percentile: u32,
}

/// The same, kept until it is known how the call went. Dropped, it says nothing.
pub(crate) struct Lesson {
    entry: Arc<Entry>,
    group: Arc<Group<Pool>>,
    instance: InstanceView,
    seat: Arc<Seat<Pool>>,
    percentile: u32,
    permit: Permit,
    took: Duration,
}

impl Learner<'_> {
    /// How it went is known later; its answer took so long to begin.
    pub(crate) fn later(&self, permit: Permit, took: Duration) -> Lesson {
        let Self { entry, group, instance, seat, percentile } = *self;
        let (entry, group, instance, seat) = (entry.clone(), group.clone(), instance.clone(), seat.clone());
        Lesson { entry, group, instance, seat, percentile, permit, took }
    }

    /// What an attempt says that was answered with `status` now, after so long, or not at all.
    pub(crate) fn learn(
        &self,
        carrier: &Carrier,
        permit: Permit,
        now: Instant,
        took: Duration,
        status: Option<StatusCode>,
        asked_wait: Option<Duration>,
    ) {
        let Self { entry, group, instance, seat, percentile } = *self;
        let failed = status.is_none_or(|status| status.is_server_error());
        // Being told to slow down is no defect of the instance, but no reason to send it more either.
        let unwelcome = failed || status == Some(StatusCode::TOO_MANY_REQUESTS);
        let penalty = FAILURE_PENALTY.max(asked_wait.unwrap_or_default());
        let outcome = if unwelcome { Outcome::Unwelcome(penalty) } else { Outcome::Good };
        seat.load.observe(now, took, outcome);
        if group.wants_reports() {
            let latency_us = seat.load.latency_us(now).unwrap_or_default() as u32;
            let report = Report { in_flight: seat.load.in_flight().saturating_sub(1), latency_us };
            group.report(now, &instance.key.instance, report);
        }
        if percentile > 0 && !unwelcome {
            entry.latency.observe(percentile, took);
        }
        if !failed {
            if permit.succeed(now) {
                seat.begin_again(now);
                tracing::info!(instance = %instance.key, "the breaker closed: a probe went well");
            }
        } else if permit.fail(if status.is_some() { Fault::Answer } else { Fault::Silence }, now, clock::random()) {
            entry.metrics.breaker_opens.fetch_add(1, Relaxed);
            carrier.ejected.notify_one();
            tracing::warn!(instance = %instance.key, "the breaker opened: its answers fail or do not come");
        }
    }
}

impl Lesson {
    /// It ended with this status, as HTTP has it, or broke off.
    pub(crate) fn end(self, carrier: &Carrier, status: Option<StatusCode>) {
        let Self { entry, group, instance, seat, percentile, permit, took } = self;
        let learner = Learner { entry: &entry, group: &group, instance: &instance, seat: &seat, percentile };
        learner.learn(carrier, permit, carrier.clock.now(), took, status, None);
    }
}
