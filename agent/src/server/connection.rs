//! One connection: who its peer is, and whether that still holds.

use super::admission::{Admission, Found, Standing};
use super::door::Door;
use super::intake::Intake;
use super::remains::Remains;
use super::times::{Times, Verdict};
use super::toll::Toll;
use super::warnings::About;
use crate::attest::{AttestError, Denial, Workload};
use crate::error::RequestError;
use crate::peer::Peer;
use crate::quota;
use crate::response::{self, Answer};
use hyper::body::Body as _;
use latchkey_client::protocol::words::EPHEMERAL_CONTAINER;
use latchkey_client::protocol::{Code, Step};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep_until};

/// An identity older than this is checked again before it is used: the peer may have been moved to another cgroup.
const CHECK_AGAIN: Duration = Duration::from_secs(1);

/// What a warning of [`Connection::call`] is about.
const WATCHED: &str = "watched";

/// A connection whose peer is pinned.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: Peer,
    door: Arc<Door>,
    admission: Arc<Admission>,
    standing: Mutex<Standing>,
    /// The socket's descriptor, which stays open longer than any request on it.
    fd: RawFd,
    closing: AtomicBool,
    /// Signals that the connection will close after its answer.
    closes: Notify,
    ended: AtomicBool,
    /// Signals that the connection must end, or else stop reading.
    woken: Notify,
    /// True from a request's turn until it is answered.
    working: AtomicBool,
    /// Whether the peer's exit is being watched.
    watched: AtomicBool,
    /// Until when the last refusal is held back.
    rests: Mutex<Option<Instant>>,
    pub(super) intake: Intake,
    pub(super) times: Times,
    /// What its pod owes, once that is known.
    toll: OnceLock<Arc<Toll>>,
    /// What it owes itself, before it is known whose it is. It is suspect from the beginning: nothing is remembered of
    /// a stranger.
    own_toll: Arc<Toll>,
}

/// What the workload's pod owes.
fn toll_of(workload: &Workload) -> Arc<Toll> {
    workload.pod().quota.toll.clone()
}

// === impl Connection ===

impl Connection {
    /// A connection on the socket `fd`; none if there is no room for one whose peer is not attested, or the peer has
    /// exited.
    pub(super) fn open(
        peer: Peer,
        door: Arc<Door>,
        fd: RawFd,
        admission: &Arc<Admission>,
    ) -> Option<Self> {
        let standing = admission.admit(&peer, door.entrance)?;
        let toll = standing.workload().map(toll_of);
        Some(Self {
            peer,
            door,
            admission: admission.clone(),
            standing: Mutex::new(standing),
            fd,
            closing: AtomicBool::new(false),
            closes: Notify::new(),
            ended: AtomicBool::new(false),
            woken: Notify::new(),
            working: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            rests: Mutex::default(),
            intake: Intake::none(),
            times: Times::new(),
            toll: toll.map_or_else(OnceLock::new, OnceLock::from),
            own_toll: Arc::new(Toll::of_suspect()),
        })
    }

    /// The workload that the peer is at `now`: alive, in the same container, in a pod of this node.
    ///
    /// # Errors
    ///
    /// `not_attested`, `unavailable`, or `busy`; the connection then closes after the answer.
    pub(crate) async fn workload(&self, now: Instant) -> Result<Workload, RequestError> {
        if !self.peer.is_alive() {
            return Err(self.close_with(AttestError::Gone));
        }
        let before = match &mut *self.standing.lock() {
            Standing::Attested {
                workload, checked, ..
            } => {
                if workload.is_current() && now < *checked + CHECK_AGAIN {
                    return Ok(workload.clone());
                }
                Some(workload.clone())
            }
            Standing::AtTheDoor { found, .. } => match found {
                Found::Busy { why, .. } => return Err(self.close_as_busy(why)),
                Found::Denied(error) => return Err(self.close_with(error.clone())),
                Found::Unknown => None,
            },
        };
        match before {
            Some(before) => self.check_again(&before),
            // Boxed: this happens once per connection, but every request's future would carry it.
            None => Box::pin(self.attest()).await,
        }
    }

    /// The workload, if its pod may have no more connections.
    pub(crate) fn busy(&self) -> Option<Workload> {
        match &*self.standing.lock() {
            Standing::AtTheDoor {
                found: Found::Busy { workload, .. },
                ..
            } => Some(workload.clone()),
            _ => None,
        }
    }

    /// Resolves when it is the turn of this peer's pod; see [`crate::turns::Turnstile`]. From then on, work for its
    /// request is under way.
    pub(crate) async fn turn(&self) {
        let turns = match &*self.standing.lock() {
            Standing::Attested { workload, .. } => workload.pod().quota.turns.clone(),
            _ => self.door.turns.clone(),
        };
        turns.pass().await;
        self.working.store(true, Ordering::Relaxed);
    }

    /// Returns the answer, which holds room among its pod's unread answers unless it is short.
    ///
    /// # Errors
    ///
    /// `busy` if there is no room.
    pub(crate) fn hold(&self, answer: Answer) -> Result<Answer, RequestError> {
        let size = answer.body().size_hint().lower();
        if size < quota::SHORT {
            return Ok(answer);
        }
        match &*self.standing.lock() {
            Standing::Attested { workload, .. } => {
                let room = workload.pod().quota.answer(size)?;
                Ok(response::held(answer, room))
            }
            // Any other peer only ever gets an error.
            _ => Ok(answer),
        }
    }

    /// Holds back the refusal that the peer is about to get.
    pub(crate) async fn rest(&self) {
        let rest = match self.standing.lock().workload() {
            Some(workload) => workload.pod().quota.rest(),
            None => quota::REST,
        };
        let until = Instant::now() + rest;
        *self.rests.lock() = Some(until);
        sleep_until(until).await;
    }

    /// Resolves when nothing is held back any more: leaving meanwhile must not allow a peer to come back sooner.
    pub(super) async fn rested(&self) {
        let until = *self.rests.lock();
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }

    fn toll(&self) -> &Arc<Toll> {
        self.toll.get().unwrap_or(&self.own_toll)
    }

    /// Makes a call on the socket.
    ///
    /// # Errors
    ///
    /// If such calls cost too much; the connection ends then.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> io::Result<T> {
        let (outcome, is_too_much) = self.toll().call(call);
        if !is_too_much {
            return Ok(outcome);
        }
        self.end();
        let standing = self.standing.lock();
        let workload = standing.workload();
        let pod = workload.and_then(|workload| workload.pod().uid);
        if self.admission.warnings.is_due(WATCHED, pod.map(About::Pod)) {
            tracing::warn!(
                pid = self.pid(),
                uid = self.uid(),
                workload = workload.map(tracing::field::display),
                pod_uid = pod.map(tracing::field::display),
                "a connection ends: reads and writes on it take far too long, as they do if a peer watches its own end \
                 many times over"
            );
        }
        Err(io::Error::other("reads and writes cost too much"))
    }

    /// What still counts for the connection after its end, and what is owed.
    pub(super) fn remains(self) -> (Remains, Arc<Toll>) {
        let toll = self.toll().clone();
        let remains = match self.standing.into_inner() {
            Standing::Attested {
                workload, permit, ..
            } => Remains::OfPod {
                pod: workload.pod().clone(),
                _permit: permit,
            },
            Standing::AtTheDoor { place, .. } => Remains::AtTheDoor(place, Instant::now()),
        };
        (remains, toll)
    }

    /// The peer's PID.
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

    /// Makes the next answer the last.
    pub(crate) fn close_after_answer(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.closes.notify_waiters();
    }

    /// Resolves when the next answer will be the last. For requests that take long.
    pub(crate) async fn closes(&self) {
        let told = self.closes.notified();
        if !self.is_closing() {
            told.await;
        }
    }

    /// Whether the peer has closed its end, rather than only said that it sends no more. Only a read would show either,
    /// and nobody reads while a request is answered.
    fn has_hung_up(&self) -> bool {
        // This sends nothing, but the kernel still says whether it could (unix(7)).
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.fd, &[], flags) == Err(Errno::EPIPE)
    }

    /// The descriptor that becomes readable when the peer's process exits, for whoever watches that: given out once
    /// only, and never where the kernel has none.
    pub(super) fn begin_watch(&self) -> Option<&OwnedFd> {
        match self.watched.swap(true, Ordering::Relaxed) {
            true => None,
            false => self.peer.pidfd(),
        }
    }

    /// Whether work for a request is under way, which is useless once the peer has exited.
    pub(super) fn is_working(&self) -> bool {
        self.working.load(Ordering::Relaxed)
    }

    /// What must become of the connection at `now`, in an agent that is `leaving` or stays. Nobody is too late for one
    /// that `was_late` itself. Work for a peer that has closed its end is useless, as if its process had exited.
    pub(super) fn look(&self, now: Instant, leaving: bool, was_late: bool) -> Verdict {
        let is_attested = match &*self.standing.lock() {
            Standing::Attested { workload, .. } => {
                if !self.admission.attestor.may_still_ask(workload) {
                    return Verdict::End;
                }
                true
            }
            _ => false,
        };
        if self.times.is_answering() && self.has_hung_up() {
            return Verdict::End;
        }
        match self.times.look(now, is_attested, leaving) {
            Verdict::End if was_late => Verdict::GoOn,
            verdict => verdict,
        }
    }

    /// Ends the connection, with everything in flight on it.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.woken.notify_one();
    }

    /// Whether it must end at once.
    pub(super) fn must_end(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Stops reading beyond what was sent before.
    pub(super) fn stop_reading(&self) {
        self.woken.notify_one();
    }

    /// Resolves when the connection is told to end, or else to stop reading.
    pub(super) fn woken(&self) -> Notified<'_> {
        self.woken.notified()
    }

    /// Notes that a request's head is complete.
    pub(crate) fn request_began(&self) {
        self.times.request_began();
    }

    /// Notes that the request has a body.
    pub(crate) fn body_began(&self) {
        self.intake.begin();
    }

    /// Notes that `bytes` bytes of the body were taken.
    pub(crate) fn took_of_body(&self, bytes: usize) {
        self.intake.took(bytes);
    }

    /// Notes that the body was read to its end.
    pub(crate) fn body_ended(&self) {
        self.intake.end();
    }

    /// Notes that a request is answered.
    pub(crate) fn request_ended(&self) {
        self.working.store(false, Ordering::Relaxed);
        self.times.request_ended();
    }

    /// Attests a peer whose pod was not known, and admits it.
    async fn attest(&self) -> Result<Workload, RequestError> {
        let workload = match self
            .admission
            .attestor
            .attest(&self.peer, self.door.entrance)
            .await
        {
            Ok(workload) => workload,
            Err(error) => {
                if let AttestError::Denied(denial) = error {
                    self.admission.metrics.attestation(denial.as_str());
                }
                return Err(self.close_with(error));
            }
        };
        let _known = self.toll.set(toll_of(&workload));
        let permit = match self.admission.connection_of(&workload) {
            Ok(permit) => permit,
            Err(why) => {
                if let Standing::AtTheDoor { found, .. } = &mut *self.standing.lock() {
                    *found = Found::Busy { workload, why };
                }
                return Err(self.close_as_busy(why));
            }
        };
        *self.standing.lock() = Standing::Attested {
            workload: workload.clone(),
            checked: Instant::now(),
            permit,
        };
        Ok(workload)
    }

    /// Checks an identity again. It may get newer, but never become another.
    fn check_again(&self, before: &Workload) -> Result<Workload, RequestError> {
        let now = self
            .admission
            .attestor
            .locate(&self.peer, self.door.entrance)
            .map_err(|error| match error {
                // In another pod, which this entrance denies. A process that is about to exit may seem to be in no pod
                // (cgroup v1 shows it in the root), so that alone does not count as a move.
                AttestError::Denied(denial @ (Denial::ListenerMismatch | Denial::OwnPod)) => {
                    self.tell_of_a_move(before, denial.to_string())
                }
                error => error,
            })
            .and_then(|location| self.admission.attestor.known(&self.peer, location))
            .and_then(|now| {
                now.ok_or(match before.pod().is_gone() {
                    true => AttestError::Denied(Denial::UnknownPod),
                    false => AttestError::NotYet("unconfirmed_container"),
                })
            })
            .and_then(|now| match now.same_as(before) {
                true => Ok(now),
                // Another entry of the same pod, for which nothing of the old entry's may be used.
                false if now.is_where(before) => Err(AttestError::NotYet("known_anew")),
                false => Err(self.tell_of_a_move(before, now.to_string())),
            });
        match now {
            Ok(now) => {
                if let Standing::Attested {
                    workload, checked, ..
                } = &mut *self.standing.lock()
                {
                    *workload = now.clone();
                    *checked = Instant::now();
                }
                Ok(now)
            }
            Err(error) => {
                if let AttestError::Denied(denial) = error {
                    self.admission.metrics.attestation(denial.as_str());
                }
                Err(self.close_with(error))
            }
        }
    }

    /// Logs a move. The request's audit line names no pod, since none is proven; this names both, for investigations.
    fn tell_of_a_move(&self, from: &Workload, to: String) -> AttestError {
        tracing::warn!(
            pid = self.pid(),
            uid = self.uid(),
            %from,
            to,
            "a process was moved after it connected: its connection ends"
        );
        AttestError::Denied(Denial::IdentityChanged)
    }

    /// The reason is for the audit trail, not for the caller, which may be probing. Only one that the API server itself
    /// names an ephemeral container is told: somebody who is debugging and knows what it is.
    fn close_with(&self, error: AttestError) -> RequestError {
        self.close_after_answer();
        let told = match error {
            AttestError::NotYet(_) => {
                RequestError::unavailable("the agent cannot say yet who is asking; try again")
            }
            AttestError::Denied(Denial::EphemeralContainer) => RequestError::new(
                Code::NotAttested,
                format!(
                    "an {EPHEMERAL_CONTAINER} (kubectl debug) gets no secrets; ask from one of the pod's own containers"
                ),
            ),
            AttestError::Denied(_) | AttestError::Gone => RequestError::new(
                Code::NotAttested,
                "the caller is no workload that may ask here",
            ),
        };
        told.reason(error.reason()).at(Step::Attestation)
    }

    fn close_as_busy(&self, why: &'static str) -> RequestError {
        self.close_after_answer();
        RequestError::new(Code::Busy, why)
    }
}

#[cfg(test)]
mod tests;
