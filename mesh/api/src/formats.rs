//! What a document is written in: from its `Content-Type` (or the ending of its key) to a word, and back.

use axum::http::HeaderValue;
use starling_core::config::Body;
use starling_core::id::ConfigName;

use crate::failure::Failure;

/// The format of a document that is written.
pub(crate) fn format_of(content_type: Option<&HeaderValue>, key: &ConfigName) -> Result<String, Failure> {
    let Some(value) = content_type else { return Ok(by_ending(key)) };
    let text = value.to_str().map_err(|_| Failure::bad("Content-Type is not ASCII"))?;
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (kind, sub) = essence.split_once('/').unwrap_or(("", ""));
    Ok(match (kind, sub) {
        // What curl says of --data when it is told nothing; and what clients say who do not know.
        ("application", "x-www-form-urlencoded") | ("", _) => by_ending(key),
        ("application", "octet-stream") => "binary".into(),
        ("text", "plain") => by_ending(key),
        (_, sub) => match sub.strip_prefix("x-").unwrap_or(sub) {
            "yml" => "yaml".into(),
            "" => return Err(Failure::bad(format!("Content-Type {text:?} is not a media type"))),
            word => word.into(),
        },
    })
}

/// The format by the ending of the document's name.
fn by_ending(key: &ConfigName) -> String {
    let ending = key.as_str().rsplit_once('.').map_or("", |(_, ending)| ending);
    match ending {
        "json" | "yaml" | "toml" | "xml" | "properties" | "ini" => ending,
        "yml" => "yaml",
        _ => TEXT,
    }
    .into()
}

/// The `Content-Type` of a document that is read. Never one that a browser would run.
pub(crate) fn content_type(format: &str, body: &Body) -> HeaderValue {
    HeaderValue::from_static(match format {
        "json" => "application/json",
        "yaml" => "application/yaml",
        "toml" => "application/toml",
        BINARY => "application/octet-stream",
        _ if body.as_text().is_some() => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    })
}

const TEXT: &str = "text";
const BINARY: &str = "binary";

#[cfg(test)]
mod tests {
    use super::*;

    fn format(content_type: &'static str, key: &str) -> String {
        let value = (!content_type.is_empty()).then(|| HeaderValue::from_static(content_type));
        format_of(value.as_ref(), &key.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_content_type_decides_and_the_ending_helps_when_it_says_nothing() {
        assert_eq!(format("application/json; charset=utf-8", "a"), "json");
        assert_eq!(format("application/x-yaml", "a"), "yaml");
        assert_eq!(format("text/yaml", "a.json"), "yaml");
        assert_eq!(format("application/toml", "a"), "toml");
        assert_eq!(format("text/plain", "a"), "text");
        assert_eq!(format("application/octet-stream", "a.json"), "binary");
        assert_eq!(format("", "limits.yml"), "yaml");
        assert_eq!(format("application/x-www-form-urlencoded", "limits.toml"), "toml");
        assert_eq!(format("", "motd"), "text");
    }

    #[test]
    fn nothing_is_served_that_a_browser_would_run() {
        let body = Body::from("<script>");
        assert_eq!(content_type("html", &body), "text/plain; charset=utf-8");
        assert_eq!(content_type("html", &Body::from(vec![0xff])), "application/octet-stream");
    }
}
