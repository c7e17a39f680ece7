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
mod service;
mod vault;
mod world;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;

pub use call::{Call, Operation};
pub use directory::AppSpec;
pub use fault::{Behaviour, Fault, Special};
pub use vault::{Access, SecretSpec};

use directory::Directory;
use vault::Vaults;

use crate::agent::AgentSettings;
use crate::fake::{Authority, Calls, Locked, Server};

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
    server: Server<Call, Special>,
    authority: Authority,
}

/// What the services work on.
#[derive(Debug)]
struct State {
    directory: Locked<Directory>,
    vaults: Locked<Vaults>,
    calls: Arc<Calls<Call, Special>>,
    /// Known once the listener is bound.
    address: OnceLock<SocketAddr>,
}

/// Running it.
impl FakeAzure {
    /// Binds its listener and serves it on the current runtime, which is why this is an async function.
    ///
    /// # Errors
    ///
    /// If no port can be bound, or no certificate made.
    pub async fn start() -> io::Result<Self> {
        let authority = Authority::new()?;
        let names = vec![LOGIN_HOST.to_owned(), format!("*{VAULT_SUFFIX}")];
        let state = Arc::new(State {
            directory: Locked::new(Directory::new(&format!("https://{LOGIN_HOST}"))),
            vaults: Locked::default(),
            calls: Calls::new(false),
            address: OnceLock::new(),
        });
        let served = Arc::clone(&state);
        let server = Server::open(
            (Ipv4Addr::LOCALHOST, 0).into(),
            Some(authority.acceptor(names)?),
            Arc::clone(&state.calls),
            move |request| service::serve(Arc::clone(&served), request),
        )?;
        let _ = state.address.set(server.address());
        let inner = Inner {
            state,
            server,
            authority,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Entra ID's URL.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("https://{LOGIN_HOST}:{}", self.address().port())
    }

    /// A vault's URL, whether or not there is one of that name.
    #[must_use]
    pub fn vault_url(&self, vault: &str) -> String {
        let port = self.address().port();
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
}

/// Its address, its calls, what goes wrong and its clock.
impl Deref for FakeAzure {
    type Target = Server<Call, Special>;

    fn deref(&self) -> &Self::Target {
        &self.inner.server
    }
}

impl State {
    fn now(&self) -> Timestamp {
        self.calls.now()
    }

    /// The port; it is known once there are requests.
    fn port(&self) -> u16 {
        self.address.get().map_or(0, SocketAddr::port)
    }
}
