//! TLS for applications, on the port everything else comes by: HTTP/2 or HTTP/1.1, as the two agree (ALPN).
//!
//! Only TLS 1.3. The certificate is the operator's, for the names applications call services by; it has nothing to do
//! with the node's, which other nodes know it by. It can be renewed: connections that begin after that are shown the new one.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use starling_core::observe::Exposition;
use starling_net::identity;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::mesh::Stream;

/// The protocol both ends of a connection of HTTP/2 name.
const H2: &[u8] = b"h2";

/// How applications may encrypt what they send to the sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyTlsSettings {
    /// A PEM file with the certificate shown to applications, and those between it and its authority. Empty (default): TLS
    /// is not spoken.
    pub cert: String,
    /// A PEM file with its private key. Set if and only if `cert` is. Both are read again when they change.
    pub key: String,
}

/// TLS for applications, with the certificate that is shown now.
#[derive(Debug)]
pub struct AppTls {
    settings: ProxyTlsSettings,
    shown: Arc<Shown>,
    /// Whether the files hold one that cannot be used.
    refused: AtomicBool,
    config: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl AppTls {
    /// As the settings say; nothing when they say nothing.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub(crate) fn new(settings: &ProxyTlsSettings) -> Result<Option<Arc<Self>>, String> {
        match (settings.cert.is_empty(), settings.key.is_empty()) {
            (true, true) => return Ok(None),
            (false, false) => {}
            _ => return Err("tls.cert and tls.key belong together: set both or none".into()),
        }
        let provider = Arc::new(ring::default_provider());
        let shown = Arc::new(Shown(ArcSwap::from_pointee(read(settings, &provider)?)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| format!("tls: {error}"))?
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        let (settings, config) = (settings.clone(), Arc::new(config));
        Ok(Some(Arc::new(Self { settings, shown, refused: AtomicBool::new(false), config })))
    }

    /// Reads the files again, and shows what they hold from now on; the certificate before stays if that cannot be used.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn renew(&self) -> Result<(), String> {
        let read = read(&self.settings, self.config.crypto_provider());
        self.refused.store(read.is_err(), Relaxed);
        self.shown.0.store(Arc::new(read?));
        Ok(())
    }

    pub(crate) fn collect(&self, out: &mut Exposition) {
        let ends = self.shown.0.load().end_entity_cert().ok().and_then(identity::expires);
        let ends = ends.and_then(|ends| ends.duration_since(SystemTime::UNIX_EPOCH).ok());
        out.single(
            "starling_proxy_certificate_expires_seconds",
            "gauge",
            "When the certificate for applications ends, in seconds since 1970.",
            ends.unwrap_or_default().as_secs() as f64,
        );
        out.single(
            "starling_proxy_certificate_refused",
            "gauge",
            "1 while the certificate for applications in the files cannot be used and the one before it is.",
            f64::from(u8::from(self.refused.load(Relaxed))),
        );
    }
}

fn read(settings: &ProxyTlsSettings, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let ProxyTlsSettings { cert, key } = settings;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|error| format!("tls.cert: {cert}: {error}"))?;
    if chain.is_empty() {
        return Err(format!("tls.cert: {cert}: no certificate is in it"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("tls.key: {key}: {error}"))?;
    CertifiedKey::from_der(chain, private, provider).map_err(|error| format!("tls: {cert} with {key}: {error}"))
}

/// A connection that is encrypted.
pub(crate) struct Encrypted<S>(TlsStream<S>);

impl<S: Stream> Encrypted<S> {
    /// Shakes hands with a client.
    ///
    /// # Errors
    /// When it does not, or not in time.
    pub(crate) async fn accept(tls: &AppTls, io: S, within: Duration) -> io::Result<Self> {
        let acceptor = TlsAcceptor::from(tls.config.clone());
        timeout(within, acceptor.accept(io)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(Self)
    }

    /// Whether HTTP/2 was agreed on.
    pub(crate) fn speaks_http2(&self) -> bool {
        self.0.get_ref().1.alpn_protocol() == Some(H2)
    }
}

impl<S: Stream> AsyncRead for Encrypted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &mut self.get_mut().0;
        // Records of what was written may wait for the socket. Plain connections need no flush, so none is asked for; but
        // whoever has written all waits by reading.
        if let Poll::Ready(Err(error)) = Pin::new(&mut *stream).poll_flush(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(stream).poll_read(cx, into)
    }
}

impl<S: Stream> AsyncWrite for Encrypted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
