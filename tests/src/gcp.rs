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
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;

pub use call::{Call, Operation};
pub use cel::ExpressionError;
pub use fault::{Behaviour, Fault, Special};
pub use iam::ProviderSpec;
pub use store::VersionState;

use crate::fake::{Calls, Locked, Server};
use iam::Iam;
use store::Store;

/// The id of the project that exists from the start.
pub const PROJECT: &str = "acme-prod";

/// Its number.
pub const NUMBER: &str = "123456789012";

/// The role that may read values.
pub const ACCESSOR: &str = "roles/secretmanager.secretAccessor";

/// A running fake Google Cloud; clones are handles to the same one, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct FakeGcp {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Arc<State>,
    server: Server<Call, Special>,
}

/// What the services work on.
#[derive(Debug)]
struct State {
    iam: Locked<Iam>,
    store: Locked<Store>,
    calls: Arc<Calls<Call, Special>>,
    /// The most names in one `ListSecrets` answer.
    page_limit: AtomicUsize,
}

/// Running it.
impl FakeGcp {
    /// Binds its listener and serves it on the current runtime, which is why this is an async function.
    ///
    /// # Errors
    ///
    /// If no port can be bound.
    pub async fn start() -> io::Result<Self> {
        let mut store = Store::default();
        store.add_project(PROJECT, NUMBER);
        let state = Arc::new(State {
            iam: Locked::default(),
            store: Locked::new(store),
            calls: Calls::new(false),
            page_limit: AtomicUsize::new(usize::MAX),
        });
        let served = Arc::clone(&state);
        let server = Server::open(
            (Ipv4Addr::LOCALHOST, 0).into(),
            None,
            Arc::clone(&state.calls),
            move |request| service::serve(Arc::clone(&served), request),
        )?;
        Ok(Self {
            inner: Arc::new(Inner { state, server }),
        })
    }
}

/// Its address, its calls, what goes wrong and its clock.
impl Deref for FakeGcp {
    type Target = Server<Call, Special>;

    fn deref(&self) -> &Self::Target {
        &self.inner.server
    }
}

impl State {
    fn now(&self) -> Timestamp {
        self.calls.now()
    }

    fn page_limit(&self) -> usize {
        self.page_limit.load(Ordering::Relaxed).max(1)
    }
}

/// A text that nobody can guess.
fn random() -> String {
    let half = || uuid::Uuid::new_v4().simple().to_string();
    half() + &half()
}
