//! What shall happen to the requests of a service, as documents in the mesh's configuration.
//!
//! A document is TOML under group [`GROUP`], its key the service's name; the document [`MESH_KEY`] of the default
//! namespace is for all services. It has *sections* (`[timeouts]`, `[retry]`, ...) and `[[route]]` entries: sections
//! for some of the service's requests, by method, path, header and caller.
//!
//! A value is taken from the most specific layer that sets it, field by field:
//!
//! ```text
//! defaults (of the program) <- node settings ([proxy]) <- document "*" <- document of the service <- its route
//! ```
//!
//! Of several routes that match a request, the first in the document wins. A document is checked where it is taken
//! ([`Document::parse`]); one that is bad all the same (an older version's, or written past the check) changes nothing:
//! the last good one stays in force, and the problem is shown ([`Judgement`]).
//!
//! | Room | What it does |
//! |---|---|
//! | `sections` | the settings there are, and their ranges |
//! | `document` | from text to a checked document, with lines for whoever made a mistake |
//! | `matching` | which requests a route is for, without allocating |
//! | `actions` | faults, mirrors, fallbacks, classes |
//! | `judge` | which documents stand, when one is bad or two contradict each other |
//! | `last_good` | answers that are kept to stand in |
//! | `layers` | the value in force, and where it came from |
//! | `govern` | what the data plane says of it when asked |
//! | `recent`, `replay` | the requests of the last minute, and what a document that is not in force would have refused of them |
//! | `force` | the guards made of it, taken over when a document changes |

mod actions;
mod document;
mod force;
mod govern;
mod judge;
mod last_good;
mod layers;
mod matching;
mod recent;
mod replay;
mod sections;
mod text;

pub use actions::{Classes, Fallback, Fault, Mirror, Share, When, service_named};
pub use document::{Document, Problem, RouteDocument};
pub use force::{Active, Force, Heard, Held, Moment, Scope, value_of};
pub use govern::{Governor, WaitingRequest};
pub use judge::{Good, Judgement, Layer, LayerState};
pub use last_good::{LastGood, LastGoodSettings};
pub use layers::{Effective, Layers, Origin};
pub use matching::{Asked, Callers, Fields, HeaderRule, RouteMatch, Template, Written, is_grpc};
pub use recent::{End, Recent, Seen};
pub use replay::{Candidate, Refused, Stage, Trial};
pub use sections::{Sections, Timeouts};
pub use toml::{Table, Value};

use crate::id::{ConfigGroup, ConfigKey, ConfigName, Namespace, ServiceKey};

/// The group of configuration documents that policies are.
pub const GROUP: &str = "policy";
/// The key of the document for all services, in the default namespace. No service can have this name.
pub const MESH_KEY: &str = "*";
/// The largest policy document, in bytes: it is read by the threads that carry requests.
pub const MAX_DOCUMENT_BYTES: usize = 64 * 1024;
/// The most routes of a document: each request may be compared with all.
pub const MAX_ROUTES: usize = 256;

/// The most values all limits of a document may tell apart, 16 bytes each: 16 MB.
pub const MAX_KEYS: u64 = 1_000_000;

/// The document of a service.
pub fn document_of(service: &ServiceKey) -> ConfigKey {
    named(service.namespace.clone(), service.service.as_str())
}

/// The document for all services.
pub fn mesh_document() -> ConfigKey {
    named(Namespace::default(), MESH_KEY)
}

/// Whether a configuration document is a policy.
pub fn is_policy(key: &ConfigKey) -> bool {
    key.group.as_str() == GROUP
}

fn named(namespace: Namespace, key: &str) -> ConfigKey {
    let group: ConfigGroup = GROUP.parse().expect("a fixed name that is well-formed");
    let key: ConfigName = key.parse().expect("service names and the mesh's key are possible keys");
    ConfigKey { namespace, group, key }
}
