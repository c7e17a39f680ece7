//! What a call to a backend ends with when it fails, and what follows from it.
//!
//! The sentences that are the same for all clouds stand here, behind the name of whoever was asked. What a cloud says in
//! a way of its own is told in that cloud's own file.

use crate::error::RequestError;
use latchkey_client::protocol::{Code, Step};
use std::borrow::Cow;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

/// How much of a cloud's own words goes into the log, in characters.
const MAX_WORDS: usize = 1000;

/// What stands in tokens or beside them: Google's and the cluster's, and the header of AWS' in the requests that it
/// repeats where a signature does not fit.
const TOKENS: [&str; 3] = ["eyJ", "ya29.", "ecurity-token"];

/// A failed call to a backend, and what follows from it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct BackendError {
    /// What the caller is told.
    pub(crate) error: RequestError,
    /// What the agent does about it.
    pub(crate) fault: Fault,
    /// Under which id the cloud's log knows the call.
    pub(crate) cloud_request_id: Option<Arc<str>>,
}

/// What a failed call says about role, session and cloud.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// Nothing beyond the one call.
    Call,
    /// The cloud says no to this principal.
    Refused,
    /// The session has ended before its time; a new one may do.
    SessionEnded,
    /// The cloud could not be reached.
    Unreachable,
}

/// Why a call has no outcome. What a panic said is left out: it may have a secret in it.
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

    /// The cloud says no to this principal.
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

    /// `whose` is there and says no in a way of its own: what one pod asks must not take it from the others.
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

    /// `whose` could not do it, whoever had asked.
    pub(super) fn troubled(whose: &str) -> Self {
        Self::unheard(whose, "has trouble of its own")
    }

    /// An answer without what it must hold, so perhaps not one of `whose` at all.
    pub(super) fn garbage(whose: &str) -> Self {
        Self::unheard(whose, "gave an answer that cannot be read")
    }

    /// Nobody there has said anything that counts.
    fn unheard(whose: &str, what: &str) -> Self {
        let text = format!("{whose} {what}; try again");
        Self::new(Fault::Unreachable, RequestError::unavailable(text))
    }

    /// The same failure with the chain of causes that `error` has.
    #[must_use]
    pub(super) fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        self.error = self.error.because(error);
        self
    }

    /// The same failure with the cloud's own words for the log: the first line of them, cut, and without anything that
    /// looks like a token.
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

    /// The same failure as one of that step.
    #[must_use]
    pub(crate) fn at(mut self, step: Step) -> Self {
        self.error = self.error.at(step);
        self
    }

    /// Whether the cloud said no.
    pub(crate) fn is_refusal(&self) -> bool {
        self.fault == Fault::Refused
    }
}

/// As much of a cloud's own words as goes into the log.
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
    use crate::backend::Offer;

    #[test]
    fn where_the_callers_are_told_that_the_log_knows_more_it_does() {
        let untold = Offer::Machine.token().expect_err("no token");
        for (failed, word) in [(BackendError::died(), "task"), (untold, "Machine")] {
            assert_eq!(
                (failed.error.code, failed.fault),
                (Code::Internal, Fault::Call)
            );
            let cause = failed.error.cause.expect("a cause");
            assert!(cause.contains(word), "{cause}");
        }
    }
}
