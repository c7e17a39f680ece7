//! How a request fails: a code and a message for the caller, and the chain of causes for the operator, under the same
//! request id.

use latchkey_client::protocol::{Code, Step};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// The limit on a message and on a chain of causes, in bytes. Some quote what is wrong, which may be of any length.
const MESSAGE_LIMIT: usize = 1024;

/// How long clients are told to wait if nothing better is known.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long clients are told to wait if somebody has to do something first, such as unlock a key.
const MENDED_AFTER: Duration = Duration::from_secs(60);

/// A failed request. Cloning is cheap, since requests that shared one vault call share its error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct RequestError {
    /// The stable word for programs.
    pub(crate) code: Code,
    /// The message for people: never with a secret, a token, or another workload's identity.
    pub(crate) message: Cow<'static, str>,
    /// When to retry, for the codes that say so.
    pub(crate) retry_after: Option<Duration>,
    /// The causes, for the agent's log only.
    pub(crate) cause: Option<Arc<str>>,
    /// Why attestation failed, for the audit line and the log only.
    pub(crate) reason: Option<&'static str>,
    /// How far the request got.
    pub(crate) step: Option<Step>,
}

impl RequestError {
    /// An error with this code and message.
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

    /// Something that the answer depends on cannot be reached.
    pub(crate) fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// A bug in the agent; the log says what it was.
    pub(crate) fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(
            Code::Internal,
            "the agent failed; its log knows the request id",
        )
        .because(cause)
    }

    /// Adds the chain of causes of `error`.
    #[must_use]
    pub(crate) fn because(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        self.cause = Some(chain(error).into());
        self
    }

    /// Sets how long to wait before a retry, if somebody else has said so.
    #[must_use]
    pub(crate) fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait.or(self.retry_after);
        self
    }

    /// Marks an error that stays until somebody does what its message says. Most clients wait no longer than their own
    /// timeout, so they give up at once.
    #[must_use]
    pub(crate) fn until_mended(mut self) -> Self {
        self.retry_after = Some(MENDED_AFTER);
        self
    }

    /// Sets the attestor's reason.
    #[must_use]
    pub(crate) fn reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Sets the step at which the request failed, unless a narrower one is already known.
    #[must_use]
    pub(crate) fn at(mut self, step: Step) -> Self {
        self.step.get_or_insert(step);
        self
    }
}

/// What `error` and each of its causes say, joined by colons: for one line of a log or a terminal. Many an error says
/// itself what its cause does, which is not said again; and some hold a whole answer, such as a load balancer's page.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            let _ = write!(text, ": {cause}");
        }
        source = error.source();
    }
    text.truncate(text.floor_char_boundary(MESSAGE_LIMIT));
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Around(String, #[source] io::Error);

    #[test]
    fn a_chain_says_each_cause_once_on_one_line_of_bounded_length() {
        let chain_of = |text: String, cause: &str| chain(&Around(text, io::Error::other(cause)));
        assert_eq!(chain_of("no list".into(), "refused"), "no list: refused");
        assert_eq!(
            chain_of("no list: refused".into(), "refused"),
            "no list: refused"
        );
        assert_eq!(
            chain_of("<html>\n\u{1b}[2J".into(), "502"),
            "<html>  [2J: 502"
        );
        let page = "\u{fc}".repeat(40_000);
        assert_eq!(chain_of(format!("x{page}"), &page).len(), MESSAGE_LIMIT - 1);
    }
}
