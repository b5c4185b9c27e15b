//! TLS for applications, on the port everything else comes by: HTTP/2 or HTTP/1.1, as the two agree (ALPN).
//!
//! Only TLS 1.3. The certificate is the operator's, for the names applications call services by; it has nothing to do
//! with the node's, which other nodes know it by. It is read at the start; a new one needs a restart.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
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
    /// A PEM file with its private key. Set if and only if `cert` is.
    pub key: String,
}

/// What accepts TLS as the settings say; nothing when they say nothing.
///
/// # Errors
/// Which file cannot be used, and why.
pub(crate) fn acceptor(settings: &ProxyTlsSettings) -> Result<Option<TlsAcceptor>, String> {
    let ProxyTlsSettings { cert, key } = settings;
    match (cert.is_empty(), key.is_empty()) {
        (true, true) => return Ok(None),
        (false, false) => {}
        _ => return Err("tls.cert and tls.key belong together: set both or none".into()),
    }
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|error| format!("tls.cert: {cert}: {error}"))?;
    if chain.is_empty() {
        return Err(format!("tls.cert: {cert}: no certificate is in it"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("tls.key: {key}: {error}"))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|error| format!("tls: {cert} with {key}: {error}"))?;
    config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// A connection that is encrypted.
pub(crate) struct Encrypted<S>(TlsStream<S>);

impl<S: Stream> Encrypted<S> {
    /// Shakes hands with a client.
    ///
    /// # Errors
    /// When it does not, or not in time.
    pub(crate) async fn accept(acceptor: &TlsAcceptor, io: S, within: Duration) -> io::Result<Self> {
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
