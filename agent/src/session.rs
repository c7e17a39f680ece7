//! A pod's sessions: one for each role that it assumes, exchanged once, renewed before it expires, dropped with the
//! pod.

use crate::backend::{BackendError, BackendId, Session};
use crate::error::{RETRY_AFTER, RequestError};
use crate::flight::Flights;
use crate::request::RequestId;
use crate::role::Role;
use latchkey_client::protocol::Code;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A session this close to its expiry is no longer used, so that no read starts with credentials about to expire.
const UNUSABLE_BEFORE: Duration = Duration::from_secs(60);

/// How long a refused exchange is remembered, and a session that ended early like the previous one, so that a pod with
/// a wrong trust policy does not use up the account's rate at the token service.
const REFUSAL_STANDS: Duration = Duration::from_secs(2);

/// After this many exchanges in a row that reached no service, the failure stands for [`IN_VAIN_STANDS`]: each try
/// costs the API server a token, and a region that does not exist is the pod's own mistake.
const IN_VAIN: u32 = 10;

const IN_VAIN_STANDS: Duration = Duration::from_secs(1);

/// The longest pause that an API server or a token service gets if it asks to slow down.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// The longest life that a session is taken to have, whatever the cloud says.
const LONGEST_LIFE: Duration = Duration::from_secs(12 * 3600);

/// The minimum time between two attempts at a renewal, while the old session is still in use.
const RENEWAL_RETRY: Duration = Duration::from_secs(10);

/// A session younger than this is kept when the cloud refuses its role: a pod that keeps asking for what it may not have
/// must not cause an exchange each time.
const YOUNG: Duration = Duration::from_secs(30);

/// How many sessions a pod keeps at each backend: a changed annotation adds one, and the oldest is dropped.
const KEPT: usize = 4;

/// What a session is for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct SessionKey {
    /// Where it reads.
    pub(crate) backend: BackendId,
    /// The assumed role.
    pub(crate) role: Arc<Role>,
    /// The UID of the service account: a new account with an old name shares nothing with the old one.
    pub(crate) account: Arc<str>,
}

/// The sessions of one pod.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    slots: Mutex<Vec<(SessionKey, Arc<Slot>)>>,
}

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    exchanges: Flights<(), Result<Held, BackendError>>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    /// The error that callers get until then.
    refused: Option<(Instant, BackendError)>,
    no_renewal_before: Option<Instant>,
    /// How many exchanges in a row have failed because a service was unavailable.
    in_vain: u32,
}

/// A session and its times.
#[derive(Clone, Debug)]
struct Held {
    session: Arc<dyn Session>,
    begun: Instant,
    renew_at: Instant,
    unusable_at: Instant,
}

// === impl Sessions ===

impl Sessions {
    /// Returns the session for `key`: the one at hand, or a new one by `exchange`. Callers that need a new one share one
    /// exchange; after three quarters of its life, the one at hand is renewed in the background. If that fails, only
    /// `renewal_failed` is told.
    ///
    /// # Errors
    ///
    /// The error of the exchange.
    pub(crate) async fn open<F>(
        &self,
        key: &SessionKey,
        asker: RequestId,
        exchange: impl FnOnce() -> F,
        renewal_failed: impl FnOnce(&BackendError) + Send + 'static,
    ) -> Result<Arc<dyn Session>, BackendError>
    where
        F: Future<Output = Result<Arc<dyn Session>, BackendError>> + Send + 'static,
    {
        let slot = self.slot(key);
        let now = Instant::now();
        let at_hand = {
            let mut state = slot.state.lock();
            match &state.held {
                Some(held) if now < held.renew_at => return Ok(held.session.clone()),
                Some(held) if now < held.unusable_at => {
                    let session = held.session.clone();
                    if state.no_renewal_before.is_some_and(|until| now < until) {
                        return Ok(session);
                    }
                    state.no_renewal_before = Some(now + RENEWAL_RETRY);
                    Some(session)
                }
                _ => {
                    if let Some((until, refusal)) = &state.refused
                        && now < *until
                    {
                        return Err(refusal.clone());
                    }
                    None
                }
            }
        };
        let seat = {
            let (landing, exchange, renews) = (slot.clone(), exchange(), at_hand.is_some());
            slot.exchanges.join(&(), Duration::MAX, asker, async move {
                let outcome = landing.fill(exchange.await);
                if let (true, Err(failed)) = (renews, &outcome) {
                    renewal_failed(failed);
                }
                outcome
            })
        };
        // The exchange runs in its own task, so that its outcome is remembered even if every caller leaves: otherwise a
        // pod whose processes ask and exit could cause exchanges as fast as it connects.
        if seat.leader.is_none() {
            tokio::spawn(seat.result.clone());
        }
        if let Some(session) = at_hand {
            return Ok(session);
        }
        match seat.result.await {
            Some(outcome) => outcome.map(|held| held.session),
            None => Err(BackendError::died()),
        }
    }

    /// Drops the sessions of a role that the cloud refuses, unless they are young.
    pub(crate) fn forget(&self, role: &Role) {
        for (key, slot) in &*self.slots.lock() {
            if key.role.is_same_to_cloud(role) {
                slot.state
                    .lock()
                    .held
                    .take_if(|held| held.begun.elapsed() >= YOUNG);
            }
        }
    }

    /// Drops a session that ended early. If it had replaced another that did, the next would likely do the same, so
    /// this failure stands for a while, as a refusal does.
    pub(crate) fn put_away(
        &self,
        key: &SessionKey,
        session: &Arc<dyn Session>,
        failed: &BackendError,
        in_place_of_another: bool,
    ) {
        let Some(slot) = find(&self.slots.lock(), key) else {
            return;
        };
        let mut state = slot.state.lock();
        let held = state.held.as_ref();
        if !held.is_some_and(|held| Arc::ptr_eq(&held.session, session)) {
            return;
        }
        state.held = None;
        if in_place_of_another {
            state.refused = Some((Instant::now() + REFUSAL_STANDS, failed.clone()));
        }
    }

    /// Drops the sessions that can no longer be used.
    pub(crate) fn tidy(&self) {
        let now = Instant::now();
        for (_, slot) in &*self.slots.lock() {
            slot.state
                .lock()
                .held
                .take_if(|held| now >= held.unusable_at);
        }
    }

    /// Returns the number of sessions at hand.
    pub(crate) fn count(&self, backend: BackendId) -> usize {
        self.slots
            .lock()
            .iter()
            .filter(|(key, slot)| key.backend == backend && slot.state.lock().held.is_some())
            .count()
    }

    fn slot(&self, key: &SessionKey) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = find(&slots, key) {
            return slot;
        }
        let mut there = (0..slots.len()).filter(|at| slots[*at].0.backend == key.backend);
        if let (Some(oldest), true) = (there.next(), there.count() + 1 >= KEPT) {
            slots.remove(oldest);
        }
        let slot = Arc::new(Slot::default());
        slots.push((key.clone(), slot.clone()));
        slot
    }
}

fn find(slots: &[(SessionKey, Arc<Slot>)], key: &SessionKey) -> Option<Arc<Slot>> {
    let slot = slots.iter().find(|(other, _)| other == key);
    slot.map(|(_, slot)| slot.clone())
}

// === impl Slot ===

impl Slot {
    fn fill(&self, outcome: Result<Arc<dyn Session>, BackendError>) -> Result<Held, BackendError> {
        let now = Instant::now();
        let mut state = self.state.lock();
        // One that has no life left would be exchanged anew for every read.
        let outcome = outcome.and_then(|session| match session.lives_for().min(LONGEST_LIFE) {
            Duration::ZERO => {
                let text =
                    "the session that the cloud gave is already over: check the node's clock";
                Err(RequestError::unavailable(text).into())
            }
            life => Ok((session, life)),
        });
        match outcome {
            Ok((session, life)) => {
                let held = Held {
                    session,
                    begun: now,
                    renew_at: now + life * 3 / 4,
                    unusable_at: now + life.saturating_sub(UNUSABLE_BEFORE.min(life / 8)),
                };
                *state = State {
                    held: Some(held.clone()),
                    ..State::default()
                };
                Ok(held)
            }
            Err(error) => {
                if error.is_refusal() {
                    // The role itself is refused now, so the session that it gave before is dropped, however young.
                    state.held = None;
                }
                state.in_vain = match error.error.code {
                    Code::Unavailable => state.in_vain.saturating_add(1),
                    _ => 0,
                };
                let wait = error.error.retry_after.unwrap_or_default();
                let stands = match error.error.code {
                    // Also if the cloud refused nothing: the agent may lack the right to issue the pod's token.
                    Code::Denied => Some(REFUSAL_STANDS),
                    Code::Throttled => Some(wait.clamp(REFUSAL_STANDS, LONGEST_REST)),
                    // Longer than the agent's own default: the service itself asked for it, or only a person can mend it.
                    Code::Unavailable if wait > RETRY_AFTER => Some(wait.min(LONGEST_REST)),
                    _ if state.in_vain >= IN_VAIN => Some(IN_VAIN_STANDS),
                    _ => None,
                };
                if let Some(stands) = stands {
                    state.refused = Some((now + stands, error.clone()));
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests;
