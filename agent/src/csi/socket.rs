//! A socket of the mounter: claimed at once, whoever has it, and again when nobody answers on it any more.
//!
//! During an upgrade two mounters are on a node. The one that started last has the sockets, and may be the one that
//! stops: rolling the upgrade back removes it.

use super::grpc::serve;
use super::named;
use super::plugin::Plugin;
use crate::handover::{Access, Holder, Listening, SocketPath};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// For root alone.
const MODE: u32 = 0o600;

/// A socket that is served until this is dropped.
pub(super) struct Socket {
    path: PathBuf,
    socket: SocketPath,
    listening: Listening,
    plugin: Arc<Plugin>,
    calls: TaskTracker,
    _serving: AbortOnDropHandle<()>,
}

impl Socket {
    /// Serves at `path`.
    ///
    /// # Errors
    ///
    /// If the socket's directory is not safe, or the kernel refuses.
    pub(super) fn serve(
        path: &Path,
        plugin: &Arc<Plugin>,
        calls: &TaskTracker,
    ) -> io::Result<Self> {
        let socket = SocketPath::open(path, Access::AsItIs).map_err(io::Error::other)?;
        let listening = socket.claim(MODE).map_err(|e| named(e, path))?;
        let serving = serve(listening.listener.clone(), plugin.clone(), calls.clone());
        Ok(Self {
            path: path.to_owned(),
            socket,
            _serving: AbortOnDropHandle::new(tokio::spawn(serving)),
            listening,
            plugin: plugin.clone(),
            calls: calls.clone(),
        })
    }

    /// Claims the path again if nobody answers there. If another mounter does, it is rightly that one's.
    ///
    /// # Errors
    ///
    /// If the directory itself is no longer there. After a restart, a container's mount leads to the one that is.
    pub(super) fn keep(&mut self) -> io::Result<()> {
        self.socket.must_be_there()?;
        if self.socket.holds(&self.listening) || self.socket.look(&self.listening) != Holder::Nobody
        {
            return Ok(());
        }
        let path = self.path.display();
        match Self::serve(&self.path, &self.plugin, &self.calls) {
            Ok(socket) => {
                tracing::warn!(%path, "nobody answered on the socket any more; it is this mounter's again");
                *self = socket;
            }
            Err(error) => tracing::error!(%path, %error, "cannot listen on the socket again"),
        }
        Ok(())
    }
}
