//! What protects callers and instances from each other. Each guard is pure: time and randomness are passed in, state
//! is a few atomics, and no decision takes a lock (waiting in a queue does).
//!
//! A guard is made from its settings (`XSettings`, with defaults and a `check` that names field, value and bounds),
//! `admit`s calls or says why not ([`Refusal`]), learns from how they end, and shows itself in a `snapshot`.
//!
//! The data plane asks all of them by a service's policy ([`crate::policy`]), but for [`system`], which is the node's own and
//! in its settings.
//!
//! | Guard | Protects |
//! |---|---|
//! | [`breaker`] | callers from an instance that fails, and the instance from more load |
//! | [`ejections`] | the instances that are left from the load of all that were taken out |
//! | [`circuit`] | the same for what many instances answer together: a service, a route, a method; the degrade switch |
//! | [`budget`] | a service from a storm of retries |
//! | [`limit`] | a service from more calls in a time than it, or one caller's share of it, is worth |
//! | [`quota`] | the same for all nodes of the mesh together ([`crate::quotas`] shares out) |
//! | [`bulkhead`] | what all share from one service that takes it all |
//! | [`concurrency`] | a callee from more at once than it can do without making them wait: it finds how many by itself |
//! | [`system`] | this host from load, CPU and calls in flight |
//! | [`shed`] | the critical from the rest, when calls queue for too long |
//! | [`idempotency`] | an application from doing twice what is asked twice |
//! | [`list`] | a service from callers that have no business there |

pub mod breaker;
pub mod budget;
pub mod bulkhead;
pub mod circuit;
pub mod concurrency;
mod criticality;
pub mod ejections;
pub mod idempotency;
pub mod limit;
pub mod list;
pub mod quota;
mod refusal;
mod ring;
mod rtt;
pub mod shed;
mod striped;
pub mod system;
mod window;

pub use breaker::{Breaker, BreakerSettings, BreakerState, Fault, Permit, Word};
pub use budget::{BudgetSettings, RetryBudget};
pub use bulkhead::{Bulkhead, BulkheadSettings};
pub use circuit::{Circuit, CircuitSettings, Circuits};
pub use concurrency::{Concurrency, ConcurrencySettings};
pub use criticality::Criticality;
pub use ejections::Ejections;
pub use idempotency::IdempotencySettings;
pub use limit::{Limit, LimitSettings};
pub use list::{List, ListSettings};
pub use quota::{Quota, QuotaSettings};
pub(crate) use refusal::all_within;
pub use refusal::{Guard, Invalid, Outcome, Refusal};
pub use shed::{Shed, ShedSettings};
pub use system::{SystemGuard, SystemPermit, SystemSettings};
