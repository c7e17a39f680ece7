//! A strict fake of the Kubernetes API server: it answers the agent's requests as the real one does.
//!
//! It speaks the real protocol (plain HTTP on the loopback), checks each request by RBAC, pages its lists, serves
//! watches with bookmarks and `410 Gone`, and signs real service account tokens. Tests change the cluster through
//! [`FakeKube`], and make the server slow, stale, wrong or absent; [`FakeKube::requests`] returns the requests it got.

mod api;
mod faults;
mod journal;
mod list;
mod node;
mod objects;
mod pod;
mod rbac;
mod selector;
mod status;
mod store;
mod token;
mod watch;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use std::{fs, io};

pub use faults::{Fault, StaleReads};
pub use journal::{Request, TokenRequested};
pub use node::NODES;
pub use objects::Annotations;
pub use pod::{Container, Pod, PodSpec};
pub use rbac::Rule;

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::PATIENCE;
use crate::fake::{Listener, Port};
use crate::jwt::Issuer;

/// The user that [`FakeKube`] knows from the start, with the rights that the agent's manifests give it.
pub const AGENT: &str = "system:serviceaccount:latchkey:latchkey-agent";

/// How a [`FakeKube`] differs from a plain cluster of today.
#[derive(Clone, Debug)]
pub struct FakeKubeConfig {
    /// The `iss` of its tokens; by default the server's own URL.
    pub issuer: Option<String>,
    /// How often a quiet watch gets a bookmark (every minute from the real server).
    pub bookmark_interval: Duration,
    /// Whether watches may use `sendInitialEvents` (the WatchList feature); old servers refuse it with 422.
    pub watch_list: bool,
    /// Whether a watch from before the last compaction is refused with HTTP 410 instead of a 200 with an `ERROR` event.
    pub gone_as_status: bool,
    /// The longest lifetime of a token, whatever was requested.
    pub max_token_seconds: i64,
}

/// A running fake API server; clones are handles to the same one, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct FakeKube {
    cluster: Arc<Cluster>,
    server: Arc<Server>,
}

/// The listening side. It holds the cluster, but the cluster does not hold it, so that it ends with the last handle.
#[derive(Debug)]
struct Server {
    listener: Listener<api::Body>,
    _ended: DropGuard,
}

/// Everything that exists whether or not anybody listens.
#[derive(Debug)]
struct Cluster {
    config: FakeKubeConfig,
    address: SocketAddr,
    issuer: Issuer,
    state: Mutex<State>,
    /// Ticks at each change of the state, for those who wait for something in it.
    changed: tokio::sync::watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    store: store::Store,
    faults: faults::Faults,
    journal: journal::Journal,
    rbac: rbac::Rbac,
    /// Bearer token to user name.
    users: HashMap<String, String>,
    /// The node that a user's token is bound to.
    places: HashMap<String, String>,
    /// Watches being served now.
    watches: usize,
}

impl Default for FakeKubeConfig {
    fn default() -> Self {
        Self {
            issuer: None,
            bookmark_interval: Duration::from_secs(60),
            watch_list: true,
            gone_as_status: false,
            max_token_seconds: 24 * 3600,
        }
    }
}

impl FakeKube {
    /// Starts a server on a loopback port of its own, with the namespaces `default` and `kube-system`.
    ///
    /// # Errors
    ///
    /// If no port can be bound.
    pub async fn start(config: FakeKubeConfig) -> io::Result<Self> {
        let port = Port::take((Ipv4Addr::LOCALHOST, 0).into())?;
        let url = format!("http://{}", port.address());
        let mut state = State {
            store: store::Store::default(),
            faults: faults::Faults::default(),
            journal: journal::Journal::default(),
            rbac: rbac::Rbac::default(),
            users: HashMap::new(),
            places: HashMap::new(),
            watches: 0,
        };
        state.rbac.grant(AGENT, Rule::agent());
        let cluster = Arc::new(Cluster {
            issuer: Issuer::new(config.issuer.clone().unwrap_or(url)),
            config,
            address: port.address(),
            state: Mutex::new(state),
            changed: tokio::sync::watch::Sender::new(()),
        });
        let (served, ended) = (cluster.clone(), CancellationToken::new());
        let listener = Listener::open(port, None, ended.clone(), move |request| {
            let answer = api::answer(served.clone(), request);
            async { Ok(answer.await) }
        })?;
        let server = Arc::new(Server {
            listener,
            _ended: ended.drop_guard(),
        });
        let kube = Self { cluster, server };
        for namespace in ["default", "kube-system"] {
            kube.create_namespace(namespace, &[]);
        }
        Ok(kube)
    }

    /// Refuses connections from now on and breaks the open ones, watches included. The cluster stays as it is.
    pub async fn stop_listening(&self) {
        self.server.listener.stop().await;
    }

    /// Listens again, at the same port.
    ///
    /// # Errors
    ///
    /// If the port cannot be listened on.
    pub async fn resume_listening(&self) -> io::Result<()> {
        self.server.listener.resume().await
    }

    /// The server's base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.cluster.address)
    }

    /// The issuer of its service account tokens.
    #[must_use]
    pub fn issuer(&self) -> &Issuer {
        &self.cluster.issuer
    }

    /// The bearer token of `user`; a new user gets one, and no rights.
    #[must_use]
    pub fn bearer(&self, user: &str) -> String {
        let mut state = self.cluster.lock();
        let known = state.users.iter().find(|(_, name)| *name == user);
        if let Some((token, _)) = known {
            return token.clone();
        }
        let token = format!("bearer-{}", uuid::Uuid::new_v4().simple());
        state.users.insert(token.clone(), user.to_owned());
        token
    }

    /// Writes a kubeconfig for `user` into `directory`, for the agent's `$KUBECONFIG`.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn kubeconfig_file(&self, directory: &Path, user: &str) -> io::Result<PathBuf> {
        let path = directory.join(format!("kubeconfig-{}.yaml", user.replace(['/', ':'], "-")));
        let (server, token) = (self.url(), self.bearer(user));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: fake\n\
             clusters:\n- name: fake\n  cluster:\n    server: {server}\n\
             users:\n- name: fake\n  user:\n    token: {token}\n\
             contexts:\n- name: fake\n  context:\n    cluster: fake\n    user: fake\n"
        );
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Waits until `condition` holds, checking again at each change.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut changed = self.cluster.changed.subscribe();
        let holds = async { while !condition(self) && changed.changed().await.is_ok() {} };
        tokio::time::timeout(PATIENCE, holds)
            .await
            .expect("the cluster comes to what is waited for");
    }
}

impl Cluster {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked with the lock held has failed already; the others go on.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes the state and wakes everybody who waits for a change.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_replace(());
        result
    }
}

#[cfg(test)]
mod tests;
