//! A fake Azure that is as strict as the real one: Entra ID's token endpoint and Key Vault's reads, over TLS with a
//! certificate authority of its own.
//!
//! Entra ID accepts a client assertion only by its signature, issuer, subject, audience and expiry, which a federated
//! credential of that client in that tenant must name. Key Vault challenges requests without a token, checks each
//! token's signature, audience, tenant and expiry, and then the client's role assignments or the vault's access policy.
//! Over HTTP everything is read-only, as the agent is; tests write applications, vaults, secrets and faults through
//! [`FakeAzure`].
//!
//! All hosts are one listener: `login.test` is Entra ID, `NAME.vault.test` a vault. [`FakeAzure::in_reach`] leads
//! there.

mod call;
mod directory;
mod entra;
mod fault;
mod keyvault;
mod machine;
mod reply;
mod service;
mod vault;
mod world;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use call::{Call, Operation};
pub use directory::AppSpec;
pub use fault::{Behaviour, Fault, Special};
pub use vault::{Access, SecretSpec};

use directory::Directory;
use vault::Vaults;

use crate::agent::AgentSettings;
use crate::fake::{Authority, CallLog, FaultGuard, Faults, Forgotten, Listener, Port};

/// Entra ID's host.
pub const LOGIN_HOST: &str = "login.test";

/// The suffix of the hosts of vaults.
pub const VAULT_SUFFIX: &str = ".vault.test";

/// The resource that tokens for the vaults are made out to.
const RESOURCE: &str = "https://vault.test";

/// A running fake Azure; clones are handles to the same one, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct FakeAzure {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Arc<State>,
    listener: Listener,
    authority: Authority,
    _ended: DropGuard,
}

/// What the services work on.
#[derive(Debug)]
struct State {
    directory: RwLock<Directory>,
    vaults: RwLock<Vaults>,
    faults: Arc<Faults<Fault>>,
    calls: CallLog<Call>,
    /// Known once the listener is bound.
    address: OnceLock<SocketAddr>,
    /// How far the fake's clock is from the machine's, in milliseconds.
    clock_offset: AtomicI64,
}

/// Running it.
impl FakeAzure {
    /// Binds its listener and serves it on the current runtime, which is why this is an async function.
    ///
    /// # Errors
    ///
    /// If no port can be bound, or no certificate made.
    pub async fn start() -> io::Result<Self> {
        let ended = CancellationToken::new();
        let authority = Authority::new()?;
        let names = vec![LOGIN_HOST.to_owned(), format!("*{VAULT_SUFFIX}")];
        let state = Arc::new(State {
            directory: RwLock::new(Directory::new(&format!("https://{LOGIN_HOST}"))),
            vaults: RwLock::default(),
            faults: Arc::default(),
            calls: CallLog::new(100_000, false),
            address: OnceLock::new(),
            clock_offset: AtomicI64::new(0),
        });
        let serving = state.clone();
        let listener = Listener::open(
            Port::take((Ipv4Addr::LOCALHOST, 0).into())?,
            Some(authority.acceptor(names)?),
            ended.clone(),
            move |request| service::serve(serving.clone(), request),
        )?;
        let _ = state.address.set(listener.address());
        let inner = Inner {
            state,
            listener,
            authority,
            _ended: ended.drop_guard(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Entra ID's URL.
    #[must_use]
    pub fn authority(&self) -> String {
        format!(
            "https://{LOGIN_HOST}:{}",
            self.inner.listener.address().port()
        )
    }

    /// A vault's URL, whether or not there is one of that name.
    #[must_use]
    pub fn vault_url(&self, vault: &str) -> String {
        let port = self.inner.listener.address().port();
        format!("https://{vault}{VAULT_SUFFIX}:{port}")
    }

    /// Writes the certificate of its authority into `directory`, for the agent's `SSL_CERT_FILE`.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn ca_file(&self, directory: &Path) -> io::Result<PathBuf> {
        let path = directory.join("azure-ca.pem");
        std::fs::write(&path, self.inner.authority.certificate())?;
        Ok(path)
    }

    /// The settings of an agent that finds this fake, with these vaults, and trusts it. Files for it are written into
    /// `directory`: a `hosts` file to mount over the agent's own in a mount namespace of its own, and the fake's CA.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn in_reach(
        &self,
        settings: AgentSettings,
        directory: &Path,
        vaults: &[&str],
    ) -> io::Result<AgentSettings> {
        let hosts = self.hosts_file(directory, vaults)?;
        let ca = self.ca_file(directory)?;
        Ok(settings
            .set("backends.azure.authority", self.authority())
            .set("backends.azure.vault_suffixes", VAULT_SUFFIX)
            .env("SSL_CERT_FILE", ca.display())
            .with_hosts(&hosts))
    }

    fn hosts_file(&self, directory: &Path, vaults: &[&str]) -> io::Result<PathBuf> {
        let path = directory.join("azure-hosts");
        let mut text = format!("127.0.0.1 localhost {LOGIN_HOST}\n");
        for vault in vaults {
            text.push_str(&format!("127.0.0.1 {vault}{VAULT_SUFFIX}\n"));
        }
        std::fs::write(&path, text)?;
        Ok(path)
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
        let state = &self.inner.state;
        state.clock_offset.store(milliseconds, Ordering::Relaxed);
    }
}

/// The calls, and the faults.
impl FakeAzure {
    /// Every call so far, in the order of the answers.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.inner.state.calls.matching(|_| true)
    }

    /// The calls that `wanted` accepts.
    #[must_use]
    pub fn calls_where(&self, wanted: impl Fn(&Call) -> bool) -> Vec<Call> {
        self.inner.state.calls.matching(wanted)
    }

    /// Waits until at least `calls` such calls have been answered. Returns whether that was within `patience`.
    pub async fn called(
        &self,
        calls: usize,
        patience: Duration,
        wanted: impl Fn(&Call) -> bool,
    ) -> bool {
        let mut total = self.inner.state.calls.total();
        let all = async {
            while self.calls_where(&wanted).len() < calls {
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

    /// The port; it is known once there are requests.
    fn port(&self) -> u16 {
        self.address.get().map_or(0, SocketAddr::port)
    }

    fn directory(&self) -> RwLockReadGuard<'_, Directory> {
        self.directory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn directory_mut(&self) -> RwLockWriteGuard<'_, Directory> {
        self.directory
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn vaults(&self) -> RwLockReadGuard<'_, Vaults> {
        self.vaults.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn vaults_mut(&self) -> RwLockWriteGuard<'_, Vaults> {
        self.vaults.write().unwrap_or_else(PoisonError::into_inner)
    }
}
