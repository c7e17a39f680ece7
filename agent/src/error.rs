//! What a request ends with when it does not succeed: a code and a text for the caller, and the chain of causes
//! for the operator, under the same request id.

use latchkey_client::protocol::{Code, Step};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// The longest sentence, in bytes. Some quote what is wrong, and that may be of any length.
const MESSAGE_LIMIT: usize = 1024;

/// What clients are told to wait when nothing better is known.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The same where somebody has to do something first, such as unlock a key.
const MENDED_AFTER: Duration = Duration::from_secs(60);

/// A failed request. Cloning is cheap, because requests that shared one vault call share its error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct RequestError {
    /// The stable word for programs.
    pub(crate) code: Code,
    /// The sentence for people: never a secret, a token, or another workload's identity.
    pub(crate) message: Cow<'static, str>,
    /// When to come back, for the codes that say so.
    pub(crate) retry_after: Option<Duration>,
    /// The causes, for the agent's log only.
    pub(crate) cause: Option<Arc<str>>,
    /// Why attestation failed, for the audit line and the log only.
    pub(crate) reason: Option<&'static str>,
    /// How far the request got.
    pub(crate) step: Option<Step>,
}

impl RequestError {
    /// An error with the code and the sentence.
    pub(crate) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        let retry_after =
            matches!(code, Code::Busy | Code::Throttled | Code::Unavailable).then_some(RETRY_AFTER);
        let mut message = message.into();
        if message.len() > MESSAGE_LIMIT {
            let end = message.floor_char_boundary(MESSAGE_LIMIT);
            message.to_mut().truncate(end);
        }
        Self {
            code,
            message,
            retry_after,
            cause: None,
            reason: None,
            step: None,
        }
    }

    /// A bad request.
    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidRequest, message)
    }

    /// Something the answer depends on cannot be reached.
    pub(crate) fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// A bug of ours; what it was stands in the log.
    pub(crate) fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(
            Code::Internal,
            "the agent failed; its log knows the request id",
        )
        .because(cause)
    }

    /// The same error with the chain of causes that `error` has.
    #[must_use]
    pub(crate) fn because(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        self.cause = Some(chain(error).into());
        self
    }

    /// The same error with the time that somebody else asked to be left alone.
    #[must_use]
    pub(crate) fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait.or(self.retry_after);
        self
    }

    /// The same error, which stays until somebody does what its text says: a client that waits no longer than its own
    /// timeout, as most do, gives up at once.
    #[must_use]
    pub(crate) fn until_mended(mut self) -> Self {
        self.retry_after = Some(MENDED_AFTER);
        self
    }

    /// The same error with the reason of the attestor.
    #[must_use]
    pub(crate) fn reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// The same error as one of that step, if it is not known to be of a narrower one.
    #[must_use]
    pub(crate) fn at(mut self, step: Step) -> Self {
        self.step.get_or_insert(step);
        self
    }
}

/// What `error` says, and behind it what each of its causes says.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}
