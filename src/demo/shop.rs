//! The shop: three small programs that know nothing of Starling but their host's sidecar address.
//!
//! `web` asks `orders`, `orders` asks `stock`, each by name: the Host header says whom. They pass the trace headers on,
//! as every instrumented program does, and every answer carries the way it came: `web-ams-1 orders-ams-2 stock-ber-1`.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::http::{Answer, Client};
use super::part::{AppPart, Order, Word, report};

/// Response header: the instances that took part, in order.
pub(crate) const WAY_HEADER: &str = "x-demo-way";
/// Response header of a sidecar that answers by itself: a code and a sentence.
pub(crate) const REASON_HEADER: &str = "x-starling-reason";
/// What an application answers when one it depends on has failed. Not 502: callers' breakers would take the messenger
/// for broken, then the messenger's caller, and a handful of real failures would close the whole shop for a second.
const NOT_MY_FAULT: StatusCode = StatusCode::FAILED_DEPENDENCY;
/// How long an application waits for the next one.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// The largest request body an application reads.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Headers of a request that belong to its trace.
const TRACE_HEADERS: [&str; 2] = ["traceparent", "tracestate"];

/// What an application is in the shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Role {
    Web,
    Orders,
    Stock,
}

impl Role {
    /// The service's name.
    pub(crate) fn service(self) -> &'static str {
        match self {
            Role::Web => "web",
            Role::Orders => "orders",
            Role::Stock => "stock",
        }
    }

    /// The service it needs.
    fn calls(self) -> Option<Role> {
        match self {
            Role::Web => Some(Role::Orders),
            Role::Orders => Some(Role::Stock),
            Role::Stock => None,
        }
    }
}

struct App {
    name: String,
    role: Role,
    sidecar: Mutex<Arc<Client>>,
}

/// Listens where the system says, reports, and serves until the process ends.
pub(crate) async fn serve(part: AppPart, mut orders: mpsc::Receiver<Order>) -> Result<(), String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| error.to_string())?;
    let listen = listener.local_addr().map_err(|error| error.to_string())?;
    let sidecar = Mutex::new(Arc::new(Client::new(part.sidecar)));
    let app = Arc::new(App { name: part.name, role: part.role, sidecar });
    report(&Word::App { listen });
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.map_err(|error| error.to_string())?;
                tokio::spawn(connection(app.clone(), stream));
            }
            Some(order) = orders.recv() => {
                if let Order::Sidecar(address) = order {
                    app.moved(address);
                }
                report(&Word::Done);
            }
        }
    }
}

async fn connection(app: Arc<App>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(app.answer(request).await) }
    });
    // An error here is the caller's hang-up; there is nobody to tell.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl App {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
            return response(StatusCode::PAYLOAD_TOO_LARGE, &self.name, "too much");
        };
        // Health checks and the comparison of latencies stop here; all else is an order.
        let next = if head.uri.path() == "/order" { self.role.calls() } else { None };
        let Some(next) = next else { return response(StatusCode::OK, &self.name, "ok") };

        let mut call = Request::builder().method(head.method).uri("/order").header("host", host(next.service()));
        for name in TRACE_HEADERS {
            for value in head.headers.get_all(name) {
                call = call.header(name, value);
            }
        }
        let Ok(call) = call.body(Full::new(body.to_bytes())) else {
            return response(StatusCode::BAD_REQUEST, &self.name, "a header that cannot be passed on");
        };
        let sidecar = self.sidecar.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match sidecar.send(call, CALL_WITHIN).await {
            Ok(answer) if answer.status.is_success() => {
                response(StatusCode::OK, &format!("{} {}", self.name, answer.header(WAY_HEADER)), "ok")
            }
            Ok(answer) => response(NOT_MY_FAULT, &self.name, &self.complaint(next, &answer)),
            Err(error) => {
                response(NOT_MY_FAULT, &self.name, &format!("{} reached no sidecar: {error}", self.role.service()))
            }
        }
    }

    /// The first to complain is the one nearest to the fault: its words are passed on as they are.
    fn complaint(&self, next: Role, answer: &Answer) -> String {
        if answer.status == NOT_MY_FAULT {
            return answer.excerpt();
        }
        // A sidecar that answers by itself says why in a header; an application's own words are in its body.
        let reason = match answer.header(REASON_HEADER) {
            "" => answer.excerpt(),
            reason => reason.to_owned(),
        };
        format!("{} asked for {}: {reason}", self.role.service(), next.service())
    }

    fn moved(&self, sidecar: SocketAddr) {
        *self.sidecar.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Client::new(sidecar));
    }
}

/// The name by which a program reaches a service through its sidecar.
pub(crate) fn host(service: &str) -> String {
    format!("{service}.mesh")
}

/// A request as the shop's customers make them.
pub(crate) fn request(method: Method, service: &str, path: &str) -> Request<Full<Bytes>> {
    let body = if method == Method::POST { Bytes::from_static(b"one of each") } else { Bytes::new() };
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap_or_default();
    if let Ok(host) = host(service).parse() {
        request.headers_mut().insert("host", host);
    }
    request
}

fn response(status: StatusCode, way: &str, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    if let Ok(way) = way.trim_end().parse() {
        response.headers_mut().insert(WAY_HEADER, way);
    }
    response
}
