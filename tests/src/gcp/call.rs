//! The log of every call, as Cloud Audit Logs would have it.

use jiff::Timestamp;
use serde::Serialize;

use crate::jwt::TokenSeen;

/// What the call asks for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
pub enum Operation {
    /// Secret Manager: a value.
    AccessSecretVersion,
    /// Security Token Service: a subject token for a bearer.
    ExchangeToken,
    /// IAM Service Account Credentials: a service account's bearer.
    GenerateAccessToken,
    /// Secret Manager: names.
    ListSecrets,
    /// The metadata server: the bearer of the account that the machine runs as.
    MachineToken,
    /// OAuth: a person's refresh token for a bearer.
    RefreshToken,
    /// Anything else; always refused.
    Unknown,
}

/// One call, answered or not.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Call {
    /// When it arrived, by the fake's clock.
    pub at: Timestamp,
    /// What it asks for.
    pub operation: Operation,
    /// Whose bearer it carried, once that was accepted: `principal://…`, or a service account's email address.
    pub principal: Option<String>,
    /// The service account whose bearer was requested.
    pub account: Option<String>,
    /// The secret, as it was sent.
    pub secret: Option<String>,
    /// The version, as it was sent.
    pub version: Option<String>,
    /// `X-Goog-Request-Reason`.
    pub reason: Option<String>,
    /// Whether it carried an `Authorization` of any kind.
    pub with_authorization: bool,
    /// The claims of the subject token, whether or not they were accepted.
    pub token: Option<TokenSeen>,
    /// Google's word for what went wrong, or `fault: …` for a fault; `None`: it succeeded.
    pub error: Option<String>,
}

impl Call {
    pub(super) fn new(at: Timestamp) -> Self {
        Self {
            at,
            operation: Operation::Unknown,
            principal: None,
            account: None,
            secret: None,
            version: None,
            reason: None,
            with_authorization: false,
            token: None,
            error: None,
        }
    }

    /// Whether Google did what was asked.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.error.is_none()
    }
}
