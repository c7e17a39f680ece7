//! What can go wrong in a cloud, on demand.

use std::time::Duration;

use super::call::{Call, Operation};
use crate::fake::{Gate, Matches};

/// Something that goes wrong for the calls that it matches; an empty field matches every call.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operation; none: all of both services.
    pub operation: Option<Operation>,
    /// The region of the signature's scope; never matches an STS call.
    pub region: Option<String>,
    /// `SecretId` exactly as it is sent.
    pub secret: Option<String>,
    /// The role's ARN: the one asked for (STS), or the signer's.
    pub role: Option<String>,
    /// What happens.
    pub behaviour: Behaviour,
    /// To how many calls it happens; none: until the fault is cleared.
    pub times: Option<u32>,
}

/// What happens to a call.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// The connection breaks in the middle of the answer's body.
    CutBody,
    /// `DecryptionFailure`, instead of a value that would have been given.
    DecryptionFailure,
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
    /// `InternalServiceError` (STS: `InternalFailure`), 500.
    InternalError,
    /// `AccessDeniedException: Access to KMS is not allowed`, instead of a value that would have been given.
    KmsDenied,
    /// 503, as a service that is being drained answers.
    ServiceUnavailable,
    /// `ThrottlingException` (STS: `Throttling`), with this many seconds of `Retry-After` if any; AWS sends none.
    Throttle(Option<u64>),
    /// The right status and headers with half of the JSON or XML.
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
            region: None,
            secret: None,
            role: None,
            behaviour,
            times: None,
        }
    }

    /// Only in one region.
    #[must_use]
    pub fn in_region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Only for one secret, named as the call names it.
    #[must_use]
    pub fn for_secret(mut self, secret: impl Into<String>) -> Self {
        self.secret = Some(secret.into());
        self
    }

    /// Only for one role.
    #[must_use]
    pub fn for_role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
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
        let fits =
            |wanted: &Option<String>, actual: &Option<String>| wanted.is_none() || wanted == actual;
        self.times != Some(0)
            && self
                .operation
                .is_none_or(|operation| operation == call.operation)
            && fits(&self.region, &call.region)
            && fits(&self.secret, &call.secret)
            && fits(&self.role, &call.role)
    }

    fn times(&mut self) -> &mut Option<u32> {
        &mut self.times
    }
}

impl Behaviour {
    /// How the call log names it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::CutBody => "fault: cut body",
            Self::DecryptionFailure => "DecryptionFailure",
            Self::Delay(_) => "fault: delay",
            Self::Disconnect => "fault: disconnect",
            Self::Hang => "fault: hang",
            Self::Hold(_) => "fault: hold",
            Self::Html => "fault: html",
            Self::InternalError => "fault: internal error",
            Self::KmsDenied => "AccessDeniedException",
            Self::ServiceUnavailable => "fault: service unavailable",
            Self::Throttle(_) => "fault: throttle",
            Self::TruncatedBody => "fault: truncated body",
        }
    }
}
