//! The OpenAPI document, held against the router and the bodies.

use std::collections::BTreeSet;

use serde_json::Value;

use super::world::World;
use crate::model::{ConfigDocument, InstanceList, MemberList, MeshStatus, NodeDetail, RegisterRequest, ServiceList};
use crate::pages::OPENAPI;
use crate::routes::listed;

fn document() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

#[test]
fn every_route_is_described_and_every_description_is_a_route() {
    let routes: BTreeSet<(String, String)> =
        listed().into_iter().map(|(method, path)| (method.to_owned(), path.replace("{*", "{"))).collect();
    let mut described = BTreeSet::new();
    for (path, item) in document()["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            described.insert((method.to_uppercase(), path.clone()));
        }
    }
    assert_eq!(routes, described);
}

#[test]
fn every_parameter_of_a_path_is_described() {
    for (path, item) in document()["paths"].as_object().unwrap() {
        let wanted: BTreeSet<&str> = path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
        let described: BTreeSet<&str> =
            item["parameters"].as_array().into_iter().flatten().filter_map(|p| p["name"].as_str()).collect();
        assert_eq!(wanted, described, "{path}");
    }
}

#[test]
fn a_body_can_be_too_long_or_too_slow_and_nothing_else_can() {
    for (path, item) in document()["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            let has_body = !operation["requestBody"].is_null();
            for status in ["408", "413"] {
                assert_eq!(!operation["responses"][status].is_null(), has_body, "{method} {path}: {status}");
            }
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                for (key, inner) in map {
                    match inner.as_str() {
                        Some(to) if key == "$ref" => drop(found.insert(to.to_owned())),
                        _ => references(inner, found),
                    }
                }
            }
            Value::Array(list) => list.iter().for_each(|inner| references(inner, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for to in &found {
        assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
    }
    for kind in ["schemas", "parameters", "responses", "headers"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            assert!(found.contains(&format!("#/components/{kind}/{name}")), "{name} is used nowhere");
        }
    }
}

/// What is wrong with a value by a schema of the document: enough of JSON Schema for what the document uses.
fn mismatch(document: &Value, schema: &Value, value: &Value, place: &str) -> Option<String> {
    if let Some(to) = schema["$ref"].as_str() {
        return mismatch(document, document.pointer(&to[1..]).unwrap(), value, place);
    }
    if let Some(words) = schema["enum"].as_array() {
        return (!words.contains(value)).then(|| format!("{place}: {value} is not in {words:?}"));
    }
    let right = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        other => return Some(format!("{place}: schema of type {other:?}")),
    };
    if !right {
        return Some(format!("{place}: {value} is not of type {}", schema["type"]));
    }
    if let Some(items) = value.as_array() {
        return items.iter().find_map(|item| mismatch(document, &schema["items"], item, &format!("{place}[]")));
    }
    let fields = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(missing) = required.clone().find(|name| !fields.contains_key(*name)) {
        return Some(format!("{place}.{missing} is missing"));
    }
    fields.iter().find_map(|(name, inner)| {
        let place = format!("{place}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Null) => Some(format!("{place} is not described")),
            (Value::Null, rest) => mismatch(document, rest, inner, &place),
            (known, _) => mismatch(document, known, inner, &place),
        }
    })
}

#[tokio::test]
async fn real_answers_are_as_described() {
    let world = World::of(&["a", "b", "c"]);
    let server = world.server("a");
    let body = r#"{"port": 1, "tags": ["x"], "metadata": {"k": "v"}, "check": {"kind": "http", "path": "/up"}}"#;
    let instance = "/v1/services/orders/instances/1";
    server.ask(&format!("PUT {instance}"), body).await.expect(200);
    server.ask(&format!("PUT {instance}/override"), r#"{"weight": 0, "reason": "r"}"#).await.expect(200);
    server.ask("PUT /v1/config/default/app/x?author=ada", "1").await.expect(200);
    world.silence("c");
    let document = document();
    let routes = [
        ("/v1/services", "/v1/services"),
        ("/v1/services/{service}", "/v1/services/orders"),
        ("/v1/services/{service}/instances/{id}", instance),
        ("/v1/config", "/v1/config"),
        ("/v1/config/{namespace}/{group}/{key}", "/v1/config/default/app/x?meta=true"),
        ("/v1/members", "/v1/members"),
        ("/v1/status", "/v1/status"),
        ("/v1/node", "/v1/node"),
        ("/v1/traces", "/v1/traces"),
    ];
    for (described, asked) in routes {
        let value: Value = server.get(asked).await.expect(200).json();
        let content = &document["paths"][described]["get"]["responses"]["200"]["content"];
        let schema = &content["application/json"]["schema"];
        assert_eq!(mismatch(&document, schema, &value, asked), None);
    }
    let error: Value = server.get("/v1/services/order").await.expect(404).json();
    assert_eq!(mismatch(&document, &document["components"]["schemas"]["Error"], &error, "error"), None);
}

/// The fields of a type, as its refusal of an unknown one lists them.
fn fields_of<T: serde::de::DeserializeOwned>() -> BTreeSet<String> {
    let error = match serde_json::from_str::<T>(r#"{"no such field": 1}"#) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("an unknown field was taken"),
    };
    error.split('`').skip(1).step_by(2).skip(1).map(str::to_owned).collect()
}

#[test]
fn requests_have_the_fields_that_are_described() {
    use crate::model::{CheckBody, OverrideBody, RenewRequest, StatusRequest};
    let document = document();
    for (name, fields) in [
        ("RegisterRequest", fields_of::<RegisterRequest>()),
        ("Check", fields_of::<CheckBody>()),
        ("RenewRequest", fields_of::<RenewRequest>()),
        ("StatusRequest", fields_of::<StatusRequest>()),
        ("Override", fields_of::<OverrideBody>()),
    ] {
        let described = document["components"]["schemas"][name]["properties"].as_object().unwrap();
        assert_eq!(described.keys().cloned().collect::<BTreeSet<_>>(), fields, "{name}");
    }
}

#[tokio::test]
async fn clients_may_read_answers_with_fields_they_do_not_know() {
    let grown = |text: &str| text.replacen('{', r#"{"new_in_a_later_version": 1, "#, 1);
    let world = World::of(&["a"]);
    let server = world.server("a");
    server.register("orders", "1", 1).await;
    server.ask("PUT /v1/config/default/app/x", "1").await.expect(200);
    serde_json::from_str::<ServiceList>(&grown(server.get("/v1/services").await.text())).unwrap();
    serde_json::from_str::<InstanceList>(&grown(server.get("/v1/services/orders").await.text())).unwrap();
    serde_json::from_str::<MemberList>(&grown(server.get("/v1/members").await.text())).unwrap();
    serde_json::from_str::<MeshStatus>(&grown(server.get("/v1/status").await.text())).unwrap();
    serde_json::from_str::<NodeDetail>(&grown(server.get("/v1/node").await.text())).unwrap();
    let path = "/v1/config/default/app/x?meta=true";
    serde_json::from_str::<ConfigDocument>(&grown(server.get(path).await.text())).unwrap();
}
