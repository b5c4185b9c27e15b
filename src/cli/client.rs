//! HTTP to whichever peer answers first.
//!
//! Peers are tried in order. A peer that cannot be connected to is passed over; so is one that is stopping or busy.
//! Once a write has been sent and the answer is lost, nothing is repeated: it may have been applied.

use std::cell::Cell;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use starling_api::model::{CONFLICT_HEADER, ErrorBody, REVISION_HEADER, STAMP_HEADER};
use ureq::http::{Request, Response as HttpResponse};

use super::failure::Failure;
use crate::settings::HostPort;

/// How long a connection may take; peers are near or on this host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may take beyond the time the server was asked to wait. Questions to the whole mesh wait for
/// peers that do not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The largest answer read: a list of a million instances fits.
const MAX_ANSWER_BYTES: u64 = 1 << 30;

/// Talks to the mesh through any of its peers.
pub(crate) struct Client {
    agent: ureq::Agent,
    peers: Vec<HostPort>,
    /// The peer that answered last; tried first next time, so that one command sees one node.
    favourite: Cell<usize>,
}

/// A question or a write.
pub(crate) struct Ask {
    method: &'static str,
    path: String,
    query: String,
    content_type: Option<String>,
    body: Vec<u8>,
    /// How long the answer may take.
    limit: Duration,
}

/// What a peer answered.
pub(crate) struct Answer {
    status: u16,
    peer: HostPort,
    /// The revision of what was answered.
    pub(crate) revision: Option<u64>,
    /// The stamp of a raw document.
    pub(crate) stamp: Option<String>,
    /// Concurrent versions of a raw document.
    pub(crate) conflict: u32,
    /// The body.
    pub(crate) body: Vec<u8>,
}

impl Ask {
    /// Begins a request; path segments may hold anything.
    pub(crate) fn new(method: &'static str, segments: &[&str]) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            escape(segment, &mut path);
        }
        Self { method, path, query: String::new(), content_type: None, body: Vec::new(), limit: ANSWER_TIMEOUT }
    }

    /// A read.
    pub(crate) fn get(segments: &[&str]) -> Self {
        Self::new("GET", segments)
    }

    /// Adds a query parameter.
    pub(crate) fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push(if self.query.is_empty() { '?' } else { '&' });
        escape(name, &mut self.query);
        self.query.push('=');
        escape(value, &mut self.query);
        self
    }

    /// Adds a query parameter if there is a value.
    pub(crate) fn query_opt(self, name: &str, value: Option<&impl ToString>) -> Self {
        match value {
            Some(value) => self.query(name, &value.to_string()),
            None => self,
        }
    }

    /// Sends bytes.
    pub(crate) fn body(mut self, content_type: &str, body: Vec<u8>) -> Self {
        self.content_type = Some(content_type.to_owned());
        self.body = body;
        self
    }

    /// Sends JSON.
    pub(crate) fn json<T: Serialize>(self, value: &T) -> Self {
        let body = serde_json::to_vec(value).expect("the API's own types are JSON");
        self.body("application/json", body)
    }

    /// Blocks until there is something newer than this revision, or the wait is over.
    pub(crate) fn newer_than(mut self, revision: u64, wait: Duration) -> Self {
        self.limit = wait + ANSWER_TIMEOUT;
        self.query("newer_than", &revision.to_string()).query("wait", &format!("{}ms", wait.as_millis()))
    }

    /// Gives up on the answer after this long.
    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

impl Client {
    /// A client of these peers; no connection is made yet.
    pub(crate) fn new(peers: Vec<HostPort>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            // The environment's proxy is for the applications; often it is this very node's.
            .proxy(None)
            .build();
        Self { agent: config.new_agent(), peers, favourite: Cell::new(0) }
    }

    /// Asks, and reads the answer.
    pub(crate) fn fetch<T: DeserializeOwned>(&self, ask: Ask) -> Result<T, Failure> {
        self.send(ask)?.parse()
    }

    /// Asks; an answer that is not a success is a failure.
    pub(crate) fn send(&self, ask: Ask) -> Result<Answer, Failure> {
        let answer = self.exchange(ask)?;
        if (200..300).contains(&answer.status) { Ok(answer) } else { Err(answer.refusal()) }
    }

    /// Asks for something that may not be there: see [`Answer::is_missing`].
    pub(crate) fn look(&self, ask: Ask) -> Result<Answer, Failure> {
        let answer = self.exchange(ask)?;
        // A node tells from which revision on something is missing. Another program's 404 says nothing about the mesh,
        // and a watch that took it for an answer would ask without a pause for ever.
        if answer.revision.is_none() {
            return Err(answer.refusal());
        }
        if answer.is_missing() || (200..300).contains(&answer.status) { Ok(answer) } else { Err(answer.refusal()) }
    }

    fn exchange(&self, ask: Ask) -> Result<Answer, Failure> {
        let mut tried = Vec::new();
        let first = self.favourite.get();
        for at in (0..self.peers.len()).map(|step| (first + step) % self.peers.len()) {
            let peer = &self.peers[at];
            match self.exchange_with(peer, &ask) {
                Ok(answer) if answer.status == 503 && self.peers.len() > 1 => {
                    tried.push((peer, answer.refusal().to_string()));
                }
                Ok(answer) => {
                    self.favourite.set(at);
                    return Ok(answer);
                }
                Err(error) if ask.method == "GET" || never_sent(&error) => tried.push((peer, explain(&error))),
                Err(error) => {
                    return Err(Failure::Refused(format!(
                        "{peer} took the request and gave no answer ({}); it may have been applied: look before repeating it",
                        explain(&error)
                    )));
                }
            }
        }
        Err(no_peer(&tried))
    }

    fn exchange_with(&self, peer: &HostPort, ask: &Ask) -> Result<Answer, ureq::Error> {
        let uri = format!("http://{peer}{}{}", ask.path, ask.query);
        let mut request = Request::builder().method(ask.method).uri(uri);
        if let Some(content_type) = &ask.content_type {
            request = request.header("content-type", content_type);
        }
        let timeout = Some(ask.limit);
        let response = if ask.method == "GET" || ask.method == "DELETE" {
            let request = self.agent.configure_request(request.body(())?).timeout_global(timeout).build();
            self.agent.run(request)?
        } else {
            let request = self.agent.configure_request(request.body(&ask.body[..])?).timeout_global(timeout).build();
            self.agent.run(request)?
        };
        read_answer(peer, response)
    }
}

fn read_answer(peer: &HostPort, mut response: HttpResponse<ureq::Body>) -> Result<Answer, ureq::Error> {
    let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
    let (revision, stamp, conflict) = (header(REVISION_HEADER), header(STAMP_HEADER), header(CONFLICT_HEADER));
    Ok(Answer {
        status: response.status().as_u16(),
        peer: peer.clone(),
        revision: revision.and_then(|text| text.parse().ok()),
        stamp,
        conflict: conflict.and_then(|text| text.parse().ok()).unwrap_or(0),
        body: response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec()?,
    })
}

impl Answer {
    /// The body as one of the API's types.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::Refused(format!(
                "{} gave an answer this program does not understand ({error}); is it a Starling node of this version?",
                self.peer
            ))
        })
    }

    /// Whether the peer knows no such thing.
    pub(crate) fn is_missing(&self) -> bool {
        self.status == 404
    }

    /// What the peer said against it.
    pub(crate) fn refusal(&self) -> Failure {
        match serde_json::from_slice::<ErrorBody>(&self.body) {
            Ok(ErrorBody { error, hint: Some(hint), .. }) => Failure::Refused(format!("{error}\n{hint}")),
            Ok(ErrorBody { error, .. }) => Failure::Refused(error),
            Err(_) => Failure::Refused(format!(
                "{} answered with HTTP status {} and no explanation; is it the API of a Starling node?",
                self.peer, self.status
            )),
        }
    }
}

/// Whether the peer cannot have seen the request.
fn never_sent(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Timeout(what) => matches!(what, ureq::Timeout::Connect | ureq::Timeout::Resolve),
        ureq::Error::Io(error) => {
            use std::io::ErrorKind as Kind;
            matches!(error.kind(), Kind::ConnectionRefused | Kind::HostUnreachable | Kind::NetworkUnreachable)
        }
        _ => false,
    }
}

fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "no such host".into(),
        ureq::Error::ConnectionFailed => "cannot connect".into(),
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            "connection refused: nothing listens there".into()
        }
        ureq::Error::Timeout(ureq::Timeout::Connect) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
        ureq::Error::Timeout(_) => "no answer in time".into(),
        other => other.to_string(),
    }
}

fn no_peer(tried: &[(&HostPort, String)]) -> Failure {
    let mut text = String::from("no node answered:\n");
    for (peer, said) in tried {
        let _ = writeln!(text, "  {peer}  {said}");
    }
    text.push_str(
        "Name a running node's API with --peer HOST:PORT or STARLING_PEER, or start one here with: starling node --dev",
    );
    Failure::NoPeer(text)
}

/// Percent-encodes all but unreserved characters (RFC 3986).
fn escape(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A peer that gives one answer; what it was asked comes back from the thread.
    fn peer(answer: &'static str) -> (HostPort, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 4096];
            let length = stream.read(&mut bytes).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        });
        (address, asked)
    }

    /// An address where nothing listens.
    fn nobody() -> HostPort {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string().parse().unwrap()
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nx-starling-revision: 7\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";

    #[test]
    fn a_dead_peer_is_passed_over() {
        let (alive, asked) = peer(OK);
        let client = Client::new(vec![nobody(), alive]);
        let answer = client.send(Ask::get(&["v1", "a b"]).query("x", "1&2")).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(answer.revision, Some(7));
        assert!(asked.join().unwrap().starts_with("GET /v1/a%20b?x=1%262 HTTP/1.1"));
    }

    #[test]
    fn when_nobody_answers_the_error_tells_whom_it_asked_and_what_to_do() {
        let (one, two) = (nobody(), nobody());
        let failure = Client::new(vec![one.clone(), two.clone()]).send(Ask::get(&["v1"])).err().unwrap();
        let text = failure.to_string();
        assert!(text.contains(one.as_str()) && text.contains(two.as_str()), "{text}");
        assert!(text.contains("connection refused") && text.contains("starling node --dev"), "{text}");
        assert_eq!(failure.exit_code(), 3);
    }

    #[test]
    fn a_refusal_says_what_the_peer_said() {
        const BODY: &str =
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{\"error\": \"no such thing\", \"hint\": \"look\"}";
        let (alive, _asked) = peer(BODY);
        let failure = Client::new(vec![alive]).send(Ask::get(&["v1"])).err().unwrap();
        assert_eq!(failure.to_string(), "no such thing\nlook");
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn something_that_is_no_starling_node_is_called_that() {
        let (alive, _asked) = peer("HTTP/1.1 500 Oops\r\ncontent-length: 4\r\nconnection: close\r\n\r\noops");
        let failure = Client::new(vec![alive]).send(Ask::get(&["v1"])).err().unwrap();
        assert!(failure.to_string().contains("is it the API of a Starling node?"), "{failure}");
    }

    #[test]
    fn a_write_whose_answer_was_lost_is_not_repeated_elsewhere() {
        let (deaf, _asked) = peer("");
        let failure = Client::new(vec![deaf, nobody()]).send(Ask::new("PUT", &["v1"]).json(&1)).err().unwrap();
        assert!(failure.to_string().contains("may have been applied"), "{failure}");
    }
}
