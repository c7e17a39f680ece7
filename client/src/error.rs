//! What a client is told when it gets no answer, or an answer that is no success.

use crate::protocol::{Code, ErrorBody};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The agent answered, and refused.
    #[error("{} ({}, request {})", .0.error, .0.code, .0.request_id)]
    Refused(ErrorBody),
    /// The agent could not be reached on its socket.
    #[error("cannot reach the agent at its socket: {0}")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The agent answered something that is not in the contract.
    #[error("the agent's answer cannot be read: {0}")]
    Unreadable(String),
}

impl ClientError {
    /// The agent's code, if it was the agent that refused.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(body) => Some(body.code),
            _ => None,
        }
    }
}
