//! Who may speak to a control surface that asks for no password: programs on this host, not web pages in its browser.
//!
//! Two doors a page could come through are closed. *DNS rebinding*: a page's own name is made to point at 127.0.0.1,
//! and the browser takes the control surface for the page's origin; such requests carry the page's name in `Host`, so
//! only IP addresses (which cannot be rebound), `localhost` and allowed names pass. *Cross-site writes*: a page may
//! send a form anywhere without asking; browsers add `Origin` to those, and a foreign one is refused. Cross-site reads
//! are sent too, but browsers keep the answer from the page, since nothing here sends CORS headers.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, Method, StatusCode, Uri};

use crate::failure::Failure;

/// Refuses what a web page sent.
pub(crate) fn check(method: &Method, uri: &Uri, headers: &HeaderMap, allowed: &[String]) -> Result<(), Failure> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().map(|value| value.to_str().unwrap_or("\u{fffd}"));
    if hosts.next().is_some() {
        return Err(Failure::bad("there are several Host headers"));
    }
    for named in [host, uri.authority().map(|authority| authority.as_str())].into_iter().flatten() {
        if !is_ours(named, allowed) {
            return Err(Failure::new(StatusCode::FORBIDDEN, format!("this node is not addressed as {named:?}")).hint(
                "use localhost or its IP address, or add the name to allowed_hosts in the node's settings; \
                 the check keeps web pages out",
            ));
        }
    }
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    match headers.get(ORIGIN) {
        Some(origin) if !reads && !same(origin.to_str().unwrap_or_default(), host.unwrap_or_default()) => {
            Err(Failure::new(StatusCode::FORBIDDEN, "a web page of another origin may not write here")
                .hint("send the request without an Origin header, from a program instead of a page"))
        }
        _ => Ok(()),
    }
}

/// Whether a Host header cannot be the name of somebody's web page.
fn is_ours(host: &str, allowed: &[String]) -> bool {
    let name = without_port(host).trim_end_matches('.');
    let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    literal.is_some_and(|inside| inside.parse::<Ipv6Addr>().is_ok())
        || name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

/// Whether an origin is this very address. `null` and foreign schemes are not.
fn same(origin: &str, host: &str) -> bool {
    let place = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    !host.is_empty() && place.is_some_and(|place| place.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn verdict(method: Method, host: &'static str, origin: Option<&'static str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static(host));
        if let Some(origin) = origin {
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
        }
        check(&method, &Uri::from_static("/v1/node"), &headers, &["mesh.internal".into()]).is_ok()
    }

    #[test]
    fn addresses_localhost_and_allowed_names_pass() {
        for host in ["127.0.0.1:15000", "[::1]:15000", "[::1]", "10.1.2.3", "localhost", "LOCALHOST:1", "mesh.internal"]
        {
            assert!(verdict(Method::GET, host, None), "{host}");
        }
    }

    #[test]
    fn a_page_that_points_its_own_name_here_is_refused() {
        for host in [
            "evil.example",
            "evil.example:15000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "evil.example:x",
        ] {
            assert!(!verdict(Method::GET, host, None), "{host}");
        }
    }

    #[test]
    fn a_page_of_another_origin_may_not_write() {
        let here = "127.0.0.1:15000";
        assert!(!verdict(Method::PUT, here, Some("https://evil.example")));
        assert!(!verdict(Method::POST, here, Some("null")));
        assert!(!verdict(Method::DELETE, here, Some("http://127.0.0.1:3000")));
        assert!(verdict(Method::PUT, here, Some("http://127.0.0.1:15000")));
        assert!(verdict(Method::PUT, here, None));
    }

    #[test]
    fn an_absolute_address_is_held_to_the_same_rule() {
        let uri = Uri::from_static("http://evil.example/v1/node");
        assert!(check(&Method::GET, &uri, &HeaderMap::new(), &[]).is_err());
    }
}
