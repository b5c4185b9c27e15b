//! The JSON of the control surface: every request and response body, as both the server and its clients use it.
//!
//! Requests refuse unknown fields (a misspelt field must not be ignored); responses may grow fields, so clients must
//! ignore those they do not know. Times of day are milliseconds since the Unix epoch and end in `_unix_ms`; stamps,
//! trace ids and fingerprints are text and mean nothing but themselves.
mod backup;
mod config;
mod failback;
mod mesh;
mod policy;
mod registry;
mod text;
mod traces;

use serde::{Deserialize, Serialize};
use starling_core::id::NodeId;
pub use starling_core::policy::{Problem, WaitingRequest};
use starling_core::time::Stamp;
use starling_core::view::Revision;

pub(crate) use backup::BackupWriter;
pub use backup::{
    BACKUP_FORMAT, Backup, BackupDocument, BackupEnd, BackupError, BackupHeader, BackupLine, BackupOverride,
};
pub use config::{ConfigDocument, ConfigList, ConfigSummary, VersionInfo};
pub use failback::{Hurried, WaitingList};
pub use mesh::{
    CatchingUpInfo, CertificateInfo, DiskFailing, MemberInfo, MemberList, MeshStatus, NodeDetail, NodeInfo, NodeReport,
    PreservationInfo, Verdict,
};
pub use policy::{
    DocumentProblem, GuardInfo, GuardsDetail, GuardsReport, InstanceGuard, NodeGuards, NodeTrial, PolicyDetail,
    PolicyLayer, PolicyRoute, PolicyTrial, PolicyValue, RefusalInfo,
};
pub use registry::{
    CheckBody, CheckWord, InstanceInfo, InstanceList, OverrideBody, OwnerSays, RegisterRequest, RenewRequest,
    ServiceList, ServiceSummary, StatusRequest, UsabilityCounts,
};
pub use traces::{RecentTraces, SpanInfo, TraceDetail, Unanswered};

/// Response header: the revision of what was answered; give it back as `newer_than` to wait for the next one.
pub const REVISION_HEADER: &str = "x-starling-revision";
/// Response header of a raw document: the stamp of the version served; give it back as `expect` to write only over it.
pub const STAMP_HEADER: &str = "x-starling-stamp";
/// Response header of a raw document: how many concurrent versions wait for a decision; 0 when there is no conflict.
pub const CONFLICT_HEADER: &str = "x-starling-conflict";
/// Request header of a document's PUT and DELETE: who writes (also as query parameter `author`).
pub const AUTHOR_HEADER: &str = "x-starling-author";
/// Request header of a document's PUT and DELETE: why (also as query parameter `comment`).
pub const COMMENT_HEADER: &str = "x-starling-comment";

/// Body of every answer that is not a success.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was wrong, and where.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The owner, when the request should have gone to another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<NodeId>,
    /// The stamp of the version served now, when somebody else wrote first; absent when there is no document.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::option")]
    pub served: Option<Stamp>,
    /// What is wrong with a policy: line, field, and what is allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// Answer to a registration and to a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The first revision of this node's view that shows it.
    pub revision: Revision,
    /// The stamp of the write; absent when there was nothing to write.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::option")]
    pub stamp: Option<Stamp>,
    /// The node that owns the instance from now on: the one that answered.
    pub owner: NodeId,
}

/// Answer to every other write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The first revision of this node's view that shows it.
    pub revision: Revision,
    /// The stamp of the write; absent when there was nothing to write.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::option")]
    pub stamp: Option<Stamp>,
    /// The node that took the write: the one that answered.
    pub node: NodeId,
}

#[cfg(test)]
mod tests {
    use starling_core::registry::{Check, CheckKind};

    use super::*;

    #[test]
    fn a_port_is_all_a_registration_needs() {
        let request: RegisterRequest = serde_json::from_str(r#"{"port": 8080}"#).unwrap();
        assert_eq!(request, RegisterRequest::on_port(8080));
        let again = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<RegisterRequest>(&again).unwrap(), request);
    }

    #[test]
    fn a_misspelt_field_is_refused() {
        let error = serde_json::from_str::<RegisterRequest>(r#"{"port": 1, "wieght": 2}"#).unwrap_err().to_string();
        assert!(error.contains("wieght") && error.contains("weight"), "{error}");
    }

    #[test]
    fn a_check_survives_the_way_through_json() {
        for kind in [CheckKind::Http { path: "/up".into() }, CheckKind::Tcp, CheckKind::Ttl] {
            let mut check = Check::new(kind);
            check.deregister_after_ms = Some(60_000);
            let json = serde_json::to_string(&CheckBody::from(&check)).unwrap();
            let back: Check = serde_json::from_str::<CheckBody>(&json).unwrap().into();
            assert_eq!(back, check);
        }
    }

    #[test]
    fn stamps_are_text() {
        let written = Written {
            revision: Revision(7),
            stamp: Some("1700000000000.3@a".parse().unwrap()),
            node: "a".parse().unwrap(),
        };
        let json = serde_json::to_string(&written).unwrap();
        assert_eq!(json, r#"{"revision":7,"stamp":"1700000000000.3@a","node":"a"}"#);
        assert_eq!(serde_json::from_str::<Written>(&json).unwrap(), written);
        let error = serde_json::from_str::<Written>(r#"{"revision":7,"stamp":"soon","node":"a"}"#).unwrap_err();
        assert!(error.to_string().contains("is not a stamp"), "{error}");
    }
}
