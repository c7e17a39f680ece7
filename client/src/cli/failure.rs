//! How a command that fails ends: one line on stderr, and a code for scripts.

use super::terminal;
use crate::client::also_looked_at;
use crate::error::ClientError;
use crate::protocol::Code;
use std::fmt;
use std::io;
use tokio::signal::unix::SignalKind;

/// Anything without a code of its own.
pub(crate) const OTHER: u8 = 1;

/// The command line, or what it names, is wrong.
pub(crate) const USAGE: u8 = 2;

/// There is no such secret, version or key.
pub(crate) const NOT_FOUND: u8 = 3;

/// Denied, or not known as a pod.
pub(crate) const DENIED: u8 = 4;

/// Unavailable, or too late.
pub(crate) const UNAVAILABLE: u8 = 5;

/// What to say, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: u8,
    /// None if there is nobody to tell.
    lines: Vec<String>,
}

/// What was said last about something that is tried again and again: the same is not repeated.
#[derive(Debug, Default)]
pub(crate) struct Told(Vec<String>);

impl Told {
    /// Prints the failure on stderr, unless it is the one before.
    pub(crate) fn say(&mut self, failure: &Failure) {
        if self.is_news(failure) {
            failure.say();
        }
    }

    fn is_news(&mut self, failure: &Failure) -> bool {
        // Request ids differ, so only what precedes them is compared.
        let about = |line: &String| line.split(" (").next().unwrap_or_default().to_owned();
        let about = failure.lines.iter().map(about).collect();
        let before = std::mem::replace(&mut self.0, about);
        self.0 != before
    }

    /// It has gone well since: the next failure is news.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

impl Failure {
    pub(crate) fn new(exit: u8, text: impl Into<String>) -> Self {
        Self {
            exit,
            lines: vec![text.into()],
        }
    }

    pub(crate) fn other(text: impl Into<String>) -> Self {
        Self::new(OTHER, text)
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(USAGE, text)
    }

    /// Returns the same failure, said to be of `what`.
    #[must_use]
    pub(crate) fn of(mut self, what: impl fmt::Display) -> Self {
        for line in &mut self.lines {
            *line = format!("{what}: {line}");
        }
        self
    }

    /// Returns the same failure, said after these lines.
    #[must_use]
    pub(crate) fn after(mut self, mut lines: Vec<String>) -> Self {
        lines.append(&mut self.lines);
        Self { lines, ..self }
    }

    /// Ended by this signal, with the code that shells give it. Whoever sent it knows why.
    pub(crate) fn by_signal(signal: SignalKind) -> Self {
        Self {
            exit: u8::try_from(128 + signal.as_raw_value()).unwrap_or(OTHER),
            lines: Vec::new(),
        }
    }

    /// A failure to write to stdout. Whoever has closed it wants neither more output nor a complaint.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        Self {
            exit: OTHER,
            lines: Vec::from_iter(
                (error.kind() != io::ErrorKind::BrokenPipe)
                    .then(|| format!("cannot write to stdout: {error}")),
            ),
        }
    }

    /// Prints it on stderr.
    pub(crate) fn say(&self) {
        for line in &self.lines {
            terminal::error(line);
        }
    }

    /// What it is about: the last line.
    pub(crate) fn text(&self) -> &str {
        self.lines.last().map(String::as_str).unwrap_or_default()
    }
}

/// The exit code for a code of the agent's.
pub(crate) fn exit_of(code: Code) -> u8 {
    match code {
        Code::InvalidRequest => USAGE,
        Code::KeyNotFound | Code::NoSuchRoute | Code::NotFound => NOT_FOUND,
        Code::Denied | Code::NoRole | Code::NotAttested => DENIED,
        Code::Busy | Code::Throttled | Code::Timeout | Code::Unavailable => UNAVAILABLE,
        Code::Internal | Code::MethodNotAllowed | Code::NotJson | Code::TooLarge => OTHER,
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::Refused(refusal) => Self::new(exit_of(refusal.code), error.to_string()),
            ClientError::Unreachable { socket, reason } => {
                let also = (reason.kind() == io::ErrorKind::NotFound)
                    .then(|| also_looked_at(socket))
                    .flatten();
                let also = also.map(|also| format!(" ({also})")).unwrap_or_default();
                Self::new(
                    UNAVAILABLE,
                    format!("{error}{also}; `latchkey doctor` says what is missing"),
                )
            }
            ClientError::Interrupted(_) | ClientError::TimedOut => {
                Self::new(UNAVAILABLE, error.to_string())
            }
            ClientError::Unreadable(_) => Self::other(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_and_again_is_said_once_and_again_after_something_else() {
        let failed =
            |text: &str| Failure::other(text).after(vec!["b: no such secret (2)".to_owned()]);
        let mut told = Told::default();
        assert!(told.is_news(&failed("a: no such secret (1)")));
        assert!(!told.is_news(&failed("a: no such secret (7)")));
        assert!(told.is_news(&Failure::other("a: no such secret (8)")));
        assert!(told.is_news(&failed("a: no such secret (9)")));
        told.forget();
        assert!(told.is_news(&failed("a: no such secret (10)")));
    }

    #[test]
    fn every_code_has_its_exit_code() {
        let exits: Vec<(u16, u8)> = Code::ALL.map(|code| (code.status(), exit_of(code))).into();
        for (status, exit) in exits {
            let right = match status {
                400 => USAGE,
                403 => DENIED,
                404 => NOT_FOUND,
                429 | 503 | 504 => UNAVAILABLE,
                _ => OTHER,
            };
            assert_eq!(exit, right, "{status}");
        }
    }
}
