//! What can go wrong at Google alone.

use super::call::{Call, Operation};
use crate::fake;

/// Something that goes wrong at Google; `role` is the service account whose bearer is asked for.
pub type Fault = fake::Fault<Call, Special>;

/// What happens to a call.
pub type Behaviour = fake::Behaviour<Special>;

/// What only Google has.
#[derive(Clone, Debug)]
pub enum Special {
    /// The value is another than the one that its checksum was made of.
    BadChecksum,
    /// The right answer, with a mebibyte of blanks behind it.
    Huge,
    /// 307 to that URL.
    Redirect(String),
    /// `RESOURCE_EXHAUSTED`, 429, with the wait in its details (`google.rpc.RetryInfo`).
    ThrottleInDetails(u64),
}

impl fake::Special for Special {
    fn name(&self) -> &'static str {
        match self {
            Self::BadChecksum => "fault: bad checksum",
            Self::Huge => "fault: huge",
            Self::Redirect(_) => "fault: redirect",
            Self::ThrottleInDetails(_) => "fault: throttle",
        }
    }
}

impl fake::Attempt for Call {
    type Operation = Operation;

    fn operation(&self) -> Operation {
        self.operation
    }

    fn secret(&self) -> Option<&str> {
        self.secret.as_deref()
    }

    fn role(&self) -> Option<&str> {
        self.account.as_deref()
    }
}
