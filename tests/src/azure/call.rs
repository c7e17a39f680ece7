//! The log of every call, as sign-in logs and a vault's diagnostic log would have it, for tests to inspect.

use jiff::Timestamp;
use serde::Serialize;

use crate::jwt::TokenSeen;

/// What the call asks for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
pub enum Operation {
    /// Key Vault: a value.
    GetSecret,
    /// Key Vault: names.
    ListSecrets,
    /// The platform: an access token of a managed identity of the machine.
    MachineToken,
    /// Entra ID: an access token for a client assertion or secret.
    Token,
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
    /// The tenant in the path (Entra ID).
    pub tenant: Option<String>,
    /// The client that asked (Entra ID), or that the token was issued to (Key Vault, once the token is accepted).
    pub client: Option<String>,
    /// The vault's name.
    pub vault: Option<String>,
    /// The secret's name as it was sent.
    pub secret: Option<String>,
    /// The version as it was sent.
    pub version: Option<String>,
    /// The claims of the assertion, whether or not they were accepted (Entra ID).
    pub token: Option<TokenSeen>,
    /// Whether it carried an access token (Key Vault).
    pub with_token: bool,
    /// `x-ms-client-request-id`, which Key Vault logs only if it is a UUID.
    pub correlation_id: Option<String>,
    /// The program, as it calls itself.
    pub user_agent: String,
    /// The raw path and query.
    pub target: String,
    /// Azure's error code, or `fault: …` for a fault; `None`: it succeeded.
    pub error: Option<String>,
}

impl Call {
    /// Whether Azure did what was asked.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.error.is_none()
    }
}
