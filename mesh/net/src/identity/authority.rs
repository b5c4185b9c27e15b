//! The mesh's certificate authority: Ed25519 keys, one self-signed certificate, no intermediates.
//!
//! Ed25519 because it is small and its signatures have one length, so that handshakes look the same in every simulated
//! run; ring verifies it everywhere we run.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, SanType, SerialNumber,
};
use starling_core::id::{MeshName, NodeId};
use time::OffsetDateTime;

use super::{CA_FILE, CA_KEY_FILE, IdentityError, NODE_FILE, NODE_KEY_FILE, authority_mesh, certificate, read, write};

/// How long an authority lasts: it is replaced by hand, on every node at once, so rarely.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates begin to be valid this long ago: hosts whose clocks are a little behind must accept a fresh one.
const BACKDATED: Duration = Duration::from_secs(3600);

/// A mesh's certificate authority: its certificate and key.
pub struct Authority {
    mesh: MeshName,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A node's certificate and key, and the certificate of the authority that issued it, as PEM text.
#[derive(Clone)]
pub struct NodeCertificate {
    /// The authority's certificate.
    pub ca_pem: String,
    /// The node's certificate.
    pub certificate_pem: String,
    /// The node's key; a secret.
    pub key_pem: String,
}

impl Authority {
    /// Makes a new authority for a mesh.
    ///
    /// # Errors
    /// [`IdentityError::Invalid`] when the system has no randomness to give.
    pub fn create(mesh: &MeshName) -> Result<Self, IdentityError> {
        let now = SystemTime::now();
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(rcgen_error)?;
        let mut params = params(&format!("starling://{mesh}/ca"), now - BACKDATED, now + AUTHORITY_VALIDITY)?;
        params.distinguished_name.push(DnType::CommonName, format!("Starling mesh {mesh}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key).map_err(rcgen_error)?.pem();
        Ok(Self { mesh: mesh.clone(), certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// An authority that lives in memory only, for tests and demonstrations.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn throw_away(mesh: &MeshName) -> Result<Self, IdentityError> {
        Self::create(mesh)
    }

    /// Reads `ca.crt` and `ca.key` from a directory.
    ///
    /// # Errors
    /// [`IdentityError`] says which file is missing or wrong.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let (certificate_path, key_path) = (dir.join(CA_FILE), dir.join(CA_KEY_FILE));
        let what = certificate_path.display().to_string();
        let certificate_pem = read(&certificate_path)?;
        let der = certificate(&certificate_pem, &what)?;
        let mesh = authority_mesh(&der).ok_or_else(|| {
            IdentityError::invalid(&what, "is not the certificate of a mesh authority (starling ca init makes one)")
        })?;
        let key = KeyPair::from_pem(&read(&key_path)?)
            .map_err(|error| IdentityError::invalid(&key_path.display().to_string(), error))?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| IdentityError::invalid(&what, error))?;
        Ok(Self { mesh, certificate_pem, issuer })
    }

    /// Writes `ca.crt` and `ca.key` (readable by its owner only) into a directory, which is made if need be. Never
    /// overwrites.
    ///
    /// # Errors
    /// [`IdentityError::File`] when one exists already or cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        fs::create_dir_all(dir).map_err(|error| IdentityError::file(dir, error))?;
        for path in [dir.join(CA_FILE), dir.join(CA_KEY_FILE)] {
            if path.exists() {
                return Err(IdentityError::file(&path, io::ErrorKind::AlreadyExists.into()));
            }
        }
        write(&dir.join(CA_KEY_FILE), &self.issuer.key().serialize_pem(), true)?;
        write(&dir.join(CA_FILE), &self.certificate_pem, false)
    }

    /// The authority in `dir/ca`, made there if there is none yet. Of several processes that come at once, all
    /// get the same: it is made aside and moved into place as a whole, which only the first can do.
    pub(super) fn shared(dir: &Path, mesh: &MeshName) -> Result<Self, IdentityError> {
        let place = dir.join("ca");
        if !place.exists() {
            fs::create_dir_all(dir).map_err(|error| IdentityError::file(dir, error))?;
            let aside = dir.join(format!("ca-{}-{:08x}.tmp", std::process::id(), fastrand::u32(..)));
            let moved = Self::create(mesh)?
                .save(&aside)
                .and_then(|()| fs::rename(&aside, &place).map_err(|error| IdentityError::file(&place, error)));
            if let Err(error) = moved {
                let _ = fs::remove_dir_all(&aside); // left over; nobody looks at it
                if !place.exists() {
                    return Err(error);
                }
            }
        }
        Self::load(&place)
    }

    /// The mesh it issues for.
    pub fn mesh(&self) -> &MeshName {
        &self.mesh
    }

    /// Its certificate, as PEM text.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate for a node, valid from now on.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn issue(&self, node: &NodeId, validity: Duration) -> Result<NodeCertificate, IdentityError> {
        let now = SystemTime::now();
        let until = now.checked_add(validity).unwrap_or(now + AUTHORITY_VALIDITY).min(now + AUTHORITY_VALIDITY);
        self.issue_between(&self.mesh, node, now - BACKDATED, until)
    }

    pub(crate) fn issue_between(
        &self,
        mesh: &MeshName,
        node: &NodeId,
        from: SystemTime,
        until: SystemTime,
    ) -> Result<NodeCertificate, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(rcgen_error)?;
        let mut params = params(&format!("starling://{mesh}/node/{node}"), from, until)?;
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate_pem = params.signed_by(&key, &self.issuer).map_err(rcgen_error)?.pem();
        Ok(NodeCertificate { ca_pem: self.certificate_pem.clone(), certificate_pem, key_pem: key.serialize_pem() })
    }
}

impl NodeCertificate {
    /// Writes `ca.crt`, `node.crt` and `node.key` (readable by its owner only) into a directory, which is made if need
    /// be. Replaces what is there.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        fs::create_dir_all(dir).map_err(|error| IdentityError::file(dir, error))?;
        write(&dir.join(NODE_KEY_FILE), &self.key_pem, true)?;
        write(&dir.join(NODE_FILE), &self.certificate_pem, false)?;
        write(&dir.join(CA_FILE), &self.ca_pem, false)
    }
}

fn params(uri: &str, from: SystemTime, until: SystemTime) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(rcgen_error)?)];
    params.serial_number = Some(SerialNumber::from(fastrand::u64(1..)));
    params.not_before = OffsetDateTime::from(from);
    params.not_after = OffsetDateTime::from(until);
    Ok(params)
}

fn rcgen_error(error: rcgen::Error) -> IdentityError {
    IdentityError::invalid("making a certificate", error)
}
