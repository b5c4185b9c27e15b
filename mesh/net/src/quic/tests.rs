//! Two and three nodes over real QUIC on loopback.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use starling_core::id::{Incarnation, InstanceKey, MeshName, NodeId};
use starling_core::observe::TraceId;
use starling_core::wire::{Message, Question, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::identity::Authority;

const DAY: Duration = Duration::from_secs(86_400);
/// Far longer than anything here takes; only a failing test waits for it.
const DEADLINE: Duration = Duration::from_secs(20);

fn name(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn authority(mesh: &str) -> Authority {
    Authority::throw_away(&mesh.parse::<MeshName>().unwrap()).unwrap()
}

fn identity(authority: &Authority, node: &str) -> Identity {
    Identity::from_pem(&authority.issue(&name(node), DAY).unwrap()).unwrap()
}

fn bind(identity: &Identity) -> (Links, Inbox) {
    bind_with(identity, Limits::default())
}

fn bind_with(identity: &Identity, limits: Limits) -> (Links, Inbox) {
    Links::bind(identity, SocketAddr::from(([127, 0, 0, 1], 0)), limits).unwrap()
}

/// Tells two nodes of each other and waits for the link.
async fn link(a: &Links, b: &Links) {
    a.learn(b.me(), b.local_address());
    b.learn(a.me(), a.local_address());
    until("both are linked", || a.is_up(b.me()) && b.is_up(a.me())).await;
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

fn message(number: u64) -> Message {
    Message::Leaving(name("somebody"), Incarnation(number))
}

fn instance() -> InstanceKey {
    InstanceKey {
        service: starling_core::id::ServiceKey {
            namespace: "default".parse().unwrap(),
            service: "orders".parse().unwrap(),
        },
        instance: "orders-1".parse().unwrap(),
    }
}

/// Collects what is logged on this thread, on which a test's whole runtime lives.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// Whether one line has all these words.
    fn has(&self, words: &[&str]) -> bool {
        self.text().lines().any(|line| words.iter().all(|word| line.contains(word)))
    }

    async fn says(&self, words: &[&str]) {
        let end = Instant::now() + DEADLINE;
        while !self.has(words) {
            assert!(Instant::now() < end, "no line says {words:?} in:\n{}", self.text());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn messages_arrive_in_order_and_under_the_name_in_the_certificate() {
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    for number in 0..500 {
        a.send(&name("b"), message(number));
    }
    for number in 0..500 {
        let got = within("a message", at_b.messages.recv()).await.unwrap();
        assert_eq!(got, (name("a"), message(number)));
    }
    assert_eq!(a.stats().kind("leaving").sent, 500);
    assert_eq!(b.stats().kind("leaving").received, 500);
    assert_eq!(b.stats().kind("leaving").received_bytes + 4 * 500, a.stats().kind("leaving").sent_bytes);
}

#[tokio::test]
async fn what_is_sent_before_the_link_is_made_arrives_too() {
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    a.learn(b.me(), b.local_address());
    a.send(&name("b"), message(1));
    assert_eq!(within("the message", at_b.messages.recv()).await.unwrap().1, message(1));
    // And the other way over the same connection, although b was never told of a.
    until("b has the link", || b.is_up(&name("a"))).await;
}

#[tokio::test]
async fn both_dialling_at_once_leaves_one_connection_and_loses_nothing() {
    let ca = authority("m");
    let ((a, mut at_a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    a.learn(b.me(), b.local_address());
    b.learn(a.me(), a.local_address());
    for number in 0..200 {
        a.send(&name("b"), message(number));
        b.send(&name("a"), message(number));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for number in 0..200 {
        assert_eq!(within("at a", at_a.messages.recv()).await.unwrap().1, message(number));
        assert_eq!(within("at b", at_b.messages.recv()).await.unwrap().1, message(number));
    }
    until("one connection is left", || a.shared().endpoint.open_connections() == 1).await;
    assert!(a.is_up(&name("b")) && b.is_up(&name("a")));
}

#[tokio::test]
async fn a_node_of_another_authority_is_refused_with_words_on_both_sides() {
    let (log, _guard) = Log::capture();
    let ((a, _a), (b, _b)) = (bind(&identity(&authority("m"), "a")), bind(&identity(&authority("m"), "b")));
    a.learn(b.me(), b.local_address());
    let (from, to) = (a.local_address().to_string(), b.local_address().to_string());
    log.says(&["WARN", "this node refused", &to, "another authority", "same authority"]).await;
    log.says(&["WARN", "refused this node", &from, "another authority", "same authority"]).await;
    assert!(!a.is_up(&name("b")) && !b.is_up(&name("a")));
    assert!(a.stats().refusals > 0 && b.stats().refusals > 0);
}

#[tokio::test]
async fn a_node_of_another_mesh_is_refused_with_words_on_both_sides() {
    let (log, _guard) = Log::capture();
    let ca = authority("m");
    let (from, until) = (SystemTime::now() - DAY, SystemTime::now() + DAY);
    let foreign = ca.issue_between(&"other".parse().unwrap(), &name("a"), from, until).unwrap();
    // a trusts b's mesh name as little as b trusts a's, so both directions are looked at.
    let ((a, _a), (b, _b)) = (bind(&Identity::from_pem(&foreign).unwrap()), bind(&identity(&ca, "b")));
    a.learn(b.me(), b.local_address());
    let (dialler, acceptor) = (a.local_address().to_string(), b.local_address().to_string());
    log.says(&["WARN", "this node refused", &acceptor, "is for mesh m", "in mesh other", "seed addresses"]).await;
    log.says(&["WARN", "refused this node", &dialler, "is for mesh m", "in mesh other"]).await;
    assert!(!a.is_up(&name("b")) && !b.is_up(&name("a")));
}

#[tokio::test]
async fn an_expired_node_is_refused_with_words_on_both_sides() {
    let (log, _guard) = Log::capture();
    let ca = authority("m");
    let now = SystemTime::now();
    let pem = ca.issue_between(ca.mesh(), &name("a"), now - 9 * DAY, now - 2 * DAY).unwrap();
    let expired = Identity::from_pem_at(&pem, now - 3 * DAY).unwrap();
    let ((a, _a), (b, _b)) = (bind(&expired), bind(&identity(&ca, "b")));
    a.learn(b.me(), b.local_address());
    let (dialler, acceptor) = (a.local_address().to_string(), b.local_address().to_string());
    log.says(&["WARN", "this node refused", &dialler, "has expired on", "issue a new certificate"]).await;
    log.says(&["WARN", "refused this node", &acceptor, "has expired on", "issue a new certificate"]).await;
    assert!(!a.is_up(&name("b")) && !b.is_up(&name("a")));
}

#[tokio::test]
async fn a_program_without_a_certificate_is_refused_and_both_sides_can_tell_why() {
    let (log, _guard) = Log::capture();
    let (b, _b) = bind(&identity(&authority("m"), "b"));
    let stranger = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let tls = crate::identity::tls::anonymous_client_config(endpoint::TALK);
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connection = stranger.connect_with(config, b.local_address(), "starling").unwrap().await.unwrap();
    let error = within("the refusal", connection.closed()).await;
    log.says(&["WARN", "this node refused", &stranger.local_addr().unwrap().to_string(), "no certificate"]).await;
    let (a, _a) = bind(&identity(&authority("m"), "a"));
    let told = a.shared().explain(b.local_address(), None, &error);
    assert!(told.contains("refused this node") && told.contains("no certificate"), "{told}");
}

#[tokio::test]
async fn another_node_at_a_known_address_is_not_mistaken_for_the_one_meant() {
    let (log, _guard) = Log::capture();
    let ca = authority("m");
    let ((a, _a), (b, _b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    a.learn(&name("c"), b.local_address());
    log.says(&["WARN", "node c was expected", "it is node b"]).await;
    assert!(!a.is_up(&name("c")));
}

#[tokio::test]
async fn two_processes_of_one_name_refuse_each_other_clearly_and_a_node_knows_itself() {
    let (log, _guard) = Log::capture();
    let ca = authority("m");
    let ((first, _first), (second, _second)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "a")));
    first.send_gossip(first.local_address(), b"to myself");
    until("the node has met itself", || first.stats().kind(stats::GOSSIP).dropped == 1).await;
    assert!(!log.has(&["both nodes are named"]), "{}", log.text());
    first.send_gossip(second.local_address(), b"hello");
    log.says(&["ERROR", "refused the node at", "both nodes are named a"]).await;
}

#[tokio::test]
async fn a_full_mailbox_drops_and_counts_and_never_waits() {
    let ca = authority("m");
    let limits = Limits { mailbox_messages: 10, ..Limits::default() };
    let ((a, _a), (b, _b)) = (bind_with(&identity(&ca, "a"), limits), bind(&identity(&ca, "b")));
    // Nothing runs between these sends, so nothing can be written meanwhile.
    a.learn(b.me(), b.local_address());
    for number in 0..25 {
        a.send(&name("b"), message(number));
    }
    a.send(&name("unknown"), message(0));
    let stats = a.stats().kind("leaving");
    assert_eq!((stats.sent, stats.dropped), (10, 16));
}

#[tokio::test]
async fn a_loop_that_is_behind_slows_its_senders_and_nobody_else() {
    let ca = authority("m");
    let limits = Limits { inbox: 4, ..Limits::default() };
    let (b, mut at_b) = bind_with(&identity(&ca, "b"), limits);
    let ((a, _a), (c, mut at_c)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "c")));
    link(&a, &b).await;
    link(&a, &c).await;
    for number in 0..1_000 {
        a.send(&name("b"), message(number)); // b reads nothing of it yet
    }
    a.send(&name("c"), message(7));
    assert_eq!(within("c's message", at_c.messages.recv()).await.unwrap().1, message(7));
    // b can still send, and gets everything when it reads again.
    for number in 0..1_000 {
        assert_eq!(within("b's message", at_b.messages.recv()).await.unwrap().1, message(number));
    }
}

#[tokio::test]
async fn a_malformed_frame_closes_the_connection_and_names_the_peer() {
    let (log, _guard) = Log::capture();
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    let peer = a.shared().table.get(&name("b")).unwrap();
    let cut_off = [starling_core::wire::WIRE_VERSION, 1];
    peer.messages.push("other", frame::framed(&cut_off));
    log.says(&["WARN", "a", "something malformed", "malformed frame"]).await;
    assert_eq!(b.stats().malformed, 1);
    // The link comes back and works.
    until("the link is back", || a.is_up(&name("b")) && b.is_up(&name("a"))).await;
    let end = Instant::now() + DEADLINE;
    loop {
        a.send(&name("b"), message(1));
        if let Ok(Some((_, got))) = tokio::time::timeout(Duration::from_millis(50), at_b.messages.recv()).await {
            break assert_eq!(got, message(1));
        }
        assert!(Instant::now() < end, "nothing arrives any more");
    }
}

#[tokio::test]
async fn what_a_newer_peer_says_is_let_pass_and_counted_and_the_link_lives() {
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    let peer = a.shared().table.get(&name("b")).unwrap();
    let unknown_kind = [starling_core::wire::WIRE_VERSION, 200, 1, 2, 3];
    // A push without names and with one record, of two bytes and a kind nobody knows.
    let unknown_record = [starling_core::wire::WIRE_VERSION, 1, 0, 1, 2, 200, 1];
    peer.messages.push("other", frame::framed(&unknown_kind));
    peer.messages.push("other", frame::framed(&unknown_record));
    a.send(&name("b"), message(1));
    let mut got = Vec::new();
    for _ in 0..2 {
        got.push(within("two messages", at_b.messages.recv()).await.unwrap().1);
    }
    assert!(got.contains(&message(1)) && got.contains(&Message::Push(vec![])), "{got:?}");
    let stats = b.stats();
    assert_eq!((stats.malformed, stats.records_skipped, stats.kind("other").received), (0, 1, 1));
}

#[tokio::test]
async fn a_question_is_answered_or_times_out_or_is_turned_away() {
    let ca = authority("m");
    let limits = Limits { inbox: 1, ..Limits::default() };
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind_with(&identity(&ca, "b"), limits));
    link(&a, &b).await;
    let question = Question::Trace(TraceId(7));
    let answering = async {
        let (from, question, reply) = at_b.questions.recv().await.unwrap();
        assert_eq!((from, question), (name("a"), Question::Trace(TraceId(7))));
        reply.send(Reply::Spans(Vec::new())).unwrap();
    };
    let b_name = name("b");
    let (answer, ()) = tokio::join!(a.ask(&b_name, question.clone(), DEADLINE), answering);
    assert_eq!(answer.unwrap(), Reply::Spans(Vec::new()));

    let soon = Duration::from_millis(50);
    let unanswered = a.ask(&name("b"), question.clone(), soon).await;
    assert!(matches!(unanswered, Err(LinkError::TimedOut { .. })), "{unanswered:?}");
    let turned_away = a.ask(&name("b"), question.clone(), DEADLINE).await; // the first still waits in the inbox
    assert!(
        matches!(&turned_away, Err(LinkError::Refused { reason, .. }) if reason.contains("busy")),
        "{turned_away:?}"
    );
    let unknown = a.ask(&name("z"), question, DEADLINE).await;
    assert!(matches!(unknown, Err(LinkError::UnknownNode(_))), "{unknown:?}");
}

#[tokio::test]
async fn ten_megabytes_pass_through_a_tunnel_both_ways() {
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    tokio::spawn(async move {
        let incoming = at_b.tunnels.recv().await.unwrap();
        assert_eq!((incoming.from, incoming.to), (name("a"), instance()));
        let (mut read, mut write) = tokio::io::split(incoming.tunnel);
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let sent: Vec<u8> = (0..10 * 1024 * 1024_u32).map(|i| (i ^ i >> 8) as u8).collect();
    let tunnel = a.open_tunnel(&name("b"), &instance(), DEADLINE).await.unwrap();
    let (mut read, mut write) = tokio::io::split(tunnel);
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut echoed = Vec::new();
    let ((), read) = within("the echo", async { tokio::join!(writing, read.read_to_end(&mut echoed)) }).await;
    read.unwrap();
    assert!(echoed == sent, "{} bytes came back", echoed.len());
}

#[tokio::test]
async fn many_tunnels_are_open_at_once() {
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    tokio::spawn(async move {
        while let Some(mut incoming) = at_b.tunnels.recv().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4];
                incoming.tunnel.read_exact(&mut bytes).await.unwrap();
                incoming.tunnel.write_all(&bytes).await.unwrap();
                incoming.tunnel.shutdown().await.unwrap();
            });
        }
    });
    let mut tunnels = Vec::new();
    for number in 0..100_u32 {
        let mut tunnel = a.open_tunnel(&name("b"), &instance(), DEADLINE).await.unwrap();
        tunnel.write_all(&number.to_be_bytes()).await.unwrap();
        tunnels.push(tunnel);
    }
    for (number, mut tunnel) in (0..100_u32).zip(tunnels) {
        assert_eq!(within("an echo", tunnel.read_u32()).await.unwrap(), number);
    }
    assert_eq!((a.stats().tunnels_out, b.stats().tunnels_in), (100, 100));
}

#[tokio::test]
async fn a_refused_tunnel_says_why_and_a_dropped_one_is_no_ordinary_end() {
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    let mut tunnel = a.open_tunnel(&name("b"), &instance(), DEADLINE).await.unwrap();
    within("the tunnel", at_b.tunnels.recv()).await.unwrap().refuse(TunnelRefusal::NoSuchInstance);
    let error = within("the refusal", tunnel.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    let inside = error.get_ref().and_then(|inside| inside.downcast_ref::<TunnelRefusal>());
    assert_eq!(inside, Some(&TunnelRefusal::NoSuchInstance));

    let mut tunnel = a.open_tunnel(&name("b"), &instance(), DEADLINE).await.unwrap();
    tunnel.write_u8(1).await.unwrap();
    let mut incoming = within("the tunnel", at_b.tunnels.recv()).await.unwrap().tunnel;
    incoming.read_u8().await.unwrap();
    drop(incoming);
    let error = within("the cut", tunnel.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_clean_close_delivers_what_was_sent_and_is_noticed_at_once() {
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    for number in 0..100 {
        a.send(&name("b"), message(number));
    }
    a.close().await;
    for number in 0..100 {
        assert_eq!(within("a last message", at_b.messages.recv()).await.unwrap().1, message(number));
    }
    until("b knows", || !b.is_up(&name("a")) && b.down_since(&name("a")).is_some()).await;
}

#[tokio::test]
async fn a_restarted_peer_is_linked_again_without_being_told() {
    let ca = authority("m");
    let (a, _a) = bind(&identity(&ca, "a"));
    let (b, at_b) = bind(&identity(&ca, "b"));
    let address = b.local_address();
    link(&a, &b).await;
    b.close().await;
    drop((b, at_b));
    until("a has noticed", || !a.is_up(&name("b"))).await;
    let end = Instant::now() + DEADLINE;
    let (again, mut at_b) = loop {
        match Links::bind(&identity(&ca, "b"), address, Limits::default()) {
            Ok(bound) => break bound,
            Err(error) => assert!(Instant::now() < end, "{error}"), // the old socket is still being closed
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    until("the link is back", || a.is_up(&name("b")) && again.is_up(&name("a"))).await;
    a.send(&name("b"), message(1));
    assert_eq!(within("a message", at_b.messages.recv()).await.unwrap().1, message(1));
}

#[tokio::test]
async fn the_address_book_has_a_limit_and_forgets() {
    let ca = authority("m");
    let (a, _a) = bind_with(&identity(&ca, "a"), Limits { peers: 2, ..Limits::default() });
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    for peer in ["b", "c", "d"] {
        a.learn(&name(peer), nowhere);
    }
    assert_eq!(a.stats().peers, 2);
    a.forget(&name("b"));
    until("b is forgotten", || a.stats().peers == 1).await;
    assert_eq!(a.down_since(&name("b")), None);
}

#[tokio::test]
async fn a_cut_network_is_noticed_without_a_word_and_heals_by_itself() {
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    a.set_cut([b.local_address()].into());
    b.set_cut([a.local_address()].into());
    until("both have noticed", || !a.is_up(&name("b")) && !b.is_up(&name("a"))).await;
    a.set_cut(BTreeSet::new());
    b.set_cut(BTreeSet::new());
    until("the link is back", || a.is_up(&name("b")) && b.is_up(&name("a"))).await;
    a.send(&name("b"), message(1));
    assert_eq!(within("a message", at_b.messages.recv()).await.unwrap().1, message(1));
}

#[tokio::test]
async fn one_peer_cannot_take_the_connections_of_all() {
    let ca = authority("m");
    let ((a, _a), (b, _b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    for kind in [meet::Kind::Carry, meet::Kind::Talk] {
        let mut dialled = Vec::new();
        for _ in 0..12 {
            let met = meet::dial(a.shared(), b.local_address(), Some(b.me()), kind).await;
            dialled.push(met.unwrap_or_else(|error| panic!("{kind:?}: {error}")).connection);
        }
        let open = || dialled.iter().filter(|connection| connection.close_reason().is_none()).count();
        until("the oldest are closed", || open() <= 4).await;
        assert!(dialled[11].close_reason().is_none(), "{kind:?}: the newest is served");
    }
    until("they are linked", || a.is_up(b.me()) && b.is_up(a.me())).await;
}

#[tokio::test]
async fn whoever_asks_and_does_not_read_holds_up_nobody() {
    let ca = authority("m");
    let ((a, _a), (b, at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    let mut questions = at_b.questions;
    let answering = tokio::spawn(async move {
        while let Some((_, _, reply)) = questions.recv().await {
            let _ = reply.send(Reply::Spans(Vec::new()));
        }
    });
    // Askers that go away at once, far more than are answered at a time.
    let gone = (0..200).map(|_| a.ask(b.me(), Question::Status, Duration::from_millis(1)));
    for asking in gone {
        let _ = asking.await;
    }
    let answer = within("the answer", a.ask(b.me(), Question::Status, DEADLINE)).await.unwrap();
    assert_eq!(answer, Reply::Spans(Vec::new()));
    answering.abort();
}

/// A thread with a runtime of its own that opens a lane; tunnels that arrive there are echoed, in capitals.
fn carrying_thread(links: &Links) -> std::thread::JoinHandle<()> {
    let (links, mut closing) = (links.clone(), links.shared().closing.subscribe());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (lane, mut tunnels) = links.open_lane(8).unwrap();
            drop(links);
            tokio::spawn(async move {
                while let Some(mut incoming) = tunnels.recv().await {
                    tokio::spawn(async move {
                        let mut text = String::new();
                        incoming.tunnel.read_to_string(&mut text).await.unwrap();
                        incoming.tunnel.write_all(text.to_uppercase().as_bytes()).await.unwrap();
                        incoming.tunnel.shutdown().await.unwrap();
                    });
                }
            });
            let _ = closing.wait_for(|closing| *closing).await;
            lane.close().await;
        });
    })
}

async fn say(links: &Links, to: &Links, text: &str) -> String {
    let mut tunnel = links.open_tunnel(to.me(), &instance(), DEADLINE).await.unwrap();
    tunnel.write_all(text.as_bytes()).await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut answer = String::new();
    within("the answer", tunnel.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn what_a_lane_dials_is_carried_by_a_lane_at_the_other_end() {
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    let threads = [carrying_thread(&b), carrying_thread(&b)];
    until("both lanes are open", || b.shared().lanes.count() == 2).await;

    let (lane, _tunnels) = a.open_lane(8).unwrap();
    for word in ["one", "two", "three"] {
        assert_eq!(say(&a, &b, word).await, word.to_uppercase());
    }
    assert!(at_b.tunnels.try_recv().is_err(), "none took the long way");
    assert_eq!(b.shared().lanes.shares().iter().sum::<usize>(), 1, "one connection for all of them");

    // Without its lane the same thread goes the long way, and still arrives.
    lane.close().await;
    let mut tunnel = a.open_tunnel(b.me(), &instance(), DEADLINE).await.unwrap();
    tunnel.write_u8(1).await.unwrap();
    assert_eq!(within("the tunnel", at_b.tunnels.recv()).await.unwrap().from, name("a"));

    b.close().await;
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(b.shared().lanes.count(), 0);
}

#[tokio::test]
async fn connections_of_several_lanes_are_dealt_evenly() {
    let ca = authority("m");
    let ((a, _a), (b, _b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    let threads = [carrying_thread(&b), carrying_thread(&b)];
    until("both lanes are open", || b.shared().lanes.count() == 2).await;
    let mut lanes = Vec::new();
    for _ in 0..4 {
        lanes.push(a.open_lane(8).unwrap());
        assert_eq!(say(&a, &b, "hello").await, "HELLO");
    }
    assert_eq!(b.shared().lanes.shares(), [2, 2]);
    b.close().await;
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[tokio::test]
async fn a_lane_lets_go_of_connections_that_carry_nothing() {
    let ca = authority("m");
    let ((a, _a), (b, mut at_b)) = (bind(&identity(&ca, "a")), bind(&identity(&ca, "b")));
    link(&a, &b).await;
    let (lane, _tunnels) = a.open_lane(8).unwrap();
    let tunnel = a.open_tunnel(b.me(), &instance(), DEADLINE).await.unwrap();
    let arrived = within("the tunnel", at_b.tunnels.recv()).await.unwrap();
    assert!(lane.let_go(Duration::ZERO).is_empty(), "a tunnel is in it");
    drop((tunnel, arrived));
    assert_eq!(lane.let_go(Duration::from_secs(60)).len(), 0, "it was needed a moment ago");
    assert_eq!(lane.let_go(Duration::ZERO).len(), 1);
}
