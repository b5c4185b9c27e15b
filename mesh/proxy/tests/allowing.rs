//! Who may call what: rules as documents, decided at the instance's side, and callers that cannot be forged.

mod support;

use starling_core::id::InstanceKey;
use starling_proxy::{BoundPort, Forwarded};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An application that answers with who called it, as its sidecar says.
async fn told_who_calls() -> App {
    App::answering(|request| async move {
        let field = |name: &str| {
            let values: Vec<_> =
                request.headers().get_all(name).iter().map(|value| value.to_str().unwrap_or("?").to_owned()).collect();
            values.join("+")
        };
        let told = format!("{} {}", field("x-starling-caller-node"), field("x-starling-caller-service"));
        text(200, told)
    })
    .await
}

#[tokio::test]
async fn an_application_is_told_the_node_and_the_service_that_call_it() {
    let flock = Flock::default();
    let (a, _b, app) = (flock.node("a").await, flock.node("b").await, told_who_calls().await);
    flock.register(app.at("orders", "1", "b"));
    assert_eq!(a.get("orders", "/").await.text(), "a ", "node a has no service");
    flock.register(app.at("shop", "1", "a"));
    assert_eq!(a.get("orders", "/").await.text(), "a default/shop");
    assert_eq!(a.get("shop", "/").await.text(), "a default/shop", "within one host too");
    flock.register(app.at("till", "1", "a"));
    assert_eq!(a.get("orders", "/").await.text(), "a ", "it might be either");
}

#[tokio::test]
async fn where_a_host_has_several_services_the_settings_say_which_one_calls_and_only_one_it_has() {
    let flock = Flock::default();
    let app = told_who_calls().await;
    let a = flock.node_with("a", |settings| settings.identity = "till".into()).await;
    let _b = flock.node("b").await;
    flock.register(app.at("orders", "1", "b"));
    flock.register(app.at("shop", "1", "a"));
    assert_eq!(a.get("orders", "/").await.text(), "a ");
    flock.register(app.at("till", "1", "a"));
    assert_eq!(a.get("orders", "/").await.text(), "a default/till");
}

#[tokio::test]
async fn several_services_of_one_host_are_told_apart_by_the_ports_they_call_by() {
    let flock = Flock::default();
    let app = told_who_calls().await;
    let port = |service: &str, caller: &str| BoundPort { caller: Some(service_key(caller)), ..port_to(service) };
    let a = flock.node_with("a", |settings| {
        settings.identity = "shop".into();
        settings.upstreams = vec![port("orders", "till"), port("bills", "nobody"), port_to("stock")];
    });
    let (a, _b) = (a.await, flock.node("b").await);
    for service in ["orders", "bills", "stock"] {
        flock.register(app.at(service, "1", "b"));
    }
    flock.register(app.at("shop", "1", "a"));
    flock.register(app.at("till", "1", "a"));
    for (service, told) in [("orders", "a default/till"), ("bills", "a "), ("stock", "a default/shop")] {
        let mut client = Client::connect(a.port_to(service)).await;
        client.send("GET", "any", "/", "", b"").await;
        assert_eq!(client.answer().await.text(), told, "{service}");
    }
}

#[tokio::test]
async fn neither_an_application_nor_a_node_can_call_in_the_name_of_another() {
    let flock = Flock::default();
    let (a, _b, app) = (flock.node("a").await, flock.node("b").await, told_who_calls().await);
    flock.register(app.at("orders", "1", "b"));
    flock.register(app.at("shop", "1", "c"));
    flock.document("access", "orders", "[[allow]]\ncallers = [\"shop\"]");
    let forged = "x-starling-caller-service: default/shop\r\nX-Starling-Caller-Node: c\r\n";
    let answer = a.send("GET", "orders", "/", forged, b"").await;
    assert_eq!(answer.status, 403, "{}", answer.text());
    // A node that says of itself what it is not, by a tunnel of its own making.
    let key = InstanceKey { service: service_key("orders"), instance: "1".parse().expect("a name") };
    for (node, status) in [("a", "403"), ("c", "200")] {
        let mut tunnel = flock.tunnel(node, "b", &key).await;
        let claim = "x-starling-caller-service: default/shop\r\nconnection: close";
        let request = format!("GET / HTTP/1.1\r\nhost: orders\r\n{claim}\r\n\r\n");
        tunnel.write_all(request.as_bytes()).await.expect("it takes the request");
        let mut answer = String::new();
        tunnel.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{node}: {answer}");
        assert_eq!(answer.ends_with("c default/shop"), status == "200", "{node}: {answer}");
    }
}

#[tokio::test]
async fn rules_hold_for_callers_elsewhere_and_on_the_same_host_and_change_at_once() {
    let flock = Flock::default();
    let (a, b, app) = (flock.node("a").await, flock.node("b").await, told_who_calls().await);
    flock.register(app.at("orders", "1", "b"));
    flock.register(app.at("shop", "1", "a"));
    assert_eq!((a.get("orders", "/").await.status, b.get("orders", "/").await.status), (200, 200));

    flock.document("access", "orders", "[[allow]]\ncallers = [\"shop\"]\nmethods = [\"GET\"]\npaths = [\"/v1/*\"]");
    assert_eq!(a.get("orders", "/v1/x").await.status, 200);
    for answer in [
        a.get("orders", "/v2").await,
        a.send("POST", "orders", "/v1/x", "", b"x").await,
        a.get("orders", "/v1/../v2").await,
        b.get("orders", "/v1/x").await,
    ] {
        assert_eq!(answer.status, 403);
        let reason = answer.header("x-starling-reason").unwrap_or_default().to_owned();
        assert!(reason.starts_with("forbidden: no allow rule of access/orders fits, which denies it to "), "{reason}");
        assert!(answer.text().contains("\"error\":\"forbidden\""), "{}", answer.text());
    }
    assert_eq!(app.requests(), 3, "what is refused does not reach the application");
    let denied = |bird: &Bird| {
        let metrics = bird.metrics();
        let of = |line: &str| {
            line.strip_prefix("starling_access_denied_total{service=\"default/orders\"} ").map(str::to_owned)
        };
        metrics.lines().find_map(of).unwrap_or_default()
    };
    assert_eq!((denied(&a).as_str(), denied(&b).as_str()), ("0", "4"), "it is the instance's side that refuses");

    flock.document("access", "orders", "");
    assert_eq!(a.get("orders", "/v2").await.status, 200);
}

#[tokio::test]
async fn the_mesh_denies_by_default_where_it_is_told_to_and_a_bad_document_changes_nothing() {
    let flock = Flock::default();
    let (a, _b, app) = (flock.node("a").await, flock.node("b").await, told_who_calls().await);
    flock.register(app.at("orders", "1", "b"));
    flock.document("mesh", "access", "default = \"deny\"");
    let answer = a.get("orders", "/").await;
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("the mesh's default (mesh/access) denies it to node a"), "{}", answer.text());
    flock.document("mesh", "access", "default = \"whatever\"");
    assert_eq!(a.get("orders", "/").await.status, 403, "the last good one holds");
    flock.document("access", "orders", "[[allow]]\ncallers = [\"node:a\"]");
    assert_eq!(a.get("orders", "/").await.status, 200);
    flock.document("access", "orders", "[[allow]]\ncalers = []");
    assert_eq!(a.get("orders", "/").await.status, 200, "the last good one holds");
}

#[tokio::test]
async fn a_document_that_could_never_be_read_denies_until_it_can() {
    let flock = Flock::default();
    let (a, _b, app) = (flock.node("a").await, flock.node("b").await, told_who_calls().await);
    flock.register(app.at("orders", "1", "b"));
    for (group, name) in [("access", "orders"), ("mesh", "access")] {
        flock.document(group, name, "[[allow]]\ncalers = []");
        let answer = a.get("orders", "/").await;
        assert_eq!(answer.status, 403, "{}", answer.text());
        assert!(answer.text().contains(&format!("{group}/{name} cannot be read by this node")), "{}", answer.text());
        flock.document(group, name, "default = \"allow\"");
        assert_eq!(a.get("orders", "/").await.status, 200);
        flock.document(group, name, "");
        assert_eq!(a.get("orders", "/").await.status, 200);
    }
}

#[tokio::test]
async fn a_refusal_is_final_and_no_fault_of_the_instance() {
    let flock = Flock::default();
    let (a, b, _c) = (flock.node("a").await, flock.node("b").await, flock.node("c").await);
    let app = told_who_calls().await;
    flock.register(app.at("orders", "1", "b"));
    flock.register(app.at("orders", "2", "c"));
    flock.document("access", "orders", "default = \"deny\"");
    for _ in 0..20 {
        assert_eq!(a.get("orders", "/").await.status, 403);
    }
    assert!(a.metrics().contains("starling_retries_total{service=\"default/orders\"} 0\n"), "{}", a.metrics());
    flock.document("access", "orders", "");
    for _ in 0..4 {
        assert_eq!(a.get("orders", "/").await.status, 200, "no breaker is open");
    }
    drop(b);
}

#[tokio::test]
async fn an_application_is_told_whom_a_request_came_from_where_that_is_set() {
    let flock = Flock::default();
    let app = App::answering(|request| async move {
        let field =
            |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
        text(200, format!("{} | {}", field("forwarded"), field("x-forwarded-for")))
    })
    .await;
    let off = flock.node("off").await;
    let both = flock.node_with("both", |settings| settings.forwarded = Forwarded::Both).await;
    let strict = flock
        .node_with("strict", |settings| (settings.forwarded, settings.forwarded_keep) = (Forwarded::XForwarded, false))
        .await;
    let _b = flock.node("b").await;
    flock.register(app.at("orders", "1", "b"));
    let sent = "forwarded: for=_shop\r\nx-forwarded-for: 192.0.2.1\r\n";
    let told = async |bird: &Bird| bird.send("GET", "orders", "/", sent, b"").await.text();
    assert_eq!(told(&off).await, "for=_shop | 192.0.2.1");
    assert_eq!(told(&both).await, "for=_shop, for=127.0.0.1;host=orders;proto=http | 192.0.2.1, 127.0.0.1");
    assert_eq!(told(&strict).await, "- | 127.0.0.1");
}
