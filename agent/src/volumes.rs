//! The volumes that pods have got by CSI: each holds a socket of the pod's own, which the agent binds and keeps.
//!
//! What to keep is in the [`Store`], which mounter and agent share: the agent listens in a volume whose record is
//! there, and lets go of one whose record is gone. So it does not matter which of the two was restarted, or when. Of
//! two agents on a node, the one that has the shared socket's path has these too.

mod asked;
mod control;
mod filling;
mod folder;
mod memory;

use crate::attest::cgroup::PodUid;
use crate::attest::node::Node;
use crate::attest::pods::Pods;
use crate::config;
use crate::csi::control::{Ask, Failure, FailureKind, Message};
use crate::csi::volume::{Key, Store, Volume};
use crate::handover::{Access, Listening, SocketPath};
use crate::metrics::Metrics;
use crate::peer::Pinning;
use crate::server::Server;
use filling::Filling;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

/// Everybody in the pod may connect, as on the shared socket.
const SOCKET_MODE: u32 = 0o666;

/// The mounter is root.
const CONTROL_MODE: u32 = 0o600;

/// How long another agent may take to hand its tokens over.
const INHERIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The volumes of this node, and the socket for the mounter.
pub(crate) struct Volumes {
    store: Store,
    pods: Arc<Pods>,
    node: Arc<Node>,
    server: Arc<Server>,
    metrics: Arc<Metrics>,
    pinning: Pinning,
    /// How often files are read again.
    refresh: Duration,
    /// Held while a volume has two sets of files: one volume at a time.
    exchange: tokio::sync::Mutex<()>,
    open: Mutex<BTreeMap<Key, Open>>,
    /// Where it cannot listen, and why, as it was logged last.
    failing: Mutex<BTreeMap<Key, String>>,
    control: Mutex<Option<Open>>,
}

/// A socket that is listened on until this is dropped.
struct Open {
    path: SocketPath,
    listening: Listening,
    /// The pod whose volume it is in; none for the mounter's.
    pod: Option<PodUid>,
    /// Its files, if it has any, or what is wrong with the pod's request for them.
    filling: Result<Option<Arc<Filling>>, Failure>,
    accepting: AbortOnDropHandle<()>,
    _filling: Option<AbortOnDropHandle<()>>,
}

/// Sockets whose paths are released, and which accept connections until this is dropped.
pub(crate) struct Left(#[expect(dead_code, reason = "it is dropped")] Vec<Open>);

// === impl Volumes ===

impl Volumes {
    pub(crate) fn new(
        config: &config::Csi,
        pods: Arc<Pods>,
        node: Arc<Node>,
        server: Arc<Server>,
        metrics: Arc<Metrics>,
        pinning: Pinning,
    ) -> Self {
        Self {
            store: Store::of(&config.directory),
            pods,
            node,
            server,
            metrics,
            pinning,
            refresh: config.refresh,
            exchange: tokio::sync::Mutex::default(),
            open: Mutex::default(),
            failing: Mutex::default(),
            control: Mutex::default(),
        }
    }

    /// Called before the shared socket's path is taken: pods send requests at once, and to ask the clouds for them this
    /// agent needs the tokens that the previous one has.
    pub(crate) async fn prepare(&self) {
        let Ok((true, keys)) = self.stored() else {
            return;
        };
        self.expect_tokens(&keys);
        if !self.is_asked()
            && let Some(stream) = self.dial().await
        {
            self.inherit(stream).await;
        }
    }

    /// Listens wherever it should, and nowhere else: each second, in the agent that has the shared socket's path.
    /// `has_path` says whether that is still so: an agent that takes the path over takes these sockets next.
    pub(crate) async fn keep(self: &Arc<Self>, has_path: impl Fn() -> bool) {
        let (is_there, keys) = match self.stored() {
            Ok(seen) => seen,
            // Perhaps out of descriptors or memory: that says nothing about the volumes, and pods are using them.
            Err(error) => {
                tracing::error!(%error, "cannot look at the volumes; they stay as they are");
                return;
            }
        };
        let gone: Vec<Key> = {
            let open = self.open.lock();
            open.keys()
                .filter(|key| !keys.contains(key))
                .cloned()
                .collect()
        };
        for key in gone {
            self.let_go(&key);
        }
        self.failing.lock().retain(|key, _| keys.contains(key));
        self.expect_tokens(&keys);
        if !is_there || !has_path() {
            return;
        }
        let inheritance = match self.keep_control().await {
            Ok(inheritance) => inheritance,
            Err(error) => {
                tracing::error!(%error, "cannot listen for the mounter");
                None
            }
        };
        for key in &keys {
            if !has_path() {
                return;
            }
            let failed = self.keep_open(key).err();
            // A wrong attribute is refused when the volume is published.
            self.tell(
                key,
                failed.filter(|failure| failure.kind != FailureKind::Invalid),
            );
        }
        // Only now: whatever the mounter has sent in the meantime, it sent to this agent.
        if let Some(stream) = inheritance {
            self.inherit(stream).await;
        }
    }

    /// How many volumes this agent listens in: none once another agent has them.
    pub(crate) fn count(&self) -> usize {
        self.open
            .lock()
            .values()
            .filter(|open| open.is_held())
            .count()
    }

    /// Lets the pods of these volumes wait for the kubelet's tokens, where they have none.
    fn expect_tokens(&self, keys: &[Key]) {
        for key in keys {
            // No need to read the record of an open volume each second.
            let listened = self.open.lock().get(key).and_then(|open| open.pod);
            let uid = listened.or_else(|| Some(self.volume_of(key)?.pod.uid));
            if let Some(pod) = uid.and_then(|uid| self.pods.by_uid(uid)) {
                pod.tokens.expect();
            }
        }
    }

    /// Whether there is a store, and the volumes in it. There is none before the mounter first starts on this node.
    fn stored(&self) -> io::Result<(bool, Vec<Key>)> {
        let is_there = self.store.is_there()?;
        let keys = if is_there {
            self.store.keys()?
        } else {
            Vec::new()
        };
        Ok((is_there, keys))
    }

    /// Releases the path of every socket that is still this agent's. Connections made until then are accepted until the
    /// returned value is dropped.
    pub(crate) fn leave(&self) -> Left {
        let open = std::mem::take(&mut *self.open.lock()).into_values();
        let left: Vec<Open> = open.chain(self.control.lock().take()).collect();
        for open in &left {
            open.path.release(&open.listening);
        }
        Left(left)
    }

    /// Listens for the mounter. Returns a connection to the agent that did so before, if there is one.
    async fn keep_control(self: &Arc<Self>) -> io::Result<Option<UnixStream>> {
        if self.is_asked() {
            return Ok(None);
        }
        let before = self.dial().await;
        let socket =
            SocketPath::open(&self.store.control(), Access::AsItIs).map_err(io::Error::other)?;
        let listening = socket.claim(CONTROL_MODE)?;
        let accepting = tokio::spawn(self.clone().serve(listening.listener.clone()));
        *self.control.lock() = Some(Open {
            path: socket,
            listening,
            pod: None,
            filling: Ok(None),
            accepting: AbortOnDropHandle::new(accepting),
            _filling: None,
        });
        Ok(before)
    }

    /// Connects to whoever listens for the mounter now.
    async fn dial(&self) -> Option<UnixStream> {
        let dialled = UnixStream::connect(self.store.control());
        timeout(INHERIT_TIMEOUT, dialled).await.ok()?.ok()
    }

    /// Listens in a volume, if it is recorded and not listened in yet. Returns its files, if it should have any. If
    /// what the pod asks for is wrong, the agent listens all the same: an earlier agent may have accepted it.
    fn keep_open(self: &Arc<Self>, key: &Key) -> Result<Option<Arc<Filling>>, Failure> {
        let mut open = self.open.lock();
        if let Some(open) = open.get(key).filter(|open| open.is_held()) {
            return open.filling.clone();
        }
        let failed = |error: io::Error| Failure::unavailable(error.to_string());
        let Some(volume) = self.store.load(key).map_err(failed)? else {
            return Ok(None);
        };
        let filling = Filling::of(&volume);
        if let Err(failure) = &filling {
            tracing::warn!(uid = %volume.pod.uid, error = failure.text, "a volume has no files");
        }
        // What the kubelet made of a `subPath: agent.sock`, when it could write here and no socket was there.
        let _ = fs::remove_dir(self.store.socket(key));
        let socket = SocketPath::open(&self.store.socket(key), Access::AsItIs)
            .map_err(|error| failed(io::Error::other(error)))?;
        let listening = socket.claim(SOCKET_MODE).map_err(failed)?;
        let accepting = {
            let server = self.server.clone();
            let (listener, door) = (listening.listener.clone(), server.door_of(volume.pod.uid));
            async move {
                if let Err(error) = server.accept(listener, door).await {
                    tracing::error!(%error, "cannot accept in a pod's volume");
                }
            }
        };
        open.insert(
            key.clone(),
            Open {
                path: socket,
                listening,
                pod: Some(volume.pod.uid),
                filling: filling.clone(),
                accepting: AbortOnDropHandle::new(tokio::spawn(accepting)),
                _filling: filling.clone().ok().flatten().map(|filling| {
                    let work = self.clone().go_on_filling(key.clone(), filling);
                    AbortOnDropHandle::new(tokio::spawn(work))
                }),
            },
        );
        filling
    }

    /// Logs why it cannot listen in a volume, once and not each second.
    fn tell(&self, key: &Key, failed: Option<Failure>) {
        let mut failing = self.failing.lock();
        let Some(Failure { text, .. }) = failed else {
            failing.remove(key);
            return;
        };
        if failing.get(key) != Some(&text) {
            let record = self.store.record(key);
            tracing::error!(record = %record.display(), error = text, "cannot listen in a pod's volume");
            failing.insert(key.clone(), text);
        }
    }

    /// Lets go of a volume, and with a pod's last one also of the pod's tokens.
    fn let_go(&self, key: &Key) {
        let gone = self.open.lock().remove(key);
        if let Some(uid) = gone.and_then(|gone| gone.pod) {
            self.drop_tokens_without_volume(uid);
        }
    }

    /// Drops a pod's tokens if the agent listens in no volume of its.
    fn drop_tokens_without_volume(&self, uid: PodUid) {
        let open = self.open.lock();
        let has_none = open.values().all(|volume| volume.pod != Some(uid));
        if let (true, Some(pod)) = (has_none, self.pods.by_uid(uid)) {
            pod.tokens.drop_all();
        }
    }

    /// Takes over the tokens of the agent at the other end.
    async fn inherit(&self, mut stream: UnixStream) {
        let exchange = async {
            Message::plain(Ask::Tokens).write(&mut stream).await?;
            Message::<control::Inventory>::read(&mut stream).await
        };
        match timeout(INHERIT_TIMEOUT, exchange).await {
            Ok(Ok(inventory)) => control::take_over(&self.pods, &inventory),
            // It may have died: then there is nothing to take over.
            Ok(Err(error)) => {
                tracing::warn!(%error, "no tokens were handed over; the kubelet brings them within a minute or two");
            }
            Err(_) => tracing::warn!("the agent before does not hand its tokens over"),
        }
    }

    /// The tokens of every pod that has some, one after another, and the length of each pod's.
    fn inventory(&self) -> (control::Inventory, Zeroizing<Vec<u8>>) {
        let uids: HashSet<PodUid> = {
            let open = self.open.lock();
            open.values().filter_map(|open| open.pod).collect()
        };
        let held: Vec<_> = uids
            .into_iter()
            .filter_map(|uid| Some((uid, self.pods.by_uid(uid)?.tokens.written()?)))
            .collect();
        control::inventory(&held)
    }

    /// Whether the mounter's requests still come to this agent.
    fn is_asked(&self) -> bool {
        self.control.lock().as_ref().is_some_and(Open::is_held)
    }

    /// Whether the volume is still this agent's, and these are still its files.
    fn is_filled_by(&self, key: &Key, filling: &Filling) -> bool {
        self.open.lock().get(key).is_some_and(|open| {
            let current = open.filling.as_ref().ok().and_then(Option::as_ref);
            open.is_held() && current.is_some_and(|current| std::ptr::eq(&**current, filling))
        })
    }

    fn volume_of(&self, key: &Key) -> Option<Volume> {
        self.store.load(key).ok().flatten()
    }
}

// === impl Open ===

impl Open {
    /// Whether its path still leads here, and connections are still accepted.
    fn is_held(&self) -> bool {
        self.path.holds(&self.listening) && !self.accepting.is_finished()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_on_which_nobody_accepts_any_more_is_not_held() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("agent.sock");
        let path = SocketPath::open(&socket, Access::AsItIs).expect("it is safe");
        let listening = path.claim(SOCKET_MODE).expect("it is bound");
        let (fail, failed) = tokio::sync::oneshot::channel::<()>();
        let open = Open {
            path,
            listening,
            pod: None,
            filling: Ok(None),
            accepting: AbortOnDropHandle::new(tokio::spawn(async { drop(failed.await) })),
            _filling: None,
        };
        assert!(open.is_held());
        drop(fail);
        while !open.accepting.is_finished() {
            tokio::task::yield_now().await;
        }
        assert!(!open.is_held());
    }
}
