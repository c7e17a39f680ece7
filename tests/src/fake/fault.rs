//! What can go wrong at a cloud, on demand: what is common to all, and what only one of them has.

use std::fmt::Debug;
use std::time::Duration;

use serde::Serialize;

use super::Gate;

/// A call, as faults see it.
pub trait Attempt: Clone + Debug + Send + Serialize + 'static {
    /// The kinds of call.
    type Operation: Copy + Debug + PartialEq + Send;

    /// The call's kind.
    fn operation(&self) -> Self::Operation;

    /// The secret, as sent.
    fn secret(&self) -> Option<&str>;

    /// The role that is requested or that requests, if there are roles.
    fn role(&self) -> Option<&str> {
        None
    }

    /// The region, if there are regions.
    fn region(&self) -> Option<&str> {
        None
    }

    /// What went wrong; `None`: nothing.
    fn error(&mut self) -> &mut Option<String>;
}

/// What can go wrong at only one cloud.
pub trait Special: Clone + Debug + Send + Sync + 'static {
    /// Its name in the call log.
    fn name(&self) -> &'static str;
}

/// The secret that a misdirected answer is about.
pub(crate) const OTHER: &str = "another";

/// Something that goes wrong for the calls that it matches; an empty field matches every call.
#[derive(Clone, Debug)]
pub struct Fault<C: Attempt, S> {
    /// Which operation; `None`: all.
    pub operation: Option<C::Operation>,
    /// The secret, as the call names it.
    pub secret: Option<String>,
    /// The role.
    pub role: Option<String>,
    /// The region; a call without a region does not match.
    pub region: Option<String>,
    /// What happens.
    pub behaviour: Behaviour<S>,
    /// How many calls it affects; `None`: all until the fault is lifted.
    pub times: Option<u32>,
}

/// What happens to a call.
#[derive(Clone, Debug)]
pub enum Behaviour<S> {
    /// The connection breaks in the middle of the answer's body.
    CutBody,
    /// It is answered, later.
    Delay(Duration),
    /// The connection ends without an answer.
    Disconnect,
    /// The cloud's own refusal of a caller, which repeats all of the request, credentials included.
    Echo,
    /// The answer never ends.
    Endless,
    /// It is accepted and never answered.
    Hang,
    /// It waits until the gate opens, and is then answered.
    Hold(Gate),
    /// A proxy's HTML page, with this status.
    Html(u16),
    /// 500, in the cloud's own words.
    InternalError,
    /// The token service gets no answer where the cluster publishes its keys, and says so in its own words.
    IssuerSilent,
    /// The answer to another question: about the secret [`OTHER`].
    Misdirect,
    /// 503, as from a service that is being drained.
    ServiceUnavailable,
    /// What can go wrong only at this cloud.
    Special(S),
    /// The cloud's own refusal of a caller that sends too many requests, with this `Retry-After` in seconds, if any.
    Throttle(Option<u64>),
    /// The right status and headers with half of the answer.
    TruncatedBody,
}

impl<C: Attempt, S> Fault<C, S> {
    /// A fault of every call of one operation, until it is lifted.
    #[must_use]
    pub fn on(operation: C::Operation, behaviour: Behaviour<S>) -> Self {
        Self {
            operation: Some(operation),
            ..Self::everywhere(behaviour)
        }
    }

    /// A fault of every call.
    #[must_use]
    pub fn everywhere(behaviour: Behaviour<S>) -> Self {
        Self {
            operation: None,
            secret: None,
            role: None,
            region: None,
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

    /// Whether it affects this call.
    pub(super) fn matches(&self, call: &C) -> bool {
        let fits = |wanted: &Option<String>, actual: Option<&str>| {
            wanted.is_none() || wanted.as_deref() == actual
        };
        self.times != Some(0)
            && self
                .operation
                .is_none_or(|operation| operation == call.operation())
            && fits(&self.secret, call.secret())
            && fits(&self.role, call.role())
            && fits(&self.region, call.region())
    }
}

impl<S: Special> Behaviour<S> {
    /// Its name in the call log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::CutBody => "fault: cut body",
            Self::Delay(_) => "fault: delay",
            Self::Disconnect => "fault: disconnect",
            Self::Echo => "fault: echo",
            Self::Endless => "fault: endless",
            Self::Hang => "fault: hang",
            Self::Hold(_) => "fault: hold",
            Self::Html(_) => "fault: html",
            Self::InternalError => "fault: internal error",
            Self::IssuerSilent => "fault: issuer silent",
            Self::Misdirect => "fault: misdirect",
            Self::ServiceUnavailable => "fault: service unavailable",
            Self::Special(special) => special.name(),
            Self::Throttle(_) => "fault: throttle",
            Self::TruncatedBody => "fault: truncated body",
        }
    }
}
