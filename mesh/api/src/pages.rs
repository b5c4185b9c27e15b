//! What is not about the mesh but about this process: metrics, health, readiness, and where to read more.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use starling_core::observe::{Exposition, MetricSource};
use starling_core::wire::{DiskFailing, NodeStatus};

use crate::context::{Context, Shared};
use crate::failure::Failure;
use crate::mesh::own_status;

/// The description of all routes, kept by hand; a test holds it against the router.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

/// `GET /v1/openapi.json`.
pub(crate) async fn openapi() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], OPENAPI).into_response()
}

/// `GET /metrics`: Prometheus text format 0.0.4.
pub(crate) async fn metrics(State(context): State<Shared>) -> Response {
    let mut exposition = Exposition::default();
    Context::collect(&context, &mut exposition);
    for source in &context.metrics {
        source.collect(&mut exposition);
    }
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, content_type)], exposition.finish()).into_response()
}

/// `GET /healthz`: the process works.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: 200 once this node may be used, 503 before. A node whose disk fails may be used: it answers and
/// carries traffic, and says so.
pub(crate) async fn readyz(State(context): State<Shared>) -> Response {
    if context.is_ready() {
        return match own_status(&context).await {
            Ok(NodeStatus { disk_failing: Some(DiskFailing { reason, .. }), .. }) => {
                format!("ready, but its data directory takes no writes: {reason}\n").into_response()
            }
            _ => "ready\n".into_response(),
        };
    }
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, format!("node {} is not ready yet", context.mesh.me()))
        .hint("it is joining the mesh or stopping; its log says which")
        .into_response()
}

/// `GET /`: what this is.
pub(crate) async fn front(State(context): State<Shared>) -> String {
    format!(
        "Starling {}, node {}.\n\n\
         GET /v1/openapi.json  all routes and bodies\n\
         GET /v1/services      the registry, as this node knows it\n\
         GET /v1/config        configuration documents\n\
         GET /v1/members       the nodes of the mesh\n\
         GET /v1/status        does every node hold the same?\n\
         GET /v1/traces        the newest traces of all nodes\n\
         GET /metrics          Prometheus\n\
         GET /healthz, /readyz\n",
        env!("CARGO_PKG_VERSION"),
        context.mesh.me(),
    )
}
