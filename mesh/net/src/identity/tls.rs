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
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, RootCertStore,
    ServerConfig, SignatureScheme,
};
use starling_core::id::MeshName;

use super::{Identity, IdentityError, PeerName, Refusal, node_name, validity};

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
    let signing = ring::sign::any_supported_type(key).map_err(|error| format!("cannot be used: {error}"))?;
    let pair = rustls::sign::CertifiedKey::new(vec![certificate.clone()], signing);
    pair.keys_match().map_err(|_| "is not the key of the node certificate beside it".to_owned())
}

/// The side that accepts.
pub(crate) fn server_config(identity: &Identity, protocols: &[&[u8]]) -> Result<ServerConfig, IdentityError> {
    let checks = Arc::new(Checks::new(identity)?);
    let mut config = ServerConfig::builder_with_provider(checks.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_client_cert_verifier(checks)
        .with_single_cert(vec![identity.inner.certificate.clone()], identity.inner.key.clone_key())
        .map_err(tls_error)?;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The side that dials.
pub(crate) fn client_config(identity: &Identity, protocol: &[u8]) -> Result<ClientConfig, IdentityError> {
    let checks = Arc::new(Checks::new(identity)?);
    let mut config = ClientConfig::builder_with_provider(checks.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .dangerous() // rustls's word for "with a check of your own"
        .with_custom_certificate_verifier(checks)
        .with_client_auth_cert(vec![identity.inner.certificate.clone()], identity.inner.key.clone_key())
        .map_err(tls_error)?;
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
    struct Credulous(Checks);
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
            self.0.signature(message, certificate, signed)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.schemes()
        }
    }
    let provider = Arc::new(ring::default_provider());
    let checks = Checks { roots: RootCertStore::empty(), mesh: MeshName::default(), provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(checks)))
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    config
}

#[derive(Debug)]
struct Checks {
    roots: RootCertStore,
    mesh: MeshName,
    provider: Arc<CryptoProvider>,
}

impl Checks {
    fn new(identity: &Identity) -> Result<Self, IdentityError> {
        let roots = roots(&identity.inner.authority, "CA certificate")?;
        Ok(Self { roots, mesh: identity.mesh().clone(), provider: Arc::new(ring::default_provider()) })
    }

    fn check(&self, end: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        check(end, rest, &self.roots, &self.mesh, now)?;
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
