//! One connection: who is behind it, and whether that still holds.

use crate::attest::cgroup::PodUid;
use crate::attest::{AttestError, Attestor, Workload};
use crate::error::RequestError;
use crate::metrics::Metrics;
use crate::peer::Peer;
use latchkey_client::protocol::Code;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// An identity older than this is made sure of again before it is used: the peer may have been moved into another
/// cgroup.
const CHECK_AGAIN: Duration = Duration::from_secs(1);

/// How many connections one cgroup may have waiting to be attested.
const WAITING_PER_CGROUP: usize = 4;

/// How long a connection that is not attested may stay open.
const WAITING_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection whose peer is pinned.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: Peer,
    attestor: Arc<Attestor>,
    metrics: Arc<Metrics>,
    standing: Mutex<Standing>,
    /// The identity has come to be known, so its pod can be watched.
    attested: Notify,
    closing: AtomicBool,
    opened: Instant,
    times: Mutex<Times>,
}

/// What the peer has been found to be, and the permit that it holds.
#[derive(Debug)]
enum Standing {
    /// A workload, made sure of at that time.
    Attested {
        workload: Workload,
        checked: Instant,
        _permit: OwnedSemaphorePermit,
    },
    /// Its pod has as many connections as it may.
    Busy { _place: Waiting },
    /// Found to be no workload.
    Denied { error: AttestError, _place: Waiting },
    /// Not said yet: its pod is not known. It is looked for when it asks for something.
    Unknown { _place: Waiting },
}

/// When bytes came and requests went.
#[derive(Debug)]
struct Times {
    /// When the head that is being read began.
    head_since: Option<Instant>,
    /// How many requests are being answered.
    answering: usize,
    quiet_since: Instant,
    /// Since when the peer has taken nothing of an answer.
    stuck_since: Option<Instant>,
}

/// Lets peers wait that are not attested: so many in all, and few from one cgroup.
#[derive(Debug)]
pub(crate) struct Doorman {
    all: Arc<Semaphore>,
    by_cgroup: Mutex<HashMap<Origin, usize>>,
}

/// Where a waiting peer comes from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Origin {
    Pod(PodUid),
    /// A cgroup that is no pod's, by a hash of its text.
    Elsewhere(u64),
}

/// A place at the door, free again when it is dropped.
#[derive(Debug)]
struct Waiting {
    doorman: Arc<Doorman>,
    origin: Origin,
    _permit: OwnedSemaphorePermit,
}

// === impl Connection ===

impl Connection {
    /// A connection to serve, or none if there is no room for one whose peer is not attested.
    pub(super) fn open(
        peer: Peer,
        attestor: Arc<Attestor>,
        metrics: &Arc<Metrics>,
        doorman: &Arc<Doorman>,
    ) -> Option<Self> {
        let (origin, verdict) = match attestor.locate(&peer) {
            Ok(place) => {
                if place.nested_pod {
                    metrics.attestation("nested_pod_seen");
                    tracing::warn!(
                        pid = peer.pid(),
                        pod_uid = %place.pod,
                        "a cgroup below a container is named like a pod: somebody may be trying to pass for it"
                    );
                }
                (Origin::Pod(place.pod), attestor.known(&peer, place))
            }
            Err(error) => (Origin::elsewhere(&peer), Err(error)),
        };
        let place = || {
            let place = doorman.let_in(origin);
            if place.is_none() {
                metrics
                    .connections_refused
                    .with_label_values(&["unattested_limit"])
                    .inc();
            }
            place
        };
        let standing = match verdict {
            Ok(Some(workload)) => match workload.pod().quota.connection() {
                Some(permit) => {
                    metrics.attestation("ok");
                    Standing::Attested {
                        workload,
                        checked: Instant::now(),
                        _permit: permit,
                    }
                }
                None => {
                    metrics.attestation("busy");
                    Standing::Busy { _place: place()? }
                }
            },
            Ok(None) => Standing::Unknown { _place: place()? },
            Err(AttestError::Gone) => return None,
            // What is missing may come before the peer asks.
            Err(AttestError::NotYet(_)) => Standing::Unknown { _place: place()? },
            Err(error @ AttestError::Denied(reason)) => {
                metrics.attestation(reason);
                Standing::Denied {
                    error,
                    _place: place()?,
                }
            }
        };
        Some(Self {
            peer,
            attestor,
            metrics: metrics.clone(),
            standing: Mutex::new(standing),
            attested: Notify::new(),
            closing: AtomicBool::new(false),
            opened: Instant::now(),
            times: Mutex::new(Times {
                head_since: None,
                answering: 0,
                quiet_since: Instant::now(),
                stuck_since: None,
            }),
        })
    }

    /// The workload that the peer is, now: alive, in the same container, of a pod that is still ours.
    ///
    /// # Errors
    ///
    /// `not_attested`, `unavailable`, or `busy`; the connection then closes after the answer unless it may still
    /// come to be known.
    pub(crate) async fn workload(&self) -> Result<Workload, RequestError> {
        if !self.peer.is_alive() {
            return Err(self.close_with(AttestError::Gone));
        }
        let before = match &mut *self.standing() {
            Standing::Attested {
                workload, checked, ..
            } => {
                if workload.is_current() && checked.elapsed() < CHECK_AGAIN {
                    return Ok(workload.clone());
                }
                Some(workload.clone())
            }
            Standing::Denied { error, .. } => return Err(self.close_with(error.clone())),
            Standing::Busy { .. } => return Err(self.close_as_busy()),
            Standing::Unknown { .. } => None,
        };
        match before {
            Some(before) => self.check_again(&before),
            None => self.attest().await,
        }
    }

    /// The number of the peer's process.
    pub(crate) fn pid(&self) -> i32 {
        self.peer.pid()
    }

    /// The uid under which the peer connected.
    pub(crate) fn uid(&self) -> u32 {
        self.peer.uid()
    }

    /// Whether the answers say `Connection: close`.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Lets the next answer be the last.
    pub(crate) fn close_after_answer(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Ends when the peer's pod is deleted; never while the pod is not known.
    pub(super) async fn pod_gone(&self) {
        loop {
            let attested = self.attested.notified();
            let gone = match &*self.standing() {
                Standing::Attested { workload, .. } => Some(workload.pod().gone().clone()),
                _ => None,
            };
            match gone {
                Some(gone) => return gone.cancelled().await,
                None => attested.await,
            }
        }
    }

    /// Notes that bytes have come in.
    pub(super) fn bytes_came(&self) {
        let mut times = self.times();
        if times.answering == 0 {
            times.head_since.get_or_insert_with(Instant::now);
        }
    }

    /// Notes that a request's head is complete.
    pub(crate) fn request_began(&self) {
        let mut times = self.times();
        times.head_since = None;
        times.answering += 1;
    }

    /// Notes that a request is answered.
    pub(crate) fn request_ended(&self) {
        let mut times = self.times();
        times.answering = times.answering.saturating_sub(1);
        times.quiet_since = Instant::now();
    }

    /// Whether a head has been begun that long ago and is not complete.
    pub(super) fn head_is_late(&self, limit: Duration) -> bool {
        self.times()
            .head_since
            .is_some_and(|since| since.elapsed() >= limit)
    }

    /// Notes that the peer takes nothing of an answer, or takes some again.
    pub(super) fn write_is_stuck(&self, stuck: bool) {
        self.times().stuck_since = stuck.then(Instant::now);
    }

    /// Whether the peer has taken nothing of an answer for that long.
    pub(super) fn write_is_late(&self, limit: Duration) -> bool {
        self.times()
            .stuck_since
            .is_some_and(|since| since.elapsed() >= limit)
    }

    /// Whether nothing has been asked or answered for that long.
    pub(super) fn is_idle(&self, limit: Duration) -> bool {
        let times = self.times();
        times.answering == 0 && times.quiet_since.elapsed() >= limit
    }

    /// Whether a peer that is not attested has stayed too long.
    pub(super) fn waits_too_long(&self) -> bool {
        self.opened.elapsed() >= WAITING_TIMEOUT
            && self.times().answering == 0
            && !matches!(&*self.standing(), Standing::Attested { .. })
    }

    /// Attests a peer whose pod was not known, and lets it in.
    async fn attest(&self) -> Result<Workload, RequestError> {
        let workload = match self.attestor.attest(&self.peer).await {
            Ok(workload) => workload,
            Err(error) => {
                if let AttestError::Denied(reason) = error {
                    self.metrics.attestation(reason);
                }
                return Err(self.close_with(error));
            }
        };
        let Some(permit) = workload.pod().quota.connection() else {
            return Err(self.close_as_busy());
        };
        self.metrics.attestation("ok");
        *self.standing() = Standing::Attested {
            workload: workload.clone(),
            checked: Instant::now(),
            _permit: permit,
        };
        self.attested.notify_waiters();
        Ok(workload)
    }

    /// Makes sure of an identity again. It may become newer, never another.
    fn check_again(&self, before: &Workload) -> Result<Workload, RequestError> {
        let now = self
            .attestor
            .locate(&self.peer)
            .and_then(|place| self.attestor.known(&self.peer, place))
            .and_then(|now| now.ok_or(AttestError::Denied("unknown_pod")))
            .and_then(|now| match now.same_as(before) {
                true => Ok(now),
                false => Err(AttestError::Denied("identity_changed")),
            });
        match now {
            Ok(now) => {
                if let Standing::Attested {
                    workload, checked, ..
                } = &mut *self.standing()
                {
                    *workload = now.clone();
                    *checked = Instant::now();
                }
                Ok(now)
            }
            Err(error) => {
                if let AttestError::Denied(reason) = error {
                    self.metrics.attestation(reason);
                }
                Err(self.close_with(error))
            }
        }
    }

    fn close_with(&self, error: AttestError) -> RequestError {
        self.close_after_answer();
        match error {
            AttestError::Denied(reason) => not_attested(reason),
            AttestError::Gone => not_attested("peer_gone"),
            AttestError::NotYet(what) => {
                RequestError::unavailable("the agent does not know this pod yet; try again")
                    .reason(what)
            }
        }
    }

    fn close_as_busy(&self) -> RequestError {
        self.close_after_answer();
        RequestError::new(
            Code::Busy,
            "this pod has too many connections; keep fewer and reuse them",
        )
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why is for the audit trail; the caller may be trying things out.
fn not_attested(reason: &'static str) -> RequestError {
    RequestError::new(
        Code::NotAttested,
        "the caller is no pod of this node that may ask here",
    )
    .reason(reason)
}

// === impl Origin ===

impl Origin {
    fn elsewhere(peer: &Peer) -> Self {
        let mut text = Vec::new();
        // A peer that cannot be read shares its places with all of its kind.
        let _ = peer.read_cgroup(&mut text);
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self::Elsewhere(hasher.finish())
    }
}

// === impl Doorman ===

impl Doorman {
    /// Room for so many.
    pub(super) fn new(places: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(places)),
            by_cgroup: Mutex::default(),
        }
    }

    fn let_in(self: &Arc<Self>, origin: Origin) -> Option<Waiting> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let mut by_cgroup = self
            .by_cgroup
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waiting = by_cgroup.entry(origin).or_default();
        if *waiting >= WAITING_PER_CGROUP {
            return None;
        }
        *waiting += 1;
        Some(Waiting {
            doorman: self.clone(),
            origin,
            _permit: permit,
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut by_cgroup = self
            .doorman
            .by_cgroup
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = by_cgroup.get_mut(&self.origin) {
            *waiting -= 1;
            if *waiting == 0 {
                by_cgroup.remove(&self.origin);
            }
        }
    }
}
