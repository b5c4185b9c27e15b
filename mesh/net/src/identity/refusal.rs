//! The words for a certificate that is turned down, on both sides.
//!
//! TLS tells the refused side little more than a number. So the refusing side puts its objection, as a code and a
//! sentence, into the error text that QUIC carries in its close frame, and the refused side finds it there again. When
//! there is none (another implementation, or an objection of TLS itself), the alert's number is translated.

use std::fmt;
use std::time::SystemTime;

use rustls::{CertificateError, Error, OtherError};
use starling_core::id::MeshName;

use super::day;

/// Why a peer's certificate is turned down.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not issued by this mesh's authority.
    OtherAuthority,
    /// Issued by this mesh's authority, but for another mesh.
    OtherMesh {
        theirs: MeshName,
        ours: MeshName,
    },
    Expired {
        until: SystemTime,
    },
    NotYetValid {
        from: SystemTime,
    },
    /// No `starling://MESH/node/NODE` in it.
    NoName,
    Malformed,
    /// Anything else TLS does not like.
    Other(String),
}

impl Refusal {
    fn code(&self) -> &'static str {
        match self {
            Refusal::OtherAuthority => "other-ca",
            Refusal::OtherMesh { .. } => "other-mesh",
            Refusal::Expired { .. } => "expired",
            Refusal::NotYetValid { .. } => "not-yet-valid",
            Refusal::NoName => "no-name",
            Refusal::Malformed => "malformed",
            Refusal::Other(_) => "other",
        }
    }

    /// What to do about it.
    pub(crate) fn advice(&self) -> &'static str {
        advice(self.code())
    }
}

fn advice(code: &str) -> &'static str {
    match code {
        "other-ca" => "issue the certificates of both nodes from the same authority (starling ca issue)",
        "other-mesh" => {
            "if they belong together issue both certificates from one authority; if not, correct the seed addresses"
        }
        "expired" => "issue a new certificate for that node (starling ca issue) and restart it; check both clocks",
        "not-yet-valid" => "check the clocks of both hosts",
        "no-name" | "malformed" => "issue the certificate with `starling ca issue`",
        "no-certificate" => "give it a certificate (starling ca issue), or do not dial this port with other programs",
        "version" => "run the same major version on all nodes",
        _ => "check the certificates of both nodes",
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::OtherAuthority => f.write_str("the certificate is of another authority (CA)"),
            Refusal::OtherMesh { theirs, ours } => {
                write!(f, "the certificate is for mesh {theirs}, the node that checked it is in mesh {ours}")
            }
            Refusal::Expired { until } => write!(f, "the certificate has expired on {}", day(*until)),
            Refusal::NotYetValid { from } => write!(f, "the certificate is not valid before {}", day(*from)),
            Refusal::NoName => f.write_str("the certificate names no node (starling://MESH/node/NODE)"),
            Refusal::Malformed => f.write_str("the certificate cannot be read"),
            Refusal::Other(why) => write!(f, "the certificate is not acceptable: {why}"),
        }
    }
}

/// What rustls prints into the close frame is this, so it carries the code.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "starling[{}]{self}", self.code())
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(std::sync::Arc::new(refusal))))
    }
}

/// Reads a failed handshake: what was objected to, and what to do. `reason` is the text of the local error or of the
/// peer's close frame, and so not to be trusted; `alert` is the TLS alert, if there was one.
pub(crate) fn refused_by_peer(reason: &str, alert: Option<u8>) -> (String, &'static str) {
    let told = reason.split_once("starling[").and_then(|(_, rest)| rest.split_once(']'));
    if let Some((code, text)) = told {
        let text: String = within_brackets(text).chars().filter(|c| !c.is_control()).take(200).collect();
        return (text, advice(code));
    }
    let (sentence, code) = match alert {
        Some(48) => ("the certificate is of another authority (CA)", "other-ca"),
        Some(45) => ("the certificate has expired", "expired"),
        Some(49) => ("the certificate is for another mesh", "other-mesh"),
        Some(42 | 43 | 46 | 51) => ("the certificate is not acceptable", "other"),
        Some(116) => ("no certificate was shown", "no-certificate"),
        Some(120) => ("the two speak different versions of the protocol", "version"),
        _ => {
            let text: String = reason.chars().filter(|c| !c.is_control()).take(200).collect();
            return (format!("the handshake failed: {text}"), advice(""));
        }
    };
    (sentence.to_owned(), advice(code))
}

/// A text up to the bracket that closes what was opened before it: rustls prints an objection within brackets of its own.
fn within_brackets(text: &str) -> &str {
    let mut open = 0_u32;
    let end = text.char_indices().find(|(_, c)| match c {
        '(' => {
            open = open.saturating_add(1);
            false
        }
        ')' if open == 0 => true,
        ')' => {
            open -= 1;
            false
        }
        _ => false,
    });
    end.map_or(text, |(at, _)| &text[..at])
}
