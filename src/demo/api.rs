//! The control surface of one node, as any program would use it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use starling_api::model::{
    ConfigDocument, InstanceList, MemberList, MeshStatus, REVISION_HEADER, RegisterRequest, Registered, TraceDetail,
    Written,
};
use starling_core::id::Namespace;
use starling_core::observe::TraceId;
use starling_core::view::Revision;

use super::http::{Answer, Client};

/// How long an answer may take, beside the time the server is asked to wait.
const WITHIN: Duration = Duration::from_secs(5);
/// How long one blocking query waits; whoever waits longer asks again.
const WAIT_S: u64 = 5;

/// One node's control surface.
pub(crate) struct Api {
    client: Client,
}

impl Api {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { client: Client::new(address) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.client.address()
    }

    pub(crate) async fn register(&self, service: &str, id: &str, what: &RegisterRequest) -> Result<Registered, String> {
        self.write(Method::PUT, &instance(service, id), json(what)?).await
    }

    pub(crate) async fn deregister(&self, service: &str, id: &str) -> Result<Written, String> {
        self.write(Method::DELETE, &instance(service, id), Bytes::new()).await
    }

    /// A service's instances; with a revision, once there is something newer (or after a wait, what there is).
    pub(crate) async fn instances(&self, service: &str, newer: Option<Revision>) -> Result<InstanceList, String> {
        let answer = self.send(Method::GET, &blocking(&format!("/v1/services/{service}"), newer), Bytes::new()).await?;
        // Nobody has registered it, but whoever does is waited for with the revision this comes with.
        if let (StatusCode::NOT_FOUND, Ok(revision)) = (answer.status, answer.header(REVISION_HEADER).parse()) {
            let service = service.parse().map_err(|error| format!("{error}"))?;
            let (namespace, revision) = (Namespace::default(), Revision(revision));
            return Ok(InstanceList { namespace, service, revision, instances: Vec::new() });
        }
        parse(answer)
    }

    pub(crate) async fn members(&self, newer: Option<Revision>) -> Result<MemberList, String> {
        self.read(&blocking("/v1/members", newer)).await
    }

    /// A document with all its versions; `None` where there is none.
    pub(crate) async fn document(&self, name: &str, newer: Option<Revision>) -> Result<Option<ConfigDocument>, String> {
        let answer =
            self.send(Method::GET, &blocking(&format!("{}?meta=true", document(name)), newer), Bytes::new()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        parse(answer).map(Some)
    }

    pub(crate) async fn publish(&self, name: &str, body: &str, author: &str) -> Result<Written, String> {
        let path = format!("{}?author={author}", document(name));
        self.write(Method::PUT, &path, Bytes::copy_from_slice(body.as_bytes())).await
    }

    /// Makes one of several versions the only one.
    pub(crate) async fn choose(&self, name: &str, stamp: &str, author: &str) -> Result<Written, String> {
        self.write(Method::POST, &format!("{}?choose={stamp}&author={author}", document(name)), Bytes::new()).await
    }

    pub(crate) async fn status(&self) -> Result<MeshStatus, String> {
        self.read("/v1/status").await
    }

    pub(crate) async fn trace(&self, trace: TraceId) -> Result<TraceDetail, String> {
        self.read(&format!("/v1/traces/{trace}")).await
    }

    /// The sum of a metric over all its labels, 0 where it is unknown.
    pub(crate) async fn metric(&self, name: &str) -> Result<f64, String> {
        let answer = self.send(Method::GET, "/metrics", Bytes::new()).await?;
        Ok(sum(&String::from_utf8_lossy(&answer.body), name))
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        parse(self.send(Method::GET, path, Bytes::new()).await?)
    }

    async fn write<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, String> {
        parse(self.send(method, path, body).await?)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, String> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|error| format!("{path}: {error}"))?;
        let headers = request.headers_mut();
        headers.insert("host", self.address().to_string().parse().map_err(|error| format!("{error}"))?);
        headers.insert("content-type", "application/json".parse().map_err(|error| format!("{error}"))?);
        let within = WITHIN + Duration::from_secs(WAIT_S);
        self.client.send(request, within).await.map_err(|error| format!("{path}: {error}"))
    }
}

fn instance(service: &str, id: &str) -> String {
    format!("/v1/services/{service}/instances/{id}")
}

fn document(name: &str) -> String {
    format!("/v1/config/default/shop/{name}")
}

fn blocking(path: &str, newer: Option<Revision>) -> String {
    match newer {
        None => path.to_owned(),
        Some(Revision(revision)) => {
            let sign = if path.contains('?') { '&' } else { '?' };
            format!("{path}{sign}newer_than={revision}&wait={WAIT_S}s")
        }
    }
}

fn json<T: Serialize>(value: &T) -> Result<Bytes, String> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| error.to_string())
}

fn parse<T: DeserializeOwned>(answer: Answer) -> Result<T, String> {
    if !answer.status.is_success() {
        return Err(format!("{}: {}", answer.status.as_u16(), answer.excerpt()));
    }
    serde_json::from_slice(&answer.body).map_err(|error| format!("{error} in {}", answer.excerpt()))
}

/// Adds up the samples of a family in the Prometheus text format.
fn sum(text: &str, name: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok()).flatten()
    };
    text.lines().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_over_its_labels_and_of_no_other_family() {
        let text = "# HELP a_total words\na_total{b=\"x y\"} 2\na_total{b=\"z\"} 3\na_total_more 100\nother 7\n";
        assert_eq!(sum(text, "a_total"), 5.0);
        assert_eq!(sum(text, "other"), 7.0);
        assert_eq!(sum(text, "missing"), 0.0);
    }

    #[test]
    fn a_blocking_query_joins_what_is_asked_already() {
        assert_eq!(blocking("/a", None), "/a");
        assert_eq!(blocking("/a", Some(Revision(3))), "/a?newer_than=3&wait=5s");
        assert_eq!(blocking("/a?meta=true", Some(Revision(3))), "/a?meta=true&newer_than=3&wait=5s");
    }
}
