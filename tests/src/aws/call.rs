//! The log of every call, as CloudTrail would have it, for tests to count and inspect.

use jiff::Timestamp;
use serde::Serialize;

use crate::jwt::TokenSeen;

/// What the call asks for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
pub enum Operation {
    /// STS: the caller's own credentials for a session.
    AssumeRole,
    /// STS: a subject token for a session.
    AssumeRoleWithWebIdentity,
    /// Secrets Manager: a value.
    GetSecretValue,
    /// Secrets Manager: names.
    ListSecrets,
    /// Anything else; always refused.
    Unknown,
}

/// One call, answered or not.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Call {
    /// When it was answered, by the fake's clock.
    pub at: Timestamp,
    /// What it asks for.
    pub operation: Operation,
    /// The region of the signature's scope; STS calls are unsigned and have none.
    pub region: Option<String>,
    /// The role's ARN: the requested one (STS), or the caller's (Secrets Manager, once authenticated).
    pub role: Option<String>,
    /// The role session's name.
    pub session_name: Option<String>,
    /// The access key id that was issued (STS) or that signed (Secrets Manager).
    pub access_key: Option<String>,
    /// `SecretId` as it was sent.
    pub secret: Option<String>,
    /// `VersionId` as it was sent.
    pub version_id: Option<String>,
    /// `VersionStage` as it was sent.
    pub version_stage: Option<String>,
    /// The claims of the subject token, whether or not they were accepted (STS).
    pub token: Option<TokenSeen>,
    /// `x-amzn-RequestId` of the answer.
    pub request_id: String,
    /// AWS's error code, or `fault: …` for a fault; `None`: it succeeded.
    pub error: Option<String>,
}

impl Call {
    pub(super) fn new(operation: Operation, request_id: String, at: Timestamp) -> Self {
        Self {
            at,
            operation,
            region: None,
            role: None,
            session_name: None,
            access_key: None,
            secret: None,
            version_id: None,
            version_stage: None,
            token: None,
            request_id,
            error: None,
        }
    }

    /// Whether AWS did what was asked.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.error.is_none()
    }
}
