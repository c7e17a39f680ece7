//! What can go wrong at Google, on demand.

use std::time::Duration;

use super::call::{Call, Operation};
use crate::fake::{Gate, Matches};

/// Something that goes wrong for the calls that it matches; an empty field matches every call.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operation; none: all of the three services.
    pub operation: Option<Operation>,
    /// The secret, as the call names it.
    pub secret: Option<String>,
    /// What happens.
    pub behaviour: Behaviour,
    /// To how many calls it happens; none: until the fault is cleared.
    pub times: Option<u32>,
}

/// What happens to a call.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// The value is another than the one that its checksum was made of.
    BadChecksum,
    /// The connection breaks in the middle of the answer's body.
    CutBody,
    /// It is answered, later.
    Delay(Duration),
    /// The connection ends without an answer.
    Disconnect,
    /// It is accepted and never answered.
    Hang,
    /// It waits until the gate opens, and is answered then.
    Hold(Gate),
    /// A proxy's HTML page, with status 200.
    Html,
    /// The right answer, with a mebibyte of blanks behind it.
    Huge,
    /// `INTERNAL`, 500.
    InternalError,
    /// 307 to that URL.
    Redirect(String),
    /// `UNAVAILABLE`, 503.
    ServiceUnavailable,
    /// `RESOURCE_EXHAUSTED`, 429, with this many seconds of `Retry-After` if any.
    Throttle(Option<u64>),
    /// `RESOURCE_EXHAUSTED`, 429, with the wait in its details (`google.rpc.RetryInfo`).
    ThrottleInDetails(u64),
    /// The right status and headers with half of the JSON.
    TruncatedBody,
}

impl Fault {
    /// A fault of every call of one operation, until it is cleared.
    #[must_use]
    pub fn on(operation: Operation, behaviour: Behaviour) -> Self {
        Self {
            operation: Some(operation),
            ..Self::everywhere(behaviour)
        }
    }

    /// A fault of every call.
    #[must_use]
    pub fn everywhere(behaviour: Behaviour) -> Self {
        Self {
            operation: None,
            secret: None,
            behaviour,
            times: None,
        }
    }

    /// Only for one secret, named as the call names it.
    #[must_use]
    pub fn for_secret(mut self, secret: impl Into<String>) -> Self {
        self.secret = Some(secret.into());
        self
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

impl Matches for Fault {
    type Call = Call;

    fn matches(&self, call: &Call) -> bool {
        self.times != Some(0)
            && self
                .operation
                .is_none_or(|operation| operation == call.operation)
            && (self.secret.is_none() || self.secret == call.secret)
    }

    fn times(&mut self) -> &mut Option<u32> {
        &mut self.times
    }
}

impl Behaviour {
    /// How the call log names it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::BadChecksum => "fault: bad checksum",
            Self::CutBody => "fault: cut body",
            Self::Delay(_) => "fault: delay",
            Self::Disconnect => "fault: disconnect",
            Self::Hang => "fault: hang",
            Self::Hold(_) => "fault: hold",
            Self::Html => "fault: html",
            Self::Huge => "fault: huge",
            Self::InternalError => "fault: internal error",
            Self::Redirect(_) => "fault: redirect",
            Self::ServiceUnavailable => "fault: service unavailable",
            Self::Throttle(_) | Self::ThrottleInDetails(_) => "fault: throttle",
            Self::TruncatedBody => "fault: truncated body",
        }
    }
}
