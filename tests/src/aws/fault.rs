//! What can go wrong in a cloud, on demand.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::call::{Call, Operation};

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

/// A barrier that calls wait at, so that a test decides when they go on.
#[derive(Clone, Debug)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
    waiting: Arc<watch::Sender<usize>>,
}

/// A fault that is in force until it is cleared or this is dropped.
#[must_use = "the fault is cleared when this is dropped"]
#[derive(Debug)]
pub struct FaultGuard {
    faults: Arc<Faults>,
    id: u64,
    kept: bool,
}

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults {
    active: Mutex<Vec<(u64, Fault)>>,
    next_id: AtomicU64,
    /// The length of `active`, so that calls of a fake without faults take no lock.
    count: AtomicUsize,
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

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self {
            open: Arc::new(watch::Sender::new(false)),
            waiting: Arc::default(),
        }
    }

    /// Lets all waiting calls, and all later ones, go on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Makes later calls wait again.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Returns when at least `calls` calls have come to the gate since it was made.
    pub async fn reached(&self, calls: usize) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self
            .waiting
            .subscribe()
            .wait_for(|waiting| *waiting >= calls)
            .await;
    }

    pub(super) async fn pass(&self) {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

impl FaultGuard {
    /// Leaves the fault in force for as long as the fake lives.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for FaultGuard {
    fn drop(&mut self) {
        if !self.kept {
            self.faults
                .change(|active| active.retain(|(id, _)| *id != self.id));
        }
    }
}

impl Faults {
    pub(super) fn add(self: &Arc<Self>, fault: Fault) -> FaultGuard {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.change(|active| active.push((id, fault)));
        FaultGuard {
            faults: Arc::clone(self),
            id,
            kept: false,
        }
    }

    pub(super) fn clear(&self) {
        self.change(Vec::clear);
    }

    /// What happens to this call, if anything; counts it against the fault's times.
    pub(super) fn strike(&self, call: &Call) -> Option<Behaviour> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut struck = None;
        self.change(|active| {
            // The latest fault wins, so that a test can put a special one on top of a general one.
            let Some(at) = active.iter().rposition(|(_, fault)| fault.matches(call)) else {
                return;
            };
            let fault = &mut active[at].1;
            struck = Some(fault.behaviour.clone());
            if let Some(times) = &mut fault.times {
                *times = times.saturating_sub(1);
                if *times == 0 {
                    active.remove(at);
                }
            }
        });
        struck
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(u64, Fault)>)) {
        let mut active: MutexGuard<'_, _> =
            self.active.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut active);
        self.count.store(active.len(), Ordering::Release);
    }
}
