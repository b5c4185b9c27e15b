//! Every route, in one list.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::handler::Handler;
use axum::http::header::{ALLOW, CONNECTION};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};

use crate::context::Shared;
use crate::failure::Failure;
use crate::near::nearest;
use crate::{backup, documents, failback, guard, instances, mesh, pages, policies, services, traces};

const INSTANCE: &str = "/v1/services/{service}/instances/{id}";
const OVERRIDE: &str = "/v1/services/{service}/instances/{id}/override";
const DOCUMENT: &str = "/v1/config/{namespace}/{group}/{*key}";

/// The routes in the order of the crate's documentation.
fn table() -> Table {
    Table::default()
        .get("/v1/services", services::list)
        .get("/v1/services/{service}", services::instances)
        .get("/v1/services/{service}/instances", services::instances)
        .get(INSTANCE, services::instance)
        .put(INSTANCE, instances::register)
        .delete(INSTANCE, instances::deregister)
        .put("/v1/services/{service}/instances/{id}/renew", instances::renew)
        .post("/v1/services/{service}/instances/{id}/heartbeat", instances::renew)
        .put("/v1/services/{service}/instances/{id}/status", instances::set_status)
        .put(OVERRIDE, instances::set_override)
        .delete(OVERRIDE, instances::clear_override)
        .get("/v1/config", documents::list)
        .get(DOCUMENT, documents::read)
        .put(DOCUMENT, documents::write)
        .delete(DOCUMENT, documents::delete)
        .post(DOCUMENT, documents::choose)
        .get("/v1/policy/{service}", policies::policy)
        .post("/v1/policy/{service}/try", policies::rehearse)
        .get("/v1/guards/{service}", policies::guards)
        .get("/v1/failback", failback::list)
        .post("/v1/failback", failback::retry)
        .delete("/v1/failback/{id}", failback::drop_one)
        .get("/v1/backup", backup::backup)
        .get("/v1/members", mesh::members)
        .get("/v1/status", mesh::status)
        .get("/v1/node", mesh::node)
        .get("/v1/traces", traces::recent)
        .get("/v1/traces/{id}", traces::trace)
        .get("/v1/openapi.json", pages::openapi)
        .get("/metrics", pages::metrics)
        .get("/healthz", pages::healthz)
        .get("/readyz", pages::readyz)
        .get("/", pages::front)
}

/// The router, with the guard and the counters around it.
pub(crate) fn router(context: Shared) -> Router {
    let Table { router, listed } = table();
    let listed: Arc<[(&str, &str)]> = listed.into();
    let known = Arc::clone(&listed);
    router
        .fallback(move |method: Method, uri: Uri| async move { unknown(&method, &uri, &known) })
        .method_not_allowed_fallback(move |method: Method, path: MatchedPath| async move {
            not_allowed(&method, path.as_str(), &listed)
        })
        .layer(from_fn_with_state(Arc::clone(&context), front_door))
        .with_state(context)
}

/// Before and after every request: the guard, then the counter and, when the node stops, the connection's end.
async fn front_door(State(context): State<Shared>, request: Request, next: Next) -> Response {
    let method = word(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let allowed = &context.settings.allowed_hosts;
    let mut response = match guard::check(request.method(), request.uri(), request.headers(), allowed) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    context.counters.answered(method, route, response.status());
    if *context.stopping.borrow() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The methods that are counted by name; a client may send any word.
fn word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn unknown(method: &Method, uri: &Uri, listed: &[(&str, &str)]) -> Failure {
    let near = nearest(uri.path(), listed.iter().map(|(_, path)| *path));
    Failure::absent(format!("there is no {method} {}", uri.path())).hint(match near {
        Some(near) => format!("did you mean {near}? GET /v1/openapi.json lists all routes"),
        None => "GET /v1/openapi.json lists all routes".into(),
    })
}

fn not_allowed(method: &Method, path: &str, listed: &[(&str, &str)]) -> Response {
    let here: Vec<&str> = listed.iter().filter(|(_, known)| *known == path).map(|(method, _)| *method).collect();
    let here = here.join(", ");
    let failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}"));
    let mut response = failure.hint(format!("it takes {here}")).into_response();
    if let Ok(allow) = HeaderValue::from_str(&here) {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

/// A router that remembers what was put into it.
#[derive(Default)]
struct Table {
    router: Router<Shared>,
    listed: Vec<(&'static str, &'static str)>,
}

impl Table {
    fn get<H: Handler<T, Shared>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.add("GET", path, get(handler))
    }

    fn put<H: Handler<T, Shared>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.add("PUT", path, put(handler))
    }

    fn post<H: Handler<T, Shared>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.add("POST", path, post(handler))
    }

    fn delete<H: Handler<T, Shared>, T: 'static>(self, path: &'static str, handler: H) -> Self {
        self.add("DELETE", path, delete(handler))
    }

    fn add(mut self, method: &'static str, path: &'static str, route: MethodRouter<Shared, Infallible>) -> Self {
        self.listed.push((method, path));
        self.router = self.router.route(path, route);
        self
    }
}

/// Method and path of every route.
#[cfg(test)]
pub(crate) fn listed() -> Vec<(&'static str, &'static str)> {
    table().listed
}
