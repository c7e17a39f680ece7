//! What can go wrong at Google alone.

use super::call::{Call, Operation};
use crate::fake;

/// Something that goes wrong at Google; `role` is the service account whose bearer is requested.
pub type Fault = fake::Fault<Call, Special>;

/// What happens to a call.
pub type Behaviour = fake::Behaviour<Special>;

/// What can go wrong only at Google.
#[derive(Clone, Debug)]
pub enum Special {
    /// The value differs from the one that its checksum was made of.
    BadChecksum,
    /// 307 to this URL.
    Redirect(String),
    /// `RESOURCE_EXHAUSTED`, 429, with the wait in its details (`google.rpc.RetryInfo`).
    ThrottleInDetails(u64),
}

impl fake::Special for Special {
    fn name(&self) -> &'static str {
        match self {
            Self::BadChecksum => "fault: bad checksum",
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

    fn error(&mut self) -> &mut Option<String> {
        &mut self.error
    }
}
