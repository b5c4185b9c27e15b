//! Documents: bytes in and out, compare-and-set, conflicts.

use starling_core::policy::LayerState;

use super::world::{Server, World};
use crate::model::{ConfigDocument, ConfigList, GuardsDetail, PolicyDetail, PolicyTrial, Written};

const LIMITS: &str = "/v1/config/default/app/http/limits";

async fn put(server: &Server, query: &str, body: &str) -> Written {
    server.ask(&format!("PUT {LIMITS}{query}"), body).await.expect(200).json()
}

#[tokio::test]
async fn a_document_written_at_one_node_is_read_at_another_byte_for_byte() {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    let headers = [("content-type", "application/yaml"), ("x-starling-author", "ada")];
    let line = format!("PUT {LIMITS}?comment=less+is+more");
    let written: Written = a.ask_with(&line, &headers, "max: 3\n").await.expect(200).json();

    let read = b.get(LIMITS).await.expect(200);
    assert_eq!(read.text(), "max: 3\n");
    assert_eq!(read.header("content-type"), "application/yaml");
    assert_eq!(read.header("x-starling-conflict"), "0");
    assert_eq!(read.header("x-starling-stamp"), written.stamp.unwrap().to_string());
    let document: ConfigDocument = b.get(&format!("{LIMITS}?meta=true")).await.expect(200).json();
    let [version] = &document.versions[..] else { panic!("{document:?}") };
    assert_eq!((version.author.as_str(), version.comment.as_str()), ("ada", "less is more"));
    assert_eq!((document.key.as_str(), version.text.as_deref()), ("http/limits", Some("max: 3\n")));
}

#[tokio::test]
async fn a_write_over_an_unexpected_version_is_refused_and_told_the_one_served() {
    let server = World::of(&["a"]).server("a");
    let first = put(&server, "?expect=none", "1").await.stamp.unwrap();
    let error = server.ask(&format!("PUT {LIMITS}?expect=none"), "2").await.expect(409).error();
    assert_eq!(error.served.as_ref(), Some(&first), "{error:?}");
    put(&server, &format!("?expect={first}"), "2").await;
    server.ask(&format!("DELETE {LIMITS}?expect={first}"), "").await.expect(409);
    assert_eq!(server.get(LIMITS).await.text(), "2");
    let error = server.ask(&format!("PUT {LIMITS}?expect=latest"), "3").await.expect(400).error();
    assert!(error.error.contains("expect") && error.error.contains("or none"), "{error:?}");
}

#[tokio::test]
async fn a_deleted_document_is_told_from_one_that_never_was() {
    let server = World::of(&["a"]).server("a");
    put(&server, "", "1").await;
    server.ask(&format!("DELETE {LIMITS}?author=ada"), "").await.expect(200);
    assert!(server.get(LIMITS).await.expect(404).error().error.ends_with("was deleted by ada"));
    assert!(server.get("/v1/config").await.json::<ConfigList>().documents.is_empty());
    let error = server.get("/v1/config/default/app/never").await.expect(404).error();
    assert!(error.error.starts_with("no config document"), "{error:?}");
}

#[tokio::test]
async fn a_wrong_key_is_answered_with_the_one_that_was_meant() {
    let server = World::of(&["a"]).server("a");
    put(&server, "", "1").await;
    let hint = async |path: &str| server.get(path).await.expect(404).error().hint;
    let meant = Some("did you mean http/limits?".to_owned());
    assert_eq!(hint("/v1/config/default/app/http/limit").await, meant);
    let elsewhere = Some("did you mean default/app/http/limits?".to_owned());
    assert_eq!(hint("/v1/config/default/other/http/limits").await, elsewhere);
}

/// Two nodes wrote the same document while they were cut off from each other.
async fn in_conflict() -> (World, Server, Server) {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    put(&a, "", "before").await;
    world.cut("b");
    put(&a, "?author=ada", "from a").await;
    put(&b, "?author=bob", "from b").await;
    world.heal();
    (world, a, b)
}

#[tokio::test]
async fn a_conflict_is_shown_at_every_node() {
    let (_world, a, b) = in_conflict().await;
    for server in [&a, &b] {
        let read = server.get(LIMITS).await.expect(200);
        assert_eq!((read.text(), read.header("x-starling-conflict")), ("from b", "2"), "the later one is served");
        let list: ConfigList = server.get("/v1/config?conflicts=true").await.expect(200).json();
        assert_eq!(list.documents.iter().map(|document| document.conflict).collect::<Vec<_>>(), [2]);
        let document: ConfigDocument = server.get(&format!("{LIMITS}?meta=true")).await.expect(200).json();
        let authors: Vec<&str> = document.versions.iter().map(|version| version.author.as_str()).collect();
        assert_eq!(authors, ["bob", "ada"]);
        let other = server.get(&format!("{LIMITS}?stamp={}", document.versions[1].stamp)).await.expect(200);
        assert_eq!(other.text(), "from a");
    }
}

#[tokio::test]
async fn choosing_a_version_ends_the_conflict_everywhere() {
    let (_world, a, b) = in_conflict().await;
    let document: ConfigDocument = a.get(&format!("{LIMITS}?meta=true")).await.json();
    let stamp = &document.versions[1].stamp;
    a.ask(&format!("POST {LIMITS}?choose={stamp}&author=eve"), "").await.expect(200);
    let read = b.get(LIMITS).await.expect(200);
    assert_eq!((read.text(), read.header("x-starling-conflict")), ("from a", "0"));
    let document: ConfigDocument = b.get(&format!("{LIMITS}?meta=true")).await.json();
    assert_eq!(document.versions[0].comment, format!("chose {stamp} of 2 versions"));
    let error = b.ask(&format!("POST {LIMITS}?choose={stamp}"), "").await.expect(404).error();
    assert!(error.error.contains("has no version") && error.hint.is_some(), "{error:?}");
    b.ask(&format!("POST {LIMITS}"), "").await.expect(400);
}

#[tokio::test]
async fn an_edit_is_served_before_a_concurrent_deletion_and_either_can_be_chosen() {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    put(&a, "", "before").await;
    world.cut("b");
    put(&a, "", "edited").await;
    b.ask(&format!("DELETE {LIMITS}"), "").await.expect(200);
    world.heal();
    let read = b.get(LIMITS).await.expect(200);
    assert_eq!((read.text(), read.header("x-starling-conflict")), ("edited", "2"));
    let document: ConfigDocument = a.get(&format!("{LIMITS}?meta=true")).await.json();
    assert!(document.versions[1].deleted, "{document:?}");
    a.ask(&format!("POST {LIMITS}?choose={}", document.versions[1].stamp), "").await.expect(200);
    b.get(LIMITS).await.expect(404);
}

#[tokio::test]
async fn writing_anew_ends_the_conflict_too() {
    let (_world, a, b) = in_conflict().await;
    put(&a, "", "both").await;
    let read = b.get(LIMITS).await.expect(200);
    assert_eq!((read.text(), read.header("x-starling-conflict")), ("both", "0"));
    assert!(b.get("/v1/config?conflicts=true").await.json::<ConfigList>().documents.is_empty());
}

#[tokio::test]
async fn the_list_of_documents_can_be_narrowed() {
    let server = World::of(&["a"]).server("a");
    for path in ["default/app/http", "default/app/log", "default/db/log", "shop/app/log"] {
        server.ask(&format!("PUT /v1/config/{path}"), "x").await.expect(200);
    }
    let count = async |query: &str| {
        server.get(&format!("/v1/config?{query}")).await.expect(200).json::<ConfigList>().documents.len()
    };
    assert_eq!(count("").await, 4);
    assert_eq!(count("namespace=default").await, 3);
    assert_eq!(count("group=app").await, 3);
    assert_eq!(count("namespace=default&group=app&prefix=lo").await, 1);
    assert_eq!(count("conflicts=true").await, 0);
}

#[tokio::test]
async fn a_waiting_reader_gets_the_new_document() {
    let world = World::of(&["a", "b"]);
    let (a, b) = (world.server("a"), world.server("b"));
    put(&a, "", "1").await;
    let revision = b.get(LIMITS).await.revision();
    let waiter = b.wait_for(format!("{LIMITS}?newer_than={revision}&wait=1m")).await;
    put(&a, "", "2").await;
    assert_eq!(waiter.await.unwrap().expect(200).text(), "2");
}

#[tokio::test]
async fn a_document_that_is_too_long_is_refused() {
    let server = World::of(&["a"]).server("a");
    let body = "x".repeat(512 * 1024 + 1);
    let error = server.ask(&format!("PUT {LIMITS}"), &body).await.expect(413).error();
    assert!(error.error.contains("524288"), "{error:?}");
    server.ask(&format!("PUT {LIMITS}"), &body[1..]).await.expect(200);
    server.ask("PUT /v1/services/a/instances/1", &body).await.expect(413);
}

#[tokio::test]
async fn bytes_that_are_not_text_are_kept_as_they_are() {
    let server = World::of(&["a"]).server("a");
    let request = axum::http::Request::put(LIMITS).body(axum::body::Body::from(vec![0xff, 0, 7])).unwrap();
    server.send(request).await.expect(200);
    let read = server.get(LIMITS).await.expect(200);
    assert_eq!((&read.body[..], read.header("content-type")), (&[0xff, 0, 7][..], "application/octet-stream"));
    let document: ConfigDocument = server.get(&format!("{LIMITS}?meta=true")).await.json();
    assert_eq!((document.versions[0].text.as_deref(), document.versions[0].bytes), (None, 3));
}

const ORDERS: &str = "/v1/config/default/policy/orders";

#[tokio::test]
async fn a_policy_that_is_wrong_is_refused_with_line_field_and_what_is_allowed_and_changes_nothing() {
    let server = World::of(&["a"]).server("a");
    server.ask(&format!("PUT {ORDERS}"), "[timeouts]\nrequest_ms = 500\n").await.expect(200);
    let error = server.ask(&format!("PUT {ORDERS}"), "[timeouts]\nrequest_ms = 0\n").await.expect(422).error();
    let [problem] = &error.problems[..] else { panic!("{error:?}") };
    assert_eq!((problem.line, problem.field.as_str()), (Some(2), "timeouts.request_ms"));
    assert!(problem.message.contains("allowed are 1 to 3600000"), "{problem:?}");
    assert!(error.error.contains("line 2: timeouts.request_ms: is 0"), "{error:?}");
    assert_eq!(server.get(ORDERS).await.text(), "[timeouts]\nrequest_ms = 500\n");
}

#[tokio::test]
async fn a_policy_must_be_named_like_a_service_or_be_for_all() {
    let server = World::of(&["a"]).server("a");
    server.ask("PUT /v1/config/default/policy/*", "").await.expect(200);
    let nowhere = server.ask("PUT /v1/config/pay/policy/*", "").await.expect(422).error();
    assert!(nowhere.error.contains("default/policy/*"), "{nowhere:?}");
    let upper = server.ask("PUT /v1/config/default/policy/Orders", "").await.expect(422).error();
    assert_eq!(upper.hint.as_deref(), Some("did you mean orders?"));
    server.ask("PUT /v1/config/default/policy/or!ders", "").await.expect(422);
}

#[tokio::test]
async fn other_groups_hold_whatever_they_like() {
    let server = World::of(&["a"]).server("a");
    server.ask("PUT /v1/config/default/app/orders", "{ not toml").await.expect(200);
}

#[tokio::test]
async fn what_is_in_force_names_the_origin_of_each_value_and_what_of_a_route_differs() {
    let server = World::of(&["a"]).server("a");
    server.ask("PUT /v1/config/default/policy/*", "[retry]\nmax_retries = 1\n").await.expect(200);
    let text = "[timeouts]\nrequest_ms = 500\n[[route]]\nname = \"slow\"\npath = \"/x\"\ntimeouts.request_ms = 900\n";
    server.ask(&format!("PUT {ORDERS}"), text).await.expect(200);
    let detail: PolicyDetail = server.get("/v1/policy/orders").await.expect(200).json();
    let of = |field: &str| {
        let value = detail.values.iter().find(|value| value.field == field).unwrap();
        format!("{} ({})", value.value, value.origin)
    };
    assert_eq!(of("timeouts.request_ms"), "500 (the service's policy, line 2)");
    assert_eq!(of("retry.max_retries"), "1 (policy/*, line 2)");
    let [route] = &detail.routes[..] else { panic!("{detail:?}") };
    assert_eq!((route.name.as_str(), route.values.len()), ("slow", 1));
    assert_eq!(route.values[0].origin, "route slow, line 6");
    assert!(detail.problems.is_empty());
    let layers: Vec<_> = detail.layers.iter().map(|layer| (layer.document.as_str(), layer.state)).collect();
    assert_eq!(layers, [("default/policy/*", LayerState::InForce), ("default/policy/orders", LayerState::InForce)]);
}

#[tokio::test]
async fn guards_are_asked_of_one_node_or_of_all() {
    let world = World::of(&["a", "b"]);
    let server = world.server("a");
    let nodes = |detail: &GuardsDetail| detail.nodes.iter().map(|node| node.node.to_string()).collect::<Vec<_>>();
    let one: GuardsDetail = server.get("/v1/guards/orders").await.expect(200).json();
    assert_eq!((nodes(&one), one.nodes[0].report.refusals[0].count), (vec!["a".to_owned()], 2));
    let all: GuardsDetail = server.get("/v1/guards/orders?all=true").await.expect(200).json();
    assert_eq!(nodes(&all), ["a", "b"]);
    assert_eq!(all.nodes[1].report.problems, ["seen at b for default/orders"]);
}

#[tokio::test]
async fn a_policy_is_tried_at_one_node_or_at_all_and_a_bad_one_at_none() {
    let world = World::of(&["a", "b"]);
    let server = world.server("a");
    let one: PolicyTrial = server.ask("POST /v1/policy/orders/try", "[circuit]").await.expect(200).json();
    let [node] = &one.nodes[..] else { panic!("{one:?}") };
    assert_eq!(node.trial.refusals[0].why, "\"[circuit]\" at a for default/orders, all: false");
    let all: PolicyTrial = server.ask("POST /v1/policy/orders/try?all=true&for_all=true", "").await.expect(200).json();
    assert_eq!(all.nodes.iter().map(|node| node.node.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(all.nodes[1].trial.refusals[0].why.ends_with("all: true"));
    let bad = server.ask("POST /v1/policy/orders/try", "[timeouts]\nrequest_ms = 0\n").await.expect(422);
    assert!(bad.text().contains("line 2: timeouts.request_ms"));
    server.ask("POST /v1/policy/orders/try?for_all=true", "[[route]]\npath = \"/a\"\n").await.expect(422);
    let none = server.get("/v1/config/default/policy/orders").await.expect(404);
    assert!(!none.text().is_empty(), "nothing was written");
}
