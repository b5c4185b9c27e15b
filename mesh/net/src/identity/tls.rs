//! TLS 1.3 with certificates on both sides, and the checks both sides make.
//!
//! Names and addresses mean nothing to TLS here: a peer is accepted when its certificate is of our authority, valid
//! now, and names a node of our mesh. Which node, the caller compares with the one it meant to reach. Sessions are
//! never resumed: resuming would skip these checks.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, RootCertStore,
    ServerConfig, SignatureScheme,
};
use starling_core::id::MeshName;

use super::{Identity, IdentityError, PeerName, Refusal, Shown, node_name, validity};

/// Checks a peer's certificate as of `now`.
pub(super) fn check(
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    mesh: &MeshName,
    now: SystemTime,
) -> Result<PeerName, Refusal> {
    let parsed = ParsedCertificate::try_from(certificate).map_err(|_| Refusal::Malformed)?;
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(since_epoch);
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    // Our certificates are for both ends of a connection, so the rules for servers fit clients as well.
    let verified = verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
        .map_err(|error| objection(error, certificate));
    match (verified, node_name(certificate)) {
        // Two meshes mostly have two authorities as well. That the meshes differ explains it; the name only serves for
        // the words, so it does not matter that nobody has vouched for it.
        (Ok(()) | Err(Refusal::OtherAuthority), Ok(name)) if name.mesh != *mesh => {
            Err(Refusal::OtherMesh { theirs: name.mesh, ours: mesh.clone() })
        }
        (Ok(()), name) => name,
        (Err(refusal), _) => Err(refusal),
    }
}

fn objection(error: Error, certificate: &CertificateDer<'_>) -> Refusal {
    let Error::InvalidCertificate(error) = error else { return Refusal::Other(error.to_string()) };
    match (error, validity(certificate)) {
        // Two authorities of the same mesh name differ in their keys only.
        (CertificateError::UnknownIssuer | CertificateError::BadSignature, _) => Refusal::OtherAuthority,
        (CertificateError::Expired | CertificateError::ExpiredContext { .. }, Ok(valid)) => {
            Refusal::Expired { until: valid.until }
        }
        (CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }, Ok(valid)) => {
            Refusal::NotYetValid { from: valid.from }
        }
        (CertificateError::BadEncoding, _) => Refusal::Malformed,
        (error, _) => Refusal::Other(error.to_string()),
    }
}

/// A certificate store with our authority alone.
pub(super) fn roots(authority: &CertificateDer<'static>, what: &str) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(|error| IdentityError::invalid(what, error))?;
    Ok(roots)
}

/// Whether a key belongs to a certificate.
pub(super) fn key_matches(certificate: &CertificateDer<'static>, key: &PrivateKeyDer<'static>) -> Result<(), String> {
    let pair = pair(certificate, key).map_err(|error| format!("cannot be used: {error}"))?;
    pair.keys_match().map_err(|_| "is not the key of the node certificate beside it".to_owned())
}

/// A node's certificate and key, as they are used.
pub(super) fn certified(identity: &Identity) -> Result<CertifiedKey, IdentityError> {
    pair(&identity.inner.certificate, &identity.inner.key).map_err(tls_error)
}

fn pair(certificate: &CertificateDer<'static>, key: &PrivateKeyDer<'static>) -> Result<CertifiedKey, Error> {
    Ok(CertifiedKey::new(vec![certificate.clone()], ring::sign::any_supported_type(key)?))
}

/// The side that accepts.
pub(crate) fn server_config(shown: &Arc<Shown>, protocols: &[&[u8]]) -> Result<ServerConfig, IdentityError> {
    let checks = Arc::new(Checks::new(shown));
    let mut config = ServerConfig::builder_with_provider(checks.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_client_cert_verifier(checks)
        .with_cert_resolver(shown.clone());
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The side that dials.
pub(crate) fn client_config(shown: &Arc<Shown>, protocol: &[u8]) -> Result<ClientConfig, IdentityError> {
    let checks = Arc::new(Checks::new(shown));
    let mut config = ClientConfig::builder_with_provider(checks.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .dangerous() // rustls's word for "with a check of your own"
        .with_custom_certificate_verifier(checks)
        .with_client_cert_resolver(shown.clone());
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

fn tls_error(error: Error) -> IdentityError {
    IdentityError::invalid("node certificate", error)
}

/// A dialler that shows no certificate and believes everybody: what some other program might do.
#[cfg(test)]
pub(crate) fn anonymous_client_config(protocol: &[u8]) -> ClientConfig {
    #[derive(Debug)]
    struct Credulous(Arc<CryptoProvider>);
    impl ServerCertVerifier for Credulous {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(tls12())
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    config
}

#[derive(Debug)]
struct Checks {
    /// Ours, which says whose certificates are good.
    shown: Arc<Shown>,
    provider: Arc<CryptoProvider>,
}

impl Checks {
    fn new(shown: &Arc<Shown>) -> Self {
        Self { shown: shown.clone(), provider: Arc::new(ring::default_provider()) }
    }

    fn check(&self, end: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        check(end, rest, &self.shown.roots(), self.shown.identity().mesh(), now)?;
        Ok(())
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn tls12() -> Error {
    Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)
}

impl ServerCertVerifier for Checks {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Checks {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
