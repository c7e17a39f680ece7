//! A pod's values: reads in flight and, if the operator turned the cache on, values read before.
//!
//! Both belong to the pod's entry, so no key can reach another pod's value. The cache is off by default: the promise is
//! that every read gets the latest value.

mod shelf;

use crate::backend::{BackendError, Fault, Secret, Selector};
use crate::config;
use crate::error::RequestError;
use crate::flight::Flights;
use crate::request::RequestId;
use crate::role::Role;
use crate::secret::SecretName;
use crate::session::SessionKey;
use parking_lot::Mutex;
pub(crate) use shelf::NodesValues;
use shelf::Shelf;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long after its begin a read is joined by equal ones: a call that hangs must not decide for whoever asks later.
const SHARED: Duration = Duration::from_secs(1);

/// What a read is for: everything that can change its result.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ReadKey {
    /// The session of the read: the backend, and the role with its region and prefix.
    pub(crate) session: SessionKey,
    /// The name as the application wrote it.
    pub(crate) name: SecretName,
    /// The version or stage.
    pub(crate) selector: Selector,
}

/// The values of one pod.
#[derive(Debug)]
pub(crate) struct Values {
    settings: Arc<config::Cache>,
    shelf: Mutex<Shelf>,
    reads: Flights<ReadKey, Result<Arc<Secret>, BackendError>>,
}

/// A value, and where it came from.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) secret: Arc<Secret>,
    /// What the cache did.
    pub(crate) cache: CacheUse,
    /// How old the value is, if it came from the cache.
    pub(crate) age: Option<Duration>,
    /// The request whose call to the vault answered this one too.
    pub(crate) shared_with: Option<RequestId>,
    /// The failure that an expired value stands in for.
    pub(crate) instead_of: Option<Box<RequestError>>,
}

/// What the cache did for a read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CacheUse {
    /// It held a fresh value.
    Hit,
    /// It held none; the vault was asked.
    Miss,
    /// It is off for this name.
    Off,
    /// The vault could not be reached, and an expired value was allowed instead.
    Stale,
}

// === impl CacheUse ===

impl CacheUse {
    /// Every use, in the order of the declaration.
    pub(crate) const ALL: [Self; 4] = [Self::Hit, Self::Miss, Self::Off, Self::Stale];

    /// The word in the audit line and the metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Off => "off",
            Self::Stale => "stale",
        }
    }
}

// === impl ReadKey ===

/// Equal keys have equal hashes. The parts of which a pod rarely has two are left to the comparison, which is by
/// pointer first.
impl Hash for ReadKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.session.backend.hash(state);
        self.name.hash(state);
        self.selector.hash(state);
    }
}

// === impl Values ===

impl Values {
    /// Creates an empty one, on a node whose pods together keep `all`.
    pub(crate) fn new(settings: Arc<config::Cache>, all: &NodesValues) -> Self {
        let limit = usize::try_from(settings.max_bytes).unwrap_or(usize::MAX);
        Self {
            settings,
            shelf: Mutex::new(Shelf::new(limit, all.clone())),
            reads: Flights::default(),
        }
    }

    /// Returns the cached value for `key`, if the cache is on and the value still fresh at `now`.
    pub(crate) fn at_hand(&self, key: &ReadKey, now: Instant) -> Option<Read> {
        if !self.keeps(&key.name) {
            return None;
        }
        self.kept(key, CacheUse::Hit, now, self.settings.ttl)
    }

    /// Reads the value for `key` with `fetch`, which equal reads share that begin within a second. With `fresh`, it joins
    /// no read that began earlier.
    ///
    /// # Errors
    ///
    /// The error of the vault, if no expired value may be used instead.
    pub(crate) async fn read<F>(
        &self,
        key: &ReadKey,
        fresh: bool,
        asker: RequestId,
        fetch: impl FnOnce() -> F,
    ) -> Result<Read, BackendError>
    where
        F: Future<Output = Result<Arc<Secret>, BackendError>> + Send + 'static,
    {
        let cache = self.without_value(&key.name);
        let keeps = cache == CacheUse::Miss;
        let oldest = if fresh { Duration::ZERO } else { SHARED };
        let seat = self.reads.join(key, oldest, asker, fetch());
        let outcome = seat
            .result
            .await
            .unwrap_or_else(|| Err(BackendError::died()));
        match outcome {
            Ok(secret) => {
                let mut shelf = self.shelf.lock();
                // A read that began later and has an answer knows better, even if there is nothing any more.
                if keeps && self.reads.lands(key, seat.number) {
                    // Its age counts from before the vault was asked, so that it is never older than its age says.
                    shelf.put(key, &secret, seat.began);
                }
                drop(shelf);
                Ok(Read {
                    secret,
                    cache,
                    age: None,
                    shared_with: seat.leader,
                    instead_of: None,
                })
            }
            Err(error) if error.fault == Fault::Unreachable => {
                // A caller that asked for the latest value is better off with an error than with an old value.
                let may_be_stale = keeps && !fresh && !self.settings.stale_if_error.is_zero();
                let kept = may_be_stale
                    .then(|| self.kept(key, CacheUse::Stale, Instant::now(), self.life()))
                    .flatten();
                match kept {
                    Some(read) => Ok(Read {
                        instead_of: Some(Box::new(error.error)),
                        ..read
                    }),
                    None => Err(error),
                }
            }
            Err(error) => {
                if matches!(error.error.code.status(), 403 | 404) {
                    // Gone or forbidden: an older value must not come back.
                    let mut shelf = self.shelf.lock();
                    self.reads.lands(key, seat.number);
                    shelf.remove(key);
                }
                Err(error)
            }
        }
    }

    /// What the cache does for a read of this name if it has no value at hand.
    pub(crate) fn without_value(&self, name: &SecretName) -> CacheUse {
        if self.keeps(name) {
            CacheUse::Miss
        } else {
            CacheUse::Off
        }
    }

    /// Drops every value that was read as `role`, including those being read now.
    pub(crate) fn forget(&self, role: &Role) {
        self.shelf.lock().refuse(role, Instant::now());
    }

    /// Drops expired values.
    pub(crate) fn tidy(&self) {
        if let Some(since) = Instant::now().checked_sub(self.life()) {
            self.shelf.lock().expire(since);
        }
    }

    fn kept(&self, key: &ReadKey, cache: CacheUse, now: Instant, life: Duration) -> Option<Read> {
        let shelf = self.shelf.lock();
        let (secret, read_at) = shelf.get(key)?;
        let age = now.saturating_duration_since(read_at);
        (age < life).then(|| Read {
            secret: secret.clone(),
            cache,
            age: Some(age),
            shared_with: None,
            instead_of: None,
        })
    }

    /// How long a value is kept.
    fn life(&self) -> Duration {
        self.settings.ttl + self.settings.stale_if_error
    }

    /// Whether values of this name are kept.
    fn keeps(&self, name: &SecretName) -> bool {
        let settings = &self.settings;
        !settings.ttl.is_zero()
            && (settings.only.is_empty()
                || settings
                    .only
                    .iter()
                    .any(|prefix| name.as_str().starts_with(prefix.as_str())))
    }
}

#[cfg(test)]
mod tests;
