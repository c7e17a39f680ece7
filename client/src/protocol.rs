//! The wire contract of the workload socket: names, codes and JSON shapes, shared by agent and client.
//!
//! `docs/protocol.md` describes it for people; the shapes here are what is sent.

#[doc(hidden)]
pub mod words;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::fmt;
use std::time::Duration;
use zeroize::Zeroize;

/// The environment variable in which a client first looks for the path of the socket.
pub const SOCKET_VARIABLE: &str = "LATCHKEY_SOCKET";

/// The environment variable that names a header for every request, for agents that require one.
pub const HEADER_VARIABLE: &str = "LATCHKEY_HEADER";

/// Where the agent's socket is unless [`SOCKET_VARIABLE`] says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/latchkey/agent.sock";

/// The most names that one `batchGet` may hold.
pub const BATCH_NAMES: usize = 100;

/// The longest body of a `batchGet`, in bytes.
pub const BATCH_BODY: usize = 64 * 1024;

/// The longest target of a request, in bytes.
pub const TARGET_LIMIT: usize = 8 * 1024;

/// The most names that one page of a list may hold.
pub const LIST_LIMIT: usize = 1000;

/// The longest wait for a change.
pub const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// Whether only a relay or a browser sends a header of this name, which must be in lower case.
#[must_use]
pub fn is_relayed(header: &str) -> bool {
    matches!(header, "forwarded" | "origin" | "referer" | "via")
        || header.starts_with("x-forwarded-")
}

/// A version or a key as it appears in a tag (RFC 9110 section 8.8.3): escaped, so that it ends neither the tag nor its
/// own part of it.
#[must_use]
pub fn in_a_tag(text: &str) -> impl fmt::Display + '_ {
    const NOT_IN_A_TAG: &AsciiSet = &CONTROLS.add(b'"').add(b'%').add(b';').add(b' ');
    utf8_percent_encode(text, NOT_IN_A_TAG)
}

/// The stable word for what went wrong: the `code` of an [`ErrorBody`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The workload is over its own limit.
    Busy,
    /// The cloud refused the role or the secret.
    Denied,
    /// A bug in the agent.
    Internal,
    /// A bad name, a bad query or a refused header.
    InvalidRequest,
    /// The secret exists, but its JSON has no such member.
    KeyNotFound,
    /// The route does not allow this method.
    MethodNotAllowed,
    /// The service account names no role for that backend.
    NoRole,
    /// There is no such route.
    NoSuchRoute,
    /// The peer is not a pod of this node.
    NotAttested,
    /// There is no such secret, version or stage.
    NotFound,
    /// A member was requested of a secret that is no JSON object.
    NotJson,
    /// The cloud asks to slow down.
    Throttled,
    /// The request's deadline passed.
    Timeout,
    /// The request or the answer is larger than the agent handles.
    TooLarge,
    /// Something that the answer depends on cannot be reached.
    Unavailable,
}

/// The step between connection and secret at which a request ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Finding out who the peer is.
    Attestation,
    /// Finding the role that the service account names.
    Role,
    /// Getting the token that proves to the cloud who is asking: the pod's own service account token.
    Token,
    /// Assuming that role in the cloud.
    Exchange,
    /// Reading the secret as that role.
    Secret,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorBody {
    /// What happened, for a person.
    pub error: String,
    /// What happened, for a program.
    pub code: Code,
    /// The id under which the agent's log knows the request.
    pub request_id: String,
    /// At which step it happened; absent if the request did not reach any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
}

/// How [`Secret::value`] is written when it is not the text itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Standard base64 with padding (RFC 4648 section 4).
    Base64,
}

/// The answer to `GET /v1/secrets/{name}`, for reading. Its value is wiped from memory when it is dropped.
#[derive(Deserialize)]
pub struct Secret {
    /// The name as the application wrote it.
    pub name: String,
    /// The value: text, or base64 if `encoding` says so.
    pub value: String,
    /// Set when the value is binary.
    pub encoding: Option<Encoding>,
    /// The backend's id of this version.
    pub version: String,
    /// The name of the backend that holds the secret.
    pub backend: String,
}

/// A [`Secret`] for writing, which borrows the value.
#[derive(Serialize)]
#[expect(
    missing_debug_implementations,
    reason = "it has a value, which does not print"
)]
pub struct SecretRef<'a> {
    /// The name as the application wrote it.
    pub name: &'a str,
    /// The value: text, or base64 if `encoding` says so.
    pub value: &'a str,
    /// Set when the value is binary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// The backend's id of this version.
    pub version: &'a str,
    /// The name of the backend that holds the secret.
    pub backend: &'a str,
}

/// The answer to `GET /v1/secrets`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SecretList {
    /// Names, as the application writes them.
    pub secrets: Vec<String>,
    /// What to send as `cursor` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The body of `POST /v1/secrets:batchGet`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// At most [`BATCH_NAMES`] names; a repeated name is read once.
    pub names: Vec<String>,
}

/// One name that a `batchGet` could not answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(from = "BatchErrorRead")]
pub struct BatchError {
    /// The name in the request.
    pub name: String,
    /// What happened, for a person.
    pub error: String,
    /// What happened, for a program.
    pub code: Code,
    /// The HTTP status that a request for this name alone would have got.
    pub status: u16,
    /// At which step it happened; absent if the request did not reach any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
}

/// A [`BatchError`] with code and step unparsed: a newer agent may send others, and one must not cost the whole batch.
#[derive(Deserialize)]
struct BatchErrorRead {
    name: String,
    error: String,
    code: Json,
    status: u16,
    #[serde(default)]
    step: Json,
}

/// The answer to `POST /v1/secrets:batchGet`.
#[derive(Debug, Deserialize)]
pub struct BatchResponse {
    /// The secrets that were read, in the order of the request.
    pub secrets: Vec<Secret>,
    /// The names that were not read, in the order of the request.
    pub errors: Vec<BatchError>,
}

/// The answer to `GET /v1/identity`: who the agent says the peer is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Identity {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// The pod's service account.
    pub service_account: String,
    /// The container's id, 64 hexadecimal characters.
    pub container_id: String,
    /// Whether the pod uses the node's network; true outside of pods, where everybody uses the machine's network.
    pub host_network: bool,
    /// The node that the agent serves.
    pub node: String,
    /// The role that the pod would assume, by the name of the backend; null where it has none.
    pub roles: std::collections::BTreeMap<String, Option<String>>,
}

/// The answer to `GET /health` and `GET /ready`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Health {
    /// `healthy`, or `not ready`.
    pub status: String,
    /// The default backend's name.
    pub backend: String,
    /// What is missing; absent when nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

// === impl Code ===

impl Code {
    /// Every code, in the order of declaration.
    pub const ALL: [Self; 15] = [
        Self::Busy,
        Self::Denied,
        Self::Internal,
        Self::InvalidRequest,
        Self::KeyNotFound,
        Self::MethodNotAllowed,
        Self::NoRole,
        Self::NoSuchRoute,
        Self::NotAttested,
        Self::NotFound,
        Self::NotJson,
        Self::Throttled,
        Self::Timeout,
        Self::TooLarge,
        Self::Unavailable,
    ];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Denied => "denied",
            Self::Internal => "internal",
            Self::InvalidRequest => "invalid_request",
            Self::KeyNotFound => "key_not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NoRole => "no_role",
            Self::NoSuchRoute => "no_such_route",
            Self::NotAttested => "not_attested",
            Self::NotFound => "not_found",
            Self::NotJson => "not_json",
            Self::Throttled => "throttled",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
            Self::Unavailable => "unavailable",
        }
    }

    /// The HTTP status that goes with the code. A target or header block that is too large has statuses of its own
    /// (414, 431).
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Denied | Self::NoRole | Self::NotAttested => 403,
            Self::KeyNotFound | Self::NoSuchRoute | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::TooLarge => 413,
            Self::NotJson => 422,
            Self::Busy | Self::Throttled => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// The nearest AWS error type: the `__type` on `/secretsmanager/get`.
    #[must_use]
    pub const fn aws_type(self) -> &'static str {
        match self {
            Self::Denied | Self::NoRole | Self::NotAttested => "AccessDeniedException",
            Self::NotFound => "ResourceNotFoundException",
            Self::InvalidRequest | Self::MethodNotAllowed | Self::TooLarge => {
                "InvalidParameterException"
            }
            Self::Busy | Self::Throttled => "ThrottlingException",
            Self::Timeout => "TimeoutError",
            Self::Unavailable => "ConnectionError",
            _ => "InternalFailure",
        }
    }

    /// Parses a code; an unknown one becomes the most general code with this status.
    pub(crate) fn read(code: Json, status: u16) -> Self {
        serde_json::from_value(code).unwrap_or(match status {
            401 | 403 => Self::Denied,
            404 | 410 => Self::NotFound,
            405 => Self::MethodNotAllowed,
            408 | 504 => Self::Timeout,
            413 | 414 | 431 => Self::TooLarge,
            429 => Self::Throttled,
            400..500 => Self::InvalidRequest,
            502 | 503 => Self::Unavailable,
            _ => Self::Internal,
        })
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Step ===

impl Step {
    /// Parses a step, if it is known.
    pub(crate) fn read(step: Json) -> Option<Self> {
        serde_json::from_value(step).ok()
    }
}

// === impl BatchError ===

impl From<BatchErrorRead> for BatchError {
    fn from(read: BatchErrorRead) -> Self {
        Self {
            name: read.name,
            error: read.error,
            code: Code::read(read.code, read.status),
            status: read.status,
            step: Step::read(read.step),
        }
    }
}

// === impl Secret ===

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_the_same_word_in_json_and_in_text() {
        for code in Code::ALL {
            let json = serde_json::to_string(&code).expect("a code is a word");
            assert_eq!(json, format!("\"{code}\""));
        }
    }

    #[test]
    fn a_secret_is_read_as_it_is_written() {
        let mut written = SecretRef {
            name: "prod/db",
            value: "",
            encoding: None,
            version: "1",
            backend: "aws",
        };
        let json = serde_json::to_string(&written).expect("JSON");
        let right = r#"{"name":"prod/db","value":"","version":"1","backend":"aws"}"#;
        assert_eq!(json, right);
        written.encoding = Some(Encoding::Base64);
        let json = serde_json::to_string(&written).expect("JSON");
        let read: Secret = serde_json::from_str(&json).expect("a secret");
        assert_eq!((&*read.name, &*read.value), ("prod/db", ""));
        assert_eq!(read.encoding, Some(Encoding::Base64));
        assert_eq!((&*read.version, &*read.backend), ("1", "aws"));
    }

    #[test]
    fn a_secret_does_not_print_its_value() {
        let secret = Secret {
            name: "prod/db".into(),
            value: "hunter2".into(),
            encoding: None,
            version: "1".into(),
            backend: "aws".into(),
        };
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
