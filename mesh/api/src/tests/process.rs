//! Metrics, health, who may speak here, and what is said to those who go astray.

use std::collections::BTreeSet;

use super::world::{World, settings};
use crate::model::{MeshStatus, NodeDetail};
use crate::settings::ApiSettings;

#[tokio::test]
async fn the_metrics_are_well_formed() {
    let server = World::of(&["a"]).server("a");
    server.register("orders", "1", 1).await;
    server.get("/v1/services/nothing").await.expect(404);
    let answer = server.get("/metrics").await.expect(200);
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let families = well_formed(answer.text());
    assert!(families.contains("starling_build_info") && families.contains("starling_api_waiters"), "{families:?}");
    let counted = r#"starling_api_requests_total{method="GET",route="/v1/services/{service}",status="404"} 1"#;
    assert!(answer.text().lines().any(|line| line == counted), "{}", answer.text());
}

/// The families of an exposition, which must each appear once with their samples below them.
fn well_formed(text: &str) -> BTreeSet<String> {
    let name_ok =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'));
    let mut families = BTreeSet::new();
    let mut current = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(name_ok(name) && !help.is_empty(), "{line}");
            assert!(families.insert(name.to_owned()), "{name} appears twice");
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
            let (name, labels) = series.split_once('{').map_or((series, None), |(name, rest)| (name, Some(rest)));
            assert!(name_ok(name) && name.starts_with(&current), "{line} stands below {current}");
            if let Some(labels) = labels {
                let inside = labels.strip_suffix('}').unwrap();
                assert!(inside.split("\",").all(|label| label.contains("=\"")), "{line}");
            }
        }
    }
    families
}

#[tokio::test]
async fn readiness_is_what_the_assembler_says() {
    let server = World::of(&["a"]).server("a");
    server.get("/readyz").await.expect(200);
    server.set_ready(false);
    let error = server.get("/readyz").await.expect(503).error();
    assert!(error.error.contains("node a is not ready"), "{error:?}");
    server.get("/healthz").await.expect(200);
}

#[tokio::test]
async fn a_disk_that_takes_no_writes_is_said_wherever_one_asks_how_the_node_is() {
    let world = World::of(&["a", "b"]);
    world.disk_fails("b", "no space left");
    let (a, b) = (world.server("a"), world.server("b"));
    assert!(b.get("/readyz").await.expect(200).text().contains("takes no writes: no space left"));
    let node: NodeDetail = b.get("/v1/node").await.expect(200).json();
    assert_eq!(node.node.disk_failing.unwrap().reason, "no space left");
    let status: MeshStatus = a.get("/v1/status").await.expect(200).json();
    let failing = status.nodes.iter().map(|report| report.status.as_ref().unwrap().disk_failing.is_some());
    assert_eq!(failing.collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_web_page_gets_nowhere() {
    let world = World::of(&["a"]);
    let server = world.server_with("a", ApiSettings { allowed_hosts: vec!["mesh.internal".into()], ..settings() });
    let ask = async |line: &str, host: &str, origin: Option<&str>| {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = axum::http::Request::builder().method(method).uri(path).header("host", host);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        server.send(request.body(axum::body::Body::from(r#"{"port":1}"#)).unwrap()).await
    };
    let put = "PUT /v1/services/orders/instances/1";
    let error = ask("GET /v1/services", "evil.example:15000", None).await.expect(403).error();
    assert!(error.error.contains("evil.example") && error.hint.unwrap().contains("allowed_hosts"));
    ask(put, "127.0.0.1:15000", Some("https://evil.example")).await.expect(403);
    assert!(world.view("a").services.is_empty());
    ask("GET /v1/services", "mesh.internal", None).await.expect(200);
    ask(put, "127.0.0.1:15000", Some("http://127.0.0.1:15000")).await.expect(200);
    ask(put, "localhost", None).await.expect(200);
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let server = World::of(&["a"]).server("a");
    let answer = server.ask("POST /v1/services", "").await.expect(405);
    assert_eq!(answer.header("allow"), "GET");
    let answer = server.ask("PATCH /v1/config/default/app/x", "").await.expect(405);
    assert_eq!(answer.error().hint.unwrap(), "it takes GET, PUT, DELETE, POST");
}

#[tokio::test]
async fn the_front_page_says_where_to_go() {
    let server = World::of(&["a"]).server("a");
    let page = server.get("/").await.expect(200);
    assert!(page.text().contains("node a") && page.text().contains("/v1/openapi.json"));
    server.ask("HEAD /v1/services", "").await.expect(200);
}
