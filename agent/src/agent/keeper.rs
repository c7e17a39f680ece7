//! Who has the socket's path, and what goes with it.

use crate::attest::Attestor;
use crate::attest::cgroup::PodUid;
use crate::handover::{Holder, Listening, Phase, SocketPath};
use crate::passed::{self, Listener};
use crate::preflight::StartError;
use crate::server::Warnings;
use crate::volumes::{Left, Volumes};
use prometheus::IntGauge;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;

/// Keeps the socket's path.
pub(super) struct Keeper {
    path: SocketPath,
    current: Listening,
    /// Whether this agent has taken it once. Another agent may have it by now.
    pub(super) has_path: bool,
    /// The phase of the connections.
    pub(super) phase: watch::Sender<Phase>,
    /// The sockets in the pods' volumes, which go with the path.
    pub(super) volumes: Option<Arc<Volumes>>,
    /// 1 while the path leads here.
    reached: IntGauge,
    /// Tells in which pod somebody else is who answers there.
    attestor: Arc<Attestor>,
    warnings: Warnings,
}

impl Keeper {
    /// A keeper that listens next to the path and has not taken it.
    pub(super) fn new(
        path: SocketPath,
        current: Listening,
        phase: watch::Sender<Phase>,
        volumes: Option<Arc<Volumes>>,
        reached: IntGauge,
        attestor: Arc<Attestor>,
    ) -> Self {
        Self {
            path,
            current,
            has_path: false,
            phase,
            volumes,
            reached,
            attestor,
            warnings: Warnings::default(),
        }
    }

    /// The current listener.
    pub(super) fn listener(&self) -> Arc<Listener> {
        self.current.listener.clone()
    }

    /// Finds out who answers on the path.
    pub(super) fn look(&self) -> Holder {
        self.path.look(&self.current)
    }

    /// Takes the path, and with it the volumes' sockets.
    pub(super) async fn take(&mut self) -> io::Result<()> {
        self.take_for(self.current.clone()).await
    }

    async fn take_for(&mut self, listening: Listening) -> io::Result<()> {
        if let Some(volumes) = &self.volumes {
            volumes.prepare().await;
        }
        self.path.take(&listening).await?;
        self.current = listening;
        self.has_path = true;
        self.reached.set(1);
        self.keep_volumes().await;
        Ok(())
    }

    /// Gives the path back, and with it the volumes' sockets, which still accept until the result is dropped.
    pub(super) async fn leave(&self) -> Option<Left> {
        self.path.leave(&self.current).await;
        self.reached.set(0);
        self.volumes.as_ref().map(|volumes| volumes.leave())
    }

    /// Listens in the volumes for as long as the path leads here.
    pub(super) async fn keep_volumes(&self) {
        if let Some(volumes) = &self.volumes {
            volumes.keep(|| self.path.holds(&self.current)).await;
        }
    }

    /// Checks who answers on the path. If nobody does, takes it, or binds it again and returns the new listener. If
    /// another agent does, this one has been replaced.
    ///
    /// # Errors
    ///
    /// If the directory itself is no longer there. After a restart, a container's mount leads to the one that is.
    pub(super) async fn watch(&mut self) -> io::Result<Option<Arc<Listener>>> {
        self.path.must_be_there()?;
        let found = self.look();
        self.reached.set((found == Holder::Ours).into());
        let now = match found {
            Holder::Another if self.has_path => Phase::Replaced,
            // Not replaced: this agent has not taken the path yet, since it is not ready.
            Holder::Ours | Holder::Another | Holder::Nobody => Phase::Serving,
        };
        let phase = &self.phase;
        let changed = phase.send_if_modified(|phase| std::mem::replace(phase, now) != now);
        if changed && now == Phase::Replaced {
            // Expected in a handover; at any other time somebody has put their own socket in its place.
            let (pid, pod) = self.holder();
            let pod_uid = pod.map(tracing::field::display);
            tracing::warn!(pid, pod_uid, "another process answers on the socket's path");
        }
        let bound = match found {
            Holder::Ours | Holder::Another => return Ok(None),
            Holder::Nobody if self.has_path => self.bind_again().await.map(Some),
            // The other agent left or died before this one was ready. As on a cold start, pods wait inside.
            Holder::Nobody => self.take().await.map(|()| None),
        };
        match bound {
            Ok(listener) => {
                let done = match listener {
                    Some(_) => "bound it again",
                    None => "took it",
                };
                tracing::warn!("nobody answered on the socket's path; {done}");
                Ok(listener)
            }
            Err(error) => {
                // It is tried again each second.
                if self.warnings.is_due("cannot_bind", None) {
                    tracing::error!(%error, "cannot bind the socket's path again");
                }
                Ok(None)
            }
        }
    }

    /// The process that listens on the path, as the kernel names it to whoever connects there (`SO_PEERCRED`, unix(7)),
    /// and the pod that it is in. It may have exited since and have left its socket to others.
    fn holder(&self) -> (Option<i32>, Option<PodUid>) {
        let Ok(connection) = self.path.dial() else {
            return (None, None);
        };
        let found = self.attestor.guess(&connection);
        passed::let_go(connection);
        found
    }

    async fn bind_again(&mut self) -> io::Result<Arc<Listener>> {
        // As at start, it says where, and what to do.
        let in_full = |source| {
            let socket = self.path.socket();
            io::Error::other(StartError::Listen { socket, source })
        };
        let anew = self.path.listen().map_err(in_full)?;
        let taken = self.take_for(anew.clone()).await;
        // What is in the way may go, and the socket before come to light again: that one stays the current one.
        taken.inspect_err(|_| self.path.release(&anew))?;
        Ok(self.listener())
    }
}
