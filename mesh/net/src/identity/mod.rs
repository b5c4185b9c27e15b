//! Who a node is: a certificate of the mesh's own authority, with the node's name in it.
//!
//! The name is a URI in the certificate, `starling://MESH/node/NODE`; the authority's own certificate says
//! `starling://MESH/ca`. Whoever holds a certificate of the authority is that node, on any host: addresses prove nothing.
//! What is read here is checked here and believed everywhere else.
//!
//! [`authority`] makes certificates, [`private`] keeps secrets from other users of the host, [`refusal`] has the words for
//! certificates that are turned down, [`shown`] is the one a running node shows, [`tls`] checks peers.

mod authority;
mod private;
mod refusal;
mod shown;
pub(crate) mod tls;

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use starling_core::id::{MeshName, NodeId};
use tracing::{info, warn};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub use authority::{Authority, NodeCertificate};
pub(crate) use refusal::{Refusal, refused_by_peer};
pub(crate) use shown::Shown;

/// File names in a certificate directory.
const CA_FILE: &str = "ca.crt";
const CA_KEY_FILE: &str = "ca.key";
const NODE_FILE: &str = "node.crt";
const NODE_KEY_FILE: &str = "node.key";
/// How long a certificate of the throw-away authority of `--dev` is valid: long enough for any afternoon.
const DEV_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);
/// Below this share of its validity a certificate's end is warned of: 18 days of the usual 90.
const WARN_SHARE: f64 = 0.2;
/// How often a running node looks at the end of its certificate: in this part of its life, so that one of an hour is warned of
/// in time, and within these bounds.
const LOOK_SHARE: f64 = 0.05;
const LOOKS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(12 * 3600));

/// Why a certificate, key or authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{}: {error}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A certificate or key is not what it should be.
    #[error("{what}: {why}")]
    Invalid {
        /// Which: a path, or "node certificate" and so on.
        what: String,
        /// What is wrong and what to do.
        why: String,
    },
}

impl IdentityError {
    fn file(path: &Path, error: io::Error) -> Self {
        Self::File { path: path.to_owned(), error }
    }

    fn invalid(what: &str, why: impl fmt::Display) -> Self {
        Self::Invalid { what: what.to_owned(), why: why.to_string() }
    }
}

/// A node's own identity, read and checked. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    name: PeerName,
    valid: Validity,
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// The name in a node's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerName {
    pub(crate) mesh: MeshName,
    pub(crate) node: NodeId,
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy)]
struct Validity {
    from: SystemTime,
    until: SystemTime,
}

impl Identity {
    /// Reads `ca.crt`, `node.crt` and `node.key` from a directory.
    ///
    /// # Errors
    /// [`IdentityError`] says which file is missing or wrong; an expired certificate is refused here.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        Self::load_files(&dir.join(CA_FILE), &dir.join(NODE_FILE), &dir.join(NODE_KEY_FILE))
    }

    /// Reads the three files by name.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_files(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let pem = NodeCertificate { ca_pem: read(ca)?, certificate_pem: read(certificate)?, key_pem: read(key)? };
        let names = [ca, certificate, key].map(|path| path.display().to_string());
        let identity = Self::parse(&pem, [&names[0], &names[1], &names[2]], SystemTime::now())?;
        private::warn_of_readers(key);
        identity.warn_when_ending(SystemTime::now());
        Ok(identity)
    }

    /// Takes them from memory.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_pem(certificate: &NodeCertificate) -> Result<Self, IdentityError> {
        Self::from_pem_at(certificate, SystemTime::now())
    }

    /// As [`Self::from_pem`], at another time: a test of an expired certificate begins before its end.
    pub(crate) fn from_pem_at(certificate: &NodeCertificate, now: SystemTime) -> Result<Self, IdentityError> {
        Self::parse(certificate, ["CA certificate", "node certificate", "node key"], now)
    }

    /// For `--dev`: a certificate of the mesh's throw-away authority in `dir/MESH/ca`, which is made by the first process
    /// that asks. Several processes may start at once. `dir` is made for this user alone; one that others can write to
    /// or have made is not used: in a shared temporary directory somebody may have put it there first.
    ///
    /// # Errors
    /// [`IdentityError`] says what to remove or to change.
    pub fn dev(dir: &Path, mesh: &MeshName, node: &NodeId) -> Result<Self, IdentityError> {
        private::directory(dir)?;
        let dir = dir.join(mesh.as_str());
        let authority = Authority::shared(&dir, mesh)?;
        if authority.mesh() != mesh {
            let why = format!("is of mesh {}, not {mesh}; remove it or use another directory", authority.mesh());
            return Err(IdentityError::invalid(&dir.display().to_string(), why));
        }
        let identity = Self::from_pem(&authority.issue(node, DEV_VALIDITY)?)?;
        info!(%node, %mesh, directory = %dir.display(), "using the throw-away certificate authority of --dev");
        Ok(identity)
    }

    /// The mesh this node belongs to.
    pub fn mesh(&self) -> &MeshName {
        &self.inner.name.mesh
    }

    /// This node's name.
    pub fn node(&self) -> &NodeId {
        &self.inner.name.node
    }

    /// When the certificate ends.
    pub fn expires(&self) -> SystemTime {
        self.inner.valid.until
    }

    fn parse(pem: &NodeCertificate, [ca, node, key]: [&str; 3], now: SystemTime) -> Result<Self, IdentityError> {
        let authority = certificate(&pem.ca_pem, ca)?;
        let certificate = certificate(&pem.certificate_pem, node)?;
        let private = PrivateKeyDer::from_pem_slice(pem.key_pem.as_bytes())
            .map_err(|error| IdentityError::invalid(key, format_args!("is not a private key in PEM: {error}")))?;
        let valid = validity(&certificate).map_err(|why| IdentityError::invalid(node, why))?;
        let name = node_name(&certificate).map_err(|why| IdentityError::invalid(node, why))?;
        if now > valid.until {
            let why = format!("expired on {}; issue a new one (starling ca issue)", day(valid.until));
            return Err(IdentityError::invalid(node, why));
        }
        // The same check every peer will make: what they would refuse is refused here, where it can be mended.
        tls::check(&certificate, &[], &tls::roots(&authority, ca)?, &name.mesh, now)
            .map_err(|why| IdentityError::invalid(node, format_args!("{why}; {}", why.advice())))?;
        let inner = Inner { name, valid, authority, certificate, key: private };
        tls::key_matches(&inner.certificate, &inner.key).map_err(|why| IdentityError::invalid(key, why))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether its end is near or past.
    pub(crate) fn ends_soon(&self, now: SystemTime) -> bool {
        let left = self.expires().duration_since(now).unwrap_or_default();
        left.as_secs_f64() < self.life().as_secs_f64() * WARN_SHARE
    }

    /// Says so when the certificate's end is near or past.
    pub(crate) fn warn_when_ending(&self, now: SystemTime) {
        if self.ends_soon(now) {
            let left = self.expires().duration_since(now).unwrap_or_default();
            warn!(
                node = %self.node(), days_left = left.as_secs() / 86_400, expires = %day(self.expires()),
                "this node's certificate ends soon; peers will refuse it then: issue a new one (starling ca issue)"
            );
        }
    }

    /// How long until its end should be looked at again.
    pub(crate) fn look_again(&self) -> Duration {
        self.life().mul_f64(LOOK_SHARE).clamp(LOOKS.0, LOOKS.1)
    }

    fn life(&self) -> Duration {
        let Validity { from, until } = self.inner.valid;
        until.duration_since(from).unwrap_or_default()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.inner.name).field("valid", &self.inner.valid).finish()
    }
}

/// The name in a node's certificate, which may be anybody's: nothing else has been checked.
pub(crate) fn node_name(certificate: &CertificateDer<'_>) -> Result<PeerName, Refusal> {
    let uris = uris(certificate)?;
    let name = uris.iter().find_map(|uri| {
        let (mesh, node) = uri.strip_prefix("starling://")?.split_once("/node/")?;
        Some(PeerName { mesh: mesh.parse().ok()?, node: node.parse().ok()? })
    });
    name.ok_or(Refusal::NoName)
}

/// The mesh in an authority's certificate.
fn authority_mesh(certificate: &CertificateDer<'_>) -> Option<MeshName> {
    let uris = uris(certificate).ok()?;
    uris.iter().find_map(|uri| uri.strip_prefix("starling://")?.strip_suffix("/ca")?.parse().ok())
}

fn uris(certificate: &CertificateDer<'_>) -> Result<Vec<String>, Refusal> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| Refusal::Malformed)?;
    let names = parsed.subject_alternative_name().map_err(|_| Refusal::Malformed)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    Ok(names.iter().filter_map(uri).collect())
}

/// When a certificate ends, whoever's it is; `None` for what is none.
pub fn expires(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    validity(certificate).ok().map(|valid| valid.until)
}

fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, Refusal> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| Refusal::Malformed)?;
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
    let validity = parsed.validity();
    Ok(Validity { from: time(validity.not_before.timestamp()), until: time(validity.not_after.timestamp()) })
}

fn certificate(pem: &str, what: &str) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| IdentityError::invalid(what, format_args!("is not a certificate in PEM: {error}")))
}

fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(|error| IdentityError::file(path, error))
}

/// The date of a time, as `2026-11-30`.
fn day(time: SystemTime) -> String {
    time::OffsetDateTime::from(time).date().to_string()
}

/// Writes a file whole or not at all; a secret is readable by its owner only from the first moment.
fn write(path: &Path, text: &str, secret: bool) -> Result<(), IdentityError> {
    let temporary = path.with_extension(format!("{}-{:08x}.tmp", std::process::id(), fastrand::u32(..)));
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if secret { 0o600 } else { 0o644 });
    }
    let written = options
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary); // it may not even exist
        IdentityError::file(path, error)
    })
}

#[cfg(test)]
mod tests;
