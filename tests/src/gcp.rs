//! A fake Google Cloud that is as strict as the real one: the Security Token Service's token exchange,
//! `generateAccessToken`, and Secret Manager's reads.
//!
//! The token service accepts a subject token only by its signature, issuer, audience and expiry, as a provider of
//! workload identity federation or GKE's own pool does, with the provider's attribute mapping and condition. A service
//! account's token is given only to members that a binding on the account admits, through each delegate. Secret Manager
//! checks each bearer's expiry and the bindings of secret and project, with their conditions on the resource's name.
//! Over HTTP everything is read-only, as the agent is; tests write secrets, bindings and faults through [`FakeGcp`].
//!
//! Machines outside of any cluster sign in with a service account's key, a person's refresh token, or the account that
//! they run as.
//!
//! Not here: organisations, folders, deny policies, groups, regional secrets, KMS keys, downscoped tokens; whatever the
//! fake does not know is refused, never ignored.

mod call;
mod cel;
mod credentials;
mod fault;
mod iam;
mod machine;
mod reply;
mod secretmanager;
mod service;
mod store;
mod sts;
mod world;

#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use call::{Call, Operation};
pub use cel::ExpressionError;
pub use fault::{Behaviour, Fault, Special};
pub use iam::ProviderSpec;
pub use store::VersionState;

use crate::fake::{CallLog, FaultGuard, Faults, Forgotten, Listener, Port};
use iam::Iam;
use store::Store;

/// The id of the project that exists from the start.
pub const PROJECT: &str = "acme-prod";

/// Its number.
pub const NUMBER: &str = "123456789012";

/// How many calls are remembered.
const CALLS_KEPT: usize = 100_000;

/// A running fake Google Cloud; clones are handles to the same one, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct FakeGcp {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Arc<State>,
    listener: Listener,
    _ended: DropGuard,
}

/// What the services work on.
#[derive(Debug)]
struct State {
    iam: RwLock<Iam>,
    store: RwLock<Store>,
    faults: Arc<Faults<Fault>>,
    calls: CallLog<Call>,
    /// The most names in one `ListSecrets` answer.
    page_limit: AtomicUsize,
    /// How far the fake's clock is from the machine's, in milliseconds.
    clock_offset: AtomicI64,
}

/// Running it.
impl FakeGcp {
    /// Binds its listener and serves it on the current runtime, which is why this is an async function.
    ///
    /// # Errors
    ///
    /// If no port can be bound.
    pub async fn start() -> io::Result<Self> {
        let ended = CancellationToken::new();
        let mut store = Store::default();
        store.add_project(PROJECT, NUMBER);
        let state = Arc::new(State {
            iam: RwLock::default(),
            store: RwLock::new(store),
            faults: Arc::default(),
            calls: CallLog::new(CALLS_KEPT, false),
            page_limit: AtomicUsize::new(usize::MAX),
            clock_offset: AtomicI64::new(0),
        });
        let served = Arc::clone(&state);
        let listener = Listener::open(
            Port::take((Ipv4Addr::LOCALHOST, 0).into())?,
            None,
            ended.clone(),
            move |request| service::serve(Arc::clone(&served), request),
        )?;
        let inner = Inner {
            state,
            listener,
            _ended: ended.drop_guard(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The URL of all three services.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.inner.listener.address())
    }

    /// Refuses connections from now on and breaks the open ones.
    pub async fn stop_listening(&self) {
        self.inner.listener.stop().await;
    }

    /// How many connections were opened so far.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.inner.listener.opened()
    }

    /// Lets something on their way forget the open connections; new ones are accepted.
    pub fn forget_connections(&self, how: Forgotten) {
        self.inner.listener.forget_connections(how);
    }

    /// Listens again, at the same port.
    ///
    /// # Errors
    ///
    /// If the port cannot be listened on.
    pub async fn resume_listening(&self) -> io::Result<()> {
        self.inner.listener.resume().await
    }

    /// Sets the fake's clock this far from the machine's, in either direction.
    pub fn set_clock_offset(&self, offset: SignedDuration) {
        let milliseconds = i64::try_from(offset.as_millis()).unwrap_or(i64::MAX);
        let clock = &self.inner.state.clock_offset;
        clock.store(milliseconds, Ordering::Relaxed);
    }
}

/// The calls, and the faults.
impl FakeGcp {
    /// Every call so far, in the order of the answers.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.inner.state.calls.matching(|_| true)
    }

    /// The calls of one kind.
    #[must_use]
    pub fn calls_of(&self, operation: Operation) -> Vec<Call> {
        self.inner
            .state
            .calls
            .matching(|call| call.operation == operation)
    }

    /// Waits until at least `calls` calls of this kind have come. Returns whether that was within `patience`.
    pub async fn called(&self, calls: usize, patience: Duration, operation: Operation) -> bool {
        let log = &self.inner.state.calls;
        let mut total = log.total();
        let all = async {
            while log.count(|call| call.operation == operation) < calls {
                // The sender lives as long as `self`.
                let _ = total.changed().await;
            }
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }

    /// Makes something go wrong until the guard is dropped.
    pub fn fault(&self, fault: Fault) -> FaultGuard<Fault> {
        self.inner.state.faults.add(fault)
    }
}

impl State {
    fn now(&self) -> Timestamp {
        let offset = self.clock_offset.load(Ordering::Relaxed);
        Timestamp::now() + SignedDuration::from_millis(offset)
    }

    fn page_limit(&self) -> usize {
        self.page_limit.load(Ordering::Relaxed).max(1)
    }

    fn iam_read(&self) -> RwLockReadGuard<'_, Iam> {
        self.iam.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn iam_write(&self) -> RwLockWriteGuard<'_, Iam> {
        self.iam.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn store_read(&self) -> RwLockReadGuard<'_, Store> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn store_write(&self) -> RwLockWriteGuard<'_, Store> {
        self.store.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A text that nobody can guess.
fn random() -> String {
    let half = || uuid::Uuid::new_v4().simple().to_string();
    half() + &half()
}
