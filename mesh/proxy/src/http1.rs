//! What a proxy must do to HTTP messages that pass it (RFC 9110, section 7.6; RFC 9112, section 3.2).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{Method, Response, Version};
use starling_core::id::NodeId;

use crate::reason::{Reason, Refused};

/// How many sidecars a request has passed.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("x-starling-hops");
/// The node whose sidecar sent the request; what the application itself wrote there is removed.
pub(crate) const CALLER_NODE: HeaderName = HeaderName::from_static("x-starling-caller-node");
/// Headers of this family are the sidecars' alone.
const OWN_PREFIX: &str = "x-starling-";

/// Fields that concern one connection only. `expect` is among them because the sidecar has answered it already by
/// reading the body.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// Turns an absolute-form target (a proxy's) or an origin-form one into origin form with a `Host`, and returns the host.
pub(crate) fn to_origin_form(head: &mut Parts) -> Result<String, Refused> {
    if head.method == Method::CONNECT {
        let why = "CONNECT is not carried; call http://SERVICE.mesh/ without TLS, the mesh encrypts between nodes";
        return Err(Refused::new(Reason::Unsupported, why));
    }
    let from_target = head.uri.authority().map(|authority| authority.as_str().rsplit('@').next().unwrap_or_default());
    let host = match from_target {
        // The target wins over Host (RFC 9112, section 3.2.2).
        Some(host) => host.to_owned(),
        None => single_host(&head.headers)?.to_owned(),
    };
    if from_target.is_some() {
        let value = HeaderValue::from_str(&host).map_err(|_| bad_host())?;
        head.headers.insert(header::HOST, value);
        let path = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        head.uri = Uri::from(path);
    }
    head.version = Version::HTTP_11;
    Ok(host)
}

fn single_host(headers: &HeaderMap) -> Result<&str, Refused> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_| bad_host()),
        (None, _) => Err(Refused::new(Reason::BadRequest, "no Host header says which service is meant")),
        _ => Err(Refused::new(Reason::BadRequest, "several Host headers")),
    }
}

fn bad_host() -> Refused {
    Refused::new(Reason::BadRequest, "the host is not printable ASCII")
}

/// Counts this sidecar and refuses a request that has passed too many.
pub(crate) fn count_hop(headers: &mut HeaderMap, max_hops: u32) -> Result<(), Refused> {
    let passed = headers.get(HOPS).and_then(|value| value.to_str().ok()?.parse::<u32>().ok()).unwrap_or(0);
    if passed >= max_hops {
        let why = format!("the request has passed {passed} sidecars: an application sends it back into the mesh");
        return Err(Refused::new(Reason::Loop, why));
    }
    headers.insert(HOPS, HeaderValue::from(passed.saturating_add(1)));
    Ok(())
}

/// Removes what concerns only the connection the request came by, and whatever only sidecars may say.
pub(crate) fn clean_request(headers: &mut HeaderMap, caller: &NodeId) {
    let hops = headers.get(HOPS).cloned();
    remove_hop_by_hop(headers);
    remove_own(headers);
    if let Some(hops) = hops {
        headers.insert(HOPS, hops);
    }
    if let Ok(caller) = HeaderValue::from_str(caller.as_str()) {
        headers.insert(CALLER_NODE, caller);
    }
}

/// Refuses framing this proxy cannot pass on as it is meant, and removes a length that does not count: beside a
/// `Transfer-Encoding`, `Content-Length` means nothing (RFC 9112, section 6.3) and would cut off the body once the
/// coding is removed.
///
/// # Errors
/// A transfer coding other than `chunked`, which would have to be undone here.
pub(crate) fn check_framing(headers: &mut HeaderMap) -> Result<(), String> {
    let Some(coding) = headers.get(header::TRANSFER_ENCODING) else { return Ok(()) };
    if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(format!("transfer coding {coding:?} is not carried, only \"chunked\" is"));
    }
    headers.remove(header::CONTENT_LENGTH);
    Ok(())
}

/// The same as [`clean_request`] for a response. Its version becomes the sidecar's own (RFC 9110, section 2.5): what an
/// HTTP/1.0 application cannot do ends at the connection to it, and how the body is framed is decided anew.
pub(crate) fn clean_response<B>(response: &mut Response<B>) {
    *response.version_mut() = Version::HTTP_11;
    remove_hop_by_hop(response.headers_mut());
    remove_own(response.headers_mut());
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            // Naming these would let a client take away what the message cannot be read without.
            .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn remove_own(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| name.as_str().starts_with(OWN_PREFIX)) {
        return;
    }
    let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(OWN_PREFIX)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// Whether doing it twice is as good as once (RFC 9110, section 9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE].contains(method)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, uri: &str, fields: &[(&'static str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn an_absolute_target_becomes_origin_form_and_its_host_wins() {
        let mut head = head("GET", "http://user@orders.mesh:80/x?y=1", &[("host", "other")]);
        assert_eq!(to_origin_form(&mut head).unwrap(), "orders.mesh:80");
        assert_eq!(
            (head.uri.to_string().as_str(), &head.headers["host"]),
            ("/x?y=1", &HeaderValue::from_static("orders.mesh:80"))
        );
    }

    #[test]
    fn a_request_without_or_with_two_hosts_is_refused() {
        assert_eq!(to_origin_form(&mut head("GET", "/", &[])).unwrap_err().reason, Reason::BadRequest);
        let two = &[("host", "a"), ("host", "b")];
        assert_eq!(to_origin_form(&mut head("GET", "/", two)).unwrap_err().reason, Reason::BadRequest);
        assert_eq!(to_origin_form(&mut head("CONNECT", "a:1", &[])).unwrap_err().reason, Reason::Unsupported);
    }

    #[test]
    fn connection_fields_and_those_it_names_are_removed_but_never_the_framing() {
        let fields = &[
            ("connection", "close, X-Private, host"),
            ("connection", "content-length"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("host", "a"),
            ("content-length", "0"),
            ("x-public", "1"),
            ("x-starling-caller-node", "forged"),
        ];
        let mut head = head("GET", "/", fields);
        clean_request(&mut head.headers, &"n1".parse().unwrap());
        let mut left: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "x-public", "x-starling-caller-node"]);
        assert_eq!(head.headers[CALLER_NODE], "n1");
    }

    #[test]
    fn too_many_hops_are_a_loop() {
        let mut headers = HeaderMap::new();
        count_hop(&mut headers, 2).unwrap();
        count_hop(&mut headers, 2).unwrap();
        assert_eq!(count_hop(&mut headers, 2).unwrap_err().reason, Reason::Loop);
    }
}
