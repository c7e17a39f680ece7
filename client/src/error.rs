//! What a program is told if it gets no answer, or an answer that is not a success.

use crate::protocol::{Code, Step};
use serde::Deserialize;
use serde_json::Value as Json;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a request failed.
///
/// ```
/// # async fn example(client: latchkey_client::Client) -> Result<(), latchkey_client::ClientError> {
/// use latchkey_client::protocol::Code;
///
/// let secret = match client.get("prod/feature-flags").await {
///     Ok(secret) => Some(secret),
///     Err(error) if error.code() == Some(Code::NotFound) => None,
///     Err(error) => return Err(error),
/// };
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The connection ended before the answer did.
    #[error("the agent's answer did not arrive: {0}")]
    Interrupted(#[source] io::Error),
    /// The agent answered, and refused.
    #[error("{0}")]
    Refused(Refusal),
    /// There was no answer within the client's patience.
    #[error("the agent does not answer in time")]
    TimedOut,
    /// The agent could not be reached on its socket.
    #[error("cannot reach the agent at {}: {reason}", .socket.display())]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// Why not.
        #[source]
        reason: io::Error,
    },
    /// The agent answered something that is not in the contract.
    #[error("the agent's answer cannot be read: {0}")]
    Unreadable(String),
}

/// An answer of the agent that is not a success.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Refusal {
    /// What happened, for a program. A code that this client does not know becomes the nearest that it knows.
    pub code: Code,
    /// What happened, for a person.
    pub message: String,
    /// The id under which the agent's log knows the request; empty if the request did not reach the agent.
    pub request_id: String,
    /// At which step the request ended, if the agent says so.
    pub step: Option<Step>,
    /// When to retry, if the agent says so.
    pub retry_after: Option<Duration>,
}

/// The body of a refusal with code and step not parsed yet: a newer agent may send others.
#[derive(Deserialize)]
struct Body {
    error: String,
    code: Json,
    #[serde(default)]
    request_id: String,
    #[serde(default)]
    step: Json,
}

// === impl ClientError ===

impl ClientError {
    /// The agent's code, if it was the agent that refused.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        self.refusal().map(|refusal| refusal.code)
    }

    /// What the agent said, if it was the agent that refused.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// Parses a refusal, or returns `None` if the body states no reason.
    pub(crate) fn of(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Option<Self> {
        let body: Body = serde_json::from_slice(body).ok()?;
        Some(Self {
            code: Code::read(body.code, status),
            message: body.error,
            request_id: body.request_id,
            step: Step::read(body.step),
            retry_after,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.message, self.code)?;
        if !self.request_id.is_empty() {
            write!(f, ", request {}", self.request_id)?;
        }
        f.write_str(")")
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_with_its_code_and_id() {
        let body = br#"{"error":"no","code":"denied","request_id":"1-2","step":"exchange"}"#;
        let refusal = Refusal::of(403, Some(Duration::from_secs(2)), body).expect("a refusal");
        assert_eq!(refusal.to_string(), "no (denied, request 1-2)");
        assert_eq!(refusal.step, Some(Step::Exchange));
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(2)));
        assert_eq!(ClientError::Refused(refusal).code(), Some(Code::Denied));
        // A refusal by the client itself: no agent knows of it.
        let own = br#"{"error":"no","code":"invalid_request"}"#;
        let refusal = Refusal::of(400, None, own).expect("a refusal");
        assert_eq!(refusal.to_string(), "no (invalid_request)");
    }

    #[test]
    fn words_that_a_newer_agent_says_are_no_failure() {
        let body = br#"{"error":"x","code":"quota_of_tuesday","step":"dance","more":[]}"#;
        let refusal = Refusal::of(429, None, body).expect("a refusal");
        assert_eq!((refusal.code, refusal.step), (Code::Throttled, None));
        assert!(Refusal::of(502, None, b"<html>").is_none());
    }
}
