//! Starling's control surface: it shows.
//!
//! HTTP/1.1 with JSON on loopback; any node answers any question from its own view, and takes any write. It holds of
//! a running node only [`starling_net::Handle`]; it knows no store, no certificate and nothing of the data plane.
//!
//! | Room | What it does |
//! |---|---|
//! | [`model`] | the JSON of every request and answer, shared with clients |
//! | `port` | [`MeshPort`]: all it holds of a node |
//! | `server`, `settings` | the listener and its limits |
//! | `routes`, `guard` | every route in one list; who may speak here |
//! | `extract`, `failure`, `reply`, `near` | requests in, refusals and answers out, "did you mean …?" |
//! | `watch` | blocking queries |
//! | `services`, `lists`, `instances` | reading and writing the registry |
//! | `documents`, `formats`, `policies` | configuration; policies are checked before they are taken |
//! | `backup` | configuration and overrides as one file |
//! | `mesh`, `traces`, `gather` | what is asked of all nodes |
//! | `pages` | metrics, health, OpenAPI |
//! | `show`, `context` | the heart's types made into the model's; what all requests share |
//!
//! # Routes
//!
//! | Route | Request | Answer ([`model`]) |
//! |---|---|---|
//! | `PUT /v1/services/{service}/instances/{id}` | [`model::RegisterRequest`] | [`model::Registered`] |
//! | `GET /v1/services/{service}/instances/{id}` | | [`model::InstanceInfo`] |
//! | `DELETE /v1/services/{service}/instances/{id}` | | [`model::Written`] |
//! | `PUT …/{id}/renew`, `POST …/{id}/heartbeat` | [`model::RenewRequest`], may be empty | [`model::Registered`] |
//! | `PUT …/{id}/status` | [`model::StatusRequest`] | [`model::Written`] |
//! | `PUT …/{id}/override?unregistered=true` | [`model::OverrideBody`] | [`model::Written`] |
//! | `DELETE …/{id}/override` | | [`model::Written`] |
//! | `GET /v1/services?prefix=` W | | [`model::ServiceList`] |
//! | `GET /v1/services/{service}`, `…/instances` `?ready=true&zone=&tag=&version=&status=` W | | [`model::InstanceList`] |
//! | `GET /v1/config?namespace=&group=&prefix=&conflicts=true` W | | [`model::ConfigList`] |
//! | `GET /v1/config/{namespace}/{group}/{key…}` W | | the document's bytes, headers below |
//! | the same with `?meta=true` W | | [`model::ConfigDocument`] |
//! | the same with `?stamp=STAMP` | | the bytes of one of the concurrent versions |
//! | `PUT /v1/config/{namespace}/{group}/{key…}?author=&comment=&expect=STAMP\|none` | the bytes; `Content-Type` is the format | [`model::Written`] |
//! | `DELETE` the same, same parameters | | [`model::Written`] |
//! | `POST /v1/config/{namespace}/{group}/{key…}?choose=STAMP&author=&comment=` | empty: make this version the only one | [`model::Written`] |
//! | `GET /v1/policy/{service}` | | [`model::PolicyDetail`] |
//! | `POST /v1/policy/{service}/try?for_all=true&all=true` | a policy; writes nothing | [`model::PolicyTrial`] |
//! | `GET /v1/guards/{service}?all=true` | | [`model::GuardsDetail`] |
//! | `GET /v1/failback?service=` | | [`model::WaitingList`], of this node |
//! | `POST /v1/failback?service=` | | [`model::Hurried`]: the service's line is tried at once |
//! | `DELETE /v1/failback/{id}` | | [`model::WaitingList`]: what is left |
//! | `GET /v1/backup?only=config\|overrides` | | a file of [`model::BackupLine`]s, of one moment |
//! | `GET /v1/members` W | | [`model::MemberList`] |
//! | `GET /v1/status` | | [`model::MeshStatus`] |
//! | `GET /v1/node` | | [`model::NodeDetail`] |
//! | `GET /v1/traces?limit=` | | [`model::RecentTraces`] |
//! | `GET /v1/traces/{id}` | | [`model::TraceDetail`] |
//! | `GET /v1/openapi.json` | | OpenAPI 3.1 |
//! | `GET /metrics` | | Prometheus text 0.0.4 |
//! | `GET /healthz`, `GET /readyz`, `GET /` | | text |
//!
//! All routes about services take `?namespace=` (default `default`; the list of services: all).
//!
//! W Blocking queries: every answer carries [`model::REVISION_HEADER`]; with `?newer_than=REVISION&wait=30s` the
//! answer comes when there is something newer, or after the wait (default 30 s, at most 10 min) with what there is.
//! It is level-triggered: nothing is lost between two queries. An answer may come without a change, and comes at once
//! when the revision asked for is larger than the node's own (it was restarted): always compare, never count.
//!
//! Everything that is not a success is a [`model::ErrorBody`]: 400 (which field), 403 (a browser's cross-origin write
//! or a foreign Host), 404 (with near names), 405, 408 (a body that came too slowly), 409 (somebody wrote first; or the
//! instance has another owner), 413, 422 (a policy that
//! is wrong: line, field, and what is allowed), 429 (too many waiters), 503 (busy, stopping, or a disk that takes no writes; nothing
//! was changed), 507 (a limit of the registry is reached; or done but not saved on this node's disk).
//!
//! A write is answered when it is on disk and in the view: a read at the same node that follows it shows it. It is then
//! already on its way to the other nodes; `GET /v1/status` tells whether they have it.

mod backup;
mod context;
mod documents;
mod extract;
mod failback;
mod failure;
mod formats;
mod gather;
mod guard;
mod impatient;
mod instances;
mod lists;
mod mesh;
pub mod model;
mod near;
mod pages;
mod policies;
mod port;
mod reply;
mod routes;
mod server;
mod services;
mod settings;
mod show;
mod traces;
mod watch;

#[cfg(test)]
mod tests;

pub use port::{Later, MeshPort};
pub use server::{Api, BindError};
pub use settings::ApiSettings;
