//! The certificate a running node shows. It can be renewed: every handshake that begins after that shows the new one, and
//! checks peers by the new authority. What is connected stays so: a certificate is looked at when a connection begins and
//! never again.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use starling_core::observe::Exposition;
use starling_core::time::WallTime;
use starling_core::wire::CertificateStatus;

use super::{Identity, IdentityError, tls};

/// The identity in use, and what became of the last one that was to take its place.
#[derive(Debug)]
pub(crate) struct Shown {
    current: ArcSwap<Current>,
    renewals: AtomicU64,
    /// Why the last one was not taken.
    refused: Mutex<Option<String>>,
}

/// An identity, ready for use.
#[derive(Debug)]
struct Current {
    identity: Identity,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
}

impl Current {
    fn new(identity: Identity) -> Result<Self, IdentityError> {
        let certified = Arc::new(tls::certified(&identity)?);
        let roots = Arc::new(tls::roots(&identity.inner.authority, "CA certificate")?);
        Ok(Self { identity, certified, roots })
    }
}

impl Shown {
    pub(crate) fn new(identity: &Identity) -> Result<Arc<Self>, IdentityError> {
        let current = ArcSwap::from_pointee(Current::new(identity.clone())?);
        Ok(Arc::new(Self { current, renewals: AtomicU64::new(0), refused: Mutex::default() }))
    }

    pub(crate) fn identity(&self) -> Identity {
        self.current.load().identity.clone()
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        self.current.load().roots.clone()
    }

    /// Takes what was read in the place of what is shown, if it was read and is of the same node; else remembers why not.
    ///
    /// # Errors
    /// Why it was not taken.
    pub(crate) fn renew(&self, read: Result<Identity, String>) -> Result<(), String> {
        let taken = read.and_then(|identity| self.take(identity));
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = taken.as_ref().err().cloned();
        if taken.is_ok() {
            self.renewals.fetch_add(1, Relaxed);
        }
        taken
    }

    fn take(&self, identity: Identity) -> Result<(), String> {
        let before = self.identity();
        if (identity.mesh(), identity.node()) != (before.mesh(), before.node()) {
            return Err(format!(
                "it is the certificate of node {} of mesh {}, and this is node {} of mesh {}",
                identity.node(),
                identity.mesh(),
                before.node(),
                before.mesh()
            ));
        }
        self.current.store(Arc::new(Current::new(identity).map_err(|error| error.to_string())?));
        Ok(())
    }

    /// What there is to know of it.
    pub(crate) fn status(&self, now: SystemTime) -> CertificateStatus {
        let identity = self.identity();
        let expires = identity.expires().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        CertificateStatus {
            expires: WallTime(expires.as_millis() as u64),
            ends_soon: identity.ends_soon(now),
            refused: self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(crate) fn collect(&self, out: &mut Exposition) {
        let status = self.status(SystemTime::now());
        let mut gauge = |name, help, value| out.single(name, "gauge", help, value);
        gauge(
            "starling_certificate_expires_seconds",
            "When this node's certificate ends, in seconds since 1970.",
            (status.expires.0 / 1_000) as f64,
        );
        gauge(
            "starling_certificate_ends_soon",
            "1 while less than a fifth of the certificate's life is left.",
            f64::from(u8::from(status.ends_soon)),
        );
        gauge(
            "starling_certificate_refused",
            "1 while the certificate in the files cannot be used and the one before it is.",
            f64::from(u8::from(status.refused.is_some())),
        );
        let renewals = self.renewals.load(Relaxed) as f64;
        out.single(
            "starling_certificate_renewals_total",
            "counter",
            "Times a new certificate was taken while running.",
            renewals,
        );
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().certified.clone())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
