//! Configuration documents: raw bytes in and out, conflicts shown and resolved.

use std::time::Duration;

use axum::body::Body as ResponseBody;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Deserializer};
use starling_core::Command;
use starling_core::config::{Body, ConfigWrite, MAX_BODY_BYTES, Version};
use starling_core::id::{ConfigGroup, ConfigKey, ConfigName, Namespace};
use starling_core::time::Stamp;
use starling_core::view::{ConfigView, View};

use crate::context::Shared;
use crate::extract::{Names, Params, Wait, duration, flag, parsed, read_body};
use crate::failure::Failure;
use crate::formats;
use crate::lists::encode;
use crate::model::{AUTHOR_HEADER, COMMENT_HEADER, CONFLICT_HEADER, ConfigList, STAMP_HEADER};
use crate::near::nearest;
use crate::policies;
use crate::reply::{REVISION, json};
use crate::show;

type DocumentNames = Names<(Namespace, ConfigGroup, ConfigName)>;

/// The query of the list of documents.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    namespace: Option<Namespace>,
    group: Option<ConfigGroup>,
    #[serde(default)]
    prefix: String,
    #[serde(default, deserialize_with = "flag")]
    conflicts: bool,
    newer_than: Option<u64>,
    #[serde(default, deserialize_with = "duration")]
    wait: Option<Duration>,
}

/// `GET /v1/config`.
pub(crate) async fn list(State(context): State<Shared>, Params(query): Params<ListQuery>) -> Result<Response, Failure> {
    let revision_of = |view: &View| context.revisions.configs(view);
    let view = context.newest(Wait::new(query.newer_than, query.wait), revision_of).await?;
    let wanted = |key: &ConfigKey, config: &ConfigView| {
        query.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && query.group.as_ref().is_none_or(|group| *group == key.group)
            && key.key.as_str().starts_with(&query.prefix)
            && (!query.conflicts || show::conflict(config) > 0)
    };
    let found = view.configs.iter().filter(|(key, config)| wanted(key, config));
    let documents = found.filter_map(|(_, config)| show::summary(config)).collect();
    let revision = revision_of(&view);
    Ok(json(revision, encode(&ConfigList { revision, documents })))
}

/// The query of a document's GET.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadQuery {
    #[serde(default, deserialize_with = "flag")]
    meta: bool,
    #[serde(default, deserialize_with = "parsed")]
    stamp: Option<Stamp>,
    newer_than: Option<u64>,
    #[serde(default, deserialize_with = "duration")]
    wait: Option<Duration>,
}

/// `GET /v1/config/{namespace}/{group}/{*key}`.
pub(crate) async fn read(
    State(context): State<Shared>,
    names: DocumentNames,
    Params(query): Params<ReadQuery>,
) -> Result<Response, Failure> {
    let key = key(names);
    let wait = Wait::new(query.newer_than, query.wait);
    let view = context.newest(wait, |view| view.config_revision(&key)).await?;
    let Some(config) = view.config(&key) else { return Err(no_document(&view, &key)) };
    if query.meta {
        return Ok(json(config.revision, encode(&show::document(config))));
    }
    let version = match &query.stamp {
        Some(stamp) => chosen(config, stamp)?,
        None => config.served().ok_or_else(|| deleted(config))?,
    };
    raw(config, version)
}

/// A version's bytes, with what is known of them in headers.
fn raw(config: &ConfigView, version: &Version) -> Result<Response, Failure> {
    let Some(body) = &version.body else { return Err(deleted(config)) };
    let mut response = Response::new(ResponseBody::from(body.as_bytes().to_vec()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, formats::content_type(&version.format, body));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REVISION, HeaderValue::from(config.revision.0));
    headers.insert(HeaderName::from_static(CONFLICT_HEADER), HeaderValue::from(show::conflict(config)));
    if let Ok(stamp) = HeaderValue::from_str(&version.stamp.to_string()) {
        headers.insert(HeaderName::from_static(STAMP_HEADER), stamp);
    }
    Ok(response)
}

/// The query of a document's PUT and DELETE.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriteQuery {
    author: Option<String>,
    comment: Option<String>,
    #[serde(default, deserialize_with = "expectation")]
    expect: Option<Option<Stamp>>,
}

/// `PUT /v1/config/{namespace}/{group}/{*key}`.
pub(crate) async fn write(
    State(context): State<Shared>,
    names: DocumentNames,
    Params(query): Params<WriteQuery>,
    request: Request,
) -> Result<Response, Failure> {
    let key = key(names);
    let (parts, body) = request.into_parts();
    let format = formats::format_of(parts.headers.get(CONTENT_TYPE), &key.key)?;
    let mut write = change(key, query, &parts.headers)?;
    let bytes = read_body(body, MAX_BODY_BYTES, context.settings.request_timeout()).await?;
    write.body = Some(Body::from(bytes.to_vec()));
    write.format = format;
    write.check_limits().map_err(Failure::bad)?;
    write.body.as_ref().map_or(Ok(()), |body| policies::check(&write.key, body))?;
    context.write(Command::WriteConfig(write)).await
}

/// `DELETE /v1/config/{namespace}/{group}/{*key}`.
pub(crate) async fn delete(
    State(context): State<Shared>,
    names: DocumentNames,
    Params(query): Params<WriteQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let write = change(key(names), query, &headers)?;
    write.check_limits().map_err(Failure::bad)?;
    context.write(Command::WriteConfig(write)).await
}

/// The query of a document's POST.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChooseQuery {
    #[serde(default, deserialize_with = "parsed")]
    choose: Option<Stamp>,
    author: Option<String>,
    comment: Option<String>,
}

/// `POST /v1/config/{namespace}/{group}/{*key}?choose=STAMP`: writes one of the concurrent versions again, over all.
pub(crate) async fn choose(
    State(context): State<Shared>,
    names: DocumentNames,
    Params(query): Params<ChooseQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let Some(stamp) = query.choose else {
        return Err(Failure::bad("choose is missing: the stamp of the version to keep")
            .hint("GET this address with ?meta=true lists the versions; to write a new one, PUT it"));
    };
    let key = key(names);
    let view = context.mesh.view();
    let Some(config) = view.config(&key) else { return Err(no_document(&view, &key)) };
    let version = chosen(config, &stamp)?.clone();
    let comment = query.comment.or_else(|| Some(format!("chose {stamp} of {} versions", config.versions.len())));
    let expect = Some(config.served().map(|served| served.stamp.clone()));
    let mut write = change(key, WriteQuery { author: query.author, comment, expect }, &headers)?;
    write.body = version.body.clone();
    write.format = version.format.clone();
    write.check_limits().map_err(Failure::bad)?;
    write.body.as_ref().map_or(Ok(()), |body| policies::check(&write.key, body))?;
    context.write(Command::WriteConfig(write)).await
}

fn key(Names((namespace, group, key)): DocumentNames) -> ConfigKey {
    ConfigKey { namespace, group, key }
}

/// A write without a body yet; what the query does not say of author and comment, the headers may.
fn change(key: ConfigKey, query: WriteQuery, headers: &HeaderMap) -> Result<ConfigWrite, Failure> {
    let or_header = |given: Option<String>, name: &str| match (given, headers.get(name)) {
        (Some(given), _) => Ok(given),
        (None, None) => Ok(String::new()),
        (None, Some(value)) => String::from_utf8(value.as_bytes().to_vec())
            .map_err(|_| Failure::bad(format!("header {name} is not UTF-8"))),
    };
    Ok(ConfigWrite {
        key,
        body: None,
        format: String::new(),
        author: or_header(query.author, AUTHOR_HEADER)?,
        comment: or_header(query.comment, COMMENT_HEADER)?,
        expect: query.expect,
    })
}

/// Reads a stamp, or `none`: only if there is no document.
fn expectation<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Stamp>>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "none" {
        return Ok(Some(None));
    }
    text.parse().map(|stamp| Some(Some(stamp))).map_err(|error| serde::de::Error::custom(format!("{error}, or none")))
}

/// The version of this stamp, if it is one of the current ones.
fn chosen<'a>(config: &'a ConfigView, stamp: &Stamp) -> Result<&'a Version, Failure> {
    config.versions.iter().find(|version| version.stamp == *stamp).map(AsRef::as_ref).ok_or_else(|| {
        let current: Vec<String> = config.versions.iter().map(|version| version.stamp.to_string()).collect();
        Failure::absent(format!("document {} has no version {stamp} any more", config.key))
            .at(config.revision)
            .hint(format!("its versions are {}", current.join(", ")))
    })
}

fn deleted(config: &ConfigView) -> Failure {
    let by = config.versions.first().map(|version| format!(" by {}", author_of(version))).unwrap_or_default();
    Failure::new(StatusCode::NOT_FOUND, format!("document {} was deleted{by}", config.key))
        .at(config.revision)
        .hint("?meta=true shows when and why")
}

fn author_of(version: &Version) -> String {
    if version.author.is_empty() { format!("somebody at node {}", version.stamp.node) } else { version.author.clone() }
}

/// 404, with the revision to wait from and the name that may have been meant.
pub(crate) fn no_document(view: &View, key: &ConfigKey) -> Failure {
    let live = || view.configs.iter().filter(|(_, config)| config.served().is_some()).map(|(other, _)| other);
    let elsewhere = live().find(|other| other.key == key.key && *other != key);
    let near = || {
        let siblings = live().filter(|other| other.namespace == key.namespace && other.group == key.group);
        nearest(key.key.as_str(), siblings.map(|other| other.key.as_str())).map(str::to_owned)
    };
    let meant = elsewhere.map(ToString::to_string).or_else(near);
    Failure::absent(format!("no config document {key} is known at node {}", view.me))
        .at(view.config_revision(key))
        .maybe_hint(meant.map(|meant| format!("did you mean {meant}?")))
}
