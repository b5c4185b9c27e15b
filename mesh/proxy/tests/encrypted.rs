//! Applications that speak TLS to the sidecar, on the port where others do not.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use support::http2::*;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A certificate for `orders.mesh`, and the directory its files are in.
struct Papers {
    dir: tempfile::TempDir,
    certificate: CertificateDer<'static>,
}

impl Papers {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["orders.mesh".to_owned()]).expect("a certificate");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("cert"), made.cert.pem()).expect("it is written");
        std::fs::write(dir.path().join("key"), made.signing_key.serialize_pem()).expect("it is written");
        Self { dir, certificate: made.cert.der().clone() }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Shakes hands with a sidecar, offering these protocols.
    async fn connect(&self, to: SocketAddr, protocols: &[&str]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(to).await.expect("a connection");
        let name = ServerName::try_from("orders.mesh").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake")
    }
}

#[tokio::test]
async fn one_port_takes_plain_and_encrypted_and_what_is_agreed_on_is_spoken() {
    let (flock, app, papers) = (Flock::default(), App::named("orders").await, Papers::new());
    let a = flock
        .node_with("a", |settings| {
            settings.tls.cert = papers.file("cert");
            settings.tls.key = papers.file("key");
        })
        .await;
    flock.register(app.at("orders", "1", "a"));
    let stream = papers.connect(a.addr(), &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (requests, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let caller = Caller { requests, connection: tokio::spawn(connection) };
    for _ in 0..3 {
        assert_eq!(caller.get("orders.mesh", "/").await.text(), "orders");
    }
    for protocols in [&["http/1.1"][..], &[]] {
        let mut stream = papers.connect(a.addr(), protocols).await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: orders.mesh\r\nconnection: close\r\n\r\n")
            .await
            .expect("it is taken");
        let mut answer = String::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("orders"), "{answer}");
    }
    assert_eq!(a.get("orders", "/").await.text(), "orders", "plain as ever");
    assert_eq!(Caller::connect(a.addr()).await.get("orders", "/").await.text(), "orders");
}

#[tokio::test]
async fn large_answers_come_whole_though_the_client_is_slow_to_take_them() {
    let papers = Papers::new();
    let (flock, app) = (Flock::default(), App::answering(|_| async { text(200, "x".repeat(8 << 20)) }).await);
    let a = flock
        .node_with("a", |settings| {
            settings.tls.cert = papers.file("cert");
            settings.tls.key = papers.file("key");
        })
        .await;
    flock.register(app.at("orders", "1", "a"));
    let mut stream = papers.connect(a.addr(), &[]).await;
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: orders.mesh\r\n\r\n").await.expect("it is taken");
        let (mut read, mut bytes) = (0, vec![0; 100_000]);
        while read < 8 << 20 {
            let n = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await.expect("more in time").expect("more");
            assert!(n > 0, "it ended after {read} bytes");
            read += n;
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_who_comes_next_and_a_bad_one_to_nobody() {
    let (flock, papers, renewed) = (Flock::default(), Papers::new(), Papers::new());
    let a = flock
        .node_with("a", |settings| {
            settings.tls.cert = papers.file("cert");
            settings.tls.key = papers.file("key");
        })
        .await;
    let mut before = papers.connect(a.addr(), &[]).await;
    for name in ["cert", "key"] {
        std::fs::copy(renewed.file(name), papers.file(name)).expect("it is written");
    }
    let tls = a.proxy.tls().expect("TLS is spoken");
    tls.renew().expect("it can be used");
    renewed.connect(a.addr(), &[]).await;
    std::fs::copy(papers.file("key"), papers.file("cert")).expect("it is written");
    let why = tls.renew().expect_err("a key is no certificate");
    assert!(why.contains("tls.cert: "), "{why}");
    assert!(a.metrics().contains("starling_proxy_certificate_refused 1"));
    renewed.connect(a.addr(), &[]).await;
    before.write_all(b"GET / HTTP/1.1\r\nhost: nobody.mesh\r\n\r\n").await.expect("it is taken");
    assert!(before.read(&mut [0; 64]).await.expect("an answer") > 0, "what was connected before goes on");
}

#[tokio::test]
async fn a_node_says_which_file_it_cannot_use() {
    let papers = Papers::new();
    let (flock, nothing) = (Flock::default(), papers.file("nothing"));
    for (cert, key, complaint) in [
        (papers.file("cert"), String::new(), "belong together"),
        (nothing.clone(), papers.file("key"), "tls.cert: "),
        (papers.file("key"), papers.file("key"), "no certificate"),
        (papers.file("cert"), nothing, "tls.key: "),
        (papers.file("cert"), papers.file("cert"), "tls.key: "),
    ] {
        let started = flock.try_node_with("a", |settings| {
            settings.tls.cert = cert.clone();
            settings.tls.key = key.clone();
        });
        let Err(error) = started.await else { panic!("it starts with {complaint}") };
        assert!(error.to_string().contains(complaint), "{error}");
    }
}
