//! A pod's values: reads in flight, and, where the operator turned it on, the values read before.
//!
//! Both belong to the pod's entry, so no key can reach another pod's value. Off by default: the promise is that
//! every read is the latest.

use crate::backend::{BackendError, BackendId, Fault, Secret, Selector};
use crate::config;
use crate::flight::Flights;
use crate::role::Role;
use crate::secret::SecretName;
use moka::sync::Cache;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// What an entry costs beside its value, in bytes: key, bookkeeping and the moka node, rounded up.
const ENTRY_COST: usize = 512;

/// What a read is of: the whole of what can change its result.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ReadKey {
    /// Where it is read.
    pub(crate) backend: BackendId,
    /// The role read as, with its region and prefix.
    pub(crate) role: Arc<Role>,
    /// The UID of the service account.
    pub(crate) account: Arc<str>,
    /// The name as the application wrote it.
    pub(crate) name: SecretName,
    /// The version.
    pub(crate) selector: Selector,
}

/// The values of one pod.
#[derive(Debug)]
pub(crate) struct Values {
    settings: Arc<config::Cache>,
    kept: OnceLock<Cache<ReadKey, Kept>>,
    reads: Flights<ReadKey, Result<Arc<Secret>, BackendError>>,
}

#[derive(Clone, Debug)]
struct Kept {
    secret: Arc<Secret>,
    read_at: Instant,
}

/// A value, and how it was come by.
#[derive(Debug)]
pub(crate) struct Read {
    /// The secret.
    pub(crate) secret: Arc<Secret>,
    /// What the cache did.
    pub(crate) cache: CacheUse,
    /// How old the value is, if it came from the cache.
    pub(crate) age: Option<Duration>,
    /// The request whose call to the vault answered this one too.
    pub(crate) shared_with: Option<Arc<str>>,
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
    /// The vault could not be reached, and an expired value was allowed to stand in.
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

/// Equal keys hash alike; what a pod hardly ever has two of is left to the comparison, which is by pointer first.
impl Hash for ReadKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.backend.hash(state);
        self.name.hash(state);
        self.selector.hash(state);
    }
}

// === impl Values ===

impl Values {
    /// No values yet.
    pub(crate) fn new(settings: Arc<config::Cache>) -> Self {
        Self {
            settings,
            kept: OnceLock::new(),
            reads: Flights::default(),
        }
    }

    /// The value for `key`: from the cache where that is on, else by `fetch`, which equal reads share. With
    /// `latest` the cache is passed by and no read is joined that began before.
    ///
    /// # Errors
    ///
    /// What the vault answered; and how the cache stood, for the audit line.
    pub(crate) async fn read<F>(
        &self,
        key: &ReadKey,
        latest: bool,
        asker: &Arc<str>,
        fetch: impl FnOnce() -> F,
    ) -> Result<Read, (BackendError, CacheUse)>
    where
        F: Future<Output = Result<Arc<Secret>, BackendError>> + Send + 'static,
    {
        let kept = self.kept_for(&key.name);
        if !latest
            && let Some(kept) = kept
            && let Some(value) = kept.get(key)
            && value.read_at.elapsed() < self.settings.ttl
        {
            return Ok(value.as_read(CacheUse::Hit));
        }
        let cache = if kept.is_some() {
            CacheUse::Miss
        } else {
            CacheUse::Off
        };
        let seat = self.reads.join(key, latest, asker, fetch());
        let outcome = seat
            .result
            .await
            .unwrap_or_else(|| Err(BackendError::died()));
        match outcome {
            Ok(secret) => {
                // A read that began later may have ended before: what it found is newer.
                let is_newest = |kept: &Cache<ReadKey, Kept>| {
                    kept.get(key)
                        .is_none_or(|value| value.read_at <= seat.began)
                };
                if let Some(kept) = kept.filter(|kept| is_newest(kept)) {
                    // Its age counts from before the vault was asked, so it is never older than it says.
                    kept.insert(
                        key.clone(),
                        Kept {
                            secret: secret.clone(),
                            read_at: seat.began,
                        },
                    );
                    // moka evicts when it has time; the bound is to hold at once.
                    kept.run_pending_tasks();
                }
                Ok(Read {
                    secret,
                    cache,
                    age: None,
                    shared_with: seat.leader,
                })
            }
            Err(error) => {
                let Some(kept) = kept else {
                    return Err((error, cache));
                };
                if error.fault == Fault::Unreachable {
                    let longest = self.settings.ttl + self.settings.stale_if_error;
                    // Whoever asked for the latest is better off without an answer than with an old one.
                    if !latest
                        && !self.settings.stale_if_error.is_zero()
                        && let Some(value) = kept.get(key)
                        && value.read_at.elapsed() < longest
                    {
                        return Ok(value.as_read(CacheUse::Stale));
                    }
                } else if matches!(error.error.code.status(), 403 | 404) {
                    // Gone or forbidden: an older value must not come back.
                    kept.invalidate(key);
                }
                Err((error, cache))
            }
        }
    }

    /// Drops every value that was read as `role`.
    pub(crate) fn forget(&self, role: &Role) {
        if let Some(kept) = self.kept.get() {
            for (key, _) in kept {
                if *key.role == *role {
                    kept.invalidate(&*key);
                }
            }
            kept.run_pending_tasks();
        }
    }

    /// Lets go of what has expired. moka evicts only when it is used or told to, and a value that is not evicted
    /// is not wiped.
    pub(crate) fn tidy(&self) {
        if let Some(kept) = self.kept.get() {
            kept.run_pending_tasks();
        }
    }

    fn kept_for(&self, name: &SecretName) -> Option<&Cache<ReadKey, Kept>> {
        let settings = &self.settings;
        let cached = !settings.ttl.is_zero()
            && (settings.only.is_empty()
                || settings
                    .only
                    .iter()
                    .any(|prefix| name.as_str().starts_with(prefix.as_str())));
        cached.then(|| {
            self.kept.get_or_init(|| {
                Cache::builder()
                    .max_capacity(settings.max_bytes)
                    .weigher(|key: &ReadKey, kept: &Kept| {
                        let bytes =
                            ENTRY_COST + key.name.as_str().len() + 2 * kept.secret.value.len();
                        u32::try_from(bytes).unwrap_or(u32::MAX)
                    })
                    .time_to_live(settings.ttl + settings.stale_if_error)
                    .build()
            })
        })
    }
}

// === impl Kept ===

impl Kept {
    fn as_read(&self, cache: CacheUse) -> Read {
        Read {
            secret: self.secret.clone(),
            cache,
            age: Some(self.read_at.elapsed()),
            shared_with: None,
        }
    }
}

#[cfg(test)]
mod tests;
