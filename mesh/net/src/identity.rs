//! Who a node is: a certificate of the mesh's own authority, with the node's name in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use starling_core::id::{MeshName, NodeId};

/// Why a certificate, key or authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
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

/// A mesh's certificate authority: its certificate and key.
pub struct Authority {
    mesh: MeshName,
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

/// A node's own identity, read and checked. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    mesh: MeshName,
    node: NodeId,
    expires: SystemTime,
}

impl Authority {
    /// Makes a new authority for a mesh.
    ///
    /// # Errors
    /// [`IdentityError::Invalid`] when the system has no randomness to give.
    pub fn create(mesh: &MeshName) -> Result<Self, IdentityError> {
        Ok(Self { mesh: mesh.clone() })
    }

    /// An authority that lives in memory only.
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
        Err(IdentityError::File { path: dir.to_owned(), error: std::io::ErrorKind::NotFound.into() })
    }

    /// Writes `ca.crt` and `ca.key` (readable by its owner only) into a directory, which is made if need be. Never
    /// overwrites.
    ///
    /// # Errors
    /// [`IdentityError::File`] when one exists already or cannot be written.
    pub fn save(&self, _dir: &Path) -> Result<(), IdentityError> {
        Ok(())
    }

    /// The mesh it issues for.
    pub fn mesh(&self) -> &MeshName {
        &self.mesh
    }

    /// Issues a certificate for a node, valid from now on.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn issue(&self, _node: &NodeId, _validity: Duration) -> Result<NodeCertificate, IdentityError> {
        Err(IdentityError::Invalid { what: String::new(), why: String::new() })
    }
}

impl NodeCertificate {
    /// Writes `ca.crt`, `node.crt` and `node.key` (readable by its owner only) into a directory, which is made if need
    /// be. Replaces what is there.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn save(&self, _dir: &Path) -> Result<(), IdentityError> {
        Ok(())
    }
}

impl Identity {
    /// Reads `ca.crt`, `node.crt` and `node.key` from a directory.
    ///
    /// # Errors
    /// [`IdentityError`] says which file is missing or wrong; an expired certificate is refused here.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        Self::load_files(&dir.join("ca.crt"), &dir.join("node.crt"), &dir.join("node.key"))
    }

    /// Reads the three files by name.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_files(ca: &Path, _certificate: &Path, _key: &Path) -> Result<Self, IdentityError> {
        Err(IdentityError::File { path: ca.to_owned(), error: std::io::ErrorKind::NotFound.into() })
    }

    /// Takes them from memory.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_pem(_certificate: &NodeCertificate) -> Result<Self, IdentityError> {
        Err(IdentityError::Invalid { what: String::new(), why: String::new() })
    }

    /// For `--dev`: a certificate of the throw-away authority in `dir`, which is made by the first process that asks.
    ///
    /// # Errors
    /// [`IdentityError`], also when the authority in `dir` is of another mesh.
    pub fn dev(_dir: &Path, mesh: &MeshName, node: &NodeId) -> Result<Self, IdentityError> {
        let expires = SystemTime::now();
        Ok(Self { inner: Arc::new(Inner { mesh: mesh.clone(), node: node.clone(), expires }) })
    }

    /// The mesh this node belongs to.
    pub fn mesh(&self) -> &MeshName {
        &self.inner.mesh
    }

    /// This node's name.
    pub fn node(&self) -> &NodeId {
        &self.inner.node
    }

    /// When the certificate ends.
    pub fn expires(&self) -> SystemTime {
        self.inner.expires
    }
}
