//! The errors of calls to backends, and what follows from them.
//!
//! Messages that are the same for all clouds are here, behind the name of the service that was called. Errors that are
//! specific to one cloud are in that cloud's own module.

use crate::error::RequestError;
use latchkey_client::protocol::{Code, Step};
use std::borrow::Cow;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

/// How much of a cloud's own message goes into the log, in characters.
const MAX_WORDS: usize = 1000;

/// Text in tokens or next to them: Google's and the cluster's, and the header of AWS's in the requests that AWS repeats
/// if a signature does not fit.
const TOKENS: [&str; 3] = ["eyJ", "ya29.", "ecurity-token"];

/// A failed call to a backend, and what follows from it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct BackendError {
    /// What the caller is told.
    pub(crate) error: RequestError,
    /// What the agent does about it.
    pub(crate) fault: Fault,
    /// The id of the call in the cloud's log.
    pub(crate) cloud_request_id: Option<Arc<str>>,
}

/// What a failed call says about role, session and cloud.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// Nothing beyond the one call.
    Call,
    /// The cloud refuses this principal.
    Refused,
    /// The session ended early; a new one may work.
    SessionEnded,
    /// The cloud could not be reached.
    Unreachable,
}

/// Why a call has no outcome. The panic's message is left out, because it may contain a secret.
#[derive(Debug, thiserror::Error)]
#[error("the task that made the call died before it had an outcome")]
struct TaskDied;

// === impl BackendError ===

impl BackendError {
    /// A failure of the kind `fault`.
    pub(crate) fn new(fault: Fault, error: RequestError) -> Self {
        Self {
            error,
            fault,
            cloud_request_id: None,
        }
    }

    /// The task that made the call died.
    pub(crate) fn died() -> Self {
        RequestError::internal(&TaskDied).into()
    }

    /// The cloud refuses this principal.
    pub(super) fn refused(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Fault::Refused, RequestError::new(Code::Denied, text))
    }

    /// `whose` asks for fewer calls, and may have said for how long.
    pub(super) fn throttled(whose: &str, wait: Option<Duration>) -> Self {
        let text = format!("{whose} asks to slow down; try again later");
        RequestError::new(Code::Throttled, text)
            .retry_after(wait)
            .into()
    }

    /// `whose` is reachable and refuses in an unknown way: one pod's request must not make it count as unreachable for
    /// the others.
    pub(super) fn unexpected(whose: &str) -> Self {
        let text = format!("{whose} gave an unexpected answer; try again");
        RequestError::unavailable(text).into()
    }

    /// No connection to `whose` can be made, or it broke.
    pub(super) fn unreachable(whose: &str) -> Self {
        Self::unheard(whose, "cannot be reached")
    }

    /// `whose` takes longer than a call may.
    pub(super) fn late(whose: &str) -> Self {
        Self::unheard(whose, "does not answer in time")
    }

    /// `whose` failed, as it would have for any caller.
    pub(super) fn troubled(whose: &str) -> Self {
        Self::unheard(whose, "has trouble of its own")
    }

    /// The call was not made, since too many others are under way.
    pub(crate) fn crowded() -> Self {
        let text = "too many calls to vaults are under way on this node; try again";
        Self::new(Fault::Unreachable, RequestError::unavailable(text)).at(Step::Secret)
    }

    /// The answer lacks what it must contain, so it may not be from `whose` at all.
    pub(super) fn garbage(whose: &str) -> Self {
        Self::unheard(whose, "gave an answer that cannot be read")
    }

    /// No valid answer came from the service.
    fn unheard(whose: &str, what: &str) -> Self {
        let text = format!("{whose} {what}; try again");
        Self::new(Fault::Unreachable, RequestError::unavailable(text))
    }

    /// Returns the same failure with the chain of causes of `error`.
    #[must_use]
    pub(super) fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        self.error = self.error.because(error);
        self
    }

    /// Returns the same failure with the cloud's own message for the log: its first line, cut, or none of it if it
    /// contains anything that looks like a token.
    #[must_use]
    pub(super) fn in_words(mut self, words: Option<&str>) -> Self {
        self.error.cause = words.and_then(|words| words.lines().next()).map(|words| {
            if TOKENS.iter().any(|token| words.contains(token)) {
                "(its words hold what looks like a token)".into()
            } else {
                cut(words).into()
            }
        });
        self
    }

    /// Returns the same failure as one of this step.
    #[must_use]
    pub(crate) fn at(mut self, step: Step) -> Self {
        self.error = self.error.at(step);
        self
    }

    /// Whether the cloud refused.
    pub(crate) fn is_refusal(&self) -> bool {
        self.fault == Fault::Refused
    }
}

/// Returns as much of a cloud's own message as goes into the log.
pub(super) fn cut(words: &str) -> String {
    words.chars().take(MAX_WORDS).collect()
}

impl From<RequestError> for BackendError {
    fn from(error: RequestError) -> Self {
        Self::new(Fault::Call, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_callers_are_told_that_the_log_knows_more_it_does() {
        let failed = BackendError::died();
        assert_eq!(
            (failed.error.code, failed.fault),
            (Code::Internal, Fault::Call)
        );
        let cause = failed.error.cause.expect("a cause");
        assert!(cause.contains("task"), "{cause}");
    }
}
