//! A request's head: read where it lies, written anew for the instance.
//!
//! Nothing of the client's framing survives: what is sent on was understood here and says the same in one way only.
//! Refused as a way to smuggle one request within another (RFC 9112, section 11.2): a length beside a transfer coding,
//! two lengths, lengths that are no plain number, a transfer coding other than `chunked`, any coding in HTTP/1.0, two
//! hosts, white space before a colon or folded lines (the parser's work).

use std::ops::Range;

use std::time::Duration;

use http::Method;
use starling_core::id::NodeId;

use super::Framing;
use super::fields::{self, Connection, Field, field};
use super::forwarded::{self, Forward};
use crate::grpc::{self, Grpc};
use crate::reason::{Reason, Refused};
use crate::settings::ProxySettings;
use crate::trace::{self, Context};

/// What a head says.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) framing: Framing,
    pub(crate) http_10: bool,
    /// Whether the client wants to send more by this connection.
    pub(crate) keep_alive: bool,
    /// Whether the client waits for a word before it sends the body.
    pub(crate) expects_continue: bool,
    /// Whether it asks to go on in another protocol.
    pub(crate) upgrades: bool,
    /// What is known of it if it is a call of gRPC.
    pub(crate) grpc: Option<Grpc>,
    pub(crate) context: Context,
    /// How long the head was.
    pub(crate) length: usize,
    /// Where the path ends in what was written; it begins after the method and a space.
    path_end: usize,
    /// Where the field that names the calling service stands in what was written; empty when there is none.
    caller_service: Range<usize>,
    /// How much longer the caller waits, if it says so.
    pub(crate) left: Option<Duration>,
    /// Which attempt of the caller's it is; 1 unless it says so.
    pub(crate) attempt: u32,
    /// Where the parent's id stands in what was written.
    parent_at: usize,
    /// Where the milliseconds that are left stand in what was written, and the same in gRPC's words; 0 for none.
    left_at: [usize; 2],
    /// Where the number of the attempt stands in what was written; 0 while it does not.
    attempt_at: usize,
}

/// How many digits there are for the milliseconds that are left: what `grpc-timeout` has, and more than a day.
const LEFT_DIGITS: usize = 8;
/// As many nines: whoever sent it takes the time it takes.
pub(crate) const UNBOUNDED_MS: u64 = 99_999_999;
/// How many there are for the number of an attempt.
const ATTEMPT_DIGITS: usize = 2;

/// What is done to heads, whoever sent them.
pub(crate) struct Rules<'a> {
    pub(crate) settings: &'a ProxySettings,
    /// The node whose application sent it.
    pub(crate) caller: &'a NodeId,
    /// The service its application calls for; what a request itself says of that counts only from another sidecar.
    pub(crate) caller_service: Option<&'a [u8]>,
    /// What the application is told of the client, if anything.
    pub(crate) forward: Option<Forward>,
    /// Whether this sidecar is one more that the request passes.
    pub(crate) counts_hop: bool,
}

impl Request {
    /// Reads a head from the beginning of `data`; `None` until all of it is there. Writes the head to send on into
    /// `out`, and the host it names into `host`.
    ///
    /// # Errors
    /// What is wrong with it. The connection cannot be used after that: nobody knows where the request ends.
    pub(crate) fn read(
        data: &[u8],
        rules: &Rules<'_>,
        out: &mut Vec<u8>,
        host: &mut Vec<u8>,
    ) -> Result<Option<Request>, Refused> {
        let most = rules.settings.max_headers;
        fields::with_room(most, |room| {
            let mut parsed = httparse::Request::new(&mut []);
            match httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, data, room) {
                Ok(httparse::Status::Complete(length)) => write(&parsed, length, rules, out, host).map(Some),
                Ok(httparse::Status::Partial) => Ok(None),
                Err(httparse::Error::TooManyHeaders) => {
                    Err(Refused::new(Reason::HeadTooLarge, format!("more than {most} header fields")))
                }
                Err(error) => Err(bad(format!("the request cannot be read: {error}"))),
            }
        })
    }

    /// The path in a head that [`Self::read`] wrote.
    pub(crate) fn path<'a>(&self, head: &'a [u8]) -> &'a str {
        let path = head.get(self.method.as_str().len() + 1..self.path_end).unwrap_or_default();
        std::str::from_utf8(path).unwrap_or_default()
    }

    /// The service the other sidecar says it calls for.
    pub(crate) fn claimed<'a>(&self, head: &'a [u8]) -> Option<&'a [u8]> {
        let line = &head[self.caller_service.clone()];
        line.strip_prefix(fields::CALLER_SERVICE)?.strip_prefix(b": ")?.strip_suffix(b"\r\n")
    }

    /// Takes what it said out again: it may not say so.
    pub(crate) fn forget_claim(&mut self, head: &mut Vec<u8>) {
        let gone = self.caller_service.len();
        let after = [&mut self.parent_at, &mut self.attempt_at].into_iter().chain(&mut self.left_at);
        after.filter(|at| **at > 0).for_each(|at| *at -= gone);
        head.drain(std::mem::take(&mut self.caller_service));
    }

    /// Writes how long its receiver has, and, beyond the first, which attempt this is.
    pub(crate) fn set_attempt(&mut self, head: &mut Vec<u8>, left: Duration, attempt: u32) {
        // Begun milliseconds count: nothing left is nothing left.
        let left_ms = left.as_micros().div_ceil(1_000).min(u128::from(u64::MAX)) as u64;
        for at in self.left_at.into_iter().filter(|at| *at > 0) {
            fields::write_digits(left_ms, &mut head[at..at + LEFT_DIGITS]);
        }
        if attempt > 1 && self.attempt_at == 0 {
            head.truncate(head.len() - 2);
            self.attempt_at = head.len() + fields::ATTEMPT.len() + 2;
            fields::write(head, fields::ATTEMPT, &[b'0'; ATTEMPT_DIGITS]);
            head.extend_from_slice(b"\r\n");
        }
        if self.attempt_at > 0 {
            fields::write_digits(u64::from(attempt), &mut head[self.attempt_at..self.attempt_at + ATTEMPT_DIGITS]);
        }
    }

    /// Makes `span` the parent of whatever the receiver of this head does.
    pub(crate) fn set_parent(&self, head: &mut [u8], span: starling_core::observe::SpanId) {
        trace::write_parent(span, &mut head[self.parent_at..self.parent_at + 16]);
    }
}

fn bad(why: impl Into<String>) -> Refused {
    Refused::new(Reason::BadRequest, why)
}

/// What has been gathered from the fields.
#[derive(Default)]
struct Gathered<'a> {
    connection: Connection<'a>,
    host: Option<&'a [u8]>,
    length: Option<u64>,
    coding: Option<&'a [u8]>,
    upgrade: Option<&'a [u8]>,
    expects: bool,
    is_grpc: bool,
    grpc: Grpc,
    parents: usize,
    parent: &'a [u8],
    caller_service: Option<&'a [u8]>,
    hops: u32,
    left: Option<Duration>,
    attempt: u32,
}

fn write(
    parsed: &httparse::Request<'_, '_>,
    length: usize,
    rules: &Rules<'_>,
    out: &mut Vec<u8>,
    host: &mut Vec<u8>,
) -> Result<Request, Refused> {
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(bad("the request line is not complete"));
    };
    let gathered = gather(parsed.headers)?;
    let http_10 = version == 0;
    let framing = framing(&gathered, http_10)?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad("the method is no token"))?;
    if method == Method::CONNECT && framing != Framing::Empty {
        return Err(bad("CONNECT with a body: nobody can say for certain where the connection begins"));
    }
    let (authority, path) = split_target(&method, target)?;
    // The target wins over Host (RFC 9112, section 3.2.2).
    let named = authority.map(str::as_bytes).or(gathered.host);
    let named = named.ok_or_else(|| bad("no Host header says which service is meant"))?;
    if !named.is_ascii() {
        return Err(bad("the host is not printable ASCII"));
    }
    host.clear();
    host.extend_from_slice(named);
    let upgrades = gathered.connection.upgrade && gathered.upgrade.is_some_and(may_switch) && framing == Framing::Empty;

    out.clear();
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    if path.starts_with('?') {
        out.push(b'/');
    }
    out.extend_from_slice(path.as_bytes());
    let path_end = out.len();
    out.extend_from_slice(b" HTTP/1.1\r\n");
    fields::write(out, b"host", named);
    let (context, continued) =
        Context::receive((gathered.parents == 1).then_some(gathered.parent), rules.settings.trace_one_in);
    for header in parsed.headers.iter() {
        match field(header.name) {
            Field::TraceState if continued => {}
            // It is written anew, with what is left of it.
            Field::GrpcTimeout if gathered.grpc.timeout.is_some() => continue,
            known if rules.forward.is_some() && forwarded::is_one(known) => continue,
            field if field.is_of_ends() => {}
            _ => continue,
        }
        if !gathered.connection.ends(header) {
            fields::write(out, header.name.as_bytes(), header.value);
        }
    }
    if let Some(forward) = rules.forward {
        forward.write(parsed.headers, &gathered.connection, named, out);
    }
    match framing {
        Framing::Length(length) => fields::write_number(out, b"content-length", length),
        Framing::Chunked => fields::write(out, b"transfer-encoding", b"chunked"),
        Framing::Empty | Framing::UntilClose => {}
    }
    if let Some(protocol) = gathered.upgrade.filter(|_| upgrades) {
        fields::write(out, b"connection", b"upgrade");
        fields::write(out, b"upgrade", protocol);
    }
    fields::write(out, fields::CALLER_NODE, rules.caller.as_str().as_bytes());
    let claim_at = out.len();
    let claimed = gathered.caller_service.filter(|_| !rules.counts_hop);
    if let Some(service) = claimed.or(rules.caller_service) {
        fields::write(out, fields::CALLER_SERVICE, service);
    }
    let caller_service = claim_at..out.len();
    let hops = passed(gathered.hops, rules)?;
    if hops > 0 {
        fields::write_number(out, b"x-starling-hops", u64::from(hops));
    }
    let mut left_at = [out.len() + fields::DEADLINE.len() + 2, 0];
    fields::write(out, fields::DEADLINE, &[b'0'; LEFT_DIGITS]);
    if gathered.grpc.timeout.is_some() {
        left_at[1] = out.len() + b"grpc-timeout: ".len();
        fields::write(out, b"grpc-timeout", b"00000000m");
    }
    let parent_at = context.write(out);
    out.extend_from_slice(b"\r\n");
    Ok(Request {
        method,
        framing,
        http_10,
        keep_alive: !http_10 && !gathered.connection.close,
        expects_continue: gathered.expects && !http_10,
        upgrades,
        grpc: gathered.is_grpc.then_some(gathered.grpc),
        context,
        length,
        path_end,
        caller_service,
        left: gathered.left.into_iter().chain(gathered.grpc.timeout).min(),
        attempt: gathered.attempt.max(1),
        parent_at,
        left_at,
        attempt_at: 0,
    })
}

fn gather<'a>(headers: &[httparse::Header<'a>]) -> Result<Gathered<'a>, Refused> {
    let mut gathered = Gathered::default();
    for header in headers.iter() {
        let value = header.value;
        match field(header.name) {
            Field::Host if gathered.host.replace(value).is_some() => return Err(bad("several Host headers")),
            Field::ContentLength => {
                let length = fields::number(value).ok_or_else(|| bad("Content-Length is not a number"))?;
                if gathered.length.replace(length).is_some_and(|other| other != length) {
                    return Err(bad("several Content-Length headers that differ"));
                }
            }
            Field::TransferEncoding if gathered.coding.replace(value).is_some() => {
                return Err(bad("several Transfer-Encoding headers"));
            }
            Field::Connection => gathered.connection.read(value),
            Field::Upgrade => gathered.upgrade = Some(value),
            Field::Expect => gathered.expects = value.eq_ignore_ascii_case(b"100-continue"),
            Field::ContentType => gathered.is_grpc = grpc::is_grpc(value),
            // Several are as good as the shortest: nobody is made to wait longer by adding one.
            Field::Deadline => {
                let left = fields::number(value).filter(|left| *left < UNBOUNDED_MS).map(Duration::from_millis);
                gathered.left = gathered.left.into_iter().chain(left).min();
            }
            Field::Attempt => gathered.attempt = fields::number(value).map_or(0, |n| n.min(99) as u32),
            Field::GrpcTimeout => gathered.grpc.timeout = grpc::timeout(value),
            Field::TraceParent => {
                gathered.parents += 1;
                gathered.parent = value;
            }
            Field::CallerService => gathered.caller_service = Some(value),
            Field::Hops => gathered.hops = fields::number(value).and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            _ => {}
        }
    }
    Ok(gathered)
}

fn framing(gathered: &Gathered<'_>, http_10: bool) -> Result<Framing, Refused> {
    let Some(coding) = gathered.coding else {
        return Ok(gathered.length.map_or(Framing::Empty, Framing::Length));
    };
    if gathered.length.is_some() {
        return Err(bad("Content-Length beside Transfer-Encoding: nobody can say for certain where the body ends"));
    }
    if http_10 {
        return Err(bad("Transfer-Encoding in HTTP/1.0"));
    }
    if !coding.eq_ignore_ascii_case(b"chunked") {
        let coding = String::from_utf8_lossy(coding);
        let why = format!("transfer coding {coding:?} is not carried, only \"chunked\" is");
        return Err(Refused::new(Reason::Unsupported, why));
    }
    Ok(Framing::Chunked)
}

/// Whether the connection may go on in one of these protocols. Not in another version or cover of HTTP: what is then
/// asked for would be requests that nobody here reads, and so rules of access do not hold for.
fn may_switch(protocols: &[u8]) -> bool {
    let mut tokens = protocols.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tokens.all(|token| {
        let name = token.split(|byte| *byte == b'/').next().unwrap_or_default();
        ![&b"h2c"[..], b"h2", b"h3", b"http", b"tls"].iter().any(|known| name.eq_ignore_ascii_case(known))
    })
}

/// Authority (if the target names one) and path of a target in origin, absolute or asterisk form.
fn split_target<'a>(method: &Method, target: &'a str) -> Result<(Option<&'a str>, &'a str), Refused> {
    let target = target.split('#').next().unwrap_or_default();
    if *method == Method::CONNECT {
        let is_authority = !target.is_empty() && !target.contains(['/', '?', '@']) && target.contains(':');
        return if is_authority { Ok((Some(target), "")) } else { Err(bad("CONNECT takes HOST:PORT")) };
    }
    if target.starts_with('/') || (target == "*" && *method == Method::OPTIONS) {
        return Ok((None, target));
    }
    let Some((_, rest)) =
        target.split_once("://").filter(|(scheme, _)| scheme.bytes().all(|b| b.is_ascii_alphabetic()))
    else {
        return Err(bad("the target is neither a path nor a URL"));
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = authority.rsplit('@').next().unwrap_or_default();
    if authority.is_empty() {
        return Err(bad("the target names no host"));
    }
    Ok((Some(authority), if path.is_empty() { "/" } else { path }))
}

/// How many sidecars it will have passed.
fn passed(hops: u32, rules: &Rules<'_>) -> Result<u32, Refused> {
    if !rules.counts_hop {
        return Ok(hops);
    }
    if hops >= rules.settings.max_hops {
        let why = format!("the request has passed {hops} sidecars: an application sends it back into the mesh");
        return Err(Refused::new(Reason::Loop, why));
    }
    Ok(hops + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Result<(Request, String, String), Reason> {
        let (mut out, mut host) = (Vec::new(), Vec::new());
        let caller = "n1".parse().unwrap();
        let settings = ProxySettings::default();
        let rules = Rules {
            settings: &settings,
            caller: &caller,
            caller_service: Some(b"default/shop"),
            forward: None,
            counts_hop: true,
        };
        let read = Request::read(head.as_bytes(), &rules, &mut out, &mut host).map_err(|refused| refused.reason)?;
        Ok((read.expect("a whole head"), String::from_utf8(out).unwrap(), String::from_utf8(host).unwrap()))
    }

    #[test]
    fn an_absolute_target_becomes_origin_form_and_its_host_wins() {
        for (target, path) in [("http://user@orders.mesh:80/x?y=1", "/x?y=1"), ("HTTP://orders.mesh:80", "/")] {
            let (request, out, host) = read(&format!("GET {target} HTTP/1.1\r\nhost: other\r\n\r\n")).unwrap();
            assert_eq!((host.as_str(), request.path(out.as_bytes())), ("orders.mesh:80", path));
            assert!(out.starts_with(&format!("GET {path} HTTP/1.1\r\nhost: orders.mesh:80\r\n")), "{out}");
        }
        assert_eq!(read("GET http://a?q HTTP/1.1\r\n\r\n").unwrap().0.path(b"GET /?q HTTP"), "/?q");
    }

    #[test]
    fn connection_fields_and_those_it_names_are_removed_but_never_the_framing() {
        let (_, out, _) = read(
            "POST / HTTP/1.1\r\nConnection: close, X-Private, host\r\nconnection: content-length\r\nx-private: 1\r\n\
             keep-alive: 5\r\nte: trailers\r\nhost: a\r\ncontent-length: 3\r\nx-public: 1\r\n\
             x-starling-caller-node: forged\r\nX-Starling-Caller-Service: forged\r\n\
             X_Starling_Caller_Service: forged\r\nx-starling_caller-node: forged\r\nupgrade: h2c\r\nexpect: 100-continue\r\n\r\n",
        )
        .unwrap();
        let own = |line: &&str| !line.starts_with("traceparent: ") && !line.starts_with("x-starling-deadline-ms: ");
        let fields: Vec<&str> = out.lines().skip(1).filter(own).collect();
        let expected = [
            "host: a",
            "x-public: 1",
            "content-length: 3",
            "x-starling-caller-node: n1",
            "x-starling-caller-service: default/shop",
            "x-starling-hops: 1",
            "",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn a_request_that_two_readers_could_read_differently_is_refused() {
        let chunked = "transfer-encoding: chunked";
        for (fields, reason) in [
            (format!("content-length: 3\r\n{chunked}"), Reason::BadRequest),
            (format!("{chunked}\r\n{chunked}"), Reason::BadRequest),
            ("transfer-encoding: chunked, identity".into(), Reason::Unsupported),
            ("transfer-encoding: xchunked".into(), Reason::Unsupported),
            ("transfer-encoding: \x0bchunked".into(), Reason::BadRequest),
            ("transfer-encoding : chunked".into(), Reason::BadRequest),
            ("content-length: 3\r\ncontent-length: 4".into(), Reason::BadRequest),
            ("content-length: 3, 3".into(), Reason::BadRequest),
            ("content-length: +3".into(), Reason::BadRequest),
            ("content-length: 0x3".into(), Reason::BadRequest),
            ("content-length: -1".into(), Reason::BadRequest),
            ("content-length:".into(), Reason::BadRequest),
            ("content-length: 99999999999999999999".into(), Reason::BadRequest),
            ("host: b".into(), Reason::BadRequest),
            ("x: y\r\n folded".into(), Reason::BadRequest),
            ("x\x00: y".into(), Reason::BadRequest),
            ("x: a\rb".into(), Reason::BadRequest),
            (": y".into(), Reason::BadRequest),
        ] {
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n");
            assert_eq!(read(&head).unwrap_err(), reason, "{fields:?}");
        }
        let old = format!("POST / HTTP/1.0\r\nhost: a\r\n{chunked}\r\n\r\n");
        assert_eq!(read(&old).unwrap_err(), Reason::BadRequest);
        for (line, reason) in [
            ("GET / HTTP/1.1", Reason::BadRequest), // no host
            ("GET  / HTTP/1.1\r\nhost: a", Reason::BadRequest),
            ("GET / HTTP/2.0\r\nhost: a", Reason::BadRequest),
            ("GET x HTTP/1.1\r\nhost: a", Reason::BadRequest),
            ("GET * HTTP/1.1\r\nhost: a", Reason::BadRequest),
            ("CONNECT /a HTTP/1.1\r\nhost: a", Reason::BadRequest),
            ("CONNECT a HTTP/1.1\r\nhost: a", Reason::BadRequest),
            ("CONNECT http://a:1/ HTTP/1.1\r\nhost: a", Reason::BadRequest),
            ("CONNECT a:1 HTTP/1.1\r\nhost: a\r\ncontent-length: 3", Reason::BadRequest),
            ("CONNECT a:1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked", Reason::BadRequest),
            ("G\tT / HTTP/1.1\r\nhost: a", Reason::BadRequest),
            ("GET / HTTP/1.1\r\nhost: \u{e9}", Reason::BadRequest),
        ] {
            assert_eq!(read(&format!("{line}\r\n\r\n")).unwrap_err(), reason, "{line:?}");
        }
    }

    #[test]
    fn too_many_hops_are_a_loop() {
        let head = |hops| format!("GET / HTTP/1.1\r\nhost: a\r\nx-starling-hops: {hops}\r\n\r\n");
        assert!(read(&head(15)).unwrap().1.contains("x-starling-hops: 16\r\n"));
        assert_eq!(read(&head(16)).unwrap_err(), Reason::Loop);
    }

    #[test]
    fn an_upgrade_is_passed_on_and_only_when_it_is_asked_for_properly() {
        let (request, out, _) =
            read("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").unwrap();
        assert!(request.upgrades && out.contains("connection: upgrade\r\nupgrade: websocket\r\n"), "{out}");
        let (request, out, _) = read("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n\r\n").unwrap();
        assert!(!request.upgrades && !out.contains("upgrade"), "{out}");
    }

    #[test]
    fn a_connection_never_becomes_one_of_requests_that_nobody_reads() {
        for protocols in ["h2c", "H2C", "h2", "websocket, h2c", "HTTP/2.0", "TLS/1.2, HTTP/1.1", "tls", "h2c/1 , x"] {
            let settings = "connection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABk";
            let head = format!("GET / HTTP/1.1\r\nhost: a\r\nupgrade: {protocols}\r\n{settings}\r\nx: y\r\n\r\n");
            let (request, out, _) = read(&head).unwrap();
            assert!(!request.upgrades && out.contains("\r\nx: y\r\n"), "{out}");
            assert!(!out.contains("upgrade") && !out.contains("http2-settings"), "{out}");
        }
        let (_, out, _) = read("GET / HTTP/1.1\r\nhost: a\r\nhttp2-settings: AAMAAABk\r\n\r\n").unwrap();
        assert!(!out.contains("http2-settings"), "{out}");
    }
}
